"""Shipped configurations: they parse, resolve and attach, and two cells run on tiny models."""

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import paper_folders
import pytest

from sa_plugin.cli import main
from sa_plugin.concepts import kind_of
from sa_plugin.host import FINAL_NORM, PAPER_GRIDS, check_folder
from sa_plugin.loaders import LOADERS, options_of
from sa_plugin.stages import (
    PAPER_KINDS,
    PARTS,
    AttributionPart,
    configurations,
    open_host,
    published_of,
    read_config,
    reproduce,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SHIPPED = {name: read_config(name) for name in configurations()}
PAPER = {name: one for name, one in SHIPPED.items() if one.paper}
# Blocks of the public checkpoints; a text alone skips Llama's 8 blocks of cross-attention.
BLOCKS = {"clip": 24, "llama_vision": 40, "llama_text": 32, "gemma": 42, "qwen": 36}
MODELS = sorted(BLOCKS)


def key_of(cell):
    return cell.paper.split("/")[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(key):
        if key not in made:
            made[key] = paper_folders.model_folder(key, tmp_path_factory.mktemp(key))
        return made[key]

    return folder


def test_the_whole_matrix_is_there():
    texts, pictures = ("Sarcasm", "iSarcasm", "GoEmotions"), ("CLEVR", "COCO", "OpenSurfaces", "Pascal")
    expected = {f"{m}/{d}" for m in ("llama_text", "gemma", "qwen") for d in texts}
    expected |= {f"{m}/{d}" for m in ("clip", "llama_vision") for d in pictures}
    assert {one.paper for one in PAPER.values()} == expected
    ours = {"minilm", "smollm2", "vit"}
    assert {one.model.folder for one in SHIPPED.values() if not one.paper} == ours


@pytest.mark.parametrize("name", SHIPPED)
def test_a_configuration_names_what_exists(name):
    cell = SHIPPED[name]
    loader = LOADERS[cell.data.name]
    assert cell.data.split in (None, *loader.splits)
    readers = [read for read in (loader.read, loader.authors) if read is not None]
    for read in readers:
        assert set(cell.data.options) <= set(options_of(read))
    assert tuple(cell.run.kinds) == PAPER_KINDS
    assert (published_of(cell.paper) is None) == (not cell.paper)


@pytest.mark.parametrize("name", PAPER)
def test_layers_are_the_papers(name):
    key, n = key_of(PAPER[name]), BLOCKS[key_of(PAPER[name])]
    assert PAPER[name].layers.percents == PAPER_GRIDS[key]
    for kind in PAPER[name].run.kinds:
        layers = PAPER[name].layers.resolve(n, supervised=kind_of(kind).supervised)
        assert len(layers) == len(PAPER_GRIDS[key])
        assert layers[-1] == n - 1


@pytest.mark.parametrize("key", MODELS)
def test_a_tiny_model_attaches_by_the_configured_host(key, folders):
    cell = next(one for one in PAPER.values() if key_of(one) == key)
    ours = cell.with_overrides(model=str(folders(key)))
    host = open_host(replace(ours, model=replace(ours.model, dtype="float32")))
    assert host.info.host == cell.model.host
    assert host.info.n_layers > 1
    if cell.model.tower != "vision":
        assert not host.info.bos
        assert host.info.processing == FINAL_NORM


def small(name, model, root):
    """The cell as shipped, but for sizes that a tiny model and a fixture can bear."""
    cell = read_config(name).with_overrides(model=str(model), root=str(root))
    few = {"k": 4}
    stages = ("detection", "trace", "attribution") if "clevr" in name else ("detection", "trace")
    return replace(
        cell,
        model=replace(cell.model, dtype="float32"),
        run=replace(cell.run, draws=20, stages=stages),
        kinds={"kmeans": few, "kmeans_separator": few},
        attribution=AttributionPart(("direct_alignment",), concepts=1, n_test=2, n_cal=2),
    )


CELLS = {
    "paper_qwen_sarcasm": paper_folders.sarcasm,
    "paper_clip_clevr": paper_folders.clevr,
    "paper_llama_vision_clevr": paper_folders.clevr,
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_runs_to_its_tables(name, folders, tmp_path):
    cell = small(name, folders(key_of(PAPER[name])), CELLS[name](tmp_path / "data"))
    found = reproduce(cell, tmp_path / "out", figures=False)
    assert list(found.record["kinds"]) == list(PAPER_KINDS)
    assert found.record["meta"]["host"] == cell.model.host
    samples = found.record["meta"]["samples"]
    assert samples == {"train": 36, "cal": 12, "test": 12}
    text = (tmp_path / "out" / "cell.md").read_text()
    assert "Published figures: " in text
    assert "MaxTok" in text
    if name == "paper_clip_clevr":
        assert "Explaining the tail points better" in text


def test_both_hosts_of_check_read_a_folder(folders, capsys):
    folder, tower = folders("clip"), {"tower": "vision"}
    for host in ("transformer_lens", "nnsight"):
        report = check_folder(folder, host=host, **tower)
        assert report.passed, str(report)
    assert main(["check", str(folder), "--host", "nnsight", "--tower", "vision"]) == 0
    assert "float32, nnsight" in capsys.readouterr().out
    with pytest.raises(ValueError, match="host 'nnsigth' is unknown: did you mean 'nnsight'"):
        check_folder(folder, host="nnsigth", **tower)


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


GOOD = '[model]\nfolder = "minilm"\n[data]\nname = "supersense"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "[run]\nkind = ['prototype']", r"key of \[run\] 'kind' is unknown: did you"),
        (GOOD + "[runs]\n", r"mine.toml: key 'runs' is unknown: did you mean 'run'"),
        (GOOD + "[run]\nkinds = ['protoype']", "'protoype' is unknown: did you mean 'prototype'"),
        (GOOD + "[run]\ndraws = '9'", r"run\.draws is '9': give a whole number"),
        (GOOD + "[run]\nprimary = 'lda'", r"run\.primary 'lda' is not among run\.kinds"),
        (GOOD + "[run]\ndraws = true", r"run\.draws is True: give a whole number"),
        (GOOD + "[run]\nstages = 'trace'", r"run\.stages is 'trace': give a list of strings"),
        (GOOD.replace('"minilm"', "3"), r"model\.folder is 3: give a string"),
        (GOOD + "options = 3", r"data\.options is 3: give a table"),
        (GOOD + "[layers]\nblocks = ['a']", r"layers\.blocks is \['a'\]: give a list of numbers"),
        (GOOD + "[layers]\nblocks = [1]\npercents = [5]", "blocks and percents: give one of them"),
        (GOOD + "[data.options]\nseed = 1\n", r"seed stands in \[data.options\]: it is a key of \[run\]"),
        (GOOD.replace("supersense", "supersens"), "data.name 'supersens' is unknown: did you mean"),
        (GOOD + "[kinds.lda]\n", r"key of \[kinds\] 'lda' is unknown"),
        ('[model]\nfolder = "minilm"\nhost = "nnsigth"', "did you mean 'nnsight'"),
        ('[model]\nfolder = "minilm"', r"\[data\] has no name"),
        ("a = ", "mine.toml is no TOML file"),
        ("run = 3", r"run is 3, not a table: write \[run\]"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_config(write(tmp_path, text))


@pytest.mark.parametrize("part", PARTS)
def test_no_setting_takes_a_value_of_another_type(tmp_path, part):
    for key in (field.name for field in fields(PARTS[part])):
        with pytest.raises(ValueError, match=rf"mine.toml: {part}\.{key} is 1.5: give a"):
            read_config(write(tmp_path, f"[{part}]\n{key} = 1.5"))


def test_a_block_the_model_lacks_is_named(tmp_path):
    cell = read_config(write(tmp_path, GOOD + "[layers]\nblocks = [2, 7]"))
    with pytest.raises(ValueError, match="block 7, the model has blocks 0 to 5"):
        cell.layers.resolve(6, supervised=True)
    assert cell.layers.resolve(8, supervised=False) == (2, 7)


def test_fewer_layers_for_clusters(tmp_path):
    text = GOOD + "[layers]\nblocks = [0, 2]\nunsupervised_percents = [100]"
    layers = read_config(write(tmp_path, text)).layers
    assert layers.resolve(6, supervised=True) == (0, 2)
    assert layers.resolve(6, supervised=False) == (5,)


def test_a_cell_of_the_paper_asks_for_your_copy():
    with pytest.raises(FileNotFoundError, match="google/gemma-2-9b, which is never downloaded"):
        open_host(PAPER["paper_gemma_sarcasm"])


def test_the_documented_configuration_is_one(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "findings" / "reproduction.md"
    text = page.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    cell = read_config(write(tmp_path, text))
    for part in PARTS:
        known = {field.name for field in fields(getattr(cell, part))}
        said = set(tomllib.loads(text)[part])
        alternatives = {"checkpoint", "percents", "unsupervised_percents"}
        assert known - said <= alternatives, part
