"""coco-annotator#75, mmdetection#6240, label-studio-converter PR#48 (no 'supercategory'); CVAT writes supercategory ''; detectron2#2907,
tensorpack#1041, logpiles#3, cvat#1769 (a few polygons of two points); supervision#205. Right: categories are read without it, '' is no
concept, a degenerate polygon is skipped and counted."""

import json, tempfile
from pathlib import Path
from PIL import Image as P
from _tiny import *
import sa_plugin as sa


def folder(cats, seg=None, keep=8):
    r = Path(tempfile.mkdtemp())
    (r / "annotations").mkdir()
    (r / "val2017").mkdir()
    images, anns = [], []
    for k in range(keep):
        P.new("RGB", (32, 24), (k, 0, 0)).save(r / "val2017" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": 24, "width": 32})
        if k % 2:
            anns.append(
                {
                    "id": k,
                    "image_id": k,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [4, 4, 8, 8],
                    "area": 64,
                    "segmentation": [[4, 4, 12, 4, 12, 12, 4, 12]],
                }
            )
    if seg is not None:
        anns.append(
            {
                "id": 99,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [0, 0, 1, 1],
                "area": 0,
                "segmentation": seg,
            }
        )
    (r / "annotations/instances_val2017.json").write_text(
        json.dumps({"images": images, "annotations": anns, "categories": cats})
    )
    return r


out = {}


def go(name, root, want):
    try:
        d = sa.load("coco", root, concepts="all")
        out[name] = d.concepts == want or d.concepts
    except Exception as e:
        out[name] = f"{type(e).__name__}: {str(e)[:160]}"


go("no supercategory", folder([{"id": 1, "name": "cat"}]), ("cat",))
go("supercategory ''", folder([{"id": 1, "name": "cat", "supercategory": ""}]), ("cat",))
go("supercategory None", folder([{"id": 1, "name": "cat", "supercategory": None}]), ("cat",))
go(
    "two-point polygon",
    folder([{"id": 1, "name": "cat", "supercategory": "animal"}], [[26, 3, 30, 3]]),
    ("animal", "cat"),
)
go("empty segmentation", folder([{"id": 1, "name": "cat", "supercategory": "animal"}], []), ("animal", "cat"))
go(
    "rle counts",
    folder(
        [{"id": 1, "name": "cat", "supercategory": "animal"}],
        {"counts": [10, 5, 24 * 32 - 15], "size": [24, 32]},
    ),
    ("animal", "cat"),
)
print(*out.items(), sep="\n")
verdict(all(v is True for v in out.values()))
