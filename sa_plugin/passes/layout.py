"""Where tokens lie: every token of every sample has a row, in the order of the data.

A layout is made before the pass. Its rows are the tokens that are neither padding nor special, and
they do not depend on how samples are grouped into batches. Attention sinks are known only from the
pass itself; the table holds the rows that are left once they are taken out, and counts what was
dropped.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Real, Shaped
from torch import Tensor

from sa_plugin._check import users_line
from sa_plugin._face import face_methods
from sa_plugin.data.sample import Sample, sample_labels
from sa_plugin.host.protocol import Batch, Host

# Where a batch holds the patterns of every block, layers x heads x tokens^2 numbers a sample.
PATTERN_BATCH_TOKENS = 512
# Share of labelled tokens that may be sinks without a word; the count is in `dropped` in any case.
LOST = 0.05


@dataclass(frozen=True, eq=False)
class Layout:
    """Where every token that is neither padding nor special will lie.

    Attributes:
        batches: The batches, in the order they are run.
        bounds: Row where each sample starts, and the number of rows.
        position, offsets, labels: Of each row.
        special: Number of special tokens left out.
        known: Which labels are known; None where all are.
    """

    batches: tuple[Batch, ...]
    bounds: Int[np.ndarray, " sample_and_one"]
    position: Int[np.ndarray, " row"]
    offsets: Real[np.ndarray, "row edge"]
    labels: Bool[np.ndarray, "row concept"]
    special: int
    known: Bool[np.ndarray, "row concept"] | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows before sinks are taken out."""
        return int(self.bounds[-1])

    def rows(self, batch: Batch) -> Int[np.ndarray, " row"]:
        """Rows of a batch's valid tokens, sample by sample."""
        starts = self.bounds[batch.rows.numpy()]
        counts = batch.valid.sum(-1).numpy()
        return np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])

    def run_order(self, keep: Bool[np.ndarray, " row"]) -> Int[np.ndarray, " kept"]:
        """Kept rows in the order in which batches run, numbered among the kept ones.

        Sums in float32 depend on their order, and which token is the n-th of a draw does too.
        """
        rows = np.concatenate([self.rows(batch) for batch in self.batches])
        among = np.cumsum(keep) - 1
        found: Int[np.ndarray, " kept"] = among[rows[keep[rows]]]
        return found

    def mask(self, batch: Batch, rows: Bool[np.ndarray, " row"]) -> Bool[Tensor, "batch token"]:
        """Chosen rows as tokens of a batch."""
        mask = torch.zeros_like(batch.valid)
        mask[batch.valid] = torch.from_numpy(rows[self.rows(batch)])
        return mask


def lay_out(
    host: Host, samples: Sequence[Sample], concepts: Sequence[str], *, at_most: int | None = None
) -> Layout:
    """Tokenise samples, group them into batches, and label their tokens.

    Args:
        host: An attached model; its `batch_tokens` bounds the batches.
        samples: Texts or images.
        concepts: Columns of the labels.
        at_most: Tokens a batch where a question needs smaller ones than the host's.

    Raises:
        ValueError: There are no samples, or what `Host.batches` and `Sample.token_labels` raise.
    """
    if not samples:
        raise ValueError("there are no samples to run: the split or the list is empty.")
    size = host.batch_tokens if at_most is None else min(at_most, host.batch_tokens)
    batches = tuple(host.batches(samples, batch_tokens=size))
    # Rows of all samples follow one another in the order given, so counts alone say where each lies.
    counts = np.zeros(len(samples), dtype=np.int64)
    attended = 0
    for batch in batches:
        counts[batch.rows.numpy()] = batch.valid.sum(-1).numpy()
        attended += int(_attended(batch).sum())
    bounds = np.concatenate([[0], np.cumsum(counts)])
    layout = Layout(
        batches,
        bounds,
        np.zeros(bounds[-1], dtype=np.int64),
        np.zeros((bounds[-1], batches[0].offsets.shape[-1]), batches[0].offsets.numpy().dtype),
        np.zeros((bounds[-1], len(concepts)), dtype=bool),
        attended - int(bounds[-1]),
    )
    for batch in batches:
        rows = layout.rows(batch)
        # Counted over attended tokens: the place is the same on either side of the padding.
        place = _attended(batch).long().cumsum(-1) - 1
        layout.position[rows] = place[batch.valid].numpy()
        layout.offsets[rows] = batch.offsets[batch.valid].numpy()
    known = np.ones_like(layout.labels)
    for n, sample in enumerate(samples):
        part = slice(bounds[n], bounds[n + 1])
        layout.labels[part] = sample.token_labels(layout.offsets[part], concepts)
        of_sample = sample.token_known(layout.offsets[part], layout.labels[part], concepts)
        if of_sample is not None:
            known[part] = of_sample
    # Fully labelled data, the usual case, carry no second array and take no other path.
    return layout if known.all() else replace(layout, known=known)


def _attended(batch: Batch) -> Bool[Tensor, "batch token"]:
    mask = batch.inputs.get("attention_mask")
    return torch.ones_like(batch.valid) if mask is None else mask.bool().cpu()


def draw_name(sample: Sample) -> str:
    """Document and id of a sample."""
    return f"{sample.document}\n{sample.id}"


@face_methods
@dataclass(frozen=True, eq=False)
class TokenTable:
    """Rows of tokens and what is known of them.

    Attributes:
        samples: In the order of the rows.
        split_of: Split of each sample.
        concepts: Columns of the labels.
        sample_of: Sample of each token, ascending.
        position: Place of each token in the model's input sequence, without padding.
        offsets: Character offsets of each token, or the box of each patch in image pixels.
        labels: Which tokens are positive.
        dropped: Tokens that are no rows, by reason.
        known: Which token labels are known; None where all are. What is not known is neither
            positive nor negative.
    """

    samples: tuple[Sample, ...]
    split_of: tuple[str, ...]
    concepts: tuple[str, ...]
    sample_of: Int[np.ndarray, " token"]
    position: Int[np.ndarray, " token"]
    offsets: Real[np.ndarray, "token edge"]
    labels: Bool[np.ndarray, "token concept"]
    dropped: Mapping[str, int]
    known: Bool[np.ndarray, "token concept"] | None = None

    def __len__(self) -> int:
        return len(self.sample_of)

    def __repr__(self) -> str:
        dropped = ", ".join(f"{count} {why}" for why, count in self.dropped.items())
        said = unknown_words(self.unknown)
        return (
            f"TokenTable({len(self.samples)} samples, {len(self)} tokens kept; dropped: {dropped}"
            f"{said and f' {said}'})"
        )

    @cached_property
    def negative(self) -> Bool[np.ndarray, "token concept"]:
        """Which tokens are negative."""
        return ~self.labels if self.known is None else self.known & ~self.labels

    @property
    def unknown(self) -> dict[str, int]:
        """Tokens whose label is unknown, of each concept that has any."""
        return count_unknown(self.known, self.concepts)

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @cached_property
    def bounds(self) -> Int[np.ndarray, " sample_and_one"]:
        """Row where each sample starts; sample n owns rows `bounds[n]:bounds[n + 1]`."""
        return np.searchsorted(self.sample_of, np.arange(self.n_samples + 1))

    @cached_property
    def sample_labels(self) -> Bool[np.ndarray, "sample concept"]:
        """Sample labels."""
        return sample_labels(self.samples, self.concepts)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Document and id of each sample: what is drawn by hash is drawn by these."""
        return tuple(draw_name(sample) for sample in self.samples)

    @cached_property
    def documents(self) -> Int[np.ndarray, " sample"]:
        """Number of each sample's source document."""
        code = {d: k for k, d in enumerate(dict.fromkeys(s.document for s in self.samples))}
        return np.array([code[s.document] for s in self.samples], dtype=np.int64)

    def rows_of(self, samples: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, " token"]:
        """Rows of some samples, in the order given."""
        if not len(samples):
            return np.zeros(0, dtype=np.int64)
        return np.concatenate([np.arange(self.bounds[n], self.bounds[n + 1]) for n in samples])

    def select(self, samples: Int[np.ndarray, " chosen"]) -> TokenTable:
        """The table of some samples, in the order given; `dropped` stays that of the whole."""
        rows = self.rows_of(samples)
        lengths = np.diff(self.bounds)[samples]
        return TokenTable(
            tuple(self.samples[n] for n in samples),
            tuple(self.split_of[n] for n in samples),
            self.concepts,
            np.repeat(np.arange(len(samples)), lengths),
            self.position[rows],
            self.offsets[rows],
            self.labels[rows],
            self.dropped,
            known_or_all(self.known, rows),
        )

    def text(self, row: int) -> str:
        """The characters of one token, or where a patch lies."""
        return self.samples[int(self.sample_of[row])].token_text(self.offsets[row])


def token_table(
    layout: Layout,
    keep: Bool[np.ndarray, " row"],
    samples: Sequence[Sample],
    split_of: Sequence[str],
    concepts: Sequence[str],
) -> TokenTable:
    """The table of the rows that are kept.

    Raises:
        ValueError: A sample has no kept token.
    """
    # `reduceat` gives a sample without rows its neighbour's first: such samples are caught below.
    lengths = np.add.reduceat(keep, layout.bounds[:-1]) if layout.n_rows else np.zeros(0)
    empty = np.flatnonzero((lengths == 0) | (np.diff(layout.bounds) == 0))
    if len(empty):
        sample = samples[empty[0]]
        had = int(layout.bounds[empty[0] + 1] - layout.bounds[empty[0]])
        raise ValueError(
            f"sample {sample.id!r} has {had} token(s) and none is left once special tokens and "
            "attention sinks are dropped (the first token of a decoder without BOS is one): give "
            "longer texts, or put a BOS first, attach(model, bos=True), or fit with sinks='keep'."
        )
    labelled = layout.labels.any(-1)
    warn_lost_labels(int((labelled & ~keep).sum()), int(labelled.sum()))
    return TokenTable(
        tuple(samples),
        tuple(split_of),
        tuple(concepts),
        np.repeat(np.arange(len(samples)), lengths.astype(np.int64)),
        layout.position[keep],
        layout.offsets[keep],
        layout.labels[keep],
        {
            "special": layout.special,
            "sink": int((~keep).sum()),
            "labelled sink": int(layout.labels[~keep].any(-1).sum()),
        },
        known_or_all(layout.known, keep),
    )


def known_or_all(
    known: Bool[np.ndarray, "row concept"] | None, rows: Shaped[np.ndarray, " _"] | slice
) -> Bool[np.ndarray, "chosen concept"] | None:
    """Which labels of some rows are known; None where all of them are."""
    found = None if known is None else known[rows]
    return None if found is None or found.all() else found


def count_unknown(known: Bool[np.ndarray, "token concept"] | None, concepts: Sequence[str]) -> dict[str, int]:
    """Tokens whose label is unknown, of each concept that has any."""
    if known is None:
        return {}
    counts = (~known).sum(0).tolist()
    return {concept: n for concept, n in zip(concepts, counts, strict=True) if n}


def unknown_words(unknown: Mapping[str, int]) -> str:
    """What a result says of unknown token labels; nothing where there are none."""
    counts = ", ".join(f"{concept} {n:,}" for concept, n in unknown.items())
    return f"Tokens whose label is unknown, in neither class: {counts}." if counts else ""


def unknown_notes(settings: Mapping[str, Any]) -> list[str]:
    """The same as notes, of a result whose settings hold the counts where there are any."""
    return [unknown_words(settings["unknown"])] if "unknown" in settings else []


def if_any(**named: Any) -> dict[str, Any]:
    """Of what is named that which is not empty: most data have no unknown label, and say nothing of it."""
    return {name: value for name, value in named.items() if value}


def rows_kept_in(table: TokenTable, layout: Layout, samples: Sequence[Sample]) -> Bool[np.ndarray, " row"]:
    """Which rows of a layout are rows of another run's table.

    Raises:
        ValueError: The table lacks a sample, or has a token that the layout has not.
    """
    place = {sample.id: n for n, sample in enumerate(table.samples)}
    keep = np.zeros(layout.n_rows, dtype=bool)
    for n, sample in enumerate(samples):
        if sample.id not in place:
            raise ValueError(
                f"sample {sample.id!r} is not in the table whose rows are to be kept "
                f"({table.n_samples} samples): score the same splits."
            )
        k = place[sample.id]
        wanted = table.position[table.bounds[k] : table.bounds[k + 1]]
        rows = slice(layout.bounds[n], layout.bounds[n + 1])
        keep[rows] = np.isin(layout.position[rows], wanted)
        if keep[rows].sum() != len(wanted):
            raise ValueError(
                f"sample {sample.id!r} has {len(wanted)} kept tokens in the table, and only "
                f"{int(keep[rows].sum())} of them in this run: other text or tokenizer."
            )
    return keep


class LostLabelWarning(UserWarning):
    """Labelled tokens were dropped as attention sinks."""


def warn_lost_labels(lost: int, labelled: int) -> None:
    """Warn where more than a few labelled tokens are no rows.

    Args:
        lost: Labelled tokens that were dropped.
        labelled: Labelled tokens.
    """
    if lost > LOST * labelled:
        warnings.warn(
            f"{lost} of {labelled} labelled tokens were dropped as attention sinks (the "
            "first token of a decoder without BOS is one): their samples keep the label and lose "
            "its evidence. Put a BOS first, attach(model, bos=True), or fit with sinks='keep'.",
            LostLabelWarning,
            stacklevel=users_line(),
        )
