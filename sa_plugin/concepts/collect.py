"""What one pass over the train split leaves behind for fitting, one record a layer.

Normalised embedding: `x = (h - mean) / scale`, with `mean` the mean of the train tokens and
`scale` the root mean square of their norms `|h|` ("rms"), or the mean of the norms ("mean_norm");
arXiv 2512.05038, normaliser of the authors' code.

Stored train rows as the iterative kinds read them: checked once, kept in float32 if they fit.

The one pass over the train split that every concept kind is fitted from.

Means, second moments and per-concept means are accumulated in float64 over every kept token.
Kinds that need the activations themselves get rows in half precision, in memory or, above a
budget, in an unlinked temporary file, at most `max_rows_per_class` tokens of a class.

Two controls are collected in the same pass. *Permuted*: the token labels of whole samples laid
over the tokens in another order of the samples, which keeps their number and their clustering and
breaks their tie to the text. *Pooled*: each sample's mean activation with its sample labels; where
a model has a class token, its activation too (*cls*).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin.concepts.bank import HOOK_POINTS, ComponentMeans, HookPoint
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, Host, Point, SinkRule, Site, layers_of
from sa_plugin.passes.layout import Layout, TokenTable, lay_out, token_table
from sa_plugin.passes.run import Job, Keep, Kept, NonFiniteRowError, run, sink_rule


@dataclass(frozen=True, eq=False)
class Rows:
    """Train rows of one layer, in half precision in memory or in a memory map, read normalised.

    Attributes:
        stored: The rows as read from the model, not normalised.
        mean: Subtracted from every row.
        scale: Divides every row.
        chunk: Rows normalised at a time.
    """

    stored: Float[np.ndarray, "row d_model"]
    mean: Float[Tensor, " d_model"]
    scale: float
    chunk: int = 32_768

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def d_model(self) -> int:
        """Width of a row."""
        return int(self.stored.shape[1])

    def chunks(self) -> Iterator[tuple[slice, Float[Tensor, "row d_model"]]]:
        """Normalised float32 rows, a chunk at a time, in order."""
        for start in range(0, len(self), self.chunk):
            part = slice(start, min(start + self.chunk, len(self)))
            yield part, self.take(part)

    def take(self, part: slice | Int[np.ndarray, " row"]) -> Float[Tensor, "row d_model"]:
        """Some rows, normalised, in float32."""
        raw = torch.from_numpy(np.asarray(self.stored[part], dtype=np.float32))
        return (raw - self.mean.float()) / self.scale


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of the kept train tokens at one layer, for every concept.

    Attributes:
        n: Number of tokens behind `mean`.
        mean: Mean activation, raw.
        scale: Normaliser's scale.
        positive_count: Tokens in each concept.
        positive_mean: Mean raw activation of each concept's tokens.
        gram: Second moment `mean(h hᵀ)`, raw; only for kinds that need it.
        rows: Stored rows (at most a stated number a class); only for kinds that need them.
        labels: Labels of the stored rows.
    """

    n: int
    mean: Float[Tensor, " d_model"]
    scale: float
    positive_count: Int[Tensor, " concept"]
    positive_mean: Float[Tensor, "concept d_model"]
    gram: Float[Tensor, "d_model d_model"] | None = None
    rows: Rows | None = None
    labels: Bool[np.ndarray, "row concept"] | None = None


MEMORY = 2 << 30
Blocks = Callable[[], Iterable[tuple[slice, Float[Tensor, "row d_model"]]]]


def stored_rows(statistics: LayerStatistics, kind: str) -> Rows:
    """The rows a kind needs.

    Raises:
        ValueError: They were not collected, or there are none.
    """
    if statistics.rows is None or not len(statistics.rows):
        raise ValueError(f"{kind} needs train rows: collect the train pass with need='rows'.")
    return statistics.rows


def stored_labels(statistics: LayerStatistics, kind: str) -> Bool[np.ndarray, "row concept"]:
    """Labels of the stored rows, with both classes in every column.

    Raises:
        ValueError: No rows or labels, unequal lengths, or a column of one class.
    """
    rows, labels = stored_rows(statistics, kind), statistics.labels
    if labels is None or len(labels) != len(rows):
        got = "no labels" if labels is None else f"{len(labels):,} labels"
        raise ValueError(f"{kind} needs a label for each of {len(rows):,} rows, and got {got}.")
    positive = labels.sum(0)
    for what, columns in (("no", positive == 0), ("nothing but", positive == len(labels))):
        if columns.any():
            raise ValueError(
                f"{kind}: concept columns {np.flatnonzero(columns).tolist()} have {what} "
                f"in-concept rows among {len(labels):,}: both classes are needed. Label more "
                "samples or leave these concepts out."
            )
    return labels


def blocks(rows: Rows, kind: str, memory: int = MEMORY) -> Blocks:
    """A function that iterates over the normalised rows, as often as it is called.

    Args:
        rows: Stored rows.
        kind: Named in errors.
        memory: Bytes of float32 rows above which every iteration normalises them anew.

    Raises:
        ValueError: A row holds NaN or Inf; the text names the first.
    """
    fits = 4 * len(rows) * rows.d_model <= memory
    kept = []
    for part, x in rows.chunks():
        refuse_non_finite(x, np.arange(part.start, part.stop), len(rows), kind)
        if fits:
            kept.append((part, x))
    return (lambda: kept) if fits else rows.chunks


def refuse_non_finite(
    x: Float[Tensor, "row d_model"], row: Int[np.ndarray, " row"], n_rows: int, kind: str
) -> None:
    """Refuse NaN and Inf.

    Raises:
        ValueError: The text names the first row that holds one.
    """
    # One NaN or Inf spoils the sum, which is cheaper than looking at every entry.
    if torch.isfinite(x.sum()):
        return
    bad = ~torch.isfinite(x).all(dim=1).numpy()
    if bad.any():
        raise ValueError(
            f"{kind}: stored row {row[bad][0]} of {n_rows:,} holds NaN or Inf once normalised: "
            "leave out the token, or the layer, that gave it."
        )


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
    layout = lay_out(host, split.samples, data.concepts)
    point = cast(HookPoint, hook_point)
    plan = _Plan.of(host, layout, split, blocks, point, need, seed, max_rows_per_class)
    rule = sink_rule(host.info, blocks, cast(SinkRule, sinks))
    job = Job(plan.sites, plan.reducer, plan.chosen, memory_budget // max(1, len(blocks)))
    try:
        (kept,) = run(host, layout, [job], rule, description="train pass")
    except NonFiniteRowError as error:
        raise OverflowError(
            f"an activation at block {error.name} exceeds half precision (65,504), in "
            "which train rows are kept. Keep the default sinks='drop', fit a kind that needs "
            "no rows (prototype, lda), or leave that layer out."
        ) from error
    tokens = token_table(layout, kept.keep, split.samples, ["train"] * len(split.samples), data.concepts)
    settings = {
        "normaliser": normaliser,
        "sinks": sinks,
        "seed": seed,
        "need": list(need),
        "max_rows_per_class": max_rows_per_class,
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


@dataclass(frozen=True, eq=False)
class _Plan:
    """What every batch of the pass does."""

    host: Host
    layout: Layout
    blocks: tuple[int, ...]
    hook_point: HookPoint
    gram: bool
    components: bool
    keep_rows: bool
    chosen: Int[np.ndarray, " stored"]
    labels: Bool[np.ndarray, "row label"]
    sample_labels: Bool[np.ndarray, "sample concept"]

    @classmethod
    def of(
        cls,
        host: Host,
        layout: Layout,
        split: Split,
        blocks: tuple[int, ...],
        hook_point: HookPoint,
        need: Sequence[str],
        seed: int,
        max_rows: int,
    ) -> _Plan:
        rng = np.random.default_rng(seed)
        labels = np.concatenate([layout.labels, permute_labels(layout.labels, layout.bounds, rng)], axis=1)
        keep_rows = "rows" in need
        chosen = draw_rows(labels, max_rows, rng) if keep_rows else np.zeros(0, dtype=int)
        components = host.info.block == "pre_norm" and hook_point == "resid_post"
        return cls(
            host,
            layout,
            blocks,
            hook_point,
            "gram" in need,
            components,
            keep_rows,
            chosen,
            labels,
            split.sample_labels,
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

    def reducer(self, batch: Batch) -> Keep:
        """What one batch leaves behind."""
        rows = self.layout.rows(batch)
        return partial(
            reducers.train,
            valid=batch.valid,
            blocks=self.blocks,
            point=self.hook_point,
            labels=torch.from_numpy(self.labels[rows]),
            stored=torch.from_numpy(np.isin(rows, self.chosen)) if self.keep_rows else None,
            gram=self.gram,
            writes=tuple((site.layer, str(site.point)) for site in self.writes),
            sample_labels=torch.from_numpy(self.sample_labels[batch.rows.numpy()]),
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
        plan, n_concepts = self.plan, self.plan.labels.shape[1] // 2
        counts = plan.labels[self.kept.keep].sum(0)
        labels = plan.labels[plan.chosen][self.kept.keep[plan.chosen]]
        halves = (slice(n_concepts), slice(n_concepts, None))
        found: tuple[list[LayerStatistics], list[LayerStatistics]] = ([], [])
        for block in plan.blocks:
            whole = self._summed("token", block, len(self.tokens), counts)
            for target, part in zip(found, halves, strict=True):
                target.append(_with_rows(_part(whole, part), self.kept.rows.get(block), labels[:, part]))
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
        positive = total["positive"] / number.clamp_min(1)[:, None]
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


def _part(whole: LayerStatistics, part: slice) -> LayerStatistics:
    return replace(whole, positive_count=whole.positive_count[part], positive_mean=whole.positive_mean[part])


def _with_rows(
    statistics: LayerStatistics,
    rows: Float[np.ndarray, "stored d_model"] | None,
    labels: Bool[np.ndarray, "stored concept"],
) -> LayerStatistics:
    if rows is None:
        return statistics
    return replace(statistics, rows=Rows(rows, statistics.mean, statistics.scale), labels=labels)


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
