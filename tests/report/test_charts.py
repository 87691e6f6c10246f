"""Charts draw what their block holds, and stand in a page as a part of it."""

import re
from typing import Any

import numpy as np
import pytest
from fake_results import CONCEPTS, LAYERS, METHODS, results
from test_report import EVIL, SAFE_TAGS, parse, section

from sa_plugin.report import density_grid, fraction_lines, relative, render_report, stored
from sa_plugin.show import Markup, plots


@pytest.fixture(scope="module")
def block() -> dict[str, Any]:
    return results()["kinds"]["prototype"]


@pytest.fixture
def ax() -> Any:
    return plots.new_figure(5.0, 4.0)[1]


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def test_stored_numbers_are_drawn_as_they_were(block: dict[str, Any]) -> None:
    curves = block["sparsity"]["curves"]
    f1 = stored(
        [c["weighted_f1"] for c in curves],
        [c["interval"] for c in curves],
        method=[c["method"] for c in curves],
        delta=block["sparsity"]["deltas"],
    )
    np.testing.assert_array_equal(f1.sel(method="MaxTok").estimate, curves[1]["weighted_f1"])
    np.testing.assert_array_equal(
        np.stack(f1.sel(method="MaxTok").bounds, axis=1), curves[1]["interval"], strict=True
    )


def test_what_is_not_defined_is_nan() -> None:
    found = stored([0.5, None, 0.25], [[0.25, None], None, [0.0, 1.0]], concept=["a", "b", "c"])
    np.testing.assert_array_equal(found.estimate, [0.5, np.nan, 0.25])
    np.testing.assert_array_equal(found.low, [0.25, np.nan, 0.0])
    np.testing.assert_array_equal(found.high, [np.nan, np.nan, 1.0])
    assert np.isnan(stored([0.5], concept=["a"]).low).all()


def test_methods_have_a_dot_and_a_whisker_each(block: dict[str, Any], ax: Any) -> None:
    rows = sorted(block["detection"]["methods"], key=lambda row: -row["weighted_f1"])
    names = [row["method"] for row in rows]
    f1 = stored([row["weighted_f1"] for row in rows], [row["interval"] for row in rows], method=names)
    plots.method_whiskers(ax, f1, 0.549)
    assert texts(ax.get_yticklabels()) == sorted(METHODS, key=lambda m: -METHODS[m])
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [float(dot.get_xdata()[0]) for dot in dots] == sorted(METHODS.values(), reverse=True)
    bars = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "None"]
    assert bars == [*(row["interval"] for row in rows), [0.549, 0.549]]


def test_gaps_are_dark_where_the_interval_excludes_zero(ax: Any) -> None:
    plots.gap_whiskers(ax, stored([-0.1, -0.1], [[-0.2, -0.05], [-0.2, 0.05]], method=["a", "b"]))
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_color() for dot in dots] == [plots.TEXT_COLOUR, plots.OUT_COLOUR]


def test_the_delta_curve_has_every_method_the_floor_and_two_bands(block: dict[str, Any], ax: Any) -> None:
    curves = block["sparsity"]["curves"]
    f1 = stored(
        [c["weighted_f1"] for c in curves],
        [c["interval"] for c in curves],
        method=[c["method"] for c in curves],
        delta=block["sparsity"]["deltas"],
    )
    plots.delta_curves(ax, f1, 0.549)
    by_label = {line.get_label(): line for line in ax.lines}
    assert set(by_label) == {curve["method"] for curve in curves} | {"always-positive"}
    for curve in curves:
        np.testing.assert_allclose(by_label[curve["method"]].get_ydata(), curve["weighted_f1"])
    assert len(ax.collections) == 2
    assert (
        len({(line.get_color(), line.get_linestyle(), line._dash_pattern[1] is None) for line in ax.lines})
        >= 6
    )


def test_nine_methods_beside_the_two_have_a_look_each() -> None:
    names = [f"m{n}" for n in range(9)]
    assert len(set(plots.styles(names).values())) == 9


def test_fractions_are_drawn_concept_by_concept_and_in_the_mean(block: dict[str, Any], ax: Any) -> None:
    found = block["fractions"]
    fraction_lines(ax, found["grid"], found["all"])
    drawn = [line.get_ydata().tolist() for line in ax.lines]
    assert drawn == [*(found["all"]["concepts"][name] for name in sorted(CONCEPTS)), found["all"]["mean"]]
    assert ax.lines[0].get_gid() == f"tip:{min(CONCEPTS)}"


def test_the_drawn_tail_is_the_histogram_beyond_the_threshold(block: dict[str, Any], ax: Any) -> None:
    drawn = block["trace"]["distributions"]
    density_grid(ax, drawn, ["animal"], [18], {"animal": 18})
    k, one = LAYERS.index(18), drawn["concepts"]["animal"]
    out, tail, inside = (patch.get_data() for patch in ax.patches)
    edges, threshold = np.array(drawn["edges"]), one["threshold"][k]
    # Places are scores, shifted and scaled; heights are densities, scaled.
    shown = inside.values > 0
    kept = np.array(one["in_concept"][k]) > 0
    scale = inside.values[shown][0] / np.array(one["in_concept"][k])[kept][0]
    np.testing.assert_allclose(inside.values[shown], scale * np.array(one["in_concept"][k])[kept])
    wide = (inside.edges[-1] - inside.edges[0]) / (len(inside.values) * (edges[1] - edges[0]))
    assert float(ax.lines[0].get_xdata()[0]) == pytest.approx(float(tail.edges[0]))
    beyond = np.clip(edges[1:] - np.maximum(edges[:-1], threshold), 0, None) @ np.array(one["in_concept"][k])
    assert float(np.diff(tail.edges) @ tail.values) == pytest.approx(scale * wide * beyond)
    np.testing.assert_allclose(
        out.values[shown | (out.values > 0)].max(), scale * max(one["out_of_concept"][k])
    )


def test_a_head_map_is_lift_minus_control_centred_at_zero(block: dict[str, Any], ax: Any) -> None:
    one = block["heads"]["concepts"]["animal"]
    grid = relative(one)
    np.testing.assert_allclose(grid, np.array(one["lift"]) - np.array(one["control"]))
    plots.heat(ax, grid.T, range(9), range(30), limit=0.02)
    for cell in ax.patches:
        value = grid[round(cell.get_x() + 0.5), round(cell.get_y() + 0.5)]
        assert cell.get_alpha() == pytest.approx(min(abs(value) / 0.02, 1))
        assert (cell.get_facecolor()[0] > 0.5) == (value >= 0)
    assert len(ax.patches) == grid.size


def figure_of(name: str) -> Any:
    figure, ax = plots.new_figure(4.0, 2.0)
    plots.tip(plots.line(ax, stored([1.0, 2.0], [[0.5, 1.5], None], layer=[0, 1]), label=name), name)
    plots.words(ax, title=name, x="layer")
    plots.legend(ax, outside=False)
    return figure


@pytest.mark.parametrize("name", ["cost $5 and $6", EVIL, "#ce5410 0.12345678", "font-family: x; a"])
def test_words_of_a_chart_stay_words(name: str) -> None:
    drawn = plots.svg(figure_of(name), name, name, "a")
    tree = parse(drawn)
    assert {tag for tag, _ in tree.elements} <= {"svg", *SAFE_TAGS.split()}
    assert tree.words.count(name) == 5


def test_a_chart_is_a_part_of_its_page(block: dict[str, Any]) -> None:
    first, second = (plots.svg(figure_of("x"), "title", "words", prefix) for prefix in ("one", "two"))
    assert isinstance(first, Markup)
    assert first == plots.svg(figure_of("x"), "title", "words", "one")
    ids = [re.findall(r' id="([^"]+)"', one) for one in (first, second)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', first)) == set(ids[0])
    assert not re.search(r"#[0-9a-f]{6}|https?:|<style|<metadata|<!--|xmlns|[0-9]{4}-[0-9]{2}-", first)
    assert first.replace("one-", "two-") == second
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", first))
    assert colours == {"none", "var(--ink)", "var(--own)"}


def test_every_chart_of_the_page_follows_its_colours() -> None:
    page = render_report(results())
    drawings = re.findall(r'<svg[^>]*class="figure".*?</svg>', page, re.S)
    assert len(drawings) > 20
    assert not re.search(r'style="[^"]*#[0-9a-f]{3,}', "".join(drawings))
    styles = section(page, "detection") + page[: page.index("</style>")]
    for name in set(re.findall(r"var\((--[\w-]+)\)", "".join(drawings))):
        assert f"{name}:" in styles, name
    assert page.count(" xmlns") == 0
