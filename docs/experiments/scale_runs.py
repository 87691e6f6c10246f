"""How a scan grows: documents, concepts, layers, blocks and shards, Ray, SmolLM2; docs/scale.md's curves.

    python docs/experiments/scale_runs.py --out scale                      every cell, a process each
    python docs/experiments/scale_runs.py --out scale --only ray smollm2   some of them
    python docs/experiments/scale_runs.py --out scale --show docs/scale.md --picture docs/pictures/scale.png

Cells that are done are not done again; a cell of one process that is cut off goes on with its next block.
Two models: a random one of the shape of a Llama with 4 blocks of width 64 and SmolLM2's tokenizer, whose
own cost is small beside the scan's, and SmolLM2 itself (`make weights`). Documents are made of words by a
seed. Every cell is a process of its own. Torch runs one thread; processes of Ray as many as are asked for,
one thread each. Seconds are of the processor, since machines are shared; with Ray they are of the clock.
"""

import argparse
import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from between_markers import show

WORDS = "the a cat dog river bread tall blue under house soup ran when they of years"
LAYERS = 4
DEFAULTS: dict[str, Any] = {"documents": 4000, "concepts": 10, "layers": LAYERS, "block_size": 256}
DEFAULTS |= {"words": 10, "workers": 0, "model": "tiny"}
SMOLLM2 = {"documents": 128, "words": 64, "model": "smollm2", "layers": 30}
LOCAL: list[dict[str, Any]] = [
    {"documents": 20_000, "block_size": 1000},
    SMOLLM2 | {"documents": 192, "block_size": 16, "concepts": 100},
]
QUESTIONS = ("calibrate", "head_ledger", "head_alignment", "ablate_heads", "check_theory")
GRID: dict[str, list[dict[str, Any]]] = {
    "documents": [{"documents": 10**k} for k in range(3, 7)],
    "concepts": [{"concepts": k} for k in (1, 10, 100, 1000)],
    "layers": [{"layers": k, "concepts": 100} for k in (1, 2, 4)],
    "shards": [{"block_size": 4000 // k, "apart": True} for k in (1, 10, 100, 1000)],
    "ray": [{"documents": 20_000, "workers": k} for k in (0, 1, 2)],
    "smollm2": [SMOLLM2 | {"concepts": k} for k in (1, 100, 1000)],
    "local": [one | {"processes": n, "threads": k} for one in LOCAL for n, k in ((1, 1), (1, 2), (2, 1))],
    "questions": [{"question": q, "documents": n} for q in QUESTIONS for n in (500, 4000)],
    "tail": [{"scores": (10**9, 1)}, {"scores": (10**6, 1000)}],
}
BEGIN, END = ("<!-- scale_runs.py -->", "<!-- end of scale_runs.py -->")
LOCAL_BEGIN, LOCAL_END = ("<!-- scale_runs.py, local -->", "<!-- end of scale_runs.py, local -->")
DOLLARS_AN_HOUR = 0.05
OVER = "memory over what is held before"
EMPTY = 2000
"""Blocks of nothing that Ray hands out."""


# Cells --------------------------------------------------------------------------------------------


def tiny_folder() -> Path:
    """A random Llama with SmolLM2's tokenizer, written once into the scratch folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from weights import folder

    out = Path(tempfile.gettempdir()) / "sa_plugin_scale_model"
    if not (out / "config.json").exists():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512}
        tokenizer = AutoTokenizer.from_pretrained(folder("smollm2"))
        model: Any = LlamaForCausalLM
        model(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(out)
        tokenizer.save_pretrained(out)
    return out


def corpus_file(documents: int, words: int) -> Path:
    """Documents of random words, a JSON line each, ten of a source."""
    import numpy as np

    path = Path(tempfile.gettempdir()) / f"sa_plugin_scale_{documents}_{words}.jsonl"
    if not path.exists():
        rng, known = np.random.default_rng(0), np.array(WORDS.split())
        with path.with_suffix(".part").open("w") as file:
            for k in range(documents):
                text = " ".join(known[rng.integers(len(known), size=words)])
                file.write(json.dumps({"id": str(k), "document": f"d{k // 10}", "text": text}) + "\n")
        path.with_suffix(".part").rename(path)
    return path


def wanted(host: Any, concepts: int, layers: list[int]) -> Any:
    """Random directions dealt over the layers, each with the threshold that one token in 2,000 reaches."""
    import numpy as np

    import sa_plugin as sa
    from sa_plugin.data import Sample
    from sa_plugin.scanning import Wanted
    from sa_plugin.scores import score_samples

    rng = np.random.default_rng(0)
    names = [f"c{k:04d}" for k in range(concepts)]
    width = host.info.d_model
    vectors = {(name, layer): rng.standard_normal(width) for name in names for layer in layers}
    bank = sa.ConceptBank.from_vectors(vectors)
    # Of a model that costs something fewer, and thresholds near their maximum.
    texts = [" ".join(rng.choice(WORDS.split(), 40)) for _ in range(100 if width < 100 else 24)]
    scores = score_samples(host, [Sample(str(k), text, str(k)) for k, text in enumerate(texts)], bank)
    columns = tuple((k % len(layers), bank.units.index(name)) for k, name in enumerate(names))
    values = np.stack([np.asarray(scores.scores[:, layer, unit]) for layer, unit in columns], 1)
    high, low = np.quantile(values, 0.9995, axis=0), np.quantile(values, 0.999, axis=0)
    nothing = np.full(concepts, np.nan)
    counts = np.zeros(concepts, dtype=np.int64)
    deltas = np.full(concepts, 0.1)
    return Wanted(tuple(names), bank, columns, high, low, nothing, nothing, counts, deltas)


def scanner(folder: str, concepts: int, layers: int, corpus: Any, out: Path) -> Any:
    """What scans one block, made in the process that does it."""
    from sa_plugin.host import open_folder
    from sa_plugin.scanning import ScanJob, scan_block
    from sa_plugin.scanning.folder import begin

    host = open_folder(folder, "transformer_lens")
    last = host.info.n_layers
    chosen = [last * (k + 1) // layers - 1 for k in range(layers)]
    job = ScanJob(host, wanted(host, concepts, chosen), corpus)
    begin(job, out)

    def work(block: int) -> int:
        return int(scan_block(job, block, out)["tokens"]["counted"])

    return work


def nothing() -> Any:
    """Work that does nothing: what is left is Ray's."""
    return lambda block: block


def most_memory(*, anew: bool = False) -> int:
    """MiB that this process has held at most, since the start or since it was asked anew (Linux)."""
    if anew:
        # What was freed is given back first, else a question is answered in what an earlier one left.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def cell(given: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Seconds, memory and disk of one scan; what is done of it lies in the scratch folder."""
    import torch

    from sa_plugin.loaders import open_corpus
    from sa_plugin.scanning import merge

    torch.set_num_threads(given.get("threads", 1))
    if given.get("processes"):
        return given | together(given, scratch)
    if "scores" in given:
        return given | simulated(*given["scores"])
    if "question" in given:
        return given | asked(given["question"], given["documents"])
    if given["model"] == "tiny":
        folder = tiny_folder()
    else:
        from weights import folder as weights_folder

        folder = weights_folder(given["model"])
    corpus = open_corpus(corpus_file(given["documents"], given["words"]), block_size=given["block_size"])
    out = scratch / "run"
    out.mkdir(parents=True, exist_ok=True)
    make = partial(scanner, str(folder), given["concepts"], given["layers"], corpus, out)
    if "shard" in given:
        return shard_cell(make, corpus.blocks(given["shard"]))
    found = (on_ray_cell if given["workers"] else here_cell)(given, make, corpus.blocks(), scratch)
    if given.get("apart"):
        found["seconds"]["merge_apart"] = merged_apart(out, scratch)
    clock, since = time.perf_counter(), time.process_time()
    found["tokens"] = merge(out).totals["tokens"]["counted"]
    found["seconds"]["merge"] = time.process_time() - since
    found["seconds"]["merge_by_the_clock"] = time.perf_counter() - clock
    found["written_mib"] = sum(path.stat().st_size for path in out.glob("*") if path.is_file()) / 2**20
    return given | found


def here_cell(given: dict[str, Any], make: Any, blocks: Any, scratch: Path) -> dict[str, Any]:
    """In this process, going on where an earlier one was cut off; seconds of all of them."""
    path = scratch / "progress.json"
    state: dict[str, Any] = {"done": 0, "seconds": {}, "memory_mib": {}}
    state = json.loads(path.read_text()) if path.exists() else state
    seconds, memory = state["seconds"], state["memory_mib"]
    clock, since = time.perf_counter(), time.process_time()
    work = make()
    seconds.setdefault("begin", time.process_time() - since)
    seconds.setdefault("begin_by_the_clock", time.perf_counter() - clock)
    before = most_memory(anew=True)
    for block in blocks:
        if block < state["done"]:
            continue
        since = time.process_time()
        work(block)
        seconds["scan"] = seconds.get("scan", 0.0) + time.process_time() - since
        state["done"] = block + 1
        memory |= {"before": before, "more": max(memory.get("more", 0), most_memory() - before)}
        path.write_text(json.dumps(state))
    return {"seconds": seconds, "memory_mib": memory}


def together(given: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Shards by as many processes of this machine at once, seconds of the clock from their start on."""
    n = given["processes"]
    own = [given | {"processes": 0, "shard": (k, n)} for k in range(n)]
    command = [sys.executable, __file__, "--out", str(scratch), "--cell"]
    environment = os.environ | {"OMP_NUM_THREADS": str(given["threads"])}
    start = time.perf_counter()
    runs = [
        subprocess.Popen([*command, json.dumps(one)], env=environment, text=True, stdout=subprocess.PIPE)
        for one in own
    ]
    told = [json.loads(run.communicate()[0].splitlines()[-1]) for run in runs]
    return {"seconds": time.perf_counter() - start, "shards": told}


def shard_cell(make: Any, blocks: Any) -> dict[str, Any]:
    """One shard, in this process; seconds of the clock."""
    start = time.perf_counter()
    work = make()
    begin, start = time.perf_counter() - start, time.perf_counter()
    tokens = sum(work(block) for block in blocks)
    return {
        "begin": begin,
        "scan": time.perf_counter() - start,
        "tokens": tokens,
        "memory_mib": most_memory(),
    }


def on_ray_cell(given: dict[str, Any], make: Any, blocks: Any, scratch: Path) -> dict[str, Any]:
    """By actors of Ray, seconds of the clock; and the same pool with nothing to do."""
    from sa_plugin.passes import RayPool, on_ray

    seconds = {}
    for name, work, of in (("empty", nothing, iter(range(EMPTY))), ("scan", make, iter(blocks))):
        start = time.perf_counter()
        done = on_ray(RayPool(given["workers"]), work, of)
        next(done)
        # With the first block, which the others of the pool run at the same time.
        seconds[f"{name}_begin"] = time.perf_counter() - start
        start = time.perf_counter()
        for _ in done:
            pass
        seconds[name] = time.perf_counter() - start
    return {"seconds": seconds, "memory_mib": {}}


def merged_apart(out: Path, scratch: Path) -> float:
    """Seconds of the clock to merge from as many folders, as of machines that share no disk."""
    from sa_plugin.scanning import merge

    others = []
    blocks = sorted((out / "blocks").glob("[0-9]*"))
    for k, block in enumerate(blocks):
        others.append(scratch / f"shard{k}")
        (others[-1] / "blocks").mkdir(parents=True, exist_ok=True)
        shutil.copytree(block, others[-1] / "blocks" / block.name, dirs_exist_ok=True)
        for name in ("manifest.json", "corpus.json"):
            shutil.copy(out / name, others[-1] / name)
    first, *rest = others
    start = time.perf_counter()
    merge(first, *rest)
    return time.perf_counter() - start


def asked(question: str, documents: int) -> dict[str, Any]:
    """Memory of one question to a labelled corpus."""
    import numpy as np

    import sa_plugin as sa
    from sa_plugin.host import open_folder

    known, rng = np.array(WORDS.split()), np.random.default_rng(0)
    of = {"cat": "animal", "dog": "animal", "river": "place", "house": "place"}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "corpus.jsonl"
        with path.open("w") as file:
            for _ in range(documents):
                words = known[rng.integers(len(known), size=20)].tolist()
                starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
                spans = [[a, a + len(w), of[w]] for a, w in zip(starts, words, strict=False) if w in of]
                file.write(json.dumps({"text": " ".join(words), "spans": spans}) + "\n")
        data = sa.labelled_corpus(path, columns={"text": "text", "spans": "spans"}, block_size=250)
        host = open_folder(tiny_folder(), "transformer_lens", progress=False)
        detector = sa.calibrate(host, data, sa.fit(host, data, "prototype"))
        heads = {"heads": [(0, 0), (0, 1)]} if question == "ablate_heads" else {}
        before = most_memory(anew=True)
        getattr(sa, question)(host, data, detector.bank if question == "calibrate" else detector, **heads)
        return {"tokens": 20 * documents, "memory_mib": most_memory() - before}


def simulated(tokens: int, columns: int) -> dict[str, Any]:
    """What `tail_runs.py` says of a stream of scores."""
    script = str(Path(__file__).with_name("tail_runs.py"))
    command = [sys.executable, script, "--tokens", str(tokens), "--columns", str(columns)]
    run = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
    return {"report": json.loads(run.stdout)}


def run_cells(out: Path, names: list[str], most: int) -> None:
    """Every cell that is not there, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    for name in names:
        for k, given in enumerate(GRID[name]):
            path, whole = out / f"{name}-{k}.json", given if "scores" in given else DEFAULTS | given
            if path.exists() or whole.get("documents", 0) > 10**most:
                continue
            scratch = out / f"{name}-{k}"
            command = [sys.executable, __file__, "--out", str(scratch), "--cell", json.dumps(whole)]
            run = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            print(name, found, flush=True)
            path.write_text(json.dumps(found, indent=1))
            shutil.rmtree(scratch, ignore_errors=True)


# Tables -------------------------------------------------------------------------------------------


def cells(out: Path, name: str) -> list[dict[str, Any]]:
    """What was measured, in the order of the grid."""
    paths = (out / f"{name}-{k}.json" for k in range(len(GRID[name])))
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def sized(mib: float) -> str:
    return f"{mib / 1024:,.0f} GiB" if mib >= 2048 else f"{mib:.1f} MiB" if mib < 10 else f"{mib:.0f} MiB"


def grown(out: Path) -> str:
    """The tiny model's cells."""
    rows = []
    for name in ("documents", "concepts", "layers"):
        for one in cells(out, name):
            s, row = one["seconds"], [name, f"{one[name]:,}"]
            row += [f"{s['scan']:.1f} s", f"{1e3 * s['scan'] / one['documents']:.2f} ms"]
            row += [f"{one['memory_mib']['more']} MiB", f"{s['merge']:.1f} s", sized(one["written_mib"])]
            rows.append(row)
    return table(["what grows", "to", "scan", "a document", OVER, "merge", "written"], rows)


def shards(out: Path) -> str:
    rows = []
    for one in cells(out, "shards"):
        s, n = one["seconds"], one["documents"] // one["block_size"]
        row = [f"{n:,}", f"{s['scan']:.1f} s"]
        rows.append([*row, f"{s['merge_by_the_clock']:.1f} s", f"{s['merge_apart']:.1f} s"])
    return table(
        ["shards of one block", "scan, all together", "merge, one folder", "merge, a folder each"], rows
    )


def ray(out: Path) -> str:
    rows = []
    for one in cells(out, "ray"):
        s = one["seconds"]
        if not one["workers"]:
            begin = f"{s['begin_by_the_clock']:.1f} s to attach"
            rows.append(["this process", begin, f"{s['scan']:.1f} s of the processor", "", ""])
            continue
        empty = 1e3 * s["empty"] / EMPTY
        row = [f"{one['workers']} of Ray", f"{s['scan_begin']:.1f} s", f"{s['scan']:.1f} s"]
        row += [f"{s['empty_begin']:.1f} s"]
        rows.append([*row, f"{empty:.1f} ms, {1e3 * empty / one['block_size']:.0f} µs a document"])
    head = ["workers", "until the first block is done", "the other documents"]
    return table([*head, "Ray's start, without models", "Ray's own, a block"], rows)


def local(out: Path) -> str:
    rows = []
    for one in cells(out, "local"):
        parts = one["shards"]
        scan, tokens = max(part["scan"] for part in parts), sum(part["tokens"] for part in parts)
        ways = "1 process" if one["processes"] == 1 else f"{one['processes']} processes, a shard each"
        row = ["SmolLM2" if one["model"] == "smollm2" else "the small Llama"]
        row += [f"{ways}, {one['threads']} thread{'s' * (one['threads'] > 1)}", f"{one['seconds']:.0f} s"]
        rows.append([*row, f"{tokens / scan:,.0f}", f"{sum(part['memory_mib'] for part in parts):,} MiB"])
    head = ["model", "who scans", "from start to end", "tokens a second once attached"]
    return table([*head, "memory of all"], rows)


def billion(out: Path) -> str:
    rows = []
    for one in cells(out, "smollm2"):
        rate, times = one["tokens"] / one["seconds"]["scan"], 1e9 / one["tokens"]
        hours, merging = 1e9 / rate / 3600, one["seconds"]["merge"] * times / 3600
        row = [f"{one['concepts']:,}", f"{rate:,.0f}", f"{one['memory_mib']['more']} MiB", f"{hours:,.0f}"]
        row += [f"{merging:,.1f}", f"{DOLLARS_AN_HOUR * hours:,.0f}", sized(one["written_mib"] * times)]
        rows.append(row)
    head = ["concepts", "tokens a second", OVER, "hours of a core", "of merging", "dollars", "written"]
    return table(head, rows)


def tails(out: Path) -> str:
    rows = []
    for one in cells(out, "tail"):
        r = one["report"]
        s, levels = r["processor_seconds"], r["exact_levels"]
        exact = f"{', '.join(f'{q:g}' for q in levels)}: {sum(r['equal_to_the_sort'])} of {len(levels)}"
        off = ", ".join(f"{q:g}: {100 * error / r['tokens']:.2g} %" for q, *_, error in r["enclosed"])
        row = [f"{r['tokens']:,} x {r['columns']:,}", f"{s['tail']:.1f} s"]
        row += [f"{s['saving'] + s['merging'] + s['quantiles']:.1f} s"]
        row += [f"{r['worker_peak_mb']:.0f} MiB, {r['before_mb']:.0f} of them before the first score"]
        rows.append([*row, f"{r['peak_mb']:.0f} MiB", f"{r['disk_bytes'] / 2**20:.1f} MiB", exact, off])
    head = ["tokens x columns", "counted and kept", "saved, merged, read", "a worker's memory", "the merge's"]
    head += ["disk", "quantiles equal to the sort, to the bit", "others: off by at most so many ranks"]
    return table(head, rows)


def questions(out: Path) -> str:
    rows = []
    found = cells(out, "questions")
    for few, many in zip(found[::2], found[1::2], strict=False):
        more = (many["memory_mib"] - few["memory_mib"]) * 2**20 / (many["tokens"] - few["tokens"])
        row = [f"`{few['question']}`", f"{max(0, few['memory_mib'])} MiB", f"{many['memory_mib']} MiB"]
        rows.append([*row, f"{max(0.0, more) / 1000:.1f} kB"])
    if not rows:
        return ""
    head = ["question", *(f"{one['documents']:,} documents of 20 tokens" for one in found[:2])]
    return f"{OF_QUESTIONS}\n\n{table([*head, 'a token more'], rows)}"


OF_QUESTIONS = """
What lays out all of its samples at once, beside `calibrate`, which does not: memory over what is held before
the question, two concepts at all layers of the small model with its heads. Activations that are kept
grow with layers, heads and width, so a larger model takes more."""

PAGE = """
What follows is written by the commands

```bash
python docs/experiments/scale_runs.py --out scale
python docs/experiments/scale_runs.py --out scale --show docs/scale.md --picture docs/pictures/scale.png
```

A random Llama with {layers} blocks of width 64 over documents of {words} random words in blocks of
{block_size}; {concepts} concepts at all layers unless they grow, 100 where layers do. The model is small,
so what grows is the scan's own. One thread, seconds of the processor.

{grown}

![How a scan of a small model grows](pictures/scale.png)

Shards: {documents:,} documents cut into ever more. Each would be a process, in which attaching even this
model takes {begin:.1f} s of the processor. Merging is by the clock, from one folder and from a folder of
each shard.

{shards}

Ray: {on_ray:,} documents, seconds of the clock on a busy machine of {cores} cores, which shows overhead and
not speed. Ray's own is measured with {empty:,} blocks of nothing.

{ray}

{questions}

SmolLM2-135M in float32 over {smol:,} documents of {smol_words} words ({smol_tokens} tokens that count),
concepts at all 30 layers in turn; and from it a billion tokens:

{billion}

Memory has the forward pass's own in it, and a difference of 5 % between rates is the machine's. Assumed: the
rate of these documents holds for a billion tokens, as the small model's does up to {most:,}
documents; one thread of this CPU, by processor seconds; documents as long, with hits as many (one token in
2,000 a concept); nothing is waited for, read over a network or begun anew; and {cents:.0f} cents an hour of
a core, which is no quotation. What is written is a row a document and concept, so longer documents write
less.

A stream of 10^9 scores, without a model: a normal bulk, a heavier tail in a thousandth of the tokens, eight
shards shifted by their own amounts, run one after another, saved, and merged in a random order. A column's
cut is at 3.4, which .09 % of the scores reach. Beside it stand two oracles that share nothing with
`ExactTail`: the scores of the first column at or above the cut, put aside by a comparison and sorted; and,
of one column, `numpy.quantile` of the first five million tokens. One thread, seconds of the processor,
without those that made the scores (`tail_runs.py`):

{tails}
"""


def page(out: Path) -> str:
    """All that was measured, in words."""
    small, smol = cells(out, "documents"), cells(out, "smollm2")
    return PAGE.format(
        **{name: DEFAULTS[name] for name in ("layers", "words", "block_size", "concepts", "documents")},
        **{made.__name__: made(out) for made in (grown, shards, ray, questions, billion, tails)},
        begin=small[0]["seconds"]["begin"],
        on_ray=GRID["ray"][0]["documents"],
        cores=os.cpu_count(),
        empty=EMPTY,
        smol=smol[0]["documents"],
        smol_words=smol[0]["words"],
        smol_tokens=round(smol[0]["tokens"] / smol[0]["documents"]),
        most=small[-1]["documents"],
        cents=100 * DOLLARS_AN_HOUR,
    )


def draw(out: Path, path: Path) -> None:
    """Four panels: seconds and memory, over what grows."""
    from sa_plugin.show import plots

    figure, axes = plots.new_figure(8.4, 5.4, rows=2, columns=2)
    one, two, three, four = axes.ravel()

    def series(ax: Any, name: str, x: Any, y: Any, label: str, colour: str, dashes: str = "-") -> None:
        found = cells(out, name)
        ax.plot(
            [x(c) for c in found],
            [y(c) for c in found],
            dashes,
            marker="o",
            ms=3.5,
            color=colour,
            label=label,
        )

    scan, merge = (lambda c: c["seconds"]["scan"]), (lambda c: c["seconds"]["merge"])
    series(one, "documents", lambda c: c["documents"], scan, "scan", plots.TAIL_COLOUR)
    series(one, "documents", lambda c: c["documents"], merge, "merge", plots.IN_COLOUR, "--")
    plots.words(one, title="documents", x="documents", y="seconds of the processor")
    series(
        two, "documents", lambda c: c["documents"], lambda c: c["memory_mib"]["more"], "", plots.TAIL_COLOUR
    )
    plots.words(two, title=OVER, x="documents", y="MiB")
    series(three, "concepts", lambda c: c["concepts"], scan, "scan, by concepts", plots.TAIL_COLOUR)
    series(three, "layers", lambda c: c["layers"], scan, "scan of 100 concepts, by layers", "#0b7d5e", ":")
    plots.words(three, title="concepts and layers", x="concepts, layers", y="seconds of the processor")
    n = lambda c: c["documents"] // c["block_size"]  # noqa: E731
    series(four, "shards", n, scan, "scan", plots.TAIL_COLOUR)
    clock = lambda c: c["seconds"]["merge_by_the_clock"]  # noqa: E731
    series(four, "shards", n, clock, "merge, one folder", plots.IN_COLOUR, "--")
    apart = lambda c: c["seconds"]["merge_apart"]  # noqa: E731
    series(four, "shards", n, apart, "merge, a folder each", "#a34a83", "-.")
    plots.words(four, title=f"shards of {DEFAULTS['documents']:,} documents", x="shards", y="seconds")
    for ax in (one, two, three, four):
        ax.set_xscale("log")
    for ax in (one, four):
        ax.set_yscale("log")
    for ax in (two, three):
        ax.set_ylim(0, 1.2 * ax.get_ylim()[1])
    for ax in (one, three, four):
        plots.legend(ax, outside=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run every cell that is not there, or show what is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("scale"))
    parser.add_argument("--most", type=int, default=6, help="documents up to 10 to this")
    parser.add_argument("--only", nargs="+", default=list(GRID), choices=list(GRID))
    parser.add_argument("--show", type=Path, metavar="PAGE", help="write the tables between a page's markers")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(cell(arguments.cell, arguments.out)))
    elif arguments.show or arguments.picture:
        if arguments.show and cells(arguments.out, "documents"):
            show(page(arguments.out), arguments.show, BEGIN, END)
        if arguments.show and cells(arguments.out, "local"):
            show(local(arguments.out), arguments.show, LOCAL_BEGIN, LOCAL_END)
        if arguments.picture:
            draw(arguments.out, arguments.picture)
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        run_cells(arguments.out, arguments.only, arguments.most)


if __name__ == "__main__":
    main()
