"""The throughput script: what it checks before it times, and what it reports."""

import sys

import pytest
from docs_setup import ROOT

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

import bench_throughput


def measured(dtype):
    return bench_throughput.measure("tiny", "cpu", dtype, samples=20, rounds=1, batch_tokens=256)


def test_half_precision_is_scored_like_float32_of_the_same_weights():
    found = measured("bfloat16")
    assert found["equal"]
    assert 1e-4 < found["rms_difference"] < found["bound"]
    assert {row["what"] for row in found["rows"]} >= {"score pass", "coalitions"}
    for row in found["rows"]:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["bare_seconds"])
        assert row["tokens_per_second"] * row["ratio"] == pytest.approx(row["bare_tokens_per_second"])


def test_scores_beyond_the_bound_are_not_equal(monkeypatch):
    monkeypatch.setitem(bench_throughput.BOUND, "bfloat16", 1e-6)
    monkeypatch.setattr(bench_throughput, "passes", lambda *_: [])
    monkeypatch.setattr(bench_throughput, "explainers", lambda *_: [])
    assert not measured("bfloat16")["equal"]
