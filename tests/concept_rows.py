"""Train statistics of synthetic rows, for the tests of the concept kinds."""

import numpy as np
import torch

from sa_plugin.concepts import LayerStatistics, Rows


def make_rows(
    n_rows: int = 1500,
    d_model: int = 24,
    shares: tuple[float, ...] = (0.5, 0.2, 0.05),
    *,
    orders: float = 2.0,
    noise: float = 0.5,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Raw rows off the origin, deviations over `orders` magnitudes, and noisy planted labels."""
    rng = np.random.default_rng(seed)
    deviation = np.logspace(0, -orders, d_model)
    h = rng.normal(size=(n_rows, d_model)) * deviation
    planted = rng.normal(size=(d_model, len(shares))) / deviation[:, None] / d_model**0.5
    noisy = h @ planted + noise * rng.normal(size=(n_rows, len(shares)))
    cuts = [np.quantile(column, 1 - p) for column, p in zip(noisy.T, shares, strict=True)]
    return (h + rng.normal(size=d_model)).astype(np.float32), noisy > cuts


def statistics_of(
    h: np.ndarray, labels: np.ndarray, *, chunk: int = 32_768, scale: float | None = None
) -> LayerStatistics:
    """What the train pass leaves of rows it stores as they are."""
    exact = h.astype(np.float64)
    mean = torch.from_numpy(exact.mean(0))
    scale = scale or float(np.sqrt((exact**2).sum(1).mean()))
    count = labels.sum(0)
    positive = labels.T.astype(np.float64) @ exact / np.maximum(count, 1)[:, None]
    gram = torch.from_numpy(exact.T @ exact / len(h))
    return LayerStatistics(
        len(h),
        mean,
        scale,
        torch.from_numpy(count),
        torch.from_numpy(positive),
        gram,
        Rows(h, mean, scale, chunk),
        labels,
    )


def normalised(statistics: LayerStatistics) -> np.ndarray:
    """The rows in float64, by the definition."""
    rows = statistics.rows
    return (rows.stored.astype(np.float64) - rows.mean.numpy()) / rows.scale


def cosines(a: torch.Tensor, b: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Cosine of each row of `a` with that of `b`."""
    return torch.cosine_similarity(a.double(), torch.as_tensor(b).double(), dim=-1)
