"""Lists that run parallel must be as long as what they run along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sa_plugin.results.pictures import picture_problems


def length_problems(results: Mapping[str, Any]) -> Iterator[str]:
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
        yield from picture_problems(picture, f"results.pictures[{n}]")
    if explained := results.get("explained"):
        yield from _tokens(explained, "results.explained")
        for n, one in enumerate(explained["explanations"]):
            where = f"results.explained.explanations[{n}].tokens"
            yield from _expect(one["tokens"], len(explained["offsets"]), where, "offsets")


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
