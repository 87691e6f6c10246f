"""A number together with its resamples.

A statistic is computed on the data and again on every resample of the source documents. `Drawn`
holds both, over named and labelled axes,

    values[*axes, column],   column 0 the data, column b > 0 the b-th resample

so that every difference of two `Drawn` of the same resamples is paired, and an interval is a rule
applied to the last axis. Whoever makes a `Drawn` may give it another rule than percentiles
(`Drawn.rule`): columns can as well leave out one document each.

    percentile rule: [Q_{alpha/2}, Q_{1-alpha/2}] of columns 1, 2, ...,   alpha = 1 - level

What an interval shows: the draw of the resampled documents, with everything fitted before held
fixed: vectors, thresholds, layers, deltas. It says nothing about another train or calibration
split. Percentile intervals are not bias-corrected, and undercover with few documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin._check import did_you_mean
from sa_plugin._face import face

Bounds: TypeAlias = tuple[Any, Any]
"""Lower and upper ends, arrays of one shape or two floats."""
Rule: TypeAlias = Callable[[np.ndarray, float], Bounds]
"""Values of every column (column 0 the data) and a level to the two ends of the interval."""


def percentile_bounds(drawn: Float[np.ndarray, "*shape draw"], level: float = 0.95) -> Bounds:
    """Percentile bounds over draws, the last axis.

    Draws with an undefined statistic (NaN, a class that no drawn document has) are left out; all
    undefined gives NaN.

    Raises:
        ValueError: The level lies outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, such as 0.95.")
    edges = [(1 - level) / 2, (1 + level) / 2]
    undefined = np.isnan(drawn)
    if not undefined.any() and drawn.shape[-1]:
        low, high = np.quantile(drawn, edges, axis=-1)
        return np.asarray(low), np.asarray(high)
    bounds = np.full((*drawn.shape[:-1], 2), np.nan)
    for at in np.ndindex(drawn.shape[:-1]):
        kept = drawn[at][~undefined[at]]
        if len(kept):
            bounds[at] = np.quantile(kept, edges)
    return np.asarray(bounds[..., 0]), np.asarray(bounds[..., 1])


def percentile_rule(values: Float[np.ndarray, "*shape column"], level: float) -> Bounds:
    """The rule of the bootstrap: percentiles of the resamples, whatever the data's own value."""
    return percentile_bounds(values[..., 1:], level)


@face
@dataclass(frozen=True)
class Resampling:
    """How intervals are made.

    Attributes:
        draws: Resamples of the source documents.
        seed: Of the draws.
        level: Share of the statistic's distribution that an interval is meant to hold.
    """

    draws: int = 1000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}: ask for at least one, such as 1000.")
        if not 0 < self.level < 1:
            raise ValueError(f"level {self.level} must lie between 0 and 1, such as 0.95.")


@dataclass(frozen=True, eq=False, repr=False)
class Drawn:
    """A statistic on the data and on every resample.

    Attributes:
        values: Column 0 of the last axis is the data, each other one a resample.
        axes: Labels of every other axis, by the axis' name, in the order of `values`.
        documents: How many documents were resampled.
        level: Of the intervals.
        rule: How the columns become an interval.
        kept: The interval itself, where the resamples were too many to keep; see `freeze`.
        drawn_from: Digest of the resamples; 0 where nobody said.
    """

    values: Float[np.ndarray, "*axes column"]
    axes: Mapping[str, Sequence[Any]]
    documents: int = 0
    level: float = 0.95
    rule: Rule = percentile_rule
    kept: Bounds | None = None
    drawn_from: int = 0

    def __post_init__(self) -> None:
        shape = tuple(len(labels) for labels in self.axes.values())
        if self.values.shape[:-1] != shape or not self.values.shape[-1]:
            sizes = {name: len(labels) for name, labels in self.axes.items()}
            raise ValueError(
                f"values of shape {self.values.shape} do not fit the axes {sizes} and a last axis of columns."
            )

    def __repr__(self) -> str:
        if self.axes:
            shape = ", ".join(f"{len(labels)} {name}s" for name, labels in self.axes.items())
            return f"Drawn({shape}; {self._made()})"
        low, high = self.bounds
        return f"{self.estimate:.3f} [{low:.3f}, {high:.3f}] ({100 * self.level:g} %, {self._made()})"

    def _made(self) -> str:
        if self.kept is not None:
            return f"{self.documents} documents, resamples not kept"
        defined = "" if self.axes else int(np.isfinite(self.values[1:]).sum())
        return f"{defined if defined != '' else self.draws} draws of {self.documents} documents"

    @property
    def draws(self) -> int:
        """Number of resamples."""
        return int(self.values.shape[-1]) - 1

    @property
    def estimate(self) -> Any:
        """On the data as they are: an array over `axes`, a float where there are none."""
        return self.values[..., 0][()]

    @cached_property
    def bounds(self) -> Bounds:
        """The interval's two ends, over `axes`; NaN where no resample defines the statistic."""
        return self.rule(self.values, self.level) if self.kept is None else self.kept

    @property
    def low(self) -> Any:
        """Lower end of the interval."""
        return self.bounds[0][()]

    @property
    def high(self) -> Any:
        """Upper end of the interval."""
        return self.bounds[1][()]

    @property
    def excludes_zero(self) -> Bool[np.ndarray, "*axes"] | np.bool_:
        """Where zero lies outside the interval, as a paired difference must show."""
        return np.asarray((self.low > 0) | (self.high < 0))[()]

    def like(self, values: Float[np.ndarray, "*shape column"], **axes: Sequence[Any]) -> Drawn:
        """Other values of the same resamples.

        Args:
            values: With the same columns.
            **axes: Their axes; those of this one by default.
        """
        return replace(self, values=values, axes=axes or self.axes, kept=None)

    def __sub__(self, other: Drawn) -> Drawn:
        """The paired difference, column by column.

        Raises:
            ValueError: The two have other resamples or axes, or one was frozen.
        """
        for one in (self, other):
            if one.kept is not None:
                raise ValueError(
                    "the resamples of this number were not kept, only its interval, so it has no paired "
                    "difference: subtract before freezing."
                )
        others = self.drawn_from and other.drawn_from and self.drawn_from != other.drawn_from
        if others or self.values.shape != other.values.shape or list(self.axes) != list(other.axes):
            raise ValueError(
                f"{self!r} and {other!r} have other axes or resamples: a paired difference needs the same, "
                "drawn from one Resamples."
            )
        return self.like(self.values - other.values)

    def __neg__(self) -> Drawn:
        return self.like(-self.values)

    def sel(self, **labels: Any) -> Drawn:
        """One label of an axis (the axis goes) or a list of them (it stays).

        Raises:
            ValueError: No such axis or label; the text names the nearest.
        """
        found = self
        for name, label in labels.items():
            if name not in found.axes:
                raise ValueError(f"{name!r} is no axis of {found!r}{did_you_mean(name, found.axes)}")
            at = list(found.axes).index(name)
            several = isinstance(label, list | tuple)
            places = [_index(name, one, found.axes[name]) for one in (label if several else [label])]
            chosen: Any = places if several else places[0]
            axes = {
                k: (tuple(label) if k == name else v) for k, v in found.axes.items() if several or k != name
            }
            kept = found.kept and (found.kept[0].take(chosen, axis=at), found.kept[1].take(chosen, axis=at))
            found = replace(found, values=np.take(found.values, chosen, axis=at), axes=axes, kept=kept)
        return found

    def mean(self, axis: str, weights: np.ndarray | None = None) -> Drawn:
        """Mean over an axis.

        What is not defined in a column is left out of that column's mean.

        Args:
            axis: Its name.
            weights: One weight a label, or of the shape of `values` where resamples have their own.
        """
        if self.kept is not None:
            raise ValueError("the resamples of this number were not kept: means come before freezing.")
        at = _index("axis", axis, list(self.axes))
        weight = np.ones(1) if weights is None else np.asarray(weights, dtype=np.float64)
        if weight.ndim == 1 and weights is not None:
            weight = np.expand_dims(weight, tuple(k for k in range(self.values.ndim) if k != at))
        weight = np.where(np.isnan(self.values), 0.0, np.broadcast_to(weight, self.values.shape))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weight * np.nan_to_num(self.values)).sum(at) / weight.sum(at)
        axes = {name: labels for name, labels in self.axes.items() if name != axis}
        return replace(self, values=np.asarray(mean), axes=axes, kept=None)

    def freeze(self) -> Drawn:
        """The same without its resamples: value and interval, for numbers too many to keep."""
        # A copy, or a view would keep the resamples alive.
        return replace(self, values=self.values[..., :1].copy(), kept=self.bounds)

    def rows(self, measure: str) -> list[dict[str, Any]]:
        """Long form: one row a cell, with its labels, the measure's name, value, low and high."""
        low, high = (np.asarray(one) for one in self.bounds)
        estimate = np.asarray(self.estimate)
        names = list(self.axes)
        labels = [list(self.axes[name]) for name in names]
        return [
            {
                **{name: labels[k][i] for k, (name, i) in enumerate(zip(names, at, strict=True))},
                "measure": measure,
                "value": float(estimate[at]),
                "low": float(low[at]),
                "high": float(high[at]),
            }
            for at in np.ndindex(estimate.shape)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Axes, estimate and interval as nested lists; the resamples themselves stay behind."""
        return {
            "axes": {name: list(labels) for name, labels in self.axes.items()},
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "draws": None if self.kept is not None else self.draws,
            "documents": self.documents,
        }


def stack(parts: Mapping[Any, Drawn], axis: str, *, last: bool = False) -> Drawn:
    """Several of the same axes and resamples as one.

    Args:
        parts: By their label.
        axis: Name of the new axis.
        last: Whether the new axis stands behind the others instead of before them.

    Raises:
        ValueError: There are none.
    """
    if not parts:
        raise ValueError(f"nothing to put along the axis {axis!r}.")
    first = next(iter(parts.values()))
    place = len(first.axes) if last else 0
    kept: Bounds | None = None
    values = [part.values for part in parts.values()]
    if any(part.kept is not None for part in parts.values()):
        bounds = [part.bounds for part in parts.values()]
        low, high = (np.stack([np.asarray(one[k]) for one in bounds], axis=place) for k in (0, 1))
        kept, values = (low, high), [one[..., :1] for one in values]
    axes = {**first.axes, axis: tuple(parts)} if last else {axis: tuple(parts), **first.axes}
    return replace(first, values=np.stack(values, axis=place), axes=axes, kept=kept)


def _index(name: str, label: Any, labels: Iterable[Any]) -> int:
    known = list(labels)
    if label in known:
        return known.index(label)
    shown = ", ".join(map(str, known[:12])) + (", ..." if len(known) > 12 else "")
    near = did_you_mean(str(label), map(str, known)).rstrip(".")
    raise ValueError(f"{label!r} is not among {name}: {shown}{near}")
