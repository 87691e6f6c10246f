"""The one pass of the ledger: terms summed over each sample's token groups, batch by batch.

Per-token terms live as long as a batch. What stays is `[sample, group, component, column]`, the
sums from which every mean and every document-level interval follows.

| group | tokens of a sample |
|---|---|
| `tail` | SuperActivators: score at or above the threshold |
| `all` | every kept token |
| `in_concept` | labelled with the concept |
| `in_concept_tail` | both |
| `strongest` | the highest-scoring token |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.collect import Layout, kept, sink_sites, walk
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.heads.control import ControlPass
from sa_plugin.heads.plan import Plan
from sa_plugin.heads.terms import Closure, Residue, check_closure, iterate_terms, measure
from sa_plugin.host import Batch, Host, Site

GROUPS = ("tail", "all", "in_concept", "in_concept_tail", "strongest")
Tail = Sequence[Bool[np.ndarray, "_ _"]]


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Sums of terms over token groups.

    Attributes:
        values: Scale 0 is the score, scale 1 the plain dot product (cosine only).
        counts: Tokens in each group.
        residue: The largest residue met, relative to the summed sizes of its terms.
        closes_to: The largest residue met, in the unit of the score.
        n_tokens: Kept tokens.
        control: Of the permuted-label vectors, where the bank has them.
    """

    values: Float[np.ndarray, "scale sample group component column"]
    counts: Int[np.ndarray, "sample group column"]
    residue: float
    closes_to: float
    n_tokens: int
    control: ControlPass | None


def sum_groups(
    host: Host,
    layout: Layout,
    samples: Sequence[Sample],
    bank: ConceptBank,
    plan: Plan,
    control: ControlPass | None,
    labels: Bool[np.ndarray, "row column"],
    tail: Tail | None,
    *,
    progress: bool,
) -> GroupSums:
    """Run every batch once.

    Args:
        host: An attached model.
        layout: Where the tokens of the samples are.
        samples: The samples.
        bank: For the sink rule.
        plan: What to decompose.
        control: The same for permuted-label vectors.
        labels: Token labels of each column's concept.
        tail: The tail, one mask over each sample's kept tokens; by default from the thresholds.
        progress: Whether to show a bar.

    Raises:
        LedgerError: A token's terms do not add up to its score.
        ValueError: A mask of `tail` has another length than its sample's kept tokens.
    """
    sites = sorted({*plan.sites, *sink_sites(bank.sink_layers)})
    shape = (len(samples), len(GROUPS), len(plan.components), len(plan.columns))
    values = np.zeros((1 + plan.cosine, *shape), dtype=np.float32)
    counts = np.zeros((len(samples), len(GROUPS), len(plan.columns)), dtype=np.int64)
    residue, closes_to, n_tokens = 0.0, 0.0, 0

    def reducer(batch: Batch) -> Callable[[Mapping[Site, Tensor]], dict[str, Tensor]]:
        inside = torch.zeros(*batch.valid.shape, labels.shape[1], dtype=torch.bool)
        inside[batch.valid] = torch.from_numpy(labels[layout.rows(batch)])
        given = None if tail is None else [tail[n] for n in batch.rows.tolist()]

        def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
            keep = kept(read, batch.valid, host.info, bank.sink_layers, bank.origin.sinks)
            out = _reduce(plan, read, keep, inside.to(keep.device), given)
            return out if control is None else out | control.reduce(read, keep)

        return reduce

    for batch, got in walk(
        host, layout, sites, reducer, description="head ledger", progress=progress
    ):
        relative, absolute, largest = got["residue"]
        worst = Residue(relative, absolute, largest, got["place"])
        check_closure(host, plan, batch, worst, [samples[n].id for n in batch.rows.tolist()])
        residue = max(residue, float(worst.relative.max()))
        closes_to = max(closes_to, float(worst.largest.max()))
        rows = batch.rows.numpy()
        values[:, rows] = got["sums"].numpy()
        counts[rows] = got["counts"].numpy()
        n_tokens += int(got["keep"].sum())
        if control is not None:
            control.add(batch, got)
    return GroupSums(values, counts, residue, closes_to, n_tokens, control)


def _reduce(
    plan: Plan,
    read: Mapping[Site, Tensor],
    keep: Bool[Tensor, "batch token"],
    inside: Bool[Tensor, "batch token column"],
    given: Sequence[np.ndarray] | None,
) -> dict[str, Tensor]:
    scored = measure(plan, read)
    groups = _groups(plan, scored.score, keep, inside, given)
    weight = groups.float()
    divisor = scored.divisor.masked_fill(~keep[..., None], 1.0)[..., None]
    scales = torch.stack([weight / divisor, weight][: 1 + plan.cosine])
    closure = Closure(scored)
    sums = []
    for terms, mean in iterate_terms(plan, read):
        closure.add(terms, mean)
        terms = terms.masked_fill(~keep[..., None, None], 0.0)
        sums.append(torch.einsum("btnc,sbtcg->sbgnc", terms, scales))
    residue = closure.residue(keep)
    return {
        "keep": keep,
        "sums": torch.cat(sums, dim=3),
        "counts": groups.sum(1).transpose(1, 2),
        "residue": torch.stack(residue[:3]),
        "place": residue.place,
    }


def _groups(
    plan: Plan,
    score: Float[Tensor, "batch token column"],
    keep: Bool[Tensor, "batch token"],
    inside: Bool[Tensor, "batch token column"],
    given: Sequence[np.ndarray] | None,
) -> Bool[Tensor, "batch token column group"]:
    everything = keep[..., None].expand_as(score)
    if given is None:
        threshold = torch.tensor([c.threshold for c in plan.columns], dtype=torch.float64)
        tail = everything & (score.double() >= threshold.to(score.device))
    else:
        tail = _given_tail(given, keep, score.shape[-1])
    inside = inside & everything
    best = score.masked_fill(~everything, -torch.inf).argmax(dim=1, keepdim=True)
    strongest = torch.zeros_like(everything).scatter(1, best, True) & everything
    return torch.stack([tail, everything, inside, inside & tail, strongest], dim=-1)


def _given_tail(
    given: Sequence[np.ndarray], keep: Bool[Tensor, "batch token"], n_columns: int
) -> Bool[Tensor, "batch token column"]:
    tail = torch.zeros(*keep.shape, n_columns, dtype=torch.bool, device=keep.device)
    for row, mask in enumerate(given):
        n = int(keep[row].sum())
        if mask.shape != (n, n_columns):
            raise ValueError(
                f"a mask of `tail` has shape {mask.shape}, its sample has {n} kept tokens and "
                f"{n_columns} columns are decomposed: give one [token, concept] mask a sample, "
                "over kept tokens in the order of the text (ScoreTable.tokens holds them)."
            )
        tail[row, keep[row]] = torch.from_numpy(np.asarray(mask, dtype=bool)).to(keep.device)
    return tail
