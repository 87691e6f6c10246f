"""Files: one way to write them, one way to read them back.

What is written goes to a temporary name in the same folder, is flushed to the disk and renamed, and
then the folder is flushed: whoever reads finds the old file or the new one, whatever moment a kill, an
interrupt or a full disk comes at. The mode is what the umask gives. A folder of output is checked and
locked before anything is computed, so that hours of work do not end at "permission denied" and two
runs do not write into one another.

What is read is held against a digest that was written with it. A digest guards against damage and
against parts of different files side by side; it does not stop somebody who edits a file and computes
the digest again. What systems of files promise of renames and locks: docs/guarantees.md.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from filelock import FileLock, Timeout

PARTIAL = ".partial-"
"""How the name of an unfinished file begins; what a kill leaves of it may be deleted."""
LOCK = ".lock"
FORGOTTEN = 3600.0
"""Seconds after which an unfinished file is nobody's."""
_FIX = {
    errno.ENOSPC: "free some space, or name a folder on another disk",
    errno.EDQUOT: "your quota is used up: free some space, or name a folder on another disk",
    errno.EACCES: "name a folder that you may write to",
    errno.EPERM: "name a folder that you may write to",
    errno.EROFS: "the file system is read-only: name a folder that you may write to",
}


class DamagedFileError(ValueError):
    """What was read is not what was written."""


def as_path(name: str, value: Any) -> Path:
    """A path that was given as text or as `Path`.

    Raises:
        TypeError: Something else.
        ValueError: It is empty, or holds a null character.
    """
    if not isinstance(value, str | Path):
        raise TypeError(
            f"{name} is {value!r:.60} ({type(value).__name__}), not a path: give a text or a Path."
        )
    if not str(value).strip() or "\0" in str(value):
        raise ValueError(f"{name} is {str(value)!r}, which names no file: give the path of one.")
    return Path(value).expanduser()


# Writing ------------------------------------------------------------------------------------------


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file whole or not at all.

    Args:
        path: Where to; a link is followed, its folder is made if missing.
        content: All of it.

    Raises:
        OSError: It cannot be written; the text names the path, and what was there stays.
    """
    path = as_path("path", path)
    with written(path) as partial:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
        finally:
            os.close(handle)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8, whole or not at all.

    Raises:
        OSError: As `write_bytes`.
    """
    return write_bytes(path, text.encode())


def packed_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as the bytes of a compressed .npz file, the same bytes for the same arrays.

    `numpy.savez_compressed` takes six times as long for a few hundredths less.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, array in arrays.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as one:
                np.lib.format.write_array(one, np.asarray(array), allow_pickle=False)
    return content.getvalue()


def laid_out(value: Any, indent: int = 0) -> str:
    """JSON for people: a line for each name, and for each row of a table.

    `json.dumps` with `indent` is Python's own loop, a fifth of a second for a table of a thousand concepts.

    Example:
        >>> print(laid_out({"format": 1, "rows": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]}))
        {
         "format": 1,
         "rows": [
          {"a": 1, "b": 2},
          {"a": 3, "b": 4}
         ]
        }
    """
    if isinstance(value, Mapping) and value:
        opens, closes = "{", "}"
        lines = [f"{json.dumps(str(name))}: {laid_out(one, indent + 1)}" for name, one in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(one, Mapping | list | tuple) for one in value):
        opens, closes = "[", "]"
        lines = [json.dumps(one) for one in value]
    else:
        return json.dumps(value)
    line = "\n" + " " * indent
    return opens + ",".join(f"{line} {one}" for one in lines) + line + closes


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A temporary name for others to write to, of the same ending; renamed into place at the end.

    Raises:
        OSError: As `write_bytes`.
    """
    target = Path(os.path.realpath(as_path("path", path)))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file: name a file in it.")
    if target.exists() and not target.is_file():
        # A pipe or a device: there is nothing to rename into its place.
        yield target
        return
    partial = target.with_name(f"{PARTIAL}{secrets.token_hex(6)}{target.suffix}")
    try:
        _require_writable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _flush(partial)
        os.replace(partial, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(partial)
        # What is written while another file is open, such as a second table, has named itself.
        if isinstance(error, OSError) and not hasattr(error, "named"):
            _raise_named(error, Path(path))
        raise
    flush_folder(target.parent)


def publish_folder(built: Path, target: Path) -> None:
    """Rename a folder that was built beside its place into it; what stood there goes.

    Files in it are flushed by whoever wrote them.

    Raises:
        OSError: It cannot be renamed; the text names the path.
    """
    aside = target.with_name(f"{PARTIAL}{secrets.token_hex(6)}")
    try:
        # A folder cannot replace a full one: the old steps aside, and is deleted last.
        if target.exists():
            os.replace(target, aside)
        os.replace(built, target)
        flush_folder(target.parent)
    except OSError as error:
        _raise_named(error, target)
    remove(aside)


def remove(path: Path) -> None:
    """Delete a file or a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        for one in path.iterdir():
            remove(one)
        os.rmdir(path)
    else:
        path.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Have the disk hold the folder's names; where folders cannot be flushed (Windows), nothing."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _flush(path: Path) -> None:
    # Windows flushes only what is open for writing.
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_writable(target: Path) -> None:
    # A rename would replace a file that somebody made read-only.
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is read-only")


def _raise_named(error: OSError, path: Path) -> NoReturn:
    fix = _FIX.get(error.errno or 0, "name another place")
    said = error.strerror or str(error)
    told = f"{path} was not written ({said}), what was there before is as it was: {fix}."
    found = OSError(error.errno, told) if error.errno else OSError(told)
    vars(found)["named"] = path
    raise found from error


# Folders of output --------------------------------------------------------------------------------


def writable_folder(folder: str | Path) -> Path:
    """Make a folder if it is missing, and write to it once.

    Raises:
        ValueError: No system takes the name.
        NotADirectoryError: It, or what it should lie in, is a file.
        OSError: It cannot be made or written; the text names it.
    """
    if "\0" in str(folder):
        raise ValueError(f"{str(folder)!r} holds a null byte, which no name of a folder does: name another.")
    path = Path(folder)
    real = Path(os.path.realpath(path))
    for above in (real, *real.parents):
        if above.exists() and not above.is_dir():
            raise NotADirectoryError(f"{above} is a file, and {path} is to be a folder: name a folder.")
    try:
        real.mkdir(parents=True, exist_ok=True)
        _try_to_write(real)
    except OSError as error:
        _raise_named(error, path)
    return path


@contextmanager
def output_folder(folder: str | Path, *names: str) -> Iterator[Path]:
    """Check that a folder can be written and hold it against a second run; ask before computing.

    The same thread may ask again for a folder that it holds.

    Args:
        folder: Made if missing.
        names: Of files that will be written into it.

    Raises:
        NotADirectoryError: It, or what it should lie in, is a file.
        IsADirectoryError: What should become a file is a folder.
        BlockingIOError: Another run, process or thread, holds it.
        OSError: It cannot be made or written; the text names it.
    """
    path = writable_folder(folder)
    real = Path(os.path.realpath(path))
    try:
        lock = FileLock(real / LOCK, timeout=0, is_singleton=True)
        lock.acquire()
    except Timeout:
        told = (
            f"{path} is being written by another run, which holds {LOCK} in it: wait until it ends, or name "
            "another folder."
        )
        raise BlockingIOError(errno.EAGAIN, told) from None
    except OSError as error:
        _raise_named(error, path)
    try:
        for name in names:
            _require_file_place(real / name)
        _sweep(real)
        yield path
    finally:
        try:
            if lock.lock_counter == 1:
                # Deleted while held: who opened it before finds a file without a name, and asks again.
                with suppress(OSError):
                    os.unlink(real / LOCK)
        finally:
            lock.release()


def _require_file_place(target: Path) -> None:
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder, expected a file: move it, or name another folder.")
    try:
        _require_writable(target)
    except OSError as error:
        _raise_named(error, target)


def _sweep(folder: Path) -> None:
    """Delete what killed runs left; what is young may be another's, who writes without the lock."""
    for one in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError):
            if time.time() - one.lstat().st_mtime > FORGOTTEN:
                remove(one)


def _try_to_write(folder: Path) -> None:
    probe = folder / f"{PARTIAL}{secrets.token_hex(6)}"
    try:
        with probe.open("wb") as file:
            file.write(b"?")
            file.flush()
            os.fsync(file.fileno())
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """What writing leaves beside whole files: a lock, and what was killed."""
    return [one for one in folder.iterdir() if one.name == LOCK or one.name.startswith(PARTIAL)]


# Reading ------------------------------------------------------------------------------------------


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever its layout and the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def bytes_digest(content: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder: of the names and contents of all its files."""
    if path.is_dir():
        skipped = set(leftovers(path))
        files = sorted(one for one in path.rglob("*") if one.is_file() and one not in skipped)
        return digest_of([[one.relative_to(path).as_posix(), file_digest(one)] for one in files])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the digest of all that is in it.

    Example:
        >>> sorted(sealed({"seed": 0}))
        ['digest', 'seed']
    """
    return {**record, "digest": digest_of(dict(record))}


def require_sealed(record: Mapping[str, Any], path: Path, fix: str) -> None:
    """Refuse a record that is not as `sealed` left it.

    Raises:
        DamagedFileError: Names the file and the fix.
    """
    rest = {key: value for key, value in record.items() if key != "digest"}
    if "digest" not in record:
        raise DamagedFileError(f"{path} is damaged (it has lost its digest): {fix}.")
    if record["digest"] != digest_of(rest):
        raise DamagedFileError(f"{path} is damaged (its content is not what its digest says): {fix}.")


def read_object(path: Path, fix: str) -> dict[str, Any]:
    """A JSON object, read strictly: no NaN, no name twice, no half of a character.

    Args:
        path: Of the file.
        fix: What to do if it is damaged, as a command.

    Raises:
        FileNotFoundError: There is none.
        DamagedFileError: It is no JSON, or no object; the text names the file and the fix.
    """
    try:
        found = json.loads(
            path.read_bytes().decode(), parse_constant=_refuse_constant, object_pairs_hook=_once_each
        )
        # Half a character, which an escape can hold and no page, file or terminal takes.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {fix}.") from error
    if not isinstance(found, dict):
        raise DamagedFileError(
            f"{path} is damaged (it holds a {type(found).__name__}, not an object): {fix}."
        )
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return found
