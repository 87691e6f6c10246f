"""A folder of fetched files is complete or absent, never half there.

A folder is complete when its `manifest.json` holds the facts asked for (version pins, a sha256) and
every file it lists is there with its size. Whoever makes one works in a folder `.NAME-*.partial`
beside it and renames what is whole; one that was killed leaves such a folder, which may be deleted.
Two runs at the same time both make it, and the first to finish wins.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
Facts = Mapping[str, Any]


def is_complete(folder: Path, facts: Facts) -> bool:
    """Whether the manifest holds these facts and every file it lists is there in full."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    there = _sizes(folder)
    return all(manifest.get(key) == value for key, value in facts.items()) and all(
        there.get(file) == size for file, size in manifest["files"].items()
    )


def write_manifest(folder: Path, facts: Facts) -> None:
    """Facts, and the sizes of the files that are there."""
    text = json.dumps({**facts, "files": _sizes(folder)}, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


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


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
