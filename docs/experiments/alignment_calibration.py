"""How often the calls of head alignment are right, on models whose truth is known.

`python docs/experiments/alignment_calibration.py [--worlds 100] [--kinds prototype lda separator]`
prints a table; it needs the repository, since the planted models live in its tests.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import planted  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

HEADER = (
    "| scenario | vectors | worlds | planted found | also on data | false share of calls | "
    "worlds with a false call | any call, held out | write as found | read as found |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    found = [planted_words(row[name]) for name in ("power", "on_data")]
    low, high = binomtest(row["any_false"], row["worlds"]).proportion_ci()
    said = " | ".join(f"{share:.3f}" for share in row["any_call"])
    return (
        f"| {row['scenario']} | {row['kind']} | {row['worlds']} | {' | '.join(found)} | "
        f"{row['false_share']:.4f} | {row['any_false']} [{low:.2f}, {high:.2f}] | {said} |"
    )


def planted_words(share: float) -> str:
    """A share, or a dash where nothing was planted."""
    return "-" if share != share else f"{share:.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", default=["prototype", "lda"])
    parser.add_argument("--level", type=float, default=0.05)
    given = parser.parse_args()
    print(
        f"{planted.BLOCKS} blocks x {planted.HEADS} heads x {len(planted.CONCEPTS)} concepts, "
        f"family-wise {given.level:g} by max-T, labels permuted across samples\n"
    )
    print(HEADER, flush=True)
    for kind in given.kinds:
        options = {"draws": 100} if kind == "separator" else {}
        for scenario in planted.SCENARIOS:
            worlds = range(given.worlds)
            print(line(planted.realised(scenario, kind, worlds, given.level, **options)), flush=True)
    print("\nHeads of the size that a result states for a power, planted along the true directions:")
    for power in (0.5, 0.8):
        each = [planted.found_of_the_stated_size(seed, power) for seed in range(given.worlds)]
        # A world in which no cosine that is tried has that power states none.
        sizes, found = np.array([one for one in each if one[0] == one[0]]).T
        share, size = found.mean(), np.median(sizes)
        print(f"power {power}: {share:.3f} of {4 * len(found)} heads, median cosine {size:.2f}")


if __name__ == "__main__":
    main()
