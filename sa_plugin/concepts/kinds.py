"""The concept kinds by name: what each needs, how its activation is computed, who fits it.

Adding a kind is adding a function `(statistics, *, seed, **options) -> (vectors, record)` and a line
of `KINDS`. The two that need no rows are here:

*Prototype*: the mean normalised embedding of the concept's train tokens,

`v_c = mean of x over tokens in concept c = (positive_mean_c - mean) / scale`

Not re-normalised; the activation is the cosine, which does not see its length (arXiv 2512.05038;
`compute_avg_concept_vectors` in the authors' code). A prototype ignores how tokens vary: where one
direction carries most of the variance, prototypes of unrelated concepts point along it together.

*LDA*: Fisher's linear discriminant from means and one second moment. With `S` the covariance of all
train tokens in normalised space and `mu_1`, `mu_0` the means of the tokens in and out of the concept,

`w = (S + ridge tr(S)/d I)^-1 (mu_1 - mu_0)`

Tokens whose label is unknown are in `S`, which no label enters, and in neither mean.

The textbook direction has the within-class covariance `S_W` in place of `S`. Both are parallel: with
`p` the concept's share of the tokens and `delta = mu_1 - mu_0`,
`S = S_W + p (1 - p) delta delta^T`, so by Sherman and Morrison
`S^-1 delta = S_W^-1 delta / (1 + p (1 - p) delta^T S_W^-1 delta)`, and the same holds with a ridge
added to both. One factor of `S` therefore serves every concept. The default ridge, a tenth of the
mean variance of a direction, keeps the many directions of little variance, whose noise the inverse
blows up, from ruling `w`. The length of `w` means nothing, and no threshold comes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin.concepts.bank import Scoring
from sa_plugin.concepts.kmeans import kmeans, kmeans_separator
from sa_plugin.concepts.separator import separator, separator_adam
from sa_plugin.concepts.train_statistics import LayerStatistics


def prototype(
    statistics: LayerStatistics, *, seed: int = 0
) -> tuple[Float[Tensor, "concept d_model"], dict[str, Any]]:
    """Mean of each concept's tokens, in normalised space; needs no rows.

    Args:
        statistics: Means over all kept train tokens.
        seed: Ignored: nothing is drawn.

    Returns:
        Vectors in float32, and a record with the `tokens` behind each.

    Raises:
        ValueError: A concept has no train token; the text names its column.
    """
    _check_counts(statistics, "prototype")
    return _positive_means(statistics).float(), {"tokens": statistics.positive_count.tolist()}


def _positive_means(statistics: LayerStatistics) -> Float[Tensor, "concept d_model"]:
    """Mean normalised embedding of each concept's tokens, in float64."""
    # The mean of normalised rows is the normalised mean: no row is needed.
    raw = statistics.positive_mean.double() - statistics.mean.double()
    return (raw / statistics.scale).cpu()


def _check_counts(statistics: LayerStatistics, kind: str) -> None:
    """Refuse a concept without train tokens.

    Raises:
        ValueError: The text names the columns.
    """
    empty = (statistics.positive_count == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{kind}: concept columns {empty} have no train token among {statistics.n:,}: label "
            "more samples or leave these concepts out."
        )


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
    positive = _positive_means(statistics)
    # The mean of all tokens is 0 here, so mu_1 - mu_0 = mu_1 n / n_0.
    share = statistics.positive_count.cpu().double() / statistics.n
    contrast = positive / (1 - share)[:, None]
    if statistics.unknown_count is not None and statistics.unknown_mean is not None:
        # With unknown tokens n_0 mu_0 = -(n_1 mu_1 + n_u mu_u).
        unknown = (statistics.unknown_mean.double() - statistics.mean.double()).cpu() / statistics.scale
        of_unknown = statistics.unknown_count.cpu().double()[:, None] * unknown
        of_positive = statistics.positive_count.cpu().double()[:, None] * positive
        outside = statistics.negative_count.cpu().double()[:, None]
        contrast = positive + (of_positive + of_unknown) / outside
    covariance = _covariance(statistics)
    d_model = len(covariance)
    # A share of the mean eigenvalue, so that the ridge means the same at every layer and width.
    covariance.diagonal().add_(ridge * covariance.trace() / d_model)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed or not torch.isfinite(factor).all():
        raise ValueError(
            f"lda: the covariance of {statistics.n:,} tokens in {d_model} dimensions is singular "
            f"at ridge={ridge}: {_cause(statistics)}"
        )
    vectors = torch.cholesky_solve(contrast.T, factor).T
    return vectors.float(), {"ridge": ridge, "tokens": statistics.positive_count.tolist()}


def _covariance(statistics: LayerStatistics) -> Float[Tensor, "d_model d_model"]:
    if statistics.gram is None:
        raise ValueError("lda needs the second moment: collect the train pass with need='gram'.")
    mean = statistics.mean.double().cpu()
    return (statistics.gram.double().cpu() - torch.outer(mean, mean)) / statistics.scale**2


# Second moments are added in float64: of a spread so many times below its mean no digit is sure.
_LOST = 1e7


def _cause(statistics: LayerStatistics) -> str:
    """Why no discriminant comes of a covariance, and what helps."""
    spread = _covariance(statistics).diagonal().clamp_min(0).sqrt() * statistics.scale
    times = statistics.mean.double().cpu().abs() / spread
    # A feature that is zero everywhere, 0 / 0, stands still like any other.
    lost = (~(times <= _LOST)).nonzero().flatten().tolist()
    if len(lost) == len(times):
        return (
            "no feature varies by more than its rounding, so all tokens look alike to a discriminant: read "
            "another layer, or check the model's weights."
        )
    # A ridge of any size mends a few features that stand still, or sums that lost them.
    if lost:
        some = ", ".join(map(str, lost[:5])) + (", ..." if len(lost) > 5 else "")
        return (
            f"the mean of features {some} ({len(lost)} of {len(times)}) is more than {_LOST:.0e} times "
            f"their spread, of which float64 sums keep no digit: give a larger ridge (default {RIDGE}), or "
            "fit a separator, which sees the rows themselves."
        )
    return f"give a larger ridge (default {RIDGE}) or more tokens."


def _check_both_classes(statistics: LayerStatistics) -> None:
    _check_counts(statistics, "lda")
    full = (statistics.negative_count == 0).nonzero().flatten().tolist()
    if full:
        raise ValueError(
            f"lda: concept columns {full} hold all {statistics.n:,} train tokens: a discriminant "
            "needs tokens outside the concept."
        )


Need = Literal["means", "gram", "rows"]
Fit = Callable[..., tuple[Float[Tensor, "unit d_model"], Mapping[str, Any]]]


@dataclass(frozen=True)
class Kind:
    """A way to turn train statistics into concept vectors.

    Attributes:
        fit: `(statistics: LayerStatistics, *, seed: int, **options) -> (vectors, record)`;
            vectors live in normalised space, the record says how the fit went.
        scoring: "cosine" with, or "dot" product on, the normalised embedding.
        need: What the train pass has to leave behind.
        supervised: Whether rows of the result are concepts; else they are units that are matched
            to concepts on the calibration split.
    """

    fit: Fit
    scoring: Scoring
    need: Need
    supervised: bool = True


KINDS: Mapping[str, Kind] = {
    "prototype": Kind(prototype, "cosine", "means"),
    "separator": Kind(separator, "dot", "rows"),
    "separator_adam": Kind(separator_adam, "dot", "rows"),
    "lda": Kind(lda, "dot", "gram"),
    "kmeans": Kind(kmeans, "cosine", "rows", supervised=False),
    "kmeans_separator": Kind(kmeans_separator, "dot", "rows", supervised=False),
}


def kind_of(name: str) -> Kind:
    """The kind of that name.

    Raises:
        ValueError: Unknown (the text names the nearest), or "sae", which is not fitted.
    """
    if name == "sae":
        raise ValueError(
            "kind 'sae' is not fitted, its latents are there already: give "
            "sa_plugin.concepts.sae_bank(host, data, {layer: sae}), and go on with calibrate(...)."
        )
    require_known("kind", name, KINDS)
    return KINDS[name]
