"""The trials of docs/sae.md: a small SAE on SmolLM2, and its latents as concepts.

python docs/experiments/weights.py --model smollm2
python docs/experiments/sae_runs.py train --out runs
python docs/experiments/sae_runs.py detect --sae runs/sae.safetensors --out runs
python docs/experiments/sae_runs.py tables runs --into docs/sae.md

`train` reads tokens of the train split alone and writes the SAE and what it reconstructs; `detect`
prunes, scores, calibrates and evaluates its latents beside supervised kinds of the same layer;
`tables` writes both between the markers of a file. One core is enough: about ten minutes for
`train`, as many for `detect`. Everything is seeded; nothing is downloaded here.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from between_markers import show
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from trials import setting, signed, summed_up, unsigned, write

from sa_plugin._files import write_bytes
from sa_plugin.concepts import collect, sae_bank
from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector, calibrate, column_scores
from sa_plugin.host import Host, Site, attach
from sa_plugin.loaders import load
from sa_plugin.scores import ScoreTable, score
from sa_plugin.stages import Graph, Plan, markdown
from sa_plugin.statistics import Resampling
from sa_transformer_lens.host import load_bridge

BEGIN = "<!-- tables: written by docs/experiments/sae_runs.py tables -->"
END = "<!-- end of tables -->"
LAYER, LATENTS, ACTIVE = 14, 2048, 32


class TopKSAE(nn.Module):
    """`z = TopK(relu(W (h / s - b) + c))`, `h ~ s (V z + b)`; k latents of a token are active.

    Raw activations go in and come out: the scale `s` is part of the SAE.
    """

    scale: Tensor

    def __init__(self, d_model: int, latents: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.encoder = nn.Linear(d_model, latents)
        self.decoder = nn.Linear(latents, d_model)
        self.register_buffer("scale", torch.ones(()))

    def encode(self, h: Tensor) -> Tensor:
        """Latents `[*token, latent]` of raw activations, zero or above."""
        z = self.encoder(h / self.scale - self.decoder.bias).relu()
        best = z.topk(self.k, dim=-1)
        return torch.zeros_like(z).scatter_(-1, best.indices, best.values)

    def decode(self, z: Tensor) -> Tensor:
        """Raw activations."""
        resid: Tensor = self.scale * self.decoder(z)
        return resid


def train_sae(rows: np.ndarray, steps: int, batch: int, rate: float, seed: int) -> TopKSAE:
    """Adam on the squared error of normalised activations; decoder columns of length one."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    d_model = rows.shape[1]
    sae = TopKSAE(d_model, LATENTS, ACTIVE)
    whole = torch.from_numpy(rows.astype(np.float32))
    with torch.no_grad():
        sae.scale.copy_(whole.sub(whole.mean(0)).square().sum(-1).mean().sqrt())
        start = whole[torch.randperm(len(whole), generator=generator)[:LATENTS]] / sae.scale
        sae.decoder.bias.copy_(whole.mean(0) / sae.scale)
        columns = nn.functional.normalize(start - sae.decoder.bias, dim=-1)
        sae.decoder.weight.copy_(columns.T)
        sae.encoder.weight.copy_(columns)
        sae.encoder.bias.zero_()
    optimiser = torch.optim.Adam(sae.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for step in range(steps):
        h = whole[torch.randint(len(whole), (batch,), generator=generator)]
        loss = ((sae.decode(sae.encode(h)) - h) / sae.scale).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            sae.decoder.weight.div_(sae.decoder.weight.norm(dim=0, keepdim=True))
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    return sae.eval().requires_grad_(False)


def quality(sae: TopKSAE, rows: np.ndarray) -> dict[str, float]:
    """Explained variance, active latents a token, share of latents never active."""
    h = torch.from_numpy(rows.astype(np.float32))
    missed, total, active, ever = 0.0, 0.0, 0, torch.zeros(LATENTS, dtype=torch.bool)
    mean = h.mean(0)
    for part in torch.split(h, 4096):
        z = sae.encode(part)
        missed += float((sae.decode(z) - part).double().square().sum())
        total += float((part - mean).double().square().sum())
        active += int((z > 0).sum())
        ever |= (z > 0).any(0)
    return {
        "tokens": len(h),
        "R2": 1 - missed / total,
        "L0": active / len(h),
        "dead share": float((~ever).float().mean()),
    }


def rows_of(host: Host, data: ConceptData, name: str, layer: int = LAYER) -> np.ndarray:
    """Kept tokens' activations of one split, half precision."""
    samples = list(data.split(name).samples)
    one = ConceptData.from_samples(samples, data.concepts, ["train"] * len(samples))
    found = collect(host, one, layers=[layer], need=("means", "rows"))
    rows = found.token[0].rows
    assert rows is not None
    return np.asarray(rows.stored)


def train(arguments: argparse.Namespace) -> None:
    """Train on the train split, measure on all three."""
    began = time.time()
    host, data = attach(load_bridge("smollm2")), load("supersense")
    rows = rows_of(host, data, "train")
    sae = train_sae(rows, arguments.steps, arguments.batch, arguments.rate, arguments.seed)
    about = {
        "layer": LAYER,
        "site": host.hook_name(Site(LAYER, "resid_post")),
        "latents": LATENTS,
        "k": ACTIVE,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "rate": arguments.rate,
        "seed": arguments.seed,
        "data": data.hash[:12],
    }
    found = {"train": quality(sae, rows)}
    for name in ("cal", "test"):
        found[name] = quality(sae, rows_of(host, data, name))
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = save(sae.state_dict(), {"about": json.dumps(about)})
    write_bytes(arguments.out / "sae.safetensors", content)
    record = {"settings": {**about, "seconds": round(time.time() - began)}, "quality": found}
    write(record, arguments.out / "train.json")
    print(json.dumps(record, indent=1))


def load_sae(path: Path) -> TopKSAE:
    """The SAE that `train` wrote."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sae = TopKSAE(state["encoder.weight"].shape[1], about["latents"], about["k"])
    sae.load_state_dict(state)
    return sae.eval().requires_grad_(False)


def margins(detector: Detector, scores: ScoreTable) -> np.ndarray:
    """Highest score minus threshold of every scored sample, columns as the token labels'."""
    samples = scores.tokens.samples
    found = detector.detect(samples, scores=scores)
    place = {name: n for n, name in enumerate(found.samples)}
    rows = [place[s.id] for s in samples]
    at = [found.concepts.index(c) for c in scores.tokens.concepts]
    return np.asarray(np.maximum(found.margin[rows][:, at], -1e9))


def best_tokens(detector: Detector, cal: ScoreTable, concept: str, n: int = 6) -> list[str]:
    """Calibration tokens on which a concept's unit is strongest, each once."""
    k = detector.concepts.index(concept)
    layer, unit = detector.tail.layer[[k]], detector.tail.chosen_unit[[k]]
    order = column_scores(cal, layer, unit)[:, 0].argsort()[::-1]
    return list(dict.fromkeys(cal.tokens.text(int(row)).strip() for row in order[:60]))[:n]


def detect(arguments: argparse.Namespace) -> None:
    """Calibrate and evaluate latents beside a prototype and a separator of the same layer."""
    began = time.time()
    host, data = attach(load_bridge("smollm2")), load("supersense")
    sae = load_sae(arguments.sae)
    names = ["prototype", "separator"]
    made = Graph(host, data, Plan(names, [LAYER]))
    banks = [made.bank(kind) for kind in names]
    # Latents whose sinks are decided as the other kinds' are: the same layer.
    for rule in ("adaptive", "none"):
        banks.append(sae_bank(host, data, {LAYER: sae}, pruning=rule))
        names.append(f"sae, {rule}")
    tables = score(host, data, banks)
    record: dict[str, Any] = {"kinds": {}, "pruning": {}}
    for name, bank in zip(names[2:], banks[2:], strict=True):
        about = bank.origin.options
        record["pruning"][name] = {**about["layers"][LAYER], "limits": about["pruning"]}
    detectors: list[Detector] = []
    for name, bank, table in zip(names, banks, tables, strict=True):
        detector = calibrate(host, data, bank, scores=table)
        for other, one, theirs in zip(names, detectors, tables, strict=False):
            if other in names[:2] and name not in names[:2]:
                table = table.with_statistic(other, margins(one, theirs), threshold=0.0)
        found = detector.evaluate(data.test, scores=table)
        print(found.summary(), flush=True)
        record["kinds"][name] = summed_up(found)
        detectors.append(detector)
    chosen, cal = detectors[2], tables[2].split("cal")
    result = chosen.evaluate(data.test, scores=tables[2], resampling=Resampling(draws=200)).of(
        "SuperActivators"
    )
    record["units"] = [
        {
            **vars(chosen.choice(c)),
            "test_f1": result.concept["f1"].estimate[k],
            "tokens": best_tokens(chosen, cal, c),
        }
        for k, c in enumerate(chosen.concepts)
    ]
    record["settings"] = setting(data, LAYER, began)
    write(record, arguments.out / "detect.json")


METHODS = (
    "SuperActivators",
    "MaxTok",
    "MeanTok",
    "LastTok",
    "RandTok",
    "Top10%",
    "MaxTok permuted",
    "always-positive",
)


def tables(arguments: argparse.Namespace) -> None:
    """All results as Markdown, between the markers of a file or on the screen."""
    one = json.loads((arguments.folder / "train.json").read_text())
    two = json.loads((arguments.folder / "detect.json").read_text())
    text = "\n\n".join([*_training(one), *_detection(two)])
    show(text, arguments.into, BEGIN, END)


def _training(record: dict[str, Any]) -> list[str]:
    about = record["settings"]
    rows = [
        [name, f"{q['tokens']:,}", f"{q['R2']:.3f}", f"{q['L0']:.0f}", f"{q['dead share']:.3f}"]
        for name, q in record["quality"].items()
    ]
    return [
        f"`{about['site']}`, {about['latents']} latents, k = {about['k']}, {about['steps']} steps "
        f"of {about['batch']} tokens, learning rate {about['rate']:g}, seed {about['seed']}; "
        f"{about['seconds']} s on one shared core. Data {about['data']}.",
        markdown(["split", "tokens", "R2", "active a token", "never active"], rows),
    ]


def _detection(record: dict[str, Any]) -> list[str]:
    about = record["settings"]
    pruned = [
        [
            f"{name} ({_limits(p['limits'])})",
            str(p["latents"]),
            str(p["dead"]),
            str(p["ubiquitous"]),
            str(p["weak"]),
            str(p["kept"]),
        ]
        for name, p in record["pruning"].items()
    ]
    rows = []
    for name, found in record["kinds"].items():
        cells = [unsigned(found["SuperActivators"]["f1"])]
        cells += [f"{found[m]['f1'][0]:.3f}" if m in found else "-" for m in METHODS[1:]]
        rows.append([name, str(found["SuperActivators"]["candidates"]), *cells])
    differences = [
        [name, method, signed(found[method]["difference"])]
        for name, found in record["kinds"].items()
        if name.startswith("sae")
        for method in ("prototype", "separator", "MaxTok")
    ]
    units = [
        [
            u["concept"],
            u["unit"].removeprefix("latent "),
            f"{u['delta']:g}",
            str(u["n_cal_tokens"]),
            f"{u['cal_f1']:.3f}",
            f"{u['test_f1']:.3f}",
            ", ".join(t.replace("|", "\\|") for t in u["tokens"]),
        ]
        for u in record["units"]
    ]
    return [
        "Latents dropped, on the calibration split:",
        markdown(["pruning", "latents", "dead", "ubiquitous", "weak", "left"], pruned),
        f"Weighted F1 on test: {about['test']} passages of {about['documents']} documents, "
        f"thresholds, units and deltas chosen on {about['cal']} calibration passages; 95 % "
        f"intervals over documents. {about['seconds']} s. Data {about['data']}.",
        markdown(["kind", "candidates", METHODS[0], *METHODS[1:]], rows),
        "Weighted F1 of others minus that of the SAE's SuperActivators, paired:",
        markdown(["SAE", "other", "difference"], differences),
        "The latent matched to each concept (adaptive pruning), the calibration tokens behind its "
        "threshold, and the calibration tokens on which it is strongest:",
        markdown(["concept", "latent", "delta", "tokens", "cal F1", "test F1", "strongest on"], units),
    ]


def _limits(limits: dict[str, float]) -> str:
    return (
        f"dead below {limits['dead']} tokens, ubiquitous above {limits['ubiquitous']:.3f}, weak "
        f"below percentile {limits['weak']:g}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train")
    one.add_argument("--out", type=Path, default=Path("runs"))
    one.add_argument("--steps", type=int, default=1200)
    one.add_argument("--batch", type=int, default=1024)
    one.add_argument("--rate", type=float, default=1e-3)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=train)
    two = commands.add_parser("detect")
    two.add_argument("--sae", type=Path, default=Path("runs/sae.safetensors"))
    two.add_argument("--out", type=Path, default=Path("runs"))
    two.set_defaults(run=detect)
    three = commands.add_parser("tables")
    three.add_argument("folder", type=Path)
    three.add_argument("--into", type=Path)
    three.set_defaults(run=tables)
    arguments: Any = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
