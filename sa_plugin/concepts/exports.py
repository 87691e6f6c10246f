"""A concept vector in the formats of other tools.

The score of an activation h is `x . v` with `x = (h - mean) / scale`, so in raw space two vectors stand for
a concept, both along v:

    read   w = v / scale             h . w + b = score,  b = -w . mean      (the one that measures)
    push   p = scale v / (v . v)     h + s p has the projection x . v + s   (the one that steers)

| receiver | gets | layer | hook point |
|---|---|---|---|
| interp-engine, `ConceptBank.to_direction_set` | read, all units, with the bias | block | by its names |
| Neuronpedia, `neuronpedia_vector` | push: strengths in units of scores | block | hook_resid_pre or _post |
| llama.cpp, repeng, `write_control_vector` | push | `direction.N`: output of block N >= 1 | residual |

Blocks count from 0.

What is lost: steering tools know no mean, so nothing of the threshold goes along, and a cosine score also
falls with the length of x, which a push changes. A vector says what its scores say, not that adding it
makes a model speak of the concept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sa_plugin._check import require
from sa_plugin._face import face
from sa_plugin._files import write_bytes
from sa_plugin.concepts.bank import ConceptBank, require_raw

NEURONPEDIA_HOOKS = {"resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post"}


@dataclass(frozen=True)
class NeuronpediaVector:
    """What Neuronpedia's client takes of one concept at one layer.

    Attributes:
        new: Arguments of `neuronpedia.np_vector.NPVector.new`.
        passages: Tokens and scores, of `NPVector.upload_activations`: each is what an `Activation` takes
            beside the ids that `new` returns.
    """

    new: dict[str, Any]
    passages: tuple[dict[str, Any], ...]


@face
def push_vector(bank: ConceptBank, concept: str, layer: int) -> Float[Tensor, " d_model"]:
    """The vector of raw activation space that raises `x . v` by one where it is added.

    Args:
        bank: Concept vectors.
        concept: Name of a concept or unit.
        layer: Block index.

    Raises:
        ValueError: Unknown concept or layer, latents of an SAE, or a bank of rewritten weights.
    """
    require_raw(bank)
    at = bank.index(layer)
    vector = bank.vector(concept, layer).double()
    return (bank.token.scale[at].double() * vector / (vector @ vector)).float()


@face
def neuronpedia_vector(
    bank: ConceptBank,
    concept: str,
    layer: int,
    *,
    model_id: str,
    label: str = "",
    strength: float = 1.0,
    passages: Sequence[tuple[Sequence[str], Sequence[float]]] = (),
) -> NeuronpediaVector:
    """A concept vector as Neuronpedia's client takes it; nothing is sent.

    Args:
        bank: Concept vectors, of a residual stream.
        concept: Name of a concept or unit.
        layer: Block index, which is Neuronpedia's too.
        model_id: The model's name there, such as "gpt2-small".
        label: Shown there; by default the concept.
        strength: Default for steering, in units of the score.
        passages: Tokens and scores of texts to show, such as `table.passages(concept, layer)`.

    Raises:
        ValueError: As `push_vector`; another hook point; tokens and scores that differ in number.
    """
    if bank.hook_point not in NEURONPEDIA_HOOKS:
        raise ValueError(
            f"Neuronpedia takes vectors of {' and '.join(NEURONPEDIA_HOOKS)}, these live at "
            f"{bank.hook_point!r}: fit with hook_point='resid_post'."
        )
    for k, (tokens, values) in enumerate(passages):
        if len(tokens) != len(values):
            raise ValueError(
                f"passage {k} has {len(tokens)} tokens and {len(values)} scores: give one score a token."
            )
    new = {
        "label": label or concept,
        "model_id": model_id,
        "layer_num": layer,
        "hook_type": NEURONPEDIA_HOOKS[bank.hook_point],
        "vector": push_vector(bank, concept, layer).tolist(),
        "default_steer_strength": strength,
    }
    shown = [
        {"tokens": [*tokens], "values": [float(value) for value in values]} for tokens, values in passages
    ]
    return NeuronpediaVector(new, tuple(shown))


@face
def write_control_vector(
    bank: ConceptBank, concept: str, layer: int, path: str | Path, *, model_type: str
) -> Path:
    """A control vector of llama.cpp and repeng in a gguf file; a scale of s adds s to the score.

    Args:
        bank: Concept vectors, of a residual stream.
        concept: Name of a concept or unit.
        layer: Block index. `resid_post` of block n is `direction.n`, `resid_pre` of it `direction.(n - 1)`.
        path: Where to.
        model_type: Of the transformers configuration, such as "llama"; kept as the file's `model_hint`.

    Returns:
        The path.

    Raises:
        ImportError: gguf is not installed.
        OSError: The file cannot be written.
        ValueError: As `push_vector`; another hook point; or the output of block 0 or the embedding, which
            llama.cpp steers in no layer.
    """
    if bank.hook_point not in NEURONPEDIA_HOOKS:
        raise ValueError(
            f"control vectors are added to the residual stream, these vectors live at {bank.hook_point!r}: "
            "fit with hook_point='resid_post'."
        )
    vector = push_vector(bank, concept, layer)
    place = layer if bank.hook_point == "resid_post" else layer - 1
    if place < 1:
        raise ValueError(
            f"{bank.hook_point} of block {layer} would be direction.{place}, and llama.cpp steers blocks "
            "from 1 on: take a later layer."
        )
    gguf = require("gguf", "gguf", "writing a control vector")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "vector.gguf"
        writer = gguf.GGUFWriter(str(made), "controlvector")
        writer.add_string("controlvector.model_hint", model_type)
        writer.add_uint32("controlvector.layer_count", 1)
        writer.add_tensor(f"direction.{place}", np.ascontiguousarray(vector.numpy(), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return write_bytes(path, made.read_bytes())
