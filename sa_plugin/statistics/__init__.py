"""Pure numpy: quantiles of tails, rankings, confusion counts, resampling of documents."""

from typing import TYPE_CHECKING

from sa_plugin._face import face_room
from sa_plugin._lazy import lazily
from sa_plugin.statistics.conformal import (
    Losses,
    Promise,
    confident_rank,
    discoveries,
    document_threshold,
    episode_losses,
    p_of_documents,
    p_of_tokens,
    risk_threshold,
    share_losses,
)
from sa_plugin.statistics.confusion import (
    Confusion,
    accuracy,
    confusion,
    exceeds,
    f1,
    false_positive_rate,
    precision,
    reaches,
    recall,
)
from sa_plugin.statistics.drawn import Drawn, Resampling, scarcer, stack
from sa_plugin.statistics.interval import Kind
from sa_plugin.statistics.quantile import (
    DELTAS,
    EmptyConceptWarning,
    FewTokensWarning,
    InactiveConceptWarning,
    balanced_weights,
    quantiles,
    quantiles_sorted,
    tail_levels,
    tail_thresholds,
    tail_thresholds_cross,
    weighted_quantiles,
)

if TYPE_CHECKING:
    from sa_plugin.statistics.bootstrap import (
        Resamples,
        bootstrap_mean,
        document_sums,
        left_out,
        mean_over_concepts,
        resample_documents,
        resampled_confusion,
        resampled_sums,
    )
    from sa_plugin.statistics.chunks import ScoreChunks, streaming_thresholds
    from sa_plugin.statistics.hashed import mixed, name_keys, uniform
    from sa_plugin.statistics.ranking import (
        auroc,
        average_precision,
        resampled_auroc,
        resampled_average_precision,
        resampled_roc_start,
    )
    from sa_plugin.statistics.shape import l_skewness, resampled_l_skewness, resampled_quantiles, skewness
    from sa_plugin.statistics.streaming import Enclosed, ExactTail, to_keys, to_values
else:
    __getattr__ = lazily(
        __name__,
        {
            "bootstrap": (
                "Resamples",
                "bootstrap_mean",
                "document_sums",
                "left_out",
                "mean_over_concepts",
                "resample_documents",
                "resampled_confusion",
                "resampled_sums",
            ),
            "chunks": ("ScoreChunks", "streaming_thresholds"),
            "hashed": ("mixed", "name_keys", "uniform"),
            "ranking": (
                "auroc",
                "average_precision",
                "resampled_auroc",
                "resampled_average_precision",
                "resampled_roc_start",
            ),
            "streaming": ("Enclosed", "ExactTail", "to_keys", "to_values"),
            "shape": ("l_skewness", "resampled_l_skewness", "resampled_quantiles", "skewness"),
        },
    )


__all__ = [
    "DELTAS",
    "Confusion",
    "Drawn",
    "EmptyConceptWarning",
    "Enclosed",
    "ExactTail",
    "FewTokensWarning",
    "InactiveConceptWarning",
    "Kind",
    "Losses",
    "Promise",
    "Resamples",
    "Resampling",
    "ScoreChunks",
    "accuracy",
    "auroc",
    "average_precision",
    "balanced_weights",
    "bootstrap_mean",
    "confident_rank",
    "confusion",
    "discoveries",
    "document_sums",
    "document_threshold",
    "episode_losses",
    "exceeds",
    "f1",
    "false_positive_rate",
    "l_skewness",
    "left_out",
    "mean_over_concepts",
    "mixed",
    "name_keys",
    "p_of_documents",
    "p_of_tokens",
    "precision",
    "quantiles",
    "quantiles_sorted",
    "reaches",
    "recall",
    "resample_documents",
    "resampled_auroc",
    "resampled_average_precision",
    "resampled_confusion",
    "resampled_l_skewness",
    "resampled_quantiles",
    "resampled_roc_start",
    "resampled_sums",
    "risk_threshold",
    "scarcer",
    "share_losses",
    "skewness",
    "stack",
    "streaming_thresholds",
    "tail_levels",
    "tail_thresholds",
    "tail_thresholds_cross",
    "to_keys",
    "to_values",
    "uniform",
    "weighted_quantiles",
]

face_room(globals())
