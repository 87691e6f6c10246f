"""SuperActivators: where in a model is the reliable evidence for a concept?

Only the extreme high tail of a concept's token activations is reliable evidence (arXiv
2512.05038). This package finds that tail in TransformerLens models, says how reliable it is, and
shows how it forms.
"""

from sa_plugin.checks import check
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData
from sa_plugin.detection import Detector, calibrate
from sa_plugin.fitting import fit
from sa_plugin.heads import head_ledger
from sa_plugin.host import Host, attach
from sa_plugin.objectives import Objective, objective, register_objective
from sa_plugin.scores import ScoreTable
from sa_plugin.scoring import score
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
    "attach",
    "calibrate",
    "check",
    "collect",
    "fit",
    "head_ledger",
    "objective",
    "register_objective",
    "score",
    "trace",
]
