"""Dividing source documents over train, calibration and test, a guard aside, and drawing a part of a split.

The unit is the *source document*: samples of one document are not independent of one another, so
they stay together here, and intervals leave out whole documents too.

    d -> argmax_s  sum_k  (want[s, k] - have[s, k]) / want[s, k]  *  counts[d, k] / total[k]

A guard, from which a promise is made, must be like what comes later: its documents are drawn at random,
before all others are divided.

`k` runs over the concepts (positive samples) and over all samples; `want` is the split's share of
each total, `have` what it holds so far. Documents with the largest share of a rare concept choose
first, so that what is scarce is spread before what is plentiful.

A repeated text whose copies lie in train and in test is learnt by heart. Texts are one text that are equal
up to spaces, case, line ends, quotes, dashes, invisible marks and Unicode's forms. Where nobody says
documents and splits, repeats are one document, unless then a split would lose a concept that it has
otherwise; where somebody does, a repeat that crosses splits is a warning.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sa_plugin._check import users_line
from sa_plugin._face import face
from sa_plugin.data.columns import Given, column, number_of, seed_of, text_of
from sa_plugin.data.sample import ALL_SPLITS, Sample, SplitName
from sa_plugin.statistics.hashed import name_keys, uniform

_Fractions = tuple[float, ...]
# As data sets call their parts.
_PARTS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("cal", "calibration", "validation", "valid", "val", "dev"), "cal"),
    "test": "test",
    "testing": "test",
    "guard": "guard",
}
# Quotes and dashes that programs put in for those of a keyboard.
_SINGLE, _DOUBLE, _DASH = (
    "\u2018\u2019\u201a\u201b\u2032\u00b4",
    "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb",
    "\u2010\u2011\u2012\u2013\u2014\u2212",
)
_TYPED = {ord(c): typed for typed, all_ in (("'", _SINGLE), ('"', _DOUBLE), ("-", _DASH)) for c in all_}


def split_of(where: str, value: object) -> str:
    """A reader of a split's name, by any that data sets use; one that is not known stays as it is."""
    name = text_of(where, value)
    return _PARTS.get(name.strip().lower(), name)


@face
@dataclass(frozen=True)
class Splits:
    """How samples are divided over train, cal and test, and guard if there is to be one.

    Args:
        of: "train", "cal" (or "validation", "val", "dev"), "test" or "guard" for each sample. By default
            source documents are divided by `fractions`, stratified over concepts.
        fractions: Shares of train, cal and test, when `of` is not given; a fourth is the share of documents
            drawn for the guard, which choose nothing (`Promise`).
        seed: Seed of the division.

    Raises:
        ValueError: The fractions are not three or four positive numbers that add up to 1.
    """

    of: Given[Sequence[str] | None] = None
    fractions: Given[_Fractions] = (0.6, 0.2, 0.2)
    seed: Given[int] = 0

    def __post_init__(self) -> None:
        if self.of is not None:
            object.__setattr__(self, "of", column("splits", self.of, split_of))
        object.__setattr__(self, "fractions", tuple(column("fractions", self.fractions, number_of)))
        object.__setattr__(self, "seed", seed_of("seed", self.seed))
        count = len(self.fractions)
        if count not in (3, 4) or min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(
                f"fractions {self.fractions} must be three positive numbers that add up to 1, or four with a "
                "guard."
            )


def split_documents(
    samples: Sequence[Sample], concepts: Sequence[str], splits: Splits | None = None
) -> list[SplitName]:
    """Divide source documents by `splits.fractions` and `splits.seed`, stratified over concepts.

    Returns:
        The split of each sample.
    """
    splits = splits or Splits()
    if len(splits.fractions) == 4:
        return _with_guard(samples, concepts, splits)
    documents = sorted({s.document for s in samples})
    row = {document: k for k, document in enumerate(documents)}
    counts = np.zeros((len(documents), len(concepts) + 1))
    for sample in samples:
        counts[row[sample.document], -1] += 1
        for k, concept in enumerate(concepts):
            counts[row[sample.document], k] += concept in sample.positive
    total = np.maximum(counts.sum(0), 1)
    rng = np.random.default_rng(splits.seed)
    # The draw breaks ties between documents that hold as much as each other, and nothing more.
    rarity = (counts / total).max(1) + rng.uniform(0, 1e-3, len(documents))
    want = np.outer(splits.fractions, total)
    have = np.zeros_like(want)
    home = np.zeros(len(documents), dtype=int)
    for d in np.argsort(-rarity, kind="stable"):
        lack = ((want - have) / want) @ (counts[d] / total)
        home[d] = int(np.argmax(lack))
        have[home[d]] += counts[d]
    return [ALL_SPLITS[home[row[s.document]]] for s in samples]


def _with_guard(samples: Sequence[Sample], concepts: Sequence[str], splits: Splits) -> list[SplitName]:
    """Documents drawn for the guard whatever is in them, the others divided as ever."""
    documents = sorted({s.document for s in samples})
    size = max(1, round(splits.fractions[3] * len(documents)))
    guard = set(np.random.default_rng([splits.seed, 1]).permutation(documents)[:size].tolist())
    others = [s for s in samples if s.document not in guard]
    shares = tuple(share / sum(splits.fractions[:3]) for share in splits.fractions[:3])
    found = iter(split_documents(others, concepts, Splits(fractions=shares, seed=splits.seed)))
    return ["guard" if s.document in guard else next(found) for s in samples]


def split_of_name(name: str, splits: Splits) -> SplitName:
    """The split of a document by its name alone: the same wherever and in whatever order it is read.

    `splits.fractions` hold on average; concepts are not spread evenly, as `split_documents` spreads them.
    """
    share = float(uniform(name_keys([name], splits.seed))[0])
    ends = np.cumsum(splits.fractions[:-1])
    return ALL_SPLITS[int(np.searchsorted(ends, share, side="right"))]


def draw_rare_first(
    samples: Sequence[Sample],
    rows: Sequence[int],
    concepts: Sequence[str],
    quota: int,
    rng: np.random.Generator,
) -> list[int]:
    """Draw `quota` of `rows` so that every concept keeps its share, rare concepts served first."""
    order = [int(i) for i in rng.permutation(rows)]
    by_concept = {c: [i for i in order if c in samples[i].positive] for c in concepts}
    drawn: dict[int, None] = {}
    for concept in sorted(concepts, key=lambda c: len(by_concept[c])):
        share = int(np.ceil(len(by_concept[concept]) * quota / len(rows)))
        # Samples drawn for a rarer concept may be positive for this one too: they count.
        missing = share - sum(concept in samples[i].positive for i in drawn)
        fresh = [i for i in by_concept[concept] if i not in drawn]
        drawn.update(dict.fromkeys(fresh[: max(0, min(missing, quota - len(drawn)))]))
    fill = [i for i in order if i not in drawn]
    return [*drawn, *fill[: quota - len(drawn)]]


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
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.translate(_TYPED)).casefold())
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
