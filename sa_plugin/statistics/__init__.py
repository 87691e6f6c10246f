"""Metrics and their intervals over source documents: pure functions of arrays."""

from sa_plugin.statistics.bootstrap import (
    Resamples,
    bootstrap_mean,
    bootstrap_statistic,
    document_sums,
    resample_documents,
    resampled_confusion,
    resampled_sums,
)
from sa_plugin.statistics.confusion import (
    Confusion,
    accuracy,
    confusion,
    f1,
    false_positive_rate,
    precision,
    recall,
)
from sa_plugin.statistics.interval import Interval, interval, percentile_bounds
from sa_plugin.statistics.over_concepts import (
    F1Draws,
    bootstrap_f1,
    f1_over_concepts,
    mean_over_concepts,
)
from sa_plugin.statistics.ranking import auroc, average_precision
from sa_plugin.statistics.resampled_quantile import resampled_quantiles
from sa_plugin.statistics.resampled_ranking import resampled_auroc, resampled_average_precision
from sa_plugin.statistics.shape import l_skewness, resampled_l_skewness, skewness

__all__ = [
    "Confusion",
    "F1Draws",
    "Interval",
    "Resamples",
    "accuracy",
    "auroc",
    "average_precision",
    "bootstrap_f1",
    "bootstrap_mean",
    "bootstrap_statistic",
    "confusion",
    "document_sums",
    "f1",
    "f1_over_concepts",
    "false_positive_rate",
    "interval",
    "l_skewness",
    "mean_over_concepts",
    "percentile_bounds",
    "precision",
    "recall",
    "resample_documents",
    "resampled_auroc",
    "resampled_average_precision",
    "resampled_confusion",
    "resampled_l_skewness",
    "resampled_quantiles",
    "resampled_sums",
    "skewness",
]
