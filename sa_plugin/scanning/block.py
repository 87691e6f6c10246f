"""One block of a corpus, scanned: a pure function of model, detector, corpus, settings and the block.

Whoever shares the work calls `scan_block`: a loop in this process, a shard on another machine, an actor
of Ray. It reads the block, cuts long samples into windows, forms and pads batches inside the block alone,
runs every sample once, and writes a folder under a temporary name that is renamed when it is whole:

    blocks/0000012/hits.parquet      one row a SuperActivator
                   samples.parquet   one row a sample and concept
                   tail.*            counts of all scores and the highest of them (`ExactTail`)
                   block.json        what was read and left out, and digests of the other files

Written again it is the same, to the bit on the same hardware with the same number of threads; so a block
that two workers do is done once, and one that a kill cut off is done again.

A sample that cannot be read, tokenised or run is left out, counted and named. Which of several at once is
to blame, one pass each tells.
"""

from __future__ import annotations

import io
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sa_plugin._check import require
from sa_plugin._files import (
    PARTIAL,
    DamagedFileError,
    digest_of,
    file_digest,
    flush_folder,
    laid_out,
    read_object,
    remove,
    require_sealed,
    sealed,
    write_bytes,
    write_text,
)
from sa_plugin.host.images import processor_of
from sa_plugin.host.protocol import Host
from sa_plugin.host.tokens import naming_of
from sa_plugin.loaders.corpus import Corpus, Document
from sa_plugin.passes.layout import Layout
from sa_plugin.scanning.wanted import Wanted
from sa_plugin.scanning.windows import Piece, Windows, pieces_of
from sa_plugin.scores.pushdown import ScoresAbove, scores_above
from sa_plugin.statistics.confusion import reaches
from sa_plugin.statistics.streaming import ExactTail

FORMAT = 1
RECORD = "block.json"
FILES = ("hits.parquet", "samples.parquet", "tail.json", "tail.npz", "tail.keys")
PARQUET = "reading and writing Parquet"
AGAIN = "delete its folder, and scan again"
# Bytes of pixels, or 16 times characters, that are laid out at a time: what a block holds in memory.
_AT_ONCE = 64 << 20
AROUND = 60
"""Characters of the text on either side of a hit."""


@dataclass(frozen=True, eq=False)
class ScanJob:
    """All that decides what a block's files hold, but for the block.

    Attributes:
        host: An attached model.
        wanted: What is looked for.
        corpus: The documents.
        windows: How long samples are cut.
        texts: Whether words of the corpus are written.
    """

    host: Host
    wanted: Wanted
    corpus: Corpus
    windows: Windows = field(default_factory=Windows)
    texts: bool = True

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all blocks of a run have in common, JSON-ready."""
        info, on = self.host.info, self.windows.on(self.host)
        names = ("host", "model", "fingerprint", "tokenizer", "processing", "dtype")
        reader = getattr(self.host, "reader", None)
        model = {name: getattr(info, name) for name in names} | {
            "batch_tokens": self.host.batch_tokens,
            "padding_side": getattr(reader, "padding_side", None),
        }
        return {
            "model": model,
            "detector": self.wanted.record,
            "corpus": self.corpus.record,
            "windows": {"tokens": on.tokens, "overlap": on.overlap},
            "texts": self.texts,
        }

    @cached_property
    def digest(self) -> str:
        """Of the settings."""
        return digest_of(self.settings)

    @property
    def pictures(self) -> bool:
        """Whether the model reads pictures."""
        return processor_of(self.host) is not None


def block_folder(out: Path, block: int) -> Path:
    """Where a block lies."""
    return out / "blocks" / f"{block:07d}"


def scan_block(job: ScanJob, block: int, out: Path) -> dict[str, Any]:
    """Scan one block and write it, whole or not at all.

    Costs one forward pass for each sample of the block, or for each of its windows.

    Args:
        job: What is scanned, with what and how.
        block: Its number.
        out: Folder of the run.

    Returns:
        What its block.json holds; of a block behind the end of a stream, which has no documents and is not
        written, their number alone.

    Raises:
        ValueError: The detector is of another model, or every sample fails in the same way.
        OSError: It cannot be written; the text names the file.
    """
    read = _read(job, block)
    if not read.digests:
        return {"documents": 0, "bad": []}
    folder = out / "blocks"
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / f"{PARTIAL}{secrets.token_hex(6)}"
    try:
        built.mkdir()
        record = _write(job, block, read, built)
        _rename(built, block_folder(out, block))
    finally:
        with suppress(OSError):
            remove(built)
    return record


def _rename(built: Path, target: Path) -> None:
    """Rename a folder into its place, unless another worker was faster: what it wrote is the same."""
    try:
        os.replace(built, target)
    except OSError:
        if not (target / RECORD).is_file():
            raise
    flush_folder(target.parent)


def read_block(out: Path, block: int, digest: str, *, thoroughly: bool = False) -> dict[str, Any] | None:
    """What a block that was scanned says of itself; None where there is none.

    Args:
        out: Folder of the run.
        block: Its number.
        digest: Of the settings.
        thoroughly: Whether its files are held against their digests, not their sizes alone.

    Raises:
        DamagedFileError: It is not as it was written.
        ValueError: It was scanned with other settings.
    """
    folder = block_folder(out, block)
    path = folder / RECORD
    if not path.is_file():
        if folder.exists():
            raise DamagedFileError(f"{folder} is damaged (it has lost its {RECORD}): {AGAIN}.")
        return None
    record = read_object(path, AGAIN)
    require_sealed(record, path, AGAIN)
    if record["settings"] != digest:
        raise ValueError(
            f"{folder} was scanned with other settings than this run's: name another folder for it."
        )
    for name, (size, sha) in record["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size or (thoroughly and file_digest(file) != sha):
            raise DamagedFileError(f"{file} is damaged or missing (not as it was written): {AGAIN}.")
    return record


NEAR = {"float32": 1e-4, "float64": 1e-4}
"""Part of a threshold within which other hardware may decide otherwise; of 16-bit models a hundredth."""


def near_threshold(samples: Any, settings: Mapping[str, Any]) -> int:
    """How many decisions of a table of samples lie so near to their threshold that rounding may turn them."""
    bars = [one["threshold"] for one in settings["detector"]["concepts"]]
    bar = np.array([np.inf if one is None else abs(one) for one in bars])
    margin = np.abs(samples["margin"].to_numpy()).reshape(-1, len(bar))
    part = NEAR.get(str(settings["model"]["dtype"]).removeprefix("torch."), 1e-2)
    # A threshold that never fires has no near side.
    return int((margin <= np.where(np.isinf(bar), 0.0, part * bar)).sum())


def tables_of(folder: Path) -> dict[str, Any]:
    """The two tables of a block."""
    parquet = require("pyarrow.parquet", "corpora", PARQUET)
    return {name: parquet.read_table(folder / f"{name}.parquet") for name in ("hits", "samples")}


# Reading and running ------------------------------------------------------------------------------


@dataclass(eq=False)
class _Found:
    """What one block holds, column by column of its tables."""

    hits: dict[str, list[Any]] = field(default_factory=dict)
    samples: dict[str, list[Any]] = field(default_factory=dict)
    bad: list[dict[str, Any]] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)
    scanned: int = 0
    cut: int = 0
    tail: Any = None


def _read(job: ScanJob, block: int) -> _Found:
    found = _Found(tail=ExactTail(job.wanted.cuts))
    for documents in _at_once(job.corpus.read(block, naming_of(job.host))):
        found.digests += [one.digest for one in documents]
        good = [one for one in documents if one.sample is not None]
        found.bad += [_bad(job, one, one.fault) for one in documents if one.fault is not None]
        if good:
            _scan(job, good, found)
    found.bad.sort(key=lambda one: one["number"])
    return found


def _at_once(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents of a block, as many at a time as memory should hold; the same whoever reads them."""
    held: list[Document] = []
    size = 0
    for one in documents:
        image = None if one.sample is None else one.sample.image
        size += (
            16 * len(one.sample.text)
            if image is None and one.sample
            else 0
            if image is None
            else image.pixels.nbytes
        )
        held.append(one)
        if size >= _AT_ONCE:
            yield held
            held, size = [], 0
    if held:
        yield held


def _bad(job: ScanJob, document: Document, fault: Exception | None) -> dict[str, Any]:
    # A fault may quote the text.
    said = type(fault).__name__ + (f": {fault}" if job.texts else "")
    return {"number": document.number, "document": document.key, "fault": said}


def _scan(job: ScanJob, documents: Sequence[Document], found: _Found) -> None:
    """Run some documents of a block; those that fail are found one by one, and left out."""
    try:
        pieces, above = _run(job, documents)
    except (ValueError, ArithmeticError) as error:
        faults = {one.number: fault for one in documents if (fault := _fault(job, one)) is not None}
        if not faults or (len(faults) == len(documents) and len(documents) > 1 and _alike(faults)):
            raise error
        found.bad += [_bad(job, one, faults[one.number]) for one in documents if one.number in faults]
        rest = [one for one in documents if one.number not in faults]
        if rest:
            _scan(job, rest, found)
        return
    _collect(job, documents, pieces, above, found)


def _alike(faults: Mapping[int, Exception]) -> bool:
    """Whether all fail for one reason, which is then the model's or the detector's, not theirs."""
    return len({type(one).__name__ + str(one)[:24] for one in faults.values()}) == 1


def _fault(job: ScanJob, document: Document) -> Exception | None:
    try:
        _run(job, [document])
    except (ValueError, ArithmeticError) as error:
        return error
    return None


def _run(job: ScanJob, documents: Sequence[Document]) -> tuple[list[list[Piece]], ScoresAbove]:
    samples = [one.sample for one in documents if one.sample is not None]
    pieces = pieces_of(job.host, samples, job.windows.on(job.host))
    flat = [piece for own in pieces for piece in own]

    def own(layout: Layout) -> Bool[np.ndarray, " row"]:
        rows = np.zeros(layout.n_rows, dtype=bool)
        for k, piece in enumerate(flat):
            at = slice(int(layout.bounds[k]), int(layout.bounds[k + 1]))
            rows[at] = piece.owns(layout.position[at])
        return rows

    wanted = job.wanted
    above = scores_above(
        job.host, [piece.sample for piece in flat], wanted.bank, wanted.columns, wanted.rounded_cuts, own
    )
    return pieces, above


# Tables -------------------------------------------------------------------------------------------


def _collect(
    job: ScanJob,
    documents: Sequence[Document],
    pieces: Sequence[Sequence[Piece]],
    above: ScoresAbove,
    found: _Found,
) -> None:
    """Rows of both tables, the tail, and counts, of documents that were run together."""
    wanted, layout = job.wanted, above.layout
    first = np.concatenate([[0], np.cumsum([len(own) for own in pieces])]).astype(np.int64)
    n_counted = np.add.reduceat(above.n_counted, first[:-1])
    gone = [k for k, n in enumerate(n_counted.tolist()) if n == 0]
    told = ValueError(
        "no token is left once special tokens and attention sinks are dropped: give a longer text, or put "
        "a BOS first, attach(model, bos=True)"
    )
    found.bad += [_bad(job, documents[k], told) for k in gone]
    found.tail.add(above.bins, above.n_in_bins, above.column, above.score)
    mine = (
        np.concatenate(
            [
                piece.owns(layout.position[slice(*layout.bounds[k : k + 2])])
                for k, piece in enumerate(piece for own in pieces for piece in own)
            ]
        )
        if layout.n_rows
        else np.zeros(0, dtype=bool)
    )
    found.tokens.update(
        counted=int(above.counted.sum()),
        sink=int((mine & ~above.counted).sum()),
        special=layout.special,
        **{"in two windows": int((~mine).sum())},
    )
    found.scanned += len(documents) - len(gone)
    found.cut += sum(len(own) > 1 for own in pieces)
    piece_of = np.searchsorted(layout.bounds, np.arange(layout.n_rows), side="right") - 1
    document_of = np.searchsorted(first, piece_of, side="right") - 1
    shift = np.array([piece.shift for own in pieces for piece in own], dtype=np.int64)
    position = layout.position + shift[piece_of]
    hit = reaches(above.score, wanted.thresholds[above.column])
    row, column, score = above.row[hit], above.column[hit], above.score[hit]
    # By document, then concept, then token: whatever order windows and batches came in.
    order = np.lexsort((position[row], column, document_of[row]))
    row, column, score = row[order], column[order], score[order]
    home = document_of[row]
    _add(found.hits, _names(documents, home), _concept_columns(wanted, column), _edges(job, layout, row))
    _add(
        found.hits,
        {
            "token": position[row].astype(np.int32),
            "score": score,
            "margin": score.astype(np.float64) - wanted.thresholds[column],
            **wanted.p_values(column, score, n_counted[home]),
            **_words(job, documents, layout, row, home),
        },
    )
    n_hits = np.zeros((len(documents), len(wanted.concepts)), dtype=np.int32)
    np.add.at(n_hits, (home, column), 1)
    n_strict = np.zeros_like(n_hits)
    strict = reaches(score, np.where(np.isnan(wanted.stricter), np.inf, wanted.stricter)[column])
    np.add.at(n_strict, (home[strict], column[strict]), 1)
    # The first of a document's windows that has its maximum: argmax takes the first of equals.
    best = np.full((len(documents), len(wanted.concepts)), -np.inf, dtype=np.float32)
    best_row = np.zeros(best.shape, dtype=np.int64)
    for k in range(len(documents)):
        part = slice(first[k], first[k + 1])
        at = above.best[part].argmax(0)
        best[k] = np.take_along_axis(above.best[part], at[None], 0)[0]
        best_row[k] = np.take_along_axis(above.best_row[part], at[None], 0)[0]
    kept = np.setdiff1d(np.arange(len(documents)), gone)
    width = len(wanted.concepts)
    home, column = np.repeat(kept, width), np.tile(np.arange(width), len(kept))
    row, top = best_row[kept].ravel(), best[kept].ravel()
    _add(
        found.samples,
        _names(documents, home),
        _concept_columns(wanted, column),
        {
            "present": reaches(top, wanted.thresholds[column]),
            "max": top,
            "margin": top.astype(np.float64) - wanted.thresholds[column],
            "token": position[row].astype(np.int32),
            **wanted.p_values(column, top, n_counted[home]),
        },
        _edges(job, layout, row),
        {
            "hits": n_hits[kept].ravel(),
            "strict_hits": n_strict[kept].ravel(),
            "tokens": np.repeat(n_counted[kept], width).astype(np.int32),
            "windows": np.repeat(np.diff(first)[kept], width).astype(np.int32),
        },
    )


def _add(table: dict[str, list[Any]], *columns: Mapping[str, Any]) -> None:
    for part in columns:
        for name, values in part.items():
            table.setdefault(name, []).append(values)


def _names(documents: Sequence[Document], home: Int[np.ndarray, " entry"]) -> dict[str, Any]:
    numbers = np.array([one.number for one in documents], dtype=np.int64)
    samples = np.array([one.key for one in documents], dtype=object)
    sources = np.array([one.sample.document if one.sample else "" for one in documents], dtype=object)
    return {"number": numbers[home], "sample": samples[home], "document": sources[home]}


def _concept_columns(wanted: Wanted, column: Int[np.ndarray, " entry"]) -> dict[str, Any]:
    layers = np.array([wanted.bank.layers[layer] for layer, _ in wanted.columns], dtype=np.int32)
    return {"concept": np.array(wanted.concepts, dtype=object)[column], "layer": layers[column]}


def _edges(job: ScanJob, layout: Layout, row: Int[np.ndarray, " entry"]) -> dict[str, Any]:
    """Where tokens lie: characters of the text, or pixels of the picture."""
    edges = layout.offsets[row]
    if job.pictures:
        return {name: edges[:, k] for k, name in enumerate(("top", "left", "bottom", "right"))}
    return {name: edges[:, k].astype(np.int64) for k, name in enumerate(("start", "end"))}


def _words(
    job: ScanJob, documents: Sequence[Document], layout: Layout, row: Int[np.ndarray, " entry"], home: Any
) -> dict[str, Any]:
    """Characters of each hit and those around it."""
    if job.pictures or not job.texts:
        return {}
    texts = [one.sample.text if one.sample else "" for one in documents]
    spans = layout.offsets[row].tolist()
    pairs = list(zip(home.tolist(), spans, strict=True))
    return {
        "text": np.array([texts[k][a:b] for k, (a, b) in pairs], dtype=object),
        "before": np.array([texts[k][max(0, a - AROUND) : a] for k, (a, b) in pairs], dtype=object),
        "after": np.array([texts[k][b : b + AROUND] for k, (a, b) in pairs], dtype=object),
    }


def schemas(pictures: bool, texts: bool, promised: bool) -> tuple[Any, Any]:
    """Columns of hits and of samples, with their types; docs/scan.md says what each is."""
    pa = require("pyarrow", "corpora", PARQUET)
    name = [("number", pa.int64()), ("sample", pa.string()), ("document", pa.string())]
    name += [("concept", pa.string()), ("layer", pa.int32())]
    box = [(one, pa.float64()) for one in ("top", "left", "bottom", "right")]
    edges = box if pictures else [("start", pa.int64()), ("end", pa.int64())]
    words = [(one, pa.string()) for one in ("text", "before", "after")] if texts and not pictures else []
    score = [("score", pa.float32()), ("margin", pa.float64())]
    p = [("p", pa.float64())] if promised else []
    hits = [*name, *edges, ("token", pa.int32()), *score, *p, *words]
    best = [("present", pa.bool_()), ("max", pa.float32()), ("margin", pa.float64()), ("token", pa.int32())]
    counts = [(one, pa.int32()) for one in ("hits", "strict_hits", "tokens", "windows")]
    return pa.schema(hits), pa.schema([*name, *best, *p, *edges, *counts])


def _write(job: ScanJob, block: int, found: _Found, folder: Path) -> dict[str, Any]:
    pa = require("pyarrow", "corpora", PARQUET)
    parquet = require("pyarrow.parquet", "corpora", PARQUET)
    both = schemas(job.pictures, job.texts, job.wanted.guard is not None)
    tables = zip(("hits", "samples"), (found.hits, found.samples), both, strict=True)
    for name, columns, schema in tables:
        arrays = [
            pa.array(np.concatenate(columns[one.name]) if columns else [], type=one.type) for one in schema
        ]
        sink = io.BytesIO()
        parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
        write_bytes(folder / f"{name}.parquet", sink.getvalue())
    found.tail.save(folder)
    files = {name: [(folder / name).stat().st_size, file_digest(folder / name)] for name in FILES}
    record = sealed(
        {
            "format": FORMAT,
            "what": "ScannedBlock",
            "block": block,
            "settings": job.digest,
            "documents": len(found.digests),
            "scanned": found.scanned,
            "cut_into_windows": found.cut,
            "bad": found.bad,
            "tokens": dict(sorted(found.tokens.items())),
            "content": digest_of(found.digests),
            "files": files,
        }
    )
    write_text(folder / RECORD, laid_out(record))
    return record
