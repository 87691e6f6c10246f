"""The figures that README and the openings of findings quote are those of the results files."""

import json
from functools import partial

import alignment_page
import claims_page
import pytest
import quoted
import reproduction_page
import rival_tables
import tail_law_page

PLACES = quoted.places()


@pytest.mark.parametrize("page", PLACES, ids=lambda page: page.name)
def test_quoted_figures_are_those_of_the_results(page):
    assert quoted.wrong(PLACES[page]) == []
    assert quoted.unnamed(PLACES[page]) == []


TABLES = {
    "claims": (claims_page.PAGE, claims_page.BEGIN, claims_page.table),
    "reproduction": (reproduction_page.PAGE, reproduction_page.BEGIN, reproduction_page.shown),
    "tail law": (tail_law_page.PAGE, tail_law_page.MEASURED_BEGIN, tail_law_page.measured_shown),
    "tail law, all blocks": (tail_law_page.PAGE, tail_law_page.BLOCKS_BEGIN, tail_law_page.blocks_shown),
    "tail law, budget": (tail_law_page.PAGE, tail_law_page.BUDGET_BEGIN, tail_law_page.budget_shown),
    "results": (rival_tables.PAGE, rival_tables.BEGIN, rival_tables.shown),
} | {
    kind: (alignment_page.PAGE, alignment_page.BEGIN.format(kind), partial(alignment_page.table, kind))
    for kind in alignment_page.KINDS
}


@pytest.mark.parametrize("page", TABLES)
def test_tables_are_those_of_the_kept_results(page):
    file, begin, shown = TABLES[page]
    after = file.read_text().partition(begin)[2].partition("<!-- end of ")[0]
    assert after.strip() == shown().strip(), "write it anew by the command that stands in its marker"


TEXT = """- F1 is .73 here, and
  +.044 [-.020, +.108] more there; {} % of 1,332.
  <!-- quoted
  .73 = made.json a b / f1
  +.044 [-.020, +.108] = made.json minus / 1
  14 % = made.json share
  1,332 = made.md Of edges / all, **kept** | 12 / count
  -->
"""
PAGE = "## Of edges\n\n| edges | heads | count |\n|---|---|---|\n| all, kept | 12 | 1,332 [1, 2] |\n"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(quoted, "FINDINGS", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "made.md").write_text(PAGE)

    def write(f1=0.7312, low=-0.0204, share=0.14):
        made = {"a b": {"f1": [f1, 0.1, 0.9, None]}, "minus": [9.0, 0.044, low, 0.108], "share": share}
        (tmp_path / "data" / "made.json").write_text(json.dumps(made))

    write()
    return write


def test_what_agrees_has_no_fault(results):
    text = TEXT.format(14).replace("**", "")
    assert quoted.wrong(text) == quoted.unnamed(text) == []
    assert quoted.rewritten(text) == text
    results(f1=0.7350)  # a half may go either way
    assert quoted.wrong(text) == []


def test_what_does_not_is_named_and_written_anew(results):
    text = TEXT.format(14).replace("**", "")
    results(f1=0.7449, low=0.0301, share=0.149)
    assert quoted.wrong(text) == [
        "the text says .73, made.json a b / f1 says .74",
        "the text says +.044 [-.020, +.108], made.json minus / 1 says +.044 [+.030, +.108]",
        "the text says 14 %, made.json share says 15 %",
    ]
    new = quoted.rewritten(text)
    assert new == text.replace(".73", ".74").replace("-.020", "+.030").replace("14 %", "15 %")
    assert quoted.wrong(new) == []


def test_a_sign_is_part_of_a_figure(results):
    text = "Less by .02.\n<!-- quoted\n.02 = made.json minus / 2\n-->"
    assert quoted.wrong(text) == ["the text says .02, made.json minus / 2 says -.02"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("F1 is .731", [".731 names no result: F1 is .731"]),
        ("by `x = 1.5`, [a page](b_1.5.md), Python 3.11, 3.12 or 3.13, arXiv 2512.05038 and 3 of 4", []),
        ("| .5 | .6 |", []),
        ("power .8 <!-- a comment with .3 -->\n<!-- quoted\n.8 = setting\n-->", []),
        ("-.5, .25 and 1.004", ["-.5", ".25", "1.004"]),
    ],
)
def test_every_decimal_names_its_result(text, said):
    found = quoted.unnamed(text)
    assert [one.split(" ")[0] for one in found] == [one.split(" ")[0] for one in said]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (".73 = made.json a b / f2", "made.json has no 'f2' of 'a b / f2', but f1."),
        (".73 = made.json a b", "name a number, or a list of them"),
        (
            ".73 [.1, .9, .9] = made.json a b / f1",
            "holds 4 numbers, made.json a b / f1 gives 3: name as many.",
        ),
        (".73 = made.md Of edges / none / count", "has 0 cells 'Of edges / none / count', not one"),
        (".73 made.json a b / f1", "is no quote: write FIGURE = FILE step / step, or FIGURE = setting."),
    ],
)
def test_a_line_that_leads_nowhere_is_refused(results, line, words):
    said = line.split(" = ")[0]
    with pytest.raises(ValueError, match=r".") as caught:
        quoted.wrong(f"F1 is {said}\n<!-- quoted\n{line}\n-->")
    assert words in str(caught.value)


def test_words_that_the_text_does_not_say(results):
    (fault,) = quoted.wrong("F1 is .7\n<!-- quoted\n.73 = made.json a b / f1\n-->")
    assert fault == "no '.73' in the text above its comment: F1 is .7"
