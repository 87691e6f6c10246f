"""One batch: terms of every component, and the proof that they add up to the measured score.

The residue of a token is `score - sum of terms`. It is compared with what float32 summation can
lose: the tolerance times the sum of the sizes of the raw terms plus |w| |h| / rho (half-precision
models round their residual stream at every addition, so their tolerance is wider).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.heads.components import LedgerError
from sa_plugin.heads.plan import Plan
from sa_plugin.host import Batch, Host, Point, Site

_SMALL = 1e-8


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


def measure(plan: Plan, read: Mapping[Site, Tensor]) -> Scored:
    """Score a batch exactly as the bank does."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    by_layer: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for k, (column, place) in enumerate(zip(plan.columns, plan.places, strict=True)):
        if place not in by_layer:
            h = read[plan.site(column)].float()
            x = (h - plan.source.mean[place].to(h.device)) / plan.source.scale[place].to(h.device)
            norms = x.norm(dim=-1), h.norm(dim=-1) / float(plan.source.scale[place])
            by_layer[place] = (plan.source.score(place, h), *norms)
        scores, x_norm, h_norm = by_layer[place]
        length = float(plan.vectors.vectors[k, 0].norm())
        size = (x_norm * length).clamp_min(_SMALL) if plan.cosine else torch.ones_like(x_norm)
        parts.append((scores[..., column.unit], size, h_norm * length))
    return Scored(*(torch.stack(one, dim=-1) for one in zip(*parts, strict=True)))


def iterate_terms(
    plan: Plan, read: Mapping[Site, Tensor]
) -> Iterator[
    tuple[Float[Tensor, "batch token component column"], Float[Tensor, "component column"]]
]:
    """Terms as dot products, a block at a time, with the mean that was taken off each.

    Together, in order, the pieces are the terms of `plan.components`.
    """
    embedding = read[Site(0, "resid_pre")].float()
    device = embedding.device
    mean = plan.embedding_mean.to(device)[None]
    yield (embedding @ plan.embedding.to(device))[:, :, None] - mean, mean
    for block, maps in enumerate(plan.blocks):
        z = read[Site(block, "z")].float()
        mlp = read[Site(block, "mlp_out")].float() @ maps.mlp.to(device)
        heads = torch.einsum("bthk,hkc->bthc", z, maps.heads.to(device))
        mean = torch.cat([maps.heads_mean, maps.mlp_mean[None]]).to(device)
        yield torch.cat([heads, mlp[:, :, None]], dim=2) - mean, mean
    if len(plan.constants):
        constant = plan.constants.to(device)
        yield constant.expand(*embedding.shape[:2], *constant.shape), torch.zeros_like(constant)


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
        """Take in one piece of `iterate_terms`."""
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
    host: Host, plan: Plan, batch: Batch, residue: Residue, samples: list[str]
) -> None:
    """Raise unless every kept token of the batch closed.

    Args:
        host: Asked for one more pass over the batch when the ledger does not close.
        plan: Of the ledger.
        batch: The batch.
        residue: What `Closure` found.
        samples: Id of each sample of the batch.

    Raises:
        LedgerError: Names layer, concept, token, residue and the likely cause.
    """
    worst = int(residue.relative.argmax())
    if float(residue.relative[worst]) <= plan.tolerance:
        return
    column = plan.columns[worst]
    row, token = (int(i) for i in residue.place[worst])
    raise LedgerError(
        f"the ledger of {column.concept!r} at block {column.layer} ({plan.hook_point}) does not "
        f"close: token {token} of sample {samples[row]!r} has terms that miss its score by "
        f"{float(residue.absolute[worst]):.3g}, {float(residue.relative[worst]):.1e} of their "
        f"summed sizes (tolerance {plan.tolerance:.0e}). {likely_cause(host, plan, batch)}"
    )


def likely_cause(host: Host, plan: Plan, batch: Batch) -> str:
    """The first block whose parts do not add up, from one more forward pass."""
    n_blocks = len(plan.blocks)
    points: tuple[Point, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")
    sites = [Site(block, point) for block in range(n_blocks) for point in points]
    projections = [host.output_projection(block) for block in range(n_blocks)]

    def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
        gaps = []
        for block, (weight, bias) in enumerate(projections):
            pre, post, attn, mlp, z = (read[Site(block, point)].float() for point in points)
            heads = torch.einsum("bthk,hkd->btd", z, weight.float().to(z.device))
            if bias is not None:
                heads = heads + bias.float().to(z.device)
            size = post.norm() + attn.norm()
            gaps.append(
                torch.stack([(heads - attn).norm(), (post - pre - attn - mlp).norm()]) / size
            )
        return {"gaps": torch.stack(gaps)}

    for block, (heads, writes) in enumerate(host.read(batch, sites, reduce)["gaps"].tolist()):
        if not heads <= plan.tolerance:
            return (
                f"Probably block {block}: its heads' z W_O + b_O miss its attn_out by {heads:.1e}, "
                "so host.output_projection is not what this layer multiplies with."
            )
        if not writes <= plan.tolerance:
            return (
                f"Probably block {block}: it adds something to the residual stream beside "
                f"attn_out and mlp_out (off by {writes:.1e}): a scaled residual, a norm after the "
                "block, or a further branch."
            )
    return (
        "Every block adds up, so the vectors' normaliser or the component means are not of these "
        "activations."
    )
