"""Bytes on the wire, and sessions against single requests, on a live server.

Per-sample maxima and token scores of 16 concepts at every layer of SmolLM2, against a trace that
saves every layer; 1,000 short samples in sessions, against a request each; and scans with concepts at
every layer in turn.

    python tests/remote/run.py --mode trusted --bench -- --only scan --json wire.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nnsight
import torch
from clients import remote_model

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from bench_scan import make_detector

from sa_nnsight.wire import Traffic, Wire
from sa_plugin.concepts import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.host import attach
from sa_plugin.loaders import load, open_corpus
from sa_plugin.scanning import scan
from sa_plugin.scores import sample_maxima, score

CONCEPTS, PASSAGES, SAVED, SHORT, ALONE = 16, 200, 4, 1000, 40


SCANNED, SIZES = 64, (16, 100, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", choices=("passes", "sessions", "scan"))
    parser.add_argument("--json", type=Path, help="for what scans receive")
    given = parser.parse_args()
    if given.only in (None, "passes"):
        passes()
    if given.only in (None, "sessions"):
        sessions()
    if given.only in (None, "scan"):
        rows = scans()
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")


def passes() -> None:
    """Maxima and token scores against every layer saved."""
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


def scans() -> list[dict[str, Any]]:
    """Bytes received a sample by scans of as many concepts."""
    host: Any = attach(remote_model("smollm2"), remote=True, traces=16)
    samples = load("supersense").samples[:SCANNED]
    texts = [sample.text for sample in samples]
    everything = save_all_layers(host, samples[:SAVED]) / SAVED
    print(f"bytes a scan receives a sample, compressed; every layer saved: {everything:,.0f}")
    rows = []
    for n in SIZES:
        detector = make_detector(host, texts, n)
        begun = vars(host.traffic).copy()
        with tempfile.TemporaryDirectory() as folder:
            found = scan(host, detector, open_corpus(texts), folder)
        assert found is not None
        mine, sent = received(host, begun) / SCANNED, int(host.traffic.sent - begun["sent"]) / SCANNED
        tokens = found.totals["tokens"]["counted"] / SCANNED
        rows.append({"concepts": n, "received": mine, "sent": sent, "tokens": tokens, "saved": everything})
        print(
            f"  {n:>5} concepts  {mine:>10,.0f} received, {sent:>8,.0f} sent, {tokens:.0f} tokens", flush=True
        )
    return rows


def sessions() -> None:
    """Short samples in sessions, and one by one."""
    tiny: Any = attach(remote_model("tiny-gpt2"), remote=True, traces=16, batch_tokens=64)
    short = [Sample(f"s{k}", "The cat sat on the mat.", f"s{k}") for k in range(SHORT)]
    few = random_bank(tiny)
    start = time.perf_counter()
    together = sample_maxima(tiny, short, few)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    single = [sample_maxima(tiny, [one], few) for one in short[:ALONE]]
    alone = (time.perf_counter() - start) / ALONE * SHORT
    gap = max(float(abs(a.scores[0] - b).max()) for a, b in zip(single, together.scores, strict=False))
    print(
        f"{SHORT} short samples: {seconds:.1f} s in sessions, {alone:.1f} s one by one (from "
        f"{ALONE}): {alone / seconds:.0f} times; largest difference {gap:.1e}"
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
