"""Texts in the format of the authors' code: metadata.csv, paragraph labels and word labels.

| file | columns |
|---|---|
| metadata.csv | `text_path` (a file with the text), `split`; one row a paragraph |
| paragraph_level_*.csv | `paragraph_id` (from 1), one 0/1 column a concept; perhaps `text` |
| word_level_*.csv | `paragraph_id`, `word`, one 0/1 column a concept; one row a word, in order |

The sample label is the paragraph's; a paragraph may be positive with no positive word. The word
labels belong to the words of the text (runs of characters that are not white space) by their order
alone. The authors' code takes that on trust; here every word is compared with the text, punctuation
around it aside, and the first that differs is an error: one lost word would shift all that follow.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from sa_plugin.data import ConceptData
from sa_plugin.datasets.authors_images import metadata_split
from sa_plugin.datasets.parts import assemble, one_document_a_text, wanted_concepts
from sa_plugin.datasets.tables import Row, read_table, read_text
from sa_plugin.make_samples import span_samples

NO_CONCEPT = ("paragraph_id", "word", "text", "text_path", "split", "sentiment_label", "")
AROUND = string.punctuation + "“”‘’«»…–—"
LAYOUT = "give the folder that holds metadata.csv, paragraph_level_*.csv and word_level_*.csv"


def load_text_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    name: str,
    default: Sequence[str],
    concepts: Sequence[str] | str | None = None,
) -> ConceptData:
    """Paragraphs with word labels.

    Args:
        root: Holds the three files and the texts.
        split: "published" takes the column `split`; "plain" divides anew. Repeated texts share a
            document.
        seed: Of the division.
        name: Of the data set.
        default: The paper's concepts.
        concepts: Columns of the paragraph file; by default `default`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row is not as expected or a word is not the text's; the text names file and
            line.
    """
    skipped: Counter[str] = Counter()
    rows = read_table(root / "metadata.csv", ["split"], fix=LAYOUT)
    paragraphs = _paragraphs(root, rows)
    columns = [c for c in paragraphs[0].values if c not in NO_CONCEPT]
    wanted = wanted_concepts(concepts, default, columns, skipped)
    texts = [_text(root, *pair) for pair in zip(rows, paragraphs, strict=True)]
    words = _words(root, len(rows), wanted)
    labels = [[c for c in wanted if row.flag(c)] for row in paragraphs]
    spans = []
    for k, text in enumerate(texts):
        if not words[k + 1]:
            skipped["paragraphs without word labels (kept)"] += 1
        found = word_label_spans(text, words[k + 1], wanted)
        kept = [span for span in found if span[2] in labels[k]]
        skipped["labelled words of concepts that their paragraph lacks"] += len(found) - len(kept)
        spans.append(kept)
    ids = [row["paragraph_id"] for row in paragraphs]
    documents = one_document_a_text(texts, ids) if split == "plain" else ids
    samples = span_samples(texts, spans, sample_labels=labels, ids=ids, documents=documents)
    return assemble(
        samples, wanted, asked=concepts, parts=[metadata_split(r) for r in rows],
        split=split, seed=seed, name=name, skipped=+skipped,
    )  # fmt: skip


def word_label_spans(
    text: str, rows: Sequence[Row], concepts: Sequence[str]
) -> list[tuple[int, int, str]]:
    """Spans of a text's labelled words; rows and words are matched by order and compared.

    Raises:
        ValueError: A word differs, or there are more or fewer rows than words; names file, line
            and word.
    """
    places = list(re.finditer(r"\S+", text))
    spans = []
    for row, place in zip(rows, places, strict=False):
        if not same_word(row["word"], place.group()):
            raise row.refusal(
                f"word {row['word']!r} stands where the text of paragraph {row['paragraph_id']} "
                f"has {place.group()!r} (character {place.start()}): labels and text are "
                "misaligned."
            )
        spans += [(place.start(), place.end(), c) for c in concepts if row.flag(c)]
    if rows and len(rows) != len(places):
        raise rows[-1].refusal(
            f"paragraph {rows[-1]['paragraph_id']} has {len(rows)} labelled words, its text "
            f"{len(places)}: labels and text are misaligned from the end of the shorter one."
        )
    return spans


def same_word(one: str, other: str) -> bool:
    """Equal, or equal but for punctuation around them."""
    bare = one.strip().strip(AROUND)
    return one.strip() == other or (bool(bare) and bare == other.strip(AROUND))


def _paragraphs(root: Path, rows: Sequence[Row]) -> list[Row]:
    """The paragraph rows, in the order of metadata.csv.

    Raises:
        ValueError: Their number differs from metadata.csv's, or `paragraph_id` does not count
            from 1.
    """
    found = read_table(_only(root, "paragraph_level_*.csv"), ["paragraph_id"])
    if len(found) != len(rows):
        raise ValueError(
            f"{found[0].path} has {len(found)} rows, metadata.csv {len(rows)}: one row each."
        )
    for k, row in enumerate(found, start=1):
        if row.whole("paragraph_id") != k:
            raise row.refusal(f"paragraph_id {row['paragraph_id']!r}, expected {k}: they count "
                              "from 1 in the order of metadata.csv.")  # fmt: skip
    return found


def _words(root: Path, paragraphs: int, concepts: Sequence[str]) -> Mapping[int, list[Row]]:
    of: dict[int, list[Row]] = defaultdict(list)
    path = _only(root, "word_level_*.csv")
    for row in read_table(path, ["paragraph_id", "word", *concepts]):
        number = row.whole("paragraph_id")
        if not 1 <= number <= paragraphs:
            raise row.refusal(f"paragraph_id {number}, expected 1 to {paragraphs}.")
        of[number].append(row)
    return of


def _text(root: Path, row: Row, paragraph: Row) -> str:
    if "text_path" in row.values:
        return read_text(root / row["text_path"], f"{row.path} line {row.line} names it")
    if "text" in paragraph.values:
        return paragraph["text"]
    raise row.refusal("no 'text_path' here and no 'text' in the paragraph file: give either.")


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{root / pattern} does not exist: {LAYOUT}.")
    if len(found) > 1:
        raise ValueError(f"{root} holds {', '.join(f.name for f in found)}: keep one {pattern}.")
    return found[0]
