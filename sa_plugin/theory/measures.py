"""What is measured of each theorem in each block, beside what the idealised model predicts.

OUR estimators of OUR reconstruction (`theory.dynamics`); none is a formula of arXiv 2512.05038. a
is read at the block's input and output, x = a - mean of the sample, V_i the variance of a / r under
query i's actual attention (kept tokens, renormalised).

| quantity | is | null | predicted |
|---|---|---|---|
| gap_slope | orthogonal regression of a' on a within samples | 1 | same, of integrated a |
| gap_deviation_ratio | sd a' / sd a within samples | 1 | same |
| gap_deviation_per_norm | gap_deviation_ratio over the growth of the mean token norm | 1 | - |
| gaps_grown | share of pairs of tokens of which the gap grew, unchanged ones half | .5 | 1 |
| gaps_shrunk | share of which it shrank or changed sign | .5 | 0 |
| gap_order | Kendall's tau between a and a' | 0 | 1 |
| heads_* | the same with a' = a + what the attention layer writes | as above | as above |
| prefix_* | the same, every pair on its common prefix (causal models) | as above | T1's factor |
| path_gap_slope | the same with a' = a + sum_h gamma_h E_i(a) / r, the concept's own path: T1 by
  means of a under attention, where predicted has it by variances | 1 | same |
| predicted_factor | mean of 1 + sum_h beta_h gamma_h V_i / r_i | 1 | - |
| attention_by_sign | mass on the top share of keys, queries a > 0 minus queries a < 0, each above
  chance | 0 | same, of softmax(beta a_i a_j) |
| top_lift_plus, top_lift_minus | mass on the top share less its share of keys, by sign | 0 | same |
| bottom_lift_* | the same for the bottom share | 0 | same |
| top_mass_plus | mass on the top share, queries a > 0 | share | same |
| *_with_sinks | the same with the attention that goes to sinks and special tokens | | |
| effective_keys | exp(mean entropy) over exp(mean log of keys seen); 1 is even | 1 | - |
| kept_mass | attention that goes to kept tokens at all | - | - |
| spread | mean of 1 - a / max a in a sample's top share of tokens (three at least) | - | - |
| variation | sd / mean of the same | - | - |
| equalisation | spread before less spread after, same tokens | 0 | limit: spread G / (1 + G) |
| update_gap_ratio | mean |u_i - u_j| of the heads' update: tail pairs over all pairs | 1 | - |
| skew, l_skew | of x at the input: moments pooled; L-skewness averaged over samples | 0 | - |
| skew_growth | change of skew, in the sign of skew | 0 | same, of integrated a |
| tail_gain | slope of a' on a between the two highest tenths of a, less that between the two
  lowest, in the sign of skew | 0 | same, of integrated a |
| heads_tail_gain | the same with the heads' write alone | 0 | same |
| mlp_share | 1 - cov(heads' write, a' - a) / var(a' - a) within samples: of the MLP and, in post-LN
  blocks, of the norms | 0 | 0 |
| path_r2 | squared correlation of the heads' write with sum gamma_h E_i(a) / r: what the
  concept's own path explains | 1 | 1 |

"Integrated a" applies the predicted factor to the gaps between a sample's sorted tokens, by the
trapezium rule: a' as the idealised heads would have it, given the actual attention. Where attention
has concentrated, the variance peaks between tokens and the rule misses it (path_gap_slope does
not). G is sum gamma_h / r over heads with positive beta and gamma.

What they do not show. Noise in a' alone widens it: slope and deviation ratio then exceed 1 without
any gap growing on average, which is why gaps_grown stands beside them, and controls beside all.
Where a' hardly correlates with a the orthogonal slope is unbounded: do not average it over layers.
Tenths are ranked on a, so noise in a flattens their slopes. Attention is averaged over all heads of
a block, aligned or not. None of these says what causes what.

Each function takes sums over samples, of shape `[draw, layer, column]`, and gives values of the
same shape; draw 0 is the data as they are.

From sums over samples to quantities with intervals, each minus its controls on the same draws.

Intervals resample source documents (`sa_plugin.statistics.bootstrap`), the vectors held fixed.

The factor by which activations grow from one layer to the next, when both carry noise.

For true activations y = c + b x, observed with independent errors of variance e_x and e_y:

    OLS               S_xy / S_xx, tends to b s^2 / (s^2 + e_x): diluted, always towards zero
    orthogonal        (D + sqrt(D^2 + 4 q S_xy^2)) / (2 S_xy), D = S_yy - q S_xx: tends to b if
      (Deming)        q = e_y / e_x is right; q = 1 minimises orthogonal distances
    deviation ratio   sign(S_xy) sqrt(S_yy / S_xx): tends to b if e_y = b^2 e_x

With an error in x of 36 % of the variance of the signal a true 1.2 is estimated as .88 by OLS. No
estimator is right for free: q is an assumption. Errors of successive layers are not independent in
a residual stream (what misreads layer l is carried into l + 1), which biases all three; a slope is
an average over the range and says nothing about pairs (see `dynamics.check_gaps`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import Interval, interval, percentile_bounds
from sa_plugin.statistics.shape import skewness_of_sums
from sa_plugin.theory.paths import Directions
from sa_plugin.theory.sums import Sums

Values: TypeAlias = Float64[np.ndarray, "_draw _layer _column"]
Total: TypeAlias = Callable[[str], np.ndarray]


class Kind(NamedTuple):
    """What a quantity belongs to.

    Attributes:
        theorem: "T1", "C1", "C2", "T2" or "assumption".
        null: Its value where nothing happens.
    """

    theorem: str
    null: float


KINDS: Mapping[str, Kind] = {
    **{f"{who}gap_slope": Kind("T1", 1.0) for who in ("", "heads_", "prefix_")},
    **{f"{who}gap_deviation_ratio": Kind("T1", 1.0) for who in ("", "heads_", "prefix_")},
    **{f"{who}gaps_grown": Kind("T1", 0.5) for who in ("", "heads_", "prefix_")},
    **{f"{who}gaps_shrunk": Kind("T1", 0.5) for who in ("", "heads_", "prefix_")},
    **{f"{who}gap_order": Kind("T1", 0.0) for who in ("", "heads_", "prefix_")},
    "gap_deviation_per_norm": Kind("T1", 1.0),
    "prefix_left_out": Kind("T1", 0.0),
    "path_gap_slope": Kind("T1", 1.0),
    "predicted_factor": Kind("T1", 1.0),
    "attention_by_sign": Kind("C1", 0.0),
    **{f"{end}_lift_{side}": Kind("C1", 0.0) for end in ("top", "bottom") for side in ("plus", "minus")},
    "top_lift_plus_with_sinks": Kind("C1", 0.0),
    "attention_by_sign_with_sinks": Kind("C1", 0.0),
    "top_mass_plus": Kind("C1", np.nan),
    "effective_keys": Kind("C1", 1.0),
    "effective_keys_with_sinks": Kind("C1", 1.0),
    "kept_mass": Kind("C1", np.nan),
    "spread": Kind("C2", np.nan),
    "variation": Kind("C2", np.nan),
    "equalisation": Kind("C2", 0.0),
    "update_gap_ratio": Kind("C2", 1.0),
    "skew": Kind("T2", 0.0),
    "skew_after": Kind("T2", 0.0),
    "l_skew": Kind("T2", 0.0),
    "skew_growth": Kind("T2", 0.0),
    "tail_gain": Kind("T2", 0.0),
    "heads_tail_gain": Kind("T2", 0.0),
    "mlp_share": Kind("assumption", 0.0),
    "path_r2": Kind("assumption", 1.0),
}


class Measured(NamedTuple):
    """Values and, where there is one, the prediction."""

    value: Values
    predicted: Values | None = None


def measure(
    total: Total, *, causal: bool, weights: bool, aligned_gamma: Float64[np.ndarray, "layer column"] | None
) -> dict[str, Measured]:
    """Every quantity.

    Args:
        total: Sums over samples by name.
        causal: Whether common prefixes were measured.
        weights: Whether the host gave its weights.
        aligned_gamma: Sum of gamma over heads with positive beta and gamma, where beta is known.
    """
    beta = aligned_gamma is not None
    return {
        **_gaps(total, weights, beta),
        **(_prefix(total) if causal and weights else {}),
        **_attention(total, beta),
        **_equalisation(total, aligned_gamma),
        **_tail(total, beta),
        **_shares(total, weights),
    }


def orthogonal(xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> Float64[np.ndarray, "*shape"]:
    """Slope of orthogonal regression from centred sums (`theory.slopes`)."""
    excess = yy - xx
    defined = (xx > 0) & (xy != 0)
    slope = (excess + np.hypot(excess, 2 * xy)) / np.where(defined, 2 * xy, np.nan)
    return np.asarray(slope, dtype=np.float64)


def _gaps(total: Total, weights: bool, beta: bool) -> dict[str, Measured]:
    xx = total("xx")
    found: dict[str, Measured] = {}
    slope = deviation = None
    if beta:
        xy, yy = total("xy predicted"), total("yy predicted")
        slope, deviation = orthogonal(xx, xy, yy), np.sqrt(_ratio(yy, xx))
        factor = _ratio(total("gain"), total("tokens"))
        found["predicted_factor"] = Measured(np.where(xx > 0, factor, np.nan))
    for who, name in (("", "layer"), ("heads_", "heads")):
        xy, yy = (total(f"{what} {name}") for what in ("xy", "yy"))
        found[f"{who}gap_slope"] = Measured(orthogonal(xx, xy, yy), slope)
        found[f"{who}gap_deviation_ratio"] = Measured(np.sqrt(_ratio(yy, xx)), deviation)
        found |= _pairs(total, who, name, slope)
    if weights:
        path = orthogonal(xx, total("xy path"), total("yy path"))
        found["path_gap_slope"] = Measured(path, slope)
    norm = _ratio(total("norm after"), total("norm before"))
    found["gap_deviation_per_norm"] = Measured(found["gap_deviation_ratio"].value / norm)
    return found


def _pairs(total: Total, who: str, name: str, slope: Values | None) -> dict[str, Measured]:
    pairs, grown, shrunk, flipped = (
        total(f"{what} {name}") for what in ("pairs", "grown", "shrunk", "flipped")
    )
    one = None if slope is None else np.where(np.isnan(slope), np.nan, 1.0)
    return {
        f"{who}gaps_grown": Measured(_ratio((pairs + grown - shrunk) / 2, pairs), one),
        f"{who}gaps_shrunk": Measured(_ratio(shrunk, pairs), None if one is None else one - 1),
        f"{who}gap_order": Measured(1 - 2 * _ratio(flipped, pairs), one),
    }


def _prefix(total: Total) -> dict[str, Measured]:
    xx, xy, yy = (total(f"{what} prefix") for what in ("xx", "xy", "yy"))
    pxy, pyy = total("xy prefix predicted"), total("yy prefix predicted")
    pairs, left_out = total("pairs prefix"), total("left out prefix")
    slope = orthogonal(xx, pxy, pyy)
    return {
        "prefix_gap_slope": Measured(orthogonal(xx, xy, yy), slope),
        "prefix_gap_deviation_ratio": Measured(np.sqrt(_ratio(yy, xx)), np.sqrt(_ratio(pyy, xx))),
        **_pairs(total, "prefix_", "prefix", slope),
        "prefix_left_out": Measured(_ratio(left_out, left_out + pairs)),
    }


def _attention(total: Total, beta: bool) -> dict[str, Measured]:
    def lift(kind: str, end: str, side: str) -> Values:
        chance = "chance full" if kind == "full" else "chance"
        mass = total(f"{kind} {end} {side}") - total(f"{chance} {end} {side}")
        return _ratio(mass, total(f"queries {side}"))

    found = {
        f"{end}_lift_{side}": Measured(
            lift("mass", end, side), lift("predicted", end, side) if beta else None
        )
        for end in ("top", "bottom")
        for side in ("plus", "minus")
    }
    plus, minus = found["top_lift_plus"], found["top_lift_minus"]
    own = None
    if plus.predicted is not None and minus.predicted is not None:
        own = plus.predicted - minus.predicted
    found["attention_by_sign"] = Measured(plus.value - minus.value, own)
    with_sinks = lift("full", "top", "plus")
    found["top_lift_plus_with_sinks"] = Measured(with_sinks)
    found["attention_by_sign_with_sinks"] = Measured(with_sinks - lift("full", "top", "minus"))
    queries = total("queries plus")
    mass = _ratio(total("predicted top plus"), queries) if beta else None
    found["top_mass_plus"] = Measured(_ratio(total("mass top plus"), queries), mass)
    for name, tag in (("effective_keys", ""), ("effective_keys_with_sinks", " full")):
        gap = total(f"entropy{tag}") - total(f"log keys{tag}")
        found[name] = Measured(np.exp(_ratio(gap, total("queries"))))
    found["kept_mass"] = Measured(_ratio(total("kept mass"), total("queries")))
    return found


def _equalisation(
    total: Total, aligned_gamma: Float64[np.ndarray, "layer column"] | None
) -> dict[str, Measured]:
    tails = total("tails")
    before, after = (_ratio(total(f"spread {side}"), tails) for side in ("before", "after"))
    updates = _ratio(total("update gap tail"), total("update gap all"))
    limit = None
    if aligned_gamma is not None:
        growth = aligned_gamma * _ratio(total("inverse scale"), total("tokens"))
        limit = before * growth / (1 + growth)
    return {
        "spread": Measured(before),
        "variation": Measured(_ratio(total("variation before"), tails)),
        "equalisation": Measured(before - after, limit),
        "update_gap_ratio": Measured(updates),
    }


def _tail(total: Total, beta: bool) -> dict[str, Measured]:
    def skew(side: str) -> Values:
        n = total("tokens")
        return skewness_of_sums(n, np.zeros_like(n), total(f"second {side}"), total(f"third {side}"))

    def gain(name: str) -> Values:
        slope = tenth_slopes(total, name)
        return np.asarray(slope[..., -1] - slope[..., 0])

    before, after = skew("before"), skew("after")
    # The sign of the data, in every draw: a draw's own would fold its noise into the estimate.
    sign = np.sign(before[:1])
    grows = sign * (skew("predicted") - before) if beta else None
    gains = sign * gain("predicted") if beta else None
    shapes = _ratio(total("l skew before"), total("l skewed before"))
    return {
        "skew": Measured(before),
        "skew_after": Measured(after),
        "l_skew": Measured(shapes),
        "skew_growth": Measured(sign * (after - before), grows),
        "tail_gain": Measured(sign * gain("layer"), gains),
        "heads_tail_gain": Measured(sign * gain("heads"), gains),
    }


def tenth_slopes(total: Total, name: str) -> Float64[np.ndarray, "draw layer column step"]:
    """Slope of the later on the earlier activations between neighbouring tenths of a."""
    n, x, y = (total(f"tenth {part}") for part in ("tokens", "before", name))
    return _ratio(np.diff(_ratio(y, n)), np.diff(_ratio(x, n)))


def _shares(total: Total, weights: bool) -> dict[str, Measured]:
    found = {"mlp_share": Measured(1 - _ratio(total("change by heads"), total("change")))}
    if weights:
        explained = total("path by heads") ** 2
        found["path_r2"] = Measured(_ratio(explained, total("path") * total("heads' write")))
    return found


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.asarray(ratio(top, bottom, empty=np.nan))


CONTROLS = ("permuted", "random")
# What verdicts rest on (`theory.verdicts`).
DECISIVE = (
    *(f"{who}{what}" for who in ("", "heads_", "prefix_") for what in ("gap_deviation_ratio", "gaps_grown")),
    "attention_by_sign",
    "equalisation",
    "tail_gain",
    "skew_growth",
)


@dataclass(frozen=True, eq=False)
class Quantity:
    """One quantity of one concept and direction, by layer.

    Attributes:
        name: See `sa_plugin.theory.measures`.
        theorem: What it belongs to.
        null: Its value where nothing happens.
        value, low, high: Measured, with percentile bounds.
        predicted: By the idealised model; None where it says nothing or weights are missing.
        controls: The same of permuted-label and random directions, as far as there are any.
        excess: Value, low and high of measured minus control, `[3, layer]`.
    """

    name: str
    theorem: str
    null: float
    value: Float64[np.ndarray, " layer"]
    low: Float64[np.ndarray, " layer"]
    high: Float64[np.ndarray, " layer"]
    predicted: Float64[np.ndarray, " layer"] | None
    controls: Mapping[str, Float64[np.ndarray, " layer"]]
    excess: Mapping[str, Float64[np.ndarray, "3 layer"]]

    def __repr__(self) -> str:
        known = np.isfinite(self.value)
        if not known.any():
            return f"Quantity({self.name}: not defined)"
        mean = float(self.value[known].mean())
        beside = "" if self.predicted is None else f", predicted {np.nanmean(self.predicted):.3f}"
        beside += "".join(f", {k} {np.nanmean(v):.3f}" for k, v in self.controls.items())
        return f"Quantity({self.name}: mean of {known.sum()} layers {mean:.3f}{beside})"


@dataclass(frozen=True, eq=False)
class Drawn:
    """Every quantity of one concept and direction on every draw; draw 0 is the data.

    Attributes:
        own, predicted: `[draw, layer]` by name.
        controls: `[draw, layer]` by control and name, random directions averaged.
        each: `[draw, layer, control]` by decisive name: every control direction by itself, those
            of other concepts' permuted labels included.
        tenths: Slopes between neighbouring tenths of a, measured and predicted, `[layer, step]`.
        n_documents: Resampled.
        level: Of the intervals.
    """

    own: Mapping[str, Float64[np.ndarray, "draw layer"]]
    predicted: Mapping[str, Float64[np.ndarray, "draw layer"]]
    controls: Mapping[str, Mapping[str, Float64[np.ndarray, "draw layer"]]]
    each: Mapping[str, Float64[np.ndarray, "draw layer control"]]
    tenths: Mapping[str, Float64[np.ndarray, "layer step"]]
    n_documents: int
    level: float

    def quantity(self, name: str) -> Quantity:
        """One quantity with its bounds."""
        own, kind = self.own[name], KINDS[name]
        low, high = percentile_bounds(own[1:].T, self.level)
        controls = {c: self.controls[c][name] for c in CONTROLS if c in self.controls}
        excess = {}
        for control, drawn in controls.items():
            gap = own - drawn
            excess[control] = np.stack([gap[0], *percentile_bounds(gap[1:].T, self.level)])
        predicted = self.predicted.get(name)
        return Quantity(
            name,
            kind.theorem,
            kind.null,
            own[0],
            low,
            high,
            None if predicted is None else predicted[0],
            {control: drawn[0] for control, drawn in controls.items()},
            excess,
        )

    def mean(self, name: str, layers: Bool[np.ndarray, " layer"]) -> Interval:
        """Mean of a quantity over some layers."""
        return self._mean(self.own[name][:, layers])

    def excess(self, name: str, layers: Bool[np.ndarray, " layer"]) -> list[Interval]:
        """Mean over some layers of a quantity minus that of each control that has it."""
        own, each = self.own[name][:, layers], self.each[name][:, layers]
        found = [self._mean(own - each[..., k]) for k in range(each.shape[-1])]
        return [one for one in found if np.isfinite(one.estimate)]

    def _mean(self, drawn: Float64[np.ndarray, "draw chosen"]) -> Interval:
        known = np.isfinite(drawn[0])
        if not known.any():
            return Interval(np.nan, np.nan, np.nan, self.level, 0, "documents", self.n_documents)
        mean = drawn[:, known].mean(axis=1)
        return interval(mean[0], mean[1:], n_units=self.n_documents, level=self.level)


def draw(
    sums: Sums,
    directions: Directions,
    concept: str,
    direction: str,
    samples: Bool[np.ndarray, " sample"],
    resamples: Resamples,
    *,
    causal: bool,
    aligned_gamma: Float64[np.ndarray, "layer column"] | None,
    level: float,
) -> Drawn:
    """Every quantity of one concept and direction.

    Args:
        sums: Of all samples.
        directions: What the columns are.
        concept: Whose.
        direction: "fixed" or "refitted".
        samples: Which samples count.
        resamples: Draws over the samples, the data first.
        causal: Whether the model is.
        aligned_gamma: See `measure`.
        level: Of the intervals.
    """
    where = directions.where(concept, direction)
    columns = where["concept"] + where.get("every control", [])
    total = _Totals(sums, columns, samples, resamples)
    weights = "path" in sums.values
    gamma = None if aligned_gamma is None else aligned_gamma[:, columns]
    found = measure(total, causal=causal, weights=weights, aligned_gamma=gamma)
    shape = total("tokens").shape
    place = {role: [columns.index(k) for k in where.get(role, [])] for role in CONTROLS}
    predicted = {n: m.predicted for n, m in found.items() if m.predicted is not None}
    steps = {"measured": "layer", "heads": "heads"} | (
        {"predicted": "predicted"} if gamma is not None else {}
    )
    return Drawn(
        {name: np.broadcast_to(m.value, shape)[..., 0].copy() for name, m in found.items()},
        {name: np.broadcast_to(value, shape)[..., 0].copy() for name, value in predicted.items()},
        {role: _averaged(found, shape, at) for role, at in place.items() if at},
        {n: np.broadcast_to(found[n].value, shape)[..., 1:] for n in DECISIVE if n in found},
        {name: tenth_slopes(total, part)[0, :, 0] for name, part in steps.items()},
        resamples.n_documents,
        level,
    )


def _averaged(
    found: Mapping[str, Measured], shape: tuple[int, ...], at: Sequence[int]
) -> dict[str, Float64[np.ndarray, "draw layer"]]:
    return {n: np.broadcast_to(m.value, shape)[..., at].mean(axis=-1) for n, m in found.items()}


class _Totals:
    """Sums of some columns over the samples of every draw, by name, computed once."""

    def __init__(
        self, sums: Sums, columns: Sequence[int], samples: Bool[np.ndarray, " sample"], resamples: Resamples
    ) -> None:
        self.sums, self.columns = sums, list(columns)
        # How often each draw takes each sample that counts.
        self.weights = resamples.sample_weights * samples
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, name: str) -> np.ndarray:
        if name not in self.known:
            values = self.sums.values[name]
            values = values[:, :, None] if values.ndim == 2 else values[:, :, self.columns]
            self.known[name] = np.tensordot(self.weights.astype(np.float64), values, axes=1)
        return self.known[name]


@dataclass(frozen=True)
class Slopes:
    """Three estimates of one factor.

    Attributes:
        ols: Diluted by noise in the earlier layer.
        orthogonal: Consistent if the noise ratio is right.
        deviation_ratio: Of the later to the earlier layer, with the covariance's sign.
        noise_ratio: Assumed error variance of the later layer over the earlier.
        n_tokens, n_samples: What they rest on; samples are centred apart.
    """

    ols: float
    orthogonal: float
    deviation_ratio: float
    noise_ratio: float
    n_tokens: int
    n_samples: int

    def __repr__(self) -> str:
        return (
            f"Slopes: orthogonal {self.orthogonal:.3f} (noise ratio {self.noise_ratio:g}), "
            f"deviation ratio {self.deviation_ratio:.3f}, OLS {self.ols:.3f}; "
            f"{self.n_tokens} tokens of {self.n_samples} sample{'s' * (self.n_samples > 1)}"
        )


def layer_slopes(
    before: Float[np.ndarray, " token"],
    after: Float[np.ndarray, " token"],
    sample: Int[np.ndarray, " token"] | None = None,
    noise_ratio: float = 1.0,
) -> Slopes:
    """Slope of the next layer's activations on this layer's.

    Args:
        before: Finite activations of tokens at one layer.
        after: Of the same tokens, a layer later.
        sample: Each token's sample; offsets of samples are taken out. None is one sample.
        noise_ratio: Error variance of `after` over that of `before`, positive.

    Returns:
        The estimates; NaN where `before` is constant or the two are uncorrelated.

    Raises:
        ValueError: A value is not finite, or the noise ratio is not positive.

    Example:
        >>> x = np.linspace(-1, 1, 50)
        >>> round(layer_slopes(x, 1.2 * x + 3).orthogonal, 6)
        1.2
    """
    if not 0 < noise_ratio < np.inf:
        raise ValueError(f"noise_ratio is {noise_ratio}: give a positive number, 1 if unknown.")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("activations must be finite: drop masked tokens before.")
    groups = np.zeros(len(before), dtype=np.int64)
    if sample is not None:
        groups = np.unique(sample, return_inverse=True)[1].reshape(-1)
    x, y = _centred(before, groups), _centred(after, groups)
    xx, xy, yy = float(x @ x), float(x @ y), float(y @ y)
    n_samples = len(np.unique(groups))
    if xx == 0 or xy == 0:
        return Slopes(np.nan, np.nan, np.nan, noise_ratio, len(x), n_samples)
    excess = yy - noise_ratio * xx
    return Slopes(
        xy / xx,
        (excess + float(np.hypot(excess, 2 * noise_ratio**0.5 * xy))) / (2 * xy),
        float(np.sign(xy) * np.sqrt(yy / xx)),
        noise_ratio,
        len(x),
        n_samples,
    )


def _centred(
    values: Float[np.ndarray, " token"], groups: Int[np.ndarray, " token"]
) -> Float64[np.ndarray, " token"]:
    sums = np.bincount(groups, weights=values.astype(np.float64))
    return np.asarray(values - (sums / np.bincount(groups))[groups], dtype=np.float64)
