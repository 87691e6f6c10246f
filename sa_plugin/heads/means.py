"""Train means of what each part contributes, so that terms can be centred.

    score = sum_i w . (f_i c_i - mean_train(f_i c_i)) / rho

`f_i` is the product of the frozen scales between part i and the score (`frozen.py`), 1 in a
pre-norm model. There the means are those of the activations, and a bank has them
(`bank.component_means`). Where a norm stands behind attention or MLP, f varies over tokens and the
mean of the product is what closes: one pass over the train split collects it for every vector at
once, since means are linear in w. In a post_ln or staged model f depends on how deep the score is
read, so there is a record for each depth.

Kept tokens are those the vectors were fitted on (same sink rule), and the means are held against
the normaliser's mean when a ledger is planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.concepts.bank import ComponentMeans
from sa_plugin.heads.components import LedgerError
from sa_plugin.heads.frozen import FrozenNorms
from sa_plugin.host import Batch, HostInfo, Point, Site


@dataclass(frozen=True, eq=False)
class ScaledMeans:
    """Means over kept train tokens.

    Attributes:
        depths: Number of blocks behind which scores are read, one a row; empty where a single row
            serves every depth, that is unless the model is post_ln or staged.
        embedding: Of the stream that enters block 0.
        z: Of each head's input of the output projection.
        mlp: Of what each MLP adds.
        scale: Of the factors themselves (attention, MLP, output), which biases are multiplied with.
    """

    depths: tuple[int, ...]
    embedding: Float[Tensor, "depth d_model"]
    z: Float[Tensor, "depth block head d_head"]
    mlp: Float[Tensor, "depth block d_model"]
    scale: Float[Tensor, "depth block 3"]

    @classmethod
    def of_components(cls, means: ComponentMeans) -> ScaledMeans:
        """Of a bank fitted on a pre-norm model."""
        n_blocks = len(means.z)
        return cls(
            (), means.embedding[None].float().cpu(), means.z[None].float().cpu(),
            means.mlp[None].float().cpu(), torch.ones(1, n_blocks, 3),
        )  # fmt: skip

    def row(self, depth: int) -> int:
        """The record of scores read behind `depth` blocks.

        Raises:
            LedgerError: The means end before that depth.
        """
        n_blocks = self.z.shape[1]
        if depth > n_blocks or (self.depths and depth not in self.depths):
            raise LedgerError(
                f"the bank's component means end before block {min(depth - 1, n_blocks)}: they "
                f"were collected for other layers. Fit with layers that reach block {depth - 1}, "
                "or leave means=None."
            )
        return self.depths.index(depth) if self.depths else 0


class MeanPass:
    """Adds up scaled activations over the batches of the train split.

    Args:
        info: Of the model.
        frozen: Norms to the deepest score.
        depths: Distinct depths of the scores.
    """

    def __init__(self, info: HostInfo, frozen: FrozenNorms, depths: tuple[int, ...]) -> None:
        self.info, self.frozen = info, frozen
        self.n_blocks = len(frozen.norms)
        self.depths = tuple(sorted(set(depths))) if frozen.by_depth else ()
        self.rows = self.depths or (self.n_blocks,)
        self.total: dict[str, Tensor] = {}

    @property
    def sites(self) -> set[Site]:
        """What a batch has to read."""
        blocks = range(self.n_blocks)
        points: tuple[Point, ...] = ("z", "mlp_out")
        sites = {Site(b, point) for b in blocks for point in points}
        return sites | self.frozen.sites | {Site(0, "resid_pre")}

    def reduce(
        self, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"], batch: Batch
    ) -> dict[str, Tensor]:
        """Sums over a batch's kept tokens."""
        weight = keep.float()
        like = weight[..., None].expand(*weight.shape, len(self.rows))
        factors, entry = self.frozen.factors(self.frozen.scales(read), self.rows)

        def sums(values: Tensor, factor: Tensor | None) -> Tensor:
            by_depth = like if factor is None else like * factor
            return torch.einsum("btd,btr->rd", values.float().flatten(2), by_depth)

        def count(factor: Tensor | None) -> Tensor:
            return (like if factor is None else like * factor).sum((0, 1))

        return {
            "embedding": sums(read[Site(0, "resid_pre")], entry),
            "z": torch.stack(
                [sums(read[Site(b, "z")], f.attention) for b, f in enumerate(factors)], dim=1
            ),
            "mlp": torch.stack(
                [sums(read[Site(b, "mlp_out")], f.mlp) for b, f in enumerate(factors)], dim=1
            ),
            "scale": torch.stack([torch.stack([count(x) for x in f], -1) for f in factors], dim=1),
            "n": weight.sum(),
        }

    def add(self, batch: Batch, got: Mapping[str, Tensor]) -> None:
        """Take in what `reduce` returned."""
        for name, value in got.items():
            self.total[name] = self.total.get(name, torch.zeros(())) + value.double()

    def result(self) -> ScaledMeans:
        """The means."""
        n = self.total["n"]
        mean = {name: (value / n).float() for name, value in self.total.items()}
        shape = (len(self.rows), self.n_blocks, self.info.n_heads, self.info.d_head)
        return ScaledMeans(
            self.depths, mean["embedding"], mean["z"].reshape(shape), mean["mlp"], mean["scale"]
        )
