"""The one thing the method asks of a model: read some of its tensors, batch by batch.

A *host* wraps a model of one library. `attach` finds the adapter that accepts the model; adapters
register a function under the entry-point group `sa_plugin.adapters`. Nothing else in `sa_plugin`
knows which library a model comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from sa_plugin.data import Sample

ADAPTERS = "sa_plugin.adapters"
FINAL_NORM = "final norm"
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
            right) in image pixels; zero for padding and special tokens.
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


class OutputProjection(NamedTuple):
    """How one attention layer writes: `attn_out = sum_h z_h @ weight[h] + bias`."""

    weight: Float[Tensor, "head d_head d_model"]
    bias: Float[Tensor, " d_model"] | None


Reduce = Callable[[Mapping[Site, Tensor]], dict[str, Tensor]]


@runtime_checkable
class Host(Protocol):
    """A model of some library, as the method sees it."""

    @property
    def info(self) -> HostInfo:
        """What is fixed about the model."""

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int = 2048) -> list[Batch]:
        """Tokenise and group samples of like length.

        Args:
            samples: The samples.
            batch_tokens: At most this many tokens a batch, padding included (one sample at least).

        Raises:
            ValueError: The tokenizer gives no offsets, or a text has no token.
        """

    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[str, Tensor]:
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
        self,
        batches: Sequence[Batch],
        sites: Sequence[Site],
        reducer: Callable[[Batch], Reduce],
    ) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        """`read` for many batches, in any order.

        Results whose name begins with "+" may be summed over several batches, in float64, and be
        handed over with one of them.
        """


def attach(model: Any, **options: Any) -> Host:
    """Find the adapter for a model, check the model once, and return the host.

    Args:
        model: A TransformerLens `TransformerBridge` (4.3 or later), an nnsight model (0.8.1 or
            later), or any model an installed adapter accepts. A host is returned as it is.
        **options: Passed to the adapter.

    Returns:
        The host, checked: eval mode, every hook fires exactly once, the residual it reads is the
        model's own.

    Raises:
        TypeError: No adapter accepts the model; the text says which adapters were asked and, for
            a library whose extra is missing, what to install.
        ValueError: The model is in training mode, or a check fails.
    """
    if isinstance(model, Host):
        return model
    asked = []
    for point in sorted(entry_points(group=ADAPTERS), key=lambda p: p.name):
        asked.append(point.name)
        host = point.load()(model, **options)
        if host is not None:
            return _host(host, point.name)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise TypeError(
        f"no adapter accepts a {kind}; asked: {', '.join(asked) or 'none installed'}. Give a "
        "transformer_lens TransformerBridge (pip install 'sa_plugin[transformer-lens]') or an "
        "nnsight TransformersModel (pip install 'sa_plugin[nnsight]'), or "
        f"register an adapter under the entry-point group {ADAPTERS!r}."
    )


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
        if not -info.n_layers <= layer < info.n_layers:
            nearest = min(max(layer, 0), info.n_layers - 1)
            raise ValueError(
                f"layer {layer} does not exist: {info.model} has blocks 0 to "
                f"{info.n_layers - 1}; the nearest is {nearest}."
            )
    return tuple(sorted({layer % info.n_layers for layer in wanted}))


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
        raise ValueError(f"percent is {percent}: give a number above 0 and at most 100.")
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
