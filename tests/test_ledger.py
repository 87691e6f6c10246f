"""Laws of the head ledger: it closes or raises, and its statistics are those of plain loops."""

import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from fake_host import FakeHost

from sa_plugin.concepts.bank import ConceptBank, Origin, VectorSet
from sa_plugin.data import ConceptData
from sa_plugin.detection.calibrate import calibrate
from sa_plugin.fitting import fit
from sa_plugin.heads import LedgerError, NoTailWarning, explain_tokens, head_ledger
from sa_plugin.heads.components import KINDS
from sa_plugin.host import OutputProjection, Site
from sa_plugin.results.check import _problems, clean
from sa_plugin.results.schema import Heads
from sa_plugin.scoring import score

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ANIMALS, FOODS = ("cat", "dog", "cow"), ("bread", "soup")
WORDS = (*ANIMALS, *FOODS, "sat", "ran", "tall", "house", "river", "blue", "over", "under")
FEW = (0.1, 0.3, 0.5)


def make_data(n, seed=0, documents=None):
    rng = np.random.default_rng(seed)
    words = [list(rng.choice(WORDS, rng.integers(4, 12))) for _ in range(n)]
    labels = [
        ["animal" if w in ANIMALS else "food" if w in FOODS else None for w in row] for row in words
    ]
    names = None if documents is None else [f"d{k % documents}" for k in range(n)]
    return ConceptData.from_words(words, labels, seed=1, documents=names)


@pytest.fixture(scope="module")
def data():
    return make_data(80, documents=40)


@pytest.fixture(scope="module")
def fake():
    return FakeHost()


@pytest.fixture(scope="module", params=["prototype", "lda"])
def fake_detector(request, fake, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(fake, data, request.param, progress=False)
        return calibrate(fake, data, bank, deltas=FEW)


def ledger(host, data, source, **options):
    return head_ledger(host, data, source, **{"progress": False, "draws": 200, **options})


@pytest.fixture(scope="module", params=tiny.PRE_NORM)
def host(request):
    return tiny.host(request.param)


@pytest.fixture(scope="module", params=["prototype", "lda"])
def bank(request, host, data):
    return fit(host, data, request.param, progress=False)


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
    found = ledger(half, data, fit(half, data, "prototype", progress=False))
    assert 1e-6 < found.residue < 20 * torch.finfo(dtype).eps


def kept_rows(host, samples, layers):
    """Oracle: kept positions of samples run one at a time: no sinks here, no first token."""
    for sample in samples:
        (batch,) = host.batches([sample])
        keep = batch.valid[0].clone()
        if host.info.causal and not host.info.bos:
            keep[int(keep.nonzero()[0])] = False
        sites = [Site(layer, "resid_post") for layer in layers]
        norms = host.read(
            batch, sites, lambda r: {"n": torch.stack([v.norm(dim=-1) for v in r.values()])}
        )["n"]
        for row in norms[:, 0]:
            keep &= ~(row > 10 * row[batch.valid[0]].median())
        yield batch, keep


def test_terms_are_those_of_hook_result(host, data):
    """Every head's write as TransformerLens forms it, one head and sample at a time."""
    bank = fit(host, data, "lda", layers=[1], progress=False)
    bridge, info = host.bridge, host.info
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{b}.attn.hook_result" for b in range(2))]
    names += [f"blocks.{b}.hook_mlp_out" for b in range(2)]
    before = bridge.cfg.use_attn_result
    bridge.set_use_attn_result(True)
    try:

        def parts(batch, keep):
            inputs = dict(batch.inputs)
            with torch.no_grad():
                _, cache = bridge.run_with_cache(
                    inputs.pop("input_ids"), names_filter=names, **inputs
                )
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


def loop_terms(host, bank, samples, concept, layer):
    """Terms `[token, component]` and scores of each sample, one at a time."""
    rows = [explain_tokens(host, bank, s, concept, layer=layer) for s in samples]
    return [r.terms.astype(float) for r in rows], [r.score for r in rows]


def loop_lift(terms, tails):
    top = [(t, tail) for t, tail in zip(terms, tails, strict=True) if tail.any() and not tail.all()]
    pairs = [token - t[~tail].mean(0) for t, tail in top for token in t[tail]]
    return np.mean(pairs, axis=0)


def test_lift_contrast_and_control_equal_loops(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    samples, bank = data.test.samples, fake_detector.bank
    for k, column in enumerate(found.columns):
        concept, layer = column.concept, column.layer
        depth = slice(0, 1 + 3 * found.depths[k])
        terms, scores = loop_terms(fake, bank, samples, concept, layer)
        tails = [s.astype(float) >= column.threshold for s in scores]
        assert found.lift.n_tokens[k] == sum(int(t.sum()) for t in tails if not t.all())
        np.testing.assert_allclose(
            found.lift.terms.value[depth, k], loop_lift(terms, tails), atol=2e-5
        )
        inside = [np.array([concept in (label,) for label in labels_of(s)]) for s in samples]
        mean_in = np.concatenate([t[i] for t, i in zip(terms, inside, strict=True)]).mean(0)
        negative = [t for t, s in zip(terms, samples, strict=True) if concept not in s.positive]
        contrast = mean_in - np.concatenate(negative).mean(0)
        np.testing.assert_allclose(found.contrast.terms.value[depth, k], contrast, atol=2e-5)

        null = replace(bank, token=bank.permuted)
        null_terms, null_scores = loop_terms(fake, null, samples, concept, layer)
        n_tail = sum(int(t.sum()) for t in tails)
        cut = np.sort(np.concatenate(null_scores))[-n_tail] if n_tail else np.inf
        null_tails = [s >= cut for s in null_scores]
        size = 1.0
        if bank.token.scoring == "dot":
            v, p = bank.vector(concept, layer), null.vector(concept, layer)
            size = float(v.norm() / p.norm())
        control = size * loop_lift(null_terms, null_tails)
        capacity = 0.1 * sum(map(len, null_scores))
        if n_tail <= capacity:
            np.testing.assert_allclose(found.control.terms.value[depth, k], control, atol=2e-5)
        np.testing.assert_allclose(
            found.excess.terms.value, found.lift.terms.value - found.control.terms.value, atol=1e-9
        )


def labels_of(sample):
    return ["animal" if w in ANIMALS else "food" if w in FOODS else "" for w in sample.text.split()]


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
        assert found.lift.total.value[k] == pytest.approx(lift[0], abs=1e-5)
        negative = ~table.tokens.sample_labels[table.tokens.sample_of, k]
        inside = table.tokens.labels[:, k]
        contrast = scores[inside, k].mean() - scores[negative, k].mean()
        assert found.contrast.total.value[k] == pytest.approx(contrast, abs=1e-5)
        means = {name: values[:, k].sum() for name, values in found.means.items()}
        assert means["tail"] - means["same_samples"] == pytest.approx(lift[0], abs=1e-5)
        assert means["out_of_concept"] == pytest.approx(scores[negative, k].mean(), abs=1e-5)
        rest = inside & ~decided[:, k]
        assert means["in_concept_rest"] == pytest.approx(scores[rest, k].mean(), abs=1e-5)
        best = [scores[r, k].max() for n, r in enumerate(rows)
                if not table.tokens.sample_labels[n, k]]  # fmt: skip
        assert means["strongest_out_of_concept"] == pytest.approx(np.mean(best), abs=1e-5)


def test_parts_add_up(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    for one in (found, found.projection) if found.projection else (found,):
        for effect in one.effects.values():
            np.testing.assert_allclose(effect.terms.value.sum(0), effect.total.value, atol=1e-9)
            np.testing.assert_allclose(effect.shares.value.sum(0), 1, atol=1e-9)
        for name in ("lift", "contrast"):
            e = one.effects[name]
            assert (e.total.low <= e.total.value).all()
            assert (e.total.value <= e.total.high).all()
    assert (found.projection is None) == (fake_detector.bank.token.scoring == "dot")


def test_cosine_projection_is_the_dot_ledger_of_the_unit_vector(fake, data):
    bank = fit(fake, data, "prototype", layers=[2], progress=False)
    unit = bank.token.vectors / bank.token.vectors.norm(dim=-1, keepdim=True)
    dot = replace(bank, token=replace(bank.token, vectors=unit, scoring="dot"), permuted=None)
    rng = np.random.default_rng(3)
    tail = [rng.random((len(s.text.split()), 2)) < 0.2 for s in data.test.samples]
    cosine, plain = (ledger(fake, data, b, tail=tail) for b in (bank, dot))
    for name in ("lift", "contrast"):
        a, b = cosine.projection.effects[name], plain.effects[name]
        for x, y in zip(a.terms, b.terms, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


def test_batches_and_order_change_nothing(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    small = ledger(fake, data, fake_detector, batch_tokens=30)
    reverse = ledger(fake, data, fake_detector, samples=data.test.samples[::-1])
    for other in (small, reverse):
        for name, effect in found.effects.items():
            np.testing.assert_allclose(
                other.effects[name].terms.value, effect.terms.value, atol=1e-5
            )


def test_one_forward_pass_a_sample(data, fake_detector):
    host = FakeHost()
    ledger(host, data, fake_detector)
    assert host.passes == len(data.test)


def test_scaling_vectors_scales_dot_terms_and_nothing_else(fake, data):
    bank = fit(fake, data, "lda", layers=[1], progress=False)
    rng = np.random.default_rng(3)
    tail = [rng.random((len(s.text.split()), 2)) < 0.2 for s in data.test.samples]
    one, two = (ledger(fake, data, b, tail=tail) for b in (bank, bank.scaled(4.0)))
    np.testing.assert_array_equal(two.lift.terms.value, 4 * one.lift.terms.value)
    np.testing.assert_allclose(two.lift.shares.value, one.lift.shares.value, rtol=1e-12)
    # The control is in the units of the concept's score, whatever the permuted vector's length.
    longer = replace(bank, permuted=replace(bank.permuted, vectors=bank.permuted.vectors * 8))
    np.testing.assert_allclose(
        ledger(fake, data, longer, tail=tail).control.terms.value, one.control.terms.value,
        rtol=1e-6,
    )  # fmt: skip


def test_excess_of_random_vectors_is_zero_on_average(fake):
    """Lift selects on its own sum; the control takes that away."""
    n_vectors = 60
    data = make_data(120, seed=5)
    generator = torch.Generator().manual_seed(11)
    names = tuple(f"random {k}" for k in range(n_vectors))

    def draw():
        vectors = torch.randn(1, n_vectors, fake.info.d_model, generator=generator)
        return replace(base.token, vectors=vectors / vectors.norm(dim=-1, keepdim=True))

    base = fit(fake, data, "lda", layers=[2], progress=False)
    bank = replace(
        base, concepts=names, units=names, token=draw(), permuted=draw(), pooled=None,
        origin=Origin(),
    )  # fmt: skip
    named = ConceptData.from_spans(
        [s.text for s in data.samples],
        [[(0, 1, name) for name in names if k % 2] for k, _ in enumerate(data.samples)],
        split=data.split_of,
    )
    table = score(fake, named, bank, splits=["test"], progress=False)
    flat = table.scores[:, 0]
    cut = np.sort(flat, axis=0)[-round(0.04 * len(flat))]
    tail = np.split(flat >= cut, table.tokens.bounds[1:-1])
    found = ledger(fake, named, bank, tail=tail, concepts=names)

    def t_of(effect):
        sizes = effect.terms.value / effect.terms.value.std()
        mean = sizes.mean(0)
        return mean.mean() / (mean.std(ddof=1) / np.sqrt(n_vectors))

    assert t_of(found.lift) > 10
    assert t_of(found.control) > 10
    assert abs(t_of(found.excess)) < 3
    heads = found.excess.terms.value[[c.kind == "heads" for c in found.components]]
    per_head = heads.mean(1) / (heads.std(1, ddof=1) / np.sqrt(n_vectors))
    assert (np.abs(per_head) < 4).all()


class Broken:
    """A host whose weights or writes are not the model's."""

    def __init__(self, host, *, factor=1.0, block=1, extra=0.0):
        self.host, self.factor, self.block, self.extra = host, factor, block, extra
        self.info = host.info

    def __getattr__(self, name):
        return getattr(self.host, name)

    def output_projection(self, layer):
        weight, bias = self.host.output_projection(layer)
        return OutputProjection(weight * (self.factor if layer == self.block else 1.0), bias)

    def read(self, batch, sites, reduce):
        def changed(read):
            return reduce({
                site: v + self.extra if site == Site(self.block, "resid_post") else v
                for site, v in read.items()
            })  # fmt: skip

        return self.host.read(batch, sites, changed)


def test_a_wrong_output_projection_raises(host, data):
    bank = fit(host, data, "lda", progress=False)
    raw = replace(bank, component_means=None)
    with pytest.raises(LedgerError, match=r"block 1: its heads' z W_O \+ b_O miss its attn_out"):
        ledger(Broken(host, factor=1.01), data, raw)
    with pytest.raises(LedgerError, match=r"'animal' at block 1 .* token .* of sample '"):
        explain_tokens(Broken(host, factor=1.01), raw, data.test.samples[0], "animal", layer=1)
    with pytest.raises(LedgerError, match="misses the normaliser's mean"):
        ledger(Broken(host, factor=1.05), data, bank)


def test_an_unlisted_write_raises(fake, data):
    bank = ConceptBank.from_vectors({("animal", 1): torch.ones(12), ("food", 1): torch.ones(12)})
    with pytest.raises(LedgerError, match="block 1: it adds something to the residual stream"):
        ledger(Broken(fake, extra=0.5), data, bank)


def test_means_of_other_tokens_raise(fake, data):
    bank = fit(fake, data, "lda", progress=False)
    means = replace(bank.component_means, mlp=bank.component_means.mlp * 1.1)
    with pytest.raises(LedgerError, match="add up to a vector that misses the normaliser's mean"):
        ledger(fake, data, replace(bank, component_means=means))
    whole = bank.component_means
    short = replace(whole, z=whole.z[:1], mlp=whole.mlp[:1])
    with pytest.raises(LedgerError, match="component means end before block 1"):
        ledger(fake, data, replace(bank, component_means=short))


@pytest.mark.parametrize("architecture", ["gemma2", "bert"])
def test_other_blocks_are_refused_with_the_reason(architecture, data):
    host = tiny.host(architecture)
    d_model = host.info.d_model
    bank = ConceptBank.from_vectors({(c, 1): torch.ones(d_model) for c in data.concepts})
    with pytest.raises(NotImplementedError, match="its blocks normalise what they write"):
        ledger(host, data, bank)


def test_other_hook_points_are_refused(fake, data):
    vectors = {(c, 1): torch.ones(12) for c in data.concepts}
    bank = ConceptBank.from_vectors(vectors, hook_point="mlp_out")
    with pytest.raises(NotImplementedError, match="this bank is read at 'mlp_out'"):
        ledger(fake, data, bank)


def test_resid_pre_ends_a_block_earlier(fake, data):
    bank = fit(fake, data, "lda", layers=[1, 2], hook_point="resid_pre", progress=False)
    found = ledger(fake, data, bank)
    assert found.depths == (1, 2, 1, 2)
    assert found.residue < 1e-6
    assert found.head_map("animal", layer=1).shape == (1, 2)
    late = [c.block == 1 for c in found.components]
    assert (found.contrast.terms.value[late, 0] == 0).all()


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


def test_results_are_readable(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector, scores=score(
        fake, data, fake_detector.bank, progress=False))  # fmt: skip
    assert repr(found).startswith("HeadLedger(2 scores, ")
    assert "\n" not in repr(found)
    said = " ".join(found.summary(3).split())
    assert "strongest heads by excess" in said
    assert "Negative numbers work against the concept." in said
    assert "one permutation per concept: a scale of what selection alone gives, not a test" in said
    assert f"ranked on the split shown (test), out of {found.candidates} candidates" in said
    rows = found.strongest(3)
    sizes = [abs(r["excess"]) / abs(found.lift.total.value[found.column(r["concept"])])
             for r in rows]  # fmt: skip
    assert sizes == sorted(sizes, reverse=True)
    assert all(r["kind"] == "heads" and r["excess_low"] <= r["excess_high"] for r in rows)
    assert len(found.table()) == sum(1 + 3 * depth for depth in found.depths)
    assert len(found.shares_table()) == 4 * len(found.columns)
    share = found.share("heads")
    np.testing.assert_allclose(share.value, found.lift.shares.value[KINDS.index("heads")])
    assert not list(_problems(clean(found.to_dict()), Heads, "heads"))
    one = explain_tokens(fake, fake_detector, data.test.samples[0], "animal")
    assert len(one.table()) == len(one.score)
    assert len(one.strongest(0, 3)) == 3
    assert "SuperActivators" in repr(one)


def test_how_often_intervals_exclude_zero_is_counted(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    block = found.to_dict()
    for name in ("lift", "control", "excess", "contrast"):
        outside, n = 0, 0
        for k, depth in enumerate(found.depths):
            for i, component in enumerate(found.components):
                low, high = (end[i, k] for end in found.effects[name].terms[1:])
                if component.kind == "heads" and component.block < depth and np.isfinite(low):
                    n += 1
                    outside += low > 0 or high < 0
        assert found.excluding_zero[name] == pytest.approx(outside / n)
        assert block["excludes_zero"][name] == pytest.approx(outside / n)
    assert block["candidates"] == found.candidates == len(found.strongest(10**6))


def test_a_meaningless_vector_has_lifts_whose_intervals_exclude_zero(fake, fake_detector, data):
    """Why the control is a scale and no test: its own intervals exclude zero."""
    assert ledger(fake, data, fake_detector).excluding_zero["control"] > 0.05


def test_shares_say_what_they_are_of(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    block = found.to_dict()
    assert block["shares_of"] == "contrast"
    for k, column in enumerate(found.columns):
        one = block["concepts"][column.concept]
        assert one["total"] == found.lift.total.value[k]
        for key, effect in (("shares", found.contrast), ("lift_shares", found.lift)):
            share = effect.shares.value[KINDS.index("heads"), k]
            assert one[key]["head_share"] == share


def test_heads_that_raise_and_lower_are_listed_apart(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector)
    signs = [row["excess"] > 0 for row in found.strongest(8)]
    text = found.summary(8)
    parts = text.partition("\n\nlower the score:\n")
    raising = parts[0].partition("raise the score:\n")[2]
    assert raising.count(" -> ") == sum(signs)
    assert parts[2].count(" -> ") == len(signs) - sum(signs)


def test_no_superactivator_is_a_named_warning(fake, fake_detector, data):
    class Never(type(fake_detector)):
        @property
        def threshold(self):
            return dict.fromkeys(self.concepts, float("inf"))

    never = Never(**{f: getattr(fake_detector, f) for f in fake_detector.__dataclass_fields__})
    with pytest.warns(NoTailWarning, match="no SuperActivator of 'animal', 'food' in"):
        found = ledger(fake, data, never)
    assert np.isnan(found.lift.terms.value).all()
    assert np.isfinite(found.contrast.terms.value).all()


def test_one_document_has_no_interval(fake, data):
    bank = fit(fake, data, "lda", layers=[1], progress=False)
    masks = [np.zeros((len(s.text.split()), 2), dtype=bool) for s in data.test.samples]
    masks[0][1] = True
    masks[1][2, 1] = True
    assert data.test.samples[0].document != data.test.samples[1].document
    found = ledger(fake, data, bank, tail=masks)
    assert np.isfinite(found.lift.terms.value).all()
    assert np.isnan(found.lift.terms.low[:, 0]).all()
    assert np.isfinite(found.lift.terms.low[:, 1]).all()
    assert {row["concept"] for row in found.strongest(50)} == {"food"}


def test_bad_input(fake, fake_detector, data):
    bank = fake_detector.bank
    with pytest.raises(ValueError, match="a detector has chosen its layers and its tail"):
        ledger(fake, data, fake_detector, layers=[1])
    with pytest.raises(ValueError, match="'animl' is not among the concepts: did you mean"):
        ledger(fake, data, fake_detector, concepts=["animl"])
    with pytest.raises(ValueError, match="of the train split the vectors were fitted on"):
        ledger(fake, data, fake_detector, split="train")
    with pytest.raises(ValueError, match=r"layer 9 does not exist"):
        ledger(fake, data, bank, layers=[9])
    with pytest.raises(ValueError, match="a mask of `tail` has shape"):
        ledger(fake, data, bank, tail=[np.zeros((1, 1), dtype=bool)] * len(data.test))
    with pytest.raises(ValueError, match="the bank was fitted on"):
        ledger(FakeHost(seed=3), data, fake_detector)
    other = score(fake, data, bank, splits=["cal"], progress=False)
    with pytest.raises(ValueError, match=r"the scores hold 0 of the ledger's"):
        ledger(fake, data, fake_detector, scores=other)
    with pytest.raises(ValueError, match=r"the bank has layers \(0, 1, 2\): name one"):
        explain_tokens(fake, bank, "cat sat", "animal")
    assert isinstance(bank.token, VectorSet)
