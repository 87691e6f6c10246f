"""A Hugging Face model folder, loaded once, for whichever host wraps it.

Nothing goes to the network but a hub name of the form owner/name that is in no folder
(`find_folder`).

| folder of | becomes |
|---|---|
| a decoder | `AutoModelForCausalLM` |
| BERT | `BertForMaskedLM`; the head is untrained, read hidden states |
| ViT, DeiT | the class the folder names |
| DINOv2 | itself, or with `fold` a ViT with LayerScale folded in, exactly |
| CLIP | one tower |
| Llama 3.2 Vision (mllama), LLaVA | the whole model; `attach` reads one tower |

Attention is unfused everywhere, so that patterns can be read. `open_folder` asks an adapter's
`load_model` to wrap what was loaded.

A DINOv2 block multiplies what attention and MLP write by a learned vector (LayerScale):

    x = x + lambda_1 * (W_o z + b_o);    x = x + lambda_2 * (W_2 m + b_2)

lambda * (W z + b) = (diag(lambda) W) z + lambda * b, so the rows and the bias of each block's last
linear layers take lambda up, and the block is a ViT's. Position embeddings are resampled once to
the size of the input, by the formula DINOv2 applies in every pass. What differs is float32
rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa_plugin._check import cache_folder, require, require_known
from sa_plugin.host.adapter import TOWERS
from sa_plugin.host.images import Processor
from sa_plugin.host.protocol import Host, adapters, attach

TWO_TOWERS = {"clip": "CLIP", "mllama": "Llama 3.2 Vision", "llava": "LLaVA"}
WHOLE = {"mllama": "MllamaForConditionalGeneration", "llava": "LlavaForConditionalGeneration"}
VISION = ("ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassification")
# Of DINOv2: a ViT's names, and the scale behind each last linear layer.
NAMES = {
    "encoder.layer.": "layers.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
WRITES = {"attention.o_proj": "layer_scale1", "mlp.fc2": "layer_scale2"}
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
        folder: What `save_pretrained` wrote, with the tokenizer or the image processor; or a name
            that `find_folder` knows.
        host: Name of an installed adapter: "transformer_lens", "nnsight", "interp_engine".
        dtype: Number format of the weights.
        tower: "vision" or "text", of a folder with two.
        **options: Of `attach`.

    Returns:
        A checked host.

    Raises:
        FileNotFoundError: As `find_folder`.
        ImportError: The host's library is not installed; the text names the extra.
        ValueError: Unknown host, a missing or needless tower, or a check of `attach` fails.

    Example:
        >>> host = open_folder("smollm2", "nnsight")  # doctest: +SKIP
    """
    model, own = load_for_host(folder, host, dtype=dtype, tower=tower)
    return attach(model, **(own | options))


def load_for_host(
    folder: str | Path,
    host: str = "transformer_lens",
    *,
    dtype: torch.dtype = torch.float32,
    tower: str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """A model folder as a model of the host's library, and the options `attach` needs with it.

    Args:
        folder: What `save_pretrained` wrote, or a name that `find_folder` knows.
        host: Name of an installed adapter: "transformer_lens", "nnsight", "interp_engine".
        dtype: Number format of the weights.
        tower: "vision" or "text", of a folder with two.

    Raises:
        FileNotFoundError: As `find_folder`.
        ImportError: The host's library is not installed.
        ValueError: Unknown host, or a missing or needless tower.
    """
    found = adapters()
    require_known("host", host, found)
    package = import_module(found[host].module)
    if not hasattr(package, "load_model"):
        raise ValueError(f"adapter {host!r} loads no folders: load the model, and attach it.")
    model, options = package.load_model(folder, dtype=dtype, tower=tower)
    return model, dict(options)


def find_folder(model: str | Path) -> Path:
    """The folder of a model that is given as people name models.

    | given | is |
    |---|---|
    | a folder | that folder |
    | a bare name, "smollm2" | the folder of that name in `cache_folder()` |
    | a hub name, "owner/name" | the hub's snapshot, downloaded unless `HF_HUB_OFFLINE` forbids it |

    Raises:
        FileNotFoundError: None of them holds a `config.json`; the text says where was looked.
        ImportError: A hub name, and huggingface_hub is not installed.
    """
    path = Path(model).expanduser()
    kept = cache_folder() / path if len(path.parts) == 1 else path
    for folder in (path, kept):
        if (folder / "config.json").is_file():
            return folder
    hub_name = isinstance(model, str) and re.fullmatch(r"[\w.-]*\w/[\w.-]*\w", model)
    if hub_name and not path.parent.exists():
        return _snapshot(str(model))
    looked = f"{path} holds no config.json" + f", nor does {kept}" * (kept != path)
    raise FileNotFoundError(
        f"{looked}: give a folder that save_pretrained wrote, or a hub name, owner/name. In a clone "
        "of the repository `make weights` puts smollm2, minilm and vit into the cache folder."
    )


def _snapshot(name: str) -> Path:
    """What `from_pretrained` needs of a model of the hub, in Hugging Face's own cache."""
    hub = require("huggingface_hub", "transformer-lens", "a model of the hub")
    files = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=files))
    except OSError as error:
        raise FileNotFoundError(
            f"{name} is no folder, and the hub did not give it: {error} Correct the name, or give "
            "the folder of a copy."
        ) from error


def load_folder(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None, fold: bool = False
) -> Loaded:
    """A model of transformers from a folder.

    Args:
        folder: What `save_pretrained` wrote, or a name that `find_folder` knows.
        dtype: Number format of the weights.
        tower: "vision" or "text", of a folder with two.
        fold: Turn DINOv2 into a plain ViT.

    Raises:
        FileNotFoundError: As `find_folder`.
        ImportError: transformers is not installed.
        ValueError: A folder of two towers and no tower, or a tower and no such folder; with
            `fold`, a DINOv2 that is no plain ViT.
    """
    path = find_folder(folder)
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
        with quiet(transformers):
            model = load("BertForMaskedLM")
    else:
        model = load("AutoModelForCausalLM")
    tokenizer = None
    if not images:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    return Loaded(model.eval(), tokenizer, processor, Path(folder).name, left)


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
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
        size,
        patch,
        mode="letter_box",
        mean=tuple(source.image_mean),
        std=tuple(source.image_std),
        resample=int(source.resample),
    )


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


def as_vit(model: Any, image_size: int | None = None) -> Any:
    """A `ViTModel` that computes what a `Dinov2Model` computes.

    Args:
        model: A `transformers.Dinov2Model`; it is not changed.
        image_size: Side of the input in pixels; by default the config's.

    Returns:
        The ViT in eval mode, attention unfused, its last norm the model's, without a pooler.

    Raises:
        ValueError: The model has no plain two-layer MLP, or the size is no multiple of a patch.
    """
    config = model.config
    if config.use_swiglu_ffn:
        raise ValueError(
            "a DINOv2 with a SwiGLU MLP (the giant one) is no plain ViT: use small, base or large."
        )
    size = image_size or int(config.image_size)
    if size % config.patch_size:
        raise ValueError(f"image size {size} is no multiple of the patch size {config.patch_size}.")
    transformers = require("transformers", "transformer-lens", "folding a DINOv2")
    twin = transformers.ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=int(config.hidden_size * config.mlp_ratio),
        hidden_act=config.hidden_act,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=config.layer_norm_eps,
        qkv_bias=config.qkv_bias,
        image_size=size,
        patch_size=config.patch_size,
        num_channels=config.num_channels,
        attn_implementation="eager",
    )
    vit = transformers.ViTModel(twin, add_pooling_layer=False)
    vit.load_state_dict(_folded(model.state_dict(), size // config.patch_size))
    return vit.to(model.dtype).eval()


def _folded(state: Mapping[str, Tensor], grid: int) -> dict[str, Tensor]:
    """A DINOv2's tensors under a ViT's names, LayerScale folded in.

    Args:
        state: Of a `Dinov2Model`, in the names of transformers 4 or 5.
        grid: Patches along each side of the input.
    """
    plain = {_rename(name): tensor for name, tensor in state.items()}
    plain.pop("embeddings.mask_token", None)
    scales = {name: plain.pop(name) for name in [*plain] if ".layer_scale" in name}
    for name, tensor in plain.items():
        plain[name] = _scaled(name, tensor, scales)
    place = "embeddings.position_embeddings"
    return plain | {place: _resample_positions(plain[place], grid)}


def _rename(name: str) -> str:
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name


def _scaled(name: str, tensor: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    block, _, kind = name.rpartition(".")
    for write, scale in WRITES.items():
        if block.startswith("layers.") and block.endswith(write):
            factor = scales[f"{block.removesuffix(write)}{scale}.lambda1"]
            return tensor * (factor[:, None] if kind == "weight" else factor)
    return tensor.clone()


def _resample_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings `[1, 1 + old^2, d_model]` for a square grid of another size."""
    old = round((positions.shape[1] - 1) ** 0.5)
    if old == grid:
        return positions.clone()
    plane = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    plane = torch.nn.functional.interpolate(
        plane.float(), size=(grid, grid), mode="bicubic", align_corners=False
    )
    patches = plane.to(positions.dtype).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions[:, :1], patches], dim=1)
