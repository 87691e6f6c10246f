"""What the method asks of a model, and the checks that hold it to that."""

from typing import TYPE_CHECKING

from sa_plugin._face import face_room
from sa_plugin._lazy import lazily
from sa_plugin.host.adapter import FINAL, AttentionParts, Part, Passes, Places
from sa_plugin.host.laws import NORMS, RAW, Law, relative_difference
from sa_plugin.host.local import LocalHost, Options, demand_embedded, open_images, open_texts, refuse_training
from sa_plugin.host.protocol import (
    FINAL_NORM,
    PAPER_GRIDS,
    Attended,
    AttentionWeights,
    Batch,
    BlockNorms,
    DescribedHost,
    DifferentiableHost,
    EditableHost,
    Host,
    HostInfo,
    InputMap,
    Norm,
    OutputProjection,
    Point,
    Rotary,
    Site,
    ZEdit,
    apply_edit,
    attach,
    layer_of_percent,
    layers_at,
    require_described,
    require_differentiable,
    require_editable,
    uniform_attention,
)
from sa_plugin.host.reducers import keep_tokens
from sa_plugin.host.texts import TEXTS
from sa_plugin.host.turns import HOOKS, InterruptedCallWarning, Turns, hooks_on, turns_of
from sa_plugin.host.weights import apply_norm, fingerprint, norm_of, norm_scale

if TYPE_CHECKING:
    from sa_plugin.host.checks import CheckReport, check, check_folder
    from sa_plugin.host.folders import as_vit, find_folder, load_folder, open_folder
    from sa_plugin.host.images import Processor, processor_of, read_processor
    from sa_plugin.host.tokens import SecondBosWarning, TextEncoder
else:
    __getattr__ = lazily(
        __name__,
        {
            "checks": ("CheckReport", "check", "check_folder"),
            "folders": ("as_vit", "find_folder", "load_folder", "open_folder"),
            "images": ("Processor", "processor_of", "read_processor"),
            "tokens": ("SecondBosWarning", "TextEncoder"),
        },
    )


__all__ = [
    "FINAL",
    "FINAL_NORM",
    "HOOKS",
    "NORMS",
    "PAPER_GRIDS",
    "RAW",
    "TEXTS",
    "Attended",
    "AttentionParts",
    "AttentionWeights",
    "Batch",
    "BlockNorms",
    "CheckReport",
    "DescribedHost",
    "DifferentiableHost",
    "EditableHost",
    "Host",
    "HostInfo",
    "InputMap",
    "InterruptedCallWarning",
    "Law",
    "LocalHost",
    "Norm",
    "Options",
    "OutputProjection",
    "Part",
    "Passes",
    "Places",
    "Point",
    "Processor",
    "Rotary",
    "SecondBosWarning",
    "Site",
    "TextEncoder",
    "Turns",
    "ZEdit",
    "apply_edit",
    "apply_norm",
    "as_vit",
    "attach",
    "check",
    "check_folder",
    "demand_embedded",
    "find_folder",
    "fingerprint",
    "hooks_on",
    "keep_tokens",
    "layer_of_percent",
    "layers_at",
    "load_folder",
    "norm_of",
    "norm_scale",
    "open_folder",
    "open_images",
    "open_texts",
    "processor_of",
    "read_processor",
    "refuse_training",
    "relative_difference",
    "require_described",
    "require_differentiable",
    "require_editable",
    "turns_of",
    "uniform_attention",
]

face_room(globals())
