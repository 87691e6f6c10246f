"""The data side: what heads do with real tokens, from one forward pass a sample.

Slope of the logits and attention on the top tokens: `moments.py`, `mass.py`. Share of the update:
with u_t what the head writes along the output direction at token t and U_t how much the block
changes the residual stream along it,

    share = Cov(u, U) / Var(U)  over kept tokens,

which adds up to 1 over all that writes in a pre-norm block. Norms behind attention are frozen at
each token's own scale; in a post_ln block, where they scale the old residual too, shares need not
add up. Nothing here is causal, and nothing is compared with labels: only the directions know them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.alignment.mass import attention_mass, top_tokens
from sa_plugin.alignment.moments import moments, place_terms
from sa_plugin.alignment.weigh import Block
from sa_plugin.alignment.weights import write_norms
from sa_plugin.block import BlockNorms, DescribedHost, Norm
from sa_plugin.collect import Layout, kept, sink_sites, walk
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.host import Batch, Site


@dataclass(frozen=True, eq=False)
class DataPlan:
    """What every batch of the pass does.

    Attributes:
        host, bank: The model, and the sink rule.
        blocks: To measure.
        norms: Of each block.
        v_in: Unit directions at each block's input, concepts first, then permuted-label ones.
        v_out: Unit directions at each block's output, concepts alone.
        mean: Train mean at each block's input.
        delta: Share of a sample's tokens that is its top, by concept.
    """

    host: DescribedHost
    bank: ConceptBank
    blocks: Sequence[Block]
    norms: Sequence[BlockNorms]
    v_in: Sequence[Float[Tensor, "column d_model"]]
    v_out: Sequence[Float[Tensor, "concept d_model"]]
    mean: Sequence[Float[Tensor, " d_model"]]
    delta: Float[Tensor, " concept"]

    @property
    def sites(self) -> list[Site]:
        """Everything the pass reads."""
        sites = {*sink_sites(self.bank.sink_layers)}
        for block, norms in zip(self.blocks, self.norms, strict=True):
            points = ["resid_pre", "resid_post", "pattern", "z"]
            points += ["attn_out", "mlp_out"] if len(write_norms(norms)) > 1 else []
            sites |= {Site(block.index, point) for point in points}  # type: ignore[arg-type]
        return sorted(sites)


@dataclass
class DataSums:
    """Sums of the pass: by block and sample for concepts, by block for the control's directions."""

    of_samples: dict[str, np.ndarray] = field(default_factory=dict)
    of_control: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, batch: Batch, got: Mapping[str, Tensor], n_samples: int) -> None:
        """Take in one batch."""
        for name, value in got.items():
            array = value.double().numpy()
            if name.startswith("control "):
                key = name.removeprefix("control ")
                self.of_control[key] = self.of_control.get(key, 0.0) + array
                continue
            if name not in self.of_samples:
                shape = (len(array), n_samples, *array.shape[2:])
                self.of_samples[name] = np.zeros(shape, dtype=np.float32)
            self.of_samples[name][:, batch.rows.numpy()] = array


def data_sums(plan: DataPlan, layout: Layout, n_samples: int, *, progress: bool) -> DataSums:
    """Run the samples once.

    Memory: a batch's patterns of every block, and `samples x blocks x heads x concepts x 12`
    floats.

    Args:
        plan: What to measure.
        layout: Of the samples.
        n_samples: Their number.
        progress: Whether to show a bar.
    """
    sums = DataSums()
    for batch, got in walk(
        plan.host, layout, plan.sites, lambda batch: _reducer(plan, batch),
        description="attention", progress=progress,
    ):  # fmt: skip
        sums.add(batch, got, n_samples)
    return sums


def _reducer(plan: DataPlan, batch: Batch) -> Callable[[Mapping[Site, Tensor]], dict[str, Tensor]]:
    attended = batch.inputs.get("attention_mask")
    distance = token_distance(batch)
    bank = plan.bank

    def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
        keep = kept(read, batch.valid, plan.host.info, bank.sink_layers, bank.origin.sinks)
        known = torch.ones_like(batch.valid) if attended is None else attended.bool()
        parts: dict[str, list[Tensor]] = {}
        for k in range(len(plan.blocks)):
            for name, value in _block(plan, k, read, keep, known, distance).items():
                parts.setdefault(name, []).append(value)
        return {name: torch.stack(many) for name, many in parts.items()}

    return reduce


def _block(
    plan: DataPlan,
    k: int,
    read: Mapping[Site, Tensor],
    keep: Bool[Tensor, "batch token"],
    known: Bool[Tensor, "batch token"],
    distance: Float[Tensor, "batch query key"],
) -> dict[str, Tensor]:
    at, device = plan.blocks[k].index, keep.device
    before, pattern = (read[Site(at, p)].float() for p in ("resid_pre", "pattern"))
    n_concepts = len(plan.v_out[k])
    a = (before - plan.mean[k].to(device)) @ plan.v_in[k].to(device).T
    a = a * keep[..., None]
    seen = (pattern > 0).any(1) & known.to(device)[:, None]
    allowed = seen & keep[:, None] & keep[..., None]
    found = moments(pattern, a, allowed, place_terms(distance.to(device)))
    top = top_tokens(a[..., :n_concepts], keep, plan.delta)
    mass = attention_mass(pattern, a[..., :n_concepts], top, keep, seen)
    pairs = pattern.shape[1] * allowed.sum((-1, -2))
    lost = ((pattern <= 0) & allowed[:, None]).sum((1, 2, 3))
    return {
        "gram": found.gram[:, :n_concepts],
        "cross": found.cross[:, :, :n_concepts],
        "square": found.square,
        "control gram": found.gram[:, n_concepts:].sum(0),
        "control cross": found.cross[:, :, n_concepts:].sum(0),
        "control square": found.square.sum(0),
        **{f"mass {name}": value for name, value in mass._asdict().items()},
        "pairs": torch.stack([lost, pairs], -1),
        **_activation_sums(a[..., :n_concepts], keep),
        **_writes(plan, k, read, keep),
    }


def _activation_sums(
    a: Float[Tensor, "batch token concept"], keep: Bool[Tensor, "batch token"]
) -> dict[str, Tensor]:
    return {"activation": torch.stack([a.sum(1), a.square().sum(1)], -1), "tokens": keep.sum(1)}


def _writes(
    plan: DataPlan, k: int, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]
) -> dict[str, Tensor]:
    """Sums for the share of the update, and of the norms' scales."""
    block, weight = plan.blocks[k], keep.float()[..., None]
    at, device = block.index, keep.device
    before, after, z = (read[Site(at, p)].float() for p in ("resid_pre", "resid_post", "z"))
    v_out = plan.v_out[k].to(device)
    onto = torch.einsum("hed,ud->heu", block.maps.output.to(device), v_out)
    behind = _write_scale(plan, k, read)
    wrote = torch.einsum("bthe,heu->bthu", z, onto) / behind[..., None, None]
    change = ((after - before) @ v_out.T) * weight
    wrote = wrote * weight[..., None]
    reading = token_scale(block.attention.norm, before)
    return {
        "write": torch.stack([wrote.sum(1), (wrote * change[:, :, None]).sum(1)], -1),
        "change": torch.stack([change.sum(1), change.square().sum(1)], -1),
        "scales": torch.stack([(reading * keep).sum(1), (behind * keep).sum(1)], -1),
    }


def _write_scale(
    plan: DataPlan, k: int, read: Mapping[Site, Tensor]
) -> Float[Tensor, "batch token"]:
    """What the norms between the head's write and the block's output divide by."""
    at = plan.blocks[k].index
    before, z = (read[Site(at, p)].float() for p in ("resid_pre", "z"))
    norms = write_norms(plan.norms[k])
    if not norms:
        return torch.ones_like(before[..., 0])
    if len(norms) == 1:
        weight, bias = plan.host.output_projection(at)
        raw = torch.einsum("bthe,hed->btd", z, weight.to(z.device))
        return token_scale(norms[0], raw if bias is None else raw + bias.to(z.device))
    added = before + read[Site(at, "attn_out")].float()
    first = token_scale(norms[0], added)
    middle = _normed(norms[0], added) + read[Site(at, "mlp_out")].float()
    return first * token_scale(norms[1], middle)


def token_scale(norm: Norm | None, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token"]:
    """What a norm divides each token by; 1 where there is none."""
    if norm is None:
        return torch.ones_like(x[..., 0])
    centred = x - x.mean(-1, keepdim=True) if norm.centred else x
    return (centred.square().mean(-1) + norm.eps).sqrt()


def _normed(norm: Norm, x: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token d_model"]:
    centred = x - x.mean(-1, keepdim=True) if norm.centred else x
    out: Tensor = centred / token_scale(norm, x)[..., None] * norm.gain.to(x.device)
    return out if norm.bias is None else out + norm.bias.to(x.device)


def token_distance(batch: Batch) -> Float[Tensor, "batch query key"]:
    """Tokens between two words; for images the distance of two patches, in patches."""
    if batch.offsets.shape[-1] == 4:
        box = batch.offsets.float()
        centre = (box[..., :2] + box[..., 2:]) / 2
        height = (box[..., 2] - box[..., 0]).amax(-1).clamp_min(1.0)
        return torch.cdist(centre, centre) / height[:, None, None]
    place = torch.arange(batch.valid.shape[1], dtype=torch.float32)
    return (place[:, None] - place).abs().expand(len(batch.valid), -1, -1)
