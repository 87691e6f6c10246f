"""Explainers over an objective, and their evaluation: importance of tokens and patches.

`attribute` explains one sample, `compare` sets objectives side by side over many, `forward_func`
hands an objective to captum or anything else that wants inputs -> `[row]`, and `coalition_game`
runs masked inputs for explainers of the user's own.
"""

from sa_plugin.attribution.attribute import METHODS, attribute
from sa_plugin.attribution.compare import compare
from sa_plugin.attribution.comparison import Comparison
from sa_plugin.attribution.engine import coalition_game
from sa_plugin.attribution.forward_func import forward_func
from sa_plugin.attribution.heat_map import heat_map
from sa_plugin.attribution.result import Attribution

__all__ = [
    "METHODS",
    "Attribution",
    "Comparison",
    "attribute",
    "coalition_game",
    "compare",
    "forward_func",
    "heat_map",
]
