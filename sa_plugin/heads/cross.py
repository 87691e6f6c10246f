"""Is it this concept, or everything? The other concepts under each concept's own ablation.

For every concept c that heads are given for, those heads are ablated and *all* concepts measured:

    own(m)    = mean over c of  m_c(after c's heads) - m_c(before)
    others(m) = mean over c of the mean over c' != c of  m_c'(after c's heads) - m_c'(before)

all on the same resamples of documents, so own - others is paired. With "directional", c's direction
is what is taken out for all.

What it does not show: "others" are the bank's other concepts, related or not; concepts that share
heads or stand near each other in the vector space lose together, and rightly so. A loss of own
alone is specific among these concepts only; see the output metrics of `tail_metrics` for the model
as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from sa_plugin._check import position_of, require_known
from sa_plugin._face import face
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.ablate import Ablation, ablate
from sa_plugin.heads.baseline import baseline, known_of
from sa_plugin.heads.edits import ABLATIONS, NamedHead, check_heads
from sa_plugin.heads.tail_metrics import unit_of
from sa_plugin.host.protocol import Host
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, short
from sa_plugin.statistics.drawn import Drawn, Resampling, stack

CROSS_EFFECTS = ("own", "others", "own - others")


@dataclass(frozen=True, eq=False, repr=False)
class CrossAblation(Result):
    """Every concept measured under every concept's ablation.

    Attributes:
        concepts: All that are measured.
        runs: Ablation of one concept's heads, by concept.
        mode: Of `edits.ABLATIONS`.
    """

    concepts: tuple[str, ...]
    runs: Mapping[str, Ablation]
    mode: str

    about: ClassVar[str] = (
        "Others are the bank's other concepts, related or not: those that share heads or stand near each "
        "other lose together, and rightly so."
    )

    @property
    def changes(self) -> Drawn:
        """Difference of each metric and concept under the ablation for each."""
        return stack({concept: run.difference for concept, run in self.runs.items()}, "ablated")

    def effect(self, side: str) -> Drawn:
        """What became of every metric, mean over ablated concepts.

        Args:
            side: "own" (of the concept whose heads were ablated), "others" or "own - others".
        """
        require_known("side", side, CROSS_EFFECTS)
        return self._effects[side]

    @cached_property
    def _effects(self) -> dict[str, Drawn]:
        own, others = {}, {}
        for concept, run in self.runs.items():
            own[concept] = run.difference.sel(concept=concept)
            # A concept that a draw leaves undefined is left out of its mean.
            rest = [other for other in self.concepts if other != concept]
            others[concept] = run.difference.sel(concept=rest).mean("concept")
        one, other = (stack(each, "ablated").mean("ablated") for each in (own, others))
        return {"own": one, "others": other, "own - others": one - other}

    def numbers(self) -> dict[str, Drawn]:
        """Both sides with their difference, and every concept under every ablation."""
        return {**self._effects, "difference": self.changes}

    def headline(self) -> str:
        """The tail gap of ablated concepts and of the others."""
        own, others = (
            short(self.effect(side).sel(metric="tail_gap"), sign=True) for side in CROSS_EFFECTS[:2]
        )
        return (
            f"{self.mode}, heads of {len(self.runs)} concepts, {len(self.concepts)} measured: tail gap of "
            f"its own {own}, of others {others}"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """Own loss beside that of the other concepts."""
        effects = [self.effect(side) for side in CROSS_EFFECTS]
        metrics = effects[0].axes["metric"]
        lines = [[m, *(short(effect.sel(metric=m), sign=True) for effect in effects)] for m in metrics]
        note = (
            f"Each of {len(self.runs)} concepts' own heads ablated ({self.mode}), all {len(self.concepts)} "
            f"concepts measured; means over ablated concepts, {100 * effects[0].level:g} % intervals over "
            "documents."
        )
        return (Sheet(["metric", *CROSS_EFFECTS], lines, "", [note]),)

    def plot(self) -> Any:
        """Own loss beside the others', and the tail gap of every concept under every ablation."""
        width = 8.5 + 0.32 * len(self.concepts)
        figure, (gap, rates, grid) = plots.new_figure(width, 3.6, columns=3)
        metrics = self.effect("own").axes["metric"]
        colours = (plots.TAIL_COLOUR, plots.IN_COLOUR, plots.TEXT_COLOUR)
        for ax, shown in ((gap, ["tail_gap"]), (rates, [m for m in metrics if m != "tail_gap"])):
            for n, side in enumerate(CROSS_EFFECTS):
                one = self.effect(side).sel(metric=shown)
                plots.whiskers(ax, one, colours=colours[n], offset=0.2 * (n - 1), label=side)
            plots.zero(ax)
            plots.words(ax, x=f"difference, {unit_of(shown[0])}")
        plots.legend(gap, outside=False)
        values = self.changes.sel(metric="tail_gap").estimate
        plots.heat(grid, np.asarray(values), list(self.runs), self.concepts, scale=unit_of("tail_gap"))
        grid.tick_params(axis="x", rotation=60)
        plots.words(grid, title="tail gap, ablated x measured")
        plots.note(
            figure,
            f"{self.mode} ablation; means over {len(self.runs)} ablated concepts, bars over documents. "
            "Concepts that share heads lose together.",
            *map(self.effect, CROSS_EFFECTS),
        )
        return figure


@face
def cross_ablation(
    host: Host,
    data: ConceptData,
    detector: Detector,
    heads: Mapping[str, Sequence[NamedHead]],
    *,
    mode: str = "mean",
    scores: ScoreTable | None = None,
    split: str = "test",
    resampling: Resampling = Resampling(),
) -> CrossAblation:
    """Ablate each concept's own heads and measure all concepts.

    Costs one pass over the calibration and the measured split for each concept with heads, and one
    unablated without `scores`.

    Args:
        host: An attached model that can edit.
        data: Labelled samples.
        detector: From `calibrate`, of two concepts or more.
        heads: Of each concept, such as `ranking.of(concept)[:4]`.
        mode: Of `edits.ABLATIONS`.
        scores: Unablated scores of the calibration and the measured split.
        split: What is measured.
        resampling: Of source documents; its seed is that of donors too.

    Raises:
        ValueError: As `ablate_heads`; the detector has only one concept.

    Example:
        >>> heads = {c: ranking.of(c)[:4] for c in detector.concepts}  # doctest: +SKIP
        >>> print(cross_ablation(host, data, detector, heads))  # doctest: +SKIP
    """
    require_known("mode", mode, ABLATIONS)
    if not heads:
        raise ValueError("heads is empty, and ablating nothing changes nothing: name a concept.")
    if len(detector.concepts) < 2:
        raise ValueError("the detector has one concept: there are no others to compare it with.")
    chosen = {position_of(c, detector.concepts): check_heads(host.info, h) for c, h in heads.items()}
    base = baseline(host, data, detector, split=split, scores=scores, resampling=resampling)
    known = known_of(base, mode, {at for some in chosen.values() for at, _ in some})
    everywhere = range(len(detector.concepts))
    runs = {
        detector.concepts[k]: ablate(
            base, dict.fromkeys(everywhere, some), mode, known, along=k if mode == "directional" else None
        )
        for k, some in chosen.items()
    }
    return CrossAblation(detector.concepts, runs, mode)
