"""Mllama (Llama-3.2-Vision) for TransformerLens, which has no bridge for it.

`HookedMllama` wraps one half of the model as a `HookedRootModule` with the hook names of a bridge,
so that `run_with_hooks`, `run_with_cache`, `hooks` and `sa_plugin.attach` work on it. Tiles, the
joint between local and global blocks and the states of an image are those of `sa_plugin._mllama`;
the hooks are listed in `hooked_block`. What a bridge has besides (weight folding, loading by name,
`generate`) it has not.

Example:
    >>> model = MllamaForConditionalGeneration.from_pretrained(folder).eval()  # doctest: +SKIP
    >>> host = attach(HookedMllama(model, "vision"), processor=processor)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from sa_plugin import _mllama
from sa_plugin._names import require_known
from sa_plugin.patches import context_states
from sa_transformer_lens.hooked_block import HookedBlock, Wrapped

TOWERS = ("vision", "text")


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
                inputs = _mllama.tile_inputs(self.original_model, first)
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
    kind = {"vision": _mllama.VISION, "text": _mllama.TEXT}[tower]
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
        n_layers=len(blocks), n_heads=n_heads, d_head=d_head, d_model=d_model,
        n_key_value_heads=len(attention.W_K), architecture=type(half).__name__,
        model_name=name or path.rstrip("/").rpartition("/")[2] or type(half).__name__,
        n_ctx=getattr(config, "max_position_embeddings", None), is_visual_model=tower == "vision",
        d_vocab=getattr(config, "vocab_size", None), device=weight.device, dtype=weight.dtype,
        use_attn_result=False, positional_embedding_type="none",
    )  # fmt: skip
