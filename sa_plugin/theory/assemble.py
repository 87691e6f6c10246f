"""From the sums of a pass to the report, one concept and direction at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from sa_plugin.host import HostInfo
from sa_plugin.statistics.bootstrap import Resamples
from sa_plugin.theory._pass import Sums
from sa_plugin.theory.assumptions import (
    Assumption,
    aligned_gamma,
    heads_of,
    of_architecture,
    of_concept,
    shared,
)
from sa_plugin.theory.directions import Directions
from sa_plugin.theory.estimates import Quantity, draw
from sa_plugin.theory.measures import KINDS
from sa_plugin.theory.paths import Path
from sa_plugin.theory.regime import Regime, regime_of
from sa_plugin.theory.report import TheoryReport
from sa_plugin.theory.verdicts import Verdict, judge


def assemble(
    info: HostInfo,
    directions: Directions,
    paths: Sequence[Path] | None,
    why: str,
    sums: Sums,
    counted: Mapping[str, Bool[np.ndarray, " sample"]],
    resamples: Resamples,
    settings: Mapping[str, Any],
) -> TheoryReport:
    """The report.

    Args:
        info: Of the model.
        directions: What was followed.
        paths: Heads' weights, or None.
        why: Why there are none.
        sums: Of the pass.
        counted: Which samples count for each concept.
        resamples: Of the samples' documents.
        settings: For the report; its level is that of the intervals.
    """
    layers = directions.layers
    heads = heads_of(sums, directions, paths)
    gamma = aligned_gamma(paths)
    quantities: dict[tuple[str, str], Mapping[str, Quantity]] = {}
    verdicts: list[Verdict] = []
    regimes: list[Regime] = []
    assumptions: list[Assumption] = of_architecture(info, paths, why)
    tenths = {}
    drawn_resamples = resamples.with_data()
    for column in directions.columns:
        if column.role != "concept":
            continue
        key = column.concept, column.direction
        # Draws of one concept fill hundreds of megabytes: only its summary outlives this round.
        drawn = draw(
            sums, directions, *key, sums.measured & counted[column.concept], drawn_resamples,
            causal=info.causal, aligned_gamma=gamma, level=settings["level"],
        )  # fmt: skip
        quantities[key] = {name: drawn.quantity(name) for name in KINDS if name in drawn.own}
        verdicts += judge(drawn, *key, layers, causal=info.causal)
        regime = regime_of(drawn, *key, layers)
        regimes += [] if regime is None else [regime]
        assumptions += of_concept(directions, drawn, *key, heads, weights=paths is not None)
        tenths[key] = drawn.tenths
    assumptions += shared(sums, layers, weights=paths is not None)
    return TheoryReport(
        quantities, tuple(verdicts), tuple(regimes), tuple(assumptions), heads, directions, tenths,
        _absent(directions, paths, why, info.causal, quantities), settings,
    )  # fmt: skip


def _absent(
    directions: Directions,
    paths: Sequence[Path] | None,
    why: str,
    causal: bool,
    quantities: Mapping[tuple[str, str], Mapping[str, Quantity]],
) -> dict[str, str]:
    found = {}
    if paths is None:
        found["predicted"] = why
        found |= dict.fromkeys(("predicted_factor", "path_r2", "path_gap_slope"), why)
    elif aligned_gamma(paths) is None:
        why = "queries and keys pass a norm of their own: beta is known up to a scale only"
        found |= dict.fromkeys(("predicted", "predicted_factor"), why)
    if not causal:
        found["prefix_*"] = "queries see the same keys already, as heads_* compare them"
    elif paths is None:
        found["prefix_*"] = why
    for (concept, direction), of in quantities.items():
        known = np.isfinite(of["gap_slope"].value)
        lacking = [str(b) for b, here in zip(directions.layers, known, strict=True) if not here]
        if lacking:
            reason = (
                "the bank has no vector on both of their sides"
                if direction == "refitted"
                else "activations do not vary"
            )
            found[f"{concept} {direction}"] = f"blocks {', '.join(lacking)}: {reason}"
    for role, reason in (
        ("permuted", "the bank has no permuted-label vectors"),
        ("random", "n_random is 0"),
    ):
        if not any(column.role == role for column in directions.columns):
            found[role] = reason
    return found
