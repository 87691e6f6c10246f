"""LIME, KernelSHAP, RISE and SHAP-IQ: importance from the values of coalitions.

All four read rows z_T of `coalitions` and the values v(T) that a game gave for them, for all its
objectives at once; they make no passes of their own.

**KernelSHAP**: Shapley values as a weighted least squares problem,

    minimise  sum_T w(T) (v(T) - v(none) - phi . z_T)^2   subject to  sum_i phi_i = v(all) - v(none)

over the coalitions of `coalitions.shapley` (Lundberg and Lee 2017, arXiv 1705.07874, theorem 2).
With all 2^n coalitions phi are the Shapley values, to rounding. The constraint is exact, by
elimination; captum's `KernelShap` approximates it by two rows of weight 1e6, draws without pairs,
and repeats its passes for every objective. shap's KernelExplainer, which the code for
arXiv 2512.05038 calls with 500 samples, enumerates and pairs as we do; it may keep only some
features by an L1 penalty, which we never do. What the values do not show: their sampling error. A
pair T and its complement is one equation, so there must be more than n - 1 of them, and near that
number errors are large: take a budget of several times 2 n and compare seeds.

**LIME**: the slopes of a linear model of the value, fitted near the unmasked sample,

    minimise  sum_T pi(T) (v(T) - b - w . z_T)^2 + alpha |w|^2,   importance of player i = w_i,
    pi(T) = exp(-d(T)^2 / (2 width^2)),   d(T) = 1 - sqrt(|T| / n), the cosine distance of z_T to
    the vector of ones (Ribeiro et al. 2016, arXiv 1602.04938, and the authors' package `lime`,
    whose kernel is this one with width 0.25, and whose surrogate is ridge with alpha 1).

The code for arXiv 2512.05038 fits another thing under this name: no weights pi, but columns
z_i omega_i with omega_i = exp(-|E_i - E_i0|^2 / 2 sigma^2), how far masking moved patch i's own
embedding, so its "weights" rescale features and not samples, by gradient descent. Its masks are
ours: 1000 Bernoulli ones of probability 0.5, alpha 1. `width=None` drops pi. captum's `Lime` runs
one explanation of one objective over passes of its own and weighs by distances of embeddings;
given our coalitions, kernel and ridge it gives the same slopes (tested). What the slopes do not
show: interactions, which they average over the coalitions drawn, and their own error: two seeds
differ, compare them.

**RISE**: the mean value of the coalitions that keep a player,

    importance of player i = sum_T v(T) z_Ti / sum_T z_Ti   (Petsiuk et al. 2018, arXiv 1806.07421),

with masks at the resolution of the players, neither upsampled nor shifted, as in the code for
arXiv 2512.05038, which normalises by mask counts too (the paper: by their expected number N p).
captum has no RISE. What the number does not show: a sign. It is a mean value, not a difference: a
player of no effect gets the mean of all coalitions, so only differences between players tell. With
`keep` near 0 or 1, or few coalitions, the noise of the other players dominates.

**SHAP-IQ**: the Shapley interaction index of orders 1 and 2 from one weighted sum over coalitions,

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
(Lundberg et al. 2020; Bordt and von Luxburg 2023). Of order 2 the estimator's noise is that of the
whole value, though pairs are small. So `shap_iq_pairs` subtracts a control variate first: the
additive game with KernelSHAP's values, of which every true interaction is zero; `control=False`
does not. The bias that comes from fitting it on the same coalitions vanishes as they grow. With it
order 1 would be KernelSHAP itself, whose normal equations say that what its fit leaves over has the
sum 0; so `shap_iq` is the plain sum. Why ours: shapiq's approximators draw coalitions of their own
for each index and objective, so no pass could be shared; the exact values are the same (tested
where shapiq is installed). The code for arXiv 2512.05038 uses order 1, budget 512, and sets values
below 1e-5 to 0, which we do not. What the numbers do not show: their sampling error, much larger
than KernelSHAP's at equal budget (table below), and larger at order 2. Compare seeds before reading
a pair.

**How many coalitions** each reads:

| preset | LIME, RISE | KernelSHAP | SHAP-IQ | passes of all four where draws nest |
|---|---|---|---|---|
| "paper" | 1000 | 500 | 512 | 1512, or 1000 + 4 a player |
| "fast" | 256 | 256 | 256 | 512, or 256 + 4 a player |

"paper" has the numbers in the code for arXiv 2512.05038, with one difference: KernelSHAP and
SHAP-IQ read at least 4 coalitions a player. For 256 patches the authors' 500 are 249 pairs, fewer
than the 255 that Shapley values take at least; shap's KernelExplainer can still answer by an L1
penalty, which we do not use. `n_coalitions` overrules both numbers. With one seed LIME and RISE
read the same coalitions, and SHAP-IQ's contain KernelSHAP's where both enumerate the same sizes.
Draws that repeat are read once.

How far to trust "paper": correlation with the Shapley values of a saturating game with pairs
(tests/attribution_toy.py, `smooth_game`), mean over five seeds:

| players | LIME | KernelSHAP | RISE | SHAP-IQ |
|---|---|---|---|---|
| 40 | .99 | 1.00 | .97 | .85 |
| 256 | .93 | .93 | .84 | .49 |

So for images SHAP-IQ's sum is mostly noise at such budgets: raise `n_coalitions`, or group patches
(`players.superpatches`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sa_plugin._check import require_known
from sa_plugin.attribution.coalitions import CoalitionPlan, Coalitions, bernoulli, shapley
from sa_plugin.attribution.explained import PlayerValues
from sa_plugin.attribution.game import CoalitionGame

# A weight, and the objectives' values, for each coalition.
Weights = Float[np.ndarray, " _"]
Values = Float[np.ndarray, "_ objective"]
COALITION_METHODS = ("lime", "kernel_shap", "rise", "shap_iq")
_OF_BERNOULLI = ("lime", "rise")
BUDGETS: Mapping[str, Mapping[str, int]] = {
    "paper": {"lime": 1000, "kernel_shap": 500, "rise": 1000, "shap_iq": 512},
    "fast": {"lime": 256, "kernel_shap": 256, "rise": 256, "shap_iq": 256},
}
"""How many coalitions each method reads, by preset."""
_LEAST_PER_PLAYER = 4
"""Coalitions a player of the Shapley plans, whatever the preset; see the module's text."""
KERNEL_WIDTH = 0.25
"""Of LIME's kernel, in cosine distance."""


def explain_coalitions(
    game: CoalitionGame,
    method: str,
    *,
    preset: str = "paper",
    n_coalitions: int | None = None,
    seed: int = 0,
    **options: Any,
) -> PlayerValues:
    """Importance of every player for every objective of a game.

    Cost: one pass for each coalition of the plan that the game does not know yet.

    Args:
        game: Of `coalition_game`.
        method: "lime", "kernel_shap", "rise" or "shap_iq".
        preset: "paper" or "fast".
        n_coalitions: Instead of the preset's.
        seed: Of the coalitions.
        **options: Of the method's own function: `alpha` and `width` of `lime`, `order` of
            `shap_iq`.

    Raises:
        TypeError: The method has no such option.
        ValueError: An unknown name, or too few coalitions for so many players.

    Example:
        >>> game = coalition_game(host, sample, [f, g])  # doctest: +SKIP
        >>> explain_coalitions(game, "rise", preset="fast").shape  # doctest: +SKIP
        (14, 2)
    """
    plan = plan_for(method, game.n_players, preset=preset, n_coalitions=n_coalitions, seed=seed)
    return estimate(method, plan, game(plan.coalitions), **options)


def explain_pairs(
    game: CoalitionGame, *, preset: str = "paper", n_coalitions: int | None = None, seed: int = 0
) -> Float[np.ndarray, "player player objective"]:
    """SHAP-IQ of order 2: the interaction of every pair of players for every objective of a game.

    Cost: none where the game knows the coalitions of "shap_iq" with the same settings.

    Args:
        game: Of `coalition_game`.
        preset: "paper" or "fast".
        n_coalitions: Instead of the preset's.
        seed: Of the coalitions.

    Raises:
        ValueError: As `shap_iq_pairs`.

    Example:
        >>> explain_pairs(game).shape  # doctest: +SKIP
        (14, 14, 2)
    """
    plan = plan_for("shap_iq", game.n_players, preset=preset, n_coalitions=n_coalitions, seed=seed)
    return shap_iq_pairs(plan.coalitions, plan.weights, game(plan.coalitions))


def plan_for(
    method: str, n_players: int, *, preset: str = "paper", n_coalitions: int | None = None, seed: int = 0
) -> CoalitionPlan:
    """The coalitions a method reads.

    Args:
        method: One of `COALITION_METHODS`.
        n_players: Of the game.
        preset: "paper" or "fast".
        n_coalitions: Instead of the preset's.
        seed: Of the draws.

    Raises:
        ValueError: An unknown method or preset, or what `bernoulli` and `shapley` raise.
    """
    require_known("method", method, COALITION_METHODS)
    require_known("preset", preset, BUDGETS)
    count = BUDGETS[preset][method] if n_coalitions is None else n_coalitions
    if method in _OF_BERNOULLI:
        return bernoulli(n_players, count, seed=seed)
    least = _LEAST_PER_PLAYER * n_players if n_coalitions is None else 0
    return shapley(n_players, max(count, least), seed=seed)


def estimate(
    method: str, plan: CoalitionPlan, values: Float[np.ndarray, "coalition objective"], **options: Any
) -> PlayerValues:
    """A method's importances from the values of its plan; see `explain_coalitions`."""
    require_known("method", method, COALITION_METHODS)
    weights = () if method in _OF_BERNOULLI else (plan.weights,)
    return ESTIMATORS[method](plan.coalitions, *weights, values, **options)


def kernel_shap(coalitions: Coalitions, weights: Weights, values: Values) -> PlayerValues:
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
    z, w, worth, whole = _worths(coalitions, weights, values)
    n = coalitions.shape[1]
    share = whole / n
    if n == 1:
        return np.asarray(share[None])
    # phi = share + basis @ psi meets the constraint for every psi: the columns of `basis` are
    # orthogonal to the vector of ones, the first column of what QR is given.
    basis = np.linalg.qr(np.concatenate([np.ones((n, 1)), np.eye(n)[:, :-1]], axis=1))[0][:, 1:]
    # Weighted least squares is ordinary least squares of rows times the root of their weight.
    root = np.sqrt(w)[:, None]
    # What an even split of v(all) - v(none) among the players does not say of each coalition.
    target = worth - z.sum(1, keepdims=True) * share
    psi, _, rank, _ = np.linalg.lstsq(root * (z @ basis), root * target, rcond=1e-10)
    if rank < n - 1:
        raise ValueError(
            f"{len(z)} coalitions tell apart {rank} of the {n - 1} differences between {n} "
            f"players: raise the budget, to 4 n = {4 * n} or more, or group the players."
        )
    phi: PlayerValues = share + basis @ psi
    return phi


def lime(
    coalitions: Coalitions, values: Values, *, alpha: float | int = 1.0, width: float | None = KERNEL_WIDTH
) -> PlayerValues:
    """Slopes of the weighted ridge regression, the intercept not penalised.

    Args:
        coalitions: Rows of `coalitions.bernoulli`.
        values: `[coalition, objective]`, what the game returned for them.
        alpha: Penalty; 0 for none.
        width: Of the kernel in cosine distance; None weighs all coalitions alike.

    Raises:
        ValueError: Values of other coalitions, a player never masked or never kept, a negative
            penalty, or a width that is not positive.

    Example:
        >>> z = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=bool)
        >>> lime(z, (z @ np.array([[2.0], [-1.0]])), alpha=0.0).round(6).ravel()
        array([ 2., -1.])
    """
    _check_values(coalitions, values)
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}: give 0 or more.")
    from sklearn.linear_model import Ridge

    weights = np.ones(len(coalitions)) if width is None else kernel(coalitions, width)
    model = Ridge(alpha=alpha).fit(coalitions.astype(np.float64), values, sample_weight=weights)
    slopes: PlayerValues = np.reshape(model.coef_, (values.shape[1], -1)).T
    return slopes


def kernel(coalitions: Coalitions, width: float) -> Float[np.ndarray, " coalition"]:
    """Weight of each coalition by its cosine distance to the full one.

    Raises:
        ValueError: The width is not positive.
    """
    if not width > 0:
        raise ValueError(f"width is {width}: give a positive number, or None for no kernel.")
    # cos(z, ones) = |T| / (sqrt|T| sqrt n) = sqrt(|T| / n).
    distance = 1 - np.sqrt(coalitions.mean(1))
    return np.asarray(np.exp(-(distance**2) / (2 * width**2)))


def rise(coalitions: Coalitions, values: Values) -> PlayerValues:
    """Mean value of the coalitions that keep each player.

    Args:
        coalitions: Rows of `coalitions.bernoulli`.
        values: `[coalition, objective]`, what the game returned for them.

    Raises:
        ValueError: Values of other coalitions, or a player never masked or never kept.

    Example:
        >>> rise(np.array([[True, False], [False, True]]), np.array([[3.0], [5.0]])).ravel()
        array([3., 5.])
    """
    _check_values(coalitions, values)
    z = coalitions.astype(np.float64)
    # Each player's sum over the coalitions that keep it, by how many they are.
    mean: PlayerValues = (z.T @ values) / z.sum(0)[:, None]
    return mean


def shap_iq(coalitions: Coalitions, weights: Weights, values: Values, *, order: int = 1) -> PlayerValues:
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
    z, w, worth, whole = _worths(coalitions, weights, values)
    n = coalitions.shape[1]
    if n == 1:
        return np.asarray(whole[None])
    t = z.sum(1, keepdims=True)
    # gamma / mu of order 1: the coalition's size counts against it where the player is out.
    gamma = w[:, None] * (n * z - t) / (n - 1)
    phi: PlayerValues = whole / n + gamma.T @ worth
    return phi


def shap_iq_pairs(
    coalitions: Coalitions, weights: Weights, values: Values, *, control: bool = True
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
    if control:
        # An additive game has no interactions: taking it off leaves them, and most of the noise goes.
        additive = kernel_shap(coalitions, weights, values)
        values = values - coalitions.astype(np.float64) @ additive
    z, w, worth, whole = _worths(coalitions, weights, values)
    t = z.sum(1)
    # gamma / mu of order 2 by how many of the pair the coalition keeps.
    # Where a case cannot occur its denominator is 0; 1 stands in and no pair meets it.
    both = n * (n - t) / ((n - 1) * np.maximum(t - 1, 1))
    one = np.full(len(t), -n / (n - 1))
    neither = n * t / ((n - 1) * np.maximum(n - t - 1, 1))
    pairs = np.empty((n, n, values.shape[1]))
    for k in range(values.shape[1]):
        # Three products of players by players: pairs both in, one in (twice, by which), both out.
        out, weighed = 1 - z, w * worth[:, k]
        cross = z.T @ ((one * weighed)[:, None] * out)
        pairs[:, :, k] = z.T @ ((both * weighed)[:, None] * z) + cross + cross.T
        # The full coalition keeps every pair: v0(all) / (n - s + 1) with s = 2.
        pairs[:, :, k] += out.T @ ((neither * weighed)[:, None] * out) + whole[k] / (n - 1)
    pairs[np.arange(n), np.arange(n)] = 0.0
    return pairs


def k_sii(singles: PlayerValues, pairs: Float[np.ndarray, "_ _ _"]) -> PlayerValues:
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
    # Half of each of a player's pairs is taken off it: the pair as a whole stands for that half twice.
    main: PlayerValues = singles - pairs.sum(1) / 2
    return main


def _worths(
    coalitions: Coalitions, weights: Weights, values: Values
) -> tuple[
    Float[np.ndarray, "inner player"],
    Float[np.ndarray, " inner"],
    Float[np.ndarray, "inner objective"],
    Float[np.ndarray, " objective"],
]:
    """Coalitions that are neither empty nor full, as numbers, their weights and worths v0; v0(all).

    Raises:
        ValueError: No empty or no full coalition, another number of weights, one between them that
            is not positive and finite, or as `_check_values`.
    """
    _check_values(coalitions, values)
    size = coalitions.sum(1)
    ends = [np.flatnonzero(size == t) for t in (0, coalitions.shape[1])]
    if not all(len(rows) for rows in ends):
        missing = "empty" if not len(ends[0]) else "full"
        raise ValueError(f"the {missing} coalition is missing: its value is needed; use coalitions.shapley.")
    if weights.shape != (len(coalitions),):
        raise ValueError(f"{len(weights)} weights for {len(coalitions)} coalitions: give one each.")
    inner = (size > 0) & (size < coalitions.shape[1])
    w = weights[inner].astype(np.float64)
    if not (np.isfinite(w) & (w > 0)).all():
        raise ValueError(
            "weights between the empty and the full coalition must be positive and finite: give "
            "those of coalitions.shapley."
        )
    none, full = (values[rows[0]] for rows in ends)
    return coalitions[inner].astype(np.float64), w, values[inner].astype(np.float64) - none, full - none


def _check_values(coalitions: Coalitions, values: Values) -> None:
    """Refuse values that do not belong to the coalitions, and players that were never both.

    Raises:
        ValueError: Other numbers of rows, values that are not finite, or a player that every
            coalition keeps or every coalition masks: nothing is known of it.
    """
    if coalitions.ndim != 2 or values.ndim != 2 or len(coalitions) != len(values):
        raise ValueError(
            f"coalitions have shape {list(coalitions.shape)}, values {list(values.shape)}: give "
            "[coalition, player] and [coalition, objective], a row a coalition."
        )
    if not np.isfinite(values).all():
        raise ValueError("the values hold NaN or infinite numbers: give what the game returned.")
    kept = coalitions.sum(0)
    fixed = np.flatnonzero((kept == 0) | (kept == len(coalitions)))
    if len(fixed):
        player = int(fixed[0])
        raise ValueError(
            f"player {player} is {'kept' if kept[player] else 'masked'} in all {len(coalitions)} "
            "coalitions, so they say nothing of it: give more coalitions."
        )


ESTIMATORS: Mapping[str, Callable[..., PlayerValues]] = {
    "lime": lime,
    "rise": rise,
    "kernel_shap": kernel_shap,
    "shap_iq": shap_iq,
}
