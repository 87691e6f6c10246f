"""The theorems put to the test: each one's quantity in a real model, beside its prediction.

What is predicted is OUR reconstruction of the idealised model (`docs/experiments/ideal_model`), not
the paper's formulas. What is measured and the controls are in `theory.measures` and
`theory.paths`, the rule of the verdicts in `theory.verdicts`; assumptions the model breaks
(`theory.assumptions`) are named beside them.

What it does not show: that a head or anything else causes what is measured. `ablate_heads` asks
that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from sa_plugin._check import position_of, require_known
from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_scores, held_out
from sa_plugin.host.protocol import Host, HostInfo, layers_of
from sa_plugin.passes.layout import PATTERN_BATCH_TOKENS, lay_out
from sa_plugin.scores.score import check_origin
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.bootstrap import Resamples, resample_documents
from sa_plugin.statistics.drawn import Resampling
from sa_plugin.theory.assumptions import (
    Assumption,
    aligned_gamma,
    heads_of,
    of_architecture,
    of_concept,
    shared,
)
from sa_plugin.theory.measures import QUANTITIES, Quantity, measure
from sa_plugin.theory.paths import Directions, Path, build_directions, paths_of
from sa_plugin.theory.report import TheoryReport
from sa_plugin.theory.sums import LEAST_TAIL, LEAST_TOKENS, Sums, run_pass
from sa_plugin.theory.verdicts import Amplification, Regime, Verdict, amplification_of, judge, regime_of


@face
@dataclass(frozen=True)
class Conditions:
    """What counts as a tail, on which samples, and beside how many controls.

    Attributes:
        tail: Share of a sample's tokens (three at least) and of a query's keys that is its tail.
        which: "positive" measures a concept on the samples that have it, "all" on every sample.
        n_random: Isotropic random directions followed as controls. A verdict asks for nine
            controls at least, permuted-label vectors included.
        fixed_at: With a bank, the layer of the fixed vectors; by default the middle one.

    Raises:
        ValueError: A value that is none of these.
    """

    tail: float = 0.05
    which: str = "positive"
    n_random: int = 9
    fixed_at: int | None = None

    def __post_init__(self) -> None:
        require_known("which", self.which, ("positive", "all"))
        if not 0 < self.tail < 0.5:
            raise ValueError(f"tail {self.tail} must lie in (0, 0.5), such as 0.05 for the top 5 %.")
        if self.n_random < 0:
            raise ValueError(f"n_random is {self.n_random}: give 0 or more.")


@face
def check_theory(
    host: Host,
    data: ConceptData,
    source: Detector | ConceptBank,
    *,
    scores: ScoreTable | None = None,
    split: str | Sequence[Sample] = "test",
    concepts: Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    how: Conditions = Conditions(),
    resampling: Resampling = Resampling(),
) -> TheoryReport:
    """Measure every theorem's quantity in every block, beside what the idealised model predicts.

    Costs one forward pass a sample for all blocks and concepts. Memory: the attention patterns of
    one batch, `layers x heads x tokens^2` numbers a sample, hence small batches.

    Args:
        host: An attached model. Predictions need one that hands out its weights
            (`sa_plugin.host.protocol.DescribedHost`); without, they are absent and the
            report says why.
        data: Labelled samples.
        source: A detector: each concept's fixed vector is that of its chosen layer. Or a bank.
        scores: Scores of the same samples, held against the pass; they save nothing.
        split: Which split to measure, or the samples themselves.
        concepts: Only these; all by default.
        layers: Blocks to check, negative ones from the end; all by default.
        how: What counts as a tail, on which samples, and beside how many controls.
        resampling: Of source documents; its seed is also that of the random directions.

    Returns:
        The report. Samples with fewer than ten kept tokens are left out and counted.

    Raises:
        TypeError: An argument is of another type, such as data and detector swapped.
        ValueError: Unknown concept, layer or split; a bank of another model or not of the residual
            stream; the train split the vectors were fitted on; scores of other samples; fewer than
            two documents; weights that are not the model's.

    Source: what is tested are the claims of arXiv 2512.05038, section on theory; formulas are ours.

    Example:
        >>> report = check_theory(host, data, detector)  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    bank = source.bank if isinstance(source, Detector) else source
    check_origin(bank, host)
    chosen_samples = held_out(data, bank, split, "tokens")
    chosen = _chosen(source, data, concepts, how.fixed_at)
    blocks = layers_of(host.info, layers)
    directions = build_directions(bank, host.info, chosen, blocks, how.n_random, resampling.seed)
    layout = lay_out(host, chosen_samples, data.concepts, at_most=PATTERN_BATCH_TOKENS)
    lengths = np.diff(layout.bounds).tolist()
    paths, why = paths_of(host, blocks, directions.read, directions.write, lengths)
    if scores is not None:
        _check_scored(scores, bank, list(chosen), chosen_samples)
    resamples = resample_documents(np.array([s.document for s in chosen_samples]), resampling)
    sums = run_pass(host, layout, bank, directions, paths, how.tail)
    counted = {concept: _counted(chosen_samples, concept, how.which) for concept in chosen}
    settings = {
        "model": host.info.model,
        "split": split if isinstance(split, str) else "samples",
        "n_samples": int(sums.measured.sum()),
        "left_out": int((~sums.measured).sum()),
        "n_documents": resamples.n_documents,
        "which": how.which,
        "tail": how.tail,
        "level": resampling.level,
        "seed": resampling.seed,
        "n_random": how.n_random,
        "kind": bank.kind,
        "data_hash": data.hash,
        "least_tokens": LEAST_TOKENS,
        "least_tail": LEAST_TAIL,
        "closes_to": sums.closes_to,
        "fixed_at": dict(directions.chosen),
        # Blocks whose input is measured from each sample's own mean.
        "own_mean_at": [b for b, own in zip(blocks, directions.own_mean[:, 0], strict=True) if own],
    }
    return _assembled(host.info, directions, paths, why, sums, counted, resamples, settings)


def _assembled(
    info: HostInfo,
    directions: Directions,
    paths: Sequence[Path] | None,
    why: str,
    sums: Sums,
    counted: Mapping[str, Bool[np.ndarray, " sample"]],
    resamples: Resamples,
    settings: Mapping[str, Any],
) -> TheoryReport:
    """The report, one concept and direction at a time; `why` there are no paths, if there are none."""
    layers = directions.layers
    heads = heads_of(sums, directions, paths)
    gamma = aligned_gamma(paths)
    quantities: dict[tuple[str, str], Mapping[str, Quantity]] = {}
    verdicts: list[Verdict] = []
    regimes: list[Regime] = []
    amplifications: list[Amplification] = []
    assumptions: list[Assumption] = of_architecture(info, paths, why)
    tenths = {}
    for column in directions.columns:
        if column.role != "concept":
            continue
        key = column.concept, column.direction
        measures = measure(
            sums,
            directions,
            *key,
            sums.measured & counted[column.concept],
            resamples,
            causal=info.causal,
            aligned_gamma=gamma,
        )
        quantities[key] = {name: measures.quantity(name) for name in QUANTITIES if name in measures.own}
        verdicts += judge(measures, *key, layers, causal=info.causal)
        if amplification := amplification_of(measures, *key):
            amplifications.append(amplification)
        if regime := regime_of(measures, *key, layers):
            regimes.append(regime)
        assumptions += of_concept(directions, measures, *key, heads, weights=paths is not None)
        tenths[key] = measures.tenths
    assumptions += shared(sums, layers, weights=paths is not None)
    return TheoryReport(
        quantities,
        tuple(verdicts),
        tuple(amplifications),
        tuple(regimes),
        tuple(assumptions),
        heads,
        directions,
        tenths,
        _absent(directions, paths, why, info.causal, quantities),
        settings,
    )


def _absent(
    directions: Directions,
    paths: Sequence[Path] | None,
    why: str,
    causal: bool,
    quantities: Mapping[tuple[str, str], Mapping[str, Quantity]],
) -> dict[str, str]:
    found = {}
    if paths is None:
        found["predicted"] = why
        found |= dict.fromkeys(("predicted_factor", "path_r2", "path_gap_slope"), why)
    elif aligned_gamma(paths) is None:
        why = "queries and keys pass a norm of their own: beta is known up to a scale only"
        found |= dict.fromkeys(("predicted", "predicted_factor"), why)
    if not causal:
        found["prefix_*"] = "queries see the same keys already, as heads_* compare them"
    elif paths is None:
        found["prefix_*"] = why
    for (concept, direction), of in quantities.items():
        known = np.isfinite(of["gap_slope"].measured.estimate)
        lacking = [str(b) for b, here in zip(directions.layers, known, strict=True) if not here]
        if lacking:
            reason = (
                "the bank has no vector on both of their sides"
                if direction == "refitted"
                else "activations do not vary"
            )
            found[f"{concept} {direction}"] = f"blocks {', '.join(lacking)}: {reason}"
    for role, reason in (("permuted", "the bank has no permuted-label vectors"), ("random", "n_random is 0")):
        if not any(column.role == role for column in directions.columns):
            found[role] = reason
    return found


def _counted(samples: Sequence[Sample], concept: str, which: str) -> Bool[np.ndarray, " sample"]:
    if which == "all":
        return np.ones(len(samples), dtype=bool)
    counted = np.array([concept in sample.positive for sample in samples])
    if not counted.any():
        raise ValueError(f"no sample has {concept!r}: leave the concept out, or measure which='all' samples.")
    return counted


def _chosen(
    source: Detector | ConceptBank, data: ConceptData, concepts: Sequence[str] | None, fixed_at: int | None
) -> dict[str, tuple[int, int]]:
    wanted = list(source.concepts if concepts is None else concepts)
    if isinstance(source, Detector):
        if fixed_at is not None:
            raise ValueError("a detector has chosen each concept's layer: give detector.bank to fix another.")
        for concept in wanted:
            position_of(concept, source.concepts)
        found = {c: (source.layer[c], source.bank.unit(source.unit[c])) for c in wanted}
    else:
        if not source.supervised:
            raise ValueError(
                f"the bank's vectors are {len(source.units)} units without concepts: calibrate "
                "matches them, so give the detector."
            )
        layer = source.layers[len(source.layers) // 2] if fixed_at is None else fixed_at
        source.index(layer)
        found = {c: (layer, source.unit(c)) for c in wanted}
    if not found:
        raise ValueError("concepts is empty: name at least one, or None for all.")
    for concept in found:
        position_of(concept, data.concepts, f"the concepts of {data.name!r}")
    return found


def _check_scored(
    scores: ScoreTable, bank: ConceptBank, concepts: Sequence[str], samples: Sequence[Sample]
) -> None:
    check_scores(scores, bank, concepts)
    known = {sample.id for sample in scores.tokens.samples}
    missing = [sample.id for sample in samples if sample.id not in known]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(samples)} samples were not scored, {missing[0]!r} first: give "
            "scores of the same split, or none."
        )
