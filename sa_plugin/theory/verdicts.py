"""Which assumptions of the idealised model a real one breaks, and what then may not be concluded.

The limits are ours and stated with each: an assumption is named as broken when what was measured
passes them. "Aligned" here is weak: beta and gamma are positive, and their product is larger than
that of every control direction in the same layer. With m controls that are no different from the
concept this happens by chance in up to 1 / (m + 1) of the layers; `sa_plugin.alignment` tests it
against a null of its own.

Between separation and collapse: where a concept's tail stands at the end of the layers checked.

In the idealised run skewness first grows (the tail separates), then falls while the spread within
the tail, mean of 1 - a / max a, goes to 0 (it collapses onto its maximum). OUR reading:

    separating   skewness is largest in the last layer, or falls from its peak without any spread
                 below .1
    collapsing   some layer at or after the peak of the skewness has a spread below .1
    no tail      no layer has a skewness above 0

It is a reading of two curves, without interval: `skew` and `spread` have theirs.

What may be said of each theorem, by one rule on intervals.

For each claim some quantities are *decisive* (table below), each with the side of its null on which
the claim puts it. Over the layers where the claim's premise holds (*assessed*):

- a layer is **for** the claim if every decisive quantity's interval lies wholly on the claimed side
  of its null, and **against** it if one's lies wholly on the other side;
- **holds**: more than half of the assessed layers are for it, at most a tenth against it, the mean
  over assessed layers of every decisive quantity has its interval on the claimed side, and so has
  its difference from each single control direction (every concept's permuted labels, random ones)
  on the same draws. Intervals over documents do not know how directions vary: a direction that is
  like m controls passes this by chance once in m + 1 times, so at least nine are asked for;
- **does not hold**: more than a tenth of the assessed layers are against it and more than are for
  it; or the mean of a decisive quantity has its interval wholly on the other side;
- **cannot be said**: everything else, with the reason: no layer meets the premise, a quantity is
  not measured, layers disagree, an interval straddles its null, a control does as well, or there
  are too few controls.

| claim | decisive | premise |
|---|---|---|
| T1 layer | gap_deviation_ratio > 1 and gaps_grown > .5 | - |
| T1 heads | the same of heads_*; causal: of prefix_* | causal: weights |
| C1 | attention_by_sign > 0 | - |
| C2 | equalisation > 0 | top_mass_plus > .5: attention has concentrated |
| T2 | tail_gain > 0 and skew_growth > 0 | skew's interval excludes 0; top_mass_plus < .25:
  attention is spread out (in between the idealised model itself turns from T2 to C2) |

The ratio of deviations and not the orthogonal slope decides T1: where a' hardly correlates with a
(the first blocks of some models) the slope is unbounded and of no sure sign.

"Holds" says that these samples show the claimed sign, for this concept beyond the controls; it is
no proof of a cause, no statement about the size (compare `predicted`), and conditional on the
assumptions listed in the report. Layers are not independent and bounds are not corrected for their
number: hence the tenth.

What `check_theory` returns: numbers, words and tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from sa_plugin._check import require, require_known
from sa_plugin.host.protocol import HostInfo
from sa_plugin.show.result import aligned, as_html, number
from sa_plugin.statistics.drawn import Interval, percentile_bounds
from sa_plugin.theory.measures import KINDS, Drawn, Quantity
from sa_plugin.theory.paths import Directions, Path
from sa_plugin.theory.sums import Sums

MLP_LIMIT = 0.2
PATH_LIMIT = 0.5
SCALE_LIMIT = 0.1
KEPT_LIMIT = 0.5
GROWTH_LIMIT = 0.01


@dataclass(frozen=True)
class Assumption:
    """One assumption that is broken.

    Attributes:
        name: Which.
        evidence: What was measured, or what the architecture says.
        then: What may not be concluded.
        layers: Where; all blocks if empty.
    """

    name: str
    evidence: str
    then: str
    layers: tuple[int, ...] = ()

    def __repr__(self) -> str:
        where = f" (layers {_span(self.layers)})" if self.layers else ""
        return f"Assumption broken: {self.name}{where}: {self.evidence}. {self.then}"


@dataclass(frozen=True, eq=False)
class Heads:
    """Each head's path along each direction, in the units of `IdealModel`.

    Attributes:
        beta, gamma: beta_h / r^2 and gamma_h / r at the samples' mean 1 / r^2 and 1 / r.
        aligned: See the module.
        lift_plus, lift_minus: Mass on the top share above chance, queries a > 0 and a < 0.
    """

    beta: Float64[np.ndarray, "layer head column"]
    gamma: Float64[np.ndarray, "layer head column"]
    aligned: Bool[np.ndarray, "layer head column"]
    lift_plus: Float64[np.ndarray, "layer head column"]
    lift_minus: Float64[np.ndarray, "layer head column"]


def heads_of(sums: Sums, directions: Directions, paths: Sequence[Path] | None) -> Heads:
    """The table of heads; beta and gamma are NaN without weights."""
    lifts = [_lift(sums, side) for side in ("plus", "minus")]
    unknown = np.full_like(lifts[0], np.nan)
    if paths is None:
        return Heads(unknown, unknown, np.zeros(unknown.shape, dtype=bool), *lifts)
    n = sums.values["tokens"][..., 0].sum(0)
    inverse = sums.values["inverse scale"].sum(0) / n
    square = sums.values["inverse scale squared"].sum(0) / n
    beta = np.stack([path.beta.numpy() for path in paths]) * square[:, None, None]
    gamma = np.stack([path.gamma.numpy() for path in paths]) * inverse[:, None, None]
    return Heads(beta, gamma, _aligned(beta, gamma, directions), *lifts)


def aligned_gamma(paths: Sequence[Path] | None) -> Float64[np.ndarray, "layer column"] | None:
    """Sum of gamma over heads with positive beta and gamma; None where beta is not known."""
    if paths is None or any(not bool(path.beta.isfinite().all()) for path in paths):
        return None
    both = [((p.beta > 0) & (p.gamma > 0)) * p.gamma for p in paths]
    return np.stack([one.sum(0).numpy() for one in both])


def of_concept(
    directions: Directions, drawn: Drawn, concept: str, direction: str, heads: Heads, *, weights: bool
) -> list[Assumption]:
    """Broken for one concept and direction."""
    who = f"{concept!r} {direction}"
    found = _measured(who, drawn, directions.layers)
    if weights:
        found += _unaligned(who, directions, concept, direction, heads)
    return found


def of_architecture(info: HostInfo, paths: Sequence[Path] | None, why: str) -> list[Assumption]:
    """Broken by the architecture, or not known for want of weights."""
    found = []
    if paths is None:
        found.append(Assumption("weights are known", why, "No prediction is made, nor tested."))
    if info.causal:
        found.append(
            Assumption(
                "same keys for all queries",
                "the model is causal",
                "That a gap shrinks through a block does not contradict Theorem 1, and that it "
                "grows does not confirm it: only prefix_* compare on equal keys. Predictions of "
                "Theorem 2 use each query's own keys and are approximate.",
            )
        )
    if info.block != "pre_norm":
        found.append(
            Assumption(
                "residual update",
                f"blocks are {info.block}",
                "A norm rescales each token after the heads have written: gaps through a block "
                "may grow or shrink by it alone.",
            )
        )
    for limit in sorted({limit for path in paths or () for limit in path.limits}):
        found.append(Assumption(f"no {limit}", "by the weights", _LIMITS[limit]))
    return found


_LIMITS = {
    "query-key norm": "beta is known up to a scale for each token: no prediction that needs it.",
    "softcap": "beta is the slope at logit 0: predicted factors are upper bounds.",
    "rotary positions": "beta is a mean over offsets: a head may read near and far tokens unlike.",
    "query and key biases": "Logits hold terms linear in a that predictions leave out.",
}


class _Rule(NamedTuple):
    name: str
    quantity: str
    passes: Callable[[Float64[np.ndarray, " layer"]], Bool[np.ndarray, " layer"]]
    evidence: str
    then: str


_RULES = (
    _Rule(
        "no MLP",
        "mlp_share",
        lambda x: x > MLP_LIMIT,
        f"MLPs write more than {MLP_LIMIT:g} of the change along",
        "Growth through a block may be the MLPs': only heads_* and prefix_* speak of heads.",
    ),
    _Rule(
        "heads write only what they read of the concept",
        "path_r2",
        lambda x: x < PATH_LIMIT,
        f"the concept's own path explains less than {PATH_LIMIT:g} of the heads' write along",
        "Growth by the heads may come from other directions they read: agreement with the "
        "predicted factor would be a coincidence.",
    ),
    _Rule(
        "heads act at all",
        "predicted_factor",
        lambda x: np.abs(x - 1) < GROWTH_LIMIT,
        f"the predicted factor is within {GROWTH_LIMIT:g} of 1 for",
        "There is next to nothing for Theorem 1 to predict there: neither growth nor its absence tests it.",
    ),
)


def _measured(who: str, drawn: Drawn, layers: tuple[int, ...]) -> list[Assumption]:
    found = []
    for rule in _RULES:
        if rule.quantity not in drawn.own:
            continue
        value = drawn.own[rule.quantity][0]
        # A comparison with NaN is false: what was not measured breaks nothing.
        at = tuple(b for b, bad in zip(layers, rule.passes(value), strict=True) if bad)
        if at:
            mean = f"mean {rule.quantity} over layers {np.nanmean(value):.3f}"
            found.append(Assumption(rule.name, f"{rule.evidence} {who}; {mean}", rule.then, at))
    return found


def _unaligned(
    who: str, directions: Directions, concept: str, direction: str, heads: Heads
) -> list[Assumption]:
    where = directions.where(concept, direction).get("concept", [])
    if not where or not np.isfinite(heads.beta).all():
        return []
    lacks = ~heads.aligned[:, :, where[0]].any(axis=1)
    lacks &= (heads.gamma[:, :, where[0]] != 0).any(axis=1)
    at = tuple(b for b, bad in zip(directions.layers, lacks, strict=True) if bad)
    if not at:
        return []
    return [
        Assumption(
            "an aligned head in every layer",
            f"no head reads and writes {who} more strongly than every control direction",
            "The theorems do not speak of these layers: what gaps do there is not their growth.",
            at,
        )
    ]


def shared(sums: Sums, layers: tuple[int, ...], *, weights: bool) -> list[Assumption]:
    """Broken for all concepts alike."""
    found = []
    total = {n: v.sum(0) for n, v in sums.values.items() if v.ndim == 2}
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = total["kept mass"] / total["queries"]
    small = tuple(b for b, v in zip(layers, kept, strict=True) if v < KEPT_LIMIT)
    if small:
        found.append(
            Assumption(
                "attention goes to tokens of the text or image",
                f"less than {KEPT_LIMIT:g} of it does, the rest to sinks and special tokens",
                "What the renormalised attention shows moves the residual stream only by that "
                "share: compare *_with_sinks and heads_*.",
                small,
            )
        )
    if weights:
        n = sums.values["tokens"][..., 0].sum(0)
        mean, square = total["inverse scale"] / n, total["inverse scale squared"] / n
        varies = np.sqrt(np.maximum(square - mean**2, 0)) / mean
        at = tuple(b for b, v in zip(layers, varies, strict=True) if v > SCALE_LIMIT)
        if at:
            found.append(
                Assumption(
                    "no norm, or one of fixed scale",
                    f"1 / r varies over tokens by more than {SCALE_LIMIT:g} of its mean (most "
                    f"{varies.max():.2f})",
                    "Heads read a / r, not a: order in the one need not be order in the other.",
                    at,
                )
            )
    return found


def _lift(sums: Sums, side: str) -> Float64[np.ndarray, "layer head column"]:
    mass = sums.heads[f"head top {side}"]
    chance = sums.values[f"chance top {side}"].sum(0)[..., None]
    n = sums.values[f"queries {side}"].sum(0)[..., None]
    lift = np.divide(mass - chance, n, out=np.full_like(mass, np.nan), where=n > 0)
    return np.swapaxes(lift, 1, 2)


def _aligned(
    beta: Float64[np.ndarray, "layer head column"],
    gamma: Float64[np.ndarray, "layer head column"],
    directions: Directions,
) -> Bool[np.ndarray, "layer head column"]:
    positive = (beta > 0) & (gamma > 0)
    product = np.where(positive, beta * gamma, 0.0)
    limit = np.zeros_like(product)
    for k, column in enumerate(directions.columns):
        others = [
            j
            for j, other in enumerate(directions.columns)
            if other.role == "random" or (other.role == "permuted" and other.direction == column.direction)
        ]
        others = [j for j in others if j != k]
        if others:
            limit[:, :, k] = product[:, :, others].max(axis=(1, 2))[:, None]
    return np.asarray(positive & (product > limit))


def _span(layers: tuple[int, ...]) -> str:
    """Blocks as ranges: (0, 1, 2, 5) is "0-2, 5"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], layer]
        else:
            parts.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


COLLAPSED = 0.1


@dataclass(frozen=True)
class Regime:
    """Where one concept stands.

    Attributes:
        concept, direction: Whose.
        name: "separating", "collapsing" or "no tail".
        skew_peak: Block whose input has the largest skewness; one past the last block is the end.
        largest_skew: There.
        collapse: First block at or after the peak whose input has a spread below .1, or None.
        smallest_spread: Over the blocks.
    """

    concept: str
    direction: str
    name: str
    skew_peak: int
    largest_skew: float
    collapse: int | None
    smallest_spread: float

    def __repr__(self) -> str:
        fallen = "never below" if self.collapse is None else f"at block {self.collapse} below"
        if self.collapse is None and self.smallest_spread < COLLAPSED:
            fallen = "from there on not below"
        return (
            f"Regime({self.concept!r} {self.direction}: {self.name}; skewness peaks at the input "
            f"of block {self.skew_peak} with {self.largest_skew:.2f}, the tail's spread is "
            f"{fallen} {COLLAPSED:g}, least {self.smallest_spread:.2f})"
        )


def regime_of(drawn: Drawn, concept: str, direction: str, layers: tuple[int, ...]) -> Regime | None:
    """The regime, or None where nothing was measured."""
    skew, spread = drawn.own["skew"][0], drawn.own["spread"][0]
    known = np.flatnonzero(np.isfinite(skew))
    if not len(known):
        return None
    curve = np.append(skew[known], drawn.own["skew_after"][0][known[-1]])
    places = [*(layers[k] for k in known), layers[known[-1]] + 1]
    peak = int(np.nanargmax(curve))
    tails = [(layers[k], spread[k]) for k in known if np.isfinite(spread[k])]
    after = [block for block, value in tails if block >= places[peak] and value < COLLAPSED]
    name = "no tail" if curve[peak] <= 0 else "collapsing" if after else "separating"
    least = min((float(value) for _, value in tails), default=float("nan"))
    collapse = after[0] if after else None
    return Regime(concept, direction, name, places[peak], float(curve[peak]), collapse, least)


Answer = Literal["holds", "does not hold", "cannot be said"]
CONCENTRATED = 0.5
SPREAD_OUT = 0.25
AGAINST = 0.1
LEAST_CONTROLS = 9
TITLES = {
    "T1 layer": "gaps grow through a whole block (Theorem 1)",
    "T1 heads": "gaps grow by the heads alone, on equal keys (Theorem 1)",
    "C1": "attention goes to the extreme tokens of the query's sign (Corollary 1)",
    "C2": "the tail equalises once attention has concentrated (Corollary 2)",
    "T2": "growth is strongest in the tail that is longer (Theorem 2)",
}


class Claim(NamedTuple):
    """A claim: decisive quantities, all claimed above their null, and layers that are assessed."""

    decisive: tuple[str, ...]
    assessed: Bool[np.ndarray, " layer"]
    premise: str


@dataclass(frozen=True)
class Verdict:
    """What may be said of one claim for one concept and direction.

    Attributes:
        claim: Key of `TITLES`.
        concept, direction: Whose.
        answer: "holds", "does not hold" or "cannot be said".
        because: Why.
        assessed, for_it, against: Block indices.
    """

    claim: str
    concept: str
    direction: str
    answer: Answer
    because: str
    assessed: tuple[int, ...]
    for_it: tuple[int, ...]
    against: tuple[int, ...]

    def __repr__(self) -> str:
        return (
            f"Verdict({self.claim}, {self.concept!r} {self.direction}: {self.answer}, because {self.because})"
        )


def judge(
    drawn: Drawn, concept: str, direction: str, layers: tuple[int, ...], *, causal: bool
) -> tuple[Verdict, ...]:
    """The verdict on every claim, by the rule of this module."""
    made = []
    for name, claim in _claims(drawn, causal).items():
        answer, because, votes = _decide(drawn, claim)
        picked = (claim.assessed, *votes)
        at = (tuple(b for b, here in zip(layers, vote, strict=True) if here) for vote in picked)
        made.append(Verdict(name, concept, direction, answer, because, *at))
    return tuple(made)


def _claims(drawn: Drawn, causal: bool) -> dict[str, Claim]:
    everywhere = np.isfinite(drawn.own["gap_slope"][0])
    who = "prefix" if causal else "heads"
    mass = drawn.own["top_mass_plus"][0]
    low, high = percentile_bounds(drawn.own["skew"][1:].T, drawn.level)
    skewed = (low > 0) | (high < 0)
    return {
        "T1 layer": Claim(("gap_deviation_ratio", "gaps_grown"), everywhere, ""),
        "T1 heads": Claim((f"{who}_gap_deviation_ratio", f"{who}_gaps_grown"), everywhere, ""),
        "C1": Claim(("attention_by_sign",), everywhere, ""),
        "C2": Claim(
            ("equalisation",),
            everywhere & (mass > CONCENTRATED),
            f"in no layer do queries give more than {CONCENTRATED:g} of their attention to the top share",
        ),
        "T2": Claim(
            ("tail_gain", "skew_growth"),
            everywhere & skewed & (mass < SPREAD_OUT),
            "no layer has a skewness of sure sign while attention is spread out",
        ),
    }


def _decide(
    drawn: Drawn, claim: Claim
) -> tuple[Answer, str, tuple[Bool[np.ndarray, " layer"], Bool[np.ndarray, " layer"]]]:
    none = np.zeros_like(claim.assessed)
    missing = [name for name in claim.decisive if name not in drawn.own]
    if missing:
        return "cannot be said", f"{missing[0]} needs the heads' weights", (none, none)
    if not claim.assessed.any():
        return "cannot be said", claim.premise or "no layer is measured", (none, none)
    up, down = _votes(drawn, claim)
    n, n_up, n_down = (int(vote.sum()) for vote in (claim.assessed, up, down))
    tally = f"{n_up} of {n} layers are for it, {n_down} against"
    means = {name: drawn.mean(name, claim.assessed) for name in claim.decisive}
    for name, mean in means.items():
        if mean.high < KINDS[name].null:
            return "does not hold", f"the mean {name} is {_short(mean)}; {tally}", (up, down)
    if n_down > AGAINST * n and n_down > n_up:
        return "does not hold", tally, (up, down)
    for name, mean in means.items():
        if not mean.low > KINDS[name].null:
            return "cannot be said", f"the mean {name} is {_short(mean)}; {tally}", (up, down)
    if n_up <= n / 2 or n_down > AGAINST * n:
        return "cannot be said", f"layers disagree: {tally}", (up, down)
    beaten, fewest = _beaten(drawn, claim)
    if beaten:
        return "cannot be said", f"{beaten}; {tally}", (up, down)
    return "holds", f"{tally}, beyond each of {fewest} control directions", (up, down)


def _beaten(drawn: Drawn, claim: Claim) -> tuple[str, int]:
    """Why the controls forbid to call it the concept's, or ""; and how many there are."""
    excess = {name: drawn.excess(name, claim.assessed) for name in claim.decisive}
    fewest = min(map(len, excess.values()))
    if fewest < LEAST_CONTROLS:
        return f"there are {fewest} control directions, fewer than {LEAST_CONTROLS}", fewest
    for name, each in excess.items():
        lacking = [one for one in each if not one.low > 0]
        if lacking:
            least = min(lacking, key=lambda one: one.low)
            return (
                f"{len(lacking)} of {len(each)} control directions show it too ({name} minus "
                f"theirs is {_short(least)} for one)"
            ), fewest
    return "", fewest


def _votes(drawn: Drawn, claim: Claim) -> tuple[Bool[np.ndarray, " layer"], Bool[np.ndarray, " layer"]]:
    up, down = claim.assessed.copy(), np.zeros_like(claim.assessed)
    for name in claim.decisive:
        low, high = percentile_bounds(drawn.own[name][1:].T, drawn.level)
        up &= low > KINDS[name].null
        down |= high < KINDS[name].null
    return up, down & claim.assessed


def _short(value: Interval) -> str:
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"


SHOWN = {
    "T1": (
        "gap_slope",
        "gap_deviation_ratio",
        "gaps_grown",
        "heads_gap_deviation_ratio",
        "heads_gaps_grown",
        "prefix_gap_deviation_ratio",
        "prefix_gaps_grown",
    ),
    "C1": ("attention_by_sign", "top_lift_plus", "top_mass_plus", "effective_keys"),
    "C2": ("spread", "equalisation", "update_gap_ratio"),
    "T2": ("skew", "skew_growth", "tail_gain"),
    "assumption": ("predicted_factor", "mlp_share", "path_r2"),
}
NOTE = (
    "Formulas are a reconstruction from the verbal claims of arXiv 2512.05038, not the paper's "
    "own; intervals resample documents with the vectors fixed; nothing here shows a cause."
)


@dataclass(frozen=True, eq=False)
class TheoryReport:
    """Each theorem's quantities, measured beside predicted, with controls and what follows.

    Attributes:
        quantities: By (concept, direction) and name; see `sa_plugin.theory.measures`.
        verdicts: By the rule of `sa_plugin.theory.verdicts`.
        regimes: Separating or collapsing.
        assumptions: Those that are broken.
        heads: Each head's beta, gamma and attention lift; columns as in `directions`.
        directions: What was followed.
        tenths: Slopes between neighbouring tenths of a by (concept, direction).
        absent: What was not measured, with the reason.
        settings: Counts, seed, split and model.
    """

    quantities: Mapping[tuple[str, str], Mapping[str, Quantity]]
    verdicts: tuple[Verdict, ...]
    regimes: tuple[Regime, ...]
    assumptions: tuple[Assumption, ...]
    heads: Heads
    directions: Directions
    tenths: Mapping[tuple[str, str], Mapping[str, Float64[np.ndarray, "layer step"]]]
    absent: Mapping[str, str]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        answers = Counter(verdict.answer for verdict in self.verdicts)
        told = ", ".join(f"{n} {answer}" for answer, n in answers.most_common())
        return (
            f"TheoryReport({self.settings['model']}, {len(self.quantities)} directions, "
            f"{len(self.layers)} layers, {self.settings['n_samples']} samples: {told}; "
            f"{len({a.name for a in self.assumptions})} assumptions broken)"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices, the axis of every quantity."""
        return self.directions.layers

    def quantity(self, name: str, concept: str, direction: str = "fixed") -> Quantity:
        """One quantity.

        Raises:
            ValueError: Unknown concept or direction, or a quantity that is unknown or absent.
        """
        require_known("concept", concept, dict.fromkeys(c for c, _ in self.quantities))
        require_known("direction", direction, [d for c, d in self.quantities if c == concept])
        found = self.quantities[concept, direction]
        why = self.absent.get("prefix_*" if name.startswith("prefix_") else name)
        if name not in found and why is not None:
            raise ValueError(f"{name} was not measured: {why}.")
        require_known("quantity", name, found)
        return found[name]

    def verdict(self, claim: str, concept: str, direction: str = "fixed") -> Verdict:
        """One verdict.

        Raises:
            ValueError: Unknown claim, concept or direction.
        """
        require_known("claim", claim, TITLES)
        require_known("concept", concept, dict.fromkeys(v.concept for v in self.verdicts))
        mine = {v.direction: v for v in self.verdicts if (v.claim, v.concept) == (claim, concept)}
        require_known("direction", direction, mine)
        return mine[direction]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each concept, direction, quantity and layer."""
        rows = []
        for (concept, direction), found in self.quantities.items():
            for q in found.values():
                for at, layer in enumerate(self.layers):
                    row: dict[str, Any] = {
                        "concept": concept,
                        "direction": direction,
                        "theorem": q.theorem,
                        "quantity": q.name,
                        "layer": layer,
                        "null": q.null,
                        "measured": float(q.value[at]),
                        "low": float(q.low[at]),
                        "high": float(q.high[at]),
                        "predicted": _at(q.predicted, at),
                    }
                    for control in ("permuted", "random"):
                        row[control] = _at(q.controls.get(control), at)
                        excess = q.excess.get(control)
                        for k, bound in enumerate(("", "_low", "_high")):
                            row[f"minus_{control}{bound}"] = _at(None if excess is None else excess[k], at)
                    rows.append(row)
        return rows

    def head_rows(self) -> list[dict[str, Any]]:
        """One row for each layer, head and direction followed."""
        rows = []
        for k, column in enumerate(self.directions.columns):
            for at, layer in enumerate(self.layers):
                for head in range(self.heads.beta.shape[1]):
                    place = at, head, k
                    rows.append(
                        {
                            **column._asdict(),
                            "layer": layer,
                            "head": head,
                            "beta": float(self.heads.beta[place]),
                            "gamma": float(self.heads.gamma[place]),
                            "aligned": bool(self.heads.aligned[place]),
                            "lift_plus": float(self.heads.lift_plus[place]),
                            "lift_minus": float(self.heads.lift_minus[place]),
                        }
                    )
        return rows

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed; `rows()` needs nothing.
        """
        return require("pandas", "demo", "TheoryReport.to_pandas").DataFrame(self.rows())

    def summary(self) -> str:
        """Verdicts, regimes, broken assumptions and what is absent, in words."""
        s = self.settings
        lines = [
            f"{s['model']}, {s['split']}: {s['n_samples']} samples of {s['n_documents']} "
            f"documents, {len(self.layers)} layers, top share {s['tail']:g}. {NOTE}"
        ]
        for claim, title in TITLES.items():
            lines.append(f"\n{claim}: {title}")
            lines += [
                f"  {v.concept} {v.direction}: {v.answer}, because {v.because}"
                for v in self.verdicts
                if v.claim == claim
            ]
        lines += ["", *map(repr, self.regimes)]
        lines += ["", *map(repr, self.assumptions)] if self.assumptions else []
        lines += ["", *(f"absent: {what}: {why}." for what, why in self.absent.items())]
        return "\n".join(lines)

    def table(self, theorem: str, concept: str, direction: str = "fixed") -> str:
        """Measured, predicted and controls by layer, as plain text.

        Args:
            theorem: "T1", "C1", "C2", "T2" or "assumption".
            concept: Which.
            direction: "fixed" or "refitted".

        Raises:
            ValueError: Unknown theorem, concept or direction.
        """
        require_known("theorem", theorem, SHOWN)
        self.quantity("gap_slope", concept, direction)
        found = self.quantities[concept, direction]
        shown = [found[name] for name in SHOWN[theorem] if name in found]
        header, columns = ["layer"], []
        for q in shown:
            header.append(q.name)
            columns.append([_cell(*x) for x in zip(q.value, q.low, q.high, strict=True)])
            extra = {"predicted": q.predicted, **q.controls}
            for name, values in extra.items():
                if values is not None:
                    header.append(name)
                    columns.append([number(float(v)) for v in values])
        body = [[str(b), *row] for b, row in zip(self.layers, zip(*columns, strict=True), strict=True)]
        return aligned(header, body)


def _at(values: Float64[np.ndarray, " layer"] | None, at: int) -> float:
    return float("nan") if values is None else float(values[at])


def _cell(value: float, low: float, high: float) -> str:
    return f"{number(value)} [{number(low)}, {number(high)}]"
