"""The proof that terms add up to the measured score, token by token.

The residue of a token is `score - sum of terms`. It is compared with what float32 summation can
lose: the tolerance times the sum of the sizes of the raw terms plus |w| |h| / rho (half-precision
models round their residual stream at every addition, so their tolerance is wider).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.block import BlockNorms
from sa_plugin.heads.components import LedgerError
from sa_plugin.heads.frozen import FrozenNorms, apply
from sa_plugin.heads.target import Scored, Target
from sa_plugin.host import Batch, Host, OutputProjection, Point, Site


class Residue(NamedTuple):
    """How far the terms of a batch's kept tokens are from their scores, by column.

    Attributes:
        relative: The largest residue relative to the size of its terms.
        absolute: That token's residue, in the unit of the score.
        largest: The largest residue of any token, in the unit of the score.
        place: That token: row and position in the batch.
    """

    relative: Float[Tensor, " column"]
    absolute: Float[Tensor, " column"]
    largest: Float[Tensor, " column"]
    place: Int[Tensor, "column 2"]


class Closure:
    """Adds up terms as they come and compares them with the measured score at the end."""

    def __init__(self, scored: Scored) -> None:
        self.scored = scored
        self.total = torch.zeros_like(scored.score)
        self.size = scored.bound.clone()

    def add(
        self,
        terms: Float[Tensor, "batch token component column"],
        mean: Float[Tensor, "component column"],
    ) -> None:
        """Take in one piece of a decomposition."""
        self.total += terms.sum(2)
        self.size += (terms + mean).abs().sum(2)

    def residue(self, keep: Bool[Tensor, "batch token"]) -> Residue:
        """The worst kept token of each column."""
        gap = (self.scored.score * self.scored.divisor - self.total).abs()
        # NaN compares false with every tolerance, so it must not hide behind a maximum.
        gap = gap.nan_to_num(nan=torch.inf).masked_fill(~keep[..., None], 0.0)
        relative = gap / self.size.masked_fill(~keep[..., None], 1.0).clamp_min(1e-30)
        worst, at = relative.flatten(0, 1).max(dim=0)
        absolute = (gap / self.scored.divisor.masked_fill(~keep[..., None], 1.0)).flatten(0, 1)
        place = torch.stack([at // gap.shape[1], at % gap.shape[1]], dim=-1)
        return Residue(worst, absolute.gather(0, at[None])[0], absolute.max(dim=0).values, place)


def check_closure(
    host: Host, target: Target, batch: Batch, residue: Residue, samples: list[str]
) -> None:
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
    worst = int(residue.relative.argmax())
    if float(residue.relative[worst]) <= target.tolerance:
        return
    column = target.columns[worst]
    row, token = (int(i) for i in residue.place[worst])
    raise LedgerError(
        f"the ledger of {column.concept!r} at block {column.layer} ({target.hook_point}) does not "
        f"close: token {token} of sample {samples[row]!r} has terms that miss its score by "
        f"{float(residue.absolute[worst]):.3g}, {float(residue.relative[worst]):.1e} of their "
        f"summed sizes (tolerance {target.tolerance:.0e}). {likely_cause(host, target, batch)}"
    )


def likely_cause(host: Host, target: Target, batch: Batch) -> str:
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
        "Every block adds up, so the vectors' normaliser or the component means are not of these "
        "activations."
    )


def _rebuilt(
    frozen: FrozenNorms,
    norms: BlockNorms,
    projection: OutputProjection,
    parts: Mapping[Point, Float[Tensor, "batch token *what"]],
) -> tuple[Float[Tensor, "batch token d_model"], Float[Tensor, "batch token d_model"]]:
    """A block's attn_out from its heads, and its output from what it wrote."""
    z = parts["z"]
    heads = torch.einsum("bthk,hkd->btd", z, projection.weight.float().to(z.device))
    if projection.bias is not None:
        heads = heads + projection.bias.float().to(z.device)
    if frozen.block == "post_norm" and norms.attn_out is not None:
        heads = apply(norms.attn_out, heads)
    written = parts["resid_pre"] + parts["attn_out"]
    if frozen.block == "post_ln" and norms.attn_out is not None and norms.mlp_out is not None:
        return heads, apply(norms.mlp_out, apply(norms.attn_out, written) + parts["mlp_out"])
    return heads, written + parts["mlp_out"]
