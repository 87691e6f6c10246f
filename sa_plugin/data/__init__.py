"""Labelled samples and their splits by source document."""

from sa_plugin.data.build import EmptySplitWarning, RepeatedTextWarning
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.data.images import Geometry, Image, PixelLabels, coverage
from sa_plugin.data.sample import Sample, SampleLabels, Span
from sa_plugin.data.splits import Splits, split_documents

__all__ = [
    "ConceptData",
    "EmptySplitWarning",
    "Geometry",
    "Image",
    "PixelLabels",
    "RepeatedTextWarning",
    "Sample",
    "SampleLabels",
    "Span",
    "Split",
    "Splits",
    "coverage",
    "split_documents",
]
