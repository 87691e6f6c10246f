"""Texts to batches: tokens with character offsets, grouped by length, padded by ourselves.

The tokenizer's own rule decides on special tokens, unless a host is attached with
`add_special_tokens=False` (as the paper reads texts): then none are put in.

A byte-level token carries the white space before its word; offsets are trimmed to the other
characters, so that a token is shown, and labelled, by its word alone. A token that is only white
space keeps its offsets: it gets a label only where a labelled span covers that white space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sa_plugin.data.sample import Sample
from sa_plugin.host.protocol import Batch

PaddingSide = Literal["left", "right"]
TEXTS = (
    "The committee met on Tuesday, and nobody there had read the report.",
    "A small dog slept.",
    "In 1912 the ship left harbour with  two thousand people aboard;\nfew of them knew its name.",
    "Her naïve plan — to walk home — failed.",
)
PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


class Tokens(NamedTuple):
    """One text's tokens."""

    ids: Int[np.ndarray, " token"]
    special: Bool[np.ndarray, " token"]
    offsets: Int[np.ndarray, "token 2"]


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
class TextReader:
    """What turns texts into batches.

    Attributes:
        tokenizer: Gives character offsets, see `check_tokenizer`.
        model: Its name, for errors.
        context: Tokens the model takes, or None where there is no limit.
        padding_side: Where padding goes; it changes no number.
        add_special_tokens: Whether the tokenizer's own rule for special tokens holds.
    """

    tokenizer: Any
    model: str
    context: int | None
    padding_side: PaddingSide = "right"
    add_special_tokens: bool = True

    @property
    def bos(self) -> bool:
        """Whether the first token of a text is a special one."""
        return bool(self._encode(["The cat sat."])[0].special[0])

    @property
    def tokenizer_hash(self) -> str:
        """Hash of everything that decides which tokens a text becomes."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for changing in ("padding", "truncation"):
            state.pop(changing, None)
        text = json.dumps(state, sort_keys=True) + ("" if self.add_special_tokens else " bare")
        return hashlib.sha256(text.encode()).hexdigest()

    def batches(self, samples: Sequence[Sample], batch_tokens: int, *, extra: int = 0) -> list[Batch]:
        """Tokenise texts and batch them, whole texts only.

        Args:
            samples: The samples.
            batch_tokens: See `make_batches`.
            extra: See `make_batches`.

        Raises:
            ValueError: A sample is an image, or a text has no token or more than the context holds.
        """
        image = next((sample for sample in samples if sample.image is not None), None)
        if image is not None:
            raise ValueError(
                f"sample {image.id!r} is an image; {self.model} reads texts. Attach a vision model "
                "(load_bridge takes ViT, DINOv2 and CLIP folders)."
            )
        tokens = self._encode([sample.text for sample in samples])
        for sample, row in zip(samples, tokens, strict=True):
            if self.context is not None and len(row.ids) > self.context:
                raise ValueError(
                    f"sample {sample.id!r} has {len(row.ids)} tokens; {self.model} takes "
                    f"{self.context}. Nothing is cut off silently: split the text into shorter samples."
                )
        pad, side = self.tokenizer.pad_token_id, self.padding_side
        return make_batches(
            samples, tokens, batch_tokens=batch_tokens, side=side, extra=extra, pad=0 if pad is None else pad
        )

    def probe_inputs(self) -> dict[str, Tensor]:
        """The inputs of a short text, for checks.

        Raises:
            ValueError: The tokenizer makes less than two tokens of it.
        """
        ids = self._encode([PROBE_TEXT])[0].ids
        if len(ids) < 2:
            raise ValueError(f"the tokenizer makes {len(ids)} token of {PROBE_TEXT!r}.")
        row = torch.from_numpy(ids)[None]
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}

    def check_samples(self) -> list[Sample]:
        """Texts of several lengths for `sa_plugin.host.checks.check`."""
        return [Sample(f"text {k}", text, str(k)) for k, text in enumerate(TEXTS)]

    def _encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenise texts, whole and unpadded, with trimmed offsets (zero for special tokens)."""
        if not texts:
            return []
        out = self.tokenizer(
            list(texts),
            add_special_tokens=self.add_special_tokens,
            truncation=False,
            padding=False,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        rows = zip(texts, out["input_ids"], out["special_tokens_mask"], out["offset_mapping"], strict=True)
        return [_tokens(*row) for row in rows]


def _tokens(text: str, ids: list[int], special: list[int], offsets: list[tuple[int, int]]) -> Tokens:
    is_special = np.array(special, dtype=bool)
    spans = np.array(offsets, dtype=np.int64).reshape(len(ids), 2)
    spans = trim(text, spans)
    spans[is_special] = 0
    return Tokens(np.array(ids, dtype=np.int64), is_special, spans)


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


def make_batches(
    samples: Sequence[Sample],
    tokens: Sequence[Tokens],
    *,
    batch_tokens: int,
    side: PaddingSide,
    pad: int,
    extra: int = 0,
) -> list[Batch]:
    """Group by length and pad.

    Args:
        samples: For the texts of errors.
        tokens: Of each sample.
        batch_tokens: At most this many tokens a batch, padding included (one sample at least).
        side: Where padding goes.
        pad: Token that fills; masked out, so that any does.
        extra: More padding than needed, for the law that its amount changes nothing.

    Raises:
        ValueError: A text has no token, or `batch_tokens` is not positive.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; give a positive number.")
    for sample, row in zip(samples, tokens, strict=True):
        if row.special.all():
            raise ValueError(
                f"sample {sample.id!r} has no token (its text is {sample.text[:40]!r}): leave it out."
            )
    lengths = np.array([len(row.ids) for row in tokens], dtype=np.int64)
    groups = _groups(lengths + extra, batch_tokens)
    return [_collate(group, tokens, int(lengths[group].max()) + extra, side, pad) for group in groups]


def _groups(lengths: Int[np.ndarray, " sample"], most: int) -> list[Int[np.ndarray, " row"]]:
    # Short texts together, so that little is padded.
    order = np.argsort(lengths, kind="stable")
    groups: list[list[int]] = []
    for row in order.tolist():
        # Lengths ascend, so the newest sample is the longest of its group.
        if groups and (len(groups[-1]) + 1) * lengths[row] <= most:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [np.array(group, dtype=np.int64) for group in groups]


def _collate(
    rows: Int[np.ndarray, " row"], tokens: Sequence[Tokens], width: int, side: PaddingSide, pad: int
) -> Batch:
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    valid = np.zeros((len(rows), width), dtype=bool)
    offsets = np.zeros((len(rows), width, 2), dtype=np.int64)
    for k, row in enumerate(rows):
        n = len(tokens[row].ids)
        place = slice(width - n, width) if side == "left" else slice(0, n)
        ids[k, place], mask[k, place] = tokens[row].ids, 1
        valid[k, place], offsets[k, place] = ~tokens[row].special, tokens[row].offsets
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if side == "left" and not mask.all():
        # Models count positions from the left end, padding included, unless they are told.
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    return Batch(torch.from_numpy(rows), inputs, torch.from_numpy(valid), torch.from_numpy(offsets))
