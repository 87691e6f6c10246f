"""Counts of the finished file, as the tables of docs/supersense.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import sqrt

from sa_plugin.loaders import SupersensePassage
from supersense.review import Verdict


def wilson(right: int, read: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion."""
    share = right / read
    middle = (share + z * z / (2 * read)) / (1 + z * z / read)
    half = z * sqrt(share * (1 - share) / read + z * z / (4 * read * read)) / (1 + z * z / read)
    return middle - half, middle + half


def precision(right: int, read: int) -> str:
    """Return a share with its interval, or a dash where nothing was read."""
    if not read:
        return "-"
    low, high = wilson(right, read)
    return f"{right}/{read} ({low:.2f}-{high:.2f})"


def concept_table(
    passages: Sequence[SupersensePassage], concepts: Sequence[str], review: Sequence[Verdict]
) -> str:
    """Return passages, spans, lemmas and precision of each concept in the plain set."""
    rows = [
        "| concept | passages | share | sotu / moby | spans | lemmas | precision | ten commonest lemmas |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for concept in concepts:
        having = [p for p in passages if any(c == concept for _s, _e, c in p.spans)]
        sotu = sum(p.document.startswith("sotu") for p in having)
        lemmas = lemma_counts(having, concept)
        read = [v for v in review if v.concept == concept and v.verdict]
        right = sum(v.verdict == "right" for v in read)
        commonest = ", ".join(f"{lemma} {count}" for lemma, count in lemmas.most_common(10))
        rows.append(
            f"| {concept} | {len(having)} | {len(having) / len(passages):.3f} | "
            f"{sotu} / {len(having) - sotu} | {lemmas.total()} | {len(lemmas)} | "
            f"{precision(right, len(read))} | {commonest} |"
        )
    return "\n".join(rows)


def held_out_table(passages: Sequence[SupersensePassage], concepts: Sequence[str]) -> str:
    """Return passages of each concept, and distinct lemmas, in the held-out-lemma splits."""
    splits = ("train", "cal", "test")
    parts = {split: [p for p in passages if p.held_out_lemma == split] for split in splits}
    rows = [
        "| concept | train | cal | test | lemmas seen | lemmas held out | commonest held out |",
        "|---|---|---|---|---|---|---|",
    ]
    for concept in concepts:
        counts = [sum(any(c == concept for *_, c in p.spans) for p in parts[s]) for s in splits]
        seen = lemma_counts([*parts["train"], *parts["cal"]], concept)
        held = lemma_counts(parts["test"], concept)
        top = ", ".join(lemma for lemma, _count in held.most_common(5))
        numbers = " | ".join(map(str, [*counts, len(seen), len(held)]))
        rows.append(f"| {concept} | {numbers} | {top} |")
    numbers = " | ".join(str(len(parts[split])) for split in splits)
    return "\n".join([*rows, f"| all passages | {numbers} | | | |"])


def source_table(passages: Sequence[SupersensePassage]) -> str:
    """Return passages and documents of each source, plain and held-out-lemma."""
    rows = ["| set | source | passages | documents | words a passage |", "|---|---|---|---|---|"]
    sets = (
        ("plain", [p for p in passages if p.plain]),
        ("held-out-lemma", [p for p in passages if p.held_out_lemma]),
    )
    for name, chosen in sets:
        for source in ("sotu", "moby"):
            of_source = [p for p in chosen if p.document.startswith(source)]
            words = sum(len(p.text.split()) for p in of_source) / len(of_source)
            documents = len({p.document for p in of_source})
            rows.append(f"| {name} | {source} | {len(of_source)} | {documents} | {words:.0f} |")
    return "\n".join(rows)


def lemma_counts(passages: Sequence[SupersensePassage], concept: str) -> Counter[str]:
    """Count the labelled lemmas of a concept."""
    return Counter(
        lemma
        for passage in passages
        for (_start, _end, name), lemma in zip(passage.spans, passage.lemmas, strict=True)
        if name == concept
    )
