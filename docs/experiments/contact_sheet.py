"""The pictures of docs/images.md: `python docs/experiments/contact_sheet.py`, from the repository's root.

Rows of scenes, each over a row of its masks: one flat colour an object. Channels are rounded to 32
levels to keep the files small.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from sa_plugin.loaders import draw_shapes, plan_emoji, read_glyphs, render_emoji, render_shapes

SIZE, COLUMNS, ROWS, STEP = 112, 5, 2, 8
FLAT = np.array([[245] * 3, [26, 111, 174], [206, 84, 16], [11, 125, 94], [163, 74, 131]], np.uint8)


def sheet(rendered: list[tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Write scenes and masks, row by row."""
    rows = []
    for start in range(0, COLUMNS * ROWS, COLUMNS):
        chosen = rendered[start : start + COLUMNS]
        rows.append(np.concatenate([pixels for pixels, _ in chosen], axis=1))
        rows.append(np.concatenate([FLAT[owner] for _, owner in chosen], axis=1))
    whole = np.concatenate(rows) // STEP * STEP + STEP // 2
    Image.fromarray(whole.astype(np.uint8)).save(path, optimize=True)


if __name__ == "__main__":
    pictures = Path(__file__).parents[1] / "pictures"
    number = COLUMNS * ROWS
    drawn = [draw_shapes(np.random.default_rng([0, k]), overlap=k >= COLUMNS) for k in range(number)]
    sheet([render_shapes(scene, SIZE) for scene in drawn], pictures / "shapes.png")
    scenes = plan_emoji(read_glyphs(), 300)
    chosen = [*scenes[:COLUMNS], *scenes[-COLUMNS:]]
    sheet([render_emoji(scene, SIZE) for scene in chosen], pictures / "emoji.png")
