"""Which directions a check follows through the model, and where each is measured from.

    a_i = v . (h_i - mu),  v of unit length in the residual stream's own space

| direction | v at the input of block l | at its output |
|---|---|---|
| fixed | the concept's vector of one chosen layer | the same |
| refitted | the bank's vector fitted at the input | the bank's vector fitted at the output |

Each comes for the concept vectors and for the vectors of permuted labels; isotropic random
directions are fixed. A refitted block needs vectors on both of its sides: elsewhere v is 0, and
every quantity of it NaN.

mu is the train mean where the bank has it; 0 where the bank has raw vectors; else the mean of the
sample's own kept tokens, which is named in the report. Gaps, slopes, variances and skewness do not
depend on mu; the sign of a query (C1) and a / max a (C2) do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.host import HostInfo

Direction = Literal["fixed", "refitted"]
Role = Literal["concept", "permuted", "random"]


class Followed(NamedTuple):
    """One column: a direction followed through the layers.

    Attributes:
        concept: Whose vector; "" for random directions.
        direction: "fixed" or "refitted".
        role: "concept", "permuted" or "random".
    """

    concept: str
    direction: str
    role: str


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit directions at the input and output of every block checked.

    Attributes:
        layers: Blocks.
        columns: What is followed.
        read, write: v at each block's input and output; 0 where the bank has none.
        origin_in, origin_out: mu there.
        own_mean: Whether mu at (input, output) is instead each sample's own mean.
        chosen: Layer of each concept's fixed vector.
    """

    layers: tuple[int, ...]
    columns: tuple[Followed, ...]
    read: Float[Tensor, "layer d_model column"]
    write: Float[Tensor, "layer d_model column"]
    origin_in: Float[Tensor, "layer d_model"]
    origin_out: Float[Tensor, "layer d_model"]
    own_mean: Bool[Tensor, "layer side"]
    chosen: Mapping[str, int]

    def where(self, concept: str, direction: str) -> dict[str, list[int]]:
        """Columns of a concept by role; "permuted" is its own, "every control" all there are.

        Random directions are fixed, and stand beside refitted ones as well.
        """
        found: dict[str, list[int]] = {}
        for k, column in enumerate(self.columns):
            same = column.direction == direction
            if column.role == "random" or (same and column.concept == concept):
                found.setdefault(column.role, []).append(k)
            if column.role == "random" or (same and column.role == "permuted"):
                found.setdefault("every control", []).append(k)
        return found


def build_directions(
    bank: ConceptBank,
    info: HostInfo,
    chosen: Mapping[str, tuple[int, int]],
    layers: Sequence[int],
    n_random: int,
    seed: int,
) -> Directions:
    """Directions of some concepts at some blocks.

    Args:
        bank: Vectors read at the residual stream.
        info: Of the model.
        chosen: For each concept the layer of its fixed vector and its unit.
        layers: Blocks to check.
        n_random: Random directions.
        seed: Of the random directions.

    Raises:
        ValueError: The bank's vectors do not live in the residual stream.
    """
    if bank.hook_point not in ("resid_pre", "resid_post"):
        raise ValueError(
            f"the bank is read at {bank.hook_point!r}: gaps from block to block are defined for "
            "the residual stream. Fit with hook_point='resid_post'."
        )
    columns, read, write = [], [], []
    # Concept columns first: the pass predicts patterns for them alone.
    for role, vectors in (("concept", bank.token), ("permuted", bank.permuted)):
        if vectors is None:
            continue
        for concept, (layer, unit) in chosen.items():
            for direction in ("fixed", "refitted") if bank.supervised else ("fixed",):
                ends = [_ends(bank, vectors, unit, block, layer, direction) for block in layers]
                columns.append(Followed(concept, direction, role))
                read.append(torch.stack([one for one, _ in ends]))
                write.append(torch.stack([other for _, other in ends]))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_random):
        vector = _unit(torch.randn(info.d_model, generator=generator, dtype=torch.float64))
        columns.append(Followed("", "fixed", "random"))
        read.append(vector.expand(len(layers), -1))
        write.append(vector.expand(len(layers), -1))
    origins = [[_origin(bank, state) for state in (block, block + 1)] for block in layers]
    zero = torch.zeros(info.d_model, dtype=torch.float64)
    filled = [[zero if mean is None else mean for mean in pair] for pair in origins]
    return Directions(
        tuple(layers),
        tuple(columns),
        torch.stack(read, dim=-1),
        torch.stack(write, dim=-1),
        torch.stack([pair[0] for pair in filled]),
        torch.stack([pair[1] for pair in filled]),
        torch.tensor([[mean is None for mean in pair] for pair in origins]),
        {concept: layer for concept, (layer, _) in chosen.items()},
    )


def _ends(
    bank: ConceptBank, vectors: VectorSet, unit: int, block: int, layer: int, direction: str
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    if direction == "fixed":
        one = _unit(vectors.vectors[bank.index(layer), unit].double())
        return one, one
    states = _states(bank)
    if block not in states or block + 1 not in states:
        zero = torch.zeros(vectors.vectors.shape[-1], dtype=torch.float64)
        return zero, zero
    at, then = states[block], states[block + 1]
    return _unit(vectors.vectors[at, unit].double()), _unit(vectors.vectors[then, unit].double())


def _states(bank: ConceptBank) -> dict[int, int]:
    """Place in the bank by state: state l enters block l, state l + 1 leaves it."""
    shift = 1 if bank.hook_point == "resid_post" else 0
    return {layer + shift: k for k, layer in enumerate(bank.layers)}


def _origin(bank: ConceptBank, state: int) -> Float[Tensor, " d_model"] | None:
    states = _states(bank)
    if state in states:
        return bank.token.mean[states[state]].double().cpu()
    if state == 0 and bank.component_means is not None:
        return bank.component_means.embedding.double().cpu()
    if not bank.token.mean.any():
        return torch.zeros(bank.token.mean.shape[-1], dtype=torch.float64)
    return None


def _unit(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    unit: Tensor = vector.cpu() / vector.cpu().norm()
    return unit
