"""Explainers with one objective and another, on the same samples: is the swap worth it?

For every concept, calibration samples choose the level of F1 for each method and objective; test
samples are then explained and measured: localisation against the labels, insertion and deletion
against the yardsticks. Samples without a SuperActivator are skipped and counted. One coalition game
a sample serves all objectives, perturbation methods and yardsticks, so that a masked input is run
once.

The comparison holds for this model, data, baseline and detector. A method may localise better and
be no more faithful, or the other way round; both are reported for each method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._names import require_known
from sa_plugin.attribution.attribute import METHODS, PRESETS, attributions, run
from sa_plugin.attribution.coalition_methods import COALITION_METHODS
from sa_plugin.attribution.comparison import Comparison, Coverage, CurveKey
from sa_plugin.attribution.engine import BATCH_TOKENS, CoalitionGame, Readout, coalition_game
from sa_plugin.attribution.faithfulness import KINDS, N_STEPS, area, curves, on_grid
from sa_plugin.attribution.localisation import choose_level, rank_share, sample_scores, usable
from sa_plugin.attribution.mfaba import Degenerate
from sa_plugin.attribution.paired import Measured, rows_of
from sa_plugin.attribution.result import Attribution, Explained
from sa_plugin.attribution.yardsticks import PRIMARY, Probe, later_probes, yardsticks
from sa_plugin.data import ConceptData, Split
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_unseen, place
from sa_plugin.host import Host
from sa_plugin.objectives import Objective, objective
from sa_plugin.samples import Sample

GRID = np.linspace(0, 1, 21)


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
    options: Mapping[str, Mapping[str, Any]]
    batch_tokens: int
    n_steps: int


def compare(
    host: Host,
    data: ConceptData,
    detector: Detector,
    *,
    methods: Sequence[str] = ("direct_alignment", "integrated_gradients", "rise", "lime"),
    objectives: Sequence[str] = ("global", "superactivator"),
    concepts: Sequence[str] | None = None,
    n_test: int = 40,
    n_cal: int = 20,
    preset: str = "fast",
    baseline: str | Tensor | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    probe: bool = True,
    n_steps: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    progress: bool = True,
) -> Comparison:
    """Explain the same samples with several objectives, and measure.

    Cost, for each sample, concept and method: what the method costs (see `attribute`), and for
    each objective `2 n_steps` forward rows on test samples. Two more passes over the calibration
    and test splits, and with `probe` one over train and calibration.

    Args:
        host: A host with `input_values` and `forward_from`.
        data: Whose calibration and test samples are explained.
        detector: Calibrated on these data.
        methods: Explainers, see `attribute`.
        objectives: The first is what the others are compared with.
        concepts: By default all of the detector's.
        n_test: At most so many test samples a concept, drawn from those with a SuperActivator.
        n_cal: The same for calibration.
        preset: "paper" or "fast".
        baseline: See `maskers`; of perturbations, insertion and deletion.
        options: By method, for its own function.
        probe: Whether to fit the third yardstick.
        n_steps: Of insertion and deletion; by default 50, or 12 for the fast preset.
        batch_tokens: At most this many tokens a pass (one row at least).
        draws: Bootstrap resamples of source documents.
        seed: Of sampling, explainers and resamples.
        level: Of the intervals.
        progress: Show a bar over samples.

    Returns:
        Metrics with paired differences, curves and examples.

    Raises:
        TypeError: The host gives no gradients.
        ValueError: An unknown name, one objective only, or no sample to compare.

    Example:
        >>> found = compare(host, data, detector, methods=["rise"])  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP
    """
    _check(methods, objectives, preset)
    names = tuple(detector.concepts if concepts is None else concepts)
    for concept in names:
        place(concept, detector.concepts)
    check_unseen(data.test, detector.seen)
    steps = N_STEPS[preset] if n_steps is None else n_steps
    plan = Plan(
        host, detector, tuple(methods), tuple(objectives), preset, baseline,
        _seeded(methods, options or {}, seed), batch_tokens, steps,
    )  # fmt: skip
    probes = later_probes(host, data, detector, names) if probe else {}
    cal, test = (_candidates(detector, split, names) for split in (data.cal, data.test))
    found: list[Measured] = []
    lines: dict[CurveKey, list[Float[np.ndarray, " point"]]] = {}
    coverage, examples = [], []
    total = sum(min(n_test, len(test[c][0])) + min(n_cal, len(cal[c][0])) for c in names)
    with tqdm(total=total, desc="explaining", disable=not progress) as bar:
        for concept in names:
            if not test[concept][0] or not cal[concept][0]:
                coverage.append(_covered(plan, concept, test, [], [], {}, probes))
                continue
            rng = np.random.default_rng(seed)
            held, shown = (
                _draw(of[concept][0], n, rng) for of, n in ((cal, n_cal), (test, n_test))
            )
            levels = _levels(plan, concept, held, bar)
            refused = dict.fromkeys(methods, 0)
            for chosen in shown:
                maps = _measure(plan, concept, chosen, levels, probes, found, lines, refused)
                if chosen is shown[0]:
                    examples += maps
                bar.update()
            coverage.append(_covered(plan, concept, test, shown, held, refused, probes))
    if not found:
        raise ValueError(
            "no sample could be compared: no concept has test and calibration samples with labels "
            "and a SuperActivator. Look at detector.evaluate(data.test) first."
        )
    settings = {
        "preset": preset, "primary_yardstick": PRIMARY, "seed": seed, "level": level,
        "draws": draws, "n_steps": steps, "baseline": baseline if isinstance(baseline, str) else
        "default" if baseline is None else "given", "model": host.info.model,
    }  # fmt: skip
    rows = rows_of(found, objectives, draws=draws, seed=seed, level=level)
    means = {key: np.mean(values, axis=0) for key, values in lines.items()}
    return Comparison(
        plan.methods, plan.objectives, tuple(rows), tuple(coverage), means, GRID,
        tuple(examples), settings,
    )  # fmt: skip


def _check(methods: Sequence[str], objectives: Sequence[str], preset: str) -> None:
    for method in methods:
        require_known("method", method, METHODS)
    require_known("preset", preset, PRESETS)
    if not methods or len(set(objectives)) < 2 or len(set(objectives)) < len(objectives):
        raise ValueError(
            f"methods {list(methods)}, objectives {list(objectives)}: give one method at least and "
            "two different objectives, the conventional one first."
        )


def _seeded(
    methods: Sequence[str], options: Mapping[str, Mapping[str, Any]], seed: int
) -> dict[str, Mapping[str, Any]]:
    drawing = (*COALITION_METHODS, "smooth_grad")
    own = {method: {"seed": seed} if method in drawing else {} for method in methods}
    return {method: own[method] | dict(options.get(method, {})) for method in methods}


def _candidates(
    detector: Detector, split: Split, concepts: Sequence[str]
) -> dict[str, tuple[list[Chosen], int]]:
    """For each concept the samples to choose from, and how many have labels at all."""
    table = detector.scores_of(split)
    tail = detector.superactivators(table)
    found: dict[str, tuple[list[Chosen], int]] = {}
    for concept in concepts:
        column, own = table.tokens.concepts.index(concept), detector.concepts.index(concept)
        chosen, positive = [], 0
        for n, sample in enumerate(table.tokens.samples):
            rows = slice(table.tokens.bounds[n], table.tokens.bounds[n + 1])
            labels = table.tokens.labels[rows, column]
            positive += usable(labels)
            if usable(labels) and tail[rows, own].any():
                chosen.append(Chosen(sample, table.tokens.position[rows], labels))
        found[concept] = chosen, positive
    return found


def _draw(samples: Sequence[Chosen], n: int, rng: np.random.Generator) -> list[Chosen]:
    keep = sorted(rng.permutation(len(samples))[:n].tolist())
    return [samples[k] for k in keep]


def _levels(
    plan: Plan, concept: str, samples: Sequence[Chosen], bar: Any
) -> dict[tuple[str, str], float]:
    """The level of F1 for each method and objective."""
    seen: dict[tuple[str, str], list[Any]] = {}
    for chosen in samples:
        made = _objectives(plan, concept, chosen.sample)
        game = _game(plan, chosen.sample, made)
        for method, found in _explained(plan, game, made, chosen.sample).items():
            for k, one in enumerate(made):
                values = found.importance[game.player_of[chosen.position], k]
                seen.setdefault((method, one.name), []).append((values, chosen.labels))
        bar.update()
    return {key: choose_level(values) for key, values in seen.items()}


def _measure(
    plan: Plan,
    concept: str,
    chosen: Chosen,
    levels: Mapping[tuple[str, str], float],
    probes: Mapping[str, Probe],
    found: list[Measured],
    lines: dict[CurveKey, list[Float[np.ndarray, " point"]]],
    refused: dict[str, int],
) -> list[Attribution]:
    """Explain and measure one test sample; its maps."""
    made = _objectives(plan, concept, chosen.sample)
    sticks = yardsticks(plan.host, plan.detector, made[0], probes.get(concept))
    game = _game(plan, chosen.sample, [*made, *sticks])
    explained = _explained(plan, game, made, chosen.sample)
    maps: list[Attribution] = []
    for method in plan.methods:
        if method not in explained or (method, made[0].name) not in levels:
            refused[method] += 1
            continue
        own = replace(game, objectives=tuple(made), sites=game.sites[: len(made)], known={})
        maps += attributions(own, chosen.sample, method, explained[method], preset=plan.preset)
        for k, one in enumerate(made):
            importance = explained[method].importance[:, k]
            areas = _areas(plan, game, len(made), method, one.name, importance, sticks, lines)
            areas |= _completeness(explained[method], k)
            values = importance[game.player_of[chosen.position]]
            found.append(
                Measured(
                    concept, chosen.sample.id, chosen.sample.document, method, one.name,
                    sample_scores(values, chosen.labels, levels[method, one.name]),
                    rank_share(values), chosen.labels, areas,
                )
            )  # fmt: skip
    return maps


def _areas(
    plan: Plan,
    game: CoalitionGame,
    first: int,
    method: str,
    name: str,
    importance: Float[np.ndarray, " player"],
    sticks: Sequence[Any],
    lines: dict[CurveKey, list[Float[np.ndarray, " point"]]],
) -> dict[str, float]:
    found = curves(game, importance, n_steps=plan.n_steps)
    areas = {}
    for kind in KINDS:
        values = getattr(found, kind)[:, first:]
        for stick, total, column in zip(sticks, area(found.share, values), values.T, strict=True):
            areas[f"{kind}/{stick.name}"] = float(total)
            key = (method, name, kind, stick.name)
            lines.setdefault(key, []).append(on_grid(found.share, column, GRID))
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
    return coalition_game(
        plan.host, sample, list(readouts), baseline=plan.baseline, batch_tokens=plan.batch_tokens
    )


def _explained(
    plan: Plan, game: CoalitionGame, made: Sequence[Objective], sample: Sample
) -> dict[str, Explained]:
    """Every method on the objectives, which stand first in the game; refusals are left out."""
    own = replace(game, objectives=tuple(made), sites=game.sites[: len(made)], known={})
    found = {}
    for method in plan.methods:
        options = dict(plan.options[method])
        if method == "mfaba":
            try:
                found[method] = _with_rivals(plan, own, made, sample, options)
            except Degenerate:
                continue
        elif method in COALITION_METHODS:
            every = run(game, method, preset=plan.preset, **options)
            found[method] = Explained(every.importance[:, : len(made)], {})
        else:
            found[method] = run(own, method, preset=plan.preset, **options)
    return found


def _with_rivals(
    plan: Plan,
    own: CoalitionGame,
    made: Sequence[Objective],
    sample: Sample,
    options: Mapping[str, Any],
) -> Explained:
    """MFABA against the same objective of the detector's other concepts."""
    parts = []
    for k, one in enumerate(made):
        others = [
            objective(one.name, detector=plan.detector, concept=other, sample=sample,
                      host=plan.host, fallback="top_token")
            for other in plan.detector.concepts
            if other != one.concept
        ]  # fmt: skip
        alone = replace(own, objectives=(one,), sites=own.sites[k : k + 1], known={})
        rivals = _game(plan, sample, others) if others else None
        parts.append(run(alone, "mfaba", preset=plan.preset, rivals=rivals, **options))
    return Explained(np.concatenate([part.importance for part in parts], axis=1), {})


def _covered(
    plan: Plan,
    concept: str,
    test: Mapping[str, tuple[list[Chosen], int]],
    shown: Sequence[Chosen],
    held: Sequence[Chosen],
    refused: Mapping[str, int],
    probes: Mapping[str, Probe],
) -> Coverage:
    covered, positive = test[concept]
    known = probes[concept].cal_auroc if concept in probes else None
    return Coverage(
        concept, plan.detector.layer[concept], positive, len(covered), len(shown), len(held),
        dict(refused), known,
    )  # fmt: skip
