"""Run every benchmark, print one table, and fail when results are not equal or a ratio has got worse.

`python tests/benchmarks/run.py [NAME ...] [--json FILE] [--keep]`. Ratios are of one process; a missed
aim is printed, not hidden, and fails nothing: machines differ. What ours took over what the opponent took
is kept in `ratios.json`, by name: a row that is there fails where it is a fifth worse, one that is not is
added, and `--keep` writes all rows of this run in place of what is there. Beside other work a ratio is off
by that much now and then: a benchmark that looks worse is run again, and what counts is the best of three.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
KEPT = HERE / "ratios.json"
WORSE, TRIES = 1.2, 3


def judged(rows: list[dict[str, object]], kept: dict[str, float]) -> list[str]:
    """Rows whose cost over the opponent's is a fifth above the kept one, in words."""
    found = []
    for row in rows:
        name, now = str(row["name"]), cost(row)
        if name in kept and now > WORSE * kept[name]:
            found.append(f"{name}: {now:.3g} of the opponent, kept is {kept[name]:.3g}")
    return found


def better(rows: list[dict[str, object]], again: list[dict[str, object]]) -> list[dict[str, object]]:
    """Of two runs of a benchmark each row at its lower cost; equal only where it was both times."""
    pairs = zip(rows, again, strict=True)
    return [min(pair, key=cost) | {"equal": all(row["equal"] for row in pair)} for pair in pairs]


def cost(row: dict[str, object]) -> float:
    """What ours took over what the opponent took, whichever way round the row shows it; or what it says."""
    if "cost" in row:
        return float(f"{float(str(row['cost'])):.4g}")
    return float(f"{float(str(row['ours_s'])) / max(float(str(row['opponent_s'])), 1e-12):.4g}")


def measured(name: str) -> list[dict[str, object]]:
    """Run a benchmark, and print its rows."""
    found = importlib.import_module(f"bench_{name}").run()
    rows: list[dict[str, object]] = found if isinstance(found, list) else [found]
    for row in rows:
        print(
            f"{row['name']:<44} {row['ours_s']:>8.3f}s {row['opponent_s']:>8.3f}s "
            f"{row['ratio']:>7.2f}  {row['aim']!s:<10} {'yes' if row['equal'] else 'NO'}"
        )
        print(f"    {row['note']}", flush=True)
    return rows


def main() -> int:
    names = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", action="store_true", help="write this run's ratios, worse ones too")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)[0]!r}; there are: {', '.join(names)}")
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    rows: list[dict[str, object]] = []
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    print(f"{'benchmark':<44} {'ours':>9} {'opponent':>9} {'ratio':>7}  {'aim':<10} equal")
    for name in arguments.names or names:
        found = measured(name)
        for _ in range(1, TRIES):
            if arguments.keep or not judged(found, kept):
                break
            print("    a fifth worse than what is kept: once more")
            found = better(found, measured(name))
        rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    worse = [] if arguments.keep else judged(rows, kept)
    print("".join(f"WORSE by a fifth: {line}\n" for line in worse), end="")
    now = {str(row["name"]): cost(row) for row in rows}
    KEPT.write_text(
        json.dumps(dict(sorted((kept | now if arguments.keep else now | kept).items())), indent=1) + "\n"
    )
    return 0 if all(row["equal"] for row in rows) and not worse else 1


if __name__ == "__main__":
    sys.exit(main())
