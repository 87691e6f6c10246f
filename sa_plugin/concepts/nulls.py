"""Labels that mean nothing, and a bank's own estimator fitted to them: one null for every question.

| null | labels of the train tokens | what is left of the true ones |
|---|---|---|
| across | of whole samples, over the tokens in another order of the samples | their number and clustering |
| within | shuffled among the tokens of each sample | also which samples a concept is in |
| covariance | none: `sum_t e_t x_t` with normal e_t | the spread of the tokens alone |
| exchanged | the same as across, over the labelled tokens alone | also which tokens have a label |

A draw uses one permutation for all concepts and layers, so that directions of one draw belong
together. Tokens whose label is unknown keep that: the known labels of a concept are laid over its
known tokens, in the order of the permutation. Beyond *within*, a head knows tokens and not only topics.
*Covariance* is for prototypes alone: against separators such draws reject one in three permuted vectors
at p < .05. *Exchanged* asks whether it is this concept or any: only which of the concepts a labelled
token has is drawn.

Every draw is fitted by the bank's own kind, with its options and its normaliser:

- The controls of `fit` take one draw, collected in the train pass itself; the highest score of each
  sample under these vectors is the baseline "permuted MaxTok", and theory follows them as controls.
- `StreamedRefits` adds up many draws in one pass over the train split, for the ledger: prototypes
  and discriminants need means (and one second moment) alone, separators the rows.
- `StoredRefits` has the row of every kept token at hand, for the alignment: hundreds of draws.

What it does not show: the null is "these labels say nothing about the text". Directions of real
concepts differ from it as a class; a small p does not say that a head serves this concept and no
other. Nor does a permutation that lays the same labels over the tokens break any tie: images with a
concept at the same patches in each, say. Where that happens often the null is refused.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from sa_plugin._face import face_methods
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.concepts.kinds import KINDS, Kind
from sa_plugin.concepts.separator import TOL, NotConvergedWarning
from sa_plugin.concepts.train_statistics import (
    ROW_LIMITS,
    LayerStatistics,
    Rows,
    TrainStatistics,
    draw_rows,
    with_unknown,
)
from sa_plugin.host.protocol import Batch, Site
from sa_plugin.host.reducers import Keeping, as_given, keeping
from sa_plugin.passes.layout import Layout
from sa_plugin.passes.run import Job, Kept, Reducer

NULLS = ("across", "within", "covariance", "exchanged")
# Least cosine of a refit on the true labels with the bank's own vector.
_SAME = 0.99
# Largest share of permutations that may leave a concept's labels as they are.
_UNCHANGED = 0.1
# Permutations that this is estimated from.
_CHECKED = 20
# Least certified error of iterative refits, found and drawn alike: some .01 in fact, as the bound has a
# factor of five to spare, and no more than half the steps of a bank's own fit.
_TOL = 0.05
# Labels of one batch of refits; draws of one sum over the few labelled rows, and the share of labelled
# tokens below which that is faster than a product with all rows.
_CHUNK_VALUES = 1 << 25
_CHUNK_DRAWS = 256
_SPARSE = 0.03

_Bounds = Int[np.ndarray, " sample_and_one"]


def across(bounds: _Bounds, rng: np.random.Generator) -> Int[np.ndarray, " row"]:
    """For each row the row whose label it gets: whole samples in another order."""
    order = rng.permutation(len(bounds) - 1)
    lengths = np.diff(bounds)[order]
    # Row i of the result lies `i - start` rows into its sample, and the sample at its own bound.
    start = np.cumsum(lengths) - lengths
    rows: np.ndarray = np.arange(bounds[-1]) + np.repeat(bounds[:-1][order] - start, lengths)
    return rows


def within(bounds: _Bounds, rng: np.random.Generator) -> Int[np.ndarray, " row"]:
    """For each row the row whose label it gets: another one of its sample."""
    sample_of = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    # Sorting by sample first, at random inside it, shuffles every sample at once.
    return np.lexsort((rng.random(len(sample_of)), sample_of))


def exchanged(
    bounds: _Bounds, labelled: Bool[np.ndarray, " row"], rng: np.random.Generator
) -> Int[np.ndarray, " row"]:
    """For each row the row whose label it gets: labelled rows one of their own, others theirs."""
    rows = np.flatnonzero(labelled)
    order = np.arange(bounds[-1])
    # Among themselves the labelled rows are samples too, only shorter ones.
    order[rows] = rows[across(np.searchsorted(rows, bounds), rng)]
    return order


def permute_labels(
    labels: Bool[np.ndarray, "row concept"],
    bounds: _Bounds,
    rng: np.random.Generator,
    known: Bool[np.ndarray, "row concept"] | None = None,
) -> Bool[np.ndarray, "row concept"]:
    """Labels of whole samples laid over the rows in another order of the samples."""
    return relabelled(labels, across(bounds, rng), known)


def relabelled(
    labels: Bool[np.ndarray, "row concept"],
    order: Int[np.ndarray, " row"],
    known: Bool[np.ndarray, "row concept"] | None,
) -> Bool[np.ndarray, "row concept"]:
    """The labels that an order of the rows lays over them; unknown ones stay where they are.

    Args:
        labels: Of the rows.
        order: For each row the row whose label it gets.
        known: Which labels are known; None where all are.
    """
    if known is None:
        return np.asarray(labels[order])
    found = np.zeros_like(labels)
    for k, rows in enumerate(known.T):
        # Known labels follow one another as `order` has them, over the rows that are known.
        found[rows, k] = labels[order[rows[order]], k]
    return found


def permutations(
    bounds: _Bounds,
    null: str,
    draws: int,
    seed: int,
    labelled: Bool[np.ndarray, " token"] | None = None,
    before: int = 0,
) -> Int[np.ndarray, "draw token"]:
    """For each draw the token whose labels every token gets.

    Args:
        bounds: Where each sample of the train rows starts, and their number.
        null: "across", "within" or "exchanged".
        draws: How many.
        seed: Of the draws.
        labelled: Tokens that take part in "exchanged".
        before: Draws of the same stream that were made before: these are the next ones.
    """
    rng = np.random.default_rng(seed)
    if null == "exchanged":
        assert labelled is not None
        drawn = (exchanged(bounds, labelled, rng) for _ in range(before + draws))
    else:
        draw = across if null == "across" else within
        drawn = (draw(bounds, rng) for _ in range(before + draws))
    return np.stack([one.astype(np.int32) for one in islice(drawn, before, None)])


def isotropic(d_model: int, n: int, seed: int) -> list[Float[Tensor, " d_model"]]:
    """Unit vectors of no preferred direction, in float64: a null that needs no labels."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(d_model, generator=generator, dtype=torch.float64) for _ in range(n)]
    return [vector / vector.norm() for vector in drawn]


def refit_kind(bank: ConceptBank) -> Kind | None:
    """The kind that can be refitted on other labels; None for clusters and given vectors."""
    kind = KINDS.get(bank.kind)
    return kind if kind is not None and kind.supervised and bank.supervised else None


def refitted(
    bank: ConceptBank, statistics: LayerStatistics, n_concepts: int, least_tol: float = 0.0
) -> Float[Tensor, "draw concept d_model"]:
    """The bank's own estimator on the labels of all draws at once: more labels of the same rows.

    Args:
        bank: Whose estimator.
        statistics: With the labels of all draws.
        n_concepts: In a draw.
        least_tol: Of a kind with a tolerance, where the bank's own is smaller.
    """
    fit = KINDS[bank.kind].fit
    known = set(inspect.signature(fit).parameters) - {"statistics", "seed"}
    options = {name: value for name, value in bank.origin.options.items() if name in known}
    if "tol" in known:
        options["tol"] = max(least_tol, options.get("tol", TOL))
    fitted, _ = fit(statistics, seed=bank.origin.seed, **options)
    return fitted.float().cpu().reshape(-1, n_concepts, fitted.shape[-1])


@face_methods
class StreamedRefits:
    """Refits from one pass over the train split, which keeps sums, and rows for separators.

    Args:
        bank: Whose estimator.
        layout: Of the train samples, labels of the bank's concepts.
        layers: Block indices to refit at.
        draws: Number of permutations, across samples.
        seed: Of the permutations.
    """

    def __init__(
        self, bank: ConceptBank, layout: Layout, layers: Sequence[int], draws: int, seed: int
    ) -> None:
        self.bank, self.layout, self.layers, self.draws = bank, layout, tuple(layers), draws
        self.need = KINDS[bank.kind].need
        # Each draw has a generator of its own: the first ones stay when more are asked for.
        rngs = [np.random.default_rng([seed, k]) for k in range(draws)]
        self.labels = np.concatenate(
            [permute_labels(layout.labels, layout.bounds, rng, layout.known) for rng in rngs], axis=1
        )
        # Which labels are unknown no permutation changes: one column a concept serves all draws.
        self.unknown = None if layout.known is None else ~layout.known
        self.chosen = np.zeros(0, dtype=np.int64)
        if self.need == "rows":
            most = int(bank.origin.options.get("max_rows_per_class", ROW_LIMITS.per_class))
            known = None if layout.known is None else np.tile(layout.known, (1, draws))
            order = np.random.default_rng([seed, draws]).permutation(len(self.labels))
            self.chosen = draw_rows(self.labels, most, order, known)

    @property
    def job(self) -> Job:
        """For `passes.run_jobs`."""
        sites = {Site(layer, self.bank.hook_point) for layer in self.layers}
        return Job(sites, self._reducer, self.chosen, ROW_LIMITS.memory // max(1, len(self.layers)))

    def _reducer(self, batch: Batch) -> Reducer:
        rows = self.layout.rows(batch)
        labels = torch.from_numpy(self.labels[rows]).float()
        if self.unknown is not None:
            labels = torch.cat([labels, torch.from_numpy(self.unknown[rows]).float()], dim=1)
        stored = torch.from_numpy(np.isin(rows, self.chosen))

        def reduce(read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"]) -> Keeping:
            weight = keep[batch.valid.to(keep.device)].float()
            sums, kept_rows = {}, {}
            for layer in self.layers:
                raw = read[Site(layer, self.bank.hook_point)]
                valid = batch.valid.to(raw.device)
                # About the bank's mean, which is known here: what is summed has the size of the spread.
                flat = raw.float()[valid] - self.bank.token.mean[self.bank.index(layer)].to(raw.device)
                weighted = flat * weight.to(raw.device)[:, None]
                sums["positive", layer] = labels.to(raw.device).T @ weighted
                if self.need == "gram":
                    sums["gram", layer] = weighted.T @ flat
                if len(self.chosen):
                    kept_rows[layer] = as_given(raw, valid)[stored.to(raw.device)]
            return keeping(sums=sums, rows=kept_rows)

        return reduce

    def result(self, kept: Kept) -> tuple[VectorSet, ...]:
        """One set a draw, shaped like the bank's; layers that were not refitted are zero."""
        token = self.bank.token
        out = torch.zeros(self.draws, *token.vectors.shape)
        for layer in self.layers:
            by_draw = refitted(self.bank, self._statistics(layer, kept), len(self.bank.concepts))
            out[:, self.bank.index(layer)] = by_draw
        return tuple(VectorSet(v, token.mean, token.scale, token.scoring) for v in out)

    def _statistics(self, layer: int, kept: Kept) -> LayerStatistics:
        place = self.bank.index(layer)
        mean, scale = self.bank.token.mean[place].double(), float(self.bank.token.scale[place])
        n, counts = int(kept.keep.sum()), self.labels[kept.keep].sum(0)
        rows = labels = None
        if len(self.chosen):
            rows = Rows(kept.rows[layer], mean, scale)
            labels = self.labels[self.chosen][kept.keep[self.chosen]]
        sums = kept.sums["positive", layer]
        positive = sums[: len(counts)] / torch.from_numpy(counts).clamp_min(1)[:, None]
        gram = kept.sums["gram", layer] / n if self.need == "gram" else None
        # Sums are about the bank's mean, which therefore stands at zero; rows are as the model gave them.
        zero, number = torch.zeros_like(mean), torch.from_numpy(counts)
        found = LayerStatistics(n, zero, scale, number, positive, gram, rows, labels)
        if self.unknown is None:
            return found
        stored = self.unknown[self.chosen][kept.keep[self.chosen]]
        return with_unknown(found, sums[len(counts) :], self.unknown[kept.keep].sum(0), stored, self.draws)


@face_methods
class StoredRefits:
    """Refits from stored rows, layer by layer.

    Attributes:
        bank: Whose estimator.
        columns: Places of the concepts wanted.
        statistics: With rows of every kept train token.
    """

    def __init__(self, bank: ConceptBank, columns: Sequence[int], statistics: TrainStatistics) -> None:
        check_refit(bank, statistics)
        self.bank, self.statistics = bank, statistics
        self.columns = list(columns)

    def vectors(
        self, layer: int, order: Int[np.ndarray, "draw token"]
    ) -> Float[Tensor, "draw concept d_model"]:
        """Unit vectors of every draw at one layer; iterative fits to a looser tolerance than a bank's.

        Raises:
            ValueError: A draw left a concept without a direction.
        """
        one = self._at(layer)
        tokens = self.statistics.tokens
        labels = tokens.labels[:, self.columns]
        known = None if tokens.known is None else tokens.known[:, self.columns]
        if known is None and KINDS[self.bank.kind].need != "rows" and labels.mean() < _SPARSE:
            blocks = (order[k : k + _CHUNK_DRAWS] for k in range(0, len(order), _CHUNK_DRAWS))
            return unit(torch.cat([self._from_means(one, *_gathered(one, labels, each)) for each in blocks]))
        most = max(1, _CHUNK_VALUES // max(1, labels.size))
        with warnings.catch_warnings():
            # Whether refits converged is of no use to the reader, one by one.
            warnings.simplefilter("ignore", NotConvergedWarning)
            found = []
            for k in range(0, len(order), most):
                drawn = np.stack([relabelled(labels, one_draw, known) for one_draw in order[k : k + most]])
                found.append(self._fit(one, drawn))
        return unit(torch.cat(found))

    def directions(
        self, layer: int, weights: Float[Tensor, "draw token"]
    ) -> Float[Tensor, "draw concept d_model"]:
        """Unit directions with the covariance of tokens, the same for every concept."""
        rows = self._at(layer).rows
        assert rows is not None
        # Sum over tokens of e_t x_t, rows already centred and scaled as they are stored.
        total = sum((weights[:, part] @ x for part, x in rows.chunks()), torch.zeros(()))
        return unit(total[:, None].expand(-1, len(self.columns), -1))

    def _at(self, layer: int) -> LayerStatistics:
        return self.statistics.token[self.statistics.layers.index(layer)]

    def _fit(
        self, one: LayerStatistics, labels: Bool[np.ndarray, "draw token concept"]
    ) -> Float[Tensor, "draw concept d_model"]:
        flat = labels.transpose(1, 0, 2).reshape(labels.shape[1], -1)
        counts = torch.from_numpy(flat.sum(0))
        if KINDS[self.bank.kind].need == "rows":
            # A separator looks at rows and labels alone, but its statistics have means.
            unused = one.mean.expand(len(counts), -1)
            known = None if one.known is None else np.tile(one.known[:, self.columns], (1, len(labels)))
            doubtful = self._unknown(one, len(counts))
            changed = replace(
                one, positive_count=counts, positive_mean=unused, labels=flat, known=known, **doubtful
            )
        else:
            return self._from_means(one, _means(one, flat, counts), counts)
        return refitted(self.bank, changed, len(self.columns), _TOL)

    def _from_means(
        self, one: LayerStatistics, means: Float[Tensor, "label d_model"], counts: Int[Tensor, " label"]
    ) -> Float[Tensor, "draw concept d_model"]:
        none: dict[str, Any] = {"rows": None, "labels": None, "known": None}
        doubtful = self._unknown(one, len(counts))
        changed = replace(one, positive_count=counts, positive_mean=means, **none, **doubtful)
        return refitted(self.bank, changed, len(self.columns))

    def _unknown(self, one: LayerStatistics, n_labels: int) -> dict[str, Any]:
        """What is unknown of each column, for every draw of it: no permutation changes that."""
        if one.unknown_count is None or one.unknown_mean is None:
            return {}
        draws = n_labels // len(self.columns)
        count, mean = one.unknown_count[self.columns], one.unknown_mean[self.columns]
        return {"unknown_count": count.repeat(draws), "unknown_mean": mean.repeat(draws, 1)}


def _means(
    one: LayerStatistics, labels: Bool[np.ndarray, "token label"], counts: Int[Tensor, " label"]
) -> Float[Tensor, "label d_model"]:
    """Raw mean of each label's tokens, by one product with the normalised rows."""
    assert one.rows is not None
    y = torch.from_numpy(labels)
    parts = (y[part].T.float() @ x for part, x in one.rows.chunks())
    total = sum(parts, torch.zeros(()))
    # Rows are stored normalised; estimators take raw means.
    return (total.double() / counts[:, None]) * one.scale + one.mean.double()


def _gathered(
    one: LayerStatistics, labels: Bool[np.ndarray, "token concept"], order: Int[np.ndarray, "draw token"]
) -> tuple[Float[Tensor, "label d_model"], Int[Tensor, " label"]]:
    """The same means, and their counts, by adding up the few rows each draw labels."""
    assert one.rows is not None
    concept, token = np.nonzero(labels.T)
    # Where each token's labels went: the inverse of every permutation.
    went = np.empty_like(order)
    np.put_along_axis(went, order, np.arange(order.shape[1], dtype=order.dtype)[None], axis=1)
    counts = np.bincount(concept, minlength=labels.shape[1])
    # One bag a draw and concept: the rows that its labels went to.
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    bags = (np.arange(len(order))[:, None] * len(token) + starts).ravel()
    total = torch.nn.functional.embedding_bag(
        torch.from_numpy(went[:, token].ravel().astype(np.int64)),
        one.rows.take(slice(None)),
        torch.from_numpy(bags),
        mode="sum",
    )
    repeated = torch.from_numpy(np.tile(counts, len(order)))
    mean = total.double() / repeated[:, None]
    return mean * one.scale + one.mean.double(), repeated


def unit(vectors: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
    """Vectors of length one.

    Raises:
        ValueError: One has no length.
    """
    lengths = vectors.norm(dim=-1, keepdim=True)
    if not (lengths > 0).all():
        raise ValueError("a vector of the null is zero: a concept is constant over tokens.")
    out: Tensor = vectors / lengths
    return out


def check_kind(bank: ConceptBank) -> None:
    """Refuse a bank whose vectors come from no labels.

    Raises:
        ValueError: Its kind; the text says which would do.
    """
    refittable = tuple(name for name, kind in KINDS.items() if kind.supervised)
    if bank.kind not in refittable:
        raise ValueError(
            f"the null refits the bank's estimator on permuted labels; kind {bank.kind!r} has no "
            f"labels to permute. Use one of {', '.join(refittable)}."
        )


def check_refit(bank: ConceptBank, statistics: TrainStatistics) -> None:
    """Refuse a bank whose estimator cannot be run again on these statistics.

    Raises:
        ValueError: The text says what is missing and how to get it.
    """
    check_kind(bank)
    stored: Any = statistics.settings.get("stored_rows")
    if stored != len(statistics.tokens):
        raise ValueError(
            f"a refit needs the row of every train token, the statistics hold {stored:,} of "
            f"{len(statistics.tokens):,}: collect(..., need=('means', 'gram', 'rows'), "
            "limits=RowLimits(per_class=10**9))."
        )
    missing = sorted(set(bank.layers) - set(statistics.layers))
    if missing:
        raise ValueError(f"the statistics lack layers {missing}: they hold {statistics.layers}.")
    if bank.origin.data_hash != statistics.data_hash:
        raise ValueError("bank and statistics are of different data: fit from these statistics.")
    if KINDS[bank.kind].need == "gram" and statistics.token[0].gram is None:
        raise ValueError("kind 'lda' needs 'gram': collect(..., need=('means', 'gram', 'rows')).")


def check_reproduced(
    refitted: Float[Tensor, "concept d_model"], vectors: Float[Tensor, "concept d_model"], layer: int
) -> None:
    """Refuse when the true labels do not give the bank's vectors again.

    Raises:
        ValueError: A cosine is below .99: the null would be of another estimator.
    """
    cosine = torch.cosine_similarity(refitted, vectors, dim=-1)
    if not (cosine >= _SAME).all():
        raise ValueError(
            f"refitted on the true labels at block {layer}, a vector has cosine "
            f"{float(cosine.min()):.3f} with the bank's: the null would be of another estimator. "
            "Fit the bank from the statistics that are given here."
        )


def unchanged(refit: StoredRefits, order: Int[np.ndarray, "draw token"]) -> Float64[np.ndarray, " concept"]:
    """For each concept of a refit the share of draws that leave its labels as they are."""
    tokens = refit.statistics.tokens
    known = None if tokens.known is None else tokens.known[:, refit.columns]
    return _unchanged(tokens.labels[:, refit.columns], known, order)


def _unchanged(
    labels: Bool[np.ndarray, "token concept"],
    known: Bool[np.ndarray, "token concept"] | None,
    orders: Iterable[Int[np.ndarray, " token"]],
) -> Float64[np.ndarray, " concept"]:
    # Equal labels at every token: the permutation might as well not have been made.
    same = [(relabelled(labels, one, known) == labels).all(0) for one in orders]
    return np.asarray(np.mean(same, axis=0), dtype=np.float64)


def check_permutable(layout: Layout, concepts: Sequence[str], seed: int) -> None:
    """Refuse samples whose labels cannot be permuted across samples: too few, or all labelled alike.

    Args:
        layout: Of the train samples, labels of these concepts.
        concepts: Their names.
        seed: Of the permutations that are tried.

    Raises:
        ValueError: More than one permutation in ten leaves a concept's labels as they are.
    """
    rng = np.random.default_rng([seed, _CHECKED])
    orders = (across(layout.bounds, rng) for _ in range(_CHECKED))
    fix = "Take more samples, give permutations=0 for no control, or leave the concept out."
    _refuse_unchanged(_unchanged(layout.labels, layout.known, orders), concepts, "across", fix)


def _refuse_unchanged(
    same: Float64[np.ndarray, " concept"], concepts: Sequence[str], null: str, fix: str
) -> None:
    worst = int(same.argmax())
    if same[worst] > _UNCHANGED:
        raise ValueError(
            f"{same[worst]:.0%} of the permutations of null {null!r} leave the labels of "
            f"{concepts[worst]!r} as they are: its samples are too few or labelled alike, so this null "
            f"cannot break their tie to the tokens. {fix}"
        )


def exchangeable(refit: StoredRefits, seed: int) -> Bool[np.ndarray, " concept"]:
    """Which concepts of a refit the null "exchanged" can draw: not one that all labelled tokens have."""
    order = permutations(refit.statistics.tokens.bounds, "exchanged", 20, seed, _labelled(refit.statistics))
    return np.asarray(unchanged(refit, order) <= _UNCHANGED)


def _labelled(statistics: TrainStatistics) -> Bool[np.ndarray, " token"]:
    # A token whose label of some concept is unknown keeps what it has: exchanges would shift it.
    tokens = statistics.tokens
    found = tokens.labels.any(1)
    return np.asarray(found if tokens.known is None else found & tokens.known.all(1))


def null_vectors(
    refit: StoredRefits, null: str, layers: Sequence[int], draws: int, seed: int, before: int = 0
) -> Iterator[Float[Tensor, "draw concept d_model"]]:
    """Unit vectors of every draw, layer by layer.

    Args:
        refit: The estimator.
        null: One of `NULLS`.
        layers: Block indices.
        draws: How many.
        seed: Of the draws.
        before: Draws of the same stream that were made before: these are the next ones.

    Raises:
        ValueError: A null leaves a concept's labels as they are; for "exchanged" see `exchangeable`.
    """
    tokens = refit.statistics.tokens
    if null == "covariance":
        generator = torch.Generator().manual_seed(seed)
        # One draw at a time: the first ones stay when more are asked for.
        drawn = (torch.randn(len(tokens), generator=generator) for _ in range(before + draws))
        weights = torch.stack(list(islice(drawn, before, None)))
        yield from (refit.directions(layer, weights) for layer in layers)
        return
    order = permutations(tokens.bounds, null, draws, seed, _labelled(refit.statistics), before)
    if null != "exchanged":
        concepts = [refit.bank.concepts[k] for k in refit.columns]
        fix = "Use another of nulls, or leave the concept out."
        _refuse_unchanged(unchanged(refit, order), concepts, null, fix)
    yield from (refit.vectors(layer, order) for layer in layers)
