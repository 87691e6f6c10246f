"""Steering where the concept is: an edit of the residual stream, token by token, while a model generates.

`steer` is a context. Inside it every `generate` of the attached model, by whichever library, is edited as
`sa_plugin.generation.steer_edit` says: which tokens is asked before anything is edited, so that the gate
never reads its own steering back. With one edited layer, or with several and the gate of the lowest, its
scores are those of the unsteered model on the same token ids, at no cost. With several layers and a gate
of its own at each (`gate="twin"`), every row is run twice with the same tokens, and the second, which is
never edited, is what the gates read: that costs a row more a row.

Twins need a loop of their own (`Steering.generate`). The `generate` of a library chooses each row's next
token from that row's own logits, draws once a row where it samples, and ends rows one by one: a twin in its
batch would go on with other tokens after the first one that steering changes, or change what is drawn.

Of two contexts on one model the one entered first sees a part first. With `watch` and `steer`:

| entered | at the edited layer the monitor sees | behind it |
|---|---|---|
| watch, then steer | what arrives, unsteered | the steered stream |
| steer, then watch | the steered residual | the steered stream |

What it does not show: that a model whose residual moved along a vector speaks of the concept.
`steering_curves` measures that, beside controls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sa_plugin._face import face, face_methods
from sa_plugin.detection.detector import Detector
from sa_plugin.generation.running import Generation, following, require_local
from sa_plugin.generation.steer_edit import How, Steerer, SteeringPlan, Where, plan_of
from sa_plugin.host.local import LocalHost
from sa_plugin.host.protocol import Host, Site
from sa_plugin.show.result import FORMAT, Sheet, Shown, clean, exact, number


@dataclass(frozen=True, eq=False)
class SteeredTexts:
    """What one call of `generate` ran, and what was done to it.

    Attributes:
        ids: Token ids as they came out, with the last, which is never run.
        prompt: Columns of the prompt.
        valid: Tokens of text among those that were run.
        scores: Of the gate, before anything was edited.
        steered: Tokens that were edited.
    """

    ids: Int[np.ndarray, "row all_columns"]
    prompt: int
    valid: Bool[np.ndarray, "row column"]
    scores: Float[np.ndarray, "row column"]
    steered: Bool[np.ndarray, "row column"]


@face_methods
@dataclass(frozen=True, eq=False, repr=False)
class Steering(Shown):
    """What is steered, and what was; made by `steer`.

    Attributes:
        host: Of the model.
        plan: What is done, where.
        texts: What each `generate` ran.
    """

    host: LocalHost
    plan: SteeringPlan
    texts: list[SteeredTexts] = field(default_factory=list)
    inside: dict[str, Any] = field(default_factory=dict)

    text_keys: ClassVar[tuple[str, ...]] = ("ids",)
    about: ClassVar[str] = (
        "A steered token had its residual moved along a vector. Whether the model then speaks of the "
        "concept, and what else it costs, steering_curves measures."
    )

    @property
    def n_tokens(self) -> int:
        """Tokens of text that were run."""
        return sum(int(one.valid.sum()) for one in self.texts)

    @property
    def n_steered(self) -> int:
        """Those that were edited."""
        return sum(int(one.steered.sum()) for one in self.texts)

    @property
    def share(self) -> float:
        """Share of the tokens that was edited; NaN before any was run."""
        return self.n_steered / self.n_tokens if self.n_tokens else float("nan")

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where activations are edited."""
        return tuple(one.site for one in self.plan.edits)

    def headline(self) -> str:
        """Concept, edit, gate and how many tokens were edited."""
        plan, first = self.plan, self.plan.edits[0]
        where = plan.where if isinstance(plan.where, str) else "a mask"
        gate = "an unsteered twin" if plan.twin else f"block {plan.gate.site.layer}"
        return (
            f"{plan.concept!r}, {first.how} {first.strength:g} at blocks {[s.layer for s in self.sites]}, "
            f"{where}, gate of {gate}; {self.n_steered} of {self.n_tokens} tokens steered"
        )

    def sheets(self) -> tuple[Sheet, ...]:
        """Of every sequence its tokens and those that were steered."""
        lines = []
        for call, one in enumerate(self.texts):
            for row in range(len(one.valid)):
                n, on = int(one.valid[row].sum()), int(one.steered[row].sum())
                best = one.scores[row][one.valid[row]].max(initial=-np.inf)
                lines.append([str(call), str(row), str(n), str(on), number(float(best))])
        tau = number(self.plan.gate.threshold, 4)
        note = f"The gate's threshold is {tau}; scores are those before anything is edited at its block."
        return (Sheet(["call", "row", "tokens", "steered", "highest score"], lines, "", [note]),)

    def rows(self) -> list[dict[str, Any]]:
        """The gate's score of every token, and whether it was steered."""
        found = []
        for call, one in enumerate(self.texts):
            for row, column in np.argwhere(one.valid):
                step = max(int(column) - one.prompt + 1, 0)
                labels = {"call": call, "row": int(row), "column": int(column), "step": step}
                labels["steered"] = bool(one.steered[row, column])
                found.append(exact("score", float(one.scores[row, column]), **labels))
        return found

    def to_dict(self) -> dict[str, Any]:
        """What was asked for, and what was done."""
        plan, first = self.plan, self.plan.edits[0]
        found = {
            "concept": plan.concept,
            "how": first.how,
            "strength": first.strength,
            "sites": [tuple(site) for site in self.sites],
            "gate": "twin" if plan.twin else tuple(plan.gate.site),
            "threshold": plan.gate.threshold,
            "texts": [vars(one) for one in self.texts],
        }
        return {"format": FORMAT, "kind": "Steering", **clean(found)}

    def plot(self) -> Any:
        """The gate's scores along every row of the last call, and its threshold."""
        from sa_plugin.show import plots

        figure, ax = plots.new_figure(7.0, 3.4)
        for one in self.texts[-1:]:
            for row in range(len(one.valid)):
                at = np.flatnonzero(one.valid[row])
                ax.plot(at, one.scores[row, at], "-", lw=0.8, color=plots.TEXT_COLOUR, alpha=0.5)
                on = np.flatnonzero(one.steered[row])
                ax.plot(on, one.scores[row, on], "o", ms=4, color=plots.TAIL_COLOUR)
        if np.isfinite(self.plan.gate.threshold):
            ax.axhline(self.plan.gate.threshold, color=plots.TEXT_COLOUR, lw=0.6, ls=":")
        plots.words(ax, title=f"{self.plan.concept}: steered tokens", x="column", y="score of the gate")
        plots.note(figure, "Scores before anything is edited at the gate's block; dotted: the threshold.")
        return figure

    def generate(
        self,
        ids: Int[Tensor, "row column"],
        attention_mask: Shaped[Tensor, "row column"] | None = None,
        *,
        max_new_tokens: int = 20,
        seed: int | None = None,
        eos_token_id: int | None = None,
    ) -> Int[Tensor, "row all_columns"]:
        """Go on with some prompts, steered: a loop of our own, which can run unsteered twins.

        One pass a token, with keys and values kept where the model is of transformers, else over all tokens
        again.

        Args:
            ids: Token ids, padded on the left.
            attention_mask: 0 where they are padding; by default nowhere.
            max_new_tokens: How many tokens to add at most.
            seed: Draws tokens from the model's distribution; by default the likeliest is taken.
            eos_token_id: Ends a row, which is filled up with it; by default none does.

        Returns:
            Prompts and what follows.

        Raises:
            RuntimeError: The context is over.
        """
        follow = self.inside.get("follow")
        if follow is None:
            raise RuntimeError("Steering.generate: the context is over; call it inside `with steer(...)`.")
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask.to(ids.dtype)
        copies = 2 if self.plan.twin else 1
        loop = partial(_loop, self.host, copies=copies, seed=seed, rows=len(ids))
        self.inside["own"] = True
        try:
            out = follow(loop, "generate")(
                ids.repeat(copies, 1),
                mask.repeat(copies, 1),
                max_new_tokens=max_new_tokens,
                eos_token_id=eos_token_id,
            )
        finally:
            self.inside["own"] = False
        return out[: len(ids)]  # type: ignore[no-any-return]


class _Following:
    """Tells a steering of generations."""

    def __init__(self, steering: Steering) -> None:
        self.steering, self.steerer = steering, Steerer(steering.plan)

    def look(self, site: Site, h: Tensor, generation: Generation) -> Tensor | None:
        """An edit of the pass under way."""
        return self.steerer.look(site, h, generation.valid_here, generation.start, generation.new_here)

    def begins(self, arguments: Mapping[str, Any]) -> None:
        """A generation is asked for."""
        if self.steering.plan.twin and not self.steering.inside.get("own"):
            raise ValueError(
                "steer: gate='twin' runs each row twice with one row's tokens, which no library's generate "
                "does: call generate of what `with steer(...) as steering` gives, or use gate='lowest'."
            )
        self.steerer = Steerer(self.steering.plan)

    def passed(self, generation: Generation) -> None:
        """Nothing is done between passes."""

    def stops(self, generation: Generation) -> Sequence[bool]:
        """Nothing is ended."""
        return [False] * generation.rows

    def ends(self, generation: Generation) -> None:
        """A generation is over."""
        scores, steered = self.steerer.finish()
        rows, columns = scores.shape
        ids, valid = generation.ids[:rows].cpu().numpy(), generation.valid[:rows, :columns].cpu().numpy()
        self.steering.texts.append(SteeredTexts(ids, generation.prompt, valid, scores, steered))


@face
@contextmanager
def steer(
    host: Host,
    detector: Detector,
    concept: str,
    strength: float = 1.0,
    *,
    where: Where = "superactivators",
    how: How = "add",
    layers: int | Sequence[int] | None = None,
    gate: Literal["lowest", "twin"] | int = "lowest",
) -> Iterator[Steering]:
    """Steer every generation of a model inside the context; behind it the model is as it was.

    Args:
        host: An attached model on this machine that generates texts.
        detector: Whose vectors and thresholds; calibrated on this model.
        concept: One of its concepts.
        strength: With "add" in units of the score: 2.0 raises a dot score by exactly 2 where it is added,
            moves a normalised activation by 2 along a vector that scores by cosine (a typical length is 1),
            and adds what an SAE writes for an activation of 2. Negative strengths push away. With the other
            two the share of the way, from 0 to 1.
        where: "superactivators", tokens whose score reaches the threshold; "all" tokens of text; or truth
            values `[row, column]` of the prompts as they are run, padding included (tokens behind are not
            steered).
        how: "add"; "project_out", which takes the concept's part out, down to the train mean; or
            "clamp_to_threshold", which lowers scores that are above it to the threshold.
        layers: Blocks that are edited, by default the concept's calibrated one. Others need vectors in the
            detector's bank, and have the threshold that was best on calibration at their block.
        gate: "lowest": the score at the lowest edited block decides for all. A block at or below it decides
            in its place. "twin": each block has its own gate, which reads an unsteered twin of the row, by
            `steering.generate` alone.

    Returns:
        A context of what is steered; behind the context, what was.

    Raises:
        TypeError: The model is on a server.
        ValueError: The detector is of another model, the concept has no threshold, the strength is not
            finite or of no use, the model is steered already, or it generates no text.
        RuntimeError: Nothing was generated inside, or a site did not come by exactly once in a pass.

    Example:
        >>> with steer(host, detector, "joy", 4.0) as steering:  # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=20)
        >>> steering.share  # doctest: +SKIP
    """
    local = require_local(host, "steer")
    plan = plan_of(host, detector, concept, strength, where=where, how=how, layers=layers, gate=gate)
    with steered(local, plan) as steering:
        yield steering


@contextmanager
def steered(host: LocalHost, plan: SteeringPlan) -> Iterator[Steering]:
    """Do what a plan says in every generation inside."""
    steering = Steering(host, plan)
    follower = _Following(steering)
    looks = {site: partial(follower.look, site) for site in plan.sites}
    with following(host, "steer", looks, follower) as follow:
        steering.inside["follow"] = follow
        try:
            yield steering
        finally:
            steering.inside.clear()


def _loop(
    host: LocalHost,
    ids: Tensor,
    mask: Tensor,
    *,
    copies: int,
    seed: int | None,
    rows: int,
    max_new_tokens: int,
    eos_token_id: int | None,
) -> Tensor:
    """Tokens of the first rows, for all of their copies."""
    root = host.places.root
    takes = inspect.signature(root.forward).parameters
    step = _cached_step(root, takes) if "past_key_values" in takes else partial(_whole_step, host)
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    ended = torch.zeros(rows, 1, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            logits = step(ids, mask)[:rows].float().cpu()
            if draw is None:
                new = logits.argmax(-1, keepdim=True)
            else:
                new = torch.multinomial(logits.softmax(-1), 1, generator=draw)
            if eos_token_id is not None:
                new = torch.where(ended, eos_token_id, new)
                ended = ended | (new == eos_token_id)
            ids = torch.cat([ids, new.repeat(copies, 1).to(ids)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if bool(ended.all()):
                break
    return ids


def _cached_step(root: Any, takes: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits of the last token, keys and values of those before it kept."""
    kept: dict[str, Any] = {}

    def step(ids: Tensor, mask: Tensor) -> Tensor:
        new = ids[:, -1:] if kept else ids
        more: dict[str, Any] = dict(kept)
        if "position_ids" in takes:
            more["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -new.shape[1] :]
        out = root(input_ids=new, attention_mask=mask, use_cache=True, **more)
        kept["past_key_values"] = out.past_key_values
        return out.logits[:, -1]  # type: ignore[no-any-return]

    return step


def _whole_step(host: LocalHost, ids: Tensor, mask: Tensor) -> Tensor:
    inputs = host.passes.inputs({"input_ids": ids, "attention_mask": mask})
    return host.passes.output(inputs)[:, -1]
