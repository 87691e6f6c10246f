"""KernelSHAP: Shapley values as a weighted least squares problem.

    minimise  sum_T w(T) (v(T) - v(none) - phi . z_T)^2   subject to  sum_i phi_i = v(all) - v(none)

over the coalitions of `coalitions.shapley` (Lundberg and Lee 2017, arXiv 1705.07874, theorem 2).
With all 2^n coalitions phi are the Shapley values, to rounding. The constraint is exact, by
elimination; captum's `KernelShap` approximates it by two rows of weight 1e6, draws without pairs,
and repeats its passes for every objective. shap's KernelExplainer, which the code for
arXiv 2512.05038 calls with 500 samples, enumerates and pairs as we do; it may keep only some
features by an L1 penalty, which we never do.

What the values do not show: their sampling error. A pair T and its complement is one equation, so
there must be more than n - 1 of them, and near that number errors are large: take a budget of
several times 2 n and compare seeds.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.attribution.coalitions import check_values, ends


def kernel_shap(
    coalitions: Bool[np.ndarray, "coalition player"],
    weights: Float[np.ndarray, " _"],
    values: Float[np.ndarray, "_ objective"],
) -> Float[np.ndarray, "player objective"]:
    """Shapley values, exact when all coalitions are given, else estimated.

    Args:
        coalitions: Rows of `coalitions.shapley`, the empty and the full one among them.
        weights: `[coalition]`, of the same plan.
        values: `[coalition, objective]`, what the game returned for them.

    Returns:
        Values that add up to v(all) - v(none).

    Raises:
        ValueError: Values or weights of other coalitions, no empty or no full coalition, or too
            few coalitions to tell the players apart.

    Example:
        >>> z = np.array([[0, 0], [1, 1], [0, 1], [1, 0]], dtype=bool)
        >>> v = np.array([[0.0], [4.0], [1.0], [1.0]])
        >>> kernel_shap(z, np.array([np.inf, np.inf, 0.5, 0.5]), v).round(6).ravel()
        array([2., 2.])
    """
    check_values(coalitions, values)
    none, full = ends(coalitions, values)
    z, w, v = interior(coalitions, weights, values)
    n = coalitions.shape[1]
    share = (full - none) / n
    if n == 1:
        return np.asarray(share[None])
    # phi = share + basis @ psi meets the constraint for every psi.
    basis = np.linalg.qr(np.concatenate([np.ones((n, 1)), np.eye(n)[:, :-1]], axis=1))[0][:, 1:]
    root = np.sqrt(w)[:, None]
    target = v - none - z.sum(1, keepdims=True) * share
    psi, _, rank, _ = np.linalg.lstsq(root * (z @ basis), root * target, rcond=1e-10)
    if rank < n - 1:
        raise ValueError(
            f"{len(z)} coalitions tell apart {rank} of the {n - 1} differences between {n} "
            f"players: raise the budget, to 4 n = {4 * n} or more, or group the players."
        )
    phi: Float[np.ndarray, "player objective"] = share + basis @ psi
    return phi


def interior(
    coalitions: Bool[np.ndarray, "coalition player"],
    weights: Float[np.ndarray, " _"],
    values: Float[np.ndarray, "_ objective"],
) -> tuple[
    Float[np.ndarray, "inner player"],
    Float[np.ndarray, " inner"],
    Float[np.ndarray, "inner objective"],
]:
    """Coalitions that are neither empty nor full, as numbers, with weights and values.

    Raises:
        ValueError: Another number of weights, or one that is not positive and finite.
    """
    if weights.shape != (len(coalitions),):
        raise ValueError(f"{len(weights)} weights for {len(coalitions)} coalitions: give one each.")
    size = coalitions.sum(1)
    inner = (size > 0) & (size < coalitions.shape[1])
    w = weights[inner].astype(np.float64)
    if not (np.isfinite(w) & (w > 0)).all():
        raise ValueError(
            "weights between the empty and the full coalition must be positive and finite: give "
            "those of coalitions.shapley."
        )
    return coalitions[inner].astype(np.float64), w, values[inner].astype(np.float64)
