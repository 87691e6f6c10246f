"""What is drawn of one sample under one concept, and results that draw it.

The record is the `Item` of `sa_plugin.show.shaded`: a text with its tokens, or an image with its
patches, scores of the concept's own layer and unit, and what each rule marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sa_plugin.detection.calibration import Calibration, sample_max
from sa_plugin.passes.layout import TokenTable
from sa_plugin.show.html import el, typeset
from sa_plugin.show.result import Sheet, Shown
from sa_plugin.statistics.confusion import reaches

SHOWN_ITEMS = 6
TOP_TOKENS = 5


def shown_item(
    calibration: Calibration,
    tokens: TokenTable,
    scores: Float[np.ndarray, "token concept"],
    sample: int,
    concept: int,
) -> dict[str, Any]:
    """One sample under one concept.

    Args:
        calibration: Thresholds.
        tokens: What the rows of the scores are.
        scores: At each concept's own layer and unit.
        sample: Place of the sample.
        concept: Place of the concept.
    """
    from sa_plugin.show.patches import data_uri, mask_outline, shrunk

    rows = slice(int(tokens.bounds[sample]), int(tokens.bounds[sample + 1]))
    name, one = calibration.concepts[concept], tokens.samples[sample]
    choice, own = calibration.choice(name), scores[rows, concept]
    at = tokens.concepts.index(name)
    labels: list[bool | None] = tokens.labels[rows, at].tolist()
    if tokens.known is not None:
        labels = [one if known else None for one, known in zip(labels, tokens.known[rows, at], strict=True)]
    found: dict[str, Any] = {
        "id": one.id,
        "document": one.document,
        "concept": name,
        "kind": calibration.bank.kind,
        "layer": choice.layer,
        "delta": choice.delta,
        "threshold": _finite(choice.threshold),
        "raw_threshold": _finite(calibration.cuts.midpoint[concept]),
        "positive": name in one.positive,
        "scores": own.tolist(),
        "superactivator": reaches(own, choice.threshold).tolist(),
        "in_concept": labels,
    }
    if one.image is None:
        return found | {"text": one.text, "offsets": tokens.offsets[rows].tolist()}
    mask = one.image.masks.get(name)
    return found | {
        "png": data_uri(shrunk(one.image.pixels)),
        "size": list(one.image.pixels.shape[:2]),
        "boxes": tokens.offsets[rows].tolist(),
        "outline": "" if mask is None else mask_outline(mask),
    }


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class ScoredSamples:
    """Samples with the scores of their tokens, ready to be drawn.

    Attributes:
        calibration: Thresholds.
        tokens: What the rows of the scores are.
        scores: At each concept's own layer and unit.
        labelled: Whether labels are known; those of the user's own texts and images are not.
    """

    calibration: Calibration
    tokens: TokenTable
    scores: Float[np.ndarray, "token concept"]
    labelled: bool = True

    @property
    def margin(self) -> Float[np.ndarray, "sample concept"]:
        """Highest score of each sample minus the threshold."""
        highest = sample_max(self.scores, self.tokens.bounds)
        return np.asarray(highest - self.calibration.tail.chosen_threshold)

    def nearest(self) -> list[tuple[int, int]]:
        """Of every sample the concept that comes nearest to its threshold."""
        return list(enumerate(self.margin.argmax(axis=1).tolist()))

    def items(self, pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """The first of some pairs of sample and concept, as they are drawn."""
        found = [shown_item(self.calibration, self.tokens, self.scores, n, c) for n, c in pairs[:SHOWN_ITEMS]]
        return found if self.labelled else [{**one, "positive": None} for one in found]


def item_sheet(item: Mapping[str, Any]) -> Sheet:
    """One sample under one concept for the terminal: its text with marked tokens, the highest raw scores."""
    from sa_plugin.show.shaded import marked_text

    bar = item["threshold"]
    rule = "no finite threshold" if bar is None else f"threshold {typeset(bar)}"
    head = f"{item['id']}, {item['concept']} (layer {item['layer']}, delta {item['delta']:g}, {rule}):"
    names = _names(item)
    order = np.argsort(-np.asarray(item["scores"]), kind="stable")[:TOP_TOKENS]
    raw = ", ".join(f"{names[n]} {typeset(item['scores'][n], 2)}" for n in order)
    fires = any(item["superactivator"])
    says = [f"SuperActivators {'fire' if fires else 'are silent'}"]
    middle = item["raw_threshold"]
    if middle is not None:
        above = sum(score > middle for score in item["scores"])
        says.append(f"the raw rule marks {above} of {len(names)} above {typeset(middle)}")
    text = marked_text(item) if "text" in item else _marked_boxes(item)
    return Sheet((), (), f"{head} {text}", [f"Highest raw activations: {raw}. {'; '.join(says)}."])


def _names(item: Mapping[str, Any]) -> list[str]:
    if "text" in item:
        return [repr(item["text"][start:stop].strip()) for start, stop in item["offsets"]]
    return [_box(box) for box in item["boxes"]]


def _box(box: Sequence[float]) -> str:
    top, left, bottom, right = (round(edge) for edge in box)
    return f"[{top}:{bottom}, {left}:{right}]"


def _marked_boxes(item: Mapping[str, Any]) -> str:
    """Where the marked patches of an image lie: rows and columns of its pixels."""
    marked = [_box(box) for box, on in zip(item["boxes"], item["superactivator"], strict=True) if on]
    return f"{len(marked)} of {len(item['boxes'])} patches: {', '.join(marked) or 'none'}"


def items_html(result: Shown, items: Sequence[Mapping[str, Any]], sheets: Sequence[Sheet], left: int) -> str:
    """A result with its samples: raw activations and SuperActivators side by side.

    Args:
        result: Says its headline, and what it does not show.
        items: What is drawn.
        sheets: Tables that stand before.
        left: Pairs of sample and concept that are not drawn.
    """
    from sa_plugin.show.patches import picture_sides
    from sa_plugin.show.shaded import framed, limit_of, text_sides, verdicts

    articles, drawn = [], set[str]()
    for item in items:
        limit = limit_of(item, items)
        sides = text_sides(item, limit) if "text" in item else picture_sides(item, limit, drawn)
        where = f" · layer {item['layer']} · δ {typeset(item['delta'], 2)} · {item['id']}"
        articles.append(el("article", el("div", el("strong", item["concept"]), where), sides, verdicts(item)))
    rest = left_over_sheet(left)
    return str(
        el(
            "div",
            el("strong", repr(result)),
            *(sheet.html() for sheet in sheets),
            framed(*articles) if articles else None,
            *(sheet.html() for sheet in rest),
            el("p", result.about, style="margin:.3em 0;opacity:.8"),
        )
    )


def left_over_sheet(left: int) -> tuple[Sheet, ...]:
    """How much is not drawn, in words; nothing where all is."""
    words = f"{left} more pairs of sample and concept are not drawn; .table() has all."
    return (Sheet((), (), words),) if left > 0 else ()


def items_figure(tokens: TokenTable, items: Sequence[Mapping[str, Any]], marks: str, about: str) -> Any:
    """Scores along each text with the threshold, or the picture with its marked patches.

    Args:
        tokens: Whose samples are drawn.
        items: Four at most are drawn.
        marks: What is outlined.
        about: What the picture does not show.
    """
    from sa_plugin.show import plots
    from sa_plugin.show.shaded import limit_of

    shown = list(items[:4])
    pixels = {one.id: one.image for one in tokens.samples}
    figure, axes = plots.new_figure(8.0, 2.6 * max(1, len(shown)), rows=max(1, len(shown)))
    for ax, item in zip(np.ravel(axes), shown, strict=False):
        image = pixels[item["id"]]
        marked, scores = np.array(item["superactivator"]), np.array(item["scores"])
        if image is None:
            plots.word_bars(ax, [item["text"][a:b] for a, b in item["offsets"]], scores, marked)
            if item["threshold"] is not None:
                plots.zero(ax, upright=False, at=item["threshold"])
        else:
            shares = np.clip(scores / (limit_of(item, items) or 1.0), -1, 1)
            plots.patch_map(ax, image.pixels, np.array(item["boxes"]), shares, marked)
        title = f"{item['id']}, {item['concept']}, layer {item['layer']}"
        plots.words(ax, title=title, y="score" if image is None else "")
    pictured = any(pixels[item["id"]] is not None for item in shown)
    line = "" if pictured else " Dashed: threshold."
    plots.note(figure, f"Orange: positive, blue: negative scores.{line} Outlined: {marks}. {about}")
    return figure
