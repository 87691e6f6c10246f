"""Scores to thresholds: exact quantiles, in memory and from streams."""

from sa_plugin.tail.counts import EmptyConceptWarning, FewTokensWarning, InactiveConceptWarning
from sa_plugin.tail.deltas import DELTAS
from sa_plugin.tail.quantile import quantiles, tail_thresholds, tail_thresholds_cross
from sa_plugin.tail.streaming import RadixHistogram, ScoreChunks, streaming_thresholds

__all__ = [
    "DELTAS",
    "EmptyConceptWarning",
    "FewTokensWarning",
    "InactiveConceptWarning",
    "RadixHistogram",
    "ScoreChunks",
    "quantiles",
    "streaming_thresholds",
    "tail_thresholds",
    "tail_thresholds_cross",
]
