"""The demo's settings: what a small, a usual and a full run of the main job read and fit."""

from __future__ import annotations

from sa_plugin.concepts.kinds import KINDS, kind_of
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.loaders.emoji import emoji_scenes
from sa_plugin.loaders.registry import load
from sa_plugin.loaders.shape_scenes import shapes
from sa_plugin.stages.plan import DEFAULT_STAGES, Plan
from sa_plugin.statistics.drawn import Resampling

SIZES = ("small", "default", "full")
PASSAGES = {"small": 240, "default": 600}
SCENES = {"small": 200, "default": 400, "full": 1500}
# Clusters of the image demo: the default number, tokens // 50, takes minutes on patches.
IMAGE_CLUSTERS = 200


def demo_passages(size: str, split: str, seed: int) -> ConceptData:
    """The embedded data, or a part of it."""
    data = load("supersense", split=split, seed=seed)
    return data.subset(PASSAGES[size], seed=seed) if size in PASSAGES else data


def demo_scenes(size: str, seed: int) -> ConceptData:
    """Emoji scenes where the pictures are present, else shapes; the name of the data says which."""
    try:
        return emoji_scenes(SCENES[size], seed=seed)
    except (FileNotFoundError, ImportError) as missing:
        print(f"{missing}\nUsing rendered shapes instead.")
        return shapes(SCENES[size], seed=seed)


def demo_plan(n_layers: int, size: str, seed: int, *, images: bool = False) -> Plan:
    """Layers and kinds of a demo size.

    Small models are read at every block. Of deep ones every third block is read, not the last: to
    stop before it spares the unembedding.
    """
    clusters = {"k": IMAGE_CLUSTERS} if images else {}
    every = tuple(range(n_layers)) if n_layers <= 12 else tuple(range(1, n_layers - 1, 3))
    draws = 200 if size == "small" else 1000
    if size == "full":
        # Clusters cost minutes a block, so they keep to every third of a deep model.
        whole = tuple(range(n_layers))
        kinds = {kind: whole if kind_of(kind).supervised else every for kind in KINDS}
    else:
        every = every[1::2] if size == "small" else every
        middle = (every[2 * len(every) // 3],)
        kinds = {"prototype": every, "separator": every, "kmeans": middle, "kmeans_separator": middle}
    options = {kind: clusters for kind in kinds if clusters and not kind_of(kind).supervised}
    # Held out of the train documents of 240 passages there is hardly a positive to stop a training by.
    stages = DEFAULT_STAGES if size == "small" else (*DEFAULT_STAGES, "rivals")
    return Plan(kinds, stages=stages, resampling=Resampling(draws, seed), seed=seed, options=options)
