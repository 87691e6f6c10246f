"""What calibration leaves: of each concept a layer, a unit, a delta and a threshold.

    Y[n, c] = 1 iff max_t s[t, c] >= tau_c

A sample has a concept iff it holds at least one SuperActivator, a token whose score reaches the
threshold (arXiv 2512.05038, sections 3 and 4). A SuperActivator need not lie inside the concept: it
is a token that the in-concept tail of the calibration split is made of. Precision of the rule is
measured by `evaluate`, never assumed.

A `Calibration` is data alone: the functions of this room take it, and `Detector` is one with a host
to score samples with.

Beside the thresholds of detection stand three cuts for tokens, at the same layer and unit:

    midpoint   half-way between the means of in-concept and out-of-concept scores: the raw rule,
               what a reader of the bulk of the distribution would use
    located    the threshold of the grid, at or above delta*, with the best token F1 inside
               detected samples (the p_inv of the paper's direct alignment)
    raw        the threshold of the grid with the best token F1 without gating by detection
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin._check import position_of
from sa_plugin._face import face_methods
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import Split
from sa_plugin.detection.guard import Seen, check_finite_scores, check_scores, rows_of_samples
from sa_plugin.detection.methods import TAIL, column_scores
from sa_plugin.detection.promised import Guard
from sa_plugin.detection.search import Calibrated
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.conformal import Promise
from sa_plugin.statistics.confusion import confusion, f1, reaches


@dataclass(frozen=True, eq=False)
class TokenCuts:
    """Token thresholds at each concept's chosen layer, from the calibration split.

    Attributes:
        midpoint: Halfway between the mean in-concept and the mean out-of-concept token score;
            a sample with a token above it fires by the raw rule. +inf without in-concept tokens.
        located: Place of p_inv in the grid of deltas.
        raw: Place of the delta whose threshold has the best token F1 without gating.
        n_tokens: In-concept calibration tokens behind the thresholds: of latents, those above zero.
    """

    midpoint: Float[np.ndarray, " concept"]
    located: Int[np.ndarray, " concept"]
    raw: Int[np.ndarray, " concept"]
    n_tokens: Int[np.ndarray, " concept"]


@dataclass(frozen=True)
class Choice:
    """What calibration chose for one concept.

    Attributes:
        concept: Name.
        layer: Block index.
        unit: Name of the vector: the concept's own, or the matched unit's.
        delta: Share of in-concept calibration tokens at or above the threshold that the search chose.
        threshold: Score from which a token is a SuperActivator; +inf never fires. With a promise the one
            that keeps it, whatever the delta.
        cal_f1: Detection F1 on calibration of what the search chose, optimistic.
        candidates: Number of (layer, delta, unit) it was chosen from.
        n_cal_tokens: In-concept calibration tokens behind the threshold.
    """

    concept: str
    layer: int
    unit: str
    delta: float
    threshold: float
    cal_f1: float
    candidates: int
    n_cal_tokens: int


@face_methods
@dataclass(frozen=True, eq=False)
class Calibration:
    """Thresholds, deltas and layers of every concept, with every baseline calibrated beside them.

    Attributes:
        concepts: What it detects.
        bank: The vectors.
        tail: SuperActivators: the whole calibration table and the choices.
        baselines: The same for every baseline; one entry a draw for RandTok.
        missing: Baselines that could not be calibrated, with the reason.
        cuts: Token thresholds for localisation and the raw comparison.
        seen: What vectors and thresholds have seen.
        seed: Of RandTok's draws and of the permuted matching.
        unknown: Calibration tokens in neither class of a concept, their label unknown; concepts
            without such tokens are left out.
        guard: What a promise was made from; None without one.
    """

    concepts: tuple[str, ...]
    bank: ConceptBank
    tail: Calibrated
    baselines: Mapping[str, tuple[Calibrated, ...]]
    missing: Mapping[str, str]
    cuts: TokenCuts
    seen: Seen
    seed: int = 0
    unknown: Mapping[str, int] = field(default_factory=dict)
    guard: Guard | None = None

    @property
    def methods(self) -> dict[str, tuple[Calibrated, ...]]:
        """SuperActivators and every baseline, by name."""
        return {TAIL: (self.tail,), **self.baselines}

    @property
    def layer(self) -> dict[str, int]:
        """Block index of each concept."""
        return {c: self.bank.layers[at] for c, at in self._with(self.tail.layer)}

    @property
    def unit(self) -> dict[str, str]:
        """Name of each concept's vector."""
        return {c: self.bank.units[at] for c, at in self._with(self.tail.chosen_unit)}

    @property
    def delta(self) -> dict[str, float]:
        """Delta of each concept."""
        return {c: float(d) for c, d in self._with(self.tail.chosen_delta)}

    @property
    def threshold(self) -> dict[str, float]:
        """Threshold of each concept."""
        return {c: float(t) for c, t in self._with(self.tail.chosen_threshold)}

    @property
    def cal_f1(self) -> dict[str, float]:
        """Calibration F1 of each concept, optimistic."""
        return {c: float(f) for c, f in self._with(self.tail.chosen_f1)}

    @property
    def promise(self) -> Promise | None:
        """The rate of false alarms that the thresholds keep, if one is promised."""
        return None if self.guard is None else self.guard.promise

    def p_values(
        self,
        concept: str,
        scores: Float[np.ndarray, "*shape"] | Sequence[float] | float,
        of: Literal["document", "token"] = "document",
    ) -> Float[np.ndarray, "*shape"]:
        """Chance that documents like the guard, without the concept, score as high; at least 1 / (n + 1).

        A detector with a promise has them, for `find`, a monitor and a scan alike.

        Args:
            concept: Name.
            scores: An array of any shape, or one row of them, at the concept's own layer and unit.
            of: "document": a score is the highest of a document, so far or of all. It holds for whatever
                token is picked for its score. "token": a score is that of a random token of a new
                document, picked for nothing.

        Returns:
            Of the scores' shape. They are valid for texts of `guard.lengths` tokens (`guard.covers`), and
            that of a token is not that of the highest of several.

        Raises:
            ValueError: The detector has no guard, no guard document is without the concept, a score is NaN.
        """
        k = position_of(concept, self.concepts)
        if self.guard is None:
            raise ValueError(
                f"this detector has no p-values of {concept!r}: they come from documents that chose nothing. "
                "Calibrate with promise=Promise('document', 0.05) and a guard."
            )
        values = np.asarray(scores, dtype=np.float64)
        if np.isnan(values).any():
            raise ValueError(
                f"{int(np.isnan(values).sum())} of {values.size} scores of {concept!r} are NaN: a p-value is "
                "of a number; look for overflow in the model's dtype."
            )
        return self.guard.p_values(k, values, of)

    @property
    def data_hash(self) -> str:
        """Hash of the data calibrated on."""
        return self.seen.data_hash

    def choice(self, concept: str) -> Choice:
        """What was chosen for one concept.

        Raises:
            ValueError: Unknown concept; the text names the nearest.
        """
        k = position_of(concept, self.concepts)
        return Choice(
            concept,
            self.layer[concept],
            self.unit[concept],
            self.delta[concept],
            self.threshold[concept],
            self.cal_f1[concept],
            self.tail.candidates,
            int(self.cuts.n_tokens[k]),
        )

    def token_scores(self, table: ScoreTable) -> Float[np.ndarray, "token concept"]:
        """Each token's score at each concept's own layer and unit, as float64."""
        return column_scores(table, self.tail.layer, self.tail.chosen_unit).astype(np.float64)

    def superactivators(self, table: ScoreTable) -> Bool[np.ndarray, "token concept"]:
        """Which tokens are SuperActivators of which concept."""
        return reaches(self.token_scores(table), self.tail.chosen_threshold)

    def threshold_at(self, delta: Int[np.ndarray, " concept"]) -> Float[np.ndarray, " concept"]:
        """Each concept's threshold at another place of the grid, at its own layer."""
        return np.asarray(self.tail.thresholds[self.tail.layer, delta, np.arange(len(self.concepts))])

    def pick(self, scores: ScoreTable, split: Split) -> ScoreTable:
        """The rows of a split, once they are known to be scores of this bank.

        Raises:
            ValueError: The scores are of another bank, lack a sample or hold NaN.
        """
        check_scores(scores, self.bank, self.concepts)
        rows = rows_of_samples(scores, split.samples)
        everything = np.array_equal(rows, np.arange(scores.tokens.n_samples))
        table = scores if everything else scores.select(rows)
        check_finite_scores(table)
        return table

    def _with(self, array: np.ndarray) -> list[tuple[str, Any]]:
        return list(zip(self.concepts, array.tolist(), strict=True))


def token_cuts(
    tail: Calibrated,
    table: ScoreTable,
    labels: Bool[np.ndarray, "token concept"],
    known: Bool[np.ndarray, "token concept"] | None = None,
) -> TokenCuts:
    """Token thresholds from calibration scores.

    Args:
        tail: The calibrated SuperActivators.
        table: Scores of the calibration split.
        labels: Their token labels, columns as the detector's concepts.
        known: Which of these are known; None where all are.
    """
    counts = np.ones_like(labels) if known is None else known
    scores = column_scores(table, tail.layer, tail.chosen_unit).astype(np.float64)
    detected = reaches(sample_max(scores, table.tokens.bounds), tail.chosen_threshold)
    candidate = detected[table.tokens.sample_of]
    concepts = len(tail.layer)
    gated, free = np.zeros((2, len(tail.deltas), concepts))
    for d in range(len(tail.deltas)):
        above = reaches(scores, tail.thresholds[tail.layer, d, np.arange(concepts)])
        # A token whose label is unknown is no hit and no false alarm, marked or not.
        above &= counts
        free[d] = f1(confusion(above.T, labels.T))
        # A threshold stricter than detection's would leave detected samples without a token.
        gated[d] = np.where(d >= tail.delta, f1(confusion((above & candidate).T, labels.T)), -1.0)
    n_in = labels.sum(0)
    # Zero is no activation of a latent, and no threshold rests on it.
    active = labels & (scores > 0) if table.bank.token.scoring == "latent" else labels
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_in = np.where(labels, scores, 0.0).sum(0) / n_in
        mean_out = np.where(labels | ~counts, 0.0, scores).sum(0) / (counts.sum(0) - n_in)
    midpoint = (mean_in + mean_out) / 2
    midpoint = np.where(np.isnan(midpoint), np.inf, midpoint)
    # argmax takes the first of equals: the smaller delta.
    return TokenCuts(midpoint, gated.argmax(0), free.argmax(0), active.sum(0))


def sample_max(
    scores: Float[np.ndarray, "token concept"], bounds: np.ndarray
) -> Float[np.ndarray, "sample concept"]:
    """Highest score of each sample."""
    return np.stack([scores[a:b].max(0) for a, b in pairwise(bounds)])
