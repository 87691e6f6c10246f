"""Run one cell: load, compute or continue, write tables and figures.

Everything lies in one folder: `stages/` (see `store`), `cell.json` (every number), `cell.md` (the
tables and what they show), `figures/`. The numbers are those of the functions a user calls by hand;
this module orders them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sa_plugin import weights
from sa_plugin.data import SPLITS, ConceptData
from sa_plugin.folders import open_folder
from sa_plugin.host import Host
from sa_plugin.pipeline.provenance import machine, versions
from sa_plugin.reproduce.config import CellConfig
from sa_plugin.reproduce.figures import draw_figures
from sa_plugin.reproduce.findings import findings
from sa_plugin.reproduce.published import published_of
from sa_plugin.reproduce.store import write_json
from sa_plugin.reproduce.tables import cell_markdown
from sa_plugin.reproduce.work import Work, open_store
from sa_plugin.results import clean

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
        ValueError: As `sa_plugin.folders.open_folder`.
    """
    part = config.model
    if part.name:
        folder = weights.folder(part.name)
    elif part.folder:
        folder = Path(part.folder).expanduser()
    else:
        raise FileNotFoundError(
            f"{config.name} is for {part.checkpoint or 'a model of yours'}, which is never "
            "downloaded: give the folder of your copy, sa-plugin reproduce "
            f"{config.name} --model FOLDER."
        )
    options: dict[str, Any] = dict(part.attach)
    return open_folder(
        folder, part.host, dtype=getattr(torch, part.dtype), tower=part.tower or None, **options
    )


def load_data(config: CellConfig) -> ConceptData:
    """The configured data, or at most the configured number of samples of them.

    Raises:
        FileNotFoundError: The data are not there.
        ValueError: As `ConceptData.load`.
    """
    part, seed = config.data, config.run.seed
    options: dict[str, Any] = dict(part.options)
    if part.root:
        options["root"] = Path(part.root).expanduser()
    data = ConceptData.load(part.name, split=part.split, seed=seed, **options)
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
            "model": info.model, "architecture": info.architecture, "host": info.host,
            "n_blocks": info.n_layers, "dtype": info.dtype, "weights": info.fingerprint,
            "data": data.name, "data_hash": data.hash, "concepts": list(data.concepts),
            "layers": {kind: list(layers) for kind, layers in work.layers.items()},
            "samples": {name: len(data.split(name)) for name in SPLITS},
            "documents": {
                name: len({s.document for s in data.split(name).samples}) for name in SPLITS
            },
            "skipped": dict(data.skipped),
        },
        "kinds": kinds,
        "published": published_of(cell.paper),
        "provenance": {
            "versions": versions(), "machine": machine(),
            "stages": _used(work),
        },
    }  # fmt: skip
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
