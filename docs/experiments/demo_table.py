"""Write what the demo prints beside detection, from results.json files, into a page, between its markers.

python docs/experiments/demo_table.py docs/findings/results.md TITLE=RESULTS.json ...

Tables of detection are written by `rival_tables.py`, which takes `kept`, `detection` and `monitor` from here.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from between_markers import put
from scipy import stats

from sa_plugin._files import write_text
from sa_plugin.report import read_results
from sa_plugin.show import interval, typeset
from sa_plugin.stages import difference

BEGIN = "<!-- table: written by docs/experiments/demo_table.py -->"
END = "<!-- end of table -->"
MONITOR = (
    "What a monitor is chosen by: true-positive rate at a false-positive rate and partial AUROC up to 10 % "
    "(standardised, .5 is chance) of the test split's own curve; false alarms of the calibrated threshold, "
    "samples for 1,000 tokens of negative samples"
)


def kept(results: Any) -> dict[str, Any]:
    """What the tables of detection hold, by method."""
    meta = results["meta"]
    table = results["kinds"][meta["primary_kind"]]["detection"]
    about = {key: meta[key] for key in ("model", "data", "layers", "seed")}
    about |= {"kind": meta["primary_kind"], "concepts": len(meta["concepts"])}
    about |= {"samples": table["n_samples"], "documents": table["n_documents"]}
    found, rows = table["monitor"], {}
    about |= {"rates": found["false_positive_rates"], "rests_on": found["rests_on"]}
    by_name = {row["method"]: row for row in found["methods"]}
    for row in sorted(table["methods"], key=lambda row: -(row["weighted_f1"] or 0)):
        watch = by_name[row["method"]]
        rows[row["method"]] = {
            "f1": _three(row["weighted_f1"], row["interval"]),
            "minus": _three(row["difference"], row["difference_interval"]),
            "p_in_family": row.get("p_in_family"),
            "could_have_seen": detectable(row["difference_interval"], table["n_documents"]),
            **{name: row[name] for name in ("precision", "recall", "auroc", "candidates")},
            "tpr": [_three(*pair) for pair in zip(watch["tpr"], watch["tpr_interval"], strict=True)],
            "partial_auroc": _three(watch["partial_auroc"], watch["partial_auroc_interval"]),
            "partial_auroc_minus": _three(
                watch["partial_auroc_difference"], watch["partial_auroc_difference_interval"]
            ),
            "false_alarms": _three(watch["false_alarms"], watch["false_alarms_interval"]),
        }
    return {"about": about, "rows": rows}


def _three(value: float | None, ends: Any) -> list[float | None]:
    return [value, *(ends or (None, None))]


def detectable(ends: Any, documents: int) -> float | None:
    """The smallest true difference that this interval's half-width excludes zero for, four times of five."""
    if ends is None:
        return None
    t = stats.t(documents - 1)
    return float((ends[1] - ends[0]) / 2 * (1 + t.ppf(0.8) / t.ppf(0.975)))


def write_data(file: Path, record: Mapping[str, Any], depth: int = 3) -> None:
    """A results file for `docs/findings/data`: a line for each entry so many levels down, eight decimals."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 8)
        if isinstance(value, Mapping):
            return {key: rounded(one) for key, one in value.items()}
        return [rounded(one) for one in value] if isinstance(value, list | tuple) else value

    def text(value: Any, left: int) -> str:
        if not left or not isinstance(value, Mapping):
            return json.dumps(rounded(value), ensure_ascii=False)
        inner = " " * (depth - left + 1)
        lines = [
            f"{inner}{json.dumps(key, ensure_ascii=False)}: {text(one, left - 1)}"
            for key, one in value.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{inner[1:]}}}"

    write_text(file, text(record, depth) + "\n")


def detection(found: Any) -> list[str]:
    """The table of the primary kind, and how it was made."""
    about = found["about"]
    lines = [
        f"`{about['model']}`, {about['data']}, {about['kind']}, layers "
        f"{', '.join(map(str, about['layers']))}: {about['samples']} test samples of "
        f"{about['documents']} held-out documents, {about['concepts']} concepts, seed "
        f"{about['seed']}. F1, precision, recall and AUROC weighted by positive samples; 95 % "
        "intervals over documents, each left out in turn, conditional on train and calibration; paired "
        "differences, * where the interval excludes zero, ** where it does with all differences of the "
        "table read as one family.",
        "",
        "| method | F1 | interval | minus SuperActivators | precision | recall | AUROC |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        sure = (row["p_in_family"] or 1.0) < 0.05
        cells = [_stressed(name), typeset(row["f1"][0]), interval(row["f1"][1:])]
        cells += [difference(row["minus"][0], row["minus"][1:], sure)]
        cells += [typeset(row[metric]) for metric in ("precision", "recall", "auroc")]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _stressed(name: str) -> str:
    return f"**{name}**" if name == "SuperActivators" else name


def monitor(found: Any) -> list[str]:
    """True positives where false ones are few, and false alarms."""
    rates = [f"TPR at {100 * rate:g} %" for rate in found["about"]["rates"]]
    header = ["method", *rates, "partial AUROC", "minus SuperActivators", "false alarms"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, row in found["rows"].items():
        pairs = [typeset(tpr[0]) + f" {interval(tpr[1:])}" * (tpr[0] is not None) for tpr in row["tpr"]]
        area, gap, alarms = row["partial_auroc"], row["partial_auroc_minus"], row["false_alarms"]
        cells = [_stressed(name), *pairs, f"{typeset(area[0])} {interval(area[1:])}"]
        cells += [difference(gap[0], gap[1:], sure=False)]
        cells += [f"{typeset(alarms[0], 2)} {interval(alarms[1:], 2)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", found["about"]["rests_on"]]


def localisation(results: Any) -> list[str]:
    """Token- or patch-level agreement with the labels."""
    block = results["kinds"][results["meta"]["primary_kind"]]
    lines = ["| tokens or patches | F1 | interval | AP | AUROC |", "|---|---|---|---|---|"]
    for row in block["localisation"]:
        lines.append(
            f"| {row['method']} | {typeset(row['f1'])} | {interval(row['f1_interval'])} | "
            f"{typeset(row['average_precision'])} | {typeset(row['auroc'])} |"
        )
    return lines


def trace(results: Any) -> list[str]:
    """Means over concepts by layer."""
    found = results["kinds"][results["meta"]["primary_kind"]]["trace"]
    names = ("auroc", "in_mass_at_fpr", "coverage", "negative_coverage", "tail_gap")
    lines = ["| layer | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for at, layer in enumerate(found["layers"]):
        cells = [f"{found['mean'][name][at]:.3f}" for name in names]
        lines.append(f"| {layer} | " + " | ".join(cells) + " |")
    return lines


def shares(results: Any) -> list[str]:
    """Who writes the gap between in-concept tokens and tokens of negative samples, by concept."""
    block = results["kinds"][results["meta"]["primary_kind"]]
    if "heads" not in block:
        return [f"No ledger: {block['absent']['heads']}"]
    lines = ["| concept at layer | heads | MLPs | embedding |", "|---|---|---|---|"]
    for concept, found in block["heads"]["concepts"].items():
        cells = [found["shares"][f"{part}_share"] for part in ("head", "mlp", "embedding")]
        text = " | ".join("–" if c is None else f"{c:.2f}" for c in cells)
        lines.append(f"| {concept} at {found['layer']} | {text} |")
    return lines


def kinds(results: Any) -> list[str]:
    """Weighted F1 of a few methods for every concept kind."""
    shown = ("SuperActivators", "MaxTok", "Top10%", "MeanTok", "pooled", "always-positive")
    lines = ["| kind | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for kind, block in results["kinds"].items():
        f1 = {m["method"]: m["weighted_f1"] for m in block["detection"]["methods"]}
        cells = [f"{f1[m]:.3f}" if f1.get(m) is not None else "–" for m in shown]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def sections(arguments: list[str]) -> list[str]:
    """What the demo prints beside detection, of every results file."""
    lines: list[str] = []
    for argument in arguments:
        title, _, path = argument.rpartition("=")
        results = read_results(path)
        lines += [f"### {title}: kinds, tokens, layers, writers", ""]
        lines += ["Every kind, weighted F1:", "", *kinds(results), ""]
        lines += ["Localisation, weighted by in-concept tokens:", "", *localisation(results), ""]
        lines += ["How the tail forms, means over concepts:", "", *trace(results), ""]
        lines += ["Shares of the in-minus-out contrast:", "", *shares(results), ""]
    return lines


def main() -> None:
    """Replace what stands between the markers."""
    put(Path(sys.argv[1]), BEGIN, END, "\n".join(sections(sys.argv[2:])))


if __name__ == "__main__":
    main()
