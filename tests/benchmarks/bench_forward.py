"""Scores of 16 concepts at every layer, against the same bridge's forward pass without our hooks.

The opponent is the pass that ends at the same place, after the last block: that we leave out the
unembedding is not counted as speed. What it reads there gives the scores that ours must equal.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import tiny
import torch

from sa_plugin.concepts import VectorSet
from sa_plugin.data import Sample
from sa_plugin.host import Batch, Site
from sa_transformer_lens import accept
from sa_transformer_lens.host import load_bridge
from sa_transformer_lens.passes import call_under as forward

CONCEPTS = 16
TEXT = "the cat sat on the mat and nobody walked the dog that sat beside the cat at night " * 8


def run() -> list[dict[str, object]]:
    found = [compare(_random_gpt2(), samples=16, words=80, rounds=8)]
    with suppress(FileNotFoundError):
        smollm2 = accept(load_bridge("smollm2"))
        found.append(compare(smollm2, samples=16, words=64, rounds=6))
    return found


def compare(host: Any, *, samples: int, words: int, rounds: int) -> dict[str, object]:
    text = " ".join(TEXT.split()[:words])
    many = [Sample(str(k), text, str(k)) for k in range(samples)]
    (batch,) = host.batches(many, batch_tokens=1_000_000)
    bank, last = _vectors(host), host.info.n_layers - 1
    end = bare_forward(host, batch)
    equal = torch.allclose(scores(host, batch, bank)[-1], bank.score(last, end), atol=1e-5)
    calls = {"ours": lambda: scores(host, batch, bank), "opponent": lambda: bare_forward(host, batch)}
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(rounds):
        # What runs second finds the caches and the allocator warm.
        for name in sorted(calls, reverse=bool(turn % 2)):
            start = time.process_time()
            calls[name]()
            best[name] = min(best[name], time.process_time() - start)
    return {
        "name": f"16 concepts, all layers, {host.info.model}",
        "ours_s": best["ours"],
        "opponent_s": best["opponent"],
        "ratio": best["ours"] / best["opponent"],
        "aim": "<= 1.05",
        "equal": equal,
        "note": f"opponent: the same bridge to the end of its last block, no scores; "
        f"{host.info.n_layers} x {host.info.d_model}, {batch.valid.numel()} tokens, "
        f"{torch.get_num_threads()} threads; seconds of CPU",
    }


def scores(host: Any, batch: Batch, bank: VectorSet) -> torch.Tensor:
    sites = [Site(layer, "resid_post") for layer in range(host.info.n_layers)]

    def reduce(found: Any) -> dict[str, torch.Tensor]:
        return {"scores": torch.stack([bank.score(site.layer, found[site]) for site in sites])}

    return host.read(batch, sites, reduce)["scores"]


class _End(Exception):
    pass


def bare_forward(host: Any, batch: Batch) -> torch.Tensor:
    return residuals_of(host, batch.inputs, block_ends(host)[-1:])[0]


def residuals_of(host: Any, inputs: dict[str, torch.Tensor], names: list[str]) -> list[torch.Tensor]:
    """What some hooks see, in order, in a pass that ends at the last of them."""
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        found.append(tensor)
        if len(found) == len(names):
            raise _End

    with suppress(_End), torch.no_grad():
        forward(host.bridge, inputs, [(name, keep) for name in names])
    return found


def block_ends(host: Any) -> list[str]:
    """Hooks at the ends of blocks, by the names of a bridge or of a HookedTransformer."""
    name = "hook_out" if hasattr(host.bridge, "original_model") else "hook_resid_post"
    return [f"blocks.{at}.{name}" for at in range(host.info.n_layers)]


def _vectors(host: Any) -> VectorSet:
    generator = torch.Generator().manual_seed(0)
    shape = (host.info.n_layers, host.info.d_model)
    vectors = torch.randn(shape[0], CONCEPTS, shape[1], generator=generator)
    mean = torch.randn(shape, generator=generator)
    return VectorSet(vectors, mean, torch.ones(shape[0]), "cosine")


def _random_gpt2() -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny.tokenizer("gpt2")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=512,
        n_layer=12,
        n_head=8,
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    bridge = TransformerBridge.boot_transformers(
        "random GPT-2", hf_model=model, tokenizer=tokenizer, device="cpu"
    )
    return accept(bridge)
