"""Where things are in a TransformerBridge: its hooks, norms and weights by the names of every host.

TransformerLens's `hook_attn_out` is what attention adds, but in post_ln it is the sum behind the
first norm; what leaves the projection there is `attn.o.hook_out`. Its fused maps stand beside the
parts that it computes with, and are not listed a second time.

What a module says is proved where it is used, see `sa_plugin.host.weights`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sa_plugin.host import mllama, weights
from sa_plugin.host.adapter import FINAL, AttentionParts, NormRole, Part
from sa_plugin.host.laws import NORMS, RAW
from sa_plugin.host.protocol import InputMap, Norm, OutputProjection

FINAL_HOOK = "ln_final.hook_out"
# Inside a block.
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "pattern": "attn.hook_pattern",
    RAW: "attn.o.hook_out",
}
NORM_HOOKS = dict(zip(NORMS, ("ln1.hook_in", "ln1.hook_out", "ln2.hook_in", "ln2.hook_out"), strict=True))
JOINT = "gate_up_proj."
NORM_MODULES = {"norm1": "ln1", "norm2": "ln2", "norm1_post": "ln1_post", "norm2_post": "ln2_post"}
# The library's own parts of a fused projection, and BERT's head, which is no component in 3.6.
NOT_OWN = (".qkv.", ".cls.predictions.")
# Attention of 3.6 holds the norm before it as well.
BORROWED = "._ln1_module."
BEHIND = ("ln_final", "unembed", "mlm_head", "nsp_head", "pooler")


@dataclass(frozen=True, eq=False)
class BridgePlaces:
    """A bridge's modules and hooks.

    Attributes:
        model: A TransformerBridge, or what answers as one.
    """

    model: Any
    library = "transformer_lens"

    @property
    def root(self) -> nn.Module:
        """The model of transformers inside; its blocks' parts are the bridge's."""
        root: nn.Module = self.model.original_model
        return root

    @property
    def architecture(self) -> str:
        """Class name of the model."""
        return str(self.model.cfg.architecture)

    @property
    def kind(self) -> str:
        """Its `model_type`."""
        return str(self.model.original_model.config.model_type)

    @property
    def model_name(self) -> str:
        """As the bridge was booted."""
        return str(self.model.cfg.model_name)

    @property
    def context_length(self) -> int | None:
        """Tokens the model takes."""
        length: int | None = self.model.cfg.n_ctx
        return length

    @property
    def processing(self) -> str:
        """Whether compatibility mode has rewritten the weights."""
        # compatibility_mode alone, with no_processing=True, leaves the weights as they are.
        rewritten = getattr(self.model, "_weights_processed", self.model.compatibility_mode)
        return "compatibility" if rewritten else ""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.model.cfg.n_layers)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of a block's parts."""
        known = self.model.hook_dict
        return (*HOOKS, *(part for part, hook in NORM_HOOKS.items() if f"blocks.0.{hook}" in known))

    @property
    def embedding(self) -> str:
        """Where token embeddings are seen."""
        return "embed.hook_out"

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of transformers, which are what is called."""
        return [block.original_component for block in self.model.blocks]

    def crosses(self, layer: int) -> bool:
        """Whether a block attends to an image's states (Mllama)."""
        return bool(getattr(self.model.blocks[layer], "crosses", False))

    def spliced(self, layer: int) -> str:
        """Nothing is."""
        return ""

    @property
    def padding_sides(self) -> tuple[str, ...]:
        """Both: positions are counted from the first token."""
        return ("left", "right")

    def hook_name(self, part: Part) -> str:
        """TransformerLens's name, such as `blocks.8.hook_resid_post`."""
        layer, name = part
        if name == FINAL:
            self.final_norm()
            return FINAL_HOOK
        return f"blocks.{layer}.{(HOOKS | NORM_HOOKS)[name]}"

    def output_projection(self, layer: int) -> OutputProjection:
        """W_O and b_O of one block, copied, in float32 on the CPU."""
        attention = self.model.blocks[layer].attn
        # A bias-free projection has no attribute b_O, or None.
        bias = getattr(attention, "b_O", None)
        weight = weights.as_float32(attention.W_O)
        return OutputProjection(weight, None if bias is None else weights.as_float32(bias))

    def norm(self, role: NormRole, layer: int) -> tuple[str, nn.Module] | None:
        """The module of transformers behind `ln1`, `ln2`, `ln1_post` or `ln2_post`."""
        block, name = self.model.blocks[layer], NORM_MODULES[role]
        module = getattr(block, name, None)
        return None if module is None else (f"{name} of {type(block).__name__}", module.original_component)

    def entry(self) -> Norm | None:
        """What stands between Mllama's two stacks of vision blocks."""
        if self.kind != mllama.VISION:
            return None
        root: Any = self.root
        return mllama.joint(root, weights.norm_of("layernorm_post", root.layernorm_post))

    def attention(self, layer: int) -> AttentionParts:
        """Maps of one block, and transformers' own module."""
        attention = self.model.blocks[layer].attn
        module = attention.original_component
        norms = None
        if hasattr(attention, "q_norm"):
            norms = attention.q_norm.original_component, attention.k_norm.original_component
        query, key, value = (_head_map(attention, name) for name in "QKV")
        # BERT's attention proper is a module inside the one that is bridged.
        return AttentionParts(query, key, value, getattr(module, "self", module), norms)

    def parameters(self) -> Mapping[str, Tensor]:
        """Weights before and in the blocks, by the names of transformers."""
        behind = self._behind_the_last_block()
        context = getattr(self.model, "context", None)
        found: dict[str, Tensor] = {} if context is None else {weights.CONTEXT: context}
        prefix = str(getattr(self.root, "base_model_prefix", ""))
        seen = set(behind)
        for name, parameter in self.root.named_parameters(remove_duplicate=False):
            own = name.replace("._original_component", "")
            if id(parameter) in seen or BORROWED in own:
                continue
            seen.add(id(parameter))
            if not any(one in f".{own}" for one in NOT_OWN):
                found[weights.relative_name(own, prefix)] = parameter
        # A fused gate and input (Phi-3, GLM) is listed by the library once more in two parts.
        joint = tuple(name.rpartition(JOINT)[0] for name in found if JOINT in name)
        twice = tuple(f"{mlp}{part}." for mlp in joint for part in ("gate", "in"))
        return {name: parameter for name, parameter in found.items() if not name.startswith(twice)}

    def _behind_the_last_block(self) -> set[int]:
        def parameters(name: str) -> set[int]:
            component = getattr(self.model, name, None)
            return set() if component is None else {id(p) for p in component.parameters()}

        # A tied unembedding is the embedding.
        return set().union(*map(parameters, BEHIND)) - parameters("embed")

    def final_norm(self) -> nn.Module:
        """The bridge's `ln_final`.

        Raises:
            ValueError: There is none.
        """
        if FINAL_HOOK not in self.model.hook_dict:
            raise ValueError(f"{self.architecture} has no hook {FINAL_HOOK!r}: leave final_norm out.")
        norm: nn.Module = self.model.ln_final
        return norm


def _head_map(attention: Any, name: str) -> InputMap:
    """W_Q, W_K or W_V and its bias, one slice a head."""
    weight = weights.as_float32(getattr(attention, f"W_{name}"))
    # A bias-free projection has no attribute b_Q, or None.
    bias = getattr(attention, f"b_{name}", None)
    return InputMap(weight, None if bias is None else weights.as_float32(bias).reshape(len(weight), -1))
