"""Advice: what will work at another length and span than the data at hand have.

Calibration chooses among poolings at the length it sees. What wins at another length it cannot see; the tail
law (`tail_law`) composes contexts of that length from the scores at hand and computes every pooling on them.
Beside the predicted AUROCs stand

    gain    of the pooling with the highest over the maximum, the two on the same contexts
    shift   how much higher a threshold must be to keep false alarms at `RATE` of the negatives, in deviations
            of the background: what the threshold calibrated here misses by
    alarms  share of negative contexts that would fire at the threshold calibrated here

The best pooling and every pooling's parameters are chosen on one simulation, and all numbers are of another:
the best of twenty on the contexts it was chosen on would look better than it is. Intervals are over source
documents, in at most `GROUPS` groups, each left out in turn: contexts that hold a sample of the group get
another instead, so the chance of the simulation is part of the interval. What was chosen stays.

At the length and span of the data the law knows less than the data do: there the advice is to calibrate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64, Shaped

from sa_plugin._check import position_of
from sa_plugin._face import face
from sa_plugin.detection.guard import document_names, labels_of
from sa_plugin.scores.table import DRAWN_CONCEPTS, ScoreTable
from sa_plugin.show.result import Result, Sheet, bounds_text, exact, number, short, signed
from sa_plugin.statistics.confusion import reaches
from sa_plugin.statistics.drawn import Drawn, Resampling, scarcer, stack
from sa_plugin.statistics.interval import Kind
from sa_plugin.statistics.ranking import auroc_of
from sa_plugin.theory.tail_inputs import TailInputs, measure_inputs
from sa_plugin.theory.tail_law import MAXIMUM, TIE, Constants, Context, Contexts, TailLaw, best_delta, pooled

RATE = 0.05
"""False-positive rate at which thresholds of two lengths are compared."""
GROUPS = 20
"""Of documents that are left out in turn: each costs one simulation more."""
SAME = 1.25
"""Lengths and spans within this factor are those of the data."""


@dataclass(frozen=True, eq=False, repr=False)
class Advice(Result):
    """What will work at another length and span.

    Attributes:
        context: The length and span asked about, of each concept.
        layer: Block index of each concept.
        auroc: Predicted, over concept and pooling.
        gain: Of the best pooling over the maximum, over concept.
        shift: Of the threshold, in background deviations, over concept.
        alarms: At the threshold calibrated here, over concept.
        best: Pooling of each concept: the maximum where none is better by more than a tie.
        parameters: Of every pooling with any, counted as in its grid, by concept.
        delta: Best delta here and there, of each concept.
        measured: What the prediction rests on (`tail_inputs`), of each concept.
        constants: What short samples do not tell.
        same: Concepts whose data have this length and span already.
    """

    context: Mapping[str, Context]
    layer: Mapping[str, int]
    auroc: Drawn
    gain: Drawn
    shift: Drawn
    alarms: Drawn
    best: Mapping[str, str]
    parameters: Mapping[str, Mapping[str, tuple[float, ...]]]
    delta: Mapping[str, tuple[float, float]]
    measured: Mapping[str, Mapping[str, float]]
    constants: Constants
    same: tuple[str, ...]

    about: ClassVar[str] = (
        "Predicted, not measured: scores inside long contexts are taken to be those of the samples at hand. "
        "Where such choices were tested, they paid barely on one seed and cost on another, where the pooling "
        "best on the short samples did better (docs/findings/tail_law.md): hold it against labelled contexts "
        "of that length. "
        "Intervals are over source documents with vectors, poolings and parameters held fixed."
    )

    @property
    def tokens(self) -> int:
        """The length asked about."""
        return next(iter(self.context.values())).tokens

    @property
    def concepts(self) -> tuple[str, ...]:
        """In the order of the tables."""
        return tuple(self.layer)

    def headline(self) -> str:
        """What to use, or that nothing is added."""
        n = self.tokens
        if len(self.same) == len(self.concepts):
            return f"at {n} tokens, the length and span of these data, this adds nothing: calibrate on them"
        won = [c for c in self.concepts if self.best[c] != MAXIMUM]
        words = f"at {n} tokens the maximum is best or tied for {len(self.concepts) - len(won)} of "
        words += f"{len(self.concepts)} concepts"
        if not won:
            return words
        top = max(won, key=lambda c: float(self.gain.sel(concept=c).estimate))
        gain = self.gain.sel(concept=top)
        told = "" if bool(gain.excludes_zero) else ", which cannot be told from none"
        words += f"; most is gained for {top}: {self.best[top]}, {signed(gain.estimate, 2)} AUROC"
        return f"{words} {bounds_text(gain, 2, sign=True)}{told}"

    def sheets(self) -> tuple[Sheet, ...]:
        """What to use, every pooling's predicted AUROC, and what the prediction rests on."""
        return self._choice(), self._poolings(), self._inputs()

    def _choice(self) -> Sheet:
        lines = []
        for c in self.concepts:
            own = self.parameters[c].get(self.best[c], ())
            said = f"{self.best[c]} ({', '.join(f'{p:.3g}' for p in own)})" if own else self.best[c]
            here, there = self.delta[c]
            lines.append(
                [
                    c,
                    str(self.layer[c]),
                    short(self.auroc.sel(concept=c, pooling=MAXIMUM), 2),
                    said,
                    "-" if self.best[c] == MAXIMUM else short(self.gain.sel(concept=c), 2, sign=True),
                    f"{here:g}, {there:g}",
                    short(self.shift.sel(concept=c), 2, sign=True),
                    short(self.alarms.sel(concept=c), 2),
                ]
            )
        header = ["concept", "layer", "AUROC of max", "best pooling", "gain", "delta here, there"]
        header += ["threshold, sd", f"alarms at today's {100 * RATE:g} %"]
        notes = [
            f"The maximum (SuperActivators, MaxTok) stands where nothing beats it by more than {TIE:g}. "
            "Gain is on other simulated contexts than chose the pooling."
        ]
        if self.same:
            names = ", ".join(self.same)
            notes.append(
                f"The data have this length and span already, within a factor of {SAME:g}, for {names}: "
                "there this adds nothing, calibrate and evaluate on them."
            )
        spans = sorted({round(one.in_concept, 1) for one in self.context.values()})
        span = f"{spans[0]:g}" if len(spans) == 1 else f"{spans[0]:g} to {spans[-1]:g}"
        title = f"Predicted at {self.tokens} tokens, {span} of them in the concept in a positive context."
        return Sheet(header, lines, title, notes)

    def _poolings(self) -> Sheet:
        names = sorted(
            self.auroc.axes["pooling"], key=lambda n: -float(self.auroc.sel(pooling=n).estimate.mean())
        )
        lines = [
            [n, *(number(self.auroc.sel(concept=c, pooling=n).estimate, 2) for c in self.concepts)]
            for n in names
        ]
        title = "Predicted AUROC of every pooling at its best parameters; intervals in .table()."
        return Sheet(["pooling", *self.concepts], lines, title)

    def _inputs(self) -> Sheet:
        names = list(next(iter(self.measured.values())))
        lines = [[c, *(number(self.measured[c][n], 2) for n in names)] for c in self.concepts]
        held = self.constants
        note = (
            "N tokens a sample, m of them in the concept, in so many runs; d, sigma_in: how far these lie "
            "above the background, and their deviation; kappa: how far other tokens of positive samples do; "
            "rho, rho_in: correlation within a document, within the concept; xi: tail index, above .15 "
            "heavy; theta: 1 where tokens are independent. Not measured: samples of a context share "
            f"{held.shared:g} of a document's effect, kappa reaches {held.reach:g} of it beyond its own."
        )
        return Sheet(["concept", *names], lines, "Measured on these scores.", [note])

    def rows(self) -> list[dict[str, Any]]:
        """Every predicted number with its interval, then what was measured."""
        inputs = [exact(k, v, concept=c) for c, each in self.measured.items() for k, v in each.items()]
        return [*super().rows(), *inputs]

    def plot(self) -> Any:
        """Predicted AUROC of every pooling, by concept."""
        from sa_plugin.show import plots

        drawn = self.concepts[:DRAWN_CONCEPTS]
        columns = min(len(drawn), 3)
        rows = -(-len(drawn) // columns)
        figure, axes = plots.new_figure(3.6 * columns + 0.8, 3.0 * rows + 0.4, rows=rows, columns=columns)
        for k, ax in enumerate(np.ravel(axes)):
            if k >= len(drawn):
                ax.set_axis_off()
                continue
            one = self.auroc.sel(concept=drawn[k])
            order = np.argsort(-one.estimate, kind="stable")
            one = one.sel(pooling=[one.axes["pooling"][j] for j in order])
            names = one.axes["pooling"]
            own = {MAXIMUM: plots.TAIL_COLOUR, self.best[drawn[k]]: plots.IN_COLOUR}
            own |= {MAXIMUM: plots.TAIL_COLOUR}
            plots.whiskers(ax, one, colours=[own.get(n, plots.OUT_COLOUR) for n in names])
            plots.zero(ax, at=float(one.sel(pooling=MAXIMUM).estimate))
            x = "predicted AUROC" if k >= len(drawn) - columns else ""
            plots.words(ax, title=f"{drawn[k]}, layer {self.layer[drawn[k]]}", x=x)
        left = len(self.concepts) - len(drawn)
        rest = f" {left} more concepts are not drawn." if left else ""
        words = f"At {self.tokens} tokens. Orange: the maximum; blue: what beats it by more than {TIE:g}."
        plots.note(figure, words + rest, self.auroc)
        return figure


@face
def advise(
    scores: ScoreTable,
    concepts: Sequence[str] | None = None,
    *,
    tokens: int,
    in_concept: float | None = None,
    runs: int | None = None,
    layer: int | None = None,
    samples: int = 500,
    constants: Constants = Constants(),
    resampling: Resampling = Resampling(),
) -> Advice:
    """Predict which pooling will work at another length and span than these scores have.

    Costs no pass over a model; some seconds a concept at 64 tokens, a minute at 4,096.

    Args:
        scores: Labelled scores of samples at one length, of a split that the vectors were not fitted on, such
            as `score(host, data, bank, splits=("cal",))`.
        concepts: Which; by default all that the bank has vectors of.
        tokens: Length of the contexts asked about.
        in_concept: Mean in-concept tokens of a positive context, by default as many as these samples have.
        runs: Into how many runs they fall, by default as here.
        layer: Block index; by default each concept's layer of the largest gap between means.
        samples: Simulated contexts of either class.
        constants: What short samples do not tell of longer contexts.
        resampling: Level of the intervals; its seed is that of the simulation too.

    Returns:
        Predicted AUROCs, gain over the maximum, best delta, and the shift of the threshold.

    Raises:
        ValueError: The bank has no concepts; a concept has no labelled token, no sample is without it, or
            either comes from fewer than three documents; a length, span or number of samples is below 1.

    Example:
        >>> sa.advise(scores, tokens=4096, in_concept=2)  # doctest: +SKIP
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}: simulate at least one context of either class, such as 500.")
    Context(tokens, 1.0 if in_concept is None else in_concept, 1 if runs is None else runs)
    if not scores.bank.supervised:
        raise ValueError(
            f"the units of a {scores.bank.kind} bank are no concepts: give scores of a bank with one vector "
            "a concept, such as a prototype."
        )
    names = tuple(scores.bank.concepts if concepts is None else concepts)
    if not names:
        raise ValueError("concepts is empty: name at least one, or leave it out for all.")
    home = _groups(document_names(scores.tokens), resampling.seed)
    laws: dict[str, TailLaw] = {}
    layers: dict[str, int] = {}
    for name in names:
        inputs, layers[name] = _inputs_of(scores, name, layer)
        laws[name] = TailLaw(
            inputs,
            _context_of(inputs, tokens, in_concept, runs),
            samples=samples,
            seed=resampling.seed,
            constants=constants,
        )
    said = {name: _Said(law, home, resampling) for name, law in laws.items()}
    return Advice(
        {name: law.context for name, law in laws.items()},
        layers,
        stack({name: one.auroc for name, one in said.items()}, "concept"),
        stack({name: one.gain for name, one in said.items()}, "concept"),
        stack({name: one.shift for name, one in said.items()}, "concept"),
        stack({name: one.alarms for name, one in said.items()}, "concept"),
        {name: one.prediction.best for name, one in said.items()},
        {name: {k: v for k, v in one.prediction.parameters.items() if v} for name, one in said.items()},
        {name: (one.delta, one.prediction.delta) for name, one in said.items()},
        {name: law.inputs.measured() for name, law in laws.items()},
        constants,
        tuple(name for name, law in laws.items() if _is_here(law)),
    )


def _context_of(inputs: TailInputs, tokens: int, in_concept: float | None, runs: int | None) -> Context:
    m = min(inputs.in_concept, tokens) if in_concept is None else in_concept
    return Context(tokens, m, max(round(inputs.runs_each), 1) if runs is None else runs)


def _is_here(law: TailLaw) -> bool:
    """Whether the data have the length and span asked about."""
    x, context = law.inputs, law.context
    ratios = (context.tokens / x.tokens, context.in_concept / x.in_concept)
    return all(1 / SAME <= ratio <= SAME for ratio in ratios)


def _inputs_of(scores: ScoreTable, concept: str, layer: int | None) -> tuple[TailInputs, int]:
    """Of one concept, and the block index: given, or that of the largest gap between means."""
    unit = position_of(concept, scores.bank.concepts, "the bank's concepts")
    tokens, sample = labels_of(scores, (concept,))
    labels, positive = tokens[:, 0], sample[:, 0]
    places = range(len(scores.bank.layers)) if layer is None else [scores.bank.index(layer)]
    documents = document_names(scores.tokens)
    found = [
        measure_inputs(
            np.ascontiguousarray(scores.scores[:, place, unit]),
            labels,
            scores.tokens.bounds,
            documents,
            positive=positive,
            concept=concept,
        )
        for place in places
    ]
    best = int(np.argmax([(float(one.inside.mean()) - one.mean) / one.sd for one in found]))
    return found[best], scores.bank.layers[places[best]]


def _groups(documents: Shaped[np.ndarray, " sample"], seed: int) -> dict[str, int]:
    """Group of every source document: its own, or one of `GROUPS` of like size drawn by chance."""
    names = np.unique(documents)
    order = np.arange(len(names))
    if len(names) > GROUPS:
        order = np.random.default_rng(seed).permutation(len(names)) % GROUPS
    return dict(zip(names.tolist(), order.tolist(), strict=True))


class _Said:
    """One concept's numbers with themselves without each group of documents."""

    def __init__(self, law: TailLaw, home: Mapping[str, int], resampling: Resampling) -> None:
        x = law.inputs
        self.level, self.groups = resampling.level, max(home.values()) + 1
        back, held = (
            np.array([home[name] for name in of.tolist()]) for of in (x.background_document, x.document)
        )
        negatives = np.bincount(back, minlength=self.groups).astype(np.float64)
        positives = np.bincount(held, minlength=self.groups).astype(np.float64)
        carried = scarcer(positives, negatives)
        highest = np.maximum.reduceat(x.background, x.bounds[:-1]).astype(np.float64)

        self.prediction = law.prediction()
        law = law.again(resampling.seed + 1)
        whole = law.contexts()
        self.delta = best_delta(x.highest.astype(np.float64), highest, x.inside, x.prevalence)[0]
        names = tuple(self.prediction.auroc)
        columns = np.full((len(names) + 2, 1 + self.groups), np.nan)
        for column in range(1 + self.groups):
            out, gone = back == column - 1, held == column - 1
            if column and (out.all() or gone.all()):
                continue
            drawn = law.contexts(out, gone) if column else whole
            here = float(np.quantile(highest[~out], 1 - RATE))
            columns[:, column] = self._column(law, drawn, here)
        self.auroc = self._drawn(columns[:-2], "share", carried, pooling=names)
        best, maximum = (columns[names.index(one)] for one in (self.prediction.best, MAXIMUM))
        self.gain = self._drawn(best - maximum, "difference", carried)
        self.shift = self._drawn(columns[-2], "mean", negatives)
        self.alarms = self._drawn(columns[-1], "share", negatives)

    def _column(self, law: TailLaw, contexts: Contexts, here: float) -> list[float]:
        """AUROC of every pooling at its parameters, then shift and alarms."""
        x, half = law.inputs, contexts.half
        found, maxima = [], np.zeros(0)
        for name, _, values in pooled(contexts, x.prevalence, self.prediction.parameters):
            found.append(auroc_of(values[:half], values[half:]))
            maxima = values[half:] if name == MAXIMUM else maxima
        there = float(np.quantile(maxima, 1 - RATE))
        return [*found, (there - here) / x.sd, float(reaches(maxima, here).mean())]

    def _drawn(
        self, values: Float64[np.ndarray, "*axes column"], kind: Kind, carried: np.ndarray, **axes: Any
    ) -> Drawn:
        return Drawn(values, axes, np.asarray(kind), carried, self.level)
