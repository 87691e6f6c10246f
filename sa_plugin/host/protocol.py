"""What the method asks of a model: to read some of its tensors, and three things that it may offer.

A *host* wraps a model of one library. `attach` finds the adapter that accepts the model; adapters
register a function under the entry-point group `sa_plugin.adapters`. Nothing else in `sa_plugin`
knows which library a model comes from, nor asks: a host that can do more than read has the methods
of the protocol that says so.

| protocol | what it adds |
|---|---|
| `Host` | batches, reading them, the output projection |
| `BulkHost` | many batches at once, for a model that is elsewhere |
| `DescribedHost` | norms and attention maps of a block |
| `DifferentiableHost` | the residual stream as a differentiable function of the input |
| `EditableHost` | passes with `z` replaced |

Weights act on row vectors: a head reads `n(h) @ value` and writes `z @ W_O`, with `n` the norm before
attention. What is differentiated is, for texts, the token embeddings before positions are added
(`inputs_embeds`), and for images the pixel values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from sa_plugin._face import face
from sa_plugin.data.sample import Sample

ADAPTERS = "sa_plugin.adapters"
BATCH_TOKENS = 2048
FINAL_NORM = "final norm"
READ_AT = "_sa_read_at"
"""Attribute of a tensor that a view of a model returns: the name of the place. Arithmetic loses it."""
Point = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "z", "pattern"]
Block = Literal["pre_norm", "post_norm", "post_ln", "staged"]
SinkRule = Literal["drop", "keep"]
PAPER_GRIDS: Mapping[str, tuple[int, ...]] = {
    "clip": (4, 25, 46, 67, 88, 100),
    "llama_vision": (2, 15, 28, 40, 52, 65, 78, 90, 100),
    "llama_text": (3, 19, 34, 50, 66, 81, 97, 100),
    "qwen": (3, 19, 34, 50, 66, 81, 97, 100),
    "gemma": (4, 21, 39, 57, 75, 93, 100),
}
"""Per cent through the model at which the authors' code reads, by model; see `layers_at`."""


@face
class Site(NamedTuple):
    """A place in the model: a hook point of one block.

    `resid_pre`, `resid_post`, `attn_out`, `mlp_out` are `[batch, token, d_model]`; `z` is
    `[batch, token, head, d_head]`, the input of the attention's output projection; `pattern` is
    `[batch, head, query, key]`.
    """

    layer: int
    point: Point


@dataclass(frozen=True)
class Batch:
    """Samples ready for the model.

    Attributes:
        rows: Index of each sample in the sequence given to `Host.batches`.
        inputs: What the model is called with, the attention mask included.
        valid: Tokens that are neither padding nor special.
        offsets: Character offsets of each token, or the box of each patch (top, left, bottom,
            right) in image pixels; zero for padding and special tokens that are put in.
        class_index: Where the class token of an image stands, if there is one; it is no row.
    """

    rows: Int[Tensor, " batch"]
    inputs: Mapping[str, Tensor]
    valid: Bool[Tensor, "batch token"]
    offsets: Real[Tensor, "batch token edge"]
    class_index: Int[Tensor, " batch"] | None = None


@dataclass(frozen=True)
class HostInfo:
    """What is fixed about an attached model.

    Attributes:
        host: Name of the adapter.
        model: Name of the model, as the user's library gives it.
        architecture: Class name of the model.
        n_layers, d_model, n_heads, d_head: Sizes.
        block: Where the norms stand; `pre_norm` covers parallel blocks, `staged` is pre-norm blocks
            in two stacks with a norm of the whole stream between them (Mllama's vision tower).
        causal: Whether attention is causal.
        bos: Whether the tokenizer puts a special token first.
        processing: "none", or how the weights were rewritten (TransformerLens compatibility mode),
            or `FINAL_NORM` where the last block's output is read behind the final norm.
        dtype: The model's own number format; scores are float32 whatever it is.
        fingerprint: Hash of the architecture and of values drawn from every weight before and in
            the blocks; what lies behind the last block changes no activation that is read.
        tokenizer: Hash of what cuts texts into tokens, special tokens included.
    """

    host: str
    model: str
    architecture: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    block: Block
    causal: bool
    bos: bool
    processing: str
    dtype: str
    fingerprint: str
    tokenizer: str = ""

    @property
    def shape(self) -> str:
        """Name, architecture, sizes, kind of block and number format, in one line."""
        return (
            f"{self.model}, {self.architecture}, {self.n_layers} blocks x {self.d_model}, "
            f"{self.n_heads} heads, {self.block}, {self.dtype}"
        )


@face
class OutputProjection(NamedTuple):
    """How one attention layer writes: `attn_out = sum_h z_h @ weight[h] + bias`."""

    weight: Float[Tensor, "head d_head d_model"]
    bias: Float[Tensor, " d_model"] | None


Reduce = Callable[[Mapping[Site, Tensor]], dict[Any, Tensor]]


@runtime_checkable
class Host(Protocol):
    """A model of some library, as the method sees it."""

    @property
    def info(self) -> HostInfo:
        """What is fixed about the model."""

    @property
    def batch_tokens(self) -> int:
        """At most this many tokens a batch, padding included (one sample at least)."""

    @property
    def progress(self) -> bool:
        """Whether walks over the model show a bar."""

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Tokenise and group samples of like length.

        Args:
            samples: The samples.
            batch_tokens: In place of the host's own, where one question needs smaller batches.

        Raises:
            ValueError: The tokenizer gives no offsets, or a text has no token.
        """

    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[Any, Tensor]:
        """Run one forward pass up to the deepest site and reduce what was read.

        `reduce` sees all sites at once, as tensors nothing else writes to, and returns the tensors
        to keep; on a remote host it runs beside the model, so it is pure torch.

        Raises:
            RuntimeError: A hook did not fire exactly once.
        """

    def hook_name(self, site: Site) -> str:
        """The library's own name of a site."""

    def output_projection(self, layer: int) -> OutputProjection:
        """The attention output projection of one block, one slice a query head, in float32."""


@runtime_checkable
class BulkHost(Host, Protocol):
    """A host that wants its batches all at once, because its model is elsewhere."""

    def read_many(
        self, batches: Sequence[Batch], sites: Sequence[Site], reducer: Callable[[Batch], Reduce]
    ) -> Iterator[tuple[Batch, dict[Any, Tensor]]]:
        """`read` for many batches, in any order.

        Results whose key begins with "sums" may be added over several batches, in float64, and be
        handed over with the last of them (`reducers.gather`).
        """


@face
def attach(model: Any, **options: Any) -> Host:
    """Find the adapter for a model, check the model once, and return the host.

    Args:
        model: A TransformerLens `TransformerBridge` (3.6 or later), an nnsight model (0.8.1 or
            later), or any model an installed adapter accepts. A host is returned as it is.
        **options: Passed to the adapter. Every adapter takes `batch_tokens` (at most this many
            tokens a batch, 2048 by default) and `progress` (whether walks over the model show a
            bar, True by default).

    Returns:
        The host, checked: eval mode, every hook fires exactly once, the residual it reads is the
        model's own.

    Raises:
        TypeError: No adapter accepts the model; the text says which adapters were asked and, for
            a library whose extra is missing, what to install.
        ValueError: The model is in training mode, or a check fails.
    """
    if isinstance(model, Host):
        if options:
            raise TypeError(f"attach: {', '.join(options)} come too late: model is attached already.")
        return model
    asked = adapters()
    for name, point in asked.items():
        host = point.load()(model, **options)
        if host is not None:
            return _host(host, name)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if any(cls.__module__.startswith("torch.nn") for cls in type(model).__mro__):
        raise TypeError(
            f"attach: model is a {kind}, a bare module: wrap it, attach(nnsight.NNsight(model), "
            "tokenizer=...), or load it as transformer_lens TransformerBridge.boot_transformers(name)."
        )
    raise TypeError(
        f"attach: model is a {kind}, which no adapter accepts; asked: "
        f"{', '.join(asked) or 'none installed'}. Give a transformer_lens TransformerBridge (pip install "
        "'sa_plugin[transformer-lens]'), an nnsight TransformersModel (pip install 'sa_plugin[nnsight]') or, "
        "to score alone, an interp_engine EagerModel (pip install 'sa_plugin[interp-engine]'), or register "
        f"an adapter under the entry-point group {ADAPTERS!r}."
    )


def adapters() -> dict[str, EntryPoint]:
    """Installed adapters by name, in the order in which they are asked."""
    return {point.name: point for point in sorted(entry_points(group=ADAPTERS), key=lambda p: p.name)}


def _host(candidate: Any, adapter: str) -> Host:
    if not isinstance(candidate, Host):
        raise TypeError(f"adapter {adapter!r} returned a {type(candidate).__name__}, not a Host.")
    return candidate


def layers_of(info: HostInfo, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    """Check layers given by block index.

    Args:
        info: Of the model.
        layers: One block, several, or None for all. Negative ones count from the end.

    Raises:
        ValueError: A layer does not exist; the text names the nearest that does.
    """
    if layers is None:
        return tuple(range(info.n_layers))
    wanted = [layers] if isinstance(layers, int) else list(layers)
    if not wanted:
        raise ValueError("layers is empty: name at least one block, or None for all.")
    for layer in wanted:
        require_layer(layer, info.n_layers, info.model, lowest=-info.n_layers)
    return tuple(sorted({layer % info.n_layers for layer in wanted}))


def require_layer(layer: int, n_layers: int, model: str, *, lowest: int = 0) -> None:
    """Refuse a block that a model does not have.

    Args:
        layer: Block index.
        n_layers: Number of blocks.
        model: Its name, for the error.
        lowest: Least index; negative where indices may count from the end.

    Raises:
        ValueError: There is no such block; the text names the nearest that there is.
    """
    if not lowest <= layer < n_layers:
        nearest = min(max(layer, 0), n_layers - 1)
        raise ValueError(
            f"layer {layer} does not exist: {model} has blocks 0 to {n_layers - 1}; the nearest is {nearest}."
        )


def require_weights(objective: Any, info: HostInfo | None) -> None:
    """Refuse an objective on another model than it was made on.

    Args:
        objective: Asked for its `weights`; one without is of any model.
        info: Of the model it is used on; None where that is no host.

    Raises:
        ValueError: The fingerprints differ.
    """
    made_on = getattr(objective, "weights", "")
    if info is not None and made_on and made_on != info.fingerprint:
        raise ValueError(
            f"{objective!r} was made on weights {made_on[:12]}, this model is {info.model} (weights "
            f"{info.fingerprint[:12]}): target and tail are the other model's. Make it with this host."
        )


def layer_of_percent(n_layers: int, percent: float | int) -> int:
    """The block index that the paper calls "`percent` % through the model".

    `clamp(floor(percent * n_layers / 100) - 1, 0, n_layers - 1)`; activations are the block's
    output (arXiv 2512.05038, the authors' code). Neighbouring percentages may name the same block.

    Args:
        n_layers: Number of blocks.
        percent: Above 0, at most 100.

    Raises:
        ValueError: `percent` lies outside.

    Example:
        >>> [layer_of_percent(24, percent) for percent in (4, 46, 92, 100)]
        [0, 10, 21, 23]
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent is {percent:g}: give a number above 0 and at most 100.")
    return min(max(math.floor(percent * n_layers / 100) - 1, 0), n_layers - 1)


def layers_at(percent: float | int | Sequence[float | int], n_layers: int) -> tuple[int, ...]:
    """The blocks of the paper's grid of percentages, ascending, each once.

    Args:
        percent: One percentage "through the model", or a grid such as `PAPER_GRIDS["clip"]`.
        n_layers: Number of blocks, `host.info.n_layers`.

    Raises:
        ValueError: No percentage, or one not above 0 and at most 100.

    Example:
        >>> layers_at(PAPER_GRIDS["clip"], 24)
        (0, 5, 10, 15, 20, 23)
    """
    given = [percent] if isinstance(percent, int | float) else list(percent)
    if not given:
        raise ValueError("percent is empty: name at least one, such as 100.")
    return tuple(sorted({layer_of_percent(n_layers, one) for one in given}))


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


@face
class InputMap(NamedTuple):
    """How heads read the residual stream: `x @ weight[h] + bias[h]`, float32 on the CPU."""

    weight: Float[Tensor, "head d_model d_head"]
    bias: Float[Tensor, "head d_head"] | None = None


class AttentionWeights(NamedTuple):
    """Query, key and value maps of one block, one slice a query head.

    Attributes:
        query, key, value: Keys and values of grouped-query attention are repeated, so that slice h
            is what query head h uses.
        scale: Logits are `q . k * scale`.
        softcap: Logits become `softcap * tanh(logit / softcap)`, or None.
        query_key_norm: Whether q and k pass a norm of their own (Qwen3), after which a bilinear
            form in the residual stream describes them only up to a positive scale for each token.
        rotary: Or None.
        norm: Before attention; None in post_ln blocks.
        n_key_value_heads: Before repetition.
    """

    query: InputMap
    key: InputMap
    value: InputMap
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
        "(see sa_plugin.host.protocol.DescribedHost)."
    )


@runtime_checkable
class DifferentiableHost(Host, Protocol):
    """A host whose forward pass can start from embeddings or pixels and carry gradients."""

    def input_values(self, batch: Batch) -> Float[Tensor, "batch ..."]:
        """Token embeddings `[batch, token, d_embed]` or pixels `[batch, 3, height, width]`.

        Detached, on the model's device and in its number format.
        """

    def forward_from(
        self, values: Float[Tensor, "batch ..."], batch: Batch, site: Site
    ) -> Float[Tensor, "batch token d_model"]:
        """The activations at a site, with their graph where gradients are enabled.

        Blocks after the site are not computed. `values` may hold more rows than the batch has
        samples, a whole multiple: the batch's mask and positions are then repeated in turn
        (`[a, b, a, b, ...]`).

        Raises:
            ValueError: The number of rows is no multiple of the batch's, or the number of tokens
                differs.
        """


def require_differentiable(host: Host) -> DifferentiableHost:
    """The host, if gradients flow through it.

    Raises:
        TypeError: They do not.
    """
    if isinstance(host, DifferentiableHost):
        return host
    raise TypeError(
        f"{type(host).__name__} ({host.info.host}) gives no gradients and takes no embeddings: it "
        "lacks `input_values` and `forward_from`. Attach the model locally, or give the host these "
        "methods (see sa_plugin.host.protocol.DifferentiableHost)."
    )


class Attended(NamedTuple):
    """What the heads of one block attend to in the pass that runs.

    Attributes:
        value: Value vectors, one a query head (those of grouped-query attention repeated); earlier
            edits of the same pass are in them.
        visible: Keys that the model's own mask leaves to each query: padding, causality and sliding
            windows taken out, special tokens and attention sinks left in. A row without any is a
            padding query.
    """

    value: Float[Tensor, "batch key head d_head"]
    visible: Bool[Tensor, "batch query key"]


@face
@dataclass(frozen=True)
class ZEdit:
    """An edit of z that is more than a function of z.

    Attributes:
        function: Of z and of what its heads attend to (None unless `attends`).
        attends: Whether it must be told what the heads attend to.
        may_keep: Whether z may come back unchanged: a probe that looks, or a leaf of a graph.
    """

    function: Callable[[Tensor, Attended | None], Tensor]
    attends: bool = False
    may_keep: bool = False


Edit: TypeAlias = Callable[[Tensor], Tensor] | ZEdit
Output: TypeAlias = Callable[[Host, Batch], Tensor]
"""A model's own output, `[batch, token, width]`, such as logits."""


@runtime_checkable
class EditableHost(Host, Protocol):
    """A host whose forward passes can be edited at `z` and at MLP outputs."""

    def edited(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Run every forward pass of the model inside the context with `z` or MLP outputs replaced.

        A site of an MLP costs three passes over a short input, which show that edits there are not lost.

        Contexts nest; at one site the inner edit sees what the outer one returned. The model is as
        it was after the context, also after an exception. Gradients flow through edits where they
        are enabled.

        Args:
            edits: Site of point "z" to a function of `z[batch, token, head, d_head]`, which
                returns a tensor like it, or to a `ZEdit`; of point "mlp_out" to a function of
                `[batch, token, d_model]`, what the MLP adds.

        Raises:
            ValueError: No edit, another point, a layer that does not exist, or an MLP whose edits
                the model would lose.
            RuntimeError: On entering the next pass or on leaving: in some pass an edit did not
                fire exactly once, changed nothing (unless it may), or did not reach the output
                projection; or no pass ran at all; or what the heads attend to is not what the
                model's own pattern shows.
            NotImplementedError: An edit attends, and the architecture shows no values or no
                pattern, or they do not give its z.
        """


def apply_edit(edit: Edit, z: Tensor, attended: Attended | None = None) -> Tensor:
    """What an edit makes of z."""
    return edit.function(z, attended) if isinstance(edit, ZEdit) else edit(z)


def require_editable(host: Host) -> EditableHost:
    """The host, if it can edit.

    Raises:
        TypeError: It cannot.
    """
    if isinstance(host, EditableHost):
        return host
    raise TypeError(
        f"{type(host).__name__} ({host.info.host}) cannot edit activations: it has no method "
        "`edited`. Attach a TransformerLens bridge, or give the host one (see "
        "sa_plugin.host.protocol.EditableHost)."
    )


def uniform_attention(z: Tensor, heads: Tensor, attended: Attended) -> Tensor:
    """Z of some heads as if they attended to all visible keys alike.

    Args:
        z: `[batch, query, head, d_head]`.
        heads: Which, `[some]`.
        attended: Of the same pass.

    Returns:
        A copy of z; queries that see no key (padding) are as they were.
    """
    weight = attended.visible.float()
    count = weight.sum(-1, keepdim=True)
    value = attended.value[:, :, heads].float()
    mean = torch.einsum("bqk,bkhe->bqhe", weight / count.clamp_min(1), value)
    z = z.clone()
    z[:, :, heads] = torch.where(count[..., None] > 0, mean, z[:, :, heads].float()).to(z.dtype)
    return z


class Owed(NamedTuple):
    """What an objective owes to tokens and heads of one passage.

    Attributes:
        value: The objective on the passage.
        corrupted: The objective on the corrupted passage.
        tokens: Of every token of the model's input.
        heads: Of every head up to the objective's layer.
    """

    value: float
    corrupted: float
    tokens: Float[np.ndarray, " token"]
    heads: Float[np.ndarray, "block head"]


@runtime_checkable
class ExplainingHost(Protocol):
    """A host with a first-order explainer of its own library for tokens and heads."""

    def explain(
        self,
        objective: Any,
        sample: Sample,
        replaced: Bool[np.ndarray, " token"],
        mean_embedding: Float[Tensor, " d_model"] | None,
        *,
        seed: int = 0,
    ) -> Owed:
        """Attribute one objective to the tokens and heads of one sample.

        Args:
            objective: Made for this sample.
            sample: The passage.
            replaced: Positions of the model's input that the corrupted passage replaces.
            mean_embedding: Mean train residual that enters block 0; None for that of the passage.
            seed: Of the draw of replacements.
        """
