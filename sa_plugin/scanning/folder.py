"""The folder of a run: what all who share it agree on, and where it lies.

    manifest.json   settings that all blocks share, what is looked for, versions; when merged also totals
    corpus.json     where blocks begin in files of lines, so that the next worker need not read them
    end.json        how many documents a stream turned out to have
    blocks/         one folder a block, written whole or not at all
    hits.parquet, samples.parquet, documents.npz, tail.*    all blocks as one (`merge`)

A folder of a run with other settings is refused: what a block holds is decided by them alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sa_plugin._files import (
    DamagedFileError,
    digest_of,
    laid_out,
    read_object,
    require_sealed,
    sealed,
    write_text,
)
from sa_plugin.loaders.corpus import Corpus, open_corpus
from sa_plugin.scanning.block import FORMAT, ScanJob

MANIFEST, INDEX, END = "manifest.json", "corpus.json", "end.json"
_VERSIONS = ("sa_plugin", "torch", "numpy", "pyarrow", "transformers", "tokenizers")
_FRESH = "name another folder, or delete this one"


def opened_for(corpus: Any, folder: Path, **options: Any) -> Corpus:
    """A corpus, with the index that an earlier worker left in the folder.

    Args:
        corpus: What `open_corpus` takes.
        folder: Of the run.
        **options: Of `open_corpus`.

    Raises:
        FileNotFoundError, TypeError, ValueError: As `open_corpus`.
    """
    index = None
    with suppress(DamagedFileError, FileNotFoundError):
        index = read_object(folder / INDEX, "it is written anew")
    return open_corpus(corpus, index=index, **options)


def begin(job: ScanJob, folder: Path) -> None:
    """Write what all blocks of a run share, or refuse a folder of another run.

    Raises:
        ValueError: The settings differ from those of the run that the folder holds; the text says in what.
        OSError: It cannot be written.
    """
    path = folder / MANIFEST
    if path.exists():
        require_same(folder, job.settings)
        return
    if any(folder.glob("blocks/*/")) or (folder / "hits.parquet").exists():
        raise ValueError(f"{folder} has lost its {MANIFEST}, which says what its blocks are of: {_FRESH}.")
    found = {
        "format": FORMAT,
        "what": "Scan",
        "settings": job.settings,
        "settings_digest": job.digest,
        "left_out_files": dict(job.corpus.left_out),
        "versions": {name: _version(name) for name in _VERSIONS},
    }
    write_text(folder / INDEX, json.dumps(job.corpus.index))
    write_text(path, laid_out(sealed(found)))


def require_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse the folder of a run with other settings; some of them are known before a model is attached.

    Raises:
        ValueError: They differ from those of the run that the folder holds; the text says in what.
    """
    held = read_manifest(folder)["settings"]
    there = {name: held.get(name) for name in settings}
    if digest_of(there) != digest_of(dict(settings)):
        raise ValueError(
            f"{folder} holds a run with other settings ({_difference(there, settings)}): {_FRESH}, or scan "
            "with the same."
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder says of its run.

    Raises:
        FileNotFoundError: It holds no run.
        DamagedFileError: It is not as it was written.
        ValueError: It is of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that `scan` wrote.")
    found = read_object(path, _FRESH)
    require_sealed(found, path, _FRESH)
    if (found.get("what"), found.get("format")) != ("Scan", FORMAT):
        raise ValueError(
            f"{path} is {found.get('what')!r} of format {found.get('format')!r}, this version reads 'Scan' "
            f"of format {FORMAT}: scan again with this version."
        )
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _difference(one: Any, other: Any, where: str = "") -> str:
    """The first place where two settings differ, in words."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in [*one, *(name for name in other if name not in one)]:
            if name not in one or name not in other or digest_of(one[name]) != digest_of(other[name]):
                return _difference(one.get(name), other.get(name), f"{where}.{name}".lstrip("."))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        for k, (left, right) in enumerate(zip(one, other, strict=False)):
            if digest_of(left) != digest_of(right):
                return _difference(left, right, f"{where}[{k}]")
        if len(one) != len(other):
            return f"{where}: {len(one)} there, {len(other)} here"
    return f"{where}: {one!r:.40} there, {other!r:.40} here"


def n_documents(folder: Path, manifest: Mapping[str, Any]) -> int:
    """How many documents the corpus of a run has.

    Raises:
        ValueError: It is a stream whose end nobody has met.
    """
    counts = [part["rows"] for part in manifest["settings"]["corpus"]["parts"]]
    if None not in counts:
        return int(sum(counts))
    if not (folder / END).is_file():
        raise ValueError(
            f"the corpus of {folder} is a stream, and no shard has come to its end: scan until it ends."
        )
    return int(read_object(folder / END, "scan again")["documents"])
