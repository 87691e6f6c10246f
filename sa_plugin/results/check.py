"""Turning results into JSON and back, and holding them against the schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NotRequired, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np

from sa_plugin._names import did_you_mean
from sa_plugin.results.lengths import length_problems
from sa_plugin.results.schema import Number, Results

WRITTEN = ("schema", "meta", "kinds", "provenance")


def clean(value: Any) -> Any:
    """Turn numpy, tuples, paths and dataclasses into plain JSON values, NaN and Inf into None.

    Args:
        value: Anything made of dicts, sequences, dataclasses, numbers, strings and numpy arrays.

    Returns:
        The same in dict, list, str, int, float, bool and None.

    Raises:
        TypeError: Something else is in it; the text names its type.

    Example:
        >>> clean({"f1": np.float32(0.5), "interval": (0.25, float("nan"))})
        {'f1': 0.5, 'interval': [0.25, None]}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return clean(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: clean(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [clean(item) for item in items]
    raise TypeError(
        f"a {type(value).__name__} cannot go into results.json: give numbers, strings, lists, "
        "dicts, numpy arrays or dataclasses (a tensor as tensor.numpy())."
    )


def check(results: Mapping[str, Any]) -> Results:
    """Hold a dictionary against the schema.

    Args:
        results: JSON-ready, see `clean`.

    Returns:
        The same dictionary, typed.

    Raises:
        ValueError: A key is unknown or missing, or a value is of the wrong kind; the text says
            where, what was expected, and for an unknown key which known one is nearest.

    Example:
        >>> sorted(check({"schema": 1, "warnings": []}))
        ['schema', 'warnings']
    """
    problems = list(_problems(results, Results, "results")) or list(length_problems(results))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"{problems[0]}{more}; the schema is in sa_plugin/results/schema.py.")
    return cast(Results, results)


def write_results(results: Mapping[str, Any], path: str | Path) -> Path:
    """Clean, check and write results as JSON (strict: no NaN).

    Raises:
        ValueError: The schema is not kept, see `check`.
    """
    path = Path(path)
    text = json.dumps(check(clean(results)), indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read_results(path: str | Path) -> Results:
    """Read and check a `results.json`.

    Raises:
        ValueError: It is no JSON, does not keep the schema, or lacks what every run writes.
    """
    try:
        loaded = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}): give the results.json of a run.") from error
    results = check(clean(loaded))
    missing = [key for key in WRITTEN if key not in results]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(map(repr, missing))}, every run writes "
            f"{', '.join(map(repr, WRITTEN))}: give the results.json of a run."
        )
    return results


def _problems(value: Any, kind: Any, where: str) -> Iterator[str]:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return
    if origin is NotRequired:
        yield from _problems(value, args[0], where)
    elif origin in (Union, UnionType):
        if value is None and NoneType in args:
            return
        yield from _problems(value, next(a for a in args if a is not NoneType), where)
    elif is_typeddict(kind):
        yield from _dict_problems(value, kind, where)
    elif origin is dict:
        yield from _mapping_problems(value, args[1], where)
    elif origin is list:
        if not isinstance(value, list):
            yield f"{where} is {value!r:.60}: expected a list"
            return
        if args[0] == Number and all(type(item) in (float, NoneType) for item in value):
            return
        for k, item in enumerate(value):
            yield from _problems(item, args[0], f"{where}[{k}]")
    elif not _is_plain(value, kind):
        yield f"{where} is {value!r:.60}: expected {kind.__name__}"


def _dict_problems(value: Any, kind: Any, where: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{where} is {value!r:.60}: expected {kind.__name__}, a dict"
        return
    hints = get_type_hints(kind)
    for key in sorted(kind.__required_keys__ - set(value)):
        yield f"{where} lacks {key!r} ({kind.__name__})"
    for key, item in value.items():
        if key in hints:
            yield from _problems(item, hints[key], f"{where}.{key}")
            continue
        yield f"{where} has an unknown key {key!r}{did_you_mean(key, hints)}"


def _mapping_problems(value: Any, kind: Any, where: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{where} is {value!r:.60}: expected a dict"
        return
    for key, item in value.items():
        yield from _problems(item, kind, f"{where}[{key!r}]")


def _is_plain(value: Any, kind: type) -> bool:
    if kind is bool or kind is str:
        return isinstance(value, kind)
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else int)
