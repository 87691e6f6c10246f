"""The blocks of code that are sent to a server.

Nothing is imported inside a block, and it refers to names of its function only, so that nnsight
ships its source, the source of the two registered modules, and plain tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nnsight
import torch

from sa_nnsight import beside
from sa_nnsight.journal import SHIPPED
from sa_nnsight.reading import Tap
from sa_plugin import reducers


def register() -> None:
    """Have nnsight ship what runs on the server, so that this package need not be there."""
    for module in SHIPPED:
        nnsight.register(module)


def submit_reads(
    model: Any,
    backend: Any,
    inputs: Sequence[Mapping[str, torch.Tensor]],
    taps: Sequence[tuple[tuple[int, str], Tap]],
    jobs: Sequence[Any],
    heads: int,
    early: bool,
) -> None:
    """Send one session of several traces.

    Args:
        model: nnsight's model; its weights are not sent.
        backend: Sends, and does not wait.
        inputs: What each trace is called with.
        taps: What each trace reads, by plain `(layer, point)`, in the order of the forward pass.
        jobs: Reducer of each trace.
        heads: Query heads of an attention layer.
        early: End each pass behind the deepest place. A sandbox breaks on several traces that end
            early in one session.
    """
    early = early or len(jobs) == 1
    gather, shaped, no_grad, save = reducers.gather, beside.shaped, torch.no_grad, nnsight.save
    wanted = [(site, model.get(tap.path), tap.end, tap.item) for site, tap in taps]
    # The server may ignore this; `shaped` then finds no probabilities and says so.
    unfuse = any(site[1] == "pattern" for site, _ in taps)
    with model.session(backend=backend):
        # Named here: a module is known to the server only as a part of nnsight's model.
        root = model._module
        before = root.config._attn_implementation if unfuse else None
        if unfuse:
            root.set_attn_implementation("eager")
        found = []
        for k in range(len(jobs)):
            with no_grad(), model.trace(**inputs[k]) as tracer:
                read = {}
                for site, envoy, end, item in wanted:
                    value = envoy.input if end == "input" else envoy.output
                    read[site] = shaped(site, value, item, heads)
                found.append(jobs[k](read))
                if early:
                    tracer.stop()
        if unfuse:
            root.set_attn_implementation(before)
        result = save(gather(found))  # noqa: F841 (handed back by its name)


def submit_values(model: Any, backend: Any, places: Mapping[str, torch.Tensor]) -> None:
    """Ask for some values of the weights; a server that keeps them to itself fails this."""
    values, save = beside.parameter_values, nnsight.save
    with model.session(backend=backend):
        result = save([values(model._module, places)])  # noqa: F841 (handed back by its name)
