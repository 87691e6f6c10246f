"""Words with tags, one a line: the files of CoNLL-2002 and CoNLL-2003 and their kin, and CoNLL-U.

CoNLL, `.conll`, `.iob`, `.bio`: columns by tabs or spaces, the word first (or behind a column that counts the
words), the tag last (`column=`), a blank line after each sentence; `-DOCSTART-` begins a document. The file
does not say its spaces: words are joined by single ones, none between words of a script without
(`spaces_after=False` for no spaces at all).

    EU      NNP  B-NP  B-ORG
    rejects VBZ  B-VP  O

CoNLL-U (universaldependencies.org), `.conllu`: ten columns by tabs. Spacing is the text's own: its line
`# text = ...`, or `SpaceAfter=No`. Several words that are written as one ("2-3 don't") are one word with the
labels of all; empty nodes ("8.1") are left out. `# newdoc` begins a document, `# sent_id` names a sentence.

A sentence is a sample. Tags become the concepts they mean (`sa_plugin.data.tag_concepts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sa_plugin._check import require_known
from sa_plugin._files import as_path
from sa_plugin.data.columns import Column, Given, name_of, whole_of
from sa_plugin.data.columns import column as read_column
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.tags import OUTSIDE, Tags, tag_concepts, tags_of
from sa_plugin.data.words import places_in
from sa_plugin.loaders.files import read_text
from sa_plugin.loaders.own import own_splits

_FIX = "give a file of words with tags, one a line"
_COLUMNS = {"form": 1, "lemma": 2, "upos": 3, "xpos": 4, "feats": 5, "deprel": 7}
_WIDTH = 10


@dataclass
class _Sentence:
    """Words with their tags, and what the lines before them say."""

    document: str | None
    words: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    spaces: list[bool] = field(default_factory=list)
    id: str | None = None
    text: str | None = None
    line: int = 0


def read_conll(
    path: Path | str,
    *,
    split: str | None = None,
    seed: int = 0,
    column: int = -1,
    tags: Given[Tags] = "auto",
    concepts: Column[str] | None = None,
    spaces_after: bool | None = None,
) -> ConceptData:
    """Sentences of a CoNLL file.

    Args:
        path: The file, in UTF-8.
        split: Only "plain": the file says no splits, documents are divided.
        seed: Seed of the division.
        column: Which column holds the tags, from 0; by default the last.
        tags: Their scheme, as in `ConceptData.from_words`; by default told from the whole file.
        concepts: Concepts to read and their order; by default all.
        spaces_after: Whether a space follows every word.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line has another number of columns, or a tag is of no scheme; the text names it.
    """
    path = as_path("path", path)
    column = whole_of("column", column)
    sentences = _with_words(path, list(_conll_sentences(path, column)))
    return _data(path, sentences, split, seed, tags, concepts, spaces_after=spaces_after)


def read_conllu(
    path: Path | str,
    *,
    split: str | None = None,
    seed: int = 0,
    column: str = "upos",
    tags: Given[Tags | None] = None,
    concepts: Column[str] | None = None,
) -> ConceptData:
    """Sentences of a CoNLL-U file.

    Args:
        path: The file, in UTF-8.
        split: Only "plain": the file says no splits, documents are divided.
        seed: Seed of the division.
        column: What labels words: "upos", "xpos", "deprel", "lemma", "form", "feats" (each of them, as
            "Number=Plur"), or a key of MISC, as "misc.NER".
        tags: Their scheme, as in `ConceptData.from_words`; by default names, and told from the whole file
            for a key of MISC.
        concepts: Concepts to read and their order; by default all.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line is not as CoNLL-U has it, a word does not follow in its `# text`, or there is no
            such column; the text names it.
    """
    path = as_path("path", path)
    key = column.removeprefix("misc.") if isinstance(column, str) and column.startswith("misc.") else None
    if key is None:
        require_known("column", column, [*_COLUMNS, "misc.KEY"])
    sentences = list(_conllu_sentences(path, column, key))
    for one in sentences:
        if one.text is not None:
            places_in(f"{path} line {one.line}", one.text, one.words)
    return _data(path, sentences, split, seed, tags or ("auto" if key else "names"), concepts)


def _data(
    path: Path,
    sentences: Sequence[_Sentence],
    split: str | None,
    seed: int,
    tags: Given[Tags],
    concepts: Column[str] | None,
    *,
    spaces_after: bool | None = None,
) -> ConceptData:
    if not sentences:
        raise ValueError(f"{path} has no sentences: {_FIX}.")
    try:
        meant = tag_concepts(
            [tag for one in sentences for row in one.tags for tag in row], tags_of("tags", tags)
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if concepts is not None:
        concepts = read_column("concepts", concepts, name_of)
        seen = sorted({concept for concept in meant.values() if concept})
        for concept in concepts:
            require_known("concept", concept, seen)
        meant = {tag: concept if concept in concepts else None for tag, concept in meant.items()}
    ids = [one.id for one in sentences if one.id is not None]
    documents = [one.document for one in sentences if one.document is not None]
    own_spaces = [one.spaces for one in sentences]
    texts = [one.text for one in sentences]
    spelling: dict[str, Any] = {"spaces_after": spaces_after}
    if any(own_spaces):
        written = [_joined(one) if one.text is None else one.text for one in sentences]
        spelling = {
            "text": written if any(texts) else None,
            "spaces_after": None if any(texts) else own_spaces,
        }
    return ConceptData.from_words(
        [one.words for one in sentences],
        [one.tags for one in sentences],
        concepts=concepts,
        ids=ids if len(set(ids)) == len(sentences) else None,
        documents=documents if len(documents) == len(sentences) else None,
        splits=own_splits(path, split, None, seed),
        name=path.name,
        tags=meant,
        **spelling,
    )


def _joined(one: _Sentence) -> str:
    return "".join(w + " " * space for w, space in zip(one.words, one.spaces, strict=True)).rstrip(" ")


def _conll_sentences(path: Path, column: int) -> Iterator[_Sentence]:
    """Sentences between blank lines.

    Raises:
        ValueError: A line has no tag, or another number of columns than the first.
    """
    lines = [(n, line) for n, line in enumerate(_lines(path), start=1)]
    # Documents have names only where the file begins one.
    documents = 0
    width: int | None = None
    one = _Sentence(None)
    for number, line in [*lines, (len(lines) + 1, "")]:
        fields = [part.strip() for part in line.split("\t")] if "\t" in line.strip() else line.split()
        # A word may be "#": only a line of other columns is a comment.
        comment = line.startswith("#") and len(fields) != width
        if fields and fields[0] == "-DOCSTART-":
            documents += 1
        elif fields and not comment:
            width = width or len(fields)
            _require_width(path, number, line, fields, width, column)
            one.rows.append(fields)
            one.tags.append([fields[column]])
        if (not fields or fields[0] == "-DOCSTART-") and one.rows:
            yield one
        if not fields or fields[0] == "-DOCSTART-":
            one = _Sentence(f"document {documents}" if documents else None)


def _with_words(path: Path, sentences: list[_Sentence]) -> list[_Sentence]:
    """Sentences with their words: the first column, or the second where the first one counts them.

    Raises:
        ValueError: Tags stand where words belong.
    """
    columns = [[row[0] for row in one.rows] for one in sentences]
    counted = all(
        first in ([str(k + start) for k in range(len(first))] for start in (0, 1)) for first in columns
    ) and any(len(first) > 1 for first in columns)
    for one in sentences:
        one.words = [row[counted] for row in one.rows]
    words = [word for one in sentences for word in one.words]
    tags = [word for word in words if word in ("O", "o") or re.fullmatch(r"[BIESLU]-[A-Za-z].*", word)]
    if 2 * len(tags) > len(words):
        raise ValueError(
            f"{path}: {len(tags)} of {len(words)} words are tags, {tags[0]!r} first: the word stands in the "
            "first column, its tag in the last. Put the columns in this order."
        )
    return sentences


def _require_width(path: Path, number: int, line: str, fields: list[str], width: int, column: int) -> None:
    where = f"{path} line {number}"
    if width < 2:
        raise ValueError(f"{where}: {line!r:.60} has no tag: {_FIX}, word and tag by tabs or spaces.")
    if len(fields) != width or not fields[0]:
        raise ValueError(
            f"{where}: {line!r:.60} has {len(fields)} columns, the first line {width}: is a word or a blank "
            "line missing? Where words hold spaces, put tabs between columns."
        )
    if not -width <= column < width:
        raise ValueError(f"column {column} is none of the {width} of {where}: give 0 to {width - 1}.")
    if set("*()") & set(fields[column]) and len(fields[column]) > 1:
        raise ValueError(
            f"{where}: {fields[column]!r} is a bracket of CoNLL-2012, not a tag: give its tags as B- and I-, "
            "or another column."
        )


def _lines(path: Path) -> list[str]:
    # Words may hold the other line ends of splitlines; files of old Macs have returns alone.
    text = read_text(path, _FIX).replace("\r\n", "\n")
    return (text if "\n" in text else text.replace("\r", "\n")).split("\n")


def _conllu_sentences(path: Path, column: str, key: str | None) -> Iterator[_Sentence]:
    """Sentences with the labels of one column, or of one key of MISC.

    Raises:
        ValueError: A line has not ten columns, or words do not count from 1.
    """
    document: str | None = None
    documents = 0
    one, last, until, said = _Sentence(None), 0, 0, {}
    lines = _lines(path)
    for number, line in enumerate([*lines, ""], start=1):
        if line.startswith("#"):
            name, _, value = line[1:].partition("=")
            said[name.strip()] = value.strip()
            if name.strip().split(" ")[0] == "newdoc":
                documents += 1
                document = value.strip() or f"document {documents}"
            if name.strip() == "text":
                one.line = number
            continue
        if not line.strip():
            if one.words:
                one.document, one.id, one.text = document, said.get("sent_id") or None, said.get("text")
                yield one
            one, last, until, said = _Sentence(document), 0, 0, {}
            continue
        fields = line.split("\t")
        where = f"{path} line {number}"
        if len(fields) != _WIDTH:
            raise ValueError(f"{where}: {len(fields)} columns by tabs, CoNLL-U has {_WIDTH}: {line!r:.60}.")
        first, dash, end = fields[0].partition("-")
        if "." in fields[0]:
            continue
        if not first.isdecimal() or (dash and not end.isdecimal()) or int(first) != last + 1:
            raise ValueError(f"{where}: word {fields[0]!r} follows {last}: words count from 1, one by one.")
        if dash:
            until = int(end)
        last += not dash
        tags = [] if dash else _tags_of(fields, column, key)
        if dash or last > until:
            one.words.append(fields[1].strip())
            one.tags.append(tags)
            one.spaces.append("SpaceAfter=No" not in fields[9].split("|"))
        else:
            # A word of several that are written as one: its labels are theirs.
            one.tags[-1] = list(dict.fromkeys([*one.tags[-1], *tags]))


def _tags_of(fields: Sequence[str], column: str, key: str | None) -> list[str]:
    if key is not None:
        misc: Mapping[str, str] = dict(part.partition("=")[::2] for part in fields[9].split("|"))
        found = [misc.get(key, "O")]
    elif column == "feats":
        found = fields[5].split("|")
    else:
        found = [fields[_COLUMNS[column]]]
    return [one for one in found if key is not None or one not in OUTSIDE]
