"""Anonymous memory of score collection, at n samples and at eight times as many.

Scores lie in an unlinked file above the budget, so what grows is the file, not the process. Pages
of a mapped file are the system's to drop and are not counted (RssAnon, not RSS).
"""

import threading
import time
from pathlib import Path

import numpy as np
import torch
from fake_host import FakeHost, in_batches

from sa_plugin.concepts import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.scores import score_samples

WORDS = ("cat", "dog", "house", "river", "blue", "over", "under", "ran", "tall", "soup")


def anonymous() -> int:
    """Bytes of anonymous resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def peak_growth(n: int) -> tuple[int, float, int]:
    """Peak growth of anonymous memory while n samples are scored, seconds, bytes of scores."""
    rng = np.random.default_rng(0)
    samples = [Sample(str(k), " ".join(rng.choice(WORDS, 20)), str(k)) for k in range(n)]
    vectors = {(f"c{c}", at): torch.randn(12) for c in range(16) for at in range(24)}
    bank, host = ConceptBank.from_vectors(vectors), in_batches(FakeHost(n_layers=24), 512)
    start, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    table = score_samples(host, samples, bank, memory_budget=1 << 20)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    assert isinstance(table.scores, np.memmap)
    return max(0, peak[0] - start), seconds, table.scores.nbytes


def run() -> dict[str, object]:
    """Ratio of peak growth, eight times the samples over one time."""
    peak_growth(50)
    small, small_s, _ = peak_growth(250)
    large, large_s, size = peak_growth(2000)
    return {
        "name": "memory of score collection, 8x the samples",
        "ours_s": large_s,
        "opponent_s": small_s,
        "ratio": large / max(small, 1),
        # What is kept is not seconds but memory over what lies on the disk.
        "cost": large / size,
        "aim": "flat (~1)",
        "equal": True,
        "note": (
            f"peak anonymous memory grows by {small / 2**20:.1f} MiB at 250 samples, by "
            f"{large / 2**20:.1f} MiB at 2,000, whose scores are {size / 2**20:.0f} MiB on disk"
        ),
    }
