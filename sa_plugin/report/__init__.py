"""One HTML page of a run."""

from sa_plugin._face import face_room
from sa_plugin.report.charts import density_grid, fraction_lines, shown_concepts, stored
from sa_plugin.report.page import render_report, write_report
from sa_plugin.report.parts import mean_grid, relative
from sa_plugin.report.record import checked, problems, read_results, write_results
from sa_plugin.report.schema import SCHEMA, Heads, KindBlock, Results, Trace
from sa_plugin.report.words import verdict
from sa_plugin.show.result import clean

__all__ = [
    "SCHEMA",
    "Heads",
    "KindBlock",
    "Results",
    "Trace",
    "checked",
    "clean",
    "density_grid",
    "fraction_lines",
    "mean_grid",
    "problems",
    "read_results",
    "relative",
    "render_report",
    "shown_concepts",
    "stored",
    "verdict",
    "write_report",
    "write_results",
]

face_room(globals())
