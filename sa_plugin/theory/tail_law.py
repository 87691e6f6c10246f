"""The tail law: which pooling wins at a length and span, predicted from scores measured at another.

A context of N tokens is composed of what was measured (`tail_inputs`), with no shape assumed:

    negative   whole background samples, one after another, drawn with replacement, cut at N tokens (of one
               longer than N a window of N)
    positive   the same, with m in-concept scores put in, in so many runs at random places; where one falls
               into a sample, its other tokens become those of a positive sample (a longer sample than that
               keeps its end, raised by kappa). m varies as it does in the data
    inside     the effect of the sample it stands in + Q_in(Phi(sqrt(rho_in) g + sqrt(1 - rho_in) e)), with
               Q_in the empirical quantile function of in-concept scores without their samples' effects, g
               one a context, e one a token, standard normal

Tokens keep their order and their neighbours, so the dependence of neighbours (the extremal index) and, up to
the length measured, the document effect are those of the data. Beyond it two constants say what is not
known from short samples, both shares between 0 and 1:

    shared     of a sample's effect b that all samples of a context share: sqrt(shared) b_0 +
               sqrt(1 - shared) b_j in place of b_j
    reach      of kappa that reaches the samples of a positive context that hold no in-concept token

Every pooling of the detection table is computed on these contexts, at every candidate of its grid; its
predicted AUROC is that of its best candidate. With R and P the shares of positive and negative contexts
whose maximum reaches a threshold, and pi the prevalence,

    F1 = 2 pi R / (pi (1 + R) + (1 - pi) P)

at thresholds Q_in(1 - delta) gives the best delta, which is the share of in-concept tokens that clear the
negatives' maxima: it falls with m, because more tokens allow a higher threshold.

For normal scores the same is known in closed form (`tests/tail_oracles.py`: maximum, mean, top k, best
delta). On real scores these fail at once: the background's kurtosis is 5, and spill-over alone gives the mean
its AUROC.

What it does not show: what a model does to scores in longer contexts than were measured. Scores of single
samples are taken to be what they are inside a long context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy.special import ndtr

from sa_plugin._face import face, face_methods
from sa_plugin.detection.methods import GRIDS, STATISTICS
from sa_plugin.statistics.quantile import DELTAS
from sa_plugin.statistics.ranking import auroc_of
from sa_plugin.theory.tail_inputs import TailInputs

MAXIMUM = "MaxTok"
TIE = 0.01
"""AUROC within which two poolings are one."""
# Scores of so many contexts at a time are pooled, so that windows of long ones stay small.
_ENTRIES = 1 << 20


@face
@dataclass(frozen=True)
class Context:
    """A length and a span.

    Attributes:
        tokens: N, of a context.
        in_concept: m, mean in-concept tokens of a positive one; a fraction is a chance of one more.
        runs: Into how many runs they fall, as long as there are tokens for them.
    """

    tokens: int
    in_concept: float = 1.0
    runs: int = 1

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}: a context has at least one, such as 512.")
        if not 1 <= self.in_concept <= self.tokens:
            raise ValueError(
                f"in_concept is {self.in_concept:g}: a positive context of {self.tokens} tokens has 1 to "
                f"{self.tokens} of the concept."
            )
        if self.runs < 1:
            raise ValueError(f"runs is {self.runs}: in-concept tokens stand in at least one run.")


@face
@dataclass(frozen=True)
class Constants:
    """What short samples do not tell of longer contexts; see the module's text.

    Attributes:
        shared: Of a sample's effect, 0 to 1.
        reach: Of the spill-over, 0 to 1.
    """

    shared: float = 0.0
    reach: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("shared", self.shared), ("reach", self.reach)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value:g}: give a share between 0 and 1.")


@dataclass(frozen=True, eq=False)
class Contexts:
    """Simulated contexts, half of them positive.

    Attributes:
        scores: Of their tokens.
        inside: Which are in the concept; the second half of the contexts has none.
    """

    scores: Float[np.ndarray, "token context"]
    inside: Bool[np.ndarray, "token context"]

    @property
    def half(self) -> int:
        """Number of positive ones, which stand first."""
        return int(self.scores.shape[1]) // 2


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the law says of one concept in one context.

    Attributes:
        auroc: Of every pooling, at its best candidate.
        parameters: That candidate, counted as in its grid; none for poolings without.
        delta: Best delta by F1.
        f1: At it.
        threshold: There, in the scores' unit.
    """

    auroc: Mapping[str, float]
    parameters: Mapping[str, tuple[float, ...]]
    delta: float
    f1: float
    threshold: float

    @property
    def best(self) -> str:
        """The pooling of the highest predicted AUROC; the maximum where it is within a tie of it."""
        best = max(self.auroc, key=lambda name: self.auroc[name])
        return MAXIMUM if self.auroc[best] <= self.auroc[MAXIMUM] + TIE else best


@face_methods
class TailLaw:
    """One concept's inputs with the draws of contexts of one kind, so that leaving a document out is paired.

    Args:
        inputs: Measured.
        context: Length and span.
        samples: Contexts of either class.
        seed: Of all draws.
        constants: Of longer contexts.
    """

    def __init__(
        self,
        inputs: TailInputs,
        context: Context,
        *,
        samples: int = 500,
        seed: int = 0,
        constants: Constants = Constants(),
    ) -> None:
        self.inputs, self.context, self.constants = inputs, context, constants
        self.samples = samples
        rng = np.random.default_rng(seed)
        n, lengths = context.tokens, np.diff(inputs.bounds)
        # A fifth more than the mean asks for; a row that is still too short starts again at its first.
        each = int(np.ceil(1.2 * n / lengths.mean())) + 2
        # The last column is the sample whose effect the whole context shares.
        self._picks = _Picks(rng, len(lengths), (2 * samples, each + 1))
        self._carriers = _Picks(rng, len(inputs.document), (samples, each))
        self._start = rng.random(2 * samples)
        counts = rng.choice(inputs.counts, samples) * context.in_concept / inputs.in_concept
        count = np.clip(np.floor(counts + rng.random(samples)).astype(int), 1, n)
        runs = np.maximum(np.round(count * context.runs / context.in_concept).astype(int), 1)
        self._inside = _planted(rng, count, runs, n)
        # Of in-concept tokens: which of the context's tokens, and how high among their like.
        self._token, self._context = np.nonzero(self._inside)
        g, e = rng.standard_normal(samples), rng.standard_normal(len(self._token))
        rho = inputs.rho_in
        self._level = ndtr(np.sqrt(rho) * g[self._context] + np.sqrt(1 - rho) * e)

    def again(self, seed: int) -> TailLaw:
        """The same with other draws."""
        return TailLaw(self.inputs, self.context, samples=self.samples, seed=seed, constants=self.constants)

    def contexts(
        self,
        negatives: Bool[np.ndarray, " negative"] | None = None,
        positives: Bool[np.ndarray, " positive"] | None = None,
    ) -> Contexts:
        """Draw them.

        Args:
            negatives: Which negative samples are left out; a context that holds one gets another in its place
                and is else the same.
            positives: Which positive ones.
        """
        x, half, share = self.inputs, self._inside.shape[1], self.constants.shared
        picks = self._picks.of(negatives)
        rows, passage, within = self._tokens(picks)
        scores = x.background[rows].astype(np.float64)
        own = np.take_along_axis(x.effect[picks].T, passage, axis=0)
        common = np.sqrt(share) * x.effect[picks[:, -1]]
        if share:
            scores += (np.sqrt(1 - share) - 1) * own + common
        # Samples that hold an in-concept token spill over: what is around it comes from a positive sample.
        token, context = self._token, self._context
        holds = np.zeros((half, picks.shape[1]), dtype=bool)
        holds[context, passage[token, context]] = True
        near = np.take_along_axis(holds.T, passage[:, :half], axis=0)
        scores[:, :half] += x.kappa * np.where(near, 1.0, self.constants.reach)
        carrier = np.take_along_axis(self._carriers.of(positives).T, passage[:, :half], axis=0)
        spilt = near & (within[:, :half] < np.diff(x.others_bounds)[carrier])
        carried = x.others[(x.others_bounds[carrier] + within[:, :half])[spilt]]
        own[:, :half][spilt] = x.positive_effect[carrier[spilt]]
        lost = (1 - np.sqrt(1 - share)) * own[:, :half][spilt]
        scores[:, :half][spilt] = carried - lost + common[np.nonzero(spilt)[1]]
        kept = x.without_effect if positives is None else x.without_effect[~positives[x.inside_sample]]
        effect = np.sqrt(1 - share) * own[token, context] + common[context]
        scores[token, context] = effect + np.quantile(kept, self._level)
        inside = np.zeros(scores.shape, dtype=bool)
        inside[:, :half] = self._inside
        return Contexts(scores.astype(np.float32), inside)

    def _tokens(self, picks: Int[np.ndarray, "context pick"]) -> tuple[Int[np.ndarray, "token context"], ...]:
        """Background row of every token, which of its context's samples it is of, and its place there."""
        bounds, n = self.inputs.bounds, self.context.tokens
        length = np.diff(bounds)[picks[:, :-1]]
        ends = np.cumsum(length, axis=1)
        # Of a first sample longer than the context a window of it.
        first = np.floor(self._start * (np.maximum(length[:, 0] - n, 0) + 1)).astype(int)
        place = (first[:, None] + np.arange(n)) % ends[:, -1:]
        # One search over all contexts: those of context k are lifted above all before it.
        lift = np.arange(len(picks))[:, None] * (int(ends.max()) + 1)
        flat = np.searchsorted((ends + lift).ravel(), (place + lift).ravel(), side="right")
        passage = flat.reshape(place.shape) - np.arange(len(picks))[:, None] * ends.shape[1]
        within = place - np.take_along_axis(ends - length, passage, axis=1)
        rows = bounds[np.take_along_axis(picks, passage, axis=1)] + within
        return rows.T, passage.T, within.T

    def prediction(self, contexts: Contexts | None = None) -> Prediction:
        """Every pooling at its best candidate, and the best delta."""
        contexts = self.contexts() if contexts is None else contexts
        auroc: dict[str, float] = {}
        parameters: dict[str, tuple[float, ...]] = {}
        for name, candidate, values in pooled(contexts, self.inputs.prevalence):
            found = auroc_of(values[: contexts.half], values[contexts.half :])
            if name not in auroc or found > auroc[name]:
                auroc[name], parameters[name] = found, candidate
        highest = contexts.scores.max(0).astype(np.float64)
        inside = contexts.scores[contexts.inside]
        half, share = contexts.half, self.inputs.prevalence
        delta, f1, threshold = best_delta(highest[:half], highest[half:], inside, share)
        return Prediction(auroc, parameters, delta, f1, threshold)


class _Picks:
    """Uniform draws of samples, with what comes instead of those that are left out."""

    def __init__(self, rng: np.random.Generator, n: int, shape: tuple[int, int]) -> None:
        self._first, self._instead = rng.integers(n, size=shape), rng.random(shape)

    def of(self, out: Bool[np.ndarray, " sample"] | None) -> Int[np.ndarray, "context pick"]:
        if out is None or not out.any():
            return self._first
        left = np.flatnonzero(~out)
        return np.where(out[self._first], left[(self._instead * len(left)).astype(int)], self._first)


def _planted(
    rng: np.random.Generator, count: Int[np.ndarray, " context"], runs: Int[np.ndarray, " context"], n: int
) -> Bool[np.ndarray, "token context"]:
    """Places of in-concept tokens: `count` of n, in runs of like length at random places."""
    inside = np.zeros((n, len(count)), dtype=bool)
    runs = np.minimum(runs, count)
    for m, r in np.unique(np.stack([count, runs], axis=1), axis=0).tolist():
        own = np.flatnonzero((count == m) & (runs == r))
        long = m // r + (np.arange(r) < m % r)
        # Gaps between runs are sorted draws of the places that no run takes.
        gaps = np.sort(rng.integers(n - m + 1, size=(len(own), r)), axis=1)
        starts = gaps + np.append(0, np.cumsum(long)[:-1])
        offsets = np.repeat(starts, long, axis=1) + np.concatenate([np.arange(one) for one in long])
        inside[offsets, own[:, None]] = True
    return inside


def pooled(
    contexts: Contexts, prevalence: float, only: Mapping[str, tuple[float, ...]] | None = None
) -> Iterator[tuple[str, tuple[float, ...], Float64[np.ndarray, " context"]]]:
    """Every pooling of every context, candidate by candidate.

    Args:
        contexts: Simulated.
        prevalence: Of positives where grids are counted in deviations of the scores.
        only: Poolings, each at one candidate; by default all of them at all.
    """
    n, several = contexts.scores.shape
    step = max(1, _ENTRIES // n)
    ends = np.array([0, n])
    mean, sd = _spread(contexts, prevalence)
    for name, statistic in STATISTICS.items():
        if name == "length-only" or (only is not None and name not in only):
            continue
        grid = GRIDS.get(name)
        candidates = ((),) if grid is None else grid.candidates
        for candidate in candidates if only is None else (only[name],):
            numbers = () if grid is None else grid.parameters(candidate, mean, sd)
            # Contexts stand as columns of one long sample: poolings treat columns one by one.
            parts = [
                statistic(contexts.scores[:, a : a + step, None], ends, *numbers)[0, :, 0]
                for a in range(0, several, step)
            ]
            yield name, candidate, np.concatenate(parts).astype(np.float64)


def _spread(
    contexts: Contexts, prevalence: float
) -> tuple[Float64[np.ndarray, "1 1"], Float64[np.ndarray, "1 1"]]:
    """Mean and deviation of all tokens of a split with this share of positive contexts."""
    sides = contexts.scores[:, : contexts.half], contexts.scores[:, contexts.half :]
    weights = (prevalence, 1 - prevalence)
    mean, square = (
        sum(w * float((side.astype(np.float64) ** k).mean()) for w, side in zip(weights, sides, strict=True))
        for k in (1, 2)
    )
    return np.array([[mean]]), np.array([[np.sqrt(max(square - mean**2, 0.0)) or 1.0]])


def best_delta(
    positive: Float64[np.ndarray, " positive"],
    negative: Float64[np.ndarray, " negative"],
    inside: Float[np.ndarray, " inside"],
    prevalence: float,
) -> tuple[float, float, float]:
    """Delta of the grid with the best F1, ties to the smaller; its F1 and its threshold.

    Args:
        positive: Highest score of each positive sample.
        negative: Of each negative one.
        inside: In-concept scores, whose quantiles are the thresholds.
        prevalence: Share of positives, which the samples need not have.
    """
    cuts = np.quantile(inside.astype(np.float64), 1 - np.array(DELTAS))
    found, alarms = (
        1 - np.searchsorted(np.sort(side), cuts, side="left") / len(side) for side in (positive, negative)
    )
    f1 = 2 * prevalence * found / (prevalence * (1 + found) + (1 - prevalence) * alarms)
    best = int(f1.argmax())
    return DELTAS[best], float(f1[best]), float(cuts[best])
