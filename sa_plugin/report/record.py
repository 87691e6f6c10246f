"""`results.json` held against its schema (`schema.py`), written and read.

pydantic checks the types (`TypeAdapter`, strict, nothing extra); what it says is put into the words of this
house. Lists that run parallel to others are then held against their lengths, and a picture's image and
outline against what may stand in a file that needs nothing from outside.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from sa_plugin._check import did_you_mean
from sa_plugin._files import write_text
from sa_plugin.report.schema import SCHEMA, Results
from sa_plugin.show.result import clean

WRITTEN = ("schema", "meta", "kinds", "provenance")
TEXT_BLOCKS = ("passages", "pictures", "explained")
DATA_URI = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
PATH = re.compile(r"[MmHhVvLlZz0-9 .,-]*")


def checked(results: Mapping[str, Any]) -> Results:
    """Hold a dictionary against the schema.

    Args:
        results: JSON-ready, see `clean`.

    Returns:
        The same dictionary, typed.

    Raises:
        ValueError: A key is unknown or missing, a value is of the wrong kind, a list has another
            length than what it runs along, or the file is of another format; the text says where,
            what was expected, and for an unknown key which known one is nearest.

    Example:
        >>> sorted(checked({"schema": 1, "warnings": []}))
        ['schema', 'warnings']
    """
    found = problems(results)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ValueError(f"{found[0]}{more}; the schema is in sa_plugin/report/schema.py.")
    return cast(Results, results)


def write_results(results: Mapping[str, Any], path: str | Path, *, texts: bool = True) -> Path:
    """Clean, check and write results as JSON (strict: no NaN).

    Args:
        results: What a run found.
        path: Where to.
        texts: Whether with the user's texts and pictures, see `without_texts`.

    Raises:
        ValueError: The schema is not kept, see `checked`.
        OSError: It cannot be written; the text names the path.
    """
    found = results if texts else without_texts(results)
    text = json.dumps(checked(clean(found)), indent=1, allow_nan=False, ensure_ascii=False)
    return write_text(path, text + "\n")


def without_texts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results without passages, pictures and the passage explained; names of warnings without their text.

    Names of concepts, of data and of files stay, and ids of samples where numbers are told by sample.
    """
    found = {name: value for name, value in results.items() if name not in TEXT_BLOCKS}
    # A warning may quote what it warns about.
    kinds = sorted({str(one).partition(":")[0] for one in results.get("warnings", ())})
    return found | {"warnings": [*kinds, "Written without texts: what quotes or shows samples is left out."]}


def read_results(path: str | Path) -> Results:
    """Read and check a `results.json`.

    Raises:
        ValueError: It is no JSON, does not keep the schema, or lacks what every run writes.
    """
    try:
        loaded = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): give the results.json of a run.") from error
    results = checked(clean(loaded))
    missing = [key for key in WRITTEN if key not in results]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(map(repr, missing))}, every run writes "
            f"{', '.join(map(repr, WRITTEN))}: give the results.json of a run."
        )
    return results


def problems(value: Any, kind: Any = Results, where: str = "results") -> list[str]:
    """What does not fit, one sentence each: types first, and in a whole file that fits, lengths.

    Args:
        value: JSON-ready, see `clean`.
        kind: `Results`, or a block of it: `KindBlock`, `Trace`, `Heads`.
        where: Name of the value.
    """
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as error:
        return [_sentence(one, kind, where) for one in error.errors(include_url=False)]
    if kind is not Results:
        return []
    if value.get("schema", SCHEMA) != SCHEMA:
        return [f"{where}.schema is {value['schema']}: expected {SCHEMA}, the format this version writes"]
    return list(_length_problems(value))


@lru_cache
def _adapter(kind: Any) -> Any:
    return TypeAdapter(kind)


def _sentence(error: Mapping[str, Any], kind: Any, where: str) -> str:
    """A finding of pydantic: where, what was there, and what was expected."""
    around, outside = kind, where
    for step in error["loc"]:
        around, outside = kind, where
        kind, where = _inside(kind, where, step)
    last = str(error["loc"][-1]) if error["loc"] else ""
    if error["type"] == "missing":
        return f"{outside} lacks {last!r} ({around.__name__})"
    if error["type"] == "extra_forbidden":
        return f"{outside} has an unknown key {last!r}{did_you_mean(last, get_type_hints(around))}"
    return f"{where} is {error['input']!r:.60}: expected {_expected(kind)}"


def _inside(kind: Any, where: str, step: str | int) -> tuple[Any, str]:
    """Type and name of what lies one step further in."""
    if is_typeddict(kind):
        return _bare(get_type_hints(kind).get(str(step), Any)), f"{where}.{step}"
    inner = get_args(kind)
    return _bare(inner[-1] if inner else Any), f"{where}[{step!r}]"


def _bare(kind: Any) -> Any:
    """A type without its None."""
    inner = get_args(kind)
    return next(a for a in inner if a is not NoneType) if NoneType in inner else kind


def _expected(kind: Any) -> str:
    if is_typeddict(kind):
        return f"{kind.__name__}, a dict"
    return {dict: "a dict", list: "a list"}.get(get_origin(kind), getattr(kind, "__name__", str(kind)))


def _length_problems(results: Mapping[str, Any]) -> Iterator[str]:
    """What does not fit, one sentence each; the types have been checked before."""
    for kind, block in results.get("kinds", {}).items():
        where = f"results.kinds[{kind!r}]"
        yield from _sparsity(block.get("sparsity"), f"{where}.sparsity")
        yield from _trace(block.get("trace"), f"{where}.trace")
        yield from _fractions(block.get("fractions"), f"{where}.fractions")
        for concept, head_map in (block.get("heads") or {}).get("concepts", {}).items():
            yield from _head_map(head_map, f"{where}.heads.concepts[{concept!r}]")
    for n, passage in enumerate(results.get("passages", [])):
        yield from _tokens(passage, f"results.passages[{n}]")
        yield from _along(passage, ("scores",), "offsets", f"results.passages[{n}]")
    for n, picture in enumerate(results.get("pictures", [])):
        yield from _picture(picture, f"results.pictures[{n}]")
    if explained := results.get("explained"):
        yield from _tokens(explained, "results.explained")
        for n, one in enumerate(explained["explanations"]):
            where = f"results.explained.explanations[{n}].tokens"
            yield from _expect(one["tokens"], len(explained["offsets"]), where, "offsets")


def _picture(picture: Mapping[str, Any], where: str) -> Iterator[str]:
    """What does not fit, one sentence each; the types have been checked before."""
    yield from _along(picture, ("scores", "superactivator", "in_concept"), "boxes", where)
    if len(picture["size"]) != 2 or min(picture["size"]) < 1:
        yield f"{where}.size is {picture['size']}: expected [height, width] of the image"
    for n, box in enumerate(picture["boxes"]):
        if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
            yield f"{where}.boxes[{n}] is {box}: expected [top, left, bottom, right]"
    if not DATA_URI.fullmatch(picture["png"]):
        yield f"{where}.png is {picture['png']!r:.60}: expected 'data:image/png;base64,...'"
    if not PATH.fullmatch(picture["outline"]):
        yield f"{where}.outline is {picture['outline']!r:.60}: expected an SVG path of M, H, V, Z"


def _expect(items: Sequence[Any], length: int, where: str, along: str) -> Iterator[str]:
    if len(items) != length:
        yield f"{where} has {len(items)} entries: expected {length}, as {along}"


def _along(block: Mapping[str, Any], keys: Sequence[str], along: str, where: str) -> Iterator[str]:
    for key in keys:
        if block.get(key) is not None:
            yield from _expect(block[key], len(block[along]), f"{where}.{key}", along)


def _tokens(block: Mapping[str, Any], where: str) -> Iterator[str]:
    yield from _along(block, ("superactivator", "in_concept"), "offsets", where)
    last = 0
    for n, offset in enumerate(block["offsets"]):
        if len(offset) != 2 or not 0 <= offset[0] <= offset[1] <= len(block["text"]):
            yield (
                f"{where}.offsets[{n}] is {offset}: expected [start, end] within the "
                f"{len(block['text'])} characters of the text"
            )
        elif offset[0] < last:
            yield f"{where}.offsets[{n}] is {offset}: expected a start of {last} or later"
        last = offset[0] if offset else last


def _sparsity(block: Mapping[str, Any] | None, where: str) -> Iterator[str]:
    if block is None:
        return
    for n, curve in enumerate(block["curves"]):
        for key in ("weighted_f1", "interval"):
            if curve.get(key) is not None:
                at = f"{where}.curves[{n}].{key}"
                yield from _expect(curve[key], len(block["deltas"]), at, "deltas")


def _trace(block: Mapping[str, Any] | None, where: str) -> Iterator[str]:
    if block is None:
        return
    series = dict(block["concepts"])
    if block.get("mean"):
        series["mean"] = block["mean"]
    for name, one in series.items():
        for key, values in one.items():
            yield from _expect(values, len(block["layers"]), f"{where}[{name!r}].{key}", "layers")
    for which, along in block.get("along", {}).items():
        for name, one in {**along["concepts"], "mean": along["mean"]}.items():
            for key, values in one.items():
                at = f"{where}.along[{which!r}][{name!r}].{key}"
                yield from _expect(values, len(block["layers"]), at, "layers")
    if drawn := block.get("distributions"):
        for name, one in drawn["concepts"].items():
            yield from _densities(one, drawn, f"{where}.distributions.concepts[{name!r}]")


def _densities(one: Mapping[str, Any], drawn: Mapping[str, Any], where: str) -> Iterator[str]:
    for key in ("in_concept", "out_of_concept", "threshold"):
        yield from _expect(one[key], len(drawn["layers"]), f"{where}.{key}", "layers")
    for key in ("in_concept", "out_of_concept"):
        for n, row in enumerate(one[key]):
            bins = len(drawn["edges"]) - 1
            yield from _expect(row, bins, f"{where}.{key}[{n}]", "bins between edges")


def _fractions(block: Mapping[str, Any] | None, where: str) -> Iterator[str]:
    for which in ("all", "inside") if block else ():
        assert block is not None
        curves = {**block[which]["concepts"], "mean": block[which]["mean"]}
        for name, values in curves.items():
            yield from _expect(values, len(block["grid"]), f"{where}.{which}[{name!r}]", "grid")


def _head_map(block: Mapping[str, Any], where: str) -> Iterator[str]:
    blocks = len(block["lift"])
    heads = len(block["lift"][0]) if blocks else 0
    for key in ("lift", "control", "contrast"):
        if block.get(key) is None:
            continue
        yield from _expect(block[key], blocks, f"{where}.{key}", "the blocks of lift")
        for n, row in enumerate(block[key]):
            yield from _expect(row, heads, f"{where}.{key}[{n}]", "the heads of lift")
