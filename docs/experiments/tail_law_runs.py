"""Cells of the tail law's benchmark: `python docs/experiments/tail_law_runs.py tail_law OUT [CELL ...]`.

A name may end in `*`; "worlds" runs the worlds alone, all that a prediction reads. What is finished in OUT is
left alone, so a long design can be run in pieces.
"""

from __future__ import annotations

import sys
import time
from fnmatch import fnmatch

from sa_plugin.stages import read_design, run_design


def main(name: str, out: str, *wanted: str) -> None:
    """Run the cells, and say what each took."""
    design, start = read_design(name), time.process_time()
    chosen = [one.name for one in design.cells if any(fnmatch(one.name, each) for each in wanted)]
    cells = None if not wanted else [] if wanted == ("worlds",) else chosen
    run_design(
        design,
        out,
        cells=cells,
        say=lambda line: print(f"{line} ({time.process_time() - start:.0f} s so far)", flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
