"""Writes the shipped file: a header line, then one passage a line, gzip without a time stamp."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sa_plugin._files import write_bytes
from supersense.choose import Labelled
from supersense.sources import DEBIAN_PACKAGES, DEBIAN_VERSION, NPM_PACKAGES, TAGGER_PACKAGES

LIMIT = 2_000_000


def write(
    path: Path,
    pool: Sequence[Labelled],
    concepts: Sequence[str],
    plain: frozenset[str],
    splits: Mapping[str, str],
    seed: int,
) -> int:
    """Write the passages that are in either set, in the pool's order, and return the file size.

    Raises:
        ValueError: The file is over 2 MB.
    """
    header = {
        "format": 1,
        "name": "supersense",
        "labels": "silver",
        "concepts": list(concepts),
        "texts": list(NPM_PACKAGES),
        "dictionary": [f"{package} {DEBIAN_VERSION}" for package in DEBIAN_PACKAGES],
        "tagger": list(TAGGER_PACKAGES),
        "seed": seed,
    }
    records = [
        {
            "id": item.passage.id,
            "document": item.passage.document,
            "text": item.passage.text,
            "labels": [[x.start, x.end, x.concept, x.lemma] for x in item.labels],
            "plain": item.passage.id in plain,
            "held_out_lemma": splits.get(item.passage.id),
        }
        for item in pool
        if item.passage.id in plain or item.passage.id in splits
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in (header, *records))
    packed = gzip.compress(lines.encode("utf-8"), compresslevel=9, mtime=0)
    if len(packed) > LIMIT:
        raise ValueError(f"{path.name} would have {len(packed)} bytes, at most {LIMIT} are shipped")
    write_bytes(path, packed)
    return len(packed)
