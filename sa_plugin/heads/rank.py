"""Which heads to ablate: a ranking made on calibration, so that nothing measured has been seen.

Heads are ordered by the mean over concepts of their share of the concept's lift, signed, so that
heads which push the tail up come first and those which push it down last:

| by | share(h, c) | passes |
|---|---|---|
| attribution | first_order(h, c) / abs(T_c), see `total` | 1, and 1 backward a concept; 1 a leader |
| patching | total(h, c) / abs(T_c), of mean ablation, see `total` | 1 a head |
| ledger | excess(h, c) / abs(lift(c)), of direct writes | 1 |

The first is the default, since a ranking says what to ablate, and direct effects say little of that
(docs/findings/heads.md). The head that stands highest and is not verified yet is patched by a real pass,
again and again, until the budget of passes is spent; a verified head has its exact value. A budget
for all heads is "patching", and takes no gradient. A head that writes after a concept's layer has
share 0 there.

**Control.** The same rule, with the same budget, ranks heads for vectors that the bank's own
estimator gives on permuted labels, each permutation with its own tails and its own lift: what the
rule names when labels mean nothing. A real pass serves all permutations at once, and a backward pass
one (of the mean over its concepts; of single concepts where the size orders).

What it does not show: "ledger" misses what a head does through later parts; "attribution" and
"patching" contain what selection of the tail alone gives (`total`), so they name heads for a vector
that means nothing too. An estimate that is far too low is never verified: such a head is missed. A
ranking is a choice of what to ablate, not evidence.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin._check import require_known, users_line
from sa_plugin._face import face
from sa_plugin.concepts.bank import VectorSet
from sa_plugin.concepts.nulls import refit_kind
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import SelectionDataWarning
from sa_plugin.heads.ablate import rescored
from sa_plugin.heads.baseline import Baseline, baseline, candidates, known_of, layers_of_concepts, scores_of
from sa_plugin.heads.edits import Head
from sa_plugin.heads.ledger import NoTailWarning, head_ledger, permuted_vectors
from sa_plugin.heads.total import (
    TailObjective,
    first_order_effects,
    tail_objective,
    total_effects,
    with_draws,
)
from sa_plugin.host.protocol import DifferentiableHost, Host, require_editable
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, exact, number, signed
from sa_plugin.statistics.drawn import Resampling

RANKINGS = ("attribution", "patching", "ledger")
BUDGET, PERMUTATIONS = 48, 5
"""Real passes on single heads, and permutations of the labels, unless others are asked for."""
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
        permuted: The order that the vectors of each permutation of the labels give, by the same rule.
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

    @property
    def estimated(self) -> int | None:
        """The first place in the order, from 1, that is an estimate; None where none is."""
        guessed = np.flatnonzero(~self.exact)
        return int(guessed[0]) + 1 if len(guessed) else None

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
        spent = "" if self.exact.all() else f", {int(self.exact.sum())} verified"
        n = len(self.permuted)
        control = f", control of {n} permutation{'s' * (n > 1)}" if n else ""
        return f"{len(self.heads)} heads by {self.by}, {self.effect} on {self.split}{spent}{control}: {first}"

    def _budget_words(self) -> str:
        """What was spent on single heads, and where the order begins to rest on estimates."""
        if self.by == "ledger":
            return "Direct effects alone, of one pass: by='attribution' or 'patching' has total ones."
        n, at = int(self.exact.sum()), self.estimated
        if at is None:
            return f"Budget {n} passes: every head by a real one."
        first = "no place is sure" if at == 1 else f"places 1 to {at - 1} are of these"
        return (
            f"Budget {n} passes: {n} of {len(self.heads)} heads verified, {first}; place {at} "
            f"({head_name(self.heads[at - 1])}) is an estimate, and heads behind it may belong before it."
        )

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
            f"concepts; {len(lines)} of {len(self.heads)} heads.",
            self._budget_words(),
        ]
        if not self.permuted:
            notes.append("No order by permuted labels beside it: no control.")
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
    by: str = "attribution",
    size: bool = False,
    budget: int | None = None,
    permutations: int | None = None,
    scores: ScoreTable | None = None,
) -> Ranking:
    """Rank heads by their total effect on the tail of the calibration split, or by their direct one.

    Costs, in passes over the calibration split: one for scores that are not given; "attribution" one
    and a backward pass for each concept, none where the budget covers all heads, and up to `budget`
    real ones; "patching" one a head; "ledger" one. The control: a pass over the train split (and for
    separators an iterative fit a concept, layer and permutation), one for scores, a backward pass for
    each permutation, and its own leaders, at most one pass for every head there is.

    Args:
        host: An attached model.
        data: Labelled samples.
        detector: From `calibrate`.
        by: "attribution", "patching" or "ledger", see the module.
        size: Order by the size of the share, whatever its sign.
        budget: Real passes on single heads: by default 48 for "attribution" (fewer where there are
            fewer heads) and as many as there are heads for "patching".
        permutations: Of the labels, for the order that each of them gives. By default 5; 20 for
            the ledger of prototypes and discriminants, whose excess over their mean is what it ranks
            by; none for a bank that cannot be refitted on this data.
        scores: Scores of the calibration split.

    Returns:
        The heads of each concept, the strongest first, with what they were ranked by.

    Raises:
        TypeError: A host that cannot edit; one without gradients and a budget that does not cover all
            heads.
        ValueError: No concept has a defined effect, `by` is unknown, the budget is too small, or
            labels cannot be permuted.
        NotImplementedError: "ledger" on a model whose blocks it does not cover.

    Warns:
        NoTailWarning: Under a permutation a concept's tail has nothing to be compared with: it is left
            out of that permutation's order.
    """
    require_known("by", by, RANKINGS)
    if by == "ledger":
        if budget is not None:
            raise ValueError("by='ledger' spends no passes on single heads: leave budget out.")
        return _by_ledger(host, data, detector, size, permutations, scores)
    every = candidates(require_editable(host), detector)
    passes = _passes(host, by, budget, len(every))
    with warnings.catch_warnings():
        # Nothing is reported of the split: it is only chosen on.
        warnings.simplefilter("ignore", SelectionDataWarning)
        base = baseline(host, data, detector, split="cal", scores=scores, resampling=Resampling(1))
    table = scores_of(base.tokens, data.cal.samples)
    draws = label_draws(host, data, detector, permutations)
    objective = tail_objective(detector, table, drawn_scores(base, draws))
    effects = _Effects(base, objective, every, size, passes == len(every))
    share, verified = effects.own(passes)
    permuted = tuple(effects.order(k + 1, passes) for k in range(len(draws)))
    by = "patching" if passes == len(every) else by
    return _ordered(every, share, size, detector.concepts, by, "total", verified, permuted)


def _passes(host: Host, by: str, budget: int | None, n_heads: int) -> int:
    """Real passes that are spent on single heads."""
    if budget is not None and budget < 1:
        raise ValueError(
            f"budget is {budget} passes, below one patching run: a pass over the calibration split verifies "
            "one head. Give 1 or more, or by='ledger', which ranks by direct effects and spends none."
        )
    if budget is not None and budget < n_heads and by == "patching":
        raise ValueError(
            f"budget is {budget} passes; by='patching' takes one for each of {n_heads} heads: use "
            "by='attribution', which verifies the best few under any budget."
        )
    most = BUDGET if budget is None and by == "attribution" else n_heads if budget is None else budget
    if most < n_heads and not isinstance(host, DifferentiableHost):
        raise TypeError(
            f"{type(host).__name__} ({host.info.host}) gives no gradients, so heads cannot be ordered by "
            f"attribution, and the budget of {most} passes does not cover {n_heads} heads. Give "
            f"by='patching' ({n_heads} passes over the calibration split), or by='ledger' (one pass: direct "
            "effects, which may rank quite otherwise)."
        )
    return min(most, n_heads)


def label_draws(
    host: Host, data: ConceptData, detector: Detector, permutations: int | None
) -> tuple[VectorSet, ...]:
    """The bank's own estimator on permuted labels; none by default where it cannot be refitted."""
    bank = detector.bank
    if permutations is None and (refit_kind(bank) is None or bank.origin.data_hash != data.hash):
        return ()
    n = PERMUTATIONS if permutations is None else permutations
    layers = sorted(set(layers_of_concepts(detector)))
    return permuted_vectors(host, data, bank, draws=n, layers=layers) if n else ()


def drawn_scores(base: Baseline, draws: Sequence[VectorSet]) -> ScoreTable | None:
    """Scores of the split under the vectors of every draw; one pass."""
    if not draws:
        return None
    bank, layers = with_draws(base.detector.bank, draws), layers_of_concepts(base.detector)
    return rescored(base, layers, (base.split,), bank)[0]


class _Effects:
    """Shares of the lift, of the concepts (place 0) and of each permutation's vectors (from place 1).

    Args:
        base: The unablated run.
        objective: Of all columns.
        every: The heads.
        size: Whether the size orders.
        all_exact: Whether every head is to be patched, so that no estimate is needed.
    """

    def __init__(
        self, base: Baseline, objective: TailObjective, every: Sequence[Head], size: bool, all_exact: bool
    ) -> None:
        self.base, self.objective, self.every, self.size = base, objective, every, size
        self.known = known_of(base, "mean", {at for at, _ in every})
        self.columns = np.arange(len(objective.units)).reshape(-1, len(base.detector.concepts))
        self.lift = np.abs(objective.value(objective.clean))
        self.patched: dict[int, Float[np.ndarray, " column"]] = {}
        self._check_tails()
        if all_exact:
            self._patch(range(len(every)))
        self.guesses = None if all_exact else self._guess()

    def own(self, passes: int) -> tuple[Float[np.ndarray, "head concept"], Bool[np.ndarray, " head"]]:
        """Each head's share of every concept's lift, exact where verified."""
        n = len(self.columns[0])
        share = np.zeros((len(self.every), n)) if self.guesses is None else self.guesses[:, :n]
        verified = self._verified(0, None if self.guesses is None else _mean(share, self.size), passes)
        for i in np.flatnonzero(verified):
            share[i] = self._share(int(i))[self.columns[0]]
        return share, verified

    def order(self, place: int, passes: int) -> tuple[Head, ...]:
        """The heads as a permutation's vectors order them, by the same rule."""
        n = len(self.columns[0])
        value = None
        if self.guesses is not None:
            # By size each column was estimated alone; otherwise one number a permutation.
            of_draw = self.guesses[:, self.columns[place]] if self.size else self.guesses[:, [n + place - 1]]
            value = _mean(of_draw, self.size)
        verified = self._verified(place, value, passes)
        exact = [self._mean_of(int(i), place) if verified[i] else np.nan for i in range(len(verified))]
        values = np.array(exact) if value is None else np.where(verified, exact, value)
        return tuple(self.every[int(i)] for i in np.argsort(-values, kind="stable"))

    def _verified(
        self, place: int, value: Float[np.ndarray, " head"] | None, passes: int
    ) -> Bool[np.ndarray, " head"]:
        """Spend the passes: always on the head that stands highest and is not verified yet."""
        verified = np.full(len(self.every), value is None)
        if value is None:
            return verified
        value = value.copy()
        for _ in range(passes):
            i = int(np.where(verified, -np.inf, value).argmax())
            value[i], verified[i] = self._mean_of(i, place), True
        return verified

    def _mean_of(self, i: int, place: int) -> float:
        return float(_mean(self._share(i)[self.columns[place]][None], self.size)[0])

    def _share(self, i: int) -> Float[np.ndarray, " column"]:
        """A head's exact share of every column's lift; its pass serves whoever asks next."""
        if i not in self.patched:
            self._patch([i])
        return self.patched[i]

    def _patch(self, places: Sequence[int]) -> None:
        heads = [self.every[i] for i in places]
        sums = total_effects(self.base, self.objective, heads, "mean", self.known)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.patched |= dict(zip(places, self.objective.value(sums) / self.lift, strict=True))

    def _guess(self) -> Float[np.ndarray, "head target"]:
        """First-order shares of every concept, and of each permutation's mean (by size: of every column)."""
        known = self.lift > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            mixes = np.diag(np.where(known, 1 / (self.objective.n_tail.sum(0) * self.lift), 0.0))
        if not self.size:
            # A permutation's mean share over its concepts is one sum of columns: one backward pass.
            some = [columns[known[columns]] for columns in self.columns[1:]]
            means = [mixes[columns].mean(0) for columns in some]
            mixes = np.stack([*mixes[self.columns[0]], *means])
        sums = first_order_effects(self.base, self.objective, self.every, self.known, mixes)
        share = np.asarray(sums.sum(1))
        alone = known if self.size else known[self.columns[0]]
        share[:, : len(alone)][:, ~alone] = np.nan
        return share

    def _check_tails(self) -> None:
        """Say which concepts have no tail under a permutation though they have one themselves."""
        some, names = np.isfinite(self.lift[self.columns]), self.base.detector.concepts
        for k, here in enumerate(some[1:]):
            lost = [name for name, own, drawn in zip(names, some[0], here, strict=True) if own and not drawn]
            if not here.any():
                raise ValueError(
                    f"under permutation {k} of the labels no concept has a tail with other tokens beside it "
                    "in its samples: give longer calibration samples, or permutations=0 for no control."
                )
            if lost:
                warnings.warn(
                    f"under permutation {k} of the labels the tail of {', '.join(map(repr, lost))} has no "
                    "other tokens beside it in its samples: left out of that permutation's order.",
                    NoTailWarning,
                    stacklevel=users_line(),
                )


def _by_ledger(
    host: Host,
    data: ConceptData,
    detector: Detector,
    size: bool,
    permutations: int | None,
    scores: ScoreTable | None,
) -> Ranking:
    kind, own = refit_kind(detector.bank), detector.bank.origin.data_hash == data.hash
    if permutations is None and kind is not None and kind.need == "rows" and own:
        # The ledger alone would take the one permutation that the bank holds.
        permutations = PERMUTATIONS
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
