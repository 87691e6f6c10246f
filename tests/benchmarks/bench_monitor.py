"""What watching costs a generation: 100 concepts on SmolLM2, at one block and spread over three.

Both sides generate the same tokens from the same prompts, in turn, and the ratio is of their fastest
rounds, in seconds of the processor. Ours minus the opponent's, over the steps, is what a step costs
more. Aim: at most 2 %.
Only where the weights are (`make weights`).
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import generation_cases
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


def row(host, bridge, blocks, size):
    """Both in turn."""
    detector = generation_cases.many_concepts(host, CONCEPTS, blocks)
    encode = host.reader.encode.tokenizer
    rows = [encode(text).input_ids for text in PROMPTS[:size]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in rows])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in rows])
    given = {"max_new_tokens": NEW, "do_sample": False, "return_type": "tokens", "verbose": False}
    given |= {"stop_at_eos": False, "attention_mask": mask}
    took, out = {True: [], False: []}, {}
    for _ in range(ROUNDS):
        for watched in (True, False):
            with watch(host, detector) if watched else nullcontext():
                begun = time.process_time()
                out[watched] = bridge.generate(ids, **given)
                took[watched].append(time.process_time() - begun)
    ours, opponent = min(took[True]), min(took[False])
    step = 1e6 * (ours - opponent) / NEW
    ratio = ours / opponent
    return {
        "name": f"watch, {CONCEPTS} concepts, block {', '.join(map(str, blocks))}, batch {size}",
        "ours_s": ours,
        "opponent_s": opponent,
        "ratio": ratio,
        "aim": f"<= {AIM}",
        "equal": torch.equal(out[True], out[False]),
        "note": f"{step:+.0f} microseconds a step of {1e3 * opponent / NEW:.1f} ms"
        f"{'' if ratio <= AIM else ': above the aim'}",
    }
