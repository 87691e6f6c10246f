"""Tokens whose label is unknown: in no class of any question, on both hosts and against plain loops."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from both_hosts import LIBRARIES, host_on
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from word_data import ANIMALS, FOODS, WORDS

from sa_plugin.concepts import (
    KINDS,
    ConceptBank,
    RowLimits,
    StoredRefits,
    collect,
    fit,
    permutations,
    permute_labels,
    relabelled,
)
from sa_plugin.data import ConceptData, PixelLabels, Sample, SampleLabels, Span
from sa_plugin.detection import Detector, calibrate, token_cuts
from sa_plugin.heads import BankScores, WeightTest, ablate_heads, head_alignment, head_ledger, tail_waterfall
from sa_plugin.scores import score, tail_histogram
from sa_plugin.stages import read_scores, write_scores
from sa_plugin.statistics import Resampling
from sa_plugin.tracing import trace

CONCEPTS = ("animal", "food")
SPLITS = ("train", "cal", "test")
FEW = Resampling(draws=20)
pytestmark = [
    pytest.mark.filterwarnings("ignore::sa_plugin.statistics.FewTokensWarning"),
    pytest.mark.filterwarnings("ignore::sa_plugin.detection.guard.OtherDataWarning"),
    pytest.mark.filterwarnings("ignore::sa_plugin.data.RepeatedTextWarning"),
    pytest.mark.filterwarnings("ignore::sa_plugin.passes.LostLabelWarning"),
]


def labelled(n=60, seed=0):
    """Samples with word labels, and for each the split it is in."""
    rng = np.random.default_rng(seed)
    rows = [["the", *rng.choice(WORDS, rng.integers(4, 9)).tolist()] for _ in range(n)]
    samples = []
    for k, words in enumerate(rows):
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])
        of = {word: c for c, own in zip(CONCEPTS, (ANIMALS, FOODS), strict=True) for word in own}
        spans = tuple(
            Span(int(at), int(at) + len(word), of[word])
            for at, word in zip(starts, words, strict=False)
            if word in of
        )
        positive = frozenset(span.concept for span in spans)
        samples.append(Sample(f"w{k}", " ".join(words), f"w{k}", spans, positive))
    return samples, [SPLITS[k % 3] for k in range(n)]


def sentences(concepts, n=18, seed=1):
    """Samples that have concepts and no labelled token."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(["the", *rng.choice(WORDS, rng.integers(4, 9)).tolist()]) for _ in range(n)]
    ids = [f"s{seed} {k}" for k in range(n)]
    samples = [Sample(i, text, i, (), frozenset(concepts)) for i, text in zip(ids, texts, strict=True)]
    return samples, [SPLITS[k % 3] for k in range(n)]


def data_of(*parts):
    samples = [sample for part, _ in parts for sample in part]
    return ConceptData.from_samples(samples, CONCEPTS, [of for _, part in parts for of in part])


@pytest.fixture(scope="module", params=LIBRARIES)
def host(request):
    return host_on(request.param, "llama")


@pytest.fixture(scope="module")
def plain():
    return data_of(labelled())


@pytest.fixture(scope="module")
def mixed():
    """The same and samples that have both concepts, no token of which is labelled."""
    return data_of(labelled(), sentences(CONCEPTS))


@pytest.fixture(scope="module")
def partly():
    """The same and samples that are animals and no food: tokens unknown for one, negative for the other."""
    return data_of(labelled(), sentences(("animal",)))


def truth_of(tokens):
    """Oracle: 1, 0 or -1 of each token and concept, by the rule as it is said."""
    found = np.zeros(tokens.labels.shape, dtype=int)
    for row, (n, (start, end)) in enumerate(zip(tokens.sample_of, tokens.offsets, strict=True)):
        sample = tokens.samples[n]
        for c, concept in enumerate(tokens.concepts):
            own = [span for span in sample.spans if span.concept == concept]
            if concept in sample.positive and not own:
                found[row, c] = -1
            elif any(start < span.end and end > span.start for span in own):
                found[row, c] = 1
    return found


# What becomes of a sample.


def test_each_token_is_positive_negative_or_unknown(host, partly, mixed):
    for data, counted in ((partly, ["animal"]), (mixed, ["animal", "food"])):
        tokens = collect(host, data, layers=[1], need=("means",)).tokens
        truth = truth_of(tokens)
        assert (tokens.labels == (truth == 1)).all()
        assert (tokens.known == (truth >= 0)).all()
        assert (tokens.negative == (truth == 0)).all()
        expected = {
            c: int((truth[:, k] < 0).sum()) for k, c in enumerate(CONCEPTS) if (truth[:, k] < 0).any()
        }
        assert tokens.unknown == expected
        assert list(expected) == counted
        assert "label is unknown, in neither class: animal" in repr(tokens)


def test_where_all_is_known_there_is_nothing_to_carry(host, plain):
    tokens = collect(host, plain, layers=[1], need=("means",)).tokens
    assert tokens.known is None
    assert tokens.unknown == {}
    assert "unknown" not in repr(tokens)


def test_a_labelled_word_that_is_no_row_leaves_its_sample_known():
    sample = Sample("a", "cat sat there", "a", (Span(0, 3, "animal"),), frozenset({"animal"}))
    # A sink, a special token or a cut took the only labelled token: the others are still negative.
    rest = np.array([[4, 7], [8, 13]])
    labels = sample.token_labels(rest, CONCEPTS)
    assert not labels.any()
    assert sample.token_known(rest, labels, CONCEPTS) is None


def test_labels_can_be_said_to_be_complete_or_not():
    texts, spans = ["a cat sat", "it purrs", "we sang"] * 3, [[(2, 5, "animal")], [], []] * 3
    has = [["animal"], ["animal"], []] * 3
    by_rule = ConceptData.from_spans(texts, spans, sample_labels=has, documents=[*"abc"] * 3)
    assert [s.unlabelled for s in by_rule][:3] == [frozenset(), {"animal"}, frozenset()]
    said = SampleLabels(has, unknown=[[], [], []] * 3)
    complete = ConceptData.from_spans(texts, spans, sample_labels=said, documents=[*"abc"] * 3)
    assert not any(s.unlabelled for s in complete)
    assert complete.hash != by_rule.hash
    # Of the first only the labelled word is sure.
    said = SampleLabels(has, unknown=[["animal"], ["animal"], []] * 3)
    part = ConceptData.from_spans(texts, spans, sample_labels=said, documents=[*"abc"] * 3)
    offsets = np.array([[0, 1], [2, 5], [6, 9]])
    labels = part[0].token_labels(offsets, ["animal"])
    assert part[0].token_known(offsets, labels, ["animal"])[:, 0].tolist() == [False, True, False]
    with pytest.raises(ValueError, match="unknown tokens of 'animal' but is not positive"):
        ConceptData.from_spans(texts, spans, sample_labels=SampleLabels(has, unknown=[["animal"]] * 9))
    with pytest.raises(ValueError, match="unknown has 1 entries for 9 samples"):
        ConceptData.from_spans(texts, spans, sample_labels=SampleLabels(has, unknown=[[]]))


def test_masks_say_which_of_their_tokens_are_unknown():
    masks = [{"animal": (False, True, None)}, {"animal": (False, False, False)}, {}]
    data = ConceptData.from_token_masks(
        ["a cat sat", "it purrs now", "we sang then"] * 3, [["animal"], ["animal"], []] * 3, masks * 3,
        documents=[*"abc"] * 3,
    )  # fmt: skip
    offsets = np.array([[0, 1], [2, 5], [6, 9]])
    labels = data[0].token_labels(offsets, ["animal"])
    assert labels[:, 0].tolist() == [False, True, False]
    assert data[0].token_known(offsets, labels, ["animal"])[:, 0].tolist() == [True, True, False]
    assert not data[1].token_known(offsets, labels & False, ["animal"]).any()
    assert data[2].token_known(offsets, labels & False, ["animal"]) is None


def with_void(covered, least, sized=((42, 42), (56, 35), (30, 61))):
    """Pictures with concepts in blocks of pixels, every third without any, and void in `covered` of them."""
    rng = np.random.default_rng(0)
    images, masks, void = [], [], []
    for k in range(24):
        height, width = sized[k % 3]
        blocks = [np.kron(rng.random((9, 9)) < 0.15, np.ones((7, 7))) > 0 for _ in range(3)]
        animal, food, unsaid = (one[:height, :width] for one in blocks)
        images.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        masks.append([{"animal": animal, "food": food}, {"animal": animal}, {}][k % 3])
        void.append(unsaid if k < covered else None)
    labels = PixelLabels(masks, min_coverage=least, void=void)
    return ConceptData.from_masks(
        images, labels, concepts=CONCEPTS, splits=[SPLITS[k // 3 % 3] for k in range(24)]
    )


def truth_of_pixels(tokens, least):
    """Oracle: 1, 0 or -1 of each patch and concept, pixel by pixel, for boxes of a pixel or more."""
    found = np.zeros(tokens.labels.shape, dtype=int)
    for row, (n, (top, left, bottom, right)) in enumerate(zip(tokens.sample_of, tokens.offsets, strict=True)):
        image = tokens.samples[n].image
        height, width = image.pixels.shape[:2]
        inside = [
            (y, x)
            for y in range(height)
            for x in range(width)
            if top <= y + 0.5 + 1e-9 < bottom and left <= x + 0.5 + 1e-9 < right
        ]
        for c, concept in enumerate(tokens.concepts):
            fewest = most = 0
            for at in inside:
                unsaid = image.void is not None and image.void[at]
                own = concept in image.masks and image.masks[concept][at]
                fewest += bool(own and not unsaid)
                most += bool(own or unsaid)
            sure, possible = (count > least * len(inside) for count in (fewest, most))
            found[row, c] = 1 if sure else -1 if possible else 0
    return found


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("least", [0.0, 0.3])
def test_patches_that_void_pixels_could_turn_are_unknown(library, least):
    host = host_on(library, "vit")
    data, plain = with_void(12, least), with_void(0, least)
    assert data.hash != plain.hash
    assert "void pixels in 12 of 24 samples" in repr(data)
    tokens, before = (collect(host, one, layers=[1], need=("means",)).tokens for one in (data, plain))
    truth = truth_of_pixels(tokens, least)
    assert {-1, 0, 1} == set(np.unique(truth[tokens.sample_of < 3]))
    assert (tokens.labels == (truth == 1)).all()
    assert (tokens.known == (truth != -1)).all()
    assert (tokens.negative == (truth == 0)).all()
    assert tokens.unknown == {c: int((truth[:, k] == -1).sum()) for k, c in enumerate(CONCEPTS)}
    # Without void nothing is carried, and what has none is labelled as it was.
    assert before.known is None
    assert (before.labels == (truth_of_pixels(before, least) == 1)).all()
    free = np.array([one.image.void is None for one in tokens.samples])[tokens.sample_of]
    assert tokens.known[free].all()
    assert (tokens.labels[free] == before.labels[free]).all()
    assert (tokens.sample_labels == before.sample_labels).all()


@pytest.mark.parametrize("library", LIBRARIES)
def test_unknown_patches_are_in_no_class_and_every_result_counts_them(library):
    host, data = host_on(library, "vit"), with_void(24, 0.3)
    statistics = collect(host, data, need=("means", "rows"), limits=RowLimits(per_class=10**9))
    bank = fit(host, data, "prototype", statistics=statistics)
    unknown = ~statistics.tokens.known
    assert bank.origin.counts["label unknown"] == int(unknown.any(1).sum()) > 0
    table = score(host, data, bank)
    detector = calibrate(host, data, bank, scores=table)
    assert detector.unknown == table.split("cal").tokens.unknown != {}
    ledger = head_ledger(host, data, detector, permutations=2, resampling=FEW)
    assert ledger.settings["unknown"].keys() == set(CONCEPTS)
    for found in (detector, table, ledger):
        assert "label is unknown, in neither class: animal" in " ".join(str(found).split())


def test_images_without_a_mask_say_nothing_of_their_patches():
    pixels, none = np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((8, 8), dtype=bool)
    some = none.copy()
    some[:2, :2] = True
    images = [pixels + k for k in range(9)]
    masks = [{"cat": some}, {"cat": none}, {}] * 3
    has = [[], ["cat"], ["cat"]] * 3
    data = ConceptData.from_masks(images, masks, sample_labels=has)
    assert [bool(s.unlabelled) for s in data][:3] == [False, True, True]
    # A mask that no patch covers enough still says where the concept is.
    corner = np.array([[4.0, 4.0, 8.0, 8.0]])
    thin = data[0].token_labels(corner, ["cat"])
    assert not thin.any()
    assert data[0].token_known(corner, thin, ["cat"]) is None


# Samples that say nothing about their tokens change nothing that is said of tokens.


def test_samples_without_token_labels_are_in_no_fit_row(host, plain, mixed):
    need = ("means", "gram", "rows")
    without, with_them = (collect(host, data, layers=[1], need=need) for data in (plain, mixed))
    one, other = without.token[0], with_them.token[0]
    sure = other.known.all(1)
    assert (np.asarray(other.rows.stored)[sure] == np.asarray(one.rows.stored)).all()
    assert (other.labels[sure] == one.labels).all()
    assert (other.positive_count == one.positive_count).all()
    assert (other.negative_count == one.negative_count).all()
    torch.testing.assert_close(other.positive_mean, one.positive_mean, rtol=1e-6, atol=1e-7)
    # The normaliser reads all tokens, labels or not; with the same one the vectors are the same.
    same = replace(
        other, n=one.n, mean=one.mean, scale=one.scale, gram=one.gram, unknown_count=None, unknown_mean=None,
        rows=replace(other.rows, mean=one.mean, scale=one.scale),
    )  # fmt: skip
    for kind in ("prototype", "separator", "separator_adam", "lda"):
        a, b = (KINDS[kind].fit(each, seed=0)[0] for each in (one, same))
        # Separators are solved to a thousandth of their length.
        assert ((a - b).norm(dim=1) <= 3e-3 * a.norm(dim=1)).all(), kind


def test_samples_without_token_labels_change_no_threshold_localisation_or_trace(host, plain, mixed):
    bank = fit(host, plain, "prototype")
    tables = [score(host, data, bank) for data in (plain, mixed)]
    one, other = (
        calibrate(host, data, bank, scores=t) for data, t in zip((plain, mixed), tables, strict=True)
    )
    # The choice among thresholds is by sample labels, which the new samples have.
    np.testing.assert_array_equal(one.tail.thresholds, other.tail.thresholds)
    cuts = [token_cuts(one.tail, t.split("cal"), t.split("cal").tokens.labels, t.split("cal").tokens.known)
            for t in tables]  # fmt: skip
    for name in ("midpoint", "located", "raw", "n_tokens"):
        np.testing.assert_array_equal(getattr(cuts[0], name), getattr(cuts[1], name))
    a, b = (one.evaluate_tokens(data.test, scores=t, resampling=FEW)
            for data, t in zip((plain, mixed), tables, strict=True))  # fmt: skip
    np.testing.assert_array_equal(a.f1.estimate, b.f1.estimate)
    np.testing.assert_array_equal(a.concept_f1.estimate, b.concept_f1.estimate)
    for part in ("average_precision", "auroc"):
        for method, values in getattr(a, part).items():
            np.testing.assert_array_equal(values, getattr(b, part)[method])
    assert a.n_tokens == b.n_tokens
    c, d = (trace(scores=t, resampling=FEW) for t in tables)
    by_samples = {name for name in c.measures if "coverage" in name}
    for name in set(c.measures) - by_samples:
        # Sums are over documents first, of which there are more.
        np.testing.assert_allclose(c[name].estimate, d[name].estimate, rtol=1e-12, err_msg=name)


# Against loops over tokens, where samples are unknown for one concept and negative for the other.


def test_fitted_vectors_are_those_of_the_known_rows(host, partly):
    statistics = collect(host, partly, layers=[1], need=("means", "gram", "rows"))
    one, truth = statistics.token[0], truth_of(statistics.tokens)
    x = one.rows.take(slice(None)).double().numpy()
    bank = {
        kind: fit(host, partly, kind, statistics=statistics, controls=False) for kind in ("separator", "lda")
    }
    for c in range(2):
        sure = truth[:, c] >= 0
        y = truth[sure, c] == 1
        weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
        model = LogisticRegression(C=1e4, fit_intercept=False, tol=1e-10, max_iter=5000)
        model.fit(x[sure], y, sample_weight=weight)
        found = bank["separator"].token.vectors[0, c].double().numpy()
        cosine = found @ model.coef_[0] / np.linalg.norm(found) / np.linalg.norm(model.coef_)
        assert cosine > 0.9999
        # Means of the known tokens; the covariance is that of the text, and needs no label.
        contrast = x[truth[:, c] == 1].mean(0) - x[truth[:, c] == 0].mean(0)
        covariance = np.cov(x.T, bias=True)
        covariance += 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        expected = np.linalg.solve(covariance, contrast)
        found = bank["lda"].token.vectors[0, c].double().numpy()
        assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > 0.9999


def test_marks_and_ranks_count_known_tokens_alone(host, partly):
    bank = fit(host, partly, "prototype")
    table = score(host, partly, bank)
    detector = calibrate(host, partly, bank, scores=table)
    found = detector.evaluate_tokens(partly.test, scores=table, resampling=FEW)
    here, at = table.split("test").tokens, detector.localise(partly.test, scores=table)
    truth = truth_of(here)
    for c, concept in enumerate(detector.concepts):
        sure = truth[:, CONCEPTS.index(concept)] >= 0
        y = truth[sure, CONCEPTS.index(concept)] == 1
        marks = {"raw": at.raw, "SuperActivators": at.superactivators, "localised": at.mask}
        for method, mask in marks.items():
            expected = f1_score(y, mask[sure, c])
            assert found.concept_f1.sel(method=method, concept=concept).estimate == pytest.approx(expected)
        assert found.auroc["raw"][c] == pytest.approx(roc_auc_score(y, at.scores[sure, c]))
        expected = average_precision_score(y, at.scores[sure, c])
        assert found.average_precision["raw"][c] == pytest.approx(expected)
    assert found.ground.unknown == here.unknown
    assert "label is unknown, in neither class: animal" in " ".join(str(found).split())
    assert found.to_dict()["ground"]["unknown"] == here.unknown
    rows = found.table().query("measure == 'unknown tokens'")
    assert rows["value"].tolist() == [here.unknown["animal"]]


def test_trace_compares_known_tokens_alone(host, partly):
    bank = fit(host, partly, "prototype", layers=[1])
    table = score(host, partly, bank)
    here = table.split("test")
    truth, values = truth_of(here.tokens), here.scores[:, 0].astype(np.float64)
    found = trace(scores=table, resampling=FEW)
    for c, concept in enumerate(CONCEPTS):
        has = np.array([concept in s.positive for s in here.tokens.samples])[here.tokens.sample_of]
        inside, outside = truth[:, c] == 1, (truth[:, c] == 0) & ~has
        rows = inside | outside
        assert found["auroc"].sel(layer=1, concept=concept).estimate == pytest.approx(
            roc_auc_score(inside[rows], values[rows, c])
        )
        tau = found.fixed["threshold"][0, c]
        fired = (values[:, c] >= tau) & (truth[:, c] >= 0)
        assert found["precision"].sel(layer=1, concept=concept).estimate == pytest.approx(
            (truth[fired, c] == 1).mean()
        )
    assert found.counts["unknown_tokens"].tolist() == [int((truth[:, 0] < 0).sum()), 0]
    assert "label is unknown, in neither class: animal" in " ".join(str(found).split())


def test_histograms_count_known_tokens_alone(host, partly):
    bank = fit(host, partly, "prototype", layers=[1], controls=False)
    found = tail_histogram(host, partly.cal, bank)
    truth = truth_of(score(host, partly, bank, splits=("cal",)).tokens)
    for c, concept in enumerate(CONCEPTS):
        assert found.total(True, 1, concept) == int((truth[:, c] == 1).sum())
        assert found.total(False, 1, concept) == int((truth[:, c] == 0).sum())


# Controls, and what is said where nothing is known.


def test_permuted_labels_leave_what_is_unknown_where_it_is():
    rng = np.random.default_rng(0)
    bounds = np.concatenate([[0], np.cumsum(rng.integers(2, 9, 30))])
    known = np.repeat(rng.random((30, 2)) < 0.7, np.diff(bounds), axis=0)
    known &= rng.random(known.shape) < 0.9
    labels = (rng.random(known.shape) < 0.3) & known
    found = permute_labels(labels, bounds, np.random.default_rng(5), known)
    order = np.random.default_rng(5).permutation(30)
    for c in range(2):
        assert not found[~known[:, c], c].any()
        # Known labels of whole samples, in the order drawn, over the known tokens in theirs.
        laid = [labels[t, c] for n in order for t in range(bounds[n], bounds[n + 1]) if known[t, c]]
        assert found[known[:, c], c].tolist() == laid
    assert (permute_labels(labels, bounds, np.random.default_rng(5), np.ones_like(known))
            == permute_labels(labels, bounds, np.random.default_rng(5))).all()  # fmt: skip
    assert (relabelled(labels, np.arange(len(labels)), known) == labels).all()


def test_without_any_positive_token_the_refusal_names_the_way_out(host):
    only = data_of(sentences(("animal",)), sentences(("food",), seed=2))
    with pytest.raises(ValueError, match=r"'animal' has no positive train rows.*token_labels='text'"):
        fit(host, only, "separator", layers=[1])
    # Kinds that read no labels have all rows, and detection reads sample labels.
    assert fit(host, only, "kmeans", layers=[1], options={"k": 2}).units == ("cluster 0", "cluster 1")


def test_given_vectors_detect_without_token_labels(host):
    data = data_of(sentences(("animal",), seed=3), labelled(30))
    none = ConceptData.from_samples([replace(s, spans=()) for s in data], CONCEPTS, data.split_of)
    axes = dict(zip([(c, 1) for c in CONCEPTS], torch.eye(2, host.info.d_model), strict=True))
    given = ConceptBank.from_vectors(axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(host, none, given)
        found = detector.evaluate(none.test, resampling=FEW)
    assert np.isinf(detector.tail.chosen_threshold).all()
    assert found.weighted["f1"].sel(method="MaxTok").estimate > 0


# What is saved, and what other results say.


def test_what_is_unknown_is_saved_and_said(tmp_path, host, partly):
    statistics = collect(host, partly, need=("means", "gram", "rows"), limits=RowLimits(per_class=10**9))
    bank = fit(host, partly, "prototype", statistics=statistics)
    tokens = statistics.tokens
    assert bank.origin.counts["label unknown"] == int((~tokens.known).any(1).sum())
    assert "have an unknown label" in " ".join(str(bank).split())
    table = score(host, partly, bank)
    detector = calibrate(host, partly, bank, scores=table)
    here, there = (table.split(name).tokens.unknown for name in ("cal", "test"))
    assert detector.unknown == here
    detector.save_pretrained(tmp_path / "saved")
    loaded = Detector.from_pretrained(tmp_path / "saved")
    assert loaded.unknown == here
    write_scores(table, tmp_path / "scores.npz")
    read = read_scores(tmp_path / "scores.npz", bank, partly).tokens
    assert (read.known == table.tokens.known).all()
    results = {
        "ledger": head_ledger(host, partly, detector, permutations=2, resampling=FEW),
        "waterfall": tail_waterfall(host, partly, detector, resampling=FEW),
        "ablation": ablate_heads(host, partly, detector, [(0, 1)], resampling=FEW),
        "alignment": head_alignment(
            host, partly, detector, statistics=statistics, test=WeightTest(draws=60), resampling=FEW
        ),
    }
    for name, found in results.items():
        assert "label is unknown, in neither class: animal" in " ".join(str(found).split()), name
        counts = found.settings["unknown"]
        assert counts.keys() == {"animal"}, name
        assert counts["animal"] >= there["animal"] if name != "alignment" else counts == tokens.unknown
    for found in (detector, loaded, table):
        assert "label is unknown, in neither class: animal" in " ".join(str(found).split())


@pytest.mark.parametrize("kind", ["prototype", "lda", "separator"])
def test_refits_on_permuted_labels_leave_out_what_is_unknown(host, partly, kind):
    statistics = collect(
        host, partly, layers=[1], need=("means", "gram", "rows"), limits=RowLimits(per_class=10**9)
    )
    bank = fit(host, partly, kind, statistics=statistics, controls=False)
    tokens = statistics.tokens
    order = permutations(tokens.bounds, "across", 3, 0)
    found = StoredRefits(bank, [0, 1], statistics).vectors(1, order)
    for draw, one in enumerate(order):
        labels = relabelled(tokens.labels, one, tokens.known)
        assert not (labels & ~tokens.known).any()
        assert (labels.sum(0) == tokens.labels.sum(0)).all()
        rows = statistics.token[0].rows.take(slice(None)).double()
        y = torch.from_numpy(labels)
        raw = (
            torch.stack([rows[y[:, c]].mean(0) for c in range(2)]) * bank.token.scale[0] + bank.token.mean[0]
        )
        again = replace(statistics.token[0], labels=labels, positive_mean=raw)
        expected = KINDS[kind].fit(again, seed=0)[0]
        assert (torch.cosine_similarity(found[draw], expected, dim=1) > 0.999).all()


def test_sums_over_tokens_of_negative_samples_leave_out_what_is_unknown(host):
    """Void tokens of a mask, in samples that have no concept: the ledger's contrast against a loop."""
    samples, splits = labelled(36)
    rng = np.random.default_rng(3)
    made = []
    for sample in samples:
        (batch,) = host.batches([sample])
        offsets = batch.offsets[batch.valid].numpy()
        labels = sample.token_labels(offsets, CONCEPTS)
        void = rng.random(labels.shape) < 0.2
        mask = {
            c: tuple(None if v and not y else bool(y) for v, y in zip(void[:, k], labels[:, k], strict=True))
            for k, c in enumerate(CONCEPTS)
        }
        made.append(replace(sample, spans=(), token_mask=mask))
    data = ConceptData.from_samples(made, CONCEPTS, splits)
    bank = fit(host, data, "separator", layers=[1], controls=False)
    table = score(host, data, bank, splits=("test",))
    ledger = head_ledger(host, data, BankScores(bank, [1]), resampling=FEW)
    tokens, values = table.tokens, table.scores[:, 0].astype(np.float64)
    assert tokens.known is not None
    for c in range(2):
        negative = ~tokens.sample_labels[tokens.sample_of, c] & tokens.known[:, c]
        contrast = values[tokens.labels[:, c], c].mean() - values[negative, c].mean()
        assert float(ledger.effects["contrast"].total.estimate[c]) == pytest.approx(contrast, rel=1e-4)


# From the constructors to the numbers.


def test_words_and_sentences_together_count_and_leave_out_the_sentences(host):
    words, labels, has = [], [], []
    for sample in labelled()[0]:
        row = sample.text.split(" ")
        words.append(row)
        labels.append(["animal" if w in ANIMALS else "food" if w in FOODS else None for w in row])
        has.append([])
    for k, sample in enumerate(sentences(("animal",))[0]):
        words.append(sample.text.split(" "))
        labels.append([None] * len(words[-1]))
        has.append(["animal"] if k % 2 else ["food"])
    data = ConceptData.from_words(words, labels, sample_labels=has)
    only = {sample.id for sample in data if sample.unlabelled}
    assert only == {str(k) for k in range(60, 78)}
    bank = fit(host, data, "separator", layers=[1])
    table = score(host, data, bank)
    detector = calibrate(host, data, bank, scores=table)
    found = detector.evaluate_tokens(data.test, scores=table, resampling=FEW)
    here = detector.localise(data.test, scores=table)
    for c, concept in enumerate(detector.concepts):
        rows = np.array([s.id not in only or concept not in s.positive for s in here.tokens.samples])
        rows = rows[here.tokens.sample_of]
        expected = f1_score(here.tokens.labels[rows, c], here.mask[rows, c])
        assert found.concept_f1.sel(method="localised", concept=concept).estimate == pytest.approx(expected)
    # Detection reads every sample.
    assert detector.evaluate(data.test, scores=table, resampling=FEW).ground.n_samples == len(data.test)


def test_texts_with_a_label_each_go_all_the_way_once_their_tokens_are_taken_for_something(host):
    texts = [sample.text for sample in (*labelled()[0], *sentences(CONCEPTS)[0])]
    labels = [[c for c, own in zip(CONCEPTS, (ANIMALS, FOODS), strict=True) if set(own) & {*t.split()}]
              for t in texts]  # fmt: skip
    with pytest.raises(ValueError, match=r"token_labels='text' \(from_texts, load, "):
        fit(host, ConceptData.from_texts(texts, labels), "separator", layers=[1])
    for token_labels in ("text", {"animal": ANIMALS, "food": FOODS}):
        data = ConceptData.from_texts(texts, labels, token_labels=token_labels)
        bank = fit(host, data, "separator", layers=[1])
        detector = calibrate(host, data, bank)
        assert np.isfinite(detector.tail.chosen_threshold).all()
        assert "tokens: " in repr(data)
        assert detector.evaluate(data.test, resampling=FEW).weighted["f1"].sel(method="MaxTok").estimate > 0
