"""A clean and a corrupted input for patching between invokes, token by token in the same places.

nnsight pads invokes of different lengths to one, so that a value written from one into the other
lands on other tokens, and is no error.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def check_pair(clean: Mapping[str, Tensor], corrupted: Mapping[str, Tensor]) -> None:
    """Refuse a pair whose tokens, or pixels, do not stand in the same places.

    Args:
        clean: Keyword arguments of the first invoke.
        corrupted: Of the second.

    Raises:
        ValueError: The two differ in an argument's name, shape, or in what the mask hides.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> check_pair({"input_ids": ids}, {"input_ids": ids.flip(-1)})
    """
    if clean.keys() != corrupted.keys():
        raise ValueError(
            f"the clean input has {sorted(clean)}, the corrupted one {sorted(corrupted)}: give the "
            "model the same arguments in both."
        )
    for name, value in clean.items():
        other = corrupted[name]
        if value.shape != other.shape:
            raise ValueError(
                f"{name} has shape {list(value.shape)} in the clean input and {list(other.shape)} "
                "in the corrupted one: both need the same number of tokens, because patching goes "
                "position by position. Replace tokens one for one, or pad both alike."
            )
        if name == "attention_mask" and not value.equal(other):
            raise ValueError(
                "the two attention masks hide different positions: pad both inputs alike."
            )
