"""The idealised model of concept amplification: our reconstruction, simulated and put to the test.

`check_theory` measures on a real model what the other modules predict of the idealised one.
"""

from sa_plugin.theory.check import check_theory
from sa_plugin.theory.measures import Drawn, Quantity, Slopes, layer_slopes, orthogonal
from sa_plugin.theory.paths import normalised, path_of, scales_of
from sa_plugin.theory.verdicts import TITLES, Assumption, Regime, TheoryReport, Verdict, judge

__all__ = [
    "TITLES",
    "Assumption",
    "Drawn",
    "Quantity",
    "Regime",
    "Slopes",
    "TheoryReport",
    "Verdict",
    "check_theory",
    "judge",
    "layer_slopes",
    "normalised",
    "orthogonal",
    "path_of",
    "scales_of",
]
