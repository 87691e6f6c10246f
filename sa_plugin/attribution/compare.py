"""What `compare` found: a table, curves, and heat maps of one sample.

Explainers with one objective and another, on the same samples: is the swap worth it?

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
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import position_of, require, require_known
from sa_plugin.attribution.attribute import METHODS, PRESETS
from sa_plugin.attribution.coalitions import COALITION_METHODS
from sa_plugin.attribution.explained import Attribution, heat_map
from sa_plugin.attribution.faithful import (
    GRID,
    ORDERS,
    Chosen,
    CurveKey,
    Found,
    Measured,
    Plan,
    Players,
    Row,
    control_rows,
    levels,
    measure,
    rows_of,
)
from sa_plugin.attribution.yardsticks import N_STEPS, PRIMARY, Probe, later_probes, usable
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_unseen
from sa_plugin.host.protocol import Host
from sa_plugin.show.result import aligned, as_html, frame, number, plain, signed

HEADLINE = ("f1", "average_precision", "pointing", "insertion/mean_alignment", "deletion/mean_alignment")


@dataclass(frozen=True)
class Coverage:
    """Which samples could be compared for one concept.

    Attributes:
        concept: Name.
        layer: Block its objectives read.
        positive: Test samples with labelled and unlabelled tokens.
        covered: Those with a SuperActivator; the others are skipped.
        compared: Those drawn for the comparison.
        cal: Calibration samples that the level of F1 was chosen on.
        refused: By method, samples it refused.
        probe: AUROC of the later probe on calibration; None without one.
    """

    concept: str
    layer: int
    positive: int
    covered: int
    compared: int
    cal: int
    refused: Mapping[str, int]
    probe: float | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Objectives side by side; made by `compare`.

    Attributes:
        methods: Explainers.
        objectives: The first is what the others are compared with.
        rows: Every metric by concept and method, with paired differences.
        coverage: By concept.
        curves: Mean curves at `grid`, over all samples of all concepts.
        grid: Shares of the players.
        examples: One sample of each concept, every method and objective.
        settings: What it ran with, the primary yardstick among them.
        measured: What the rows are made of, sample by sample, controls among them.
    """

    methods: tuple[str, ...]
    objectives: tuple[str, ...]
    rows: tuple[Row, ...]
    coverage: tuple[Coverage, ...]
    curves: Mapping[CurveKey, Float[np.ndarray, " point"]]
    grid: Float[np.ndarray, " point"]
    examples: tuple[Attribution, ...] = field(repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    measured: tuple[Measured, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        samples = sum(one.compared for one in self.coverage)
        return (
            f"Comparison({list(self.objectives)}, {len(self.methods)} methods, "
            f"{len(self.coverage)} concepts, {samples} samples)"
        )

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def text(self, metrics: Sequence[str] = HEADLINE, concept: str | None = None) -> str:
        """Method x objective x metric as text, an asterisk where the interval excludes zero.

        Args:
            metrics: Which rows.
            concept: By default all concepts together.
        """
        concept = self._overall if concept is None else concept
        shown = [r for r in self.rows if r.concept == concept and r.metric in metrics]
        names = list(self.objectives)
        header = ["method", "metric", *names, *(f"{o} - {names[0]}" for o in names[1:]), "n"]
        lines = []
        for row in shown:
            cells = [row.method, f"{row.metric} ({row.better})"]
            cells += [number(row.values[o].estimate) for o in names]
            for name in names[1:]:
                d = row.differences[name]
                mark = "*" if d.excludes_zero else " "
                cells.append(f"{signed(d.estimate)}{mark} [{signed(d.low)}, {signed(d.high)}]")
            lines.append([*cells, str(row.n_samples)])
        notes = [
            f"{c.concept}: {c.compared} of {c.covered} samples with a SuperActivator compared, "
            f"{c.positive - c.covered} of {c.positive} skipped without one."
            for c in self.coverage
            if concept in (c.concept, "all")
        ]
        refused = {m for c in self.coverage for m, n in c.refused.items() if n}
        if refused:
            notes.append(f"Some samples were refused by {', '.join(sorted(refused))}.")
        blind = [r.metric for r in self._controls_of(concept) if r.wins[ORDERS[1]] != "better"]
        if blind:
            notes.append(
                "Do not judge by these, which do not prefer the labelled tokens to a random order "
                f"here: {', '.join(blind)}."
            )
        level = f"{100 * float(self.settings.get('level', 0.95)):g} % intervals over documents"
        notes.append(f"{level}, paired, not adjusted for the number of rows.")
        return "\n".join([aligned(header, lines), *notes])

    @property
    def controls(self) -> list[Row]:
        """The labelled tokens first against a random order, by yardstick; see `control_rows`."""
        wanted = {k: self.settings[k] for k in ("draws", "seed", "level") if k in self.settings}
        return control_rows(self.measured, **wanted)

    def _controls_of(self, concept: str) -> list[Row]:
        return [row for row in self.controls if row.concept == concept]

    def table(self) -> Any:
        """Every row: a pandas DataFrame where pandas is installed."""
        return frame([self._flat(row) for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Every number, JSON-ready; what is not defined is None."""
        curves = [
            {"method": m, "objective": o, "kind": k, "yardstick": y, "values": values}
            for (m, o, k, y), values in self.curves.items()
        ]
        found = {
            "settings": self.settings,
            "rows": [self._flat(row) for row in self.rows],
            "coverage": [asdict(one) for one in self.coverage],
            "grid": self.grid,
            "curves": curves,
        }
        return dict(plain(found))

    def heat_map(self, concept: str | None = None) -> str:
        """Side-by-side maps of one sample, as HTML.

        Args:
            concept: By default the first.

        Raises:
            ValueError: Unknown concept.
        """
        known = list(dict.fromkeys(one.concept for one in self.examples))
        concept = known[0] if concept is None else concept
        require_known("concept", concept, known)
        return heat_map([one for one in self.examples if one.concept == concept])

    def plot(self, metric: str = "f1", *, ax: Any = None) -> Any:
        """Bars of every method and objective, with intervals.

        Args:
            metric: One of the rows'.
            ax: Where to draw; by default a new figure.

        Raises:
            ValueError: Unknown metric.
        """
        rows = [r for r in self.rows if r.concept == self._overall]
        require_known("metric", metric, dict.fromkeys(r.metric for r in rows))
        chosen = [r for r in rows if r.metric == metric]
        ax = _axes(ax)
        width = 0.8 / len(self.objectives)
        for k, name in enumerate(self.objectives):
            found = [r.values[name] for r in chosen]
            at = np.arange(len(chosen)) + (k - (len(self.objectives) - 1) / 2) * width
            estimate = np.array([v.estimate for v in found])
            reach = np.array([[v.estimate - v.low, v.high - v.estimate] for v in found]).T
            ax.bar(at, estimate, width, yerr=np.clip(reach, 0, None), label=name)
        ax.set_xticks(range(len(chosen)), [r.method for r in chosen], rotation=30, ha="right")
        ax.set_ylabel(f"{metric} ({chosen[0].better} is better)")
        ax.legend()
        return ax

    def plot_curves(
        self, method: str, kind: str = "insertion", yardstick: str = "mean_alignment", *, ax: Any = None
    ) -> Any:
        """Mean insertion or deletion curves of one method.

        Args:
            method: Explainer.
            kind: "insertion" or "deletion".
            yardstick: What is read.
            ax: Where to draw; by default a new figure.

        Raises:
            ValueError: There is no such curve.
        """
        for position, (what, name) in enumerate(
            (("method", method), ("kind", kind), ("yardstick", yardstick))
        ):
            place = (0, 2, 3)[position]
            mine = [key[place] for key in self.curves if key[1] in self.objectives]
            require_known(what, name, dict.fromkeys(mine))
        ax = _axes(ax)
        for name in self.objectives:
            ax.plot(self.grid, self.curves[method, name, kind, yardstick], label=name)
        ax.set_xlabel("share of tokens put in" if kind == "insertion" else "share taken out")
        ax.set_ylabel(yardstick)
        ax.set_title(f"{method}, {kind}")
        ax.legend()
        return ax

    @property
    def _overall(self) -> str:
        return "all" if len(self.coverage) > 1 else self.coverage[0].concept

    def _flat(self, row: Row) -> dict[str, Any]:
        flat: dict[str, Any] = {
            "concept": row.concept,
            "method": row.method,
            "metric": row.metric,
            "better": row.better,
            "n_samples": row.n_samples,
        }
        for name, value in row.values.items():
            flat |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        for name, value in row.differences.items():
            flat |= {
                f"{name}_difference": value.estimate,
                f"{name}_difference_low": value.low,
                f"{name}_difference_high": value.high,
                f"{name}_is": row.wins[name],
            }
        return flat


def _axes(ax: Any) -> Any:
    return require("matplotlib.pyplot", "plot").subplots()[1] if ax is None else ax


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
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
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
        draws: Bootstrap resamples of source documents.
        seed: Of sampling, explainers and resamples.
        level: Of the intervals.

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
        position_of(concept, detector.concepts)
    check_unseen(data.test, detector.seen)
    steps = N_STEPS[preset] if n_steps is None else n_steps
    plan = Plan(
        host,
        detector,
        tuple(methods),
        tuple(objectives),
        preset,
        baseline,
        players,
        _seeded(methods, options or {}, seed),
        steps,
    )
    probes = later_probes(host, data, detector, names) if probe else {}
    cal, test = (_candidates(detector, split, names) for split in (data.cal, data.test))
    found = Found()
    coverage = []
    total = sum(min(n_test, len(test[c][0])) + min(n_cal, len(cal[c][0])) for c in names)
    with tqdm(total=total, desc="explaining", disable=not host.progress) as bar:
        for concept in names:
            if not test[concept][0] or not cal[concept][0]:
                coverage.append(_covered(plan, concept, test, [], [], {}, probes))
                continue
            rng = np.random.default_rng(seed)
            held, shown = (_draw(of[concept][0], n, rng) for of, n in ((cal, n_cal), (test, n_test)))
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
        "preset": preset,
        "primary_yardstick": PRIMARY,
        "seed": seed,
        "level": level,
        "draws": draws,
        "n_steps": steps,
        "baseline": baseline if isinstance(baseline, str) else "default" if baseline is None else "given",
        "model": host.info.model,
        "players": players if isinstance(players, str) else "given",
    }
    rows = rows_of(found.measured, objectives, draws=draws, seed=seed, level=level)
    means = {key: np.mean(values, axis=0) for key, values in found.curves.items()}
    return Comparison(
        plan.methods,
        plan.objectives,
        tuple(rows),
        tuple(coverage),
        means,
        GRID,
        tuple(found.examples),
        settings,
        tuple(found.measured),
    )


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
        concept,
        plan.detector.layer[concept],
        positive,
        len(covered),
        len(shown),
        len(held),
        dict(refused),
        known,
    )
