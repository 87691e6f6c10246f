"""Two theories put to the test: how the tail forms, and when it wins.

`check_theory` measures in every block what the idealised model of concept amplification, our
reconstruction, predicts. `advise` predicts which pooling wins at another length and span.
"""

from sa_plugin._face import face_room
from sa_plugin.theory.advise import Advice, advise
from sa_plugin.theory.assumptions import Assumption, span, told
from sa_plugin.theory.check import Conditions, check_theory
from sa_plugin.theory.measures import Measures
from sa_plugin.theory.paths import path_of, predicted_pattern, tilted
from sa_plugin.theory.report import TheoryReport
from sa_plugin.theory.slopes import Slopes, layer_slopes, orthogonal
from sa_plugin.theory.tail_inputs import TailInputs, extremal_index, intraclass, measure_inputs, tail_index
from sa_plugin.theory.tail_law import Constants, Context, Prediction, TailLaw, pooled
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
    "Advice",
    "Amplification",
    "Assumption",
    "Conditions",
    "Constants",
    "Context",
    "Measures",
    "Prediction",
    "Regime",
    "Slopes",
    "TailInputs",
    "TailLaw",
    "TheoryReport",
    "Verdict",
    "advise",
    "amplification_of",
    "check_theory",
    "extremal_index",
    "intraclass",
    "judge",
    "layer_slopes",
    "measure_inputs",
    "orthogonal",
    "path_of",
    "pooled",
    "predicted_pattern",
    "span",
    "tail_index",
    "tilted",
    "told",
    "too_small",
]

face_room(globals())
