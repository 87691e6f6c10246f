"""Data sets and file formats, read into `ConceptData`."""

from sa_plugin.loaders.clevr import foreground, regions_of
from sa_plugin.loaders.emoji import (
    DECK,
    FONT,
    GROUPS,
    NOT_MEANT,
    TABLE,
    deal,
    emoji_scenes,
    plan,
    read_glyphs,
)
from sa_plugin.loaders.huggingface import from_dataset
from sa_plugin.loaders.metadata import same_word
from sa_plugin.loaders.registry import LOADERS, load
from sa_plugin.loaders.scenes import masks_by_concept, place
from sa_plugin.loaders.shapes import (
    COLOURS,
    CONCEPTS,
    LUMA,
    MATERIALS,
    SHAPES,
    SIZES,
    draw_scene,
    render,
    shapes,
)
from sa_plugin.loaders.tables import fit_mask, published_split, read_csv, read_jsonl
from sa_plugin.loaders.texts import (
    BROWN_CONCEPTS,
    SUPERSENSES,
    SupersensePassage,
    brown_folder,
    concepts_of,
    passages,
    read_supersense,
)

__all__ = [
    "BROWN_CONCEPTS",
    "COLOURS",
    "CONCEPTS",
    "DECK",
    "FONT",
    "GROUPS",
    "LOADERS",
    "LUMA",
    "MATERIALS",
    "NOT_MEANT",
    "SHAPES",
    "SIZES",
    "SUPERSENSES",
    "TABLE",
    "SupersensePassage",
    "brown_folder",
    "concepts_of",
    "deal",
    "draw_scene",
    "emoji_scenes",
    "fit_mask",
    "foreground",
    "from_dataset",
    "load",
    "masks_by_concept",
    "passages",
    "place",
    "plan",
    "published_split",
    "read_csv",
    "read_glyphs",
    "read_jsonl",
    "read_supersense",
    "regions_of",
    "render",
    "same_word",
    "shapes",
]
