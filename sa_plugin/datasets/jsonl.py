"""Labelled texts of a user's own, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sa_plugin.data import ConceptData

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
        documents=column("document"), ids=column("id"), split=column("split"), seed=seed,
        name=path.name,
    )  # fmt: skip


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where}: no JSON in UTF-8 ({error}): write one object a line."
        ) from error
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
