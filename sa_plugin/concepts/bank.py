"""Concept vectors for every concept at every layer, with all that is needed to use them again.

A bank shows how alike its vectors are, by the cosine in the normalised space they live in: two
concepts with one direction cannot be told apart by their scores. It does not show how well a vector
detects its concept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._check import require, require_known
from sa_plugin._face import face, face_methods
from sa_plugin.concepts.canary import Canary
from sa_plugin.host import reducers
from sa_plugin.host.protocol import HostInfo
from sa_plugin.passes.layout import TokenTable
from sa_plugin.passes.run import Sinks, sink_rule
from sa_plugin.show.result import FORMAT, IF_ANY, Sheet, Shown, clean, exact, number

Scoring = Literal["cosine", "dot", "latent"]
VECTOR_SCORINGS: tuple[Scoring, ...] = ("cosine", "dot")
HookPoint = Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]
HOOK_POINTS: tuple[HookPoint, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out")
# What attention and MLP add to the residual, behind a norm where there is one.
ENGINE_POINTS = {"attn_out": "attn_out_post", "mlp_out": "mlp_out_post"}
DRAWN_UNITS = 40
UNKNOWN = "label unknown"


@face_methods
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
        return reducers.score_rows(self.plain, index, activations)

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


@face_methods
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
        counts: Tokens read and dropped, by reason, and those of which some label is unknown.
        drift: What moved in the scores of the canaries when it was loaded with `allow_drift=True`.
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
    drift: str = field(default="", metadata=IF_ANY)

    @classmethod
    def on(cls, info: HostInfo, tokens: TokenTable, **fields: Any) -> Origin:
        """Of vectors made on a model from some tokens; `fields` are what the two do not say."""
        names = ("model", "architecture", "fingerprint", "processing", "dtype", "tokenizer")
        counts = {"kept": len(tokens), **tokens.dropped}
        if tokens.known is not None:
            counts[UNKNOWN] = int((~tokens.known).any(1).sum())
        return cls(**{name: getattr(info, name) for name in names}, counts=counts, **fields)


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


@face
@dataclass(frozen=True, eq=False, repr=False)
class ConceptBank(Shown):
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
        canary: What an artefact says of its model, where the bank was loaded from one.
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
    canary: Canary | None = None

    about: ClassVar[str] = (
        "Cosines of vectors in normalised space say which concepts their scores cannot tell apart, not how "
        "well a concept is detected."
    )

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
        """How a model's tokens are judged, for `passes.run_jobs`: as when the vectors were fitted."""
        return sink_rule(info, self.sink_layers, self.origin.sinks)

    def headline(self) -> str:
        """Kind, counts, layers, hook point and rule of the scores."""
        units = "" if self.supervised else f", {len(self.units)} units"
        return (
            f"{self.kind!r}, {len(self.concepts)} concepts{units}, layers {list(self.layers)}, "
            f"{self.hook_point}, {self.token.scoring}"
        )

    @property
    def controls(self) -> tuple[str, ...]:
        """Sets of vectors beside the concepts' own: permuted, pooled, cls."""
        return tuple(name for name in ("permuted", "pooled", "cls") if getattr(self, name) is not None)

    def cosines(self, layer: int) -> Float[np.ndarray, "unit unit"]:
        """Cosine between every two vectors at one layer.

        Raises:
            ValueError: The bank has no such layer, or its units are latents, which have no vector.
        """
        vectors = self.token.vectors[self.index(layer)].double()
        unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-300)
        return np.asarray((unit @ unit.T).numpy())

    def _kept(self) -> Bool[np.ndarray, "layer unit"]:
        """Which latents of an SAE stand at which layer."""
        return np.asarray(getattr(self.token, "kept"))  # noqa: B009, vectors have no such attribute

    @property
    def drift(self) -> str:
        """What its origin says of it."""
        return self.origin.drift or super().drift

    def sheets(self) -> tuple[Sheet, ...]:
        """How alike the vectors of each layer are, and where the bank comes from."""
        origin = self.origin
        notes = [
            f"Controls: {', '.join(self.controls) or 'none'}. Model {origin.model or 'not known'}, seed "
            f"{origin.seed}, data {origin.data_hash[:8] or 'given vectors'}."
        ]
        if UNKNOWN in origin.counts:
            notes.append(
                f"Of {origin.counts['kept']:,} train tokens {origin.counts[UNKNOWN]:,} have an unknown "
                "label, and are in neither class of its concept."
            )
        if self.token.scoring == "latent":
            kept = self._kept()
            lines = [[str(layer), str(int(n))] for layer, n in zip(self.layers, kept.sum(1), strict=True)]
            return (Sheet(["layer", "latents"], lines, "", notes),)
        lines = []
        for layer in self.layers:
            pair, cosine, mean = self._most_alike(layer)
            lines.append([str(layer), number(mean), pair, number(cosine)])
        header = ["layer", "mean |cosine|", "most alike", "cosine"]
        return (Sheet(header, lines, f"{len(self.units)} vectors a layer.", notes),)

    def _most_alike(self, layer: int) -> tuple[str, float, float]:
        """The pair of largest |cosine| at a layer, its cosine, and the mean |cosine| of all pairs."""
        if len(self.units) < 2:
            return "-", float("nan"), float("nan")
        cosine = self.cosines(layer)
        upper = np.triu_indices(len(cosine), 1)
        k = int(np.abs(cosine[upper]).argmax())
        one, other = (self.units[int(part[k])] for part in upper)
        return f"{one}, {other}", float(cosine[upper][k]), float(np.abs(cosine[upper]).mean())

    def rows(self) -> list[dict[str, Any]]:
        """Length of every vector, and its cosine to the one it is most alike to."""
        found: list[dict[str, Any]] = []
        if self.token.scoring == "latent":
            kept = self._kept()
            return [
                exact("kept", float(kept[k, u]), layer=layer, unit=unit)
                for k, layer in enumerate(self.layers)
                for u, unit in enumerate(self.units)
            ]
        for k, layer in enumerate(self.layers):
            lengths = self.token.vectors[k].double().norm(dim=-1).tolist()
            cosine = self.cosines(layer)
            np.fill_diagonal(cosine, 0.0)
            nearest = np.abs(cosine).argmax(1)
            for u, unit in enumerate(self.units):
                found.append(exact("length", lengths[u], layer=layer, unit=unit))
                if len(self.units) > 1:
                    value, other = float(cosine[u, nearest[u]]), self.units[int(nearest[u])]
                    found.append(exact("largest cosine", value, layer=layer, unit=unit, other=other))
        return found

    def to_dict(self) -> dict[str, Any]:
        """What the bank is and where it comes from; `Detector.save_pretrained` keeps the vectors."""
        names = ("concepts", "units", "layers", "hook_point", "kind", "controls", "origin")
        content = {name: getattr(self, name) for name in names} | {"scoring": self.token.scoring}
        return {"format": FORMAT, "kind": "ConceptBank", "content": clean(content)}

    def plot(self, layer: int | None = None) -> Any:
        """Cosines between vectors at one layer, or which latents are kept at each.

        Args:
            layer: Block index; by default the last of the bank.
        """
        from sa_plugin.show import plots

        names = self.units[:DRAWN_UNITS]
        latent = self.token.scoring == "latent"
        layer = self.layers[-1] if layer is None else layer
        size = 1.8 + 0.24 * len(names)
        figure, ax = plots.new_figure(max(size, 4.0) if not latent else 2.5 + 0.4 * len(self.layers), size)
        if latent:
            plots.heat(ax, self._kept().T[: len(names)].astype(float), names, self.layers, limit=1.0)
            plots.words(ax, title="latents kept", x="layer")
        else:
            shown = self.cosines(layer)[: len(names), : len(names)]
            plots.heat(ax, shown, names, names, limit=1.0, print_values=len(names) <= 16)
            ax.tick_params(axis="x", rotation=90)
            plots.words(ax, title=f"{self.kind}, layer {layer}: cosine between vectors")
        left = len(self.units) - len(names)
        rest = f" {left} more units are not drawn." if left else ""
        plots.note(figure, f"Likeness of directions is no measure of detection.{rest}")
        return figure

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
        """Some vectors, without controls, by place; what is an attention sink stays as it was.

        Raises:
            ValueError: A place is not there, or none is given.
        """
        for name, places, known in (("layers", layers, self.layers), ("units", units, self.units)):
            if not places or not all(0 <= k < len(known) for k in places):
                raise ValueError(
                    f"{name} is {list(places)}, not places of the bank's {name}: give some of 0 to "
                    f"{len(known) - 1}; bank.index(layer) and bank.unit(name) tell a place."
                )
        return ConceptBank(
            self.concepts,
            tuple(self.units[k] for k in units),
            tuple(self.layers[k] for k in layers),
            self.hook_point,
            self.kind,
            self.token.only(layers, units),
            origin=replace(self.origin, sink_layers=self.sink_layers),
        )

    def to_direction_set(self, layer: int | None = None) -> Any:
        """The vectors of one layer as an interp-engine `DirectionSet`: what it projects are the scores.

        Args:
            layer: Block index; may be left out where the bank has one.

        Raises:
            ImportError: interp-engine is not installed.
            ValueError: The bank scores by cosine or by latents, which no direction gives; it is of rewritten
                weights; or it has no such layer.
        """
        require_raw(self)
        if self.token.scoring != "dot":
            raise ValueError(
                "the bank scores by cosine, which divides by the length of each activation: no direction "
                "gives it. Fit a kind that scores by dot product (separator, lda), or score on a host."
            )
        if layer is None and len(self.layers) > 1:
            raise ValueError(f"the bank has layers {list(self.layers)}: name one, to_direction_set(layer).")
        at = 0 if layer is None else self.index(layer)
        engine = require("interp_engine.api", "interp-engine", "a direction of interp-engine")
        address = require("interp_engine.address", "interp-engine").Address
        token = self.token
        rows, bias = reducers.direction_rows((token.vectors, token.mean, token.scale, False), at)
        point = ENGINE_POINTS.get(self.hook_point, self.hook_point)
        return engine.DirectionSet(address(point, self.layers[at]), rows, bias)

    def scaled(self, factor: float) -> ConceptBank:
        """The same bank with every vector multiplied; a positive factor changes no decision."""
        return replace(self, token=replace(self.token, vectors=self.token.vectors * factor), canary=None)

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


def require_raw(bank: ConceptBank) -> None:
    """Refuse vectors that are none of the plain model's raw activations.

    Raises:
        ValueError: Latents of an SAE, or weights that a library rewrote.
    """
    if bank.token.scoring == "latent":
        raise ValueError(
            "the bank's units are latents of an SAE, which are no vectors: hand on the SAE itself."
        )
    if bank.origin.processing not in ("", "none"):
        raise ValueError(
            f"the bank was fitted with {bank.origin.processing!r}: its vectors live in a residual stream "
            "that other tools do not have. Fit on the model as transformers loads it."
        )


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
    if not normaliser:
        raise ValueError(f"normaliser is empty: leave it out for raw activations, or {fix}")
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
