"""Write the cells that `sa-plugin reproduce` made into docs/findings/reproduction.md: one table a cell.

    sa-plugin reproduce minilm_supersense --out reproduced/minilm_supersense      # and so on
    python docs/experiments/reproduction_page.py keep reproduced/minilm_supersense ...
    python docs/experiments/reproduction_page.py show

`keep` puts what the page needs of each `cell.json` into docs/findings/data/reproduction.json; `show` writes
the page from there and from the published figures alone. All else that a cell measured stands in its folder.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from between_markers import put, short
from demo_table import detectable, write_data

from sa_plugin._files import write_text
from sa_plugin.show import interval, kind_label, side_of_zero, typeset
from sa_plugin.stages import difference, markdown, published

FINDINGS = Path(__file__).parents[1] / "findings"
PAGE, DATA = FINDINGS / "reproduction.md", FINDINGS / "data" / "reproduction.json"
BEGIN = "<!-- cells: written by docs/experiments/reproduction_page.py show -->"
END = "<!-- end of cells -->"
CELLS = (
    "minilm_supersense",
    "minilm_brown",
    "smollm2_supersense",
    "smollm2_brown",
    "vit_shapes",
    "vit_emoji",
)
MEASURED = {
    "The tail stands apart": "positive less negative samples with a token beyond the .995 quantile of others",
    "The best delta is small": "F1 at the best delta up to .1 minus at the best from .3",
    "Most samples lie below .2": "share of positive samples with at most .2 SuperActivators a labelled token",
    "Few concepts need a large delta": "share of concepts with their best F1 at delta .3 or more",
}
EXPLAINED = {
    "Explaining the tail points better": "f1",
    "Explaining the tail is more faithful (insertion)": "insertion/mean_alignment",
    "Explaining the tail is more faithful (deletion)": "deletion/mean_alignment",
}
BETTER = "Better than "


def keep(folders: list[str]) -> None:
    """What the page needs of some cells; the others stay as they are."""
    record = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    for folder in map(Path, folders):
        record[folder.name] = kept(json.loads((folder / "cell.json").read_text(encoding="utf-8")))
    write_data(DATA, {name: record[name] for name in CELLS if name in record})


def kept(cell: Any) -> dict[str, Any]:
    """Claims with their numbers, and of every kind the gain of small deltas and each method's difference."""
    meta = cell["meta"]
    block = cell["kinds"][meta["primary_kind"]]
    about = {"title": cell["config"]["title"], "model": meta["model"], "data": meta["data"]}
    about |= {key: meta[key] for key in ("samples", "documents", "seed")}
    about |= {"kind": meta["primary_kind"], "concepts": len(meta["concepts"])}
    about |= {"tokens_per_positive": block["tokens_per_positive"][0]}
    claims = {}
    for one in cell["findings"]:
        claims[one["claim"]] = {"verdict": one["verdict"]} | _measured(cell, block, one["claim"])
    kinds = {}
    for name, of in cell["kinds"].items():
        rows = {row["method"]: row for row in of["detection"]["methods"]}
        minus = {
            method: [row["difference"], *(row["difference_interval"] or (None, None))]
            for method, row in rows.items()
            if row["difference"] is not None
        }
        gain = [of["peaks"]["gain"][key] for key in ("estimate", "low", "high")]
        kinds[name] = {"f1": rows["SuperActivators"]["weighted_f1"], "gain": gain, "minus": minus}
    found = {"about": about, "claims": claims, "kinds": kinds}
    if "separation" in block:
        found["tail"] = {
            name: [block["separation"][name][key] for key in ("estimate", "low", "high")]
            for name in ("in_mass_at_fpr", "realised_fpr", "coverage", "negative_coverage")
        }
    return found | ({"growth": block["trace"]["growth"][0]} if "trace" in block else {})


def _measured(cell: Any, block: Any, claim: str) -> dict[str, Any]:
    documents = cell["meta"]["documents"]["test"]
    if claim in EXPLAINED:
        rows = [row for row in cell["attribution"]["rows"] if row.get("stratum", "all") == "all"]
        every = {row["concept"] for row in rows}
        overall = "all" if "all" in every else min(every)
        found = {}
        for row in rows:
            if row["concept"] == overall and row["metric"] == EXPLAINED[claim]:
                ends = [row[f"superactivator_difference_{end}"] for end in ("low", "high")]
                found[row["method"]] = [row["superactivator_difference"], *ends]
        text = next(one["text"] for one in cell["findings"] if one["claim"] == claim)
        missed = [name for name in found if f"{name.replace('_', ' ')} is not counted" in text]
        return {"by_method": found, "not_counted": missed}
    if claim.startswith(BETTER):
        row = next(m for m in block["detection"]["methods"] if m["method"] == claim.removeprefix(BETTER))
        low, high = row["difference_interval"] or (None, None)
        three = [None if one is None else -one for one in (row["difference"], high, low)]
    else:
        places = {
            "The tail stands apart": block.get("separation", {}).get("coverage_difference"),
            "The best delta is small": block["peaks"]["gain"],
            "Most samples lie below .2": block["density"]["all"]["0.2"],
            "Few concepts need a large delta": block["peaks"]["large_share"],
        }
        three = [places[claim][key] for key in ("estimate", "low", "high")]
    seen = None if three[1] is None else detectable(three[1:], documents)
    return {"measured": three, "could_have_seen": seen}


def page(record: Mapping[str, Any]) -> str:
    """What stands between the markers."""
    parts = ["## Verdicts", verdicts(record)]
    parts += ["In how many cells and kinds of vectors the paired difference of weighted F1 excludes zero:"]
    parts += [weaker(record)]
    parts += [
        "MaxTok minus SuperActivators, and the best delta up to .1 minus the best from .3, weighted F1:"
    ]
    parts += [by_kind(record)]
    said = claimed()
    for name, cell in record.items():
        parts += [
            f"## {cell['about']['title']}",
            f"`sa-plugin reproduce {name}`. {about(cell)}",
            table(cell, said),
        ]
    return "\n\n".join([*parts, "## As published", *as_published()])


def about(cell: Any) -> str:
    """What a cell is of."""
    one = cell["about"]
    splits = ", ".join(
        f"{one['samples'][s]} {s} of {one['documents'][s]} documents" for s in ("train", "cal", "test")
    )
    when = one.get("code", "")
    older = f" Of code of {when}: its intervals are percentiles of a bootstrap." if when else ""
    return (
        f"{one['data']}, {one['concepts']} concepts, {kind_label(one['kind'])}s, seed {one['seed']}; "
        f"{splits}; {typeset(one['tokens_per_positive'], 1)} labelled tokens in a positive sample.{older}"
    )


def table(cell: Any, said: Mapping[str, str]) -> str:
    """One row a claim: what is claimed, what was measured and could have been, and the verdict."""
    rows = []
    for claim, one in cell["claims"].items():
        what = MEASURED.get(claim, "")
        if claim.startswith(BETTER):
            what = f"F1, SuperActivators minus {claim.removeprefix(BETTER)}"
        if "by_method" in one:
            notes = dict.fromkeys(one["not_counted"], " (incomplete, not counted)")
            gaps = [
                f"{name.replace('_', ' ')} {_gap(three)}{notes.get(name, '')}"
                for name, three in one["by_method"].items()
            ]
            measured, seen = "; ".join(gaps), ""
        else:
            three, seen = one["measured"], typeset(one["could_have_seen"])
            share = claim in ("Most samples lie below .2", "Few concepts need a large delta")
            measured = f"{typeset(three[0])} {interval(three[1:])}" if share else _gap(three)
            measured = f"{what}: {measured}"
        rows.append([claim, said.get(claim, ""), measured, seen, f"**{one['verdict']}**"])
    return markdown(["claim", "the paper", "here", "could have seen", "here it"], rows)


def _gap(three: Any) -> str:
    return difference(three[0], three[1:])


def verdicts(record: Mapping[str, Any]) -> str:
    """Claims down, cells across."""
    claims = list(dict.fromkeys(claim for cell in record.values() for claim in cell["claims"]))
    rows = [
        [claim, *(cell["claims"].get(claim, {"verdict": "–"})["verdict"] for cell in record.values())]
        for claim in claims
    ]
    return markdown(["claim", *record], rows)


def weaker(record: Mapping[str, Any]) -> str:
    """In how many cells and kinds SuperActivators beat, tie with or lose to each method."""
    counts: dict[str, list[int]] = {}
    for cell in record.values():
        for kind in cell["kinds"].values():
            for name, (_, *ends) in kind["minus"].items():
                if ends[0] is not None:
                    counts.setdefault(name, [0, 0, 0])[1 + side_of_zero(ends)] += 1
    rows = [[name, *map(str, found)] for name, found in counts.items()]
    return markdown(["method", "SuperActivators better", "open", "SuperActivators worse"], rows)


def by_kind(record: Mapping[str, Any]) -> str:
    """MaxTok against the tail, and small deltas against large ones, by cell and kind."""
    names = list(next(iter(record.values()))["kinds"])
    rows = []
    for cell, of in record.items():
        rows.append([f"{cell}, MaxTok", *(_gap(of["kinds"][name]["minus"]["MaxTok"]) for name in names)])
    for cell, of in record.items():
        rows.append([f"{cell}, small deltas", *(_gap(of["kinds"][name]["gain"]) for name in names)])
    return markdown(["cell", *map(kind_label, names)], rows)


def claimed() -> dict[str, str]:
    """What the paper's sources say to each claim, in numbers where they publish any."""
    known = published()
    head, best = known["headline"]["f1"], known["best_layer"]["f1"]
    curves, deltas = known["deltas"]["data"], known["deltas"]["deltas"]
    peaks = [f"{name} {_best(of['f1']['separator'], deltas):g}" for name, of in curves.items()]
    bars = known["peaks"]
    large = sum(n for at, n in zip(bars["deltas"], bars["concepts"], strict=True) if at >= 0.3)
    at = known["density"]["at"].index(0.2)
    below = [f"{name} {row[at]} %" for name, row in known["density"]["percent"].items()]
    maxtok = [one["SuperActivators"] - one["MaxTok"] for of in best.values() for one in of.values()]
    found = {
        "The tail stands apart": "only the tail leaves the other tokens, and most positive samples reach it",
        "The best delta is small": f"best delta at the last layer: {', '.join(peaks)}",
        "Better than MaxTok": f"not in its table; authors' notebooks {_range(maxtok)}",
        "Most samples lie below .2": ", ".join(below),
        "Few concepts need a large delta": f"{large} of {sum(bars['concepts'])} concepts",
    }
    for name in ("MeanTok", "LastTok", "RandTok", "CLS", "Prompt"):
        gaps = [one["SuperActivators"][0] - one[name][0] for one in head.values()]
        note = " (unreliable)" if name in known["headline"]["unreliable"] else ""
        found[BETTER + name] = f"{_range(gaps)} over seven data sets{note}"
    texts = [head[name]["SuperActivators"][0] - head[name]["CLS"][0] for name in best["llama_text"]]
    found[BETTER + "pooled"] = f"{_range(texts)} over three text sets (its CLS of texts)"
    values = known["attribution"]["values"]
    for claim, metric in EXPLAINED.items():
        of = values[metric.partition("/")[0]]
        sign = -1 if of["better"] == "lower" else 1
        gaps = [sign * (row[2] - row[0]) for name, row in of.items() if name != "better"]
        found[claim] = f"better by {_ends(gaps)} with all {len(gaps)} explainers shown"
    return found


def _best(curve: list[float], deltas: list[float]) -> float:
    return deltas[curve.index(max(curve))]


def _range(gaps: list[float]) -> str:
    return f"{typeset(min(gaps), 3, True)} to {typeset(max(gaps), 3, True)}"


def _ends(gaps: list[float]) -> str:
    return f"{typeset(min(gaps))} to {typeset(max(gaps))}"


def as_published() -> Iterator[str]:
    """The published figures that the claims rest on, with where each was read and what contradicts what."""
    known = published()
    head, best, deltas = known["headline"], known["best_layer"], known["deltas"]
    methods = list(next(iter(head["f1"].values())))
    shown = [f"{m} (unreliable)" if m in head["unreliable"] else m for m in methods]
    rows = [
        [data, *(f"{one[m][0]:.2f} ± {one[m][1]:.2f}" for m in methods)] for data, one in head["f1"].items()
    ]
    yield f"{_capital(head['what'])} ({known['marks'][head['mark']]})."
    yield markdown(["data", *shown], rows)
    yield "\n".join(f"- {name}: {why}." for name, why in head["unreliable"].items())
    methods = list(next(iter(next(iter(best["f1"].values())).values())))
    yield f"{_capital(best['what'])} ({known['marks'][best['mark']]})."
    yield markdown(
        ["", *methods],
        [
            [f"{known['models'][model]}, {data}", *(typeset(one[m]) for m in methods)]
            for model, of in best["f1"].items()
            for data, one in of.items()
        ],
    )
    yield f"{_capital(deltas['what'])}, linear separators ({known['marks'][deltas['mark']]})."
    rows = [[data, *map(typeset, one["f1"]["separator"])] for data, one in deltas["data"].items()]
    yield markdown(["delta", *(f"{d:g}" for d in deltas["deltas"])], rows)


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def opening(text: str, record: Mapping[str, Any]) -> str:
    """The page with its answer, and with what could have been found, as the cells say them."""
    for name, words in points(record).items():
        point = re.compile(rf"^- \*\*{name}:\*\* .*?(?=^- |\n\n)", re.S | re.M)
        text = point.sub(f"- **{name}:** {words}\n".replace("\\", r"\\"), text)
    return text


def points(record: Mapping[str, Any]) -> dict[str, str]:
    """The answer in counts, and the smallest and largest difference that cells could have seen."""
    cells = len(record)

    def count(claim: str, verdict: str) -> int:
        return sum(cell["claims"].get(claim, {}).get("verdict") == verdict for cell in record.values())

    explained = [
        one["verdict"]
        for cell in record.values()
        for name, one in cell["claims"].items()
        if name in EXPLAINED
    ]
    weaker_than = [BETTER + name for name in ("MeanTok", "LastTok", "RandTok", "pooled")]
    gains = sum(count(name, "reproduces") for name in weaker_than)
    maxtok = [count("Better than MaxTok", verdict) for verdict in ("reproduces", "does not")]
    deltas = [count("The best delta is small", verdict) for verdict in ("reproduces", "does not")]
    apart, small = (
        count("The tail stands apart", "reproduces"),
        count("Most samples lie below .2", "reproduces"),
    )
    answer = (
        f"In part. The tail stands apart in {apart} of {cells} cells, and SuperActivators beat the mean, "
        f"last and random token and the pooled sample in {gains} of {4 * cells} comparisons. MaxTok, which "
        f"the paper leaves out, is behind in {maxtok[0]} of the {cells}, ahead in {maxtok[1]}. A small delta "
        f"is best in {deltas[0]}, a large one in {deltas[1]}; most samples have few SuperActivators in "
        f"{small}. Of verdicts on explainers {explained.count('reproduces')} of {len(explained)} speak for "
        f"the tail, {explained.count('does not')} against."
    )
    older = sum("code" in cell["about"] for cell in record.values())
    sure = (
        "Small cells: 300 to 600 passages with silver or grammatical labels, 240 rendered scenes, models of "
        "at most 135 million parameters, one seed; of a hundred verdicts, each read alone, a few are chance. "
        "They say little of the paper's own models."
    )
    if older:
        sure += f" Of code of 22 November 2026, with narrower intervals: {older} of the {cells}."
    seen = {name: cell["claims"]["Better than MaxTok"]["could_have_seen"] for name, cell in record.items()}
    ends = [min(seen, key=seen.__getitem__), max(seen, key=seen.__getitem__)]
    low, high = (short(seen[name]) for name in ends)
    places = [f"{{}} = {DATA.name} {name} / claims / Better than MaxTok / could_have_seen" for name in ends]
    could = "\n  ".join(
        [
            f"With power .8 a difference in F1 to MaxTok of {low} to {high}, by cell; tables have the rest.",
            "<!-- quoted",
            ".8 = setting",
            places[0].format(low),
            places[1].format(high),
            "-->",
        ]
    )
    return {"Answer": _filled(answer), "How sure": _filled(sure), "What could have been found": could}


def _filled(text: str) -> str:
    return textwrap.fill(text, 128, subsequent_indent="  ", break_on_hyphens=False)


def shown() -> str:
    """The page's tables from the kept cells."""
    return page(json.loads(DATA.read_text(encoding="utf-8")))


def main() -> None:
    """Keep what cells measured, or write the page."""
    if sys.argv[1] == "keep":
        keep(sys.argv[2:])
    else:
        record = json.loads(DATA.read_text(encoding="utf-8"))
        put(PAGE, BEGIN, END, shown())
        write_text(PAGE, opening(PAGE.read_text(encoding="utf-8"), record))


if __name__ == "__main__":
    main()
