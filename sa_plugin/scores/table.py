"""The table of scores: concept activations of every kept token at every layer of a bank.

A table shows where in-concept tokens score above the others, by layer:

    gap = (mean of in-concept scores - mean of the others) / standard deviation of the others

The gap is of means, of the bulk: the evidence is in the tail, which `plot` marks and `calibrate`
finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.passes.layout import TokenTable, unknown_words
from sa_plugin.show.result import FORMAT, Sheet, Shown, clean, exact, number, signed
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.quantile import quantiles

DRAWN_CONCEPTS = 6
# Units at a time, so that float64 copies of their scores stay small.
_UNITS = 64


@dataclass(frozen=True, eq=False)
class SampleStatistic:
    """A number for every sample and concept that comes from elsewhere: a prompt, a classifier.

    Attributes:
        values: NaN where it is not known; concepts as the columns of the token labels.
        threshold: Where it fires, if that is settled beforehand; None to calibrate it with the
            same search as every other statistic.
        candidates: Settings it was chosen from before, on other data than the threshold's.
        record: How it was made, of each concept.
    """

    values: Float[np.ndarray, "sample concept"]
    threshold: float | None = None
    candidates: int = 1
    record: Mapping[str, Any] = field(default_factory=dict)


@face
@dataclass(frozen=True, eq=False, repr=False)
class ScoreTable(Shown):
    """Scores that calibration, detection, tracing and reports share.

    Attributes:
        tokens: What the rows are.
        bank: The vectors the scores are of.
        scores: Float32, in memory or memory mapped.
        permuted_max: Each sample's highest score under the permuted-label vectors.
        pooled: Score of each sample's mean activation under the pooled vectors.
        cls: Score of each sample's class token under the class-token vectors.
        given: Statistics of samples from elsewhere, by the name of their method.
    """

    tokens: TokenTable
    bank: ConceptBank
    scores: Float[np.ndarray, "token layer unit"]
    permuted_max: Float[np.ndarray, "sample layer unit"] | None = None
    pooled: Float[np.ndarray, "sample layer pooled_unit"] | None = None
    cls: Float[np.ndarray, "sample layer pooled_unit"] | None = None
    given: Mapping[str, SampleStatistic] = field(default_factory=dict)

    about: ClassVar[str] = (
        "Gaps are of means, which the bulk of the tokens rules; how reliable the tail is, calibrate and "
        "Detector.evaluate say."
    )

    @property
    def drift(self) -> str:
        """Of its bank."""
        return self.bank.drift

    def headline(self) -> str:
        """The bank, and the rows."""
        return f"{self.bank!r}, {self.tokens!r}"

    def _moments(self) -> list[dict[str, Any]]:
        """Of every layer and unit: counts and means in and out of concept, and the spread outside."""
        found = []
        inside, others = (
            np.stack(part, axis=1) for part in zip(*map(self._sides, self.bank.units), strict=True)
        )
        n_in, n_out = inside.sum(0), others.sum(0)
        for k, layer in enumerate(self.bank.layers):
            for start in range(0, len(self.bank.units), _UNITS):
                part = slice(start, start + _UNITS)
                score = np.asarray(self.scores[:, k, part], dtype=np.float64)
                mean_in = ratio(np.where(inside[:, part], score, 0.0).sum(0), n_in[part], np.nan)
                mean_out = ratio(np.where(others[:, part], score, 0.0).sum(0), n_out[part], np.nan)
                spread = np.where(others[:, part], score - mean_out, 0.0)
                sd = np.sqrt(ratio((spread**2).sum(0), n_out[part], np.nan))
                gap = ratio(mean_in - mean_out, sd, np.nan)
                for u, unit in enumerate(self.bank.units[part]):
                    found.append(
                        {
                            "layer": layer,
                            "unit": unit,
                            "in-concept tokens": int(n_in[start + u]),
                            "mean in concept": float(mean_in[u]),
                            "mean of the others": float(mean_out[u]),
                            "sd of the others": float(sd[u]),
                            "gap": float(gap[u]),
                        }
                    )
        return found

    def passages(self, unit: str, layer: int, *, top: int = 20) -> list[tuple[list[str], list[float]]]:
        """The samples that score highest under one vector, highest first: their tokens and scores.

        Args:
            unit: Name of a vector.
            layer: Block index.
            top: At most how many samples.

        Returns:
            Characters of each token that is a row (special tokens and attention sinks are none), and its
            score.

        Raises:
            ValueError: Unknown vector or layer, or `top` is below 1.
        """
        if top < 1:
            raise ValueError(f"top is {top}: give 1 or more.")
        scores = self.scores[:, self.bank.index(layer), self.bank.unit(unit)]
        highest = np.maximum.reduceat(scores, self.tokens.bounds[:-1])
        found = []
        for k in np.argsort(-highest, kind="stable")[:top]:
            rows = range(self.tokens.bounds[k], self.tokens.bounds[k + 1])
            found.append(([self.tokens.text(row) for row in rows], scores[rows.start : rows.stop].tolist()))
        return found

    def _sides(self, unit: str) -> tuple[Bool[np.ndarray, " token"], Bool[np.ndarray, " token"]]:
        """Tokens in and out of a concept; those whose label is unknown are neither."""
        # Units that are no concepts have no inside: all their tokens are others.
        if not self.bank.supervised or unit not in self.tokens.concepts:
            none = np.zeros(len(self.tokens), dtype=bool)
            return none, ~none
        column = self.tokens.concepts.index(unit)
        return self.tokens.labels[:, column], self.tokens.negative[:, column]

    def sheets(self) -> tuple[Sheet, ...]:
        """Of each concept the layer of its largest gap; of units that are no concepts, their spread."""
        moments = self._moments()
        notes = [f"{len(self.tokens):,} tokens of {self.tokens.n_samples} samples."]
        if self.bank.supervised and self.tokens.unknown:
            notes.append(unknown_words(self.tokens.unknown))
        if self.given:
            notes.append(f"Carried beside: {', '.join(self.given)}.")
        if not self.bank.supervised:
            lines = []
            for layer in self.bank.layers:
                here = [one for one in moments if one["layer"] == layer]
                parts = (
                    np.mean([one[name] for one in here])
                    for name in ("mean of the others", "sd of the others")
                )
                lines.append([str(layer), str(len(here)), *(number(float(part)) for part in parts)])
            return (Sheet(["layer", "units", "mean score", "mean sd"], lines, "", notes),)
        lines = []
        for unit in self.bank.units:
            own = [one for one in moments if one["unit"] == unit]
            best = max(own, key=lambda one: -np.inf if np.isnan(one["gap"]) else one["gap"])
            cells = [unit, str(best["in-concept tokens"]), str(best["layer"])]
            cells += [
                number(best[name]) for name in ("mean in concept", "mean of the others", "sd of the others")
            ]
            lines.append([*cells, signed(best["gap"], 2)])
        header = ["concept", "tokens", "layer", "mean in", "mean out", "sd out", "gap, sd"]
        return (Sheet(header, lines, "At the layer of each concept's largest gap.", notes),)

    def rows(self) -> list[dict[str, Any]]:
        """Counts, means, spread and gap of every layer and unit."""
        return [
            exact(name, value, layer=one["layer"], unit=one["unit"])
            for one in self._moments()
            for name, value in one.items()
            if name not in ("layer", "unit")
        ]

    def to_dict(self) -> dict[str, Any]:
        """Counts, means, spread and gap of every layer and unit; the scores themselves stay behind."""
        content = {"bank": self.bank.to_dict(), "tokens": len(self.tokens), "moments": clean(self._moments())}
        return {"format": FORMAT, "kind": "ScoreTable", **content}

    def plot(self, layer: int | None = None, delta: float = 0.1) -> Any:
        """Scores in and out of concept at one layer, with the threshold of one delta.

        The threshold is that of the calibration split's in-concept tokens where the table holds it.

        Args:
            layer: Block index; by default the last of the bank.
            delta: Share of in-concept tokens above the threshold.
        """
        from sa_plugin.show import plots

        layer = self.bank.layers[-1] if layer is None else layer
        k = self.bank.index(layer)
        units = self.bank.units[:DRAWN_CONCEPTS]
        cal = np.array([of == "cal" for of in self.tokens.split_of])[self.tokens.sample_of]
        figure, axes = plots.new_figure(6.5, 1.6 * len(units) + 0.6, rows=len(units))
        for ax, unit in zip(np.ravel(axes), units, strict=True):
            score = np.asarray(self.scores[:, k, self.bank.units.index(unit)], dtype=np.float64)
            inside, others = self._sides(unit)
            edges = np.histogram_bin_edges(score, 60)
            if inside.any():
                source = inside & cal if (inside & cal).any() else inside
                cut = float(quantiles(score[source], [1 - delta])[0])
                plots.densities(ax, score[inside], score[others], edges, cut)
            else:
                plots.densities(ax, None, score, edges, None)
            plots.words(
                ax, title=f"{unit}, layer {layer}", x="score" if unit == units[-1] else "", y="density"
            )
        plots.legend(np.ravel(axes)[0])
        left = len(self.bank.units) - len(units)
        rest = f" {left} more units are not drawn." if left else ""
        plots.note(figure, f"Line: threshold at delta {delta:g}; orange: in-concept tokens above it.{rest}")
        return figure

    def split(self, name: str) -> ScoreTable:
        """The rows of one split.

        Raises:
            ValueError: No sample of that split was scored.
        """
        chosen = np.array([k for k, of in enumerate(self.tokens.split_of) if of == name], dtype=int)
        if not len(chosen):
            have = sorted(set(self.tokens.split_of))
            raise ValueError(f"no sample of split {name!r} was scored; scored: {have}.")
        return self.select(chosen)

    def select(self, samples: Int[np.ndarray, " sample"]) -> ScoreTable:
        """The rows of some samples, in the order given."""
        rows = self.tokens.rows_of(samples)
        contiguous = len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all()
        scores = self.scores[rows[0] : rows[-1] + 1] if contiguous else self.scores[rows]
        return ScoreTable(
            self.tokens.select(samples),
            self.bank,
            scores,
            None if self.permuted_max is None else self.permuted_max[samples],
            None if self.pooled is None else self.pooled[samples],
            None if self.cls is None else self.cls[samples],
            {k: replace(one, values=one.values[samples]) for k, one in self.given.items()},
        )

    def with_statistic(
        self,
        name: str,
        values: Float[np.ndarray, "sample concept"],
        *,
        threshold: float | None = None,
        candidates: int = 1,
        record: Mapping[str, Any] | None = None,
    ) -> ScoreTable:
        """The same table with one more detection method: a number for each sample and concept.

        `calibrate` searches its threshold on the grid all methods share, and `evaluate` shows it
        with its interval and its paired difference, on the same resamples of documents.

        Args:
            name: Of the method.
            values: Samples as in `tokens.samples`, concepts as in `tokens.concepts`; NaN where it
                is not known. Higher means present.
            threshold: Where it fires, if that is settled beforehand: then nothing is calibrated.
            candidates: How many settings of it were tried before, such as a probe's: counted with those
                of the threshold.
            record: How it was made, of each concept.

        Raises:
            ValueError: Another shape, an infinite value, or fewer than one candidate.

        Example:
            >>> scores = scores.with_statistic("length", lengths)  # doctest: +SKIP
        """
        shape = (self.tokens.n_samples, len(self.tokens.concepts))
        values = np.asarray(values)
        if values.shape != shape:
            raise ValueError(
                f"values of the statistic {name!r} have shape {values.shape}, expected [sample, concept] = "
                f"{shape}: one number for each sample of the table and each labelled concept."
            )
        if np.isinf(values).any():
            raise ValueError(
                f"the statistic {name!r} has infinite values: give finite numbers, NaN where it is not known."
            )
        if candidates < 1:
            raise ValueError(f"candidates of the statistic {name!r} is {candidates}: give 1 or more.")
        own = SampleStatistic(values, threshold, candidates, {} if record is None else record)
        return replace(self, given={**self.given, name: own})
