"""How the tail forms: in- and out-of-concept scores layer by layer."""

from sa_plugin._face import face_room
from sa_plugin.tracing.cells import Columns, Densities, cuts
from sa_plugin.tracing.measures import (
    TAIL_LEVEL,
    ConceptScores,
    Cut,
    ScoreGroup,
    joint_edges,
    measures_of,
    overlap,
)
from sa_plugin.tracing.tail_trace import TailTrace, TraceOptions, UndefinedMeasureWarning, trace

__all__ = [
    "TAIL_LEVEL",
    "Columns",
    "ConceptScores",
    "Cut",
    "Densities",
    "ScoreGroup",
    "TailTrace",
    "TraceOptions",
    "UndefinedMeasureWarning",
    "cuts",
    "joint_edges",
    "measures_of",
    "overlap",
    "trace",
]

face_room(globals())
