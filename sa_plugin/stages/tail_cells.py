"""The benchmark of the tail law as files: its design, and what a run leaves of each world and cell.

A *world* is a model and a source of concepts: vectors of both kinds, fitted once on short contexts. A
*cell* is a world at one length and span: its contexts are of `tokens` tokens, a positive one has
`in_concept` of them in the concept, in `runs` runs. The design, `tail_law.toml`, says of every cell
whether it is for fitting the law's constants or kept back, before any is run.

    OUT/worlds/WORLD/train.npz   scores of documents that chose nothing: all that a prediction may read
    OUT/cells/CELL/outcome.npz   scores of the calibration and test contexts of a cell
    OUT/cells/CELL/outcome.json  what the product measured there

Both kinds of .npz are a `TailScores`; they hold numbers and names, no texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin._check import position_of
from sa_plugin._files import written

Role = Literal["fit", "kept"]
Arrangement = Literal["one", "clustered", "spread"]
TRAIN, OUTCOME, MEASURED = "train.npz", "outcome.npz", "outcome.json"
_ARRAYS = ("scores", "labels", "positive", "bounds")
_NAMES = ("kinds", "concepts", "documents", "split_of")


@dataclass(frozen=True)
class TailCell:
    """A length and span of a world.

    Attributes:
        name: Of the cell and of its folder.
        world: Model and source, such as "smollm2-nouns".
        role: Whether the law's constants may be fitted on it.
        tokens: N, tokens of a context, sinks included.
        in_concept: m, in-concept tokens of a positive one.
        runs: Into how many places they fall.
        arrangement: "one" place, several side by side ("clustered") or far apart ("spread").
        present: Concepts that a context has.
        contexts: Of calibration and of test.
    """

    name: str
    world: str
    role: Role
    tokens: int
    in_concept: int
    runs: int = 1
    arrangement: Arrangement = "one"
    present: int = 1
    contexts: tuple[int, int] = (100, 200)


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
