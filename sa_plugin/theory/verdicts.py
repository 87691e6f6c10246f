"""What may be said of each theorem, by one rule on intervals.

For each claim some quantities are *decisive* (table below), each with the side of its null on which
the claim puts it. Over the layers where the claim's premise holds (*assessed*):

- a layer is **for** the claim if every decisive quantity's interval lies wholly on the claimed side
  of its null, and **against** it if one's lies wholly on the other side;
- **holds**: more than half of the assessed layers are for it, at most a tenth against it, the mean
  over assessed layers of every decisive quantity has its interval on the claimed side, and so has
  its difference from each single control direction (every concept's permuted labels, random ones)
  on the same draws. Intervals over documents do not know how directions vary: a direction that is
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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from sa_plugin.statistics.interval import Interval, percentile_bounds
from sa_plugin.theory.estimates import Drawn
from sa_plugin.theory.measures import KINDS

Answer = Literal["holds", "does not hold", "cannot be said"]
CONCENTRATED = 0.5
SPREAD_OUT = 0.25
AGAINST = 0.1
LEAST_CONTROLS = 9
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
            f"Verdict({self.claim}, {self.concept!r} {self.direction}: {self.answer}, because "
            f"{self.because})"
        )


def judge(
    drawn: Drawn, concept: str, direction: str, layers: tuple[int, ...], *, causal: bool
) -> tuple[Verdict, ...]:
    """The verdict on every claim, by the rule of this module."""
    made = []
    for name, claim in _claims(drawn, causal).items():
        answer, because, votes = _decide(drawn, claim)
        picked = (claim.assessed, *votes)
        at = (tuple(b for b, here in zip(layers, vote, strict=True) if here) for vote in picked)
        made.append(Verdict(name, concept, direction, answer, because, *at))
    return tuple(made)


def _claims(drawn: Drawn, causal: bool) -> dict[str, Claim]:
    everywhere = np.isfinite(drawn.own["gap_slope"][0])
    who = "prefix" if causal else "heads"
    mass = drawn.own["top_mass_plus"][0]
    low, high = percentile_bounds(drawn.own["skew"][1:].T, drawn.level)
    skewed = (low > 0) | (high < 0)
    return {
        "T1 layer": Claim(("gap_deviation_ratio", "gaps_grown"), everywhere, ""),
        "T1 heads": Claim((f"{who}_gap_deviation_ratio", f"{who}_gaps_grown"), everywhere, ""),
        "C1": Claim(("attention_by_sign",), everywhere, ""),
        "C2": Claim(
            ("equalisation",), everywhere & (mass > CONCENTRATED),
            f"in no layer do queries give more than {CONCENTRATED:g} of their attention to the "
            "top share",
        ),
        "T2": Claim(
            ("tail_gain", "skew_growth"), everywhere & skewed & (mass < SPREAD_OUT),
            "no layer has a skewness of sure sign while attention is spread out",
        ),
    }  # fmt: skip


def _decide(
    drawn: Drawn, claim: Claim
) -> tuple[Answer, str, tuple[Bool[np.ndarray, " layer"], Bool[np.ndarray, " layer"]]]:
    none = np.zeros_like(claim.assessed)
    missing = [name for name in claim.decisive if name not in drawn.own]
    if missing:
        return "cannot be said", f"{missing[0]} needs the heads' weights", (none, none)
    if not claim.assessed.any():
        return "cannot be said", claim.premise or "no layer is measured", (none, none)
    up, down = _votes(drawn, claim)
    n, n_up, n_down = (int(vote.sum()) for vote in (claim.assessed, up, down))
    tally = f"{n_up} of {n} layers are for it, {n_down} against"
    means = {name: drawn.mean(name, claim.assessed) for name in claim.decisive}
    for name, mean in means.items():
        if mean.high < KINDS[name].null:
            return "does not hold", f"the mean {name} is {_short(mean)}; {tally}", (up, down)
    if n_down > AGAINST * n and n_down > n_up:
        return "does not hold", tally, (up, down)
    for name, mean in means.items():
        if not mean.low > KINDS[name].null:
            return "cannot be said", f"the mean {name} is {_short(mean)}; {tally}", (up, down)
    if n_up <= n / 2 or n_down > AGAINST * n:
        return "cannot be said", f"layers disagree: {tally}", (up, down)
    beaten, fewest = _beaten(drawn, claim)
    if beaten:
        return "cannot be said", f"{beaten}; {tally}", (up, down)
    return "holds", f"{tally}, beyond each of {fewest} control directions", (up, down)


def _beaten(drawn: Drawn, claim: Claim) -> tuple[str, int]:
    """Why the controls forbid to call it the concept's, or ""; and how many there are."""
    excess = {name: drawn.excess(name, claim.assessed) for name in claim.decisive}
    fewest = min(map(len, excess.values()))
    if fewest < LEAST_CONTROLS:
        return f"there are {fewest} control directions, fewer than {LEAST_CONTROLS}", fewest
    for name, each in excess.items():
        lacking = [one for one in each if not one.low > 0]
        if lacking:
            least = min(lacking, key=lambda one: one.low)
            return (
                f"{len(lacking)} of {len(each)} control directions show it too ({name} minus "
                f"theirs is {_short(least)} for one)"
            ), fewest
    return "", fewest


def _votes(
    drawn: Drawn, claim: Claim
) -> tuple[Bool[np.ndarray, " layer"], Bool[np.ndarray, " layer"]]:
    up, down = claim.assessed.copy(), np.zeros_like(claim.assessed)
    for name in claim.decisive:
        low, high = percentile_bounds(drawn.own[name][1:].T, drawn.level)
        up &= low > KINDS[name].null
        down |= high < KINDS[name].null
    return up, down & claim.assessed


def _short(value: Interval) -> str:
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"
