"""The forms of a head's weights against draws of a null: who is called, and what would have been.

For every draw the estimator is refitted at every layer, on the same permuted labels for all concepts, and
both forms of every head are taken again (`align_weights`). The forms of all draws are kept, everything else
about a draw goes as soon as its block is through. Draws come in rounds, the next ones of one stream: they
end early only where nothing is near a call, see `align_null` for why that keeps the level.

What this does not show: see `sa_plugin.concepts.nulls` for what is left of the labels in each null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.concepts.nulls import NULLS, StoredRefits, check_reproduced, null_vectors, unit
from sa_plugin.heads.align_null import (
    LEAST_Z,
    amplifying,
    by_the_others,
    check_draws,
    critical_value,
    draws_needed,
    false_share,
    nothing_near,
    step_down,
)
from sa_plugin.heads.align_plant import meeting, planted_z, smallest_called
from sa_plugin.heads.align_weights import N_CONTROL, HeadBlock, Observed, head_sizes, ov_form, qk_form

RULE = (
    "A head is concept-aligned if its weights write (OV) and read (QK) along the concept, with forms "
    "above zero, more than labels permuted across samples explain: the smaller of the two standardised "
    "forms is called by step-down max-T, family-wise at the level over all heads x concepts. It is called"
    " 'this concept' if the same test against concepts exchanged among labelled tokens passes too, 'any "
    "label' if at least half of those draws would be called themselves, else 'cannot tell'. What is seen "
    "on data (slope of the logits above zero and beyond every permuted-label direction; attention of "
    "positive queries on the top tokens above chance) stands beside the call and is no part of it."
)

# Rounds of draws at most, where a draw is a sum over rows.
_ROUNDS = 4


@face
@dataclass(frozen=True)
class WeightTest:
    """How heads are called by their weights.

    Attributes:
        nulls: What the weights are held against, see `sa_plugin.concepts.nulls`; calls rest on the first,
            and "exchanged" says whether they are this concept's.
        draws: Of each null. A draw of "separator_adam" is trained by itself: give fewer, such as 60.
        level: Family-wise: the largest probability of any call where labels mean nothing.
        refine: How many times `draws` are made in all of the null that calls rest on, wherever a cell is
            called or near it; 1 for none. By default 4, and 1 for separators, whose draws are dear.

    Raises:
        ValueError: A null is unknown or out of place, the level no share, draws too few for it, or
            refine below 1.
    """

    nulls: Sequence[str] = ("across", "exchanged")
    draws: int = 1000
    level: float = 0.05
    refine: int | None = None

    def __post_init__(self) -> None:
        check_draws(self.draws, self.level)
        if not self.nulls:
            raise ValueError("nulls is empty: name 'across' at least.")
        for null in self.nulls:
            require_known("null", null, NULLS)
        if self.nulls[0] == "exchanged":
            raise ValueError(
                "nulls begins with 'exchanged', which asks of a called head whether it is this concept's: "
                "name what calls rest on first, ('across', 'exchanged')."
            )


@dataclass(frozen=True, eq=False)
class Tested:
    """One null against the found forms; the alternative, fixed beforehand, is a larger form, which amplifies.

    Attributes:
        z_ov, z_qk: Of both sides, in deviations of the cell's own null.
        p: Of max-T over all cells, see `align_null`; NaN where the null cannot draw the concept.
        block_p: Of each block's largest T alone.
        block_p_adjusted: The same, family-wise over blocks.
        critical: What T has to exceed for any call at the level.
        false_share: Half heads expected among the cells with T as large, as a share of them.
        any_call: How often any cell would be called: in draws that had no part in the null ("held out",
            NaN where half of the draws are too few for a null);
            with one side as found and the other drawn ("write as found", "read as found").
        share_called: Of this null's draws, by the critical value of the null that calls rest on.
        planted: Smallest cosine of a planted head that is called, NaN where none is, see `align_plant`.
        draws: That were made.
    """

    z_ov: Float64[np.ndarray, "block head concept"]
    z_qk: Float64[np.ndarray, "block head concept"]
    p: Float64[np.ndarray, "block head concept"]
    block_p: Float64[np.ndarray, " block"]
    block_p_adjusted: Float64[np.ndarray, " block"]
    critical: float
    false_share: Float64[np.ndarray, "block head concept"]
    any_call: Mapping[str, float]
    share_called: Float64[np.ndarray, "block head concept"]
    planted: Float64[np.ndarray, "block head concept"]
    draws: int

    @property
    def z(self) -> Float64[np.ndarray, "block head concept"]:
        """T, the smaller of both: a head has to pass either."""
        return np.asarray(np.minimum(self.z_ov, self.z_qk))


@dataclass(frozen=True)
class Weighing:
    """What is held against what.

    Attributes:
        blocks: From `describe_blocks`.
        refit: The estimator.
        vectors: Of the true labels, by layer: see `concept_vectors`.
        found: Forms at these.
        level: Family-wise, of the calls.
        quiet: Show no bar.
    """

    blocks: Sequence[HeadBlock]
    refit: StoredRefits
    vectors: Mapping[int, Float[Tensor, "concept d_model"]]
    found: Observed
    level: float
    quiet: bool = False

    def against(
        self,
        null: str,
        draws: int,
        seed: int,
        *,
        rounds: int = 1,
        drawable: Bool[np.ndarray, " concept"] | None = None,
        rests_on: Standard | None = None,
        control: dict[int, Tensor] | None = None,
    ) -> tuple[Tested, Standard]:
        """Hold the found forms against one null.

        Args:
            null: A name of `sa_plugin.concepts.nulls.NULLS`.
            draws: Refits of a round.
            seed: Of the draws.
            rounds: At most; fewer as soon as nothing is near a call.
            drawable: Concepts that the null can draw; all by default.
            rests_on: The null that calls rest on; this one by default.
            control: Gets the first `N_CONTROL` draws' directions by layer, for the data side.

        Returns:
            What was found, and what other nulls' draws are called by.
        """
        made: list[_Forms] = []
        for k in range(rounds):
            # The control is of the first draws of all.
            held = control if control is not None and not made else {}
            made.append(self._forms(null, draws, seed, k * draws, held))
            sums = _NullSums(self, _Forms(*map(np.concatenate, zip(*made, strict=True))), drawable)
            if sums.may_end():
                break
        return sums.tested(rests_on), sums.standard()

    def _forms(self, null: str, draws: int, seed: int, before: int, control: dict[int, Tensor]) -> _Forms:
        """Forms of so many draws of every block, the next ones of the stream."""
        shape = self.found.ov.shape
        ov, qk = np.empty((2, draws, *shape), dtype=np.float32)
        read, write = np.empty((2, draws, shape[0], shape[2]))
        for k, (v_in, v_out) in enumerate(self._drawn(null, draws, seed, before, control)):
            block = self.blocks[k]
            ov[:, k], qk[:, k] = (form.numpy() for form in _forms(block, v_in, v_out))
            own = self.vectors[block.source], self.vectors[block.index]
            read[:, k], write[:, k] = meeting(*own, v_in, v_out)
        return _Forms(ov, qk, read, write)

    def _drawn(
        self, null: str, draws: int, seed: int, before: int, control: dict[int, Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Directions of the draws at each block's input and output."""
        layers = sorted({end for b in self.blocks for end in (b.source, b.index)})
        at = {b.index: b for b in self.blocks}
        vectors = null_vectors(self.refit, null, layers, draws, seed, before)
        bar = tqdm(layers, desc=f"null {null}", unit="layer", disable=self.quiet, leave=False)
        last: dict[int, Tensor] = {}
        for layer, drawn in zip(bar, vectors, strict=True):
            # Layers come in order and a block reads the one before: two are held at a time.
            last = {k: v for k, v in last.items() if k == layer - 1} | {layer: drawn}
            control[layer] = drawn[:N_CONTROL].clone()
            if layer in at:
                yield last[at[layer].source], drawn


class _Forms(NamedTuple):
    """Forms of draws, and how much of a planted head each meets: on the OV side and on the QK side."""

    ov: Float32[np.ndarray, "draw block head concept"]
    qk: Float32[np.ndarray, "draw block head concept"]
    met_ov: Float64[np.ndarray, "draw block concept"]
    met_qk: Float64[np.ndarray, "draw block concept"]


def rounds_of(test: WeightTest, kind: str) -> int:
    """How many times `draws` are made at most for banks of a kind."""
    return test.refine or (1 if kind_of(kind).need == "rows" else _ROUNDS)


def weighed(
    weighing: Weighing,
    test: WeightTest,
    seed: int,
    drawable: Bool[np.ndarray, " concept"],
    control: dict[int, Tensor],
) -> dict[str, Tested]:
    """Every null; calls rest on the first, whose first draws are the data side's control."""
    rounds = rounds_of(test, weighing.refit.bank.kind)
    first, standard = weighing.against(test.nulls[0], test.draws, seed, rounds=rounds, control=control)
    found = {test.nulls[0]: first}
    for k, null in enumerate(test.nulls[1:], start=1):
        # Each null has draws of its own.
        can = drawable if null == "exchanged" else None
        if can is None or can.any():
            found[null], _ = weighing.against(null, test.draws, seed + k, drawable=can, rests_on=standard)
    return found


class Standard(NamedTuple):
    """A null's own mean and deviation of both sides of each cell, and its critical value."""

    mean: Float64[np.ndarray, "side block head concept"]
    deviation: Float64[np.ndarray, "side block head concept"]
    critical: float


class _NullSums:
    """A null's draws, standardised block by block, and what is called by them."""

    def __init__(self, given: Weighing, drawn: _Forms, drawable: Bool[np.ndarray, " concept"] | None) -> None:
        self.given, self.drawn, self.draws = given, drawn, len(drawn.ov)
        shape = given.found.ov.shape
        self.out = np.zeros(shape[-1], bool) if drawable is None else ~drawable
        self.z = np.empty((2, *shape))
        self.mean, self.deviation = np.empty((2, *shape)), np.empty((2, *shape))
        self.t = np.empty((self.draws, *shape))
        self.tails: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        # Largest T of each draw if the write, or the read, stayed as found.
        self.half_heads = np.full((2, self.draws), -np.inf)
        for k in range(shape[0]):
            self._standardise(k)

    def _block(self, k: int) -> list[Float64[np.ndarray, "draw head concept"]]:
        return [form[:, k].astype(np.float64) for form in (self.drawn.ov, self.drawn.qk)]

    def _standardise(self, k: int) -> None:
        """The found forms and the draws of one block, each by all others."""
        drawn = []
        found = (self.given.found.ov[k], self.given.found.qk[k])
        for side, (own, one) in enumerate(zip(self._block(k), found, strict=True)):
            every = np.concatenate([one[None].astype(np.float64), own])
            z = amplifying(by_the_others(every), every)
            # A concept that the null cannot draw is no test.
            z[..., self.out] = -np.inf
            self.z[side, k] = z[0]
            each = z[1:]
            drawn.append(each)
            self.tails[side].append(each[each >= LEAST_Z])
            self.mean[side, k], self.deviation[side, k] = own.mean(0), own.std(0, ddof=1)
        self.t[:, k] = np.minimum(*drawn)
        for side in (0, 1):
            half = np.minimum(self.z[side, k], drawn[1 - side]).max((1, 2))
            self.half_heads[side] = np.maximum(self.half_heads[side], half)

    def may_end(self) -> bool:
        """Whether draws may end, as nothing is near a call."""
        return nothing_near(self.z.min(0).max(), self._largest(), self.given.level)

    def _largest(self) -> Float64[np.ndarray, " draw"]:
        return np.asarray(self.t.reshape(self.draws, -1).max(1))

    def _share(self, k: int, rests_on: Standard) -> Float64[np.ndarray, "head concept"]:
        """How often each cell of a block would be called by another null."""
        with np.errstate(divide="ignore", invalid="ignore"):
            both = [
                amplifying((x - rests_on.mean[s, k]) / rests_on.deviation[s, k], x)
                for s, x in enumerate(self._block(k))
            ]
        share = np.asarray((np.minimum(*both) > rests_on.critical).mean(0))
        share[:, self.out] = np.nan
        return share

    def _planted(self, k: int) -> Float64[np.ndarray, "cosine head concept"]:
        """T of a block's cells with a head of each size planted."""
        block, drawn = self.given.blocks[k], self.drawn
        own = self.given.vectors[block.source], self.given.vectors[block.index]
        ov, qk = self._block(k)
        return planted_z(head_sizes(block, *own), (ov, qk), (drawn.met_ov[:, k], drawn.met_qk[:, k]))

    def _held_out(self, k: int) -> np.ndarray:
        """Largest T of the block: of the first half among itself, of the second held against the first."""
        half = self.draws // 2
        both = []
        for x in self._block(k):
            null = x[:half]
            with np.errstate(divide="ignore", invalid="ignore"):
                rest = np.nan_to_num((x[half:] - null.mean(0)) / null.std(0, ddof=1))
            both.append(amplifying(np.concatenate([by_the_others(null), rest]), x))
        t = np.minimum(*both)
        t[..., self.out] = -np.inf
        return np.asarray(t.max((1, 2)))

    def standard(self) -> Standard:
        """What draws of other nulls are called by."""
        return Standard(self.mean, self.deviation, critical_value(self._largest(), self.given.level))

    def tested(self, rests_on: Standard | None) -> Tested:
        """Calls and what stands beside them."""
        critical = self.standard().critical
        found, blocks = self.z.min(0), range(len(self.z[0]))
        p = step_down(found.ravel(), self.t.reshape(self.draws, -1)).reshape(found.shape)
        by_block, drawn = found.max((1, 2)), self.t.max((2, 3))
        tails = [np.concatenate(each) for each in self.tails]
        # Of all draws of all cells, those below `LEAST_Z` included.
        cells = self.draws * int((~self.out).sum()) * found[..., 0].size
        any_call = {"held out": self._any_held_out()}
        for name, largest in zip(("write as found", "read as found"), self.half_heads, strict=True):
            any_call[name] = float((largest > critical).mean())
        if rests_on is None:
            share = (self.t > critical).mean(0)
            planted = smallest_called(np.stack([self._planted(k) for k in blocks], axis=1), critical)
        else:
            share = np.stack([self._share(k, rests_on) for k in blocks])
            planted = np.full(found.shape, np.nan)
        return Tested(
            self.z[0],
            self.z[1],
            p,
            (1.0 + (drawn >= by_block).sum(0)) / (self.draws + 1),
            step_down(by_block, drawn),
            critical,
            false_share(self.z[0], self.z[1], tails[0], tails[1], cells),
            any_call,
            share,
            planted,
            self.draws,
        )

    def _any_held_out(self) -> float:
        """How often any cell of the second half would be called by the first; NaN where that is too small."""
        level, half = self.given.level, self.draws // 2
        if half < draws_needed(level):
            return float("nan")
        largest = np.max([self._held_out(k) for k in range(len(self.given.blocks))], axis=0)
        return float((largest[half:] > critical_value(largest[:half], level)).mean())


def _forms(
    block: HeadBlock,
    v_in: Float[Tensor, "draw concept d_model"],
    v_out: Float[Tensor, "draw concept d_model"],
) -> tuple[Float[Tensor, "draw head concept"], Float[Tensor, "draw head concept"]]:
    # Draws of all concepts are so many directions; apart again at the end, heads before concepts.
    flat_in, flat_out, shape = v_in.flatten(0, 1), v_out.flatten(0, 1), v_in.shape[:2]
    ov = ov_form(block.maps, flat_in, flat_out)
    qk = qk_form(block.maps, flat_in, block.turn)
    return ov.reshape(*shape, -1).mT, qk.reshape(*shape, -1).mT


def concept_vectors(
    refit: StoredRefits, layers: Sequence[int]
) -> dict[int, Float[Tensor, "concept d_model"]]:
    """Unit vectors of the estimator on the true labels, each proved to be the bank's.

    As the draws are, they are refitted: found and drawn go through the same solver, and where labels mean
    nothing they are exchangeable whatever its tolerance.

    Raises:
        ValueError: They are not.
    """
    # The permutation that changes nothing: every token keeps its own labels.
    same = np.arange(len(refit.statistics.tokens), dtype=np.int32)[None]
    out = {}
    for layer in layers:
        out[layer] = refit.vectors(layer, same)[0]
        own = refit.bank.token.vectors[refit.bank.index(layer)][refit.columns].float()
        check_reproduced(out[layer], unit(own), layer)
    return out
