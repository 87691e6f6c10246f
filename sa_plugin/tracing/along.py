"""Is it the probe that gets better from layer to layer, or the signal?

Along each layer's own vector a gap grows for two reasons: the concept stands out more, or the vector fits
its layer better. So the same tokens are read along other vectors too, with cuts of their own, fixed on
calibration at every layer with the same delta:

    own         each layer's own vector
    chosen      the vector of the concept's chosen layer L, carried to every layer
    prototype   each layer's mean difference, which has nothing to adjust

Carrying assumes that the residual stream is one space, of which blocks only write onto a running sum: a
direction keeps its meaning from layer to layer. The score at layer l is that of x = (h - mean_l) / rho_l,
and gaps are in deviations of the negatives' scores along the same vector at the same layer, so they have
no unit and compare between layers and vectors.

The rule, of the tail gap. With l the first layer, a and b the gaps there along its own vector and along the
chosen one, and t the gap at L, where both are one vector:

    A = t - a,  B = t - b          growth along each layer's own vector, and along the chosen one
    D = 2 min(A, B) - max(A, B)    what both show, less what only one of them shows

- **signal**: the larger growth is above zero and D is: most of the growth is there whichever way it is read;
- **probe**: the larger growth is above zero and D below it: most of it is there along one of the two only.
  Where A > B the early layers had the signal and their own vectors missed it; where B > A they had it along
  another direction;
- **cannot be said**: everything else, with the change that could have been seen, of the larger growth
  where that is open, else of D.

Which growth is the smaller is taken from the data, in every column. "Above zero" means an interval of two
half-widths added in squares: over test documents with the vectors fixed, and over refits without each
group of train documents (`sa_plugin.concepts.refits`), measured on the same test documents. A concept
whose chosen layer is the first has nothing to compare.

What it does not show: that anything causes the growth. A direction that is carried may be blurred early by
other features that a later layer clears away: this is growth of the signal along it. L is chosen on
calibration for detection, not for this.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int

from sa_plugin._face import face_methods
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.concepts.collect import collect
from sa_plugin.concepts.kinds import KINDS
from sa_plugin.concepts.nulls import refit_kind
from sa_plugin.concepts.refits import LeftOut, leave_out
from sa_plugin.concepts.train_statistics import RowLimits, TrainStatistics, check_collected
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.host.protocol import Host
from sa_plugin.scores.score import score_again
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import bounds_text, number
from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.statistics.drawn import Drawn, seen_words, stack
from sa_plugin.statistics.quantile import EmptyConceptWarning, FewTokensWarning
from sa_plugin.tracing.cells import Columns, Out, concept_scores, cuts
from sa_plugin.tracing.measures import TAILS, tails_of

Answer = Literal["signal", "probe", "cannot be said"]
CHOSEN, PROTOTYPE, REFITS = "along_chosen", "along_prototype", "refits"
GAP = "tail_gap"
_GROUPS = 5
_SAYS = {"signal": "a stronger signal", "probe": "a better aligned probe"}


class Vectors(NamedTuple):
    """What is read beside each layer's own vector.

    Attributes:
        banks: By name: `CHOSEN` and, unless the vectors are prototypes themselves, `PROTOTYPE`.
        refits: The bank without groups of train documents, and the same carried; None where there are none.
        without: Why something is missing.
    """

    banks: Mapping[str, ConceptBank]
    refits: tuple[LeftOut, tuple[ConceptBank, ...]] | None
    without: tuple[str, ...]

    @property
    def all_banks(self) -> list[ConceptBank]:
        """Those of `banks`, the refits, and the refits carried."""
        refits = [] if self.refits is None else [*self.refits[0].banks, *self.refits[1]]
        return [*self.banks.values(), *refits]


class Traced(NamedTuple):
    """A score table whose tail is to be read along other vectors.

    Attributes:
        table: Scores along the own vectors, whose rows are read again.
        column: Unit of each concept at each layer.
        chosen: Layer of each concept's carried vector.
    """

    table: ScoreTable
    column: Int[np.ndarray, "layer concept"]
    chosen: Mapping[str, int]


@face_methods
@dataclass(frozen=True, eq=False)
class Others:
    """Scores along other vectors than each layer's own, of the rows of a table.

    Attributes:
        names: Of the first sets: `CHOSEN`, and `PROTOTYPE` where there are prototypes. Behind them stand the
            own vectors without each group of train documents, then the carried ones without.
        scores: Of every set.
        defined: Which vectors of which group are refits; no group without refits.
        carried: In-concept train tokens of each group.
        without: Why something is missing.
    """

    names: tuple[str, ...]
    scores: Float[np.ndarray, "set token layer concept"]
    defined: Bool[np.ndarray, "group concept"]
    carried: Float64[np.ndarray, "concept group"]
    without: tuple[str, ...] = ()

    def tables(self, table: ScoreTable) -> list[ScoreTable]:
        """As tables of the rows of another one, to be read by the same functions."""
        bank = replace(table.bank, units=table.tokens.concepts)
        return [ScoreTable(table.tokens, bank, one) for one in self.scores]


def read_others(
    host: Host,
    data: ConceptData,
    traced: Sequence[Traced],
    *,
    splits: Sequence[str] = ("cal", "test"),
    statistics: TrainStatistics | None = None,
    groups: int | None = None,
) -> list[Others]:
    """Score some tables' rows along carried vectors, prototypes and refits, in one pass for all of them.

    Args:
        host: An attached model.
        data: That the banks were fitted on.
        traced: Tables of the same samples, of banks with one rule for attention sinks.
        splits: Which of their samples.
        statistics: Of the train pass; else the train split is passed once.
        groups: Of train documents that are left out in turn; 0 for no refits, None as `TraceOptions` says.

    Raises:
        ValueError: As `score`.
    """
    found = [vectors_of(host, data, one, statistics, groups) for one in traced]
    tokens = rows_read(traced[0].table, splits).tokens
    tables = iter(score_again(host, tokens, [bank for one in found for bank in one.all_banks]))
    made = []
    for one in found:
        left = one.refits[0] if one.refits else None
        n = len(tokens.concepts)
        made.append(
            Others(
                tuple(one.banks),
                np.stack([table.scores for table in islice(tables, len(one.all_banks))]),
                left.defined if left else np.zeros((0, n), dtype=bool),
                left.carried if left else np.zeros((n, 0)),
                one.without,
            )
        )
    return made


def rows_read(table: ScoreTable, splits: Sequence[str]) -> ScoreTable:
    """The rows of a table that are read along other vectors: those of some splits."""
    return table.select(np.flatnonzero(np.isin(table.tokens.split_of, list(splits))))


def vectors_of(
    host: Host, data: ConceptData, traced: Traced, statistics: TrainStatistics | None, groups: int | None
) -> Vectors:
    """Carried vectors, prototypes and refits; one pass over the train split unless `statistics` are given."""
    bank = traced.table.bank
    place = np.array([bank.index(layer) for layer in traced.chosen.values()])
    unit = traced.column[place, np.arange(len(place))]
    banks = {CHOSEN: carried(bank, place, unit)}
    if bank.origin.data_hash != data.hash:
        why = "the vectors were not fitted on these data"
        return Vectors(banks, None, (f"no prototypes and no refits: {why}",))
    refittable = refit_kind(bank) is not None
    if groups is None:
        groups = _GROUPS if refittable and KINDS[bank.kind].need != "rows" else 0
    wanted = groups > 0 and refittable
    if statistics is None:
        statistics = _collect(host, data, bank, rows=wanted)
    check_collected(statistics, host, data)
    without = []
    if bank.kind != "prototype":
        try:
            banks[PROTOTYPE] = prototypes(bank, statistics)
        except ValueError as error:
            without.append(f"no prototypes: {error}")
    refits = None
    if wanted:
        try:
            left = leave_out(bank, statistics, groups, bank.origin.seed)
            refits = left, tuple(carried(one, place, unit) for one in left.banks)
        except ValueError as error:
            without.append(f"no refits: {error}")
    else:
        asked = "none were asked for (TraceOptions(refit_groups=5))"
        without.append(f"no refits: {asked if refittable else f'kind {bank.kind!r} is not fitted on labels'}")
    return Vectors(banks, refits, tuple(without))


def carried(
    bank: ConceptBank, place: Int[np.ndarray, " concept"], unit: Int[np.ndarray, " concept"]
) -> ConceptBank:
    """Every concept's vector of its chosen layer at all layers, each with its own normaliser.

    Raises:
        ValueError: The units are latents, which are no vectors.
    """
    if bank.token.scoring == "latent":
        raise ValueError("latents of an SAE are no vectors of the residual stream: none can be carried.")
    chosen = bank.token.vectors[torch.from_numpy(np.asarray(place)), torch.from_numpy(np.asarray(unit))]
    return _beside(bank, chosen.expand(len(bank.layers), -1, -1), bank.token)


def prototypes(bank: ConceptBank, statistics: TrainStatistics) -> ConceptBank:
    """Each layer's mean difference."""
    each = [statistics.token[statistics.layers.index(layer)] for layer in bank.layers]
    fitted = torch.stack([KINDS["prototype"].fit(one)[0] for one in each])
    return _beside(bank, fitted, replace(bank.token, scoring="cosine"))


def _beside(
    bank: ConceptBank, vectors: Float[torch.Tensor, "layer concept d_model"], like: VectorSet
) -> ConceptBank:
    token = VectorSet(vectors.contiguous(), like.mean, like.scale, like.scoring)
    return replace(bank, units=bank.concepts, token=token, permuted=None, pooled=None, cls=None, canary=None)


def _collect(host: Host, data: ConceptData, bank: ConceptBank, *, rows: bool) -> TrainStatistics:
    options: Mapping[str, Any] = bank.origin.options
    gram = ("gram",) if bank.kind == "lda" else ()
    return collect(
        host,
        data,
        layers=sorted({*bank.layers, *bank.sink_layers}),
        hook_point=bank.hook_point,
        need=("means", *gram, "rows") if rows else ("means",),
        seed=bank.origin.seed,
        sinks=bank.origin.sinks,
        normaliser=options.get("normaliser", "rms"),
        limits=RowLimits(per_class=10**9),
    )


class Measuring(NamedTuple):
    """Split that is measured, split that cuts are fixed on, which tokens are out of concept, and delta."""

    split: str
    fixed_on: str
    out: Out
    delta: float


def measures_along(
    others: Others, table: ScoreTable, own: Mapping[str, Drawn], resamples: Resamples, plan: Measuring
) -> dict[str, Drawn]:
    """Gap, coverage and overlap along every other vector, over layer and concept.

    Args:
        others: Scores.
        table: The rows they are of.
        own: Measures along the own vectors.
        resamples: Of the measured split.
        plan: What is measured, and on what cuts are fixed.

    Raises:
        ValueError: The scores are of other rows.
    """
    if others.scores.shape[1:3] != table.scores.shape[:2]:
        raise ValueError(
            f"the scores along other vectors are of {others.scores.shape[1]:,} tokens and "
            f"{others.scores.shape[2]} layers, the table has {len(table.tokens):,} and "
            f"{len(table.bank.layers)}: read_others of this table."
        )
    tables, n = others.tables(table), len(others.names)
    found: dict[str, Drawn] = {}
    for name, one in zip(others.names, tables, strict=False):
        found |= {f"{m}_{name}": drawn for m, drawn in _by_layer(one, plan, resamples).items()}
    if len(others.defined):
        once, groups = _once(resamples), len(others.defined)
        values = [_by_layer(one, plan, once) for one in tables[n:]]
        for suffix, part, whole in (
            (REFITS, values[:groups], own),
            (f"{CHOSEN}_{REFITS}", values[groups:], {m: found[f"{m}_{CHOSEN}"] for m in TAILS}),
        ):
            found |= {f"{m}_{suffix}": _refitted(m, whole[m], part, others) for m in TAILS}
    return found


def _by_layer(table: ScoreTable, plan: Measuring, resamples: Resamples) -> dict[str, Drawn]:
    """Measures of the tail along one set of vectors, over layer and concept."""
    concepts, layers = table.tokens.concepts, table.bank.layers
    column = np.broadcast_to(np.arange(len(concepts)), (len(layers), len(concepts)))
    here, there = (Columns(table.split(name), column, plan.out) for name in (plan.split, plan.fixed_on))
    found: dict[str, dict[int, Drawn]] = {name: {} for name in TAILS}
    for at, layer in enumerate(layers):
        with warnings.catch_warnings():
            # Labels are those of the own vectors' trace, which has said what is few.
            warnings.simplefilter("ignore", FewTokensWarning)
            warnings.simplefilter("ignore", EmptyConceptWarning)
            cut = cuts(there, at, plan.delta)
        each = [tails_of(cell, plan.delta) for cell in concept_scores(here, at, cut, resamples)]
        for name in TAILS:
            of = {c: one[name] for c, one in zip(concepts, each, strict=True)}
            found[name][layer] = stack(of, "concept")
    return {name: stack(of, "layer") for name, of in found.items()}


def _once(resamples: Resamples) -> Resamples:
    """The data alone: of refits only the numbers themselves are read."""
    return replace(
        resamples, weights=resamples.weights[:1], resampling=replace(resamples.resampling, draws=1)
    )


def _refitted(name: str, whole: Drawn, parts: Sequence[Mapping[str, Drawn]], left: Others) -> Drawn:
    """A measure with itself along the vectors without each group of train documents."""
    columns = np.stack([part[name].values[..., 0] for part in parts], axis=-1)
    # A group without which a concept cannot be fitted moves it nowhere: who carries it says so.
    columns = np.where(left.defined.T[None], columns, whole.values[..., :1])
    values = np.concatenate([whole.values[..., :1], columns], axis=-1)
    kind = "mean" if name == GAP else "share"
    return Drawn(values, whole.axes, np.asarray(kind), left.carried[None], whole.level)


# The sentence


@dataclass(frozen=True, eq=False)
class Growth:
    """What of a tail gap's growth is the probe's, and what the signal's, by the rule of this module.

    Attributes:
        concept: Whose, or of how many the mean.
        first, last: Layers between which it grows; the last as text.
        own, chosen, top: Gaps at the first layer, along its own vector and the chosen one, and at the last.
        difference: D, over test documents.
        refits: D, over groups of train documents; None without refits.
        answer: "signal", "probe" or "cannot be said".
        because: The interval it rests on.
        detectable: Of what cannot be said, the change that could have been seen.
    """

    concept: str
    first: int
    last: str
    own: Drawn
    chosen: Drawn
    top: Drawn
    difference: Drawn
    refits: Drawn | None
    answer: Answer
    because: str
    detectable: float

    def __repr__(self) -> str:
        return f"Growth({self.concept!r}: {self.answer}; {self.sentence()})"

    def sentence(self) -> str:
        """Under the picture."""
        a, b, t = (number(float(one.estimate), 2) for one in (self.own, self.chosen, self.top))
        said = f"most of the growth is {_SAYS.get(self.answer, '')}"
        if self.answer == "cannot be said":
            said = "what grows, probe or signal, cannot be said"
        return (
            f"From layer {self.first} to {self.last} the tail gap goes from {a} to {t} along each layer's "
            f"own vector, and from {b} to {t} along that of {self.last}: {said} ({self.because})."
        )


class _Three(NamedTuple):
    """Gaps at the first layer, own and chosen, and at the last."""

    own: Drawn
    chosen: Drawn
    top: Drawn

    @classmethod
    def of(cls, own: Drawn, chosen: Drawn, concept: str, last: int) -> _Three:
        first = own.axes["layer"][0]
        return cls(
            own.sel(layer=first, concept=concept),
            chosen.sel(layer=first, concept=concept),
            own.sel(layer=last, concept=concept),
        )

    @property
    def growths(self) -> tuple[Drawn, Drawn]:
        """The smaller and the larger one."""
        both = [self.top - self.own, self.top - self.chosen]
        smaller, larger = sorted(both, key=lambda one: float(one.estimate))
        return smaller, larger

    @property
    def difference(self) -> Drawn:
        """D."""
        smaller, larger = self.growths
        return smaller - (larger - smaller)


def growths(
    measures: Mapping[str, Drawn],
    chosen_layer: Mapping[str, int],
    weights: Float64[np.ndarray, "concept column"],
) -> tuple[Growth, ...]:
    """The mean over concepts first, then each concept.

    Args:
        measures: Along the own vectors and the others.
        chosen_layer: Of each concept.
        weights: Positive samples of each concept in every column of the tail gap.
    """
    own, along = measures[GAP], measures[f"{GAP}_{CHOSEN}"]
    first = own.axes["layer"][0]
    concepts = list(own.axes["concept"])
    names = [c for c in concepts if chosen_layer[c] != first]
    tests = {c: _Three.of(own, along, c, chosen_layer[c]) for c in names}
    names = [c for c, three in tests.items() if np.isfinite(three.difference.estimate)]
    refits: dict[str, _Three] = {}
    if f"{GAP}_{REFITS}" in measures:
        whole, carried_ones = (measures[f"{GAP}_{name}"] for name in (REFITS, f"{CHOSEN}_{REFITS}"))
        refits = {c: _Three.of(whole, carried_ones, c, chosen_layer[c]) for c in names}
    found = [_growth(c, first, f"layer {chosen_layer[c]}", tests[c], refits.get(c)) for c in names]
    if len(names) < 2:
        return tuple(found)
    at = [concepts.index(c) for c in names]
    last = {chosen_layer[c] for c in names}
    to = f"layer {last.pop()}" if len(last) == 1 else "each concept's chosen layer"
    mean = _growth(
        f"mean of {len(names)} concepts",
        first,
        to,
        _mean([tests[c] for c in names], weights[at]),
        _mean([refits[c] for c in names], weights[at, :1]) if refits else None,
    )
    return (mean, *found)


def _mean(each: Sequence[_Three], weights: Float64[np.ndarray, "concept column"]) -> _Three:
    parts = (dict(enumerate(of)) for of in zip(*each, strict=True))
    return _Three(*(stack(part, "concept").mean("concept", weights) for part in parts))


def _growth(concept: str, first: int, last: str, test: _Three, refits: _Three | None) -> Growth:
    # The smaller growth is that of the data, of refits as of test documents: column 0 is the same.
    larger = [three.growths[1] for three in (test, refits) if three]
    difference = [three.difference for three in (test, refits) if three]
    answer: Answer = "cannot be said"
    low, _ = _ends(larger)
    if not low > 0:
        change = _detectable(larger)
        because = f"the larger growth is {_text(larger)}; {seen_words(change)}"
    else:
        low, high = _ends(difference)
        change = _detectable(difference)
        because = f"what both show less what one shows is {_text(difference)}"
        if low > 0 or high < 0:
            answer, change = "signal" if low > 0 else "probe", math.nan
        else:
            because += f"; {seen_words(change)}"
    only = None if refits is None else refits.difference
    return Growth(concept, first, last, *test, test.difference, only, answer, because, change)


def _ends(parts: Sequence[Drawn]) -> tuple[float, float]:
    """The interval whose half-widths are those of the parts, added in squares."""
    half = math.sqrt(sum(float((one.high - one.low) / 2) ** 2 for one in parts))
    estimate = float(parts[0].estimate)
    return estimate - half, estimate + half


def _detectable(parts: Sequence[Drawn]) -> float:
    return math.sqrt(sum(float(one.detectable()) ** 2 for one in parts))


def _text(parts: Sequence[Drawn]) -> str:
    low, high = _ends(parts)
    estimate = number(float(parts[0].estimate), 2)
    return (
        f"{estimate} [{number(low, 2)}, {number(high, 2)}]" if math.isfinite(low) else bounds_text(parts[0])
    )
