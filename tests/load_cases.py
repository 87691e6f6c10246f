"""Small copies of data sets in their true layouts, written by the tests that read them."""

import csv
import json

import numpy as np
from PIL import Image

# Coloured discs on a grey floor, at these centres (x, y).
PLACES = ((12, 14), (40, 16), (26, 38))
PAINT = {"red": (200, 40, 40), "blue": (50, 70, 210), "green": (40, 160, 60), "gray": (90, 90, 92)}


def write_csv(path, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, delimiter=delimiter).writerows(rows)
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def disc(centre, radius=7, size=(52, 56)):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 <= radius**2


def scene(colours, places=PLACES, mark=0):
    """Pixels of discs, and the mask of each; `mark` is a grey pixel that tells pictures apart."""
    pixels = np.full((52, 56, 3), 110, dtype=np.uint8)
    pixels[0, 0] = mark
    masks = [disc(place) for place, _ in zip(places, colours, strict=False)]
    for colour, mask in zip(colours, masks, strict=False):
        pixels[mask] = PAINT[colour]
    return pixels, masks


def clevr(root, scenes, part="val", places=PLACES):
    """CLEVR v1.0 with these scenes, each a list of (colour, shape)."""
    entries = []
    for k, objects in enumerate(scenes):
        name = f"CLEVR_{part}_{k:06d}.png"
        pixels, _ = scene([colour for colour, _ in objects], places, mark=k + 100 * (part == "train"))
        write_picture(root / "images" / part / name, pixels)
        found = [
            {
                "color": colour,
                "shape": shape,
                "size": "large",
                "material": "rubber",
                "3d_coords": [0, 0, 0],
                "pixel_coords": [*place, 11.2],
                "rotation": 0.0,
            }
            for (colour, shape), place in zip(objects, places, strict=False)
        ]
        entries.append(
            {
                "split": part,
                "image_index": k,
                "image_filename": name,
                "objects": found,
                "relationships": {},
                "directions": {},
            }
        )
    info = {"split": part, "version": "1.0"}
    return write_json(root / "scenes" / f"CLEVR_{part}_scenes.json", {"info": info, "scenes": entries})


def run_lengths(mask):
    """COCO's unpacked run lengths: column by column, beginning with zeros."""
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"counts": [0, *counts] if flat[0] else counts, "size": list(mask.shape)}


def coco(root, pictures, part="val2017"):
    """COCO 2017 with these pictures, each a list of (category, mask or polygons)."""
    names = {"dog": "animal", "cat": "animal", "person": "person", "car": "vehicle"}
    ids = {name: 17 + k for k, name in enumerate(names)}
    images, annotations = [], []
    for k, instances in enumerate(pictures):
        name = f"{k + 500:012d}.jpg"
        write_picture(root / part / name, np.full((30, 40, 3), 15 * k + 5 * (part == "val2017")))
        images.append({"id": k + 500, "file_name": name, "height": 30, "width": 40})
        for category, where in instances:
            coded = run_lengths(where) if isinstance(where, np.ndarray) else where
            annotations.append(
                {
                    "id": 900 + len(annotations),
                    "image_id": k + 500,
                    "segmentation": coded,
                    "category_id": ids[category],
                    "iscrowd": 0,
                    "area": 1.0,
                    "bbox": [0, 0, 1, 1],
                }
            )
    categories = [{"id": ids[n], "name": n, "supercategory": s} for n, s in names.items()]
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return write_json(root / "annotations" / f"instances_{part}.json", content)
