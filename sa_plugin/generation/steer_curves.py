"""What steering a concept does and costs, by strength, where it is and everywhere, beside controls.

Held-out passages are run as they stand, steered, and every measure is a difference to the unsteered pass:

| measure | of |
|---|---|
| highest token | the largest score of the concept in a passage that has it |
| mean token | the mean of that score over the tokens of passages that have it |
| leak | the largest score in a passage that does not have the concept |
| other concepts | the mean over tokens and other concepts of how far their scores moved, either way |
| nats a token | the model's loss on the next token: its exponential is the factor of perplexity |
| steered tokens | share of the tokens of text that were edited |

Scores are never those of the vector that steers. One judge is the same bank at another layer, one a bank
of another kind; each is read behind the edited block, at the layer behind it that calibration liked best.
Their unit is the deviation of the judge's score over the unsteered tokens.

| arm | edits | where |
|---|---|---|
| superactivators | the concept's vector | tokens whose score reaches the threshold |
| all | the same | every token |
| random tokens | the same | as many tokens of each passage, drawn |
| random direction | a direction of its own in each passage, of the same length | as superactivators |
| permuted labels | the vector that permuted labels give, at the same length | as superactivators |

With `new_tokens` the model also goes on by itself from the first tokens of each passage, drawing with one
seed in all arms, and what it says is read by the *unsteered* model: then no edit is in what the judges
see, and "nats a token" says how much less likely the unsteered model finds these words than its own. They
are other words in each arm, so that "other concepts" compares means of each text, not token by token, and
there are no labels, hence no leak.

What it does not show: a judge behind the edit sees the edit itself, in the residual stream it is added to,
beside what the model makes of it; the read of the model's own words does not. Judges are vectors of the
same data, not people. A random direction has the length of the push and nothing of the distribution of
activations; a permuted vector is what the estimator makes of the same activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._face import face
from sa_plugin.concepts.bank import VectorSet
from sa_plugin.data.concept_data import Split, require_filled
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.guard import check_unseen
from sa_plugin.generation.running import is_special, require_local
from sa_plugin.generation.steer import steered
from sa_plugin.generation.steer_edit import How, Steerer, SteeringPlan, plan_of, push_of
from sa_plugin.generation.steer_result import (
    EVERY,
    HIGHEST,
    ISOTROPIC,
    MEAN,
    NATS,
    OTHERS,
    PERMUTED,
    SCATTERED,
    TAIL,
    TOUCHED,
    SteeringCurves,
    drawn_of,
    equal_of,
)
from sa_plugin.host.adapter import Looks, part_of
from sa_plugin.host.local import LocalHost
from sa_plugin.host.protocol import Host, Site
from sa_plugin.host.turns import hold
from sa_plugin.scores.score import check_origin
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.drawn import Resampling

PROMPT = 8
"""Tokens that the model goes on from."""
# Logits of a whole vocabulary for each token.
_BATCH_TOKENS = 768
_ROWS = 24
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, eq=False)
class _Judge:
    """A bank at one layer behind the edit, and which of its scores is the concept's."""

    name: str
    site: Site
    vectors: VectorSet
    concept: int

    def score(self, h: Tensor) -> Float[Tensor, "row column concept"]:
        return self.vectors.score(0, h).cpu()


@dataclass(frozen=True, eq=False)
class _Seen:
    """One pass: scores by judge, losses of targets, which tokens count, which were edited."""

    scores: tuple[Tensor, ...]
    losses: Float[Tensor, "row target"]
    predicted: Bool[Tensor, "row target"]
    keep: Bool[Tensor, "row column"]
    valid: Bool[Tensor, "row column"]
    steered: Bool[Tensor, "row column"]

    def only(self, rows: Bool[Tensor, " row"]) -> _Seen:
        """Some rows."""
        scores = tuple(one[rows] for one in self.scores)
        rest = (self.losses, self.predicted, self.keep, self.valid, self.steered)
        return _Seen(scores, *(one[rows] for one in rest))


@face
def steering_curves(
    host: Host,
    detector: Detector,
    concept: str,
    judge: Detector,
    split: Split,
    *,
    strengths: Sequence[float | int] = STRENGTHS,
    how: How = "add",
    new_tokens: int = 0,
    resampling: Resampling = Resampling(),
) -> SteeringCurves:
    """Measure what steering a concept does and costs, where it is and everywhere, beside controls.

    Costs a forward pass over the split for each strength, one over the passages in which the gate opens for
    each strength of each of four other arms, and with `new_tokens` as
    many passes over one token for each of three arms and each strength.

    Args:
        host: An attached model on this machine that predicts tokens.
        detector: Whose vector steers, at the concept's calibrated layer; where no judge is behind that, at
            the layer with the best calibration F1 of those that have judges behind them.
        concept: One of its concepts.
        judge: A detector of another kind, with the same concept and layers behind the edited one.
        split: Held-out passages, `data.test`.
        strengths: Ascending; as for `steer`, of one sign.
        how: As for `steer`.
        new_tokens: How far the model goes on by itself from the first tokens of each passage.
        resampling: Of source documents; its seed also draws tokens, directions and words.

    Returns:
        Every measure by arm and strength, with intervals over documents, and what is cheaper at equal effect.

    Raises:
        TypeError: The model is on a server.
        ValueError: Strengths are not ascending, a judge is of the same kind or has no layer behind the
            edit, the model predicts no tokens, no passage has the concept; or as `steer`.
    """
    local = require_local(host, "steering_curves")
    require_filled(split)
    for one in (detector, judge):
        check_unseen(split, one.seen)
    scale = _ordered(strengths)
    check_origin(judge.bank, local)
    layer = _edited_layer(detector, judge, concept)
    plan_of(local, detector, concept, scale[-1], how=how, layers=layer)
    judges = _judge(detector, concept, layer), _judge(judge, concept, layer)
    labels = split.sample_labels[:, list(split.concepts).index(concept)]
    if not labels.any() or labels.all():
        raise ValueError(
            f"{int(labels.sum())} of {len(labels)} passages have {concept!r}: steering_curves compares "
            "passages that have the concept with those that do not, so it needs both."
        )
    names = (judges[0].name, judges[1].name)
    plans, missing = _plans(local, detector, concept, how, layer)
    seed = resampling.seed
    resamples = resample_documents(np.array([s.document for s in split.samples]), resampling)
    job = _Job(local, split, plans, judges, scale, seed)
    given = drawn_of(job.given(), labels, names, resamples, scale)
    own = None
    if new_tokens:
        sums, rows = job.own(new_tokens)
        some = resample_documents(np.array([split.samples[k].document for k in rows]), resampling)
        own = drawn_of(sums, np.ones(len(rows), dtype=bool), names, some, scale)
    return SteeringCurves(
        concept,
        layer,
        how,
        names,
        (int(labels.sum()), int((~labels).sum())),
        given,
        own,
        equal_of(given, names),
        missing,
    )


def _ordered(strengths: Sequence[float | int]) -> tuple[float, ...]:
    found = tuple(float(s) for s in strengths)
    sizes = [abs(s) for s in found]
    rising = all(a < b for a, b in zip([0.0, *sizes], sizes, strict=False))
    if len(found) < 2 or not rising or len({s > 0 for s in found}) > 1:
        raise ValueError(
            f"strengths are {list(found)}: give two or more of one sign, further and further from 0, such as "
            f"{list(STRENGTHS)}."
        )
    return found


def _edited_layer(detector: Detector, other: Detector, concept: str) -> int:
    """The calibrated block, or the best of those that both judges have a block behind."""
    if other.bank.kind == detector.bank.kind:
        raise ValueError(
            f"judge is of kind {other.bank.kind!r}, as the detector that steers: give one of another kind, "
            "such as calibrate(host, data, fit(host, data, 'prototype'))."
        )
    for one in (detector, other):
        if concept not in one.concepts or len(one.concepts) < 2:
            raise ValueError(
                f"a detector of kind {one.bank.kind!r} has the concepts {', '.join(one.concepts)}: both must "
                f"have {concept!r} and another one."
            )
    last = min(max(one.bank.layers) for one in (detector, other))
    early = [at for at, layer in enumerate(detector.bank.layers) if layer < last]
    if not early:
        raise ValueError(
            f"the detector's bank has layers {list(detector.bank.layers)}, the judge's "
            f"{list(other.bank.layers)}: both need one behind the edited block, so fit at later blocks too."
        )
    k = detector.concepts.index(concept)
    own = int(detector.tail.layer[k])
    return detector.bank.layers[own if own in early else _best(detector, k, early)]


def _best(detector: Detector, k: int, places: Sequence[int]) -> int:
    """Of some places of layers the one with the best calibration F1."""
    return max(places, key=lambda at: float(np.nan_to_num(detector.tail.f1[at, :, k].max(), nan=-1.0)))


def _judge(detector: Detector, concept: str, layer: int) -> _Judge:
    bank, k = detector.bank, detector.concepts.index(concept)
    at = _best(detector, k, [at for at, block in enumerate(bank.layers) if block > layer])
    block, units = bank.layers[at], [int(u) for u in detector.tail.unit[at]]
    return _Judge(
        f"{bank.kind} at block {block}", Site(block, bank.hook_point), bank.token.only([at], units), k
    )


Making = Any
"""Of a strength and the rows and tokens of a batch: a plan."""


def _plans(
    host: LocalHost, detector: Detector, concept: str, how: How, layer: int
) -> tuple[dict[str, Making], dict[str, str]]:
    """Functions that make the plan of each arm, and the arms that there are not."""
    missing = {}
    null = _null_push(detector, concept, layer)
    if null is None:
        missing[PERMUTED] = "the bank has no vectors of permuted labels (fit with controls)"

    def plain(strength: float, where: Any = TAIL) -> SteeringPlan:
        return plan_of(host, detector, concept, strength, where=where, how=how, layers=layer)

    def turned(strength: float, rows: Sequence[int], seed: int, null: Tensor | None) -> SteeringPlan:
        plan = plain(strength)
        edit = plan.edits[0]
        length = push_of(edit.vectors).norm()
        if null is None:
            drawn = [np.random.default_rng([seed, row]).standard_normal(host.info.d_model) for row in rows]
            directions = torch.from_numpy(np.stack(drawn)).float()
        else:
            directions = null[None].expand(len(rows), -1)
        directions = length * directions / directions.norm(dim=-1, keepdim=True)
        return plan.with_directions({edit.site: directions})

    found: dict[str, Making] = {TAIL: plain, EVERY: partial(plain, where=EVERY), SCATTERED: plain}
    found[ISOTROPIC] = partial(turned, null=None)
    if null is not None:
        found[PERMUTED] = partial(turned, null=null)
    return found, missing


def _null_push(detector: Detector, concept: str, layer: int) -> Tensor | None:
    k, at, null = detector.concepts.index(concept), detector.bank.index(layer), detector.bank.permuted
    unit = int(detector.tail.unit[at, k])
    if null is None or detector.bank.token.scoring == "latent" or unit >= null.vectors.shape[1]:
        return None
    return push_of(null.only([at], [unit]))


@dataclass(frozen=True, eq=False)
class _Job:
    """The passes of one question.

    Attributes:
        host, split: What is run.
        plans: Of each arm.
        judges: What is read.
        strengths: That are run.
        seed: Of all that is drawn.
    """

    host: LocalHost
    split: Split
    plans: Mapping[str, Making]
    judges: tuple[_Judge, _Judge]
    strengths: tuple[float, ...]
    seed: int

    def given(self) -> dict[str, np.ndarray]:
        """Sums of each passage as it stands, `[arm, strength, passage]`, by name."""
        batches = self.host.batches(self.split.samples, batch_tokens=_BATCH_TOKENS)
        clean = []
        for batch in batches:
            plan = self.plans[TAIL](0.0)
            clean.append(self._pass(dict(batch.inputs), batch.valid, plan))
        sizes = self._sizes(clean)
        total = _Sums(list(self.plans), self.strengths, len(self.split.samples))
        bar = tqdm(
            total=len(self.plans) * len(self.strengths),
            desc="steered passes",
            disable=not self.host.progress,
            leave=False,
        )
        with bar:
            for arm, make in self.plans.items():
                for s in self.strengths:
                    for batch, whole in zip(batches, clean, strict=True):
                        total.add(
                            arm,
                            s,
                            batch.rows.tolist(),
                            self._changes(whole, whole, sizes, whole.valid & False),
                        )
                        # Passages in which no gate opens are what they were, in every arm but one.
                        open_in = (
                            whole.steered.any(1)
                            if arm != EVERY
                            else torch.ones(len(batch.rows), dtype=torch.bool)
                        )
                        if not open_in.any():
                            continue
                        rows, before = batch.rows[open_in].tolist(), whole.only(open_in)
                        where = {"where": self._scatter(before, rows)} if arm == SCATTERED else {}
                        turned = {"rows": rows, "seed": self.seed} if arm in (ISOTROPIC, PERMUTED) else {}
                        inputs = {name: value[open_in] for name, value in batch.inputs.items()}
                        after = self._pass(inputs, batch.valid[open_in], make(s, **where, **turned))
                        total.add(arm, s, rows, self._changes(before, after, sizes, after.steered))
                    bar.update()
        return total.values

    def own(self, new_tokens: int) -> tuple[dict[str, np.ndarray], list[int]]:
        """The same of what the model says from the first tokens of passages, and which passages those are."""
        reader: Any = self.host.reader
        prompts, rows = [], []
        for batch in self.host.batches(self.split.samples, batch_tokens=_BATCH_TOKENS):
            for row, ids, real in zip(
                batch.rows.tolist(), batch.inputs["input_ids"], _real(batch.inputs), strict=True
            ):
                text = ids[real]
                if len(text) > PROMPT:
                    prompts.append(text[:PROMPT])
                    rows.append(row)
        if not rows:
            raise ValueError(f"no passage has more than {PROMPT} tokens to go on from: leave new_tokens out.")
        arms = [arm for arm in self.plans if arm not in (PERMUTED, SCATTERED)]
        total = _Sums(arms, self.strengths, len(rows))
        ids = torch.stack(prompts)
        bar = tqdm(
            total=(1 + len(arms) * len(self.strengths)) * -(-len(rows) // _ROWS),
            desc="steered words",
            disable=not self.host.progress,
            leave=False,
        )
        parts, sizes = [], None
        with bar:
            for first in range(0, len(rows), _ROWS):
                here = slice(first, first + _ROWS)
                before, _ = self._spoken(ids[here], self.plans[TAIL](0.0), new_tokens, reader)
                parts.append(before)
                bar.update()
            sizes = self._sizes(parts)
            for arm in arms:
                for s in self.strengths:
                    for before, first in zip(parts, range(0, len(rows), _ROWS), strict=True):
                        places = list(range(first, min(first + _ROWS, len(rows))))
                        turned = {"rows": [rows[k] for k in places], "seed": self.seed}
                        plan = self.plans[arm](s, **(turned if arm == ISOTROPIC else {}))
                        after, touched = self._spoken(ids[places], plan, new_tokens, reader)
                        total.add(arm, s, places, self._changes(before, after, sizes, touched, aligned=False))
                        bar.update()
        return total.values, rows

    def _spoken(
        self, prompts: Tensor, plan: SteeringPlan, new_tokens: int, reader: Any
    ) -> tuple[_Seen, Bool[Tensor, "row column"]]:
        """What the model says, read unsteered, and which tokens were edited while it spoke."""
        with steered(self.host, plan) as steering:
            out = steering.generate(prompts, max_new_tokens=new_tokens, seed=self.seed)
        (text,) = steering.texts
        touched = torch.nn.functional.pad(
            torch.from_numpy(text.steered), (0, out.shape[1] - text.steered.shape[1])
        )
        inputs = {"input_ids": out, "attention_mask": torch.ones_like(out)}
        valid = ~is_special(reader.encode, out)
        seen = self._pass(inputs, valid, self.plans[TAIL](0.0))
        new = torch.arange(out.shape[1]) >= PROMPT
        return replace(seen, keep=seen.keep & new, predicted=seen.predicted & new[1:]), touched

    def _pass(
        self, inputs: dict[str, Tensor], valid: Bool[Tensor, "row column"], plan: SteeringPlan
    ) -> _Seen:
        """One pass over whole texts, steered."""
        host, steerer = self.host, Steerer(plan)
        scores: dict[str, Tensor] = {}

        def edit(site: Site, h: Tensor) -> Tensor | None:
            return steerer.look(site, h, valid.to(h.device), 0, 0)

        def read(site: Site, h: Tensor) -> None:
            scores.update({judge.name: judge.score(h) for judge in self.judges if judge.site == site})

        sites: dict[Site, Any] = {site: partial(edit, site) for site in plan.sites}
        sites |= {judge.site: partial(read, judge.site) for judge in self.judges}
        parts = {part_of(host.places, host.info, site): sites[site] for site in sorted(sites)}
        with hold(host.turns, "steering_curves", host.left_over) as turn:
            looks = Looks(parts, lambda ids: None, lambda mask: None)
            with host.passes.showing(looks):  # type: ignore[attr-defined]
                host.turns.hold(turn)
                logits = host.passes.output(host.passes.inputs(inputs))
        ids = inputs["input_ids"]
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise ValueError(
                f"steering_curves: {host.info.architecture} returns no logits over a vocabulary for each "
                "token: attach the model with its head (...ForCausalLM)."
            )
        losses = _losses(logits, ids)
        sinks = steerer.sinks().cpu()
        real = _real(inputs)
        predicted = real[:, :-1] & real[:, 1:] & valid[:, 1:]
        _, on = steerer.finish()
        found = tuple(scores[judge.name] for judge in self.judges)
        return _Seen(found, losses, predicted, valid & ~sinks, valid, torch.from_numpy(on))

    def _sizes(self, seen: Sequence[_Seen]) -> list[Tensor]:
        """Deviation of every score of each judge over unsteered tokens."""
        found = []
        for k in range(len(self.judges)):
            rows = torch.cat([one.scores[k][one.keep] for one in seen])
            found.append(rows.double().std(0).clamp_min(1e-12).float())
        return found

    def _scatter(self, clean: _Seen, rows: Sequence[int]) -> Bool[Tensor, "row column"]:
        """As many tokens of each passage as its gate opens, drawn from those that are no sinks."""
        found = torch.zeros_like(clean.keep)
        for at, row in enumerate(rows):
            free = clean.keep[at].nonzero()[:, 0].numpy()
            n = min(int(clean.steered[at].sum()), len(free))
            rng = np.random.default_rng([self.seed, row, 1])
            found[at, torch.from_numpy(rng.permutation(free)[:n].copy())] = True
        return found

    def _changes(
        self, before: _Seen, after: _Seen, sizes: Sequence[Tensor], touched: Tensor, *, aligned: bool = True
    ) -> dict[str, np.ndarray]:
        """Sums of each row; with `aligned` both are the same tokens."""
        found: dict[str, Any] = {
            TOUCHED: touched.sum(1),
            "valid": after.valid.sum(1),
            "tokens": after.keep.sum(1),
            NATS: (after.losses * after.predicted).sum(1) / after.predicted.sum(1).clamp_min(1)
            - (before.losses * before.predicted).sum(1) / before.predicted.sum(1).clamp_min(1),
            "predicted": after.predicted.sum(1),
        }
        # A mean of each passage is weighted by its tokens again.
        found[NATS] = found[NATS] * found["predicted"]
        for judge, size, old, new in zip(self.judges, sizes, before.scores, after.scores, strict=True):
            own = [one.scores_of(judge.concept) for one in (_Part(old, before.keep), _Part(new, after.keep))]
            scale = size[judge.concept]
            found[f"{HIGHEST}, {judge.name}"] = (own[1].highest() - own[0].highest()) / scale
            found[f"{MEAN}, {judge.name}"] = (own[1].mean() - own[0].mean()) / scale * after.keep.sum(1)
            rest = [k for k in range(len(size)) if k != judge.concept]
            if aligned:
                moved = ((new - old).abs() / size)[..., rest].mean(-1)
                found[f"{OTHERS}, {judge.name}"] = (moved * after.keep).sum(1)
            else:
                means = [_Part(one, keep).means() for one, keep in ((old, before.keep), (new, after.keep))]
                moved = ((means[1] - means[0]).abs() / size)[:, rest].mean(-1)
                found[f"{OTHERS}, {judge.name}"] = moved * after.keep.sum(1)
        return {name: np.asarray(value.double()) for name, value in found.items()}


@dataclass(frozen=True, eq=False)
class _Part:
    """Scores of the tokens that count."""

    scores: Tensor
    keep: Bool[Tensor, "row column"]

    def scores_of(self, concept: int) -> _Part:
        return _Part(self.scores[..., concept], self.keep)

    def highest(self) -> Tensor:
        """Of each row; NaN where no token counts."""
        top = self.scores.masked_fill(~self.keep, -torch.inf).amax(1)
        return torch.where(self.keep.any(1), top, torch.nan)

    def mean(self) -> Tensor:
        """Of each row; 0 where no token counts."""
        return (self.scores.masked_fill(~self.keep, 0).sum(1) / self.keep.sum(1).clamp_min(1)).float()

    def means(self) -> Tensor:
        """The same of every concept."""
        n = self.keep.sum(1).clamp_min(1)[:, None]
        return (self.scores * self.keep[..., None]).sum(1) / n


class _Sums:
    """Sums of passages by name, over arm and strength."""

    def __init__(self, arms: Sequence[str], strengths: Sequence[float], samples: int) -> None:
        self.arms, self.strengths, self.samples = list(arms), list(strengths), samples
        self.values: dict[str, np.ndarray] = {"arms": np.array(self.arms)}

    def add(self, arm: str, strength: float, rows: Sequence[int], sums: Mapping[str, np.ndarray]) -> None:
        """Those of some passages."""
        shape = (len(self.arms), len(self.strengths), self.samples)
        for name, value in sums.items():
            table = self.values.setdefault(name, np.full(shape, np.nan))
            table[self.arms.index(arm), self.strengths.index(strength), rows] = value


def _real(inputs: Mapping[str, Tensor]) -> Bool[Tensor, "row column"]:
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def _losses(logits: Tensor, ids: Tensor) -> Float[Tensor, "row target"]:
    """Of every token behind the first, row by row: a vocabulary of each token is large."""
    rows = [
        torch.nn.functional.cross_entropy(row[:-1].float(), own[1:].to(row.device), reduction="none")
        for row, own in zip(logits, ids, strict=True)
    ]
    return torch.stack(rows).cpu()
