"""The head of the page and its end: what was run, on what, and what is needed to run it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sa_plugin.report.html import Child, Markup, el
from sa_plugin.report.words import count, number, sentence, small

GROUPS = (
    ("Versions", "versions"),
    ("Hashes", "hashes"),
    ("Settings", "settings"),
    ("Counts", "counts"),
)


def facts(meta: Mapping[str, Any]) -> Markup:
    """Model, data, counts and seed as a definition list."""
    splits = " / ".join(f"{count(n)} {name}" for name, n in meta["samples"].items())
    documents = " / ".join(f"{count(n)} {name}" for name, n in meta.get("documents", {}).items())
    dropped = ", ".join(f"{count(n)} {why}" for why, n in meta["tokens_dropped"].items())
    model = " · ".join(
        str(part)
        for part in (meta["model"], meta.get("architecture"), _blocks(meta), meta.get("hook_point"))
        if part
    )
    data = meta["data"] + (f" · {meta['data_hash'][:12]}" if meta.get("data_hash") else "")
    pairs: list[tuple[str, Child]] = [
        ("Model", model),
        ("Data", data),
        ("Concepts", f"{len(meta['concepts'])}: {', '.join(meta['concepts'])}"),
        ("Layers", ", ".join(map(str, meta["layers"]))),
        ("Samples", splits),
        ("Documents", documents or number(None)),
        ("Tokens kept", count(meta["tokens_kept"])),
        ("Tokens dropped", dropped or "none"),
        ("Seed", str(meta["seed"])),
        ("Intervals", _intervals(meta.get("intervals"))),
    ]
    note = el("p", meta["data_note"]) if meta.get("data_note") else None
    return el("div", definitions(pairs), note)


def _blocks(meta: Mapping[str, Any]) -> str:
    return f"{meta['n_blocks']} blocks" if meta.get("n_blocks") else ""


def _intervals(made: Mapping[str, Any] | None) -> str:
    if not made:
        return number(None)
    units = made["unit"].removesuffix("s") + "s"
    return f"{100 * made['level']:g} %, {count(made['draws'])} resamples of the {units}"


def definitions(pairs: list[tuple[str, Child]]) -> Markup:
    """Terms with their values."""
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in pairs])


def provenance(block: Mapping[str, Any]) -> Markup:
    """Everything the run recorded about itself."""
    parts: list[Child] = []
    if block.get("command"):
        parts.append(el("pre", el("code", block["command"])))
    if block.get("machine"):
        parts.append(el("p", f"Machine: {sentence(block['machine'])}"))
    for title, key in GROUPS:
        if block.get(key):
            rows = sorted(_flat(block[key]))
            parts.append(_table(title, [(name, _shown(value)) for name, value in rows]))
    if block.get("timings"):
        seconds = [(name, f"{small(v)} s") for name, v in block["timings"].items()]
        parts.append(_table("Timings", seconds))
    return el("div", parts, class_="provenance")


def _table(title: str, rows: list[tuple[str, str]]) -> Markup:
    body = [el("tr", el("th", name, scope="row"), el("td", value)) for name, value in rows]
    return el("div", el("h4", title), el("table", el("tbody", body), class_="data plain"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        else:
            rows.append((name, value))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return number(None)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return str(value)


def warnings_list(warnings: list[str]) -> Markup:
    """Every named warning of the run, in order."""
    if not warnings:
        return el("p", "The run gave no warning.")
    return el("ul", [el("li", warning) for warning in warnings], class_="warnings")
