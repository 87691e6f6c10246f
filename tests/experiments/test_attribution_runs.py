"""The files of docs/experiments/attribution_runs.py hold what the tables need: rows again from them alone."""

import json
from dataclasses import replace

import attribution_cases as cases
import attribution_runs
import attribution_tables as tables
import between_markers
import numpy as np
import pytest

from sa_plugin.attribution import Design, compare, contrasts_of, players_of


def test_tables_from_chunks_equal_the_comparison(tmp_path):
    """Two chunks of documents in two files are one comparison of all of them."""
    host, data, detector = cases.planted()
    design = Design(n_test=99, n_cal=3, n_steps=3)
    names = sorted({s.document for s in data.test.samples})
    about = {
        "run": "minilm_words",
        "objectives": ["global", "superactivator"],
        "n_layers": 3,
        "data": "toy",
        "hash": "0",
        "coalitions": 1,
        "curve": 3,
        "documents": len(names),
        "cases": {"1": 4},
        "seconds": 1,
    }
    given = {"methods": ["rise", "direct_alignment"], "objectives": cases.BOTH, "design": design}
    for k, chosen in enumerate((names[:4], names[4:8], names[:8])):
        kept = [
            (s, at)
            for s, at in zip(data.samples, data.split_of, strict=True)
            if at != "test" or s.document in chosen
        ]
        some = replace(data, samples=tuple(s for s, _ in kept), split_of=tuple(at for _, at in kept))
        found = compare(host, some, detector, **given)
        text = json.dumps(attribution_runs.packed(found) | {"about": {**about, "chunk": k}})
        if k < 2:
            (tmp_path / f"minilm_words_{k:02d}.json").write_text(text)
    ((key, files),) = tables.load(tmp_path).items()
    assert key == "minilm_words"
    again = tables.comparison(files)
    assert again.strata == found.strata
    assert again.coverage[0].compared == found.coverage[0].compared
    expected = {(r.method, r.stratum, r.metric): r for r in found.contrasts}
    ours = [r for r in again.contrasts if not r.metric.startswith("gap")]
    assert len(ours) == len(expected)
    for row in ours:
        other = expected[row.method, row.stratum, row.metric]
        assert row.values.estimate == pytest.approx(other.values.estimate, abs=1e-5)
        assert row.verdicts == other.verdicts
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nstale words\n{tables.END}\nafter\n")
    tables.show(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{tables.END}\nafter\n")
    assert "stale words" not in text
    assert "| rise (" in text
    # The sample size is of the first chunk alone.
    first = tables.deviations_of(tables.measured(files[:1]), cases.BOTH)
    (row,) = [
        r
        for r in contrasts_of([t for t in tables.measured(files[:1]) if t.method == "rise"], cases.BOTH)
        if (r.stratum, r.metric) == ("all", "f1_sample")
    ]
    assert set(first) == {("rise", "superactivator"), ("direct_alignment", "superactivator")}
    assert str(tables.needed(max(first.values()))) in tables.size({key: files}).splitlines()[-1]
    assert tables.needed(0.3) == 283


def test_players_of_words_cover_every_kept_token():
    """Words taken together, and a first token that is never masked."""
    host, _, sample, _ = cases.chosen("gpt2")
    (batch,) = host.batches([sample])
    word = players_of(sample, batch, "word")
    some = attribution_runs.word_players(host, sample, size=2, first=1)
    assert some[0] == -1
    assert set(some[1:]) == set(range(some.max() + 1))
    pairs = {(a // 2, b) for a, b in zip(word[1:].tolist(), some[1:].tolist(), strict=True)}
    assert len(pairs) == some.max() + 1
    np.testing.assert_array_equal(some, attribution_runs.word_players(host, sample, size=2, first=1))


def test_a_page_without_its_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"{tables.BEGIN}\nno end\n")
    with pytest.raises(ValueError, match=r"page.md has '<!-- end of tables -->' 0 times"):
        between_markers.put(page, tables.BEGIN, tables.END, "text")
