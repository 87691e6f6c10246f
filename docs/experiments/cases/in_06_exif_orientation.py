"""coco-annotator#228, Weed-AI#674: a phone photo carries an EXIF rotation; the masks were drawn on the picture as shown.
Right: EXIF is applied, or a picture with an orientation tag is refused, rather than pixels 180 degrees off their mask."""

import numpy as np
from PIL import Image as P
from _tiny import *
from sa_plugin.loaders.own import from_dataset
from sa_plugin.loaders.files import read_picture
import tempfile, pathlib, warnings

stored = np.zeros((32, 32, 3), np.uint8)
stored[24:, 24:] = 255  # sensor order
im = P.fromarray(stored)
ex = im.getexif()
ex[0x0112] = 3  # 180 degrees
f = pathlib.Path(tempfile.mkdtemp()) / "a.png"
im.save(f, exif=ex)
shown_mask = np.zeros((32, 32), bool)
shown_mask[:8, :8] = True  # what an annotator sees: bright corner upper left


class Rows(list):
    column_names = ["i", "m"]


with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    try:
        data = from_dataset(
            Rows({"i": P.open(f), "m": {"light": shown_mask}} for _ in range(10)), {"image": "i", "mask": "m"}
        )
        px = data.samples[0].image.pixels
        a = bool(px[shown_mask].min() == 255)
        b = bool(read_picture(f)[shown_mask].min() == 255)
    except ValueError as e:
        verdict(True, "refused", e)
said = any("rientation" in str(w.message) or "EXIF" in str(w.message) for w in seen)
verdict((a and b) or said, "from_dataset follows EXIF:", a, "read_picture follows EXIF:", b, "warned:", said)
