"""Load a Hugging Face model folder into nnsight, without network.

What a folder becomes is said in `sa_plugin.folders`: the same module of transformers that a bridge
is made of, but DINOv2, which stays itself.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from sa_plugin._optional import require
from sa_plugin.folders import load_folder


def load_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """A model folder wrapped by `nnsight.NNsight`, and what `attach` needs beside it.

    Args:
        folder: What `save_pretrained` wrote.
        dtype: Number format of the weights.
        tower: "vision" or "text": which half of a model with two.

    Returns:
        The wrapper, and its tokenizer or image processor as an option of `attach`.

    Raises:
        FileNotFoundError: No model there.
        ImportError: nnsight is not installed.
        ValueError: As `sa_plugin.folders.load_folder`.

    Example:
        >>> model, options = load_model("~/.cache/sa_plugin/minilm")  # doctest: +SKIP
    """
    nnsight = require("nnsight", "nnsight", "loading a model folder into nnsight")
    loaded = load_folder(folder, dtype=dtype, tower=tower)
    with warnings.catch_warnings():
        # BERT has modules named `output`, which nnsight calls `E_output`; nothing here uses them.
        warnings.filterwarnings("ignore", "Module '.*' has a submodule named 'output'")
        model = nnsight.NNsight(loaded.model)
    options: dict[str, Any] = {} if loaded.tower is None else {"tower": loaded.tower}
    if loaded.tokenizer is None:
        return model, options | {"processor": loaded.processor}
    return model, options | {"tokenizer": loaded.tokenizer}
