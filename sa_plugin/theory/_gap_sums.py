"""Gaps of one sample in one block, as sums from which every measure of Theorem 1 and 2 follows.

Pure torch, for use inside `Host.read`. Columns are directions; tokens are the kept ones of one
sample, which attend to one another. Activations are centred within the sample before moments are
taken, so offsets of samples are no gaps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RESOLUTION = 1e-4
TENTHS = 10


class Steps(NamedTuple):
    """Activations of one sample's kept tokens around one block.

    Attributes:
        before: a at the input, from its origin.
        after: a at the output.
        heads: What the attention layer adds along v_out.
        gain: Predicted 1 + sum beta gamma Var / r of each token; None where beta is not known.
        path: What heads write along v_out from reading the concept alone; None without weights.
    """

    before: Float[Tensor, "token column"]
    after: Float[Tensor, "token column"]
    heads: Float[Tensor, "token column"]
    gain: Float[Tensor, "token column"] | None
    path: Float[Tensor, "token column"] | None


def gap_sums(steps: Steps) -> dict[str, Tensor]:
    """Moments and pairs, before against after, with the heads' write alone, and as predicted."""
    found: dict[str, Tensor] = {}
    later = {"layer": steps.after, "heads": steps.before + steps.heads}
    if steps.gain is not None:
        later["predicted"] = integrated(steps.before, steps.gain)
    if steps.path is not None:
        later["path"] = steps.before + steps.path
    x = _centred(steps.before)
    found["xx"] = x.square().sum(0)
    for name, values in later.items():
        y = _centred(values)
        found[f"xy {name}"], found[f"yy {name}"] = (x * y).sum(0), y.square().sum(0)
        if name in ("layer", "heads"):
            counts = pair_counts(steps.before, values)
            found |= {f"{what} {name}": value for what, value in counts.items()}
    change = _centred(steps.after - steps.before)
    write = _centred(steps.heads)
    found["change"] = change.square().sum(0)
    found["change by heads"] = (change * write).sum(0)
    if steps.path is not None:
        own = _centred(steps.path)
        found["path"], found["path by heads"] = own.square().sum(0), (own * write).sum(0)
        found["heads' write"] = write.square().sum(0)
    return found


def pair_counts(
    before: Float[Tensor, "token column"], after: Float[Tensor, "token column"]
) -> dict[str, Tensor]:
    """Pairs of tokens, those of which the gap grew, and those that changed order."""
    n = len(before)
    rows, columns = torch.tril_indices(n, n, -1, device=before.device)
    gaps, later = before[rows] - before[columns], after[rows] - after[columns]
    scale = torch.maximum(before.abs().amax(0), after.abs().amax(0))
    used = gaps.abs() > RESOLUTION * scale
    return count(gaps, later, used)


def count(
    gaps: Float[Tensor, "*pair column"],
    later: Float[Tensor, "*pair column"],
    used: Bool[Tensor, "*pair column"],
) -> dict[str, Tensor]:
    """Pairs compared, grown, shrunk and flipped, over all but the last axis."""
    every = tuple(range(gaps.ndim - 1))
    same, size = later * gaps.sign(), gaps.abs()
    return {
        "pairs": used.sum(every).double(),
        "grown": (used & (same > size * (1 + RESOLUTION))).sum(every).double(),
        "shrunk": (used & (same < size * (1 - RESOLUTION))).sum(every).double(),
        "flipped": (used & (same < 0)).sum(every).double(),
    }


def integrated(
    before: Float[Tensor, "token column"], gain: Float[Tensor, "token column"]
) -> Float[Tensor, "token column"]:
    """The activations after a layer that multiplies the gap at each a by the gain there.

    The trapezium rule over the sorted tokens of the sample: exact up to the square of the gaps
    between neighbours. The lowest token stays where it is.
    """
    ordered, order = before.sort(dim=0)
    factor = gain.gather(0, order)
    steps = ordered.diff(dim=0) * (factor[1:] + factor[:-1]) / 2
    grown = torch.cat([ordered[:1], ordered[:1] + steps.cumsum(0)])
    return torch.empty_like(before).scatter(0, order, grown)


def shape_sums(steps: Steps) -> dict[str, Tensor]:
    """Powers for the pooled skewness, and the sample's own L-skewness."""
    found: dict[str, Tensor] = {}
    sides = {"before": steps.before, "after": steps.after}
    if steps.gain is not None:
        sides["predicted"] = integrated(steps.before, steps.gain)
    for name, values in sides.items():
        x = _centred(values)
        found[f"second {name}"], found[f"third {name}"] = x.square().sum(0), x.pow(3).sum(0)
    for name in ("before", "after"):
        shape = l_skewness(sides[name])
        found[f"l skew {name}"] = shape.nan_to_num(0.0)
        found[f"l skewed {name}"] = shape.isfinite().double()
    found["tokens"] = torch.full_like(found["second before"], len(steps.before))
    return found


def l_skewness(values: Float[Tensor, "token column"]) -> Float[Tensor, " column"]:
    """L-skewness of each column (`sa_plugin.statistics.shape`); NaN for a constant."""
    n = len(values)
    ordered = _centred(values).sort(dim=0).values
    rank = torch.arange(n, dtype=values.dtype, device=values.device)[:, None]
    b1 = (rank * ordered).sum(0) / (n * (n - 1))
    b2 = (rank * (rank - 1) * ordered).sum(0) / (n * (n - 1) * (n - 2))
    scale = 2 * b1
    flat = scale <= 1e-12 * (ordered[-1] - ordered[0])
    return torch.where(flat, torch.nan, (6 * b2 - 6 * b1) / scale)


def tenth_sums(steps: Steps) -> dict[str, Tensor]:
    """Sums by tenth of a, ranked within the sample: `[column, tenth]`."""
    n = len(steps.before)
    rank = steps.before.argsort(dim=0).argsort(dim=0)
    tenth = (rank * TENTHS) // n
    member = torch.nn.functional.one_hot(tenth, TENTHS).to(steps.before)
    parts = {
        "tenth before": _centred(steps.before),
        "tenth layer": _centred(steps.after),
        "tenth heads": _centred(steps.before + steps.heads),
    }
    if steps.gain is not None:
        parts["tenth predicted"] = _centred(integrated(steps.before, steps.gain))
    found = {name: torch.einsum("tc,tcq->cq", part, member) for name, part in parts.items()}
    return {"tenth tokens": member.sum(0), **found}


def tail_sums(steps: Steps, tail: float, least: int) -> dict[str, Tensor]:
    """Corollary 2 in the sample's top share of tokens, the same tokens before and after."""
    n = len(steps.before)
    size = tail_size(n, tail, least)
    top = steps.before.topk(size, dim=0).indices
    before, after = steps.before.gather(0, top), steps.after.gather(0, top)
    update = steps.heads.gather(0, top)
    defined = (before.amax(0) > 0) & (after.amax(0) > 0)
    found = {"tails": defined.double()}
    for name, values in (("before", before), ("after", after)):
        peak = values.amax(0)
        spread = 1 - values.mean(0) / peak
        variation = values.std(0) / values.mean(0).abs()
        found[f"spread {name}"] = torch.where(defined, spread, 0.0)
        found[f"variation {name}"] = torch.where(defined, variation, 0.0)
    found["update gap tail"] = mean_gap(update)
    found["update gap all"] = mean_gap(steps.heads)
    found["update size"] = update.abs().mean(0)
    return found


def tail_size(n: int, tail: float, least: int) -> int:
    """Tokens of a tail: the share, and at least `least`."""
    return min(n, max(least, round(tail * n)))


def mean_gap(values: Float[Tensor, "token column"]) -> Float[Tensor, " column"]:
    """Mean |x_i - x_j| over pairs of different tokens, by sorting."""
    n = len(values)
    rank = torch.arange(n, dtype=values.dtype, device=values.device)[:, None]
    ordered = values.sort(dim=0).values
    return 2 * ((2 * rank - n + 1) * ordered).sum(0) / (n * (n - 1))


def _centred(values: Float[Tensor, "token column"]) -> Float[Tensor, "token column"]:
    return values - values.mean(0)
