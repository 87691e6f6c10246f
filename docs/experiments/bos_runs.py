"""What a BOS does to lost labels and F1 on SmolLM2: the table in docs/models.md and the default of `bos`.

python docs/experiments/bos_runs.py [PASSAGES]

SmolLM2's tokenizer puts no BOS, so the first word of a text becomes the attention sink and is dropped with
its label; TransformerLens's convention puts one. Settings: 240 passages each of supersense and Brown (rare
concepts first, seed 0), separators at blocks 10 and 16, seed 0, each document left out in turn, paired;
one thread, four runs of two to four minutes on two busy cores. Brown has to be fetched once
(`python docs/experiments/brown.py`), and is left out where it is not there.

What it does not show: other models. One that was trained with a BOS (Gemma, Llama) has it by its
tokenizer's own rule, and is not to be read without.
"""

import sys
import time
from typing import Any

import torch

import sa_plugin as sa
from sa_plugin.host import find_folder
from sa_transformer_lens.host import load_bridge

BLOCKS = [10, 16]


def run(bridge: Any, data: sa.ConceptData, bos: bool) -> tuple[Any, ...]:
    """Lost labels, and detection and localisation F1 with their intervals."""
    began = time.time()
    host = sa.attach(bridge, bos=bos, progress=False)
    bank = sa.fit(host, data, "separator", layers=BLOCKS)
    scores = sa.score(host, data, bank)
    detector = sa.calibrate(host, data, bank, scores=scores)
    rule = sa.Resampling(200)
    tokens = scores.tokens
    lost, kept = tokens.dropped["labelled sink"], int(tokens.labels.any(-1).sum())
    found = detector.evaluate(data.test, scores=scores, resampling=rule)
    f1 = found.weighted["f1"].sel(method="SuperActivators")
    auroc = found.weighted["auroc"].sel(method="SuperActivators")
    marked = detector.evaluate_tokens(data.test, scores=scores, resampling=rule).f1
    local = marked.sel(method=marked.axes["method"][0])
    print(f"{data.name}, {host}: {time.time() - began:.0f} s", flush=True)
    return lost, lost + kept, f1, auroc, local


def said(one: Any) -> str:
    """A number with its interval."""
    return f"{float(one.estimate):.3f} [{float(one.low):.3f}, {float(one.high):.3f}]"


def main() -> None:
    """Print a table."""
    passages = int(sys.argv[1]) if len(sys.argv) > 1 else 240
    torch.set_num_threads(1)
    bridge = load_bridge(find_folder("smollm2"))
    rows = [
        "| data | BOS | labelled tokens lost (cal, test) | F1 | AUROC | token F1 |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("supersense", "brown"):
        try:
            data = sa.load(name).subset(passages)
        except FileNotFoundError as error:
            print(error)
            continue
        without, with_bos = (run(bridge, data, bos) for bos in (False, True))
        for word, (lost, of, *numbers) in (("none", without), ("first", with_bos)):
            rows.append(f"| {name} | {word} | {lost} of {of} | {' | '.join(map(said, numbers))} |")
        differences = [after - before for before, after in zip(without[2:], with_bos[2:], strict=True)]
        rows.append(f"| {name} | difference, paired | | {' | '.join(map(said, differences))} |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
