"""One HTML page of a run."""

from sa_plugin.report.heads import mean_grid, relative
from sa_plugin.report.page import render_report, verdict, write_report
from sa_plugin.report.schema import (
    SCHEMA,
    Heads,
    KindBlock,
    Results,
    Trace,
    check,
    problems,
    read_results,
    write_results,
)
from sa_plugin.report.svg import Scale, nice, path_data
from sa_plugin.report.trace import shown_concepts
from sa_plugin.show.result import clean

__all__ = [
    "SCHEMA",
    "Heads",
    "KindBlock",
    "Results",
    "Scale",
    "Trace",
    "check",
    "clean",
    "mean_grid",
    "nice",
    "path_data",
    "problems",
    "read_results",
    "relative",
    "render_report",
    "shown_concepts",
    "verdict",
    "write_report",
    "write_results",
]
