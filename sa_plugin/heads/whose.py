"""Whose tail do these heads carry: the concept's own, any vector's, or can it not be told?

Of one metric at one k, with p = 1..P the sets that the same rule names on permuted labels,

    E = what the top k take          unablated - after the top k    (kept: after them - with none kept)
    M = what they take beyond p      E - mean over p of what p takes

all in the same columns of documents. The answer is

- *any vector's*, if the top takes clearly more than random and matched sets (`curve`), and the
  interval of M - E / 4 lies below zero: at most a quarter of what the top takes, permuted labels'
  heads leave;
- else *the concept's own*, if the top takes more than every single p, and the intervals of M and of E
  lie above zero;
- else *cannot tell*, with the M that would have been told from zero with power .8
  (`Drawn.detectable`).

Neither of the first two is said with fewer than `LEAST_PERMUTED` permutations. Where the top takes
little of its own, clearly more than zero and clearly less than a quarter, it is any vector's, and M
stands beside the answer.

What it does not show: a set that labels without meaning name takes as much as all P others with
chance 1 / (P + 1), so with five sets "the concept's own" is no strong evidence by itself; more
permutations make it so. The interval is over documents, with ranking, sets and vectors held fixed.
"Any vector's" is said of vectors of this estimator on these tokens; it does not say that heads do
nothing for the concept, only that they do no more for it. No error rate is controlled over metrics
and k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sa_plugin.show.result import number
from sa_plugin.statistics.drawn import Drawn

OWN, ANY, UNTOLD = "the concept's own", "any vector's", "cannot tell"
LEAST_PERMUTED, LITTLE, POWER = 5, 0.25, 0.8


@dataclass(frozen=True, eq=False)
class Answer:
    """Whose tail the top k carry, by one metric.

    Attributes:
        said: "the concept's own", "any vector's" or "cannot tell".
        takes: What the top k take of the metric.
        beyond: How much more than permuted labels' sets, in the mean.
        could_tell: How large `beyond` would have to be to be told from zero with power .8; infinite
            where nothing could.
        reason: Why it cannot be told, where that is not for want of documents.
    """

    said: str
    takes: Drawn
    beyond: Drawn
    could_tell: float
    reason: str = ""

    @property
    def words(self) -> str:
        """The answer, and of a "cannot tell" what could have been told."""
        if self.said != UNTOLD:
            clear = self.said == ANY and self.beyond.low > 0
            return f"{self.said}{', with a little of its own' * bool(clear)}"
        could = f"could have told {number(self.could_tell)}" if np.isfinite(self.could_tell) else ""
        said = ", ".join(filter(None, (self.reason, could)))
        return f"{self.said} ({said or 'no interval'})"


def whose(
    takes: Drawn, beyond: Drawn, permuted: Float[np.ndarray, " set"], beats_matched: bool | None
) -> Answer:
    """The answer of the module, from one metric at one k.

    Args:
        takes: E.
        beyond: M.
        permuted: What each permuted set takes.
        beats_matched: Whether the top takes clearly more than random and matched sets; None where there
            are none.
    """
    could, own = float(beyond.detectable(power=POWER)), float(takes.estimate)
    if len(permuted) < LEAST_PERMUTED:
        few = f"{len(permuted)} permuted, {LEAST_PERMUTED} are needed"
        return Answer(UNTOLD, takes, beyond, could, few)
    rest = beyond - takes.like(LITTLE * takes.values)
    if beats_matched and own > 0 and rest.high < 0:
        return Answer(ANY, takes, beyond, could)
    if own > permuted.max() and beyond.low > 0 and takes.low > 0:
        return Answer(OWN, takes, beyond, could)
    reason = ""
    if beyond.low > 0:
        reason = "a permuted set takes as much" if own <= permuted.max() else "what it takes is not clear"
    elif rest.high < 0 and own > 0:
        none = beats_matched is None
        reason = "no random or matched sets" if none else "not clear against random and matched sets"
    return Answer(UNTOLD, takes, beyond, could, reason)
