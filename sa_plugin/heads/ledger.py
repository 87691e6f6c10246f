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
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData, Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_scores, place
from sa_plugin.heads.components import Column
from sa_plugin.heads.control import ControlPass
from sa_plugin.heads.effects import effects_of
from sa_plugin.heads.plan import Plan, build_plan, check_supported
from sa_plugin.heads.result import HeadLedger
from sa_plugin.heads.sums import GROUPS, GroupSums, Tail, sum_groups
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
    draws: int = 1000,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> HeadLedger:
    """Decompose concept scores into embedding, heads, MLPs and biases.

    Costs one forward pass a sample, for all concepts, layers and heads. Memory: the terms of a
    batch's tokens for one block, and `samples x 5 groups x components x columns` floats of sums
    (twice that for cosines).

    Args:
        host: An attached pre-norm model.
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
        draws: Resamples of source documents.
        seed: Of the resamples.
        batch_tokens: Tokens in a batch, padding included.
        progress: Whether to show a bar.

    Returns:
        Centred terms if the source's bank has component means, else raw ones. They close to 1e-5 of
        their summed sizes (1e-7 is usual) in a float32 model; a model in half precision rounds its
        residual stream at every addition and closes to its rounding only (`plan.py`).

    Raises:
        TypeError: An argument is of another type, such as data and detector swapped.
        NotImplementedError: The model is not pre-norm, or the bank is not of the residual stream.
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
    check_supported(host.info, bank.hook_point)
    chosen = _samples(data, bank, split, samples)
    columns = _columns(host, source, concepts, layers, tail, data)
    plan, control = plans(host, bank, columns)
    layout = lay_out(host, chosen, data.concepts, batch_tokens=batch_tokens)
    label = [data.concepts.index(column.concept) for column in columns]
    carried = None if control is None else ControlPass(control, len(chosen), layout.n_rows)
    sums = sum_groups(
        host, layout, chosen, bank, plan, carried, layout.labels[:, label], tail,
        progress=progress,
    )  # fmt: skip
    _check_scores(scores, bank, chosen, columns, sums.n_tokens)
    has_tail = not isinstance(source, ConceptBank) or tail is not None
    if has_tail:
        _warn_no_tail(sums, columns)
    return _result(
        plan, sums, chosen, has_tail,
        {
            "split": split if samples is None else "samples", "n_samples": len(chosen),
            "n_tokens": sums.n_tokens, "draws": draws, "seed": seed, "data_hash": data.hash,
            "kind": bank.kind, "scoring": bank.token.scoring, "hook_point": bank.hook_point,
            "centred": plan.centred, "model": host.info.model,
        },
    )  # fmt: skip


def _check_types(host: object, data: object, source: object, scores: object) -> None:
    order = "the order is head_ledger(host, data, detector)"
    require_type("host", host, Host, f"attach(bridge) first; {order}")
    require_type("data", data, ConceptData, order)
    require_type("source", source, (Detector, ConceptBank), order)
    require_type("scores", scores, ScoreTable, "give score(host, data, bank)", optional=True)


def plans(host: Host, bank: ConceptBank, columns: Sequence[Column]) -> tuple[Plan, Plan | None]:
    """The plan of the concept vectors and, where the bank has them, of the permuted-label ones."""
    centred = bank.component_means is not None
    plan = build_plan(host, bank, columns, bank.token, centred=centred)
    if bank.permuted is None:
        return plan, None
    return plan, build_plan(host, bank, columns, bank.permuted, centred=centred)


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


def _columns(
    host: Host,
    source: Detector | ConceptBank,
    concepts: Sequence[str] | None,
    layers: int | Sequence[int] | None,
    tail: Tail | None,
    data: ConceptData,
) -> list[Column]:
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


def _samples(
    data: ConceptData, bank: ConceptBank, split: str, samples: Sequence[Sample] | None
) -> Sequence[Sample]:
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


def _warn_no_tail(sums: GroupSums, columns: Sequence[Column]) -> None:
    n_tail = sums.counts[:, GROUPS.index("tail")].sum(0)
    none = [c.concept for c, n in zip(columns, n_tail, strict=True) if n == 0]
    if none:
        warnings.warn(
            f"no SuperActivator of {', '.join(map(repr, none))} in {len(sums.counts)} samples: "
            "their lifts are NaN.",
            NoTailWarning,
            stacklevel=3,
        )


def _result(
    plan: Plan,
    sums: GroupSums,
    samples: Sequence[Sample],
    has_tail: bool,
    settings: Mapping[str, Any],
) -> HeadLedger:
    positive = np.array([[c.concept in s.positive for c in plan.columns] for s in samples])
    lengths = plan.vectors.vectors[:, 0].norm(dim=-1).double().numpy()
    documents = np.array([sample.document for sample in samples])
    resamples = resample_documents(documents, draws=settings["draws"], seed=settings["seed"])
    projection = None
    for scale in reversed(range(len(sums.values))):
        effects, means = effects_of(
            sums, positive, lengths, plan.components, resamples, scale=scale, tail=has_tail
        )
        unit = "projection" if scale else plan.vectors.scoring
        closes_to = float("nan") if scale else sums.closes_to
        ledger = HeadLedger(
            plan.components, plan.columns, plan.depths, effects, means, {**settings, "unit": unit},
            sums.residue, closes_to, projection,
        )  # fmt: skip
        projection = ledger
    return ledger
