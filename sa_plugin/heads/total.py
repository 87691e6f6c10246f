"""The total effect of single heads on the tail: ablate one, run the model again, look at T_c.

    total(h, c) = T_c - T_c with head h ablated          (T_c: `tail_objective.py`)

Whatever later heads and MLPs make of the missing head is in it, which the ledger's direct term
leaves out. One pass over the split for each head.

What it does not show: heads ablated one by one. Two heads that stand in for each other have small
total effects each, and effects of single heads do not add up to that of the set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from sa_plugin.detection.methods import column_scores
from sa_plugin.heads.modes import Head
from sa_plugin.heads.reference import Reference
from sa_plugin.heads.runs import (
    Baseline,
    Group,
    at_layers,
    edits_of,
    in_order,
    layers_of_concepts,
    reach,
)
from sa_plugin.heads.tail_objective import TailObjective
from sa_plugin.scoring import score


def total_effects(
    base: Baseline,
    objective: TailObjective,
    heads: Sequence[Head],
    mode: str,
    known: Reference,
    *,
    progress: bool = True,
) -> Float[np.ndarray, "head sample concept"]:
    """What each sample loses of the tail objective when one head is ablated.

    Args:
        base: The unablated run; its split is run.
        objective: Of that split.
        heads: One pass each.
        mode: Any but "directional", which is defined for one concept at a time.
        known: Means or donors.
        progress: Whether to show a bar.

    Returns:
        Sums, for `TailObjective.value` and `.columns`; 0 for concepts the head cannot reach.

    Raises:
        ValueError: The mode is "directional".
    """
    if mode == "directional":
        raise ValueError(
            "mode 'directional' takes out one concept at a time, so a head has no total effect on "
            "all: use 'mean', 'zero', 'resample' or 'pattern'."
        )
    detector, depths = base.detector, reach(base.detector)
    layers = layers_of_concepts(detector)
    found = np.zeros((len(heads), *objective.clean.shape))
    for i, head in enumerate(tqdm(heads, desc="heads", disable=not progress, leave=False)):
        places = [k for k, depth in enumerate(depths) if head[0] < depth]
        slim = at_layers(detector.bank, sorted({layers[k] for k in places}))
        with base.host.edited(edits_of(base, Group(tuple(places), (head,)), mode, known)):
            scored = score(
                base.host, base.data, slim, splits=(base.split,), batch_tokens=base.batch_tokens,
                progress=False, keep_of=base.tokens.tokens,
            )  # fmt: skip
        part = in_order(scored, base.data.split(base.split).samples)
        at = np.array([slim.layers.index(layers[k]) for k in places])
        scores = np.zeros((len(part.tokens), len(layers)), dtype=np.float32)
        scores[:, places] = column_scores(part, at, detector.tail.chosen_unit[places])
        found[i][:, places] = (objective.clean - objective.sums(scores))[:, places]
    return found
