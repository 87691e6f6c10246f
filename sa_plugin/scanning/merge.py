"""Blocks to one result: tables joined in the order of the blocks, counts added, tails merged.

What is added is a number of things, and blocks come in their own order, so that shards in any order and
a run that was cut off give the files of one pass, byte for byte.
"""

from __future__ import annotations

import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sa_plugin._check import require
from sa_plugin._face import face
from sa_plugin._files import (
    PARTIAL,
    digest_of,
    file_digest,
    laid_out,
    remove,
    sealed,
    write_bytes,
    write_text,
    written,
)
from sa_plugin.scanning.block import PARQUET, block_folder, near_threshold, read_block, tables_of
from sa_plugin.scanning.documents import DOCUMENTS, DocumentSums
from sa_plugin.scanning.folder import MANIFEST, n_documents, read_manifest
from sa_plugin.scanning.summary import Scan, summary
from sa_plugin.statistics.streaming import ExactTail

# Rows of a row group: small blocks share one.
_ROWS = 100_000
_NAMED = 1000


@face
def merge(folder: str | Path, *others: str | Path) -> Scan:
    """Join the blocks of a run that are all there, from one folder or several.

    Args:
        folder: Of the run; the files of the whole are written into it.
        others: Folders of other shards of the same run, whose blocks are copied.

    Raises:
        FileNotFoundError: A folder holds no run.
        ValueError: Blocks are missing, or a folder is of a run with other settings.
        DamagedFileError: A block is not as it was written; the text names the file.
        OSError: It cannot be written; the text names the file.
    """
    out = Path(folder)
    manifest = read_manifest(out)
    digest, size = manifest["settings_digest"], manifest["settings"]["corpus"]["block_size"]
    for other in map(Path, others):
        if read_manifest(other)["settings_digest"] != digest:
            raise ValueError(f"{other} is of a run with other settings than {out}: merge shards of one run.")
        _copy_blocks(other, out)
        if (other / "end.json").is_file() and not (out / "end.json").is_file():
            write_bytes(out / "end.json", (other / "end.json").read_bytes())
    documents = n_documents(out, manifest)
    blocks = range(-(-documents // size))
    missing = [block for block in blocks if not block_folder(out, block).exists()]
    if missing or not blocks:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise ValueError(
            f"{len(missing)} of {len(blocks)} blocks of {out} are not done ({shown}): scan their shards "
            "(block k is of shard k % n of n), then merge."
            if missing
            else f"the corpus of {out} has no documents: there is nothing to merge."
        )
    records, found = _joined(out, manifest, blocks)
    totals = {
        "documents": documents,
        "blocks": len(blocks),
        "scanned": sum(one["scanned"] for one in records),
        "cut_into_windows": sum(one["cut_into_windows"] for one in records),
        "bad_documents": sum(len(one["bad"]) for one in records),
        "bad": [bad for one in records for bad in one["bad"]][:_NAMED],
        "tokens": dict(sorted(sum((Counter(one["tokens"]) for one in records), Counter()).items())),
        "content": digest_of([one["content"] for one in records]),
        **found,
    }
    names = ("hits.parquet", "samples.parquet", DOCUMENTS, "tail.json", "tail.npz", "tail.keys")
    files = {name: file_digest(out / name) for name in names}
    kept = {key: value for key, value in manifest.items() if key not in ("digest", "totals", "files")}
    write_text(out / MANIFEST, laid_out(sealed({**kept, "totals": totals, "files": files})))
    return summary(out)


def _copy_blocks(source: Path, out: Path) -> None:
    for block in sorted(source.glob("blocks/[0-9]*")):
        target = out / "blocks" / block.name
        if not target.exists():
            partial = target.with_name(f"{PARTIAL}{secrets.token_hex(6)}")
            try:
                shutil.copytree(block, partial)
                partial.rename(target)
            finally:
                remove(partial)


def _joined(
    out: Path, manifest: dict[str, Any], blocks: Sequence[int]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Write the files of the whole; what each block says of itself, and counts of all of them."""
    digest, width = manifest["settings_digest"], len(manifest["settings"]["detector"]["concepts"])
    records, sums, near, tail = [], DocumentSums(width), 0, None
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_Table(out / f"{name}.parquet")) for name in ("hits", "samples")}
        for block in blocks:
            record = read_block(out, block, digest, thoroughly=True)
            assert record is not None
            records.append(record)
            tables = tables_of(block_folder(out, block))
            for name, table in tables.items():
                writers[name].add(table)
            sums.add(tables["samples"])
            near += near_threshold(tables["samples"], manifest["settings"])
            own = ExactTail.open(block_folder(out, block))
            if tail is None:
                tail = ExactTail(own.cuts)
            tail.merge(own)
    assert tail is not None
    tail.save(out)
    write_bytes(out / DOCUMENTS, sums.content())
    scores, kept = int(tail.totals.sum()), int(tail.kept.sum())
    return records, {"near_threshold": near, "scores": scores, "kept_scores": kept}


class _Table:
    """A Parquet file that grows by tables; whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()
        self._writer: Any = None
        self._waiting: list[Any] = []

    def __enter__(self) -> _Table:
        self._partial = self._stack.enter_context(written(self._path))
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                self._flush()
        finally:
            if self._writer is not None:
                self._writer.close()
            self._stack.__exit__(*error)

    def add(self, table: Any) -> None:
        """Join a table of the same columns."""
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= _ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        pa = require("pyarrow", "corpora", PARQUET)
        table = pa.concat_tables(self._waiting)
        if self._writer is None:
            parquet = require("pyarrow.parquet", "corpora", PARQUET)
            self._writer = parquet.ParquetWriter(self._partial, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._waiting = []
