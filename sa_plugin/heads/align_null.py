"""The null of alignment: the same estimator on labels that mean nothing, and p-values against it.

*across*: labels of whole samples laid over the tokens in another order of the samples. Their number
and their clustering stay, their tie to the text is broken. *within*: labels shuffled among the
tokens of each sample: what is left is which samples a concept is in, so a head aligned beyond this
null knows tokens, not only topics. *covariance*: random directions with the covariance of tokens
(sum_t e_t x_t with normal e_t), for prototypes alone: against separators such draws reject one in
three permuted vectors at p < .05.

A draw uses one permutation at all layers and for all concepts, so that input and output directions
of a block belong together.

p-values go below what counting draws can reach, by the draws' own tail. *Exponential*: let u be the
(k + 1)-th largest of D draws and x_1 .. x_k the excesses of the k larger ones. If the null's upper
tail beyond u is exponential, the excesses are independent and exponential (Rényi), and a new draw
exceeds t > u with probability

    p = (k + 1) / (D + 1) * (1 + (t - u) / sum x)^-k

exactly, the uncertain rate included: no plug-in estimate, no correction. Up to u it is the count
(1 + #{draws >= t}) / (D + 1). Lighter tails (normal, bounded) make p too large, which is safe;
heavier ones too small. Bilinear forms of directions of unit length are bounded, and sums of
products of nearly normal variables have exponential tails at the most. Whether it held is measured
on the draws themselves: `calibration`. *Empirical*: the count alone, for which a test at level q
among m needs 20 m / q draws or more. The idea of a fitted tail: Knijnenburg and others,
Bioinformatics 25 (2009), i161.

What it does not show: the null is "these labels say nothing about the text". Directions of real
concepts differ from it as a class; a small p does not say that a head serves this concept and no
other. Nor does a permutation that lays the same labels over the tokens break any tie: images with a
concept at the same patches in each, say. Where that happens often the null is refused.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.collect import LayerStatistics, TrainStatistics
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.concepts.separator import NotConvergedWarning
from sa_plugin.passes.layout import TokenTable

NULLS = ("across", "within", "covariance")
TAILS = ("exponential", "empirical")
LEVELS = (0.05, 0.01, 1e-3, 1e-4, 1e-5)
"""At which `calibration` is measured."""

_REFIT_KINDS = ("prototype", "lda", "separator", "separator_adam")
# Least cosine of a refit on the true labels with the bank's own vector.
_SAME = 0.99
# Largest share of permutations that may leave a concept's labels as they are.
_UNCHANGED = 0.1
_LEAST_DRAWS, _LEAST_EXCESSES = 60, 25
# Labels of one batch of refits; and the share of labelled tokens below which adding up the few
# labelled rows is faster than a product with all.
_CHUNK_VALUES = 1 << 25
SPARSE = 0.03


def permutations(tokens: TokenTable, null: str, draws: int, seed: int) -> Int[np.ndarray, "draw token"]:
    """For each draw the token whose labels every token gets.

    Args:
        tokens: The train rows.
        null: "across" or "within".
        draws: How many.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    n, bounds = tokens.n_samples, tokens.bounds
    rows = np.arange(len(tokens), dtype=np.int32)
    parts = [rows[bounds[k] : bounds[k + 1]] for k in range(n)]
    out = np.empty((draws, len(tokens)), dtype=np.int32)
    for one in out:
        if null == "across":
            one[:] = np.concatenate([parts[k] for k in rng.permutation(n)])
        else:
            # Sorting by sample first, at random inside it, shuffles every sample at once.
            one[:] = np.lexsort((rng.random(len(tokens)), tokens.sample_of))
    return out


class Refit:
    """Refits a bank's estimator, layer by layer.

    Attributes:
        bank: Whose estimator.
        columns: Places of the concepts wanted.
        statistics: With rows of every kept train token.
    """

    def __init__(self, bank: ConceptBank, columns: Sequence[int], statistics: TrainStatistics) -> None:
        _check_refit(bank, statistics)
        self.bank, self.statistics = bank, statistics
        self.columns = list(columns)
        self.kind = kind_of(bank.kind)
        known = inspect.signature(self.kind.fit).parameters
        self.options: Mapping[str, Any] = {
            name: value
            for name, value in bank.origin.options.items()
            if name in known and name not in ("statistics", "seed")
        }

    def vectors(
        self, layer: int, order: Int[np.ndarray, "draw token"]
    ) -> Float[Tensor, "draw concept d_model"]:
        """Unit vectors of every draw at one layer.

        Raises:
            ValueError: A draw left a concept without a direction.
        """
        one = self._at(layer)
        labels = self.statistics.tokens.labels[:, self.columns]
        if self.kind.need != "rows" and labels.mean() < SPARSE:
            return unit(self._from_means(one, *_gathered(one, labels, order)))
        most = max(1, _CHUNK_VALUES // max(1, labels.size))
        with warnings.catch_warnings():
            # Whether refits converged is of no use to the reader, one by one.
            warnings.simplefilter("ignore", NotConvergedWarning)
            found = [self._fit(one, labels[order[k : k + most]]) for k in range(0, len(order), most)]
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
        # Every draw of every concept is one more label of the same rows: one fit for all.
        flat = labels.transpose(1, 0, 2).reshape(labels.shape[1], -1)
        counts = torch.from_numpy(flat.sum(0))
        if self.kind.need == "rows":
            # A separator looks at rows and labels alone, but its statistics have means.
            unused = one.mean.expand(len(counts), -1)
            changed = replace(one, positive_count=counts, positive_mean=unused, labels=flat)
        else:
            return self._from_means(one, _means(one, flat, counts), counts)
        return self._run(changed)

    def _from_means(
        self, one: LayerStatistics, means: Float[Tensor, "label d_model"], counts: Int[Tensor, " label"]
    ) -> Float[Tensor, "draw concept d_model"]:
        return self._run(replace(one, positive_count=counts, positive_mean=means, rows=None, labels=None))

    def _run(self, changed: LayerStatistics) -> Float[Tensor, "draw concept d_model"]:
        fitted, _ = self.kind.fit(changed, seed=self.bank.origin.seed, **self.options)
        return fitted.float().cpu().reshape(-1, len(self.columns), fitted.shape[-1])


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
    if bank.kind not in _REFIT_KINDS:
        raise ValueError(
            f"the null refits the bank's estimator on permuted labels; kind {bank.kind!r} has no "
            f"labels to permute. Use one of {', '.join(_REFIT_KINDS)}."
        )


def _check_refit(bank: ConceptBank, statistics: TrainStatistics) -> None:
    """Refuse a bank whose estimator cannot be run again on these statistics.

    Raises:
        ValueError: The text says what is missing and how to get it.
    """
    check_kind(bank)
    stored: Any = statistics.settings.get("stored_rows")
    if stored != len(statistics.tokens):
        raise ValueError(
            f"the null needs the row of every train token, the statistics hold {stored:,} of "
            f"{len(statistics.tokens):,}: collect(..., need=('means', 'gram', 'rows'), "
            "max_rows_per_class=10**9)."
        )
    missing = sorted(set(bank.layers) - set(statistics.layers))
    if missing:
        raise ValueError(f"the statistics lack layers {missing}: they hold {statistics.layers}.")
    if bank.origin.data_hash != statistics.data_hash:
        raise ValueError("bank and statistics are of different data: fit from these statistics.")
    if kind_of(bank.kind).need == "gram" and statistics.token[0].gram is None:
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


def _check_permuted(
    labels: Bool[np.ndarray, "token concept"],
    order: Int[np.ndarray, "draw token"],
    null: str,
    concepts: Sequence[str],
) -> None:
    """Refuse permutations that leave labels as they were.

    Raises:
        ValueError: More than one draw in ten does, for some concept.
    """
    # Equal labels at every token: the permutation might as well not have been made.
    same = np.array([(labels[one] == labels).all(0) for one in order]).mean(0)
    worst = int(same.argmax())
    if same[worst] > _UNCHANGED:
        raise ValueError(
            f"{same[worst]:.0%} of the permutations of null {null!r} leave the labels of "
            f"{concepts[worst]!r} as they are: its samples are labelled alike, so this null cannot "
            "break their tie to the tokens. Use another of nulls, or leave the concept out."
        )


def null_vectors(
    refit: Refit, null: str, layers: Sequence[int], draws: int, seed: int
) -> Iterator[Float[Tensor, "draw concept d_model"]]:
    """Unit vectors of every draw, layer by layer."""
    tokens = refit.statistics.tokens
    if null == "covariance":
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(draws, len(tokens), generator=generator)
        yield from (refit.directions(layer, weights) for layer in layers)
        return
    order = permutations(tokens, null, draws, seed)
    names = [refit.bank.concepts[k] for k in refit.columns]
    _check_permuted(tokens.labels[:, refit.columns], order, null, names)
    yield from (refit.vectors(layer, order) for layer in layers)


def check_draws(tail: str, refits: int, tests: int, q: float) -> None:
    """Refuse too few draws of a null.

    Raises:
        ValueError: Refits below what the tail needs; the text says how many.
    """
    if refits < _LEAST_DRAWS:
        raise ValueError(f"refits is {refits}: the null needs {_LEAST_DRAWS} at least, such as 400.")
    needed = int(np.ceil(20 * tests / q))
    if tail == "empirical" and refits < needed:
        raise ValueError(
            f"refits is {refits}: counting draws needs 20 m / q = {needed:,} of them for {tests:,} "
            f"tests at level {q}. Ask for as many, for fewer concepts or layers, or for "
            "tail='exponential'."
        )


def p_values(
    observed: Float[np.ndarray, "*cell"], draws: Float[np.ndarray, "draw ..."], tail: str = "exponential"
) -> Float64[np.ndarray, "*cell"]:
    """One-sided: small where the observed value lies above its null.

    Args:
        observed: One value a cell.
        draws: Null draws of each cell.
        tail: "exponential" or "empirical".
    """
    counted = (1.0 + (draws >= observed).sum(0)) / (len(draws) + 1)
    if tail == "empirical":
        return np.asarray(counted, dtype=np.float64)
    fitted = _beyond(np.asarray(observed), *_upper(draws), len(draws))
    return np.asarray(np.where(np.isnan(fitted), counted, fitted))


def _upper(draws: Float[np.ndarray, "draw ..."]) -> tuple[np.ndarray, np.ndarray]:
    """The (k + 1)-th largest draw, and the sum of the excesses over it."""
    # A partition is enough: the largest k + 1, the smallest of them first.
    first = len(draws) - _excesses(len(draws)) - 1
    top = np.partition(draws.astype(np.float64), first, axis=0)[first:]
    return top[0], (top[1:] - top[0]).sum(0)


def _beyond(observed: np.ndarray, u: np.ndarray, total: np.ndarray, draws: int) -> np.ndarray:
    """The extrapolated p-value; NaN up to u, and where all draws are alike."""
    k = _excesses(draws)
    # (t - u) / sum x of the formula above; undefined up to u, and where no draw exceeds it.
    beyond = observed - u
    ratio = np.divide(beyond, total, out=np.full(beyond.shape, np.nan), where=(beyond > 0) & (total > 0))
    return np.asarray((k + 1) / (draws + 1) * (1 + ratio) ** -float(k))


def _excesses(draws: int) -> int:
    """How many of the draws the tail is fitted on: a tenth, 25 at least."""
    return max(_LEAST_EXCESSES, draws // 10)


def calibration(draws: Float[np.ndarray, "draw ..."], tail: str) -> dict[str, float]:
    """How often draws held out of the fit fall below each level; at most the level is right.

    Half of the draws make the null, the other half are tested against it, cell by cell.

    Args:
        draws: Null draws of each cell.
        tail: "exponential" or "empirical".
    """
    half = len(draws) // 2
    if half < _LEAST_DRAWS // 2:
        return {}
    fitted, held_out = draws[:half], draws[half : 2 * half]
    p = np.stack([(1.0 + (fitted >= one).sum(0)) / (half + 1) for one in held_out])
    if tail != "empirical":
        beyond = _beyond(held_out, *_upper(fitted), half)
        p = np.where(np.isnan(beyond), p, beyond)
    return {f"{level:g}": float((p <= level).mean()) for level in LEVELS}
