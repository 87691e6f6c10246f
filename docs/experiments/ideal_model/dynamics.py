"""One concept's activations in stacked aligned attention heads: the idealised model, simulated.

OUR reconstruction from the verbal claims of arXiv 2512.05038 (its theorems were not available to
us): do not cite these formulas as the paper's. With a_i = v . h_i for a unit concept direction v,
a head with W_Q^T W_K / sqrt(d) = beta v v^T and W_O W_V = gamma v v^T, beta and gamma > 0, gives

    a_i' = a_i + gamma sum_j alpha_ij a_j,   alpha_ij = softmax_j (beta a_i a_j)

and several aligned heads add their writes. Errors, where asked for, are uniform: within
+-logit_error on every beta a_i a_j, within +-write_error on every a_i' (MLPs, other heads, mixing).

What it does not show: anything about a real model. There is no norm (or one of fixed scale, taken
into beta and gamma), no position, no MLP, no second concept, and the same heads in every layer.
The predictions (`theory.predictions`) also need that all queries see the same keys, which a causal
mask breaks (`theory.gaps`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64


@dataclass(frozen=True)
class IdealModel:
    """Aligned heads, the same in every layer.

    Attributes:
        beta: Read strength of each head, positive, per squared unit of activation.
        gamma: Write strength of each head, positive.
        causal: Whether a token sees only itself and what comes before.
        logit_error, write_error: Bounds of the uniform errors.

    Raises:
        ValueError: Not as many beta as gamma, none, one not positive, or a negative error.

    Example:
        >>> IdealModel(beta=(0.8,), gamma=(0.3,))
        IdealModel: 1 head, beta 0.8, gamma 0.3
    """

    beta: tuple[float, ...]
    gamma: tuple[float, ...]
    causal: bool = False
    logit_error: float = 0.0
    write_error: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta or len(self.beta) != len(self.gamma):
            raise ValueError(f"{len(self.beta)} beta and {len(self.gamma)} gamma: give one of each a head.")
        for name, values in (("beta", self.beta), ("gamma", self.gamma)):
            for head, value in enumerate(values):
                if not 0 < value < np.inf:
                    raise ValueError(
                        f"{name}[{head}] is {value}: an aligned head has a positive finite {name}; "
                        "leave out heads that are not aligned, no prediction covers them."
                    )
        for name, error in (("logit_error", self.logit_error), ("write_error", self.write_error)):
            if not 0 <= error < np.inf:
                raise ValueError(f"{name} is {error}: it is a bound, zero or above and finite.")

    def __repr__(self) -> str:
        n = len(self.beta)
        parts = [
            f"{n} head{'s' * (n > 1)}",
            f"beta {', '.join(f'{b:g}' for b in self.beta)}",
            f"gamma {', '.join(f'{g:g}' for g in self.gamma)}",
        ]
        parts += ["causal"] * self.causal
        parts += [f"errors {self.logit_error:g}, {self.write_error:g}"] * self.noisy
        return f"IdealModel: {', '.join(parts)}"

    @property
    def noisy(self) -> bool:
        """Whether a step draws errors."""
        return self.logit_error > 0 or self.write_error > 0


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Activations from layer to layer.

    Attributes:
        activations: [layer + 1, token]; row 0 is the start, row l what layer l reads.
        model: What made them.
        seed: Of the errors.
    """

    activations: Float64[np.ndarray, "depth token"]
    model: IdealModel
    seed: int

    def __repr__(self) -> str:
        depth, tokens = self.activations.shape
        return f"Trajectory: {tokens} tokens through {depth - 1} layers of {self.model!r}"


def attention(
    a: Float[np.ndarray, " token"], model: IdealModel, rng: np.random.Generator | None = None
) -> Float64[np.ndarray, "head query key"]:
    """The attention pattern of every head.

    Args:
        a: Finite activations.
        model: Heads, mask and error.
        rng: Draws the logit error; needed only where the model has one.

    Raises:
        ValueError: An activation is not finite, or errors without a generator.
    """
    a = as_activations(a)
    logits = np.multiply.outer(np.asarray(model.beta), np.multiply.outer(a, a))
    if model.logit_error > 0:
        logits += _errors(rng, model.logit_error, logits.shape)
    if model.causal:
        logits[:, np.triu(np.ones(logits.shape[1:], dtype=bool), 1)] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float64)


def step(
    a: Float[np.ndarray, " token"], model: IdealModel, rng: np.random.Generator | None = None
) -> Float64[np.ndarray, " token"]:
    """Activations after one layer; arguments and errors as for `attention`.

    Example:
        >>> step(np.array([0.0, 0.0, 3.0]), IdealModel((1.0,), (0.5,)))[:2]
        array([0.5, 0.5])
    """
    a = as_activations(a)
    after: np.ndarray = a + np.asarray(model.gamma) @ (attention(a, model, rng) @ a)
    if model.write_error > 0:
        after += _errors(rng, model.write_error, after.shape)
    return after


def simulate(start: Float[np.ndarray, " token"], model: IdealModel, layers: int, seed: int = 0) -> Trajectory:
    """Apply the model `layers` times.

    Activations grow at most by the factor 1 + sum gamma a layer (without write error), so float64
    lasts far beyond any real depth.

    Raises:
        ValueError: No layers, fewer than two tokens, or a start that is not finite.

    Example:
        >>> start = np.random.default_rng(0).gamma(9, size=100) / 6 - 1.5
        >>> simulate(start, IdealModel((0.8,), (0.3,)), layers=14)
        Trajectory: 100 tokens through 14 layers of IdealModel: 1 head, beta 0.8, gamma 0.3
    """
    if layers < 1:
        raise ValueError(f"layers is {layers}: give at least 1.")
    rng = np.random.default_rng(seed)
    rows = [as_activations(start)]
    for _ in range(layers):
        rows.append(step(rows[-1], model, rng))
    return Trajectory(np.stack(rows), model, seed)


def as_activations(a: Float[np.ndarray, " token"]) -> Float64[np.ndarray, " token"]:
    """The values in float64, refused when a prediction about them would be void."""
    if len(a) < 2 or not np.isfinite(a).all():
        raise ValueError(
            f"{len(a)} activations, {int(np.sum(~np.isfinite(a)))} of them not finite: give at "
            "least two finite ones, of one sample."
        )
    return np.asarray(a, dtype=np.float64)


def _errors(
    rng: np.random.Generator | None, bound: float, shape: tuple[int, ...]
) -> Float64[np.ndarray, "*shape"]:
    if rng is None:
        raise ValueError("the model has errors: give a generator, np.random.default_rng(seed).")
    return rng.uniform(-bound, bound, size=shape)
