"""The folder of an artefact, a saved bank or detector: safetensors and JSON, never a pickle.

`tensors-DIGEST.safetensors` holds the arrays, named by their own SHA-256, and `artefact.json` all
else: format, names and settings, the whole digest of the tensors, and a digest of itself. Tensors are
written first, under a name that no other artefact has; then the JSON that names them is renamed into
place; then what it does not name is deleted. A kill at any moment leaves the old artefact or the new.

Format 1 had one name for all tensors and no digest: a kill between its two writes left tensors of one
artefact under the thresholds of another. It is still read, with a warning, since nothing in it can say
whether it is whole.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sa_plugin._check import users_line
from sa_plugin._files import (
    LOCK,
    PARTIAL,
    DamagedFileError,
    bytes_digest,
    file_digest,
    output_folder,
    read_object,
    remove,
    require_sealed,
    sealed,
    write_bytes,
    write_text,
)
from sa_plugin.show.result import clean

ARTEFACT_FORMAT = 2
PROMISE_FORMAT = 3
"""Of a detector that keeps a promise: a version that knows none must not read its other thresholds."""
RECORD = "artefact.json"
AGAIN = "save or copy the artefact again"
_OLD_FORMAT, _OLD_TENSORS = 1, "tensors.safetensors"
_TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")


class OldArtefactWarning(UserWarning):
    """An artefact of a format without digests was read."""


@contextmanager
def artefact_folder(folder: Path) -> Iterator[Path]:
    """Hold a folder that an artefact can be written to; ask before computing what goes into it.

    Raises:
        FileExistsError: It is a file, or holds something else than an artefact.
        OSError: It cannot be written, or is being written.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, an artefact is a folder: name a new folder.")
    # A first save that was killed leaves tensors that nothing names.
    others = [one for one in folder.iterdir() if not _is_ours(one)] if folder.exists() else []
    if others and not (folder / RECORD).exists():
        raise FileExistsError(f"{folder} is not empty and holds no artefact: name a new folder.")
    with output_folder(folder, RECORD):
        yield folder


def write(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Path:
    """Write an artefact, in the place of one that may be there.

    Raises:
        FileExistsError: The folder is a file, or holds something else than an artefact.
        OSError: It cannot be written, or is being written; the text names the path.
    """
    content = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
    digest = bytes_digest(content)
    name = f"tensors-{digest[:16]}.safetensors"
    named = {"format": ARTEFACT_FORMAT, "tensors": {"file": name, "sha256": digest}, **record}
    text = json.dumps(sealed(clean(named)), indent=1)
    with artefact_folder(folder):
        write_bytes(folder / name, content)
        write_text(folder / RECORD, text + "\n")
        for one in folder.iterdir():
            if _is_ours(one) and one.name not in (name, LOCK):
                remove(one)
    return folder


def _is_ours(path: Path) -> bool:
    known = path.name in (LOCK, _OLD_TENSORS) or _TENSORS.fullmatch(path.name) is not None
    return known or path.name.startswith(PARTIAL)


def read(folder: Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an artefact, and refuse one that is not as it was written.

    Raises:
        FileNotFoundError: There is no artefact.
        DamagedFileError: It is damaged, or its parts are of different artefacts.
        ValueError: It is of another kind or format, or a file.

    Warns:
        OldArtefactWarning: It is of format 1, in which nothing says whether it is whole.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, a saved {what} is a folder: give that folder.")
    record = _record(folder, what)
    while True:
        place = folder / _name_of_tensors(folder, record)
        try:
            return _tensors(place, record), record
        except FileNotFoundError:
            # Somebody may have saved over it between the two reads.
            before, record = record, _record(folder, what)
            if record == before:
                raise


def _record(folder: Path, what: str) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        why = f"holds no {RECORD}: it is no saved {what}" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {why}: give the folder that save_pretrained wrote.")
    record = read_object(path, AGAIN)
    found = record.get("format")
    if type(found) is not int or found not in (_OLD_FORMAT, ARTEFACT_FORMAT, PROMISE_FORMAT):
        raise ValueError(
            f"{folder} has artefact format {found!r:.40}, this version reads {_OLD_FORMAT} to "
            f"{PROMISE_FORMAT}: update sa_plugin or save it again."
        )
    if found != _OLD_FORMAT:
        require_sealed(record, path, AGAIN)
    elif {"digest", "tensors"} & record.keys():
        raise DamagedFileError(f"{path} is damaged (format 1 has no digest): {AGAIN}.")
    if record.get("what") != what:
        raise ValueError(f"{folder} holds a {record.get('what')!s:.40}, not a {what}.")
    return record


def _name_of_tensors(folder: Path, record: Mapping[str, Any]) -> str:
    if record["format"] == _OLD_FORMAT:
        return _OLD_TENSORS
    name = dict(record["tensors"])["file"] if isinstance(record.get("tensors"), dict) else None
    if not isinstance(name, str) or not _TENSORS.fullmatch(name):
        raise DamagedFileError(f"{folder / RECORD} is damaged (it names no tensors): {AGAIN}.")
    return name


def _tensors(path: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: {AGAIN}.")
    if record["format"] != _OLD_FORMAT and file_digest(path) != record["tensors"].get("sha256"):
        raise DamagedFileError(
            f"{path} is damaged, or of another artefact (its content is not what {RECORD} says): {AGAIN}."
        )
    try:
        found = load_file(path)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {AGAIN}.") from error
    if record["format"] == _OLD_FORMAT:
        warnings.warn(
            f"{path.parent} is an artefact of format 1, in which nothing says whether its two files belong "
            "together: where you can, save it again.",
            OldArtefactWarning,
            stacklevel=users_line(),
        )
    return found


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Put the folder's name before what is found to be damaged in it."""
    try:
        yield
    except DamagedFileError as damage:
        raise DamagedFileError(f"{folder} is damaged ({damage}): {AGAIN}.") from damage
