"""The ledger's direct effects against total ones, head by head.

For every head h before a concept's layer, on one split and with one tail (`total`):

    direct(h, c)       the ledger's lift: what h itself writes along the vector, the rest as it is
    total(h, c)        T_c - T_c with h mean-ablated: a real pass
    attribution(h, c)  total to first order, where the host's passes carry gradients
    indirect(h, c)     total - direct: what later parts make of h, against it or for it

All three are parts of the same lift T_c, in the unit of the score (dot scores; of cosines the
direct part holds each token's norm fixed). Agreement is over heads, concept by concept: Spearman's
and Pearson's correlation, the share of heads with equal sign (weighted by |total|), and

    indirect share = sum_h |total - direct| / sum_h |total|.

What it does not show: which of them is right. Direct is exact for its question and blind to
everything that follows; total is a real run of a model off its path. A low agreement says that the
ledger must not be read as causal on this model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from sa_plugin._check import position_of
from sa_plugin._face import face
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.baseline import baseline, candidates, known_of, reach, scores_of
from sa_plugin.heads.edits import Head
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.heads.rank import head_name
from sa_plugin.heads.total import first_order_effects, tail_objective, total_effects
from sa_plugin.host.protocol import DifferentiableHost, Host
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, clean, exact, number, signed
from sa_plugin.statistics.drawn import Drawn, Resampling

AGREEMENTS = ("spearman", "pearson", "same_sign", "indirect_share")
_SHOWN_HEADS = 8


@dataclass(frozen=True, eq=False, repr=False)
class DirectTotal(Result):
    """Direct, total and first-order effects of every head on every concept's tail.

    Attributes:
        heads: Rows.
        direct: The ledger's lift; NaN where a head cannot reach the concept.
        total: By real passes, over heads (by name, L8H3) and concepts.
        attribution: To first order; None on a host without gradients.
        lift: T_c.
        settings: Split, counts, passes.
    """

    heads: tuple[Head, ...]
    direct: Float[np.ndarray, "head concept"]
    total: Drawn
    attribution: Float[np.ndarray, "head concept"] | None
    lift: Float[np.ndarray, " concept"]
    settings: Mapping[str, Any]

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

    @property
    def _effects(self) -> dict[str, Float[np.ndarray, "head concept"]]:
        known = {"direct": self.direct, "total": self.total.estimate, "attribution": self.attribution}
        return {name: values for name, values in known.items() if values is not None}

    def rows(self) -> list[dict[str, Any]]:
        """Every effect of every head and concept, each concept's lift, and agreements."""
        found = self.total.rows("total")
        for name, values in self._effects.items():
            if name != "total":
                found += [
                    exact(name, float(values[i, k]), head=head_name(self.heads[i]), concept=self.concepts[k])
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
            f"{len(self.heads)} heads, {len(self.concepts)} concepts, {self.settings['split']}: direct "
            f"against total, mean Spearman {number(found['spearman'][0])}, indirect share "
            f"{number(found['indirect_share'][0])}"
        )

    def sheets(self, n: int = _SHOWN_HEADS) -> tuple[Sheet, ...]:
        """Agreement, and the heads of greatest total effect.

        Args:
            n: Heads shown, by mean share of the lift.
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
        shares = {name: np.nan_to_num(self._share(values)).mean(1) for name, values in self._effects.items()}
        order = np.argsort(-np.abs(shares["total"]))[:n]
        rows = [[head_name(self.heads[i]), *(signed(share[i]) for share in shares.values())] for i in order]
        return (
            Sheet(["against total", *AGREEMENTS], lines, "", [note]),
            Sheet(["share of the lift", *shares], rows),
        )

    def _share(self, values: np.ndarray) -> Float[np.ndarray, "head concept"]:
        """Of each concept's lift, concepts with a tail alone."""
        with np.errstate(invalid="ignore", divide="ignore"):
            share = values / np.abs(self.lift)
        return np.asarray(share[:, np.isfinite(self.lift)])

    def plot(self) -> Any:
        """Direct (and first-order) effects against total ones, a dot a head and concept."""
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
                ax.annotate(head_name(self.heads[i]), (guess[i, k], total[i, k]), fontsize=7)
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


def agreement(guess: Float[np.ndarray, " head"], total: Float[np.ndarray, " head"]) -> dict[str, float]:
    """How well a cheap effect agrees with the total one over heads."""
    known = np.isfinite(guess) & np.isfinite(total)
    a, b = guess[known], total[known]
    if len(a) < 3 or not a.std() or not b.std():
        return dict.fromkeys(AGREEMENTS, float("nan"))
    # Heads that do nothing have a sign too, by rounding: signs count by the size of the effect.
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
    scores: ScoreTable | None = None,
    split: str = "test",
    resampling: Resampling = Resampling(),
) -> DirectTotal:
    """Ledger, mean ablation of every single head, and attribution patching, on one tail.

    Costs one pass over the split for the ledger, one for every head, and where the host carries
    gradients one with a backward pass for each concept: for small models.

    Args:
        host: An attached model that can edit and that the ledger covers.
        data: Labelled samples.
        detector: From `calibrate`.
        scores: Unablated scores of the calibration split and of this one.
        split: Whose tail; thresholds were chosen on "cal".
        resampling: Of source documents; its seed is that of donors too.

    Raises:
        TypeError: The host cannot edit.
        ValueError: No concept has a tail in the split; what `head_ledger` raises.
        NotImplementedError: The ledger does not cover the model.

    Example:
        >>> compare_direct_total(host, data, detector).agreement()  # doctest: +SKIP
    """
    ledger = head_ledger(host, data, detector, split=split)
    base = baseline(host, data, detector, split=split, scores=scores, resampling=resampling)
    every = candidates(host, detector)
    objective = tail_objective(detector, scores_of(base.tokens, data.split(split).samples))
    known = known_of(base, "mean", {at for at, _ in every})
    sums = total_effects(base, objective, every, "mean", known)
    behind = np.array([[at >= depth for depth in reach(detector)] for at, _ in every])
    columns = np.where(behind[..., None], np.nan, objective.columns(sums, base.frozen.resamples))
    carried = base.frozen.resamples.rows(objective.n_tail.T)
    heads = tuple(map(head_name, every))
    total = base.frozen.resamples.drawn(columns, "mean", carried, head=heads, concept=detector.concepts)
    first = None
    if isinstance(host, DifferentiableHost):
        value = objective.value(first_order_effects(base, objective, every, known))
        first = np.where(behind, np.nan, value)
    rows = {(c.block, c.head): i for i, c in enumerate(ledger.components) if c.kind == "heads"}
    direct = np.where(behind, np.nan, ledger.lift.terms.estimate[[rows[head] for head in every]])
    settings = {
        "split": split,
        "n_samples": len(data.split(split)),
        "passes": len(every) + 2,
        "data_hash": data.hash,
        "seed": resampling.seed,
        "model": host.info.model,
    }
    lift = objective.value(objective.clean)
    return DirectTotal(every, direct, total, first, lift, settings)
