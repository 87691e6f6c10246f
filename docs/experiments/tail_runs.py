"""A simulated stream of scores through `ExactTail`: exactness, state and seconds, without a model.

    python docs/experiments/tail_runs.py --tokens 1000000000 --columns 1
    python docs/experiments/tail_runs.py --tokens 1000000 --columns 1000

Scores are a normal bulk with a heavier tail in a thousandth of the tokens, and each shard is shifted by
its own amount, so that shards differ. Shards run one after another, are saved, and are merged in an order
drawn at random. Two oracles, which share nothing with `ExactTail`:

- whole stream, first column: scores at or above the cut are put aside by a comparison, as they are made,
  and sorted by NumPy; the ranks of a quantile are counted from the end;
- the first tokens: `numpy.quantile` of all of them, kept in memory, on a tail of their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from sa_plugin.statistics import ExactTail

LEVELS = [0.5, 0.95, 0.999, 0.9999, 0.99999]
CUT = 3.4
ROWS = 1 << 20
FIRST = 5_000_000


def made(rng: np.random.Generator, shift: float, rows: int, columns: int) -> np.ndarray:
    """Scores of some tokens."""
    scores = rng.standard_normal((rows, columns), dtype=np.float32)
    tail = rng.integers(rows, size=max(1, rows // 1000))
    scores[tail] += rng.exponential(2.0, (len(tail), 1)).astype(np.float32)
    scores += np.float32(shift)
    return scores


def peak() -> float:
    """Most megabytes that this process has held (Linux); `ru_maxrss` would begin at its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def exact_from(tail: np.ndarray, n: int, q: float) -> float:
    """The quantile of n values of which those above a cut are known, sorted: linear interpolation."""
    place = (n - 1) * q
    below = int(place)
    share = place - below
    low, high = (float(tail[k - (n - len(tail))]) for k in (below, min(below + 1, n - 1)))
    # The two branches of numpy.quantile.
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def main() -> None:
    parser = argparse.ArgumentParser(description="A simulated stream of scores.")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--columns", type=int, default=1)
    parser.add_argument("--shards", type=int, default=8)
    given = parser.parse_args()
    # Of the processor: what else the machine does is left out.
    seconds = dict.fromkeys(("making scores", "oracles", "tail", "saving", "merging", "quantiles"), 0.0)
    step = max(1, ROWS // given.columns)
    aside: list[np.ndarray] = []
    first: list[np.ndarray] = []
    before = peak()
    with tempfile.TemporaryDirectory(prefix="tail-runs-") as folder:
        for shard in range(given.shards):
            rng = np.random.default_rng([0, shard])
            left = given.tokens // given.shards + (shard < given.tokens % given.shards)
            tail = ExactTail(np.full(given.columns, CUT))
            while left:
                begun = time.process_time()
                scores = made(rng, 0.05 * shard, min(step, left), given.columns)
                left -= len(scores)
                ready = time.process_time()
                aside.append(scores[:, 0][scores[:, 0] >= np.float32(CUT)].copy())
                if shard == 0 and given.columns == 1 and sum(map(len, first)) < FIRST:
                    first.append(scores[:, 0].copy())
                noted = time.process_time()
                tail.update(scores)
                for name, since, until in (
                    ("making scores", begun, ready),
                    ("oracles", ready, noted),
                    ("tail", noted, time.process_time()),
                ):
                    seconds[name] += until - since
            begun = time.process_time()
            tail.save(Path(folder) / str(shard))
            seconds["saving"] += time.process_time() - begun
        worker = peak()
        begun = time.process_time()
        order = np.random.default_rng(1).permutation(given.shards)
        merged = ExactTail.open(Path(folder) / str(order[0]))
        for shard in order[1:]:
            merged.merge(ExactTail.open(Path(folder) / str(shard)))
        seconds["merging"] = time.process_time() - begun
        begun = time.process_time()
        found = merged.quantiles(LEVELS)
        seconds["quantiles"] = time.process_time() - begun
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    ordered = np.sort(np.concatenate(aside)).astype(np.float64)
    exact = found.exact[:, 0]
    agrees = [
        bool(exact_from(ordered, given.tokens, q) == found.low[k, 0] == found.high[k, 0])
        for k, q in enumerate(LEVELS)
        if exact[k]
    ]
    enclosed = [
        [q, float(found.low[k, 0]), float(found.high[k, 0]), int(found.rank_error[k, 0])]
        for k, q in enumerate(LEVELS)
        if not exact[k]
    ]
    report = {
        "tokens": given.tokens,
        "columns": given.columns,
        "shards": given.shards,
        "scores": given.tokens * given.columns,
        "kept": int(merged.kept.sum()),
        "disk_bytes": disk,
        "worker_peak_mb": round(worker, 1),
        "before_mb": round(before, 1),
        "peak_mb": round(peak(), 1),
        "processor_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "exact_levels": [q for k, q in enumerate(LEVELS) if exact[k]],
        "equal_to_the_sort": agrees,
        "enclosed": enclosed,
    }
    if first:
        whole = np.concatenate(first)
        own = ExactTail([CUT])
        own.update(whole[:, None])
        mine = own.quantiles(LEVELS)
        true = np.quantile(whole.astype(np.float64), LEVELS)
        at = mine.exact[:, 0]
        report["first_tokens"] = len(whole)
        report["first_equal"] = [bool(x) for x in mine.low[at, 0] == true[at]]
        report["first_enclosed"] = [
            bool(x) for x in (mine.low[~at, 0] <= true[~at]) & (true[~at] <= mine.high[~at, 0])
        ]
    print(json.dumps(report, indent=1))
    assert all(agrees)
    assert agrees


if __name__ == "__main__":
    main()
