"""The one pass over the train split that every concept kind is fitted from.

Means, second moments and per-concept means are accumulated in float64 over every kept token.
Kinds that need the activations themselves get rows in the model's own number format, in memory or,
above a budget, in an unlinked temporary file, at most `limits.per_class` tokens of a class: those whose
hash of source document, sample and place is smallest. Sums are taken about the mean of each batch
(`reducers.About`), so that a mean many times the spread costs no digits of the spread.

The unit is a block (`sa_plugin.passes.blocks`): data in memory are one, a corpus has many. Sums of blocks
are added in the order of blocks, rows are drawn by hash and stored in the order of the data, so that
blocks run by any number of workers, in any order, give what one gives, to the bit.

Two controls are collected in the same pass. *Permuted*: the token labels of whole samples laid
over the tokens of their block in another order of its samples, which keeps their number and their
clustering and breaks their tie to the text (`nulls.py`). *Pooled*: each sample's mean activation with its
sample labels; where a model has a class token, its activation too (*cls*).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt64
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import require_known, users_line
from sa_plugin._face import face, passing
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
from sa_plugin.data.concept_data import ConceptData, require_filled
from sa_plugin.data.sample import Sample, sample_labels
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, Host, Point, SinkRule, Site, layers_of
from sa_plugin.passes.blocks import (
    Block,
    BlockArrays,
    BlockStore,
    HeldBlock,
    chosen_blocks,
    in_blocks,
    joined,
    joined_table,
    run_blocks,
    table_arrays,
)
from sa_plugin.passes.cluster import Engine, Work, attaching
from sa_plugin.passes.layout import (
    Layout,
    LostLabelWarning,
    TokenTable,
    draw_name,
    lay_out,
    token_table,
    warn_lost_labels,
)
from sa_plugin.passes.run import Job, Kept, NonFiniteRowError, Reducer, run_jobs, sink_rule
from sa_plugin.statistics.hashed import mixed, name_keys

Normaliser = Literal["rms", "mean_norm"]
# Share of a concept's tokens that may keep their label under the permutation, beyond what chance leaves.
_KEPT = 0.5


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

    Of a corpus (`labelled_corpus`) one block is in memory at a time. With `limits.folder` what a block gave
    is kept there, blocks that are there are not run again, and the result is the same whoever ran them.

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
        ValueError: Unknown layer or hook point, NaN or Inf activations, a sample without tokens; the
            folder holds blocks of another run.

    Warns:
        SortedCorpusWarning: Blocks hold one class, so that permuted labels are the true ones.
    """
    plan = _planned(
        host,
        data,
        layers=layers,
        hook_point=hook_point,
        need=need,
        sinks=sinks,
        seed=seed,
        normaliser=normaliser,
        limits=limits,
    )
    blocks = in_blocks(data.train.samples, ["train"] * len(data.train))
    if len(blocks) == 1 and limits.folder is None:
        return plan.merged([plan.run(blocks[0])], data, cast(Normaliser, normaliser))
    with _folder(limits) as folder:
        store = BlockStore(folder, plan.settings(data))
        plan.run_all(blocks, store)
        return plan.merged([store.read(block) for block in blocks], data, cast(Normaliser, normaliser))


@passing(collect)
def collect_blocks(
    host: Host | Callable[[], Host],
    data: ConceptData,
    folder: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    blocks: Sequence[int] | None = None,
    engine: Engine = "here",
    **options: Any,
) -> list[Path]:
    """Run a part of the train split, block by block, for a `collect` that comes after.

    Any number of processes or machines may share a folder, each with a shard or with blocks of its own:

        collect_blocks(host, data, "train", shard=(i, n))     # on each of n workers
        statistics = collect(host, data, limits=RowLimits(folder=Path("train")))     # then, once

    A block that is there is not run again. In both calls the options must be the same.

    Args:
        host: An attached model; or a function that attaches one, which each worker of an engine calls.
        data: Labelled samples of a corpus, opened alike by all.
        folder: For what blocks give; all workers see it.
        shard: Which of how many: blocks i, i + n, i + 2n, ...
        blocks: Numbers of blocks instead; those without a train sample are passed over.
        engine: "here" is this process; "ray" two actors of Ray, `RayPool` as many as it says.
        **options: Of `collect`; of `limits` the number of rows alone counts here.

    Returns:
        The files of the blocks.

    Raises:
        ValueError: There is no such shard, the folder holds blocks of another run, and as `collect`.
        ConnectionError, ImportError, LostWorkersError, TypeError: As `sa_plugin.passes.on_ray`.
    """
    attach, home = attaching(host, engine), Path(folder).absolute()
    found = in_blocks(data.train.samples, ["train"] * len(data.train))
    mine = chosen_blocks(found, shard, blocks)
    if engine == "here":
        plan = _planned(attach(), data, **options)
        plan.run_all(mine, BlockStore(home, plan.settings(data)))
    else:
        run_blocks(engine, partial(_collecting, attach, data, home, options), mine)
    return [home / block.file for block in mine]


def _collecting(attach: Callable[[], Host], data: ConceptData, home: Path, options: dict[str, Any]) -> Work:
    plan = _planned(attach(), data, **options)
    store = BlockStore(home, plan.settings(data))
    of = {block.name: block for block in in_blocks(data.train.samples, ["train"] * len(data.train))}
    return lambda name: plan.run_all([of[name]], store)


class SortedCorpusWarning(UserWarning):
    """Blocks of a corpus hold one class each, so that labels permuted within them are the true ones."""


def _planned(
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
) -> _Plan:
    require_known("normaliser", normaliser, get_args(Normaliser))
    require_known("hook_point", hook_point, HOOK_POINTS)
    require_known("sinks", sinks, get_args(SinkRule))
    if not need:
        raise ValueError(f"need is empty: name one or more of {', '.join(get_args(Need))}.")
    for name in need:
        require_known("need", name, get_args(Need))
    require_filled(data.train)
    chosen = layers_of(host.info, layers)
    return _Plan(
        host,
        data.concepts,
        chosen,
        cast(HookPoint, hook_point),
        tuple(need),
        cast(SinkRule, sinks),
        seed,
        limits,
    )


@contextmanager
def _folder(limits: RowLimits) -> Iterator[Path]:
    if limits.folder is not None:
        yield limits.folder
        return
    with tempfile.TemporaryDirectory(prefix="sa_plugin-train-") as made:
        yield Path(made)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is asked of the train split."""

    host: Host
    concepts: tuple[str, ...]
    blocks: tuple[int, ...]
    hook_point: HookPoint
    need: tuple[str, ...]
    sinks: SinkRule
    seed: int
    limits: RowLimits

    @property
    def keep_rows(self) -> bool:
        """Whether rows are stored."""
        return "rows" in self.need

    @property
    def writes(self) -> list[Site]:
        """Sites whose means the ledger needs."""
        if not (self.host.info.block == "pre_norm" and self.hook_point == "resid_post"):
            return []
        parts: tuple[Point, ...] = ("z", "mlp_out")
        blocks = range(self.blocks[-1] + 1)
        return [Site(0, "resid_pre"), *(Site(block, part) for block in blocks for part in parts)]

    def settings(self, data: ConceptData) -> dict[str, Any]:
        """All that what a block gives depends on, and its data."""
        info = self.host.info
        return {
            "what": "train pass",
            "data": data.hash,
            "model": info.fingerprint,
            "dtype": info.dtype,
            "tokenizer": info.tokenizer,
            "batch_tokens": self.host.batch_tokens,
            "layers": list(self.blocks),
            "hook_point": self.hook_point,
            "need": list(self.need),
            "sinks": self.sinks,
            "seed": self.seed,
            "per_class": self.limits.per_class,
        }

    def run_all(self, blocks: Sequence[Block], store: BlockStore) -> None:
        """Run the blocks that are not in the store."""
        bound = _Bound(self.limits.per_class)
        bar = tqdm(blocks, desc="train pass", unit="block", disable=not self.host.progress, leave=False)
        for block in bar:
            if block not in store:
                # Each block would warn of its own lost labels: `merged` does it once, of all.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", LostLabelWarning)
                    found = self.run(block, bound)
                store.write(block, found)

    def run(self, block: Block, bound: _Bound | None = None) -> HeldBlock:
        """What one block gives."""
        samples = block.loaded()
        layout = lay_out(self.host, samples, self.concepts)
        of_block = _OfBlock(self, layout, block.number, samples, bound)
        budget = self.limits.memory // max(1, len(self.blocks))
        job = Job(of_block.sites, of_block.reducer, of_block.chosen, budget)
        rule = sink_rule(self.host.info, self.blocks, self.sinks)
        try:
            (kept,) = run_jobs(self.host, layout, [job], rule, description="train pass")
        except NonFiniteRowError as error:
            raise ValueError(
                f"an activation of a train token at block {error.name} ({self.hook_point}) is NaN or Inf in "
                f"{self.host.info.dtype}, in which the model computes: load the model in float32 or "
                "bfloat16, or leave that layer out."
            ) from error
        tokens = token_table(layout, kept.keep, samples, ["train"] * len(samples), self.concepts)
        return of_block.gave(kept, tokens)

    def merged(
        self, blocks: Sequence[BlockArrays], data: ConceptData, normaliser: Normaliser
    ) -> TrainStatistics:
        """The statistics of all blocks, in their order."""
        samples, records = data.train.samples, [block.record for block in blocks]
        n = len(samples)
        tokens = joined_table(
            blocks, [one["dropped"] for one in records], samples, ["train"] * n, self.concepts
        )
        if len(blocks) > 1:
            lost = sum(one["dropped"]["labelled sink"] for one in records)
            warn_lost_labels(lost, lost + int(tokens.labels.any(-1).sum()))
            _warn_sorted(blocks, len(tokens), self.concepts)
        found = _Records(self, blocks, normaliser, tokens)
        of_tokens, of_permuted = found.of_tokens()
        settings = {
            "normaliser": normaliser,
            "sinks": self.sinks,
            "seed": self.seed,
            "need": list(self.need),
            "max_rows_per_class": self.limits.per_class,
            "train_samples": n,
            "train_tokens": len(tokens),
            "stored_rows": found.n_stored,
        }
        return TrainStatistics(
            self.blocks,
            self.hook_point,
            of_tokens,
            of_permuted,
            found.of_samples("pooled"),
            found.of_samples("cls") if records[0]["has_class"] else (),
            found.component_means(),
            tokens,
            settings,
            data.hash,
            self.host.info.fingerprint,
        )


class _Bound:
    """Which rows cannot be among the first of their class any more, whatever comes.

    Rows are taken in the order of their hashes. Once `most` rows of a class have been seen below some
    hash, rows of that class above it are not wanted. Counted in 4,096 bins of hashes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.counts: dict[tuple[int, int], Int[np.ndarray, " bin"]] = {}

    def wanted(
        self, keys: UInt64[np.ndarray, " row"], classes: Int[np.ndarray, "row label"]
    ) -> Bool[np.ndarray, " row"]:
        """Count some rows, and say which of them may be among the first of a class."""
        bins = (keys >> np.uint64(52)).astype(np.int64)
        wanted = np.zeros(len(keys), dtype=bool)
        for k, column in enumerate(classes.T):
            for of in np.unique(column).tolist():
                mine = column == of
                counts = self.counts.setdefault((k, of), np.zeros(4096, dtype=np.int64))
                counts += np.bincount(bins[mine], minlength=4096)
                wanted |= mine & (bins <= int(np.searchsorted(np.cumsum(counts), self.most)))
        return wanted


class _OfBlock:
    """What the batches of one block do."""

    def __init__(
        self, plan: _Plan, layout: Layout, number: int, samples: Sequence[Sample], bound: _Bound | None
    ) -> None:
        self.plan, self.layout, self.samples = plan, layout, samples
        # Whole samples of a block change labels among each other; the first block's stream is the seed's.
        rng = np.random.default_rng([plan.seed, number] if number else plan.seed)
        permuted = permute_labels(layout.labels, layout.bounds, rng, layout.known)
        self.labels: Bool[np.ndarray, "row label"] = np.concatenate([layout.labels, permuted], axis=1)
        # What is unknown is so for true and permuted labels alike.
        # Data in memory without an unknown label have no columns of them; among blocks all have them.
        columns = 0 if bound is None else len(plan.concepts)
        self.unknown: Bool[np.ndarray, "row unknown"] = (
            np.zeros((len(self.labels), columns), dtype=bool) if layout.known is None else ~layout.known
        )
        self.sample_labels = sample_labels(samples, plan.concepts)
        self.keys = mixed(
            np.repeat(_sample_keys(samples, plan.seed), np.diff(layout.bounds)), layout.position
        )
        self.chosen = np.zeros(0, dtype=np.int64)
        if plan.keep_rows:
            known = None if layout.known is None else np.tile(layout.known, (1, 2))
            order = np.argsort(self.keys, kind="stable")
            self.chosen = draw_rows(self.labels, plan.limits.per_class, order, known)
            if bound is not None:
                classes = self.labels.astype(np.int64) + (0 if known is None else 2 * ~known)
                self.chosen = self.chosen[bound.wanted(self.keys, classes)[self.chosen]]

    @property
    def sites(self) -> set[Site]:
        """Everything that is read."""
        return {*(Site(at, self.plan.hook_point) for at in self.plan.blocks), *self.plan.writes}

    def reducer(self, batch: Batch) -> Reducer:
        """What one batch leaves behind."""
        rows, plan = self.layout.rows(batch), self.plan
        return partial(
            reducers.train,
            valid=batch.valid,
            sites=tuple((block, plan.hook_point) for block in plan.blocks),
            labels=(
                torch.from_numpy(np.concatenate([self.labels[rows], self.unknown[rows]], axis=1)),
                torch.from_numpy(self.sample_labels[batch.rows.numpy()]),
            ),
            stored=torch.from_numpy(np.isin(rows, self.chosen)) if plan.keep_rows else None,
            gram="gram" in plan.need,
            writes=tuple((site.layer, str(site.point)) for site in plan.writes),
            class_index=batch.class_index,
        )

    def gave(self, kept: Kept, tokens: TokenTable) -> HeldBlock:
        """What the block leaves behind."""
        plan = self.plan
        arrays: dict[Any, np.ndarray] = table_arrays(tokens)
        arrays |= {("sum", *_tuple(name)): value.numpy() for name, value in kept.sums.items()}
        for name, vectors in kept.samples.items():
            what, layer = _tuple(name)
            arrays["sample", what, layer] = vectors
            of_samples = _sums_of(vectors, self.sample_labels, "gram" in plan.need)
            arrays |= {("sum", of, what, layer): value.numpy() for of, value in of_samples.items()}
        arrays |= {("row", layer): rows for layer, rows in kept.rows.items()}
        arrays["label counts"] = self.labels[kept.keep].sum(0)
        arrays["unknown counts"] = self.unknown[kept.keep].sum(0)
        # Sinks are drawn among the rows, and then are none: merged blocks draw as one block does.
        arrays["drawn"] = kept.keep[self.chosen]
        arrays["drawn keys"] = self.keys[self.chosen]
        arrays["drawn labels"] = self.labels[self.chosen]
        arrays["drawn unknown"] = self.unknown[self.chosen]
        n = len(plan.concepts)
        true, permuted = self.labels[kept.keep, :n], self.labels[kept.keep, n:]
        arrays["kept labels"] = (true & permuted).sum(0)
        has_class = any(batch.class_index is not None for batch in self.layout.batches)
        return HeldBlock(arrays, {"dropped": dict(tokens.dropped), "has_class": has_class})


def _tuple(name: Hashable) -> tuple[Any, ...]:
    assert isinstance(name, tuple)
    return name


def _sample_keys(samples: Sequence[Sample], seed: int) -> UInt64[np.ndarray, " sample"]:
    return name_keys(map(draw_name, samples), seed)


def _warn_sorted(blocks: Sequence[BlockArrays], n: int, concepts: Sequence[str]) -> None:
    own = np.sum([block["label counts"][: len(concepts)] for block in blocks], axis=0)
    same = np.sum([block["kept labels"] for block in blocks], axis=0)
    # A permutation of all tokens leaves a concept as many of its own as its share of the tokens.
    excess = (same - own * (own / n)) / np.maximum(own, 1)
    late = [concepts[k] for k in np.flatnonzero(excess > _KEPT).tolist()]
    if late:
        warnings.warn(
            "labels permuted among the samples of a block stay what they were for most tokens of "
            f"{', '.join(map(repr, late[:3]))}{' and others' if len(late) > 3 else ''}: blocks hold one "
            "class. The control 'permuted' is none there; shuffle the corpus, or give larger blocks.",
            SortedCorpusWarning,
            stacklevel=users_line(),
        )


@dataclass(frozen=True, eq=False)
class _Records:
    """Records, one a layer, from what the blocks gave."""

    plan: _Plan
    blocks: Sequence[BlockArrays]
    normaliser: Normaliser
    tokens: TokenTable

    @cached_property
    def _sums(self) -> dict[tuple[Any, ...], Tensor]:
        """Sums of all blocks, added in their order."""
        total: dict[tuple[Any, ...], Tensor] = {}
        for block in self.blocks:
            for (_, *name), value in block.group("sum").items():
                one, key = torch.from_numpy(value), tuple(name)
                total[key] = total[key] + one if key in total else one
        return total

    def _counts(self, name: str) -> Int[np.ndarray, " label"]:
        counts: np.ndarray = np.sum([block[name] for block in self.blocks], axis=0)
        return counts

    @cached_property
    def _unknown(self) -> slice:
        """Columns of unknown labels; of several blocks without one, none."""
        none = len(self.blocks) > 1 and not self._counts("unknown counts").any()
        return slice(0) if none else slice(None)

    @cached_property
    def _drawn(
        self,
    ) -> tuple[Bool[np.ndarray, " drawn"], Bool[np.ndarray, "drawn label"], Bool[np.ndarray, "_ _"]]:
        """Of the rows that blocks drew: which are stored, and their labels."""
        keys, labels, unknown, kept = (
            np.concatenate([block[name] for block in self.blocks])
            for name in ("drawn keys", "drawn labels", "drawn unknown", "drawn")
        )
        unknown = unknown[:, self._unknown]
        known = np.tile(~unknown, (1, 2)) if unknown.shape[1] else None
        first = draw_rows(labels, self.plan.limits.per_class, np.argsort(keys, kind="stable"), known)
        chosen = np.zeros(len(keys), dtype=bool)
        chosen[first] = True
        return chosen & kept, labels, unknown

    @property
    def n_stored(self) -> int:
        """Rows that are stored."""
        return int(self._drawn[0].sum())

    def of_tokens(self) -> tuple[tuple[LayerStatistics, ...], tuple[LayerStatistics, ...]]:
        """For token labels, and for permuted ones."""
        counts, n_unknown = self._counts("label counts"), self._counts("unknown counts")[self._unknown]
        n_labels = len(counts)
        stored, drawn_labels, drawn_unknown = self._drawn
        labels, unknown = drawn_labels[stored], drawn_unknown[stored]
        # Columns are the true labels, then as many permuted ones: one product summed both, and the
        # unknown tokens of each concept behind them.
        halves = (slice(n_labels // 2), slice(n_labels // 2, None))
        found: tuple[list[LayerStatistics], list[LayerStatistics]] = ([], [])
        for block in self.plan.blocks:
            whole = self._summed("token", block, len(self.tokens), counts)
            sums = self._sums["positive", "token", block][n_labels:][self._unknown]
            stored_here = self._rows(block) if self.plan.keep_rows else None
            for target, part in zip(found, halves, strict=True):
                count, mean = whole.positive_count[part], whole.positive_mean[part]
                one = replace(whole, positive_count=count, positive_mean=mean)
                if stored_here is not None:
                    rows = Rows(stored_here, whole.mean, whole.scale)
                    one = replace(one, rows=rows, labels=labels[:, part])
                target.append(with_unknown(one, sums, n_unknown, unknown) if len(n_unknown) else one)
        return tuple(found[0]), tuple(found[1])

    def _rows(self, layer: int) -> np.ndarray:
        """The stored rows of one layer, in the order of the data."""
        stored, kept = self._drawn[0], [block["drawn"] for block in self.blocks]
        ends = np.cumsum([len(of) for of in kept])
        parts = (
            _picked(block["row", layer], stored[end - len(of) : end][of])
            for block, of, end in zip(self.blocks, kept, ends, strict=True)
        )
        return joined(parts, int(stored.sum()), self._budget)

    @property
    def _budget(self) -> int:
        return self.plan.limits.memory // max(1, len(self.plan.blocks))

    def of_samples(self, what: str) -> tuple[LayerStatistics, ...]:
        """For "pooled" samples, or for their class tokens, "cls"."""
        labels = self.tokens.sample_labels
        counts = labels.sum(0)
        summed = [self._summed(what, block, len(labels), counts) for block in self.plan.blocks]
        if not self.plan.keep_rows:
            return tuple(summed)
        order = np.argsort(_sample_keys(self.tokens.samples, self.plan.seed), kind="stable")
        chosen = draw_rows(labels, self.plan.limits.per_class, order)
        stored = np.zeros(len(labels), dtype=bool)
        stored[chosen] = True
        sizes = [len(block["lengths"]) for block in self.blocks]
        ends, found = np.cumsum(sizes), []
        for layer, one in zip(self.plan.blocks, summed, strict=True):
            parts = (
                _picked(block["sample", what, layer], stored[end - size : end])
                for block, size, end in zip(self.blocks, sizes, ends, strict=True)
            )
            rows = Rows(joined(parts, len(chosen), self._budget), one.mean, one.scale)
            found.append(replace(one, rows=rows, labels=labels[chosen]))
        return tuple(found)

    def _summed(self, what: str, block: int, n: int, counts: Int[np.ndarray, " label"]) -> LayerStatistics:
        total = {name: self._sums[name, what, block] for name in ("sum", "squares", "norms", "positive")}
        scale = float((total["squares"] / n).sqrt() if self.normaliser == "rms" else total["norms"] / n)
        number = torch.from_numpy(counts)
        positive = total["positive"][: len(counts)] / number.clamp_min(1)[:, None]
        gram = self._sums["gram", what, block] / n if "gram" in self.plan.need else None
        return LayerStatistics(n, total["sum"] / n, scale, number, positive, gram)

    def component_means(self) -> ComponentMeans | None:
        """Train means of the embedding, every head's z and every MLP."""
        if not self.plan.writes:
            return None
        info, total, n = self.plan.host.info, self._sums, len(self.tokens)
        blocks = range(self.plan.blocks[-1] + 1)
        z = torch.stack([total["write", "z", b] / n for b in blocks])
        return ComponentMeans(
            total["write", "resid_pre", 0] / n,
            z.reshape(len(blocks), info.n_heads, info.d_head),
            torch.stack([total["write", "mlp_out", b] / n for b in blocks]),
        )


def _picked(rows: np.ndarray, chosen: Bool[np.ndarray, " row"]) -> np.ndarray:
    return rows if chosen.all() else rows[chosen]


def _sums_of(
    values: Float[np.ndarray, "sample d_model"], labels: Bool[np.ndarray, "sample concept"], with_gram: bool
) -> dict[str, Tensor]:
    """Sums of samples' vectors, as `reducers.moments` names them."""
    h = torch.from_numpy(np.asarray(values)).double()
    norms = h.norm(dim=-1)
    y = torch.from_numpy(labels).double()
    found = {"sum": h.sum(0), "squares": norms.square().sum(), "norms": norms.sum(), "positive": y.T @ h}
    return {**found, "gram": h.T @ h} if with_gram else found
