"""What a server lets a request do, asked once by trying each, and weights where they are kept away.

A trusted server runs a request in the model's own process: weights are there, and gradients flow. A
sandboxed one runs it in a process of its own: modules are on the meta device, and tensors arrive
without a graph. Which one an ordinary key gets is the operators' choice, so it is measured.

Weights that cannot be read are recovered. A projection is f(x) = W x + b, so that

    b = f(0),    W e_i = f(e_i) - f(0),

by calling it on zero and on an identity: exact to the rounding of W + b in the model's format.

What this does not show: a server may answer otherwise tomorrow, and another key may get another
mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from einops import rearrange
from torch import Tensor

from sa_nnsight.journal import Result
from sa_nnsight.reading import envoy_path
from sa_plugin import tokenise
from sa_plugin.host import OutputProjection

if TYPE_CHECKING:
    from sa_nnsight.remote import RemoteHost


@dataclass(frozen=True)
class Capabilities:
    """What one request could do on the server.

    Attributes:
        weights: Read a module's weights.
        gradients: Differentiate through blocks with `torch.autograd.grad`.
        attention_probabilities: Read attention probabilities, after asking for eager attention.
        sandboxed: Whether the request ran without the model's weights beside it.
        reasons: What the server said to each that failed, by attribute.
    """

    weights: bool
    gradients: bool
    attention_probabilities: bool
    sandboxed: bool
    reasons: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        names = ("weights", "gradients", "attention_probabilities")
        can = ", ".join(f"{name} {'yes' if getattr(self, name) else 'NO'}" for name in names)
        return f"Capabilities({'sandboxed' if self.sandboxed else 'trusted'} server: {can})"

    def require(self, name: str, purpose: str) -> None:
        """Refuse at once what the server cannot do.

        Args:
            name: "weights", "gradients" or "attention_probabilities".
            purpose: What it is wanted for, as a noun phrase.

        Raises:
            RuntimeError: The server cannot; the text says what works.
        """
        if getattr(self, name):
            return
        said = dict(self.reasons).get(name, "")
        raise RuntimeError(
            f"{purpose} needs {name.replace('_', ' ')}, which this "
            f"{'sandboxed' if self.sandboxed else ''} server does not give ({said}). "
            f"{INSTEAD[name]}"
        )


INSTEAD = {
    "weights": "Output projections are recovered by calling them: host.output_projection(layer). "
    "For the rest attach a local copy of the model.",
    "gradients": "Scores, tails, ledgers and forward patching work here; for gradients attach a "
    "local copy of the model, or use a key whose requests the server trusts.",
    "attention_probabilities": "Outputs of heads (z, attn_out) can be read here; for patterns ask "
    "the operators to deploy the model with attn_implementation='eager', or attach a local copy.",
}


def probe(host: RemoteHost) -> Capabilities:
    """Try each on a few tokens: three requests, of one forward pass each at most.

    Args:
        host: A host on a server.

    Returns:
        What worked. What failed for want of a server is raised, not counted.

    Raises:
        RuntimeError: The server or the network failed for another reason; see
            `sa_nnsight.faults`.
    """
    found, reasons = {}, {}
    for name, send in TRIALS.items():
        try:
            values = _now(host, send)
            found[name] = bool(values["able"])
            sandboxed = bool(values["sandboxed"])
            reasons[name] = "" if found[name] else UNABLE[name]
        except RuntimeError as error:
            if getattr(error, "kind", "") not in ("weights", "order", "block"):
                raise
            found[name], reasons[name] = False, str(error)
    said = tuple((name, reason) for name, reason in reasons.items() if reason)
    return Capabilities(**found, sandboxed=sandboxed, reasons=said)


def recover_projection(host: RemoteHost, layer: int) -> OutputProjection:
    """W_O and b_O of one block, by calling the projection: one request, half a forward pass.

    Args:
        host: A host on a server.
        layer: Block index.

    Returns:
        In float32, exact to the rounding of W + b in the model's number format.

    Raises:
        RuntimeError: What the server or the network says.
    """
    places = host.reader.places
    local = places.module("o_proj", layer)
    width = host.info.n_heads * host.info.d_head
    path = places.path("o_proj", layer)

    def send(one: RemoteHost, backend: Any) -> None:
        _send_projection(one.model, backend, _inputs(one), _envoy(one, path), width)

    answer = _now(host, send)
    zero, image = answer["zero"].float(), answer["image"].float()
    weight = rearrange(image - zero, "(h e) d -> h e d", h=host.info.n_heads).contiguous()
    # The structure is known here, the values are not: only the weights are elsewhere.
    has_bias = getattr(local, "bias", None) is not None
    return OutputProjection(weight, zero if has_bias else None)


def _send_projection(model: Any, backend: Any, inputs: Any, projection: Any, width: int) -> None:
    eye, zeros, save, no_grad = torch.eye, torch.zeros, nnsight.save, torch.no_grad
    with model.session(backend=backend):
        with no_grad(), model.trace(**inputs) as tracer:
            z = projection.input
            image = projection(eye(width).to(z))
            zero = projection(zeros(1, width).to(z))[0]
            kept = save([{"image": image, "zero": zero}])
            tracer.stop()
        result = save(kept)  # noqa: F841 (handed back by its name)


def _send_weights(host: RemoteHost, backend: Any) -> None:
    model, save = host.model, nnsight.save
    module = model._module.get_submodule(host.reader.places.path("o_proj", 0))
    tensor = torch.tensor
    with model.session(backend=backend):
        weight = module.weight
        meta = weight.is_meta
        able = not meta and bool(weight.abs().sum() > 0)
        result = save([{"able": tensor(able), "sandboxed": tensor(meta)}])  # noqa: F841


def _send_gradients(host: RemoteHost, backend: Any) -> None:
    model, save, inputs = host.model, nnsight.save, _inputs(host)
    places = host.reader.places
    module = model._module.get_submodule(places.path("o_proj", 0))
    first = _envoy(host, places.path("block", 0))
    last = _envoy(host, places.path("block", places.n_layers - 1))
    tensor, grad = torch.tensor, torch.autograd.grad
    with model.session(backend=backend):
        meta = module.weight.is_meta
        with model.trace(**inputs) as tracer:
            start = first.output
            start = start[0] if isinstance(start, tuple) else start
            start.requires_grad_(True)
            end = last.output
            end = end[0] if isinstance(end, tuple) else end
            flows = save([grad((end * end).sum(), start)[0].abs().sum() > 0])
            tracer.stop()
        result = save([{"able": flows[0], "sandboxed": tensor(meta)}])  # noqa: F841


def _send_probabilities(host: RemoteHost, backend: Any) -> None:
    model, save, inputs = host.model, nnsight.save, _inputs(host)
    places, root = host.reader.places, host.model._module
    module = root.get_submodule(places.path("o_proj", 0))
    attention = _envoy(host, places.path("attention", 0))
    tensor, no_grad = torch.tensor, torch.no_grad
    with model.session(backend=backend):
        meta = module.weight.is_meta
        before = root.config._attn_implementation
        root.set_attn_implementation("eager")
        with no_grad(), model.trace(**inputs) as tracer:
            out = attention.output
            able = save([isinstance(out, tuple) and len(out) > 1 and out[1] is not None])
            tracer.stop()
        root.set_attn_implementation(before)
        result = save([{"able": tensor(able[0]), "sandboxed": tensor(meta)}])  # noqa: F841


Send = Callable[["RemoteHost", Any], None]
TRIALS: dict[str, Send] = {
    "weights": _send_weights,
    "gradients": _send_gradients,
    "attention_probabilities": _send_probabilities,
}
UNABLE = {
    "weights": "its modules hold no values",
    "gradients": "no gradient reaches the first block",
    "attention_probabilities": "attention hands back None: it is fused, and stays so",
}


@dataclass(frozen=True, eq=False)
class _Once:
    """A request that is never answered from a journal."""

    host: RemoteHost
    send: Send
    key: str = ""

    def submit(self) -> str:
        return self.host.server.submitted(lambda wire: self.send(self.host, wire))

    def poll(self, job_id: str) -> Result | None:
        return self.host.server.answer(job_id)


def _now(host: RemoteHost, send: Send) -> dict[str, Tensor]:
    from sa_nnsight.remote import _now as answered

    return dict(answered(host.runner, _Once(host, send))[0])


def _inputs(host: RemoteHost) -> dict[str, Tensor]:
    ids = tokenise.encode(host.reader.tokenizer, [tokenise.PROBE_TEXT])[0].ids
    whole = torch.from_numpy(ids)[None]
    return {"input_ids": whole, "attention_mask": torch.ones_like(whole)}


def _envoy(host: RemoteHost, path: str) -> Any:
    return host.model.get(envoy_path(host.model, path))
