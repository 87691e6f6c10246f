"""The main job: one train pass, one score pass, one ledger pass, and everything they tell.

Every number of the result is computed by the functions a user calls by hand; this module only
orders them, times them and writes down what was chosen.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.collect import Need, collect
from sa_plugin.concepts.fit import fit
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.data.build import validate
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.calibrate import calibrate
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.ledger import head_ledger
from sa_plugin.host.protocol import Host
from sa_plugin.report.schema import SCHEMA, Explained, KindBlock, Meta, Results, check
from sa_plugin.scores.score import score
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import clean
from sa_plugin.stages import blocks
from sa_plugin.stages.blocks import machine, versions
from sa_plugin.stages.passages import passages, pictures
from sa_plugin.statistics.drawn import Resampling
from sa_plugin.tracing.tail_trace import trace

Explain = Callable[[Host, ConceptData, Detector, ScoreTable, int], Explained | None]


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        kinds: Concept kind to the block indices it is fitted at.
        primary: Kind that the ledger, the passages and the explanation use.
        draws: Bootstrap resamples of source documents.
        seed: Of every random choice.
        batch_tokens: Tokens in a batch, padding included.
        options: Kind to options of its fit, e.g. `{"kmeans": {"k": 100}}`.
    """

    kinds: Mapping[str, tuple[int, ...]]
    primary: str = "separator"
    draws: int = 1000
    seed: int = 0
    batch_tokens: int = 1024
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in self.kinds:
            kind_of(kind)
        if self.primary not in self.kinds:
            raise ValueError(f"primary kind {self.primary!r} is not among {list(self.kinds)}.")

    @property
    def layers(self) -> tuple[int, ...]:
        """Every block index that is read."""
        return tuple(sorted({layer for layers in self.kinds.values() for layer in layers}))


@dataclass
class Clock:
    """Seconds of every stage, announced as they begin."""

    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time one stage."""
        self.say(stage)
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun


@dataclass(frozen=True, eq=False)
class Analysis:
    """The result, and the objects it was read from.

    Attributes:
        results: JSON-ready, see `sa_plugin.report.schema`.
        detectors: By kind.
        tables: Scores by kind, calibration and test.
        text: The tables as text, in the order they are printed.
    """

    results: Results
    detectors: Mapping[str, Detector]
    tables: Mapping[str, ScoreTable]
    text: Sequence[str]


def analyse(
    host: Host,
    data: ConceptData,
    settings: Settings,
    *,
    explain: Explain | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda stage: None,
) -> Analysis:
    """Run the whole method.

    Costs one forward pass for each sample of the data, another for each test sample (the ledger),
    and what `explain` costs.

    Args:
        host: An attached model.
        data: Labelled samples.
        settings: What to run.
        explain: Explains one passage with objectives; adapters bring one.
        progress: Whether to show bars.
        say: Called with the name of each stage.

    Raises:
        ValueError: As the functions called.
    """
    clock = Clock(say)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # What was said when the data were made belongs in the results too.
        validate(data.samples, data.split_of, data.concepts)
        banks = _fit(host, data, settings, clock, progress)
        with clock("score pass"):
            scored = score(
                host, data, list(banks.values()), batch_tokens=settings.batch_tokens, progress=progress
            )
        tables = dict(zip(banks, scored, strict=True))
        detectors: dict[str, Detector] = {}
        found: dict[str, KindBlock] = {}
        text: list[str] = []
        for kind, table in tables.items():
            with clock(f"calibrate and evaluate {kind}"):
                detectors[kind] = calibrate(host, data, banks[kind], scores=table)
                found[kind], said = _evaluate(detectors[kind], data, table, settings, progress)
                text += said if kind == settings.primary else said[:1]
        primary, table = detectors[settings.primary], tables[settings.primary]
        test = table.split("test")
        with clock("ledger pass"):
            text.append(_ledger(found[settings.primary], host, data, primary, table, settings))
        images = any(sample.image is not None for sample in test.tokens.samples)
        shown = pictures(primary, test) if images else passages(primary, test)
        explained = None
        if explain is not None:
            with clock("explanation"):
                explained = explain(host, data, primary, test, settings.seed)
    for foreign in (w for w in caught if not _ours(w)):
        warnings.warn_explicit(foreign.message, foreign.category, foreign.filename, foreign.lineno)
    notes = sorted({f"{w.category.__name__}: {w.message}" for w in caught if _ours(w)})
    results: Results = {
        "schema": SCHEMA,
        "meta": _meta(host, data, table, settings),
        "kinds": found,
        "provenance": {
            "versions": versions(),
            "hashes": {"data": data.hash, "weights": host.info.fingerprint},
            "settings": {**asdict(settings), "kinds": {k: list(v) for k, v in settings.kinds.items()}},
            "timings": dict(clock.seconds),
            "counts": _counts(banks, tables),
            "machine": machine(),
        },
        "warnings": notes,
    }
    results["pictures" if images else "passages"] = shown
    if explained is None:
        reason = "no explainer was given; images have none yet" if explain is None else "no true positive"
        found[settings.primary].setdefault("absent", {})["explained"] = reason
    else:
        results["explained"] = explained
    return Analysis(check(clean(results)), detectors, tables, text)


def _fit(
    host: Host, data: ConceptData, settings: Settings, clock: Clock, progress: bool
) -> dict[str, ConceptBank]:
    need: tuple[Need, ...] = tuple(dict.fromkeys(kind_of(kind).need for kind in settings.kinds))
    with clock("train pass"):
        statistics = collect(
            host,
            data,
            layers=settings.layers,
            need=("means", *need),
            seed=settings.seed,
            batch_tokens=settings.batch_tokens,
            progress=progress,
        )
    banks = {}
    for kind, layers in settings.kinds.items():
        with clock(f"fit {kind}"):
            banks[kind] = fit(
                host,
                data,
                kind,
                layers=layers,
                statistics=statistics,
                seed=settings.seed,
                progress=progress,
                options=settings.options.get(kind),
            )
    return banks


def _evaluate(
    detector: Detector, data: ConceptData, table: ScoreTable, settings: Settings, progress: bool
) -> tuple[KindBlock, list[str]]:
    resampling = Resampling(settings.draws, settings.seed)
    evaluation = detector.evaluate(data.test, scores=table, resampling=resampling)
    curve = detector.sweep(data.test, scores=table, resampling=resampling)
    metrics = detector.evaluate_tokens(data.test, scores=table, resampling=resampling)
    block: KindBlock = {
        "scoring": detector.bank.token.scoring,
        "layers": list(detector.bank.layers),
        "detection": blocks.detection(evaluation),
        "choices": blocks.choices(detector),
        "sparsity": blocks.sparsity(curve),
        "localisation": blocks.localisation(metrics),
        "rates": blocks.rates(evaluation),
        "fractions": blocks.fractions(evaluation),
        "extra": {"evaluation": evaluation.to_dict(), "localisation": metrics.to_dict()},
    }
    title = f"{detector.bank.kind}: {detector.bank.token.scoring} scores"
    text = [f"## {title}\n{evaluation}", f"{detector!s}", f"{curve}", f"{metrics}"]
    if detector.bank.supervised:
        found = trace(scores=table, resampling=Resampling(min(settings.draws, 200), settings.seed))
        block["trace"] = blocks.trace(found, detector)
        text.append(found.summary())
    else:
        block["absent"] = {"trace": "units are matched to concepts at one layer only"}
    return block, text


def _ledger(
    block: KindBlock, host: Host, data: ConceptData, detector: Detector, table: ScoreTable, settings: Settings
) -> str:
    try:
        ledger = head_ledger(host, data, detector, scores=table, draws=settings.draws, seed=settings.seed)
    except NotImplementedError as refusal:
        block.setdefault("absent", {})["heads"] = str(refusal)
        return f"No head ledger: {refusal}"
    block["heads"] = ledger.to_dict()  # type: ignore[typeddict-item]
    return ledger.summary()


def _meta(host: Host, data: ConceptData, table: ScoreTable, settings: Settings) -> Meta:
    info, kept = host.info, table.bank.origin.counts
    dropped = {why: n + kept.get(why, 0) for why, n in table.tokens.dropped.items()}
    return {
        "model": info.model,
        "architecture": info.architecture,
        "processing": info.processing,
        "n_blocks": info.n_layers,
        "hook_point": table.bank.hook_point,
        "data": data.name,
        "data_hash": data.hash,
        "concepts": list(data.concepts),
        "layers": list(settings.layers),
        "primary_kind": settings.primary,
        "seed": settings.seed,
        "samples": {name: len(data.split(name)) for name in ("train", "cal", "test")},
        "documents": {
            name: len({s.document for s in data.split(name).samples}) for name in ("train", "cal", "test")
        },
        "tokens_kept": len(table.tokens) + kept.get("kept", 0),
        "tokens_dropped": dropped,
        "intervals": {"unit": "documents", "draws": settings.draws, "level": 0.95},
    }


def _counts(banks: Mapping[str, ConceptBank], tables: Mapping[str, ScoreTable]) -> dict[str, Any]:
    return {
        kind: {
            "units": len(bank.units),
            "train_tokens": dict(bank.origin.counts),
            "scored_tokens": len(tables[kind].tokens),
            "fit": bank.origin.options.get("token_fit"),
        }
        for kind, bank in banks.items()
    }


def _ours(warning: warnings.WarningMessage) -> bool:
    return warning.category.__module__.startswith("sa_")
