"""The command `sa-plugin`: demo, run, reproduce, fit, advise, promise, scan, merge, check, report.

Nothing here computes anything, and nothing heavy is imported before a command needs it: `--help`
answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa_plugin.stages.study import Study

MODEL = "what `save_pretrained` wrote, or a name in the cache folder (smollm2), or of the hub (owner/name)"
DATA = "what `sa_plugin.load` reads: a data set's name, a .jsonl or .csv file, a folder with a metadata.csv"
CORPUS = "a .jsonl, .csv, .tsv or .parquet file, .txt files, pictures, a folder or a pattern of these"
DETECTOR = "folder that Detector.save_pretrained wrote, or a name of the hub"
ROLES = "which column is text (or image), id, document, where they are called otherwise"
LIMIT = "at most so many samples, rare concepts first"
# Written out: importing the modules that own these names would import torch.
HOST = "the library that runs the model: transformer_lens, nnsight, or the name of another adapter"
DTYPES = ("float32", "float16", "bfloat16")
# Two cores, idle, extrapolated from the default setting; the command says so before it starts.
FULL_MINUTES = {"smollm2": 90, "minilm": 25, "vit": 90}
BATCH_TOKENS = 1024
SPLIT = "of the passages; held_out_lemma: words of the test are unseen in training"
BLOCK = "documents of a block, the unit of work, by default %(default)s"
OUT = "folder that is written, by default %(default)s"
LABELS = "which column is text (or image), id, document, and one of label, spans, mask"
COLUMNS = f"of a .csv or .jsonl file: {LABELS}"
STEPS = ("train", "bank", "scores", "detector")
WRITTEN = ("results.json", "report.html")
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
        # A fix that names the function's argument is said as the command has it.
        here = " Here: --column ROLE=NAME, once for each." if "columns=" in str(error) else ""
        print(f"sa-plugin: {error}{here}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sa-plugin", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=version("sa_plugin"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole method on real weights and real text")
    demo.add_argument("--model", default="smollm2", help=MODEL)
    size = demo.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="every passage, layer and kind")
    size.add_argument("--small", action="store_true", help="the smallest setting, for CI")
    demo.add_argument("--split", choices=("plain", "held_out_lemma"), default="plain", help=SPLIT)
    _add_common(demo)
    demo.set_defaults(command=_demo)

    run = commands.add_parser(
        "run",
        help="the same on a model and data of yours",
        description="The method on your model and your data.",
        epilog=f"One line of a .jsonl file, labels as [start, end, concept], end exclusive:\n{LINE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--model", required=True, help=MODEL)
    run.add_argument("--data", required=True, help=DATA)
    run.add_argument("--root", help="folder of your copy, for data that are named")
    said = "of texts labelled as a whole: every token of a positive text is positive (else unknown)"
    run.add_argument("--token-labels", choices=("text",), help=said)
    run.add_argument("--column", action="append", default=[], metavar="ROLE=NAME", help=COLUMNS)
    run.add_argument("--tower", choices=("vision", "text"), help="which half of a CLIP folder")
    run.add_argument("--limit", type=_whole("limit", 2**31 - 1), default=0, help=LIMIT)
    run.add_argument("--layers", type=int, nargs="+", help="block indices; all by default")
    _add_common(run)
    run.set_defaults(command=_run)

    cell = commands.add_parser(
        "reproduce",
        help="one cell of the paper's matrix: its tables and figures beside the published numbers",
        description="Run a configuration, or continue it: what is kept in --out is not run again.",
    )
    cell.add_argument("config", nargs="?", help="a TOML file, or a name that --list shows")
    cell.add_argument("--list", action="store_true", help="list the shipped configurations")
    cell.add_argument("--out", type=_path, help="folder for everything; by default reproduced/NAME")
    cell.add_argument("--root", help="folder of your copy of the data")
    cell.add_argument("--model", help=MODEL)
    cell.add_argument("--limit", type=_whole("limit", 2**31 - 1), help=LIMIT)
    _add_texts(cell)
    cell.set_defaults(command=_reproduce)

    _add_fit(commands)
    _add_advise(commands)
    _add_promise(commands)
    _add_scan(commands)
    check = commands.add_parser("check", help="run the adapter's laws on a model of yours")
    check.add_argument("folder", help=MODEL)
    check.add_argument("--host", default="transformer_lens", help=HOST)
    check.add_argument("--tower", choices=("vision", "text"), help="which half of a CLIP folder")
    check.set_defaults(command=_check)

    report = commands.add_parser("report", help="write the HTML report of a results.json again")
    report.add_argument("results", type=_path, help="a results.json of demo, run or reproduce")
    report.add_argument("--out", type=_path, default=Path("report.html"), help="by default %(default)s")
    _add_texts(report)
    report.set_defaults(command=_report)
    return parser


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="a detector from a labelled corpus of any size",
        description="Fit, calibrate and save a detector, block by block, or go on where that was cut off.",
        epilog="On many machines: --step train --shard I/N on each, --step bank on one, --step scores "
        "--shard I/N on each, --step detector on one. What is done is not done again.",
    )
    fit.add_argument("corpus", help=CORPUS)
    _add_blocks(fit, "fit_out", LABELS)
    fit.add_argument("--kind", default="separator", help="a concept kind")
    fit.add_argument("--layers", type=int, nargs="+", help="block indices; all by default")
    fit.add_argument("--seed", type=_whole("seed", 2**32 - 1), default=0, help="of splits, draws and fit")
    fit.add_argument("--step", choices=STEPS, help="this one alone; by default all, one after another")
    fit.set_defaults(command=_fit)


def _add_advise(commands: Any) -> None:
    advise = commands.add_parser(
        "advise",
        help="what will work at another length than labelled texts have",
        description="Predict which pooling, delta and threshold will work at another length.",
        epilog="Scored are the calibration and test splits: give the corpus and --seed of `sa-plugin fit`, "
        "or a corpus that the detector has not seen.",
    )
    advise.add_argument("detector", help=DETECTOR)
    advise.add_argument("corpus", help=f"labelled: {CORPUS}")
    advise.add_argument(
        "--tokens", type=_whole("tokens", 2**31 - 1), required=True, help="length asked about"
    )
    advise.add_argument("--in-concept", type=float, help="tokens of a positive context in its concept")
    advise.add_argument("--runs", type=_whole("runs", 2**31 - 1), help="into how many runs they fall")
    advise.add_argument("--layer", type=int, help="block index; by default each concept's own")
    advise.add_argument("--concepts", nargs="+", help="all of the detector by default")
    advise.add_argument("--seed", type=_whole("seed", 2**32 - 1), default=0, help="of splits and contexts")
    _add_corpus(advise, "advised", LABELS)
    advise.set_defaults(command=_advise)


def _add_promise(commands: Any) -> None:
    promise = commands.add_parser(
        "promise",
        help="thresholds of a detector that keep a promised rate of false alarms",
        description="Set a detector's thresholds so that a rate of false alarms can be promised, from "
        "documents that chose nothing. Scan takes what is written, and its hits then have p-values.",
    )
    promise.add_argument("detector", help=DETECTOR)
    promise.add_argument("guard", help=f"documents without the concepts: {CORPUS}")
    kinds, said = ("document", "sample", "tokens"), "of what a rate is promised"
    promise.add_argument("--kind", choices=kinds, default=kinds[0], help=said)
    promise.add_argument("--alpha", type=float, required=True, help="the rate, such as .05")
    promise.add_argument("--confidence", type=float, help="of document: how surely this threshold keeps it")
    promise.add_argument("--lengths", type=int, nargs="+", help="shortest and longest text, in kept tokens")
    promise.add_argument("--episodes", type=int, help="of tokens: at most so many runs of alarms count")
    promise.add_argument("--concepts", nargs="+", help="for which it is made; all by default")
    _add_corpus(promise, "promised", ROLES)
    promise.set_defaults(command=_promise)


def _add_scan(commands: Any) -> None:
    scan = commands.add_parser(
        "scan",
        help="find a detector's concepts in a corpus of any size",
        description="Scan a corpus, or go on where a scan was cut off.",
    )
    scan.add_argument("detector", help=DETECTOR)
    scan.add_argument("corpus", help=CORPUS)
    _add_blocks(scan, "scan_out", ROLES)
    scan.add_argument("--window", type=_whole("window", 2**31 - 1), help="tokens, of what is longer than it")
    scan.add_argument("--overlap", type=_whole("overlap", 2**31 - 1), help="tokens that windows share")
    scan.add_argument(
        "--max-bad", type=_whole("max-bad", 2**31 - 1), default=100, help="documents that may fail"
    )
    _add_texts(scan)
    scan.set_defaults(command=_scan)

    merge = commands.add_parser("merge", help="join the shards of a scan, and sum it up")
    merge.add_argument("folders", nargs="+", type=_path, help="of the run, then of shards that lie elsewhere")
    merge.add_argument("--against", type=_path, help="folder of another scan, to compare tails with")
    _add_texts(merge)
    merge.set_defaults(command=_merge)


def _add_blocks(parser: argparse.ArgumentParser, out: str, roles: str) -> None:
    """What all commands that go through a corpus block by block are asked."""
    _add_corpus(parser, out, roles)
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="share I of N, from 0")
    parser.add_argument(
        "--engine", choices=("here", "ray"), default="here", help="this process, or actors of Ray"
    )
    parser.add_argument("--address", help="of a cluster of Ray; else RAY_ADDRESS, else one is begun here")
    parser.add_argument("--workers", type=_whole("workers", 2**31 - 1), default=2, help="actors of Ray")
    parser.add_argument("--cpus", type=float, default=1.0, help="of each actor; so many threads of torch")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each actor; .25 lets four share one")
    parser.add_argument("--block-size", type=_whole("block-size", 2**31 - 1), default=256, help=BLOCK)


def _add_corpus(parser: argparse.ArgumentParser, out: str, roles: str) -> None:
    """What all commands that run a model over a corpus are asked."""
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--host", default="transformer_lens", help=HOST)
    parser.add_argument("--tower", choices=("vision", "text"), help="which half of a CLIP folder")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights")
    parser.add_argument(
        "--device", help="where the model runs, such as cuda:1; by default where it is loaded"
    )
    parser.add_argument("--out", type=_path, default=Path(out), help=OUT)
    parser.add_argument("--column", action="append", default=[], metavar="ROLE=NAME", help=roles)
    parser.add_argument("--lines", action="store_true", help="text files have a document a line")
    said = "tokens of one pass of the model, by default %(default)s"
    parser.add_argument("--batch-tokens", type=_whole("batch-tokens", 2**31 - 1), default=2048, help=said)


def _shard(text: str) -> tuple[int, int]:
    """Reads a share of the work, "3/8"."""
    parts = text.split("/")
    if len(parts) != 2 or not all(one.isascii() and one.isdigit() and len(one) < 10 for one in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no share: give I/N, I from 0 to N - 1, such as 0/8")
    i, n = map(int, parts)
    if not i < n:
        raise argparse.ArgumentTypeError(f"shard {i} of {n} does not exist: I goes from 0 to {n - 1}")
    return i, n


def _whole(name: str, most: int) -> Callable[[str], int]:
    """Reads a whole number from 0, for an option of this name."""

    def read(text: str) -> int:
        # Python reads no number of some thousand digits.
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
            raise argparse.ArgumentTypeError(f"{name} is {text!r}, not a whole number from 0 to {most}")
        return int(text)

    return read


def _path(text: str) -> Path:
    """Reads a path that a file system takes."""
    try:
        # Names that are no UTF-8 come as surrogates that the system takes back; others it does not.
        named = bool(text.strip()) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    return Path(text)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="transformer_lens", help=HOST)
    parser.add_argument("--kind", action="append", help="a concept kind; give it again for several")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights")
    parser.add_argument("--out", type=_path, default=Path("demo_out"), help=OUT)
    said = "of splits, draws and fit, by default %(default)s"
    parser.add_argument("--seed", type=_whole("seed", 2**32 - 1), default=0, help=said)
    _add_texts(parser)


def _add_texts(parser: argparse.ArgumentParser) -> None:
    said = "write no texts and pictures of the data: not into results, report, or anything else of the folder"
    parser.add_argument("--no-texts", dest="texts", action="store_false", help=said)


def _demo(arguments: argparse.Namespace) -> int:
    from sa_plugin._files import output_folder
    from sa_plugin.host.images import processor_of
    from sa_plugin.stages.config import CellConfig, ModelPart, RunPart
    from sa_plugin.stages.demo import demo_passages, demo_plan, demo_scenes
    from sa_plugin.stages.reproduce import open_host, run_plan

    size = "full" if arguments.full else "small" if arguments.small else "default"
    name = Path(arguments.model).name
    if size == "full" and name in FULL_MINUTES:
        print(f"The full setting takes about {FULL_MINUTES[name]} minutes on two idle cores (extrapolated).")
    model = ModelPart(arguments.model, host=arguments.host, dtype=arguments.dtype)
    config = CellConfig(
        "demo", f"{name}, {size} setting", model=model, run=RunPart(batch_tokens=BATCH_TOKENS)
    )
    with output_folder(arguments.out, *WRITTEN):
        host = open_host(config)
        images = processor_of(host) is not None
        seed = arguments.seed
        data = demo_scenes(size, seed) if images else demo_passages(size, arguments.split, seed)
        plan = demo_plan(host.info.n_layers, size, seed, images=images).only(arguments.kind)
        work = partial(run_plan, plan, host, data, arguments.out, texts=arguments.texts)
        return _finish(work, arguments.out)


def _run(arguments: argparse.Namespace) -> int:
    from sa_plugin._files import output_folder
    from sa_plugin.stages.config import CellConfig, DataPart, ModelPart, RunPart
    from sa_plugin.stages.plan import Plan
    from sa_plugin.stages.reproduce import open_data, open_host, run_plan
    from sa_plugin.statistics.drawn import Resampling

    seed, labels = arguments.seed, arguments.token_labels
    options: dict[str, Any] = {} if labels is None else {"token_labels": labels}
    if arguments.column:
        options["columns"] = dict(_column(text) for text in arguments.column)
    config = CellConfig(
        "run",
        arguments.model,
        model=ModelPart(
            arguments.model, host=arguments.host, tower=arguments.tower or "", dtype=arguments.dtype
        ),
        data=DataPart(arguments.data, arguments.root or "", arguments.limit, options=options),
        run=RunPart(seed=seed, batch_tokens=BATCH_TOKENS),
    )
    kinds = arguments.kind or ("prototype", "separator")
    plan = Plan(kinds, arguments.layers or (), resampling=Resampling(seed=seed), seed=seed)
    with output_folder(arguments.out, *WRITTEN):
        data = open_data(config)
        host = open_host(config)
        work = partial(run_plan, plan, host, data, arguments.out, texts=arguments.texts)
        return _finish(work, arguments.out)


def _finish(work: Callable[..., Study], out: Path) -> int:
    """Run, saying how long each stage took, and print everything that was found."""
    from sa_plugin.stages.examples import marked

    begun = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - begun:5.0f} s] {line}", flush=True)

    try:
        found = work(say=say)
    except OSError as error:
        # What could not be written is shown: a full disk must not cost the hours behind it.
        if (unwritten := getattr(error, "study", None)) is not None:
            print(f"\n{unwritten}\n\n{marked(unwritten.record)}", flush=True)
        raise
    print(f"\n{found}\n\n{marked(found.record)}")
    print(f"\n{time.perf_counter() - begun:.0f} s. {out / 'results.json'}, {out / 'report.html'}")
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from sa_plugin.stages.config import configurations, read_config
    from sa_plugin.stages.reproduce import reproduce
    from sa_plugin.stages.tail_cells import read_design, tail_designs

    designs = tail_designs()
    if arguments.list:
        for name in configurations():
            print(f"{name:24} {read_config(name).title}")
        for name in designs:
            print(f"{name:24} {read_design(name).title}")
        return 0
    if arguments.config is None:
        raise ValueError("reproduce which cell? Give a TOML file, or a name of --list.")
    if arguments.config in designs:
        return _tail_law(arguments)
    config = read_config(arguments.config).with_overrides(
        model=arguments.model, root=arguments.root, limit=arguments.limit
    )
    out = arguments.out or Path("reproduced") / config.name
    reproduce(config, out, texts=arguments.texts, say=lambda line: print(line, flush=True))
    return 0


def _fit(arguments: argparse.Namespace) -> int:
    from sa_plugin._files import writable_folder
    from sa_plugin.concepts.collect import collect, collect_blocks
    from sa_plugin.concepts.fit import fit
    from sa_plugin.concepts.kinds import kind_of
    from sa_plugin.concepts.saved import load_bank, save_bank
    from sa_plugin.concepts.train_statistics import RowLimits
    from sa_plugin.data.splits import Splits
    from sa_plugin.detection.calibrate import calibrate
    from sa_plugin.loaders.labelled import labelled_corpus
    from sa_plugin.scores.score import score, score_blocks

    need, steps = kind_of(arguments.kind).need, STEPS if arguments.step is None else (arguments.step,)
    i, n = arguments.shard
    if n > 1 and arguments.step not in ("train", "scores"):
        raise ValueError(f"--shard {i}/{n} is a share of --step train or of --step scores: name one of them.")
    out = writable_folder(arguments.out).absolute()
    train, bank, scores, detector = (out / name for name in STEPS)
    if "bank" not in steps and "train" not in steps and not bank.exists():
        raise FileNotFoundError(f"{bank} does not exist: --step train and --step bank come first.")
    seed, columns = arguments.seed, dict(_column(text) for text in arguments.column) or None
    given = {"block_size": arguments.block_size, "columns": columns, "lines": arguments.lines}
    data = labelled_corpus(arguments.corpus, splits=Splits(seed=seed), **given)
    asked = {"layers": arguments.layers, "need": tuple(dict.fromkeys(("means", need))), "seed": seed}
    engine, attaching = _engine_of(arguments), partial(_host_of, arguments)
    attach: Callable[[], Any] = cache(attaching) if engine == "here" else attaching
    share: dict[str, Any] = {"shard": arguments.shard, "engine": engine}
    if "train" in steps:
        collect_blocks(attach, data, train, **share, **asked)
    if "bank" in steps:
        host = attach()
        statistics = collect(host, data, limits=RowLimits(folder=train), **asked)
        made = fit(host, data, arguments.kind, layers=arguments.layers, statistics=statistics, seed=seed)
        save_bank(made, bank)
    if "scores" in steps:
        score_blocks(attach, data, load_bank(bank), scores, **share)
    if "detector" in steps:
        host, fitted = attach(), load_bank(bank)
        table = score(host, data, fitted, folder=scores)
        found = calibrate(host, data, fitted, scores=table, seed=seed)
        found.save_pretrained(detector)
        print(f"{found.evaluate(data.test, scores=table)}\n\n{detector}")
        return 0
    share_of = f", share {i} of {n}," if n > 1 else ""
    print(f"{data}\n--step {arguments.step}{share_of} is done, in {out}.")
    return 0


def _engine_of(arguments: argparse.Namespace) -> Any:
    from sa_plugin.passes.cluster import RayPool

    if Path(arguments.model).exists():
        # Workers of Ray have folders of their own to begin in.
        arguments.model = str(Path(arguments.model).absolute())
    pool = RayPool(arguments.workers, arguments.cpus, arguments.gpus, arguments.address)
    return "here" if arguments.engine == "here" else pool


def _tail_law(arguments: argparse.Namespace) -> int:
    from sa_plugin.stages.tail_cells import read_design
    from sa_plugin.stages.tail_judged import tried

    for name in ("model", "limit"):
        if getattr(arguments, name) is not None:
            raise ValueError(
                f"--{name} is {getattr(arguments, name)!r}: models and sizes of {arguments.config} stand in "
                "its design, since its cells were chosen beforehand. Leave it out."
            )
    out = arguments.out or Path("reproduced") / arguments.config
    tried(read_design(arguments.config), out, root=arguments.root, say=lambda line: print(line, flush=True))
    return 0


def _advise(arguments: argparse.Namespace) -> int:
    from sa_plugin._check import require_known
    from sa_plugin._files import writable_folder
    from sa_plugin.data.splits import Splits
    from sa_plugin.detection.detector import Detector
    from sa_plugin.loaders.labelled import labelled_corpus
    from sa_plugin.scores.score import score
    from sa_plugin.statistics.drawn import Resampling
    from sa_plugin.theory.advise import advise
    from sa_plugin.theory.tail_law import Context

    tokens, in_concept, runs = arguments.tokens, arguments.in_concept, arguments.runs
    # All that can be refused without a model is refused before one is loaded.
    Context(tokens, 1.0 if in_concept is None else in_concept, 1 if runs is None else runs)
    columns = dict(_column(text) for text in arguments.column) or None
    splits, lines = Splits(seed=arguments.seed), arguments.lines
    data = labelled_corpus(arguments.corpus, splits=splits, columns=columns, lines=lines)
    bank = Detector.from_pretrained(arguments.detector).bank
    for name in arguments.concepts or ():
        require_known("concept", name, bank.concepts)
    if arguments.layer is not None:
        bank.index(arguments.layer)
    out = writable_folder(arguments.out)
    scores = score(_host_of(arguments), data, bank)
    asked = {"tokens": tokens, "in_concept": in_concept, "runs": runs, "layer": arguments.layer}
    found = advise(scores, arguments.concepts, resampling=Resampling(seed=arguments.seed), **asked)
    print(f"{found}\n\n{found.headline()}\n{found.save(out / 'advice.json')}")
    return 0


def _promise(arguments: argparse.Namespace) -> int:
    from sa_plugin._files import writable_folder
    from sa_plugin.detection.detector import Detector
    from sa_plugin.detection.promised import require_documents
    from sa_plugin.host.tokens import naming_of
    from sa_plugin.loaders.corpus import open_corpus
    from sa_plugin.statistics.conformal import Promise

    lengths, concepts = ((tuple(one) if one else None) for one in (arguments.lengths, arguments.concepts))
    promise = Promise(
        arguments.kind, arguments.alpha, arguments.confidence, lengths, arguments.episodes, concepts
    )
    columns = dict(_column(text) for text in arguments.column) or None
    guard = open_corpus(arguments.guard, columns=columns, lines=arguments.lines)
    # All that can be refused without a model is refused before one is loaded.
    require_documents(promise, guard.samples())
    out = writable_folder(arguments.out)
    Detector.from_pretrained(arguments.detector)
    host = _host_of(arguments)
    detector = Detector.from_pretrained(arguments.detector, host=host)
    made = detector.with_promise(promise, guard.samples(naming_of(host)))
    print(f"{made}\n\n{made.save_pretrained(out)}")
    return 0


def _scan(arguments: argparse.Namespace) -> int:
    from sa_plugin._files import writable_folder
    from sa_plugin.detection.detector import Detector
    from sa_plugin.scanning.folder import opened_for
    from sa_plugin.scanning.run import scan
    from sa_plugin.scanning.windows import Windows

    columns = dict(_column(text) for text in arguments.column) or None
    windows = Windows(arguments.window, arguments.overlap)
    # All that can be refused without a model is refused before one is loaded.
    asked = {"block_size": arguments.block_size, "columns": columns, "lines": arguments.lines}
    corpus = opened_for(arguments.corpus, writable_folder(arguments.out), **asked)
    engine = _engine_of(arguments)
    detector = Detector.from_pretrained(arguments.detector)
    more = {"windows": windows, "texts": arguments.texts, "max_bad": arguments.max_bad}
    more |= {"shard": arguments.shard, "engine": engine}
    found = scan(partial(_host_of, arguments), detector, corpus, arguments.out, **more)
    i, n = arguments.shard
    if n > 1:
        print(f"Shard {i} of {n} is done; when all are: sa-plugin merge {arguments.out}")
        return 0
    assert found is not None
    return _say_found(found, arguments.out, arguments.texts)


def _column(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--column {text!r}: give ROLE=NAME, such as text=body.")
    return role, name


def _host_of(arguments: argparse.Namespace) -> Any:
    import torch

    from sa_plugin.host.folders import open_folder

    options: dict[str, Any] = {"batch_tokens": arguments.batch_tokens}
    if arguments.device is not None:
        if arguments.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(
                f"--device {arguments.device}: torch {torch.__version__} sees no GPU here; leave --device "
                "out to run on the CPU, or install a build of torch for your GPU."
            )
        options["device"] = arguments.device
    dtype = getattr(torch, arguments.dtype)
    return open_folder(arguments.model, arguments.host, dtype=dtype, tower=arguments.tower, **options)


def _merge(arguments: argparse.Namespace) -> int:
    from sa_plugin.scanning.merge import merge
    from sa_plugin.scanning.summary import summary

    folder, *others = arguments.folders
    found = merge(folder, *others)
    if arguments.against is not None:
        found = summary(folder, against=arguments.against)
    return _say_found(found, folder, arguments.texts)


def _say_found(found: Any, folder: Path, texts: bool) -> int:
    """Write what a scan found as JSON and as a page, and print it."""
    written = (found.save(folder / "summary.json", texts=texts), folder / "summary.html")
    found.write_page(written[1], texts=texts)
    print(
        f"{found}\n\n{', '.join(map(str, (folder / 'hits.parquet', folder / 'samples.parquet', *written)))}"
    )
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from sa_plugin.host.checks import check_folder

    report = check_folder(arguments.folder, host=arguments.host, tower=arguments.tower)
    print(report)
    return 0 if report.passed else 1


def _report(arguments: argparse.Namespace) -> int:
    from sa_plugin.report.page import write_report
    from sa_plugin.report.record import read_results

    if not arguments.results.exists():
        raise FileNotFoundError(f"{arguments.results} does not exist: give the results.json of a run.")
    print(write_report(read_results(arguments.results), arguments.out, texts=arguments.texts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
