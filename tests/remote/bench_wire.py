"""Bytes on the wire, and sessions against single requests, on a live server.

Per-sample maxima and token scores of 16 concepts at every layer of SmolLM2, against a trace that
saves every layer; and 1,000 short samples in sessions, against a request each.
"""

from __future__ import annotations

import time
from typing import Any

import nnsight
import torch
from clients import remote_model

from sa_nnsight.wire import Traffic, Wire
from sa_plugin.concepts import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.host import attach
from sa_plugin.loaders import load
from sa_plugin.scores import sample_maxima, score

CONCEPTS, PASSAGES, SAVED, SHORT, ALONE = 16, 200, 4, 1000, 40


def main() -> None:
    host: Any = attach(remote_model("smollm2"), remote=True, traces=16)
    samples = load("supersense").samples[:PASSAGES]
    bank = random_bank(host)
    everything = save_all_layers(host, samples[:SAVED]) / SAVED
    begun = vars(host.traffic).copy()
    sample_maxima(host, samples, bank)
    maxima = received(host, begun) / PASSAGES
    begun = vars(host.traffic).copy()
    data = load("supersense").subset(PASSAGES)
    score(host, data, bank, splits=("test",))
    scores = received(host, begun) / len(data.test)
    print("bytes received a sample, compressed, 16 concepts at 30 layers of SmolLM2")
    print(f"  every layer saved      {everything:>12,.0f}")
    print(f"  token scores           {scores:>12,.0f}   {everything / scores:>8,.0f} times fewer")
    print(f"  per-sample maxima      {maxima:>12,.0f}   {everything / maxima:>8,.0f} times fewer")
    tiny: Any = attach(remote_model("tiny-gpt2"), remote=True, traces=16, batch_tokens=64)
    short = [Sample(f"s{k}", "The cat sat on the mat.", f"s{k}") for k in range(SHORT)]
    few = random_bank(tiny)
    start = time.perf_counter()
    together = sample_maxima(tiny, short, few)
    sessions = time.perf_counter() - start
    start = time.perf_counter()
    single = [sample_maxima(tiny, [one], few) for one in short[:ALONE]]
    alone = (time.perf_counter() - start) / ALONE * SHORT
    gap = max(float(abs(a.scores[0] - b).max()) for a, b in zip(single, together.scores, strict=False))
    print(
        f"{SHORT} short samples: {sessions:.1f} s in sessions, {alone:.1f} s one by one (from "
        f"{ALONE}): {alone / sessions:.0f} times; largest difference {gap:.1e}"
    )


def received(host: Any, begun: dict[str, Any]) -> int:
    return int(host.traffic.received - begun["received"])


def save_all_layers(host: Any, samples: Any) -> int:
    """Bytes of a trace that hands every layer over, as nnsight's users write it."""
    traffic, model = Traffic(), host.model
    envoys = [model.get(host.places.path("block", k)) for k in range(host.info.n_layers)]
    for batch in host.batches(list(samples)):
        wire = Wire(model.to_model_key(), traffic)
        inputs = dict(batch.inputs)
        with model.session(backend=wire):
            result = nnsight.save([])
            with torch.no_grad(), model.trace(**inputs) as tracer:
                for envoy in envoys:
                    result.append(envoy.output)
                tracer.stop()
        while wire.poll() is None:
            time.sleep(0.1)
    return traffic.received


def random_bank(host: Any) -> ConceptBank:
    generator = torch.Generator().manual_seed(0)
    vectors = {
        (f"concept {c}", layer): torch.randn(host.info.d_model, generator=generator)
        for c in range(CONCEPTS)
        for layer in range(host.info.n_layers)
    }
    return ConceptBank.from_vectors(vectors)


if __name__ == "__main__":
    main()
