"""What a masked token or patch becomes: a baseline of the input, taken where a player is out.

masked = keep * input + (1 - keep) * baseline, per token of a text, per patch of an image.

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

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._names import require_known
from sa_plugin.attribution.players import Grid, patch_grid
from sa_plugin.differentiable import DifferentiableHost
from sa_plugin.host import Batch
from sa_plugin.samples import Sample

TEXT_BASELINES = ("mean", "zero", "pad")
IMAGE_BASELINES = ("mean", "zero", "blur")
DEFAULTS = {"text": "mean", "image": "zero"}


def make_baseline(
    host: DifferentiableHost,
    batch: Batch,
    values: Float[Tensor, "one token_or_channel *rest"],
    how: str | Tensor | None = None,
) -> Float[Tensor, "one token_or_channel *rest"]:
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
    image = values.ndim == 4
    if isinstance(how, Tensor):
        return _given(how, values, batch)
    how = DEFAULTS["image" if image else "text"] if how is None else how
    require_known("baseline", how, IMAGE_BASELINES if image else TEXT_BASELINES)
    if how == "zero":
        return torch.zeros_like(values)
    if how == "pad":
        return token_embedding(host, batch, _pad_id(host)).expand_as(values)
    if not image:
        return values[0, batch.valid[0].to(values.device)].mean(0).expand_as(values)
    grid = _grid(values, batch)
    if how == "blur":
        return blurred(values, sigma=float(grid.side))
    shown = batch.valid[0, grid.n_special :].to(values.device)
    return _tiled(_patches(values, grid)[shown].mean(0), grid)


def train_mean(
    host: DifferentiableHost, samples: Sequence[Sample], *, batch_tokens: int = 2048
) -> Float[Tensor, " d_embed"]:
    """Mean input embedding over all valid tokens of some texts: a baseline for other samples.

    Cost: one pass over the embedding layer for each batch.

    Raises:
        ValueError: The samples are images, or there are none.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in host.batches(samples, batch_tokens=batch_tokens):
        values = host.input_values(batch)
        if values.ndim != 3:
            raise ValueError("the samples are images: a mean embedding is for texts; use 'mean'.")
        kept = values[batch.valid.to(values.device)]
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
    values: Float[Tensor, "one token_or_channel *rest"],
    baseline: Float[Tensor, "one token_or_channel *rest"],
    keep: Bool[Tensor, "row token"],
    grid: Grid | None = None,
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
    plane = keep[:, grid.n_special :].reshape(len(keep), 1, grid.rows, grid.columns)
    pixels = plane.repeat_interleave(grid.side, 2).repeat_interleave(grid.side, 3)
    return torch.where(pixels, values, baseline)


def blurred(
    pixels: Float[Tensor, "image channel height width"], *, sigma: float
) -> Float[Tensor, "image channel height width"]:
    """Gaussian blur, cut off at three deviations, edges repeated.

    Raises:
        ValueError: `sigma` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}: give a positive number of pixels.")
    reach = math.ceil(3 * sigma)
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(pixels.device)
    n, channels, height, width = pixels.shape
    flat = pixels.float().reshape(n * channels, 1, height, width)
    wide = torch.nn.functional.pad(flat, (reach, reach, reach, reach), mode="replicate")
    down = torch.nn.functional.conv2d(wide, kernel[None, None, :, None])
    both = torch.nn.functional.conv2d(down, kernel[None, None, None])
    return both.reshape(pixels.shape).to(pixels.dtype)


def _given(
    how: Tensor, values: Float[Tensor, "one token_or_channel *rest"], batch: Batch
) -> Float[Tensor, "one token_or_channel *rest"]:
    if not torch.isfinite(how).all():
        raise ValueError("the baseline holds NaN or infinite values: give finite ones.")
    how = how.to(values.device, values.dtype)
    shapes = [tuple(values.shape), tuple(values.shape[1:])]
    if tuple(how.shape) in shapes:
        return how.reshape(values.shape)
    if values.ndim == 3:
        small: tuple[int, ...] = (values.shape[-1],)
    else:
        grid = _grid(values, batch)
        small = (values.shape[1], grid.side, grid.side)
    if tuple(how.shape) != small:
        wanted = ", ".join(str(list(shape)) for shape in [small, *reversed(shapes)])
        raise ValueError(f"the baseline has shape {list(how.shape)}; give one of {wanted}.")
    return how.expand_as(values) if values.ndim == 3 else _tiled(how, grid)


def _pad_id(host: DifferentiableHost) -> int:
    pad = getattr(getattr(host, "tokenizer", None), "pad_token_id", None)
    if pad is None:
        raise ValueError(
            f"{host.info.model} has no padding token: use 'mean' or 'zero', or give "
            "token_embedding(host, batch, token_id)[0, 0] of a token you choose."
        )
    return int(pad)


def _grid(values: Tensor, batch: Batch) -> Grid:
    return patch_grid(batch.valid[0].cpu().numpy(), values.shape[2], values.shape[3])


def _patches(
    values: Float[Tensor, "one channel height width"], grid: Grid
) -> Float[Tensor, "patch channel side side"]:
    cut = values[0].reshape(-1, grid.rows, grid.side, grid.columns, grid.side)
    return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)


def _tiled(
    patch: Float[Tensor, "channel side side"], grid: Grid
) -> Float[Tensor, "one channel height width"]:
    return patch.repeat(1, grid.rows, grid.columns)[None]
