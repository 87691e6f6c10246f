"""WordNet 3.0 read from its database files: noun classes, sense counts, lemmas, collocations.

A lexicographer class is the file a noun's synset lives in (noun.person, noun.artifact, ...). The
unique beginners of noun.Tops ("person", "animal", "food") are counted with the class they begin.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

CLASSES = {
    4: "act",
    5: "animal",
    6: "artifact",
    7: "attribute",
    8: "body",
    9: "cognition",
    10: "communication",
    11: "event",
    12: "feeling",
    13: "food",
    14: "group",
    15: "location",
    16: "motive",
    17: "object",
    18: "person",
    19: "phenomenon",
    20: "plant",
    21: "possession",
    22: "process",
    23: "quantity",
    24: "relation",
    25: "shape",
    26: "state",
    27: "substance",
    28: "time",
}
_BEGINNERS = {
    "person",
    "animal",
    "plant",
    "food",
    "feeling",
    "group",
    "location",
    "motive",
    "phenomenon",
    "possession",
    "process",
    "relation",
    "shape",
    "state",
    "substance",
    "time",
    "attribute",
    "artifact",
    "event",
    "cognition",
    "communication",
    "act",
}
_ENDINGS = (
    ("ches", "ch"),
    ("shes", "sh"),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ies", "y"),
    ("men", "man"),
    ("s", ""),
)


Counts = dict[str, int]


@dataclass(frozen=True)
class WordNet:
    """Tagged counts by class for each noun lemma, irregular plurals, and adverbial phrases."""

    counts: dict[str, Counts]
    irregular: dict[str, tuple[str, ...]]
    phrases: frozenset[str]

    def lemmas(self, word: str, plural: bool) -> list[str]:
        """Return every base form of a lower-cased noun, morphy's rules; a plural may be two.

        "arms" is a plural of "arm" and a noun of its own: both are returned, the base form first.
        """
        own = [word] if word in self.counts else []
        if not plural and own:
            return own
        forms = list(self.irregular.get(word, ()))
        if not forms:
            endings = ((old, new) for old, new in _ENDINGS if word.endswith(old))
            forms = [word[: -len(old)] + new for old, new in endings if len(word) > len(old) + 1]
        known = [form for form in forms if form in self.counts and form != word]
        return known[:1] + own

    def single_class(self, forms: list[str]) -> str | None:
        """Return the class that the rule gives a word with these base forms, or None.

        Every noun sense in one class, or a class with at least 90 % of at least 3 tagged counts;
        the senses of all base forms are pooled.
        """
        counts: Counts = defaultdict(int)
        for form in forms:
            for name, count in self.counts[form].items():
                counts[name] += count
        if len(counts) < 2:
            return next(iter(counts), None)
        best = max(counts, key=lambda name: counts[name])
        total = sum(counts.values())
        return best if total >= 3 and counts[best] >= 0.9 * total else None


def read_wordnet(folder: Path) -> WordNet:
    """Read classes and counts of all senses, irregular plurals, multi-word adverbs, adjectives."""
    senses = []
    beginners: dict[str, str] = {}
    for line in (folder / "index.sense").read_text(encoding="utf-8").splitlines():
        key, offset, _number, count = line.split()
        lemma, place = key.split("%")
        kind, file, first, *_ = place.split(":")
        if kind != "1":
            continue
        senses.append((lemma, int(file), offset, int(count)))
        if file == "03" and lemma in _BEGINNERS and first == "00":
            beginners[offset] = lemma
    counts: dict[str, Counts] = defaultdict(lambda: defaultdict(int))
    for lemma, number, offset, tagged in senses:
        name = CLASSES.get(number) or beginners.get(offset, "Tops")
        counts[lemma][name] += tagged
    lines = (folder / "noun.exc").read_text(encoding="utf-8").splitlines()
    irregular = {parts[0]: tuple(parts[1:]) for parts in map(str.split, lines)}
    irregular["corps"] = ("corps",)
    phrases = frozenset(
        line.split()[0]
        for file in ("index.adv", "index.adj")
        for line in (folder / file).read_text(encoding="utf-8").splitlines()
        if "_" in line.split()[0]
    )
    return WordNet({lemma: dict(c) for lemma, c in counts.items()}, irregular, phrases)
