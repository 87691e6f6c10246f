"""The tail law's benchmark judged on worlds whose scores are drawn: what is read, frozen, chosen, refuted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tail_oracles as oracle

from sa_plugin.stages import (
    TailCell,
    TailDesign,
    TailScores,
    TailWorld,
    fit_constants,
    judge_prediction,
    predict,
    tried,
)
from sa_plugin.statistics import auroc
from sa_plugin.theory import Constants, Context, TailLaw, measure_inputs

TRAIN, OUTCOME = "train.npz", "outcome.npz"
WORLD = TailWorld("planted", "none", "none", (0,), tokens=24, in_concept=2, runs=2)
CELLS = (
    TailCell("fit-48", "planted", "fit", 48, 2, 2),
    TailCell("kept-48", "planted", "kept", 48, 12, 12),
    TailCell("kept-64", "planted", "kept", 56, 14, 14),
    TailCell("kept-96", "planted", "kept", 64, 16, 16),
)
DESIGN = TailDesign("planted", "drawn scores", 0, (WORLD,), CELLS)


def drawn(samples, n, m, d, split, seed):
    """Scores of two kinds, of few documents; in kind "high" in-concept tokens lie higher."""
    parts = [oracle.world(samples, n, m, each, share=0.5, seed=seed + k) for k, each in enumerate((d, d + 2))]
    scores = np.stack([one[0] for one in parts])[:, :, None, None]
    labels = parts[0][1]
    # Labels differ from kind to kind: the first kind's stand, and the second's scores are put in their order.
    scores[1, :, 0, 0] = oracle.world(samples, n, m, d + 2, seed=seed)[0]
    positive = np.arange(samples) < samples // 2
    return TailScores(
        ("low", "high"),
        (0,),
        ("animal",),
        scores.astype(np.float32),
        labels[:, None],
        positive[:, None],
        n * np.arange(samples + 1),
        tuple(f"d{k % 16}" for k in range(samples)),
        tuple(split[k % len(split)] for k in range(samples)),
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A run whose worlds and fit cells are finished; kept cells are not."""
    folder = tmp_path_factory.mktemp("tail")
    for home in ("worlds/planted", *(f"cells/{cell.name}" for cell in CELLS)):
        (folder / home).mkdir(parents=True)
    drawn(128, 24, 2, 1.2, ("guard",), 0).write(folder / "worlds" / "planted" / TRAIN)
    drawn(120, 48, 2, 1.2, ("cal", "test", "test"), 1).write(folder / "cells" / "fit-48" / OUTCOME)
    return folder


@pytest.fixture(scope="module")
def frozen(out):
    constants, fitted = fit_constants(DESIGN, out)
    return predict(DESIGN, out, constants, fitted=fitted)


@pytest.fixture(scope="module")
def outcomes():
    return {
        cell.name: drawn(150, cell.tokens, cell.in_concept, 1.2, ("cal", "test", "test"), 7 + k)
        for k, cell in enumerate(CELLS[1:])
    }


def test_a_prediction_reads_train_scores_and_fit_cells_alone(out, frozen):
    assert frozen["fitted"]["cells"] == ["fit-48"]
    assert {one["cell"] for one in frozen["predictions"]} == {"kept-48", "kept-64", "kept-96"}
    assert not any((out / "cells" / name / OUTCOME).exists() for name in ("kept-48", "kept-64", "kept-96"))
    assert json.loads(json.dumps(frozen)) == frozen
    # Many tokens of independent noise: the maximum must lose, and that is said beforehand.
    low = [one for one in frozen["predictions"] if one["kind"] == "low"]
    assert all(one["maximum_loses"] == "by prediction" for one in low)


def test_a_prediction_that_is_kept_is_the_same(out, frozen):
    constants, fitted = fit_constants(DESIGN, out)
    said = []
    again = predict(DESIGN, out, constants, fitted=fitted, say=said.append)
    assert again == frozen
    assert len(said) == 3


def test_regrets_are_those_of_a_loop(frozen, outcomes):
    found = judge_prediction(frozen, outcomes)
    assert len(found["rows"]) == 6
    for row in found["rows"]:
        seen = outcomes[row["cell"]].split("test")
        scores = seen.scores[seen.kinds.index(row["kind"]), :, 0, 0]
        highest = [scores[a:b].max() for a, b in zip(seen.bounds[:-1], seen.bounds[1:], strict=True)]
        area = float(auroc(np.array(highest), seen.positive[:, 0]))
        assert row["auroc"]["max"] == pytest.approx(area)
        for one, regret in row["regret"].items():
            lost = row["auroc"]["best"] - row["auroc"][one]
            assert regret == pytest.approx(lost if lost > 0.01 else 0.0)
    mean = np.mean([row["regret"]["max"] for row in found["rows"]])
    assert found["parts"]["all"]["over cells"]["regret"]["max"][0] == pytest.approx(mean, abs=1e-4)


def test_a_law_that_is_right_is_not_refuted_and_a_wrong_one_is(frozen, outcomes):
    found = judge_prediction(frozen, outcomes)
    assert found["verdict"]["regret"] == "not refuted"
    assert found["slope"][0] == pytest.approx(1.0, abs=0.3)
    wrong = {**frozen, "predictions": [{**one, "best": ["MaxTok", 0]} for one in frozen["predictions"]]}
    assert judge_prediction(wrong, outcomes)["verdict"]["law"] == "refuted"
    far = {**frozen, "predictions": [{**one, "delta": 0.95} for one in frozen["predictions"]]}
    assert judge_prediction(far, outcomes)["verdict"]["delta"] == "refuted"


def test_further_parts_are_means_over_their_rows(frozen, outcomes):
    found = judge_prediction(frozen, outcomes, also=lambda row: (f"of kind {row['kind']}",))
    for kind in ("low", "high"):
        part = found["parts"][f"of kind {kind}"]
        own = [row["regret"]["law"] for row in found["rows"] if row["kind"] == kind]
        assert part["rows"] == len(own) == 3
        assert part["over cells"]["regret"]["law"][0] == pytest.approx(np.mean(own), abs=1e-4)
    assert repr(found["parts"]["all"]) == repr(judge_prediction(frozen, outcomes)["parts"]["all"])


def test_a_row_does_not_depend_on_the_layers_beside_it(frozen, outcomes):
    rng = np.random.default_rng(3)
    wide = {
        name: replace(
            seen,
            layers=(3, 0),
            scores=np.concatenate(
                [rng.normal(size=seen.scores.shape).astype(np.float32), seen.scores], axis=2
            ),
        )
        for name, seen in outcomes.items()
    }
    assert repr(judge_prediction(frozen, wide)) == repr(judge_prediction(frozen, outcomes))


def test_given_constants_and_samples_are_not_fitted(tmp_path, out, outcomes):
    given = replace(DESIGN, constants=Constants(0.25, 0.5), samples=40)
    (tmp_path / "worlds" / "planted").mkdir(parents=True)
    (tmp_path / "worlds" / "planted" / TRAIN).write_bytes((out / "worlds" / "planted" / TRAIN).read_bytes())
    found = predict(given, tmp_path, given.constants, cells=["kept-48"])
    assert found["design_hash"] != predict(DESIGN, tmp_path, given.constants, cells=[])["design_hash"]
    (first, *_), world = found["predictions"], drawn(128, 24, 2, 1.2, ("guard",), 0)
    inputs = replace(measure_inputs(**world.column("low", 0, "animal")), prevalence=0.5)
    law = TailLaw(inputs, Context(48, 12.0, 12), samples=40, constants=given.constants)
    assert first["auroc"] == [round(one, 4) for one in law.prediction().auroc.values()]


def test_one_cell_says_nothing_over_cells(frozen, outcomes):
    found = judge_prediction(frozen, {"kept-48": outcomes["kept-48"]})
    assert found["verdict"]["regret"] == "cannot be said: fewer than 3 cells, no interval over them"
    with pytest.raises(ValueError, match="no prediction meets an outcome"):
        judge_prediction(frozen, {})


def test_the_whole_trial_freezes_before_it_looks(tmp_path, outcomes, monkeypatch):
    """Kept-back cells are run when the prediction is written, and a second run makes none anew."""
    wanted = []

    def run(design, out, *, cells, **given):
        wanted.append(list(cells))
        (out / "worlds" / "planted").mkdir(parents=True, exist_ok=True)
        drawn(128, 24, 2, 1.2, ("guard",), 0).write(out / "worlds" / "planted" / TRAIN)
        for name in cells:
            assert name == "fit-48" or (out / "prediction.json").exists()
            (out / "cells" / name).mkdir(parents=True, exist_ok=True)
            seen = outcomes.get(name) or drawn(60, 48, 2, 1.2, ("cal", "test"), 1)
            seen.write(out / "cells" / name / OUTCOME)

    monkeypatch.setattr("sa_plugin.stages.tail_judged.run_design", run)
    said = []
    found = tried(DESIGN, tmp_path, say=said.append)
    assert wanted == [[], ["fit-48"], ["kept-48", "kept-64", "kept-96"]]
    assert said[-1].startswith("6 predictions judged: regret ")
    written = (tmp_path / "prediction.json").read_bytes()
    assert tried(DESIGN, tmp_path)["verdict"] == found["verdict"]
    assert (tmp_path / "prediction.json").read_bytes() == written
    other = replace(DESIGN, seed=1)
    with pytest.raises(ValueError, match="is of another design: give another folder"):
        tried(other, tmp_path)
