"""Labelled samples and their splits by source document."""

from sa_plugin.data.build import EmptySplitWarning, RepeatedTextWarning
from sa_plugin.data.concept_data import ConceptData, Split, split_documents
from sa_plugin.data.images import Geometry, Image, coverage
from sa_plugin.data.sample import Sample, Span

__all__ = [
    "ConceptData",
    "EmptySplitWarning",
    "Geometry",
    "Image",
    "RepeatedTextWarning",
    "Sample",
    "Span",
    "Split",
    "coverage",
    "split_documents",
]
