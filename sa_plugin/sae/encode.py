"""What is asked of a sparse autoencoder: `encode(h) -> latents`, and nothing else.

`h` are raw activations `[token, d_model]` in float32, on the device they were read on, neither
centred nor scaled: what an SAE needs of that is its own. Latents come back dense,
`[token, latent]`, zero or above, as from SAELens's `SAE.encode`; an SAE that returns pairs of
values and indices needs a wrapper of three lines. Nothing here knows which hook point an SAE was
trained at: that is the user's word, and only the width is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# Bytes of dense latents that exist at a time.
LATENT_BYTES = 64 << 20
_WRAP = (
    "wrap it in an object whose encode(activations [token, d_model]) returns a dense tensor "
    "[token, latent], zero or above"
)


@runtime_checkable
class Encoder(Protocol):
    """Anything with `encode`."""

    def encode(self, activations: Tensor, /) -> Tensor:
        """Latents `[token, latent]` of raw activations `[token, d_model]`."""


def require_encoder(sae: object, layer: int) -> Encoder:
    """Refuse what has no `encode`.

    Raises:
        TypeError: Names the layer, the type and the fix.
    """
    if isinstance(sae, Encoder) and callable(sae.encode):
        return sae
    raise TypeError(
        f"the SAE of layer {layer} is a {type(sae).__name__} without encode(activations): {_WRAP}."
    )


def encode(
    sae: Encoder, activations: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token latent"]:
    """Latents in float32, checked.

    Args:
        sae: With `encode`.
        activations: Raw activations, any number format.

    Raises:
        TypeError: No tensor came back.
        ValueError: `encode` failed (another width, device or number format), the shape is not
            `[token, latent]`, or a latent is NaN, infinite or negative.
    """
    h = activations.float()
    try:
        with torch.no_grad():
            found = sae.encode(h)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"encode of the {type(sae).__name__} failed on float32 activations {list(h.shape)} on "
            f"{h.device} ({error}): the SAE must have this width, be on this device, and take "
            "float32."
        ) from error
    if not isinstance(found, Tensor):
        raise TypeError(
            f"encode of the {type(sae).__name__} returned a {type(found).__name__}, not a tensor: "
            f"{_WRAP}."
        )
    if found.ndim != 2 or len(found) != len(h):
        raise ValueError(
            f"encode of the {type(sae).__name__} returned shape {list(found.shape)} for "
            f"activations {list(h.shape)}: {_WRAP}."
        )
    latents = found.detach().float()
    _check_values(sae, h, latents)
    return latents


def _check_values(
    sae: Encoder, h: Float[Tensor, "token d_model"], latents: Float[Tensor, "token latent"]
) -> None:
    # Padding may hold anything; what is wrong there is dropped with it.
    sound = torch.isfinite(h).all(-1)
    broken = int((sound & ~torch.isfinite(latents).all(-1)).sum())
    if broken:
        raise ValueError(
            f"encode of the {type(sae).__name__} gave NaN or Inf for {broken} of {len(h)} tokens: "
            "run the SAE in float32, and check that it belongs to this model and hook point."
        )
    negative = int((latents < 0).sum())
    if negative:
        raise ValueError(
            f"encode of the {type(sae).__name__} gave {negative} negative latents in {len(h)} "
            "tokens: an activation is zero or above. Give the latents after the activation "
            "function (ReLU, JumpReLU, TopK), not before it."
        )


def in_parts(n: int, width: int) -> Iterator[slice]:
    """Slices of tokens so small that dense latents of `width` stay below `LATENT_BYTES`."""
    step = max(1, LATENT_BYTES // max(1, 4 * width))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def width_of(sae: Encoder, layer: int, d_model: int) -> int:
    """Number of latents, from one zero activation.

    Raises:
        ValueError: As `encode`; the text names the layer.
    """
    try:
        return int(encode(sae, torch.zeros(1, d_model, device=device_of(sae))).shape[1])
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"layer {layer} (d_model {d_model}): {error} Whether it was trained at this hook point "
            "cannot be checked."
        ) from error


def device_of(sae: Encoder) -> torch.device:
    """Where the first tensor of an SAE lies; the CPU if it has none."""
    tensors = [value for _, value in _tensors(sae) if isinstance(value, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")


def hash_of(sae: Encoder) -> str:
    """SHA-256 of the class name and of every tensor or array of an SAE, in order of name.

    Raises:
        ValueError: It has neither a `state_dict` nor attributes that are tensors.
    """
    found = sorted(_tensors(sae), key=lambda pair: pair[0])
    if not found:
        raise ValueError(
            f"the {type(sae).__name__} has neither a state_dict() nor attributes that are tensors "
            "or arrays, so a saved bank could not tell it from another: keep its weights as "
            "attributes of the object that has encode."
        )
    state = hashlib.sha256(type(sae).__name__.encode())
    for name, value in found:
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _tensors(sae: object) -> list[tuple[str, Any]]:
    state = getattr(sae, "state_dict", None)
    found: Mapping[str, Any] = state() if callable(state) else getattr(sae, "__dict__", {})
    return [(k, v) for k, v in found.items() if isinstance(v, Tensor | np.ndarray)]
