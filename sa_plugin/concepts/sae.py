"""Latents of a sparse autoencoder in the place of concept vectors: unit k is one latent of its SAE.

    score of unit k = encode(h)[latent_k] >= 0,   h the raw activation

(arXiv 2512.05038, SAE latents as concepts.) All that is asked of an SAE is `encode(h) -> latents`:
`h` are raw activations `[token, d_model]` in float32, on the device they were read on, neither
centred nor scaled, since what an SAE needs of that is its own. Latents come back dense,
`[token, latent]`, zero or above, as from SAELens's `SAE.encode`; an SAE that returns pairs of values
and indices needs a wrapper of three lines. Which hook point an SAE was trained at is the user's
word: only the width is checked.

An activation function stands between `h` and the score, so a latent is no vector: what needs one
(head ledgers, directional edits, linear objectives) is refused. The pre-activation of a ReLU latent
is linear, and its encoder row can be given to `ConceptBank.from_vectors`; its scores are other
numbers than the latent's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._face import face_methods
from sa_plugin.concepts.bank import VectorSet
from sa_plugin.host import reducers

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


def _require_encoder(sae: object, layer: int) -> Encoder:
    """Refuse what has no `encode`.

    Raises:
        TypeError: Names the layer, the type and the fix.
    """
    if isinstance(sae, Encoder) and callable(sae.encode):
        return sae
    raise TypeError(
        f"the SAE of layer {layer} is a {type(sae).__name__} without encode(activations): {_WRAP}."
    )


def latents_of(sae: Encoder, activations: Float[Tensor, "token d_model"]) -> Float[Tensor, "token latent"]:
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
            f"encode of the {type(sae).__name__} returned a {type(found).__name__}, not a tensor: {_WRAP}."
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
        return int(latents_of(sae, torch.zeros(1, d_model, device=device_of(sae))).shape[1])
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


NO_VECTOR = (
    "the units of this bank are latents of an SAE: a latent is encode(activation), not a vector, "
    "so this cannot be computed from it. For a linear stand-in give the encoder's rows to "
    "ConceptBank.from_vectors(..., scoring='dot') and calibrate that bank; its scores are the "
    "pre-activations."
)
PROBES = 8
# Latents of the same SAE on another machine differ by rounding; a near-tie of TopK may flip one.
PROBE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Source:
    """The SAE of one layer.

    Attributes:
        sae: With `encode`.
        width: Number of its latents.
        digest: Hash of its class name and weights.
    """

    sae: Encoder
    width: int
    digest: str


@face_methods
class LatentSet(VectorSet):
    """Chosen latents of one SAE a layer, scored where a bank scores vectors.

    Args:
        sources: One a layer.
        latents: Index of each unit's latent, the same at every layer.
        kept: Where a unit was kept; elsewhere its score is 0, which never fires.
        probes: Activations by which another SAE is told from this one.
        expected: What the SAEs make of them: number of active latents, their sum, and their sum
            weighted by place.
    """

    sources: tuple[Source, ...]
    latents: tuple[int, ...]
    kept: Bool[Tensor, "layer unit"]
    probes: Float[Tensor, "layer probe d_model"]
    expected: Float[Tensor, "layer probe 3"]

    def __init__(
        self,
        sources: Sequence[Source],
        latents: Sequence[int],
        kept: Bool[Tensor, "layer unit"],
        probes: Float[Tensor, "layer probe d_model"],
        expected: Float[Tensor, "layer probe 3"] | None = None,
    ) -> None:
        layers, _, d_model = probes.shape
        own = {
            "sources": tuple(sources),
            "latents": tuple(latents),
            "kept": kept,
            "probes": probes,
            "mean": torch.zeros(layers, d_model),
            "scale": torch.ones(layers),
            "scoring": "latent",
            "expected": expected,
        }
        # The parent is frozen, and its `vectors` do not exist here.
        for name, value in own.items():
            object.__setattr__(self, name, value)
        if expected is None:
            rows = [signature(one.sae, h) for one, h in zip(self.sources, probes, strict=True)]
            object.__setattr__(self, "expected", torch.stack(rows))

    def __repr__(self) -> str:
        widths = [one.width for one in self.sources]
        return f"LatentSet({len(self.latents)} of {widths} latents, {len(self.sources)} layers)"

    @property
    def vectors(self) -> Float[Tensor, "layer unit d_model"]:
        """There are none.

        Raises:
            ValueError: Always; the text says what to do.
        """
        raise ValueError(NO_VECTOR)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of layers, of units, and `d_model`."""
        return len(self.sources), len(self.latents), self.probes.shape[-1]

    @property
    def plain(self) -> reducers.Vectors:
        """As functions that run beside the model take it."""
        return self.score

    def score(self, index: int, activations: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token unit"]:
        """Latents at one layer, a few tokens at a time.

        Args:
            index: Place of the layer in this set (not its block index).
            activations: Raw activations.

        Raises:
            TypeError, ValueError: As `sa_plugin.concepts.sae.latents_of`.
        """
        source, device = self.sources[index], activations.device
        flat = activations.reshape(-1, activations.shape[-1])
        columns = torch.tensor(self.latents, device=device).clamp_max(source.width - 1)
        kept = self.kept[index].to(device)
        out = torch.empty(len(flat), len(columns), device=device)
        for part in in_parts(len(flat), source.width):
            found = latents_of(source.sae, flat[part])
            if found.shape[1] != source.width:
                raise ValueError(
                    f"encode of the {type(source.sae).__name__} returned {found.shape[1]} latents, "
                    f"and {source.width} before: an SAE has one width."
                )
            out[part] = torch.where(kept, found[:, columns], 0.0)
        return out.reshape(*activations.shape[:-1], len(columns))

    def only(self, layers: Sequence[int], units: Sequence[int]) -> LatentSet:
        """Some latents, by place."""
        at, chosen = list(layers), list(units)
        return LatentSet(
            [self.sources[k] for k in at],
            [self.latents[k] for k in chosen],
            self.kept[at][:, chosen],
            self.probes[at],
            self.expected[at],
        )

    def scores_like(self, other: VectorSet) -> bool:
        """Whether another set has the same latents of the same SAEs."""
        return (
            isinstance(other, LatentSet)
            and self.latents == other.latents
            and [one.digest for one in self.sources] == [one.digest for one in other.sources]
            and torch.equal(self.kept, other.kept)
            and _same(self.expected, other.expected)
        )


def signature(sae: Encoder, probes: Float[Tensor, "probe d_model"]) -> Float[Tensor, "probe 3"]:
    """Number of active latents of each probe, their sum, and their sum weighted by place."""
    # Probes are kept on the CPU, whatever runs the SAE.
    found = latents_of(sae, probes.to(device_of(sae)))
    place = torch.arange(1, found.shape[1] + 1, device=found.device) / found.shape[1]
    parts = ((found > 0).sum(-1).float(), found.sum(-1), found @ place)
    return torch.stack(parts, dim=-1).cpu()


def saved_parts(latents: LatentSet) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """What a saved bank keeps: which latents, and by what the SAEs are known again."""
    tensors = {
        "latents": torch.tensor(latents.latents),
        "kept": latents.kept,
        "probes": latents.probes,
        "expected": latents.expected,
    }
    about: list[dict[str, object]] = [
        {"width": one.width, "digest": one.digest, "class": type(one.sae).__name__} for one in latents.sources
    ]
    return tensors, about


def load_parts(
    tensors: Mapping[str, Tensor],
    about: Sequence[Mapping[str, object]],
    saes: Mapping[int, object] | object | None,
    layers: Sequence[int],
) -> LatentSet:
    """The latents of `saved_parts`, with the SAEs given again.

    Args:
        tensors: As saved.
        about: As saved.
        saes: The SAE, or one a layer.
        layers: Block indices.

    Raises:
        TypeError: An SAE has no `encode`.
        ValueError: No SAE is given, one is missing, or one is another than was saved.
    """
    given = saes_by_layer(saes, layers) if saes is not None else {}
    sources = []
    for layer, one in zip(layers, about, strict=True):
        if layer not in given:
            raise ValueError(
                f"the artefact holds latents of a {one['class']} at layer {layer} (weights "
                f"{str(one['digest'])[:12]}) and not the SAE itself: load it with "
                f"sae={{{layer}: your SAE}}."
            )
        sae = given[layer]
        digest = hash_of(sae)
        if digest != one["digest"]:
            raise ValueError(
                f"the SAE given for layer {layer} has weights {digest[:12]}, the saved one was a "
                f"{one['class']} with {str(one['digest'])[:12]}: thresholds do not carry over. "
                "Give the same SAE, in the same number format, or calibrate again."
            )
        sources.append(Source(sae, int(str(one["width"])), digest))
    found = LatentSet(sources, tensors["latents"].tolist(), tensors["kept"], tensors["probes"], None)
    for layer, now, then in zip(layers, found.expected, tensors["expected"], strict=True):
        if not _same(now, then):
            raise ValueError(
                f"the SAE given for layer {layer} has the saved one's weights and gives other "
                "latents: a setting differs (k of a TopK, a threshold, a scale). Give the same SAE."
            )
    return found


def saes_by_layer(saes: object, layers: Sequence[int]) -> dict[int, Encoder]:
    """An SAE for each layer.

    Raises:
        TypeError: One has no `encode`.
        ValueError: A layer has none, or an SAE is given for a layer that is not read.
    """
    given = saes if isinstance(saes, Mapping) else dict.fromkeys(layers, saes)
    missing = sorted(set(layers) - set(given))
    other = sorted(set(given) - set(layers), key=str)
    if missing or other:
        raise ValueError(
            f"SAEs are given for layers {sorted(given, key=str)}, and layers {list(layers)} are "
            "read: give {layer: sae} with one for each layer."
        )
    return {layer: _require_encoder(given[layer], layer) for layer in layers}


def _same(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> bool:
    size = torch.maximum(one.abs(), other.abs())
    return bool(((one - other).abs() <= PROBE_TOLERANCE * size + 1e-6).all())
