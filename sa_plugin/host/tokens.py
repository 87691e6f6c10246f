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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sa_plugin._check import users_line
from sa_plugin._face import face_methods
from sa_plugin.data.given import Chat, TokenIds
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


@face_methods
@dataclass(frozen=True, eq=False)
class TextEncoder:
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
        return f"BOS {self.name(self.first)}"

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

        Raises:
            ValueError: A chat that the tokenizer's template cannot render, or a token id that the
                vocabulary has not; the text names the sample.
        """
        texts = [sample for sample in samples if sample.source is None]
        found = {id(sample): tokens for sample, tokens in zip(texts, self._texts(texts), strict=True)}
        return [
            self._chat(sample, sample.source)
            if isinstance(sample.source, Chat)
            else self._ids(sample, sample.source)
            if isinstance(sample.source, TokenIds)
            else found[id(sample)]
            for sample in samples
        ]

    def _texts(self, samples: Sequence[Sample]) -> list[Tokens]:
        if not samples:
            return []
        texts = [sample.text for sample in samples]
        rows = self._rows(texts, self.add_special_tokens)
        made = [self._with_bos(tokens, text) for tokens, text in zip(rows, texts, strict=True)]
        twice = [sample.id for sample, (_, second) in zip(samples, made, strict=True) if second]
        if twice:
            name = self.tokenizer.bos_token if self.first is None else self.name(self.first)
            warnings.warn(
                f"{len(twice)} text(s) begin with a BOS, {name!r}, that is there already ({twice[0]!r} is "
                "one): the second is left out. A text from a chat template has its BOS; give the messages "
                "themselves, and the template is the model's.",
                SecondBosWarning,
                stacklevel=users_line(),
            )
        return [tokens for tokens, _ in made]

    def _chat(self, sample: Sample, chat: Chat) -> Tokens:
        """The tokens of a rendered chat; rows are those that lie in turns that count."""
        from sa_plugin.host.chats import render

        rendered, places = render(self.tokenizer, sample.id, chat)
        (tokens,) = self._rows([rendered], False)
        row = np.zeros(len(tokens.ids), dtype=bool)
        offsets = np.zeros_like(tokens.offsets)
        for turn, (start, end, moved) in zip(chat.turns, places, strict=True):
            inside = (tokens.offsets[:, 0] < end) & (tokens.offsets[:, 1] > start)
            # A token may begin in the template, with the white space before a word.
            clipped = tokens.offsets[inside].clip(start, end)
            offsets[inside] = trim(chat.text, clipped + moved)
            row |= inside & turn.counted
        row &= ~tokens.special
        made = Tokens(tokens.ids, ~row, np.where(row[:, None], offsets, 0))
        if self.bos and not (len(made.ids) and made.ids[0] == self.first):
            return self._behind_bos(made)
        return made

    def _ids(self, sample: Sample, given: TokenIds) -> Tokens:
        """Token ids as they are: nothing is put in."""
        ids = np.array(given.ids, dtype=np.int64)
        if ids.max() >= len(self.tokenizer):
            raise ValueError(
                f"sample {sample.id!r} has the token id {ids.max()}; the vocabulary has "
                f"{len(self.tokenizer)}: these are ids of another tokenizer."
            )
        self._require_unpadded(sample, ids)
        spans = np.array(given.spans, dtype=np.int64).reshape(len(ids), 2)
        written = [
            self._is_special(one, given.text[a:b]) for one, (a, b) in zip(given.ids, spans, strict=True)
        ]
        return Tokens(ids, np.array(written, dtype=bool), spans)

    def _require_unpadded(self, sample: Sample, ids: Int[np.ndarray, " token"]) -> None:
        """Refuse padding: nothing would mask it out, and the other tokens attend to it."""
        pad = self.tokenizer.pad_token_id
        if pad is None:
            return
        # Where the padding is the BOS or the end of a text too, one of them is that.
        named = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)
        ends = int(pad in (*named, self.tokenizer.cls_token_id))
        for side in (ids, ids[::-1]):
            run = len(side) if (side == pad).all() else int((side != pad).argmax())
            if ends < run < len(side):
                raise ValueError(
                    f"sample {sample.id!r} has {run} padding tokens ({self.name(pad)!r}) at one end, which "
                    "the model would attend to: give token ids without padding, such as "
                    "ids[attention_mask.bool()], one list a text."
                )

    def named(self, ids: Sequence[int]) -> TokenIds:
        """Token ids with the characters that they stand for."""
        ids = list(ids)
        if not ids or min(ids) < 0 or max(ids) >= len(self.tokenizer):
            # Refused where it is read, by the sample's name.
            return TokenIds(ids)
        # Special tokens in front have no characters: a text behind a written one may be cut otherwise.
        lead = next((k for k, one in enumerate(ids) if one not in self.special), 0)
        for front in dict.fromkeys((lead, 0)):
            body = ids[front:]
            text = self.tokenizer.decode(body, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            spans = np.array([(0, 0)] * front + out["offset_mapping"], dtype=np.int64).reshape(-1, 2)
            if list(out["input_ids"]) == body:
                break
        else:
            # Ids that no text gives are shown one by one.
            pieces = [self.tokenizer.decode([one], clean_up_tokenization_spaces=False) for one in ids]
            pieces = [
                f" {piece}" if self.name(one).startswith("\u2581") else piece
                for one, piece in zip(ids, pieces, strict=True)
            ]
            text, ends = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
            spans = np.stack([np.append(0, ends[:-1]), ends], axis=1)
        # A model may say a null byte, which no text may hold: shown as what it is, no character.
        text = text.replace("\0", "\ufffd")
        return TokenIds(ids, text, [(int(a), int(b)) for a, b in trim(text, spans)])

    def name(self, token: int) -> str:
        """A token as the vocabulary writes it."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def _rows(self, texts: Sequence[str], add_special_tokens: bool) -> list[Tokens]:
        out = self.tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            truncation=False,
            padding=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        rows = zip(texts, out["input_ids"], out["special_tokens_mask"], out["offset_mapping"], strict=True)
        return [self._tokens(*row) for row in rows]

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
        return self._behind_bos(body), False

    def _behind_bos(self, body: Tokens) -> Tokens:
        front = Tokens(np.array([self.first]), np.array([True]), np.zeros((1, 2), dtype=np.int64))
        return Tokens(*(np.concatenate(pair) for pair in zip(front, body, strict=True)))


def _only_marks(body: Tokens, marks: Int[np.ndarray, " mark"], n: int, text: str) -> bool:
    """Whether nothing but marks and white space stands before a token."""
    before = [text[a:b] for k, (a, b) in enumerate(body.offsets[:n].tolist()) if k not in marks]
    return not "".join(before).strip()


def naming_of(host: Any) -> Callable[[Sequence[int]], TokenIds] | None:
    """What finds the characters of token ids, of a host that reads texts."""
    encode = getattr(getattr(host, "reader", None), "encode", None)
    return encode.named if isinstance(encode, TextEncoder) else None


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
