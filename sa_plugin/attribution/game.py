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

The coalition engine: masked forward passes of one sample, computed once for everything.

v(T)[k] = objective k of the residual at its layer, where players outside T are masked (`maskers`).

Objectives of several names, concepts and layers are read together; passes run in batches of a
bounded number of tokens, without gradients, and end at the deepest layer. Every coalition is
remembered, so LIME, KernelSHAP, RISE, SHAP-IQ, insertion and deletion pay for one only once.

Cost: one forward pass a distinct coalition, up to the deepest layer. A host that reads several
sites in one pass offers `forward_sites(values, batch, sites)`; with any other a pass is made for
each distinct layer.

What a value does not show: that the model would behave so on real inputs. Masked inputs are off
its training distribution, and more so the more is masked.

An objective of one sample as a function of the model's input, for captum and anything else.

`forward_func(host, objective, sample)` maps `[row, token, d_embed]` embeddings, or pixels
`[row, 3, height, width]`, to `[row]`; gradients flow, blocks above the objective's layer are never
computed, the sample's mask and positions ride along. captum's layer methods take TransformerLens
HookPoints as layers, such as `bridge.blocks[3].hook_out`.

`feature_mask` and `baseline` make tokens, or patches, the features of captum's perturbation
methods. Special tokens and padding belong to one further feature, whose baseline is the input
itself: perturbing it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb, inf
from typing import NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import require_type
from sa_plugin.attribution.players import Grid, counted, make_baseline, masked, patch_grid, players_of
from sa_plugin.data.sample import Sample
from sa_plugin.host.protocol import Batch, DifferentiableHost, Host, Point, Site, require_differentiable

Coalitions = Bool[np.ndarray, "coalition player"]
MOST_LISTED = 20


class Plan(NamedTuple):
    """Coalitions to evaluate and the weight of each."""

    coalitions: Bool[np.ndarray, "coalition player"]
    weights: Float[np.ndarray, " coalition"]


def bernoulli(n_players: int, n_coalitions: int, *, seed: int, keep: float = 0.5) -> Plan:
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
    return Plan(draws < keep, np.ones(n_coalitions))


def shapley(n_players: int, budget: int, *, seed: int) -> Plan:
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
    sizes, left = _enumerated_sizes(n_players, budget - 2)
    rows, weights = [np.zeros((1, n_players), bool), np.ones((1, n_players), bool)], [inf, inf]
    for size in sizes:
        found = _subsets(n_players, size)
        rows.append(found)
        weights += [_mass(n_players, size) / len(found)] * len(found)
    others = np.array([t for t in range(1, n_players) if t not in sizes])
    if len(others):
        drawn, counts = _pairs(n_players, others, left // 2, seed)
        rows.append(drawn)
        total = sum(_mass(n_players, int(t)) for t in others)
        weights += list(total * counts / counts.sum())
    return Plan(np.concatenate(rows), np.array(weights, dtype=np.float64))


def enumerated(n_players: int) -> Plan:
    """All 2^n coalitions with the weights of the Shapley kernel.

    Raises:
        ValueError: No player, or more than 20.
    """
    if not 1 <= n_players <= MOST_LISTED:
        raise ValueError(
            f"{n_players} players: all coalitions are listed for 1 to {MOST_LISTED}; for more use "
            "shapley(n_players, budget, seed=...)."
        )
    rows = (np.arange(2**n_players)[:, None] >> np.arange(n_players)) & 1 == 1
    weights = [
        _mass(n_players, int(t)) / comb(n_players, int(t)) if 0 < t < n_players else inf for t in rows.sum(1)
    ]
    return Plan(rows, np.array(weights, dtype=np.float64))


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
    order = member_rng.random((count, n)).argsort(1).argsort(1)
    rows = order < drawn[:, None]
    both = np.stack([rows, ~rows], axis=1).reshape(2 * count, n)
    _, first, counts = np.unique(np.packbits(both, axis=1), axis=0, return_index=True, return_counts=True)
    chronological = np.argsort(first)
    return both[first[chronological]], counts[chronological]


def check_values(
    coalitions: Bool[np.ndarray, "coalition player"], values: Float[np.ndarray, "_ objective"]
) -> None:
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


def ends(
    coalitions: Bool[np.ndarray, "coalition player"], values: Float[np.ndarray, "_ objective"]
) -> tuple[Float[np.ndarray, " objective"], Float[np.ndarray, " objective"]]:
    """Values of the empty and of the full coalition.

    Raises:
        ValueError: One of them is missing.
    """
    size = coalitions.sum(1)
    found = [np.flatnonzero(size == t) for t in (0, coalitions.shape[1])]
    if not all(len(rows) for rows in found):
        missing = "empty" if not len(found[0]) else "full"
        raise ValueError(f"the {missing} coalition is missing: its value is needed; use coalitions.shapley.")
    return values[found[0][0]], values[found[1][0]]


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}: give 1 or more.")


BATCH_TOKENS = 2048


@runtime_checkable
class Readout(Protocol):
    """A number of the activations at one place: an `Objective`, or a yardstick of the user's."""

    @property
    def layer(self) -> int:
        """Block index."""

    @property
    def hook_name(self) -> str:
        """The library's own name of the place."""

    def __call__(self, resid: Tensor, /) -> Tensor:
        """Activations `[batch, token, d_model]` to `[batch]`."""


@runtime_checkable
class ManySites(Protocol):
    """A host that reads several sites in one differentiable pass."""

    def forward_sites(self, values: Tensor, batch: Batch, sites: Sequence[Site]) -> Mapping[Site, Tensor]:
        """`forward_from` for several sites; blocks after the deepest are not computed."""


@dataclass(frozen=True, eq=False)
class CoalitionGame:
    """A sample's coalitions and their values; make one with `coalition_game`.

    Attributes:
        host: Of the sample.
        batch: The sample alone.
        values: Its input.
        baseline: What a masked token or patch becomes.
        player_of: The player of each token, -1 for tokens never masked.
        objectives: Columns of the values.
        sites: Where each objective reads.
        known: Values of coalitions evaluated so far, by their bits.
    """

    host: DifferentiableHost
    batch: Batch
    values: Tensor
    baseline: Tensor
    player_of: Int[np.ndarray, " token"]
    objectives: tuple[Readout, ...]
    sites: tuple[Site, ...]
    known: dict[bytes, Float[np.ndarray, " objective"]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"CoalitionGame({self.n_players} players, {len(self.objectives)} objectives up to "
            f"layer {max(site.layer for site in self.sites)}, {len(self.known)} coalitions known)"
        )

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.player_of.max()) + 1

    def __call__(
        self, coalitions: Shaped[np.ndarray, "*any_shape"]
    ) -> Float[np.ndarray, "coalition objective"]:
        """The objectives of each coalition, in order; repeated ones are computed once.

        Args:
            coalitions: Booleans `[coalition, player]`; True keeps a player.

        Raises:
            ValueError: Another shape than `[coalition, player]` or no booleans, or an objective
                that is not finite or not one number a row.
        """
        self._check(coalitions)
        keys = [row.tobytes() for row in np.packbits(coalitions, axis=1)]
        new = {key: k for k, key in enumerate(keys) if key not in self.known}
        chosen = coalitions[sorted(new.values())]
        step = max(1, self.host.batch_tokens // len(self.player_of))
        starts = range(0, len(chosen), step)
        for start in tqdm(starts, desc="masked passes", disable=not self.host.progress):
            part = chosen[start : start + step]
            for row, value in zip(np.packbits(part, axis=1), self._run(part), strict=True):
                self.known[row.tobytes()] = value
        return np.stack([self.known[key] for key in keys])

    def _run(self, part: Bool[np.ndarray, "row player"]) -> Float[np.ndarray, "row objective"]:
        # The last column is True: player -1 is always kept.
        keep = np.concatenate([part, np.ones((len(part), 1), bool)], axis=1)[:, self.player_of]
        kept = torch.from_numpy(keep).to(self.values.device)
        with torch.no_grad():
            rows = masked(self.values, self.baseline, kept, self._grid)
            found = _residuals(self.host, rows, self.batch, self.sites)
            columns = [
                _column(objective, found[site])
                for objective, site in zip(self.objectives, self.sites, strict=True)
            ]
        return np.stack(columns, axis=1)

    @property
    def _grid(self) -> Grid | None:
        if self.values.ndim != 4:
            return None
        valid = self.batch.valid[0].cpu().numpy()
        return patch_grid(valid, self.values.shape[2], self.values.shape[3])

    def _check(self, coalitions: Shaped[np.ndarray, "*any_shape"]) -> None:
        right = coalitions.ndim == 2 and coalitions.shape[1] == self.n_players
        if not right or coalitions.dtype != np.bool_ or not len(coalitions):
            raise ValueError(
                f"coalitions are {coalitions.dtype} {list(coalitions.shape)}: give booleans "
                f"[coalition, {self.n_players}], one column a player and one row at least."
            )


def coalition_game(
    host: Host,
    sample: Sample | str,
    objectives: Sequence[Readout],
    *,
    baseline: str | Tensor | None = None,
    players: str | Int[np.ndarray, " token"] = "token",
) -> CoalitionGame:
    """Lay out one sample's coalition game; no pass beyond the embedding is made yet.

    Args:
        host: A host with `input_values` and `forward_from`.
        sample: The sample the objectives were made on, or its text.
        objectives: One or several, of any concepts and layers.
        baseline: See `maskers`: by default "mean" for texts, "zero" for images.
        players: "token", "word", "kept" (the tokens that the objectives count: attention sinks stay
            in every coalition), or the player of each token; see `players`.

    Returns:
        The game: call it with coalitions.

    Raises:
        TypeError: The host takes no embeddings, or an objective is none.
        ValueError: No objective, one of another sample or of a place that is no residual of this
            model, or what `make_baseline` and `players_of` raise.

    Example:
        >>> game = coalition_game(host, sample, [f, g])  # doctest: +SKIP
        >>> game(enumerated(game.n_players).coalitions).shape  # doctest: +SKIP
        (256, 2)
    """
    model = require_differentiable(host)
    text = Sample("text", sample, "text") if isinstance(sample, str) else sample
    if not objectives:
        raise ValueError("objectives is empty: give one at least.")
    (batch,) = model.batches([text])
    if isinstance(players, str) and players == "kept":
        players = counted([getattr(f, "mask", None) for f in objectives])
    sites = tuple(_site(model, text, objective) for objective in objectives)
    with torch.no_grad():
        values = model.input_values(batch)
        return CoalitionGame(
            model,
            batch,
            values,
            make_baseline(model, batch, values, baseline),
            players_of(text, batch, players),
            tuple(objectives),
            sites,
        )


def _site(host: DifferentiableHost, sample: Sample, objective: Readout) -> Site:
    """Where an objective reads: the point of its layer whose name is the objective's."""
    require_type("an objective", objective, Readout, "give what sa_plugin.objective returns")
    of = getattr(objective, "sample", sample.id)
    if of != sample.id:
        raise ValueError(
            f"{objective!r} was made on sample {of!r}, the game is of {sample.id!r}: an objective "
            "explains its own sample only."
        )
    if 0 <= objective.layer < host.info.n_layers:
        for point in get_args(Point):
            site = Site(objective.layer, point)
            if point not in ("z", "pattern") and host.hook_name(site) == objective.hook_name:
                return site
    raise ValueError(
        f"{objective!r} reads {objective.hook_name!r} at layer {objective.layer}; "
        f"{host.info.model} has no residual of that name there. Make the objective with this host."
    )


def _residuals(
    host: DifferentiableHost, rows: Tensor, batch: Batch, sites: Sequence[Site]
) -> Mapping[Site, Tensor]:
    distinct = sorted(set(sites))
    if len(distinct) > 1 and isinstance(host, ManySites):
        return host.forward_sites(rows, batch, distinct)
    return {site: host.forward_from(rows, batch, site) for site in distinct}


def _column(objective: Readout, resid: Tensor) -> Float[np.ndarray, " row"]:
    value = objective(resid)
    if value.shape != (len(resid),):
        raise ValueError(
            f"{objective!r} returned shape {list(value.shape)} for {len(resid)} rows: an objective "
            "gives one number a row."
        )
    column = value.double().cpu().numpy()
    if not np.isfinite(column).all():
        raise ValueError(
            f"{objective!r} is not finite for {int((~np.isfinite(column)).sum())} of {len(column)} "
            "masked inputs: try another baseline, or the model in float32."
        )
    return np.asarray(column)


@dataclass(frozen=True, eq=False)
class ForwardFunc:
    """Input to objective; made by `forward_func`.

    Attributes:
        host: Of the sample.
        objective: What is computed.
        site: Where it reads.
        batch: The sample alone.
        inputs: Its embeddings or pixels, one row.
        player_of: The feature of each token, -1 for tokens that are none.
    """

    host: DifferentiableHost
    objective: Readout
    site: Site
    batch: Batch
    inputs: Float[Tensor, "one token_or_channel *rest"]
    player_of: Int[np.ndarray, " token"]

    def __repr__(self) -> str:
        return f"ForwardFunc({self.objective!r}, inputs {list(self.inputs.shape)})"

    def __call__(self, inputs: Float[Tensor, "row token_or_channel *rest"]) -> Float[Tensor, " row"]:
        """The objective of each row.

        Args:
            inputs: Like `self.inputs`, any number of rows.
        """
        return self.objective(self.host.forward_from(inputs, self.batch, self.site))

    @property
    def feature_mask(self) -> Int[Tensor, "one token_or_channel *rest"]:
        """The feature of every input value, 0 to n - 1, and n for what is never perturbed."""
        of = np.where(self.player_of < 0, self.player_of.max() + 1, self.player_of)
        return spread(torch.from_numpy(of), self.inputs, self.batch)

    def baseline(self, how: str | Tensor | None = None) -> Float[Tensor, "one token_or_channel *rest"]:
        """What a perturbed feature becomes; special tokens keep their own values.

        Args:
            how: See `maskers`; by default "mean" for texts, "zero" for images.
        """
        chosen = make_baseline(self.host, self.batch, self.inputs, how)
        return without_players(self.inputs, chosen, self.player_of, self.batch)


def forward_func(host: Host, objective: Readout, sample: Sample | str) -> ForwardFunc:
    """An objective as a function of the model's input.

    Args:
        host: A host with `input_values` and `forward_from`.
        objective: Made for this sample with this host.
        sample: The sample, or its text.

    Returns:
        The function; its `inputs` are the sample's own.

    Raises:
        TypeError: The host takes no embeddings.
        ValueError: The objective is of another sample or host.

    Example:
        >>> f = forward_func(host, objective, sample)  # doctest: +SKIP
        >>> captum.attr.Saliency(f).attribute(f.inputs).shape  # doctest: +SKIP
        torch.Size([1, 14, 768])
    """
    return function_of(coalition_game(host, sample, [objective]), 0)


def function_of(game: CoalitionGame, column: int) -> ForwardFunc:
    """One objective of a game as a function of the input."""
    return ForwardFunc(
        game.host, game.objectives[column], game.sites[column], game.batch, game.values, game.player_of
    )


def without_players(
    values: Float[Tensor, "one token_or_channel *rest"],
    baseline: Float[Tensor, "one token_or_channel *rest"],
    player_of: Int[np.ndarray, " token"],
    batch: Batch,
) -> Float[Tensor, "one token_or_channel *rest"]:
    """The input of the empty coalition: the baseline, and the input where no player is."""
    keep = torch.from_numpy(player_of < 0)[None].to(values.device)
    if values.ndim == 3:
        return masked(values, baseline, keep)
    grid = patch_grid(batch.valid[0].cpu().numpy(), values.shape[2], values.shape[3])
    return masked(values, baseline, keep, grid)


def spread(
    of_token: Int[Tensor, " token"], values: Float[Tensor, "one token_or_channel *rest"], batch: Batch
) -> Int[Tensor, "one token_or_channel *rest"]:
    """A number of each token, or patch, at all of its input values."""
    if values.ndim == 3:
        return of_token[None, :, None].expand(values.shape)
    grid = patch_grid(batch.valid[0].cpu().numpy(), values.shape[2], values.shape[3])
    plane = of_token[grid.n_special :].reshape(1, 1, grid.rows, grid.columns)
    pixels = plane.repeat_interleave(grid.side, 2).repeat_interleave(grid.side, 3)
    return pixels.expand(values.shape)
