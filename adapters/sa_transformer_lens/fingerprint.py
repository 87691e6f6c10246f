"""The weights of a bridge by the names that every host uses, and their hash."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sa_plugin import fingerprint as shared

HEADS = ("ln_final", "unembed", "mlm_head", "nsp_head", "pooler")


def fingerprint(bridge: Any, *, final_norm: bool = False) -> str:
    """Hash of the weights before and in the blocks; see `sa_plugin.fingerprint`.

    It changes when compatibility mode rewrites the weights.
    """
    model = bridge.original_model
    behind = _behind_the_last_block(bridge)
    context = getattr(bridge, "context", None)
    found: dict[str, Tensor] = {} if context is None else {shared.CONTEXT: context}
    for name, parameter in model.named_parameters():
        plain = name.replace("._original_component", "")
        # The bridge keeps a fused map beside the parts it computes with.
        if id(parameter) not in behind and ".qkv." not in plain:
            found[shared.relative_name(plain, model.base_model_prefix)] = parameter
    if final_norm:
        found |= shared.of_final_norm(bridge.ln_final)
    return shared.fingerprint(str(model.config.model_type), found)


def _behind_the_last_block(bridge: Any) -> set[int]:
    def parameters(component: Any) -> set[int]:
        return {id(p) for p in component.parameters()} if component is not None else set()

    behind = set().union(*(parameters(getattr(bridge, name, None)) for name in HEADS))
    # A tied unembedding is the embedding.
    return behind - parameters(getattr(bridge, "embed", None))
