"""Attribution objectives: pure functions of the residual stream at one layer.

With x = (h - mean) / rho, all in float32, and sums over valid tokens (neither padding nor special
nor attention sinks):

- "superactivator" (arXiv 2512.05038, attribution): f = mean_t cos(x_t, u), u the mean of x over the
  sample's own SuperActivators on the clean run, fixed and detached.
- "superactivator_tokens": f = mean of the concept's score over those SuperActivators' positions.
- "superactivator_margin": f = log(sum_t exp(beta (s_t - threshold))) / beta, s_t the concept's score: a
  smooth maximum of what detection reads. Its tail is not fixed: when masking moves the highest score
  to another token, f follows. It lies above the maximum's margin by at most log(tokens) / beta.
- "global", the baseline: f = mean_t of the concept's score (vector v_c).

**"superactivator" has no gradient on a single SuperActivator**: u is then that token's own x, and a
cosine with itself is at its maximum. Its gradients, and those of two or three SuperActivators nearly
so, are about the *other* tokens' resemblance to the tail. In word-level data most tails are that
short; an objective that has fewer than three says so (`Objective.caution`). The tokens' mean score
and the margin have their gradient on the tail.

What an objective does not show: which of them is the better evidence. "superactivator" is
maximised by tokens that resemble this sample's tail, "global" by tokens that resemble the concept's
vector; compare explanations by localisation and faithfulness, not by the objective's value.

`together` makes one metric of a batch from objectives of several samples, a row each:

    f(resid)_k = f_k(resid_k, the tokens of sample k)

Patching tools keep per-example values (`reduce="none"` of `transformer_lens.patching`) and take
intervals and p-values over the batch. Copies of one sample tell nothing about others: put samples
in the rows. Each row keeps its own target, mask and length, and rows do not touch. An interval over
rows says nothing about samples unlike these; and those without a SuperActivator are not among them
(see `Objective.coverage` and `NoSuperActivator`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import entry_points
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin._face import Carries, face
from sa_plugin.concepts.bank import VectorSet
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.host import reducers
from sa_plugin.host.protocol import READ_AT, Host, Site
from sa_plugin.passes.run import sink_sites
from sa_plugin.scores.score import check_origin

GROUP = "sa_plugin.attribution.objective"
FALLBACKS = (None, "top_token")


class NoSuperActivator(ValueError):
    """The sample has no SuperActivator of the concept, so there is nothing to explain."""


@dataclass(frozen=True, eq=False)
class CleanRun:
    """What an objective is made from: one sample's clean run at the detector's layer.

    Attributes:
        x: Normalised activations.
        keep: Valid tokens.
        tail: The sample's SuperActivators, at least one.
        vectors: The concept's vector and normaliser, one "layer", one "unit".
        threshold: Score from which a token is a SuperActivator.
    """

    x: Float[Tensor, "token d_model"]
    keep: Bool[Tensor, " token"]
    tail: Bool[Tensor, " token"]
    vectors: VectorSet
    threshold: float


Measure = Callable[
    [Float[Tensor, "batch token d_model"], Bool[Tensor, "batch token"]], Float[Tensor, " batch"]
]
"""Normalised activations and valid tokens to one number a row."""

SHARPNESS = 4.0
"""Of the margin: a token one deviation of the sample's scores below the highest weighs exp(-4)."""
FEW = 3
"""SuperActivators from which the gradient of "superactivator" has some hold on them."""


@dataclass(frozen=True, eq=False)
class Pooled:
    """A measure of scores with one target: their mean over tokens, or a smooth maximum.

    Attributes:
        target: What tokens are scored with.
        cosine: Whether the score is a cosine, not a dot product.
        tokens: Those that are averaged over, if not all valid ones.
        beta: Sharpness of the smooth maximum, in 1 / score; None for the mean.
        threshold: Taken off scores before the smooth maximum.
    """

    target: Float[Tensor, " d_model"]
    cosine: bool
    tokens: Bool[Tensor, " token"] | None = None
    beta: float | None = None
    threshold: float = 0.0

    def __call__(
        self, x: Float[Tensor, "batch token d_model"], mask: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, " batch"]:
        """The measure of each row of normalised activations.

        Raises:
            ValueError: A row has none of the tokens that are averaged over.
        """
        scores = self.scores(x)
        if self.beta is not None:
            margins = (scores - self.threshold).masked_fill(~mask, -torch.inf)
            return (self.beta * margins).logsumexp(1) / self.beta
        if self.tokens is not None:
            mask = mask & self.tokens.to(x.device)
            if not mask.any(dim=1).all():
                raise ValueError("the mask leaves a row without any SuperActivator to average over.")
        return token_mean(scores, mask)

    def scores(self, x: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token"]:
        """Of normalised activations, token by token."""
        target = self.target.to(x.device)
        dots: Tensor = cosine(x, target[None]) if self.cosine else x @ target
        return dots


Maker = Callable[[CleanRun], Measure]
_MakerT = TypeVar("_MakerT", bound=Maker)
_REGISTRY: dict[str, Maker] = {}


@face
@dataclass(frozen=True, eq=False)
class Objective(Carries):
    """A scalar of a sample's residual stream at one layer; made by `objective`.

    Attributes:
        name: Of the objective.
        concept: What it is evidence of.
        sample: Id of the sample it was made on.
        layer: Block index.
        hook_name: The library's own name of the place it reads.
        coverage: SuperActivators / valid tokens.
        mask: Valid tokens, one row or one for each row of the batch.
        tail: The SuperActivators (with `fallback`, the highest-scoring token).
        measure: Normalised activations and mask to `[batch]`.
        vectors: The concept's vector and normaliser.
        fallback: What stood in for missing SuperActivators.
        weights: Fingerprint of the model it was made on.
    """

    name: str
    concept: str
    sample: str
    layer: int
    hook_name: str
    coverage: float
    mask: Bool[Tensor, "one_or_batch token"]
    tail: Bool[Tensor, " token"]
    measure: Measure = field(repr=False)
    vectors: VectorSet = field(repr=False)
    fallback: str | None = None
    weights: str = ""

    def __repr__(self) -> str:
        stand_in = f", {self.fallback} in place of SuperActivators" if self.fallback else ""
        caution = f": {self.caution}" if self.caution else ""
        return (
            f"Objective({self.name!r}, {self.concept!r}, sample {self.sample!r}, "
            f"{self.hook_name}, coverage {self.coverage:.3f}{stand_in}{caution})"
        )

    @property
    def caution(self) -> str:
        """What a tail of fewer than three tokens does to this objective's gradient; else empty."""
        n = int(self.tail.sum())
        if self.name != "superactivator" or n >= FEW:
            return ""
        hold = "none on it" if n == 1 else "next to none on them"
        return (
            f"{n} SuperActivator{'s' * (n > 1)}, and its gradient has {hold}; "
            "'superactivator_tokens' and 'superactivator_margin' have theirs there"
        )

    def __call__(
        self, resid: Float[Tensor, "batch token d_model"], mask: Bool[Tensor, "one_or_batch _"] | None = None
    ) -> Float[Tensor, " batch"]:
        """The objective of each row, differentiable.

        Args:
            resid: Raw activations at `hook_name`, in any floating-point format: perturbed copies
                of the sample, token by token in the same places.
            mask: Valid tokens, instead of the sample's own.

        Raises:
            ValueError: Another number of tokens or dimensions than the sample's, a mask whose
                rows are neither one nor the batch's, a row without a valid token, or what a view
                returns that ends at another place.
        """
        _require_place(self, resid)
        mask = self._mask(resid, self.mask if mask is None else mask)
        mean = self.vectors.mean[0].to(resid.device)
        x = (resid.float() - mean) / float(self.vectors.scale[0])
        # A padded row may hold anything; its gradient must be zero, not NaN.
        return self.measure(x.masked_fill(~mask[..., None], 0.0), mask)

    def metric(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, ""]:
        """The mean over the batch, a 0-d tensor: what `transformer_lens.patching` wants.

        With `reduce="mean"` or `"none"` give the objective itself, which returns `[batch]`.
        """
        return self(resid).mean()

    def _mask(self, resid: Tensor, mask: Tensor) -> Bool[Tensor, "batch token"]:
        n_tokens, width = len(self.tail), self.vectors.mean.shape[-1]
        if resid.ndim != 3 or resid.shape[1:] != (n_tokens, width):
            raise ValueError(
                f"resid has shape {tuple(resid.shape)}; the objective of sample {self.sample!r} "
                f"needs [batch, {n_tokens}, {width}], the same tokens in the same places. Give "
                f"{self.hook_name} of that sample or of copies of it."
            )
        if mask.ndim != 2 or mask.shape[1] != n_tokens or mask.shape[0] not in (1, len(resid)):
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, resid has batch {len(resid)} and {n_tokens} "
                "tokens: a mask has one row, or one for each row of the batch."
            )
        mask = mask.to(resid.device, torch.bool).expand(len(resid), -1)
        if not mask.any(dim=1).all():
            empty = int((~mask.any(dim=1)).nonzero()[0])
            raise ValueError(f"row {empty} of the mask has no valid token: a mean needs one.")
        return mask


@face
def objective(
    name: str,
    *,
    detector: Detector,
    concept: str,
    sample: Sample | str,
    host: Host | None = None,
    fallback: str | None = None,
) -> Objective:
    """Make an objective for one sample, from one forward pass over it.

    Args:
        name: "superactivator", "superactivator_tokens", "superactivator_margin", "global", or one that was
            registered.
        detector: Gives layer, vector and threshold.
        concept: What to explain.
        sample: The sample, or a text.
        host: By default the detector's.
        fallback: "top_token" lets the highest-scoring token stand in where no token reaches the
            threshold; the objective records it.

    Returns:
        The objective.

    Raises:
        NoSuperActivator: No token of the sample reaches the threshold, and there is no fallback.
        ValueError: Unknown name or concept, a detector of another model, or no host.

    Example:
        >>> f = objective("superactivator", detector=detector, concept="animal",
        ...               sample="The whale rose.")  # doctest: +SKIP
        >>> f.layer  # doctest: +SKIP
        20
    """
    make = _maker(name)
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback {fallback!r} is unknown: use 'top_token' or None.")
    model = detector.host if host is None else host
    if model is None:
        raise ValueError("the detector has no host: give host=, the attached model.")
    choice = detector.choice(concept)
    text = Sample.of(sample)
    clean, found = _clean_run(model, detector, concept, text)
    if not found and fallback is None:
        raw = clean.x * clean.vectors.scale[0] + clean.vectors.mean[0]
        best = float(clean.vectors.score(0, raw)[clean.keep].max())
        raise NoSuperActivator(
            f"no token of sample {text.id!r} is a SuperActivator of {concept!r}: the highest "
            f"score is {best:.4g}, the threshold {choice.threshold:.4g} (layer {choice.layer}). "
            "Leave the sample out and report the coverage, or give fallback='top_token'."
        )
    site = Site(choice.layer, detector.bank.hook_point)
    coverage = int(clean.tail.sum()) / int(clean.keep.sum()) if found else 0.0
    return Objective(
        name,
        concept,
        text.id,
        choice.layer,
        model.hook_name(site),
        coverage,
        clean.keep[None],
        clean.tail,
        make(clean),
        clean.vectors,
        None if found else fallback,
        model.info.fingerprint,
    )


@face
def register_objective(name: str) -> Callable[[_MakerT], _MakerT]:
    """Add an objective: a function of a sample's clean run that returns the measure.

    Packages register theirs under the entry-point group `sa_plugin.attribution.objective`.

    Args:
        name: By which `objective` will know it.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        ValueError: The name is taken.

    Example:
        >>> @register_objective("top_score")
        ... def top_score(clean: CleanRun) -> Measure:
        ...     return lambda x, mask: concept_score(clean.vectors, x).masked_fill(~mask, -9).amax(1)
    """
    if name in _REGISTRY:
        raise ValueError(f"objective {name!r} is registered already: choose another name.")

    def register(make: _MakerT) -> _MakerT:
        _REGISTRY[name] = make
        return make

    return register


def objective_names() -> tuple[str, ...]:
    """Every objective known: registered here, or by an installed package."""
    others = (point.name for point in entry_points(group=GROUP))
    return tuple(dict.fromkeys((*_REGISTRY, *others)))


def concept_score(
    vectors: VectorSet, x: Float[Tensor, "batch token d_model"]
) -> Float[Tensor, "batch token"]:
    """The concept's score of activations that are normalised already."""
    return Pooled(vectors.vectors[0, 0], vectors.scoring == "cosine").scores(x)


def cosine(
    x: Float[Tensor, "batch token d_model"], target: Float[Tensor, "one_or_batch d_model"]
) -> Float[Tensor, "batch token"]:
    """Cosine similarity with a target, or with one target for each row; 0 where x is 0.

    Raises:
        ValueError: The targets are neither one nor the batch's.
    """
    if target.ndim != 2 or target.shape[0] not in (1, len(x)) or target.shape[1] != x.shape[2]:
        raise ValueError(
            f"targets have shape {tuple(target.shape)}, activations {tuple(x.shape)}: give one "
            "target [1, d_model], or one for each row of the batch."
        )
    # The norm has no gradient at zero, and masked tokens are zero.
    zero = (x == 0).all(dim=-1, keepdim=True)
    sizes: Tensor = x.masked_fill(zero, 1.0).norm(dim=-1) * target.norm(dim=-1, keepdim=True)
    dots: Tensor = torch.einsum("btd,bd->bt", x, target.expand(len(x), -1))
    return dots / sizes.clamp_min(reducers.LEAST_LENGTHS)


def token_mean(
    values: Float[Tensor, "batch token"], mask: Bool[Tensor, "batch token"]
) -> Float[Tensor, " batch"]:
    """Mean over the tokens of a mask."""
    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)


@register_objective("superactivator")
def _superactivator(clean: CleanRun) -> Measure:
    """Mean cosine of all valid tokens with the mean of the sample's own SuperActivators."""
    return Pooled(clean.x[clean.tail].mean(0).detach(), cosine=True)


@register_objective("superactivator_tokens")
def _superactivator_tokens(clean: CleanRun) -> Measure:
    """Mean score at the positions of the clean run's SuperActivators."""
    return replace(_global(clean), tokens=clean.tail)


@register_objective("superactivator_margin")
def superactivator_margin(clean: CleanRun, sharpness: float = SHARPNESS) -> Pooled:
    """Smooth maximum of the scores' margins over the threshold.

    Args:
        clean: The sample's clean run.
        sharpness: beta times the deviation of the clean run's scores; at infinity the maximum. For
            another than the default register `partial(superactivator_margin, sharpness=...)`.

    Raises:
        ValueError: A sharpness that is not positive, or scores without any spread.
    """
    if not sharpness > 0:
        raise ValueError(f"sharpness is {sharpness}: give a positive number; the default is {SHARPNESS:g}.")
    mean_score = _global(clean)
    scores = mean_score.scores(clean.x[None])[0][clean.keep].double()
    spread = float(scores.std(correction=0))
    # One product in float32 can differ from token to token in its last digit.
    if not spread > 1e-6 * float(scores.abs().max()):
        raise ValueError(
            f"the {len(scores)} tokens of the sample have one score, so that there is no scale for the "
            "margin's sharpness: give a longer sample, or explain 'superactivator_tokens'."
        )
    return replace(mean_score, beta=sharpness / spread, threshold=clean.threshold)


@register_objective("global")
def _global(clean: CleanRun) -> Pooled:
    """Mean score of all valid tokens with the concept's vector: the conventional target."""
    own = clean.vectors
    return Pooled(own.vectors[0, 0], own.scoring == "cosine")


def _maker(name: str) -> Maker:
    require_known("objective", name, objective_names())
    if name in _REGISTRY:
        return _REGISTRY[name]
    make: Maker = next(point for point in entry_points(group=GROUP) if point.name == name).load()
    return make


def _clean_run(host: Host, detector: Detector, concept: str, sample: Sample) -> tuple[CleanRun, bool]:
    """One pass over the sample; whether it has SuperActivators, else the tail is its top token."""
    bank = detector.bank
    check_origin(bank, host)
    choice = detector.choice(concept)
    vectors = _one_vector(bank.token, bank.index(choice.layer), bank.unit(choice.unit))
    site = Site(choice.layer, bank.hook_point)
    (batch,) = host.batches([sample])
    sinks = bank.sinks_on(host.info)
    reduce = partial(reducers.activations, site=(site.layer, site.point), valid=batch.valid, sinks=sinks)
    got = host.read(batch, sorted({site, *sink_sites(bank.sink_layers)}), reduce)
    h, keep = got["h"][0], got["keep"][0]
    if not keep.any():
        raise ValueError(
            f"sample {sample.id!r} has no token left once special tokens and attention sinks are "
            "dropped: give a longer text."
        )
    # All units at once, as the detector scores them, so that ties with the threshold fall alike.
    scores = bank.token.score(bank.index(choice.layer), h)[:, bank.unit(choice.unit)]
    # -inf, so that a token that does not count is never the highest.
    scores = scores.masked_fill(~keep, -torch.inf)
    tail = keep & (scores.double() >= choice.threshold)
    found = bool(tail.any())
    if not found:
        tail[scores.argmax()] = True
    x = (h - vectors.mean[0]) / vectors.scale[0]
    return CleanRun(x, keep, tail, vectors, choice.threshold), found


def _one_vector(vectors: VectorSet, layer: int, unit: int) -> VectorSet:
    return VectorSet(
        vectors.vectors[layer : layer + 1, unit : unit + 1].float().cpu(),
        vectors.mean[layer : layer + 1].float().cpu(),
        vectors.scale[layer : layer + 1].float().cpu(),
        vectors.scoring,
    )


@dataclass(frozen=True, eq=False)
class JointObjective:
    """One objective a row; made by `together`.

    Attributes:
        objectives: Of each row, all at one layer.
        tokens: Where each row's own tokens stand; the rest is padding.
    """

    objectives: tuple[Objective, ...]
    tokens: Bool[Tensor, "batch token"]

    def __repr__(self) -> str:
        first = self.objectives[0]
        return (
            f"JointObjective({len(self.objectives)} samples, {first.name!r}, {first.hook_name}, "
            f"{self.tokens.shape[1]} tokens)"
        )

    def __call__(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, " batch"]:
        """The objective of each row, differentiable.

        Args:
            resid: Raw activations at `hook_name`, a row for each sample.

        Raises:
            ValueError: Another number of rows or tokens, or what a view returns that ends elsewhere.
        """
        if resid.shape[:2] != self.tokens.shape:
            raise ValueError(
                f"resid has shape {tuple(resid.shape)}, the samples {tuple(self.tokens.shape)} "
                "[batch, token]: give one row for each sample, padded alike."
            )
        _require_place(self, resid)
        rows = zip(self.objectives, resid, self.tokens.to(resid.device), strict=True)
        return torch.cat([one(row[own][None]) for one, row, own in rows])

    def metric(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, ""]:
        """The mean over the samples, a 0-d tensor."""
        return self(resid).mean()

    @property
    def layer(self) -> int:
        """Block index."""
        return self.objectives[0].layer

    @property
    def hook_name(self) -> str:
        """The library's own name of the place it reads."""
        return self.objectives[0].hook_name

    @property
    def weights(self) -> str:
        """Fingerprint of the model that the first was made on."""
        return self.objectives[0].weights

    @property
    def mask(self) -> Bool[Tensor, "batch token"]:
        """Valid tokens of each row, false at padding."""
        mask = torch.zeros_like(self.tokens)
        for row, own, one in zip(mask, self.tokens, self.objectives, strict=True):
            row[own] = one.mask[0]
        return mask


def _require_place(objective: Objective | JointObjective, resid: Tensor) -> None:
    """Refuse the output of a view of the model that ends at another place than is read."""
    place = getattr(resid, READ_AT, objective.hook_name)
    if place != objective.hook_name:
        raise ValueError(
            f"resid is {place}, where the view of the model ends, and {objective!r} reads "
            f"{objective.hook_name}: make the view of the objective it is for, prefix_view(model, objective)."
        )


def together(
    objectives: Sequence[Objective],
    attention_mask: Int[Tensor, "batch token"] | Bool[Tensor, "batch token"] | None = None,
) -> JointObjective:
    """Objectives of several samples as one metric of a batch.

    Args:
        objectives: One for each row, at one layer.
        attention_mask: Of the batch, which says where each row is padded; by default on the right.

    Returns:
        A metric of `[batch, token, d_model]`, for `prefix_view` and the tools it serves.

    Raises:
        ValueError: No objectives, objectives of several layers, or a mask that does not leave each
            sample its number of tokens.

    Example:
        >>> joint = together(objectives, mask)  # doctest: +SKIP
        >>> view = prefix_view(bridge, joint, attention_mask=mask)  # doctest: +SKIP
        >>> patching.get_act_patch_resid_pre(
        ...     view, corrupted, cache, joint, reduce="none", baseline=True)  # doctest: +SKIP
    """
    own = tuple(objectives)
    names = sorted({one.hook_name for one in own})
    if len(names) != 1:
        raise ValueError(
            f"objectives read {names or 'nothing'}: give at least one, and all at one place, since "
            "a batch is read at one."
        )
    lengths = torch.tensor([len(one.tail) for one in own])
    if attention_mask is None:
        tokens = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    else:
        tokens = attention_mask.bool().cpu()
    if len(tokens) != len(own) or not torch.equal(tokens.sum(1), lengths):
        raise ValueError(
            f"attention_mask has {tokens.sum(1).tolist()} tokens by row, the samples "
            f"{lengths.tolist()}: give the mask of these samples, in this order."
        )
    return JointObjective(own, tokens)
