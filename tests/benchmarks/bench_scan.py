"""A scan, files and all, against the bare forward pass and against the loop a user writes, in seconds of CPU.

The concepts' columns lie at all layers in turn. The loop caches the residual of every layer with the
library's own `run_with_cache`, batch by batch, scores it, compares with the thresholds, and keeps hits in
lists; it reads the same batches, drops the same tokens, and its hits must be the scan's. It tokenises
nothing, cuts nothing into windows, counts no tail and writes no file. The bare pass ends behind the last
block. One batch size for all.

    python tests/benchmarks/bench_scan.py --samples 60 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(ROOT), str(ROOT / "adapters"), str(ROOT / "tests"), str(Path(__file__).parent)]

import tiny
from bench_forward import bare_forward
from jaxtyping import config

from sa_plugin.concepts import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.detection import Detector
from sa_plugin.host import reducers
from sa_plugin.loaders import load, open_corpus
from sa_plugin.scanning import scan
from sa_transformer_lens import accept
from sa_transformer_lens.host import load_bridge


def run() -> list[dict[str, object]]:
    found = []
    with suppress(FileNotFoundError):
        found = measure("smollm2", samples=40, rounds=2)
    return found or measure("tiny", samples=40, rounds=3)


def measure(
    model: str, *, samples: int, rounds: int, sizes: tuple[int, ...] = (100, 1000)
) -> list[dict[str, Any]]:
    bridge = tiny.bridge("llama") if model == "tiny" else load_bridge(model)
    host = accept(bridge, progress=False)
    # A tiny model takes 64 tokens.
    texts = [one.text[: 40 if model == "tiny" else None] for one in load("supersense").samples[:samples]]
    return [row for n in (100, 1000) for row in compare(host, texts, n, rounds)]


def compare(host: Any, texts: list[str], concepts: int, rounds: int) -> list[dict[str, Any]]:
    detector = make_detector(host, texts, concepts)
    made = [Sample(str(k), text, str(k)) for k, text in enumerate(texts)]
    batches = host.batches(made)
    folder = Path(tempfile.mkdtemp())
    corpus = open_corpus(texts)

    def ours() -> Any:
        shutil.rmtree(folder, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return scan(host, detector, corpus, folder)

    def loop() -> set[tuple[int, int, int]]:
        return plain_loop(host, detector, batches)

    def bare() -> None:
        for batch in batches:
            bare_forward(host, batch)

    # Once before, so that memory of the model's own pass is held already.
    bare()
    before, peak = resident(), [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    ours()
    done.set()
    watcher.join()
    import pandas

    per_row = (folder / "samples.parquet").stat().st_size / (len(texts) * concepts)
    hits = pandas.read_parquet(folder / "hits.parquet")
    columns = {name: k for k, name in enumerate(detector.concepts)}
    own = set(zip(hits.number, hits.token, hits.concept.map(columns), strict=True))
    theirs = loop()
    # A score within rounding of its threshold may fall on either side.
    equal = len(own ^ theirs) <= 1e-4 * len(theirs)
    calls = {"scan": ours, "loop": loop, "bare": bare}
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(rounds):
        for name in sorted(calls, reverse=bool(turn % 2)):
            start = time.process_time()
            calls[name]()
            best[name] = min(best[name], time.process_time() - start)
    shutil.rmtree(folder, ignore_errors=True)
    tokens = sum(int(batch.valid.sum()) for batch in batches)
    note = f"{tokens:,} tokens, {len(theirs):,} hits, {len(own ^ theirs)} of them differ; seconds of CPU"
    note += f"; {(peak[0] - before) >> 20} MiB above what the model and its tables take, "
    note += f"{per_row:.1f} bytes a row of samples"
    aim = 1.1 if concepts <= 100 else 1.15
    row = {"ours_s": best["scan"], "equal": equal, "note": f"{host.info.model}; {note}"}
    return [
        row
        | {
            "name": f"scan, {concepts} concepts, all layers, against {name}",
            "opponent_s": best[against],
            "ratio": best["scan"] / best[against],
            "aim": f"<= {limit:g}",
        }
        for name, against, limit in (("the bare pass", "bare", aim), ("a loop", "loop", 1.0))
    ]


def resident() -> int:
    """Bytes of memory that this process holds, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_detector(host: Any, texts: list[str], concepts: int) -> Detector:
    """Random directions, concept c at layer c % layers, each firing at about a thousandth of the tokens."""
    from sa_plugin.scores import score_samples

    # A detector that nothing was calibrated for is made of parts that no face hands out.
    rooms = {
        name: import_module(f"sa_plugin.detection.{name}") for name in ("calibration", "guard", "search")
    }

    layers, width = host.info.n_layers, host.info.d_model
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(concepts, width, generator=generator)
    named = {(f"c{c:04d}", at): vectors[c] for c in range(concepts) for at in range(layers)}
    bank = ConceptBank.from_vectors(named, scoring="cosine")
    some = [Sample(str(k), text, str(k)) for k, text in enumerate(texts[:12])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = score_samples(host, some, bank).scores
    layer = np.arange(concepts) % layers
    own = np.asarray(table)[:, layer, np.arange(concepts)].astype(np.float64)
    # A little above: words that repeat have one score, and a threshold on it would be a matter of rounding.
    ladder = np.quantile(own, [0.999, 0.998], axis=0) + 1e-5
    thresholds = np.broadcast_to(ladder, (layers, 2, concepts)).copy()
    unit = np.tile(np.arange(concepts), (layers, 1))
    zero = np.zeros(concepts, dtype=np.int64)
    tail = rooms["search"].Calibrated(
        "SuperActivators", (0.1, 0.2), thresholds, np.zeros(thresholds.shape), unit, layer, zero, 1
    )
    seen = rooms["guard"].Seen("", frozenset(), frozenset(), frozenset(), frozenset())
    cuts = rooms["calibration"].TokenCuts(np.zeros(concepts), zero, zero, zero + 10)
    return Detector(bank.concepts, bank, tail, {}, {}, cuts, seen, host=host)


def plain_loop(host: Any, detector: Detector, batches: list[Any]) -> set[tuple[int, int, int]]:
    """What a user writes: cache, score, threshold; the places of hits as (text, token, concept)."""
    bank, tail = detector.bank, detector.tail
    layers, rule = host.info.n_layers, bank.sinks_on(host.info)
    names = [f"blocks.{at}.hook_out" for at in range(layers)]
    concepts = [np.flatnonzero(tail.layer == at) for at in range(layers)]
    units = [bank.token.vectors[at, tail.chosen_unit[own]] for at, own in enumerate(concepts)]
    units = [one / one.norm(dim=-1, keepdim=True) for one in units]
    bars = [torch.from_numpy(tail.chosen_threshold[own]) for own in concepts]
    found: set[tuple[int, int, int]] = set()
    for batch in batches:
        with torch.no_grad():
            mask = batch.inputs["attention_mask"]
            _, cache = host.bridge.run_with_cache(
                batch.inputs["input_ids"], attention_mask=mask, names_filter=lambda name: name in names
            )
        read = {(at, "resid_post"): cache[name] for at, name in enumerate(names)}
        keep = reducers.evidence(read, batch.valid, *rule)
        for at in range(layers):
            h = read[at, "resid_post"]
            scores = h @ units[at].T / h.norm(dim=-1, keepdim=True)
            fired = (scores.double() >= bars[at]) & keep[..., None]
            for row, token, column in fired.nonzero().tolist():
                found.add((int(batch.rows[row]), token, int(concepts[at][column])))
    return found


def main() -> int:
    config.update("jaxtyping_disable", True)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rows = measure(given.model, samples=given.samples, rounds=given.rounds)
    for row in rows:
        times = f"{row['ours_s']:8.2f} {row['opponent_s']:8.2f} {row['ratio']:6.2f}"
        print(f"{row['name']:<60} {times} {row['aim']}")
        print(f"    {row['note']}; {'equal' if row['equal'] else 'NOT EQUAL'}")
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
