"""Which heads to ablate: a ranking made on calibration, so that nothing measured has been seen.

Heads are ordered by the mean over concepts of their share of the concept's lift, signed, so that
heads which push the tail up come first and those which push it down last:

| by | share(h, c) | passes |
|---|---|---|
| ledger | excess(h, c) / abs(lift(c)), of direct writes | 1 |
| attribution | first_order(h, c) / abs(T_c), see `total` | 1, and 1 backward a concept |
| patching | total(h, c) / abs(T_c), of mean ablation, see `total` | 1 a head |

With `budget`, "attribution" verifies the head that stands highest and is not verified yet by a real
pass, again and again, until the budget of passes is spent; a verified head has its exact value. A
head that writes after a concept's layer has share 0 there.

What it does not show: "ledger" misses what a head does through later parts; "attribution" and
"patching" contain what selection of the tail alone gives (`total`), so they name heads for a vector
that means nothing too. A ranking is a choice of what to ablate, not evidence.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import SelectionDataWarning
from sa_plugin.heads.baseline import baseline, candidates, known_of, scores_of
from sa_plugin.heads.edits import Head
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.heads.total import first_order_effects, tail_objective, total_effects
from sa_plugin.host.protocol import Host
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, exact, number, signed
from sa_plugin.statistics.drawn import Resampling

RANKINGS = ("ledger", "attribution", "patching")
# Heads in the printed table and in the picture.
_SHOWN_ROWS, _SHOWN_DOTS = 12, 24


@dataclass(frozen=True, eq=False, repr=False)
class Ranking(Result):
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

    about: ClassVar[str] = (
        "A ranking is a choice of what to ablate, not evidence: ledgers miss what a head does through later "
        "parts, and total effects name heads for a vector that means nothing too."
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

    def rows(self) -> list[dict[str, Any]]:
        """Each head's value, its share of every concept's lift, and its place under permuted labels."""
        found = []
        places = [{head: n for n, head in enumerate(order)} for order in self.permuted]
        for i, (head, value) in enumerate(zip(self.heads, self.values, strict=True)):
            name = head_name(head)
            found.append(exact("value", float(value), head=name))
            found.append(exact("verified", bool(self.exact[i]), head=name))
            found += [
                exact("share", float(share), head=name, concept=concept)
                for concept, share in zip(self.concepts, self.shares[i], strict=True)
            ]
            found += [
                exact("place by permuted labels", place[head], head=name, permutation=n)
                for n, place in enumerate(places)
            ]
        return found

    def headline(self) -> str:
        """What heads are ordered by, and the first."""
        first = ", ".join(
            f"{head_name(head)} {value:+.3f}"
            for head, value in zip(self.heads[:4], self.values, strict=False)
        )
        exact = "" if self.exact.all() else f", {int(self.exact.sum())} verified"
        n = len(self.permuted)
        control = f", control of {n} permutation{'s' * (n > 1)}" if n else ""
        return f"{len(self.heads)} heads by {self.by}, {self.effect} on {self.split}{exact}{control}: {first}"

    def sheets(self) -> tuple[Sheet, ...]:
        """The first heads, with their least and greatest share of a concept's lift."""
        defined = np.isfinite(self.shares).all(0)
        lines = []
        for i, head in enumerate(self.heads[:_SHOWN_ROWS]):
            share = self.shares[i, defined]
            cells = [head_name(head), signed(self.values[i]), signed(share.min()), signed(share.max())]
            lines.append([*cells, "yes" if self.exact[i] else "no"])
        notes = [
            f"{self.effect} as a share of each concept's lift on {self.split}, mean over {defined.sum()} "
            f"concepts; {len(lines)} of {len(self.heads)} heads."
        ]
        if self.permuted and len(lines) < len(self.heads):
            top = set(self.heads[: len(lines)])
            shared = [len(top & set(order[: len(lines)])) for order in self.permuted]
            notes.append(
                f"Of these, {number(float(np.mean(shared)), 1)} also stand among the first {len(lines)} by "
                f"the vectors of permuted labels (mean over {len(shared)})."
            )
        header = ["head", "mean share", "least", "greatest", "exact"]
        return (Sheet(header, lines, f"Heads ranked by {self.by}.", notes),)

    def plot(self) -> Any:
        """The first heads by their mean share, with every concept's share beside it."""
        n = min(_SHOWN_DOTS, len(self.heads))
        figure, ax = plots.new_figure(7.0, 0.19 * n + 1.1)
        for i in range(n):
            share = self.shares[i]
            ax.plot(share, np.full(len(share), i), "o", color=plots.OUT_COLOUR, ms=2.5, zorder=1)
            face = plots.TAIL_COLOUR if self.exact[i] else "white"
            ax.plot([self.values[i]], [i], "o", ms=5.5, mec=plots.TAIL_COLOUR, mfc=face)
        plots.zero(ax)
        plots.rows(ax, [head_name(head) for head in self.heads[:n]])
        title = f"first {n} of {len(self.heads)} heads by {self.by}"
        plots.words(ax, title=title, x=f"{self.effect}, share of the concept's lift on {self.split}")
        plots.note(
            figure,
            "Large: mean over concepts (hollow: estimated, no real pass); small: single concepts. No "
            "interval; a choice of what to ablate, not evidence.",
        )
        return figure


def head_name(head: Head) -> str:
    """A head as people write it: L8H3."""
    return f"L{head[0]}H{head[1]}"


@face
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
        return _by_ledger(host, data, detector, size, permutations, scores)
    if permutations is not None:
        raise ValueError(f"by={by!r} has no control by permuted labels: leave permutations out.")
    every = candidates(host, detector)
    _check_budget(by, budget, len(every))
    with warnings.catch_warnings():
        # Nothing is reported of the split: it is only chosen on.
        warnings.simplefilter("ignore", SelectionDataWarning)
        base = baseline(host, data, detector, split="cal", scores=scores, resampling=Resampling(1))
    objective = tail_objective(detector, scores_of(base.tokens, data.cal.samples))
    known = known_of(base, "mean", {at for at, _ in every})
    lift = np.abs(objective.value(objective.clean))

    def of_lift(sums: Float[np.ndarray, "head sample concept"]) -> Float[np.ndarray, "head concept"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(objective.value(sums) / lift)

    def exact(heads: Sequence[Head]) -> Float[np.ndarray, "head concept"]:
        return of_lift(total_effects(base, objective, heads, "mean", known))

    if by == "patching":
        share, verified = exact(every), np.ones(len(every), dtype=bool)
    else:
        share = of_lift(first_order_effects(base, objective, every, known))
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


def _by_ledger(
    host: Host,
    data: ConceptData,
    detector: Detector,
    size: bool,
    permutations: int | None,
    scores: ScoreTable | None,
) -> Ranking:
    ledger = head_ledger(host, data, detector, split="cal", scores=scores, permutations=permutations)
    name = ledger.ranked_by
    rows = [i for i, c in enumerate(ledger.components) if c.kind == "heads"]
    heads = tuple((c.block or 0, c.head or 0) for c in (ledger.components[i] for i in rows))
    total = np.abs(ledger.effects["contrast" if name == "contrast" else "lift"].total.estimate)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = ledger.effects[name].terms.estimate[rows] / total
    verified = np.ones(len(rows), dtype=bool)
    permuted: tuple[tuple[Head, ...], ...] = ()
    if "control" in ledger.effects:
        with np.errstate(invalid="ignore", divide="ignore"):
            null = ledger.control_by_draw["control"][:, rows] / total
        permuted = tuple(_ordered(heads, one, size, ledger.concepts, "", "", verified).heads for one in null)
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
        tuple(heads[int(i)] for i in order),
        value[order],
        share[order],
        concepts,
        by,
        effect,
        exact[order],
        "cal",
        permuted,
    )
