"""Are a detector's false positives missed labels? Read, and counted into F1.

The labels of the embedded texts are silver: nearly all right, about half of what there is
(docs/supersense.md). So some of what counts as a false positive is a word of the concept that has no label.
`draw` writes every false positive of the test split, one a passage and concept, by the word of its highest
token, into `supersense/false_positives.csv`; verdicts known from an earlier drawing stay. Someone reads them
there: "missed" where this word, in the sense it has there, is of the concept's WordNet class (proper nouns
and figures that keep the class count), "wrong" where it is not, "unsure" else. `show` counts missed ones as
found and writes the table.

    python docs/experiments/missed_labels.py draw "MiniLM=minilm=OUT/detectors/separator" ...
    python docs/experiments/missed_labels.py show

OUT is the folder of `rival_tables.py run` or of `sa-plugin demo`: plain split, seed 0, 600 passages.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from between_markers import put
from demo_table import write_data
from supersense.review import Verdict, read_review

from sa_plugin.detection import Detector
from sa_plugin.host import attach, find_folder
from sa_plugin.loaders import load
from sa_plugin.show import typeset
from sa_plugin.stages import markdown

ROOT = Path(__file__).parents[2]
REVIEW = Path(__file__).parent / "supersense" / "false_positives.csv"
DATA = ROOT / "docs" / "findings" / "data" / "missed_labels.json"
PAGE = ROOT / "docs" / "findings" / "results.md"
BEGIN = "<!-- missed: written by docs/experiments/missed_labels.py show -->"
END = "<!-- end of missed -->"
# Of 40 passages read whole, 80 pairs of passage and concept have a label and about 36 more hold one.
UNLABELLED = 36 / 80


def draw(arguments: list[str]) -> None:
    """False positives of each model's detector, into the file that is read, and the counts of the rest."""
    from sa_transformer_lens.host import load_bridge

    warnings.simplefilter("ignore")
    data = load("supersense", split="plain", seed=0).subset(600, seed=0)
    known = {verdict.key: verdict for verdict in read_review(REVIEW)}
    record: dict[str, Any] = {}
    drawn: dict[tuple[str, int, str], Verdict] = {}
    for argument in arguments:
        title, name, folder = argument.split("=")
        host = attach(load_bridge(find_folder(name)), batch_tokens=2048, progress=False)
        found = Detector.from_pretrained(folder, host=host).find(data.test.samples)
        best: dict[tuple[str, str], Any] = {}
        for mark in found:
            at = mark.sample, mark.concept
            if at not in best or mark.score > best[at].score:
                best[at] = mark
        positive = {(s.id, concept) for s in data.test.samples for concept in s.positive}
        texts = {sample.id: str(sample.text) for sample in data.test.samples}
        pairs = []
        for at, mark in best.items():
            if at not in positive:
                start, word = word_at(texts[mark.sample], mark.start, mark.end)
                one = Verdict(mark.sample, start, word, mark.concept)
                drawn[one.key] = known.get(one.key, one)
                pairs.append([*one.key])
        concepts = {}
        for concept in data.concepts:
            labelled = {at for at in positive if at[1] == concept}
            hit = len(labelled & set(best))
            concepts[concept] = {
                "positive": len(labelled),
                "found": hit,
                "negative": len(texts) - len(labelled),
            }
        record[title] = {"concepts": concepts, "false_positives": sorted(pairs)}
    write_review(sorted(drawn.values(), key=lambda one: (one.concept, one.passage, one.start)))
    write_data(DATA, record)


def word_at(text: str, start: int, end: int) -> tuple[int, str]:
    """The word that holds a token: letters and what joins them."""
    for match in re.finditer(r"[\w'’-]+", text):
        if match.start() < end and match.end() > start:
            return match.start(), match.group()
    return start, text[start:end]


def write_review(verdicts: Iterable[Verdict]) -> None:
    """The file that is read, with the words around each."""
    texts = {sample.id: str(sample.text) for sample in load("supersense").samples}
    with REVIEW.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["passage", "start", "word", "concept", "verdict", "note", "context"])
        for one in verdicts:
            context = texts[one.passage][max(0, one.start - 60) : one.start + len(one.word) + 40]
            writer.writerow([*one.key[:2], one.word, one.concept, one.verdict, one.note, context])


def counted(found: dict[str, Any], verdicts: dict[tuple[str, int, str], Verdict]) -> dict[str, Any]:
    """Precision, recall and F1, weighted by positive passages, before and after the reading."""
    of: dict[str, Counter[str]] = defaultdict(Counter)
    for passage, start, concept in found["false_positives"]:
        of[concept][verdicts[passage, start, concept].verdict] += 1
    plain, after, least = [], [], []
    for concept, row in found["concepts"].items():
        wrong, missed = of[concept].total(), of[concept]["missed"]
        hit, positive = row["found"], row["positive"]
        plain.append((hit, wrong, positive - hit))
        after.append((hit + missed, wrong - missed, positive - hit))
        unseen = max(0.0, (1 + UNLABELLED) * positive - positive - missed)
        least.append((hit + missed, wrong - missed, positive - hit + unseen))
    total = sum(of.values(), Counter[str]())
    return {
        "false_positives": total.total(),
        **{verdict: total[verdict] for verdict in ("missed", "unsure", "wrong")},
        "plain": weighted(plain),
        "read": weighted(after),
        "with_unseen": weighted(least),
    }


def weighted(counts: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    """Means over concepts by positive passages, of hits, false alarms and misses."""
    total = sum(hit + missed for hit, _, missed in counts)
    rows = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    for hit, wrong, missed in counts:
        share = (hit + missed) / total
        rows["precision"] += share * (hit / (hit + wrong) if hit + wrong else 0.0)
        rows["recall"] += share * (hit / (hit + missed) if hit + missed else 0.0)
        rows["f1"] += share * (2 * hit / (2 * hit + wrong + missed) if hit + wrong + missed else 0.0)
    return rows


def show() -> None:
    """Count the verdicts, keep what came out, and write the table."""
    verdicts = {verdict.key: verdict for verdict in read_review(REVIEW)}
    unread = [one for one in verdicts.values() if one.verdict not in ("missed", "wrong", "unsure")]
    if unread:
        raise SystemExit(f"{len(unread)} false positives of {REVIEW.name} are not read, such as {unread[0]}")
    record = json.loads(DATA.read_text(encoding="utf-8"))
    rows = []
    for title, found in record.items():
        found["counted"] = one = counted(found, verdicts)
        cells = [title, str(one["false_positives"]), *(str(one[v]) for v in ("missed", "unsure", "wrong"))]
        for name in ("plain", "read"):
            cells += [typeset(one[name]["precision"]), typeset(one[name]["f1"])]
        cells += [typeset(one["with_unseen"]["recall"]), typeset(one["with_unseen"]["f1"])]
        rows.append(cells)
    write_data(DATA, record)
    header = ["model", "false positives", "missed labels", "unsure", "wrong", "precision", "F1"]
    header += ["precision, missed counted", "F1", "recall, unseen counted too", "F1"]
    put(PAGE, BEGIN, END, markdown(header, rows))


if __name__ == "__main__":
    draw(sys.argv[2:]) if sys.argv[1] == "draw" else show()
