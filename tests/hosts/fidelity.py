"""The same passages scored on every stack, against plain hooks: scores, thresholds, decisions.

    python tests/hosts/fidelity.py bank                      vectors and plain hooks, once
    python tests/hosts/fidelity.py record STACK --models smollm2 minilm
    python tests/hosts/fidelity.py table --page docs/compatibility.md

STACK is one of `STACKS` and is run in an environment that has it; models are those of `make weights`.
Records lie in the cache folder, or in --folder. `table` ends with 1 where something drifts.
`bank` fits prototypes at every block and scores with transformers and torch alone, one text a pass,
float64 from the residual on. A stack then scores the same 60 samples by its own passes, chooses
layer, delta and threshold on those of calibration, and decides on those of test.

A difference is in standard deviations of the vector's plain scores. Drift is a score or a threshold
off by more than `DRIFT`, a token or a choice that is another, or a decision that differs while its
plain score is further than that from the threshold.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "adapters"), str(HERE.parent)]

import numpy as np  # noqa: E402

DRIFT = 1e-4
MODELS = ("smollm2", "minilm", "vit")
SAMPLES = 120
PLAIN = "plain hooks"
MARKS = ("<!-- fidelity: begin -->", "<!-- fidelity: end -->")
PACKAGES = ("transformer-lens", "nnsight", "interp-engine", "transformers", "torch")


def default_folder() -> Path:
    """Where the records lie."""
    from sa_plugin._check import cache_folder

    return cache_folder(None) / "fidelity"


def data_of(model: str) -> Any:
    """60 samples to fit on, 60 of calibration and test."""
    from sa_plugin.loaders import load

    return load("emoji", n=SAMPLES) if model == "vit" else load("supersense").subset(SAMPLES)


def _bridge(folder: Path) -> tuple[Any, dict[str, Any]]:
    from sa_transformer_lens.host import load_bridge

    return load_bridge(folder), {}


def _hooked(folder: Path) -> tuple[Any, dict[str, Any]]:
    from sa_transformer_lens import load_hooked

    return load_hooked(folder), {}


def _nnsight(folder: Path) -> tuple[Any, dict[str, Any]]:
    from sa_nnsight import load_model

    return load_model(folder)


def _engine(folder: Path) -> tuple[Any, dict[str, Any]]:
    from sa_interp_engine import load_model

    return load_model(folder)


STACKS: dict[str, Callable[[Path], tuple[Any, dict[str, Any]]]] = {
    "TransformerBridge": _bridge,
    "HookedTransformer": _hooked,
    "nnsight": _nnsight,
    "interp-engine": _engine,
}


def write_bank(model: str, folder: Path) -> None:
    """Vectors for every stack, and the record of plain hooks."""
    from sa_plugin.concepts import fit, save_bank
    from sa_plugin.host import attach, find_folder
    from sa_plugin.scores import score

    where = find_folder(model)
    wrapped, options = _nnsight(where)
    host, data = attach(wrapped, progress=False, **options), data_of(model)
    bank = fit(host, data, "prototype")
    (folder / model).mkdir(parents=True, exist_ok=True)
    save_bank(bank, folder / model / "bank")
    # Which tokens count is the package's rule; what they score is not taken from it.
    table = score(host, data, bank)
    _write(PLAIN, model, folder, replace(table, scores=_plain_scores(model, where, table)), data)


def record(stack: str, model: str, folder: Path, host: Any = None) -> Path:
    """One stack's scores, choices and decisions on one model."""
    from sa_plugin.concepts import load_bank
    from sa_plugin.host import attach, check, find_folder
    from sa_plugin.scores import score

    laws = None
    if host is None:
        wrapped, options = STACKS[stack](find_folder(model))
        host = attach(wrapped, progress=False, **options)
        laws = [[law.name, law.passed, law.difference is not None] for law in check(host).laws]
    data = data_of(model)
    bank = load_bank(folder / model / "bank")
    return _write(stack, model, folder, score(host, data, bank), data, laws)


def _plain_scores(model: str, where: Path, table: Any) -> np.ndarray:
    """The scores of a table's tokens, float32, by transformers and torch hooks alone."""
    import torch
    import transformers

    kind = transformers.AutoModelForCausalLM if model == "smollm2" else transformers.AutoModel
    net = kind.from_pretrained(where, dtype=torch.float32, attn_implementation="eager").eval()
    if model == "vit":
        prepare, blocks = transformers.AutoImageProcessor.from_pretrained(where, use_fast=False), net.layers
    else:
        prepare = transformers.AutoTokenizer.from_pretrained(where)
        blocks = net.model.layers if model == "smollm2" else net.encoder.layer
    held: dict[int, Any] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: Any, given: Any, out: Any) -> None:
            held[layer] = (out[0] if isinstance(out, tuple) else out)[0].double()

        return hook

    for layer in table.bank.layers:
        blocks[layer].register_forward_hook(keep(layer))
    vectors = table.bank.token
    found = np.empty(table.scores.shape, np.float32)
    for s, sample in enumerate(table.tokens.samples):
        rows = table.tokens.sample_of == s
        at = torch.from_numpy(table.tokens.position[rows])
        with torch.no_grad():
            net(**prepare(sample.image.pixels if model == "vit" else sample.text, return_tensors="pt"))
        for i, layer in enumerate(table.bank.layers):
            x = (held[layer][at] - vectors.mean[i].double()) / vectors.scale[i].double()
            dots = x @ vectors.vectors[i].double().T
            if vectors.scoring == "cosine":
                lengths = x.norm(dim=-1, keepdim=True) * vectors.vectors[i].double().norm(dim=-1)
                dots = dots / lengths.clamp_min(1e-8)
            found[rows, i] = dots.numpy()
    return found


def _write(stack: str, model: str, folder: Path, table: Any, data: Any, laws: Any = None) -> Path:
    from sa_plugin.detection import calibrate

    with warnings.catch_warnings():
        # 24 samples are few to choose on; here every stack has to choose the same on them.
        warnings.filterwarnings("ignore", ".*fewer than 1 / delta")
        detector = calibrate(None, data, table.bank, scores=table)
    found = detector.detect(data.test, scores=table)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    mine = {"TransformerBridge": "transformer-lens", "HookedTransformer": "transformer-lens"}.get(
        stack, stack
    )
    name = stack if stack == PLAIN else f"{stack} {versions.get(mine, '')}".strip()
    ids = np.array([sample.id for sample in table.tokens.samples])
    choices = [detector.choice(concept) for concept in detector.concepts]
    beside = "" if stack == PLAIN else f"_transformers_{versions['transformers']}"
    out = folder / model / f"{name.replace(' ', '_')}{beside}.npz"
    np.savez_compressed(
        out,
        sample=ids[table.tokens.sample_of],
        position=table.tokens.position,
        scores=table.scores,
        concepts=list(detector.concepts),
        layers=list(table.bank.layers),
        chosen=[f"layer {c.layer}, delta {c.delta:g}" for c in choices],
        layer=[c.layer for c in choices],
        threshold=[c.threshold for c in choices],
        present=found.present,
        margin=found.margin,
        about=json.dumps({"stack": name, "model": model, "versions": versions, "laws": laws}),
    )
    print(f"{model}, {name}: {len(table.tokens)} tokens, {table.scores.shape[1:]} -> {out}", flush=True)
    return out


def compare(plain: Any, other: Any) -> dict[str, Any]:
    """What differs between two records of one model; differences in deviations of the plain scores."""
    keys = [
        list(zip(one["sample"].tolist(), one["position"].tolist(), strict=True)) for one in (plain, other)
    ]
    places = {key: k for k, key in enumerate(keys[0])}
    shared = [(places[key], k) for k, key in enumerate(keys[1]) if key in places]
    here, there = (list(at) for at in zip(*shared, strict=True))
    deviation = plain["scores"].std(0, dtype=np.float64)
    gap = np.abs(plain["scores"][here].astype(np.float64) - other["scores"][there]) / deviation
    concepts, layers = plain["concepts"].tolist(), plain["layers"].tolist()
    of_choice = np.array([deviation[layers.index(x), u] for u, x in enumerate(plain["layer"].tolist())])
    same = plain["chosen"] == other["chosen"]
    moved = np.abs(plain["threshold"] - other["threshold"]) / of_choice
    changed = plain["present"] != other["present"]
    far = np.abs(plain["margin"]) > DRIFT * of_choice
    found: dict[str, Any] = {
        "tokens": len(shared),
        "other tokens": len(set(keys[0]) ^ set(keys[1])),
        "score": float(gap.max()),
        "threshold": float(moved[same].max()) if same.any() else 0.0,
        "other choices": [c for c, one in zip(concepts, same, strict=True) if not one],
        "decisions": int(changed.size),
        "changed": int(changed.sum()),
        "changed far": int((changed & far & same).sum()),
    }
    found["drift"] = bool(
        found["other tokens"]
        or found["score"] > DRIFT
        or found["threshold"] > DRIFT
        or found["other choices"]
        or found["changed far"]
    )
    return found


def into_page(page: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Put a table between the marks of a page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"{page} has no lines {marks[0]} and {marks[1]}: put them where the table goes.")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def table(folder: Path) -> tuple[str, bool]:
    """The records of a folder as a Markdown table, and whether any of them drifts."""
    head = (
        "model",
        "stack",
        "transformers",
        "laws",
        "tokens",
        "score",
        "threshold",
        "choices",
        "decisions",
        "",
    )
    lines, drifts = [head, ("---",) * len(head)], False
    for model in MODELS:
        first = folder / model / f"{PLAIN.replace(' ', '_')}.npz"
        if not first.exists():
            continue
        plain = np.load(first)
        for path in sorted(first.parent.glob("*.npz")):
            if path == first:
                continue
            other = np.load(path)
            about, found = json.loads(str(other["about"])), compare(plain, other)
            failed = any(not passed for _, passed, _ in about.get("laws") or [])
            found["drift"] |= failed
            drifts |= found["drift"]
            n = len(plain["concepts"])
            lines.append(
                (
                    model,
                    about["stack"],
                    about["versions"]["transformers"],
                    _laws(about.get("laws")),
                    f"{found['tokens']}" + (f" (-{found['other tokens']})" if found["other tokens"] else ""),
                    f"{found['score']:.1e}",
                    f"{found['threshold']:.1e}",
                    f"{n - len(found['other choices'])} of {n}",
                    f"{found['decisions'] - found['changed']} of {found['decisions']}",
                    "**drifts**" if found["drift"] else "same",
                )
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines), drifts


def _laws(laws: list[tuple[str, bool, bool]] | None) -> str:
    """How many of `check`'s laws hold, of those that apply."""
    if laws is None:
        return "-"
    applied = [passed for _, passed, measured in laws if measured]
    return f"{sum(applied)} of {len(applied)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Bank, record or table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["bank", "record", "table"])
    parser.add_argument("stack", nargs="?", choices=STACKS, help="for record")
    parser.add_argument("--folder", type=Path, default=None, help="of the records; by default in the cache")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--page", type=Path, help="for table: a page with the two marks")
    given = parser.parse_args(arguments)
    folder = given.folder or default_folder()
    if given.what == "table":
        text, drifts = table(folder)
        print(text)
        if given.page:
            into_page(given.page, text)
        return int(drifts)
    if given.what == "record" and given.stack is None:
        parser.error(f"record which stack? Expected one of {', '.join(STACKS)}")
    for model in given.models:
        if given.what == "bank":
            write_bank(model, folder)
        else:
            record(given.stack, model, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
