"""The coalition engine: masked forward passes of one sample, computed once for everything.

    v(T)[k] = objective k of the residual at its layer, where players outside T are masked (`players`).

Objectives of several names, concepts and layers are read together; passes run in batches of the
host's number of tokens, without gradients, and end at the deepest layer. Every coalition is
remembered, so LIME, KernelSHAP, RISE, SHAP-IQ, insertion and deletion pay for one only once.

Cost: one forward pass a distinct coalition, up to the deepest layer. A host that reads several
sites in one pass offers `forward_sites(values, batch, sites)`; with any other a pass is made for
each distinct layer.

What a value does not show: that the model would behave so on real inputs. Masked inputs are off
its training distribution, and more so the more is masked.

The same game is a function of the model's input for captum and anything else:
`forward_func(host, objective, sample)` maps `[row, token, d_embed]` embeddings, or pixels
`[row, 3, height, width]`, to `[row]`; gradients flow, blocks above the objective's layer are never
computed, the sample's mask and positions ride along. captum's layer methods take TransformerLens
HookPoints as layers, such as `bridge.blocks[3].hook_out`. `feature_mask` and `baseline` make
tokens, or patches, the features of captum's perturbation methods. Special tokens and padding belong
to one further feature, whose baseline is the input itself: perturbing it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import require_type
from sa_plugin._face import face_methods
from sa_plugin.attribution.players import (
    Inputs,
    PatchGrid,
    counted_tokens,
    default_players,
    grid_of,
    make_baseline,
    masked,
    players_of,
)
from sa_plugin.data.sample import Sample
from sa_plugin.host.protocol import (
    Batch,
    DifferentiableHost,
    Host,
    Point,
    Site,
    require_differentiable,
    require_weights,
)
from sa_plugin.host.turns import gradient_mode


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


@face_methods
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
        progress: Whether masked passes show a bar; by default as the host says.
        known: Values of coalitions evaluated so far, by their bits.
    """

    host: DifferentiableHost
    batch: Batch
    values: Tensor
    baseline: Tensor
    player_of: Int[np.ndarray, " token"]
    objectives: tuple[Readout, ...]
    sites: tuple[Site, ...]
    progress: bool = False
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

    @property
    def rows_a_pass(self) -> int:
        """How many masked copies the host's number of tokens allows, one at least."""
        return max(1, self.host.batch_tokens // len(self.player_of))

    @property
    def grid(self) -> PatchGrid | None:
        """Of an image's patches."""
        return grid_of(self.values, self.batch)

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
        # A coalition is known by its bits, so repeated ones within this call count once too.
        keys = [row.tobytes() for row in np.packbits(coalitions, axis=1)]
        new = {key: k for k, key in enumerate(keys) if key not in self.known}
        chosen = coalitions[sorted(new.values())]
        starts = range(0, len(chosen), self.rows_a_pass)
        for start in tqdm(
            starts, desc="masked passes", disable=not self.progress or len(starts) < 2, leave=False
        ):
            part = chosen[start : start + self.rows_a_pass]
            for row, value in zip(np.packbits(part, axis=1), self._run(part), strict=True):
                self.known[row.tobytes()] = value
        return np.stack([self.known[key] for key in keys])

    def _run(self, part: Bool[np.ndarray, "row player"]) -> Float[np.ndarray, "row objective"]:
        # The last column is True: player -1 is always kept.
        keep = np.concatenate([part, np.ones((len(part), 1), bool)], axis=1)[:, self.player_of]
        kept = torch.from_numpy(keep).to(self.values.device)
        with gradient_mode(False):
            rows = masked(self.values, self.baseline, kept, self.grid)
            found = residuals(self, rows, self.sites)
            columns = [
                _column(objective, found[site])
                for objective, site in zip(self.objectives, self.sites, strict=True)
            ]
        return np.stack(columns, axis=1)

    def emptied(self, baseline: str | Tensor | None = None) -> Inputs:
        """The input of the empty coalition: a baseline, and the input itself where no player is.

        Args:
            baseline: See `players`; by default "mean" for texts, "zero" for images.
        """
        chosen = make_baseline(self.host, self.batch, self.values, baseline)
        keep = torch.from_numpy(self.player_of < 0)[None].to(self.values.device)
        return masked(self.values, chosen, keep, self.grid)

    def spread(self, of_token: Int[Tensor, " token"]) -> Int[Tensor, "one token_or_channel *rest"]:
        """A number of each token, or patch, at all of its input values."""
        grid = self.grid
        if grid is None:
            return of_token[None, :, None].expand(self.values.shape)
        return grid.on_pixels(of_token[None]).expand(self.values.shape)

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
    players: str | Int[np.ndarray, " token"] | None = None,
) -> CoalitionGame:
    """Lay out one sample's coalition game; no pass beyond the embedding is made yet.

    Args:
        host: A host with `input_values` and `forward_from`.
        sample: The sample the objectives were made on, or its text.
        objectives: One or several, of any concepts and layers.
        baseline: See `players`: by default "mean" for texts, "zero" for images.
        players: By default each token that an objective counts: what the host drops as an attention
            sink stays in every coalition. "kept" is the same, and refuses objectives that count
            different tokens; "token" is every valid token, "word" its words; or the player of each
            token, see `players_of`.

    Returns:
        The game: call it with coalitions.

    Raises:
        TypeError: The host takes no embeddings, or an objective is none.
        ValueError: No objective, one of another sample or model or of a place that is no residual of
            this model, or what `make_baseline` and `players_of` raise.

    Example:
        >>> game = coalition_game(host, sample, [f, g])  # doctest: +SKIP
        >>> game(enumerated(game.n_players).coalitions).shape  # doctest: +SKIP
        (256, 2)
    """
    model = require_differentiable(host)
    text = Sample.of(sample)
    if not objectives:
        raise ValueError("objectives is empty: give one at least.")
    (batch,) = model.batches([text])
    sites = tuple(_site(model, text, objective) for objective in objectives)
    masks = [getattr(f, "mask", None) for f in objectives]
    if players is None:
        players = default_players(masks, batch.valid[0].cpu().numpy())
    elif isinstance(players, str) and players == "kept":
        players = counted_tokens(masks)
    with gradient_mode(False):
        values = model.input_values(batch)
        return CoalitionGame(
            model,
            batch,
            values,
            make_baseline(model, batch, values, baseline),
            players_of(text, batch, players),
            tuple(objectives),
            sites,
            model.progress,
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
    require_weights(objective, host.info)
    if 0 <= objective.layer < host.info.n_layers:
        for point in get_args(Point):
            site = Site(objective.layer, point)
            if point not in ("z", "pattern") and host.hook_name(site) == objective.hook_name:
                return site
    raise ValueError(
        f"{objective!r} reads {objective.hook_name!r} at layer {objective.layer}; "
        f"{host.info.model} has no residual of that name there. Make the objective with this host."
    )


def residuals(
    game: CoalitionGame, rows: Tensor, sites: Sequence[Site]
) -> Mapping[Site, Float[Tensor, "row token d_model"]]:
    """Activations of masked or moved inputs at some sites, with their graph where gradients are on."""
    # One pass to the deepest site where the host can, else one for each site.
    distinct = sorted(set(sites))
    if len(distinct) > 1 and isinstance(game.host, ManySites):
        return game.host.forward_sites(rows, game.batch, distinct)
    return {site: game.host.forward_from(rows, game.batch, site) for site in distinct}


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


@face_methods
@dataclass(frozen=True, eq=False)
class ForwardFunc:
    """One objective of a game as a function of the input; see `forward_func`.

    Attributes:
        game: Of one sample.
        column: Which of its objectives.
    """

    game: CoalitionGame
    column: int = 0

    def __repr__(self) -> str:
        return f"ForwardFunc({self.objective!r}, inputs {list(self.inputs.shape)})"

    def __call__(self, inputs: Float[Tensor, "row token_or_channel *rest"]) -> Float[Tensor, " row"]:
        """The objective of each row.

        Args:
            inputs: Like `self.inputs`, any number of rows.
        """
        site = self.game.sites[self.column]
        return self.objective(self.game.host.forward_from(inputs, self.game.batch, site))

    @property
    def objective(self) -> Readout:
        """What is computed."""
        return self.game.objectives[self.column]

    @property
    def inputs(self) -> Inputs:
        """The sample's own embeddings or pixels, one row."""
        return self.game.values

    @property
    def player_of(self) -> Int[np.ndarray, " token"]:
        """The feature of each token, -1 for tokens that are none."""
        return self.game.player_of

    @property
    def feature_mask(self) -> Int[Tensor, "one token_or_channel *rest"]:
        """The feature of every input value, 0 to n - 1, and n for what is never perturbed."""
        of = np.where(self.player_of < 0, self.game.n_players, self.player_of)
        return self.game.spread(torch.from_numpy(of))

    def baseline(self, how: str | Tensor | None = None) -> Inputs:
        """What a perturbed feature becomes; special tokens keep their own values.

        Args:
            how: See `players`; by default "mean" for texts, "zero" for images.
        """
        return self.game.emptied(how)


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
    return ForwardFunc(coalition_game(host, sample, [objective]))
