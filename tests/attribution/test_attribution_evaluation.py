"""Laws of the evaluation: scikit-learn, plain loops, planted concepts, refusals."""

from dataclasses import replace

import attribution_cases as cases
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from sa_plugin.attribution import (
    HEADLINE,
    MICRO,
    STRATA,
    Design,
    Trial,
    area_under,
    choose_level,
    coalition_game,
    compare,
    contrasts_of,
    curves,
    explain_game,
    later_probes,
    objective,
    on_grid,
    rank_share,
    sample_scores,
    top_fraction,
    yardsticks,
)
from sa_plugin.host import Site
from sa_plugin.statistics import Resampling

DOCUMENTS = [f"d{k % 7}" for k in range(30)]


def drawn(seed, ties=False):
    rng = np.random.default_rng(seed)
    importance = rng.normal(size=rng.integers(6, 20))
    labels = rng.random(len(importance)) < 0.3
    labels[:2] = [True, False]
    return (np.round(importance) if ties else importance), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("level", [0.02, 0.3, 0.5, 1.0])
def test_sample_scores_equal_scikit_learn(ties, level):
    for seed in range(20):
        a, y = drawn(seed, ties)
        found = sample_scores(a, y, level)
        assert found.auroc == pytest.approx(roc_auc_score(y, a))
        assert found.average_precision == pytest.approx(average_precision_score(y, a))
        marked = top_fraction(a, level)
        count = int(np.ceil(round(level * len(a), 9)))
        assert marked.sum() >= count
        assert a[marked].min() > a[~marked].max(initial=-np.inf)
        if not ties:
            assert marked.sum() == count
        assert found.f1 == pytest.approx(f1_score(y, marked))
        best = [t for t in range(len(a)) if a[t] == max(a)]
        assert found.pointing == pytest.approx(np.mean([y[t] for t in best]))
        over = [max(v - a.mean(), 0) for v in a]
        inside = sum(v for v, label in zip(over, y, strict=True) if label)
        assert found.mass_inside == pytest.approx(inside / sum(over))


def test_localisation_sees_ranks_not_units():
    a, y = drawn(0)
    for other in (3 * a + 100, a - 7):
        one, two = sample_scores(a, y, 0.3), sample_scores(other, y, 0.3)
        np.testing.assert_allclose(one, two, rtol=1e-9)
    np.testing.assert_array_equal(rank_share(a), rank_share(np.exp(a)))
    assert rank_share(np.array([1.0, 1.0, 2.0])).tolist() == pytest.approx([1 / 3, 1 / 3, 5 / 6])
    assert np.isnan(sample_scores(np.ones(4), np.array([1, 0, 0, 0], bool), 0.5).mass_inside)


def test_the_level_is_the_best_of_the_grid():
    samples = [drawn(seed) for seed in range(8)]
    truth = np.concatenate([y for _, y in samples])
    scores = {
        q: f1_score(truth, np.concatenate([top_fraction(a, q) for a, _ in samples]))
        for q in (0.1, 0.2, 0.5, 0.9)
    }
    assert choose_level(samples, (0.9, 0.1, 0.5, 0.2)) == max(scores, key=scores.get)
    same = [(np.ones(5), np.array([1, 0, 0, 0, 0], bool))]
    assert choose_level(same, (0.5, 0.1)) == 0.1


def test_what_cannot_be_scored_is_refused():
    y = np.array([True, False])
    with pytest.raises(ValueError, match="2 of 2 tokens are labelled: localisation needs some"):
        sample_scores(np.zeros(2), np.ones(2, bool), 0.5)
    with pytest.raises(ValueError, match="holds NaN or infinite"):
        sample_scores(np.array([np.nan, 0]), y, 0.5)
    with pytest.raises(ValueError, match=r"fraction is .*: give one of the tokens"):
        top_fraction(np.zeros(2), 0.0)
    with pytest.raises(ValueError, match="no calibration sample to choose the level"):
        choose_level([])


def measured(name, seed, k):
    a, y = drawn(100 * seed + k)
    better = a + 2 * y if name == "superactivator" else a
    return Trial(
        "c" if k % 2 else "d",
        str(k),
        DOCUMENTS[k],
        "rise",
        name,
        sample_scores(better, y, 0.3),
        rank_share(better),
        y,
        {"deletion/mean_alignment": float(better.mean())},
        1 + k % 4,
    )


def test_paired_rows_equal_loops_over_documents():
    found = [measured(n, 0, k) for k in range(30) for n in cases.BOTH]
    every = contrasts_of(found, cases.BOTH)
    rows = {(r.concept, r.metric): r for r in every if r.stratum == "all"}
    row = rows["all", "f1"]
    names = sorted(set(DOCUMENTS))

    def f1(samples):
        t = np.sum([(s.scores.true_positives, s.scores.marked, s.scores.labelled) for s in samples], axis=0)
        return 2 * t[0] / (t[1] + t[2])

    differences = []
    for left in (None, *names):
        arms = {n: [s for s in found if s.document != left and s.objective == n] for n in cases.BOTH}
        differences.append(f1(arms["superactivator"]) - f1(arms["global"]))
    difference = row.differences.sel(objective="superactivator")
    assert difference.values == pytest.approx(differences)
    labelled = [sum(s.scores.labelled for s in found if s.document == name) for name in names]
    assert difference.carried.ravel() == pytest.approx(np.array(labelled) / len(cases.BOTH))
    whole = {n: [s for s in found if s.objective == n] for n in cases.BOTH}
    assert row.values.sel(objective="global").estimate == pytest.approx(f1(whole["global"]))
    assert row.verdicts == {"superactivator": "better"}
    assert rows["all", "deletion/mean_alignment"].verdicts == {"superactivator": "worse"}
    for metric in MICRO:
        assert rows["c", metric].n_samples == 15
    ranks = np.concatenate([s.ranks for s in whole["global"]])
    labels = np.concatenate([s.labels for s in whole["global"]])
    assert rows["all", "auroc_micro"].values.sel(objective="global").estimate == pytest.approx(
        roc_auc_score(labels, ranks)
    )
    assert rows["all", "auroc"].values.sel(objective="global").estimate == pytest.approx(
        np.mean([s.scores.auroc for s in whole["global"]])
    )


def test_a_sample_missing_in_one_arm_is_left_out_of_both():
    found = [measured(n, 0, k) for k in range(30) for n in cases.BOTH]
    fewer = [s for s in found if not (s.sample == "4" and s.objective == "global")]
    made = contrasts_of(fewer, cases.BOTH, Resampling(20))
    rows = [r for r in made if (r.concept, r.stratum) == ("all", "all")]
    assert {r.n_samples for r in rows} == {29}
    one = [s for s in found if s.document == "d1" and s.concept == "c"]
    (row, *_) = contrasts_of(one, cases.BOTH)
    assert np.isnan(row.values.sel(objective="global").low)
    assert row.verdicts == {"superactivator": "open"}


def test_curves_equal_a_loop_of_masked_inputs():
    host, data, detector = cases.planted()
    sample = next(s for s in data.test.samples if s.positive and detector.find(s))
    made = made_for(detector, sample)
    probes = later_probes(host, data, detector, ["animal"])
    sticks = yardsticks(host, detector, made[0], probes["animal"])
    game = coalition_game(host, sample, list(sticks), baseline="zero")
    importance = np.random.default_rng(0).normal(size=game.n_players)
    found = curves(game, importance)
    order = np.argsort(-importance)
    for k in range(game.n_players + 1):
        for kind, kept in (("insertion", order[:k]), ("deletion", order[k:])):
            x = torch.zeros_like(game.values)
            x[:, kept.tolist()] = game.values[:, kept.tolist()]
            for stick, value in zip(sticks, getattr(found, kind)[k], strict=True):
                h = host.forward_from(x, game.batch, Site(stick.layer, "resid_post"))
                assert float(stick(h)) == pytest.approx(value, abs=1e-5)
    np.testing.assert_allclose(found.share, np.arange(game.n_players + 1) / game.n_players)
    mean = np.mean((found.insertion[1:] + found.insertion[:-1]) / 2, axis=0)
    np.testing.assert_allclose(area_under(found.share, found.insertion), mean)
    grid = on_grid(found.share, found.insertion[:, 0], found.share)
    np.testing.assert_allclose(grid, found.insertion[:, 0])
    with pytest.raises(ValueError, match="give one finite number a player"):
        curves(game, importance[1:])


def made_for(detector, sample):
    return [objective(n, detector=detector, concept="animal", sample=sample) for n in cases.BOTH]


def test_yardsticks_equal_their_definitions():
    host, data, detector = cases.planted()
    sample = next(s for s in data.test.samples if s.positive and detector.find(s))
    made = made_for(detector, sample)
    probe = later_probes(host, data, detector, ["animal"])["animal"]
    assert probe.shared_layer
    assert probe.cal_auroc > 0.9
    sticks = yardsticks(host, detector, made[0], probe)
    (batch,) = host.batches([sample])
    h = host.forward_from(host.input_values(batch), batch, Site(2, "resid_post"))
    bank, keep = detector.bank.token, made[0].mask[0]
    x = ((h[0] - bank.mean[0]) / bank.scale[0])[keep].double().numpy()
    v = bank.vectors[0, 0].double().numpy()
    cosines = x @ v / np.linalg.norm(x, axis=1) / np.linalg.norm(v)
    expected = [
        cosines.mean(),
        cosines.max() - detector.threshold["animal"],
        float((h[0, keep] / h[0, keep].norm(dim=1, keepdim=True)).mean(0) @ probe.weight) + probe.bias,
    ]
    found = [float(stick(h)) for stick in sticks]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    wild = h.clone()
    wild[0, ~keep] = 1e6
    assert [float(s(wild)) for s in sticks] == pytest.approx(found, rel=1e-5)
    louder = h * torch.tensor([1e3] + [1.0] * (h.shape[1] - 1))[:, None]
    assert float(sticks[2](louder)) == pytest.approx(found[2], rel=1e-4)
    assert [s.name for s in yardsticks(host, detector, made[0], None)] == ["mean_alignment", "max_margin"]


@pytest.fixture(scope="module")
def comparison():
    host, data, detector = cases.planted()
    return compare(
        host,
        data,
        detector,
        methods=["direct_alignment", "integrated_gradients", "rise"],
        design=Design(n_test=8, n_cal=6),
        resampling=Resampling(50),
    )


def test_compare_finds_planted_tokens(comparison):
    rows = {(r.method, r.metric): r for r in comparison.contrasts if r.stratum == "all"}
    for method in comparison.methods:
        assert rows[method, "auroc"].values.axes == {"objective": comparison.objectives}
        assert (rows[method, "auroc"].values.estimate > 0.95).all()
        assert (rows[method, "pointing"].values.estimate == 1.0).all()
        insertion = rows[method, "insertion/max_margin"].values.estimate
        assert (insertion > rows[method, "deletion/max_margin"].values.estimate + 0.2).all()
    error = rows["integrated_gradients", "completeness_error"]
    assert error.better == "lower"
    assert 0 <= error.values.sel(objective="global").estimate < 0.05
    assert ("rise", "completeness_error") not in rows
    # Four arms; each by its own target too, which for "global" is the primary yardstick.
    assert comparison.objectives == (
        "global",
        "superactivator",
        "superactivator_tokens",
        "superactivator_margin",
    )
    own, primary = (rows["rise", f"insertion/{y}"].values for y in ("own_target", "mean_alignment"))
    assert own.sel(objective="global").estimate == pytest.approx(primary.sel(objective="global").estimate)
    assert not any("own_target" in one.metric for one in comparison.controls)
    (coverage,) = comparison.coverage
    assert coverage.compared == 8
    assert coverage.positive >= coverage.covered >= 8
    assert not any(coverage.refused.values())


def test_compare_equals_its_parts(comparison):
    """One row again by hand: mean AUROC of integrated gradients over the same samples."""
    host, data, detector = cases.planted()
    table = detector.scores_of(data.test)
    ids = [
        s.id
        for s in data.test.samples
        if s.positive and len(detector.find(s)) and 0 < labels_of(table, s).mean() < 1
    ]
    values = []
    for sample in [s for s in data.test.samples if s.id in ids]:
        game = coalition_game(host, sample, made_for(detector, sample))
        found = explain_game(game, "integrated_gradients", preset="fast").importance
        values.append([roc_auc_score(labels_of(table, sample), found[:, k]) for k in range(2)])
    (row,) = [
        r
        for r in full(host, data, detector).contrasts
        if (r.method, r.stratum, r.metric) == ("integrated_gradients", "all", "auroc")
    ]
    assert row.n_samples == len(values)
    np.testing.assert_allclose(row.values.estimate, np.mean(values, axis=0))


def labels_of(table, sample):
    n = [s.id for s in table.tokens.samples].index(sample.id)
    return table.tokens.labels[table.tokens.bounds[n] : table.tokens.bounds[n + 1], 0]


def full(host, data, detector):
    return compare(
        host,
        data,
        detector,
        methods=["integrated_gradients"],
        objectives=cases.BOTH,
        design=Design(n_test=999, n_cal=3, n_steps=2, probe=False),
        resampling=Resampling(10),
    )


def test_a_comparison_prints_and_draws(comparison):
    text = str(comparison)
    *sheets, strata, notes = comparison.sheets()
    (said,) = (note for note in notes.notes if "* the interval" in note)
    n = len(comparison.methods) * len(HEADLINE) * (len(comparison.objectives) - 1)
    assert f"** so it does with all {n} differences of the table read as one family (max-T)" in said
    assert repr(comparison).startswith(f"Comparison({list(comparison.objectives)}, 3 methods")
    assert "read alone" in said
    assert "95 % intervals over documents" in said
    assert "The comparison holds for this model, data, baseline and detector." in text
    # A row an arm; what could have been seen stands where zero is not excluded.
    assert len(sheets) == len(HEADLINE)
    by = {(one.method, one.stratum, one.metric): one for one in comparison.contrasts}
    for metric, sheet in zip(HEADLINE, sheets, strict=True):
        assert sheet.header == ["method", "objective", "value", "minus global, few documents", "could see"]
        assert sheet.title.startswith(metric)
        assert [row[1] for row in sheet.rows] == list(comparison.objectives) * len(comparison.methods)
        for row, method in zip(sheet.rows, np.repeat(comparison.methods, 4), strict=True):
            one = by[method, "all", metric]
            if row[1] == "global":
                assert row[3:] == ["", ""]
            elif one.verdicts[row[1]] == "open" and np.isfinite(one.detectable[row[1]]):
                assert row[4] == f"{one.detectable[row[1]]:.3f}"
                d = one.differences.sel(objective=row[1])
                assert one.detectable[row[1]] == d.detectable(power=0.8)
            else:
                assert row[4] == "" or "the same" in row[3]
    # At notebook width the whole table is seen.
    assert max(len(line) for line in text.split("\n")) <= 110
    counts = dict((label, n) for label, n, _ in comparison.strata)
    assert strata.header[2:] == [f"{label} (n={n})" for label, n in counts.items() if n]
    table = comparison.table()
    assert list(table)[-5:] == ["measure", "value", "low", "high", "note"]
    assert set(table["stratum"]) == {"all", *(label for label, n in counts.items() if n)}
    # Each objective, and the differences of the later three.
    assert len(table) == 7 * len(comparison.contrasts)
    one = comparison.contrasts[-1]
    last = table.iloc[-1]
    assert (last["objective"], last["minus"], last["measure"]) == (
        "superactivator_margin",
        "global",
        one.metric,
    )
    assert last["verdict"] == one.verdicts["superactivator_margin"]
    assert last["detectable"] == one.detectable["superactivator_margin"]
    assert last["value"] == one.values.estimate[3] - one.values.estimate[0]
    found = comparison.to_dict()
    assert found["settings"]["primary_yardstick"] == "mean_alignment"
    # Both ways by four yardsticks, the controls by three.
    assert len(found["curves"]) == 3 * 4 * 2 * 4 + 2 * 2 * 3
    html = comparison.heat_maps("animal")
    assert html.count("<figure>") == 12
    with pytest.raises(ValueError, match="concept 'animals' is unknown"):
        comparison.heat_maps("animals")
    with pytest.raises(ValueError, match="metric 'f2' is unknown"):
        comparison.plot(["f2"])
    with pytest.raises(ValueError, match="metrics is empty: name one or more"):
        comparison.plot([])
    with pytest.raises(ValueError, match="stratum '10 and more': no compared sample of 'animal' has so many"):
        comparison.sheets(stratum="10 and more")
    with pytest.raises(ValueError, match="stratum '3' is unknown"):
        comparison.plot(stratum="3")
    with pytest.raises(ValueError, match="method 'ris' is unknown"):
        comparison.plot_curves(["ris"])


def test_strata_are_the_samples_of_so_many_superactivators(comparison):
    """A stratum's row is that of its samples alone; what is empty, or has too few documents, is named."""
    trials = [t for t in comparison.trials if t.method != "control"]
    rows = {(r.method, r.stratum, r.metric): r for r in comparison.contrasts}
    for label, n, documents in comparison.strata:
        mine = [t for t in trials if t.n_tail in STRATA[label]]
        assert len({t.sample for t in mine}) == n == comparison.coverage[0].strata[label]
        assert len({t.document for t in mine}) == documents
        if n:
            alone = contrasts_of(mine, comparison.objectives, Resampling(50))
            (one,) = [r for r in alone if (r.method, r.stratum, r.metric) == ("rise", "all", "f1_sample")]
            row = rows["rise", label, "f1_sample"]
            assert row.n_samples == n
            np.testing.assert_allclose(row.values.estimate, one.values.estimate)
            np.testing.assert_allclose(row.differences.bounds, one.differences.bounds)
        else:
            assert not any(stratum == label for _, stratum, _ in rows)
    empty = "; ".join(label for label, n, _ in comparison.strata if not n)
    assert f"No compared sample has this many SuperActivators: {empty}." in " ".join(str(comparison).split())
    one = next(t for t in trials if t.n_tail == 1)
    kept = tuple(t for t in comparison.trials if t.n_tail > 1 or t.sample == one.sample)
    fewer = replace(
        comparison, trials=kept, contrasts=tuple(contrasts_of([t for t in kept if t in trials], cases.BOTH))
    )
    said = " ".join(str(replace(fewer, objectives=cases.BOTH)).split())
    assert "Fewer than 3 documents, so no interval, with this many SuperActivators: 1" in said
    with pytest.raises(ValueError, match=r"n_tail is 0 for sample .*: without a SuperActivator of 'animal'"):
        replace(one, n_tail=0)


def test_pictures_draw_what_the_tables_hold(comparison):
    """A panel a metric with a point a method; curves with every objective and both controls."""
    panels = comparison.plot(["f1", "deletion/max_margin"]).axes
    for ax, metric in zip(panels, ("f1", "deletion/max_margin"), strict=True):
        points = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o"]
        drawn = np.array(
            [c.differences.estimate for c in comparison.contrasts if (c.metric, c.stratum) == (metric, "all")]
        ).T.ravel()
        np.testing.assert_allclose(points, drawn)
    for ax in comparison.plot_strata("f1").axes:
        points = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o"]
        mine = [c for c in comparison.contrasts if (c.metric, c.method) == ("f1", ax.get_title(loc="left"))]
        drawn = [c.differences.estimate for c in mine if c.stratum != "all"]
        assert points
        np.testing.assert_allclose(points, np.array(drawn).T.ravel())
    with pytest.raises(ValueError, match="metric 'f2' is unknown"):
        comparison.plot_strata("f2")
    (insertion, _), found = comparison.plot_curves(["rise"]).axes, comparison.curves
    drawn = {line.get_label(): line.get_ydata() for line in insertion.lines}
    assert set(drawn) == {*comparison.objectives, "random", "labelled first"}
    for name in cases.BOTH:
        curve = found["rise", name, "insertion", "mean_alignment"]
        np.testing.assert_array_equal(drawn[name], curve.estimate)
        areas = [t.areas["insertion/mean_alignment"] for t in comparison.trials if t.objective == name]
        of_rise = [
            t.areas["insertion/mean_alignment"]
            for t in comparison.trials
            if (t.method, t.objective) == ("rise", name)
        ]
        assert len(of_rise) < len(areas)
        # The grid is finer than the steps of these short texts, so areas are those of the mean curve.
        assert area_under(np.array(comparison.shares), curve.estimate[:, None])[0] == pytest.approx(
            np.mean(of_rise), abs=5e-3
        )
        assert (curve.low <= curve.estimate).all()
        assert (curve.estimate <= curve.high).all()


def test_known_scores_save_the_passes(comparison):
    host, data, detector = cases.planted()
    both = [*data.cal.samples, *data.test.samples]
    again = compare(
        host,
        data,
        replace(detector, host=None),
        methods=["direct_alignment"],
        scores=detector.scores_of(replace(data.test, samples=tuple(both))),
        design=Design(n_test=8, n_cal=6),
        resampling=Resampling(50),
    )
    mine = [c for c in comparison.contrasts if c.method == "direct_alignment"]
    first = {(c.stratum, c.metric): c.values.values for c in mine}
    for one in again.contrasts:
        np.testing.assert_allclose(one.values.values, first[one.stratum, one.metric], atol=1e-9)


def test_compare_skips_what_mfaba_refuses_and_counts_it():
    host, data, detector = cases.planted()
    found = compare(
        host,
        data,
        detector,
        methods=["mfaba", "direct_alignment"],
        design=Design(n_test=3, n_cal=2, n_steps=2, probe=False),
        resampling=Resampling(10),
    )
    (coverage,) = found.coverage
    assert coverage.refused == {"mfaba": 3, "direct_alignment": 0}
    assert {r.method for r in found.contrasts} == {"direct_alignment"}
    assert "refused by mfaba" in str(found)


def test_compare_refuses():
    host, data, detector = cases.planted()
    with pytest.raises(ValueError, match="two different objectives, the conventional one first"):
        compare(host, data, detector, objectives=["global"])
    with pytest.raises(ValueError, match="method 'ris' is unknown: did you mean 'rise'"):
        compare(host, data, detector, methods=["ris"])
    with pytest.raises(ValueError, match="did you mean 'animal'"):
        compare(host, data, detector, concepts=["animals"])
    never = replace(detector, tail=replace(detector.tail, thresholds=detector.tail.thresholds + 100))
    with pytest.raises(ValueError, match="no sample could be compared"):
        compare(host, data, never, methods=["direct_alignment"], design=Design(probe=False))
