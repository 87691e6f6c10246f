"""Which of many tests to call: Benjamini and Hochberg, or Benjamini and Yekutieli.

BH (J. R. Stat. Soc. B 57, 1995) rejects the k smallest p-values, k the largest with
`p_(k) <= q k / m`; the expected share of false calls among all calls is then at most q if the tests
are independent or positively dependent. BY (Ann. Stat. 29, 2001) divides q by
`1 + 1/2 + ... + 1/m` and needs no assumption. If nothing is true, both make any call with
probability at most q.

What neither bounds: the share of false calls in a selection from the calls.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64

from sa_plugin._names import require_known

CORRECTIONS = ("BH", "BY")


def adjusted(p: Float[np.ndarray, "*cell"], correction: str = "BH") -> Float64[np.ndarray, "*cell"]:
    """Adjusted p-values: the smallest q at which each would be called.

    Args:
        p: All p-values of the family; NaN counts as no test.
        correction: "BH" or "BY".

    Raises:
        ValueError: Unknown correction.
    """
    require_known("correction", correction, CORRECTIONS)
    flat = np.asarray(p, dtype=np.float64).ravel()
    tested = np.flatnonzero(np.isfinite(flat))
    order = tested[np.argsort(flat[tested], kind="stable")]
    m = len(order)
    factor = np.sum(1 / np.arange(1, m + 1)) if correction == "BY" else 1.0
    raised = flat[order] * m * factor / np.arange(1, m + 1)
    out = np.full_like(flat, np.nan)
    out[order] = np.minimum(1.0, np.minimum.accumulate(raised[::-1])[::-1])
    return out.reshape(np.shape(p))


def call(
    p: Float[np.ndarray, "*cell"], q: float, correction: str = "BH"
) -> Bool[np.ndarray, "*cell"]:
    """Which tests are called at level q.

    Args:
        p: All p-values of the family.
        q: Bound on the expected share of false calls.
        correction: "BH" or "BY".

    Raises:
        ValueError: Unknown correction, or q outside (0, 1).
    """
    if not 0 < q < 1:
        raise ValueError(
            f"q is {q}: a share of false calls between 0 and 1 is meant, such as 0.05."
        )
    return np.asarray(adjusted(p, correction) <= q)
