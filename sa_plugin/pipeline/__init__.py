"""The whole method in one call, and its results as one JSON-ready dictionary."""

from sa_plugin.pipeline.run import Settings, analyse

__all__ = ["Settings", "analyse"]
