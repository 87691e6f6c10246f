"""nnsight's models of the deployed checkpoints, with and without weights."""

from __future__ import annotations

from typing import Any

import models
import torch


def remote_model(name: str, *, load: bool = False) -> Any:
    """The model of a deployed checkpoint; its weights stay on the server, or are loaded here too.

    Args:
        name: "smollm2", "tiny-gpt2" or "tiny-llama".
        load: Load the weights, in the server's number format.
    """
    import nnsight
    import nnsight.modeling.huggingface as huggingface

    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    folder = models.smollm2() if name == "smollm2" else models.tiny(name.removeprefix("tiny-"))
    # The name is the folder, so that no hub is asked.
    huggingface._ID_CACHE[str(folder)] = str(folder)
    options = {"dtype": torch.float32, "dispatch": True} if load else {}
    return nnsight.TransformersModel(str(folder), task="text-generation", **options)
