"""Command, from the folder `docs/experiments`: `python -m supersense --work DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sa_plugin.loaders import SUPERSENSES as CONCEPTS
from sa_plugin.loaders import read_supersense
from supersense.choose import Labelled, choose_plain
from supersense.held_out import choose_held_out
from supersense.labels import Rule, label, read_list
from supersense.passages import read_moby, read_sotu, without_repeats
from supersense.report import concept_table, held_out_table, precision, source_table
from supersense.review import read_review, update_review
from supersense.sources import NPM_PACKAGES, npm_data, tagger_python, wordnet_folder
from supersense.tagging import tag
from supersense.wordnet import WordNet, read_wordnet
from supersense.write import write

FOLDER = Path(__file__).parent
DATA = FOLDER.parents[2] / "sa_plugin" / "loaders" / "supersense.jsonl.gz"


def label_all(work: Path, wordnet: WordNet) -> list[Labelled]:
    """Return every passage of both sources with its labels."""
    sotu, moby = (npm_data(work, package) for package in NPM_PACKAGES)
    passages = list(without_repeats([*read_sotu(sotu), *read_moby(moby)]))
    tags = tag(passages, tagger_python(work), work)
    rule = Rule(
        wordnet,
        frozenset(CONCEPTS),
        frozenset(read_list("exclusions.tsv")),
        {lemma: concept for lemma, concept in read_list("additions.tsv")},
    )
    return [Labelled(p, label(p, found, rule)) for p, found in zip(passages, tags, strict=True)]


def main() -> None:
    """Build the file, redraw the review sample and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m supersense")
    parser.add_argument("--work", type=Path, required=True, help="folder for packages and tags")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    wordnet = read_wordnet(wordnet_folder(work))
    pool = label_all(work, wordnet)
    plain = frozenset(item.passage.id for item in choose_plain(pool, CONCEPTS, arguments.seed))
    splits, _held = choose_held_out(pool, CONCEPTS, wordnet, arguments.seed)
    size = write(DATA, pool, CONCEPTS, plain, splits, arguments.seed)
    concepts, passages = read_supersense()
    unread = update_review(FOLDER / "supersense_review.csv", passages, concepts)
    review = read_review(FOLDER / "supersense_review.csv")
    print(concept_table([p for p in passages if p.plain], concepts, review))
    print(held_out_table(passages, concepts))
    print(source_table(passages))
    print(f"{len(pool)} passages cut, {len(passages)} shipped, {size} bytes")
    right = sum(verdict.verdict == "right" for verdict in review)
    print(f"precision {precision(right, len(review) - len(unread))}")
    print(f"{len(unread)} labels of the review sample are still to be read")


if __name__ == "__main__":
    main()
