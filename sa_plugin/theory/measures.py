"""What is measured of each theorem in each block, beside what the idealised model predicts.

OUR estimators of OUR reconstruction (`docs/experiments/ideal_model`); none is a formula of
arXiv 2512.05038. a is read at the block's input and output, x = a - mean of the sample, V_i the
variance of a / r under query i's actual attention (kept tokens, renormalised).

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
same shape; draw 0 is the data as they are, each other one leaves a document out.

Intervals are over source documents that have samples of the concept, the vectors held fixed; each
quantity minus its controls is taken in the same columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64

from sa_plugin._face import face_methods
from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import Drawn
from sa_plugin.statistics.interval import Kind
from sa_plugin.statistics.shape import skewness_of_sums
from sa_plugin.theory.paths import Directions
from sa_plugin.theory.slopes import orthogonal
from sa_plugin.theory.sums import Sums

_Values: TypeAlias = Float64[np.ndarray, "_draw _layer _column"]
Total: TypeAlias = Callable[[str], np.ndarray]
"""Sums over samples by name, `[draw, layer, column]`."""
CONTROLS = ("permuted", "random")
DECISIVE = (
    *(f"{who}{what}" for who in ("", "heads_", "prefix_") for what in ("gap_deviation_ratio", "gaps_grown")),
    "attention_by_sign",
    "equalisation",
    "tail_gain",
    "skew_growth",
)
"""What verdicts rest on (`theory.verdicts`)."""


class Belongs(NamedTuple):
    """What a quantity belongs to.

    Attributes:
        theorem: "T1", "C1", "C2", "T2" or "assumption".
        null: Its value where nothing happens.
        kind: For its interval.
    """

    theorem: str
    null: float
    kind: Kind = "mean"


QUANTITIES: Mapping[str, Belongs] = {
    **{f"{who}gap_slope": Belongs("T1", 1.0) for who in ("", "heads_", "prefix_")},
    **{f"{who}gap_deviation_ratio": Belongs("T1", 1.0) for who in ("", "heads_", "prefix_")},
    **{f"{who}gaps_grown": Belongs("T1", 0.5, "share") for who in ("", "heads_", "prefix_")},
    **{f"{who}gaps_shrunk": Belongs("T1", 0.5, "share") for who in ("", "heads_", "prefix_")},
    **{f"{who}gap_order": Belongs("T1", 0.0, "difference") for who in ("", "heads_", "prefix_")},
    "gap_deviation_per_norm": Belongs("T1", 1.0),
    "prefix_left_out": Belongs("T1", 0.0, "share"),
    "path_gap_slope": Belongs("T1", 1.0),
    "predicted_factor": Belongs("T1", 1.0),
    "attention_by_sign": Belongs("C1", 0.0),
    **{f"{end}_lift_{side}": Belongs("C1", 0.0) for end in ("top", "bottom") for side in ("plus", "minus")},
    "top_lift_plus_with_sinks": Belongs("C1", 0.0),
    "attention_by_sign_with_sinks": Belongs("C1", 0.0),
    "top_mass_plus": Belongs("C1", np.nan, "share"),
    "effective_keys": Belongs("C1", 1.0),
    "effective_keys_with_sinks": Belongs("C1", 1.0),
    "kept_mass": Belongs("C1", np.nan, "share"),
    "spread": Belongs("C2", np.nan),
    "variation": Belongs("C2", np.nan),
    "equalisation": Belongs("C2", 0.0),
    "update_gap_ratio": Belongs("C2", 1.0),
    "skew": Belongs("T2", 0.0),
    "skew_after": Belongs("T2", 0.0),
    "l_skew": Belongs("T2", 0.0),
    "skew_growth": Belongs("T2", 0.0),
    "tail_gain": Belongs("T2", 0.0),
    "heads_tail_gain": Belongs("T2", 0.0),
    "mlp_share": Belongs("assumption", 0.0),
    "path_r2": Belongs("assumption", 1.0),
}


class Estimated(NamedTuple):
    """_Values and, where there is one, the prediction."""

    value: _Values
    predicted: _Values | None = None


def _estimate_all(
    total: Total, *, causal: bool, weights: bool, aligned_gamma: Float64[np.ndarray, "layer column"] | None
) -> dict[str, Estimated]:
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


def _gaps(total: Total, weights: bool, beta: bool) -> dict[str, Estimated]:
    xx = total("xx")
    found: dict[str, Estimated] = {}
    slope = deviation = None
    if beta:
        xy, yy = total("xy predicted"), total("yy predicted")
        slope, deviation = orthogonal(xx, xy, yy), np.sqrt(_ratio(yy, xx))
        factor = _ratio(total("gain"), total("tokens"))
        found["predicted_factor"] = Estimated(np.where(xx > 0, factor, np.nan))
    for who, name in (("", "layer"), ("heads_", "heads")):
        xy, yy = (total(f"{what} {name}") for what in ("xy", "yy"))
        found[f"{who}gap_slope"] = Estimated(orthogonal(xx, xy, yy), slope)
        found[f"{who}gap_deviation_ratio"] = Estimated(np.sqrt(_ratio(yy, xx)), deviation)
        found |= _pairs(total, who, name, slope)
    if weights:
        path = orthogonal(xx, total("xy path"), total("yy path"))
        found["path_gap_slope"] = Estimated(path, slope)
    norm = _ratio(total("norm after"), total("norm before"))
    found["gap_deviation_per_norm"] = Estimated(found["gap_deviation_ratio"].value / norm)
    return found


def _pairs(total: Total, who: str, name: str, slope: _Values | None) -> dict[str, Estimated]:
    pairs, grown, shrunk, flipped = (
        total(f"{what} {name}") for what in ("pairs", "grown", "shrunk", "flipped")
    )
    one = None if slope is None else np.where(np.isnan(slope), np.nan, 1.0)
    return {
        # Unchanged pairs count half: (grown + (pairs - grown - shrunk) / 2) / pairs.
        f"{who}gaps_grown": Estimated(_ratio((pairs + grown - shrunk) / 2, pairs), one),
        f"{who}gaps_shrunk": Estimated(_ratio(shrunk, pairs), None if one is None else one - 1),
        # Kendall's tau: pairs in order less pairs that changed it, over all.
        f"{who}gap_order": Estimated(1 - 2 * _ratio(flipped, pairs), one),
    }


def _prefix(total: Total) -> dict[str, Estimated]:
    xx, xy, yy = (total(f"{what} prefix") for what in ("xx", "xy", "yy"))
    pxy, pyy = total("xy prefix predicted"), total("yy prefix predicted")
    pairs, left_out = total("pairs prefix"), total("left out prefix")
    slope = orthogonal(xx, pxy, pyy)
    return {
        "prefix_gap_slope": Estimated(orthogonal(xx, xy, yy), slope),
        "prefix_gap_deviation_ratio": Estimated(np.sqrt(_ratio(yy, xx)), np.sqrt(_ratio(pyy, xx))),
        **_pairs(total, "prefix_", "prefix", slope),
        "prefix_left_out": Estimated(_ratio(left_out, left_out + pairs)),
    }


def _attention(total: Total, beta: bool) -> dict[str, Estimated]:
    def lift(kind: str, end: str, side: str) -> _Values:
        chance = "chance full" if kind == "full" else "chance"
        mass = total(f"{kind} {end} {side}") - total(f"{chance} {end} {side}")
        return _ratio(mass, total(f"queries {side}"))

    found = {
        f"{end}_lift_{side}": Estimated(
            lift("mass", end, side), lift("predicted", end, side) if beta else None
        )
        for end in ("top", "bottom")
        for side in ("plus", "minus")
    }
    plus, minus = found["top_lift_plus"], found["top_lift_minus"]
    own = None
    if plus.predicted is not None and minus.predicted is not None:
        own = plus.predicted - minus.predicted
    found["attention_by_sign"] = Estimated(plus.value - minus.value, own)
    with_sinks = lift("full", "top", "plus")
    found["top_lift_plus_with_sinks"] = Estimated(with_sinks)
    found["attention_by_sign_with_sinks"] = Estimated(with_sinks - lift("full", "top", "minus"))
    queries = total("queries plus")
    mass = _ratio(total("predicted top plus"), queries) if beta else None
    found["top_mass_plus"] = Estimated(_ratio(total("mass top plus"), queries), mass)
    for name, tag in (("effective_keys", ""), ("effective_keys_with_sinks", " full")):
        gap = total(f"entropy{tag}") - total(f"log keys{tag}")
        found[name] = Estimated(np.exp(_ratio(gap, total("queries"))))
    found["kept_mass"] = Estimated(_ratio(total("kept mass"), total("queries")))
    return found


def _equalisation(
    total: Total, aligned_gamma: Float64[np.ndarray, "layer column"] | None
) -> dict[str, Estimated]:
    tails = total("tails")
    before, after = (_ratio(total(f"spread {side}"), tails) for side in ("before", "after"))
    updates = _ratio(total("update gap tail"), total("update gap all"))
    limit = None
    if aligned_gamma is not None:
        growth = aligned_gamma * _ratio(total("inverse scale"), total("tokens"))
        # The spread shrinks by 1 / (1 + G), so that much of it is lost.
        limit = before * growth / (1 + growth)
    return {
        "spread": Estimated(before),
        "variation": Estimated(_ratio(total("variation before"), tails)),
        "equalisation": Estimated(before - after, limit),
        "update_gap_ratio": Estimated(updates),
    }


def _tail(total: Total, beta: bool) -> dict[str, Estimated]:
    def skew(side: str) -> _Values:
        n = total("tokens")
        # _Values are centred within their samples: the first moment is zero.
        return skewness_of_sums(n, np.zeros_like(n), total(f"second {side}"), total(f"third {side}"))

    def gain(name: str) -> _Values:
        slope = _tenth_slopes(total, name)
        return np.asarray(slope[..., -1] - slope[..., 0])

    before, after = skew("before"), skew("after")
    # The sign of the data, in every draw: a draw's own would fold its noise into the estimate.
    sign = np.sign(before[:1])
    grows = sign * (skew("predicted") - before) if beta else None
    gains = sign * gain("predicted") if beta else None
    shapes = _ratio(total("l skew before"), total("l skewed before"))
    return {
        "skew": Estimated(before),
        "skew_after": Estimated(after),
        "l_skew": Estimated(shapes),
        "skew_growth": Estimated(sign * (after - before), grows),
        "tail_gain": Estimated(sign * gain("layer"), gains),
        "heads_tail_gain": Estimated(sign * gain("heads"), gains),
    }


def _tenth_slopes(total: Total, name: str) -> Float64[np.ndarray, "draw layer column step"]:
    """Slope of the later on the earlier activations between neighbouring tenths of a."""
    n, x, y = (total(f"tenth {part}") for part in ("tokens", "before", name))
    return _ratio(np.diff(_ratio(y, n)), np.diff(_ratio(x, n)))


def _shares(total: Total, weights: bool) -> dict[str, Estimated]:
    found = {"mlp_share": Estimated(1 - _ratio(total("change by heads"), total("change")))}
    if weights:
        # Squared correlation: cov^2 over the product of the two variances.
        explained = total("path by heads") ** 2
        found["path_r2"] = Estimated(_ratio(explained, total("path") * total("heads' write")))
    return found


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.asarray(ratio(top, bottom, empty=np.nan))


@dataclass(frozen=True, eq=False)
class Quantity:
    """One quantity of one concept and direction, by layer.

    Attributes:
        name: See the module.
        theorem: What it belongs to.
        null: Its value where nothing happens.
        measured: Over the layers.
        predicted: By the idealised model; None where it says nothing or weights are missing.
        controls: The same of permuted-label and random directions, as far as there are any.
        excess: Measured minus each control, column by column.
    """

    name: str
    theorem: str
    null: float
    measured: Drawn
    predicted: Float64[np.ndarray, " layer"] | None
    controls: Mapping[str, Float64[np.ndarray, " layer"]]
    excess: Mapping[str, Drawn]

    def __repr__(self) -> str:
        value = self.measured.estimate
        known = np.isfinite(value)
        if not known.any():
            return f"Quantity({self.name}: not defined)"
        beside = "" if self.predicted is None else f", predicted {np.nanmean(self.predicted):.3f}"
        beside += "".join(f", {k} {np.nanmean(v):.3f}" for k, v in self.controls.items())
        return f"Quantity({self.name}: mean of {known.sum()} layers {float(value[known].mean()):.3f}{beside})"


@face_methods
@dataclass(frozen=True, eq=False)
class Measures:
    """Every quantity of one concept and direction.

    Attributes:
        own: Over the layers, by name.
        predicted: By name, over the layers.
        controls: By control and name, random directions averaged.
        each: Over layers and controls, by decisive name: every control direction by itself, those
            of other concepts' permuted labels included.
        tenths: Slopes between neighbouring tenths of a, measured and predicted, `[layer, step]`.
    """

    own: Mapping[str, Drawn]
    predicted: Mapping[str, Drawn]
    controls: Mapping[str, Mapping[str, Drawn]]
    each: Mapping[str, Drawn]
    tenths: Mapping[str, Float64[np.ndarray, "layer step"]]

    def quantity(self, name: str) -> Quantity:
        """One quantity beside its controls."""
        own, kind = self.own[name], QUANTITIES[name]
        controls = {c: self.controls[c][name] for c in CONTROLS if c in self.controls}
        return Quantity(
            name,
            kind.theorem,
            kind.null,
            own,
            self.predicted[name].estimate.copy() if name in self.predicted else None,
            {control: drawn.estimate.copy() for control, drawn in controls.items()},
            {control: own - drawn for control, drawn in controls.items()},
        )

    def mean(self, name: str, layers: Bool[np.ndarray, " layer"]) -> Drawn:
        """Mean of a quantity over some layers."""
        return mean_of_layers(self.own[name], layers)

    def excess(self, name: str, layers: Bool[np.ndarray, " layer"]) -> list[Drawn]:
        """Mean over some layers of a quantity minus that of each control that has it."""
        own, each = self.own[name], self.each[name]
        found = [mean_of_layers(own - each.sel(control=k), layers) for k in each.axes["control"]]
        return [one for one in found if np.isfinite(one.estimate)]


def mean_of_layers(drawn: Drawn, layers: Bool[np.ndarray, " layer"]) -> Drawn:
    """Mean over some layers where the data define it, in every column over the same ones."""
    known = layers & np.isfinite(drawn.estimate)
    mean = drawn.values[known].mean(axis=0) if known.any() else np.full(drawn.values.shape[1], np.nan)
    return drawn.mean("layer").like(mean)


def measure(
    sums: Sums,
    directions: Directions,
    concept: str,
    direction: str,
    samples: Bool[np.ndarray, " sample"],
    resamples: Resamples,
    *,
    causal: bool,
    aligned_gamma: Float64[np.ndarray, "layer column"] | None,
) -> Measures:
    """Every quantity of one concept and direction.

    Args:
        sums: Of all samples.
        directions: What the columns are.
        concept: Whose.
        direction: "fixed" or "refitted".
        samples: Which samples count.
        resamples: Columns of weights over the samples.
        causal: Whether the model is.
        aligned_gamma: Sum of gamma over heads with positive beta and gamma, where beta is known.
    """
    where = directions.where(concept, direction)
    # The concept's own column first, then every control that stands beside it.
    columns = where["concept"] + where.get("every control", [])
    total = _Totals(sums, columns, samples, resamples)
    gamma = None if aligned_gamma is None else aligned_gamma[:, columns]
    found = _estimate_all(total, causal=causal, weights="path" in sums.values, aligned_gamma=gamma)
    shape = total("tokens").shape

    carried = resamples.rows(samples)

    def drawn(name: str, values: np.ndarray, **axes: Sequence[int]) -> Drawn:
        # Columns stand first in the sums, and last in a Drawn.
        kept = np.ascontiguousarray(np.moveaxis(values, 0, -1))
        return resamples.drawn(kept, QUANTITIES[name].kind, carried, layer=directions.layers, **axes)

    full = {name: np.broadcast_to(one.value, shape) for name, one in found.items()}
    place = {role: [columns.index(k) for k in where.get(role, [])] for role in CONTROLS}
    steps = {"measured": "layer", "heads": "heads"} | ({} if gamma is None else {"predicted": "predicted"})
    controls = range(len(columns) - 1)
    return Measures(
        {name: drawn(name, values[..., 0]) for name, values in full.items()},
        {
            name: drawn(name, np.broadcast_to(one.predicted, shape)[..., 0])
            for name, one in found.items()
            if one.predicted is not None
        },
        {
            role: {name: drawn(name, values[..., at].mean(axis=-1)) for name, values in full.items()}
            for role, at in place.items()
            if at
        },
        {name: drawn(name, full[name][..., 1:], control=controls) for name in DECISIVE if name in found},
        {name: _tenth_slopes(total, part)[0, :, 0] for name, part in steps.items()},
    )


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
            # One matrix product: columns by samples, times samples by layers and columns.
            self.known[name] = np.tensordot(self.weights.astype(np.float64), values, axes=1)
        return self.known[name]
