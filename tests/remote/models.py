"""Checkpoints the remote tests deploy: two tiny random ones, and SmolLM2."""

from __future__ import annotations

from pathlib import Path

import environment

TINY = ("gpt2", "llama")


def tiny(architecture: str) -> Path:
    """The folder of a tiny random model, written when missing; the weights are those of `tiny`."""
    folder = environment.cache() / "models" / f"tiny-{architecture}"
    if not (folder / "tokenizer.json").is_file():
        import tiny as random_models

        random_models.hf_model(architecture).save_pretrained(folder)
        random_models.tokenizer(architecture).save_pretrained(folder)
    return folder


def smollm2() -> Path:
    """The folder of SmolLM2; the error of a missing one names the command."""
    from sa_plugin.host import find_folder

    return find_folder("smollm2")
