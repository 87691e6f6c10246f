"""What nnsight leaves when a trace is interrupted, and how it is put back.

A trace takes itself down in `finally` blocks of Python, which an interrupt can cut off. What stays
then, seen by interrupting 0.8.1 at every step:

| what stays | what it would do |
|---|---|
| workers (`interleaver.mediators`), `interleaving`, a batcher | read and edit in the next trace |
| the thread's depth of traces and its set of saved values | later traces hand out what nobody saved |
| the trace function that skips a block (`sys.settrace`) | slow every call down; a debugger is gone |

All of it is right while some trace is under way, a trace of the user's own included, so that it is
put back only when none is: a trace that runs is on the stack of some thread.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from greenlet import getcurrent
from nnsight.intervention.interleaver import Mediator
from nnsight.tracing import tracer as tracing

_RUNNING = [tracing.Tracer.__exit__.__code__, Mediator._run.__code__]


def trace_left_over(model: Any, tracer: Any) -> str | None:
    """Put back what an interrupted trace of a model left, unless a trace is under way.

    Args:
        model: nnsight's.
        tracer: What Python called at every line when the turn that was cut off began (a debugger,
            coverage), or None.

    Returns:
        What it was, or None.
    """
    if any(_traces(frame) for frame in _stacks()):
        return None
    found = []
    interleaver = model.interleaver
    if interleaver.mediators or interleaver.interleaving or interleaver.batcher is not None:
        interleaver.interleaving = False
        with warnings.catch_warnings():
            # Workers of another thread cannot be unwound from here; they are dropped.
            warnings.simplefilter("ignore")
            interleaver.cancel()
        interleaver.reindex()
        found.append("an unfinished trace of nnsight")
    local = tracing._local
    if getattr(local, "depth", 0):
        local.depth = 0
        tracing._saves().clear()
        found.append("nnsight's count of traces")
    now = sys.gettrace()
    if getattr(now, "__module__", None) == tracing.__name__ and now is not tracer:
        sys.settrace(tracer)
        found.append("nnsight's trace function")
    return ", ".join(found) or None


def _stacks() -> list[Any]:
    """The innermost frame of every thread, and of the greenlets this one was started from."""
    frames: list[Any] = list(sys._current_frames().values())
    greenlet = getcurrent().parent
    while greenlet is not None:
        frames.append(greenlet.gr_frame)
        greenlet = greenlet.parent
    return frames


def _traces(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code in _RUNNING:
            return True
        frame = frame.f_back
    return False
