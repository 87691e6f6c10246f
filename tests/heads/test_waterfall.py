"""Laws of the waterfall: levels are lifts of the stream at each layer, steps those of loops."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from fake_host import FakeHost
from ledger_cases import broken, detector_of, kept_rows, loop_lift, make_data

from sa_plugin.concepts import ConceptBank, fit
from sa_plugin.heads import BankScores, LedgerError, head_ledger, tail_waterfall
from sa_plugin.host import Site
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
OPTIONS = {"resampling": Resampling(50)}


@pytest.fixture(scope="module")
def data():
    return make_data(60, 30)


@pytest.fixture(scope="module", params=["fake", *tiny.ARCHITECTURES])
def host(request):
    return FakeHost() if request.param == "fake" else tiny.host(request.param)


@pytest.fixture(scope="module")
def stream(host, data):
    """Kept positions, streams by depth and writes of block 1 of each test sample."""
    rows = []
    sites = [Site(0, "resid_pre"), *(Site(b, "resid_post") for b in range(3))]
    sites += [Site(1, "attn_out"), Site(1, "mlp_out")]
    for batch, keep in kept_rows(host, data.test.samples, range(3)):
        got = host.read(batch, sites, lambda read: {str(k): read[s] for k, s in enumerate(sites)})
        rows.append((batch, keep, [got[str(k)][0, keep].double() for k in range(len(sites))]))
    return rows


@pytest.fixture(scope="module", params=["prototype", "lda"])
def masks(request, host, data, stream):
    """A bank and the tail of each concept's score at layer 2: the six highest tokens."""
    bank = fit(host, data, request.param)
    scores = [bank.token.score(2, read[3]).numpy() for _, _, read in stream]
    cut = np.sort(np.concatenate(scores), axis=0)[-6]
    return bank, [one >= cut for one in scores]


def direction(bank, concept, layer):
    w = bank.vector(concept, layer).double().numpy()
    if bank.token.scoring == "cosine":
        w = w / np.linalg.norm(w)
    return w / float(bank.token.scale[bank.index(layer)])


def steps(found, concept, way="fixed", **which):
    """Names of a column's steps, and the level after each."""
    heights = found.heights(concept, way, **which)
    return list(heights.axes["step"]), np.cumsum(heights.estimate)


def level_of(stream, bank, masks, concept, vector, depth):
    k = bank.concepts.index(concept)
    terms = [(read[depth].numpy() @ vector)[:, None] for _, _, read in stream]
    return loop_lift(terms, [mask[:, k] for mask in masks])[0]


def test_levels_are_lifts_of_the_stream(host, masks, data, stream):
    bank, tail = masks
    found = tail_waterfall(host, data, BankScores(bank, 2, tail), **OPTIONS)
    assert found.residue < 1e-5
    for concept in bank.concepts:
        names, level = steps(found, concept)
        vector = direction(bank, concept, 2)
        size = np.abs(level).max()
        for depth in range(4):
            before = [n for n in names if n == "embedding" or int(n[1 : n.index(" ")]) < depth]
            last = names.index(before[-1])
            expected = level_of(stream, bank, tail, concept, vector, depth)
            assert level[last] / size == pytest.approx(expected / size, abs=1e-5)
        names, level = steps(found, concept, "refitted")
        for layer in (0, 1):
            before = names.index(f"L{layer} refit") - 1
            own = direction(bank, concept, layer)
            expected = level_of(stream, bank, tail, concept, own, layer + 1)
            assert level[before] / size == pytest.approx(expected / size, abs=1e-5)
        final = level_of(stream, bank, tail, concept, vector, 3)
        assert level[-1] / size == pytest.approx(final / size, abs=1e-5)


def test_steps_are_those_of_the_parts(host, masks, data, stream):
    """Attention and MLP of block 1, through TransformerLens's own scales in a post_ln model."""
    bank, tail = masks
    found = tail_waterfall(host, data, BankScores(bank, 2, tail), directions=("fixed",), **OPTIONS)
    heights, (names, level) = found.heights("food"), steps(found, "food")
    size, vector = np.abs(level).max(), torch.from_numpy(direction(bank, "food", 2))
    for name, place in (("attention", 4), ("MLP", 5)):
        terms = []
        for batch, keep, read in stream:
            write = read[place]
            if host.info.block == "post_ln":
                write = through_norms(host, batch, keep, write, name)
            terms.append((write @ vector).numpy()[:, None])
        expected = loop_lift(terms, [mask[:, 1] for mask in tail])[0]
        got = heights.estimate[names.index(f"L1 {name}")]
        assert got / size == pytest.approx(expected / size, abs=1e-5)


def through_norms(host, batch, keep, write, name):
    inputs = dict(batch.inputs)
    with torch.no_grad():
        _, cache = host.bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
    for norm in ("ln1", "ln2") if name == "attention" else ("ln2",):
        gain = getattr(host.bridge.blocks[1], norm).weight.detach().double()
        scale = cache[f"blocks.1.{norm}.hook_scale"][0, keep].double()
        write = (write - write.mean(-1, keepdim=True)) / scale * gain
    return write


@pytest.mark.parametrize("kind", ["prototype", "lda"])
def test_the_end_is_the_ledgers_lift(data, kind):
    fake = FakeHost()
    detector = detector_of(fake, data, kind)
    ledger = head_ledger(fake, data, detector, permutations=0, **OPTIONS)
    own = ledger.projection or ledger
    found = tail_waterfall(fake, data, detector, **OPTIONS)
    for k, column in enumerate(ledger.columns):
        for way in ("fixed", "refitted"):
            for effect in ("lift", "in_concept_lift", "strongest_lift", "contrast"):
                _, level = steps(found, column.concept, way, effect=effect)
                total = own.effects[effect].total
                assert level[-1] == pytest.approx(total.estimate[k], abs=1e-5)
                at = found.column(column.concept, way)
                assert found.effects[effect].total.low[at] == pytest.approx(
                    total.low[k], abs=1e-5, nan_ok=True
                )
        heights, (names, _) = found.heights(column.concept), steps(found, column.concept)
        for block in range(column.layer + 1):
            rows = [i for i, c in enumerate(own.components) if c.block == block and c.kind == "heads"]
            heads = own.lift.terms.estimate[rows, k].sum()
            assert heights.estimate[names.index(f"L{block} attention")] == pytest.approx(heads, abs=1e-5)


def test_one_layer_has_no_refit_steps(data):
    fake = FakeHost()
    detector = detector_of(fake, data, "lda", layers=[2])
    found = tail_waterfall(fake, data, detector, **OPTIONS)
    fixed, refitted = (found.heights("animal", way) for way in ("fixed", "refitted"))
    assert fixed.axes == refitted.axes
    np.testing.assert_array_equal(fixed.estimate, refitted.estimate)
    assert not any(step.kind == "refit" for step in found.steps)


def test_equal_lengths_take_the_length_out_of_refits(data):
    """Scaling an earlier layer's vector changes its refit steps, unless lengths are made equal."""
    fake = FakeHost()
    bank = fit(fake, data, "lda")
    vectors = bank.token.vectors.clone()
    vectors[0] *= 7
    longer = replace(bank, token=replace(bank.token, vectors=vectors))
    rng = np.random.default_rng(0)
    tail = [rng.random((len(s.text.split()), 2)) < 0.2 for s in data.test.samples]

    def refits(source, equal):
        found = tail_waterfall(fake, data, BankScores(source, 2, tail), equal_lengths=equal, **OPTIONS)
        return found.heights("food", "refitted").sel(step="L0 refit").estimate

    assert refits(longer, True) == pytest.approx(refits(bank, True), abs=1e-6)
    assert abs(refits(longer, False) - refits(bank, False)) > 1e-3


def test_resid_pre_and_columns_at_several_layers(data):
    fake = FakeHost()
    bank = fit(fake, data, "lda", hook_point="resid_pre")
    rng = np.random.default_rng(0)
    tail = [rng.random((len(s.text.split()), 6)) < 0.2 for s in data.test.samples]
    found = tail_waterfall(fake, data, BankScores(bank, tail=tail), **OPTIONS)
    assert found.depths == (0, 1, 2, 0, 1, 2) * 2
    assert steps(found, "animal", layer=0)[0] == ["embedding"]
    names, level = steps(found, "animal", "refitted", layer=2)
    assert names == [
        "embedding",
        "embedding refit",
        "L0 attention",
        "L0 MLP",
        "L0 refit",
        "L1 attention",
        "L1 MLP",
    ]
    _, fixed = steps(found, "animal", layer=2)
    assert level[-1] == pytest.approx(fixed[-1], abs=1e-6)


def test_one_forward_pass_a_sample(data):
    fake = FakeHost()
    detector = detector_of(fake, data, "lda")
    fake.passes = 0
    tail_waterfall(fake, data, detector, **OPTIONS)
    assert fake.passes == len(data.test)


def test_it_is_readable_and_drawn(data):
    fake = FakeHost()
    found = tail_waterfall(fake, data, detector_of(fake, data, "lda"), **OPTIONS)
    assert repr(found).startswith("Waterfall(2 scores, fixed and refitted direction, test split")
    assert "head_ledger has the control" in str(found)
    table = found.table()
    for concept in ("animal", "food"):
        own = table[(table.concept == concept) & (table.direction == "refitted")]
        lift, level = (own[own.measure == name] for name in ("lift", "lift level"))
        assert lift.value.sum() == pytest.approx(level.value.iloc[-1])
        assert (lift.low <= lift.value).all()
        assert (lift.value <= lift.high).all()
        mean = own[own.measure == "mean over tail"].set_index("step").value
        assert mean["embedding"] == found.means["tail"][0, found.column(concept, "refitted")]
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["steps"][0] == ["embedding", "embedding", None, None]
    figure = found.plot("animal", "refitted")
    (ax,) = figure.axes
    heights = found.heights("animal", "refitted")
    assert len(ax.patches) == len(heights.axes["step"])
    np.testing.assert_allclose(sorted(b.get_height() for b in ax.patches), sorted(heights.estimate))
    kinds = {step.kind for step in found.shown(found.column("animal", "refitted"))}
    assert len(ax.get_legend().get_texts()) == len(kinds)
    assert "lifted by selection" in figure.get_supxlabel()


def test_refusals(data):
    fake = FakeHost()
    detector = detector_of(fake, data, "lda")
    bank = detector.bank
    with pytest.raises(ValueError, match="a bank alone has no SuperActivators: give a detector"):
        tail_waterfall(fake, data, bank, **OPTIONS)
    with pytest.raises(ValueError, match="did you mean 'refitted'"):
        tail_waterfall(fake, data, detector, directions=("refited",), **OPTIONS)
    with pytest.raises(ValueError, match="directions is empty"):
        tail_waterfall(fake, data, detector, directions=(), **OPTIONS)
    clusters = replace(bank, units=("cluster 0", "cluster 1"), kind="kmeans")
    masks = [np.zeros((len(s.text.split()), 2), dtype=bool) for s in data.test.samples]
    with pytest.raises(ValueError, match="has no counterpart at other layers"):
        tail_waterfall(fake, data, BankScores(clusters, tail=masks), **OPTIONS)
    with pytest.raises(ValueError, match="of the train split the vectors were fitted on"):
        tail_waterfall(fake, data, detector, split="train", **OPTIONS)
    other = ConceptBank.from_vectors({(c, 1): torch.ones(12) for c in data.concepts}, hook_point="mlp_out")
    with pytest.raises(NotImplementedError, match="this bank is read at 'mlp_out'"):
        tail_waterfall(fake, data, BankScores(other, tail=masks), **OPTIONS)
    found = tail_waterfall(fake, data, detector, directions=("fixed",), **OPTIONS)
    with pytest.raises(ValueError, match="direction 'refitted', was not followed"):
        found.heights("animal", "refitted")


def test_an_unlisted_write_raises(data):
    fake = FakeHost()
    detector = detector_of(fake, data, "lda", layers=[2])
    with pytest.raises(LedgerError, match="block 2: it adds something"):
        tail_waterfall(broken(fake, block=2, extra=0.5), data, detector, **OPTIONS)
