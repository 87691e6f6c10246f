"""Scores to decisions: calibration, detection and localisation beside every baseline."""

from sa_plugin.detection.calibrate import calibrate
from sa_plugin.detection.detector import Choice, Detector
from sa_plugin.detection.evaluate import Evaluation, MethodResult
from sa_plugin.detection.find import Detection, SuperActivator
from sa_plugin.detection.guard import OtherDataWarning, SelectionDataWarning
from sa_plugin.detection.localisation_metrics import LocalisationMetrics
from sa_plugin.detection.localise import Localisation
from sa_plugin.detection.pool import STATISTICS
from sa_plugin.detection.sweep import SparsityCurve

__all__ = [
    "STATISTICS",
    "Choice",
    "Detection",
    "Detector",
    "Evaluation",
    "Localisation",
    "LocalisationMetrics",
    "MethodResult",
    "OtherDataWarning",
    "SelectionDataWarning",
    "SparsityCurve",
    "SuperActivator",
    "calibrate",
]
