"""Which heads to ablate: a ranking made on calibration, so that nothing measured has been seen.

Heads are ordered by the mean over concepts of their share of the concept's lift, signed, so that
heads which push the tail up come first and those which push it down last:

| by | share(h, c) | passes |
|---|---|---|
| ledger | excess(h, c) / abs(lift(c)), of direct writes | 1 |
| attribution | attribution(h, c) / abs(T_c), `gradients.py` | 1, and 1 backward a concept |
| patching | total(h, c) / abs(T_c), of mean ablation, `total.py` | 1 a head |

With `budget`, "attribution" verifies the head that stands highest and is not verified yet by a real
pass, again and again, until the budget of passes is spent; a verified head has its exact value. A
head that writes after a concept's layer has share 0 there.

What it does not show: "ledger" misses what a head does through later parts; "attribution" and
"patching" contain what selection of the tail alone gives (`tail_objective.py`), so they name heads
for a vector that means nothing too. A ranking is a choice of what to ablate, not evidence.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin._names import require_known
from sa_plugin.collect import BATCH_TOKENS
from sa_plugin.data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import SelectionDataWarning
from sa_plugin.heads.gradients import attributions
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.heads.modes import Head
from sa_plugin.heads.reference import Reference
from sa_plugin.heads.runs import Baseline, baseline, candidates, in_order, known_of
from sa_plugin.heads.tail_objective import TailObjective, tail_objective
from sa_plugin.heads.total import total_effects
from sa_plugin.host import Host
from sa_plugin.scores import ScoreTable

RANKINGS = ("ledger", "attribution", "patching")


@dataclass(frozen=True, eq=False)
class Ranking:
    """Heads, the first of which are said to make the tail.

    Attributes:
        heads: Best first; every head before the deepest layer of a concept.
        values: What they are ordered by.
        shares: By concept; NaN where a concept has no tail in the split.
        concepts: Names.
        by: Of `RANKINGS`.
        effect: "excess", "lift" or "contrast" of the ledger, or "total".
        exact: Which values are of real passes or of the exact ledger, not of a linear estimate.
        split: Where it was measured.
        permuted: The order that the vectors of each permutation of the labels give, where the
            ledger has a control.
    """

    heads: tuple[Head, ...]
    values: Float[np.ndarray, " head"]
    shares: Float[np.ndarray, "head concept"]
    concepts: tuple[str, ...]
    by: str
    effect: str
    exact: Bool[np.ndarray, " head"]
    split: str
    permuted: tuple[tuple[Head, ...], ...] = ()

    def __repr__(self) -> str:
        first = ", ".join(
            f"L{layer}H{head} {value:+.3f}"
            for (layer, head), value in zip(self.heads[:4], self.values, strict=False)
        )
        exact = "" if self.exact.all() else f", {int(self.exact.sum())} verified"
        n = len(self.permuted)
        control = f", control of {n} permutation{'s' * (n > 1)}" if n else ""
        return (
            f"Ranking({len(self.heads)} heads by {self.by}, {self.effect} on {self.split}{exact}"
            f"{control}: {first})"
        )

    def of(self, concept: str) -> tuple[Head, ...]:
        """Heads in the order of one concept's own shares.

        Raises:
            ValueError: Unknown concept, or one without a tail in the split.
        """
        require_known("concept", concept, self.concepts)
        share = self.shares[:, self.concepts.index(concept)]
        if not np.isfinite(share).all():
            raise ValueError(f"{concept!r} has no SuperActivators in {self.split}: no ranking.")
        return tuple(self.heads[int(i)] for i in np.argsort(-share, kind="stable"))


def rank_heads(
    host: Host,
    data: ConceptData,
    detector: Detector,
    *,
    by: str = "ledger",
    size: bool = False,
    budget: int | None = None,
    permutations: int | None = None,
    scores: ScoreTable | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> Ranking:
    """Rank heads by their part of the tail on the calibration split.

    Costs, in passes over the calibration split: "ledger" one; "attribution" one and a
    backward pass for each concept, and `budget` more; "patching" one a head; and one for scores
    that are not given.

    Args:
        host: An attached model.
        data: Labelled samples.
        detector: From `calibrate`.
        by: "ledger", "attribution" or "patching".
        size: Order by the size of the share, whatever its sign.
        budget: Passes that may be spent on single heads: by default none for "attribution" and as
            many as there are heads for "patching".
        permutations: Of the labels, for the control of "ledger" and for the order that each of
            them gives. By default 20 for prototypes and discriminants, whose refits cost no more
            than a train pass, and for separators the one that the bank holds; more of these cost a
            train pass and as many iterative fits a concept and layer.
        scores: Scores of the calibration split.
        batch_tokens: Tokens in a batch.
        progress: Whether to show a bar.

    Returns:
        The heads of each concept, the strongest first, with what they were ranked by.

    Raises:
        TypeError: "attribution" on a host without gradients, "patching" on one that cannot edit.
        ValueError: No concept has a defined effect, `by` is unknown, or the budget is too small.
        NotImplementedError: "ledger" on a model whose blocks it does not cover.
    """
    require_known("by", by, RANKINGS)
    if by == "ledger":
        if budget is not None:
            raise ValueError("by='ledger' spends no passes on single heads: leave budget out.")
        return _by_ledger(host, data, detector, size, permutations, scores, batch_tokens)
    if permutations is not None:
        raise ValueError(f"by={by!r} has no control by permuted labels: leave permutations out.")
    every = candidates(host, detector)
    _check_budget(by, budget, len(every))
    with warnings.catch_warnings():
        # Nothing is reported of the split: it is only chosen on.
        warnings.simplefilter("ignore", SelectionDataWarning)
        base = baseline(
            host, data, detector, split="cal", scores=scores, draws=1, seed=0,
            batch_tokens=batch_tokens,
        )  # fmt: skip
    objective = tail_objective(detector, in_order(base.tokens, data.cal.samples))
    known = known_of(base, "mean", {at for at, _ in every}, 0)
    lift = np.abs(objective.value(objective.clean))

    def exact(heads: Sequence[Head]) -> Float[np.ndarray, "head concept"]:
        sums = total_effects(base, objective, heads, "mean", known, progress=progress)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(objective.value(sums) / lift)

    if by == "patching":
        share, verified = exact(every), np.ones(len(every), dtype=bool)
    else:
        share = _estimated(base, objective, every, known, lift, progress)
        verified = np.zeros(len(every), dtype=bool)
        for _ in range(min(budget or 0, len(every))):
            value = np.where(verified, -np.inf, _mean(share, size))
            i = int(value.argmax())
            share[i], verified[i] = exact([every[i]])[0], True
    return _ordered(every, share, size, detector.concepts, by, "total", verified)


def _check_budget(by: str, budget: int | None, n_heads: int) -> None:
    if budget is not None and budget < (n_heads if by == "patching" else 0):
        raise ValueError(
            f"budget is {budget} passes; by={by!r} takes "
            + (
                f"one for each of {n_heads} heads: use by='attribution', which verifies the best "
                "few under any budget."
                if by == "patching"
                else "0 or more."
            )
        )


def _estimated(
    base: Baseline,
    objective: TailObjective,
    every: Sequence[Head],
    known: Reference,
    lift: Float[np.ndarray, " concept"],
    progress: bool,
) -> Float[np.ndarray, "head concept"]:
    sums = attributions(base, objective, every, known, progress=progress)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(objective.value(sums) / lift)


def _by_ledger(
    host: Host,
    data: ConceptData,
    detector: Detector,
    size: bool,
    permutations: int | None,
    scores: ScoreTable | None,
    batch_tokens: int,
) -> Ranking:
    ledger = head_ledger(
        host, data, detector, split="cal", scores=scores, permutations=permutations, draws=1,
        batch_tokens=batch_tokens, progress=False,
    )  # fmt: skip
    name = ledger.headline
    rows = [i for i, c in enumerate(ledger.components) if c.kind == "heads"]
    heads = tuple((c.block or 0, c.head or 0) for c in (ledger.components[i] for i in rows))
    total = np.abs(ledger.effects["contrast" if name == "contrast" else "lift"].total.value)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = ledger.effects[name].terms.value[rows] / total
    verified = np.ones(len(rows), dtype=bool)
    permuted: tuple[tuple[Head, ...], ...] = ()
    if "control" in ledger.effects:
        with np.errstate(invalid="ignore", divide="ignore"):
            null = ledger.control_by_draw["control"][:, rows] / total
        permuted = tuple(
            _ordered(heads, one, size, ledger.concepts, "", "", verified).heads for one in null
        )
    return _ordered(heads, share, size, ledger.concepts, "ledger", name, verified, permuted)


def _mean(share: Float[np.ndarray, "head concept"], size: bool) -> Float[np.ndarray, " head"]:
    """Mean over concepts that have a tail."""
    defined = np.isfinite(share).all(0)
    if not defined.any():
        raise ValueError("no concept has SuperActivators in calibration: nothing can be ranked.")
    return np.asarray((np.abs(share) if size else share)[:, defined].mean(1))


def _ordered(
    heads: Sequence[Head],
    share: Float[np.ndarray, "head concept"],
    size: bool,
    concepts: tuple[str, ...],
    by: str,
    effect: str,
    exact: Bool[np.ndarray, " head"],
    permuted: tuple[tuple[Head, ...], ...] = (),
) -> Ranking:
    value = _mean(share, size)
    order = np.argsort(-value, kind="stable")
    return Ranking(
        tuple(heads[int(i)] for i in order), value[order], share[order], concepts, by, effect,
        exact[order], "cal", permuted,
    )  # fmt: skip
