"""The ledger of one text: every token's score, term by term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from sa_plugin.collect import kept, sink_sites
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.printing import frame
from sa_plugin.heads.components import Column, Component
from sa_plugin.heads.ledger import bank_columns, detector_column
from sa_plugin.heads.means import ScaledMeans
from sa_plugin.heads.plan import build_plan
from sa_plugin.heads.target import measure
from sa_plugin.heads.terms import Closure, Residue, check_closure
from sa_plugin.host import Host, Site
from sa_plugin.scoring import check_origin


@dataclass(frozen=True, eq=False)
class TokenLedger:
    """Terms of every kept token of one sample.

    Attributes:
        sample: The text.
        column: Concept, layer and threshold.
        components: Columns of `terms`.
        offsets: Characters of each token, or the box of each patch.
        position: Place of each token in the model's input.
        score: Measured scores.
        terms: They add up to `score`.
        tail: Which tokens are SuperActivators (none without a threshold).
    """

    sample: Sample
    column: Column
    components: tuple[Component, ...]
    offsets: Real[np.ndarray, "token edge"]
    position: Int[np.ndarray, " token"]
    score: Float[np.ndarray, " token"]
    terms: Float[np.ndarray, "token component"]
    tail: Bool[np.ndarray, " token"]

    def __repr__(self) -> str:
        return (
            f"TokenLedger({self.column.concept!r} at block {self.column.layer}, sample "
            f"{self.sample.id!r}, {len(self.score)} tokens, {int(self.tail.sum())} "
            f"SuperActivators, {len(self.components)} terms)"
        )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text of each token, or where each patch lies."""
        return tuple(self.sample.token_text(edges) for edges in self.offsets)

    def strongest(self, token: int, n: int = 10) -> list[tuple[str, float]]:
        """The largest terms of one token, by size."""
        order = np.argsort(-np.abs(self.terms[token]), kind="stable")[:n]
        return [(self.components[i].name, float(self.terms[token, i])) for i in order]

    def table(self) -> Any:
        """One row a token: a pandas DataFrame where pandas is installed."""
        names = [component.name for component in self.components]
        return frame([
            {"token": text, "score": float(s), "tail": bool(t), **dict(zip(names, row.tolist(),
                                                                           strict=True))}
            for text, s, t, row in zip(self.tokens, self.score, self.tail, self.terms, strict=True)
        ])  # fmt: skip


def explain_tokens(
    host: Host,
    source: Detector | ConceptBank,
    sample: Sample | str,
    concept: str,
    *,
    layer: int | None = None,
    means: ScaledMeans | None = None,
) -> TokenLedger:
    """Decompose the score of every kept token of one sample, from one forward pass.

    Args:
        host: An attached model.
        source: A detector, or a bank.
        sample: The sample, or a text.
        concept: Name.
        layer: With a bank, the block index; needed where it has several.
        means: Train means (`term_means`), to centre terms where the bank has none of its own, as in
            models with norms behind attention or MLP; raw terms and a "reference" without.

    Raises:
        NotImplementedError: As `head_ledger`.
        LedgerError: The terms of a token do not add up to its score.
        ValueError: Unknown concept or layer, or a bank of another model.

    Example:
        >>> explain_tokens(host, detector, "The whale rose.", "animal")  # doctest: +SKIP
    """
    bank = source if isinstance(source, ConceptBank) else source.bank
    check_origin(bank, host)
    column = _column(source, bank, concept, layer)
    text = Sample("text", sample, "text") if isinstance(sample, str) else sample
    if means is None and bank.component_means is not None:
        means = ScaledMeans.of_components(bank.component_means)
    plan = build_plan(host, bank, [column], bank.token, means=means)
    (batch,) = host.batches([text])

    def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
        keep = kept(read, batch.valid, host.info, bank.sink_layers, bank.origin.sinks)
        scored = measure(plan.target, read)
        closure = Closure(scored)
        pieces = []
        for terms, mean in plan.terms(read):
            closure.add(terms, mean)
            pieces.append(terms[0, :, :, 0])
        residue = closure.residue(keep)
        return {
            "keep": keep[0],
            "score": scored.score[0, :, 0],
            "terms": torch.cat(pieces, dim=1) / scored.divisor[0],
            **residue._asdict(),
        }

    got = host.read(batch, sorted({*plan.sites, *sink_sites(bank.sink_layers)}), reduce)
    check_closure(host, plan.target, batch, Residue(*(got[f] for f in Residue._fields)), [text.id])
    keep = got["keep"]
    score = got["score"][keep].numpy()
    return TokenLedger(
        text, column, plan.components, batch.offsets[0][keep].numpy(),
        keep.nonzero()[:, 0].numpy(), score, got["terms"][keep].numpy(),
        score.astype(np.float64) >= column.threshold,
    )  # fmt: skip


def _column(
    source: Detector | ConceptBank, bank: ConceptBank, concept: str, layer: int | None
) -> Column:
    if not isinstance(source, ConceptBank):
        if layer not in (None, source.layer.get(concept)):
            raise ValueError(
                f"the detector reads {concept!r} at block {source.layer.get(concept)}, not {layer}:"
                " give detector.bank to decompose at another layer."
            )
        return detector_column(source, concept)
    if layer is None and len(bank.layers) > 1:
        raise ValueError(f"the bank has layers {bank.layers}: name one, layer=.")
    return bank_columns(bank, [concept], [bank.layers[0] if layer is None else layer])[0]
