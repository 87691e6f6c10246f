"""Contexts of a stated length with a concept placed by a plan: the data that the tail law is tried on.

A context of N tokens is built of whole sentences. Those of the concept ("carriers") are put among sentences
without any of the source's concepts ("filler", in the order of their document); the first or the last
sentence of filler is cut so that there are N tokens exactly. A plan says, for all contexts alike,

    tokens       N
    in_concept   m, in-concept tokens of a positive context: exactly that for m below 8, else within an eighth
    runs         number of carriers
    arrangement  where they stand: "one" after another ("clustered"), or evenly far apart ("spread")
    present      how many of the source's concepts a context has; one card of the draw is blank

so that negatives of a concept are contexts of blank cards and of its sister concepts, from the same
documents. Tokens are those of `tokenise`; without it, words and marks.

Splits and units. A context mixes sentences of several documents, so documents are dealt into *decks* of
some `DECKS`, each with documents of every concept as far as they go; a context is built of one deck, which
is its `document`, the unit of splitting and resampling: no source document is in two decks. There are four
splits: vectors are fitted on train; `guard` chooses nothing, it is what the tail law may measure; thresholds
are chosen on cal. Lemmas of nouns are dealt too: those of train's carriers are in no other split, so that the
vectors have seen none of the others; guard, cal and test share theirs. A deck's sentences stand in several of
its contexts.

What this does not show: anything of texts as they come. Contexts are cut from prose and put together again;
a carrier stands among sentences of other documents, which may be told from its neighbours by more than the
concept. All concepts of a context have the same m.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import SplitName
from sa_plugin.data.splits import Splits
from sa_plugin.loaders.tail_pieces import SOURCES, TailPiece

Tokenise = Callable[[Sequence[str]], Sequence[Int[np.ndarray, "token 2"]]]
"""Texts to the character offsets of their tokens, special tokens left out."""
ARRANGEMENTS = ("clustered", "spread")
DECKS = {"embedded": 20, "nouns": 8, "sentences": 6, "genres": 6}
"""Documents of a deck: the rarer a source's concepts, the more."""
# Shares of decks, and of a concept's carriers by lemma.
_PARTS: dict[SplitName, float] = {"train": 0.28, "guard": 0.2, "cal": 0.2, "test": 0.32}
_LEMMAS = {"train": 0.4, "others": 0.6}
_EXACT = 8
_TRIES = 300
_ALONE = re.compile(r"\w+|[^\w\s]")


@face
@dataclass(frozen=True)
class TailPlan:
    """Length and span of all contexts.

    Attributes:
        tokens: N.
        in_concept: m; equal to `tokens` for contexts that are of the concept as a whole.
        runs: Carriers of a concept.
        arrangement: "clustered" or "spread"; one carrier stands anywhere.
        present: Concepts of a context, at most; one card of the draw is blank.
    """

    tokens: int = 64
    in_concept: int = 1
    runs: int = 1
    arrangement: Literal["clustered", "spread"] = "clustered"
    present: int = 1

    def __post_init__(self) -> None:
        require_known("arrangement", self.arrangement, ARRANGEMENTS)
        if not 1 <= self.runs <= self.in_concept <= self.tokens:
            raise ValueError(
                f"{self.in_concept} in-concept tokens in {self.runs} runs of a context of {self.tokens}: "
                "give 1 <= runs <= in_concept <= tokens."
            )
        if self.present < 1:
            raise ValueError(f"present is {self.present}: a context has at least one card.")

    @property
    def slack(self) -> int:
        """By how many in-concept tokens a context may miss."""
        return self.in_concept // _EXACT

    @property
    def whole(self) -> bool:
        """Whether a positive context has no filler."""
        return self.in_concept == self.tokens


def words_and_marks(texts: Sequence[str]) -> list[Int[np.ndarray, "token 2"]]:
    """Offsets of words and marks, where no model's tokenizer is given.

    Example:
        >>> words_and_marks(["No, I am."])[0].tolist()
        [[0, 2], [2, 3], [4, 5], [6, 8], [8, 9]]
    """
    return [
        np.array([m.span() for m in _ALONE.finditer(text)], dtype=np.int64).reshape(-1, 2) for text in texts
    ]


def load_tail_spans(
    *,
    spans: str = "embedded",
    plan: TailPlan = TailPlan(),
    contexts: Mapping[str, int] | None = None,
    tokenise: Tokenise = words_and_marks,
    root: str | Path | None = None,
    seed: int = 0,
) -> ConceptData:
    """Contexts of one plan as data.

    Args:
        spans: Source of the sentences and what is labelled in them: "embedded", or "nouns", "sentences" or
            "genres" of Brown.
        plan: Length and span.
        contexts: Number of contexts of each split; by default 200 of train, 100 of guard and of cal, 200 of
            test.
        tokenise: Of the model that will read them, so that lengths count in its tokens.
        root: The folder of Brown; by default where `load("brown")` looks.
        seed: Of the decks, the lemmas and every context.

    Returns:
        Data with the source's concepts.

    Raises:
        FileNotFoundError: Brown is not there.
        ValueError: Unknown source or split, or a split has no deck whose sentences of a concept make up the
            plan.

    Example:
        >>> data = load_tail_spans(plan=TailPlan(tokens=48), contexts={"train": 40, "cal": 20, "test": 20})
        >>> data.concepts
        ('animal', 'body', 'food')
    """
    require_known("spans of tail_spans", spans, SOURCES)
    counts = {"train": 200, "guard": 100, "cal": 100, "test": 200} if contexts is None else contexts
    for name in counts:
        require_known("split of contexts", name, _PARTS)
    concepts, _ = SOURCES[spans]
    pieces = _pieces(spans, None if root is None else Path(root).expanduser())
    tables = tail_decks(pieces, concepts, tokenise, size=DECKS[spans], seed=seed)
    built = [
        (split, *one)
        for number, split in enumerate(_PARTS)
        if counts.get(split)
        for one in _contexts(tables[split], concepts, plan, counts[split], (seed, number), tokenise)
    ]
    return ConceptData.from_spans(
        [context.text for *_, context in built],
        [context.spans for *_, context in built],
        concepts=concepts,
        documents=[f"{split}-{deck:02d}" for split, deck, _ in built],
        ids=[f"{split}-{deck:02d}-{k:05d}" for k, (split, deck, _) in enumerate(built)],
        splits=Splits(of=[split for split, *_ in built], seed=seed),
        name=f"tail_spans/{spans}/{plan.tokens}",
    )


@cache
def _pieces(source: str, root: Path | None) -> tuple[TailPiece, ...]:
    return tuple(SOURCES[source][1](root))


class Sized(NamedTuple):
    """A sentence with its tokens counted: all of them, and those in its concept."""

    piece: TailPiece
    tokens: int
    inside: int


@dataclass(frozen=True)
class Deck:
    """Sentences of some documents of one split.

    Attributes:
        documents: Their names.
        filler: Sentences without a concept, in order.
        carriers: Concept to the sentences with it, none other and no lemma of another split.
    """

    documents: tuple[str, ...]
    filler: tuple[Sized, ...]
    carriers: Mapping[str, tuple[Sized, ...]]


class Built(NamedTuple):
    """A context."""

    text: str
    spans: list[tuple[int, int, str]]


def tail_decks(
    pieces: Sequence[TailPiece],
    concepts: Sequence[str],
    tokenise: Tokenise = words_and_marks,
    *,
    size: int = 6,
    seed: int = 0,
) -> dict[SplitName, list[Deck]]:
    """Decks of each split.

    Args:
        pieces: Sentences of all documents.
        concepts: Names.
        tokenise: Counts their tokens, as they stand behind a space.
        size: Documents of a deck.
        seed: Of the deal.
    """
    rng = np.random.default_rng([seed, len(_PARTS)])
    by_document: dict[str, list[TailPiece]] = defaultdict(list)
    for piece in pieces:
        by_document[piece.document].append(piece)
    dealt = _dealt(by_document, concepts, size, rng)
    part_of = _lemma_parts(pieces, concepts, rng)
    offsets = tokenise([f" {piece.text}" for piece in pieces])
    sized = {
        id(piece): Sized(piece, len(own), _inside(piece, own - 1))
        for piece, own in zip(pieces, offsets, strict=True)
    }
    found: dict[SplitName, list[Deck]] = {}
    for split, decks in dealt.items():
        part = "train" if split == "train" else "others"
        found[split] = []
        for names in decks:
            own = [sized[id(piece)] for name in names for piece in by_document[name]]
            carriers = {
                concept: tuple(
                    one
                    for one in own
                    if one.piece.concepts == {concept}
                    and all(part_of.get((concept, lemma), part) == part for lemma in one.piece.lemmas)
                )
                for concept in concepts
            }
            filler = tuple(one for one in own if not one.piece.spans)
            found[split].append(Deck(tuple(names), filler, carriers))
    return found


def _inside(piece: TailPiece, offsets: Int[np.ndarray, "token 2"]) -> int:
    hit = np.zeros(len(offsets), dtype=bool)
    for start, end, _ in piece.spans:
        hit |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    return int(hit.sum())


def _dealt(
    by_document: Mapping[str, Sequence[TailPiece]],
    concepts: Sequence[str],
    size: int,
    rng: np.random.Generator,
) -> dict[SplitName, list[list[str]]]:
    """Documents in decks, decks in splits; documents of one leading concept go to different decks."""
    counts = {name: Counter(c for piece in own for c in piece.concepts) for name, own in by_document.items()}
    total = Counter(c for one in counts.values() for c in one.elements())

    def leads(name: str) -> int:
        shares = [counts[name][c] / max(total[c], 1) for c in concepts]
        return int(np.argmax(shares)) if max(shares) > 0 else len(shares)

    names = sorted(by_document)
    order = sorted((names[i] for i in rng.permutation(len(names))), key=leads)
    n = max(len(_PARTS), len(names) // size)
    decks = [order[k::n] for k in range(n)]
    ends = np.round(np.cumsum(list(_PARTS.values())) * n).astype(int)
    # Where there are few decks each split still has one.
    ends = np.maximum(ends, np.arange(1, len(ends) + 1))
    ends[-1] = n
    mixed = [decks[i] for i in rng.permutation(n)]
    starts = [0, *ends[:-1].tolist()]
    return {split: mixed[a:b] for split, a, b in zip(_PARTS, starts, ends.tolist(), strict=True)}


def _lemma_parts(
    pieces: Sequence[TailPiece], concepts: Sequence[str], rng: np.random.Generator
) -> dict[tuple[str, str], str]:
    """The part of each lemma: the commonest first, each to the part that lacks most of its share."""
    counts: Counter[tuple[str, str]] = Counter()
    for piece in pieces:
        for (*_, concept), lemma in zip(piece.spans, piece.lemmas, strict=True):
            if lemma:
                counts[concept, lemma] += 1
    found: dict[tuple[str, str], str] = {}
    for concept in concepts:
        own = [key for key in sorted(counts) if key[0] == concept]
        order = sorted((own[i] for i in rng.permutation(len(own))), key=lambda key: -counts[key])
        total, held = sum(counts[key] for key in own), dict.fromkeys(_LEMMAS, 0)
        for key in order:
            part = max(_LEMMAS, key=lambda name: _LEMMAS[name] * total - held[name])
            found[key] = part
            held[part] += counts[key]
    return found


def _contexts(
    decks: Sequence[Deck],
    concepts: Sequence[str],
    plan: TailPlan,
    n: int,
    seed: tuple[int, int],
    tokenise: Tokenise,
) -> list[tuple[int, Built]]:
    """Contexts of one split; decks take turns.

    Raises:
        ValueError: A concept can be placed in no deck.
    """
    able = [[c for c in concepts if _can(deck, c, plan)] for deck in decks]
    usable = [k for k, deck in enumerate(decks) if sum(one.tokens for one in deck.filler) >= plan.tokens]
    for concept in concepts:
        if not any(concept in able[k] for k in usable):
            most = max((sum(one.inside for one in deck.carriers[concept]) for deck in decks), default=0)
            raise ValueError(
                f"concept {concept!r}: no deck of split {[*_PARTS][seed[1]]!r} has {plan.runs} sentences "
                f"with {plan.in_concept} tokens of it (within {plan.slack}) and {plan.tokens} of filler; the "
                f"richest has {most} in all. Ask for fewer runs, another in_concept, or shorter contexts."
            )
    found = []
    for k in range(n):
        # Context k of a split depends on seed, split and k: more contexts leave the first as they are.
        rng = np.random.default_rng([*seed, k])
        deck = usable[k % len(usable)]
        cards = [*able[deck], None]
        drawn = [cards[i] for i in rng.permutation(len(cards))[: plan.present]]
        chosen = [c for c in drawn if c is not None]
        found.append((deck, _build(decks[deck], chosen, plan, rng, tokenise)))
    return found


def _can(deck: Deck, concept: str, plan: TailPlan) -> bool:
    return _carriers(deck.carriers[concept], plan, np.random.default_rng(0)) is not None


def _carriers(given: Sequence[Sized], plan: TailPlan, rng: np.random.Generator) -> list[Sized] | None:
    """Different sentences whose in-concept tokens are m, or as near as the slack allows; None without any."""
    if plan.whole:
        return _in_order(given, plan.tokens, rng)
    if len(given) < plan.runs:
        return None
    of_size: dict[int, list[Sized]] = defaultdict(list)
    for one in given:
        of_size[one.inside].append(one)
    near = sorted(range(-plan.slack, plan.slack + 1), key=abs)
    for _ in range(_TRIES):
        first = [given[i] for i in rng.permutation(len(given))[: plan.runs - 1]]
        rest = plan.in_concept - sum(one.inside for one in first)
        for miss in near:
            last = [one for one in of_size.get(rest + miss, ()) if one not in first]
            if last:
                picked = [*first, last[int(rng.integers(len(last)))]]
                room = sum(one.tokens for one in picked) < plan.tokens
                if room:
                    return picked
                break
    return None


def _in_order(
    given: Sequence[Sized], tokens: int, rng: np.random.Generator, *, back: bool = False
) -> list[Sized] | None:
    """Sentences that follow each other, from a random one on, until there are at least so many tokens.

    They are gathered forwards or backwards, so that one cut of the last that came is enough.
    """
    if sum(one.tokens for one in given) < tokens:
        return None
    start, held = int(rng.integers(len(given))), 0
    found: list[Sized] = []
    while held < tokens:
        step = -len(found) if back else len(found)
        found.append(given[(start + step) % len(given)])
        held += found[-1].tokens
    return found[::-1] if back else found


def _build(
    deck: Deck, chosen: Sequence[str], plan: TailPlan, rng: np.random.Generator, tokenise: Tokenise
) -> Built:
    """One context; sentences of filler are drawn anew until a cut gives exactly N tokens."""
    for _ in range(_TRIES):
        carriers: list[list[Sized]] = []
        for concept in chosen:
            picked = _carriers(deck.carriers[concept], plan, rng)
            used = sum(one.tokens for own in carriers for one in own)
            # Where the room is not enough for all cards, those drawn first are placed.
            if (picked is not None and used + sum(one.tokens for one in picked) < plan.tokens) or plan.whole:
                carriers.append(picked or [])
            if plan.whole:
                break
        front = bool(rng.integers(2)) and not plan.whole
        order = _ordered(deck, carriers, plan, rng, front)
        context = _cut(order, plan.tokens, front, tokenise)
        if context is not None:
            return context
    raise ValueError(
        f"no sentences of {', '.join(deck.documents)} can be cut to {plan.tokens} tokens: is the tokenizer "
        "one that gives the same tokens wherever a word stands?"
    )


def _ordered(
    deck: Deck, carriers: Sequence[Sequence[Sized]], plan: TailPlan, rng: np.random.Generator, front: bool
) -> list[TailPiece]:
    """Filler in order with the carriers among it; the sentence that will be cut is filler."""
    need = plan.tokens - sum(one.tokens for own in carriers for one in own)
    if need <= 0:
        return [one.piece for own in carriers for one in own]
    filler = _in_order(deck.filler, need, rng, back=front) or list(deck.filler)
    # Gaps between sentences of filler, but not before the first or behind the last where that is cut.
    gaps = np.arange(1, len(filler) + 1) if front else np.arange(len(filler))
    at: dict[int, list[TailPiece]] = defaultdict(list)
    for own in carriers:
        if plan.arrangement == "spread" and len(own) > 1:
            shift = rng.random()
            places = [gaps[int((k + shift) / len(own) * len(gaps))] for k in range(len(own))]
        else:
            places = [gaps[int(rng.integers(len(gaps)))]] * len(own)
        for place, one in zip(places, own, strict=True):
            # What stands first may be an attention sink: a concept's first token is put behind something.
            first = place == 0 and len(gaps) > 1 and one.piece.spans[0][0] == 0
            at[int(gaps[1]) if first else int(place)].append(one.piece)
    order: list[TailPiece] = []
    for k in range(len(filler) + 1):
        order += at[k]
        order += [filler[k].piece] if k < len(filler) else []
    return order


def _cut(order: Sequence[TailPiece], tokens: int, front: bool, tokenise: Tokenise) -> Built | None:
    """The sentences as one text, cut at one end; None if no cut gives the number of tokens."""
    starts = np.cumsum([0, *(len(piece.text) + 1 for piece in order)])
    text = " ".join(piece.text for piece in order)
    spans = [
        (int(at) + a, int(at) + b, concept)
        for piece, at in zip(order, starts, strict=False)
        for a, b, concept in piece.spans
    ]
    (offsets,) = tokenise([text])
    if len(offsets) < tokens:
        return None
    # Words at a cut may fall into other tokens than within the text: a token more or less is tried, too.
    for miss in (0, 1, -1, 2, -2):
        k = len(offsets) - tokens + miss if front else tokens - 1 + miss
        if not 0 <= k < len(offsets):
            continue
        low, high = (int(offsets[k, 0]), len(text)) if front else (0, int(offsets[k, 1]))
        if len(tokenise([text[low:high]])[0]) == tokens:
            kept = [(max(a, low) - low, min(b, high) - low, c) for a, b, c in spans if b > low and a < high]
            return Built(text[low:high], kept)
    return None
