"""The benchmark of the tail law as files: its design, and what a run leaves of each world and cell.

A *world* is a model and a source of concepts: vectors of both kinds, fitted once on short contexts. A
*cell* is a world at one length and span: its contexts are of `tokens` tokens, a positive one has
`in_concept` of them in the concept, in `runs` runs. A design, `designs/NAME.toml`, says of every cell
whether it is for fitting the law's constants or kept back, before any is run.

    OUT/worlds/WORLD/train.npz    scores of documents that chose nothing: all that a prediction may read
    OUT/worlds/WORLD/KIND         vectors, as `save_bank` writes them
    OUT/cells/CELL/outcome.npz    scores of the calibration and test contexts of a cell
    OUT/cells/CELL/measured.npz   what the product measured on test, method by method, with its columns
    OUT/cells/CELL/outcome.json   the same as tables, written last: with it a cell is finished
    OUT/cells/CELL/trained.json   where probes were asked for: what they measure on test

`train.npz` and `outcome.npz` are a `TailScores`; they hold numbers and names, no texts.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import TypeAdapter, ValidationError

from sa_plugin._check import position_of, require_known
from sa_plugin._face import face
from sa_plugin._files import written
from sa_plugin.loaders.tail_pieces import SOURCES
from sa_plugin.loaders.tail_scenes import ScenePlan
from sa_plugin.loaders.tail_spans import TailPlan
from sa_plugin.theory.tail_law import Constants

Role = Literal["fit", "kept"]
Arrangement = Literal["clustered", "spread"]
TRAIN, OUTCOME, COLUMNS, MEASURED = "train.npz", "outcome.npz", "measured.npz", "outcome.json"
TRAINED = "trained.json"
SCENES = "emoji"
"""Source of pictures; the others are of texts."""
_ARRAYS = ("scores", "labels", "positive", "bounds")
_NAMES = ("kinds", "concepts", "documents", "split_of")


@dataclass(frozen=True)
class TailWorld:
    """A model and a source, and the contexts that vectors are fitted on.

    Attributes:
        name: Of the world and of its folder.
        model: As `find_folder` takes it.
        source: Of `load_tail_spans`, or "emoji".
        layers: Block indices.
        tokens, in_concept, runs, arrangement, present: Of the contexts, as of a `TailPlan`.
        side: Of the concept's glyphs, in pictures.
        contexts: Of train and of guard.
    """

    name: str
    model: str
    source: str
    layers: tuple[int, ...]
    tokens: int = 64
    in_concept: int = 1
    runs: int = 1
    arrangement: Arrangement = "clustered"
    present: int = 1
    side: float = 0.0
    contexts: tuple[int, int] = (300, 200)


@dataclass(frozen=True)
class TailCell:
    """A length and span of a world.

    Attributes:
        name: Of the cell and of its folder.
        world: Name of its world.
        role: Whether the law's constants may be fitted on it.
        tokens: N, tokens of a context, sinks included; of a picture its patches.
        in_concept: m, in-concept tokens of a positive one; of pictures about so many.
        runs: Into how many places they fall.
        arrangement: Side by side ("clustered") or far apart ("spread").
        present: Concepts that a context has, at most.
        side: Of the concept's glyphs, in pictures.
        contexts: Of calibration and of test.
        shift_from: A cell of the same world whose detectors are also tried on this one's test contexts.
    """

    name: str
    world: str
    role: Role
    tokens: int
    in_concept: int
    runs: int = 1
    arrangement: Arrangement = "clustered"
    present: int = 1
    side: float = 0.0
    contexts: tuple[int, int] = (100, 200)
    shift_from: str = ""


@dataclass(frozen=True)
class TailDesign:
    """Worlds and cells.

    Attributes:
        name: The file's name without its ending.
        title: One line for people.
        seed: Of all that is drawn.
        worlds, cells: In the order they are run.
        constants: Of the law, where they are given and not fitted on cells of role "fit".
        samples: Simulated contexts of either class that a prediction rests on, where that is given and not as
            many as a cell's length allows.
    """

    name: str
    title: str
    seed: int
    worlds: tuple[TailWorld, ...]
    cells: tuple[TailCell, ...]
    constants: Constants | None = None
    samples: int | None = None

    def world_of(self, cell: TailCell) -> TailWorld:
        """The world of a cell."""
        return next(world for world in self.worlds if world.name == cell.world)


def context_plan(row: TailWorld | TailCell) -> TailPlan | ScenePlan:
    """What its contexts are built by."""
    if row.side:
        return ScenePlan(row.side, row.runs, row.arrangement, 0 if row.side > 0.5 else 1)
    return TailPlan(row.tokens, row.in_concept, row.runs, row.arrangement, row.present)


def tail_designs() -> dict[str, Path]:
    """The designs this package ships, by name."""
    folder = Path(str(files("sa_plugin.stages").joinpath("designs")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


@face
def read_design(design: str | Path) -> TailDesign:
    """Read a design.

    Args:
        design: A file, or the name of one this package ships (`tail_designs`).

    Raises:
        FileNotFoundError: Neither.
        ValueError: No TOML, an unknown key or source, a value of another type, a plan that cannot be, a name
            that stands twice, or a cell of no world.
    """
    path = Path(design).expanduser()
    if not path.is_file():
        known = tail_designs()
        if str(design) not in known:
            raise FileNotFoundError(f"{design} is no file and no design of this package: {', '.join(known)}.")
        path = known[str(design)]
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}.") from error
    for key in table:
        require_known(f"{path.name}: key", key, ("title", "seed", "constants", "samples", "worlds", "cells"))
    worlds = _rows(TailWorld, table.get("worlds", []), "worlds", path)
    cells = _rows(TailCell, table.get("cells", []), "cells", path)
    for world in worlds:
        require_known(f"{path.name}: source of world {world.name}", world.source, (*SOURCES, SCENES))
    for cell in cells:
        require_known(f"{path.name}: world of cell {cell.name}", cell.world, [one.name for one in worlds])
        if cell.shift_from:
            own = [one.name for one in cells if one.world == cell.world and one is not cell]
            require_known(f"{path.name}: shift_from of cell {cell.name}", cell.shift_from, own)
    given, samples = table.get("constants"), table.get("samples")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise ValueError(f"{path.name}: samples is {samples!r:.60}: give a number of contexts, such as 300.")
    return TailDesign(
        path.stem,
        str(table.get("title", path.stem)),
        int(table.get("seed", 0)),
        worlds,
        cells,
        None if given is None else _constants(given, path),
        samples,
    )


def _constants(given: Any, path: Path) -> Constants:
    names = [one.name for one in fields(Constants)]
    if not isinstance(given, dict):
        raise ValueError(f"{path.name}: constants is {given!r:.60}: give a table of {', '.join(names)}.")
    for key in given:
        require_known(f"{path.name}: constant", key, names)
    try:
        return Constants(**{key: float(value) for key, value in given.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: constants: {error}") from error


_Row = TypeVar("_Row", TailWorld, TailCell)


def _rows(cls: type[_Row], tables: Sequence[Mapping[str, Any]], name: str, path: Path) -> tuple[_Row, ...]:
    kinds = get_type_hints(cls)
    rows: list[_Row] = []
    for table in tables:
        where = f"{path.name}: {name} {table.get('name', len(rows))!r}"
        for key in table:
            require_known(f"{where}: key", key, kinds)
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
        }
        missing = [one.name for one in fields(cls) if one.name not in given and one.name in _NEEDED[name]]
        if missing:
            raise ValueError(f"{where} has no {missing[0]}: give {', '.join(_NEEDED[name])}.")
        for key, value in given.items():
            try:
                TypeAdapter(kinds[key]).validate_python(value, strict=True)
            except ValidationError as error:
                raise ValueError(f"{where}: {key} is {value!r:.60}: give {kinds[key]}.") from error
        try:
            context_plan(cls(**given))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        rows.append(cls(**given))
    names = [row.name for row in rows]
    twice = [one for one in names if names.count(one) > 1]
    if twice:
        raise ValueError(
            f"{path.name}: the name {twice[0]!r} stands twice in {name}: folders are named by it."
        )
    return tuple(rows)


_NEEDED = {
    "worlds": ("name", "model", "source", "layers"),
    "cells": ("name", "world", "role", "tokens", "in_concept"),
}


@dataclass(frozen=True, eq=False)
class TailScores:
    """Token scores of contexts with their labels, without model and texts.

    Attributes:
        kinds: Concept kinds, first axis of the scores.
        layers: Block indices.
        concepts: Names.
        scores: Of kept tokens, context by context, in their order.
        labels: Which tokens are in which concept.
        positive: Which contexts have which concept.
        bounds: Context n owns the tokens `bounds[n]:bounds[n + 1]`.
        documents: Of each context, the unit of resampling.
        split_of: "guard" of a world's train file, which no vector was fitted on; "cal" or "test" of a cell.
    """

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    concepts: tuple[str, ...]
    scores: Float[np.ndarray, "kind token layer concept"]
    labels: Bool[np.ndarray, "token concept"]
    positive: Bool[np.ndarray, "context concept"]
    bounds: Int[np.ndarray, " context_and_one"]
    documents: tuple[str, ...]
    split_of: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.documents)

    def split(self, name: str) -> TailScores:
        """The contexts of one split, in their order.

        Raises:
            ValueError: There is none of that split.
        """
        chosen = np.flatnonzero([of == name for of in self.split_of])
        if not len(chosen):
            raise ValueError(f"no context is of split {name!r}; there are {sorted(set(self.split_of))}.")
        rows = np.concatenate([np.arange(self.bounds[n], self.bounds[n + 1]) for n in chosen])
        lengths = np.diff(self.bounds)[chosen]
        return TailScores(
            self.kinds,
            self.layers,
            self.concepts,
            self.scores[:, rows],
            self.labels[rows],
            self.positive[chosen],
            np.concatenate([[0], np.cumsum(lengths)]),
            tuple(self.documents[n] for n in chosen),
            tuple(self.split_of[n] for n in chosen),
        )

    def column(self, kind: str, layer: int, concept: str) -> Mapping[str, Any]:
        """One concept at one layer, as the law's inputs are measured from it.

        Args:
            kind: Concept kind.
            layer: Block index.
            concept: Name.

        Returns:
            `scores` and `labels` of tokens, `bounds`, `documents`, `positive` and `concept`.

        Raises:
            ValueError: There is no such kind, layer or concept.
        """
        of_kind = position_of(kind, self.kinds, "the kinds")
        if layer not in self.layers:
            raise ValueError(f"layer {layer} was not scored; scored: {list(self.layers)}.")
        of_layer = self.layers.index(layer)
        of_concept = position_of(concept, self.concepts, "the concepts")
        return {
            "scores": self.scores[of_kind, :, of_layer, of_concept],
            "labels": self.labels[:, of_concept],
            "bounds": self.bounds,
            "documents": np.array(self.documents),
            "positive": self.positive[:, of_concept],
            "concept": concept,
        }

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {name: np.array(getattr(self, name), dtype=np.str_) for name in _NAMES}
        with written(path) as partial:
            np.savez(partial, layers=np.array(self.layers), **arrays)

    @classmethod
    def read(cls, path: Path) -> TailScores:
        """What `write` wrote; no pickled code is read.

        Raises:
            FileNotFoundError: It is not there.
        """
        with np.load(path, allow_pickle=False) as held:
            arrays: dict[str, Any] = {name: held[name] for name in _ARRAYS}
            arrays |= {name: tuple(held[name].tolist()) for name in _NAMES}
            return cls(layers=tuple(held["layers"].tolist()), **arrays)
