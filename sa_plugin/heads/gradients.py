"""Attribution patching: the total effect of every head at once, to first order.

    attribution(h, c) = sum over tokens of  dT_c/dz_h . (z_h - mean z_h)

the linear estimate of `total.total_effects` in mode "mean" (T_c: `tail_objective.py`). One forward
pass a layer and one backward pass a concept, whatever the number of heads
(Nanda 2023, "Attribution patching"; Syed et al., arXiv 2310.10348).

What it does not show: saturation and interaction. Where a softmax or a norm is saturated the slope
is small and the effect is not, or the reverse; so the best few are verified by real passes
(`ranking.rank_heads(budget=)`), and `compare_direct_total` says how well it does on a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin.collect import lay_out, rows_kept_in
from sa_plugin.differentiable import DifferentiableHost, require_differentiable
from sa_plugin.editing import Attended, Edit, ZEdit
from sa_plugin.heads.modes import Head
from sa_plugin.heads.reference import Reference
from sa_plugin.heads.runs import Baseline, layers_of_concepts, reach
from sa_plugin.heads.tail_objective import TailObjective
from sa_plugin.host import Batch, Site


def attributions(
    base: Baseline,
    objective: TailObjective,
    heads: Sequence[Head],
    known: Reference,
    *,
    progress: bool = True,
) -> Float[np.ndarray, "head sample concept"]:
    """First-order total effects of mean ablation, sample by sample.

    Args:
        base: The unablated run of a host whose passes carry gradients; its split is run.
        objective: Of that split.
        heads: Which; their number costs nothing.
        known: Train means of z.
        progress: Whether to show a bar.

    Returns:
        Sums like those of `total_effects`.

    Raises:
        TypeError: The host gives no gradients.
    """
    host = require_differentiable(base.host)
    n_concepts = objective.clean.shape[1]
    samples = base.data.split(base.split).samples
    layout = lay_out(host, samples, (), batch_tokens=base.batch_tokens)
    weights = np.zeros((layout.n_rows, n_concepts))
    weights[rows_kept_in(objective.tokens, layout, samples)] = objective.weights
    found = np.zeros((len(heads), len(samples), n_concepts))
    layers = layers_of_concepts(base.detector)
    for batch in tqdm(layout.batches, desc="gradients", disable=not progress, leave=False):
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
            slopes = torch.autograd.grad(
                parts[k], list(leaves.values()), retain_graph=k != places[-1]
            )
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
