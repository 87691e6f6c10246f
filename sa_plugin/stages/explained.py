"""One passage explained by four objectives and one explainer, on hosts that bring one.

The passage is not picked by hand: it is the first that a report shows (`examples`), of the true
positives of the concept with most test positives the one at the median margin. The corrupted passage
replaces its SuperActivator tokens by other tokens of the passage. First-order attributions are
leads, not proofs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sa_plugin.attribution.objective import objective
from sa_plugin.detection.detector import Detector
from sa_plugin.host.protocol import ExplainingHost, Host
from sa_plugin.scores.table import ScoreTable
from sa_plugin.stages.examples import chosen

OBJECTIVES = ("superactivator", "superactivator_tokens", "superactivator_margin", "global")
TOKENS = "gradient x (embedding - mean)"


def explain_passage(host: Host, detector: Detector, table: ScoreTable, seed: int) -> dict[str, Any]:
    """The passage and its explanations, JSON-ready.

    Args:
        host: Of texts.
        detector: Calibrated.
        table: Scores of the split the passage is from.
        seed: Of the draw of replacements.

    Raises:
        NotImplementedError: The samples are images, the host has no such explainer, or no sample
            is a true positive.
    """
    if table.tokens.samples[0].image is not None:
        raise NotImplementedError("the explainer of one passage takes texts, these samples are images")
    if not isinstance(host, ExplainingHost):
        raise NotImplementedError(f"{host.info.host} brings no explainer of one passage: use sa.attribute")
    n, c, role = next(chosen(detector, table, detector.token_scores(table), 1), (0, 0, ""))
    if role != "true_positive":
        raise NotImplementedError("no sample of the split is a true positive")
    tokens, concept = table.tokens, detector.concepts[c]
    sample = tokens.samples[n]
    rows = slice(int(tokens.bounds[n]), int(tokens.bounds[n + 1]))
    tail = detector.superactivators(table)[rows, c]
    position = tokens.position[rows]
    replaced = np.zeros(int(host.batches([sample])[0].inputs["attention_mask"].sum()), dtype=bool)
    replaced[position[tail]] = True
    means = detector.bank.component_means
    explanations, coverage = [], None
    for name in OBJECTIVES:
        goal = objective(name, detector=detector, concept=concept, sample=sample, host=host)
        coverage = goal.coverage if name == "superactivator" else coverage
        owed = host.explain(goal, sample, replaced, None if means is None else means.embedding, seed=seed)
        explanations.append(
            {
                "objective": name,
                "method": f"{TOKENS}; heads: attribution_patch",
                "value": owed.value,
                "tokens": owed.tokens[position],
                "dropped": _share_elsewhere(owed.tokens, position),
                "heads": owed.heads,
            }
        )
    return {
        "id": sample.id,
        "concept": concept,
        "kind": detector.bank.kind,
        "layer": detector.layer[concept],
        "text": sample.text,
        "offsets": tokens.offsets[rows],
        "superactivator": tail,
        "in_concept": tokens.labels[rows, tokens.concepts.index(concept)],
        "explanations": explanations,
        "coverage": coverage,
        "comment": (
            "First-order attributions: leads, not proofs. Heads: from a corrupted passage whose "
            "SuperActivator tokens are replaced by other tokens of the passage."
        ),
    }


def _share_elsewhere(tokens: Float[np.ndarray, " token"], shown: Int[np.ndarray, " kept"]) -> float:
    """Share of the summed sizes that lies on tokens that are not rows: sinks and special tokens."""
    sizes = np.abs(tokens)
    return float(1 - sizes[shown].sum() / sizes.sum()) if sizes.any() else 0.0
