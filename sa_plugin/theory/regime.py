"""Between separation and collapse: where a concept's tail stands at the end of the layers checked.

In the idealised run skewness first grows (the tail separates), then falls while the spread within
the tail, mean of 1 - a / max a, goes to 0 (it collapses onto its maximum). OUR reading:

    separating   skewness is largest in the last layer, or falls from its peak without any spread
                 below .1
    collapsing   some layer at or after the peak of the skewness has a spread below .1
    no tail      no layer has a skewness above 0

It is a reading of two curves, without interval: `skew` and `spread` have theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sa_plugin.theory.estimates import Drawn

COLLAPSED = 0.1


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


def regime_of(drawn: Drawn, concept: str, direction: str, layers: tuple[int, ...]) -> Regime | None:
    """The regime, or None where nothing was measured."""
    skew, spread = drawn.own["skew"][0], drawn.own["spread"][0]
    known = np.flatnonzero(np.isfinite(skew))
    if not len(known):
        return None
    curve = np.append(skew[known], drawn.own["skew_after"][0][known[-1]])
    places = [*(layers[k] for k in known), layers[known[-1]] + 1]
    peak = int(np.nanargmax(curve))
    tails = [(layers[k], spread[k]) for k in known if np.isfinite(spread[k])]
    after = [block for block, value in tails if block >= places[peak] and value < COLLAPSED]
    name = "no tail" if curve[peak] <= 0 else "collapsing" if after else "separating"
    least = min((float(value) for _, value in tails), default=float("nan"))
    collapse = after[0] if after else None
    return Regime(concept, direction, name, places[peak], float(curve[peak]), collapse, least)
