"""Texts that try to be more than text: pages of the report and notebook cells hold them, and do nothing.

Every text of a record is replaced by one of `EVIL` or by random characters. Then the page parses with every
tag closed, has no element and no attribute that the harmless page lacks, and holds no character that turns
round what follows it, ends a page or cannot be written.
"""

import copy
import io
import re
import warnings
from collections import Counter
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
from detection_cases import make_case
from fake_host import FakeHost
from fake_results import CONCEPTS, small
from fuzzing import Tally, tries

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData
from sa_plugin.detection import calibrate
from sa_plugin.report import render_report, write_report
from sa_plugin.show import VOID
from sa_plugin.statistics import Resampling
from sa_plugin.tracing import trace

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' style='position:fixed",
    "</title></style></svg><b>",
    "<!-- ",
    "]]>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt;&#60;",
    "a\u202eb evil \u2066 never closed",
    "\u202d\u202c\u2069",
    "null\0byte",
    "\x1b[31mred\x07",
    "\x85\x9f",
    "lone \ud800 surrogate",
    "\udfff",
    "\ufffe\uffff",
    "$x^2$ and $\\frac{$",
    "line\nbreak\ttab\r\nend",
    "\u05d0\u05d1 right to left",
    "e\u0301\u0301\u0301\u0301",
    "\U0001f469\u200d\U0001f4bb",
)
UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
ACTIVE = {"script", "iframe", "object", "embed", "base", "form", "b"}


class Page(HTMLParser):
    """What a page is made of; a tag that does not close another is an error."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.made, self.handlers = [], Counter(), []

    def handle_starttag(self, tag, attrs):
        self.made[tag] += 1
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.handlers += [value for name, value in attrs if name in ("href", "src") and "script:" in value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(page):
    found = Page()
    found.feed(page)
    found.close()
    assert not found.open
    return found


def judge(page, harmless):
    """ "same" where a page has the elements of the harmless one, and none of the characters."""
    if found := UNSEEN.search(page):
        return "unseen", f"U+{ord(found[0]):04X}: {page[found.start() - 60 : found.end() + 20]!r}"
    made = read(page)
    if made.handlers != harmless.handlers:
        return "interpreted", str(made.handlers)
    more = {tag: n for tag, n in made.made.items() if n > harmless.made[tag] and tag in ACTIVE}
    return ("interpreted", str(more)) if more else ("same", "")


def random_text(rng):
    if rng.random() < 0.6:
        return EVIL[int(rng.integers(len(EVIL)))]
    span = [(0, 0x80), (0, 0x300), (0x2000, 0x2100), (0xD700, 0xE000), (0x1F000, 0x1FFFF)][
        int(rng.integers(5))
    ]
    return "".join(chr(int(one)) for one in rng.integers(*span, int(rng.integers(1, 20))))


def poisoned(record, evil):
    """A record whose concepts, notes and passages are evil texts; lengths of passages stay."""
    names = {name: f"{evil} {k}" for k, name in enumerate(CONCEPTS)}

    def replaced(value, key=""):
        if isinstance(value, dict):
            return {names.get(k, k): replaced(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [replaced(one, key) for one in value]
        if isinstance(value, str):
            if value in names:
                return names[value]
            if key == "text":
                return (evil * (len(value) // max(len(evil), 1) + 1))[: len(value)]
            if key in ("data", "model", "data_note", "warnings", "architecture"):
                return f"{value} {evil}"
        return value

    return replaced(copy.deepcopy(record))


@pytest.fixture(scope="module")
def harmless():
    return read(render_report(small()))


@pytest.mark.filterwarnings("ignore")
def test_pages_of_evil_texts(harmless, tmp_path):
    rng, tally = np.random.default_rng(0), Tally()
    record = small()
    for k in range(tries(4, 60)):
        evil = EVIL[k] if k < len(EVIL) and tries(0, 1) else random_text(rng)
        try:
            page = write_report(poisoned(record, evil), tmp_path / "report.html").read_text()
            kind, about = judge(page, harmless)
        except Exception as error:
            kind, about = "unnamed", f"{type(error).__name__}: {error}"
        tally.add(kind, f"{evil!r}: {about}")
    tally.require("same")


@pytest.mark.filterwarnings("ignore")
def test_every_evil_text_in_one_page_and_an_override_is_shown(harmless):
    page = render_report(poisoned(small(), " ".join(EVIL)))
    assert judge(page, harmless) == ("same", "")
    assert "a↞b evil" in page


def test_cells_of_evil_names():
    """What a notebook shows of data, detector, hits and evaluation."""
    rng, tally = np.random.default_rng(1), Tally()
    case = make_case(n=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(None, case.data, case.bank, scores=case.table, deltas=(0.1, 0.5))
        hits = detector.find(case.data.test, scores=case.table)
    for _ in range(tries(40, 400)):
        evil = random_text(rng)
        texts = [f"{evil} a cat {k}" for k in range(12)]
        at = len(evil) + 3
        try:
            data = ConceptData.from_spans(texts, [[(at, at + 3, evil or "x")], []] * 6, name=evil or "x")
            shown = data._repr_html_()
        except (TypeError, ValueError) as error:
            tally.add("refused", str(error))
            continue
        read(shown)
        kind = "unseen" if UNSEEN.search(shown) else "same"
        tally.add("interpreted" if read(shown).made.keys() & ACTIVE else kind, repr(evil))
    for one in (detector, hits):
        assert not read(one._repr_html_()).handlers
    tally.require("same", "refused")


def results_on(evil):
    """What a notebook shows of data whose passages hold an evil text, and whose concept is called so."""
    texts = [f"{word} {evil} sat {k}" for k, word in enumerate(["cat", "ran"] * 20)]
    spans = [[(0, 3, f"{evil} c")] if text.startswith("cat") else [] for text in texts]
    host, data = FakeHost(), ConceptData.from_spans(texts, spans, name=f"{evil} data")
    detector = calibrate(host, data, fit(host, data, "prototype"), deltas=(0.1, 0.5))
    few = Resampling(20)
    found = [data, detector, detector.find(data.test), detector.localise(data.test)]
    found += [detector.evaluate(data.test, resampling=few), detector.sweep(data.test, resampling=few)]
    return [*found, trace(host, data, detector.bank, resampling=few)]


def notebook_of(results):
    """A notebook that shows results as a kernel does: HTML, text, what is printed, and the picture."""
    outputs = []
    for one in results:
        shown = {"text/html": one._repr_html_(), "text/plain": repr(one)}
        if not isinstance(one, ConceptData):
            drawn = io.BytesIO()
            one.plot().savefig(drawn, format="svg")
            shown["image/svg+xml"] = drawn.getvalue().decode()
        outputs += [nbformat.v4.new_output("display_data", data=shown)]
        outputs += [nbformat.v4.new_output("stream", text=str(one))]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("results", outputs=outputs)])


@pytest.mark.filterwarnings("ignore")
def test_notebook_files_of_evil_texts(tmp_path):
    rng, tally = np.random.default_rng(2), Tally()
    for k in range(tries(4, 60)):
        evil = EVIL[k] if k < len(EVIL) and tries(0, 1) else random_text(rng)
        try:
            results = results_on(evil)
        except (TypeError, ValueError) as error:
            tally.add("refused" if re.search("sample|concept|name is", str(error)) else "unnamed", str(error))
            continue
        try:
            path = tmp_path / "results.ipynb"
            nbformat.write(notebook_of(results), path)
            (cell,) = nbformat.read(path, as_version=4).cells
            kind, about = "same", ""
            for output in cell.outputs:
                for text in [output.text] if "text" in output else output.data.values():
                    if found := UNSEEN.search(text):
                        kind, about = "unseen", f"{text[max(found.start() - 60, 0) : found.end() + 20]!r}"
                if "data" in output:
                    made = read(output.data["text/html"])
                    if made.handlers or made.made.keys() & (ACTIVE - {"b"}):
                        kind, about = "interpreted", str(made.made)
        except Exception as error:
            kind, about = "unnamed", f"{type(error).__name__}: {error}"
        tally.add(kind, f"{evil!r}: {about}")
    tally.require("same", "refused")
