"""Nouns of Brown by class, for the loader `tail_spans`: `python docs/experiments/tail_nouns.py WORK`.

The rule is that of the embedded set (`supersense/labels.py`): of all noun senses of a word in WordNet 3.0
one class, or one with nine tenths of at least three tagged counts; its lists of exclusions and additions
hold here too. What Brown tags as a common noun (nn, nns, nothing of a title or headline) is looked up, and
forms that stand in Brown are written to `sa_plugin/loaders/tail_nouns.json`: concept, lemma, forms; under
"open" the forms that the rule leaves unlabelled and of which a tenth of the tagged counts, or without any a
sense, is of a concept: a sentence with one of them is used neither with the concept nor without it.

WORK is a folder for what is fetched (WordNet, from Debian); Brown lies where `load("brown")` looks.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from supersense.labels import Rule, read_list
from supersense.sources import wordnet_folder
from supersense.wordnet import read_wordnet

from sa_plugin.loaders import brown_folder

CONCEPTS = ("animal", "body", "food")
TARGET = Path(__file__).parents[2] / "sa_plugin/loaders/tail_nouns.json"


def main(work: Path) -> None:
    """Write the file, and print how many forms and words of Brown each concept has."""
    added = {lemma: concept for lemma, concept in read_list("additions.tsv") if concept in CONCEPTS}
    excluded = frozenset(read_list("exclusions.tsv"))
    rule = Rule(read_wordnet(wordnet_folder(work)), frozenset(CONCEPTS), excluded, added)
    found: dict[str, dict[str, list[str]]] = {concept: defaultdict(list) for concept in CONCEPTS}
    counts: Counter[str] = Counter()
    open_: set[str] = set()
    for (form, tag), n in sorted(_nouns().items()):
        known = rule.concept_of(form, plural=tag == "nns") if form.isalpha() and len(form) > 1 else None
        if known is not None:
            concept, lemma = known
            found[concept][lemma] += [form] if form not in found[concept][lemma] else []
            counts[concept] += n
        elif any(_may_be(rule.wordnet.counts[one]) for one in rule.wordnet.lemmas(form, tag == "nns")):
            open_.add(form)
    for concept, lemmas in found.items():
        print(f"{concept:8} {len(lemmas):4} lemmas {counts[concept]:5} words")
    print(f"open     {len(open_):4} forms")
    held = {**found, "open": sorted(open_)}
    TARGET.write_text(json.dumps(held, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def _may_be(counts: dict[str, int]) -> bool:
    """Whether a lemma with these counts by class may be meant as a concept."""
    total = sum(counts.values())
    return any(counts.get(concept, -1) >= 0.1 * total for concept in CONCEPTS)


def _nouns() -> Counter[tuple[str, str]]:
    """Common nouns of Brown, lower-cased, with their tag."""
    counts: Counter[tuple[str, str]] = Counter()
    for path in sorted(brown_folder().glob("c[a-r][0-9][0-9]")):
        for token in path.read_text(encoding="utf-8").split():
            word, _, tag = token.rpartition("/")
            if tag in ("nn", "nns"):
                counts[word.lower(), tag] += 1
    return counts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
