"""What ledgers return: every component's part of lifts and contrasts, and of one text's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from sa_plugin._check import require_known, require_place
from sa_plugin.data.sample import Sample
from sa_plugin.heads.columns import COMPONENT_KINDS, Column, Component, ComponentKind, depth_of, score_names
from sa_plugin.heads.sums import Effect, share_excluding_zero
from sa_plugin.passes.layout import unknown_notes
from sa_plugin.show import plots
from sa_plugin.show.html import Markup, el
from sa_plugin.show.maps import MAP_STYLE, shaded_picture, shaded_text
from sa_plugin.show.result import FORMAT, Result, Sheet, clean, ends_text, exact, number, signed
from sa_plugin.statistics.drawn import Drawn

# The effects that are printed; the others are in the table.
PRINTED_EFFECTS = ("lift", "control", "excess", "contrast")
# What a legend calls each kind, and its colour.
_DRAWN_KINDS = {
    "embedding": ("embedding", "#55606b"),
    "heads": ("heads", plots.TAIL_COLOUR),
    "mlps": ("MLPs", plots.IN_COLOUR),
    "constants": ("biases", "#9a6a00"),
}


@dataclass(frozen=True, eq=False, repr=False)
class HeadLedger(Result):
    """Direct contributions to concept scores.

    Every number is over components (or kinds, or blocks) and scores; a score is named by its concept,
    "animal", or "animal at 3" where a concept was decomposed at several layers:
    `ledger.lift.terms.sel(component="L3H5", score="animal")`.

    Attributes:
        components: Rows of every array: "embedding", "L3H5", "L3 MLP", and what is constant before
            norms ("L3 bias x scale") or means ("bias", "reference").
        columns: Columns: a concept at a layer.
        effects: "lift", "control", "excess" (lift - control), the same with "in_concept_" and
            "strongest_" before them, and "contrast", as far as they are defined; see `sums.py`.
        means: Mean term by token group: "tail", "same_samples", "in_concept_rest",
            "out_of_concept", "strongest_out_of_concept".
        settings: Split, counts, resampling, scoring, unit, number of permutations and whether terms
            are centred.
        residue: Largest |score - sum of terms| over kept tokens, relative to the summed sizes.
        closes_to: The same, in the unit of the score.
        control_by_draw: Each permutation's control, by effect.
        projection: For cosines, the same ledger on the un-normalised projection x . v / |v|.
    """

    components: tuple[Component, ...]
    columns: tuple[Column, ...]
    effects: Mapping[str, Effect]
    means: Mapping[str, Float[np.ndarray, "component column"]]
    settings: Mapping[str, Any]
    residue: float
    closes_to: float
    control_by_draw: Mapping[str, Float[np.ndarray, "draw component column"]]
    projection: HeadLedger | None = field(default=None)

    about: ClassVar[str] = (
        "A term is a direct contribution, no causal effect: a head may act through later parts, and one that "
        "only copies what another wrote gets the credit. Ablation answers that."
    )

    @property
    def concepts(self) -> tuple[str, ...]:
        """Concept of each column."""
        return tuple(column.concept for column in self.columns)

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks that write before each column's score; later components are 0."""
        return tuple(depth_of(column.layer, self.settings["hook_point"]) for column in self.columns)

    @property
    def scores(self) -> tuple[str, ...]:
        """Name of each column, as `sel(score=...)` takes it."""
        return score_names(self.columns)

    @property
    def lift(self) -> Effect:
        """SuperActivators against the other tokens of their samples.

        Raises:
            ValueError: The ledger has no tail.
        """
        return self._effect("lift")

    @property
    def control(self) -> Effect:
        """The mean lift of permuted-label vectors with their own tails.

        Raises:
            ValueError: The bank has no permuted-label vectors.
        """
        return self._effect("control")

    @property
    def excess(self) -> Effect:
        """Lift minus control; a test against chance only through `beyond_control`.

        Raises:
            ValueError: The bank has no permuted-label vectors.
        """
        return self._effect("excess")

    @property
    def contrast(self) -> Effect:
        """In-concept tokens against tokens of negative samples: no token is selected by score."""
        return self._effect("contrast")

    def _effect(self, name: str) -> Effect:
        if name not in self.effects:
            require_known("effect", name.rpartition("_")[2], PRINTED_EFFECTS)
            why = (
                "a bank alone has no SuperActivators: give a detector, or BankScores(bank, tail=...)"
                if name.endswith("lift") or "lift" not in self.effects
                else "the bank has no permuted-label vectors: fit with controls=True, or give permutations="
            )
            raise ValueError(f"this ledger has no {name}: {why}.")
        return self.effects[name]

    @property
    def ranked_by(self) -> str:
        """The effect that components are ranked by."""
        return next(name for name in ("excess", "lift", "contrast") if name in self.effects)

    def beyond_control(self, effect: str = "lift") -> Float[np.ndarray, "component column"]:
        """Two-sided p of every lift among its permutations: how many lie as far out.

            p = (1 + #{draws with |control - m| >= |lift - m|}) / (1 + D),  m the mean of all D + 1

        Not corrected for the number of components. With D draws no p lies below 1 / (1 + D), and
        one draw gives 1 throughout.

        Args:
            effect: "lift", "in_concept_lift" or "strongest_lift".

        Raises:
            ValueError: No such lift, or no control.
        """
        lift, name = self._effect(effect).terms.estimate, effect.replace("lift", "control")
        self._effect(name)
        draws = self.control_by_draw[name]
        centre = (draws.sum(0) + lift) / (1 + len(draws))
        # Two values lie equally far from their mean, whatever rounding says.
        further = np.abs(draws - centre) >= np.abs(lift - centre) * (1 - 1e-9)
        p = (1 + further.sum(0)) / (1 + len(draws))
        return np.where(np.isfinite(lift), p, np.nan)

    def column(self, concept: str, layer: int | None = None) -> int:
        """Place of a concept (at a layer, where it was decomposed at several).

        Raises:
            ValueError: Unknown, or ambiguous.
        """
        found = [k for k, c in enumerate(self.columns) if c.concept == concept and layer in (None, c.layer)]
        if len(found) == 1:
            return found[0]
        have = ", ".join(f"{c.concept!r} at {c.layer}" for c in self.columns)
        problem = "stands at several layers: name one" if found else "was not decomposed"
        raise ValueError(f"{concept!r} at layer {layer} {problem}; the ledger has {have}.")

    def head_map(
        self, concept: str, effect: str | None = None, *, layer: int | None = None
    ) -> Float[np.ndarray, "block head"]:
        """One effect of every head up to the concept's layer.

        Args:
            concept: Name.
            effect: A name of `effects`; by default "excess" where there is one, else "lift", else
                "contrast".
            layer: Where a concept was decomposed at several.
        """
        k = self.column(concept, layer)
        values = self._effect(self.ranked_by if effect is None else effect).terms.estimate[:, k]
        rows = [i for i, c in enumerate(self.components) if c.kind == "heads"]
        blocks = 1 + max((self.components[i].block or 0 for i in rows), default=-1)
        return np.asarray(values[rows].reshape(blocks, -1)[: self.depths[k]])

    def share(self, kind: ComponentKind, effect: str = "lift") -> Drawn:
        """Share of one kind of component, by score."""
        return self._effect(effect).shares.sel(kind=kind)

    @property
    def head_cells(self) -> Bool[np.ndarray, "component column"]:
        """Heads before each column's score."""
        depths = self.depths
        return np.array(
            [[c.kind == "heads" and (c.block or 0) < depth for depth in depths] for c in self.components]
        )

    @property
    def candidates(self) -> int:
        """Head x concept cells that `strongest` ranks: up to each layer, with an interval."""
        return share_excluding_zero(self.effects[self.ranked_by].terms, self.head_cells)[1]

    @property
    def excluding_zero(self) -> dict[str, float]:
        """Share of the head x concept cells whose interval excludes zero, by effect.

        That of "control" is what tokens selected by the sum alone give: read that of "lift" beside
        it, and no single interval of a lift or an excess as a test.
        """
        cells = self.head_cells
        return {name: share_excluding_zero(e.terms, cells)[0] for name, e in self.effects.items()}

    def strongest(
        self, n: int = 10, *, kind: ComponentKind | None = "heads", concept: str | None = None
    ) -> list[dict[str, Any]]:
        """The components with the largest effect, as a share of their score's own.

        Negative numbers work against the concept.

        Args:
            n: How many.
            kind: "heads", "mlps", "embedding", or None for all.
            concept: Only this concept.

        Returns:
            One row a component and concept, ranked by |excess| (else |lift|, |contrast|) over
            |total of the lift (contrast)|, so that concepts with scores of different scale can be
            ranked together; with every effect and its interval. Concepts whose tail lies in
            fewer than three documents have no interval and are left out. The first of many `candidates` are
            large partly by chance, in every effect; ablate, or look at another split. Each effect's
            `_note` says where few documents carry it.
        """
        if concept is not None:
            require_known("concept", concept, dict.fromkeys(column.concept for column in self.columns))
        ranked = []
        against = self._effect("lift" if "lift" in self.effects else "contrast").total.estimate
        terms = self._effect(self.ranked_by).terms
        for i, k in self._cells():
            component, column = self.components[i], self.columns[k]
            if kind not in (None, component.kind) or concept not in (None, column.concept):
                continue
            of_total = abs(terms.estimate[i, k]) / abs(against[k]) if against[k] else np.nan
            if np.isfinite([of_total, terms.low[i, k]]).all():
                ranked.append((of_total, i, k))
        ranked.sort(key=lambda row: (-row[0], row[1], row[2]))
        return [self._wide_row(i, k) for _, i, k in ranked[:n]]

    def _cells(self) -> list[tuple[int, int]]:
        """Component and column wherever the component writes before the score."""
        return [
            (i, k)
            for k, depth in enumerate(self.depths)
            for i, component in enumerate(self.components)
            if component.block is None or component.block < depth
        ]

    def _labels(self, i: int, k: int) -> dict[str, Any]:
        part, of = self.components[i], self.columns[k]
        return {
            "concept": of.concept,
            "at_layer": of.layer,
            "component": part.name,
            "kind": part.kind,
            "block": part.block,
            "head": part.head,
        }

    def _wide_row(self, i: int, k: int) -> dict[str, Any]:
        """Every effect of one component on one score, with intervals, side by side."""
        row = self._labels(i, k)
        for name, effect in self.effects.items():
            ends = (effect.terms.estimate, effect.terms.low, effect.terms.high)
            row |= {name + e: float(v[i, k]) for e, v in zip(("", "_low", "_high"), ends, strict=True)}
            row[f"{name}_note"] = str(effect.terms.notes[i, k])
        return row

    def rows(self) -> list[dict[str, Any]]:
        """Every component, block and total of every score, by effect; and the shares of the kinds.

        `kind` tells them apart: a kind of component, "block" for everything a block wrote, "total" for
        the score itself; shares of kinds are the measures "lift share" and so on.
        """
        cells = self._cells()
        rows = []
        for name, effect in self.effects.items():
            rows += [{**self._labels(i, k), **effect.terms.row(name, i, k)} for i, k in cells]
            for k, column in enumerate(self.columns):
                of = {"concept": column.concept, "at_layer": column.layer}
                for block in range(self.depths[k]):
                    labels = {**of, "component": f"block {block}", "kind": "block", "block": block}
                    rows.append({**labels, **effect.blocks.row(name, block, k)})
                rows.append({**of, "component": "total", "kind": "total", **effect.total.row(name, k)})
                rows.append(exact(f"{name} tokens", int(effect.n_tokens[k]), **of, kind="total"))
                rows += [
                    {**of, "kind": kind, **effect.shares.row(f"{name} share", j, k)}
                    for j, kind in enumerate(COMPONENT_KINDS)
                ]
        return rows

    def headline(self) -> str:
        """Counts, the median shares of heads and MLPs, how well it closes, and its control."""
        name = "lift" if "lift" in self.effects else "contrast"
        shares = (self.share(kind, name).estimate for kind in ("heads", "mlps"))
        heads, mlps = (
            np.median(one[np.isfinite(one)]) if np.isfinite(one).any() else np.nan for one in shares
        )
        s = self.settings
        return (
            f"{len(self.columns)} scores, {len(self.components)} components, "
            f"{s['split']} split, {s['n_samples']} samples, {s['n_tokens']} tokens, "
            f"{'centred' if s['centred'] else 'raw'}; median share of the {name}: heads "
            f"{number(100 * heads, 0)} %, MLPs {number(100 * mlps, 0)} %; closes to "
            f"{self.residue:.0e}{self._control_words()}"
        )

    def _control_words(self) -> str:
        n = self.settings["permutations"]
        if "control" not in self.effects:
            return ""
        return "; control of 1 permutation, no test" if n == 1 else f"; control of {n} permutations"

    def summary(self) -> str:
        """Shares by concept, and the strongest heads, as text."""
        return f"{self!r}\n\n{super().summary()}"

    def sheets(self, n: int = 10) -> tuple[Sheet, ...]:
        """Shares by concept, and the strongest heads.

        Args:
            n: How many heads.
        """
        head = (
            f"{n} strongest heads by {self.ranked_by} relative to the total, of {self.candidates} "
            f"candidates; unit {self.settings['unit']}. Negative numbers work against the concept."
        )
        sheets = [self._shares_sheet(), Sheet((), (), head)]
        rows, names = self.strongest(n), [name for name in PRINTED_EFFECTS if name in self.effects]
        for words, sign in (("raise the score:", 1), ("lower the score:", -1)):
            if chosen := [row for row in rows if sign * row[self.ranked_by] > 0]:
                sheets.append(Sheet(["head", *names], [_head_line(row, names) for row in chosen], words))
        return tuple(sheets)

    def _shares_sheet(self) -> Sheet:
        header = ["concept", "layer"]
        rows = [[column.concept, str(column.layer)] for column in self.columns]
        for name in ("lift", "contrast"):
            if name not in self.effects:
                continue
            effect = self.effects[name]
            header += [f"{name} tokens", name, "heads %", "MLPs %", "embedding %"]
            shares = [self.share(kind, name).estimate for kind in ("heads", "mlps", "embedding")]
            for k, row in enumerate(rows):
                row += [str(int(effect.n_tokens[k])), signed(float(effect.total.estimate[k]))]
                row += [number(100 * float(share[k]), 0) for share in shares]
        return Sheet(header, rows, notes=[self._caution(), *unknown_notes(self.settings)])

    def _caution(self) -> str:
        """How often intervals exclude zero, beside how often selection alone makes them."""
        found = self.excluding_zero
        said = [f"{n} {number(100 * found[n], 0)} %" for n in PRINTED_EFFECTS if n in found]
        words = (
            f"Intervals exclude zero for this share of {self.candidates} head x concept cells: "
            f"{', '.join(said)}."
        )
        if "control" in self.effects:
            words += f" {self._control_caution()}"
        return (
            f"{words} Heads are ranked on the split shown ({self.settings['split']}), out of "
            f"{self.candidates} candidates."
        )

    def _control_caution(self) -> str:
        n = self.settings["permutations"]
        if n == 1:
            return (
                "The control is one permutation per concept: a scale of what selection alone gives, "
                "not a test. Two permuted vectors would differ as well: hold no share against 5 %."
            )
        cells = self.beyond_control()[self.head_cells]
        cells = cells[np.isfinite(cells)]
        beyond = float((cells <= 1 / (n + 1) + 1e-12).mean()) if len(cells) else float("nan")
        return (
            f"The control is the mean of {n} permutations per concept; intervals are over documents, "
            f"not permutations. Lifts beyond all {n}: {number(100 * beyond, 0)} % of cells, where "
            f"chance gives {number(100 / (n + 1), 0)} %."
        )

    def plot(self, concept: str | None = None, *, layer: int | None = None) -> Any:
        """Heads as a map of blocks and heads, beside the shares of heads, MLPs and embedding.

        The map shows the excess over the permuted control (else the lift, else the contrast) as a share
        of the score's own lift (contrast).

        Args:
            concept: Which; by default the mean over all scores, a head behind a score counting as 0.
            layer: Where a concept was decomposed at several.

        Raises:
            ValueError: Unknown concept, or one at several layers.
        """
        if concept is None and layer is not None:
            raise ValueError(f"layer {layer} is of one concept: name it too, concept=.")
        whole = "lift" if "lift" in self.effects else "contrast"
        chosen = range(len(self.columns)) if concept is None else [self.column(concept, layer)]
        grid, n = self._mean_map(chosen, whole)
        height = max(2.8, 0.16 * len(grid) + 1.4, 0.22 * len(chosen) + 1.6)
        figure, (left, right) = plots.new_figure(9.5, height, columns=2)
        limit = max(np.abs(grid[np.isfinite(grid)]).tolist(), default=0.0)
        unit = f"% of the {whole}"
        plots.heat(left, grid, range(len(grid)), range(grid.shape[1]), limit=limit, scale=unit)
        who = concept or f"mean of {n} scores"
        plots.words(left, title=f"{who}: {self.ranked_by}", x="head", y="block")
        self._bars(right, [self.scores[k] for k in chosen], whole)
        shares = self.effects[whole].shares.sel(
            score=[self.scores[k] for k in chosen], kind=list(_DRAWN_KINDS)
        )
        plots.note(figure, self._plot_note(), shares)
        return figure

    def _mean_map(self, chosen: Sequence[int], whole: str) -> tuple[Float[np.ndarray, "block head"], int]:
        """Percent of each score's total, a head behind a score 0, averaged over scores that have a tail."""
        totals = np.abs(self.effects[whole].total.estimate)
        blocks = max(self.depths[k] for k in chosen)
        maps = []
        for k in chosen:
            own = self.head_map(self.columns[k].concept, layer=self.columns[k].layer)
            with np.errstate(invalid="ignore", divide="ignore"):
                maps.append(np.pad(100 * own / totals[k], ((0, blocks - len(own)), (0, 0))))
        known = [one for one in maps if np.isfinite(one).all()]
        return (np.mean(known, axis=0) if known else np.full_like(maps[0], np.nan)), len(known)

    def _bars(self, ax: Any, scores: Sequence[str], effect: str) -> None:
        shares = self.effects[effect].shares.sel(score=list(scores))
        height = 0.8 / len(_DRAWN_KINDS)
        for j, (kind, (word, colour)) in enumerate(_DRAWN_KINDS.items()):
            of_kind = shares.sel(kind=kind)
            if not np.nan_to_num(of_kind.estimate).any():
                continue
            offset = (j - (len(_DRAWN_KINDS) - 1) / 2) * height
            plots.whiskers(ax, of_kind, colours=colour, offset=offset, label=word)
        plots.zero(ax)
        plots.legend(ax)
        plots.words(ax, title=f"shares of the {effect}", x="share")

    def _plot_note(self) -> str:
        s, name = self.settings, self.ranked_by
        control = {
            "excess": f"Excess: lift minus that of {s['permutations']} permuted-label vectors. ",
            "lift": "No control: tokens chosen by a sum lift every part of it that varies. ",
            "contrast": "",
        }[name]
        level = self.effects[name].total.level
        return (
            f"Orange raises the score, blue lowers it. {control}Split: {s['split']}; bars: {100 * level:g} % "
            "over documents.\nDirect contributions, no causal effects. Heads large on the split shown are so "
            "partly by chance."
        )


def _head_line(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    cells = []
    for n in names:
        low, high, note = (row[f"{n}_{end}"] for end in ("low", "high", "note"))
        cells.append(f"{signed(row[n])} {ends_text(low, high, note, sign=True)}")
    return [f"{row['component']} -> {row['concept']} at {row['at_layer']}", *cells]


@dataclass(frozen=True, eq=False, repr=False)
class TokenLedger(Result):
    """Terms of every kept token of one sample.

    Attributes:
        sample: The text.
        column: Concept, layer and threshold.
        components: Columns of `terms`.
        offsets: Characters of each token, or the box of each patch.
        position: Place of each token in the model's input.
        score: Measured scores.
        terms: They add up to `score`.
        tail: Which tokens are SuperActivators (none without a threshold).
    """

    sample: Sample
    column: Column
    components: tuple[Component, ...]
    offsets: Real[np.ndarray, "token edge"]
    position: Int[np.ndarray, " token"]
    score: Float[np.ndarray, " token"]
    terms: Float[np.ndarray, "token component"]
    tail: Bool[np.ndarray, " token"]

    text_keys: ClassVar[tuple[str, ...]] = ("tokens",)
    about: ClassVar[str] = (
        "Terms add up to the score of one token of one text: direct contributions, no causal effects, and "
        "without an interval."
    )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text of each token, or where each patch lies."""
        return tuple(self.sample.token_text(edges) for edges in self.offsets)

    def strongest(self, token: int, n: int = 10) -> list[tuple[str, float]]:
        """The largest terms of one token, by size.

        Raises:
            ValueError: There is no such token.
        """
        require_place("token", token, len(self.score), "tokens")
        order = np.argsort(-np.abs(self.terms[token]), kind="stable")[:n]
        return [(self.components[i].name, float(self.terms[token, i])) for i in order]

    def headline(self) -> str:
        """Concept, sample, and counts."""
        return (
            f"{self.column.concept!r} at block {self.column.layer}, sample {self.sample.id!r}, "
            f"{len(self.score)} tokens, {int(self.tail.sum())} SuperActivators, "
            f"{len(self.components)} terms"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """A line a token: its score, what embedding, heads and MLPs wrote, and its largest terms."""
        kinds = [kind for kind in COMPONENT_KINDS if any(c.kind == kind for c in self.components)]
        of_kind = np.array([[c.kind == kind for kind in kinds] for c in self.components], dtype=float)
        parts = (self.terms @ of_kind).tolist()
        rows = []
        for t, text in enumerate(self.tokens):
            largest = ", ".join(f"{name} {signed(value, 2)}" for name, value in self.strongest(t, 3))
            mark = "*" if self.tail[t] else ""
            rows.append([text, mark, number(float(self.score[t])), *map(signed, parts[t]), largest])
        title = f"{self.column.concept!r} at block {self.column.layer}; * a SuperActivator."
        return (Sheet(["token", "", "score", *kinds, "largest terms"], rows, title),)

    def rows(self) -> list[dict[str, Any]]:
        """Score and terms of every token."""
        rows = []
        for t, text in enumerate(self.tokens):
            of = {"token": text, "position": int(self.position[t]), "tail": bool(self.tail[t])}
            rows.append(exact("score", self.score[t], **of, component="score"))
            rows += [
                exact("term", self.terms[t, i], **of, component=part.name)
                for i, part in enumerate(self.components)
            ]
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Every number; of the sample its id and the texts of its tokens."""
        content = {
            "sample": self.sample.id,
            "tokens": self.tokens,
            "column": self.column._asdict(),
            "components": [component.name for component in self.components],
            "position": self.position,
            "score": self.score,
            "terms": self.terms,
            "tail": self.tail,
        }
        return {"format": FORMAT, "kind": type(self).__name__, **clean(content)}

    def plot(self, token: int | None = None, n: int = 12) -> Any:
        """Scores along the text or on the picture, and the largest terms of one token.

        Args:
            token: Place among the kept tokens; by default the one that scores highest.
            n: How many terms.

        Raises:
            ValueError: There is no such token.
        """
        at = int(self.score.argmax()) if token is None else token
        require_place("token", at, len(self.score), "tokens")
        image, title = self.sample.image, f"{self.column.concept}, block {self.column.layer}"
        if image is None:
            width = min(max(0.2 * len(self.score) + 1, 6.0), 18.0)
            figure, (upper, lower) = plots.new_figure(width, 5.6, rows=2)
            plots.word_bars(upper, self.tokens, self.score, self.tail)
            if np.isfinite(self.column.threshold):
                plots.zero(upper, upright=False, at=self.column.threshold)
            plots.words(upper, title=title, y="score")
        else:
            figure, (upper, lower) = plots.new_figure(9.0, 4.4, columns=2)
            plots.patch_map(upper, image.pixels, self.offsets, self._shares, self.tail)
            plots.words(upper, title=title)
        largest = self.strongest(at, n)
        colours = [plots.TAIL_COLOUR if value >= 0 else plots.IN_COLOUR for _, value in largest]
        lower.barh(range(len(largest)), [value for _, value in largest], color=colours)
        plots.rows(lower, [name for name, _ in largest])
        plots.zero(lower)
        plots.words(lower, title=f"largest terms of {self.tokens[at].strip()!r}", x="part of the score")
        plots.note(
            figure,
            f"Framed: SuperActivators. Shown are {len(largest)} of {len(self.components)} terms of one "
            f"token; all add up to {self.score[at]:.3f}.\nDirect contributions, no causal effects.",
        )
        return figure

    @property
    def _shares(self) -> Float[np.ndarray, " token"]:
        return self.score / (float(np.abs(self.score).max(initial=0.0)) or 1.0)

    def _repr_html_(self) -> str:
        tips = [
            f"{score:.3f}: " + ", ".join(f"{name} {signed(value, 2)}" for name, value in self.strongest(t, 3))
            for t, score in enumerate(self.score)
        ]
        image, title = self.sample.image, f"scores of {self.column.concept}"
        if image is None:
            shown = shaded_text(self.sample.text, self.offsets, self._shares, self.tail, tips)
        else:
            shown = shaded_picture(image.pixels, self.offsets, self._shares, self.tail, tips, title=title)
        return str(el("div", MAP_STYLE, el("div", shown, class_="sa-maps"), Markup(super()._repr_html_())))
