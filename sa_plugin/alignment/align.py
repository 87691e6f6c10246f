"""`head_alignment`: both sides for every head of every block and every concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin._names import require_known, require_type
from sa_plugin.alignment.call import CORRECTIONS, call
from sa_plugin.alignment.data_side import DataPlan, data_sums
from sa_plugin.alignment.measures import data_side
from sa_plugin.alignment.null import NULLS, Refit, check_kind
from sa_plugin.alignment.result import HeadAlignment
from sa_plugin.alignment.rotary import offsets_seen
from sa_plugin.alignment.tails import check_tail
from sa_plugin.alignment.weigh import (
    Block,
    Tested,
    concept_vectors,
    describe_blocks,
    observe,
    weigh,
)
from sa_plugin.block import DescribedHost, require_described
from sa_plugin.collect import lay_out
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.host import FINAL_NORM, Host
from sa_plugin.scoring import check_origin
from sa_plugin.statistics import resample_documents
from sa_plugin.train_pass import TrainStatistics, collect

DELTA, N_CONTROL, SEPARATOR_DRAWS, DRAWS = 0.05, 19, 100, 400


def head_alignment(
    host: Host,
    data: ConceptData,
    source: Detector | ConceptBank,
    *,
    statistics: TrainStatistics | None = None,
    concepts: Sequence[str] | None = None,
    split: str = "cal",
    q: float = 0.05,
    correction: str = "BH",
    nulls: Sequence[str] = ("across", "within"),
    draws: int | None = None,
    tail: str = "exponential",
    delta: float | Mapping[str, float] | None = None,
    resamples: int = 200,
    seed: int = 0,
    batch_tokens: int = 512,
    progress: bool = True,
) -> HeadAlignment:
    """Which heads read and write along concepts, by their weights and on data.

    Costs one forward pass a sample of the split, one a train sample if no statistics are given,
    and `draws` refits of the estimator for each null, concept and layer: one product with the train
    rows for prototype and lda, an iterative fit for separators.

    Args:
        host: An attached model that hands out its weights (`sa_plugin.block.DescribedHost`).
        data: Labelled samples.
        source: A bank of a supervised kind at `resid_post`, or the detector on it. Heads of a block
            need vectors at its output and at the output of the block before.
        statistics: The train pass the bank was fitted from, with `need=("means", "gram", "rows")`.
        concepts: Only these; all by default.
        split: Where the data side is measured. By default calibration, so that heads chosen here
            can be ablated on test.
        q: Level: bound on the expected share of false calls.
        correction: "BH" or "BY", over all heads x concepts.
        nulls: What to hold the weights against, see `null.py`; calls rest on the first.
        draws: Refits of each null; by default 400, and 100 for separators.
        tail: "exponential" or "empirical", see `tails.py`.
        delta: Share of a sample's tokens that is its top, or one for each concept; by default the
            detector's, else 0.05.
        resamples: Draws of documents for intervals.
        seed: Of null and intervals.
        batch_tokens: Tokens in a batch of the data side; it reads every pattern.
        progress: Whether to show bars.

    Returns:
        Forms, gains, p-values, the data side, and calls by the rule in `result.RULE`.

    Raises:
        TypeError: The host does not hand out its weights, or an argument is of another type.
        ValueError: A bank of another model, at another hook point, of a kind that cannot be
            refitted, or not the one the statistics give; statistics without every row; no two
            neighbouring layers; too few draws; unknown names.

    Source: the assumption of aligned heads of arXiv 2512.05038; estimators and null are ours.

    Example:
        >>> found = head_alignment(host, data, bank)  # doctest: +SKIP
        >>> found.layers_with_one, found.shared_heads()  # doctest: +SKIP
    """
    described = _checked_host(host, data, source)
    bank = source if isinstance(source, ConceptBank) else source.bank
    _check_bank(bank, host)
    check_kind(bank)
    names = _names(bank, concepts)
    n_draws = draws or (SEPARATOR_DRAWS if kind_of(bank.kind).need == "rows" else DRAWS)
    _check_options(bank, nulls, n_draws, tail, correction, q, split)
    statistics = statistics or _collect(host, data, bank, progress)
    _check_statistics(statistics, host, data)
    refit = Refit(bank, [bank.unit(name) for name in names], statistics)
    offsets = offsets_seen(statistics.tokens, causal=host.info.causal)
    blocks = describe_blocks(described, bank.layers, offsets)
    heads = len(blocks) * host.info.n_heads
    check_tail(tail, n_draws, heads * len(names), q)
    ends = sorted({end for b in blocks for end in (b.source, b.index)})
    vectors = concept_vectors(refit, ends)
    observed = observe(blocks, vectors, offsets)
    tested: dict[str, Tested] = {}
    control: dict[int, Tensor] = {}
    for k, null in enumerate(nulls):
        tested[null], kept = weigh(
            blocks, refit, observed, null, draws=n_draws, seed=seed + k, tail=tail,
            keep=0 if k else N_CONTROL, progress=progress,
        )  # fmt: skip
        control = control or kept
    deltas = _deltas(source, names, delta)
    plan = _plan(described, bank, blocks, vectors, control, deltas)
    samples = data.split(split).samples
    layout = lay_out(host, samples, data.concepts, batch_tokens=batch_tokens)
    sums = data_sums(plan, layout, len(samples), progress=progress)
    documents = resample_documents(
        np.array([sample.document for sample in samples]), draws=resamples, seed=seed
    )
    measured = data_side(sums, documents, N_CONTROL)
    settings = {
        "q": q, "correction": correction, "draws": n_draws, "tail": tail, "signs": (1, 1),
        "seed": seed, "split": split, "n_samples": len(samples), "n_tokens": measured.n_tokens,
        "delta": dict(zip(names, deltas.tolist(), strict=True)), "n_control": N_CONTROL,
        "resamples": resamples, "kind": bank.kind, "model": host.info.model,
        "data_hash": data.hash,
    }  # fmt: skip
    return HeadAlignment(
        names, tuple(b.index for b in blocks), observed, tested, measured, offsets, settings,
        limits(described, blocks, measured.underflow),
    )  # fmt: skip


def limits(host: DescribedHost, blocks: Sequence[Block], underflow: float) -> tuple[str, ...]:
    """What this architecture's numbers leave out, in words."""
    attention = [b.attention for b in blocks]
    found = []
    if any(b.source == b.index for b in blocks):
        found.append(
            "Block 0 has no block before it: its input direction is that of its own output."
        )
    if any(one.rotary for one in attention):
        found.append(
            "Rotary embeddings: beta is averaged over the offsets seen between kept tokens, each "
            "pair counting once; a head that looks at one distance only has a small average."
        )
    if any(one.query_key_norm for one in attention):
        found.append(
            "Queries and keys pass norms of their own: beta is right up to a positive scale for "
            "each token, so read its sign and its p, not its size."
        )
    if any(one.softcap for one in attention):
        found.append("Logits are soft-capped: beta is their slope at zero.")
    if any(bias is not None for one in attention for bias in (one.query_bias, one.key_bias)):
        found.append("Query and key biases add terms linear in one token's activation: left out.")
    if host.info.block != "pre_norm":
        found.append(
            f"{host.info.block} block: gains use the mean scale of the norms behind attention; "
            "shares of the update need not add up."
        )
    if underflow > 0:
        found.append(f"{underflow:.1e} of the attention probabilities underflowed.")
    return tuple(found)


def _checked_host(host: Any, data: Any, source: Any) -> DescribedHost:
    order = "the order is head_alignment(host, data, bank)"
    require_type("host", host, Host, f"attach(bridge) first; {order}")
    require_type("data", data, ConceptData, order)
    require_type("source", source, (Detector, ConceptBank), order)
    return require_described(host)


def _check_bank(bank: ConceptBank, host: Host) -> None:
    check_origin(bank, host)
    if bank.hook_point != "resid_post":
        raise ValueError(
            f"the bank lives at {bank.hook_point!r}: heads read and write the residual stream, "
            "fit with hook_point='resid_post'."
        )
    last = host.info.n_layers - 1
    if FINAL_NORM in host.info.processing and last in bank.layers:
        raise NotImplementedError(
            f"{host.info.model} is attached with final_norm=True: vectors of block {last} live "
            "behind the final norm, its heads write before it. Fit without final_norm, or leave "
            "that block out."
        )


def _check_options(
    bank: ConceptBank,
    nulls: Sequence[str],
    draws: int,
    tail: str,
    correction: str,
    q: float,
    split: str,
) -> None:
    require_known("correction", correction, CORRECTIONS)
    require_known("split", split, ("cal", "test"))
    call(np.zeros(0), q)
    if not nulls:
        raise ValueError("nulls is empty: name 'across' at least.")
    for null in nulls:
        require_known("null", null, NULLS)
    if "covariance" in nulls and bank.kind != "prototype":
        raise ValueError(
            f"null 'covariance' draws random directions, which is no null for kind {bank.kind!r}: "
            "permuted-label vectors pass it too often. Use 'across'."
        )
    check_tail(tail, draws, 0, q)


def _check_statistics(statistics: TrainStatistics, host: Host, data: ConceptData) -> None:
    if statistics.fingerprint != host.info.fingerprint:
        raise ValueError("the statistics were collected on another model: collect them again.")
    if statistics.data_hash != data.hash:
        raise ValueError(
            f"the statistics were collected on data {statistics.data_hash[:8]}, not on "
            f"{data.hash[:8]}: collect them again."
        )


def _names(bank: ConceptBank, concepts: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(bank.concepts if concepts is None else concepts)
    if not names:
        raise ValueError("concepts is empty: name at least one, or None for all.")
    for name in names:
        bank.unit(name)
    return names


def _collect(host: Host, data: ConceptData, bank: ConceptBank, progress: bool) -> TrainStatistics:
    options: Mapping[str, Any] = bank.origin.options
    return collect(
        host, data, layers=bank.layers, need=("means", "gram", "rows"), seed=bank.origin.seed,
        sinks=bank.origin.sinks, normaliser=options.get("normaliser", "rms"),
        max_rows_per_class=10**9, progress=progress,
    )  # fmt: skip


def _deltas(
    source: Detector | ConceptBank,
    names: Sequence[str],
    delta: float | Mapping[str, float] | None,
) -> Float[Tensor, " concept"]:
    if delta is None:
        delta = DELTA if isinstance(source, ConceptBank) else source.delta
    by_name = delta if isinstance(delta, Mapping) else dict.fromkeys(names, delta)
    for name in names:
        if not 0 < by_name.get(name, 0.0) < 1:
            raise ValueError(
                f"delta of {name!r} is {by_name.get(name)}: give a share of tokens between 0 and 1."
            )
    return torch.tensor([float(by_name[name]) for name in names], dtype=torch.float64)


def _plan(
    host: DescribedHost,
    bank: ConceptBank,
    blocks: Sequence[Block],
    vectors: Mapping[int, Float[Tensor, "concept d_model"]],
    control: Mapping[int, Float[Tensor, "draw concept d_model"]],
    deltas: Float[Tensor, " concept"],
) -> DataPlan:
    means = []
    for block in blocks:
        mean = bank.token.mean[bank.index(block.source)]
        if block.index == 0 and bank.component_means is not None:
            mean = bank.component_means.embedding
        means.append(mean.float())
    return DataPlan(
        host,
        bank,
        blocks,
        [host.norms(b.index) for b in blocks],
        [torch.cat([vectors[b.source], control[b.source].flatten(0, 1)]) for b in blocks],
        [vectors[b.index] for b in blocks],
        means,
        deltas,
    )
