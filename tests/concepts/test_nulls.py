"""Laws of the nulls: what a permutation keeps, and that refits are fits on labels permuted by hand."""

from dataclasses import replace

import numpy as np
import planted
import pytest
import torch

from sa_plugin.concepts import (
    StoredRefits,
    StreamedRefits,
    collect,
    exchangeable,
    fit,
    isotropic,
    null_vectors,
    nulls,
    permutations,
    permute_labels,
    relabelled,
    unit,
)
from sa_plugin.passes import lay_out, run_jobs


@pytest.fixture(scope="module")
def statistics():
    one = planted.world(3, n_samples=30)
    return one, collect(one.host, one.data, need=("means", "gram", "rows"))


@pytest.mark.parametrize(
    ("kind", "sparse"), [("prototype", 0), ("prototype", 1), ("lda", 1), ("separator", 0)]
)
def test_refits_are_fits_on_relabelled_tokens(statistics, kind, sparse, monkeypatch):
    """The fast null against `fit` on statistics whose labels were permuted by hand."""
    monkeypatch.setattr(nulls, "_SPARSE", sparse)
    one, seen = statistics
    bank = fit(one.host, one.data, kind, statistics=seen, controls=False)
    refit = StoredRefits(bank, [2, 0], seen)
    order = permutations(seen.tokens.bounds, "across", 3, seed=5)
    fast = refit.vectors(1, order)
    for draw in range(3):
        labels = seen.tokens.labels[order[draw]]
        layer = seen.token[1]
        x = layer.rows.stored.astype(np.float64)
        means = np.stack([x[labels[:, c]].mean(0) for c in range(labels.shape[1])])
        changed = replace(layer, positive_mean=torch.from_numpy(means), labels=labels)
        token = (seen.token[0], changed, seen.token[2])
        slow = fit(
            one.host, one.data, kind, statistics=replace(seen, token=token), controls=False
        ).token.vectors[1][[2, 0]]
        cosine = torch.cosine_similarity(fast[draw], slow, dim=-1)
        assert (cosine > 0.9999).all()


def test_permutations_keep_what_they_should(statistics):
    _, seen = statistics
    tokens = seen.tokens
    for one in permutations(tokens.bounds, "across", 5, seed=0):
        assert sorted(one) == list(range(len(tokens)))
        # Samples stay whole: a token's labels are followed by its neighbour's within the sample.
        same = tokens.sample_of[one[1:]] == tokens.sample_of[one[:-1]]
        assert (np.diff(one)[same] == 1).all()
    for one in permutations(tokens.bounds, "within", 5, seed=0):
        assert (tokens.sample_of[one] == tokens.sample_of).all()
        assert not (one == np.arange(len(tokens))).all()
    first, again = (permutations(tokens.bounds, "across", 2, seed=9) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_exchanged_labels_stay_on_labelled_tokens(statistics):
    """Whole samples' sequences of labels over the labelled tokens; what is unknown keeps its place."""
    one, seen = statistics
    tokens = seen.tokens
    bank = fit(one.host, one.data, "prototype", statistics=seen, controls=False)
    known = np.random.default_rng(0).random(tokens.labels.shape) < 0.98
    part = replace(tokens, labels=tokens.labels & known, known=known)
    for table in (tokens, part):
        labelled = table.labels.any(1) & (True if table.known is None else table.known.all(1))
        for order in permutations(table.bounds, "exchanged", 4, 0, labelled):
            laid = relabelled(table.labels, order, table.known)
            assert sorted(order) == list(range(len(table)))
            assert (order[~labelled] == np.flatnonzero(~labelled)).all()
            assert (laid.sum(0) == table.labels.sum(0)).all()
            assert (laid.any(1) == table.labels.any(1)).all()
            # The sequence of one sample's labelled tokens is found again somewhere in one piece.
            rows = np.flatnonzero(labelled)
            places = np.argsort(order[rows])
            same = tokens.sample_of[rows][1:] == tokens.sample_of[rows][:-1]
            assert (np.diff(places)[same] == 1).all()
    refit = StoredRefits(bank, [0, 1], seen)
    assert exchangeable(refit, 0).all()
    alone = replace(seen, tokens=replace(tokens, labels=tokens.labels & (np.arange(4) == 1)))
    assert not exchangeable(StoredRefits(bank, [1], alone), 0).any()


def test_covariance_draws_have_the_covariance(statistics):
    one, seen = statistics
    bank = fit(one.host, one.data, "prototype", statistics=seen, controls=False)
    refit = StoredRefits(bank, [0, 1], seen)
    drawn = next(null_vectors(refit, "covariance", [0], 4000, 0))
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    x = seen.token[0].rows.take(slice(None))
    true = (x.T @ x / x.square().sum()).double().numpy()
    got = (drawn[:, 0].T @ drawn[:, 0] / len(drawn)).double().numpy()
    # Unit length shrinks the large directions a little.
    assert np.corrcoef(np.diag(true), np.diag(got))[0, 1] > 0.9
    with pytest.raises(ValueError, match="lack layers"):
        StoredRefits(bank, [0], collect(one.host, one.data, layers=(0, 1)))


@pytest.mark.parametrize("null", ["across", "within", "covariance", "exchanged"])
def test_draws_go_on_where_they_ended(statistics, null):
    one, seen = statistics
    bank = fit(one.host, one.data, "prototype", statistics=seen, controls=False)
    refit = StoredRefits(bank, [0, 1], seen)
    (whole,) = null_vectors(refit, null, [1], 7, 3)
    parts = [next(null_vectors(refit, null, [1], n, 3, before)) for n, before in ((3, 0), (2, 3), (2, 5))]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_permutations_are_those_of_a_plain_loop():
    """The streams of random numbers: numbers that were drawn before are drawn again."""
    bounds = np.array([0, 3, 3, 4, 9, 11])
    rows = np.arange(11)
    rng, again = np.random.default_rng(4), np.random.default_rng(4)
    parts = [rows[bounds[k] : bounds[k + 1]] for k in range(5)]
    for one in permutations(bounds, "across", 3, seed=4):
        np.testing.assert_array_equal(one, np.concatenate([parts[k] for k in rng.permutation(5)]))
    sample_of = np.repeat(np.arange(5), np.diff(bounds))
    for one in permutations(bounds, "within", 3, seed=4):
        np.testing.assert_array_equal(one, np.lexsort((again.random(11), sample_of)))
    labels = np.random.default_rng(0).random((11, 2)) < 0.5
    laid = permute_labels(labels, bounds, np.random.default_rng(7))
    np.testing.assert_array_equal(
        laid, np.concatenate([labels[parts[k]] for k in np.random.default_rng(7).permutation(5)])
    )
    # Samples without tokens of their own are rows of a table of samples: any shuffle is one.
    alone = permute_labels(labels, np.arange(12), np.random.default_rng([3, 1]))
    np.testing.assert_array_equal(alone, labels[np.random.default_rng([3, 1]).permutation(11)])


@pytest.mark.parametrize("kind", ["prototype", "lda", "separator"])
def test_refits_of_a_pass_are_those_of_stored_rows(statistics, kind):
    """One estimator, two ways to its statistics: here every row is kept, so both see the same."""
    one, seen = statistics
    bank = fit(one.host, one.data, kind, statistics=seen, controls=False)
    layout = lay_out(one.host, one.data.train.samples, bank.concepts)
    streamed = StreamedRefits(bank, layout, bank.layers, 3, 5)
    rule = bank.sinks_on(one.host.info)
    (kept,) = run_jobs(one.host, layout, [streamed.job], rule, description="law")
    assert kept.keep.all()
    found = streamed.result(kept)
    bounds = seen.tokens.bounds
    order = np.stack([nulls.across(bounds, np.random.default_rng([5, k])) for k in range(3)])
    stored = StoredRefits(bank, range(len(bank.concepts)), seen).vectors(1, order.astype(np.int32))
    for draw, vectors in enumerate(stored):
        cosine = torch.cosine_similarity(unit(found[draw].vectors[bank.index(1)]), vectors, dim=-1)
        assert (cosine > 0.9999).all()


def test_isotropic_vectors_are_units_and_the_first_ones_stay():
    few, many = isotropic(12, 2, 0), isotropic(12, 400, 0)
    assert all(torch.equal(a, b) for a, b in zip(few, many, strict=False))
    drawn = torch.stack(many)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(400, dtype=torch.float64))
    spread = drawn.T @ drawn / len(drawn)
    assert (spread - torch.eye(12) / 12).abs().max() < 0.03
    with pytest.raises(ValueError, match="n is 0, not a whole number from 1"):
        isotropic(12, 0, 0)
