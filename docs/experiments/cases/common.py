"""What the scripts share: one thread, no hub, the tests' helpers, a folder that is thrown away."""

import atexit
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}.items():
    os.environ.setdefault(name, value)
ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "docs/experiments")]
if "SA_PLUGIN_CASES" not in os.environ:
    # A child process shares the folder and does not remove it.
    os.environ["SA_PLUGIN_CASES"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["SA_PLUGIN_CASES"], ignore_errors=True)
SCRATCH = os.environ["SA_PLUGIN_CASES"]
warnings.simplefilter("ignore")

import numpy as np
import torch

torch.set_num_threads(1)
import sa_plugin as sa
from sa_plugin import ConceptBank, ConceptData, Detector, calibrate, fit, score
from sa_plugin.data import Splits

__all__ = ["ROOT", "SCRATCH", "ConceptBank", "ConceptData", "Detector", "Path", "Splits", "calibrate", "fit"]
__all__ += ["my_detector", "np", "os", "sa", "score", "shutil", "sys", "torch", "tryit", "warnings"]


def tryit(name, f):
    """Say what a call gives, or how it is refused."""
    print("==", name, flush=True)
    began = time.time()
    try:
        found = f()
        print("   ->", repr(found)[:500], "| ok", round(time.time() - began, 1), flush=True)
        return found
    except BaseException as error:
        print("   ", type(error).__name__, str(error)[:700], flush=True)


def my_detector(layers=(4, 12)):
    """Separators of `mydata` on SmolLM2: data, bridge, host, bank, scores, detector."""
    from mydata import ROWS
    from sa_transformer_lens.host import load_bridge

    data = sa.ConceptData.from_words([r[1] for r in ROWS], [r[2] for r in ROWS], name="mine")
    bridge = load_bridge("smollm2")
    host = sa.attach(bridge, progress=False)
    bank = sa.fit(host, data, "separator", layers=list(layers))
    scores = sa.score(host, data, bank)
    return data, bridge, host, bank, scores, sa.calibrate(host, data, bank, scores=scores)
