"""Which coalitions of players to evaluate, and how much each counts.

A coalition is a row of booleans, one a player: True keeps the player, False masks it.

`bernoulli` keeps each player with probability p, independently (LIME, RISE). `shapley` gives each
coalition T with 0 < t = |T| < n the weight w(T) of the Shapley kernel

    mu(T) = (n - 1) / (C(n, t) t (n - t)),

for KernelSHAP and SHAP-IQ. When 2^n fits the budget all coalitions are there and w = mu. Otherwise
sizes t and n - t are enumerated, from the outside in, as long as their share of the budget covers
all of theirs (as shap's KernelExplainer does); the rest of the budget draws pairs of T and its
complement, t in proportion to the kernel's mass and T uniformly, and w(T) is the mass not
enumerated times T's share of the draws. So sum_T w(T) g(T) estimates sum_T mu(T) g(T) without bias
for every g, whatever the budget. The empty and the full coalition are always there; their kernel
weight is infinite.

A smaller number of Bernoulli coalitions is the beginning of a larger one of the same seed, so that
methods that share a seed share passes; so are Shapley draws where the same sizes are enumerated.
`insertion` and `deletion` are the coalitions of one order, not drawn at all.
"""

from __future__ import annotations

from itertools import combinations
from math import comb, inf
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Coalitions = Bool[np.ndarray, "coalition player"]
MOST_LISTED = 20
"""Players of which all coalitions are listed, a million of them."""


class CoalitionPlan(NamedTuple):
    """Coalitions to evaluate and the weight of each."""

    coalitions: Bool[np.ndarray, "coalition player"]
    weights: Float[np.ndarray, " coalition"]


def bernoulli(n_players: int, n_coalitions: int, *, seed: int, keep: float = 0.5) -> CoalitionPlan:
    """Coalitions that keep each player with probability `keep`; all weigh 1.

    Raises:
        ValueError: A number below 1, or a probability that is not inside (0, 1).

    Example:
        >>> bernoulli(4, 3, seed=0).coalitions.shape
        (3, 4)
    """
    _positive(n_players=n_players, n_coalitions=n_coalitions)
    if not 0 < keep < 1:
        raise ValueError(f"keep is {keep}: give a probability above 0 and below 1.")
    draws = np.random.default_rng(seed).random((n_coalitions, n_players))
    return CoalitionPlan(draws < keep, np.ones(n_coalitions))


def shapley(n_players: int, budget: int, *, seed: int) -> CoalitionPlan:
    """Coalitions with weights of the Shapley kernel, the empty and the full one first.

    Args:
        n_players: Number of players.
        budget: At most so many coalitions; all of them when 2^n_players are no more.
        seed: Of the draws.

    Raises:
        ValueError: No player, or a budget below 4.

    Example:
        >>> len(shapley(8, 300, seed=0).coalitions)
        256
    """
    _positive(n_players=n_players)
    if budget < 4:
        raise ValueError(f"budget is {budget}: give 4 coalitions at least.")
    if n_players <= MOST_LISTED and 2**n_players <= budget:
        return enumerated(n_players)
    # Two of the budget are the empty and the full coalition.
    sizes, left = _enumerated_sizes(n_players, budget - 2)
    rows, weights = [np.zeros((1, n_players), bool), np.ones((1, n_players), bool)], [inf, inf]
    for size in sizes:
        found = _subsets(n_players, size)
        # All coalitions of a size share its mass: mass / C(n, t) is the kernel mu itself.
        rows.append(found)
        weights += [_mass(n_players, size) / len(found)] * len(found)
    others = np.array([t for t in range(1, n_players) if t not in sizes])
    if len(others):
        # A complement has the kernel weight of its coalition, so a pair costs two of the budget and
        # cancels what odd terms of the value would add to the error.
        drawn, counts = _pairs(n_players, others, left // 2, seed)
        rows.append(drawn)
        total = sum(_mass(n_players, int(t)) for t in others)
        # Drawn with probability mu / total, so the share of draws times the total estimates mu.
        weights += list(total * counts / counts.sum())
    return CoalitionPlan(np.concatenate(rows), np.array(weights, dtype=np.float64))


def enumerated(n_players: int) -> CoalitionPlan:
    """All 2^n coalitions with the weights of the Shapley kernel.

    Raises:
        ValueError: No player, or more than 20.
    """
    if not 1 <= n_players <= MOST_LISTED:
        raise ValueError(
            f"{n_players} players: all coalitions are listed for 1 to {MOST_LISTED}; for more use "
            "shapley(n_players, budget, seed=...)."
        )
    # Row k is k in binary: bit i says whether player i is kept.
    rows = (np.arange(2**n_players)[:, None] >> np.arange(n_players)) & 1 == 1
    weights = [
        _mass(n_players, int(t)) / comb(n_players, int(t)) if 0 < t < n_players else inf for t in rows.sum(1)
    ]
    return CoalitionPlan(rows, np.array(weights, dtype=np.float64))


def leave_one_out(n_players: int) -> Coalitions:
    """The full coalition, then the full one without each player in turn."""
    _positive(n_players=n_players)
    return np.concatenate([np.ones((1, n_players), bool), ~np.eye(n_players, dtype=bool)])


def insertion(order: Int[np.ndarray, " player"], n_steps: int | None = None) -> Coalitions:
    """None, then more and more of the first players of an order, up to all.

    Args:
        order: Every player once, the most important first.
        n_steps: Number of steps, as equal as whole players allow; by default one a player and 50
            at most.

    Returns:
        `n_steps + 1` coalitions; after k steps round(k n / n_steps) players are in.

    Raises:
        ValueError: The order is no permutation, or the steps are not 1 to the number of players.

    Example:
        >>> insertion(np.array([2, 0, 1])).sum(1)
        array([0, 1, 2, 3])
    """
    n = len(order)
    if not np.array_equal(np.sort(order), np.arange(n)) or not n:
        raise ValueError(f"order {order.tolist()} is no permutation of the {n} players.")
    steps = min(n, 50) if n_steps is None else n_steps
    if not 1 <= steps <= n:
        raise ValueError(f"n_steps is {steps}: give 1 to {n}, the number of players.")
    # The inverse of a permutation: rank[player] is the player's place in the order.
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)
    # Halves up, where round() would take neighbouring steps to the same even number.
    taken = (2 * np.arange(steps + 1) * n + steps) // (2 * steps)
    chosen: Coalitions = rank[None] < taken[:, None]
    return chosen


def deletion(order: Int[np.ndarray, " player"], n_steps: int | None = None) -> Coalitions:
    """All, then fewer and fewer: the first players of an order leave first; see `insertion`."""
    return ~insertion(order, n_steps)


def _mass(n: int, size: int) -> float:
    """The Shapley kernel's mass on all coalitions of one size."""
    return (n - 1) / (size * (n - size))


def _enumerated_sizes(n: int, left: int) -> tuple[set[int], int]:
    """Sizes of which every coalition is taken, and what they leave of the budget."""
    sizes: set[int] = set()
    rest = sum(_mass(n, t) for t in range(1, n))
    # From the outside in: small and large coalitions have most mass and are fewest.
    for small in range(1, n // 2 + 1):
        pair = {small, n - small}
        count = sum(comb(n, t) for t in pair)
        mass = sum(_mass(n, t) for t in pair)
        # Rounding must not turn a share that fits exactly into one that does not.
        if count > left * mass / rest * (1 + 1e-9):
            break
        sizes, left, rest = sizes | pair, left - count, rest - mass
    return sizes, left


def _subsets(n: int, size: int) -> Coalitions:
    members = np.array(list(combinations(range(n), size)))
    rows = np.zeros((len(members), n), dtype=bool)
    np.put_along_axis(rows, members, True, axis=1)
    return rows


def _pairs(
    n: int, sizes: Int[np.ndarray, " size"], count: int, seed: int
) -> tuple[Coalitions, Int[np.ndarray, " coalition"]]:
    """Distinct coalitions of drawn pairs in order of their first draw, and how often each came."""
    # Two streams, or a larger count would change the first draws.
    size_rng, member_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    mass = np.array([_mass(n, int(t)) for t in sizes])
    drawn = size_rng.choice(sizes, size=count, p=mass / mass.sum())
    # The rank of each player in a uniform permutation: those below t are a uniform set of t.
    order = member_rng.random((count, n)).argsort(1).argsort(1)
    rows = order < drawn[:, None]
    both = np.stack([rows, ~rows], axis=1).reshape(2 * count, n)
    # `unique` sorts; the order of first draws comes back, so that a larger budget continues a smaller.
    _, first, counts = np.unique(np.packbits(both, axis=1), axis=0, return_index=True, return_counts=True)
    chronological = np.argsort(first)
    return both[first[chronological]], counts[chronological]


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}: give 1 or more.")
