"""Data sets that need no copy: the embedded text and the rendered pictures, as loaders.

Data sets by name: which loader reads which layout. Nothing here downloads anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sa_plugin._check import require_known
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.splits import Splits
from sa_plugin.loaders import broden, clevr, coco, huggingface, metadata, texts
from sa_plugin.loaders.emoji import emoji_scenes
from sa_plugin.loaders.metadata import load_text_metadata
from sa_plugin.loaders.shapes import shapes
from sa_plugin.loaders.texts import load_brown, read_supersense


def load_supersense(_: Path | None, split: str, seed: int) -> ConceptData:
    """Silver WordNet supersense labels on public-domain prose: docs/supersense.md.

    Args:
        _: No root.
        split: "plain", or "held_out_lemma": no labelled lemma of test is in train or cal.
        seed: Seed of the plain division.
    """
    concepts, passages = read_supersense()
    if split == "plain":
        passages = [p for p in passages if p.plain]
    else:
        passages = [p for p in passages if p.held_out_lemma]
    return ConceptData.from_spans(
        [p.text for p in passages],
        [p.spans for p in passages],
        concepts=concepts,
        documents=[p.document for p in passages],
        ids=[p.id for p in passages],
        splits=Splits(of=None if split == "plain" else [str(p.held_out_lemma) for p in passages], seed=seed),
        name=f"supersense/{split}",
    )


def load_emoji(
    _: Path | None,
    split: str,
    seed: int,
    *,
    n: int = 400,
    size: int = 224,
    font: str | Path | None = None,
    table: str | Path | None = None,
    objects: tuple[int, int] = (1, 3),
    fractions: tuple[float, float, float] = (0.5, 0.2, 0.3),
    min_coverage: float = 0.0,
) -> ConceptData:
    """Scenes of emoji, divided by deck of glyphs; options as in `emoji_scenes`."""
    return emoji_scenes(
        n,
        seed=seed,
        size=size,
        font=font,
        table=table,
        objects=objects,
        fractions=fractions,
        min_coverage=min_coverage,
    )


def load_shapes(
    _: Path | None,
    split: str,
    seed: int,
    *,
    n: int = 400,
    size: int = 224,
    objects: tuple[int, int] = (1, 4),
    overlap: bool = False,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    min_coverage: float = 0.0,
) -> ConceptData:
    """CLEVR-like scenes, made here; options as in `sa_plugin.loaders.shapes.shapes`."""
    return shapes(
        n,
        seed=seed,
        size=size,
        objects=objects,
        overlap=overlap,
        fractions=fractions,
        min_coverage=min_coverage,
    )


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
    "clevr": Loader(clevr.load_clevr, metadata.load_clevr_metadata),
    "coco": Loader(coco.load_coco, metadata.load_coco_metadata),
    "opensurfaces": Loader(broden.load_opensurfaces, metadata.load_opensurfaces_metadata),
    "pascal": Loader(broden.load_pascal, metadata.load_pascal_metadata),
    "sarcasm": Loader(None, _texts("sarcasm", huggingface.SARCASM)),
    "isarcasm": Loader(texts.load_isarcasm, _texts("isarcasm", huggingface.ISARCASM)),
    "goemotions": Loader(texts.load_goemotions, _texts("goemotions", huggingface.GOEMOTIONS)),
}


def load(
    name: str, root: str | Path | None = None, *, split: str = "plain", seed: int = 0, **options: Any
) -> ConceptData:
    """A data set by name: embedded, rendered, or from your own copy. Downloads nothing.

    Args:
        name: "supersense", "emoji", "shapes", "brown", "clevr", "coco", "opensurfaces",
            "pascal", "sarcasm", "isarcasm" or "goemotions"; docs/data.md says what each needs.
        root: Folder of your copy, in the published layout or the one of the authors' code
            (with a metadata.csv).
        split: "plain" divides documents at random; "published" takes the files' own parts;
            "held_out_lemma" (supersense) has no labelled lemma of test in train or cal.
        seed: Seed of the division and of what is drawn or rendered.
        **options: Of the data set, such as `concepts=` or `limit=`.

    Returns:
        The data; `skipped` says what was left out and why.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: No such name, split or option, or a file that is not as expected: the text
            names file and line or key.

    Example:
        >>> data = load("supersense", split="held_out_lemma")
    """
    require_known("data set", name, LOADERS)
    loader = LOADERS[name]
    require_known("split", split, loader.splits)
    folder = _folder(name, loader, root)
    read = _reader(name, loader, folder)
    known = {p.name for p in inspect.signature(read).parameters.values() if p.kind is p.KEYWORD_ONLY} - {
        "name",
        "default",
    }
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
            f"{folder}/metadata.csv does not exist: {name!r} exists only in the format of the authors' code."
        )
    return loader.read
