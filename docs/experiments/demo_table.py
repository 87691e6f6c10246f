"""Write detection tables from results.json files into a Markdown file, between its markers.

python docs/experiments/demo_table.py README.md demo_out/results.json
python docs/experiments/demo_table.py docs/findings/results.md NAME=RESULTS.json ...
"""

import sys
from pathlib import Path
from typing import Any

from between_markers import put

from sa_plugin.report import read_results
from sa_plugin.show import interval, typeset
from sa_plugin.stages import difference

BEGIN = "<!-- table: written by docs/experiments/demo_table.py from demo_out/results.json -->"
END = "<!-- end of table -->"
MONITOR = (
    "What a monitor is chosen by: true-positive rate at a false-positive rate and partial AUROC up to 10 % "
    "(standardised, .5 is chance) of the test split's own curve; false alarms of the calibrated threshold, "
    "samples for 1,000 tokens of negative samples"
)


def detection(results: Any) -> list[str]:
    """The table of the primary kind, and how it was made."""
    meta = results["meta"]
    block = results["kinds"][meta["primary_kind"]]
    table = block["detection"]
    lines = [
        f"`{meta['model']}`, {meta['data']}, {meta['primary_kind']}, layers "
        f"{', '.join(map(str, meta['layers']))}: {table['n_samples']} test samples of "
        f"{table['n_documents']} held-out documents, {len(meta['concepts'])} concepts, seed "
        f"{meta['seed']}. F1, precision, recall and AUROC weighted by positive samples; 95 % "
        "intervals over documents, each left out in turn, conditional on train and calibration; paired "
        "differences, * where the interval excludes zero, ** where it does with all differences of the "
        "table read as one family.",
        "",
        "| method | F1 | interval | minus SuperActivators | precision | recall | AUROC |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(table["methods"], key=lambda r: -(r["weighted_f1"] or 0)):
        own = row["method"] == "SuperActivators"
        sure = (row.get("p_in_family") or 1.0) < 0.05
        gap = difference(row["difference"], row["difference_interval"], sure)
        lines.append(
            f"| {'**SuperActivators**' if own else row['method']} | {typeset(row['weighted_f1'])} | "
            f"{interval(row['interval'])} | {gap} | {typeset(row['precision'])} | {typeset(row['recall'])} | "
            f"{typeset(row['auroc'])} |"
        )
    return lines


def monitor(results: Any) -> list[str]:
    """True positives where false ones are few, and false alarms."""
    table = results["kinds"][results["meta"]["primary_kind"]]["detection"]
    found = table["monitor"]
    order = [row["method"] for row in sorted(table["methods"], key=lambda r: -(r["weighted_f1"] or 0))]
    rates = [f"TPR at {100 * rate:g} %" for rate in found["false_positive_rates"]]
    header = ["method", *rates, "partial AUROC", "minus SuperActivators", "false alarms"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in sorted(found["methods"], key=lambda row: order.index(row["method"])):
        own = row["method"] == "SuperActivators"
        cells = ["**SuperActivators**" if own else row["method"]]
        cells += [
            typeset(value) if value is None else f"{typeset(value)} {interval(ends)}"
            for value, ends in zip(row["tpr"], row["tpr_interval"], strict=True)
        ]
        area, alarms = row["partial_auroc"], row["false_alarms"]
        cells.append(f"{typeset(area)} {interval(row['partial_auroc_interval'])}")
        ends = row["partial_auroc_difference_interval"]
        cells.append(difference(row["partial_auroc_difference"], ends, sure=False))
        cells.append(f"{typeset(alarms, 2)} {interval(row['false_alarms_interval'], 2)}")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", found["rests_on"]]


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
    """Tables of every results file, titled where a title was given."""
    lines: list[str] = []
    for argument in arguments:
        title, _, path = argument.rpartition("=")
        results = read_results(path)
        lines += [f"### {title}", ""] if title else []
        lines += [*detection(results), ""]
        if title:
            lines += [f"{MONITOR}:", "", *monitor(results), ""]
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
