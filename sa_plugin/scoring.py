"""Scores of every concept at every token: one forward pass a sample, activations never stored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import overload

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from sa_plugin import reducers
from sa_plugin.collect import (
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
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.data import ConceptData, Sample
from sa_plugin.host import Batch, BulkHost, Host, HostInfo, Reduce, Site
from sa_plugin.scores import ScoreTable
from sa_plugin.tokens import TokenTable

MEMORY_BUDGET = 1 << 30


@overload
def score(
    host: Host, data: ConceptData, bank: ConceptBank, *, splits: Sequence[str] = ...,
    batch_tokens: int = ..., memory_budget: int = ..., progress: bool = ...,
    keep_of: TokenTable | None = ...,
) -> ScoreTable: ...  # fmt: skip
@overload
def score(
    host: Host, data: ConceptData, bank: Sequence[ConceptBank], *, splits: Sequence[str] = ...,
    batch_tokens: int = ..., memory_budget: int = ..., progress: bool = ...,
    keep_of: TokenTable | None = ...,
) -> list[ScoreTable]: ...  # fmt: skip
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
    tables = _score(
        host, samples, split_of, banks, batch_tokens, memory_budget, progress, "scores", keep_of
    )
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
    for batch, got in walk(
        host, layout, sites, reducer, description=description, progress=progress
    ):
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
    banks: Sequence[ConceptBank],
    info: HostInfo,
    layout: Layout,
    frozen: Bool[np.ndarray, " row"] | None,
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
