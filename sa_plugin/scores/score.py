"""Scores of every concept at every token: one forward pass a sample, activations never stored.

Whatever the number of banks, samples pass once. What is kept is a float32 for each kept token and
vector, and the controls' scores of each sample; scores above a budget lie in a temporary file.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

from sa_plugin._check import users_line
from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData, Split, require_filled
from sa_plugin.data.loose import as_split
from sa_plugin.data.sample import Sample
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, BulkHost, Host, Site
from sa_plugin.host.tokens import naming_of
from sa_plugin.passes.layout import TokenTable, lay_out, rows_kept_in, token_table
from sa_plugin.passes.run import MEMORY_BUDGET, Job, Reducer, run_jobs
from sa_plugin.scores.table import ScoreTable


@overload
def score(
    host: Host,
    data: Any,
    bank: ConceptBank,
    *,
    splits: Sequence[str] = ...,
    memory_budget: int = ...,
    keep_of: TokenTable | None = ...,
) -> ScoreTable: ...
@overload
def score(
    host: Host,
    data: Any,
    bank: Sequence[ConceptBank],
    *,
    splits: Sequence[str] = ...,
    memory_budget: int = ...,
    keep_of: TokenTable | None = ...,
) -> list[ScoreTable]: ...
@face
def score(
    host: Host,
    data: Any,
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
        data: Labelled samples, one of their splits, or loose ones as `Detector.find` takes them.
        bank: Concept vectors, or several banks that share the pass and the sink rule.
        splits: Which splits of labelled samples to score.
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
    banks = [bank] if isinstance(bank, ConceptBank) else list(bank)
    parts = _parts(host, data, splits, banks[0].concepts if banks else ())
    samples = [s for part in parts for s in part.samples]
    split_of = [part.name for part in parts for _ in part.samples]
    require_filled(*parts)
    tables = _score(host, samples, split_of, banks, memory_budget, keep_of)
    return tables[0] if isinstance(bank, ConceptBank) else tables


def _parts(host: Host, data: Any, splits: Sequence[str], concepts: tuple[str, ...]) -> list[Split]:
    """Splits of labelled data; loose samples are of no split."""
    if isinstance(data, ConceptBank | Host):
        kind = type(data).__name__
        raise TypeError(f"data is a {kind}, not a ConceptData: the order is score(host, data, bank).")
    if isinstance(data, ConceptData):
        return [data.split(name) for name in splits]
    if isinstance(data, Split):
        return [data]
    return [replace(as_split(data, concepts, naming_of(host)), name="")]


def score_samples(
    host: Host, samples: Sequence[Sample], bank: ConceptBank, *, memory_budget: int = MEMORY_BUDGET
) -> ScoreTable:
    """Score samples that belong to no split, labels unknown or not.

    Raises:
        ValueError: As `score`.
    """
    none = [""] * len(samples)
    return _score(host, samples, none, [bank], memory_budget)[0]


def score_again(host: Host, tokens: TokenTable, banks: Sequence[ConceptBank]) -> list[ScoreTable]:
    """Score the rows of a table under other vectors, in one pass.

    Raises:
        ValueError: As `score`.
    """
    return _score(host, tokens.samples, tokens.split_of, banks, MEMORY_BUDGET, tokens)


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
        rounded = ""
        if origin.dtype and origin.dtype != info.dtype and origin.model == info.model:
            rounded = (
                f" Or is it the same model, in {info.dtype}? Its weights are rounded then: load it in "
                f"{origin.dtype}, as it was."
            )
        raise ValueError(
            f"the bank was fitted on {origin.model} (weights {origin.fingerprint[:12]}), the "
            f"attached model is {info.model} (weights {info.fingerprint[:12]}): concept vectors "
            f"do not carry over to other weights. Fit again on this model.{rounded}"
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
            stacklevel=users_line(),
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

    def reducer(batch: Batch) -> Reducer:
        return partial(reducers.token_scores, valid=batch.valid, banks=plain, class_index=batch.class_index)

    job = Job({Site(at, bank.hook_point) for bank in banks for at in bank.layers}, reducer, budget=budget)
    sinks = banks[0].sinks_on(host.info) if keep_of is None else rows_kept_in(keep_of, layout, samples)
    (kept,) = run_jobs(host, layout, [job], sinks, description="scores")
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
