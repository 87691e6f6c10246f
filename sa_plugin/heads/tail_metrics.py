"""What ablation is measured by: a concept's tail and detection, and the model's own output.

With `in` the scores of in-concept tokens, `neg` those of tokens of negative samples, top_n the
highest score of sample n, and q, tau, sd fixed as the table says:

| metric | is | fixed |
|---|---|---|
| tail_gap | (Q_{1-delta}(in) - Q_.995(neg)) / sd(neg) | delta; sd of the unablated run |
| coverage | P(top > q given positive) | q = Q_.995(neg) of the same run's calibration split |
| negative_coverage | P(top > q given negative) | the same |
| auroc, average_precision | of top, over samples | nothing |
| f1_frozen | F1 of top >= tau | tau of the detector |
| f1_recalibrated | F1 of top >= tau' | tau' of the same run's calibration split |
| output_kl | mean KL(p_clean || p_ablated) in nats, p = softmax of the logits `output` gives | |
| output_cosine | mean cosine of the last residual stream, clean and ablated | |

tau' is what the detector's own search over its deltas finds at the layer it has chosen; without an
ablation it is tau. F1 at a frozen threshold falls under any shift of the mean, which is no loss of
evidence; that is why the other rows are there.

One of the last two is measured on request, over kept tokens: output_kl (unablated 0) where the user
hands out logits (`sa_transformer_lens.logits`), output_cosine (unablated 1) on any host; on at
most `OUTPUT_SAMPLES` samples of the measured split, since the passes go through the whole model.

Column 0 of every array is the split itself, the others leave out one of its documents each (those of
the tail gap are bootstrap draws of documents), with everything that is fixed held fixed. NaN: not defined.

What they do not show: a change in the tail may be a change of all scores; compare with controls. A
small change of the output does not make the ablation harmless, nor a large one wrong: heads of a
concept may serve much else. The cosine is dominated by the few dimensions that are large in every
token, and is read before the last norm.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.measures import f1_of, mean_auroc
from sa_plugin.detection.poolings import max_token
from sa_plugin.detection.search import search_own
from sa_plugin.host.protocol import Batch, Edit, EditableHost, Host, Output, Site
from sa_plugin.passes.layout import Layout, TokenTable, lay_out, rows_kept_in
from sa_plugin.statistics.bootstrap import Resamples, resampled_confusion
from sa_plugin.statistics.confusion import exceeds, ratio, reaches, recall
from sa_plugin.statistics.drawn import Drawn, scarcer, stack
from sa_plugin.statistics.interval import Kind
from sa_plugin.statistics.quantile import quantiles, tail_thresholds
from sa_plugin.statistics.ranking import resampled_average_precision
from sa_plugin.statistics.shape import resampled_quantiles
from sa_plugin.tracing.measures import TAIL_LEVEL

TAIL_METRICS = (
    "tail_gap",
    "coverage",
    "negative_coverage",
    "auroc",
    "average_precision",
    "f1_frozen",
    "f1_recalibrated",
)
KL, COSINE = "output_kl", "output_cosine"
_HIDDEN = "hidden"
OUTPUT_SAMPLES = 16
_UNITS = {"tail_gap": "deviations of negatives", KL: "nats", COSINE: "cosine"}
# Logits of every token are held twice, before and after: a vocabulary is 10^5 numbers a token.
_LOGIT_BATCH_TOKENS = 512
CACHE_BYTES = 1 << 28


def unit_of(metric: str) -> str:
    """In what a metric is measured, in words."""
    return _UNITS.get(metric, "from 0 to 1")


@dataclass(frozen=True, eq=False)
class Frozen:
    """What the unablated run and the detector fix.

    Attributes:
        detector: Its thresholds and deltas; columns of scores are in the order of its concepts.
        cal, test: Rows of the calibration split and of the split that is measured.
        sd: Deviation of unablated scores of negative samples' tokens, on the measured split.
        resamples: Columns of weights over the documents of the measured split.
    """

    detector: Detector
    cal: TokenTable
    test: TokenTable
    sd: Float[np.ndarray, " concept"]
    resamples: Resamples


def _labels_of(
    tokens: TokenTable, concepts: tuple[str, ...]
) -> tuple[Bool[np.ndarray, "token concept"], Bool[np.ndarray, "sample concept"]]:
    """Token and sample labels, columns in the order of `concepts`."""
    columns = [tokens.concepts.index(concept) for concept in concepts]
    return tokens.labels[:, columns], tokens.sample_labels[:, columns]


def _negatives(tokens: TokenTable, concepts: tuple[str, ...]) -> Bool[np.ndarray, "token concept"]:
    """Tokens of samples without a concept, but those whose label is unknown."""
    columns = [tokens.concepts.index(concept) for concept in concepts]
    found = ~tokens.sample_labels[:, columns][tokens.sample_of]
    return np.asarray(found if tokens.known is None else found & tokens.known[:, columns])


def deviations(
    tokens: TokenTable, concepts: tuple[str, ...], scores: Float[np.ndarray, "token concept"]
) -> Float[np.ndarray, " concept"]:
    """Standard deviation of the scores of negative samples' tokens; NaN without any."""
    negative = _negatives(tokens, concepts)
    return np.array(
        [s[n].std(dtype=np.float64) if n.any() else np.nan for s, n in zip(scores.T, negative.T, strict=True)]
    )


def measured(
    frozen: Frozen,
    cal: Float[np.ndarray, "cal_token concept"],
    test: Float[np.ndarray, "test_token concept"],
    output: Mapping[str, Drawn] | None = None,
) -> Drawn:
    """Every metric of one run, over metrics and concepts.

    Args:
        frozen: What is fixed.
        cal: The run's scores of the calibration split.
        test: The run's scores of the measured split.
        output: What the run did to the model's own output, if that is measured.
    """
    tops = _tops(test, frozen.test)
    token_labels, labels = _labels_of(frozen.test, frozen.detector.concepts)
    resamples = frozen.resamples
    found: dict[str, list[Drawn]] = {name: [] for name in TAIL_METRICS}
    background = _background(frozen, cal)
    chosen = frozen.detector.tail
    cuts = {"f1_frozen": chosen.chosen_threshold, "f1_recalibrated": _recalibrated(frozen, cal)}
    negatives = _negatives(frozen.test, frozen.detector.concepts)
    for k in range(len(frozen.detector.concepts)):
        found["tail_gap"].append(_gap(frozen, test[:, k], token_labels[:, k], negatives[:, k], k))
        top, truth = tops[:, k], labels[:, k]
        above = exceeds(top, background[k])
        carried = {"coverage": resamples.rows(truth), "negative_coverage": resamples.rows(~truth)}
        for name, of in (("coverage", truth), ("negative_coverage", ~truth)):
            counts = resampled_confusion(above, of, resamples)
            # A column without such samples has no rate, which is not a rate of 0.
            some = np.asarray(counts.tp + counts.fn) > 0
            share = np.where(some, recall(counts), np.nan)
            found[name].append(resamples.drawn(share, "share", carried[name]))
        ranked = {
            "auroc": mean_auroc(top[None], truth, resamples),
            "average_precision": resampled_average_precision(top, truth, resamples),
        }
        for name, area in ranked.items():
            found[name].append(resamples.drawn(area, "share", scarcer(*carried.values())))
        for name, cut in cuts.items():
            f1 = f1_of(resampled_confusion(reaches(top, cut[k]), truth, resamples))
            found[name].append(resamples.drawn(f1, "share", carried["coverage"]))
    metrics = {
        name: stack(dict(zip(frozen.detector.concepts, each, strict=True)), "concept")
        for name, each in found.items()
    }
    return stack(metrics | dict(output or {}), "metric")


def _tops(
    scores: Float[np.ndarray, "token concept"], tokens: TokenTable
) -> Float[np.ndarray, "sample concept"]:
    return max_token(scores[:, None].astype(np.float32), tokens.bounds)[:, 0].astype(np.float64)


def _gap(
    frozen: Frozen,
    scores: Float[np.ndarray, " token"],
    inside: Bool[np.ndarray, " token"],
    negative: Bool[np.ndarray, " token"],
    k: int,
) -> Drawn:
    # Weights of documents become weights of tokens; quantiles of a draw count a token that often.
    draws = frozen.resamples.bootstrapped.of(frozen.test.sample_of)
    high, low = (
        resampled_quantiles(scores[rows], [level], draws.of(np.flatnonzero(rows)))[0]
        for rows, level in ((inside, 1 - frozen.detector.tail.chosen_delta[k]), (negative, TAIL_LEVEL))
    )
    carried = scarcer(draws.rows(inside), draws.rows(negative))
    return draws.drawn(ratio(high - low, frozen.sd[k], empty=np.nan), "quantile", carried)


def _background(frozen: Frozen, cal: Float[np.ndarray, "token concept"]) -> Float[np.ndarray, " concept"]:
    negative = _negatives(frozen.cal, frozen.detector.concepts)
    return np.array(
        [
            quantiles(np.ascontiguousarray(s[n]), [TAIL_LEVEL])[0] if n.any() else np.inf
            for s, n in zip(cal.T, negative.T, strict=True)
        ]
    )


def _recalibrated(frozen: Frozen, cal: Float[np.ndarray, "token concept"]) -> Float[np.ndarray, " concept"]:
    """The threshold that the detector's own search finds at the layer it has."""
    token_labels, labels = _labels_of(frozen.cal, frozen.detector.concepts)
    deltas = frozen.detector.tail.deltas
    with warnings.catch_warnings():
        # Calibration has given the same warning for the same tokens.
        warnings.simplefilter("ignore")
        grid = tail_thresholds(cal.astype(np.float32), token_labels, deltas)
    tops = _tops(cal, frozen.cal)[:, None]
    return search_own("recalibrated", tops, labels, grid[None], deltas).chosen_threshold


@dataclass(frozen=True, eq=False)
class OutputProbe:
    """The unablated output of some samples, to hold ablated ones against.

    Attributes:
        output: Gives logits; None reads the last residual stream.
        layout: Of the samples.
        keep: Rows that count.
        clean: Unablated output of kept tokens, batch by batch; empty where it is too large to keep
            and is made anew each time.
        resamples: Columns of weights over the documents of the whole split.
    """

    output: Output | None
    layout: Layout
    keep: Bool[np.ndarray, " row"]
    clean: tuple[Tensor, ...]
    resamples: Resamples

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return COSINE if self.output is None else KL

    @property
    def before(self) -> Drawn:
        """The metric without an ablation."""
        return self.drawn(np.full(self.resamples.columns, 1.0 if self.output is None else 0.0))

    @property
    def samples(self) -> Resamples:
        """Weights of the probe's samples, the first of the split."""
        return self.resamples.of(np.arange(len(self.layout.bounds) - 1))

    def drawn(self, values: Float[np.ndarray, " column"]) -> Drawn:
        """The metric in these columns; a cosine lies in [-1, 1]."""
        kind: Kind = "difference" if self.output is None else "mean"
        return self.samples.drawn(values, kind, self.samples.rows())


def output_probe(
    host: Host, samples: Sequence[Sample], tokens: TokenTable, output: Output | str, resamples: Resamples
) -> OutputProbe:
    """Run the first samples of a split through the whole model once.

    Args:
        host: The model.
        samples: Of the measured split, in order.
        tokens: Rows of the unablated run.
        output: Gives logits, or "hidden".
        resamples: Columns of weights over the documents of all samples of the split.

    Raises:
        ValueError: `output` is another word.
    """
    if isinstance(output, str):
        require_known("output", output, (_HIDDEN,))
    chosen = tuple(samples[:OUTPUT_SAMPLES])
    layout = lay_out(host, chosen, (), at_most=_LOGIT_BATCH_TOKENS)
    given = None if isinstance(output, str) else output
    probe = OutputProbe(given, layout, rows_kept_in(tokens, layout, chosen), (), resamples)
    clean: list[Tensor] = []
    size = 0
    for batch in layout.batches:
        clean.append(_output(host, batch, probe))
        size += clean[-1].nbytes
        if size > CACHE_BYTES:
            return probe
    return replace(probe, clean=tuple(clean))


def output_change(host: EditableHost, probe: OutputProbe, edits: Mapping[Site, Edit]) -> Drawn:
    """The output metric of one ablation on the split's first samples.

    Costs one pass through the whole model for each of the samples, two where the unablated output
    is too large to keep.
    """
    n = len(probe.layout.bounds) - 1
    sums, counts = np.zeros(n), np.zeros(n)
    for k, batch in enumerate(probe.layout.batches):
        clean = probe.clean[k] if probe.clean else _output(host, batch, probe)
        with host.edited(edits):
            moved = _output(host, batch, probe)
        values = _cosine(clean, moved) if probe.output is None else kl_divergence(clean, moved)
        rows = torch.nonzero(probe.layout.mask(batch, probe.keep))[:, 0]
        of = batch.rows.numpy()[rows.numpy()]
        np.add.at(sums, of, values.double().cpu().numpy())
        np.add.at(counts, of, 1.0)
    weights = probe.samples.sample_weights.astype(np.float64)
    return probe.drawn(ratio(weights @ sums, weights @ counts, empty=np.nan))


def _output(host: Host, batch: Batch, probe: OutputProbe) -> Float[Tensor, "token width"]:
    mask = probe.layout.mask(batch, probe.keep)
    if probe.output is None:
        site = Site(host.info.n_layers - 1, "resid_post")
        return host.read(batch, [site], lambda r: {"h": r[site].float()})["h"][mask]
    out = probe.output(host, batch)
    return out[mask.to(out.device)].float()


def kl_divergence(
    clean: Float[Tensor, "token width"], moved: Float[Tensor, "token width"]
) -> Float[Tensor, " token"]:
    """KL(softmax(clean) || softmax(moved)) in nats."""
    # In log space: a token that one side all but excludes has no logarithm of its probability.
    p, q = clean.log_softmax(-1), moved.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def _cosine(clean: Tensor, moved: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(clean, moved, dim=-1)
