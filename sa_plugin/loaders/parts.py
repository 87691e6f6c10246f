"""Rows of one file or object of a corpus, read by place: what `sa_plugin.loaders.corpus` is made of.

A part knows how many rows it has and gives rows `start` to `stop` without reading what stands before,
where its format allows:

| part | rows | how a place is found |
|---|---|---|
| `JsonLines`, `TextLines`, `CsvRows` | lines or records; blank lines are none | byte offsets, met once |
| `ParquetRows` | rows | row groups |
| `WholeFiles` | texts or pictures, a file each | the list of names |
| `Listed` | of anything with a length, by index | the index |
| `Walked` | of anything that is walked | from the beginning; what was passed is not kept |

Offsets are kept at the places where blocks begin, so that an index of ten million lines has as many
entries as there are blocks. Files that end in .gz are read too; their offsets are of what is in them,
and to go to one costs reading what stands before.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, cast, runtime_checkable

from sa_plugin._check import require
from sa_plugin.data.images import opened, rgb
from sa_plugin.data.loose import PICTURES
from sa_plugin.loaders.files import parse_json

MOST_CHARACTERS = 1 << 24
"""Of one document. What is longer is a file in one, and no document: it would fill memory as tokens."""
_BOM = b"\xef\xbb\xbf"
# The module csv takes no field above 131,072 characters by itself, which many documents have.
csv.field_size_limit(max(csv.field_size_limit(), MOST_CHARACTERS))


class Row(NamedTuple):
    """One row as it was read.

    Attributes:
        where: File and line, or number, for errors and as the row's name where it has none of its own.
        value: A mapping of columns, or what is one sample; the error where it could not be read.
    """

    where: str
    value: Any


class Mark(NamedTuple):
    """Where a row begins: its number, its byte, its line (from 1)."""

    row: int
    offset: int
    line: int


@runtime_checkable
class Part(Protocol):
    """Rows that are read by place."""

    @property
    def name(self) -> str:
        """What it is called in names of documents."""

    @property
    def n_rows(self) -> int | None:
        """How many rows there are; None where only the end tells."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of columns, where the format says them."""

    @property
    def record(self) -> dict[str, Any]:
        """What it is, JSON-ready: equal records are the same rows."""

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Rows `start` to `stop`, fewer at the end."""


# Files of lines -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Lines:
    """Base of files whose rows are lines, or records of several lines.

    Attributes:
        path: Of the file.
        name: Of the file in the corpus.
        n_rows: Rows of it.
        marks: Where rows begin, some of them, ascending; of row 0 at least.
        digest: SHA-256 of what is in it.
        columns: As the header says.
    """

    path: Path
    name: str
    n_rows: int
    marks: tuple[Mark, ...]
    digest: str
    columns: tuple[str, ...] | None = None
    kind: ClassVar[str] = ""

    @classmethod
    def indexed(cls, path: Path, name: str, first: int, step: int) -> Lines:
        """Read a file once, to know where its rows begin.

        Args:
            path: Of the file.
            name: Of the file in the corpus.
            first: Number of its first row in the corpus.
            step: Rows of a block: the first row of each is marked.
        """
        whole = hashlib.sha256()
        with open_bytes(path) as file:
            columns, begin = cls.header(path, file)
            file.seek(0)
            whole.update(file.read(begin.offset))
            marks, n = [begin], 0
            try:
                for offset, line, _ in cls.records(file, begin, whole):
                    if n and (first + n) % step == 0:
                        marks.append(Mark(n, offset, line))
                    n += 1
            except (OSError, EOFError, csv.Error) as error:
                raise ValueError(f"{path} cannot be read behind its row {n} ({error}): mend it.") from error
        return cls(path, name, n, tuple(marks), whole.hexdigest(), columns)

    @property
    def record(self) -> dict[str, Any]:
        """Kind, name, rows and digest of the content."""
        return {"kind": self.kind, "name": self.name, "rows": self.n_rows, "digest": self.digest}

    @property
    def index(self) -> dict[str, Any]:
        """What `from_index` needs, JSON-ready."""
        about = self.path.stat()
        held = {"size": about.st_size, "time": about.st_mtime_ns, "columns": self.columns}
        return {**self.record, **held, "marks": [list(mark) for mark in self.marks]}

    @classmethod
    def from_index(cls, path: Path, name: str, index: Mapping[str, Any]) -> Lines | None:
        """The file as it was indexed; None where its size or time is another by now."""
        about = path.stat()
        if (index["kind"], index["size"], index["time"]) != (cls.kind, about.st_size, about.st_mtime_ns):
            return None
        columns = None if index["columns"] is None else tuple(index["columns"])
        marks = tuple(Mark(*mark) for mark in index["marks"])
        return cls(path, name, index["rows"], marks, index["digest"], columns)

    @classmethod
    def header(cls, path: Path, file: Any) -> tuple[tuple[str, ...] | None, Mark]:
        """Columns, and where the rows begin."""
        skipped = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        return None, Mark(0, skipped, 1)

    @classmethod
    def records(cls, file: Any, begin: Mark, whole: Any = None) -> Iterator[tuple[int, int, bytes]]:
        """Byte, line and content of each record from a place on; `whole` is told all bytes."""
        file.seek(begin.offset)
        _, offset, line = begin
        for n, content in enumerate(file):
            if whole is not None:
                whole.update(content)
            if content.strip():
                yield offset, line + n, content
            offset += len(content)

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Rows `start` to `stop`."""
        begin = max((mark for mark in self.marks if mark.row <= start), key=lambda mark: mark.row)
        with open_bytes(self.path) as file:
            for n, (_, line, content) in enumerate(self.records(file, begin), begin.row):
                if n >= start:
                    yield Row(f"{self.name}:{line}", self._parsed(content))
                if n + 1 >= stop:
                    return

    def _parsed(self, content: bytes) -> Any:
        raise NotImplementedError


class JsonLines(Lines):
    """One JSON object a line."""

    kind = "jsonl"

    def _parsed(self, content: bytes) -> Any:
        try:
            row = parse_json(content.decode("utf-8"), once=True)
        except ValueError as error:
            return ValueError(f"no JSON in UTF-8 ({error}): write one object a line")
        if not isinstance(row, dict):
            return ValueError(f"a {type(row).__name__}, expected an object such as {{'text': ...}}")
        return row


class TextLines(Lines):
    """One text a line."""

    kind = "lines"

    def _parsed(self, content: bytes) -> Any:
        try:
            return content.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            return ValueError(f"not UTF-8 ({error.reason}): save it as UTF-8")


class CsvRows(Lines):
    """One record a row, under a header; fields may hold line ends."""

    kind = "csv"

    @classmethod
    def header(cls, path: Path, file: Any) -> tuple[tuple[str, ...] | None, Mark]:
        """Names of the columns.

        Raises:
            ValueError: There is no header, or a column stands twice.
        """
        _, begin = Lines.header(path, file)
        found = next(cls.records(file, begin), None)
        if found is None:
            raise ValueError(f"{path} has no header: write the names of its columns into the first line.")
        offset, line, content = found
        names = _fields(content, _delimiter(path))
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{path} line 1: column {twice!r} stands twice: rename one.")
        return tuple(names), Mark(0, offset + len(content), line + content.count(b"\n"))

    @classmethod
    def records(cls, file: Any, begin: Mark, whole: Any = None) -> Iterator[tuple[int, int, bytes]]:
        """Records as the module csv cuts them: it is asked where each one ends."""
        file.seek(begin.offset)
        taken: list[bytes] = []

        def lines() -> Iterator[str]:
            for content in file:
                if whole is not None:
                    whole.update(content)
                taken.append(content)
                # Only the places of quotes and separators matter here, which are ASCII.
                yield content.decode("latin-1")

        _, offset, line = begin
        # The separator decides where a quote opens a field; the file's name says which it is.
        for fields in csv.reader(lines(), delimiter=_delimiter(Path(str(file.name)))):
            content = b"".join(taken)
            if fields:
                yield offset, line, content
            offset, line = offset + len(content), line + len(taken)
            taken.clear()

    def _parsed(self, content: bytes) -> Any:
        try:
            fields = _fields(content, _delimiter(self.path))
        except (UnicodeDecodeError, csv.Error) as error:
            return ValueError(f"no CSV in UTF-8 ({error})")
        columns = cast(tuple[str, ...], self.columns)
        if len(fields) != len(columns):
            return ValueError(
                f"{len(fields)} fields, expected {len(columns)} ({', '.join(columns[:6])}): is a quote or a "
                "separator missing?"
            )
        return dict(zip(columns, fields, strict=True))


def _fields(content: bytes, delimiter: str) -> list[str]:
    # At line ends alone: texts may hold the other characters of splitlines.
    lines = (f"{line}\n" for line in content.decode("utf-8").rstrip("\r\n").split("\n"))
    return next(csv.reader(lines, delimiter=delimiter), [])


def _delimiter(path: Path) -> str:
    return "\t" if suffix_of(path) == ".tsv" else ","


def open_bytes(path: Path) -> Any:
    """A file's bytes, unpacked where its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def suffix_of(path: Path) -> str:
    """What a file's name says it holds, whether packed or not.

    Example:
        >>> suffix_of(Path("a/b.jsonl.gz"))
        '.jsonl'
    """
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


# Other files --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ParquetRows:
    """Rows of a Parquet file.

    Attributes:
        path: Of the file.
        name: Of the file in the corpus.
        groups: Rows of each row group.
        columns: Names.
        digest: SHA-256 of its footer, which says where everything lies.
    """

    path: Path
    name: str
    groups: tuple[int, ...]
    columns: tuple[str, ...] | None
    digest: str

    @classmethod
    def of(cls, path: Path, name: str) -> ParquetRows:
        """Read the footer.

        Raises:
            ImportError: pyarrow is not installed.
            ValueError: It is no Parquet file.
        """
        with _parquet(path) as file:
            about = file.metadata
            groups = tuple(about.row_group(k).num_rows for k in range(about.num_row_groups))
            said = json.dumps(about.to_dict(), sort_keys=True, default=str)
            digest = hashlib.sha256(said.encode()).hexdigest()
            return cls(path, name, groups, tuple(file.schema_arrow.names), digest)

    @property
    def n_rows(self) -> int:
        """Rows of the file."""
        return sum(self.groups)

    @property
    def record(self) -> dict[str, Any]:
        """Kind, name, rows and digest of the footer."""
        return {"kind": "parquet", "name": self.name, "rows": self.n_rows, "digest": self.digest}

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Rows `start` to `stop`, from the row groups that hold them."""
        first, before = 0, 0
        wanted: list[int] = []
        for k, rows in enumerate(self.groups):
            if before < stop and before + rows > start:
                first = first if wanted else before
                wanted.append(k)
            before += rows
        if not wanted:
            return
        with _parquet(self.path) as file:
            n = first
            for batch in self._batches(file, wanted):
                if n + len(batch) > start:
                    for k, row in enumerate(batch.to_pylist(), n):
                        if start <= k < stop:
                            yield Row(f"{self.name}:{k + 1}", row)
                n += len(batch)
                if n >= stop:
                    return

    def _batches(self, file: Any, groups: Sequence[int]) -> Iterator[Any]:
        try:
            yield from file.iter_batches(batch_size=64, row_groups=groups)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{self.path} cannot be read in its row groups {groups[0]} to {groups[-1]} ({error}): write "
                "it again, or leave it out."
            ) from error


def _parquet(path: Path) -> Any:
    parquet = require("pyarrow.parquet", "corpora", "reading and writing Parquet")
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no Parquet file that can be read ({error}): write it again.") from error


@dataclass(frozen=True, eq=False)
class WholeFiles:
    """Texts or pictures, a file each.

    Attributes:
        root: Folder that their names are told from.
        names: In order.
        sizes: Bytes of each.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    name: str = ""
    columns: tuple[str, ...] | None = None

    @classmethod
    def of(cls, root: Path, names: Sequence[str]) -> WholeFiles:
        """Look at the sizes."""
        return cls(root, tuple(names), tuple((root / name).stat().st_size for name in names))

    @property
    def n_rows(self) -> int:
        """Number of files."""
        return len(self.names)

    @property
    def record(self) -> dict[str, Any]:
        """Digest of names and sizes; what is in them is not read for it."""
        said = json.dumps([self.names, self.sizes])
        digest = hashlib.sha256(said.encode()).hexdigest()
        return {"kind": "files", "name": self.name, "rows": self.n_rows, "digest": digest}

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Files `start` to `stop`, opened one by one."""
        for name in self.names[start:stop]:
            yield Row(name, _content(self.root / name))


def _content(path: Path) -> Any:
    try:
        if suffix_of(path) in PICTURES:
            return rgb(opened(path))
        with open_bytes(path) as file:
            content = file.read(4 * MOST_CHARACTERS + 1)
        if len(content) > 4 * MOST_CHARACTERS:
            return ValueError(
                f"more than {4 * MOST_CHARACTERS >> 20} MiB in a document: give one text a line (lines=True)"
            )
        return content.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 ({error.reason}): save it as UTF-8")
    except (OSError, ValueError) as error:
        return error


# Objects ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Listed:
    """Rows of anything that has a length and is asked by index: lists, arrays, data sets."""

    rows: Any
    name: str = ""
    columns: tuple[str, ...] | None = None

    @property
    def n_rows(self) -> int:
        """How many there are."""
        return len(self.rows)

    @property
    def record(self) -> dict[str, Any]:
        """Number, and the fingerprint that a Hugging Face data set gives itself."""
        own = getattr(self.rows, "_fingerprint", None)
        return {"kind": "list", "name": self.name, "rows": self.n_rows, "digest": own or ""}

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Rows by index; one that cannot be read is an error of its own."""
        for k in range(start, min(stop, self.n_rows)):
            try:
                value = self.rows[k]
            except (OSError, ValueError, TypeError) as error:
                value = error
            yield Row(str(k), value)


@dataclass(eq=False)
class Walked:
    """Rows of anything that can only be walked: a streamed data set, a generator.

    Rows are read in ascending order; to go back is to begin anew, which an iterator cannot.
    """

    rows: Iterable[Any]
    name: str = ""
    columns: tuple[str, ...] | None = None
    n_rows: int | None = None
    _walk: Iterator[Any] | None = field(default=None, repr=False)
    _at: int = 0

    @property
    def record(self) -> dict[str, Any]:
        """What it is; how many there are, only the end tells."""
        return {"kind": "stream", "name": self.name, "rows": None, "digest": ""}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_walk": None, "_at": 0}

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Rows `start` to `stop`; what stands before is walked over.

        Raises:
            ValueError: It is an iterator that has gone further already.
        """
        if self._walk is None or self._at > start:
            if self._walk is not None and iter(self.rows) is self.rows:
                raise ValueError(
                    f"the corpus is a {type(self.rows).__name__}, which is read once, and row {start} is "
                    f"asked for after row {self._at - 1}: give a list, a file, or what can be walked again."
                )
            self._walk, self._at = iter(self.rows), 0
        while self._at < stop:
            try:
                value = next(self._walk)
            except StopIteration:
                self.n_rows = self._at
                return
            self._at += 1
            if self._at > start:
                yield Row(str(self._at - 1), value)
