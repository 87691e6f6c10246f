"""Token-level agreement of masks and scores with the labels, with intervals over documents.

Rows, each a mask of tokens and the tokens it leaves standing as candidates:

- raw: scores at or above the raw threshold; all tokens stand.
- SuperActivators: scores at or above the detection threshold; only those tokens stand.
- localised: the two-stage rule; tokens of detected samples stand.
- all-positive: every token; none stands out.

F1 is that of the mask. Average precision and AUROC rank standing tokens by their score above all
others, which tie. Every token of the split counts, for each concept; means over concepts weigh by
in-concept tokens. A concept without in-concept tokens is not defined and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin.detection.evaluate import averaged, counted, f1_of, interval_of, positives_of
from sa_plugin.detection.guard import document_names
from sa_plugin.show.result import aligned, as_html, frame, number, plain, signed
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.drawn import Interval
from sa_plugin.statistics.ranking import auroc, average_precision

if TYPE_CHECKING:
    from sa_plugin.detection.localise import Localisation


RAW = "raw"


@dataclass(frozen=True, eq=False)
class LocalisationRow:
    """One way to mark tokens.

    Attributes:
        method: Name.
        f1: Weighted over concepts.
        average_precision, auroc: Weighted over concepts.
        difference: Weighted F1 minus that of raw, paired; None for raw itself.
        concept_f1: By concept.
        concept_average_precision, concept_auroc: By concept.
    """

    method: str
    f1: Interval
    average_precision: float
    auroc: float
    difference: Interval | None
    concept_f1: tuple[Interval, ...]
    concept_average_precision: Float[np.ndarray, " concept"]
    concept_auroc: Float[np.ndarray, " concept"]


@dataclass(frozen=True, eq=False)
class LocalisationMetrics:
    """Token-level metrics of every way to mark tokens.

    Attributes:
        concepts: Names.
        rows: raw, SuperActivators, localised, all-positive.
        n_tokens: In-concept tokens of each concept; concepts with none are left out of means.
        split: Name of the split.
        seed: Of the resamples.
    """

    concepts: tuple[str, ...]
    rows: tuple[LocalisationRow, ...]
    n_tokens: Int[np.ndarray, " concept"]
    split: str
    seed: int

    def __repr__(self) -> str:
        f1 = ", ".join(f"{row.method} {number(row.f1.estimate)}" for row in self.rows)
        return f"LocalisationMetrics({self.split!r}, token F1: {f1})"

    def __str__(self) -> str:
        level = f"{100 * self.rows[0].f1.level:g} % interval"
        header = ["tokens", "F1", level, "AP", "AUROC", "F1 - raw", "interval"]
        skipped = [c for c, n in zip(self.concepts, self.n_tokens, strict=True) if not n]
        note = f" Left out, no in-concept token: {', '.join(skipped)}." if skipped else ""
        about = self.rows[0].f1
        return "\n".join(
            [
                aligned(header, [_cells(row) for row in self.rows]),
                f"Weighted by in-concept tokens; {about.draws} draws of {about.n_units} documents, "
                f"seed {self.seed}, conditional on train and calibration.{note}",
            ]
        )

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def table(self) -> Any:
        """One row a method: a pandas DataFrame where pandas is installed."""
        return frame(
            [
                {
                    "method": row.method,
                    "f1": row.f1.estimate,
                    "f1_low": row.f1.low,
                    "f1_high": row.f1.high,
                    "average_precision": row.average_precision,
                    "auroc": row.auroc,
                }
                for row in self.rows
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Every number, JSON-ready; what is not defined is None."""
        found: Mapping[str, Any] = {
            "split": self.split,
            "seed": self.seed,
            "concepts": self.concepts,
            "n_tokens": self.n_tokens,
            "rows": [asdict(row) for row in self.rows],
        }
        return dict(plain(found))


def localisation_metrics(found: Localisation, *, draws: int, seed: int, level: float) -> LocalisationMetrics:
    """See `Localisation.metrics`."""
    columns = [found.tokens.concepts.index(c) for c in found.concepts]
    labels = found.tokens.labels[:, columns]
    resamples = resample_documents(document_names(found.tokens), draws=draws, seed=seed)
    of_tokens = resamples.of(found.tokens.sample_of)
    positives = positives_of(labels, of_tokens)
    masks = _masks(found)
    f1 = {name: f1_of(counted(mask.T, labels.T, of_tokens)) for name, (mask, _) in masks.items()}
    weighted = {name: averaged(value, positives, "weighted") for name, value in f1.items()}
    rows = []
    for name, (_, standing) in masks.items():
        value = np.where(standing, found.scores, found.scores.min(0) - 1.0)
        precise, area = average_precision(value, labels), auroc(value, labels)
        rows.append(
            LocalisationRow(
                name,
                interval_of(weighted[name], resamples, level),
                _mean(precise, positives),
                _mean(area, positives),
                None if name == RAW else interval_of(weighted[name] - weighted[RAW], resamples, level),
                tuple(interval_of(row, resamples, level) for row in f1[name]),
                precise,
                area,
            )
        )
    return LocalisationMetrics(found.concepts, tuple(rows), labels.sum(0), found.split.name, seed)


def _mean(values: Float[np.ndarray, " concept"], positives: Float[np.ndarray, "concept column"]) -> float:
    return float(averaged(values[:, None], positives[:, :1], "weighted")[0])


def _masks(
    found: Localisation,
) -> dict[str, tuple[Bool[np.ndarray, "token concept"], Bool[np.ndarray, "token concept"]]]:
    every = np.ones_like(found.mask)
    return {
        RAW: (found.raw, every),
        "SuperActivators": (found.superactivators, found.superactivators),
        "localised": (found.mask, found.detected[found.tokens.sample_of]),
        "all-positive": (every, ~every),
    }


def _cells(row: LocalisationRow) -> list[str]:
    by = row.difference
    return [
        row.method,
        number(row.f1.estimate),
        f"[{number(row.f1.low)}, {number(row.f1.high)}]",
        number(row.average_precision),
        number(row.auroc),
        signed(by.estimate) if by else "",
        f"[{signed(by.low)}, {signed(by.high)}]" if by else "",
    ]
