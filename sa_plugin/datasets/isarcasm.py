"""iSarcasmEval (Abu Farha et al. 2022, SemEval task 6), English: tweets, labelled by their authors.

`train/train.En.csv` has `tweet`, `sarcastic`, the author's non-sarcastic `rephrase` and six kinds
of irony; `test/task_A_En_test.csv` has `text` and `sarcastic`. Labels are of whole tweets. No token
is labelled, so samples can be detected but no concept vector of tokens can be fitted, unless
`token_labels="text"` calls every token of a positive text positive, which is a guess.

The paper's *augmented* iSarcasm (1,734 texts, 867 positive, with word labels) is not this set: it
comes in the format of its authors' code. `negatives="rephrases"` gives texts of these numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sa_plugin._names import require_known
from sa_plugin.data import ConceptData
from sa_plugin.datasets.paper import ISARCASM
from sa_plugin.datasets.parts import assemble, one_document_a_text, wanted_concepts
from sa_plugin.datasets.tables import Row, read_table
from sa_plugin.make_samples import span_samples

KINDS = ("sarcasm", "irony", "satire", "understatement", "overstatement", "rhetorical_question")
FILES = {"train": ("train/train.En.csv", "tweet"), "test": ("test/task_A_En_test.csv", "text")}
NEGATIVES = ("tweets", "rephrases", "both")
TOKEN_LABELS = ("none", "text")
LAYOUT = "give the folder of the iSarcasmEval repository, which holds train/ and test/"
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
        texts, whole_text_spans(texts, [row[2] for row in found], token_labels), ids=ids,
        documents=documents, sample_labels=[row[2] for row in found],
    )  # fmt: skip
    return assemble(
        samples, wanted, asked=concepts, parts=[id_.split("-")[0] for id_ in ids],
        split=split, seed=seed, name="isarcasm", skipped=skipped,
    )  # fmt: skip


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
    require_known("part", part, FILES)
    name, column = FILES[part]
    for row in read_table(root / name, [column, "sarcastic", *_also(part, wanted)], fix=LAYOUT):
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
