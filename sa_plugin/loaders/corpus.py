"""A corpus: any number of documents in an order, cut into blocks, never whole in memory.

`open_corpus(source)` takes

| source | a document is |
|---|---|
| .jsonl, .ndjson, .csv, .tsv, each also with .gz | a row |
| .parquet | a row |
| .txt, .md | the file; with `lines=True` a line |
| .png, .jpg and other pictures | the picture |
| a folder, a pattern such as "texts/*.jsonl", a list of paths | what its files hold, by name |
| a Hugging Face data set, in memory, on disk or streamed; its saved folder | a row |
| any iterable of texts, chats, token ids, pictures, `Sample`s or rows | an item |
| a `ConceptData`, or one of its splits | a sample |

A `Document` is a number (its place in the corpus), a stable name, and a `Sample` with the source
document and the content; or, where it cannot be read, what is wrong with it: one bad row stops nobody.
Its name is what the column `id` says, else the file and line (`docs.jsonl:17`), the file, or the number.

A *block* is a fixed slice of this order: `block_size` documents, the last one fewer. It is the unit of
work: it can be read alone, by its number, from the place where it begins, and which shard it is in
changes nothing about it. Shard i of n is the blocks i, i + n, i + 2n, ...

    corpus = open_corpus("texts/*.jsonl", block_size=256)
    for block in corpus.blocks((0, 2)):          # the numbers of the blocks of shard 0 of 2
        for document in corpus.read(block):      # one by one
            document.number, document.key, document.sample, document.fault

`corpus.record` says what the corpus is: two corpora with equal records have the same documents. For
files of lines it rests on all their bytes, for Parquet on the footer, for pictures and texts that are
a file each on names and sizes; for a stream there is nothing to say, and `n_documents` is None until
its end has been met. `corpus.index` holds where blocks begin, for `open_corpus(..., index=...)` to
open the same files again without reading them. A corpus of files can be sent to another process.

Labels are read where `columns` names them, role to column as in `sa_plugin.load`: "label" or "spans"
(texts), "mask" as {concept: mask} (pictures). What needs a look at all rows before it means anything
(schemes of tags, planes of class numbers) is read by `load` alone.
"""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sa_plugin._check import did_you_mean, require, require_known, require_shard
from sa_plugin._face import face, face_methods
from sa_plugin.data.build import mask_sample
from sa_plugin.data.columns import is_blank, text_of
from sa_plugin.data.concept_data import ConceptData, Split
from sa_plugin.data.given import plain, source_of, source_or_none
from sa_plugin.data.loose import PICTURES, Named, loose_sample
from sa_plugin.data.sample import Sample, Span
from sa_plugin.loaders.parts import (
    MOST_CHARACTERS,
    CsvRows,
    JsonLines,
    Lines,
    Listed,
    ParquetRows,
    Part,
    Row,
    TextLines,
    Walked,
    WholeFiles,
    suffix_of,
)
from sa_plugin.loaders.rows import NAMED_ROLES, classes_of, read_row, unformatted

BLOCK_SIZE = 256
"""Documents of a block where nobody says another number: minutes of work on a CPU, seconds on a GPU."""
OF_LINES: Mapping[str, type[Lines]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".csv": CsvRows,
    ".tsv": CsvRows,
}
OF_ROWS = (".parquet", ".pq")
TEXTS = (".txt", ".md")
_ROLES = ("text", "image", "spans", "label", "mask", "document", "id")
# The first of these that is there holds the content; `id` and `document` are read where they are there.
_CONTENT = {"text": "text", "messages": "text", "input_ids": "text", "image": "image"}
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")


@dataclass(frozen=True, eq=False)
class Document:
    """One document of a corpus.

    Attributes:
        number: Place in the corpus, from 0.
        key: Its name, the same whatever block or shard it is read in.
        sample: Content and source document; None where it cannot be read.
        fault: What is wrong with it; None where nothing is.
    """

    number: int
    key: str
    sample: Sample | None = None
    fault: Exception | None = None

    def __repr__(self) -> str:
        return f"Document({self.number}, {self.key!r}, {self.sample if self.fault is None else self.fault!r})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of name, source document and content."""
        content = ""
        if self.sample is not None:
            source = self.sample.source
            given = self.sample.content if source is None else repr(source.record)
            content = f"{self.sample.document}\0{given}"
        return hashlib.sha256(f"{self.key}\0{content}".encode(errors="replace")).hexdigest()


@face_methods
@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents in an order, cut into blocks. Made by `open_corpus`.

    Attributes:
        name: What it is called.
        parts: Files or objects, one after another.
        block_size: Documents of a block.
        columns: Role to column, where that was said.
        classes: Names of class numbers by role, where a data set has them.
        left_out: Files of a folder that are none of a corpus, by suffix.
    """

    name: str
    parts: tuple[Part, ...]
    block_size: int
    columns: Mapping[str, str] | None
    classes: Mapping[str, Any]
    left_out: Mapping[str, int]

    def __repr__(self) -> str:
        n = "a stream" if self.n_documents is None else f"{self.n_documents:,} documents"
        return f"Corpus({self.name}: {n}, blocks of {self.block_size})"

    @property
    def n_documents(self) -> int | None:
        """Number of documents, bad ones counted; None where only the end tells."""
        counts = [part.n_rows for part in self.parts]
        return None if None in counts else sum(n for n in counts if n is not None)

    @property
    def n_blocks(self) -> int | None:
        """Number of blocks; None where only the end tells."""
        n = self.n_documents
        return None if n is None else -(-n // self.block_size)

    @property
    def record(self) -> dict[str, Any]:
        """What it is, JSON-ready: equal records, equal documents."""
        return {
            "parts": [part.record for part in self.parts],
            "columns": None if self.columns is None else dict(self.columns),
            "block_size": self.block_size,
        }

    @property
    def index(self) -> dict[str, Any]:
        """Where blocks begin in its files of lines, JSON-ready."""
        found = {part.name: part.index for part in self.parts if isinstance(part, Lines)}
        return {"block_size": self.block_size, "files": found}

    def blocks(self, shard: tuple[int, int] = (0, 1)) -> Iterator[int]:
        """Numbers of the blocks of one shard, ascending; of a stream until its end has been met.

        Args:
            shard: Which of how many, from 0.

        Raises:
            ValueError: There is no such shard.
        """
        require_shard(shard)
        return self._blocks(*shard)

    def _blocks(self, block: int, n: int) -> Iterator[int]:
        while (end := self.n_blocks) is None or block < end:
            yield block
            block += n

    def read(self, block: int, named: Named | None = None) -> Iterator[Document]:
        """The documents of a block, one by one and in their order; none behind the end.

        Args:
            block: Its number.
            named: Finds the characters of token ids; see `sa_plugin.data.loose`.

        Raises:
            ValueError: The number is negative; or, as it is read, an iterator is past the block.
        """
        if block < 0:
            raise ValueError(f"block is {block}: give 0 or more.")
        return self._documents(block * self.block_size, named)

    def _documents(self, start: int, named: Named | None) -> Iterator[Document]:
        for number, row in enumerate(self._rows(start, start + self.block_size), start):
            yield self._document(number, row, named)

    def samples(self, named: Named | None = None) -> list[Sample]:
        """All documents, held at once.

        Args:
            named: As for `read`.

        Raises:
            ValueError: One cannot be read; the text names the first.
        """
        found = [one for block in self.blocks() for one in self.read(block, named)]
        bad = [one for one in found if one.sample is None]
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(found)} documents of {self.name} cannot be read, {bad[0].key!r} first: "
                f"{bad[0].fault}. Mend them, or leave them out."
            ) from bad[0].fault
        return [one.sample for one in found if one.sample is not None]

    def __iter__(self) -> Iterator[Document]:
        for block in self.blocks():
            yield from self.read(block)

    def _rows(self, start: int, stop: int) -> Iterator[Row]:
        first = 0
        for part in self.parts:
            if start - first >= (part.n_rows or 0) and part.n_rows is not None:
                first += part.n_rows
                continue
            yield from part.read(max(start - first, 0), stop - first)
            if part.n_rows is None or first + part.n_rows >= stop:
                return
            first += part.n_rows

    def _document(self, number: int, row: Row, named: Named | None) -> Document:
        where, value = row
        if isinstance(value, Exception):
            return Document(number, where, fault=value)
        try:
            sample = self._sample(where, value, named)
            _require_content(sample)
        except (TypeError, ValueError, OSError) as error:
            own = value.get((self.columns or {}).get("id", "id")) if isinstance(value, Mapping) else None
            return Document(number, own if isinstance(own, str) and own else where, fault=error)
        return Document(number, sample.id, sample)

    def _sample(self, where: str, value: Any, named: Named | None) -> Sample:
        if not isinstance(value, Mapping):
            return loose_sample(value, where, named)
        columns = _columns_of(value) if self.columns is None else self.columns
        for role, wanted in columns.items():
            if wanted not in value:
                raise ValueError(f"column {wanted!r} ({role}) is missing{did_you_mean(wanted, list(value))}")
        found = read_row({role: value[wanted] for role, wanted in columns.items()}, self.classes)
        key = str(found.get("id", where))
        document = str(found.get("document", key))
        if "image" in columns:
            masks = found["mask"] or {}
            if not isinstance(masks, Mapping):
                raise ValueError("a mask of a corpus is {concept: mask}: planes of classes are read by load")
            return mask_sample(key, found["image"], masks, document=document, labels=found["label"])
        text = found["text"]
        source = source_or_none(text)
        if source is not None and named is not None:
            return loose_sample(value[columns["text"]], key, named, document)
        spans = tuple(Span(*span) for span in found["spans"])
        positive = frozenset(found["label"]) | {span.concept for span in spans}
        return Sample(key, plain(text), document, spans, positive, source=source)


def _require_content(sample: Sample) -> None:
    if sample.image is None and is_blank(sample.text):
        raise ValueError(f"the text is {sample.text[:20]!r}, which nothing is seen of: leave it out")
    if len(sample.text) > MOST_CHARACTERS:
        raise ValueError(
            f"{len(sample.text):,} characters in one document, at most {MOST_CHARACTERS:,} are read: cut it"
        )


def _columns_of(there: Iterable[Any]) -> dict[str, str]:
    """The columns that a row is read by where nobody says them.

    Raises:
        ValueError: None of the usual names is there.
    """
    names = [str(name) for name in there]
    found = next((name for name in _CONTENT if name in names), None)
    if found is None:
        raise ValueError(
            f"none of the columns {', '.join(map(repr, names[:12])) or '(there are none)'} is "
            f"{', '.join(map(repr, _CONTENT))}: say which holds the content, columns={{'text': 'body'}}"
        )
    return {_CONTENT[found]: found, **{name: name for name in ("id", "document") if name in names}}


# Opening ------------------------------------------------------------------------------------------


@face
def open_corpus(
    source: Any,
    *,
    block_size: int = BLOCK_SIZE,
    columns: Mapping[str, str] | None = None,
    lines: bool = False,
    index: Mapping[str, Any] | None = None,
) -> Corpus:
    """Open a corpus: files, folders, data sets, or anything that can be walked. Downloads nothing.

    Files of lines are read once, to know where blocks begin (a core reads about a gigabyte in a few
    seconds); nothing else is read before it is asked for.

    Args:
        source: What the module's table says.
        block_size: Documents of a block, the unit of work: constant for all who share the work.
        columns: Role to column, of rows: "text" or "image", and "id", "document", and labels. By default
            the first of text, messages, input_ids and image that is there, with id and document.
        lines: Whether text files have a document a line.
        index: `corpus.index` of an earlier opening: files that have not changed since are not read.

    Raises:
        FileNotFoundError: There is no such file, or nothing matches the pattern.
        ImportError: Parquet without pyarrow, pictures without Pillow, a saved data set without datasets.
        TypeError: Nothing that can be walked.
        ValueError: A suffix is unknown, a folder holds pictures beside texts, a column is missing, or a
            file cannot be read; the text names it.

    Example:
        >>> corpus = open_corpus(["a cat sat", "a dog ran", ""], block_size=2)
        >>> [document.key for document in corpus.read(0)]
        ['0', '1']
        >>> next(corpus.read(1)).fault
        ValueError("the text is '', which nothing is seen of: leave it out")
    """
    if isinstance(source, Corpus):
        return source
    for role, wanted in (columns or {}).items():
        require_known("role of columns", role, _ROLES)
        text_of(f"columns[{role!r}]", wanted)
    if columns is not None and ("text" in columns) == ("image" in columns):
        raise ValueError(f"columns name {list(columns)}: name one of text and image, and what goes with it.")
    if index is not None and not {"block_size", "files"} <= index.keys():
        raise ValueError(f"index has the keys {list(index)}: give what `index` of such a corpus returned.")
    known = {} if index is None or index["block_size"] != block_size else index["files"]
    paths = _paths_of(source)
    classes: dict[str, Any] = {}
    left_out: dict[str, int] = {}
    if paths is not None and not _is_saved(paths[0]):
        parts, left_out = _parts_of_files(source, paths, block_size, lines, known)
        name = str(source) if isinstance(source, str | Path) else f"{len(paths)} files"
    else:
        rows = source if paths is None else _saved_data(paths[0])
        parts, name = (_part_of_object(rows),), type(source).__name__ if paths is None else str(source)
        if columns is not None:
            classes = {role: classes_of(rows, columns.get(role), None, role) for role in NAMED_ROLES}
    for part in parts:
        _require_columns(part, columns)
    return Corpus(name, parts, block_size, columns, classes or dict.fromkeys(NAMED_ROLES), left_out)


def _require_columns(part: Part, columns: Mapping[str, str] | None) -> None:
    there = part.columns
    if there is None and part.n_rows and not isinstance(part, WholeFiles):
        # Rows that say their columns themselves are taken to have those of the first.
        first = next(part.read(0, 1)).value
        there = tuple(map(str, first)) if isinstance(first, Mapping) else None
    if there is None:
        return
    where = f"{part.name}: " if part.name else ""
    try:
        if columns is None:
            _columns_of(there)
        for role, wanted in (columns or {}).items():
            require_known(f"column of {role}", wanted, there)
    except ValueError as error:
        raise ValueError(f"{where}{str(error).removesuffix('.')}.") from error


def _paths_of(source: Any) -> list[Path] | None:
    """Files and folders that a source names; None where it is an object.

    Raises:
        FileNotFoundError: There is none.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser().absolute()
        if path.exists():
            return [path]
        if glob.has_magic(str(path)):
            found = sorted(Path(one) for one in glob.glob(str(path), recursive=True))
            if found:
                return found
            raise FileNotFoundError(f"nothing matches {source}: give a pattern of files that are there.")
        raise FileNotFoundError(
            f"the corpus {str(source)!r:.200} does not exist: give a file, a folder, a pattern, a data set, "
            "or a list of texts."
        )
    listed = isinstance(source, list | tuple) and source and all(isinstance(one, Path) for one in source)
    if not listed or all(suffix_of(one) in PICTURES for one in source):
        return None
    return sorted(one.absolute() for one in source)


def _is_saved(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in _SAVED)


def _saved_data(path: Path) -> Any:
    found = require("datasets", "corpora", "a saved data set of Hugging Face").load_from_disk(str(path))
    if isinstance(found, Mapping):
        raise ValueError(
            f"{path} holds the splits {', '.join(found)}: name one, such as {path / next(iter(found))}."
        )
    return found


def _parts_of_files(
    source: Any, paths: Sequence[Path], block_size: int, lines: bool, known: Mapping[str, Any]
) -> tuple[tuple[Part, ...], dict[str, int]]:
    alone = len(paths) == 1 and paths[0].is_file()
    root = paths[0].parent if alone else paths[0] if len(paths) == 1 else Path(_common(paths))
    files: list[Path] = []
    for path in paths:
        files += [path] if path.is_file() else [one for one in path.rglob("*") if _is_shown(one, path)]
    named = sorted((one.relative_to(root).as_posix(), one) for one in files)
    by_kind: dict[str, list[tuple[str, Path]]] = {}
    left_out: Counter[str] = Counter()
    for name, path in named:
        kind = _kind_of(path)
        if kind:
            by_kind.setdefault(kind, []).append((name, path))
        else:
            left_out[suffix_of(path) or path.name] += 1
    if len(by_kind) > 1:
        counts = ", ".join(f"{len(found)} of {kind}" for kind, found in by_kind.items())
        raise ValueError(
            f"{source} holds files of several kinds ({counts}): name one of them, such as "
            f"{Path(str(source)) / f'*{suffix_of(named[0][1])}'}."
        )
    if not by_kind:
        _refuse_kinds(source, left_out)
    ((kind, found),) = by_kind.items()
    parts: list[Part] = []
    if kind == "pictures" or (kind == "texts" and not lines):
        if kind == "pictures":
            require("PIL.Image", "images", "reading pictures")
        return (WholeFiles.of(root, [name for name, _ in found]),), dict(left_out)
    first = 0
    for name, path in found:
        if kind == "Parquet":
            part: Part = ParquetRows.of(path, name)
        else:
            reader = TextLines if kind == "texts" else OF_LINES[suffix_of(path)]
            held = reader.from_index(path, name, known[name]) if name in known else None
            part = held or reader.indexed(path, name, first, block_size)
        first += part.n_rows or 0
        parts.append(part)
    return tuple(parts), dict(left_out)


def _common(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all of them."""
    above = [[*reversed(path.parents)] for path in paths]
    shared = [level[0] for level in zip(*above, strict=False) if len(set(level)) == 1]
    return shared[-1] if shared else Path()


def _is_shown(path: Path, root: Path) -> bool:
    """Whether a file is one, and neither it nor a folder on the way is hidden."""
    return path.is_file() and not any(part[0] in "._" for part in path.relative_to(root).parts)


def _kind_of(path: Path) -> str:
    suffix = suffix_of(path)
    if suffix in PICTURES:
        return "pictures"
    if suffix in TEXTS:
        return "texts"
    if suffix in OF_ROWS:
        return "Parquet"
    return suffix if suffix in OF_LINES else ""


def _refuse_kinds(source: Any, found: Mapping[str, int]) -> None:
    known = (*OF_LINES, *OF_ROWS, *TEXTS, *PICTURES)
    if not found:
        raise ValueError(f"{source} holds no files: give a folder of {', '.join(known)}.")
    suffix = next(iter(found))
    fix = " A list in one file is not read piece by piece: write one object a line."
    near = did_you_mean(suffix, known)
    said = f"{source}: {suffix!r} is no kind of corpus{near} Known: {', '.join(known)}."
    raise ValueError(said + (fix if suffix == ".json" else ""))


def _part_of_object(source: Any) -> Part:
    """Anything that is no file.

    Raises:
        TypeError: It cannot be walked, or it is open what its documents are.
    """
    if isinstance(source, ConceptData | Split):
        return Listed(source.samples)
    columns = getattr(source, "column_names", None)
    if columns is not None or hasattr(source, "with_format"):
        rows = unformatted(source)
        names = None if columns is None else tuple(columns)
        return Listed(rows, "", names) if hasattr(rows, "__len__") else Walked(rows, "", names)
    one = isinstance(source, bytes | Sample | Mapping | set | frozenset) or _is_one(source)
    if one or not isinstance(source, Iterable) or hasattr(source, "columns"):
        raise TypeError(
            f"the corpus is of type {type(source).__name__}: give a path, a data set, or a list of texts, "
            "chats, token ids or pictures, such as one column of a table (table['text'].tolist())."
        )
    indexed = isinstance(source, Sequence) or (isinstance(source, np.ndarray) and source.ndim > 0)
    return Listed(source) if indexed else Walked(source)


def _is_one(source: Any) -> bool:
    """Whether this is one chat or one list of token ids, not many documents; rows are mappings too."""
    first = source[0] if isinstance(source, list | tuple) and source else None
    if isinstance(first, Mapping) and not {"role", "content"} <= set(first):
        return False
    return source_of(source) is not None
