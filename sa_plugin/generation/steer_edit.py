"""What steering does to an activation, and which tokens it is done to.

Of a concept's vector v at one layer, with x = (h - mean) / scale the normalised activation, an edit is a
number m of every token times one vector of raw activation space,

    h' = h + m(h) p

| scores | p | along(h) | what m = 1 does |
|---|---|---|---|
| dot | scale v / (v . v) | x . v, the score | raises the score by exactly 1 |
| cosine | scale v / norm(v) | x . v / norm(v) | moves x by 1 along v |
| latent of an SAE | its row of `W_dec` | | adds what the SAE writes for an activation of 1 |

The root mean square of norm(x) is 1 over train tokens, so that a cosine rises by about 1 / norm(x) at first,
and never beyond 1. What an SAE reads of what was added, nothing tells.

| how | m(h), with a strength s | after it |
|---|---|---|
| add | s | dot scores have risen by s |
| project_out | -s along(h) | with s = 1 the score is 0, as at the train mean |
| clamp_to_threshold | -s max(0, along(h) - limit(h)) | with s = 1 no score is above the threshold tau |

`limit` is tau for dot scores, and for cosines tau r / sqrt(1 - tau^2) with r the length of x across v,
where the cosine is tau. Latents, which no straight line moves, are only added to.

A gate says which tokens: those of which the score reaches the threshold at one layer, *before* anything is
edited there. Keys and values up to a layer never hold an edit that is made behind them, so where the gate
lies at or below the lowest edited layer its score is the unsteered model's on the same token ids, to
rounding, at no cost. A gate behind an edit would read what steering has done.

Attention sinks are no evidence, and not steered by a gate: the first token of a text if the decoder puts no
BOS in front, and a token whose norm in the residual stream that the gate reads is ten times the median of
the tokens of text up to it, the lower of two middle ones. `find` has the median of the whole text, at all
layers of the bank, so that the two can differ in a token with a large norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from sa_plugin._check import position_of
from sa_plugin.concepts.bank import VectorSet
from sa_plugin.concepts.sae import LatentSet
from sa_plugin.detection.detector import Detector
from sa_plugin.host.protocol import Host, Site
from sa_plugin.host.reducers import SINK_FACTOR
from sa_plugin.scores.score import check_origin

How: TypeAlias = Literal["add", "project_out", "clamp_to_threshold"]
Where: TypeAlias = Literal["superactivators", "all"] | Bool[Tensor, "row column"]
TWIN = "twin"
# Medians of so many numbers are looked for at a time.
_MEDIANS = 1 << 24


@dataclass(frozen=True, eq=False)
class LayerEdit:
    """The edit of one concept at one layer.

    Attributes:
        site: Where.
        vectors: One layer and one unit.
        threshold: Score from which a token is a SuperActivator there.
        how: See the module.
        strength: s.
        direction: In place of p, of one row or of each: of the same length, for controls.
    """

    site: Site
    vectors: VectorSet
    threshold: float
    how: How
    strength: float
    direction: Float[Tensor, "*row d_model"] | None = None
    moved: dict[Any, Any] = field(default_factory=dict)

    def score(self, h: Real[Tensor, "row column d_model"]) -> Float[Tensor, "row column"]:
        """As every question of this package has it."""
        return self._on(h.device).score(0, h)[..., 0]

    def reaches(self, score: Float[Tensor, "row column"]) -> Bool[Tensor, "row column"]:
        """Which scores reach the threshold, as in float64."""
        return score.double() >= self.threshold

    def edited(
        self, h: Real[Tensor, "row column d_model"], on: Bool[Tensor, "row column"]
    ) -> Real[Tensor, "row column d_model"]:
        """The activations with some tokens edited; all others are the same to the bit."""
        direction = self._cached(("p", h.device), lambda: self._direction().to(h.device))
        # One direction of each row stands beside all of its columns.
        direction = direction[:, None] if direction.ndim == 2 else direction
        new = h.float() + self._size(h)[..., None] * direction
        return torch.where(on.to(h.device)[..., None], new.to(h.dtype), h)

    def _direction(self) -> Float[Tensor, "*row d_model"]:
        return push_of(self.vectors) if self.direction is None else self.direction

    def _size(self, h: Real[Tensor, "row column d_model"]) -> Float[Tensor, "row column"]:
        """m, of every token."""
        if self.how == "add":
            return h.new_full(h.shape[:2], self.strength, dtype=torch.float32)
        along, across = self._along(h)
        if self.how == "project_out":
            return -self.strength * along
        limit: Tensor | float = self.threshold
        if self.vectors.scoring == "cosine":
            # No cosine is above 1; at -1 nothing but v's own opposite would do.
            tau = min(max(self.threshold, -1 + 1e-6), 1 - 1e-12)
            limit = tau * across / math.sqrt(1 - tau**2)
        return -self.strength * (along - limit).clamp_min(0)

    def _along(self, h: Real[Tensor, "row column d_model"]) -> tuple[Tensor, Tensor]:
        """Product with v (of cosines with v over its length), and the length of what is left."""
        own = self._on(h.device)
        x = (h.float() - own.mean[0]) / own.scale[0]
        v = own.vectors[0, 0]
        v = v / v.norm() if own.scoring == "cosine" else v
        along = x @ v
        return along, (x - along[..., None] * v / (v @ v)).norm(dim=-1)

    def _on(self, device: torch.device) -> VectorSet:
        """The vectors where the activations are: moved once, not at every step."""
        one = self.vectors
        if one.scoring == "latent":
            return one
        return self._cached(  # type: ignore[no-any-return]
            ("v", device),
            lambda: VectorSet(one.vectors.to(device), one.mean.to(device), one.scale.to(device), one.scoring),
        )

    def _cached(self, key: Any, make: Any) -> Any:
        if key not in self.moved:
            self.moved[key] = make()
        return self.moved[key]


def push_of(vectors: VectorSet) -> Float[Tensor, " d_model"]:
    """P of the module, in float32.

    Raises:
        ValueError: A latent of an SAE without `W_dec`.
    """
    if isinstance(vectors, LatentSet):
        rows = getattr(vectors.sources[0].sae, "W_dec", None)
        shape = [vectors.sources[0].width, vectors.shape[-1]]
        if not isinstance(rows, Tensor) or list(rows.shape) != shape:
            raise ValueError(
                f"steer: the SAE has no W_dec of shape {shape}, so what a latent writes is not known: give "
                "it one, or steer with a row of its decoder (ConceptBank.from_vectors)."
            )
        return rows[vectors.latents[0]].detach().float()
    v, scale = vectors.vectors[0, 0].double(), vectors.scale[0].double()
    squared = v.norm() if vectors.scoring == "cosine" else v @ v
    return (scale * v / squared).float()


@dataclass(frozen=True, eq=False)
class SteeringPlan:
    """What is steered, where, and by which gate.

    Attributes:
        concept: Name.
        edits: One a layer, the lowest first.
        gate: Whose score decides for all; with `twin` each edit's own does.
        where: As it was asked for.
        twin: Whether gates read an unsteered twin of each row.
        sinks: Whether attention sinks are left out.
        drops_first: Whether the first token is one.
    """

    concept: str
    edits: tuple[LayerEdit, ...]
    gate: LayerEdit
    where: Any
    twin: bool
    sinks: bool
    drops_first: bool

    @property
    def norm_site(self) -> Site:
        """The residual stream whose norms tell sinks."""
        layer, point = self.gate.site
        return self.gate.site if point.startswith("resid") else Site(layer, "resid_pre")

    @property
    def sites(self) -> tuple[Site, ...]:
        """All that is looked at."""
        return tuple(dict.fromkeys([self.norm_site, self.gate.site, *(one.site for one in self.edits)]))

    def with_directions(self, directions: Mapping[Site, Float[Tensor, "*row d_model"]]) -> SteeringPlan:
        """The same edits in other directions, the gate as it was."""
        edits = tuple(replace(one, direction=directions[one.site], moved={}) for one in self.edits)
        return replace(self, edits=edits)


def plan_of(
    host: Host,
    detector: Detector,
    concept: str,
    strength: float,
    *,
    where: Where = "superactivators",
    how: How = "add",
    layers: int | Sequence[int] | None = None,
    gate: Literal["lowest", "twin"] | int = "lowest",
) -> SteeringPlan:
    """Check what is asked for, as far as its types do not say it; see `sa_plugin.generation.steer.steer`."""
    check_origin(detector.bank, host)
    k = position_of(concept, detector.concepts)
    bank, tail = detector.bank, detector.tail
    if how != "add" and not 0 <= strength <= 1:
        raise ValueError(
            f"strength is {strength:g}: with how={how!r} it is the share of the way that is gone, "
            "from 0 to 1."
        )
    if bank.token.scoring == "latent" and how != "add":
        raise ValueError(
            f"how={how!r} with latents of an SAE: no straight line takes a latent to a value, so that cannot "
            "be promised. Use how='add', or a bank of the encoder's rows (ConceptBank.from_vectors)."
        )
    chosen = bank.layers[int(tail.layer[k])]
    given = [chosen] if layers is None else [layers] if isinstance(layers, int) else list(layers)
    if not given:
        raise ValueError("layers is empty: name at least one block, or leave it out for the calibrated one.")
    edits = tuple(_edit(detector, k, at, how, strength) for at in sorted(set(given)))
    lowest = edits[0]
    if isinstance(gate, str):
        gating = lowest
    else:
        if gate > lowest.site.layer:
            raise ValueError(
                f"gate is block {gate}, behind the lowest edited block {lowest.site.layer}: it would read "
                f"its own steering back. Give one of 0 to {lowest.site.layer}, or gate='twin'."
            )
        gating = _edit(detector, k, gate, how, strength)
    needing = set(edits) if gate == TWIN or how == "clamp_to_threshold" else set()
    if isinstance(where, str) and where == "superactivators":
        needing.add(gating)
    for one in sorted(needing, key=lambda one: one.site):
        _require_threshold(concept, one)
    _, sinks, drops_first = bank.sinks_on(host.info)
    return SteeringPlan(concept, edits, gating, where, gate == TWIN, sinks == "drop", drops_first)


def _edit(detector: Detector, k: int, layer: int, how: How, strength: float) -> LayerEdit:
    """At the calibrated layer with the chosen unit and delta; elsewhere with the best of that layer."""
    bank, tail = detector.bank, detector.tail
    at = bank.index(layer)
    own = at == int(tail.layer[k])
    delta = int(tail.delta[k]) if own else int(np.argmax(tail.f1[at, :, k]))
    vectors = bank.token.only([at], [int(tail.unit[at, k])])
    threshold = float(tail.thresholds[at, delta, k])
    made = LayerEdit(Site(layer, bank.hook_point), vectors, threshold, how, strength)
    push_of(vectors)
    return made


def _require_threshold(concept: str, edit: LayerEdit) -> None:
    if not math.isfinite(edit.threshold):
        raise ValueError(
            f"{concept!r} has no threshold at block {edit.site.layer} ({edit.threshold}): no token of it was "
            "in the calibration split, so no token would ever be steered. Use where='all', another concept, "
            "or more labelled samples."
        )


class Steerer:
    """Does what a plan says in the passes of one model, and keeps what its gates saw.

    Args:
        plan: What to do.
    """

    def __init__(self, plan: SteeringPlan) -> None:
        self.plan = plan
        self.by_site = {one.site: one for one in plan.edits}
        self.norms: Tensor | None = None
        self.valid: Tensor | None = None
        self.on: Tensor | None = None
        self.bad: Tensor | None = None
        # Of the columns that were new, pass by pass, on the device.
        self.scores: list[Tensor] = []
        self.opened: list[Tensor] = []

    def look(
        self,
        site: Site,
        h: Real[Tensor, "row column d_model"],
        valid: Bool[Tensor, "row column"],
        start: int,
        new: int,
        keep: bool = True,
    ) -> Tensor | None:
        """What takes the place of the activations of a pass, or None.

        Args:
            site: Where.
            h: All columns of the pass.
            valid: Which of them are tokens of text.
            start: Number of the pass's first column in its text.
            new: First of the pass's columns that no earlier pass has run.
            keep: Whether scores are kept for `finish`.
        """
        plan = self.plan
        with torch.no_grad():
            rows = len(h) // 2 if plan.twin else len(h)
            # Gates of a twin read the rows that are never edited.
            seen = h[rows:] if plan.twin else h
            if site == plan.norm_site:
                self._measure(seen, valid[-rows:], start)
            own = self.by_site.get(site)
            decides = site == plan.gate.site or (plan.twin and own is not None)
            if decides:
                gate = plan.gate if site == plan.gate.site else own
                assert gate is not None
                score = gate.score(seen)
                self.on = self._open(gate, score, valid[-rows:], start)
                if keep and site == plan.gate.site:
                    self._keep(score, valid[-rows:], new)
            if own is None:
                return None
            on = self.on
            assert on is not None
            if plan.twin:
                on = torch.cat([on, torch.zeros_like(on)])
            return own.edited(h, on)

    def _measure(self, h: Tensor, valid: Tensor, start: int) -> None:
        norms = h.float().norm(dim=-1)
        if start and self.norms is not None and self.valid is not None:
            norms = torch.cat([self.norms[:, :start], norms], dim=1)
            valid = torch.cat([self.valid[:, :start], valid.to(norms.device)], dim=1)
        self.norms, self.valid = norms, valid.to(norms.device)

    def _open(self, gate: LayerEdit, score: Tensor, valid: Tensor, start: int) -> Tensor:
        valid = valid.to(score.device)
        where = self.plan.where
        if isinstance(where, Tensor):
            if len(where) != len(score):
                raise ValueError(
                    f"where has {len(where)} rows, the batch {len(score)}: give one row of truth values a "
                    "sequence that is run."
                )
            width = score.shape[1]
            asked = where[:, start : start + width].to(score.device)
            return valid & torch.nn.functional.pad(asked, (0, width - asked.shape[1]))
        if where == "all":
            return valid
        return valid & gate.reaches(score) & ~self._sinks(start).to(score.device)

    def _sinks(self, start: int) -> Tensor:
        """Which columns from `start` on are attention sinks, by what stands up to each."""
        norms, valid = self.norms, self.valid
        assert norms is not None
        assert valid is not None
        total = norms.shape[1]
        if not self.plan.sinks:
            return torch.zeros_like(valid[:, start:])
        masked = norms.masked_fill(~valid, torch.nan)
        step = max(1, _MEDIANS // max(1, norms.numel()))
        column, medians = torch.arange(total, device=norms.device), []
        for first in range(start, total, step):
            last = column[first : first + step]
            behind = column[None] > last[:, None]
            medians.append(masked[:, None].masked_fill(behind[None], torch.nan).nanmedian(-1).values)
        sinks = norms[:, start:] > SINK_FACTOR * torch.cat(medians, dim=1)
        if self.plan.drops_first:
            sinks = sinks | (valid.long().cumsum(-1) == 1)[:, start:]
        return sinks

    def _keep(self, score: Tensor, valid: Tensor, new: int) -> None:
        assert self.on is not None
        bad = (~torch.isfinite(score) & valid.to(score.device)).sum()
        # Asked of the device once, at the end.
        self.bad = bad if self.bad is None else self.bad + bad
        self.scores.append(score[:, new:])
        self.opened.append(self.on[:, new:])

    def sinks(self) -> Bool[Tensor, "row column"]:
        """Attention sinks of the text so far, by the rule that does not look ahead."""
        return self._sinks(0)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the gate and where it was open, `[row, column]`, and ready for the next text.

        Raises:
            ValueError: A score was NaN or Inf.
        """
        bad = 0 if self.bad is None else int(self.bad)
        found = tuple(torch.cat(one, dim=1).cpu().numpy() for one in (self.scores, self.opened))
        self.scores, self.opened, self.norms, self.valid, self.on, self.bad = [], [], None, None, None, None
        if bad:
            raise ValueError(
                f"steer: scores of {self.plan.concept!r} at block {self.plan.gate.site.layer} are NaN or Inf "
                f"in {bad} tokens: load the model in float32 or bfloat16, or mend its weights."
            )
        return found[0], found[1]
