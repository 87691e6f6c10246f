"""One pass over a model: rows laid out before, jobs that keep sums, rows and samples, one loop."""

from sa_plugin._face import face_room
from sa_plugin.passes.layout import LostLabelWarning, TokenTable, lay_out
from sa_plugin.passes.run import Job, Kept, NonFiniteRowError, allocate, compact, run_jobs, sink_rule

__all__ = [
    "Job",
    "Kept",
    "LostLabelWarning",
    "NonFiniteRowError",
    "TokenTable",
    "allocate",
    "compact",
    "lay_out",
    "run_jobs",
    "sink_rule",
]

face_room(globals())
