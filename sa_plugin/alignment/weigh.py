"""Every head's OV and QK forms at the concept directions, beside those at the null's directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin.alignment.null import Refit, check_reproduced, null_vectors, unit
from sa_plugin.alignment.rotary import Turn, mean_turn, profile_offsets
from sa_plugin.alignment.tails import calibration, p_values
from sa_plugin.alignment.weights import (
    HeadMaps,
    head_maps,
    ov_cosine,
    ov_form,
    qk_cosine,
    qk_form,
)
from sa_plugin.block import AttentionWeights, DescribedHost

Forms = Float[np.ndarray, "block head concept"]


@dataclass(frozen=True, eq=False)
class Block:
    """What is fixed about one block: its maps, its rotation, and the bank's layers at its ends."""

    index: int
    source: int
    attention: AttentionWeights
    maps: HeadMaps
    turn: Turn | None


@dataclass(frozen=True, eq=False)
class Observed:
    """Forms at the concepts' own directions, without the norms' scales.

    Attributes:
        ov, qk: Bilinear forms.
        ov_cosine, qk_cosine: Shown, not tested.
        profile: `qk` at single offsets, query minus key; empty without rotary embeddings.
    """

    ov: Forms
    qk: Forms
    ov_cosine: Forms
    qk_cosine: Forms
    profile: Mapping[int, Forms]


@dataclass(frozen=True, eq=False)
class Tested:
    """One null against the observed forms.

    Attributes:
        p_ov, p_qk: One-sided p-values; the alternative, fixed beforehand, is a larger form, which
            amplifies.
        calibration: Share of held-out draws below each level, see `tails.calibration`.
    """

    p_ov: Float64[np.ndarray, "block head concept"]
    p_qk: Float64[np.ndarray, "block head concept"]
    calibration: Mapping[str, float]

    @property
    def p(self) -> Float64[np.ndarray, "block head concept"]:
        """The larger of both: a head has to pass either."""
        return np.asarray(np.maximum(self.p_ov, self.p_qk))


def describe_blocks(
    host: DescribedHost, layers: Sequence[int], offsets: Mapping[int, int]
) -> list[Block]:
    """Blocks whose input and output both have concept vectors.

    The input of block b is the output of block b - 1; block 0 takes its own output's direction.

    Args:
        host: Hands out its weights.
        layers: Of the bank.
        offsets: Seen in the data.

    Raises:
        ValueError: No two layers are neighbours, or an architecture's attention is unknown.
    """
    found = []
    for b in layers:
        if b and b - 1 not in layers:
            continue
        attention = host.attention_weights(b)
        maps = head_maps(attention, host.norms(b), host.output_projection(b))
        turn = mean_turn(attention.rotary, offsets)
        found.append(Block(b, max(0, b - 1), attention, maps, turn))
    if not found:
        raise ValueError(
            f"the bank has vectors at layers {list(layers)}, no two of them neighbours: a head of "
            "block b reads at layer b - 1 and writes at layer b. Fit more layers (by default all)."
        )
    return found


def observe(
    blocks: Sequence[Block],
    vectors: Mapping[int, Float[Tensor, "concept d_model"]],
    offsets: Mapping[int, int],
) -> Observed:
    """Forms and cosines at unit directions, by block."""
    ends = [(b, vectors[b.source], vectors[b.index]) for b in blocks]
    turned = any(b.turn is not None for b in blocks)
    single = profile_offsets(offsets) if turned else ()
    profile = {offset: _stack([_at_offset(b, v, offset) for b, v, _ in ends]) for offset in single}
    return Observed(
        _stack([ov_form(b.maps, v, w) for b, v, w in ends]),
        _stack([qk_form(b.maps, v, b.turn) for b, v, _ in ends]),
        _stack([ov_cosine(b.maps, v, w) for b, v, w in ends]),
        _stack([qk_cosine(b.maps, v, b.turn) for b, v, _ in ends]),
        profile,
    )


def _at_offset(block: Block, v: Tensor, offset: int) -> Tensor:
    return qk_form(block.maps, v, mean_turn(block.attention.rotary, {offset: 1}))


def _stack(parts: Sequence[Float[Tensor, "concept head"]]) -> Forms:
    return torch.stack(list(parts)).mT.double().numpy()


def weigh(
    blocks: Sequence[Block],
    refit: Refit,
    observed: Observed,
    null: str,
    *,
    draws: int,
    seed: int,
    tail: str,
    keep: int = 0,
    progress: bool = True,
) -> tuple[Tested, dict[int, Float[Tensor, "kept concept d_model"]]]:
    """Hold the observed forms against one null.

    Args:
        blocks: From `describe_blocks`.
        refit: The estimator.
        observed: Forms at the true directions.
        null: "across", "within" or "covariance".
        draws: Refits.
        seed: Of the draws.
        tail: See `tails.py`.
        keep: Draws whose directions are returned, for the data side.
        progress: Whether to show a bar.

    Returns:
        The p-values, and the first `keep` draws' directions by layer.
    """
    layers = sorted({end for b in blocks for end in (b.source, b.index)})
    at = {b.index: b for b in blocks}
    vectors = null_vectors(refit, null, layers, draws, seed)
    bar = tqdm(layers, desc=f"null {null}", unit="layer", disable=not progress, leave=False)
    kept: dict[int, Tensor] = {}
    last: dict[int, Tensor] = {}
    p: list[tuple[np.ndarray, np.ndarray]] = []
    checks: list[dict[str, float]] = []
    for layer, drawn in zip(bar, vectors, strict=True):
        last = {k: v for k, v in last.items() if k == layer - 1} | {layer: drawn}
        if keep:
            kept[layer] = drawn[:keep].clone()
        if layer not in at:
            continue
        block, k = at[layer], len(p)
        ov, qk = (form.numpy() for form in _forms(block, last[block.source], drawn))
        p.append((p_values(observed.ov[k], ov, tail), p_values(observed.qk[k], qk, tail)))
        checks += [calibration(form, tail) for form in (ov, qk)]
    mean = {level: float(np.mean([c[level] for c in checks])) for level in checks[0]}
    return Tested(np.stack([a for a, _ in p]), np.stack([b for _, b in p]), mean), kept


def _forms(
    block: Block,
    v_in: Float[Tensor, "draw concept d_model"],
    v_out: Float[Tensor, "draw concept d_model"],
) -> tuple[Float[Tensor, "draw head concept"], Float[Tensor, "draw head concept"]]:
    flat_in, flat_out, shape = v_in.flatten(0, 1), v_out.flatten(0, 1), v_in.shape[:2]
    ov = ov_form(block.maps, flat_in, flat_out)
    qk = qk_form(block.maps, flat_in, block.turn)
    return ov.reshape(*shape, -1).mT, qk.reshape(*shape, -1).mT


def concept_vectors(
    refit: Refit, layers: Sequence[int]
) -> dict[int, Float[Tensor, "concept d_model"]]:
    """The bank's unit vectors, each proved to be what the estimator gives on the true labels.

    Raises:
        ValueError: It is not.
    """
    same = np.arange(len(refit.statistics.tokens), dtype=np.int32)[None]
    out = {}
    for layer in layers:
        out[layer] = unit(refit.bank.token.vectors[refit.bank.index(layer)][refit.columns].float())
        check_reproduced(refit.vectors(layer, same)[0], out[layer], layer)
    return out
