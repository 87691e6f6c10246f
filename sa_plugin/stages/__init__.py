"""The whole method, stage by stage: demo, run and reproduce."""

from sa_plugin._face import face_room
from sa_plugin.stages.blocks import heads_block, trace_block
from sa_plugin.stages.config import (
    PAPER_KINDS,
    PARTS,
    CellConfig,
    DataPart,
    ModelPart,
    RunPart,
    configurations,
    read_config,
)
from sa_plugin.stages.demo import demo_plan
from sa_plugin.stages.examples import marked, passages, pictures
from sa_plugin.stages.graph import Graph
from sa_plugin.stages.measured import delta_peaks, density, tokens_per_positive
from sa_plugin.stages.plan import STAGES, AttributionPart, Plan
from sa_plugin.stages.published import (
    cell_markdown,
    difference,
    facts,
    findings,
    interval_says,
    markdown,
    published,
    published_of,
)
from sa_plugin.stages.reproduce import Cell, open_data, open_host, reproduce, run_plan
from sa_plugin.stages.store import (
    NotKeptWarning,
    Stage,
    Store,
    read_json,
    read_scores,
    write_json,
    write_scores,
)
from sa_plugin.stages.study import Study, study
from sa_plugin.stages.tail_cells import TailCell, TailDesign, TailScores, TailWorld, read_design
from sa_plugin.stages.tail_judged import judge_prediction, tried
from sa_plugin.stages.tail_predicted import fit_constants, predict
from sa_plugin.stages.tail_runs import run_design

__all__ = [
    "PAPER_KINDS",
    "PARTS",
    "STAGES",
    "AttributionPart",
    "Cell",
    "CellConfig",
    "DataPart",
    "Graph",
    "ModelPart",
    "NotKeptWarning",
    "Plan",
    "RunPart",
    "Stage",
    "Store",
    "Study",
    "TailCell",
    "TailDesign",
    "TailScores",
    "TailWorld",
    "cell_markdown",
    "configurations",
    "delta_peaks",
    "demo_plan",
    "density",
    "difference",
    "facts",
    "findings",
    "fit_constants",
    "heads_block",
    "interval_says",
    "judge_prediction",
    "markdown",
    "marked",
    "open_data",
    "open_host",
    "passages",
    "pictures",
    "predict",
    "published",
    "published_of",
    "read_config",
    "read_design",
    "read_json",
    "read_scores",
    "reproduce",
    "run_design",
    "run_plan",
    "study",
    "tokens_per_positive",
    "trace_block",
    "tried",
    "write_json",
    "write_scores",
]

face_room(globals())
