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
    (ANY, "keep"): {"True"},
    (ANY, "probe"): {"True"},
    (ANY, "size"): {"True"},
    (ANY, "equal_lengths"): {"True"},
    (ANY, "allow_drift"): {"True"},
    (ANY, "output"): {"function", "class"},
    (ANY, "permutations"): {"0"},
    (ANY, "memory_budget"): {"0", "2**40"},
    (ANY, "folder"): {"'x'"},
    (ANY, "n_random"): {"0"},
    (ANY, "fixed_at"): {"0"},
    (ANY, "ks"): {"(1, 2, 3)"},
    # Called when they are used.
    (ANY, "players"): {"function", "class"},
    (ANY, "say"): {"function", "class"},
    ("fit", "controls"): {"True"},
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
            fits = meant(function, argument, wrong) and not about.startswith("None, where")
            kind = "meant" if fits else "meaningless"
        tally.add(kind, case)
        if kind not in ("refused", "meant"):
            print(kind, case)
    tally.require("refused", "meant")
