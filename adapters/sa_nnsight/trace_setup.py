"""What a trace of your own takes, made outside it from a detector or an objective.

The results are plain tensors and paths, which travel to a server; what makes them does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor

from sa_nnsight.trace_ops import Concept, Goal, Watched
from sa_plugin._face import face
from sa_plugin.attribution.objective import Objective, Pooled
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.generation.watching import places_of
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Host, Site
from sa_plugin.passes.run import sink_sites


@face
def concept(detector: Detector, name: str, host: Host) -> Concept:
    """A concept's vector, normaliser and threshold, at the layer the detector chose.

    Args:
        detector: Calibrated.
        name: Of the concept.
        host: The attached model.

    Raises:
        ValueError: The detector has no such concept.
    """
    choice, bank = detector.choice(name), detector.bank
    k = bank.index(choice.layer)
    token = bank.token
    return Concept(
        token.vectors[k, bank.unit(choice.unit)].float(),
        token.mean[k].float(),
        float(token.scale[k]),
        token.scoring == "cosine",
        float(choice.threshold),
        host.hook_name(Site(choice.layer, bank.hook_point)),
    )


@face
def watched(detector: Detector, host: Host, *, concepts: Sequence[str] | None = None) -> list[Watched]:
    """What a monitor is fed of each layer, for a generation in a trace of your own.

    Inside the loop over steps take `seen(model.get(one.path), one)` of each in turn; they are in the order of
    the pass. Behind the trace give what was saved of a step to `Monitor.feed(..., scored=True)`.

    Args:
        detector: Calibrated.
        host: The attached model.
        concepts: Those that are watched; by default all.

    Raises:
        ValueError: The detector has no such concept, or its units are latents of an SAE.
    """
    names = tuple(detector.concepts if concepts is None else concepts)
    d_model, made = host.info.d_model, []
    for place in places_of(detector, host.info, names):
        vectors = place.vectors
        made.append(
            Watched(
                place.site.layer,
                place.site.point,
                host.hook_name(place.site),
                torch.zeros(0, d_model) if vectors is None else vectors.vectors[0].float(),
                torch.zeros(d_model) if vectors is None else vectors.mean[0].float(),
                1.0 if vectors is None else float(vectors.scale[0]),
                vectors is not None and vectors.scoring == "cosine",
                place.norm,
            )
        )
    return made


@face
def inputs_of(
    detector: Detector, sample: Sample | str, host: Host
) -> tuple[dict[str, Tensor], Bool[Tensor, "one token"]]:
    """Keyword arguments of a trace of one sample, and its tokens that are evidence.

    Costs one forward pass: attention sinks are found by their norms, with the detector's own rule.

    Args:
        detector: Calibrated.
        sample: A sample or a text.
        host: The attached model.
    """
    one = Sample.of(sample)
    bank = detector.bank
    (batch,) = host.batches([one])
    reduce = partial(
        reducers.activations,
        site=(bank.sink_layers[0], "resid_post"),
        valid=batch.valid,
        sinks=bank.sinks_on(host.info),
    )
    keep = host.read(batch, sink_sites(bank.sink_layers), reduce)["keep"]
    return dict(batch.inputs), keep


@face
def goal(objective: Objective) -> Goal:
    """An objective as plain tensors, for a trace of the sample it was made on.

    Args:
        objective: One of this package's own: a mean or a smooth maximum of scores.

    Raises:
        ValueError: One that was registered: call it, `objective.metric(resid)`, in a local trace.
    """
    own, pooled = objective.vectors, objective.measure
    if not isinstance(pooled, Pooled):
        raise ValueError(
            f"objective {objective.name!r} is a function of its own, which no server has: in a local trace "
            "call it as it is, objective.metric(resid)."
        )
    mask = objective.mask[0]
    return Goal(
        pooled.target,
        own.mean[0],
        float(own.scale[0]),
        pooled.cosine,
        mask if pooled.tokens is None else mask & pooled.tokens,
        objective.hook_name,
        pooled.beta,
        pooled.threshold,
    )
