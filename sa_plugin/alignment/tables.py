"""Alignment as rows and as text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from sa_plugin.detection.printing import aligned, number, signed

if TYPE_CHECKING:
    from sa_plugin.alignment.result import HeadAlignment


def rows(found: HeadAlignment) -> list[dict[str, Any]]:
    """One row a head and concept, smallest p first."""
    arrays = columns(found)
    order = np.argsort(found.tested.p, axis=None, kind="stable")
    out = []
    for at in order:
        k, h, c = np.unravel_index(at, found.tested.p.shape)
        row: dict[str, Any] = {
            "concept": found.concepts[c], "block": found.blocks[k], "head": int(h),
        }  # fmt: skip
        for name, array in arrays.items():
            row[name] = array[k, h, c].item()
        out.append(row)
    return out


def columns(found: HeadAlignment) -> dict[str, np.ndarray]:
    """Every array of the result by the name of its column."""
    data, weights = found.data, found.weights
    out = {
        "aligned": found.aligned, "called": found.called, "on_data": found.on_data,
        "p": found.tested.p, "p_adjusted": found.p_adjusted,
    }  # fmt: skip
    for name, null in found.nulls.items():
        out |= {f"p_ov_{name}": null.p_ov, f"p_qk_{name}": null.p_qk}
    out |= {
        "gamma": found.gamma, "ov_cosine": weights.ov_cosine,
        "beta": found.beta, "qk_cosine": weights.qk_cosine,
        "slope": data.slope.value, "slope_low": data.slope.low, "slope_high": data.slope.high,
        "partial_r2": data.correlation**2, "correlation": data.correlation,
        "p_control": data.p_control,
    }  # fmt: skip
    for name, by_sign in (("lift", data.lift), ("lift_whole", data.lift_whole)):
        for sign, estimate in by_sign.items():
            parts = zip(("", "_low", "_high"), estimate, strict=True)
            out |= {f"{name}_{sign}{end}": values for end, values in parts}
    share = data.write_share
    return out | {
        "write_share": share.value, "write_share_low": share.low, "write_share_high": share.high,
    }  # fmt: skip


def summary(found: HeadAlignment, n: int) -> str:
    """Counts, how the null held, and the strongest aligned heads."""
    chosen = [row for row in found.rows() if row["aligned"]]
    parts = [repr(found), _counts(found), _wrapped(_null_words(found))]
    if chosen:
        parts.append(_heads(chosen[:n]))
    shared = found.shared_heads()
    if shared:
        named = "; ".join(f"{head} ({len(serves)})" for head, serves in shared[:n])
        parts.append(_wrapped(f"Heads aligned with several concepts: {named}."))
    parts += [_wrapped(limit) for limit in found.limits]
    return "\n\n".join(parts)


def _counts(found: HeadAlignment) -> str:
    header = ["concept", *(f"called {name}" for name in found.nulls), "on data", "aligned",
              "blocks with one"]  # fmt: skip
    by_null = [found.called_by(name) for name in found.nulls]
    text = [
        [
            concept,
            *(str(int(calls[..., c].sum())) for calls in by_null),
            str(int(found.on_data[..., c].sum())),
            str(int(found.aligned[..., c].sum())),
            f"{found.layers_by_concept[concept]} of {len(found.blocks)}",
        ]
        for c, concept in enumerate(found.concepts)
    ]
    return aligned(header, text)


def _null_words(found: HeadAlignment) -> str:
    words = [
        f"{name}: "
        + ", ".join(f"{share:.2g} at {level}" for level, share in null.calibration.items())
        for name, null in found.nulls.items()
        if null.calibration
    ]
    return (
        f"{found.tested.p.size:,} tests, {found.settings['draws']} refits of each null. Share of "
        f"held-out refits below each level ({'; '.join(words)}): at most the level is right."
    )


def _heads(chosen: list[dict[str, Any]]) -> str:
    header = ["aligned", "p", "gamma", "OV cos", "beta", "slope", "partial R2", "lift", "share"]
    text = [
        [
            f"L{row['block']}H{row['head']} {row['concept']}",
            f"{row['p']:.1e}",
            signed(row["gamma"]),
            signed(row["ov_cosine"], 2),
            f"{row['beta']:+.1e}",
            signed(row["slope"]),
            number(row["partial_r2"]),
            signed(row["lift_positive"]),
            signed(row["write_share"]),
        ]
        for row in chosen
    ]
    return aligned(header, text)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 110, break_on_hyphens=False)
