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

from fuzzing import Tally, tries

TESTS = Path(__file__).parents[1]
ANY = "*"
LAYER = {"0", "np -7", "-1"}
MEANT = {
    # None is what stands there by default, wherever it is accepted.
    (ANY, ANY): {"None"},
    (ANY, "seed"): {"0", "2**40"},
    (ANY, "options"): {"{}", "{'x': 1}"},
    (ANY, "layers"): {"0", "-1", "[]", "np -7", "(1, 2, 3)"},
    (ANY, "layer"): LAYER,
    (ANY, "n"): set(),
    (ANY, "threshold"): {"nan", "inf", "-1", "0", "3.7", "2**63", "2**40", "np -7"},
    (ANY, "factor"): {"-1", "0", "3.7", "2**63", "2**40", "np -7"},
    (ANY, "delta"): {"0"},
    (ANY, "q"): {"0"},
    (ANY, "name"): {"'x'"},
    (ANY, "ids"): {"generator"},
    (ANY, "concepts"): {"['x']", "[]"},
    (ANY, "primary"): {"''"},
    (ANY, "kind"): {"''"},
    (ANY, "effect"): set(),
    (ANY, "keep"): {"True"},
    (ANY, "probe"): {"True"},
    (ANY, "controls"): {"True", "[]"},
    (ANY, "size"): {"True"},
    (ANY, "equal_lengths"): {"True"},
    (ANY, "players"): {"function", "class"},
    (ANY, "output"): {"function", "class"},
    (ANY, "baseline"): {"tensor [3]"},
    (ANY, "ks"): {"(1, 2, 3)"},
    (ANY, "permutations"): {"0"},
    (ANY, "memory_budget"): {"0", "2**40"},
    (ANY, "folder"): {"'x'"},
    (ANY, "n_random"): {"0"},
    (ANY, "fixed_at"): {"0"},
    (ANY, "texts"): {"['x']", "'x'"},
    (ANY, "samples"): {"'x'", "['x']"},
    (ANY, "stages"): {"[]"},
    # Held against the scores when they are used; a bank of nothing.
    ("TraceOptions", "frozen_sd"): {"array [2, 0]", "tensor [3]"},
    ("bank.only", "units"): {"[]"},
    ("ConceptBank.from_vectors", "normaliser"): {"{}"},
    # Data, hooks and an SAE that the mode or artefact has no use for.
    ("ablation_hooks", "concept"): {"''", "'x'", "surrogate", "null"},
    ("ablation_hooks", "attention_mask"): {"tensor [3]"},
    ("Detector.from_pretrained", "sae"): {ANY},
}


def meant(function, argument, wrong):
    """Whether a value has a meaning there."""
    for key in ((ANY, ANY), (ANY, argument), (function, argument)):
        if MEANT.get(key, set()) & {wrong, ANY}:
            return True
    return False


def test_wrong_values_in_every_argument():
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "fuzz_faces.py", str(tries(400, 0)), "0"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=tries(300, 3600),
    )
    assert found.returncode == 0, found.stderr[-2000:]
    told = json.loads(found.stdout.splitlines()[-1])
    tally = Tally()
    tally["refused"] = told["tally"]["refused"]
    for kind, function, argument, wrong, about in told["seen"]:
        case = f"{function}({argument}={wrong}): {about}"
        if kind == "accepted":
            kind = "meant" if meant(function, argument, wrong) else "meaningless"
        tally.add(kind, case)
        if kind not in ("refused", "meant"):
            print(kind, case)
    tally.require("refused", "meant")
