"""The steps of a waterfall: from the embedding to the score, block by block.

With v_l = w_l / rho_l and h_l the stream behind block l, along one direction v ("fixed")

    v . h_L = v . h_-1 + sum_l v . (h_l - h_{l-1}),

and along the direction fitted at each layer ("refitted")

    v_{l+1} . h_{l+1} - v_l . h_l = v_{l+1} . (h_{l+1} - h_l) + (v_{l+1} - v_l) . h_l:

what block l+1 wrote, seen along its own direction, and what the change of direction (its 1 / rho
included) makes of what was there: the step "L{l} refit". Blocks between two layers of the bank, and
those before its first, are seen along the next direction fitted.

The change of a block is split into attention (all heads and b_O), MLP, and, in a post_ln block
h' = n2(n1(h + a) + M) whose norms are frozen (`frozen.py`), the rest: what the norms make of the
stream they rescale, and their biases ("norms").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.heads.components import Column, Component
from sa_plugin.heads.frozen import FrozenNorms, Scales, through_block
from sa_plugin.heads.target import Target, Terms, depth_of
from sa_plugin.host import Host, Point, Site


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps of some columns; a `Decomposition`.

    Attributes:
        target: Columns, each once a direction.
        components: The steps, in order.
        frozen: Norms behind attention and MLP.
        embedding: Direction of the first step.
        blocks: Direction behind each block; zero for columns read before it.
        turns: By depth, the change of direction there.
    """

    target: Target
    components: tuple[Component, ...]
    frozen: FrozenNorms
    embedding: Float[Tensor, "d_model column"]
    blocks: tuple[Float[Tensor, "d_model column"], ...]
    turns: Mapping[int, Float[Tensor, "d_model column"]]

    @property
    def sites(self) -> list[Site]:
        """Everything a batch has to read."""
        points: tuple[Point, ...] = ("attn_out", "mlp_out")
        own = {Site(b, point) for b in range(len(self.blocks)) for point in points}
        stream = {behind(depth) for depth in (0, *self.turns)}
        norms = self.frozen.sites | {Site(b, "resid_pre") for b in self.joints}
        return sorted(own | stream | norms | self.target.sites)

    @property
    def joints(self) -> list[int]:
        """Blocks with a norm of the whole stream before them."""
        return [b for b, norms in enumerate(self.frozen.norms) if norms.entry is not None]

    def terms(self, read: Mapping[Site, Tensor]) -> Iterator[Terms]:
        """Steps as dot products, in order; no means are taken off."""
        first = read[behind(0)].float()
        scales = self.frozen.scales(read) if self.frozen.block == "post_ln" else None
        yield _piece([first @ self.embedding.to(first.device)])
        if 0 in self.turns:
            yield _piece([first @ self.turns[0].to(first.device)])
        for block in range(len(self.blocks)):
            yield _piece(self._block(read, block, scales))
            if block + 1 in self.turns:
                h = read[behind(block + 1)].float()
                yield _piece([h @ self.turns[block + 1].to(h.device)])
        reference = self.target.reference.to(first.device)
        yield _piece([reference.expand(*first.shape[:2], -1)])

    def _block(
        self, read: Mapping[Site, Tensor], block: int, scales: Scales | None
    ) -> list[Float[Tensor, "batch token column"]]:
        attention = read[Site(block, "attn_out")].float()
        mlp = read[Site(block, "mlp_out")].float()
        out = self.blocks[block]
        if scales is None:
            out = out.to(attention.device)
            return [*self._joint(read, block, out), attention @ out, mlp @ out]
        norms = self.frozen.norms[block]
        carried, stream = through_block("post_ln", norms, out)
        one, two = scales.attention[block], scales.mlp[block]
        assert one is not None
        assert two is not None
        late, early = two[..., None], (one * two)[..., None]
        h = read[Site(block, "resid_pre")].float()
        device = h.device
        rest = (h @ stream.to(device)) * early - h @ out.to(device)
        if norms.attn_out is not None and norms.attn_out.bias is not None:
            rest = rest + late * (norms.attn_out.bias @ carried.mlp).to(device)
        if norms.mlp_out is not None and norms.mlp_out.bias is not None:
            rest = rest + (norms.mlp_out.bias @ out).to(device)
        return [
            (attention @ carried.attention.to(device)) * early,
            (mlp @ carried.mlp.to(device)) * late,
            rest,
        ]

    def _joint(
        self, read: Mapping[Site, Tensor], block: int, out: Float[Tensor, "d_model column"]
    ) -> list[Float[Tensor, "batch token column"]]:
        """What a norm before the block, and what is added there, make of the stream."""
        if block not in self.joints:
            return []
        before = read[Site(block - 1, "resid_post")].float()
        return [(read[Site(block, "resid_pre")].float() - before) @ out]


def _piece(steps: Sequence[Float[Tensor, "batch token column"]]) -> Terms:
    stacked = torch.stack(list(steps), dim=2)
    return stacked, torch.zeros(stacked.shape[2:], device=stacked.device)


def behind(depth: int) -> Site:
    """Where the stream behind the first `depth` blocks is read."""
    return Site(depth - 1, "resid_post") if depth else Site(0, "resid_pre")


def build_chain(
    host: Host,
    bank: ConceptBank,
    columns: Sequence[Column],
    refitted: Sequence[bool],
    *,
    equal_lengths: bool,
) -> Chain:
    """Directions of every step.

    Args:
        host: An attached model.
        bank: The vectors of all layers.
        columns: Whose scores.
        refitted: Whether each column follows the directions of earlier layers.
        equal_lengths: Give earlier directions the length of the last; a cosine's always have it.

    Raises:
        NotImplementedError: Scores are not read from the residual stream, or a post_ln model's
            norms are unknown.
    """
    target = Target.of(host.info, bank, columns, bank.token)
    depth = max(target.depths)
    equal = equal_lengths or target.cosine
    at = {
        depth_of(layer, bank.hook_point): _along(bank, layer, columns, target, equal)
        for layer in bank.layers
        if layer <= max(column.layer for column in columns)
    }
    followed = torch.tensor(list(refitted))
    before = torch.tensor(target.depths)

    def direction(here: int) -> Tensor:
        """Of the change up to a depth: the next one fitted there or behind."""
        chosen = torch.where(followed, at[min(d for d in at if d >= here)], target.directions)
        return torch.where(before >= here, chosen, torch.zeros_like(chosen))

    turns = {d: direction(d + 1) - direction(d) * (before > d) for d in at if d < depth}
    turns = {d: turn for d, turn in turns.items() if bool(turn.any())}
    none = FrozenNorms("pre_norm", (), ())
    known = host.info.block in ("post_ln", "staged")
    frozen = FrozenNorms.of(host, depth) if known else none
    return Chain(
        target, _steps(depth, turns, frozen), frozen,
        direction(0), tuple(direction(block + 1) for block in range(depth)), turns,
    )  # fmt: skip


def _along(
    bank: ConceptBank, layer: int, columns: Sequence[Column], target: Target, equal: bool
) -> Float[Tensor, "d_model column"]:
    place = bank.index(layer)
    vectors = bank.token.vectors[place][[column.unit for column in columns]].float().cpu()
    if equal:
        vectors = vectors * (target.lengths / vectors.norm(dim=-1))[:, None]
    return (vectors / bank.token.scale[place].cpu()).T


def _steps(depth: int, turns: Mapping[int, Tensor], frozen: FrozenNorms) -> tuple[Component, ...]:
    steps = [Component("embedding", "embedding")]
    if 0 in turns:
        steps.append(Component("embedding refit", "refit"))
    for block in range(depth):
        if frozen.norms and frozen.norms[block].entry is not None:
            steps.append(Component(f"L{block} norms", "norms", block))
        steps.append(Component(f"L{block} attention", "heads", block))
        steps.append(Component(f"L{block} MLP", "mlps", block))
        if frozen.block == "post_ln":
            steps.append(Component(f"L{block} norms", "norms", block))
        if block + 1 in turns:
            steps.append(Component(f"L{block} refit", "refit", block))
    return (*steps, Component("reference", "constants"))
