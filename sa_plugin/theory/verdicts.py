"""What may be said of each theorem, by one rule on intervals, and of a concept's tail as a whole.

For each claim some quantities are *decisive* (table below), each with the side of its null on which
the claim puts it. Over the layers where the claim's premise holds (*assessed*):

- a layer is **for** the claim if every decisive quantity's interval lies wholly on the claimed side
  of its null, and **against** it if one's lies wholly on the other side;
- **holds**: more than half of the assessed layers are for it, at most a tenth against it, the mean
  over assessed layers of every decisive quantity has its interval on the claimed side, and so has
  its difference from each single control direction (every concept's permuted labels, random ones)
  column by column. Intervals over documents do not know how directions vary: a direction that is
  like m controls passes this by chance once in m + 1 times, so at least nine are asked for;
- **does not hold**: more than a tenth of the assessed layers are against it and more than are for
  it; or the mean of a decisive quantity has its interval wholly on the other side;
- **cannot be said**: everything else, with the reason: no layer meets the premise, a quantity is
  not measured, layers disagree, an interval straddles its null, a control does as well, or there
  are too few controls. Beside it stands what could have been seen: the change at which the very
  interval that failed would have passed 80 % of the time (`Drawn.detectable`: of the mean from its
  null, of the difference from the control with the lowest one, of a layer's quantity as median over
  layers where layers disagree); the other conditions must be met besides.

| claim | decisive | premise |
|---|---|---|
| T1 layer | gap_deviation_ratio > 1 and gaps_grown > .5 | - |
| T1 heads | the same of heads_*; causal: of prefix_* | causal: weights |
| C1 | attention_by_sign > 0 | - |
| C2 | equalisation > 0 | top_mass_plus > .5: attention has concentrated |
| T2 | tail_gain > 0 and skew_growth > 0 | skew's interval excludes 0; top_mass_plus < .25:
  attention is spread out (in between the idealised model itself turns from T2 to C2) |

The ratio of deviations and not the orthogonal slope decides T1: where a' hardly correlates with a
(the first blocks of some models) the slope is unbounded and of no sure sign.

"Holds" says that these samples show the claimed sign, for this concept beyond the controls; it is
no proof of a cause, no statement about the size (compare `predicted`), and conditional on the
assumptions listed in the report. Layers are not independent and bounds are not corrected for their
number: hence the tenth.

Between separation and collapse a tail has a *regime*. In the idealised run skewness first grows
(the tail separates), then falls while the spread within the tail, mean of 1 - a / max a, goes to 0
(it collapses onto its maximum). OUR reading, of where the tail stands at the end of the layers:

    separating   skewness is largest in the last layer, or falls from its peak without any spread
                 below .1
    collapsing   some layer at or after the peak of the skewness has a spread below .1
    no tail      no layer has a skewness above 0

It is a reading of two curves, without interval: `skew` and `spread` have theirs.

Before all claims: is the mechanism of the theorems large enough to make what is measured? Over the
blocks where both are known, with A the mean over blocks of the logarithm of the predicted
gap_deviation_ratio and G that of the measured one,

    too small        G's interval lies above 0, and A's upper end below a tenth of G's lower end
    not too small    G's interval lies above 0, and A's upper end is no less than that
    cannot be said   G's interval holds 0 or lies below: gaps do not surely grow, nothing is to be made

Gaps along any direction grow with the norm of the residual stream, hence random directions beside it.
Too small is said of attention that reads and writes along the concept as assumed, not of heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from sa_plugin.show.result import short
from sa_plugin.statistics.drawn import Drawn, seen_words
from sa_plugin.theory.measures import QUANTITIES, Measures, mean_of_layers

Answer = Literal["holds", "does not hold", "cannot be said"]
CONCENTRATED = 0.5
"""Attention on the top share of keys above which it has concentrated."""
SPREAD_OUT = 0.25
"""Attention on the top share of keys below which it is spread out."""
AGAINST = 0.1
"""Share of the assessed layers that may be against a claim that holds."""
LEAST_CONTROLS = 9
"""Control directions that a claim which holds must have beaten."""
TOO_SMALL = 0.1
"""Share of the measured growth below which a predicted one cannot account for it."""
COLLAPSED = 0.1
"""Spread within the tail below which it has collapsed."""
_NOTHING = seen_words(math.inf)
TITLES = {
    "T1 layer": "gaps grow through a whole block (Theorem 1)",
    "T1 heads": "gaps grow by the heads alone, on equal keys (Theorem 1)",
    "C1": "attention goes to the extreme tokens of the query's sign (Corollary 1)",
    "C2": "the tail equalises once attention has concentrated (Corollary 2)",
    "T2": "growth is strongest in the tail that is longer (Theorem 2)",
}


class Claim(NamedTuple):
    """A claim: decisive quantities, all claimed above their null, and layers that are assessed."""

    decisive: tuple[str, ...]
    assessed: Bool[np.ndarray, " layer"]
    premise: str


@dataclass(frozen=True)
class Verdict:
    """What may be said of one claim for one concept and direction.

    Attributes:
        claim: Key of `TITLES`.
        concept, direction: Whose.
        answer: "holds", "does not hold" or "cannot be said".
        because: Why, and of what cannot be said what could have been seen.
        assessed, for_it, against: Block indices.
        measure: Of what cannot be said, the quantity that failed.
        detectable: The change of it that could have been seen; infinite where none could.
    """

    claim: str
    concept: str
    direction: str
    answer: Answer
    because: str
    assessed: tuple[int, ...]
    for_it: tuple[int, ...]
    against: tuple[int, ...]
    measure: str = ""
    detectable: float = math.nan

    def __repr__(self) -> str:
        return (
            f"Verdict({self.claim}, {self.concept!r} {self.direction}: {self.answer}, because {self.because})"
        )


def judge(
    measures: Measures, concept: str, direction: str, layers: tuple[int, ...], *, causal: bool
) -> tuple[Verdict, ...]:
    """The verdict on every claim, by the rule of this module."""
    made = []
    for name, claim in _claims(measures, causal).items():
        said = _decide(measures, claim)
        assessed, for_it, against = (
            tuple(b for b, here in zip(layers, vote, strict=True) if here)
            for vote in (claim.assessed, said.up, said.down)
        )
        made.append(
            Verdict(
                name,
                concept,
                direction,
                said.answer,
                said.because,
                assessed,
                for_it,
                against,
                said.measure,
                said.detectable,
            )
        )
    return tuple(made)


def _claims(measures: Measures, causal: bool) -> dict[str, Claim]:
    everywhere = np.isfinite(measures.own["gap_slope"].estimate)
    who = "prefix" if causal else "heads"
    mass = measures.own["top_mass_plus"].estimate
    skewed = np.asarray(measures.own["skew"].excludes_zero)
    return {
        "T1 layer": Claim(("gap_deviation_ratio", "gaps_grown"), everywhere, ""),
        "T1 heads": Claim((f"{who}_gap_deviation_ratio", f"{who}_gaps_grown"), everywhere, ""),
        "C1": Claim(("attention_by_sign",), everywhere, ""),
        "C2": Claim(
            ("equalisation",),
            everywhere & (mass > CONCENTRATED),
            f"in no layer do queries give more than {CONCENTRATED:g} of their attention to the top share",
        ),
        "T2": Claim(
            ("tail_gain", "skew_growth"),
            everywhere & skewed & (mass < SPREAD_OUT),
            "no layer has a skewness of sure sign while attention is spread out",
        ),
    }


class _Said(NamedTuple):
    answer: Answer
    because: str
    up: Bool[np.ndarray, " layer"]
    down: Bool[np.ndarray, " layer"]
    measure: str = ""
    detectable: float = math.nan


def _decide(measures: Measures, claim: Claim) -> _Said:
    none = np.zeros_like(claim.assessed)
    missing = [name for name in claim.decisive if name not in measures.own]
    if missing:
        because = f"{missing[0]} needs the heads' weights; {_NOTHING} without them"
        return _Said("cannot be said", because, none, none, missing[0], math.inf)
    if not claim.assessed.any():
        because = f"{claim.premise or 'no layer is measured'}; {_NOTHING} there"
        return _Said("cannot be said", because, none, none, claim.decisive[0], math.inf)
    up, down = _votes(measures, claim)
    n, n_up, n_down = (int(vote.sum()) for vote in (claim.assessed, up, down))
    tally = f"{n_up} of {n} layers are for it, {n_down} against"
    means = {name: measures.mean(name, claim.assessed) for name in claim.decisive}
    for name, mean in means.items():
        if mean.high < QUANTITIES[name].null:
            return _Said("does not hold", f"the mean {name} is {short(mean)}; {tally}", up, down)
    if n_down > AGAINST * n and n_down > n_up:
        return _Said("does not hold", tally, up, down)
    for name, mean in means.items():
        null = QUANTITIES[name].null
        if not mean.low > null:
            because = f"the mean {name} is {short(mean)}; {tally}; {mean.could_have_seen(null)}"
            return _Said("cannot be said", because, up, down, name, float(mean.detectable(null)))
    if n_up <= n / 2 or n_down > AGAINST * n:
        name, change = _of_a_layer(measures, claim)
        because = f"layers disagree: {tally}; {seen_words(change)} of {name} in the median layer"
        return _Said("cannot be said", because, up, down, name, change)
    beaten, name, change, fewest = _beaten(measures, claim)
    if beaten:
        return _Said("cannot be said", f"{beaten}; {tally}", up, down, name, change)
    return _Said("holds", f"{tally}, beyond each of {fewest} control directions", up, down)


def _of_a_layer(measures: Measures, claim: Claim) -> tuple[str, float]:
    """The decisive quantity that fewest layers are for, and what could have been seen of it in a layer."""
    for_it = {
        name: int((claim.assessed & (measures.own[name].low > QUANTITIES[name].null)).sum())
        for name in claim.decisive
    }
    name = min(for_it, key=for_it.__getitem__)
    each = measures.own[name].detectable(QUANTITIES[name].null)
    return name, float(np.median(each[claim.assessed]))


def _beaten(measures: Measures, claim: Claim) -> tuple[str, str, float, int]:
    """Why controls forbid to call it the concept's, or ""; which quantity; detectable change; how many."""
    excess = {name: measures.excess(name, claim.assessed) for name in claim.decisive}
    name = min(excess, key=lambda name: len(excess[name]))
    fewest = len(excess[name])
    if fewest < LEAST_CONTROLS:
        because = f"there are {fewest} control directions, fewer than {LEAST_CONTROLS}; {_NOTHING} with them"
        return because, name, math.inf, fewest
    for name, each in excess.items():
        lacking = [one for one in each if not one.low > 0]
        if lacking:
            least = min(lacking, key=lambda one: one.low)
            because = (
                f"{len(lacking)} of {len(each)} control directions show it too ({name} minus "
                f"theirs is {short(least)} for one, which {least.could_have_seen()})"
            )
            return because, name, float(least.detectable()), fewest
    return "", "", math.nan, fewest


def _votes(measures: Measures, claim: Claim) -> tuple[Bool[np.ndarray, " layer"], Bool[np.ndarray, " layer"]]:
    up, down = claim.assessed.copy(), np.zeros_like(claim.assessed)
    for name in claim.decisive:
        up &= measures.own[name].low > QUANTITIES[name].null
        down |= measures.own[name].high < QUANTITIES[name].null
    return up, down & claim.assessed


@dataclass(frozen=True, eq=False)
class Amplification:
    """Whether attention along the concept could make the growth that is measured.

    Attributes:
        concept, direction: Whose.
        answer: "too small", "not too small" or "cannot be said".
        predicted, measured: Mean over blocks of the logarithm of a block's gap_deviation_ratio.
        random: The measured one of random directions; NaN where there are none.
        blocks: That both are known of.
    """

    concept: str
    direction: str
    answer: str
    predicted: Drawn
    measured: Drawn
    random: float
    blocks: int

    def __repr__(self) -> str:
        return f"Amplification({self.concept!r} {self.direction}: {self.answer}; {self.words()})"

    def words(self) -> str:
        """Both factors of a block, and what could have been seen."""
        predicted, measured = (
            " ".join((_factor(one.estimate), f"[{_factor(one.low)}, {_factor(one.high)}]"))
            for one in (self.predicted, self.measured)
        )
        beside = f" (random directions {_factor(self.random)})" if math.isfinite(self.random) else ""
        seen = (
            f"; {self.measured.could_have_seen()} of its logarithm" if self.answer == "cannot be said" else ""
        )
        return f"gaps grow by {measured} a block{beside}, {predicted} predicted{seen}"


def amplification_of(measures: Measures, concept: str, direction: str) -> Amplification | None:
    """Predicted beside measured growth of gaps, or None where nothing is predicted."""
    name = "gap_deviation_ratio"
    if name not in measures.predicted:
        return None
    ours, theirs = (_logarithm(one[name]) for one in (measures.predicted, measures.own))
    known = np.isfinite(ours.estimate) & np.isfinite(theirs.estimate)
    if not known.any():
        return None
    predicted, measured = (mean_of_layers(one, known) for one in (ours, theirs))
    random = measures.controls.get("random")
    beside = math.nan if random is None else float(mean_of_layers(_logarithm(random[name]), known).estimate)
    answer = "not too small"
    if not measured.low > 0:
        answer = "cannot be said"
    elif predicted.high < TOO_SMALL * measured.low:
        answer = "too small"
    return Amplification(concept, direction, answer, predicted, measured, beside, int(known.sum()))


def too_small(found: Sequence[Amplification]) -> str:
    """The sentence before all others where the mechanism is too small, or nothing."""
    small = [one for one in found if one.answer == "too small"]
    if not small:
        return ""
    predicted = max(float(one.predicted.high) for one in small)
    whole = max(float(one.predicted.high) * one.blocks for one in small)
    measured = min(float(one.measured.low) for one in small)
    random = [one.random for one in small if math.isfinite(one.random)]
    beside = ""
    if random:
        low, high = (_factor(end(random)) for end in (min, max))
        beside = f" (random directions, with the stream's norm: {low} to {high})"
    return (
        f"As assumed, the mechanism cannot make the tail along {len(small)} of {len(found)} vectors: "
        f"attention along the concept multiplies gaps by at most {_factor(predicted)} a block and "
        f"{_factor(whole)} over all blocks, measured is at least {_factor(measured)} a block{beside}, and of "
        "each vector's growth it predicts less than a tenth."
    )


def _logarithm(ratio: Drawn) -> Drawn:
    with np.errstate(divide="ignore", invalid="ignore"):
        return ratio.like(np.log(ratio.values))


def _factor(logarithm: float) -> str:
    return "-" if not math.isfinite(logarithm) else f"{math.exp(logarithm):.4f}"


@dataclass(frozen=True)
class Regime:
    """Where one concept stands.

    Attributes:
        concept, direction: Whose.
        name: "separating", "collapsing" or "no tail".
        skew_peak: Block whose input has the largest skewness; one past the last block is the end.
        largest_skew: There.
        collapse: First block at or after the peak whose input has a spread below .1, or None.
        smallest_spread: Over the blocks.
    """

    concept: str
    direction: str
    name: str
    skew_peak: int
    largest_skew: float
    collapse: int | None
    smallest_spread: float

    def __repr__(self) -> str:
        fallen = "never below" if self.collapse is None else f"at block {self.collapse} below"
        if self.collapse is None and self.smallest_spread < COLLAPSED:
            fallen = "from there on not below"
        return (
            f"Regime({self.concept!r} {self.direction}: {self.name}; skewness peaks at the input "
            f"of block {self.skew_peak} with {self.largest_skew:.2f}, the tail's spread is "
            f"{fallen} {COLLAPSED:g}, least {self.smallest_spread:.2f})"
        )


def regime_of(measures: Measures, concept: str, direction: str, layers: tuple[int, ...]) -> Regime | None:
    """The regime, or None where nothing was measured."""
    skew, spread = measures.own["skew"].estimate, measures.own["spread"].estimate
    known = np.flatnonzero(np.isfinite(skew))
    if not len(known):
        return None
    # Skewness at every block's input, and behind the last block.
    curve = np.append(skew[known], measures.own["skew_after"].estimate[known[-1]])
    places = [*(layers[k] for k in known), layers[known[-1]] + 1]
    peak = int(np.nanargmax(curve))
    tails = [(layers[k], spread[k]) for k in known if np.isfinite(spread[k])]
    after = [block for block, value in tails if block >= places[peak] and value < COLLAPSED]
    name = "no tail" if curve[peak] <= 0 else "collapsing" if after else "separating"
    least = min((float(value) for _, value in tails), default=float("nan"))
    collapse = after[0] if after else None
    return Regime(concept, direction, name, places[peak], float(curve[peak]), collapse, least)
