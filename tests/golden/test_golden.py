"""Stored scores of real models give the numbers of the first release: each to 1e-9, decisions exactly."""

from pathlib import Path

import pytest
from golden_cases import numbers, read_case, read_golden

from sa_plugin.detection import GRIDS

STORED = Path(__file__).parent
CASES = (("smollm2", ""), ("smollm2", "_kmeans"), ("vit", ""))
LATER = (*GRIDS, "max - median", "tpr_at", "partial_auroc", "false_alarms")


def differences(found, golden, path):
    """Where values differ beyond 1e-9, relative and absolute; whole numbers and names differ at all."""
    if isinstance(golden, list) and isinstance(found, list) and len(found) == len(golden):
        pairs = enumerate(zip(found, golden, strict=True))
        return [d for k, (a, b) in pairs for d in differences(a, b, f"{path}[{k}]")]
    if isinstance(golden, float) and isinstance(found, float):
        same = found == pytest.approx(golden, rel=1e-9, abs=1e-9)
    else:
        same = found == golden and isinstance(found, float) == isinstance(golden, float)
    return [] if same else [f"{path}: {golden!r:.80} is {found!r:.80}"]


@pytest.mark.parametrize(("model", "bank"), CASES)
def test_stored_scores_give_the_golden_numbers(model, bank):
    found = numbers(*read_case(STORED / f"scores_{model}.npz", bank))
    golden = read_golden(STORED / f"numbers_{model}{bank}.json.gz")
    # Methods and metrics that came later have no golden numbers; tests/detection has their loops.
    assert golden.keys() <= found.keys()
    assert all(any(name in key for name in LATER) for key in found.keys() - golden.keys())
    assert len(golden) > 500
    assert [d for name in golden for d in differences(found[name], golden[name], name)] == []
