"""Curves of steering by strength, and what is cheaper at equal effect.

Steering few tokens hard and many tokens a little are compared where they do the same:
for each strength of "superactivators" the strength of "all" with the same effect is read off its curve
(between two strengths by a straight line of the effect), and what both cost there is subtracted, the
cost of "all" by the parabola through three strengths, since costs begin with the square of a small push.
A strength beyond what "all" reaches has no equal. In every column of documents both are read anew.

With E and C the effect and a cost of steering all tokens, by strength, and e, c those of one strength at
SuperActivators, what is told is c - C(E^-1(e)), below zero where steering at SuperActivators is cheaper.
What the measures are, and what they do not show: `sa_plugin.generation.steer_curves`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.show.result import Result, Sheet, number, short, signed
from sa_plugin.statistics.bootstrap import Resamples, resampled_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import Drawn

TAIL, EVERY, SCATTERED = "superactivators", "all", "random tokens"
ISOTROPIC, PERMUTED = "random direction", "permuted labels"
HIGHEST, MEAN, LEAK, OTHERS = "highest token", "mean token", "leak", "other concepts"
NATS, TOUCHED = "nats a token", "steered tokens"


@dataclass(frozen=True, eq=False, repr=False)
class SteeringCurves(Result):
    """What steering one concept does and costs by strength.

    Attributes:
        concept: Name.
        layer: Edited block.
        how: The edit.
        judges: Names of the two.
        passages: Passages that have the concept, and those that do not.
        given: Of passages as they stand, over arm, measure and strength.
        own: Of what the model says itself, read unsteered; None where it was not asked to.
        equal: What "superactivators" costs more than "all" at equal effect, over effect, cost and strength;
            NaN where "all" never has that effect.
        missing: Arms that are not there, and why.
    """

    concept: str
    layer: int
    how: str
    judges: tuple[str, str]
    passages: tuple[int, int]
    given: Drawn
    own: Drawn | None
    equal: Drawn
    missing: Mapping[str, str]

    about: ClassVar[str] = (
        "Judges behind an edit see the edit itself beside what the model makes of it; read of the model's "
        "own words they do not. They are vectors of the same data, not people. Intervals are over documents, "
        "with vectors, thresholds and layers held fixed, each cell read alone."
    )

    @property
    def strengths(self) -> tuple[float, ...]:
        """That were run."""
        return tuple(self.given.axes["strength"])

    def headline(self) -> str:
        """The edit, and what was found at equal effect."""
        return f"{self.concept!r}, {self.how} at block {self.layer}: {self.verdict()}"

    def verdict(self, effect: str | None = None) -> str:
        """When steering where the concept is beats steering everywhere, at equal effect, and when not.

        Said of the largest strength whose effect steering everywhere has too.

        Args:
            effect: A label of `equal`'s axis; by default what the judge of another kind says of the highest
                token.

        Raises:
            ValueError: There is no such effect; the text names the nearest.
        """
        name = f"{HIGHEST}, {self.judges[1]}" if effect is None else effect
        rows = self.equal.sel(effect=name)
        told = np.isfinite(rows.sel(cost=NATS).estimate)
        if not told.any():
            return f"steering everywhere has the effect of no strength here, or none has any ({name})"
        at = self.strengths[int(np.flatnonzero(told)[-1])]
        reached = self.given.sel(arm=TAIL, measure=name, strength=at)
        said = []
        for cost in self.equal.axes["cost"]:
            one = rows.sel(cost=cost, strength=at)
            if not np.isfinite(one.low):
                words = "no interval"
            elif one.excludes_zero:
                words = f"{'less' if one.estimate < 0 else 'more'}, {short(one, sign=True)}"
            else:
                could = float(one.detectable())
                told_of = f"could have told {number(could)}" if np.isfinite(could) else "no interval"
                words = f"cannot tell, {short(one, sign=True)} ({told_of})"
            said.append(f"{cost} {words}")
        return (
            f"at the effect of strength {at:g} ({name} {short(reached, sign=True)}), steering where the "
            f"concept is costs, against steering everywhere: {'; '.join(said)}"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """Every measure by arm and strength, the effect beyond each control, and costs at equal effect."""
        sheets = [
            self._curves(self.given, name, "Passages as they stand") for name in self.given.axes["measure"]
        ]
        sheets.append(self._beyond())
        if self.own is not None:
            words = "The model's own words, read unsteered"
            sheets += [self._curves(self.own, name, words) for name in self.own.axes["measure"]]
        return (*sheets, self._at_equal_effect())

    def _curves(self, drawn: Drawn, measure: str, title: str) -> Sheet:
        arms = drawn.axes["arm"]
        lines = []
        for arm in arms:
            one = drawn.sel(arm=arm, measure=measure)
            clear = np.where(one.excludes_zero & (measure != TOUCHED), "*", "")
            cells = [number(v) if measure == TOUCHED else signed(v) for v in one.estimate]
            lines.append([arm, *(f"{cell}{star}" for cell, star in zip(cells, clear, strict=True))])
        notes = ["* the interval excludes zero, read alone."] if measure != TOUCHED else []
        header = ["strength", *(f"{s:g}" for s in self.strengths)]
        return Sheet(header, lines, f"{title}: {measure}.", notes)

    def _beyond(self) -> Sheet:
        name = f"{HIGHEST}, {self.judges[1]}"
        rows = self.given.sel(measure=name)
        lines = []
        for arm in (one for one in rows.axes["arm"] if one not in (TAIL, EVERY)):
            own = rows.sel(arm=TAIL) - rows.sel(arm=arm)
            cells = [short(own.sel(strength=s), sign=True) for s in self.strengths]
            lines.append([arm, *cells])
        header = ["beyond", *(f"{s:g}" for s in self.strengths)]
        return Sheet(header, lines, f"Effect minus that of each control: {name}.", [])

    def _at_equal_effect(self) -> Sheet:
        lines = []
        for effect in self.equal.axes["effect"]:
            for cost in self.equal.axes["cost"]:
                row = self.equal.sel(effect=effect, cost=cost)
                cells = [short(row.sel(strength=s), sign=True) for s in self.strengths]
                plain = ["-" if not np.isfinite(v) else c for c, v in zip(cells, row.estimate, strict=True)]
                lines.append([effect, cost, *plain])
        header = ["effect", "cost", *(f"{s:g}" for s in self.strengths)]
        notes = [
            "Negative: steering where the concept is costs less. '-': 'all' has no such effect.",
            f"{self.verdict()[:1].upper()}{self.verdict()[1:]}.",
            *(f"{arm} is not there: {why}." for arm, why in self.missing.items()),
        ]
        return Sheet(header, lines, "Superactivators minus all, at equal effect.", notes)

    def plot(self) -> Any:
        """Effect by strength of every arm; cost and leak against the effect, of the two that are compared."""
        from sa_plugin.show import plots

        figure, axes = plots.new_figure(11.0, 3.8, columns=3)
        name, leak = f"{HIGHEST}, {self.judges[1]}", f"{LEAK}, {self.judges[1]}"
        own = {TAIL: ("-", plots.TAIL_COLOUR), EVERY: ("-", plots.IN_COLOUR)}
        looks = plots.styles(
            self.given.axes["arm"], {arm: (colour, dash) for arm, (dash, colour) in own.items()}
        )
        for arm, (colour, dashes) in looks.items():
            one = self.given.sel(arm=arm, measure=name)
            plots.line(axes[0], one, label=arm, colour=colour, dashes=dashes, band=arm in own)
        plots.words(axes[0], title=self.concept, x="strength", y="highest token, deviations")
        for ax, cost in zip(axes[1:], (NATS, leak), strict=True):
            for arm in own:
                effect = self.given.sel(arm=arm, measure=name).estimate
                price = self.given.sel(arm=arm, measure=cost)
                colour = own[arm][1]
                ax.plot([0, *effect], [0, *price.estimate], "o-", ms=3, lw=1.2, color=colour, label=arm)
                ax.vlines(effect, price.low, price.high, color=colour, lw=0.8)
            label = cost if cost == NATS else "leak, deviations"
            plots.words(ax, title="against the effect", x="highest token, deviations", y=label)
        # Controls stand in the first panel alone, and their names in the one legend.
        for arm, (colour, dashes) in looks.items():
            if arm not in own:
                axes[2].plot([], [], color=colour, ls=dashes, label=arm)
        plots.legend(axes[2])
        plots.note(
            figure,
            f"Effect and leak as {self.judges[1]} scores them. Bands and bars: {100 * self.given.level:g} % "
            "over documents. A judge behind the edit sees the edit itself too.",
            self.given,
        )
        return figure


def drawn_of(
    sums: Mapping[str, np.ndarray],
    labels: Bool[np.ndarray, " sample"],
    judges: Sequence[str],
    resamples: Resamples,
    strengths: tuple[float, ...],
) -> Drawn:
    """All measures over arm, measure and strength."""
    every = np.ones(len(labels), dtype=bool)
    values, carried, kinds, names = [], [], [], []

    def measure(name: str, above: np.ndarray, below: np.ndarray, rows: Any, kind: str = "mean") -> None:
        # A passage without a token that counts is none of the measure's.
        rows = rows & np.isfinite(above).all((0, 1))
        top, base = np.where(rows, np.nan_to_num(above), 0.0), np.where(rows, below, 0.0)
        values.append(ratio(resampled_sums(top, resamples), resampled_sums(base, resamples), empty=np.nan))
        carried.append(resamples.rows(rows))
        kinds.append(kind)
        names.append(name)

    tokens, ones = sums["tokens"], np.ones_like(sums["tokens"])
    for judge in judges:
        highest = sums[f"{HIGHEST}, {judge}"]
        measure(f"{HIGHEST}, {judge}", highest, ones, labels)
        measure(f"{MEAN}, {judge}", sums[f"{MEAN}, {judge}"], tokens, labels)
        # What a model says itself has no labels: all of it counts.
        if not labels.all():
            measure(f"{LEAK}, {judge}", highest, ones, ~labels)
        measure(f"{OTHERS}, {judge}", sums[f"{OTHERS}, {judge}"], tokens, every)
    measure(NATS, sums[NATS], sums["predicted"], every)
    measure(TOUCHED, sums[TOUCHED], sums["valid"], every, "share")
    return resamples.drawn(
        np.stack(values, axis=1),
        np.array(kinds, dtype=object)[None, :, None],
        np.stack(carried)[None, :, None],
        arm=tuple(str(one) for one in sums["arms"]),
        measure=tuple(names),
        strength=strengths,
    )


def equal_of(given: Drawn, judges: Sequence[str]) -> Drawn:
    """What "superactivators" costs more than "all", at the effect of each of its strengths."""
    strengths = given.axes["strength"]
    effects = [f"{what}, {judge}" for judge in judges for what in (HIGHEST, MEAN)]
    values, carried = [], []
    costs = (NATS, OTHERS, LEAK)
    for effect in effects:
        judge = effect.split(", ", 1)[1]
        names = [effect, *(cost if cost == NATS else f"{cost}, {judge}" for cost in costs)]
        tables = [given.sel(measure=name) for name in names]
        tail, every = ([one.sel(arm=arm).values for one in tables] for arm in (TAIL, EVERY))
        at = [at_equal_effect(strengths, every[0], every[1:], tail[0][j]) for j in range(len(strengths))]
        own = [np.stack([tail[1 + c][j] for c in range(len(costs))]) for j in range(len(strengths))]
        values.append(np.stack([mine - theirs for mine, theirs in zip(own, at, strict=True)], axis=1))
        # The effect rests on passages that have the concept, whatever the cost rests on.
        carried.append(np.broadcast_to(tables[0].carried[0, 0], (len(costs), 1, given.units)))
    return replace(
        given,
        values=np.stack(values),
        axes={"effect": tuple(effects), "cost": costs, "strength": strengths},
        kind=np.array("mean"),
        carried=np.stack(carried),
    )


def at_equal_effect(
    strengths: Sequence[float],
    effect: Float[np.ndarray, "strength column"],
    costs: Sequence[Float[np.ndarray, "strength column"]],
    wanted: Float[np.ndarray, " column"],
) -> Float[np.ndarray, "cost column"]:
    """Costs where a curve has some effect, in every column; NaN where it never has.

    Between two strengths the effect is a straight line; costs are the parabola through the two and the
    nearest third, since a cost begins with the square of a push. Which two is decided on the data (column
    0), and kept for all columns, so that columns differ smoothly.

    Args:
        strengths: Without 0, which has no effect and costs nothing.
        effect: Of the curve.
        costs: The same of each cost.
        wanted: Effect that is looked for; none has no equal.
    """
    zero = np.zeros_like(effect[:1])
    s = np.array([0.0, *strengths])
    e = np.concatenate([zero, effect])
    crossing = (e[:-1, 0] - wanted[0]) * (e[1:, 0] - wanted[0]) <= 0
    if not crossing.any() or not wanted[0]:
        return np.full((len(costs), len(wanted)), np.nan)
    k = int(np.flatnonzero(crossing)[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        at = s[k] + (wanted - e[k]) / (e[k + 1] - e[k]) * (s[k + 1] - s[k])
    three = [k - 1, k, k + 1] if k else [0, 1, 2][: len(s)]
    found = []
    for cost in costs:
        c = np.concatenate([zero, cost])
        total = np.zeros_like(at)
        for i in three:
            weight = np.ones_like(at)
            for j in three:
                if j != i:
                    weight = weight * (at - s[j]) / (s[i] - s[j])
            total += weight * c[i]
        found.append(total)
    return np.stack(found)
