"""One tiny model on either host, for laws that hold whatever library runs it."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import tiny
import torch

from sa_plugin.host import Batch, Site

LIBRARIES = ("transformer_lens", "nnsight")
TEXT_MODELS = (*tiny.ARCHITECTURES, "clip_text")
EVERY = (*TEXT_MODELS, *tiny.VISION)
POINTS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "pattern")
ALL = [Site(layer, point) for layer in range(tiny.N_LAYERS) for point in POINTS]
LAST = Site(tiny.N_LAYERS - 1, "resid_post")


def on_both(*names: str) -> Any:
    """Parameters `library, name`: every name on every host."""
    cases = [(library, name) for name in names for library in LIBRARIES]
    return pytest.mark.parametrize(
        ("library", "name"), cases, ids=[f"{name}-{library}" for library, name in cases]
    )


def new_host(library: str, name: str, **options: Any) -> Any:
    """A host of a model that nobody else has."""
    if library == "nnsight":
        kind = tiny.nnsight_host if name in tiny.ARCHITECTURES else tiny.nnsight_vision_host
        return kind(name, **options)
    if name == "clip_text":
        from sa_transformer_lens import accept

        return accept(tiny.vision_bridge(name), **options)
    return tiny.host(name, **options) if name in tiny.ARCHITECTURES else tiny.vision_host(name, **options)


@cache
def host_on(library: str, name: str) -> Any:
    """A host that tests share; leave it as you found it."""
    return new_host(library, name)


def samples_of(name: str, n: int = 3) -> list[Any]:
    """Images of a vision model, texts of others."""
    return tiny.images()[:n] if name in tiny.VISION else tiny.samples(tiny.TEXTS[:n])


def batch_on(host: Any, name: str, n: int = 3) -> Batch:
    """All in one batch."""
    (batch,) = host.batches(samples_of(name, n), batch_tokens=10_000)
    return batch


def read(host: Any, batch: Batch, sites: Sequence[Site] = ALL) -> dict[Site, torch.Tensor]:
    """The tensors of some sites."""
    kept = host.read(batch, sites, lambda found: {str(site): found[site] for site in sites})
    return {site: kept[str(site)] for site in sites}


def read_one(host: Any, batch: Batch, site: Site = LAST) -> torch.Tensor:
    """The tensor of one site."""
    return read(host, batch, [site])[site]


def attended(batch: Batch) -> torch.Tensor:
    """Tokens the mask leaves in: what padding holds is nobody's."""
    mask = batch.inputs.get("attention_mask")
    return torch.ones_like(batch.valid) if mask is None else mask.bool()
