"""The permuted-label control: refits, tails, lifts and p-values are those of plain loops."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ledger_cases import detector_of, labels_of, ledger, loop_lifts, loop_terms, make_data

from sa_plugin.concepts import KINDS, ConceptBank, LayerStatistics, Origin, Rows, fit
from sa_plugin.data import ConceptData
from sa_plugin.heads import permuted_vectors
from sa_plugin.host import Site
from sa_plugin.scores import score

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def rows_of(host, samples, layer):
    site = Site(layer, "resid_post")
    for sample in samples:
        (batch,) = host.batches([sample])
        yield host.read(batch, [site], lambda read: {"h": read[site]})["h"][0, batch.valid[0]]


@pytest.mark.parametrize("kind", ["prototype", "lda", "separator"])
def test_draws_are_refits_on_permuted_labels(fake, data, kind):
    """The estimator's own function on statistics made in memory, one draw at a time."""
    bank = fit(fake, data, kind, layers=[1, 2])
    draws = permuted_vectors(fake, data, bank, draws=3, layers=[2], seed=5)
    train = data.train.samples
    h = torch.cat(list(rows_of(fake, train, 2))).double()
    labels = [np.array([[w == c for c in data.concepts] for w in labels_of(sample)]) for sample in train]
    for k, draw in enumerate(draws):
        order = np.random.default_rng([5, k]).permutation(len(train))
        y = torch.from_numpy(np.concatenate([labels[n] for n in order]))
        positive = (y.double().T @ h) / y.sum(0)[:, None]
        mean, scale = h.mean(0), float(h.square().sum(1).mean().sqrt())
        statistics = LayerStatistics(
            len(h),
            mean,
            scale,
            y.sum(0),
            positive,
            h.T @ h / len(h),
            Rows(h.numpy().astype(np.float16), mean, scale),
            y.numpy(),
        )
        expected, _ = KINDS[kind].fit(statistics)
        # Separators are solved to a relative error of 1e-3.
        size = float(expected.norm())
        torch.testing.assert_close(
            draw.vectors[1] / size, expected / size, atol=2e-3 if kind == "separator" else 1e-5, rtol=0
        )
        assert not draw.vectors[0].any()
        assert draw.scoring == bank.token.scoring


def test_controls_equal_loops(fake, fake_detector, data):
    bank, samples = fake_detector.bank, data.test.samples
    draws = permuted_vectors(fake, data, bank, draws=3)
    found = ledger(fake, data, fake_detector, permutations=draws)
    for k, column in enumerate(found.columns):
        concept, layer = column.concept, column.layer
        depth = slice(0, 1 + 3 * found.depths[k])
        _, scores = loop_terms(fake, bank, samples, concept, layer)
        n_tail = sum(int((s.astype(float) >= column.threshold).sum()) for s in scores)
        inside = [np.array([w == concept for w in labels_of(s)]) for s in samples]
        negative = [concept not in s.positive for s in samples]
        by_draw = []
        for draw in draws:
            null = replace(bank, token=draw)
            terms, scores = loop_terms(fake, null, samples, concept, layer)
            cut = np.sort(np.concatenate(scores))[-n_tail]
            size = 1.0
            if bank.token.scoring == "dot":
                size = float(bank.vector(concept, layer).norm() / null.vector(concept, layer).norm())
            tails = [s >= cut for s in scores]
            lifts = loop_lifts(terms, scores, tails, inside, negative)
            by_draw.append({name: size * lift for name, lift in lifts.items()})
        for name in ("lift", "in_concept_lift", "strongest_lift"):
            control = name.replace("lift", "control")
            expected = np.array([one[name] for one in by_draw])
            np.testing.assert_allclose(found.control_by_draw[control][:, depth, k], expected, atol=5e-5)
            # Over all draws together, every chosen token counts once.
            value = found.effects[control].terms.estimate[depth, k]
            np.testing.assert_allclose(value, expected.mean(0), atol=0.15)
            excess = found.effects[name.replace("lift", "excess")].terms.estimate
            np.testing.assert_allclose(
                excess, found.effects[name].terms.estimate - found.effects[control].terms.estimate, atol=1e-9
            )


def test_the_control_is_the_mean_over_draws_where_tails_are_alike(fake, fake_detector, data):
    """Without ties every draw's tail has one size, and the pooled mean is the mean of draws."""
    found = ledger(fake, data, fake_detector, permutations=4)
    draws = found.control_by_draw["strongest_control"]
    sizes = found.effects["strongest_control"].n_tokens / 4
    for k in range(len(found.columns)):
        if sizes[k] == found.lift.n_tokens[k]:
            np.testing.assert_allclose(
                found.effects["strongest_control"].terms.estimate[:, k], draws[:, :, k].mean(0), atol=1e-5
            )


def test_one_draw_given_twice_is_that_draw(fake, fake_detector, data):
    one = permuted_vectors(fake, data, fake_detector.bank, draws=1)
    single = ledger(fake, data, fake_detector, permutations=one)
    double = ledger(fake, data, fake_detector, permutations=one * 2)
    for name in ("control", "in_concept_excess", "strongest_control"):
        a, b = (one.effects[name].terms for one in (single, double))
        for end in ("estimate", "low", "high"):
            np.testing.assert_allclose(getattr(a, end), getattr(b, end), atol=1e-6)
    assert (single.beyond_control()[np.isfinite(single.beyond_control())] == 1).all()


def test_p_values_are_ranks(fake, fake_detector, data):
    found = ledger(fake, data, fake_detector, permutations=19)
    p = found.beyond_control("in_concept_lift")
    draws = found.control_by_draw["in_concept_control"]
    lift = found.effects["in_concept_lift"].terms.estimate
    for i, k in np.ndindex(p.shape):
        values = np.append(draws[:, i, k], lift[i, k])
        if np.isfinite(values).all() and values.std() > 0:
            far = np.abs(values - values.mean())
            assert p[i, k] == pytest.approx((far >= far[-1] - 1e-12).sum() / 20)
    assert found.settings["permutations"] == 19


def test_a_permuted_vector_posing_as_a_concept_is_rarely_beyond_its_control(fake, data):
    """Ranks among exchangeable vectors: p <= .05 in about one in twenty cells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(fake, data, "lda", layers=[2])
    draws = permuted_vectors(fake, data, bank, draws=100)
    share = []
    for k in range(0, 100, 20):
        group = draws[k : k + 20]
        posing = replace(bank, token=group[0])
        found = ledger(
            fake, data, posing, permutations=group[1:], draws=2, tail=top_tail(fake, posing, data, 8)
        )
        share.append((found.beyond_control() <= 0.05).mean())
    assert np.mean(share) < 0.12


def top_tail(fake, bank, data, n):
    """The n highest tokens of each concept, as masks."""
    columns = [loop_terms(fake, bank, data.test.samples, c, 2)[1] for c in data.concepts]
    cuts = [np.sort(np.concatenate(one))[-n] for one in columns]
    return [
        np.stack([one[k] >= cut for one, cut in zip(columns, cuts, strict=True)], axis=1)
        for k in range(len(data.test.samples))
    ]


def test_excess_of_random_vectors_is_zero_on_average(fake):
    """Lift selects on its own sum; the control takes that away."""
    n_vectors = 60
    data = make_data(120, None, seed=5)
    generator = torch.Generator().manual_seed(11)
    names = tuple(f"random {k}" for k in range(n_vectors))

    def draw():
        vectors = torch.randn(1, n_vectors, fake.info.d_model, generator=generator)
        return replace(base.token, vectors=vectors / vectors.norm(dim=-1, keepdim=True))

    base = fit(fake, data, "lda", layers=[2])
    bank = replace(
        base, concepts=names, units=names, token=draw(), permuted=draw(), pooled=None, origin=Origin()
    )
    named = ConceptData.from_spans(
        [s.text for s in data.samples],
        [[(0, 1, name) for name in names if k % 2] for k, _ in enumerate(data.samples)],
        splits=data.split_of,
    )
    table = score(fake, named, bank, splits=["test"])
    flat = table.scores[:, 0]
    cut = np.sort(flat, axis=0)[-round(0.04 * len(flat))]
    tail = np.split(flat >= cut, table.tokens.bounds[1:-1])
    found = ledger(fake, named, bank, tail=tail, concepts=names)

    def t_of(effect):
        sizes = effect.terms.estimate / effect.terms.estimate.std()
        mean = sizes.mean(0)
        return mean.mean() / (mean.std(ddof=1) / np.sqrt(n_vectors))

    assert t_of(found.lift) > 10
    assert t_of(found.control) > 10
    assert abs(t_of(found.excess)) < 3
    heads = found.excess.terms.estimate[[c.kind == "heads" for c in found.components]]
    per_head = heads.mean(1) / (heads.std(1, ddof=1) / np.sqrt(n_vectors))
    assert (np.abs(per_head) < 4).all()


def test_defaults(fake, data):
    for kind, draws in (("prototype", 20), ("separator", 1)):
        found = ledger(fake, data, detector_of(fake, data, kind))
        assert found.settings["permutations"] == draws
    some = ledger(fake, data, detector_of(fake, data, "separator"), permutations=2)
    assert some.settings["permutations"] == 2
    assert len(some.control_by_draw["control"]) == 2


def test_refusals(fake, fake_detector, data):
    given = ConceptBank.from_vectors({(c, 1): torch.ones(12) for c in data.concepts})
    masks = [np.zeros((len(s.text.split()), 2), dtype=bool) for s in data.test.samples]
    with pytest.raises(ValueError, match="a bank of kind 'given' is not fitted to labels here"):
        ledger(fake, data, given, tail=masks, permutations=2)
    with pytest.raises(ValueError, match=r"its labels cannot be permuted here"):
        ledger(fake, make_data(80, None, seed=9), fake_detector, permutations=2)
    with pytest.raises(ValueError, match="permutations is -1, not a whole number from 0"):
        ledger(fake, data, fake_detector, permutations=-1)
    with pytest.raises(ValueError, match="this ledger has no control"):
        ledger(fake, data, fake_detector, permutations=0).beyond_control()
