"""What `head_alignment` returns: the rule, the calls, tables and maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from sa_plugin.alignment import tables
from sa_plugin.alignment.call import adjusted, call
from sa_plugin.alignment.measures import DataSide
from sa_plugin.alignment.weigh import Observed, Tested
from sa_plugin.detection.printing import as_html, frame

RULE = (
    "A head is concept-aligned if all three hold. (1) Weights: p = max(p of OV, p of QK) against "
    "labels permuted across samples is called at level q over all heads x concepts. (2) Logits: "
    "the slope on the product of two tokens' activations has an interval above zero, and its "
    "partial correlation exceeds that of every permuted-label direction. (3) Attention of "
    "positive queries on the top tokens, sinks left out, has an interval above chance. The bound "
    "q on false calls is that of (1); (2) and (3) only take calls away."
)


@dataclass(frozen=True, eq=False)
class HeadAlignment:
    """Which heads read and write along concepts, by their weights and on data.

    What it does not show: alignment is no effect (ablate), and its null is labels without meaning:
    a head that serves every real concept is called for every concept. See `weights.py`, `null.py`.

    Attributes:
        concepts: Columns.
        blocks: Block indices, rows of every array `[block, head, concept]`.
        weights: Forms and cosines at the concepts' directions, without the norms' scales.
        nulls: By name, "across" first: what the calls rest on.
        data: The data side.
        offsets: How often each offset, query minus key, was seen among kept train tokens.
        settings: Level, correction, draws, seed, splits, counts, and what was chosen beforehand.
        limits: What this architecture's numbers leave out.
    """

    concepts: tuple[str, ...]
    blocks: tuple[int, ...]
    weights: Observed
    nulls: Mapping[str, Tested]
    data: DataSide
    offsets: Mapping[int, int]
    settings: Mapping[str, Any]
    limits: tuple[str, ...]

    def __repr__(self) -> str:
        aligned, s = self.aligned, self.settings
        return (
            f"HeadAlignment({len(self.concepts)} concepts x {aligned[..., 0].size} heads: "
            f"{int(self.called.sum())} called by weights ({s['correction']}, q = {s['q']:g}), "
            f"{int(aligned.sum())} concept-aligned; at least one in {self.layers_with_one} of "
            f"{len(self.blocks)} blocks)"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    @property
    def gamma(self) -> Float64[np.ndarray, "block head concept"]:
        """OV gain, with the norms' mean scales: see `weights.py`."""
        read, write = self.data.scales.T
        return np.asarray(self.weights.ov / (read * write)[:, None, None])

    @property
    def beta(self) -> Float64[np.ndarray, "block head concept"]:
        """QK gain, averaged over offsets, with the norm's mean scale."""
        return np.asarray(self.weights.qk / self.data.scales[:, 0, None, None] ** 2)

    @property
    def beta_profile(self) -> dict[int, Float64[np.ndarray, "block head concept"]]:
        """QK gain at single offsets; empty without rotary embeddings."""
        scale = self.data.scales[:, 0, None, None] ** 2
        return {offset: form / scale for offset, form in self.weights.profile.items()}

    @property
    def tested(self) -> Tested:
        """The null that the calls rest on."""
        return next(iter(self.nulls.values()))

    @property
    def p_adjusted(self) -> Float64[np.ndarray, "block head concept"]:
        """Smallest level at which the weights of each head would be called."""
        return adjusted(self.tested.p, self.settings["correction"])

    @property
    def called(self) -> Bool[np.ndarray, "block head concept"]:
        """Part (1) of the rule."""
        return self.called_by(next(iter(self.nulls)))

    def called_by(self, null: str) -> Bool[np.ndarray, "block head concept"]:
        """Calls of one null.

        Raises:
            ValueError: It was not drawn.
        """
        if null not in self.nulls:
            raise ValueError(f"null {null!r} was not drawn: there are {', '.join(self.nulls)}.")
        return call(self.nulls[null].p, self.settings["q"], self.settings["correction"])

    @property
    def on_data(self) -> Bool[np.ndarray, "block head concept"]:
        """Parts (2) and (3) of the rule."""
        data, least = self.data, 1 / (1 + self.settings["n_control"])
        logits = (data.slope.low > 0) & (data.p_control <= least + 1e-12)
        return np.asarray(logits & (data.lift["positive"].low > 0))

    @property
    def aligned(self) -> Bool[np.ndarray, "block head concept"]:
        """Concept-aligned by `RULE`."""
        return np.asarray(self.called & self.on_data)

    @property
    def layers_with_one(self) -> int:
        """Blocks with at least one aligned head, of any concept: the paper's assumption."""
        return int(self.aligned.any((1, 2)).sum())

    @property
    def layers_by_concept(self) -> dict[str, int]:
        """The same for each concept."""
        found = self.aligned.any(1).sum(0)
        return dict(zip(self.concepts, found.tolist(), strict=True))

    def shared_heads(self, least: int = 2) -> list[tuple[str, tuple[str, ...]]]:
        """Heads aligned with several concepts, the most first.

        Args:
            least: Concepts at least.
        """
        heads = [
            (f"L{self.blocks[k]}H{h}", tuple(np.array(self.concepts)[serves].tolist()))
            for k, of_block in enumerate(self.aligned)
            for h, serves in enumerate(of_block)
            if serves.sum() >= least
        ]
        return sorted(heads, key=lambda one: -len(one[1]))

    def rows(self) -> list[dict[str, Any]]:
        """One row a head and concept, smallest p first."""
        return tables.rows(self)

    def table(self) -> Any:
        """The rows: a pandas DataFrame where pandas is installed."""
        return frame(self.rows())

    def summary(self, n: int = 10) -> str:
        """Counts, how the null held, and the `n` strongest aligned heads, as text."""
        return tables.summary(self, n)

    def plot(self, concept: str | None = None, ax: Any = None) -> Any:
        """Map of the heads; see `plot.plot_alignment`."""
        from sa_plugin.alignment.plot import plot_alignment

        return plot_alignment(self, concept, ax)
