"""Wrong values in every argument of every public function: refused by name, in a second, or harmless.

| class | aim |
|---|---|
| refused | by an error whose text names the argument or shows the value |
| accepted | what `MEANT` says has a meaning; any other value: 0 |
| unnamed | an error from deep inside, or one that names nothing: 0 |
| hang | 20 seconds are over: 0 |

`fuzz_faces` makes the calls, in a process of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import Tally, tries

TESTS = Path(__file__).parents[1]
ANY = "*"
NUMBERS = {"-1", "0", "3.7", "2**63", "2**40", "np -7"}
MEANT = {
    # None is what stands there by default or by the hint; elsewhere `fuzz_faces` tells it apart.
    (ANY, ANY): {"None"},
    (ANY, "seed"): {"0"},
    (ANY, "options"): {"{}"},
    # Of a walk over the model negative blocks count from the end; a bank's and a result's do not.
    (ANY, "layers"): {"0", "-1"},
    (ANY, "layer"): {"0"},
    (ANY, "threshold"): NUMBERS,
    (ANY, "factor"): NUMBERS,
    (ANY, "delta"): {"0"},
    (ANY, "name"): {"'x'"},
    (ANY, "output"): {"function", "class"},
    (ANY, "permutations"): {"0"},
    (ANY, "memory_budget"): {"0", "2**40"},
    (ANY, "memory"): {"0", "2**40"},
    (ANY, "folder"): {"'x'"},
    (ANY, "n_random"): {"0"},
    # No level, no quantile.
    (ANY, "fixed_at"): {"0"},
    (ANY, "ks"): {"(1, 2, 3)"},
    # Called when they are used.
    (ANY, "players"): {"function", "class"},
    (ANY, "say"): {"function", "class"},
    ("fit", "controls"): {"True"},
    # Called at a hit, if there is one; nothing ends a sequence.
    ("watch", "on_hit"): {"function", "class"},
    ("watch", "stop"): {"[]"},
    # A push of nothing; of a block at or below the edited one.
    ("steer", "strength"): NUMBERS,
    ("steer", "gate"): {"0"},
    ("steering_hooks", "strength"): NUMBERS,
    ("steering_hooks", "gate"): {"0"},
    # Nothing is said of how it was made.
    ("table.with_statistic", "record"): {"{}"},
    # Nothing is generated.
    ("steering_curves", "new_tokens"): {"0"},
    # New sequences begin.
    ("monitor.feed", "past"): {"0"},
    ("HeadSets", "controls"): {"[]"},
    # What stands there by default: all blocks, the first of the kinds, no stage but detection.
    ("Plan", "layers"): {"[]", "(1, 2, 3)"},
    ("Plan", "primary"): {"''"},
    ("Plan", "stages"): {"[]"},
    ("attribute", "rivals"): {"[]"},
    # Held against the model when it is used.
    ("Design", "baseline"): {"tensor [3]"},
    # A text of token ids; no samples, no batches; the two concepts that the labels have.
    ("score", "data"): {"(1, 2, 3)"},
    ("host.batches", "samples"): {"[]"},
    ("ConceptData.from_texts", "concepts"): {"generator"},
    ("Sample", "id"): {"'x'"},
    ("Sample", "document"): {"'x'"},
    # An image has no text; a mask of no concept labels nothing.
    ("Sample", "text"): {"'x'", "''"},
    ("Sample", "spans"): {"[]"},
    ("Sample", "token_mask"): {"{}"},
    ("prefix_view", "objective"): {"0"},
    ("watched", "concepts"): {"[]"},
    ("neuronpedia_vector", "passages"): {"[]"},
    # Names that another site gives.
    ("neuronpedia_vector", "model_id"): {"''", "'x'"},
    ("neuronpedia_vector", "label"): {"''", "'x'"},
    ("ExactTail", "cuts"): {"(1, 2, 3)", "tensor [3]"},
    ("ExactTail.quantiles", "q"): {"[]", "0", "array [2, 0]", "tensor [3]"},
    # Scores, and texts of any length.
    ("Calibration.p_values", "scores"): NUMBERS | {"0", "[]", "(1, 2, 3)", "tensor [3]", "array [2, 0]"},
    ("p_of_documents", "scores"): {"array [2, 0]"},
    ("p_of_tokens", "scores"): {"array [2, 0]"},
    ("Promise.bands", "longest"): {"2**40"},
    ("Promise", "concepts"): {"['x']"},
    ("Promise", "lengths"): {"(1, 2, 3)"},
    ("episode_losses", "most"): {"2**40"},
    ("Detection.discoveries", "concepts"): {"[]"},
    # Records are held against data, a text or a model when they are used.
    ("CellConfig", ANY): {"''", "'x'", "{}"},
    ("ModelPart", ANY): {"''", "'x'", "{}", "{'x': 1}"},
    ("DataPart", ANY): {"''", "'x'", "{'x': 1}", "0"},
    ("RunPart", ANY): {"[]", "['x']", "''", "'x'"},
    ("Span", ANY): {"'x'", "0", "-1", "np -7", "2**40"},
    ("Site", "layer"): {"-1", "np -7", "2**40"},
    ("Wording", ANY): {"[]", "['x']", "''", "'x'"},
    ("Options", "tokenizer"): {ANY},
    ("Options", "processor"): {ANY},
    ("PixelLabels", ANY): {"[surrogate]", "['x', surrogate]", "[]", "['x']", "[None]", "[nan]", "(1, 2, 3)"}
    | {"tensor [3]", "array [2, 0]", "generator"},
    ("SampleLabels", ANY): {"[]", "[None]", "[nan]"},
    # A corpus of texts; a block behind the end is empty.
    ("Corpus.read", ANY): {"0", "2**40", "function", "class"},
    ("open_corpus", "source"): {"[]", "[None]", "[nan]", "[surrogate]", "['x']", "['x', surrogate]"}
    | {"(1, 2, 3)", "array [2, 0]", "generator", "tensor [3]"},
    ("Splits", "of"): {"[]", "['x']", "generator"},
    ("Image", "masks"): {"{}"},
    (ANY, "min_coverage"): {"0"},
    ("RowLimits", ANY): {"2**40"},
    ("Pruning", ANY): {"2**40", "0", "3.7"},
    ("Processor", "rescale"): NUMBERS,
    ("Processor", "resample"): {"0"},
    ("Processor", "mean"): {"(1, 2, 3)", "tensor [3]"},
    ("Processor", "std"): {"(1, 2, 3)"},
    ("Patience", ANY): {"0", "3.7"},
    ("TokenIds", ANY): {"(1, 2, 3)", "[]", "''"},
    (ANY, "token"): {"0", "-1", "np -7"},
    (ANY, "column"): {"0", "-1"},
    (ANY, "k"): {"0", "-1"},
    # No sample has a concept of this name, none is asked for, nothing is labelled.
    ("Image.may_have", "concepts"): {"[]", "['x']"},
    ("Sample.only", "concepts"): {"[]", "['x']"},
    ("Sample.token_labels", ANY): {"[]", "['x']", "array [2, 0]"},
    ("Sample.token_known", ANY): {"[]", "['x']", "array [2, 0]"},
    ("Sample.of", "sample"): {"'x'", "''"},
    ("as_split", ANY): {"[]", "['x']", "''", "'x'", "(1, 2, 3)", "generator", "function", "class"},
    ("split_documents", ANY): {"[]", "['x']"},
    ("tag_concepts", "found"): {"[]", "['x']", "generator"},
    (ANY, "text"): {"'x'", "''"},
    ("layers_at", "percent"): {"3.7", "(1, 2, 3)", "0"},
    ("Plan.only", "kinds"): {"[]"},
    ("Drawn.rows", "measure"): {"''", "'x'"},
    # Nothing of an axis.
    ("Drawn.sel", ANY): {"[]"},
    # The primary kind.
    (ANY, "kind"): {"''"},
    (ANY, "path"): {"'x'"},
    (ANY, "paths"): {"{}"},
    (ANY, "sample"): {"'x'"},
    # All samples.
    (ANY, "limit"): {"0"},
    # Away from the concept.
    ("neuronpedia_vector", "strength"): NUMBERS,
    # A note for the repr; the class's name.
    ("ConceptData.from_samples", ANY): {"''", "'x'", "{}", "{'x': 1}"},
    ("bare_bridge", "name"): {"''"},
    ("goal", "sample"): {"''"},
    # None of the adapter's: it declines.
    ("transformer_lens.accept", "model"): {ANY},
    ("nnsight.accept", "model"): {ANY},
}
# Commands: names and paths are looked up when a model is opened, which the grid does not.
LOOKED_UP = ("model", "host", "kind", "folder", "out", "root", "data", "results", "detector")


def meant(function, argument, wrong):
    """Whether a value has a meaning there."""
    if function.startswith("sa-plugin") and argument in LOOKED_UP:
        return True
    for key in ((ANY, ANY), (ANY, argument), (function, argument), (function, ANY)):
        if MEANT.get(key, set()) & {wrong, ANY}:
            return True
    return False


# Public, and checks nothing of what it is given.
UNCHECKED = {
    "host.LocalHost": "made by attach",
    "host.Turns": "called by hosts",
    "data.Split": "made by ConceptData",
    "loaders.Corpus": "made by open_corpus",
    "loaders.CorpusData": "made by labelled_corpus",
    "loaders.Document": "made by open_corpus",
    "generation.Hit": "made by a monitor",
    "generation.Monitor": "made by watch",
    "generation.SteeredTexts": "made by a steering",
    "generation.Steering": "made by steer",
    "generation.SteeringCurves": "made by steering_curves",
    "generation.following": "called by what follows a generation",
    "generation.require_local": "called by what follows a generation",
    "generation.Generation": "made by following",
    "stages.LayersPart": "checked as a configuration is read",
    "stages.TailCell": "checked as a design is read",
    "stages.TailDesign": "what read_design returns",
    "stages.TailScores": "what run_design writes",
    "stages.TailWorld": "checked as a design is read",
    "sa_transformer_lens.host.TransformerLensHost": "made by attach",
    "sa_nnsight.host.NNsightHost": "made by attach",
    "sa_nnsight.remote.RemoteHost": "made by attach",
    "scanning.DocumentSums": "called by merge",
    "scanning.ScanJob": "called by scan",
    "scanning.Wanted": "called by scan",
    "sa_interp_engine.host.EngineHost": "made by attach",
    "sa_interp_engine.host.Shipped": "made by attach",
    "sa_nnsight.remote.Capabilities": "made by attach",
    "sa_nnsight.remote.Line": "made by attach",
    "sa_transformer_lens.prefix.PrefixView": "called by the tools of TransformerLens, and by none of ours",
    "sa_nnsight.trace_ops": "travels to a server as source: imports torch alone",
}
# For people, and without a call in the grid; against their hints wrong values are held all the same.
UNCALLED = {
    "attribution.Comparison": "made in minutes",
    "heads.DirectTotal": "made in minutes",
    "concepts.collect_blocks": "writes a folder; its options are those of collect",
    "scores.score_blocks": "writes a folder",
    "statistics.ExactTail.add": "takes counts made beside a model",
    "statistics.ExactTail.merge": "takes another",
    "statistics.ExactTail.open": "reads a folder",
    "statistics.ExactTail.save": "writes a folder",
    "statistics.ExactTail.update": "grows with each call",
    "concepts.sae_bank": "takes an SAE",
    "concepts.write_control_vector": "writes a file",
    "detection.Detector.push_to_hub": "asks the hub",
    "passes.RayPool": "says what a cluster is asked for; its tests make it",
    "scores.prompt": "takes an instructed model",
    "scanning": "takes folders of runs; its tests call it",
    "scores.with_answers": "takes answers of one",
    "loaders.emoji_scenes": "takes a folder of pictures",
    "stages.TailCell": "checked as a design is read",
    "stages.TailDesign": "what read_design returns",
    "stages.TailScores": "what run_design writes",
    "stages.TailWorld": "checked as a design is read",
    "stages.run_design": "runs models",
    "concepts.ConceptBank": "made by fit",
    "detection.Detector": "made by calibrate",
    "scores.ScoreTable": "made by score",
    "attribution.Objective": "made by objective",
    "generation.Steering.generate": "goes inside a context",
    "data.ConceptData": "made by its class methods",
    "data.Split": "made by ConceptData",
    "host.AttentionParts": "made by an adapter",
    "host.InputMap": "made by an adapter",
    "host.OutputProjection": "made by an adapter",
    "host.demand_embedded": "called by an adapter",
    "host.open_folder": "opens a model",
    "generation.SteeringCurves.verdict": "of a result that is made in minutes",
    "host.open_texts": "called by an adapter",
    "host.refuse_training": "called by an adapter",
    "host.LocalHost.left_over": "called by the lock of a model",
    "sa_transformer_lens.host.TransformerLensHost.left_over": "called by the lock of a model",
    "sa_nnsight.host.NNsightHost.left_over": "called by the lock of a model",
    "sa_transformer_lens.towers": "takes a model of two towers",
    "sa_nnsight.remote": "takes a server",
    "sa_interp_engine.accept": "takes a model of interp-engine",
    "sa_interp_engine.host": "takes a model of interp-engine",
}


def among(name, listed):
    """Whether a name, its class or its module is listed; of classes that are called only the making."""
    made = {one for one, why in listed.items() if why.startswith("made by")}
    return any(name == one or (one not in made and name.startswith(f"{one}.")) for one in listed)


@pytest.fixture(scope="module")
def told():
    """What the grid says, in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "fuzz_faces.py", str(tries(400, 0)), "0"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=tries(300, 3600),
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout.splitlines()[-1])


def test_wrong_values_in_every_argument(told):
    tally = Tally()
    tally["refused"] = told["tally"]["refused"]
    for kind, function, argument, wrong, about, is_bool in told["seen"]:
        case = f"{function}({argument}={wrong}): {about}"
        if kind == "accepted":
            fits = meant(function, argument, wrong) and not about.startswith("None, where")
            kind = "meant" if fits or (wrong == "True" and is_bool) else "meaningless"
        tally.add(kind, case)
        if kind not in ("refused", "meant"):
            print(kind, case)
    tally.require("refused", "meant")


def test_wrong_values_against_every_hint(told):
    """All that is public: what its hint does not take is refused by name, before anything runs."""
    tally = Tally(told["hints"])
    tally.first = told["first"]
    tally.require("refused", "taken")
    assert tally["refused"] > 0.8 * tally.total()


def test_what_is_new_in_public_is_checked_and_called(told):
    unchecked = [name for name in told["unchecked"] if not among(name, UNCHECKED)]
    assert not unchecked, f"decorate with `face` or `face_methods`, or say why not: {unchecked}"
    uncalled = [name for name in told["uncalled"] if not among(name, UNCALLED)]
    assert not uncalled, f"give a call that works in `fuzz_calls`, or say why not: {uncalled}"
