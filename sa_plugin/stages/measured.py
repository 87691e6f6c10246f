"""What a study measures of the paper's claims: small deltas, few SuperActivators, a tail that stands apart.

Where detection is best along delta (`delta_peaks`): at the layer `l` with the best mean calibration
F1 (`sweep.best_layer`), with one delta d for all concepts, on test:

    curve(d) = sum_c n_c F1_c(d) / sum_c n_c,      n_c positive test samples of concept c
    peak_c   = argmax_d F1_c(d), ties to the smaller d       (arXiv 2512.05038, peak histogram)
    gain     = curve(d_small) - curve(d_large)

with `d_small` the best delta up to .1 and `d_large` the best from .3, both by mean calibration F1
at `l`. `peak_c` is picked on the samples it is counted on, as published: a histogram of it
describes these samples. `gain` is not, and its interval is paired: both F1 are recomputed without
the same document.

Where the peak can lie depends on the data. Of N_in in-concept calibration tokens delta * N_in
reach the threshold, so at most `m * delta` of the N_pos positive samples can be found through a
token of the concept, `m = N_in / N_pos`: where a sample holds one or two such tokens, a small delta
must miss most samples, and its F1 is low whatever the model does. `tokens_per_positive` is m.

What this does not show: that tokens outside the tail hold no evidence. A large delta lowers the
threshold of a maximum; it does not average over more tokens.

How few of a sample's in-concept tokens are SuperActivators (`density`).

    r_all = |SA| / |in|,   r_in = |SA and in| / |in|,      samples with |in| > 0 in-concept tokens
    share(x) = mean over concepts of the share of a concept's samples with r <= x

`sa_plugin.detection.evaluate` has the whole distribution; here are the shares at some x with
intervals over source documents. The paper says that most samples lie below .2 (arXiv 2512.05038).

A low r_in is a property of the chosen delta as much as of the model: delta of in-concept
calibration tokens reach the threshold by construction.

How far a concept's tail stands apart at the detector's best layer (`separation`, of a trace).

- `in_mass`: share of in-concept test tokens above q, the .995 quantile of out-of-concept
  calibration scores; `realised_fpr` is the share of out-of-concept test tokens above q.
- `coverage_difference`: share of positive samples with a token above q minus that of negative ones.

Means over concepts, weighted by positive test samples; the difference is paired by column. `in_mass`
measures a separation, not a precision: rare concepts have few in-concept tokens among all above q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from sa_plugin._face import face
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import document_names, known_tokens, labels_of
from sa_plugin.detection.measures import averaged, f1_of, positives_of
from sa_plugin.detection.methods import TAIL, values
from sa_plugin.detection.sweep import best_layer
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet
from sa_plugin.statistics.bootstrap import resample_documents, resampled_confusion, resampled_sums
from sa_plugin.statistics.confusion import reaches
from sa_plugin.statistics.drawn import Drawn, Resampling
from sa_plugin.tracing.tail_trace import TailTrace

SMALL, LARGE = 0.1, 0.3


@dataclass(frozen=True, eq=False, repr=False)
class DeltaPeaks(Result):
    """Where detection is best along delta, at one layer.

    Attributes:
        layer: Block index.
        deltas: The grid.
        on_test: Number of concepts whose test F1 is best at each delta.
        on_cal: Number of concepts whose calibration F1, at this layer, is best at each delta.
        small_share: Share of concepts whose test peak is at most .1.
        large_share: Share of concepts whose test peak is at least .3.
        small: Best shared delta up to .1, by calibration.
        large: Best shared delta from .3, by calibration.
        gain: Test F1 at `small` minus test F1 at `large`.
    """

    layer: int
    deltas: tuple[float, ...]
    on_test: Int[np.ndarray, " delta"]
    on_cal: Int[np.ndarray, " delta"]
    small_share: Drawn
    large_share: Drawn
    small: float
    large: float
    gain: Drawn

    about: ClassVar[str] = "Peaks are picked on the samples they are counted on; the gain is not."

    def headline(self) -> str:
        """Share of small peaks and the gain."""
        return (
            f"layer {self.layer}, {self.small_share.estimate:.0%} of concepts peak at "
            f"delta <= {SMALL:g}, F1 at {self.small:g} minus at {self.large:g}: {self.gain}"
        )

    def sheets(self) -> Sequence[Sheet]:
        """Concepts by the delta of their best F1."""
        rows = [
            [f"{d:g}", str(a), str(b)] for d, a, b in zip(self.deltas, self.on_test, self.on_cal, strict=True)
        ]
        return [Sheet(["delta", "concepts, test", "concepts, calibration"], rows, self.headline())]

    def plot(self) -> Any:
        """Concepts by the delta of their best F1, on test and on calibration."""
        figure, ax = plots.new_figure(6.0, 3.2)
        at = np.arange(len(self.deltas))
        ax.bar(at - 0.2, self.on_test, 0.4, color=plots.TAIL_COLOUR, label="test (picked there)")
        ax.bar(at + 0.2, self.on_cal, 0.4, color=plots.OUT_COLOUR, label="calibration")
        ax.set_xticks(at, [f"{d:g}" for d in self.deltas])
        plots.words(ax, title=f"layer {self.layer}", x="delta of the best F1", y="concepts")
        plots.legend(ax, outside=False)
        return figure


@face
def delta_peaks(detector: Detector, table: ScoreTable, resampling: Resampling = Resampling()) -> DeltaPeaks:
    """Peaks and the gain of a small delta on held-out samples.

    Args:
        detector: Calibrated on a grid with deltas up to .1 and from .3.
        table: Scores of the test split.
        resampling: How intervals are made.

    Raises:
        ValueError: The grid lacks small or large deltas.
    """
    tail, place = detector.tail, best_layer(detector.tail)
    grid = np.array(tail.deltas)
    if not ((grid <= SMALL).any() and (grid >= LARGE).any()):
        raise ValueError(
            f"the grid of deltas {tail.deltas} has none up to {SMALL} or none from {LARGE}: "
            "calibrate with both."
        )
    _, labels = labels_of(table, detector.concepts)
    resamples = resample_documents(document_names(table.tokens), resampling)
    unit, at = tail.at_layer(place)
    value = values(TAIL, table, np.full(len(unit), place), unit).astype(np.float64)
    fired = reaches(value.T, tail.thresholds[at][..., None])
    f1 = f1_of(resampled_confusion(fired, labels.T, resamples))
    positives = positives_of(labels, resamples)
    curve = averaged(f1, positives, "weighted")
    peak, carried = _peaks(f1, tail.deltas), resamples.rows(labels.sum(1))
    on_cal = tail.f1[at].mean(-1)
    small, large = (int(np.where(part, on_cal, -1.0).argmax()) for part in (grid <= SMALL, grid >= LARGE))
    return DeltaPeaks(
        detector.bank.layers[place],
        tail.deltas,
        _histogram(peak[:, 0], tail.deltas),
        np.bincount(tail.f1[at].argmax(0), minlength=len(tail.deltas)),
        resamples.drawn(_share(peak, peak <= SMALL), "share", carried),
        resamples.drawn(_share(peak, peak >= LARGE), "share", carried),
        tail.deltas[small],
        tail.deltas[large],
        resamples.drawn(curve[small] - curve[large], "difference", carried),
    )


def tokens_per_positive(table: ScoreTable) -> tuple[float, dict[str, float]]:
    """In-concept tokens a positive sample: of all concepts together, and by concept.

    Samples with tokens whose label is unknown are left out.

    Args:
        table: Scores of the calibration split.
    """
    labels, positive, known = table.tokens.labels, table.tokens.sample_labels, table.tokens.known
    if known is not None:
        sure = np.add.reduceat(~known, table.tokens.bounds[:-1], axis=0) == 0
        labels, positive = labels & sure[table.tokens.sample_of], positive & sure
    tokens, samples = labels.sum(0), positive.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = tokens / samples
    found = dict(zip(table.tokens.concepts, map(float, each), strict=True))
    return float(tokens.sum() / max(1, samples.sum())), found


def _peaks(
    f1: Float[np.ndarray, "delta concept column"], deltas: tuple[float, ...]
) -> Float[np.ndarray, "concept column"]:
    known = np.isfinite(f1).all(0)
    best = np.where(known, f1, 0.0).argmax(0)
    return np.where(known, np.array(deltas)[best], np.nan)


def _share(
    peak: Float[np.ndarray, "concept column"], marked: Bool[np.ndarray, "concept column"]
) -> Float[np.ndarray, " column"]:
    known = np.isfinite(peak).sum(0)
    return np.where(known > 0, marked.sum(0) / np.maximum(known, 1), np.nan)


def _histogram(peak: Float[np.ndarray, " concept"], deltas: tuple[float, ...]) -> Int[np.ndarray, " delta"]:
    found = peak[np.isfinite(peak)]
    return np.bincount(np.searchsorted(deltas, found), minlength=len(deltas))


AT = (0.1, 0.2, 0.5)
SEPARATING = ("in_mass_at_fpr", "realised_fpr", "coverage", "negative_coverage", "auroc")


def density(
    detector: Detector, table: ScoreTable, resampling: Resampling = Resampling()
) -> dict[str, dict[str, Drawn]]:
    """Shares of positive samples with r <= x, by "all" or "inside" and x.

    Args:
        detector: Calibrated.
        table: Scores of the test split.
        resampling: How intervals are made.
    """
    token_labels, labels = labels_of(table, detector.concepts)
    tail, starts = detector.superactivators(table), table.tokens.bounds[:-1]

    def total(marks: np.ndarray) -> Any:
        return np.add.reduceat(marks.astype(np.int64), starts, axis=0)

    inside = total(token_labels)
    counted = labels & (inside > 0)
    known = known_tokens(table.tokens, detector.concepts)
    if known is not None:
        counted &= total(~known) == 0
    resamples = resample_documents(document_names(table.tokens), resampling)
    n, carried = resampled_sums(counted.T, resamples), resamples.rows(counted.sum(1))
    found: dict[str, dict[str, Drawn]] = {}
    for name, marks in (("all", tail), ("inside", tail & token_labels)):
        ratio = total(marks) / np.maximum(inside, 1)
        found[name] = {}
        for x in AT:
            hits = resampled_sums((counted & (ratio <= x)).T, resamples)
            share = np.where(n > 0, hits / np.maximum(n, 1), np.nan)
            known = np.isfinite(share).sum(0)
            mean = np.where(known > 0, np.nansum(share, axis=0) / np.maximum(known, 1), np.nan)
            found[name][f"{x:g}"] = resamples.drawn(mean, "share", carried)
    return found


def separation(found: TailTrace, layer: int) -> dict[str, Any]:
    """The measures at one layer and the coverage of positive minus that of negative samples.

    Args:
        found: A trace.
        layer: Block index.

    Raises:
        ValueError: The layer was not traced.
    """
    means = {name: found.means[name].sel(layer=layer) for name in SEPARATING}
    parts = means | {"coverage_difference": means["coverage"] - means["negative_coverage"]}
    return {"layer": layer, **{name: one.to_dict() for name, one in parts.items()}}
