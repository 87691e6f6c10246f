"""Three yardsticks of a masked input, none of them an explainer's objective for both arms.

- "mean_alignment", the primary one, stated in advance: mean over kept tokens of cos(x_t, v_c) with
  the global vector (arXiv 2512.05038, as far as its text goes). It is the "global" objective itself
  where scores are cosines, so it favours that arm if any.
- "max_margin": the highest score minus the threshold, what detection reads. It favours the tail.
- "later_probe": the logit of a logistic regression on mean_t h_t / |h_t| over the kept tokens at a
  later block, fitted on sample labels of the train split: other labels, other layer, another
  estimator. Tokens have one length each, because masking can make an attention sink of a kept
  token, and its norm would then be the whole mean. The probe's calibration AUROC says whether it
  can tell anything; below .6 disregard it.

The mean over all tokens is the bulk that the paper calls noise, so no single yardstick decides;
where they disagree, say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.collect import kept, sink_sites
from sa_plugin.concepts.bank import VectorSet
from sa_plugin.data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.host import Host, Site
from sa_plugin.objectives import Objective, cosine, mean_over, score
from sa_plugin.samples import Sample
from sa_plugin.statistics import auroc

YARDSTICKS = ("mean_alignment", "max_margin", "later_probe")
PRIMARY = "mean_alignment"


@dataclass(frozen=True, eq=False)
class Yardstick:
    """A number of the residual at one place, of the tokens that a clean run kept.

    Attributes:
        name: Of the yardstick.
        layer, hook_name: Where it reads.
        mask: Tokens that count.
        vectors: Of the concept, for the first two.
        threshold: Of the concept.
        probe: For the third.
    """

    name: str
    layer: int
    hook_name: str
    mask: Bool[Tensor, "one token"]
    vectors: VectorSet | None = None
    threshold: float = 0.0
    probe: Probe | None = None

    def __call__(self, resid: Float[Tensor, "row token d_model"]) -> Float[Tensor, " row"]:
        """The yardstick of each row."""
        mask = self.mask.to(resid.device).expand(len(resid), -1)
        if self.probe is not None:
            return self.probe(mean_direction(resid, mask))
        assert self.vectors is not None
        device = resid.device
        x = (resid.float() - self.vectors.mean[0].to(device)) / float(self.vectors.scale[0])
        if self.name == "mean_alignment":
            return mean_over(cosine(x, self.vectors.vectors[0].to(device)), mask)
        scores = score(self.vectors, x).masked_fill(~mask, -torch.inf)
        return scores.amax(1) - self.threshold


@dataclass(frozen=True, eq=False)
class Probe:
    """A logistic regression on mean directions of one block.

    Attributes:
        concept: What it tells.
        layer: Block index.
        weight, bias: `logit = weight . mean_direction + bias`.
        cal_auroc: On calibration samples; NaN where they have one class.
        shared_layer: Whether it reads the detector's own block, because there is no later one.
    """

    concept: str
    layer: int
    weight: Float[Tensor, " d_model"]
    bias: float
    cal_auroc: float
    shared_layer: bool = False

    def __repr__(self) -> str:
        return f"Probe({self.concept!r}, layer {self.layer}, cal AUROC {self.cal_auroc:.3f})"

    def __call__(self, mean: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """Logits."""
        return mean @ self.weight.to(mean.device) + self.bias


def mean_direction(
    resid: Float[Tensor, "row token d_model"], mask: Bool[Tensor, "row token"]
) -> Float[Tensor, "row d_model"]:
    """Mean over the tokens of a mask of each token's direction; 0 where there is none."""
    unit = torch.nn.functional.normalize(resid.float(), dim=-1)
    total: Tensor = torch.einsum("rtd,rt->rd", unit, mask.float())
    return total / mask.sum(1).clamp_min(1)[:, None]


def yardsticks(
    host: Host, detector: Detector, objective: Objective, probe: Probe | None
) -> tuple[Yardstick, ...]:
    """The yardsticks of one sample and concept.

    Args:
        host: Of the sample.
        detector: Its threshold.
        objective: Any objective of the sample and concept: place, vector and kept tokens.
        probe: Of the concept; None leaves the third out.
    """
    choice = detector.choice(objective.concept)
    shared = (objective.layer, objective.hook_name, objective.mask, objective.vectors)
    found = [Yardstick(name, *shared, choice.threshold) for name in YARDSTICKS[:2]]
    if probe is not None:
        name = host.hook_name(Site(probe.layer, "resid_post"))
        found.append(Yardstick("later_probe", probe.layer, name, objective.mask, probe=probe))
    return tuple(found)


def later_probes(
    host: Host,
    data: ConceptData,
    detector: Detector,
    concepts: Sequence[str],
    *,
    ahead: int | None = None,
) -> dict[str, Probe]:
    """Probes of later blocks.

    Cost: one forward pass over the train and calibration splits.

    Args:
        host: The model.
        data: Sample labels; the train split is fitted on.
        detector: Gives each concept's own block, and the rule for sinks.
        concepts: Which.
        ahead: Blocks above the concept's own; by default a sixth of the model, at least one. Not
            beyond the last.

    Returns:
        A probe for each concept whose train samples are of both classes.
    """
    last = host.info.n_layers - 1
    ahead = max(1, host.info.n_layers // 6) if ahead is None else ahead
    layer = {c: min(last, detector.layer[c] + ahead) for c in concepts}
    train, cal = (
        _means(host, split.samples, sorted(set(layer.values())), detector)
        for split in (data.train, data.cal)
    )
    probes = {}
    for concept in concepts:
        column = data.concepts.index(concept)
        y, held = data.train.sample_labels[:, column], data.cal.sample_labels[:, column]
        if y.any() and not y.all():
            weight, bias = _logistic(train[layer[concept]], y)
            logits = cal[layer[concept]] @ weight + bias
            known = float(auroc(logits, held))
            probes[concept] = Probe(
                concept, layer[concept], torch.from_numpy(weight).float(), bias, known,
                layer[concept] == detector.layer[concept],
            )  # fmt: skip
    return probes


def _means(
    host: Host, samples: Sequence[Sample], layers: Sequence[int], detector: Detector
) -> Mapping[int, Float[np.ndarray, "sample d_model"]]:
    sites = {layer: Site(layer, "resid_post") for layer in layers}
    bank = detector.bank
    out = {layer: np.zeros((len(samples), host.info.d_model)) for layer in layers}
    for batch in host.batches(samples):

        def reduce(read: Mapping[Site, Tensor], valid: Tensor = batch.valid) -> dict[str, Tensor]:
            keep = kept(read, valid, host.info, bank.sink_layers, bank.origin.sinks)
            return {str(layer): mean_direction(read[site], keep) for layer, site in sites.items()}

        read = [*sites.values(), *sink_sites(bank.sink_layers)]
        found = host.read(batch, sorted(set(read)), reduce)
        for layer in layers:
            out[layer][batch.rows.numpy()] = found[str(layer)].double().numpy()
    return out


def _logistic(
    x: Float[np.ndarray, "sample d_model"], y: Bool[np.ndarray, " sample"]
) -> tuple[Float[np.ndarray, " d_model"], float]:
    """On standardised features, classes balanced; folded back to the features themselves."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(0), x.std(0) + 1e-6
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    model.fit((x - mean) / scale, y)
    weight = model.coef_[0] / scale
    return weight, float(model.intercept_[0] - mean @ weight)
