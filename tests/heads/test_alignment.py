"""Alignment on planted and null models: what is found, how often chance is called, refusals."""

from dataclasses import replace

import numpy as np
import planted
import pytest
import tiny
import torch

from sa_plugin.concepts import ConceptBank, RowLimits, collect, fit, unit
from sa_plugin.data import ConceptData, Image, Sample
from sa_plugin.detection import calibrate
from sa_plugin.heads import (
    RULE,
    DataPlan,
    WeightTest,
    describe_blocks,
    head_alignment,
    head_sizes,
    planted_sizes,
    write_scale,
)
from sa_plugin.host import Site
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling

FEW = {"test": WeightTest(draws=60), "resampling": Resampling(draws=20)}


@pytest.fixture(scope="module")
def one():
    return planted.world(0)


@pytest.fixture(scope="module")
def found(one):
    return planted.align(one, nulls=("across", "within", "covariance", "exchanged"))


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
    assert got["on_data"] >= 0.8
    assert got["false_share"] <= 0.05


def test_heads_of_the_stated_size_are_found_as_often_as_stated():
    sizes, found = zip(*(planted.found_of_the_stated_size(seed, 0.5) for seed in range(6)), strict=True)
    assert 0.3 < min(sizes) < max(sizes) < 0.7
    # Of 24 heads; one standard error is .1.
    assert np.mean(found) == pytest.approx(0.5, abs=0.25)


def test_what_is_planted_is_called_is_its_concepts_own_and_shows_on_data(one, found):
    np.testing.assert_array_equal(found.called, one.truth)
    assert found.on_data[one.truth].all()
    assert {found.serves(*named(found, at)) for at in np.argwhere(one.truth)} == {"this concept"}
    blocks = one.truth.any((1, 2)).sum()
    assert found.layers_with_one == blocks
    assert found.one_in_each_layer == (blocks == planted.BLOCKS)
    assert sum(found.layers_by_concept.values()) >= blocks
    assert found.shared_heads() == []
    assert found.shared_heads(least=1)[0][0].startswith("L")


def named(found, at):
    return f"L{found.blocks[at[0]]}H{at[1]}", found.concepts[at[2]]


@pytest.mark.parametrize("scenario", ["labels without meaning", "concepts, no such head"])
def test_null_models_are_seldom_called(scenario):
    got = planted.realised(scenario, "prototype", range(100, 105))
    assert got["any_called"] <= 1
    # What the results say of refits that had no part in the null.
    assert got["any_call"][0] < 0.09


def test_a_head_of_all_labelled_tokens_is_no_concepts_own():
    """Read and write along the sum of the concepts: called, and so are tokens with concepts exchanged."""
    one = planted.world(2, n_planted=0)
    along = one.directions.sum(0) / one.directions.sum(0).norm()
    for m, gain in zip("vqk", (1.0, 0.6, 0.6), strict=True):
        one.host.maps[m][1, 2, :, 0] += gain**0.5 * along
    one.host.maps["o"][1, 2, 0] += along
    got = planted.align(one, nulls=("across", "exchanged"))
    cells = np.argwhere(got.called).tolist()
    assert len(cells) >= 2
    assert {(k, h) for k, h, _ in cells} == {(1, 2)}
    assert "this concept" not in {got.serves(*named(got, at)) for at in cells}
    assert "any label" in {got.serves(*named(got, at)) for at in cells}


def test_a_planted_head_is_called_from_the_stated_cosine_on():
    """The closed form against weights that hold the planted head, weighed from the start."""
    one = planted.world(5, n_planted=0)
    statistics, bank = fitted(one)

    def align(host):
        test = WeightTest(("across",), draws=200, refine=1)
        return head_alignment(
            host, one.data, bank, statistics=statistics, test=test, resampling=Resampling(20)
        )

    before, tried = align(one.host), 0
    for k, h, c in np.argwhere(~np.isnan(before.tested.planted))[::9][:3]:
        smallest = before.tested.planted[k, h, c]
        for cosine in (smallest, smallest - 0.01):
            (block,) = [b for b in describe_blocks(one.host, bank.layers, {0: 1}) if b.index == k]
            v = [unit(bank.vector(before.concepts[c], at).float())[None] for at in (max(0, k - 1), k)]
            size = [float(part[h, 0]) for part in planted_sizes(head_sizes(block, *v), cosine)]
            after = align(planted.planted_at(one.host, [(k, h)], v[0], v[1], [size]))
            assert (after.tested.z[k, h, c] > before.tested.critical) == (cosine == smallest)
            tried += 1
    assert tried == 6
    at = before.cosine_at(0.5)
    assert (before.tested.planted <= at).mean() >= 0.5 > (before.tested.planted < at).mean()


def test_a_separator_finds_them_too(one):
    small = planted.align(one, "separator", draws=60)
    assert planted.outcome(small.called, one.truth)[:2] == (1.0, 0.0)


@pytest.mark.parametrize(
    ("kind", "null"), [("prototype", "across"), ("lda", "across"), ("prototype", "covariance")]
)
def test_refined_draws_are_as_many_drawn_at_once(one, kind, null):
    options = {"nulls": (null, "exchanged")}
    at_once = planted.align(one, kind, **options | {"draws": 180})
    refined = planted.align(one, kind, **options | {"draws": 60, "refine": 3})
    assert refined.called.any()
    assert [each.draws for each in refined.nulls.values()] == [180, 60]
    for name in ("p", "z", "planted", "block_p", "false_share"):
        np.testing.assert_allclose(
            getattr(refined.tested, name), getattr(at_once.tested, name), rtol=1e-4, atol=1e-6
        )
    assert refined.tested.any_call == pytest.approx(at_once.tested.any_call)
    np.testing.assert_array_equal(refined.data.p_control, at_once.data.p_control)
    # Of labels that no draw comes near there is nothing to sharpen; by default sums alone are refined.
    few = planted.align(one, kind, concepts=["red"], **options | {"draws": 60, "refine": None})
    assert few.tested.draws in (60, 240)


def test_draws_end_early_where_nothing_is_near_a_call():
    drawn = []
    for seed in range(100, 106):
        one = planted.world(seed, n_planted=0)
        found = planted.align(one, draws=60, refine=4)
        drawn.append(found.tested.draws)
        assert found.tested.draws == 240 or not found.called.any()
        assert found.tested.draws > 60 or found.tested.p.min() > 0.05
        assert found.tested.draws == 240 or not found.one_in_each_layer
    assert min(drawn) == 60


def test_what_is_near_the_level_is_said(one):
    found = planted.align(one, draws=30)
    p, error = found.tested.p, np.sqrt(found.tested.p * (1 - found.tested.p) / 31)
    np.testing.assert_array_equal(found.near_level, abs(p - 0.05) <= 2 * error)
    assert found.near_level.any()
    k, h, c = np.argwhere(found.near_level)[0]
    said = " ".join(str(found).split())
    assert "30 draws; T, the smaller z" in said
    near = said.partition(
        "So near the level that other draws might say otherwise (two standard errors of 30 draws): "
    )[2]
    assert f"L{found.blocks[k]}H{h} {found.concepts[c]} (" in near
    few = planted.align(one, draws=30, concepts=["red"])
    assert ("So near the level" in str(few)) == few.near_level.any()


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
    for words in (
        "Block 0 has no block before it",
        "held-out refits",
        "Alignment is no effect",
        "Power: a head",
    ):
        assert words in text.replace("\n", " ")
    k, h, c = np.argwhere(found.called)[0]
    assert f"L{found.blocks[k]}H{h} {found.concepts[c]}" in text
    table = found.table().set_index(["measure", "block", "head", "concept"]).sort_index()
    at = found.blocks[k], h, found.concepts[c]
    for name, array in (
        ("gamma", found.gamma),
        ("p_across", found.tested.p),
        ("planted_cosine", found.tested.planted),
        ("z_ov_within", found.nulls["within"].z_ov),
    ):
        np.testing.assert_equal(table.loc[name].loc[at, "value"].item(), array[k, h, c])
    assert table.loc["partial_r2"].loc[at, "value"].item() == found.data.correlation[k, h, c] ** 2
    lift = table.loc["lift"].loc[at].set_index(["keys", "sign"]).loc[("whole", "negative")]
    assert lift["high"] == found.data.lift.sel(keys="whole", sign="negative").high[k, h, c]
    assert len(table.loc["called"]) == found.called.size
    written = found.to_dict()
    assert written["called"] == found.called.tolist()
    assert written["nulls"]["across"]["critical"] == found.tested.critical
    assert written["data"]["slope"]["axes"]["block"] == list(found.blocks)
    assert "step-down max-T" in RULE


def test_maps_are_drawn(found):
    for concept in (None, "red"):
        left, right = found.plot(concept).axes[:2]
        assert left.get_ylabel() == "head"
        assert right.get_title(loc="left") == (concept or "4 concepts")
        shown = (found.called & found.on_data)[..., slice(None) if concept is None else [0]]
        assert len(right.collections[2].get_offsets()) == shown.sum()
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
        test=WeightTest(("across",), draws=60),
        resampling=Resampling(draws=20),
    )
    assert got.settings["delta"] == pytest.approx(detector.delta)


def test_without_statistics_they_are_collected(one):
    statistics, bank = fitted(one)
    options = {"test": WeightTest(("across",), draws=60), "resampling": Resampling(draws=20)}
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
        # Its only concept has none to be exchanged with: said, and no null.
        assert list(one.nulls) == ["across"]
        assert one.settings["exchanged"] == ()
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
    options = FEW | {"test": WeightTest(("within",), draws=60)}
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
    wrote = wrote / write_scale(plan, 0, read)[..., None]
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
    with pytest.raises(ValueError, match=r"split 'train' is unknown"):
        align(split="train")
    with pytest.raises(ValueError, match=r"level is 5\.0, not a number between 0 and 1"):
        align(level=5.0)
    with pytest.raises(ValueError, match=r"null 'random' is unknown"):
        align(nulls=("random",))
    with pytest.raises(ValueError, match=r"nulls is empty"):
        align(nulls=())
    says = r"draws is 9: the smallest p of so many is 1 / 10; a call at level 0\.05 .* need 19 draws"
    with pytest.raises(ValueError, match=says):
        align(draws=9)
    with pytest.raises(ValueError, match=r"draws is 18: .* at level 0\.5 .* need 19 draws at least"):
        align(draws=18, level=0.5)
    with pytest.raises(ValueError, match=r"refine is 0, not a whole number from 1 to 1000"):
        align(refine=0)
    with pytest.raises(ValueError, match=r"need 999 draws at least"):
        align(draws=998, level=0.001)
    with pytest.raises(ValueError, match=r"nulls begins with 'exchanged'"):
        align(nulls=("exchanged",))
    moved = replace(statistics, fingerprint="other")
    with pytest.raises(ValueError, match="statistics were collected on another model"):
        align(statistics=moved)
    with pytest.raises(ValueError, match=r"on data other, not on \w{8}: collect them again"):
        align(statistics=replace(statistics, data_hash="other"))
    with pytest.raises(ValueError, match=r"delta is 2\.0, not a number from 0 to 1"):
        align(delta=2.0, draws=60)
    with pytest.raises(ValueError, match=r"concepts is empty"):
        align(concepts=[])
    with pytest.raises(ValueError, match=r"concept 'rad' is unknown: did you mean 'red'"):
        align(concepts=["rad"])
    got = planted.align(one, draws=60)
    with pytest.raises(ValueError, match=r"null 'within' was not drawn: there are across"):
        got.called_by("within")
    with pytest.raises(ValueError, match=r"head 'L7H0' is unknown: did you mean"):
        got.serves("L7H0", "red")
    fewest = planted.align(one, draws=19)
    assert fewest.tested.p.min() == 0.05
    assert np.isnan(fewest.tested.any_call["held out"])
    with pytest.raises(ValueError, match=r"power is 0"):
        got.cosine_at(0.0)


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
    tested = found.tested
    np.testing.assert_array_equal(found.called, tested.p <= 0.05)
    assert found.called.any() == (tested.z.max() > tested.critical)
    assert (tested.block_p <= tested.block_p_adjusted).all()
    # Fewer blocks than cells: step-down may find one that no cell of it shows.
    assert (tested.block_p_adjusted[tested.z.max((1, 2)) > tested.critical] <= 0.05).all()
