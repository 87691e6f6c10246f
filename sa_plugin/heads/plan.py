"""The linear maps of the ledger, made once: every head projected onto every concept vector.

In a pre-norm model (parallel blocks included) the residual is a plain sum of what was written,

    h = embedding + sum_{l,h} z_lh W_O[l,h] + sum_l b_O[l] + sum_l mlp_l,

so the dot score of `x = (h - mean) / rho` is a sum of one term a component. Norms behind attention
or MLP (Gemma-2, BERT) are carried along as linear maps with the scale of each token (`frozen.py`):
every part is multiplied with a factor f of that token. *Centred*:

    w . x = sum_i w . (f_i c_i - mean_train(f_i c_i)) / rho,

exact without any leftover, because the component means add up to the normaliser's mean. Constants
(b_O of a pre-norm model) vanish; biases that a norm rescales do not, and are terms of their own,
"L3 bias x scale" (b_O, and the biases of the norms behind attention and MLP; those inside an MLP
are part of it). *Raw*, without means: `w . f_i c_i / rho`, with the terms "bias" (all b_O) and
"reference" = -w . mean / rho. A cosine score divides every term by that token's own |x| |w|.

Heads are never formed as vectors in the residual stream: `z` is projected through `W_O w / rho`.

What a term does not show: what the model would do without the component (later parts respond to
earlier ones), nor why a head wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.heads.components import Column, Component, LedgerError, components
from sa_plugin.heads.frozen import Factors, FrozenNorms, Scales, carry_back, norm_bias
from sa_plugin.heads.means import ScaledMeans
from sa_plugin.heads.target import Target, Terms
from sa_plugin.host import Host, Site


class BlockMaps(NamedTuple):
    """One block onto every column: what to multiply `z`, the MLP's output and factors with.

    Columns whose layer lies before the block have zeros. `mean` is what is taken off the block's
    components.
    """

    heads: Float[Tensor, "head d_head column"]
    mlp: Float[Tensor, "d_model column"]
    bias: Float[Tensor, "3 column"]
    mean: Float[Tensor, "component column"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is needed to turn one batch's activations into terms.

    Attributes:
        target: What is decomposed.
        components: The terms, to the depth of the deepest column.
        centred: Whether component means are subtracted.
        frozen: Norms behind attention and MLP.
        embedding, embedding_mean: As in `BlockMaps`.
        blocks: One record a block.
        constants: The values of "bias" and "reference", as far as they are terms.
        scaled_biases: Whether biases are terms of each block.
    """

    target: Target
    components: tuple[Component, ...]
    centred: bool
    frozen: FrozenNorms
    embedding: Float[Tensor, "d_model column"]
    embedding_mean: Float[Tensor, " column"]
    blocks: tuple[BlockMaps, ...]
    constants: Float[Tensor, "constant column"]
    scaled_biases: bool

    @property
    def sites(self) -> list[Site]:
        """Everything a batch has to read."""
        sites = {Site(0, "resid_pre")} | self.frozen.sites | self.target.sites
        for block in range(len(self.blocks)):
            sites |= {Site(block, "z"), Site(block, "mlp_out")}
        return sorted(sites)

    def terms(self, read: Mapping[Site, Tensor], scales: Scales | None = None) -> Iterator[Terms]:
        """Terms as dot products, a block at a time, and the means that were taken off them.

        Args:
            read: What was read of a batch.
            scales: Of the batch, where they are already measured.
        """
        h = read[Site(0, "resid_pre")].float()
        scales = scales or self.frozen.scales(read)
        factors, entry = self.frozen.factors(scales, self.target.depths)
        mean = self.embedding_mean.to(h.device)[None]
        embedding = _times(h @ self.embedding.to(h.device), entry)
        yield embedding[:, :, None] - mean, mean
        for block, (maps, factor) in enumerate(zip(self.blocks, factors, strict=True)):
            mean = maps.mean.to(h.device)
            yield self._block(read, block, maps, factor) - mean, mean
        if len(self.constants):
            constant = self.constants.to(h.device)
            yield constant.expand(*h.shape[:2], *constant.shape), torch.zeros_like(constant)

    def _block(
        self, read: Mapping[Site, Tensor], block: int, maps: BlockMaps, factor: Factors
    ) -> Float[Tensor, "batch token component column"]:
        z = read[Site(block, "z")].float()
        heads = torch.einsum("bthk,hkc->bthc", z, maps.heads.to(z.device))
        if factor.attention is not None:
            heads = heads * factor.attention[:, :, None]
        mlp = read[Site(block, "mlp_out")].float() @ maps.mlp.to(z.device)
        parts = [heads, _times(mlp, factor.mlp)[:, :, None]]
        if self.scaled_biases:
            one = torch.ones_like(mlp)
            bias = sum(
                _times(one * coefficient.to(z.device), f)
                for coefficient, f in zip(maps.bias, factor, strict=True)
            )
            assert isinstance(bias, Tensor)
            parts.append(bias[:, :, None])
        return torch.cat(parts, dim=2)


def _times(
    values: Float[Tensor, "batch token column"],
    factor: Float[Tensor, "batch token #column"] | None,
) -> Float[Tensor, "batch token column"]:
    return values if factor is None else values * factor


def build_plan(
    host: Host,
    bank: ConceptBank,
    columns: Sequence[Column],
    vectors: VectorSet,
    *,
    means: ScaledMeans | None,
    frozen: FrozenNorms | None = None,
) -> Plan:
    """Project the model's output weights onto the columns' vectors.

    Args:
        host: An attached model.
        bank: For its layers and hook point.
        columns: What to decompose.
        vectors: `bank.token`, or others of its shape for the control.
        means: Subtract these; raw without.
        frozen: Of the host, where they are already read.

    Raises:
        NotImplementedError: Scores are not read from the residual stream, or norms behind
            attention are unknown.
        LedgerError: The component means do not add up to the normaliser's mean.
    """
    target = Target.of(host.info, bank, columns, vectors)
    depth = max(target.depths)
    frozen = frozen or FrozenNorms.of(host, depth)
    carried, embedding = carry_back(frozen, target.directions, target.depths)
    maps = []
    for block in range(depth):
        weight, bias = host.output_projection(block)
        heads = torch.einsum("hkd,dc->hkc", weight.float().cpu(), carried[block].attention)
        biases = norm_bias(frozen.block, frozen.norms[block], carried[block], bias)
        maps.append(BlockMaps(heads, carried[block].mlp, biases, torch.zeros(0, len(columns))))
    scaled = frozen.block != "pre_norm" and any(bool(one.bias.any()) for one in maps)
    constants = _constants(target, maps, means is not None, scaled)
    plan = Plan(
        target, components(host.info, depth, centred=means is not None, scaled_biases=scaled),
        means is not None, frozen, embedding, *_means(means, target, embedding, maps, scaled),
        constants, scaled,
    )  # fmt: skip
    if means is not None:
        _check_means(plan)
    return plan


def _constants(
    target: Target, maps: Sequence[BlockMaps], centred: bool, scaled: bool
) -> Float[Tensor, "constant column"]:
    reference = target.reference
    if centred:
        return reference.new_zeros(0, len(reference))
    if scaled:
        return reference[None]
    bias = torch.stack([torch.zeros_like(reference), *(one.bias[0] for one in maps)]).sum(0)
    return torch.stack([bias, reference])


def _means(
    means: ScaledMeans | None,
    target: Target,
    embedding: Float[Tensor, "d_model column"],
    maps: Sequence[BlockMaps],
    scaled: bool,
) -> tuple[Float[Tensor, " column"], tuple[BlockMaps, ...]]:
    info, n = target.info, len(target.columns)
    if means is None:
        zero = torch.zeros(info.n_heads + 1 + scaled, n)
        return torch.zeros(n), tuple(one._replace(mean=zero) for one in maps)
    rows = torch.tensor([means.row(depth) for depth in target.depths])
    entry = torch.einsum("cd,dc->c", means.embedding[rows], embedding)
    centred = []
    for block, one in enumerate(maps):
        parts = [
            torch.einsum("chk,hkc->hc", means.z[rows, block], one.heads),
            torch.einsum("cd,dc->c", means.mlp[rows, block], one.mlp)[None],
        ]
        if scaled:
            parts.append(torch.einsum("cf,fc->c", means.scale[rows, block], one.bias)[None])
        centred.append(one._replace(mean=torch.cat(parts)))
    return entry, tuple(centred)


def _check_means(plan: Plan) -> None:
    """Hold the means against the normaliser's mean, of which b_O of a pre-norm model is part."""
    target = plan.target
    parts = [plan.embedding_mean[None], *(one.mean for one in plan.blocks)]
    if not plan.scaled_biases:
        parts += [one.bias[:1] for one in plan.blocks]
    terms = torch.cat(parts)
    size = terms.abs().sum(0) + target.reference.abs()
    off = (terms.sum(0) + target.reference).abs() / size.clamp_min(1e-30)
    worst = int(off.argmax())
    if not float(off[worst]) <= target.tolerance:
        column = target.columns[worst]
        raise LedgerError(
            f"the component means up to {target.hook_point} of block {column.layer} add up to a "
            f"score of {column.concept!r} that misses the normaliser's mean by "
            f"{float(off[worst]):.1e} of their summed sizes (tolerance {target.tolerance:.0e}): "
            "they were taken over other tokens than the normaliser, or a part of the model that "
            "writes to the residual stream is not listed."
        )
