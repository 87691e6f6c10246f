"""What is demanded of an edit of `z` in every pass: it fires once, changes z, and is not lost.

One that may leave z as it is (`ZEdit.may_keep`) need only fire. That it is not lost is measured at
the token that it changes most: what leaves the output projection must not be the projection of the
unedited z.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin.checks import LIMITS
from sa_plugin.editing import Attended, Edit, ZEdit, apply_edit
from sa_plugin.host import OutputProjection


@runtime_checkable
class Reader(Protocol):
    """Sees what the heads of a block attend to."""

    def attended(self, z: Tensor) -> Attended:
        """In the pass that runs, up to z."""


class EditWatch:
    """One edit under watch.

    Args:
        name: The library's own name of the site.
        edit: The edit.
        projection: What z is multiplied by.
        dtype: Number format of the model, for the limit.
        reader: For edits that attend.
    """

    def __init__(
        self,
        name: str,
        edit: Edit,
        projection: OutputProjection,
        dtype: str,
        reader: Reader | None = None,
    ) -> None:
        self.name, self.edit = name, edit
        self.weight, self.bias = projection
        self.limit = LIMITS.get(dtype, LIMITS["float32"])
        self.passes = self.fired = 0
        self.outputs: tuple[Tensor, Tensor] | None = None
        self.place = (0, 0)
        self.may_keep = isinstance(edit, ZEdit) and edit.may_keep
        self.reader = reader

    def start(self) -> None:
        """A pass begins, so the one before is over.

        Raises:
            RuntimeError: The edit did not fire exactly once in it.
        """
        if self.passes:
            self._demand_once()
        self.passes, self.fired = self.passes + 1, 0

    def finish(self) -> None:
        """The last pass is over.

        Raises:
            RuntimeError: There was none, or the edit did not fire exactly once in the last.
        """
        if not self.passes:
            raise RuntimeError(f"no forward pass ran while {self.name!r} was edited.")
        self._demand_once()

    def _demand_once(self) -> None:
        if self.fired != 1:
            raise RuntimeError(
                f"the edit of {self.name!r} fired {self.fired} times in one forward pass, expected "
                "once: leave out edits of blocks behind the deepest one that is read."
            )

    def edit_z(
        self, z: Float[Tensor, "batch token head d_head"]
    ) -> Float[Tensor, "batch token head d_head"]:
        """The edited z; the edit gets a copy, so that one in place is seen too.

        Raises:
            RuntimeError: The edit returned another shape or format, or changed nothing.
        """
        self.fired += 1
        attended = None if self.reader is None else self.reader.attended(z)
        new = apply_edit(self.edit, z.clone(), attended)
        if new.shape != z.shape or new.dtype != z.dtype:
            raise RuntimeError(
                f"the edit of {self.name!r} returned {new.dtype} {tuple(new.shape)}, expected "
                f"{z.dtype} {tuple(z.shape)}."
            )
        if self.may_keep:
            return new
        change = (new.detach().float() - z.detach().float()).abs().amax((-2, -1))
        if not change.any():
            raise RuntimeError(
                f"the edit of {self.name!r} changed nothing: it would report an effect of zero."
            )
        row, token = divmod(int(change.argmax()), change.shape[1])
        self.place = (row, token)
        self.outputs = (self._project(z[row, token]), self._project(new[row, token]))
        return new

    def _project(self, z: Float[Tensor, "head d_head"]) -> Float[Tensor, " d_model"]:
        out = torch.einsum("he,hed->d", z.detach().float().cpu(), self.weight)
        return out if self.bias is None else out + self.bias

    def see_output(self, out: Float[Tensor, "batch token d_model"]) -> None:
        """What left the projection.

        Raises:
            RuntimeError: It is what the unedited z gives.
        """
        if self.outputs is None:
            return
        old, new = self.outputs
        here = out[self.place].detach().float().cpu()
        limit = self.limit * float(old.norm())
        if (here - old).norm() <= limit < (new - old).norm():
            raise RuntimeError(
                f"the edit of {self.name!r} was lost: the output projection gave what the unedited "
                "z gives. This architecture needs an adapter of its own."
            )
        self.outputs = None
