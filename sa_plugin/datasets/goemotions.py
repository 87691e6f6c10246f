"""GoEmotions (Demszky et al. 2020, arXiv 2005.00547): Reddit comments with 27 emotions and neutral.

Two published layouts. *Filtered*: train.tsv, dev.tsv and test.tsv without a header (text,
comma-separated numbers of emotions, comment id), numbers being lines of emotions.txt from 0; only
labels on which at least two raters agree. *Raw*: full_dataset/goemotions_*.csv, one row a rating;
here a comment has the emotions that at least `min_raters` raters gave it, and its document is its
thread. Labels are of whole comments: no token is labelled, see `isarcasm`.

The paper's *augmented* GoEmotions (5,427 texts, the size of test.tsv, with filler and word labels)
is not this set: it comes in the format of its authors' code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sa_plugin._names import require_known
from sa_plugin.data import ConceptData
from sa_plugin.datasets.isarcasm import TOKEN_LABELS, whole_text_spans
from sa_plugin.datasets.paper import GOEMOTIONS
from sa_plugin.datasets.parts import assemble, drawn, one_document_a_text, wanted_concepts
from sa_plugin.datasets.tables import Row, read_table, read_text, require_path
from sa_plugin.make_samples import span_samples

FILES = {"train": "train", "dev": "cal", "test": "test"}
RATING = ("text", "id", "author", "subreddit", "link_id", "parent_id", "created_utc", "rater_id",
          "example_very_unclear")  # fmt: skip
LAYOUT = "give the folder `data` of GoEmotions, which holds train.tsv, dev.tsv and test.tsv"


@dataclass(frozen=True)
class Comment:
    """One comment with its emotions, thread and part."""

    id: str
    text: str
    labels: tuple[str, ...]
    document: str
    part: str = ""


@dataclass
class _Ratings:
    """What the raters said of one comment so far."""

    text: str
    thread: str
    votes: Counter[str] = field(default_factory=Counter)


def load_goemotions(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    parts: Sequence[str] = ("train", "dev", "test"),
    raw: bool = False,
    min_raters: int = 2,
    token_labels: str = "none",
) -> ConceptData:
    """GoEmotions in its published layouts.

    Args:
        root: Holds the .tsv files and emotions.txt, or, with `raw`, full_dataset/.
        split: "plain", or "published": dev is the calibration split. `raw` has no parts.
        seed: Of the division and the draw.
        concepts: Emotions; by default the paper's 14.
        limit: At most this many comments, drawn by `seed`.
        parts: Which .tsv files.
        raw: Whether to read all ratings instead.
        min_raters: With `raw`: how many raters must give a label.
        token_labels: "none", or "text": every token of a positive comment.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row is not as published; the text names file and line.
    """
    require_known("token_labels", token_labels, TOKEN_LABELS)
    skipped: Counter[str] = Counter()
    if raw:
        comments, emotions = read_ratings(root / "full_dataset", min_raters, skipped)
    else:
        emotions = read_text(root / "emotions.txt", LAYOUT).split()
        comments = [c for part in parts for c in read_comments(root, part, emotions)]
    wanted = wanted_concepts(concepts, GOEMOTIONS, emotions, skipped)
    kept = [comments[k] for k in drawn(len(comments), limit, seed, skipped, "comments")]
    texts = [c.text for c in kept]
    labels = [[name for name in c.labels if name in wanted] for c in kept]
    documents = [c.document for c in kept]
    if split == "plain" and not raw:
        documents = one_document_a_text(texts, documents)
    samples = span_samples(
        texts, whole_text_spans(texts, labels, token_labels), ids=[c.id for c in kept],
        documents=documents, sample_labels=labels,
    )  # fmt: skip
    return assemble(
        samples, wanted, asked=concepts, parts=None if raw else [c.part for c in kept],
        split=split, seed=seed, name="goemotions", skipped=skipped,
    )  # fmt: skip


def read_comments(root: Path, part: str, emotions: Sequence[str]) -> list[Comment]:
    """One .tsv file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A row has not three fields, or a number is none of an emotion.
    """
    require_known("part", part, FILES)
    rows = read_table(
        root / f"{part}.tsv", names=("text", "labels", "id"), delimiter="\t", fix=LAYOUT
    )
    return [
        Comment(row["id"], row["text"], _emotions(row, emotions), row["id"], FILES[part])
        for row in rows
    ]


def read_ratings(
    folder: Path, min_raters: int, skipped: Counter[str]
) -> tuple[list[Comment], list[str]]:
    """Comments of the raw files, and the names of the emotions.

    Raises:
        FileNotFoundError: There is no goemotions_*.csv.
        ValueError: A row is not as published.
    """
    files = sorted(folder.glob("goemotions_*.csv"))
    if not files:
        require_path(folder / "goemotions_1.csv", "fetch GoEmotions' full_dataset into it")
    ratings: dict[str, _Ratings] = {}
    emotions: list[str] = []
    for file in files:
        rows = read_table(file, RATING)
        emotions = [column for column in rows[0].values if column not in RATING]
        for row in rows:
            if row.flag("example_very_unclear"):
                skipped["ratings marked as very unclear"] += 1
                continue
            one = ratings.setdefault(row["id"], _Ratings(row["text"], row["link_id"]))
            one.votes.update(name for name in emotions if row.flag(name))
    comments = []
    for id_, one in ratings.items():
        labels = tuple(name for name in emotions if one.votes[name] >= min_raters)
        if labels:
            comments.append(Comment(id_, one.text, labels, one.thread))
        else:
            skipped[f"comments without a label of {min_raters} raters"] += 1
    return comments, emotions


def _emotions(row: Row, emotions: Sequence[str]) -> tuple[str, ...]:
    numbers = row["labels"].split(",")
    for number in numbers:
        if not number.isdecimal() or int(number) >= len(emotions):
            raise row.refusal(
                f"label {number!r} is not a number below {len(emotions)}, a line of emotions.txt."
            )
    return tuple(emotions[int(number)] for number in numbers)
