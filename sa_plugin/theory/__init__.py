"""The idealised model of concept amplification, our reconstruction, put to the test on a real model.

`check_theory` measures in every block what the idealised model predicts.
"""

from sa_plugin._face import face_room
from sa_plugin.theory.assumptions import Assumption, span, told
from sa_plugin.theory.check import Conditions, check_theory
from sa_plugin.theory.measures import Measures
from sa_plugin.theory.paths import path_of, predicted_pattern, tilted
from sa_plugin.theory.report import TheoryReport
from sa_plugin.theory.slopes import Slopes, layer_slopes, orthogonal
from sa_plugin.theory.verdicts import (
    TITLES,
    Amplification,
    Regime,
    Verdict,
    amplification_of,
    judge,
    too_small,
)

__all__ = [
    "TITLES",
    "Amplification",
    "Assumption",
    "Conditions",
    "Measures",
    "Regime",
    "Slopes",
    "TheoryReport",
    "Verdict",
    "amplification_of",
    "check_theory",
    "judge",
    "layer_slopes",
    "orthogonal",
    "path_of",
    "predicted_pattern",
    "span",
    "tilted",
    "told",
    "too_small",
]

face_room(globals())
