"""The tail law on worlds whose truth is known: inputs, simulated contexts, the order of poolings, advice."""

import numpy as np
import pytest
import tail_oracles as oracle
from detection_cases import make_case

from sa_plugin import advise
from sa_plugin.detection import GRIDS, STATISTICS
from sa_plugin.statistics import DELTAS, Resampling, auroc
from sa_plugin.theory import (
    Constants,
    Context,
    TailLaw,
    extremal_index,
    intraclass,
    measure_inputs,
    pooled,
    tail_index,
)

FEW = Resampling(40)


def law_of(samples, n, m, d, *, at=None, contexts=1000, constants=None, **world):
    """The law of a world, at its own length and span or another."""
    inputs = measure_inputs(*oracle.world(samples, n, m, d, **world))
    tokens, span = (n, m) if at is None else at
    return TailLaw(inputs, Context(tokens, span, span), samples=contexts, constants=constants or Constants())


NAMES = {"top_k_mean": "top-k mean", "above_median": "max - median"}


def areas(law, **candidates):
    """AUROC of the maximum, the mean and some more poolings at one candidate each."""
    contexts = law.contexts()
    only = {"MaxTok": (), "MeanTok": ()} | {NAMES.get(k, k): v for k, v in candidates.items()}
    each = pooled(contexts, law.inputs.prevalence, only)
    return {k: auroc_in(v, contexts) for k, _, v in each}


def auroc_in(values, contexts):
    """Of one pooling."""
    return float(auroc(values, np.arange(len(values)) < contexts.half))


# --- inputs


def test_inputs_are_what_a_loop_over_samples_finds():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 40)
    bounds = np.append(0, np.cumsum(lengths))
    scores = rng.standard_normal(bounds[-1]).astype(np.float32)
    labels = rng.random(bounds[-1]) < 0.08
    positive = rng.random(40) < 0.1
    documents = [f"d{k % 9}" for k in range(40)]
    found = measure_inputs(scores, labels, bounds, documents, positive=positive)
    negative, inside, runs, others, highest = [], [], 0, [], []
    for n in range(40):
        own, marked = scores[bounds[n] : bounds[n + 1]], labels[bounds[n] : bounds[n + 1]]
        if marked.any():
            inside += own[marked].tolist()
            runs += sum(1 for t in range(len(own)) if marked[t] and (t == 0 or not marked[t - 1]))
            highest.append(own.max())
            if not marked.all():
                others.append(own[~marked].mean(dtype=np.float64))
        elif not positive[n]:
            negative.append(own)
    assert found.background.tolist() == np.concatenate(negative).tolist()
    assert found.inside.tolist() == inside
    assert found.highest.tolist() == [float(one) for one in highest]
    said = found.measured()
    background = np.concatenate(negative).astype(np.float64)
    assert said["m"] == pytest.approx(len(inside) / len(highest))
    assert said["runs"] == pytest.approx(runs / len(highest))
    assert said["kappa"] == pytest.approx((np.mean(others) - background.mean()) / background.std())
    assert found.prevalence == pytest.approx(
        np.mean([positive[n] or labels[bounds[n] : bounds[n + 1]].any() for n in range(40)])
    )


def test_intraclass_correlation_is_the_shared_share_of_the_variance():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(400), rng.integers(2, 30, 400))
    for share in (0.0, 0.1, 0.5):
        noise = np.sqrt(1 - share) * rng.standard_normal(len(groups))
        values = noise + np.sqrt(share) * rng.standard_normal(400)[groups]
        assert intraclass(values, groups) == pytest.approx(share, abs=0.04)
    assert np.isnan(intraclass(values[:5], np.arange(5)))


@pytest.mark.parametrize(("nu", "xi"), [(None, 0.0), (4, 0.25), (3, 1 / 3)])
def test_tail_index_is_one_over_the_degrees_of_freedom(nu, xi):
    rng = np.random.default_rng(2)
    values = rng.exponential(size=100_000) if nu is None else rng.standard_t(nu, 100_000)
    assert tail_index(values) == pytest.approx(xi, abs=0.08)


def test_extremal_index_is_one_for_independent_tokens_and_less_for_runs():
    rng = np.random.default_rng(3)
    values = rng.standard_normal(200 * 64)
    bounds = 64 * np.arange(201)
    assert extremal_index(values, bounds) > 0.85
    assert extremal_index(np.repeat(values[::4], 4), bounds) == pytest.approx(0.25, abs=0.08)


def test_bad_input_is_named():
    scores, labels, bounds, names = oracle.world(12, 5, 1, 2.0)

    def refused(match, **changed):
        given = {"scores": scores, "labels": labels, "bounds": bounds, "documents": names} | changed
        with pytest.raises(ValueError, match=match):
            measure_inputs(**given, concept="animal")

    refused("'animal' has no labelled token here", labels=np.zeros_like(labels))
    refused("every sample has 'animal'", labels=np.ones_like(labels))
    refused("in-concept tokens of 'animal' come from 1 source document", documents=np.repeat(["a", "b"], 6))
    refused("samples without it of 'animal' come from 2", documents=np.array([*"abcdef", *"ghghgh"]))
    refused("hold NaN or Inf", scores=np.where(labels, np.nan, scores))
    refused("sample 3 has no token", bounds=np.where(np.arange(13) == 4, bounds[3], bounds))
    refused("score alike", scores=np.where(labels, 1.0, 0.0))
    refused("11 documents do not fit bounds of 12 samples and 60 tokens", documents=names[:-1])
    for made, match in (
        (lambda: Context(0), "tokens is 0: a context has at least one"),
        (lambda: Context(8, 9), "in_concept is 9: a positive context of 8 tokens has 1 to 8"),
        (lambda: Context(8, 0.5), "in_concept is 0.5"),
        (lambda: Context(8, 2, 0), "runs is 0: in-concept tokens stand in at least one run"),
        (lambda: Constants(shared=1.5), "shared is 1.5: give a share between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=match):
            made()


# --- contexts


def test_contexts_hold_what_was_asked_and_what_was_measured():
    law = law_of(60, 20, 3, 5.0, at=(50, 4), contexts=30)
    drawn = law.contexts()
    assert drawn.scores.shape == (50, 60)
    assert (drawn.inside[:, :30].sum(0) == 4).all()
    assert not drawn.inside[:, 30:].any()
    # Without effects every token of a negative context is one that was measured, in its sample's order.
    law.inputs.__dict__["rho"] = 0.0
    known = law.inputs.background
    rows = [np.flatnonzero(known == one)[0] for one in law.contexts().scores[:20, 30]]
    assert (np.diff(rows) == 1).all()


def test_a_left_out_sample_is_in_no_context_and_the_others_stay():
    law = law_of(60, 20, 3, 5.0, at=(50, 3), contexts=200)
    out = np.arange(30) < 3
    whole, less = law.contexts(), law.contexts(negatives=out)
    gone = law.inputs.background[: 3 * 20]
    assert np.isin(gone, whole.scores[:, 200:]).any()
    assert not np.isin(gone, less.scores[:, 200:]).any()
    untouched = ~np.isin(whole.scores[:, 200:], gone).any(0)
    assert untouched.any()
    assert (whole.scores[:, 200:][:, untouched] == less.scores[:, 200:][:, untouched]).all()
    # In-concept scores of three positive samples, left out: no quantile lies above the rest.
    top = np.argsort(-law.inputs.highest)[:3]
    without = np.isin(np.arange(30), top)
    rest = law.inputs.without_effect[~without[law.inputs.inside_sample]]
    assert law.contexts(positives=without).scores.max() < rest.max() + 1
    assert law.contexts().scores.max() > law.contexts(positives=without).scores.max()


def test_contexts_as_columns_are_pooled_as_samples_are():
    """The same numbers as the detection table's own path, one sample after another."""
    law = law_of(60, 20, 3, 2.0, contexts=12)
    drawn = law.contexts()
    rows = np.ascontiguousarray(drawn.scores.T).reshape(-1, 1, 1)
    bounds = 20 * np.arange(25)
    spread = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
    seen = set()
    for name, candidate, values in pooled(drawn, 0.5):
        numbers = GRIDS[name].parameters(candidate, *spread) if name in GRIDS else ()
        slow = STATISTICS[name](rows, bounds, *numbers)[:, 0, 0]
        np.testing.assert_allclose(values, slow, rtol=1e-5, atol=1e-5, err_msg=name)
        seen.add(name)
    assert seen == set(STATISTICS) - {"length-only"}


# --- closed forms


@pytest.mark.parametrize(
    ("n", "m", "d", "world"),
    [
        (64, 1, 3.0, {}),
        (64, 8, 2.0, {}),
        (64, 16, 2.0, {"rho": 0.1}),
        (64, 4, 3.0, {"rho": 0.1, "kappa": 0.3}),
        (256, 8, 2.5, {"rho": 0.05}),
    ],
)
def test_simulation_and_integrals_agree(n, m, d, world):
    """Maximum and mean within .03, two to three errors of 1,200 samples and 1,000 contexts a class."""
    found = areas(law_of(2400, n, m, d, **world))
    assert found["MaxTok"] == pytest.approx(oracle.max_auroc(n, m, d, **world), abs=0.03)
    assert found["MeanTok"] == pytest.approx(oracle.mean_auroc(n, m, d, **world), abs=0.03)


def test_top_k_agrees_with_its_closed_form():
    found = areas(law_of(1200, 64, 8, 2.0), top_k_mean=(10.0,))
    assert found["top-k mean"] == pytest.approx(oracle.top_k_auroc(64, 8, 2.0, 10), abs=0.05)


@pytest.mark.parametrize(("tokens", "m"), [(512, 2), (512, 16)])
def test_from_64_tokens_to_512_as_the_integral_says(tokens, m):
    """Independent samples one after another: nothing but length changes."""
    found = areas(law_of(1200, 64, 2, 3.0, at=(tokens, m)))
    assert found["MaxTok"] == pytest.approx(oracle.max_auroc(tokens, m, 3.0), abs=0.03)
    assert found["MeanTok"] == pytest.approx(oracle.mean_auroc(tokens, m, 3.0), abs=0.03)


def test_an_effect_that_a_whole_context_shares_ends_the_mean():
    """shared = 1 is a document effect of the long context, shared = 0 one that averages out."""
    each = [
        areas(law_of(1200, 64, 2, 3.0, at=(512, 64), rho=0.1, constants=Constants(shared=share)))
        for share in (0.0, 1.0)
    ]
    assert each[1]["MeanTok"] == pytest.approx(oracle.mean_auroc(512, 64, 3.0, rho=0.1), abs=0.05)
    assert each[0]["MeanTok"] > each[1]["MeanTok"] + 0.1


@pytest.mark.parametrize(("n", "m", "d"), [(64, 1, 4.0), (64, 2, 3.5), (64, 8, 2.5), (256, 16, 3.0)])
def test_best_delta_is_within_a_step_of_the_fixed_point(n, m, d):
    """Of the grid's deltas: .8 for one token in 64, .2 for eight."""
    inputs = measure_inputs(*oracle.world(1600, n, m, d, share=0.15))
    found = TailLaw(inputs, Context(n, m, m), samples=1500).prediction()
    delta, f1 = oracle.best_delta(n, m, d, 0.15)
    assert f1 > 0.7
    assert found.f1 == pytest.approx(f1, abs=0.06)
    grid = np.array(DELTAS)
    assert abs(int(np.abs(grid - found.delta).argmin()) - int(np.abs(grid - delta).argmin())) <= 1


# --- which pooling wins


@pytest.mark.parametrize(
    ("n", "m", "d", "world", "tokens"), [(64, 1, 3.0, {}, 64), (64, 2, 3.5, {"rho": 0.1}, 512)]
)
def test_few_tokens_of_a_normal_world_need_the_maximum(n, m, d, world, tokens):
    found = areas(law_of(1000, n, m, d, at=(tokens, m), **world), top_k_mean=(10.0,))
    assert found["MaxTok"] > found["MeanTok"] + 0.1
    assert found["MaxTok"] > found["top-k mean"]


def test_many_tokens_need_the_mean_or_a_soft_tail():
    found = law_of(1000, 64, 16, 1.0).prediction()
    assert found.auroc["MeanTok"] > found.auroc["MaxTok"] + 0.02
    assert found.best != "MaxTok"


def test_heavy_tails_at_length_need_several_tokens():
    """Student's tail with 3 degrees of freedom: the world is seen at 64 tokens and asked about at 512."""
    law = law_of(1000, 64, 8, 3.0, at=(512, 8), nu=3)
    assert law.inputs.measured()["xi"] > 0.15
    found = areas(law, top_k_mean=(10.0,))
    assert found["top-k mean"] > found["MaxTok"] + 0.05


def test_a_shared_effect_needs_the_median_taken_away():
    law = law_of(1000, 64, 8, 3.0, at=(512, 2), rho=0.3, constants=Constants(shared=1.0))
    found = areas(law, above_median=())
    assert found["max - median"] > found["MaxTok"] + 0.02
    assert found["MaxTok"] > found["MeanTok"] + 0.1


def test_a_unit_of_scores_changes_no_prediction():
    """A power of two changes no bit."""
    scores, *rest = oracle.world(100, 20, 2, 2.0)
    one, four = (
        TailLaw(measure_inputs(k * scores, *rest), Context(40, 2), samples=50).prediction() for k in (1, 4)
    )
    assert one.auroc == four.auroc
    assert one.delta == four.delta


# --- advice


@pytest.fixture(scope="module")
def table():
    return make_case().table


@pytest.fixture(scope="module")
def advice(table):
    return advise(table, tokens=80, in_concept=4, samples=60, resampling=FEW)


def test_advice_is_the_law_of_every_concept(table, advice):
    for k, concept in enumerate(advice.concepts):
        place = table.bank.index(advice.layer[concept])
        unit = table.tokens.concepts.index(concept)
        inputs = measure_inputs(
            table.scores[:, place, unit],
            table.tokens.labels[:, unit],
            table.tokens.bounds,
            np.array([s.document for s in table.tokens.samples]),
            positive=table.tokens.sample_labels[:, unit],
        )
        law = TailLaw(inputs, advice.context[concept], samples=60, seed=FEW.seed)
        found = law.prediction()
        assert advice.best[concept] == found.best
        assert advice.delta[concept][1] == found.delta
        # What is chosen on these contexts is judged on others.
        other = law.again(FEW.seed + 1).contexts()
        auroc = {
            name: auroc_in(values, other)
            for name, _, values in pooled(other, inputs.prevalence, found.parameters)
        }
        assert advice.auroc.sel(concept=concept).estimate.tolist() == list(auroc.values())
        assert advice.gain.estimate[k] == pytest.approx(auroc[found.best] - auroc["MaxTok"])


def test_what_is_gained_is_not_what_choosing_gains():
    """Where poolings differ by chance alone, the best of them gains nothing on other contexts."""
    rng = np.random.default_rng(3)
    bounds = np.arange(0, 1601, 2)
    labels = np.arange(1600) % 4 == 0
    table = (rng.standard_normal(1600), labels, bounds, np.arange(800) % 40)
    law = TailLaw(measure_inputs(*table), Context(2, 1), samples=40)
    chosen, judged = [], []
    for seed in range(0, 80, 2):
        found = law.again(seed).prediction()
        best = max(found.auroc, key=lambda name: found.auroc[name])
        other = law.again(seed + 1).contexts()
        of = {n: v for n, _, v in pooled(other, 0.5, found.parameters)}
        a, b = (auroc_in(of[n], other) for n in (best, "MaxTok"))
        chosen.append(found.auroc[best] - found.auroc["MaxTok"])
        judged.append(a - b)
    assert np.mean(chosen) > 0.02
    assert abs(np.mean(judged)) < 3 * np.std(judged) / len(judged) ** 0.5


def test_longer_contexts_need_higher_thresholds(advice):
    assert (advice.shift.estimate > 0).all()
    assert (advice.alarms.estimate > 0.05).all()
    assert "at 80 tokens" in advice.headline()


def test_at_the_same_length_and_span_advice_adds_nothing(table):
    tokens = round(len(table.tokens) / table.tokens.n_samples)
    found = advise(table, tokens=tokens, samples=20, resampling=FEW)
    assert found.same == found.concepts
    assert "this adds nothing: calibrate on them" in found.headline()
    assert "there this adds nothing, calibrate and evaluate on them" in " ".join(found.summary().split())


def test_advice_refuses_by_name(table):
    with pytest.raises(ValueError, match="tokens is 0"):
        advise(table, tokens=0)
    with pytest.raises(ValueError, match="in_concept is 99: a positive context of 40 tokens"):
        advise(table, tokens=40, in_concept=99.0)
    with pytest.raises(ValueError, match="samples is 0: simulate at least one context"):
        advise(table, tokens=40, samples=0)
    with pytest.raises(ValueError, match="did you mean 'animal'"):
        advise(table, ["animals"], tokens=40)
    with pytest.raises(ValueError, match="concepts is empty"):
        advise(table, [], tokens=40)
    with pytest.raises(ValueError, match="are no concepts"):
        advise(make_case(units=4).table, tokens=40)
