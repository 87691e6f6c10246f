"""How often the calls of head alignment are right, on models whose truth is known.

`python docs/experiments/alignment_calibration.py [--worlds 100] [--kinds prototype lda separator] [--q 0.05]`
prints a table; it needs the repository, since the planted models live in its tests.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import planted  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

HEADER = (
    "| scenario | vectors | worlds | planted found | also on data | false share of calls | worlds "
    "with a call | null p <= .05: OV, QK, both |\n|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    found = planted_words(row["power"]), planted_words(row["power_aligned"])
    low, high = binomtest(row["any_called"], row["worlds"]).proportion_ci()
    null = ", ".join(f"{share:.3f}" for share in row["null_p"])
    return (
        f"| {row['scenario']} | {row['kind']} | {row['worlds']} | {found[0]} | {found[1]} | "
        f"{row['false_share']:.4f} ± {row['false_share_se']:.4f} | {row['any_called']} "
        f"[{low:.2f}, {high:.2f}] | {null} |"
    )


def planted_words(share: float) -> str:
    """A share, or a dash where nothing was planted."""
    return "-" if share != share else f"{share:.3f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", default=["prototype", "lda"])
    parser.add_argument("--q", type=float, default=0.05)
    given = parser.parse_args()
    print(
        f"{planted.BLOCKS} blocks x {planted.HEADS} heads x {len(planted.CONCEPTS)} concepts, "
        f"q = {given.q:g}, Benjamini-Hochberg, labels permuted across samples\n"
    )
    print(HEADER, flush=True)
    for kind in given.kinds:
        options = {"refits": 60} if kind == "separator" else {}
        for scenario in planted.SCENARIOS:
            worlds = range(given.worlds)
            print(line(planted.realised(scenario, kind, worlds, given.q, **options)), flush=True)


if __name__ == "__main__":
    main()
