"""Laws of the objectives: the definitions in NumPy, masks, gradients, errors."""

import importlib
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from sa_plugin.attribution import (
    NoSuperActivator,
    Objective,
    concept_score,
    cosine,
    objective,
    objective_names,
    register_objective,
    superactivator_margin,
)
from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Sample, Splits
from sa_plugin.detection import calibrate
from sa_plugin.host import Site

# `sa_plugin.attribution.objective` is the function, which hides the module of the same name.
module = importlib.import_module("sa_plugin.attribution.objective")
NAMES = ("superactivator", "superactivator_tokens", "superactivator_margin", "global")
ANIMALS = ("cat", "dog")
WORDS = (*ANIMALS, "sat", "mat", "people", "walk", "home", "night", "the", "on")


def make_data():
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(5, 10))) for _ in range(60)]
    labels = [["animal" if w in ANIMALS else None for w in row] for row in words]
    return ConceptData.from_words(words, labels, splits=Splits(seed=1))


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module", params=["prototype", "lda"])
def detector(request, data):
    host = tiny.host("gpt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, request.param, layers=[1, 2])
        return calibrate(host, data, bank, deltas=(0.3, 0.6))


@pytest.fixture(scope="module")
def sample(detector, data):
    return next(s for s in data.test.samples if len(detector.find(s)) > 1)


def clean(detector, sample):
    """The raw residual of the sample at the detector's layer, as the bridge gives it."""
    host = detector.host
    inputs = host.forward_inputs(sample)
    name = host.hook_name(Site(detector.layer["animal"], "resid_post"))
    _, cache = host.bridge.run_with_cache(inputs.pop("input_ids"), names_filter=[name], **inputs)
    return cache[name].float()


def normalised(detector, resid):
    k = detector.bank.index(detector.layer["animal"])
    token = detector.bank.token
    return ((resid - token.mean[k]) / token.scale[k]).double().numpy()


def make(detector, sample, name, **options):
    return objective(name, detector=detector, concept="animal", sample=sample, **options)


def oracle(name, detector, sample, x, mask):
    """Each row in NumPy, from the definition at the top of the module."""
    found = detector.find(sample, concepts=["animal"])
    places = [hit.position for hit in found]
    own = normalised(detector, clean(detector, sample))[0]
    v = detector.bank.vector("animal", detector.layer["animal"]).double().numpy()
    out = []
    for row, keep in zip(x, mask, strict=True):
        cos = lambda target: row @ target / np.linalg.norm(row, axis=1) / np.linalg.norm(target)  # noqa: E731, B023
        score = cos(v) if detector.bank.token.scoring == "cosine" else row @ v
        if name == "superactivator":
            out.append(cos(own[places].mean(0))[keep].mean())
        elif name == "superactivator_margin":
            size = np.linalg.norm(own, axis=1) * np.linalg.norm(v)
            first = own @ v / (size if detector.bank.token.scoring == "cosine" else 1.0)
            beta = 4 / first[mask[0]].std()
            margins = (score - detector.choice("animal").threshold)[keep]
            out.append(np.log(np.exp(beta * margins).sum()) / beta)
        else:
            out.append(score[places].mean() if name == "superactivator_tokens" else score[keep].mean())
    return np.array(out)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_definition(detector, sample, name):
    f = make(detector, sample, name)
    resid = clean(detector, sample)
    batch = resid + torch.randn(4, *resid.shape[1:], generator=torch.Generator().manual_seed(0))
    expected = oracle(name, detector, sample, normalised(detector, batch), f.mask.numpy().repeat(4, 0))
    np.testing.assert_allclose(f(batch), expected, rtol=1e-4, atol=1e-5)
    assert f.metric(batch).ndim == 0
    assert float(f.metric(batch)) == pytest.approx(expected.mean(), rel=1e-4, abs=1e-5)
    places = [hit.position for hit in detector.find(sample, concepts=["animal"])]
    np.testing.assert_array_equal(f.tail.nonzero()[:, 0], places)
    assert f.coverage == pytest.approx(len(places) / int(f.mask.sum()))
    assert f.hook_name == f"blocks.{f.layer}.hook_resid_post"
    assert f.fallback is None


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_loop(detector, sample, name):
    f = make(detector, sample, name)
    batch = torch.randn(5, *clean(detector, sample).shape[1:])
    masks = f.mask.expand(5, -1)
    looped = torch.cat([f(batch[k : k + 1], masks[k : k + 1]) for k in range(5)])
    torch.testing.assert_close(f(batch), looped)
    torch.testing.assert_close(f(batch, masks), looped)


@pytest.mark.parametrize("name", NAMES)
def test_masked_tokens_never_count(detector, sample, name):
    f = make(detector, sample, name)
    resid = clean(detector, sample)
    assert not f.mask.all()
    wild = resid.clone()
    wild[:, ~f.mask[0]] = torch.nan
    torch.testing.assert_close(f(wild), f(resid))
    wild.requires_grad_(True)
    (gradient,) = torch.autograd.grad(f.metric(wild), wild)
    assert (gradient[:, ~f.mask[0]] == 0).all()
    assert torch.isfinite(gradient).all()
    assert (gradient[:, f.tail].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_finite_differences(detector, sample, name):
    f = make(detector, sample, name)
    resid = clean(detector, sample).requires_grad_(True)
    (gradient,) = torch.autograd.grad(f.metric(resid), resid)
    direction = torch.randn(resid.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2
    with torch.no_grad():
        slope = (f.metric(resid + step * direction) - f.metric(resid - step * direction)) / step / 2
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=2e-2, abs=1e-4)


def test_the_target_is_fixed_on_the_clean_run(detector, sample):
    f = make(detector, sample, "superactivator")
    resid = clean(detector, sample)
    before = float(f.metric(resid))
    f.metric(resid * 3 + 1)
    assert float(f.metric(resid)) == before


def test_half_precision_is_computed_in_float32(detector, sample):
    f = make(detector, sample, "global")
    resid = clean(detector, sample).bfloat16()
    assert f(resid).dtype == torch.float32
    torch.testing.assert_close(f(resid), f(resid.float()))


def test_a_sample_without_superactivators_is_a_named_error(detector, data):
    none = next(s for s in data.test.samples if not detector.find(s))
    with pytest.raises(NoSuperActivator, match="is a SuperActivator of 'animal': the"):
        make(detector, none, "superactivator")
    f = make(detector, none, "superactivator", fallback="top_token")
    assert (f.fallback, f.coverage, int(f.tail.sum())) == ("top_token", 0.0, 1)
    assert "top_token in place of SuperActivators" in repr(f)
    table = detector.scores_of(replace(data.test, samples=(none,)))
    best = table.tokens.position[detector.token_scores(table)[:, 0].argmax()]
    assert bool(f.tail[best])


def test_wrong_shapes_are_refused(detector, sample):
    f = make(detector, sample, "superactivator")
    resid = clean(detector, sample)
    n = resid.shape[1]
    with pytest.raises(ValueError, match=rf"needs \[batch, {n}, 32\], the same tokens"):
        f(resid[:, 1:])
    with pytest.raises(ValueError, match="resid has shape"):
        f(resid[..., :8])
    with pytest.raises(ValueError, match="a mask has one row, or one for each row of the batch"):
        f(resid.expand(3, -1, -1), f.mask.expand(2, -1))
    with pytest.raises(ValueError, match="row 0 of the mask has no valid token"):
        f(resid, torch.zeros_like(f.mask))
    with pytest.raises(ValueError, match="give one target"):
        cosine(resid.expand(3, -1, -1), torch.ones(2, 32))
    two = replace(f, mask=f.mask.expand(2, -1))
    assert two(resid.expand(2, -1, -1)).shape == (2,)
    with pytest.raises(ValueError, match="resid has batch 3"):
        two(resid.expand(3, -1, -1))


def test_one_target_for_each_row():
    x, targets = torch.randn(3, 5, 8), torch.randn(3, 8)
    together = cosine(x, targets)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], cosine(x[k : k + 1], targets[k : k + 1]))
    torch.testing.assert_close(together, torch.nn.functional.cosine_similarity(x, targets[:, None], dim=-1))
    assert (cosine(torch.zeros(1, 2, 8), targets[:1]) == 0).all()


def test_unknown_names(detector, sample):
    with pytest.raises(ValueError, match="'superactivators' is unknown: did you mean 'superact"):
        make(detector, sample, "superactivators")
    with pytest.raises(ValueError, match="did you mean 'animal'"):
        objective("global", detector=detector, concept="animals", sample=sample)
    with pytest.raises(ValueError, match="fallback 'best' is unknown"):
        make(detector, sample, "global", fallback="best")
    with pytest.raises(ValueError, match="the detector has no host"):
        objective("global", detector=replace(detector, host=None), concept="animal", sample=sample)
    with pytest.raises(ValueError, match="the bank was fitted on"):
        make(detector, sample, "global", host=tiny.host("qwen3"))


def test_registered_objectives_are_found(detector, sample, monkeypatch):
    monkeypatch.setattr(module, "_REGISTRY", dict(module._REGISTRY))

    @register_objective("largest")
    def largest(run):
        return lambda x, mask: concept_score(run.vectors, x).masked_fill(~mask, -9.0).amax(1)

    assert "largest" in objective_names()
    resid = clean(detector, sample)
    f = make(detector, sample, "largest")
    assert isinstance(f, Objective)
    best = max(hit.score for hit in detector.find(sample, concepts=["animal"]))
    assert float(f.metric(resid)) == pytest.approx(best, rel=1e-4)
    with pytest.raises(ValueError, match="'largest' is registered already"):
        register_objective("largest")

    class Point:
        name = "elsewhere"

        @staticmethod
        def load():
            return largest

    monkeypatch.setattr(module, "entry_points", lambda group: [Point])
    assert objective_names()[-1] == "elsewhere"
    assert float(make(detector, sample, "elsewhere").metric(resid)) == float(f.metric(resid))


def test_the_margin_tends_to_the_maximum(detector, sample):
    """Between the highest score's margin and log(tokens) / beta above it, for every sharpness."""
    run, found = module._clean_run(detector.host, detector, "animal", sample)
    assert found
    x = run.x[None] + 0.1 * torch.randn(3, *run.x.shape, generator=torch.Generator().manual_seed(2))
    mask = run.keep.expand(3, -1)
    highest = concept_score(run.vectors, x).masked_fill(~mask, -torch.inf).amax(1) - run.threshold
    last = torch.inf
    for sharpness in (1.0, 4.0, 16.0, 64.0, 1024.0):
        measure = superactivator_margin(run, sharpness)
        above = (measure(x, mask) - highest).double()
        assert (above >= -1e-5).all()
        assert (above <= np.log(int(run.keep.sum())) / measure.beta + 1e-5).all()
        assert float(above.max()) <= last
        last = float(above.max())
    assert last < 1e-2 * float(highest.abs().max())
    with pytest.raises(ValueError, match=r"sharpness is 0\.0: give a positive number; the default is 4"):
        superactivator_margin(run, 0.0)
    flat = replace(run, x=run.x[:1].expand_as(run.x))
    with pytest.raises(ValueError, match="tokens of the sample have one score"):
        superactivator_margin(flat)


def test_a_single_superactivator_has_no_gradient_of_its_own_cosine(detector, data):
    """The published objective is at its maximum there, and says so; the other two pull."""
    one = next(s for s in data.test.samples if len(detector.find(s, concepts=["animal"])) == 1)
    resid = clean(detector, one)
    pulls = {}
    for name in NAMES:
        f = make(detector, one, name)
        leaf = resid.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(f.metric(leaf), leaf)
        sizes = gradient[0].norm(dim=-1)
        pulls[name] = float(sizes[f.tail].sum() / sizes.sum())
        assert bool(f.caution) == (name == "superactivator")
    assert pulls["superactivator"] < 1e-4
    assert pulls["superactivator_tokens"] == 1
    assert pulls["superactivator_margin"] > 0.5
    caution = "1 SuperActivator, and its gradient has none on it; 'superactivator_tokens' and"
    assert caution in repr(make(detector, one, "superactivator"))


def test_a_text_will_do(detector, sample):
    f = make(detector, sample.text, "global")
    g = make(detector, Sample("x", sample.text, "x"), "global", host=detector.host)
    resid = clean(detector, sample)
    torch.testing.assert_close(f(resid), g(resid))
    assert repr(f).startswith("Objective('global', 'animal', sample 'text', blocks.")
