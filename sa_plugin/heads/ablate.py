"""Do these heads make the tail? Ablate them, and measure what is left of it.

The same tokens and the same vectors are scored again under the edits of `edits`; what is measured
stands in `tail_metrics`, what is frozen in `baseline`. Every number is after - before on the same
tokens and the same columns of documents, so differences are paired. The change of the residual is
the root mean square over kept tokens of norm(h_ablated - h) at each concept's own layer, divided by
the normaliser's scale (the root mean square norm of the centred activations, by default): it holds
what later parts do with the ablation.

What it does not show: that these heads in particular matter. Ablating any heads of that size may do
as much; `ablation_curve` sets them against random, layer-matched, norm-matched and lowest-ranked
ones. Nor the reverse: heads whose loss later heads make good may matter in the intact model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from sa_plugin._check import position_of, require_known
from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.methods import column_scores
from sa_plugin.heads.baseline import (
    Baseline,
    baseline,
    candidates,
    known_of,
    layers_of_concepts,
    reach,
    residual,
    scores_of,
)
from sa_plugin.heads.edits import (
    Head,
    Intervention,
    NamedHead,
    Reference,
    check_heads,
    directions,
    make_edits,
)
from sa_plugin.heads.tail_metrics import measured, output_change, unit_of
from sa_plugin.host.protocol import Edit, Host, Site
from sa_plugin.passes.layout import if_any, unknown_notes
from sa_plugin.scores.score import score
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, bounds_text, exact, number, signed
from sa_plugin.statistics.drawn import Drawn, Resampling, stack

_WHEN = ("before", "after", "difference")


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result):
    """Metrics of each concept with and without some heads.

    Attributes:
        heads: What was ablated for each concept: heads behind its layer are left out.
        mode: Of `edits.ABLATIONS`.
        before, after: Over metric and concept, see `tail_metrics`.
        change: Root mean square change of the residual at each concept's layer, in units of the
            normaliser's scale; 0 where nothing was ablated.
        settings: Split, counts, seed.
    """

    heads: Mapping[str, tuple[Head, ...]]
    mode: str
    before: Drawn
    after: Drawn
    change: Float[np.ndarray, " concept"]
    settings: Mapping[str, Any]

    about: ClassVar[str] = "Not compared with other heads: see ablation_curve before calling these special."

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names."""
        return tuple(self.before.axes["concept"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(self.before.axes["metric"])

    @cached_property
    def difference(self) -> Drawn:
        """After minus before, paired."""
        return self.after - self.before

    def mean(self, when: str) -> Drawn:
        """Every metric as the plain mean over concepts.

        Args:
            when: "before", "after" or "difference".
        """
        require_known("when", when, _WHEN)
        return self._means[when]

    @cached_property
    def _means(self) -> dict[str, Drawn]:
        # The mean is over the same concepts before and after.
        both = np.isfinite(self.before.values) & np.isfinite(self.after.values)
        sides = {"before": self.before, "after": self.after}
        means = {when: side.like(np.where(both, side.values, np.nan)) for when, side in sides.items()}
        means["difference"] = self.difference
        return {when: side.mean("concept") for when, side in means.items()}

    def rows(self) -> list[dict[str, Any]]:
        """Before, after and difference of every metric and concept, and what was changed."""
        found = [row for when in _WHEN for row in getattr(self, when).rows(when)]
        for concept, change in zip(self.concepts, self.change, strict=True):
            found.append(exact("residual_change", float(change), concept=concept))
            found.append(exact("n_heads", len(self.heads[concept]), concept=concept))
        return found

    def headline(self) -> str:
        """What was ablated, and what became of tail gap and recalibrated F1."""
        gap, f1 = (self.mean("difference").sel(metric=name) for name in ("tail_gap", "f1_recalibrated"))
        most = max(len(heads) for heads in self.heads.values())
        return (
            f"{self.mode} of {most} heads, {len(self.concepts)} concepts, {self.settings['split']} split: "
            f"tail gap {_signed(gap)}, recalibrated F1 {_signed(f1)}"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """Means over concepts with paired differences."""
        before, after, change = (self.mean(when) for when in _WHEN)
        lines = [
            [
                metric,
                number(before.estimate[k]),
                number(after.estimate[k]),
                signed(change.estimate[k]),
                bounds_text(change.sel(metric=metric), sign=True),
            ]
            for k, metric in enumerate(self.metrics)
        ]
        s = self.settings
        none = [c for c, heads in self.heads.items() if not heads]
        notes = [
            f"Means over {len(self.concepts)} concepts, {s['split']} split, {s['n_samples']} "
            f"samples of {s['n_documents']} documents; {100 * change.level:g} % intervals of the paired "
            "difference."
        ]
        if none:
            notes.append(f"No head writes before the layer of {', '.join(none)}: unchanged.")
        notes += unknown_notes(s)
        return (Sheet(["metric", "before", "after", "difference", "interval"], lines, "", notes),)

    def plot(self) -> Any:
        """Each metric before and after, and the paired difference, by what it is measured in."""
        panels: dict[str, list[str]] = {}
        for metric in self.metrics:
            panels.setdefault(unit_of(metric), []).append(metric)
        sizes = [1.0 + len(metrics) for metrics in panels.values()]
        figure, axes = plots.new_figure(
            9.0, 0.4 * sum(sizes) + 0.6, rows=len(panels), columns=2, heights=sizes
        )
        before, after, change = (self.mean(when) for when in _WHEN)
        for (left, right), (unit, metrics) in zip(axes.reshape(-1, 2), panels.items(), strict=True):
            for one, colour, offset, label in (
                (before, plots.IN_COLOUR, -0.15, "before"),
                (after, plots.TAIL_COLOUR, 0.15, "after"),
            ):
                plots.whiskers(left, one.sel(metric=metrics), colours=colour, offset=offset, label=label)
            plots.whiskers(right, change.sel(metric=metrics))
            plots.zero(right)
            right.set_yticks([])
            plots.words(left, x=unit)
            plots.words(right, x="after - before, paired")
        left, right = axes.reshape(-1, 2)[0]
        most = max(len(heads) for heads in self.heads.values())
        title = f"{self.mode} ablation of {most} heads, mean over {len(self.concepts)} concepts"
        plots.words(left, title=title, x=left.get_xlabel())
        for line in left.get_lines():
            if not line.get_label().startswith("_"):
                right.plot([], [], "o", color=line.get_color(), ms=4.5, label=line.get_label())
        plots.legend(right)
        plots.note(
            figure,
            f"{self.settings['split']} split; bars: {100 * change.level:g} % over documents. "
            "Not compared with other heads: see ablation_curve.",
            before,
            after,
            change,
        )
        return figure


def _signed(drawn: Drawn) -> str:
    return f"{signed(drawn.estimate)} {bounds_text(drawn, sign=True)}"


@face
def ablate_heads(
    host: Host,
    data: ConceptData,
    detector: Detector,
    heads: Sequence[NamedHead] | Mapping[str, Sequence[NamedHead]],
    *,
    how: Intervention = Intervention(),
    scores: ScoreTable | None = None,
    split: str = "test",
    resampling: Resampling = Resampling(),
) -> Ablation:
    """Ablate heads and measure every concept's tail and detection again.

    Costs one pass over the calibration and the measured split, unablated (none with `scores`) and
    once more; with "directional", or with heads by concept, once more for each concept. "resample",
    and banks without component means, cost a pass over train samples besides.

    Args:
        host: An attached model that can edit.
        data: Labelled samples.
        detector: From `calibrate`; its layers, deltas and thresholds stay as they are.
        heads: `(layer, head)` or "L8H3" for all concepts, or for each concept its own (concepts that are left
            out stay unablated).
        how: What they write instead, whether they are the ones that stay, and whether the model's
            own output is looked at: `Intervention("zero")`.
        scores: Unablated scores of the calibration and the measured split.
        split: What is measured; "cal" is optimistic, "train" is refused.
        resampling: Of source documents; its seed is that of donors too.

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
    chosen = _by_concept(host, detector, heads)
    if how.keep:
        every = candidates(host, detector)
        chosen = {k: _others(every, kept) for k, kept in chosen.items()}
    # Refused before anything is run: heads that no concept can see.
    _groups(detector, chosen, one_by_one=False)
    base = baseline(
        host, data, detector, split=split, scores=scores, resampling=resampling, output=how.output
    )
    return ablate(base, chosen, how.mode)


def _by_concept(
    host: Host, detector: Detector, heads: Sequence[NamedHead] | Mapping[str, Sequence[NamedHead]]
) -> dict[int, tuple[Head, ...]]:
    if isinstance(heads, Mapping):
        if not heads:
            raise ValueError("heads is empty, and ablating nothing changes nothing: name a head.")
        return {position_of(c, detector.concepts): check_heads(host.info, h) for c, h in heads.items()}
    chosen = check_heads(host.info, heads)
    return dict.fromkeys(range(len(detector.concepts)), chosen)


def _others(every: Sequence[Head], kept: Sequence[Head]) -> tuple[Head, ...]:
    others = tuple(head for head in every if head not in set(kept))
    if not others:
        raise ValueError(f"all {len(every)} heads are to be kept: nothing is ablated.")
    return others


def ablate(
    base: Baseline,
    heads: Mapping[int, tuple[Head, ...]],
    mode: str,
    known: Reference | None = None,
    along: int | None = None,
) -> Ablation:
    """One ablation held against an unablated run that is already there.

    Args:
        base: The unablated run.
        heads: By the concept's position in the detector.
        mode: Of `edits.ABLATIONS`.
        known: Means or donors, if they are there already.
        along: The concept whose direction "directional" takes out for all; by default each its own.
    """
    detector = base.detector
    plan = _groups(detector, heads, one_by_one=mode == "directional" and along is None)
    if along is not None:
        plan = [group._replace(along=along) for group in plan]
    if known is None:
        known = known_of(base, mode, {at for group in plan for at, _ in group.heads})
    after, change = _run_groups(base, plan, mode, known)
    depths = reach(detector)
    reached = {
        concept: tuple(head for head in heads.get(k, ()) if head[0] < depths[k])
        for k, concept in enumerate(detector.concepts)
    }
    resamples = base.frozen.resamples
    settings = {
        "split": base.split,
        "n_samples": base.frozen.test.n_samples,
        "seed": resamples.resampling.seed,
        "n_documents": resamples.n_documents,
        "n_tokens": len(base.frozen.test),
        "data_hash": base.data.hash,
        "model": base.host.info.model,
        **if_any(unknown=base.frozen.test.unknown),
    }
    return Ablation(reached, mode, base.before, after, change, settings)


class Group(NamedTuple):
    """Concepts that share a run.

    Attributes:
        concepts: Their positions in the detector.
        heads: What is ablated for them; none where no head writes before their layers.
        along: The concept whose direction is taken out ("directional").
    """

    concepts: tuple[int, ...]
    heads: tuple[Head, ...]
    along: int | None = None


def _groups(detector: Detector, heads: Mapping[int, tuple[Head, ...]], *, one_by_one: bool) -> list[Group]:
    """Concepts with the same heads in reach together, or each alone.

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


def _run_groups(
    base: Baseline, plan: Sequence[Group], mode: str, known: Reference
) -> tuple[Drawn, Float[np.ndarray, " concept"]]:
    """Metrics under ablation, and the change of the residual by concept.

    Costs one pass over the calibration and the measured split for each group with heads, and two
    whole ones over at most `OUTPUT_SAMPLES` samples where the output is measured.
    """
    detector, bank = base.detector, base.detector.bank
    names, layers = ("cal", base.split), layers_of_concepts(base.detector)
    # Concepts that no run reaches keep their unablated columns.
    tables = [detector.token_scores(scores_of(base.tokens, base.data.split(name).samples)) for name in names]
    change = np.zeros(len(detector.concepts))
    own = {} if base.output is None else dict.fromkeys(detector.concepts, base.output.before)
    for group in plan:
        if not group.heads:
            continue
        members = list(group.concepts)
        wanted = [layers[k] for k in members]
        if base.output is not None:
            moved_output = output_change(base.host, base.output, edits_of(base, group, mode, known))
            own |= {detector.concepts[k]: moved_output for k in members}
        # New edits for each pass: "resample" draws from a generator of its own.
        with base.host.edited(edits_of(base, group, mode, known)):
            parts = rescored(base, wanted, names)
        with base.host.edited(edits_of(base, group, mode, known)):
            moved = residual(base.host, base.probe.layout, base.probe.rows, bank.hook_point, wanted)
        at = np.array([parts[0].bank.layers.index(layer) for layer in wanted])
        for columns, part in zip(tables, parts, strict=True):
            columns[:, members] = column_scores(part, at, detector.tail.chosen_unit[members])
        for k in members:
            off = (moved[layers[k]] - base.probe.clean[layers[k]]).square().sum(-1).mean().sqrt()
            change[k] = float(off / bank.token.scale[bank.index(layers[k])])
    output = None if base.output is None else {base.output.metric: stack(own, "concept")}
    cal, test = tables
    return measured(base.frozen, cal, test, output), change


def rescored(
    base: Baseline, layers: Sequence[int], splits: Sequence[str], bank: ConceptBank | None = None
) -> list[ScoreTable]:
    """Each split's scores at some layers under the edits in force, on the unablated run's rows.

    By the detector's own bank unless another one of the same model is given.
    """
    slim = _at_layers(base.detector.bank if bank is None else bank, sorted(set(layers)))
    scored = score(
        base.host, base.data, slim, splits=tuple(dict.fromkeys(splits)), keep_of=base.tokens.tokens
    )
    return [scores_of(scored, base.data.split(name).samples) for name in splits]


def _at_layers(bank: ConceptBank, layers: Sequence[int]) -> ConceptBank:
    """The bank at some of its layers, without controls."""
    at = [bank.index(layer) for layer in layers]
    token = VectorSet(bank.token.vectors[at], bank.token.mean[at], bank.token.scale[at], bank.token.scoring)
    return replace(
        bank, layers=tuple(layers), token=token, permuted=None, pooled=None, cls=None, component_means=None
    )
