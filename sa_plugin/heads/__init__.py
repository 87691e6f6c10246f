"""Which heads write a concept's score: exact direct contributions, closed or refused."""

from sa_plugin.heads.components import Component, LedgerError
from sa_plugin.heads.effects import Effect, Estimate
from sa_plugin.heads.explain import TokenLedger, explain_tokens
from sa_plugin.heads.ledger import NoTailWarning, head_ledger
from sa_plugin.heads.result import HeadLedger

__all__ = [
    "Component",
    "Effect",
    "Estimate",
    "HeadLedger",
    "LedgerError",
    "NoTailWarning",
    "TokenLedger",
    "explain_tokens",
    "head_ledger",
]
