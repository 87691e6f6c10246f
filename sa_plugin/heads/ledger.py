"""What a ledger needs from the train split: means of scaled terms, vectors of permuted labels.

One pass over the train split collects both, and is run only where something is missing: a
pre-norm bank fitted here has its means (`bank.component_means`), and a bank of any kind holds one
permuted vector a concept.

The head ledger: what wrote a concept's score, component by component, from one forward pass.

The decomposition is in `plan.py`, the proof that it closes in `terms.py`, lifts, contrasts and
their control in `effects.py`.

What it does not show: a term is a component's direct contribution to the score. It is no causal
effect; a head may also act through later heads and MLPs, and a head that only copies what another
wrote gets the credit. Ablation answers that question.

The ledger of one text: every token's score, term by term.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from sa_plugin._check import position_of, require_type
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.concepts.nulls import StreamedRefits, refit_kind
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_scores
from sa_plugin.heads.decompose import (
    Closure,
    Plan,
    Residue,
    build_plan,
    check_closure,
    check_supported,
    depth_of,
    measure,
)
from sa_plugin.heads.ledger_result import HeadLedger
from sa_plugin.heads.norms import Column, Component, FrozenNorms, MeanPass, ScaledMeans, check_joints
from sa_plugin.heads.sums import (
    Asked,
    ControlPass,
    ControlSums,
    GroupSums,
    Tail,
    control_by_draw,
    effects_of,
    sum_groups,
    tail_cuts,
)
from sa_plugin.host.protocol import Host, Site, layers_of
from sa_plugin.host.reducers import evidence
from sa_plugin.passes.layout import Layout, lay_out
from sa_plugin.passes.run import Job, Kept, NonFiniteRowError, run, sink_rule, sink_sites
from sa_plugin.scores.score import check_origin
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import frame
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.drawn import Resampling

PERMUTATIONS = 20


def permuted_vectors(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    *,
    draws: int = PERMUTATIONS,
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
        ValueError: The bank is unsupervised or given, fitted on other data or another model.
    """
    check_origin(bank, host)
    _check_refit(bank, data, draws)
    layout = lay_out(host, data.train.samples, bank.concepts)
    part = StreamedRefits(bank, layout, layers or bank.layers, draws, seed)
    (kept,) = _run_train(host, bank, layout, [part.job])
    return part.result(kept)


def term_means(host: Host, data: ConceptData, bank: ConceptBank) -> ScaledMeans:
    """Train means of every part's contribution at every layer of a bank, in one train pass.

    Args:
        host: An attached model.
        data: What the bank was fitted on: its train split is run.
        bank: For its layers, hook point and sink rule.

    Returns:
        For `head_ledger(..., means=...)` and `explain_tokens(..., means=...)`.
    """
    check_origin(bank, host)
    check_supported(bank.hook_point)
    check_joints(host, bank)
    layout = lay_out(host, data.train.samples, bank.concepts)
    depths = tuple(depth_of(layer, bank.hook_point) for layer in bank.layers)
    part = MeanPass(host.info, FrozenNorms.of(host, max(depths)), depths)
    (kept,) = _run_train(host, bank, layout, [part.job])
    return part.result(kept)


def prepare(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    columns: Sequence[Column],
    means: ScaledMeans | None,
    permutations: int | Sequence[VectorSet],
    *,
    seed: int,
) -> tuple[ScaledMeans | None, tuple[VectorSet, ...]]:
    """Means and permuted-label vectors of some columns, from one train pass or none."""
    if means is None and bank.component_means is not None:
        means = ScaledMeans.of_components(bank.component_means)
    own = bank.origin.data_hash == data.hash
    average = means is None and own and host.info.block != "pre_norm"
    if not average and not isinstance(permutations, int):
        return means, tuple(permutations)
    layout = lay_out(host, data.train.samples, bank.concepts)
    averaged: MeanPass | None = None
    refitted: StreamedRefits | None = None
    if average:
        depths = tuple(depth_of(c.layer, bank.hook_point) for c in columns)
        averaged = MeanPass(host.info, FrozenNorms.of(host, max(depths)), depths)
    if isinstance(permutations, int):
        _check_refit(bank, data, permutations)
        layers = sorted({column.layer for column in columns})
        refitted = StreamedRefits(bank, layout, layers, permutations, seed)
    jobs = [part.job for part in (averaged, refitted) if part is not None]
    found = iter(_run_train(host, bank, layout, jobs))
    if averaged is not None:
        means = averaged.result(next(found))
    draws = permutations if refitted is None else refitted.result(next(found))
    assert not isinstance(draws, int)
    return means, tuple(draws)


def control_source(
    bank: ConceptBank, data: ConceptData, permutations: int | Sequence[VectorSet] | None
) -> int | tuple[VectorSet, ...]:
    """How many draws to refit, or the sets to use.

    By default `PERMUTATIONS` refits for prototypes and discriminants, whose refits cost no more
    than the train pass; else the one set the bank holds, or none.
    """
    if isinstance(permutations, int):
        return permutations or ()
    if permutations is not None:
        return tuple(permutations)
    if bank.permuted is None:
        return ()
    kind = refit_kind(bank)
    cheap = kind is not None and kind.need in ("means", "gram")
    return PERMUTATIONS if cheap and bank.origin.data_hash == data.hash else (bank.permuted,)


def _check_refit(bank: ConceptBank, data: ConceptData, draws: int) -> None:
    if draws < 1:
        raise ValueError(f"permutations is {draws}: ask for at least one, such as {PERMUTATIONS}.")
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


def _run_train(host: Host, bank: ConceptBank, layout: Layout, jobs: Sequence[Job]) -> tuple[Kept, ...]:
    rule = sink_rule(host.info, bank.sink_layers, bank.origin.sinks)
    try:
        return run(host, layout, jobs, rule, description="train terms")
    except NonFiniteRowError as error:
        raise OverflowError(
            f"an activation at block {error.name} exceeds half precision (65,504), in "
            "which train rows are kept: refit no separators here (permutations=0 or None)."
        ) from error


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
        host,
        data,
        bank,
        columns,
        means,
        control_source(bank, data, permutations) if has_tail else (),
        seed=seed,
    )
    asked = asked_of(host, data, bank, columns, chosen, tail)
    sums, control = _run(host, asked, plan, nulls)
    _check_scores(scores, bank, chosen, columns, sums.n_tokens)
    if has_tail:
        warn_no_tail(sums, columns)
    return _result(
        plan,
        sums,
        control,
        chosen,
        has_tail,
        {
            "split": split if samples is None else "samples",
            "n_samples": len(chosen),
            "n_tokens": sums.n_tokens,
            "draws": draws,
            "seed": seed,
            "data_hash": data.hash,
            "kind": bank.kind,
            "scoring": bank.token.scoring,
            "hook_point": bank.hook_point,
            "centred": plan.centred,
            "model": host.info.model,
            "permutations": len(nulls),
        },
    )


def asked_of(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    columns: Sequence[Column],
    samples: Sequence[Sample],
    tail: Tail | None,
) -> Asked:
    """Samples laid out, with the labels of each column's concept."""
    layout = lay_out(host, samples, data.concepts)
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
    return plan, [build_plan(host, bank, columns, draw, means=means, frozen=plan.frozen) for draw in draws]


def _run(host: Host, asked: Asked, plan: Plan, nulls: Sequence[Plan]) -> tuple[GroupSums, ControlSums | None]:
    if not nulls:
        return sum_groups(host, asked, plan)[0], None
    # Which tokens a draw chooses is known only once all are scored: one pass more.
    cuts = tail_cuts(host, asked, plan, nulls)
    carried = ControlPass(asked, nulls, cuts, plan.target.lengths)
    sums, (kept,) = sum_groups(host, asked, plan, [carried.job])
    return sums, carried.result(kept)


def _check_types(host: object, data: object, source: object, scores: object) -> None:
    order = "the order is head_ledger(host, data, detector)"
    require_type("host", host, Host, f"attach(bridge) first; {order}")
    require_type("data", data, ConceptData, order)
    require_type("source", source, (Detector, ConceptBank), order)
    require_type("scores", scores, ScoreTable, "give score(host, data, bank)", optional=True)


def detector_column(detector: Detector, concept: str) -> Column:
    """A concept at the layer, unit and threshold its detector chose."""
    position_of(concept, detector.concepts)
    unit = detector.bank.unit(detector.unit[concept])
    return Column(concept, detector.layer[concept], unit, detector.threshold[concept])


def bank_columns(bank: ConceptBank, concepts: Sequence[str] | None, layers: Sequence[int]) -> list[Column]:
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
        position_of(column.concept, data.concepts, f"the concepts of {data.name!r}")
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
    resamples = resample_documents(documents, Resampling(settings["draws"], settings["seed"]))
    projection = None
    for scale in reversed(range(len(sums.values))):
        effects, means = effects_of(
            sums, control, lengths, plan.components, resamples, scale=scale, tail=has_tail
        )
        by_draw = {} if control is None else control_by_draw(control, lengths, scale=scale)
        unit = "projection" if scale else target.vectors.scoring
        closes_to = float("nan") if scale else sums.closes_to
        ledger = HeadLedger(
            plan.components,
            target.columns,
            target.depths,
            effects,
            means,
            {**settings, "unit": unit},
            sums.residue,
            closes_to,
            by_draw,
            projection,
        )
        projection = ledger
    return ledger


@dataclass(frozen=True, eq=False)
class TokenLedger:
    """Terms of every kept token of one sample.

    Attributes:
        sample: The text.
        column: Concept, layer and threshold.
        components: Columns of `terms`.
        offsets: Characters of each token, or the box of each patch.
        position: Place of each token in the model's input.
        score: Measured scores.
        terms: They add up to `score`.
        tail: Which tokens are SuperActivators (none without a threshold).
    """

    sample: Sample
    column: Column
    components: tuple[Component, ...]
    offsets: Real[np.ndarray, "token edge"]
    position: Int[np.ndarray, " token"]
    score: Float[np.ndarray, " token"]
    terms: Float[np.ndarray, "token component"]
    tail: Bool[np.ndarray, " token"]

    def __repr__(self) -> str:
        return (
            f"TokenLedger({self.column.concept!r} at block {self.column.layer}, sample "
            f"{self.sample.id!r}, {len(self.score)} tokens, {int(self.tail.sum())} "
            f"SuperActivators, {len(self.components)} terms)"
        )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text of each token, or where each patch lies."""
        return tuple(self.sample.token_text(edges) for edges in self.offsets)

    def strongest(self, token: int, n: int = 10) -> list[tuple[str, float]]:
        """The largest terms of one token, by size."""
        order = np.argsort(-np.abs(self.terms[token]), kind="stable")[:n]
        return [(self.components[i].name, float(self.terms[token, i])) for i in order]

    def table(self) -> Any:
        """One row a token: a pandas DataFrame where pandas is installed."""
        names = [component.name for component in self.components]
        return frame(
            [
                {
                    "token": text,
                    "score": float(s),
                    "tail": bool(t),
                    **dict(zip(names, row.tolist(), strict=True)),
                }
                for text, s, t, row in zip(self.tokens, self.score, self.tail, self.terms, strict=True)
            ]
        )


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
    bank = source if isinstance(source, ConceptBank) else source.bank
    check_origin(bank, host)
    column = _column(source, bank, concept, layer)
    text = Sample("text", sample, "text") if isinstance(sample, str) else sample
    if means is None and bank.component_means is not None:
        means = ScaledMeans.of_components(bank.component_means)
    plan = build_plan(host, bank, [column], bank.token, means=means)
    (batch,) = host.batches([text])

    def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
        rule = sink_rule(host.info, bank.sink_layers, bank.origin.sinks)
        keep = evidence(read, batch.valid, *rule)
        scored = measure(plan.target, read)
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
        score.astype(np.float64) >= column.threshold,
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
