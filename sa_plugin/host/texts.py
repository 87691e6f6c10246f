"""Texts to batches: tokens with character offsets, grouped by length, padded by ourselves.

Which tokens a text becomes is said in `sa_plugin.host.tokens`. Positions are those that the model
counts itself: a text padded on the left is told them, and one that has more tokens than the model has
positions is refused, whether these are a table or rotary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from sa_plugin.data.sample import Sample
from sa_plugin.host.protocol import Batch
from sa_plugin.host.tokens import TextEncoder, Tokens

PaddingSide = Literal["left", "right"]
TEXTS = (
    "The committee met on Tuesday, and nobody there had read the report.",
    "A small dog slept.",
    "In 1912 the ship left harbour with  two thousand people aboard;\nfew of them knew its name.",
    "Her naïve plan — to walk home — failed.",
)
PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class Positions:
    """How a model counts the places of its tokens.

    Attributes:
        limit: Tokens that have a position, or None where there is no limit.
        start: Position of the first token: RoBERTa and its kin count from `padding_idx + 1`.
        skipped: Token that such a model does not count, its padding.
        named: Whether it can be told positions (`position_ids`).
    """

    limit: int | None = None
    start: int = 0
    skipped: int | None = None
    named: bool = True

    def of(self, ids: Int[Tensor, "row token"], mask: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
        """The positions of tokens, as the model counts them itself where nothing is padded."""
        counted = mask if self.skipped is None else mask * (ids != self.skipped)
        if self.skipped is None:
            return (counted.cumsum(-1) - 1).clamp_min(0)
        return counted.cumsum(-1) * counted + self.start - 1


def positions_of(root: nn.Module, context: int | None) -> Positions:
    """How a model of transformers counts positions, by its modules and its configuration.

    A table of positions with a `padding_idx` is one that is counted from behind it (`RobertaModel`,
    `XLMRobertaModel`, `MPNetModel`, `EsmModel`).

    Args:
        root: The model.
        context: Tokens that its library says it takes.
    """
    config = getattr(root, "config", None)
    config = getattr(config, "text_config", None) or config
    rows, start, skipped = [getattr(config, "max_position_embeddings", None)], 0, None
    for name, module in root.named_modules():
        if isinstance(module, nn.Embedding) and "position_embeddings" in name:
            rows.append(module.num_embeddings)
            if module.padding_idx is not None:
                start, skipped = module.padding_idx + 1, module.padding_idx
    # A library that knows of the rows in front has taken them off.
    limits = [context, *(count - start for count in rows if isinstance(count, int))]
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return Positions(min(known, default=None), start, skipped, _takes_positions(root))


def vocabulary_of(root: nn.Module) -> int | None:
    """How many tokens a model of transformers has embeddings of, by its configuration."""
    config = getattr(root, "config", None)
    found = getattr(getattr(config, "text_config", None) or config, "vocab_size", None)
    return found if isinstance(found, int) else None


def _takes_positions(root: nn.Module) -> bool:
    """Whether a model's own `forward`, or that of its base model, names `position_ids`."""
    models = (root, getattr(root, "base_model", root))
    return any("position_ids" in inspect.signature(model.forward).parameters for model in models)


@dataclass(frozen=True, eq=False)
class TextReader:
    """What turns texts into batches.

    Attributes:
        encode: Texts to tokens.
        model: Its name, for errors.
        positions: How the model counts the places of tokens.
        padding_side: Where padding goes; it changes no number.
        pads: Whether texts of several lengths share a batch.
        vocabulary: Tokens that the model has embeddings of, where that is known.
    """

    encode: TextEncoder
    model: str
    positions: Positions = Positions()
    padding_side: PaddingSide = "right"
    pads: bool = True
    vocabulary: int | None = None

    @property
    def bos(self) -> bool:
        """Whether the first token of a text is a special one."""
        return self.encode.first is not None

    def batches(self, samples: Sequence[Sample], batch_tokens: int, *, extra: int = 0) -> list[Batch]:
        """Tokenise texts and batch them, whole texts only.

        Args:
            samples: The samples.
            batch_tokens: See `make_batches`.
            extra: See `make_batches`.

        Raises:
            ValueError: A sample is an image, or a text has no token, one that the model has no embedding
                of, or more than the context holds.
        """
        image = next((sample for sample in samples if sample.image is not None), None)
        if image is not None:
            raise ValueError(
                f"sample {image.id!r} is an image; {self.model} reads texts. Attach a vision model "
                "(load_bridge takes ViT, DINOv2 and CLIP folders)."
            )
        tokens = self.encode(samples)
        for sample, row in zip(samples, tokens, strict=True):
            highest = int(row.ids.max(initial=0))
            if self.vocabulary is not None and highest >= self.vocabulary:
                raise ValueError(
                    f"sample {sample.id!r} has the token {self.encode.name(highest)!r} (id {highest}); "
                    f"{self.model} has embeddings of {self.vocabulary}: is the tokenizer of another model, "
                    "or were tokens added without model.resize_token_embeddings(len(tokenizer))?"
                )
        limit = self.positions.limit
        long = [k for k, row in enumerate(tokens) if limit is not None and len(row.ids) > limit]
        if long:
            others = f" (and {len(long) - 1} more are too long)" if len(long) > 1 else ""
            raise ValueError(
                f"sample {samples[long[0]].id!r} has {len(tokens[long[0]].ids)} tokens{others}; {self.model} "
                f"takes {limit}. Nothing is cut off silently: split the text into shorter samples."
            )
        return make_batches(samples, tokens, batch_tokens=batch_tokens, pad=self._pad(extra))

    def _pad(self, extra: int) -> Padding:
        own = self.encode.tokenizer.pad_token_id
        # A model that does not count its padding is given no other.
        token = self.positions.skipped if own is None else own
        return Padding(self.padding_side, token or 0, extra, self.positions, self.pads)

    def probe_inputs(self) -> dict[str, Tensor]:
        """The inputs of a short text, for checks.

        Raises:
            ValueError: The tokenizer makes less than two tokens of it.
        """
        ids = self.encode([Sample("probe", PROBE_TEXT, "probe")])[0].ids
        if len(ids) < 2:
            raise ValueError(f"the tokenizer makes {len(ids)} token of {PROBE_TEXT!r}.")
        row = torch.from_numpy(ids)[None]
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}

    def check_samples(self) -> list[Sample]:
        """Texts of several lengths for `sa_plugin.host.checks.check`."""
        return [Sample(f"text {k}", text, str(k)) for k, text in enumerate(TEXTS)]


@dataclass(frozen=True)
class Padding:
    """What fills the rows of a batch.

    Attributes:
        side: Where padding goes.
        token: That fills; masked out, so that any does.
        extra: More padding than needed, for the law that its amount changes nothing.
        positions: How the model counts.
        mixed: Whether a batch may hold texts of several lengths.
    """

    side: PaddingSide = "right"
    token: int = 0
    extra: int = 0
    positions: Positions = Positions()
    mixed: bool = True


def make_batches(
    samples: Sequence[Sample], tokens: Sequence[Tokens], *, batch_tokens: int, pad: Padding
) -> list[Batch]:
    """Group by length and pad.

    Args:
        samples: For the texts of errors.
        tokens: Of each sample.
        batch_tokens: At most this many tokens a batch, padding included (one sample at least).
        pad: What fills the rows.

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
    groups = _groups(lengths + pad.extra, batch_tokens, pad.mixed)
    return [_collate(group, tokens, int(lengths[group].max()) + pad.extra, pad) for group in groups]


def _groups(lengths: Int[np.ndarray, " sample"], most: int, mixed: bool) -> list[Int[np.ndarray, " row"]]:
    # Short texts together, so that little is padded.
    order = np.argsort(lengths, kind="stable")
    groups: list[list[int]] = []
    for row in order.tolist():
        # Lengths ascend, so the newest sample is the longest of its group.
        fits = groups and (len(groups[-1]) + 1) * lengths[row] <= most
        if fits and (mixed or lengths[row] == lengths[groups[-1][0]]):
            groups[-1].append(row)
        else:
            groups.append([row])
    return [np.array(group, dtype=np.int64) for group in groups]


def _collate(rows: Int[np.ndarray, " row"], tokens: Sequence[Tokens], width: int, pad: Padding) -> Batch:
    ids = np.full((len(rows), width), pad.token, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    valid = np.zeros((len(rows), width), dtype=bool)
    offsets = np.zeros((len(rows), width, 2), dtype=np.int64)
    for k, row in enumerate(rows):
        n = len(tokens[row].ids)
        place = slice(width - n, width) if pad.side == "left" else slice(0, n)
        ids[k, place], mask[k, place] = tokens[row].ids, 1
        valid[k, place], offsets[k, place] = ~tokens[row].special, tokens[row].offsets
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if pad.side == "left" and not mask.all() and pad.positions.named:
        # Models count positions from the left end, padding included, unless they are told.
        inputs["position_ids"] = pad.positions.of(inputs["input_ids"], inputs["attention_mask"])
    return Batch(torch.from_numpy(rows), inputs, torch.from_numpy(valid), torch.from_numpy(offsets))
