"""One pass over a model: rows laid out before, jobs that keep sums, rows and samples, one loop."""

from sa_plugin._face import face_room
from sa_plugin.passes.cluster import Engine, LostWorkersError, RayPool, attaching, on_ray, work_through
from sa_plugin.passes.layout import LostLabelWarning, TokenTable, lay_out
from sa_plugin.passes.run import Job, Kept, NonFiniteRowError, allocate, compact, run_jobs, sink_rule

__all__ = [
    "Engine",
    "Job",
    "Kept",
    "LostLabelWarning",
    "LostWorkersError",
    "NonFiniteRowError",
    "RayPool",
    "TokenTable",
    "allocate",
    "attaching",
    "compact",
    "lay_out",
    "on_ray",
    "run_jobs",
    "sink_rule",
    "work_through",
]

face_room(globals())
