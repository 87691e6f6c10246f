"""SuperActivators: where in a model is the reliable evidence for a concept?

Only the extreme high tail of a concept's token activations is reliable evidence (arXiv
2512.05038). This package finds that tail in TransformerLens and nnsight models, says how reliable
it is, shows how it forms and which heads form it, and explains it.

A name is imported when it is first used: `import sa_plugin` loads neither torch nor anything heavy.
"""

from typing import TYPE_CHECKING

from sa_plugin._lazy import lazily

if TYPE_CHECKING:
    from sa_plugin.attribution import Objective, attribute, compare, objective, register_objective
    from sa_plugin.concepts import ConceptBank, collect, fit
    from sa_plugin.data import ConceptData
    from sa_plugin.detection import Detector, calibrate
    from sa_plugin.generation import steer, steering_curves, watch
    from sa_plugin.heads import (
        ablate_heads,
        ablation_curve,
        head_alignment,
        head_ledger,
        rank_heads,
        tail_waterfall,
    )
    from sa_plugin.host import Host, attach, check
    from sa_plugin.loaders import labelled_corpus, load
    from sa_plugin.scanning import scan
    from sa_plugin.scores import ScoreTable, score
    from sa_plugin.stages import Plan, study
    from sa_plugin.statistics import Promise, Resampling
    from sa_plugin.theory import advise, check_theory
    from sa_plugin.tracing import trace

__version__ = "0.1.0"
__all__ = [
    "ConceptBank",
    "ConceptData",
    "Detector",
    "Host",
    "Objective",
    "Plan",
    "Promise",
    "Resampling",
    "ScoreTable",
    "ablate_heads",
    "ablation_curve",
    "advise",
    "attach",
    "attribute",
    "calibrate",
    "check",
    "check_theory",
    "collect",
    "compare",
    "fit",
    "head_alignment",
    "head_ledger",
    "labelled_corpus",
    "load",
    "objective",
    "rank_heads",
    "register_objective",
    "scan",
    "score",
    "steer",
    "steering_curves",
    "study",
    "tail_waterfall",
    "trace",
    "watch",
]

_ROOMS = {
    "attribution": ("Objective", "attribute", "compare", "objective", "register_objective"),
    "concepts": ("ConceptBank", "collect", "fit"),
    "data": ("ConceptData",),
    "detection": ("Detector", "calibrate"),
    "generation": ("steer", "steering_curves", "watch"),
    "heads": (
        "ablate_heads",
        "ablation_curve",
        "head_alignment",
        "head_ledger",
        "rank_heads",
        "tail_waterfall",
    ),
    "host": ("Host", "attach", "check"),
    "loaders": ("labelled_corpus", "load"),
    "scanning": ("scan",),
    "scores": ("ScoreTable", "score"),
    "stages": ("Plan", "study"),
    "statistics": ("Promise", "Resampling"),
    "theory": ("advise", "check_theory"),
    "tracing": ("trace",),
}

# Hidden from type checkers, which would otherwise accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, _ROOMS)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
