"""Laws of the head ledger: it closes or raises, and its statistics are those of plain loops."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from fake_host import FakeHost, in_batches
from ledger_cases import broken, kept_rows, labels_of, ledger, loop_lift, loop_lifts, loop_terms

from sa_plugin.concepts import ConceptBank, fit
from sa_plugin.heads import LedgerError, explain_tokens

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", params=tiny.PRE_NORM)
def host(request):
    return tiny.host(request.param)


@pytest.fixture(scope="module", params=["prototype", "lda"])
def bank(request, host, data):
    return fit(host, data, request.param)


@pytest.mark.parametrize("centred", [True, False], ids=["centred", "raw"])
def test_closes_for_every_token_of_every_pre_norm_model(host, bank, data, centred):
    source = bank if centred else replace(bank, component_means=None)
    found = ledger(host, data, source)
    assert found.residue < 1e-6
    assert found.closes_to < 1e-4
    assert {c.name for c in found.components if c.kind == "constants"} == (
        set() if centred else {"bias", "reference"}
    )
    for layer in bank.layers:
        for sample in data.test.samples[:3]:
            one = explain_tokens(host, source, sample, "animal", layer=layer)
            np.testing.assert_allclose(one.terms.sum(1), one.score, atol=2e-5)
            assert one.tokens == tuple(sample.text[a:b] for a, b in one.offsets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_closes_to_its_rounding(data, dtype):
    half = tiny.host("llama", dtype=dtype)
    found = ledger(half, data, fit(half, data, "prototype"))
    assert 1e-6 < found.residue < 20 * torch.finfo(dtype).eps


def test_terms_are_those_of_hook_result(host, data):
    """Every head's write as TransformerLens forms it, one head and sample at a time."""
    bank = fit(host, data, "lda", layers=[1])
    bridge, info = host.bridge, host.info
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{b}.attn.hook_result" for b in range(2))]
    names += [f"blocks.{b}.hook_mlp_out" for b in range(2)]
    before = bridge.cfg.use_attn_result
    bridge.set_use_attn_result(True)
    try:

        def parts(batch, keep):
            inputs = dict(batch.inputs)
            with torch.no_grad():
                _, cache = bridge.run_with_cache(inputs.pop("input_ids"), names_filter=names, **inputs)
            out = [cache[names[0]][0, keep]]
            for b in range(2):
                result = cache[f"blocks.{b}.attn.hook_result"][0, keep]
                out += [result[:, h] for h in range(info.n_heads)]
                out.append(cache[f"blocks.{b}.hook_mlp_out"][0, keep])
            return torch.stack(out, dim=1).double()

        train = torch.cat([parts(*one) for one in kept_rows(host, data.train.samples, [1])])
        sample = data.test.samples[0]
        ((batch, keep),) = kept_rows(host, [sample], [1])
        w = bank.vector("animal", 1).double() / bank.token.scale[0]
        expected = (parts(batch, keep) - train.mean(0)) @ w
    finally:
        bridge.set_use_attn_result(before)
    found = explain_tokens(host, bank, sample, "animal")
    np.testing.assert_array_equal(found.position, keep.nonzero()[:, 0])
    # The tiny models' writes are of size 1, so terms agree to float32.
    np.testing.assert_allclose(found.terms, expected, atol=2e-4, rtol=1e-4)
    assert [c.name for c in found.components][:2] == ["embedding", "L0H0"]


def test_lifts_and_contrast_equal_loops(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector, permutations=0)
    samples, bank = data.test.samples, fake_detector.bank
    for k, column in enumerate(found.columns):
        concept, layer = column.concept, column.layer
        depth = slice(0, 1 + 3 * found.depths[k])
        terms, scores = loop_terms(fake, bank, samples, concept, layer)
        tails = [s.astype(float) >= column.threshold for s in scores]
        assert found.lift.n_tokens[k] == sum(int(t.sum()) for t in tails if not t.all())
        inside = [np.array([concept in (label,) for label in labels_of(s)]) for s in samples]
        negative = [concept not in s.positive for s in samples]
        for name, lift in loop_lifts(terms, scores, tails, inside, negative).items():
            np.testing.assert_allclose(found.effects[name].terms.estimate[depth, k], lift, atol=2e-5)
        mean_in = np.concatenate([t[i] for t, i in zip(terms, inside, strict=True)]).mean(0)
        outside = np.concatenate([t for t, n in zip(terms, negative, strict=True) if n])
        np.testing.assert_allclose(
            found.contrast.terms.estimate[depth, k], mean_in - outside.mean(0), atol=2e-5
        )


def test_blocks_are_sums_of_their_components(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    for effect in found.effects.values():
        for block in range(max(found.depths)):
            rows = [i for i, c in enumerate(found.components) if c.block == block]
            np.testing.assert_allclose(
                effect.blocks.estimate[block], effect.terms.estimate[rows].sum(0), atol=1e-9
            )
    table = found.table()
    blocks = table[(table.kind == "block") & (table.measure == "lift")]
    assert len(blocks) == sum(found.depths)
    assert blocks.value.iloc[0] == found.lift.blocks.estimate[0, 0]


def test_totals_are_lifts_of_the_measured_scores(fake, fake_detector, data):
    """The ledger's totals against scores and decisions of the detector itself."""
    found = ledger(fake, data, fake_detector)
    table = fake_detector.scores_of(data.test)
    decided = fake_detector.superactivators(table)
    scores = fake_detector.token_scores(table)
    bounds = table.tokens.bounds
    for k in range(len(fake_detector.concepts)):
        rows = [slice(a, b) for a, b in pairwise(bounds)]
        lift = loop_lift([scores[r, k][:, None] for r in rows], [decided[r, k] for r in rows])
        assert found.lift.total.estimate[k] == pytest.approx(lift[0], abs=1e-5)
        negative = ~table.tokens.sample_labels[table.tokens.sample_of, k]
        inside = table.tokens.labels[:, k]
        contrast = scores[inside, k].mean() - scores[negative, k].mean()
        assert found.contrast.total.estimate[k] == pytest.approx(contrast, abs=1e-5)
        means = {name: values[:, k].sum() for name, values in found.means.items()}
        assert means["tail"] - means["same_samples"] == pytest.approx(lift[0], abs=1e-5)
        assert means["out_of_concept"] == pytest.approx(scores[negative, k].mean(), abs=1e-5)
        rest = inside & ~decided[:, k]
        assert means["in_concept_rest"] == pytest.approx(scores[rest, k].mean(), abs=1e-5)
        best = [scores[r, k].max() for n, r in enumerate(rows) if not table.tokens.sample_labels[n, k]]
        assert means["strongest_out_of_concept"] == pytest.approx(np.mean(best), abs=1e-5)


def test_parts_add_up(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    for one in (found, found.projection) if found.projection else (found,):
        for effect in one.effects.values():
            np.testing.assert_allclose(effect.terms.estimate.sum(0), effect.total.estimate, atol=1e-9)
            np.testing.assert_allclose(effect.shares.estimate.sum(0), 1, atol=1e-9)
        for name in ("lift", "contrast"):
            e = one.effects[name]
            assert (e.total.low <= e.total.estimate).all()
            assert (e.total.estimate <= e.total.high).all()
    assert (found.projection is None) == (fake_detector.bank.token.scoring == "dot")


def test_cosine_projection_is_the_dot_ledger_of_the_unit_vector(fake, data):
    bank = fit(fake, data, "prototype", layers=[2])
    unit = bank.token.vectors / bank.token.vectors.norm(dim=-1, keepdim=True)
    dot = replace(bank, token=replace(bank.token, vectors=unit, scoring="dot"), permuted=None)
    rng = np.random.default_rng(3)
    tail = [rng.random((len(s.text.split()), 2)) < 0.2 for s in data.test.samples]
    cosine, plain = (ledger(fake, data, b, tail=tail) for b in (bank, dot))
    for name in ("lift", "contrast"):
        a, b = cosine.projection.effects[name], plain.effects[name]
        for end in ("estimate", "low", "high"):
            np.testing.assert_allclose(getattr(a.terms, end), getattr(b.terms, end), atol=1e-5)


def test_batches_and_order_change_nothing(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    small = ledger(in_batches(fake, 30), data, fake_detector)
    reverse = ledger(fake, data, fake_detector, split=data.test.samples[::-1])
    for other in (small, reverse):
        for name, effect in found.effects.items():
            np.testing.assert_allclose(other.effects[name].terms.estimate, effect.terms.estimate, atol=1e-5)


def test_passes(data, fake_detector):
    """One a sample; with a control one more, and the train split where labels are refitted."""
    one = fake_detector.bank.permuted
    for permutations, passes in (
        (0, len(data.test)),
        ([one, one], 2 * len(data.test)),
        (3, 2 * len(data.test) + len(data.train)),
    ):
        host = FakeHost()
        ledger(host, data, fake_detector, permutations=permutations)
        assert host.passes == passes


def test_scaling_vectors_scales_dot_terms_and_nothing_else(fake, data):
    bank = fit(fake, data, "lda", layers=[1])
    rng = np.random.default_rng(3)
    tail = [rng.random((len(s.text.split()), 2)) < 0.2 for s in data.test.samples]
    one, two = (ledger(fake, data, b, tail=tail) for b in (bank, bank.scaled(4.0)))
    np.testing.assert_array_equal(two.lift.terms.estimate, 4 * one.lift.terms.estimate)
    np.testing.assert_allclose(two.lift.shares.estimate, one.lift.shares.estimate, rtol=1e-12)
    # The control is in the units of the concept's score, whatever the permuted vector's length.
    longer = replace(bank, permuted=replace(bank.permuted, vectors=bank.permuted.vectors * 8))
    np.testing.assert_allclose(
        ledger(fake, data, longer, tail=tail).control.terms.estimate, one.control.terms.estimate, rtol=1e-6
    )


def test_a_wrong_output_projection_raises(host, data):
    bank = fit(host, data, "lda")
    raw = replace(bank, component_means=None)
    with pytest.raises(LedgerError, match=r"block 1: its heads' z W_O \+ b_O miss its attn_out"):
        ledger(broken(host, factor=1.01), data, raw)
    with pytest.raises(LedgerError, match=r"'animal' at block 1 .* token .* of sample '"):
        explain_tokens(broken(host, factor=1.01), raw, data.test.samples[0], "animal", layer=1)
    with pytest.raises(LedgerError, match="misses the normaliser's mean"):
        ledger(broken(host, factor=1.05), data, bank)


def test_an_unlisted_write_raises(fake, data):
    bank = ConceptBank.from_vectors({("animal", 1): torch.ones(12), ("food", 1): torch.ones(12)})
    with pytest.raises(LedgerError, match="block 1: it adds something to the residual stream"):
        ledger(broken(fake, extra=0.5), data, bank)


def test_means_of_other_tokens_raise(fake, data):
    bank = fit(fake, data, "lda")
    means = replace(bank.component_means, mlp=bank.component_means.mlp * 1.1)
    with pytest.raises(LedgerError, match="that misses the normaliser's mean"):
        ledger(fake, data, replace(bank, component_means=means))
    whole = bank.component_means
    short = replace(whole, z=whole.z[:1], mlp=whole.mlp[:1])
    with pytest.raises(LedgerError, match="component means end before block 1"):
        ledger(fake, data, replace(bank, component_means=short))


def test_other_hook_points_are_refused(fake, data):
    vectors = {(c, 1): torch.ones(12) for c in data.concepts}
    bank = ConceptBank.from_vectors(vectors, hook_point="mlp_out")
    with pytest.raises(NotImplementedError, match="this bank is read at 'mlp_out'"):
        ledger(fake, data, bank)


def test_resid_pre_ends_a_block_earlier(fake, data):
    bank = fit(fake, data, "lda", layers=[1, 2], hook_point="resid_pre")
    found = ledger(fake, data, bank)
    assert found.depths == (1, 2, 1, 2)
    assert found.residue < 1e-6
    assert found.head_map("animal", layer=1).shape == (1, 2)
    late = [c.block == 1 for c in found.components]
    assert (found.contrast.terms.estimate[late, 0] == 0).all()


def test_a_bank_alone_has_a_contrast_only(fake, data):
    vectors = {(c, layer): torch.randn(12) for c in data.concepts for layer in (0, 2)}
    found = ledger(fake, data, ConceptBank.from_vectors(vectors))
    assert set(found.effects) == {"contrast"}
    assert found.head_map("food", layer=2).shape == (3, 2)
    with pytest.raises(ValueError, match="this ledger has no lift: a bank alone"):
        _ = found.lift
    with pytest.raises(ValueError, match="'food' at layer None stands at several layers"):
        found.column("food")
    names = [component.name for component in found.components]
    assert names[-2:] == ["bias", "reference"]


def test_bias_and_reference_are_constant(fake, data):
    vectors = {(c, 1): torch.randn(12) for c in data.concepts}
    mean = torch.randn(12)
    bank = ConceptBank.from_vectors(vectors, normaliser={1: (mean, 2.0)})
    one = explain_tokens(fake, bank, data.test.samples[0], "food")
    w = vectors["food", 1]
    bias = (fake.b_o[0] + fake.b_o[1]) @ w / 2
    np.testing.assert_allclose(one.terms[:, -2], float(bias), rtol=1e-4)
    np.testing.assert_allclose(one.terms[:, -1], -float(w @ mean) / 2, rtol=1e-4)
