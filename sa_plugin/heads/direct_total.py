"""Direct effects of the ledger against total ones, part by part, and against vectors that mean nothing.

For every part h before a concept's layer, a head or all heads or the MLP of a block, on one split and
with one tail (`total`):

    direct(h, c)       the ledger's lift: what h itself writes along the vector, the rest as it is; of a
                       block what the waterfall shows along the fixed direction
    total(h, c)        T_c - T_c with h mean-ablated: a real pass
    attribution(h, c)  total to first order: of heads, where the host's passes carry gradients
    indirect(h, c)     total - direct: what later parts make of h, against it or for it
    permuted(p, h)     total effect on the tails of vectors refitted on permuted labels, each of its own

All are parts of a lift T_c, in the unit of the score (dot scores; of cosines the direct part holds
each token's norm fixed). Agreement is over parts, concept by concept: Spearman's and Pearson's
correlation, the share of parts with equal sign (weighted by |total|), and

    indirect share = sum_h |total - direct| / sum_h |total|.

Permutations are the control: whatever varies carries some of a tail that was chosen by the sum. A part
is *beyond* them if it takes a larger share of the lift, mean over concepts, than under every one; a
part that means nothing is so with chance 1 / (P + 1) for P of them.

What it does not show: which of direct and total is right. Direct is exact for its question and blind
to everything that follows; total is a real run of a model off its path, most of all where a whole
block is ablated. A low agreement says that the ledger must not be read as causal on this model. Parts
that stand in for each other have small total effects each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from sa_plugin._check import position_of, require_known
from sa_plugin._face import face
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.baseline import Baseline, baseline, candidates, known_of, reach, scores_of
from sa_plugin.heads.columns import Component, ComponentKind
from sa_plugin.heads.edits import block_reference
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.heads.ledger_result import HeadLedger
from sa_plugin.heads.rank import drawn_scores, head_name, label_draws
from sa_plugin.heads.total import (
    TailObjective,
    block_effects,
    first_order_effects,
    tail_objective,
    total_effects,
)
from sa_plugin.host.protocol import DifferentiableHost, Host, Point, Site
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, clean, exact, number, short, signed
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import Drawn, Resampling

AGREEMENTS = ("spearman", "pearson", "same_sign", "indirect_share")
PARTS = ("heads", "blocks")
_POINTS: dict[Point, str] = {"z": "attention", "mlp_out": "MLP"}
_KINDS: dict[Point, ComponentKind] = {"z": "heads", "mlp_out": "mlps"}
_Parts: TypeAlias = tuple[Component, ...]
_SHOWN_PARTS = 8


@dataclass(frozen=True, eq=False, repr=False)
class DirectTotal(Result):
    """Direct, total and first-order effects of every part on every concept's tail.

    Attributes:
        parts: Rows: heads, or attention and MLP of each block.
        direct: The ledger's lift; NaN where a part cannot reach the concept.
        total: By real passes, over parts (by name, "L8H3" or "L8 MLP") and concepts.
        attribution: To first order; None of blocks and on a host without gradients.
        lift: T_c.
        settings: Split, counts, passes.
        permuted: Total effects on permuted labels' tails, shares of their own lifts, mean over concepts;
            without permutations there is no row.
    """

    parts: tuple[Component, ...]
    direct: Float[np.ndarray, "part concept"]
    total: Drawn
    attribution: Float[np.ndarray, "part concept"] | None
    lift: Float[np.ndarray, " concept"]
    settings: Mapping[str, Any]
    permuted: Float[np.ndarray, "draw part"]

    about: ClassVar[str] = (
        "Which of them is right is not shown: direct effects are exact for their question and blind to what "
        "follows, total ones are of a model off its path. Low agreement says that the ledger must not be "
        "read as causal here."
    )

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names."""
        return tuple(self.total.axes["concept"])

    def of(self, concept: str, which: str = "direct") -> dict[str, float]:
        """Agreement of one concept's direct (or first-order) effects with total ones.

        NaN where the concept has no tail.
        """
        k = position_of(concept, self.concepts)
        guess = self.direct if which == "direct" else self.attribution
        if guess is None:
            raise ValueError("the host gives no gradients, so there is no attribution to compare.")
        return agreement(guess[:, k], self.total.estimate[:, k])

    def agreement(self) -> dict[str, dict[str, list[float]]]:
        """Mean, least and greatest agreement over concepts, for direct and first-order effects."""
        found: dict[str, dict[str, list[float]]] = {}
        for which in ("direct", "attribution")[: 1 + (self.attribution is not None)]:
            each = [self.of(c, which) for c in self.concepts]
            found[which] = {}
            for name in AGREEMENTS:
                values = np.array([one[name] for one in each])
                values = values[np.isfinite(values)]
                found[which][name] = (
                    [float(values.mean()), float(values.min()), float(values.max())]
                    if len(values)
                    else [float("nan")] * 3
                )
        return found

    @cached_property
    def share(self) -> Drawn:
        """Total effects as shares of each concept's lift, mean over concepts, over parts."""
        with np.errstate(invalid="ignore", divide="ignore"):
            share = self.total.values / np.abs(self.lift)[:, None]
        # A part behind a concept takes nothing of it; a concept without a tail is left out.
        behind = np.isnan(self.direct)[..., None] & np.isfinite(self.lift)[:, None]
        return self.total.like(np.where(behind, 0.0, share)).mean("concept")

    @property
    def beyond(self) -> Bool[np.ndarray, " part"]:
        """Parts that take a larger share of the concepts' tails than of every permutation's."""
        if not len(self.permuted):
            return np.zeros(len(self.parts), dtype=bool)
        return np.asarray(self.share.estimate > self.permuted.max(0))

    @property
    def _effects(self) -> dict[str, Float[np.ndarray, "part concept"]]:
        known = {"direct": self.direct, "total": self.total.estimate, "attribution": self.attribution}
        return {name: values for name, values in known.items() if values is not None}

    def rows(self) -> list[dict[str, Any]]:
        """Every effect of every part and concept, each concept's lift, agreements, and mean shares."""
        found = self.total.rows("total") + self.share.rows("share")
        for draw, shares in enumerate(self.permuted):
            found += [
                exact("permuted share", share, part=part.name, permutation=draw)
                for part, share in zip(self.parts, shares, strict=True)
            ]
        for name, values in self._effects.items():
            if name != "total":
                found += [
                    exact(name, float(values[i, k]), part=self.parts[i].name, concept=self.concepts[k])
                    for i, k in np.ndindex(values.shape)
                ]
        for k, concept in enumerate(self.concepts):
            found.append(exact("lift", float(self.lift[k]), concept=concept))
            for which in self.agreement():
                found += [
                    exact(f"{which} {name}", value, concept=concept)
                    for name, value in self.of(concept, which).items()
                ]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Effects, lifts, settings and agreements."""
        return super().to_dict() | {"agreement": clean(self.agreement())}

    def headline(self) -> str:
        """How well direct effects agree with total ones."""
        found = self.agreement()["direct"]
        return (
            f"{len(self.parts)} {self.settings['parts']}, {len(self.concepts)} concepts, "
            f"{self.settings['split']}: direct against total, mean Spearman {number(found['spearman'][0])}, "
            f"indirect share {number(found['indirect_share'][0])}"
        )

    def sheets(self, n: int = _SHOWN_PARTS) -> tuple[Sheet, ...]:
        """Agreement, and the parts of greatest total effect.

        Args:
            n: Parts shown, by mean share of the lift.
        """
        lines = [
            [which, *(f"{number(v[0])} [{number(v[1])}, {number(v[2])}]" for v in found.values())]
            for which, found in self.agreement().items()
        ]
        note = (
            f"Means over {len(self.concepts)} concepts, least and greatest in brackets; "
            f"{self.settings['split']} split, {self.settings['n_samples']} samples, "
            f"{self.settings['passes']} passes over them."
        )
        cheap = {
            name: np.nan_to_num(self._share(values)).mean(1)
            for name, values in self._effects.items()
            if name != "total"
        }
        share, rows = self.share, []
        for i in np.argsort(-np.abs(share.estimate))[:n]:
            name = self.parts[i].name
            cells = [
                name,
                *(signed(one[i]) for one in cheap.values()),
                short(share.sel(part=name), sign=True),
            ]
            rows.append([*cells, *self._permuted_cells(int(i))])
        header = [
            "share of the lift",
            *cheap,
            "total",
            *(["permuted", "beyond"] if len(self.permuted) else []),
        ]
        return (
            Sheet(["against total", *AGREEMENTS], lines, "", [note]),
            Sheet(header, rows, "", [self._permuted_words()]),
        )

    def _permuted_cells(self, i: int) -> list[str]:
        if not len(self.permuted):
            return []
        one = self.permuted[:, i]
        spread = f"{signed(one.mean())} ({signed(one.min())} to {signed(one.max())})"
        return [spread, "yes" if self.beyond[i] else "no"]

    def _permuted_words(self) -> str:
        n = len(self.permuted)
        if not n:
            return "No vectors of permuted labels beside them: no control."
        return (
            f"permuted: the same on tails of vectors refitted on {n} permutations of the labels, mean and "
            f"range; {int(self.beyond.sum())} of {len(self.parts)} parts take more of the concepts' tails "
            f"than of any of these; by chance {len(self.parts) / (n + 1):.1f} would."
        )

    def _share(self, values: np.ndarray) -> Float[np.ndarray, "part concept"]:
        """Of each concept's lift, concepts with a tail alone."""
        with np.errstate(invalid="ignore", divide="ignore"):
            share = values / np.abs(self.lift)
        return np.asarray(share[:, np.isfinite(self.lift)])

    def plot(self) -> Any:
        """Direct (and first-order) effects against total ones, a dot a part and concept."""
        cheap = [name for name in self._effects if name != "total"]
        figure, axes = plots.new_figure(4.2 * len(cheap) + 0.4, 4.0, columns=len(cheap))
        total, low, high = (self._share(v) for v in (self.total.estimate, self.total.low, self.total.high))
        mean = np.nan_to_num(total).mean(1)
        for ax, name in zip(np.ravel(axes), cheap, strict=True):
            guess = self._share(self._effects[name])
            look = {"color": plots.OUT_COLOUR, "lw": 0.6, "ls": plots.dashes_of(self.total)}
            ax.vlines(guess.ravel(), low.ravel(), high.ravel(), **look)
            ax.plot(guess.ravel(), total.ravel(), "o", color=plots.TAIL_COLOUR, ms=3)
            ends = np.array([np.nanmin([guess, total]), np.nanmax([guess, total])])
            ax.plot(ends, ends, color=plots.TEXT_COLOUR, lw=0.8, ls="--", zorder=0)
            for i in np.argsort(-np.abs(mean))[:3]:
                k = int(np.nanargmax(np.abs(total[i])))
                ax.annotate(self.parts[i].name, (guess[i, k], total[i, k]), fontsize=7)
            agreed = self.agreement()[name]["spearman"][0]
            plots.words(
                ax,
                title=f"{name}: Spearman {number(agreed, 2)}",
                x=f"{name}, share of the concept's lift",
                y="total, share of the concept's lift",
            )
        plots.note(
            figure,
            f"{self.settings['split']} split; bars: {100 * self.total.level:g} % over documents; dashed: "
            "equal. Neither is said to be the right one.",
            self.total,
        )
        return figure


def agreement(guess: Float[np.ndarray, " part"], total: Float[np.ndarray, " part"]) -> dict[str, float]:
    """How well a cheap effect agrees with the total one over parts."""
    known = np.isfinite(guess) & np.isfinite(total)
    a, b = guess[known], total[known]
    if len(a) < 3 or not a.std() or not b.std():
        return dict.fromkeys(AGREEMENTS, float("nan"))
    # Parts that do nothing have a sign too, by rounding: signs count by the size of the effect.
    weight = np.abs(b)
    return {
        "spearman": float(np.corrcoef(rankdata(a), rankdata(b))[0, 1]),
        "pearson": float(np.corrcoef(a, b)[0, 1]),
        "same_sign": float(weight[np.sign(a) == np.sign(b)].sum() / weight.sum()),
        "indirect_share": float(np.abs(b - a).sum() / weight.sum()),
    }


@face
def compare_direct_total(
    host: Host,
    data: ConceptData,
    detector: Detector,
    *,
    parts: str = "heads",
    permutations: int | None = None,
    scores: ScoreTable | None = None,
    split: str = "test",
    resampling: Resampling = Resampling(),
) -> DirectTotal:
    """Ledger and mean ablation of every single part, on one tail: which of them take it away?

    Costs one pass over the split for the ledger, one for every part (heads: `n_heads` a block, blocks:
    two), and of heads, where the host carries gradients, one with a backward pass for each concept. The
    control is a pass over the train split and one over this one: real passes serve all permutations. So
    heads are for small models, and blocks for large ones too.

    Args:
        host: An attached model that can edit and that the ledger covers.
        data: Labelled samples.
        detector: From `calibrate`.
        parts: "heads", or "blocks": all heads of a block (its attention) and its MLP.
        permutations: Of the labels, for the control; by default 5, and none for a bank that cannot be
            refitted on this data.
        scores: Unablated scores of the calibration split and of this one.
        split: Whose tail; thresholds were chosen on "cal".
        resampling: Of source documents; its seed is that of donors too.

    Raises:
        TypeError: The host cannot edit.
        ValueError: No concept has a tail in the split; `parts` is unknown; labels cannot be permuted;
            what `head_ledger` raises.
        NotImplementedError: The ledger does not cover the model.

    Example:
        >>> compare_direct_total(host, data, detector, parts="blocks")  # doctest: +SKIP
    """
    require_known("parts", parts, PARTS)
    ledger = head_ledger(host, data, detector, split=split, permutations=0)
    base = baseline(host, data, detector, split=split, scores=scores, resampling=resampling)
    draws = label_draws(host, data, detector, permutations)
    table = scores_of(base.tokens, data.split(split).samples)
    objective = tail_objective(detector, table, drawn_scores(base, draws))
    named, sums, first = (_of_heads if parts == "heads" else _of_blocks)(base, objective)
    n, resamples = len(detector.concepts), base.frozen.resamples
    behind = np.array([[(part.block or 0) >= depth for depth in reach(detector)] for part in named])
    columns = np.where(behind[..., None], np.nan, objective.columns(sums, resamples)[:, :n])
    carried = resamples.rows(objective.n_tail[:, :n].T)
    names = tuple(part.name for part in named)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = objective.value(sums) / np.abs(objective.value(objective.clean))
    settings = {
        "split": split,
        "parts": parts,
        "n_samples": len(data.split(split)),
        "passes": len(named) + 2,
        "permutations": len(draws),
        "data_hash": data.hash,
        "seed": resampling.seed,
        "model": host.info.model,
    }
    return DirectTotal(
        named,
        np.where(behind, np.nan, _direct(ledger, named)),
        resamples.drawn(columns, "mean", carried, part=names, concept=detector.concepts),
        None if first is None else np.where(behind, np.nan, first[:, :n]),
        objective.value(objective.clean)[:n],
        settings,
        _means(shares[:, n:].reshape(len(named), -1, n)).T,
    )


def _of_heads(base: Baseline, objective: TailObjective) -> tuple[_Parts, np.ndarray, np.ndarray | None]:
    """Every head, the sums it takes, and where there are gradients its first-order effects."""
    every = candidates(base.host, base.detector)
    known = known_of(base, "mean", {at for at, _ in every})
    sums = total_effects(base, objective, every, "mean", known)
    first = None
    if isinstance(base.host, DifferentiableHost):
        own = np.eye(len(base.detector.concepts), len(objective.units))
        slopes = first_order_effects(base, objective, every, known, own)
        first = ratio(slopes.sum(1), objective.n_tail.sum(0)[: len(own)], empty=np.nan)
    return tuple(Component(head_name(head), "heads", *head) for head in every), sums, first


def _of_blocks(base: Baseline, objective: TailObjective) -> tuple[_Parts, np.ndarray, None]:
    """All heads and the MLP of every block, and the sums they take."""
    depth = max(reach(base.detector))
    known = block_reference(base.host, base.data, base.detector.bank, depth)
    sites = [Site(k, point) for k in range(depth) for point in _POINTS]
    named = [
        Component(f"L{site.layer} {_POINTS[site.point]}", _KINDS[site.point], site.layer) for site in sites
    ]
    return tuple(named), block_effects(base, objective, sites, known), None


def _direct(ledger: HeadLedger, parts: _Parts) -> Float[np.ndarray, "part concept"]:
    """The ledger's lift of each part; of a block's attention the sum of its heads."""
    terms = ledger.lift.terms.estimate
    rows = [
        [
            i
            for i, one in enumerate(ledger.components)
            if (one.kind, one.block) == (part.kind, part.block) and part.head in (None, one.head)
        ]
        for part in parts
    ]
    return np.stack([terms[each].sum(0) for each in rows])


def _means(shares: Float[np.ndarray, "part draw concept"]) -> Float[np.ndarray, "part draw"]:
    """Over concepts with a tail, which a permutation may leave without one."""
    known = np.isfinite(shares)
    return ratio(np.where(known, shares, 0.0).sum(-1), known.sum(-1), empty=np.nan)
