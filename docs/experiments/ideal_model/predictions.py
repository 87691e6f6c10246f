"""What the idealised model predicts, each beside its measurement.

OUR reconstruction (see `theory.dynamics`), for tokens that all see the same keys. With
K(t) = log sum_j exp(t a_j): a_i' = a_i + sum_h gamma_h K'(beta_h a_i), where K'(t), K''(t) are the
mean and variance of {a_j} under weights proportional to exp(t a_j).

T1, gaps grow    a_i' - a_j' = (a_i - a_j) (1 + sum_h beta_h gamma_h V_ij), V_ij > 0 the mean of K''
                 between beta a_j and beta a_i. Exact: the fundamental theorem of calculus on K'.
C1, attention    log alpha_ij - log alpha_ik = beta a_i (a_j - a_k): towards the largest a for
   concentrates  a_i > 0, the smallest for a_i < 0. Exact. The gap grows with each layer by T1,
                 and the log-odds with it wherever |a_i| does not fall: in the tails, not near 0
                 where the mean that is written may turn a token's sign.
C2, tail         once the positive tail attends to M = max a alone, 1 - r_i with r_i = a_i / M
   equalises     shrinks by 1 / (1 + sum gamma) a layer. A limit, good only after concentration.
T2, skew grows   local gain g(a) = 1 + sum beta gamma K''(beta a). To leading order in beta, with
   in its sign   b = sum gamma beta^2 k3 / (2 (1 + sum gamma beta s^2)), the skewness changes by
                 3 b / s^3 (m4 - s^4 - k3^2 / s^2). The bracket is >= 0 (Pearson: kurtosis >=
                 skewness^2 + 1), so the sign is that of k3: for small beta s^2 only. It reverses
                 once attention has concentrated.
Noise            a gap still grows if sum beta gamma V_ij |a_i - a_j| > 2 R sum gamma tanh(eta / 2)
                 + 2 eps, for logit errors up to eta, write errors up to eps, R = max a - min a:
                 errors within +-eta move at most tanh(eta / 2) of attention. Sufficient only.

That a real layer shows one of these does not show that aligned heads cause it: an MLP or a norm
may amplify gaps as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Float64

from ideal_model.dynamics import IdealModel, Trajectory, as_activations, attention
from ideal_model.gaps import check_gaps
from sa_plugin.statistics import skewness

_NEAR = 1e-5


@dataclass(frozen=True)
class Concentration:
    """Where attention goes, a mean over heads and queries.

    Attributes:
        on_top: Mass on the largest activation, queries with a > 0; NaN without any.
        on_bottom: Mass on the smallest, queries with a < 0; NaN without any.
        entropy: Of a query's attention, in nats.
        n_tokens: Keys; even attention has mass 1 / n_tokens on each and entropy log n_tokens.
    """

    on_top: float
    on_bottom: float
    entropy: float
    n_tokens: int

    def __repr__(self) -> str:
        return (
            f"Concentration: {self.on_top:.3f} on the top token, {self.on_bottom:.3f} on the "
            f"bottom one, entropy {self.entropy:.2f} of {np.log(self.n_tokens):.2f}"
        )


@dataclass(frozen=True)
class LayerCheck:
    """One layer of a trajectory: measured beside predicted.

    Attributes:
        layer: Counted from 0.
        smallest_gap_ratio: Over pairs (T1: at least 1).
        skew: Skewness of what the layer reads.
        skew_change, skew_predicted: What the layer adds, and T2's leading order.
        on_top, entropy: Attention of the layer (C1).
        equalisation, equalisation_predicted: Factor on the tail's mean 1 - a / max a, and C2's.
    """

    layer: int
    smallest_gap_ratio: float
    skew: float
    skew_change: float
    skew_predicted: float
    on_top: float
    entropy: float
    equalisation: float
    equalisation_predicted: float

    def __repr__(self) -> str:
        return (
            f"LayerCheck {self.layer}: gaps x {self.smallest_gap_ratio:.3f} or more, skew "
            f"{self.skew:.2f} {self.skew_change:+.2f} ({self.skew_predicted:+.2f} predicted), "
            f"{self.on_top:.3f} on top, entropy {self.entropy:.2f}, equalisation "
            f"{self.equalisation:.3f} ({self.equalisation_predicted:.3f})"
        )


def check_layers(trajectory: Trajectory, tail: float = 0.05) -> tuple[LayerCheck, ...]:
    """Every prediction at every layer.

    Args:
        trajectory: Without a causal mask; errors are allowed, predictions ignore them.
        tail: Share of tokens that count as the tail.

    Raises:
        ValueError: A causal trajectory, or a tail outside (0, 1].
    """
    model, a = trajectory.model, trajectory.activations
    _require_same_keys(model)
    quiet = IdealModel(model.beta, model.gamma)
    limit = 1 / (1 + sum(model.gamma))
    checks = []
    for layer, (before, after) in enumerate(pairwise(a)):
        to = concentration(attention(before, quiet), before)
        skew = skewness(before)
        spread = tail_spread(before, tail)
        checks.append(
            LayerCheck(
                layer,
                check_gaps(before, after).smallest_ratio,
                skew,
                skewness(after) - skew,
                skew_growth(before, model),
                to.on_top,
                to.entropy,
                tail_spread(after, tail) / spread if spread > 0 else np.nan,
                limit,
            )
        )
    return tuple(checks)


def gap_factors(a: Float[np.ndarray, " token"], model: IdealModel) -> Float64[np.ndarray, "token token"]:
    """T1's factor on the gap of every pair; the local gain where two tokens are tied.

    Raises:
        ValueError: A causal model: its queries do not see the same keys.
    """
    a = as_activations(a)
    gain, update = local_gain(a, model), np.zeros_like(a)
    for beta, gamma in zip(model.beta, model.gamma, strict=True):
        update += gamma * _tilted(a, beta)[0]
    gaps = np.subtract.outer(a, a)
    # The quotient cancels for near ties, where the trapezium rule is exact to the gap's square.
    near = np.abs(gaps) <= _NEAR * np.abs(a).max()
    quotient = np.subtract.outer(update, update) / np.where(near, 1.0, gaps)
    return np.asarray(np.where(near, np.add.outer(gain, gain) / 2, 1 + quotient))


def local_gain(a: Float[np.ndarray, " token"], model: IdealModel) -> Float64[np.ndarray, " token"]:
    """T2's g(a): the factor on an infinitely small gap at each token; above 1 on both sides.

    Raises:
        ValueError: A causal model.
    """
    _require_same_keys(model)
    a = as_activations(a)
    gain = np.ones_like(a)
    for beta, gamma in zip(model.beta, model.gamma, strict=True):
        gain += beta * gamma * _tilted(a, beta)[1]
    return gain


def extreme_log_odds(a: Float[np.ndarray, " token"], model: IdealModel) -> Float64[np.ndarray, "head query"]:
    """C1's log-odds of a query's favoured key against the runner-up: beta |a_i| times their gap.

    Favoured is the largest activation for a_i > 0, the smallest for a_i < 0; 0 for a_i = 0.
    """
    a = as_activations(a)
    ordered = np.sort(a)
    gap = np.where(a > 0, ordered[-1] - ordered[-2], ordered[1] - ordered[0])
    return np.asarray(np.multiply.outer(np.asarray(model.beta), np.abs(a) * gap))


def concentration(
    pattern: Float[np.ndarray, "head query token"], a: Float[np.ndarray, " token"]
) -> Concentration:
    """C1 measured on any attention pattern.

    Args:
        pattern: Rows that sum to 1. Take sinks out before: they hold mass whatever the concept.
        a: Activations of the same tokens.
    """
    a = as_activations(a)
    logs = np.log(np.where(pattern > 0, pattern, 1.0), dtype=np.float64)
    return Concentration(
        _mean(pattern[:, a > 0, a.argmax()]),
        _mean(pattern[:, a < 0, a.argmin()]),
        float(-(pattern * logs).sum(axis=-1).mean()),
        len(a),
    )


def tail_spread(a: Float[np.ndarray, " token"], tail: float = 0.05) -> float:
    """C2's mean of 1 - a / max a over the top share of tokens, the maximum itself left out.

    At least two tokens count; NaN where the maximum is not positive. The negative tail is
    `tail_spread(-a)`.

    Raises:
        ValueError: The share lies outside (0, 1].
    """
    if not 0 < tail <= 1:
        raise ValueError(f"tail {tail} must lie in (0, 1], such as 0.05 for the top 5 %.")
    ordered = np.sort(as_activations(a))
    if ordered[-1] <= 0:
        return float("nan")
    n = max(2, round(tail * len(ordered)))
    return float(1 - np.mean(ordered[-n:-1]) / ordered[-1])


def skew_growth(a: Float[np.ndarray, " token"], model: IdealModel) -> float:
    """T2's change of the skewness in one layer, to leading order in beta.

    Raises:
        ValueError: A causal model.
    """
    _require_same_keys(model)
    centred = as_activations(a) - np.mean(a, dtype=np.float64)
    variance, third, fourth = (np.mean(centred**k) for k in (2, 3, 4))
    if np.ptp(a) == 0:
        return float("nan")
    beta, gamma = np.asarray(model.beta), np.asarray(model.gamma)
    bend = (gamma @ beta**2) * third / 2 / (1 + (gamma @ beta) * variance)
    return float(3 * bend / variance**1.5 * (fourth - variance**2 - third**2 / variance))


def noise_floor(a: Float[np.ndarray, " token"], model: IdealModel) -> float:
    """The most that the model's errors can take from a gap in one layer."""
    a = as_activations(a)
    moved = np.tanh(model.logit_error / 2)
    return float(2 * np.ptp(a) * sum(model.gamma) * moved + 2 * model.write_error)


def gaps_safe_from_noise(
    a: Float[np.ndarray, " token"], model: IdealModel
) -> Bool[np.ndarray, "token token"]:
    """Which pairs' gaps grow whatever the errors: growth by T1 above the noise floor.

    Raises:
        ValueError: A causal model.
    """
    a = as_activations(a)
    growth = (gap_factors(a, model) - 1) * np.abs(np.subtract.outer(a, a))
    return np.asarray(growth > noise_floor(a, model))


def _tilted(
    a: Float64[np.ndarray, " token"], beta: float
) -> tuple[Float64[np.ndarray, " token"], Float64[np.ndarray, " token"]]:
    """K' and K'' at beta a_i: mean and variance of the keys under each query's attention."""
    pattern = attention(a, IdealModel((beta,), (1.0,)))[0]
    mean = pattern @ a
    return mean, np.einsum("qk,qk->q", pattern, np.subtract.outer(-mean, -a) ** 2)


def _mean(values: Float[np.ndarray, "head query"]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def _require_same_keys(model: IdealModel) -> None:
    if model.causal:
        raise ValueError(
            "the model is causal: the predictions need all queries to see the same keys; drop the "
            "mask, or compare pairs on their common prefix with check_prefix_gaps."
        )
