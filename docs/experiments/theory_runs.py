"""Put the theorems to the test on a real model, and write what was found into docs/findings/theory.md.

python docs/experiments/theory_runs.py run smollm2 separator FILE   the embedded prose: 200, 80, 100
python docs/experiments/theory_runs.py run vit separator FILE       230 emoji scenes, 60 of them test
python docs/experiments/theory_runs.py run vit prototype FILE       other vectors than separators
python docs/experiments/theory_runs.py run minilm prototype FILE    400 passages, as in the fourth notebook
python docs/experiments/theory_runs.py page FILE ...                the page's tables from those files
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from between_markers import put
from trials import scenes, some_of

from sa_plugin.data import ConceptData, Sample
from sa_plugin.host import attach
from sa_plugin.loaders import load
from sa_plugin.stages import Graph, Plan, markdown
from sa_plugin.theory import TITLES, check_theory
from sa_transformer_lens.host import load_bridge

PAGE = Path(__file__).parents[1] / "findings" / "theory.md"
BEGIN = "<!-- tables: written by docs/experiments/theory_runs.py -->"
END = "<!-- end of tables -->"
PASSAGES = {"train": 200, "cal": 80, "test": 100}
WORDS = ("person", "time", "body")
MODELS = {"smollm2": "SmolLM2", "vit": "ViT", "minilm": "MiniLM"}
SHOWN = (
    "gaps_grown",
    "gap_deviation_ratio",
    "gap_deviation_per_norm",
    "heads_gaps_grown",
    "prefix_gaps_grown",
    "path_gap_slope",
    "predicted_factor",
    "attention_by_sign",
    "top_mass_plus",
    "spread",
    "skew",
    "skew_growth",
    "tail_gain",
    "mlp_share",
    "path_r2",
)
ALONG_PROTOTYPES = ("attention_by_sign", "predicted_factor", "path_r2", "heads_gaps_grown")


def passages() -> ConceptData:
    """Passages that have one of three concepts."""
    full = load("supersense")
    picked: list[tuple[Sample, str]] = []
    for split, n in PASSAGES.items():
        mine = [s for s in full.split(split).samples if s.positive & set(WORDS)]
        order = np.random.default_rng(0).permutation(len(mine))[:n]
        picked += [(mine[k], split) for k in sorted(order)]
    return some_of(full, picked, WORDS)


def frequent_scenes() -> ConceptData:
    """Emoji scenes with their three most frequent concepts."""
    full = scenes()
    counts = {c: sum(c in s.positive for s in full.test.samples) for c in full.concepts}
    frequent = sorted(counts, key=lambda c: -counts[c])[:3]
    return some_of(full, zip(full.samples, full.split_of, strict=True), frequent)


def first_passages() -> ConceptData:
    """The passages of the fourth notebook."""
    return load("supersense").subset(400)


DATA = {"smollm2": passages, "vit": frequent_scenes, "minilm": first_passages}


def run(name: str, kind: str, path: Path) -> None:
    """Check one model along one kind of vector, the fixed one that of each concept's calibrated layer."""
    host = attach(load_bridge(name))
    data = DATA[name]()
    detector = Graph(host, data, Plan((kind,))).detector(kind)
    start = time.process_time()
    report = check_theory(host, data, detector)
    print(f"{time.process_time() - start:.0f} s of one thread", file=sys.stderr)
    print(report)
    report.save(path)


# The page


class Record:
    """A saved report."""

    def __init__(self, path: Path) -> None:
        self.all: Any = json.loads(path.read_text())
        self.kind = self.all["settings"]["kind"]
        self.model = MODELS[self.all["settings"]["model"]]
        self.values: dict[tuple[str, ...], list[float]] = {}
        for row in self.all["rows"]:
            if row["layer"] is not None and row["value"] is not None:
                key = row["concept"], row["direction"], row["measure"], row["of"]
                self.values.setdefault(key, []).append(row["value"])

    @property
    def vectors(self) -> list[tuple[str, str]]:
        """Concept and direction, refitted first."""
        found = dict.fromkeys((v["concept"], v["direction"]) for v in self.all["verdicts"])
        return sorted(found, key=lambda pair: pair[1] != "refitted")

    def median(self, *key: str) -> str:
        """Over layers, as text."""
        values = self.values.get(key)
        return "–" if values is None else f"{np.median(values):.{4 if key[2] == 'predicted_factor' else 3}f}"

    def verdicts(self, concept: str, direction: str) -> Iterator[Mapping[str, Any]]:
        """In the order of the claims."""
        for claim in TITLES:
            for v in self.all["verdicts"]:
                if (v["claim"], v["concept"], v["direction"]) == (claim, concept, direction):
                    yield v


def sizes(records: Sequence[Record]) -> str:
    """Whether the mechanism is large enough, a vector a line."""
    rows = []
    for record in records:
        for a in sorted(record.all["amplifications"], key=lambda a: a["direction"] != "refitted"):
            random = "–" if a["random"] is None else f"{np.exp(a['random']):.3f}"
            cells = [_factors(a["measured"], 3), random, _factors(a["predicted"], 4), a["answer"]]
            rows.append([f"{record.model}, {record.kind}, {a['direction']}", a["concept"], *cells])
    header = ["model, vectors", "concept", "gaps grow a block by", "random directions", "predicted"]
    return markdown([*header, "the mechanism is"], rows)


def _factors(logarithm: Mapping[str, Any], digits: int) -> str:
    values = [logarithm[name] for name in ("estimate", "low", "high")]
    one, low, high = ("–" if x is None else f"{np.exp(x):.{digits}f}" for x in values)
    return f"{one} [{low}, {high}]"


def answers(records: Sequence[Record]) -> str:
    """Verdicts, and of what cannot be said the change that could have been seen."""
    rows = [
        [
            f"{record.model}, {record.kind}, {direction}",
            concept,
            *map(_answer, record.verdicts(concept, direction)),
        ]
        for record in records
        for concept, direction in record.vectors
    ]
    return markdown(["model, vectors", "concept", *TITLES], rows)


def _answer(verdict: Mapping[str, Any]) -> str:
    if not verdict["measure"]:
        return f"**{verdict['answer']}**"
    change = verdict["detectable"]
    return "open: nothing" if change is None else f"open: {change:.2g} of {verdict['measure']}"


def counts(records: Sequence[Record]) -> str:
    """How many vectors got which answer to each claim."""
    rows = []
    for record in records:
        found = {claim: Counter[str]() for claim in TITLES}
        for v in record.all["verdicts"]:
            found[v["claim"]][v["answer"]] += 1
        kept = ("holds", "does not hold", "cannot be said")
        cells = [" / ".join(str(of[answer]) for answer in kept) for of in found.values()]
        rows.append([f"{record.model}, {record.kind}", *cells])
    return markdown(["model, vectors (holds / does not hold / cannot be said)", *TITLES], rows)


def medians(records: Sequence[Record]) -> str:
    """Medians over layers, refitted vectors: of one concept, and what is other along prototypes of all."""
    rows = []
    for record in records:
        concepts = [c for c, direction in record.vectors if direction == "refitted"]
        some = ALONG_PROTOTYPES if record.kind == "prototype" else SHOWN
        for concept in concepts if record.kind == "prototype" else concepts[:1]:
            for name in some:
                of = ("measured", "predicted", "permuted", "random")
                cells = [record.median(concept, "refitted", name, one) for one in of]
                if cells[0] != "–":
                    rows.append([name, f"{record.model}, {record.kind}", concept, *cells])
    rows.sort(key=lambda row: SHOWN.index(row[0]))
    header = ["quantity", "model, vectors", "concept", "measured", "predicted", "permuted", "random"]
    return markdown(header, rows)


def page(paths: Sequence[Path]) -> str:
    """What stands between the markers."""
    records = [Record(path) for path in paths]
    three = [record for record in records if record.model != "MiniLM"]
    parts = [
        "**Is the mechanism large enough?** Growth of gaps through a block, geometric mean over blocks.",
        sizes(three),
        "**Verdicts.** What cannot be said is open, and stands with the change that could have been seen.",
        answers(three),
        "**Counts** of all vectors.",
        counts(records),
        "**Medians over layers,** refitted vectors, with the permuted-label and random controls.",
        medians(three),
    ]
    return "\n\n".join(parts)


def main(what: str, *rest: str) -> None:
    """Run one model, or write the page."""
    if what == "run":
        name, kind, path = rest
        run(name, kind, Path(path))
    else:
        put(PAGE, BEGIN, END, page([Path(one) for one in rest]))


if __name__ == "__main__":
    main(*sys.argv[1:])
