"""The one pass of a theory check: every sample's sums for every block and direction.

Patterns are large, `heads x tokens^2` a sample and block: they are reduced beside the model, one
sample and one block at a time, to sums of shape `[sample, layer, column]`. What is held at once is
the batch's own patterns (`layers x batch x heads x tokens^2` numbers of the model's format) and,
for one sample and block, `tokens^2 x columns` float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.collect import Layout, kept, sink_sites, walk
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.host import Batch, Host, Point, Site
from sa_plugin.theory._attention_sums import (
    Attention,
    attention_of,
    mass_sums,
    predicted_pattern,
    prefix_sums,
    spread_sums,
    tilted,
)
from sa_plugin.theory._gap_sums import (
    RESOLUTION,
    Steps,
    gap_sums,
    shape_sums,
    tail_sums,
    tenth_sums,
)
from sa_plugin.theory.directions import Directions
from sa_plugin.theory.paths import Path, normalised, scales_of

LEAST_TOKENS = 10
LEAST_TAIL = 3
# In the largest write; the weights and the pass round apart, more so in half precision.
CLOSES = {"float32": 1e-3, "float64": 1e-6}


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over each sample's tokens, pairs or queries, by name.

    Attributes:
        values: `[sample, layer, column]` by name, and a last axis of tenths for some.
        heads: `[layer, column, head]`, over all samples: attention mass by head.
        measured: Which samples had enough kept tokens.
        closes_to: Largest miss of the heads' writes as the weights say against what was read, in
            the largest write; NaN without weights.
    """

    values: Mapping[str, Float[np.ndarray, "sample layer ..."]]
    heads: Mapping[str, Float[np.ndarray, "layer column head"]]
    measured: np.ndarray
    closes_to: float


def run_pass(
    host: Host,
    layout: Layout,
    bank: ConceptBank,
    directions: Directions,
    paths: Sequence[Path] | None,
    tail: float,
    *,
    progress: bool,
) -> Sums:
    """Run every batch once.

    Raises:
        ValueError: The heads' writes as the weights say are not what the attention layer added.
    """
    sites = {Site(layer, point) for layer in directions.layers for point in _POINTS}
    sites |= set(sink_sites(bank.sink_layers))
    n = len(layout.bounds) - 1
    values: dict[str, np.ndarray] = {}
    heads: dict[str, np.ndarray] = {}
    measured = np.zeros(n, dtype=bool)
    closes_to = 0.0 if paths is not None else float("nan")
    reducer = _reducer(host, bank, directions, paths, tail)
    for batch, got in walk(
        host, layout, sorted(sites), reducer, description="theory", progress=progress
    ):
        rows = batch.rows.numpy()
        measured[rows] = got.pop("measured").numpy()
        missed = float(got.pop("closes").max())
        _check_closes(host, missed)
        closes_to = max(closes_to, missed) if paths is not None else closes_to
        for name, tensor in got.items():
            into = heads if name.startswith("head ") else values
            part = tensor.numpy()
            if into is heads:
                heads[name] = heads.get(name, 0.0) + part.sum(0)
            else:
                values.setdefault(name, np.zeros((n, *part.shape[1:])))[rows] = part
    return Sums(values, heads, measured, closes_to)


_POINTS: tuple[Point, ...] = ("resid_pre", "resid_post", "attn_out", "pattern")


def _reducer(
    host: Host,
    bank: ConceptBank,
    directions: Directions,
    paths: Sequence[Path] | None,
    tail: float,
) -> Callable[[Batch], Callable[[Mapping[Site, Tensor]], dict[str, Tensor]]]:
    info = host.info

    def for_batch(batch: Batch) -> Callable[[Mapping[Site, Tensor]], dict[str, Tensor]]:
        mask = batch.inputs.get("attention_mask")
        attended = torch.ones_like(batch.valid) if mask is None else mask.bool().cpu()

        def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
            keep = kept(read, batch.valid, info, bank.sink_layers, bank.origin.sinks)
            rows: list[dict[str, Tensor]] = []
            for row in range(len(keep)):
                inputs = attended[row].to(keep.device)
                tokens = keep[row][inputs]
                enough = int(tokens.sum()) >= LEAST_TOKENS
                blocks = [
                    _block(
                        {p: read[Site(layer, p)][row] for p in _POINTS}, inputs, tokens, k,
                        directions, None if paths is None else paths[k], tail, info.causal,
                    )
                    for k, layer in enumerate(directions.layers)
                ] if enough else []  # fmt: skip
                rows.append(_stacked(blocks))
            return _batched(rows)

        return reduce

    return for_batch


def _stacked(blocks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    if not blocks:
        return {}
    return {name: torch.stack([one[name] for one in blocks]) for name in blocks[0]}


def _batched(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    found = {"measured": torch.tensor([bool(row) for row in rows])}
    filled = [row for row in rows if row]
    if not filled:
        return found | {"closes": torch.zeros(1, dtype=torch.float64)}
    empty = {name: torch.zeros_like(value) for name, value in filled[0].items()}
    names = list(filled[0])
    return found | {n: torch.stack([(row or empty)[n] for row in rows]).cpu() for n in names}


def _block(
    read: Mapping[str, Tensor],
    inputs: Tensor,
    tokens: Tensor,
    at: int,
    directions: Directions,
    path: Path | None,
    tail: float,
    causal: bool,
) -> dict[str, Tensor]:
    """Everything of one sample in one block."""
    before, after, added = (
        read[p][inputs].to(_wide(inputs.device)) for p in ("resid_pre", "resid_post", "attn_out")
    )
    v_in, v_out = (d[at].to(before) for d in (directions.read, directions.write))
    a = _along(before[tokens], v_in, directions.origin_in[at], bool(directions.own_mean[at, 0]))
    b = _along(after[tokens], v_out, directions.origin_out[at], bool(directions.own_mean[at, 1]))
    full = read["pattern"].to(before.dtype)[:, inputs][:, :, inputs]
    attention = attention_of(full, tokens, causal)
    heads = added[tokens] @ v_out
    predicted = None
    found = {
        "norm before": before[tokens].norm(dim=-1).sum(),
        "norm after": after[tokens].norm(dim=-1).sum(),
        "closes": torch.zeros((), dtype=before.dtype, device=before.device),
    }
    gain = path_write = None
    if path is not None:
        extra, gain, path_write, predicted = _by_weights(
            path, before, tokens, a, attention, full, v_out, added, directions, causal
        )
        found |= extra
    steps = Steps(a, b, heads, gain, path_write)
    found |= gap_sums(steps) | shape_sums(steps) | tenth_sums(steps)
    found |= tail_sums(steps, tail, LEAST_TAIL) | spread_sums(attention)
    return found | mass_sums(a, attention, tail, predicted)


def _by_weights(
    path: Path,
    before: Float[Tensor, "every d_model"],
    tokens: Tensor,
    a: Float[Tensor, "token column"],
    attention: Attention,
    full: Float[Tensor, "head every every"],
    v_out: Float[Tensor, "d_model column"],
    added: Float[Tensor, "every d_model"],
    directions: Directions,
    causal: bool,
) -> tuple[dict[str, Tensor], Tensor | None, Tensor, Tensor | None]:
    """What needs the heads' weights: the concept's path, its prediction, the common prefix."""
    inverse = 1 / scales_of(path.norm, before[tokens])
    scaled = a * inverse[:, None]
    beta, gamma = path.beta.to(before), path.gamma.to(before)
    mean, variance = tilted(attention.pattern, scaled)
    own = torch.einsum("hc,hqc->qc", gamma, mean)
    writes = torch.einsum("td,hdc->htc", normalised(path.norm, before), path.write.to(before))
    said = torch.einsum("hqk,hkc->qc", full, writes) + path.constant.to(before)
    found = {
        "closes": _missed(said, added @ v_out),
        "inverse scale": inverse.sum(),
        "inverse scale squared": inverse.square().sum(),
    }  # fmt: skip
    mine = [k for k, column in enumerate(directions.columns) if column.role == "concept"]
    # Concept columns stand first: only they are predicted pair by pair and key by key.
    assert mine == list(range(len(mine)))
    known = bool(beta.isfinite().all())
    first = len(mine) if known else 0
    if causal:
        growth = (beta * gamma)[:, :first]
        found |= prefix_sums(a, attention.pattern, writes[:, tokens], growth, inverse, RESOLUTION)
    if not known:
        return found, None, own, None
    gain = 1 + torch.einsum("hc,hqc->qc", beta * gamma, variance) * inverse[:, None]
    found["gain"] = gain.sum(0)
    pattern = predicted_pattern(scaled[:, :first], beta[:, :first], attention.visible)
    return found, gain, own, pattern


def _missed(
    said: Float[Tensor, "every column"], got: Float[Tensor, "every column"]
) -> Float[Tensor, ""]:
    """Largest difference in the largest value; 0 where nothing was written."""
    most = got.abs().max()
    missed: Tensor = (said - got).abs().max() / most.clamp_min(1e-30)
    return torch.where(most > 0, missed, 0.0)


def _along(
    resid: Float[Tensor, "token d_model"],
    vectors: Float[Tensor, "d_model column"],
    origin: Float[Tensor, " d_model"],
    own_mean: bool,
) -> Float[Tensor, "token column"]:
    mean = resid.mean(0) if own_mean else origin.to(resid)
    return (resid - mean) @ vectors


def _wide(device: torch.device) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _check_closes(host: Host, missed: float) -> None:
    limit = CLOSES.get(host.info.dtype, 5e-2)
    # Not the other way round: NaN misses too.
    if not missed <= limit:
        raise ValueError(
            f"the heads' writes by {type(host).__name__}.attention_weights miss what the attention "
            f"layers of {host.info.model} added by {missed:.1e} of the largest (limit {limit:g}): "
            "predictions from these weights would be of another model. Run "
            "sa_plugin.check(host), and report the architecture."
        )
