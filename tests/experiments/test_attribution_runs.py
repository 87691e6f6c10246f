"""The files of docs/experiments/attribution_runs.py hold what the tables need: rows again from them alone."""

import json

import attribution_cases as cases
import attribution_runs
import attribution_tables as tables
import between_markers
import pytest

from sa_plugin.attribution import Design, compare


def test_tables_from_files_equal_the_comparison(tmp_path):
    """Two groups of methods in two files are one run; controls, in both, count once."""
    host, data, detector = cases.planted()
    design = Design(n_test=5, n_cal=3, n_steps=3)
    about = {
        "model": "minilm",
        "kind": "prototype",
        "objectives": ["global", "superactivator"],
        "n_layers": 3,
        "data": "toy",
        "hash": "0",
        "coalitions": 1,
        "integration": 1,
        "curve": 3,
    }
    for name in ("rise", "direct_alignment"):
        found = compare(host, data, detector, methods=[name], design=design)
        text = json.dumps(attribution_runs.packed(found) | {"about": about})
        (tmp_path / f"minilm_prototype_animal_{name}.json").write_text(text)
    whole = compare(host, data, detector, methods=["rise", "direct_alignment"], design=design)
    ((key, files),) = tables.load(tmp_path).items()
    assert key == "minilm_prototype"
    measured = tables.measured(files)
    assert len(measured) == len(whole.trials)
    again = tables.contrasts_of(measured, whole.objectives)
    expected = {(r.method, r.metric): r for r in whole.contrasts}
    assert len(again) == len(expected)
    for row in again:
        other = expected[row.method, row.metric]
        assert row.values.estimate == pytest.approx(other.values.estimate, abs=1e-5)
        assert row.verdicts == other.verdicts
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nstale words\n{tables.END}\nafter\n")
    tables.show(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{tables.END}\nafter\n")
    assert "stale words" not in text
    assert "| rise | " in text


def test_curves_that_files_repeat_count_once():
    def file(concept, n, value):
        line = ["control", "random", "insertion", "mean_alignment", [value, 1.0]]
        return {"coverage": [{"concept": concept, "compared": n}], "curves": [line]}

    files = [file("person", 1, 0.4), file("person", 1, 0.4), file("time", 3, 0.0)]
    (found,) = tables.curves(files).values()
    assert found.tolist() == pytest.approx([0.1, 1.0])


def test_a_page_without_its_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{tables.BEGIN}\nno end\n")
    with pytest.raises(ValueError, match=r"page.md has '<!-- end of tables -->' 0 times"):
        between_markers.put(page, tables.BEGIN, tables.END, "text")
