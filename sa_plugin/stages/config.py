"""One cell of the paper's matrix as one TOML file: model, data, layers, kinds, stages.

    title = "SmolLM2 on embedded prose"
    [model]
    folder = "smollm2"            # as `find_folder` takes it; --model takes its place
    [data]
    name = "supersense"           # of `load`
    limit = 600
    [layers]
    blocks = [1, 4, 7]            # or percents = [4, 25, 46], as the paper counts them
    [run]
    kinds = ["prototype", "separator"]

A key that is not known is an error that names the nearest: a misspelt setting must never be a
silently ignored one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from sa_plugin._check import did_you_mean, require_known
from sa_plugin._face import face
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.host.protocol import adapters, layer_of_percent
from sa_plugin.loaders.registry import LOADERS
from sa_plugin.stages.plan import STAGES, AttributionPart, Plan
from sa_plugin.statistics.drawn import Resampling

PAPER_KINDS = ("prototype", "separator", "kmeans", "kmeans_separator")
DTYPES = ("float32", "float16", "bfloat16")


@face
@dataclass(frozen=True)
class ModelPart:
    """Which model, in which library.

    Attributes:
        folder: What `save_pretrained` wrote, or a name that `sa_plugin.host.find_folder` knows;
            `--model` takes its place.
        checkpoint: The public name of the weights, for people: nothing is downloaded.
        host: "transformer_lens" or "nnsight".
        tower: "vision" or "text", of a model with two.
        dtype: Number format of the weights; scores are float32 whatever it is.
        attach: Options of `attach`.
    """

    folder: str = ""
    checkpoint: str = ""
    host: str = "transformer_lens"
    tower: str = ""
    dtype: str = "float32"
    attach: Mapping[str, Any] = field(default_factory=dict)


@face
@dataclass(frozen=True)
class DataPart:
    """Which data.

    Attributes:
        name: Of `load`: a data set, or the path of a file or folder of yours.
        root: Folder of the data; `--root` takes its place.
        limit: At most so many samples (`ConceptData.subset`, rare concepts first); 0 is all.
        split: Of `load`.
        options: Further options of `load`.
    """

    name: str = ""
    root: str = ""
    limit: int = 0
    split: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayersPart:
    """Which layers: block indices, or the paper's percentages; all if neither is given.

    Attributes:
        blocks, percents: Of every kind.
        unsupervised_blocks, unsupervised_percents: Of the k-means kinds, if they read fewer.
    """

    blocks: Sequence[int] = ()
    percents: Sequence[float | int] = ()
    unsupervised_blocks: Sequence[int] = ()
    unsupervised_percents: Sequence[float | int] = ()

    def resolve(self, n_layers: int, *, supervised: bool) -> tuple[int, ...]:
        """Block indices of a kind, ascending, each once.

        Raises:
            ValueError: A block the model does not have.
        """
        own = self.unsupervised_blocks, self.unsupervised_percents
        blocks, percents = own if not supervised and any(own) else (self.blocks, self.percents)
        if percents:
            blocks = [layer_of_percent(n_layers, percent) for percent in percents]
        beyond = [block for block in blocks if not 0 <= block < n_layers]
        if beyond:
            raise ValueError(
                f"[layers] names block {beyond[0]}, the model has blocks 0 to {n_layers - 1}: "
                "correct it, or give percents."
            )
        return tuple(sorted(set(blocks))) or tuple(range(n_layers))


@face
@dataclass(frozen=True)
class RunPart:
    """What is computed.

    Attributes:
        kinds: Concept kinds.
        primary: Kind that figures, findings and attribution show first.
        stages: "detection" always; the others of `plan.STAGES` if asked for.
        draws: Bootstrap draws of source documents, for quantiles.
        seed: Of every random choice.
        batch_tokens: Tokens in a batch, padding included.
    """

    kinds: Sequence[str] = PAPER_KINDS
    primary: str = "separator"
    stages: Sequence[str] = ("detection", "trace")
    draws: int = 1000
    seed: int = 0
    batch_tokens: int = 1024


@face
@dataclass(frozen=True)
class CellConfig:
    """A whole configuration file.

    Attributes:
        name: The file's name without its ending.
        title: One line for people.
        paper: Key of the published figures of this very cell, "" where there are none.
        model, data, layers, run, attribution: The file's tables.
        kinds: Options of a kind's fit, by kind.
    """

    name: str
    title: str
    paper: str = ""
    model: ModelPart = ModelPart()
    data: DataPart = DataPart()
    layers: LayersPart = LayersPart()
    run: RunPart = RunPart()
    attribution: AttributionPart = AttributionPart()
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        model = self.model.checkpoint or self.model.folder
        return (
            f"CellConfig({self.name}: {model} by {self.model.host}, {self.data.name}, "
            f"{len(self.run.kinds)} kinds)"
        )

    def plan(self, n_layers: int) -> Plan:
        """What to compute on a model of so many blocks."""
        run = self.run
        kinds = {
            kind: self.layers.resolve(n_layers, supervised=kind_of(kind).supervised) for kind in run.kinds
        }
        return Plan(
            kinds,
            primary=run.primary,
            stages=run.stages,
            resampling=Resampling(run.draws, run.seed),
            seed=run.seed,
            options=self.kinds,
            attribution=self.attribution,
        )

    def with_overrides(
        self, *, model: str | None = None, root: str | None = None, limit: int | None = None
    ) -> CellConfig:
        """The configuration with what the command line says in place of what the file says."""
        chosen = self.model if model is None else replace(self.model, folder=model)
        data = self.data if root is None else replace(self.data, root=root)
        data = data if limit is None else replace(data, limit=limit)
        found = replace(self, model=chosen, data=data)
        _check(found, self.name)
        return found


# How a refusal calls what a setting may be.
EXPECTED: Mapping[Any, str] = {
    str: "a string",
    str | None: "a string",
    int: "a whole number",
    Sequence[str]: "a list of strings",
    Sequence[int]: "a list of numbers",
    Sequence[float | int]: "a list of numbers",
    Mapping[str, Any]: "a table",
}

PARTS: dict[str, type] = {
    "model": ModelPart,
    "data": DataPart,
    "layers": LayersPart,
    "run": RunPart,
    "attribution": AttributionPart,
}


def configurations() -> dict[str, Path]:
    """The configurations this package ships, by name."""
    folder = Path(str(files("sa_plugin.stages").joinpath("configs")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_config(config: str | Path) -> CellConfig:
    """Read a configuration.

    Args:
        config: A file, or the name of one this package ships (`configurations`).

    Raises:
        FileNotFoundError: Neither; the text names the nearest.
        ValueError: No TOML, an unknown key, a value of another type, or a setting that cannot be.

    Example:
        >>> read_config("smollm2_supersense").data.name
        'supersense'
    """
    path = Path(config).expanduser()
    if not path.is_file():
        known = configurations()
        if str(config) not in known:
            raise FileNotFoundError(
                f"{config} is no file and no configuration of this package"
                f"{did_you_mean(str(config), known)} `sa-plugin reproduce --list` lists them."
            )
        path = known[str(config)]
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML file: {error}.") from error
    return _cell(table, path)


def _cell(table: dict[str, Any], path: Path) -> CellConfig:
    known = [f.name for f in fields(CellConfig) if f.name != "name"]
    for key in table:
        require_known(f"{path.name}: key", key, known)
    parts = {name: _part(cls, table.get(name, {}), name, path) for name, cls in PARTS.items()}
    for key in ("title", "paper"):
        if not isinstance(table.get(key, ""), str):
            raise ValueError(f"{path.name}: {key} is {table[key]!r}: give a string.")
    found = CellConfig(
        path.stem,
        table.get("title", path.stem),
        table.get("paper", ""),
        kinds=table.get("kinds", {}),
        **parts,
    )
    _check(found, path.name)
    return found


def _part(cls: type, table: Any, name: str, path: Path) -> Any:
    if not isinstance(table, dict):
        raise ValueError(f"{path.name}: {name} is {table!r}, not a table: write [{name}].")
    kinds, given = get_type_hints(cls), {}
    for key, value in table.items():
        require_known(f"{path.name}: key of [{name}]", key, kinds)
        given[key] = tuple(value) if isinstance(value, list) else value
        try:
            TypeAdapter(kinds[key]).validate_python(given[key], strict=True)
        except ValidationError as error:
            raise ValueError(
                f"{path.name}: {name}.{key} is {value!r:.60}: give {EXPECTED[kinds[key]]}."
            ) from error
    return cls(**given)


def _check(cell: CellConfig, where: str) -> None:
    require_known(f"{where}: model.host", cell.model.host, adapters())
    require_known(f"{where}: model.dtype", cell.model.dtype, DTYPES)
    for stage in cell.run.stages:
        require_known(f"{where}: run.stages", stage, STAGES)
    for kind in cell.run.kinds:
        kind_of(kind)
    for kind, options in cell.kinds.items():
        require_known(f"{where}: key of [kinds]", kind, cell.run.kinds)
        if not isinstance(options, dict):
            raise ValueError(f"{where}: kinds.{kind} is {options!r}: write [kinds.{kind}].")
    if cell.run.primary not in cell.run.kinds:
        raise ValueError(
            f"{where}: run.primary {cell.run.primary!r} is not among run.kinds {list(cell.run.kinds)}."
        )
    if not cell.data.name:
        raise ValueError(f"{where}: [data] has no name: give one of load's.")
    if "/" not in cell.data.name and "." not in cell.data.name:
        require_known(f"{where}: data.name", cell.data.name, LOADERS)
    for key in {"name", "root", "split", "seed"} & cell.data.options.keys():
        raise ValueError(
            f"{where}: {key} stands in [data.options]: it is a key of "
            f"{'[run]' if key == 'seed' else '[data]'}."
        )
    both = [("blocks", "percents"), ("unsupervised_blocks", "unsupervised_percents")]
    for one, other in both:
        if getattr(cell.layers, one) and getattr(cell.layers, other):
            raise ValueError(f"{where}: [layers] has {one} and {other}: give one of them.")
    if cell.run.draws < 1 or cell.data.limit < 0:
        raise ValueError(
            f"{where}: run.draws {cell.run.draws} must be at least 1, data.limit "
            f"{cell.data.limit} at least 0."
        )
