r"""Tokens a second of the fit pass, the score pass, a scan and two explainers, against a bare forward pass.

    python tests/benchmarks/bench_throughput.py --model smollm2 --dtype bfloat16 --json out.json
    python tests/benchmarks/bench_throughput.py --model smollm2 random1b --dtype float32 bfloat16 \
        --json gpu.json

The second line is all that a GPU is wanted for: SmolLM2 and a model of the shape of a Llama of 1.2 billion
parameters with random weights, in both formats, one after another. A scan reads the same held-out texts
from a list, writes hits, maxima and exact tails to a temporary folder, and merges them.

On CPU and CUDA alike: `--device` takes cuda where there is one. A bare pass ends behind the last
block, without hooks of ours but the one that ends it, so that a ratio is what our work adds.
Integrated gradients and coalitions are counted in rows of the model that they ask for, so that
their ratio is the price of a row: about 3 with a backward pass, about 1 for a masked input, both
less where the objective lies below the last block, since passes end there.

Before anything is timed, the scores on the device and in the number format asked for are compared
with those of the same weights in float32 on the CPU; outside the bound of the format, `equal` is
false and the command fails. Scores are float32 whatever the model's format.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(ROOT), str(ROOT / "adapters"), str(ROOT / "tests"), str(Path(__file__).parent)]

import tiny
from bench_forward import bare_forward
from word_data import word_data

from sa_plugin.attribution import bernoulli, coalition_game, explain_game, objective
from sa_plugin.concepts import ConceptBank, collect, fit
from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector, calibrate
from sa_plugin.host import Host
from sa_plugin.loaders import load
from sa_plugin.scanning import scan
from sa_plugin.scores import score
from sa_transformer_lens import accept
from sa_transformer_lens.host import load_bridge

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Root mean square difference of scores, in units of the scores' deviation.
BOUND = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
MODELS = ("tiny", "smollm2", "minilm", "random1b", "random-small")
# Llama-3.2-1B's; the small one is for a look at the command on a CPU.
SHAPES = {
    "random1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
    },
    "random-small": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 2_000,
    },
}


def run() -> list[dict[str, object]]:
    """For `run.py`: a tiny model on the CPU, which says nothing about speed, only that it runs."""
    found = measure("tiny", "cpu", "float32", samples=40, rounds=3, batch_tokens=512)
    return [
        {
            "name": f"{row['what']}, tiny model",
            "ours_s": row["seconds"],
            "opponent_s": row["bare_seconds"],
            "ratio": row["ratio"],
            "aim": "(report)",
            "equal": found["equal"],
            "note": f"{row['rows']:,} {row['unit']}; on CPU, a size at which Python is the cost",
        }
        for row in found["rows"]
    ]


def measure(
    model: str, device: str, dtype: str, *, samples: int, rounds: int, batch_tokens: int
) -> dict[str, Any]:
    """Everything, as a dictionary ready for JSON."""
    # The oracle has the very weights, rounded to the format asked for, and computes in float32.
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "progress": False}
    host = accept(load_model(model, dtype), device=device, **options)
    oracle = accept(load_model(model, dtype).to(torch.float32), **options)
    data = make_data(model, samples)
    layers = sorted({host.info.n_layers // 3, host.info.n_layers - 2})
    bank = quietly(lambda: fit(oracle, data, "prototype", layers=layers))
    equal = agreement(host, oracle, data, bank, dtype)
    detector = quietly(lambda: calibrate(host, data, bank))
    rows = [
        *passes(host, data, bank, layers, device, rounds),
        scanned(host, data, detector, device, rounds),
        *explainers(host, data, detector, device, rounds),
    ]
    return {
        "model": host.info.model,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "samples": samples,
        "rounds": rounds,
        "batch_tokens": batch_tokens,
        **equal,
        "rows": rows,
    }


def load_model(model: str, dtype: str) -> Any:
    """A bridge on the CPU."""
    if model == "tiny":
        return tiny.bridge("llama", dtype=DTYPES[dtype])
    if model in SHAPES:
        return random_bridge(model, DTYPES[dtype])
    return load_bridge(model, dtype=DTYPES[dtype])


def random_bridge(model: str, dtype: torch.dtype) -> Any:
    """A Llama of a known shape with weights drawn at random, and the tests' tokenizer."""
    from transformer_lens.model_bridge import TransformerBridge

    # Seeded in a fork, so that nothing of the process depends on it.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = random_model(model).to(dtype).eval()
    return TransformerBridge.boot_transformers(
        model, hf_model=made, tokenizer=tiny.tokenizer("llama"), device="cpu", dtype=dtype
    )


def random_model(model: str) -> Any:
    """The model of transformers, on the device that tensors are made on."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **SHAPES[model],
        max_position_embeddings=2048,
        attn_implementation="eager",
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    made: Any = LlamaForCausalLM
    return made(config)


def make_data(model: str, samples: int) -> ConceptData:
    if model == "tiny" or model in SHAPES:
        return word_data(samples, 5)
    return load("supersense").subset(samples)


def quietly(call: Callable[[], Any]) -> Any:
    """Without the warnings that vectors and scores are of two formats: that is what is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def agreement(host: Host, oracle: Host, data: ConceptData, bank: ConceptBank, dtype: str) -> dict[str, Any]:
    """Scores of the two models with the same vectors, over the tokens that both keep."""
    ours, theirs = (quietly(lambda h=h: score(h, data, bank)) for h in (host, oracle))
    same = ours.scores.shape == theirs.scores.shape
    worst = None
    if same:
        difference = ours.scores.astype(np.float64) - theirs.scores
        worst = float((np.sqrt((difference**2).mean(0)) / theirs.scores.std(0)).max())
    return {
        "equal": worst is not None and worst <= BOUND[dtype],
        "rms_difference": worst,
        "bound": BOUND[dtype],
        "tokens": [len(ours.scores), len(theirs.scores)],
    }


def passes(
    host: Any, data: ConceptData, bank: ConceptBank, layers: list[int], device: str, rounds: int
) -> list[dict[str, Any]]:
    """The fit pass over the train split, the score pass over calibration and test."""
    held_out = [*data.cal.samples, *data.test.samples]
    work: Mapping[str, tuple[Any, Callable[[], Any]]] = {
        "fit pass, means": (data.train.samples, lambda: collect(host, data, layers=layers, need=("means",))),
        "fit pass, means and rows": (data.train.samples, lambda: collect(host, data, layers=layers)),
        "score pass": (held_out, lambda: score(host, data, bank)),
    }
    found = []
    for what, (samples, ours) in work.items():
        batches = host.batches(samples)

        def bare(batches: Any = batches) -> None:
            for batch in batches:
                bare_forward(host, batch)

        tokens = sum(int(batch.valid.sum()) for batch in batches)
        found.append(compared(what, "tokens", tokens, 1, ours, bare, device, rounds))
    return found


def scanned(host: Any, data: ConceptData, detector: Detector, device: str, rounds: int) -> dict[str, Any]:
    """A scan of the held-out texts, from the list to the merged files."""
    texts = [sample.text for sample in (*data.cal.samples, *data.test.samples)]
    batches = host.batches([*data.cal.samples, *data.test.samples])

    def bare() -> None:
        for batch in batches:
            bare_forward(host, batch)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            scan(host, detector, texts, folder)

    tokens = sum(int(batch.valid.sum()) for batch in batches)
    return compared("scan", "tokens", tokens, 1, ours, bare, device, rounds)


def explainers(
    host: Any, data: ConceptData, detector: Detector, device: str, rounds: int
) -> list[dict[str, Any]]:
    """Integrated gradients and RISE of one sample, against as many bare rows of it."""
    sample = next(s for s in data.test.samples if detector.find(s))
    goal = quietly(
        lambda: objective("global", detector=detector, concept=data.concepts[0], sample=sample, host=host)
    )

    # A new game each time: a game remembers the coalitions it has computed.
    def game() -> Any:
        return coalition_game(host, sample, [goal])

    masks = bernoulli(game().n_players, 256, seed=0).coalitions
    work: Mapping[str, tuple[int, Callable[[], Any]]] = {
        "integrated gradients": (65, lambda: explain_game(game(), "integrated_gradients", n_steps=64)),
        "coalitions": (len(masks), lambda: game()(masks)),
    }
    (batch,) = host.batches([sample])
    length = int(batch.valid.sum())
    size = max(1, host.batch_tokens // length)
    found = []
    for what, (rows, ours) in work.items():
        parts = [size] * (rows // size) + [rows % size] * bool(rows % size)
        many = [host.batches([sample] * n, batch_tokens=n * length)[0] for n in parts]

        def bare(many: Any = many) -> None:
            for batch in many:
                bare_forward(host, batch)

        found.append(compared(what, "rows", rows, length, ours, bare, device, rounds))
    return found


def compared(
    what: str,
    unit: str,
    rows: int,
    tokens: int,
    ours: Callable[[], Any],
    bare: Callable[[], Any],
    device: str,
    rounds: int,
) -> dict[str, Any]:
    """The best of some rounds of both, interleaved."""
    best = {"ours": float("inf"), "bare": float("inf")}
    calls = {"ours": ours, "bare": bare}
    quietly(ours)
    for turn in range(rounds):
        for name in sorted(calls, reverse=bool(turn % 2)):
            best[name] = min(best[name], seconds(calls[name], device))
    return {
        "what": what,
        "unit": unit,
        "rows": rows,
        "seconds": best["ours"],
        "bare_seconds": best["bare"],
        "tokens_per_second": rows * tokens / best["ours"],
        "bare_tokens_per_second": rows * tokens / best["bare"],
        "ratio": best["ours"] / best["bare"],
    }


def seconds(call: Callable[[], Any], device: str) -> float:
    """Seconds until everything that was asked of the device is done."""
    if device != "cuda":
        begun = time.perf_counter()
        quietly(call)
        return time.perf_counter() - begun
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    quietly(call)
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=["tiny"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument("--dtype", choices=sorted(DTYPES), nargs="+", default=["float32"])
    parser.add_argument("--samples", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for model in given.model:
        for dtype in given.dtype:
            sizes = {"samples": given.samples, "rounds": given.rounds, "batch_tokens": given.batch_tokens}
            found.append(measure(model, device, dtype, **sizes))
            text = json.dumps(found if len(given.model) * len(given.dtype) > 1 else found[0], indent=1)
            # After each one, so that a run that is cut off leaves what it has.
            if given.json:
                given.json.write_text(text + "\n")
    print(text)
    return 0 if all(one["equal"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
