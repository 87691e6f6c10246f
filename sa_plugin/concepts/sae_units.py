"""From an SAE to a bank: one pass over the calibration split, which prunes; nothing is fitted.

The bank goes the way of unsupervised kinds: `score`, `calibrate` (which matches latents to concepts
by calibration F1), `evaluate`. It is made here and not by `fit`, since there is nothing to learn
from the train split, and the calibration split is all it reads. A latent is worth matching that is
neither dead, nor everywhere, nor weak. Over the kept calibration tokens, with `n_j` those where
latent j is above zero:

    dead        n_j < dead
    ubiquitous  n_j / tokens > ubiquitous
    weak        p99_j below the `weak`-th percentile of p99 over the latents that are left,
                p99_j the 99 % quantile of latent j where it is above zero

(arXiv 2512.05038, the authors' code.) `plain` has the paper's numbers, made for its data sets:
images 200, 2 %, 75; texts 500, 3 %, 70. `adaptive` takes them from the labels: dead below 0.75
times the tokens of the rarest concept (images) or below max(10, 1 % of them) (texts); ubiquitous
above 1.25 times the share of the commonest concept in the tokens whose label is known; weak the 50th,
60th, 70th or 80th percentile for 1, up to 9, up to 29, or more concepts. `none` drops dead latents alone.

Everything is exact. Dense latents exist for a few thousand tokens at a time; only active ones are
stored, eight bytes each, and a latent that is certainly ubiquitous is stored no further (where all
labels are known): about 8 L0 bytes a token, whatever the width. `score` stores the latents that are
left, dense, in a file above its memory budget.

What pruning does not show: that a latent that is left means anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin._face import face, face_methods
from sa_plugin.concepts.bank import HOOK_POINTS, ConceptBank, HookPoint, Origin
from sa_plugin.concepts.sae import (
    PROBES,
    Encoder,
    LatentSet,
    Source,
    hash_of,
    in_parts,
    latents_of,
    saes_by_layer,
    width_of,
)
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.host.protocol import Batch, BulkHost, Host, SinkRule, Site, layers_of
from sa_plugin.host.reducers import Keeping, keeping
from sa_plugin.passes.layout import Layout, lay_out, token_table
from sa_plugin.passes.run import Job, Reducer, run_jobs, sink_rule
from sa_plugin.statistics.quantile import quantiles_sorted

RULES = ("adaptive", "plain", "none")
PLAIN = {"image": (200, 0.02, 75.0), "text": (500, 0.03, 70.0)}


@face
@dataclass(frozen=True)
class Pruning:
    """Limits a latent has to keep.

    Attributes:
        dead: Least number of calibration tokens where it is above zero; at least 1.
        ubiquitous: Largest share of calibration tokens where it is above zero.
        weak: Percentile of p99 below which it is weak; 0 drops none.
    """

    dead: int = 1
    ubiquitous: float = 1.0
    weak: float = 0.0

    def __post_init__(self) -> None:
        if self.dead < 1 or not 0 < self.ubiquitous <= 1 or not 0 <= self.weak < 100:
            raise ValueError(
                f"{self!r}: dead must be 1 or more, ubiquitous a share in (0, 1], weak a "
                "percentile in [0, 100)."
            )


def pruning_of(
    rule: str | Pruning,
    counts: Int[np.ndarray, " concept"],
    known: int | Int[np.ndarray, " concept"],
    images: bool,
) -> Pruning:
    """The limits that a rule gives.

    Args:
        rule: "adaptive", "plain", "none", or limits of your own.
        counts: Calibration tokens of each concept.
        known: Calibration tokens whose label is known, of all concepts or each.
        images: Whether samples are images.

    Raises:
        ValueError: Unknown rule, or a concept has no calibration token to adapt to.
    """
    if isinstance(rule, Pruning):
        return rule
    require_known("pruning", rule, RULES)
    if rule == "none":
        return Pruning()
    if rule == "plain":
        return Pruning(*PLAIN["image" if images else "text"])
    rarest = int(counts.min())
    if not rarest:
        raise ValueError(
            "pruning 'adaptive' needs calibration tokens of every concept, and one has none: give "
            "pruning='plain', Pruning(dead=..., ubiquitous=..., weak=...), or more labels."
        )
    dead = max(1, int(0.75 * rarest)) if images else max(10, int(0.01 * rarest))
    n = len(counts)
    weak = 50.0 if n == 1 else 60.0 if n < 10 else 70.0 if n < 30 else 80.0
    # A token of unknown label is in neither class: it would make every concept look rare.
    commonest = float((counts / known).max())
    return Pruning(dead, min(1.0, 1.25 * commonest), weak)


@face_methods
class Activity:
    """Counts of active tokens and the active values of every latent of one layer.

    Args:
        width: Number of latents.
        most: Active tokens above which a latent's values are not needed.
    """

    def __init__(self, width: int, most: float) -> None:
        self.count: Int[np.ndarray, " latent"] = np.zeros(width, dtype=np.int64)
        self.most = most
        self._latents: list[Int[np.ndarray, " entry"]] = []
        self._values: list[Float[np.ndarray, " entry"]] = []

    def add(self, latent: Int[np.ndarray, " entry"], value: Float[np.ndarray, " entry"]) -> None:
        """Add the active latents of some tokens: whose they are, and how active."""
        self.count += np.bincount(latent, minlength=len(self.count))
        needed = self.count[latent] <= self.most
        self._latents.append(latent[needed])
        self._values.append(value[needed])

    def p99(self, which: Bool[np.ndarray, " latent"]) -> Float[np.ndarray, " latent"]:
        """99 % quantile of some latents where they are above zero; NaN for the others.

        Raises:
            ValueError: One of them was above zero more often than `most`: its values are gone.
        """
        latent, value = np.concatenate(self._latents), np.concatenate(self._values)
        wanted = which[latent]
        latent, value = latent[wanted], value[wanted]
        order = np.lexsort((value, latent))
        ordered = value[order]
        stored = np.bincount(latent, minlength=len(which))
        ends = stored.cumsum()
        gone = np.flatnonzero(which & (stored != self.count))
        if len(gone):
            raise ValueError(
                f"latent {gone[0]} was above zero at {self.count[gone[0]]} tokens, and the values "
                f"of {stored[gone[0]]} are stored: raise `most`, {self.most:g}."
            )
        found = np.full(len(which), np.nan)
        for j in np.flatnonzero(which & (self.count > 0)):
            found[j] = quantiles_sorted(ordered[ends[j] - self.count[j] : ends[j]], [0.99])[0]
        return found


@dataclass(frozen=True, eq=False)
class Pruned:
    """Which latents of one layer are left, and why the others are not.

    Attributes:
        kept: Latents that are left.
        dead, ubiquitous, weak: Numbers dropped.
        count: Active calibration tokens of each latent.
    """

    kept: Bool[np.ndarray, " latent"]
    dead: int
    ubiquitous: int
    weak: int
    count: Int[np.ndarray, " latent"]


def prune(activity: Activity, limits: Pruning, tokens: int) -> Pruned:
    """Apply the limits.

    Args:
        activity: Of one layer, over the calibration split.
        limits: To keep.
        tokens: Calibration tokens.
    """
    dead = activity.count < limits.dead
    ubiquitous = ~dead & (activity.count > limits.ubiquitous * tokens)
    left = ~dead & ~ubiquitous
    weak = np.zeros_like(left)
    if limits.weak and left.any():
        p99 = activity.p99(left)
        with np.errstate(invalid="ignore"):
            weak = left & (p99 < np.percentile(p99[left], limits.weak))
    return Pruned(left & ~weak, int(dead.sum()), int(ubiquitous.sum()), int(weak.sum()), activity.count)


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
        pruning: "adaptive" and "plain" (the top of this module), "none" (drops dead latents),
            or limits of your own.
        sinks: "drop" leaves attention sinks out.

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
    saes = saes_by_layer(sae, blocks)
    widths = {at: width_of(saes[at], at, host.info.d_model) for at in blocks}
    sources = {at: Source(saes[at], widths[at], hash_of(saes[at])) for at in blocks}
    samples = data.cal.samples
    layout = lay_out(host, samples, data.concepts)
    point, rule = cast(HookPoint, hook_point), cast(SinkRule, sinks)
    count = _Count(layout, sources, point, pruning)
    sinks_of = sink_rule(host.info, blocks, rule)
    (kept,) = run_jobs(host, layout, [count.job], sinks_of, description="sae")
    tokens = token_table(layout, kept.keep, samples, ["cal"] * len(samples), data.concepts)
    limits = count.limits(tokens.labels, tokens.known)
    found = {at: prune(count.activity[at], limits, len(tokens)) for at in blocks}
    _require_some(found, limits, len(tokens))
    record = {
        "pruning": vars(limits),
        "rule": pruning if isinstance(pruning, str) else "given",
        "cal_tokens": len(tokens),
        "layers": {at: _about(found[at], sources[at].sae, len(tokens)) for at in blocks},
    }
    latents = _latents(found, sources, count.probes)
    return ConceptBank(
        data.concepts,
        tuple(f"latent {j}" for j in latents.latents),
        blocks,
        point,
        KIND,
        latents,
        origin=Origin.on(
            host.info, tokens, data_hash=data.hash, sinks=rule, sink_layers=blocks, options=record
        ),
    )


class _Count:
    """Counts active latents beside the model: an SAE is an object of this process, so it can."""

    def __init__(
        self, layout: Layout, sources: Mapping[int, Source], point: HookPoint, rule: str | Pruning
    ) -> None:
        self.layout, self.sources, self.point, self.rule = layout, sources, point, rule
        # Sinks are still among these rows: the bound holds for what is left of them, as long as every
        # label is known; else sinks may take known tokens alone, and nothing bounds the share. The one
        # more is for rounding: a latent on the limit is not ubiquitous, and its values are needed.
        share = self.limits(layout.labels, None).ubiquitous if layout.known is None else 1.0
        most = share * layout.n_rows + 1
        self.activity = {at: Activity(one.width, most) for at, one in sources.items()}
        self.probes: dict[int, Tensor] = {}

    def limits(
        self, labels: Bool[np.ndarray, "row concept"], known: Bool[np.ndarray, "row concept"] | None
    ) -> Pruning:
        """What the rule gives for these rows."""
        images = self.layout.offsets.shape[1] == 4
        return pruning_of(self.rule, labels.sum(0), len(labels) if known is None else known.sum(0), images)

    @property
    def job(self) -> Job:
        """For `passes.run_jobs`."""

        def reducer(batch: Batch) -> Reducer:
            return self._take

        return Job({Site(at, self.point) for at in self.sources}, reducer)

    def _take(self, read: Mapping[Any, Tensor], keep: Bool[Tensor, "batch token"]) -> Keeping:
        """Latents above zero of a batch's evidence, as pairs of index and value."""
        for at, one in self.sources.items():
            h = read[at, self.point].float()
            h = h[keep.to(h.device)]
            latent: list[Int[Tensor, " entry"]] = [torch.zeros(0, dtype=torch.int32)]
            value = [torch.zeros(0)]
            # Dense latents exist for a part of the tokens at a time: wide SAEs have 10^5 of them.
            for part in in_parts(len(h), one.width):
                found = latents_of(one.sae, h[part])
                place = found.nonzero(as_tuple=True)
                latent.append(place[1].int().cpu())
                value.append(found[place].cpu())
            self.activity[at].add(torch.cat(latent).numpy(), torch.cat(value).numpy())
            first = h[:PROBES].cpu()
            self.probes[at] = torch.cat([self.probes.get(at, first[:0]), first])[:PROBES]
        return keeping()


def _latents(
    found: Mapping[int, Pruned], sources: Mapping[int, Source], probes: Mapping[int, Tensor]
) -> LatentSet:
    chosen = sorted({int(j) for one in found.values() for j in np.flatnonzero(one.kept)})
    kept = [[j < len(one.kept) and bool(one.kept[j]) for j in chosen] for one in found.values()]
    rows = torch.stack([probes[at] for at in found])
    return LatentSet([sources[at] for at in found], chosen, torch.tensor(kept), rows)


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


def _about(one: Pruned, sae: Encoder, tokens: int) -> dict[str, Any]:
    """What a saved bank says about the pruning of one layer."""
    return {
        "sae": type(sae).__name__,
        "latents": len(one.kept),
        "kept": int(one.kept.sum()),
        "dead": one.dead,
        "ubiquitous": one.ubiquitous,
        "weak": one.weak,
        "never_active": int((one.count == 0).sum()),
        "active_per_token": float(one.count.sum() / max(1, tokens)),
    }
