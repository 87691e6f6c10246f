"""Write the cells that `sa-plugin reproduce` made into docs/findings/reproduction.md, and their pictures.

python docs/experiments/reproduction_page.py reproduced/minilm_supersense reproduced/vit_emoji ...
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from between_markers import put
from PIL import Image

from sa_plugin.show import kind_label, side_of_zero, typeset
from sa_plugin.stages import cell_markdown, difference, markdown, published

PAGE = Path(__file__).parents[1] / "findings" / "reproduction.md"
PICTURES = Path(__file__).parents[1] / "pictures"
BEGIN = "<!-- cells: written by docs/experiments/reproduction_page.py -->"
END = "<!-- end of cells -->"
COLOURS = 160


def pictures(cell: Path) -> list[str]:
    """Small copies of a cell's figures, by their paths from the page."""
    found = []
    for path in sorted((cell / "figures").glob("*.png")):
        name = f"reproduce_{cell.name}_{path.name}"
        small = (
            Image.open(path)
            .convert("RGB")
            .quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        )
        small.save(PICTURES / name, optimize=True)
        found.append(f"../pictures/{name}")
    return found


def verdicts(records: Mapping[str, Any]) -> str:
    """Claims down, cells across."""
    by_cell = {name: {f["claim"]: f["verdict"] for f in r["findings"]} for name, r in records.items()}
    claims = list(dict.fromkeys(claim for of in by_cell.values() for claim in of))
    rows = [[claim, *(of.get(claim, "–") for of in by_cell.values())] for claim in claims]
    return markdown(["claim", *(f"[{n}](#{_anchor(records[n])})" for n in by_cell)], rows)


def small_deltas(records: Mapping[str, Any]) -> str:
    """F1 at the best small delta minus F1 at the best large one, by kind and cell."""
    names = list(next(iter(records.values()))["kinds"])
    rows = []
    for cell, record in records.items():
        tokens = typeset(record["kinds"][names[0]]["tokens_per_positive"][0], 1)
        gains = [record["kinds"][name]["peaks"]["gain"] for name in names]
        cells = [difference(g["estimate"], [g["low"], g["high"]]) for g in gains]
        rows.append([cell, tokens, *cells])
    return markdown(["cell", "in-concept tokens a positive sample", *map(kind_label, names)], rows)


def against(records: Mapping[str, Any], method: str) -> str:
    """A method minus SuperActivators, by kind and cell."""
    names = list(next(iter(records.values()))["kinds"])
    rows = []
    for cell, record in records.items():
        tables = [record["kinds"][name]["detection"]["methods"] for name in names]
        found = [next(row for row in table if row["method"] == method) for table in tables]
        rows.append([cell, *(difference(row["difference"], row["difference_interval"]) for row in found)])
    return markdown(["cell", *map(kind_label, names)], rows)


def weaker(records: Mapping[str, Any]) -> str:
    """In how many cells and kinds SuperActivators beat, tie with or lose to each method."""
    counts: dict[str, list[int]] = {}
    for record in records.values():
        for block in record["kinds"].values():
            for row in block["detection"]["methods"]:
                if row["difference_interval"] is not None:
                    side = 1 + side_of_zero(row["difference_interval"])
                    counts.setdefault(row["method"], [0, 0, 0])[side] += 1
    rows = [[name, *map(str, found)] for name, found in counts.items()]
    return markdown(["method", "SuperActivators better", "open", "SuperActivators worse"], rows)


def _anchor(record: Any) -> str:
    kept = [
        c if c.isalnum() or c in "-_" else "" if c != " " else "-" for c in record["config"]["title"].lower()
    ]
    return "".join(kept)


def as_published() -> str:
    """The published figures, with where each was read and what contradicts what."""
    known = published()
    head, deltas, dense = known["headline"], known["deltas"], known["density"]
    methods = list(next(iter(head["f1"].values())))
    shown = [f"{m} (unreliable)" if m in head["unreliable"] else m for m in methods]
    rows = [
        [data, *(f"{one[m][0]:.2f} ± {one[m][1]:.2f}" for m in methods)] for data, one in head["f1"].items()
    ]
    parts = [f"{head['what']} ({known['marks'][head['mark']]}).", markdown(["data", *shown], rows)]
    doubts = [f"{name}: {why}." for name, why in head["unreliable"].items()]
    parts += ["\n".join(f"- {one}" for one in [*doubts, f"{head['note']}."])]
    best = known["best_layer"]
    methods = list(next(iter(next(iter(best["f1"].values())).values())))
    rows = [
        [f"{known['models'][model]}, {data}", *(typeset(one[m]) for m in methods)]
        for model, of in best["f1"].items()
        for data, one in of.items()
    ]
    parts += [f"{best['what']} ({known['marks'][best['mark']]}).", markdown(["", *methods], rows)]
    rows = [
        [f"{data}, {kind}", *(typeset(f) for f in curve)]
        for data, one in deltas["data"].items()
        for kind, curve in one["f1"].items()
    ]
    header = ["delta", *(f"{d:g}" for d in deltas["deltas"])]
    parts += [f"{deltas['what']} ({known['marks'][deltas['mark']]}).", markdown(header, rows)]
    bars = known["peaks"]
    header = ["delta", *(f"{d:g}" for d in bars["deltas"])]
    parts += [
        f"{bars['what']} ({known['marks'][bars['mark']]}).",
        markdown(header, [["concepts", *map(str, bars["concepts"])]]),
    ]
    rows = [[data, *map(str, row)] for data, row in dense["percent"].items()]
    header = ["ratio at most", *(f"{x:g}" for x in dense["at"])]
    parts += [f"{dense['what']} ({known['marks'][dense['mark']]}).", markdown(header, rows)]
    parts += _attribution(known)
    return "\n\n".join(part[0].upper() + part[1:] for part in parts)


def _attribution(known: Any) -> list[str]:
    one = known["attribution"]
    methods = [m for m in one["values"]["f1"] if m != "better"]
    rows = []
    for metric, of in one["values"].items():
        note = " (unreliable)" if metric in one["unreliable"] else ""
        cells = [f"{a:g} ({ea:g}) to {b:g} ({eb:g})" for a, ea, b, eb in (of[m] for m in methods)]
        rows.append([f"{metric}, {of['better']} is better{note}", *cells])
    said = [f"- {name}: {why}." for name, why in one["unreliable"].items()]
    return [f"{one['what']} ({known['marks'][one['mark']]}).", markdown(["", *methods], rows), *said]


def page(cells: Sequence[Path]) -> str:
    """What stands between the markers."""
    records = {cell.name: json.loads((cell / "cell.json").read_text()) for cell in cells}
    parts = [
        "## Verdicts",
        "Linear separators; every kind stands in the tables below.",
        verdicts(records),
        "In how many of the cells and kinds the interval of the paired difference of weighted "
        "F1 lies on which side of zero:",
        weaker(records),
        "MaxTok minus SuperActivators, weighted F1:",
        against(records, "MaxTok"),
        "F1 at the best shared delta up to .1 minus F1 at the best from .3, both chosen on calibration:",
        small_deltas(records),
    ]
    for cell in cells:
        text = cell_markdown(records[cell.name], pictures(cell), level=2)
        title, rest = text.split("\n", 1)
        command = f"```\nsa-plugin reproduce {cell.name}\n```"
        parts.append(f"{title}\n\n{command}\n{rest.rstrip()}")
    return "\n\n".join([*parts, "## As published", as_published()])


def main() -> None:
    """Replace what stands between the markers."""
    put(PAGE, BEGIN, END, page([Path(one) for one in sys.argv[1:]]))


if __name__ == "__main__":
    main()
