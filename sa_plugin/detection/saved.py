"""A detector on disk and back: `artefact.py`'s two files, checked against the host that loads it.

Thresholds and calibration tables are stored as float64, so a loaded detector decides to the bit as
the saved one did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sa_plugin.artefact import bank_of, bank_parts, read, require_hook_point, write
from sa_plugin.detection.guard import Seen
from sa_plugin.detection.localise import TokenCuts
from sa_plugin.detection.search import Calibrated
from sa_plugin.host import Host
from sa_plugin.scoring import check_origin

if TYPE_CHECKING:
    from sa_plugin.detection.detector import Detector

ARRAYS = ("thresholds", "f1", "unit", "layer", "delta")
CUTS = tuple(field.name for field in fields(TokenCuts))


def save_detector(detector: Detector, folder: str | Path) -> Path:
    """Write a detector: vectors, thresholds, choices, baselines and provenance.

    Args:
        detector: What to save; its host is not saved.
        folder: A new folder, or one that holds an artefact to replace.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder holds something else.
    """
    tensors, bank = bank_parts(detector.bank)
    tables: dict[str, Any] = {}
    for name, found in [("tail", (detector.tail,)), *detector.baselines.items()]:
        tables[name] = [_table(f"{name} {k}", one, tensors) for k, one in enumerate(found)]
    for name in CUTS:
        tensors[f"cuts.{name}"] = torch.from_numpy(getattr(detector.cuts, name))
    record = {
        "what": "Detector",
        "bank": bank,
        "concepts": detector.concepts,
        "tables": tables,
        "missing": dict(detector.missing),
        "seen": {field.name: getattr(detector.seen, field.name) for field in fields(Seen)},
        "seed": detector.seed,
    }
    return write(Path(folder), tensors, record)


def load_detector(
    kind: type[Detector],
    folder: str | Path,
    host: Host | None = None,
    hook_point: str | None = None,
    sae: object = None,
) -> Detector:
    """Read a detector and check that it belongs to the host.

    Args:
        kind: The class.
        folder: Written by `save_detector`.
        host: The model it will score with; None to use stored scores only.
        hook_point: Where the caller expects the vectors to live, if it matters to them.
        sae: The SAE, or one a layer, of a bank of latents.

    Raises:
        FileNotFoundError: No artefact there.
        ValueError: Another model, processing mode or hook point; a damaged or foreign artefact.
    """
    tensors, record = read(Path(folder), "Detector")
    bank = bank_of(tensors, record["bank"], sae)
    require_hook_point(bank, hook_point)
    if host is not None:
        check_origin(bank, host)
    tables = {
        name: tuple(_calibrated(f"{name} {k}", one, tensors) for k, one in enumerate(found))
        for name, found in record["tables"].items()
    }
    seen = record["seen"]
    return kind(
        concepts=tuple(record["concepts"]),
        bank=bank,
        tail=tables.pop("tail")[0],
        baselines=tables,
        missing=record["missing"],
        cuts=TokenCuts(*(tensors[f"cuts.{name}"].numpy() for name in CUTS)),
        seen=Seen(
            seen["data_hash"],
            *(frozenset(seen[k]) for k in ("train", "cal", "train_texts", "cal_texts")),
        ),
        seed=record["seed"],
        host=host,
    )


def _table(name: str, one: Calibrated, tensors: dict[str, Tensor]) -> dict[str, Any]:
    for part in ARRAYS:
        # A copy: choices of supervised banks are broadcast views, which have no tensor form.
        tensors[f"{name}.{part}"] = torch.from_numpy(getattr(one, part).copy())
    return {"method": one.method, "deltas": one.deltas, "candidates": one.candidates}


def _calibrated(name: str, one: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibrated:
    arrays = {part: tensors[f"{name}.{part}"].numpy() for part in ARRAYS}
    return Calibrated(
        method=one["method"], deltas=tuple(one["deltas"]), candidates=one["candidates"], **arrays
    )
