"""Load a Hugging Face model folder into a TransformerBridge, without network.

What a folder becomes is said in `sa_plugin.folders`; TransformerLens has no DINOv2, so its
LayerScale is folded and it is a ViT, and no CLIP, so `sa_transformer_lens.clip` brings both towers,
and `sa_transformer_lens.towers` those of LLaVA and Mllama.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sa_plugin._optional import require
from sa_plugin.folders import Loaded, load_folder


def load_bridge(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None
) -> Any:
    """A text or vision model as a TransformerBridge in eval mode.

    Args:
        folder: What `save_pretrained` wrote, with the tokenizer or the image processor.
        dtype: Number format of the weights.
        tower: "vision" or "text": which half of a model with two to load.

    Returns:
        The bridge, or of Mllama a `HookedMllama`. One of a vision model has the folder's image
        processor as `bridge.processor`, or None if the folder holds none.

    Raises:
        FileNotFoundError: No `config.json` there.
        ImportError: TransformerLens is not installed.
        ValueError: A folder of two towers and no tower, or a tower and no such folder; a DINOv2
            that is no plain ViT.

    Example:
        >>> bridge = load_bridge("~/.cache/sa_plugin/smollm2")  # doctest: +SKIP
    """
    require("transformer_lens", "transformer-lens", "loading a bridge")
    loaded = load_folder(folder, dtype=dtype, tower=tower, fold=True)
    if loaded.tower is not None:
        from sa_transformer_lens.towers import tower_bridge

        return tower_bridge(
            loaded.model, loaded.tower, tokenizer=loaded.tokenizer, processor=loaded.processor,
            name=loaded.name,
        )  # fmt: skip
    if type(loaded.model).__name__.startswith("CLIP"):
        from sa_transformer_lens.clip import register

        register()
        return _module_bridge(loaded)
    return _module_bridge(loaded) if loaded.tokenizer is None else _text_bridge(loaded, dtype)


def load_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """What `sa_plugin.folders` calls: the bridge, and no options for `attach`.

    Args:
        folder: What `save_pretrained` wrote.
        dtype: Number format of the weights.
        tower: Which half of a model with two.

    Raises:
        FileNotFoundError: No model there.
        ImportError: TransformerLens is not installed.
        ValueError: As `load_bridge`.
    """
    return load_bridge(folder, dtype=dtype, tower=tower), {}


def _text_bridge(loaded: Loaded, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        loaded.name, hf_model=loaded.model, tokenizer=loaded.tokenizer, device="cpu", dtype=dtype
    )


def _module_bridge(loaded: Loaded) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model = loaded.model
    # boot_transformers would look for an image processor of the folder's name on the hub.
    bridge = build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, model_name=loaded.name,
        tokenizer=loaded.tokenizer,
    )  # fmt: skip
    if loaded.tokenizer is None:
        bridge.processor = loaded.processor
    return bridge
