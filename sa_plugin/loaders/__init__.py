"""Data sets and file formats, read into `ConceptData`; `load` is the one door to all of them."""

from sa_plugin._face import face_room
from sa_plugin.loaders.authors import same_word
from sa_plugin.loaders.brown import BROWN_CONCEPTS, brown_concepts_of, brown_folder, brown_passages
from sa_plugin.loaders.clevr import foreground, regions_of
from sa_plugin.loaders.coco import decode_segmentation
from sa_plugin.loaders.corpus import Corpus, Document, open_corpus
from sa_plugin.loaders.emoji import (
    EMOJI_CONCEPTS,
    EMOJI_GROUPS,
    EMOJI_LEFT_OUT,
    EMOJI_PER_DECK,
    deal_decks,
    emoji_folder,
    emoji_scenes,
    plan_emoji,
    read_glyphs,
    render_emoji,
)
from sa_plugin.loaders.files import fit_mask
from sa_plugin.loaders.labelled import CorpusData, UnreadableWarning, labelled_corpus
from sa_plugin.loaders.paper import PAPER_CONCEPTS
from sa_plugin.loaders.reading import published_split
from sa_plugin.loaders.registry import LOADERS, READERS, load, options_of
from sa_plugin.loaders.scenes import masks_by_concept, place_squares
from sa_plugin.loaders.shape_scenes import (
    LUMA,
    SHAPE_COLOURS,
    SHAPE_CONCEPTS,
    SHAPE_KINDS,
    SHAPE_MATERIALS,
    SHAPE_SIZES,
    draw_shapes,
    render_shapes,
    shapes,
)
from sa_plugin.loaders.supersense import SUPERSENSES, SupersensePassage, read_supersense
from sa_plugin.loaders.tail_scenes import ScenePlan
from sa_plugin.loaders.tail_spans import TailPlan

__all__ = [
    "BROWN_CONCEPTS",
    "EMOJI_CONCEPTS",
    "EMOJI_GROUPS",
    "EMOJI_LEFT_OUT",
    "EMOJI_PER_DECK",
    "LOADERS",
    "LUMA",
    "PAPER_CONCEPTS",
    "READERS",
    "SHAPE_COLOURS",
    "SHAPE_CONCEPTS",
    "SHAPE_KINDS",
    "SHAPE_MATERIALS",
    "SHAPE_SIZES",
    "SUPERSENSES",
    "Corpus",
    "CorpusData",
    "Document",
    "ScenePlan",
    "SupersensePassage",
    "TailPlan",
    "UnreadableWarning",
    "brown_concepts_of",
    "brown_folder",
    "brown_passages",
    "deal_decks",
    "decode_segmentation",
    "draw_shapes",
    "emoji_folder",
    "emoji_scenes",
    "fit_mask",
    "foreground",
    "labelled_corpus",
    "load",
    "masks_by_concept",
    "open_corpus",
    "options_of",
    "place_squares",
    "plan_emoji",
    "published_split",
    "read_glyphs",
    "read_supersense",
    "regions_of",
    "render_emoji",
    "render_shapes",
    "same_word",
    "shapes",
]

face_room(globals())
