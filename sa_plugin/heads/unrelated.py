"""Is it this concept, or everything? The other concepts under each concept's own ablation.

For every concept c that heads are given for, those heads are ablated and *all* concepts measured:

    own(m)    = mean over c of  m_c(after c's heads) - m_c(before)
    others(m) = mean over c of the mean over c' != c of  m_c'(after c's heads) - m_c'(before)

all on the same resamples of documents, so own - others is paired. With "directional", c's direction
is what is taken out for all.

What it does not show: "others" are the bank's other concepts, related or not; concepts that share
heads or stand near each other in the vector space lose together, and rightly so. A loss of own
alone is specific among these concepts only; see `output.py` for the model as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sa_plugin._names import require_known
from sa_plugin.collect import BATCH_TOKENS
from sa_plugin.data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import place
from sa_plugin.detection.measure import interval_of
from sa_plugin.detection.printing import aligned, frame, signed
from sa_plugin.heads.ablation import Ablation, ablate
from sa_plugin.heads.modes import Head, check_heads
from sa_plugin.heads.reference import MODES
from sa_plugin.heads.runs import baseline, known_of
from sa_plugin.heads.tail_metrics import mean_over_concepts
from sa_plugin.host import Host
from sa_plugin.scores import ScoreTable
from sa_plugin.statistics import Interval


@dataclass(frozen=True, eq=False)
class CrossAblation:
    """Every concept measured under every concept's ablation.

    Attributes:
        concepts: All that are measured.
        runs: Ablation of one concept's heads, by concept.
        mode: Of `reference.MODES`.
    """

    concepts: tuple[str, ...]
    runs: Mapping[str, Ablation]
    mode: str

    def __repr__(self) -> str:
        own, others = (self.interval("tail_gap", which) for which in ("own", "others"))
        return (
            f"CrossAblation({self.mode}, heads of {len(self.runs)} concepts, {len(self.concepts)} "
            f"measured: tail gap of its own {signed(own.estimate)} [{signed(own.low)}, "
            f"{signed(own.high)}], of others {signed(others.estimate)} [{signed(others.low)}, "
            f"{signed(others.high)}])"
        )

    def matrix(self, metric: str) -> Float[np.ndarray, "ablated measured"]:
        """Difference of each concept (columns) under the ablation for each (rows)."""
        return np.stack([self._changes(metric, c)[:, 0] for c in self.runs])

    def interval(self, metric: str, which: str) -> Interval:
        """Loss of its own, of others, or own - others, with its interval over documents.

        Args:
            metric: Of the runs' metrics.
            which: "own", "others" or "own - others".
        """
        require_known("which", which, ("own", "others", "own - others"))
        own, others = [], []
        for concept in self.runs:
            changes, k = self._changes(metric, concept), place(concept, self.concepts)
            rest = np.delete(changes, k, axis=0)
            own.append(changes[k])
            # A concept that a draw leaves undefined is left out of its mean.
            others.append(mean_over_concepts(rest))
        one, other = mean_over_concepts(np.stack(own)), mean_over_concepts(np.stack(others))
        values = {"own": one, "others": other, "own - others": one - other}[which]
        return interval_of(values, next(iter(self.runs.values())).resamples, 0.95)

    def table(self) -> Any:
        """One row a metric: a pandas DataFrame where pandas is installed."""
        metrics = [m for m in next(iter(self.runs.values())).metrics if not m.startswith("output")]
        rows = []
        for metric in metrics:
            row: dict[str, Any] = {"metric": metric}
            for which in ("own", "others", "own - others"):
                found = self.interval(metric, which)
                row |= {
                    which: found.estimate,
                    f"{which} low": found.low,
                    f"{which} high": found.high,
                }
            rows.append(row)
        return frame(rows)

    def summary(self) -> str:
        """Own loss beside that of the other concepts, as text."""
        metrics = [m for m in next(iter(self.runs.values())).metrics if not m.startswith("output")]
        lines = []
        for metric in metrics:
            cells = [self.interval(metric, which) for which in ("own", "others", "own - others")]
            texts = [f"{signed(c.estimate)} [{signed(c.low)}, {signed(c.high)}]" for c in cells]
            lines.append([metric, *texts])
        return "\n".join(
            [
                aligned(["metric", "own", "others", "own - others"], lines),
                f"Each of {len(self.runs)} concepts' own heads ablated ({self.mode}), all "
                f"{len(self.concepts)} concepts measured; means over ablated concepts, 95 % "
                "intervals over documents.",
            ]
        )

    def _changes(self, metric: str, concept: str) -> Float[np.ndarray, "concept column"]:
        run = self.runs[concept]
        require_known("metric", metric, run.metrics)
        return np.asarray(run.after[metric] - run.before[metric])


def cross_ablation(
    host: Host,
    data: ConceptData,
    detector: Detector,
    heads: Mapping[str, Sequence[Head]],
    *,
    mode: str = "mean",
    split: str = "test",
    scores: ScoreTable | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> CrossAblation:
    """Ablate each concept's own heads and measure all concepts.

    Costs one pass over the calibration and the measured split for each concept with heads, and one
    unablated without `scores`.

    Args:
        host: An attached model that can edit.
        data: Labelled samples.
        detector: From `calibrate`, of two concepts or more.
        heads: Of each concept, such as `ranking.of(concept)[:4]`.
        mode: As in `ablate_heads`, like the arguments that follow.
        split: What is measured.
        scores: Unablated scores of the calibration and the measured split.
        draws: Resamples of source documents.
        seed: Of resamples and donors.
        batch_tokens: Tokens in a batch.

    Raises:
        ValueError: As `ablate_heads`; the detector has only one concept.

    Example:
        >>> heads = {c: ranking.of(c)[:4] for c in detector.concepts}  # doctest: +SKIP
        >>> cross_ablation(host, data, detector, heads).summary()  # doctest: +SKIP
    """
    require_known("mode", mode, MODES)
    if not heads:
        raise ValueError("heads is empty, and ablating nothing changes nothing: name a concept.")
    if len(detector.concepts) < 2:
        raise ValueError("the detector has one concept: there are no others to compare it with.")
    chosen = {place(c, detector.concepts): check_heads(host.info, h) for c, h in heads.items()}
    base = baseline(
        host, data, detector, split=split, scores=scores, draws=draws, seed=seed,
        batch_tokens=batch_tokens,
    )  # fmt: skip
    known = known_of(base, mode, {at for some in chosen.values() for at, _ in some}, seed)
    everywhere = range(len(detector.concepts))
    runs = {
        detector.concepts[k]: ablate(
            base, dict.fromkeys(everywhere, some), mode, seed, known,
            along=k if mode == "directional" else None,
        )
        for k, some in chosen.items()
    }  # fmt: skip
    return CrossAblation(detector.concepts, runs, mode)
