"""One pass over a model: rows laid out before, jobs that keep sums, rows and samples, one loop."""

from sa_plugin.passes.layout import LostLabelWarning, TokenTable, lay_out
from sa_plugin.passes.run import Job, Kept, NonFiniteRowError, allocate, compact, run, sink_rule

__all__ = [
    "Job",
    "Kept",
    "LostLabelWarning",
    "NonFiniteRowError",
    "TokenTable",
    "allocate",
    "compact",
    "lay_out",
    "run",
    "sink_rule",
]
