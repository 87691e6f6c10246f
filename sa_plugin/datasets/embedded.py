"""Data sets that need no copy: the embedded text and the rendered pictures, as loaders."""

from __future__ import annotations

from pathlib import Path

from sa_plugin.data import ConceptData
from sa_plugin.datasets.emoji import emoji_scenes
from sa_plugin.datasets.shapes import shapes
from sa_plugin.datasets.supersense import read_supersense


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
        [p.text for p in passages], [p.spans for p in passages], concepts=concepts,
        documents=[p.document for p in passages], ids=[p.id for p in passages],
        split=None if split == "plain" else [str(p.held_out_lemma) for p in passages],
        seed=seed, name=f"supersense/{split}",
    )  # fmt: skip


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
        n, seed=seed, size=size, font=font, table=table, objects=objects, fractions=fractions,
        min_coverage=min_coverage,
    )  # fmt: skip


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
    """CLEVR-like scenes, made here; options as in `sa_plugin.datasets.shapes.shapes`."""
    return shapes(
        n, seed=seed, size=size, objects=objects, overlap=overlap, fractions=fractions,
        min_coverage=min_coverage,
    )  # fmt: skip
