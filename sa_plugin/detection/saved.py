"""A calibration as tensors and a record, for the two files of an artefact.

Thresholds and calibration tables are stored as float64, so a loaded detector decides to the bit as
the saved one did. The files themselves: `sa_plugin.concepts.artefact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from sa_plugin._files import DamagedFileError
from sa_plugin.concepts.artefact import PROMISE_FORMAT
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.canary import Canary
from sa_plugin.concepts.saved import bank_of, bank_parts
from sa_plugin.concepts.saved_schema import refuse, require_record, tensor_problems
from sa_plugin.detection.calibration import Calibration, TokenCuts
from sa_plugin.detection.guard import Seen
from sa_plugin.detection.methods import GRIDS, TAIL
from sa_plugin.detection.promised import Guard
from sa_plugin.detection.saved_schema import DetectorRecord
from sa_plugin.detection.search import Calibrated
from sa_plugin.passes.layout import if_any
from sa_plugin.statistics.conformal import Promise

ARRAYS = ("thresholds", "f1", "unit", "layer", "delta")
PARAMETERS = "parameters"
CUTS = tuple(field.name for field in fields(TokenCuts))
SEEN = tuple(field.name for field in fields(Seen))
GUARD = ("tokens", "score", "loss")
PROMISE = tuple(field.name for field in fields(Promise))


def calibration_parts(
    calibration: Calibration, canary: Canary | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Vectors, thresholds, choices, baselines and provenance, and the canaries' scores."""
    tensors, bank = bank_parts(calibration.bank, canary)
    tables: dict[str, Any] = {}
    for name, found in [("tail", (calibration.tail,)), *calibration.baselines.items()]:
        tables[name] = [_table(f"{name} {k}", one, tensors) for k, one in enumerate(found)]
    for name in CUTS:
        tensors[f"cuts.{name}"] = torch.from_numpy(getattr(calibration.cuts, name))
    seen = {name: getattr(calibration.seen, name) for name in SEEN}
    return tensors, {
        **_promise_parts(calibration, tensors),
        "bank": bank,
        "concepts": calibration.concepts,
        "tables": tables,
        "missing": dict(calibration.missing),
        "seen": {name: ids for name, ids in seen.items() if ids or name != "guard_texts"},
        "seed": calibration.seed,
        **if_any(unknown=dict(calibration.unknown)),
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
        DamagedFileError: A type, shape, range or name does not hold, a value is not finite.
        ValueError: The SAE is missing or another one.
    """
    require_record(
        {name: record[name] for name in DetectorRecord.__annotations__ if name in record},
        DetectorRecord,
        "detector",
    )
    bank = bank_of(tensors, record["bank"], sae)
    refuse(_problems(tensors, record, bank))
    tables = {
        name: tuple(_calibrated(f"{name} {k}", one, tensors) for k, one in enumerate(found))
        for name, found in record["tables"].items()
    }
    data_hash, *ids = (record["seen"].get(name, ()) for name in SEEN)
    tail, guard = tables.pop("tail")[0], None
    if "promise" in record:
        guard, thresholds = _guard_of(tensors, record["promise"], bank)
        tail = replace(tail, promised=thresholds)
    return Calibration(
        concepts=tuple(record["concepts"]),
        bank=bank,
        tail=tail,
        baselines=tables,
        missing=record["missing"],
        cuts=TokenCuts(*(tensors[f"cuts.{name}"].numpy() for name in CUTS)),
        seen=Seen(data_hash, *map(frozenset, ids)),
        seed=record["seed"],
        unknown=record.get("unknown", {}),
        guard=guard,
    )


def _promise_parts(calibration: Calibration, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Record of the promise; thresholds and what they were made from go into the tensors."""
    guard, thresholds = calibration.guard, calibration.tail.promised
    if guard is None or thresholds is None:
        return {}
    # No tensor of an artefact holds NaN: a mask tells what does not count, and the promise's concepts.
    counted = ~np.isnan(guard.maxima)
    tensors["guard.counted"] = torch.from_numpy(counted)
    tensors["guard.maxima"] = torch.from_numpy(np.where(counted, guard.maxima, 0.0))
    tensors["guard.threshold"] = torch.from_numpy(np.nan_to_num(thresholds))
    for name in GUARD:
        tensors[f"guard.{name}"] = torch.from_numpy(getattr(guard, name))
    said = {name: getattr(guard.promise, name) for name in PROMISE}
    stated = {name: value for name, value in said.items() if value is not None}
    return {"format": PROMISE_FORMAT, "promise": {**stated, "covers": guard.lengths}}


def _guard_of(
    tensors: Mapping[str, Tensor], record: Mapping[str, Any], bank: ConceptBank
) -> tuple[Guard, Float64[np.ndarray, " concept"]]:
    stated = {name: record[name] for name in PROMISE if name in record}
    try:
        promise = Promise(**stated)
    except (TypeError, ValueError) as error:
        raise DamagedFileError(f"detector.promise does not hold: {error}") from None
    refuse(_guard_problems(tensors, promise, record["covers"], bank))
    parts = {name: tensors[f"guard.{name}"].numpy() for name in GUARD}
    counted, maxima = tensors["guard.counted"].numpy(), tensors["guard.maxima"].numpy()
    made = [promise.concepts is None or concept in promise.concepts for concept in bank.concepts]
    low, high = record["covers"]
    guard = Guard(promise, (low, high), np.where(counted, maxima, np.nan), **parts)
    return guard, np.where(made, tensors["guard.threshold"].numpy(), np.nan)


def _guard_problems(
    tensors: Mapping[str, Tensor], promise: Promise, covers: list[int], bank: ConceptBank
) -> Iterator[str]:
    if len(covers) != 2 or not 1 <= covers[0] <= covers[1]:
        yield f"detector.promise.covers is {covers!r:.60}: expected the shortest and the longest length"
    unknown = [concept for concept in promise.concepts or () if concept not in bank.concepts]
    if unknown:
        yield f"detector.promise.concepts has {unknown[0]!r:.60}: expected concepts of the bank"
    concepts, bands = len(bank.concepts), len(promise.bands(covers[1]))
    yield from tensor_problems(tensors, "guard.maxima", (None, concepts), torch.float64)
    documents = len(tensors["guard.maxima"])
    yield from tensor_problems(tensors, "guard.counted", (documents, concepts), torch.bool)
    yield from tensor_problems(tensors, "guard.threshold", (concepts,), torch.float64)
    yield from _index_problems(tensors, "guard.tokens", (documents,), None)
    yield from tensor_problems(tensors, "guard.score", (bands, concepts, None), torch.float64)
    steps = tensors["guard.score"].shape[2]
    yield from tensor_problems(tensors, "guard.loss", (bands, concepts, steps), torch.float64)
    if (tensors["guard.loss"] < 0).any():
        yield "guard.loss holds a value below 0"


def _problems(tensors: Mapping[str, Tensor], record: Mapping[str, Any], bank: ConceptBank) -> Iterator[str]:
    """What does not fit together, one sentence each; the types have been checked before."""
    if tuple(record["concepts"]) != bank.concepts:
        yield f"detector.concepts is {record['concepts']!r:.60}: expected those of the bank"
    for concept, n in record.get("unknown", {}).items():
        if concept not in bank.concepts or n < 1:
            yield f"detector.unknown[{concept!r}] is {n}: expected a concept of the bank and 1 or more"
    if not 0 <= record["seed"] < 1 << 32:
        yield f"detector.seed is {record['seed']}: expected 0 to {(1 << 32) - 1}"
    if len(record["tables"].get("tail", ())) != 1:
        yield "detector.tables has no single table 'tail'"
    for name, found in record["tables"].items():
        for k, one in enumerate(found):
            if one["method"] != (TAIL if name == "tail" else name):
                yield f"detector.tables[{name!r}] is of the method {one['method']!r:.60}"
            yield from _table_problems(tensors, f"{name} {k}", one, bank)
    concepts, deltas = len(bank.concepts), len(record["tables"]["tail"][0]["deltas"])
    yield from tensor_problems(tensors, "cuts.midpoint", (concepts,), torch.float64, finite=False)
    for part, below in (("located", deltas), ("raw", deltas), ("n_tokens", None)):
        yield from _index_problems(tensors, f"cuts.{part}", (concepts,), below)


def _table_problems(
    tensors: Mapping[str, Tensor], name: str, one: Mapping[str, Any], bank: ConceptBank
) -> Iterator[str]:
    deltas, concepts = one["deltas"], len(bank.concepts)
    if not deltas or deltas != sorted(set(deltas)) or not 0 < deltas[0] <= deltas[-1] <= 1:
        yield f"the deltas of {name} are {deltas!r:.60}: expected shares in (0, 1], ascending"
    if one["candidates"] < 1:
        yield f"the candidates of {name} are {one['candidates']}: expected 1 or more"
    # Of what has no layers, such as the length of a text, there is one.
    thresholds = tensors.get(f"{name}.thresholds")
    layers = 1 if thresholds is not None and len(thresholds) == 1 else len(bank.layers)
    shape = (layers, len(deltas), concepts)
    yield from tensor_problems(tensors, f"{name}.thresholds", shape, torch.float64, finite=False)
    yield from tensor_problems(tensors, f"{name}.f1", shape, torch.float64)
    if not ((tensors[f"{name}.f1"] >= 0) & (tensors[f"{name}.f1"] <= 1)).all():
        yield f"{name}.f1 holds a value outside 0 to 1"
    sets = (bank.token, bank.permuted, bank.pooled, bank.cls)
    units = max(concepts, *(one.shape[1] for one in sets if one is not None), 1)
    yield from _index_problems(tensors, f"{name}.unit", (layers, concepts), units)
    yield from _index_problems(tensors, f"{name}.layer", (concepts,), layers)
    yield from _index_problems(tensors, f"{name}.delta", (concepts,), len(deltas))
    if one["method"] in GRIDS:
        numbers = (layers, concepts, len(GRIDS[one["method"]].names))
        yield from tensor_problems(tensors, f"{name}.{PARAMETERS}", numbers, torch.float64)


def _index_problems(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], below: int | None
) -> Iterator[str]:
    yield from tensor_problems(tensors, name, shape, torch.int64)
    found = tensors[name]
    if (found < 0).any() or (below is not None and (found >= below).any()):
        yield f"{name} holds a place outside 0 to {'any' if below is None else below - 1}"


def _table(name: str, one: Calibrated, tensors: dict[str, Tensor]) -> dict[str, Any]:
    for part in ARRAYS:
        # A copy: choices of supervised banks are broadcast views, which have no tensor form.
        tensors[f"{name}.{part}"] = torch.from_numpy(getattr(one, part).copy())
    if one.parameters is not None:
        tensors[f"{name}.{PARAMETERS}"] = torch.from_numpy(one.parameters.copy())
    return {"method": one.method, "deltas": one.deltas, "candidates": one.candidates}


def _calibrated(name: str, one: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibrated:
    arrays = {part: tensors[f"{name}.{part}"].numpy() for part in ARRAYS}
    if f"{name}.{PARAMETERS}" in tensors:
        arrays[PARAMETERS] = tensors[f"{name}.{PARAMETERS}"].numpy()
    return Calibrated(
        method=one["method"], deltas=tuple(map(float, one["deltas"])), candidates=one["candidates"], **arrays
    )
