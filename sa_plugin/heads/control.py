"""The permuted-label control: what a lift owes to choosing tokens by the sum that is decomposed.

Tokens chosen for a high total give every component that varies a positive expected share, whatever
the vector. The control repeats the choice with the same estimator's vector for labels permuted
across samples: its own tail are its highest-scoring tokens of the split, as many as the concept has
SuperActivators there (all tokens that tie with the last are in). Control lifts are in the units of
the concept's own score: the permuted vector is given the concept vector's length.

How many tokens the tail will have is known only at the end of the pass, so the highest
`CAPACITY` of all tokens are carried along with their terms; a concept with a larger tail gets a
control of that size, whose tail is more extreme and its lift, if anything, larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin.heads.plan import Plan
from sa_plugin.heads.terms import iterate_terms, measure
from sa_plugin.host import Batch, Site

CAPACITY = 0.1


class Candidates(NamedTuple):
    """Tokens that may belong to one column's control tail."""

    score: Float[np.ndarray, " token"]
    sample: Int[np.ndarray, " token"]
    divisor: Float[np.ndarray, " token"]
    terms: Float[np.ndarray, "token component"]

    def top(self, n: int) -> Candidates:
        """The n highest and all that tie with the last of them."""
        if n <= 0 or len(self.score) <= n:
            return self if n > 0 else Candidates(*(part[:0] for part in self))
        cut = np.partition(self.score, len(self.score) - n)[len(self.score) - n]
        chosen = self.score >= cut
        return Candidates(*(part[chosen] for part in self))


class ControlPass:
    """Carries the control through the batches: sums over all tokens, and the highest tokens.

    Attributes:
        plan: Of the permuted vectors.
        everything: Sum of terms over each sample's kept tokens; scale 0 is the score, scale 1 the
            plain dot product (cosine only).
        candidates: One record a column.
    """

    def __init__(self, plan: Plan, n_samples: int, n_tokens: int) -> None:
        self.plan = plan
        self.size = max(1, math.ceil(CAPACITY * n_tokens))
        shape = (1 + plan.cosine, n_samples, len(plan.components), len(plan.columns))
        self.everything = np.zeros(shape, dtype=np.float32)
        empty = np.zeros(0, dtype=np.float32)
        none = np.zeros((0, len(plan.components)), dtype=np.float32)
        self.candidates = [
            Candidates(empty, empty.astype(np.int64), empty, none) for _ in plan.columns
        ]
        self.cut = torch.full((len(plan.columns),), -torch.inf)

    def reduce(
        self, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]
    ) -> dict[str, Tensor]:
        """Sums of a batch, and the terms of tokens above the running cut."""
        scored = measure(self.plan, read)
        score = scored.score.masked_fill(~keep[..., None], -torch.inf)
        divisor = scored.divisor.masked_fill(~keep[..., None], 1.0)
        row, token, column = (score >= self._limit(score)).nonzero(as_tuple=True)
        weight = keep[..., None].float()
        scales = torch.stack([weight / divisor, weight.expand_as(divisor)][: 1 + self.plan.cosine])
        sums, terms = [], []
        for piece, _ in iterate_terms(self.plan, read):
            piece = piece.masked_fill(~keep[..., None, None], 0.0)
            sums.append(torch.einsum("btnc,sbtc->sbnc", piece, scales))
            terms.append(piece[row, token, :, column])
        return {
            "control sums": torch.cat(sums, dim=2),
            "control terms": torch.cat(terms, dim=1),
            "control score": score[row, token, column],
            "control divisor": divisor[row, token, column],
            "control place": torch.stack([row, column]),
        }

    def _limit(self, score: Float[Tensor, "batch token column"]) -> Float[Tensor, " column"]:
        flat = score.flatten(0, 1)
        highest = flat.topk(min(self.size, len(flat)), dim=0).values[-1]
        # -inf marks tokens that are not kept; no token may equal the limit by being one of them.
        lowest = torch.full_like(highest, torch.finfo(highest.dtype).min)
        return torch.maximum(torch.maximum(highest, self.cut.to(highest.device)), lowest)

    def add(self, batch: Batch, got: Mapping[str, Tensor]) -> None:
        """Take in what `reduce` returned for a batch."""
        self.everything[:, batch.rows.numpy()] = got["control sums"].numpy()
        row, column = got["control place"].numpy()
        parts = (
            got["control score"].numpy(), batch.rows.numpy()[row], got["control divisor"].numpy(),
            got["control terms"].numpy(),
        )  # fmt: skip
        for k, known in enumerate(self.candidates):
            new = (part[column == k] for part in parts)
            merged = Candidates(*(np.concatenate(pair) for pair in zip(known, new, strict=True)))
            self.candidates[k] = merged.top(self.size)
            if len(merged.score) >= self.size:
                self.cut[k] = float(self.candidates[k].score.min())
