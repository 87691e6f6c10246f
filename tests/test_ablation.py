"""Laws of ablation: edits reach the model and leave it, and what is measured is what plain loops
measure on the same tokens."""

import warnings
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import sklearn.metrics as skm
import tiny
import torch
from fake_host import HEADS, WIDTH, FakeHost

from sa_plugin.data import ConceptData
from sa_plugin.detection.calibrate import calibrate
from sa_plugin.fitting import fit
from sa_plugin.heads import explain_tokens
from sa_plugin.heads.ablation import ablate_heads
from sa_plugin.heads.modes import make_edits, one_direction, reference
from sa_plugin.heads.ranking import candidates, control_set, head_changes, rank_heads
from sa_plugin.heads.runs import baseline, known_of
from sa_plugin.heads.sweep_heads import ablation_curve
from sa_plugin.heads.tail_metrics import METRICS
from sa_plugin.host import Site
from sa_plugin.scoring import score
from sa_transformer_lens import ablation_hooks, accept
from sa_transformer_lens.capture import capture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ANIMALS, FOODS = ("cat", "dog", "cow"), ("bread", "soup")
WORDS = (*ANIMALS, *FOODS, "sat", "ran", "tall", "house", "river", "blue", "over", "under")
EVERY = (*tiny.ARCHITECTURES, *tiny.VISION, "clip_text")
PROJECTIONS = (
    "attn.c_proj", "attention.dense", "o_proj", "attention.output.dense", "self_attn.out_proj",
)  # fmt: skip


def make_data(n=80, documents=40, seed=0):
    rng = np.random.default_rng(seed)
    words = [list(rng.choice(WORDS, rng.integers(4, 12))) for _ in range(n)]
    labels = [
        ["animal" if w in ANIMALS else "food" if w in FOODS else None for w in row] for row in words
    ]
    names = [f"d{k % documents}" for k in range(n)]
    return ConceptData.from_words(words, labels, seed=1, documents=names)


class EditableFake(FakeHost):
    """The fake host, with edits of z: its blocks again, because its own loop has no seam."""

    edits: tuple = ()

    @contextmanager
    def edited(self, edits):
        before = self.edits
        self.edits = (*before, edits)
        try:
            yield
        finally:
            self.edits = before

    def read(self, batch, sites, reduce):
        deepest = max(site.layer for site in sites)
        wanted = {Site(0, "resid_pre")}
        got = {}
        super().read(batch, list(wanted), lambda read: got.update(read) or {})
        x = got[Site(0, "resid_pre")]
        for k in range(deepest + 1):
            got[Site(k, "resid_pre")] = x
            context = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
            z = torch.einsum("btd,hde->bthe", context, self.w_v[k]).tanh()
            for edits in self.edits:
                z = edits.get(Site(k, "z"), lambda same: same)(z)
            attn = torch.einsum("bthe,hed->btd", z, self.w_o[k]) + self.b_o[k]
            mlp = ((x + attn) @ self.mlp[k]).tanh()
            x = x + attn + mlp
            got |= {Site(k, "z"): z, Site(k, "attn_out"): attn, Site(k, "mlp_out"): mlp}
            got[Site(k, "resid_post")] = x
        return reduce({site: got[site].clone() for site in sites})


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def fake():
    return EditableFake()


@pytest.fixture(scope="module")
def scores(fake, data):
    bank = fit(fake, data, "lda", layers=[1, 2], progress=False)
    return score(fake, data, bank, progress=False)


@pytest.fixture(scope="module")
def detector(fake, data, scores):
    return calibrate(fake, data, scores.bank, scores=scores, deltas=(0.1, 0.3, 0.5))


def any_host(name):
    if name == "clip_text":
        return accept(tiny.vision_bridge(name))
    return tiny.host(name) if name in tiny.ARCHITECTURES else tiny.vision_host(name)


@pytest.fixture(scope="module", params=EVERY)
def named(request):
    return request.param, any_host(request.param)


def some_samples(name):
    return tiny.images()[:1] if name in tiny.VISION else tiny.samples()[1:2]


def residual(host, batch, layer=2):
    return host.read(batch, [Site(layer, "resid_post")], lambda r: {"h": next(iter(r.values()))})[
        "h"
    ]


def zero(*heads):
    return lambda z: z.index_fill(2, torch.tensor(heads), 0.0)


def test_a_fake_without_edits_is_the_fake(fake, data):
    (batch,) = fake.batches(data.test.samples[:4])
    torch.testing.assert_close(residual(fake, batch), residual(FakeHost(), batch))


# The edits themselves, on every architecture.


def test_edit_equals_hooks_of_torch_on_the_plain_model(named):
    """One head of two blocks against pre-hooks on a copy that no bridge has touched."""
    name, host = named
    (batch,) = host.batches(some_samples(name))
    build = tiny.hf_model if name in tiny.ARCHITECTURES else tiny.vision_model
    model = build(name)
    linear = [m for n, m in model.named_modules() if n.endswith(PROJECTIONS)]
    assert len(linear) == tiny.N_LAYERS
    value = torch.linspace(-1, 1, tiny.D_HEAD)

    def before(module, args):
        z = args[0].clone()
        z[..., tiny.D_HEAD : 2 * tiny.D_HEAD] = value
        return (z, *args[1:])

    for module in linear[:2]:
        module.register_forward_pre_hook(before)
    with torch.no_grad():
        states = model(**dict(batch.inputs), output_hidden_states=True).hidden_states

    def edit(z):
        z[:, :, 1] = value
        return z

    clean = residual(host, batch, 1)
    with host.edited({Site(layer, "z"): edit for layer in (0, 1)}):
        got = residual(host, batch, 1)
    torch.testing.assert_close(got, states[2], atol=1e-4, rtol=1e-4)
    assert (got - clean).abs().max() > 1e-2


def test_zero_of_all_heads_leaves_the_bias(named):
    name, host = named
    (batch,) = host.batches(some_samples(name))
    raw = "blocks.1.attn.o.hook_out"
    with host.edited({Site(1, "z"): torch.zeros_like}):
        out = capture(host.bridge, [raw], batch.inputs)[raw]
    bias = host.output_projection(1).bias
    expected = torch.zeros(host.info.d_model) if bias is None else bias
    torch.testing.assert_close(out, expected.expand_as(out))


def test_the_model_is_as_before(named):
    name, host = named
    (batch,) = host.batches(some_samples(name))
    clean = residual(host, batch)
    hooks = {n: len(h.fwd_hooks) for n, h in host.bridge.hook_dict.items()}

    def fail(z):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), host.edited({Site(0, "z"): fail}):
        residual(host, batch)
    with host.edited({Site(0, "z"): zero(0)}):
        residual(host, batch)
    assert {n: len(h.fwd_hooks) for n, h in host.bridge.hook_dict.items()} == hooks
    assert torch.equal(residual(host, batch), clean)


def test_edits_nest(tiny_gpt2):
    (batch,) = tiny_gpt2.batches(tiny.samples()[:1])
    with tiny_gpt2.edited({Site(0, "z"): zero(0, 2), Site(1, "z"): zero(1)}):
        both = residual(tiny_gpt2, batch)
    with tiny_gpt2.edited({Site(0, "z"): zero(0), Site(1, "z"): zero(1)}):
        outer = residual(tiny_gpt2, batch)
        with tiny_gpt2.edited({Site(0, "z"): zero(2)}):
            assert torch.equal(residual(tiny_gpt2, batch), both)
        assert torch.equal(residual(tiny_gpt2, batch), outer)


def test_compatibility_mode_edits_once():
    bridge = tiny.bridge("gpt2")
    bridge.enable_compatibility_mode()
    host = accept(bridge)
    (batch,) = host.batches(tiny.samples()[:1])
    with host.edited({Site(0, "z"): lambda z: 2 * z}):
        doubled = capture(bridge, ["blocks.0.attn.hook_z"], batch.inputs)
    plain = capture(bridge, ["blocks.0.attn.hook_z"], batch.inputs)
    torch.testing.assert_close(*(2 * plain[k] if s else doubled[k] for s in (0, 1) for k in plain))


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ({Site(0, "z"): lambda z: z}, "changed nothing: it would report an effect of zero"),
        ({Site(2, "z"): zero(0)}, "fired 0 times in one forward pass, expected once"),
        ({Site(0, "z"): lambda z: z[:, 1:]}, "expected torch.float32"),
    ],
)
def test_silent_edits_raise(tiny_gpt2, edits, text):
    (batch,) = tiny_gpt2.batches(tiny.samples()[:1])
    with pytest.raises(RuntimeError, match=text), tiny_gpt2.edited(edits):
        residual(tiny_gpt2, batch, 1)


def test_an_edit_that_another_hook_takes_back_is_lost(tiny_gpt2):
    """Stands for a projection that does not see the edit."""
    (batch,) = tiny_gpt2.batches(tiny.samples()[:1])
    name = "blocks.0.attn.o.hook_in"
    clean = capture(tiny_gpt2.bridge, ["blocks.0.attn.hook_z"], batch.inputs)
    back = clean["blocks.0.attn.hook_z"]
    with (
        pytest.raises(RuntimeError, match="was lost: the output projection gave"),
        tiny_gpt2.edited({Site(0, "z"): zero(0)}),
        tiny_gpt2.bridge.hooks(fwd_hooks=[(name, lambda z, hook: back.clone())]),
    ):
        residual(tiny_gpt2, batch)


def test_refusals_of_edits(tiny_gpt2):
    for edits, text in (({}, "edits is empty"), ({Site(0, "pattern"): zero(0)}, "only 'z'")):
        with pytest.raises(ValueError, match=text), tiny_gpt2.edited(edits):
            pass
    with (
        pytest.raises(RuntimeError, match="no forward pass ran"),
        tiny_gpt2.edited({Site(0, "z"): zero(0)}),
    ):
        pass


# Modes.


def test_mean_is_the_train_mean_of_z_at_every_position(tiny_host, data):
    """The mean by a loop over kept tokens; the bank's own where it has one, else a pass."""
    host = tiny_host
    bank = fit(host, data, "prototype", layers=[1], progress=False)
    known = reference(host, data, bank, "mean", {0, 1})
    total, n = 0.0, 0
    table = score(host, data, bank, splits=["train"], progress=False).tokens
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


def test_resample_takes_all_heads_of_a_position_from_one_train_token(fake, data, detector):
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
    distance = torch.cdist(known.donors[0].flatten(1), rows[train.valid].flatten(1),
                           compute_mode="donot_use_mm_for_euclid_dist")  # fmt: skip
    assert distance.amin(1).max() < 1e-4


@pytest.mark.parametrize("architecture", tiny.PRE_NORM)
def test_directional_makes_the_heads_term_constant(architecture, data):
    """Of the ledger's terms in its block, that head's alone changes: to its train mean."""
    host = tiny.host(architecture)
    bank = fit(host, data, "lda", layers=[1], progress=False)
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


def test_directional_is_refused_behind_a_norm(data):
    host = tiny.host("bert")
    bank = fit(host, data, "prototype", layers=[1], progress=False)
    with pytest.raises(NotImplementedError, match="post_ln: a norm stands between"):
        one_direction(host, bank, "animal", 1, [(0, 0)])


@pytest.mark.parametrize("architecture", tiny.PRE_NORM)
def test_ledger_predicts_a_last_block_head_exactly(architecture, data):
    """Mean ablation takes a head's centred term out; only the MLP behind it can answer, and in a
    parallel block none does."""
    host = tiny.host(architecture)
    bank = fit(host, data, "lda", layers=[2], progress=False)
    sample = data.test.samples[0]
    clean = explain_tokens(host, bank, sample, "food")
    edits = make_edits("mean", [(2, 1)], reference(host, data, bank, "mean", {2}))
    with host.edited(edits):
        found = explain_tokens(host, bank, sample, "food")
    names = [c.name for c in clean.components]
    head, mlp = names.index("L2H1"), names.index("L2 MLP")
    answer = found.terms[:, mlp] - clean.terms[:, mlp]
    np.testing.assert_allclose(
        found.score - clean.score, answer - clean.terms[:, head], atol=5e-5, rtol=1e-4
    )
    assert np.abs(clean.terms[:, head]).max() > 1e-3
    if architecture == "neox":
        np.testing.assert_allclose(answer, 0, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "zero", "resample", "directional"])
def test_hooks_of_ones_own_runs_do_the_same(tiny_gpt2, data, mode):
    host = tiny_gpt2
    bank = fit(host, data, "prototype", layers=[2], progress=False)
    heads = [(0, 1), (2, 0), (2, 3)]
    options = {} if mode == "zero" else {"bank": bank, "data": data, "concept": "animal"}
    hooks = ablation_hooks(host, heads, mode, **options)
    (batch,) = host.batches(tiny.samples()[:1])
    inputs, last = dict(batch.inputs), "blocks.2.hook_resid_post"
    seen = []
    host.bridge.run_with_hooks(
        inputs.pop("input_ids"),
        fwd_hooks=[*hooks, (last, lambda h, hook: seen.append(h.clone()))],
        **inputs,
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


def test_rows_are_those_of_the_unablated_run(tiny_gpt2, data):
    host = tiny_gpt2
    bank = fit(host, data, "prototype", layers=[1], progress=False)
    clean = score(host, data, bank, progress=False)

    def sink(z):
        z[:, 2] = 200.0
        return z

    with host.edited({Site(0, "z"): sink}):
        moved = score(host, data, bank, progress=False)
        frozen = score(host, data, bank, progress=False, keep_of=clean.tokens)
    assert len(moved.tokens) < len(clean.tokens)
    np.testing.assert_array_equal(frozen.tokens.position, clean.tokens.position)
    np.testing.assert_array_equal(frozen.tokens.labels, clean.tokens.labels)
    # Row by row: an unedited run under the mask of the edited one is the clean one's part.
    part = score(host, data, bank, progress=False, keep_of=moved.tokens)
    rows = [
        a + int(np.flatnonzero(clean.tokens.position[a:b] == p)[0])
        for n, (a, b) in enumerate(pairwise(clean.tokens.bounds))
        for p in moved.tokens.position[moved.tokens.bounds[n] : moved.tokens.bounds[n + 1]]
    ]
    np.testing.assert_array_equal(part.scores, clean.scores[rows])
    again = score(host, data, bank, progress=False, keep_of=clean.tokens)
    np.testing.assert_array_equal(again.scores, clean.scores)
    for field in ("pooled", "permuted_max"):
        np.testing.assert_array_equal(getattr(again, field), getattr(clean, field))


def test_a_table_of_other_samples_is_refused(fake, data, scores):
    with pytest.raises(ValueError, match="is not in the table whose rows are to be kept"):
        score(fake, data, scores.bank, splits=["train"], progress=False, keep_of=scores.tokens)


# What is measured.


def metrics_by_loop(detector, cal, test, clean_test, deltas=(0.1, 0.3, 0.5)):
    """Every metric on the split itself, concept by concept, from score tables."""
    found = {name: [] for name in METRICS}
    for k, concept in enumerate(detector.concepts):
        at, unit = detector.tail.layer[k], detector.tail.chosen_unit[k]
        c, t, base = (x.scores[:, at, unit].astype(float) for x in (cal, test, clean_test))
        y = test.tokens.sample_labels[:, k]
        inside, negative = test.tokens.labels[:, k], ~y[test.tokens.sample_of]
        gap = np.quantile(t[inside], 1 - detector.delta[concept]) - np.quantile(t[negative], 0.995)
        found["tail_gap"].append(gap / base[negative].std())
        top = np.array([t[a:b].max() for a, b in pairwise(test.tokens.bounds)])
        cal_top = np.array([c[a:b].max() for a, b in pairwise(cal.tokens.bounds)])
        cal_y = cal.tokens.sample_labels[:, k]
        q = np.quantile(c[~cal_y[cal.tokens.sample_of]], 0.995)
        found["coverage"].append((top[y] > q).mean())
        found["negative_coverage"].append((top[~y] > q).mean())
        found["auroc"].append(skm.roc_auc_score(y, top))
        found["average_precision"].append(skm.average_precision_score(y, top))
        tau = detector.threshold[concept]
        found["f1_frozen"].append(skm.f1_score(y, top >= tau))
        cuts = [np.quantile(c[cal.tokens.labels[:, k]], 1 - d) for d in deltas]
        best = max(cuts, key=lambda cut: (skm.f1_score(cal_y, cal_top >= cut), cut))
        found["f1_recalibrated"].append(skm.f1_score(y, top >= best))
    return found


@pytest.mark.parametrize("mode", ["mean", "zero"])
def test_metrics_equal_loops_before_and_after(fake, data, scores, detector, mode):
    heads = [(0, 1), (1, 0)]
    found = ablate_heads(fake, data, detector, heads, mode=mode, scores=scores, draws=50)
    known = reference(fake, data, detector.bank, mode, {0, 1})
    with fake.edited(make_edits(mode, heads, known)):
        after = score(fake, data, detector.bank, progress=False, keep_of=scores.tokens)
    clean = scores.split("test")
    for table, when in ((scores, found.before), (after, found.after)):
        expected = metrics_by_loop(detector, table.split("cal"), table.split("test"), clean)
        for name in METRICS:
            np.testing.assert_allclose(when[name][:, 0], expected[name], atol=1e-4, err_msg=name)
    assert found.change.min() > 0.01
    np.testing.assert_array_equal(found.before["f1_frozen"], found.before["f1_recalibrated"])


def test_scores_given_or_not_and_in_any_order(fake, data, scores, detector):
    options = {"draws": 20, "mode": "mean"}
    one = ablate_heads(fake, data, detector, [(0, 0)], scores=scores, **options)
    two = ablate_heads(fake, data, detector, [(0, 0)], **options)
    backwards = scores.select(np.arange(scores.tokens.n_samples)[::-1])
    three = ablate_heads(fake, data, detector, [(0, 0)], scores=backwards, **options)
    for name in METRICS:
        for other in (two, three):
            np.testing.assert_allclose(one.after[name], other.after[name], atol=1e-6)
            np.testing.assert_allclose(one.before[name], other.before[name], atol=1e-6)


def test_differences_are_paired(fake, data, scores, detector):
    found = ablate_heads(fake, data, detector, [(0, 0)], scores=scores, draws=100)
    for name in METRICS:
        drawn = found.after[name] - found.before[name]
        got = found.difference(name, "animal")
        np.testing.assert_allclose(
            [got.low, got.high], np.nanquantile(drawn[0, 1:], [0.025, 0.975])
        )
        assert found.difference(name).estimate == pytest.approx(drawn[:, 0].mean())


def test_heads_by_concept_and_heads_out_of_reach(fake, data, detector, scores):
    options = {"scores": scores, "draws": 20}
    apart = ablate_heads(fake, data, detector, {"animal": [(0, 0)]}, **options)
    both = ablate_heads(fake, data, detector, [(0, 0)], **options)
    k, other = (detector.concepts.index(c) for c in ("animal", "food"))
    for name in METRICS:
        np.testing.assert_allclose(apart.after[name][k], both.after[name][k], atol=1e-6)
        np.testing.assert_array_equal(apart.after[name][other], apart.before[name][other])
    assert apart.heads == {"animal": ((0, 0),), "food": ()}
    assert apart.change[other] == 0
    assert "No head writes before the layer of food" in apart.summary()
    early = calibrate(fake, data, fit(fake, data, "lda", layers=[0], progress=False))
    with pytest.raises(ValueError, match="the scores cannot change"):
        ablate_heads(fake, data, early, [(1, 0)], draws=20)


def test_refusals(fake, data, detector, scores):
    for heads, options, text in (
        ([], {}, "ablating nothing changes nothing"),
        ({}, {}, "ablating nothing changes nothing"),
        ({"animl": [(0, 0)]}, {}, "did you mean 'animal'"),
        ([(0, 0)], {"mode": "average"}, "mode 'average' is unknown"),
        ([(0, 0)], {"split": "train"}, "of 'train' that vectors were fitted on"),
    ):
        with pytest.raises(ValueError, match=text):
            ablate_heads(fake, data, detector, heads, **options)
    with pytest.raises(TypeError, match=r"FakeHost \(fake\) cannot edit activations"):
        ablate_heads(FakeHost(), data, detector, [(0, 0)], scores=scores)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bert"])
@pytest.mark.parametrize("mode", ["mean", "zero", "resample"])
def test_every_block_kind_is_ablated_through(architecture, mode, data):
    host = tiny.host(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, "prototype", layers=[0, 2], progress=False)
        found = ablate_heads(host, data, calibrate(host, data, bank), [(0, 0), (0, 2)], mode=mode,
                             draws=20)  # fmt: skip
    assert (found.change > 0).all()
    assert "not compared with other heads" in found.summary().lower()
    assert repr(found).startswith(f"Ablation({mode} of 2 heads, 2 concepts, test split: tail gap")


# Rankings and controls.


def test_ranking_is_the_ledgers_on_calibration(fake, data, detector, scores):
    from sa_plugin.heads import head_ledger

    ranked = rank_heads(fake, data, detector, scores=scores)
    ledger = head_ledger(fake, data, detector, split="cal", draws=1, progress=False)
    share = ledger.excess.terms.value / np.abs(ledger.lift.total.value)
    values = {
        (c.block, c.head): share[i].mean()
        for i, c in enumerate(ledger.components) if c.kind == "heads"
    }  # fmt: skip
    assert list(ranked.heads) == sorted(values, key=lambda head: -values[head])
    assert set(ranked.heads) == set(candidates(fake, detector))
    size = rank_heads(fake, data, detector, by="size")
    assert (size.values >= 0).all()


def test_control_sets():
    ranked = [(layer, head) for head in range(6) for layer in range(5)]
    top, sizes = ranked[:7], {head: float(1 + head[0]) for head in ranked}
    counts = np.bincount([layer for layer, _ in top], minlength=5)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for family in ("random", "layer_matched", "norm_matched", "bottom"):
            others = control_set(family, top, ranked, sizes, rng)
            assert len(set(others)) == 7
            assert not set(others) & set(top)
            if family in ("layer_matched", "norm_matched"):
                # Size is a function of the layer here, so matching either matches both.
                assert (np.bincount([layer for layer, _ in others], minlength=5) == counts).all()
            if family == "bottom":
                assert others == tuple(ranked[-7:])


def test_sizes_are_direct_changes(fake, data, detector, scores):
    """One head at a time: the change of attn_out in its own block, kept tokens alone."""
    base = baseline(fake, data, detector, split="test", scores=scores, draws=10, seed=0)
    known = known_of(base, "mean", {0, 1, 2}, 0)
    sizes = head_changes(base, "mean", known)
    site, tokens = Site(1, "attn_out"), base.frozen.cal
    squares = []
    for n, sample in enumerate(data.cal.samples[:32]):
        (batch,) = fake.batches([sample])
        keep = tokens.position[tokens.bounds[n] : tokens.bounds[n + 1]]
        clean = fake.read(batch, [site], lambda r: {"a": r[site]})["a"]
        with fake.edited(make_edits("mean", [(1, 0)], known)):
            moved = fake.read(batch, [site], lambda r: {"a": r[site]})["a"]
        squares.append((moved - clean)[0, keep].square().sum(-1))
    assert sizes[1, 0] == pytest.approx(float(torch.cat(squares).mean().sqrt()), rel=1e-4)
    assert fake.w_o.shape[-1] == WIDTH


def test_curve(fake, data, detector, scores):
    ranked = rank_heads(fake, data, detector, scores=scores)
    curve = ablation_curve(
        fake, data, detector, ranked, ks=(1, 2), repeats=2, scores=scores, draws=50, progress=False
    )
    for k in (1, 2):
        for family in ("random", "layer_matched", "norm_matched"):
            sets = [frozenset(run.heads) for run in curve.of(k, family)]
            assert 1 <= len(set(sets)) == len(sets) <= 2
        assert len(curve.of(k, "top")) == len(curve.of(k, "bottom")) == 1
    top = ablate_heads(fake, data, detector, ranked.heads[:2], scores=scores, draws=50)
    for name in METRICS:
        (run,) = curve.of(2, "top")
        np.testing.assert_array_equal(run.result.after[name], top.after[name])
        left = curve.after(name, 2, "random").mean(0) - curve.after(name, 2, "top")[0]
        margin = curve.margin(name, 2, "random")
        assert margin.estimate == pytest.approx(left[0])
        np.testing.assert_allclose(margin.low, np.nanquantile(left[1:], 0.025))
        lowest = curve.after(name, 2, "random")[:, 0].min()
        clear = bool(margin.low > 0 and lowest > curve.after(name, 2, "top")[0, 0])
        assert curve.clear(name, 2, "random") == clear
    text = curve.summary()
    assert "Top 2, what controls leave beyond it:" in text
    assert "ranked by signed share of the excess on cal" in text
    assert "AblationCurve(mean, k [1, 2] of" in repr(curve)
    assert len(curve.table()) == len(curve.runs)
    with pytest.raises(ValueError, match="nothing was ablated at k = 3"):
        curve.of(3, "top")


def test_refusals_of_curves(fake, data, detector):
    every = candidates(fake, detector)
    for ranking, options, text in (
        (every, {"ks": (4,)}, "k = 4 lies outside 1 to"),
        (every, {"ks": ()}, "at least one of each"),
        (every[:1], {"ks": (1,)}, "its bottom is unknown"),
        (every, {"ks": (1,), "controls": ("rand",)}, "did you mean 'random'"),
    ):
        with pytest.raises(ValueError, match=text):
            ablation_curve(fake, data, detector, ranking, **options)


def test_directional_curve_runs_one_concept_at_a_time(fake, data, detector, scores):
    fake.passes = 0
    found = ablate_heads(fake, data, detector, [(0, 0)], mode="directional", scores=scores,
                         draws=10)  # fmt: skip
    n = len(data.cal.samples) + len(data.test.samples)
    probe = min(32, len(data.cal.samples))
    assert fake.passes == 2 * (n + probe) + probe
    assert (found.change > 0).all()
