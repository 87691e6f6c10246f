"""What a user sees: notebooks show the full text, reprs are short, wrong arguments are named."""

import html
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detection_cases import make_case
from fake_host import FakeHost
from jaxtyping import config

import sa_plugin
from sa_plugin._check import require_type
from sa_plugin.concepts import ConceptBank, collect, fit
from sa_plugin.data import ConceptData, Image, Sample, Splits
from sa_plugin.detection import Detector, calibrate
from sa_plugin.heads import BankScores, ablate_heads, explain_tokens, head_ledger, tail_waterfall
from sa_plugin.scores import score
from sa_plugin.show import Result, Sheet, Shown
from sa_plugin.stages import Plan, delta_peaks, study
from sa_plugin.statistics import Resampling
from sa_plugin.theory import advise
from sa_plugin.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FEW = {"draws": 40}


class TransformerBridge:
    """Stands for a model that was not attached."""


@pytest.fixture
def as_shipped():
    """Users run without the shape checks of the tests: what they see are the library's errors."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.fixture(scope="module")
def detector(case):
    return calibrate(None, case.data, case.bank, scores=case.table)


@pytest.fixture(scope="module")
def model():
    """A host, its data and a detector on it."""
    rng = np.random.default_rng(0)
    words = [list(rng.choice(["cat", "sat", "ran", "blue", "over"], 5)) for _ in range(60)]
    labels = [["animal" if w == "cat" else None for w in row] for row in words]
    host, data = FakeHost(), ConceptData.from_words(words, labels, splits=Splits(seed=1))
    found = calibrate(host, data, fit(host, data, "prototype"), deltas=(0.1, 0.5))
    return host, data, found


# What each is made by, of a case, its detector and a model; a new result needs a row here.
MAKERS = {
    "ConceptData": lambda case, detector, model: case.data,
    "Detector": lambda case, detector, model: detector,
    "Evaluation": lambda case, detector, model: detector.evaluate(case.data.test, **given(case)),
    "SparsityCurve": lambda case, detector, model: detector.sweep(case.data.test, **given(case)),
    "LocalisationMetrics": lambda case, detector, model: detector.evaluate_tokens(
        case.data.test, scores=case.table
    ),
    "TailTrace": lambda case, detector, model: trace(**given(case)),
    "HeadLedger": lambda case, detector, model: head_ledger(*model, resampling=Resampling(40)),
    "TokenLedger": lambda case, detector, model: explain_tokens(
        model[0], model[2], model[1].test.samples[0], "animal"
    ),
    "Waterfall": lambda case, detector, model: tail_waterfall(*model, resampling=Resampling(40)),
    "Advice": lambda case, detector, model: advise(case.table, tokens=40, samples=20),
    "DeltaPeaks": lambda case, detector, model: delta_peaks(
        detector, case.table.split("test"), Resampling(40)
    ),
    "Study": lambda case, detector, model: study(
        *model[:2], Plan(["prototype"], stages=["detection"], resampling=Resampling(40))
    ),
}
# Results that are costly to make are shown where they are tested: the file and its test.
_ON_HEADS = (
    "heads/test_heads_shown.py",
    "test_text_and_notebook_show_the_same_cells_and_what_they_do_not_show",
)
ELSEWHERE = {
    **dict.fromkeys(
        ("Ablation", "AblationCurve", "CrossAblation", "Ranking", "DirectTotal", "HeadAlignment"), _ON_HEADS
    ),
    "Attribution": ("attribution/test_attribution_results.py", "test_the_printed_sheet_is_the_top"),
    "Comparison": ("attribution/test_attribution_evaluation.py", "test_a_comparison_prints_and_draws"),
    "Scan": ("scanning/test_scan.py", "test_what_was_found_is_shown"),
    "TheoryReport": ("theory/test_check_theory_report.py", "test_words"),
    "SteeringCurves": ("generation/test_steer_curves.py", "test_what_is_said_follows_from_the_numbers"),
    "CheckReport": ("on_transformer_lens/test_tl_host.py", "test_passes_on_every_architecture"),
}


def given(case):
    return {"scores": case.table, "resampling": Resampling(draws=40)}


@pytest.fixture(scope="module", params=MAKERS)
def shown(request, case, detector, model):
    """A result of each kind that is shown by its text, with its name."""
    return request.param, MAKERS[request.param](case, detector, model)


def test_notebooks_show_the_full_text_and_the_repr_is_one_line(shown):
    name, result = shown
    text = str(result)
    assert text.count("\n") > 1
    assert isinstance(result, Shown)
    cells = [cell for sheet in result.sheets() for row in sheet.rows for cell in row]
    shown_html = re.sub("</?span[^>]*>", "", result._repr_html_())
    assert "<table" in shown_html
    assert all(html.escape(cell) in shown_html and cell in text for cell in cells)
    assert repr(result).startswith(f"{name}(")
    assert "\n" not in repr(result)


# Data are made from no artefact, and a study fits its own.
@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("ConceptData", "Study")])
def test_what_is_made_from_an_artefact_that_drifted_says_so(name, case, detector, model, monkeypatch):
    monkeypatch.setattr(ConceptBank, "drift", property(lambda self: "moved by 9"))
    result = MAKERS[name](case, detector, model)
    for words in (str(result), result._repr_html_()):
        assert words.count("Loaded with allow_drift: moved by 9.") == 1
    assert result.to_dict()["drift"] == "moved by 9"


def test_whatever_public_makes_a_result_hands_on_what_its_arguments_say_of_themselves():
    """By `face`; tables and detectors ask their bank, and some are made from no artefact."""
    own = {"CheckReport", "ConceptBank", "ConceptData", "Detector", "PromptAnswers", "ScoreTable", "Study"}
    rooms = [room.name for room in pkgutil.iter_modules(sa_plugin.__path__) if room.ispkg]
    made = {}
    for room in (importlib.import_module(f"sa_plugin.{name}") for name in rooms):
        for name in getattr(room, "__all__", ()):
            one = getattr(room, name)
            returned = str(getattr(one, "__annotations__", {}).get("return"))
            kinds = {kind.__name__ for base in (Shown, Result) for kind in base.__subclasses__()} - own
            if inspect.isfunction(one) and {*re.findall(r"\w+", returned)} & {*kinds, "Objective"}:
                made[name] = hasattr(one, "__faced__")
    assert len(made) > 10
    assert all(made.values()), made


def test_the_text_is_the_summary(shown):
    _, result = shown
    assert str(result) == result.summary()


def test_every_result_is_shown_by_a_test():
    for package in ("sa_plugin", "sa_transformer_lens", "sa_nnsight"):
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    every = {one.__name__ for one in Result.__subclasses__() if one.__module__.startswith("sa_")}
    assert every - set(MAKERS) - set(ELSEWHERE) == set(), "no test shows these: add a row to MAKERS"
    assert set(ELSEWHERE) <= every - set(MAKERS)
    for file, test in ELSEWHERE.values():
        assert f"def {test}(" in (Path(__file__).parents[1] / file).read_text(encoding="utf-8")


def test_a_wide_table_is_cut_between_columns():
    header = ["name", *(f"column {k}" for k in range(20))]
    rows = [[name, *(f"{name}{k}" for k in range(20))] for name in ("a", "b")]
    text = Sheet(header, rows).text()
    pieces = [piece.splitlines() for piece in text.split("\n\n")]
    assert max(map(len, text.splitlines())) <= 120
    assert [piece[0].split()[0] for piece in pieces] == ["name"] * 2
    assert [cell for piece in pieces for cell in piece[2].split()[1:]] == rows[0][1:]
    assert [cell for piece in pieces for cell in piece[3].split()[1:]] == rows[1][1:]


def test_what_a_whole_column_says_of_its_intervals_stands_in_its_header():
    few = "[0.1, 0.9] few documents"
    every = Sheet(["method", "F1"], [["a", few], ["b", ""], ["c", "no interval: biased"]])
    assert list(every.header) == ["method", "F1, few documents"]
    assert [row[1] for row in every.rows] == ["[0.1, 0.9]", "", "no interval: biased"]
    some = Sheet(["method", "F1"], [["a", few], ["b", "[0.2, 0.3]"]])
    assert list(some.header) == ["method", "F1"]
    assert some.rows[0][1] == few


def test_html_is_escaped():
    shown = Sheet(["F1 < 1"], [["a & <b>"]], "x > y", ["<i>"]).html()
    assert "F1 &lt; 1" in shown
    assert "a &amp; &lt;b&gt;" in shown
    assert "x &gt; y" in shown
    assert "&lt;i&gt;" in shown


def test_localisation_metrics_repr_has_plain_numbers(case, detector):
    metrics = detector.evaluate_tokens(case.data.test, scores=case.table)
    assert "'0." not in repr(metrics)
    for name in metrics.methods:
        assert f"{name} {metrics.f1.sel(method=name).estimate:.3f}" in repr(metrics)


def test_sample_repr():
    image = Image(np.zeros((224, 160, 3), np.uint8))
    one = Sample("i1", "", "d", positive=frozenset({"b", "a"}), image=image)
    assert repr(one) == "Sample('i1', image 224 x 160, ['a', 'b'])"
    assert repr(Sample("t1", "The whale rose.", "d")) == "Sample('t1', 'The whale rose.', [])"
    long = Sample("t2", "x" * 39 + "yz", "d", positive=frozenset({"a"}))
    assert repr(long) == f"Sample('t2', '{'x' * 39}y'..., ['a'])"


def test_samples_with_the_same_repr_are_equal_only_if_all_they_hold_is():
    one, other = Sample("t", "x" * 40 + "a", "d"), Sample("t", "x" * 40 + "b", "d")
    assert repr(one) == repr(other)
    assert one != other
    assert one == Sample("t", "x" * 40 + "a", "d")
    assert hash(one) == hash(Sample("t", "x" * 40 + "a", "d"))


def test_require_type():
    require_type("n", 1, (int, str), "count")
    require_type("n", None, int, "count", optional=True)
    with pytest.raises(TypeError, match=r"^n is a float, not an int or str: count\.$"):
        require_type("n", 1.0, (int, str), "count")
    with pytest.raises(TypeError, match="n is a NoneType, not an int"):
        require_type("n", None, int, "count")


@pytest.mark.usefixtures("as_shipped")
class TestWrongArguments:
    def test_ledger(self, model):
        host, data, detector = model
        order = r".*the order is head_ledger\(host, data, source\)"
        with pytest.raises(TypeError, match=f"data is a Detector, not a ConceptData: {order}"):
            head_ledger(host, detector, data)
        with pytest.raises(TypeError, match=f"not a Detector or a ConceptBank or a BankScores: {order}"):
            head_ledger(host, data, data)
        bridge = r"host is a TransformerBridge, not a Host: attach\(model\) first; " + order
        with pytest.raises(TypeError, match=bridge):
            head_ledger(TransformerBridge(), data, detector)
        with pytest.raises(TypeError, match="scores is a Detector, not a ScoreTable: give score"):
            head_ledger(host, data, detector, scores=detector)
        with pytest.raises(TypeError, match="a detector has chosen its layers and its tail, so give it"):
            BankScores(detector, layers=[1])

    def test_trace(self, case, detector):
        with pytest.raises(TypeError, match="scores is a Detector, not a ScoreTable: give score"):
            trace(scores=detector)
        with pytest.raises(TypeError, match=r"host is a ScoreTable, not a Host: attach"):
            trace(case.table)
        with pytest.raises(TypeError, match="resampling is 100, not a Resampling: give Resampling"):
            trace(scores=case.table, resampling=100)

    @pytest.mark.parametrize(
        ("ask", "order"),
        [(collect, r"collect\(host, data\)"), (fit, "fit"), (score, "score"), (calibrate, "calibrate")],
    )
    def test_the_first_steps(self, model, ask, order):
        host, data, detector = model
        last = [detector.bank] if ask in (score, calibrate) else []
        with pytest.raises(TypeError, match=f"host is a ConceptData, not a Host: .*the order is {order}"):
            ask(data, host, *last)
        # `score` takes samples of any kind in the place of data.
        said = "samples are of type Detector" if ask is score else "data is a Detector, not a ConceptData: .*"
        with pytest.raises(TypeError, match=said if ask is score else f"{said}the order is {order}"):
            ask(host, detector, *last)

    def test_names_and_heads(self, model):
        host, data, detector = model
        name = detector.concepts[0]
        with pytest.raises(TypeError, match=f"concepts is the text '{name}', not a list of names: give"):
            head_ledger(host, data, detector, concepts=name)
        with pytest.raises(
            TypeError, match=r"heads\[0\] is 1, not \(a whole number, a whole number\) or a text"
        ):
            ablate_heads(host, data, detector, (1, 2))
        with pytest.raises(TypeError, match="how is the text 'mean', not an Intervention: give Intervention"):
            ablate_heads(host, data, detector, [(0, 0)], how="mean")

    def test_a_misspelt_question(self):
        with pytest.raises(AttributeError, match="no attribute 'headledger': did you mean 'head_ledger'"):
            _ = sa_plugin.headledger

    def test_from_pretrained(self, model, tmp_path):
        host, _, detector = model
        folder = detector.save_pretrained(tmp_path / "saved")
        bridge = r"host is a TransformerBridge, not a Host: attach\(model\) first"
        with pytest.raises(TypeError, match=bridge):
            Detector.from_pretrained(folder, host=TransformerBridge())
        assert Detector.from_pretrained(folder, host=host).host is host
        assert Detector.from_pretrained(folder).host is None


def test_a_notebook_shows_a_figure_that_pyplot_never_made():
    """As a kernel does: the inline backend is named, and loaded by nobody else."""
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "from sa_plugin.show import plots\n"
        "figure, ax = plots.new_figure(2, 2)\n"
        "print('image/png' in shell.display_formatter.format(figure)[0])\n"
    )
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **backend}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "True", done.stderr


def test_a_warning_names_the_users_line(case, as_shipped):
    with pytest.warns(UserWarning, match="fewer than 1 / delta") as seen:
        calibrate(None, case.data, case.bank, scores=case.table)
    assert {one.filename for one in seen} == {__file__}


def test_localised_tokens_say_where_they_start_and_end(model):
    _, data, detector = model
    found = detector.localise(data.test)
    table = found.table()
    assert list(table.columns[:5]) == ["sample", "concept", "token", "start", "end"]
    texts = {sample.id: sample.text for sample in data.test.samples}
    for row in table.itertuples():
        assert texts[row.sample][row.start : row.end] == row.token


def test_a_column_of_words_is_not_one_word_wide_on_a_narrow_page():
    shown = Sheet(
        ["metric", "whose"], [["f1", "cannot tell"], ["auroc", "any vector's, and more than " * 3]]
    ).html()
    assert "white-space:pre-wrap;min-width:11ch" in shown
    assert "white-space:pre-wrap;min-width:24ch" in shown
    assert 'white-space:pre">auroc' in shown


def test_a_header_longer_than_its_numbers_wraps_so_that_more_columns_fit():
    shown = Sheet(["concept", "AUROC of max, few documents"], [["cat", "0.97 [0.39, 1.00]"]]).html()
    assert 'white-space:normal;vertical-align:bottom">AUROC of max' in shown
    assert 'white-space:pre;vertical-align:bottom">concept' in shown
