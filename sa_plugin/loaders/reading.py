"""One reading of a user's copy: which concepts and samples are read, and how its parts become splits.

What is left out is counted by reason and never dropped in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sa_plugin._check import require_known
from sa_plugin.data.columns import column, name_of, whole_of
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.data.splits import Splits, text_key

# A quarter of train, where the files have no calibration part.
_CAL_SHARE = 0.25
_NAMED = 6


@dataclass(frozen=True)
class Reading:
    """What was asked of a loader, and what it left out so far.

    Attributes:
        name: Of the data set.
        root: Folder of the user's copy.
        split: "plain" divides documents at random, "published" takes the files' own parts.
        seed: Of the division and of what is drawn.
        concepts: Names; "all" for every one that the files have; None for the paper's.
        limit: At most this many samples, drawn by `seed`.
        skipped: What was left out, reason to count.
    """

    name: str
    root: Path
    split: str = "plain"
    seed: int = 0
    concepts: Sequence[str] | str | None = None
    limit: int | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def wanted(self, available: Collection[str], default: Sequence[str] | None = None) -> tuple[str, ...]:
        """Concepts to read, in order.

        Args:
            available: What the files have.
            default: Names to read when none are asked for, by default all; those that are not
                available are left out and counted.

        Raises:
            ValueError: A name asked for is not available.
        """
        if isinstance(self.concepts, str) and self.concepts != "all":
            raise ValueError(f"concepts is the string {self.concepts!r}: give a list of names, or 'all'.")
        if self.concepts == "all" or (self.concepts is None and default is None):
            return tuple(available)
        if self.concepts is not None and (named := column("concepts", self.concepts, name_of)):
            for name in named:
                require_known("concept", name, available)
            return tuple(named)
        found = tuple(name for name in default or () if name in available)
        if len(found) < len(default or ()):
            self.skipped["concepts of the paper that the files lack"] += len(default or ()) - len(found)
        return found

    def drawn(self, n: int, what: str) -> list[int]:
        """Which of `n` rows are read: all, or `limit` of them drawn by `seed`, in order.

        Raises:
            ValueError: `limit` is below 1.
        """
        if self.limit is not None and whole_of("limit", self.limit) < 1:
            raise ValueError(f"limit {self.limit} must be 1 or more, or None for every sample.")
        if self.limit is None or self.limit >= n:
            return list(range(n))
        self.skipped[f"{what} beyond limit={self.limit}"] += n - self.limit
        rng = np.random.default_rng(self.seed)
        return sorted(int(k) for k in rng.permutation(n)[: self.limit])

    def data(
        self,
        samples: Sequence[Sample],
        concepts: Sequence[str],
        parts: Sequence[str] | None,
        token_labels: str = "",
    ) -> ConceptData:
        """Data from what was read.

        Args:
            samples: What was read.
            concepts: Wanted concepts. Those without a positive sample are left out and counted,
                unless the user named them: then they are an error.
            parts: "train", "cal" or "test" of each sample by the files; None when they say nothing.
            token_labels: As in `ConceptData.from_samples`.

        Raises:
            ValueError: "published" was asked for, but the files have no parts, or no train or test
                part; and what `ConceptData` raises.
        """
        found = {concept for sample in samples for concept in sample.positive}
        named = self.concepts is not None and self.concepts != "all"
        kept = [c for c in concepts if named or c in found]
        empty = [c for c in concepts if c not in kept]
        if empty:
            names = ", ".join(empty[:_NAMED]) + (", ..." if len(empty) > _NAMED else "")
            self.skipped[f"concepts without a sample ({names})"] += len(empty)
        if not samples or not kept:
            raise ValueError(
                f"data set {self.name!r}: nothing to learn from in {len(samples)} samples that were read "
                f"(skipped: {dict(+self.skipped)}; wanted: {', '.join(concepts[:8]) or 'no concept'})."
            )
        published = None
        if self.split == "published":
            published = published_split(samples, parts, self.seed, self.name)
        return ConceptData.from_samples(
            samples,
            kept,
            Splits(published, seed=self.seed),
            name=f"{self.name}/{self.split}",
            skipped=+self.skipped,
            token_labels=token_labels,
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
    cal = {train[int(k)] for k in rng.permutation(len(train))[: round(_CAL_SHARE * len(train))]}
    return [
        "cal" if part == "train" and sample.document in cal else part
        for sample, part in zip(samples, parts, strict=True)
    ]


def one_document_a_text(texts: Iterable[str], ids: Iterable[str]) -> list[str]:
    """A document for each text, texts that repeat (up to spaces, case, line ends) sharing the first one's id.

    Otherwise one text could lie in two splits.
    """
    first: dict[str, str] = {}
    return [first.setdefault(text_key(text) or text, id_) for text, id_ in zip(texts, ids, strict=True)]
