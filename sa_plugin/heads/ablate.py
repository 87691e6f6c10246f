"""Scoring under ablation: the same tokens, the same vectors, other activations.

The rows are those of the unablated run: which tokens are attention sinks is decided there and
frozen, since an ablation that moves a norm would otherwise change what is measured. Heads that
write after a concept's layer cannot reach its score and are left out for it.

The change of the residual is measured, on at most `PROBE` calibration samples, at each concept's
own layer: root mean square over kept tokens of norm(h_ablated - h), divided by the normaliser's
scale (the root mean square norm of the centred activations, by default). It holds what later parts
do with the ablation. Norm-matched controls are matched on the direct part of it (`ranking.py`).

Do these heads make the tail? Ablate them, and measure what is left of it.

Modes are in `modes.py`, what is measured in `tail_metrics.py`, what is frozen in `runs.py`. Every
number is `after - before` on the same tokens and the same resamples of documents, so differences
are paired.

What it does not show: that these heads in particular matter. Ablating any heads of that size may do
as much; `ablation_curve` sets them against random, layer-matched, norm-matched and lowest-ranked
ones. Nor the reverse: heads whose loss later heads make good may matter in the intact model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._check import position_of, require_known
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_scores, check_unseen, document_names, rows_of_samples
from sa_plugin.detection.measures import interval_of
from sa_plugin.detection.methods import column_scores
from sa_plugin.heads.edits import MODES, Head, Reference, check_heads, directions, make_edits, reference
from sa_plugin.heads.tail_metrics import (
    Frozen,
    OutputProbe,
    deviations,
    mean_over_concepts,
    measured,
    output_change,
    output_probe,
)
from sa_plugin.host.protocol import Batch, Edit, EditableHost, Host, Output, Site, require_editable
from sa_plugin.host.reducers import Parts, keeping
from sa_plugin.passes.layout import Layout, lay_out, rows_kept_in
from sa_plugin.passes.run import Job, Keep, run
from sa_plugin.scores.score import check_origin, score
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import aligned, frame, number, signed
from sa_plugin.statistics.bootstrap import Resamples, resample_documents
from sa_plugin.statistics.drawn import Interval, Resampling

PROBE = 16


@dataclass(frozen=True, eq=False)
class Group:
    """Concepts that share a run.

    Attributes:
        concepts: Places in the detector.
        heads: What is ablated for them; none where no head writes before their layers.
        along: The concept whose direction is taken out ("directional").
    """

    concepts: tuple[int, ...]
    heads: tuple[Head, ...]
    along: int | None = None


@dataclass(frozen=True, eq=False)
class Baseline:
    """The unablated run, and what every ablation is held against.

    Attributes:
        host, data, detector: As given.
        split: What is measured.
        tokens: Rows of the unablated run, both splits.
        frozen: What the ablated runs are measured with.
        before: Metrics of the unablated run.
        probe: The samples on which changes are measured.
        clean: Their unablated residual at each layer, kept tokens only.
        output: What the change of the model's own output is measured with, if it is.
    """

    host: EditableHost
    data: ConceptData
    detector: Detector
    split: str
    tokens: ScoreTable
    frozen: Frozen
    before: Mapping[str, Float[np.ndarray, "concept column"]]
    probe: Layout
    clean: Mapping[int, Float[Tensor, "token d_model"]]
    output: OutputProbe | None = None


def baseline(
    host: Host,
    data: ConceptData,
    detector: Detector,
    *,
    split: str,
    scores: ScoreTable | None,
    draws: int,
    seed: int,
    output: Output | str | None = None,
) -> Baseline:
    """Score without ablation, or take scores as given, and freeze what must not move.

    Raises:
        TypeError: The host cannot edit.
        ValueError: The split is train or unknown, the bank or the scores are of another model.
    """
    able = require_editable(host)
    check_origin(detector.bank, host)
    check_unseen(data.split(split), detector.seen)
    names = tuple(dict.fromkeys(("cal", split)))
    if scores is None:
        scores = score(host, data, detector.bank, splits=names)
    check_scores(scores, detector.bank, detector.concepts)
    cal, test = (in_order(scores, data.split(name).samples) for name in ("cal", split))
    columns = [detector.token_scores(table) for table in (cal, test)]
    frozen = Frozen(
        detector.concepts,
        cal.tokens,
        test.tokens,
        detector.tail.chosen_threshold,
        detector.tail.chosen_delta,
        detector.tail.deltas,
        deviations(test.tokens, detector.concepts, columns[1]),
        resample_documents(document_names(test.tokens), Resampling(draws, seed)),
    )
    probe = lay_out(host, data.cal.samples[:PROBE], ())
    before = measured(frozen, *columns)
    looked = None
    if output is not None:
        chosen = data.split(split).samples
        looked = output_probe(able, chosen, scores.tokens, output, frozen.resamples)
        before[looked.metric] = np.tile(looked.before, (len(detector.concepts), 1))
    made = Baseline(able, data, detector, split, scores, frozen, before, probe, {}, looked)
    return replace(made, clean=_residual(made, layers_of_concepts(detector)))


def in_order(table: ScoreTable, samples: Sequence[Sample]) -> ScoreTable:
    """The rows of some samples in the order of the data, whatever the table's."""
    rows_of_samples(table, samples)
    place = {sample.id: n for n, sample in enumerate(table.tokens.samples)}
    return table.select(np.array([place[sample.id] for sample in samples], dtype=int))


def layers_of_concepts(detector: Detector) -> list[int]:
    """Block of each concept."""
    return [detector.layer[concept] for concept in detector.concepts]


def reach(detector: Detector) -> list[int]:
    """Number of blocks whose heads write before each concept's score is read."""
    late = detector.bank.hook_point != "resid_pre"
    return [layer + late for layer in layers_of_concepts(detector)]


def candidates(host: Host, detector: Detector) -> tuple[Head, ...]:
    """Heads that write before the deepest layer of a concept."""
    return tuple((at, h) for at in range(max(reach(detector))) for h in range(host.info.n_heads))


def groups(detector: Detector, heads: Mapping[int, tuple[Head, ...]], *, one_by_one: bool) -> list[Group]:
    """Concepts with the same heads in reach together, or each alone.

    Args:
        detector: Of the concepts.
        heads: Heads of each concept, by its place.
        one_by_one: Whether every concept needs a run of its own.

    Raises:
        ValueError: No head writes before any concept's layer.
    """
    found: dict[object, Group] = {}
    depths = reach(detector)
    for k, chosen in heads.items():
        early = tuple(head for head in chosen if head[0] < depths[k])
        # With several depths a run goes to the deepest: heads behind a concept do not reach it.
        key = (k,) if one_by_one or not early else tuple(sorted(chosen))
        old = found.get(key, Group((), ()))
        joined = tuple(sorted({*old.heads, *early}))
        found[key] = Group((*old.concepts, k), joined, k if one_by_one else None)
    if not any(group.heads for group in found.values()):
        raise ValueError(
            f"no head of {next(iter(heads.values()))} writes before the concepts' layers "
            f"({sorted(set(layers_of_concepts(detector)))}): the scores cannot change."
        )
    return list(found.values())


def edits_of(base: Baseline, group: Group, mode: str, known: Reference) -> dict[Site, Edit]:
    """The edits of one group's run."""
    direction = None
    if mode == "directional":
        assert group.along is not None
        detector, bank = base.detector, base.detector.bank
        concept = detector.concepts[group.along]
        at = bank.index(detector.layer[concept])
        vector = bank.token.vectors[at, bank.unit(detector.unit[concept])]
        direction = directions(base.host, vector, group.heads)
    return make_edits(mode, group.heads, known, direction)


def run_groups(
    base: Baseline, plan: Sequence[Group], mode: str, known: Reference
) -> tuple[dict[str, Float[np.ndarray, "concept column"]], Float[np.ndarray, " concept"]]:
    """Metrics under ablation, and the change of the residual, by concept.

    Costs one pass over the calibration and the measured split for each group with heads, and two
    whole ones over at most `OUTPUT_SAMPLES` samples where the output is measured.

    Args:
        base: The unablated run.
        plan: Concepts and what is ablated for them.
        mode: Of `reference.MODES`.
        known: Means or donors.
    """
    detector = base.detector
    table = [
        detector.token_scores(in_order(base.tokens, base.data.split(name).samples))
        for name in ("cal", base.split)
    ]
    change = np.zeros(len(detector.concepts))
    own = None if base.output is None else np.tile(base.output.before, (len(change), 1))
    layers = layers_of_concepts(detector)
    for group in plan:
        if not group.heads:
            continue
        places = list(group.concepts)
        wanted = [layers[k] for k in places]
        slim = at_layers(detector.bank, sorted(set(wanted)))
        if base.output is not None and own is not None:
            edits = edits_of(base, group, mode, known)
            own[places] = output_change(base.host, base.output, edits)
        with base.host.edited(edits_of(base, group, mode, known)):
            scored = score(
                base.host,
                base.data,
                slim,
                splits=tuple(dict.fromkeys(("cal", base.split))),
                keep_of=base.tokens.tokens,
            )
        with base.host.edited(edits_of(base, group, mode, known)):
            moved = _residual(base, wanted)
        at = np.array([slim.layers.index(layer) for layer in wanted])
        unit = detector.tail.chosen_unit[places]
        for columns, name in zip(table, ("cal", base.split), strict=True):
            part = in_order(scored, base.data.split(name).samples)
            columns[:, places] = column_scores(part, at, unit)
        for k in places:
            off = (moved[layers[k]] - base.clean[layers[k]]).square().sum(-1).mean().sqrt()
            change[k] = float(off / detector.bank.token.scale[detector.bank.index(layers[k])])
    found = measured(base.frozen, *table)
    if base.output is not None and own is not None:
        found[base.output.metric] = own
    return found, change


def known_of(base: Baseline, mode: str, layers: set[int], seed: int) -> Reference:
    """Train means or donors of z, as the mode needs them."""
    return reference(base.host, base.data, base.detector.bank, mode, layers, seed=seed)


def _residual(base: Baseline, layers: Sequence[int]) -> dict[int, Tensor]:
    """Activations of the probe's kept tokens at each layer."""
    sites = {at: Site(at, base.detector.bank.hook_point) for at in layers}
    frozen = rows_kept_in(base.tokens.tokens, base.probe, base.data.cal.samples[:PROBE])

    def reducer(batch: Batch) -> Keep:
        def reduce(read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Parts:
            valid = batch.valid.to(keep.device)
            return keeping(rows={at: read[site].float()[valid] for at, site in sites.items()})

        return reduce

    job = Job(sites.values(), reducer)
    (kept,) = run(base.host, base.probe, [job], frozen, description="probe")
    # The mean over these tokens is in float32, so their order is that of the batches.
    order = base.probe.run_order(kept.keep)
    return {at: torch.from_numpy(kept.rows[at][order]) for at in sites}


def at_layers(bank: ConceptBank, layers: Sequence[int]) -> ConceptBank:
    """The bank at some of its layers, without controls."""
    at = [bank.index(layer) for layer in layers]
    token = VectorSet(bank.token.vectors[at], bank.token.mean[at], bank.token.scale[at], bank.token.scoring)
    return replace(
        bank, layers=tuple(layers), token=token, permuted=None, pooled=None, cls=None, component_means=None
    )


@dataclass(frozen=True, eq=False)
class Ablation:
    """Metrics of each concept with and without some heads.

    Attributes:
        concepts: Names.
        heads: What was ablated for each concept: heads behind its layer are left out.
        mode: Of `reference.MODES`.
        before, after: Metric to `[concept, 1 + draw]`; see `tail_metrics.py` and `output.py`.
        change: Root mean square change of the residual at each concept's layer, in units of the
            normaliser's scale, on calibration samples.
        resamples: Draws of documents, shared by `before` and `after`.
        settings: Split, counts, seed.
    """

    concepts: tuple[str, ...]
    heads: Mapping[str, tuple[Head, ...]]
    mode: str
    before: Mapping[str, Float[np.ndarray, "concept column"]]
    after: Mapping[str, Float[np.ndarray, "concept column"]]
    change: Float[np.ndarray, " concept"]
    resamples: Resamples
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        gap, f1 = (self.difference(name) for name in ("tail_gap", "f1_recalibrated"))
        most = max(len(heads) for heads in self.heads.values())
        return (
            f"Ablation({self.mode} of {most} heads, {len(self.concepts)} concepts, "
            f"{self.settings['split']} split: tail gap {signed(gap.estimate)} [{signed(gap.low)}, "
            f"{signed(gap.high)}], recalibrated F1 {signed(f1.estimate)} [{signed(f1.low)}, "
            f"{signed(f1.high)}])"
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(self.before)

    def columns(self, metric: str, when: str, concept: str | None = None) -> np.ndarray:
        """A metric on the split (column 0) and its resamples: of a concept, or their plain mean.

        Args:
            metric: Of `metrics`.
            when: "before", "after" or "difference".
            concept: By default the mean over concepts.
        """
        require_known("metric", metric, self.metrics)
        require_known("when", when, ("before", "after", "difference"))
        before, after = self.before[metric], self.after[metric]
        if when == "difference":
            values = after - before
        else:
            # The mean is over the same concepts on both sides.
            other = after if when == "before" else before
            values = np.where(np.isfinite(other), before if when == "before" else after, np.nan)
        if concept is None:
            return mean_over_concepts(values)
        return np.asarray(values[position_of(concept, self.concepts)])

    def interval(self, metric: str, when: str, concept: str | None = None) -> Interval:
        """A metric with its interval over documents."""
        return interval_of(self.columns(metric, when, concept), self.resamples, 0.95)

    def difference(self, metric: str, concept: str | None = None) -> Interval:
        """After minus before, paired, with its interval over documents."""
        return self.interval(metric, "difference", concept)

    def table(self) -> Any:
        """One row a concept and metric: a pandas DataFrame where pandas is installed."""
        rows = []
        for k, concept in enumerate(self.concepts):
            for metric in self.metrics:
                change = self.difference(metric, concept)
                rows.append(
                    {
                        "concept": concept,
                        "n_heads": len(self.heads[concept]),
                        "metric": metric,
                        "before": float(self.before[metric][k, 0]),
                        "after": float(self.after[metric][k, 0]),
                        "difference": change.estimate,
                        "low": change.low,
                        "high": change.high,
                        "residual_change": float(self.change[k]),
                    }
                )
        return frame(rows)

    def summary(self) -> str:
        """Means over concepts with paired differences, as text."""
        lines = []
        for metric in self.metrics:
            before, after = (self.columns(metric, when)[0] for when in ("before", "after"))
            change = self.difference(metric)
            cells = [metric, number(before), number(after), signed(change.estimate)]
            lines.append([*cells, f"[{signed(change.low)}, {signed(change.high)}]"])
        s = self.settings
        none = [c for c, heads in self.heads.items() if not heads]
        notes = [
            f"Means over {len(self.concepts)} concepts, {s['split']} split, {s['n_samples']} "
            f"samples of {s['n_documents']} documents; 95 % intervals of the paired difference.",
            "Not compared with other heads: see ablation_curve before calling these special.",
        ]
        if none:
            notes.append(f"No head writes before the layer of {', '.join(none)}: unchanged.")
        header = ["metric", "before", "after", "difference", "interval"]
        return "\n".join([aligned(header, lines), *notes])


def ablate_heads(
    host: Host,
    data: ConceptData,
    detector: Detector,
    heads: Sequence[Head] | Mapping[str, Sequence[Head]],
    *,
    mode: str = "mean",
    keep: bool = False,
    split: str = "test",
    scores: ScoreTable | None = None,
    output: Output | str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Ablation:
    """Ablate heads and measure every concept's tail and detection again.

    Costs one pass over the calibration and the measured split, unablated (none with `scores`) and
    once more; with "directional", or with heads by concept, once more for each concept. "resample",
    and banks without component means, cost a pass over train samples besides.

    Args:
        host: An attached model that can edit.
        data: Labelled samples.
        detector: From `calibrate`; its layers, deltas and thresholds stay as they are.
        heads: `(layer, head)` for all concepts, or for each concept its own (concepts that are left
            out stay unablated).
        mode: "mean", "zero", "resample", "directional" or "pattern", see `modes.py`.
        keep: Whether `heads` are those that stay, and all others before the deepest layer of a
            concept are ablated: do they suffice?
        split: What is measured; "cal" is optimistic, "train" is refused.
        scores: Unablated scores of the calibration and the measured split.
        output: Measures the change of the model's own output too: a function of host and batch that
            gives logits (`sa_transformer_lens.ablate.logits`), or "hidden" for the last residual
            stream; see `output.py`.
        draws: Resamples of source documents.
        seed: Of the resamples and of the donors.

    Returns:
        Metrics before and after, by concept.

    Raises:
        TypeError: The host cannot edit.
        ValueError: No head, an unknown one, mode, split or concept; no head before any layer.
        NotImplementedError: "directional" on a model with norms behind the heads.
        RuntimeError: An edit did not reach the model.

    Example:
        >>> ablate_heads(host, data, detector, [(8, 3)])  # doctest: +SKIP
    """
    require_known("mode", mode, MODES)
    chosen = _by_concept(host, detector, heads)
    if keep:
        every = candidates(host, detector)
        chosen = {k: _others(every, kept) for k, kept in chosen.items()}
    groups(detector, chosen, one_by_one=False)
    base = baseline(host, data, detector, split=split, scores=scores, draws=draws, seed=seed, output=output)
    return ablate(base, chosen, mode, seed)


def _others(every: Sequence[Head], kept: Sequence[Head]) -> tuple[Head, ...]:
    others = tuple(head for head in every if head not in set(kept))
    if not others:
        raise ValueError(f"all {len(every)} heads are to be kept: nothing is ablated.")
    return others


def ablate(
    base: Baseline,
    heads: Mapping[int, tuple[Head, ...]],
    mode: str,
    seed: int,
    known: Reference | None = None,
    along: int | None = None,
) -> Ablation:
    """One ablation held against an unablated run that is already there.

    With `along`, "directional" takes that concept's direction out for all.
    """
    detector = base.detector
    plan = groups(detector, heads, one_by_one=mode == "directional" and along is None)
    if along is not None:
        plan = [Group(group.concepts, group.heads, along) for group in plan]
    if known is None:
        known = known_of(base, mode, {at for group in plan for at, _ in group.heads}, seed)
    after, change = run_groups(base, plan, mode, known)
    depths = reach(detector)
    reached = {
        concept: tuple(head for head in heads.get(k, ()) if head[0] < depths[k])
        for k, concept in enumerate(detector.concepts)
    }
    settings = {
        "split": base.split,
        "n_samples": base.frozen.test.n_samples,
        "seed": seed,
        "n_documents": base.frozen.resamples.n_documents,
        "draws": base.frozen.resamples.draws,
        "n_tokens": len(base.frozen.test),
        "data_hash": base.data.hash,
        "model": base.host.info.model,
    }
    return Ablation(
        detector.concepts, reached, mode, base.before, after, change, base.frozen.resamples, settings
    )


def _by_concept(
    host: Host, detector: Detector, heads: Sequence[Head] | Mapping[str, Sequence[Head]]
) -> dict[int, tuple[Head, ...]]:
    if isinstance(heads, Mapping):
        if not heads:
            raise ValueError("heads is empty, and ablating nothing changes nothing: name a head.")
        return {position_of(c, detector.concepts): check_heads(host.info, h) for c, h in heads.items()}
    chosen = check_heads(host.info, heads)
    return dict.fromkeys(range(len(detector.concepts)), chosen)
