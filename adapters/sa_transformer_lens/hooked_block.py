"""A block of transformers with TransformerLens's hook points, inside the model's own forward pass.

TransformerLens has no bridge for Mllama. Nothing of the block is computed again here: torch's hooks
hand its tensors to hook points while a pass runs, and are taken off at its end, so that without
edits the numbers are the model's to the bit.

| hook | an edit |
|---|---|
| `hook_resid_pre`, `hook_resid_post` | is the model's |
| `attn.hook_q`, `hook_k`, `hook_v`, `hook_z`, `[batch, token, head, d_head]` | is the model's |
| `attn.o.hook_out`, `hook_attn_out`, `hook_mlp_out`, what is added, behind a tanh gate | is divided
  by the gate, which must be open; gradients reach it then, and are 0 where it is closed |
| `attn.hook_pattern` | is lost, as in all encoders: `host.check_writable` says so |

In a block of cross-attention the keys of `hook_k`, `hook_v` and `hook_pattern` are an image's
states, and those of the other hooks are tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint


def _hook() -> HookPoint:
    return HookPoint()  # type: ignore[no-untyped-call]


class Wrapped(nn.Module):
    """A module of the model's own, and a hook behind it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.original_component = module
        self.hook_out = _hook()

    def routes(self) -> list[Any]:
        """Torch's hook that hands its output over."""
        return [self.original_component.register_forward_hook(lambda _, __, x: self.hook_out(x))]


class Projection(nn.Module):
    """Where the output projection's hook lives: `attn.o.hook_out`."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_out = _hook()


class HookedAttention(nn.Module):
    """The attention of one block, with the weights by TransformerLens's names.

    Args:
        attention: The model's own.
        gate: Parameter whose tanh scales its output, or None.
    """

    def __init__(self, attention: Any, gate: Tensor | None) -> None:
        super().__init__()
        self.original_component = attention
        self.gate = gate
        self.d_head = int(attention.head_dim)
        self.hook_q, self.hook_k, self.hook_v = _hook(), _hook(), _hook()
        self.hook_z, self.hook_pattern = _hook(), _hook()
        self.o = Projection()

    def register_forward_pre_hook(self, *args: Any, **options: Any) -> Any:
        """On the model's own module, which is the one that is called."""
        return self.original_component.register_forward_pre_hook(*args, **options)

    def _heads_in(self, name: str) -> Tensor:
        weight: Tensor = getattr(self.original_component, f"{name}_proj").weight
        found: Tensor = rearrange(weight, "(h e) d -> h d e", e=self.d_head)
        return found

    W_Q = property(lambda self: self._heads_in("q"))
    W_K = property(lambda self: self._heads_in("k"))
    W_V = property(lambda self: self._heads_in("v"))

    @property
    def W_O(self) -> Tensor:
        """The output projection, its gate folded in, `[head, d_head, d_model]`."""
        own: Tensor = self.original_component.o_proj.weight
        weight: Tensor = rearrange(own, "d (h e) -> h e d", e=self.d_head)
        return weight if self.gate is None else weight * self.gate.tanh()

    def routes(self, attn_out: HookPoint) -> list[Any]:
        """Torch's hooks that hand tensors over."""
        own = self.original_component

        def split(hook: HookPoint) -> Any:
            return lambda _, __, out: hook(self._by_head(out)).flatten(-2)

        def z(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self.hook_z(self._by_head(args[0])).flatten(-2), *args[1:])

        def written(_: Any, __: Any, out: Tensor) -> Tensor | None:
            return through_gate(out, self.gate, [self.o.hook_out, attn_out])

        def pattern(_: Any, __: Any, out: Any) -> None:
            if isinstance(out, tuple) and isinstance(out[1], Tensor):
                self.hook_pattern(out[1])

        projections = (("q_proj", self.hook_q), ("k_proj", self.hook_k), ("v_proj", self.hook_v))
        return [
            *(getattr(own, name).register_forward_hook(split(hook)) for name, hook in projections),
            own.o_proj.register_forward_pre_hook(z),
            own.o_proj.register_forward_hook(written),
            own.register_forward_hook(pattern),
        ]

    def _by_head(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h e) -> b t h e", e=self.d_head)


class HookedBlock(nn.Module):
    """One block.

    Args:
        block: The model's own.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.original_component = block
        self.crosses = hasattr(block, "cross_attn")
        attention = block.cross_attn if self.crosses else block.self_attn
        gates = (block.cross_attn_attn_gate, block.cross_attn_mlp_gate) if self.crosses else (
            getattr(block, "gate_attn", None), getattr(block, "gate_ffn", None)
        )  # fmt: skip
        self.attn = HookedAttention(attention, gates[0])
        self.mlp_gate = gates[1]
        self.ln1, self.ln2 = Wrapped(block.input_layernorm), Wrapped(block.post_attention_layernorm)
        self.hook_resid_pre, self.hook_resid_post = _hook(), _hook()
        self.hook_attn_out, self.hook_mlp_out = _hook(), _hook()

    @contextmanager
    def routed(self) -> Iterator[None]:
        """Hand tensors to hook points inside the context."""
        rows: list[Tensor | None] = [None]

        def before(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            mask = kwargs.get("full_text_row_masked_out_mask")
            rows[0] = None if mask is None else mask[:, 0]
            if args:
                return (self.hook_resid_pre(args[0]), *args[1:]), kwargs
            name = "hidden_state" if "hidden_state" in kwargs else "hidden_states"
            return args, {**kwargs, name: self.hook_resid_pre(kwargs[name])}

        def mlp(_: Any, __: Any, out: Tensor) -> Tensor | None:
            return through_gate(out, self.mlp_gate, [self.hook_mlp_out], rows[0])

        own = self.original_component
        handles = [
            own.register_forward_pre_hook(before, with_kwargs=True),
            own.register_forward_hook(lambda _, __, out: self.hook_resid_post(out)),
            own.mlp.register_forward_hook(mlp),
            *self.attn.routes(self.hook_attn_out), *self.ln1.routes(), *self.ln2.routes(),
        ]  # fmt: skip
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def through_gate(
    out: Tensor, gate: Tensor | None, hooks: list[HookPoint], rows: Tensor | None = None
) -> Tensor | None:
    """Show hooks what is added to the stream, and carry an edit back in front of the gate.

    Args:
        out: What comes before the gate.
        gate: Parameter whose tanh is the factor, or None.
        hooks: In turn.
        rows: 0 at tokens that attend to no image, where nothing is added.

    Returns:
        What has to come before the gate, or None where nothing was edited and no gradient flows.

    Raises:
        RuntimeError: An edit where the gate lets nothing through.
    """
    one = torch.ones((), dtype=out.dtype, device=out.device)
    # Detached: the model multiplies with the gate itself, behind this.
    factor = one if gate is None else gate.detach().tanh()
    factor = factor if rows is None or gate is None else factor * rows.to(out.dtype)
    shown = out * factor
    kept = shown.detach().clone()
    for hook in hooks:
        shown = hook(shown)
    changed = shown.detach() != kept
    opened = factor.masked_fill(factor == 0, 1.0)
    if not changed.any():
        # The same to the bit; only gradients have to pass through the hooks.
        carried = (shown - shown.detach()) / opened
        return out.detach() + carried if shown.requires_grad else None
    if (changed & (factor == 0)).any():
        raise RuntimeError(
            f"{hooks[-1].name} was edited where its tanh gate is closed: the edit reaches nobody. "
            "Edit the residual stream in its place."
        )
    return torch.where(factor == 0, out, shown / opened)
