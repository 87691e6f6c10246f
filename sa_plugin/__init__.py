"""SuperActivators: where in a model is the reliable evidence for a concept?

Only the extreme high tail of a concept's token activations is reliable evidence (arXiv
2512.05038). This package finds that tail in TransformerLens and nnsight models, says how reliable
it is, shows how it forms and which heads form it, and explains it.
"""

from sa_plugin.alignment import head_alignment
from sa_plugin.attribution import attribute, compare
from sa_plugin.checks import check
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector, calibrate
from sa_plugin.fitting import fit
from sa_plugin.heads import (
    ablate_heads,
    ablation_curve,
    head_ledger,
    rank_heads,
    tail_waterfall,
)
from sa_plugin.host import Host, attach
from sa_plugin.objectives import Objective, objective, register_objective
from sa_plugin.scores import ScoreTable
from sa_plugin.scoring import score
from sa_plugin.theory import check_theory
from sa_plugin.tracing import trace
from sa_plugin.train_pass import collect

__version__ = "0.1.0"
__all__ = [
    "ConceptBank",
    "ConceptData",
    "Detector",
    "Host",
    "Objective",
    "ScoreTable",
    "ablate_heads",
    "ablation_curve",
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
    "objective",
    "rank_heads",
    "register_objective",
    "score",
    "tail_waterfall",
    "trace",
]
