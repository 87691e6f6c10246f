"""Passes of a bridge that start from embeddings or pixels, carry gradients and end at a site.

Embeddings are replaced at `embed.hook_out`, in a pass over the batch's own token ids: positions,
padding, masks and what a model does to embeddings behind that hook (Gemma's scale, BERT's segment
embeddings and LayerNorm) are then the model's own, whichever side the padding is on. Gradients flow
to the values whether the parameters are frozen or not; parameters' `.grad` is never written
(use `torch.autograd.grad`, not `backward`).

The pass ends by an exception from a hook at the site, because `stop_at_layer` does nothing on BERT
and cannot stop after the last block; no later block is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sa_plugin.host.protocol import Batch, Site
from sa_transformer_lens.places import canonical_names, capture, split_inputs

EMBED = "embed.hook_out"
RESIDUAL = ("resid_pre", "resid_post", "attn_out", "mlp_out")


class _Reached(Exception):
    """The site's activation has been read."""


def input_values(bridge: Any, batch: Batch) -> Float[Tensor, "batch token_or_channel *rest"]:
    """Token embeddings `[batch, token, d_embed]`, before positions, or pixels; detached.

    Args:
        bridge: A TransformerBridge.
        batch: Of its host.
    """
    if _is_image(batch):
        weight = next(bridge.parameters())
        return batch.inputs["pixel_values"].to(weight.device, weight.dtype)
    return capture(bridge, [EMBED], batch.inputs, EMBED)[EMBED]


def forward_sites(
    bridge: Any,
    values: Float[Tensor, "row token_or_channel *rest"],
    batch: Batch,
    names: Mapping[Site, str],
    stop: str,
) -> dict[Site, Float[Tensor, "row token d_model"]]:
    """The activations at some hooks as functions of embeddings or pixels.

    Args:
        bridge: A TransformerBridge in eval mode.
        values: Like `input_values(bridge, batch)`, or a whole multiple of its rows; the batch's
            mask and positions are repeated in turn.
        batch: Of its host.
        names: Hook of each site.
        stop: Hook after which the pass ends.

    Raises:
        ValueError: A site that is not `[batch, token, d_model]`, or values that are not the
            batch's in rows, tokens or kind.
        RuntimeError: A hook did not fire exactly once.
    """
    other = next((site.point for site in names if site.point not in RESIDUAL), None)
    if other is not None:
        raise ValueError(f"point {other!r} is not [batch, token, d_model]: use one of {', '.join(RESIDUAL)}.")
    inputs = _inputs(bridge, values, batch)
    hooked = list(names.values()) if _is_image(batch) else [EMBED, *names.values()]
    found: dict[str, list[Tensor]] = {name: [] for name in hooked}

    def keep(name: str) -> Any:
        return lambda tensor, hook: found[name].append(tensor)

    def replace(embedded: Tensor, hook: Any) -> Tensor:
        _demand_shape(values, embedded)
        found[EMBED].append(embedded)
        # A copy: what a model or a hook writes in place must not reach the caller's tensor.
        return values.to(embedded.device, embedded.dtype).clone()

    own = canonical_names(bridge, [*hooked, stop])
    hooks = [(own[name], replace if name == EMBED else keep(name)) for name in hooked]
    # Hooks at one point run in the order they were added: those that read, then the end.
    with bridge.hooks(fwd_hooks=[*hooks, (own[stop], _end)]), suppress(_Reached):
        bridge(inputs[0], **inputs[1])
    for name, tensors in found.items():
        if len(tensors) != 1:
            raise RuntimeError(f"hook {name!r} fired {len(tensors)} times, expected once.")
    return {site: found[name][0] for site, name in names.items()}


def _end(tensor: Tensor, hook: Any) -> None:
    raise _Reached


def _is_image(batch: Batch) -> bool:
    # Not `in batch.inputs`, which would make the pixels.
    return "pixel_values" in list(batch.inputs)


def _times(values: Tensor, batch: Batch) -> int:
    rows = len(batch.rows)
    if not len(values) or len(values) % rows:
        raise ValueError(
            f"values have {len(values)} rows, the batch {rows} samples: give a whole multiple, the "
            "samples in turn ([a, b, a, b, ...])."
        )
    return len(values) // rows


def _inputs(bridge: Any, values: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """What the bridge is called with: ids and masks repeated in turn, or the pixels themselves."""
    times = _times(values, batch)
    if _is_image(batch):
        if values.ndim != 4:
            raise ValueError(
                f"values have shape {list(values.shape)}; this model takes pixels [row, 3, height, width]."
            )
        weight = next(bridge.parameters())
        return values.to(weight.device, weight.dtype), {}
    first, others = split_inputs(bridge, batch.inputs)
    repeated = {key: value.repeat(times, *[1] * (value.ndim - 1)) for key, value in others.items()}
    return first.repeat(times, 1), repeated


def _demand_shape(values: Tensor, embedded: Tensor) -> None:
    if values.shape != embedded.shape:
        raise ValueError(
            f"values have shape {list(values.shape)}, the batch's embeddings "
            f"{list(embedded.shape)} [row, token, d_embed]: perturb what input_values(batch) "
            "returns, token by token in the same places."
        )
