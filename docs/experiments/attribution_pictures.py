"""The figures of docs/findings/attribution.md, from the files that attribution_runs.py wrote.

python docs/experiments/attribution_pictures.py runs docs/pictures

Two figures a run: F1 by number of SuperActivators, and insertion and deletion by the yardstick that all
arms share beside those by each arm's own target (without the margin, which is in other units).
"""

import sys
from pathlib import Path

from attribution_tables import F1, comparison, load

SHARED = ("global", "superactivator", "superactivator_tokens")
AREAS = tuple(f"{kind}/{y}" for y in ("mean_alignment", "own_target") for kind in ("insertion", "deletion"))


def main() -> None:
    """Draw every run of a folder."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    for run, files in load(source).items():
        strata = comparison(files).plot_strata(F1)
        targets = comparison(files, SHARED).plot(AREAS)
        for name, figure in (("strata", strata), ("targets", targets)):
            figure.savefig(out / f"attribution_{run}_{name}.png", dpi=100)


if __name__ == "__main__":
    main()
