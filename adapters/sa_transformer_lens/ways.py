"""Which passes a model of TransformerLens is run by."""

from __future__ import annotations

from typing import Any

from sa_transformer_lens.hooked import HookedPasses, HookedPlaces, is_hooked
from sa_transformer_lens.passes import BridgePasses
from sa_transformer_lens.places import BridgePlaces


def passes_of(model: Any) -> BridgePasses:
    """Those of a bridge, or of a class of TransformerLens 3."""
    return HookedPasses(HookedPlaces(model)) if is_hooked(model) else BridgePasses(BridgePlaces(model))
