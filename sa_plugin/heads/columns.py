"""What a ledger or waterfall is asked for: which scores, in which terms, of which tokens.

A *column* is one score: a concept's vector at one layer. A *component* is one term of it: the
embedding, a head, an MLP, or something constant. A detector says for each concept which layer, unit
and threshold it chose, so its SuperActivators are the tail; a bank alone has vectors at many layers
and no tail, unless the caller brings one (`BankScores`).

Tokens are those of a held-out split, or of samples that are given: vectors fit the scores of the
samples they were fitted on too well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sa_plugin._check import position_of, require_type
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.host.protocol import Batch, Host, HostInfo, layers_of
from sa_plugin.passes.layout import Layout, lay_out
from sa_plugin.passes.run import Sinks

ComponentKind = Literal["embedding", "heads", "mlps", "norms", "refit", "constants"]
COMPONENT_KINDS: tuple[ComponentKind, ...] = ("embedding", "heads", "mlps", "constants")
STEP_KINDS: tuple[ComponentKind, ...] = ("embedding", "heads", "mlps", "norms", "refit", "constants")

Tail: TypeAlias = Sequence[Bool[np.ndarray, "_ _"]]
"""For each sample a mask `[token, column]` over its kept tokens."""


class LedgerError(ArithmeticError):
    """The terms of a ledger do not add up to the measured score."""


class Component(NamedTuple):
    """One term of a score: "embedding", "L3H5", "L3 MLP", "L3 bias x scale", "reference"..."""

    name: str
    kind: ComponentKind
    block: int | None = None
    head: int | None = None


class Column(NamedTuple):
    """One score that is decomposed: a concept's vector at one layer.

    Attributes:
        concept: Its name.
        layer: Block index of the detector or bank.
        unit: Place of the vector in the bank.
        threshold: Scores at or above it are SuperActivators; NaN where there is none.
    """

    concept: str
    layer: int
    unit: int
    threshold: float


@dataclass(frozen=True, eq=False)
class BankScores:
    """Scores of a bank at some of its layers, with a tail of the caller's own.

    Attributes:
        bank: The vectors; they have concepts.
        layers: Block indices; all of the bank's by default.
        tail: For each sample a mask `[token, column]` over its kept tokens, columns as in the result
            (concept by concept, layers ascending). Without it there is no lift, only the contrast.
    """

    bank: ConceptBank
    layers: int | Sequence[int] | None = None
    tail: Tail | None = None

    def __post_init__(self) -> None:
        fix = (
            "a detector has chosen its layers and its tail, so give it alone, or detector.bank to decompose "
            "at other layers or with another tail"
        )
        require_type("bank", self.bank, ConceptBank, fix)


LedgerSource: TypeAlias = Detector | ConceptBank | BankScores
"""A detector decomposes each concept at its own layer, its SuperActivators as tail; a bank each
concept at every layer asked for."""


def source_bank(source: LedgerSource) -> ConceptBank:
    """The vectors of a source."""
    return source if isinstance(source, ConceptBank) else source.bank


def has_tail(source: LedgerSource) -> bool:
    """Whether a source says which tokens are the tail."""
    return isinstance(source, Detector) or (isinstance(source, BankScores) and source.tail is not None)


def components_of(info: HostInfo, depth: int, *, centred: bool, scaled_biases: bool) -> tuple[Component, ...]:
    """Everything that writes before or in the first `depth` blocks, in the order of the blocks.

    Args:
        info: Of the model.
        depth: Number of blocks.
        centred: Whether means are subtracted; a constant is zero then.
        scaled_biases: Whether norms behind attention or MLP make biases vary over tokens.
    """
    named = [Component("embedding", "embedding")]
    for block in range(depth):
        named += [Component(f"L{block}H{h}", "heads", block, h) for h in range(info.n_heads)]
        named.append(Component(f"L{block} MLP", "mlps", block))
        if scaled_biases:
            named.append(Component(f"L{block} bias x scale", "constants", block))
    if not centred:
        named += [] if scaled_biases else [Component("bias", "constants")]
        named.append(Component("reference", "constants"))
    return tuple(named)


def depth_of(layer: int, hook_point: str) -> int:
    """Number of blocks that write before a hook point."""
    return layer + (hook_point == "resid_post")


def columns_of(
    host: Host, source: LedgerSource, concepts: Sequence[str] | None, data: ConceptData
) -> tuple[Column, ...]:
    """What a detector or bank is decomposed at.

    Raises:
        ValueError: No concept, or an unknown one or layer.
    """
    if isinstance(source, Detector):
        columns = [detector_column(source, c) for c in (source.concepts if concepts is None else concepts)]
    else:
        bank, layers = source_bank(source), source.layers
        asked = bank.layers if layers is None else layers_of(host.info, layers)
        columns = bank_columns(bank, concepts, asked)
    for column in columns:
        position_of(column.concept, data.concepts, f"the concepts of {data.name!r}")
    if not columns:
        raise ValueError("concepts is empty: name at least one, or None for all.")
    return tuple(columns)


def detector_column(detector: Detector, concept: str) -> Column:
    """A concept at the layer, unit and threshold its detector chose."""
    position_of(concept, detector.concepts)
    unit = detector.bank.unit(detector.unit[concept])
    return Column(concept, detector.layer[concept], unit, detector.threshold[concept])


def bank_columns(bank: ConceptBank, concepts: Sequence[str] | None, layers: Sequence[int]) -> list[Column]:
    """Concepts of a bank at some of its layers, without thresholds."""
    wanted = bank.concepts if concepts is None else concepts
    if not bank.supervised:
        raise ValueError(
            f"the bank's vectors are {len(bank.units)} units without concepts: calibrate matches "
            "them, so give the detector."
        )
    for layer in layers:
        bank.index(layer)
    return [Column(c, layer, bank.unit(c), float("nan")) for c in wanted for layer in layers]


def score_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """A name for each column: its concept, and its layer where a concept stands at several."""
    concepts = [column.concept for column in columns]
    return tuple(f"{c.concept} at {c.layer}" if concepts.count(c.concept) > 1 else c.concept for c in columns)


@dataclass(frozen=True, eq=False)
class Asked:
    """The samples of a ledger and what is known of their tokens.

    Attributes:
        samples: The samples.
        layout: Where their tokens are.
        bank: For the sink rule.
        labels: Token labels of each column's concept.
        positive: Sample labels of each column's concept.
        tail: The tail, one mask over each sample's kept tokens; else it is from thresholds.
        doubtful: Labels that are unknown; None where none is.
    """

    samples: Sequence[Sample]
    layout: Layout
    bank: ConceptBank
    labels: Bool[np.ndarray, "row column"]
    positive: Bool[np.ndarray, "sample column"]
    tail: Tail | None
    doubtful: Bool[np.ndarray, "row column"] | None = None

    @classmethod
    def of(
        cls,
        host: Host,
        data: ConceptData,
        bank: ConceptBank,
        columns: Sequence[Column],
        samples: Sequence[Sample],
        tail: Tail | None,
    ) -> Asked:
        """Samples laid out, with the labels of each column's concept."""
        layout = lay_out(host, samples, data.concepts)
        label = [data.concepts.index(column.concept) for column in columns]
        positive = np.array([[c.concept in s.positive for c in columns] for s in samples])
        doubtful = None if layout.known is None else ~layout.known[:, label]
        return cls(samples, layout, bank, layout.labels[:, label], positive, tail, doubtful)

    def unknown(self, columns: Sequence[Column]) -> dict[str, int]:
        """Tokens whose label is unknown, of each concept that has any; attention sinks among them."""
        counts = np.zeros(len(columns), dtype=int) if self.doubtful is None else self.doubtful.sum(0)
        return {column.concept: int(n) for column, n in zip(columns, counts, strict=True) if n}

    def sinks(self, host: Host) -> Sinks:
        """How tokens are judged."""
        return self.bank.sinks_on(host.info)

    def known(self, batch: Batch) -> BatchLabels:
        """What is known of a batch's tokens."""
        rows = batch.rows.numpy()
        given = None if self.tail is None else [self.tail[n] for n in rows]
        negative = torch.from_numpy(~self.positive[rows])[:, None]
        if self.doubtful is not None:
            negative = negative & ~self._scattered(batch, self.doubtful)
        return BatchLabels(self._scattered(batch, self.labels), negative, given)

    def _scattered(
        self, batch: Batch, of_rows: Bool[np.ndarray, "row column"]
    ) -> Bool[Tensor, "batch token column"]:
        # Rows of the layout are the batch's valid tokens in order, so a mask scatters them back.
        found = torch.zeros(*batch.valid.shape, of_rows.shape[1], dtype=torch.bool)
        found[batch.valid] = torch.from_numpy(of_rows[self.layout.rows(batch)])
        return found


@dataclass(frozen=True, eq=False)
class BatchLabels:
    """Labels of a batch, and its tail where that is given.

    Attributes:
        inside: Tokens labelled with each column's concept.
        negative: Tokens of samples without it.
        tail: As in `Asked`.
    """

    inside: Bool[Tensor, "batch token column"]
    negative: Bool[Tensor, "batch #token column"]
    tail: Sequence[np.ndarray] | None
