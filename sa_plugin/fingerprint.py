"""A hash that tells one model's weights from another's, fast enough for every attach.

Hosts wrap the same weights in different modules. Each adapter lists its parameters by one set of
names: those of transformers relative to the base model (`h.0.ln_1.weight`, whatever head stands on
top), with two exceptions: a fused query, key and value is listed as `q`, `k` and `v` in the layout
of `nn.Linear`, and its output projection as `o`. Heads behind the last block (unembedding, final
norm, pooler) are left out: the residual stream does not depend on them, and `BertForMaskedLM` draws
them anew each time it loads a bare encoder. A host that reads behind the final norm lists that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

VALUES = 64
# States of an image that every text is read with (Mllama), listed beside the weights.
CONTEXT = "cross_attention_states"


def fingerprint(kind: str, parameters: Mapping[str, Tensor]) -> str:
    """SHA-256 of the kind of model, and of each weight's name, shape and 64 strided values.

    Values are hashed as float32: a model keeps its fingerprint in a wider number format, and
    changes it when its weights are rewritten or fine-tuned.

    Args:
        kind: `model_type` of the transformers configuration.
        parameters: By the names described above.
    """
    found = {name: (tuple(one.shape), _strided(one)) for name, one in parameters.items()}
    return hash_values(kind, found)


def of_final_norm(norm: Any) -> dict[str, Tensor]:
    """The parameters of the norm behind the last block, where it is read, by shared names."""
    named = norm.named_parameters()
    return {f"final norm.{name.rpartition('.')[2]}": parameter for name, parameter in named}


def hash_values(kind: str, found: Mapping[str, tuple[tuple[int, ...], Tensor]]) -> str:
    """The fingerprint, from shapes and from the values at `strided_places`."""
    digest = hashlib.sha256(kind.encode())
    for name, (shape, values) in sorted(found.items()):
        digest.update(f"{name}{shape}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def strided_places(size: int) -> Int[Tensor, " value"]:
    """Flat indices of the values that are hashed."""
    count = min(VALUES, size)
    return torch.arange(count) * size // max(count, 1)


def relative_name(name: str, prefix: str) -> str:
    """A parameter's name inside the base model."""
    return name.removeprefix(f"{prefix}.") if prefix else name


def _strided(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[strided_places(len(flat)).to(flat.device)].to("cpu", torch.float32)
