"""Small SAEs of SAELens's own classes on SmolLM2, saved and loaded by its calls, beside other concepts.

    python docs/experiments/saelens_runs.py OUT [--passages 900] [--steps 600] [--block 12]

Needs an environment with SAELens (`pip install "sa_plugin[transformer-lens]" sae-lens`). Trains a
standard, a TopK and a JumpReLU SAE on the train split's activations, states explained variance and L0
on train and calibration, and prints the detection of prototype, separator and those SAEs that explain
at least .7 of calibration; what explains less is a smoke test and stands in no table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sae_runs import rows_of
from torch import Tensor

import sa_plugin as sa
from sa_plugin.concepts import sae_bank
from sa_plugin.loaders import load

ENOUGH = 0.7
LATENTS = 2048
BATCH = 512
# What each kind has of its own, and its learning rate.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "Standard": ({"l1_coefficient": 0.5}, 1e-3),
    "TopK": ({"k": 48}, 1e-3),
    "JumpReLU": ({"l0_coefficient": 0.5, "l0_warm_up_steps": 0}, 1e-3),
}


def batches(rows: Tensor, seed: int = 0) -> Iterator[Tensor]:
    """The rows in random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for begin in range(0, len(rows) - BATCH + 1, BATCH):
            yield rows[order[begin : begin + BATCH]]


def trained(kind: str, rows: Tensor, hook: str, steps: int) -> Any:
    """An SAE of one of SAELens's classes, by its own trainer."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    more, rate = KINDS[kind]
    cfg = getattr(sae_lens, f"{kind}TrainingSAEConfig")(
        d_in=rows.shape[1],
        d_sae=LATENTS,
        apply_b_dec_to_input=True,
        normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(hook_name=hook, model_name="smollm2", model_class_name="HookedTransformer"),
        **more,
    )
    torch.manual_seed(0)
    trainer = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=rate,
        lr_end=rate / 10,
        lr_warm_up_steps=20,
        lr_decay_steps=steps // 3,
        n_batches_for_norm_estimate=10,
        logger=sae_lens.LoggingConfig(log_to_wandb=False),
    )
    sae = getattr(sae_lens, f"{kind}TrainingSAE")(cfg)
    return SAETrainer(cfg=trainer, sae=sae, data_provider=batches(rows)).fit()


def quality(sae: Any, rows: Tensor) -> dict[str, float]:
    """Explained variance, active latents a token, and latents that are ever active."""
    with torch.no_grad():
        latents = sae.encode(rows)
        left = (rows - sae.decode(latents)).square().sum()
    whole = (rows - rows.mean(0)).square().sum()
    on = latents > 0
    return {
        "explained": float(1 - left / whole),
        "L0": float(on.float().sum(-1).mean()),
        "alive": int(on.any(0).sum()),
    }


def main() -> None:
    """Train, save, load, score."""
    from sae_lens import SAE, HookedSAETransformer

    from sa_transformer_lens import load_hooked

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--passages", type=int, default=900)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--block", type=int, default=12)
    given = parser.parse_args()
    host = sa.attach(load_hooked("smollm2", cls=HookedSAETransformer), progress=False)
    data = load("supersense").subset(given.passages)
    rows = {
        split: torch.from_numpy(rows_of(host, data, split, given.block)).float() for split in ("train", "cal")
    }
    print({split: len(one) for split, one in rows.items()}, flush=True)
    banks = {kind: sa.fit(host, data, kind, layers=[given.block]) for kind in ("prototype", "separator")}
    record: dict[str, Any] = {}
    for kind in KINDS:
        folder = given.out / kind
        sae = trained(kind, rows["train"], f"blocks.{given.block}.hook_resid_post", given.steps)
        sae.save_inference_model(folder)
        loaded = SAE.load_from_disk(str(folder))
        record[kind] = {split: quality(loaded, one) for split, one in rows.items()}
        print(kind, json.dumps(record[kind]), flush=True)
        if record[kind]["cal"]["explained"] < ENOUGH:
            print(f"{kind}: explains less than {ENOUGH}: a smoke test, left out of the table", flush=True)
            continue
        try:
            banks[f"SAE, {kind}"] = sae_bank(host, data, {given.block: loaded})
        except ValueError as error:
            # Too dense: every latent is active at more tokens than any concept.
            print(f"{kind}: {error}", flush=True)
    for name, bank in banks.items():
        table = sa.score(host, data, bank)
        detector = sa.calibrate(host, data, bank, scores=table)
        print(name, detector.evaluate(data.test, scores=table), flush=True)
    (given.out / "quality.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
