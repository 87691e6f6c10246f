"""The picture of README and of the site's first screen: two passages as a report shows them.

    python docs/experiments/passages_picture.py

runs README's example, takes from its report the last hit and the last false fire of raw scores (the report's
rule picks two of each, of different concepts), and photographs them into docs/pictures/passages.png. A
headless Chromium must be on the path.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

import sa_plugin as sa
from sa_transformer_lens.host import load_bridge

PICTURE = Path(__file__).resolve().parents[1] / "pictures" / "passages.png"
SHOWN = ("true_positive", "raw_false_fire")
WIDTH, MARGIN = 1080, 20


def shown(page: str, passages: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The last passage of each role that is shown: the report's HTML, and the record it is of."""
    every = re.findall(r'<article class="passage">.*?</article>', page, re.DOTALL)
    pairs = list(zip(every, passages, strict=True))
    return [[pair for pair in pairs if pair[1]["role"] == role][-1] for role in SHOWN]


def photograph(page: str, picture: Path) -> None:
    """A page as a headless browser shows it, without the empty space below."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("neither chromium nor google-chrome is on the path: install one.")
    with tempfile.TemporaryDirectory() as scratch:
        file, shot = Path(scratch) / "page.html", Path(scratch) / "shot.png"
        file.write_text(page, encoding="utf-8")
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--window-size={WIDTH},1400", f"--screenshot={shot}"]
        subprocess.run([browser, *options, file.as_uri()], check=True, capture_output=True, timeout=120)
        with Image.open(shot) as opened:
            whole = opened.convert("RGB")
    empty = Image.new("RGB", whole.size, whole.getpixel((0, whole.height - 1)))
    inside = ImageChops.difference(whole, empty).getbbox()
    bottom = whole.height if inside is None else inside[3]
    whole.crop((0, 0, WIDTH, min(bottom + MARGIN, whole.height))).save(picture, optimize=True)


def main() -> None:
    """Make the picture, and say what it shows."""
    host = sa.attach(load_bridge("smollm2"))
    plan = sa.Plan({"separator": (4, 12, 20)}, stages=("detection", "examples"))
    found = sa.study(host, sa.load("supersense").subset(240), plan)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(found.report(Path(scratch) / "report.html")).read_text(encoding="utf-8")
    style = "".join(re.findall(r"<style.*?</style>", page, re.DOTALL))
    chosen = shown(page, found.record["passages"])
    body = "".join(article for article, _ in chosen)
    inside = f'<div class="passages" style="padding:0 {MARGIN}px">{body}</div>'
    photograph(f'<!doctype html><meta charset="utf-8">{style}<body>{inside}</body>', PICTURE)
    for _, passage in chosen:
        marks = zip(passage["offsets"], passage["superactivator"], strict=True)
        words = [passage["text"][start:end] for (start, end), on in marks if on]
        print(passage["role"], passage["concept"], "SuperActivators:", words or "none")


if __name__ == "__main__":
    main()
