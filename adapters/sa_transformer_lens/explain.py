"""What an objective owes to tokens and heads of one passage, by TransformerLens' own tools.

Tokens: gradient x (embedding - mean), summed over dimensions. Heads: `attribution_patch` from a
corrupted passage. Both run on `prefix_view`, which stops at the objective's layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin._check import require, require_version
from sa_plugin._face import face
from sa_plugin.data.sample import Sample
from sa_plugin.host.protocol import Owed
from sa_plugin.host.turns import take
from sa_transformer_lens.passes import note_tools
from sa_transformer_lens.prefix import prefix_view

Metric = Callable[[Tensor], Tensor]


@runtime_checkable
class _Objective(Protocol):
    layer: int
    hook_name: str
    mask: Tensor
    metric: Metric


@face
def explain(
    host: Any,
    objective: _Objective,
    sample: Sample,
    replaced: Bool[np.ndarray, " token"],
    mean_embedding: Float[Tensor, " d_model"] | None,
    *,
    seed: int = 0,
) -> Owed:
    """Attribute one objective to the tokens and heads of one sample.

    Costs three forward and two backward passes up to the objective's layer, and the two passes of
    the values.

    Args:
        host: A TransformerLens host.
        objective: An `Objective` made for this sample.
        sample: The passage.
        replaced: Positions of the model's input that the corrupted passage replaces.
        mean_embedding: Mean train residual that enters block 0; None for the mean of the passage.
        seed: Of the draw of replacements.

    Returns:
        Attributions by token and head.

    Raises:
        ValueError: Nothing is replaced, or everything.
        TypeError: TransformerLens is older than 3.9.
    """
    width = host.info.d_model
    if mean_embedding is not None and mean_embedding.shape != (width,):
        raise ValueError(f"mean_embedding has {len(mean_embedding)} numbers, the model's stream {width}.")
    if not replaced.any() or replaced.all():
        raise ValueError(
            f"{int(replaced.sum())} of {len(replaced)} tokens are to be replaced: the corrupted "
            "passage needs tokens to replace and tokens to replace them by."
        )
    explained = partial(_explain, host, objective, sample, replaced, mean_embedding, seed)
    return take(host.turns, "explain", host.left_over, explained)


def _explain(
    host: Any,
    objective: _Objective,
    sample: Sample,
    replaced: Bool[np.ndarray, " token"],
    mean_embedding: Float[Tensor, " d_model"] | None,
    seed: int,
) -> Owed:
    note_tools(host.passes.places)
    inputs = dict(host.forward_inputs(sample))
    ids = _input_ids(inputs)
    view = prefix_view(host, objective, **inputs)
    corrupt = corrupted(ids, replaced, seed, objective.mask[0].cpu().numpy())
    require_version("transformer-lens", "3.9", "it has no attribution_patch")
    patch = require("transformer_lens.tools.analysis", "transformer-lens").attribution_patch
    found = patch(view, ids, corrupt, objective.metric)
    heads = _by_head(found.node_scores, host, objective.layer)
    with torch.no_grad():
        value, broken = (float(objective.metric(view(x))) for x in (ids, corrupt))
    tokens = _token_gradients(view, objective.metric, ids, mean_embedding)
    return Owed(value, broken, tokens, heads)


@face
def corrupted(
    ids: Int[Tensor, "one token"],
    replaced: Bool[np.ndarray, " token"],
    seed: int,
    words: Bool[np.ndarray, " token"],
) -> Tensor:
    """The same passage with some tokens replaced by others of its own.

    Args:
        ids: One row.
        replaced: What to replace.
        seed: Of the draw.
        words: What may stand in, such as an objective's mask, which leaves special tokens out.

    Raises:
        ValueError: Nothing is left to stand in.
    """
    rng = np.random.default_rng(seed)
    pool = np.flatnonzero(words & ~replaced)
    if not len(pool):
        raise ValueError("every word of the passage is to be replaced: none is left to stand in.")
    out = ids.clone()
    for position in np.flatnonzero(replaced):
        out[0, int(position)] = ids[0, int(rng.choice(pool))]
    return out


def _token_gradients(
    view: Any, metric: Metric, ids: Tensor, mean: Float[Tensor, " d_model"] | None
) -> Float[np.ndarray, " token"]:
    """Gradient times (embedding - mean), summed over dimensions."""
    box: dict[str, Tensor] = {}

    def leaf(value: Tensor, hook: Any) -> Tensor:
        box["x"] = value.detach().requires_grad_(True)
        return box["x"]

    with torch.enable_grad():
        resid = view.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_resid_pre", leaf)])
        (gradient,) = torch.autograd.grad(metric(resid), box["x"])
    x = box["x"].detach()
    delta = x - (x.mean(1, keepdim=True) if mean is None else mean.to(gradient))
    return np.asarray((delta * gradient)[0].sum(-1).float().cpu())


def _input_ids(inputs: dict[str, Tensor]) -> Tensor:
    for name in ("input_ids", "input", "tokens"):
        if name in inputs:
            return inputs.pop(name)
    raise ValueError(f"the host's inputs hold no token ids: {sorted(inputs)}.")


def _by_head(scores: Mapping[Any, float], host: Any, layer: int) -> Float[np.ndarray, "block head"]:
    out = np.zeros((layer + 1, host.info.n_heads))
    for node, value in scores.items():
        if node.kind == "attn_head_out":
            out[node.layer, node.head] += value
    return out
