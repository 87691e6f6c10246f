"""The tail as one number of a concept's scores, so that it can be patched and differentiated.

    T_c = sum_n k_n (m_tail(n) - m_others(n)) / sum_n k_n

with k_n the SuperActivators of sample n in the unablated run, m_tail and m_others the mean score of
those and of the sample's other kept tokens: the total lift of the ledger (`effects.py`). Which
tokens are the tail is fixed by the unablated run, so T_c is linear in the scores, with one weight a
token.

What it does not show: tokens are chosen by the score whose parts are then taken away, so every part
that varies has a positive expected share of T_c, for a vector that means nothing too. The ledger
subtracts that (excess); patching and gradients of T_c do not.

Attribution patching: the total effect of every head at once, to first order.

    attribution(h, c) = sum over tokens of  dT_c/dz_h . (z_h - mean z_h)

the linear estimate of `total.total_effects` in mode "mean" (T_c: `tail_objective.py`). One forward
pass a layer and one backward pass a concept, whatever the number of heads
(Nanda 2023, "Attribution patching"; Syed et al., arXiv 2310.10348).

What it does not show: saturation and interaction. Where a softmax or a norm is saturated the slope
is small and the effect is not, or the reverse; so the best few are verified by real passes
(`ranking.rank_heads(budget=)`), and `compare_direct_total` says how well it does on a model.

The total effect of single heads on the tail: ablate one, run the model again, look at T_c.

    total(h, c) = T_c - T_c with head h ablated          (T_c: `tail_objective.py`)

Whatever later heads and MLPs make of the missing head is in it, which the ledger's direct term
leaves out. One pass over the split for each head.

What it does not show: heads ablated one by one. Two heads that stand in for each other have small
total effects each, and effects of single heads do not add up to that of the set.

The ledger's direct effects against total ones, head by head.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import position_of
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.methods import column_scores
from sa_plugin.heads.ablate import (
    Baseline,
    Group,
    at_layers,
    baseline,
    candidates,
    edits_of,
    in_order,
    known_of,
    layers_of_concepts,
    reach,
)
from sa_plugin.heads.edits import Head, Reference
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.host.protocol import (
    Attended,
    Batch,
    DifferentiableHost,
    Edit,
    Host,
    Site,
    ZEdit,
    require_differentiable,
)
from sa_plugin.passes.layout import TokenTable, lay_out, rows_kept_in
from sa_plugin.scores.score import score
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import aligned, frame, number, signed
from sa_plugin.statistics.bootstrap import Resamples, document_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import percentile_bounds


@dataclass(frozen=True, eq=False)
class TailObjective:
    """T_c of every concept on one split.

    Attributes:
        tokens: Rows of the unablated run.
        weights: 1 for a tail token, -k_n / (number of others) for another of its sample; 0 in
            samples that are all tail or have none.
        n_tail: k_n, 0 where the sample does not enter.
        clean: `sums` of the unablated scores.
    """

    tokens: TokenTable
    weights: Float[np.ndarray, "token concept"]
    n_tail: Float[np.ndarray, "sample concept"]
    clean: Float[np.ndarray, "sample concept"]

    def sums(self, scores: Float[np.ndarray, "token concept"]) -> Float[np.ndarray, "sample concept"]:
        """Each sample's part of T_c times the number of tail tokens."""
        return np.add.reduceat(self.weights * scores, self.tokens.bounds[:-1], axis=0)

    def value(self, sums: Float[np.ndarray, "*head sample concept"]) -> Float[np.ndarray, "*head concept"]:
        """T_c, or the part of it that the sums hold; NaN without a tail."""
        return ratio(sums.sum(-2), self.n_tail.sum(0), empty=np.nan)

    def columns(
        self, sums: Float[np.ndarray, "head sample concept"], resamples: Resamples
    ) -> Float[np.ndarray, "head concept column"]:
        """`value` on the split (column 0) and every resample of its documents.

        NaN in resamples where only one document has a tail.
        """
        draws = resamples.with_data()
        weights = draws.weights.T.astype(np.float64)
        top = document_sums(np.moveaxis(sums, 1, 2), draws) @ weights
        by_document = document_sums(self.n_tail.T, draws)
        found = ratio(top, by_document @ weights, empty=np.nan)
        found[:, (by_document > 0).sum(1) < 2, 1:] = np.nan
        return found


def tail_objective(detector: Detector, table: ScoreTable) -> TailObjective:
    """The tail objective of every concept, from unablated scores of one split.

    Args:
        detector: Gives layers, vectors and thresholds.
        table: Scores of the split alone.

    Raises:
        ValueError: No concept has a tail there.
    """
    scores = detector.token_scores(table)
    tail = scores.astype(np.float64) >= np.array([detector.threshold[c] for c in detector.concepts])
    starts, sample_of = table.tokens.bounds[:-1], table.tokens.sample_of
    k = np.add.reduceat(tail.astype(np.float64), starts, axis=0)
    others = np.diff(table.tokens.bounds)[:, None] - k
    n_tail = np.where(others > 0, k, 0.0)
    rest = -n_tail / np.maximum(others, 1)
    weights = np.where(tail, (n_tail > 0)[sample_of], rest[sample_of])
    if not n_tail.any():
        raise ValueError("no token of the split is a SuperActivator of any concept: no tail.")
    made = TailObjective(table.tokens, weights, n_tail, np.zeros_like(n_tail))
    return TailObjective(table.tokens, weights, n_tail, made.sums(scores))


def attributions(
    base: Baseline, objective: TailObjective, heads: Sequence[Head], known: Reference
) -> Float[np.ndarray, "head sample concept"]:
    """First-order total effects of mean ablation, sample by sample.

    Args:
        base: The unablated run of a host whose passes carry gradients; its split is run.
        objective: Of that split.
        heads: Which; their number costs nothing.
        known: Train means of z.

    Returns:
        Sums like those of `total_effects`.

    Raises:
        TypeError: The host gives no gradients.
    """
    host = require_differentiable(base.host)
    n_concepts = objective.clean.shape[1]
    samples = base.data.split(base.split).samples
    layout = lay_out(host, samples, ())
    weights = np.zeros((layout.n_rows, n_concepts))
    weights[rows_kept_in(objective.tokens, layout, samples)] = objective.weights
    found = np.zeros((len(heads), len(samples), n_concepts))
    layers = layers_of_concepts(base.detector)
    for batch in tqdm(layout.batches, desc="gradients", disable=not base.host.progress, leave=False):
        dense = torch.zeros(*batch.valid.shape, n_concepts)
        dense[batch.valid] = torch.from_numpy(weights[layout.rows(batch)]).float()
        for layer in sorted(set(layers)):
            places = [k for k, at in enumerate(layers) if at == layer]
            _add(found, base, host, batch, layer, dense, places, heads, known)
    return found


def _add(
    found: Float[np.ndarray, "head sample concept"],
    base: Baseline,
    host: DifferentiableHost,
    batch: Batch,
    layer: int,
    weights: Float[Tensor, "batch token concept"],
    places: Sequence[int],
    heads: Sequence[Head],
    known: Reference,
) -> None:
    bank, detector = base.detector.bank, base.detector
    blocks = [at for at in sorted({at for at, _ in heads}) if at < layer + reach_offset(base)]
    z: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}
    edits: Mapping[Site, Edit] = {Site(at, "z"): _leaf(at, z, leaves) for at in blocks}
    if not edits:
        return
    with torch.enable_grad(), base.host.edited(edits):
        resid = host.forward_from(host.input_values(batch), batch, Site(layer, bank.hook_point))
        scores = bank.token.score(bank.index(layer), resid)[..., detector.tail.chosen_unit]
        parts = (scores * weights.to(scores.device)).sum((0, 1))
        rows = batch.rows.numpy()
        for k in places:
            slopes = torch.autograd.grad(parts[k], list(leaves.values()), retain_graph=k != places[-1])
            by_block = {
                at: ((z[at] - known.means[at].to(slope.device)) * slope.float()).sum((1, 3))
                for at, slope in zip(leaves, slopes, strict=True)
            }
            for i, (at, head) in enumerate(heads):
                if at in by_block:
                    found[i, rows, k] = by_block[at][:, head].double().cpu().numpy()


def _leaf(at: int, z: dict[int, Tensor], leaves: dict[int, Tensor]) -> ZEdit:
    """Adds a zero that gradients are taken of: z itself is a view off the graph in some hosts."""

    def add(tensor: Tensor, attended: Attended | None) -> Tensor:
        z[at] = tensor.detach().float()
        leaves[at] = torch.zeros_like(tensor, requires_grad=True)
        return tensor + leaves[at]

    return ZEdit(add, may_keep=True)


def reach_offset(base: Baseline) -> int:
    """1 where the heads of a concept's own layer write before its score is read."""
    return reach(base.detector)[0] - layers_of_concepts(base.detector)[0]


def total_effects(
    base: Baseline, objective: TailObjective, heads: Sequence[Head], mode: str, known: Reference
) -> Float[np.ndarray, "head sample concept"]:
    """What each sample loses of the tail objective when one head is ablated.

    Args:
        base: The unablated run; its split is run.
        objective: Of that split.
        heads: One pass each.
        mode: Any but "directional", which is defined for one concept at a time.
        known: Means or donors.

    Returns:
        Sums, for `TailObjective.value` and `.columns`; 0 for concepts the head cannot reach.

    Raises:
        ValueError: The mode is "directional".
    """
    if mode == "directional":
        raise ValueError(
            "mode 'directional' takes out one concept at a time, so a head has no total effect on "
            "all: use 'mean', 'zero', 'resample' or 'pattern'."
        )
    detector, depths = base.detector, reach(base.detector)
    layers = layers_of_concepts(detector)
    found = np.zeros((len(heads), *objective.clean.shape))
    for i, head in enumerate(tqdm(heads, desc="heads", disable=not base.host.progress, leave=False)):
        places = [k for k, depth in enumerate(depths) if head[0] < depth]
        slim = at_layers(detector.bank, sorted({layers[k] for k in places}))
        with base.host.edited(edits_of(base, Group(tuple(places), (head,)), mode, known)):
            scored = score(base.host, base.data, slim, splits=(base.split,), keep_of=base.tokens.tokens)
        part = in_order(scored, base.data.split(base.split).samples)
        at = np.array([slim.layers.index(layers[k]) for k in places])
        scores = np.zeros((len(part.tokens), len(layers)), dtype=np.float32)
        scores[:, places] = column_scores(part, at, detector.tail.chosen_unit[places])
        found[i][:, places] = (objective.clean - objective.sums(scores))[:, places]
    return found


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
        k = position_of(concept, self.concepts)
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
                row = {
                    "head": f"L{layer}H{head}",
                    "concept": concept,
                    "direct": float(self.direct[i, k]),
                    "total": float(self.total[i, k]),
                    "low": float(self.total_low[i, k]),
                    "high": float(self.total_high[i, k]),
                    "lift": float(self.lift[k]),
                }
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
                ("direct", self.direct),
                ("total", self.total),
                ("attribution", self.attribution),
            )
            if values is not None
        }
        order = np.argsort(-np.abs(shares["total"]))[:n]
        rows = [
            ["L{}H{}".format(*self.heads[i]), *(signed(share[i]) for share in shares.values())] for i in order
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


def agreement(guess: Float[np.ndarray, " head"], total: Float[np.ndarray, " head"]) -> dict[str, float]:
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

    Raises:
        TypeError: The host cannot edit.
        ValueError: No concept has a tail in the split; what `head_ledger` raises.
        NotImplementedError: The ledger does not cover the model.

    Example:
        >>> compare_direct_total(host, data, detector).agreement()  # doctest: +SKIP
    """
    ledger = head_ledger(host, data, detector, split=split, scores=None, draws=1)
    base = baseline(host, data, detector, split=split, scores=scores, draws=draws, seed=seed)
    every = candidates(host, detector)
    objective = tail_objective(detector, in_order(base.tokens, data.split(split).samples))
    known = known_of(base, "mean", {at for at, _ in every}, seed)
    sums = total_effects(base, objective, every, "mean", known)
    behind = np.array([[at >= depth for depth in reach(detector)] for at, _ in every])
    low, high = percentile_bounds(objective.columns(sums, base.frozen.resamples)[..., 1:])
    first = None
    if isinstance(host, DifferentiableHost):
        estimate = attributions(base, objective, every, known)
        first = _masked(objective.value(estimate), behind)
    rows = {(c.block, c.head): i for i, c in enumerate(ledger.components) if c.kind == "heads"}
    direct = ledger.lift.terms.value[[rows[head] for head in every]]
    settings = {
        "split": split,
        "n_samples": len(data.split(split)),
        "passes": len(every) + 2,
        "data_hash": data.hash,
        "draws": draws,
        "seed": seed,
        "model": host.info.model,
    }
    return DirectTotal(
        detector.concepts,
        every,
        _masked(direct, behind),
        _masked(objective.value(sums), behind),
        _masked(low, behind),
        _masked(high, behind),
        first,
        objective.value(objective.clean),
        settings,
    )


def _masked(
    values: Float[np.ndarray, "head concept"], behind: np.ndarray
) -> Float[np.ndarray, "head concept"]:
    return np.where(behind, np.nan, values)
