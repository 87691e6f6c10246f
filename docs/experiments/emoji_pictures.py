"""The pictures of the emoji scenes from npm, fetched only when asked: `make weights`, or this file run.

The package `emoji-datasource-google` holds every glyph of Noto Color Emoji as a picture of 64 pixels
and a table with Unicode's groups. Kept are the table, the licence and the 358 pictures of the groups
that scenes draw from, as the package lays them out, in `emoji` of the cache folder, where
`sa_plugin.loaders.emoji_scenes` looks.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from npm_packages import NpmPackage, fetch

from sa_plugin._check import cache_folder
from sa_plugin.loaders.emoji import EMOJI_PICTURES, EMOJI_TABLE, emoji_entries


def fetch_emoji(cache: Path | str | None = None) -> Path:
    """Fetch the pictures (72 MB) with npm, once, and return their folder.

    Args:
        cache: Cache folder; default `$SA_PLUGIN_CACHE`, else `~/.cache/sa_plugin`.

    Returns:
        A folder for `emoji_scenes(root=folder)`, which is also the default.

    Raises:
        RuntimeError: npm could not deliver the pinned file, or there is no npm.
    """
    return fetch(PACKAGE, cache_folder(cache) / "emoji")


def _unpack(archive: tarfile.TarFile, destination: Path) -> None:
    """The table, the licence, and the pictures of the groups that scenes show."""
    # The root of every package of npm is called "package".
    by_name = {member.name.removeprefix("package/"): member for member in archive.getmembers()}

    def copy(name: str) -> None:
        content = archive.extractfile(by_name[name])
        assert content is not None, f"{name} is no file"
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        (destination / name).write_bytes(content.read())

    copy("LICENSE")
    copy(EMOJI_TABLE)
    for entry in emoji_entries(destination):
        copy(f"{EMOJI_PICTURES}/{entry['image']}")


PACKAGE = NpmPackage(
    name="emoji-datasource-google",
    version="15.0.1",
    sha256="3b47ae2a393ca34b6f7e3b2170732af284c2b7b199d4ee70a1ab4f8e8afdef2d",
    megabytes=72,
    licence="package: MIT; pictures: Noto Emoji of Google, images Apache-2.0, font OFL-1.1",
    unpack=_unpack,
)


if __name__ == "__main__":
    print(fetch_emoji())
