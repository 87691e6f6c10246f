"""Features whose mean is many times their spread: vectors are those of float64, in every number format."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from concept_rows import cosines, make_rows, statistics_of
from fake_host import WIDTH, FakeHost
from sae_cases import ReluSAE
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from word_data import word_data

from sa_plugin import fit, score
from sa_plugin.concepts import (
    LAM,
    LayerStatistics,
    Rows,
    StreamedRefits,
    collect,
    lda,
    sae_bank,
    separator_adam,
)
from sa_plugin.host import Site
from sa_plugin.passes import lay_out, run_jobs, sink_rule

# Some features stay where they were, as those beside a massive activation do.
PATTERN = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 0.0] * 2)
OFFSETS = (0.0, 500.0, 5_000.0, 100_000.0)
LAYER, CLUSTERS = 1, 4
SITE = Site(LAYER, "resid_post")
# Half precision ends at 65,504: a model that computes in it has no larger activations.
CASES = [
    (dtype, offset)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for offset in OFFSETS
    if dtype != torch.float16 or offset < 65_504
]


class Far(FakeHost):
    """Residual activations moved by so many deviations, in the number format of the model."""

    def __init__(self, dtype, offset):
        super().__init__()
        self.dtype, self.offset = dtype, offset
        self.with_info(dtype=str(dtype).removeprefix("torch."))

    def read(self, batch, sites, reduce):
        def moved(got):
            far = {s: h + self.offset * PATTERN if s.point == "resid_post" else h for s, h in got.items()}
            return reduce({site: h.to(self.dtype) for site, h in far.items()})

        return super().read(batch, sites, moved)


def given(host, samples, dtype=np.float64):
    """Activations as the model gives them, a sample each, read without a pass."""
    layout = lay_out(host, samples, ())
    rows = np.zeros((layout.n_rows, WIDTH), dtype)
    for batch in layout.batches:
        read = host.read(batch, [SITE], lambda read: {"h": read[SITE]})["h"]
        rows[layout.rows(batch)] = read[batch.valid].double().numpy()
    return np.split(rows, layout.bounds[1:-1])


def normal(rows):
    """Mean, scale and normalised rows, by the definition."""
    h = np.concatenate(rows)
    mean, scale = h.mean(0), np.sqrt((h**2).sum(1).mean())
    return mean, scale, (h - mean) / scale


def direct(kind, x, labels):
    """The vectors of float64 rows."""
    if kind == "prototype":
        return np.stack([x[y].mean(0) for y in labels.T])
    if kind == "lda":
        covariance = x.T @ x / len(x)
        covariance += 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return np.stack([np.linalg.solve(covariance, x[y].mean(0) - x[~y].mean(0)) for y in labels.T])
    if kind == "kmeans":
        return KMeans(CLUSTERS, init="random", n_init=1, max_iter=100, random_state=0).fit(x).cluster_centers_
    if kind == "kmeans_separator":
        found = KMeans(CLUSTERS, init="random", n_init=1, max_iter=100, random_state=0).fit(x).labels_
        labels = found[:, None] == np.arange(CLUSTERS)
    vectors = []
    for y in labels.T:
        weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
        solver = LogisticRegression(C=1 / LAM, fit_intercept=False, tol=1e-10, solver="newton-cholesky")
        vectors.append(solver.fit(x, y, sample_weight=weight).coef_[0])
    return np.stack(vectors)


@pytest.fixture(scope="module")
def data():
    return word_data(60)


KINDS = {
    "prototype": ({}, 1e-4),
    "lda": ({}, 1e-4),
    "separator": ({}, 2e-3),
    "kmeans": ({"k": CLUSTERS}, 1e-4),
    "kmeans_separator": ({"k": CLUSTERS}, 2e-2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "offset"), CASES)
def test_vectors_are_those_of_float64(kind, dtype, offset, data):
    options, tolerance = KINDS[kind]
    host = Far(dtype, offset)
    bank = fit(host, data, kind, layers=LAYER, sinks="keep", options=options)
    mean, scale, x = normal(given(host, data.train.samples))
    labels = lay_out(host, data.train.samples, data.concepts).labels
    expected = direct(kind, x, labels)
    miss = np.linalg.norm(bank.token.vectors[0].double().numpy() - expected, axis=1)
    assert (miss <= tolerance * np.linalg.norm(expected, axis=1)).all()
    np.testing.assert_allclose(bank.token.mean[0], mean, rtol=2e-7, atol=1e-6)
    assert float(bank.token.scale[0]) == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("kind", ["prototype", "lda"])
@pytest.mark.parametrize(("dtype", "offset"), CASES)
def test_pooled_vectors_are_those_of_float64(kind, dtype, offset, data):
    host = Far(dtype, offset)
    bank = fit(host, data, kind, layers=LAYER, sinks="keep")
    _, _, x = normal([rows.mean(0, keepdims=True) for rows in given(host, data.train.samples)])
    labels = np.array([[c in s.positive for c in data.concepts] for s in data.train.samples])
    expected = direct(kind, x, labels)
    miss = np.linalg.norm(bank.pooled.vectors[0].double().numpy() - expected, axis=1)
    # A pooled sample is a float32: it is off by 2**-24 of its size, and its spread is a third of a token's.
    assert (miss <= (1e-4 + 4 * 2**-24 * offset) * np.linalg.norm(expected, axis=1)).all()


@pytest.mark.parametrize(("dtype", "offset"), CASES)
def test_the_papers_recipe_sees_the_same_rows(dtype, offset, data):
    host = Far(dtype, offset)
    bank = fit(host, data, "separator_adam", layers=LAYER, sinks="keep", options={"max_epochs": 3})
    _, _, x = normal(given(host, data.train.samples))
    labels = lay_out(host, data.train.samples, data.concepts).labels
    exact = Rows(x, torch.zeros(x.shape[1], dtype=torch.float64), 1.0)
    empty = torch.zeros(len(data.concepts), x.shape[1])
    counts = torch.from_numpy(labels.sum(0))
    one = LayerStatistics(len(x), exact.mean, 1.0, counts, empty, rows=exact, labels=labels)
    expected, _ = separator_adam(one, max_epochs=3)
    torch.testing.assert_close(bank.token.vectors[0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["prototype", "lda", "separator"])
@pytest.mark.parametrize(("dtype", "offset"), CASES)
def test_refits_on_permuted_labels_are_those_of_float64(kind, dtype, offset, data):
    host = Far(dtype, offset)
    bank = fit(host, data, kind, layers=LAYER, sinks="keep", controls=False)
    layout = lay_out(host, data.train.samples, data.concepts)
    refits = StreamedRefits(bank, layout, bank.layers, 2, 5)
    (kept,) = run_jobs(host, layout, [refits.job], sink_rule(host.info, bank.layers, "keep"), description="")
    _, _, x = normal(given(host, data.train.samples))
    expected = direct(kind, x, refits.labels).reshape(2, len(data.concepts), -1)
    for found, wanted in zip(refits.result(kept), expected, strict=True):
        # The bank's mean is a float32: off by 2**-24 of its size, all rows alike.
        assert (cosines(found.vectors[0], wanted) > 1 - 1e-4 - (2**-22 * offset) ** 2).all()


@pytest.mark.parametrize(("dtype", "offset"), CASES)
def test_scores_are_those_of_float64(dtype, offset, data):
    host = Far(dtype, offset)
    for kind in ("prototype", "separator"):
        bank = fit(host, data, kind, layers=LAYER, sinks="keep")
        table = score(host, data, bank, splits=["test"])
        rows = np.concatenate(given(host, data.test.samples))
        v = bank.token.vectors[0].double().numpy()
        x = (rows - bank.token.mean[0].double().numpy()) / float(bank.token.scale[0])
        expected = x @ v.T
        if kind == "prototype":
            expected /= np.linalg.norm(x, axis=1, keepdims=True) * np.linalg.norm(v, axis=1)
        found = table.scores[:, 0]
        assert (np.abs(found - expected) <= 1e-5 * expected.std(0)).all()


@pytest.mark.parametrize("offset", [0.0, 90_000.0])
def test_latents_of_an_sae_far_from_zero(offset, data):
    host = Far(torch.float32, offset)
    # The features that are far from zero are none of the SAE's.
    sae = ReluSAE()
    with torch.no_grad():
        sae.weight[:, PATTERN != 0] = 0.0
    table = score(host, data, sae_bank(host, data, {LAYER: sae}, pruning="none"), splits=["test"])
    near = FakeHost()
    expected = score(near, data, sae_bank(near, data, {LAYER: sae}, pruning="none"), splits=["test"])
    np.testing.assert_allclose(table.scores, expected.scores, atol=1e-5)


def test_two_bytes_a_number_only_where_they_lose_nothing(data):
    width = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        host = Far(dtype, 500.0)
        rows = collect(host, data, layers=LAYER, sinks="keep").token[0].rows
        width[dtype] = rows.stored.dtype.itemsize
        exact = np.concatenate(given(host, data.train.samples, np.float32))
        assert torch.equal(rows.take(slice(None)), replace(rows, stored=exact).take(slice(None)))
    assert width == {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2, torch.float64: 4}


def test_a_model_that_overflows_its_format_is_refused(data):
    with pytest.raises(ValueError, match=r"activations at block 1 .* hold NaN or Inf .* float32 or bfloat16"):
        fit(Far(torch.float16, 100_000.0), data, "separator", layers=LAYER)


def test_lda_names_the_features_that_sums_lose():
    h, labels = make_rows(orders=0.0)
    far = h.astype(np.float64)
    far[:, 3] += 1e9
    with pytest.raises(ValueError, match=r"features 3 \(1 of 24\) is more than 1e\+07 times their spread"):
        lda(statistics_of(far, labels), ridge=0.0)
    far[:, 3] -= 1e9 - 1e5
    assert (cosines(*(lda(statistics_of(x, labels))[0] for x in (far, h))) > 1 - 1e-6).all()
    still = np.broadcast_to(np.arange(24.0), h.shape)
    with pytest.raises(ValueError, match="no feature varies by more than its rounding"):
        lda(statistics_of(still, labels))
