"""The command `sa-plugin`: demo, run, reproduce, check, report.

Nothing here computes anything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from sa_plugin import __version__

MODEL = "what `save_pretrained` wrote, or a name in the cache folder (smollm2), or of the hub (owner/name)"
HOSTS = ("transformer_lens", "nnsight")
DESCRIPTION = (
    "Find concepts in a transformer's activations by their extreme high tail, and write what was "
    "found as results.json and report.html."
)
LINE = '{"text": "a cat sat", "labels": [[2, 5, "animal"]], "document": "book 1"}'


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors of the user's making end it with one line and status 2.

    Args:
        argv: Arguments without the program's name; by default the process's own.

    Returns:
        0, or 1 when a check failed, or 2 when the arguments or the input are wrong.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"sa-plugin: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sa-plugin", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole method on real weights and real text")
    demo.add_argument("--model", default="smollm2", help=MODEL)
    size = demo.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="every passage, layer and kind")
    size.add_argument("--small", action="store_true", help="the smallest setting, for CI")
    demo.add_argument("--split", choices=("plain", "held_out_lemma"), default="plain")
    _add_output(demo)
    demo.set_defaults(command=_demo)

    run = commands.add_parser(
        "run",
        help="the same on a model folder and a JSONL file of yours",
        description="The method on your model and your texts, one JSON object a line.",
        epilog=f"One line of the data, labels as [start, end, concept], end exclusive:\n{LINE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--model", required=True, help=MODEL)
    run.add_argument(
        "--data", type=Path, required=True, help="JSONL: text, labels; id, document, split if you have them"
    )
    run.add_argument("--layers", type=int, nargs="+", help="block indices; all by default")
    _add_output(run)
    run.set_defaults(command=_run)

    cell = commands.add_parser(
        "reproduce",
        help="one cell of the paper's matrix: its tables and figures beside the published numbers",
        description="Run a configuration, or continue it: what is kept in --out is not run again.",
    )
    cell.add_argument("config", nargs="?", help="a TOML file, or a name that --list shows")
    cell.add_argument("--list", action="store_true", help="list the shipped configurations")
    cell.add_argument("--out", type=Path, help="folder for everything; by default reproduced/NAME")
    cell.add_argument("--root", help="folder of your copy of the data")
    cell.add_argument("--model", help=MODEL)
    cell.add_argument("--limit", type=int, help="at most so many samples, rare concepts first")
    cell.set_defaults(command=_reproduce)

    check = commands.add_parser("check", help="run the adapter's laws on a model folder of yours")
    check.add_argument("folder", help=MODEL)
    check.add_argument("--host", choices=HOSTS, default="transformer_lens")
    check.add_argument("--tower", choices=("vision", "text"), help="which half of a CLIP folder")
    check.set_defaults(command=_check)

    report = commands.add_parser("report", help="write the HTML report of a results.json again")
    report.add_argument("results", type=Path)
    report.add_argument("--out", type=Path, default=Path("report.html"))
    report.set_defaults(command=_report)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for the results")
    parser.add_argument("--seed", type=int, default=0)


def _demo(arguments: argparse.Namespace) -> int:
    size = "full" if arguments.full else "small" if arguments.small else "default"
    demo = import_module("sa_transformer_lens.demo")
    demo.demo(arguments.model, size, arguments.split, arguments.out, seed=arguments.seed)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    demo = import_module("sa_transformer_lens.demo")
    demo.run(arguments.model, arguments.data, arguments.out, layers=arguments.layers, seed=arguments.seed)
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from sa_plugin.stages.config import configurations, read_config
    from sa_plugin.stages.reproduce import reproduce

    if arguments.list:
        for name in configurations():
            print(f"{name:24} {read_config(name).title}")
        return 0
    if arguments.config is None:
        raise ValueError("reproduce which cell? Give a TOML file, or a name of --list.")
    config = read_config(arguments.config).with_overrides(
        model=arguments.model, root=arguments.root, limit=arguments.limit
    )
    out = arguments.out or Path("reproduced") / config.name
    reproduce(config, out, say=lambda line: print(line, flush=True))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from sa_plugin.host.check import check_folder

    report = check_folder(arguments.folder, host=arguments.host, tower=arguments.tower)
    print(report)
    return 0 if report.passed else 1


def _report(arguments: argparse.Namespace) -> int:
    from sa_plugin.report.page import write_report
    from sa_plugin.report.schema import read_results

    if not arguments.results.exists():
        raise FileNotFoundError(f"{arguments.results} does not exist: run `sa-plugin demo` first.")
    print(write_report(read_results(arguments.results), arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
