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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.data.sample import Sample
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, BulkHost, Host, Site
from sa_plugin.passes.layout import Layout, TokenTable, lay_out, rows_kept_in, token_table
from sa_plugin.passes.run import MEMORY_BUDGET, Job, Keep, Sinks, run
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.streaming import to_values


@overload
def score(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    *,
    splits: Sequence[str] = ...,
    memory_budget: int = ...,
    keep_of: TokenTable | None = ...,
) -> ScoreTable: ...
@overload
def score(
    host: Host,
    data: ConceptData,
    bank: Sequence[ConceptBank],
    *,
    splits: Sequence[str] = ...,
    memory_budget: int = ...,
    keep_of: TokenTable | None = ...,
) -> list[ScoreTable]: ...
def score(
    host: Host,
    data: ConceptData,
    bank: ConceptBank | Sequence[ConceptBank],
    *,
    splits: Sequence[str] = ("cal", "test"),
    memory_budget: int = MEMORY_BUDGET,
    keep_of: TokenTable | None = None,
) -> ScoreTable | list[ScoreTable]:
    """Score every kept token of some splits under every vector of a bank.

    Costs one forward pass a sample, up to the deepest layer, whatever the number of banks.

    Args:
        host: An attached model.
        data: Labelled samples.
        bank: Concept vectors, or several banks that share the pass and the sink rule.
        splits: Which splits to score.
        memory_budget: Bytes of scores, for each bank, above which they lie in a temporary file.
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
    tables = _score(host, samples, split_of, banks, memory_budget, keep_of)
    return tables[0] if isinstance(bank, ConceptBank) else tables


def score_samples(
    host: Host, samples: Sequence[Sample], bank: ConceptBank, *, memory_budget: int = MEMORY_BUDGET
) -> ScoreTable:
    """Score samples that belong to no split, labels unknown or not.

    Raises:
        ValueError: As `score`.
    """
    none = [""] * len(samples)
    return _score(host, samples, none, [bank], memory_budget)[0]


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
    budget: int,
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
    layout = lay_out(host, samples, concepts)
    plain = tuple((bank.layers, bank.hook_point, bank.plain_sets) for bank in banks)

    def reducer(batch: Batch) -> Keep:
        return partial(reducers.scores, valid=batch.valid, banks=plain, class_index=batch.class_index)

    job = Job({Site(at, bank.hook_point) for bank in banks for at in bank.layers}, reducer, budget=budget)
    rule = banks[0].sinks_on(host.info)
    frozen = None if keep_of is None else rows_kept_in(keep_of, layout, samples)
    sinks = rule if frozen is None else frozen
    (kept,) = run(host, layout, [job], sinks, description="scores")
    tokens = token_table(layout, kept.keep, samples, split_of, concepts)
    found = kept.samples
    return [
        ScoreTable(
            tokens,
            bank,
            kept.rows[k],
            found.get(("permuted", k)),
            found.get(("pooled", k)),
            found.get(("cls", k)),
        )
        for k, bank in enumerate(banks)
    ]


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
    host: Host, samples: Sequence[Sample], bank: ConceptBank, *, top: int = 1, positions: bool = False
) -> SampleMaxima:
    """Each sample's highest scores, from one forward pass a sample.

    Args:
        host: An attached model.
        samples: Texts or images.
        bank: Concept vectors.
        top: How many scores of each sample.
        positions: Whether to say where they stand.

    Raises:
        ValueError: `top` is below 1, the bank is of another model, activations are NaN or Inf, or
            a sample has no token left once special tokens and sinks are dropped.
    """
    if top < 1:
        raise ValueError(f"top is {top}: give 1 or more.")
    layout, rule, bound = _begin(host, samples, bank)

    def reducer(batch: Batch) -> Keep:
        return partial(reducers.maxima, top=top, places=positions, **bound)

    job = Job(_sites(bank), reducer)
    (kept,) = run(host, layout, [job], rule, description="maxima")
    count = kept.samples["count"]
    if not count.all():
        raise ValueError(
            f"sample {samples[int(np.argmin(count))].id!r} has no token left once special tokens "
            "and attention sinks are dropped: give a longer text, or leave it out."
        )
    position = _input_positions(layout, kept.samples["place"]) if positions else None
    names = tuple(sample.id for sample in samples)
    return SampleMaxima(names, bank.layers, bank.units, kept.samples["best"], position, count)


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


def tail_histogram(host: Host, samples: Split | Sequence[Sample], bank: ConceptBank) -> TailHistogram:
    """Histograms of every concept's scores at every layer, in and out of the concept.

    Args:
        host: An attached model.
        samples: Labelled samples.
        bank: Vectors of the labelled concepts (prototype, separator, lda, or given).

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
    layout, rule, bound = _begin(host, rows, bank)

    def reducer(batch: Batch) -> Keep:
        labels = torch.zeros(*batch.valid.shape, len(bank.concepts), dtype=torch.bool)
        labels[batch.valid] = torch.from_numpy(layout.labels[layout.rows(batch)])
        return partial(reducers.histogram, labels=labels, **bound)

    job = Job(_sites(bank), reducer)
    (kept,) = run(host, layout, [job], rule, description="histogram")
    return _by_column(bank, kept.sums["bins"].coalesce())


def _sites(bank: ConceptBank) -> set[Site]:
    return {Site(at, bank.hook_point) for at in bank.layers}


def _begin(host: Host, samples: Sequence[Sample], bank: ConceptBank) -> tuple[Layout, Sinks, dict[str, Any]]:
    check_origin(bank, host)
    layout = lay_out(host, samples, bank.concepts)
    rule = bank.sinks_on(host.info)
    bound = {"layers": bank.layers, "point": bank.hook_point, "vectors": bank.token.plain}
    return layout, rule, bound


def _input_positions(layout: Layout, place: Int[np.ndarray, "sample ..."]) -> Int[np.ndarray, "sample ..."]:
    """Places in a padded batch as places in the model's input sequence."""
    out = place.astype(np.int64)
    for batch in layout.batches:
        mask = batch.inputs.get("attention_mask")
        if mask is not None:
            order = (mask.long().cumsum(-1) - 1).cpu().numpy()
            rows = batch.rows.numpy()
            flat = np.take_along_axis(order, out[rows].reshape(len(rows), -1), axis=1)
            out[rows] = flat.reshape(out[rows].shape)
    return out


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
