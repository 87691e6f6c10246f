"""Laws of promised rates: each procedure against its definition, written slowly."""

import math

import numpy as np
import pytest
from scipy.stats import beta

from sa_plugin.statistics import (
    Promise,
    confident_rank,
    discoveries,
    document_threshold,
    episode_losses,
    p_of_documents,
    p_of_tokens,
    risk_threshold,
    share_losses,
)

ALPHAS = (0.01, 0.05, 0.1, 0.2, 1 / 3)


def documents(rng, n, tied=False):
    """Token scores of documents, with samples of their own; tied scores take few values."""
    score, sample, home = [], [], []
    for k in range(n):
        for s in range(rng.integers(1, 4)):
            own = rng.normal(size=rng.integers(1, 9))
            score += (np.round(own * 2) / 2 if tied else own).tolist()
            sample += [100 * k + s] * len(own)
            home += [k] * len(own)
    return np.array(score), np.array(sample), np.array(home)


@pytest.mark.parametrize(("alpha", "least"), [(0.05, 19), (0.01, 99), (0.001, 999)])
def test_how_many_documents_it_takes(alpha, least):
    for kind in ("document", "sample", "tokens"):
        assert Promise(kind, alpha).least_documents == least
    assert math.isfinite(document_threshold(np.arange(float(least)), alpha))
    assert math.isinf(document_threshold(np.arange(least - 1.0), alpha))


@pytest.mark.parametrize(
    ("alpha", "confidence", "least"),
    [(0.05, 0.9, 45), (0.05, 0.95, 59), (0.01, 0.9, 230), (0.01, 0.95, 299), (0.001, 0.95, 2995)],
)
def test_how_many_documents_confidence_takes(alpha, confidence, least):
    assert Promise("document", alpha, confidence).least_documents == least
    assert confident_rank(least, alpha, confidence) == least
    assert confident_rank(least - 1, alpha, confidence) is None


@pytest.mark.parametrize("n", [19, 20, 59, 60, 137])
def test_the_rank_of_confidence_is_that_of_the_beta_law(n):
    for alpha in ALPHAS:
        for confidence in (0.5, 0.9, 0.95):
            slow = [k for k in range(1, n + 1) if beta.cdf(alpha, n - k + 1, k) >= confidence]
            assert confident_rank(n, alpha, confidence) == (min(slow) if slow else None)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n", [5, 19, 20, 60])
def test_document_is_the_order_statistic_and_the_p_value(n, tied):
    rng = np.random.default_rng(n)
    maxima = rng.normal(size=n)
    maxima = np.round(maxima) if tied else maxima
    for alpha in ALPHAS:
        tau = document_threshold(maxima, alpha)
        # Alarms above it, the new document itself counted as one, are at most a share alpha.
        slow = [m for m in maxima if (np.sum(maxima > m) + 1) / (n + 1) <= alpha + 1e-12]
        assert tau == (min(slow) if slow else math.inf)
        assert tau == risk_threshold(share_losses(maxima, np.arange(n)), n, alpha)
        new = np.concatenate([maxima, rng.normal(size=50)])
        p = p_of_documents(new, maxima)
        assert np.array_equal(new > tau, p <= alpha + 1e-12)
        assert np.allclose(p, [(1 + np.sum(maxima >= s)) / (n + 1) for s in new])
        assert p.min() >= 1 / (n + 1)


@pytest.mark.parametrize("tied", [False, True])
def test_sample_and_tokens_weigh_each_document_alike(tied):
    rng = np.random.default_rng(1)
    score, _, home = documents(rng, 25, tied)
    for alpha in ALPHAS:

        def cost(tau):
            shares = [np.mean(score[home == k] > tau) for k in range(25)]
            return (sum(shares) + 1) / 26

        kept = [s for s in score if cost(s) <= alpha + 1e-12]
        assert risk_threshold(share_losses(score, home), 25, alpha) == (min(kept) if kept else math.inf)


def runs_of(score, sample, tau):
    """Runs of neighbours above a threshold, counted one by one."""
    runs, open_in = 0, None
    for s, where in zip(score, sample, strict=True):
        if s > tau:
            runs += open_in != where
            open_in = where
        else:
            open_in = None
    return runs


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_episodes_are_counted_at_their_most(most, tied):
    rng = np.random.default_rng(most)
    score, sample, home = documents(rng, 12, tied)
    losses = episode_losses(score, sample, home, most)
    levels = np.unique(score)
    for tau in [*levels, levels[0] - 1]:
        slow = 0.0
        for k in range(12):
            own = home == k
            above = [t for t in [*levels, levels[0] - 1] if t >= tau]
            most_runs = max(runs_of(score[own], sample[own], t) for t in above)
            slow += min(most_runs, most) / own.sum()
        assert losses.loss[losses.value > tau].sum() == pytest.approx(slow)


def test_p_of_tokens_weighs_documents_and_not_tokens():
    rng = np.random.default_rng(2)
    score, _, home = documents(rng, 20, tied=True)
    new = np.concatenate([score[:40], [score.max() + 1, score.min() - 1]])
    slow = [(1 + sum(np.mean(score[home == k] >= s) for k in range(20))) / 21 for s in new]
    found = p_of_tokens(new, share_losses(score, home), 20)
    assert np.allclose(found, slow)
    assert found.min() == pytest.approx(1 / 21)
    assert found.max() == 1


@pytest.mark.parametrize("independent", [True, False])
def test_discoveries_step_up(independent):
    rng = np.random.default_rng(3)
    for _ in range(50):
        n, tests = 200, int(rng.integers(1, 30))
        p = np.where(rng.random(tests) < 0.5, 1 / (n + 1), rng.integers(1, n + 2, tests) / (n + 1))
        q = 0.2 if independent else 0.2 / sum(1 / k for k in range(1, tests + 1))
        ranks = [k for k in range(1, tests + 1) if np.sort(p)[k - 1] <= q * k / tests]
        try:
            found = discoveries(p, 0.2, floor=1 / (n + 1), independent=independent)
        except ValueError:
            assert not ranks
            assert (p == 1 / (n + 1)).any()
            continue
        cut = np.sort(p)[max(ranks) - 1] if ranks else -1.0
        assert np.array_equal(found, p <= cut)


def test_discoveries_say_what_resolution_lacks():
    p = np.array([1 / 61] * 5 + [0.5] * 95)
    said = "60 guard documents a share of 0.164 of the 100 tests must.* and 5 do.*with 199 guard documents"
    with pytest.raises(ValueError, match=said):
        discoveries(p, 0.1, floor=1 / 61)
    p[:5] = 1 / 200
    assert discoveries(p, 0.1, floor=1 / 200).sum() == 5
    assert not discoveries(np.full(10, 0.5), 0.1, floor=1 / 61).any()
    with pytest.raises(ValueError, match="a share of 2 of the 4 tests"):
        discoveries(np.full(4, 0.5), 0.1, floor=0.2)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            dict(kind="document", alpha=0.0),
            "alpha is 0: expected a number between 0 and 1.*share of documents",
        ),
        (dict(kind="tokens", alpha=1.5), "alpha is 1.5: expected.*share of tokens.*give 0.05"),
        (
            dict(kind="sample", alpha=0.05, confidence=0.9),
            "confidence is 0.9 with kind 'sample'.*leave it out",
        ),
        (
            dict(kind="document", alpha=0.05, confidence=1.0),
            "confidence is 1: expected a number between 0 and 1",
        ),
        (
            dict(kind="document", alpha=0.05, lengths=(9,)),
            r"lengths is \(9,\): expected the shortest and the",
        ),
        (dict(kind="document", alpha=0.05, lengths=(9, 9)), r"lengths is \(9, 9\): expected.*\(1, 512\)"),
        (dict(kind="sample", alpha=0.05, lengths=(1, 9, 20)), "with kind 'sample', which has one range"),
        (dict(kind="sample", alpha=0.05, episodes=2), "episodes is 2 with kind 'sample': only 'tokens'"),
        (dict(kind="tokens", alpha=0.001, episodes=2), "episodes is 2 without lengths.*give lengths="),
        (dict(kind="tokens", alpha=0.001, lengths=(9, 20), episodes=0), "episodes is 0: expected 1 or more"),
        (
            dict(kind="tokens", alpha=0.01, lengths=(200, 400), episodes=2),
            r"alpha is 0.01, but 2 episode\(s\) in 200 tokens or more are at most 0.01 by token.*Give less",
        ),
    ],
)
def test_promises_that_say_nothing_are_refused(made, said):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        Promise(**made)


def test_kinds_and_numbers_are_held_against_their_hints():
    with pytest.raises(ValueError, match="Promise: kind is the text 'documents', not 'document' or"):
        Promise("documents", 0.05)
    with pytest.raises(ValueError, match="Promise: alpha is nan"):
        Promise("document", float("nan"))


def test_capped_episodes_take_fewer_documents():
    assert Promise("tokens", 0.001, lengths=(200, 2000), episodes=1).least_documents == 4
    assert Promise("tokens", 0.001, lengths=(20, 2000), episodes=2).least_documents == 99


def test_bands_follow_one_another():
    assert Promise("document", 0.05).bands(300) == [(1, 300)]
    assert Promise("document", 0.05, lengths=(5, 60, 300)).bands(999) == [(5, 60), (61, 300)]
