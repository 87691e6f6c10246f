"""The stages of a study: what each depends on, and how it is made when it is not there.

    fit KIND -> scores KIND -> detection KIND, along KIND -> trace KIND
                               heads, examples, explanation, attribution   (the primary kind)

Demo, run and reproduce are three configurations of this one graph. Where a folder is given, every
stage is kept there under a hash of what it depends on (`store`): nothing before a stage is read or
computed while the stage's own result is kept. Without a folder everything stays in memory. The
numbers are those of the functions that a user calls by hand; this module orders them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from sa_plugin._face import face_methods
from sa_plugin.attribution.compare import Design, compare
from sa_plugin.attribution.comparison import Comparison
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.collect import collect
from sa_plugin.concepts.fit import fit
from sa_plugin.concepts.kinds import Need, kind_of
from sa_plugin.concepts.saved import load_bank, save_bank
from sa_plugin.concepts.train_statistics import TrainStatistics
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.calibrate import calibrate
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.evaluate import Evaluation
from sa_plugin.detection.localise import LocalisationMetrics
from sa_plugin.detection.sweep import SparsityCurve, best_layer
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.heads.ledger_result import HeadLedger
from sa_plugin.host.images import processor_of
from sa_plugin.host.protocol import Host
from sa_plugin.scores.score import score
from sa_plugin.scores.table import ScoreTable
from sa_plugin.scores.trained import train_poolings
from sa_plugin.show.result import clean
from sa_plugin.stages import blocks
from sa_plugin.stages.examples import passages, pictures
from sa_plugin.stages.explained import explain_passage
from sa_plugin.stages.measured import delta_peaks, density, separation, tokens_per_positive
from sa_plugin.stages.plan import Plan
from sa_plugin.stages.store import (
    Stage,
    Store,
    read_given,
    read_json,
    read_kept_others,
    read_scores,
    write_given,
    write_json,
    write_others,
    write_scores,
)
from sa_plugin.tracing.along import Others, Traced, read_others
from sa_plugin.tracing.tail_trace import TailTrace, TraceOptions, trace

_T = TypeVar("_T")
MEASURES = 7
"""Raised when what a stage measures changes, so that what an older code kept is not read."""
QUOTING = ("examples", "explanation")
"""Stages whose results hold texts or pictures of the data."""
# Refusals that leave the other stages standing: their text stands where the numbers would. Anything
# else is an error of the whole study.
REFUSALS: Mapping[str, tuple[type[Exception], ...]] = {
    "heads": (NotImplementedError,),
    "explanation": (NotImplementedError,),
    "attribution": (NotImplementedError, ValueError),
}


@face_methods
@dataclass(eq=False)
class Graph:
    """A study's model, data and stages; what was computed stays in memory for the next stage.

    Attributes:
        host: An attached model.
        data: Labelled samples.
        plan: What to compute.
        store: Where results lie; in memory by default.
    """

    host: Host
    data: ConceptData
    plan: Plan
    store: Store = field(default_factory=lambda: Store(None, lambda line: None))
    _made: dict[tuple[str, str], Any] = field(default_factory=dict)

    @cached_property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Block indices of every kind."""
        return self.plan.layers_of(self.host.info.n_layers)

    @cached_property
    def all_layers(self) -> tuple[int, ...]:
        """Every block that is read: together they decide what is an attention sink."""
        return tuple(sorted({layer for layers in self.layers.values() for layer in layers}))

    # What stages depend on -----------------------------------------------------------------------

    @cached_property
    def base(self) -> dict[str, Any]:
        """What every stage depends on."""
        info = self.host.info
        return {
            "host": info.host,
            "weights": info.fingerprint,
            "processing": info.processing,
            "dtype": info.dtype,
            "tokenizer": info.tokenizer,
            "data": self.data.hash,
            "processor": repr(processor_of(self.host)),
            "seed": self.plan.seed,
            "batch_tokens": self.host.batch_tokens,
        }

    @cached_property
    def needs(self) -> tuple[Need, ...]:
        """What the train pass leaves; the same whichever kinds are already fitted."""
        needs: tuple[Need, ...] = ("means", *(kind_of(kind).need for kind in self.plan.kinds))
        return tuple(dict.fromkeys(needs))

    def fit_stage(self, kind: str) -> Stage:
        """Vectors of one kind."""
        depends = self.base | {
            "kind": kind,
            "layers": list(self.layers[kind]),
            "all_layers": list(self.all_layers),
            "needs": list(self.needs),
            "options": dict(self.plan.options.get(kind, {})),
        }
        return Stage(f"fit {kind}", depends, "")

    def score_stage(self, kind: str) -> Stage:
        """Scores of one kind on calibration and test."""
        return Stage(f"scores {kind}", {"fit": self.fit_stage(kind).hash}, ".npz")

    def stage(self, name: str, kind: str) -> Stage:
        """A stage that rests on one kind's scores."""
        depends: dict[str, Any] = {"scores": self.score_stage(kind).hash, "measures": MEASURES}
        depends |= asdict(self.plan.resampling)
        if name == "attribution":
            depends |= asdict(self.plan.attribution)
        if kind == self.plan.main and "rivals" in self.plan.stages:
            depends["rivals"] = self.rivals_stage().hash
        of_kind = name in ("detection", "trace")
        return Stage(f"{name} {kind}" if of_kind else name, depends, quotes=name in QUOTING)

    def rivals_stage(self) -> Stage:
        """Probes trained through their pooling, beside the scores of the primary kind."""
        return Stage("rivals", {"scores": self.score_stage(self.plan.main).hash}, ".npz")

    def stages(self) -> list[Stage]:
        """All that the plan asks for, in order."""
        asked = [name for name in self.plan.stages if name not in ("detection", "rivals")]
        found = []
        for kind in self.plan.kinds:
            found += [self.fit_stage(kind), self.score_stage(kind)]
            found += [self.rivals_stage()] * (kind == self.plan.main and "rivals" in self.plan.stages)
            found.append(self.stage("detection", kind))
            found += [self.stage("trace", kind)] * ("trace" in asked)
        return found + [self.stage(name, self.plan.main) for name in asked if name != "trace"]

    # Vectors and scores --------------------------------------------------------------------------

    @cached_property
    def statistics(self) -> TrainStatistics:
        """The train pass, run when the first kind has to be fitted."""
        return collect(self.host, self.data, layers=self.all_layers, need=self.needs, seed=self.plan.seed)

    def bank(self, kind: str) -> ConceptBank:
        """Vectors of one kind."""
        return self._once(
            ("bank", kind),
            lambda: self.store.keep(self.fit_stage(kind), lambda: self._fit(kind), save_bank, load_bank),
        )

    def _fit(self, kind: str) -> ConceptBank:
        return fit(
            self.host,
            self.data,
            kind,
            layers=self.layers[kind],
            statistics=self.statistics,
            seed=self.plan.seed,
            options=self.plan.options.get(kind),
        )

    def table(self, kind: str) -> ScoreTable:
        """Scores of one kind, with trained rivals if asked for; one pass makes those of every kind."""
        found: ScoreTable = self._once(("table", kind), lambda: self._table(kind, lambda: self._score(kind)))
        if kind == self.plan.main and "rivals" in self.plan.stages:
            return self._once(("rivals", kind), lambda: self._with_rivals(found))
        return found

    def _with_rivals(self, table: ScoreTable) -> ScoreTable:
        given = self.store.keep(
            self.rivals_stage(),
            lambda: train_poolings(self.host, self.data, table, seed=self.plan.seed).given,
            write_given,
            read_given,
        )
        return replace(table, given={**table.given, **given})

    def _table(self, kind: str, make: Callable[[], ScoreTable]) -> ScoreTable:
        bank = self.bank(kind)
        stage = self.score_stage(kind)
        return self.store.keep(stage, make, write_scores, lambda path: read_scores(path, bank, self.data))

    def _score(self, kind: str) -> ScoreTable:
        kinds = [k for k in self.plan.kinds if k == kind or not self.store.has(self.score_stage(k))]
        kinds = [k for k in kinds if ("table", k) not in self._made]
        found = score(self.host, self.data, [self.bank(k) for k in kinds])
        tables = dict(zip(kinds, found, strict=True))
        for other in kinds:
            if other != kind:
                self._made["table", other] = self._table(other, lambda made=tables[other]: made)  # type: ignore[misc]
        return tables[kind]

    def detector(self, kind: str) -> Detector:
        """The calibrated detector of one kind, made anew: calibration is quick."""
        return self._once(("detector", kind), lambda: self._calibrate(kind))

    def _calibrate(self, kind: str) -> Detector:
        return calibrate(self.host, self.data, self.bank(kind), scores=self.table(kind), seed=self.plan.seed)

    def _once(self, key: tuple[str, str], make: Callable[[], _T]) -> _T:
        if key not in self._made:
            self._made[key] = make()
        found: _T = self._made[key]
        return found

    # Results: what a user calls by hand, each once -----------------------------------------------

    def evaluation(self, kind: str) -> Evaluation:
        """Detection beside every baseline."""
        return self._ask(
            "evaluation", kind, "detection", lambda d, given: d.evaluate(self.data.test, **given)
        )

    def curve(self, kind: str) -> SparsityCurve:
        """F1 against delta."""
        test = self.data.test
        return self._ask("curve", kind, "detection", lambda d, given: d.sweep(test, **given))

    def localisation(self, kind: str) -> LocalisationMetrics:
        """Agreement with the token labels."""
        test = self.data.test
        return self._ask("localisation", kind, "detection", lambda d, given: d.evaluate_tokens(test, **given))

    def traced(self, kind: str) -> TailTrace:
        """How the tail forms, along each layer's own vectors and along those of the chosen layers."""

        def make(detector: Detector, given: Mapping[str, Any]) -> TailTrace:
            return trace(None, None, detector, options=TraceOptions(shared=self._others(kind)), **given)

        return self._ask("trace", kind, "trace", make)

    def _others(self, kind: str) -> Others:
        """Scores along other vectors than each layer's own."""
        return self._once(("others", kind), lambda: self._kept_others(kind, lambda: self._read_others(kind)))

    def _kept_others(self, kind: str, make: Callable[[], Others]) -> Others:
        detector = self.detector(kind)
        depends = {"scores": self.score_stage(kind).hash, "chosen": dict(detector.layer)}
        stage = Stage(f"along {kind}", depends, ".npz")
        return self.store.keep(stage, make, write_others, read_kept_others)

    def _read_others(self, kind: str) -> Others:
        """One pass for every kind that is to be traced."""
        kinds = [k for k in self.plan.kinds if k == kind or not self.store.has(self.stage("trace", k))]
        kinds = [k for k in kinds if k == kind or ("others", k) not in self._made]
        traced = [Traced(self.table(k), self.detector(k).tail.unit, self.detector(k).layer) for k in kinds]
        found = dict(
            zip(kinds, read_others(self.host, self.data, traced, statistics=self.statistics), strict=True)
        )
        for other, one in found.items():
            if other != kind:
                self._made["others", other] = self._kept_others(other, lambda made=one: made)  # type: ignore[misc]
        return found[kind]

    def ledger(self) -> HeadLedger:
        """Which heads write the primary kind's scores."""
        return self._ask(
            "heads", self.plan.main, "heads", lambda d, given: head_ledger(self.host, self.data, d, **given)
        )

    def comparison(self) -> Comparison:
        """Whether explaining the tail beats explaining the global vector."""
        return self._ask("attribution", self.plan.main, "attribution", self._compare)

    def _compare(self, detector: Detector, given: Mapping[str, Any]) -> Comparison:
        part = self.plan.attribution
        design = Design(
            part.n_test, part.n_cal, part.preset, options=part.options, n_steps=part.n_steps, probe=False
        )
        concepts = self.compared()
        return compare(
            self.host, self.data, detector, methods=part.methods, concepts=concepts, design=design, **given
        )

    def compared(self) -> list[str]:
        """Concepts of the comparison: those with most positive test samples."""
        tokens = self.table(self.plan.main).split("test").tokens
        counts = tokens.sample_labels.sum(0)
        order = sorted(range(len(counts)), key=lambda k: (-counts[k], k))
        return [tokens.concepts[k] for k in order[: self.plan.attribution.concepts]]

    def _ask(self, name: str, kind: str, stage: str, make: Callable[[Detector, dict[str, Any]], _T]) -> _T:
        def ask() -> _T:
            given = {"scores": self.table(kind), "resampling": self.plan.resampling}
            return make(self.detector(kind), given)

        return self._once((name, kind), ask)

    # The same as JSON, kept ----------------------------------------------------------------------

    def detection_block(self, kind: str) -> Any:
        """Detection, delta curve, peaks, densities and localisation of one kind."""
        return self._kept("detection", kind, lambda: self._detection(kind))

    def _detection(self, kind: str) -> dict[str, Any]:
        detector, table = self.detector(kind), self.table(kind)
        evaluation, resampling = self.evaluation(kind), self.plan.resampling
        test = table.split("test")
        return {
            "scoring": detector.bank.token.scoring,
            "layers": list(detector.bank.layers),
            "units": len(detector.bank.units),
            "tokens": {"kept": len(table.tokens), **table.tokens.dropped},
            "train_tokens": dict(detector.bank.origin.counts),
            "fit": detector.bank.origin.options.get("token_fit"),
            "hook_point": detector.bank.hook_point,
            "detection": blocks.detection_block(evaluation),
            "missing": dict(evaluation.missing),
            "choices": blocks.choice_rows(detector),
            "sparsity": blocks.sparsity_block(self.curve(kind)),
            "tokens_per_positive": tokens_per_positive(table.split("cal")),
            "peaks": delta_peaks(detector, test, resampling).to_dict(),
            "rates": blocks.rate_rows(evaluation),
            "fractions": blocks.fraction_block(evaluation),
            "density": density(detector, test, resampling),
            "localisation": blocks.localisation_rows(self.localisation(kind)),
            "extra": {"evaluation": evaluation.to_dict(), "localisation": self.localisation(kind).to_dict()},
        }

    def trace_block(self, kind: str) -> Any:
        """The trace of one kind, and its separation at the best layer by calibration."""

        def make() -> dict[str, Any]:
            detector, found = self.detector(kind), self.traced(kind)
            tail = detector.tail
            threshold = tail.thresholds[:, tail.delta, np.arange(len(tail.delta))]
            best = detector.bank.layers[best_layer(tail)]
            return {"trace": blocks.trace_block(found, threshold), "separation": separation(found, best)}

        return self._kept("trace", kind, make)

    def heads_block(self) -> Any:
        """The ledger, or why there is none."""
        return self._kept("heads", self.plan.main, lambda: blocks.heads_block(self.ledger()))

    def examples_block(self) -> Any:
        """Passages or pictures chosen by a stated rule."""

        def make() -> dict[str, Any]:
            detector, test = self.detector(self.plan.main), self.table(self.plan.main).split("test")
            if any(sample.image is not None for sample in self.data.samples[:1]):
                return {"pictures": pictures(detector, test)}
            return {"passages": passages(detector, test)}

        return self._kept("examples", self.plan.main, make)

    def explanation_block(self) -> Any:
        """One passage explained, or why none is."""

        def make() -> dict[str, Any]:
            kind = self.plan.main
            test = self.table(kind).split("test")
            return explain_passage(self.host, self.detector(kind), test, self.plan.seed)

        return self._kept("explanation", self.plan.main, make)

    def attribution_block(self) -> Any:
        """The comparison of objectives, or why there is none."""

        def make() -> dict[str, Any]:
            found = self.comparison()
            return {**found.to_dict(), "concepts": self.compared(), "text": found.summary()}

        return self._kept("attribution", self.plan.main, make)

    def _kept(self, name: str, kind: str, make: Any) -> Any:
        stage = self.stage(name, kind)
        if not self.store.has(stage):
            # What the stage rests on is run first, so that its seconds are its own.
            self.table(kind)
        try:
            return self.store.keep(stage, lambda: clean(make()), write_json, read_json)
        except REFUSALS.get(name, ()) as refusal:
            self.store.say(f"{name}: refused, {refusal}")
            return {"absent": str(refusal)}
