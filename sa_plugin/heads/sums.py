"""The one pass of a ledger: terms summed over each sample's token groups, batch by batch.

Per-token terms live as long as a batch. What stays is `[sample, group, component, column]`, the
weighted sums from which every mean and every document-level interval follows. With k_n
SuperActivators among the T_n kept tokens of sample n:

| group | tokens | weight of each |
|---|---|---|
| `tail` | SuperActivators: score at or above the threshold | 1 |
| `same_samples` | the other tokens of a sample that has some | k_n / (T_n - k_n) |
| `in_concept_rest` | labelled with the concept, no SuperActivators | 1 |
| `strongest_out_of_concept` | the highest-scoring token of each negative sample | 1 |
| `out_of_concept` | every token of negative samples | 1 |
| `in_concept` | labelled with the concept | 1 |

A sample that is all tail has no other tokens and enters neither of the first two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.collect import Layout, kept, sink_sites, walk
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.heads.target import Decomposition, Scored, Terms, measure
from sa_plugin.heads.terms import Closure, Residue, check_closure
from sa_plugin.host import Batch, Host, Site

GROUPS = (
    "tail", "same_samples", "in_concept_rest", "strongest_out_of_concept", "out_of_concept",
    "in_concept",
)  # fmt: skip
# The groups whose difference from the tail has a control; they come first.
LIFTED = 4
Tail = Sequence[Bool[np.ndarray, "_ _"]]


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
    """

    samples: Sequence[Sample]
    layout: Layout
    bank: ConceptBank
    labels: Bool[np.ndarray, "row column"]
    positive: Bool[np.ndarray, "sample column"]
    tail: Tail | None

    def known(self, batch: Batch) -> Known:
        """What is known of a batch's tokens."""
        inside = torch.zeros(*batch.valid.shape, self.labels.shape[1], dtype=torch.bool)
        inside[batch.valid] = torch.from_numpy(self.labels[self.layout.rows(batch)])
        rows = batch.rows.numpy()
        given = None if self.tail is None else [self.tail[n] for n in rows]
        return Known(inside, torch.from_numpy(~self.positive[rows]), given)


@dataclass(frozen=True, eq=False)
class Known:
    """Labels of a batch, and its tail where that is given.

    Attributes:
        inside: Tokens labelled with each column's concept.
        negative: Samples without it.
        tail: As in `Asked`.
    """

    inside: Bool[Tensor, "batch token column"]
    negative: Bool[Tensor, "batch column"]
    tail: Sequence[np.ndarray] | None


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Weighted sums of terms over token groups.

    Attributes:
        values: Scale 0 is the score, scale 1 the plain dot product (cosine only).
        weights: Summed weights of each group.
        n_tail: SuperActivators, those of samples that are all tail included.
        residue: The largest residue met, relative to the summed sizes of its terms.
        closes_to: The largest residue met, in the unit of the score.
        n_tokens: Kept tokens.
    """

    values: Float[np.ndarray, "scale sample group component column"]
    weights: Float[np.ndarray, "sample group column"]
    n_tail: Int[np.ndarray, " column"]
    residue: float
    closes_to: float
    n_tokens: int


def sum_groups(
    host: Host,
    asked: Asked,
    plan: Decomposition,
    *,
    also: Callable[[Mapping[Site, Tensor], Bool[Tensor, "batch token"], Known], dict[str, Tensor]]
    | None = None,
    take: Callable[[Batch, Mapping[str, Tensor]], None] | None = None,
    description: str = "head ledger",
    progress: bool = False,
) -> GroupSums:
    """Run every batch once.

    Args:
        host: An attached model.
        asked: The samples.
        plan: What to decompose, and how.
        also: Reduces the same batch further, beside the model; its results go to `take`.
        take: Takes them in.
        description: Of the bar.
        progress: Whether to show a bar.

    Raises:
        LedgerError: A token's terms do not add up to its score.
        ValueError: A mask of the tail has another length than its sample's kept tokens.
    """
    bank, n = asked.bank, len(asked.samples)
    n_columns = len(plan.target.columns)
    scales = 1 + plan.target.cosine
    values = np.zeros((scales, n, len(GROUPS), len(plan.components), n_columns), dtype=np.float32)
    weights = np.zeros((n, len(GROUPS), n_columns), dtype=np.float32)
    n_tail = np.zeros(n_columns, dtype=np.int64)
    residue, closes_to, n_tokens = 0.0, 0.0, 0

    def reducer(batch: Batch) -> Callable[[Mapping[Site, Tensor]], dict[str, Tensor]]:
        known = asked.known(batch)

        def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
            keep = kept(read, batch.valid, host.info, bank.sink_layers, bank.origin.sinks)
            out = _reduce(plan, read, keep, known)
            return out if also is None else out | also(read, keep, known)

        return reduce

    sites = sorted({*plan.sites, *sink_sites(bank.sink_layers)})
    for batch, got in walk(
        host, asked.layout, sites, reducer, description=description, progress=progress
    ):
        relative, absolute, largest = got["residue"]
        worst = Residue(relative, absolute, largest, got["place"])
        names = [asked.samples[k].id for k in batch.rows.tolist()]
        check_closure(host, plan.target, batch, worst, names)
        residue = max(residue, float(worst.relative.max()))
        closes_to = max(closes_to, float(worst.largest.max()))
        rows = batch.rows.numpy()
        values[:, rows] = got["sums"].numpy()
        weights[rows] = got["weights"].numpy()
        n_tail += got["n tail"].numpy()
        n_tokens += int(got["keep"].sum())
        if take is not None:
            take(batch, got)
    return GroupSums(values, weights, n_tail, residue, closes_to, n_tokens)


def _reduce(
    plan: Decomposition,
    read: Mapping[Site, Tensor],
    keep: Bool[Tensor, "batch token"],
    known: Known,
) -> dict[str, Tensor]:
    scored = measure(plan.target, read)
    tail = find_tail(scored, thresholds(plan), keep, known)
    weight = group_weights(scored, tail, keep, known)
    closure = Closure(scored)
    sums = term_sums(plan.terms(read), scored, keep, weight, plan.target.cosine, closure)
    residue = closure.residue(keep)
    return {
        "keep": keep,
        "sums": sums,
        "weights": weight.sum(1).transpose(1, 2),
        "n tail": tail.sum((0, 1)),
        "residue": torch.stack(residue[:3]),
        "place": residue.place,
    }


def thresholds(plan: Decomposition) -> Float[Tensor, " column"]:
    """The threshold of each column."""
    return torch.tensor([c.threshold for c in plan.target.columns], dtype=torch.float64)


def term_sums(
    pieces: Iterator[Terms],
    scored: Scored,
    keep: Bool[Tensor, "batch token"],
    weight: Float[Tensor, "batch token column group"],
    cosine: bool,
    closure: Closure | None = None,
) -> Float[Tensor, "scale batch group component column"]:
    """Sums of terms over groups, for the score and (cosine only) the plain dot product."""
    divisor = scored.divisor.masked_fill(~keep[..., None], 1.0)[..., None]
    scales = torch.stack([weight / divisor, weight][: 1 + cosine])
    sums = []
    for terms, mean in pieces:
        if closure is not None:
            closure.add(terms, mean)
        terms = terms.masked_fill(~keep[..., None, None], 0.0)
        sums.append(torch.einsum("btnc,sbtcg->sbgnc", terms, scales))
    return torch.cat(sums, dim=3)


def find_tail(
    scored: Scored,
    threshold: Float[Tensor, " column"],
    keep: Bool[Tensor, "batch token"],
    known: Known,
) -> Bool[Tensor, "batch token column"]:
    """SuperActivators, from thresholds or as given."""
    if known.tail is not None:
        return _given_tail(known.tail, keep, scored.score.shape[-1])
    return keep[..., None] & (scored.score.double() >= threshold.to(keep.device))


def group_weights(
    scored: Scored,
    tail: Bool[Tensor, "batch token column"],
    keep: Bool[Tensor, "batch token"],
    known: Known,
) -> Float[Tensor, "batch token column group"]:
    """Weight of each token in each of `GROUPS`."""
    every = keep[..., None].expand_as(tail)
    n_tail = tail.sum(1, keepdim=True).float()
    n_others = every.sum(1, keepdim=True) - n_tail
    inside = known.inside.to(keep.device) & every
    outside = known.negative.to(keep.device)[:, None] & every
    best = scored.score.masked_fill(~every, -torch.inf).argmax(dim=1, keepdim=True)
    strongest = torch.zeros_like(tail).scatter(1, best, True) & outside
    groups = (
        tail & (n_others > 0), (every & ~tail) * (n_tail / n_others.clamp_min(1)), inside & ~tail,
        strongest, outside, inside,
    )  # fmt: skip
    return torch.stack([one.float() for one in groups], dim=-1)


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
