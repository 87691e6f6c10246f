"""From an SAE to a bank: one pass over the calibration split, which prunes; nothing is fitted.

The bank goes the way of unsupervised kinds: `score`, `calibrate` (which matches latents to concepts
by calibration F1), `evaluate`. It is made here and not by `fit`, since there is nothing to learn
from the train split, and the calibration split is all it reads.

Memory: dense latents exist for a few thousand tokens at a time; `prune.py` stores active ones
alone; `score` stores the latents that are left, dense, in a file above its memory budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sa_plugin import reducers
from sa_plugin._names import require_known
from sa_plugin.collect import (
    BATCH_TOKENS,
    Layout,
    lay_out,
    sink_rule,
    sink_sites,
    token_table,
    walk,
)
from sa_plugin.concepts.bank import HOOK_POINTS, ConceptBank, HookPoint, Origin
from sa_plugin.data import ConceptData
from sa_plugin.host import Batch, BulkHost, Host, Reduce, SinkRule, Site, layers_of
from sa_plugin.sae.encode import Encoder, encode, hash_of, in_parts, width_of
from sa_plugin.sae.latents import PROBES, LatentSet, Source, by_layer
from sa_plugin.sae.prune import Activity, Pruned, Pruning, prune, pruning_of
from sa_plugin.tokens import TokenTable

KIND = "sae"


def sae_bank(
    host: Host,
    data: ConceptData,
    sae: object,
    *,
    layers: int | Sequence[int] | None = None,
    hook_point: str = "resid_post",
    pruning: str | Pruning = "adaptive",
    sinks: str = "drop",
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> ConceptBank:
    """Latents of an SAE as the units of a concept bank.

    Costs one forward pass and one `encode` for each calibration sample.

    Args:
        host: An attached model, in this process.
        data: Labelled samples; only the calibration split is read.
        sae: An object with `encode(activations [token, d_model]) -> latents [token, latent]`, or
            one for each layer, `{layer: sae}`. It gets raw activations in float32.
        layers: Block indices; by default those of `sae`. Which layer and hook point an SAE was
            trained at is your word: only its width is checked.
        hook_point: Where activations are read.
        pruning: "adaptive" and "plain" (`sa_plugin.sae.prune`), "none" (drops dead latents), or
            limits of your own.
        sinks: "drop" leaves attention sinks out.
        batch_tokens: Tokens in a batch, padding included.
        progress: Whether to show a bar.

    Returns:
        A bank whose units are named "latent 17". A unit that was kept at one layer only scores 0
        at the others, which never fires.

    Raises:
        TypeError: An SAE has no `encode`, or gives no tensor.
        ValueError: Another width, NaN or negative latents, no latent is left, no or too many SAEs,
            unknown layer or hook point, or a model on a server.

    Example:
        >>> bank = sae_bank(host, data, {14: sae})  # doctest: +SKIP
        >>> detector = calibrate(host, data, bank)  # doctest: +SKIP
    """
    require_known("hook_point", hook_point, HOOK_POINTS)
    require_known("sinks", sinks, ("drop", "keep"))
    if isinstance(host, BulkHost):
        raise ValueError(
            f"{host.info.model} is on a server, and an SAE runs where the activations are: attach "
            "a local copy of the model."
        )
    if layers is None and isinstance(sae, Mapping):
        layers = [int(layer) for layer in sae]
    if layers is None:
        raise ValueError("layers is not given: an SAE belongs to one layer, give layers=14, say.")
    blocks = layers_of(host.info, layers)
    saes = by_layer(sae, blocks)
    widths = {at: width_of(saes[at], at, host.info.d_model) for at in blocks}
    hashes = {at: hash_of(saes[at]) for at in blocks}
    samples = data.cal.samples
    layout = lay_out(host, samples, data.concepts, batch_tokens=batch_tokens)
    point, rule = cast(HookPoint, hook_point), cast(SinkRule, sinks)
    run = _Pass(host, layout, saes, widths, point, rule, pruning)
    run.go(progress)
    tokens = token_table(layout, run.keep, samples, ["cal"] * len(samples), data.concepts)
    limits = run.limits(tokens.labels)
    found = {at: prune(run.activity[at], limits, len(tokens)) for at in blocks}
    _require_some(found, limits, len(tokens))
    record = {
        "pruning": vars(limits), "rule": pruning if isinstance(pruning, str) else "given",
        "cal_tokens": len(tokens), "layers": {at: _about(found[at], run, at) for at in blocks},
    }  # fmt: skip
    latents = _latents(found, saes, widths, hashes, run)
    return ConceptBank(
        data.concepts, tuple(f"latent {j}" for j in latents.latents), blocks, point, KIND, latents,
        origin=_origin(host, data, tokens, blocks, rule, record),
    )  # fmt: skip


class _Pass:
    """One pass over the calibration split."""

    def __init__(
        self,
        host: Host,
        layout: Layout,
        saes: Mapping[int, Encoder],
        widths: Mapping[int, int],
        point: HookPoint,
        sinks: SinkRule,
        rule: str | Pruning,
    ) -> None:
        self.host, self.layout, self.saes, self.rule = host, layout, saes, rule
        self.widths, self.point, self.sinks = widths, point, sinks
        self.keep = np.zeros(layout.n_rows, dtype=bool)
        # Sinks are still among these rows: the bound holds for what is left of them. The one more
        # is for rounding: a latent on the limit is not ubiquitous, and its values are needed.
        most = self.limits(layout.labels).ubiquitous * layout.n_rows + 1
        self.activity = {at: Activity(widths[at], most) for at in saes}
        self.probes: dict[int, list[Tensor]] = {at: [] for at in saes}

    def limits(self, labels: Bool[np.ndarray, "row concept"]) -> Pruning:
        """What the rule gives for these rows."""
        images = self.layout.offsets.shape[1] == 4
        return pruning_of(self.rule, labels.sum(0), len(labels), images)

    def go(self, progress: bool) -> None:
        """Count."""
        blocks = tuple(self.saes)
        sites = sorted({*sink_sites(blocks), *(Site(at, self.point) for at in blocks)})
        rule = sink_rule(self.host.info, blocks, self.sinks)

        def reducer(batch: Batch) -> Reduce:
            return partial(
                _active, saes=self.saes, widths=self.widths, point=self.point, valid=batch.valid,
                sinks=rule,
            )  # fmt: skip

        for batch, got in walk(
            self.host, self.layout, sites, cast(Callable[[Batch], Reduce], reducer),
            description="sae", progress=progress,
        ):  # fmt: skip
            self.keep[self.layout.rows(batch)] = got["keep"].numpy()[batch.valid.numpy()]
            for at in blocks:
                latent, value = got[f"latent {at}"].numpy(), got[f"value {at}"].numpy()
                self.activity[at].add(latent, value)
                self.probes[at] = [torch.cat([*self.probes[at], got[f"probe {at}"]])[:PROBES]]


def _active(
    read: Mapping[Any, Tensor],
    *,
    saes: Mapping[int, Encoder],
    widths: Mapping[int, int],
    point: str,
    valid: Bool[Tensor, "batch token"],
    sinks: tuple[Sequence[int], str, bool],
) -> dict[str, Tensor]:
    """Latents above zero of a batch's kept tokens, as pairs of index and value."""
    keep = reducers.kept(read, valid, *sinks)
    out = {"keep": keep.cpu()}
    for at, sae in saes.items():
        h = read[at, point].float()
        h = h[keep.to(h.device)]
        latent: list[Int[Tensor, " entry"]] = [torch.zeros(0, dtype=torch.int32)]
        value = [torch.zeros(0)]
        for part in in_parts(len(h), widths[at]):
            found = encode(sae, h[part])
            place = found.nonzero(as_tuple=True)
            latent.append(place[1].int().cpu())
            value.append(found[place].cpu())
        out[f"latent {at}"], out[f"value {at}"] = torch.cat(latent), torch.cat(value)
        out[f"probe {at}"] = h[:PROBES].cpu()
    return out


def _latents(
    found: Mapping[int, Pruned],
    saes: Mapping[int, Encoder],
    widths: Mapping[int, int],
    hashes: Mapping[int, str],
    run: _Pass,
) -> LatentSet:
    chosen = sorted({int(j) for one in found.values() for j in np.flatnonzero(one.kept)})
    kept = [[j < widths[at] and bool(one.kept[j]) for j in chosen] for at, one in found.items()]
    sources = [Source(saes[at], widths[at], hashes[at]) for at in found]
    probes = torch.stack([run.probes[at][0] for at in found])
    return LatentSet(sources, chosen, torch.tensor(kept), probes)


def _require_some(found: Mapping[int, Pruned], limits: Pruning, tokens: int) -> None:
    for at, one in found.items():
        if not one.kept.any():
            raise ValueError(
                f"no latent of the SAE at layer {at} is left: {one.dead} of {len(one.kept)} are "
                f"dead (above zero at fewer than {limits.dead} of {tokens} calibration tokens), "
                f"{one.ubiquitous} ubiquitous (above zero at more than {limits.ubiquitous:.3g} of "
                f"them), {one.weak} weak. Check the SAE's layer and hook point, or give "
                "pruning=Pruning(dead=..., ubiquitous=..., weak=...)."
            )


def _about(one: Pruned, run: _Pass, at: int) -> dict[str, Any]:
    """What a saved bank says about the pruning of one layer."""
    tokens = max(1, int(run.keep.sum()))
    return {
        "sae": type(run.saes[at]).__name__, "latents": len(one.kept),
        "kept": int(one.kept.sum()), "dead": one.dead, "ubiquitous": one.ubiquitous,
        "weak": one.weak, "never_active": int((one.count == 0).sum()),
        "active_per_token": float(one.count.sum() / tokens),
    }  # fmt: skip


def _origin(
    host: Host,
    data: ConceptData,
    tokens: TokenTable,
    blocks: tuple[int, ...],
    sinks: SinkRule,
    record: Mapping[str, Any],
) -> Origin:
    info = host.info
    return Origin(
        info.model, info.architecture, info.fingerprint, info.processing, info.dtype,
        info.tokenizer, data.hash, sinks, blocks, 0, record,
        {"kept": len(tokens), **tokens.dropped},
    )  # fmt: skip
