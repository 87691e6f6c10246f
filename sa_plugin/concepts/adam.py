"""The paper's own recipe for a linear separator: Adam with minibatches, stopped by patience.

One linear layer without bias, initialised as `torch.nn.Linear` is, on as many rows in the concept
as outside it (the larger class undersampled); binary cross-entropy; Adam with learning rate 1e-3
times 0.8 every 5 epochs and weight decay 1e-4, batches of 64, at most 1,000 epochs. It stops once
F1 on its own rows reaches .99, or after 20 epochs in which the loss fell by less than 1e-3 below
its best (arXiv 2512.05038 and its authors' code, which draws unseeded).

The result depends on the draw, the order of batches and the moment of stopping; it is no optimum
of anything. The shrinking steps add up to .025, so a weight moves by about .025 times the batches
of an epoch at most: by .1 with a hundred rows in the concept (4 batches), and the loss ends not far
below log 2. `separator` is the optimum of the same loss. Kept to compare with published figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sa_plugin.concepts._rows import refuse_non_finite, stored_labels, stored_rows
from sa_plugin.concepts.statistics import LayerStatistics

F1_ENOUGH = 0.99
LEAST_GAIN = 1e-3
STEP_EPOCHS = 5
STEP_FACTOR = 0.8


def separator_adam(
    statistics: LayerStatistics,
    *,
    seed: int = 0,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    batch_rows: int = 64,
    max_epochs: int = 1000,
    patience: int = 20,
) -> tuple[Float[Tensor, "concept d_model"], dict[str, Any]]:
    """Train each concept's separator in turn.

    Args:
        statistics: With `rows` and `labels`.
        seed: Of the draw of rows, the first weights and the order of batches; each concept has its
            own stream, by its column.
        learning_rate: Of Adam, before its steps down.
        weight_decay: Of Adam.
        batch_rows: Rows in a batch.
        max_epochs: Epochs at most.
        patience: Epochs without gain after which training stops.

    Returns:
        Vectors in float32, and a record with the settings and, for each concept, `epochs`, the
        last epoch's `loss`, and `f1` and number of `rows` of its balanced train rows.

    Raises:
        ValueError: No rows, a row with NaN or Inf, a concept with one class only, or an option
            below 1.
    """
    for name, value in (
        ("batch_rows", batch_rows), ("max_epochs", max_epochs), ("patience", patience)
    ):  # fmt: skip
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be 1 or more.")
    rows = stored_rows(statistics, "separator_adam")
    labels = stored_labels(statistics, "separator_adam")
    vectors = []
    record: dict[str, list[Any]] = {"epochs": [], "loss": [], "f1": [], "rows": []}
    for column, inside in enumerate(labels.T):
        rng = np.random.default_rng([seed, column])
        drawn = _balanced(inside, rng)
        x = rows.take(drawn)
        refuse_non_finite(x, drawn, len(rows), "separator_adam")
        y = torch.tensor(inside[drawn], dtype=torch.float32)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        w, went = _train(
            x, y, generator, learning_rate, weight_decay, batch_rows, max_epochs, patience
        )
        vectors.append(w)
        for name, value in {**went, "rows": len(drawn)}.items():
            record[name].append(value)
    settings = {
        "seed": seed, "learning_rate": learning_rate, "weight_decay": weight_decay,
        "batch_rows": batch_rows, "max_epochs": max_epochs, "patience": patience,
    }  # fmt: skip
    return torch.stack(vectors), {**settings, **record}


def _balanced(inside: Bool[np.ndarray, " row"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Row numbers, ascending, of equally many rows of either class, without replacement."""
    classes = np.flatnonzero(inside), np.flatnonzero(~inside)
    size = min(map(len, classes))
    return np.sort(np.concatenate([rng.choice(c, size, replace=False) for c in classes]))


def _train(
    x: Float[Tensor, "row d_model"],
    y: Float[Tensor, " row"],
    generator: torch.Generator,
    learning_rate: float,
    weight_decay: float,
    batch_rows: int,
    max_epochs: int,
    patience: int,
) -> tuple[Float[Tensor, " d_model"], dict[str, Any]]:
    bound = x.shape[1] ** -0.5
    w = torch.empty(x.shape[1]).uniform_(-bound, bound, generator=generator).requires_grad_()
    adam = torch.optim.Adam([w], lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(adam, STEP_EPOCHS, STEP_FACTOR)
    epochs, best, waited, f1, loss = 0, float("inf"), 0, 0.0, float("nan")
    while epochs < max_epochs and waited < patience and f1 < F1_ENOUGH:
        loss = 0.0
        order = torch.randperm(len(x), generator=generator)
        for first in range(0, len(x), batch_rows):
            batch = order[first : first + batch_rows]
            adam.zero_grad()
            batch_loss = binary_cross_entropy_with_logits(x[batch] @ w, y[batch])
            batch_loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            loss += float(batch_loss.detach()) * len(batch) / len(x)
        schedule.step()
        f1 = _f1(x @ w.detach() > 0, y > 0)
        best, waited = (loss, 0) if best - loss > LEAST_GAIN else (best, waited + 1)
        epochs += 1
    return w.detach(), {"epochs": epochs, "loss": loss, "f1": f1}


def _f1(predicted: Bool[Tensor, " row"], true: Bool[Tensor, " row"]) -> float:
    hits = int((predicted & true).sum())
    return 2 * hits / max(1, int(predicted.sum()) + int(true.sum()))
