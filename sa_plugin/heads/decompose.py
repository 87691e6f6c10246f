"""Scores of some columns as sums of terms, one a component, and the proof that they add up.

In a pre-norm model (parallel blocks included) the residual is a plain sum of what was written,

    h = embedding + sum_{l,h} z_lh W_O[l,h] + sum_l b_O[l] + sum_l mlp_l,

so the dot score of `x = (h - mean) / rho` is a sum of one term a component. Norms behind attention
or MLP (Gemma-2, BERT) are carried along as linear maps with the scale of each token (`norms.py`):
every part is multiplied with a factor f of that token. *Centred*:

    w . x = sum_i w . (f_i c_i - mean_train(f_i c_i)) / rho,

exact without any leftover, because the component means add up to the normaliser's mean. Constants
(b_O of a pre-norm model) vanish; biases that a norm rescales do not, and are terms of their own,
"L3 bias x scale" (b_O, and the biases of the norms behind attention and MLP; those inside an MLP
are part of it). *Raw*, without means: `w . f_i c_i / rho`, with the terms "bias" (all b_O) and
"reference" = -w . mean / rho. A cosine score divides every term by that token's own |x| |w|.

The linear maps are made once. Heads are never formed as vectors in the residual stream: `z` is
projected through `W_O w / rho`.

The score is measured exactly as the bank measures it, and the terms are held against it, token by
token. The residue `score - sum of terms` is compared with what float32 summation can lose: the
tolerance times the sum of the sizes of the raw terms plus |w| |h| / rho (half-precision models round
their residual stream at every addition, so their tolerance is wider). A ledger that does not close
is refused with the block that is the likely cause.

What a term does not show: what the model would do without the component (later parts respond to
earlier ones), nor why a head wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.heads.columns import Column, Component, LedgerError, components_of, depth_of
from sa_plugin.heads.norms import (
    Factors,
    FrozenNorms,
    ScaledMeans,
    Scales,
    carry_back,
    frozen_norm,
    norm_bias,
)
from sa_plugin.host.protocol import Batch, BlockNorms, Host, HostInfo, OutputProjection, Point, Site
from sa_plugin.host.reducers import LEAST_LENGTHS

_SUMMED = ("resid_pre", "resid_post")
_HALF_TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2}
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
    def of(cls, info: HostInfo, bank: ConceptBank, columns: Sequence[Column], vectors: VectorSet) -> Target:
        """Columns of `vectors`: `bank.token`, or others of its shape."""
        check_supported(bank.hook_point)
        # Each column becomes a "layer" of its own, so that one VectorSet holds all of them.
        at = [bank.index(column.layer) for column in columns]
        picked = [vectors.vectors[k, c.unit] for k, c in zip(at, columns, strict=True)]
        chosen = VectorSet(
            torch.stack(picked)[:, None].float().cpu(),
            vectors.mean[at].float().cpu(),
            vectors.scale[at].float().cpu(),
            vectors.scoring,
        )
        return cls(info, tuple(columns), vectors, tuple(at), chosen, bank.hook_point)

    @property
    def cosine(self) -> bool:
        """Whether scores are cosines."""
        return self.vectors.scoring == "cosine"

    @property
    def tolerance(self) -> float:
        """Largest residue allowed, relative to the sum of the raw terms' sizes."""
        return _HALF_TOLERANCE.get(self.info.dtype.removeprefix("torch."), 1e-5)

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


def check_supported(hook_point: str) -> None:
    """Refuse hook points where a score is no sum of what the model wrote.

    Raises:
        NotImplementedError: With the reason.
    """
    if hook_point not in _SUMMED:
        raise NotImplementedError(
            f"the ledger decomposes scores of the residual stream ({' or '.join(_SUMMED)}); "
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


def score_batch(target: Target, read: Mapping[Site, Tensor]) -> Scored:
    """Score a batch exactly as the bank does."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    by_layer: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    source = target.source
    for k, (column, place) in enumerate(zip(target.columns, target.places, strict=True)):
        # The bank scores all its units of a layer at once: asked once a layer, not once a column.
        if place not in by_layer:
            h = read[target.site(column)].float()
            x = (h - source.mean[place].to(h.device)) / source.scale[place].to(h.device)
            norms = x.norm(dim=-1), h.norm(dim=-1) / float(source.scale[place])
            by_layer[place] = (source.score(place, h), *norms)
        scores, x_norm, h_norm = by_layer[place]
        length = float(target.lengths[k])
        # What a unit of dot product is worth: 1, or for a cosine |x| |w| of this token.
        size = (x_norm * length).clamp_min(LEAST_LENGTHS) if target.cosine else torch.ones_like(x_norm)
        parts.append((scores[..., column.unit], size, h_norm * length))
    return Scored(*(torch.stack(one, dim=-1) for one in zip(*parts, strict=True)))


class _BlockMaps(NamedTuple):
    """One block onto every column: what to multiply `z`, the MLP's output and factors with.

    Columns whose layer lies before the block have zeros. `mean` is what is taken off the block's
    components.
    """

    heads: Float[Tensor, "head d_head column"]
    mlp: Float[Tensor, "d_model column"]
    bias: Float[Tensor, "3 column"]
    mean: Float[Tensor, "component column"]


@dataclass(frozen=True, eq=False)
class LedgerPlan:
    """What is needed to turn one batch's activations into terms.

    Attributes:
        target: What is decomposed.
        components: The terms, to the depth of the deepest column.
        centred: Whether component means are subtracted.
        frozen: Norms behind attention and MLP.
        embedding, embedding_mean: As in `_BlockMaps`.
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
    blocks: tuple[_BlockMaps, ...]
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
        # What each write is multiplied with on its way through later norms, and the embedding's.
        factors, entry = self.frozen.factors(scales, self.target.depths)
        # The embedding first, then block by block: terms of all blocks at once would not fit.
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
        self, read: Mapping[Site, Tensor], block: int, maps: _BlockMaps, factor: Factors
    ) -> Float[Tensor, "batch token component column"]:
        z = read[Site(block, "z")].float()
        # b batch, t token, h head, k its dimension, c column: z never becomes a vector of the stream.
        heads = torch.einsum("bthk,hkc->bthc", z, maps.heads.to(z.device))
        if factor.attention is not None:
            heads = heads * factor.attention[:, :, None]
        mlp = read[Site(block, "mlp_out")].float() @ maps.mlp.to(z.device)
        parts = [heads, _times(mlp, factor.mlp)[:, :, None]]
        if self.scaled_biases:
            # Three constants, each scaled by what its part is scaled with at this token.
            one = torch.ones_like(mlp)
            bias = sum(
                _times(one * coefficient.to(z.device), f)
                for coefficient, f in zip(maps.bias, factor, strict=True)
            )
            assert isinstance(bias, Tensor)
            parts.append(bias[:, :, None])
        return torch.cat(parts, dim=2)


def _times(
    values: Float[Tensor, "batch token column"], factor: Float[Tensor, "batch token #column"] | None
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
) -> LedgerPlan:
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
        # d is d_model: each head's W_O onto each column's direction as attention sees it.
        heads = torch.einsum("hkd,dc->hkc", weight.float().cpu(), carried[block].attention)
        biases = norm_bias(frozen.block, frozen.norms[block], carried[block], bias)
        maps.append(_BlockMaps(heads, carried[block].mlp, biases, torch.zeros(0, len(columns))))
    scaled = frozen.block != "pre_norm" and any(bool(one.bias.any()) for one in maps)
    constants = _constants(target, maps, means is not None, scaled)
    plan = LedgerPlan(
        target,
        components_of(host.info, depth, centred=means is not None, scaled_biases=scaled),
        means is not None,
        frozen,
        embedding,
        *_means(means, target, embedding, maps, scaled),
        constants,
        scaled,
    )
    if means is not None:
        _check_means(plan)
    return plan


def _constants(
    target: Target, maps: Sequence[_BlockMaps], centred: bool, scaled: bool
) -> Float[Tensor, "constant column"]:
    reference = target.reference
    # Centred, a constant minus its mean is nothing.
    if centred:
        return reference.new_zeros(0, len(reference))
    if scaled:
        return reference[None]
    # Without norms behind them all b_O are one constant a column.
    bias = torch.stack([torch.zeros_like(reference), *(one.bias[0] for one in maps)]).sum(0)
    return torch.stack([bias, reference])


def _means(
    means: ScaledMeans | None,
    target: Target,
    embedding: Float[Tensor, "d_model column"],
    maps: Sequence[_BlockMaps],
    scaled: bool,
) -> tuple[Float[Tensor, " column"], tuple[_BlockMaps, ...]]:
    info, n = target.info, len(target.columns)
    if means is None:
        zero = torch.zeros(info.n_heads + 1 + scaled, n)
        return torch.zeros(n), tuple(one._replace(mean=zero) for one in maps)
    # Means were collected once for each depth at which a score is read; a column takes its own.
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


def _check_means(plan: LedgerPlan) -> None:
    """Hold the means against the normaliser's mean, of which b_O of a pre-norm model is part."""
    target = plan.target
    parts = [plan.embedding_mean[None], *(one.mean for one in plan.blocks)]
    if not plan.scaled_biases:
        parts += [one.bias[:1] for one in plan.blocks]
    # Means of all terms and the reference -w . mean / rho must cancel, or centring shifts scores.
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


class Residue(NamedTuple):
    """How far the terms of each sample's kept tokens are from their scores, by column.

    Attributes:
        relative: The largest residue relative to the size of its terms.
        absolute: That token's residue, in the unit of the score.
        largest: The largest residue of any token, in the unit of the score.
        token: That token's position in the batch.
    """

    relative: Float[Tensor, "batch column"]
    absolute: Float[Tensor, "batch column"]
    largest: Float[Tensor, "batch column"]
    token: Int[Tensor, "batch column"]


class Closure:
    """Adds up terms as they come and compares them with the measured score at the end."""

    def __init__(self, scored: Scored) -> None:
        self.scored = scored
        self.total = torch.zeros_like(scored.score)
        self.size = scored.bound.clone()

    def add(
        self, terms: Float[Tensor, "batch token component column"], mean: Float[Tensor, "component column"]
    ) -> None:
        """Take in one piece of a decomposition."""
        self.total += terms.sum(2)
        self.size += (terms + mean).abs().sum(2)

    def residue(self, keep: Bool[Tensor, "batch token"]) -> Residue:
        """The worst kept token of each sample and column."""
        # In dot products: a cosine is multiplied back with |x| |w|.
        gap = (self.scored.score * self.scored.divisor - self.total).abs()
        # NaN compares false with every tolerance, so it must not hide behind a maximum.
        gap = gap.nan_to_num(nan=torch.inf).masked_fill(~keep[..., None], 0.0)
        relative = gap / self.size.masked_fill(~keep[..., None], 1.0).clamp_min(1e-30)
        worst, at = relative.max(dim=1)
        absolute = gap / self.scored.divisor.masked_fill(~keep[..., None], 1.0)
        return Residue(worst, absolute.gather(1, at[:, None])[:, 0], absolute.amax(dim=1), at)


def check_closure(host: Host, target: Target, batch: Batch, residue: Residue, samples: list[str]) -> None:
    """Raise unless every kept token of the batch closed.

    Args:
        host: Asked for one more pass over the batch when the ledger does not close.
        target: Of the ledger.
        batch: The batch.
        residue: What `Closure` found.
        samples: Id of each sample of the batch.

    Raises:
        LedgerError: Names layer, concept, token, residue and the likely cause.
    """
    # The worst sample of the worst column is the one to name.
    by_column, rows = residue.relative.max(dim=0)
    worst = int(by_column.argmax())
    if float(by_column[worst]) <= target.tolerance:
        return
    column = target.columns[worst]
    row = int(rows[worst])
    token = int(residue.token[row, worst])
    raise LedgerError(
        f"the ledger of {column.concept!r} at block {column.layer} ({target.hook_point}) does not "
        f"close: token {token} of sample {samples[row]!r} has terms that miss its score by "
        f"{float(residue.absolute[row, worst]):.3g}, {float(by_column[worst]):.1e} of their "
        f"summed sizes (tolerance {target.tolerance:.0e}). {_likely_cause(host, target, batch)}"
    )


def _likely_cause(host: Host, target: Target, batch: Batch) -> str:
    """The first block whose parts do not add up, from one more forward pass."""
    n_blocks = max(target.depths)
    points: tuple[Point, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")
    sites = [Site(block, point) for block in range(n_blocks) for point in points]
    frozen = FrozenNorms.of(host, n_blocks)
    projections = [host.output_projection(block) for block in range(n_blocks)]

    def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
        gaps = []
        for block in range(n_blocks):
            parts = {p: read[Site(block, p)].float() for p in points}
            heads, writes = _rebuilt(frozen, frozen.norms[block], projections[block], parts)
            post, attention = parts["resid_post"], parts["attn_out"]
            size = post.norm() + attention.norm()
            gaps.append(torch.stack([(heads - attention).norm(), (writes - post).norm()]) / size)
        return {"gaps": torch.stack(gaps)}

    for block, (heads, writes) in enumerate(host.read(batch, sites, reduce)["gaps"].tolist()):
        if not heads <= target.tolerance:
            return (
                f"Probably block {block}: its heads' z W_O + b_O miss its attn_out by {heads:.1e}, "
                "so host.output_projection (or host.norms) is not what this layer multiplies with."
            )
        if not writes <= target.tolerance:
            return (
                f"Probably block {block}: it adds something to the residual stream beside "
                f"attn_out and mlp_out (off by {writes:.1e}): a scaled residual, a norm after the "
                "block, or a further branch."
            )
    return (
        "Every block adds up, so the vectors' normaliser or the component means are not of these activations."
    )


def _rebuilt(
    frozen: FrozenNorms,
    norms: BlockNorms,
    projection: OutputProjection,
    parts: Mapping[Point, Float[Tensor, "batch token *what"]],
) -> tuple[Float[Tensor, "batch token d_model"], Float[Tensor, "batch token d_model"]]:
    """A block's attn_out from its heads, and its output from what it wrote."""
    z = parts["z"]
    # Here, and only here, heads are formed as vectors: they are held against attn_out itself.
    heads = torch.einsum("bthk,hkd->btd", z, projection.weight.float().to(z.device))
    if projection.bias is not None:
        heads = heads + projection.bias.float().to(z.device)
    if frozen.block == "post_norm" and norms.attn_out is not None:
        heads = frozen_norm(norms.attn_out, heads)
    written = parts["resid_pre"] + parts["attn_out"]
    if frozen.block == "post_ln" and norms.attn_out is not None and norms.mlp_out is not None:
        return heads, frozen_norm(norms.mlp_out, frozen_norm(norms.attn_out, written) + parts["mlp_out"])
    return heads, written + parts["mlp_out"]
