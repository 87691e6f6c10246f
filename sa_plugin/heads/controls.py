"""Sets of heads to hold the top k of a ranking against.

Controls for the top k are k other heads (none is in the top k):

- random: any, before the deepest layer of a concept.
- layer_matched: as many in each block; where a block has too few left, from the nearest that has.
- norm_matched: for each top head, in random order, one of the `NEAREST` unused heads whose own
  direct change of the residual, root mean square of norm((z' - z) W_O) with z' the ablated z, is
  nearest in ratio. Measured on calibration samples by the very edit that ablates.
- bottom: the last k of the ranking; one set.
- permuted: the first k by the ledger of the vectors of one permutation of the labels; a set a
  permutation, as far as the ranking has them. These heads lift the tail of vectors that mean
  nothing, so they are what selection alone would name. The only family that may share heads with
  the top k.

What this does not show: matching is imperfect where the top heads are the largest ones, and it is
of direct changes; the realised change of every set is measured and reported (`runs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.collect import rows_kept_in, walk
from sa_plugin.editing import Attended, Edit, ZEdit, apply_edit
from sa_plugin.heads.modes import Head
from sa_plugin.heads.reference import Reference
from sa_plugin.heads.runs import PROBE, Baseline, Group, candidates, edits_of
from sa_plugin.host import Batch, Reduce, Site

CONTROLS = ("random", "layer_matched", "norm_matched", "bottom")
FAMILIES = (*CONTROLS, "permuted")
NEAREST = 3


def control_set(
    family: str,
    top: Sequence[Head],
    ranked: Sequence[Head],
    sizes: Mapping[Head, float],
    rng: np.random.Generator,
) -> tuple[Head, ...]:
    """As many other heads as there are in `top`.

    Args:
        family: Of `CONTROLS`.
        top: The heads that are controlled for.
        ranked: All candidates, best first.
        sizes: Direct change of the residual by each, for "norm_matched".
        rng: For all families but "bottom".
    """
    free = [head for head in ranked if head not in set(top)]
    if family == "bottom":
        return tuple(free[-len(top) :])
    if family == "random":
        return tuple(free[int(i)] for i in rng.permutation(len(free))[: len(top)])
    taken = []
    for i in rng.permutation(len(top)):
        head = top[int(i)]
        # Shuffled first, so that ties between equally near heads fall at random.
        rest = [free[int(j)] for j in rng.permutation(len(free))]
        if family == "layer_matched":
            one = min(rest, key=lambda other: abs(other[0] - head[0]))
        else:
            rest.sort(key=lambda other: _ratio(sizes[other], sizes[head]))
            one = rest[int(rng.integers(min(NEAREST, len(rest))))]
        taken.append(one)
        free.remove(one)
    return tuple(taken)


def _ratio(one: float, other: float) -> float:
    return float(abs(np.log(max(one, 1e-30) / max(other, 1e-30))))


def head_changes(base: Baseline, mode: str, known: Reference) -> dict[Head, float]:
    """Direct change of the residual stream when each head alone is ablated.

    Costs one unablated pass over at most `PROBE` calibration samples; with "directional" the mean
    over concepts, and one pass for each.

    Returns:
        Root mean square of norm((z' - z) W_O) over kept tokens, by head.
    """
    every = candidates(base.host, base.detector)
    places = range(len(base.detector.concepts)) if mode == "directional" else [0]
    total = np.mean(
        [_changes(base, Group((k,), every, k), mode, known) for k in places], axis=0
    )  # fmt: skip
    return dict(zip(every, np.sqrt(total).tolist(), strict=True))


def _changes(
    base: Baseline, group: Group, mode: str, known: Reference
) -> Float[np.ndarray, " head"]:
    edits = edits_of(base, group, mode, known)
    keep = rows_kept_in(base.tokens.tokens, base.probe, base.data.cal.samples[:PROBE])
    seen: dict[Site, list[Tensor]] = {site: [] for site in edits}
    masks: list[Tensor] = []
    # The edits only look: every block sees the unablated residual.
    looks: dict[Site, Edit] = {
        site: _look(edit, _gram(base, site.layer), masks, seen[site])
        for site, edit in edits.items()
    }  # fmt: skip
    site = Site(max(at.layer for at in edits), "attn_out")

    def reducer(batch: Batch) -> Reduce:
        masks.append(base.probe.mask(batch, keep))
        return lambda read: {"n": masks[-1].sum()}

    with base.host.edited(looks):
        got = [out for _, out in walk(base.host, base.probe, [site], reducer,
                                      description="sizes", progress=False)]  # fmt: skip
    total = torch.cat([torch.stack(sums).sum(0) for sums in seen.values()])
    return np.asarray((total / sum(int(out["n"]) for out in got)).numpy())


def _gram(base: Baseline, layer: int) -> Float[Tensor, "head d_head d_head"]:
    weight = base.host.output_projection(layer).weight
    return torch.einsum("hed,hfd->hef", weight, weight)


def _look(edit: Edit, gram: Tensor, masks: list[Tensor], seen: list[Tensor]) -> ZEdit:
    """An edit that keeps z, and the squared size of what another one would have changed."""

    def look(z: Tensor, attended: Attended | None) -> Tensor:
        off = (apply_edit(edit, z.clone(), attended) - z).float()[masks[-1].to(z.device)]
        squares = torch.einsum("nhe,hef,nhf->h", off, gram.to(off.device), off)
        seen.append(squares.double().cpu())
        return z

    attends = isinstance(edit, ZEdit) and edit.attends
    return ZEdit(look, attends=attends, may_keep=True)
