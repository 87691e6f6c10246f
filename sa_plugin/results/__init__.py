"""The results of a run as one JSON-ready dictionary: its schema, and how it is read and written."""

from sa_plugin.results.check import check, clean, read_results, write_results
from sa_plugin.results.schema import SCHEMA, KindBlock, Results

__all__ = ["SCHEMA", "KindBlock", "Results", "check", "clean", "read_results", "write_results"]
