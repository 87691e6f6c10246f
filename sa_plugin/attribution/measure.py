"""One sample explained and measured, for `compare`.

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
from sa_plugin.attribution.comparison import CurveKey
from sa_plugin.attribution.engine import CoalitionGame, Readout, coalition_game
from sa_plugin.attribution.faithfulness import KINDS, area, curves, on_grid
from sa_plugin.attribution.localisation import choose_level, rank_share, sample_scores
from sa_plugin.attribution.mfaba import Degenerate
from sa_plugin.attribution.paired import CONTROL, ORDERS, Measured
from sa_plugin.attribution.result import Attribution, Explained
from sa_plugin.attribution.yardsticks import Probe, Yardstick, yardsticks
from sa_plugin.detection.detector import Detector
from sa_plugin.host import Host
from sa_plugin.objectives import Objective, objective
from sa_plugin.samples import Sample

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
    batch_tokens: int
    n_steps: int


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured so far, filled sample by sample."""

    measured: list[Measured] = field(default_factory=list)
    curves: dict[CurveKey, list[Float[np.ndarray, " point"]]] = field(default_factory=dict)
    examples: list[Attribution] = field(default_factory=list)


def levels(
    plan: Plan, concept: str, samples: Sequence[Chosen], bar: Any
) -> dict[tuple[str, str], float]:
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
            found.measured.append(
                _measured(concept, chosen, own, method, one.name, importance, level, areas)
            )
    found.measured.extend(_controls(plan, concept, chosen, game, sticks, found))
    return refused


def _controls(
    plan: Plan,
    concept: str,
    chosen: Chosen,
    game: CoalitionGame,
    sticks: Sequence[Yardstick],
    found: Found,
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
        concept, chosen.sample.id, chosen.sample.document, method, name,
        sample_scores(values, chosen.labels, level), rank_share(values), chosen.labels, areas,
    )  # fmt: skip


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
    return coalition_game(
        plan.host, sample, list(readouts), baseline=plan.baseline, players=chosen,
        batch_tokens=plan.batch_tokens,
    )  # fmt: skip


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
    plan: Plan,
    game: CoalitionGame,
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
        alone = replace(game, objectives=(one,), sites=game.sites[k : k + 1], known={})
        rivals = _game(plan, sample, others) if others else None
        parts.append(run(alone, "mfaba", preset=plan.preset, rivals=rivals, **options))
    return Explained(np.concatenate([part.importance for part in parts], axis=1), {})
