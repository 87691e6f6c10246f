"""Localisation: which tokens carry a concept, in the paper's two stages.

    detected[n, c] = max_t s[t, c] >= tau_c(delta*)
    token t carries c  iff  its sample is detected and s[t, c] >= tau_c(p_inv),   p_inv >= delta*

with p_inv chosen from the grid by token F1 on the calibration split, ties to the smaller
(arXiv 2512.05038, direct alignment with the global vector). Metrics count all tokens of the split
together, for each concept; concepts are averaged with the number of in-concept tokens as weights.

Beside it, at the same layer and unit: `raw`, the threshold from the same grid with the best
calibration token F1, without gating by detection; the SuperActivators alone; all-positive.

F1 against labels of a dictionary says how well tokens agree with the dictionary, not where the
model's evidence lies: a SuperActivator beside a labelled word counts as an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin._check import position_of
from sa_plugin.data.concept_data import Split
from sa_plugin.data.sample import Sample
from sa_plugin.detection.find import as_split, sample_max
from sa_plugin.detection.guard import Seen, check_unseen
from sa_plugin.detection.localised import LocalisationMetrics, localisation_metrics
from sa_plugin.detection.methods import column_scores
from sa_plugin.detection.search import Calibrated
from sa_plugin.passes.layout import TokenTable
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.confusion import confusion, f1

if TYPE_CHECKING:
    from sa_plugin.detection.detector import Detector, Samples


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


@dataclass(frozen=True, eq=False)
class Localisation:
    """Which tokens of some samples carry which concept.

    Attributes:
        tokens: What the rows are.
        concepts: What the columns are.
        scores: Score at each concept's own layer, float64.
        mask: Tokens that carry the concept by the two-stage rule.
        superactivators: Tokens at or above the detection threshold.
        raw: Tokens at or above the raw threshold.
        split: Where the samples are from.
        seen: What vectors and thresholds have seen.
        labelled: Whether labels are known, which plain texts' are not.
    """

    tokens: TokenTable
    concepts: tuple[str, ...]
    scores: Float[np.ndarray, "token concept"]
    mask: Bool[np.ndarray, "token concept"]
    superactivators: Bool[np.ndarray, "token concept"]
    raw: Bool[np.ndarray, "token concept"]
    split: Split
    seen: Seen
    labelled: bool

    def __repr__(self) -> str:
        return (
            f"Localisation({self.tokens.n_samples} samples, {len(self.concepts)} concepts, "
            f"{int(self.mask.sum())} of {self.mask.size} token marks set)"
        )

    @property
    def detected(self) -> Bool[np.ndarray, "sample concept"]:
        """Which samples hold a SuperActivator of which concept."""
        found = np.zeros((self.tokens.n_samples, len(self.concepts)), dtype=bool)
        np.logical_or.at(found, self.tokens.sample_of, self.superactivators)
        return found

    def of(self, concept: str) -> list[tuple[str, int, int]]:
        """`(sample, start, end)` of every token that carries a concept.

        Raises:
            ValueError: Unknown concept; the text names the nearest.
        """
        rows = np.flatnonzero(self.mask[:, position_of(concept, self.concepts)])
        return [
            (self.tokens.samples[self.tokens.sample_of[row]].id, *map(int, self.tokens.offsets[row]))
            for row in rows
        ]

    def metrics(self, *, draws: int = 1000, seed: int = 0, level: float = 0.95) -> LocalisationMetrics:
        """Agreement with the token labels, raw scores beside the detector.

        Args:
            draws: Bootstrap resamples of source documents.
            seed: Of the resamples.
            level: Of the intervals.

        Raises:
            ValueError: The samples are plain texts without labels, or vectors were fitted on one.
        """
        if not self.labelled:
            raise ValueError(
                "plain texts have no token labels to compare with: localise data.test, or Samples with spans."
            )
        check_unseen(self.split, self.seen)
        return localisation_metrics(self, draws=draws, seed=seed, level=level)


def token_cuts(tail: Calibrated, table: ScoreTable, labels: Bool[np.ndarray, "token concept"]) -> TokenCuts:
    """Token thresholds from calibration scores.

    Args:
        tail: The calibrated SuperActivators.
        table: Scores of the calibration split.
        labels: Their token labels, columns as the detector's concepts.
    """
    scores = column_scores(table, tail.layer, tail.chosen_unit).astype(np.float64)
    detected = sample_max(scores, table.tokens.bounds) >= tail.chosen_threshold
    candidate = detected[table.tokens.sample_of]
    concepts = len(tail.layer)
    gated, free = np.zeros((2, len(tail.deltas), concepts))
    for d in range(len(tail.deltas)):
        above = scores >= tail.thresholds[tail.layer, d, np.arange(concepts)]
        free[d] = f1(confusion(above.T, labels.T))
        gated[d] = np.where(d >= tail.delta, f1(confusion((above & candidate).T, labels.T)), -1.0)
    n_in = labels.sum(0)
    # Zero is no activation of a latent, and no threshold rests on it.
    active = labels & (scores > 0) if table.bank.token.scoring == "latent" else labels
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_in = np.where(labels, scores, 0.0).sum(0) / n_in
        mean_out = np.where(labels, 0.0, scores).sum(0) / (len(labels) - n_in)
    midpoint = (mean_in + mean_out) / 2
    midpoint = np.where(np.isnan(midpoint), np.inf, midpoint)
    return TokenCuts(midpoint, gated.argmax(0), free.argmax(0), active.sum(0))


def localise(detector: Detector, samples: Samples, scores: ScoreTable | None) -> Localisation:
    """See `Detector.localise`."""
    split = as_split(samples, detector.concepts)
    table = detector.scores_of(split, scores)
    at = detector.token_scores(table)
    tail, cuts = detector.tail, detector.cuts
    detected = sample_max(at, table.tokens.bounds) >= tail.chosen_threshold
    column = np.arange(len(detector.concepts))
    located = at >= tail.thresholds[tail.layer, cuts.located, column]
    plain_texts = isinstance(samples, str) or (
        not isinstance(samples, Sample | Split) and any(isinstance(s, str) for s in samples)
    )
    return Localisation(
        tokens=table.tokens,
        concepts=detector.concepts,
        scores=at,
        mask=located & detected[table.tokens.sample_of],
        superactivators=at >= tail.chosen_threshold,
        raw=at >= tail.thresholds[tail.layer, cuts.raw, column],
        split=split,
        seen=detector.seen,
        labelled=not plain_texts,
    )
