"""`reproduce`: stages that continue, curves and densities against loops, what is said of claims."""

import importlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from detection_cases import make_case
from fake_host import FakeHost
from word_data import word_data

from sa_plugin.cli import main
from sa_plugin.detection import best_layer, calibrate
from sa_plugin.stages import (
    CellConfig,
    DataPart,
    Plan,
    RunPart,
    Stage,
    Store,
    delta_peaks,
    density,
    facts,
    findings,
    interval_says,
    published,
    published_of,
    read_json,
    read_scores,
    reproduce,
    study,
    tokens_per_positive,
    write_json,
    write_scores,
)
from sa_plugin.stages import graph as graph_module
from sa_plugin.stages import store as store_module
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
KINDS = {"kmeans": {"k": 6}, "kmeans_separator": {"k": 6}}
TOY = CellConfig("toy", "A toy", data=DataPart("supersense"), run=RunPart(draws=40), kinds=KINDS)


@pytest.fixture(scope="module")
def data():
    return word_data(90, documents=30)


def run(cell, folder, data, host=None, **options):
    said = []
    found = reproduce(
        cell, folder, host=host or FakeHost(), data=data, say=said.append, **{"figures": False, **options}
    )
    return found, said


@pytest.fixture(scope="module")
def first(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cell")
    host = FakeHost()
    found, said = run(TOY, folder, data, host)
    return folder, found, said, host.passes


class TestStages:
    def test_one_train_pass_and_two_score_passes_whatever_the_kinds(self, first, data):
        """The second reads along the vectors of chosen layers, which the first one chooses."""
        passes = first[3]
        assert passes == len(data.samples) + len(data.cal) + len(data.test)

    def test_a_second_run_keeps_everything_and_says_so(self, first, data):
        folder, found, _, _ = first
        host = FakeHost()
        again, said = run(TOY, folder, data, host)
        assert host.passes == 0
        assert again.record == found.record
        assert sum(": kept" in line for line in said) == 8
        assert not any("computed" in line for line in said)

    def test_a_changed_setting_recomputes_what_rests_on_it_and_names_it(self, first, data, tmp_path):
        folder = shutil.copytree(first[0], tmp_path / "copy")
        host = FakeHost()
        cell = replace(TOY, run=replace(TOY.run, draws=30))
        _, said = run(cell, folder, data, host)
        assert host.passes == 0
        computed = [line for line in said if "computed" in line]
        assert len(computed) == 8
        # Neither scores nor those along other vectors are read again.
        assert all("draws was 40, is 30" in line for line in computed)

    def test_options_of_one_kind_leave_the_others_alone(self, first, data, tmp_path):
        folder = shutil.copytree(first[0], tmp_path / "copy")
        cell = replace(TOY, kinds={**KINDS, "kmeans": {"k": 5}})
        _, said = run(cell, folder, data)
        computed = [line.split(":")[0] for line in said if "computed" in line]
        assert computed == [f"{name} kmeans" for name in ("fit", "scores", "detection", "along", "trace")]

    def test_the_same_folder_with_other_data_computes_again(self, first, tmp_path):
        folder = shutil.copytree(first[0], tmp_path / "copy")
        host = FakeHost()
        other = word_data(80, documents=30)
        _, said = run(TOY, folder, other, host)
        assert host.passes == 80 + len(other.cal) + len(other.test)
        assert any("data was" in line for line in said)

    def test_other_weights_compute_again(self, first, data, tmp_path):
        folder = shutil.copytree(first[0], tmp_path / "copy")
        host = FakeHost(seed=1)
        _, said = run(TOY, folder, data, host)
        assert host.passes == len(data.samples) + len(data.cal) + len(data.test)
        assert any("weights was" in line for line in said)

    def test_what_was_killed_leaves_no_result(self, tmp_path):
        store, stage = Store(tmp_path, lambda line: None), Stage("fit", {"a": 1})

        def write(value, path):
            path.write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.keep(stage, lambda: 1, write, read_json)
        assert not store.has(stage)
        assert store.keep(stage, lambda: 2, write_json, read_json) == 2
        assert store.keep(stage, lambda: 3, write_json, read_json) == 2

    def test_warnings_of_a_kept_stage_stay_in_the_record(self, first):
        _, found, _, _ = first
        notes = found.record["warnings"]
        assert any(note.startswith("FewTokensWarning") for note in notes)


@pytest.mark.parametrize("error", [NotImplementedError("no weights"), TypeError("a fault of ours")])
def test_only_meant_refusals_leave_a_study_standing(data, monkeypatch, error):
    def refuse(*args, **given):
        raise error

    monkeypatch.setattr(graph_module, "head_ledger", refuse)
    plan = Plan(["prototype"], stages=("detection", "heads"), resampling=Resampling(20))
    if isinstance(error, NotImplementedError):
        found = study(FakeHost(), data, plan).record["kinds"]["prototype"]
        assert found["absent"] == {"heads": "no weights"}
        assert "heads" not in found
    else:
        with pytest.raises(TypeError, match="a fault of ours"):
            study(FakeHost(), data, plan)


def test_an_edit_of_the_code_or_another_library_computes_anew(tmp_path, monkeypatch):
    said = []
    stage = Stage("fit", {"a": 1})
    Store(tmp_path, said.append).keep(stage, lambda: 1, write_json, read_json)
    monkeypatch.setattr(store_module, "environment", lambda: {"code": "other", "torch": "99"})
    assert Store(tmp_path, said.append).keep(stage, lambda: 2, write_json, read_json) == 2
    assert "code was " in said[-1]
    assert 'torch was "' in said[-1]


@pytest.mark.parametrize("units", [None, 7])
def test_stored_scores_are_the_scores(tmp_path, units):
    case = make_case(units=units)
    write_scores(case.table, tmp_path / "a.npz")
    again = read_scores(tmp_path / "a.npz", case.bank, case.data)
    np.testing.assert_array_equal(again.scores, case.table.scores)
    np.testing.assert_array_equal(again.pooled, case.table.pooled)
    for name in ("sample_of", "position", "offsets", "labels"):
        found, kept = getattr(again.tokens, name), getattr(case.table.tokens, name)
        assert found.dtype == kept.dtype
        np.testing.assert_array_equal(found, kept)
    assert again.tokens.samples == case.table.tokens.samples
    assert again.tokens.split_of == case.table.tokens.split_of
    with pytest.raises(ValueError, match=r"scores of sample '\d+', the data have none"):
        read_scores(tmp_path / "a.npz", case.bank, make_case(n=60).data)


def loop_f1(detector, table, place, delta):
    """Test F1 of each concept at one layer and delta, sample by sample."""
    found = []
    for c in range(len(detector.concepts)):
        tau = detector.tail.thresholds[place, delta, c]
        tp = wrong = 0
        for n in range(table.tokens.n_samples):
            rows = slice(table.tokens.bounds[n], table.tokens.bounds[n + 1])
            own = table.scores[rows, place, detector.tail.unit[place, c]]
            fires, label = max(map(float, own)) >= tau, bool(table.tokens.sample_labels[n, c])
            tp, wrong = tp + (fires and label), wrong + (fires != label)
        found.append(2 * tp / (2 * tp + wrong) if tp + wrong else 0.0)
    return np.array(found)


@pytest.mark.parametrize("units", [None, 7])
def test_peaks_and_gain_equal_loops(units):
    case = make_case(units=units, seed=3)
    detector = calibrate(None, case.data, case.bank, scores=case.table)
    test = case.table.split("test")
    found = delta_peaks(detector, test, Resampling(50))
    place, deltas = best_layer(detector.tail), detector.tail.deltas
    table = np.array([loop_f1(detector, test, place, d) for d in range(len(deltas))])
    best = [deltas[k] for k in table.argmax(0)]
    assert found.on_test.tolist() == [best.count(d) for d in deltas]
    assert found.on_cal.sum() == len(detector.concepts)
    weights = test.tokens.sample_labels.sum(0)
    curve = dict(zip(deltas, (table * weights).sum(1) / weights.sum(), strict=True))
    on_cal = dict(zip(deltas, detector.tail.f1[place].mean(-1), strict=True))
    small = max((d for d in deltas if d <= 0.1), key=on_cal.get)
    large = max((d for d in deltas if d >= 0.3), key=on_cal.get)
    assert (found.small, found.large) == (small, large)
    assert found.gain.estimate == pytest.approx(curve[small] - curve[large])
    assert found.small_share.estimate == pytest.approx(np.mean([b <= 0.1 for b in best]))
    assert found.large_share.estimate == pytest.approx(np.mean([b >= 0.3 for b in best]))


@pytest.mark.parametrize("seed", range(4))
def test_a_small_delta_bounds_what_in_concept_tokens_can_find(seed):
    """At most m * delta of the positive samples, up to the token that interpolation adds."""
    case = make_case(seed=seed, bare=0.0)
    detector = calibrate(None, case.data, case.bank, scores=case.table)
    cal = case.table.split("cal")
    (_, m), tokens = tokens_per_positive(cal), cal.tokens
    for c, concept in enumerate(detector.concepts):
        inside, positive = tokens.labels[:, c], tokens.sample_labels[:, c]
        assert m[concept] == pytest.approx(inside.sum() / positive.sum())
        for place, d in np.ndindex(len(case.bank.layers), len(detector.tail.deltas)):
            tau = detector.tail.thresholds[place, d, c]
            above = inside & (cal.scores[:, place, c] >= tau)
            found = len(set(tokens.sample_of[above].tolist())) / positive.sum()
            assert found <= m[concept] * detector.tail.deltas[d] + 1 / positive.sum() + 1e-9


def test_a_grid_without_small_or_large_deltas_is_refused():
    case = make_case()
    detector = calibrate(None, case.data, case.bank, scores=case.table, deltas=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"none up to 0\.1 or none from 0\.3: calibrate with both"):
        delta_peaks(detector, case.table.split("test"))


def test_density_equals_a_loop_and_the_distribution():
    case = make_case(seed=5, documents=60)
    detector = calibrate(None, case.data, case.bank, scores=case.table)
    test = case.table.split("test")
    found = density(detector, test, Resampling(30))
    tail, tokens = detector.superactivators(test), test.tokens
    fractions = detector.evaluate(
        case.data.test, scores=case.table, resampling=Resampling(draws=20)
    ).fractions
    for part in ("all", "inside"):
        for x in (0.1, 0.2, 0.5):
            shares = []
            for c in range(len(detector.concepts)):
                hits = []
                for n in range(tokens.n_samples):
                    rows = slice(tokens.bounds[n], tokens.bounds[n + 1])
                    inside, marks = tokens.labels[rows, c], tail[rows, c]
                    if tokens.sample_labels[n, c] and inside.any():
                        marks = marks if part == "all" else marks & inside
                        hits.append(marks.sum() / inside.sum() <= x)
                shares.append(np.mean(hits))
            one = found[part][f"{x:g}"]
            assert one.estimate == pytest.approx(np.mean(shares))
            assert one.low <= one.estimate <= one.high
            curve = getattr(fractions, part)[:, fractions.grid.index(x)]
            assert one.estimate == pytest.approx(curve.mean())


class TestSaid:
    def test_a_verdict_is_the_side_of_the_interval(self, first):
        record = first[1].record
        rows = {m["method"]: m for m in record["kinds"]["separator"]["detection"]["methods"]}
        for one in findings(record):
            name = one["claim"].removeprefix("Better than ")
            if name in rows:
                low, high = rows[name]["difference_interval"]
                expected = "reproduces" if high < 0 else "does not" if low > 0 else "open"
                assert one["verdict"] == expected

    def test_explainers_that_disagree_are_mixed_and_lower_deletion_is_better(self, first):
        def row(method, metric, better, low, high):
            middle = (low + high) / 2
            return {
                "concept": "all",
                "method": method,
                "metric": metric,
                "better": better,
                "n_samples": 3,
                "global": 0.5,
                "superactivator": 0.5 + middle,
                "superactivator_difference": middle,
                "superactivator_difference_low": low,
                "superactivator_difference_high": high,
            }

        rows = [
            row("lime", "f1", "higher", 0.1, 0.3),
            row("rise", "f1", "higher", -0.1, 0.3),
            row("lime", "insertion/mean_alignment", "higher", -0.3, -0.1),
            row("lime", "deletion/mean_alignment", "lower", -0.3, -0.1),
        ]
        found = findings({**first[1].record, "attribution": {"rows": rows}})[-3:]
        assert [one["verdict"] for one in found] == ["mixed", "does not", "reproduces"]
        missed = row("rise", "completeness_error", "lower", 0, 0)
        rows.append({**missed, "global": 0.04, "superactivator": 0.4})
        found = findings({**first[1].record, "attribution": {"rows": rows}})[-3:]
        assert found[0]["verdict"] == "reproduces"
        assert "rise is not counted: its sums miss completeness by up to 40%" in found[0]["text"]

    def test_half_is_the_null_of_shares(self):
        assert [interval_says(0.6, 0.9, 0.5), interval_says(0.1, 0.4, 0.5), interval_says(0.4, 0.6, 0.5)] == [
            "reproduces",
            "does not",
            "open",
        ]

    def test_every_method_and_kind_is_in_the_markdown(self, first):
        text = (first[0] / "cell.md").read_text()
        for name in ("MaxTok", "always-positive", "RandTok", "k-means separator", "No published"):
            assert name in text
        assert "nan" not in text.lower()

    def test_the_record_is_strict_json(self, first):
        text = (first[0] / "cell.json").read_text()
        assert json.loads(text, parse_constant=pytest.fail)["schema"] == 1


class TestPublished:
    def test_published_stand_beside_and_unreliable_ones_are_marked(self, first, data, tmp_path):
        folder = shutil.copytree(first[0], tmp_path / "copy")
        run(replace(TOY, paper="llama_vision/COCO"), folder, data)
        text = (folder / "cell.md").read_text()
        assert "0.83 ± 0.01" in text
        assert "0.61 ± 0.01 (unreliable)" in text
        assert "0.57 ± 0.01 |" in text
        assert "no difference is taken" in text
        assert "published, linear separator" in text
        assert "This run is not that cell: " in text
        assert " blocks (the paper: 40)" in text
        assert "90 samples (the paper: 5500)" in text

    def test_what_the_loader_counted_is_listed_by_reason(self, first):
        record = json.loads(json.dumps(first[1].record))
        record["meta"]["skipped"] = {"scenes with grey objects": 3, "paragraphs (kept)": 2}
        assert "scenes with grey objects: 3; paragraphs (kept): 2." in facts(record)

    def test_figures_agree_with_each_other(self):
        known = published()
        assert len(known["headline"]["f1"]) == 7
        # 160 concepts are said, the bars read off the plot add up to that.
        assert sum(known["peaks"]["concepts"]) == 160
        for one in known["deltas"]["data"].values():
            for curve in one["f1"].values():
                assert len(curve) == len(known["deltas"]["deltas"])
                assert curve[-1] == pytest.approx(one["always_positive"], abs=0.025)
        for of in known["best_layer"]["f1"].values():
            for row in of.values():
                assert abs(row["MaxTok"] - row["SuperActivators"]) < 0.035

    def test_an_unknown_cell_names_the_nearest(self):
        assert published_of("") is None
        with pytest.raises(ValueError, match="did you mean 'clip/Pascal'"):
            published_of("clip/pascal")


def test_figures_are_drawn_in_two_formats(first, data, tmp_path):
    importlib.import_module("matplotlib")
    folder = shutil.copytree(first[0], tmp_path / "copy")
    found, _ = run(TOY, folder, data, figures=True)
    names = {path.stem for path in found.figures}
    assert names == {"detection", "deltas", "peaks", "density", "layers", "histograms"}
    assert all(path.with_suffix(".svg").stat().st_size > 2000 for path in found.figures)
    assert "](figures/deltas.png)" in (folder / "cell.md").read_text()


def test_the_command_lists_and_refuses(capsys):
    assert main(["reproduce", "--list"]) == 0
    assert "paper_clip_coco" in capsys.readouterr().out
    assert main(["reproduce", "minilm_brow"]) == 2
    assert "did you mean 'minilm_brown'" in capsys.readouterr().err
    assert main(["reproduce"]) == 2
    assert "a name of --list" in capsys.readouterr().err
    assert main(["reproduce", "paper_gemma_sarcasm"]) == 2
