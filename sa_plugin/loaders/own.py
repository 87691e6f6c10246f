"""A user's own labelled data: a JSONL or CSV file, or a dataset in memory.

JSONL, one text a line, labelled by words or as a whole:

    {"text": "a cat sat", "labels": [[2, 5, "animal"]], "document": "book 1"}
    {"text": "it purrs", "labels": ["animal"], "document": "book 2"}

CSV, told apart by the column `word`:

| rows | columns | optional columns |
|---|---|---|
| texts | `text`, and one 0/1 column a concept, or a column `label` of concepts | `id`, `document`, `split` |
| words | `sample`, `word`, `label` | `document`, `split`, `space_after` (0/1) |

Rows of texts give sample labels; what their tokens are taken for, `token_labels` says, as in
`ConceptData.from_texts`: unknown unless it is given. A label may be several concepts, with `;`, or empty,
in rows of texts and of words alike. Rows of words are joined by single spaces, or as `space_after` says,
sample by sample in order, and label the words; a word may hold spaces.

A dataset is anything that iterates over dicts and has `column_names`, such as those of Hugging Face, whole
or streamed, whatever their format (numpy, torch); `datasets` is not imported. `features[column].names` (or
`features[column].feature.names`) turn class numbers into concepts. A mapping of datasets, such as
{"train": ..., "validation": ..., "test": ...}, is divided as it is given.

| columns named | labels |
|---|---|
| `text`, `spans` | [start, end, concept], or {"start", "end", "label"} of numbers or of lists |
| `tokens`, `tags` | one tag a word, of the scheme that the whole column has (`sa_plugin.data.tag_concepts`) |
| `image`, `mask` | {concept: mask}, or one plane of class numbers, or of 0 and 255 |
| `text`, `label` | sample labels: a class, or several; beside `spans`, `tokens` or `image` too |

The rows of a CSV or JSONL file are such a dataset where `columns` is given (`rows_of_file`). There several
labels of a text stand in one cell, with `;`, and pictures and masks are paths from the file's folder.

A `text` may be a chat, a list of messages, or token ids, as in `ConceptData.from_texts`.

Beside `tokens`, `text` is the text that they are of, or `spaces_after` says whether a space follows each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sa_plugin._check import did_you_mean, require_known
from sa_plugin._files import as_path
from sa_plugin.data.build import TokenLabels, said_of_tokens, span_samples, whole_spans
from sa_plugin.data.columns import Column, Given, name_of, shown, text_of
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.given import plain
from sa_plugin.data.sample import ALL_SPLITS
from sa_plugin.data.splits import Splits, split_of
from sa_plugin.data.tags import Tags
from sa_plugin.data.words import other_units, warn_of_cut_words
from sa_plugin.loaders.annotated import recipe, tool_of_row
from sa_plugin.loaders.files import TableRow, parse_json, read_table, require_path
from sa_plugin.loaders.parts import CsvRows, JsonLines
from sa_plugin.loaders.rows import (
    NAMED_ROLES,
    dataset_rows,
    kind_of_columns,
    masks_of_rows,
    meaning_of_tags,
    of_role,
)

_LINE_KEYS = ("text", "labels", "id", "document", "split")
_NO_CONCEPT = ("text", "id", "document", "split")


def read_jsonl(
    path: Path | str, *, split: str | None = None, seed: int = 0, token_labels: TokenLabels = None
) -> ConceptData:
    """Labelled texts, one JSON object a line.

    Args:
        path: Each line has `text`, `labels` as `[[start, end, concept], ...]` in characters or as
            names of concepts, and optionally `id`, `document` and `split`.
        split: As in `read_csv`.
        seed: Seed of the division, where the lines' `split` is not taken.
        token_labels: As in `read_csv`, for lines that are labelled by names.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line is no object with `text` and `labels`, or one of its values is wrong;
            the text names the line.
    """
    path = as_path("path", path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: give a JSONL file of labelled texts.")
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    # Lines end at a newline alone: JSON strings may hold the other characters of splitlines.
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            rows.append(_line(line, f"{path} line {number}"))
            lines.append(number)
    if not rows:
        raise ValueError(f"{path} has no lines: write one object with 'text' and 'labels' a line.")

    def column(name: str) -> list[str] | None:
        without = [line for line, row in zip(lines, rows, strict=True) if name not in row]
        if without and len(without) < len(rows):
            raise ValueError(
                f"{path} line {without[0]}: {name!r} is missing, other lines have it: give it on "
                "every line or on none."
            )
        return None if without else [str(row[name]) for row in rows]

    names = [[one for one in row["labels"] if isinstance(one, str)] for row in rows]
    spans = [[(*one[:2], one[2]) for one in row["labels"] if not isinstance(one, str)] for row in rows]
    return texts_with_spans(
        [row["text"] for row in rows],
        spans,
        names,
        token_labels,
        documents=column("document"),
        ids=column("id"),
        splits=own_splits(path, split, column("split"), seed),
        name=path.name,
    )


def texts_with_spans(
    texts: Sequence[Any],
    spans: Sequence[Iterable[tuple[int, int, str]]],
    labels: Sequence[Sequence[str]],
    token_labels: TokenLabels,
    *,
    documents: Sequence[str] | None,
    ids: Sequence[str] | None,
    splits: Splits,
    name: str,
    concepts: Sequence[str] | None = None,
) -> ConceptData:
    """Texts with labelled spans, and with labels of the whole text where they have no span of a concept."""
    marked = [{concept for _, _, concept in row} for row in spans]
    whole = [[c for c in row if c not in own] for row, own in zip(labels, marked, strict=True)]
    found = whole_spans([plain(text) for text in texts], whole, token_labels)
    every = [[*row, *more] for row, more in zip(spans, found, strict=True)]
    samples = span_samples(texts, every, documents=documents, sample_labels=labels, ids=ids)
    said = said_of_tokens(token_labels)
    data = ConceptData.from_samples(samples, concepts, splits, name=name, token_labels=said)
    warn_of_cut_words(samples)
    return data


def _line(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line.decode("utf-8"), once=True)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON in UTF-8 ({error}): write one object a line.") from error
    found: dict[str, Any] = row if isinstance(row, dict) else {}
    lacking = [key for key in ("text", "labels") if key not in found]
    if lacking:
        near = did_you_mean(lacking[0], found) if found else ""
        tool = tool_of_row(found)
        if tool is not None:
            raise ValueError(f"{where}: no object with 'text' and 'labels'; {recipe(tool)}")
        raise ValueError(
            f"{where}: expected an object with 'text' and 'labels' ([[start, end, concept], ...], or names)"
            f"{near and f', {lacking[0]!r} is missing'}{near or '.'} Other names: columns={{'text': ..., "
            "'spans': ... (or 'label')}."
        )
    unknown = sorted(found.keys() - set(_LINE_KEYS))
    if unknown:
        raise ValueError(
            f"{where}: key {unknown[0]!r} is unknown; known: {', '.join(_LINE_KEYS)}. "
            "To leave keys aside say which are read: columns={'text': 'text', 'spans': 'labels'}."
        )
    wrong = _line_problem(found)
    if wrong:
        raise ValueError(f"{where}: {wrong}")
    return found


def _line_problem(row: dict[str, Any]) -> str | None:
    """What is wrong with the values of a line, if anything."""
    text, labels = row["text"], row["labels"]
    if not isinstance(text, str) or not text.strip():
        return f"'text' is {text!r:.60}: expected a string that is not empty."
    if not isinstance(labels, list):
        return f"'labels' is {labels!r:.60}: expected [[start, end, concept], ...] or names, [] for none."
    try:
        text_of("'text'", text)
        for label in labels:
            if isinstance(label, str):
                name_of("a label", label)
    except ValueError as error:
        return str(error)
    for label in labels:
        if isinstance(label, str):
            continue
        if not isinstance(label, list) or [type(part) for part in label] != [int, int, str]:
            return (
                f"label {label!r:.60} is not [start, end, concept], two integers and a string, nor a name: "
                "'labels' is a list of such lists or of names."
            )
        start, end, _ = label
        if not 0 <= start < end <= len(text):
            return (
                f"label {label!r:.60} does not lie in a text of {len(text)} characters: spans are "
                f"[start, end) in characters.{other_units(text, start, end)}"
            )
        if not text[start:end].strip():
            return f"label {label!r:.60} covers only white space: is it aligned with the text?"
    for name in ("id", "document", "split"):
        if name in row and type(row[name]) not in (str, int):
            return f"{name!r} is {row[name]!r:.60}: expected a string or an integer."
        if not str(row.get(name, name)).strip():
            return f"{name!r} is empty: give it on every line, or leave the key out."
    return None


def read_csv(
    path: Path | str, *, split: str | None = None, seed: int = 0, token_labels: TokenLabels = None
) -> ConceptData:
    """Data from a CSV file of texts or of words, told apart by the column `word`.

    Args:
        path: The file, in UTF-8, with a header.
        split: "published" takes the file's own splits, "plain" divides documents anew; by default
            the file's own where it has them.
        seed: Seed of the division, where the column `split` is not taken.
        token_labels: For rows of texts: what their tokens are taken for, as in `ConceptData.from_texts`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A column is missing or a value is wrong; the text names file and line.
    """
    path = as_path("path", path)
    rows = read_table(path, fix="give a CSV file of labelled texts")
    if "" in rows[0].values:
        raise ValueError(
            f"{path} line 1: column {list(rows[0].values).index('') + 1} has no name. Is it the index of a "
            "table? Leave it out (to_csv(index=False)), or name it 'id'."
        )
    if "word" in rows[0].values:
        if token_labels is not None:
            raise ValueError(f"{path} has one word a row, which labels its tokens: leave token_labels out.")
        return _words_of_rows(path, rows, split, seed)
    if "text" not in rows[0].values:
        raise ValueError(
            f"{path} line 1: neither 'text' nor 'word' is a column{did_you_mean('text', rows[0].values)} "
            "Give one text a row, or one word a row, or say which column is what, such as "
            f"columns={{'text': {next(iter(rows[0].values))!r}, 'label': ...}}. "
            f"Found: {', '.join(map(repr, rows[0].values))}."
        )
    for row in rows:
        if not row["text"].strip():
            raise row.refusal("'text' is empty: give a text or leave the row out.")
    flags = [column for column in rows[0].values if column not in _NO_CONCEPT]
    if "label" in flags and not any(row.is_flag("label") for row in rows):
        flags.remove("label")
        labels = [_row_labels(row) + [c for c in flags if row.flag(c)] for row in rows]
        concepts = None
    else:
        for row in rows if "label" in flags else ():
            if row["label"].strip().isdigit() and not row.is_flag("label"):
                raise row.refusal(
                    f"'label' is {row['label']!r:.40}, the number of a class: write the names of concepts, "
                    "or one 0/1 column a concept."
                )
        for column in flags:
            if not any(row.is_flag(column) for row in rows):
                one = next((row for row in rows if row[column].strip()), rows[0])
                raise one.refusal(
                    f"{column!r} is {one[column]!r:.40}: expected 0 or 1; call a column of names "
                    "'label', or say which columns count: columns={'text': 'text', 'label': ...}."
                )
        labels, concepts = [[c for c in flags if row.flag(c)] for row in rows], flags
    return texts_with_spans(
        [row["text"] for row in rows],
        [[] for _ in rows],
        labels,
        token_labels,
        documents=_column(rows, "document"),
        ids=_column(rows, "id"),
        splits=own_splits(path, split, _column(rows, "split"), seed),
        name=path.name,
        concepts=concepts,
    )


def _words_of_rows(path: Path, rows: Sequence[TableRow], split: str | None, seed: int) -> ConceptData:
    for needed in ("sample", "label"):
        if needed not in rows[0].values:
            raise ValueError(f"{path} line 1: column {needed!r} is missing beside 'word'.")
    of_sample: dict[str, list[TableRow]] = {}
    for row, before in zip(rows, [rows[0], *rows[:-1]], strict=True):
        if not row["word"] or row["word"] != row["word"].strip():
            raise row.refusal(f"word {row['word']!r} is empty or has white space around it.")
        if not row["sample"].strip():
            raise row.refusal("'sample' is empty: say which sample the word is of.")
        if row["sample"] in of_sample and before["sample"] != row["sample"]:
            raise row.refusal(f"sample {row['sample']!r} goes on after another one: sort the rows.")
        of_sample.setdefault(row["sample"], []).append(row)
    groups = list(of_sample.values())
    spaced = "space_after" in rows[0].values
    spaces = [[row.flag("space_after") for row in group] for group in groups] if spaced else None
    return ConceptData.from_words(
        [[row["word"] for row in group] for group in groups],
        [[_row_labels(row) for row in group] for group in groups],
        spaces_after=spaces,
        ids=list(of_sample),
        documents=_shared(groups, "document"),
        splits=own_splits(path, split, _shared(groups, "split"), seed),
        name=path.name,
    )


def _row_labels(row: TableRow) -> list[str]:
    return [label.strip() for label in row["label"].split(";") if label.strip()]


def _column(rows: Sequence[TableRow], name: str) -> list[str] | None:
    if name not in rows[0].values:
        return None
    for row in rows:
        # Rows without a document would all be of one, and fall into one split.
        if not row[name].strip():
            raise row.refusal(f"{name!r} is empty: fill it in every row, or leave the column out.")
    return [row[name] for row in rows]


def _shared(groups: Sequence[Sequence[TableRow]], name: str) -> list[str] | None:
    """The one value that the words of each sample have."""
    if _column([row for group in groups for row in group], name) is None:
        return None
    for group in groups:
        for row in group:
            if row[name] != group[0][name]:
                raise row.refusal(
                    f"{name} {row[name]!r}, but line {group[0].line} of the same sample has "
                    f"{group[0][name]!r}."
                )
    return [group[0][name] for group in groups]


def from_dataset(
    dataset: Any,
    columns: Given[Mapping[str, str]],
    *,
    names: Given[Mapping[str, Sequence[str] | Mapping[int, str | None]] | None] = None,
    concepts: Column[str] | None = None,
    split: str | None = None,
    seed: int = 0,
    name: str = "dataset",
    token_labels: TokenLabels = None,
    tags: Given[Tags] = "auto",
) -> ConceptData:
    """Data from a dataset's columns.

    Args:
        dataset: Rows as dicts, with `column_names` (None where it is streamed); or a mapping of split to
            such. A stream is read once, to its end: take what you need, `dataset.take(n)`.
        columns: Role to column: one of `text`, `tokens` or `image`, its labels (`spans`, `tags`,
            `mask`), and optionally `label`, `document` and `id`; beside `tokens` their `text`, or
            `spaces_after`.
        names: Role to names of class numbers, where `features` has none: a list, or {number: name}; for
            `tags`, `label`, `spans` and `mask`. There number 0 is usually the background and 255 void: name
            them "", as {0: "", 1: "tool", 255: ""}. Void pixels are unknown, neither tool nor background.
        concepts: Concepts and their order; by default those seen, sorted.
        split: As in `read_csv`; the splits are those of a mapping.
        seed: Seed of the division of a single dataset.
        name: Of the data set.
        token_labels: For `text` with `label`: what the tokens are taken for, as in
            `ConceptData.from_texts`.
        tags: The scheme of the tags, as in `ConceptData.from_words`; by default told from the column.

    Raises:
        TypeError: Not a dataset by these rules.
        ValueError: A role, column or split is unknown, or a value is wrong; the text names the row.

    Example:
        >>> rows = [{"words": ["a", "cat"], "tags": ["O", "B-animal"]}] * 10
        >>> rows = rows + [{"words": ["we", "sang"], "tags": ["O", "O"]}] * 10
        >>> class Rows(list):
        ...     column_names = ["words", "tags"]
        >>> from_dataset(Rows(rows), {"tokens": "words", "tags": "tags"}).concepts
        ('animal',)
    """
    kind = kind_of_columns(columns)
    parts = dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"names is {shown(names)}, not a mapping: give {{role: [name, ...]}}.")
    for role in names or {}:
        require_known("role of names", text_of("a role of names", role), NAMED_ROLES)
    rows: list[dict[str, Any]] = []
    homes: list[str] = []
    for part, one in parts.items():
        if part != "":
            require_known("split", split_of("a split of the dataset", part), ALL_SPLITS)
        found = list(dataset_rows(one, part, columns, names or {}))
        rows += found
        homes += [split_of("a split of the dataset", part)] * len(found) if part else []
    shared: dict[str, Any] = {
        "concepts": concepts,
        "documents": of_role(rows, "document"),
        "ids": of_role(rows, "id"),
        "splits": own_splits(name, split, homes or None, seed),
        "name": name,
    }
    labels = [row["label"] for row in rows]
    if kind == "text":
        spans = [row["spans"] for row in rows]
        return texts_with_spans([row["text"] for row in rows], spans, labels, token_labels, **shared)
    if token_labels is not None:
        raise ValueError(f"token_labels is for texts labelled as a whole, not for {kind}: leave it out.")
    if kind == "tokens":
        return ConceptData.from_words(
            [row["tokens"] for row in rows],
            [row["tags"] for row in rows],
            sample_labels=labels,
            text=of_role(rows, "text"),
            spaces_after=of_role(rows, "spaces_after"),
            tags=meaning_of_tags(rows, tags),
            **shared,
        )
    images = [row["image"] for row in rows]
    return ConceptData.from_masks(images, masks_of_rows(rows), sample_labels=labels, **shared)


class FileRows(list[dict[str, Any]]):
    """Rows of a file, as a dataset has them.

    Attributes:
        column_names: Of the header; None where each row says its own.
        places: File and line of each row.
    """

    column_names: list[str] | None = None
    places: Sequence[str] = ()


def rows_of_file(path: Path, columns: Mapping[str, str], names: Mapping[str, Any] | None = None) -> FileRows:
    """The rows of a CSV or JSONL file for `from_dataset`.

    Args:
        path: The file, in UTF-8.
        columns: Role to column; other columns are left aside.
        names: As in `from_dataset`: of these roles a cell may hold the number of a class.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line cannot be read; the text names it.
    """
    require_path(path, "give a CSV or JSONL file of labelled samples")
    kind = CsvRows if path.suffix.lower() == ".csv" else JsonLines
    part = kind.indexed(path, path.name, 0, 1 << 30)
    read = list(part.read(0, part.n_rows))
    if not read:
        raise ValueError(f"{path} has no rows.")
    for where, value in read:
        if isinstance(value, Exception):
            raise ValueError(f"{where}: {value}.") from value
    found = FileRows(dict(value) for _, value in read)
    found.column_names = None if part.columns is None else list(part.columns)
    found.places = [where for where, _ in read]
    for role, column in columns.items():
        for row in found:
            cell = row.get(column)
            if isinstance(cell, str):
                row[column] = _cell(
                    cell, role, path, numbered=role in (names or {}), of_table=kind is CsvRows
                )
    return found


def _cell(cell: str, role: str, path: Path, *, numbered: bool, of_table: bool) -> Any:
    """What a text in a file is to its role."""
    if role in ("image", "mask"):
        return path.parent / cell if cell.strip() else None
    if role != "label" or not of_table:
        return cell
    parts = [one.strip() for one in cell.split(";") if one.strip()]
    return [int(one) if numbered and one.isdecimal() else one for one in parts]


def own_splits(name: object, split: str | None, of: Sequence[str] | None, seed: int) -> Splits:
    """The file's own splits or a division of documents, as `split` of `read_csv` says."""
    if split is not None:
        require_known("split", split, ("plain", "published"))
    if split == "published" and of is None:
        raise ValueError(
            f"{name} says no split of its samples: give each its 'split' (train, cal or test), or use "
            "split='plain', which divides by document."
        )
    return Splits(None if split == "plain" else of, seed=seed)
