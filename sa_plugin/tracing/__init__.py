"""How the tail forms: in- and out-of-concept scores layer by layer."""

from sa_plugin._face import face_room
from sa_plugin.tracing.along import Growth, Others, Traced, growths, read_others
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
    "Growth",
    "Others",
    "ScoreGroup",
    "TailTrace",
    "TraceOptions",
    "Traced",
    "UndefinedMeasureWarning",
    "cuts",
    "growths",
    "joint_edges",
    "measures_of",
    "overlap",
    "read_others",
    "trace",
]

face_room(globals())
