"""What an intervention asks of a host: run its passes with some tensors replaced.

A host need not be able to. One that is has the method `edited`, and nothing here asks which library
it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor

from sa_plugin.host import Host, Site

Edit = Callable[[Tensor], Tensor]


@runtime_checkable
class EditableHost(Host, Protocol):
    """A host whose forward passes can be edited at `z`."""

    def edited(self, edits: Mapping[Site, Edit]) -> AbstractContextManager[None]:
        """Run every forward pass of the model inside the context with `z` replaced.

        Contexts nest; at one site the inner edit sees what the outer one returned. The model is as
        it was after the context, also after an exception.

        Args:
            edits: Site of point "z" to a function of `z[batch, token, head, d_head]`, which
                returns a tensor like it.

        Raises:
            ValueError: No edit, a point other than "z", or a layer that does not exist.
            RuntimeError: On entering the next pass or on leaving: in some pass an edit did not
                fire exactly once, changed nothing, or did not reach the output projection; or no
                pass ran at all.
        """


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
