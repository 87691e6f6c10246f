"""A pass whose scores are linear in the activations, run without the activations.

A pass hands a host one function of what is read (`reducers.reduce`, bound to its jobs). Of every score
`x . v` with `x = (h - mean) / scale` the engine can be asked for,

    score = (v / scale) . h - v . mean / scale,

so the jobs' vectors become columns of what the engine projects, and the jobs run as they are on these
columns: maxima, histograms, means over tokens (the score of a mean is the mean of the scores). A
cosine divides by |h - mean| and latents of an SAE are functions of all of h: there the residual itself
has to come.

Which tokens are attention sinks is a question of norms, which no direction tells. For a vector h and
K random directions g with independent normal entries, the sum of (g . h)^2 is |h|^2 times chi-squared
with K degrees: with K = 64 it lies within a factor 4 of its mean but for 1.5e-9 of draws (Chernoff), so
norms within a factor 2. A token is a sink above ten times its text's median norm. A text with a token
between five and twenty times the median by these sketches is read again, activations and all, and its
norms are exact. Attention sinks are a hundred times the median, other tokens about once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, Reduce

Place = tuple[int, str]
SKETCH = 64
# Norms by sketches are right within this factor.
DOUBT = 2.0
SCORING: Mapping[Any, str] = {
    reducers.token_scores: "banks",
    reducers.maxima: "vectors",
    reducers.histogram: "vectors",
    reducers.above: "columns",
}


class Projected(NamedTuple):
    """What is projected at one place: `h @ vectors.T + bias`."""

    vectors: Tensor
    bias: Tensor


@dataclass(eq=False)
class EnginePass:
    """What one pass over a batch asks of the engine.

    Attributes:
        d_model: Width of the residual.
        batch: What is run.
        valid, sinks, frozen: As for `reducers.reduce`.
        columns: What is projected, by place, as they are added.
        whole: Places whose residual has to come.
        jobs: On what `read` of this plan returns.
        sketched: Where the sketches of each layer that decides on sinks begin.
    """

    d_model: int
    batch: Batch
    valid: Tensor
    sinks: tuple[Sequence[int], str, bool] | None
    frozen: Tensor | None
    columns: dict[Place, list[Projected]] = field(default_factory=dict)
    whole: set[Place] = field(default_factory=set)
    jobs: list[Callable[..., Any]] = field(default_factory=list)
    sketched: dict[int, slice] = field(default_factory=dict)

    @classmethod
    def of(cls, reduce: partial[Any], batch: Batch, d_model: int) -> EnginePass:
        """The plan of a bound `reducers.reduce`.

        Raises:
            ValueError: A job needs activations.
        """
        asked = dict(reduce.keywords)
        jobs = asked.pop("jobs")
        plan = cls(d_model, batch, **asked)
        plan.jobs = [plan._job(job) for job in jobs]
        if plan.frozen is None and plan.sinks is not None and plan.sinks[1] == "drop":
            generator = torch.Generator().manual_seed(0)
            directions = torch.randn(SKETCH, d_model, generator=generator)
            for layer in plan.sinks[0]:
                if (layer, "resid_post") not in plan.whole:
                    plan.sketched[layer] = plan._add((layer, "resid_post"), directions, torch.zeros(SKETCH))
        return plan

    def projected(self) -> dict[Place, Projected]:
        """All directions of each place."""
        return {
            place: Projected(
                torch.cat([one.vectors for one in found]), torch.cat([one.bias for one in found])
            )
            for place, found in self.columns.items()
        }

    def _add(self, place: Place, vectors: Tensor, bias: Tensor) -> slice:
        known = self.columns.setdefault(place, [])
        start = sum(len(one.bias) for one in known)
        known.append(Projected(vectors, bias))
        return slice(start, start + len(bias))

    def _job(self, job: Any) -> Callable[..., Any]:
        asks = SCORING.get(getattr(job, "func", None))
        if asks is None:
            name = getattr(getattr(job, "func", job), "__name__", type(job).__name__)
            raise ValueError(
                f"interp-engine's host hands out scores, and {name!r} needs the activations behind them. "
                "Here score, calibrate, find, detect, localise, evaluate, sweep and scan work. For the rest "
                "(fit, ledgers, objectives, edits) attach the same model by TransformerLens or nnsight: "
                "weights have one fingerprint on every host, so a bank fitted there scores here."
            )
        own = job.keywords
        if asks == "vectors":
            found = self._vectors(own["vectors"], own["layers"], own["point"])
            return partial(job.func, **own | {"vectors": found})
        if asks == "columns":
            single = tuple(
                (layer, point, self._vectors(one, [layer], point)) for layer, point, one in own["banks"]
            )
            return partial(job.func, **own | {"banks": single})
        banks = tuple(
            (layers, point, {name: self._vectors(one, layers, point) for name, one in sets.items()})
            for layers, point, sets in own["banks"]
        )
        return partial(job.func, **own | {"banks": banks})

    def _vectors(self, vectors: reducers.Vectors, layers: Sequence[int], point: str) -> reducers.Vectors:
        """Vectors as a function of a place's columns, the residual last where it has to come."""
        if callable(vectors) or vectors[3]:
            self.whole.update((layer, point) for layer in layers)
            return lambda index, read: reducers.score_rows(vectors, index, read[..., -self.d_model :])
        at = [
            self._add((layer, point), *reducers.direction_rows(vectors, k)) for k, layer in enumerate(layers)
        ]
        return lambda index, read: read[..., at[index]]

    def rows(self) -> list[list[int]]:
        """The token ids of each sample, without padding."""
        ids, mask = self.batch.inputs["input_ids"], self.batch.inputs["attention_mask"].bool()
        return [row[own].tolist() for row, own in zip(ids, mask, strict=True)]

    def laid_out(self, rows: Sequence[Tensor]) -> Tensor:
        """What came of each sample `[token, width]` as `[batch, token, width]`, zero at padding."""
        mask = self.batch.inputs["attention_mask"].bool()
        out = torch.zeros(*mask.shape, rows[0].shape[-1])
        out[mask] = torch.cat(list(rows)).float()
        return out

    def norms(self, read: Mapping[Place, Tensor]) -> Tensor:
        """Norms `[layer, batch, token]` where sinks are decided, up to a factor of each layer."""
        assert self.sinks is not None
        found = []
        for layer in self.sinks[0]:
            part = self.sketched.get(layer, slice(-self.d_model, None))
            found.append(read[layer, "resid_post"][..., part].norm(dim=-1))
        return torch.stack(found)

    def doubtful(self, norms: Tensor) -> list[int]:
        """Samples with a token that may be a sink or not, by sketches."""
        valid = self.valid
        masked = norms.masked_fill(~valid, torch.nan)
        ratio = masked / masked.nanmedian(dim=-1, keepdim=True).values / reducers.SINK_FACTOR
        near = (ratio > 1 / DOUBT) & (ratio < DOUBT)
        return near.any(0).any(-1).nonzero().flatten().tolist() if self.sketched else []

    def kept(self, read: Mapping[Place, Tensor], norms: Tensor | None) -> dict[Any, Tensor]:
        """What the jobs keep, with norms of `self.norms` where sinks are dropped."""
        frozen = self.frozen
        if frozen is None:
            assert self.sinks is not None
            frozen = self.valid
            if norms is not None:
                layers = self.sinks[0]
                lengths = {(layer, "resid_post"): norms[k][..., None] for k, layer in enumerate(layers)}
                frozen = reducers.evidence(lengths, self.valid, *self.sinks)
        return reducers.reduce(read, valid=self.valid, sinks=None, frozen=frozen, jobs=self.jobs)


def is_pass(reduce: Reduce) -> bool:
    """Whether this is the function of a walk over samples, not of a check."""
    return isinstance(reduce, partial) and reduce.func is reducers.reduce
