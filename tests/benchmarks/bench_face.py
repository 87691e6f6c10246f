"""What the check of a public function's arguments costs a call: below 50 microseconds.

Twelve arguments of every kind, against the same function bare. Ours minus the opponent's time, over the
calls, is the cost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float

from sa_plugin._face import face
from sa_plugin.statistics import Resampling

# Rounds as short as a turn of the processor: beside other work some are not cut in two.
CALLS, ROUNDS, AIM = 200, 200, 50e-6


def bare(
    stream: Float[torch.Tensor, "token d_model"],
    kind: str = "separator",
    *,
    layers: int | Sequence[int] | None = None,
    concepts: Sequence[str] | None = None,
    heads: Sequence[tuple[int, int] | str] = (),
    delta: float | Mapping[str, float] | None = None,
    sinks: Literal["drop", "keep"] = "drop",
    controls: bool = True,
    seed: int = 0,
    folder: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    resampling: Resampling | None = None,
) -> int:
    """Does nothing."""
    return seed


def run() -> dict[str, object]:
    """One row of the table."""
    given = {
        "layers": [0, 4, 8],
        "concepts": ["animal", "food", "person"],
        "heads": ["L11H1", (8, 3), (4, 1)],
        "delta": {"animal": 0.1, "food": 0.2},
        "sinks": "keep",
        "controls": False,
        "seed": 3,
        "folder": "study",
        "options": {"k": 4},
        "resampling": Resampling(),
    }
    stream = torch.zeros(3, 4)
    checked = face(bare)
    checked(stream, "lda", **given)
    fastest = []
    for made in (checked, bare):
        rounds = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            for _ in range(CALLS):
                made(stream, "lda", **given)
            rounds.append(time.perf_counter() - begun)
        fastest.append(min(rounds))
    ours, opponent = fastest
    cost = (ours - opponent) / CALLS
    return {
        "name": f"checked arguments, {CALLS} calls of 12",
        "ours_s": ours,
        "opponent_s": opponent,
        "ratio": ours / opponent,
        "aim": f"< {1e6 * AIM:.0f} us",
        "equal": checked(stream, "lda", **given) == bare(stream, "lda", **given),
        "note": f"{1e6 * cost:.1f} microseconds a call{'' if cost < AIM else ': above the aim'}",
    }
