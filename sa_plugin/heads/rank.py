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

Which heads to ablate: a ranking made on calibration, so that nothing measured has been seen.

Heads are ordered by the mean over concepts of their share of the concept's lift, signed, so that
heads which push the tail up come first and those which push it down last:

| by | share(h, c) | passes |
|---|---|---|
| ledger | excess(h, c) / abs(lift(c)), of direct writes | 1 |
| attribution | attribution(h, c) / abs(T_c), `gradients.py` | 1, and 1 backward a concept |
| patching | total(h, c) / abs(T_c), of mean ablation, `total.py` | 1 a head |

With `budget`, "attribution" verifies the head that stands highest and is not verified yet by a real
pass, again and again, until the budget of passes is spent; a verified head has its exact value. A
head that writes after a concept's layer has share 0 there.

What it does not show: "ledger" misses what a head does through later parts; "attribution" and
"patching" contain what selection of the tail alone gives (`tail_objective.py`), so they name heads
for a vector that means nothing too. A ranking is a choice of what to ablate, not evidence.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import SelectionDataWarning
from sa_plugin.heads.ablate import PROBE, Baseline, Group, baseline, candidates, edits_of, in_order, known_of
from sa_plugin.heads.edits import Head, Reference
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.heads.total import TailObjective, attributions, tail_objective, total_effects
from sa_plugin.host.protocol import Attended, Batch, Edit, Host, Site, ZEdit, apply_edit
from sa_plugin.host.reducers import keeping
from sa_plugin.passes.layout import rows_kept_in
from sa_plugin.passes.run import Job, Keep, run
from sa_plugin.scores.table import ScoreTable

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
    total = np.mean([_changes(base, Group((k,), every, k), mode, known) for k in places], axis=0)
    return dict(zip(every, np.sqrt(total).tolist(), strict=True))


def _changes(base: Baseline, group: Group, mode: str, known: Reference) -> Float[np.ndarray, " head"]:
    edits = edits_of(base, group, mode, known)
    frozen = rows_kept_in(base.tokens.tokens, base.probe, base.data.cal.samples[:PROBE])
    seen: dict[Site, list[Tensor]] = {site: [] for site in edits}
    masks: list[Tensor] = []
    # The edits only look: every block sees the unablated residual.
    looks: dict[Site, Edit] = {
        site: _look(edit, _gram(base, site.layer), masks, seen[site]) for site, edit in edits.items()
    }
    site = Site(max(at.layer for at in edits), "attn_out")

    def reducer(batch: Batch) -> Keep:
        masks.append(base.probe.mask(batch, frozen))
        return lambda read, keep: keeping()

    with base.host.edited(looks):
        (kept,) = run(base.host, base.probe, [Job([site], reducer)], frozen, description="sizes")
    total = torch.cat([torch.stack(sums).sum(0) for sums in seen.values()])
    return np.asarray((total / int(kept.keep.sum())).numpy())


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


RANKINGS = ("ledger", "attribution", "patching")


@dataclass(frozen=True, eq=False)
class Ranking:
    """Heads, the first of which are said to make the tail.

    Attributes:
        heads: Best first; every head before the deepest layer of a concept.
        values: What they are ordered by.
        shares: By concept; NaN where a concept has no tail in the split.
        concepts: Names.
        by: Of `RANKINGS`.
        effect: "excess", "lift" or "contrast" of the ledger, or "total".
        exact: Which values are of real passes or of the exact ledger, not of a linear estimate.
        split: Where it was measured.
        permuted: The order that the vectors of each permutation of the labels give, where the
            ledger has a control.
    """

    heads: tuple[Head, ...]
    values: Float[np.ndarray, " head"]
    shares: Float[np.ndarray, "head concept"]
    concepts: tuple[str, ...]
    by: str
    effect: str
    exact: Bool[np.ndarray, " head"]
    split: str
    permuted: tuple[tuple[Head, ...], ...] = ()

    def __repr__(self) -> str:
        first = ", ".join(
            f"L{layer}H{head} {value:+.3f}"
            for (layer, head), value in zip(self.heads[:4], self.values, strict=False)
        )
        exact = "" if self.exact.all() else f", {int(self.exact.sum())} verified"
        n = len(self.permuted)
        control = f", control of {n} permutation{'s' * (n > 1)}" if n else ""
        return (
            f"Ranking({len(self.heads)} heads by {self.by}, {self.effect} on {self.split}{exact}"
            f"{control}: {first})"
        )

    def of(self, concept: str) -> tuple[Head, ...]:
        """Heads in the order of one concept's own shares.

        Raises:
            ValueError: Unknown concept, or one without a tail in the split.
        """
        require_known("concept", concept, self.concepts)
        share = self.shares[:, self.concepts.index(concept)]
        if not np.isfinite(share).all():
            raise ValueError(f"{concept!r} has no SuperActivators in {self.split}: no ranking.")
        return tuple(self.heads[int(i)] for i in np.argsort(-share, kind="stable"))


def rank_heads(
    host: Host,
    data: ConceptData,
    detector: Detector,
    *,
    by: str = "ledger",
    size: bool = False,
    budget: int | None = None,
    permutations: int | None = None,
    scores: ScoreTable | None = None,
) -> Ranking:
    """Rank heads by their part of the tail on the calibration split.

    Costs, in passes over the calibration split: "ledger" one; "attribution" one and a
    backward pass for each concept, and `budget` more; "patching" one a head; and one for scores
    that are not given.

    Args:
        host: An attached model.
        data: Labelled samples.
        detector: From `calibrate`.
        by: "ledger", "attribution" or "patching".
        size: Order by the size of the share, whatever its sign.
        budget: Passes that may be spent on single heads: by default none for "attribution" and as
            many as there are heads for "patching".
        permutations: Of the labels, for the control of "ledger" and for the order that each of
            them gives. By default 20 for prototypes and discriminants, whose refits cost no more
            than a train pass, and for separators the one that the bank holds; more of these cost a
            train pass and as many iterative fits a concept and layer.
        scores: Scores of the calibration split.

    Returns:
        The heads of each concept, the strongest first, with what they were ranked by.

    Raises:
        TypeError: "attribution" on a host without gradients, "patching" on one that cannot edit.
        ValueError: No concept has a defined effect, `by` is unknown, or the budget is too small.
        NotImplementedError: "ledger" on a model whose blocks it does not cover.
    """
    require_known("by", by, RANKINGS)
    if by == "ledger":
        if budget is not None:
            raise ValueError("by='ledger' spends no passes on single heads: leave budget out.")
        return _by_ledger(host, data, detector, size, permutations, scores)
    if permutations is not None:
        raise ValueError(f"by={by!r} has no control by permuted labels: leave permutations out.")
    every = candidates(host, detector)
    _check_budget(by, budget, len(every))
    with warnings.catch_warnings():
        # Nothing is reported of the split: it is only chosen on.
        warnings.simplefilter("ignore", SelectionDataWarning)
        base = baseline(host, data, detector, split="cal", scores=scores, draws=1, seed=0)
    objective = tail_objective(detector, in_order(base.tokens, data.cal.samples))
    known = known_of(base, "mean", {at for at, _ in every}, 0)
    lift = np.abs(objective.value(objective.clean))

    def exact(heads: Sequence[Head]) -> Float[np.ndarray, "head concept"]:
        sums = total_effects(base, objective, heads, "mean", known)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(objective.value(sums) / lift)

    if by == "patching":
        share, verified = exact(every), np.ones(len(every), dtype=bool)
    else:
        share = _estimated(base, objective, every, known, lift)
        verified = np.zeros(len(every), dtype=bool)
        for _ in range(min(budget or 0, len(every))):
            value = np.where(verified, -np.inf, _mean(share, size))
            i = int(value.argmax())
            share[i], verified[i] = exact([every[i]])[0], True
    return _ordered(every, share, size, detector.concepts, by, "total", verified)


def _check_budget(by: str, budget: int | None, n_heads: int) -> None:
    if budget is not None and budget < (n_heads if by == "patching" else 0):
        raise ValueError(
            f"budget is {budget} passes; by={by!r} takes "
            + (
                f"one for each of {n_heads} heads: use by='attribution', which verifies the best "
                "few under any budget."
                if by == "patching"
                else "0 or more."
            )
        )


def _estimated(
    base: Baseline,
    objective: TailObjective,
    every: Sequence[Head],
    known: Reference,
    lift: Float[np.ndarray, " concept"],
) -> Float[np.ndarray, "head concept"]:
    sums = attributions(base, objective, every, known)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(objective.value(sums) / lift)


def _by_ledger(
    host: Host,
    data: ConceptData,
    detector: Detector,
    size: bool,
    permutations: int | None,
    scores: ScoreTable | None,
) -> Ranking:
    ledger = head_ledger(host, data, detector, split="cal", scores=scores, permutations=permutations, draws=1)
    name = ledger.headline
    rows = [i for i, c in enumerate(ledger.components) if c.kind == "heads"]
    heads = tuple((c.block or 0, c.head or 0) for c in (ledger.components[i] for i in rows))
    total = np.abs(ledger.effects["contrast" if name == "contrast" else "lift"].total.value)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = ledger.effects[name].terms.value[rows] / total
    verified = np.ones(len(rows), dtype=bool)
    permuted: tuple[tuple[Head, ...], ...] = ()
    if "control" in ledger.effects:
        with np.errstate(invalid="ignore", divide="ignore"):
            null = ledger.control_by_draw["control"][:, rows] / total
        permuted = tuple(_ordered(heads, one, size, ledger.concepts, "", "", verified).heads for one in null)
    return _ordered(heads, share, size, ledger.concepts, "ledger", name, verified, permuted)


def _mean(share: Float[np.ndarray, "head concept"], size: bool) -> Float[np.ndarray, " head"]:
    """Mean over concepts that have a tail."""
    defined = np.isfinite(share).all(0)
    if not defined.any():
        raise ValueError("no concept has SuperActivators in calibration: nothing can be ranked.")
    return np.asarray((np.abs(share) if size else share)[:, defined].mean(1))


def _ordered(
    heads: Sequence[Head],
    share: Float[np.ndarray, "head concept"],
    size: bool,
    concepts: tuple[str, ...],
    by: str,
    effect: str,
    exact: Bool[np.ndarray, " head"],
    permuted: tuple[tuple[Head, ...], ...] = (),
) -> Ranking:
    value = _mean(share, size)
    order = np.argsort(-value, kind="stable")
    return Ranking(
        tuple(heads[int(i)] for i in order),
        value[order],
        share[order],
        concepts,
        by,
        effect,
        exact[order],
        "cal",
        permuted,
    )
