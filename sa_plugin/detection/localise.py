"""Localisation: which tokens carry a concept, in the paper's two stages, and how well they agree.

    detected[n, c] = max_t s[t, c] >= tau_c(delta*)
    token t carries c  iff  its sample is detected and s[t, c] >= tau_c(p_inv),   p_inv >= delta*

with p_inv chosen from the grid by token F1 on the calibration split, ties to the smaller
(arXiv 2512.05038, direct alignment with the global vector). Beside it, at the same layer and unit:
`raw`, the threshold from the same grid with the best calibration token F1, without gating by
detection; the SuperActivators alone; all-positive.

Agreement with token labels, each way to mark tokens with the tokens it leaves standing as
candidates:

    raw              scores at or above the raw threshold; all tokens stand
    SuperActivators  scores at or above the detection threshold; only those tokens stand
    localised        the two-stage rule; tokens of detected samples stand
    all-positive     every token; none stands out

F1 is that of the marks. Average precision and AUROC rank standing tokens by their score above all
others, which tie. Every token of the split counts, for each concept, but those whose label is unknown;
means over concepts weigh by in-concept tokens. A concept without in-concept tokens is not defined and
left out.

F1 against labels of a dictionary says how well tokens agree with the dictionary, not where the
model's evidence lies: a SuperActivator beside a labelled word counts as an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin._check import position_of
from sa_plugin.data.concept_data import Split
from sa_plugin.detection.calibration import Calibration, sample_max
from sa_plugin.detection.evaluate import Ground
from sa_plugin.detection.guard import document_names, known_tokens, unknown_of
from sa_plugin.detection.items import ScoredSamples, item_sheet, items_figure, items_html, left_over_sheet
from sa_plugin.detection.measures import f1_of, positives_of
from sa_plugin.passes.layout import TokenTable
from sa_plugin.show.result import (
    FORMAT,
    Result,
    Sheet,
    Shown,
    bounds_text,
    clean,
    exact,
    noun_count,
    number,
    signed,
)
from sa_plugin.statistics.bootstrap import mean_over_concepts, resample_documents, resampled_confusion
from sa_plugin.statistics.confusion import reaches
from sa_plugin.statistics.drawn import Drawn, Resampling, stack
from sa_plugin.statistics.ranking import auroc, average_precision

RAW, MARKED, LOCALISED, EVERY = "raw", "SuperActivators", "localised", "all-positive"


@dataclass(frozen=True, eq=False, repr=False)
class Localisation(Shown):
    """Which tokens of some samples carry which concept.

    Attributes:
        scored: The samples and the scores of their tokens at each concept's own layer.
        mask: Tokens that carry the concept by the two-stage rule.
        superactivators: Tokens at or above the detection threshold.
        raw: Tokens at or above the raw threshold.
    """

    scored: ScoredSamples
    mask: Bool[np.ndarray, "token concept"]
    superactivators: Bool[np.ndarray, "token concept"]
    raw: Bool[np.ndarray, "token concept"]

    text_keys: ClassVar[tuple[str, ...]] = ("token",)
    about: ClassVar[str] = (
        "Localised tokens lie above a lower threshold than SuperActivators do, inside detected samples. How "
        "far they agree with labels, Detector.evaluate_tokens says."
    )

    @property
    def tokens(self) -> TokenTable:
        """What the rows are."""
        return self.scored.tokens

    @property
    def concepts(self) -> tuple[str, ...]:
        """What the columns are."""
        return self.scored.calibration.concepts

    @property
    def scores(self) -> Float[np.ndarray, "token concept"]:
        """Score at each concept's own layer, float64."""
        return self.scored.scores

    @property
    def detected(self) -> Bool[np.ndarray, "sample concept"]:
        """Which samples hold a SuperActivator of which concept."""
        found = np.zeros((self.tokens.n_samples, len(self.concepts)), dtype=bool)
        np.logical_or.at(found, self.tokens.sample_of, self.superactivators)
        return found

    def of(self, concept: str) -> list[tuple[str, int, int]]:
        """`(sample, start, end)` of every token that carries a concept.

        Raises:
            ValueError: Unknown concept; the text names the nearest.
        """
        rows = np.flatnonzero(self.mask[:, position_of(concept, self.concepts)])
        return [
            (self.tokens.samples[self.tokens.sample_of[row]].id, *map(int, self.tokens.offsets[row]))
            for row in rows
        ]

    def _items(self) -> tuple[list[dict[str, Any]], int]:
        """What is drawn, localised tokens in place of SuperActivators, and how much is left."""
        pairs = [(int(n), int(c)) for n, c in np.argwhere(self.detected)] or self.scored.nearest()
        calibration, bounds = self.scored.calibration, self.tokens.bounds
        cut = _located(calibration)
        items = []
        for (n, c), item in zip(pairs, self.scored.items(pairs), strict=False):
            marks = self.mask[bounds[n] : bounds[n + 1], c].tolist()
            bar = float(cut[c]) if np.isfinite(cut[c]) else None
            items.append({**item, "superactivator": marks, "threshold": bar, "marks": "Localised tokens"})
        return items, len(pairs) - len(items)

    def headline(self) -> str:
        """How many tokens carry a concept."""
        return (
            f"{noun_count(self.tokens.n_samples, 'sample')}, {noun_count(len(self.concepts), 'concept')}, "
            f"{int(self.mask.sum())} of "
            f"{self.mask.size} token marks set"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """Each text with its localised tokens, beside its highest raw activations."""
        items, left = self._items()
        return (*map(item_sheet, items), *left_over_sheet(left))

    def rows(self) -> list[dict[str, Any]]:
        """The score of every token that carries a concept."""
        tokens, found = self.tokens, []
        for row, c in np.argwhere(self.mask):
            sample = tokens.samples[tokens.sample_of[row]].id
            labels = {"sample": sample, "concept": self.concepts[c], "token": tokens.text(int(row))}
            edges = dict(zip(_EDGES[tokens.offsets.shape[1]], tokens.offsets[row].tolist(), strict=True))
            found.append(exact("score", self.scores[row, c], **labels, **edges))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The tokens that carry a concept."""
        return {"format": FORMAT, "kind": "Localisation", "tokens": clean(self.rows())}

    def plot(self) -> Any:
        """Scores along each text with the threshold, or the pictures with their marked patches."""
        about = "Agreement with labels is not evidence."
        return items_figure(self.tokens, self._items()[0], "localised tokens", about)

    def _repr_html_(self) -> str:
        items, left = self._items()
        return items_html(self, items, (), left)


# Characters of a token, or the box of a patch in pixels.
_EDGES = {2: ("start", "end"), 4: ("top", "left", "bottom", "right")}


def localise(scored: ScoredSamples) -> Localisation:
    """Mark tokens; see `Detector.localise`."""
    calibration, at = scored.calibration, scored.scores
    cuts, tau = calibration.cuts, calibration.tail.chosen_threshold
    detected = reaches(sample_max(at, scored.tokens.bounds), tau)
    return Localisation(
        scored,
        mask=reaches(at, _located(calibration)) & detected[scored.tokens.sample_of],
        superactivators=reaches(at, tau),
        raw=reaches(at, calibration.threshold_at(cuts.raw)),
    )


def _located(calibration: Calibration) -> Float[np.ndarray, " concept"]:
    """Thresholds of tokens; stricter than detection's they would leave detected samples without a token."""
    located = calibration.threshold_at(calibration.cuts.located)
    return np.asarray(np.minimum(located, calibration.tail.chosen_threshold))


@dataclass(frozen=True, eq=False, repr=False)
class LocalisationMetrics(Result):
    """Token-level metrics of every way to mark tokens.

    Attributes:
        f1: Weighted over concepts, by method.
        concept_f1: By method and concept.
        average_precision, auroc: By method to their values by concept.
        weighted: "average_precision" and "auroc" by method, weighted over concepts.
        n_tokens: In-concept tokens of each concept; concepts with none are left out of means.
        ground: Split, counts, resampling.
    """

    f1: Drawn
    concept_f1: Drawn
    average_precision: Mapping[str, Float[np.ndarray, " concept"]]
    auroc: Mapping[str, Float[np.ndarray, " concept"]]
    weighted: Mapping[str, Mapping[str, float]]
    n_tokens: Mapping[str, int]
    ground: Ground

    about: ClassVar[str] = (
        "Labels of a dictionary or a mask say what agrees with them, not where the model's evidence lies: a "
        "SuperActivator beside a labelled token counts as an error. Intervals are conditional on train and "
        "calibration."
    )

    @property
    def methods(self) -> tuple[str, ...]:
        """Ways to mark tokens."""
        return tuple(self.f1.axes["method"])

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names."""
        return tuple(self.n_tokens)

    @property
    def difference(self) -> Drawn:
        """Weighted F1 of every other method minus that of raw scores, paired."""
        raw = self.f1.sel(method=RAW)
        return stack({name: self.f1.sel(method=name) - raw for name in self.methods if name != RAW}, "method")

    def headline(self) -> str:
        """The split and token F1 of every method."""
        f1 = zip(self.methods, self.f1.estimate, strict=True)
        return (
            f"{self.ground.split!r}, token F1: {', '.join(f'{name} {number(value)}' for name, value in f1)}"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """One row a method."""
        level = f"{100 * self.ground.resampling.level:g} % interval"
        by = self.difference
        lines = []
        for name in self.methods:
            f1 = self.f1.sel(method=name)
            areas = (self.weighted[part][name] for part in ("average_precision", "auroc"))
            cells = [name, number(f1.estimate), bounds_text(f1), *map(number, areas)]
            if name == RAW:
                cells += ["", ""]
            else:
                one = by.sel(method=name)
                cells += [signed(one.estimate), bounds_text(one, sign=True)]
            lines.append(cells)
        skipped = [concept for concept, n in self.n_tokens.items() if not n]
        notes = [f"Weighted by in-concept tokens. {self.ground.made}"]
        if skipped:
            notes.append(f"Left out, no in-concept token: {', '.join(skipped)}.")
        return (Sheet(["tokens", "F1", level, "AP", "AUROC", "F1 - raw", "interval"], lines, "", notes),)

    def rows(self) -> list[dict[str, Any]]:
        """Weighted means, paired differences, and every concept's metrics."""
        found = [*self.f1.rows("weighted f1"), *self.difference.rows("weighted f1 minus raw")]
        for part, by_method in self.weighted.items():
            found += [exact(f"weighted {part}", value, method=name) for name, value in by_method.items()]
        found += self.concept_f1.rows("f1")
        for part in ("average_precision", "auroc"):
            found += [
                exact(part, value, method=name, concept=concept)
                for name, each in getattr(self, part).items()
                for concept, value in zip(self.concepts, each, strict=True)
            ]
        found += [exact("in-concept tokens", n, concept=name) for name, n in self.n_tokens.items()]
        return found + [exact("unknown tokens", n, concept=name) for name, n in self.ground.unknown.items()]

    def plot(self) -> Any:
        """Token F1 of raw scores and of the two-stage rule, concept by concept."""
        from sa_plugin.show import plots

        known = [name for name, n in self.n_tokens.items() if n] or list(self.concepts)
        figure, ax = plots.new_figure(6.5, 1.4 + 0.34 * len(known))
        for name, colour, offset in ((RAW, plots.IN_COLOUR, -0.14), (LOCALISED, plots.TAIL_COLOUR, 0.14)):
            one = self.concept_f1.sel(method=name, concept=known)
            plots.whiskers(ax, one, colours=colour, offset=offset, label=name)
        plots.words(ax, title=f"{self.ground.split}: tokens against labels", x="token F1")
        plots.legend(ax)
        plots.note(
            figure,
            f"Bars: {100 * self.ground.resampling.level:g} % over documents, conditional on train and "
            "calibration. Agreement with labels is not evidence.",
            self.concept_f1.sel(method=[RAW, LOCALISED], concept=known),
        )
        return figure


def localisation_metrics(
    found: Localisation, split: Split, resampling: Resampling = Resampling()
) -> LocalisationMetrics:
    """Agreement with the token labels, raw scores beside the detector; see `Detector.evaluate_tokens`."""
    columns = [found.tokens.concepts.index(c) for c in found.concepts]
    labels = found.tokens.labels[:, columns]
    known = known_tokens(found.tokens, found.concepts)
    resamples = resample_documents(document_names(found.tokens), resampling)
    of_tokens = resamples.of(found.tokens.sample_of)
    positives = positives_of(labels, of_tokens)
    masks = _masks(found)
    # A mark on a token whose label is unknown is neither a hit nor an error.
    marks = {name: mask if known is None else mask & known for name, (mask, _) in masks.items()}
    carried = of_tokens.rows(labels.T)
    f1 = {
        name: of_tokens.drawn(
            f1_of(resampled_confusion(mark.T, labels.T, of_tokens)),
            "none" if name == EVERY else "share",
            carried,
            concept=found.concepts,
        )
        for name, mark in marks.items()
    }
    areas: dict[str, dict[str, np.ndarray]] = {"average_precision": {}, "auroc": {}}
    for name, (_, standing) in masks.items():
        # Tokens that do not stand share one score below all others: they tie at the end.
        value = np.where(standing, found.scores, found.scores.min(0) - 1.0)
        areas["average_precision"][name] = _by_concept(average_precision, value, labels, known)
        areas["auroc"][name] = _by_concept(auroc, value, labels, known)
    concept_f1 = stack(f1, "method")
    return LocalisationMetrics(
        concept_f1.mean("concept", positives),
        concept_f1,
        areas["average_precision"],
        areas["auroc"],
        {part: {name: _mean(each, positives) for name, each in by.items()} for part, by in areas.items()},
        dict(zip(found.concepts, labels.sum(0).tolist(), strict=True)),
        Ground(
            split.name,
            split.data_hash,
            found.tokens.n_samples,
            resamples.n_documents,
            resampling,
            unknown_of(found.tokens, found.concepts),
        ),
    )


def _by_concept(
    area: Callable[..., Float[np.ndarray, " concept"]],
    values: Float[np.ndarray, "token concept"],
    labels: Bool[np.ndarray, "token concept"],
    known: Bool[np.ndarray, "token concept"] | None,
) -> Float[np.ndarray, " concept"]:
    """A ranking measure of every concept, over the tokens whose label is known."""
    if known is None:
        return area(values, labels)
    rows = [known[:, k] for k in range(known.shape[1])]
    return np.array([float(area(values[r, k], labels[r, k])) for k, r in enumerate(rows)])


def _mean(values: Float[np.ndarray, " concept"], positives: Float[np.ndarray, "concept column"]) -> float:
    return float(mean_over_concepts(values, positives[:, 0]))


def _masks(
    found: Localisation,
) -> dict[str, tuple[Bool[np.ndarray, "token concept"], Bool[np.ndarray, "token concept"]]]:
    every = np.ones_like(found.mask)
    return {
        RAW: (found.raw, every),
        MARKED: (found.superactivators, found.superactivators),
        LOCALISED: (found.mask, found.detected[found.tokens.sample_of]),
        EVERY: (every, ~every),
    }
