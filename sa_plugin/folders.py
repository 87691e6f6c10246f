"""A Hugging Face model folder, loaded once without network, for whichever host wraps it.

| folder of | becomes |
|---|---|
| a decoder | `AutoModelForCausalLM` |
| BERT | `BertForMaskedLM`; the head is untrained, read hidden states |
| ViT, DeiT | the class the folder names |
| DINOv2 | itself, or with `fold` a ViT with LayerScale folded in, exactly |
| CLIP | one tower |
| Llama 3.2 Vision (mllama), LLaVA | the whole model; `attach` reads one tower |

Attention is unfused everywhere, so that patterns can be read. `open_folder` hands what was loaded
to an adapter, whose module `load` knows how to wrap it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from sa_plugin._layer_scale import as_vit
from sa_plugin._names import require_known
from sa_plugin._optional import require
from sa_plugin.host import Host, attach
from sa_plugin.processor import Processor

HOSTS = {"transformer_lens": "sa_transformer_lens.load", "nnsight": "sa_nnsight.load"}
TOWERS = ("vision", "text")
TWO_TOWERS = {"clip": "CLIP", "mllama": "Llama 3.2 Vision", "llava": "LLaVA"}
WHOLE = {"mllama": "MllamaForConditionalGeneration", "llava": "LlavaForConditionalGeneration"}
VISION = ("ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassification")
Load = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in eval mode with what turns samples into its inputs.

    Attributes:
        model: Of transformers.
        tokenizer: Of a text model, else None.
        processor: Image processor of a vision model, if the folder holds one.
        name: Of the folder.
        tower: Which tower of a whole model is to be read, or None.
    """

    model: Any
    tokenizer: Any
    processor: Any
    name: str
    tower: str | None = None

    def __repr__(self) -> str:
        return f"Loaded({self.name}: {type(self.model).__name__})"


def open_folder(
    folder: str | Path,
    host: str = "transformer_lens",
    *,
    dtype: torch.dtype = torch.float32,
    tower: str | None = None,
    **options: Any,
) -> Host:
    """Load a model folder and attach it by the host asked for.

    Args:
        folder: What `save_pretrained` wrote, with the tokenizer or the image processor.
        host: "transformer_lens" or "nnsight".
        dtype: Number format of the weights.
        tower: "vision" or "text", of a folder with two.
        **options: Of `attach`.

    Returns:
        A checked host.

    Raises:
        FileNotFoundError: No `config.json` there.
        ImportError: The host's library is not installed; the text names the extra.
        ValueError: Unknown host, a missing or needless tower, or a check of `attach` fails.

    Example:
        >>> host = open_folder("~/.cache/sa_plugin/smollm2", "nnsight")  # doctest: +SKIP
    """
    model, own = load_model(folder, host, dtype=dtype, tower=tower)
    return attach(model, **(own | options))


def load_model(
    folder: str | Path,
    host: str = "transformer_lens",
    *,
    dtype: torch.dtype = torch.float32,
    tower: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """A model folder as a model of the host's library, and the options `attach` needs with it.

    Args:
        folder: What `save_pretrained` wrote.
        host: "transformer_lens" or "nnsight".
        dtype: Number format of the weights.
        tower: "vision" or "text", of a folder with two.

    Raises:
        FileNotFoundError: No `config.json` there.
        ImportError: The host's library is not installed.
        ValueError: Unknown host, or a missing or needless tower.
    """
    require_known("host", host, HOSTS)
    loader: Any = import_module(HOSTS[host])
    model, options = loader.load_model(folder, dtype=dtype, tower=tower)
    return model, dict(options)


def load_folder(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    tower: str | None = None,
    fold: bool = False,
) -> Loaded:
    """A model of transformers from a folder, without network.

    Args:
        folder: What `save_pretrained` wrote.
        dtype: Number format of the weights.
        tower: "vision" or "text", of a folder with two.
        fold: Turn DINOv2 into a plain ViT.

    Raises:
        FileNotFoundError: No `config.json` there.
        ImportError: transformers is not installed.
        ValueError: A folder of two towers and no tower, or a tower and no such folder; with
            `fold`, a DINOv2 that is no plain ViT.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} holds no config.json: give a folder that save_pretrained wrote."
        )
    transformers = require("transformers", "transformer-lens", "loading a model folder")
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    kind = config.model_type
    _check_tower(path, kind, tower)

    def load(name: str, **options: Any) -> Any:
        return getattr(transformers, name).from_pretrained(
            path, dtype=dtype, attn_implementation="eager", local_files_only=True, **options
        )

    left = tower if kind in WHOLE else None
    images = kind in ("vit", "deit", "dinov2", "clip_vision_model") or tower == "vision"
    processor = _image_processor(transformers, path) if images else None
    if kind in ("vit", "deit", "dinov2"):
        model = _vision_model(load, config, processor, fold)
    elif kind in WHOLE:
        model = load(WHOLE[kind])
        processor = _one_tile(processor, config) if images and kind == "mllama" else processor
    elif kind == "clip":
        model = getattr(load("CLIPModel"), f"{tower}_model")
    elif kind in ("clip_vision_model", "clip_text_model"):
        model = load("CLIPVisionModel" if images else "CLIPTextModel")
    elif kind == "bert":
        with _quiet(transformers):
            model = load("BertForMaskedLM")
    else:
        model = load("AutoModelForCausalLM")
    tokenizer = None
    if not images:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    return Loaded(model.eval(), tokenizer, processor, path.name, left)


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
    if kind in TWO_TOWERS and tower not in TOWERS:
        raise ValueError(
            f"{path} holds both towers of a {TWO_TOWERS[kind]}, tower is {tower!r}: give "
            "tower='vision' or tower='text'."
        )
    if kind not in TWO_TOWERS and tower is not None:
        raise ValueError(f"{path} holds a {kind} model, of which there is no {tower!r} tower.")


def _one_tile(source: Any, config: Any) -> Processor:
    """Llama's image processor for an image fitted into one tile (arXiv 2512.05038)."""
    part = config.vision_config
    size, patch = (int(part.image_size),) * 2, int(part.patch_size)
    if source is None:
        return Processor(size, patch, mode="letter_box")
    return Processor(
        size, patch, mode="letter_box", mean=tuple(source.image_mean), std=tuple(source.image_std),
        resample=int(source.resample),
    )  # fmt: skip


def _vision_model(load: Load, config: Any, processor: Any, fold: bool) -> Any:
    if config.model_type == "dinov2":
        model = load("Dinov2Model")
        if not fold:
            return model
        # DINOv2 resamples positions to any input; a ViT has one size, that of its processor.
        cut = getattr(processor, "crop_size", None) or getattr(processor, "size", None)
        return as_vit(model, getattr(cut, "height", None))
    named = [name for name in config.architectures or () if name in VISION]
    bare = {"vit": "ViTModel", "deit": "DeiTModel"}[config.model_type]
    name = named[0] if named else bare
    # A pooler stands behind the last block, and is untrained where the folder has none.
    return load(name, add_pooling_layer=False) if name == bare else load(name)


def _image_processor(transformers: Any, path: Path) -> Any:
    if not (path / "preprocessor_config.json").is_file():
        return None
    return transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)
