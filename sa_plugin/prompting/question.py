"""The words of a question, and the tokens that count as its answer.

Each concept is asked about on its own, with all concept names in sight, as in the paper (arXiv
2512.05038, prompting baseline; its exact words are not published, these are ours). The text comes
first and the concept last, so that all questions about a text share their beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sa_plugin.data import Sample

TEMPLATE = (
    "Passage: {text}\n\nConcepts: {concepts}.\n\n"
    "Question: Does the passage mention the concept {concept}? Answer Yes or No.\nAnswer:"
)
YES = ("Yes", "yes", " Yes", " yes", "YES")
NO = ("No", "no", " No", " no", "NO")


def check_template(template: str) -> None:
    """Refuse a template that does not ask.

    Raises:
        ValueError: It lacks a field, has an unknown one, or is malformed.
    """
    try:
        template.format(text="", concept="", concepts="")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the template has a field that is not known ({error}): use {{text}}, {{concept}} and "
            "{concepts}, and double the braces that are meant as such."
        ) from error
    for name in ("{text}", "{concept}"):
        if name not in template:
            raise ValueError(
                f"the template lacks {name}: it must name the text and the concept asked about."
            )


def questions(
    tokenizer: Any, sample: Sample, concepts: Sequence[str], template: str, chat: bool
) -> list[list[int]]:
    """Token ids of every question about one sample.

    Args:
        tokenizer: Of the model.
        sample: A text.
        concepts: One question each.
        template: With {text}, {concept} and {concepts}.
        chat: Whether the tokenizer's chat template goes around it.

    Raises:
        ValueError: The sample is an image.
    """
    if sample.image is not None:
        raise ValueError(
            f"sample {sample.id!r} is an image, and questions are about texts: leave it out."
        )
    names = ", ".join(concepts)
    found = []
    for concept in concepts:
        asked = template.format(text=sample.text, concept=concept, concepts=names)
        if chat:
            turn = [{"role": "user", "content": asked}]
            asked = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        # A chat template writes its special tokens itself.
        found.append(list(tokenizer(asked, add_special_tokens=not chat)["input_ids"]))
    return found


def require_chat(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        ValueError: It has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, so the model is no instruct model: give one, or "
            "chat=False to ask in plain text."
        )


def answer_tokens(
    tokenizer: Any, yes: Sequence[str], no: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Ids of the words for yes and no that are one token each.

    Raises:
        ValueError: None of the words for yes, or for no, is one token, or a token is both.
    """
    found = []
    for what, words in (("yes", yes), ("no", no)):
        pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        ids = sorted({one[0] for one in pieces if len(one) == 1})
        if not ids:
            raise ValueError(
                f"none of the words for {what}, {list(words)}, is one token of this tokenizer: "
                f"give {what}=[...] with words that are."
            )
        found.append(ids)
    both = sorted(set(found[0]) & set(found[1]))
    if both:
        raise ValueError(f"tokens {both} stand for yes and for no: give words that differ.")
    return found[0], found[1]


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Number of tokens with which all rows begin; at least one is left of each."""
    most = min(len(row) for row in rows) - 1
    first = rows[0]
    for k in range(most):
        if any(row[k] != first[k] for row in rows):
            return k
    return most
