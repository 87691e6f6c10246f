"""The head ledger's tables: shares of heads, MLPs and embedding, and the strongest heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sa_plugin.report.html import Child, Markup, el, join
from sa_plugin.report.svg import Scale, chart, segment
from sa_plugin.report.words import Real, count, decimals, interval, listed, number, percent


def share_tables(block: Mapping[str, Any]) -> Markup | None:
    """Shares of heads, MLPs and embedding, concept by concept: of the contrast and of the lift."""
    named = (
        ("lift_shares", "lift"),
        ("shares", block.get("shares_of", "total")),
    )
    drawn = []
    for key, of in named:
        rows = {name: one[key] for name, one in block["concepts"].items() if one.get(key)}
        if rows:
            drawn.append(_shares_table(rows, of))
    return join(drawn) if drawn else None


def _shares_table(rows: Mapping[str, Mapping[str, Any]], of: str) -> Markup:
    parts = ["head", "mlp", "embedding"] + (
        ["bias"] if any("bias_share" in one for one in rows.values()) else []
    )
    values = [one.get(f"{part}_share") for one in rows.values() for part in parts]
    present = [v for v in values if v is not None]
    x = Scale((min([0.0, *present]), max([1.0, *present])), (1, 91))
    names = {"head": "Heads", "mlp": "MLPs", "embedding": "Embedding", "bias": "Biases"}
    head = el(
        "tr",
        el("th", "Concept", scope="col"),
        *(el("th", names[part], scope="col", colspan=3) for part in parts),
    )
    body = [_share_row(name, one, parts, x) for name, one in sorted(rows.items())]
    table = el("table", el("thead", head), el("tbody", body), class_="data shares")
    caption = (
        f"Share of the {of}{_MEANING.get(of, '')} that each kind of component writes directly; "
        "signed, so a share below zero works against the concept; unstable where the total is "
        "small."
    )
    return el("figure", el("div", table, class_="scroll"), el("figcaption", caption))


_MEANING = {
    "total": " (this file does not name which)",
    "lift": " (SuperActivators against the other tokens of their samples, no control taken off)",
    "contrast": " (labelled tokens against tokens of negative samples, unlike the maps above)",
}


def _share_row(name: str, shares: Mapping[str, Any], parts: Sequence[str], x: Scale) -> Markup:
    cells: list[Markup] = []
    for part in parts:
        value, bounds = shares.get(f"{part}_share"), shares.get(f"{part}_share_interval")
        cells.append(el("td", _bar(value, part, x), class_="plot"))
        cells.append(el("td", number(value), class_="num"))
        cells.append(el("td", interval(bounds), class_="ci"))
    return el("tr", el("th", name, scope="row"), cells)


def _bar(value: Real | None, part: str, x: Scale) -> Markup:
    if value is None:
        return chart(92, 16, f"{part} share", "not defined")
    left, right = sorted((x(0), x(value)))
    width = f"{max(right - left, 0.5):.1f}"
    bar = el("rect", x=f"{left:.1f}", y=3, width=width, height=10, class_=f"bar {part}")
    zero = segment(x(0), 0, x(0), 16, "axis")
    return chart(92, 16, f"{part} share", number(value), bar, zero)


def strongest_table(block: Mapping[str, Any]) -> Markup:
    """The strongest heads that raise and those that lower a score, with control and contrast."""
    names = ("Lift", "Control", "Lift − control", "In − out contrast")
    spans = (2, 2, 2, 2)
    head = el(
        "tr",
        *(el("th", name, scope="col") for name in ("Head", "Concept")),
        *(
            el("th", name, scope="col", colspan=span)
            for name, span in zip(names, spans, strict=True)
        ),
    )
    digits = decimals(row["lift"] for row in block["strongest"])
    controlled = any(row["control"] is not None for row in block["strongest"])
    lowers = [row for row in block["strongest"] if _ranked_by(row) < 0]
    raises = [row for row in block["strongest"] if row not in lowers]
    body: list[Child] = []
    for words, rows in (("Raise the score", raises), ("Lower it", lowers)):
        if rows:
            body.append(el("tr", el("th", words, scope="rowgroup", colspan=10), class_="group"))
            body += [_head_row(row, digits) for row in rows]
    table = el("table", el("thead", head), el("tbody", body), class_="data")
    caption = (
        f"Ranked by |{'lift − control' if controlled else 'lift'}| relative to the lift of the "
        f"score, on the split shown{_candidates(block)}; negative numbers work against the "
        f"concept. {_CONTROL if controlled else ''}{_excluding_zero(block)}The contrast selects no "
        "tokens by score, but the heads shown are ranked all the same."
    )
    return el("figure", el("div", table, class_="scroll"), el("figcaption", caption))


_CONTROL = (
    "The control is one permutation per concept: a scale of what selection alone gives, not a "
    "test. "
)


def _candidates(block: Mapping[str, Any]) -> str:
    n = block.get("candidates")
    return "" if n is None else f", out of {count(n)} candidates (head × concept)"


def _excluding_zero(block: Mapping[str, Any]) -> str:
    names = {"lift": "lift", "control": "control", "excess": "lift − control"}
    shares = block.get("excludes_zero", {})
    said = [f"{percent(shares[key])} for {name}" for key, name in names.items() if key in shares]
    if not said:
        return ""
    return (
        f"Of all candidates the interval excludes zero in {listed(said)}; two permuted vectors "
        "would differ as well, so hold none of these against 5 %. "
    )


def _gap(row: Mapping[str, Any]) -> Real | None:
    if row.get("excess") is not None:
        return float(row["excess"])
    if row["lift"] is None or row["control"] is None:
        return None
    return float(row["lift"] - row["control"])


def _head_row(row: Mapping[str, Any], digits: int) -> Markup:
    return el(
        "tr",
        el("th", f"L{row['layer']}H{row['head']}", scope="row"),
        el("td", row["concept"]),
        el("td", number(row["lift"], digits, True), class_="num"),
        el("td", interval(row["interval"], digits, True), class_="ci"),
        el("td", number(row["control"], digits, True), class_="num"),
        el("td", interval(row.get("control_interval"), digits, True), class_="ci"),
        el("td", number(_gap(row), digits, True), class_="num main"),
        el("td", interval(row.get("excess_interval"), digits, True), class_="ci"),
        el("td", number(row.get("contrast"), digits, True), class_="num"),
        el("td", interval(row.get("contrast_interval"), digits, True), class_="ci"),
    )


def _ranked_by(row: Mapping[str, Any]) -> Real:
    """What the run ranked by: lift - control, else the lift, else the contrast."""
    values = (_gap(row), row["lift"], row.get("contrast"))
    return next((value for value in values if value is not None), 0.0)
