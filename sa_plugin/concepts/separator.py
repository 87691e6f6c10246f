"""Linear separator of a concept: balanced, penalised logistic regression without intercept.

For each concept, with `n_1` rows in it and `n_0` outside, in normalised space,

`min_w  1/(2 n_1) sum_in log(1 + exp(-w.x)) + 1/(2 n_0) sum_out log(1 + exp(w.x)) + lam/2 |w|^2`

This is the model of arXiv 2512.05038 (a linear layer without bias, binary cross-entropy, classes
balanced, weight decay 1e-4), with the balance as weights instead of a draw, and solved to the one
optimum it has instead of by a stopped Adam (`separator_adam`). scikit-learn's `LogisticRegression`
with `fit_intercept=False`, `sample_weight` 1/(2 n_1) or 1/(2 n_0) and `C = 1/lam` has the same
optimum. How it is solved and when it stops: `_logistic.py`.

The activation is `w.x`: no offset, and `w` is not of unit length, so its size is no distance. Where
rows are a capped sample, the means are over the stored rows of each class.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.concepts._logistic import Solution, preconditioner, solve
from sa_plugin.concepts._rows import MEMORY, blocks, stored_labels, stored_rows
from sa_plugin.concepts.statistics import LayerStatistics

LAM = 1e-4
TOL = 1e-3
MAX_ITER = 200


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
    rows = stored_rows(statistics, "separator")
    read = blocks(rows, "separator", memory)
    start = preconditioner(read, len(rows), rows.d_model, lam)
    solution = solve(read, labels, start, lam=lam, tol=tol, max_iter=max_iter)
    warn_unless_converged(solution, "separator", lam)
    return solution.weights, {"lam": lam, "tol": tol, "rows": len(rows), **describe(solution, lam)}


def describe(solution: Solution, lam: float) -> dict[str, list[Any]]:
    """How each fit went, as plain lists."""
    names = ("iterations", "gradient_norm", "objective", "converged")
    record = {name: getattr(solution, name).tolist() for name in names}
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
        stacklevel=3,
    )
