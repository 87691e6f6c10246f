"""What each mode of ablation writes, and hooks that do the same in runs of one's own."""

import numpy as np
import pytest
import tiny
import torch
from ablation_cases import residual, standard
from fake_host import HEADS, FakeHost

from sa_plugin.concepts import fit
from sa_plugin.heads import explain_tokens, make_edits, one_direction, reference
from sa_plugin.host import Site
from sa_plugin.scores import score
from sa_transformer_lens import ablation_hooks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def case():
    return standard()


def test_a_fake_without_edits_is_the_fake():
    fake, data, *_ = standard()
    (batch,) = fake.batches(data.test.samples[:4])
    torch.testing.assert_close(residual(fake, batch), residual(FakeHost(), batch))


def test_mean_is_the_train_mean_of_z_at_every_position(tiny_host, case):
    """The mean by a loop over kept tokens; the bank's own where it has one, else a pass."""
    data = case.data
    host = tiny_host
    bank = fit(host, data, "prototype", layers=[1])
    known = reference(host, data, bank, "mean", {0, 1})
    total, n = 0.0, 0
    table = score(host, data, bank, splits=["train"]).tokens
    for k, sample in enumerate(data.train.samples):
        (batch,) = host.batches([sample])
        z = host.read(batch, [Site(1, "z")], lambda r: {"z": next(iter(r.values()))})["z"]
        rows = table.position[table.bounds[k] : table.bounds[k + 1]]
        total, n = total + z[0, rows].double().sum(0), n + len(rows)
    torch.testing.assert_close(known.means[1], (total / n).float(), atol=1e-5, rtol=1e-5)
    z = torch.randn(2, 5, tiny.N_HEADS, tiny.D_HEAD)
    edited = make_edits("mean", [(1, 3), (1, 0)], known)[Site(1, "z")](z)
    assert torch.equal(edited[:, :, [1, 2]], z[:, :, [1, 2]])
    assert torch.equal(edited[:, :, [0, 3]], known.means[1][[0, 3]].expand(2, 5, 2, -1))


def test_resample_takes_all_heads_of_a_position_from_one_train_token(case):
    fake, data, _, detector = case
    known = reference(fake, data, detector.bank, "resample", {0, 1}, seed=3)
    z = torch.zeros(2, 7, HEADS, 3)
    edits = make_edits("resample", [(0, 0), (0, 1), (1, 1)], known)
    first, second = (edits[Site(k, "z")](z) for k in (0, 1))
    assert not second[:, :, 0].any()
    for place in np.ndindex(2, 7):
        same = (known.donors[0] == first[place]).flatten(1).all(1)
        assert (known.donors[1][same][:, 1] == second[place][1]).all(1).any()
    again = make_edits("resample", [(0, 0), (0, 1)], known)[Site(0, "z")](z)
    assert torch.equal(again, first)
    train = fake.batches(data.train.samples, batch_tokens=10**6)[0]
    rows = fake.read(train, [Site(0, "z")], lambda r: {"z": next(iter(r.values()))})["z"]
    distance = torch.cdist(
        known.donors[0].flatten(1), rows[train.valid].flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert distance.amin(1).max() < 1e-4


@pytest.mark.parametrize("architecture", tiny.PRE_NORM)
def test_directional_makes_the_heads_term_constant(architecture, case):
    """Of the ledger's terms in its block, that head's alone changes: to its train mean."""
    data = case.data
    host = tiny.host(architecture)
    bank = fit(host, data, "lda", layers=[1])
    head, sample = (1, 2), data.test.samples[0]
    units = one_direction(host, bank, "animal", None, [head])
    known = reference(host, data, bank, "directional", {1})
    clean = explain_tokens(host, bank, sample, "animal")
    with host.edited(make_edits("directional", [head], known, units)):
        found = explain_tokens(host, bank, sample, "animal")
    names = [c.name for c in clean.components]
    at = names.index("L1H2")
    assert np.abs(clean.terms[:, at]).max() > 1e-3
    np.testing.assert_allclose(found.terms[:, at], 0, atol=1e-5)
    others = [k for k, n in enumerate(names) if n not in ("L1H2", "L1 MLP")]
    np.testing.assert_allclose(found.terms[:, others], clean.terms[:, others], atol=1e-5)
    (batch,) = host.batches([sample])
    z = host.read(batch, [Site(1, "z")], lambda r: {"z": next(iter(r.values()))})["z"]
    edited = make_edits("directional", [head], known, units)[Site(1, "z")](z.clone())
    off = (z - edited)[:, :, 2]
    along = torch.einsum("bte,e->bt", off, units[head])[..., None] * units[head]
    torch.testing.assert_close(off, along, atol=1e-5, rtol=1e-4)


def test_directional_is_refused_behind_a_norm(case):
    data = case.data
    host = tiny.host("bert")
    bank = fit(host, data, "prototype", layers=[1])
    with pytest.raises(NotImplementedError, match="post_ln: a norm stands between"):
        one_direction(host, bank, "animal", 1, [(0, 0)])


@pytest.mark.parametrize("architecture", tiny.PRE_NORM)
def test_ledger_predicts_a_last_block_head_exactly(architecture, case):
    """Mean ablation takes a head's centred term out; only the MLP behind it can answer, and in a
    parallel block none does."""
    data = case.data
    host = tiny.host(architecture)
    bank = fit(host, data, "lda", layers=[2])
    sample = data.test.samples[0]
    clean = explain_tokens(host, bank, sample, "food")
    edits = make_edits("mean", [(2, 1)], reference(host, data, bank, "mean", {2}))
    with host.edited(edits):
        found = explain_tokens(host, bank, sample, "food")
    names = [c.name for c in clean.components]
    head, mlp = names.index("L2H1"), names.index("L2 MLP")
    answer = found.terms[:, mlp] - clean.terms[:, mlp]
    np.testing.assert_allclose(found.score - clean.score, answer - clean.terms[:, head], atol=5e-5, rtol=1e-4)
    assert np.abs(clean.terms[:, head]).max() > 1e-3
    if architecture == "neox":
        np.testing.assert_allclose(answer, 0, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "zero", "resample", "directional"])
def test_hooks_of_ones_own_runs_do_the_same(tiny_gpt2, case, mode):
    data = case.data
    host = tiny_gpt2
    bank = fit(host, data, "prototype", layers=[2])
    heads = [(0, 1), (2, 0), (2, 3)]
    options = {} if mode == "zero" else {"bank": bank, "data": data, "concept": "animal"}
    hooks = ablation_hooks(host, heads, mode, **options)
    (batch,) = host.batches(tiny.samples()[:1])
    inputs, last = dict(batch.inputs), "blocks.2.hook_resid_post"
    seen = []
    host.bridge.run_with_hooks(
        inputs.pop("input_ids"), fwd_hooks=[*hooks, (last, lambda h, hook: seen.append(h.clone()))], **inputs
    )
    units = one_direction(host, bank, "animal", None, heads) if mode == "directional" else None
    known = reference(host, data, bank, mode, {0, 2})
    with host.edited(make_edits(mode, heads, known, units)):
        torch.testing.assert_close(residual(host, batch), seen[0].detach())
    assert [name for name, _ in hooks] == [f"blocks.{k}.attn.o.hook_in" for k in (0, 2)]


def test_refusals_of_hooks(tiny_gpt2):
    for heads, mode, text in (
        ([], "zero", "heads is empty"),
        ([(3, 0)], "zero", r"head \(3, 0\) does not exist: .* blocks 0 to 2 of 4 heads"),
        ([(1, 1), (1, 1)], "zero", "named twice"),
        ([(1, 1)], "means", "did you mean 'mean'"),
        ([(1, 1)], "mean", "needs z of the train split"),
        ([(1, 1)], "directional", "give bank= and concept="),
    ):
        with pytest.raises(ValueError, match=text):
            ablation_hooks(tiny_gpt2, heads, mode)


# The frozen mask.
