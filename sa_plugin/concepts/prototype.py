"""Mean prototype of a concept: the mean normalised embedding of its train tokens.

`v_c = mean of x over tokens in concept c = (positive_mean_c - mean) / scale`

Not re-normalised; the activation is the cosine, which does not see its length (arXiv 2512.05038;
`compute_avg_concept_vectors` in the authors' code). A prototype ignores how tokens vary: where one
direction carries most of the variance, prototypes of unrelated concepts point along it together.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from sa_plugin.concepts.statistics import LayerStatistics


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
    check_counts(statistics, "prototype")
    return positive_means(statistics).float(), {"tokens": statistics.positive_count.tolist()}


def positive_means(statistics: LayerStatistics) -> Float[Tensor, "concept d_model"]:
    """Mean normalised embedding of each concept's tokens, in float64."""
    raw = statistics.positive_mean.double() - statistics.mean.double()
    return (raw / statistics.scale).cpu()


def check_counts(statistics: LayerStatistics, kind: str) -> None:
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
