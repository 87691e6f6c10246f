"""Probe or signal: planted worlds, a slow oracle, refits against fits on fewer documents, and words."""

import functools
import html
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from doubles import added
from fake_host import WIDTH, FakeHost

import sa_plugin as sa
from sa_plugin.concepts import ConceptBank, RowLimits, collect, fit, leave_out
from sa_plugin.data import ConceptData
from sa_plugin.host import Site
from sa_plugin.scores import score
from sa_plugin.statistics import Drawn, Resampling
from sa_plugin.tracing import Traced, TraceOptions, growths, read_others, trace

LAYERS, NAMES = 4, ("a", "b")
RESAMPLING = Resampling(30)


class Growing(FakeHost):
    """Tokens named after their concept carry `strength[layer]` along a direction.

    `turns` makes the direction another one at each layer. `beside` is the noise along the last axis, where
    tokens of a concept lie off by half of it: a mean difference is drawn there, and reads little but noise.
    """

    def __init__(self, strength, *, turns=False, beside=(1.0,) * LAYERS):
        super().__init__(n_layers=LAYERS)
        self.with_info(block="post_ln", fingerprint=f"{strength}{turns}{beside}")
        self.strength, self.turns, self.beside, self.words = strength, turns, beside, {}

    def _batch(self, samples, rows):
        batch = super()._batch(samples, rows)
        for b, row in enumerate(rows):
            names = samples[row].text.split()
            self.words |= dict(zip(batch.inputs["ids"][b].tolist(), names, strict=False))
        return batch

    @functools.cache  # noqa: B019, the worlds live as long as the tests
    @added
    def states(self, token):
        """Of one token, by layer."""
        rng = np.random.default_rng(token)
        at = rng.normal(size=(LAYERS, WIDTH))
        at[:, -1] *= self.beside
        kind = self.words.get(token, "n")[0]
        if kind in NAMES:
            # One tail a token at all layers: it is the same token that stands out.
            tail = 1 + 0.3 * rng.gamma(1.0)
            at[:, -1] += 0.5 * np.array(self.beside) * (np.array(self.beside) > 1)
            for layer in range(LAYERS):
                at[layer, NAMES.index(kind) + (2 * layer if self.turns else 0)] += self.strength[layer] * tail
        return torch.from_numpy(at).float()

    def read(self, batch, sites, reduce):
        self.passes += len(batch.rows)
        ids = batch.inputs["ids"]
        x = torch.stack([self.states(token) for token in ids.ravel().tolist()])
        x = x.reshape(*ids.shape, LAYERS, WIDTH)
        return reduce({site: x[:, :, site.layer].clone() for site in sites})


def made_data(n=240):
    rng = np.random.default_rng(0)
    samples, split_of = [], []
    for k in range(n):
        positive = [name for name in NAMES if rng.random() < 0.5]
        words = [f"n{rng.integers(10**6)}" for _ in range(12)]
        for name in positive:
            for at in rng.integers(12, size=2):
                words[at] = f"{name}{rng.integers(10**6)}"
        text = " ".join(words)
        spans = [(text.index(w), text.index(w) + len(w), w[0]) for w in words if w[0] in NAMES]
        samples.append((text, spans, f"d{k % 120}"))
        split_of.append(("train", "cal", "test")[k % 120 % 3])
    return ConceptData.from_spans(
        [text for text, _, _ in samples],
        [spans for _, spans, _ in samples],
        documents=[d for _, _, d in samples],
        splits=split_of,
    )


DATA = made_data()
WORLDS = {
    "signal": Growing((0.3, 1.0, 2.0, 4.0)),
    "blurred": Growing((4.0,) * LAYERS, beside=(30.0, 12.0, 4.0, 1.0)),
    "turning": Growing((4.0,) * LAYERS, turns=True),
    "nothing": Growing((0.0,) * LAYERS),
}


@functools.cache
def traced(name, kind="prototype", n=5):
    host = WORLDS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        statistics = collect(
            host, DATA, need=("means", "gram", "rows"), sinks="keep", limits=RowLimits(per_class=10**9)
        )
        bank = fit(host, DATA, kind, statistics=statistics, controls=False)
        how = TraceOptions(quantile_draws=30, fixed_at=3, refit_groups=n, shared=statistics)
        return (bank, statistics, trace(host, DATA, bank, options=how, resampling=RESAMPLING))


@pytest.fixture(scope="module")
def signal():
    return traced("signal")


@pytest.mark.parametrize(
    ("world", "answer"),
    [("signal", "signal"), ("blurred", "probe"), ("turning", "probe"), ("nothing", "cannot be said")],
)
def test_the_sentence_says_what_was_planted(world, answer, signal):
    found = signal[2] if world == "signal" else traced(world, n=5 if world == "blurred" else 0)[2]
    mean = found.growth[0]
    assert mean.answer == answer, mean
    a, b, t = (float(one.estimate) for one in (mean.own, mean.chosen, mean.top))
    said = {"signal": "a stronger signal", "probe": "a better aligned probe"}.get(answer, "cannot be said")
    assert said in found.sentence
    if world == "signal":
        assert t - b > 1
        assert t - a > 1
    elif world == "blurred":
        # The chosen vector finds the signal where the layer's own misses it.
        assert b - a > 0.5 * (t - a)
    elif world == "turning":
        assert a - b > 0.5 * (t - b)
    else:
        assert np.isfinite(mean.detectable)
        assert f"could have seen a change of {mean.detectable:.3g}" in found.sentence
        assert mean.detectable > 0


def gap_of(inside, negatives, delta=0.05):
    return (np.quantile(inside, 1 - delta) - np.quantile(negatives, 0.995)) / negatives.std()


def slow(bank, host, vectors, layer, cosine):
    """Gap, coverages and overlap of "a" along a vector at one layer, by plain loops over samples."""
    found = {}
    for split in ("cal", "test"):
        samples = [s for s, of in zip(DATA.samples, DATA.split_of, strict=True) if of == split]
        inside, negatives, tops = [], [], {True: [], False: []}
        for sample in samples:
            read = {}
            (batch,) = host.batches([sample])
            site = Site(layer, "resid_post")
            host.read(batch, {site}, lambda got, read=read: read.update(got))
            x = (read[site][0].numpy() - bank.token.mean[layer].numpy()) / float(bank.token.scale[layer])
            s = x @ vectors
            s = s / np.linalg.norm(x, axis=1) / np.linalg.norm(vectors) if cosine else s
            labelled = np.array([word.startswith("a") for word in sample.text.split()])
            inside += list(s[labelled])
            negatives += [] if "a" in sample.positive else list(s)
            tops["a" in sample.positive].append(s.max())
        inside, negatives = np.array(inside), np.array(negatives)
        if split == "cal":
            q = np.quantile(negatives, 0.995)
    edges = np.linspace(min(inside.min(), negatives.min()), max(inside.max(), negatives.max()), 51)
    shares = [np.histogram(one, edges)[0] / len(one) for one in (inside, negatives)]
    found["tail_gap"] = gap_of(inside, negatives)
    found["coverage"], found["negative_coverage"] = (np.mean(np.array(tops[y]) > q) for y in (True, False))
    found["overlap"] = np.minimum(*shares).sum()
    return found


@pytest.mark.parametrize("layer", [0, 2])
def test_along_every_vector_it_equals_plain_loops(signal, layer):
    bank, _, found = signal
    host = WORLDS["signal"]
    for suffix, at in (("", layer), ("_along_chosen", 3)):
        expected = slow(bank, host, bank.token.vectors[at, 0].numpy(), layer, cosine=True)
        got = {m: float(found[f"{m}{suffix}"].sel(layer=layer, concept="a").estimate) for m in expected}
        assert got == pytest.approx(expected, abs=2e-5), suffix


def test_at_the_chosen_layer_all_is_one_and_prototypes_are_no_second_vector(signal):
    found = signal[2]
    for name in ("tail_gap", "coverage", "negative_coverage", "overlap"):
        own, chosen = (found[f"{name}{suffix}"].sel(layer=3) for suffix in ("", "_along_chosen"))
        np.testing.assert_array_equal(own.values, chosen.values)
        assert f"{name}_along_prototype" not in found.measures
    assert found.settings.chosen_layer == {"a": 3, "b": 3}
    assert found.settings.refits == 5
    lda = traced("signal", "lda", n=0)[2]
    np.testing.assert_allclose(
        lda["tail_gap_along_prototype"].estimate, found["tail_gap"].estimate, atol=1e-5
    )
    assert "tail_gap_refits" not in lda.measures
    assert lda.settings.without == ("no refits: none were asked for (TraceOptions(refit_groups=5))",)
    assert lda.growth[0].refits is None


@pytest.mark.parametrize("kind", ["prototype", "lda", "separator"])
def test_a_refit_is_a_fit_on_fewer_documents(kind):
    bank, statistics, _ = traced("signal", kind, n=0)
    left = leave_out(bank, statistics, 4)
    documents = sorted({s.document for s in DATA.train.samples})
    group = np.random.default_rng(0).permutation(len(documents)) % 4
    for g in (0, 3):
        gone = {d for d, of in zip(documents, group, strict=True) if of == g}
        kept = [k for k, s in enumerate(DATA.samples) if s.document not in gone]
        fewer = ConceptData(
            NAMES, tuple(DATA.samples[k] for k in kept), tuple(DATA.split_of[k] for k in kept)
        )
        again = fit(WORLDS["signal"], fewer, kind, sinks="keep", controls=False)
        np.testing.assert_allclose(left.banks[g].token.mean, again.token.mean, atol=1e-5)
        cosine = torch.cosine_similarity(left.banks[g].token.vectors, again.token.vectors, dim=-1)
        assert cosine.min() > (1 - 1e-3 if kind == "separator" else 1 - 1e-6)
    assert left.defined.all()
    assert left.carried.sum() == statistics.tokens.labels.sum()


def test_refits_are_measured_on_the_test_documents(signal):
    bank, statistics, found = signal
    left = leave_out(bank, statistics, 5)
    drawn = found["tail_gap_refits"]
    np.testing.assert_array_equal(drawn.estimate, found["tail_gap"].estimate)
    for g, one in enumerate(left.banks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = score(WORLDS["signal"], DATA, one)
            alone = trace(scores=table, resampling=RESAMPLING)
        np.testing.assert_allclose(drawn.values[..., 1 + g], alone["tail_gap"].estimate, atol=1e-5)
    # Five groups: the interval has the t of at most four degrees of freedom.
    moved = drawn.values[..., 1:] - drawn.values[..., :1]
    s = np.sqrt(4 / 5 * (moved**2).sum(-1))
    assert ((drawn.high - drawn.estimate) >= 2.77 * s).all()
    assert (found["tail_gap_along_chosen_refits"].sel(layer=3).values == drawn.sel(layer=3).values).all()


def test_a_concept_that_a_group_leaves_nothing_of_keeps_its_vector():
    bank, statistics, _ = traced("signal", n=0)
    labels = statistics.tokens.labels.copy()
    first = statistics.tokens.sample_of == np.flatnonzero(statistics.tokens.sample_labels[:, 0])[0]
    labels[:, 0] &= first
    tokens = replace(statistics.tokens, labels=labels)
    token = tuple(
        replace(one, labels=labels, positive_count=torch.from_numpy(labels.sum(0)))
        for one in statistics.token
    )
    left = leave_out(bank, replace(statistics, tokens=tokens, token=token), 5)
    assert (~left.defined[:, 0]).sum() == 1
    g = int(np.flatnonzero(~left.defined[:, 0])[0])
    assert torch.equal(left.banks[g].token.vectors[:, 0], bank.token.vectors[:, 0])
    assert (left.carried[0] > 0).sum() == 1
    with pytest.raises(ValueError, match="groups of train documents, and there are 2: three are needed"):
        leave_out(bank, statistics, 2)


def three(own, chosen, top, noise=0.02, refit_noise=None):
    """Made-up measures of two concepts at layers 0 and 5, chosen the last."""
    rng = np.random.default_rng(0)
    axes = {"layer": (0, 5), "concept": NAMES}

    def around(first, columns, kind, carried, size):
        values = np.broadcast_to(np.array([[first], [top]], float)[..., None], (2, 2, 1 + columns)).copy()
        values[..., 1:] += size * rng.normal(size=(2, 2, columns))
        return Drawn(values, axes, kind, carried)

    made = {
        name: around(first, 200, "quantile", np.ones(30), noise)
        for name, first in (("tail_gap", own), ("tail_gap_along_chosen", chosen))
    }
    if refit_noise is not None:
        for name, first in (("tail_gap_refits", own), ("tail_gap_along_chosen_refits", chosen)):
            made[name] = around(first, 5, "mean", np.ones(5), refit_noise)
    return made


def said(made):
    return growths(made, dict.fromkeys(NAMES, 5), np.ones((2, 201)))[0]


@pytest.mark.parametrize(
    ("gaps", "answer"),
    [
        ((0.4, 0.4, 1.9), "signal"),
        ((0.4, 0.8, 1.9), "signal"),
        ((0.4, 1.8, 1.9), "probe"),
        ((1.8, 0.4, 1.9), "probe"),
        ((0.4, 2.4, 1.9), "probe"),
        # The smaller growth is half of the larger one: the edge.
        ((0.4, 1.15, 1.9), "cannot be said"),
        ((1.9, 1.9, 1.9), "cannot be said"),
        ((2.5, 2.4, 1.9), "cannot be said"),
    ],
)
def test_the_rule(gaps, answer):
    found = said(three(*gaps))
    assert found.answer == answer, found
    assert np.isfinite(found.detectable) == (answer == "cannot be said")
    a, b = gaps[2] - gaps[0], gaps[2] - gaps[1]
    assert found.difference.estimate == pytest.approx(2 * min(a, b) - max(a, b))


def test_the_intervals_of_test_documents_and_refits_add_in_squares():
    alone, both = said(three(0.4, 0.4, 1.9, 0.05)), said(three(0.4, 0.4, 1.9, 0.05, 0.05))
    assert (alone.refits, alone.answer, both.answer) == (None, "signal", "signal")
    half = [float(one.high - one.low) / 2 for one in (both.difference, both.refits)]
    low = float(both.difference.estimate) - np.hypot(*half)
    assert f"[{low:.2f}, " in both.because
    # Refits that scatter as much as the growth itself leave nothing to say.
    wild = said(three(0.4, 0.4, 1.9, 0.05, 0.6))
    assert wild.answer == "cannot be said"
    smaller_larger = [float(one.detectable()) for one in (alone.difference, wild.refits)]
    assert wild.detectable > alone.difference.detectable()
    assert all(np.isfinite(smaller_larger))


def test_it_shows_in_print_page_table_and_picture(signal):
    found = signal[2]
    text = " ".join(str(found).split())
    assert found.sentence in text
    assert "tail gap, chosen layer's" in str(found)
    assert "each of 5 groups is left out in turn" in text
    assert found.sentence.split(":")[0] in html.unescape(found._repr_html_())
    table = found.table()
    assert {"tail_gap_along_chosen", "tail_gap_refits"} <= set(table["measure"])
    assert found.sentence in " ".join(found.plot().get_supxlabel().split())
    labels = [line.get_label() for line in found.plot("a").axes[4].get_lines()]
    assert "chosen layer's vector" in labels
    nothing = traced("nothing", n=0)[2]
    seen = nothing.table().query("measure == 'detectable'")
    assert seen["value"].tolist() == [g.detectable for g in nothing.growth if g.answer == "cannot be said"]
    assert nothing.to_dict()["growth"][0]["answer"] == "cannot be said"


def test_what_is_not_compared_says_so_and_bad_options_are_named(signal):
    bank, host = signal[0], WORLDS["signal"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = trace(host, DATA, bank, resampling=RESAMPLING)
        assert (plain.growth, plain.sentence, len(plain.sheets())) == ((), "", 1)
        first = trace(
            host, DATA, bank, options=TraceOptions(fixed_at=0, refit_groups=0), resampling=RESAMPLING
        )
        assert first.growth == ()
        mixed = growths({**signal[2].measures}, {"a": 0, "b": 3}, np.ones((2, 31)))
        assert [one.concept for one in mixed] == ["b"]
        given = ConceptBank.from_vectors(
            {(c, layer): torch.ones(WIDTH) + k for k, c in enumerate(NAMES) for layer in range(LAYERS)}
        )
        how = TraceOptions(fixed_at=3)
        mine = trace(host, DATA, given, options=how, resampling=RESAMPLING)
        assert mine.settings.without == (
            "no prototypes and no refits: the vectors were not fitted on these data",
        )
    with pytest.raises(ValueError, match="the bank has no layer 9"):
        trace(host, DATA, bank, options=TraceOptions(fixed_at=9))
    with pytest.raises(ValueError, match="refit_groups is 2: give 0 for none, or 3 to 100 groups"):
        TraceOptions(refit_groups=2)


def test_a_detectors_chosen_layers_are_carried():
    bank, statistics, _ = traced("signal", n=0)
    host = WORLDS["signal"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = score(host, DATA, bank)
        detector = sa.calibrate(host, DATA, bank, scores=table)
        how = TraceOptions(shared=statistics, refit_groups=3)
        found = trace(host, DATA, detector, scores=table, options=how, resampling=RESAMPLING)
        chosen = [Traced(table, detector.tail.unit, detector.layer)]
        (others,) = read_others(host, DATA, chosen, statistics=statistics, groups=3)
        before, how = host.passes, TraceOptions(shared=others)
        again = trace(source=detector, scores=table, options=how, resampling=RESAMPLING)
    assert host.passes == before
    assert again.sentence == found.sentence
    assert found.settings.chosen_layer == dict(detector.layer)
    assert found.settings.refits == 3
    for k, concept in enumerate(NAMES):
        at = LAYERS - 1 if detector.layer[concept] == LAYERS - 1 else detector.layer[concept]
        own, chosen = found["tail_gap"].estimate[at, k], found["tail_gap_along_chosen"].estimate[at, k]
        assert own == chosen
