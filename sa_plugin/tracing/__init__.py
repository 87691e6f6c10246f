"""How the tail forms: in- and out-of-concept scores layer by layer."""

from sa_plugin.tracing.measures import Group, joint_edges, overlap
from sa_plugin.tracing.trace import (
    Columns,
    Densities,
    Estimates,
    TailTrace,
    TraceSettings,
    UndefinedMeasureWarning,
    cuts,
    trace,
)

__all__ = [
    "Columns",
    "Densities",
    "Estimates",
    "Group",
    "TailTrace",
    "TraceSettings",
    "UndefinedMeasureWarning",
    "cuts",
    "joint_edges",
    "overlap",
    "trace",
]
