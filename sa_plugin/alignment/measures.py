"""From the sums of the pass to numbers with intervals over source documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from sa_plugin.alignment.data_side import DataSums
from sa_plugin.alignment.moments import Slope, slopes
from sa_plugin.heads.effects import Estimate
from sa_plugin.statistics import Resamples, document_sums, percentile_bounds

SIGNS = ("positive", "negative")


@dataclass(frozen=True, eq=False)
class DataSide:
    """What heads do with real tokens; arrays `[block, head, concept]`.

    Attributes:
        slope: Logit for one standard deviation of each token's activation, see `moments.py`.
        correlation: Partial correlation of logit and product; squared it is the partial R^2.
        p_control: Share of permuted-label directions with at least this correlation.
        lift: Attention on the top tokens beyond chance, by the query's sign, sinks left out.
        lift_whole: The same with sinks and special tokens in.
        write_share: Share of the block's update along the concept that the head wrote.
        deviation: Standard deviation of the activations, `[block, concept]`.
        scales: Mean scale of the norm before, and of the norms behind attention, `[block, 2]`.
        underflow: Share of logits that underflowed.
        n_tokens: Kept tokens.
    """

    slope: Estimate
    correlation: Float64[np.ndarray, "block head concept"]
    p_control: Float64[np.ndarray, "block head concept"]
    lift: Mapping[str, Estimate]
    lift_whole: Mapping[str, Estimate]
    write_share: Estimate
    deviation: Float64[np.ndarray, "block concept"]
    scales: Float64[np.ndarray, "block 2"]
    underflow: float
    n_tokens: int


def data_side(sums: DataSums, resamples: Resamples, n_control: int) -> DataSide:
    """Estimates and intervals, block by block.

    Args:
        sums: Of the pass.
        resamples: Draws of documents, over the samples of the pass.
        n_control: Permuted-label directions a concept.
    """
    found, n_blocks = sums.of_samples, len(sums.of_samples["gram"])
    n = found["tokens"][0].astype(np.float64).sum()
    total = found["activation"].astype(np.float64).sum(1)
    mean = total[..., 0] / n
    deviation = np.sqrt(np.maximum(total[..., 1] / n - mean**2, 0.0))
    drawn = resamples.with_data()
    rows = [_block(found, k, drawn, deviation[k]) for k in range(n_blocks)]
    estimates = {name: _joined([row[name] for row in rows]) for name in rows[0]}
    own = slopes(*(found[name].sum(1) for name in ("gram", "cross", "square"))).correlation
    lost, pairs = found["pairs"].astype(np.float64).sum((0, 1))
    return DataSide(
        estimates["slope"],
        own,
        _beside_control(own, sums, n_control),
        {sign: estimates[f"kept {sign}"] for sign in SIGNS},
        {sign: estimates[f"whole {sign}"] for sign in SIGNS},
        estimates["share"],
        deviation,
        found["scales"].astype(np.float64).sum(1) / n,
        float(lost / pairs) if pairs else 0.0,
        int(n),
    )


def _beside_control(
    own: Float64[np.ndarray, "block head concept"], sums: DataSums, n_control: int
) -> Float64[np.ndarray, "block head concept"]:
    """`(1 + #{control >= own}) / (1 + n_control)`; columns of the control are draw by draw."""
    control = slopes(*(sums.of_control[name] for name in ("gram", "cross", "square"))).correlation
    by_draw = control.reshape(*control.shape[:2], n_control, own.shape[-1])
    reached = (by_draw >= own[:, :, None]).sum(2)
    return np.where(np.isnan(own), np.nan, (1.0 + reached) / (1 + n_control))


def _block(
    found: Mapping[str, np.ndarray],
    k: int,
    resamples: Resamples,
    deviation: Float64[np.ndarray, " concept"],
) -> dict[str, Float64[np.ndarray, "draw head concept"]]:
    """Every statistic of one block in every draw; draw 0 is the data as they are."""
    names = ("gram", "cross", "square", "mass kept", "mass whole", "mass queries", "write",
             "change", "tokens")  # fmt: skip
    drawn = {name: _resampled(found[name][k], resamples) for name in names}
    fitted: Slope = slopes(drawn["gram"], drawn["cross"], drawn["square"])
    out = {"slope": fitted.slope * deviation**2, "share": _share(drawn)}
    for part in ("kept", "whole"):
        for s, sign in enumerate(SIGNS):
            queries = drawn["mass queries"][..., s][:, None]
            lifted = np.where(queries > 0, queries, np.nan)
            out[f"{part} {sign}"] = drawn[f"mass {part}"][..., s] / lifted
    return out


def _share(drawn: Mapping[str, np.ndarray]) -> Float64[np.ndarray, "draw head concept"]:
    n = drawn["tokens"][:, None]
    wrote, together = drawn["write"][..., 0], drawn["write"][..., 1]
    change, square = drawn["change"][..., 0], drawn["change"][..., 1]
    covariance = together - wrote * (change / n)[:, None]
    variance = (square - change**2 / n)[:, None]
    return np.asarray(covariance / np.where(variance > 0, variance, np.nan))


def _resampled(
    values: Float[np.ndarray, "sample ..."], resamples: Resamples
) -> Float64[np.ndarray, "draw ..."]:
    by_document = document_sums(np.moveaxis(values.astype(np.float64), 0, -1), resamples)
    return np.moveaxis(by_document @ resamples.weights.T.astype(np.float64), -1, 0)


def _joined(blocks: list[Float64[np.ndarray, "draw head concept"]]) -> Estimate:
    """Draw 0 as the value, the others as the interval; blocks first."""
    bounds = [percentile_bounds(np.moveaxis(one[1:], 0, -1)) for one in blocks]
    return Estimate(
        np.stack([one[0] for one in blocks]),
        np.stack([low for low, _ in bounds]),
        np.stack([high for _, high in bounds]),
    )
