"""The score pass through nnsight, against torch's own hooks on the same module, SmolLM2.

Both score 16 concepts at every layer of the same batch and stop behind the last block.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import torch

from sa_plugin.data import Sample
from sa_plugin.host import Batch, Site, find_folder, reducers

CONCEPTS, SAMPLES, WORDS, ROUNDS = 16, 16, 64, 6
TEXT = "the cat sat on the mat and nobody walked the dog that sat beside the cat at night " * 8


class _End(Exception):
    pass


def run() -> list[dict[str, object]]:
    try:
        folder = find_folder("smollm2")
    except FileNotFoundError:
        return []
    host = _host(folder)
    text = " ".join(TEXT.split()[:WORDS])
    many = [Sample(str(k), text, str(k)) for k in range(SAMPLES)]
    (batch,) = host.batches(many, batch_tokens=1_000_000)
    vectors = _vectors(host)
    calls = {
        "ours": lambda: through_nnsight(host, batch, vectors),
        "opponent": lambda: bare_hooks(host, batch, vectors),
    }
    equal = torch.allclose(calls["ours"](), calls["opponent"](), atol=1e-5)
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(ROUNDS):
        # What runs second finds the caches and the allocator warm.
        for name in sorted(calls, reverse=bool(turn % 2)):
            start = time.process_time()
            calls[name]()
            best[name] = min(best[name], time.process_time() - start)
    row: dict[str, object] = {
        "name": "16 concepts, all layers, nnsight, SmolLM2",
        "ours_s": best["ours"],
        "opponent_s": best["opponent"],
        "ratio": best["ours"] / best["opponent"],
        "aim": "<= 1.25",
        "equal": equal,
        "note": f"opponent: torch hooks on the same module, same scores; {batch.valid.numel()} "
        f"tokens, {torch.get_num_threads()} threads; seconds of CPU",
    }
    return [row]


def through_nnsight(host: Any, batch: Batch, vectors: reducers.Vectors) -> torch.Tensor:
    sites = [Site(layer, "resid_post") for layer in range(host.info.n_layers)]

    def reduce(read: Any) -> dict[str, torch.Tensor]:
        return {"scores": reducers.by_layer(vectors, [read[site] for site in sites])}

    found: torch.Tensor = host.read(batch, sites, reduce)["scores"]
    return found


def bare_hooks(host: Any, batch: Batch, vectors: reducers.Vectors) -> torch.Tensor:
    blocks = host.places.module("blocks")
    read: list[torch.Tensor] = []
    last = len(blocks) - 1

    def keep(k: int) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            read.append((out[0] if isinstance(out, tuple) else out).clone())
            if k == last:
                raise _End

        return hook

    handles = [block.register_forward_hook(keep(k)) for k, block in enumerate(blocks)]
    try:
        with torch.no_grad(), suppress(_End):
            host.places.root(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return reducers.by_layer(vectors, read)


def _host(folder: Any) -> Any:
    from nnsight import NNsight
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sa_nnsight import accept

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return accept(NNsight(model), tokenizer=AutoTokenizer.from_pretrained(folder))


def _vectors(host: Any) -> reducers.Vectors:
    generator = torch.Generator().manual_seed(0)
    shape = (host.info.n_layers, host.info.d_model)
    vectors = torch.randn(shape[0], CONCEPTS, shape[1], generator=generator)
    return vectors, torch.randn(shape, generator=generator), torch.ones(shape[0]), True
