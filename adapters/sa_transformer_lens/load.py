"""Load a Hugging Face model folder into a TransformerBridge, without network.

| folder of | becomes | TransformerLens |
|---|---|---|
| a decoder | `AutoModelForCausalLM` | its own |
| BERT | `BertForMaskedLM` | its own; the head is untrained, read hidden states |
| ViT, DeiT | the class the folder names | its own |
| DINOv2 | a ViT with LayerScale folded in, exactly | none for DINOv2, so its ViT's |
| CLIP | one tower | `sa_transformer_lens.clip` |

Attention is unfused everywhere, so that patterns can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sa_plugin._layer_scale import as_vit
from sa_plugin._optional import require

TOWERS = ("vision", "text")
VISION = ("ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassification")


def load_bridge(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None
) -> Any:
    """A text or vision model as a TransformerBridge in eval mode.

    Args:
        folder: What `save_pretrained` wrote, with the tokenizer or the image processor.
        dtype: Number format of the weights.
        tower: "vision" or "text": which half of a CLIP folder to load.

    Returns:
        The bridge. One of a vision model has the folder's image processor as `bridge.processor`,
        or None if the folder holds none.

    Raises:
        FileNotFoundError: No `config.json` there.
        ImportError: TransformerLens is not installed.
        ValueError: A CLIP folder and no tower, or a tower and no CLIP folder; a DINOv2 that is no
            plain ViT.

    Example:
        >>> bridge = load_bridge("~/.cache/sa_plugin/smollm2")  # doctest: +SKIP
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} holds no config.json: give a folder that save_pretrained wrote."
        )
    require("transformer_lens", "transformer-lens", "loading a bridge")
    transformers = require("transformers", "transformer-lens", "loading a model folder")
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    kind = config.model_type
    _check_tower(path, kind, tower)

    def load(name: str, **options: Any) -> Any:
        return getattr(transformers, name).from_pretrained(
            path, dtype=dtype, attn_implementation="eager", local_files_only=True, **options
        )

    if kind in ("vit", "deit", "dinov2"):
        processor = _image_processor(transformers, path)
        return _vision_bridge(_vision_model(load, config, processor), path, processor)
    if kind in ("clip", "clip_vision_model", "clip_text_model"):
        return _clip_bridge(transformers, load, path, kind, tower)
    if kind == "bert":
        with _quiet(transformers):
            model = load("BertForMaskedLM")
    else:
        model = load("AutoModelForCausalLM")
    return _text_bridge(transformers, model, path, dtype)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No report of the untrained head, which nothing reads; the level is put back after."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _check_tower(path: Path, kind: str, tower: str | None) -> None:
    if kind == "clip" and tower not in TOWERS:
        raise ValueError(
            f"{path} holds both towers of a CLIP, tower is {tower!r}: give tower='vision' or "
            "tower='text'."
        )
    if kind != "clip" and tower is not None:
        raise ValueError(f"{path} holds a {kind} model, of which there is no {tower!r} tower.")


def _text_bridge(transformers: Any, model: Any, path: Path, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    return TransformerBridge.boot_transformers(
        path.name, hf_model=model.eval(), tokenizer=tokenizer, device="cpu", dtype=dtype
    )


def _vision_model(load: Callable[..., Any], config: Any, processor: Any) -> Any:
    if config.model_type == "dinov2":
        # DINOv2 resamples positions to any input; a ViT has one size, that of its processor.
        cut = getattr(processor, "crop_size", None) or getattr(processor, "size", None)
        return as_vit(load("Dinov2Model"), getattr(cut, "height", None))
    named = [name for name in config.architectures or () if name in VISION]
    bare = {"vit": "ViTModel", "deit": "DeiTModel"}[config.model_type]
    name = named[0] if named else bare
    # A pooler stands behind the last block, and is untrained where the folder has none.
    return load(name, add_pooling_layer=False) if name == bare else load(name)


def _vision_bridge(model: Any, path: Path, processor: Any) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    # boot_transformers would look for an image processor of the folder's name on the hub.
    bridge = build_bridge_from_module(
        model.eval(), type(model).__name__, hf_config=model.config, model_name=path.name
    )
    bridge.processor = processor
    return bridge


def _clip_bridge(
    transformers: Any, load: Callable[..., Any], path: Path, kind: str, tower: str | None
) -> Any:
    from sa_transformer_lens.clip import register

    register()
    half = tower or ("vision" if "vision" in kind else "text")
    if kind == "clip":
        model = getattr(load("CLIPModel"), f"{half}_model")
    else:
        model = load("CLIPVisionModel" if half == "vision" else "CLIPTextModel")
    if half == "vision":
        return _vision_bridge(model, path, _image_processor(transformers, path))
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    return build_bridge_from_module(
        model.eval(), type(model).__name__, hf_config=model.config, model_name=path.name,
        tokenizer=transformers.AutoTokenizer.from_pretrained(path, local_files_only=True),
    )  # fmt: skip


def _image_processor(transformers: Any, path: Path) -> Any:
    if not (path / "preprocessor_config.json").is_file():
        return None
    return transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)
