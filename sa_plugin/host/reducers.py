"""What runs beside the model: pure functions of one batch's activations.

A host may run them on another machine, where this package is not installed, so this module imports
torch alone, nothing inside a function, and takes tensors, tuples, strings and numbers only
(`functools.partial` binds them). `read` maps `(layer, point)` to activations.

A result whose name begins with "+" is a sum over tokens or samples: a host may add those of several
batches, in float64, and hand the sum over with the last of them. Every other result belongs to its
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Read = Mapping[Any, torch.Tensor]
# Vectors [layer, unit, d_model], mean [layer, d_model], scale [layer], cosine or dot; or, on a host
# in this process, any function (place of the layer, activations) -> scores, such as an SAE's.
Vectors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool] | Callable[..., torch.Tensor]
BINS = 1 << 16


def keep_tokens(
    valid: torch.Tensor, norms: torch.Tensor, sinks: str, drop_first: bool, factor: float = 10.0
) -> torch.Tensor:
    """Which tokens are evidence: valid ones that are no attention sink.

    Args:
        valid: `[batch, token]`.
        norms: `[layer, batch, token]`.
        sinks: "drop" or "keep".
        drop_first: Drop the first valid token too (decoders that add no BOS).
        factor: Above this many times its sample's median norm, a token is a sink.
    """
    if sinks == "keep":
        return valid
    masked = norms.float().masked_fill(~valid, torch.nan)
    median = masked.nanmedian(dim=-1, keepdim=True).values
    keep = valid & ~(masked > factor * median).any(0)
    if drop_first:
        keep = keep & ~(valid & (valid.long().cumsum(-1) == 1))
    return keep


def kept(
    read: Read, valid: torch.Tensor, layers: Sequence[int], sinks: str, drop_first: bool
) -> torch.Tensor:
    """Which tokens of a batch are evidence, decided from `resid_post` at some layers.

    Raises:
        ValueError: An activation is NaN or Inf.
    """
    norms = torch.stack([read[layer, "resid_post"].float().norm(dim=-1) for layer in layers])
    valid = valid.to(norms.device)
    for layer, row in zip(layers, norms, strict=True):
        bad = int((~torch.isfinite(row[valid])).sum())
        if bad:
            raise ValueError(
                f"activations at block {layer} (resid_post) hold NaN or Inf in {bad} of "
                f"{int(valid.sum())} tokens of a batch: load the model in float32 or bfloat16, or "
                "mend its weights."
            )
    return keep_tokens(valid, norms, sinks, drop_first)


def score(vectors: Vectors, index: int, activations: torch.Tensor) -> torch.Tensor:
    """Scores `[*token, unit]` of raw activations at one layer, float32 whatever their format."""
    if callable(vectors):
        return vectors(index, activations)
    directions, mean, scale, cosine = vectors
    device = activations.device
    x = (activations.float() - mean[index].to(device)) / scale[index].to(device)
    v = directions[index].to(device)
    dots = x @ v.T
    if not cosine:
        return dots
    norms = x.norm(dim=-1, keepdim=True) * v.norm(dim=-1)
    return dots.div(norms.clamp_min(1e-8))


def by_layer(vectors: Vectors, activations: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scores `[*token, layer, unit]`."""
    return torch.stack([score(vectors, k, h) for k, h in enumerate(activations)], dim=-2)


def mean_over(h: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Mean `[batch, d_model]` over kept tokens."""
    weight = keep.float()
    total = torch.einsum("btd,bt->bd", h.float(), weight)
    return total / weight.sum(-1, keepdim=True).clamp_min(1)


def class_tokens(h: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The class token's activation of each sample."""
    return h[torch.arange(len(h), device=h.device), index.to(h.device)]


def scores(
    read: Read,
    *,
    valid: torch.Tensor,
    sinks: tuple[Sequence[int], str, bool],
    banks: Sequence[tuple[Sequence[int], str, Mapping[str, Vectors]]],
    frozen: torch.Tensor | None = None,
    class_index: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Scores of every token under every vector, and the controls' scores of each sample.

    Args:
        read: Activations.
        valid: Tokens that are neither padding nor special.
        sinks: Layers that decide, "drop" or "keep", and whether first tokens go.
        banks: For each bank its layers, hook point and sets of vectors by name.
        frozen: Tokens to keep instead of what `sinks` says.
        class_index: Where each sample's class token stands.
    """
    keep = kept(read, valid, *sinks) if frozen is None else frozen
    out = {"keep": keep}
    for k, (layers, point, sets) in enumerate(banks):
        h = [read[layer, point] for layer in layers]
        keep = keep.to(h[0].device)
        out[f"scores {k}"] = by_layer(sets["token"], h)
        if "permuted" in sets:
            null = by_layer(sets["permuted"], h)
            out[f"permuted_max {k}"] = null.masked_fill(~keep[..., None, None], -torch.inf).amax(1)
        if "pooled" in sets:
            out[f"pooled {k}"] = by_layer(sets["pooled"], [mean_over(one, keep) for one in h])
        if "cls" in sets and class_index is not None:
            out[f"cls {k}"] = by_layer(sets["cls"], [class_tokens(one, class_index) for one in h])
    return out


def maxima(
    read: Read,
    *,
    valid: torch.Tensor,
    sinks: tuple[Sequence[int], str, bool],
    layers: Sequence[int],
    point: str,
    vectors: Vectors,
    top: int = 1,
    places: bool = False,
) -> dict[str, torch.Tensor]:
    """The `top` highest scores of each sample, and where they stand.

    Args:
        read: Activations.
        valid: Tokens that are neither padding nor special.
        sinks: As for `scores`.
        layers: Blocks.
        point: Hook point.
        vectors: Of those blocks.
        top: How many.
        places: Whether to say where they stand.

    Returns:
        `best` `[batch, top, layer, unit]`, descending, -inf where a sample has fewer tokens;
        `place`, their positions in the batch, int16 where that holds them; `count`, kept tokens of
        each sample.
    """
    keep = kept(read, valid, *sinks)
    found = by_layer(vectors, [read[layer, point] for layer in layers])
    found = found.masked_fill(~keep[..., None, None], -torch.inf)
    if found.shape[1] < top:
        pad = found.new_full((len(found), top - found.shape[1], *found.shape[2:]), -torch.inf)
        found = torch.cat([found, pad], dim=1)
    best = found.topk(top, dim=1)
    out = {"best": best.values, "count": keep.sum(-1)}
    if places:
        out["place"] = best.indices.to(torch.int16 if keep.shape[1] < 1 << 15 else torch.int32)
    return out


def histogram(
    read: Read,
    *,
    valid: torch.Tensor,
    sinks: tuple[Sequence[int], str, bool],
    layers: Sequence[int],
    point: str,
    vectors: Vectors,
    labels: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Counts of scores by their bits, in and out of each concept.

    A bin is the high 16 bits of the score's order-preserving key (see
    `sa_plugin.statistics.streaming`): within 2**-7 of the value, whatever its size.

    Args:
        read: Activations.
        valid: Tokens that are neither padding nor special.
        sinks: As for `scores`.
        layers: Blocks.
        point: Hook point.
        vectors: Of those blocks.
        labels: `[batch, token, unit]`.

    Returns:
        `+bins` `[2, layer, unit, 65536]`: out of concept, then in; sparse, int64.
    """
    keep = kept(read, valid, *sinks)
    found = by_layer(vectors, [read[layer, point] for layer in layers])[keep]
    inside = labels.to(found.device)[keep][:, None].expand_as(found).long()
    n_layers, n_units = found.shape[1:]
    column = torch.arange(n_layers * n_units, device=found.device).reshape(n_layers, n_units)
    place = (inside * n_layers * n_units + column) * BINS + bins(found)
    size = 2 * n_layers * n_units * BINS
    flat, count = torch.unique(place, return_counts=True)
    total = torch.sparse_coo_tensor(flat[None], count, (size,), check_invariants=False)
    return {"+bins": total.coalesce()}


def bins(values: torch.Tensor) -> torch.Tensor:
    """High 16 bits of the keys of float32 numbers; both zeros get one key."""
    bits = (values.contiguous() + 0.0).view(torch.int32).long() & 0xFFFFFFFF
    negative = bits >> 31 == 1
    return torch.where(negative, bits ^ 0xFFFFFFFF, bits ^ 0x80000000) >> 16


def train(
    read: Read,
    *,
    valid: torch.Tensor,
    sinks: tuple[Sequence[int], str, bool],
    blocks: Sequence[int],
    point: str,
    labels: torch.Tensor,
    stored: torch.Tensor | None,
    gram: bool,
    writes: Sequence[tuple[int, str]],
    sample_labels: torch.Tensor,
    class_index: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Sums that concept vectors are fitted from, and the rows to store.

    Args:
        read: Activations.
        valid: Tokens that are neither padding nor special, as many as `labels` has rows.
        sinks: As for `scores`.
        blocks: Where activations are read.
        point: Hook point.
        labels: `[row, label]`: token labels, then permuted ones.
        stored: Which rows to store; None when the kinds to be fitted need sums alone. Then the
            sample means and class tokens are summed too, not handed over one by one.
        gram: Whether to sum outer products.
        writes: Sites whose means the ledger needs.
        sample_labels: `[batch, concept]`.
        class_index: Where each sample's class token stands.
    """
    keep = kept(read, valid, *sinks)
    device = keep.device
    rows = valid.to(device)
    weight, labels = keep[rows].float(), labels.to(device).float()
    out = {"keep": keep}
    for k, block in enumerate(blocks):
        h = read[block, point].float()
        flat = h[rows]
        out.update(moments(f"{k}", flat, weight, labels, gram))
        whole = {"pooled": mean_over(h, keep)}
        if class_index is not None:
            whole["cls"] = class_tokens(h, class_index)
        for name, value in whole.items():
            if stored is not None:
                out[f"{name} {k}"] = value
                continue
            each = torch.ones(len(value), device=device)
            classes = sample_labels.to(device).float()
            out.update(moments(f"{name} {k}", value, each, classes, gram))
        if stored is not None:
            out[f"rows {k}"] = flat[stored.to(device)].half()
    for layer, part in writes:
        write = read[layer, part].float().flatten(2)
        out[f"+write {part} {layer}"] = torch.einsum("btd,bt->d", write, keep.float())
    return out


def moments(
    name: str, rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, gram: bool
) -> dict[str, Any]:
    """Weighted sums of rows `[row, d_model]`, of their norms, and of the rows of each label."""
    weighted = rows * weight[:, None]
    out = {
        f"+sum {name}": weighted.sum(0),
        f"+squares {name}": (weighted * rows).sum(),
        f"+norms {name}": (rows.norm(dim=-1) * weight).sum(),
        f"+positive {name}": labels.T @ weighted,
    }
    if gram:
        out[f"+gram {name}"] = weighted.T @ rows
    return out


def pick(read: Read, *, site: tuple[int, str]) -> dict[str, torch.Tensor]:
    """The activations at one site, in float32."""
    return {"h": read[site].float()}


def activations(
    read: Read, *, site: tuple[int, str], valid: torch.Tensor, sinks: tuple[Sequence[int], str, bool]
) -> dict[str, torch.Tensor]:
    """The activations at one site, in float32, and which tokens are evidence.

    Args:
        read: Activations.
        site: Layer and point.
        valid: Tokens that are neither padding nor special.
        sinks: As for `scores`.
    """
    return {"h": read[site].float(), "keep": kept(read, valid, *sinks)}


def gather(results: Sequence[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Results of several batches, on the CPU; those that are sums are added into the last one's."""
    total: dict[str, torch.Tensor] = {}
    out: list[dict[str, torch.Tensor]] = []
    for one in results:
        out.append({k: v.detach().cpu() for k, v in one.items() if not k.startswith("+")})
        for name, value in one.items():
            if name.startswith("+"):
                wide = value.detach().cpu()
                wide = wide.double() if wide.is_floating_point() else wide
                total[name] = total[name] + wide if name in total else wide
    if out:
        out[-1].update({k: v.coalesce() if v.is_sparse else v for k, v in total.items()})
    return out
