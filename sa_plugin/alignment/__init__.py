"""Which heads read and write along a concept: weights against a null, and what data show."""

from sa_plugin.alignment.align import head_alignment
from sa_plugin.alignment.call import adjusted, call
from sa_plugin.alignment.plot import plot_alignment
from sa_plugin.alignment.result import RULE, HeadAlignment

__all__ = ["RULE", "HeadAlignment", "adjusted", "call", "head_alignment", "plot_alignment"]
