"""Using a detector on samples: the SuperActivators themselves, and sample decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin._check import position_of
from sa_plugin.data.concept_data import Split
from sa_plugin.data.sample import Sample
from sa_plugin.detection.calibration import Calibration
from sa_plugin.host.protocol import Host
from sa_plugin.scores.score import sample_maxima
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import frame

Samples = str | Sample | Split | Sequence[str | Sample]


@dataclass(frozen=True)
class SuperActivator:
    """One token whose score reaches its concept's threshold.

    Attributes:
        sample: Id of the sample.
        concept: Whose tail it is in.
        row: Row in the token table of the samples given.
        position: Place in the model's input sequence.
        text: Characters of the token.
        edges: Start and end in the sample's text; of a patch top, left, bottom, right in pixels.
        layer: Block index of the score.
        score: Activation.
        threshold: Of the concept.
    """

    sample: str
    concept: str
    row: int
    position: int
    text: str
    edges: tuple[float, ...]
    layer: int
    score: float
    threshold: float

    def __repr__(self) -> str:
        return (
            f"SuperActivator({self.text!r} of {self.concept!r}, sample {self.sample!r}"
            f"{self._place}, layer {self.layer}, {self.score:.4g} >= "
            f"{self.threshold:.4g})"
        )

    @property
    def _place(self) -> str:
        # The text of a patch is its place already.
        return f" [{self.start}:{self.end}]" if len(self.edges) == 2 else ""

    @property
    def start(self) -> int:
        """Where a token starts in its text; of a patch, its upper edge."""
        return int(self.edges[0])

    @property
    def end(self) -> int:
        """Where a token ends in its text; of a patch, its lower edge."""
        return int(self.edges[len(self.edges) // 2])

    @property
    def margin(self) -> float:
        """Score minus threshold, in the unit of the concept's scores."""
        return self.score - self.threshold


@dataclass(frozen=True, eq=False)
class Detection:
    """Which samples have which concepts.

    Attributes:
        samples: Ids.
        concepts: Names.
        present: Whether the sample holds a SuperActivator of the concept.
        margin: Highest score minus threshold, in the unit of each concept's scores; -inf where
            the threshold is +inf.
    """

    samples: tuple[str, ...]
    concepts: tuple[str, ...]
    present: Bool[np.ndarray, "sample concept"]
    margin: Float[np.ndarray, "sample concept"]

    def __repr__(self) -> str:
        return (
            f"Detection({len(self.samples)} samples x {len(self.concepts)} concepts, "
            f"{int(self.present.sum())} present)"
        )

    def of(self, sample: str) -> tuple[str, ...]:
        """Concepts present in one sample.

        Raises:
            ValueError: Unknown sample; the text names the nearest.
        """
        n = position_of(sample, self.samples, "the samples")
        return tuple(c for c, here in zip(self.concepts, self.present[n], strict=True) if here)

    def table(self) -> Any:
        """One row for each sample and concept; a pandas DataFrame where pandas is installed."""
        return frame(
            [
                {"sample": name, "concept": concept, "present": bool(here), "margin": float(by)}
                for name, row, margins in zip(self.samples, self.present, self.margin, strict=True)
                for concept, here, by in zip(self.concepts, row, margins, strict=True)
            ]
        )


def as_split(samples: Samples, concepts: tuple[str, ...]) -> Split:
    """Texts, samples or a split as a split; loose ones have no data hash.

    Raises:
        TypeError: Something else was given.
        ValueError: There are no samples, or an id stands twice.
    """
    if isinstance(samples, Split):
        return samples
    loose = [samples] if isinstance(samples, str | Sample) else samples
    if not isinstance(loose, Sequence) or not all(isinstance(s, str | Sample) for s in loose):
        raise TypeError(
            f"samples are a {type(samples).__name__}: give a text, a Sample, a sequence of them, "
            "or a split such as data.test."
        )
    made = tuple(
        Sample(f"text {k}", s, f"text {k}") if isinstance(s, str) else s for k, s in enumerate(loose)
    )
    if not made:
        raise ValueError("there are no samples: give at least one text.")
    if len({s.id for s in made}) < len(made):
        raise ValueError("two samples have the same id: ids must be unique.")
    return Split("samples", made, concepts, "")


def find(
    calibration: Calibration, table: ScoreTable, concepts: Sequence[str] | None = None
) -> list[SuperActivator]:
    """List the SuperActivators of some samples; see `Detector.find`."""
    wanted = [position_of(c, calibration.concepts) for c in concepts or calibration.concepts]
    at = calibration.token_scores(table)
    tau = calibration.tail.chosen_threshold
    hits = [(int(row), k) for k in wanted for row in np.flatnonzero(at[:, k] >= tau[k])]
    # By sample, then concept in the order asked for, then token.
    order = {k: n for n, k in enumerate(wanted)}
    hits.sort(key=lambda hit: (table.tokens.sample_of[hit[0]], order[hit[1]], hit[0]))
    return [_record(calibration, table, row, k, at[row, k]) for row, k in hits]


def detect(calibration: Calibration, split: Split, highest: Float[np.ndarray, "sample concept"]) -> Detection:
    """Decide from the highest score of each sample; see `Detector.detect`."""
    tau = calibration.tail.chosen_threshold
    ids = tuple(s.id for s in split.samples)
    return Detection(ids, calibration.concepts, highest >= tau, highest - tau)


def highest_scores(calibration: Calibration, split: Split, host: Host) -> Float[np.ndarray, "sample concept"]:
    """Highest score of each sample; no token score leaves the host."""
    bank, tail = calibration.bank, calibration.tail
    layers, layer = np.unique(tail.layer, return_inverse=True)
    units, unit = np.unique(tail.chosen_unit, return_inverse=True)
    found = sample_maxima(host, split.samples, bank.only(layers.tolist(), units.tolist()))
    highest: np.ndarray = found.scores[:, 0, layer, unit].astype(np.float64)
    if not np.isfinite(highest).all():
        n, k = (int(i) for i in np.argwhere(~np.isfinite(highest))[0])
        raise ValueError(
            f"the highest score of {calibration.concepts[k]!r} in sample {split.samples[n].id!r} is "
            f"{highest[n, k]}: activations hold NaN or Inf; load the model in float32 or bfloat16."
        )
    return highest


def _record(calibration: Calibration, table: ScoreTable, row: int, k: int, score: float) -> SuperActivator:
    tokens = table.tokens
    return SuperActivator(
        sample=tokens.samples[tokens.sample_of[row]].id,
        concept=calibration.concepts[k],
        row=row,
        position=int(tokens.position[row]),
        text=tokens.text(row),
        edges=tuple(float(edge) for edge in tokens.offsets[row]),
        layer=calibration.bank.layers[calibration.tail.layer[k]],
        score=float(score),
        threshold=float(calibration.tail.chosen_threshold[k]),
    )
