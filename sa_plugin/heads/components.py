"""Names of what writes into the residual stream, and of what is decomposed."""

from __future__ import annotations

from typing import Literal, NamedTuple

from sa_plugin.host import HostInfo

ComponentKind = Literal["embedding", "heads", "mlps", "norms", "refit", "constants"]
KINDS: tuple[ComponentKind, ...] = ("embedding", "heads", "mlps", "constants")
STEP_KINDS: tuple[ComponentKind, ...] = (
    "embedding", "heads", "mlps", "norms", "refit", "constants",
)  # fmt: skip


class LedgerError(ArithmeticError):
    """The terms of a ledger do not add up to the measured score."""


class Component(NamedTuple):
    """One term of a score: "embedding", "L3H5", "L3 MLP", "L3 bias x scale", "reference"..."""

    name: str
    kind: ComponentKind
    block: int | None = None
    head: int | None = None


class Column(NamedTuple):
    """One score that is decomposed: a concept's vector at one layer.

    Attributes:
        concept: Its name.
        layer: Block index of the detector or bank.
        unit: Place of the vector in the bank.
        threshold: Scores at or above it are SuperActivators; NaN where there is none.
    """

    concept: str
    layer: int
    unit: int
    threshold: float


def components(
    info: HostInfo, depth: int, *, centred: bool, scaled_biases: bool
) -> tuple[Component, ...]:
    """Everything that writes before or in the first `depth` blocks, in the order of the blocks.

    Args:
        info: Of the model.
        depth: Number of blocks.
        centred: Whether means are subtracted; a constant is zero then.
        scaled_biases: Whether norms behind attention or MLP make biases vary over tokens.
    """
    named = [Component("embedding", "embedding")]
    for block in range(depth):
        named += [Component(f"L{block}H{h}", "heads", block, h) for h in range(info.n_heads)]
        named.append(Component(f"L{block} MLP", "mlps", block))
        if scaled_biases:
            named.append(Component(f"L{block} bias x scale", "constants", block))
    if not centred:
        named += [] if scaled_biases else [Component("bias", "constants")]
        named.append(Component("reference", "constants"))
    return tuple(named)
