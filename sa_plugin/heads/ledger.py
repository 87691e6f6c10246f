"""The head ledger: what wrote a concept's score, component by component, from one forward pass.

The decomposition is in `plan.py`, the proof that it closes in `terms.py`, lifts, contrasts and
their control in `effects.py`.

What it does not show: a term is a component's direct contribution to the score. It is no causal
effect; a head may also act through later heads and MLPs, and a head that only copies what another
wrote gets the credit. Ablation answers that question.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sa_plugin._names import require_type
from sa_plugin.collect import BATCH_TOKENS, lay_out
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.data import ConceptData, Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_scores, place
from sa_plugin.heads.components import Column
from sa_plugin.heads.control import ControlPass, ControlSums, tail_cuts
from sa_plugin.heads.effects import control_by_draw, effects_of
from sa_plugin.heads.frozen import check_joints
from sa_plugin.heads.means import ScaledMeans
from sa_plugin.heads.plan import Plan, build_plan
from sa_plugin.heads.prepare import control_source, prepare
from sa_plugin.heads.result import HeadLedger
from sa_plugin.heads.sums import Asked, GroupSums, Tail, sum_groups
from sa_plugin.heads.target import check_supported
from sa_plugin.host import Host, layers_of
from sa_plugin.scores import ScoreTable
from sa_plugin.scoring import check_origin
from sa_plugin.statistics.bootstrap import resample_documents


class NoTailWarning(UserWarning):
    """A concept has no SuperActivator in the samples of a ledger."""


def head_ledger(
    host: Host,
    data: ConceptData,
    source: Detector | ConceptBank,
    *,
    split: str = "test",
    concepts: Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    scores: ScoreTable | None = None,
    samples: Sequence[Sample] | None = None,
    tail: Tail | None = None,
    permutations: int | Sequence[VectorSet] | None = None,
    means: ScaledMeans | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> HeadLedger:
    """Decompose concept scores into embedding, heads, MLPs and biases.

    Costs one forward pass a sample, for all concepts, layers and heads. With a control one more (to
    know which tokens each permuted vector chooses), and one over the train split where permuted
    labels are refitted, or where a norm stands behind attention or MLP and `means` is None. Memory:
    the terms of a batch's tokens for one block, the control's scores, and `samples x 10 groups x
    components x columns` floats of sums (twice that for cosines).

    Args:
        host: An attached model; one with norms behind attention or MLP has to hand them out
            (`sa_plugin.block.DescribedHost`).
        data: Labelled samples.
        source: A detector: each concept at its own layer, its SuperActivators as tail. Or a bank:
            each concept at every layer asked for.
        split: Which split to decompose.
        concepts: Only these; all by default.
        layers: With a bank, block indices; all of the bank's by default.
        scores: Scores of the same samples; their token count is held against the pass.
        samples: Decompose these instead of a split.
        tail: With a bank, the tail: for each sample a mask `[token, column]` over its kept tokens,
            columns as in the result (concept by concept, layers ascending). Without it a bank has
            no lift, only the contrast.
        permutations: The control: a number of refits on permuted labels, 0 for none, or vector sets
            (`permuted_vectors`). By default 20 refits for prototypes and discriminants, and the one
            set that the bank holds for other kinds.
        means: Train means (`term_means`) where the bank's own do not serve; by default collected
            from the train split if the bank was fitted on it.
        draws: Resamples of source documents.
        seed: Of the resamples and permutations.
        batch_tokens: Tokens in a batch, padding included.
        progress: Whether to show a bar.

    Returns:
        Centred terms where train means are known, else raw ones. They close to 1e-5 of their summed
        sizes (1e-7 is usual) in a float32 model; a model in half precision rounds its residual
        stream at every addition and closes to its rounding only (`terms.py`).

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
    _check_types(host, data, source, scores)
    bank = source if isinstance(source, ConceptBank) else source.bank
    check_origin(bank, host)
    check_supported(bank.hook_point)
    check_joints(host, bank)
    chosen = held_out(data, bank, split, samples)
    columns = columns_of(host, source, concepts, layers, tail, data)
    has_tail = not isinstance(source, ConceptBank) or tail is not None
    plan, nulls = _plans(
        host, data, bank, columns, means,
        control_source(bank, data, permutations) if has_tail else (),
        seed=seed, batch_tokens=batch_tokens, progress=progress,
    )  # fmt: skip
    asked = asked_of(host, data, bank, columns, chosen, tail, batch_tokens)
    sums, control = _run(host, asked, plan, nulls, progress)
    _check_scores(scores, bank, chosen, columns, sums.n_tokens)
    if has_tail:
        warn_no_tail(sums, columns)
    return _result(
        plan, sums, control, chosen, has_tail,
        {
            "split": split if samples is None else "samples", "n_samples": len(chosen),
            "n_tokens": sums.n_tokens, "draws": draws, "seed": seed, "data_hash": data.hash,
            "kind": bank.kind, "scoring": bank.token.scoring, "hook_point": bank.hook_point,
            "centred": plan.centred, "model": host.info.model, "permutations": len(nulls),
        },
    )  # fmt: skip


def asked_of(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    columns: Sequence[Column],
    samples: Sequence[Sample],
    tail: Tail | None,
    batch_tokens: int,
) -> Asked:
    """Samples laid out, with the labels of each column's concept."""
    layout = lay_out(host, samples, data.concepts, batch_tokens=batch_tokens)
    label = [data.concepts.index(column.concept) for column in columns]
    positive = np.array([[c.concept in s.positive for c in columns] for s in samples])
    return Asked(samples, layout, bank, layout.labels[:, label], positive, tail)


def _plans(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    columns: Sequence[Column],
    means: ScaledMeans | None,
    permutations: int | Sequence[VectorSet],
    **options: Any,
) -> tuple[Plan, list[Plan]]:
    """The plan of the concept vectors, and one for each draw of permuted-label vectors."""
    means, draws = prepare(host, data, bank, columns, means, permutations, **options)
    plan = build_plan(host, bank, columns, bank.token, means=means)
    return plan, [
        build_plan(host, bank, columns, draw, means=means, frozen=plan.frozen) for draw in draws
    ]


def _run(
    host: Host, asked: Asked, plan: Plan, nulls: Sequence[Plan], progress: bool
) -> tuple[GroupSums, ControlSums | None]:
    if not nulls:
        return sum_groups(host, asked, plan, progress=progress), None
    cuts = tail_cuts(host, asked, plan, nulls, progress=progress)
    carried = ControlPass(nulls, cuts, plan.target.lengths, len(asked.samples))
    sums = sum_groups(host, asked, plan, also=carried.reduce, take=carried.take, progress=progress)
    return sums, carried.result()


def _check_types(host: object, data: object, source: object, scores: object) -> None:
    order = "the order is head_ledger(host, data, detector)"
    require_type("host", host, Host, f"attach(bridge) first; {order}")
    require_type("data", data, ConceptData, order)
    require_type("source", source, (Detector, ConceptBank), order)
    require_type("scores", scores, ScoreTable, "give score(host, data, bank)", optional=True)


def detector_column(detector: Detector, concept: str) -> Column:
    """A concept at the layer, unit and threshold its detector chose."""
    place(concept, detector.concepts)
    unit = detector.bank.unit(detector.unit[concept])
    return Column(concept, detector.layer[concept], unit, detector.threshold[concept])


def bank_columns(
    bank: ConceptBank, concepts: Sequence[str] | None, layers: Sequence[int]
) -> list[Column]:
    """Concepts of a bank at some of its layers, without thresholds."""
    wanted = bank.concepts if concepts is None else concepts
    if not bank.supervised:
        raise ValueError(
            f"the bank's vectors are {len(bank.units)} units without concepts: calibrate matches "
            "them, so give the detector."
        )
    for layer in layers:
        bank.index(layer)
    return [Column(c, layer, bank.unit(c), float("nan")) for c in wanted for layer in layers]


def columns_of(
    host: Host,
    source: Detector | ConceptBank,
    concepts: Sequence[str] | None,
    layers: int | Sequence[int] | None,
    tail: Tail | None,
    data: ConceptData,
) -> list[Column]:
    """What a detector or bank is decomposed at.

    Raises:
        ValueError: No concept, an unknown one, or layers beside a detector.
    """
    if isinstance(source, ConceptBank):
        asked = source.layers if layers is None else layers_of(host.info, layers)
        columns = bank_columns(source, concepts, asked)
    else:
        if layers is not None or tail is not None:
            raise ValueError(
                "a detector has chosen its layers and its tail: give detector.bank to decompose "
                "at other layers or with another tail."
            )
        columns = [detector_column(source, c) for c in concepts or source.concepts]
    for column in columns:
        place(column.concept, data.concepts, f"the concepts of {data.name!r}")
    if not columns:
        raise ValueError("concepts is empty: name at least one, or None for all.")
    return columns


def held_out(
    data: ConceptData, bank: ConceptBank, split: str, samples: Sequence[Sample] | None
) -> Sequence[Sample]:
    """The samples of a split, or those given, unless vectors were fitted on one of them.

    Raises:
        ValueError: They were.
    """
    chosen = data.split(split).samples if samples is None else tuple(samples)
    fitted = {sample.id for sample in data.train.samples}
    caught = sum(sample.id in fitted for sample in chosen)
    if caught and bank.origin.data_hash == data.hash:
        raise ValueError(
            f"{caught} of {len(chosen)} samples are of the train split the vectors were fitted on, "
            "whose scores they fit too well: use split='test' (or 'cal')."
        )
    return chosen


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
            stacklevel=3,
        )


def _result(
    plan: Plan,
    sums: GroupSums,
    control: ControlSums | None,
    samples: Sequence[Sample],
    has_tail: bool,
    settings: Mapping[str, Any],
) -> HeadLedger:
    target = plan.target
    lengths = target.lengths.double().numpy()
    documents = np.array([sample.document for sample in samples])
    resamples = resample_documents(documents, draws=settings["draws"], seed=settings["seed"])
    projection = None
    for scale in reversed(range(len(sums.values))):
        effects, means = effects_of(
            sums, control, lengths, plan.components, resamples, scale=scale, tail=has_tail
        )
        by_draw = {} if control is None else control_by_draw(control, lengths, scale=scale)
        unit = "projection" if scale else target.vectors.scoring
        closes_to = float("nan") if scale else sums.closes_to
        ledger = HeadLedger(
            plan.components, target.columns, target.depths, effects, means,
            {**settings, "unit": unit}, sums.residue, closes_to, by_draw, projection,
        )  # fmt: skip
        projection = ledger
    return ledger
