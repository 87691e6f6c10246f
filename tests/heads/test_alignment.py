"""Alignment on planted and null models: what is found, how often chance is called, refusals."""

from dataclasses import replace

import numpy as np
import planted
import pytest
import tiny
import torch

from sa_plugin.concepts import ConceptBank, RowLimits, collect, fit
from sa_plugin.data import ConceptData, Image, Sample
from sa_plugin.detection import calibrate
from sa_plugin.heads import RULE, DataPlan, WeightTest, call, describe_blocks, head_alignment
from sa_plugin.heads.align_data import _write_scale
from sa_plugin.host import Site
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling

FEW = {"test": WeightTest(refits=60), "resampling": Resampling(draws=20)}


@pytest.fixture(scope="module")
def one():
    return planted.world(0)


@pytest.fixture(scope="module")
def found(one):
    return planted.align(one, nulls=("across", "within", "covariance"))


def fitted(world, kind="prototype", **options):
    need = ("means", "gram", "rows")
    statistics = collect(world.host, world.data, need=need, **options)
    bank = fit(world.host, world.data, kind, statistics=statistics, controls=False)
    return statistics, bank


@pytest.mark.parametrize("kind", ["prototype", "lda"])
def test_all_planted_heads_are_found_and_few_others(kind):
    """Many more worlds: `docs/experiments/alignment_calibration.py`."""
    got = planted.realised("planted heads", kind, range(4))
    assert got["power"] == 1.0
    assert got["power_aligned"] >= 0.8
    assert got["false_share"] <= 0.05


def test_the_rule_on_data_keeps_what_is_planted(one, found):
    assert (found.aligned <= found.called).all()
    assert found.aligned[one.truth].all()
    assert not found.aligned[~one.truth].any()
    blocks = one.truth.any((1, 2)).sum()
    assert found.layers_with_one == blocks
    assert sum(found.layers_by_concept.values()) >= blocks
    assert found.shared_heads() == []
    assert found.shared_heads(least=1)[0][0].startswith("L")


@pytest.mark.parametrize("scenario", ["labels without meaning", "concepts, no such head"])
def test_null_models_are_seldom_called(scenario):
    got = planted.realised(scenario, "prototype", range(100, 105))
    assert got["any_called"] <= 1
    # The larger of two p-values is far below its level under the null; each keeps its own.
    assert got["null_p"][2] < 0.03
    assert (got["null_p"][:2] < 0.09).all()


def test_a_separator_finds_them_too(one):
    small = planted.align(one, "separator", refits=60)
    assert planted.outcome(small.called, one.truth)[:2] == (1.0, 0.0)


def test_gains_are_the_planted_ones(one, found):
    """By the definition, from the host's own maps and the bank's own vectors."""
    _, bank = fitted(one)
    host = one.host
    for k, b in enumerate(found.blocks):
        for c, concept in enumerate(found.concepts):
            v_in = bank.vector(concept, max(0, b - 1)).double()
            v_out = bank.vector(concept, b).double()
            v_in, v_out = v_in / v_in.norm(), v_out / v_out.norm()
            for h in range(planted.HEADS):
                q, kk, v, o = (host.maps[m][b, h].double() for m in "qkvo")
                assert found.gamma[k, h, c] == pytest.approx(float(v_in @ v @ o @ v_out), abs=1e-5)
                assert found.beta[k, h, c] == pytest.approx(float(v_in @ q @ kk.T @ v_in), abs=1e-5)
                written = v_in @ v @ o
                cosine = written @ v_out / written.norm()
                assert found.weights.ov_cosine[k, h, c] == pytest.approx(float(cosine), abs=1e-5)
    assert found.gamma[one.truth].min() > 0.35


def test_shares_of_the_update_add_up(found):
    """Attention is all there is in the planted model."""
    share = found.data.write_share
    total = share.estimate.sum(1)
    assert total == pytest.approx(np.ones(total.shape), abs=1e-4)
    assert (share.low <= share.estimate + 1e-9).all()


def test_results_speak(one, found):
    text = str(found)
    assert "concept-aligned" in repr(found)
    for words in ("Block 0 has no block before it", "held-out refits", "Alignment is no effect"):
        assert words in text.replace("\n", " ")
    k, h, c = np.argwhere(found.aligned)[0]
    assert f"L{found.blocks[k]}H{h} {found.concepts[c]}" in text
    table = found.table().set_index(["measure", "block", "head", "concept"]).sort_index()
    at = found.blocks[k], h, found.concepts[c]
    for name, array in (
        ("gamma", found.gamma),
        ("p", found.tested.p),
        ("p_ov_within", found.nulls["within"].p_ov),
    ):
        assert table.loc[name].loc[at, "value"].item() == array[k, h, c]
    assert table.loc["partial_r2"].loc[at, "value"].item() == found.data.correlation[k, h, c] ** 2
    lift = table.loc["lift"].loc[at].set_index(["keys", "sign"]).loc[("whole", "negative")]
    assert lift["high"] == found.data.lift.sel(keys="whole", sign="negative").high[k, h, c]
    assert len(table.loc["aligned"]) == found.aligned.size
    written = found.to_dict()
    assert written["aligned"] == found.aligned.tolist()
    assert written["data"]["slope"]["axes"]["block"] == list(found.blocks)
    assert "three hold" in RULE


def test_maps_are_drawn(found):
    for concept in (None, "red"):
        left, right = found.plot(concept).axes
        assert left.get_ylabel() == "head"
        assert right.get_title(loc="left") == (concept or "4 concepts")
        n_aligned = found.aligned.sum() if concept is None else found.aligned[..., 0].sum()
        assert len(right.collections[2].get_offsets()) == n_aligned
    with pytest.raises(ValueError, match="concept 'reed' is unknown: did you mean 'red'"):
        found.plot("reed")


def test_a_detector_brings_its_deltas(one):
    statistics, bank = fitted(one)
    scores = score(one.host, one.data, bank)
    detector = calibrate(one.host, one.data, bank, scores=scores)
    got = head_alignment(
        one.host,
        one.data,
        detector,
        statistics=statistics,
        test=WeightTest(("across",), refits=60),
        resampling=Resampling(draws=20),
    )
    assert got.settings["delta"] == pytest.approx(detector.delta)


def test_without_statistics_they_are_collected(one):
    statistics, bank = fitted(one)
    options = {"test": WeightTest(("across",), refits=60), "resampling": Resampling(draws=20)}
    given = head_alignment(one.host, one.data, bank, statistics=statistics, **options)
    alone = head_alignment(one.host, one.data, bank, **options)
    np.testing.assert_array_equal(given.tested.p, alone.tested.p)


def test_a_subset_of_concepts_has_the_same_gains(one, found):
    some = planted.align(one, concepts=["warm", "red"])
    assert some.concepts == ("warm", "red")
    np.testing.assert_allclose(some.gamma, found.gamma[..., [3, 0]], atol=1e-6)
    np.testing.assert_allclose(some.data.correlation, found.data.correlation[..., [3, 0]], atol=1e-6)


def fitted_on(host):
    data = animals()
    statistics = collect(host, data, need=("means", "rows"))
    bank = fit(host, data, "prototype", statistics=statistics, controls=False)
    return statistics, bank


def animals():
    rest = ("cat", "sat", "on", "a", "mat", "beside", "my", "dog")
    words = [[f"{w}{k % 7}" for w in ("the", *rest[k % 8 :], *rest[: k % 8])] for k in range(20)]
    labels = [[["animal"] if w[:3] in ("cat", "dog") else [] for w in row] for row in words]
    documents = [str(k % 7) for k in range(20)]
    return ConceptData.from_words(words, labels, concepts=("animal",), documents=documents)


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "llama", "gemma2", "qwen3", "bert"])
def test_every_architecture_is_measured(architecture):
    host = tiny.host(architecture)
    statistics, bank = fitted_on(host)
    got = head_alignment(host, animals(), bank, statistics=statistics, **FEW)
    for array in (got.gamma, got.beta, got.tested.p, got.data.write_share.estimate):
        assert array.shape == (3, tiny.N_HEADS, 1)
        assert np.isfinite(array).all()
    said = " ".join(got.limits)
    assert ("Rotary" in said) == (architecture in ("neox", "llama", "gemma2", "qwen3"))
    assert ("soft-capped" in said) == (architecture == "gemma2")
    assert ("norms of their own" in said) == (architecture == "qwen3")
    assert bool(got.beta_profile) == ("Rotary" in said)
    assert ("norms behind" in said) == (architecture in ("gemma2", "bert"))


def image_data(move=True):
    """Images of noise with a bright square each, at a place of its own if it may move."""
    rng, samples = np.random.default_rng(0), []
    for k, one in enumerate(tiny.images(((28, 42),) * 16)):
        top, left = (rng.integers(0, 4) * 7, rng.integers(0, 6) * 7) if move else (0, 0)
        mask = np.zeros((28, 42), dtype=bool)
        mask[top : top + 7, left : left + 7] = True
        pixels = np.where(mask[..., None], 255, one.image.pixels).astype(np.uint8)
        image = Image(pixels, {"square": mask})
        samples.append(Sample(f"i{k}", "", f"d{k}", positive=frozenset({"square"}), image=image))
    return ConceptData(("square",), tuple(samples), ("train",) * 10 + ("cal",) * 3 + ("test",) * 3)


@pytest.mark.parametrize("kind", ["prototype", "separator"])
def test_images_are_measured(kind):
    """A ViT through both hosts: the same forms, p-values of its own null, no rotary."""
    data, got = image_data(), {}
    for host in (tiny.vision_host("vit"), tiny.nnsight_vision_host("vit")):
        statistics = collect(host, data, need=("means", "rows"))
        bank = fit(host, data, kind, statistics=statistics, controls=False)
        one = head_alignment(host, data, bank, statistics=statistics, **FEW)
        assert np.isfinite(one.data.correlation).all()
        assert min(one.offsets) == -max(one.offsets)
        assert not one.beta_profile
        assert ((one.tested.p > 0) & (one.tested.p <= 1)).all()
        assert one.settings["kind"] == kind
        got[host.info.host] = one
    lens, ours = got["transformer_lens"], got["nnsight"]
    for name in ("gamma", "beta"):
        np.testing.assert_allclose(getattr(lens, name), getattr(ours, name), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(lens.tested.p, ours.tested.p, atol=0.05)


def test_a_null_that_changes_no_label_is_refused():
    data, host = image_data(move=False), tiny.vision_host("vit")
    statistics = collect(host, data, need=("means", "rows"))
    bank = fit(host, data, "prototype", statistics=statistics, controls=False)
    says = "100% of the permutations of null 'across' leave the labels of 'square' as they are"
    with pytest.raises(ValueError, match=says):
        head_alignment(host, data, bank, statistics=statistics, **FEW)
    options = FEW | {"test": WeightTest(("within",), refits=60)}
    found = head_alignment(host, data, bank, statistics=statistics, **options)
    assert list(found.nulls) == ["within"]


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "bert"])
def test_what_heads_write_is_what_attention_adds(architecture):
    """Norms behind attention, frozen at each token's scale: heads and bias give the block's part.

    The share sums `z W_O` through the folded norms; here the same is read off the host.
    """
    host = tiny.host(architecture)
    (block, *_) = describe_blocks(host, (1, 0), {0: 1})
    _, bank = fitted_on(host)
    norms = [host.norms(block.index)]
    plan = DataPlan(host, bank, [block], norms, [], [], [], torch.zeros(1))
    points = ("resid_pre", "resid_post", "z", "attn_out", "mlp_out")
    sites = [Site(block.index, point) for point in points]
    (batch, *_) = host.batches(tiny.samples()[1:2])
    read = {}
    host.read(batch, sites, lambda r: read.update(r) or {})
    bias = host.output_projection(block.index).bias
    wrote = torch.einsum("bthe,hed->btd", read[sites[2]], block.maps.output)
    wrote = wrote / _write_scale(plan, 0, read)[..., None]
    if architecture == "gpt2":
        torch.testing.assert_close(wrote + bias, read[sites[3]], atol=1e-5, rtol=1e-4)
    if architecture == "gemma2":
        torch.testing.assert_close(wrote, read[sites[3]], atol=1e-5, rtol=1e-4)
    if architecture == "bert":
        # Both norms frozen, the output is linear in the write: taking it away moves it by `wrote`.
        first, second = host.norms(block.index).attn_out, host.norms(block.index).mlp_out
        added = read[sites[0]] + read[sites[3]]
        heads = torch.einsum("bthe,hed->btd", read[sites[2]], host.output_projection(block.index).weight)

        def frozen(x, norm, like):
            like = like - like.mean(-1, keepdim=True)
            scale = (like.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            return (x - x.mean(-1, keepdim=True)) / scale * norm.gain

        middle = frozen(added, first, added) + first.bias + read[sites[4]]
        change = frozen(frozen(heads, first, added), second, middle)
        torch.testing.assert_close(wrote, change, atol=1e-5, rtol=1e-4)


def test_arguments_that_cannot_be_are_refused(one):
    statistics, bank = fitted(one)
    host, data = one.host, one.data

    def align(source=bank, **options):
        test = WeightTest(**{n: options.pop(n) for n in list(options) if n in WeightTest.__annotations__})
        return head_alignment(host, data, source, test=test, **{"statistics": statistics} | options)

    with pytest.raises(TypeError, match=r"data is a ConceptBank.*not a ConceptData.*the order"):
        head_alignment(host, bank, data)
    with pytest.raises(ValueError, match=r"correction 'bonferroni' is unknown"):
        align(correction="bonferroni")
    with pytest.raises(ValueError, match=r"split 'train' is unknown"):
        align(split="train")
    with pytest.raises(ValueError, match=r"q is 5\.0, not a number from 0 to 1"):
        align(q=5.0)
    with pytest.raises(ValueError, match=r"null 'random' is unknown"):
        align(nulls=("random",))
    with pytest.raises(ValueError, match=r"nulls is empty"):
        align(nulls=())
    with pytest.raises(ValueError, match=r"refits is 9: the null needs 60 at least"):
        align(refits=9)
    with pytest.raises(ValueError, match=r"20 m / q = 19,200 of them for 48 tests at level 0\.05"):
        align(tail="empirical", refits=100)
    moved = replace(statistics, fingerprint="other")
    with pytest.raises(ValueError, match="statistics were collected on another model"):
        align(statistics=moved)
    with pytest.raises(ValueError, match=r"on data other, not on \w{8}: collect them again"):
        align(statistics=replace(statistics, data_hash="other"))
    with pytest.raises(ValueError, match=r"delta is 2\.0, not a number from 0 to 1"):
        align(delta=2.0, refits=60)
    with pytest.raises(ValueError, match=r"concepts is empty"):
        align(concepts=[])
    with pytest.raises(ValueError, match=r"concept 'rad' is unknown: did you mean 'red'"):
        align(concepts=["rad"])
    with pytest.raises(ValueError, match=r"null 'within' was not drawn: there are across"):
        planted.align(one, refits=60).called_by("within")


def test_banks_that_have_no_null_are_refused(one):
    statistics, bank = fitted(one)
    host, data = one.host, one.data
    given = ConceptBank.from_vectors({(c, k): bank.vector(c, k) for c in bank.concepts for k in bank.layers})
    with pytest.raises(ValueError, match=r"kind 'given' has no labels to permute"):
        head_alignment(host, data, given, statistics=statistics)
    _, other = fitted(one, "lda")
    with pytest.raises(ValueError, match=r"'covariance' draws random .* no null for kind 'lda'"):
        head_alignment(host, data, other, statistics=statistics, test=WeightTest(("covariance",)))
    forged = replace(bank, token=replace(bank.token, vectors=bank.token.vectors.flip(1)))
    with pytest.raises(ValueError, match=r"at block 0, a vector has cosine .* another estimator"):
        head_alignment(host, data, forged, statistics=statistics, **FEW)
    few, _ = fitted(one, limits=RowLimits(per_class=100))
    with pytest.raises(ValueError, match=r"needs the row of every train token, .* hold [\d,]+ of"):
        head_alignment(host, data, bank, statistics=few)
    means = collect(host, data)
    with pytest.raises(ValueError, match="kind 'lda' needs 'gram'"):
        head_alignment(host, data, other, statistics=means)
    gaps = fit(host, data, "prototype", layers=(2,))
    with pytest.raises(ValueError, match=r"layers \[2\], no two of them neighbours"):
        head_alignment(host, data, gaps)
    early = fit(host, data, "prototype", hook_point="attn_out")
    with pytest.raises(ValueError, match=r"lives at 'attn_out': heads read and write"):
        head_alignment(host, data, early)


def test_a_host_without_weights_is_refused(one):
    from fake_host import FakeHost

    _, bank = fitted(one)
    with pytest.raises((TypeError, ValueError), match=r"does not hand out|d_model"):
        head_alignment(FakeHost(), one.data, bank)


def test_calls_are_those_of_the_p_values(found):
    p = found.tested.p
    np.testing.assert_array_equal(found.called, call(p, 0.05))
    np.testing.assert_array_equal(found.called, found.p_adjusted <= 0.05)
