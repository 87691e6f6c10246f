"""SHAP-IQ: the Shapley interaction index of orders 1 and 2 from one weighted sum over coalitions.

    phi_S = sum_T v0(T) gamma(|T|, |T n S|),   v0 = v - v(none),   s = |S|,
    gamma(t, a) = (-1)^(s - a) / ((n - s + 1) C(n - s, t - a))

(Fumagalli et al. 2023, arXiv 2303.01179; the index: Grabisch and Roubens 1999). Order 1 is the
Shapley value. With plan weights w(T) that stand for the Shapley kernel mu (`coalitions.shapley`)
gamma / mu has no binomials left, and every |S| is estimated from the same values, without bias:

    order 1:  n (z_i - t / n) / (n - 1)
    order 2:  n (n - t) / ((n - 1) (t - 1))  with both players in,  -n / (n - 1)  with one,
              n t / ((n - 1) (n - t - 1))  with none;

the full coalition adds v0(all) / (n - s + 1). The sum is exact when all coalitions are given.
`k_sii` makes of both orders an explanation that adds up: players and pairs sum to v0(all)
(Lundberg et al. 2020; Bordt and von Luxburg 2023).

Control variate: of order 2 the estimator's noise is that of the whole value, though pairs are
small. `shap_iq_pairs` subtracts the additive game with KernelSHAP's values first, of which every
true interaction is zero; `control=False` does not. The bias that comes from fitting it on the same
coalitions vanishes as they grow. With it order 1 would be KernelSHAP itself, whose normal equations
say that what its fit leaves over has the sum 0; so `shap_iq` is the plain sum.

Why ours: shapiq's approximators draw coalitions of their own for each index and objective, so no
pass could be shared; the exact values are the same (tested where shapiq is installed). The code for
arXiv 2512.05038 uses order 1, budget 512, and sets values below 1e-5 to 0, which we do not.

What the numbers do not show: their sampling error, much larger than KernelSHAP's at equal budget
(table in `coalition_methods`), and larger at order 2. Compare seeds before reading a pair.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.attribution.coalitions import check_values, ends
from sa_plugin.attribution.kernel_shap import interior, kernel_shap


def shap_iq(
    coalitions: Bool[np.ndarray, "coalition player"],
    weights: Float[np.ndarray, " _"],
    values: Float[np.ndarray, "_ objective"],
    *,
    order: int = 1,
) -> Float[np.ndarray, "player objective"]:
    """Shapley values, by the sum; they need not add up unless all coalitions are given.

    Args:
        coalitions: Rows of `coalitions.shapley`, the empty and the full one among them.
        weights: `[coalition]`, of the same plan.
        values: `[coalition, objective]`, what the game returned for them.
        order: 1, or 2 for the main effects beside the pairs of `shap_iq_pairs` (`k_sii`).

    Raises:
        ValueError: Values or weights of other coalitions, no empty or no full coalition, or
            another order.

    Example:
        >>> z = np.array([[0, 0], [1, 1], [0, 1], [1, 0]], dtype=bool)
        >>> v = np.array([[0.0], [4.0], [1.0], [1.0]])
        >>> shap_iq(z, np.array([np.inf, np.inf, 0.5, 0.5]), v).ravel()
        array([2., 2.])
    """
    if order not in (1, 2):
        raise ValueError(f"order is {order}: give 1, or 2 for main effects beside pairs.")
    if order == 2:
        pairs = shap_iq_pairs(coalitions, weights, values)
        return k_sii(shap_iq(coalitions, weights, values), pairs)
    check_values(coalitions, values)
    none, full = ends(coalitions, values)
    z, w, v = interior(coalitions, weights, values)
    n = coalitions.shape[1]
    if n == 1:
        return np.asarray((full - none)[None])
    t = z.sum(1, keepdims=True)
    gamma = w[:, None] * (n * z - t) / (n - 1)
    phi: Float[np.ndarray, "player objective"] = (full - none) / n + gamma.T @ (v - none)
    return phi


def shap_iq_pairs(
    coalitions: Bool[np.ndarray, "coalition player"],
    weights: Float[np.ndarray, " _"],
    values: Float[np.ndarray, "_ objective"],
    *,
    control: bool = True,
) -> Float[np.ndarray, "player player objective"]:
    """Order 2: the interaction index of every pair; symmetric, the diagonal zero.

    Args:
        coalitions: Rows of `coalitions.shapley`, the empty and the full one among them.
        weights: `[coalition]`, of the same plan.
        values: `[coalition, objective]`, what the game returned for them.
        control: Subtract the additive game of KernelSHAP's values first.

    Raises:
        ValueError: As `shap_iq`, fewer than two players, or, with the control, as `kernel_shap`.
    """
    n = coalitions.shape[1]
    if n < 2:
        raise ValueError(f"{n} player has no pairs: give two at least.")
    check_values(coalitions, values)
    if control:
        additive = kernel_shap(coalitions, weights, values)
        values = values - coalitions.astype(np.float64) @ additive
    none, full = ends(coalitions, values)
    z, w, v = interior(coalitions, weights, values)
    t = z.sum(1)
    # Where a case cannot occur its denominator is 0; 1 stands in and no pair meets it.
    both = n * (n - t) / ((n - 1) * np.maximum(t - 1, 1))
    one = np.full(len(t), -n / (n - 1))
    neither = n * t / ((n - 1) * np.maximum(n - t - 1, 1))
    pairs = np.empty((n, n, values.shape[1]))
    for k in range(values.shape[1]):
        out, worth = 1 - z, w * (v[:, k] - none[k])
        cross = z.T @ ((one * worth)[:, None] * out)
        pairs[:, :, k] = z.T @ ((both * worth)[:, None] * z) + cross + cross.T
        pairs[:, :, k] += out.T @ ((neither * worth)[:, None] * out) + (full - none)[k] / (n - 1)
    pairs[np.arange(n), np.arange(n)] = 0.0
    return pairs


def k_sii(
    singles: Float[np.ndarray, "player objective"],
    pairs: Float[np.ndarray, "_ _ _"],
) -> Float[np.ndarray, "player objective"]:
    """Main effects that with the pairs add up: phi_i - sum_j phi_ij / 2 (k-SII of order 2).

    Args:
        singles: Of `shap_iq` or `kernel_shap`.
        pairs: `[player, player, objective]`, of `shap_iq_pairs`.

    Raises:
        ValueError: Of other players or objectives.
    """
    n, k = singles.shape
    if pairs.shape != (n, n, k):
        raise ValueError(
            f"pairs have shape {list(pairs.shape)}, singles [{n}, {k}]: give pairs [{n}, {n}, {k}]."
        )
    main: Float[np.ndarray, "player objective"] = singles - pairs.sum(1) / 2
    return main
