"""The concept kinds by name: what each needs, how its activation is computed, who fits it.

Adding a kind is adding a function `(statistics, options) -> vectors` and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from sa_plugin._names import require_known
from sa_plugin.concepts.adam import separator_adam
from sa_plugin.concepts.kmeans import kmeans, kmeans_separator
from sa_plugin.concepts.lda import lda
from sa_plugin.concepts.prototype import prototype
from sa_plugin.concepts.separator import separator
from sa_plugin.concepts.statistics import LayerStatistics

Scoring = Literal["cosine", "dot"]
Need = Literal["means", "gram", "rows"]
Fit = Callable[..., tuple[Float[Tensor, "unit d_model"], Mapping[str, Any]]]


@dataclass(frozen=True)
class Kind:
    """A way to turn train statistics into concept vectors.

    Attributes:
        fit: `(statistics: LayerStatistics, *, seed: int, **options) -> (vectors, record)`;
            vectors live in normalised space, the record says how the fit went.
        scoring: "cosine" with, or "dot" product on, the normalised embedding.
        need: What the train pass has to leave behind.
        supervised: Whether rows of the result are concepts; else they are units that are matched
            to concepts on the calibration split.
    """

    fit: Fit
    scoring: Scoring
    need: Need
    supervised: bool = True


KINDS: Mapping[str, Kind] = {
    "prototype": Kind(prototype, "cosine", "means"),
    "separator": Kind(separator, "dot", "rows"),
    "separator_adam": Kind(separator_adam, "dot", "rows"),
    "lda": Kind(lda, "dot", "gram"),
    "kmeans": Kind(kmeans, "cosine", "rows", supervised=False),
    "kmeans_separator": Kind(kmeans_separator, "dot", "rows", supervised=False),
}


def kind_of(name: str) -> Kind:
    """The kind of that name.

    Raises:
        ValueError: Unknown (the text names the nearest), or "sae", which is not fitted.
    """
    if name == "sae":
        raise ValueError(
            "kind 'sae' is not fitted, its latents are there already: give "
            "sa_plugin.sae.sae_bank(host, data, {layer: sae}), and go on with calibrate(...)."
        )
    require_known("kind", name, KINDS)
    return KINDS[name]


__all__ = ["KINDS", "Fit", "Kind", "LayerStatistics", "kind_of"]
