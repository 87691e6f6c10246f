"""How a scan grows: documents, concepts, layers, blocks, workers of Ray; docs/scale.md's curves.

python docs/experiments/scale_runs.py --out scale            every cell, one process each, about ten minutes
python docs/experiments/scale_runs.py --out scale --most 5   documents up to 10**5

Two models: a random one of the shape of a Llama with 4 blocks of width 64 and SmolLM2's tokenizer, whose
own cost is small beside the scan's, and SmolLM2 itself (`make weights`). Documents are made of words by
a seed. Every cell is a process of its own, since the largest memory of a process never falls. Torch runs
one thread; processes of Ray as many as are asked for, one thread each.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

WORDS = "the a cat dog river bread tall blue under house soup ran when they of years"
LAYERS = 4
GRID: dict[str, list[dict[str, Any]]] = {
    "documents": [{"documents": 10**k} for k in range(3, 7)],
    "concepts": [{"concepts": k} for k in (1, 10, 100, 1000)],
    "layers": [{"layers": k, "concepts": 100} for k in (1, 2, 4)],
    "blocks": [{"documents": 4 * k, "block_size": 4, "words": 4} for k in (10, 100, 1000)],
    "ray": [{"documents": 20_000, "workers": k} for k in (0, 1, 2)],
    "smollm2": [{"documents": 512, "words": 64, "model": "smollm2", "concepts": k} for k in (1, 100, 1000)],
}
DEFAULTS: dict[str, Any] = {"documents": 4000, "concepts": 10, "layers": LAYERS, "block_size": 256}
DEFAULTS |= {"words": 10, "workers": 0, "model": "tiny"}


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
        rng, known = np.random.default_rng(0), WORDS.split()
        with path.open("w") as file:
            for k in range(documents):
                text = " ".join(rng.choice(known, words))
                file.write(json.dumps({"id": str(k), "document": f"d{k // 10}", "text": text}) + "\n")
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
    texts = [" ".join(rng.choice(WORDS.split(), 40)) for _ in range(100)]
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
    return lambda block: scan_block(job, block, out)


def cell(given: dict[str, Any]) -> dict[str, Any]:
    """Seconds and memory of one scan."""
    import torch

    from sa_plugin.loaders import open_corpus
    from sa_plugin.passes import RayPool, on_ray
    from sa_plugin.scanning import merge

    torch.set_num_threads(1)
    if given["model"] == "tiny":
        folder = tiny_folder()
    else:
        from weights import folder as weights_folder

        folder = weights_folder(given["model"])
    corpus = open_corpus(corpus_file(given["documents"], given["words"]), block_size=given["block_size"])
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        make = partial(scanner, str(folder), given["concepts"], given["layers"], corpus, out)
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        if given["workers"]:
            blocks = on_ray(RayPool(given["workers"]), make, corpus.blocks())
            next(blocks)
            # With the first block, which the others of the pool run at the same time.
            seconds["begin"] = time.perf_counter() - start
            start = time.perf_counter()
            tokens = sum(1 for _ in blocks)
        else:
            work = make()
            seconds["begin"] = time.perf_counter() - start
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start = time.perf_counter()
            for block in corpus.blocks():
                work(block)
        seconds["scan"] = time.perf_counter() - start
        start = time.perf_counter()
        found = merge(out)
        seconds["merge"] = time.perf_counter() - start
        size = sum(path.stat().st_size for path in out.glob("*") if path.is_file())
        tokens = found.totals["tokens"]["counted"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = {} if given["workers"] else {"before": before // 1024, "more": (peak - before) // 1024}
    return {**given, "tokens": tokens, "seconds": seconds, "memory_mib": memory, "written_mib": size / 2**20}


def main() -> None:
    """Run every cell that is not there, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("scale"))
    parser.add_argument("--most", type=int, default=6, help="documents up to 10 to this")
    parser.add_argument("--only", action="append", default=[], choices=list(GRID))
    parser.add_argument("--cell", type=json.loads)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(cell(arguments.cell)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    for name in arguments.only or GRID:
        rows = []
        for given in (DEFAULTS | one for one in GRID[name]):
            if given["documents"] > 10**arguments.most:
                continue
            command = [sys.executable, __file__, "--cell", json.dumps(given)]
            run = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True)
            rows.append(json.loads(run.stdout.splitlines()[-1]))
            print(name, rows[-1], flush=True)
        (arguments.out / f"{name}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
