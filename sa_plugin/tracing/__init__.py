"""How the tail forms: in- and out-of-concept scores layer by layer."""

from sa_plugin.tracing.record import record
from sa_plugin.tracing.result import Densities, Estimates, TailTrace, TraceSettings
from sa_plugin.tracing.trace import UndefinedMeasureWarning, trace

__all__ = [
    "Densities",
    "Estimates",
    "TailTrace",
    "TraceSettings",
    "UndefinedMeasureWarning",
    "record",
    "trace",
]
