"""The whole method, stage by stage: demo, run and reproduce."""

from sa_plugin.stages.blocks import record
from sa_plugin.stages.config import (
    PAPER_KINDS,
    PARTS,
    AttributionPart,
    CellConfig,
    DataPart,
    RunPart,
    configurations,
    read_config,
)
from sa_plugin.stages.measured import delta_peaks, density, tokens_per_positive
from sa_plugin.stages.passages import data_uri, mask_outline, passages, pictures, png, shrunk
from sa_plugin.stages.pipeline import Settings, analyse
from sa_plugin.stages.published import (
    cell_markdown,
    difference,
    facts,
    findings,
    markdown,
    published,
    published_of,
    verdict,
)
from sa_plugin.stages.reproduce import Cell, load_host, reproduce
from sa_plugin.stages.store import Stage, Store, read_json, read_scores, write_json, write_scores

__all__ = [
    "PAPER_KINDS",
    "PARTS",
    "AttributionPart",
    "Cell",
    "CellConfig",
    "DataPart",
    "RunPart",
    "Settings",
    "Stage",
    "Store",
    "analyse",
    "cell_markdown",
    "configurations",
    "data_uri",
    "delta_peaks",
    "density",
    "difference",
    "facts",
    "findings",
    "load_host",
    "markdown",
    "mask_outline",
    "passages",
    "pictures",
    "png",
    "published",
    "published_of",
    "read_config",
    "read_json",
    "read_scores",
    "record",
    "reproduce",
    "shrunk",
    "tokens_per_positive",
    "verdict",
    "write_json",
    "write_scores",
]
