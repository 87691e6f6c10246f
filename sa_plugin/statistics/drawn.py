"""A number together with itself on other weights of the documents.

A statistic is computed on the data and again without each source document. `Drawn` holds all of it,
over named and labelled axes,

    values[*axes, column],   column 0 the data, column d > 0 without document d

so that every difference of two `Drawn` of the same documents is paired column by column, and an
interval is made of the last axis, the kind of statistic and the rows of each document that carry it:
`sa_plugin.statistics.interval`, which also says what an interval shows and what not. A quantile's
columns are bootstrap draws of documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from sa_plugin._check import did_you_mean
from sa_plugin._face import face, face_methods
from sa_plugin.statistics.interval import (
    ENOUGH,
    FEW,
    LEAST,
    NONE,
    Bounds,
    bounds_of,
    carriers,
    detectable_of,
    family,
)


@face
@dataclass(frozen=True)
class Resampling:
    """How intervals are made: without draws and seed but for quantiles and more than 200 documents.

    Attributes:
        draws: Bootstrap draws of the source documents, for quantiles.
        seed: Of those draws, and of the groups that more than 200 documents are left out in.
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


@face_methods
@dataclass(frozen=True, eq=False, repr=False)
class Drawn:
    """A statistic on the data and without each document.

    Attributes:
        values: Column 0 of the last axis is the data, each other one leaves a document out (of a quantile:
            is a bootstrap draw). Columns that a cell does not have are NaN.
        axes: Labels of every other axis, by the axis' name, in the order of `values`.
        kind: What kind of statistic each cell is (`interval.Kind`); axes of length 1 stand for all labels.
        carried: Rows of each document (last axis) that carry the statistic; axes of length 1 as above.
        level: Of the intervals.
        kept: The interval itself, where a record holds no columns.
        drawn_from: Digest of the documents; 0 where nobody said.
    """

    values: Float[np.ndarray, "*axes column"]
    axes: Mapping[str, Sequence[Any]]
    kind: Any
    carried: np.ndarray
    level: float = 0.95
    kept: Bounds | None = None
    drawn_from: int = 0

    def __post_init__(self) -> None:
        shape = tuple(len(labels) for labels in self.axes.values())
        if self.values.shape[:-1] != shape or not self.values.shape[-1]:
            sizes = {name: len(labels) for name, labels in self.axes.items()}
            raise ValueError(
                f"values of shape {self.values.shape} do not fit the axes {sizes} and a last axis of columns."
            )
        # One number of axes everywhere, so that an axis is found at the same place.
        object.__setattr__(self, "kind", _with_axes(np.asarray(self.kind), len(shape)))
        object.__setattr__(self, "carried", _with_axes(np.asarray(self.carried), len(shape) + 1))

    def __repr__(self) -> str:
        level = f"{100 * self.level:g} %"
        if self.axes:
            shape = ", ".join(f"{len(labels)} {name}s" for name, labels in self.axes.items())
            return f"Drawn({shape}; {level}, {self.units} documents)"
        low, high = self.bounds
        said = "; ".join(filter(None, (f"{level}, {int(self.documents)} documents", self.caution)))
        return f"{self.estimate:.3f} [{low:.3f}, {high:.3f}] ({said})"

    @property
    def units(self) -> int:
        """Documents, or groups of them, that were left out in turn."""
        return int(self.carried.shape[-1])

    @property
    def documents(self) -> Any:
        """Number of those that carry the statistic, over `axes`."""
        return np.broadcast_to(carriers(self.carried), self.values.shape[:-1])[()]

    @property
    def caution(self) -> str:
        """Of a number without axes: why it has no interval, that few documents carry it, or nothing."""
        return str(self.notes)

    @cached_property
    def notes(self) -> Any:
        """The same of every cell: a text, or an array of texts over `axes`; a record has none."""
        found = np.full(self.values.shape[:-1], "", dtype=object)
        if self.units:
            m = np.asarray(self.documents)
            found[m < ENOUGH] = FEW
            for n in range(LEAST):
                found[m == n] = f"{NONE} {n} of {LEAST} documents needed"
            found[np.broadcast_to(self.kind, found.shape) == "none"] = "no interval: biased"
        return found[()]

    @property
    def estimate(self) -> Any:
        """On the data as they are: an array over `axes`, a float where there are none."""
        return self.values[..., 0][()]

    @cached_property
    def bounds(self) -> Bounds:
        """The interval's two ends, over `axes`; NaN where there is none, see `caution`."""
        if self.kept is not None:
            return self.kept
        return bounds_of(self.values, self.carried, self.kind, self.level)

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
        """Where zero lies outside the interval, as a paired difference must show; each cell read alone."""
        return np.asarray((self.low > 0) | (self.high < 0))[()]

    @cached_property
    def p_of_family(self) -> Float64[np.ndarray, "*axes"]:
        """The p of zero in every cell, adjusted for reading all cells as one family (max-T)."""
        return family(self.values, self.carried, self.kind)

    @property
    def excludes_zero_in_family(self) -> Bool[np.ndarray, "*axes"] | np.bool_:
        """Where zero is excluded although all cells are looked at: wrong anywhere with chance 1 - level."""
        return np.asarray(self.p_of_family < 1 - self.level)[()]

    def detectable(self, null: float = 0.0, *, power: float = 0.8) -> Any:
        """Smallest true change upwards from `null` that the interval would have excluded it for.

        Not what was seen: what could have been, at this standard error and these documents. Its formula is
        in `sa_plugin.statistics.interval`.

        Args:
            null: The value where nothing happens; of shares between 0 and 1, such as .5.
            power: Chance of excluding the null if the change is true.

        Returns:
            In the number's unit, over `axes`; infinite where no change could have been seen.

        Raises:
            ValueError: A share against 0 or 1, which every share that varies excludes; or a record.

        Example:
            >>> from sa_plugin.statistics import bootstrap_mean
            >>> round(float(bootstrap_mean(np.arange(6.0), np.arange(6)).detectable()), 2)
            2.68
        """
        if not 0 < power < 1:
            raise ValueError(f"power {power} must lie between 0 and 1, such as 0.8.")
        if self.kept is not None:
            raise ValueError(
                "a record keeps this number's interval and no columns: nothing detectable of it."
            )
        if not 0 < null < 1 and bool((self.kind == "share").any()):
            raise ValueError(
                f"null is {null:g} for a share, which excludes 0 and 1 as soon as documents differ: give the "
                "share where nothing happens, such as 0.5, or a difference of two shares."
            )
        return detectable_of(self.values, self.carried, self.kind, self.level, power, null)[()]

    def could_have_seen(self, null: float = 0.0, *, power: float = 0.8) -> str:
        """The same of a number without axes, in words to stand beside "cannot be said"."""
        return seen_words(float(self.detectable(null, power=power)), self.caution, power)

    def like(self, values: Float[np.ndarray, "*shape column"]) -> Drawn:
        """Other values of the same axes, kind and documents."""
        return replace(self, values=values, kept=None)

    def __sub__(self, other: Drawn) -> Drawn:
        """The paired difference, column by column; the fewer documents that carry one of the two carry it.

        Raises:
            ValueError: The two have other documents or axes, or no columns.
        """
        for one in (self, other):
            if one.kept is not None:
                raise ValueError("a record keeps this number's interval and no columns: no difference of it.")
        others = self.drawn_from and other.drawn_from and self.drawn_from != other.drawn_from
        if others or self.values.shape != other.values.shape or list(self.axes) != list(other.axes):
            raise ValueError(
                f"{self!r} and {other!r} have other axes or documents: a paired difference needs the same, "
                "drawn from one Resamples."
            )
        return replace(
            self,
            values=self.values - other.values,
            kind=_kind_of_difference(self.kind, other.kind),
            carried=scarcer(self.carried, other.carried),
        )

    def __neg__(self) -> Drawn:
        kind = np.where(np.isin(self.kind, ("share", "none")), "difference", self.kind)
        kind = np.where(kind == "rate", "mean", kind)
        return replace(self, values=-self.values, kind=kind, kept=None)

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
            label = label.tolist() if isinstance(label, np.ndarray) else label
            several = isinstance(label, list | tuple)
            places = [_index(name, one, found.axes[name]) for one in (label if several else [label])]
            chosen: Any = places if several else places[0]
            axes = {
                k: (tuple(label) if k == name else v) for k, v in found.axes.items() if several or k != name
            }
            kept = found.kept and (found.kept[0].take(chosen, axis=at), found.kept[1].take(chosen, axis=at))
            found = replace(
                found,
                values=np.take(found.values, chosen, axis=at),
                axes=axes,
                kept=kept,
                kind=_taken(found.kind, chosen, at),
                carried=_taken(found.carried, chosen, at),
            )
        return found

    def mean(self, axis: str, weights: np.ndarray | None = None) -> Drawn:
        """Mean over an axis, carried by every document that carries a part of it.

        What is not defined in a column is left out of that column's mean.

        Args:
            axis: Its name.
            weights: One weight a label, or of the shape of `values` where columns have their own.
        """
        if self.kept is not None:
            raise ValueError("a record keeps this number's interval and no columns: no mean of it.")
        at = _index("axis", axis, list(self.axes))
        weight = np.ones(1) if weights is None else np.asarray(weights, dtype=np.float64)
        if weight.ndim == 1 and weights is not None:
            weight = np.expand_dims(weight, tuple(k for k in range(self.values.ndim) if k != at))
        fits = weight.ndim <= self.values.ndim and all(
            n in (1, of) for n, of in zip(weight.shape[::-1], self.values.shape[::-1], strict=False)
        )
        if not fits:
            raise ValueError(
                f"weights are {list(weight.shape)}, the values {list(self.values.shape)}: give one a "
                f"label of {axis!r}, or one a value."
            )
        weight = np.where(np.isnan(self.values), 0.0, np.broadcast_to(weight, self.values.shape))
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weight * np.nan_to_num(self.values)).sum(at) / weight.sum(at)
        axes = {name: labels for name, labels in self.axes.items() if name != axis}
        first = np.asarray(self.kind.take(0, axis=at))
        same = np.all(self.kind == np.expand_dims(first, at), axis=at)
        kind = np.where(same, first, "mean")
        return replace(self, values=np.asarray(mean), axes=axes, kind=kind, carried=self.carried.sum(at))

    def rows(self, measure: str) -> list[dict[str, Any]]:
        """Long form: one row a cell, with its labels, the measure's name, value, low, high and `notes`."""
        names = list(self.axes)
        labels = [list(self.axes[name]) for name in names]
        return [
            {
                **{name: labels[k][i] for k, (name, i) in enumerate(zip(names, at, strict=True))},
                **self.row(measure, *at),
            }
            for at in np.ndindex(self.values.shape[:-1])
        ]

    def row(self, measure: str, *at: int) -> dict[str, Any]:
        """One cell of the long form, without its labels.

        Args:
            measure: Name.
            *at: Place on every axis.
        """
        low, high = (np.asarray(one) for one in self.bounds)
        return {
            "measure": measure,
            "value": float(self.values[(*at, 0)]),
            "low": float(low[at]),
            "high": float(high[at]),
            "note": str(np.asarray(self.notes)[at]),
        }

    def to_dict(self) -> dict[str, Any]:
        """Axes, estimate, interval and the documents that carry it, as nested lists; not the columns."""
        return {
            "axes": {name: list(labels) for name, labels in self.axes.items()},
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "documents": self.documents,
        }


def stack(parts: Mapping[Any, Drawn], axis: str, *, last: bool = False) -> Drawn:
    """Several of the same axes and documents as one; what has fewer columns is filled with NaN.

    Args:
        parts: By their label.
        axis: Name of the new axis.
        last: Whether the new axis stands behind the others instead of before them.

    Raises:
        ValueError: There are none.
    """
    if not parts:
        raise ValueError(f"nothing to put along the axis {axis!r}.")
    found = list(parts.values())
    first = found[0]
    place = len(first.axes) if last else 0
    kept: Bounds | None = None
    if any(part.kept is not None for part in found):
        low, high = (np.stack([np.asarray(one.bounds[k]) for one in found], axis=place) for k in (0, 1))
        kept = (low, high)
    columns = 1 if kept is not None else max(part.values.shape[-1] for part in found)
    values = [_padded(part.values[..., :columns], columns) for part in found]
    axes = {**first.axes, axis: tuple(parts)} if last else {axis: tuple(parts), **first.axes}
    return replace(
        first,
        values=np.stack(values, axis=place),
        axes=axes,
        kind=_stacked([one.kind for one in found], place),
        carried=_stacked([one.carried for one in found], place),
        kept=kept,
    )


def seen_words(change: float, caution: str = "", power: float = 0.8) -> str:
    """What could have been seen, as it stands beside "cannot be said".

    Args:
        change: As `Drawn.detectable` gives it.
        caution: Why there is none, where there is none.
        power: That it was asked for.
    """
    if np.isfinite(change):
        return f"could have seen a change of {change:.3g} ({100 * power:g} % of the time)"
    return f"could have seen no change{': ' + caution if caution else ''}"


def few_words(shown: Iterable[Drawn], mark: str = "") -> str:
    """How many of some numbers few documents carry, and how many so few that there is no interval.

    Args:
        shown: The numbers.
        mark: How the former look, in brackets.
    """
    notes = [np.atleast_1d(one.notes).ravel() for one in shown]
    said = np.concatenate(notes) if notes else np.zeros(0, dtype=object)
    few, none = (int(sum(str(one).startswith(words) for one in said)) for words in (FEW, NONE))
    found = []
    if few:
        found.append(
            f"Few documents, {LEAST} to {ENOUGH - 1}, carry {few} of {len(said)} numbers{mark}: "
            "intervals hold, and are wide."
        )
    if none:
        found.append(
            f"Of {len(said)} numbers {none} have no interval: fewer than {LEAST} documents carry them."
        )
    return " ".join(found)


def scarcer(
    one: Float[np.ndarray, "*shape document"] | Int[np.ndarray, "*shape document"],
    other: Float[np.ndarray, "*other document"] | Int[np.ndarray, "*other document"],
) -> np.ndarray:
    """Cell by cell the rows by document that fewer documents have: of two groups, what both need."""
    if one is other:
        return one
    fewer = (carriers(one) <= carriers(other))[..., None]
    return np.where(fewer, one, other)


def _kind_of_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    shares = np.isin(one, ("share", "none")) & np.isin(other, ("share", "none"))
    quantile = (one == "quantile") | (other == "quantile")
    return np.where(quantile, "quantile", np.where(shares, "difference", "mean"))


def _with_axes(part: np.ndarray, ndim: int) -> np.ndarray:
    return part.reshape((1,) * (ndim - part.ndim) + part.shape)


def _taken(part: np.ndarray, chosen: Any, at: int) -> np.ndarray:
    """`take` along an axis whose length 1 stands for all labels."""
    if part.shape[at] > 1:
        return np.asarray(part.take(chosen, axis=at))
    return part if isinstance(chosen, list) else np.asarray(part.take(0, axis=at))


def _padded(values: np.ndarray, columns: int) -> np.ndarray:
    more = columns - values.shape[-1]
    if not more:
        return values
    return np.concatenate([values, np.full((*values.shape[:-1], more), np.nan)], axis=-1)


def _stacked(parts: Sequence[np.ndarray], place: int) -> np.ndarray:
    first = parts[0]
    if all(part is first or np.array_equal(part, first) for part in parts[1:]):
        return np.expand_dims(first, place)
    return np.stack(np.broadcast_arrays(*parts), axis=place)


def _index(name: str, label: Any, labels: Iterable[Any]) -> int:
    known = list(labels)
    if label in known:
        return known.index(label)
    shown = ", ".join(map(str, known[:12])) + (", ..." if len(known) > 12 else "")
    near = did_you_mean(str(label), map(str, known)).rstrip(".")
    raise ValueError(f"{label!r} is not among {name}: {shown}{near}")
