"""Data, mutated: every constructor and reader refuses by name what it cannot use.

| class | aim |
|---|---|
| fine | read, and every label stands on what it says |
| refused | by a ValueError or TypeError raised in our validation, whose text names an argument, file or row |
| deep | another error, or one from deep inside: 0 |
| accepted | taken although it is meaningless: 0 |

What is meaningless is judged here, on the data that were made: names that are blank, padded or invisible,
texts with nulls or lone surrogates, bounds that are no plain numbers, marks that are no truth values.
"""

import csv
import json
import math
import traceback
import unicodedata
import warnings
from functools import partial
from pathlib import Path

import jaxtyping
import numpy as np
import pandas as pd
import pytest
from fuzzing import Tally, mutated_bytes, tries

from sa_plugin.data import ConceptData, PixelLabels, SampleLabels, Splits
from sa_plugin.loaders import load

pytestmark = pytest.mark.filterwarnings("ignore")
N = 10
TEXTS = [f"{k:02} the cat sat" for k in range(N)]
WORDS = [text.split() for text in TEXTS]
SPANS = [[(7, 10, "animal")] if k % 2 else [] for k in range(N)]
LABELS = [[None, None, "animal" if k % 2 else None, None] for k in range(N)]
TAGS = [["O", "O", "B-PER" if k % 2 else "O", "I-PER" if k % 2 else "O"] for k in range(N)]
SAID = [["animal"] if k % 2 else [] for k in range(N)]
MASKS = [{"animal": [False, False, True, False]} if k % 2 else {} for k in range(N)]
IMAGES = [np.full((6, 6, 3), k, np.uint8) for k in range(N)]
PIXELS = [{"animal": np.eye(6, dtype=bool)} if k % 2 else {} for k in range(N)]
HOMES = [f"d{k}" for k in range(N)]
PARTS = ["train", "cal", "test", "train", "train", "cal", "cal", "test", "test", "train"]
SHARED = {"documents": HOMES, "ids": HOMES, "concepts": ["animal"], "splits": PARTS, "name": "data"}
MAKERS = {
    "from_spans": {"texts": TEXTS, "spans": SPANS, "sample_labels": SAID, **SHARED},
    "from_words": {"words": WORDS, "labels": LABELS, "sample_labels": SAID, **SHARED},
    "from_token_masks": {"texts": TEXTS, "sample_labels": SAID, "masks": MASKS, **SHARED},
    "from_texts": {"texts": TEXTS, "labels": SAID, "token_labels": "text", **SHARED},
    "from_masks": {"images": IMAGES, "masks": PIXELS, "sample_labels": SAID, **SHARED},
}
ODD = (
    None, True, False, 0, 1, -1, 7, 2**63, 1e308, -0.5, 0.7, 4.0, math.nan, math.inf, "", " ", "x",
    "animal", " animal", "a\0b", "\ud800", "a\u202eb", "train", "O", "B-PER", b"x", [], {}, (), [None],
    {"": 0}, {"a"}, [[]], [[[]]], ["x"], [1], [math.nan], object(), len, Path("x"), np.nan, np.int64(4),
    np.bool_(True), np.str_("x"), np.array(3), np.array([[1.0]]), np.array(["x"]), np.array([None]), pd.NA,
    pd.NaT, np.array([1, 2]), pd.Series([1]), pd.DataFrame({"a": [1]}), 1j, range(3), slice(1),
    Exception("x"), np.datetime64("2020"),
)  # fmt: off


def mutated(rng, value, depth=0):
    """The same value with one place of it odd, gone, doubled or moved; columns as other kinds of column."""
    pick = int(rng.integers(8))
    inner = isinstance(value, list | tuple | dict) and len(value) and (pick < 5 or (depth == 0 and pick < 7))
    if inner and depth < 4:
        if isinstance(value, dict):
            found = dict(value)
            key = list(found)[int(rng.integers(len(found)))]
            if rng.integers(4) == 0:
                odd = ODD[int(rng.integers(len(ODD)))]
                if getattr(odd, "__hash__", None) and not isinstance(odd, slice):
                    found[odd] = found.pop(key)
                return found
            found[key] = mutated(rng, found[key], depth + 1)
            return found
        found = list(value)
        at = int(rng.integers(len(found)))
        found[at] = mutated(rng, found[at], depth + 1)
        return tuple(found) if isinstance(value, tuple) else found
    if isinstance(value, list) and len(value):
        match int(rng.integers(9)):
            case 0:
                return value[:-1]
            case 1:
                return [*value, value[0]]
            case 2:
                return value[::-1]
            case 3:
                return iter(value)
            case 4:
                return pd.Series([*value, None], dtype=object).iloc[:-1]
            case 5:
                return dict(enumerate(value))
            case 6:
                return tuple(value)
    if isinstance(value, np.ndarray):
        return [value.astype(float), value[..., :1], value[0], value.tolist(), value.astype(int) * 255,
                value.astype(object), value[:0], value.T][int(rng.integers(8))]  # fmt: skip
    return ODD[int(rng.integers(len(ODD)))]


def meaningless(data):
    """What is wrong with data that were taken, if anything."""
    for concept in data.concepts:
        if type(concept) is not str or concept != concept.strip() or not concept:
            return f"concept {concept!r}"
        if any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in concept):
            return f"concept {concept!r}"
    for sample in data.samples:
        if (
            type(sample.text) is not str
            or "\0" in sample.text
            or any("\ud800" <= c <= "\udfff" for c in sample.text)
        ):
            return f"text {sample.text!r}"
        for name in (sample.id, sample.document):
            if type(name) is not str or not name.strip() or name in ("None", "nan", "<NA>", "NaT"):
                return f"name {name!r}"
        if any(type(bound) is not int for start, end, _ in sample.spans for bound in (start, end)):
            return f"spans {sample.spans}"
        marks = [v for row in (sample.token_mask or {}).values() for v in row]
        if any(v is not None and type(v) is not bool for v in marks):
            return f"marks {marks}"
        if sample.image is not None and any(m.dtype != bool for m in sample.image.masks.values()):
            return "a mask that is none"
    if type(data.seed) is not int or data.seed < 0 or not set(data.split_of) <= {"train", "cal", "test"}:
        return f"seed {data.seed!r}"
    # Neither raises on what was taken.
    return None if data.hash and repr(data) else "no hash"


def outcome(make, *names):
    """Class of one call, and about it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrong = meaningless(make())
    except jaxtyping.TypeCheckError as error:
        return "deep", f"a hint of ours was left to a checker: {error}"[:600]
    except (ValueError, TypeError, FileNotFoundError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = "sa_plugin" in last and "raise " in (traceback.extract_tb(error.__traceback__)[-1].line or "")
        named = any(name in str(error) for name in names)
        return ("refused" if ours and named else "deep"), f"{type(error).__name__}: {error} ({last})"
    except Exception as error:
        return "deep", "".join(traceback.format_exception(error))[-700:]
    return ("accepted", wrong) if wrong else ("fine", "")


@pytest.mark.parametrize("name", MAKERS)
def test_constructors(name):
    rng, tally = np.random.default_rng(sorted(MAKERS).index(name)), Tally()
    known = [
        *MAKERS[name],
        "sample",
        "span",
        "label",
        "concept",
        "split",
        "document",
        "text",
        "word",
        "image",
    ]
    known += ["data set", "unknown"]
    for _ in range(tries(80, 1400)):
        given = dict(MAKERS[name])
        given.pop(("documents", "splits", "ids", "concepts", "sample_labels")[int(rng.integers(5))], None)
        if name == "from_token_masks":
            given.setdefault("sample_labels", SAID)
        argument = list(given)[int(rng.integers(len(given)))]
        given[argument] = mutated(rng, given[argument])
        kind, about = outcome(lambda given=given: getattr(ConceptData, name)(**given), *known)
        tally.add(kind, f"{name}({argument}={given[argument]!r:.200}): {about}")
    tally.require("fine", "refused")


CALLS = {
    "seed": lambda odd: ConceptData.from_spans(TEXTS, SPANS, splits=Splits(seed=odd)),
    "fractions": lambda odd: ConceptData.from_spans(TEXTS, SPANS, splits=Splits(fractions=odd)),
    "splits": lambda odd: ConceptData.from_spans(TEXTS, SPANS, splits=Splits(of=odd)),
    "sample_labels": lambda odd: ConceptData.from_spans(TEXTS, SPANS, sample_labels=SampleLabels(odd)),
    "unknown": lambda odd: ConceptData.from_spans(TEXTS, SPANS, sample_labels=SampleLabels(SAID, odd)),
    "min_coverage": lambda odd: ConceptData.from_masks(IMAGES, PixelLabels(PIXELS, None, odd)),
    "boxes": lambda odd: ConceptData.from_masks(IMAGES, PixelLabels(PIXELS, odd)),
    "masks": lambda odd: ConceptData.from_masks(IMAGES, PixelLabels(odd)),
    "void": lambda odd: ConceptData.from_masks(IMAGES, PixelLabels(PIXELS, void=odd)),
    "tags": lambda odd: ConceptData.from_words(WORDS, TAGS, tags=odd),
    "text": lambda odd: ConceptData.from_words(WORDS, LABELS, text=odd),
    "spaces_after": lambda odd: ConceptData.from_words(WORDS, LABELS, spaces_after=odd),
    "token_labels": lambda odd: ConceptData.from_texts(TEXTS, SAID, token_labels=odd),
}


def test_records_and_numbers():
    rng, tally = np.random.default_rng(11), Tally()
    for _ in range(tries(80, 1000)):
        odd = ODD[int(rng.integers(len(ODD)))]
        argument = list(CALLS)[int(rng.integers(len(CALLS)))]
        names = (argument, "label", "sample", "tag", "mask", "box", "word", "concept", "unknown")
        kind, about = outcome(partial(CALLS[argument], odd), *names)
        tally.add(kind, f"{argument}={odd!r:.100}: {about}")
    tally.require("fine", "refused")


class Rows(list):
    column_names = None


ROLES = {
    "text": ({"text": TEXTS, "spans": SPANS, "label": SAID, "document": HOMES, "id": HOMES}, {}),
    "tokens": ({"tokens": WORDS, "tags": TAGS, "document": HOMES, "spaces_after": [[True] * 4] * N}, {}),
    "numbers": ({"tokens": WORDS, "tags": [[0, 0, k % 2, 0] for k in range(N)]}, {"tags": ["O", "B-PER"]}),
    "image": (
        {"image": IMAGES, "mask": [np.eye(6, dtype=np.uint8) * (k % 2) for k in range(N)], "label": SAID},
        {"mask": ["", "animal"]},
    ),
}


def test_datasets():
    rng, tally = np.random.default_rng(12), Tally()
    for _ in range(tries(100, 1500)):
        role = list(ROLES)[int(rng.integers(len(ROLES)))]
        columns, names = ROLES[role]
        roles = {one: one for one in columns}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        match int(rng.integers(6)):
            case 0:
                roles = mutated(rng, roles)
            case 1 if names:
                names = mutated(rng, names)
            case _:
                at = int(rng.integers(N))
                rows[at] = mutated(rng, rows[at], 1)
        kind, about = outcome(
            lambda rows=rows, roles=roles, names=names: load(Rows(rows), columns=roles, names=names),
            "row", "column", "role", "names", "sample", "data set", "label", "tag", "spaces_after",
        )  # fmt: skip
        tally.add(kind, f"{role}: {roles!r:.100} {names!r:.100}: {about}")
    tally.require("fine", "refused")


def jsonl(path):
    rows = [
        {"text": t, "labels": [list(s) for s in row], "id": h}
        for t, row, h in zip(TEXTS, SPANS, HOMES, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


def csv_texts(path):
    with path.open("w", newline="") as opened:
        csv.writer(opened).writerows(
            [
                ["text", "animal", "split"],
                *[[t, k % 2, p] for k, (t, p) in enumerate(zip(TEXTS, PARTS, strict=True))],
            ]
        )


def csv_words(path):
    rows = [
        [k, w, c or "", 1]
        for k, (ws, ls) in enumerate(zip(WORDS, LABELS, strict=True))
        for w, c in zip(ws, ls, strict=True)
    ]
    with path.open("w", newline="") as opened:
        csv.writer(opened).writerows([["sample", "word", "label", "space_after"], *rows])


def conll(path):
    path.write_text(
        "\n\n".join(
            "\n".join(map(" ".join, zip(w, t, strict=True))) for w, t in zip(WORDS, TAGS, strict=True)
        )
    )


def conllu(path):
    rows = []
    for k, words in enumerate(WORDS):
        lines = [f"# sent_id = s{k}", f"# text = {' '.join(words)}"]
        lines += [
            f"{i}\t{w}\t{w}\t{'NOUN' if w == 'cat' else 'X'}\t_\t_\t0\troot\t_\t_"
            for i, w in enumerate(words, 1)
        ]
        rows.append("\n".join(lines))
    path.write_text("\n\n".join(rows) + "\n\n")


FILES = {"a.jsonl": jsonl, "a.csv": csv_texts, "b.csv": csv_words, "a.conll": conll, "a.conllu": conllu}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    rng, tally = np.random.default_rng(20 + sorted(FILES).index(name)), Tally()
    path = tmp_path / name
    FILES[name](path)
    whole = path.read_bytes()
    for k in range(tries(20, 300)):
        path.write_bytes(mutated_bytes(rng, whole))
        kind, about = outcome(
            lambda: load(path), name, "sample", "text", "concept", "word", "label", "data set"
        )
        tally.add(kind, f"mutation {k}: {about}")
    tally.require("fine", "refused")
