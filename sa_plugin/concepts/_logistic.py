"""Balanced logistic regressions without intercept, all labels solved jointly.

For label `c`, with `y = +1` on its `n_1` rows and `-1` on the `n_0` others,

`f_c(w) = 1/(2 n_1) sum_in log(1 + exp(-w.x)) + 1/(2 n_0) sum_out log(1 + exp(w.x)) + lam/2 |w|^2`

Method: L-BFGS for each label, all in step, so that an iteration costs two products with the rows,
`X @ directions` and `X^T @ residuals`, whatever the number of labels. The starting inverse Hessian
is that of the bound `X^T X / 4n + lam I` (Böhning 1992), shared by all labels and taken from an
even sample of the rows: a preconditioner moves the path, not the optimum. Along a direction the
margins are linear in the step, so the line search needs no further product.

Stop: `f_c` is `lam`-strongly convex, hence `|w - w*| <= |grad f_c(w)| / lam`. A label is done when
`|grad f_c| <= tol lam |w|`, which certifies `|w - w*| <= tol |w|` and an angle to the optimum of at
most `asin(tol)`; or when the gradient is lost in float32 rounding, `|grad f_c| <= 2^-22 rms|x|`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from sa_plugin.concepts._rows import Blocks

MEMORY_PAIRS = 10
ROUNDING = 2.0**-22
PRECONDITIONER_ROWS = 4  # times d_model
Pair = tuple[Float[Tensor, "d_model label"], Float[Tensor, "d_model label"]]


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights and how far they got, a value a label.

    Attributes:
        weights: The separators.
        iterations: Steps taken.
        gradient_norm: `|grad f_c|` at the weights.
        objective: `f_c` at the weights.
        converged: Whether the stopping rule holds.
    """

    weights: Float[Tensor, "label d_model"]
    iterations: Int[Tensor, " label"]
    gradient_norm: Float[Tensor, " label"]
    objective: Float[Tensor, " label"]
    converged: Bool[Tensor, " label"]


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """Cholesky factor of `X^T X / 4n + lam I`, and the rows' root mean square norm."""

    factor: Float[Tensor, "d_model d_model"]
    rms: float


def preconditioner(blocks: Blocks, n_rows: int, d_model: int, lam: float) -> Preconditioner:
    """Factor the bound on an even sample of the rows."""
    stride = max(1, n_rows // (PRECONDITIONER_ROWS * d_model))
    gram, used = torch.zeros(d_model, d_model, dtype=torch.float64), 0
    for _, x in blocks():
        some = x[::stride]
        gram += (some.T @ some).double()
        used += len(some)
    gram /= used
    rms = float(gram.trace().sqrt())
    return Preconditioner(torch.linalg.cholesky(gram / 4 + lam * torch.eye(d_model)), rms)


def solve(
    blocks: Blocks,
    labels: Bool[Tensor, "row label"],
    start: Preconditioner,
    *,
    lam: float,
    tol: float,
    max_iter: int,
) -> Solution:
    """Minimise every `f_c`.

    Args:
        blocks: Iterates over the rows in order.
        labels: With both classes in every column.
        start: Of these rows, at this `lam`.
        lam: Weight of the penalty, above 0.
        tol: Certified relative error of each vector.
        max_iter: Steps at most.
    """
    sign, weight = _signs_and_weights(labels)
    d_model, n_labels = len(start.factor), labels.shape[1]
    w = torch.zeros(d_model, n_labels, dtype=torch.float64)
    margin = torch.zeros_like(weight)
    gradient = _gradient(blocks, margin, sign, weight, w, lam)
    history: deque[Pair] = deque(maxlen=MEMORY_PAIRS)
    iterations = torch.zeros(n_labels, dtype=torch.int64)
    while True:
        active = ~_converged(gradient, w, lam, tol, start.rms)
        if not active.any() or int(iterations.max()) == max_iter:
            break
        iterations += active
        direction = -_apply_inverse_hessian(gradient, history, start.factor)
        change = _products(blocks, direction, len(labels)).mul_(sign)
        step = _line_search(margin, change, weight, w, direction, gradient, lam, active)
        w_next = w + step * direction
        margin += step.float() * change
        gradient_next = _gradient(blocks, margin, sign, weight, w_next, lam)
        history.append((w_next - w, gradient_next - gradient))
        w, gradient = w_next, gradient_next
    loss = (weight * softplus(-margin)).sum(0, dtype=torch.float64)
    return Solution(
        w.T.float().contiguous(),
        iterations,
        gradient.norm(dim=0),
        loss + lam / 2 * w.square().sum(0),
        ~active,
    )


def _signs_and_weights(
    labels: Bool[Tensor, "row label"],
) -> tuple[Float[Tensor, "row label"], Float[Tensor, "row label"]]:
    n_in = labels.sum(0).double()
    inside, outside = (0.5 / n_in).float(), (0.5 / (len(labels) - n_in)).float()
    return torch.where(labels, 1.0, -1.0), torch.where(labels, inside, outside)


def _converged(
    gradient: Float[Tensor, "d_model label"],
    w: Float[Tensor, "d_model label"],
    lam: float,
    tol: float,
    rms: float,
) -> Bool[Tensor, " label"]:
    certified = tol * lam * w.norm(dim=0)
    return torch.le(gradient.norm(dim=0), certified.clamp_min(ROUNDING * rms))


def _products(
    blocks: Blocks, vectors: Float[Tensor, "d_model label"], n_rows: int
) -> Float[Tensor, "row label"]:
    out = torch.empty(n_rows, vectors.shape[1])
    single = vectors.float()
    for part, x in blocks():
        torch.matmul(x, single, out=out[part])
    return out


def _gradient(
    blocks: Blocks,
    margin: Float[Tensor, "row label"],
    sign: Float[Tensor, "row label"],
    weight: Float[Tensor, "row label"],
    w: Float[Tensor, "d_model label"],
    lam: float,
) -> Float[Tensor, "d_model label"]:
    residual = torch.sigmoid(-margin).mul_(weight).mul_(sign)
    total = lam * w
    for part, x in blocks():
        total -= (x.T @ residual[part]).double()
    return total


def _apply_inverse_hessian(
    gradient: Float[Tensor, "d_model label"],
    history: deque[Pair],
    factor: Float[Tensor, "d_model d_model"],
) -> Float[Tensor, "d_model label"]:
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4), a label a column."""
    q, alphas = gradient.clone(), []
    for moved, turned in reversed(history):
        inverse = _inverse_curvature(moved, turned)
        alpha = inverse * (moved * q).sum(0)
        q -= alpha * turned
        alphas.append((inverse, alpha))
    q = torch.cholesky_solve(q, factor)
    for (moved, turned), (inverse, alpha) in zip(history, reversed(alphas), strict=True):
        q += (alpha - inverse * (turned * q).sum(0)) * moved
    return q


def _inverse_curvature(
    moved: Float[Tensor, "d_model label"], turned: Float[Tensor, "d_model label"]
) -> Float[Tensor, " label"]:
    curvature = (moved * turned).sum(0)
    # A label that is done did not move: its pairs must count for nothing.
    return torch.where(curvature > 0, 1 / curvature, 0.0)


def _line_search(
    margin: Float[Tensor, "row label"],
    change: Float[Tensor, "row label"],
    weight: Float[Tensor, "row label"],
    w: Float[Tensor, "d_model label"],
    direction: Float[Tensor, "d_model label"],
    gradient: Float[Tensor, "d_model label"],
    lam: float,
    active: Bool[Tensor, " label"],
) -> Float[Tensor, " label"]:
    """Step at which the slope is a tenth of its start: Newton's method inside a bracket."""
    goal = 0.1 * (gradient * direction).sum(0).abs()
    pull = lam * (w * direction).sum(0)
    stiffness = lam * direction.square().sum(0)
    step, low = torch.ones_like(goal), torch.zeros_like(goal)
    high = torch.full_like(goal, torch.inf)
    for _ in range(40):
        miss = torch.sigmoid(-(margin + step.float() * change))
        pushed = weight * miss * change
        slope = pull + step * stiffness - pushed.sum(0, dtype=torch.float64)
        searching = active & (slope.abs() > goal)
        if not searching.any():
            break
        bend = stiffness + (pushed * (1 - miss) * change).sum(0, dtype=torch.float64)
        low, high = torch.where(slope < 0, step, low), torch.where(slope > 0, step, high)
        newton = step - slope / bend
        middle = torch.where(high.isinf(), 2 * step, (low + high) / 2)
        better = torch.where((newton > low) & (newton < high), newton, middle)
        step = torch.where(searching, better, step)
    return torch.where(active, step, 0.0)
