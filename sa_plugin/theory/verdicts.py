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
  are too few controls.

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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from sa_plugin.show.result import short
from sa_plugin.theory.measures import QUANTITIES, Measures

Answer = Literal["holds", "does not hold", "cannot be said"]
CONCENTRATED = 0.5
"""Attention on the top share of keys above which it has concentrated."""
SPREAD_OUT = 0.25
"""Attention on the top share of keys below which it is spread out."""
AGAINST = 0.1
"""Share of the assessed layers that may be against a claim that holds."""
LEAST_CONTROLS = 9
"""Control directions that a claim which holds must have beaten."""
COLLAPSED = 0.1
"""Spread within the tail below which it has collapsed."""
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
        because: Why.
        assessed, for_it, against: Block indices.
    """

    claim: str
    concept: str
    direction: str
    answer: Answer
    because: str
    assessed: tuple[int, ...]
    for_it: tuple[int, ...]
    against: tuple[int, ...]

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
        answer, because, votes = _decide(measures, claim)
        picked = (claim.assessed, *votes)
        at = (tuple(b for b, here in zip(layers, vote, strict=True) if here) for vote in picked)
        made.append(Verdict(name, concept, direction, answer, because, *at))
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


def _decide(
    measures: Measures, claim: Claim
) -> tuple[Answer, str, tuple[Bool[np.ndarray, " layer"], Bool[np.ndarray, " layer"]]]:
    none = np.zeros_like(claim.assessed)
    missing = [name for name in claim.decisive if name not in measures.own]
    if missing:
        return "cannot be said", f"{missing[0]} needs the heads' weights", (none, none)
    if not claim.assessed.any():
        return "cannot be said", claim.premise or "no layer is measured", (none, none)
    up, down = _votes(measures, claim)
    n, n_up, n_down = (int(vote.sum()) for vote in (claim.assessed, up, down))
    tally = f"{n_up} of {n} layers are for it, {n_down} against"
    means = {name: measures.mean(name, claim.assessed) for name in claim.decisive}
    for name, mean in means.items():
        if mean.high < QUANTITIES[name].null:
            return "does not hold", f"the mean {name} is {short(mean)}; {tally}", (up, down)
    if n_down > AGAINST * n and n_down > n_up:
        return "does not hold", tally, (up, down)
    for name, mean in means.items():
        if not mean.low > QUANTITIES[name].null:
            return "cannot be said", f"the mean {name} is {short(mean)}; {tally}", (up, down)
    if n_up <= n / 2 or n_down > AGAINST * n:
        return "cannot be said", f"layers disagree: {tally}", (up, down)
    beaten, fewest = _beaten(measures, claim)
    if beaten:
        return "cannot be said", f"{beaten}; {tally}", (up, down)
    return "holds", f"{tally}, beyond each of {fewest} control directions", (up, down)


def _beaten(measures: Measures, claim: Claim) -> tuple[str, int]:
    """Why the controls forbid to call it the concept's, or ""; and how many there are."""
    excess = {name: measures.excess(name, claim.assessed) for name in claim.decisive}
    fewest = min(map(len, excess.values()))
    if fewest < LEAST_CONTROLS:
        return f"there are {fewest} control directions, fewer than {LEAST_CONTROLS}", fewest
    for name, each in excess.items():
        lacking = [one for one in each if not one.low > 0]
        if lacking:
            least = min(lacking, key=lambda one: one.low)
            return (
                f"{len(lacking)} of {len(each)} control directions show it too ({name} minus "
                f"theirs is {short(least)} for one)"
            ), fewest
    return "", fewest


def _votes(measures: Measures, claim: Claim) -> tuple[Bool[np.ndarray, " layer"], Bool[np.ndarray, " layer"]]:
    up, down = claim.assessed.copy(), np.zeros_like(claim.assessed)
    for name in claim.decisive:
        up &= measures.own[name].low > QUANTITIES[name].null
        down |= measures.own[name].high < QUANTITIES[name].null
    return up, down & claim.assessed


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
