"""What became of a promise: the rate of false alarms on held-out documents, in the promise's own unit.

Guard and thresholds are those of `promised`; here nothing is chosen. Documents are resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from sa_plugin.detection.promised import Guard, GuardScores
from sa_plugin.show.result import Sheet, bounds_text, exact, number
from sa_plugin.statistics.bootstrap import resample_documents, resampled_sums
from sa_plugin.statistics.conformal import Promise
from sa_plugin.statistics.confusion import ratio, reaches
from sa_plugin.statistics.drawn import Drawn, Resampling


@dataclass(frozen=True, eq=False)
class RealisedRates:
    """What became of a promise on held-out documents.

    Attributes:
        promise: What was promised.
        lengths: For which lengths.
        guard: Guard documents behind the threshold of each concept.
        documents: Documents without each concept that it was looked for in.
        realised: Rate of false alarms, in the promise's own unit, by concept.
        found: Share of the documents with the concept that alarm, by concept.
        outside: Texts outside the lengths, which count in neither.
    """

    promise: Promise
    lengths: tuple[int, int]
    guard: Mapping[str, int]
    documents: Mapping[str, int]
    realised: Drawn
    found: Drawn
    outside: int

    def sheet(self, split: str) -> Sheet:
        """Promised beside realised.

        Args:
            split: Name of what it was looked for in.
        """
        header = [
            "concept",
            "guard documents",
            "promised",
            "realised",
            "interval",
            "documents",
            "",
            "found",
            "interval",
        ]
        lines = []
        for name in self.documents:
            one, found = self.realised.sel(concept=name), self.found.sel(concept=name)
            # An interval that lies above what was promised speaks against it; one that holds it says nothing.
            broken = "above" if one.low > self.promise.alpha else ""
            cells = [
                name,
                str(self.guard[name]),
                f"{self.promise.alpha:g}",
                number(one.estimate),
                bounds_text(one),
            ]
            lines.append(
                [*cells, str(self.documents[name]), broken, number(found.estimate), bounds_text(found)]
            )
        low, high = self.lengths
        title = f"Promise: {self.promise.words}. Of {low} to {high} tokens."
        notes = [
            "Realised: the same on documents without the concept; found: documents with it that alarm. "
            "Positives that labels overlook count as false alarms in both."
        ]
        if self.promise.confidence is None:
            notes.append(
                "It holds on average over guards: the rate of one threshold may lie above, and does for up "
                "to half of them."
            )
        if self.outside:
            notes.append(f"{self.outside} texts of other lengths are left out on {split!r}.")
        return Sheet(header, lines, title, notes)

    def rows(self) -> list[dict[str, Any]]:
        """Long form."""
        found = self.realised.rows("realised false alarms") + self.found.rows("documents found")
        for measure, counts in (("guard documents", self.guard), ("documents without", self.documents)):
            found += [exact(measure, n, concept=name) for name, n in counts.items()]
        found += [exact("promised false alarms", self.promise.alpha, concept=name) for name in self.documents]
        return found


def kept_of(
    guard: Guard,
    thresholds: Float64[np.ndarray, " concept"],
    scored: GuardScores,
    concepts: Sequence[str],
    resampling: Resampling,
) -> RealisedRates:
    """Count, on held-out samples, what was promised.

    Args:
        guard: Whose promise.
        thresholds: Of the detector.
        scored: The samples.
        concepts: Names; those the promise is not made for are left out.
        resampling: Of documents.
    """
    promise = guard.promise
    wanted = [c for c, name in enumerate(concepts) if promise.concepts is None or name in promise.concepts]
    names = [concepts[c] for c in wanted]
    fits = guard.covers(scored.lengths(promise))
    inside = np.zeros(len(scored.document_sizes), dtype=bool)
    inside[scored.document[fits]] = True
    negative = scored.negative()[:, wanted]
    loss, any_alarm = _losses(promise, scored, fits, thresholds, wanted)
    order = dict.fromkeys(sample.document for sample in scored.samples)
    resamples = resample_documents(np.array(list(order)), resampling)

    def share(values: np.ndarray, counted: np.ndarray) -> Drawn:
        above, below = (
            resampled_sums(np.where(counted, values, 0.0).T, resamples),
            resampled_sums(counted.T, resamples),
        )
        return resamples.drawn(ratio(above, below, np.nan), "share", resamples.rows(counted.T), concept=names)

    free = negative & inside[:, None]
    return RealisedRates(
        promise,
        guard.lengths,
        dict(zip(names, guard.n_documents[wanted].tolist(), strict=True)),
        dict(zip(names, free.sum(0).tolist(), strict=True)),
        share(loss, free),
        share(any_alarm, ~negative & inside[:, None]),
        int((~fits).sum()),
    )


def _losses(
    promise: Promise,
    scored: GuardScores,
    fits: Bool[np.ndarray, " sample"],
    thresholds: Float64[np.ndarray, " concept"],
    wanted: Sequence[int],
) -> tuple[Float64[np.ndarray, "document wanted"], Float64[np.ndarray, "document wanted"]]:
    """Of each document its loss, and whether it alarms at all."""
    shape = (len(scored.document_sizes), len(wanted))
    alarms, samples, fired = np.zeros(shape), np.zeros(shape[0]), np.zeros(shape)
    runs, tokens = np.zeros(shape), np.zeros(shape[0])
    for k in np.flatnonzero(fits):
        above = reaches(scored.scores[scored.bounds[k] : scored.bounds[k + 1], wanted], thresholds[wanted])
        home = scored.document[k]
        alarms[home] += above.sum(0)
        fired[home] += above.any(0)
        samples[home] += 1
        tokens[home] += len(above)
        # A run begins where its left neighbour does not alarm.
        runs[home] += above[0] + (above[1:] & ~above[:-1]).sum(0)
    any_alarm = (fired > 0).astype(np.float64)
    if promise.kind == "document":
        return any_alarm, any_alarm
    if promise.kind == "sample":
        return ratio(fired, samples[:, None]), any_alarm
    counted = alarms if promise.episodes is None else np.minimum(runs, promise.episodes)
    return ratio(counted, tokens[:, None]), any_alarm
