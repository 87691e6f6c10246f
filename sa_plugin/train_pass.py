"""The one pass over the train split that every concept kind is fitted from.

Means, second moments and per-concept means are accumulated in float64 over every kept token.
Kinds that need the activations themselves get rows in half precision, in memory or, above a
budget, in an unlinked temporary file, at most `max_rows_per_class` tokens of a class.

Two controls are collected in the same pass. *Permuted*: the token labels of whole samples laid
over the tokens in another order of the samples, which keeps their number and their clustering and
breaks their tie to the text. *Pooled*: each sample's mean activation with its sample labels; where
a model has a class token, its activation too (*cls*).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin._names import require_known
from sa_plugin.collect import (
    BATCH_TOKENS,
    Layout,
    allocate,
    compact,
    kept,
    lay_out,
    sink_sites,
    token_table,
    walk,
)
from sa_plugin.concepts.bank import HOOK_POINTS, ComponentMeans, HookPoint
from sa_plugin.concepts.statistics import LayerStatistics, Rows
from sa_plugin.data import ConceptData
from sa_plugin.host import Batch, Host, SinkRule, Site, layers_of
from sa_plugin.tokens import TokenTable

Need = Literal["means", "gram", "rows"]
Normaliser = Literal["rms", "mean_norm"]
MEMORY_BUDGET = 2 << 30
MAX_ROWS_PER_CLASS = 100_000


@dataclass(frozen=True, eq=False)
class TrainStatistics:
    """What the train pass left, for `fit`.

    Attributes:
        layers: Block indices, ascending.
        hook_point: Where activations were read.
        token, permuted, pooled: One record a layer, for token labels, permuted token labels and
            mean-pooled samples.
        cls: The same for class tokens; empty where there is none.
        component_means: Train means of what each part writes, where the ledger is defined.
        tokens: The rows.
        settings: Sink rule, seed, normaliser and limits of the pass.
        data_hash: Of the data set.
        fingerprint: Of the model.
    """

    layers: tuple[int, ...]
    hook_point: HookPoint
    token: tuple[LayerStatistics, ...]
    permuted: tuple[LayerStatistics, ...]
    pooled: tuple[LayerStatistics, ...]
    cls: tuple[LayerStatistics, ...]
    component_means: ComponentMeans | None
    tokens: TokenTable
    settings: Mapping[str, object]
    data_hash: str
    fingerprint: str


def collect(
    host: Host,
    data: ConceptData,
    *,
    layers: int | Sequence[int] | None = None,
    hook_point: str = "resid_post",
    need: Sequence[str] = ("means", "rows"),
    normaliser: str = "rms",
    sinks: str = "drop",
    seed: int = 0,
    max_rows_per_class: int = MAX_ROWS_PER_CLASS,
    memory_budget: int = MEMORY_BUDGET,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> TrainStatistics:
    """Run the train split once.

    Args:
        host: An attached model.
        data: Labelled samples; only the train split is read.
        layers: Block indices; all by default.
        hook_point: Where to read.
        need: "means", "gram" (kind lda) and "rows" (separators and k-means).
        normaliser: Scale is the root mean square of the norms ("rms") or their mean.
        sinks: "drop" leaves attention sinks out of every statistic.
        seed: Of the label permutation and of the draw of rows.
        max_rows_per_class: Rows kept of a concept's tokens, and of the other tokens.
        memory_budget: Bytes of rows above which they lie in a temporary file.
        batch_tokens: Tokens in a batch, padding included.
        progress: Whether to show a bar.

    Returns:
        Statistics for `fit(..., statistics=...)`.

    Raises:
        ValueError: Unknown layer or hook point, NaN or Inf activations, a sample without tokens.
        OverflowError: An activation does not fit half precision.
    """
    require_known("hook_point", hook_point, HOOK_POINTS)
    require_known("normaliser", normaliser, get_args(Normaliser))
    require_known("sinks", sinks, get_args(SinkRule))
    for name in need:
        require_known("need", name, get_args(Need))
    blocks = layers_of(host.info, layers)
    split = data.train
    layout = lay_out(host, split.samples, data.concepts, batch_tokens=batch_tokens)
    point, rule = cast(HookPoint, hook_point), cast(SinkRule, sinks)
    plan = _Plan.of(host, layout, blocks, point, need, rule, seed, max_rows_per_class)
    sums = _Sums.empty(plan, len(split.samples), memory_budget)
    for batch, got in walk(
        host, layout, plan.sites, plan.reducer, description="train pass", progress=progress
    ):
        sums.add(batch, layout.rows(batch), got)
    tokens = token_table(
        layout, sums.keep, split.samples, ["train"] * len(split.samples), data.concepts
    )
    settings = {
        "normaliser": normaliser, "sinks": sinks, "seed": seed, "need": list(need),
        "max_rows_per_class": max_rows_per_class, "train_samples": len(split.samples),
        "train_tokens": len(tokens), "stored_rows": int(sums.keep[plan.chosen].sum()),
    }  # fmt: skip
    found = sums.statistics(cast(Normaliser, normaliser), tokens)
    return TrainStatistics(
        blocks, point, *found, sums.component_means(), tokens, settings, data.hash,
        host.info.fingerprint,
    )  # fmt: skip


class Records(NamedTuple):
    """One record a layer, by what the rows are."""

    token: tuple[LayerStatistics, ...]
    permuted: tuple[LayerStatistics, ...]
    pooled: tuple[LayerStatistics, ...]
    cls: tuple[LayerStatistics, ...]


@dataclass(frozen=True, eq=False)
class _Plan:
    """What every batch of the pass does."""

    host: Host
    layout: Layout
    blocks: tuple[int, ...]
    hook_point: HookPoint
    sinks: SinkRule
    gram: bool
    components: bool
    chosen: Int[np.ndarray, " stored"]
    labels: Bool[np.ndarray, "row label"]

    @classmethod
    def of(
        cls,
        host: Host,
        layout: Layout,
        blocks: tuple[int, ...],
        hook_point: HookPoint,
        need: Sequence[str],
        sinks: SinkRule,
        seed: int,
        max_rows: int,
    ) -> _Plan:
        rng = np.random.default_rng(seed)
        labels = np.concatenate(
            [layout.labels, permute_labels(layout.labels, layout.bounds, rng)], axis=1
        )
        chosen = draw_rows(labels, max_rows, rng) if "rows" in need else np.zeros(0, dtype=int)
        components = host.info.block == "pre_norm" and hook_point == "resid_post"
        return cls(
            host, layout, blocks, hook_point, sinks, "gram" in need, components, chosen, labels
        )

    @property
    def sites(self) -> list[Site]:
        sites = {*sink_sites(self.blocks), *(Site(at, self.hook_point) for at in self.blocks)}
        if self.components:
            sites.add(Site(0, "resid_pre"))
            for block in range(self.blocks[-1] + 1):
                sites |= {Site(block, "z"), Site(block, "mlp_out")}
        return sorted(sites)

    def reducer(self, batch: Batch) -> Callable[[Mapping[Site, Tensor]], dict[str, Tensor]]:
        rows = self.layout.rows(batch)
        labels = torch.from_numpy(self.labels[rows]).float()
        stored = torch.from_numpy(np.isin(rows, self.chosen))

        def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
            keep = kept(read, batch.valid, self.host.info, self.blocks, self.sinks)
            weight = keep[batch.valid.to(keep.device)].float()
            out = {"keep": keep}
            for k, block in enumerate(self.blocks):
                h = read[Site(block, self.hook_point)].float()
                flat = h[batch.valid.to(h.device)]
                out.update(_moments(f" {k}", flat, weight, labels.to(h.device), self.gram))
                out[f"pooled {k}"] = torch.einsum("btd,bt->bd", h, keep.float())
                if batch.class_index is not None:
                    out[f"cls {k}"] = class_tokens(h, batch.class_index)
                if len(self.chosen):
                    out[f"rows {k}"] = flat[stored.to(h.device)].half()
            if self.components:
                for site in self.sites:
                    if site.point in ("z", "mlp_out") or site == Site(0, "resid_pre"):
                        write = read[site].float().flatten(2)
                        out[f"{site.point} {site.layer}"] = torch.einsum(
                            "btd,bt->d", write, keep.float()
                        )
            return out

        return reduce


def _moments(
    name: str,
    flat: Float[Tensor, "row d_model"],
    weight: Float[Tensor, " row"],
    labels: Float[Tensor, "row label"],
    gram: bool,
) -> dict[str, Tensor]:
    weighted = flat * weight[:, None]
    out = {
        f"sum{name}": weighted.sum(0),
        f"squares{name}": (weighted * flat).sum(),
        f"norms{name}": (flat.norm(dim=-1) * weight).sum(),
        f"positive{name}": labels.T @ weighted,
    }
    if gram:
        out[f"gram{name}"] = weighted.T @ flat
    return out


class _Sums:
    """Running sums of the pass, float64, and the stored rows."""

    def __init__(self, plan: _Plan, n_samples: int, budget: int) -> None:
        self.plan = plan
        self.total: dict[str, Tensor] = {}
        self.keep = np.zeros(plan.layout.n_rows, dtype=bool)
        width = plan.host.info.d_model
        shape = (len(plan.blocks), len(plan.chosen), width)
        share = budget // max(1, shape[0])
        self.rows = [allocate(shape[1:], np.float16, share) for _ in plan.blocks]
        self.pooled = [allocate((n_samples, width), np.float32, share) for _ in plan.blocks]
        self.lengths = np.zeros(n_samples)
        has_class = any(batch.class_index is not None for batch in plan.layout.batches)
        self.cls = [
            allocate((n_samples, width), np.float32, share) for _ in plan.blocks if has_class
        ]

    @classmethod
    def empty(cls, plan: _Plan, n_samples: int, budget: int) -> _Sums:
        return cls(plan, n_samples, budget)

    def add(self, batch: Batch, rows: Int[np.ndarray, " row"], got: Mapping[str, Tensor]) -> None:
        keep = got["keep"]
        self.keep[rows] = keep[batch.valid].numpy()
        self.lengths[batch.rows.numpy()] = keep.sum(-1).numpy()
        at = np.searchsorted(self.plan.chosen, rows[np.isin(rows, self.plan.chosen)])
        for name, value in got.items():
            part, _, k = name.partition(" ")
            if part == "rows":
                self._store(int(k), at, value.numpy(), self.keep[self.plan.chosen[at]])
            elif part == "pooled":
                self.pooled[int(k)][batch.rows.numpy()] = value.numpy()
            elif part == "cls":
                self.cls[int(k)][batch.rows.numpy()] = value.numpy()
            elif part != "keep":
                self.total[name] = self.total.get(name, torch.zeros(())) + value.double()

    def _store(self, k: int, at: np.ndarray, rows: np.ndarray, keep: np.ndarray) -> None:
        if not np.isfinite(rows[keep]).all():
            raise OverflowError(
                f"an activation at block {self.plan.blocks[k]} exceeds half precision (65,504), in "
                "which train rows are kept. Keep the default sinks='drop', fit a kind that needs "
                "no rows (prototype, lda), or leave that layer out."
            )
        self.rows[k][at] = rows

    def statistics(self, normaliser: Normaliser, tokens: TokenTable) -> Records:
        """Records for token labels, permuted labels, pooled samples and class tokens."""
        plan = self.plan
        n_concepts = plan.labels.shape[1] // 2
        stored = self.keep[plan.chosen]
        counts = torch.from_numpy(plan.labels[self.keep].sum(0))
        token: list[LayerStatistics] = []
        permuted: list[LayerStatistics] = []
        pooled: list[LayerStatistics] = []
        for k in range(len(plan.blocks)):
            n = len(tokens)
            mean = self.total[f"sum {k}"] / n
            scale = float(
                (self.total[f"squares {k}"] / n).sqrt()
                if normaliser == "rms"
                else self.total[f"norms {k}"] / n
            )
            rows = None
            if len(plan.chosen):
                rows = Rows(compact(self.rows[k], stored), mean, scale)
            gram = self.total[f"gram {k}"] / n if plan.gram else None
            positive = self.total[f"positive {k}"] / counts.clamp_min(1)[:, None]
            for target, part in ((token, slice(n_concepts)), (permuted, slice(n_concepts, None))):
                labels = plan.labels[plan.chosen][stored][:, part] if rows is not None else None
                target.append(
                    LayerStatistics(
                        n, mean, scale, counts[part], positive[part], gram, rows, labels
                    )
                )
            means = self.pooled[k] / self.lengths[:, None]
            pooled.append(self._of_samples(means, normaliser, tokens))
        cls = [self._of_samples(np.asarray(h), normaliser, tokens) for h in self.cls]
        return Records(tuple(token), tuple(permuted), tuple(pooled), tuple(cls))

    def _of_samples(
        self,
        values: Float[np.ndarray, "sample d_model"],
        normaliser: Normaliser,
        tokens: TokenTable,
    ) -> LayerStatistics:
        h = torch.from_numpy(values).double()
        norms = h.norm(dim=-1)
        scale = float(norms.square().mean().sqrt() if normaliser == "rms" else norms.mean())
        labels = tokens.sample_labels
        y = torch.from_numpy(labels).double()
        counts = y.sum(0)
        positive = y.T @ h / counts.clamp_min(1)[:, None]
        gram = h.T @ h / len(h) if self.plan.gram else None
        rows = Rows(h.float().numpy(), h.mean(0), scale)
        return LayerStatistics(
            len(h), h.mean(0), scale, counts.long(), positive, gram, rows, labels
        )

    def component_means(self) -> ComponentMeans | None:
        """Train means of the embedding, every head's z and every MLP."""
        if not self.plan.components:
            return None
        info, n = self.plan.host.info, int(self.keep.sum())
        blocks = range(self.plan.blocks[-1] + 1)
        z = torch.stack([self.total[f"z {b}"] / n for b in blocks])
        return ComponentMeans(
            self.total["resid_pre 0"] / n,
            z.reshape(len(blocks), info.n_heads, info.d_head),
            torch.stack([self.total[f"mlp_out {b}"] / n for b in blocks]),
        )


def class_tokens(
    h: Float[Tensor, "batch token d_model"], index: Int[Tensor, " batch"]
) -> Float[Tensor, "batch d_model"]:
    """The class token's activation of each sample."""
    return h[torch.arange(len(h), device=h.device), index.to(h.device)]


def permute_labels(
    labels: Bool[np.ndarray, "row concept"],
    bounds: Int[np.ndarray, " sample_and_one"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, "row concept"]:
    """Labels of whole samples laid over the rows in another order of the samples."""
    order = rng.permutation(len(bounds) - 1)
    parts = [labels[bounds[n] : bounds[n + 1]] for n in order]
    return np.concatenate(parts) if parts else labels.copy()


def draw_rows(
    labels: Bool[np.ndarray, "row label"], most: int, rng: np.random.Generator
) -> Int[np.ndarray, " stored"]:
    """Rows to store: at most `most` of each class of each label, drawn without replacement."""
    order = rng.permutation(len(labels))
    wanted = np.zeros(len(labels), dtype=bool)
    for column in labels.T:
        inside = column[order]
        wanted[order[inside][:most]] = True
        wanted[order[~inside][:most]] = True
    return np.flatnonzero(wanted)
