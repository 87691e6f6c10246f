"""Explainers with one objective and another, on the same samples: is the swap worth it?

For every concept, calibration samples choose the level of F1 for each method and objective; test
samples are then explained and measured: localisation against the labels, insertion and deletion
against the yardsticks. Samples without a SuperActivator are skipped and counted.

One coalition game a sample serves all objectives and perturbation methods and ends at the
objectives' own layer; another, which goes on to the probe's layer, serves all yardsticks and
orders, the two controls' among them. So a masked input is run once in each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import position_of, require_known
from sa_plugin._face import face, held_options
from sa_plugin.attribution.attribute import METHODS, PRESETS, as_results, explain_game, takers_of
from sa_plugin.attribution.comparison import Comparison, Coverage, CurveKey
from sa_plugin.attribution.contrasts import CONTROL, ORDERS, STRATA, Trial, contrasts_of
from sa_plugin.attribution.estimators import COALITION_METHODS
from sa_plugin.attribution.explained import Attribution, Importances
from sa_plugin.attribution.game import CoalitionGame, Readout, coalition_game
from sa_plugin.attribution.gradients import Degenerate
from sa_plugin.attribution.objective import Objective, objective
from sa_plugin.attribution.players import IMAGE_BASELINES, PLAYERS, TEXT_BASELINES
from sa_plugin.attribution.yardsticks import (
    CURVE_STEPS,
    PRIMARY,
    WAYS,
    LaterProbe,
    area_under,
    choose_level,
    curves,
    later_probes,
    on_grid,
    own_target,
    rank_share,
    sample_scores,
    usable,
    yardsticks,
)
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_unseen
from sa_plugin.host.protocol import Host
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.bootstrap import left_out, resampled_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import Drawn, Resampling

Players = str | Callable[[Host, Sample], Int[np.ndarray, " token"]]
_SHARES = np.linspace(0, 1, 21)
"""Where curves of samples of different lengths are averaged."""
_CONTROL_LEVEL = 0.1
"""Share of the tokens that F1 of a control marks; no control is judged by it."""


@face
@dataclass(frozen=True)
class Design:
    """How samples are drawn, explained and measured, alike for every objective.

    Attributes:
        n_test: At most so many test samples a concept, drawn from those with a SuperActivator.
        n_cal: The same for calibration.
        preset: "paper" or "fast".
        baseline: What a masked token or patch becomes (see `players`), of perturbations, insertion
            and deletion.
        players: By default "kept" (attention sinks, where the host drops them, are never masked);
            "token" masks them too, "word" takes words; or a function of host and sample that gives
            each token's player, such as `partial(superpatches, block=2)`.
        options: By method, for its own function.
        n_steps: Of insertion and deletion; by default 50, or 12 for the fast preset.
        probe: Whether to fit the third yardstick.
    """

    n_test: int = 40
    n_cal: int = 20
    preset: str = "fast"
    baseline: str | Tensor | None = None
    players: Players = "kept"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    n_steps: int | None = None
    probe: bool = True

    def __post_init__(self) -> None:
        require_known("preset", self.preset, PRESETS)
        if isinstance(self.baseline, str):
            require_known("baseline", self.baseline, dict.fromkeys((*TEXT_BASELINES, *IMAGE_BASELINES)))
        for method, options in self.options.items():
            held_options(f"Design: options of {method!r}", options, takers_of(method), own=("preset",))
        if isinstance(self.players, str):
            require_known("players", self.players, PLAYERS)

    @property
    def curve_steps(self) -> int:
        """Blocks of players of insertion and deletion at most."""
        return CURVE_STEPS[self.preset] if self.n_steps is None else self.n_steps


@face
def compare(
    host: Host,
    data: ConceptData,
    detector: Detector,
    *,
    methods: Sequence[str] = ("direct_alignment", "integrated_gradients", "rise", "lime"),
    objectives: Sequence[str] = (
        "global",
        "superactivator",
        "superactivator_tokens",
        "superactivator_margin",
    ),
    concepts: Sequence[str] | None = None,
    scores: ScoreTable | None = None,
    design: Design = Design(),
    resampling: Resampling = Resampling(),
) -> Comparison:
    """Explain the same samples with several objectives, and measure.

    Cost, for each sample, concept and method: what the method costs (see `attribute`), and on test
    samples `2 n_steps` rows to the probe's layer for each objective, as for each of two control
    orders. Two more passes over the calibration and test splits where `scores` are not given, and
    with `probe` one over train and calibration.

    Args:
        host: A host with `input_values` and `forward_from`.
        data: Whose calibration and test samples are explained.
        detector: Calibrated on these data.
        methods: Explainers, see `attribute`.
        objectives: The first is what the others are compared with.
        concepts: By default all of the detector's.
        scores: Of the calibration and test samples, if they are known.
        design: How many samples, with which settings.
        resampling: Of source documents; its seed is also that of sampling and of explainers.

    Returns:
        Metrics with paired differences, curves and examples.

    Raises:
        TypeError: The host gives no gradients.
        ValueError: An unknown name, one objective only, or no sample to compare.

    Example:
        >>> found = compare(host, data, detector, methods=["rise"])  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP
    """
    _check(methods, objectives, design.preset)
    names = tuple(detector.concepts if concepts is None else concepts)
    if not names:
        raise ValueError("concepts is empty: name one or more, or leave it out for all of the detector's.")
    for concept in names:
        position_of(concept, detector.concepts)
    check_unseen(data.test, detector.seen)
    cal, test = (_candidates(detector, split, names, scores) for split in (data.cal, data.test))
    total = sum(min(design.n_test, len(test[c][0])) + min(design.n_cal, len(cal[c][0])) for c in names)
    bench = _Bench(
        host,
        detector,
        tuple(objectives),
        {method: _options(method, design, resampling.seed) for method in methods},
        design,
        later_probes(host, data, detector, names) if design.probe else {},
        tqdm(total=total, desc="explaining", disable=not host.progress),
    )
    coverage = []
    with bench.bar:
        for concept in names:
            rng = np.random.default_rng(resampling.seed)
            held, shown = [], []
            # Without calibration samples there is no level of F1, so nothing is compared.
            if test[concept][0] and cal[concept][0]:
                held = _draw(cal[concept][0], design.n_cal, rng)
                shown = _draw(test[concept][0], design.n_test, rng)
            refused = _concept(bench, concept, held, shown)
            coverage.append(
                Coverage(
                    concept,
                    detector.layer[concept],
                    test[concept][1],
                    len(test[concept][0]),
                    len(shown),
                    len(held),
                    refused,
                    bench.probes[concept].cal_auroc if concept in bench.probes else None,
                    {label: sum(o.n_tail in held for o in shown) for label, held in STRATA.items()},
                )
            )
    if not bench.trials:
        raise ValueError(
            "no sample could be compared: no concept has test and calibration samples with labels "
            "and a SuperActivator. Look at detector.evaluate(data.test) first."
        )
    return Comparison(
        tuple(methods),
        tuple(objectives),
        tuple(contrasts_of(bench.trials, objectives, resampling)),
        tuple(coverage),
        {key: _mean_curve(lines, resampling) for key, lines in bench.curves.items()},
        tuple(bench.examples),
        _settings(host, design, resampling),
        tuple(bench.trials),
    )


@dataclass(frozen=True, eq=False)
class _Chosen:
    """A sample to explain: its kept tokens by place in the model's input, their labels, its tail's length."""

    sample: Sample
    position: Int[np.ndarray, " token"]
    labels: Bool[np.ndarray, " token"]
    n_tail: int


@dataclass(frozen=True, eq=False)
class _Bench:
    """What is run on every sample, options by method and probes by concept, and what it found so far."""

    host: Host
    detector: Detector
    objectives: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]
    design: Design
    probes: Mapping[str, LaterProbe]
    bar: Any
    trials: list[Trial] = field(default_factory=list)
    # Curves with their sample's document.
    curves: dict[CurveKey, list[tuple[str, Float[np.ndarray, " share"]]]] = field(default_factory=dict)
    examples: list[Attribution] = field(default_factory=list)


def _check(methods: Sequence[str], objectives: Sequence[str], preset: str) -> None:
    for method in methods:
        require_known("method", method, METHODS)
    require_known("preset", preset, PRESETS)
    if not methods or len(set(objectives)) < 2 or len(set(objectives)) < len(objectives):
        raise ValueError(
            f"methods {list(methods)}, objectives {list(objectives)}: give one method at least and "
            "two different objectives, the conventional one first."
        )


def _options(method: str, design: Design, seed: int) -> dict[str, Any]:
    drawing = (*COALITION_METHODS, "smooth_grad")
    return ({"seed": seed} if method in drawing else {}) | dict(design.options.get(method, {}))


def _settings(host: Host, design: Design, resampling: Resampling) -> dict[str, Any]:
    baseline, players = design.baseline, design.players
    return {
        "preset": design.preset,
        "primary_yardstick": PRIMARY,
        "seed": resampling.seed,
        "level": resampling.level,
        "n_steps": design.curve_steps,
        "baseline": baseline if isinstance(baseline, str) else "default" if baseline is None else "given",
        "model": host.info.model,
        "players": players if isinstance(players, str) else "given",
    }


def _candidates(
    detector: Detector, split: Split, concepts: Sequence[str], scores: ScoreTable | None
) -> dict[str, tuple[list[_Chosen], int]]:
    """For each concept the samples to choose from, and how many have labels at all."""
    table = detector.scores_of(split, scores)
    tail = detector.superactivators(table)
    found: dict[str, tuple[list[_Chosen], int]] = {}
    for concept in concepts:
        column, own = table.tokens.concepts.index(concept), detector.concepts.index(concept)
        chosen, positive = [], 0
        for n, sample in enumerate(table.tokens.samples):
            rows = slice(table.tokens.bounds[n], table.tokens.bounds[n + 1])
            labels = table.tokens.labels[rows, column]
            # Samples with tokens of unknown label have no extent to hold an explanation against.
            said = table.tokens.known is None or bool(table.tokens.known[rows, column].all())
            positive += said and usable(labels)
            if said and usable(labels) and tail[rows, own].any():
                n_tail = int(tail[rows, own].sum())
                chosen.append(_Chosen(sample, table.tokens.position[rows], labels, n_tail))
        found[concept] = chosen, positive
    return found


def _draw(samples: Sequence[_Chosen], n: int, rng: np.random.Generator) -> list[_Chosen]:
    keep = sorted(rng.permutation(len(samples))[:n].tolist())
    return [samples[k] for k in keep]


def _concept(
    bench: _Bench, concept: str, held: Sequence[_Chosen], shown: Sequence[_Chosen]
) -> dict[str, int]:
    """Explain and measure one concept's samples; how many each method refused."""
    levels = _levels(bench, concept, held)
    refused = dict.fromkeys(bench.options, 0) if shown else {}
    for chosen in shown:
        for method in _measure(bench, concept, chosen, levels, example=chosen is shown[0]):
            refused[method] += 1
        bench.bar.update()
    return refused


def _levels(bench: _Bench, concept: str, samples: Sequence[_Chosen]) -> dict[tuple[str, str], float]:
    """The level of F1 for each method and objective, chosen on calibration samples."""
    seen: dict[tuple[str, str], list[Any]] = {}
    for chosen in samples:
        made = _objectives(bench, concept, chosen.sample)
        game = _game(bench, chosen.sample, made)
        for method, explanation in _explanations(bench, game, made, chosen.sample).items():
            for k, one in enumerate(made):
                values = explanation.importance[game.player_of[chosen.position], k]
                seen.setdefault((method, one.name), []).append((values, chosen.labels))
        bench.bar.update()
    return {key: choose_level(values) for key, values in seen.items()}


def _measure(
    bench: _Bench, concept: str, chosen: _Chosen, levels: Mapping[tuple[str, str], float], *, example: bool
) -> list[str]:
    """Explain and measure one test sample; the methods that refused it."""
    made = _objectives(bench, concept, chosen.sample)
    shared = yardsticks(bench.host, bench.detector, made[0], bench.probes.get(concept))
    sticks = (*shared, *(own_target(one) for one in made))
    arms = {one.name: len(shared) + k for k, one in enumerate(made)}
    game, deep = _game(bench, chosen.sample, made), _game(bench, chosen.sample, sticks)
    explanations = _explanations(bench, game, made, chosen.sample)

    def judge(method: str, name: str, importance: Float[np.ndarray, " player"], level: float) -> Trial:
        # Of the arms' own targets this arm's alone; an order that no explainer made has none.
        used = [*range(len(shared)), *([arms[name]] if name in arms else [])]
        areas = _areas(bench, deep, [(sticks[k].name, k) for k in used], (method, name), chosen, importance)
        values = importance[deep.player_of[chosen.position]]
        scores = sample_scores(values, chosen.labels, level)
        sample = chosen.sample
        return Trial(
            concept,
            sample.id,
            sample.document,
            method,
            name,
            scores,
            rank_share(values),
            chosen.labels,
            areas,
            chosen.n_tail,
        )

    refused = []
    for method in bench.options:
        # A method without a level refused every calibration sample.
        if method not in explanations or (method, made[0].name) not in levels:
            refused.append(method)
            continue
        explanation = explanations[method]
        if example:
            bench.examples.extend(
                as_results(game, chosen.sample, method, explanation, preset=bench.design.preset)
            )
        for k, one in enumerate(made):
            trial = judge(method, one.name, explanation.importance[:, k], levels[method, one.name])
            bench.trials.append(replace(trial, areas={**trial.areas, **_completeness(explanation, k)}))
    for name, order in zip(ORDERS, _control_orders(chosen, deep), strict=True):
        bench.trials.append(judge(CONTROL, name, order, _CONTROL_LEVEL))
    return refused


def _control_orders(chosen: _Chosen, game: CoalitionGame) -> tuple[np.ndarray, np.ndarray]:
    """The random order, and the same order with the labelled players put first."""
    # By the sample's name, so that every method, group of methods and run has the same order.
    rng = np.random.default_rng(crc32(chosen.sample.id.encode()))
    drawn = rng.permutation(game.n_players) / game.n_players
    labelled = np.zeros(game.n_players)
    np.maximum.at(labelled, game.player_of[chosen.position], chosen.labels.astype(float))
    return drawn, drawn + labelled


def _areas(
    bench: _Bench,
    game: CoalitionGame,
    sticks: Sequence[tuple[str, int]],
    key: tuple[str, str],
    chosen: _Chosen,
    importance: Float[np.ndarray, " player"],
) -> dict[str, float]:
    """Areas under insertion and deletion by yardsticks (name, column of the game); curves into `bench`."""
    both = curves(game, importance, n_steps=bench.design.curve_steps)
    areas = {}
    for kind in WAYS:
        values = getattr(both, kind)
        totals = area_under(both.share, values)
        for name, column in sticks:
            areas[f"{kind}/{name}"] = float(totals[column])
            line = chosen.sample.document, on_grid(both.share, values[:, column], _SHARES)
            bench.curves.setdefault((*key, kind, name), []).append(line)
    return areas


def _completeness(explanation: Importances, k: int) -> dict[str, float]:
    """Error of integrated gradients as a share of what it should add up to."""
    if "completeness_error" not in explanation.notes:
        return {}
    difference = abs(float(explanation.notes["difference"][k]))
    share = float(explanation.notes["completeness_error"][k]) / difference if difference else np.nan
    return {"completeness_error": share}


def _mean_curve(lines: Sequence[tuple[str, Float[np.ndarray, " share"]]], resampling: Resampling) -> Drawn:
    """The mean over samples at every share, with its interval over documents."""
    values = np.stack([line for _, line in lines])
    documents = np.unique([name for name, _ in lines], return_inverse=True)[1]
    resamples = left_out(documents, resampling)
    means = ratio(
        resampled_sums(values.T, resamples), resampled_sums(np.ones(len(values)), resamples), np.nan
    )
    return resamples.drawn(means, "mean", share=tuple(_SHARES.tolist()))


def _objectives(bench: _Bench, concept: str, sample: Sample) -> list[Objective]:
    return [
        objective(name, detector=bench.detector, concept=concept, sample=sample, host=bench.host)
        for name in bench.objectives
    ]


def _game(bench: _Bench, sample: Sample, readouts: Sequence[Readout]) -> CoalitionGame:
    asked = bench.design.players
    players = asked if isinstance(asked, str) else asked(bench.host, sample)
    game = coalition_game(bench.host, sample, list(readouts), baseline=bench.design.baseline, players=players)
    # One bar over samples is enough.
    return replace(game, progress=False)


def _explanations(
    bench: _Bench, game: CoalitionGame, made: Sequence[Objective], sample: Sample
) -> dict[str, Importances]:
    """Every method on the objectives of a game; refusals are left out."""
    found = {}
    for method, options in bench.options.items():
        if method == "mfaba":
            try:
                found[method] = _with_rivals(bench, game, made, sample, options)
            except Degenerate:
                continue
        else:
            found[method] = explain_game(game, method, preset=bench.design.preset, **options)
    return found


def _with_rivals(
    bench: _Bench, game: CoalitionGame, made: Sequence[Objective], sample: Sample, options: Mapping[str, Any]
) -> Importances:
    """MFABA against the same objective of the detector's other concepts."""
    parts = []
    for k, one in enumerate(made):
        others = [
            objective(
                one.name,
                detector=bench.detector,
                concept=other,
                sample=sample,
                host=bench.host,
                fallback="top_token",
            )
            for other in bench.detector.concepts
            if other != one.concept
        ]
        # Rivals differ by objective, so each objective is explained in a game of its own.
        alone = replace(game, objectives=(one,), sites=game.sites[k : k + 1], known={})
        rivals = _game(bench, sample, others) if others else None
        parts.append(explain_game(alone, "mfaba", preset=bench.design.preset, rivals=rivals, **options))
    return Importances(np.concatenate([part.importance for part in parts], axis=1), {})
