"""Plots draw what their block holds, with the Agg backend."""

import builtins
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fake_results import CONCEPTS, LAYERS, METHODS, results
from test_report import parse

from sa_plugin.report import plots


@pytest.fixture(scope="module")
def fake() -> dict[str, Any]:
    return results()


@pytest.fixture(scope="module")
def block(fake: dict[str, Any]) -> dict[str, Any]:
    return fake["kinds"]["prototype"]


@pytest.fixture(autouse=True)
def _closed() -> Any:
    yield
    plt.close("all")


def test_detection_has_a_dot_and_a_whisker_a_method(block: dict[str, Any]) -> None:
    ax = plots.plot_detection(block["detection"])
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels == sorted(METHODS, key=lambda m: -METHODS[m])
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == sorted(METHODS.values(), reverse=True)
    assert len(ax.lines) == 2 * len(METHODS) + 1


def test_sparsity_has_every_curve_and_the_floor(block: dict[str, Any]) -> None:
    curves = block["sparsity"]["curves"]
    ax = plots.plot_sparsity(block["sparsity"])
    by_label = {line.get_label(): line for line in ax.lines}
    assert set(by_label) == {curve["method"] for curve in curves} | {"always-positive"}
    for curve in curves:
        np.testing.assert_allclose(by_label[curve["method"]].get_ydata(), curve["weighted_f1"])
    assert len(ax.collections) == 2
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert len(looks) >= 6


def test_trace_draws_coverage_with_that_of_negatives(block: dict[str, Any]) -> None:
    ax = plots.plot_trace(block["trace"], "coverage")
    assert len(ax.lines) == 2 * (len(CONCEPTS) + 1)
    bold = {line.get_label(): line for line in ax.lines if line.get_linewidth() > 2}
    assert set(bold) == {"coverage", "negative coverage"}
    np.testing.assert_allclose(bold["coverage"].get_ydata(), block["trace"]["mean"]["coverage"])
    assert len(plots.plot_trace(block["trace"]).lines) == len(CONCEPTS) + 1


def test_trace_refuses_unknown_quantities(block: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no 'gap': use one of .*'tail_gap'"):
        plots.plot_trace(block["trace"], "gap")


def test_distributions_mark_threshold_and_tail(block: dict[str, Any]) -> None:
    drawn = block["trace"]["distributions"]
    ax = plots.plot_distributions(drawn, "animal", 18)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["out of concept", "in concept", "tail (SuperActivators)"]
    k = LAYERS.index(18)
    threshold = drawn["concepts"]["animal"]["threshold"][k]
    assert float(ax.lines[0].get_xdata()[0]) == threshold
    tail = ax.patches[-1].get_data()
    assert tail.edges[0] == threshold
    # The drawn tail is the part of the histogram beyond the threshold, nothing else.
    inside, edges = np.array(drawn["concepts"]["animal"]["in_concept"][k]), np.array(drawn["edges"])
    beyond = np.clip(edges[1:] - np.maximum(edges[:-1], threshold), 0, None) @ inside
    assert float(np.diff(tail.edges) @ tail.values) == pytest.approx(beyond)


@pytest.mark.parametrize(
    ("concept", "layer", "message"),
    [("beast", 18, "no distributions of 'beast'"), ("animal", 17, "no distributions at layer 17")],
)
def test_distributions_refuse_what_is_not_there(
    block: dict[str, Any], concept: str, layer: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plots.plot_distributions(block["trace"]["distributions"], concept, layer)


def test_head_map_is_lift_minus_control_centred_at_zero(block: dict[str, Any]) -> None:
    heads = block["heads"]["concepts"]
    ax = plots.plot_heads(block["heads"], "animal")
    image = ax.images[0]
    expected = np.array(heads["animal"]["lift"]) - np.array(heads["animal"]["control"])
    np.testing.assert_allclose(image.get_array(), expected.T)
    low, high = image.get_clim()
    assert low == -high
    mean = np.mean([np.array(h["lift"]) - np.array(h["control"]) for h in heads.values()], axis=0)
    np.testing.assert_allclose(plots.plot_heads(block["heads"]).images[0].get_array(), mean.T)
    with pytest.raises(ValueError, match="no head map of 'beast'"):
        plots.plot_heads(block["heads"], "beast")


def test_plots_draw_on_given_axes(block: dict[str, Any]) -> None:
    _, ax = plt.subplots()
    assert plots.plot_detection(block["detection"], ax=ax) is ax
    assert plots.plot_sparsity(block["sparsity"], ax=ax) is ax
    assert plots.plot_trace(block["trace"], ax=ax) is ax
    assert plots.plot_distributions(block["trace"]["distributions"], "time", ax=ax) is ax
    _, ax = plt.subplots()
    assert plots.plot_heads(block["heads"], ax=ax) is ax


def test_passages_show_in_a_notebook_without_network(fake: dict[str, Any]) -> None:
    shown = plots.show_passages(fake["passages"])
    assert repr(shown) == "PassageView(3 passages)"
    frame = parse(shown._repr_html_())
    ((tag, attributes),) = frame.elements
    assert tag == "iframe"
    assert attributes["sandbox"] == ""
    assert "src" not in attributes
    inner = parse(str(attributes["srcdoc"]))
    assert not any(tag in ("script", "img", "link") for tag, _ in inner.elements)
    assert "<script>alert(1)</script>" in "".join(inner.words)


def test_a_missing_matplotlib_names_the_extra(block: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", lambda name: without(name))
    with pytest.raises(ImportError, match=r"pip install 'sa_plugin\[plot\]'"):
        plots.plot_detection(block["detection"])
