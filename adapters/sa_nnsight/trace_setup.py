"""What a trace of your own takes, made outside it from a detector or an objective.

The results are plain tensors and paths, which travel to a server; what makes them does not.
"""

from __future__ import annotations

from functools import partial

from jaxtyping import Bool
from torch import Tensor

from sa_nnsight.trace_ops import Concept, Goal
from sa_plugin.attribution.objective import Objective
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Host, Site
from sa_plugin.host.turns import gradient_mode
from sa_plugin.passes.run import sink_sites


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


def goal(objective: Objective, sample: Sample | str, host: Host) -> Goal:
    """An objective as plain tensors, for a trace of the sample it was made on.

    Costs one forward pass for "superactivator".

    Args:
        objective: One of "superactivator", "superactivator_tokens" and "global".
        sample: The one it was made on.
        host: The attached model.

    Raises:
        ValueError: Another objective: call it, `objective.metric(resid)`, in a local trace.
    """
    own = objective.vectors
    mask, tail = objective.mask[0], objective.tail
    kinds = {"superactivator": mask, "superactivator_tokens": mask & tail, "global": mask}
    if objective.name not in kinds:
        raise ValueError(
            f"objective {objective.name!r} is not one of {list(kinds)}, whose formulas are in "
            "trace_ops: in a local trace call it as it is, objective.metric(resid)."
        )
    direction, cosine = own.vectors[0, 0], own.scoring == "cosine"
    if objective.name == "superactivator":
        direction, cosine = _tail_mean(objective, sample, host), True
    return Goal(
        direction, own.mean[0], float(own.scale[0]), cosine, kinds[objective.name], objective.hook_name
    )


def _tail_mean(objective: Objective, sample: Sample | str, host: Host) -> Tensor:
    """Mean normalised activation of the sample's own SuperActivators on the clean run."""
    one = Sample.of(sample)
    (batch,) = host.batches([one])
    site = next(
        site
        for point in ("resid_post", "resid_pre", "attn_out", "mlp_out")
        if host.hook_name(site := Site(objective.layer, point)) == objective.hook_name
    )
    with gradient_mode(False):
        pick = partial(reducers.at_site, site=(site.layer, site.point))
        h = host.read(batch, [site], pick)["h"][0]
    if len(h) != len(objective.tail):
        raise ValueError(
            f"sample {one.id!r} has {len(h)} tokens; the objective was made on "
            f"{objective.sample!r}, which has {len(objective.tail)}: give that sample."
        )
    x = (h - objective.vectors.mean[0]) / objective.vectors.scale[0]
    return x[objective.tail].mean(0)
