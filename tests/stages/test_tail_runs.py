"""The tail law's benchmark: designs are read or refused, a run leaves what it says and goes on."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import quoted
import tiny
from sklearn.metrics import roc_auc_score

from sa_nnsight import accept
from sa_plugin.cli import main
from sa_plugin.stages import TailScores, read_design, run_design

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CELL, LONG = "tiny-160", "tiny-240"
TOML = """
[[worlds]]
name = "tiny"
model = "tiny"
source = "embedded"
layers = [1]
tokens = 160
in_concept = 4
contexts = [44, 16]

[[cells]]
name = "tiny-160"
world = "tiny"
role = "fit"
tokens = 160
in_concept = 4
contexts = [24, 30]

[[cells]]
name = "tiny-240"
world = "tiny"
role = "kept"
tokens = 240
in_concept = 4
contexts = [24, 30]
shift_from = "tiny-160"
"""


@pytest.fixture(scope="module")
def design(tmp_path_factory):
    path = tmp_path_factory.mktemp("design") / "tried.toml"
    path.write_text(TOML)
    return read_design(path)


@pytest.fixture(scope="module")
def run(design, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("run"), []
    # Its tokenizer cuts words into letters, so that a sentence has a hundred tokens.
    model = tiny.nnsight_model("llama")
    model.config.max_position_embeddings = 512
    host = accept(model)
    run_design(design, out, hosts={"tiny": host}, say=said.append)
    return out, host, said


def test_a_run_leaves_its_files_and_no_texts(run):
    out, _, said = run
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    for cell in (CELL, LONG):
        assert {f"cells/{cell}/{one}" for one in ("outcome.npz", "measured.npz", "outcome.json")} <= files
    assert "worlds/tiny/train.npz" in files
    assert len(said) == 3


def test_train_scores_are_of_what_chose_nothing(run):
    train = TailScores.read(run[0] / "worlds/tiny/train.npz")
    assert {*train.split_of} == {"guard"}
    assert len(train) == 16
    assert train.kinds == ("prototype", "separator")
    assert train.layers == (1,)
    assert train.scores.shape == (2, train.bounds[-1], 1, 3)
    assert train.labels.shape == (train.bounds[-1], 3)
    column = train.column("separator", 1, "body")
    assert np.array_equal(column["scores"], train.scores[1, :, 0, 1])
    for cell in (CELL, LONG):
        other = TailScores.read(run[0] / f"cells/{cell}/outcome.npz")
        assert not {*train.documents} & {*other.documents}


def test_what_was_measured_is_what_the_scores_say(run):
    """AUROC of MaxTok at one layer, once more from the scores alone by scikit-learn."""
    home = run[0] / "cells" / LONG
    test = TailScores.read(home / "outcome.npz").split("test")
    with np.load(home / "measured.npz") as held:
        methods = held["methods"].tolist()
        found = held["prototype/1/auroc"][methods.index("MaxTok"), :, 0]
    highest = [test.scores[0, a:b, 0].max(0) for a, b in zip(test.bounds, test.bounds[1:], strict=False)]
    for k, value in enumerate(found):
        truth = test.positive[:, k]
        assert value == pytest.approx(roc_auc_score(truth, np.array(highest)[:, k]))
    record = json.loads((home / "outcome.json").read_text())
    assert record["kinds"]["prototype"]["measured"]["1"]["methods"]["MaxTok"]["auroc"][
        "concepts"
    ] == pytest.approx(found)
    assert record["kinds"]["prototype"]["measured"]["shifted"]["methods"]["SuperActivators"]["f1"]


def test_a_finished_cell_is_left_alone_and_other_settings_are_refused(run, design):
    out, host, _ = run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    said = []
    run_design(design, out, cells=[CELL], hosts={"tiny": host}, say=said.append)
    assert said == [f"{CELL}: kept"]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    other = replace(design, seed=1)
    with pytest.raises(ValueError, match=r"other settings \(seed differ\)"):
        run_design(other, out, cells=[CELL], hosts={"tiny": host})


def test_probes_are_trained_on_short_contexts_for_cells_that_are_finished(run, design):
    out, host, _ = run
    said, before = [], (out / "cells" / LONG / "outcome.json").read_bytes()
    for _ in range(2):
        run_design(design, out, cells=[LONG], probes=["softmax probe"], hosts={"tiny": host}, say=said.append)
    assert said == [f"{LONG}: kept", f"{LONG}: 1 probes trained on 160 tokens", f"{LONG}: kept"]
    found = json.loads((out / "cells" / LONG / "trained.json").read_text())
    probes = [f"softmax probe, {labels} labels" for labels in ("sample", "token")]
    assert [*found["methods"]] == ["SuperActivators", "MaxTok", *probes]
    assert (found["layer"], found["trained_on"]) == (1, 160)
    # The separator's row beside them is that of the cell.
    own = json.loads(before)["kinds"]["separator"]["measured"]["1"]["methods"]["MaxTok"]["auroc"]
    assert found["methods"]["MaxTok"]["auroc"]["concepts"] == own["concepts"]
    assert (out / "cells" / LONG / "outcome.json").read_bytes() == before
    with pytest.raises(ValueError, match="probe 'hardmax probe' is unknown"):
        run_design(design, out, cells=[LONG], probes=["hardmax probe"])


def test_a_context_that_is_longer_than_the_model_takes_is_named(design, tmp_path):
    with pytest.raises(ValueError, match=r"takes 64\. Nothing is cut off"):
        run_design(design, tmp_path, cells=[CELL], hosts={"tiny": tiny.nnsight_host("llama")})


def test_names_that_are_not_there(run, design, tmp_path):
    with pytest.raises(ValueError, match="cell 'tiny-16' is unknown"):
        run_design(design, tmp_path, cells=["tiny-16"])
    scores = TailScores.read(run[0] / "worlds/tiny/train.npz")
    for column, said in (
        (("lda", 0, "body"), "kinds"),
        (("separator", 7, "body"), "layer 7"),
        (("separator", 1, "bod"), "concepts"),
    ):
        with pytest.raises(ValueError, match=said):
            scores.column(*column)
    with pytest.raises(ValueError, match="no context is of split 'test'"):
        scores.split("test")


def test_the_shipped_design_keeps_back_what_it_says():
    """MiniLM, sentences and genres, and everything beyond 256 tokens, are not for fitting constants."""
    design = read_design("tail_law")
    for cell in design.cells:
        world = design.world_of(cell)
        kept = world.model == "minilm" or world.source in ("sentences", "genres") or cell.tokens > 256
        assert cell.role == ("kept" if kept else "fit"), cell.name
    fit = [cell for cell in design.cells if cell.role == "fit"]
    assert {design.world_of(cell).model for cell in fit} == {"smollm2", "vit"}
    assert {32, 4096} <= {cell.tokens for cell in design.cells}


def test_the_second_design_reads_all_blocks_of_another_seed_with_the_first_constants():
    first, second = read_design("tail_law"), read_design("tail_law_blocks")
    frozen = json.loads((quoted.FINDINGS / "data" / "tail_law_prediction.json").read_text())
    assert asdict(second.constants) == frozen["constants"]
    assert second.seed != first.seed
    blocks = {"smollm2": 30, "minilm": 6, "vit": 12}
    for world in second.worlds:
        assert world.layers == tuple(range(blocks[world.model]))
    assert {cell.role for cell in second.cells} == {"kept"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("[[worlds]]", "constants = { share = 0.5 }\n[[worlds]]", "did you mean 'shared'"),
        ("[[worlds]]", "constants = { shared = 1.5 }\n[[worlds]]", "shared is 1.5"),
        ("[[worlds]]", "constants = 0.5\n[[worlds]]", "give a table of shared, reach"),
        ("[[worlds]]", "samples = 0\n[[worlds]]", "samples is 0"),
        ('role = "fit"', 'rol = "fit"', "did you mean 'role'"),
        ('role = "fit"', 'role = "try"', "role is 'try'"),
        ('role = "fit"\n', "", "has no role"),
        ('source = "embedded"', 'source = "novels"', "source of world tiny 'novels' is unknown"),
        ('name = "tiny-240"', 'name = "tiny-160"', "'tiny-160' stands twice"),
        ('world = "tiny"', 'world = "big"', "world of cell tiny-160 'big' is unknown"),
        ('shift_from = "tiny-160"', 'shift_from = "tiny-240"', "shift_from of cell tiny-240"),
        ("in_concept = 4", "in_concept = 199", "199 in-concept tokens"),
        ("[[worlds]]", "[worlds", "is no TOML file"),
    ],
)
def test_a_design_that_is_wrong_is_refused(tmp_path, before, after, said):
    path = tmp_path / "wrong.toml"
    path.write_text(TOML.replace(before, after, 1))
    with pytest.raises(ValueError, match=said):
        read_design(path)


def test_the_command_lists_designs_and_takes_no_other_model(capsys):
    assert main(["reproduce", "--list"]) == 0
    assert "tail_law_small" in capsys.readouterr().out
    assert main(["reproduce", "tail_law_small", "--model", "smollm2"]) == 2
    assert "chosen beforehand" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no design of this package"):
        read_design("tail_lore")


def test_the_small_design_on_real_weights(tmp_path, monkeypatch, capsys):
    """The command's own way, at one layer and one length: worlds, prediction, cell kept back, verdict."""
    shipped = read_design("tail_law_small")
    world, cells = replace(shipped.worlds[0], layers=(3,)), (shipped.cells[0], shipped.cells[-1])
    smaller = replace(shipped, worlds=(world,), cells=cells)
    monkeypatch.setattr("sa_plugin.stages.tail_cells.read_design", lambda name: smaller)
    assert main(["reproduce", shipped.name, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("6 predictions judged: regret cannot be said: fewer than 3 cells")
    judged = json.loads((tmp_path / "judged.json").read_text())
    frozen = json.loads((tmp_path / "prediction.json").read_text())
    assert {row["cell"] for row in judged["rows"]} == {cells[1].name}
    assert [one["cell"] for one in frozen["predictions"]] == [cells[1].name] * 6
    # MiniLM finds these nouns at four times the length, and what was predicted of it is not far off.
    observed, predicted = (
        np.array([row[of]["max"] for row in judged["rows"]]) for of in ("auroc", "predicted")
    )
    assert observed.mean() > 0.7
    assert np.abs(observed - predicted).mean() < 0.15
