"""A chat as the model's template renders it, and where its turns stand in that.

The template is rendered a second time with a mark in place of every content. What stands between the
marks is the template's own; the turns are what is left of the rendered chat, to the character. A template
that leaves a turn out, says it twice or rewrites it is refused: labels would not know where they belong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sa_plugin.data.given import Chat


class Place(NamedTuple):
    """Where a turn stands in the rendered chat, and how far its characters move to the chat's text."""

    start: int
    end: int
    moved: int


def render(tokenizer: Any, sample: str, chat: Chat) -> tuple[str, list[Place]]:
    """The rendered chat and the place of every turn.

    Args:
        tokenizer: With a chat template.
        sample: Id, for errors.
        chat: The messages.

    Raises:
        ValueError: There is no template, it refuses the chat, or it rewrites a turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"sample {sample!r} is a chat, and {type(tokenizer).__name__} has no chat template: set "
            "tokenizer.chat_template, or give the text as the model was trained to see it."
        )
    contents = [one.content for one in chat.messages]
    # Private-use characters: no template strips or looks for them.
    marks = [f"\ue000{k}\ue001" for k, _ in enumerate(contents)]
    rendered, scaffold = (_apply(tokenizer, sample, chat, said) for said in (contents, marks))
    between, rest = [], scaffold
    for k, mark in enumerate(marks):
        if scaffold.count(mark) != 1 or mark not in rest:
            raise ValueError(_changed(sample, k))
        before, _, rest = rest.partition(mark)
        between.append(before)
    between.append(rest)
    places, at, moved = [], len(between[0]), 0
    for k, content in enumerate(contents):
        said = next((one for one in _forms(content) if rendered.startswith(one + between[k + 1], at)), None)
        if said is None or not rendered.startswith(between[0]):
            raise ValueError(_changed(sample, k))
        # Templates strip white space: the turn starts so much later in the text.
        start = moved + (content.index(said) if said else 0)
        places.append(Place(at, at + len(said), start - at))
        at += len(said) + len(between[k + 1])
        moved += len(content) + 1
    return rendered, places


def _forms(content: str) -> list[str]:
    """A content as it stands, and stripped as templates do it."""
    return [content, content.strip(), content.rstrip(), content.lstrip()]


def _apply(tokenizer: Any, sample: str, chat: Chat, contents: Sequence[str]) -> str:
    # Milliseconds that a start without a chat does not need.
    from jinja2 import TemplateError

    roles = [one.role for one in chat.messages]
    messages = [{"role": role, "content": said} for role, said in zip(roles, contents, strict=True)]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses sample {sample!r}: {error}") from error


def _changed(sample: str, k: int) -> str:
    return (
        f"the model's chat template does not say message {k} of sample {sample!r} as it stands, once and in "
        "its place: leave that message out, or render the chat yourself and give the text."
    )
