"""Run a configuration, or continue it: open model and data, study them, write what was found.

Demo, run and reproduce are configurations (`config`) of one graph (`graph`). Everything of a run lies
in one folder: `results.json` and `report.html`; of a cell of the paper's matrix also `stages/` (see
`store`), `cell.json` (every number, findings and published figures), `cell.md` (the tables and what
they show) and `figures/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sa_plugin._files import output_folder, write_text
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.host.folders import open_folder
from sa_plugin.host.protocol import Host
from sa_plugin.loaders.registry import load
from sa_plugin.report.page import write_report
from sa_plugin.report.record import without_texts, write_results
from sa_plugin.show.result import clean
from sa_plugin.stages.config import CellConfig
from sa_plugin.stages.figures import draw_figures
from sa_plugin.stages.plan import Plan
from sa_plugin.stages.published import cell_markdown, findings, published_of
from sa_plugin.stages.store import write_json
from sa_plugin.stages.study import UNTOLD, Study, study


@dataclass(frozen=True, eq=False)
class Cell:
    """A cell that was run.

    Attributes:
        config: What was run.
        record: Every number, as in `cell.json`.
        study: The results behind it.
        folder: Where everything lies.
        figures: Paths of the figures.
    """

    config: CellConfig
    record: dict[str, Any]
    study: Study
    folder: Path
    figures: tuple[Path, ...]

    def __repr__(self) -> str:
        return f"Cell({self.config.name}, {len(self.figures)} figures, {self.folder})"


def run_plan(
    plan: Plan,
    host: Host,
    data: ConceptData,
    out: str | Path,
    *,
    keep: bool = False,
    texts: bool = True,
    say: Callable[[str], None] = UNTOLD,
) -> Study:
    """Study a model and write `results.json` and `report.html`.

    Args:
        plan: What to compute.
        host: The model.
        data: The data.
        out: Folder for everything.
        keep: Whether stages are kept in `out`/stages, so that a second run continues.
        texts: Whether anything in the folder holds the user's texts and pictures.
        say: Called with one line a stage: kept, or computed and why.

    Raises:
        OSError: The folder cannot be written, or another run writes it; said before anything runs. If
            the disk fills up while it runs, the error holds the `study`.
        ValueError: As the functions called.
    """
    with output_folder(out, "results.json", "report.html") as folder:
        say(f"{host!r}\n{data!r}")
        found = study(host, data, plan, folder=folder if keep else None, texts=texts, say=say)
        found.record["provenance"]["command"] = f"sa-plugin, model {host.info.model}, data {data.name}"
        try:
            write_results(found.record, folder / "results.json", texts=texts)
            write_report(found.record, folder / "report.html", texts=texts)
        except OSError as error:
            # Hours of work are in it: whoever catches this can save it elsewhere.
            error.study = found  # type: ignore[attr-defined]
            raise
    return found


def reproduce(
    config: CellConfig,
    out: str | Path,
    *,
    host: Host | None = None,
    data: ConceptData | None = None,
    figures: bool = True,
    texts: bool = True,
    say: Callable[[str], None] = UNTOLD,
) -> Cell:
    """Run a cell of the paper's matrix, or continue one.

    Costs, when nothing is kept, one forward pass for each sample of the data, and what the
    attribution stage costs if the configuration asks for it (`sa_plugin.attribution.compare`).

    Args:
        config: From `read_config`.
        out: Folder for everything; run again with the same folder to continue.
        host: The model, already attached; by default opened as the configuration says.
        data: The data; by default loaded as the configuration says.
        figures: Whether to draw.
        texts: Whether anything in the folder holds the user's texts and pictures.
        say: Called with one line a stage: kept, or computed and why.

    Raises:
        OSError: The folder cannot be written, or another run writes it; said before anything runs.
        FileNotFoundError: The model or the data are not there.
        ValueError: As the functions called.

    Example:
        >>> reproduce(read_config("minilm_supersense"), "out", say=print)  # doctest: +SKIP
    """
    with output_folder(out, "results.json", "report.html", "cell.json", "cell.md") as folder:
        host = open_host(config) if host is None else host
        data = open_data(config) if data is None else data
        say(config.title)
        found = run_plan(config.plan(host.info.n_layers), host, data, folder, keep=True, texts=texts, say=say)
        record: dict[str, Any] = {
            **(found.record if texts else without_texts(found.record)),
            "config": clean(asdict(config)),
            "published": published_of(config.paper),
        }
        record["findings"] = findings(record)
        write_json(record, folder / "cell.json")
        drawn = draw_figures(record, folder / "figures") if figures else ()
        text = cell_markdown(record, [path.relative_to(folder).as_posix() for path in drawn])
        write_text(folder / "cell.md", text)
        say(f"{folder / 'cell.md'}, {folder / 'cell.json'}, {len(drawn)} figures")
        return Cell(config, record, found, folder, tuple(drawn))


def open_host(config: CellConfig) -> Host:
    """The configured model, attached by the configured host.

    Raises:
        FileNotFoundError: No model was named, or there is none.
        ValueError: As `sa_plugin.host.folders.open_folder`.
    """
    part = config.model
    if not part.folder:
        raise FileNotFoundError(
            f"{config.name} is for {part.checkpoint or 'a model of yours'}, which is never "
            f"downloaded: give the folder of your copy, sa-plugin reproduce {config.name} --model FOLDER."
        )
    options: dict[str, Any] = {"batch_tokens": config.run.batch_tokens, **part.attach}
    dtype = getattr(torch, part.dtype)
    return open_folder(part.folder, part.host, dtype=dtype, tower=part.tower or None, **options)


def open_data(config: CellConfig) -> ConceptData:
    """The configured data, or at most the configured number of samples of them.

    Raises:
        FileNotFoundError: The data are not there.
        ValueError: As `load`.
    """
    part, seed = config.data, config.run.seed
    options: dict[str, Any] = dict(part.options)
    if part.split is not None:
        options["split"] = part.split
    if part.root:
        options["root"] = Path(part.root).expanduser()
    data = load(part.name, seed=seed, **options)
    return data.subset(part.limit, seed=seed) if part.limit else data
