"""Run every benchmark, print one table, and fail when results are not equal.

`python tests/benchmarks/run.py [NAME ...] [--json FILE]`. Ratios are of one process; a missed aim
is printed, not hidden, and fails nothing: machines differ.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    names = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)[0]!r}; there are: {', '.join(names)}")
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    rows = []
    print(f"{'benchmark':<44} {'ours':>9} {'opponent':>9} {'ratio':>7}  {'aim':<10} equal")
    for name in arguments.names or names:
        found = importlib.import_module(f"bench_{name}").run()
        for row in found if isinstance(found, list) else [found]:
            rows.append(row)
            print(
                f"{row['name']:<44} {row['ours_s']:>8.3f}s {row['opponent_s']:>8.3f}s "
                f"{row['ratio']:>7.2f}  {row['aim']!s:<10} {'yes' if row['equal'] else 'NO'}"
            )
            print(f"    {row['note']}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
