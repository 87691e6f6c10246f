"""The stages of a cell: what each depends on, and how it is made when it is not there.

    fit KIND  ->  scores KIND  ->  detection KIND, trace KIND  ->  attribution (primary kind)

Nothing before a stage is read or computed while the stage's own result is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sa_plugin.artefact import load_bank, save_bank
from sa_plugin.attribution import compare
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector, calibrate
from sa_plugin.fitting import fit
from sa_plugin.host import Host
from sa_plugin.pipeline import blocks
from sa_plugin.reproduce.config import CellConfig
from sa_plugin.reproduce.deltas import delta_peaks, tokens_per_positive
from sa_plugin.reproduce.density import density
from sa_plugin.reproduce.separation import separation
from sa_plugin.reproduce.store import Stage, Store, read_json, write_json
from sa_plugin.reproduce.stored_scores import read_scores, write_scores
from sa_plugin.results import clean
from sa_plugin.scores import ScoreTable
from sa_plugin.scoring import score
from sa_plugin.tracing import trace
from sa_plugin.train_pass import Need, TrainStatistics, collect

TRACE_DRAWS = 200
# Raised when what the detection stage measures changes.
MEASURES = 3


@dataclass(eq=False)
class Work:
    """A cell's model, data and stages; what was computed stays in memory for the next stage.

    Attributes:
        host: An attached model.
        data: Labelled samples.
        cell: The configuration.
        store: Where results lie.
        progress: Whether to show bars.
    """

    host: Host
    data: ConceptData
    cell: CellConfig
    store: Store
    progress: bool = True
    _banks: dict[str, ConceptBank] = field(default_factory=dict)
    _tables: dict[str, ScoreTable] = field(default_factory=dict)
    _detectors: dict[str, Detector] = field(default_factory=dict)

    @cached_property
    def layers(self) -> dict[str, tuple[int, ...]]:
        """Block indices of every kind."""
        n, part = self.host.info.n_layers, self.cell.layers
        return {
            kind: part.resolve(n, supervised=kind_of(kind).supervised)
            for kind in self.cell.run.kinds
        }

    @cached_property
    def all_layers(self) -> tuple[int, ...]:
        """Every block that is read."""
        return tuple(sorted({layer for layers in self.layers.values() for layer in layers}))

    @cached_property
    def base(self) -> dict[str, Any]:
        """What every stage depends on."""
        info, run = self.host.info, self.cell.run
        return {
            "host": info.host, "weights": info.fingerprint, "processing": info.processing,
            "dtype": info.dtype, "tokenizer": info.tokenizer, "data": self.data.hash,
            "processor": repr(getattr(self.host, "processor", None)),
            "seed": run.seed, "batch_tokens": run.batch_tokens,
        }  # fmt: skip

    def fit_stage(self, kind: str) -> Stage:
        """Vectors of one kind; the layers of all kinds decide what is an attention sink."""
        depends = self.base | {
            "kind": kind, "layers": list(self.layers[kind]), "all_layers": list(self.all_layers),
            "needs": list(self.needs), "options": dict(self.cell.kinds.get(kind, {})),
        }  # fmt: skip
        return Stage(f"fit {kind}", depends, "")

    def score_stage(self, kind: str) -> Stage:
        """Scores of one kind on calibration and test."""
        return Stage(f"scores {kind}", {"fit": self.fit_stage(kind).hash}, ".npz")

    def detection_stage(self, kind: str) -> Stage:
        """Everything about detection, one kind."""
        depends = {
            "scores": self.score_stage(kind).hash, "draws": self.cell.run.draws,
            "measures": MEASURES,
        }  # fmt: skip
        return Stage(f"detection {kind}", depends)

    def trace_stage(self, kind: str) -> Stage:
        """The trace of one kind."""
        draws = min(self.cell.run.draws, TRACE_DRAWS)
        return Stage(f"trace {kind}", {"scores": self.score_stage(kind).hash, "draws": draws})

    def attribution_stage(self) -> Stage:
        """The comparison of objectives, primary kind."""
        run = self.cell.run
        depends = {
            "scores": self.score_stage(run.primary).hash, "draws": run.draws,
            **asdict(self.cell.attribution),
        }  # fmt: skip
        return Stage("attribution", depends)

    @cached_property
    def needs(self) -> tuple[Need, ...]:
        """What the train pass leaves; the same whichever kinds are already fitted."""
        needs: tuple[Need, ...] = ("means", *(kind_of(k).need for k in self.cell.run.kinds))
        return tuple(dict.fromkeys(needs))

    @cached_property
    def statistics(self) -> TrainStatistics:
        """The train pass, run when the first kind has to be fitted."""
        run = self.cell.run
        return collect(
            self.host, self.data, layers=self.all_layers, need=self.needs, seed=run.seed,
            batch_tokens=run.batch_tokens, progress=self.progress,
        )  # fmt: skip

    def bank(self, kind: str) -> ConceptBank:
        """Vectors of one kind."""
        if kind not in self._banks:
            self._banks[kind] = self.store.keep(
                self.fit_stage(kind), lambda: self._fit(kind), save_bank, load_bank
            )
        return self._banks[kind]

    def _fit(self, kind: str) -> ConceptBank:
        return fit(
            self.host, self.data, kind, layers=self.layers[kind], statistics=self.statistics,
            seed=self.cell.run.seed, progress=self.progress, options=self.cell.kinds.get(kind),
        )  # fmt: skip

    def table(self, kind: str) -> ScoreTable:
        """Scores of one kind; one pass makes those of every kind that has none."""
        if kind not in self._tables:
            bank = self.bank(kind)
            self._tables[kind] = self.store.keep(
                self.score_stage(kind),
                lambda: self._score(kind),
                write_scores,
                lambda path: read_scores(path, bank, self.data),
            )
        return self._tables[kind]

    def _score(self, kind: str) -> ScoreTable:
        kinds = [k for k in self.cell.run.kinds if not self.store.has(self.score_stage(k))]
        found = score(
            self.host, self.data, [self.bank(k) for k in kinds],
            batch_tokens=self.cell.run.batch_tokens, progress=self.progress,
        )  # fmt: skip
        tables = dict(zip(kinds, found, strict=True))
        for other in kinds:
            if other != kind:
                made = tables[other]
                bank = self.bank(other)
                self._tables[other] = self.store.keep(
                    self.score_stage(other),
                    lambda made=made: made,  # type: ignore[misc]
                    write_scores,
                    lambda path, bank=bank: read_scores(path, bank, self.data),  # type: ignore[misc]
                )
        return tables[kind]

    def detector(self, kind: str) -> Detector:
        """The calibrated detector of one kind, made anew: calibration is quick."""
        if kind not in self._detectors:
            self._detectors[kind] = calibrate(
                self.host, self.data, self.bank(kind), scores=self.table(kind),
                seed=self.cell.run.seed,
            )  # fmt: skip
        return self._detectors[kind]

    def _prepare(self, stage: Stage, kind: str) -> None:
        """Run what a stage rests on first, so that its seconds are its own."""
        if not self.store.has(stage):
            self.table(kind)

    def detection(self, kind: str) -> Any:
        """Detection, delta curve, peaks, densities and localisation of one kind."""
        stage = self.detection_stage(kind)
        self._prepare(stage, kind)
        return self.store.keep(stage, lambda: self._detection(kind), write_json, read_json)

    def _detection(self, kind: str) -> Any:
        detector, table = self.detector(kind), self.table(kind)
        settings: dict[str, Any] = {"draws": self.cell.run.draws, "seed": self.cell.run.seed}
        evaluation = detector.evaluate(
            self.data.test, scores=table, progress=self.progress, **settings
        )
        test = table.split("test")
        return clean(
            {
                "scoring": detector.bank.token.scoring,
                "layers": list(detector.bank.layers),
                "units": len(detector.bank.units),
                "tokens": {"kept": len(table.tokens), **table.tokens.dropped},
                "detection": blocks.detection(evaluation),
                "missing": dict(evaluation.missing),
                "choices": blocks.choices(detector),
                "sparsity": blocks.sparsity(
                    detector.sweep(self.data.test, scores=table, **settings)
                ),
                "tokens_per_positive": tokens_per_positive(table.split("cal")),
                "peaks": asdict(delta_peaks(detector, test, **settings)),
                "fractions": blocks.fractions(evaluation),
                "density": density(detector, test, **settings),
                "localisation": blocks.localisation(
                    detector.localise(self.data.test, scores=table).metrics(**settings)
                ),
            }
        )

    def trace(self, kind: str) -> Any:
        """The trace of one kind, and its separation at the best layer by calibration."""
        stage = self.trace_stage(kind)
        self._prepare(stage, kind)
        return self.store.keep(stage, lambda: self._trace(kind), write_json, read_json)

    def _trace(self, kind: str) -> Any:
        detector, run = self.detector(kind), self.cell.run
        found = trace(
            scores=self.table(kind), columns=detector.tail.unit, seed=run.seed,
            draws=min(run.draws, TRACE_DRAWS), progress=self.progress,
        )  # fmt: skip
        best = detector.bank.layers[int(detector.tail.f1.mean(-1).max(1).argmax())]
        return clean(
            {"trace": blocks.trace(found, detector), "separation": separation(found, best)}
        )

    def attribution(self) -> Any:
        """Objectives side by side, primary kind; or why the host or the data do not allow it.

        A refusal is not stored, and asked for again by the next run.
        """
        stage = self.attribution_stage()
        self._prepare(stage, self.cell.run.primary)
        try:
            return self.store.keep(stage, self._attribution, write_json, read_json)
        except (ValueError, TypeError, NotImplementedError) as refusal:
            self.store.say(f"attribution: refused, {refusal}")
            return {"absent": str(refusal)}

    def _attribution(self) -> Mapping[str, Any]:
        part, run = self.cell.attribution, self.cell.run
        detector = self.detector(run.primary)
        tokens = self.table(run.primary).split("test").tokens
        counts = tokens.sample_labels.sum(0)
        order = sorted(range(len(counts)), key=lambda k: (-counts[k], k))
        concepts = [tokens.concepts[k] for k in order[: part.concepts]]
        found = compare(
            self.host, self.data, detector, methods=part.methods, concepts=concepts,
            n_test=part.n_test, n_cal=part.n_cal, preset=part.preset, options=part.options,
            probe=False, n_steps=part.n_steps, draws=run.draws, seed=run.seed,
            progress=self.progress,
        )  # fmt: skip
        return dict(clean({**found.to_dict(), "concepts": concepts, "text": found.text()}))


def open_store(folder: Path, say: Any) -> Store:
    """The store of a cell's stages inside its output folder."""
    return Store(folder / "stages", say)
