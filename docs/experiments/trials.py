"""What the scripts of findings share: which samples they take, and what they write down of a result."""

import json
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from sa_plugin._files import write_text
from sa_plugin.data import ConceptData, Sample
from sa_plugin.detection import Evaluation
from sa_plugin.loaders import emoji_scenes
from sa_plugin.statistics import Drawn


def some_of(
    full: ConceptData, rows: Iterable[tuple[Sample, str]], concepts: Collection[str] = (), name: str = ""
) -> ConceptData:
    """Some samples of a data set, each with its split, labelled with all or a few of its concepts."""
    kept, of = zip(*rows, strict=True)
    named = tuple(concepts) or full.concepts
    return ConceptData(named, tuple(sample.only(named) for sample in kept), of, name or full.name)


def scenes() -> ConceptData:
    """The emoji scenes of docs/findings/theory.md and docs/findings/alignment.md: 230, of them 60 test."""
    return emoji_scenes(230, seed=0, fractions=(0.52, 0.22, 0.26))


def three(drawn: Drawn) -> list[float]:
    """Estimate and interval, JSON-ready."""
    return [float(drawn.estimate), float(drawn.low), float(drawn.high)]


def signed(values: list[float], digits: int = 3) -> str:
    """A difference with its interval."""
    estimate, low, high = (f"{value:+.{digits}f}" for value in values)
    return f"{estimate} [{low}, {high}]"


def unsigned(values: list[float], digits: int = 3) -> str:
    """An estimate with its interval; what has none, such as firing always, is a number."""
    estimate, low, high = (f"{value:.{digits}f}" for value in values)
    return estimate if "nan" in (low, high) else f"{estimate} [{low}, {high}]"


def summed_up(evaluation: Evaluation) -> dict[str, Any]:
    """Weighted metrics of every method, and its difference to SuperActivators."""
    found = {}
    for one in map(evaluation.of, evaluation.methods):
        by = one.difference.get("f1")
        found[one.method] = {
            "f1": three(one.weighted["f1"]),
            **{metric: one.weighted[metric].estimate for metric in ("precision", "recall", "auroc")},
            "difference": three(by) if by else None,
            "candidates": one.chosen.candidates,
        }
    return found


def setting(data: ConceptData, layer: int, began: float, of: ConceptData | None = None) -> dict[str, Any]:
    """What stands above a table of detection; `of` is the data set that `data` was taken from."""
    return {
        "layer": layer,
        "cal": len(data.cal),
        "test": len(data.test),
        "documents": len({s.document for s in data.test.samples}),
        "data": (of or data).hash[:12],
        "seconds": round(time.time() - began),
    }


def write(record: dict[str, Any], path: Path) -> None:
    """A record as JSON, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")
