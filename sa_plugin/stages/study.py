"""The whole method in one call, on any host.

`study` runs the stages of a plan (`graph`) and returns a `Study`: every result a user would have
made by hand, what was chosen on the way, and the record that goes into `results.json`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin._files import output_folder
from sa_plugin.data.build import validate
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import SPLITS
from sa_plugin.detection.detector import Detector
from sa_plugin.host.protocol import Host
from sa_plugin.passes.layout import unknown_words
from sa_plugin.report.page import write_report
from sa_plugin.report.record import checked, write_results
from sa_plugin.report.schema import SCHEMA, Results
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import Result, Sheet, clean, noun_count
from sa_plugin.stages.graph import QUOTING, Graph
from sa_plugin.stages.plan import Plan
from sa_plugin.stages.store import Store, machine, versions

UNTOLD: Callable[[str], None] = lambda line: None  # noqa: E731


@dataclass(frozen=True, eq=False, repr=False)
class Study(Result):
    """A study that was run.

    Attributes:
        record: Every number, as `results.json` holds them (`sa_plugin.report.schema`).
        graph: The objects behind it, made or read when they are asked for.
    """

    record: Results
    graph: Graph

    about: ClassVar[str] = (
        "Every choice was made on the calibration split, every number is of the test split; intervals are "
        "conditional on the train and calibration splits."
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Concept kinds, in the plan's order."""
        return tuple(self.graph.plan.kinds)

    def detector(self, kind: str = "") -> Detector:
        """The calibrated detector of a kind; the primary one by default."""
        return self.graph.detector(self._kind(kind))

    def scores(self, kind: str = "") -> ScoreTable:
        """Scores of a kind on calibration and test; the primary one by default."""
        return self.graph.table(self._kind(kind))

    def results(self, kind: str = "") -> dict[str, Any]:
        """The results of a kind by name, each of which shows itself; the primary kind by default.

        A result that was kept by an earlier run is computed again from the kept scores.
        """
        kind, graph, stages = self._kind(kind), self.graph, self.graph.plan.stages
        found: dict[str, Any] = {
            "evaluation": graph.evaluation(kind),
            "delta": graph.curve(kind),
            "localisation": graph.localisation(kind),
        }
        if "trace" in stages:
            found["trace"] = graph.traced(kind)
        if kind == graph.plan.main:
            if "heads" in stages and "absent" not in graph.heads_block():
                found["heads"] = graph.ledger()
            if "attribution" in stages and "absent" not in graph.attribution_block():
                found["attribution"] = graph.comparison()
        return found

    def _kind(self, kind: str) -> str:
        if kind:
            require_known("kind of this study", kind, self.kinds)
        return kind or self.graph.plan.main

    def headline(self) -> str:
        """Model, data and the primary kind's weighted F1."""
        meta, kind = self.record["meta"], self.graph.plan.main
        rows = {row["method"]: row for row in self.record["kinds"][kind]["detection"]["methods"]}
        own = rows["SuperActivators"]["weighted_f1"]
        f1 = "not defined" if own is None else f"{own:.3f}"
        return (
            f"{meta['model']} on {meta['data']}, {noun_count(len(self.kinds), 'kind')}, "
            f"{noun_count(len(meta['concepts']), 'concept')}, "
            f"SuperActivators' weighted F1 {f1} with {kind}"
        )

    def sheets(self) -> Sequence[Sheet]:
        """The sheets of every result of the primary kind, and the evaluation of the others."""
        found: list[Sheet] = []
        for kind in self.kinds:
            results = self.results(kind)
            shown = results.values() if kind == self.graph.plan.main else [results["evaluation"]]
            scoring = self.record["kinds"][kind]["scoring"]
            found.append(Sheet((), (), f"{kind}, {scoring} scores:"))
            found += [sheet for result in shown for sheet in result.sheets()]
        notes = [f"warning: {note}" for note in self.record["warnings"]]
        return [*found, Sheet((), (), notes=notes)] if notes else found

    def rows(self) -> list[dict[str, Any]]:
        """Every result's numbers in long form, with its kind and name."""
        return [
            {"kind": kind, "result": name, **row}
            for kind in self.kinds
            for name, result in self.results(kind).items()
            for row in result.rows()
        ]

    def to_dict(self) -> dict[str, Any]:
        """What `results.json` holds."""
        return dict(self.record)

    def plot(self, result: str = "evaluation", kind: str = "") -> Any:
        """The picture of one result.

        Args:
            result: A name that `results` has.
            kind: The primary one by default.

        Raises:
            ValueError: Unknown; the text names the nearest.
        """
        found = self.results(kind)
        require_known("result of this study", result, found)
        return found[result].plot()

    def report(self, path: str | Path = "report.html", *, texts: bool = True) -> Path:
        """Write the HTML report: one file without network or script.

        Args:
            path: Where to.
            texts: Whether with the user's texts and pictures.
        """
        return write_report(self.record, path, texts=texts)

    def save(self, path: str | Path, *, texts: bool = True) -> Path:
        """Write everything into a folder: results.json, report.html, and each kind's detector.

        Args:
            path: The folder.
            texts: Whether results and report hold the user's texts and pictures; detectors hold none.

        Raises:
            OSError: It cannot be written, or is being written; the text names it.
        """
        with output_folder(path, "results.json", "report.html") as folder:
            write_results(self.record, folder / "results.json", texts=texts)
            self.report(folder / "report.html", texts=texts)
            for kind in self.kinds:
                self.detector(kind).save_pretrained(folder / "detectors" / kind)
        return folder


@face
def study(
    host: Host,
    data: ConceptData,
    plan: Plan = Plan(),
    *,
    folder: str | Path | None = None,
    texts: bool = True,
    say: Callable[[str], None] = UNTOLD,
) -> Study:
    """Run the whole method.

    Costs one forward pass for each sample of the data, another for each test sample (the ledger),
    and what the stage "attribution" costs where it is asked for.

    Args:
        host: An attached model.
        data: Labelled samples.
        plan: What to compute.
        folder: Where stages are kept; run again with the same folder to continue.
        texts: Whether that folder may hold texts and pictures of the data; without them the stages that
            quote some are computed by every run, and left out of what earlier runs kept.
        say: Called with one line a stage.

    Returns:
        A `Study`: every number, its tables and pictures, `report` and `save`.

    Raises:
        TypeError: The order is study(host, data, plan).
        OSError: The folder cannot be written, or another run writes it; said before anything runs.
        ValueError: As the functions called.

    Example:
        >>> found = study(host, data, Plan(kinds=["separator"], layers=[4, 12]))  # doctest: +SKIP
        >>> found.report("report.html")  # doctest: +SKIP
    """
    with nullcontext() if folder is None else output_folder(folder):
        store = Store(None if folder is None else Path(folder) / "stages", say, texts=texts)
        graph = Graph(host, data, plan, store)
        if not texts:
            store.strip([graph.stage(name, plan.main) for name in QUOTING])
        return _study(graph)


def _study(graph: Graph) -> Study:
    data = graph.data
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # What was said when the data were made belongs in the record too.
        validate(data.samples, data.split_of, data.concepts)
    record = _record(graph, [f"{w.category.__name__}: {w.message}" for w in caught])
    return Study(checked(clean(record)), graph)


def _record(graph: Graph, notes: Sequence[str]) -> Results:
    plan, main = graph.plan, graph.plan.main
    kinds: dict[str, Any] = {}
    for kind in plan.kinds:
        kinds[kind] = dict(graph.detection_block(kind))
        if "trace" in plan.stages:
            kinds[kind] |= graph.trace_block(kind)
    record: dict[str, Any] = {"schema": SCHEMA, "meta": _meta(graph, kinds[main]), "kinds": kinds}
    absent: dict[str, str] = {}
    for name in plan.stages:
        if name == "heads":
            block = graph.heads_block()
            absent |= _part(kinds[main], "heads", block)
        elif name == "examples":
            record |= graph.examples_block()
        elif name == "explanation":
            absent |= _part(record, "explained", graph.explanation_block())
        elif name == "attribution":
            absent |= _part(record, "attribution", graph.attribution_block())
    if absent:
        kinds[main]["absent"] = absent
    made = graph.store.record()
    used = {stage.name: made[stage.file] for stage in graph.stages() if stage.file in made}
    chosen = {"kinds": graph.layers, "primary": main, "batch_tokens": graph.host.batch_tokens}
    record["provenance"] = {
        "versions": versions(),
        "hashes": {"data": graph.data.hash, "weights": graph.host.info.fingerprint},
        "settings": clean(asdict(plan) | chosen),
        "counts": {kind: _counts(block) for kind, block in kinds.items()},
        "timings": {name: one["seconds"] for name, one in used.items()},
        "machine": machine(),
    }
    said = {note for one in used.values() for note in one["warnings"]}
    unknown = kinds[main]["extra"]["localisation"]["ground"].get("unknown")
    if unknown:
        said.add(f"test: {unknown_words(unknown)}")
    record["warnings"] = sorted({*notes, *said})
    return record  # type: ignore[return-value]


def _counts(block: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a kind was fitted and scored."""
    return {
        "units": block["units"],
        "train_tokens": block["train_tokens"],
        "scored_tokens": block["tokens"]["kept"],
        "fit": block["fit"],
    }


def _part(block: dict[str, Any], name: str, found: Mapping[str, Any]) -> dict[str, str]:
    """Put a part where it belongs, or say why it is missing."""
    if set(found) == {"absent"}:
        return {name: found["absent"]}
    block[name] = dict(found)
    return {}


def _meta(graph: Graph, block: Mapping[str, Any]) -> dict[str, Any]:
    info, data, plan = graph.host.info, graph.data, graph.plan
    kept, dropped = dict(block["tokens"]), dict(block["train_tokens"])
    return {
        "model": info.model,
        "architecture": info.architecture,
        "host": info.host,
        "dtype": info.dtype,
        "processing": info.processing,
        "n_blocks": info.n_layers,
        "hook_point": block["hook_point"],
        "data": data.name,
        "data_hash": data.hash,
        "concepts": list(data.concepts),
        "layers": list(graph.all_layers),
        "primary_kind": plan.main,
        "seed": plan.seed,
        "samples": {name: len(data.split(name)) for name in SPLITS},
        "documents": {name: len({s.document for s in data.split(name).samples}) for name in SPLITS},
        "skipped": dict(data.skipped),
        "tokens_kept": kept.pop("kept") + dropped.get("kept", 0),
        "tokens_dropped": {why: n + dropped.get(why, 0) for why, n in kept.items()},
        "intervals": {"unit": "documents", "draws": plan.resampling.draws, "level": plan.resampling.level},
    }
