"""What the scripts share: one thread, no hub, the tests' helpers, a folder that is thrown away."""

import atexit
import os
import shutil
import sys
import tempfile
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
__all__ += ["np", "os", "sa", "score", "shutil", "sys", "torch", "warnings"]
