"""A hash that tells one model's weights from another's, fast enough for every attach.

Heads behind the last block (unembedding, final norm, pooler) are left out: the residual stream does
not depend on them, and `BertForMaskedLM` draws them anew each time it loads a bare encoder.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

HEADS = ("ln_final", "unembed", "mlm_head", "nsp_head", "pooler")
VALUES = 64


def fingerprint(bridge: Any) -> str:
    """SHA-256 of the architecture, and of each weight's name, shape and 64 strided values.

    Values are hashed as float32: a model keeps its fingerprint in a wider number format, and
    changes it when its weights are rewritten (compatibility mode) or fine-tuned.
    """
    behind = _behind_the_last_block(bridge)
    digest = hashlib.sha256(str(bridge.cfg.architecture).encode())
    for name, parameter in sorted(bridge.original_model.named_parameters()):
        if id(parameter) in behind:
            continue
        plain = name.replace("._original_component", "")
        digest.update(f"{plain}{tuple(parameter.shape)}".encode())
        digest.update(_strided(parameter).numpy().tobytes())
    return digest.hexdigest()


def _behind_the_last_block(bridge: Any) -> set[int]:
    def parameters(component: Any) -> set[int]:
        return {id(p) for p in component.parameters()} if component is not None else set()

    behind = set().union(*(parameters(getattr(bridge, name, None)) for name in HEADS))
    # A tied unembedding is the embedding.
    return behind - parameters(getattr(bridge, "embed", None))


def _strided(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    count = min(VALUES, len(flat))
    rows = torch.arange(count, device=flat.device) * len(flat) // max(count, 1)
    return flat[rows].to("cpu", torch.float32)
