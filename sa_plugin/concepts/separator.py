"""Linear separators of concepts: balanced logistic regression without intercept.

For each concept, with `n_1` rows in it and `n_0` outside (rows whose label is unknown are neither), in
normalised space,

`min_w  1/(2 n_1) sum_in log(1 + exp(-w.x)) + 1/(2 n_0) sum_out log(1 + exp(w.x)) + lam/2 |w|^2`

This is the model of arXiv 2512.05038 (a linear layer without bias, binary cross-entropy, classes
balanced, weight decay 1e-4), with the balance as weights instead of a draw, and solved to the one
optimum it has. scikit-learn's `LogisticRegression` with `fit_intercept=False`, `sample_weight`
1/(2 n_1) or 1/(2 n_0) and `C = 1/lam` has the same optimum. The activation is `w.x`: no offset, and
`w` is not of unit length, so its size is no distance. Where rows are a capped sample, the means are
over the stored rows of each class.

*How it is solved.* All labels jointly: L-BFGS for each, in step, so that an iteration costs two
products with the rows, `X @ directions` and `X^T @ residuals`, whatever the number of labels. The
starting inverse Hessian is that of the bound `X^T X / 4n + lam I` (Böhning 1992), shared by all
labels and taken from an even sample of the rows: a preconditioner moves the path, not the optimum.
Along a direction the margins are linear in the step, so the line search needs no further product.
Labels that are done leave the products, and many labels are solved some hundreds at a time.

*When it stops.* The objective f is `lam`-strongly convex, hence `|w - w*| <= |grad f(w)| / lam`. A
label is done when `|grad f| <= tol lam |w|`, which certifies `|w - w*| <= tol |w|` and an angle to
the optimum of at most `asin(tol)`; or when the gradient is lost in float32 rounding,
`|grad f| <= 2^-22 rms|x|`.

*The paper's own recipe*, `separator_adam`: one linear layer without bias, initialised as
`torch.nn.Linear` is, on as many rows in the concept as outside it (the larger class undersampled);
Adam with learning rate 1e-3 times 0.8 every 5 epochs and weight decay 1e-4, batches of 64, at most
1,000 epochs. It stops once F1 on its own rows reaches .99, or after 20 epochs in which the loss
fell by less than 1e-3 below its best (the authors' code, which draws unseeded). The result depends
on the draw, the order of batches and the moment of stopping; it is no optimum of anything. The
shrinking steps add up to .025, so a weight moves by about .025 times the batches of an epoch at
most: by .1 with a hundred rows in the concept (4 batches), and the loss ends not far below log 2.
Kept to compare with published figures.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from sa_plugin._check import users_line
from sa_plugin.concepts.train_statistics import (
    MEMORY,
    Blocks,
    LayerStatistics,
    refuse_non_finite,
    row_blocks,
    stored_labels,
    stored_rows,
)

LAM = 1e-4
TOL = 1e-3
MAX_ITER = 200
MEMORY_PAIRS = 10
ROUNDING = 2.0**-22
PRECONDITIONER_ROWS = 4  # times d_model
# Labels in one product, numbers kept for the rows of these, and of a piece of rows that stays in a cache.
LABELS_AT_ONCE, MARGIN_VALUES, CACHED_VALUES = 256, 1 << 24, 1 << 18
# Labels that have to be done before they leave: a product of a few columns less costs no less.
DONE_LABELS = 32
# A vector for each label, and a number for each row under each label.
Columns = Float[Tensor, "d_model label"]
Margins = Float[Tensor, "row label"]
Pair = tuple[Columns, Columns]
LEAST_GAIN = 1e-3
STEP_EPOCHS = 5
STEP_FACTOR = 0.8


class NotConvergedWarning(UserWarning):
    """Some separators did not reach the stated tolerance."""


def separator(
    statistics: LayerStatistics,
    *,
    seed: int = 0,
    lam: float = LAM,
    tol: float = TOL,
    max_iter: int = MAX_ITER,
    memory: int = MEMORY,
) -> tuple[Float[Tensor, "concept d_model"], dict[str, Any]]:
    """Solve all concepts jointly; deterministic.

    Args:
        statistics: With `rows` and `labels`.
        seed: Ignored: the optimum is unique and nothing is drawn.
        lam: Weight of the penalty.
        tol: Largest relative error `|w - w*| / |w|`, certified by the gradient's norm.
        max_iter: Steps at most; a step reads the rows twice.
        memory: Bytes of float32 rows to keep in memory; above it, rows are normalised anew at
            every reading.

    Returns:
        Vectors in float32, and a record with `lam`, `tol`, `rows`, and for each concept
        `iterations`, `gradient_norm`, `objective`, `converged` and `error_bound`, the certified
        `|w - w*| / |w|`. Float32 rows end it near 1e-4 at the default `lam`, whatever `tol`.

    Raises:
        ValueError: No rows, a row with NaN or Inf, a concept with one class only, or an option
            out of range.

    Warns:
        NotConvergedWarning: Some concepts used up `max_iter`.
    """
    check_options(lam, tol, max_iter)
    labels = torch.tensor(stored_labels(statistics, "separator"))
    known = None if statistics.known is None else torch.tensor(statistics.known)
    rows = stored_rows(statistics, "separator")
    read = row_blocks(rows, "separator", memory)
    start = preconditioner(read, len(rows), rows.d_model, lam)
    solution = solve(read, labels, start, lam=lam, tol=tol, max_iter=max_iter, known=known)
    warn_unless_converged(solution, "separator", lam)
    return solution.weights, {"lam": lam, "tol": tol, "rows": len(rows), **describe(solution, lam)}


def describe(solution: Solution, lam: float) -> dict[str, list[Any]]:
    """How each fit went, as plain lists."""
    record = {name: one.tolist() for name, one in solution._asdict().items() if name != "weights"}
    return {**record, "error_bound": error_bound(solution, lam).tolist()}


def error_bound(solution: Solution, lam: float) -> Float[Tensor, " label"]:
    """Certified relative error `|grad f_c| / (lam |w|)`; finite, so that JSON can hold it."""
    length = solution.weights.double().norm(dim=1)
    return torch.nan_to_num(solution.gradient_norm / (lam * length))


def check_options(lam: float, tol: float, max_iter: int) -> None:
    """Refuse options outside their range.

    Raises:
        ValueError: The text names the option, its value and its range.
    """
    if not 0 < lam < float("inf"):
        raise ValueError(f"lam is {lam}: it must be above 0, or separable data have no optimum.")
    if not 0 < tol < 1:
        raise ValueError(f"tol is {tol}: a relative error between 0 and 1 is meant.")
    if max_iter < 1:
        raise ValueError(f"max_iter is {max_iter}: it must be 1 or more.")


def warn_unless_converged(solution: Solution, kind: str, lam: float) -> None:
    """Warn about labels that used up their steps.

    Warns:
        NotConvergedWarning: With their columns and the largest error that can be left.
    """
    if solution.converged.all():
        return
    late = (~solution.converged).nonzero().flatten()
    norm, error = solution.gradient_norm[late], error_bound(solution, lam)[late]
    warnings.warn(
        f"{kind}: columns {late.tolist()} stopped after {int(solution.iterations.max())} steps "
        f"with a gradient norm of up to {float(norm.max()):.1e}, which bounds the relative error "
        f"of the vectors by {float(error.max()):.1e} only: raise max_iter, lam or tol.",
        NotConvergedWarning,
        stacklevel=users_line(),
    )


class Solution(NamedTuple):
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


class Preconditioner(NamedTuple):
    """Cholesky factor of `X^T X / 4n + lam I`, and the rows' root mean square norm."""

    factor: Float[Tensor, "d_model d_model"]
    rms: float


def preconditioner(blocks: Blocks, n_rows: int, d_model: int, lam: float) -> Preconditioner:
    """Factor the bound on an even sample of the rows."""
    # A few times d_model rows fix the directions that matter; the bound need not be exact to speed up.
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
    known: Bool[Tensor, "row label"] | None = None,
) -> Solution:
    """Minimise every `f_c`.

    Args:
        blocks: Iterates over the rows in order.
        labels: With both classes in every column.
        start: Of these rows, at this `lam`.
        lam: Weight of the penalty, above 0.
        tol: Certified relative error of each vector.
        max_iter: Steps at most.
        known: Which labels count; None for all.
    """
    # Wide enough that products run at their best, and so few that what is kept of each row stays small.
    width = max(1, min(LABELS_AT_ONCE, MARGIN_VALUES // max(1, len(labels))))
    parts = []
    for k in range(0, max(1, labels.shape[1]), width):
        some = slice(k, k + width)
        pull = _pull(labels[:, some], None if known is None else known[:, some])
        parts.append(_solve_together(blocks, pull, start, lam, tol, max_iter))
    return Solution(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _solve_together(
    blocks: Blocks, pull: Margins, start: Preconditioner, lam: float, tol: float, max_iter: int
) -> Solution:
    d_model, n_labels = len(start.factor), pull.shape[1]
    found = Solution(
        torch.zeros(n_labels, d_model),
        torch.zeros(n_labels, dtype=torch.int64),
        torch.zeros(n_labels, dtype=torch.float64),
        torch.zeros(n_labels, dtype=torch.float64),
        torch.zeros(n_labels, dtype=torch.bool),
    )
    # The labels that are still in the products.
    at = torch.arange(n_labels)
    w = torch.zeros(d_model, n_labels, dtype=torch.float64)
    # How far a row lies on the wrong side. Updated along the step, so an iteration reads the rows twice.
    wrong = torch.zeros_like(pull)
    gradient = _gradient(blocks, wrong, pull, w, lam)
    history: deque[Pair] = deque(maxlen=MEMORY_PAIRS)
    while True:
        active = ~_converged(gradient, w, lam, tol, start.rms)
        last = not active.any() or int(found.iterations.max()) == max_iter
        if last or int((~active).sum()) >= DONE_LABELS:
            # Labels that are done leave the products.
            done = torch.ones_like(active) if last else ~active
            into = at[done]
            found.weights[into] = w.T[done].float()
            found.gradient_norm[into] = gradient.norm(dim=0)[done]
            found.objective[into] = _objective(wrong, pull, w, lam)[done]
            found.converged[into] = ~active[done]
            if last:
                return found
            at, w, gradient, wrong, pull = (
                at[active],
                *(each[:, active] for each in (w, gradient, wrong, pull)),
            )
            history = deque(((a[:, active], b[:, active]) for a, b in history), MEMORY_PAIRS)
            active = active[active]
        # Of those that stay, labels that are done take steps of zero.
        found.iterations[at] += active
        direction = -_apply_inverse_hessian(gradient, history, start.factor)
        change = _products(blocks, direction, pull)
        step = _line_search(wrong, change, pull, w, direction, gradient, lam, active)
        w_next = w + step * direction
        wrong.addcmul_(change, step.float())
        gradient_next = _gradient(blocks, wrong, pull, w_next, lam)
        history.append((w_next - w, gradient_next - gradient))
        w, gradient = w_next, gradient_next


def _pull(labels: Bool[Tensor, "row label"], known: Bool[Tensor, "row label"] | None) -> Margins:
    """A row's weight in its class, with the sign of the side where it belongs."""
    n_in = labels.sum(0).double()
    n = len(labels) if known is None else known.sum(0)
    # Either class weighs one half, however rare the concept is.
    inside, outside = (0.5 / n_in).float(), (0.5 / (n - n_in)).float()
    pull = torch.where(labels, inside, -outside)
    # A row without weight is in no sum: unknown tokens are neither in the concept nor outside.
    return pull if known is None else pull * known


def _converged(gradient: Columns, w: Columns, lam: float, tol: float, rms: float) -> Bool[Tensor, " label"]:
    # f_c is lam-strongly convex, so |w - w*| <= |grad| / lam; below rounding no gradient gets smaller.
    certified = tol * lam * w.norm(dim=0)
    return torch.le(gradient.norm(dim=0), certified.clamp_min(ROUNDING * rms))


def _pieces(values: Margins) -> Iterator[slice]:
    """Rows of which a number for each label fits into a fast cache: several passes there cost one outside."""
    rows = max(1, CACHED_VALUES // max(1, values.shape[1]))
    yield from (slice(k, k + rows) for k in range(0, len(values), rows))


def _objective(wrong: Margins, pull: Margins, w: Columns, lam: float) -> Float[Tensor, " label"]:
    total = lam / 2 * w.square().sum(0)
    for part in _pieces(wrong):
        total += softplus(wrong[part]).mul_(pull[part].abs()).sum(0, dtype=torch.float64)
    return total


def _products(blocks: Blocks, vectors: Columns, pull: Margins) -> Margins:
    """By how much each row gets further on the wrong side."""
    out = torch.empty_like(pull)
    single = vectors.float()
    for part, x in blocks():
        torch.matmul(x, single, out=out[part])
    for part in _pieces(out):
        out[part] *= pull[part].sign().neg_()
    return out


def _gradient(blocks: Blocks, wrong: Margins, pull: Margins, w: Columns, lam: float) -> Columns:
    # Products in float32, sums in float64: the error of a long sum would end the descent early.
    total = lam * w
    for part, x in blocks():
        miss, toward = wrong[part], pull[part]
        for piece in _pieces(miss):
            residual = torch.sigmoid(miss[piece]).mul_(toward[piece])
            total -= (x[piece].T @ residual).double()
    return total


def _apply_inverse_hessian(
    gradient: Columns, history: deque[Pair], factor: Float[Tensor, "d_model d_model"]
) -> Columns:
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4), a label a column."""
    q, alphas = gradient.clone(), []
    # Newest pair first on the way in, oldest first on the way out; the factor stands for the start.
    for moved, turned in reversed(history):
        inverse = _inverse_curvature(moved, turned)
        alpha = inverse * (moved * q).sum(0)
        q -= alpha * turned
        alphas.append((inverse, alpha))
    q = torch.cholesky_solve(q, factor)
    for (moved, turned), (inverse, alpha) in zip(history, reversed(alphas), strict=True):
        q += (alpha - inverse * (turned * q).sum(0)) * moved
    return q


def _inverse_curvature(moved: Columns, turned: Columns) -> Float[Tensor, " label"]:
    curvature = (moved * turned).sum(0)
    # A label that is done did not move: its pairs must count for nothing.
    return torch.where(curvature > 0, 1 / curvature, 0.0)


def _line_search(
    wrong: Margins,
    change: Margins,
    pull: Margins,
    w: Columns,
    direction: Columns,
    gradient: Columns,
    lam: float,
    active: Bool[Tensor, " label"],
) -> Float[Tensor, " label"]:
    """Step at which the slope is a tenth of its start: Newton's method inside a bracket."""
    # Penalty and slope along the line are polynomials of the step: only the margins are looked at anew.
    goal = 0.1 * (gradient * direction).sum(0).abs()
    along = lam * (w * direction).sum(0)
    stiffness = lam * direction.square().sum(0)
    step, low = torch.ones_like(goal), torch.zeros_like(goal)
    high = torch.full_like(goal, torch.inf)
    for _ in range(40):
        slope, bend = along + step * stiffness, stiffness.clone()
        single = step.float()
        for part in _pieces(wrong):
            moved = change[part]
            miss = torch.addcmul(wrong[part], moved, single).sigmoid_()
            pushed = pull[part].abs().mul_(moved).mul_(miss)
            slope += pushed.sum(0, dtype=torch.float64)
            bend += pushed.mul_(moved).mul_(miss.neg_().add_(1)).sum(0, dtype=torch.float64)
        searching = active & (slope.abs() > goal)
        if not searching.any():
            break
        # The objective falls up to its minimum along the line and rises behind it: the bracket closes.
        low, high = torch.where(slope < 0, step, low), torch.where(slope > 0, step, high)
        newton = step - slope / bend
        middle = torch.where(high.isinf(), 2 * step, (low + high) / 2)
        # Newton's step where it stays inside the bracket, or else half of it (twice, while it is open).
        better = torch.where((newton > low) & (newton < high), newton, middle)
        step = torch.where(searching, better, step)
    return torch.where(active, step, 0.0)


F1_ENOUGH = 0.99


def separator_adam(
    statistics: LayerStatistics,
    *,
    seed: int = 0,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    batch_rows: int = 64,
    max_epochs: int = 1000,
    patience: int = 20,
) -> tuple[Float[Tensor, "concept d_model"], dict[str, Any]]:
    """Train each concept's separator in turn.

    Args:
        statistics: With `rows` and `labels`.
        seed: Of the draw of rows, the first weights and the order of batches; each concept has its
            own stream, by its column.
        learning_rate: Of Adam, before its steps down.
        weight_decay: Of Adam.
        batch_rows: Rows in a batch.
        max_epochs: Epochs at most.
        patience: Epochs without gain after which training stops.

    Returns:
        Vectors in float32, and a record with the settings and, for each concept, `epochs`, the
        last epoch's `loss`, and `f1` and number of `rows` of its balanced train rows.

    Raises:
        ValueError: No rows, a row with NaN or Inf, a concept with one class only, or an option
            below 1.
    """
    for name, value in (("batch_rows", batch_rows), ("max_epochs", max_epochs), ("patience", patience)):
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be 1 or more.")
    rows = stored_rows(statistics, "separator_adam")
    labels = stored_labels(statistics, "separator_adam")
    vectors = []
    record: dict[str, list[Any]] = {"epochs": [], "loss": [], "f1": [], "rows": []}
    for column, inside in enumerate(labels.T):
        rng = np.random.default_rng([seed, column])
        outside = ~inside if statistics.known is None else statistics.known[:, column] & ~inside
        drawn = _balanced(inside, outside, rng)
        x = rows.take(drawn)
        refuse_non_finite(x, drawn, len(rows), "separator_adam")
        y = torch.tensor(inside[drawn], dtype=torch.float32)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        w, went = _train(x, y, generator, learning_rate, weight_decay, batch_rows, max_epochs, patience)
        vectors.append(w)
        for name, value in {**went, "rows": len(drawn)}.items():
            record[name].append(value)
    settings = {
        "seed": seed,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "batch_rows": batch_rows,
        "max_epochs": max_epochs,
        "patience": patience,
    }
    return torch.stack(vectors), {**settings, **record}


def _balanced(
    inside: Bool[np.ndarray, " row"], outside: Bool[np.ndarray, " row"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Row numbers, ascending, of equally many rows of either class, without replacement."""
    classes = np.flatnonzero(inside), np.flatnonzero(outside)
    size = min(map(len, classes))
    return np.sort(np.concatenate([rng.choice(c, size, replace=False) for c in classes]))


def _train(
    x: Float[Tensor, "row d_model"],
    y: Float[Tensor, " row"],
    generator: torch.Generator,
    learning_rate: float,
    weight_decay: float,
    batch_rows: int,
    max_epochs: int,
    patience: int,
) -> tuple[Float[Tensor, " d_model"], dict[str, Any]]:
    bound = x.shape[1] ** -0.5
    w = torch.empty(x.shape[1]).uniform_(-bound, bound, generator=generator).requires_grad_()
    adam = torch.optim.Adam([w], lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(adam, STEP_EPOCHS, STEP_FACTOR)
    epochs, best, waited, f1, loss = 0, float("inf"), 0, 0.0, float("nan")
    while epochs < max_epochs and waited < patience and f1 < F1_ENOUGH:
        loss = 0.0
        order = torch.randperm(len(x), generator=generator)
        for first in range(0, len(x), batch_rows):
            batch = order[first : first + batch_rows]
            adam.zero_grad()
            batch_loss = binary_cross_entropy_with_logits(x[batch] @ w, y[batch])
            batch_loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            loss += float(batch_loss.detach()) * len(batch) / len(x)
        schedule.step()
        f1 = _f1(x @ w.detach() > 0, y > 0)
        best, waited = (loss, 0) if best - loss > LEAST_GAIN else (best, waited + 1)
        epochs += 1
    return w.detach(), {"epochs": epochs, "loss": loss, "f1": f1}


def _f1(predicted: Bool[Tensor, " row"], true: Bool[Tensor, " row"]) -> float:
    hits = int((predicted & true).sum())
    return 2 * hits / max(1, int(predicted.sum()) + int(true.sum()))
