"""Labelled texts of a user's own in a CSV file: one text a row, or one word a row.

| rows | columns | optional columns |
|---|---|---|
| texts | `text`, one 0/1 column a concept | `id`, `document`, `split` |
| words | `sample`, `word`, `label`: a concept, several with `;`, or empty | `document`, `split` |

Rows of texts give sample labels only. Rows of words are joined by single spaces, sample by sample
in order, and label the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sa_plugin.data import ConceptData
from sa_plugin.datasets.tables import Row, read_table

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
        [row["text"] for row in rows], [[] for _ in rows],
        sample_labels=[[c for c in concepts if row.flag(c)] for row in rows],
        concepts=concepts, ids=_column(rows, "id"), documents=_column(rows, "document"),
        split=_column(rows, "split"), seed=seed, name=path.name,
    )  # fmt: skip


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
        ids=list(of_sample), documents=_shared(groups, "document"), split=_shared(groups, "split"),
        seed=seed, name=path.name,
    )  # fmt: skip


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
