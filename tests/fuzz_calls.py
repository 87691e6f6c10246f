"""Calls that work, of what is public: records that people make, methods of results, adapters, commands.

`fuzz_faces` changes one argument at a time. The questions themselves stand there; here is the rest.
"""

import contextlib
import functools
import inspect
import io
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import fake_results
import numpy as np
import tiny
import torch
from fake_host import FakeHost

import sa_interp_engine
import sa_nnsight
import sa_plugin as sa
import sa_transformer_lens
from sa_nnsight import Patience, trace_setup
from sa_nnsight.host import attach_local
from sa_plugin import concepts, data, heads, host, loaders, report, scores, stages, statistics
from sa_plugin.attribution import forward_func, heat_maps, together
from sa_plugin.cli import main
from sa_transformer_lens import explain, towers
from sa_transformer_lens.host import attach_bridge, load_bridge, own_tokenizer

Calls = dict[str, tuple[Callable[..., Any], dict[str, Any]]]
ONE = np.ones((2, 2, 3), np.uint8)
MASK = np.eye(2, dtype=bool)
CHAT = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "sat"}]


LABELLED = {"text": "text", "label": "label"}


def records() -> Calls:
    """Records by their constructors, and the functions of `sa_plugin.data`."""
    boxes = np.array([[0.0, 0.0, 2.0, 2.0]])
    samples = [data.Sample(str(k), f"a cat {k}", str(k), positive=frozenset({"c"})) for k in range(9)]
    picture = data.Image(ONE, {"c": MASK})
    labels = data.SampleLabels([["c"], []], [[], []])
    processor = host.Processor((4, 4), 2)
    corpus = loaders.open_corpus(["a cat"])
    losses = statistics.share_losses(np.arange(9.0), np.arange(9))
    tail = statistics.ExactTail([0.0, 1.0])
    return {
        "Corpus.blocks": (corpus.blocks, {"shard": (0, 1)}),
        "Corpus.read": (corpus.read, {"block": 0, "named": None}),
        "Span": (data.Span, {"start": 0, "end": 2, "concept": "c"}),
        "SampleLabels": (data.SampleLabels, {"of": [["c"], []], "unknown": [[], []]}),
        "SampleLabels.positive_of": (labels.positive_of, {"k": 0}),
        "SampleLabels.unknown_of": (labels.unknown_of, {"k": 0}),
        "Splits": (data.Splits, {}),
        "PixelLabels": (data.PixelLabels, {"masks": [{"c": MASK}]}),
        "Image": (data.Image, {"pixels": ONE, "masks": {"c": MASK}}),
        "Image.has": (picture.has, {"concept": "c", "boxes": boxes}),
        "Image.may_have": (picture.may_have, {"concepts": ["c"], "boxes": boxes}),
        "Geometry": (data.Geometry, {"scale": (1.0, 1.0), "shift": (0.0, 0.0), "size": (4, 4), "patch": 2}),
        "Chat": (data.Chat, {"messages": CHAT}),
        "TokenIds": (data.TokenIds, {"ids": [1, 2]}),
        "Sample.of": (data.Sample.of, {"sample": "a cat"}),
        "Sample.only": (samples[0].only, {"concepts": ["c"]}),
        "Sample.token_text": (samples[0].token_text, {"edges": np.array([0, 1])}),
        "Sample.token_labels": (
            samples[0].token_labels,
            {"offsets": np.array([[0, 1], [2, 5]]), "concepts": ["c"]},
        ),
        "Sample.token_known": (
            samples[0].token_known,
            {"offsets": np.array([[0, 1], [2, 5]]), "labels": np.zeros((2, 1), bool), "concepts": ["c"]},
        ),
        "ConceptData.from_samples": (sa.ConceptData.from_samples, {"samples": samples}),
        "as_split": (data.as_split, {"samples": ["a cat"], "concepts": ("c",)}),
        "coverage": (data.coverage, {"mask": MASK, "boxes": boxes}),
        "split_documents": (data.split_documents, {"samples": samples, "concepts": ["c"]}),
        "tag_concepts": (data.tag_concepts, {"found": ["B-PER", "O"]}),
        "text_key": (data.text_key, {"text": "a"}),
        "Site": (host.Site, {"layer": 0, "point": "resid_post"}),
        "Options": (host.Options, {}),
        "Processor": (host.Processor, {"size": (4, 4), "patch": 2}),
        "Processor.geometry": (processor.geometry, {"image": (8, 8)}),
        "Processor.pixel_values": (processor.pixel_values, {"pixels": np.ones((8, 8, 3), np.uint8)}),
        "Processor.shown": (processor.shown, {"image": (8, 8)}),
        "layers_at": (host.layers_at, {"percent": 50, "n_layers": 4}),
        "find_folder": (host.find_folder, {"model": "."}),
        "RowLimits": (concepts.RowLimits, {}),
        "Pruning": (concepts.Pruning, {}),
        "Wording": (scores.Wording, {}),
        "Patience": (Patience, {}),
        "open_corpus": (loaders.open_corpus, {"source": ["a cat"], "columns": {"text": "t"}}),
        "labelled_corpus": (
            loaders.labelled_corpus,
            {"source": [{"text": f"a cat {k}", "label": "c"} for k in range(40)], "columns": LABELLED},
        ),
        "shapes": (loaders.shapes, {"n": 12, "size": 32}),
        "CellConfig": (stages.CellConfig, {"name": "a", "title": "b"}),
        "DataPart": (stages.DataPart, {}),
        "ModelPart": (stages.ModelPart, {}),
        "RunPart": (stages.RunPart, {}),
        "ExactTail": (statistics.ExactTail, {"cuts": [0.0, 1.0]}),
        "ExactTail.quantiles": (tail.quantiles, {"q": [0.5]}),
        "ExactTail.reaching": (tail.reaching, {"thresholds": [0.5, 1.5]}),
        "skewness": (statistics.skewness, {"values": np.arange(9.0)}),
        "read_results": (report.read_results, {"path": "results.json"}),
        "Promise": (sa.Promise, {"kind": "document", "alpha": 0.05}),
        "Promise.bands": (sa.Promise("document", 0.05).bands, {"longest": 9}),
        "confident_rank": (statistics.confident_rank, {"n": 99, "alpha": 0.05, "confidence": 0.9}),
        "document_threshold": (statistics.document_threshold, {"maxima": np.arange(9.0), "alpha": 0.2}),
        "share_losses": (statistics.share_losses, {"value": np.arange(9.0), "document": np.arange(9)}),
        "risk_threshold": (statistics.risk_threshold, {"losses": losses, "n": 9, "alpha": 0.2}),
        "p_of_documents": (statistics.p_of_documents, {"scores": np.ones(1), "maxima": np.arange(9.0)}),
        "p_of_tokens": (statistics.p_of_tokens, {"scores": np.ones(1), "losses": losses, "n": 9}),
        "discoveries": (statistics.discoveries, {"p": np.array([0.01, 0.5]), "q": 0.2, "floor": 0.01}),
        "episode_losses": (
            statistics.episode_losses,
            {"score": np.arange(9.0), "sample": np.arange(9), "document": np.arange(9), "most": 1},
        ),
        "Plan.only": (sa.Plan(kinds=("lda",)).only, {"kinds": ["lda"]}),
        "Plan.layers_of": (sa.Plan(kinds=("lda",)).layers_of, {"n_layers": 3}),
        "transformer_lens.load_model": (sa_transformer_lens.load_model, {"folder": "."}),
        "transformer_lens.load_hooked": (sa_transformer_lens.load_hooked, {"folder": "."}),
        "nnsight.load_model": (sa_nnsight.load_model, {"folder": "."}),
        "interp_engine.load_model": (sa_interp_engine.load_model, {"folder": "."}),
        "load_bridge": (load_bridge, {"folder": "."}),
        "own_tokenizer": (own_tokenizer, {"tokenizer": tiny.tokenizer("gpt2")}),
        "bare_bridge": (
            towers.bare_bridge,
            {"model": tiny.hf_model("gpt2").transformer, "tokenizer": tiny.tokenizer("gpt2")},
        ),
    }


def of_results(case: types.SimpleNamespace) -> Calls:
    """Methods of what the questions return, and what takes a model.

    Args:
        case: Its fields are by the names that `fuzz_faces` gives them.
    """
    detector, table, bank, model = case.detector, case.table, case.bank, case.host
    concept, few, sample = case.concept, case.few, case.sample
    batch = model.batches([sample])[0]
    site = host.Site(0, "resid_post")
    values = model.input_values(batch)
    evaluation = detector.evaluate(case.data.test, scores=table, resampling=few)
    drawn = next(iter(evaluation.numbers().values()))
    axis = next(iter(drawn.axes))
    hits = detector.detect(case.data.test, scores=table)
    tokens = detector.localise(case.data.test, scores=table)
    guarded = sa.calibrate(
        model, case.data, bank, scores=table, promise=sa.Promise("document", 0.4), guard=["a cat sat"] * 3
    )
    tested = guarded.detect(["a cat sat"])
    on = {"host": model, "data": case.data, "detector": detector}
    ranking = sa.rank_heads(**on, scores=table, permutations=1)
    sets = heads.HeadSets((1,), ("random", "permuted"), 1)
    curve = sa.ablation_curve(**on, ranking=ranking, sets=sets, resampling=few)
    by_heads = {name: [(0, 0)] for name in detector.concepts}
    cross = heads.cross_ablation(**on, heads=by_heads, scores=table, resampling=few)
    run = next(one for one in curve.runs if one.family != "top")
    one = heads.explain_tokens(model, detector, sample, concept)
    plan = sa.Plan(("prototype",), stages=("detection",), resampling=few)
    found = sa.study(FakeHost(), case.data, plan)
    made: Calls = {
        "Drawn.sel": (by_names(drawn.sel, [axis]), {axis: drawn.axes[axis][0]}),
        "Drawn.mean": (drawn.mean, {"axis": axis}),
        "Drawn.rows": (drawn.rows, {"measure": "f1"}),
        "Drawn.like": (drawn.like, {"values": drawn.values}),
        "Shown.save": (evaluation.save, {"path": case.folder / "evaluation.json"}),
        "Detection.of": (hits.of, {"sample": hits.samples[0]}),
        "Localisation.of": (tokens.of, {"concept": concept}),
        "Detection.discoveries": (tested.discoveries, {"q": 0.9}),
        "Calibration.p_values": (guarded.p_values, {"concept": concept, "scores": [0.5]}),
        "Calibration.choice": (detector.choice, {"concept": concept}),
        "Calibration.pick": (detector.pick, {"scores": table, "split": case.data.test}),
        "Calibration.token_scores": (detector.token_scores, {"table": table}),
        "Calibration.superactivators": (detector.superactivators, {"table": table}),
        "Calibration.threshold_at": (
            detector.threshold_at,
            {"delta": np.zeros(len(detector.concepts), dtype=np.int64)},
        ),
        "Detector.with_promise": (
            detector.with_promise,
            {"promise": sa.Promise("document", 0.4), "guard": ["a cat sat"] * 3},
        ),
        "Detector.scores_of": (detector.scores_of, {"scores": table, "split": case.data.test}),
        "ConceptBank.sinks_on": (bank.sinks_on, {"info": model.info}),
        "AblationCurve.of": (curve.of, {"k": run.k, "family": run.family}),
        "AblationCurve.after": (curve.after, {"k": run.k, "family": run.family}),
        "AblationCurve.margin": (curve.margin, {"k": run.k, "family": run.family}),
        "AblationCurve.clear": (curve.clear, {"metric": curve.metrics[0], "k": 1, "family": run.family}),
        "AblationCurve.verdict": (curve.verdict, {"k": 1}),
        "AblationCurve.answer": (curve.answer, {"k": 1, "metric": "auroc"}),
        "TokenLedger.plot": (one.plot, {}),
        "TokenLedger.strongest": (one.strongest, {"token": 0}),
        "Study.detector": (found.detector, {}),
        "Study.scores": (found.scores, {}),
        "Study.results": (found.results, {}),
        "Study.plot": (found.plot, {}),
        "Study.report": (found.report, {"path": case.folder / "page.html"}),
        "Study.save": (found.save, {"path": case.folder / "study"}),
        "transformer_lens.accept": (sa_transformer_lens.accept, {"model": tiny.bridge("gpt2")}),
        "nnsight.accept": (sa_nnsight.accept, {"model": tiny.nnsight_model("gpt2")}),
        "Ablation.mean": (case.ablation.mean, {"when": "after"}),
        "CrossAblation.effect": (cross.effect, {"side": "own"}),
        "HeadLedger.beyond_control": (case.ledger.beyond_control, {}),
        "Waterfall.shown": (case.waterfall.shown, {"column": 0}),
        "TheoryReport.plot": (case.report.plot, {}),
        "TheoryReport.plot_quantity": (case.report.plot_quantity, {"name": "gap_slope", "concept": concept}),
        "TheoryReport.plot_tenths": (case.report.plot_tenths, {"concept": concept, "layer": 0}),
        "save_bank": (concepts.save_bank, {"bank": bank, "folder": case.folder / "bank"}),
        "load_bank": (concepts.load_bank, {"folder": concepts.save_bank(bank, case.folder / "kept")}),
        "LocalHost.read": (model.read, {"batch": batch, "sites": [site], "reduce": _nothing}),
        "LocalHost.edited": (lambda edits: enter(model.edited(edits)), {"edits": {host.Site(0, "z"): _same}}),
        "LocalHost.forward_inputs": (model.forward_inputs, {"sample": sample}),
        "LocalHost.input_values": (model.input_values, {"batch": batch}),
        "LocalHost.forward_from": (model.forward_from, {"values": values, "batch": batch, "site": site}),
        "LocalHost.forward_sites": (model.forward_sites, {"values": values, "batch": batch, "sites": [site]}),
        "LocalHost.laws": (model.laws, {"samples": list(case.data.test.samples[:2])}),
        "LocalHost.check_writable": (model.check_writable, {"hook_name": model.hook_name(host.Site(0, "z"))}),
        "attach_bridge": (attach_bridge, {"bridge": tiny.bridge("gpt2"), "progress": False}),
        "attach_local": (attach_local, {"model": tiny.nnsight_model("gpt2"), "progress": False}),
        "TransformerLensHost.explain": (
            model.explain,
            {
                "objective": case.objective,
                "sample": sample,
                "replaced": np.arange(batch.valid.shape[1]) == 1,
                "mean_embedding": None,
            },
        ),
        "push_vector": (concepts.push_vector, {"bank": bank, "concept": concept, "layer": bank.layers[0]}),
        "neuronpedia_vector": (
            concepts.neuronpedia_vector,
            {"bank": bank, "concept": concept, "layer": bank.layers[0], "model_id": "m"},
        ),
        "ConceptBank.to_direction_set": (bank.to_direction_set, {"layer": bank.layers[0]}),
        "ScoreTable.passages": (table.passages, {"unit": bank.units[0], "layer": bank.layers[0]}),
        "concept": (trace_setup.concept, {"detector": detector, "name": concept, "host": model}),
        "watched": (trace_setup.watched, {"detector": detector, "host": model}),
        "inputs_of": (trace_setup.inputs_of, {"detector": detector, "sample": sample, "host": model}),
    }
    if case.objective is not None:
        attributed = sa.attribute(model, case.objective, sample, method="saliency", preset="fast")
        resid = torch.zeros(1, len(case.objective.tail), model.info.d_model)
        words = np.ones(len(case.objective.tail), bool)
        made |= {
            "Objective.metric": (case.objective.metric, {"resid": resid}),
            "Attribution.top": (attributed.top, {}),
            "forward_func": (forward_func, {"host": model, "objective": case.objective, "sample": sample}),
            "together": (together, {"objectives": [case.objective]}),
            "heat_maps": (heat_maps, {"shown": [attributed]}),
            "goal": (trace_setup.goal, {"objective": case.objective}),
            "corrupted": (
                explain.corrupted,
                {"ids": torch.arange(len(words))[None], "replaced": ~words, "seed": 0, "words": words},
            ),
        }
    return made


def by_names(call: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    """A function of any keywords as one that has these, which the grid reads."""
    given = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]

    @functools.wraps(call)
    def named(**values: Any) -> Any:
        return call(**values)

    named.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
    return named


def _nothing(_: Any) -> dict[Any, torch.Tensor]:
    return {}


def _same(z: torch.Tensor, _: Any) -> torch.Tensor:
    return z


def enter(context: Any) -> None:
    """What a context refuses, it refuses when it is entered."""
    with contextlib.suppress(_Left), context:
        raise _Left


class _Left(Exception):
    """Out of a context whose edits nothing used."""


def commands(folder: Path) -> Calls:
    """Each command with its options as arguments; up to where a model is opened."""
    report.write_results(fake_results.small(), folder / "results.json")
    (folder / "own.jsonl").write_text('{"text": "a cat", "labels": [[2, 5, "c"]]}\n')
    common = {"host": "nnsight", "kind": "lda", "dtype": "float32", "out": "out", "seed": "0"}
    given = {
        "demo": {"model": "smollm2", "split": "plain", **common},
        "run": {
            "model": "m",
            "data": "own.jsonl",
            "tower": "text",
            "limit": "3",
            "layers": "0",
            "token_labels": "text",
            **common,
        },
        "reproduce": {"config": "minilm_brown", "out": "out", "root": ".", "model": "m", "limit": "3"},
        "advise": {
            "detector": "d",
            "corpus": "own.jsonl",
            "tokens": "9",
            "in_concept": "2",
            "runs": "1",
            "layer": "0",
            "seed": "0",
            "model": "m",
            "host": "nnsight",
            "tower": "text",
            "out": "out",
        },
        "promise": {
            "detector": "d",
            "guard": "own.jsonl",
            "kind": "document",
            "alpha": "0.6",
            "confidence": "0.5",
            "model": "m",
            "host": "nnsight",
            "tower": "text",
            "out": "out",
        },
        "check": {"folder": "m", "host": "nnsight", "tower": "text"},
        "report": {"results": "results.json", "out": "report.html"},
    }
    return {f"sa-plugin {name}": (_command(name, options), options) for name, options in given.items()}


POSITIONAL = ("config", "folder", "results", "detector", "guard", "corpus")


def _command(name: str, options: dict[str, Any]) -> Callable[..., Any]:
    """A command as a function of its options; its refusal is a ValueError."""

    def call(**given: Any) -> Any:
        words = [name]
        for option, value in given.items():
            words += [value] if option in POSITIONAL else [f"--{option.replace('_', '-')}", value]
        said = io.StringIO()
        with (
            mock.patch("sa_plugin.stages.reproduce.open_host", side_effect=_Begun),
            mock.patch("sa_plugin.stages.reproduce.reproduce", side_effect=_Begun),
            mock.patch("sa_plugin.host.checks.check_folder", side_effect=_Begun),
            mock.patch("sa_plugin.detection.detector.Detector.from_pretrained", side_effect=_Begun),
            contextlib.redirect_stderr(said),
        ):
            try:
                status = main(words)
            except _Begun:
                return "begun"
            except SystemExit as stop:
                status = stop.code
        if status:
            raise ValueError(said.getvalue().strip().splitlines()[-1])
        return "done"

    call.__qualname__ = f"sa-plugin {name}"
    return by_names(call, options)


class _Begun(BaseException):
    """A model would be opened now."""
