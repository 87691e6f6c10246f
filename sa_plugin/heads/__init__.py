"""Which heads write a concept's score: exact direct contributions, closed or refused."""

from sa_plugin.heads.ablation import Ablation, ablate_heads
from sa_plugin.heads.components import Component, LedgerError
from sa_plugin.heads.effects import Effect, Estimate
from sa_plugin.heads.explain import TokenLedger, explain_tokens
from sa_plugin.heads.ledger import NoTailWarning, head_ledger
from sa_plugin.heads.ranking import rank_heads
from sa_plugin.heads.result import HeadLedger
from sa_plugin.heads.sweep_heads import ablation_curve

__all__ = [
    "Ablation",
    "Component",
    "Effect",
    "Estimate",
    "HeadLedger",
    "LedgerError",
    "NoTailWarning",
    "TokenLedger",
    "ablate_heads",
    "ablation_curve",
    "explain_tokens",
    "head_ledger",
    "rank_heads",
]
