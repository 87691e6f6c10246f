"""The trials of docs/findings/sae.md: small SAEs of SAELens's classes on SmolLM2, their latents as concepts.

    python docs/experiments/weights.py --model smollm2
    python docs/experiments/sae_runs.py rows --out runs
    python docs/experiments/sae_runs.py train TopK --out runs        # Standard and JumpReLU too
    python docs/experiments/sae_runs.py detect --out runs
    python docs/experiments/sae_runs.py tables runs --into docs/findings/sae.md

Needs SAELens: `pip install "sa_plugin[transformer-lens,nnsight]" sae-lens`, which takes TransformerLens
3.9. `rows` writes the activations of each split. `train` lets SAELens train an SAE on the train split's
alone, saves it by its call, loads it again, and writes what it reconstructs; with `--trial` it leaves
a tenth of the train documents out and measures on them instead, which is how the numbers of `KINDS`
were chosen. `detect` prunes, scores, calibrates and evaluates the latents of every SAE that explains
enough beside supervised kinds of the same layer; `tables` writes all between the markers of a file.
One core is enough. Everything is seeded; nothing is downloaded here.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from between_markers import show
from torch import Tensor
from trials import setting, signed, summed_up, unsigned, write

from sa_plugin.concepts import collect, sae_bank
from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector, calibrate, column_scores
from sa_plugin.host import Host, attach
from sa_plugin.loaders import load
from sa_plugin.scores import ScoreTable, score
from sa_plugin.stages import Graph, Plan, markdown
from sa_plugin.statistics import Resampling

BEGIN = "<!-- tables: written by docs/experiments/sae_runs.py tables -->"
END = "<!-- end of tables -->"
LAYER, LATENTS, BATCH, RATE = 14, 2048, 512, 1e-3
SITE = f"blocks.{LAYER}.hook_resid_post"
# What explains less of the calibration split's variance is a smoke test and stands in no table.
ENOUGH = 0.7
# What each of SAELens's classes has of its own: how sparse its latents are.
KINDS: dict[str, dict[str, Any]] = {
    "Standard": {"l1_coefficient": 2.0},
    "TopK": {"k": 48},
    "JumpReLU": {
        "jumprelu_sparsity_loss_mode": "quadratic",
        "target_l0": 48.0,
        "l0_coefficient": 0.5,
        "jumprelu_ste_to_input": True,
    },
}


def batches(rows: Tensor, seed: int) -> Iterator[Tensor]:
    """The rows in random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for some in torch.split(torch.randperm(len(rows), generator=generator), BATCH):
            yield rows[some].float()


def train_sae(kind: str, rows: np.ndarray, steps: int, seed: int) -> Any:
    """An SAE of one of SAELens's classes, by its own trainer."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    whole = torch.from_numpy(rows)
    cfg = getattr(sae_lens, f"{kind}TrainingSAEConfig")(
        d_in=rows.shape[1],
        d_sae=LATENTS,
        apply_b_dec_to_input=True,
        normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(
            hook_name=SITE, model_name="smollm2", model_class_name="HookedTransformer", prepend_bos=False
        ),
        **KINDS[kind],
    )
    sae = getattr(sae_lens, f"{kind}TrainingSAE")(cfg)
    # A short training would spend itself on the mean; activations come scaled to a norm of sqrt(d_in).
    with torch.no_grad():
        sae.b_dec.copy_(whole.mean(0) * (cfg.d_in**0.5 / whole.norm(dim=-1).mean()))
    trainer = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=RATE,
        lr_end=RATE / 20,
        lr_warm_up_steps=50,
        lr_decay_steps=steps // 2,
        dead_feature_window=200,
        n_batches_for_norm_estimate=50,
        logger=sae_lens.LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg=trainer, sae=sae, data_provider=batches(whole, seed)).fit()


def saved(sae: Any, folder: Path) -> Any:
    """Save an SAE by SAELens's call, and load it by SAELens's call."""
    from sae_lens import SAE

    sae.save_inference_model(folder)
    return SAE.load_from_disk(str(folder))


def quality(sae: Any, rows: np.ndarray) -> dict[str, float]:
    """Explained variance, active latents a token, share of latents never active."""
    h = torch.from_numpy(rows.astype(np.float32))
    missed, total, active, ever = 0.0, 0.0, 0, torch.zeros(LATENTS, dtype=torch.bool)
    mean = h.mean(0)
    with torch.no_grad():
        for part in torch.split(h, 4096):
            z = sae.encode(part)
            missed += float((sae.decode(z) - part).double().square().sum())
            total += float((part - mean).double().square().sum())
            active += int((z > 0).sum())
            ever |= (z > 0).any(0)
    return {
        "tokens": len(h),
        "explained": 1 - missed / total,
        "L0": active / len(h),
        "dead share": float((~ever).float().mean()),
    }


def hooked_host() -> Host:
    """SmolLM2 as SAELens has it."""
    from sae_lens import HookedSAETransformer

    from sa_transformer_lens import load_hooked

    return attach(load_hooked("smollm2", cls=HookedSAETransformer), progress=False)


def collect_rows(arguments: argparse.Namespace) -> None:
    """Kept tokens' activations, no sinks and no special tokens; a tenth of the train documents apart."""
    host, data = hooked_host(), load("supersense")
    apart = set(sorted({one.document for one in data.train.samples})[::10])
    parts = {
        "most": [one for one in data.train.samples if one.document not in apart],
        "apart": [one for one in data.train.samples if one.document in apart],
        "cal": list(data.cal.samples),
        "test": list(data.test.samples),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, samples in parts.items():
        one = ConceptData.from_samples(samples, data.concepts, ["train"] * len(samples))
        found = collect(host, one, layers=[LAYER], need=("means", "rows")).token[0].rows
        assert found is not None
        np.save(arguments.out / f"{name}.npy", np.asarray(found.stored))
        print(f"{name}: {len(found.stored):,} tokens of {len(samples)} passages", flush=True)


def train(arguments: argparse.Namespace) -> None:
    """Train on the train split, measure on all three; or on two parts of the train split."""
    began = time.time()
    rows = {name: np.load(arguments.out / f"{name}.npy") for name in ("most", "apart", "cal", "test")}
    most, apart = rows.pop("most"), rows.pop("apart")
    if arguments.trial:
        rows = {"train": most, "apart": apart}
    else:
        rows = {"train": np.concatenate([most, apart]), **rows}
    sae = train_sae(arguments.kind, rows["train"], arguments.steps, arguments.seed)
    sae = saved(sae, arguments.out / arguments.kind)
    settings = {
        "kind": arguments.kind,
        "site": SITE,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "seconds": round(time.time() - began),
        **KINDS[arguments.kind],
    }
    record = {"settings": settings, "quality": {name: quality(sae, one) for name, one in rows.items()}}
    name = f"trial_{arguments.kind}" if arguments.trial else arguments.kind
    write(record, arguments.out / f"{name}.json")
    print(json.dumps(record, indent=1), flush=True)


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
    from sae_lens import SAE

    began = time.time()
    host, data = hooked_host(), load("supersense")
    data = data if arguments.passages is None else data.subset(arguments.passages)
    names = ["prototype", "separator"]
    made = Graph(host, data, Plan(names, [LAYER]))
    banks = [made.bank(kind) for kind in names]
    record: dict[str, Any] = {"kinds": {}, "pruning": {}, "units": {}}
    for kind in KINDS:
        trained = json.loads((arguments.out / f"{kind}.json").read_text())
        if trained["quality"]["cal"]["explained"] < ENOUGH:
            print(f"{kind} explains less than {ENOUGH} of calibration: in no table", flush=True)
            continue
        sae = SAE.load_from_disk(str(arguments.out / kind))
        for rule in ("adaptive", "none"):
            bank = sae_bank(host, data, {LAYER: sae}, pruning=rule)
            about, name = bank.origin.options, f"{kind}, {rule}"
            record["pruning"][name] = {**about["layers"][LAYER], "limits": about["pruning"]}
            banks.append(bank)
            names.append(name)
    tables = score(host, data, banks)
    detectors: list[Detector] = []
    for name, bank, table in zip(names, banks, tables, strict=True):
        detector = calibrate(host, data, bank, scores=table)
        if name not in names[:2]:
            for other, one, theirs in zip(names[:2], detectors, tables, strict=False):
                table = table.with_statistic(other, margins(one, theirs), threshold=0.0)
        found = detector.evaluate(data.test, scores=table)
        print(f"{name}\n{found.summary()}", flush=True)
        record["kinds"][name] = summed_up(found)
        detectors.append(detector)
        if name.endswith("adaptive"):
            record["units"][name] = units_of(detector, table, data)
    record["settings"] = {**setting(data, LAYER, began), "train": len(data.train)}
    write(record, arguments.out / "detect.json")


def units_of(detector: Detector, scores: ScoreTable, data: ConceptData) -> list[dict[str, Any]]:
    """The latent of each concept, its F1 on test, and the calibration tokens it is strongest on."""
    result = detector.evaluate(data.test, scores=scores, resampling=Resampling(draws=200))
    f1, cal = result.of("SuperActivators").concept["f1"].estimate, scores.split("cal")
    return [
        {**vars(detector.choice(c)), "test_f1": f1[k], "tokens": best_tokens(detector, cal, c)}
        for k, c in enumerate(detector.concepts)
    ]


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
OTHERS = ("prototype", "separator", "MaxTok")


def tables(arguments: argparse.Namespace) -> None:
    """All results as Markdown, between the markers of a file or on the screen."""
    trained = [json.loads((arguments.folder / f"{kind}.json").read_text()) for kind in KINDS]
    found = json.loads((arguments.folder / "detect.json").read_text())
    show("\n\n".join([*_training(trained), *_detection(found)]), arguments.into, BEGIN, END)


def _training(records: list[dict[str, Any]]) -> list[str]:
    about = records[0]["settings"]
    own = [
        " ".join([kind, *(f"`{name}={value}`" for name, value in more.items())])
        for kind, more in KINDS.items()
    ]
    rows = [
        [
            one["settings"]["kind"],
            name,
            f"{q['tokens']:,}",
            f"{q['explained']:.3f}",
            f"{q['L0']:.1f}",
            f"{q['dead share']:.3f}",
        ]
        for one in records
        for name, q in one["quality"].items()
    ]
    return [
        f"`{about['site']}`, {LATENTS} latents, {about['steps']} steps of {BATCH} tokens, learning rate "
        f"{RATE:g}, seed {about['seed']}. {'; '.join(own)}. "
        f"{', '.join(str(one['settings']['seconds']) for one in records)} s on one shared core.",
        markdown(["SAE", "split", "tokens", "explained", "active a token", "never active"], rows),
    ]


def _detection(record: dict[str, Any]) -> list[str]:
    about = record["settings"]
    counts = ("latents", "dead", "ubiquitous", "weak", "kept")
    pruned = [
        [f"{name} ({_limits(p['limits'])})", *(str(p[one]) for one in counts)]
        for name, p in record["pruning"].items()
    ]
    rows = []
    for name, found in record["kinds"].items():
        cells = [unsigned(found["SuperActivators"]["f1"])]
        cells += [f"{found[m]['f1'][0]:.3f}" if m in found else "-" for m in METHODS[1:]]
        rows.append([name, str(found["SuperActivators"]["candidates"]), *cells])
    differences = [
        [name, *(signed(record["kinds"][name][method]["difference"]) for method in OTHERS)]
        for name in record["pruning"]
    ]
    return [
        "Latents dropped, on the calibration split:",
        markdown(["SAE, pruning", *counts[:-1], "left"], pruned),
        f"Weighted F1 on test: {about['test']} passages of {about['documents']} documents; thresholds, units "
        f"and deltas chosen on {about['cal']} calibration passages, vectors of {about['train']}; 95 % "
        f"intervals over documents. {about['seconds']} s. Data {about['data']}.",
        markdown(["kind", "candidates", *METHODS], rows),
        "Weighted F1 of others minus that of the SAE's SuperActivators, same resamples:",
        markdown(["SAE", *OTHERS], differences),
        *(text for name, units in record["units"].items() for text in _units(name, units)),
    ]


def _units(name: str, units: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            u["concept"],
            u["unit"].removeprefix("latent "),
            f"{u['delta']:g}",
            str(u["n_cal_tokens"]),
            f"{u['cal_f1']:.3f}",
            f"{u['test_f1']:.3f}",
            ", ".join(t.replace("|", "\\|") for t in u["tokens"]),
        ]
        for u in units
    ]
    return [
        f"The latent matched to each concept ({name}), the calibration tokens behind its threshold, and "
        "the calibration tokens on which it is strongest:",
        markdown(["concept", "latent", "delta", "tokens", "cal F1", "test F1", "strongest on"], rows),
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
    none = commands.add_parser("rows")
    none.add_argument("--out", type=Path, default=Path("runs"))
    none.set_defaults(run=collect_rows)
    one = commands.add_parser("train")
    one.add_argument("kind", choices=list(KINDS))
    one.add_argument("--out", type=Path, default=Path("runs"))
    one.add_argument("--steps", type=int, default=500)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--trial", action="store_true", help="measure on a tenth of the train documents")
    one.set_defaults(run=train)
    two = commands.add_parser("detect")
    two.add_argument("--out", type=Path, default=Path("runs"))
    two.add_argument("--passages", type=int, help="by default all 2,400")
    two.set_defaults(run=detect)
    three = commands.add_parser("tables")
    three.add_argument("folder", type=Path)
    three.add_argument("--into", type=Path)
    three.set_defaults(run=tables)
    arguments: Any = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
