"""A bank's own estimator on the train split without some of its documents.

Source documents are dealt into groups of one size, up to one; each group is left out in turn and the
estimator run again on the rows of all others, at every layer, with the bank's options. What a number
does without each group gives its standard error over train documents (a grouped jackknife, as
`sa_plugin.statistics.interval` has it): with G groups and T_g the number without group g

    s^2 = (G - 1) / G * sum_g (T_g - T)^2

so G fits say how much another train split would move it, and nothing is fitted on a half or a fifth of
the documents, which would be a worse probe. Iterative separators cost G fits, prototypes next to none;
no forward pass is made.

What it does not show: another calibration split, or other hyperparameters. The normaliser's scale is
left as it is; cosines do not see it, and a gap in deviations of scores does not either.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int

from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.concepts.kinds import KINDS
from sa_plugin.concepts.nulls import check_refit, refitted
from sa_plugin.concepts.separator import NotConvergedWarning
from sa_plugin.concepts.train_statistics import LayerStatistics, Rows, TrainStatistics


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The bank without each group of train documents.

    Attributes:
        banks: One a group; a concept that a group leaves without a class keeps the bank's own vector.
        defined: Which vectors of which group are refits.
        carried: In-concept train tokens of each group.
    """

    banks: tuple[ConceptBank, ...]
    defined: Bool[np.ndarray, "group concept"]
    carried: Float64[np.ndarray, "concept group"]


def leave_out(bank: ConceptBank, statistics: TrainStatistics, groups: int, seed: int = 0) -> LeftOut:
    """Refit a bank without each group of train documents.

    Args:
        bank: Whose estimator; its units are its concepts.
        statistics: With the row of every kept train token.
        groups: Of documents; fewer where there are fewer documents.
        seed: Of the deal.

    Raises:
        ValueError: The estimator cannot be run again on these statistics, or there are fewer than three
            documents; the text says what is missing.
    """
    check_refit(bank, statistics)
    tokens = statistics.tokens
    _, document = np.unique([sample.document for sample in tokens.samples], return_inverse=True)
    n = int(document.max(initial=-1)) + 1
    groups = min(groups, n)
    if groups < 3:
        raise ValueError(
            f"refits leave out groups of train documents, and there are {groups}: three are needed."
        )
    group = (np.random.default_rng(seed).permutation(n) % groups)[document][tokens.sample_of]
    carried = np.array([tokens.labels[group == g].sum(0) for g in range(groups)], dtype=np.float64).T
    outside = ~tokens.labels if tokens.known is None else tokens.known & ~tokens.labels
    both = ((of[group != g].any(0) for of in (tokens.labels, outside)) for g in range(groups))
    defined = np.array([inside & out for inside, out in both])
    found = [_without(bank, statistics, group == g, defined[g]) for g in range(groups)]
    return LeftOut(tuple(found), defined, carried)


def _without(
    bank: ConceptBank,
    statistics: TrainStatistics,
    out: Bool[np.ndarray, " token"],
    fitted: Bool[np.ndarray, " concept"],
) -> ConceptBank:
    """The bank without some train tokens, refitted where a concept keeps both classes."""
    vectors, means = bank.token.vectors.clone(), []
    columns = np.flatnonzero(fitted)
    for at, layer in enumerate(bank.layers):
        one = statistics.token[statistics.layers.index(layer)]
        rest = _rest(one, out, columns, rows=KINDS[bank.kind].need == "rows")
        means.append(rest.mean.float())
        with warnings.catch_warnings():
            # Whether refits converged is of no use to the reader, one by one.
            warnings.simplefilter("ignore", NotConvergedWarning)
            vectors[at, columns] = refitted(bank, rest, len(columns))[0]
    token = VectorSet(vectors, torch.stack(means), bank.token.scale, bank.token.scoring)
    return replace(bank, token=token, permuted=None, pooled=None, cls=None, canary=None)


def _rest(
    one: LayerStatistics, out: Bool[np.ndarray, " token"], columns: Int[np.ndarray, " concept"], *, rows: bool
) -> LayerStatistics:
    """Statistics of the tokens that stay, of some concepts, by taking the others off the sums."""
    assert one.rows is not None
    assert one.labels is not None
    gone = one.rows.take(np.flatnonzero(out)).double() * one.scale + one.mean.double()
    n, n_out = one.n, int(out.sum())
    mean = (one.mean.double() * n - gone.sum(0)) / (n - n_out)
    labels = one.labels[:, columns]

    def taken_off(count: Any, average: Any, chosen: Bool[np.ndarray, "token concept"]) -> tuple[Any, Any]:
        y = torch.from_numpy(chosen[out]).double()
        left = count[columns] - y.sum(0).long()
        total = average[columns].double() * count[columns, None] - y.T @ gone
        return left, total / left.clamp_min(1)[:, None]

    count, average = taken_off(one.positive_count, one.positive_mean, labels)
    found = replace(
        one, n=n - n_out, mean=mean, positive_count=count, positive_mean=average, rows=None, labels=None
    )
    known = None if one.known is None else one.known[:, columns]
    if known is not None and one.unknown_count is not None and one.unknown_mean is not None:
        n_unknown, of_unknown = taken_off(one.unknown_count, one.unknown_mean, ~known)
        found = replace(found, unknown_count=n_unknown, unknown_mean=of_unknown, known=None)
    if one.gram is not None:
        found = replace(found, gram=(one.gram.double() * n - gone.T @ gone) / (n - n_out))
    if rows:
        stored = Rows(one.rows.stored[~out], mean, one.scale)
        found = replace(found, rows=stored, labels=labels[~out], known=None if known is None else known[~out])
    return found
