"""The unablated run that ablations are held against, and all that it fixes.

The rows are those of the unablated run: which tokens are attention sinks is decided there and
frozen, since an ablation that moves a norm would otherwise change what is measured. Thresholds,
deltas and layers are the detector's and stay as they are. Heads that write after a concept's layer
cannot reach its score.

How much an ablation changes the residual is measured on a probe, at most `PROBE` calibration
samples: their kept tokens' unablated residual at each concept's layer is kept here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_scores, check_unseen, document_names, rows_of_samples
from sa_plugin.heads.edits import Head, Reference, kept_rows, reference
from sa_plugin.heads.tail_metrics import Frozen, OutputProbe, deviations, measured, output_probe
from sa_plugin.host.protocol import EditableHost, Host, Output, Site, require_editable
from sa_plugin.passes.layout import Layout, lay_out, rows_kept_in
from sa_plugin.scores.score import check_origin, score
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.drawn import Drawn, Resampling, stack

PROBE = 16


@dataclass(frozen=True, eq=False)
class ResidualProbe:
    """The samples on which changes of the residual are measured.

    Attributes:
        layout: Of the samples.
        rows: Which of its rows count: those that the unablated run kept.
        clean: The unablated residual at each layer, kept tokens only.
    """

    layout: Layout
    rows: Bool[np.ndarray, " row"]
    clean: Mapping[int, Float[Tensor, "token d_model"]]


@dataclass(frozen=True, eq=False)
class Baseline:
    """The unablated run.

    Attributes:
        host, data, detector: As given.
        split: What is measured.
        tokens: Rows of the unablated run, both splits.
        frozen: What the ablated runs are measured with.
        before: Metrics of the unablated run.
        probe: Where changes of the residual are measured.
        output: What the change of the model's own output is measured with, if it is.
    """

    host: EditableHost
    data: ConceptData
    detector: Detector
    split: str
    tokens: ScoreTable
    frozen: Frozen
    before: Drawn
    probe: ResidualProbe
    output: OutputProbe | None = None


def baseline(
    host: Host,
    data: ConceptData,
    detector: Detector,
    *,
    split: str,
    scores: ScoreTable | None,
    resampling: Resampling,
    output: Output | str | None = None,
) -> Baseline:
    """Score without ablation, or take scores as given, and freeze what must not move.

    Raises:
        TypeError: The host cannot edit.
        ValueError: The split is train or unknown, the bank or the scores are of another model.
    """
    able = require_editable(host)
    check_origin(detector.bank, host)
    check_unseen(data.split(split), detector.seen)
    if scores is None:
        names = tuple(dict.fromkeys(("cal", split)))
        scores = score(host, data, detector.bank, splits=names)
    check_scores(scores, detector.bank, detector.concepts)
    cal, test = (scores_of(scores, data.split(name).samples) for name in ("cal", split))
    # Each concept at its own layer and unit: one column a concept from here on.
    columns = [detector.token_scores(table) for table in (cal, test)]
    frozen = Frozen(
        detector,
        cal.tokens,
        test.tokens,
        deviations(test.tokens, detector.concepts, columns[1]),
        resample_documents(document_names(test.tokens), resampling),
    )
    looked, own = None, {}
    if output is not None:
        looked = output_probe(able, data.split(split).samples, scores.tokens, output, frozen.resamples)
        own = {looked.metric: stack(dict.fromkeys(detector.concepts, looked.before), "concept")}
    before = measured(frozen, columns[0], columns[1], own)
    probe = _probe(able, data.cal.samples[:PROBE], scores, detector)
    return Baseline(able, data, detector, split, scores, frozen, before, probe, looked)


def _probe(host: Host, samples: Sequence[Sample], scores: ScoreTable, detector: Detector) -> ResidualProbe:
    layout = lay_out(host, samples, ())
    rows = rows_kept_in(scores.tokens, layout, samples)
    clean = residual(host, layout, rows, detector.bank.hook_point, layers_of_concepts(detector))
    return ResidualProbe(layout, rows, clean)


def residual(
    host: Host, layout: Layout, rows: Bool[np.ndarray, " row"], point: str, layers: Sequence[int]
) -> dict[int, Float[Tensor, "token d_model"]]:
    """Activations of chosen rows at each layer, under whatever edits are in force."""
    sites = {at: Site(at, point) for at in layers}  # type: ignore[arg-type]
    return kept_rows(host, layout, rows, sites, "probe")


def scores_of(table: ScoreTable, samples: Sequence[Sample]) -> ScoreTable:
    """The rows of some samples in the order of the data, whatever the table's."""
    rows_of_samples(table, samples)
    place = {sample.id: n for n, sample in enumerate(table.tokens.samples)}
    return table.select(np.array([place[sample.id] for sample in samples], dtype=int))


def layers_of_concepts(detector: Detector) -> list[int]:
    """Block of each concept."""
    return [detector.layer[concept] for concept in detector.concepts]


def reach(detector: Detector) -> list[int]:
    """Number of blocks whose heads write before each concept's score is read."""
    late = detector.bank.hook_point != "resid_pre"
    return [layer + late for layer in layers_of_concepts(detector)]


def candidates(host: Host, detector: Detector) -> tuple[Head, ...]:
    """Heads that write before the deepest layer of a concept."""
    return tuple((at, h) for at in range(max(reach(detector))) for h in range(host.info.n_heads))


def known_of(base: Baseline, mode: str, layers: set[int]) -> Reference:
    """Train means or donors of z, as the mode needs them; the seed is that of the resamples."""
    seed = base.frozen.resamples.resampling.seed
    return reference(base.host, base.data, base.detector.bank, mode, layers, seed=seed)
