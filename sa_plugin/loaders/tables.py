"""Reading tables, JSON and pictures of a user's copy; every refusal names the file and the line.

Labelled texts of a user's own in a CSV file: one text a row, or one word a row.

| rows | columns | optional columns |
|---|---|---|
| texts | `text`, one 0/1 column a concept | `id`, `document`, `split` |
| words | `sample`, `word`, `label`: a concept, several with `;`, or empty | `document`, `split` |

Rows of texts give sample labels only. Rows of words are joined by single spaces, sample by sample
in order, and label the words.

Labelled texts of a user's own, one JSON object a line.

What loaders share: which concepts and rows are read, and how published parts become splits.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from sa_plugin._check import did_you_mean, require, require_known
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.data.splits import Splits

FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "": False}


@dataclass(frozen=True)
class Row:
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
        if value not in FLAGS:
            raise self.refusal(f"{column!r} is {self.values[column]!r:.40}: expected 0 or 1.")
        return FLAGS[value]

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
) -> list[Row]:
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
                rows.append(Row(path, start, dict(zip(header, fields, strict=True))))
            start = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path} line {start}: no CSV ({error}).") from error
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def _require_columns(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
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


def read_json(path: Path, keys: Sequence[str], fix: str = "") -> dict[str, Any]:
    """An object of a JSON file, which has all of `keys`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No JSON, no object, or a key is missing.
    """
    try:
        found = json.loads(read_text(path, fix))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {error.lineno}: no JSON ({error.msg}).") from error
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise ValueError(f"{path}: key {missing[0]!r} is missing: expected an object with {', '.join(keys)}.")
    return dict(found)


def require_path(path: Path, fix: str) -> Path:
    """The path itself, when there is something.

    Raises:
        FileNotFoundError: There is not.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist{f': {fix}' if fix else ''}.")
    return path


def read_picture(path: Path, fix: str = "") -> UInt8[np.ndarray, "height width 3"]:
    """A picture's pixels as RGB, grey and palette converted, alpha left out.

    Raises:
        FileNotFoundError: No such file.
        ImportError: Pillow is not installed.
        ValueError: No picture.
    """
    pillow = require("PIL.Image", "images", "reading pictures")
    require_path(path, fix)
    try:
        with pillow.open(path) as opened:
            return np.array(opened.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: no picture that Pillow can read ({error}).") from error


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


KEPT = ("text", "id", "document", "split")


def read_csv(path: Path | str, *, seed: int = 0) -> ConceptData:
    """Data from a CSV file of texts or of words, told apart by the column `word`.

    Args:
        path: The file, in UTF-8, with a header.
        seed: Seed of the division, when there is no column `split`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A column is missing or a value is wrong; the text names file and line.
    """
    path = Path(path)
    rows = read_table(path, fix="give a CSV file of labelled texts")
    if "word" in rows[0].values:
        return _from_words(path, rows, seed)
    if "text" not in rows[0].values:
        raise ValueError(
            f"{path} line 1: neither 'text' nor 'word' is a column: give one text a row, or one "
            f"word a row. Found: {', '.join(map(repr, rows[0].values))}."
        )
    concepts = [column for column in rows[0].values if column not in KEPT]
    for row in rows:
        if not row["text"].strip():
            raise row.refusal("'text' is empty: give a text or leave the row out.")
    return ConceptData.from_spans(
        [row["text"] for row in rows],
        [[] for _ in rows],
        sample_labels=[[c for c in concepts if row.flag(c)] for row in rows],
        concepts=concepts,
        ids=_column(rows, "id"),
        documents=_column(rows, "document"),
        splits=Splits(of=_column(rows, "split"), seed=seed),
        name=path.name,
    )


def _from_words(path: Path, rows: Sequence[Row], seed: int) -> ConceptData:
    for needed in ("sample", "label"):
        if needed not in rows[0].values:
            raise ValueError(f"{path} line 1: column {needed!r} is missing beside 'word'.")
    of_sample: dict[str, list[Row]] = {}
    for row, before in zip(rows, [rows[0], *rows[:-1]], strict=True):
        if not row["word"] or any(character.isspace() for character in row["word"]):
            raise row.refusal(f"word {row['word']!r} is empty or holds white space.")
        if row["sample"] in of_sample and before["sample"] != row["sample"]:
            raise row.refusal(f"sample {row['sample']!r} goes on after another one: sort the rows.")
        of_sample.setdefault(row["sample"], []).append(row)
    groups = list(of_sample.values())
    return ConceptData.from_words(
        [[row["word"] for row in group] for group in groups],
        [[_labels(row) for row in group] for group in groups],
        ids=list(of_sample),
        documents=_shared(groups, "document"),
        splits=Splits(of=_shared(groups, "split"), seed=seed),
        name=path.name,
    )


def _labels(row: Row) -> list[str]:
    return [label.strip() for label in row["label"].split(";") if label.strip()]


def _column(rows: Sequence[Row], name: str) -> list[str] | None:
    if name not in rows[0].values:
        return None
    for row in rows:
        # Rows without a document would all be of one, and fall into one split.
        if not row[name].strip():
            raise row.refusal(f"{name!r} is empty: fill it in every row, or leave the column out.")
    return [row[name] for row in rows]


def _shared(groups: Sequence[Sequence[Row]], name: str) -> list[str] | None:
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


KEYS = ("text", "labels", "id", "document", "split")


def read_jsonl(path: Path | str, *, seed: int = 0) -> ConceptData:
    """Labelled texts, one JSON object a line.

    Args:
        path: Each line has `text`, `labels` as `[[start, end, concept], ...]` in characters, and
            optionally `id`, `document` and `split`.
        seed: Seed of the division, when no line has a `split`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line is no object with `text` and `labels`, or one of its values is wrong;
            the text names the line.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: give a JSONL file of labelled texts.")
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    # Lines end at a newline alone: JSON strings may hold the other characters of splitlines.
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            rows.append(_row(line, f"{path} line {number}"))
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

    return ConceptData.from_spans(
        [row["text"] for row in rows],
        [[(start, end, concept) for start, end, concept in row["labels"]] for row in rows],
        documents=column("document"),
        ids=column("id"),
        splits=Splits(of=column("split"), seed=seed),
        name=path.name,
    )


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: no JSON in UTF-8 ({error}): write one object a line.") from error
    if not isinstance(row, dict) or not {"text", "labels"} <= row.keys():
        raise ValueError(
            f"{where}: expected an object with 'text' and 'labels' ([[start, end, concept], ...])."
        )
    unknown = sorted(row.keys() - set(KEYS))
    if unknown:
        raise ValueError(f"{where}: key {unknown[0]!r} is unknown; known: {', '.join(KEYS)}.")
    wrong = line_problem(row)
    if wrong:
        raise ValueError(f"{where}: {wrong}")
    return row


def line_problem(row: dict[str, Any]) -> str | None:
    """What is wrong with the values of a line, if anything."""
    text, labels = row["text"], row["labels"]
    if not isinstance(text, str) or not text.strip():
        return f"'text' is {text!r:.60}: expected a string that is not empty."
    if not isinstance(labels, list):
        return f"'labels' is {labels!r:.60}: expected [[start, end, concept], ...], [] for none."
    for label in labels:
        if not isinstance(label, list) or [type(part) for part in label] != [int, int, str]:
            return (
                f"label {label!r:.60} is not [start, end, concept], two integers and a string: "
                "'labels' is a list of such lists."
            )
        start, end, _ = label
        if not 0 <= start < end <= len(text):
            return (
                f"label {label!r:.60} does not lie in a text of {len(text)} characters: spans are "
                "[start, end) in characters."
            )
        if not text[start:end].strip():
            return f"label {label!r:.60} covers only white space: is it aligned with the text?"
    for name in ("id", "document", "split"):
        if name in row and type(row[name]) not in (str, int):
            return f"{name!r} is {row[name]!r:.60}: expected a string or an integer."
        if not str(row.get(name, name)).strip():
            return f"{name!r} is empty: give it on every line, or leave the key out."
    return None


CAL_SHARE = 0.25
NAMED = 6


def wanted_concepts(
    asked: Sequence[str] | str | None,
    default: Sequence[str],
    available: Collection[str],
    skipped: Counter[str],
) -> tuple[str, ...]:
    """Concepts to read, in order.

    Args:
        asked: Names; "all" for every available one; None for the default.
        default: Names to read when none are asked for; those that are not available are left out.
        available: What the files have.
        skipped: Counts default names that are not available.

    Raises:
        ValueError: A name asked for is not available.
    """
    if isinstance(asked, str) and asked != "all":
        raise ValueError(f"concepts is the string {asked!r}: give a list of names, or 'all'.")
    if asked == "all":
        return tuple(available)
    for name in asked or ():
        require_known("concept", name, available)
    if asked:
        return tuple(asked)
    found = tuple(name for name in default if name in available)
    if len(found) < len(default):
        skipped["concepts of the paper that the files lack"] += len(default) - len(found)
    return found


def drawn(n: int, limit: int | None, seed: int, skipped: Counter[str], what: str = "samples") -> list[int]:
    """Which of `n` rows are read: all, or `limit` of them drawn by `seed`, in order.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} must be 1 or more, or None for every sample.")
    if limit is None or limit >= n:
        return list(range(n))
    skipped[f"{what} beyond limit={limit}"] += n - limit
    rng = np.random.default_rng(seed)
    return sorted(int(k) for k in rng.permutation(n)[:limit])


def assemble(
    samples: Sequence[Sample],
    concepts: Sequence[str],
    *,
    asked: Sequence[str] | str | None,
    parts: Sequence[str] | None,
    split: str,
    seed: int,
    name: str,
    skipped: Counter[str],
) -> ConceptData:
    """Data from a loader's samples.

    Args:
        samples: What was read.
        concepts: Wanted concepts. Those without a positive sample are left out and counted, unless
            the user named them: then they are an error.
        asked: What the user gave for `concepts`.
        parts: "train", "cal" or "test" of each sample by the files; None when they say nothing.
        split: "plain" or "published".
        seed: Seed of the division.
        name: Of the data set.
        skipped: What was left out so far.

    Raises:
        ValueError: "published" was asked for, but the files have no parts, or no train or test
            part; and what `ConceptData` raises.
    """
    found = {concept for sample in samples for concept in sample.positive}
    named = asked is not None and asked != "all"
    kept = [c for c in concepts if named or c in found]
    empty = [c for c in concepts if c not in kept]
    if empty:
        names = ", ".join(empty[:NAMED]) + (", ..." if len(empty) > NAMED else "")
        skipped[f"concepts without a sample ({names})"] += len(empty)
    if not samples or not kept:
        raise ValueError(
            f"data set {name!r}: nothing to learn from in {len(samples)} samples that were read "
            f"(skipped: {dict(skipped)}; wanted: {', '.join(concepts[:8]) or 'no concept'})."
        )
    published = None if split == "plain" else published_split(samples, parts, seed, name)
    return ConceptData.from_samples(
        samples, kept, Splits(published, seed=seed), name=f"{name}/{split}", skipped=skipped
    )


def published_split(
    samples: Sequence[Sample], parts: Sequence[str] | None, seed: int, name: str
) -> list[str]:
    """The files' parts as splits; without a calibration part, a quarter of train is drawn for it.

    It is drawn by document and `seed`.

    Raises:
        ValueError: The files have no parts, or no train or test part.
    """
    lacking = [part for part in ("train", "test") if part not in (parts or ())]
    if parts is None or lacking:
        raise ValueError(
            f"data set {name!r} has no published {lacking[0]} part in what was read: use "
            "split='plain', which divides by document."
        )
    if "cal" in parts:
        return list(parts)
    train = sorted({s.document for s, p in zip(samples, parts, strict=True) if p == "train"})
    rng = np.random.default_rng(seed)
    cal = {train[int(k)] for k in rng.permutation(len(train))[: round(CAL_SHARE * len(train))]}
    return [
        "cal" if part == "train" and sample.document in cal else part
        for sample, part in zip(samples, parts, strict=True)
    ]


def one_document_a_text(texts: Sequence[str], ids: Sequence[str]) -> list[str]:
    """A document for each text, repeated texts sharing the first one's id.

    Otherwise one text could lie in two splits.
    """
    first: dict[str, str] = {}
    return [first.setdefault(text, id_) for text, id_ in zip(texts, ids, strict=True)]
