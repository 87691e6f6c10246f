"""Comments and tweets that are labelled as a whole: iSarcasmEval and GoEmotions as published.

No token is labelled, so those of positive texts are unknown: samples can be detected but no concept
vector of tokens can be fitted, unless `token_labels="text"` calls every token of a positive text
positive, which is a guess, or words are listed (`ConceptData.from_texts`).

iSarcasmEval (Abu Farha et al. 2022, SemEval task 6), English: tweets, labelled by their authors.
`train/train.En.csv` has `tweet`, `sarcastic`, the author's non-sarcastic `rephrase` and six kinds
of irony; `test/task_A_En_test.csv` has `text` and `sarcastic`.

GoEmotions (Demszky et al. 2020, arXiv 2005.00547): Reddit comments with 27 emotions and neutral.
Two published layouts. *Filtered*: train.tsv, dev.tsv and test.tsv without a header (text,
comma-separated numbers of emotions, comment id), numbers being lines of emotions.txt from 0; only
labels on which at least two raters agree. *Raw*: full_dataset/goemotions_*.csv, one row a rating;
here a comment has the emotions that at least `min_raters` raters gave it, and its document is its
thread.

The paper's *augmented* iSarcasm (1,734 texts, 867 positive) and GoEmotions (5,427 texts, the size of
test.tsv), with filler and word labels, are not these sets: they come in the format of its authors'
code. `negatives="rephrases"` gives texts of the first one's numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sa_plugin._check import require_known
from sa_plugin.data.build import TokenLabels, said_of_tokens, span_samples, whole_spans
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.loaders.files import TableRow, read_table, read_text, require_path
from sa_plugin.loaders.paper import PAPER_CONCEPTS
from sa_plugin.loaders.reading import Reading, one_document_a_text

_IRONY = ("sarcasm", "irony", "satire", "understatement", "overstatement", "rhetorical_question")
_ISARCASM_FILES = {"train": ("train/train.En.csv", "tweet"), "test": ("test/task_A_En_test.csv", "text")}
_NEGATIVES = ("tweets", "rephrases", "both")
_ISARCASM_LAYOUT = "give the folder of the iSarcasmEval repository, which holds train/ and test/"
_SPLIT_OF_FILE = {"train": "train", "dev": "cal", "test": "test"}
_RATING_COLUMNS = (
    "text",
    "id",
    "author",
    "subreddit",
    "link_id",
    "parent_id",
    "created_utc",
    "rater_id",
    "example_very_unclear",
)
_GOEMOTIONS_LAYOUT = "give the folder `data` of GoEmotions, which holds train.tsv, dev.tsv and test.tsv"


@dataclass(frozen=True)
class Comment:
    """One text with its labels, the document it belongs to and its published part."""

    id: str
    text: str
    labels: tuple[str, ...]
    document: str
    part: str = ""


def load_isarcasm(
    reading: Reading,
    *,
    negatives: str = "tweets",
    parts: Sequence[str] = ("train", "test"),
    token_labels: TokenLabels = None,
) -> ConceptData:
    """ISarcasmEval in its published layout; a tweet and its rephrase are one document.

    Args:
        reading: The root holds `train/train.En.csv` and `test/task_A_En_test.csv`; concepts are
            "sarcastic" by default, the six kinds are labelled in the train file only.
        negatives: Of the train file: "tweets" that are not sarcastic, the "rephrases" of those
            that are, or "both".
        parts: "train", "test" or both.
        token_labels: None, "text" or listed words, as in `ConceptData.from_texts`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row is not as published; the text names file and line.
    """
    require_known("negatives", negatives, _NEGATIVES)
    default = PAPER_CONCEPTS["isarcasm"]
    wanted = reading.wanted((*default, *_IRONY), default)
    found = [comment for part in parts for comment in _tweets(reading, part, wanted, negatives)]
    # Published parts keep their repeated texts apart, since a document cannot lie in two of them.
    return _data(reading, found, wanted, token_labels, merge=reading.split == "plain")


def load_goemotions(
    reading: Reading,
    *,
    parts: Sequence[str] = ("train", "dev", "test"),
    raw: bool = False,
    min_raters: int = 2,
    token_labels: TokenLabels = None,
) -> ConceptData:
    """GoEmotions in its published layouts.

    Args:
        reading: The root holds the .tsv files and emotions.txt, or, with `raw`, full_dataset/.
            Published parts: dev is the calibration split; `raw` has none. Concepts are the paper's
            14 by default.
        parts: Which .tsv files.
        raw: Whether to read all ratings instead.
        min_raters: With `raw`: how many raters must give a label.
        token_labels: None, "text" or listed words, as in `ConceptData.from_texts`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row is not as published; the text names file and line.
    """
    if raw:
        found, emotions = _read_ratings(reading.root / "full_dataset", min_raters, reading.skipped)
    else:
        emotions = read_text(reading.root / "emotions.txt", _GOEMOTIONS_LAYOUT).split()
        found = [c for part in parts for c in _read_comments(reading.root, part, emotions)]
    wanted = reading.wanted(emotions, PAPER_CONCEPTS["goemotions"])
    return _data(reading, found, wanted, token_labels, merge=reading.split == "plain" and not raw)


def _data(
    reading: Reading,
    found: Sequence[Comment],
    wanted: Sequence[str],
    token_labels: TokenLabels,
    *,
    merge: bool,
) -> ConceptData:
    """Data from comments; with `merge`, repeated texts share a document."""
    kept = [found[k] for k in reading.drawn(len(found), "comments")]
    texts, documents = [c.text for c in kept], [c.document for c in kept]
    labels = [[name for name in c.labels if name in wanted] for c in kept]
    samples = span_samples(
        texts,
        whole_spans(texts, labels, token_labels),
        documents=one_document_a_text(texts, documents) if merge else documents,
        sample_labels=labels,
        ids=[c.id for c in kept],
    )
    parts = [c.part for c in kept] if all(c.part for c in kept) else None
    return reading.data(samples, wanted, parts, said_of_tokens(token_labels))


def _tweets(reading: Reading, part: str, wanted: Sequence[str], negatives: str) -> Iterator[Comment]:
    """The texts of a part of iSarcasmEval."""
    require_known("part", part, _ISARCASM_FILES)
    name, column = _ISARCASM_FILES[part]
    # A concept that the test file lacks is refused there, by name and line.
    also = ["rephrase", *wanted] if part == "train" else wanted
    for row in read_table(reading.root / name, [column, "sarcastic", *also], fix=_ISARCASM_LAYOUT):
        id_, sarcastic = f"{part}-{row.line}", row.flag("sarcastic")
        if not row[column].strip():
            reading.skipped["tweets without text"] += 1
        elif sarcastic or part == "test" or negatives != "rephrases":
            yield Comment(id_, row[column], tuple(c for c in wanted if row.flag(c)), id_, part)
        else:
            reading.skipped["tweets that are not sarcastic"] += 1
        if sarcastic and part == "train" and negatives != "tweets":
            if row["rephrase"].strip():
                yield Comment(f"{id_}-rephrase", row["rephrase"], (), id_, part)
            else:
                reading.skipped["sarcastic tweets without a rephrase"] += 1


def _read_comments(root: Path, part: str, emotions: Sequence[str]) -> list[Comment]:
    """One .tsv file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A row has not three fields, or a number is none of an emotion.
    """
    require_known("part", part, _SPLIT_OF_FILE)
    rows = read_table(
        root / f"{part}.tsv", names=("text", "labels", "id"), delimiter="\t", fix=_GOEMOTIONS_LAYOUT
    )
    return [
        Comment(row["id"], row["text"], _emotions(row, emotions), row["id"], _SPLIT_OF_FILE[part])
        for row in rows
    ]


def _read_ratings(folder: Path, min_raters: int, skipped: Counter[str]) -> tuple[list[Comment], list[str]]:
    """Comments of the raw files, and the names of the emotions.

    Raises:
        FileNotFoundError: There is no goemotions_*.csv.
        ValueError: A row is not as published.
    """
    files = sorted(folder.glob("goemotions_*.csv"))
    if not files:
        require_path(folder / "goemotions_1.csv", "fetch GoEmotions' full_dataset into it")
    # Text and thread of each comment, and how many raters gave it each label so far.
    ratings: dict[str, tuple[str, str, Counter[str]]] = {}
    emotions: list[str] = []
    for file in files:
        rows = read_table(file, _RATING_COLUMNS)
        emotions = [column for column in rows[0].values if column not in _RATING_COLUMNS]
        for row in rows:
            if row.flag("example_very_unclear"):
                skipped["ratings marked as very unclear"] += 1
                continue
            *_, votes = ratings.setdefault(row["id"], (row["text"], row["link_id"], Counter()))
            votes.update(name for name in emotions if row.flag(name))
    comments = []
    for id_, (text, thread, votes) in ratings.items():
        labels = tuple(name for name in emotions if votes[name] >= min_raters)
        if labels:
            comments.append(Comment(id_, text, labels, thread))
        else:
            skipped[f"comments without a label of {min_raters} raters"] += 1
    return comments, emotions


def _emotions(row: TableRow, emotions: Sequence[str]) -> tuple[str, ...]:
    numbers = row["labels"].split(",")
    for number in numbers:
        if not number.isdecimal() or int(number) >= len(emotions):
            raise row.refusal(
                f"label {number!r} is not a number below {len(emotions)}, a line of emotions.txt."
            )
    return tuple(emotions[int(number)] for number in numbers)
