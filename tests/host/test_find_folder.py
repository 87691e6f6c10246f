"""A model is a folder, a name in the cache folder, or a hub name; nothing else reaches the network."""

from pathlib import Path

import huggingface_hub
import pytest

from sa_plugin.host import find_folder


def model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The names that the hub is asked for; what it gives is a folder of the test."""
    asked = []

    def snapshot(name, **options):
        asked.append(name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SA_PLUGIN_CACHE", str(tmp_path / "cache"))
    return asked


def test_a_folder_is_itself_and_comes_before_the_cache(hub, tmp_path, monkeypatch):
    kept = model(tmp_path / "cache" / "mine")
    assert find_folder("mine") == kept
    model(tmp_path / "mine")
    assert find_folder("mine") == Path("mine")
    assert find_folder(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_folder("~/mine") == tmp_path / "mine"
    assert hub == []


def test_the_cache_is_the_users_unless_named(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("SA_PLUGIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    kept = model(tmp_path / "shared" / "sa_plugin" / "minilm")
    assert find_folder("minilm") == kept
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    kept = model(tmp_path / "home" / ".cache" / "sa_plugin" / "minilm")
    assert find_folder("minilm") == kept


def test_a_hub_name_asks_the_hub_for_that_name(hub, tmp_path):
    assert find_folder("owner/name-1.0") == tmp_path / "snapshot"
    assert hub == ["owner/name-1.0"]


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/model", "/nowhere/model", "made/model", Path("a/b")])
def test_what_is_nowhere_is_refused_without_the_hub(hub, tmp_path, name):
    (tmp_path / "made").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json.*save_pretrained wrote.*make weights"):
        find_folder(name)
    assert hub == []


def test_a_bare_name_says_both_places(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"smolm2 holds .*, nor does {tmp_path}/cache/smolm2:"):
        find_folder("smolm2")


def test_a_refusal_of_the_hub_is_said(hub, monkeypatch):
    def refuse(name, **options):
        raise OSError("offline.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"owner/name is no folder, and the hub .*: offline\."):
        find_folder("owner/name")


def test_a_model_keeps_the_name_it_was_given(hub, tmp_path):
    import tiny

    from sa_plugin.host import load_folder

    folder = tmp_path / "cache" / "toy"
    tiny.hf_model("gpt2").save_pretrained(folder)
    tiny.tokenizer("gpt2").save_pretrained(folder)
    assert load_folder("toy").name == "toy" == load_folder(folder).name
