"""What an adapter brings: the places of a model, and the passes that its library runs over them.

Everything else a host does is the same for every library and stands in `sa_plugin.host.local`.

A *part* is one tensor of one block, `(layer, name)`. Its name is the point of a `Site`, or one of
those that only checks ask for: RAW, what leaves the attention's output projection; NORMS, both ends
of a block's two norms; FINAL, the residual stream behind the norm that follows the last block.

A pass of the user's own is made in many ways: a call, a step of a library's `generate` with or without
a cache, a trace. All of them run the same modules, so that hooks see each alike (`ShowingPasses`). Ids
are what the token embedding is called with, which every library does once for each new token; the
padding mask is an argument of the model, or of its first block.

Parts are shaped as sites are: `z` is `[batch, token, head, d_head]`, and where a tanh gate or a
LayerScale stands behind the projection, `attn_out`, RAW, `mlp_out` and the projection's weights are
all behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from sa_plugin._face import face
from sa_plugin.host.edits import EditWatch
from sa_plugin.host.laws import RAW, Law, Parts
from sa_plugin.host.protocol import (
    FINAL_NORM,
    HostInfo,
    InputMap,
    Norm,
    OutputProjection,
    Point,
    Rotary,
    Site,
    require_layer,
)

FINAL = "final"
# Names that libraries have for the towers of a model of two.
TOWERS = {"vision": ("vision_model", "vision_tower"), "text": ("text_model", "language_model")}
Part: TypeAlias = tuple[int, str]
NormRole = Literal["norm1", "norm2", "norm1_post", "norm2_post"]
Keep = Callable[[str, Tensor], Tensor]
"""What is kept of a part, by its name and value; a clone where nothing is said."""
Look: TypeAlias = Callable[[Tensor], Tensor | None]
"""Sees `[batch, token, d_model]` as it comes by, and returns what takes its place, or None."""
MASK = "attention_mask"


@face
class AttentionParts(NamedTuple):
    """The attention of one block as its library shows it: nothing repeated, nothing proved.

    Attributes:
        query, key, value: Keys and values of grouped-query attention have fewer slices.
        module: Of transformers; says the scale, the softcap and the kind of layer.
        head_norms: Its own norms of queries and keys, or None.
        rotary: Its rotary embedding, where the model keeps no `inv_freq`.
    """

    query: InputMap
    key: InputMap
    value: InputMap
    module: Any
    head_norms: tuple[nn.Module, nn.Module] | None
    rotary: Rotary | None = None


@runtime_checkable
class Places(Protocol):
    """Where things are in one model, known before any pass runs."""

    @property
    def library(self) -> str:
        """Name of the adapter."""

    @property
    def model(self) -> Any:
        """The user's own object."""

    @property
    def root(self) -> nn.Module:
        """The module of torch whose parameters and modules these are."""

    @property
    def architecture(self) -> str:
        """Class name of the model."""

    @property
    def kind(self) -> str:
        """Its `model_type`, or "" without a configuration."""

    @property
    def model_name(self) -> str:
        """As the user's library gives it."""

    @property
    def context_length(self) -> int | None:
        """Tokens the model takes, or None where there is no limit."""

    @property
    def processing(self) -> str:
        """How the weights were rewritten, or ""."""

    @property
    def n_layers(self) -> int:
        """Number of blocks that are read."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of a block's parts: all points and RAW, and NORMS where it has two."""

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, as modules of torch that are called in a pass."""

    def crosses(self, layer: int) -> bool:
        """Whether a block attends to other states than the tokens'."""

    def spliced(self, layer: int) -> str:
        """Where something in a block replaces what it reads, so that the block is no sum; or ""."""

    @property
    def padding_sides(self) -> tuple[str, ...]:
        """On which sides a text may be padded; on the right alone if positions count padding too."""

    def hook_name(self, part: Part) -> str:
        """The library's own name of a part.

        Raises:
            ValueError: The model has no such part.
        """

    def output_projection(self, layer: int) -> OutputProjection:
        """W_O and b_O of one block, copied, in float32 on the CPU."""

    def norm(self, role: NormRole, layer: int) -> tuple[str, nn.Module] | None:
        """A norm of one block and its name: the first, the second, or those behind attention and MLP."""

    def entry(self) -> Norm | None:
        """The norm of the whole stream between two stacks of blocks, if there is one."""

    def attention(self, layer: int) -> AttentionParts:
        """What one block's attention is made of."""

    def parameters(self) -> Mapping[str, Tensor]:
        """Weights before and in the blocks, by the names of `sa_plugin.host.weights`."""

    def final_norm(self) -> nn.Module:
        """The norm behind the last block.

        Raises:
            ValueError: The model has none.
        """


@runtime_checkable
class Passes(Protocol):
    """How the library runs a pass over a model, and what it can be asked for meanwhile."""

    @property
    def places(self) -> Places:
        """Of the model."""

    def refuse_unready(self) -> None:
        """Refuse a model whose numbers would be random, or another's.

        Raises:
            ValueError: It is in training mode, or something edits it.
        """

    def inputs(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model is called with for a batch's inputs, on its device."""

    def settle(self, inputs: Mapping[str, Tensor], parts: Sequence[Part]) -> Passes:
        """The passes once they know what they must of the order in which parts come by.

        Raises:
            ValueError: A part does not come by exactly once.
        """

    def read(
        self, inputs: Mapping[str, Tensor], parts: Sequence[Part], keep: Keep | None = None
    ) -> dict[Part, Tensor]:
        """One pass without gradients, up to the deepest part, or for a check to the end.

        Args:
            inputs: What the model is called with.
            parts: What to read.
            keep: Of a check, whose pass runs to the end: what to keep of each part. By default a
                clone, which nothing later in the pass, no hook of the user's, can write to.

        Raises:
            RuntimeError: A part did not come by exactly once.
        """

    def embeddings(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch token d_embed"]:
        """Token embeddings, before positions are added; detached."""

    def forward(
        self, inputs: Mapping[str, Tensor], embeddings: Tensor | None, parts: Sequence[Part]
    ) -> dict[Part, Tensor]:
        """One pass up to the deepest part, with its graph where gradients are enabled.

        Args:
            inputs: What the model is called with.
            embeddings: In place of the token embeddings of `inputs`, in the same places; the model
                gets a copy. None where `inputs` are pixels, which carry the graph themselves.
            parts: What to hand out: the model's own tensors, so that gradients flow between them.
        """

    def output(
        self,
        inputs: Mapping[str, Tensor],
        name: str | None = None,
        edit: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The model's own first output, without gradients, with one place edited or none.

        Raises:
            ValueError: The model has no such place.
        """

    def watching(self, watches: Mapping[Site, EditWatch]) -> AbstractContextManager[None]:
        """Show every pass inside the context to the watches of some sites, of z or MLP outputs.

        A pass calls `start` of every watch when it reaches block 0; `edited` at the site, whose result
        takes its place; of z `see_output` with RAW. Where a watch has a reader, its `see_mask`,
        `see_value` and `see_pattern` are called too.

        Raises:
            NotImplementedError: The architecture shows a reader no values or no pattern.
        """

    def left_over(self) -> Callable[[], str | None]:
        """What puts back what the library itself may leave of a turn that begins here.

        It is called where the turn was cut off, when hooks are off already, and says what it found,
        or None if all was as it should be. What it must know of before, such as a counter, is read here.
        """

    def own_laws(self, blocks: Sequence[Parts], inputs: Mapping[str, Tensor], limit: float) -> Sequence[Law]:
        """Laws that only this library can measure, on what was read of each block."""


class Looks(NamedTuple):
    """Functions that a pass calls as it runs.

    Attributes:
        parts: What sees each part; of points that are `[batch, token, d_model]`.
        ids: Sees token ids `[batch, token]` when they are embedded.
        mask: Sees the padding mask `[batch, token]`, 1 for what is no padding, where one is given.
    """

    parts: Mapping[Part, Look]
    ids: Callable[[Tensor], None]
    mask: Callable[[Tensor], None]


@runtime_checkable
class ShowingPasses(Protocol):
    """Passes that can also show those of the user's own."""

    def showing(self, looks: Looks) -> AbstractContextManager[None]:
        """Show every pass inside the context, however it is run, and take off all hooks behind it."""


@contextmanager
def seeing_inputs(looks: Looks, embedding: nn.Module, called: Sequence[nn.Module]) -> Iterator[None]:
    """Show ids and masks.

    Args:
        looks: What sees them.
        embedding: The module that embeds token ids, its first argument.
        called: Modules one of which has the mask as an argument.
    """

    def embedded(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        looks.ids((*args, *kwargs.values())[0])

    def masked(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        mask = kwargs.get(MASK)
        # Behind a model's own preparations it is [batch, head, query, key], and says less.
        if isinstance(mask, Tensor) and mask.ndim == 2:
            looks.mask(mask)

    handles = [embedding.register_forward_pre_hook(embedded, with_kwargs=True)]
    try:
        for module in dict.fromkeys(called):
            handles.append(module.register_forward_pre_hook(masked, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def parts_of(places: Places, info: HostInfo, sites: Sequence[Site]) -> dict[Site, Part]:
    """The parts that sites are of an attached model.

    Raises:
        ValueError: No site, or no such layer or point.
    """
    if not sites:
        raise ValueError("sites is empty: name at least one Site(layer, point).")
    return {site: part_of(places, info, site) for site in sites}


def part_of(places: Places, info: HostInfo, site: Site) -> Part:
    """The part that a site is of an attached model.

    Raises:
        ValueError: No such layer or point.
    """
    layer, point = site
    if point not in get_args(Point):
        raise ValueError(f"point {point!r} is unknown: use one of {get_args(Point)}.")
    require_layer(layer, info.n_layers, info.model)
    if point == "pattern" and places.crosses(layer):
        raise ValueError(
            f"block {layer} attends to an image's states, not to tokens, so its pattern has no tokens "
            f"for keys: read {places.hook_name((layer, point))!r} in a run of your own."
        )
    if point == "resid_post" and layer == info.n_layers - 1 and FINAL_NORM in info.processing:
        return layer, FINAL
    # What attention adds in post_ln is what leaves its projection: the sum stands behind a norm.
    return layer, RAW if point == "attn_out" and info.block == "post_ln" else point
