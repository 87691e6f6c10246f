"""What an ablated head writes instead, through its `z` (the input of the output projection W_O).

At every position, special tokens and padding included, for every ablated head h of a layer:

| mode | z_h becomes |
|---|---|
| mean | mean(z_h) over the kept tokens of the train split |
| zero | 0; the layer then writes its bias, and the residual stream is moved off its usual mean |
| resample | z_h of a random kept token of the train split, never of a measured sample |
| directional | z_h - ((z_h - mean(z_h)) . u_h) u_h,  u_h = W_O[h] w_c / norm(W_O[h] w_c) |
| pattern | mean over the visible keys of v_h: every key alike, W_V and W_O as they are |

Resample draws one donor token for each position, and all ablated heads of all layers take it from
the same donor: the heads keep their joint distribution and lose what they know of this text. The
donors are at most `DONORS` kept tokens of at most `DONOR_SAMPLES` train samples, stored once.

Directional is the smallest change of z_h after which the head's write along the concept vector
w_c is its train mean, whatever the token: the head's term in the centred ledger becomes 0 (without
means in the raw ledger: -). All that the head writes at right angles to w_c stays, and so does what
other parts make of it. It is defined where the write reaches the score without a norm in between
(pre-norm models, residual stream), and takes one concept at a time: the span of several concepts
soon fills the d_head dimensions of a head.

Pattern is the one that tests where heads attend rather than what they write: of the token's own
text, the head reads all that it may see, with equal weight. Visible are the keys that the model's
mask leaves (padding, causality and sliding windows respected), and among them *special tokens and
attention sinks, one key each*: a head that rests on a sink writes little in the intact model and is
made to write here, so this edit may add as well as take away. Its change of the residual stands
beside every result.

What none of them shows: under every mode the model is off its usual path, under zero most of all. A
small effect may be backup by later heads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.host.protocol import (
    Attended,
    Batch,
    Edit,
    Host,
    HostInfo,
    Output,
    Site,
    ZEdit,
    uniform_attention,
)
from sa_plugin.host.reducers import Keeping, keeping
from sa_plugin.passes.layout import Layout, lay_out
from sa_plugin.passes.run import Job, Reducer, Sinks, run_jobs

ABLATIONS = ("mean", "zero", "resample", "directional", "pattern")
DONORS, DONOR_SAMPLES = 4096, 64

Head: TypeAlias = tuple[int, int]
"""Block and head."""
NamedHead: TypeAlias = Head | str
"""A head as people give it: as a pair, or as it is printed, "L4H1"."""
_PRINTED = re.compile(r"\s*L(\d{1,6})\s*H(\d{1,6})\s*", re.IGNORECASE)
_Directions: TypeAlias = Mapping[Head, Float[Tensor, " d_head"]]


@face
@dataclass(frozen=True)
class Intervention:
    """How heads are ablated, and what is looked at besides the concepts.

    Attributes:
        mode: "mean", "zero", "resample", "directional" or "pattern", see the module.
        keep: Whether the named heads are those that stay, and all others before the deepest layer
            of a concept are ablated: do they suffice?
        output: Measures the change of the model's own output too: a function of host and batch that
            gives logits (`sa_transformer_lens.logits`), or "hidden" for the last residual
            stream; see `tail_metrics`.

    Raises:
        ValueError: The mode is unknown.
    """

    mode: str = "mean"
    keep: bool = False
    output: Output | str | None = None

    def __post_init__(self) -> None:
        require_known("mode", self.mode, ABLATIONS)
        if isinstance(self.output, str):
            require_known("output", self.output, ("hidden",))


class Reference(NamedTuple):
    """What ablated heads write instead.

    Attributes:
        means: By layer; of every head.
        donors: By layer; z of the same tokens at every layer.
        seed: Of the donors and of which position gets which.
        mlps: Train means of what each MLP adds, by layer.
    """

    means: Mapping[int, Float[Tensor, "head d_head"]] = {}
    donors: Mapping[int, Float[Tensor, "donor head d_head"]] = {}
    seed: int = 0
    mlps: Mapping[int, Float[Tensor, " d_model"]] = {}


def reference(
    host: Host,
    data: ConceptData | None,
    bank: ConceptBank | None,
    mode: str,
    layers: Collection[int],
    *,
    seed: int = 0,
) -> Reference:
    """Train means or donors of z, as far as a mode needs them.

    Costs nothing where the bank has component means, else a pass over the train split (means) or
    over `DONOR_SAMPLES` of its samples (donors).

    Raises:
        ValueError: The mode is unknown, or needs a bank or data that is not given.
    """
    require_known("mode", mode, ABLATIONS)
    if mode in ("zero", "pattern"):
        return Reference(seed=seed)
    if mode != "resample" and bank is not None and bank.component_means is not None:
        z = bank.component_means.z
        if max(layers) < len(z):
            return Reference({at: z[at].float() for at in layers}, seed=seed)
    if data is None or bank is None:
        raise ValueError(
            f"mode {mode!r} needs z of the train split: give bank= and data= (or, for means, a "
            "bank fitted on resid_post of a pre-norm model, which holds them)."
        )
    samples, sites = data.train.samples, {at: Site(at, "z") for at in layers}
    if mode != "resample":
        found = _train_mean(host, samples, bank, list(sites.values()))
        return Reference({site.layer: mean for site, mean in found.items()}, seed=seed)
    rng = np.random.default_rng(seed)
    # Some samples first, so that the pass is short; then some of their tokens, the same at all layers.
    drawn = rng.permutation(len(samples))[:DONOR_SAMPLES]
    layout = lay_out(host, [samples[n] for n in drawn], ())
    rows = kept_rows(host, layout, bank.sinks_on(host.info), sites, "z")
    some = torch.from_numpy(rng.permutation(len(next(iter(rows.values()))))[:DONORS])
    return Reference(donors={at: z[some] for at, z in rows.items()}, seed=seed)


def block_reference(host: Host, data: ConceptData, bank: ConceptBank, blocks: int) -> Reference:
    """Train means of z and of what MLPs add, for the first blocks.

    Costs nothing where the bank has component means, else a pass over the train split.
    """
    layers, means = range(blocks), bank.component_means
    if means is not None and blocks <= len(means.z):
        return Reference(
            {k: means.z[k].float() for k in layers}, mlps={k: means.mlp[k].float() for k in layers}
        )
    sites = [Site(k, point) for k in layers for point in ("z", "mlp_out")]
    found = _train_mean(host, data.train.samples, bank, sites)
    z, mlps = ({k: found[Site(k, point)] for k in layers} for point in ("z", "mlp_out"))
    return Reference(z, mlps=mlps)


def block_edit(site: Site, known: Reference) -> dict[Site, Edit]:
    """Mean ablation of a whole part: all heads of a block (its z) or its MLP (what it adds)."""
    if site.point == "z":
        return make_edits("mean", [(site.layer, h) for h in range(len(known.means[site.layer]))], known)
    value = known.mlps[site.layer]
    return {site: lambda out: value.to(out).expand_as(out)}


def _train_mean(
    host: Host, samples: Sequence[Sample], bank: ConceptBank, sites: Sequence[Site]
) -> dict[Site, Float[Tensor, " *what"]]:
    """The mean over kept tokens at each site."""

    def reduce(read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Keeping:
        return keeping(sums={site: read[site].float()[keep].double().sum(0) for site in sites})

    job = Job(sites, lambda batch: reduce)
    (kept,) = run_jobs(host, lay_out(host, samples, ()), [job], bank.sinks_on(host.info), description="z")
    n = int(kept.keep.sum())
    return {site: (kept.sums[site] / n).float() for site in sites}


def kept_rows(
    host: Host,
    layout: Layout,
    rule: Sinks | Bool[np.ndarray, " row"],
    sites: Mapping[int, Site],
    description: str,
) -> dict[int, Float[Tensor, "token *what"]]:
    """What stands at one site of each layer for every kept token, under whatever edits are in force."""

    def reducer(batch: Batch) -> Reducer:
        def reduce(read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Keeping:
            valid = batch.valid.to(keep.device)
            return keeping(rows={at: read[site].float()[valid] for at, site in sites.items()})

        return reduce

    (kept,) = run_jobs(host, layout, [Job(sites.values(), reducer)], rule, description=description)
    # In the order of the batches: donors are drawn by their number, and means over rows are in float32.
    order = layout.run_order(kept.keep)
    return {at: torch.from_numpy(kept.rows[at][order]) for at in sites}


def check_heads(info: HostInfo, heads: Sequence[NamedHead], name: str = "heads") -> tuple[Head, ...]:
    """Heads as given, in order.

    Args:
        info: Of the model.
        heads: In either form.
        name: Of the argument, for errors.

    Raises:
        ValueError: None, one twice, one the model does not have, or a name that is no head's.
    """
    chosen = tuple(_head_of(one, name) for one in heads)
    if not chosen:
        raise ValueError(f"{name} is empty, and ablating nothing changes nothing: name a head.")
    for layer, head in chosen:
        if not (0 <= layer < info.n_layers and 0 <= head < info.n_heads):
            raise ValueError(
                f"head ({layer}, {head}) does not exist: {info.model} has blocks 0 to "
                f"{info.n_layers - 1} of {info.n_heads} heads, 0 to {info.n_heads - 1}."
            )
    twice = [head for head in chosen if chosen.count(head) > 1]
    if twice:
        raise ValueError(f"head {twice[0]} is named twice.")
    return chosen


def _head_of(given: NamedHead, name: str) -> Head:
    if not isinstance(given, str):
        layer, head = given
        return int(layer), int(head)
    found = _PRINTED.fullmatch(given)
    if found is None:
        raise ValueError(f"{name}: {given!r} names no head: give (4, 1), or as it is printed, 'L4H1'.")
    return int(found[1]), int(found[2])


def make_edits(
    mode: str, heads: Sequence[Head], known: Reference, direction: _Directions | None = None
) -> dict[Site, Edit]:
    """One edit of z a layer.

    `known` is from `reference`; `direction`, for "directional", from `directions`.
    """
    require_known("mode", mode, ABLATIONS)
    edits: dict[Site, Edit] = {}
    for layer in sorted({at for at, _ in heads}):
        index = torch.tensor(sorted(head for at, head in heads if at == layer))
        edit: Edit
        if mode == "pattern":
            edit = _attend_alike(index)
        elif mode == "zero":
            edit = _replace(index, torch.zeros(()))
        elif mode == "mean":
            edit = _replace(index, known.means[layer][index])
        elif mode == "resample":
            edit = _resample(index, known.donors[layer][:, index], known.seed)
        else:
            assert direction is not None
            units = torch.stack([direction[layer, int(h)] for h in index])
            edit = _take_out(index, units, known.means[layer][index])
        edits[Site(layer, "z")] = edit
    return edits


def _replace(index: Tensor, value: Tensor) -> Edit:
    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, :, index.to(z.device)] = value.to(z)
        return z

    return edit


def _resample(index: Tensor, donors: Tensor, seed: int) -> Edit:
    # Each layer draws the same numbers from its own generator, so a position has one donor.
    generator = torch.Generator().manual_seed(seed)

    def edit(z: Tensor) -> Tensor:
        z = z.clone()
        # Padding draws too: which donor a token gets depends on the batch it is in.
        chosen = torch.randint(len(donors), z.shape[:2], generator=generator)
        z[:, :, index.to(z.device)] = donors[chosen].to(z)
        return z

    return edit


def _attend_alike(index: Tensor) -> Edit:
    def edit(z: Tensor, attended: Attended | None) -> Tensor:
        assert attended is not None
        return uniform_attention(z, index.to(z.device), attended)

    return ZEdit(edit, attends=True)


def _take_out(index: Tensor, units: Tensor, means: Tensor) -> Edit:
    def edit(z: Tensor) -> Tensor:
        z, u, heads = z.clone(), units.to(z.device), index.to(z.device)
        # In float32: a half-precision z differs from its mean by less than its own rounding.
        off = z[:, :, heads].float() - means.to(z.device)
        # Only the part along u is taken out; what is written at right angles to the concept stays.
        along = torch.einsum("bthk,hk->bth", off, u)
        z[:, :, heads] = (z[:, :, heads].float() - along[..., None] * u).to(z.dtype)
        return z

    return edit


def directions(
    host: Host, vector: Float[Tensor, " d_model"], heads: Sequence[Head]
) -> dict[Head, Float[Tensor, " d_head"]]:
    """The unit vector of each head's z along which it writes a concept; 0 where it cannot.

    Raises:
        NotImplementedError: A norm stands between the heads and the residual stream.
    """
    if host.info.block != "pre_norm":
        raise NotImplementedError(
            f"{host.info.architecture} is {host.info.block}: a norm stands between what a head "
            "writes and the score, so no fixed direction of z is the concept's. Use mode='mean'."
        )
    found = {}
    for layer in {at for at, _ in heads}:
        # W_O[h] w of every head of the block; where it is 0 the head cannot write along w at all.
        along = host.output_projection(layer).weight @ vector.float().cpu()
        units = along / along.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        found.update({(layer, h): units[h] for at, h in heads if at == layer})
    return found


def one_direction(
    host: Host, bank: ConceptBank | None, concept: str | None, layer: int | None, heads: Sequence[Head]
) -> dict[Head, Float[Tensor, " d_head"]]:
    """`directions` of one concept of a bank.

    Raises:
        ValueError: No bank, no concept, or a bank of several layers of which none is named.
    """
    if bank is None or concept is None:
        raise ValueError("mode 'directional' takes one concept out: give bank= and concept=.")
    if layer is None and len(bank.layers) > 1:
        raise ValueError(f"the bank has vectors at blocks {list(bank.layers)}: give layer=.")
    at = bank.layers[0] if layer is None else layer
    return directions(host, bank.vector(concept, at), heads)
