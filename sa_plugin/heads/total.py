"""The tail as one number of a concept's scores, and what single heads do to it.

    T_c = sum_n k_n (m_tail(n) - m_others(n)) / sum_n k_n

with k_n the SuperActivators of sample n in the unablated run, m_tail and m_others the mean score of
those and of the sample's other kept tokens: the total lift of the ledger. Which tokens are the tail
is fixed by the unablated run, so T_c is linear in the scores, with one weight a token; it can be
patched and differentiated.

    total(h, c)       = T_c - T_c with head h ablated           one pass over the split a head
    total(b, c)       = the same with all heads of a block, or its MLP, ablated
    first_order(h, c) = sum over tokens of  dT_c/dz_h . (z_h - mean z_h)

The same of vectors refitted on permuted labels (columns behind the concepts' own): the tail of a
draw's vector are its own highest tokens of the split, as many as the concept has SuperActivators.
A real pass serves all columns at once.

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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.methods import column_scores
from sa_plugin.heads.ablate import Group, edits_of, rescored
from sa_plugin.heads.baseline import Baseline, layers_of_concepts, reach
from sa_plugin.heads.edits import Head, Reference, block_edit
from sa_plugin.heads.sums import nth_highest
from sa_plugin.host.protocol import Attended, Batch, Edit, Site, ZEdit, require_differentiable
from sa_plugin.host.turns import gradient_mode
from sa_plugin.passes.layout import TokenTable, lay_out, rows_kept_in
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.bootstrap import Resamples, document_sums
from sa_plugin.statistics.confusion import ratio, reaches


@dataclass(frozen=True, eq=False)
class TailObjective:
    """T_c of every column on one split: the concepts in order, then those of each draw.

    Attributes:
        tokens: Rows of the unablated run.
        weights: 1 for a tail token, -k_n / (number of others) for another of its sample; 0 in
            samples that are all tail or have none.
        n_tail: k_n, 0 where the sample does not enter.
        clean: `sums` of the unablated scores.
        bank: Whose vectors the columns are.
        units: Place of each column's vector in the bank.
    """

    tokens: TokenTable
    weights: Float[np.ndarray, "token column"]
    n_tail: Float[np.ndarray, "sample column"]
    clean: Float[np.ndarray, "sample column"]
    bank: ConceptBank
    units: Int[np.ndarray, " column"]

    def sums(self, scores: Float[np.ndarray, "token column"]) -> Float[np.ndarray, "sample column"]:
        """Each sample's part of T_c times the number of tail tokens."""
        return np.add.reduceat(self.weights * scores, self.tokens.bounds[:-1], axis=0)

    def value(self, sums: Float[np.ndarray, "*head sample column"]) -> Float[np.ndarray, "*head column"]:
        """T_c, or the part of it that the sums hold; NaN without a tail."""
        return ratio(sums.sum(-2), self.n_tail.sum(0), empty=np.nan)

    def columns(
        self, sums: Float[np.ndarray, "head sample column"], resamples: Resamples
    ) -> Float[np.ndarray, "head column document"]:
        """`value` on the split (first) and without each of its documents; carried by `n_tail`."""
        # Numerator and denominator are sums over documents: a column weighs both alike.
        weights = resamples.weights.T.astype(np.float64)
        top = document_sums(np.moveaxis(sums, 1, 2), resamples) @ weights
        return ratio(top, document_sums(self.n_tail.T, resamples) @ weights, empty=np.nan)


def tail_objective(detector: Detector, table: ScoreTable, drawn: ScoreTable | None = None) -> TailObjective:
    """The tail objective of every concept, from unablated scores of one split.

    Args:
        detector: Gives layers, vectors and thresholds.
        table: Scores of the split alone.
        drawn: Scores of the same rows by a bank of `with_draws`, for columns of its draws too.

    Raises:
        ValueError: No concept has a tail there.
    """
    scores = detector.token_scores(table)
    tail = reaches(scores, np.array([detector.threshold[c] for c in detector.concepts]))
    bank, units = detector.bank, np.asarray(detector.tail.chosen_unit)
    if drawn is not None:
        own = len(bank.units)
        bank, n_draws = drawn.bank, len(drawn.bank.units) // own - 1
        units = (units + own * np.arange(n_draws + 1)[:, None]).ravel()
        at = np.array([bank.layers.index(layer) for layer in layers_of_concepts(detector)] * n_draws)
        null = column_scores(drawn, at, units[len(scores.T) :])
        cuts = nth_highest(null.reshape(len(null), n_draws, -1), tail.sum(0)).ravel()
        tail = np.concatenate([tail, reaches(null, cuts)], axis=1)
        scores = np.concatenate([scores, null], axis=1)
    # T_c as one weight a token: 1 on the tail, minus k / others on the rest of its sample.
    starts, sample_of = table.tokens.bounds[:-1], table.tokens.sample_of
    k = np.add.reduceat(tail.astype(np.float64), starts, axis=0)
    others = np.diff(table.tokens.bounds)[:, None] - k
    n_tail = np.where(others > 0, k, 0.0)
    rest = -n_tail / np.maximum(others, 1)
    weights = np.where(tail, (n_tail > 0)[sample_of], rest[sample_of])
    if not n_tail[:, : len(detector.concepts)].any():
        raise ValueError("no token of the split is a SuperActivator of any concept: no tail.")
    made = TailObjective(table.tokens, weights, n_tail, np.zeros_like(n_tail), bank, units)
    return replace(made, clean=made.sums(scores))


def with_draws(bank: ConceptBank, draws: Sequence[VectorSet]) -> ConceptBank:
    """A bank and behind its own units those of vector sets shaped like it: what one pass can score."""
    vectors = torch.cat([bank.token.vectors, *(one.vectors.to(bank.token.vectors) for one in draws)], dim=1)
    names = [f"{unit}, permutation {k}" for k in range(len(draws)) for unit in bank.units]
    token = VectorSet(vectors, bank.token.mean, bank.token.scale, bank.token.scoring)
    return replace(bank, units=(*bank.units, *names), token=token)


def first_order_effects(
    base: Baseline,
    objective: TailObjective,
    heads: Sequence[Head],
    known: Reference,
    mixes: Float[np.ndarray, "target column"] | None = None,
) -> Float[np.ndarray, "head sample target"]:
    """First-order total effects of mean ablation, sample by sample.

    Costs a forward pass for each layer of a concept, and a backward pass for each target and layer.

    Args:
        base: The unablated run of a host whose passes carry gradients; its split is run.
        objective: Of that split.
        heads: Which; their number costs nothing.
        known: Train means of z.
        mixes: Weights of columns, for effects on sums of them; every column by itself if None.

    Returns:
        Sums like those of `total_effects`, times the weights.

    Raises:
        TypeError: The host gives no gradients.
    """
    host = require_differentiable(base.host)
    samples = base.data.split(base.split).samples
    layout = lay_out(host, samples, ())
    weights = np.zeros((layout.n_rows, len(objective.units)))
    weights[rows_kept_in(objective.tokens, layout, samples)] = objective.weights
    mixed = np.eye(len(objective.units)) if mixes is None else mixes
    found = np.zeros((len(heads), len(samples), len(mixed)))
    layers = np.resize(layers_of_concepts(base.detector), len(objective.units))
    late = base.detector.bank.hook_point != "resid_pre"
    for batch in tqdm(layout.batches, desc="gradients", disable=not base.host.progress, leave=False):
        # Weights of rows as tokens of the padded batch; whatever is no row weighs 0.
        dense = torch.zeros(*batch.valid.shape, weights.shape[1])
        dense[batch.valid] = torch.from_numpy(weights[layout.rows(batch)]).float()
        for layer in np.unique(layers).tolist():
            places = np.flatnonzero(layers == layer)
            blocks = sorted({at for at, _ in heads if at < layer + late})
            parts = partial(_parts, objective.bank, layer, objective.units[places], dense[..., places])
            wanted = np.flatnonzero(mixed[:, places].any(1))
            if not len(wanted):
                continue
            targets = torch.from_numpy(mixed[np.ix_(wanted, places)]).float()
            by_block = _slopes(
                base, batch, Site(layer, base.detector.bank.hook_point), blocks, parts, targets, known
            )
            for i, (at, head) in enumerate(heads):
                if at in by_block:
                    found[i, batch.rows.numpy()[:, None], wanted] += by_block[at][:, head]
    return found


def _parts(
    bank: ConceptBank,
    layer: int,
    units: Int[np.ndarray, " column"],
    weights: Float[Tensor, "batch token column"],
    resid: Float[Tensor, "batch token d_model"],
) -> Float[Tensor, " column"]:
    """The batch's part of each column's T_c, times the number of tail tokens."""
    scores = bank.token.score(bank.index(layer), resid)[..., units]
    return (scores * weights.to(scores.device)).sum((0, 1))


def _slopes(
    base: Baseline,
    batch: Batch,
    site: Site,
    blocks: Sequence[int],
    parts: Callable[[Tensor], Tensor],
    targets: Float[Tensor, "target column"],
    known: Reference,
) -> dict[int, Float[np.ndarray, "batch head target"]]:
    """By block: the slope of each target along z - mean z, summed over tokens and dimensions."""
    z: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}
    edits: Mapping[Site, Edit] = {Site(at, "z"): _leaf(at, z, leaves) for at in blocks}
    if not edits:
        return {}
    found: dict[int, list[np.ndarray]] = {at: [] for at in blocks}
    host = require_differentiable(base.host)
    with gradient_mode(True), base.host.edited(edits):
        each = parts(host.forward_from(host.input_values(batch), batch, site))
        for k, target in enumerate(targets.to(each.device)):
            # One backward pass a target, whatever it mixes.
            slopes = torch.autograd.grad(
                target @ each, list(leaves.values()), retain_graph=k + 1 < len(targets)
            )
            for at, slope in zip(leaves, slopes, strict=True):
                off = z[at] - known.means[at].to(slope.device)
                found[at].append((off * slope.float()).sum((1, 3)).double().cpu().numpy())
    return {at: np.stack(each, axis=-1) for at, each in found.items()}


def _leaf(at: int, z: dict[int, Tensor], leaves: dict[int, Tensor]) -> ZEdit:
    """Adds a zero that gradients are taken of: z itself is a view off the graph in some hosts."""

    def add(tensor: Tensor, attended: Attended | None) -> Tensor:
        z[at] = tensor.detach().float()
        leaves[at] = torch.zeros_like(tensor, requires_grad=True)
        return tensor + leaves[at]

    return ZEdit(add, may_keep=True)


def total_effects(
    base: Baseline, objective: TailObjective, heads: Sequence[Head], mode: str, known: Reference
) -> Float[np.ndarray, "head sample column"]:
    """What each sample loses of the tail objective when one head is ablated.

    Args:
        base: The unablated run; its split is run.
        objective: Of that split.
        heads: One pass each.
        mode: Any but "directional", which is defined for one concept at a time.
        known: Means or donors.

    Returns:
        Sums, for `TailObjective.value` and `.columns`; 0 for columns the head cannot reach.

    Raises:
        ValueError: The mode is "directional".
    """
    if mode == "directional":
        raise ValueError(
            "mode 'directional' takes out one concept at a time, so a head has no total effect on "
            "all: use 'mean', 'zero', 'resample' or 'pattern'."
        )

    def edits_of_head(head: Head, places: Sequence[int]) -> dict[Site, Edit]:
        return edits_of(base, Group(tuple(places), (head,)), mode, known)

    return _totals(base, objective, [(head[0], partial(edits_of_head, head)) for head in heads])


def block_effects(
    base: Baseline, objective: TailObjective, parts: Sequence[Site], known: Reference
) -> Float[np.ndarray, "part sample column"]:
    """What each sample loses of the tail objective when a whole part is mean-ablated.

    Args:
        base: The unablated run; its split is run.
        objective: Of that split.
        parts: One pass each: "z" of a block, all its heads, or its "mlp_out".
        known: From `block_reference`.

    Returns:
        Sums like those of `total_effects`.
    """
    edits = [partial(_block_edit, part, known) for part in parts]
    return _totals(base, objective, [(p.layer, edit) for p, edit in zip(parts, edits, strict=True)])


def _block_edit(part: Site, known: Reference, places: Sequence[int]) -> dict[Site, Edit]:
    return block_edit(part, known)


def _totals(
    base: Baseline,
    objective: TailObjective,
    parts: Sequence[tuple[int, Callable[[Sequence[int]], dict[Site, Edit]]]],
) -> Float[np.ndarray, "part sample column"]:
    """Losses under the edits of each part, given with its block."""
    depths, layers = (np.resize(f(base.detector), len(objective.units)) for f in (reach, layers_of_concepts))
    n_concepts = len(base.detector.concepts)
    found = np.zeros((len(parts), *objective.clean.shape))
    # One part is over before a bar would be of use.
    quiet = not base.host.progress or len(parts) == 1
    for i, (block, edits) in enumerate(tqdm(parts, desc="ablations", disable=quiet, leave=False)):
        places = np.flatnonzero(block < depths)
        with base.host.edited(edits(places[places < n_concepts].tolist())):
            (part,) = rescored(base, layers[places].tolist(), (base.split,), objective.bank)
        at = np.array([part.bank.layers.index(layer) for layer in layers[places]])
        scores = np.zeros((len(part.tokens), len(layers)), dtype=np.float32)
        scores[:, places] = column_scores(part, at, objective.units[places])
        # T_c is linear in the scores: a sample's loss is its clean part less its ablated one.
        found[i][:, places] = (objective.clean - objective.sums(scores))[:, places]
    return found
