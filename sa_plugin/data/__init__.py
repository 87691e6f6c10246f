"""Labelled samples and their splits by source document."""

from sa_plugin._face import face_room
from sa_plugin.data.build import EmptySplitWarning
from sa_plugin.data.columns import AlikeNamesWarning
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.data.given import Chat, TokenIds
from sa_plugin.data.images import FramesWarning, Geometry, Image, PixelLabels, coverage
from sa_plugin.data.loose import as_split
from sa_plugin.data.sample import Sample, SampleLabels, Span
from sa_plugin.data.splits import RepeatedTextWarning, Splits, split_documents, text_key
from sa_plugin.data.tags import TAG_SCHEMES, tag_concepts
from sa_plugin.data.words import CutWordsWarning, Spelling

__all__ = [
    "TAG_SCHEMES",
    "AlikeNamesWarning",
    "Chat",
    "ConceptData",
    "CutWordsWarning",
    "EmptySplitWarning",
    "FramesWarning",
    "Geometry",
    "Image",
    "PixelLabels",
    "RepeatedTextWarning",
    "Sample",
    "SampleLabels",
    "Span",
    "Spelling",
    "Split",
    "Splits",
    "TokenIds",
    "as_split",
    "coverage",
    "split_documents",
    "tag_concepts",
    "text_key",
]

face_room(globals())
