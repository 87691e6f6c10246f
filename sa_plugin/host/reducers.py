"""What runs beside the model: pure functions of one batch's activations.

A host may run them on another machine, where this package is not installed, so this module imports
torch alone, nothing inside a function, and takes tensors, tuples, strings and numbers only
(`functools.partial` binds them). `read` maps `(layer, point)` to activations.

`reduce` decides which tokens are evidence and hands that to each job of a pass. A job answers with
`keeping(sums=..., rows=..., samples=..., picked=...)`: tensors that are summed over the batch, that have
a row for each token that is neither padding nor special, one for each sample, or one for each thing that
was picked of some tokens. A host may add the sums of several batches, in float64, and hand them over with
the last of these (`gather`); the others belong to their batch. Names are strings and numbers, or tuples
of them; nothing parses them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch

Read = Mapping[Any, torch.Tensor]
# Vectors [layer, unit, d_model], mean [layer, d_model], scale [layer], cosine or dot; or, on a host
# in this process, any function (place of the layer, activations) -> scores, such as an SAE's.
Vectors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool] | Callable[..., torch.Tensor]
SCORE_BINS = 1 << 16
# Above this many times its sample's median norm, a token is a sink.
SINK_FACTOR = 10.0
# Least |x| |v| of a cosine, so that a zero vector has 0. The scale is of uncentred norms: where means are
# many times the spread lengths are short, and 1e-8 is reached by tokens that are no zero vectors.
LEAST_LENGTHS = 1e-30
Keeping = dict[tuple[str, Hashable], torch.Tensor]
# Group, number of the job, name.
Key = tuple[str, int, Hashable]
KEEP: Key = ("rows", -1, "keep")
# Of what is picked: which of its batch's valid tokens each entry is of.
AT = "at"
# Coarse bins of the order of float32 numbers, `sa_plugin.statistics.ExactTail`'s.
TAIL_BINS = 1 << 12
# Columns of scores that are counted at a time.
_COUNTED = 256


def keeping(
    *,
    sums: Mapping[Any, torch.Tensor] | None = None,
    rows: Mapping[Any, torch.Tensor] | None = None,
    samples: Mapping[Any, torch.Tensor] | None = None,
    picked: Mapping[Any, torch.Tensor] | None = None,
) -> Keeping:
    """What a job keeps of one batch, as one flat dictionary.

    Args:
        sums: Added over batches.
        rows: One row for each valid token, or for each of those that the job has chosen.
        samples: One row for each sample.
        picked: One row for each thing picked; `AT` says of which valid token it is.
    """
    groups = {"sums": sums, "rows": rows, "samples": samples, "picked": picked}
    return {(group, name): value for group, named in groups.items() for name, value in (named or {}).items()}


def reduce(
    read: Read,
    *,
    valid: torch.Tensor,
    sinks: tuple[Sequence[int], str, bool] | None,
    frozen: torch.Tensor | None,
    jobs: Sequence[Callable[[Read, torch.Tensor], Keeping]],
) -> dict[Key, torch.Tensor]:
    """What every job of a pass keeps of one batch, and which of its tokens are evidence.

    Args:
        read: Activations.
        valid: Tokens that are neither padding nor special.
        sinks: Layers that decide, "drop" or "keep", and whether first tokens go.
        frozen: Tokens that are evidence instead of what `sinks` says.
        jobs: Each sees what was read and `[batch, token]`, which tokens are evidence.
    """
    if frozen is None:
        assert sinks is not None
        keep = evidence(read, valid, *sinks)
    else:
        keep = frozen.to(next(iter(read.values())).device)
    out = {KEEP: keep[valid.to(keep.device)]}
    for k, job in enumerate(jobs):
        out.update({(group, k, name): value for (group, name), value in job(read, keep).items()})
    return out


def keep_tokens(valid: torch.Tensor, norms: torch.Tensor, sinks: str, drop_first: bool) -> torch.Tensor:
    """Which tokens are evidence: valid ones that are no attention sink (ten times the median norm).

    Args:
        valid: `[batch, token]`.
        norms: `[layer, batch, token]`.
        sinks: "drop" or "keep".
        drop_first: Drop the first valid token too (decoders that add no BOS).
    """
    if sinks == "keep":
        return valid
    # Padding and special tokens are no measure of a usual norm: the median skips what is NaN.
    masked = norms.float().masked_fill(~valid, torch.nan)
    median = masked.nanmedian(dim=-1, keepdim=True).values
    keep = valid & ~(masked > SINK_FACTOR * median).any(0)
    if drop_first:
        # Without BOS a decoder makes a sink of whatever stands first, ten times the median or not.
        keep = keep & ~(valid & (valid.long().cumsum(-1) == 1))
    return keep


def evidence(
    read: Read, valid: torch.Tensor, layers: Sequence[int], sinks: str, drop_first: bool
) -> torch.Tensor:
    """Which tokens of a batch are evidence, decided from `resid_post` at some layers.

    Raises:
        ValueError: An activation is NaN or Inf.
    """
    # A norm is NaN or Inf as soon as one entry is: one number a token is looked at, not d_model.
    norms = on_first(torch.stack, [read[layer, "resid_post"].float().norm(dim=-1) for layer in layers])
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


def score_rows(vectors: Vectors, index: int, activations: torch.Tensor) -> torch.Tensor:
    """Scores `[*token, unit]` of raw activations at one layer, float32 whatever their format."""
    if callable(vectors):
        return vectors(index, activations)
    directions, mean, scale, cosine = vectors
    device = activations.device
    # In float32 whatever the model's format: differences of scores are what thresholds cut.
    x = (activations.float() - mean[index].to(device)) / scale[index].to(device)
    v = directions[index].to(device)
    dots = x @ v.T
    if not cosine:
        return dots
    norms = x.norm(dim=-1, keepdim=True) * v.norm(dim=-1)
    return dots.div(norms.clamp_min(LEAST_LENGTHS))


def direction_rows(
    vectors: tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool], index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dot scores at one layer as products with raw activations: `h @ rows.T + bias`.

    `x . v` with `x = (h - mean) / scale` is `(v / scale) . h - (v / scale) . mean`. In float32 the two
    differ by rounding of the size of the bias: where the mean is many times the spread, that shows.

    Args:
        vectors: Vectors, mean, scale, and whether they score by cosine, which no direction does.
        index: Place of the layer.

    Returns:
        Rows `[unit, d_model]` and bias `[unit]`.
    """
    directions, mean, scale, _ = vectors
    rows = precise(directions[index]) / precise(scale[index])
    return rows.float(), -(rows @ precise(mean[index])).float()


def by_layer(vectors: Vectors, activations: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scores `[*token, layer, unit]`."""
    return on_first(torch.stack, [score_rows(vectors, k, h) for k, h in enumerate(activations)], dim=-2)


def on_first(
    join: Callable[..., torch.Tensor], parts: Sequence[torch.Tensor], **options: int
) -> torch.Tensor:
    """Join tensors of several layers, which lie on several devices where the model does, on the first's."""
    return join([part.to(parts[0].device) for part in parts], **options)


def mean_over(h: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Mean `[batch, d_model]` over kept tokens."""
    h, weight = h.float(), keep.to(h.device).float()
    n = weight.sum(-1, keepdim=True).clamp_min(1)
    about = torch.einsum("btd,bt->bd", h, weight) / n
    # Once more about that mean: far from zero the first one is off by its own rounding times the tokens.
    return about + torch.einsum("btd,bt->bd", h - about[:, None], weight) / n


def class_tokens(h: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The class token's activation of each sample."""
    return h[torch.arange(len(h), device=h.device), index.to(h.device)]


def token_scores(
    read: Read,
    keep: torch.Tensor,
    *,
    valid: torch.Tensor,
    banks: Sequence[tuple[Sequence[int], str, Mapping[str, Vectors]]],
    class_index: torch.Tensor | None = None,
) -> Keeping:
    """Scores of every token under every vector, and the controls' scores of each sample.

    Args:
        read: Activations.
        keep: Which tokens are evidence.
        valid: Tokens that are neither padding nor special.
        banks: For each bank its layers, hook point and sets of vectors by name.
        class_index: Where each sample's class token stands.

    Returns:
        Rows `[row, layer, unit]` by the bank's number, samples by `(set, number)`.
    """
    rows: dict[Any, torch.Tensor] = {}
    samples: dict[Any, torch.Tensor] = {}
    for k, (layers, point, sets) in enumerate(banks):
        h = [read[layer, point] for layer in layers]
        found = by_layer(sets["token"], h)
        rows[k] = found[valid.to(found.device)]
        if "permuted" in sets:
            # Of the null only the highest score a sample is ever used: a few numbers travel, not all.
            null = by_layer(sets["permuted"], h)
            samples["permuted", k] = null.masked_fill(
                ~keep.to(null.device)[..., None, None], -torch.inf
            ).amax(1)
        if "pooled" in sets:
            samples["pooled", k] = by_layer(sets["pooled"], [mean_over(one, keep) for one in h])
        if "cls" in sets and class_index is not None:
            samples["cls", k] = by_layer(sets["cls"], [class_tokens(one, class_index) for one in h])
    return keeping(rows=rows, samples=samples)


def maxima(
    read: Read,
    keep: torch.Tensor,
    *,
    layers: Sequence[int],
    point: str,
    vectors: Vectors,
    top: int = 1,
    places: bool = False,
) -> Keeping:
    """The `top` highest scores of each sample, and where they stand.

    Args:
        read: Activations.
        keep: Which tokens are evidence.
        layers: Blocks.
        point: Hook point.
        vectors: Of those blocks.
        top: How many.
        places: Whether to say where they stand.

    Returns:
        Samples: `best` `[batch, top, layer, unit]`, descending, -inf where a sample has fewer
        tokens; `place`, their positions in the batch, int16 where that holds them; `count`, tokens
        of each sample that are evidence.
    """
    found = by_layer(vectors, [read[layer, point] for layer in layers])
    keep = keep.to(found.device)
    found = found.masked_fill(~keep[..., None, None], -torch.inf)
    if found.shape[1] < top:
        pad = found.new_full((len(found), top - found.shape[1], *found.shape[2:]), -torch.inf)
        found = torch.cat([found, pad], dim=1)
    best = found.topk(top, dim=1)
    samples = {"best": best.values, "count": keep.sum(-1)}
    if places:
        # Positions travel: two bytes each do for contexts below 32,768 tokens.
        samples["place"] = best.indices.to(torch.int16 if keep.shape[1] < 1 << 15 else torch.int32)
    return keeping(samples=samples)


def histogram(
    read: Read,
    keep: torch.Tensor,
    *,
    layers: Sequence[int],
    point: str,
    vectors: Vectors,
    labels: torch.Tensor,
    known: torch.Tensor | None = None,
) -> Keeping:
    """Counts of scores by their bits, in and out of each concept.

    A bin is the high 16 bits of the score's order-preserving key (see
    `sa_plugin.statistics.streaming`): within 2**-7 of the value, whatever its size.

    Args:
        read: Activations.
        keep: Which tokens are evidence.
        layers: Blocks.
        point: Hook point.
        vectors: Of those blocks.
        labels: `[batch, token, unit]`.
        known: Which labels are known; None where all are. The others are not counted.

    Returns:
        Sums: `bins` `[2 * layer * unit * 65536]`, out of concept, then in; sparse, int64.
    """
    found = by_layer(vectors, [read[layer, point] for layer in layers])
    keep = keep.to(found.device)
    found = found[keep]
    inside = labels.to(found.device)[keep][:, None].expand_as(found).long()
    n_layers, n_units = found.shape[1:]
    # One flat index for (in or out, layer, unit, bin), so that a single count serves all columns.
    column = torch.arange(n_layers * n_units, device=found.device).reshape(n_layers, n_units)
    place = (inside * n_layers * n_units + column) * SCORE_BINS + bins(found)
    size = 2 * n_layers * n_units * SCORE_BINS
    if known is not None:
        place = place[known.to(found.device)[keep][:, None].expand_as(found)]
    flat, count = torch.unique(place, return_counts=True)
    total = torch.sparse_coo_tensor(flat[None], count, (size,), check_invariants=False)
    return keeping(sums={"bins": total.coalesce()})


def above(
    read: Read,
    keep: torch.Tensor,
    *,
    valid: torch.Tensor,
    own: torch.Tensor,
    banks: Sequence[tuple[int, str, Vectors]],
    order: torch.Tensor,
    cuts: torch.Tensor,
) -> Keeping:
    """Of some columns, each a vector at a layer: samples' maxima, counts by bin, all scores above cuts.

    Args:
        read: Activations.
        keep: Which tokens are evidence.
        valid: Tokens that are neither padding nor special.
        own: `[batch, token]`, tokens that count; of windows that overlap each token counts once.
        banks: Layers with their hook point and their vectors.
        order: Place of each column among the vectors of all banks, one after another.
        cuts: `[column]`, float32.

    Returns:
        Samples: `best` `[batch, column]`, -inf where no token counts; `place`, which of the sample's valid
        tokens it is; `count`, tokens that count. Sums: `bins` `[column * TAIL_BINS]`, sparse, int64. Picked:
        `AT`, `column` and `score` of every score at or above its cut.
    """
    columns = [score_rows(vectors, 0, read[layer, point]) for layer, point, vectors in banks]
    found = on_first(torch.cat, columns, dim=-1)
    device = found.device
    found = found[..., order.to(device)]
    counts = keep.to(device) & own.to(device)
    # -inf lies below every cut, and is no maximum where some token counts.
    found = found.masked_fill(~counts[..., None], -torch.inf)
    best = found.max(1)
    # Where a token stands among its sample's valid ones, and among all of the batch.
    among = valid.to(device).long().cumsum(1) - 1
    flat = valid.to(device).flatten().long().cumsum(0) - 1
    row, token, column = (found >= cuts.to(device)).nonzero(as_tuple=True)
    picked = {AT: flat[row * found.shape[1] + token], "column": column, "score": found[row, token, column]}
    width, chosen = found.shape[-1], found[counts]
    filled, count = [], []
    # Some columns at a time: counting takes several whole numbers a score, and a bin for each that may be.
    for start in range(0, width, _COUNTED):
        # One flat index for (column, bin), so that a single count serves these columns.
        high = bins(chosen[:, start : start + _COUNTED]) >> 4
        place = torch.arange(high.shape[1], dtype=torch.int32, device=device) * TAIL_BINS + high
        counted = torch.bincount(place.flatten(), minlength=high.shape[1] * TAIL_BINS)
        where = counted.nonzero()[:, 0]
        filled.append(where + start * TAIL_BINS)
        count.append(counted[where])
    size = (width * TAIL_BINS,)
    total = torch.sparse_coo_tensor(torch.cat(filled)[None], torch.cat(count), size, check_invariants=False)
    samples = {"best": best.values, "place": among.gather(1, best.indices), "count": counts.sum(-1)}
    return keeping(sums={"bins": total.coalesce()}, samples=samples, picked=picked)


def bins(values: torch.Tensor) -> torch.Tensor:
    """High 16 bits of the keys of float32 numbers; both zeros get one key.

    The key is `sa_plugin.statistics.streaming.to_keys`, said again in torch because this file travels
    by itself to wherever the model is; a test holds the two equal on every pattern of high bits.
    """
    # Adding 0 turns -0.0 into 0.0. Negative numbers order backwards by their bits, so all bits flip;
    # positive ones stand above them once the sign bit is set.
    bits = (values.contiguous() + 0.0).view(torch.int32)
    return torch.where(bits < 0, ~bits >> 16, (bits >> 16) + (1 << 15))


def train(
    read: Read,
    keep: torch.Tensor,
    *,
    valid: torch.Tensor,
    sites: Sequence[tuple[int, str]],
    labels: tuple[torch.Tensor, torch.Tensor],
    stored: torch.Tensor | None,
    gram: bool,
    writes: Sequence[tuple[int, str]],
    class_index: torch.Tensor | None,
) -> Keeping:
    """Sums that concept vectors are fitted from, and the rows to store.

    Args:
        read: Activations.
        keep: Which tokens are evidence.
        valid: Tokens that are neither padding nor special, as many as there are rows of labels.
        sites: Where activations are read: one block each, and its point.
        labels: Of rows `[row, label]`, token labels and then permuted ones; of samples
            `[batch, concept]`.
        stored: Which rows to store; None when the kinds to be fitted need sums alone. Then the
            sample means and class tokens are summed too, not handed over one by one.
        gram: Whether to sum outer products.
        writes: Sites whose means the ledger needs.
        class_index: Where each sample's class token stands.

    Returns:
        Sums by `(moment, "token" | "pooled" | "cls", block)` and `("write", point, block)`; rows by
        block, in the number format the model gave them; samples by `("pooled" | "cls", block)`.
    """
    own = valid.to(keep.device)
    # A row that is no evidence keeps its place with weight 0: rows of labels stay rows of the batch.
    weight = keep[own].float()
    sums: dict[Any, torch.Tensor] = {}
    rows: dict[Any, torch.Tensor] = {}
    samples: dict[Any, torch.Tensor] = {}
    for block, point in sites:
        raw = read[block, point]
        # Where this layer is: a model may lie on several devices.
        h, device = raw.float(), raw.device
        flat = h[own.to(device)]
        of_rows, of_samples = (one.to(device).float() for one in labels)
        found = moments(flat, weight.to(device), of_rows, gram)
        sums.update({(name, "token", block): value for name, value in found.items()})
        whole = {"pooled": mean_over(h, keep)}
        if class_index is not None:
            whole["cls"] = class_tokens(h, class_index)
        for what, value in whole.items():
            if stored is not None:
                samples[what, block] = value
                continue
            each = torch.ones(len(value), device=device)
            found = moments(value, each, of_samples, gram)
            sums.update({(name, what, block): summed for name, summed in found.items()})
        if stored is not None:
            rows[block] = as_given(raw, own.to(device))[stored.to(device)]
    for layer, part in writes:
        write = read[layer, part].float().flatten(2)
        sums["write", part, layer] = About(
            write.flatten(0, 1), keep.to(write.device).flatten().float()
        ).total()
    return keeping(sums=sums, rows=rows, samples=samples)


def raw_rows(
    read: Read, keep: torch.Tensor, *, valid: torch.Tensor, sites: Sequence[tuple[int, str]]
) -> Keeping:
    """The activations of every token at some sites, as rows by the site's number.

    Args:
        read: Activations.
        keep: Which tokens are evidence.
        valid: Tokens that are neither padding nor special.
        sites: Layers and points.
    """
    return keeping(
        rows={k: as_given(read[site], valid.to(read[site].device)) for k, site in enumerate(sites)}
    )


def as_given(raw: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Chosen activations without loss: two bytes a number where the model computes in two, else float32.

    Halved from float32 they would be off by 2**-11 of their size, not of their spread, and Inf beyond
    65,504.
    """
    rows = raw[chosen]
    return rows if rows.dtype in (torch.float16, torch.bfloat16) else rows.float()


def moments(
    rows: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, gram: bool
) -> dict[str, torch.Tensor]:
    """Weighted sums of rows `[row, d_model]`, of their norms, and of the rows of each label."""
    about = About(rows, weight)
    out = {
        "sum": about.total(),
        "squares": (rows.square() * weight[:, None]).sum(),
        "norms": (rows.norm(dim=-1) * weight).sum(),
        "positive": about.totals(labels),
    }
    if gram:
        out["gram"] = about.gram()
    return out


class About:
    """Weighted sums of float32 rows, taken about the rows' own mean and moved back in float64.

    A float32 sum of rows rounds by their size, and a covariance, which is a difference of second
    moments, by its square: with a mean 5,000 times the spread nothing is left of it. Differences from
    the mean are of the size of the spread, and exact.

    Args:
        rows: `[row, d_model]`.
        weight: `[row]`.
        mean: About which; by default the rows' own, as far as float32 tells.
    """

    def __init__(self, rows: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor | None = None) -> None:
        self.weight = weight
        if mean is None:
            mean = weight @ rows / weight.sum().clamp_min(1)
        self.mean = precise(mean)
        self.centred = rows - mean
        self.weighted = self.centred * weight[:, None]

    def total(self) -> torch.Tensor:
        """Of the rows, `[d_model]`."""
        return precise(self.weight.sum()) * self.mean + precise(self.weighted.sum(0))

    def totals(self, labels: torch.Tensor) -> torch.Tensor:
        """Of the rows of each label, `[label, d_model]`."""
        number = precise(labels.T @ self.weight)
        return number[:, None] * self.mean + precise(labels.T @ self.weighted)

    def gram(self) -> torch.Tensor:
        """Of outer products, `[d_model, d_model]`."""
        # With h = m + r: sum hh' = sum rr' + (sum r) m' + m (sum r)' + n mm'.
        inner, rest = precise(self.weighted.T @ self.centred), precise(self.weighted.sum(0))
        cross = torch.outer(rest, self.mean)
        return inner + cross + cross.T + precise(self.weight.sum()) * torch.outer(self.mean, self.mean)


def precise(value: torch.Tensor) -> torch.Tensor:
    """In float64, on the CPU where the device has none."""
    return value.cpu().double() if value.device.type == "mps" else value.double()


def at_site(read: Read, *, site: tuple[int, str]) -> dict[str, torch.Tensor]:
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
        sinks: As for `reduce`.
    """
    return {"h": read[site].float(), "keep": evidence(read, valid, *sinks)}


def wide(value: torch.Tensor) -> torch.Tensor:
    """In the number format in which sums are added: float64, or the whole numbers they are."""
    return value.double() if value.is_floating_point() else value


def gather(results: Sequence[dict[Any, torch.Tensor]]) -> list[dict[Any, torch.Tensor]]:
    """Results of several batches, on the CPU; those that are sums are added into the last one's."""
    total: dict[Any, torch.Tensor] = {}
    out: list[dict[Any, torch.Tensor]] = []
    for one in results:
        out.append({k: v.detach().cpu() for k, v in one.items() if k[0] != "sums"})
        for key, value in one.items():
            if key[0] == "sums":
                part = wide(value.detach().cpu())
                total[key] = total[key] + part if key in total else part
    if out:
        out[-1].update({k: v.coalesce() if v.is_sparse else v for k, v in total.items()})
    return out
