"""Poolings that are trained through: probes whose loss sees the number they make of a sample.

With h_t the activation of token t at one layer (less the train mean, over the train spread), a probe of a
concept has token logits z_t and pools them:

| probe | z_t | pooled |
|---|---|---|
| linear probe | w.h_t + b | max_t z_t, not trained through |
| softmax probe | w.h_t + b | sum_t p_t z_t, p = softmax(z / T), T learnt (arXiv 2506.10805) |
| attention probe | w.h_t + b | sum_t p_t z_t, p = softmax(q.h / sqrt(d)) (arXiv 2506.10805) |
| MultiMax | max_k w_k.h_t + b | sum_k max_t w_k.h_t + b, 1 or 4 vectors (after arXiv 2601.11516) |

Each is trained from either kind of label, so that what a pooling gives is not taken for what labels give:

    sample labels   cross-entropy of the pooled number; of the linear probe, of every token, which takes
                    its sample's label
    token labels    cross-entropy of every token whose label is known, and of the pooled number; of the
                    linear probe, of tokens alone

The linear probe from token labels is the separator (`concepts/separator.py`) by another optimiser: how
far the two differ is what the optimiser is worth. Positives weigh as much as negatives, 20 times at most.

A fifth of the train documents is held out of training. AdamW, batches of 32 samples; of every concept the
epoch is kept at which the AUROC of held-out samples was best, the last of equals, and so are learning
rate, weight decay, number of vectors and layer chosen, the first of equals. Training ends when no column
has got better for 8 epochs, after 40 at most. A concept without held-out samples of both classes
is judged on all train samples. Calibration is not read: it chooses the threshold, as for every method.

What it does not show: what a probe could do with more samples or a longer search. Probes of hundreds of
samples are the usual case; so are few held-out positives, and then early stopping is a coin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.data.concept_data import ConceptData, require_filled
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, Host, Site, layers_of
from sa_plugin.passes.layout import TokenTable, lay_out, token_table
from sa_plugin.passes.run import Job, Reducer, run_jobs
from sa_plugin.scores.score import check_origin
from sa_plugin.scores.table import ScoreTable
from sa_plugin.statistics.ranking import auroc_of

LABELS = ("samples", "tokens")
RATES = (1e-3, 1e-2)
DECAYS = (1e-2, 1.0)
HEADS = (1, 4)
EPOCHS, PATIENCE, BATCH = 40, 8, 32
HELD_OUT = 0.2
MOST = 20.0
_BETAS, _EPSILON = (0.9, 0.999), 1e-8

Parameters = dict[str, Tensor]
# Parameters, activations `[sample, token, d_model]` and which are tokens to token logits and pooled ones.
Probe = Callable[[Parameters, Tensor, Tensor], tuple[Tensor, Tensor]]


def linear_probe(p: Parameters, h: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Token logits, and the highest of each sample."""
    z = h @ p["w"][:, 0] + p["b"]
    return z, _absent(z, real).amax(1)


def softmax_probe(p: Parameters, h: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Token logits, and their mean, the higher the heavier."""
    z = h @ p["w"][:, 0] + p["b"]
    weight = _absent(z / p["log_temperature"].exp(), real).softmax(1)
    return z, (weight * z).sum(1)


def attention_probe(p: Parameters, h: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Token logits, and their mean under a query of its own."""
    z = h @ p["w"][:, 0] + p["b"]
    weight = _absent(h @ p["q"] / h.shape[-1] ** 0.5, real).softmax(1)
    return z, (weight * z).sum(1)


def multimax(p: Parameters, h: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The highest of several vectors at each token; the sum of each vector's highest token."""
    each = torch.einsum("ntd,dkc->ntkc", h, p["w"])
    pooled = each.masked_fill(~real[..., None, None], -torch.inf).amax(1).sum(1)
    return each.amax(2) + p["b"], pooled + p["b"]


PROBES: dict[str, Probe] = {
    "linear probe": linear_probe,
    "softmax probe": softmax_probe,
    "attention probe": attention_probe,
    "MultiMax": multimax,
}


def _absent(z: Tensor, real: Tensor) -> Tensor:
    """Padding as minus infinity."""
    return z.masked_fill(~real[..., None], -torch.inf)


@face
def train_poolings(
    host: Host,
    data: ConceptData,
    scores: ScoreTable,
    *,
    layers: int | Sequence[int] | None = None,
    probes: Sequence[str] = tuple(PROBES),
    labels: Sequence[str] = LABELS,
    seed: int = 0,
) -> ScoreTable:
    """Train probes through their pooling, and put what they say of each sample beside the scores.

    Costs one forward pass for each train sample and each sample of the scores, and on one core about a
    second of training for each probe, kind of label and layer with 300 train samples of 60 tokens
    (MultiMax five). Activations of `layers` are stored, four bytes a number (two where the model
    computes in two).

    Args:
        host: An attached model.
        data: Labelled samples; probes are trained on its train split.
        scores: `score(host, data, bank)`: whose samples and concepts, and how tokens are judged.
        layers: Block indices, of which each concept keeps the best on held-out train documents; by
            default the middle one of the scores.
        probes: Names in `PROBES`.
        labels: "samples", "tokens" or both.
        seed: Of the documents held out, first weights and batches.

    Returns:
        The table with one more method for each probe and kind of label, such as
        "MultiMax, sample labels": `calibrate` searches its threshold, `evaluate` shows it.

    Raises:
        ValueError: Unknown layer, probe or kind of label; a host of another model; fewer than two train
            documents.

    Example:
        >>> scores = train_poolings(host, data, scores, layers=[12])  # doctest: +SKIP
        >>> detector = calibrate(host, data, bank, scores=scores)  # doctest: +SKIP
        >>> print(detector.evaluate(data.test, scores=scores))  # doctest: +SKIP
    """
    for name in probes:
        require_known("probe", name, PROBES)
    for name in labels:
        require_known("labels", name, LABELS)
    check_origin(scores.bank, host)
    middle = scores.bank.layers[len(scores.bank.layers) // 2]
    blocks = layers_of(host.info, middle if layers is None else layers)
    read = _read(host, data, scores, blocks)
    part = _parts(read.tokens, seed)
    for probe, kind in product(probes, labels):
        fits = []
        for k, block in enumerate(blocks):
            for heads in HEADS if probe == "MultiMax" else (1,):
                fits.append(_fit(read, k, PROBES[probe], heads, kind, part, seed))
                fits[-1].record.update(layer=block, vectors=heads)
        # Of every concept the fit and setting with the best held-out AUROC, the first of equals.
        best = np.stack([fit.held_out for fit in fits]).argmax(0)
        values = np.stack([fit.values for fit in fits])[best, :, np.arange(len(best))].T
        record = {
            concept: {**fits[k].record, **fits[k].chosen[c]}
            for c, (concept, k) in enumerate(zip(scores.tokens.concepts, best, strict=True))
        }
        of_scores = values[len(data.train.samples) :]
        name = f"{probe}, {kind.removesuffix('s')} labels"
        settings = len(fits) * len(RATES) * len(DECAYS)
        scores = scores.with_statistic(name, of_scores, candidates=settings, record=record)
    return scores


@dataclass(frozen=True, eq=False)
class _Read:
    """Activations of the train split and of the samples that were scored, in this order."""

    tokens: TokenTable
    rows: Sequence[np.ndarray]

    def standard(self, layer: int, train: Int[np.ndarray, " sample"]) -> tuple[Tensor, float]:
        """Mean and spread of the train samples' tokens at one layer."""
        own = torch.from_numpy(np.asarray(self._float(layer, self.tokens.rows_of(train))))
        mean = own.double().mean(0)
        return mean.float(), float((own.double() - mean).square().mean().sqrt())

    def padded(
        self, layer: int, samples: Int[np.ndarray, " sample"], mean: Tensor, spread: float
    ) -> tuple[Float[Tensor, "sample token d_model"], Bool[Tensor, "sample token"], Int[np.ndarray, " row"]]:
        """Activations of some samples, which of them are tokens, and their rows."""
        bounds = self.tokens.bounds
        lengths = np.diff(bounds)[samples]
        real = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
        rows = self.tokens.rows_of(samples)
        h = torch.zeros((*real.shape, len(mean)))
        h[real] = (torch.from_numpy(self._float(layer, rows)) - mean) / spread
        return h, real, rows

    def _float(self, layer: int, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, "row d_model"]:
        found = np.asarray(self.rows[layer][rows])
        if found.dtype == np.int16:
            # bfloat16 is the upper half of a float32.
            return (found.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return found.astype(np.float32)


def _read(host: Host, data: ConceptData, scores: ScoreTable, blocks: Sequence[int]) -> _Read:
    require_filled(data.train)
    samples = (*data.train.samples, *scores.tokens.samples)
    split_of = ["train"] * len(data.train.samples) + list(scores.tokens.split_of)
    layout = lay_out(host, samples, scores.tokens.concepts)
    sites = [Site(block, scores.bank.hook_point) for block in blocks]

    def reducer(batch: Batch) -> Reducer:
        return partial(reducers.raw_rows, valid=batch.valid, sites=[(s.layer, str(s.point)) for s in sites])

    (kept,) = run_jobs(
        host, layout, [Job(sites, reducer)], scores.bank.sinks_on(host.info), description="activations"
    )
    tokens = token_table(layout, kept.keep, samples, split_of, scores.tokens.concepts)
    return _Read(tokens, [kept.rows[k] for k in range(len(sites))])


@dataclass(frozen=True, eq=False)
class _Part:
    """Which samples train, and which stop the training."""

    train: Int[np.ndarray, " train"]
    held_out: Int[np.ndarray, " held_out"]


def _parts(tokens: TokenTable, seed: int) -> _Part:
    of_train = np.flatnonzero(np.array(tokens.split_of) == "train")
    documents = np.array([tokens.samples[n].document for n in of_train])
    names = np.unique(documents)
    if len(names) < 2:
        raise ValueError(
            f"the train split comes from {len(names)} document: training is stopped on documents of "
            "their own, so give two or more (ConceptData(documents=...))."
        )
    drawn = np.random.default_rng([seed, 2]).permutation(names)[: max(1, round(HELD_OUT * len(names)))]
    out = np.isin(documents, drawn)
    return _Part(of_train[~out], of_train[out])


@dataclass(frozen=True, eq=False)
class _Fit:
    """One probe at one layer: of every concept the best epoch, rate and decay.

    Attributes:
        values: Pooled number of every sample.
        held_out: AUROC by which they were chosen.
        chosen: What was chosen.
        record: What all concepts share.
    """

    values: Float[np.ndarray, "sample concept"]
    held_out: Float[np.ndarray, " concept"]
    chosen: tuple[Mapping[str, float], ...]
    record: dict[str, Any]


def _fit(read: _Read, layer: int, probe: Probe, heads: int, kind: str, part: _Part, seed: int) -> _Fit:
    """All settings at once: a column is a setting of a concept, and columns share nothing but batches."""
    settings = list(product(RATES, DECAYS))
    concepts = len(read.tokens.concepts)
    rate, decay = (torch.tensor(one).repeat_interleave(concepts) for one in zip(*settings, strict=True))
    everything = np.concatenate([part.train, part.held_out])
    mean, spread = read.standard(layer, part.train)
    generator = torch.Generator().manual_seed(seed)
    now = _start(probe, len(mean), heads, len(rate), generator)
    best, area = {name: value.clone() for name, value in now.items()}, np.full(len(rate), -np.inf)
    epoch_of = np.zeros(len(rate), dtype=int)
    moments: dict[str, tuple[Tensor, Tensor]] = {
        n: (torch.zeros_like(v), torch.zeros_like(v)) for n, v in now.items()
    }
    judged = _Judge(read.tokens.sample_labels, part)
    step = risen = 0
    for epoch in range(1, EPOCHS + 1):
        for h, real, wanted in _batches(read, layer, part.train, mean, spread, generator, len(settings)):
            step += 1
            _step(now, moments, _gradient(probe, kind, now, h, real, wanted), step, rate, decay)
        pooled = _pool(read, layer, probe, now, everything, mean, spread)
        found = judged.areas(pooled, everything)
        # Ties go to the later epoch: AUROC of few held-out samples is 1 long before a probe is trained.
        better = found >= area
        risen = epoch if (found > area).any() else risen
        area[better], epoch_of[better] = found[better], epoch
        for name, value in now.items():
            best[name] = torch.where(torch.from_numpy(better), value, best[name])
        if epoch - risen >= PATIENCE:
            break
    table = area.reshape(len(settings), concepts)
    which = table.argmax(0)
    columns = which * concepts + np.arange(concepts)
    kept = {name: value[..., columns] for name, value in best.items()}
    values = _pool(read, layer, probe, kept, np.arange(read.tokens.n_samples), mean, spread)
    chosen = tuple(
        {"rate": settings[k][0], "decay": settings[k][1], "epoch": int(epoch_of[column])}
        for k, column in zip(which, columns, strict=True)
    )
    return _Fit(values, table.max(0), chosen, {"labels": kind, "held_out_samples": len(part.held_out)})


def _start(probe: Probe, width: int, heads: int, columns: int, generator: torch.Generator) -> Parameters:
    start = {"w": 0.01 * torch.randn((width, heads, columns), generator=generator), "b": torch.zeros(columns)}
    if probe is attention_probe:
        # A query of zeros starts at the mean.
        start["q"] = torch.zeros((width, columns))
    if probe is softmax_probe:
        start["log_temperature"] = torch.zeros(columns)
    return start


@dataclass(frozen=True, eq=False)
class _Wanted:
    """Labels of a batch, and how much each counts."""

    samples: Float[Tensor, "sample column"]
    sample_weight: Float[Tensor, "sample column"]
    tokens: Float[Tensor, "token column"]
    token_weight: Float[Tensor, "token column"]


def _batches(
    read: _Read,
    layer: int,
    train: Int[np.ndarray, " sample"],
    mean: Tensor,
    spread: float,
    generator: torch.Generator,
    settings: int,
) -> Iterator[tuple[Tensor, Tensor, _Wanted]]:
    """Batches of samples of like length, in random order."""
    tokens = read.tokens
    labels, negative = tokens.sample_labels, tokens.negative
    rows = tokens.rows_of(train)
    heavy_sample, heavy_token = (
        np.minimum(off.sum(0) / np.maximum(on.sum(0), 1), MOST)
        for on, off in ((labels[train], ~labels[train]), (tokens.labels[rows], negative[rows]))
    )
    order = train[np.argsort(np.diff(tokens.bounds)[train], kind="stable")]
    parts = [order[k : k + BATCH] for k in range(0, len(order), BATCH)]

    def tiled(value: np.ndarray) -> Tensor:
        return torch.from_numpy(np.tile(value.astype(np.float32), settings))

    for k in torch.randperm(len(parts), generator=generator).tolist():
        own = parts[k]
        h, real, at = read.padded(layer, own, mean, spread)
        on, known = tokens.labels[at], tokens.labels[at] | negative[at]
        wanted = _Wanted(
            tiled(labels[own]),
            tiled(np.where(labels[own], heavy_sample, 1.0)),
            tiled(on),
            tiled(np.where(on, heavy_token, 1.0) * known),
        )
        yield h, real, wanted


def _gradient(
    probe: Probe, kind: str, now: Parameters, h: Tensor, real: Tensor, wanted: _Wanted
) -> list[Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in now.items()}
    z, pooled = probe(leaves, h, real)
    if probe is linear_probe and kind == "samples":
        own = real.sum(1)
        y, weight = (one.repeat_interleave(own, 0) for one in (wanted.samples, wanted.sample_weight))
        loss = binary_cross_entropy_with_logits(z[real], y, weight, reduction="none").mean(0).sum()
    else:
        loss = torch.zeros(())
        if probe is not linear_probe:
            loss = binary_cross_entropy_with_logits(
                pooled, wanted.samples, wanted.sample_weight, reduction="none"
            )
            loss = loss.mean(0).sum()
        if kind == "tokens":
            each = binary_cross_entropy_with_logits(
                z[real], wanted.tokens, wanted.token_weight, reduction="none"
            )
            loss = loss + each.mean(0).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, now.values(), strict=True)]


def _step(
    now: Parameters,
    moments: Mapping[str, tuple[Tensor, Tensor]],
    gradients: Sequence[Tensor],
    step: int,
    rate: Tensor,
    decay: Tensor,
) -> None:
    """AdamW (Loshchilov and Hutter 2019), every column at its own rate and decay."""
    for (name, value), gradient in zip(now.items(), gradients, strict=True):
        first, second = moments[name]
        first.lerp_(gradient, 1 - _BETAS[0])
        second.lerp_(gradient.square(), 1 - _BETAS[1])
        ahead = first / (1 - _BETAS[0] ** step)
        scale = (second / (1 - _BETAS[1] ** step)).sqrt() + _EPSILON
        value.mul_(1 - rate * decay).sub_(rate * ahead / scale)


def _pool(
    read: _Read,
    layer: int,
    probe: Probe,
    parameters: Parameters,
    samples: Int[np.ndarray, " sample"],
    mean: Tensor,
    spread: float,
) -> Float[np.ndarray, "sample column"]:
    order = np.argsort(np.diff(read.tokens.bounds)[samples], kind="stable")
    out = np.empty((len(samples), parameters["b"].shape[-1]), dtype=np.float32)
    for k in range(0, len(order), BATCH):
        at = order[k : k + BATCH]
        h, real, _ = read.padded(layer, samples[at], mean, spread)
        out[at] = probe(parameters, h, real)[1].numpy()
    return out


class _Judge:
    """AUROC of held-out samples by column; of all train samples where a concept lacks a class there."""

    def __init__(self, labels: Bool[np.ndarray, "sample concept"], part: _Part) -> None:
        self.labels = labels
        out = labels[part.held_out]
        whole = ~(out.any(0) & ~out.all(0))
        self.skipped = np.where(whole, 0, len(part.train))

    def areas(
        self, pooled: Float[np.ndarray, "sample column"], samples: Int[np.ndarray, " sample"]
    ) -> Float[np.ndarray, " column"]:
        """Of train samples first, then of those held out."""
        concepts = self.labels.shape[1]
        found = []
        for column, values in enumerate(pooled.T):
            c = column % concepts
            start = self.skipped[c]
            y = self.labels[samples[start:], c]
            found.append(auroc_of(values[start:][y], values[start:][~y]))
        # A concept without a positive train sample has none: any epoch is as good.
        return np.asarray(np.nan_to_num(np.array(found)))
