"""The one pass over the train split that every concept kind is fitted from.

Means, second moments and per-concept means are accumulated in float64 over every kept token.
Kinds that need the activations themselves get rows in the model's own number format, in memory or,
above a budget, in an unlinked temporary file, at most `limits.per_class` tokens of a class. Sums are
taken about the mean of each batch (`reducers.About`), so that a mean many times the spread costs no
digits of the spread.

Two controls are collected in the same pass. *Permuted*: the token labels of whole samples laid
over the tokens in another order of the samples, which keeps their number and their clustering and
breaks their tie to the text (`nulls.py`). *Pooled*: each sample's mean activation with its sample
labels; where a model has a class token, its activation too (*cls*).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.concepts.bank import HOOK_POINTS, ComponentMeans, HookPoint
from sa_plugin.concepts.kinds import Need
from sa_plugin.concepts.nulls import permute_labels
from sa_plugin.concepts.train_statistics import (
    ROW_LIMITS,
    LayerStatistics,
    RowLimits,
    Rows,
    TrainStatistics,
    draw_rows,
    with_unknown,
)
from sa_plugin.data.concept_data import ConceptData, Split, require_filled
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, Host, Point, SinkRule, Site, layers_of
from sa_plugin.passes.layout import Layout, TokenTable, lay_out, token_table
from sa_plugin.passes.run import Job, Kept, NonFiniteRowError, Reducer, run_jobs, sink_rule

Normaliser = Literal["rms", "mean_norm"]


@face
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
    limits: RowLimits = ROW_LIMITS,
) -> TrainStatistics:
    """Run the train split once.

    Args:
        host: An attached model.
        data: Labelled samples; only the train split is read.
        layers: Block indices, negative ones from the end; all by default.
        hook_point: Where to read.
        need: "means", "gram" (kind lda) and "rows" (separators and k-means).
        normaliser: Scale is the root mean square of the norms ("rms") or their mean.
        sinks: "drop" leaves attention sinks out of every statistic.
        seed: Of the label permutation and of the draw of rows.
        limits: How many rows are stored, and from how many bytes on in a temporary file.

    Returns:
        Statistics for `fit(..., statistics=...)`.

    Raises:
        ValueError: Unknown layer or hook point, NaN or Inf activations, a sample without tokens.
    """
    require_known("hook_point", hook_point, HOOK_POINTS)
    require_known("normaliser", normaliser, get_args(Normaliser))
    require_known("sinks", sinks, get_args(SinkRule))
    if not need:
        raise ValueError(f"need is empty: name one or more of {', '.join(get_args(Need))}.")
    for name in need:
        require_known("need", name, get_args(Need))
    blocks = layers_of(host.info, layers)
    split = data.train
    require_filled(split)
    layout = lay_out(host, split.samples, data.concepts)
    point = cast(HookPoint, hook_point)
    plan = _Plan(host, layout, split, blocks, point, need, seed, limits.per_class)
    rule = sink_rule(host.info, blocks, cast(SinkRule, sinks))
    job = Job(plan.sites, plan.reducer, plan.chosen, limits.memory // max(1, len(blocks)))
    try:
        (kept,) = run_jobs(host, layout, [job], rule, description="train pass")
    except NonFiniteRowError as error:
        raise ValueError(
            f"an activation of a train token at block {error.name} ({hook_point}) is NaN or Inf in "
            f"{host.info.dtype}, in which the model computes: load the model in float32 or bfloat16, or "
            "leave that layer out."
        ) from error
    tokens = token_table(layout, kept.keep, split.samples, ["train"] * len(split.samples), data.concepts)
    settings = {
        "normaliser": normaliser,
        "sinks": sinks,
        "seed": seed,
        "need": list(need),
        "max_rows_per_class": limits.per_class,
        "train_samples": len(split.samples),
        "train_tokens": len(tokens),
        "stored_rows": int(kept.keep[plan.chosen].sum()),
    }
    found = _Records(plan, kept, cast(Normaliser, normaliser), tokens)
    return TrainStatistics(
        blocks,
        point,
        *found.of_tokens(),
        found.of_samples("pooled"),
        found.of_samples("cls") if plan.has_class else (),
        found.component_means(),
        tokens,
        settings,
        data.hash,
        host.info.fingerprint,
    )


class _Plan:
    """What every batch of the pass does."""

    def __init__(
        self,
        host: Host,
        layout: Layout,
        split: Split,
        blocks: tuple[int, ...],
        hook_point: HookPoint,
        need: Sequence[str],
        seed: int,
        max_rows: int,
    ) -> None:
        self.host, self.layout, self.blocks, self.hook_point = host, layout, blocks, hook_point
        self.gram, self.keep_rows = "gram" in need, "rows" in need
        self.components = host.info.block == "pre_norm" and hook_point == "resid_post"
        # One stream for both draws, in this order: the numbers of a seed must stay what they are.
        rng = np.random.default_rng(seed)
        permuted = permute_labels(layout.labels, layout.bounds, rng, layout.known)
        self.labels: Bool[np.ndarray, "row label"] = np.concatenate([layout.labels, permuted], axis=1)
        # What is unknown is so for true and permuted labels alike.
        self.unknown: Bool[np.ndarray, "row unknown"] = (
            np.zeros((len(self.labels), 0), dtype=bool) if layout.known is None else ~layout.known
        )
        self.sample_labels = split.sample_labels
        known = None if layout.known is None else np.tile(layout.known, (1, 2))
        self.chosen = (
            draw_rows(self.labels, max_rows, rng, known) if self.keep_rows else np.zeros(0, dtype=int)
        )

    @property
    def has_class(self) -> bool:
        """Whether samples have a class token."""
        return any(batch.class_index is not None for batch in self.layout.batches)

    @property
    def sites(self) -> set[Site]:
        """Everything that is read."""
        return {*(Site(at, self.hook_point) for at in self.blocks), *self.writes}

    @property
    def writes(self) -> list[Site]:
        """Sites whose means the ledger needs."""
        if not self.components:
            return []
        parts: tuple[Point, ...] = ("z", "mlp_out")
        blocks = range(self.blocks[-1] + 1)
        return [Site(0, "resid_pre"), *(Site(block, part) for block in blocks for part in parts)]

    def reducer(self, batch: Batch) -> Reducer:
        """What one batch leaves behind."""
        rows = self.layout.rows(batch)
        return partial(
            reducers.train,
            valid=batch.valid,
            sites=tuple((block, self.hook_point) for block in self.blocks),
            labels=(
                torch.from_numpy(np.concatenate([self.labels[rows], self.unknown[rows]], axis=1)),
                torch.from_numpy(self.sample_labels[batch.rows.numpy()]),
            ),
            stored=torch.from_numpy(np.isin(rows, self.chosen)) if self.keep_rows else None,
            gram=self.gram,
            writes=tuple((site.layer, str(site.point)) for site in self.writes),
            class_index=batch.class_index,
        )


@dataclass(frozen=True, eq=False)
class _Records:
    """Records, one a layer, from what the pass kept."""

    plan: _Plan
    kept: Kept
    normaliser: Normaliser
    tokens: TokenTable

    def of_tokens(self) -> tuple[tuple[LayerStatistics, ...], tuple[LayerStatistics, ...]]:
        """For token labels, and for permuted ones."""
        plan, n_labels = self.plan, self.plan.labels.shape[1]
        counts = plan.labels[self.kept.keep].sum(0)
        kept = plan.chosen[self.kept.keep[plan.chosen]]
        labels, unknown = plan.labels[kept], plan.unknown[kept]
        n_unknown = plan.unknown[self.kept.keep].sum(0)
        # Columns are the true labels, then as many permuted ones: one product summed both, and the
        # unknown tokens of each concept behind them.
        halves = (slice(n_labels // 2), slice(n_labels // 2, None))
        found: tuple[list[LayerStatistics], list[LayerStatistics]] = ([], [])
        for block in plan.blocks:
            whole = self._summed("token", block, len(self.tokens), counts)
            sums = self.kept.sums["positive", "token", block][n_labels:]
            for target, part in zip(found, halves, strict=True):
                count, mean = whole.positive_count[part], whole.positive_mean[part]
                one = replace(whole, positive_count=count, positive_mean=mean)
                if block in self.kept.rows:
                    rows = Rows(self.kept.rows[block], whole.mean, whole.scale)
                    one = replace(one, rows=rows, labels=labels[:, part])
                target.append(with_unknown(one, sums, n_unknown, unknown) if len(n_unknown) else one)
        return tuple(found[0]), tuple(found[1])

    def of_samples(self, what: str) -> tuple[LayerStatistics, ...]:
        """For "pooled" samples, or for their class tokens, "cls"."""
        labels, gram = self.tokens.sample_labels, self.plan.gram
        # Without stored rows the samples' vectors were summed beside the model.
        if self.plan.keep_rows:
            vectors = (self.kept.samples[what, block] for block in self.plan.blocks)
            return tuple(_of_rows(np.asarray(h), labels, self.normaliser, gram) for h in vectors)
        counts = labels.sum(0)
        return tuple(self._summed(what, block, len(labels), counts) for block in self.plan.blocks)

    def _summed(self, what: str, block: int, n: int, counts: Int[np.ndarray, " label"]) -> LayerStatistics:
        total = {name: self.kept.sums[name, what, block] for name in ("sum", "squares", "norms", "positive")}
        scale = float((total["squares"] / n).sqrt() if self.normaliser == "rms" else total["norms"] / n)
        number = torch.from_numpy(counts)
        positive = total["positive"][: len(counts)] / number.clamp_min(1)[:, None]
        gram = self.kept.sums["gram", what, block] / n if self.plan.gram else None
        return LayerStatistics(n, total["sum"] / n, scale, number, positive, gram)

    def component_means(self) -> ComponentMeans | None:
        """Train means of the embedding, every head's z and every MLP."""
        if not self.plan.components:
            return None
        info, total, n = self.plan.host.info, self.kept.sums, int(self.kept.keep.sum())
        blocks = range(self.plan.blocks[-1] + 1)
        z = torch.stack([total["write", "z", b] / n for b in blocks])
        return ComponentMeans(
            total["write", "resid_pre", 0] / n,
            z.reshape(len(blocks), info.n_heads, info.d_head),
            torch.stack([total["write", "mlp_out", b] / n for b in blocks]),
        )


def _of_rows(
    values: Float[np.ndarray, "sample d_model"],
    labels: Bool[np.ndarray, "sample concept"],
    normaliser: Normaliser,
    with_gram: bool,
) -> LayerStatistics:
    h = torch.from_numpy(values).double()
    norms = h.norm(dim=-1)
    scale = float(norms.square().mean().sqrt() if normaliser == "rms" else norms.mean())
    y = torch.from_numpy(labels).double()
    counts = y.sum(0)
    positive = y.T @ h / counts.clamp_min(1)[:, None]
    gram = h.T @ h / len(h) if with_gram else None
    rows = Rows(h.float().numpy(), h.mean(0), scale)
    return LayerStatistics(len(h), h.mean(0), scale, counts.long(), positive, gram, rows, labels)
