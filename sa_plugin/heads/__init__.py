"""Which heads write a concept's score, directly and in effect: ledgers, waterfalls, ablations."""

from sa_plugin.heads.ablation import Ablation, ablate_heads
from sa_plugin.heads.components import Component, LedgerError
from sa_plugin.heads.direct_total import compare_direct_total
from sa_plugin.heads.effects import Effect, Estimate
from sa_plugin.heads.explain import TokenLedger, explain_tokens
from sa_plugin.heads.ledger import NoTailWarning, head_ledger
from sa_plugin.heads.prepare import permuted_vectors, term_means
from sa_plugin.heads.ranking import rank_heads
from sa_plugin.heads.result import HeadLedger
from sa_plugin.heads.sweep_heads import ablation_curve
from sa_plugin.heads.unrelated import cross_ablation
from sa_plugin.heads.waterfall import tail_waterfall
from sa_plugin.heads.waterfall_result import Waterfall

__all__ = [
    "Ablation",
    "Component",
    "Effect",
    "Estimate",
    "HeadLedger",
    "LedgerError",
    "NoTailWarning",
    "TokenLedger",
    "Waterfall",
    "ablate_heads",
    "ablation_curve",
    "compare_direct_total",
    "cross_ablation",
    "explain_tokens",
    "head_ledger",
    "permuted_vectors",
    "rank_heads",
    "tail_waterfall",
    "term_means",
]
