"""Which directions a check follows through the model, and how strongly each head reads and writes them.

    a_i = v . (h_i - mu),  v of unit length in the residual stream's own space

| direction | v at the input of block l | at its output |
|---|---|---|
| fixed | the concept's vector of one chosen layer | the same |
| refitted | the bank's vector fitted at the input | the bank's vector fitted at the output |

Each comes for the concept vectors and for the vectors of permuted labels; isotropic random
directions are fixed. A refitted block needs vectors on both of its sides: elsewhere v is 0, and
every quantity of it NaN.

mu is the train mean where the bank has it; 0 where the bank has raw vectors; else the mean of the
sample's own kept tokens, which is named in the report. Gaps, slopes, variances and skewness do not
depend on mu; the sign of a query (C1) and a / max a (C2) do.

A head's *path* along a direction is OUR reading of the idealised model on a real head. With n the
norm before attention, n(h) = g * P h / r + bias (P subtracts the mean in a LayerNorm, r is the
token's own scale), the concept's part of a normalised token is (a / r) g_v, g_v = g * P v:

    beta_h  = scale * (g_v W_Q) R (g_v W_K)^T     logits hold beta_h (a_i / r_i) (a_j / r_j)
    gamma_h = g_v W_V W_O . v_out                 a unit of attention on j writes gamma_h a_j / r_j

R is the rotary rotation averaged over the offsets of the samples' tokens: per pair of dimensions
(q1 k1 + q2 k2) mean cos + (q1 k2 - q2 k1) mean sin. Divide beta by r^2 and gamma by r for the
units of the idealised model.

What they do not show: terms linear in v (biases), what the rest of the token adds to a logit, and
whether a value is large for a real concept (`sa_plugin.heads.align` asks that). A softcap bounds
logits, so beta is then the slope at 0. Where q and k pass a norm of their own, beta is only known
up to a scale that differs from token to token: it is NaN here. Where the block normalises what its
heads write (post-norm), no head has a gamma of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.concepts.nulls import isotropic
from sa_plugin.host.protocol import AttentionWeights, DescribedHost, Host, HostInfo, Norm, Rotary


class Followed(NamedTuple):
    """One column: a direction followed through the layers.

    Attributes:
        concept: Whose vector; "" for random directions.
        direction: "fixed" or "refitted".
        role: "concept", "permuted" or "random".
    """

    concept: str
    direction: str
    role: str


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit directions at the input and output of every block checked.

    Attributes:
        layers: Blocks.
        columns: What is followed.
        read, write: v at each block's input and output; 0 where the bank has none.
        origin_in, origin_out: mu there.
        own_mean: Whether mu at (input, output) is instead each sample's own mean.
        chosen: Layer of each concept's fixed vector.
    """

    layers: tuple[int, ...]
    columns: tuple[Followed, ...]
    read: Float[Tensor, "layer d_model column"]
    write: Float[Tensor, "layer d_model column"]
    origin_in: Float[Tensor, "layer d_model"]
    origin_out: Float[Tensor, "layer d_model"]
    own_mean: Bool[Tensor, "layer side"]
    chosen: Mapping[str, int]

    def where(self, concept: str, direction: str) -> dict[str, list[int]]:
        """Columns of a concept by role; "permuted" is its own, "every control" all there are.

        Random directions are fixed, and stand beside refitted ones as well.
        """
        found: dict[str, list[int]] = {}
        for k, column in enumerate(self.columns):
            same = column.direction == direction
            if column.role == "random" or (same and column.concept == concept):
                found.setdefault(column.role, []).append(k)
            if column.role == "random" or (same and column.role == "permuted"):
                found.setdefault("every control", []).append(k)
        return found


def build_directions(
    bank: ConceptBank,
    info: HostInfo,
    chosen: Mapping[str, tuple[int, int]],
    layers: Sequence[int],
    n_random: int,
    seed: int,
) -> Directions:
    """Directions of some concepts at some blocks.

    Args:
        bank: Vectors read at the residual stream.
        info: Of the model.
        chosen: For each concept the layer of its fixed vector and its unit.
        layers: Blocks to check.
        n_random: Random directions.
        seed: Of the random directions.

    Raises:
        ValueError: The bank's vectors do not live in the residual stream.
    """
    if bank.hook_point not in ("resid_pre", "resid_post"):
        raise ValueError(
            f"the bank is read at {bank.hook_point!r}: gaps from block to block are defined for "
            "the residual stream. Fit with hook_point='resid_post'."
        )
    columns, read, write = [], [], []
    # Concept columns first: the pass predicts patterns for them alone.
    for role, vectors in (("concept", bank.token), ("permuted", bank.permuted)):
        if vectors is None:
            continue
        for concept, (layer, unit) in chosen.items():
            for direction in ("fixed", "refitted") if bank.supervised else ("fixed",):
                ends = [_ends(bank, vectors, unit, block, layer, direction) for block in layers]
                columns.append(Followed(concept, direction, role))
                read.append(torch.stack([one for one, _ in ends]))
                write.append(torch.stack([other for _, other in ends]))
    for vector in isotropic(info.d_model, n_random, seed):
        columns.append(Followed("", "fixed", "random"))
        read.append(vector.expand(len(layers), -1))
        write.append(vector.expand(len(layers), -1))
    origins = [[_origin(bank, state) for state in (block, block + 1)] for block in layers]
    zero = torch.zeros(info.d_model, dtype=torch.float64)
    filled = [[zero if mean is None else mean for mean in pair] for pair in origins]
    return Directions(
        tuple(layers),
        tuple(columns),
        torch.stack(read, dim=-1),
        torch.stack(write, dim=-1),
        torch.stack([pair[0] for pair in filled]),
        torch.stack([pair[1] for pair in filled]),
        torch.tensor([[mean is None for mean in pair] for pair in origins]),
        {concept: layer for concept, (layer, _) in chosen.items()},
    )


def _ends(
    bank: ConceptBank, vectors: VectorSet, unit: int, block: int, layer: int, direction: str
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    if direction == "fixed":
        one = _unit(vectors.vectors[bank.index(layer), unit].double())
        return one, one
    states = _states(bank)
    if block not in states or block + 1 not in states:
        zero = torch.zeros(vectors.vectors.shape[-1], dtype=torch.float64)
        return zero, zero
    at, then = states[block], states[block + 1]
    return _unit(vectors.vectors[at, unit].double()), _unit(vectors.vectors[then, unit].double())


def _states(bank: ConceptBank) -> dict[int, int]:
    """Place in the bank by state: state l enters block l, state l + 1 leaves it."""
    shift = 1 if bank.hook_point == "resid_post" else 0
    return {layer + shift: k for k, layer in enumerate(bank.layers)}


def _origin(bank: ConceptBank, state: int) -> Float[Tensor, " d_model"] | None:
    states = _states(bank)
    if state in states:
        return bank.token.mean[states[state]].double().cpu()
    if state == 0 and bank.component_means is not None:
        return bank.component_means.embedding.double().cpu()
    if not bank.token.mean.any():
        return torch.zeros(bank.token.mean.shape[-1], dtype=torch.float64)
    return None


def _unit(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    unit: Tensor = vector.cpu() / vector.cpu().norm()
    return unit


class Path(NamedTuple):
    """One block's heads along every direction.

    Attributes:
        beta, gamma: Per unit of a / r; beta is NaN behind a query-key norm.
        write: What head h writes along v_out from a normalised token n is `n . write[h]`.
        constant: Written along v_out whatever the token reads: biases.
        norm: Before attention.
        limits: What the weights say that the formulas leave out.
    """

    beta: Float[Tensor, "head column"]
    gamma: Float[Tensor, "head column"]
    write: Float[Tensor, "head d_model column"]
    constant: Float[Tensor, " column"]
    norm: Norm | None
    limits: tuple[str, ...]


def paths_of(
    host: Host,
    layers: Sequence[int],
    read: Float[Tensor, "layer d_model column"],
    write: Float[Tensor, "layer d_model column"],
    lengths: Sequence[int],
) -> tuple[tuple[Path, ...] | None, str]:
    """Paths of every block, or None with the reason.

    Args:
        host: An attached model.
        layers: Blocks.
        read: Directions at each block's input.
        write: At its output.
        lengths: Tokens of each sample, for the offsets of rotary embeddings.
    """
    info = host.info
    if not isinstance(host, DescribedHost):
        return None, (
            f"the host ({info.host}) does not hand out its blocks' weights (see "
            "sa_plugin.host.protocol.DescribedHost)"
        )
    if info.block == "post_norm":
        return None, "a post-norm block normalises what its heads write: no head has a gamma"
    try:
        weights = [host.attention_weights(layer) for layer in layers]
    except (ValueError, NotImplementedError) as error:
        return None, str(error)
    found = [
        path_of(one, host.output_projection(layer), read[k], write[k], lengths, info.causal)
        for k, (layer, one) in enumerate(zip(layers, weights, strict=True))
    ]
    return tuple(found), ""


def path_of(
    weights: AttentionWeights,
    output: tuple[Tensor, Tensor | None],
    read: Float[Tensor, "d_model column"],
    write: Float[Tensor, "d_model column"],
    lengths: Sequence[int],
    causal: bool,
) -> Path:
    """The heads of one block; arguments as for `paths_of`."""
    # v as the heads see it: through the norm's gain, without the mean that a LayerNorm takes off.
    seen = _through(weights.norm, read)
    query = torch.einsum("dc,hde->hce", seen, weights.query.weight.double())
    key = torch.einsum("dc,hde->hce", seen, weights.key.weight.double())
    beta = _turned(query, key, weights.rotary, lengths, causal) * weights.scale
    if weights.query_key_norm:
        beta = torch.full_like(beta, torch.nan)
    out, bias = output
    # What a value dimension writes along v_out, then what a normalised token does.
    onto = torch.einsum("hed,dc->hec", out.double().cpu(), write)
    value = torch.einsum("hde,hec->hdc", weights.value.weight.double(), onto)
    constant = torch.zeros(write.shape[1], dtype=torch.float64)
    if weights.value.bias is not None:
        constant += torch.einsum("he,hec->c", weights.value.bias.double(), onto)
    if bias is not None:
        constant += bias.double().cpu() @ write
    gamma = torch.einsum("dc,hdc->hc", seen, value)
    return Path(beta, gamma, value, constant, weights.norm, _limits(weights))


def predicted_pattern(
    scaled: Float[Tensor, "token column"],
    beta: Float[Tensor, "head column"],
    visible: Bool[Tensor, "query key"],
) -> Float[Tensor, "column head query key"]:
    """softmax_j (beta_h a_i a_j / r_i r_j) over the keys seen, in float32."""
    a = scaled.float().T
    # Rows are softmaxed over the keys a query sees; beta_h (a_i / r_i) (a_j / r_j) is all there is.
    logits = beta.float().T[:, :, None, None] * (a[:, :, None] * a[:, None])[:, None]
    return logits.masked_fill(~visible, -torch.inf).softmax(-1)


def tilted(
    pattern: Float[Tensor, "head query key"], scaled: Float[Tensor, "key column"]
) -> tuple[Float[Tensor, "head query column"], Float[Tensor, "head query column"]]:
    """Mean and variance of a / r under each query's actual attention."""
    # Around the sample's mean: the raw second moment would cancel.
    centre = scaled.mean(0)
    x = scaled - centre
    mean = pattern @ x
    return mean + centre, (pattern @ x.square() - mean.square()).clamp_min(0.0)


def _through(norm: Norm | None, read: Float[Tensor, "d_model column"]) -> Float[Tensor, "d_model column"]:
    if norm is None:
        return read
    centred = read - read.mean(0) if norm.centred else read
    return norm.gain.double().cpu()[:, None] * centred


def _turned(
    query: Float[Tensor, "head column d_head"],
    key: Float[Tensor, "head column d_head"],
    rotary: Rotary | None,
    lengths: Sequence[int],
    causal: bool,
) -> Float[Tensor, "head column"]:
    if rotary is None:
        return (query * key).sum(-1)
    cosine, sine = _mean_turn(rotary, lengths, causal)
    # Dimension k turns with k + half; those past the rotary width do not turn.
    half = rotary.width // 2
    q1, q2 = query[..., :half], query[..., half : rotary.width]
    k1, k2 = key[..., :half], key[..., half : rotary.width]
    turned = ((q1 * k1 + q2 * k2) * cosine + (q1 * k2 - q2 * k1) * sine).sum(-1)
    rest = (query[..., rotary.width :] * key[..., rotary.width :]).sum(-1)
    return turned * rotary.scaling**2 + rest


def _mean_turn(
    rotary: Rotary, lengths: Sequence[int], causal: bool
) -> tuple[Float[Tensor, " half_width"], Float[Tensor, " half_width"]]:
    """Mean cosine and sine of the angle between query and key over all pairs of a sample."""
    longest = max(lengths)
    held = np.bincount(np.asarray(lengths), minlength=longest + 1)[::-1].cumsum()[::-1]
    offsets = torch.arange(longest, dtype=torch.float64)
    # A sample of n tokens has n - d pairs at offset d: held[d + 1] + ... + held[n].
    pairs = torch.from_numpy(held[1:][::-1].cumsum()[::-1].astype(np.float64).copy())
    if not causal:
        # Every offset but 0 occurs in both directions.
        pairs[1:] *= 2
    angle = offsets[:, None] * rotary.inverse_frequency.double().cpu()
    share = (pairs / pairs.sum())[:, None]
    cosine = (angle.cos() * share).sum(0)
    # Where keys lie on both sides, sines of either sign cancel.
    return cosine, (angle.sin() * share).sum(0) if causal else torch.zeros_like(cosine)


def _limits(weights: AttentionWeights) -> tuple[str, ...]:
    found = []
    if weights.query_key_norm:
        found.append("query-key norm")
    if weights.softcap is not None:
        found.append("softcap")
    if weights.rotary is not None:
        found.append("rotary positions")
    if weights.query.bias is not None or weights.key.bias is not None:
        found.append("query and key biases")
    return tuple(found)
