"""The idealised model of concept amplification: our reconstruction, simulated and under test."""

from sa_plugin.theory.dynamics import (
    IdealModel,
    Trajectory,
    attention,
    simulate,
    step,
)
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
from sa_plugin.theory.slopes import Slopes, layer_slopes

__all__ = [
    "Concentration",
    "GapCheck",
    "IdealModel",
    "LayerCheck",
    "Slopes",
    "Trajectory",
    "attention",
    "check_gaps",
    "check_layers",
    "check_prefix_gaps",
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
