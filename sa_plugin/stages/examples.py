"""Which passages a report shows: a hit, a false fire of raw scores, an error, a miss.

The rule is stated, so that nobody picks: in each role the passage whose highest score lies at the
median of that role's margins, one concept a role, concepts in order of their number of positives.
Images are chosen by the same rule.

Images a report shows, chosen as passages are, with what it takes to draw them from the file.

The outline of a mask runs along the edges of its pixels: filled by the even-odd rule it is the mask
again, and nothing is smoothed. The image itself may be scaled down (each pixel the mean of those it
stands for); patches and outline stay in pixels of the original.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sa_plugin.detection.detector import Detector
from sa_plugin.report.schema import Passage, Picture
from sa_plugin.scores.table import ScoreTable

ROLES = ("true_positive", "raw_false_fire", "false_positive", "miss")


def passages(detector: Detector, table: ScoreTable, each: int = 2) -> list[Passage]:
    """Passages of every role.

    Args:
        detector: Calibrated.
        table: Scores of the split shown.
        each: Passages a role, of different concepts.
    """
    scores = detector.token_scores(table)
    return [
        _passage(detector, table, scores, n, c, role) for n, c, role in chosen(detector, table, scores, each)
    ]


def chosen(
    detector: Detector, table: ScoreTable, scores: Float[np.ndarray, "token concept"], each: int
) -> Iterator[tuple[int, int, str]]:
    """Sample, concept and role of what is shown, `each` a role, by the rule above."""
    best = np.maximum.reduceat(scores, table.tokens.bounds[:-1])
    fired = best >= detector.tail.chosen_threshold
    raw = best > detector.cuts.midpoint
    positive = table.tokens.sample_labels
    role_of = {
        "true_positive": positive & fired,
        "raw_false_fire": ~positive & raw & ~fired,
        "false_positive": ~positive & fired,
        "miss": positive & ~fired,
    }
    for role in ROLES:
        picks = _typical(role_of[role], best - detector.tail.chosen_threshold, positive.sum(0))
        for _, (n, c) in zip(range(each), picks, strict=False):
            yield n, c, role


def _typical(
    mask: Bool[np.ndarray, "sample concept"], margin: Float[np.ndarray, "sample concept"], size: np.ndarray
) -> Iterator[tuple[int, int]]:
    """For each concept, largest first, the sample at the median margin."""
    for c in np.argsort(-size, kind="stable"):
        rows = np.flatnonzero(mask[:, c])
        if len(rows):
            order = rows[np.argsort(margin[rows, c], kind="stable")]
            yield int(order[len(order) // 2]), int(c)


def shared(
    detector: Detector, table: ScoreTable, scores: np.ndarray, n: int, c: int, role: str
) -> dict[str, Any]:
    """What a passage and an image have in common."""
    tokens = table.tokens
    rows = slice(int(tokens.bounds[n]), int(tokens.bounds[n + 1]))
    concept, sample = detector.concepts[c], tokens.samples[n]
    one = detector.choice(concept)
    own = scores[rows, c]
    return {
        "id": sample.id,
        "document": sample.document,
        "concept": concept,
        "kind": detector.bank.kind,
        "layer": one.layer,
        "delta": one.delta,
        "threshold": _finite(one.threshold),
        "raw_threshold": _finite(detector.cuts.midpoint[c]),
        "role": role,
        "positive": concept in sample.positive,
        "scores": own.tolist(),
        "superactivator": (own >= one.threshold).tolist(),
        "in_concept": tokens.labels[rows, tokens.concepts.index(concept)].tolist(),
    }


def _passage(detector: Detector, table: ScoreTable, scores: np.ndarray, n: int, c: int, role: str) -> Passage:
    tokens = table.tokens
    rows = slice(int(tokens.bounds[n]), int(tokens.bounds[n + 1]))
    own = {"text": tokens.samples[n].text, "offsets": tokens.offsets[rows].tolist()}
    return cast(Passage, shared(detector, table, scores, n, c, role) | own)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


LONGEST = 320


def pictures(detector: Detector, table: ScoreTable, each: int = 2) -> list[Picture]:
    """Images of every role.

    Args:
        detector: Calibrated.
        table: Scores of the split shown; its samples are images.
        each: Images a role, of different concepts.

    Raises:
        ValueError: A sample is no image.
    """
    for sample in table.tokens.samples:
        if sample.image is None:
            raise ValueError(f"sample {sample.id!r} has no image: show texts with passages().")
    scores = detector.token_scores(table)
    return [
        _picture(detector, table, scores, n, c, role) for n, c, role in chosen(detector, table, scores, each)
    ]


def _picture(detector: Detector, table: ScoreTable, scores: np.ndarray, n: int, c: int, role: str) -> Picture:
    tokens = table.tokens
    image = tokens.samples[n].image
    assert image is not None
    mask = image.masks.get(detector.concepts[c])
    own = {
        "png": data_uri(shrunk(image.pixels)),
        "size": list(image.pixels.shape[:2]),
        "boxes": tokens.offsets[tokens.bounds[n] : tokens.bounds[n + 1]].tolist(),
        "outline": "" if mask is None else mask_outline(mask),
    }
    return cast(Picture, shared(detector, table, scores, n, c, role) | own)


def mask_outline(mask: Bool[np.ndarray, "height width"]) -> str:
    """The edges between a mask's pixels and the rest, as an SVG path of closed loops.

    Corners of the outline alternate between starting and ending a straight run, along every row
    and along every column; so each corner has one partner across and one down, and following them
    in turn leads around a loop. Where two pixels touch at a corner only, two corners lie there.

    Returns:
        Loops of relative moves, to fill by the even-odd rule; empty for an empty mask.

    Example:
        >>> mask_outline(np.array([[False, True, True]]))
        'M1 0h2v1h-2z'
    """
    y, x = _corners(mask)
    n = len(y)
    across = np.arange(n) ^ 1
    down = np.empty(n, dtype=np.int64)
    column_order = np.lexsort((y, x))
    down[column_order] = column_order[np.arange(n) ^ 1]
    seen = np.zeros(n, dtype=bool)
    loops = []
    for start in range(n):
        if seen[start]:
            continue
        at, steps = start, []
        while True:
            beside = across[at]
            below = down[beside]
            seen[at] = seen[beside] = True
            steps.append(f"h{x[beside] - x[at]}")
            if below == start:
                break
            steps.append(f"v{y[below] - y[beside]}")
            at = below
        loops.append(f"M{x[start]} {y[start]}{''.join(steps)}z")
    return "".join(loops)


def _corners(
    mask: Bool[np.ndarray, "height width"],
) -> tuple[Int[np.ndarray, " corner"], Int[np.ndarray, " corner"]]:
    """Row and column of the outline's corners, row by row."""
    inside = np.pad(mask, 1)
    a, b, c, d = inside[:-1, :-1], inside[:-1, 1:], inside[1:, :-1], inside[1:, 1:]
    turns = (a ^ b ^ c ^ d) + 2 * ((a == d) & (b == c) & (a != b))
    y, x = np.nonzero(turns)
    times = turns[y, x]
    return np.repeat(y, times), np.repeat(x, times)


def shrunk(
    pixels: UInt8[np.ndarray, "height width 3"], longest: int = LONGEST
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The image with at most `longest` pixels a side; smaller ones as they are.

    A pixel is the mean over the area of the original that it stands for.
    """
    scale = longest / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    rows, columns = (_area(n, max(round(n * scale), 1)) for n in pixels.shape[:2])
    mean = np.einsum("rh,hwc,kw->rkc", rows, pixels.astype(float), columns, optimize=True)
    return np.asarray(np.round(mean), dtype=np.uint8)


def _area(n: int, m: int) -> Float[np.ndarray, "new old"]:
    """Share of each of `n` pixels in each of `m` that take their place; rows sum to 1."""
    edges, old = np.arange(m + 1) * n / m, np.arange(n)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    share: Float[np.ndarray, "new old"] = np.clip(overlap, 0, None) * m / n
    return share


def data_uri(pixels: UInt8[np.ndarray, "height width 3"]) -> str:
    """The image as a PNG within a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """The image as a PNG file: RGB of 8 bits, lossless.

    Source: PNG specification (W3C, third edition), sections 5, 9 and 11. Each row is filtered by
    none, the left, the upper, or the mean of both neighbours, whichever leaves the smallest sum.
    """
    height, width = pixels.shape[:2]
    row = pixels.reshape(height, -1).astype(np.int16)
    left, upper = np.pad(row, ((0, 0), (3, 0)))[:, :-3], np.pad(row, ((1, 0), (0, 0)))[:-1]
    tried = np.stack([row, row - left, row - upper, row - (left + upper) // 2]).astype(np.uint8)
    kind = np.abs(tried.view(np.int8).astype(np.int64)).sum(2).argmin(0)
    lines = np.column_stack([kind.astype(np.uint8), tried[kind, np.arange(height)]])
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


def marked(record: Mapping[str, Any]) -> str:
    """The first passage of a record, its SuperActivators in brackets, or where those of a picture lie."""
    for passage in record.get("passages", []):
        text, shift = passage["text"], 0
        for (start, end), on in zip(passage["offsets"], passage["superactivator"], strict=True):
            if on:
                a, b = start + shift, end + shift
                text, shift = f"{text[:a]}[[{text[a:b]}]]{text[b:]}", shift + 4
        return (
            f"Passage {passage['id']}, SuperActivators of {passage['concept']!r} at layer "
            f"{passage['layer']} in [[ ]] ({passage['role'].replace('_', ' ')}):\n{text}"
        )
    for picture in record.get("pictures", []):
        marks = [box for box, on in zip(picture["boxes"], picture["superactivator"], strict=True) if on]
        places = ", ".join(f"({top:.0f}, {left:.0f})" for top, left, *_ in marks) or "none"
        return (
            f"Image {picture['id']}, SuperActivator patches of {picture['concept']!r} at layer "
            f"{picture['layer']} ({picture['role'].replace('_', ' ')}), top left corners, pixels: "
            f"{places}. The report shows {len(record['pictures'])} images."
        )
    return "No passage to show."
