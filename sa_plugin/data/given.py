"""What a model is given where that is not a text: the messages of a chat, or token ids.

A chat is read by the model's own template, and data know no model: its text is what the turns say, one
a line, and labels are spans of it. The host renders the template and finds the turns in it. Marks, role
names and what else a template puts in are no rows, nor are turns of roles that are left out.

Token ids are read as they are. Their text is what a tokenizer makes of them, where one is at hand
(`Detector.find`), and else the numbers themselves; they are labelled by token masks, or as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from sa_plugin._face import face
from sa_plugin.data.columns import text_of


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    content: str


class ChatTurn(NamedTuple):
    """Characters of a chat's text that one turn says, and whether its tokens are rows."""

    start: int
    end: int
    counted: bool


@face
@dataclass(frozen=True)
class Chat:
    """Messages that the model reads by its own chat template.

    Args:
        messages: Each a mapping `{"role": ..., "content": ...}`.
        roles: Whose tokens are rows, such as `["assistant"]`; by default all.

    Raises:
        TypeError: A message is no such mapping.
        ValueError: There is none, one has other keys, or no turn is of these roles.

    Example:
        >>> chat = Chat([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"}], ["user"])
        >>> chat.text.split()
        ['Hi', 'Oh']
    """

    messages: Sequence[Any]
    roles: str | Collection[str] | None = None

    def __post_init__(self) -> None:
        made = tuple(_message(k, one) for k, one in enumerate(self.messages))
        if not made:
            raise ValueError("a chat has no messages: give [{'role': 'user', 'content': ...}, ...].")
        roles = (
            None
            if self.roles is None
            else frozenset([self.roles] if isinstance(self.roles, str) else self.roles)
        )
        object.__setattr__(self, "messages", made)
        object.__setattr__(self, "roles", roles)
        if not any(turn.counted and turn.end > turn.start for turn in self.turns):
            there = sorted({one.role for one in made})
            raise ValueError(
                f"no turn of the chat says anything and is of roles {sorted(roles or there)}: it has {there}."
            )

    @property
    def text(self) -> str:
        """What the turns say, one a line."""
        return "\n".join(one.content for one in self.messages)

    @property
    def turns(self) -> list[ChatTurn]:
        """Where each turn stands in the text."""
        found, start = [], 0
        for one in self.messages:
            end = start + len(one.content)
            found.append(ChatTurn(start, end, self.roles is None or one.role in self.roles))
            start = end + 1
        return found

    @property
    def record(self) -> list[Any]:
        """All of it, for a hash."""
        roles = None if self.roles is None else sorted(self.roles)
        return ["chat", [list(one) for one in self.messages], roles]


def _message(k: int, one: Any) -> Message:
    if isinstance(one, Message):
        return one
    if not isinstance(one, Mapping) or not {"role", "content"} <= set(one):
        raise TypeError(f"message {k} of a chat is {one!r:.60}: give {{'role': ..., 'content': ...}}.")
    other = sorted(set(one) - {"role", "content"})
    if other:
        raise ValueError(f"message {k} of a chat has {other[0]!r}, which is not read: leave it out.")
    content = one["content"]
    if isinstance(content, list | tuple):
        content = "".join(_part(k, part) for part in content)
    if not isinstance(content, str) or not isinstance(one["role"], str):
        raise TypeError(f"message {k} of a chat is {one!r:.60}: role and content are texts.")
    return Message(one["role"], text_of(f"message {k} of a chat", content))


def _part(k: int, part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ValueError(f"message {k} of a chat holds {part!r:.60}, which is no text: texts alone are read.")


@face
@dataclass(frozen=True)
class TokenIds:
    """Token ids that the model is given as they are.

    Args:
        ids: Without padding; special ones are no rows.
        text: The characters that they stand for; by default the numbers.
        spans: Characters of each token, `(start, end)`; with `text`.

    Raises:
        ValueError: There is none, one is negative, or there is not one span a token.

    Example:
        >>> TokenIds([464, 3797]).text
        '464 3797'
    """

    ids: Sequence[int]
    text: str = ""
    spans: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        ids = tuple(int(one) for one in self.ids)
        if not ids or min(ids) < 0:
            raise ValueError(f"token ids are {list(ids)[:8]}: give one or more, none of them negative.")
        text, spans = self.text, tuple((int(start), int(end)) for start, end in self.spans)
        if not text and not spans:
            words = [str(one) for one in ids]
            ends = np.cumsum([len(word) + 1 for word in words]) - 1
            text = " ".join(words)
            spans = tuple((int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True))
        if len(spans) != len(ids):
            raise ValueError(f"there are {len(spans)} spans for {len(ids)} token ids: give one a token.")
        for name, value in {"ids": ids, "text": text, "spans": spans}.items():
            object.__setattr__(self, name, value)

    @property
    def record(self) -> list[Any]:
        """All of it, for a hash."""
        return ["ids", list(self.ids)]


def source_of(one: Any) -> Chat | TokenIds | None:
    """A chat or token ids from what is written as one; None of anything else."""
    if isinstance(one, Chat | TokenIds):
        return one
    if isinstance(one, list | tuple) and one and all(isinstance(part, Mapping) for part in one):
        return Chat(one)
    ids = _integers(one)
    return None if ids is None else TokenIds(ids)


def _integers(one: Any) -> list[int] | None:
    if hasattr(one, "detach"):
        # A tensor of torch, which nothing here needs to know.
        one = one.detach().cpu().numpy()
    if isinstance(one, np.ndarray):
        return one.tolist() if one.ndim == 1 and one.dtype.kind in "iu" and len(one) else None
    listed = isinstance(one, list | tuple) and len(one) > 0
    whole = listed and all(isinstance(n, Integral) and not isinstance(n, bool) for n in one)
    return [int(n) for n in one] if whole else None


def given_of(where: str, value: Any) -> str | Chat | TokenIds:
    """A reader of a column: a text, a chat or token ids."""
    source = source_of(value)
    if source is not None:
        return source
    if isinstance(value, Mapping):
        raise TypeError(f"{where} is one message of a chat: a chat is a list of messages.")
    return text_of(where, value)


def plain(given: str | Chat | TokenIds) -> str:
    """The text of what is given."""
    return given if isinstance(given, str) else given.text


def source_or_none(given: str | Chat | TokenIds) -> Chat | TokenIds | None:
    """What the model is given in place of the text."""
    return None if isinstance(given, str) else given
