"""Do these heads make the tail? Ablate them, and measure what is left of it.

Modes are in `modes.py`, what is measured in `tail_metrics.py`, what is frozen in `runs.py`. Every
number is `after - before` on the same tokens and the same resamples of documents, so differences
are paired.

What it does not show: that these heads in particular matter. Ablating any heads of that size may do
as much; `ablation_curve` sets them against random, layer-matched, norm-matched and lowest-ranked
ones. Nor the reverse: heads whose loss later heads make good may matter in the intact model.
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
from sa_plugin.detection.printing import aligned, frame, number, signed
from sa_plugin.editing import Output
from sa_plugin.heads.modes import Head, check_heads
from sa_plugin.heads.reference import MODES, Reference
from sa_plugin.heads.runs import (
    Baseline,
    Group,
    baseline,
    candidates,
    groups,
    known_of,
    reach,
    run,
)
from sa_plugin.heads.tail_metrics import mean_over_concepts
from sa_plugin.host import Host
from sa_plugin.scores import ScoreTable
from sa_plugin.statistics import Interval, Resamples


@dataclass(frozen=True, eq=False)
class Ablation:
    """Metrics of each concept with and without some heads.

    Attributes:
        concepts: Names.
        heads: What was ablated for each concept: heads behind its layer are left out.
        mode: Of `reference.MODES`.
        before, after: Metric to `[concept, 1 + draw]`; see `tail_metrics.py` and `output.py`.
        change: Root mean square change of the residual at each concept's layer, in units of the
            normaliser's scale, on calibration samples.
        resamples: Draws of documents, shared by `before` and `after`.
        settings: Split, counts, seed.
    """

    concepts: tuple[str, ...]
    heads: Mapping[str, tuple[Head, ...]]
    mode: str
    before: Mapping[str, Float[np.ndarray, "concept column"]]
    after: Mapping[str, Float[np.ndarray, "concept column"]]
    change: Float[np.ndarray, " concept"]
    resamples: Resamples
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        gap, f1 = (self.difference(name) for name in ("tail_gap", "f1_recalibrated"))
        most = max(len(heads) for heads in self.heads.values())
        return (
            f"Ablation({self.mode} of {most} heads, {len(self.concepts)} concepts, "
            f"{self.settings['split']} split: tail gap {signed(gap.estimate)} [{signed(gap.low)}, "
            f"{signed(gap.high)}], recalibrated F1 {signed(f1.estimate)} [{signed(f1.low)}, "
            f"{signed(f1.high)}])"
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """What was measured."""
        return tuple(self.before)

    def columns(self, metric: str, when: str, concept: str | None = None) -> np.ndarray:
        """A metric on the split (column 0) and its resamples: of a concept, or their plain mean.

        Args:
            metric: Of `metrics`.
            when: "before", "after" or "difference".
            concept: By default the mean over concepts.
        """
        require_known("metric", metric, self.metrics)
        require_known("when", when, ("before", "after", "difference"))
        before, after = self.before[metric], self.after[metric]
        if when == "difference":
            values = after - before
        else:
            # The mean is over the same concepts on both sides.
            other = after if when == "before" else before
            values = np.where(np.isfinite(other), before if when == "before" else after, np.nan)
        if concept is None:
            return mean_over_concepts(values)
        return np.asarray(values[place(concept, self.concepts)])

    def interval(self, metric: str, when: str, concept: str | None = None) -> Interval:
        """A metric with its interval over documents."""
        return interval_of(self.columns(metric, when, concept), self.resamples, 0.95)

    def difference(self, metric: str, concept: str | None = None) -> Interval:
        """After minus before, paired, with its interval over documents."""
        return self.interval(metric, "difference", concept)

    def table(self) -> Any:
        """One row a concept and metric: a pandas DataFrame where pandas is installed."""
        rows = []
        for k, concept in enumerate(self.concepts):
            for metric in self.metrics:
                change = self.difference(metric, concept)
                rows.append(
                    {"concept": concept, "n_heads": len(self.heads[concept]), "metric": metric,
                     "before": float(self.before[metric][k, 0]),
                     "after": float(self.after[metric][k, 0]), "difference": change.estimate,
                     "low": change.low, "high": change.high,
                     "residual_change": float(self.change[k])}
                )  # fmt: skip
        return frame(rows)

    def summary(self) -> str:
        """Means over concepts with paired differences, as text."""
        lines = []
        for metric in self.metrics:
            before, after = (self.columns(metric, when)[0] for when in ("before", "after"))
            change = self.difference(metric)
            cells = [metric, number(before), number(after), signed(change.estimate)]
            lines.append([*cells, f"[{signed(change.low)}, {signed(change.high)}]"])
        s = self.settings
        none = [c for c, heads in self.heads.items() if not heads]
        notes = [
            f"Means over {len(self.concepts)} concepts, {s['split']} split, {s['n_samples']} "
            f"samples of {s['n_documents']} documents; 95 % intervals of the paired difference.",
            "Not compared with other heads: see ablation_curve before calling these special.",
        ]
        if none:
            notes.append(f"No head writes before the layer of {', '.join(none)}: unchanged.")
        header = ["metric", "before", "after", "difference", "interval"]
        return "\n".join([aligned(header, lines), *notes])


def ablate_heads(
    host: Host,
    data: ConceptData,
    detector: Detector,
    heads: Sequence[Head] | Mapping[str, Sequence[Head]],
    *,
    mode: str = "mean",
    keep: bool = False,
    split: str = "test",
    scores: ScoreTable | None = None,
    output: Output | str | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> Ablation:
    """Ablate heads and measure every concept's tail and detection again.

    Costs one pass over the calibration and the measured split, unablated (none with `scores`) and
    once more; with "directional", or with heads by concept, once more for each concept. "resample",
    and banks without component means, cost a pass over train samples besides.

    Args:
        host: An attached model that can edit.
        data: Labelled samples.
        detector: From `calibrate`; its layers, deltas and thresholds stay as they are.
        heads: `(layer, head)` for all concepts, or for each concept its own (concepts that are left
            out stay unablated).
        mode: "mean", "zero", "resample", "directional" or "pattern", see `modes.py`.
        keep: Whether `heads` are those that stay, and all others before the deepest layer of a
            concept are ablated: do they suffice?
        split: What is measured; "cal" is optimistic, "train" is refused.
        scores: Unablated scores of the calibration and the measured split.
        output: Measures the change of the model's own output too: a function of host and batch that
            gives logits (`sa_transformer_lens.ablate.logits`), or "hidden" for the last residual
            stream; see `output.py`.
        draws: Resamples of source documents.
        seed: Of the resamples and of the donors.
        batch_tokens: Tokens in a batch, padding included.

    Returns:
        Metrics before and after, by concept.

    Raises:
        TypeError: The host cannot edit.
        ValueError: No head, an unknown one, mode, split or concept; no head before any layer.
        NotImplementedError: "directional" on a model with norms behind the heads.
        RuntimeError: An edit did not reach the model.

    Example:
        >>> ablate_heads(host, data, detector, [(8, 3)])  # doctest: +SKIP
    """
    require_known("mode", mode, MODES)
    chosen = _by_concept(host, detector, heads)
    if keep:
        every = candidates(host, detector)
        chosen = {k: _others(every, kept) for k, kept in chosen.items()}
    groups(detector, chosen, one_by_one=False)
    base = baseline(
        host, data, detector, split=split, scores=scores, draws=draws, seed=seed,
        batch_tokens=batch_tokens, output=output,
    )  # fmt: skip
    return ablate(base, chosen, mode, seed)


def _others(every: Sequence[Head], kept: Sequence[Head]) -> tuple[Head, ...]:
    others = tuple(head for head in every if head not in set(kept))
    if not others:
        raise ValueError(f"all {len(every)} heads are to be kept: nothing is ablated.")
    return others


def ablate(
    base: Baseline,
    heads: Mapping[int, tuple[Head, ...]],
    mode: str,
    seed: int,
    known: Reference | None = None,
    along: int | None = None,
) -> Ablation:
    """One ablation held against an unablated run that is already there.

    With `along`, "directional" takes that concept's direction out for all.
    """
    detector = base.detector
    plan = groups(detector, heads, one_by_one=mode == "directional" and along is None)
    if along is not None:
        plan = [Group(group.concepts, group.heads, along) for group in plan]
    if known is None:
        known = known_of(base, mode, {at for group in plan for at, _ in group.heads}, seed)
    after, change = run(base, plan, mode, known)
    depths = reach(detector)
    reached = {
        concept: tuple(head for head in heads.get(k, ()) if head[0] < depths[k])
        for k, concept in enumerate(detector.concepts)
    }
    settings = {
        "split": base.split, "n_samples": base.frozen.test.n_samples, "seed": seed,
        "n_documents": base.frozen.resamples.n_documents, "draws": base.frozen.resamples.draws,
        "n_tokens": len(base.frozen.test), "data_hash": base.data.hash,
        "model": base.host.info.model,
    }  # fmt: skip
    return Ablation(
        detector.concepts, reached, mode, base.before, after, change,
        base.frozen.resamples, settings,
    )  # fmt: skip


def _by_concept(
    host: Host, detector: Detector, heads: Sequence[Head] | Mapping[str, Sequence[Head]]
) -> dict[int, tuple[Head, ...]]:
    if isinstance(heads, Mapping):
        if not heads:
            raise ValueError("heads is empty, and ablating nothing changes nothing: name a head.")
        return {place(c, detector.concepts): check_heads(host.info, h) for c, h in heads.items()}
    chosen = check_heads(host.info, heads)
    return dict.fromkeys(range(len(detector.concepts)), chosen)
