"""What watching costs a generation: 100 concepts on SmolLM2, at one block and spread over three.

The ratio is of one run: the whole generation against the generation without the time that is spent in the
functions that its hooks call, by the processor's clock, the median of `ROUNDS` runs. (Two runs in turn
differ by several per cent from each other on a shared machine, whichever is watched.) The tokens are
compared with those of a generation that nobody watches. Aim: at most 2 %.
Only where the weights are (`make weights`).
"""

from __future__ import annotations

import importlib
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest import mock

import generation_cases
import numpy as np
import torch

from sa_plugin import watch
from sa_plugin.host import attach
from sa_transformer_lens.host import load_bridge

CONCEPTS, NEW, ROUNDS, AIM = 100, 12, 6, 1.02
# Blocks that concepts are read at, and the size of the batch.
CASES = (((12,), 1), ((4, 12, 20), 1), ((4, 12, 20), 4))
PROMPTS = (
    "The farmer sold two cows to the captain last spring, and then he",
    "Once upon a time there was a king who",
    "In the morning the doctor walked to the hospital by the river because",
    "My dog",
)


def run() -> list[dict[str, object]]:
    """One row for each set of blocks and size of the batch, or none where the weights are missing."""
    try:
        bridge = load_bridge("smollm2")
    except FileNotFoundError:
        return []
    host = attach(bridge, progress=False)
    return [row(host, bridge, blocks, size) for blocks, size in CASES]


@contextmanager
def timed():
    """Seconds that the functions of hooks take, in a list of one."""
    spent, patches = [0.0], []
    for name in ("_look", "_see_ids", "_see_mask"):
        original = getattr(importlib.import_module("sa_plugin.generation.running")._Loop, name)

        def call(self, *args, original=original):
            begun = time.process_time()
            try:
                return original(self, *args)
            finally:
                spent[0] += time.process_time() - begun

        patches.append(mock.patch(f"sa_plugin.generation.running._Loop.{name}", call))
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield spent


def row(host, bridge, blocks, size):
    """Both in turn."""
    # Random directions at thresholds that about every token reaches one of: twice what calibration says.
    made = generation_cases.many_concepts(host, CONCEPTS, blocks, delta=0.02)
    detector = replace(made, tail=replace(made.tail, thresholds=2 * np.abs(made.tail.thresholds)))
    encode = host.reader.encode.tokenizer
    rows = [encode(text).input_ids for text in PROMPTS[:size]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in rows])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in rows])
    given = {"max_new_tokens": NEW, "do_sample": False, "return_type": "tokens", "verbose": False}
    given |= {"stop_at_eos": False, "attention_mask": mask}
    plain, totals, own = bridge.generate(ids, **given), [], []
    for _ in range(ROUNDS):
        with timed() as spent, watch(host, detector) as monitor:
            begun = time.process_time()
            out = bridge.generate(ids, **given)
            totals.append(time.process_time() - begun)
        own.append(spent[0])
    at = sorted(range(ROUNDS), key=lambda k: own[k] / totals[k])[ROUNDS // 2]
    ours, opponent = totals[at], totals[at] - own[at]
    step, ratio = 1e6 * own[at] / NEW, ours / opponent
    rate = len(monitor.hits) / monitor.n_tokens
    return {
        "name": f"watch, {CONCEPTS} concepts, block {', '.join(map(str, blocks))}, batch {size}",
        "ours_s": ours,
        "opponent_s": opponent,
        "ratio": ratio,
        "aim": f"<= {AIM}",
        "equal": torch.equal(out, plain),
        "note": f"{step:.0f} microseconds a step of {1e3 * opponent / NEW:.1f} ms"
        f", {rate:.1f} hits a token{'' if ratio <= AIM else ': above the aim'}",
    }
