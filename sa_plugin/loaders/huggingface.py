"""Data from a Hugging Face dataset, by duck typing: `datasets` is not imported.

A dataset is anything that iterates over dicts and has `column_names`; `features[column].names` (or
`features[column].feature.names`) turn class numbers into concepts. A mapping of datasets, such as
{"train": ..., "validation": ..., "test": ...}, is divided as it is given.

| columns named | labels |
|---|---|
| `text`, `spans` | [start, end, concept], or {"start", "end", "label"} of numbers or of lists |
| `tokens`, `tags` | one tag a word; `O` is none, `B-` and `I-` are taken off |
| `image`, `mask` | {concept: mask}, or one plane of class numbers |
| `label` | sample labels: a class, or several |

The concepts of the paper's data sets (arXiv 2512.05038), as its authors' code names them.

A label of Broden is `category::label`, because one word may be an object and a part. The rules
behind the choice are not published; these lists are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sa_plugin._check import require_known
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.splits import Splits

SPLIT_OF = {
    "train": "train",
    "validation": "cal",
    "valid": "cal",
    "val": "cal",
    "dev": "cal",
    "cal": "cal",
    "test": "test",
}
COLUMNS = ("text", "spans", "tokens", "tags", "image", "mask", "label", "document", "id")


def from_dataset(
    dataset: Any,
    columns: Mapping[str, str],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    concepts: Sequence[str] | None = None,
    seed: int = 0,
    name: str = "dataset",
) -> ConceptData:
    """Data from a dataset's columns.

    Args:
        dataset: Rows as dicts, with `column_names`; or a mapping of split to such.
        columns: Role to column: one of `text`, `tokens` or `image`, its labels (`spans`, `tags`,
            `mask`), and optionally `label`, `document` and `id`.
        names: Role to names of class numbers, where `features` has none; for `tags`, `label` and
            `mask` (there number 0 is usually the background: name it "").
        concepts: Concepts and their order; by default those seen, sorted.
        seed: Seed of the division of a single dataset.
        name: Of the data set.

    Raises:
        TypeError: Not a dataset by these rules.
        ValueError: A role, column or split is unknown, or a value is wrong; the text names the row.

    Example:
        >>> rows = [{"words": ["a", "cat"], "tags": ["O", "B-animal"]}] * 10
        >>> rows = rows + [{"words": ["we", "sang"], "tags": ["O", "O"]}] * 10
        >>> class Rows(list):
        ...     column_names = ["words", "tags"]
        >>> from_dataset(Rows(rows), {"tokens": "words", "tags": "tags"}).concepts
        ('animal',)
    """
    parts = dict(dataset) if isinstance(dataset, Mapping) else {"": dataset}
    for role in columns:
        require_known("role", role, COLUMNS)
    kinds = [role for role in ("text", "tokens", "image") if role in columns]
    if len(kinds) != 1:
        raise ValueError(f"columns name {kinds or 'none'} of text, tokens, image: name one.")
    rows, homes = [], []
    for part, one in parts.items():
        if part:
            require_known("split", part, SPLIT_OF)
        found = list(_rows(one, part, columns, dict(names or {})))
        rows += found
        homes += [SPLIT_OF[part]] * len(found) if part else []
    shared: dict[str, Any] = {
        "concepts": concepts,
        "documents": _column(rows, "document"),
        "ids": _column(rows, "id"),
        "sample_labels": [row["label"] for row in rows],
        "splits": Splits(homes or None, seed=seed),
        "name": name,
    }
    if kinds[0] == "text":
        return ConceptData.from_spans([r["text"] for r in rows], [r["spans"] for r in rows], **shared)
    if kinds[0] == "tokens":
        return ConceptData.from_words([r["tokens"] for r in rows], [r["tags"] for r in rows], **shared)
    return ConceptData.from_masks([r["image"] for r in rows], [r["mask"] for r in rows], **shared)


def _rows(
    dataset: Any, part: str, columns: Mapping[str, str], names: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """Each row by role, in the form that the constructors take."""
    there = getattr(dataset, "column_names", None)
    if there is None or not isinstance(dataset, Iterable):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, not rows with column_names: give a Hugging "
            "Face dataset, or a mapping of split to dataset."
        )
    for role, column in columns.items():
        require_known(f"column of {role}", column, list(there))
    classes = {
        role: _classes(dataset, columns.get(role), names.get(role)) for role in ("tags", "label", "mask")
    }
    for k, values in enumerate(dataset):
        row = {role: values[column] for role, column in columns.items()}
        where = f"row {k}{f' of {part}' if part else ''}"
        try:
            yield {
                **{role: str(row[role]) for role in ("document", "id") if role in row},
                "label": _labels(row.get("label"), classes["label"]),
                "text": row.get("text"),
                "spans": _spans(row.get("spans")),
                "tokens": row.get("tokens"),
                "tags": [_tag(tag, classes["tags"]) for tag in row.get("tags") or ()],
                "image": _pixels(row["image"]) if "image" in row else None,
                "mask": _masks(row.get("mask"), classes["mask"]),
            }
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{where}: {type(error).__name__}: {error}") from error


def _column(rows: Sequence[Mapping[str, Any]], role: str) -> list[str] | None:
    return [row[role] for row in rows] if rows and role in rows[0] else None


def _classes(dataset: Any, column: str | None, names: Sequence[str] | None) -> Sequence[str] | None:
    """Names of class numbers: given, or of the column's feature."""
    features = getattr(dataset, "features", None) or {}
    feature = features.get(column) if column else None
    found = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return names or found


def _name(value: Any, classes: Sequence[str] | None) -> str:
    if isinstance(value, str):
        return value
    if classes is None:
        raise ValueError(f"class {value!r} has no name: give names={{role: [...]}}.")
    if int(value) != value:
        raise ValueError(f"class {value!r} is no whole number: give names or class numbers.")
    if not 0 <= int(value) < len(classes):
        raise ValueError(f"class {value!r} is not below {len(classes)}, the number of names.")
    return classes[int(value)]


def _labels(value: Any, classes: Sequence[str] | None) -> list[str]:
    values = [] if value is None else value if isinstance(value, list | tuple) else [value]
    flags = isinstance(value, list | tuple) and any(isinstance(v, bool) for v in values)
    if flags or len(set(values)) < len(values):
        raise ValueError(
            f"label {values!r:.60} is no list of different classes: give the classes that hold, "
            "not one 0 or 1 for every class."
        )
    return [found for found in (_name(v, classes) for v in values) if found]


def _tag(value: Any, classes: Sequence[str] | None) -> str | None:
    found = _name(value, classes)
    return None if found in ("O", "") else found.removeprefix("B-").removeprefix("I-")


def _spans(value: Any) -> list[tuple[int, int, str]]:
    """Spans one by one, or as `datasets` gives a Sequence of dicts: one dict of lists."""
    if isinstance(value, Mapping):
        columns = (value[part] for part in ("start", "end", "label"))
        value = list(zip(*columns, strict=True))
    return [_span(span) for span in value or ()]


def _span(value: Any) -> tuple[int, int, str]:
    if isinstance(value, Mapping):
        return int(value["start"]), int(value["end"]), str(value["label"])
    start, end, concept = value
    return int(start), int(end), str(concept)


def _pixels(value: Any) -> np.ndarray:
    return np.array(value.convert("RGB") if hasattr(value, "convert") else value)


def _masks(value: Any, classes: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Masks as they are, or one for each named class number of a plane."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {concept: np.asarray(mask) for concept, mask in value.items()}
    plane = np.asarray(value)
    found = {_name(number, classes): plane == number for number in np.unique(plane)}
    return {concept: mask for concept, mask in found.items() if concept}


CLEVR = ("blue", "green", "red", "cube", "cylinder", "sphere")

COCO = (
    "accessory",
    "animal",
    "appliance",
    "bench",
    "book",
    "bottle",
    "bowl",
    "bus",
    "car",
    "chair",
    "couch",
    "cup",
    "dining table",
    "electronic",
    "food",
    "furniture",
    "indoor",
    "kitchen",
    "motorcycle",
    "outdoor",
    "person",
    "pizza",
    "potted plant",
    "sports",
    "train",
    "truck",
    "tv",
    "umbrella",
    "vehicle",
)

OPENSURFACES = tuple(
    f"material::{name}"
    for name in (
        "brick",
        "cardboard",
        "carpet",
        "ceramic",
        "concrete",
        "fabric",
        "food",
        "fur",
        "glass",
        "granite",
        "hair",
        "laminate",
        "leather",
        "metal",
        "mirror",
        "painted",
        "paper",
        "plastic-clear",
        "plastic-opaque",
        "rock",
        "rubber",
        "skin",
        "tile",
        "wallpaper",
        "wicker",
        "wood",
    )
)

PASCAL = tuple(
    f"object::{name}"
    for name in (
        "airplane",
        "bicycle",
        "bird",
        "boat",
        "body",
        "book",
        "building",
        "bus",
        "cap",
        "car",
        "cat",
        "cup",
        "dog",
        "door",
        "ear",
        "engine",
        "grass",
        "hair",
        "horse",
        "leg",
        "mirror",
        "motorbike",
        "mountain",
        "painting",
        "person",
        "pottedplant",
        "saddle",
        "screen",
        "sky",
        "sofa",
        "table",
        "track",
        "train",
        "tvmonitor",
        "wheel",
        "wood",
    )
) + tuple(
    f"part::{name}"
    for name in (
        "arm",
        "bag",
        "beak",
        "bottle",
        "box",
        "cabinet",
        "ceiling",
        "chain wheel",
        "chair",
        "coach",
        "curtain",
        "eye",
        "eyebrow",
        "fabric",
        "fence",
        "floor",
        "foot",
        "ground",
        "hand",
        "handle bar",
        "head",
        "headlight",
        "light",
        "mouth",
        "muzzle",
        "neck",
        "nose",
        "paw",
        "plant",
        "plate",
        "plaything",
        "pole",
        "pot",
        "road",
        "rock",
        "rope",
        "shelves",
        "sidewalk",
        "signboard",
        "stern",
        "tail",
        "torso",
        "tree",
        "wall",
        "water",
        "windowpane",
        "wing",
    )
)

SARCASM = ("sarcasm",)
ISARCASM = ("sarcastic",)

GOEMOTIONS = (
    "confusion",
    "joy",
    "sadness",
    "anger",
    "love",
    "caring",
    "optimism",
    "amusement",
    "curiosity",
    "disapproval",
    "approval",
    "annoyance",
    "gratitude",
    "admiration",
)
