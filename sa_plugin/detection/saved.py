"""A calibration as tensors and a record, for the two files of an artefact.

Thresholds and calibration tables are stored as float64, so a loaded detector decides to the bit as
the saved one did. The files themselves: `sa_plugin.concepts.saved`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from sa_plugin.concepts.saved import bank_of, bank_parts
from sa_plugin.detection.calibration import Calibration, TokenCuts
from sa_plugin.detection.guard import Seen
from sa_plugin.detection.search import Calibrated

ARRAYS = ("thresholds", "f1", "unit", "layer", "delta")
CUTS = tuple(field.name for field in fields(TokenCuts))
SEEN = tuple(field.name for field in fields(Seen))


def calibration_parts(calibration: Calibration) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Vectors, thresholds, choices, baselines and provenance."""
    tensors, bank = bank_parts(calibration.bank)
    tables: dict[str, Any] = {}
    for name, found in [("tail", (calibration.tail,)), *calibration.baselines.items()]:
        tables[name] = [_table(f"{name} {k}", one, tensors) for k, one in enumerate(found)]
    for name in CUTS:
        tensors[f"cuts.{name}"] = torch.from_numpy(getattr(calibration.cuts, name))
    return tensors, {
        "bank": bank,
        "concepts": calibration.concepts,
        "tables": tables,
        "missing": dict(calibration.missing),
        "seen": {name: getattr(calibration.seen, name) for name in SEEN},
        "seed": calibration.seed,
    }


def calibration_of(
    tensors: Mapping[str, Tensor], record: Mapping[str, Any], sae: object = None
) -> Calibration:
    """The calibration of `calibration_parts`.

    Args:
        tensors: As saved.
        record: As saved.
        sae: The SAE, or one a layer, of a bank of latents.

    Raises:
        ValueError: A value is not finite, or the SAE is missing or another one.
    """
    tables = {
        name: tuple(_calibrated(f"{name} {k}", one, tensors) for k, one in enumerate(found))
        for name, found in record["tables"].items()
    }
    data_hash, *ids = (record["seen"][name] for name in SEEN)
    return Calibration(
        concepts=tuple(record["concepts"]),
        bank=bank_of(tensors, record["bank"], sae),
        tail=tables.pop("tail")[0],
        baselines=tables,
        missing=record["missing"],
        cuts=TokenCuts(*(tensors[f"cuts.{name}"].numpy() for name in CUTS)),
        seen=Seen(data_hash, *map(frozenset, ids)),
        seed=record["seed"],
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
