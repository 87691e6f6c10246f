"""What an intervention asks of a host: run its passes with some tensors replaced.

A host need not be able to. One that is has the method `edited`, and nothing here asks which library
it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.host import Batch, Host, Site


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
    """A host whose forward passes can be edited at `z`."""

    def edited(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Run every forward pass of the model inside the context with `z` replaced.

        Contexts nest; at one site the inner edit sees what the outer one returned. The model is as
        it was after the context, also after an exception. Gradients flow through edits where they
        are enabled.

        Args:
            edits: Site of point "z" to a function of `z[batch, token, head, d_head]`, which
                returns a tensor like it, or to a `ZEdit`.

        Raises:
            ValueError: No edit, a point other than "z", or a layer that does not exist.
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
        "sa_plugin.editing.EditableHost)."
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
