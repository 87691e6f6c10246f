"""Detection metrics of one method on a split and on every resample of its documents.

Per concept: precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2TP / (2TP + FP + FN), and
the AUROC of what the method thresholds. A concept without positive samples has none of them (NaN),
one without negative samples no AUROC; precision is 0 where nothing fires on a concept that has
positives. Averages over concepts leave out what is not defined, weighted and macro alike, so that
all metrics but AUROC average the same concepts:

    weighted = sum_c n_c m_c / sum_c n_c,  n_c = positive samples,      macro = mean_c m_c

Column 0 of every array is the split itself, the others are its resamples. All methods share the
resamples, so differences are paired. A method with several draws (RandTok) is averaged over them
within each column.

False fires and misses, raw against SuperActivators; and how much of a concept the tail covers.

    false fire = share of negative samples that fire,   miss = share of positive ones that do not

Raw: a sample fires when any token lies above the midpoint between the calibration means of its
in-concept and its out-of-concept token scores, at the same layer and unit: what a reader of the
bulk of the distribution would use. It is one rule among many, not the best raw one.

SuperActivator fraction of a positive sample with |in| > 0 in-concept tokens (arXiv 2512.05038; the
published axis counts all SuperActivators, its caption those inside):

    r_all = |SA| / |in|  (may exceed 1),      r_in = |SA and in| / |in|  (at most 1)

An evaluation as rows, as text with an honest verdict, and as JSON.

Every method on held-out samples, side by side, with intervals over source documents.

Metrics are defined in `measure.py`. Differences are method minus SuperActivators on the same
resamples. Decisions are those of calibration: nothing is chosen here, and the split is read once.

What the intervals do not show: another train or calibration split (they are conditional on both),
and the number of comparisons (each stands alone). An interval that contains zero is no proof of
equality.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from sa_plugin._check import position_of
from sa_plugin.data.concept_data import Split
from sa_plugin.detection.find import sample_max
from sa_plugin.detection.guard import check_unseen, document_names
from sa_plugin.detection.methods import (
    ALWAYS,
    RANDOM,
    RANDOM_DRAWS,
    TAIL,
    given_names,
    given_values,
    is_given,
    method_names,
    values,
)
from sa_plugin.detection.search import Calibrated
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import aligned, as_html, frame, number, plain, signed
from sa_plugin.statistics.bootstrap import (
    Average,
    Resamples,
    document_sums,
    mean_over_concepts,
    resample_documents,
    resampled_confusion,
)
from sa_plugin.statistics.confusion import Confusion, confusion, f1, precision, ratio, recall
from sa_plugin.statistics.drawn import Interval, percentile_bounds

if TYPE_CHECKING:
    from sa_plugin.detection.detector import Detector


METRICS = ("precision", "recall", "f1", "auroc")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one method, or one draw of it, said of every sample.

    Attributes:
        fired: Whether it fires.
        values: What it thresholds.
    """

    fired: Bool[np.ndarray, "sample concept"]
    values: Float[np.ndarray, "sample concept"]


def measure(
    outcomes: Sequence[Outcome], labels: Bool[np.ndarray, "sample concept"], resamples: Resamples
) -> dict[str, Float[np.ndarray, "concept column"]]:
    """Every metric of a method, averaged over its draws.

    Args:
        outcomes: One a draw.
        labels: Sample labels.
        resamples: Draws of documents.

    Returns:
        Metric to `[concept, 1 + draws]`; column 0 is the split itself.
    """
    each = []
    for outcome in outcomes:
        counts = counted(outcome.fired.T, labels.T, resamples)
        each.append(tuple(_defined(m(counts), counts) for m in (precision, recall, f1)))
    found = dict(zip(METRICS, np.mean(each, axis=0), strict=False))
    values = np.stack([outcome.values for outcome in outcomes])
    columns = [mean_auroc(values[..., c], labels[:, c], resamples) for c in range(labels.shape[1])]
    return {**found, "auroc": np.stack(columns)}


def counted(
    fired: Bool[np.ndarray, "*shape sample"], labels: Bool[np.ndarray, "*#shape sample"], resamples: Resamples
) -> Confusion:
    """Outcome counts `[*shape, 1 + draws]`; column 0 is the split itself."""
    here, drawn = confusion(fired, labels), resampled_confusion(fired, labels, resamples)
    pairs = [np.broadcast_arrays(a[..., None], b) for a, b in zip(here, drawn, strict=True)]
    return Confusion(*(np.concatenate([a[..., :1], b], axis=-1) for a, b in pairs))


def f1_of(counts: Confusion) -> Float[np.ndarray, "*shape"]:
    """F1, not defined where there is no positive sample."""
    return _defined(f1(counts), counts)


def positives_of(
    labels: Bool[np.ndarray, "sample concept"], resamples: Resamples
) -> Float[np.ndarray, "concept column"]:
    """Positive samples of each concept."""
    counts = counted(labels.T, labels.T, resamples)
    return np.asarray(counts.tp, dtype=np.float64)


def averaged(
    metric: Float[np.ndarray, "*shape concept column"],
    positives: Float[np.ndarray, "concept column"],
    average: Average,
) -> Float[np.ndarray, "*shape column"]:
    """Mean over concepts of every column."""
    return mean_over_concepts(np.moveaxis(metric, -2, -1), positives.T, average)


def interval_of(columns: Float[np.ndarray, " column"], resamples: Resamples, level: float) -> Interval:
    """The estimate of column 0 with the percentile interval of the others that are defined."""
    drawn = columns[1:]
    low, high = percentile_bounds(drawn[None], level)
    defined = int(np.isfinite(drawn).sum())
    return Interval(
        float(columns[0]), float(low[0]), float(high[0]), level, defined, n_units=resamples.n_documents
    )


def mean_auroc(
    values: Float[np.ndarray, "draw sample"], labels: Bool[np.ndarray, " sample"], resamples: Resamples
) -> Float[np.ndarray, " column"]:
    """AUROC of one concept, averaged over a method's draws; NaN where a class is empty.

    The number of pairs does not depend on the draw, so the mean is one quadratic form in the
    document weights: draws add up in `wins` before anything is resampled.
    """
    one = np.ones((1, resamples.n_documents))
    weights = np.concatenate([one, resamples.weights])
    positive, negative = np.flatnonzero(labels), np.flatnonzero(~labels)
    wins = np.zeros((len(positive), len(negative)))
    for value in values:
        up, down = value[positive][:, None], value[negative]
        wins += (up > down) + 0.5 * (up == down)
    of_negative = document_sums(wins, resamples.of(negative))
    by_document = document_sums(of_negative.T, resamples.of(positive)).T
    # Documents without a positive have empty rows, those without a negative empty columns.
    rows, columns = np.unique(resamples.document[labels]), np.unique(resamples.document[~labels])
    left, right = weights[:, rows], weights[:, columns]
    total = ((left @ by_document[np.ix_(rows, columns)]) * right).sum(1)
    counts = document_sums(np.stack([labels, ~labels]), resamples) @ weights.T
    return ratio(total, len(values) * counts[0] * counts[1], empty=np.nan)


def _defined(metric: Float[np.ndarray, "*shape"], counts: Confusion) -> Float[np.ndarray, "*shape"]:
    return np.where(np.asarray(counts.tp + counts.fn) > 0, metric, np.nan)


GRID: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Rates:
    """False-fire and miss rate of one concept; NaN without negative or positive samples."""

    concept: str
    raw_false_fire: Interval
    raw_miss: Interval
    tail_false_fire: Interval
    tail_miss: Interval


@dataclass(frozen=True, eq=False)
class Fractions:
    """Distribution of the SuperActivator fraction over positive samples.

    Attributes:
        grid: Fractions.
        all: Share of samples with r_all at most each grid value; NaN for a concept without any.
        inside: The same of r_in.
        above_one: Share of samples with r_all > 1.
        n: Samples counted: positive with at least one in-concept token.
        skipped: Positive samples without in-concept token.
    """

    grid: tuple[float, ...]
    all: Float[np.ndarray, "concept grid"]
    inside: Float[np.ndarray, "concept grid"]
    above_one: Float[np.ndarray, " concept"]
    n: Int[np.ndarray, " concept"]
    skipped: Int[np.ndarray, " concept"]

    def __repr__(self) -> str:
        at = self.grid.index(0.2)
        with np.errstate(invalid="ignore"):
            share = [float(np.nanmean(a[:, at])) if self.n.any() else np.nan for a in self._both]
        return (
            f"Fractions(r <= .2 in {share[0]:.0%} of positive samples (all) and {share[1]:.0%} "
            f"(inside), mean over {len(self.n)} concepts)"
        )

    @property
    def _both(self) -> tuple[Float[np.ndarray, "concept grid"], Float[np.ndarray, "concept grid"]]:
        return self.all, self.inside


def rates(
    concepts: tuple[str, ...],
    raw: Bool[np.ndarray, "sample concept"],
    tail: Bool[np.ndarray, "sample concept"],
    labels: Bool[np.ndarray, "sample concept"],
    resamples: Resamples,
    level: float,
) -> tuple[Rates, ...]:
    """False-fire and miss rates of both rules, with intervals over documents."""
    raw_fire, raw_miss = _rates(counted(raw.T, labels.T, resamples))
    tail_fire, tail_miss = _rates(counted(tail.T, labels.T, resamples))
    return tuple(
        Rates(
            concept,
            *(
                interval_of(table[k], resamples, level)
                for table in (raw_fire, raw_miss, tail_fire, tail_miss)
            ),
        )
        for k, concept in enumerate(concepts)
    )


def fractions(
    superactivators: Bool[np.ndarray, "token concept"],
    inside: Bool[np.ndarray, "token concept"],
    sample_of: Int[np.ndarray, " token"],
    labels: Bool[np.ndarray, "sample concept"],
) -> Fractions:
    """The distribution of both fractions over positive samples."""
    n_samples, concepts = labels.shape

    def per_sample(mask: Bool[np.ndarray, "token concept"]) -> Int[np.ndarray, "sample concept"]:
        out = np.zeros((n_samples, concepts), dtype=np.int64)
        np.add.at(out, sample_of, mask)
        return out

    n_in, n_all = per_sample(inside), per_sample(superactivators)
    n_both = per_sample(superactivators & inside)
    counted_samples = labels & (n_in > 0)
    n = counted_samples.sum(0)
    # In tenths and integers, so that 3 of 10 is at most .3.
    tenths = np.arange(1, 11)[:, None, None]

    def cdf(part: Int[np.ndarray, "sample concept"]) -> Float[np.ndarray, "concept grid"]:
        below = (10 * part <= tenths * n_in) & counted_samples
        return ratio(below.sum(1), n, empty=np.nan).T

    above = ((n_all > n_in) & counted_samples).sum(0)
    return Fractions(GRID, cdf(n_all), cdf(n_both), ratio(above, n, empty=np.nan), n, labels.sum(0) - n)


def _rates(
    counts: Confusion,
) -> tuple[Float[np.ndarray, "concept column"], Float[np.ndarray, "concept column"]]:
    negative = np.asarray(counts.fp + counts.tn)
    positive = np.asarray(counts.tp + counts.fn)
    return ratio(counts.fp, negative, np.nan), ratio(counts.fn, positive, np.nan)


FEW_DOCUMENTS = 20
WIDTH = 110
CONDITIONAL = (
    "Intervals resample source documents with vectors, thresholds, deltas and layers held fixed: "
    "they are conditional on the train and calibration splits, and not adjusted for the number of "
    "comparisons."
)


def rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row a method; methods that were not fitted say why in `note`."""
    found = [_row(result) for result in evaluation.methods]
    keys = found[0].keys()
    for method, reason in evaluation.missing.items():
        empty: dict[str, Any] = dict.fromkeys(keys, float("nan"))
        found.append({**empty, "method": method, "candidates": 0, "note": f"not fitted: {reason}"})
    return found


def concept_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One row for each concept and method."""
    found = []
    for k, concept in enumerate(evaluation.concepts):
        for result in evaluation.methods:
            row: dict[str, Any] = {"concept": concept, "method": result.method}
            row["n_positive"] = int(evaluation.n_positive[k])
            for metric in METRICS:
                row[metric] = result.concept[metric][k].estimate
            f1 = result.concept["f1"][k]
            row |= {"f1_low": f1.low, "f1_high": f1.high}
            row["layer"] = result.layer[:, k].tolist() if result.layer.size else []
            row["delta"] = result.delta[:, k].tolist() if result.delta.size else []
            found.append(row)
    return found


def text(evaluation: Evaluation) -> str:
    """The table of methods, the verdict, and what the intervals are conditional on."""
    about = evaluation.resampling
    header = ["method", "F1", f"{100 * about.level:g} % interval", "precision", "recall", "AUROC"]
    header += ["macro F1", "F1 - SA", "interval", "", "candidates"]
    lines = [_line(result) for result in evaluation.methods]
    lines += [[m, "not fitted", *[""] * 9] for m in evaluation.missing]
    about_candidates = (
        "* the interval of the paired difference excludes zero. candidates: (layer, delta, unit) "
        "combinations each concept's choice was made from, on calibration."
    )
    if any(m.method == RANDOM for m in evaluation.methods):
        about_candidates += f" {RANDOM}: mean of {RANDOM_DRAWS} draws."
    reasons = [f"{m} is not fitted: {why}." for m, why in evaluation.missing.items()]
    title = (
        f"Detection on {about.split!r}: {about.n_samples} samples of {about.n_documents} "
        f"documents, {len(evaluation.concepts)} concepts; F1, precision, recall and AUROC "
        "weighted by positive samples, macro a plain mean; both leave out concepts without any."
    )
    condition = f"{CONDITIONAL} {about.draws} draws, seed {about.seed}.{_few(about.n_documents)}"
    notes = [about_candidates, *reasons, verdict(evaluation), condition]
    return "\n".join([title, aligned(header, lines), *(_wrapped(note) for note in notes)])


def _wrapped(note: str) -> str:
    return textwrap.fill(note, WIDTH, break_on_hyphens=False)


def verdict(evaluation: Evaluation) -> str:
    """Which baselines SuperActivators beat, tie with and lose to, by weighted F1."""
    beaten: list[str] = []
    tied: list[str] = []
    lost: list[str] = []
    unknown: list[str] = []
    for result in evaluation.methods:
        if result.method == TAIL:
            continue
        by = result.difference["f1"]
        words = f"{result.method} ({signed(by.estimate)} {_bounds(by, sign=True)})"
        if by.high < 0:
            beaten.append(words)
        elif by.low > 0:
            lost.append(words)
        else:
            (tied if by.low <= 0 <= by.high else unknown).append(words)
    parts = [("beat", beaten), ("tie with", tied), ("lose to", lost)]
    parts.append(("cannot be compared with", unknown))
    said = "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
    level = 100 * evaluation.resampling.level
    return (
        f"By weighted F1 SuperActivators {said}. In brackets: method minus SuperActivators with "
        f"its {level:g} % interval; a tie is an interval that holds zero, no proof of equality."
    )


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Every number, seed and count."""
    parts = evaluation.fractions
    found = plain(
        {
            "resampling": asdict(evaluation.resampling),
            "concepts": evaluation.concepts,
            "n_positive": evaluation.n_positive,
            "methods": {m.method: _method_dict(m, evaluation) for m in evaluation.methods},
            "not_fitted": dict(evaluation.missing),
            "rates": [asdict(r) for r in evaluation.rates],
            "fractions": {
                name: getattr(parts, name) for name in ("grid", "all", "inside", "above_one", "n", "skipped")
            },
            "verdict": verdict(evaluation),
            "note": CONDITIONAL,
        }
    )
    return dict(found)


def _few(documents: int) -> str:
    if documents >= FEW_DOCUMENTS:
        return ""
    return (
        f" Only {documents} documents: percentile intervals over so few are too narrow, so read no "
        "difference off them."
    )


def _row(result: MethodResult) -> dict[str, Any]:
    row: dict[str, Any] = {"method": result.method}
    for metric in METRICS:
        row[f"weighted_{metric}"] = result.weighted[metric].estimate
    row |= {"f1_low": result.weighted["f1"].low, "f1_high": result.weighted["f1"].high}
    for metric in METRICS:
        row[f"macro_{metric}"] = result.macro[metric].estimate
    for metric in ("f1", "auroc"):
        by = result.difference.get(metric)
        row[f"{metric}_difference"] = by.estimate if by else float("nan")
        row[f"{metric}_difference_low"] = by.low if by else float("nan")
        row[f"{metric}_difference_high"] = by.high if by else float("nan")
        row[f"{metric}_difference_excludes_zero"] = bool(by and by.excludes_zero)
    return {**row, "candidates": result.candidates, "note": _note(result)}


def _line(result: MethodResult) -> list[str]:
    f1 = result.weighted["f1"]
    cells = [result.method, number(f1.estimate), _bounds(f1)]
    cells += [number(result.weighted[m].estimate) for m in ("precision", "recall", "auroc")]
    cells.append(number(result.macro["f1"].estimate))
    by = result.difference.get("f1")
    if by is None:
        cells += ["", "", ""]
    else:
        cells += [signed(by.estimate), _bounds(by, sign=True), "*" if by.excludes_zero else ""]
    return [*cells, str(result.candidates)]


def _note(result: MethodResult) -> str:
    if result.method == RANDOM:
        return f"mean of {len(result.delta)} draws"
    return "" if result.candidates else "no search"


def _method_dict(result: MethodResult, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "concepts": {
            c: {m: asdict(result.concept[m][k]) for m in METRICS} for k, c in enumerate(evaluation.concepts)
        },
        "weighted": {m: asdict(v) for m, v in result.weighted.items()},
        "macro": {m: asdict(v) for m, v in result.macro.items()},
        "difference": {
            m: {**asdict(v), "excludes_zero": v.excludes_zero} for m, v in result.difference.items()
        },
        "layer": result.layer,
        "delta": result.delta,
        "candidates": result.candidates,
    }


def _bounds(interval: Interval, *, sign: bool = False) -> str:
    show = signed if sign else number
    return f"[{show(interval.low)}, {show(interval.high)}]"


LATE = "the detector was calibrated on scores without it"


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method on the split.

    Attributes:
        method: Name.
        concept: Metric to one interval a concept.
        weighted: Metric to its mean over concepts, weighted by positive samples.
        macro: Metric to its plain mean over concepts.
        difference: "f1" and "auroc", weighted, minus those of SuperActivators; empty for them.
        layer: Chosen block, by draw and concept; empty where layers mean nothing.
        delta: Chosen delta, by draw and concept; empty where there is none.
        candidates: Number of (layer, delta, unit) behind each choice.
    """

    method: str
    concept: Mapping[str, tuple[Interval, ...]]
    weighted: Mapping[str, Interval]
    macro: Mapping[str, Interval]
    difference: Mapping[str, Interval]
    layer: Int[np.ndarray, "layer_draw concept"]
    delta: Float[np.ndarray, "draw concept"]
    candidates: int

    def __repr__(self) -> str:
        return f"MethodResult({self.method!r}, weighted F1 {self.weighted['f1']})"


@dataclass(frozen=True)
class Resampling:
    """What was evaluated and how the intervals were made."""

    split: str
    data_hash: str
    n_samples: int
    n_documents: int
    draws: int
    seed: int
    level: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Detection metrics of every method on one split.

    Attributes:
        concepts: Names.
        n_positive: Positive samples of each concept.
        methods: Results, SuperActivators first.
        missing: Methods not fitted, with the reason.
        rates: False fires and misses of each concept, raw against SuperActivators.
        fractions: SuperActivator fractions of positive samples.
        resampling: Split, counts, seed, level.
    """

    concepts: tuple[str, ...]
    n_positive: Int[np.ndarray, " concept"]
    methods: tuple[MethodResult, ...]
    missing: Mapping[str, str]
    rates: tuple[Rates, ...]
    fractions: Fractions
    resampling: Resampling

    def __repr__(self) -> str:
        return (
            f"Evaluation({self.resampling.split!r}, {self.resampling.n_samples} samples, "
            f"{len(self.methods)} methods, SuperActivators' weighted F1 "
            f"{self.of(TAIL).weighted['f1']})"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def of(self, method: str) -> MethodResult:
        """The result of one method.

        Raises:
            ValueError: Unknown or not fitted; the text names the nearest, or the reason.
        """
        if method in self.missing:
            raise ValueError(f"{method} was not fitted: {self.missing[method]}.")
        return self.methods[position_of(method, [m.method for m in self.methods], "the methods")]

    def table(self) -> Any:
        """One row a method: a pandas DataFrame where pandas is installed."""
        return frame(rows(self))

    def concept_table(self) -> Any:
        """One row for each concept and method: a DataFrame where pandas is installed."""
        return frame(concept_rows(self))

    def summary(self) -> str:
        """The table as text, with the verdict and what it is conditional on."""
        return text(self)

    def verdict(self) -> str:
        """Which baselines SuperActivators beat, tie with and lose to, by weighted F1."""
        return verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """Every number, seed and count, JSON-ready; what is not defined is None."""
        return to_dict(self)


def evaluate(
    detector: Detector,
    split: Split,
    *,
    scores: ScoreTable | None,
    draws: int,
    seed: int,
    level: float,
    progress: bool = False,
) -> Evaluation:
    """See `Detector.evaluate`."""
    check_unseen(split, detector.seen)
    table = detector.scores_of(split, scores)
    token_labels, labels = labels_of(table, detector.concepts)
    resamples = resample_documents(document_names(table.tokens), draws=draws, seed=seed)
    said = outcomes(detector, table)
    positives = positives_of(labels, resamples)
    bar = tqdm(said.items(), desc="evaluate", unit="method", disable=not progress, leave=False)
    measured = {name: measure(each, labels, resamples) for name, each in bar}
    results = tuple(_result(detector, name, measured, positives, resamples, level) for name in measured)
    late = [k for k in given_names(table, searched=True) if k not in detector.baselines]
    tokens = detector.token_scores(table)
    raw = sample_max(tokens, table.tokens.bounds) > detector.cuts.midpoint
    fired = said[TAIL][0].fired
    tail = detector.superactivators(table)
    return Evaluation(
        detector.concepts,
        labels.sum(0),
        results,
        {**detector.missing, **dict.fromkeys(late, LATE)},
        rates(detector.concepts, raw, fired, labels, resamples, level),
        fractions(tail, token_labels, table.tokens.sample_of, labels),
        Resampling(split.name, split.data_hash, len(labels), resamples.n_documents, draws, seed, level),
    )


def labels_of(
    table: ScoreTable, concepts: tuple[str, ...]
) -> tuple[Bool[np.ndarray, "token concept"], Bool[np.ndarray, "sample concept"]]:
    """Token and sample labels, columns in the detector's order."""
    columns = [position_of(c, table.tokens.concepts, "the labelled concepts") for c in concepts]
    return table.tokens.labels[:, columns], table.tokens.sample_labels[:, columns]


def outcomes(detector: Detector, table: ScoreTable) -> dict[str, list[Outcome]]:
    """What every fitted method says of every sample, one outcome a draw."""
    found: dict[str, list[Outcome]] = {}
    calibrated: dict[str, tuple[Calibrated, ...]] = {TAIL: (detector.tail,), **detector.baselines}
    for name in (*method_names(), *calibrated):
        if name == ALWAYS:
            shape = (table.tokens.n_samples, len(detector.concepts))
            found[name] = [Outcome(np.ones(shape, dtype=bool), np.zeros(shape))]
        elif name in calibrated and name not in found:
            found[name] = [outcome(c, table, detector.seed, k) for k, c in enumerate(calibrated[name])]
    for name in given_names(table, searched=False):
        threshold = table.given[name].threshold
        assert threshold is not None
        value = given_values(name, table, detector.concepts).astype(np.float64)
        found[name] = [Outcome(value >= threshold, value)]
    return found


def outcome(calibrated: Calibrated, table: ScoreTable, seed: int, draw: int) -> Outcome:
    """What one calibrated method says of every sample, at its own layers."""
    value = values(
        calibrated.method, table, calibrated.layer, calibrated.chosen_unit, seed=seed, draw=draw
    ).astype(np.float64)
    return Outcome(value >= calibrated.chosen_threshold, value)


def _result(
    detector: Detector,
    name: str,
    measured: Mapping[str, Mapping[str, Float[np.ndarray, "concept column"]]],
    positives: Float[np.ndarray, "concept column"],
    resamples: Resamples,
    level: float,
) -> MethodResult:
    own, tail = measured[name], measured[TAIL]

    def mean(metric: Float[np.ndarray, "concept column"], average: Average) -> Interval:
        return interval_of(averaged(metric, positives, average), resamples, level)

    def difference(metric: str) -> Interval:
        ours, theirs = (averaged(m[metric], positives, "weighted") for m in (own, tail))
        return interval_of(ours - theirs, resamples, level)

    chosen = (detector.tail,) if name == TAIL else detector.baselines.get(name, ())
    layers = np.array(detector.bank.layers)
    has_layers = chosen and name != "length-only" and not is_given(name)
    return MethodResult(
        name,
        {m: tuple(interval_of(row, resamples, level) for row in own[m]) for m in METRICS},
        {m: mean(own[m], "weighted") for m in METRICS},
        {m: mean(own[m], "macro") for m in METRICS},
        {} if name == TAIL else {m: difference(m) for m in ("f1", "auroc")},
        np.stack([layers[c.layer] for c in chosen])
        if has_layers
        else np.zeros((0, len(detector.concepts)), int),
        np.stack([c.chosen_delta for c in chosen]) if chosen else np.zeros((0, len(detector.concepts))),
        chosen[0].candidates if chosen else 0,
    )
