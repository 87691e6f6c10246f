"""Rows of a dataset by role, whatever form they come in: plain, of numpy or torch, whole or streamed.

A row is read value by value, and an error names the row. Tags and planes of masks say what they mean only
together: `meaning_of_tags` and `masks_of_rows` look at all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sa_plugin._check import require_known
from sa_plugin.data.columns import (
    Given,
    column,
    entries_of,
    is_missing,
    label_of,
    name_of,
    scalar,
    shown,
    spans_of,
    text_of,
)
from sa_plugin.data.given import given_of
from sa_plugin.data.images import PixelLabels, numbers_of, opened, pixels_of
from sa_plugin.data.tags import OUTSIDE, Tags, tag_concepts, tags_of

_ROLES = ("text", "spans", "tokens", "tags", "spaces_after", "image", "mask", "label", "document", "id")
NAMED_ROLES = ("tags", "label", "mask", "spans")
_NONE = object()
# Number of the class that VOC, Cityscapes and many others leave out of every count.
_VOID = 255
# Number of a class to its name; "" or None is no concept.
_Classes: TypeAlias = Mapping[int, str | None] | None
_Row: TypeAlias = dict[str, Any]


def kind_of_columns(columns: Any) -> str:
    """What is labelled: texts, words or pictures.

    Raises:
        TypeError: No mapping of role to column.
        ValueError: A role is unknown, or none or two of these are named.
    """
    if not isinstance(columns, Mapping):
        raise TypeError(f"columns is {shown(columns)}, not a mapping: give {{role: column}}.")
    for role, name in columns.items():
        require_known("role", text_of("a role of columns", role), _ROLES)
        text_of(f"columns[{role!r}]", name)
    kinds = [role for role in ("text", "tokens", "image") if role in columns]
    if kinds == ["text", "tokens"] and "spans" not in columns:
        return "tokens"
    if len(kinds) != 1:
        raise ValueError(f"columns name {kinds or 'none'} of text, tokens, image: name one.")
    return kinds[0]


def dataset_rows(
    dataset: Any, part: str, columns: Mapping[str, str], names: Mapping[Any, Any]
) -> Iterator[_Row]:
    """Each row by role, in the form that the constructors take; tags and planes as they are."""
    there: Any = getattr(dataset, "column_names", _NONE)
    if there is _NONE or not isinstance(dataset, Iterable):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}, not rows with column_names: give a Hugging "
            "Face dataset, or a mapping of split to dataset."
        )
    for role, wanted in columns.items():
        # A stream does not say its columns before it is read: column_names is None.
        if there is not None:
            require_known(f"column of {role}", wanted, list(there))
    classes = {role: classes_of(dataset, columns.get(role), names.get(role), role) for role in NAMED_ROLES}
    places = getattr(dataset, "places", ())
    for k, values in enumerate(unformatted(dataset)):
        where = places[k] if places else f"row {k}{f' of {part}' if part else ''}"
        if not isinstance(values, Mapping):
            raise TypeError(f"{where} is {shown(values)}, not a mapping: give rows as {{column: value}}.")
        for role, wanted in columns.items():
            if wanted not in values:
                require_known(f"{where}: column of {role}", wanted, list(map(str, values)))
        try:
            yield read_row({role: values[wanted] for role, wanted in columns.items()}, classes)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error


def unformatted(dataset: Any) -> Any:
    """The same rows as Python's own objects, whatever format they were set to; a transform stays."""
    if not hasattr(dataset, "with_format"):
        return dataset
    form = getattr(dataset, "format", None)
    return (
        dataset if isinstance(form, Mapping) and form.get("type") == "custom" else dataset.with_format(None)
    )


def read_row(row: Mapping[str, Any], classes: Mapping[str, _Classes]) -> _Row:
    """A row by role in the form that the constructors take.

    Args:
        row: Role to value.
        classes: Names of class numbers by role, from `classes_of`.

    Raises:
        TypeError, ValueError: A value is not what its role wants.
    """
    found: _Row = {role: label_of(role, row[role]) for role in ("document", "id") if role in row}
    found["label"] = _labels(row.get("label"), classes["label"])
    if "text" in row:
        # Beside words the text is what they are of.
        found["text"] = (text_of if "tokens" in row else given_of)("text", row["text"])
    found["spans"] = (
        spans_of("spans", row["spans"], lambda where, value: name_of(where, _name(value, classes["spans"])))
        if not is_missing(row.get("spans"))
        else []
    )
    if "tokens" in row:
        found["tokens"] = column("tokens", row["tokens"], text_of, fix="give the words")
        found["tags"] = (
            column("tags", row["tags"], lambda _, tag: _tag(tag, classes["tags"]), fix="give one tag a word")
            if "tags" in row
            else [""] * len(found["tokens"])
        )
        found["outside"] = [name for name in (classes["tags"] or {}).values() if name in OUTSIDE]
    if "spaces_after" in row:
        found["spaces_after"] = entries_of(
            "spaces_after", row["spaces_after"], "give True or False for each word"
        )
    if "image" in row:
        found["image"] = np.array(pixels_of(row["image"]))
        found["mask"], found["names"] = row.get("mask"), classes["mask"]
    return found


def of_role(rows: Sequence[Mapping[str, Any]], role: str) -> list[Any] | None:
    """A column; None where the rows have none of the role."""
    return [row[role] for row in rows] if rows and role in rows[0] else None


def classes_of(dataset: Any, wanted: str | None, names: Any, role: str) -> _Classes:
    """Names of class numbers: given, or of the column's feature."""
    features = getattr(dataset, "features", None) or {}
    feature = features.get(wanted) if wanted else None
    found = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    if names is None:
        return None if found is None else dict(enumerate(found))
    if not isinstance(names, Mapping):
        names = dict(
            enumerate(entries_of(f"names[{role!r}]", names, "give the names of the classes in order"))
        )
    for number, one in names.items():
        if isinstance(number, bool) or not isinstance(number, int) or not isinstance(one, str | None):
            raise TypeError(f"names[{role!r}] has {number!r}: {one!r:.40}: give {{number: name}}.")
    return {number: None if one is None else str(one) for number, one in names.items()}


def _name(value: Any, classes: _Classes) -> str:
    value = scalar(value)
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"class {shown(value)} is no name and no number: give names or class numbers.")
    if classes is None:
        raise ValueError(f"class {value!r} has no name: give names={{role: [...]}}.")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"class {value!r} is no whole number: give names or class numbers.")
    if int(value) in classes:
        return classes[int(value)] or ""
    if int(value) == _VOID:
        raise ValueError(
            f"class 255 is none of the {len(classes)} names. In masks it often is void, to be ignored: say "
            'so, names={"mask": {0: "", 1: "tool", 255: ""}}, where "" is no concept.'
        )
    why = (
        f"not below {len(classes)}, the number of names"
        if value >= 0
        else "what often says that nobody labelled"
    )
    raise ValueError(
        f'class {value!r} is {why}: name it, names={{role: {{number: name}}}}, with "" where it is no '
        "concept, or leave the row out; in masks where it is void, make them yourself: from_masks(images, "
        "PixelLabels(masks, void=...))."
    )


def _labels(value: Any, classes: _Classes) -> list[str]:
    value = scalar(value)
    one = is_missing(value) or isinstance(value, str | bytes) or not isinstance(value, Iterable)
    values = ([] if is_missing(value) else [value]) if one else _each(value)
    flags = not one and any(isinstance(v, bool) for v in values)
    found = [_name(v, classes) for v in values] if not flags else []
    if flags or len(set(map(repr, values))) < len(values):
        raise ValueError(
            f"label {values!r:.60} is no list of different classes: give the classes that hold, "
            "not one 0 or 1 for every class."
        )
    return [name for name in found if name]


def _each(value: Any) -> list[Any]:
    ordered = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
    return [scalar(one) for one in entries_of("label", ordered, "give the classes that hold")]


def _tag(value: Any, classes: _Classes) -> str:
    return "" if is_missing(value) else _name(value, classes)


def meaning_of_tags(rows: Sequence[_Row], tags: Given[Tags]) -> dict[str, str | None]:
    """What each tag of all rows means; the names of classes tell whether there is one for no concept.

    Raises:
        ValueError: What `tag_concepts` raises.
    """
    tags = tags_of("tags", tags)
    every = [tag for row in rows for tag in (*row["tags"], *row["outside"])]
    return tag_concepts(every, tags)


def masks_of_rows(rows: Sequence[_Row]) -> PixelLabels:
    """Masks as they are, or one for each named class number of a plane; 255 without a name is void.

    Raises:
        ValueError: A class has no name; the text names the row.
    """
    planes = [_plane(f"row {k}", row["mask"]) for k, row in enumerate(rows)]
    numbers = [np.unique(plane) if isinstance(plane, np.ndarray) else () for plane in planes]
    held = {int(number) for each in numbers for number in each}
    # Programs that draw write 255 for what is in: where a whole set has 0 and 255 only, that is class 1.
    drawn = held == {0, 255} or held == {255}
    found: list[Mapping[str, Any]] = []
    void: list[Any] = []
    for k, (row, plane, own) in enumerate(zip(rows, planes, numbers, strict=True)):
        classes, own_void = row["names"], None
        if isinstance(plane, np.ndarray):
            white = drawn and classes is not None and set(classes) == {0, 1}
            try:
                named = {n: _name(1 if white and n == 255 else int(n), classes) for n in own}
            except ValueError as error:
                raise ValueError(f"row {k}: {error}") from error
            each: dict[str, Any] = {}
            for number, name in named.items():
                if name:
                    # Two numbers of one name are one concept.
                    each[name] = each[name] | (plane == number) if name in each else plane == number
                elif number == _VOID and not white:
                    own_void = plane == number
            plane = each
        found.append(plane)
        void.append(own_void)
    return PixelLabels(found, void=void)


def _plane(where: str, value: Any) -> Any:
    """A mapping of masks, or one plane of class numbers."""
    if is_missing(value):
        return {}
    try:
        value = opened(value)
        if isinstance(value, Mapping):
            return {concept: numbers_of(mask) for concept, mask in value.items() if mask is not None}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    plane = np.asarray(numbers_of(value))
    if plane.ndim != 2 or plane.dtype.kind not in "biu":
        raise ValueError(
            f"{where}: a mask is {plane.dtype} {list(plane.shape)}, expected class numbers [height, width], "
            "or a mapping {concept: mask}."
        )
    return plane
