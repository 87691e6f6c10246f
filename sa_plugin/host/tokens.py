"""What a sample's text becomes: token ids, which of them are special, and where each stands.

A special token is never a row, whether the tokenizer puts it in or the text holds it. The tokenizer's
`special_tokens_mask` marks only what it puts in itself; chat markers, a BOS or an end of text that is
*written* in the text count as ordinary there. Special here are the tokens that the tokenizer names
special (`all_special_ids`, added tokens with `special: true`), and added tokens that its chat template
uses as marks (`<|User|>` of DeepSeek is not called special). A word that the vocabulary lacks becomes
the unknown token, and stays a row: it stands for text.

Which token comes first is the tokenizer's own rule, or what `bos` says. A text that begins with a BOS
of its own gets no second one: the one that was put in is left out, with a warning.

A byte-level token carries the white space before its word; offsets are trimmed to the other
characters, so that a token is shown, and labelled, by its word alone. A token that is only white
space keeps its offsets: it gets a label only where a labelled span covers that white space.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sa_plugin._check import users_line
from sa_plugin.data.sample import Sample

SHORT_TEXT = "The cat sat."


class Tokens(NamedTuple):
    """One text's tokens."""

    ids: Int[np.ndarray, " token"]
    special: Bool[np.ndarray, " token"]
    offsets: Int[np.ndarray, "token 2"]


class SecondBosWarning(UserWarning):
    """A text begins with the BOS token that would be put first."""


NO_TOKENIZER = (
    "the model has no tokenizer, so texts cannot be read: attach(model, tokenizer=...) with a fast one."
)


def check_tokenizer(tokenizer: Any, lacking: str = NO_TOKENIZER) -> None:
    """Refuse what gives no character offsets.

    Args:
        tokenizer: Or None.
        lacking: What to say of None.

    Raises:
        ValueError: No tokenizer, or not a fast one.
    """
    if tokenizer is None:
        raise ValueError(lacking)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets, which token labels need: use "
            "a fast tokenizer (AutoTokenizer.from_pretrained(..., use_fast=True))."
        )


@dataclass(frozen=True, eq=False)
class Encoder:
    """A tokenizer with the rules for special tokens that a host was attached with.

    Attributes:
        tokenizer: Gives character offsets, see `check_tokenizer`.
        add_special_tokens: Whether the tokenizer's own rule for special tokens holds.
        bos: Whether a BOS is put first; None leaves it to the tokenizer's rule.

    Raises:
        ValueError: `bos=True` and the tokenizer has none, or no special token is to be put in.
    """

    tokenizer: Any
    add_special_tokens: bool = True
    bos: bool | None = None

    def __post_init__(self) -> None:
        if not self.bos:
            return
        if not self.add_special_tokens:
            raise ValueError(
                "bos=True puts a BOS in, add_special_tokens=False puts none in: give one of the two."
            )
        if self._own_first is None and self.tokenizer.bos_token_id is None:
            raise ValueError(
                f"bos=True: {type(self.tokenizer).__name__} has no BOS token (bos_token is None): leave "
                "bos out, or set tokenizer.bos_token to a token that the model was trained with."
            )

    @cached_property
    def _own_first(self) -> int | None:
        """What the tokenizer puts first by itself."""
        if not self.add_special_tokens:
            return None
        out = self.tokenizer(SHORT_TEXT, return_special_tokens_mask=True)
        return int(out["input_ids"][0]) if out["special_tokens_mask"][0] else None

    @cached_property
    def first(self) -> int | None:
        """The special token that is put first, or None."""
        if self.bos is False:
            return None
        if self._own_first is None and self.bos:
            return int(self.tokenizer.bos_token_id)
        return self._own_first

    @property
    def words(self) -> str:
        """What stands first, for a repr."""
        if self.first is None:
            return "no BOS"
        return f"BOS {self.tokenizer.convert_ids_to_tokens(self.first)}"

    @property
    def digest(self) -> str:
        """Hash of everything that decides which tokens a text becomes."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for changing in ("padding", "truncation"):
            state.pop(changing, None)
        text = json.dumps(state, sort_keys=True) + ("" if self.add_special_tokens else " bare")
        # A choice that is the tokenizer's own rule changes no token.
        text += "" if self.first == self._own_first else f" bos {self.first}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of special tokens and of chat marks."""
        known = set(self.tokenizer.all_special_ids)
        template = str(getattr(self.tokenizer, "chat_template", None) or "")
        for token_id, token in self.tokenizer.added_tokens_decoder.items():
            if token.special or (_is_mark(token.content) and token.content in template):
                known.add(token_id)
        return frozenset(known)

    def __call__(self, samples: Sequence[Sample]) -> list[Tokens]:
        """Tokenise samples, whole and unpadded, with trimmed offsets.

        Offsets are zero for special tokens that are put in.
        """
        if not samples:
            return []
        texts = [sample.text for sample in samples]
        out = self.tokenizer(
            texts,
            add_special_tokens=self.add_special_tokens,
            truncation=False,
            padding=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        rows = zip(texts, out["input_ids"], out["special_tokens_mask"], out["offset_mapping"], strict=True)
        made = [self._with_bos(self._tokens(*row), row[0]) for row in rows]
        twice = [sample.id for sample, (_, second) in zip(samples, made, strict=True) if second]
        if twice:
            assert self.first is not None
            name = self.tokenizer.convert_ids_to_tokens(self.first)
            warnings.warn(
                f"{len(twice)} text(s) begin with {name!r}, which is put first in any case ({twice[0]!r} "
                "is one): the second is left out. A text from a chat template has its BOS already.",
                SecondBosWarning,
                stacklevel=users_line(),
            )
        return [tokens for tokens, _ in made]

    def _tokens(self, text: str, ids: list[int], added: list[int], offsets: list[tuple[int, int]]) -> Tokens:
        spans = np.array(offsets, dtype=np.int64).reshape(len(ids), 2)
        marked = np.array(added, dtype=bool)
        put_in = marked & (spans[:, 0] == spans[:, 1])
        spans = trim(text, spans)
        spans[put_in] = 0
        written = [self._is_special(one, text[a:b]) for one, (a, b) in zip(ids, spans.tolist(), strict=True)]
        return Tokens(np.array(ids, dtype=np.int64), marked | np.array(written, dtype=bool), spans)

    def _is_special(self, token: int, characters: str) -> bool:
        if token not in self.special:
            return False
        # A word that the vocabulary lacks is text; only the unknown token's own name is special.
        if token != self.tokenizer.unk_token_id:
            return True
        return characters.strip() == str(self.tokenizer.unk_token).strip()

    def _with_bos(self, tokens: Tokens, text: str) -> tuple[Tokens, bool]:
        """Tokens with one BOS or none in front, and whether a second one was left out."""
        # What is put in has no characters of the text.
        put_in = len(tokens.ids) > 0 and bool(tokens.special[0]) and tokens.offsets[0, 1] == 0
        put_in = put_in and tokens.ids[0] == self._own_first
        body = Tokens(*(part[int(put_in) :] for part in tokens))
        wanted = self.tokenizer.bos_token_id if self.first is None else self.first
        written = np.flatnonzero(body.special & (body.ids == wanted) & (body.offsets[:, 1] > 0))
        # White space may stand before those that the text begins with.
        leading = [n for n in written.tolist() if _only_marks(body, written, n, text)]
        if leading and (self.first is not None or len(leading) > 1):
            return Tokens(*(part[leading[-1] :] for part in body)), True
        if put_in or self.first is None:
            return (body if self.first is None else tokens), False
        front = Tokens(np.array([self.first]), np.array([True]), np.zeros((1, 2), dtype=np.int64))
        return Tokens(*(np.concatenate(pair) for pair in zip(front, body, strict=True))), False


def _only_marks(body: Tokens, marks: Int[np.ndarray, " mark"], n: int, text: str) -> bool:
    """Whether nothing but marks and white space stands before a token."""
    before = [text[a:b] for k, (a, b) in enumerate(body.offsets[:n].tolist()) if k not in marks]
    return not "".join(before).strip()


def _is_mark(content: str) -> bool:
    """Whether an added token looks like a mark, not like a word, a number or white space."""
    ends = (content[:1], content[-1:])
    return len(content) > 2 and not any(end.isalnum() or end.isspace() for end in ends)


def trim(text: str, offsets: Int[np.ndarray, "token 2"]) -> Int[np.ndarray, "token 2"]:
    """Leave white space at both ends out of each token, unless nothing else is in it."""
    solid = np.array([not character.isspace() for character in text], dtype=bool)
    place = np.arange(len(text) + 1)
    # For every character: where the next solid one stands, and where the last one ended.
    at_or_after = np.append(np.where(solid, place[:-1], len(text)), len(text))
    at_or_after = np.minimum.accumulate(at_or_after[::-1])[::-1]
    end_before = np.maximum.accumulate(np.append(0, np.where(solid, place[1:], 0)))
    start, end = at_or_after[offsets[:, 0]], end_before[offsets[:, 1]]
    return np.where((start < end)[:, None], np.stack([start, end], axis=1), offsets)
