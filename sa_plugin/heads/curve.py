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
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sa_plugin._names import require_known
from sa_plugin.detection.measure import interval_of
from sa_plugin.detection.printing import aligned, frame, number, signed
from sa_plugin.heads.ablation import Ablation
from sa_plugin.heads.modes import Head
from sa_plugin.statistics import Interval

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
        cells = [
            _spread(np.array([run.result.columns(m, "after")[0] for run in sets]))
            for m in self.metrics
        ]
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
        moved = [_displaced(run.heads, self.of(k, "top")[0].heads) for f in self.families
                 if f == "layer_matched" for run in self.of(k, f)]  # fmt: skip
        parts += [
            f"  Up to {max(moved, default=0)} heads of a layer-matched set are of another block: "
            "the top set leaves too few in its own."
        ] * any(moved)
        parts += [self._permuted_words(k)] if "permuted" in self.families else []
        what = (
            "what keeping it saves beyond controls"
            if self.keep
            else "what controls leave beyond it"
        )
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
