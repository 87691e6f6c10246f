"""Norms behind attention and MLP as linear maps, and train means of what passes through them.

A norm `n(y) = g * C(y) / s + b` (`C` subtracts the mean over d_model, or does nothing; `s` is the
scale of this token) is linear in y once `s` is known: it is *frozen*, measured token by token. So for
a direction u

    u . n(y) = C(g * u) . y / s + u . b,

and `u` can be carried back through any number of norms: the directions are fixed, only one scalar a
token collects the scales. With h the stream before a block, a the raw output of attention, M what
the MLP adds:

    post_norm    h' = h + n1(a) + M                 s1 is the scale of a
    post_ln      h' = n2(n1(h + a) + M)             s1 of h + a, s2 of n1(h + a) + M
    staged       h' = h + a + M; between two blocks h = n(h') + t      s of h'

Everything before a post_ln block is divided by its s1 s2, the embedding included; everything before
the joint of a staged model by its s, where the score is read behind it. The constant t (Mllama's
tile embedding) counts as the bias of n.

Terms are centred with train means of what each part c_i contributes,

    score = sum_i w . (f_i c_i - mean_train(f_i c_i)) / rho,

where f_i is the product of the frozen scales between part i and the score, 1 in a pre-norm model.
There the means are those of the activations, and a bank has them (`bank.component_means`). Where a
norm stands behind attention or MLP, f varies over tokens and the mean of the product is what closes:
one pass over the train split collects it for every vector at once, since means are linear in w. In a
post_ln or staged model f depends on how deep the score is read, so there is a record for each depth.
Kept tokens are those the vectors were fitted on (same sink rule), and the means are held against the
normaliser's mean when a ledger is planned.

What a term through a frozen norm does not show: without a component the scale would be another, so
terms are no prediction of an ablation, and less so than in a pre-norm model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.concepts.bank import ComponentMeans, ConceptBank
from sa_plugin.heads.columns import LedgerError
from sa_plugin.host.protocol import (
    FINAL_NORM,
    Block,
    BlockNorms,
    Host,
    HostInfo,
    Norm,
    OutputProjection,
    Point,
    Site,
    require_described,
)
from sa_plugin.host.reducers import Keeping, keeping
from sa_plugin.host.weights import centre
from sa_plugin.passes.run import Job, Kept

_NO_NORMS = BlockNorms(None, None, None, None)


class Scales(NamedTuple):
    """One over the measured scale of each block's norms behind attention and MLP; None where 1.

    `entry` is of the norm of the whole stream before a block.
    """

    attention: tuple[Float[Tensor, "batch token"] | None, ...]
    mlp: tuple[Float[Tensor, "batch token"] | None, ...]
    entry: tuple[Float[Tensor, "batch token"] | None, ...] = ()


class Factors(NamedTuple):
    """What a block's writes are multiplied with on their way to each column; None where 1.

    `attention` is of what attention writes, `mlp` of what the MLP writes, `out` of what the norm
    behind the block adds.
    """

    attention: Float[Tensor, "batch token #column"] | None = None
    mlp: Float[Tensor, "batch token #column"] | None = None
    out: Float[Tensor, "batch token #column"] | None = None


def check_joints(host: Host, bank: ConceptBank) -> None:
    """Refuse a bank read between a joint of a staged model and the block behind it.

    Raises:
        NotImplementedError: With the block and where to fit instead.
    """
    if host.info.block != "staged" or bank.hook_point != "resid_pre":
        return
    described = require_described(host)
    for block in bank.layers:
        if described.norms(block).entry is not None:
            raise NotImplementedError(
                f"resid_pre of block {block} of {host.info.model} lies behind the norm that joins "
                "its two stacks, which is not counted to any block: fit with "
                "hook_point='resid_post', or leave this block out."
            )


@dataclass(frozen=True, eq=False)
class FrozenNorms:
    """The norms behind attention and MLP of the first blocks.

    Attributes:
        block: How blocks add up.
        norms: One record a block.
        projections: Output projections, where the raw output of attention is recomputed from z.
    """

    block: Block
    norms: tuple[BlockNorms, ...]
    projections: tuple[OutputProjection, ...]

    @classmethod
    def of(cls, host: Host, depth: int) -> FrozenNorms:
        """Of the first `depth` blocks.

        Raises:
            NotImplementedError: The blocks have such norms and the host does not hand them out, or
                says that they are none.
        """
        kind = host.info.block
        if FINAL_NORM in host.info.processing and depth == host.info.n_layers:
            raise NotImplementedError(
                f"{host.info.model} is attached with final_norm=True: what its last block gives is "
                "read behind the final norm and is no sum of what the model wrote. Attach without "
                "it, or decompose an earlier block."
            )
        if kind == "pre_norm":
            return cls(kind, (_NO_NORMS,) * depth, ())
        try:
            described = require_described(host)
            norms = tuple(described.norms(block) for block in range(depth))
        except (TypeError, ValueError) as error:
            raise NotImplementedError(
                f"{host.info.model} ({host.info.architecture}) is {kind}: what its heads add to "
                f"the residual stream passes a norm, which has to be known. {error}"
            ) from error
        # attn_out is read behind a post_norm block's norm: what that norm saw is remade from z.
        raw = kind == "post_norm"
        return cls(kind, norms, tuple(host.output_projection(b) for b in range(depth) if raw))

    @property
    def sites(self) -> set[Site]:
        """What the scales are measured from."""
        blocks = range(len(self.norms))
        if self.block == "post_norm":
            return {Site(b, "z") for b in blocks}
        if self.block == "post_ln":
            points: tuple[Point, ...] = ("resid_pre", "attn_out", "mlp_out")
            return {Site(b, point) for b in blocks for point in points}
        return {Site(b - 1, "resid_post") for b in blocks if self.norms[b].entry is not None}

    @property
    def by_depth(self) -> bool:
        """Whether a part's factor depends on how deep the score is read."""
        return self.block in ("post_ln", "staged")

    def scales(self, read: Mapping[Site, Tensor]) -> Scales:
        """Measure a batch."""
        if self.block == "staged":
            # Blocks themselves are pre-norm; only the joints between stacks rescale the stream.
            entry = tuple(
                None
                if norms.entry is None
                else _inverse_scale(norms.entry, read[Site(b - 1, "resid_post")].float())
                for b, norms in enumerate(self.norms)
            )
            return Scales((None,) * len(entry), (None,) * len(entry), entry)
        attention: list[Tensor | None] = []
        mlp: list[Tensor | None] = []
        for block, norms in enumerate(self.norms):
            if self.block == "pre_norm" or norms.attn_out is None:
                attention.append(None)
                mlp.append(None)
            elif self.block == "post_norm":
                attention.append(_inverse_scale(norms.attn_out, self._raw(block, read)))
                mlp.append(None)
            else:
                # h + a, what the first norm sees; then its output and the MLP's, what the second sees.
                total = read[Site(block, "resid_pre")].float() + read[Site(block, "attn_out")]
                attention.append(_inverse_scale(norms.attn_out, total))
                middle = frozen_norm(norms.attn_out, total) + read[Site(block, "mlp_out")].float()
                assert norms.mlp_out is not None
                mlp.append(_inverse_scale(norms.mlp_out, middle))
        return Scales(tuple(attention), tuple(mlp))

    def _raw(self, block: int, read: Mapping[Site, Tensor]) -> Float[Tensor, "batch token d_model"]:
        z = read[Site(block, "z")].float()
        weight, bias = self.projections[block]
        # Heads and their dimensions flatten into one axis: the sum over both is one matrix product.
        raw = z.flatten(2) @ weight.to(z.device).flatten(0, 1)
        return raw if bias is None else raw + bias.to(z.device)

    def factors(
        self, scales: Scales, depths: Sequence[int]
    ) -> tuple[list[Factors], Float[Tensor, "batch token #column"] | None]:
        """Factors of each block, and of the embedding, for columns read after `depths` blocks."""
        if self.block == "staged":
            return _staged_factors(scales.entry, depths)
        if self.block != "post_ln":
            return [Factors(None if one is None else one[..., None]) for one in scales.attention], None
        before = torch.tensor(depths)
        carried: Tensor | None = None
        out: list[Factors] = []
        # From the last block to the first, collecting the scales between a block and each score.
        for block in reversed(range(len(self.norms))):
            one, two = scales.attention[block], scales.mlp[block]
            assert one is not None
            assert two is not None
            if carried is None:
                carried = torch.ones(*one.shape, len(depths), device=one.device)
            # The MLP's write passes n2 alone, attention's n1 and then n2; `carried` is what follows.
            mlp = carried * two[..., None]
            attention = mlp * one[..., None]
            out.append(Factors(attention, mlp, carried))
            # A score read before this block does not pass its norms: its factor stays 1.
            carried = torch.where((before > block).to(one.device), attention, carried)
        return out[::-1], carried


def _staged_factors(
    entry: Sequence[Float[Tensor, "batch token"] | None], depths: Sequence[int]
) -> tuple[list[Factors], Float[Tensor, "batch token column"] | None]:
    """What lies before a joint is scaled by it, for columns read behind it."""
    before = torch.tensor(depths)
    carried: Tensor | None = None
    out: list[Factors] = []
    for block in reversed(range(len(entry))):
        # What a block writes meets the joints behind it, so it is recorded before its own.
        out.append(Factors(carried, carried, carried))
        scale = entry[block]
        if scale is not None:
            one = torch.ones_like(scale)[..., None]
            here = torch.where((before > block).to(scale.device), scale[..., None], one)
            carried = here if carried is None else carried * here
    return out[::-1], carried


def _inverse_scale(norm: Norm, y: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token"]:
    """One over the scale a norm divides each token by."""
    return (centre(norm, y).square().mean(-1) + norm.eps).rsqrt()


def frozen_norm(norm: Norm, y: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token d_model"]:
    """The norm itself."""
    out = centre(norm, y) * _inverse_scale(norm, y)[..., None] * norm.gain.to(y.device)
    return out if norm.bias is None else out + norm.bias.to(y.device)


def _back(norm: Norm | None, directions: Float[Tensor, "d_model column"]) -> Float[Tensor, "d_model column"]:
    """Directions as the input of a norm sees them, but for its scale: `C(g * u)`."""
    if norm is None:
        return directions
    # C is symmetric, so the mean over d_model is taken off the direction instead of the stream.
    return centre(norm, (norm.gain[:, None] * directions).T).T


class Carried(NamedTuple):
    """Directions as each part of a block sees them: attention's, the MLP's, and its output."""

    attention: Float[Tensor, "d_model column"]
    mlp: Float[Tensor, "d_model column"]
    out: Float[Tensor, "d_model column"]


def through_block(
    kind: Block, norms: BlockNorms, out: Float[Tensor, "d_model column"]
) -> tuple[Carried, Float[Tensor, "d_model column"]]:
    """Carry directions from behind a block to its parts, and to the stream before it."""
    if kind != "post_ln":
        return Carried(_back(norms.attn_out, out), out, out), out
    mlp = _back(norms.mlp_out, out)
    attention = _back(norms.attn_out, mlp)
    return Carried(attention, mlp, out), attention


def carry_back(
    frozen: FrozenNorms, directions: Float[Tensor, "d_model column"], depths: Sequence[int]
) -> tuple[list[Carried], Float[Tensor, "d_model column"]]:
    """Directions at every block, zero for columns read before it, and at the embedding."""
    before = torch.tensor(depths)
    stream = torch.zeros_like(directions)
    out: list[Carried] = []
    for block in reversed(range(len(frozen.norms))):
        # A score read behind this block sets out here; deeper ones are on their way already.
        stream = torch.where(before == block + 1, directions, stream)
        carried, stream = through_block(frozen.block, frozen.norms[block], stream)
        stream = _back(frozen.norms[block].entry, stream)
        out.append(carried)
    return out[::-1], torch.where(before == 0, directions, stream)


def norm_bias(
    kind: Block, norms: BlockNorms, carried: Carried, bias: Float[Tensor, " d_model"] | None
) -> Float[Tensor, "3 column"]:
    """What biases are worth in each column, before `Factors` attention, mlp and out.

    Args:
        kind: Of the block.
        norms: Of the block.
        carried: Directions there.
        bias: Of attention's output projection.
    """
    zero = carried.out.new_zeros(carried.out.shape[1])
    after = norms.attn_out.bias if norms.attn_out is not None else None
    last = norms.mlp_out.bias if kind == "post_ln" and norms.mlp_out is not None else None
    if norms.entry is not None:
        last = norms.entry.bias
    # Each bias enters where its part does, so it is seen along that part's direction.
    pairs = ((bias, carried.attention), (after, carried.mlp), (last, carried.out))
    return torch.stack([zero if b is None else b.float().cpu() @ u for b, u in pairs])


@dataclass(frozen=True, eq=False)
class ScaledMeans:
    """Means over kept train tokens.

    Attributes:
        depths: Number of blocks behind which scores are read, one a row; empty where a single row
            serves every depth, that is unless the model is post_ln or staged.
        embedding: Of the stream that enters block 0.
        z: Of each head's input of the output projection.
        mlp: Of what each MLP adds.
        scale: Of the factors themselves (attention, MLP, output), which biases are multiplied with.
    """

    depths: tuple[int, ...]
    embedding: Float[Tensor, "depth d_model"]
    z: Float[Tensor, "depth block head d_head"]
    mlp: Float[Tensor, "depth block d_model"]
    scale: Float[Tensor, "depth block 3"]

    @classmethod
    def of_components(cls, means: ComponentMeans) -> ScaledMeans:
        """Of a bank fitted on a pre-norm model."""
        n_blocks = len(means.z)
        return cls(
            (),
            means.embedding[None].float().cpu(),
            means.z[None].float().cpu(),
            means.mlp[None].float().cpu(),
            torch.ones(1, n_blocks, 3),
        )

    def row(self, depth: int) -> int:
        """The record of scores read behind `depth` blocks.

        Raises:
            LedgerError: The means end before that depth.
        """
        n_blocks = self.z.shape[1]
        if depth > n_blocks or (self.depths and depth not in self.depths):
            raise LedgerError(
                f"the bank's component means end before block {min(depth - 1, n_blocks)}: they "
                f"were collected for other layers. Fit with layers that reach block {depth - 1}, "
                "or leave means=None."
            )
        return self.depths.index(depth) if self.depths else 0


class MeanPass:
    """What means of scaled activations need of a pass over the train split.

    Args:
        info: Of the model.
        frozen: Norms to the deepest score.
        depths: Distinct depths of the scores.
    """

    def __init__(self, info: HostInfo, frozen: FrozenNorms, depths: tuple[int, ...]) -> None:
        self.info, self.frozen = info, frozen
        self.n_blocks = len(frozen.norms)
        self.depths = tuple(sorted(set(depths))) if frozen.by_depth else ()
        self.rows = self.depths or (self.n_blocks,)

    @property
    def job(self) -> Job:
        """For `passes.run_jobs`."""
        blocks = range(self.n_blocks)
        points: tuple[Point, ...] = ("z", "mlp_out")
        sites = {Site(b, point) for b in blocks for point in points}
        return Job(sites | self.frozen.sites | {Site(0, "resid_pre")}, lambda batch: self._reduce)

    def _reduce(self, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Keeping:
        """Sums over a batch's kept tokens."""
        weight = keep.float()
        # b batch, t token, d what is averaged, r one row for each depth at which a score is read.
        like = weight[..., None].expand(*weight.shape, len(self.rows))
        factors, entry = self.frozen.factors(self.frozen.scales(read), self.rows)

        def sums(values: Tensor, factor: Tensor | None) -> Tensor:
            by_depth = like if factor is None else like * factor
            return torch.einsum("btd,btr->rd", values.float().flatten(2), by_depth)

        def count(factor: Tensor | None) -> Tensor:
            return (like if factor is None else like * factor).sum((0, 1))

        z = [sums(read[Site(b, "z")], f.attention) for b, f in enumerate(factors)]
        mlp = [sums(read[Site(b, "mlp_out")], f.mlp) for b, f in enumerate(factors)]
        scale = [torch.stack([count(x) for x in f], -1) for f in factors]
        return keeping(
            sums={
                "embedding": sums(read[Site(0, "resid_pre")], entry),
                "z": torch.stack(z, dim=1),
                "mlp": torch.stack(mlp, dim=1),
                "scale": torch.stack(scale, dim=1),
                "n": weight.sum(),
            }
        )

    def result(self, kept: Kept) -> ScaledMeans:
        """The means."""
        # Sums are float64 over all batches; what is left after the division fits float32.
        n = kept.sums["n"]
        mean = {name: (value / n).float() for name, value in kept.sums.items()}
        shape = (len(self.rows), self.n_blocks, self.info.n_heads, self.info.d_head)
        return ScaledMeans(
            self.depths, mean["embedding"], mean["z"].reshape(shape), mean["mlp"], mean["scale"]
        )
