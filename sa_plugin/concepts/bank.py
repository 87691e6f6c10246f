"""Concept vectors for every concept at every layer, with all that is needed to use them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin.host import reducers
from sa_plugin.host.protocol import HostInfo
from sa_plugin.passes.run import Sinks, sink_rule

Scoring = Literal["cosine", "dot", "latent"]
VECTOR_SCORINGS: tuple[Scoring, ...] = ("cosine", "dot")
HookPoint = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]
HOOK_POINTS: tuple[HookPoint, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True, eq=False)
class VectorSet:
    """Vectors of one kind at several layers and the normaliser they live under.

    The score of an activation `h` is `cos(x, v)` or `x . v` with `x = (h - mean) / scale`.

    Attributes:
        vectors: In normalised space.
        mean: Normaliser's mean, raw activation space.
        scale: Normaliser's scale.
        scoring: "cosine" or "dot"; "latent" for latents of an SAE, which are no vectors
            (`sa_plugin.concepts.sae.LatentSet`).
    """

    vectors: Float[Tensor, "layer unit d_model"]
    mean: Float[Tensor, "layer d_model"]
    scale: Float[Tensor, " layer"]
    scoring: Scoring

    def score(self, index: int, activations: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token unit"]:
        """Scores at one layer, in float32 whatever the activations' format.

        Args:
            index: Place of the layer in this set (not its block index).
            activations: Raw activations.
        """
        return reducers.score(self.plain, index, activations)

    @property
    def plain(self) -> reducers.Vectors:
        """As functions that run beside the model take it."""
        return self.vectors, self.mean, self.scale, self.scoring == "cosine"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of layers, of units, and `d_model`."""
        layers, units, d_model = self.vectors.shape
        return layers, units, d_model

    def only(self, layers: Sequence[int], units: Sequence[int]) -> VectorSet:
        """Some vectors, by place."""
        at = list(layers)
        chosen = self.vectors[at][:, list(units)]
        return VectorSet(chosen, self.mean[at], self.scale[at], self.scoring)

    def scores_like(self, other: VectorSet) -> bool:
        """Whether another set gives the same scores, to the bit."""
        return self.scoring == other.scoring and all(
            a.shape == b.shape and torch.equal(a.cpu(), b.cpu())
            for a, b in ((self.vectors, other.vectors), (self.mean, other.mean), (self.scale, other.scale))
        )


@dataclass(frozen=True)
class Origin:
    """Where a bank comes from; checked when it is used on a host, saved with it.

    Attributes:
        model, architecture, fingerprint, processing, dtype, tokenizer: Of the host, see `HostInfo`.
        data_hash: Hash of the data it was fitted on, or "" for vectors the user brought.
        sinks: Rule for attention sinks.
        sink_layers: Blocks whose residual decides what is a sink; the bank's own if empty.
        seed: Seed of the fit.
        options: Options of the fit, and its record a layer.
        counts: Tokens read and dropped, by reason.
    """

    model: str = ""
    architecture: str = ""
    fingerprint: str = ""
    processing: str = ""
    dtype: str = ""
    tokenizer: str = ""
    data_hash: str = ""
    sinks: Literal["drop", "keep"] = "drop"
    sink_layers: tuple[int, ...] = ()
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ComponentMeans:
    """Train means of what each part of the model writes, for the centred ledger.

    Attributes:
        embedding: Mean of the residual that enters block 0.
        z: Mean input of each head's output projection.
        mlp: Mean output of each MLP.
    """

    embedding: Float[Tensor, " d_model"]
    z: Float[Tensor, "block head d_head"]
    mlp: Float[Tensor, "block d_model"]


@dataclass(frozen=True, eq=False)
class ConceptBank:
    """Concept vectors of one kind, by layer, with their controls.

    Attributes:
        concepts: The labelled concepts.
        units: Names of the vectors: the concepts, or cluster numbers for unsupervised kinds.
        layers: Block indices, ascending.
        hook_point: Where the activations are read.
        kind: Name of the kind, or "given" for the user's own vectors.
        token: The vectors.
        permuted: The same estimator on labels permuted across samples: the null control.
        pooled: The same estimator on mean-pooled samples: the conventional baseline.
        component_means: For the ledger.
        origin: Provenance.
        cls: The same estimator on class tokens, where the model has one.
    """

    concepts: tuple[str, ...]
    units: tuple[str, ...]
    layers: tuple[int, ...]
    hook_point: HookPoint
    kind: str
    token: VectorSet
    permuted: VectorSet | None = None
    pooled: VectorSet | None = None
    component_means: ComponentMeans | None = None
    origin: Origin = field(default_factory=Origin)
    cls: VectorSet | None = None

    @property
    def supervised(self) -> bool:
        """Whether the vectors are the concepts themselves."""
        return self.units == self.concepts

    @property
    def plain_sets(self) -> dict[str, reducers.Vectors]:
        """The sets of vectors, by name, as functions that run beside the model take them."""
        sets = {"token": self.token, "permuted": self.permuted, "pooled": self.pooled}
        return {k: one.plain for k, one in {**sets, "cls": self.cls}.items() if one is not None}

    @property
    def sink_layers(self) -> tuple[int, ...]:
        """Blocks whose residual decides which tokens are attention sinks."""
        return self.origin.sink_layers or self.layers

    def sinks_on(self, info: HostInfo) -> Sinks:
        """How a model's tokens are judged, for `passes.run`: as when the vectors were fitted."""
        return sink_rule(info, self.sink_layers, self.origin.sinks)

    def __repr__(self) -> str:
        units = "" if self.supervised else f", {len(self.units)} units"
        return (
            f"ConceptBank({self.kind!r}, {len(self.concepts)} concepts{units}, layers "
            f"{list(self.layers)}, {self.hook_point}, {self.token.scoring})"
        )

    def index(self, layer: int) -> int:
        """Place of a block in the arrays.

        Raises:
            ValueError: The bank has no vectors there; the text names the nearest layer that has.
        """
        if layer in self.layers:
            return self.layers.index(layer)
        near = min(self.layers, key=lambda known: abs(known - layer))
        raise ValueError(f"the bank has no layer {layer}: nearest is {near} of {self.layers}.")

    def vector(self, concept: str, layer: int) -> Float[Tensor, " d_model"]:
        """One vector, in normalised space.

        Raises:
            ValueError: Unknown concept or layer.
        """
        return self.token.vectors[self.index(layer), self.unit(concept)]

    def unit(self, name: str) -> int:
        """Place of a concept or unit.

        Raises:
            ValueError: Unknown; the text names the nearest.
        """
        require_known("concept" if self.supervised else "unit", name, self.units)
        return self.units.index(name)

    def only(self, layers: Sequence[int], units: Sequence[int]) -> ConceptBank:
        """Some vectors, without controls, by place; what is an attention sink stays as it was."""
        return ConceptBank(
            self.concepts,
            tuple(self.units[k] for k in units),
            tuple(self.layers[k] for k in layers),
            self.hook_point,
            self.kind,
            self.token.only(layers, units),
            origin=replace(self.origin, sink_layers=self.sink_layers),
        )

    def scaled(self, factor: float) -> ConceptBank:
        """The same bank with every vector multiplied; a positive factor changes no decision."""
        return replace(self, token=replace(self.token, vectors=self.token.vectors * factor))

    @classmethod
    def from_vectors(
        cls,
        vectors: Any,
        *,
        hook_point: str = "resid_post",
        scoring: str = "dot",
        normaliser: Any = None,
        sinks: Literal["drop", "keep"] = "drop",
    ) -> ConceptBank:
        """A bank of vectors the user already has: probes, CAVs, steering vectors, SAE rows.

        Args:
            vectors: Mapping of `(concept, layer)` to a vector of shape `[d_model]`, a tensor or
                a numpy array; every concept at every layer.
            hook_point: Where they live.
            scoring: "dot" or "cosine".
            normaliser: Mapping of layer to `(mean [d_model], scale)`; by default 0 and 1, that is
                raw activations.
            sinks: Rule for attention sinks.

        Returns:
            A bank of kind "given", without controls.

        Raises:
            ValueError: No vectors, a key is no pair, a pair is missing, lengths differ, a vector
                is zero or not finite, or the normaliser is malformed.

        Example:
            >>> bank = ConceptBank.from_vectors({("cat", 3): torch.ones(8)})
            >>> bank.layers
            (3,)
        """
        given = _given_vectors(vectors)
        concepts = tuple(dict.fromkeys(concept for concept, _ in given))
        layers = tuple(sorted({layer for _, layer in given}))
        _check_given(given, concepts, layers, hook_point, scoring)
        stacked = torch.stack([torch.stack([given[c, at] for c in concepts]) for at in layers])
        d_model = stacked.shape[-1]
        under = _given_normaliser(normaliser, d_model)
        mean = [under[at][0] if at in under else torch.zeros(d_model) for at in layers]
        scale = [under[at][1] if at in under else 1.0 for at in layers]
        token = VectorSet(stacked, torch.stack(mean), torch.tensor(scale), cast(Scoring, scoring))
        origin = Origin(sinks=sinks)
        return cls(concepts, concepts, layers, cast(HookPoint, hook_point), "given", token, origin=origin)


def _given_vectors(vectors: Any) -> dict[tuple[str, int], Tensor]:
    if not isinstance(vectors, Mapping):
        raise ValueError(
            f"vectors is a {type(vectors).__name__}, not a mapping: give {{(concept, layer): vector}}."
        )
    given: dict[tuple[str, int], Tensor] = {}
    for key, value in vectors.items():
        pair = isinstance(key, tuple) and len(key) == 2
        if not pair or not isinstance(key[0], str) or not _is_layer(key[1]):
            raise ValueError(
                f"the key {key!r:.60} of vectors is not (concept, layer), a string and an integer: "
                "give {('cat', 3): vector}."
            )
        given[key[0], int(key[1])] = _floats(f"the vector of {key!r}", value)
    return given


def _given_normaliser(normaliser: Any, d_model: int) -> dict[int, tuple[Tensor, float]]:
    fix = "give {layer: (mean, scale)}, the mean of shape [d_model], the scale one positive number."
    if normaliser is None:
        return {}
    if not isinstance(normaliser, Mapping):
        raise ValueError(f"normaliser is a {type(normaliser).__name__}, not a mapping: {fix}")
    found: dict[int, tuple[Tensor, float]] = {}
    for layer, pair in normaliser.items():
        if not _is_layer(layer):
            raise ValueError(f"the key {layer!r:.60} of normaliser is no layer: {fix}")
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"the normaliser of layer {layer} is {pair!r:.60}: {fix}")
        mean = _floats(f"the normaliser's mean at layer {layer}", pair[0])
        scale = _floats(f"the normaliser's scale at layer {layer}", pair[1])
        if mean.shape != (d_model,) or not mean.isfinite().all():
            raise ValueError(
                f"the normaliser's mean at layer {layer} has shape {list(mean.shape)} or is not "
                f"finite, expected [{d_model}]: {fix}"
            )
        if scale.numel() != 1 or not 0 < scale.item() < float("inf"):
            raise ValueError(f"the normaliser's scale at layer {layer} is {pair[1]!r:.60}: {fix}")
        found[int(layer)] = mean, float(scale)
    return found


def _is_layer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _floats(what: str, value: Any) -> Tensor:
    try:
        # A copy: torch cannot take read-only or reversed numpy arrays as they are.
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{what} is a {type(value).__name__} ({error}): give numbers, as a tensor or a numpy array."
        ) from error
    return tensor.detach().float().cpu()


def _check_given(
    vectors: Mapping[tuple[str, int], Tensor],
    concepts: Sequence[str],
    layers: Sequence[int],
    hook_point: str,
    scoring: str,
) -> None:
    if not vectors:
        raise ValueError("vectors is empty: give {(concept, layer): vector}.")
    require_known("hook_point", hook_point, HOOK_POINTS)
    require_known("scoring", scoring, VECTOR_SCORINGS)
    shape = next(iter(vectors.values())).shape
    for concept in concepts:
        for layer in layers:
            if (concept, layer) not in vectors:
                raise ValueError(f"no vector for ({concept!r}, {layer}): give every concept at every layer.")
            vector = vectors[concept, layer]
            if vector.ndim != 1 or vector.shape != shape:
                raise ValueError(
                    f"the vector of ({concept!r}, {layer}) has shape {tuple(vector.shape)}; all "
                    f"must be [d_model] alike, here {tuple(shape)}."
                )
            if not torch.isfinite(vector).all():
                raise ValueError(f"the vector of ({concept!r}, {layer}) holds NaN or Inf.")
            if not vector.any():
                raise ValueError(
                    f"the vector of ({concept!r}, {layer}) is zero, it has no direction: leave the "
                    "concept out."
                )
