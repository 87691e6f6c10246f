"""Scores of every concept at every token: one forward pass a sample, activations never stored.

Detection and tails without token scores: what leaves the model is a few numbers a sample.

Sample decisions need each sample's highest score alone, and quantiles of the tail need counts
alone. On a remote host these travel instead of activations, and instead of the score of every token
under every vector at every layer.

A histogram's bins are the high 16 bits of a float32, so a threshold is known to 2**-7 of itself:
`TailHistogram.thresholds` gives both ends. Exact thresholds need the scores (`score`, `calibrate`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.data.sample import Sample
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, BulkHost, Host, HostInfo, Reduce, Site
from sa_plugin.passes.layout import TokenTable
from sa_plugin.passes.run import (
    BATCH_TOKENS,
    Layout,
    allocate,
    compact,
    lay_out,
    rows_kept_in,
    sink_rule,
    sink_sites,
    token_table,
    walk,
)
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.streaming import to_values

MEMORY_BUDGET = 1 << 30


@overload
def score(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    *,
    splits: Sequence[str] = ...,
    batch_tokens: int = ...,
    memory_budget: int = ...,
    progress: bool = ...,
    keep_of: TokenTable | None = ...,
) -> ScoreTable: ...
@overload
def score(
    host: Host,
    data: ConceptData,
    bank: Sequence[ConceptBank],
    *,
    splits: Sequence[str] = ...,
    batch_tokens: int = ...,
    memory_budget: int = ...,
    progress: bool = ...,
    keep_of: TokenTable | None = ...,
) -> list[ScoreTable]: ...
def score(
    host: Host,
    data: ConceptData,
    bank: ConceptBank | Sequence[ConceptBank],
    *,
    splits: Sequence[str] = ("cal", "test"),
    batch_tokens: int = BATCH_TOKENS,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = True,
    keep_of: TokenTable | None = None,
) -> ScoreTable | list[ScoreTable]:
    """Score every kept token of some splits under every vector of a bank.

    Costs one forward pass a sample, up to the deepest layer, whatever the number of banks.

    Args:
        host: An attached model.
        data: Labelled samples.
        bank: Concept vectors, or several banks that share the pass and the sink rule.
        splits: Which splits to score.
        batch_tokens: Tokens in a batch, padding included.
        memory_budget: Bytes of scores, for each bank, above which they lie in a temporary file.
        progress: Whether to show a bar.
        keep_of: The table of another run over the same samples, whose rows are kept whatever this
            run's norms: an intervention must not change which tokens are sinks.

    Returns:
        A table, or one for each bank.

    Raises:
        ValueError: The bank was fitted on another model, processing mode or architecture; the
            banks disagree on the sink rule; activations are NaN or Inf; a sample has no token;
            `keep_of` lacks a sample or holds a token this run has not.
    """
    parts = [data.split(name) for name in splits]
    samples = [s for part in parts for s in part.samples]
    split_of = [part.name for part in parts for _ in part.samples]
    banks = [bank] if isinstance(bank, ConceptBank) else list(bank)
    tables = _score(host, samples, split_of, banks, batch_tokens, memory_budget, progress, "scores", keep_of)
    return tables[0] if isinstance(bank, ConceptBank) else tables


def score_samples(
    host: Host,
    samples: Sequence[Sample],
    bank: ConceptBank,
    *,
    batch_tokens: int = BATCH_TOKENS,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> ScoreTable:
    """Score samples that belong to no split, labels unknown or not.

    Raises:
        ValueError: As `score`.
    """
    none = [""] * len(samples)
    return _score(host, samples, none, [bank], batch_tokens, memory_budget, progress, "scores")[0]


class OtherPrecisionWarning(UserWarning):
    """Vectors were fitted on the same weights in another number format."""


def check_origin(bank: ConceptBank, host: Host) -> None:
    """Refuse a bank on a model it was not fitted on.

    Raises:
        ValueError: Model, processing mode, tokenizer or width differ, or the units are latents of
            an SAE and the model is on a server; the text says which.

    Warns:
        OtherPrecisionWarning: Same weights in another number format.
    """
    info, origin = host.info, bank.origin
    if bank.token.scoring == "latent" and isinstance(host, BulkHost):
        raise ValueError(
            "the bank's units are latents of an SAE, and the attached model is on a server: an SAE "
            "runs where the activations are. Attach a local copy of the model."
        )
    width = bank.token.shape[-1]
    if width != info.d_model:
        raise ValueError(
            f"the bank's vectors have {width} dimensions, {info.model} has d_model = "
            f"{info.d_model}: the bank is of another model."
        )
    if max(bank.layers) >= info.n_layers:
        raise ValueError(
            f"the bank has vectors at block {max(bank.layers)}, {info.model} has blocks 0 to "
            f"{info.n_layers - 1}: the bank is of another model."
        )
    if origin.processing and origin.processing != info.processing:
        raise ValueError(
            f"the bank was fitted with weight processing {origin.processing!r}, the attached model "
            f"has {info.processing!r}: activations differ. Attach the model as it was fitted "
            "(enable_compatibility_mode rewrites the residual stream), or fit again."
        )
    if origin.fingerprint and origin.fingerprint != info.fingerprint:
        raise ValueError(
            f"the bank was fitted on {origin.model} (weights {origin.fingerprint[:12]}), the "
            f"attached model is {info.model} (weights {info.fingerprint[:12]}): concept vectors "
            "do not carry over to other weights. Fit again on this model."
        )
    if origin.tokenizer and origin.tokenizer != info.tokenizer:
        raise ValueError(
            f"the bank was fitted with tokenizer {origin.tokenizer[:12]}, the attached model has "
            f"{info.tokenizer[:12]}: other tokens (a BOS, say) give other activations. Attach with "
            "the tokenizer it was fitted with, or fit again."
        )
    if origin.dtype and origin.dtype != info.dtype:
        warnings.warn(
            f"the bank was fitted in {origin.dtype}, the attached model runs in {info.dtype}: "
            "scores differ by its rounding, thresholds do not know it.",
            OtherPrecisionWarning,
            stacklevel=3,
        )


def _score(
    host: Host,
    samples: Sequence[Sample],
    split_of: Sequence[str],
    banks: Sequence[ConceptBank],
    batch_tokens: int,
    budget: int,
    progress: bool,
    description: str,
    keep_of: TokenTable | None = None,
) -> list[ScoreTable]:
    if not banks:
        raise ValueError("no bank to score: give a ConceptBank or several.")
    for bank in banks:
        check_origin(bank, host)
    rules = {(bank.origin.sinks, bank.sink_layers) for bank in banks}
    if len(rules) > 1:
        raise ValueError(
            "the banks decide attention sinks differently, so their rows would differ: fit them "
            "from the same `collect(...)` statistics, or score them one by one."
        )
    concepts = banks[0].concepts
    layout = lay_out(host, samples, concepts, batch_tokens=batch_tokens)
    stores = [_Store.of(bank, layout, len(samples), budget) for bank in banks]
    sites = sink_sites(banks[0].sink_layers)
    sites += [Site(at, bank.hook_point) for bank in banks for at in bank.layers]
    sites = sorted(set(sites))
    keep = np.zeros(layout.n_rows, dtype=bool)
    frozen = None if keep_of is None else rows_kept_in(keep_of, layout, samples)
    reducer = _reducer(banks, host.info, layout, frozen)
    for batch, got in walk(host, layout, sites, reducer, description=description, progress=progress):
        rows = layout.rows(batch)
        keep[rows] = got["keep"].numpy()[batch.valid.numpy()]
        for k, store in enumerate(stores):
            store.write(rows, batch, {name: got.get(f"{name} {k}") for name in _PARTS})
    tokens = token_table(layout, keep, samples, split_of, concepts)
    return [
        ScoreTable(tokens, bank, compact(one.scores, keep), one.permuted_max, one.pooled, one.cls)
        for bank, one in zip(banks, stores, strict=True)
    ]


_PARTS = ("scores", "permuted_max", "pooled", "cls")


class _Store:
    """Arrays that one bank's results are written into."""

    def __init__(
        self,
        scores: np.ndarray,
        permuted_max: np.ndarray | None,
        pooled: np.ndarray | None,
        cls_scores: np.ndarray | None,
    ) -> None:
        self.scores, self.permuted_max = scores, permuted_max
        self.pooled, self.cls = pooled, cls_scores

    @classmethod
    def of(cls, bank: ConceptBank, layout: Layout, n_samples: int, budget: int) -> _Store:
        layers, units, _ = bank.token.shape

        def by_sample(vectors: VectorSet | None) -> np.ndarray | None:
            if vectors is None:
                return None
            return np.empty((n_samples, layers, vectors.shape[1]), dtype=np.float32)

        scores = allocate((layout.n_rows, layers, units), np.float32, budget)
        return cls(scores, *map(by_sample, (bank.permuted, bank.pooled, bank.cls)))

    def write(self, rows: np.ndarray, batch: Batch, got: Mapping[str, Tensor | None]) -> None:
        scores = got["scores"]
        assert scores is not None
        self.scores[rows] = scores[batch.valid].numpy()
        by_sample = (self.permuted_max, self.pooled, self.cls)
        for store, part in zip(by_sample, _PARTS[1:], strict=True):
            value = got[part]
            if store is not None and value is not None:
                store[batch.rows.numpy()] = value.numpy()


def _reducer(
    banks: Sequence[ConceptBank], info: HostInfo, layout: Layout, frozen: Bool[np.ndarray, " row"] | None
) -> Callable[[Batch], Reduce]:
    """For each batch a function of the residuals that keeps scores alone."""
    sinks = sink_rule(info, banks[0].sink_layers, banks[0].origin.sinks)
    plain = tuple((bank.layers, bank.hook_point, bank.plain_sets) for bank in banks)

    def for_batch(batch: Batch) -> Reduce:
        return partial(
            reducers.scores,
            valid=batch.valid,
            sinks=sinks,
            banks=plain,
            frozen=None if frozen is None else layout.mask(batch, frozen),
            class_index=batch.class_index,
        )

    return for_batch


@dataclass(frozen=True, eq=False)
class SampleMaxima:
    """The highest scores of each sample under every vector.

    Attributes:
        samples: Ids.
        layers: Block indices.
        units: Names of the vectors.
        scores: Descending along "top"; -inf where a sample has fewer tokens.
        position: Place of each in the model's input sequence; None unless asked for.
        kept: Tokens of each sample that are evidence.
    """

    samples: tuple[str, ...]
    layers: tuple[int, ...]
    units: tuple[str, ...]
    scores: Float[np.ndarray, "sample top layer unit"]
    position: Int[np.ndarray, "sample top layer unit"] | None
    kept: Int[np.ndarray, " sample"]

    def __repr__(self) -> str:
        return (
            f"SampleMaxima({len(self.samples)} samples, top {self.scores.shape[1]}, "
            f"{len(self.units)} units, layers {list(self.layers)})"
        )


def sample_maxima(
    host: Host,
    samples: Sequence[Sample],
    bank: ConceptBank,
    *,
    top: int = 1,
    positions: bool = False,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> SampleMaxima:
    """Each sample's highest scores, from one forward pass a sample.

    Args:
        host: An attached model.
        samples: Texts or images.
        bank: Concept vectors.
        top: How many scores of each sample.
        positions: Whether to say where they stand.
        batch_tokens: Tokens in a batch, padding included.
        progress: Whether to show a bar.

    Raises:
        ValueError: `top` is below 1, the bank is of another model, activations are NaN or Inf, or
            a sample has no token left once special tokens and sinks are dropped.
    """
    if top < 1:
        raise ValueError(f"top is {top}: give 1 or more.")
    layout, sites, bound = _begin(host, samples, bank, batch_tokens)
    shape = (len(samples), top, len(bank.layers), bank.token.shape[1])
    best = np.full(shape, -np.inf, dtype=np.float32)
    position = np.full(shape, -1, dtype=np.int64) if positions else None
    kept = np.zeros(len(samples), dtype=np.int64)

    def reducer(batch: Batch) -> Reduce:
        return partial(reducers.maxima, valid=batch.valid, top=top, places=positions, **bound)

    for batch, got in walk(host, layout, sites, reducer, description="maxima", progress=progress):
        rows = batch.rows.numpy()
        best[rows], kept[rows] = got["best"].numpy(), got["count"].numpy()
        if position is not None:
            position[rows] = _input_position(batch, got["place"]).numpy()
    if not kept.all():
        raise ValueError(
            f"sample {samples[int(np.argmin(kept))].id!r} has no token left once special tokens "
            "and attention sinks are dropped: give a longer text, or leave it out."
        )
    names = tuple(sample.id for sample in samples)
    return SampleMaxima(names, bank.layers, bank.units, best, position, kept)


@dataclass(frozen=True, eq=False)
class TailHistogram:
    """Counts of token scores in and out of each concept, by the high 16 bits of the score.

    Attributes:
        layers: Block indices.
        units: Names of the vectors.
        bins: Bins that hold scores, ascending, of each column (in or out, layer, unit).
        counts: Tokens in each of them.
    """

    layers: tuple[int, ...]
    units: tuple[str, ...]
    bins: dict[tuple[bool, int, str], Int[np.ndarray, " bin"]]
    counts: dict[tuple[bool, int, str], Int[np.ndarray, " bin"]]

    def __repr__(self) -> str:
        tokens = sum(int(self.total(i, self.layers[0], self.units[0])) for i in (False, True))
        return f"TailHistogram({tokens} tokens, {len(self.units)} units, {list(self.layers)})"

    def total(self, inside: bool, layer: int, unit: str) -> int:
        """Tokens counted."""
        return int(self.counts[inside, layer, unit].sum())

    def above(self, threshold: float, layer: int, unit: str, *, inside: bool) -> tuple[float, float]:
        """At least and at most which share of the tokens reaches a threshold."""
        bins, counts = self.bins[inside, layer, unit], self.counts[inside, layer, unit]
        lower, upper = _edges(bins)
        total = max(1, counts.sum())
        surely, perhaps = counts[lower >= threshold].sum(), counts[upper >= threshold].sum()
        return float(surely / total), float(perhaps / total)

    def thresholds(self, delta: float, layer: int, unit: str) -> tuple[float, float]:
        """Two numbers that enclose the concept's threshold at sparsity `delta`.

        Raises:
            ValueError: `delta` lies outside (0, 1], or the concept has no token.
        """
        if not 0 < delta <= 1:
            raise ValueError(f"delta is {delta}: give a share above 0 and at most 1.")
        bins, counts = self.bins[True, layer, unit], self.counts[True, layer, unit]
        total = int(counts.sum())
        if not total:
            raise ValueError(f"{unit!r} has no token in these samples: no threshold.")
        place = (1 - delta) * (total - 1)
        ends = np.cumsum(counts)
        low, high = (int(np.searchsorted(ends, r, side="right")) for r in (np.floor(place), np.ceil(place)))
        return float(_edges(bins)[0][low]), float(_edges(bins)[1][high])


def tail_histogram(
    host: Host,
    samples: Split | Sequence[Sample],
    bank: ConceptBank,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> TailHistogram:
    """Histograms of every concept's scores at every layer, in and out of the concept.

    Args:
        host: An attached model.
        samples: Labelled samples.
        bank: Vectors of the labelled concepts (prototype, separator, lda, or given).
        batch_tokens: Tokens in a batch, padding included.
        progress: Whether to show a bar.

    Raises:
        ValueError: The bank's units are not its concepts, it is of another model, or activations
            are NaN or Inf.
    """
    if not bank.supervised:
        raise ValueError(
            f"a {bank.kind!r} bank's units are no concepts, so tokens are neither in nor out of "
            "them: use a supervised kind, or score(...) and calibrate(...)."
        )
    rows = samples.samples if isinstance(samples, Split) else samples
    layout, sites, bound = _begin(host, rows, bank, batch_tokens)
    total: Tensor | None = None

    def reducer(batch: Batch) -> Reduce:
        labels = torch.zeros(*batch.valid.shape, len(bank.concepts), dtype=torch.bool)
        labels[batch.valid] = torch.from_numpy(layout.labels[layout.rows(batch)])
        return partial(reducers.histogram, valid=batch.valid, labels=labels, **bound)

    for _, got in walk(host, layout, sites, reducer, description="histogram", progress=progress):
        if "+bins" in got:
            total = got["+bins"] if total is None else total + got["+bins"]
    assert total is not None
    return _by_column(bank, total.coalesce())


def _begin(
    host: Host, samples: Sequence[Sample], bank: ConceptBank, batch_tokens: int
) -> tuple[Layout, list[Site], dict[str, Any]]:
    check_origin(bank, host)
    layout = lay_out(host, samples, bank.concepts, batch_tokens=batch_tokens)
    sites = {*sink_sites(bank.sink_layers), *(Site(at, bank.hook_point) for at in bank.layers)}
    bound: dict[str, Any] = {
        "sinks": sink_rule(host.info, bank.sink_layers, bank.origin.sinks),
        "layers": bank.layers,
        "point": bank.hook_point,
        "vectors": bank.token.plain,
    }
    return layout, sorted(sites), bound


def _input_position(batch: Batch, place: Int[Tensor, ...]) -> Int[Tensor, ...]:
    mask = batch.inputs.get("attention_mask")
    if mask is None:
        return place.long()
    order = mask.long().cumsum(-1) - 1
    flat = place.long().flatten(1)
    return order.gather(1, flat).reshape(place.shape)


def _edges(bins: Int[np.ndarray, " bin"]) -> tuple[Float[np.ndarray, " bin"], Float[np.ndarray, " bin"]]:
    high = bins.astype(np.uint32) << np.uint32(16)
    return to_values(high), to_values(high | np.uint32(0xFFFF))


def _by_column(bank: ConceptBank, total: Tensor) -> TailHistogram:
    place, count = total.indices()[0].numpy(), total.values().numpy()
    column, low = place // reducers.BINS, place % reducers.BINS
    found: list[dict[tuple[bool, int, str], np.ndarray]] = [{}, {}]
    keys = [(i, at, unit) for i in (False, True) for at in bank.layers for unit in bank.units]
    for k, key in enumerate(keys):
        chosen: Bool[np.ndarray, " entry"] = column == k
        found[0][key], found[1][key] = low[chosen], count[chosen]
    return TailHistogram(bank.layers, bank.units, *found)
