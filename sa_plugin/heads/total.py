"""The tail as one number of a concept's scores, and what single heads do to it.

    T_c = sum_n k_n (m_tail(n) - m_others(n)) / sum_n k_n

with k_n the SuperActivators of sample n in the unablated run, m_tail and m_others the mean score of
those and of the sample's other kept tokens: the total lift of the ledger. Which tokens are the tail
is fixed by the unablated run, so T_c is linear in the scores, with one weight a token; it can be
patched and differentiated.

    total(h, c)       = T_c - T_c with head h ablated           one pass over the split a head
    first_order(h, c) = sum over tokens of  dT_c/dz_h . (z_h - mean z_h)

The total effect holds whatever later heads and MLPs make of the missing head, which the ledger's
direct term leaves out. Attribution patching is its linear estimate in mode "mean": one forward pass
a layer and one backward pass a concept, whatever the number of heads (Nanda 2023, "Attribution
patching"; Syed et al., arXiv 2310.10348).

What they do not show: tokens are chosen by the score whose parts are then taken away, so every part
that varies has a positive expected share of T_c, for a vector that means nothing too; the ledger
subtracts that (excess), these do not. Heads are ablated one by one: two that stand in for each other
have small total effects each, and effects of single heads do not add up to that of the set. The
slope misses saturation and interaction: where a softmax or a norm is saturated it is small and the
effect is not, or the reverse; so the best few are verified by real passes
(`rank_heads(budget=...)`), and `compare_direct_total` says how well it does on a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin.detection.detector import Detector
from sa_plugin.detection.methods import column_scores
from sa_plugin.heads.ablate import Group, edits_of, rescored
from sa_plugin.heads.baseline import Baseline, layers_of_concepts, reach
from sa_plugin.heads.edits import Head, Reference
from sa_plugin.host.protocol import (
    Attended,
    Batch,
    DifferentiableHost,
    Edit,
    Site,
    ZEdit,
    require_differentiable,
)
from sa_plugin.host.turns import gradient_mode
from sa_plugin.passes.layout import TokenTable, lay_out, rows_kept_in
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.bootstrap import Resamples, document_sums
from sa_plugin.statistics.confusion import ratio, reaches


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
        """`value` on the split (column 0) and without each of its documents; carried by `n_tail`."""
        # Numerator and denominator are sums over documents: a column weighs both alike.
        weights = resamples.weights.T.astype(np.float64)
        top = document_sums(np.moveaxis(sums, 1, 2), resamples) @ weights
        return ratio(top, document_sums(self.n_tail.T, resamples) @ weights, empty=np.nan)


def tail_objective(detector: Detector, table: ScoreTable) -> TailObjective:
    """The tail objective of every concept, from unablated scores of one split.

    Args:
        detector: Gives layers, vectors and thresholds.
        table: Scores of the split alone.

    Raises:
        ValueError: No concept has a tail there.
    """
    scores = detector.token_scores(table)
    tail = reaches(scores, np.array([detector.threshold[c] for c in detector.concepts]))
    # T_c as one weight a token: 1 on the tail, minus k / others on the rest of its sample.
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


def first_order_effects(
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
        # Weights of rows as tokens of the padded batch; whatever is no row weighs 0.
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
    blocks = [at for at in sorted({at for at, _ in heads}) if at < layer + _reach_offset(base)]
    z: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}
    edits: Mapping[Site, Edit] = {Site(at, "z"): _leaf(at, z, leaves) for at in blocks}
    if not edits:
        return
    with gradient_mode(True), base.host.edited(edits):
        resid = host.forward_from(host.input_values(batch), batch, Site(layer, bank.hook_point))
        scores = bank.token.score(bank.index(layer), resid)[..., detector.tail.chosen_unit]
        # The batch's part of each concept's T_c: its gradient at z is one backward pass a concept.
        parts = (scores * weights.to(scores.device)).sum((0, 1))
        rows = batch.rows.numpy()
        for k in places:
            slopes = torch.autograd.grad(parts[k], list(leaves.values()), retain_graph=k != places[-1])
            # dT/dz . (z - mean) over tokens and dimensions: what is left is one number a sample and head.
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


def _reach_offset(base: Baseline) -> int:
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
        with base.host.edited(edits_of(base, Group(tuple(places), (head,)), mode, known)):
            (part,) = rescored(base, [layers[k] for k in places], (base.split,))
        at = np.array([part.bank.layers.index(layers[k]) for k in places])
        scores = np.zeros((len(part.tokens), len(layers)), dtype=np.float32)
        scores[:, places] = column_scores(part, at, detector.tail.chosen_unit[places])
        # T_c is linear in the scores: a sample's loss is its clean part less its ablated one.
        found[i][:, places] = (objective.clean - objective.sums(scores))[:, places]
    return found
