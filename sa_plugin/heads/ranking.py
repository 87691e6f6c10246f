"""Which heads to ablate: a ranking made on calibration, and sets of others to hold it against.

`rank_heads` orders heads by the mean over concepts of their share of the concept's lift,

    share(h, c) = excess(h, c) / |total lift(c)|        (lift or contrast where there is no excess),

signed, so that heads which push the tail up come first and those which push it down last; by "size"
it is |share|. A head that writes after a concept's layer has share 0 there. The ledger is that of
the calibration split, so nothing that is measured later has been looked at.

Controls for the top k of a ranking are k other heads (none is in the top k):

- random: any, before the deepest layer of a concept.
- layer_matched: as many in each block; where a block has too few left, from the nearest that has.
- norm_matched: for each top head, in random order, one of the `NEAREST` unused heads whose own
  direct change of the residual, root mean square of norm((z' - z) W_O) with z' the ablated z, is
  nearest in ratio. Measured on calibration samples by the very edit that ablates.
- bottom: the last k of the ranking; one set.

What this does not show: matching is imperfect where the top heads are the largest ones, and it is
of direct changes; the realised change of every set is measured and reported (`runs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin._names import require_known
from sa_plugin.collect import rows_kept_in, walk
from sa_plugin.data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.heads.modes import Head, Reference
from sa_plugin.heads.runs import PROBE, Baseline, Group, edits_of, reach
from sa_plugin.host import Batch, Host, Reduce, Site
from sa_plugin.scores import ScoreTable

CONTROLS = ("random", "layer_matched", "norm_matched", "bottom")
NEAREST = 3


@dataclass(frozen=True, eq=False)
class Ranking:
    """Heads, the first of which are said to make the tail.

    Attributes:
        heads: Best first; every head before the deepest layer of a concept.
        values: What they are ordered by.
        effect: "excess", "lift" or "contrast".
        by: "signed" or "size".
        split: Where it was measured.
    """

    heads: tuple[Head, ...]
    values: Float[np.ndarray, " head"]
    effect: str
    by: str
    split: str

    def __repr__(self) -> str:
        first = ", ".join(
            f"L{layer}H{head} {value:+.3f}"
            for (layer, head), value in zip(self.heads[:4], self.values, strict=False)
        )
        return f"Ranking({len(self.heads)} heads by {self.by} {self.effect}, {self.split}: {first})"


def rank_heads(
    host: Host,
    data: ConceptData,
    detector: Detector,
    *,
    by: str = "signed",
    scores: ScoreTable | None = None,
    batch_tokens: int = 2048,
) -> Ranking:
    """Rank heads by their part of the tail on the calibration split.

    Costs one pass over the calibration split.

    Args:
        host: An attached pre-norm model.
        data: Labelled samples.
        detector: From `calibrate`.
        by: "signed" or "size".
        scores: Scores of the calibration split.
        batch_tokens: Tokens in a batch.

    Raises:
        ValueError: No concept has a defined effect, or `by` is unknown.
        NotImplementedError: The model is not pre-norm: rank by other means, and give
            `ablation_curve` your own list.
    """
    require_known("by", by, ("signed", "size"))
    ledger = head_ledger(
        host, data, detector, split="cal", scores=scores, draws=1, batch_tokens=batch_tokens,
        progress=False,
    )  # fmt: skip
    name = ledger.headline
    total = np.abs(ledger.effects["contrast" if name == "contrast" else "lift"].total.value)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = ledger.effects[name].terms.value / total
    defined = np.isfinite(share).all(0)
    if not defined.any():
        raise ValueError("no concept has SuperActivators in calibration: nothing can be ranked.")
    means = (np.abs(share) if by == "size" else share)[:, defined].mean(1)
    rows = [i for i, c in enumerate(ledger.components) if c.kind == "heads"]
    rows.sort(key=lambda i: -means[i])
    heads = tuple((c.block or 0, c.head or 0) for c in (ledger.components[i] for i in rows))
    return Ranking(heads, means[rows], name, by, "cal")


def candidates(host: Host, detector: Detector) -> tuple[Head, ...]:
    """Heads that write before the deepest layer of a concept."""
    return tuple((at, h) for at in range(max(reach(detector))) for h in range(host.info.n_heads))


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
    n = len(base.detector.concepts)
    plan = [Group((k,), every) for k in range(n)] if mode == "directional" else [Group((0,), every)]
    total = np.mean([_changes(base, group, mode, known) for group in plan], axis=0)
    return dict(zip(every, np.sqrt(total).tolist(), strict=True))


def _changes(
    base: Baseline, group: Group, mode: str, known: Reference
) -> Float[np.ndarray, " head"]:
    edits = edits_of(base, group, mode, known)
    keep = rows_kept_in(base.tokens.tokens, base.probe, base.data.cal.samples[:PROBE])
    grams = {}
    for site in edits:
        weight = base.host.output_projection(site.layer).weight
        grams[site] = torch.einsum("hed,hfd->hef", weight, weight)

    def reducer(batch: Batch) -> Reduce:
        mask = base.probe.mask(batch, keep)

        def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
            squares = []
            for site, edit in edits.items():
                off = (edit(read[site].clone()) - read[site]).float()[mask.to(read[site].device)]
                gram = grams[site].to(off.device)
                squares.append(torch.einsum("nhe,hef,nhf->h", off, gram, off))
            return {"sum": torch.cat(squares), "n": mask.sum()}

        return reduce

    got = [out for _, out in walk(base.host, base.probe, list(edits), reducer,
                                  description="sizes", progress=False)]  # fmt: skip
    total = torch.stack([out["sum"].double() for out in got]).sum(0)
    return np.asarray((total / sum(int(out["n"]) for out in got)).numpy())
