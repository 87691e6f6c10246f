"""Laws of every model of arXiv 2512.05038 on each host that serves it, on tiny random weights.

Residual parity with the model's own states, ledger, ablation and gradient.
"""

from functools import cache

import numpy as np
import paper_models
import pytest
import torch
from paper_models import CASES, data_of
from torch.testing import assert_close

from sa_plugin.concepts import fit
from sa_plugin.heads import head_ledger
from sa_plugin.host import Site, check
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HOSTS = {"nnsight": paper_models.nnsight_host, "bridge": paper_models.transformer_lens_host}
PAIRS = [(name, host) for name in CASES for host in HOSTS]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: "-".join(pair))
def case(request):
    name, host = request.param
    return name, HOSTS[host](name)


@cache
def bank_of(host, name):
    return fit(host, data_of(name), "lda")


def read(host, batch, sites):
    kept = host.read(batch, sites, lambda found: {str(site): found[site] for site in sites})
    return [kept[str(site)] for site in sites]


def test_residuals_are_the_models_own(case):
    name, host = case
    batch = host.batches(data_of(name).train.samples[:3], batch_tokens=10_000)[0]
    before, after = paper_models.states(name, dict(batch.inputs))
    keep = batch.valid
    assert len(after) == host.info.n_layers
    for point, theirs in (("resid_pre", before), ("resid_post", after)):
        ours = read(host, batch, [Site(k, point) for k in range(host.info.n_layers)])
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one[keep], other[keep], rtol=1e-5, atol=1e-5)


def test_every_law_of_check_holds(case):
    name, host = case
    texts = None if CASES[name].tokenizer is None else ("The cat sat.", "Nobody walked the dog.")
    report = check(host, texts)
    assert report.passed, str(report)


def test_the_ledger_adds_up(case):
    """`head_ledger` raises where it does not close; a small tolerance is asked for besides."""
    name, host = case
    ledger = head_ledger(host, data_of(name), bank_of(host, name), permutations=0, resampling=Resampling(20))
    assert ledger.residue < 1e-6
    assert {c.layer for c in ledger.columns} == set(range(host.info.n_layers))
    table = score(host, data_of(name), bank_of(host, name))
    assert np.isfinite(table.scores).all()


def test_an_ablated_head_takes_its_write_away(case):
    """At every block attn_out changes by z_h W_O, gates included, where nothing else moves."""
    name, host = case
    batch = host.batches(data_of(name).test.samples[:2], batch_tokens=10_000)[0]
    for layer in range(host.info.n_layers):
        points = [Site(layer, point) for point in ("z", "attn_out", "resid_post")]
        z, before, whole = read(host, batch, points)
        with host.edited({Site(layer, "z"): without_head}):
            _, after, without = read(host, batch, points)
        written = torch.einsum("bte,ed->btd", z[:, :, 1], host.output_projection(layer).weight[1])
        assert not torch.equal(whole, without)
        if host.info.block == "pre_norm" or host.info.block == "staged":
            assert_close((before - after)[batch.valid], written[batch.valid])


def without_head(z):
    z[:, :, 1] = 0
    return z


def test_gradients_start_from_the_input(case):
    name, host = case
    batch = host.batches(data_of(name).test.samples[:2], batch_tokens=10_000)[0]
    site = Site(host.info.n_layers - 1, "resid_post")
    values = host.input_values(batch).requires_grad_(True)
    out = host.forward_from(values, batch, site)
    assert_close(out.detach()[batch.valid], read(host, batch, [site])[0][batch.valid])
    (gradient,) = torch.autograd.grad(out[batch.valid].sum(), values)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
