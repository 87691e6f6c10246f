"""Write detection tables from results.json files into a Markdown file, between its markers.

python docs/demo_table.py README.md demo_out/results.json
python docs/demo_table.py docs/results.md NAME=RESULTS.json ...
"""

import sys
from pathlib import Path
from typing import Any

from sa_plugin.results import read_results

BEGIN = "<!-- table: written by docs/demo_table.py from demo_out/results.json -->"
END = "<!-- end of table -->"


def detection(results: Any) -> list[str]:
    """The table of the primary kind, and how it was made."""
    meta = results["meta"]
    block = results["kinds"][meta["primary_kind"]]
    table = block["detection"]
    lines = [
        f"`{meta['model']}`, {meta['data']}, {meta['primary_kind']}, layers "
        f"{', '.join(map(str, meta['layers']))}: {table['n_samples']} test passages of "
        f"{table['n_documents']} held-out documents, {len(meta['concepts'])} concepts, seed "
        f"{meta['seed']}. F1, precision, recall and AUROC weighted by positive passages; 95 % "
        "intervals over documents, conditional on train and calibration; paired differences, * "
        "where the interval excludes zero.",
        "",
        "| method | F1 | interval | minus SuperActivators | precision | recall | AUROC |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(table["methods"], key=lambda r: -(r["weighted_f1"] or 0)):
        by = row["difference_interval"]
        difference = ""
        if by is not None:
            star = " *" if by[0] > 0 or by[1] < 0 else ""
            difference = f"{row['difference']:+.3f} [{by[0]:+.3f}, {by[1]:+.3f}]{star}"
        low, high = row["interval"]
        name = f"**{row['method']}**" if row["method"] == "SuperActivators" else row["method"]
        lines.append(
            f"| {name} | {row['weighted_f1']:.3f} | [{low:.3f}, {high:.3f}] | {difference} | "
            f"{row['precision']:.3f} | {row['recall']:.3f} | {row['auroc']:.3f} |"
        )
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
            lines += ["Every kind:", "", *kinds(results), ""]
    return lines


def main() -> None:
    """Replace what stands between the markers."""
    target = Path(sys.argv[1])
    text = target.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    body = "\n".join(["", "", *sections(sys.argv[2:])])
    target.write_text(f"{head}{BEGIN}{body}{END}{tail}")


if __name__ == "__main__":
    main()
