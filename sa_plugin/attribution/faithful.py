"""Metrics of two objectives over the same samples, and their paired difference.

Both objectives explain the same samples of the same concept by the same method; the difference is
taken sample by sample (or, for micro metrics, within each draw), and source documents are
resampled. A sample where either is not defined is left out of both. Intervals are conditional on
vectors, thresholds and the level of F1, and are not adjusted for the number of rows.

One sample explained and measured, for `compare`.

Explainers run to the objectives' own layer; insertion and deletion in a game that also holds the
yardsticks, the later probe's block among them. Two orders stand beside the explainers' as controls
of the yardsticks themselves: the labelled tokens first, and a random order. A yardstick by which
the labelled tokens are no better than a random order tells nothing on these data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.attribution.attribute import attributions, run
from sa_plugin.attribution.explained import Attribution, Explained
from sa_plugin.attribution.game import CoalitionGame, Readout, coalition_game
from sa_plugin.attribution.gradients import Degenerate
from sa_plugin.attribution.objective import Objective, objective
from sa_plugin.attribution.yardsticks import (
    KINDS,
    Probe,
    SampleScores,
    Yardstick,
    area,
    choose_level,
    curves,
    micro_f1,
    on_grid,
    rank_share,
    sample_scores,
    yardsticks,
)
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.host.protocol import Host
from sa_plugin.statistics.bootstrap import Resamples, resample_documents, resampled_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import Interval, Resampling
from sa_plugin.statistics.ranking import (
    auroc,
    average_precision,
    resampled_auroc,
    resampled_average_precision,
)

CurveKey = tuple[str, str, str, str]
"""Method, objective, "insertion" or "deletion", yardstick."""

PER_SAMPLE = ("f1_sample", "auroc", "average_precision", "pointing", "mass_inside")
MICRO = ("f1", "auroc_micro", "average_precision_micro")
CONTROL = "control"
"""In place of a method: orders that no explainer made, to test the yardsticks themselves."""
ORDERS = ("random", "labelled first")


@dataclass(frozen=True, eq=False)
class Measured:
    """One sample explained by one method with one objective.

    Attributes:
        concept, sample, document, method, objective: What and where.
        scores: Localisation.
        ranks: Share of the sample's tokens at or below each kept token.
        labels: Of the same tokens.
        areas: By name, such as "insertion/mean_alignment", and what the method says of itself:
            "completeness_error", as a share.
    """

    concept: str
    sample: str
    document: str
    method: str
    objective: str
    scores: SampleScores
    ranks: Float[np.ndarray, " token"]
    labels: np.ndarray
    areas: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Row:
    """One metric of one method and concept for every objective.

    Attributes:
        concept: Name, or "all": every sample of every concept.
        method: Explainer.
        metric: Name.
        better: "higher" or "lower".
        n_samples: Samples behind it.
        values: By objective.
        differences: By objective, minus the first one's; paired.
    """

    concept: str
    method: str
    metric: str
    better: str
    n_samples: int
    values: Mapping[str, Interval]
    differences: Mapping[str, Interval]

    @property
    def wins(self) -> dict[str, str]:
        """For each later objective "better", "worse" or "open" (the interval holds zero)."""
        good = {"higher": "better", "lower": "worse"}[self.better]
        bad = {"higher": "worse", "lower": "better"}[self.better]
        return {
            name: "open" if not d.excludes_zero else good if d.low > 0 else bad
            for name, d in self.differences.items()
        }


def rows_of(
    found: Sequence[Measured],
    objectives: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Row]:
    """Every metric of every method, concept by concept and over all of them.

    Args:
        found: Of all samples, methods and objectives.
        objectives: The first is what the others are compared with.
        draws: Bootstrap resamples of source documents.
        seed: Of the resamples.
        level: Of the intervals.
    """
    rows = []
    for method in dict.fromkeys(one.method for one in found):
        mine = [one for one in found if one.method == method]
        concepts = list(dict.fromkeys(one.concept for one in mine))
        for concept in [*concepts, *(["all"] if len(concepts) > 1 else [])]:
            of = [one for one in mine if concept in (one.concept, "all")]
            complete = _complete(of, objectives)
            if complete:
                rows += _rows(concept, method, complete, objectives, draws, seed, level)
    return rows


def control_rows(
    found: Sequence[Measured], *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> list[Row]:
    """Insertion and deletion of labelled tokens first, against a random order, by yardstick.

    A yardstick that does not prefer the labelled tokens here cannot tell explainers apart on these
    data, or the model does not use the labelled tokens.

    Args:
        found: As for `rows_of`.
        draws: Bootstrap resamples of source documents.
        seed: Of the resamples.
        level: Of the intervals.
    """
    mine = [one for one in found if one.method == CONTROL]
    rows = rows_of(mine, ORDERS, draws=draws, seed=seed, level=level)
    return [row for row in rows if "/" in row.metric]


def _complete(found: Sequence[Measured], objectives: Sequence[str]) -> list[dict[str, Measured]]:
    """Samples that every objective was measured on."""
    by_sample: dict[tuple[str, str], dict[str, Measured]] = {}
    for one in found:
        by_sample.setdefault((one.concept, one.sample), {})[one.objective] = one
    return [group for group in by_sample.values() if set(objectives) <= set(group)]


def _rows(
    concept: str,
    method: str,
    groups: Sequence[dict[str, Measured]],
    objectives: Sequence[str],
    draws: int,
    seed: int,
    level: float,
) -> list[Row]:
    first = groups[0][objectives[0]]
    metrics = [*MICRO, *PER_SAMPLE, *first.areas]
    rows = []
    for metric in metrics:
        used = [g for g in groups if all(_defined(g[o], metric) for o in objectives)]
        if not used:
            continue
        resamples = _resamples([g[objectives[0]].document for g in used], draws, seed)
        drawn = {o: _drawn([g[o] for g in used], metric, resamples) for o in objectives}
        base = drawn[objectives[0]]
        rows.append(
            Row(
                concept,
                method,
                metric,
                better(metric),
                len(used),
                {o: _interval(d, resamples, level) for o, d in drawn.items()},
                {o: _interval(drawn[o] - base, resamples, level) for o in objectives[1:]},
            )
        )
    return rows


def better(metric: str) -> str:
    """Whether higher or lower values of a metric are better."""
    return "lower" if metric.startswith(("deletion", "completeness")) else "higher"


def _defined(one: Measured, metric: str) -> bool:
    return metric in MICRO or bool(np.isfinite(_value(one, metric)))


def _value(one: Measured, metric: str) -> float:
    if metric in one.areas:
        return one.areas[metric]
    return float(getattr(one.scores, metric.removesuffix("_sample")))


def _resamples(documents: Sequence[str], draws: int, seed: int) -> Resamples | None:
    """None for one document, which leaves nothing to resample."""
    names = np.array(documents)
    return resample_documents(names, Resampling(draws, seed)) if len(set(documents)) > 1 else None


def _drawn(found: Sequence[Measured], metric: str, resamples: Resamples | None) -> Float[np.ndarray, " draw"]:
    """The metric on the data first, then on every draw."""
    if metric in ("auroc_micro", "average_precision_micro"):
        return _ranked(found, metric, resamples)
    if metric == "f1":
        terms = np.array([[s.scores.true_positives, s.scores.marked, s.scores.labelled] for s in found]).T
        of = micro_f1
    else:
        terms = np.array([[_value(s, metric), 1.0] for s in found]).T

        def of(sums: np.ndarray) -> np.ndarray:
            return ratio(sums[0], sums[1], empty=np.nan)

    own = of(terms.sum(1, keepdims=True))
    return own if resamples is None else np.concatenate([own, of(resampled_sums(terms, resamples))])


def _ranked(
    found: Sequence[Measured], metric: str, resamples: Resamples | None
) -> Float[np.ndarray, " draw"]:
    ranks = np.concatenate([s.ranks for s in found])
    labels = np.concatenate([s.labels for s in found])
    is_auroc = metric == "auroc_micro"
    own = np.atleast_1d((auroc if is_auroc else average_precision)(ranks, labels))
    if resamples is None:
        return own
    home = np.repeat(np.arange(len(found)), [len(s.ranks) for s in found])
    drawn = (resampled_auroc if is_auroc else resampled_average_precision)(ranks, labels, resamples.of(home))
    return np.concatenate([own, drawn])


def _interval(values: Float[np.ndarray, " draw"], resamples: Resamples | None, level: float) -> Interval:
    if resamples is None:
        return Interval(float(values[0]), np.nan, np.nan, level, 0, n_units=1)
    return resamples.interval(float(values[0]), values[1:], level)


GRID = np.linspace(0, 1, 21)
Players = str | Callable[[Host, Sample], Int[np.ndarray, " token"]]


@dataclass(frozen=True, eq=False)
class Chosen:
    """A sample to explain: its kept tokens, by place in the model's input, and their labels."""

    sample: Sample
    position: Int[np.ndarray, " token"]
    labels: Bool[np.ndarray, " token"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is run on every sample."""

    host: Host
    detector: Detector
    methods: tuple[str, ...]
    objectives: tuple[str, ...]
    preset: str
    baseline: str | Tensor | None
    players: Players
    options: Mapping[str, Mapping[str, Any]]
    n_steps: int


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured so far, filled sample by sample."""

    measured: list[Measured] = field(default_factory=list)
    curves: dict[CurveKey, list[Float[np.ndarray, " point"]]] = field(default_factory=dict)
    examples: list[Attribution] = field(default_factory=list)


def levels(plan: Plan, concept: str, samples: Sequence[Chosen], bar: Any) -> dict[tuple[str, str], float]:
    """The level of F1 for each method and objective, chosen on calibration samples."""
    seen: dict[tuple[str, str], list[Any]] = {}
    for chosen in samples:
        made = _objectives(plan, concept, chosen.sample)
        game = _game(plan, chosen.sample, made)
        for method, explained in _explained(plan, game, made, chosen.sample).items():
            for k, one in enumerate(made):
                values = explained.importance[game.player_of[chosen.position], k]
                seen.setdefault((method, one.name), []).append((values, chosen.labels))
        bar.update()
    return {key: choose_level(values) for key, values in seen.items()}


def measure(
    plan: Plan,
    concept: str,
    chosen: Chosen,
    known: Mapping[tuple[str, str], float],
    probe: Probe | None,
    found: Found,
    *,
    example: bool = False,
) -> list[str]:
    """Explain and measure one test sample into `found`; the methods that refused it."""
    made = _objectives(plan, concept, chosen.sample)
    sticks = yardsticks(plan.host, plan.detector, made[0], probe)
    own = _game(plan, chosen.sample, made)
    game = _game(plan, chosen.sample, sticks)
    explained = _explained(plan, own, made, chosen.sample)
    refused = []
    for method in plan.methods:
        if method not in explained or (method, made[0].name) not in known:
            refused.append(method)
            continue
        if example:
            found.examples.extend(
                attributions(own, chosen.sample, method, explained[method], preset=plan.preset)
            )
        for k, one in enumerate(made):
            importance = explained[method].importance[:, k]
            areas = _areas(plan, game, sticks, (method, one.name), importance, found.curves)
            areas |= _completeness(explained[method], k)
            level = known[method, one.name]
            found.measured.append(_measured(concept, chosen, own, method, one.name, importance, level, areas))
    found.measured.extend(_controls(plan, concept, chosen, game, sticks, found))
    return refused


def _controls(
    plan: Plan, concept: str, chosen: Chosen, game: CoalitionGame, sticks: Sequence[Yardstick], found: Found
) -> list[Measured]:
    """The random order, and the same order with the labelled players put first."""
    rng = np.random.default_rng(crc32(chosen.sample.id.encode()))
    drawn = rng.permutation(game.n_players) / game.n_players
    labelled = np.zeros(game.n_players)
    np.maximum.at(labelled, game.player_of[chosen.position], chosen.labels.astype(float))
    out = []
    for name, importance in zip(ORDERS, (drawn, drawn + labelled), strict=True):
        areas = _areas(plan, game, sticks, (CONTROL, name), importance, found.curves)
        out.append(_measured(concept, chosen, game, CONTROL, name, importance, 0.1, areas))
    return out


def _measured(
    concept: str,
    chosen: Chosen,
    game: CoalitionGame,
    method: str,
    name: str,
    importance: Float[np.ndarray, " player"],
    level: float,
    areas: Mapping[str, float],
) -> Measured:
    values = importance[game.player_of[chosen.position]]
    return Measured(
        concept,
        chosen.sample.id,
        chosen.sample.document,
        method,
        name,
        sample_scores(values, chosen.labels, level),
        rank_share(values),
        chosen.labels,
        areas,
    )


def _areas(
    plan: Plan,
    game: CoalitionGame,
    sticks: Sequence[Yardstick],
    key: tuple[str, str],
    importance: Float[np.ndarray, " player"],
    lines: dict[CurveKey, list[Float[np.ndarray, " point"]]],
) -> dict[str, float]:
    found = curves(game, importance, n_steps=plan.n_steps)
    areas = {}
    for kind in KINDS:
        values = getattr(found, kind)
        for stick, total, column in zip(sticks, area(found.share, values), values.T, strict=True):
            areas[f"{kind}/{stick.name}"] = float(total)
            line = on_grid(found.share, column, GRID)
            lines.setdefault((*key, kind, stick.name), []).append(line)
    return areas


def _completeness(found: Explained, k: int) -> dict[str, float]:
    """Error of integrated gradients as a share of what it should add up to."""
    if "completeness_error" not in found.notes:
        return {}
    difference = abs(float(found.notes["difference"][k]))
    share = float(found.notes["completeness_error"][k]) / difference if difference else np.nan
    return {"completeness_error": share}


def _objectives(plan: Plan, concept: str, sample: Sample) -> list[Objective]:
    return [
        objective(name, detector=plan.detector, concept=concept, sample=sample, host=plan.host)
        for name in plan.objectives
    ]


def _game(plan: Plan, sample: Sample, readouts: Sequence[Readout]) -> CoalitionGame:
    chosen = plan.players if isinstance(plan.players, str) else plan.players(plan.host, sample)
    return coalition_game(plan.host, sample, list(readouts), baseline=plan.baseline, players=chosen)


def _explained(
    plan: Plan, game: CoalitionGame, made: Sequence[Objective], sample: Sample
) -> dict[str, Explained]:
    """Every method on the objectives of a game; refusals are left out."""
    found = {}
    for method in plan.methods:
        options = dict(plan.options[method])
        if method == "mfaba":
            try:
                found[method] = _with_rivals(plan, game, made, sample, options)
            except Degenerate:
                continue
        else:
            found[method] = run(game, method, preset=plan.preset, **options)
    return found


def _with_rivals(
    plan: Plan, game: CoalitionGame, made: Sequence[Objective], sample: Sample, options: Mapping[str, Any]
) -> Explained:
    """MFABA against the same objective of the detector's other concepts."""
    parts = []
    for k, one in enumerate(made):
        others = [
            objective(
                one.name,
                detector=plan.detector,
                concept=other,
                sample=sample,
                host=plan.host,
                fallback="top_token",
            )
            for other in plan.detector.concepts
            if other != one.concept
        ]
        alone = replace(game, objectives=(one,), sites=game.sites[k : k + 1], known={})
        rivals = _game(plan, sample, others) if others else None
        parts.append(run(alone, "mfaba", preset=plan.preset, rivals=rivals, **options))
    return Explained(np.concatenate([part.importance for part in parts], axis=1), {})
