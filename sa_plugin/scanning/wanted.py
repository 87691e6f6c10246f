"""What a scan looks for: a detector's vectors, thresholds and cuts, and what they are known by.

The cut of a concept's tail is a value that all who share the work have from the detector alone, so that
tails merge exactly (`sa_plugin.statistics.streaming`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.detection.calibration import Calibration
from sa_plugin.detection.promised import Guard
from sa_plugin.statistics.streaming import ExactTail


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is looked for: of each concept a column, a threshold, and the cut of its tail.

    Attributes:
        concepts: Names.
        bank: The vectors.
        columns: Place of each concept's layer and unit in the bank.
        thresholds: From which score on a token is a SuperActivator.
        cuts: From which score on a value is kept; at or below the threshold.
        stricter: Threshold at the next smaller delta, NaN where there is none.
        expected: Of in-concept calibration tokens at or above the threshold, the share that reach it.
        n_tail: Calibration tokens at or above the threshold.
        deltas: Chosen ones.
        drift: What moved in the model since the detector was saved, where that was allowed.
        guard: What a promise was made from, which p-values come from; None without one.
    """

    concepts: tuple[str, ...]
    bank: ConceptBank
    columns: tuple[tuple[int, int], ...]
    thresholds: Float[np.ndarray, " concept"]
    cuts: Float[np.ndarray, " concept"]
    stricter: Float[np.ndarray, " concept"]
    expected: Float[np.ndarray, " concept"]
    n_tail: Int[np.ndarray, " concept"]
    deltas: Float[np.ndarray, " concept"]
    drift: str = ""
    guard: Guard | None = None

    @classmethod
    def of(cls, detector: Calibration) -> Wanted:
        """What a detector looks for.

        The cut is the next lower threshold of the detector's grid, a margin below its own in the unit of
        each concept's scores, and the same for all who share the work.
        """
        tail = detector.tail
        grid, own = np.asarray(tail.deltas), np.arange(len(detector.concepts))
        chosen = np.asarray(tail.chosen_threshold, dtype=np.float64)
        # [delta, concept], at each concept's layer; latents may have +inf, which is no cut.
        ladder = tail.thresholds[tail.layer, :, own].T
        lower = np.where(ladder < chosen, ladder, -np.inf).max(0)
        narrower = ladder[np.maximum(tail.delta - 1, 0), own]
        # A threshold that keeps a promise is none of the grid, and where tokens tie two deltas have one.
        has = (tail.delta > 0) & (narrower > chosen) & np.isfinite(narrower)
        has &= chosen == ladder[tail.delta, own]
        share = grid[np.maximum(tail.delta - 1, 0)] / grid[tail.delta]
        pairs = zip(tail.layer.tolist(), tail.chosen_unit.tolist(), strict=True)
        return cls(
            detector.concepts,
            detector.bank,
            tuple(pairs),
            chosen,
            np.where(np.isneginf(lower), chosen, lower),
            np.where(has, narrower, np.nan),
            np.where(has, share, np.nan),
            np.round(detector.cuts.n_tokens * grid[tail.delta]).astype(np.int64),
            grid[tail.delta],
            detector.bank.drift,
            detector.guard,
        )

    @property
    def rounded_cuts(self) -> Float[np.ndarray, " concept"]:
        """The cuts as float32, rounded down as `ExactTail` rounds them."""
        return ExactTail(self.cuts).cuts

    @cached_property
    def record(self) -> dict[str, Any]:
        """JSON-ready: a row a concept, what is infinite or not there as None, and a digest of the vectors."""
        rows = []
        for k, concept in enumerate(self.concepts):
            layer, unit = self.columns[k]
            row = {"concept": concept, "layer": self.bank.layers[layer], "unit": self.bank.units[unit]}
            row |= {"delta": float(self.deltas[k]), "calibration_tokens": int(self.n_tail[k])}
            numbers = {"threshold": self.thresholds, "cut": self.cuts, "stricter": self.stricter}
            for name, values in (numbers | {"tail": self.expected}).items():
                value = float(values[k])
                row[name] = value if np.isfinite(value) else None
            rows.append(row)
        found: dict[str, Any] = {"concepts": rows, "vectors": self._vectors_digest()}
        if self.guard is not None:
            arrays = (self.guard.maxima, self.guard.tokens)
            held = hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in arrays))
            found |= {"promise": self.guard.promise.words, "lengths": list(self.guard.lengths)}
            found |= {"guard": held.hexdigest()}
        return found | ({"drift": self.drift} if self.drift else {})

    def p_values(
        self,
        column: Int[np.ndarray, " entry"],
        score: Float[np.ndarray, " entry"],
        tokens: Int[np.ndarray, " entry"],
    ) -> dict[str, np.ndarray]:
        """The column p, where there is a promise: of documents, NaN outside the lengths that it is for.

        Args:
            column: Concepts, by their places.
            score: Scores.
            tokens: Kept tokens of the samples that they are of.
        """
        if self.guard is None:
            return {}
        found = np.full(len(score), np.nan)
        for k in np.unique(column).tolist():
            at = (column == k) & self.guard.covers(tokens)
            if self.guard.n_documents[k]:
                found[at] = self.guard.p_values(k, score[at].astype(np.float64), "document")
        return {"p": found}

    def _vectors_digest(self) -> str:
        """Of the vectors that are used, whatever else the bank holds."""
        bank, token = self.bank, self.bank.token
        found = hashlib.sha256()
        said: list[Any] = [bank.hook_point, token.scoring, bank.sink_layers, bank.origin.sinks, bank.units]
        found.update(repr(said).encode())
        # The weights of an SAE are not the bank's: its latents are known by their numbers.
        for layer, unit in self.columns if token.scoring != "latent" else ():
            for part in (token.vectors[layer, unit], token.mean[layer], token.scale[layer]):
                found.update(part.detach().cpu().double().numpy().tobytes())
        return found.hexdigest()
