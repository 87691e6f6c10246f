"""A score table on disk: arrays in one `.npz`, never a pickle; samples are found again by id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData
from sa_plugin.scores import ScoreTable
from sa_plugin.tokens import TokenTable

ROWS = ("sample_of", "position", "offsets", "labels")
BY_SAMPLE = ("permuted_max", "pooled", "cls")


def write_scores(table: ScoreTable, path: Path) -> None:
    """Write a table's arrays and the names of its samples.

    Args:
        table: Scores.
        path: Ends in `.npz`.
    """
    tokens = table.tokens
    names = {
        "ids": [sample.id for sample in tokens.samples],
        "split_of": list(tokens.split_of),
        "concepts": list(tokens.concepts),
        "dropped": dict(tokens.dropped),
    }
    arrays: dict[str, Any] = {name: np.asarray(getattr(tokens, name)) for name in ROWS}
    arrays |= {k: v for k in BY_SAMPLE if (v := getattr(table, k)) is not None}
    np.savez(path, scores=np.asarray(table.scores), names=np.array(json.dumps(names)), **arrays)


def read_scores(path: Path, bank: ConceptBank, data: ConceptData) -> ScoreTable:
    """The table that `write_scores` wrote.

    Args:
        path: The file.
        bank: The vectors it is of.
        data: Holds its samples.

    Raises:
        ValueError: A sample is not in the data, or the scores have another number of vectors.
    """
    with np.load(path, allow_pickle=False) as held:
        found = {name: held[name] for name in held.files}
    names = json.loads(str(found.pop("names")))
    by_id = {sample.id: sample for sample in data.samples}
    missing = [one for one in names["ids"] if one not in by_id]
    if missing:
        raise ValueError(f"{path.name} has scores of sample {missing[0]!r}, the data have none.")
    expected = bank.token.shape[:2]
    if found["scores"].shape[1:] != expected:
        raise ValueError(
            f"{path.name} has scores of {found['scores'].shape[1:]} layers and vectors, the bank "
            f"holds {expected}: delete the file."
        )
    tokens = TokenTable(
        samples=tuple(by_id[one] for one in names["ids"]),
        split_of=tuple(names["split_of"]),
        concepts=tuple(names["concepts"]),
        dropped=names["dropped"],
        **{name: found[name] for name in ROWS},
    )
    by_sample = {name: found.get(name) for name in BY_SAMPLE}
    return ScoreTable(
        tokens, bank, found["scores"], by_sample["permuted_max"], by_sample["pooled"],
        by_sample["cls"],
    )  # fmt: skip
