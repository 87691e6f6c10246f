"""The figures of docs/attribution.md, from the files that attribution_runs.py wrote.

python docs/experiments/attribution_pictures.py runs docs/pictures

Two figures a run: F1 by number of SuperActivators, and insertion minus deletion by each yardstick, the
arms' own targets last.
"""

import sys
from pathlib import Path

from attribution_tables import F1, GAPS, comparison, load


def main() -> None:
    """Draw every run of a folder."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    for run, files in load(source).items():
        found = comparison(files)
        for name, figure in (("strata", found.plot_strata(F1)), ("yardsticks", found.plot(GAPS))):
            figure.savefig(out / f"attribution_{run}_{name}.png", dpi=100)


if __name__ == "__main__":
    main()
