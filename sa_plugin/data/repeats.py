"""Texts that are one text: equal up to spaces, case, line ends, invisible marks and Unicode's forms.

A repeated text whose copies lie in train and in test is learnt by heart. Where nobody says documents and
splits, repeats are one document, unless then a split would lose a concept that it has otherwise; where
somebody does, a repeat that crosses splits is a warning.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import replace

from sa_plugin._check import users_line
from sa_plugin.data.sample import Sample, SplitName
from sa_plugin.data.splits import Splits, split_documents


class RepeatedTextWarning(UserWarning):
    """The same text lies in two splits, perhaps with other spaces, case or line ends."""


def text_key(text: str) -> str:
    """What two writings of one text have in common.

    Example:
        >>> text_key(" A  cat ") == text_key("a cat")
        True
    """
    if text.isascii():
        return " ".join(text.casefold().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # Marks of format (a byte order mark, a zero-width space) are not seen.
    return " ".join("".join(c for c in folded if unicodedata.category(c) != "Cf").split())


def sample_key(sample: Sample) -> str:
    """The same of a sample: pictures are one where their pixels are."""
    # A text of marks alone is its own.
    return sample.content if sample.image is not None else text_key(sample.text) or sample.text


def warn_of_repeats(samples: Sequence[Sample], split_of: Sequence[str]) -> None:
    """Count the samples that repeat one of another split, and warn."""
    first: dict[str, tuple[Sample, str]] = {}
    repeated: list[tuple[Sample, Sample]] = []
    for sample, of in zip(samples, split_of, strict=True):
        other, where = first.setdefault(sample_key(sample), (sample, of))
        if where != of:
            repeated.append((other, sample))
    if not repeated:
        return
    alike = sum(one.content != other.content for one, other in repeated)
    said = f" ({alike} with other spaces, case, line ends or forms of letters)" if alike else ""
    one, other = repeated[0]
    warnings.warn(
        f"{len(repeated)} text(s) stand in two splits{said}, {one.id!r} and {other.id!r} first: results on "
        "the second are too good. Give repeated texts one document.",
        RepeatedTextWarning,
        stacklevel=users_line(),
    )


def divided(
    samples: Sequence[Sample], concepts: Sequence[str], splits: Splits
) -> tuple[Sequence[Sample], list[SplitName]]:
    """Samples and their splits, repeated texts being one document where each sample was its own.

    With too few different texts to divide, repeats stay apart, and cross splits with a warning.
    """
    apart = split_documents(samples, concepts, splits)
    if any(sample.document != sample.id for sample in samples):
        return samples, apart
    first: dict[str, str] = {}
    homes = [first.setdefault(sample_key(sample), sample.id) for sample in samples]
    if len(first) == len(samples):
        return samples, apart
    joined = [s if s.id == d else replace(s, document=d) for s, d in zip(samples, homes, strict=True)]
    together = split_documents(joined, concepts, splits)
    if _filled(samples, apart) <= _filled(joined, together):
        return joined, together
    return samples, apart


def _filled(samples: Sequence[Sample], split_of: Sequence[str]) -> set[tuple[str, str | None]]:
    """Splits with a sample, and with a positive of each concept."""
    return {(of, c) for s, of in zip(samples, split_of, strict=True) for c in (None, *s.positive)}
