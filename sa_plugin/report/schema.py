"""The schema of `results.json`: everything a study found, in one JSON-ready dictionary.

One dictionary feeds the report, the figures and whoever reads the file. Rules that hold throughout:

- A `Number` is a float, or None where it is not defined (NaN is no JSON); reports show "–".
- An `Interval` is `[low, high]`, over source documents (`sa_plugin.statistics.interval`), or None where
  there is none.
- "[layer]" lists run parallel to the `layers` of their block, "[delta]" lists to its `deltas`; lists
  that run parallel must be as long as what they run along.
- Every block may be missing: the report then says so in one line. Inside a block, keys that are
  not marked `NotRequired` are needed, and keys that are not in the schema are refused, so that a
  misspelt name is an error and never a silently missing number. `extra` takes anything.
- Concepts, kinds and methods are named as in the library (`sa_plugin.detection.methods`:
  "SuperActivators", "MaxTok", "always-positive", ...).
- A picture is whole and holds no address: its image is in the file, and its outline is a path.

What the schema does not promise: that the numbers are right. It carries counts, seeds, splits and
candidates so that they can be derived again.

pydantic checks the types (`record.py`), which is why annotations are no strings here.
"""

from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

SCHEMA = 1
"""Format number of the file: raised when a key changes its meaning or is taken away."""
CLOSED = ConfigDict(extra="forbid", strict=True)

Number = float | None
Interval = list[Number] | None


class HowDrawn(TypedDict):
    """How intervals were made: each `unit` left out in turn, `draws` of them for tail gaps."""

    unit: str
    draws: int
    level: float


class Meta(TypedDict):
    """What was run. `samples` and `documents` map split to count."""

    model: str
    data: str
    concepts: list[str]
    layers: list[int]
    primary_kind: str
    seed: int
    samples: dict[str, int]
    documents: NotRequired[dict[str, int]]
    tokens_kept: int
    tokens_dropped: dict[str, int]
    host: NotRequired[str]
    dtype: NotRequired[str]
    skipped: NotRequired[dict[str, int]]
    n_blocks: NotRequired[int]
    hook_point: NotRequired[str]
    architecture: NotRequired[str]
    processing: NotRequired[str]
    data_hash: NotRequired[str]
    data_note: NotRequired[str]
    intervals: NotRequired[HowDrawn]


class MethodRow(TypedDict):
    """One row of the detection table, on the test split.

    `precision`, `recall`, `auroc` are weighted over concepts by positive test samples, as
    `weighted_f1` is. `difference` is this method minus SuperActivators, paired over documents
    (None on SuperActivators' own row); `p_in_family` its p, adjusted for all differences of the table
    (max-T). `candidates`: how many (layer, delta, unit, parameters) each concept's
    choice was made from.
    """

    method: str
    weighted_f1: Number
    interval: Interval
    precision: Number
    recall: Number
    auroc: Number
    macro_f1: Number
    macro_interval: NotRequired[Interval]
    difference: Number
    difference_interval: Interval
    p_in_family: NotRequired[Number]
    candidates: int


class ConceptF1(TypedDict):
    """Test F1 of one concept, by method. `documents`: how many hold a positive sample."""

    concept: str
    n_positive: int
    documents: NotRequired[int]
    f1: dict[str, Number]
    interval: NotRequired[dict[str, Interval]]


class MonitorRow(TypedDict):
    """What a monitor is chosen by, of one method.

    `tpr`: true-positive rate at each of the block's false-positive rates, None where too few negatives
    lie above. `partial_auroc`: standardised, up to .1; both weighted over concepts by positive samples.
    `false_alarms`: negative samples that fire for 1,000 tokens of negative samples, a plain mean.
    Differences are this method minus SuperActivators, paired.
    """

    method: str
    tpr: list[Number]
    tpr_interval: list[Interval]
    partial_auroc: Number
    partial_auroc_interval: Interval
    partial_auroc_difference: Number
    partial_auroc_difference_interval: Interval
    false_alarms: Number
    false_alarms_interval: Interval


class MonitorBlock(TypedDict):
    """True positives where false ones are few. `rests_on`: how many negatives that stands on."""

    false_positive_rates: list[Number]
    rests_on: str
    methods: list[MonitorRow]


class DetectionBlock(TypedDict):
    """Sample-level detection on the test split, every method with the same search."""

    n_samples: int
    n_documents: int
    methods: list[MethodRow]
    monitor: NotRequired[MonitorBlock]
    per_concept: NotRequired[list[ConceptF1]]


class ChoiceRow(TypedDict):
    """What calibration chose for one concept. `unit`: the matched cluster of unsupervised kinds.

    `threshold` is None when it is infinite: the concept then never fires.
    """

    concept: str
    layer: int
    delta: float
    threshold: Number
    cal_f1: Number
    candidates: int
    n_cal_tokens: NotRequired[int]
    unit: NotRequired[str]


class Curve(TypedDict):
    """Weighted test F1 of one method at every delta, all concepts sharing delta."""

    method: str
    weighted_f1: list[Number]
    interval: NotRequired[list[Interval]]


class Sparsity(TypedDict):
    """The delta curve. `layer` None: each concept at its own chosen layer."""

    layer: int | None
    deltas: list[float]
    curves: list[Curve]
    always_positive: Number


class TraceSeries(TypedDict):
    """Separation of in- from out-of-concept tokens, all lists [layer]; `pitfalls` 6 defines them.

    `X_interval` is the interval of `X`. `coverage` is the share of positive samples with
    a token above q, the .995 quantile of out-of-concept scores on `Trace.fixed_on`,
    `negative_coverage` that of negative samples; `realised_fpr` the share of out-of-concept tokens
    above q on test. `*_at_maxima`: above the .995 quantile of the negative samples' maxima.
    """

    auroc: list[Number]
    auroc_interval: NotRequired[list[Interval]]
    in_mass_at_fpr: list[Number]
    in_mass_at_fpr_interval: NotRequired[list[Interval]]
    realised_fpr: NotRequired[list[Number]]
    realised_fpr_interval: NotRequired[list[Interval]]
    coverage: list[Number]
    coverage_interval: NotRequired[list[Interval]]
    negative_coverage: list[Number]
    negative_coverage_interval: NotRequired[list[Interval]]
    coverage_at_maxima: NotRequired[list[Number]]
    coverage_at_maxima_interval: NotRequired[list[Interval]]
    negative_coverage_at_maxima: NotRequired[list[Number]]
    negative_coverage_at_maxima_interval: NotRequired[list[Interval]]
    tail_gap: list[Number]
    tail_gap_interval: NotRequired[list[Interval]]
    overlap: NotRequired[list[Number]]
    overlap_interval: NotRequired[list[Interval]]
    skewness: NotRequired[list[Number]]
    skewness_interval: NotRequired[list[Interval]]
    l_skewness: NotRequired[list[Number]]
    l_skewness_interval: NotRequired[list[Interval]]


class Distribution(TypedDict):
    """Densities of one concept's scores, [layer][bin], each a row that integrates to at most 1.

    `threshold` [layer] is on the same axis: (score - mean of out) / sd of out.
    """

    in_concept: list[list[Number]]
    out_of_concept: list[list[Number]]
    threshold: list[Number]


class Distributions(TypedDict):
    """Densities on one axis for all concepts and layers, in sd of the out-of-concept scores.

    `edges` has one entry more than there are bins. `out` says which tokens are out of concept.
    """

    edges: list[float]
    layers: list[int]
    concepts: dict[str, Distribution]
    out: NotRequired[str]


@with_config(CLOSED)
class TailSeries(TypedDict):
    """Measures of the tail along one set of vectors, all lists [layer]; `X_interval` is that of `X`."""

    tail_gap: list[Number]
    tail_gap_interval: list[Interval]
    coverage: list[Number]
    coverage_interval: list[Interval]
    negative_coverage: list[Number]
    negative_coverage_interval: list[Interval]
    overlap: list[Number]
    overlap_interval: list[Interval]


class TraceAlong(TypedDict):
    """The same tokens along other vectors than each layer's own; `mean` is over concepts."""

    concepts: dict[str, TailSeries]
    mean: TailSeries


class Grows(TypedDict):
    """Whether the probe or the signal grows, of a concept or the mean (first); `said` is the sentence.

    `answer`: "signal", "probe" or "cannot be said"; of the last, `detectable` is the change of a gap
    that could have been seen (null: none).
    """

    whose: str
    answer: str
    detectable: Number
    said: str


class Trace(TypedDict):
    """Every layer, on test. `mean` is over concepts.

    `along`: by "along_chosen" (the vectors of each concept's chosen layer, carried to all layers) and
    "along_prototype". `refit_groups`: of train documents left out in turn behind `growth`, 0 for none.

    `fpr`: share of out-of-concept tokens above q on the split `fixed_on` (.005). `delta`: of the
    tail gap and of the tail. `draws`: bootstrap draws behind tail gaps, not always those of `Meta`.
    """

    layers: list[int]
    concepts: dict[str, TraceSeries]
    mean: NotRequired[TraceSeries]
    fpr: NotRequired[float]
    delta: NotRequired[float]
    draws: NotRequired[int]
    fixed_on: NotRequired[str]
    along: NotRequired[dict[str, TraceAlong]]
    growth: NotRequired[list[Grows]]
    refit_groups: NotRequired[int]
    distributions: NotRequired[Distributions]


class Shares(TypedDict):
    """Share of a total by kind of component; signed, sums to 1."""

    head_share: Number
    mlp_share: Number
    embedding_share: Number
    bias_share: NotRequired[Number]
    head_share_interval: NotRequired[Interval]
    mlp_share_interval: NotRequired[Interval]
    embedding_share_interval: NotRequired[Interval]


class HeadMap(TypedDict):
    """Ledger of one concept. `lift`, `control`, `contrast` are [block][head].

    `lift`: mean contribution on SuperActivators minus that on the other tokens of their samples.
    `control`: the same for one permuted-label vector with its own top tail. `contrast`: in-concept
    minus out-of-concept; it selects no tokens by score, but heads are still ranked. `layer`: the
    layer whose score the ledger adds up to. `total`: the lift of that score. `shares`: of
    `Heads.shares_of`; `lift_shares`: of `total`.
    """

    layer: int
    lift: list[list[Number]]
    control: NotRequired[list[list[Number]]]
    contrast: NotRequired[list[list[Number]]]
    total: NotRequired[Number]
    total_interval: NotRequired[Interval]
    shares: NotRequired[Shares]
    lift_shares: NotRequired[Shares]


class HeadRow(TypedDict):
    """One of the strongest heads, by |`excess`| relative to the total; `excess` = lift - control.

    Negative numbers work against the concept.
    """

    concept: str
    layer: int
    head: int
    lift: Number
    interval: Interval
    control: Number
    control_interval: NotRequired[Interval]
    excess: NotRequired[Number]
    excess_interval: NotRequired[Interval]
    contrast: NotRequired[Number]
    contrast_interval: NotRequired[Interval]


@with_config(CLOSED)
class Heads(TypedDict):
    """The head ledger. `closes_to`: largest |sum of terms - score|; `unit`: of the lifts.

    `shares_of`: what `HeadMap.shares` are of, "lift" or "contrast". `candidates`: head x concept
    cells the strongest were picked from, on the split shown. `excludes_zero`: effect to the share
    of those cells whose interval excludes zero; that of "control" is what selection alone gives.
    """

    concepts: dict[str, HeadMap]
    strongest: list[HeadRow]
    closes_to: Number
    unit: NotRequired[str]
    shares_of: NotRequired[str]
    candidates: NotRequired[int]
    excludes_zero: NotRequired[dict[str, Number]]


class LocalisationRow(TypedDict):
    """Token-level agreement with the labels, weighted over concepts.

    `method`: "SuperActivators", "raw", or another rule of `sa_plugin.detection.localise`.
    """

    method: str
    f1: Number
    f1_interval: NotRequired[Interval]
    average_precision: Number
    average_precision_interval: NotRequired[Interval]
    auroc: Number
    auroc_interval: NotRequired[Interval]


class RateRow(TypedDict):
    """False fires and misses of samples: raw scores (`raw`) against SuperActivators (`tail`).

    `false_fire`: share of negative samples that fire. `miss`: share of positive ones that do not.
    The raw rule is that of `Passage.raw_threshold`.
    """

    concept: str
    raw_false_fire: Number
    raw_false_fire_interval: NotRequired[Interval]
    raw_miss: Number
    raw_miss_interval: NotRequired[Interval]
    tail_false_fire: Number
    tail_false_fire_interval: NotRequired[Interval]
    tail_miss: Number
    tail_miss_interval: NotRequired[Interval]


class FractionCurve(TypedDict):
    """Share of positive test samples with a fraction of at most `grid`, by concept and averaged."""

    mean: list[Number]
    concepts: dict[str, list[Number]]


class Fractions(TypedDict):
    """CDFs of the SuperActivator fraction of a sample.

    `all`: |SuperActivators| / |in-concept tokens| (may exceed 1, as published).
    `inside`: |SuperActivators that are in concept| / |in-concept tokens| (at most 1).
    """

    grid: list[float]
    all: FractionCurve
    inside: FractionCurve


@with_config(CLOSED)
class KindBlock(TypedDict, total=False):
    """Everything about one concept kind; every part may be missing.

    `absent`: why a part is missing, by its key, e.g. `{"heads": "post-norm architecture"}`.
    """

    scoring: str
    layers: list[int]
    note: str
    units: int
    tokens: dict[str, int]
    train_tokens: dict[str, int]
    fit: Any
    hook_point: str
    detection: DetectionBlock
    missing: dict[str, str]
    choices: list[ChoiceRow]
    sparsity: Sparsity
    trace: Trace
    heads: Heads
    localisation: list[LocalisationRow]
    rates: list[RateRow]
    fractions: Fractions
    tokens_per_positive: Any
    peaks: dict[str, Any]
    density: dict[str, Any]
    separation: dict[str, Any]
    absent: dict[str, str]
    extra: Any


class _Scored(TypedDict):
    """One sample with a concept's scores; lists run over kept tokens or patches.

    `role`: "true_positive", "raw_false_fire" (raw scores fire, the tail does not),
    "false_positive", "miss", or another word. `positive`: the sample's label.
    `raw_threshold`: a token above it fires by the raw rule that the tail is compared with: the
    midpoint between the calibration means of in- and out-of-concept token scores. `limit`: score of
    the darkest shade; by default the largest |score| shown for the concept.
    """

    id: str
    concept: str
    kind: str
    layer: int
    delta: NotRequired[float]
    threshold: Number
    role: str
    positive: bool
    scores: list[Number]
    superactivator: list[bool]
    in_concept: list[bool | None]
    document: NotRequired[str]
    raw_threshold: NotRequired[Number]
    limit: NotRequired[Number]
    comment: NotRequired[str]


class Passage(_Scored):
    """One text. Characters that no offset covers belong to dropped tokens and are shown as such."""

    text: str
    offsets: list[list[int]]


class Picture(_Scored):
    """One image.

    `png`: the image as a data URI, perhaps scaled down. `size`: height and width of the original, in
    whose pixels `boxes` (top, left, bottom, right of each patch; they may reach beyond
    the image) and `outline` (of the concept's mask, an SVG path to fill by the even-odd rule, empty
    without a mask) are given.
    """

    png: str
    size: list[int]
    boxes: list[list[float]]
    outline: str


class Explanation(TypedDict):
    """One attribution: `tokens` [token], and `heads` [block][head] where the method gives it.

    `objective`: "superactivator", "superactivator_tokens", "superactivator_margin" or "global".
    `method`: the explainer.
    `dropped`: sum of |attribution| on tokens that are not shown (dropped, such as the first) over
    the sum on all.
    """

    objective: str
    method: str
    value: Number
    tokens: list[Number]
    dropped: NotRequired[Number]
    heads: NotRequired[list[list[Number]]]


class Explained(TypedDict):
    """One passage explained under several objectives; same passage, same explainer."""

    id: str
    concept: str
    kind: str
    layer: int
    text: str
    offsets: list[list[int]]
    superactivator: list[bool]
    in_concept: list[bool]
    explanations: list[Explanation]
    coverage: NotRequired[Number]
    comment: NotRequired[str]


class Provenance(TypedDict, total=False):
    """What is needed to run it again. `timings` are seconds; `counts` are of anything counted."""

    versions: dict[str, str]
    hashes: dict[str, str]
    settings: dict[str, Any]
    timings: dict[str, Number]
    counts: dict[str, Any]
    command: str
    machine: str


@with_config(CLOSED)
class Results(TypedDict, total=False):
    """The whole file. `warnings`: every named warning the run gave, in order."""

    schema: int
    meta: Meta
    kinds: dict[str, KindBlock]
    passages: list[Passage]
    pictures: list[Picture]
    explained: Explained
    attribution: dict[str, Any]
    provenance: Provenance
    warnings: list[str]
    extra: Any
