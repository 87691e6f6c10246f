"""Passes that start from embeddings or pixels, carry gradients and end at a site.

Embeddings are replaced at the output of the token embedding, in a trace over the batch's own token
ids: positions, padding, masks and what a model does to embeddings behind it (Gemma's scale, BERT's
segments and LayerNorm) are then the model's own. Gradients flow to the values whether parameters
are frozen or not, by `torch.autograd.grad` on what the trace handed out: a parameter's `.grad` is
never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nnsight
from jaxtyping import Float
from torch import Tensor

from sa_nnsight.places import Tap, envoy_path, in_order, read_taps, value_of
from sa_plugin.host.protocol import Batch, Site

if TYPE_CHECKING:
    from sa_nnsight.host import EnvoyHost


RESIDUAL = ("resid_pre", "resid_post", "attn_out", "mlp_out")


def input_values(host: EnvoyHost, batch: Batch) -> Float[Tensor, "batch token_or_channel *rest"]:
    """Token embeddings `[batch, token, d_embed]`, before positions, or pixels; detached."""
    if "pixel_values" in list(batch.inputs):
        like = next(host.places.root.parameters())
        return batch.inputs["pixel_values"].to(like.device, like.dtype)
    tap = _embed(host)
    return read_taps(host.model, host.inputs(batch), [tap])[tap]


def forward_sites(
    host: EnvoyHost, values: Float[Tensor, "row token_or_channel *rest"], batch: Batch, sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "row token d_model"]]:
    """The activations at some sites as functions of embeddings or pixels.

    Args:
        host: The host.
        values: Like `input_values(host, batch)`, or a whole multiple of its rows; the batch's mask
            and positions are repeated in turn.
        batch: Of the host.
        sites: What to hand out.

    Raises:
        ValueError: A site that is not `[batch, token, d_model]`, or values that are not the
            batch's in rows, tokens or kind.
    """
    other = next((site.point for site in sites if site.point not in RESIDUAL), None)
    if other is not None:
        raise ValueError(f"point {other!r} is not [batch, token, d_model]: use one of {', '.join(RESIDUAL)}.")
    inputs = _repeated(host, values, batch)
    taps = {site: host.tap(site) for site in sites}
    wanted = in_order(host.order, list(taps.values()))
    embed = None if "pixel_values" in inputs else host.model.get(_embed(host).path)
    found = _trace(host.model, inputs, embed, values, wanted)
    return {site: found[tap] for site, tap in taps.items()}


def _trace(
    model: Any, inputs: dict[str, Tensor], embed: Any, values: Tensor, wanted: Sequence[Tap]
) -> dict[Tap, Tensor]:
    envoys = [model.get(tap.path) for tap in wanted]
    with model.trace(**inputs) as tracer:
        found = nnsight.save([])
        if embed is not None:
            _demand_shape(values, embed.output)
            # A copy: what a model writes in place must not reach the caller's tensor.
            embed.output = values.to(embed.output).clone()
        for tap, envoy in zip(wanted, envoys, strict=True):
            own, copy = _own(envoy, tap), value_of(envoy, tap)
            found.append((own, own._version, copy))
        tracer.stop()
    # The copy is for models that write into the tensor after it was read.
    whole = [own if own._version == then else copy for own, then, copy in found]
    return dict(zip(wanted, whole, strict=True))


def _own(envoy: Any, tap: Tap) -> Tensor:
    """The model's own tensor: later sites depend on it, so that gradients reach it; a copy none."""
    if tap.gate is not None:
        return value_of(envoy, tap)
    value = envoy.input if tap.end == "input" else envoy.output
    own: Tensor = value[tap.item or 0] if isinstance(value, tuple) else value
    return own


def _embed(host: EnvoyHost) -> Tap:
    if not host.places.has("embed"):
        raise ValueError(
            f"{host.info.architecture} has no token embedding among its paths: give attach(model, "
            'paths={..., "embed": ...}).'
        )
    return Tap(envoy_path(host.model, host.places.path("embed")), "output")


def _repeated(host: EnvoyHost, values: Tensor, batch: Batch) -> dict[str, Tensor]:
    rows = len(batch.rows)
    if not len(values) or len(values) % rows:
        raise ValueError(
            f"values have {len(values)} rows, the batch {rows} samples: give a whole multiple, the "
            "samples in turn ([a, b, a, b, ...])."
        )
    # Not `in batch.inputs`, which would make the pixels.
    if "pixel_values" in list(batch.inputs):
        if values.ndim != 4:
            raise ValueError(
                f"values have shape {list(values.shape)}; this model takes pixels [row, 3, height, width]."
            )
        return host.pixel_inputs(values)
    times = len(values) // rows
    inputs = host.inputs(batch)
    return {key: value.repeat(times, *[1] * (value.ndim - 1)) for key, value in inputs.items()}


def _demand_shape(values: Tensor, embedded: Tensor) -> None:
    if values.shape != embedded.shape:
        raise ValueError(
            f"values have shape {list(values.shape)}, the batch's embeddings "
            f"{list(embedded.shape)} [row, token, d_embed]: perturb what input_values(batch) "
            "returns, token by token in the same places."
        )
