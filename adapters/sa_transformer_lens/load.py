"""Load a Hugging Face model folder into a TransformerBridge, without network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sa_plugin._optional import require


def load_bridge(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """A decoder, or a BERT encoder, as a TransformerBridge in eval mode, attention unfused.

    A bare encoder is loaded as `BertForMaskedLM`, the class TransformerLens supports; its head is
    untrained (transformers says so), so read hidden states, never logits.

    Args:
        folder: What `save_pretrained` wrote, tokenizer included.
        dtype: Number format of the weights.

    Raises:
        FileNotFoundError: No `config.json` there.
        ImportError: TransformerLens is not installed.

    Example:
        >>> bridge = load_bridge("~/.cache/sa_plugin/smollm2")  # doctest: +SKIP
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} holds no config.json: give a folder that save_pretrained wrote."
        )
    transformer_lens = require("transformer_lens", "transformer-lens", "loading a bridge")
    transformers = require("transformers", "transformer-lens", "loading a model folder")
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    is_bert = config.model_type == "bert"
    kind = transformers.BertForMaskedLM if is_bert else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(
        path, dtype=dtype, attn_implementation="eager", local_files_only=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    return transformer_lens.TransformerBridge.boot_transformers(
        path.name, hf_model=model.eval(), tokenizer=tokenizer, device="cpu", dtype=dtype
    )
