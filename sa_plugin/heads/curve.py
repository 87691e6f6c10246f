"""The top k of a ranking against other heads of like kind, for several k.

The claim "these heads make the tail" is: ablating the top k takes more from the tail than ablating
k others. The claim "these heads suffice" is: keeping the top k and ablating all others leaves more
than keeping k others. For a metric m, a control family (`controls`) and k,

    margin = mean over the family's sets of m(after control) - m(after top k)          (ablated)
    margin = m(only top k kept) - mean over the family's sets of m(only control kept)  (kept)

in the same columns of documents; its interval is over documents, with ranking, sets, vectors and
thresholds held fixed. It says nothing of other sets of the family: how far those drawn differ is
shown beside it. The verdict calls a margin clear when its interval lies above zero *and* the top k
leaves less (kept: more) than every single set of the family.

Beside the margins stands for each k and metric whose tail the top k carry: the concept's own, any
vector's, or that it cannot be told and what could have been (`whose`).

What it does not show. Margins at several k, metrics and families are not independent, and no error
rate is controlled over them. Sets of a norm-matched family match direct changes only; the realised
change of the residual stands in the table, and where the top set's is larger, "these heads" may be
no more than "more was changed". A clear margin is about this split of this data. Keeping is the
harsher edit: nearly the whole model is ablated, and a set that fails may fail with all others too
(the set "none" shows the floor).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.ablate import Ablation, ablate
from sa_plugin.heads.baseline import baseline, candidates, known_of
from sa_plugin.heads.controls import HeadSets, distinct_sets, families_of, head_changes
from sa_plugin.heads.edits import Head, Intervention, NamedHead, check_heads
from sa_plugin.heads.rank import Ranking, head_name
from sa_plugin.heads.tail_metrics import unit_of
from sa_plugin.heads.whose import LEAST_PERMUTED, LITTLE, POWER, Answer, whose
from sa_plugin.host.protocol import Host
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, exact, number, short
from sa_plugin.statistics.drawn import Drawn, Resampling, stack

VERDICT_METRICS = ("tail_gap", "auroc", "average_precision", "f1_recalibrated")
"""Of these, less is a loss; `negative_coverage` has no such direction."""


@dataclass(frozen=True, eq=False)
class CurveRun:
    """One set of heads, ablated or alone kept.

    Attributes:
        k: How many heads.
        family: "top", a family of `controls`, or "none" (k = 0, nothing kept).
        heads: Which are ablated, or alone kept.
        result: What it did.
    """

    k: int
    family: str
    heads: tuple[Head, ...]
    result: Ablation

    @property
    def change(self) -> float:
        """Change of the residual at the concepts' layers, mean over concepts."""
        return float(self.result.change.mean())


@dataclass(frozen=True, eq=False, repr=False)
class AblationCurve(Result):
    """The top k of a ranking and its controls, ablated.

    Attributes:
        runs: In order of k and family.
        ranking: Candidates, best first.
        ranked_by: What the order is, for the reader.
        mode: Of `edits.ABLATIONS`.
        sizes: Direct change by head, where a family was matched on it.
        keep: Whether the sets were kept and all others ablated.
    """

    runs: tuple[CurveRun, ...]
    ranking: tuple[Head, ...]
    ranked_by: str
    mode: str
    sizes: Mapping[Head, float]
    keep: bool = False

    about: ClassVar[str] = (
        "Margins at several k, metrics and families are not independent, and no error rate is controlled "
        "over them. Intervals are over documents, with ranking and sets held fixed."
    )

    @property
    def ks(self) -> tuple[int, ...]:
        """Numbers of heads."""
        return tuple(dict.fromkeys(run.k for run in self.runs if run.k))

    @property
    def families(self) -> tuple[str, ...]:
        """Control families."""
        named = dict.fromkeys(run.family for run in self.runs)
        return tuple(family for family in named if family not in ("top", "none"))

    @property
    def metrics(self) -> tuple[str, ...]:
        """What was measured."""
        return self.runs[0].result.metrics

    def of(self, k: int, family: str) -> list[CurveRun]:
        """The runs of one family at one k.

        Raises:
            ValueError: There is none.
        """
        require_known("family", family, ("top", *self.families))
        found = [run for run in self.runs if (run.k, run.family) == (k, family)]
        if not found:
            raise ValueError(f"nothing was ablated at k = {k}; there is {list(self.ks)}.")
        return found

    def after(self, k: int, family: str) -> Drawn:
        """Every metric after each set, mean over concepts: over set and metric."""
        return stack({n: run.result.mean("after") for n, run in enumerate(self.of(k, family))}, "set")

    def margin(self, k: int, family: str) -> Drawn:
        """How much more the family's sets leave of each metric than the top k; kept: how much less.

        Raises:
            ValueError: There is no such family, or nothing was ablated at k.
        """
        require_known("family", family, self.families)
        self.of(k, family)
        return self._margins[k, family]

    @cached_property
    def _margins(self) -> dict[tuple[int, str], Drawn]:
        found = {}
        for k in self.ks:
            top = self.after(k, "top").sel(set=0)
            for family in self.families:
                sets = self.after(k, family)
                # A column that leaves one of the sets undefined has no mean over the family.
                others = top.like(sets.values.mean(0))
                found[k, family] = top - others if self.keep else others - top
        return found

    def clear(self, metric: str, k: int, family: str) -> bool:
        """Whether the margin's interval lies above zero and no set leaves as little.

        Kept: as much.
        """
        others = self.after(k, family).sel(metric=metric).estimate
        top = self.after(k, "top").sel(metric=metric).estimate[0]
        beyond = others.max() < top if self.keep else others.min() > top
        return bool(self.margin(k, family).sel(metric=metric).low > 0 and beyond)

    def answer(self, k: int, metric: str = "tail_gap") -> Answer:
        """Whose tail the top k carry, by one metric.

        Raises:
            ValueError: Nothing was ablated at k, no permuted sets were, or less of the metric is no loss.
        """
        require_known("metric", metric, VERDICT_METRICS)
        if "permuted" not in self.families:
            raise ValueError(
                "no permuted sets were ablated, so whose tail it is was not asked: give a ranking with "
                "orders by permuted labels (rank_heads has five by default), and 'permuted' among controls."
            )
        (top,) = self.of(k, "top")
        takes = -top.result.mean("difference").sel(metric=metric)
        if self.keep:
            (none,) = (run for run in self.runs if run.family == "none")
            takes = (top.result.mean("after") - none.result.mean("after")).sel(metric=metric)
        left, side = self.after(k, "top").sel(set=0, metric=metric).estimate, 1 if self.keep else -1
        others = self.after(k, "permuted").sel(metric=metric).estimate
        matched = [family for family in self.families if family not in ("bottom", "permuted")]
        return whose(
            takes,
            self.margin(k, "permuted").sel(metric=metric),
            takes.estimate + side * (others - left),
            all(self.clear(metric, k, family) for family in matched) if matched else None,
        )

    def rows(self) -> list[dict[str, Any]]:
        """What is left after each set and what was changed, and every margin."""
        found: list[dict[str, Any]] = []
        places: Counter[tuple[int, str]] = Counter()
        for run in self.runs:
            # Permutations may name the same heads, so a set is known by its place too.
            place = places[run.k, run.family]
            places[run.k, run.family] += 1
            names = _names(sorted(run.heads))
            labels = {"k": run.k, "family": run.family, "set": place, "heads": names}
            found.append(exact("residual_change", run.change, **labels))
            for when in ("after", "difference"):
                found += [labels | row for row in run.result.mean(when).rows(when)]
        for (k, family), margin in self._margins.items():
            found += [{"k": k, "family": family} | row for row in margin.rows("margin")]
        for k, metric in self._asked():
            answer, labels = self.answer(k, metric), {"k": k, "family": "top", "metric": metric}
            found.append(labels | answer.takes.row("takes"))
            found.append(exact("could_tell", answer.could_tell, **labels) | {"note": answer.words})
        return found

    def _asked(self) -> list[tuple[int, str]]:
        """Where an answer was asked for."""
        asked = "permuted" in self.families
        return [(k, metric) for k in self.ks for metric in VERDICT_METRICS] if asked else []

    def headline(self) -> str:
        """How many heads were ablated, against what, and whose tail they carry."""
        found = (
            f"{self.mode}{', only k kept' * self.keep}, k {list(self.ks)} of {len(self.ranking)} heads, "
            f"top against {', '.join(self.families)}: {len(self.runs)} runs"
        )
        said = ", ".join(f"k {k} {self.answer(k).said}" for k, m in self._asked() if m == "tail_gap")
        return f"{found}; tail gap: {said}" if said else found

    def sheets(self) -> tuple[Sheet, ...]:
        """What is left after each family, and for each k the margins and a verdict."""
        first = self.runs[0].result
        lines = [["unablated", "", "0", *map(number, first.mean("before").estimate)]]
        for k in self.ks:
            for family in ("top", *self.families):
                lines.append(self._line(f"{k} {family}", self.of(k, family)))
        floor = [run for run in self.runs if run.family == "none"]
        lines += [self._line("none kept", floor)] if floor else []
        notes = [
            f"Means over {len(first.concepts)} concepts, {first.settings['split']} split; range "
            "over a family's sets in brackets. change: root mean square change of the residual at "
            "the concepts' layers, in units of its scale.",
            f"Heads ranked by {self.ranked_by}. {self.mode} ablation"
            + (" of all heads but these." if self.keep else "."),
        ]
        header = ["heads", "sets", "change", *self.metrics]
        return (Sheet(header, lines, "", notes), *(self.verdict(k) for k in self.ks))

    def _line(self, name: str, sets: Sequence[CurveRun]) -> list[str]:
        after = np.stack([run.result.mean("after").estimate for run in sets])
        return [name, str(len(sets)), _spread([run.change for run in sets]), *map(_spread, after.T.tolist())]

    def verdict(self, k: int) -> Sheet:
        """Against which controls the top k is clearly worse, and against which it is not."""
        lines = []
        asked = "permuted" in self.families
        for metric in VERDICT_METRICS:
            clear = [f for f in self.families if self.clear(metric, k, f)]
            word = "all" if len(clear) == len(self.families) else ", ".join(clear) or "none"
            margins = [short(self.margin(k, f).sel(metric=metric), sign=True) for f in self.families]
            whose = []
            if asked:
                answer = self.answer(k, metric)
                whose = [short(answer.takes, sign=True), answer.words]
            lines.append([metric, word, *margins, *whose])
        what = "what keeping it saves beyond controls" if self.keep else "what controls leave beyond it"
        takes = ["saves" if self.keep else "takes", "whose tail"] if asked else []
        header = ["metric", "clear against", *self.families, *takes]
        return Sheet(header, lines, f"Top {k}, {what}:", [*self._change_words(k), *self._set_words(k)])

    def _change_words(self, k: int) -> list[str]:
        others = [run.change for f in self.families for run in self.of(k, f)]
        top = self.of(k, "top")[0].change
        most = top / max([*others, 1e-30])
        least = min([*others, np.inf]) / max(top, 1e-30)
        if others and most > 1 and not self.keep:
            return [
                f"The top set changes the residual {number(most, 2)} times as much as the control "
                "that changes it most: what it takes may be owed to that."
            ]
        if others and least > 1 and self.keep:
            return [
                f"Every control changes the residual at least {number(least, 2)} times as much as "
                "keeping the top set does: what it saves may be owed to that."
            ]
        return []

    def _set_words(self, k: int) -> list[str]:
        top, words = self.of(k, "top")[0].heads, []
        matched = self.of(k, "layer_matched") if "layer_matched" in self.families else []
        moved = max((_displaced(run.heads, top) for run in matched), default=0)
        if moved:
            words.append(
                f"Up to {moved} heads of a layer-matched set are of another block: "
                "the top set leaves too few in its own."
            )
        if "permuted" in self.families:
            shared = [len(set(top) & set(run.heads)) for run in self.of(k, "permuted")]
            words.append(_shared_words(shared, k))
            n = len(shared)
            words.append(
                f"Whose tail: labels that mean nothing would name a set beyond all {n} permuted ones with "
                f"chance 1/{n + 1}; any vector's: at most {LITTLE:g} of what it takes is beyond them; could "
                f"have told: with power {POWER:g}."
            )
        return words

    def _said_words(self) -> str:
        said = [f"k {k} {self.answer(k).words}" for k, metric in self._asked() if metric == "tail_gap"]
        return f"\nWhose tail gap: {'; '.join(said)}." if said else ""

    def plot(self) -> Any:
        """Each metric against k: the top with its interval, control families with their sets' spread."""
        shown = [m for m in self.metrics if m in VERDICT_METRICS or m.startswith("output")]
        figure, axes = plots.new_figure(2.6 * len(shown) + 1.4, 3.2, columns=len(shown))
        style = plots.styles(self.families)
        places = np.arange(len(self.ks))
        for ax, metric in zip(np.ravel(axes), shown, strict=True):
            ax.axhline(
                float(self.runs[0].result.mean("before").sel(metric=metric).estimate),
                color=plots.OUT_COLOUR,
                ls="--",
                lw=1,
                label="unablated",
            )
            for floor in (run for run in self.runs if run.family == "none"):
                left = float(floor.result.mean("after").sel(metric=metric).estimate)
                ax.axhline(left, color=plots.OUT_COLOUR, ls=":", lw=1, label="none kept")
            for n, family in enumerate(self.families):
                colour, dashes = style[family]
                sets = [self.after(k, family).sel(metric=metric).estimate for k in self.ks]
                mean, low, high = (np.array([f(one) for one in sets]) for f in (np.mean, np.min, np.max))
                # Beside one another, so that spreads at one k can be told apart.
                at = places + 0.08 * (n + 1)
                # The mean of equal sets may lie beyond them by its rounding.
                spread = np.maximum([mean - low, high - mean], 0.0)
                ax.errorbar(at, mean, spread, color=colour, ls=dashes, lw=1, label=family)
            top = [self.after(k, "top").sel(set=0, metric=metric) for k in self.ks]
            value, low, high = np.array([(t.estimate, t.low, t.high) for t in top]).T
            _, _, (bars,) = ax.errorbar(
                places,
                value,
                [value - low, high - value],
                color=plots.TAIL_COLOUR,
                lw=2.2,
                marker="o",
                ms=4,
                label=f"top, {100 * top[0].level:g} %",
            )
            bars.set_linestyle(plots.dashes_of(stack(dict(enumerate(top)), "k")))
            ax.set_xticks(places, [str(k) for k in self.ks])
            ax.margins(x=0.12)
            plots.words(ax, title=metric, x="heads kept" if self.keep else "heads ablated", y=unit_of(metric))
        plots.legend(np.ravel(axes)[-1])
        first = self.runs[0].result
        plots.note(
            figure,
            f"Mean over {len(first.concepts)} concepts, {first.settings['split']} split, {self.mode} "
            "ablation. Top: interval over documents; controls: mean and range of their sets. No error rate "
            "is controlled over k, metrics and families." + self._said_words(),
            *(self.after(k, "top").sel(set=[0], metric=shown) for k in self.ks),
        )
        return figure


def _shared_words(shared: Sequence[int], k: int) -> str:
    if len(shared) == 1:
        return (
            f"The permuted set shares {shared[0]} of {k} heads with the top. It is one "
            "permutation's: how far others would differ is not known (rank_heads(permutations="
            "5) has more)."
        )
    least, most = min(shared), max(shared)
    words = f"{least} to {most}" if least < most else str(least)
    return f"{len(shared)} permuted sets share {words} of {k} heads with the top."


def _displaced(heads: Sequence[Head], top: Sequence[Head]) -> int:
    """How many heads stand in another block than those they are matched with."""
    here, there = (Counter(layer for layer, _ in some) for some in (heads, top))
    return (there - here).total()


def _spread(values: Sequence[float]) -> str:
    mean = number(float(np.mean(values)))
    return mean if len(values) == 1 else f"{mean} [{number(min(values))}, {number(max(values))}]"


def _names(heads: Iterable[Head]) -> str:
    return " ".join(map(head_name, heads))


@face
def ablation_curve(
    host: Host,
    data: ConceptData,
    detector: Detector,
    ranking: Ranking | Sequence[NamedHead],
    *,
    sets: HeadSets = HeadSets(),
    how: Intervention = Intervention(),
    scores: ScoreTable | None = None,
    split: str = "test",
    resampling: Resampling = Resampling(),
) -> AblationCurve:
    """Ablate the top k of a ranking and its controls, or all heads but those.

    Costs `len(ks) * (2 + 3 * repeats)` ablations with the default controls, and for permuted ones the
    larger of `repeats` and 5 for each k; each is one pass over the calibration and the measured split
    ("directional": one for every concept). A set that stands twice is ablated once. With `how.keep` one
    ablation more, of all heads.

    Args:
        host: An attached model that can edit.
        data: Labelled samples.
        detector: From `calibrate`.
        ranking: `rank_heads(...)`, or heads of your own order, best first, chosen without the
            split that is measured.
        sets: How many heads, and what they are held against.
        how: As in `ablate_heads`, like the arguments that follow; with `keep` each set is kept and
            all others are ablated: does the set suffice?
        scores: Unablated scores of the calibration and the measured split.
        split: What is measured.
        resampling: Of source documents; its seed is that of donors and sets too.

    Returns:
        One ablation for each k, control and repetition, with the ranking they were taken from.

    Raises:
        ValueError: As `ablate_heads`; a k for which too few other heads are left; "bottom" with a
            list that does not name every candidate; "permuted" with a ranking that has no
            permuted-label order.
    """
    every = candidates(host, detector)
    permuted = ranking.permuted if isinstance(ranking, Ranking) else ()
    families = families_of(sets, bool(permuted))
    order = _order(host, ranking, every, families)
    _check_ks(sets.ks, families, order, every)
    base = baseline(
        host, data, detector, split=split, scores=scores, resampling=resampling, output=how.output
    )
    known = known_of(base, how.mode, {at for at, _ in every})
    sizes = head_changes(base, how.mode, known) if "norm_matched" in families else {}
    ranked = (*order, *(head for head in every if head not in set(order)))
    chosen: list[tuple[int, str, tuple[Head, ...]]] = []
    for k in sets.ks:
        chosen.append((k, "top", order[:k]))
        for family in families:
            others = (
                [one[:k] for one in permuted[: max(sets.repeats, LEAST_PERMUTED)]]
                if family == "permuted"
                else distinct_sets(family, order[:k], ranked, sizes, sets.repeats, resampling.seed)
            )
            chosen += [(k, family, heads) for heads in others]
    if how.keep:
        chosen.append((0, "none", ()))
    # Permutations may name one set, or the top's own: it is ablated once.
    found: dict[frozenset[Head], Ablation] = {}
    for _, _, heads in tqdm(chosen, desc="ablations", disable=not host.progress, leave=False):
        if frozenset(heads) in found:
            continue
        gone = tuple(head for head in every if head not in set(heads)) if how.keep else heads
        everywhere = dict.fromkeys(range(len(detector.concepts)), gone)
        found[frozenset(heads)] = ablate(base, everywhere, how.mode, known)
    runs = [CurveRun(k, family, heads, found[frozenset(heads)]) for k, family, heads in chosen]
    by = (
        f"{ranking.by} ({ranking.effect}) on {ranking.split}"
        if isinstance(ranking, Ranking)
        else "the order given"
    )
    return AblationCurve(tuple(runs), ranked, by, how.mode, sizes, how.keep)


def _order(
    host: Host, ranking: Ranking | Sequence[NamedHead], every: Sequence[Head], controls: Sequence[str]
) -> tuple[Head, ...]:
    if "permuted" in controls and not (isinstance(ranking, Ranking) and ranking.permuted):
        raise ValueError(
            "the ranking has no order by permuted-label vectors: rank_heads has five by default, with a bank "
            "that can be refitted on this data; or leave 'permuted' out of controls."
        )
    heads = ranking.heads if isinstance(ranking, Ranking) else ranking
    order = check_heads(host.info, heads, "ranking")
    late = [head for head in order if head not in set(every)]
    if late:
        raise ValueError(
            f"head {late[0]} writes after every concept's layer, so its ablation cannot show: leave it out."
        )
    missing = len(every) - len(order)
    if "bottom" in controls and missing:
        raise ValueError(
            f"the ranking lacks {missing} of {len(every)} candidates, so its bottom is unknown: "
            "rank them all, or leave 'bottom' out of controls."
        )
    return order


def _check_ks(
    ks: Sequence[int], families: Sequence[str], order: Sequence[Head], every: Sequence[Head]
) -> None:
    for k in ks:
        most = min(len(order), len(every) // 2 if families else len(every))
        if not 1 <= k <= most:
            raise ValueError(
                f"k = {k} lies outside 1 to {most}: {len(order)} heads are ranked, and controls "
                f"are as many others among {len(every)} candidates."
            )
