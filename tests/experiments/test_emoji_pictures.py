"""What of the package of emoji is kept: its table, its licence, and the pictures that scenes may ask for."""

import io
import json
import tarfile

from emoji_pictures import PACKAGE

from sa_plugin.loaders import emoji_folder, read_glyphs

ENTRY = {"name": "LION FACE", "subcategory": "animal-mammal", "sort_order": 1, "has_img_google": True}


def test_what_is_unpacked(tmp_path):
    entries = [
        {**ENTRY, "unified": "1F981", "image": "1f981.png"},
        {**ENTRY, "unified": "1F436-FE0F", "image": "1f436-fe0f.png"},
        {**ENTRY, "unified": "1F436-200D-1F9BA", "image": "joined.png"},
        {**ENTRY, "unified": "1F6D7", "image": "lift.png", "subcategory": "household"},
        {**ENTRY, "unified": "1F400", "image": "not_drawn.png", "has_img_google": False},
    ]
    content = {"emoji.json": json.dumps(entries), "LICENSE": "MIT", "img/google/sheets/64.png": "sheet"}
    content |= {f"img/google/64/{entry['image']}": entry["unified"] for entry in entries}
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as packed:
        for name, text in content.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
    folder = tmp_path / "emoji"
    folder.mkdir()
    with tarfile.open(tmp_path / "package.tgz") as archive:
        PACKAGE.unpack(archive, folder)
    kept = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}
    pictures = {"img/google/64/1f981.png", "img/google/64/1f436-fe0f.png"}
    assert kept == {name: content[name] for name in {"emoji.json", "LICENSE"} | pictures}


def test_what_is_kept_of_the_real_one():
    """Glyphs, and the 39 that are left out: listing one fewer needs no other download."""
    assert len(read_glyphs()) == 319
    assert len(list(emoji_folder().rglob("*.png"))) == 358
