"""Explainers with one objective and another, on the same samples: is the swap worth it?

For every concept, calibration samples choose the level of F1 for each method and objective; test
samples are then explained and measured: localisation against the labels, insertion and deletion
against the yardsticks (`measure`). Samples without a SuperActivator are skipped and counted. One
coalition game a sample serves all objectives and perturbation methods, another, which goes on to
the probe's layer, all yardsticks and orders, so that a masked input is run once in each.

The comparison holds for this model, data, baseline and detector. A method may localise better and
be no more faithful, or the other way round; both are reported for each method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._names import require_known
from sa_plugin.attribution.attribute import METHODS, PRESETS
from sa_plugin.attribution.coalition_methods import COALITION_METHODS
from sa_plugin.attribution.comparison import Comparison, Coverage
from sa_plugin.attribution.engine import BATCH_TOKENS
from sa_plugin.attribution.faithfulness import N_STEPS
from sa_plugin.attribution.localisation import usable
from sa_plugin.attribution.measure import GRID, Chosen, Found, Plan, Players, levels, measure
from sa_plugin.attribution.paired import rows_of
from sa_plugin.attribution.yardsticks import PRIMARY, Probe, later_probes
from sa_plugin.data import ConceptData, Split
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_unseen, place
from sa_plugin.host import Host


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
    players: Players = "token",
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

    Cost, for each sample, concept and method: what the method costs (see `attribute`), and on test
    samples `2 n_steps` rows to the probe's layer for each objective, as for each of two control
    orders. Two more passes over the calibration and test splits, and with `probe` one over train
    and calibration.

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
        players: "token", "word", "kept" (attention sinks are never masked), or a function of host
            and sample that gives each token's player, such as `partial(superpatches, block=2)`; see
            `players`.
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
        host, detector, tuple(methods), tuple(objectives), preset, baseline, players,
        _seeded(methods, options or {}, seed), batch_tokens, steps,
    )  # fmt: skip
    probes = later_probes(host, data, detector, names) if probe else {}
    cal, test = (_candidates(detector, split, names) for split in (data.cal, data.test))
    found = Found()
    coverage = []
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
            known = levels(plan, concept, held, bar)
            refused = dict.fromkeys(methods, 0)
            for chosen in shown:
                first = chosen is shown[0]
                for method in measure(
                    plan, concept, chosen, known, probes.get(concept), found, example=first
                ):
                    refused[method] += 1
                bar.update()
            coverage.append(_covered(plan, concept, test, shown, held, refused, probes))
    if not found.measured:
        raise ValueError(
            "no sample could be compared: no concept has test and calibration samples with labels "
            "and a SuperActivator. Look at detector.evaluate(data.test) first."
        )
    settings = {
        "preset": preset, "primary_yardstick": PRIMARY, "seed": seed, "level": level,
        "draws": draws, "n_steps": steps, "baseline": baseline if isinstance(baseline, str) else
        "default" if baseline is None else "given", "model": host.info.model,
        "players": players if isinstance(players, str) else "given",
    }  # fmt: skip
    rows = rows_of(found.measured, objectives, draws=draws, seed=seed, level=level)
    means = {key: np.mean(values, axis=0) for key, values in found.curves.items()}
    return Comparison(
        plan.methods, plan.objectives, tuple(rows), tuple(coverage), means, GRID,
        tuple(found.examples), settings, tuple(found.measured),
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
