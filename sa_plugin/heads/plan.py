"""The linear maps of the ledger, made once: every head projected onto every concept vector.

In a pre-norm model (parallel blocks included) the residual is a plain sum of what was written,

    h = embedding + sum_{l,h} z_lh W_O[l,h] + sum_l b_O[l] + sum_l mlp_l,

so the dot score of `x = (h - mean) / rho` is a sum of one term a component. *Centred*:

    w . x = sum_i w . (c_i - mean_train(c_i)) / rho,

exact without any leftover, because the component means add up to the normaliser's mean; constants
(b_O) vanish. *Raw*, for vectors without component means: `w . c_i / rho`, with the terms "bias"
(all b_O) and "reference" = -w . mean / rho. A cosine score divides every term by that token's own
|x| |w|.

Heads are never formed as vectors in the residual stream: `z` is projected through `W_O w / rho`.

What a term does not show: what the model would do without the component (later parts respond to
earlier ones), nor why a head wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sa_plugin.concepts.bank import ComponentMeans, ConceptBank, VectorSet
from sa_plugin.heads.components import Column, Component, LedgerError, components
from sa_plugin.host import Host, HostInfo, Site

HOOK_POINTS = ("resid_pre", "resid_post")
RELATIVE_TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}


class BlockMaps(NamedTuple):
    """One block onto every column: what to multiply `z` and the MLP's output with.

    Columns whose layer lies before the block have zeros.
    """

    heads: Float[Tensor, "head d_head column"]
    heads_mean: Float[Tensor, "head column"]
    mlp: Float[Tensor, "d_model column"]
    mlp_mean: Float[Tensor, " column"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is needed to turn one batch's activations into terms.

    Attributes:
        info: Of the model.
        columns: What is decomposed.
        components: The terms, to the depth of the deepest column.
        centred: Whether component means are subtracted.
        source: The bank's vectors, scored as the bank scores them so that ties fall alike.
        places: Place of each column's layer in `source`.
        vectors: The vector, normaliser and scoring of each column; one "layer" a column.
        hook_point: Where scores are read.
        embedding, embedding_mean: As in `BlockMaps`.
        blocks: One record a block.
        constants: The values of "bias" and "reference", raw ledgers only.
    """

    info: HostInfo
    columns: tuple[Column, ...]
    components: tuple[Component, ...]
    centred: bool
    source: VectorSet
    places: tuple[int, ...]
    vectors: VectorSet
    hook_point: str
    embedding: Float[Tensor, "d_model column"]
    embedding_mean: Float[Tensor, " column"]
    blocks: tuple[BlockMaps, ...]
    constants: Float[Tensor, "constant column"]

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
    def sites(self) -> list[Site]:
        """Everything a batch has to read."""
        sites = {Site(0, "resid_pre")}
        for block in range(len(self.blocks)):
            sites |= {Site(block, "z"), Site(block, "mlp_out")}
        return sorted(sites | {self.site(column) for column in self.columns})

    def site(self, column: Column) -> Site:
        """Where a column's score is read."""
        return Site(column.layer, self.hook_point)  # type: ignore[arg-type]


def depth_of(layer: int, hook_point: str) -> int:
    """Number of blocks that write before a hook point."""
    return layer + (hook_point == "resid_post")


def build_plan(
    host: Host,
    bank: ConceptBank,
    columns: Sequence[Column],
    vectors: VectorSet,
    *,
    centred: bool,
) -> Plan:
    """Project the model's output weights onto the columns' vectors.

    Args:
        host: An attached model.
        bank: For its layers, hook point and component means.
        columns: What to decompose.
        vectors: `bank.token`, or `bank.permuted` for the control.
        centred: Subtract the bank's component means.

    Raises:
        NotImplementedError: Not a pre-norm model, or scores not read from the residual stream.
        LedgerError: The component means do not add up to the normaliser's mean.
    """
    check_supported(host.info, bank.hook_point)
    means = bank.component_means if centred else None
    chosen = _gather(vectors, bank, columns)
    directions = chosen.vectors[:, 0].T / chosen.scale
    depths = torch.tensor([depth_of(column.layer, bank.hook_point) for column in columns])
    maps, sums = _project_blocks(host, directions, depths, means)
    embedding_mean = torch.zeros(host.info.d_model)
    if means is not None:
        embedding_mean = means.embedding.float().cpu()
    reference = -(chosen.mean * directions.T).sum(-1)
    plan = Plan(
        info=host.info,
        columns=tuple(columns),
        components=components(host.info, len(maps), centred=centred),
        centred=centred,
        source=vectors,
        places=tuple(bank.index(column.layer) for column in columns),
        vectors=chosen,
        hook_point=bank.hook_point,
        embedding=directions,
        embedding_mean=embedding_mean @ directions,
        blocks=maps,
        constants=torch.stack([sums.bias, reference])[: 0 if centred else 2],
    )
    if centred:
        _check_means(plan, sums.mean + embedding_mean, sums.size + embedding_mean.norm())
    return plan


class _Sums(NamedTuple):
    """Over the blocks before each column: b_O as a term, the mean write, and summed norms."""

    bias: Float[Tensor, " column"]
    mean: Float[Tensor, "column d_model"]
    size: Float[Tensor, " column"]


def _project_blocks(
    host: Host,
    directions: Float[Tensor, "d_model column"],
    depths: Int[Tensor, " column"],
    means: ComponentMeans | None,
) -> tuple[tuple[BlockMaps, ...], _Sums]:
    maps = []
    width, n_columns = directions.shape
    bias_term, mean, size = torch.zeros(n_columns), torch.zeros(n_columns, width), 0.0
    for block in range(int(depths.max())):
        active = (depths > block).float()
        onto = directions * active
        weight, bias = host.output_projection(block)
        weight = weight.float().cpu()
        bias = torch.zeros(width) if bias is None else bias.float().cpu()
        z_mean, mlp_mean = _means(means, block, host.info)
        heads = torch.einsum("hkd,dc->hkc", weight, onto)
        heads_mean = torch.einsum("hk,hkc->hc", z_mean, heads)
        maps.append(BlockMaps(heads, heads_mean, onto, mlp_mean @ onto))
        writes = torch.stack([torch.einsum("hk,hkd->d", z_mean, weight), mlp_mean, bias])
        bias_term = bias_term + bias @ onto
        mean = mean + active[:, None] * writes.sum(0)
        size = size + active * writes.norm(dim=-1).sum()
    return tuple(maps), _Sums(bias_term, mean, size * torch.ones(n_columns))


def check_supported(info: HostInfo, hook_point: str) -> None:
    """Refuse models and hook points where a score is no plain sum of what was written.

    Raises:
        NotImplementedError: With the reason.
    """
    if info.block != "pre_norm":
        raise NotImplementedError(
            f"the ledger is defined for pre-norm models; {info.model} ({info.architecture}) is "
            f"{info.block}: its blocks normalise what they write, so a head's write to the "
            "residual stream depends on the other heads' and no plain sum of z W_O is the score."
        )
    if hook_point not in HOOK_POINTS:
        raise NotImplementedError(
            f"the ledger decomposes scores of the residual stream ({' or '.join(HOOK_POINTS)}); "
            f"this bank is read at {hook_point!r}, which one layer writes alone."
        )


def _gather(vectors: VectorSet, bank: ConceptBank, columns: Sequence[Column]) -> VectorSet:
    at = [bank.index(column.layer) for column in columns]
    picked = torch.stack(
        [vectors.vectors[k, column.unit] for k, column in zip(at, columns, strict=True)]
    )
    return VectorSet(
        picked[:, None].float().cpu(), vectors.mean[at].float().cpu(),
        vectors.scale[at].float().cpu(), vectors.scoring,
    )  # fmt: skip


def _means(
    means: ComponentMeans | None, block: int, info: HostInfo
) -> tuple[Float[Tensor, "head d_head"], Float[Tensor, " d_model"]]:
    if means is None:
        return torch.zeros(info.n_heads, info.d_head), torch.zeros(info.d_model)
    if block >= len(means.z):
        raise LedgerError(
            f"the bank's component means end before block {block}: they were collected for "
            f"shallower layers. Fit with layers that reach block {block}."
        )
    return means.z[block].float().cpu(), means.mlp[block].float().cpu()


def _check_means(
    plan: Plan, total: Float[Tensor, "column d_model"], sizes: Float[Tensor, " column"]
) -> None:
    off = (total - plan.vectors.mean).norm(dim=-1) / sizes.clamp_min(1e-30)
    worst = int(off.argmax())
    if not float(off[worst]) <= plan.tolerance:
        column = plan.columns[worst]
        raise LedgerError(
            f"the component means up to {plan.hook_point} of block {column.layer} add up to a "
            f"vector that misses the normaliser's mean by {float(off[worst]):.1e} of the summed "
            f"norms (tolerance {plan.tolerance:.0e}): they were taken over other tokens than the "
            "normaliser, or a part of the model that writes to the residual stream is not listed."
        )
