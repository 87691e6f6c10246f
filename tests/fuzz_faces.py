"""Every public function and method, each argument, wrong values: run as a program, which prints a tally.

It runs on its own, without the shape checks that the suite switches on: what is met here is what users
meet. The host is a tiny TransformerLens model; every call has its baseline, which works, and one argument
is changed at a time. See `fuzz/test_fuzz_functions.py`.
"""

import contextlib
import functools
import importlib
import inspect
import io
import json
import re
import signal
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import fuzz_calls
import matplotlib.pyplot
import numpy as np
import tiny
import torch
from fuzzing import Tally
from public_names import calls_of, constructor, for_people, public
from word_data import word_data

import sa_plugin as sa
from sa_plugin import heads, theory, tracing
from sa_plugin._face import arguments_of
from sa_plugin.attribution import Design
from sa_plugin.data import Sample
from sa_plugin.host import Site
from sa_plugin.show import Shown
from sa_plugin.stages import AttributionPart
from sa_transformer_lens import ablation_hooks, logits, prefix_view, steering_hooks

WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-1": lambda: -1,
    "0": lambda: 0,
    "3.7": lambda: 3.7,
    "2**63": lambda: 2**63,
    "2**40": lambda: 2**40,
    "True": lambda: True,
    "''": lambda: "",
    "'x'": lambda: "x",
    "surrogate": lambda: "\ud800",
    "null": lambda: "a\0b",
    "bytes": lambda: b"x",
    "[surrogate]": lambda: ["\ud800"],
    "['x', surrogate]": lambda: ["x", "\ud800"],
    "[]": lambda: [],
    "['x']": lambda: ["x"],
    "[None]": lambda: [None],
    "[nan]": lambda: [float("nan")],
    "(1, 2, 3)": lambda: (1, 2, 3),
    "{}": lambda: {},
    "{'x': 1}": lambda: {"x": 1},
    "object": object,
    "function": lambda: len,
    "class": lambda: int,
    "np nan": lambda: np.float64("nan"),
    "np -7": lambda: np.int64(-7),
    "tensor [3]": lambda: torch.zeros(3),
    "array [2, 0]": lambda: np.zeros((2, 0)),
    "generator": lambda: (one for one in "ab"),
}
compare_module = importlib.import_module("sa_plugin.attribution.compare")
curves_module = importlib.import_module("sa_plugin.generation.steer_curves")
study_module = importlib.import_module("sa_plugin.stages.study")
Calls = fuzz_calls.Calls
LIMIT = 20
"""Seconds of the processor that a call may take."""


def calls(folder: Path) -> Calls:
    """Every function by name, with arguments that work."""
    host = sa.attach(tiny.bridge("gpt2"), progress=False)
    data = word_data(40, documents=10)
    few = sa.Resampling(draws=20)
    statistics = sa.collect(host, data, layers=[0, 1], need=["means", "gram"])
    bank = sa.fit(host, data, "lda", layers=[0, 1], statistics=statistics)
    table = sa.score(host, data, bank)
    detector = sa.calibrate(host, data, bank, scores=table, deltas=(0.1, 0.5))
    concept = detector.concepts[0]
    judge = sa.calibrate(host, data, sa.fit(host, data, "prototype", layers=[0, 1], statistics=statistics))
    sample = next(s for s in data.test.samples if concept in s.positive)
    try:
        objective = sa.objective("global", detector=detector, concept=concept, sample=sample, host=host)
    except ValueError:
        objective = None
    on = {"host": host, "data": data}
    made = {
        "fit": (sa.fit, {**on, "kind": "lda", "statistics": statistics}),
        "collect": (sa.collect, {**on, "layers": 0}),
        "score": (sa.score, {**on, "bank": bank}),
        "calibrate": (sa.calibrate, {**on, "bank": bank, "scores": table, "deltas": (0.1, 0.5)}),
        "trace": (sa.trace, {"scores": table, "resampling": few}),
        "watch": (entered(sa.watch, host.model), {"host": host, "detector": detector}),
        "steer": (
            entered(sa.steer, host.model),
            {"host": host, "detector": detector, "concept": concept, "where": "all"},
        ),
        "steering_hooks": (
            steering_hooks,
            {"host": host, "detector": detector, "concept": concept, "where": "all"},
        ),
        "attach": (sa.attach, {"model": tiny.bridge("gpt2"), "progress": False}),
        "check": (sa.check, {"host_or_model": host}),
        "load": (sa.load, {"source": "shapes", "n": 12, "size": 32}),
        "head_ledger": (sa.head_ledger, {**on, "source": detector, "resampling": few}),
        "tail_waterfall": (sa.tail_waterfall, {**on, "source": detector, "resampling": few}),
        "head_alignment": (sa.head_alignment, {**on, "source": bank, "resampling": few}),
        "rank_heads": (sa.rank_heads, {**on, "detector": detector, "scores": table}),
        "ablate_heads": (
            sa.ablate_heads,
            {**on, "detector": detector, "heads": ["L0H1"], "scores": table, "resampling": few},
        ),
        "ablation_curve": (
            sa.ablation_curve,
            {
                **on,
                "detector": detector,
                "ranking": [(0, 0), (0, 1)],
                "sets": heads.HeadSets((1,), ("random",), 1),
                "resampling": few,
            },
        ),
        "check_theory": (sa.check_theory, {**on, "source": detector, "scores": table, "resampling": few}),
        "advise": (sa.advise, {"scores": table, "tokens": 20, "samples": 10, "resampling": few}),
        "objective": (
            sa.objective,
            {"name": "global", "detector": detector, "concept": concept, "sample": sample},
        ),
        "register_objective": (sa.register_objective, {"name": "mine"}),
        "Resampling": (sa.Resampling, {}),
        "Plan": (sa.Plan, {}),
        "Intervention": (heads.Intervention, {}),
        "HeadSets": (heads.HeadSets, {}),
        "WeightTest": (heads.WeightTest, {}),
        "Conditions": (theory.Conditions, {}),
        "Constants": (theory.Constants, {}),
        "Context": (theory.Context, {"tokens": 20}),
        "TraceOptions": (tracing.TraceOptions, {}),
        "Design": (Design, {}),
        "ablation_hooks": (ablation_hooks, {"host": host, "heads": ["L1H0"], "mode": "mean", "bank": bank}),
        "Detector.from_pretrained": (sa.Detector.from_pretrained, {"folder": folder / "detector"}),
        "ConceptBank.from_vectors": (
            sa.ConceptBank.from_vectors,
            {"vectors": {("a", 0): torch.ones(host.info.d_model)}},
        ),
    }
    texts = [f"a cat sat on mat {k}" for k in range(12)]
    named = {"documents": [str(k) for k in range(12)]}
    pixels = [np.full((8, 8, 3), k, dtype=np.uint8) for k in range(12)]
    corner = np.arange(64).reshape(8, 8) < 9
    flags = [True, False, False, False, False]
    by_heads = {name: [(0, 0)] for name in detector.concepts}
    made |= {
        "compare": (until(sa.compare, compare_module, "_candidates"), {**on, "detector": detector}),
        "steering_curves": (
            until(sa.steering_curves, curves_module, "_plans"),
            {"host": host, "detector": detector, "concept": concept, "judge": judge, "split": data.test},
        ),
        "study": (until(sa.study, study_module, "_record"), on),
        "AttributionPart": (AttributionPart, {}),
        "cross_ablation": (
            heads.cross_ablation,
            {**on, "detector": detector, "heads": by_heads, "scores": table, "resampling": few},
        ),
        "ConceptData.from_texts": (sa.ConceptData.from_texts, {"texts": texts, "labels": ["a", "b"] * 6}),
        "ConceptData.from_token_masks": (
            sa.ConceptData.from_token_masks,
            {"texts": texts, "sample_labels": [["cat"], []] * 6, "masks": [{"cat": flags}, {}] * 6},
        ),
        "ConceptData.from_masks": (
            sa.ConceptData.from_masks,
            {"images": pixels, "masks": [{"corner": corner}, {}] * 6},
        ),
        "Sample": (Sample, {"id": "a", "text": "a cat", "document": "b"}),
        "prefix_view": (prefix_view, {"model": host, "objective": 1}),
        "logits": (logits, {"host": host, "batch": host.batches(list(data.test.samples[:2]))[0]}),
    }
    if objective is not None:
        made["attribute"] = (
            sa.attribute,
            {"host": host, "objective": objective, "sample": sample, "method": "saliency", "preset": "fast"},
        )
    made["ConceptData.from_spans"] = (
        sa.ConceptData.from_spans,
        {"texts": texts, "spans": [[(2, 5, "cat")], []] * 6, **named},
    )
    made["ConceptData.from_words"] = (
        sa.ConceptData.from_words,
        {"words": [["a", "cat"]] * 12, "labels": [[None, "cat"], [None, None]] * 6, **named},
    )
    detector.save_pretrained(folder / "detector")
    owners = {"data": data, "bank": bank, "detector": detector, "table": table, "host": host}
    empty = np.zeros((len(table.tokens.samples), len(bank.concepts)))
    given: dict[str, dict[str, Any]] = {
        "data.split": {"name": "test"},
        "data.subset": {"n": 30},
        "bank.cosines": {"layer": 0},
        "bank.index": {"layer": 0},
        "bank.vector": {"concept": concept, "layer": 0},
        "bank.unit": {"name": concept},
        "bank.only": {"layers": [0], "units": [0]},
        "bank.scaled": {"factor": 2.0},
        "bank.plot": {},
        "table.split": {"name": "test"},
        "table.select": {"samples": np.arange(2)},
        "table.plot": {},
        "table.with_statistic": {"name": "own", "values": empty},
        "detector.find": {"samples": data.test, "scores": table},
        "detector.detect": {"samples": data.test, "scores": table},
        "detector.localise": {"samples": data.test, "scores": table},
        "detector.evaluate": {"split": data.test, "scores": table, "resampling": few},
        "detector.evaluate_tokens": {"samples": data.test, "scores": table, "resampling": few},
        "detector.sweep": {"split": data.test, "scores": table, "resampling": few},
        "detector.save_pretrained": {"folder": folder / "again"},
        "host.batches": {"samples": list(data.test.samples)},
        "host.hook_name": {"site": Site(0, "resid_post")},
        "host.output_projection": {"layer": 0},
        "host.norms": {"layer": 0},
        "host.attention_weights": {"layer": 0},
        "host.hook_changes_output": {"hook_name": host.hook_name(Site(0, "resid_post"))},
    }
    with sa.watch(host, detector) as monitor:
        host.model.generate("a cat sat", max_new_tokens=2, verbose=False, prepend_bos=False)
    owners["monitor"] = monitor
    activations = {site: torch.zeros(1, 2, host.info.d_model) for site in monitor.sites}
    given |= {
        "monitor.feed": {"activations": activations, "ids": torch.tensor([[5, 6]])},
        "monitor.superactivators": {},
    }
    results = {
        "evaluation": detector.evaluate(data.test, scores=table, resampling=few),
        "tail_trace": sa.trace(scores=table, resampling=few),
        "ledger": sa.head_ledger(**on, source=detector, resampling=few),
        "ranking": sa.rank_heads(**on, detector=detector, scores=table),
        "ablation": sa.ablate_heads(**on, detector=detector, heads=["L0H1"], scores=table, resampling=few),
        "waterfall": sa.tail_waterfall(**on, source=detector, resampling=few),
        "alignment": sa.head_alignment(**on, source=bank, resampling=few),
        "report": sa.check_theory(**on, source=detector, scores=table, resampling=few),
    }
    owners |= results
    given |= {
        "evaluation.of": {"method": "superactivator"},
        "tail_trace.plot": {},
        "ledger.column": {"concept": concept},
        "ledger.head_map": {"concept": concept},
        "ledger.share": {"kind": "heads"},
        "ledger.strongest": {},
        "ledger.sheets": {},
        "ledger.plot": {},
        "ranking.of": {"concept": concept},
        "ablation.mean": {"when": "after"},
        "waterfall.column": {"concept": concept},
        "waterfall.heights": {"concept": concept},
        "waterfall.plot": {"concept": concept},
        "alignment.called_by": {"null": "across"},
        "alignment.shared_heads": {},
        "alignment.serves": {"head": "L0H1", "concept": concept},
        "alignment.cosine_at": {"concept": concept},
        "alignment.sheets": {},
        "alignment.plot": {},
        "report.verdict": {"claim": "C1", "concept": concept},
        "report.quantity": {"name": "gap_slope", "concept": concept},
        "report.sheet": {"theorem": "T1", "concept": concept},
    }
    for name, arguments in given.items():
        owner, _, method = name.partition(".")
        made[name] = (getattr(owners[owner], method), arguments)
    case = types.SimpleNamespace(
        **owners, folder=folder, concept=concept, few=few, sample=sample, objective=objective
    )
    return made | fuzz_calls.records() | fuzz_calls.of_results(case) | fuzz_calls.commands(folder)


def until(call: Callable[..., Any], module: Any, step: str) -> Callable[..., Any]:
    """A function up to a step of its module: what computes for minutes is refused before it begins."""

    @functools.wraps(call)
    def begun(*args: Any, **given: Any) -> Any:
        with mock.patch.object(module, step, side_effect=_Begun):
            try:
                return call(*args, **given)
            except _Begun:
                return "begun"

    return begun


def entered(context: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """A context as a function that enters it, generates and leaves it."""

    @functools.wraps(context)
    def generated(*args: Any, **given: Any) -> Any:
        with context(*args, **given) as made:
            model.generate("a cat sat", max_new_tokens=2, verbose=False, prepend_bos=False)
        return made

    return generated


class _Begun(BaseException):
    """The step was reached."""


class _TooLong(BaseException):
    """The time is over."""


def outcome(
    call: Callable[..., Any], arguments: dict[str, Any], argument: str, value: Any
) -> tuple[str, str]:
    """The class of one call, and what it said."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = call(**{**arguments, argument: value})
        if value is None and not takes_none(call, argument):
            return "accepted", "None, where the hint has none"
        return "accepted", type(found).__name__
    except _TooLong:
        return "hang", ""
    except (TypeError, ValueError, OSError, NotImplementedError) as error:
        text = str(error)
        named = any(says(text, name, value) for name in (argument, *inspect.signature(call).parameters))
        named = named or isinstance(error, FileNotFoundError)
        kind = "refused" if named and not isinstance(error, UnicodeError) else "unnamed"
        return kind, f"{type(error).__name__}: {text}"
    except Exception as error:
        ours = isinstance(error, KeyError) and "did you mean" in str(error)
        return ("refused" if ours else "unnamed"), f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        matplotlib.pyplot.close("all")


def says(text: str, argument: str, value: Any) -> bool:
    """Whether a refusal names the argument, in the singular at least, or shows the value."""
    words = (argument, argument.removesuffix("s"), argument.rpartition("_")[2])
    # What data are: samples.
    words += {"data": ("sample",), "of": ("sample_label", "split")}.get(argument, ())
    if isinstance(value, str) and value.strip() and argument in ("path", "out", "results", "data"):
        # A command and a file say a text as it is, or as Python writes it.
        return value in text or repr(value) in text or f"{argument} is" in text or "samples[" in text
    value = value.item() if isinstance(value, np.generic) else value
    return any(re.search(rf"\b{word}", text, re.IGNORECASE) for word in words) or (
        isinstance(value, str | int | float) and not isinstance(value, bool) and repr(value) in text
    )


def takes_none(call: Callable[..., Any], argument: str) -> bool:
    """Whether None may stand there: by default, by the hint, or because the hint says nothing."""
    one = inspect.signature(call).parameters.get(argument)
    return one is None or one.default is None or "None" in str(one.annotation) or "Any" in str(one.annotation)


def too_long(*_: Any) -> None:
    raise _TooLong


def wrong_of(name: str) -> dict[str, Callable[[], Any]]:
    """Wrong values of a function; a command takes texts alone."""
    if not name.startswith("sa-plugin"):
        return WRONG
    shown = ("nan", "-1", "0", "3.7", "2**63", "''", "'x'", "surrogate", "null")
    return {one: functools.partial(lambda make: str(make()), WRONG[one]) for one in shown}


def unfaced(known: Calls) -> tuple[list[str], list[str]]:
    """Public callables that check nothing, and those for people without a call in the grid."""
    have = {id(inspect.unwrap(getattr(call, "__func__", call))) for call, _ in known.values()}
    have |= {id(inspect.unwrap(constructor(call))) for call, _ in known.values() if inspect.isclass(call)}
    open_, missing = [], []
    for name, made in public().items():
        for method, call in calls_of(made):
            shown = f"{name}.{method}".strip(".")
            people = for_people(name, made)
            if not hasattr(call, "__faced__"):
                # What only functions make is not checked when it is made.
                if method or not inspect.isclass(made) or (people and not issubclass(made, Shown)):
                    open_.append(shown)
            elif people and id(inspect.unwrap(call)) not in have and call.__qualname__ not in known:
                missing.append(shown)
    return open_, missing


def held(tally: Tally) -> None:
    """Wrong values against the hints of all that is public, without a call."""
    for name, made in public().items():
        for method, call in calls_of(made):
            for argument, taker in arguments_of(call).takers.items() if hasattr(call, "__faced__") else ():
                for wrong, make in WRONG.items():
                    try:
                        arguments_of(call).taken(argument, make(), taker)
                        kind, about = "taken", ""
                    except (TypeError, ValueError) as error:
                        kind, about = "refused" if f": {argument}" in str(error) else "unnamed", str(error)
                    except Exception as error:
                        kind, about = "unnamed", f"{type(error).__name__}: {error}"
                    tally.add(kind, f"{name}.{method}({argument}={wrong}): {about}")


def main(tries: int, seed: int) -> None:
    """Print the tally as JSON, and every accepted and unnamed case."""
    signal.signal(signal.SIGPROF, too_long)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        known = calls(Path(folder))
        cases = [
            (name, argument, wrong)
            for name, (call, _) in known.items()
            for argument, one in inspect.signature(call).parameters.items()
            if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and argument != "self"
            for wrong in wrong_of(name)
            # What a user's own function does is not ours, and a server is asked by name.
            if (argument, wrong) not in (("reduce", "function"), ("reduce", "class"), ("remote", "True"))
        ]
        cases += [(name, "lyaers", "'x'") for name in known]
        chosen = np.random.default_rng(seed).permutation(len(cases))[: tries or len(cases)]
        tally, seen = Tally(), []
        for k in sorted(chosen):
            name, argument, wrong = cases[k]
            call, arguments = known[name]
            kind, about = outcome(call, arguments, argument, wrong_of(name).get(wrong, WRONG[wrong])())
            tally.add(kind, f"{name}({argument}={wrong}): {about}")
            if kind != "refused":
                one = inspect.signature(call).parameters.get(argument)
                is_bool = one is not None and "bool" in str(one.annotation)
                seen.append([kind, name, argument, wrong, about[:300], is_bool])
        hints = Tally()
        held(hints)
        unchecked, uncalled = unfaced(known)
    told = {"of": len(cases), "tally": dict(tally), "seen": seen, "hints": dict(hints)}
    told |= {"first": hints.first, "unchecked": unchecked, "uncalled": uncalled}
    print(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
