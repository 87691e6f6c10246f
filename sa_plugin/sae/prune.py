"""Which latents are worth matching: neither dead, nor everywhere, nor weak.

Over the kept tokens of the calibration split, with `n_j` the tokens where latent j is above zero:

    dead        n_j < dead
    ubiquitous  n_j / tokens > ubiquitous
    weak        p99_j below the `weak`-th percentile of p99 over the latents that are left,
                p99_j the 99 % quantile of latent j where it is above zero

(arXiv 2512.05038, the authors' code.) `plain` has the paper's numbers, made for its data sets:
images 200, 2 %, 75; texts 500, 3 %, 70. `adaptive` takes them from the labels: dead below 0.75
times the tokens of the rarest concept (images) or below max(10, 1 % of them) (texts); ubiquitous
above 1.25 times the share of tokens of the commonest concept; weak the 50th, 60th, 70th or 80th
percentile for 1, up to 9, up to 29, or more concepts. `none` drops dead latents alone.

Everything is exact. Only active latents are stored, eight bytes each, and a latent that is
certainly ubiquitous is stored no further: about 8 L0 bytes a token, whatever the width.

What pruning does not show: that a latent that is left means anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin._names import require_known
from sa_plugin.tail.quantile import quantiles_sorted

RULES = ("adaptive", "plain", "none")
PLAIN = {"image": (200, 0.02, 75.0), "text": (500, 0.03, 70.0)}


@dataclass(frozen=True)
class Pruning:
    """Limits a latent has to keep.

    Attributes:
        dead: Least number of calibration tokens where it is above zero; at least 1.
        ubiquitous: Largest share of calibration tokens where it is above zero.
        weak: Percentile of p99 below which it is weak; 0 drops none.
    """

    dead: int = 1
    ubiquitous: float = 1.0
    weak: float = 0.0

    def __post_init__(self) -> None:
        if self.dead < 1 or not 0 < self.ubiquitous <= 1 or not 0 <= self.weak < 100:
            raise ValueError(
                f"{self!r}: dead must be 1 or more, ubiquitous a share in (0, 1], weak a "
                "percentile in [0, 100)."
            )


def pruning_of(
    rule: str | Pruning, counts: Int[np.ndarray, " concept"], tokens: int, images: bool
) -> Pruning:
    """The limits that a rule gives.

    Args:
        rule: "adaptive", "plain", "none", or limits of your own.
        counts: Calibration tokens of each concept.
        tokens: All calibration tokens.
        images: Whether samples are images.

    Raises:
        ValueError: Unknown rule, or a concept has no calibration token to adapt to.
    """
    if isinstance(rule, Pruning):
        return rule
    require_known("pruning", rule, RULES)
    if rule == "none":
        return Pruning()
    if rule == "plain":
        return Pruning(*PLAIN["image" if images else "text"])
    rarest, commonest = int(counts.min()), int(counts.max())
    if not rarest:
        raise ValueError(
            "pruning 'adaptive' needs calibration tokens of every concept, and one has none: give "
            "pruning='plain', Pruning(dead=..., ubiquitous=..., weak=...), or more labels."
        )
    dead = max(1, int(0.75 * rarest)) if images else max(10, int(0.01 * rarest))
    n = len(counts)
    weak = 50.0 if n == 1 else 60.0 if n < 10 else 70.0 if n < 30 else 80.0
    return Pruning(dead, min(1.0, 1.25 * commonest / tokens), weak)


class Activity:
    """Counts of active tokens and the active values of every latent of one layer.

    Args:
        width: Number of latents.
        most: Active tokens above which a latent's values are not needed.
    """

    def __init__(self, width: int, most: float) -> None:
        self.count: Int[np.ndarray, " latent"] = np.zeros(width, dtype=np.int64)
        self.most = most
        self._latents: list[Int[np.ndarray, " entry"]] = []
        self._values: list[Float[np.ndarray, " entry"]] = []

    def add(self, latent: Int[np.ndarray, " entry"], value: Float[np.ndarray, " entry"]) -> None:
        """Add the active latents of some tokens: whose they are, and how active."""
        self.count += np.bincount(latent, minlength=len(self.count))
        needed = self.count[latent] <= self.most
        self._latents.append(latent[needed])
        self._values.append(value[needed])

    def p99(self, which: Bool[np.ndarray, " latent"]) -> Float[np.ndarray, " latent"]:
        """99 % quantile of some latents where they are above zero; NaN for the others.

        Raises:
            ValueError: One of them was above zero more often than `most`: its values are gone.
        """
        latent, value = np.concatenate(self._latents), np.concatenate(self._values)
        wanted = which[latent]
        latent, value = latent[wanted], value[wanted]
        order = np.lexsort((value, latent))
        ordered = value[order]
        stored = np.bincount(latent, minlength=len(which))
        ends = stored.cumsum()
        gone = np.flatnonzero(which & (stored != self.count))
        if len(gone):
            raise ValueError(
                f"latent {gone[0]} was above zero at {self.count[gone[0]]} tokens, and the values "
                f"of {stored[gone[0]]} are stored: raise `most`, {self.most:g}."
            )
        found = np.full(len(which), np.nan)
        for j in np.flatnonzero(which & (self.count > 0)):
            found[j] = quantiles_sorted(ordered[ends[j] - self.count[j] : ends[j]], [0.99])[0]
        return found


@dataclass(frozen=True, eq=False)
class Pruned:
    """Which latents of one layer are left, and why the others are not.

    Attributes:
        kept: Latents that are left.
        dead, ubiquitous, weak: Numbers dropped.
        count: Active calibration tokens of each latent.
    """

    kept: Bool[np.ndarray, " latent"]
    dead: int
    ubiquitous: int
    weak: int
    count: Int[np.ndarray, " latent"]

    def __repr__(self) -> str:
        return (
            f"Pruned({int(self.kept.sum())} of {len(self.kept)} latents left; {self.dead} dead, "
            f"{self.ubiquitous} ubiquitous, {self.weak} weak)"
        )


def prune(activity: Activity, limits: Pruning, tokens: int) -> Pruned:
    """Apply the limits.

    Args:
        activity: Of one layer, over the calibration split.
        limits: To keep.
        tokens: Calibration tokens.
    """
    dead = activity.count < limits.dead
    ubiquitous = ~dead & (activity.count > limits.ubiquitous * tokens)
    left = ~dead & ~ubiquitous
    weak = np.zeros_like(left)
    if limits.weak and left.any():
        p99 = activity.p99(left)
        with np.errstate(invalid="ignore"):
            weak = left & (p99 < np.percentile(p99[left], limits.weak))
    return Pruned(
        left & ~weak, int(dead.sum()), int(ubiquitous.sum()), int(weak.sum()), activity.count
    )
