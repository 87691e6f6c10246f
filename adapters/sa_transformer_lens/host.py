"""A TransformerBridge of a text or vision model as a host, and bridges of model folders.

TransformerLens rebuilds a tokenizer that has a BOS token so that it always puts it first, also for
models never trained with it (SmolLM2, GPT-2); `own_tokenizer` gives the tokenizer as it was.
`attach(bridge, tokenizer=bridge.tokenizer)` keeps the BOS of TransformerLens.

What a folder becomes is said in `sa_plugin.host.folders`. TransformerLens has no DINOv2, so its
LayerScale is folded and it is a ViT, and no CLIP, so `sa_transformer_lens.towers` brings both
towers, and those of LLaVA and Mllama.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sa_plugin._check import require, require_made_by, require_version
from sa_plugin._face import face, passing
from sa_plugin.host.local import LocalHost, Options, open_images, open_texts, refuse_training
from sa_plugin.host.tokens import check_tokenizer
from sa_transformer_lens.explain import explain as explained
from sa_transformer_lens.ways import passes_of


@dataclass(frozen=True, eq=False, repr=False)
class TransformerLensHost(LocalHost):
    """A checked TransformerBridge; make one with `sa_plugin.attach(bridge)`."""

    @property
    def bridge(self) -> Any:
        """The user's bridge, or HookedTransformer. It is read, never changed: hooks live for one call."""
        return self.model

    # As `sa_plugin.host.protocol.ExplainingHost` asks.
    explain = explained


@passing(Options, name="attach")
def attach_bridge(
    bridge: Any, *, tower: str | None = None, device: str | torch.device | None = None, **options: Any
) -> TransformerLensHost:
    """Check a bridge once, by a few forward passes over a short input, and wrap it.

    Args:
        bridge: A TransformerBridge of a text or vision model, or a
            `sa_transformer_lens.mllama.HookedMllama`, in eval mode.
        tower: A bridge is of one tower already; `sa_transformer_lens.towers.tower_bridge` makes it.
        device: Where to move the bridge; by default it stays where it is.
        **options: Of every adapter, see `sa_plugin.host.local.Options`. The tokenizer is by default
            the bridge's, without a BOS token that only TransformerLens put there.

    Raises:
        TypeError: The bridge is none.
        ValueError: An unknown device, training mode, an option of the other kind of model, or a check
            fails; see `sa_plugin.host.local.open_texts` and `open_images`.
    """
    # A HookedMllama is a module of ours.
    if not isinstance(bridge, torch.nn.Module) or not hasattr(bridge, "cfg"):
        require_made_by("bridge", bridge, "transformer_lens", "boot a TransformerBridge")
    chosen = Options(**options)
    if tower is not None:
        raise ValueError(
            f"a bridge reads one stack of blocks, tower={tower!r} comes too late: make it of the "
            "model of transformers, attach(sa_transformer_lens.towers.tower_bridge(model, "
            f"{tower!r}))."
        )
    refuse_training(bridge)
    if not hasattr(bridge, "blocks"):
        raise ValueError(f"{bridge.cfg.architecture} has no single stack of blocks to read.")
    if device is not None:
        bridge.to(_device(device))
    passes = passes_of(bridge)
    if getattr(bridge.cfg, "is_visual_model", False):
        if chosen.processor is None:
            chosen = replace(chosen, processor=getattr(bridge, "processor", None))
        return open_images(TransformerLensHost, passes, bridge.original_model.config, chosen)
    if chosen.padding_side not in passes.places.padding_sides:
        raise ValueError(
            "a HookedEncoder counts positions from the first column, padding included, so texts padded on "
            "the left would be read at other positions: leave padding_side out, or attach a bridge."
        )
    if chosen.tokenizer is None:
        chosen = replace(chosen, tokenizer=own_tokenizer(bridge.tokenizer, bos=chosen.bos))
    return open_texts(TransformerLensHost, passes, chosen)


LACKING = (
    "the bridge has no tokenizer, so texts cannot be read: boot it with tokenizer=..., or "
    "attach(bridge, tokenizer=...)."
)


@face
def own_tokenizer(tokenizer: Any, *, bos: bool | None = None) -> Any:
    """The tokenizer by its own rule for special tokens.

    Args:
        tokenizer: The bridge's.
        bos: What is asked for; where it is, no rule has to be known.

    Raises:
        ValueError: There is none, it gives no offsets, or it cannot be told whether the BOS it
            puts first is its own.
    """
    check_tokenizer(tokenizer, LACKING)
    if not getattr(tokenizer, "add_bos_token", False):
        return tokenizer
    text = "The cat sat."
    ids = tokenizer(text).input_ids
    if not ids or ids[0] != tokenizer.bos_token_id:
        return tokenizer
    try:
        fresh = _as_saved(tokenizer)
    except ValueError:
        if bos is None:
            raise
        return tokenizer
    # The rebuilt tokenizer may also have lost a token it should put last.
    same = fresh(text).input_ids == ids
    plain, ours = (tok(text, add_special_tokens=False).input_ids for tok in (fresh, tokenizer))
    if not same and plain != ours:
        raise ValueError(
            f"the tokenizer at {tokenizer.name_or_path!r} and the bridge's differ beyond the BOS "
            "token that TransformerLens adds: say which to use, attach(bridge, tokenizer=...)."
        )
    return fresh


def _as_saved(tokenizer: Any) -> Any:
    transformers = require("transformers", "transformer-lens", "reading a tokenizer")
    source = tokenizer.name_or_path
    try:
        return transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"TransformerLens makes tokenizers add BOS, and {source!r} cannot be read again to "
            "see whether this one does so itself: say whether texts have one, attach(bridge, bos=True) or "
            "bos=False, or which to use, attach(bridge, tokenizer=tok)."
        ) from error


def _device(device: str | torch.device) -> torch.device:
    """A device of torch.

    Raises:
        ValueError: torch knows no such device.
    """
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}: give one such as 'cpu', 'cuda' or 'cuda:1'.") from error


@face
def load_bridge(folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None) -> Any:
    """A text or vision model as a TransformerBridge in eval mode.

    Args:
        folder: What `save_pretrained` wrote, with the tokenizer or the image processor; or a name
            that `sa_plugin.host.find_folder` knows.
        dtype: Number format of the weights.
        tower: "vision" or "text": which half of a model with two to load.

    Returns:
        The bridge, or of Mllama a `HookedMllama`. One of a vision model has the folder's image
        processor as `bridge.processor`, or None if the folder holds none.

    Raises:
        FileNotFoundError: As `find_folder`.
        ImportError: TransformerLens is not installed.
        TypeError: A vision model, and a TransformerLens before 3.8.
        ValueError: A folder of two towers and no tower, or a tower and no such folder; a DINOv2
            that is no plain ViT.

    Example:
        >>> bridge = load_bridge("smollm2")  # doctest: +SKIP
    """
    require("transformer_lens", "transformer-lens", "loading a bridge")
    from sa_plugin.host.folders import load_folder

    loaded = load_folder(folder, dtype=dtype, tower=tower, fold=True)
    model, tokenizer, processor, name = loaded.model, loaded.tokenizer, loaded.processor, loaded.name
    if loaded.tower is not None:
        from sa_transformer_lens.towers import tower_bridge

        return tower_bridge(model, loaded.tower, tokenizer=tokenizer, processor=processor, name=name)
    if tokenizer is None or type(model).__name__.startswith("CLIP"):
        require_version("transformer-lens", "3.8", "its bridges of vision models are wrong or missing")
        from sa_transformer_lens.towers import module_bridge, register

        register()
        return module_bridge(model, tokenizer, processor, name)
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        name, hf_model=model, tokenizer=tokenizer, device="cpu", dtype=dtype
    )


@face
def load_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """What `sa_plugin.host.folders` calls: `load_bridge`, and no options for `attach`."""
    return load_bridge(folder, dtype=dtype, tower=tower), {}
