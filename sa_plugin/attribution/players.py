"""Players of a coalition game, and what stands in for one that is masked.

`player_of[token]` is the number of the player a token belongs to, 0 to n - 1, or -1 for a token
that no coalition ever masks (padding, special tokens, a class token). A player's importance is
shown on every one of its tokens; it is not divided among them.

By default the players are the tokens that the objectives count: what the host drops as an attention
sink stays in every coalition, as special tokens do (`players="kept"`; where nothing is dropped, these
are all valid tokens). `players="token"` masks sinks too. They are real input, but objectives leave them
out of their means, so a sink's importance is what it does to the other tokens, and in a decoder without
BOS that drowns all else: with its sink masked, another token becomes the sink, and every token's
residual changes. A result says which share of the importance lies on tokens that were dropped.

A masked token or patch becomes a baseline of the input,

    masked = keep * input + (1 - keep) * baseline,   per token of a text, per patch of an image.

| name | texts (token embeddings, before positions) | images (the model's pixel input) |
|---|---|---|
| "mean" | mean embedding of the sample's own valid tokens | mean of its own valid patches |
| "zero" | zeros | zeros: the processor's mean colour, not black |
| "pad" | embedding of the tokenizer's padding token | - |
| "blur" | - | the image itself, blurred by a Gaussian of one patch's side |

A tensor of the user's is a baseline too: one embedding (`train_mean(host, samples)`), one patch,
or a whole input. Defaults are "mean" for texts and "zero" for images; the authors' code for
arXiv 2512.05038 masks patches by zeros and explains no texts.

What a baseline does not show: absence. "mean" of the sample's own tokens keeps a trace of each of
them, zero embeddings and blurred images are inputs the model never saw, and special tokens,
positions and the number of tokens stay. Importance is relative to the baseline: report it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin.data.sample import Sample
from sa_plugin.host.protocol import Batch, DifferentiableHost

Inputs = Float[Tensor, "one token_or_channel *rest"]
"""Embeddings, or pixels, of one sample."""
PLAYERS = ("token", "word", "kept")
TEXT_BASELINES = ("mean", "zero", "pad")
IMAGE_BASELINES = ("mean", "zero", "blur")
_DEFAULT_BASELINES = {"text": "mean", "image": "zero"}


class PatchGrid(NamedTuple):
    """Where patches lie: token `n_special + k` is patch k, row by row."""

    n_special: int
    side: int
    rows: int
    columns: int

    def on_pixels(self, of_token: Shaped[Tensor, "row token"]) -> Shaped[Tensor, "row one height width"]:
        """A number of each patch at each of its pixels."""
        plane = of_token[:, self.n_special :].reshape(len(of_token), 1, self.rows, self.columns)
        return plane.repeat_interleave(self.side, 2).repeat_interleave(self.side, 3)


def patch_grid(valid: Bool[np.ndarray, " token"], height: int, width: int) -> PatchGrid:
    """The patches of an input plane, from the number of its tokens: the finest grid they fill.

    Args:
        valid: Tokens that are patches showing some of the image.
        height: Of the pixel input.
        width: Of the pixel input.

    Raises:
        ValueError: No square patch divides the plane into so many tokens, or a token before the
            first patch counts as valid.
    """
    # The smallest side whose patches are no more than the tokens: what tokens are left stand in front.
    sides = [p for p in range(1, min(height, width) + 1) if not height % p and not width % p]
    side = next((p for p in sides if (height // p) * (width // p) <= len(valid)), 0)
    if not side:
        raise ValueError(f"{len(valid)} tokens are no grid of square patches of a {height} x {width} input.")
    rows, columns = height // side, width // side
    n_special = len(valid) - rows * columns
    if valid[:n_special].any():
        raise ValueError(
            f"{len(valid)} tokens over a {height} x {width} input: {rows} x {columns} patches of "
            f"side {side} leave {n_special} special tokens in front, but some of those are valid. "
            "The host must put special tokens first and mark them invalid."
        )
    return PatchGrid(n_special, side, rows, columns)


def grid_of(values: Inputs, batch: Batch) -> PatchGrid | None:
    """The patches of a sample's input; None where it is a text."""
    if values.ndim == 3:
        return None
    return patch_grid(batch.valid[0].cpu().numpy(), values.shape[2], values.shape[3])


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
    require_known("players", players, PLAYERS)
    if players == "kept":
        raise ValueError("players='kept' is known to a game's objectives alone: use coalition_game.")
    if players == "token":
        return _checked(np.where(valid, np.cumsum(valid) - 1, -1), valid, sample)
    if sample.image is not None:
        raise ValueError(f"sample {sample.id!r} is an image, it has no words: use superpatches.")
    return _checked(_words(sample.text, valid, batch.offsets[0].cpu().numpy()), valid, sample)


def default_players(
    masks: Sequence[Bool[Tensor, "one token"] | None], valid: Bool[np.ndarray, " token"]
) -> Int[np.ndarray, " token"]:
    """Each valid token that any objective of a game counts, by itself: sinks are never masked.

    Args:
        masks: Of the objectives; None for one that counts every token.
        valid: Tokens that are neither padding nor special.
    """
    counted = [valid if mask is None else mask[0].cpu().numpy() for mask in masks]
    kept = valid & np.any(counted, axis=0)
    return np.where(kept, np.cumsum(kept) - 1, -1)


def counted_tokens(masks: Sequence[Bool[Tensor, "one token"] | None]) -> Int[np.ndarray, " token"]:
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


def superpatches(host: DifferentiableHost, sample: Sample, *, block: int) -> Int[np.ndarray, " token"]:
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
    # A block is named by its corner: only which patches share a name counts.
    row, column = np.divmod(np.arange(grid.rows * grid.columns), grid.columns)
    name = (row // block) * grid.columns + column // block
    full = np.concatenate([np.full(grid.n_special, -1), name])
    return _numbered(np.where(valid, full, -1))


def to_tokens(
    importance: Float[np.ndarray, "player ..."], player_of: Int[np.ndarray, " token"]
) -> Float[np.ndarray, "token ..."]:
    """Each token gets its player's importance; NaN where it has no player."""
    # A row of NaN at the end, which player -1 points to.
    blank = np.full((1, *importance.shape[1:]), np.nan)
    shown: Float[np.ndarray, "token ..."] = np.concatenate([importance, blank])[player_of]
    return shown


def _words(
    text: str, valid: Bool[np.ndarray, " token"], offsets: Int[np.ndarray, "token edge"]
) -> Int[np.ndarray, " token"]:
    """Tokens by the word of their first letter; a token of white space alone stands alone."""
    # The number of words begun up to each character; a word begins behind white space.
    word_at = np.cumsum([k == 0 or text[k - 1].isspace() for k in range(len(text))])
    name = np.full(len(valid), -1)
    for token in np.flatnonzero(valid):
        start, end = (int(edge) for edge in offsets[token])
        # A token may begin with the space before its word.
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


def make_baseline(
    host: DifferentiableHost, batch: Batch, values: Inputs, how: str | Tensor | None = None
) -> Inputs:
    """A baseline for one sample, in the shape, format and place of its input.

    Args:
        host: Of the sample.
        batch: Of this sample alone.
        values: `host.input_values(batch)`.
        how: A name of the table above, by default "mean" for texts and "zero" for images; or a
            tensor: an embedding `[d_embed]`, a patch `[3, side, side]`, or the shape of `values`
            with or without its first dimension.

    Raises:
        ValueError: An unknown name, a tensor of another shape or not finite, or a tokenizer
            without padding token.
    """
    grid = grid_of(values, batch)
    if isinstance(how, Tensor):
        return _given(how, values, grid)
    how = _DEFAULT_BASELINES["image" if grid else "text"] if how is None else how
    require_known("baseline", how, IMAGE_BASELINES if grid else TEXT_BASELINES)
    if how == "zero":
        return torch.zeros_like(values)
    if how == "pad":
        return token_embedding(host, batch, _pad_id(host)).expand_as(values)
    if grid is None:
        return values[0, batch.valid[0].to(values.device)].mean(0).expand_as(values)
    if how == "blur":
        return blurred(values, sigma=float(grid.side))
    shown = batch.valid[0, grid.n_special :].to(values.device)
    # [channel, row, side, column, side] to a row a patch, so that those with padding can be left out.
    cut = values[0].reshape(-1, grid.rows, grid.side, grid.columns, grid.side)
    patches = cut.permute(1, 3, 0, 2, 4).flatten(0, 1)
    return _tiled(patches[shown].mean(0), grid)


def train_mean(host: DifferentiableHost, samples: Sequence[Sample]) -> Float[Tensor, " d_embed"]:
    """Mean input embedding over all valid tokens of some texts: a baseline for other samples.

    Cost: one pass over the embedding layer for each batch.

    Raises:
        ValueError: The samples are images, or there are none.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in host.batches(samples):
        values = host.input_values(batch)
        if values.ndim != 3:
            raise ValueError("the samples are images: a mean embedding is for texts; use 'mean'.")
        kept = values[batch.valid.to(values.device)]
        # In float64, so that the order of batches does not show.
        total, count = total + kept.double().sum(0).cpu(), count + len(kept)
    if not count:
        raise ValueError("there is no valid token to average over: give texts.")
    return (total / count).float()


def token_embedding(
    host: DifferentiableHost, batch: Batch, token_id: int
) -> Float[Tensor, "one one d_embed"]:
    """The input embedding of one token of the vocabulary, as this model makes it.

    Args:
        host: Of a text model.
        batch: Any batch of it with `input_ids`.
        token_id: In the vocabulary.

    Raises:
        ValueError: The batch has no `input_ids`.
    """
    if "input_ids" not in list(batch.inputs):
        raise ValueError(f"the batch holds {sorted(batch.inputs)}, no input_ids: give a tensor.")
    ids = torch.full_like(batch.inputs["input_ids"], token_id)
    return host.input_values(replace(batch, inputs={**batch.inputs, "input_ids": ids}))[:1, :1]


def masked(
    values: Inputs, baseline: Inputs, keep: Bool[Tensor, "row token"], grid: PatchGrid | None = None
) -> Float[Tensor, "row token_or_channel *rest"]:
    """Copies of one input, the baseline in place of what is not kept.

    Args:
        values: One sample.
        baseline: As `make_baseline` gives it.
        keep: Tokens to keep, one row a copy.
        grid: Of an image's patches; None for texts.
    """
    if grid is None:
        return torch.where(keep[..., None], values, baseline)
    return torch.where(grid.on_pixels(keep), values, baseline)


def blurred(
    pixels: Float[Tensor, "image channel height width"], *, sigma: float
) -> Float[Tensor, "image channel height width"]:
    """Gaussian blur, cut off at three deviations, edges repeated.

    Raises:
        ValueError: `sigma` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}: give a positive number of pixels.")
    # A Gaussian in the plane is one down the columns, then one along the rows.
    reach = math.ceil(3 * sigma)
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(pixels.device)
    n, channels, height, width = pixels.shape
    flat = pixels.float().reshape(n * channels, 1, height, width)
    # Channels are blurred one by one, as a batch of grey images.
    wide = torch.nn.functional.pad(flat, (reach, reach, reach, reach), mode="replicate")
    down = torch.nn.functional.conv2d(wide, kernel[None, None, :, None])
    both = torch.nn.functional.conv2d(down, kernel[None, None, None])
    return both.reshape(pixels.shape).to(pixels.dtype)


def _given(how: Tensor, values: Inputs, grid: PatchGrid | None) -> Inputs:
    if not torch.isfinite(how).all():
        raise ValueError("the baseline holds NaN or infinite values: give finite ones.")
    how = how.to(values.device, values.dtype)
    shapes = [tuple(values.shape), tuple(values.shape[1:])]
    if tuple(how.shape) in shapes:
        return how.reshape(values.shape)
    # One embedding, or one patch, stands for every token.
    small = (values.shape[-1],) if grid is None else (values.shape[1], grid.side, grid.side)
    if tuple(how.shape) != small:
        wanted = ", ".join(str(list(shape)) for shape in [small, *reversed(shapes)])
        raise ValueError(f"the baseline has shape {list(how.shape)}; give one of {wanted}.")
    return how.expand_as(values) if grid is None else _tiled(how, grid)


def _pad_id(host: DifferentiableHost) -> int:
    encode = getattr(getattr(host, "reader", None), "encode", None)
    pad = getattr(getattr(encode, "tokenizer", None), "pad_token_id", None)
    if pad is None:
        raise ValueError(
            f"{host.info.model} has no padding token: use 'mean' or 'zero', or give "
            "token_embedding(host, batch, token_id)[0, 0] of a token you choose."
        )
    return int(pad)


def _tiled(
    patch: Float[Tensor, "channel side side"], grid: PatchGrid
) -> Float[Tensor, "one channel height width"]:
    return patch.repeat(1, grid.rows, grid.columns)[None]
