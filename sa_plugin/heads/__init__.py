"""Which heads write a concept's score, directly and in effect: ledgers, waterfalls, ablations."""

from sa_plugin._face import face_room
from sa_plugin.heads.ablate import Ablation, ablate_heads
from sa_plugin.heads.align import HeadAlignment, head_alignment
from sa_plugin.heads.align_data import (
    DataPlan,
    attention_mass,
    logit_moments,
    place_terms,
    slopes,
    top_tokens,
    write_scale,
)
from sa_plugin.heads.align_draws import RULE, WeightTest
from sa_plugin.heads.align_null import (
    amplifying,
    by_the_others,
    critical_value,
    false_share,
    is_near,
    nothing_near,
    step_down,
)
from sa_plugin.heads.align_plant import COSINES, Sizes, meeting, planted_sizes, planted_z, smallest_called
from sa_plugin.heads.align_weights import (
    describe_blocks,
    head_sizes,
    mean_turn,
    offsets_seen,
    ov_form,
    profile_offsets,
    qk_form,
    turned_product,
)
from sa_plugin.heads.baseline import PROBE, baseline, candidates, known_of, scores_of
from sa_plugin.heads.columns import COMPONENT_KINDS, BankScores, LedgerError
from sa_plugin.heads.controls import CONTROL_FAMILIES, HeadSets, control_set, head_changes
from sa_plugin.heads.cross import CROSS_EFFECTS, CrossAblation, cross_ablation
from sa_plugin.heads.curve import VERDICT_METRICS, AblationCurve, ablation_curve
from sa_plugin.heads.direct_total import DirectTotal, agreement, compare_direct_total
from sa_plugin.heads.edits import (
    Intervention,
    Reference,
    block_reference,
    make_edits,
    one_direction,
    reference,
)
from sa_plugin.heads.ledger import NoTailWarning, explain_tokens, head_ledger, permuted_vectors, term_means
from sa_plugin.heads.ledger_result import HeadLedger, TokenLedger
from sa_plugin.heads.rank import BUDGET, PERMUTATIONS, Ranking, rank_heads
from sa_plugin.heads.tail_metrics import OUTPUT_SAMPLES, TAIL_METRICS, kl_divergence
from sa_plugin.heads.total import (
    block_effects,
    first_order_effects,
    tail_objective,
    total_effects,
    with_draws,
)
from sa_plugin.heads.waterfall import Waterfall, tail_waterfall
from sa_plugin.heads.whose import Answer, whose

__all__ = [
    "BUDGET",
    "COMPONENT_KINDS",
    "CONTROL_FAMILIES",
    "COSINES",
    "CROSS_EFFECTS",
    "OUTPUT_SAMPLES",
    "PERMUTATIONS",
    "PROBE",
    "RULE",
    "TAIL_METRICS",
    "VERDICT_METRICS",
    "Ablation",
    "AblationCurve",
    "Answer",
    "BankScores",
    "CrossAblation",
    "DataPlan",
    "DirectTotal",
    "HeadAlignment",
    "HeadLedger",
    "HeadSets",
    "Intervention",
    "LedgerError",
    "NoTailWarning",
    "Ranking",
    "Reference",
    "Sizes",
    "TokenLedger",
    "Waterfall",
    "WeightTest",
    "ablate_heads",
    "ablation_curve",
    "agreement",
    "amplifying",
    "attention_mass",
    "baseline",
    "block_effects",
    "block_reference",
    "by_the_others",
    "candidates",
    "compare_direct_total",
    "control_set",
    "critical_value",
    "cross_ablation",
    "describe_blocks",
    "explain_tokens",
    "false_share",
    "first_order_effects",
    "head_alignment",
    "head_changes",
    "head_ledger",
    "head_sizes",
    "is_near",
    "kl_divergence",
    "known_of",
    "logit_moments",
    "make_edits",
    "mean_turn",
    "meeting",
    "nothing_near",
    "offsets_seen",
    "one_direction",
    "ov_form",
    "permuted_vectors",
    "place_terms",
    "planted_sizes",
    "planted_z",
    "profile_offsets",
    "qk_form",
    "rank_heads",
    "reference",
    "scores_of",
    "slopes",
    "smallest_called",
    "step_down",
    "tail_objective",
    "tail_waterfall",
    "term_means",
    "top_tokens",
    "total_effects",
    "turned_product",
    "whose",
    "with_draws",
    "write_scale",
]

face_room(globals())
