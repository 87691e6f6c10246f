"""Data sets by name: which loader reads which layout. Nothing here downloads anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sa_plugin._names import require_known
from sa_plugin.data import ConceptData
from sa_plugin.datasets import authors_images, broden, clevr, coco, goemotions, isarcasm, paper
from sa_plugin.datasets.authors_text import load_text_metadata
from sa_plugin.datasets.brown import load_brown
from sa_plugin.datasets.embedded import load_emoji, load_shapes, load_supersense

Reader = Callable[..., ConceptData]
PUBLISHED = ("plain", "published")


@dataclass(frozen=True)
class Loader:
    """How a data set is read.

    Attributes:
        read: `(root, split, seed, **options)` of the published layout, or of what is embedded.
        authors: The same for a folder with a metadata.csv, the format of the authors' code.
        root: "none", "optional" or "needed".
        splits: Names that `split` may have.
    """

    read: Reader | None
    authors: Reader | None = None
    root: str = "needed"
    splits: tuple[str, ...] = PUBLISHED


def _texts(name: str, default: tuple[str, ...]) -> Reader:
    return partial(load_text_metadata, name=name, default=default)


LOADERS: dict[str, Loader] = {
    "supersense": Loader(load_supersense, root="none", splits=("plain", "held_out_lemma")),
    "emoji": Loader(load_emoji, root="none", splits=("plain",)),
    "shapes": Loader(load_shapes, root="none", splits=("plain",)),
    "brown": Loader(load_brown, root="optional", splits=("plain",)),
    "clevr": Loader(clevr.load_clevr, authors_images.load_clevr_metadata),
    "coco": Loader(coco.load_coco, authors_images.load_coco_metadata),
    "opensurfaces": Loader(broden.load_opensurfaces, authors_images.load_opensurfaces_metadata),
    "pascal": Loader(broden.load_pascal, authors_images.load_pascal_metadata),
    "sarcasm": Loader(None, _texts("sarcasm", paper.SARCASM)),
    "isarcasm": Loader(isarcasm.load_isarcasm, _texts("isarcasm", paper.ISARCASM)),
    "goemotions": Loader(goemotions.load_goemotions, _texts("goemotions", paper.GOEMOTIONS)),
}


def load(
    name: str, root: str | Path | None, split: str, seed: int, options: Mapping[str, Any]
) -> ConceptData:
    """Read a data set; see `ConceptData.load`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A name, split or option is unknown, `root` is missing or not wanted, or a file
            is not as expected.
    """
    require_known("data set", name, LOADERS)
    loader = LOADERS[name]
    require_known("split", split, loader.splits)
    folder = _folder(name, loader, root)
    read = _reader(name, loader, folder)
    known = {p.name for p in inspect.signature(read).parameters.values()
             if p.kind is p.KEYWORD_ONLY} - {"name", "default"}  # fmt: skip
    for option in options:
        require_known(f"option of {name}", option, sorted(known))
    return read(folder, split, seed, **options)


def _folder(name: str, loader: Loader, root: str | Path | None) -> Path | None:
    if root is None:
        if loader.root == "needed":
            raise ValueError(
                f"data set {name!r} needs root=, the folder of your copy (nothing is downloaded): "
                "docs/data.md says what to fetch and how it is laid out."
            )
        return None
    if loader.root == "none":
        raise ValueError(f"data set {name!r} is embedded or rendered: leave root out.")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give the folder of your copy of {name!r}.")
    return folder


def _reader(name: str, loader: Loader, folder: Path | None) -> Reader:
    if loader.authors and folder and (folder / "metadata.csv").exists():
        return loader.authors
    if loader.read is None:
        raise FileNotFoundError(
            f"{folder}/metadata.csv does not exist: {name!r} exists only in the format of the "
            "authors' code."
        )
    return loader.read
