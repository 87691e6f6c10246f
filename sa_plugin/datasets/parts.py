"""What loaders share: which concepts and rows are read, and how published parts become splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from sa_plugin._names import require_known
from sa_plugin.data import ConceptData
from sa_plugin.samples import Sample

CAL_SHARE = 0.25
NAMED = 6


def wanted_concepts(
    asked: Sequence[str] | str | None,
    default: Sequence[str],
    available: Collection[str],
    skipped: Counter[str],
) -> tuple[str, ...]:
    """Concepts to read, in order.

    Args:
        asked: Names; "all" for every available one; None for the default.
        default: Names to read when none are asked for; those that are not available are left out.
        available: What the files have.
        skipped: Counts default names that are not available.

    Raises:
        ValueError: A name asked for is not available.
    """
    if isinstance(asked, str) and asked != "all":
        raise ValueError(f"concepts is the string {asked!r}: give a list of names, or 'all'.")
    if asked == "all":
        return tuple(available)
    for name in asked or ():
        require_known("concept", name, available)
    if asked:
        return tuple(asked)
    found = tuple(name for name in default if name in available)
    if len(found) < len(default):
        skipped["concepts of the paper that the files lack"] += len(default) - len(found)
    return found


def drawn(
    n: int, limit: int | None, seed: int, skipped: Counter[str], what: str = "samples"
) -> list[int]:
    """Which of `n` rows are read: all, or `limit` of them drawn by `seed`, in order.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} must be 1 or more, or None for every sample.")
    if limit is None or limit >= n:
        return list(range(n))
    skipped[f"{what} beyond limit={limit}"] += n - limit
    rng = np.random.default_rng(seed)
    return sorted(int(k) for k in rng.permutation(n)[:limit])


def assemble(
    samples: Sequence[Sample],
    concepts: Sequence[str],
    *,
    asked: Sequence[str] | str | None,
    parts: Sequence[str] | None,
    split: str,
    seed: int,
    name: str,
    skipped: Counter[str],
) -> ConceptData:
    """Data from a loader's samples.

    Args:
        samples: What was read.
        concepts: Wanted concepts. Those without a positive sample are left out and counted, unless
            the user named them: then they are an error.
        asked: What the user gave for `concepts`.
        parts: "train", "cal" or "test" of each sample by the files; None when they say nothing.
        split: "plain" or "published".
        seed: Seed of the division.
        name: Of the data set.
        skipped: What was left out so far.

    Raises:
        ValueError: "published" was asked for, but the files have no parts, or no train or test
            part; and what `ConceptData` raises.
    """
    found = {concept for sample in samples for concept in sample.positive}
    named = asked is not None and asked != "all"
    kept = [c for c in concepts if named or c in found]
    empty = [c for c in concepts if c not in kept]
    if empty:
        names = ", ".join(empty[:NAMED]) + (", ..." if len(empty) > NAMED else "")
        skipped[f"concepts without a sample ({names})"] += len(empty)
    if not samples or not kept:
        raise ValueError(
            f"data set {name!r}: nothing to learn from in {len(samples)} samples that were read "
            f"(skipped: {dict(skipped)}; wanted: {', '.join(concepts[:8]) or 'no concept'})."
        )
    published = None if split == "plain" else published_split(samples, parts, seed, name)
    return ConceptData.from_samples(
        samples, kept, published, seed=seed, name=f"{name}/{split}", skipped=skipped
    )


def published_split(
    samples: Sequence[Sample], parts: Sequence[str] | None, seed: int, name: str
) -> list[str]:
    """The files' parts as splits; without a calibration part, a quarter of train is drawn for it.

    It is drawn by document and `seed`.

    Raises:
        ValueError: The files have no parts, or no train or test part.
    """
    lacking = [part for part in ("train", "test") if part not in (parts or ())]
    if parts is None or lacking:
        raise ValueError(
            f"data set {name!r} has no published {lacking[0]} part in what was read: use "
            "split='plain', which divides by document."
        )
    if "cal" in parts:
        return list(parts)
    train = sorted({s.document for s, p in zip(samples, parts, strict=True) if p == "train"})
    rng = np.random.default_rng(seed)
    cal = {train[int(k)] for k in rng.permutation(len(train))[: round(CAL_SHARE * len(train))]}
    return [
        "cal" if part == "train" and sample.document in cal else part
        for sample, part in zip(samples, parts, strict=True)
    ]


def one_document_a_text(texts: Sequence[str], ids: Sequence[str]) -> list[str]:
    """A document for each text, repeated texts sharing the first one's id.

    Otherwise one text could lie in two splits.
    """
    first: dict[str, str] = {}
    return [first.setdefault(text, id_) for text, id_ in zip(texts, ids, strict=True)]
