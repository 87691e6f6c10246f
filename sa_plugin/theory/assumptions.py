"""Which assumptions of the idealised model a real one breaks, and what then may not be concluded.

The limits are ours and stated with each: an assumption is named as broken when what was measured
passes them. "Aligned" here is weak: beta and gamma are positive, and their product is larger than
that of every control direction in the same layer. With m controls that are no different from the
concept this happens by chance in up to 1 / (m + 1) of the layers; `sa_plugin.heads.align` tests it
against a null of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from sa_plugin.host.protocol import HostInfo
from sa_plugin.theory.measures import Measures
from sa_plugin.theory.paths import Directions, Path
from sa_plugin.theory.sums import Sums

MLP_LIMIT = 0.2
"""Share of the change through a block that MLPs may write."""
PATH_LIMIT = 0.5
"""Share of the heads' write that the concept's own path must explain."""
SCALE_LIMIT = 0.1
"""Variation of 1 / r over tokens, as a share of its mean."""
KEPT_LIMIT = 0.5
"""Share of attention that must go to tokens that count."""
GROWTH_LIMIT = 0.01
"""Distance of the predicted factor from 1 below which there is nothing to predict."""


@dataclass(frozen=True)
class Assumption:
    """One assumption that is broken.

    Attributes:
        name: Which.
        evidence: What was measured, or what the architecture says.
        then: What may not be concluded.
        layers: Where; all blocks if empty.
        of: Concept and direction it was measured on; all if empty.
        measured: The number within the evidence.
    """

    name: str
    evidence: str
    then: str
    layers: tuple[int, ...] = ()
    of: str = ""
    measured: str = ""

    def __repr__(self) -> str:
        where = f" (layers {span(self.layers)})" if self.layers else ""
        return f"Assumption broken: {self.name}{where}: {self.evidence}. {self.then}"


def told(broken: Sequence[Assumption]) -> list[str]:
    """A sentence for each assumption that is broken, with every concept and the layers it is broken in."""
    groups: dict[str, list[Assumption]] = {}
    for one in broken:
        groups.setdefault(one.name, []).append(one)
    return [_together(group) if len(group) > 1 else repr(group[0]) for group in groups.values()]


def _together(group: Sequence[Assumption]) -> str:
    first = group[0]
    # What was measured belongs to each concept, the rest of the evidence is the same for all.
    evidence = first.evidence.removesuffix(f"; {first.measured}")
    where = [f"layers {span(one.layers)}" + (f", {one.measured}" if one.measured else "") for one in group]
    every = "; ".join(f"{one.of} ({at})" for one, at in zip(group, where, strict=True))
    return f"Assumption broken: {first.name}: {evidence.replace(first.of, every)}. {first.then}"


@dataclass(frozen=True, eq=False)
class HeadPaths:
    """Each head's path along each direction, in the units of `IdealModel`.

    Attributes:
        beta, gamma: beta_h / r^2 and gamma_h / r at the samples' mean 1 / r^2 and 1 / r.
        aligned: Positive, and above every control direction; see the module.
        lift_plus, lift_minus: Mass on the top share above chance, queries a > 0 and a < 0.
    """

    beta: Float64[np.ndarray, "layer head column"]
    gamma: Float64[np.ndarray, "layer head column"]
    aligned: Bool[np.ndarray, "layer head column"]
    lift_plus: Float64[np.ndarray, "layer head column"]
    lift_minus: Float64[np.ndarray, "layer head column"]


def heads_of(sums: Sums, directions: Directions, paths: Sequence[Path] | None) -> HeadPaths:
    """The table of heads; beta and gamma are NaN without weights."""
    lifts = [_lift(sums, side) for side in ("plus", "minus")]
    unknown = np.full_like(lifts[0], np.nan)
    if paths is None:
        return HeadPaths(unknown, unknown, np.zeros(unknown.shape, dtype=bool), *lifts)
    # The idealised model knows one scale: each head's numbers are put in it at the samples' mean.
    n = sums.values["tokens"][..., 0].sum(0)
    inverse = sums.values["inverse scale"].sum(0) / n
    square = sums.values["inverse scale squared"].sum(0) / n
    beta = np.stack([path.beta.numpy() for path in paths]) * square[:, None, None]
    gamma = np.stack([path.gamma.numpy() for path in paths]) * inverse[:, None, None]
    return HeadPaths(beta, gamma, _aligned(beta, gamma, directions), *lifts)


def aligned_gamma(paths: Sequence[Path] | None) -> Float64[np.ndarray, "layer column"] | None:
    """Sum of gamma over heads with positive beta and gamma; None where beta is not known."""
    if paths is None or any(not bool(path.beta.isfinite().all()) for path in paths):
        return None
    both = [((p.beta > 0) & (p.gamma > 0)) * p.gamma for p in paths]
    return np.stack([one.sum(0).numpy() for one in both])


def of_concept(
    directions: Directions,
    measures: Measures,
    concept: str,
    direction: str,
    heads: HeadPaths,
    *,
    weights: bool,
) -> list[Assumption]:
    """Broken for one concept and direction."""
    who = f"{concept!r} {direction}"
    found = _measured(who, measures, directions.layers)
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


def _measured(who: str, measures: Measures, layers: tuple[int, ...]) -> list[Assumption]:
    found = []
    for rule in _RULES:
        if rule.quantity not in measures.own:
            continue
        value = measures.own[rule.quantity].estimate
        # A comparison with NaN is false: what was not measured breaks nothing.
        at = tuple(b for b, bad in zip(layers, rule.passes(value), strict=True) if bad)
        if at:
            mean = f"mean {rule.quantity} over layers {np.nanmean(value):.3f}"
            found.append(Assumption(rule.name, f"{rule.evidence} {who}; {mean}", rule.then, at, who, mean))
    return found


def _unaligned(
    who: str, directions: Directions, concept: str, direction: str, heads: HeadPaths
) -> list[Assumption]:
    where = directions.where(concept, direction).get("concept", [])
    if not where or not np.isfinite(heads.beta).all():
        return []
    lacks = ~heads.aligned[:, :, where[0]].any(axis=1)
    # Where no head writes it at all, the block has nothing to be aligned.
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
            who,
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
    # Mass above chance for each query of that sign; heads last in the sums, second here.
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
    # The bar of each direction: the strongest single control in the layer, whichever head it is in.
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


def span(layers: tuple[int, ...]) -> str:
    """Blocks as ranges: (0, 1, 2, 5) is "0-2, 5"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], layer]
        else:
            parts.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
