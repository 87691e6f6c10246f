"""Samples longer than the model: windows of their tokens that overlap, each token counted once.

A text of n tokens is cut into windows of `size` tokens that begin `size - overlap` apart; the last one
ends where the text ends, so that all are full. Tokens that the tokenizer puts in front and behind (BOS,
CLS, SEP) stand around every window. A token that lies in several windows has an activation in each, and
counts in one:

    causal model      the first window that holds it: there it has most of what comes before it
    other models      the window in which it is further from the nearer end; of two alike the earlier

So every token of the text counts exactly once, in a causal model with at least `overlap` tokens before it
(the first window's own aside), in others with at least half an overlap on either side. Activations are
those of the window: what stands more than a window before a token is not seen. A document's maximum is
taken over the tokens that count, whatever window they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from sa_plugin._face import face
from sa_plugin.data.given import Chat, TokenIds
from sa_plugin.data.sample import Sample
from sa_plugin.host.protocol import Host
from sa_plugin.host.texts import TextReader
from sa_plugin.host.tokens import Tokens


@face
@dataclass(frozen=True)
class Windows:
    """How samples longer than the model are cut.

    Attributes:
        tokens: Of a window, special ones included; by default, and at most, as many as the model takes.
        overlap: Tokens that two windows share; by default a quarter of a window.

    Raises:
        ValueError: A window has fewer than 8 tokens, or windows share more than half.
    """

    tokens: int | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 8:
            raise ValueError(f"tokens is {self.tokens}: give windows of 8 tokens or more.")
        if self.overlap is not None and (
            self.overlap < 1 or (self.tokens is not None and self.overlap > self.tokens // 2)
        ):
            raise ValueError(f"overlap is {self.overlap}: give 1 or more, and at most half a window.")

    def on(self, host: Host) -> Windows:
        """With the numbers of a model in place of None; without any where nothing is cut."""
        reader = getattr(host, "reader", None)
        if not isinstance(reader, TextReader):
            return Windows()
        limits = [one for one in (self.tokens, reader.positions.limit) if one is not None]
        if not limits:
            return Windows()
        size = min(limits)
        shared = max(1, size // 4) if self.overlap is None else min(self.overlap, size // 2)
        return Windows(size, shared)


@dataclass(frozen=True, eq=False)
class Piece:
    """One window of a document, or all of it.

    Attributes:
        sample: What the model is given.
        shift: Place of its first own token in the document's input, less its place in its own.
        first, last: Places in the document's input whose tokens count here.
        rows: Which tokens of the document are rows; None where the model's reader says it.
    """

    sample: Sample
    shift: int = 0
    first: int = 0
    last: int = 2**62
    rows: Bool[np.ndarray, " token"] | None = None

    def owns(self, position: np.ndarray) -> Bool[np.ndarray, " token"]:
        """Which tokens count, of their places in this window's input."""
        at = position + self.shift
        mine: np.ndarray = (at >= self.first) & (at < self.last)
        if self.rows is not None:
            mine &= self.rows[np.minimum(at, len(self.rows) - 1)]
        return mine


def pieces_of(host: Host, samples: Sequence[Sample], windows: Windows) -> list[list[Piece]]:
    """The windows of each sample, in their order.

    Args:
        host: An attached model; one that says nothing of its tokens is given samples whole.
        samples: Of one block.
        windows: With the model's numbers (`Windows.on`).

    Raises:
        ValueError: What the tokenizer refuses.
    """
    reader: Any = getattr(host, "reader", None)
    if windows.tokens is None or not isinstance(reader, TextReader):
        return [[Piece(sample)] for sample in samples]
    # A token is a byte at least, or nearly: most texts need not be tokenised to know that they fit.
    long = [k for k, sample in enumerate(samples) if _may_exceed(sample, windows.tokens)]
    found = [[Piece(sample)] for sample in samples]
    for k, tokens in zip(long, reader.encode([samples[k] for k in long]), strict=True):
        if len(tokens.ids) > windows.tokens:
            found[k] = _cut(samples[k], tokens, windows, host.info.causal, reader.encode.first)
    return found


def _may_exceed(sample: Sample, size: int) -> bool:
    if sample.image is not None:
        return False
    if isinstance(sample.source, TokenIds):
        return len(sample.source.ids) > size
    return 2 * len(sample.text.encode(errors="replace")) + 16 > size or isinstance(sample.source, Chat)


def _cut(sample: Sample, tokens: Tokens, windows: Windows, causal: bool, first: int | None) -> list[Piece]:
    assert windows.tokens is not None
    assert windows.overlap is not None
    ids, spans = tokens.ids, tokens.offsets
    lead, trail = _put_in(sample, tokens, first)
    n = len(ids) - lead - trail
    size = windows.tokens - lead - trail
    if size < 2:
        raise ValueError(f"windows of {windows.tokens} tokens hold {size} of the text: give larger ones")
    overlap = min(windows.overlap, size // 2)
    starts = [*range(0, n - size, size - overlap), n - size]
    ends = [start + size for start in starts]
    # From where on the next window's tokens count: behind what the last one held, or half-way into both.
    edges = [
        0,
        *(end if causal else (start + end + 1) // 2 for start, end in zip(starts[1:], ends, strict=False)),
        n,
    ]
    found = []
    for k, start in enumerate(starts):
        own = slice(lead + start, lead + start + size)
        parts = [slice(0, lead), own, slice(len(ids) - trail, len(ids))]
        source = TokenIds(
            np.concatenate([ids[part] for part in parts]).tolist(),
            sample.text,
            [tuple(pair) for part in parts for pair in spans[part].tolist()],
        )
        made = replace(sample, id=f"{sample.id} window {k}", source=source, spans=(), token_mask=None)
        found.append(Piece(made, start, lead + edges[k], lead + edges[k + 1], ~tokens.special))
    return found


def _put_in(sample: Sample, tokens: Tokens, first: int | None) -> tuple[int, int]:
    """How many tokens in front and behind are the tokenizer's, not the sample's."""
    if sample.source is not None:
        # Of a chat the template is part of what the model reads; its BOS stands before every window.
        return int(first is not None and len(tokens.ids) > 0 and int(tokens.ids[0]) == first), 0
    put_in = tokens.special & (tokens.offsets[:, 1] == 0)
    lead = len(put_in) if put_in.all() else int((~put_in).argmax())
    return lead, 0 if put_in.all() else int((~put_in[::-1]).argmax())
