"""What a study computes: kinds of concept, layers, stages, and how intervals are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from sa_plugin._check import require_known
from sa_plugin._face import face, held_options
from sa_plugin._takers import Range
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.statistics.drawn import Resampling

STAGES = ("detection", "trace", "heads", "examples", "explanation", "attribution", "rivals")
"""Each says of itself why it is missing where it cannot be. "rivals" trains probes through their pooling
(`scores.train_poolings`) and puts them into the primary kind's detection table."""
DEFAULT_STAGES = STAGES[:-2]
"""All but the comparison of objectives, which costs many passes, and the trained rivals, which cost one."""
USUAL_METHODS = ("direct_alignment", "integrated_gradients")
"""Explainers of that comparison."""


@face
@dataclass(frozen=True)
class AttributionPart:
    """A comparison of objectives, see `sa_plugin.attribution.compare`.

    Attributes:
        methods: Explainers.
        concepts: How many, those with most positive test samples first.
        n_test: Test samples a concept.
        n_cal: Calibration samples a concept.
        n_steps: Of insertion and deletion.
        preset: "fast" or "paper".
        options: By method.
    """

    methods: Sequence[str] = USUAL_METHODS
    concepts: Annotated[int, Range(1, 2**31 - 1)] = 3
    n_test: int = 8
    n_cal: int = 4
    n_steps: int = 6
    preset: str = "fast"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods is empty: name an explainer, or leave the stage 'attribution' out.")
        if tuple(self.methods) == USUAL_METHODS and self.preset == "fast" and not self.options:
            return
        # Explainers load only where others than the usual are asked for.
        from sa_plugin.attribution.attribute import METHODS
        from sa_plugin.attribution.compare import Design

        for method in self.methods:
            require_known("method", method, METHODS)
        Design(preset=self.preset, options=self.options)


@face
@dataclass(frozen=True)
class Plan:
    """What a study computes.

    Attributes:
        kinds: Concept kinds; a mapping gives each kind its own layers.
        layers: Block indices of every kind that has none of its own; none at all are all blocks.
        primary: Kind that heads, examples, explanation and attribution use; the last of `kinds`
            where it is not among them.
        stages: Some of `STAGES`; "detection" is always run.
        resampling: How intervals are made.
        seed: Of every random choice but the resamples.
        options: Kind to options of its fit, such as `{"kmeans": {"k": 100}}`.
        attribution: Of the stage "attribution".

    Raises:
        ValueError: A kind or stage is unknown.
    """

    kinds: Sequence[str] | Mapping[str, Sequence[int]] = ("prototype", "separator")
    layers: Sequence[int] = ()
    primary: str = ""
    stages: Sequence[str] = DEFAULT_STAGES
    resampling: Resampling = Resampling()
    seed: int = 0
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attribution: AttributionPart = AttributionPart()

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("a plan of no kinds: give at least one, such as 'separator'.")
        for kind in self.kinds:
            kind_of(kind)
        for stage in self.stages:
            require_known("stage", stage, STAGES)
        for kind in self.options:
            require_known("kind with options", kind, self.kinds)
            given = self.options[kind]
            held_options(f"Plan: options of {kind!r}", given, [kind_of(kind).fit], own=("seed",))
        if self.primary:
            require_known("primary kind", self.primary, self.kinds)

    @property
    def main(self) -> str:
        """The primary kind: the one named, else the separator, else the last."""
        kinds = list(self.kinds)
        return self.primary or ("separator" if "separator" in kinds else kinds[-1])

    def only(self, kinds: Sequence[str] | None) -> Plan:
        """The same plan for some kinds; one that the plan lacks gets the layers of the primary kind."""
        if not kinds:
            return self
        own = dict(self.kinds) if isinstance(self.kinds, Mapping) else dict.fromkeys(self.kinds, ())
        chosen = {kind: own.get(kind, own[self.main]) for kind in kinds}
        options = {kind: one for kind, one in self.options.items() if kind in chosen}
        return replace(
            self, kinds=chosen, options=options, primary=self.primary if self.primary in chosen else ""
        )

    def layers_of(self, n_layers: int) -> dict[str, tuple[int, ...]]:
        """Block indices of every kind, ascending, each once.

        Raises:
            ValueError: A block the model does not have.
        """
        own = self.kinds if isinstance(self.kinds, Mapping) else dict.fromkeys(self.kinds, ())
        found = {}
        for kind, layers in own.items():
            blocks = tuple(sorted(set(layers or self.layers))) or tuple(range(n_layers))
            beyond = [block for block in blocks if not 0 <= block < n_layers]
            if beyond:
                raise ValueError(
                    f"layer {beyond[0]} of kind {kind!r} is none of the model's blocks 0 to "
                    f"{n_layers - 1}: leave `layers` out for all of them."
                )
            found[kind] = blocks
        return found
