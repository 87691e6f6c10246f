"""The other concept kinds in short: one line each, their tables folded.

The head of the page and its end: what was run, on what, and what is needed to run it again.

What the numbers allow to be said, composed from the detection table and nothing else.

The page: its sections in order, each of which says so when it was not computed.

The report: one self-contained HTML file from the results dictionary.

No network, no scripts, no fonts from elsewhere; charts are inline SVG of our own. Equal results
give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from sa_plugin.report.detection import (
    choices_table,
    delta_curve,
    detection_note,
    detection_table,
    fraction_cdfs,
    localisation_table,
    rates_table,
)
from sa_plugin.report.heads import head_maps, share_tables, strongest_table
from sa_plugin.report.passages import explanation, passages, pictures
from sa_plugin.report.schema import check
from sa_plugin.report.trace import distributions, trace_lines
from sa_plugin.show.html import (
    ALWAYS,
    MAXTOK,
    OWN,
    Child,
    Markup,
    Real,
    by_weighted_f1,
    count,
    el,
    interval,
    join,
    kind_label,
    listed,
    method_of,
    number,
    sentence,
    side_of_zero,
    small,
    tick,
)
from sa_plugin.show.result import clean
from sa_plugin.show.tokens import passage_rules


def other_kinds(kinds: Mapping[str, Mapping[str, Any]], primary: str) -> Markup:
    """A line for every kind, then what was computed for each but the primary, folded."""
    names = ("Layers chosen", "Median δ", "AUROC", "Localisation F1")
    head = el(
        "tr",
        el("th", "Kind", scope="col"),
        *(el("th", name, scope="col", colspan=2) for name in (OWN, MAXTOK)),
        el("th", "Best method (picked on test)", scope="col", colspan=2),
        *(el("th", name, scope="col", class_="num") for name in names),
    )
    body = [_row(name, block, name == primary) for name, block in kinds.items()]
    table = el("table", el("thead", head), el("tbody", body), class_="data")
    caption = (
        "Weighted test F1. The best method of each kind is picked on test, so its number is "
        "flattered and no fair rival of the columns beside it. The marked row is the run's primary "
        "kind, which the sections above show in full."
    )
    folded = [_folded(name, block) for name, block in kinds.items() if name != primary]
    figure = el("figure", el("div", table, class_="scroll"), el("figcaption", caption))
    return join([figure, *folded])


def _row(name: str, block: Mapping[str, Any], primary: bool) -> Markup:
    rows = by_weighted_f1(block.get("detection", {}).get("methods", []))
    own, best = method_of(rows, OWN), rows[0] if rows else None
    cells: list[Child] = []
    for row in (own, method_of(rows, MAXTOK)):
        cells.append(el("td", number(row["weighted_f1"] if row else None), class_="num"))
        cells.append(el("td", interval(row["interval"] if row else None), class_="ci"))
    cells.append(el("td", number(best["weighted_f1"] if best else None), class_="num"))
    cells.append(el("td", best["method"] if best else "", class_="muted"))
    return el(
        "tr",
        el("th", kind_label(name), scope="row"),
        cells,
        el("td", _layers(block), class_="num"),
        el("td", _delta(block), class_="num"),
        el("td", number(own["auroc"] if own else None), class_="num"),
        el("td", number(_localised(block)), class_="num"),
        class_="own" if primary else None,
    )


def _layers(block: Mapping[str, Any]) -> str:
    layers = [choice["layer"] for choice in block.get("choices", [])]
    if not layers:
        return number(None)
    return f"{min(layers)}–{max(layers)}" if min(layers) < max(layers) else str(layers[0])


def _delta(block: Mapping[str, Any]) -> str:
    deltas = [choice["delta"] for choice in block.get("choices", [])]
    return number(median(deltas) if deltas else None, 2)


def _localised(block: Mapping[str, Any]) -> Real | None:
    row = method_of(block.get("localisation", []), OWN)
    return row["f1"] if row else None


def _folded(name: str, block: Mapping[str, Any]) -> Markup:
    parts: list[Child] = []
    if block.get("detection"):
        parts.append(detection_table(block["detection"]))
    if block.get("sparsity"):
        parts.append(delta_curve(block["sparsity"]))
    if block.get("trace"):
        parts.append(trace_lines(block["trace"]))
    if not parts:
        parts.append(el("p", f"{kind_label(name)}: nothing further computed.", class_="absent"))
    return el("details", el("summary", f"More on the {kind_label(name)}"), parts)


GROUPS = (("Versions", "versions"), ("Hashes", "hashes"), ("Settings", "settings"), ("Counts", "counts"))


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


SMALL = 0.05


def verdict(results: Mapping[str, Any]) -> str:
    """One paragraph on the primary kind, as plain text.

    It says where SuperActivators stand, against which methods the paired interval excludes zero
    and which way, how they compare with MaxTok (the same statistic) and with always-positive, how
    far into the tail the chosen deltas lie, and what the intervals do not cover.

    Args:
        results: The results dictionary, see `sa_plugin.report.schema`.

    Returns:
        The paragraph, or why there is none.

    Example:
        >>> verdict({})
        'No verdict: detection was not computed.'
    """
    kind = primary_kind(results)
    block = results.get("kinds", {}).get(kind, {})
    if not block.get("detection"):
        return "No verdict: detection was not computed."
    rows = by_weighted_f1(block["detection"]["methods"])
    own = method_of(rows, OWN)
    if own is None or own["weighted_f1"] is None:
        return "No verdict: SuperActivators were not evaluated."
    others = [row for row in rows if row is not own]
    sentences = [_standing(kind, own, rows), *_sides(others), _maxtok(rows), _floor(rows)]
    sentences += [_deltas(block.get("choices", [])), _tail_alone(block.get("sparsity"))]
    sentences.append(
        "Intervals resample documents of the test split with vectors, thresholds and choices "
        "held fixed: they are conditional on the train and calibration splits."
    )
    return " ".join(sentence for sentence in sentences if sentence)


def primary_kind(results: Mapping[str, Any]) -> str:
    """The kind that is shown in full: the one the run names, else the first."""
    kinds = list(results.get("kinds", {}))
    named = str(results.get("meta", {}).get("primary_kind", ""))
    return named if named in kinds or not kinds else kinds[0]


def _standing(kind: str, own: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    place = [row["method"] for row in rows].index(OWN) + 1
    ordinal = "highest" if place == 1 else f"number {place}"
    return (
        f"With the {kind_label(kind)}, SuperActivators reach a weighted F1 of "
        f"{number(own['weighted_f1'])} {interval(own['interval'])} on held-out documents, "
        f"{ordinal} of {len(rows)} methods."
    )


def _sides(others: Sequence[Mapping[str, Any]]) -> list[str]:
    groups: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    for row in others:
        if row["difference"] is not None:
            groups[side_of_zero(row["difference_interval"])].append(row["method"])
    said = []
    if groups[-1]:
        said.append(f"The paired interval shows them ahead of {listed(groups[-1])}.")
    if groups[0]:
        said.append(f"It does not tell them apart from {listed(groups[0])}.")
    if groups[1]:
        said.append(f"It shows them behind {listed(groups[1])}.")
    return said


def _maxtok(rows: Sequence[Mapping[str, Any]]) -> str:
    row = method_of(rows, MAXTOK)
    if row is None:
        return "MaxTok, which uses the same statistic, was not evaluated."
    gap = number(row["difference"], signed=True)
    return (
        "MaxTok thresholds the same statistic, the highest token score, at other quantiles; its "
        f"difference is {gap} {interval(row['difference_interval'], signed=True)}."
    )


def _floor(rows: Sequence[Mapping[str, Any]]) -> str:
    row = method_of(rows, ALWAYS)
    return "" if row is None else f"Calling every sample positive gives {number(row['weighted_f1'])}."


def _deltas(choices: Sequence[Mapping[str, Any]]) -> str:
    chosen = [choice["delta"] for choice in choices]
    if not chosen:
        return ""
    return (
        f"Calibration chose deltas from {tick(min(chosen))} to {tick(max(chosen))} (median "
        f"{tick(median(chosen))}): the share of a concept's calibration tokens that the rule keeps "
        "as its tail."
    )


def _tail_alone(block: Mapping[str, Any] | None) -> str:
    curve = method_of(block["curves"], OWN) if block else None
    if block is None or curve is None or SMALL not in block["deltas"]:
        return ""
    f1 = curve["weighted_f1"]
    known = [(v, -d) for v, d in zip(f1, block["deltas"], strict=True) if v is not None]
    if not known:
        return ""
    best, at = max(known)
    where = "" if block["layer"] is None else f", all at layer {block['layer']}"
    small = f1[block["deltas"].index(SMALL)]
    return (
        f"With one delta for all concepts{where}, the tail at delta {tick(SMALL)} alone reaches "
        f"{number(small)}, the best delta, {tick(-at)}, {number(best)} (picked on test)."
    )


POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
Part = Callable[[Any], Child]


@dataclass(frozen=True)
class View:
    """The results with the primary kind picked out."""

    results: Mapping[str, Any]
    kind: str
    block: Mapping[str, Any]


def page(results: Mapping[str, Any]) -> str:
    """The report as one HTML document.

    Args:
        results: Cleaned and checked results, see `sa_plugin.report.schema`.
    """
    kind = primary_kind(results)
    view = View(results, kind, results.get("kinds", {}).get(kind, {}))
    title = "SuperActivators"
    if "meta" in results:
        title += f" in {results['meta']['model']}"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(stylesheet())),
    )
    body = el("body", _header(title), _contents(view), el("main", _sections(view)), _footer())
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def stylesheet() -> str:
    """The page's CSS."""
    own = files("sa_plugin.report").joinpath("style.css").read_text(encoding="utf-8")
    # Before the rules of narrow windows and of print, which come last.
    return own.replace("@media (max-width", passage_rules() + "\n@media (max-width", 1)


def _header(title: str) -> Markup:
    claim = (
        "The claim under test: only the extreme high tail of a concept's token activations is "
        "reliable evidence for it. What follows is what the rule that keeps that tail found here, "
        "and where these data do not bear the claim out."
    )
    return el("header", el("h1", title), el("p", claim, class_="standfirst"))


def _contents(view: View) -> Markup:
    links = [el("a", name, href=f"#{anchor}") for anchor, name, _ in _that_apply(view.results)]
    return el("nav", links, aria_label="Sections")


def _sections(view: View) -> Markup:
    return join(
        el(
            "section",
            el("h2", el("span", f"{n}", class_="n"), " ", name),
            el("div", body(view), class_="body"),
            id=anchor,
        )
        for n, (anchor, name, body) in enumerate(_that_apply(view.results), start=1)
    )


def _footer() -> Markup:
    words = (
        "Built from results.json alone; the method is that of arXiv 2512.05038. One model, "
        "one data set and one seed stand behind these numbers."
    )
    return el("footer", el("p", words))


def absent(what: str, why: str = "") -> Markup:
    """The line that stands for what is not there."""
    reason = f": {why.rstrip('.')}" if why else ""
    return el("p", f"{what}: not computed in this run{reason}.", class_="absent")


def _part(view: View, key: str, what: str, render: Part, title: str = "") -> Child:
    """One part of the primary kind's block under its heading, or the line that it is absent."""
    heading = el("h3", title) if title else None
    if not view.block.get(key):
        return join([heading, absent(what, view.block.get("absent", {}).get(key, ""))])
    return join([heading, render(view.block[key])])


def _headline(view: View) -> Child:
    meta = view.results.get("meta")
    return join(
        [
            el("p", verdict(view.results), class_="verdict"),
            facts(meta) if meta else absent("Model, data and counts"),
        ]
    )


def _detection(view: View) -> Child:
    return _part(
        view,
        "detection",
        "The detection table",
        lambda block: join([_kind_line(view), detection_table(block), detection_note(block)]),
    )


def _kind_line(view: View) -> Markup:
    scoring = {"cosine": ", scored by cosine", "dot": ", scored by dot product"}
    how = scoring.get(view.block.get("scoring", ""), "")
    words = f"Concept vectors: {kind_label(view.kind)}{how}. {sentence(view.block.get('note', ''))}"
    return el("p", words.strip())


def _choices(view: View) -> Child:
    return _part(view, "choices", "Chosen deltas and layers", lambda _: choices_table(view.block))


def _sparsity(view: View) -> Child:
    return _part(view, "sparsity", "The delta curve", delta_curve)


def _trace(view: View) -> Child:
    drawn = (view.block.get("trace") or {}).get("distributions")
    choices = view.block.get("choices", [])
    shapes = distributions(drawn, choices) if drawn else absent("Distributions by layer")
    lines = _part(view, "trace", "Separation by layer", trace_lines)
    return join([el("h3", "Distributions"), shapes, el("h3", "Separation"), lines])


def _heads(view: View) -> Child:
    def render(block: Mapping[str, Any]) -> Child:
        shares = share_tables(block) or absent("Shares of heads, MLPs and embedding")
        return join(
            [
                el("h3", "Heat maps"),
                head_maps(block),
                el("h3", "Shares"),
                shares,
                el("h3", "The strongest heads"),
                strongest_table(block),
            ]
        )

    return _part(view, "heads", "The head ledger", render)


def _passages(view: View) -> Child:
    items = view.results.get("passages")
    return passages(items) if items else absent("Passages")


def _pictures(view: View) -> Child:
    items = view.results.get("pictures")
    return pictures(items) if items else absent("Images")


def _explained(view: View) -> Child:
    block = view.results.get("explained")
    return explanation(block) if block else absent("A passage explained")


def _rates(view: View) -> Child:
    return join(
        [
            _part(view, "localisation", "Localisation", localisation_table, "Localisation"),
            _part(view, "rates", "False fires and misses", rates_table, "False fires and misses"),
            _part(view, "fractions", "SuperActivator fractions", fraction_cdfs, "Fractions"),
        ]
    )


def _others(view: View) -> Child:
    kinds = view.results.get("kinds", {})
    if len(kinds) < 2:
        return absent("Further concept kinds")
    return other_kinds(kinds, view.kind)


def _provenance(view: View) -> Child:
    block = view.results.get("provenance")
    warned = view.results.get("warnings")
    return join(
        [
            provenance(block) if block else absent("Provenance"),
            el("h3", "Warnings"),
            absent("The list of warnings") if warned is None else warnings_list(warned),
        ]
    )


Section = tuple[str, str, Callable[[View], Child]]

_SECTIONS: tuple[Section, ...] = (
    ("headline", "In short", _headline),
    ("detection", "Detection", _detection),
    ("choices", "Chosen δ and layer", _choices),
    ("sparsity", "Delta curve", _sparsity),
    ("trace", "How the tail forms", _trace),
    ("heads", "Heads", _heads),
    ("passages", "Passages", _passages),
    ("pictures", "Images", _pictures),
    ("explained", "One passage explained", _explained),
    ("rates", "Localisation and rates", _rates),
    ("kinds", "Other concept kinds", _others),
    ("provenance", "Provenance", _provenance),
)


def _that_apply(results: Mapping[str, Any]) -> list[Section]:
    """A run on images has no passages and a run on texts no images: not a word of either."""
    out = {"passages", "explained"} if "pictures" in results else {"pictures"}
    return [section for section in _SECTIONS if section[0] not in out - set(results)]


def render_report(results: Mapping[str, Any]) -> str:
    """The report as a string.

    Args:
        results: What a run found, see `sa_plugin.report.schema`; every block may be missing.

    Returns:
        An HTML document.

    Raises:
        ValueError: The results do not keep the schema.
    """
    return page(check(clean(results)))


def write_report(results: Mapping[str, Any], path: str | Path) -> Path:
    """Write the report.

    Args:
        results: What a run found, see `sa_plugin.report.schema`; every block may be missing.
        path: Where to; its folder is made.

    Returns:
        The path.

    Raises:
        ValueError: The results do not keep the schema.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_report({"schema": 1}, f"{folder}/report.html").name
        'report.html'
    """
    path, text = Path(path), render_report(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
