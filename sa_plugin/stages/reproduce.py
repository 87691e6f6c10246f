"""The stages of a cell: what each depends on, and how it is made when it is not there.

    fit KIND  ->  scores KIND  ->  detection KIND, trace KIND  ->  attribution (primary kind)

Nothing before a stage is read or computed while the stage's own result is kept.

Run one cell: load, compute or continue, write tables and figures.

Everything lies in one folder: `stages/` (see `store`), `cell.json` (every number), `cell.md` (the
tables and what they show), `figures/`. The numbers are those of the functions a user calls by hand;
this module orders them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sa_plugin.attribution.compare import Design, compare
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.collect import Need, TrainStatistics, collect
from sa_plugin.concepts.fit import fit
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.concepts.saved import load_bank, save_bank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import SPLITS
from sa_plugin.detection.calibrate import calibrate
from sa_plugin.detection.detector import Detector
from sa_plugin.host.folders import open_folder
from sa_plugin.host.protocol import Host
from sa_plugin.loaders.registry import load
from sa_plugin.scores.score import score
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import clean
from sa_plugin.stages import blocks
from sa_plugin.stages.blocks import machine, versions
from sa_plugin.stages.config import CellConfig
from sa_plugin.stages.figures import draw_figures
from sa_plugin.stages.measured import delta_peaks, density, separation, tokens_per_positive
from sa_plugin.stages.published import cell_markdown, findings, published_of
from sa_plugin.stages.store import Stage, Store, read_json, read_scores, write_json, write_scores
from sa_plugin.statistics.drawn import Resampling
from sa_plugin.tracing.tail_trace import trace

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
        return {kind: part.resolve(n, supervised=kind_of(kind).supervised) for kind in self.cell.run.kinds}

    @cached_property
    def all_layers(self) -> tuple[int, ...]:
        """Every block that is read."""
        return tuple(sorted({layer for layers in self.layers.values() for layer in layers}))

    @cached_property
    def base(self) -> dict[str, Any]:
        """What every stage depends on."""
        info, run = self.host.info, self.cell.run
        return {
            "host": info.host,
            "weights": info.fingerprint,
            "processing": info.processing,
            "dtype": info.dtype,
            "tokenizer": info.tokenizer,
            "data": self.data.hash,
            "processor": repr(getattr(self.host, "processor", None)),
            "seed": run.seed,
            "batch_tokens": run.batch_tokens,
        }

    def fit_stage(self, kind: str) -> Stage:
        """Vectors of one kind; the layers of all kinds decide what is an attention sink."""
        depends = self.base | {
            "kind": kind,
            "layers": list(self.layers[kind]),
            "all_layers": list(self.all_layers),
            "needs": list(self.needs),
            "options": dict(self.cell.kinds.get(kind, {})),
        }
        return Stage(f"fit {kind}", depends, "")

    def score_stage(self, kind: str) -> Stage:
        """Scores of one kind on calibration and test."""
        return Stage(f"scores {kind}", {"fit": self.fit_stage(kind).hash}, ".npz")

    def detection_stage(self, kind: str) -> Stage:
        """Everything about detection, one kind."""
        depends = {"scores": self.score_stage(kind).hash, "draws": self.cell.run.draws, "measures": MEASURES}
        return Stage(f"detection {kind}", depends)

    def trace_stage(self, kind: str) -> Stage:
        """The trace of one kind."""
        draws = min(self.cell.run.draws, TRACE_DRAWS)
        return Stage(f"trace {kind}", {"scores": self.score_stage(kind).hash, "draws": draws})

    def attribution_stage(self) -> Stage:
        """The comparison of objectives, primary kind."""
        run = self.cell.run
        depends = {
            "scores": self.score_stage(run.primary).hash,
            "draws": run.draws,
            **asdict(self.cell.attribution),
        }
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
            self.host,
            self.data,
            layers=self.all_layers,
            need=self.needs,
            seed=run.seed,
            batch_tokens=run.batch_tokens,
            progress=self.progress,
        )

    def bank(self, kind: str) -> ConceptBank:
        """Vectors of one kind."""
        if kind not in self._banks:
            self._banks[kind] = self.store.keep(
                self.fit_stage(kind), lambda: self._fit(kind), save_bank, load_bank
            )
        return self._banks[kind]

    def _fit(self, kind: str) -> ConceptBank:
        return fit(
            self.host,
            self.data,
            kind,
            layers=self.layers[kind],
            statistics=self.statistics,
            seed=self.cell.run.seed,
            progress=self.progress,
            options=self.cell.kinds.get(kind),
        )

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
            self.host,
            self.data,
            [self.bank(k) for k in kinds],
            batch_tokens=self.cell.run.batch_tokens,
            progress=self.progress,
        )
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
                self.host, self.data, self.bank(kind), scores=self.table(kind), seed=self.cell.run.seed
            )
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
        resampling = Resampling(**settings)
        evaluation = detector.evaluate(self.data.test, scores=table, resampling=resampling)
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
                    detector.sweep(self.data.test, scores=table, resampling=resampling)
                ),
                "tokens_per_positive": tokens_per_positive(table.split("cal")),
                "peaks": asdict(delta_peaks(detector, test, **settings)),
                "fractions": blocks.fractions(evaluation),
                "density": density(detector, test, **settings),
                "localisation": blocks.localisation(
                    detector.evaluate_tokens(self.data.test, scores=table, resampling=resampling)
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
            scores=self.table(kind),
            columns=detector.tail.unit,
            resampling=Resampling(min(run.draws, TRACE_DRAWS), run.seed),
        )
        best = detector.bank.layers[int(detector.tail.f1.mean(-1).max(1).argmax())]
        return clean({"trace": blocks.trace(found, detector), "separation": separation(found, best)})

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
            self.host,
            self.data,
            detector,
            methods=part.methods,
            concepts=concepts,
            design=Design(
                part.n_test, part.n_cal, part.preset, options=part.options, n_steps=part.n_steps, probe=False
            ),
            resampling=Resampling(run.draws, run.seed),
        )
        return {**found.to_dict(), "concepts": concepts, "text": found.summary()}


def open_store(folder: Path, say: Any) -> Store:
    """The store of a cell's stages inside its output folder."""
    return Store(folder / "stages", say)


SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Cell:
    """A cell that was run.

    Attributes:
        config: What was run.
        record: Every number, as in `cell.json`.
        folder: Where everything lies.
        figures: Paths of the figures; empty without matplotlib.
    """

    config: CellConfig
    record: dict[str, Any]
    folder: Path
    figures: tuple[Path, ...]

    def __repr__(self) -> str:
        return f"Cell({self.config.name}, {len(self.figures)} figures, {self.folder})"


def reproduce(
    config: CellConfig,
    out: str | Path,
    *,
    host: Host | None = None,
    data: ConceptData | None = None,
    figures: bool = True,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = True,
) -> Cell:
    """Run a cell, or continue one.

    Costs, when nothing is kept, one forward pass for each sample of the data, and what the
    attribution stage costs if the configuration asks for it (`sa_plugin.attribution.compare`).

    Args:
        config: From `read_config`.
        out: Folder for everything; run again with the same folder to continue.
        host: The model, already attached; by default loaded as the configuration says.
        data: The data; by default loaded as the configuration says.
        figures: Whether to draw, where matplotlib is installed.
        say: Called with one line a stage: kept, or computed and why.
        progress: Whether to show bars.

    Raises:
        FileNotFoundError: The model's folder or the data are not there.
        ValueError: As the functions called.

    Example:
        >>> reproduce(read_config("minilm_supersense"), "out", say=print)  # doctest: +SKIP
    """
    folder = Path(out)
    data = load_data(config) if data is None else data
    host = load_host(config) if host is None else host
    say(f"{config.title}\n{host!r}\n{data!r}")
    work = Work(host, data, config, open_store(folder, say), progress)
    record = clean(_record(work))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, folder / "cell.json")
    drawn = draw_figures(record, folder / "figures", say) if figures else ()
    text = cell_markdown(record, [path.relative_to(folder).as_posix() for path in drawn])
    (folder / "cell.md").write_text(text, encoding="utf-8")
    say(f"{folder / 'cell.md'}, {folder / 'cell.json'}, {len(drawn)} figures")
    return Cell(config, record, folder, tuple(drawn))


def load_host(config: CellConfig) -> Host:
    """The configured model, attached by the configured host.

    Raises:
        FileNotFoundError: No folder was named, or it holds no model.
        ValueError: As `sa_plugin.host.folders.open_folder`.
    """
    part = config.model
    if not part.folder:
        raise FileNotFoundError(
            f"{config.name} is for {part.checkpoint or 'a model of yours'}, which is never "
            "downloaded: give the folder of your copy, sa-plugin reproduce "
            f"{config.name} --model FOLDER."
        )
    options: dict[str, Any] = dict(part.attach)
    return open_folder(
        part.folder, part.host, dtype=getattr(torch, part.dtype), tower=part.tower or None, **options
    )


def load_data(config: CellConfig) -> ConceptData:
    """The configured data, or at most the configured number of samples of them.

    Raises:
        FileNotFoundError: The data are not there.
        ValueError: As `load`.
    """
    part, seed = config.data, config.run.seed
    options: dict[str, Any] = dict(part.options)
    if part.root:
        options["root"] = Path(part.root).expanduser()
    data = load(part.name, split=part.split, seed=seed, **options)
    return data.subset(part.limit, seed=seed) if part.limit else data


def _record(work: Work) -> dict[str, Any]:
    cell, info, data = work.cell, work.host.info, work.data
    kinds: dict[str, Any] = {}
    for kind in cell.run.kinds:
        kinds[kind] = dict(work.detection(kind))
        if "trace" in cell.run.stages:
            kinds[kind] |= work.trace(kind)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "config": asdict(cell),
        "meta": {
            "model": info.model,
            "architecture": info.architecture,
            "host": info.host,
            "n_blocks": info.n_layers,
            "dtype": info.dtype,
            "weights": info.fingerprint,
            "data": data.name,
            "data_hash": data.hash,
            "concepts": list(data.concepts),
            "layers": {kind: list(layers) for kind, layers in work.layers.items()},
            "samples": {name: len(data.split(name)) for name in SPLITS},
            "documents": {name: len({s.document for s in data.split(name).samples}) for name in SPLITS},
            "skipped": dict(data.skipped),
        },
        "kinds": kinds,
        "published": published_of(cell.paper),
        "provenance": {"versions": versions(), "machine": machine(), "stages": _used(work)},
    }
    if "attribution" in cell.run.stages:
        record["attribution"] = work.attribution()
    record["provenance"]["stages"] = _used(work)
    record["findings"] = findings(record)
    return record


def _used(work: Work) -> dict[str, Any]:
    """Seconds and warnings of the stages this record rests on."""
    known = work.store.record()
    asked = work.cell.run.stages
    stages = [work.attribution_stage()] if "attribution" in asked else []
    for kind in work.cell.run.kinds:
        stages += [make(kind) for make in (work.fit_stage, work.score_stage, work.detection_stage)]
        stages += [work.trace_stage(kind)] if "trace" in asked else []
    return {stage.file: known[stage.file] for stage in stages if stage.file in known}
