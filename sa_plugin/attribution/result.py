"""Importance of a sample's tokens or patches for one objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from sa_plugin.attribution.players import to_tokens
from sa_plugin.samples import Sample


class Explained(NamedTuple):
    """What an explainer finds for all objectives of a game.

    Attributes:
        importance: Sign kept where the method has one, larger is more evidence.
        notes: By name, one number for each objective.
    """

    importance: Float[np.ndarray, "player objective"]
    notes: Mapping[str, Float[np.ndarray, " objective"]]


@dataclass(frozen=True, eq=False)
class Attribution:
    """Importance of a sample's tokens or patches for one objective; made by `attribute`.

    Attributes:
        method: Name of the explainer.
        objective: Name of the objective.
        concept: What it is evidence of.
        layer: Block the objective reads.
        sample: What was explained.
        importance: Larger is more evidence; units are those of the method.
        player_of: The player of each token of the model's input; -1 for special tokens.
        offsets: Characters of each token of the input, or the box of each patch.
        notes: What the method says of itself, such as `completeness_error`.
        settings: Options it ran with.
    """

    method: str
    objective: str
    concept: str
    layer: int
    sample: Sample = field(repr=False)
    importance: Float[np.ndarray, " player"]
    player_of: Int[np.ndarray, " token"]
    offsets: Real[np.ndarray, "token edge"]
    notes: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        notes = "".join(f", {name} {value:.3g}" for name, value in self.notes.items())
        return (
            f"Attribution({self.method!r}, {self.objective!r} of {self.concept!r}, sample "
            f"{self.sample.id!r}, {len(self.importance)} players{notes})"
        )

    @property
    def of_token(self) -> Float[np.ndarray, " token"]:
        """Importance of every token of the model's input; NaN for special tokens."""
        return np.asarray(to_tokens(self.importance, self.player_of))

    def top(self, n: int = 5) -> list[tuple[str, float]]:
        """The most important tokens: their text, or where the patch lies, and their importance."""
        shown = np.nan_to_num(self.of_token, nan=-np.inf)
        order = np.argsort(-shown, kind="stable")[: min(n, int((self.player_of >= 0).sum()))]
        return [(self.sample.token_text(self.offsets[t]), float(shown[t])) for t in order]

    def _repr_html_(self) -> str:
        from sa_plugin.attribution.heat_map import heat_map

        return heat_map([self])
