"""How far a concept's tail stands apart at the detector's best layer, from a trace.

- `in_mass`: share of in-concept test tokens above q, the .995 quantile of out-of-concept
  calibration scores; `realised_fpr` is the share of out-of-concept test tokens above q.
- `coverage_difference`: share of positive samples with a token above q minus that of negative ones.

Means over concepts, weighted by positive test samples; the difference is paired by draw. `in_mass`
measures a separation, not a precision: rare concepts have few in-concept tokens among all above q.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sa_plugin.detection.printing import plain
from sa_plugin.statistics.interval import Interval, percentile_bounds
from sa_plugin.tracing import TailTrace


def separation(found: TailTrace, layer: int) -> dict[str, Any]:
    """The measures at one layer, JSON-ready.

    Args:
        found: A trace.
        layer: Block index.

    Raises:
        ValueError: The layer was not traced.
    """
    parts: dict[str, Any] = {
        name: found.interval(name, layer)
        for name in ("in_mass_at_fpr", "realised_fpr", "coverage", "negative_coverage", "auroc")
    }
    at, means = found.layers.index(layer), found.layer_means
    drawn = means["coverage"][at] - means["negative_coverage"][at]
    level, n = found.settings.level, found.settings.n_documents
    low, high = percentile_bounds(drawn[1:], level)
    parts["coverage_difference"] = Interval(
        float(drawn[0]), float(low), float(high), level,
        int(np.isfinite(drawn[1:]).sum()), n_units=n,
    )  # fmt: skip
    return {"layer": layer, **{k: dict(plain(asdict(v))) for k, v in parts.items()}}
