"""The one block of code that is sent to a server: forward passes, each reduced where it ran.

Nothing is imported inside the block, and it refers to names of this function only, so that nnsight
ships its source, the reducers' source (`nnsight.register`) and plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nnsight
import torch

from sa_plugin import reducers

Tap = tuple[tuple[int, str], Any, str]
"""Site, envoy, and "output" or "input"."""


def submit(
    model: Any,
    backend: Any,
    inputs: Sequence[dict[str, torch.Tensor]],
    taps: Sequence[Tap],
    jobs: Sequence[Any],
) -> None:
    """Send one session of several traces.

    Args:
        model: nnsight's model; its weights are not sent.
        backend: Sends without waiting.
        inputs: What each trace is called with.
        taps: What each trace reads, in the order of the forward pass.
        jobs: Reducer of each trace.
    """
    gather = reducers.gather
    session, trace, save, no_grad = model.session, model.trace, nnsight.save, torch.no_grad
    with session(backend=backend):
        found = []
        for k in range(len(jobs)):
            with no_grad(), trace(**inputs[k]) as tracer:
                read = {}
                for site, envoy, end in taps:
                    value = envoy.output if end == "output" else envoy.input
                    read[site] = value[0] if isinstance(value, tuple) else value
                found.append(jobs[k](read))
                tracer.stop()
        result = save(gather(found))  # noqa: F841 (handed back by name)
