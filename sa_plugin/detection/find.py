"""A detector on samples: the SuperActivators themselves in their text or image, and decisions.

Samples are a split, samples with labels, or the user's own texts and images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, overload

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin._check import position_of
from sa_plugin.data.concept_data import Split
from sa_plugin.detection.calibration import Calibration
from sa_plugin.detection.items import (
    SHOWN_ITEMS,
    ScoredSamples,
    item_sheet,
    items_figure,
    items_html,
    left_over_sheet,
)
from sa_plugin.detection.promised import DocumentTests, refuse_lengths, tested_of
from sa_plugin.host.protocol import Host
from sa_plugin.passes.layout import TokenTable
from sa_plugin.scores.pushdown import sample_maxima
from sa_plugin.show.result import FORMAT, Sheet, Shown, clean, exact, noun_count, number
from sa_plugin.statistics.conformal import discoveries
from sa_plugin.statistics.confusion import reaches


@dataclass(frozen=True)
class SuperActivator:
    """One token whose score reaches its concept's threshold.

    Attributes:
        sample: Id of the sample.
        concept: Whose tail it is in.
        row: Row in the token table of the samples given.
        position: Place in the model's input sequence.
        text: Characters of the token.
        edges: Start and end in the sample's text; of a patch top, left, bottom, right in pixels.
        layer: Block index of the score.
        score: Activation.
        threshold: Of the concept.
        p: With a promise, the p of a document of which this is the highest score, so that it holds for a
            token that was picked for its score; None without.
    """

    sample: str
    concept: str
    row: int
    position: int
    text: str
    edges: tuple[float, ...]
    layer: int
    score: float
    threshold: float
    p: float | None = None

    def __repr__(self) -> str:
        return (
            f"SuperActivator({self.text!r} of {self.concept!r}, sample {self.sample!r}"
            f"{self._place}, layer {self.layer}, {self.score:.4g} >= "
            f"{self.threshold:.4g}{'' if self.p is None else f', p {self.p:.3g}'})"
        )

    @property
    def _place(self) -> str:
        # The text of a patch is its place already.
        return f" [{self.start}:{self.end}]" if len(self.edges) == 2 else ""

    @property
    def start(self) -> int:
        """Where a token starts in its text; of a patch, its upper edge."""
        return int(self.edges[0])

    @property
    def end(self) -> int:
        """Where a token ends in its text; of a patch, its lower edge."""
        return int(self.edges[len(self.edges) // 2])

    @property
    def margin(self) -> float:
        """Score minus threshold, in the unit of the concept's scores."""
        return self.score - self.threshold


@dataclass(frozen=True, eq=False, repr=False)
class SuperActivators(Shown, Sequence[SuperActivator]):
    """The SuperActivators of some samples: a sequence of records that shows them in their text.

    Attributes:
        marks: The records, in order of sample, concept and token.
        concepts: Those that were looked for.
        scored: The samples and the scores of their tokens.
    """

    marks: tuple[SuperActivator, ...]
    concepts: tuple[str, ...]
    scored: ScoredSamples

    text_keys: ClassVar[tuple[str, ...]] = ("text",)
    about: ClassVar[str] = (
        "A SuperActivator is a token that the in-concept tail of the calibration split is made of; it need "
        "not lie inside the concept. How reliable the rule is, Detector.evaluate says."
    )

    def __len__(self) -> int:
        return len(self.marks)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> SuperActivator: ...
    @overload
    def __getitem__(self, index: slice) -> list[SuperActivator]: ...
    def __getitem__(self, index: int | slice) -> SuperActivator | list[SuperActivator]:
        return self.marks[index] if isinstance(index, int) else list(self.marks[index])

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        ids = {sample.id: n for n, sample in enumerate(self.scored.tokens.samples)}
        known = self.scored.calibration.concepts
        fired = list(dict.fromkeys((ids[one.sample], known.index(one.concept)) for one in self.marks))
        wanted = {known.index(name) for name in self.concepts}
        return fired or [(n, c) for n, c in self.scored.nearest() if c in wanted]

    def headline(self) -> str:
        """How many tokens of which concepts."""
        counts = Counter(one.concept for one in self.marks)
        said = ", ".join(f"{name} {n}" for name, n in counts.most_common(4)) or "none"
        more = ", ..." if len(counts) > 4 else ""
        samples = noun_count(self.scored.tokens.n_samples, "sample")
        return f"{noun_count(len(self.marks), 'token')} in {samples}: {said}{more}"

    def sheets(self) -> tuple[Sheet, ...]:
        """Each text with its marked tokens, beside its highest raw activations."""
        pairs = self._pairs
        sheets = [item_sheet(item) for item in self.scored.items(pairs)]
        return (*sheets, *left_over_sheet(len(pairs) - SHOWN_ITEMS))

    def rows(self) -> list[dict[str, Any]]:
        """Score and margin of every SuperActivator."""
        found = []
        for one in self.marks:
            labels = {"sample": one.sample, "concept": one.concept, "token": one.text, "layer": one.layer}
            labels |= {"start": one.start, "end": one.end, "position": one.position}
            found += [exact("score", one.score, **labels), exact("margin", one.margin, **labels)]
            found += [] if one.p is None else [exact("p", one.p, **labels)]
        return found

    def to_dict(self) -> dict[str, Any]:
        """The records."""
        marks = [{name: v for name, v in asdict(m).items() if v is not None} for m in self.marks]
        return {"format": FORMAT, "kind": "SuperActivators", "marks": clean(marks)}

    def plot(self) -> Any:
        """Scores along each text with the threshold, or the pictures with their marked patches."""
        about = "A SuperActivator may lie beside the concept."
        return items_figure(self.scored.tokens, self.scored.items(self._pairs), "SuperActivators", about)

    def _repr_html_(self) -> str:
        pairs = self._pairs
        return items_html(self, self.scored.items(pairs), (), len(pairs) - SHOWN_ITEMS)


@dataclass(frozen=True, eq=False, repr=False)
class Detection(Shown):
    """Which samples have which concepts.

    Attributes:
        samples: Ids.
        concepts: Names.
        present: Whether the sample holds a SuperActivator of the concept.
        margin: Highest score minus threshold, in the unit of each concept's scores; -inf where
            the threshold is +inf.
        scored: The samples with the scores of their tokens; None where only the highest left the
            model.
        tested: With a promise, p-values of the samples; None without.
    """

    samples: tuple[str, ...]
    concepts: tuple[str, ...]
    present: Bool[np.ndarray, "sample concept"]
    margin: Float[np.ndarray, "sample concept"]
    scored: ScoredSamples | None = None
    tested: DocumentTests | None = None

    about: ClassVar[str] = "Margins are in the unit of each concept's scores: they do not compare concepts."

    def of(self, sample: str) -> tuple[str, ...]:
        """Concepts present in one sample.

        Raises:
            ValueError: Unknown sample; the text names the nearest.
        """
        n = position_of(sample, self.samples, "the samples")
        return tuple(c for c, here in zip(self.concepts, self.present[n], strict=True) if here)

    @property
    def p(self) -> Float[np.ndarray, "sample concept"]:
        """Of each sample, taken for a document, the p of its highest score; at least 1 / (n + 1).

        Raises:
            ValueError: The detector has no promise.
        """
        return self._tested.p

    @property
    def _tested(self) -> DocumentTests:
        if self.tested is None:
            raise ValueError(
                "this detector has no p-values: they come from documents that chose nothing. Calibrate with "
                "promise=Promise('document', 0.05) and a guard."
            )
        return self.tested

    def discoveries(
        self,
        q: float = 0.1,
        over: Literal["documents", "concepts"] = "documents",
        concepts: Sequence[str] | None = None,
    ) -> dict[str, tuple[str, ...]]:
        """What is called so that at most a share q of the calls is false, in expectation.

        The p of a document is that of its highest score. There is no such control over tokens: which token
        of a called document it is, is description.

        Args:
            q: The share of false ones among the calls.
            over: "documents": each concept by itself, over all documents given (Benjamini and Hochberg; p
                of documents under one guard are positively dependent). "concepts": each document by itself,
                over all concepts (Benjamini and Yekutieli, under any dependence).
            concepts: Only these, chosen beforehand.

        Returns:
            By concept the documents called, or by document the concepts.

        Raises:
            ValueError: There is no promise, it is in bands of lengths, or p cannot be small enough for any
                call; the text has the number of guard documents that would do.
        """
        tested = self._tested
        if tested.bands > 1:
            raise ValueError(
                f"false discoveries are not controlled over {tested.bands} bands of lengths, whose p are the "
                "largest of each: calibrate with one range, Promise(lengths=(shortest, longest))."
            )
        documents, home = np.unique(np.array(tested.documents), return_inverse=True)
        names = tuple(self.concepts if concepts is None else concepts)
        wanted = [position_of(name, self.concepts) for name in names]
        p = np.ones((len(documents), len(self.concepts)))
        np.minimum.at(p, home, tested.p)
        p, floor, places = p[:, wanted], tested.floor[wanted], documents.tolist()
        if over == "documents":
            return {
                name: _called(name, places, p[:, c], q, float(floor[c]), True) for c, name in enumerate(names)
            }
        least = float(floor.min())
        return {name: _called(name, names, p[n], q, least, False) for n, name in enumerate(places)}

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        fired = [(int(n), int(c)) for n, c in np.argwhere(self.present)]
        return fired or ([] if self.scored is None else self.scored.nearest())

    def headline(self) -> str:
        """How many pairs of sample and concept are present."""
        return (
            f"{noun_count(len(self.samples), 'sample')} x {noun_count(len(self.concepts), 'concept')}, "
            f"{int(self.present.sum())} present"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """The concepts of each sample with their margins, and texts with their marked tokens."""
        lines = []
        for n, name in enumerate(self.samples[:SHOWN_SAMPLES]):
            order = sorted(np.flatnonzero(self.present[n]).tolist(), key=lambda c: -self.margin[n, c])
            said = ", ".join(f"{self.concepts[c]} ({self._cell(n, c)})" for c in order) or "-"
            lines.append([name, said])
        left = len(self.samples) - len(lines)
        notes = [f"{left} more samples: .table() has all."] if left else []
        table = Sheet(["sample", "present, with margins"], lines, "", notes)
        items = [] if self.scored is None else self.scored.items(self._pairs)
        return (table, *map(item_sheet, items))

    def _cell(self, n: int, c: int) -> str:
        p = "" if self.tested is None else f", p {self.tested.p[n, c]:.2g}"
        return f"+{number(self.margin[n, c])}{p}"

    def rows(self) -> list[dict[str, Any]]:
        """Presence (0 or 1) and margin of every sample and concept, and its p where there is one."""
        tables = {"present": self.present, "margin": self.margin}
        if self.tested is not None:
            tables["p"] = self.tested.p
        return [
            exact(measure, float(table[n, c]), sample=sample, concept=concept)
            for measure, table in tables.items()
            for n, sample in enumerate(self.samples)
            for c, concept in enumerate(self.concepts)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Every decision and margin."""
        found = {name: getattr(self, name) for name in ("samples", "concepts", "present", "margin")}
        if self.tested is not None:
            found["p"] = self.tested.p
        return {"format": FORMAT, "kind": "Detection", **clean(found)}

    def plot(self) -> Any:
        """Margins by sample and concept, each concept in shares of its largest; present ones dotted."""
        from sa_plugin.show import plots

        size = min(len(self.samples), SHOWN_SAMPLES)
        margin = np.where(np.isfinite(self.margin[:size]), self.margin[:size], np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = margin / np.nanmax(np.abs(margin), axis=0, keepdims=True, initial=0)
        width = 3.0 + min(0.5 * len(self.concepts), 8.0)
        figure, ax = plots.new_figure(width, 1.4 + 0.25 * size)
        plots.heat(ax, shares, self.samples[:size], self.concepts, limit=1.0, scale="share of the largest")
        ax.tick_params(axis="x", rotation=60)
        for n, c in np.argwhere(self.present[:size]):
            ax.plot([c], [n], ".", color=plots.TEXT_COLOUR, ms=4)
        plots.words(ax, title="highest score minus threshold")
        plots.note(
            figure, "Dot: present. Shares of each concept's largest margin: they do not compare concepts."
        )
        return figure

    def _repr_html_(self) -> str:
        items = [] if self.scored is None else self.scored.items(self._pairs)
        return items_html(self, items, self.sheets()[:1], 0)


SHOWN_SAMPLES = 40


def find(scored: ScoredSamples, concepts: Sequence[str] | None = None) -> SuperActivators:
    """List the SuperActivators of some samples; see `Detector.find`."""
    calibration, tokens, at = scored.calibration, scored.tokens, scored.scores
    names = tuple(calibration.concepts if concepts is None else concepts)
    if not names:
        raise ValueError("concepts is empty: name at least one, or None for all.")
    wanted = [position_of(c, calibration.concepts) for c in names]
    tau = calibration.tail.chosen_threshold
    hits = [(int(row), k) for k in wanted for row in np.flatnonzero(reaches(at[:, k], tau[k]))]
    # By sample, then concept in the order asked for, then token.
    order = {k: n for n, k in enumerate(wanted)}
    hits.sort(key=lambda hit: (tokens.sample_of[hit[0]], order[hit[1]], hit[0]))
    marks = tuple(_record(calibration, tokens, row, k, at[row, k]) for row, k in hits)
    return SuperActivators(marks, names, scored)


def detect(
    calibration: Calibration,
    split: Split,
    highest: Float[np.ndarray, "sample concept"],
    scored: ScoredSamples | None = None,
) -> Detection:
    """Decide from the highest score of each sample; see `Detector.detect`."""
    tau = calibration.tail.chosen_threshold
    ids = tuple(s.id for s in split.samples)
    documents = tuple(s.document for s in split.samples)
    tested = tested_of(calibration.guard, highest, documents)
    return Detection(ids, calibration.concepts, reaches(highest, tau), highest - tau, scored, tested)


def _called(
    row: str, names: Sequence[str], p: Float[np.ndarray, " test"], q: float, floor: float, independent: bool
) -> tuple[str, ...]:
    try:
        called = discoveries(p, q, floor=floor, independent=independent)
    except ValueError as error:
        raise ValueError(f"{row!r}: {error}") from None
    return tuple(name for name, yes in zip(names, called, strict=True) if yes)


def highest_scores(calibration: Calibration, split: Split, host: Host) -> Float[np.ndarray, "sample concept"]:
    """Highest score of each sample; no token score leaves the host."""
    bank, tail = calibration.bank, calibration.tail
    layers, layer = np.unique(tail.layer, return_inverse=True)
    units, unit = np.unique(tail.chosen_unit, return_inverse=True)
    found = sample_maxima(host, split.samples, bank.only(layers.tolist(), units.tolist()))
    highest: np.ndarray = found.scores[:, 0, layer, unit].astype(np.float64)
    if not np.isfinite(highest).all():
        n, k = (int(i) for i in np.argwhere(~np.isfinite(highest))[0])
        raise ValueError(
            f"the highest score of {calibration.concepts[k]!r} in sample {split.samples[n].id!r} is "
            f"{highest[n, k]}: activations hold NaN or Inf; load the model in float32 or bfloat16."
        )
    if calibration.guard is not None:
        refuse_lengths(calibration.guard, split.samples, found.kept)
    return highest


def _record(calibration: Calibration, tokens: TokenTable, row: int, k: int, score: float) -> SuperActivator:
    return SuperActivator(
        sample=tokens.samples[tokens.sample_of[row]].id,
        concept=calibration.concepts[k],
        row=row,
        position=int(tokens.position[row]),
        text=tokens.text(row),
        edges=tuple(float(edge) for edge in tokens.offsets[row]),
        layer=calibration.bank.layers[calibration.tail.layer[k]],
        score=float(score),
        threshold=float(calibration.tail.chosen_threshold[k]),
        p=None
        if calibration.guard is None
        else float(calibration.guard.p_values(k, np.array(score, dtype=np.float64), "document")),
    )
