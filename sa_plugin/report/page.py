"""The page: its sections in order, each of which says so when it was not computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sa_plugin.report.detection import choices_table, detection_note, detection_table
from sa_plugin.report.head_tables import share_tables, strongest_table
from sa_plugin.report.heads import head_maps
from sa_plugin.report.html import Child, Markup, el, join
from sa_plugin.report.kinds import other_kinds
from sa_plugin.report.passages import explanation, passages
from sa_plugin.report.pictures import pictures
from sa_plugin.report.provenance import facts, provenance, warnings_list
from sa_plugin.report.rates import fraction_cdfs, localisation_table, rates_table
from sa_plugin.report.sparsity import delta_curve
from sa_plugin.report.trace import distributions, trace_lines
from sa_plugin.report.verdict import primary_kind, verdict
from sa_plugin.report.words import kind_label, sentence

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
        results: Cleaned and checked results, see `sa_plugin.results`.
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
    return files("sa_plugin.report").joinpath("style.css").read_text(encoding="utf-8")


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
