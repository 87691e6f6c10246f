"""How the tail forms: in- and out-of-concept scores layer by layer."""

from sa_plugin.tracing.cells import Columns, Densities, cuts
from sa_plugin.tracing.measures import ScoreGroup, joint_edges, overlap
from sa_plugin.tracing.tail_trace import TailTrace, TraceOptions, UndefinedMeasureWarning, trace

__all__ = [
    "Columns",
    "Densities",
    "ScoreGroup",
    "TailTrace",
    "TraceOptions",
    "UndefinedMeasureWarning",
    "cuts",
    "joint_edges",
    "overlap",
    "trace",
]
