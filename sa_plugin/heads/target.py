"""What a ledger decomposes: scores of some columns, measured exactly as the bank scores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.heads.components import Column, Component
from sa_plugin.host import HostInfo, Site

HOOK_POINTS = ("resid_pre", "resid_post")
RELATIVE_TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}
_SMALL = 1e-8
# Terms of some components, and the means that were taken off them.
Terms = tuple[Float[Tensor, "batch token component column"], Float[Tensor, "component column"]]


@dataclass(frozen=True, eq=False)
class Target:
    """Columns, their vectors, and where they are read.

    Attributes:
        info: Of the model.
        columns: What is decomposed.
        source: The vectors as a bank scores them, so that ties fall alike.
        places: Place of each column's layer in `source`.
        vectors: The vector, normaliser and scoring of each column; one "layer" a column.
        hook_point: Where scores are read.
    """

    info: HostInfo
    columns: tuple[Column, ...]
    source: VectorSet
    places: tuple[int, ...]
    vectors: VectorSet
    hook_point: str

    @classmethod
    def of(
        cls, info: HostInfo, bank: ConceptBank, columns: Sequence[Column], vectors: VectorSet
    ) -> Target:
        """Columns of `vectors`: `bank.token`, or others of its shape."""
        check_supported(bank.hook_point)
        at = [bank.index(column.layer) for column in columns]
        picked = [vectors.vectors[k, c.unit] for k, c in zip(at, columns, strict=True)]
        chosen = VectorSet(
            torch.stack(picked)[:, None].float().cpu(), vectors.mean[at].float().cpu(),
            vectors.scale[at].float().cpu(), vectors.scoring,
        )  # fmt: skip
        return cls(info, tuple(columns), vectors, tuple(at), chosen, bank.hook_point)

    @property
    def cosine(self) -> bool:
        """Whether scores are cosines."""
        return self.vectors.scoring == "cosine"

    @property
    def tolerance(self) -> float:
        """Largest residue allowed, relative to the sum of the raw terms' sizes."""
        return RELATIVE_TOLERANCE.get(self.info.dtype.removeprefix("torch."), 1e-5)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks that write before each column's score is read."""
        return tuple(depth_of(column.layer, self.hook_point) for column in self.columns)

    @property
    def sites(self) -> set[Site]:
        """Where scores are read."""
        return {self.site(column) for column in self.columns}

    def site(self, column: Column) -> Site:
        """Where a column's score is read."""
        return Site(column.layer, self.hook_point)  # type: ignore[arg-type]

    @cached_property
    def directions(self) -> Float[Tensor, "d_model column"]:
        """W / rho of each column."""
        directions: Tensor = self.vectors.vectors[:, 0].T / self.vectors.scale
        return directions

    @cached_property
    def lengths(self) -> Float[Tensor, " column"]:
        """|w| of each column."""
        lengths: Tensor = self.vectors.vectors[:, 0].norm(dim=-1)
        return lengths

    @property
    def reference(self) -> Float[Tensor, " column"]:
        """-w . mean / rho, what a raw sum of terms misses."""
        return -(self.vectors.mean * self.directions.T).sum(-1)


@runtime_checkable
class Decomposition(Protocol):
    """A way to split the scores of a target into components."""

    @property
    def target(self) -> Target:
        """What is split."""

    @property
    def components(self) -> tuple[Component, ...]:
        """The names of the terms."""

    @property
    def sites(self) -> list[Site]:
        """Everything a batch has to read."""

    def terms(self, read: Mapping[Site, Tensor]) -> Iterator[Terms]:
        """Terms as dot products, some components at a time, in order."""


def depth_of(layer: int, hook_point: str) -> int:
    """Number of blocks that write before a hook point."""
    return layer + (hook_point == "resid_post")


def check_supported(hook_point: str) -> None:
    """Refuse hook points where a score is no sum of what the model wrote.

    Raises:
        NotImplementedError: With the reason.
    """
    if hook_point not in HOOK_POINTS:
        raise NotImplementedError(
            f"the ledger decomposes scores of the residual stream ({' or '.join(HOOK_POINTS)}); "
            f"this bank is read at {hook_point!r}, which one layer writes alone."
        )


class Scored(NamedTuple):
    """Measured scores of a batch and what one unit of dot product is worth in them.

    Attributes:
        score: As the bank scores.
        divisor: |x| |w| of each token for cosines, else 1.
        bound: |w| |h| / rho.
    """

    score: Float[Tensor, "batch token column"]
    divisor: Float[Tensor, "batch token column"]
    bound: Float[Tensor, "batch token column"]


def measure(target: Target, read: Mapping[Site, Tensor]) -> Scored:
    """Score a batch exactly as the bank does."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    by_layer: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    source = target.source
    for k, (column, place) in enumerate(zip(target.columns, target.places, strict=True)):
        if place not in by_layer:
            h = read[target.site(column)].float()
            x = (h - source.mean[place].to(h.device)) / source.scale[place].to(h.device)
            norms = x.norm(dim=-1), h.norm(dim=-1) / float(source.scale[place])
            by_layer[place] = (source.score(place, h), *norms)
        scores, x_norm, h_norm = by_layer[place]
        length = float(target.lengths[k])
        size = (x_norm * length).clamp_min(_SMALL) if target.cosine else torch.ones_like(x_norm)
        parts.append((scores[..., column.unit], size, h_norm * length))
    return Scored(*(torch.stack(one, dim=-1) for one in zip(*parts, strict=True)))
