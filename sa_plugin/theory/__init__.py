"""The idealised model of concept amplification: our reconstruction, simulated and put to the test.

`check_theory` measures on a real model what the other modules predict of the idealised one.
"""

from sa_plugin.theory.assumptions import Assumption
from sa_plugin.theory.check import check_theory
from sa_plugin.theory.dynamics import (
    IdealModel,
    Trajectory,
    attention,
    simulate,
    step,
)
from sa_plugin.theory.estimates import Quantity
from sa_plugin.theory.gaps import (
    GapCheck,
    check_gaps,
    check_prefix_gaps,
    common_prefix_updates,
)
from sa_plugin.theory.predictions import (
    Concentration,
    LayerCheck,
    check_layers,
    concentration,
    extreme_log_odds,
    gap_factors,
    gaps_safe_from_noise,
    local_gain,
    noise_floor,
    skew_growth,
    tail_spread,
)
from sa_plugin.theory.regime import Regime
from sa_plugin.theory.report import TheoryReport
from sa_plugin.theory.slopes import Slopes, layer_slopes
from sa_plugin.theory.verdicts import Verdict

__all__ = [
    "Assumption",
    "Concentration",
    "GapCheck",
    "IdealModel",
    "LayerCheck",
    "Quantity",
    "Regime",
    "Slopes",
    "TheoryReport",
    "Trajectory",
    "Verdict",
    "attention",
    "check_gaps",
    "check_layers",
    "check_prefix_gaps",
    "check_theory",
    "common_prefix_updates",
    "concentration",
    "extreme_log_odds",
    "gap_factors",
    "gaps_safe_from_noise",
    "layer_slopes",
    "local_gain",
    "noise_floor",
    "simulate",
    "skew_growth",
    "step",
    "tail_spread",
]
