"""FullGrad: input times gradient, and every bias where it is added (Srinivas and Fleuret 2019).

    importance_t = sum_d x_td df/dx_td  +  sum_m sum_d b_md df/do^m_td

over the modules m with a bias vector b that are called on the way to the objective, o^m their
output at token t. A bias acts at every token, so its share is attributed token by token; the
authors' code for arXiv 2512.05038 adds one constant to all patches, which leaves the ranking to
input times gradient. Signs are kept (the paper takes absolute values of image maps).

For networks of linear maps and ReLUs the shares add up to f(x). Transformers are not such: softmax,
norms and GELU have implicit biases, and positions, class and segment embeddings are constants that
no module adds as a bias. `residual` = f(x) - sum of importance says how much is unexplained, and
`biases` what the biases' part is over all players. A model without biases (Llama) gets input times
gradient.

Modules are watched by PyTorch's hook for all modules, which is taken off again; fused operations
that bypass a module's own bias are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from sa_plugin.attribution.engine import CoalitionGame
from sa_plugin.attribution.gradients import by_player, by_token, values_at
from sa_plugin.attribution.players import patch_grid
from sa_plugin.attribution.result import Explained


def full_grad(game: CoalitionGame) -> Explained:
    """FullGrad of every objective of a game.

    Cost: one forward pass and one backward pass an objective.
    """
    leaf = game.values.detach().clone().requires_grad_(True)
    with torch.enable_grad(), _biased_outputs() as seen:
        values = values_at(game, leaf, game.objectives, game.sites)
    inputs, biases = [], []
    for k, value in enumerate(values):
        slopes = torch.autograd.grad(
            value.sum(), [leaf, *(out for out, _ in seen)], allow_unused=True,
            retain_graph=k < len(values) - 1,
        )  # fmt: skip
        inputs.append(slopes[0].float()[0] * game.values.float()[0])
        shares = (
            _tokens(game, slope.float() * _aligned(bias, slope))
            for slope, (_, bias) in zip(slopes[1:], seen, strict=True)
            if slope is not None
        )
        biases.append(sum(shares, torch.zeros(len(game.player_of), device=leaf.device)))
    of_inputs = by_player(game, by_token(game, torch.stack(inputs)))
    of_biases = by_player(game, torch.stack(biases))
    importance = of_inputs + of_biases
    value = values.detach()[:, 0].double().cpu().numpy()
    notes = {"residual": value - importance.sum(0), "biases": of_biases.sum(0)}
    return Explained(importance, notes)


@contextmanager
def _biased_outputs() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The output and the bias of every module with one that is called inside the context."""
    seen: list[tuple[Tensor, Tensor]] = []
    inner: set[int] = set()

    def watch(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        bias = getattr(module, "bias", None)
        if not isinstance(bias, torch.nn.Parameter) or not isinstance(output, Tensor):
            return
        # A wrapper shows its component's bias as its own, and either calls the component, which
        # was then seen just before, or does its work (TransformerLens's norms).
        if module._parameters.get("bias") is bias:
            inner.add(id(bias))
        elif id(bias) in inner:
            inner.discard(id(bias))
            return
        if output.requires_grad:
            seen.append((output, bias.detach().float()))

    handle = register_module_forward_hook(watch)
    try:
        yield seen
    finally:
        handle.remove()


def _aligned(bias: Tensor, output: Tensor) -> Tensor:
    """A bias in the shape that broadcasts over its module's output."""
    if output.ndim == 4 and output.shape[1] == len(bias):
        return bias[:, None, None]
    if output.shape[-1] != len(bias):
        raise ValueError(
            f"a module with a bias of {len(bias)} has outputs {list(output.shape)}: where it acts "
            "is not known, so FullGrad cannot place it."
        )
    return bias


def _tokens(game: CoalitionGame, shares: Tensor) -> Tensor:
    """Shares `[1, token, d]`, flat `[token, d]` or of a patch convolution, summed by token."""
    n_tokens = len(game.player_of)
    if shares.ndim == 4:
        valid = game.batch.valid[0].cpu().numpy()
        grid = patch_grid(valid, game.values.shape[2], game.values.shape[3])
        if shares.shape[2:] == (grid.rows, grid.columns):
            return torch.nn.functional.pad(shares.sum((0, 1)).flatten(), (grid.n_special, 0))
    elif shares.shape[-2] == n_tokens and shares.numel() == n_tokens * shares.shape[-1]:
        return shares.reshape(n_tokens, -1).sum(-1)
    raise ValueError(
        f"a module with a bias has outputs {list(shares.shape)} for {n_tokens} tokens: where it "
        "acts is not known, so FullGrad cannot place it."
    )
