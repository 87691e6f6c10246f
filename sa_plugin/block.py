"""What a block's own parameters say: norms and attention weights, by one convention.

Row vectors: a head reads `n(h) @ value` and writes `z @ W_O`, with `n` the norm before attention.
A host that can hand out its parameters has the methods of `DescribedHost`; nothing here asks which
library it comes from.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from sa_plugin.host import Host


class Norm(NamedTuple):
    """`y = gain * (x - centred * mean(x)) / sqrt(mean(that**2) + eps) + bias`, over `d_model`.

    The gain is the effective one (Gemma's is 1 + weight).
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    centred: bool
    eps: float


class BlockNorms(NamedTuple):
    """The norms of one block; None where there is none.

    `attn_in` and `mlp_in` stand before attention and MLP; `attn_out` and `mlp_out` after them. In
    a post_norm block the latter scale what is added to the residual stream; in a post_ln block
    they are the LayerNorms of the sum. LayerScale and tanh gates are folded into the weights.
    `entry` is of the whole stream between the block before and this one, where two stacks meet
    (staged); what is added there is its bias.
    """

    attn_in: Norm | None
    mlp_in: Norm | None
    attn_out: Norm | None
    mlp_out: Norm | None
    entry: Norm | None = None


class Rotary(NamedTuple):
    """Rotary embedding: `q' = q * cos + rotate_half(q) * sin` on the first `width` dimensions.

    `inverse_frequency[j]` turns dimensions j and j + width / 2 (halves, not interleaved) by
    `position * inverse_frequency[j]`; `cos` and `sin` are multiplied by `scaling`.
    """

    inverse_frequency: Float[Tensor, " half_width"]
    width: int
    scaling: float = 1.0


class AttentionWeights(NamedTuple):
    """Query, key and value maps of one block, one slice a query head, float32 on the CPU.

    Attributes:
        query, key, value: Keys and values of grouped-query attention are repeated, so that slice h
            is what query head h uses.
        query_bias, key_bias, value_bias: Or None.
        scale: Logits are `q . k * scale`.
        softcap: Logits become `softcap * tanh(logit / softcap)`, or None.
        query_key_norm: Whether q and k pass a norm of their own (Qwen3), after which a bilinear
            form in the residual stream describes them only up to a positive scale for each token.
        rotary: Or None.
        norm: Before attention; None in post_ln blocks.
        n_key_value_heads: Before repetition.
    """

    query: Float[Tensor, "head d_model d_head"]
    key: Float[Tensor, "head d_model d_head"]
    value: Float[Tensor, "head d_model d_head"]
    query_bias: Float[Tensor, "head d_head"] | None
    key_bias: Float[Tensor, "head d_head"] | None
    value_bias: Float[Tensor, "head d_head"] | None
    scale: float
    softcap: float | None
    query_key_norm: bool
    rotary: Rotary | None
    norm: Norm | None
    n_key_value_heads: int


@runtime_checkable
class DescribedHost(Host, Protocol):
    """A host that can hand out its blocks' parameters."""

    def norms(self, layer: int) -> BlockNorms:
        """The norms of one block, float32 on the CPU."""

    def attention_weights(self, layer: int) -> AttentionWeights:
        """Query, key and value maps of one block.

        Raises:
            ValueError: The architecture's attention is none of the known ones; the text says what
                is unknown about it.
        """


def require_described(host: Host) -> DescribedHost:
    """The host, if it hands out its parameters.

    Raises:
        TypeError: It does not.
    """
    if isinstance(host, DescribedHost):
        return host
    raise TypeError(
        f"{type(host).__name__} ({host.info.host}) does not hand out its blocks' weights: it lacks "
        "`norms` and `attention_weights`. Attach the model locally, or give the host these methods "
        "(see sa_plugin.block.DescribedHost)."
    )
