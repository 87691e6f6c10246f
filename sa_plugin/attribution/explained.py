"""What an explainer found on one sample, as numbers, a shaded text or picture, and a chart.

Shades are shares of each map's own largest |importance|, because units differ between methods: they
compare the tokens of one map, not two maps. RISE has no zero point, so its mean is taken off.
Labelled tokens are outlined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from sa_plugin.attribution.players import to_tokens
from sa_plugin.data.sample import Sample
from sa_plugin.show import plots
from sa_plugin.show.html import Markup, el, join
from sa_plugin.show.maps import MAP_STYLE, shade_key, shaded_picture, shaded_text
from sa_plugin.show.result import FORMAT, Result, Sheet, clean, exact

PlayerValues = Float[np.ndarray, "player objective"]
_SHOWN = 10
"""Tokens in the printed table."""
_INCHES_PER_TOKEN = 0.22


class Importances(NamedTuple):
    """What an explainer finds for all objectives of a game.

    Attributes:
        importance: Sign kept where the method has one, larger is more evidence.
        notes: By name, one number for each objective.
    """

    importance: PlayerValues
    notes: Mapping[str, Float[np.ndarray, " objective"]]


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """Importance of a sample's tokens or patches for one objective; made by `attribute`.

    Attributes:
        method: Name of the explainer.
        objective: Name of the objective.
        concept: What it is evidence of.
        layer: Block the objective reads.
        sample: What was explained.
        importance: Larger is more evidence; units are those of the method.
        player_of: The player of each token of the model's input; -1 for special tokens.
        offsets: Characters of each token of the input, or the box of each patch.
        notes: What the method says of itself, such as `completeness_error`.
        settings: Options it ran with.
        dropped: Tokens of the input that the objective does not count, as the host drops them: sinks.
        caution: What the objective says of itself, such as a tail too short for its gradient.
    """

    method: str
    objective: str
    concept: str
    layer: int
    sample: Sample
    importance: Float[np.ndarray, " player"]
    player_of: Int[np.ndarray, " token"]
    offsets: Real[np.ndarray, "token edge"]
    notes: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    dropped: Bool[np.ndarray, " token"] | None = None
    caution: str = ""

    text_keys: ClassVar[tuple[str, ...]] = ("tokens",)
    about: ClassVar[str] = (
        "No explainer is right by construction: importance is relative to the baseline and to the method's "
        "units, and one sample is an anecdote. Judge explainers by compare."
    )

    def headline(self) -> str:
        """Method, objective, sample, and what the method says of itself."""
        notes = "".join(f", {name} {value:.3g}" for name, value in self.notes.items())
        return (
            f"{self.method!r}, {self.objective!r} of {self.concept!r}, sample "
            f"{self.sample.id!r}, {len(self.importance)} players{notes}"
            f"{', ' + self._of_dropped if self._of_dropped else ''}"
        )

    @property
    def on_dropped(self) -> float:
        """Share of the summed |importance| that lies on tokens dropped as sinks; 0 where none is masked."""
        found = self._map
        if self.dropped is None or not np.abs(found.shares).sum():
            return 0.0
        sizes = np.abs(found.shares)
        return float(sizes[self.dropped[found.position]].sum() / sizes.sum())

    @property
    def _of_dropped(self) -> str:
        """What became of the tokens that were dropped as sinks, in words; empty without any."""
        n = 0 if self.dropped is None else int(self.dropped.sum())
        if not n or self.dropped is None:
            return ""
        what = "1 token dropped as a sink" if n == 1 else f"{n} tokens dropped as sinks"
        if (self.player_of[self.dropped] >= 0).any():
            return f"{self.on_dropped:.0%} of |importance| on {what}"
        return f"{what} {'is' if n == 1 else 'are'} never masked"

    @property
    def of_token(self) -> Float[np.ndarray, " token"]:
        """Importance of every token of the model's input; NaN for special tokens."""
        return np.asarray(to_tokens(self.importance, self.player_of))

    def top(self, n: int = 5) -> list[tuple[str, float]]:
        """The most important tokens: their text, or where the patch lies, and their importance."""
        shown = np.nan_to_num(self.of_token, nan=-np.inf)
        order = np.argsort(-shown, kind="stable")[: min(n, int((self.player_of >= 0).sum()))]
        return [(self.sample.token_text(self.offsets[t]), float(shown[t])) for t in order]

    def sheets(self) -> tuple[Sheet, ...]:
        """The most important tokens or patches."""
        kind = "token" if self.sample.image is None else "patch"
        lines = [[words.strip(), f"{value:.4g}"] for words, value in self.top(_SHOWN)]
        title = (
            f"The most important of {len(self._map.values)} by {self.method}, objective "
            f"{self.objective!r} of {self.concept!r} at layer {self.layer}."
        )
        notes = [f"{one[0].upper()}{one[1:]}." for one in (self._of_dropped, self.caution) if one]
        return (Sheet([kind, "importance"], lines, title, notes),)

    def rows(self) -> list[dict[str, Any]]:
        """Every token or patch in the order of the input."""
        same = {"concept": self.concept, "method": self.method, "objective": self.objective}
        shown = self._map
        return [
            exact("importance", value, **same, position=int(at), token=words, labelled=bool(label))
            for at, words, label, value in zip(
                shown.position, shown.words, shown.labels, shown.values, strict=True
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """The sample by its id; every token's characters, or the patch's box, and its importance."""
        shown = self._map
        return {
            "format": FORMAT,
            "kind": type(self).__name__,
            **{name: getattr(self, name) for name in ("method", "objective", "concept", "layer")},
            "sample": self.sample.id,
            "position": clean(shown.position),
            "offsets": clean(self.offsets[shown.position]),
            "tokens": list(shown.words),
            "labels": clean(shown.labels),
            "importance": clean(shown.values),
            "dropped": [] if self.dropped is None else clean(np.flatnonzero(self.dropped)),
            "on_dropped": self.on_dropped,
            "caution": self.caution,
            "notes": clean(self.notes),
            "settings": {name: _plain(value) for name, value in self.settings.items()},
        }

    def plot(self) -> Any:
        """Importance as bars along the text, or as shades on the picture."""
        shown, image = self._map, self.sample.image
        if image is None:
            width = min(max(_INCHES_PER_TOKEN * len(shown.values) + 1, 5.0), 18.0)
            figure, ax = plots.new_figure(width, 3.0)
            plots.word_bars(ax, shown.words, shown.values, shown.labels)
            plots.words(ax, title=self._title, y="importance")
        else:
            figure, ax = plots.new_figure(4.0, 4.4)
            plots.patch_map(ax, image.pixels, self.offsets[shown.position], shown.shares, shown.labels)
            plots.words(ax, title=self._title)
        lines = [
            "Orange: for the objective, blue: against. Framed: labelled.",
            "Units are the method's; importance is relative to the baseline.",
        ]
        lines += [f"{one[0].upper()}{one[1:]}." for one in (self._of_dropped, self.caution) if one]
        if self.method == "rise":
            lines.append("RISE has no zero point: only differences between tokens tell.")
        plots.note(figure, "\n".join(lines))
        return figure

    def _repr_html_(self) -> str:
        about = el("p", f"{self.caution}. {self.about}" if self.caution else self.about, style="opacity:.8")
        return str(el("div", el("strong", repr(self)), _maps([el("figure", self._shaded())]), about))

    @property
    def _title(self) -> str:
        return f"{self.method}, {self.objective}: {self.concept}"

    @cached_property
    def _map(self) -> _Map:
        values = self.of_token
        position = np.flatnonzero(~np.isnan(values))
        values, offsets = values[position], self.offsets[position]
        level = values - values.mean() if self.method == "rise" else values
        limit = float(np.abs(level).max(initial=0.0))
        words = tuple(self.sample.token_text(one) for one in offsets)
        labels = self.sample.token_labels(offsets, [self.concept])[:, 0]
        return _Map(position, words, values, level / (limit or 1.0), labels, limit)

    def _shaded(self) -> Markup:
        shown, image = self._map, self.sample.image
        offsets, tips = self.offsets[shown.position], [f"{value:.4g}" for value in shown.values]
        if image is None:
            drawn = self._shaded_text(offsets, tips)
        else:
            drawn = shaded_picture(image.pixels, offsets, shown.shares, shown.labels, tips, title=self._title)
        return join([drawn, shade_key(shown.limit, " from the mean" if self.method == "rise" else "")])

    def _shaded_text(self, offsets: np.ndarray, tips: list[str]) -> Markup:
        shown = self._map
        outside = np.setdiff1d(np.flatnonzero([] if self.dropped is None else self.dropped), shown.position)
        # Those without a player stand pale in their place.
        order = np.argsort([*shown.position, *outside])
        places = np.concatenate([offsets, self.offsets[outside]])[order]
        shares = np.concatenate([shown.shares, np.full(len(outside), np.nan)])[order]
        labels = np.concatenate([shown.labels, np.zeros(len(outside), bool)])[order]
        said = [*tips, *["dropped as a sink, never masked"] * len(outside)]
        return shaded_text(self.sample.text, places, shares, labels, [said[k] for k in order])


class _Map(NamedTuple):
    """The tokens that have a player: place in the input, characters, importance, shade and label.

    `limit` is the importance of a full shade.
    """

    position: Int[np.ndarray, " kept"]
    words: tuple[str, ...]
    values: Float[np.ndarray, " kept"]
    shares: Float[np.ndarray, " kept"]
    labels: Bool[np.ndarray, " kept"]
    limit: float


def heat_maps(shown: Sequence[Attribution]) -> str:
    """Maps of one sample, side by side, as a piece of HTML.

    Args:
        shown: Attributions of the same sample.

    Raises:
        ValueError: None, or of several samples.
        ImportError: An image, and Pillow is not installed.
    """
    samples = {one.sample.id for one in shown}
    if len(samples) != 1:
        raise ValueError(
            f"shown: a heat map is of one sample, these are of {sorted(samples)}: give those of one."
        )
    return str(_maps([el("figure", el("figcaption", _caption(one)), one._shaded()) for one in shown]))


def _maps(figures: Sequence[Markup]) -> Markup:
    return join([MAP_STYLE, el("div", *figures, class_="sa-maps")])


def _plain(value: Any) -> Any:
    """A setting as JSON has it; a tensor or a function by its type alone."""
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


def _caption(one: Attribution) -> str:
    dropped = one._of_dropped
    return f"{one.method}: {one.objective}" + (f"; {dropped}" if dropped else "")
