"""Fisher's linear discriminant from means and one second moment: no rows, no iterations.

With `S` the covariance of all train tokens in normalised space and `mu_1`, `mu_0` the means of the
tokens in and out of the concept,

`w = (S + ridge tr(S)/d I)^-1 (mu_1 - mu_0)`

The textbook direction has the within-class covariance `S_W` in place of `S`. Both are parallel:
with `p` the concept's share of the tokens and `delta = mu_1 - mu_0`,
`S = S_W + p (1 - p) delta delta^T`, so by Sherman and Morrison
`S^-1 delta = S_W^-1 delta / (1 + p (1 - p) delta^T S_W^-1 delta)`, and the same holds with a ridge
added to both. One factor of `S` therefore serves every concept.

The default ridge, a tenth of the mean variance of a direction, keeps the many directions of little
variance, whose noise the inverse blows up, from ruling `w`. The length of `w` means nothing, and no
threshold comes with it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.concepts.prototype import check_counts, positive_means
from sa_plugin.concepts.statistics import LayerStatistics

RIDGE = 0.1


def lda(
    statistics: LayerStatistics, *, seed: int = 0, ridge: float = RIDGE
) -> tuple[Float[Tensor, "concept d_model"], dict[str, Any]]:
    """Discriminant direction of each concept against all other tokens.

    Args:
        statistics: With `gram`.
        seed: Ignored: nothing is drawn.
        ridge: Added to the covariance, as a share of its mean eigenvalue.

    Returns:
        Vectors in float32, and a record with the `ridge` and the `tokens` of each concept.

    Raises:
        ValueError: No `gram`, a concept without tokens in or out of it, a negative ridge, or a
            covariance that is singular at this ridge.
    """
    if ridge < 0:
        raise ValueError(f"ridge is {ridge}: it must be 0 or more.")
    _check_both_classes(statistics)
    positive = positive_means(statistics)
    # The mean of all tokens is 0 here, so mu_1 - mu_0 = mu_1 n / n_0.
    share = statistics.positive_count.cpu().double() / statistics.n
    contrast = positive / (1 - share)[:, None]
    covariance = _covariance(statistics)
    d_model = len(covariance)
    covariance.diagonal().add_(ridge * covariance.trace() / d_model)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed or not torch.isfinite(factor).all():
        raise ValueError(
            f"lda: the covariance of {statistics.n:,} tokens in {d_model} dimensions is singular "
            f"at ridge={ridge}: give a larger ridge (default {RIDGE}) or more tokens."
        )
    vectors = torch.cholesky_solve(contrast.T, factor).T
    return vectors.float(), {"ridge": ridge, "tokens": statistics.positive_count.tolist()}


def _covariance(statistics: LayerStatistics) -> Float[Tensor, "d_model d_model"]:
    if statistics.gram is None:
        raise ValueError("lda needs the second moment: collect the train pass with need='gram'.")
    mean = statistics.mean.double().cpu()
    return (statistics.gram.double().cpu() - torch.outer(mean, mean)) / statistics.scale**2


def _check_both_classes(statistics: LayerStatistics) -> None:
    check_counts(statistics, "lda")
    full = (statistics.positive_count == statistics.n).nonzero().flatten().tolist()
    if full:
        raise ValueError(
            f"lda: concept columns {full} hold all {statistics.n:,} train tokens: a discriminant "
            "needs tokens outside the concept."
        )
