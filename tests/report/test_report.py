"""Laws of the report: one file, whole, safe, and nothing silently missing."""

import copy
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from fake_results import CONCEPTS, attribution, results, small

from sa_plugin.report import (
    checked,
    mean_grid,
    read_results,
    relative,
    render_report,
    shown_concepts,
    verdict,
    write_report,
    write_results,
)
from sa_plugin.show import VOID, Markup, clean, el, interval, side_of_zero, tokens, typeset

SECTIONS = 11


@pytest.fixture(scope="module")
def fake() -> dict[str, Any]:
    return small()


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(results())


class Tree(HTMLParser):
    """Checks that tags balance, and keeps elements, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute: {names}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def parse(page: str) -> Tree:
    tree = Tree()
    tree.feed(page)
    tree.close()
    assert tree.open == []
    return tree


def section(page: str, anchor: str) -> str:
    found = re.search(rf'<section id="{anchor}">(.*?)</section>', page, re.S)
    assert found, anchor
    return found.group(1)


def table_rows(markup: str) -> list[list[str]]:
    """Texts of the cells of every body row, drawings left out."""
    markup = re.sub(r"<svg.*?</svg>", "", markup, flags=re.S)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", re.search(r"<tbody>(.*)</tbody>", markup, re.S)[1])
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in cells]


def test_the_page_is_balanced_html(page: str) -> None:
    tree = parse(page)
    assert page.startswith("<!doctype html>")
    assert [tag for tag, _ in tree.elements].count("section") == SECTIONS
    ids = [attrs["id"] for _, attrs in tree.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_fetches_nothing(page: str) -> None:
    tree = parse(page)
    for tag, attrs in tree.elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "image")
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "srcset", "data", "poster", "xlink:href"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|@font-face|url\((?!#)|javascript:", page)


def test_links_lead_to_sections(page: str) -> None:
    tree = parse(page)
    targets = {attrs["href"] for tag, attrs in tree.elements if tag == "a"}
    assert targets == {f"#{attrs['id']}" for tag, attrs in tree.elements if tag == "section"}


def test_every_drawing_says_what_it_shows(page: str) -> None:
    drawings = re.findall(r"<svg[^>]*>.*?</svg>", page, re.S)
    assert len(drawings) > 20
    for one in drawings:
        assert 'role="img"' in one
        assert re.search(r"<svg[^>]*><title>[^<]+</title><desc>[^<]+</desc>", one)


def test_numbers_of_the_detection_table_appear(page: str, fake: dict[str, Any]) -> None:
    methods = fake["kinds"]["prototype"]["detection"]["methods"]
    rows = {row[0]: row for row in table_rows(section(page, "detection").partition("<details>")[0])}
    assert list(rows) == [m["method"] for m in sorted(methods, key=lambda m: -m["weighted_f1"])]
    for m in methods:
        cells = rows[m["method"]]
        for key in ("weighted_f1", "precision", "recall", "auroc", "macro_f1"):
            assert typeset(m[key]) in cells, (m["method"], key)
        assert interval(m["interval"]) in cells
        assert str(m["candidates"]) in cells
        if m["difference"] is not None:
            assert typeset(m["difference"], signed=True) in cells
            assert interval(m["difference_interval"], signed=True) in cells


def test_what_a_monitor_is_chosen_by_stands_behind_the_table(page: str, fake: dict[str, Any]) -> None:
    found = fake["kinds"]["prototype"]["detection"]["monitor"]
    behind = section(page, "detection").partition("<details>")[2]
    rows = {row[0]: row for row in table_rows(behind) if row[0] != "Method"}
    assert len(rows) == len(found["methods"])
    for one in found["methods"]:
        cells = rows[one["method"]]
        assert cells[1:5] == [typeset(one["tpr"][0]), interval(one["tpr_interval"][0]), "–", "–"]
        assert typeset(one["false_alarms"], 2) in cells
        assert interval(one["partial_auroc_interval"]) in cells
    assert found["rests_on"] in behind


def test_intervals_that_exclude_zero_are_marked(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    methods = {m["method"]: m for m in one["kinds"]["prototype"]["detection"]["methods"]}
    methods["MaxTok"] |= {"difference": 0.03, "difference_interval": [0.01, 0.05]}
    methods["MeanTok"] |= {"difference": -0.03, "difference_interval": [-0.05, -0.01]}
    methods["pooled"] |= {"difference": -0.03, "difference_interval": [-0.05, 0.01]}
    methods["LastTok"] |= {"difference": None, "difference_interval": None}
    first = section(render_report(one), "detection").partition("<details>")[0]
    rows = {row[0]: row for row in table_rows(first)}
    marks = {name: [c for c in row if c and c in "▲▼·"] for name, row in rows.items()}
    assert marks["MaxTok"] == ["▲"]
    assert marks["MeanTok"] == ["▼"]
    assert marks["pooled"] == ["·"]
    assert marks["LastTok"] == []
    said = verdict(one)
    assert "It shows them behind MaxTok." in said
    assert "does not tell them apart from pooled" in said


def test_a_table_that_superactivators_do_not_win_says_so(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    one["kinds"]["prototype"]["detection"]["methods"][1]["weighted_f1"] = 0.9
    text = parse(section(render_report(one), "detection")).text
    assert "Where SuperActivators do not win. MaxTok has the higher weighted F1." in text
    assert "number 2 of 10 methods" in verdict(one)


def test_a_table_that_superactivators_win_claims_no_more(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    for m in one["kinds"]["prototype"]["detection"]["methods"][1:]:
        m["difference_interval"] = [-0.3, -0.1]
    assert "do not win" not in parse(section(render_report(one), "detection")).text
    assert "highest of 10 methods" in verdict(one)
    assert "conditional on the train and calibration splits" in verdict(one)


EVIL = "</style><script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


def poison(value: Any, path: tuple[str, ...] = ()) -> Any:
    """Every free text of the results, replaced; names that must agree stay the same text."""
    if isinstance(value, dict):
        return {key: poison(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item, path) for item in value]
    keep = {"primary_kind", "method", "text", "concept"}
    if isinstance(value, str) and path[-1] not in keep and "concepts" not in path:
        return EVIL
    return value


def test_every_text_is_escaped(fake: dict[str, Any]) -> None:
    one = poison(copy.deepcopy(fake))
    one["passages"][0] |= {"text": EVIL, "offsets": [[0, 8], [8, 40]]}
    for key in ("scores", "superactivator", "in_concept"):
        one["passages"][0][key] = one["passages"][0][key][:2]
    block = one["kinds"]["prototype"]
    block["detection"]["methods"][3]["method"] = EVIL
    block["choices"][0]["concept"] = block["detection"]["per_concept"][0]["concept"] = EVIL
    block["rates"][0]["concept"] = block["heads"]["strongest"][0]["concept"] = EVIL
    block["trace"]["concepts"] = {EVIL: block["trace"]["concepts"]["animal"]}
    drawn = block["trace"]["distributions"]
    drawn["concepts"] = {EVIL: drawn["concepts"]["animal"]}
    block["heads"]["concepts"][EVIL] = block["heads"]["concepts"].pop("animal")
    one["kinds"][EVIL] = one["kinds"].pop("separator")
    page = render_report(one)
    tree = parse(page)
    assert {tag for tag, _ in tree.elements} <= set(SAFE_TAGS.split())
    assert not any(name.startswith("on") for _, attrs in tree.elements for name in attrs)
    assert page.count("<style>") == page.count("</style>") == 1
    assert "alert('x')" in tree.text
    assert "<script" not in page


SAFE_TAGS = """
html head meta title style body header h1 h2 h3 h4 h5 p nav a main section div span figure
figcaption table thead tbody tr th td dl dt dd svg desc g path rect text defs use clippath article
em b strong sup mark code pre ul li details summary footer
"""


def test_text_of_a_passage_is_whole_on_both_sides(page: str, fake: dict[str, Any]) -> None:
    part = section(page, "passages")
    sides = re.findall(r'<p class="reading">(.*?)</p>', part, re.S)
    for n, passage in enumerate(fake["passages"]):
        for side in sides[2 * n : 2 * n + 2]:
            tree = Tree()
            tree.feed(re.sub(r"<sup>.*?</sup>", "", side))
            tree.close()
            assert "".join(tree.words) == passage["text"]


def test_a_token_of_spaces_can_be_seen() -> None:
    text, offsets = "a  b", [[0, 1], [1, 3], [3, 4]]
    shown = tokens(text, offsets, lambda n, words: el("i", words))
    assert shown == "<i>a</i><i>  </i><i>b</i>"
    assert tokens("x y", [[1, 3]], lambda n, words: el("i", words)).endswith("</span> <i>y</i>")


def test_the_mean_head_map_counts_later_blocks_as_zero() -> None:
    shallow, deep = np.array([[1.0, np.nan]]), np.array([[3.0, 4.0], [0.5, -1.0]])
    np.testing.assert_array_equal(mean_grid([shallow, deep]), [[2.0, np.nan], [0.25, -0.5]])


def test_head_maps_are_shares_of_their_own_lift(fake: dict[str, Any]) -> None:
    """A concept whose scores are a hundred times larger weighs no more in the mean."""
    one = copy.deepcopy(fake)
    a, b = one["kinds"]["prototype"]["heads"]["concepts"].values()
    a["total"], b["total"] = 0.5, 0.25
    before, page = relative(a), section(render_report(one), "heads")
    for key in ("lift", "control"):
        a[key] = [[100 * v for v in row] for row in a[key]]
    a["total"] = 50.0
    np.testing.assert_allclose(relative(a), before)
    maps = [
        re.findall(r"<desc>Strongest:[^<]*</desc>", p) for p in (page, section(render_report(one), "heads"))
    ]
    assert maps[0] == maps[1]
    assert "As a share of the lift of the concept's score" in parse(page).text
    a["total"] = None
    assert np.isnan(relative(a)).all()
    assert "mean of 1 concepts" in parse(section(render_report(one), "heads")).text


def test_the_ledger_says_that_its_control_is_no_test(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    heads = one["kinds"]["prototype"]["heads"]
    heads["strongest"][0] |= {"excess": -0.02, "excess_interval": [-0.03, -0.01]}
    heads |= {"candidates": 270, "excludes_zero": {"lift": 0.7, "control": 0.61, "excess": 0.476}}
    text = parse(section(render_report(one), "heads")).text
    assert "one permutation per concept: a scale of what selection alone gives, not a test" in text
    assert "excludes zero in 70 % for lift, 61 % for control and 48 % for lift − control" in text
    assert "on the split shown, out of 270 candidates" in text
    assert "negative numbers work against the concept" in text
    assert "free of the selection" not in text
    bodies = re.findall(r"<tbody>.*?</tbody>", section(render_report(one), "heads"), re.S)
    rows = table_rows(bodies[-1])
    assert [row[0] for row in rows].index("Lower it") == len(rows) - 2


def test_shares_are_named_by_what_they_are_of(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    heads = one["kinds"]["prototype"]["heads"]
    heads["shares_of"] = "contrast"
    for head_map in heads["concepts"].values():
        head_map["lift_shares"] = dict(head_map["shares"])
    tree = parse(section(render_report(one), "heads"))
    text = tree.text
    lift, contrast = text.index("Share of the lift ("), text.index("Share of the contrast (")
    first = text.index("Who writes what makes a SuperActivator higher than the other tokens of its sample?")
    second = text.index("Who writes what makes labelled tokens higher than tokens of negative samples?")
    assert first < lift < second < contrast


def test_the_verdict_says_how_far_into_the_tail_the_deltas_lie(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    block = one["kinds"]["prototype"]
    for choice, delta in zip(block["choices"], [0.4, 0.9, 0.7, 0.7, 0.8, 0.6, 0.7, 0.5], strict=True):
        choice["delta"] = delta
    block["sparsity"]["curves"][0]["weighted_f1"] = [0.1, 0.19] + [0.5] * 7 + [0.703, 0.5, 0.4]
    said = verdict(one)
    assert "Calibration chose deltas from 0.4 to 0.9 (median 0.7)" in said
    assert "the tail at delta 0.05 alone reaches 0.190" in said
    assert "the best delta, 0.8, 0.703 (picked on test)" in said
    header = parse(render_report(one)).text
    assert "The claim under test: only the extreme high tail" in header


def test_what_is_picked_on_test_is_flagged(page: str) -> None:
    assert "Best method (picked on test)" in section(page, "kinds")
    text = parse(section(page, "sparsity")).text
    assert "Peak F1 (picked on test)" in text


def test_the_trace_says_whether_probe_or_signal_grows(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    text = parse(section(render_report(one), "trace")).text
    assert (
        f"Of mean of {len(CONCEPTS)} concepts the signal grows. Intervals include 5 refits"
        in text.replace("\n", " ")
    )
    assert "carried to all layers; grey dots: along each layer's prototypes" in text
    trace = one["kinds"]["prototype"]["trace"]
    for key in ("along", "growth", "refit_groups"):
        del trace[key]
    assert "carried to all layers" not in parse(section(render_report(one), "trace")).text


def test_the_trace_names_its_own_draws_delta_and_rate(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    block = one["kinds"]["prototype"]["trace"]
    block |= {"delta": 0.05, "draws": 200, "fixed_on": "cal"}
    for n, series in enumerate(block["concepts"].values()):
        series["realised_fpr"] = [0.001 * (n + 1)] * len(block["layers"])
    text = parse(section(render_report(one), "trace")).text
    assert "with its interval (of the tail gap from 200 bootstrap draws of documents)" in text
    assert "(Q(0.95) of in-concept test scores − Q(0.995) of negative samples' test scores)" in text
    assert "on test 0.45 % of the out-of-concept tokens lie above it" in text
    assert "0.10 % to 0.80 %" in text
    assert "the 0.5 % tail of out on cal" in text


def test_attribution_on_dropped_tokens_is_told(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    one["explained"]["explanations"][0]["dropped"] = 0.414
    text = parse(section(render_report(one), "explained")).text
    assert text.count("41 % of the attribution lies on dropped tokens. Of the rest, share on") == 1


def test_no_sentence_ends_twice(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    one["kinds"]["prototype"]["note"] = "A note."
    one["kinds"]["prototype"]["heads"]["unit"] = "the score."
    one["provenance"]["machine"] = "2 cores."
    assert ".." not in parse(render_report(one)).text


def test_passages_tell_what_each_rule_says(page: str) -> None:
    said = re.findall(r'<p class="verdicts">(.*?)</p>', section(page, "passages"))
    plain = [re.sub(r"<[^>]+>", "", one) for one in said]
    right, wrong = "✓ {}, right", "✗ {}, wrong"
    assert right.format("fires") in plain[0]
    assert f"Raw rule: {wrong.format('fires')}" in plain[1]
    assert f"SuperActivators: {right.format('silent')}" in plain[1]
    assert f"SuperActivators: {wrong.format('silent')}" in plain[2]


def test_marks_are_the_superactivators(page: str, fake: dict[str, Any]) -> None:
    marked = len(re.findall("<mark", section(page, "passages")))
    assert marked == sum(sum(p["superactivator"]) for p in fake["passages"])


def test_tokens_that_share_an_offset_show_their_text_once(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    lists = {"scores": [0.1, 0.3, 0.3], "superactivator": [False, True, True]}
    one["passages"] = [
        one["passages"][0]
        | {"text": "a 🐋 b", "offsets": [[0, 1], [1, 3], [1, 3]], "in_concept": [False] * 3, **lists}
    ]
    sides = re.findall(r'<p class="reading">(.*?)</p>', render_report(one), re.S)
    assert all(side.count("🐋") == 1 for side in sides[:2])


PARTS = ("detection", "choices", "sparsity", "trace", "heads", "localisation", "rates", "fractions")


def test_an_empty_result_says_what_is_missing() -> None:
    page = render_report({})
    tree = parse(page)
    assert [tag for tag, _ in tree.elements].count("section") == SECTIONS
    absent = re.findall(r'<p class="absent">(.*?)</p>', page)
    assert len(absent) >= SECTIONS
    assert all("not computed in this run" in line for line in absent)
    assert "No verdict: detection was not computed." in tree.text


@pytest.mark.parametrize("key", PARTS)
def test_a_missing_part_is_named_with_its_reason(fake: dict[str, Any], key: str) -> None:
    one = copy.deepcopy(fake)
    before = render_report(one).count('class="absent"')
    del one["kinds"]["prototype"][key]
    one["kinds"]["prototype"]["absent"] = {key: "post-norm <architecture>"}
    page = render_report(one)
    parse(page)
    assert page.count('class="absent"') > before
    assert "not computed in this run: post-norm &lt;architecture&gt;." in page


@pytest.mark.parametrize("key", ["meta", "kinds", "passages", "explained", "provenance", "warnings"])
def test_a_missing_block_is_named(fake: dict[str, Any], key: str) -> None:
    one = {k: v for k, v in copy.deepcopy(fake).items() if k != key}
    page = render_report(one)
    parse(page)
    assert "not computed in this run" in page


def test_optional_keys_may_be_missing(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    block = one["kinds"]["prototype"]
    for series in (*block["trace"]["concepts"].values(), block["trace"]["mean"]):
        for key in [k for k in series if k.endswith("_interval")]:
            del series[key]
    del block["trace"]["mean"], block["trace"]["distributions"], block["detection"]["per_concept"]
    for head_map in block["heads"]["concepts"].values():
        for key in ("control", "contrast", "shares"):
            head_map.pop(key)
    for curve in block["sparsity"]["curves"]:
        del curve["interval"]
    for passage in one["passages"]:
        del passage["raw_threshold"], passage["delta"]
    for each in one["explained"]["explanations"]:
        del each["heads"]
    text = parse(render_report(one)).text
    assert "Lift, without a control" in text
    assert "Distributions by layer: not computed" in text


def hollow(value: Any) -> Any:
    """Every float of the results replaced by NaN, except grids and axes."""
    if isinstance(value, dict):
        kept = (
            "deltas",
            "delta",
            "small",
            "large",
            "edges",
            "grid",
            "timings",
            "intervals",
            "fpr",
            "settings",
        )
        return {k: v if k in kept else hollow(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hollow(item) for item in value]
    return float("nan") if isinstance(value, float) else value


def test_undefined_numbers_are_dashes(fake: dict[str, Any]) -> None:
    page = render_report(hollow(fake))
    parse(page)
    assert not re.search(r"\b(nan|None|inf|null)\b", parse(page).text, re.I)
    assert not re.search(r'="[^"]*\bnan\b', page)
    cells = table_rows(section(page, "detection"))[1]
    assert cells.count("–") >= 6


def test_equal_results_give_equal_bytes(fake: dict[str, Any], tmp_path: Any) -> None:
    first = write_report(copy.deepcopy(fake), tmp_path / "a.html").read_bytes()
    again = write_report(small(), tmp_path / "b.html").read_bytes()
    assert first == again


def test_the_report_of_the_file_is_the_report_of_the_run(fake: dict[str, Any], tmp_path: Any) -> None:
    one = copy.deepcopy(fake)
    trace = one["kinds"]["prototype"]["trace"]
    trace["mean"]["auroc"] = np.array(trace["mean"]["auroc"])
    one["meta"]["seed"] = np.int64(0)
    one["meta"]["layers"] = tuple(one["meta"]["layers"])
    path = write_results(one, tmp_path / "results.json")
    assert render_report(read_results(path)) == render_report(one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["meta"].pop("model"), "results.meta lacks 'model'"),
        (
            lambda r: r["kinds"]["prototype"]["detection"]["methods"][0].update(weighted_F1=1.0),
            r"methods\[0\] has an unknown key 'weighted_F1': did you mean 'weighted_f1'",
        ),
        (lambda r: r.update(heads={}), "unknown key 'heads'"),
        (lambda r: r.update(schema=2), "results.schema is 2: expected 1, the format this version writes"),
        (lambda r: r.update(warnings="none"), "results.warnings is 'none': expected a list"),
        (
            lambda r: r["kinds"]["prototype"].update(trace=[]),
            r"results.kinds\['prototype'\].trace is \[\]: expected Trace, a dict",
        ),
        (
            lambda r: r["kinds"]["prototype"]["sparsity"]["curves"][1]["weighted_f1"].__setitem__(3, "x"),
            r"curves\[1\].weighted_f1\[3\] is 'x': expected float",
        ),
        (lambda r: r["meta"].update(seed="0"), "results.meta.seed is '0': expected int"),
        (lambda r: r["meta"].update(seed=True), "results.meta.seed is True: expected int"),
        (
            lambda r: r["kinds"]["prototype"]["trace"]["concepts"]["animal"]["auroc"].pop(),
            r"\['animal'\].auroc has 10 entries: expected 11, as layers",
        ),
        (
            lambda r: r["kinds"]["prototype"]["sparsity"]["curves"][0]["weighted_f1"].pop(),
            r"curves\[0\].weighted_f1 has 11 entries: expected 12, as deltas",
        ),
        (
            lambda r: r["passages"][0]["scores"].pop(),
            r"passages\[0\].scores has \d+ entries: expected \d+, as offsets",
        ),
        (
            lambda r: r["passages"][0]["offsets"].__setitem__(0, [5, 9999]),
            r"offsets\[0\] is \[5, 9999\]: expected \[start, end\] within",
        ),
    ],
)
def test_what_breaks_the_schema_is_refused(fake: dict[str, Any], change: Any, message: str) -> None:
    one = copy.deepcopy(fake)
    change(one)
    with pytest.raises(ValueError, match=message):
        render_report(one)


def test_no_tensor_goes_into_the_file() -> None:
    with pytest.raises(TypeError, match="a Tensor cannot go into"):
        clean({"x": torch.ones(1)})


def test_no_json_is_refused(tmp_path: Any) -> None:
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_results(tmp_path / "r.json")


def test_strict_json(fake: dict[str, Any], tmp_path: Any) -> None:
    one = copy.deepcopy(fake)
    one["kinds"]["prototype"]["choices"][0]["threshold"] = float("inf")
    path = write_results(one, tmp_path / "results.json")
    loaded = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert loaded["kinds"]["prototype"]["choices"][0]["threshold"] is None
    assert checked(loaded)["meta"]["seed"] == 0


def test_escaping_once() -> None:
    inner = el("b", "<&>")
    assert inner == "<b>&lt;&amp;&gt;</b>"
    assert el("p", inner, [" a", None, 1]) == "<p><b>&lt;&amp;&gt;</b> a1</p>"
    assert el("p", title=Markup('"<b>"')) == '<p title="&quot;&lt;b&gt;&quot;"></p>'


def test_shown_concepts_span_the_ranking() -> None:
    names = [f"c{k}" for k in range(20)]
    choices = [{"concept": name, "cal_f1": 1 - k / 20} for k, name in enumerate(names)]
    shown = shown_concepts(names, choices)
    assert (shown[0], shown[-1], len(shown)) == ("c0", "c19", 6)
    assert shown_concepts(CONCEPTS[:3], []) == sorted(CONCEPTS[:3])


@pytest.mark.parametrize(
    ("bounds", "side"), [([0.1, 0.2], 1), ([-0.2, -0.1], -1), ([-0.1, 0.1], 0), (None, 0), ([0, 1], 0)]
)
def test_side_of_zero(bounds: list[float] | None, side: int) -> None:
    assert side_of_zero(bounds) == side


@pytest.mark.parametrize("key", ["schema", "meta", "kinds", "provenance"])
def test_a_file_without_what_every_run_writes_is_refused(
    fake: dict[str, Any], tmp_path: Any, key: str
) -> None:
    one = {name: block for name, block in fake.items() if name != key}
    path = write_results(one, tmp_path / "results.json")
    with pytest.raises(ValueError, match=f"has no '{key}', every run writes .*of a run"):
        read_results(path)
    assert render_report(one)


def test_the_folder_of_the_report_is_made(tmp_path: Any) -> None:
    assert write_report({"schema": 1}, tmp_path / "sub" / "dir" / "x.html").exists()


@pytest.mark.parametrize(
    ("start", "end", "terms"),
    [
        ("<header>", "<nav", ["SuperActivator", "Delta, δ", "MaxTok"]),
        ('id="heads"', "<h3>", ["Ledger", "Lift", "Share"]),
    ],
)
def test_every_term_is_told_in_a_sentence_where_it_first_stands(
    page: str, start: str, end: str, terms: list[str]
) -> None:
    first = page[page.index(start) :]
    told = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", first[: first.index(end)]))
    assert list(told) == terms
    assert all(words.endswith(".") and len(words.split()) > 10 for words in told.values())


def test_few_test_documents_are_a_caution(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    assert "Few documents." not in render_report(one)
    one["meta"]["documents"]["test"] = 9
    said = parse(section(render_report(one), "headline")).text
    assert "Only 9 test documents: intervals over so few hold, and are wide" in said


def test_concepts_in_few_documents_and_stars_of_the_family_are_told(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    block = one["kinds"]["prototype"]["detection"]
    block["per_concept"][0]["documents"] = 4
    rows = [row for row in block["methods"] if row["difference"] is not None]
    below = next(row for row in rows if row["difference_interval"][1] < 0)
    below["p_in_family"] = 0.001
    page = render_report(one)
    assert page.count(">in few documents<") == 1
    assert page.count("▼▼</span>") + page.count("▲▲</span>") == 1
    assert f"with all {len(rows)} differences read as one family" in page


def test_tokens_of_the_tail_are_marked_in_the_passage_explained(page: str, fake: dict[str, Any]) -> None:
    part = section(page, "explained")
    readings = "".join(re.findall(r'<p class="reading">(.*?)</p>', part, re.S))
    marked = re.findall(r'<span class="tok [^"]*\btail\b[^"]*"[^>]*>([^<]*)<', readings)
    explained = fake["explained"]
    words = [
        explained["text"][a:b].strip()
        for (a, b), on in zip(explained["offsets"], explained["superactivator"], strict=True)
        if on
    ]
    assert marked == words * len(explained["explanations"])
    assert "In brackets : SuperActivators." in parse(part).text
    # The brackets are the style's, so that the text stays whole.
    assert '.tok.tail::before { content: "["; }' in page


def test_peaks_density_and_separation_are_told_in_few_words(page: str) -> None:
    text = parse(section(page, "sparsity")).text
    assert "best test F1 lies at a δ of at most 0.1 is 0.62 [0.57, 0.67], and at 0.3 or more 0.25" in text
    assert (
        "One δ of 0.1 for all concepts, chosen on calibration, changes test F1 against one of 0.5 by +0.061"
        in text
    )
    assert "at most 0.1 in 0.41 [0.36, 0.46], at most 0.2 in 0.62" in parse(section(page, "rates")).text
    assert "more often than negative ones by +0.44 [+0.39, +0.48]" in parse(section(page, "trace")).text


def test_the_comparison_of_objectives_stands_where_the_record_has_it(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake) | {"attribution": attribution()}
    page = render_report(one)
    parse(page)
    part = section(page, "attribution")
    # A row an arm; what could have been seen stands where a difference is open.
    assert table_rows(part)[:5] == [
        ["f1 (higher is better), samples: 24"],
        ["direct_alignment", "global", "0.310", ""],
        ["superactivator", "0.420", "+0.110", "[+0.070, +0.146]", ""],
        ["integrated_gradients", "global", "0.310", ""],
        ["superactivator", "0.220", "−0.090", "[−0.130, −0.054]", ""],
    ]
    four = copy.deepcopy(one)
    for row in four["attribution"]["rows"]:
        for end in ("", "_low", "_high", "_difference", "_difference_low", "_difference_high"):
            row[f"superactivator_margin{end}"] = row[f"superactivator{end}"]
        row |= {"superactivator_margin_is": "open", "superactivator_margin_detectable": 0.056}
    # Strata are in the record and not on the page.
    four["attribution"]["rows"] += [{**row, "stratum": "2"} for row in four["attribution"]["rows"]]
    both = section(render_report(four), "attribution")
    assert table_rows(both)[3] == ["superactivator_margin", "0.420", "+0.110", "[+0.070, +0.146]", "0.056"]
    assert both.count('class="figure"') == 2
    text = parse(part).text
    assert "animal: 8 of 12 samples with a SuperActivator compared, 2 of 14 skipped without one" in text
    assert "no more faithful" in text
    assert part.count('class="figure"') == 2


def test_a_comparison_that_was_refused_says_why(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    one["kinds"]["prototype"]["absent"] = {"attribution": "this host brings no explainer"}
    assert "not computed in this run: this host brings no explainer." in section(
        render_report(one), "attribution"
    )
    assert 'id="attribution"' not in render_report(fake)


def test_a_missing_explanation_says_why(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake)
    del one["explained"]
    one["kinds"]["prototype"]["absent"] = {"explained": "no true positive"}
    assert "not computed in this run: no true positive." in section(render_report(one), "explained")


def test_long_lists_of_the_provenance_stay_in_the_record(fake):
    """A fit says something of every unit and layer: thousands of numbers, which nobody reads in a page."""
    one = copy.deepcopy(fake)
    one["provenance"]["counts"] = {"separator.fit": [{"iterations": list(range(1000))}], "units": [7] * 3}
    page = render_report(one)
    assert "in results.json" in page
    assert "997, 998" not in page
    assert "7, 7, 7" in page
