"""Whether a hook can be written to: some fire, take an edit, and change nothing.

TransformerLens wraps the attention of encoders and vision towers as it stands in transformers,
which returns the pattern beside its output: an edit of `attn.hook_pattern` reaches nobody. Some
hooks never fire at all (`hook_rot_q` of GPT-NeoX). Neither is an error to TransformerLens (4.3
warns of the first), and a patching sweep over such a hook reports an effect of zero. The test is to
perturb the hook once and compare outputs.

A hook that passes is connected; this says nothing about the size of an edit's effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sa_transformer_lens.capture import canonical_names, split_inputs


def write_effect(bridge: Any, hook_name: str, inputs: Mapping[str, Tensor]) -> float | None:
    """Largest change of the output when noise of its own size is added at a hook.

    Args:
        bridge: A TransformerBridge.
        hook_name: A hook, aliases allowed.
        inputs: `input_ids` or `pixel_values`, and keyword arguments of the bridge.

    Returns:
        The change, 0.0 if it is no larger than between two clean runs; None if the hook did not
        fire.

    Raises:
        ValueError: The model has no such hook, or it carries no real numbers.
    """
    name = canonical_names(bridge, [hook_name])[hook_name]
    fired: list[bool] = []

    def disturb(tensor: Tensor, hook: Any) -> Tensor:
        if not tensor.is_floating_point():
            raise ValueError(
                f"hook {hook_name!r} carries {tensor.dtype}, which cannot be nudged: patch the "
                "embeddings behind it."
            )
        fired.append(True)
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        size = tensor.float().clamp(-1e4, 1e4).std() + 0.1
        return tensor + (size * noise.to(tensor.device)).to(tensor.dtype)

    clean, again = (_output(bridge, inputs, []) for _ in range(2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A hook on .* returned a modified tensor")
        edited = _output(bridge, inputs, [(name, disturb)])
    if not fired:
        return None
    change, noise = ((other - clean).abs().amax() for other in (edited, again))
    # A model that the edit makes NaN is changed by it.
    return 0.0 if change <= noise else float(change.nan_to_num(torch.inf))


def demand_writable(bridge: Any, hook_name: str, inputs: Mapping[str, Tensor]) -> None:
    """Refuse a hook whose edits would be lost.

    Raises:
        ValueError: The hook does not exist, is switched off (TransformerLens's own words), does not
            fire, or changes nothing.
    """
    effect = write_effect(bridge, hook_name, inputs)
    if effect is None:
        raise ValueError(
            f"hook {hook_name!r} of {bridge.cfg.architecture} never fires, so an edit there would "
            "be silently lost. Patch a hook that run_with_cache returns."
        )
    if not effect:
        raise ValueError(
            f"hook {hook_name!r} of {bridge.cfg.architecture} fires and changes nothing: an edit "
            "there would be silently lost. Patch attn.hook_z or attn.hook_v of the same block "
            "instead (a pattern edit is an edit of z = pattern @ v)."
        )


def _output(bridge: Any, inputs: Mapping[str, Tensor], hooks: list[tuple[str, Any]]) -> Tensor:
    first, others = split_inputs(bridge, inputs)
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        out: Tensor = bridge(first, **others)
    return out.float()
