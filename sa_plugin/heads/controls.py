"""Sets of heads to hold the top k of a ranking against.

Controls for the top k are k other heads (none is in the top k):

- random: any, before the deepest layer of a concept.
- layer_matched: as many in each block; where a block has too few left, from the nearest that has.
- norm_matched: for each top head, in random order, one of the `_NEAREST` unused heads whose own
  direct change of the residual, root mean square of norm((z' - z) W_O) with z' the ablated z, is
  nearest in ratio. Measured on calibration samples by the very edit that ablates.
- bottom: the last k of the ranking; one set.
- permuted: the first k that the ranking's own rule names for the vectors of one permutation of the
  labels; one set a permutation, as far as the ranking has them, and so the same set more than once
  where permutations agree. These heads carry the tail of vectors that mean nothing, so they are what
  selection alone would name. The only family that may share heads with the top k.

What this does not show: matching is imperfect where the top heads are the largest ones, and it is
of direct changes; the realised change of every set is measured and reported beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.heads.ablate import Group, edits_of
from sa_plugin.heads.baseline import Baseline, candidates
from sa_plugin.heads.edits import Head, Reference
from sa_plugin.host.protocol import Attended, Batch, Edit, Site, ZEdit, apply_edit
from sa_plugin.host.reducers import keeping
from sa_plugin.passes.run import Job, Reducer, run_jobs

CONTROL_FAMILIES = ("random", "layer_matched", "norm_matched", "bottom")
_FAMILIES = (*CONTROL_FAMILIES, "permuted")
_NEAREST = 3
# Draws for each set of a family in search of one that is not there yet.
_TRIES = 20


@face
@dataclass(frozen=True)
class HeadSets:
    """Which sets of heads a curve ablates, or keeps, beside the top k.

    Attributes:
        ks: Numbers of heads.
        controls: Of "random", "layer_matched", "norm_matched", "bottom" (one set) and "permuted"
            (a set a permutation of the ranking), see the module; all by default, "permuted" where the
            ranking has permutations.
        repeats: Sets of each family, all different; fewer where there are no more (few heads left
            in the blocks of a layer-matched set). Of permuted ones five at least, as far as the
            ranking has them.

    Raises:
        ValueError: None is asked for, or of an unknown family.
    """

    ks: Sequence[int] = (1, 4, 12)
    controls: Sequence[str] | None = None
    repeats: int = 3

    def __post_init__(self) -> None:
        if not self.ks or self.repeats < 1:
            raise ValueError(
                f"ks is {list(self.ks)} and repeats {self.repeats}: ask for at least one of each."
            )
        for family in self.controls or ():
            require_known("control", family, _FAMILIES)


def families_of(sets: HeadSets, permuted: bool) -> tuple[str, ...]:
    """The controls that are asked for, or all that there are."""
    if sets.controls is not None:
        return tuple(sets.controls)
    return (*CONTROL_FAMILIES, "permuted") if permuted else CONTROL_FAMILIES


def distinct_sets(
    family: str,
    top: Sequence[Head],
    ranked: Sequence[Head],
    sizes: Mapping[Head, float],
    repeats: int,
    seed: int,
) -> list[tuple[Head, ...]]:
    """Sets of a family, none twice; fewer than asked where `_TRIES` draws a set find no other.

    Args:
        family: Of `CONTROL_FAMILIES`.
        top: The heads that are controlled for.
        ranked: All candidates, best first.
        sizes: Direct change of the residual by each, for "norm_matched".
        repeats: Sets wanted.
        seed: Of the draws.
    """
    found: dict[frozenset[Head], tuple[Head, ...]] = {}
    wanted = 1 if family == "bottom" else repeats
    for n in range(_TRIES * wanted):
        if len(found) == wanted:
            break
        rng = np.random.default_rng([seed, len(top), CONTROL_FAMILIES.index(family), n])
        heads = control_set(family, top, ranked, sizes, rng)
        found.setdefault(frozenset(heads), heads)
    return list(found.values())


def control_set(
    family: str,
    top: Sequence[Head],
    ranked: Sequence[Head],
    sizes: Mapping[Head, float],
    rng: np.random.Generator,
) -> tuple[Head, ...]:
    """As many other heads as there are in `top`.

    Args:
        family: Of `CONTROL_FAMILIES`.
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
            one = rest[int(rng.integers(min(_NEAREST, len(rest))))]
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
    # Any group does where the edit does not depend on the concept.
    places = range(len(base.detector.concepts)) if mode == "directional" else [0]
    total = np.mean([_changes(base, Group((k,), every, k), mode, known) for k in places], axis=0)
    return dict(zip(every, np.sqrt(total).tolist(), strict=True))


def _changes(base: Baseline, group: Group, mode: str, known: Reference) -> Float[np.ndarray, " head"]:
    edits = edits_of(base, group, mode, known)
    seen: dict[Site, list[Tensor]] = {site: [] for site in edits}
    masks: list[Tensor] = []
    # The edits only look: every block sees the unablated residual.
    looks: dict[Site, Edit] = {
        site: _look(edit, _gram(base, site.layer), masks, seen[site]) for site, edit in edits.items()
    }
    site = Site(max(at.layer for at in edits), "attn_out")

    def reducer(batch: Batch) -> Reducer:
        masks.append(base.probe.layout.mask(batch, base.probe.rows))
        return lambda read, keep: keeping()

    with base.host.edited(looks):
        (kept,) = run_jobs(
            base.host, base.probe.layout, [Job([site], reducer)], base.probe.rows, description="sizes"
        )
    total = torch.cat([torch.stack(sums).sum(0) for sums in seen.values()])
    return np.asarray((total / int(kept.keep.sum())).numpy())


def _gram(base: Baseline, layer: int) -> Float[Tensor, "head d_head d_head"]:
    # norm(u W_O)^2 = u (W_O W_O^T) u: d_head^2 numbers a head, whatever the width of the residual.
    weight = base.host.output_projection(layer).weight
    return torch.einsum("hed,hfd->hef", weight, weight)


def _look(edit: Edit, gram: Tensor, masks: list[Tensor], seen: list[Tensor]) -> ZEdit:
    """An edit that keeps z, and the squared size of what another one would have changed."""

    def look(z: Tensor, attended: Attended | None) -> Tensor:
        # What the edit would change, on kept tokens; z itself is handed back as it came.
        off = (apply_edit(edit, z.clone(), attended) - z).float()[masks[-1].to(z.device)]
        squares = torch.einsum("nhe,hef,nhf->h", off, gram.to(off.device), off)
        seen.append(squares.double().cpu())
        return z

    attends = isinstance(edit, ZEdit) and edit.attends
    return ZEdit(look, attends=attends, may_keep=True)
