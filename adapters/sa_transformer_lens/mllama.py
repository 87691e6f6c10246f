"""Mllama (Llama-3.2-Vision) for TransformerLens, which has no bridge for it.

`HookedMllama` wraps one half of the model as a `HookedRootModule` with the hook names of a bridge,
so that `run_with_hooks`, `run_with_cache`, `hooks` and `sa_plugin.attach` work on it. Nothing of a
block is computed again here: torch's hooks hand the tensors of the model's own forward pass to hook
points, and are taken off at its end, so that without edits the numbers are the model's to the bit.

| hook | an edit |
|---|---|
| `hook_resid_pre`, `hook_resid_post` | is the model's |
| `attn.hook_q`, `hook_k`, `hook_v`, `hook_z`, `[batch, token, head, d_head]` | is the model's |
| `attn.o.hook_out`, `hook_attn_out`, `hook_mlp_out`, what is added, behind a tanh gate | is divided
  by the gate, which must be open; gradients reach it then, and are 0 where it is closed |
| `attn.hook_pattern` | is lost, as in all encoders: `host.check_writable` says so |

In a block of cross-attention the keys of `hook_k`, `hook_v` and `hook_pattern` are an image's
states, and those of the other hooks are tokens. Tiles, the joint between local and global blocks
and the states of an image are those of `sa_plugin.host.mllama`. What a bridge has besides (weight
folding, loading by name, `generate`) it has not.

Example:
    >>> model = MllamaForConditionalGeneration.from_pretrained(folder).eval()  # doctest: +SKIP
    >>> host = attach(HookedMllama(model, "vision"), processor=processor)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from sa_plugin._check import require_known
from sa_plugin.host import mllama
from sa_plugin.host.adapter import TOWERS
from sa_plugin.host.images import context_states
from sa_plugin.host.turns import note_attention


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
            return _through_gate(out, self.gate, [self.o.hook_out, attn_out])

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
        gates = (
            (block.cross_attn_attn_gate, block.cross_attn_mlp_gate)
            if self.crosses
            else (getattr(block, "gate_attn", None), getattr(block, "gate_ffn", None))
        )
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
            return _through_gate(out, self.mlp_gate, [self.hook_mlp_out], rows[0])

        # Hooks of torch, for the length of one pass: the model itself stays as it is.
        own = self.original_component
        handles = [
            own.register_forward_pre_hook(before, with_kwargs=True),
            own.register_forward_hook(lambda _, __, out: self.hook_resid_post(out)),
            own.mlp.register_forward_hook(mlp),
            *self.attn.routes(self.hook_attn_out),
            *self.ln1.routes(),
            *self.ln2.routes(),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _through_gate(
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
    # Kept as it was before any hook: one may write in place.
    changed = shown.detach() != kept
    # Where the gate is closed nothing is divided by it.
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


class HookedMllama(HookedRootModule):
    """One half of an Mllama under TransformerLens's hooks.

    The model is not changed. Attention is unfused in passes that hook a pattern.

    Args:
        model: An `MllamaForConditionalGeneration`, `MllamaModel`, or the half itself.
        tower: "vision" or "text".
        image: For "text": an image that every text is read with, uint8 `[height, width, 3]`, or
            the states `[state, d_model]` that cross-attention attends to. Without it the model
            skips blocks of cross-attention, and `blocks` are the others.
        processor: Of images.
        tokenizer: Of texts.
        name: Of the model; by default its folder's or class's.

    Raises:
        ValueError: The model has no such half, or `image` is none.
    """

    def __init__(
        self,
        model: Any,
        tower: str,
        *,
        image: Any = None,
        processor: Any = None,
        tokenizer: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        require_known("tower", tower, TOWERS)
        half = _half(model, tower)
        self.original_model, self.tower = half, tower
        self.processor, self.tokenizer = processor, tokenizer
        self.compatibility_mode = False
        self.context: Tensor | None = None
        if image is not None:
            self.context = context_states(model, half, image, processor)
        self.head = getattr(model, "lm_head", None) if tower == "text" else None
        own = _stack(half, tower)
        if tower == "text" and image is None:
            own = [block for block in own if not hasattr(block, "cross_attn")]
        self.blocks = nn.ModuleList([HookedBlock(block) for block in own])
        if tower == "text":
            self.embed, self.ln_final = Wrapped(half.embed_tokens), Wrapped(half.norm)
        self.cfg = _settings(half, self.blocks, tower, name)
        self._name_hooks()
        self.train(half.training)

    def _name_hooks(self) -> None:
        """As `setup`, which would also write a name into every module of the model."""
        named = {name: hook for name, hook in self.named_modules() if isinstance(hook, HookPoint)}
        for name, hook in named.items():
            hook.name = name
        self.hook_dict, self.mod_dict = named, dict(named)

    def forward(self, first: Tensor, **others: Any) -> Tensor:
        """The half's own output: logits or the last hidden state of texts, features of images.

        Args:
            first: Token ids, or pixels `[image, 3, height, width]` of the first tile.
            **others: Of the text stack, such as `attention_mask`.
        """
        with ExitStack() as stack:
            stack.enter_context(self._unfused())
            for block in self.blocks:
                stack.enter_context(block.routed())  # type: ignore[operator]
            if self.tower == "vision":
                inputs = mllama.tile_inputs(self.original_model, first)
                return self._output(self.original_model(**inputs))
            for one in (self.embed, self.ln_final):
                for handle in one.routes():
                    stack.callback(handle.remove)
            if self.context is not None and "cross_attention_states" not in others:
                states = self.context.to(next(self.parameters()).device)
                others["cross_attention_states"] = states.expand(len(first), -1, -1)
            return self._output(self.original_model(input_ids=first, **others))

    @contextmanager
    def _unfused(self) -> Iterator[None]:
        before = self.original_model.config._attn_implementation
        hooked = any(block.attn.hook_pattern.has_hooks() for block in self.blocks)  # type: ignore
        if hooked and before != "eager":
            note_attention(self.original_model)
            self.original_model.set_attn_implementation("eager")
        try:
            yield
        finally:
            if self.original_model.config._attn_implementation != before:
                self.original_model.set_attn_implementation(before)

    def _output(self, out: Any) -> Tensor:
        last: Tensor = out.last_hidden_state
        return last if self.head is None else self.head(last)


def _half(model: Any, tower: str) -> Any:
    kind = {"vision": mllama.VISION, "text": mllama.TEXT}[tower]
    inner = getattr(model, "model", model)
    name = {"vision": "vision_model", "text": "language_model"}[tower]
    for one in (getattr(inner, name, None), inner):
        if getattr(getattr(one, "config", None), "model_type", None) == kind:
            return one
    raise ValueError(
        f"{type(model).__name__} has no {tower} half of an Mllama: give an "
        "MllamaForConditionalGeneration, or the half itself."
    )


def _stack(half: Any, tower: str) -> list[Any]:
    if tower == "vision":
        return [*half.transformer.layers, *half.global_transformer.layers]
    return list(half.layers)


def _settings(half: Any, blocks: nn.ModuleList, tower: str, name: str | None) -> SimpleNamespace:
    """What is asked of a bridge's `cfg`."""
    config: Any = half.config
    attention: Any = blocks[0].attn
    n_heads, d_head, d_model = (int(size) for size in attention.W_O.shape)
    path = str(getattr(config, "_name_or_path", "") or "")
    weight = next(half.parameters())
    return SimpleNamespace(
        n_layers=len(blocks),
        n_heads=n_heads,
        d_head=d_head,
        d_model=d_model,
        n_key_value_heads=len(attention.W_K),
        architecture=type(half).__name__,
        model_name=name or path.rstrip("/").rpartition("/")[2] or type(half).__name__,
        n_ctx=getattr(config, "max_position_embeddings", None),
        is_visual_model=tower == "vision",
        d_vocab=getattr(config, "vocab_size", None),
        device=weight.device,
        dtype=weight.dtype,
        use_attn_result=False,
        positional_embedding_type="none",
    )
