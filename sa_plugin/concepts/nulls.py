"""Vectors of permuted labels: the estimator of a bank refitted, many times, on one train pass.

A draw lays the token labels of whole train samples over the tokens in another order of the samples
(`permute_labels`): their number and clustering stay, their tie to the text goes. Every draw is then
fitted by the bank's own kind, with its options and its normaliser. Prototypes and discriminants
need means (and one second moment) alone; separators need the rows, all draws of a layer being
solved together.

What the draws do not show: they are a null for "this label has nothing to do with the text", not
for "another concept would do as well".
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.concepts.collect import (
    MAX_ROWS_PER_CLASS,
    MEMORY_BUDGET,
    LayerStatistics,
    Rows,
    draw_rows,
    permute_labels,
)
from sa_plugin.concepts.kinds import KINDS, Kind
from sa_plugin.host.protocol import Batch, Site
from sa_plugin.host.reducers import Parts, keeping
from sa_plugin.passes.layout import Layout
from sa_plugin.passes.run import Job, Keep, Kept


def refit_kind(bank: ConceptBank) -> Kind | None:
    """The kind that can be refitted on other labels; None for clusters and given vectors."""
    kind = KINDS.get(bank.kind)
    return kind if kind is not None and kind.supervised and bank.supervised else None


class PermutedPass:
    """What the refits need of a pass over the train split, and the refits.

    Args:
        bank: Whose kind, options and normaliser the refits share.
        layout: Of the train samples, labels of the bank's concepts.
        layers: Block indices to refit at.
        draws: Number of permutations.
        seed: Of the permutations.
    """

    def __init__(
        self, bank: ConceptBank, layout: Layout, layers: Sequence[int], draws: int, seed: int
    ) -> None:
        kind = refit_kind(bank)
        assert kind is not None
        self.bank, self.kind, self.layers, self.draws = bank, kind, tuple(layers), draws
        self.layout = layout
        self.labels = np.concatenate(
            [
                permute_labels(layout.labels, layout.bounds, np.random.default_rng([seed, k]))
                for k in range(draws)
            ],
            axis=1,
        )
        self.chosen = np.zeros(0, dtype=np.int64)
        if kind.need == "rows":
            most = int(bank.origin.options.get("max_rows_per_class", MAX_ROWS_PER_CLASS))
            self.chosen = draw_rows(self.labels, most, np.random.default_rng([seed, draws]))

    @property
    def job(self) -> Job:
        """For `passes.run`."""
        sites = {Site(layer, self.bank.hook_point) for layer in self.layers}
        return Job(sites, self._reducer, self.chosen, MEMORY_BUDGET // max(1, len(self.layers)))

    def _reducer(self, batch: Batch) -> Keep:
        rows = self.layout.rows(batch)
        labels = torch.from_numpy(self.labels[rows]).float()
        stored = torch.from_numpy(np.isin(rows, self.chosen))

        def reduce(read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Parts:
            valid = batch.valid.to(keep.device)
            weight = keep[valid].float()[:, None]
            sums, kept_rows = {}, {}
            for layer in self.layers:
                flat = read[Site(layer, self.bank.hook_point)].float()[valid]
                sums["positive", layer] = labels.to(keep.device).T @ (flat * weight)
                if self.kind.need == "gram":
                    sums["gram", layer] = (flat * weight).T @ flat
                if len(self.chosen):
                    kept_rows[layer] = flat[stored.to(keep.device)].half()
            return keeping(sums=sums, rows=kept_rows)

        return reduce

    def result(self, kept: Kept) -> tuple[VectorSet, ...]:
        """One set a draw, shaped like the bank's; layers that were not refitted are zero."""
        token = self.bank.token
        n_concepts = len(self.bank.concepts)
        out = torch.zeros(self.draws, *token.vectors.shape)
        for layer in self.layers:
            fitted, _ = self.kind.fit(
                self._statistics(layer, kept), seed=self.bank.origin.seed, **fit_options(self.bank, self.kind)
            )
            by_draw = fitted.float().cpu().reshape(self.draws, n_concepts, -1)
            out[:, self.bank.index(layer)] = by_draw
        return tuple(VectorSet(v, token.mean, token.scale, token.scoring) for v in out)

    def _statistics(self, layer: int, kept: Kept) -> LayerStatistics:
        place = self.bank.index(layer)
        mean, scale = self.bank.token.mean[place].double(), float(self.bank.token.scale[place])
        n, counts = int(kept.keep.sum()), self.labels[kept.keep].sum(0)
        rows = labels = None
        if len(self.chosen):
            rows = Rows(kept.rows[layer], mean, scale)
            labels = self.labels[self.chosen][kept.keep[self.chosen]]
        positive = kept.sums["positive", layer] / torch.from_numpy(counts).clamp_min(1)[:, None]
        gram = kept.sums["gram", layer] / n if self.kind.need == "gram" else None
        return LayerStatistics(n, mean, scale, torch.from_numpy(counts), positive, gram, rows, labels)


def fit_options(bank: ConceptBank, kind: Kind) -> dict[str, Any]:
    """The options a bank was fitted with, as its origin records them."""
    known = inspect.signature(kind.fit).parameters
    return {
        name: bank.origin.options[name]
        for name in known
        if name not in ("statistics", "seed", "memory") and name in bank.origin.options
    }
