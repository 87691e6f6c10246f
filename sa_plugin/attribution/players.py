"""Players of a coalition game: which input tokens, or patches, are kept or masked together.

`player_of[token]` is the number of the player a token belongs to, 0 to n - 1, or -1 for a token
that no coalition ever masks (padding, special tokens, a class token). A player's importance is
shown on every one of its tokens; it is not divided among them.

Attention sinks are players like any other valid token: they are real input. Objectives leave them
out of their means, so a sink's importance is what it does to the other tokens. In a decoder without
BOS that can drown all else: with its sink masked, another token becomes the sink, and every token's
residual changes. `players="kept"` leaves sinks in every coalition, as it does special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin._names import require_known
from sa_plugin.differentiable import DifferentiableHost
from sa_plugin.host import Batch
from sa_plugin.samples import Sample

GROUPS = ("token", "word", "kept")


class Grid(NamedTuple):
    """Where patches lie: token `n_special + k` is patch k, row by row."""

    n_special: int
    side: int
    rows: int
    columns: int


def patch_grid(valid: Bool[np.ndarray, " token"], height: int, width: int) -> Grid:
    """The patches of an input plane, from the number of its tokens: the finest grid they fill.

    Args:
        valid: Tokens that are patches showing some of the image.
        height: Of the pixel input.
        width: Of the pixel input.

    Raises:
        ValueError: No square patch divides the plane into so many tokens, or a token before the
            first patch counts as valid.
    """
    sides = [p for p in range(1, min(height, width) + 1) if not height % p and not width % p]
    side = next((p for p in sides if (height // p) * (width // p) <= len(valid)), 0)
    if not side:
        raise ValueError(
            f"{len(valid)} tokens are no grid of square patches of a {height} x {width} input."
        )
    rows, columns = height // side, width // side
    n_special = len(valid) - rows * columns
    if valid[:n_special].any():
        raise ValueError(
            f"{len(valid)} tokens over a {height} x {width} input: {rows} x {columns} patches of "
            f"side {side} leave {n_special} special tokens in front, but some of those are valid. "
            "The host must put special tokens first and mark them invalid."
        )
    return Grid(n_special, side, rows, columns)


def players_of(
    sample: Sample, batch: Batch, players: str | Int[np.ndarray, " _"] = "token"
) -> Int[np.ndarray, " token"]:
    """The player of each token of a batch of one.

    Args:
        sample: The sample.
        batch: Of this sample alone.
        players: "token": every valid token or patch by itself; "word": tokens of one
            whitespace-separated word together; or the player of each token, -1 for none, for
            instance of `superpatches`.

    Raises:
        ValueError: An unknown name, words of an image, a wrong length, numbers that leave one
            out, a token that is not valid given to a player, or no player at all.
    """
    valid = batch.valid[0].cpu().numpy()
    if not isinstance(players, str):
        return _checked(players, valid, sample)
    require_known("players", players, GROUPS)
    if players == "kept":
        raise ValueError(
            "players='kept' is known to a game's objectives alone: use coalition_game."
        )
    if players == "token":
        return _checked(np.where(valid, np.cumsum(valid) - 1, -1), valid, sample)
    if sample.image is not None:
        raise ValueError(f"sample {sample.id!r} is an image, it has no words: use superpatches.")
    return _checked(_words(sample.text, valid, batch.offsets[0].cpu().numpy()), valid, sample)


def counted(masks: Sequence[Bool[Tensor, "one token"] | None]) -> Int[np.ndarray, " token"]:
    """Each token that the objectives of a game count, by itself.

    Args:
        masks: Of the objectives, all alike.

    Raises:
        ValueError: An objective without a mask, or masks that differ.
    """
    known = [mask for mask in masks if mask is not None]
    if not known or len(known) < len(masks) or not all(mask.equal(known[0]) for mask in known):
        raise ValueError(
            "players='kept' needs objectives of sa_plugin.objective that count the same tokens of "
            "one sample: give the player of each token instead."
        )
    kept = known[0][0].cpu().numpy()
    return np.where(kept, np.cumsum(kept) - 1, -1)


def superpatches(
    host: DifferentiableHost, sample: Sample, *, block: int
) -> Int[np.ndarray, " token"]:
    """Players of `block` x `block` patches; smaller at the right and lower edge.

    Args:
        host: Of a vision model.
        sample: An image.
        block: Patches a side.

    Raises:
        ValueError: `block` is below 1, the sample is a text, or its tokens form no grid.
    """
    if block < 1:
        raise ValueError(f"block is {block}: give the number of patches a side, at least 1.")
    (batch,) = host.batches([sample])
    size = host.input_values(batch).shape[2:]
    if len(size) != 2:
        raise ValueError(f"sample {sample.id!r} is a text, it has no patches: use players='word'.")
    valid = batch.valid[0].cpu().numpy()
    grid = patch_grid(valid, *size)
    row, column = np.divmod(np.arange(grid.rows * grid.columns), grid.columns)
    name = (row // block) * grid.columns + column // block
    full = np.concatenate([np.full(grid.n_special, -1), name])
    return _numbered(np.where(valid, full, -1))


def to_tokens(
    importance: Float[np.ndarray, "player ..."], player_of: Int[np.ndarray, " token"]
) -> Float[np.ndarray, "token ..."]:
    """Each token gets its player's importance; NaN where it has no player."""
    blank = np.full((1, *importance.shape[1:]), np.nan)
    shown: Float[np.ndarray, "token ..."] = np.concatenate([importance, blank])[player_of]
    return shown


def _words(
    text: str, valid: Bool[np.ndarray, " token"], offsets: Int[np.ndarray, "token edge"]
) -> Int[np.ndarray, " token"]:
    """Tokens by the word of their first letter; a token of white space alone stands alone."""
    word_at = np.cumsum([k == 0 or text[k - 1].isspace() for k in range(len(text))])
    name = np.full(len(valid), -1)
    for token in np.flatnonzero(valid):
        start, end = (int(edge) for edge in offsets[token])
        letter = next((k for k in range(start, end) if not text[k].isspace()), None)
        name[token] = len(text) + 1 + token if letter is None else word_at[letter]
    return _numbered(name)


def _numbered(name: Int[np.ndarray, " token"]) -> Int[np.ndarray, " token"]:
    """Names as numbers from 0, in order of first appearance; -1 stays."""
    code: dict[int, int] = {-1: -1}
    for one in name.tolist():
        code.setdefault(one, len(code) - 1)
    return np.array([code[one] for one in name.tolist()], dtype=np.int64)


def _checked(
    player_of: Int[np.ndarray, " _"], valid: Bool[np.ndarray, " token"], sample: Sample
) -> Int[np.ndarray, " token"]:
    where = f"players of sample {sample.id!r}"
    if player_of.shape != valid.shape:
        raise ValueError(
            f"{where}: {len(player_of)} tokens are given, the model sees {len(valid)}, special "
            "tokens included: give one number a token, -1 for tokens never masked."
        )
    if (player_of[~valid] >= 0).any():
        token = int(np.flatnonzero((player_of >= 0) & ~valid)[0])
        raise ValueError(
            f"{where}: token {token} is padding or special, yet belongs to player "
            f"{player_of[token]}: give it -1."
        )
    numbers = np.unique(player_of[player_of >= 0])
    if not len(numbers):
        raise ValueError(f"{where}: there are none: give a sample with a valid token.")
    if player_of.min() < -1 or len(numbers) != numbers[-1] + 1:
        raise ValueError(
            f"{where} must be numbered 0 to n - 1 without a gap, and -1: got "
            f"{sorted({int(p) for p in player_of})}."
        )
    return player_of.astype(np.int64)
