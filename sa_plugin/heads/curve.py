"""The top k of a ranking against other heads of like kind, for several k.

The claim "these heads make the tail" is: ablating the top k takes more from the tail than ablating
k others. The claim "these heads suffice" is: keeping the top k and ablating all others leaves more
than keeping k others. For a metric m, a control family and k,

    margin = mean over the family's sets of m(after control) - m(after top k)          (ablated)
    margin = m(only top k kept) - mean over the family's sets of m(only control kept)  (kept)

on the same resamples of documents; its interval is over documents, with ranking, sets, vectors and
thresholds held fixed. It says nothing of other sets of the family: how far those drawn differ is
shown beside it. The verdict calls a margin clear when its interval lies above zero *and* the top k
leaves less (kept: more) than every single set of the family.

What it does not show. Margins at several k, metrics and families are not independent, and no error
rate is controlled over them. Sets of a norm-matched family match direct changes only; the realised
change of the residual stands in the table, and where the top set's is larger, "these heads" may be
no more than "more was changed". A clear margin is about this split of this data. Keeping is the
harsher edit: nearly the whole model is ablated, and a set that fails may fail with all others too
(the set "none" shows the floor).

Runs the ablations of a curve; what a curve is and what it does not show stands in `curve.py`.

Is it this concept, or everything? The other concepts under each concept's own ablation.

For every concept c that heads are given for, those heads are ablated and *all* concepts measured:

    own(m)    = mean over c of  m_c(after c's heads) - m_c(before)
    others(m) = mean over c of the mean over c' != c of  m_c'(after c's heads) - m_c'(before)

all on the same resamples of documents, so own - others is paired. With "directional", c's direction
is what is taken out for all.

What it does not show: "others" are the bank's other concepts, related or not; concepts that share
heads or stand near each other in the vector space lose together, and rightly so. A loss of own
alone is specific among these concepts only; see `output.py` for the model as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from sa_plugin._check import position_of, require_known
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.measures import interval_of
from sa_plugin.heads.ablate import Ablation, Baseline, ablate, baseline, candidates, known_of
from sa_plugin.heads.edits import MODES, Head, Reference, check_heads
from sa_plugin.heads.rank import CONTROLS, FAMILIES, Ranking, control_set, head_changes
from sa_plugin.heads.tail_metrics import mean_over_concepts
from sa_plugin.host.protocol import Host, Output
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import aligned, frame, number, signed
from sa_plugin.statistics.drawn import Interval

# Of these, less is a loss; `negative_coverage` has no such direction.
VERDICT_METRICS = ("tail_gap", "auroc", "average_precision", "f1_recalibrated")


@dataclass(frozen=True, eq=False)
class CurveRun:
    """One set of heads, ablated or alone kept.

    Attributes:
        k: How many heads.
        family: "top", of `controls.FAMILIES`, or "none" (k = 0, nothing kept).
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


@dataclass(frozen=True, eq=False)
class AblationCurve:
    """The top k of a ranking and its controls, ablated.

    Attributes:
        runs: In order of k and family.
        ranking: Candidates, best first.
        ranked_by: What the order is, for the reader.
        mode: Of `reference.MODES`.
        sizes: Direct change by head, where a family was matched on it.
        keep: Whether the sets were kept and all others ablated.
    """

    runs: tuple[CurveRun, ...]
    ranking: tuple[Head, ...]
    ranked_by: str
    mode: str
    sizes: dict[Head, float]
    keep: bool = False

    def __repr__(self) -> str:
        return (
            f"AblationCurve({self.mode}{', only k kept' * self.keep}, k {list(self.ks)} of "
            f"{len(self.ranking)} heads, top against {', '.join(self.families)}: "
            f"{len(self.runs)} runs)"
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

    def after(self, metric: str, k: int, family: str) -> Float[np.ndarray, "set column"]:
        """Mean over concepts after each set; column 0 is the split itself."""
        return np.stack([run.result.columns(metric, "after") for run in self.of(k, family)])

    def margin(self, metric: str, k: int, family: str) -> Interval:
        """How much more the family's sets leave than the top k, with its interval.

        Kept: how much less.
        """
        left = self.after(metric, k, family).mean(0) - self.after(metric, k, "top")[0]
        left = -left if self.keep else left
        return interval_of(left, self.of(k, "top")[0].result.resamples, 0.95)

    def clear(self, metric: str, k: int, family: str) -> bool:
        """Whether the margin's interval lies above zero and no set leaves as little.

        Kept: as much.
        """
        others = self.after(metric, k, family)[:, 0]
        top = self.after(metric, k, "top")[0, 0]
        beyond = others.max() < top if self.keep else others.min() > top
        return bool(self.margin(metric, k, family).low > 0 and beyond)

    def table(self) -> Any:
        """One row a set of heads: a pandas DataFrame where pandas is installed."""
        rows = []
        for run in self.runs:
            row: dict[str, Any] = {"k": run.k, "family": run.family}
            row["heads"] = " ".join(f"L{layer}H{head}" for layer, head in sorted(run.heads))
            row["residual_change"] = run.change
            for metric in self.metrics:
                row[metric] = float(run.result.columns(metric, "after")[0])
                row[f"{metric}_difference"] = run.result.difference(metric).estimate
            rows.append(row)
        return frame(rows)

    def summary(self) -> str:
        """What is left after each family, margins and a verdict for each k, as text."""
        first = self.runs[0].result
        before = [number(first.columns(m, "before")[0]) for m in self.metrics]
        lines = [["unablated", "", "0", *before]]
        for k in self.ks:
            for family in ("top", *self.families):
                lines.append(self._line(f"{k} {family}", self.of(k, family)))
        floor = [run for run in self.runs if run.family == "none"]
        lines += [self._line("none kept", floor)] if floor else []
        text = aligned(["heads", "sets", "change", *self.metrics], lines)
        notes = [
            f"Means over {len(first.concepts)} concepts, {first.settings['split']} split; range "
            "over a family's sets in brackets. change: root mean square change of the residual at "
            "the concepts' layers, in units of its scale.",
            f"Heads ranked by {self.ranked_by}. {self.mode} ablation"
            + (" of all heads but these." if self.keep else "."),
        ]
        return "\n".join([text, *notes, *(self.verdict(k) for k in self.ks)])

    def _line(self, name: str, sets: Sequence[CurveRun]) -> list[str]:
        cells = [_spread(np.array([run.result.columns(m, "after")[0] for run in sets])) for m in self.metrics]
        return [name, str(len(sets)), _spread(np.array([run.change for run in sets])), *cells]

    def verdict(self, k: int) -> str:
        """Against which controls the top k is clearly worse, and against which it is not."""
        parts = []
        for metric in VERDICT_METRICS:
            clear = [f for f in self.families if self.clear(metric, k, f)]
            margins = [
                f"{f} {signed(m.estimate)} [{signed(m.low)}, {signed(m.high)}]"
                for f in self.families
                for m in (self.margin(metric, k, f),)
            ]
            word = "all" if len(clear) == len(self.families) else ", ".join(clear) or "none"
            parts.append(f"  {metric}: clear against {word} ({'; '.join(margins)})")
        others = [run.change for f in self.families for run in self.of(k, f)]
        top = self.of(k, "top")[0].change
        most = top / max([*others, 1e-30])
        least = min([*others, np.inf]) / max(top, 1e-30)
        parts += [
            f"  The top set changes the residual {number(most, 2)} times as much as the control "
            "that changes it most: what it takes may be owed to that."
        ] * (bool(others) and most > 1 and not self.keep)
        parts += [
            f"  Every control changes the residual at least {number(least, 2)} times as much as "
            "keeping the top set does: what it saves may be owed to that."
        ] * (bool(others) and least > 1 and self.keep)
        moved = [
            _displaced(run.heads, self.of(k, "top")[0].heads)
            for f in self.families
            if f == "layer_matched"
            for run in self.of(k, f)
        ]
        parts += [
            f"  Up to {max(moved, default=0)} heads of a layer-matched set are of another block: "
            "the top set leaves too few in its own."
        ] * any(moved)
        parts += [self._permuted_words(k)] if "permuted" in self.families else []
        what = "what keeping it saves beyond controls" if self.keep else "what controls leave beyond it"
        return "\n".join([f"Top {k}, {what}:", *parts])

    def _permuted_words(self, k: int) -> str:
        top, sets = set(self.of(k, "top")[0].heads), self.of(k, "permuted")
        shared = [len(top & set(run.heads)) for run in sets]
        if len(sets) == 1:
            return (
                f"  The permuted set shares {shared[0]} of {k} heads with the top. It is one "
                "permutation's: how far others would differ is not known (rank_heads(permutations="
                "20) has more)."
            )
        least, most = min(shared), max(shared)
        words = f"{least} to {most}" if least < most else str(least)
        return f"  {len(sets)} permuted sets share {words} of {k} heads with the top."


def _displaced(heads: Sequence[Head], top: Sequence[Head]) -> int:
    """How many heads stand in another block than those they are matched with."""
    here, there = (Counter(layer for layer, _ in some) for some in (heads, top))
    return (there - here).total()


def _spread(values: Float[np.ndarray, " set"]) -> str:
    mean = number(float(values.mean()))
    if len(values) == 1:
        return mean
    return f"{mean} [{number(float(values.min()))}, {number(float(values.max()))}]"


TRIES = 20


def ablation_curve(
    host: Host,
    data: ConceptData,
    detector: Detector,
    ranking: Ranking | Sequence[Head],
    *,
    ks: Sequence[int] = (1, 4, 12),
    controls: Sequence[str] = CONTROLS,
    repeats: int = 3,
    mode: str = "mean",
    keep: bool = False,
    split: str = "test",
    scores: ScoreTable | None = None,
    output: Output | str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> AblationCurve:
    """Ablate the top k of a ranking and its controls, or all heads but those.

    Costs `len(ks) * (2 + 3 * repeats)` ablations with the default controls, each one pass over the
    calibration and the measured split ("directional": one for every concept); with `keep` one
    ablation more, of all heads.

    Args:
        host: An attached model that can edit.
        data: Labelled samples.
        detector: From `calibrate`.
        ranking: `rank_heads(...)`, or heads of your own order, best first, chosen without the
            split that is measured.
        ks: Numbers of heads.
        controls: Of "random", "layer_matched", "norm_matched", "bottom" (one set) and "permuted"
            (a set a permutation of the ranking), see `controls.py`.
        repeats: Sets of each family, all different; fewer where there are no more (few heads left
            in the blocks of a layer-matched set, few permutations).
        mode: As in `ablate_heads`, like the arguments that follow.
        keep: Keep only each set and ablate all others: does the set suffice?
        split: What is measured.
        scores: Unablated scores of the calibration and the measured split.
        output: Measures the change of the model's own output.
        draws: Resamples of source documents.
        seed: Of resamples, donors and sets.

    Returns:
        One ablation for each k, control and repetition, with the ranking they were taken from.

    Raises:
        ValueError: As `ablate_heads`; unknown controls; a k for which too few other heads are left;
            "bottom" with a list that does not name every candidate; "permuted" with a ranking that
            has no permuted-label order.
    """
    require_known("mode", mode, MODES)
    every = candidates(host, detector)
    order = _order(host, ranking, every, controls)
    _check_ks(ks, order, every, controls, repeats)
    base = baseline(host, data, detector, split=split, scores=scores, draws=draws, seed=seed, output=output)
    known = known_of(base, mode, {at for at, _ in every}, seed)
    sizes = head_changes(base, mode, known) if "norm_matched" in controls else {}
    ranked = (*order, *(head for head in every if head not in set(order)))
    permuted = ranking.permuted if isinstance(ranking, Ranking) else ()
    sets: list[tuple[int, str, tuple[Head, ...]]] = []
    for k in ks:
        sets.append((k, "top", order[:k]))
        for family in controls:
            sets += [
                (k, family, heads)
                for heads in (
                    _of_draws(permuted, k, repeats)
                    if family == "permuted"
                    else _distinct(family, order[:k], ranked, sizes, repeats, seed)
                )
            ]
    if keep:
        sets.append((0, "none", ()))
    runs = []
    for k, family, heads in tqdm(sets, desc="ablations", disable=not base.host.progress, leave=False):
        gone = tuple(head for head in every if head not in set(heads)) if keep else heads
        runs.append(CurveRun(k, family, heads, _ablate(base, gone, mode, seed, known)))
    by = (
        "the order given"
        if not isinstance(ranking, Ranking)
        else (f"{ranking.by} ({ranking.effect}) on {ranking.split}")
    )
    return AblationCurve(tuple(runs), tuple(ranked), by, mode, sizes, keep)


def _ablate(base: Baseline, heads: tuple[Head, ...], mode: str, seed: int, known: Reference) -> Ablation:
    everywhere = dict.fromkeys(range(len(base.detector.concepts)), heads)
    return ablate(base, everywhere, mode, seed, known)


def _distinct(
    family: str,
    top: Sequence[Head],
    ranked: Sequence[Head],
    sizes: Mapping[Head, float],
    repeats: int,
    seed: int,
) -> list[tuple[Head, ...]]:
    """Sets of a family, none twice; fewer than asked where `TRIES` draws a set find no other."""
    found: dict[frozenset[Head], tuple[Head, ...]] = {}
    wanted = 1 if family == "bottom" else repeats
    for n in range(TRIES * wanted):
        if len(found) == wanted:
            break
        rng = np.random.default_rng([seed, len(top), CONTROLS.index(family), n])
        heads = control_set(family, top, ranked, sizes, rng)
        found.setdefault(frozenset(heads), heads)
    return list(found.values())


def _of_draws(orders: Sequence[Sequence[Head]], k: int, repeats: int) -> list[tuple[Head, ...]]:
    """The first k of each permutation's order, none twice."""
    sets: dict[frozenset[Head], tuple[Head, ...]] = {}
    for order in orders:
        sets.setdefault(frozenset(order[:k]), tuple(order[:k]))
    return list(sets.values())[:repeats]


def _order(
    host: Host, ranking: Ranking | Sequence[Head], every: Sequence[Head], controls: Sequence[str]
) -> tuple[Head, ...]:
    for family in controls:
        require_known("control", family, FAMILIES)
    if "permuted" in controls and not (isinstance(ranking, Ranking) and ranking.permuted):
        raise ValueError(
            "the ranking has no order by permuted-label vectors: rank_heads(by='ledger') with a "
            "bank fitted with controls has one; or leave 'permuted' out of controls."
        )
    heads = ranking.heads if isinstance(ranking, Ranking) else ranking
    order = check_heads(host.info, heads)
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
    ks: Sequence[int], order: Sequence[Head], every: Sequence[Head], controls: Sequence[str], repeats: int
) -> None:
    if not ks or repeats < 1:
        raise ValueError(f"ks is {list(ks)} and repeats {repeats}: ask for at least one of each.")
    for k in ks:
        most = min(len(order), len(every) // 2 if controls else len(every))
        if not 1 <= k <= most:
            raise ValueError(
                f"k = {k} lies outside 1 to {most}: {len(order)} heads are ranked, and controls "
                f"are as many others among {len(every)} candidates."
            )


@dataclass(frozen=True, eq=False)
class CrossAblation:
    """Every concept measured under every concept's ablation.

    Attributes:
        concepts: All that are measured.
        runs: Ablation of one concept's heads, by concept.
        mode: Of `reference.MODES`.
    """

    concepts: tuple[str, ...]
    runs: Mapping[str, Ablation]
    mode: str

    def __repr__(self) -> str:
        own, others = (self.interval("tail_gap", which) for which in ("own", "others"))
        return (
            f"CrossAblation({self.mode}, heads of {len(self.runs)} concepts, {len(self.concepts)} "
            f"measured: tail gap of its own {signed(own.estimate)} [{signed(own.low)}, "
            f"{signed(own.high)}], of others {signed(others.estimate)} [{signed(others.low)}, "
            f"{signed(others.high)}])"
        )

    def matrix(self, metric: str) -> Float[np.ndarray, "ablated measured"]:
        """Difference of each concept (columns) under the ablation for each (rows)."""
        return np.stack([self._changes(metric, c)[:, 0] for c in self.runs])

    def interval(self, metric: str, which: str) -> Interval:
        """Loss of its own, of others, or own - others, with its interval over documents.

        Args:
            metric: Of the runs' metrics.
            which: "own", "others" or "own - others".
        """
        require_known("which", which, ("own", "others", "own - others"))
        own, others = [], []
        for concept in self.runs:
            changes, k = self._changes(metric, concept), position_of(concept, self.concepts)
            rest = np.delete(changes, k, axis=0)
            own.append(changes[k])
            # A concept that a draw leaves undefined is left out of its mean.
            others.append(mean_over_concepts(rest))
        one, other = mean_over_concepts(np.stack(own)), mean_over_concepts(np.stack(others))
        values = {"own": one, "others": other, "own - others": one - other}[which]
        return interval_of(values, next(iter(self.runs.values())).resamples, 0.95)

    def table(self) -> Any:
        """One row a metric: a pandas DataFrame where pandas is installed."""
        metrics = [m for m in next(iter(self.runs.values())).metrics if not m.startswith("output")]
        rows = []
        for metric in metrics:
            row: dict[str, Any] = {"metric": metric}
            for which in ("own", "others", "own - others"):
                found = self.interval(metric, which)
                row |= {which: found.estimate, f"{which} low": found.low, f"{which} high": found.high}
            rows.append(row)
        return frame(rows)

    def summary(self) -> str:
        """Own loss beside that of the other concepts, as text."""
        metrics = [m for m in next(iter(self.runs.values())).metrics if not m.startswith("output")]
        lines = []
        for metric in metrics:
            cells = [self.interval(metric, which) for which in ("own", "others", "own - others")]
            texts = [f"{signed(c.estimate)} [{signed(c.low)}, {signed(c.high)}]" for c in cells]
            lines.append([metric, *texts])
        return "\n".join(
            [
                aligned(["metric", "own", "others", "own - others"], lines),
                f"Each of {len(self.runs)} concepts' own heads ablated ({self.mode}), all "
                f"{len(self.concepts)} concepts measured; means over ablated concepts, 95 % "
                "intervals over documents.",
            ]
        )

    def _changes(self, metric: str, concept: str) -> Float[np.ndarray, "concept column"]:
        run = self.runs[concept]
        require_known("metric", metric, run.metrics)
        return np.asarray(run.after[metric] - run.before[metric])


def cross_ablation(
    host: Host,
    data: ConceptData,
    detector: Detector,
    heads: Mapping[str, Sequence[Head]],
    *,
    mode: str = "mean",
    split: str = "test",
    scores: ScoreTable | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> CrossAblation:
    """Ablate each concept's own heads and measure all concepts.

    Costs one pass over the calibration and the measured split for each concept with heads, and one
    unablated without `scores`.

    Args:
        host: An attached model that can edit.
        data: Labelled samples.
        detector: From `calibrate`, of two concepts or more.
        heads: Of each concept, such as `ranking.of(concept)[:4]`.
        mode: As in `ablate_heads`, like the arguments that follow.
        split: What is measured.
        scores: Unablated scores of the calibration and the measured split.
        draws: Resamples of source documents.
        seed: Of resamples and donors.

    Raises:
        ValueError: As `ablate_heads`; the detector has only one concept.

    Example:
        >>> heads = {c: ranking.of(c)[:4] for c in detector.concepts}  # doctest: +SKIP
        >>> cross_ablation(host, data, detector, heads).summary()  # doctest: +SKIP
    """
    require_known("mode", mode, MODES)
    if not heads:
        raise ValueError("heads is empty, and ablating nothing changes nothing: name a concept.")
    if len(detector.concepts) < 2:
        raise ValueError("the detector has one concept: there are no others to compare it with.")
    chosen = {position_of(c, detector.concepts): check_heads(host.info, h) for c, h in heads.items()}
    base = baseline(host, data, detector, split=split, scores=scores, draws=draws, seed=seed)
    known = known_of(base, mode, {at for some in chosen.values() for at, _ in some}, seed)
    everywhere = range(len(detector.concepts))
    runs = {
        detector.concepts[k]: ablate(
            base,
            dict.fromkeys(everywhere, some),
            mode,
            seed,
            known,
            along=k if mode == "directional" else None,
        )
        for k, some in chosen.items()
    }
    return CrossAblation(detector.concepts, runs, mode)
