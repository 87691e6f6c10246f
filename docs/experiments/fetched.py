"""A folder of fetched files is complete or absent, never half there.

A folder is complete when its `manifest.json` holds the facts asked for (version pins, a sha256) and
the files it lists, and no others, are there with their sizes and SHA-256. A file is hashed once a
process, and again when its size or its time changes. Whoever makes one works in a folder
`.NAME-*.partial` beside it and renames what is whole; one that was killed leaves such a folder, which
may be deleted. Two runs at the same time both make it, and the first to finish wins.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from sa_plugin._files import DamagedFileError, file_digest, read_object, write_text

MANIFEST = "manifest.json"
Facts = Mapping[str, Any]


def is_complete(folder: Path, facts: Facts) -> bool:
    """Whether the manifest holds these facts and every file it lists is there as it was written."""
    try:
        manifest = read_object(folder / MANIFEST, "fetch the folder again")
    except (FileNotFoundError, NotADirectoryError, DamagedFileError):
        return False
    sizes, digests = manifest.get("files"), manifest.get("digests")
    if any(manifest.get(key) != value for key, value in facts.items()) or not isinstance(digests, dict):
        return False
    there = {name: path for name, path in _files(folder) if name in digests or not _is_hidden(name)}
    return sizes == {name: path.stat().st_size for name, path in there.items()} and all(
        digests.get(name) == _known_digest(path) for name, path in there.items()
    )


def write_manifest(folder: Path, facts: Facts) -> None:
    """Facts, and sizes and SHA-256 of the files that are there."""
    files = _files(folder)
    sizes = {name: path.stat().st_size for name, path in files}
    digests = {name: file_digest(path) for name, path in files}
    text = json.dumps({**facts, "files": sizes, "digests": digests}, indent=2)
    write_text(folder / MANIFEST, text + "\n")


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A folder to work in beside the target; it is removed at the end, whatever happened."""
    work = target.with_name(f".{target.name}-{uuid.uuid4().hex}.partial")
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def publish(built: Path, target: Path, facts: Facts) -> None:
    """Rename into place; a complete folder that came first is kept, an incomplete one replaced."""
    if target.exists() and not is_complete(target, facts):
        with suppress(FileNotFoundError):
            target.rename(built.with_name("replaced"))
    try:
        built.rename(target)
    except OSError:
        if not is_complete(target, facts):
            raise


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Every file but the manifest, by name."""
    found = [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*"))]
    return [(name, path) for name, path in found if path.is_file() and name != MANIFEST]


def _is_hidden(name: str) -> bool:
    """Whether a system puts such a file into folders on its own."""
    return any(part.startswith(".") for part in Path(name).parts)


def _known_digest(path: Path) -> str:
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns, about.st_ino)


@cache
def _digest(path: Path, *_about: int) -> str:
    return file_digest(path)
