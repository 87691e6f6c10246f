"""Inputs that a user may really give, whose meaning is lost silently."""

from common import *

T = ["the cat sat" if i % 2 else "we ran home" for i in range(20)]
S = [[(4, 7, "animal")] if i % 2 else [] for i in range(20)]


def t(name, f):
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        try:
            d = f()
            r = f"ACCEPTED {d!r} concepts={[c for c in d.concepts][:6]} pos={sum(map(bool, (s.positive for s in d.samples)))}"
        except Exception as e:
            r = f"{type(e).__name__}: {str(e)[:140]}"
    try:
        print(
            f"{name:44} {r}"[:330].encode("utf8", "backslashreplace").decode(),
            ["W:" + str(x.message)[:60] for x in w][:1],
            flush=True,
        )
    except Exception as e:
        print(name, "PRINT FAILED", type(e).__name__)


t(
    "sample_labels strings, no concepts",
    lambda: ConceptData.from_spans(
        T, [[]] * 20, sample_labels=["animal" if i % 2 else "" for i in range(20)]
    ),
)
t(
    "sample_labels strings 'ab' two-letter",
    lambda: ConceptData.from_spans(T, [[]] * 20, sample_labels=["ab" if i % 2 else "" for i in range(20)]),
)
t(
    "sample_labels: two string labels mixed",
    lambda: ConceptData.from_spans(
        T, [[]] * 20, sample_labels=["cat" if i % 2 else "dog" for i in range(20)]
    ),
)
t(
    "token mask NaN",
    lambda: ConceptData.from_token_masks(
        T,
        [["animal"] if i % 2 else [] for i in range(20)],
        [{"animal": [float("nan"), 0, 0]} if i % 2 else {} for i in range(20)],
    ),
)
t(
    "token mask strings '0'/'False'",
    lambda: ConceptData.from_token_masks(
        T,
        [["animal"] if i % 2 else [] for i in range(20)],
        [{"animal": ["0", "False", "1"]} if i % 2 else {} for i in range(20)],
    ),
)
t(
    "token mask floats .1 (soft labels)",
    lambda: ConceptData.from_token_masks(T, [["animal"]] * 20, [{"animal": [0.1, 0.001, 0.9]}] * 20),
)
t(
    "token mask string '010'",
    lambda: ConceptData.from_token_masks(T, [["animal"]] * 20, [{"animal": "010"}] * 20),
)
t(
    "float span bounds 4.0,7.0",
    lambda: ConceptData.from_spans(T, [[(4.0, 7.0, "animal")] if i % 2 else [] for i in range(20)]),
)
t(
    "float span bounds 4.7,6.2",
    lambda: ConceptData.from_spans(T, [[(4.7, 6.2, "animal")] if i % 2 else [] for i in range(20)]),
)
t(
    "bool span bounds",
    lambda: ConceptData.from_spans(T, [[(False, True, "animal")] if i % 2 else [] for i in range(20)]),
)
t(
    "numpy int bounds",
    lambda: ConceptData.from_spans(
        T, [[(np.int64(4), np.int64(7), "animal")] if i % 2 else [] for i in range(20)]
    ),
)
t("texts bytes", lambda: ConceptData.from_spans([x.encode() for x in T], S))
t("text with lone surrogate", lambda: ConceptData.from_spans([x + "\ud800" for x in T], S))
t(
    "concept with lone surrogate",
    lambda: ConceptData.from_spans(T, [[(4, 7, "an\ud800")] if i % 2 else [] for i in range(20)]),
)
t(
    "concept with NUL / newline / RTL",
    lambda: ConceptData.from_spans(T, [[(4, 7, "a\x00\n\u202eb")] if i % 2 else [] for i in range(20)]),
)
t("concept blank ''", lambda: ConceptData.from_spans(T, [[(4, 7, "")] if i % 2 else [] for i in range(20)]))
t(
    "concept NFC vs NFD (same look)",
    lambda: ConceptData.from_spans(
        T, [[(4, 7, "caf\u00e9" if i % 4 == 1 else "cafe\u0301")] if i % 2 else [] for i in range(20)]
    ),
)
t(
    "concept ' animal' and 'animal'",
    lambda: ConceptData.from_spans(
        T, [[(4, 7, " animal" if i % 4 == 1 else "animal")] if i % 2 else [] for i in range(20)]
    ),
)
t(
    "int concept labels",
    lambda: ConceptData.from_words(
        [x.split() for x in T], [[None, 1, None] if i % 2 else [None] * 3 for i in range(20)]
    ),
)
t(
    "np.nan word labels (pandas)",
    lambda: ConceptData.from_words(
        [x.split() for x in T], [[np.nan, "animal", np.nan] if i % 2 else [np.nan] * 3 for i in range(20)]
    ),
)
t(
    "bool word labels",
    lambda: ConceptData.from_words(
        [x.split() for x in T], [[False, True, False] if i % 2 else [False] * 3 for i in range(20)]
    ),
)
t(
    "labels as 'O'",
    lambda: ConceptData.from_words(
        [x.split() for x in T], [["O", "animal", "O"] if i % 2 else ["O"] * 3 for i in range(20)]
    ),
)
t(
    "words given as strings",
    lambda: ConceptData.from_words(
        T, [[None] * 11 if i % 2 == 0 else ["animal"] + [None] * 10 for i in range(20)]
    ),
)
t("fractions negative", lambda: ConceptData.from_spans(T, S, splits=Splits(fractions=(-0.2, 0.6, 0.6))))
t("fractions sum 2", lambda: ConceptData.from_spans(T, S, splits=Splits(fractions=(1, 0.5, 0.5))))
t("fractions nan", lambda: ConceptData.from_spans(T, S, splits=Splits(fractions=(float("nan"), 0.5, 0.5))))
t("fractions (1,0,0)", lambda: ConceptData.from_spans(T, S, splits=Splits(fractions=(1, 0, 0))))
t("split all train", lambda: ConceptData.from_spans(T, S, splits=["train"] * 20))
t("documents as one string", lambda: ConceptData.from_spans(T, S, documents="a" * 20))
t("documents nan (pandas)", lambda: ConceptData.from_spans(T, S, documents=[float("nan")] * 20))
t("documents None inside", lambda: ConceptData.from_spans(T, S, documents=[None] * 20))
t("seed None", lambda: ConceptData.from_spans(T, S, splits=Splits(seed=None)))
t("seed 1.5", lambda: ConceptData.from_spans(T, S, splits=Splits(seed=1.5)))
t("1e6-char text", lambda: ConceptData.from_spans(["a b " * 250000] + T[1:], S))
t(
    "100000 spans in one text",
    lambda: ConceptData.from_spans(
        ["a" * 100001] + T[1:], [[(k, k + 1, "animal") for k in range(100000)]] + S[1:]
    ),
)
t(
    "duplicate overlapping spans",
    lambda: ConceptData.from_spans(
        T, [[(4, 7, "animal"), (4, 7, "animal"), (0, 7, "animal")] if i % 2 else [] for i in range(20)]
    ),
)
t("texts generator", lambda: ConceptData.from_spans((x for x in T), S))
t(
    "texts pandas Series",
    lambda: ConceptData.from_spans(__import__("pandas").Series(T, index=range(5, 25)), S),
)
t(
    "texts as one str",
    lambda: ConceptData.from_spans(
        "abcdefghijklmnopqrst", [[(0, 1, "x")] if i % 2 else [] for i in range(20)]
    ),
)
t("subset(-1)", lambda: ConceptData.from_spans(T, S).subset(-1))
t("subset(3.5)", lambda: ConceptData.from_spans(T, S).subset(3.5))
t("subset(0)", lambda: ConceptData.from_spans(T, S).subset(0))
t("subset('x')", lambda: ConceptData.from_spans(T, S).subset("x"))
from pathlib import Path
import json, gzip
from sa_plugin.data import PixelLabels
from sa_plugin.loaders.own import read_csv, read_jsonl

W = Path(f"{SCRATCH}/rel_sem")
W.mkdir(exist_ok=True)
rows = "".join(json.dumps({"text": t_, "labels": [list(x) for x in s]}) + "\n" for t_, s in zip(T, S))


def wf(n, b):
    (W / n).write_bytes(b)
    return W / n


t("jsonl utf-16", lambda: read_jsonl(wf("u16", rows.encode("utf-16"))))
t("jsonl gz", lambda: read_jsonl(wf("a.gz", gzip.compress(rows.encode()))))
t("jsonl CRLF", lambda: read_jsonl(wf("crlf", rows.replace("\n", "\r\n").encode())))
t("jsonl CR only", lambda: read_jsonl(wf("cr", rows.replace("\n", "\r").encode())))
t("jsonl BOM", lambda: read_jsonl(wf("bom", b"\xef\xbb\xbf" + rows.encode())))
t("jsonl dir", lambda: read_jsonl(W))
t("jsonl missing", lambda: read_jsonl(W / "none"))
t("jsonl /dev/null", lambda: read_jsonl("/dev/null"))
t("jsonl NUL path", lambda: read_jsonl("a\0b"))
t("jsonl None", lambda: read_jsonl(None))
t(
    "jsonl duplicate keys in a line",
    lambda: read_jsonl(
        wf("dup", rows.encode().replace(b'"labels": []', b'"labels": [[0,2,"x"]], "labels": []'))
    ),
)
t(
    "jsonl NaN literal id",
    lambda: read_jsonl(wf("nan", rows.encode().replace(b'"labels"', b'"id": NaN, "labels"'))),
)
t(
    "jsonl deep nest",
    lambda: read_jsonl(wf("deep", b'{"text":"a","labels":' + b"[" * 60000 + b"]" * 60000 + b"}")),
)
t(
    "jsonl 5000-digit int",
    lambda: read_jsonl(wf("big", rows.encode().replace(b"[4, 7", b"[4, " + b"9" * 5000, 1))),
)
t("jsonl bool label", lambda: read_jsonl(wf("bool", rows.encode().replace(b"[4, 7", b"[true, 7", 1))))
t(
    "csv NaN cell",
    lambda: read_csv(
        wf(
            "c.csv",
            b"text,animal\n"
            + b"".join(
                b"a b %d,%s\n" % (i, b"NaN" if i == 3 else b"1" if i % 2 else b"0") for i in range(20)
            ),
        )
    ),
)
t(
    "csv formula",
    lambda: read_csv(
        wf("c2.csv", b"text,animal\n" + b"".join(b"=cmd|' /C calc'!A%d,%d\n" % (i, i % 2) for i in range(20)))
    ),
)
t("csv dir", lambda: read_csv(W))
t("csv utf16", lambda: read_csv(wf("c3.csv", "text,animal\na,1\n".encode("utf-16"))))
t(
    "csv 200k-char field",
    lambda: read_csv(
        wf(
            "c4.csv",
            b"text,animal\n"
            + b"a" * 200000
            + b",1\n"
            + b"".join(b"a b %d,%d\n" % (i, i % 2) for i in range(20)),
        )
    ),
)
t(
    "csv NUL",
    lambda: read_csv(
        wf("c5.csv", b"text,animal\n" + b"".join(b"a\0b %d,%d\n" % (i, i % 2) for i in range(20)))
    ),
)
im = [np.zeros((8, 8, 3), np.uint8) + i for i in range(20)]
t("masks 0/1 uint8", lambda: ConceptData.from_masks(im, [{"a": np.eye(8, dtype=np.uint8)}] * 20))
t("masks float nan", lambda: ConceptData.from_masks(im, [{"a": np.full((8, 8), np.nan)}] * 20))
t(
    "mask concept surrogate",
    lambda: ConceptData.from_masks(
        im, [{"a\ud800": np.eye(8, dtype=bool)} if i % 2 else {} for i in range(20)]
    ),
)
t(
    "box nan",
    lambda: ConceptData.from_masks(im, PixelLabels([{} for _ in im], [[("a", 0, 0, float("nan"), 4)]] * 20)),
)
