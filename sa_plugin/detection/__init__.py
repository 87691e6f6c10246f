"""Scores to decisions: calibration, detection and localisation beside every baseline."""

from typing import TYPE_CHECKING

from sa_plugin._face import face_room
from sa_plugin._lazy import lazily
from sa_plugin.detection.calibrate import calibrate
from sa_plugin.detection.calibration import Calibration, Choice, token_cuts
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import OtherDataWarning, SelectionDataWarning, check_unseen
from sa_plugin.detection.methods import GRIDS, STATISTICS, column_scores, random_rows, statistic_of
from sa_plugin.detection.poolings import max_token
from sa_plugin.detection.search import search_matched, search_own

if TYPE_CHECKING:
    from sa_plugin.detection.evaluate import Evaluation, Ground, MethodResult, outcomes
    from sa_plugin.detection.find import Detection, SuperActivator, SuperActivators
    from sa_plugin.detection.localise import Localisation, LocalisationMetrics
    from sa_plugin.detection.measures import Outcome, f1_of, mean_auroc, method_metrics
    from sa_plugin.detection.sweep import SparsityCurve, best_layer
else:
    __getattr__ = lazily(
        __name__,
        {
            "evaluate": ("Evaluation", "Ground", "MethodResult", "outcomes"),
            "find": ("Detection", "SuperActivator", "SuperActivators"),
            "localise": ("Localisation", "LocalisationMetrics"),
            "measures": ("Outcome", "f1_of", "mean_auroc", "method_metrics"),
            "sweep": ("SparsityCurve", "best_layer"),
        },
    )


__all__ = [
    "GRIDS",
    "STATISTICS",
    "Calibration",
    "Choice",
    "Detection",
    "Detector",
    "Evaluation",
    "Ground",
    "Localisation",
    "LocalisationMetrics",
    "MethodResult",
    "OtherDataWarning",
    "Outcome",
    "SelectionDataWarning",
    "SparsityCurve",
    "SuperActivator",
    "SuperActivators",
    "best_layer",
    "calibrate",
    "check_unseen",
    "column_scores",
    "f1_of",
    "max_token",
    "mean_auroc",
    "method_metrics",
    "outcomes",
    "random_rows",
    "search_matched",
    "search_own",
    "statistic_of",
    "token_cuts",
]

face_room(globals())
