"""The head ledger: what wrote a concept's score, component by component, from one forward pass.

`decompose.py` turns a token's score into terms and proves that they add up; `sums.py` turns terms
into lifts, contrasts and their permuted-label control; this is the question that runs both, over the
tokens of a split (`head_ledger`) or over those of one text (`explain_tokens`).

What it needs of the train split, means of scaled terms and vectors of permuted labels, one pass
collects together, and only where something is missing: a pre-norm bank fitted here has its means
(`bank.component_means`), and a bank of any kind holds one permuted vector a concept.

What it does not show: a term is a component's direct contribution to the score. It is no causal
effect; a head may also act through later heads and MLPs, and a head that only copies what another
wrote gets the credit. Ablation answers that question; `compare_direct_total` has both side by side.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin._check import users_line
from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.concepts.nulls import StreamedRefits, check_permutable, refit_kind
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_scores, held_out
from sa_plugin.heads.columns import (
    COMPONENT_KINDS,
    Asked,
    BankScores,
    Column,
    LedgerSource,
    bank_columns,
    columns_of,
    depth_of,
    detector_column,
    has_tail,
    score_names,
    source_bank,
)
from sa_plugin.heads.decompose import (
    Closure,
    LedgerPlan,
    Residue,
    build_plan,
    check_closure,
    check_supported,
    score_batch,
)
from sa_plugin.heads.ledger_result import HeadLedger, TokenLedger
from sa_plugin.heads.norms import FrozenNorms, MeanPass, ScaledMeans, check_joints
from sa_plugin.heads.sums import (
    ControlPass,
    ControlSums,
    GroupSums,
    TermLabels,
    control_by_draw,
    effects_of,
    sum_groups,
    tail_cuts,
)
from sa_plugin.host.protocol import Host, Site
from sa_plugin.host.reducers import evidence
from sa_plugin.passes.layout import if_any, lay_out
from sa_plugin.passes.run import NonFiniteRowError, run_jobs, sink_sites
from sa_plugin.scores.score import check_origin
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.confusion import reaches
from sa_plugin.statistics.drawn import Resampling

_PERMUTATIONS = 20


class NoTailWarning(UserWarning):
    """A concept has no SuperActivator in the samples of a ledger."""


@face
def head_ledger(
    host: Host,
    data: ConceptData,
    source: LedgerSource,
    *,
    scores: ScoreTable | None = None,
    split: str | Sequence[Sample] = "test",
    concepts: Sequence[str] | None = None,
    permutations: int | Sequence[VectorSet] | None = None,
    means: ScaledMeans | None = None,
    resampling: Resampling = Resampling(),
) -> HeadLedger:
    """Decompose concept scores into embedding, heads, MLPs and biases.

    Costs one forward pass a sample, for all concepts, layers and heads. With a control one more (to
    know which tokens each permuted vector chooses), and one over the train split where permuted
    labels are refitted, or where a norm stands behind attention or MLP and `means` is None. Memory:
    the terms of a batch's tokens for one block, the control's scores, and `samples x 10 groups x
    components x columns` floats of sums (twice that for cosines).

    Args:
        host: An attached model; one with norms behind attention or MLP has to hand them out
            (`sa_plugin.host.protocol.DescribedHost`).
        data: Labelled samples.
        source: A detector: each concept at its own layer, its SuperActivators as tail. Or a bank:
            each concept at every layer; or `BankScores`, a bank at some layers with a tail of yours.
            A bank without a tail has no lift, only the contrast.
        scores: Scores of the same samples; their token count is held against the pass.
        split: Which split to decompose, or samples of yours.
        concepts: Only these; all by default.
        permutations: The control: a number of refits on permuted labels, 0 for none, or vector sets
            (`permuted_vectors`). By default 20 refits for prototypes and discriminants, and the one
            set that the bank holds for other kinds.
        means: Train means (`term_means`) where the bank's own do not serve; by default collected
            from the train split if the bank was fitted on it.
        resampling: Of source documents; its seed is that of the permutations too.

    Returns:
        Centred terms where train means are known, else raw ones. They close to 1e-5 of their summed
        sizes (1e-7 is usual) in a float32 model; a model in half precision rounds its residual
        stream at every addition and closes to its rounding only.

    Raises:
        TypeError: An argument is of another type, such as data and detector swapped.
        NotImplementedError: The bank is not of the residual stream, or the model has norms behind
            attention that its host does not hand out.
        LedgerError: The terms of a token do not add up to its score.
        ValueError: Unknown concept, layer or split; a bank of another model; the train split the
            vectors were fitted on; scores of other samples.

    Source: the direct contributions of arXiv 2512.05038, section on attention heads.

    Example:
        >>> ledger = head_ledger(host, data, detector)  # doctest: +SKIP
        >>> ledger.strongest(3)  # doctest: +SKIP
    """
    bank, tail = source_bank(source), source.tail if isinstance(source, BankScores) else None
    check_decomposable(host, bank)
    samples = held_out(data, bank, split)
    columns = columns_of(host, source, concepts, data)
    with_tail = has_tail(source)
    drawn = _control_source(bank, data, permutations) if with_tail else ()
    means, sets = _prepare(host, data, bank, columns, means, drawn, resampling.seed)
    plan = build_plan(host, bank, columns, bank.token, means=means)
    nulls = [build_plan(host, bank, columns, one, means=means, frozen=plan.frozen) for one in sets]
    asked = Asked.of(host, data, bank, columns, samples, tail)
    sums, control = _run(host, asked, plan, nulls)
    _check_scores(scores, bank, samples, columns, sums.n_tokens)
    if with_tail:
        warn_no_tail(sums, columns)
    settings = {
        "split": split if isinstance(split, str) else "samples",
        "n_samples": len(samples),
        "n_tokens": sums.n_tokens,
        "resampling": resampling,
        "data_hash": data.hash,
        "kind": bank.kind,
        "scoring": bank.token.scoring,
        "hook_point": bank.hook_point,
        "centred": plan.centred,
        "model": host.info.model,
        "permutations": len(nulls),
        **if_any(unknown=asked.unknown(columns)),
    }
    return _result(plan, sums, control, samples, with_tail, settings)


def check_decomposable(host: Host, bank: ConceptBank) -> None:
    """Refuse a bank of another model, or one whose scores are no sum of what the model wrote."""
    check_origin(bank, host)
    check_supported(bank.hook_point)
    check_joints(host, bank)


def _run(
    host: Host, asked: Asked, plan: LedgerPlan, nulls: Sequence[LedgerPlan]
) -> tuple[GroupSums, ControlSums | None]:
    if not nulls:
        return sum_groups(host, asked, plan)[0], None
    # Which tokens a draw chooses is known only once all are scored: one pass more.
    cuts = tail_cuts(host, asked, plan, nulls)
    carried = ControlPass(asked, nulls, cuts, plan.target.lengths)
    sums, (kept,) = sum_groups(host, asked, plan, [carried.job])
    return sums, carried.result(kept)


def _check_scores(
    scores: ScoreTable | None,
    bank: ConceptBank,
    samples: Sequence[Sample],
    columns: Sequence[Column],
    n_tokens: int,
) -> None:
    if scores is None:
        return
    check_scores(scores, bank, [column.concept for column in columns])
    wanted = {sample.id for sample in samples}
    rows = [k for k, sample in enumerate(scores.tokens.samples) if sample.id in wanted]
    counted = int(np.diff(scores.tokens.bounds)[rows].sum())
    if len(rows) != len(samples) or counted != n_tokens:
        raise ValueError(
            f"the scores hold {len(rows)} of the ledger's {len(samples)} samples with {counted} "
            f"kept tokens, the ledger read {n_tokens}: score the same samples with the same bank "
            "and host."
        )


def warn_no_tail(sums: GroupSums, columns: Sequence[Column]) -> None:
    """Warn of concepts without SuperActivators.

    Warns:
        NoTailWarning: With their names.
    """
    none = [c.concept for c, n in zip(columns, sums.n_tail, strict=True) if n == 0]
    if none:
        warnings.warn(
            f"no SuperActivator of {', '.join(map(repr, none))} in {len(sums.weights)} samples: "
            "their lifts are NaN.",
            NoTailWarning,
            stacklevel=users_line(),
        )


def _result(
    plan: LedgerPlan,
    sums: GroupSums,
    control: ControlSums | None,
    samples: Sequence[Sample],
    with_tail: bool,
    settings: Mapping[str, Any],
) -> HeadLedger:
    target, resampling = plan.target, settings["resampling"]
    documents = np.array([sample.document for sample in samples])
    resamples = resample_documents(documents, resampling)
    labels = TermLabels(plan.components, COMPONENT_KINDS, score_names(target.columns))

    def ledger(lengths: Float[np.ndarray, " column"] | None, projection: HeadLedger | None) -> HeadLedger:
        """In the unit of the score, or of the projection on the vectors of these lengths."""
        effects, means = effects_of(sums, control, labels, resamples, lengths=lengths, tail=with_tail)
        return HeadLedger(
            plan.components,
            target.columns,
            effects,
            means,
            {**settings, "unit": target.vectors.scoring if lengths is None else "projection"},
            sums.residue,
            sums.closes_to if lengths is None else float("nan"),
            {} if control is None else control_by_draw(control, lengths),
            projection,
        )

    projected = ledger(target.lengths.double().numpy(), None) if target.cosine else None
    return ledger(None, projected)


def permuted_vectors(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    *,
    draws: int = _PERMUTATIONS,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[VectorSet, ...]:
    """Refit a bank on labels permuted across train samples, many times, in one train pass.

    Args:
        host: An attached model.
        data: What the bank was fitted on.
        bank: Supervised, and fitted here.
        draws: Number of permutations.
        layers: Where; all of the bank's by default. Other layers of the result are zero.
        seed: Of the permutations.

    Returns:
        One set a draw, shaped like `bank.token`; for `head_ledger(..., permutations=...)`.

    Raises:
        ValueError: The bank is unsupervised or given, fitted on other data or another model; labels that
            permutations leave as they are.
    """
    check_origin(bank, host)
    _check_refit(bank, data, draws)
    return _train_pass(host, data, bank, layers or bank.layers, average=False, draws=draws, seed=seed)[1]


def term_means(host: Host, data: ConceptData, bank: ConceptBank) -> ScaledMeans:
    """Train means of every part's contribution at every layer of a bank, in one train pass.

    Args:
        host: An attached model.
        data: What the bank was fitted on: its train split is run.
        bank: For its layers, hook point and sink rule.

    Returns:
        For `head_ledger(..., means=...)` and `explain_tokens(..., means=...)`.
    """
    check_decomposable(host, bank)
    means, _ = _train_pass(host, data, bank, bank.layers, average=True)
    assert means is not None
    return means


def _prepare(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    columns: Sequence[Column],
    means: ScaledMeans | None,
    permutations: int | Sequence[VectorSet],
    seed: int,
) -> tuple[ScaledMeans | None, tuple[VectorSet, ...]]:
    """Means and permuted-label vectors of some columns, from one train pass or none."""
    means = _own_means(bank) if means is None else means
    own = bank.origin.data_hash == data.hash
    average = means is None and own and host.info.block != "pre_norm"
    draws, given = (permutations, ()) if isinstance(permutations, int) else (0, tuple(permutations))
    if draws:
        _check_refit(bank, data, draws)
    if not average and not draws:
        return means, given
    layers = sorted({column.layer for column in columns})
    averaged, refitted = _train_pass(host, data, bank, layers, average=average, draws=draws, seed=seed)
    return (averaged if average else means), (refitted if draws else given)


def _train_pass(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    layers: Sequence[int],
    *,
    average: bool,
    draws: int = 0,
    seed: int = 0,
) -> tuple[ScaledMeans | None, tuple[VectorSet, ...]]:
    """Means of scaled terms, and refits on permuted labels, as far as they are asked for."""
    layout = lay_out(host, data.train.samples, bank.concepts)
    averaged: MeanPass | None = None
    refitted: StreamedRefits | None = None
    if average:
        depths = tuple(depth_of(layer, bank.hook_point) for layer in layers)
        averaged = MeanPass(host.info, FrozenNorms.of(host, max(depths)), depths)
    if draws:
        check_permutable(layout, bank.concepts, seed)
        refitted = StreamedRefits(bank, layout, layers, draws, seed)
    jobs = [part.job for part in (averaged, refitted) if part is not None]
    try:
        found = iter(run_jobs(host, layout, jobs, bank.sinks_on(host.info), description="train terms"))
    except NonFiniteRowError as error:
        raise ValueError(
            f"an activation of a train token at block {error.name} is NaN or Inf in {host.info.dtype}, in "
            "which the model computes: load the model in float32 or bfloat16."
        ) from error
    means = None if averaged is None else averaged.result(next(found))
    return means, () if refitted is None else refitted.result(next(found))


def _own_means(bank: ConceptBank) -> ScaledMeans | None:
    return None if bank.component_means is None else ScaledMeans.of_components(bank.component_means)


def _control_source(
    bank: ConceptBank, data: ConceptData, permutations: int | Sequence[VectorSet] | None
) -> int | tuple[VectorSet, ...]:
    """How many draws to refit, or the sets to use.

    By default `_PERMUTATIONS` refits for prototypes and discriminants, whose refits cost no more
    than the train pass; else the one set the bank holds, or none.
    """
    if isinstance(permutations, int):
        return permutations or ()
    if permutations is not None:
        if not permutations:
            raise ValueError("permutations is empty: give 0 for no control, or one vector set or more.")
        return tuple(permutations)
    if bank.permuted is None:
        return ()
    kind = refit_kind(bank)
    cheap = kind is not None and kind.need in ("means", "gram")
    return _PERMUTATIONS if cheap and bank.origin.data_hash == data.hash else (bank.permuted,)


def _check_refit(bank: ConceptBank, data: ConceptData, draws: int) -> None:
    if draws < 1:
        raise ValueError(f"permutations is {draws}: ask for at least one, such as {_PERMUTATIONS}.")
    if refit_kind(bank) is None:
        raise ValueError(
            f"a bank of kind {bank.kind!r} is not fitted to labels here, so it has no "
            "permuted-label refits: give permutations=0, or the vector sets of your own null."
        )
    if bank.origin.data_hash != data.hash:
        raise ValueError(
            f"the bank was fitted on data {bank.origin.data_hash[:8]}, not on {data.hash[:8]}: its "
            "labels cannot be permuted here. Give the data it was fitted on, or permutations=None."
        )


@face
def explain_tokens(
    host: Host,
    source: Detector | ConceptBank,
    sample: Sample | str,
    concept: str,
    *,
    layer: int | None = None,
    means: ScaledMeans | None = None,
) -> TokenLedger:
    """Decompose the score of every kept token of one sample, from one forward pass.

    Args:
        host: An attached model.
        source: A detector, or a bank.
        sample: The sample, or a text.
        concept: Name.
        layer: With a bank, the block index; needed where it has several.
        means: Train means (`term_means`), to centre terms where the bank has none of its own, as in
            models with norms behind attention or MLP; raw terms and a "reference" without.

    Raises:
        NotImplementedError: As `head_ledger`.
        LedgerError: The terms of a token do not add up to its score.
        ValueError: Unknown concept or layer, or a bank of another model.

    Example:
        >>> explain_tokens(host, detector, "The whale rose.", "animal")  # doctest: +SKIP
    """
    bank = source_bank(source)
    check_origin(bank, host)
    column = _column(source, bank, concept, layer)
    text = Sample.of(sample)
    plan = build_plan(host, bank, [column], bank.token, means=_own_means(bank) if means is None else means)
    (batch,) = host.batches([text])
    rule = bank.sinks_on(host.info)

    def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
        keep = evidence(read, batch.valid, *rule)
        scored = score_batch(plan.target, read)
        closure = Closure(scored)
        pieces = []
        for terms, mean in plan.terms(read):
            closure.add(terms, mean)
            pieces.append(terms[0, :, :, 0])
        residue = closure.residue(keep)
        return {
            "keep": keep[0],
            "score": scored.score[0, :, 0],
            "terms": torch.cat(pieces, dim=1) / scored.divisor[0],
            **residue._asdict(),
        }

    got = host.read(batch, sorted({*plan.sites, *sink_sites(bank.sink_layers)}), reduce)
    check_closure(host, plan.target, batch, Residue(*(got[f] for f in Residue._fields)), [text.id])
    keep = got["keep"]
    score = got["score"][keep].numpy()
    return TokenLedger(
        text,
        column,
        plan.components,
        batch.offsets[0][keep].numpy(),
        keep.nonzero()[:, 0].numpy(),
        score,
        got["terms"][keep].numpy(),
        reaches(score, column.threshold),
    )


def _column(source: Detector | ConceptBank, bank: ConceptBank, concept: str, layer: int | None) -> Column:
    if not isinstance(source, ConceptBank):
        if layer not in (None, source.layer.get(concept)):
            raise ValueError(
                f"the detector reads {concept!r} at block {source.layer.get(concept)}, not {layer}:"
                " give detector.bank to decompose at another layer."
            )
        return detector_column(source, concept)
    if layer is None and len(bank.layers) > 1:
        raise ValueError(f"the bank has layers {bank.layers}: name one, layer=.")
    return bank_columns(bank, [concept], [bank.layers[0] if layer is None else layer])[0]
