"""How an explanation is judged: against the labels, and against the model.

**Against the labels** (localisation): do important tokens carry the label? For one sample with
importance a_t and labels y_t over its kept tokens:

- AUROC and average precision of a against y; per sample, and micro: all samples' tokens together,
  each token's a replaced by the share of its sample's tokens at or below it, because units differ
  between samples.
- pointing: whether the most important token is labelled (the share, where several tie).
- mass inside: sum of (a_t - mean a)_+ over labelled tokens / the same over all tokens. The mean is
  taken off so that methods without a zero point (RISE) can be compared.
- F1: tokens in the sample's top fraction q are marked, q of a grid with the best micro F1 on
  calibration samples (ties to the smaller); micro counts, and per sample.

Only samples with labelled and unlabelled tokens, and none whose label is unknown, enter. Agreement with
labels is not faithfulness: a model may find a concept beside the labelled word, and then a right
explanation scores low here.

**Against the model** (insertion and deletion): players are put into the empty input, or taken out
of the full one, in equal blocks, the most important first; after each block a yardstick q of the
clean model reads the masked input.

    area = integral_0^1 q(share of players in, or taken out) d share      (trapezoid)

Insertion: higher is better. Deletion: lower. (Petsiuk et al. 2018; arXiv 2512.05038 reports areas,
without a protocol.) q is the same whatever objective made the order. Areas depend on the baseline
that stands in for masked players, so only areas with one baseline compare. Ties in importance are
broken by position. Three yardsticks, none of them an explainer's objective for both arms:

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

A fourth shows what choosing the yardstick by the arm would do, and judges nothing:

- "own_target": each arm by its own objective, means of scores as cosines ("global" then is the primary
  yardstick, "superactivator_margin" in scores over the threshold). If an arm gains by its own target
  and by no other, it was rewarded for what it was asked for, not for what the model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from scipy.integrate import trapezoid
from torch import Tensor

from sa_plugin.attribution.coalitions import deletion, insertion
from sa_plugin.attribution.game import CoalitionGame
from sa_plugin.attribution.objective import Measure, Objective, Pooled, concept_score, cosine, token_mean
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.host.protocol import Host, Site
from sa_plugin.host.reducers import Keeping, keeping
from sa_plugin.passes.layout import lay_out
from sa_plugin.passes.run import Job, run_jobs
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.quantile import DELTAS
from sa_plugin.statistics.ranking import auroc, average_precision

WAYS = ("insertion", "deletion")
CURVE_STEPS = {"paper": 50, "fast": 12}
"""Blocks of players of insertion and deletion at most, by preset."""
PRIMARY = "mean_alignment"
OWN = "own_target"
"""Each arm by its own objective: shown, never judged by."""
_LEAST_SCALE = 1e-6
"""Added to a feature's deviation, which may be zero."""
# Samples of a list differ in length, so the axis has no name.
ImportanceAndLabels = tuple[Float[np.ndarray, " _"], Bool[np.ndarray, " _"]]


class Curves(NamedTuple):
    """Yardsticks along both orders.

    Attributes:
        share: Of the players in (insertion) or taken out (deletion).
        insertion: From the empty input.
        deletion: From the full one.
    """

    share: Float64[np.ndarray, " step"]
    insertion: Float[np.ndarray, "step yardstick"]
    deletion: Float[np.ndarray, "step yardstick"]


def curves(game: CoalitionGame, importance: Float[np.ndarray, " player"], *, n_steps: int = 50) -> Curves:
    """Insertion and deletion curves of one order.

    Cost: `2 min(n_steps, players)` rows, of which the game may know some.

    Args:
        game: Its objectives are the yardsticks.
        importance: Of each player.
        n_steps: At most.

    Raises:
        ValueError: Another number of players than the game's, or importance that is not finite.
    """
    if len(importance) != game.n_players or not np.isfinite(importance).all():
        raise ValueError(
            f"{len(importance)} importances, finite: {bool(np.isfinite(importance).all())}; the "
            f"game has {game.n_players} players: give one finite number a player."
        )
    order = np.argsort(-importance, kind="stable")
    steps = min(n_steps, game.n_players)
    chosen = insertion(order, steps)
    # One call, so that rows of both orders fill the passes together.
    found = game(np.concatenate([chosen, deletion(order, steps)]))
    share = chosen.mean(1, dtype=np.float64)
    return Curves(share, found[: steps + 1], found[steps + 1 :])


def area_under(
    share: Float[np.ndarray, " step"], curve: Float[np.ndarray, "step yardstick"]
) -> Float64[np.ndarray, " yardstick"]:
    """Area under each yardstick's curve.

    Example:
        >>> area_under(np.array([0.0, 0.5, 1.0]), np.array([[0.0], [1.0], [1.0]]))
        array([0.75])
    """
    # numpy calls it `trapezoid` from 2.0 on, `trapz` before.
    return np.asarray(trapezoid(curve, share, axis=0), dtype=np.float64)


def on_grid(
    share: Float[np.ndarray, " step"], curve: Float[np.ndarray, " step"], grid: Float[np.ndarray, " point"]
) -> Float64[np.ndarray, " point"]:
    """A curve at common shares, so that samples of different lengths can be averaged."""
    return np.asarray(np.interp(grid, share, curve), dtype=np.float64)


class SampleScores(NamedTuple):
    """Localisation of one sample; NaN where a number is not defined."""

    auroc: float
    average_precision: float
    pointing: float
    mass_inside: float
    f1: float
    true_positives: float
    marked: float
    labelled: float


def sample_scores(
    importance: Float[np.ndarray, " token"], labels: Bool[np.ndarray, " token"], fraction: float
) -> SampleScores:
    """Every number of one sample.

    Args:
        importance: Of each kept token.
        labels: Of the same tokens, some True and some False.
        fraction: Of the tokens that are marked.

    Raises:
        ValueError: Importance that is not finite, or labels all alike.

    Example:
        >>> sample_scores(np.array([3.0, 1.0, 0.0]), np.array([True, False, False]), 0.3).pointing
        1.0
    """
    if not np.isfinite(importance).all():
        raise ValueError("importance holds NaN or infinite values: nothing can be ranked by it.")
    if not usable(labels):
        raise ValueError(
            f"{int(labels.sum())} of {len(labels)} tokens are labelled: localisation needs some "
            "that are and some that are not."
        )
    a = importance.astype(np.float64)
    marked = top_fraction(a, fraction)
    hits = float((marked & labels).sum())
    # Several may tie for the highest: pointing is then the share of them that are labelled.
    best = a == a.max()
    above = np.maximum(a - a.mean(), 0.0)
    return SampleScores(
        float(auroc(a, labels)),
        float(average_precision(a, labels)),
        float(labels[best].mean()),
        float(above[labels].sum() / above.sum()) if above.sum() > 0 else np.nan,
        float(2 * hits / (marked.sum() + labels.sum())),
        hits,
        float(marked.sum()),
        float(labels.sum()),
    )


def top_fraction(importance: Float[np.ndarray, " token"], fraction: float) -> Bool[np.ndarray, " token"]:
    """The ceil(fraction n) most important tokens, and all that tie with the last of them.

    Raises:
        ValueError: The fraction lies outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}: give one of the tokens, above 0 and at most 1.")
    # A product such as 0.3 * 10 may lie an ulp above the whole number.
    count = int(np.ceil(np.round(fraction * len(importance), 9)))
    least = np.sort(importance)[len(importance) - count]
    return np.asarray(importance >= least)


def choose_level(samples: Sequence[ImportanceAndLabels], grid: Sequence[float] = DELTAS) -> float:
    """The level with the best micro F1 on calibration samples, ties to the smaller.

    Raises:
        ValueError: No sample.
    """
    if not samples:
        raise ValueError(
            "no calibration sample to choose the level of F1 on: the calibration split has no "
            "positive sample with a SuperActivator. Give more data."
        )
    found = []
    for level in sorted(grid):
        sums = np.zeros(3)
        for importance, labels in samples:
            marked = top_fraction(importance, level)
            # Counts add up over samples, so that long ones weigh more: micro.
            sums += (marked & labels).sum(), marked.sum(), labels.sum()
        found.append(micro_f1(sums))
    return sorted(grid)[int(np.argmax(np.array(found)))]


def micro_f1(sums: Float64[np.ndarray, "term *draw"]) -> Float64[np.ndarray, "*draw"]:
    """F1 from sums of true positives, marked and labelled tokens."""
    return ratio(2 * sums[0], sums[1] + sums[2])


def rank_share(importance: Float[np.ndarray, " token"]) -> Float64[np.ndarray, " token"]:
    """The share of a sample's tokens at or below each token; ties share the middle."""
    # Half of a tie counts below it, half above.
    ordered = np.sort(importance)
    below = np.searchsorted(ordered, importance, side="left")
    upto = np.searchsorted(ordered, importance, side="right")
    return np.asarray((below + upto) / (2 * len(importance)), dtype=np.float64)


def usable(labels: Bool[np.ndarray, " token"]) -> bool:
    """Whether a sample has labelled and unlabelled tokens."""
    return bool(labels.any() and not labels.all())


@dataclass(frozen=True, eq=False)
class Yardstick:
    """A number of the residual at one place, of the tokens that a clean run kept.

    Attributes:
        name: Of the yardstick.
        layer, hook_name: Where it reads.
        mask: Tokens that count.
        measure: Raw activations and the mask of each row to a number a row.
    """

    name: str
    layer: int
    hook_name: str
    mask: Bool[Tensor, "one token"]
    measure: Measure = field(repr=False)

    def __call__(self, resid: Float[Tensor, "row token d_model"]) -> Float[Tensor, " row"]:
        """The yardstick of each row."""
        return self.measure(resid, self.mask.to(resid.device).expand(len(resid), -1))


@dataclass(frozen=True, eq=False)
class LaterProbe:
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
        return f"LaterProbe({self.concept!r}, layer {self.layer}, cal AUROC {self.cal_auroc:.3f})"

    def __call__(self, mean: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """Logits."""
        return mean @ self.weight.to(mean.device) + self.bias


def _mean_direction(
    resid: Float[Tensor, "row token d_model"], mask: Bool[Tensor, "row token"]
) -> Float[Tensor, "row d_model"]:
    """Mean over the tokens of a mask of each token's direction; 0 where there is none."""
    unit = torch.nn.functional.normalize(resid.float(), dim=-1)
    total: Tensor = torch.einsum("rtd,rt->rd", unit, mask.float())
    return total / mask.sum(1).clamp_min(1)[:, None]


def yardsticks(
    host: Host, detector: Detector, objective: Objective, probe: LaterProbe | None
) -> tuple[Yardstick, ...]:
    """The yardsticks of one sample and concept.

    Args:
        host: Of the sample.
        detector: Its threshold.
        objective: Any objective of the sample and concept: place, vector and kept tokens.
        probe: Of the concept; None leaves the third out.
    """
    threshold, vectors = detector.choice(objective.concept).threshold, objective.vectors

    def normalised(resid: Tensor) -> Tensor:
        # As the detector does, before the concept's vector says anything of it.
        return (resid.float() - vectors.mean[0].to(resid.device)) / float(vectors.scale[0])

    def mean_alignment(resid: Tensor, mask: Tensor) -> Tensor:
        return token_mean(cosine(normalised(resid), vectors.vectors[0].to(resid.device)), mask)

    def max_margin(resid: Tensor, mask: Tensor) -> Tensor:
        scores = concept_score(vectors, normalised(resid)).masked_fill(~mask, -torch.inf)
        return scores.amax(1) - threshold

    here = (objective.layer, objective.hook_name, objective.mask)
    found = [Yardstick(PRIMARY, *here, mean_alignment), Yardstick("max_margin", *here, max_margin)]
    if probe is not None:
        name = host.hook_name(Site(probe.layer, "resid_post"))
        found.append(
            Yardstick(
                "later_probe",
                probe.layer,
                name,
                objective.mask,
                lambda resid, mask: probe(_mean_direction(resid, mask)),
            )
        )
    return tuple(found)


def own_target(objective: Objective) -> Yardstick:
    """An arm's own objective as a yardstick; means of scores as cosines, so that arms have one unit."""
    pooled = objective.measure
    if isinstance(pooled, Pooled) and pooled.beta is None:
        objective = replace(objective, measure=replace(pooled, cosine=True))
    return Yardstick(OWN, objective.layer, objective.hook_name, objective.mask, objective)


def later_probes(
    host: Host, data: ConceptData, detector: Detector, concepts: Sequence[str]
) -> dict[str, LaterProbe]:
    """Probes of later blocks: a sixth of the model above the concept's own, at least one.

    Cost: one forward pass over the train and calibration splits.

    Args:
        host: The model.
        data: Sample labels; the train split is fitted on.
        detector: Gives each concept's own block, and the rule for sinks.
        concepts: Which.

    Returns:
        A probe for each concept whose train samples are of both classes.
    """
    last = host.info.n_layers - 1
    ahead = max(1, host.info.n_layers // 6)
    layer = {c: min(last, detector.layer[c] + ahead) for c in concepts}
    train, cal = (
        _means(host, split.samples, sorted(set(layer.values())), detector) for split in (data.train, data.cal)
    )
    probes = {}
    for concept in concepts:
        column = data.concepts.index(concept)
        y, held = data.train.sample_labels[:, column], data.cal.sample_labels[:, column]
        if y.any() and not y.all():
            weight, bias = _logistic(train[layer[concept]], y)
            logits = cal[layer[concept]] @ weight + bias
            known = float(auroc(logits, held))
            probes[concept] = LaterProbe(
                concept,
                layer[concept],
                torch.from_numpy(weight).float(),
                bias,
                known,
                layer[concept] == detector.layer[concept],
            )
    return probes


def _means(
    host: Host, samples: Sequence[Sample], layers: Sequence[int], detector: Detector
) -> Mapping[int, Float[np.ndarray, "sample d_model"]]:
    sites = {layer: Site(layer, "resid_post") for layer in layers}

    def reduce(read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Keeping:
        return keeping(samples={at: _mean_direction(read[site], keep) for at, site in sites.items()})

    layout = lay_out(host, samples, ())
    job = Job(sites.values(), lambda batch: reduce)
    rule = detector.bank.sinks_on(host.info)
    (kept,) = run_jobs(host, layout, [job], rule, description="sample means")
    return {layer: kept.samples[layer].astype(np.float64) for layer in layers}


def _logistic(
    x: Float[np.ndarray, "sample d_model"], y: Bool[np.ndarray, " sample"]
) -> tuple[Float[np.ndarray, " d_model"], float]:
    """On standardised features, classes balanced; folded back to the features themselves."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(0), x.std(0) + _LEAST_SCALE
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    model.fit((x - mean) / scale, y)
    # w . (x - mean) / scale + b  =  (w / scale) . x + (b - (w / scale) . mean)
    weight = model.coef_[0] / scale
    return weight, float(model.intercept_[0] - mean @ weight)
