"""Latents of an SAE in the place of concept vectors: unit k of a layer is one latent of its SAE.

    score of unit k = encode(h)[latent_k] >= 0,   h the raw activation

(arXiv 2512.05038, SAE latents as concepts.) An activation function stands between `h` and the
score, so a latent is no vector: what needs one (head ledgers, directional edits, linear objectives)
is refused. The pre-activation of a ReLU latent is linear, and its encoder row can be given to
`ConceptBank.from_vectors`; its scores are other numbers than the latent's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin import reducers
from sa_plugin.concepts.bank import VectorSet
from sa_plugin.sae.encode import (
    Encoder,
    device_of,
    encode,
    hash_of,
    in_parts,
    require_encoder,
)

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
            "sources": tuple(sources), "latents": tuple(latents), "kept": kept, "probes": probes,
            "mean": torch.zeros(layers, d_model), "scale": torch.ones(layers),
            "scoring": "latent", "expected": expected,
        }  # fmt: skip
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

    def score(
        self, index: int, activations: Float[Tensor, "*token d_model"]
    ) -> Float[Tensor, "*token unit"]:
        """Latents at one layer, a few tokens at a time.

        Args:
            index: Place of the layer in this set (not its block index).
            activations: Raw activations.

        Raises:
            TypeError, ValueError: As `sa_plugin.sae.encode.encode`.
        """
        source, device = self.sources[index], activations.device
        flat = activations.reshape(-1, activations.shape[-1])
        columns = torch.tensor(self.latents, device=device).clamp_max(source.width - 1)
        kept = self.kept[index].to(device)
        out = torch.empty(len(flat), len(columns), device=device)
        for part in in_parts(len(flat), source.width):
            found = encode(source.sae, flat[part])
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
            [self.sources[k] for k in at], [self.latents[k] for k in chosen],
            self.kept[at][:, chosen], self.probes[at], self.expected[at],
        )  # fmt: skip

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
    found = encode(sae, probes.to(device_of(sae)))
    place = torch.arange(1, found.shape[1] + 1, device=found.device) / found.shape[1]
    parts = ((found > 0).sum(-1).float(), found.sum(-1), found @ place)
    return torch.stack(parts, dim=-1).cpu()


def saved_parts(latents: LatentSet) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """What a saved bank keeps: which latents, and by what the SAEs are known again."""
    tensors = {
        "latents": torch.tensor(latents.latents), "kept": latents.kept,
        "probes": latents.probes, "expected": latents.expected,
    }  # fmt: skip
    about: list[dict[str, object]] = [
        {"width": one.width, "digest": one.digest, "class": type(one.sae).__name__}
        for one in latents.sources
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
    given = by_layer(saes, layers) if saes is not None else {}
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
    found = LatentSet(
        sources, tensors["latents"].tolist(), tensors["kept"], tensors["probes"], None
    )
    for layer, now, then in zip(layers, found.expected, tensors["expected"], strict=True):
        if not _same(now, then):
            raise ValueError(
                f"the SAE given for layer {layer} has the saved one's weights and gives other "
                "latents: a setting differs (k of a TopK, a threshold, a scale). Give the same SAE."
            )
    return found


def by_layer(saes: object, layers: Sequence[int]) -> dict[int, Encoder]:
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
    return {layer: require_encoder(given[layer], layer) for layer in layers}


def _same(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> bool:
    size = torch.maximum(one.abs(), other.abs())
    return bool(((one - other).abs() <= PROBE_TOLERANCE * size + 1e-6).all())
