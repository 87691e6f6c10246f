"""Banks and detectors on disk: safetensors and JSON, never a pickle.

`tensors.safetensors` holds the arrays, `artefact.json` everything else: concepts, layers, hook
point, kind, deltas, thresholds, the model's fingerprint, weight processing, sink rule, data hash.
Loading onto another model, hook point or processing mode is refused with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sa_plugin.concepts.bank import ComponentMeans, ConceptBank, Origin, VectorSet
from sa_plugin.show.result import clean

ARTEFACT_FORMAT = 1
SETS = ("token", "permuted", "pooled", "cls")


def write(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Path:
    """Write an artefact's two files.

    Raises:
        FileExistsError: The folder is a file, or holds something else than an artefact.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, an artefact is a folder: name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / "artefact.json").exists():
        raise FileExistsError(f"{folder} is not empty and holds no artefact: name a new folder.")
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / "tensors.safetensors")
    text = json.dumps(clean({"format": ARTEFACT_FORMAT, **record}), indent=1)
    (folder / "artefact.json").write_text(text + "\n")
    return folder


def read(folder: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an artefact's two files.

    Raises:
        FileNotFoundError: There is no artefact.
        ValueError: It is of another kind or a newer format, a file, or damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, a saved {what} is a folder: give that folder.")
    path = folder / "artefact.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no artefact.json: it is no saved {what}.")
    record = _record(folder)
    if record.get("format") != ARTEFACT_FORMAT:
        raise ValueError(
            f"{folder} has artefact format {record.get('format')}, this version reads {ARTEFACT_FORMAT}: "
            "update sa_plugin or save it again."
        )
    if record.get("what") != what:
        raise ValueError(f"{folder} holds a {record.get('what')}, not a {what}.")
    return _tensors(folder), record


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "artefact.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{folder}: artefact.json is damaged ({error}): save or copy the artefact again."
        ) from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{folder}: artefact.json holds a {type(record).__name__}, not an object: save or copy "
            "the artefact again."
        )
    return record


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / "tensors.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no tensors.safetensors: save or copy the artefact again.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{folder}: tensors.safetensors is damaged ({error}): save or copy the artefact again."
        ) from error


def bank_parts(bank: ConceptBank) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A bank as tensors and a record."""
    from sa_plugin.concepts.sae import LatentSet, saved_parts

    tensors: dict[str, Tensor] = {}
    for name in SETS:
        vectors: VectorSet | None = getattr(bank, name)
        if vectors is not None and not isinstance(vectors, LatentSet):
            for part in ("vectors", "mean", "scale"):
                tensors[f"{name}.{part}"] = getattr(vectors, part)
    if bank.component_means is not None:
        for field in fields(ComponentMeans):
            tensors[f"component_means.{field.name}"] = getattr(bank.component_means, field.name)
    record: dict[str, Any] = {
        "concepts": bank.concepts,
        "units": bank.units,
        "layers": bank.layers,
        "hook_point": bank.hook_point,
        "kind": bank.kind,
        "scoring": bank.token.scoring,
        "origin": asdict(bank.origin),
    }
    if isinstance(bank.token, LatentSet):
        found, record["saes"] = saved_parts(bank.token)
        tensors |= {f"sae.{name}": tensor for name, tensor in found.items()}
    return tensors, record


def bank_of(tensors: Mapping[str, Tensor], record: Mapping[str, Any], sae: object = None) -> ConceptBank:
    """The bank of `bank_parts`.

    Args:
        tensors: As saved.
        record: As saved.
        sae: The SAE, or one a layer, of a bank of latents; its weights are not saved.

    Raises:
        ValueError: A value is not finite, or the SAE is missing or another one.
    """
    from sa_plugin.concepts.sae import load_parts

    for name, value in tensors.items():
        if value.is_floating_point() and name.endswith("vectors") and not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or Inf: the artefact is damaged.")

    def vectors(name: str) -> VectorSet | None:
        if f"{name}.vectors" not in tensors:
            return None
        stacked, mean, scale = (tensors[f"{name}.{part}"] for part in ("vectors", "mean", "scale"))
        return VectorSet(stacked, mean, scale, record["scoring"])

    token = vectors("token")
    if "saes" in record:
        found = {k.removeprefix("sae."): v for k, v in tensors.items() if k.startswith("sae.")}
        token = load_parts(found, record["saes"], sae, record["layers"])
    if token is None:
        raise ValueError("the artefact holds no token vectors, it is damaged: save it again.")
    means = None
    if "component_means.z" in tensors:
        names = [field.name for field in fields(ComponentMeans)]
        means = ComponentMeans(*(tensors[f"component_means.{name}"] for name in names))
    origin = dict(record["origin"])
    origin["sink_layers"] = tuple(origin["sink_layers"])
    return ConceptBank(
        tuple(record["concepts"]),
        tuple(record["units"]),
        tuple(record["layers"]),
        record["hook_point"],
        record["kind"],
        token,
        vectors("permuted"),
        vectors("pooled"),
        means,
        Origin(**origin),
        vectors("cls"),
    )


def save_bank(bank: ConceptBank, folder: str | Path) -> Path:
    """Save a bank.

    Raises:
        FileExistsError: The folder holds something else.
    """
    tensors, record = bank_parts(bank)
    return write(Path(folder), tensors, {"what": "ConceptBank", "bank": record})


def load_bank(folder: str | Path, *, sae: object = None) -> ConceptBank:
    """Load a bank; `score` and `calibrate` refuse it on another model.

    Args:
        folder: Where it lies.
        sae: The SAE, or one a layer, of a bank of latents; its weights are not saved.

    Raises:
        FileNotFoundError: No artefact there.
        ValueError: Another kind of artefact, a damaged one, or the SAE is missing or another one.
    """
    tensors, record = read(Path(folder), "ConceptBank")
    return bank_of(tensors, record["bank"], sae)


def require_hook_point(bank: ConceptBank, hook_point: str | None) -> None:
    """Refuse a bank read at another hook point than the caller expects.

    Raises:
        ValueError: They differ.
    """
    if hook_point is not None and bank.hook_point != hook_point:
        raise ValueError(
            f"the artefact's vectors live at {bank.hook_point!r}, not {hook_point!r}: a vector of "
            "one hook point means nothing at another. Load it with its own hook point."
        )
