"""Scoring under ablation: the same tokens, the same vectors, other activations.

The rows are those of the unablated run: which tokens are attention sinks is decided there and
frozen, since an ablation that moves a norm would otherwise change what is measured. Heads that
write after a concept's layer cannot reach its score and are left out for it.

The change of the residual is measured, on at most `PROBE` calibration samples, at each concept's
own layer: root mean square over kept tokens of norm(h_ablated - h), divided by the normaliser's
scale (the root mean square norm of the centred activations, by default). It holds what later parts
do with the ablation. Norm-matched controls are matched on the direct part of it (`ranking.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.collect import BATCH_TOKENS, Layout, lay_out, rows_kept_in, walk
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.data import ConceptData, Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_scores, check_unseen, document_names, rows_of_samples
from sa_plugin.detection.methods import column_scores
from sa_plugin.editing import Edit, EditableHost, Output, require_editable
from sa_plugin.heads.modes import Head, directions, make_edits
from sa_plugin.heads.output import OutputProbe, output_change, output_probe
from sa_plugin.heads.reference import Reference, reference
from sa_plugin.heads.tail_metrics import Frozen, deviations, measured
from sa_plugin.host import Batch, Host, Reduce, Site
from sa_plugin.scores import ScoreTable
from sa_plugin.scoring import check_origin, score
from sa_plugin.statistics import resample_documents

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
        batch_tokens: Tokens in a batch.
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
    batch_tokens: int
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
    batch_tokens: int = BATCH_TOKENS,
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
        scores = score(
            host, data, detector.bank, splits=names, batch_tokens=batch_tokens, progress=False
        )
    check_scores(scores, detector.bank, detector.concepts)
    cal, test = (in_order(scores, data.split(name).samples) for name in ("cal", split))
    columns = [detector.token_scores(table) for table in (cal, test)]
    frozen = Frozen(
        detector.concepts, cal.tokens, test.tokens, detector.tail.chosen_threshold,
        detector.tail.chosen_delta, detector.tail.deltas,
        deviations(test.tokens, detector.concepts, columns[1]),
        resample_documents(document_names(test.tokens), draws=draws, seed=seed),
    )  # fmt: skip
    probe = lay_out(host, data.cal.samples[:PROBE], (), batch_tokens=batch_tokens)
    before = measured(frozen, *columns)
    looked = None
    if output is not None:
        chosen = data.split(split).samples
        looked = output_probe(able, chosen, scores.tokens, output, frozen.resamples)
        before[looked.metric] = np.tile(looked.before, (len(detector.concepts), 1))
    made = Baseline(
        able, data, detector, split, scores, frozen, before, batch_tokens, probe, {}, looked
    )
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


def groups(
    detector: Detector, heads: Mapping[int, tuple[Head, ...]], *, one_by_one: bool
) -> list[Group]:
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


def run(
    base: Baseline,
    plan: Sequence[Group],
    mode: str,
    known: Reference,
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
    table = [detector.token_scores(in_order(base.tokens, base.data.split(name).samples))
             for name in ("cal", base.split)]  # fmt: skip
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
                base.host, base.data, slim, splits=tuple(dict.fromkeys(("cal", base.split))),
                batch_tokens=base.batch_tokens, progress=False, keep_of=base.tokens.tokens,
            )  # fmt: skip
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
    point = base.detector.bank.hook_point
    keep = rows_kept_in(base.tokens.tokens, base.probe, base.data.cal.samples[:PROBE])

    def reducer(batch: Batch) -> Reduce:
        mask = base.probe.mask(batch, keep)
        return lambda read: {str(s.layer): h.float()[mask.to(h.device)] for s, h in read.items()}

    sites = [Site(layer, point) for layer in sorted(set(layers))]
    got = [out for _, out in walk(base.host, base.probe, sites, reducer, description="probe",
                                  progress=False)]  # fmt: skip
    return {layer: torch.cat([out[str(layer)] for out in got]) for layer in set(layers)}


def at_layers(bank: ConceptBank, layers: Sequence[int]) -> ConceptBank:
    """The bank at some of its layers, without controls."""
    at = [bank.index(layer) for layer in layers]
    token = VectorSet(
        bank.token.vectors[at], bank.token.mean[at], bank.token.scale[at], bank.token.scoring
    )
    # The rows are frozen, so the blocks that decide sinks need not be run.
    origin = replace(bank.origin, sink_layers=tuple(layers))
    return replace(
        bank, layers=tuple(layers), token=token, permuted=None, pooled=None, cls=None,
        component_means=None, origin=origin,
    )  # fmt: skip
