"""The ledger's direct effects against total ones, head by head.

For every head h before a concept's layer, on one split and with one tail (`tail_objective.py`):

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
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from sa_plugin.collect import BATCH_TOKENS
from sa_plugin.data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import place
from sa_plugin.detection.printing import aligned, frame, number, signed
from sa_plugin.differentiable import DifferentiableHost
from sa_plugin.heads.gradients import attributions
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.heads.modes import Head
from sa_plugin.heads.runs import baseline, candidates, in_order, known_of, reach
from sa_plugin.heads.tail_objective import tail_objective
from sa_plugin.heads.total import total_effects
from sa_plugin.host import Host
from sa_plugin.scores import ScoreTable
from sa_plugin.statistics import percentile_bounds

AGREEMENTS = ("spearman", "pearson", "same_sign", "indirect_share")


@dataclass(frozen=True, eq=False)
class DirectTotal:
    """Direct, total and first-order effects of every head on every concept's tail.

    Attributes:
        concepts, heads: What the arrays are of.
        direct: The ledger's lift; NaN where a head cannot reach the concept.
        total: By real passes.
        total_low, total_high: Ends of its 95 % interval over documents.
        attribution: To first order; None on a host without gradients.
        lift: T_c.
        settings: Split, counts, passes.
    """

    concepts: tuple[str, ...]
    heads: tuple[Head, ...]
    direct: Float[np.ndarray, "head concept"]
    total: Float[np.ndarray, "head concept"]
    total_low: Float[np.ndarray, "head concept"]
    total_high: Float[np.ndarray, "head concept"]
    attribution: Float[np.ndarray, "head concept"] | None
    lift: Float[np.ndarray, " concept"]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        found = self.agreement()
        return (
            f"DirectTotal({len(self.heads)} heads, {len(self.concepts)} concepts, "
            f"{self.settings['split']}: direct against total, mean Spearman "
            f"{number(found['direct']['spearman'][0])}, indirect share "
            f"{number(found['direct']['indirect_share'][0])})"
        )

    def of(self, concept: str, which: str = "direct") -> dict[str, float]:
        """Agreement of one concept's direct (or first-order) effects with total ones.

        NaN where the concept has no tail.
        """
        k = place(concept, self.concepts)
        guess = self.direct if which == "direct" else self.attribution
        if guess is None:
            raise ValueError("the host gives no gradients, so there is no attribution to compare.")
        return agreement(guess[:, k], self.total[:, k])

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

    def table(self) -> Any:
        """One row a head and concept: a pandas DataFrame where pandas is installed."""
        rows = []
        for i, (layer, head) in enumerate(self.heads):
            for k, concept in enumerate(self.concepts):
                row = {"head": f"L{layer}H{head}", "concept": concept,
                       "direct": float(self.direct[i, k]), "total": float(self.total[i, k]),
                       "low": float(self.total_low[i, k]), "high": float(self.total_high[i, k]),
                       "lift": float(self.lift[k])}  # fmt: skip
                if self.attribution is not None:
                    row["attribution"] = float(self.attribution[i, k])
                rows.append(row)
        return frame(rows)

    def summary(self, n: int = 8) -> str:
        """Agreement, and the heads of greatest total effect, as text.

        Args:
            n: Heads shown, by mean share of the lift.
        """
        lines = [
            [which, *(f"{number(v[0])} [{number(v[1])}, {number(v[2])}]" for v in found.values())]
            for which, found in self.agreement().items()
        ]
        first = aligned(["against total", *AGREEMENTS], lines)
        shares = {
            name: self._share(values)
            for name, values in (
                ("direct", self.direct), ("total", self.total), ("attribution", self.attribution),
            )
            if values is not None
        }  # fmt: skip
        order = np.argsort(-np.abs(shares["total"]))[:n]
        rows = [
            ["L{}H{}".format(*self.heads[i]), *(signed(share[i]) for share in shares.values())]
            for i in order
        ]
        return "\n".join(
            [
                first,
                f"Means over {len(self.concepts)} concepts, least and greatest in brackets; "
                f"{self.settings['split']} split, {self.settings['n_samples']} samples, "
                f"{self.settings['passes']} passes over them.",
                aligned(["share of the lift", *shares], rows),
            ]
        )

    def _share(self, values: Float[np.ndarray, "head concept"]) -> Float[np.ndarray, " head"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            share = values / np.abs(self.lift)
        share = share[:, np.isfinite(self.lift)]
        return np.asarray(np.nan_to_num(share).mean(1))


def agreement(
    guess: Float[np.ndarray, " head"], total: Float[np.ndarray, " head"]
) -> dict[str, float]:
    """How well a cheap effect agrees with the total one over heads."""
    known = np.isfinite(guess) & np.isfinite(total)
    a, b = guess[known], total[known]
    if len(a) < 3 or not a.std() or not b.std():
        return dict.fromkeys(AGREEMENTS, float("nan"))
    weight = np.abs(b)
    return {
        "spearman": float(np.corrcoef(rankdata(a), rankdata(b))[0, 1]),
        "pearson": float(np.corrcoef(a, b)[0, 1]),
        "same_sign": float(weight[np.sign(a) == np.sign(b)].sum() / weight.sum()),
        "indirect_share": float(np.abs(b - a).sum() / weight.sum()),
    }


def compare_direct_total(
    host: Host,
    data: ConceptData,
    detector: Detector,
    *,
    split: str = "test",
    scores: ScoreTable | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> DirectTotal:
    """Ledger, mean ablation of every single head, and attribution patching, on one tail.

    Costs one pass over the split for the ledger, one for every head, and where the host carries
    gradients one with a backward pass for each concept: for small models.

    Args:
        host: An attached model that can edit and that the ledger covers.
        data: Labelled samples.
        detector: From `calibrate`.
        split: Whose tail; thresholds were chosen on "cal".
        scores: Unablated scores of the calibration split and of this one.
        draws: Resamples of source documents.
        seed: Of the resamples.
        batch_tokens: Tokens in a batch.
        progress: Whether to show a bar.

    Raises:
        TypeError: The host cannot edit.
        ValueError: No concept has a tail in the split; what `head_ledger` raises.
        NotImplementedError: The ledger does not cover the model.

    Example:
        >>> compare_direct_total(host, data, detector).agreement()  # doctest: +SKIP
    """
    ledger = head_ledger(
        host, data, detector, split=split, scores=None, draws=1, batch_tokens=batch_tokens,
        progress=False,
    )  # fmt: skip
    base = baseline(
        host, data, detector, split=split, scores=scores, draws=draws, seed=seed,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    every = candidates(host, detector)
    objective = tail_objective(detector, in_order(base.tokens, data.split(split).samples))
    known = known_of(base, "mean", {at for at, _ in every}, seed)
    sums = total_effects(base, objective, every, "mean", known, progress=progress)
    behind = np.array([[at >= depth for depth in reach(detector)] for at, _ in every])
    low, high = percentile_bounds(objective.columns(sums, base.frozen.resamples)[..., 1:])
    first = None
    if isinstance(host, DifferentiableHost):
        estimate = attributions(base, objective, every, known, progress=progress)
        first = _masked(objective.value(estimate), behind)
    rows = {(c.block, c.head): i for i, c in enumerate(ledger.components) if c.kind == "heads"}
    direct = ledger.lift.terms.value[[rows[head] for head in every]]
    settings = {
        "split": split, "n_samples": len(data.split(split)), "passes": len(every) + 2,
        "data_hash": data.hash, "draws": draws, "seed": seed, "model": host.info.model,
    }  # fmt: skip
    return DirectTotal(
        detector.concepts, every, _masked(direct, behind), _masked(objective.value(sums), behind),
        _masked(low, behind), _masked(high, behind), first, objective.value(objective.clean),
        settings,
    )  # fmt: skip


def _masked(
    values: Float[np.ndarray, "head concept"], behind: np.ndarray
) -> Float[np.ndarray, "head concept"]:
    return np.where(behind, np.nan, values)
