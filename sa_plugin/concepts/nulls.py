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
from jaxtyping import Bool, Float
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
from sa_plugin.passes.run import Layout, allocate


def refit_kind(bank: ConceptBank) -> Kind | None:
    """The kind that can be refitted on other labels; None for clusters and given vectors."""
    kind = KINDS.get(bank.kind)
    return kind if kind is not None and kind.supervised and bank.supervised else None


class PermutedPass:
    """Adds up what the refits need over the batches of the train split.

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
        self.total: dict[str, Tensor] = {}
        self.keep = np.zeros(layout.n_rows, dtype=bool)
        self.chosen = np.zeros(0, dtype=np.int64)
        if kind.need == "rows":
            most = int(bank.origin.options.get("max_rows_per_class", MAX_ROWS_PER_CLASS))
            self.chosen = draw_rows(self.labels, most, np.random.default_rng([seed, draws]))
        width = bank.token.vectors.shape[-1]
        share = MEMORY_BUDGET // max(1, len(self.layers))
        self.rows = [allocate((len(self.chosen), width), np.float16, share) for _ in self.layers]

    @property
    def sites(self) -> set[Site]:
        """What a batch has to read."""
        return {Site(layer, self.bank.hook_point) for layer in self.layers}

    def reduce(
        self, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"], batch: Batch
    ) -> dict[str, Tensor]:
        """Sums over a batch's kept tokens, by permuted label."""
        rows = self.layout.rows(batch)
        valid = batch.valid.to(keep.device)
        weight = keep[valid].float()[:, None]
        labels = torch.from_numpy(self.labels[rows]).to(keep.device).float()
        stored = torch.from_numpy(np.isin(rows, self.chosen)).to(keep.device)
        out = {"keep": keep}
        for k, layer in enumerate(self.layers):
            flat = read[Site(layer, self.bank.hook_point)].float()[valid]
            out[f"positive {k}"] = labels.T @ (flat * weight)
            if self.kind.need == "gram":
                out[f"gram {k}"] = (flat * weight).T @ flat
            if len(self.chosen):
                out[f"rows {k}"] = flat[stored].half()
        return out

    def add(self, batch: Batch, got: Mapping[str, Tensor]) -> None:
        """Take in what `reduce` returned."""
        rows = self.layout.rows(batch)
        self.keep[rows] = got["keep"][batch.valid].numpy()
        at = np.searchsorted(self.chosen, rows[np.isin(rows, self.chosen)])
        for name, value in got.items():
            part, _, k = name.partition(" ")
            if part == "rows":
                self.rows[int(k)][at] = value.numpy()
            elif part != "keep":
                self.total[name] = self.total.get(name, torch.zeros(())) + value.double()

    def result(self) -> tuple[VectorSet, ...]:
        """One set a draw, shaped like the bank's; layers that were not refitted are zero."""
        token = self.bank.token
        n_concepts = len(self.bank.concepts)
        out = torch.zeros(self.draws, *token.vectors.shape)
        for k, layer in enumerate(self.layers):
            fitted, _ = self.kind.fit(
                self._statistics(k), seed=self.bank.origin.seed, **fit_options(self.bank, self.kind)
            )
            by_draw = fitted.float().cpu().reshape(self.draws, n_concepts, -1)
            out[:, self.bank.index(layer)] = by_draw
        return tuple(VectorSet(v, token.mean, token.scale, token.scoring) for v in out)

    def _statistics(self, k: int) -> LayerStatistics:
        place = self.bank.index(self.layers[k])
        mean, scale = self.bank.token.mean[place].double(), float(self.bank.token.scale[place])
        n, counts = int(self.keep.sum()), self.labels[self.keep].sum(0)
        rows = labels = None
        if len(self.chosen):
            kept = self.keep[self.chosen]
            rows = Rows(self._kept_rows(k, kept), mean, scale)
            labels = self.labels[self.chosen][kept]
        positive = self.total[f"positive {k}"] / torch.from_numpy(counts).clamp_min(1)[:, None]
        gram = self.total[f"gram {k}"] / n if self.kind.need == "gram" else None
        return LayerStatistics(n, mean, scale, torch.from_numpy(counts), positive, gram, rows, labels)

    def _kept_rows(self, k: int, kept: Bool[np.ndarray, " stored"]) -> Float[np.ndarray, "row d_model"]:
        rows: np.ndarray = self.rows[k][kept]
        if not np.isfinite(rows).all():
            raise OverflowError(
                f"an activation at block {self.layers[k]} exceeds half precision (65,504), in "
                "which train rows are kept: refit no separators here (permutations=0 or None)."
            )
        return rows


def fit_options(bank: ConceptBank, kind: Kind) -> dict[str, Any]:
    """The options a bank was fitted with, as its origin records them."""
    known = inspect.signature(kind.fit).parameters
    return {
        name: bank.origin.options[name]
        for name in known
        if name not in ("statistics", "seed", "memory") and name in bank.origin.options
    }
