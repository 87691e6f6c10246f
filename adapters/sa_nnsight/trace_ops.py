"""Scores, SuperActivators, objectives and what a monitor is fed, in a trace of your own: torch.

`sa_nnsight.trace_setup` makes, outside the trace, the tensors that `scores`, `mask` and `goal_mean`
take inside it. For a remote trace call `nnsight.register("sa_nnsight.trace_ops")` first: functions
then travel as source, and nothing is imported on the server. nnsight ships all that a module's names
stand for, used or not, so this one imports torch alone.

With x = (h - mean) / scale in float32:

    scores      s_t = x_t . v, or cos(x_t, v)
    mask        s_t >= threshold, among the tokens that are kept (SuperActivators)
    goal_mean   mean of s_t over the objective's tokens, or log(sum_t exp(beta (s_t - threshold))) / beta,
                and the mean over the batch: a scalar

    seen        s_t of every concept that a monitor watches at a layer, and |h_t| where the rule for attention
                sinks needs it: what `Monitor.feed` takes, a few numbers a token instead of an activation

What the mask does not know: which tokens are padding, special or attention sinks. Give `keep`.

`check_pair` is for patching between invokes: nnsight pads invokes of different lengths to one, so
that a value written from one into the other lands on other tokens, and is no error.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Concept:
    """A concept's vector at one layer.

    Attributes:
        direction: `[d_model]`.
        mean: `[d_model]`, taken off activations.
        scale: What activations are divided by.
        cosine: Whether the score is a cosine, not a dot product.
        threshold: Of its SuperActivators.
        path: nnsight's path of the layer's output; `model.get(path)` is its value in a trace.
    """

    # Written out: what a NamedTuple or dataclass generates has no source to travel by, and a
    # server with another version of Python dies of its bytecode.
    def __init__(
        self,
        direction: torch.Tensor,
        mean: torch.Tensor,
        scale: float,
        cosine: bool,
        threshold: float,
        path: str,
    ) -> None:
        self.direction = direction
        self.mean = mean
        self.scale = scale
        self.cosine = cosine
        self.threshold = threshold
        self.path = path


class Watched:
    """What a monitor reads at one layer.

    Attributes:
        layer: Block index.
        point: Of the block's tensors.
        path: nnsight's path of the value; `model.get(path)` is the value in a trace.
        directions: `[unit, d_model]`, of the concepts that are scored there; perhaps none.
        mean: `[d_model]`, taken off activations.
        scale: What activations are divided by.
        cosine: Whether scores are cosines, not dot products.
        norm: Whether the rule for attention sinks needs the norm.
    """

    def __init__(
        self,
        layer: int,
        point: str,
        path: str,
        directions: torch.Tensor,
        mean: torch.Tensor,
        scale: float,
        cosine: bool,
        norm: bool,
    ) -> None:
        self.layer = layer
        self.point = point
        self.path = path
        self.directions = directions
        self.mean = mean
        self.scale = scale
        self.cosine = cosine
        self.norm = norm


class Goal:
    """An objective of one sample, as plain tensors.

    Attributes:
        direction: The concept's vector, or the mean of the sample's own SuperActivators.
        mean: `[d_model]`.
        scale: What activations are divided by.
        cosine: Whether the score is a cosine.
        tokens: `[token]`, what the score is averaged over.
        path: nnsight's path of the layer's output.
        beta: Sharpness of a smooth maximum, in place of the mean where it is not None.
        threshold: Taken off scores before the smooth maximum.
    """

    def __init__(
        self,
        direction: torch.Tensor,
        mean: torch.Tensor,
        scale: float,
        cosine: bool,
        tokens: torch.Tensor,
        path: str,
        beta: float | None = None,
        threshold: float = 0.0,
    ) -> None:
        self.direction = direction
        self.mean = mean
        self.scale = scale
        self.cosine = cosine
        self.tokens = tokens
        self.path = path
        self.beta = beta
        self.threshold = threshold


def scores(resid: torch.Tensor, concept: Concept | Goal) -> torch.Tensor:
    """Scores `[batch, token]` of a layer's output, float32 and differentiable.

    Args:
        resid: `[batch, token, d_model]`, or the tuple a block returns.
        concept: From `sa_nnsight.trace_setup.concept`.

    Raises:
        ValueError: Activations of another width than the vector's.
    """
    h = resid[0] if isinstance(resid, tuple) else resid
    direction = concept.direction.to(h.device)
    if h.shape[-1] != direction.shape[0]:
        raise ValueError(
            f"activations have {h.shape[-1]} dimensions, the vector {direction.shape[0]}: it is of another "
            f"model, or this is not the tensor at {concept.path}."
        )
    x = (h.float() - concept.mean.to(h.device)) / concept.scale
    dots: torch.Tensor = x @ direction
    if not concept.cosine:
        return dots
    # The norm has no gradient at zero.
    zero = (x == 0).all(dim=-1)
    norms: torch.Tensor = x.masked_fill(zero[..., None], 1.0).norm(dim=-1) * direction.norm()
    # As the product's own scores: only zero vectors are that short.
    return dots / norms.clamp_min(1e-30)


def seen(value: torch.Tensor, watched: Watched) -> torch.Tensor:
    """Scores of every watched concept of a layer, and the norm behind them, `[batch, token, number]`.

    Args:
        value: `[batch, token, d_model]`, or the tuple a block returns.
        watched: From `sa_nnsight.trace_setup.watched`.

    Raises:
        ValueError: Activations of another width than the vectors'.
    """
    h = value[0] if isinstance(value, tuple) else value
    directions = watched.directions.to(h.device)
    if h.shape[-1] != directions.shape[-1]:
        raise ValueError(
            f"activations have {h.shape[-1]} dimensions, the vectors {directions.shape[-1]}: they are of "
            f"another model, or this is not the tensor at {watched.path}."
        )
    h = h.float()
    x = (h - watched.mean.to(h.device)) / watched.scale
    found: torch.Tensor = x @ directions.T
    if watched.cosine:
        norms: torch.Tensor = x.norm(dim=-1, keepdim=True) * directions.norm(dim=-1)
        found = found / norms.clamp_min(1e-30)
    if not watched.norm:
        return found
    length: torch.Tensor = h.norm(dim=-1, keepdim=True)
    return torch.cat([found, length], dim=-1)


def mask(found: torch.Tensor, concept: Concept, keep: torch.Tensor) -> torch.Tensor:
    """Which tokens are SuperActivators, `[batch, token]`.

    Args:
        found: From `scores`.
        concept: With its threshold.
        keep: `[batch, token]`, tokens that are evidence, from `sa_nnsight.trace_setup.inputs_of`.
    """
    return (found.double() >= concept.threshold) & keep.to(found.device)


def goal_mean(resid: torch.Tensor, goal: Goal) -> torch.Tensor:
    """An attribution objective, a 0-d tensor: its mean over the batch.

    Args:
        resid: `[batch, token, d_model]` of the goal's sample or perturbed copies of it, or the
            tuple a block returns.
        goal: From `sa_nnsight.trace_setup.goal`.

    Raises:
        ValueError: Another number of tokens than the goal's sample has.
    """
    found = scores(resid, goal)
    tokens = goal.tokens.to(found.device)
    if found.shape[1] != tokens.shape[0]:
        raise ValueError(
            f"this input has {found.shape[1]} tokens, the goal's sample {tokens.shape[0]} tokens: "
            "give the same tokens in the same places, or cut padding off the activations."
        )
    if goal.beta is not None:
        margins = (found - goal.threshold).masked_fill(~tokens, -torch.inf)
        highest: torch.Tensor = torch.logsumexp(goal.beta * margins, 1).div(goal.beta).mean()
        return highest
    # A padded token may hold anything; its gradient must be zero, not NaN.
    total: torch.Tensor = found.masked_fill(~tokens, 0.0).sum(1)
    return total.div(tokens.sum()).mean()


def check_pair(clean: Mapping[str, torch.Tensor], corrupted: Mapping[str, torch.Tensor]) -> None:
    """Refuse a pair whose tokens, or pixels, do not stand in the same places.

    Args:
        clean: Keyword arguments of the first invoke.
        corrupted: Of the second.

    Raises:
        ValueError: The two differ in an argument's name, shape, or in what the mask hides.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> check_pair({"input_ids": ids}, {"input_ids": ids.flip(-1)})
    """
    if clean.keys() != corrupted.keys():
        raise ValueError(
            f"the clean input has {sorted(clean)}, the corrupted one {sorted(corrupted)}: give the "
            "model the same arguments in both."
        )
    for name, value in clean.items():
        other = corrupted[name]
        if value.shape != other.shape:
            raise ValueError(
                f"{name} has shape {list(value.shape)} in the clean input and {list(other.shape)} "
                "in the corrupted one: both need the same number of tokens, because patching goes "
                "position by position. Replace tokens one for one, or pad both alike."
            )
        if name == "attention_mask" and not value.equal(other):
            raise ValueError("the two attention masks hide different positions: pad both inputs alike.")
