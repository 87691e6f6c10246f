"""Laws of images in the report: whole, safe, self-contained, and marked where the scores say."""

import copy
import re
from typing import Any

import numpy as np
import pytest
from fake_results import small
from test_report import SAFE_TAGS, SECTIONS, parse, section

from sa_plugin.report import read_results, render_report, write_results
from sa_plugin.show import data_uri, mask_outline, rim

EVIL = "</style><script>alert('x')</script><img src=x onerror=alert(1)>\"'&"
SIDE, PATCH = 48, 8


def picture(role: str, positive: bool, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(len(role))
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[9:30, 12:33] = positive
    edges = np.arange(0, SIDE, PATCH)
    boxes = np.array([[y, x, y + PATCH, x + PATCH] for y in edges for x in edges], dtype=float)
    inside = [bool(mask[int(t) : int(b), int(x) : int(r)].any()) for t, x, b, r in boxes]
    scores = np.round(rng.normal(-0.05, 0.05, len(boxes)) + 0.3 * np.array(inside), 4)
    return {
        "id": f"fake-{role}",
        "document": "scene 3",
        "concept": "red",
        "kind": "prototype",
        "layer": 8,
        "delta": 0.1,
        "threshold": 0.231,
        "raw_threshold": 0.094,
        "role": role,
        "positive": positive,
        "png": data_uri(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)),
        "size": [SIDE, SIDE],
        "boxes": boxes.tolist(),
        "scores": scores.tolist(),
        "superactivator": (scores >= 0.231).tolist(),
        "in_concept": inside,
        "outline": mask_outline(mask),
        **more,
    }


@pytest.fixture(scope="module")
def fake() -> dict[str, Any]:
    """A run on images."""
    one = {k: v for k, v in small().items() if k not in ("passages", "explained")}
    hit = picture("true_positive", True)
    silent = {"scores": [0.1] * 36, "superactivator": [False] * 36}
    return one | {"pictures": [hit, picture("raw_false_fire", False, **silent)]}


@pytest.fixture(scope="module")
def page(fake: dict[str, Any]) -> str:
    return render_report(fake)


def panels(part: str) -> list[str]:
    return re.findall(r"<svg[^>]*pixels.*?</svg>", part, re.S)


def test_every_image_has_two_panels_that_say_what_they_show(page: str) -> None:
    found = panels(section(page, "pictures"))
    assert len(found) == 4
    for one in found:
        assert 'role="img"' in one
        assert re.search(r"<title>[^<]+</title><desc>[^<]+</desc>", one)
    assert "Raw activations: red, image fake-true_positive" in found[0]
    assert "SuperActivators: red, image fake-raw_false_fire" in found[3]


def test_the_page_holds_its_images_and_fetches_nothing(page: str, fake: dict[str, Any]) -> None:
    tree = parse(page)
    ids = [attrs["id"] for _, attrs in tree.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    policy = next(a["content"] for _, a in tree.elements if a.get("http-equiv"))
    assert "default-src 'none'" in str(policy)
    assert "img-src data:" in str(policy)
    sources = [str(attrs["href"]) for tag, attrs in tree.elements if tag == "image"]
    assert sources == [one["png"] for one in fake["pictures"]]
    again = [str(attrs["href"])[1:] for tag, attrs in tree.elements if tag == "use"]
    images = [attrs["id"] for tag, attrs in tree.elements if tag == "image"]
    assert [name for name in again if name in images] == images
    assert {tag for tag, _ in tree.elements} <= {*SAFE_TAGS.split(), "image", "use"}
    assert not re.search(r"https?://|@import|url\((?!#)|javascript:", page)


def test_an_image_under_two_concepts_is_in_the_page_once(fake: dict[str, Any]) -> None:
    hit = fake["pictures"][0]
    page = render_report(fake | {"pictures": [hit, hit | {"concept": "blue"}]})
    assert page.count(hit["png"]) == 1
    tree = parse(page)
    (name,) = [attrs["id"] for tag, attrs in tree.elements if tag == "image"]
    again = [attrs["href"] for tag, attrs in tree.elements if tag == "use"]
    assert again.count(f"#{name}") == 3
    assert len(panels(section(page, "pictures"))) == 4


def test_marks_are_the_superactivators(page: str, fake: dict[str, Any]) -> None:
    found = panels(section(page, "pictures"))
    for n, one in enumerate(fake["pictures"]):
        raw, tail = found[2 * n : 2 * n + 2]
        assert tail.count('class="tint"') == sum(one["superactivator"])
        assert len(re.findall(r'class="(?:pos|neg)"', raw)) == len(one["boxes"])
        above = sum(v > one["raw_threshold"] for v in one["scores"])
        assert f"{above} of them above the raw threshold" in raw
        marked = [b for b, on in zip(one["boxes"], one["superactivator"], strict=True) if on]
        where = re.findall(r'x="(\d+)" y="(\d+)" width="8.00" height="8.00" class="tint"', tail)
        assert [(float(y), float(x)) for x, y in where] == [(b[0], b[1]) for b in marked]


def test_the_mask_is_outlined_in_both_panels(page: str, fake: dict[str, Any]) -> None:
    found = panels(section(page, "pictures"))
    outline = fake["pictures"][0]["outline"]
    assert outline == "M12 9h21v21h-21z"
    for one in found[:2]:
        assert f'<path d="{outline}" class="mask halo"></path>' in one
        assert f'<path d="{outline}" class="mask stroke"></path>' in one
    assert not any("mask stroke" in one for one in found[2:])
    assert "no mask" in found[2]


def test_pictures_tell_what_each_rule_says(page: str) -> None:
    said = re.findall(r'<p class="verdicts">(.*?)</p>', section(page, "pictures"))
    plain = [re.sub(r"<[^>]+>", "", one) for one in said]
    assert "Label: positive. Raw rule: ✓ fires, right. SuperActivators: ✓ fires, right" in plain[0]
    assert "Label: negative. Raw rule: ✗ fires, wrong. SuperActivators: ✓ silent, ri" in plain[1]


def test_the_rim_of_neighbours_leaves_their_shared_edge_out() -> None:
    left, right = (0, 0, 8, 8), (0, 8, 8, 16)
    edges = rim([left, right])
    drawn = set(re.findall(r"M[^M]+", edges))
    assert drawn == {"M0 0H8", "M0 8H8", "M0 0V8", "M8 0H16", "M8 8H16", "M16 0V8"}
    assert rim([]) == ""


@pytest.mark.parametrize(
    ("boxes", "veiled"),
    [
        ([[0, 0, 48, 24], [0, 24, 48, 48]], False),
        ([[-8, -8, 48, 24], [-8, 24, 48, 60]], False),
        ([[0, 4, 48, 24], [0, 24, 48, 44]], True),
    ],
)
def test_what_no_patch_covers_is_veiled(fake: dict[str, Any], boxes: list[list[int]], veiled: bool) -> None:
    lists = {"scores": [0.1, 0.3], "superactivator": [False, True], "in_concept": [False, True]}
    one = fake["pictures"][0] | lists | {"boxes": boxes}
    part = section(render_report({"pictures": [one]}), "pictures")
    assert part.count('class="unscored"') == 2 * veiled
    assert ("Veiled: not scored by the host." in part) == veiled
    for x, y, width, height in re.findall(
        r'<rect x="([\d.-]+)" y="([\d.-]+)" width="([\d.-]+)" height="([\d.-]+)"', part
    ):
        assert float(x) >= 0
        assert float(y) >= 0
        assert float(x) + float(width) <= SIDE
        assert float(y) + float(height) <= SIDE


def test_every_text_is_escaped(fake: dict[str, Any]) -> None:
    evil = dict.fromkeys(("id", "document", "concept", "kind", "role", "comment"), EVIL)
    page = render_report(fake | {"pictures": [fake["pictures"][0] | evil]})
    tree = parse(page)
    assert {tag for tag, _ in tree.elements} <= {*SAFE_TAGS.split(), "image", "use"}
    assert not any(name.startswith("on") for _, attrs in tree.elements for name in attrs)
    assert "<script" not in page
    assert "alert('x')" in tree.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"png": "https://example.org/a.png"}, r"png is 'https://.*expected 'data:image/png"),
        ({"png": 'data:image/png;base64,AA" onload="x'}, "expected 'data:image/png"),
        ({"png": "data:image/svg+xml;base64,AAAA"}, "expected 'data:image/png"),
        ({"outline": 'M0 0"/><script>'}, "outline is .*expected an SVG path"),
        ({"scores": [0.1]}, "scores has 1 entries: expected 36, as boxes"),
        ({"superactivator": []}, "superactivator has 0 entries: expected 36, as boxes"),
        ({"size": [48]}, r"size is \[48\]: expected \[height, width\]"),
        ({"boxes": [[0.0, 0.0, 8.0]] * 36}, r"boxes\[0\] is .*expected \[top, left, bottom, right"),
        ({"boxes": [[8.0, 0.0, 0.0, 8.0]] * 36}, r"expected \[top, left, bottom, right"),
        ({"offsets": []}, "unknown key 'offsets'"),
    ],
)
def test_what_breaks_the_schema_is_refused(
    fake: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render_report(fake | {"pictures": [fake["pictures"][0] | change]})


def test_optional_keys_and_undefined_scores_are_told(fake: dict[str, Any]) -> None:
    one = copy.deepcopy(fake["pictures"][0])
    del one["raw_threshold"], one["delta"], one["document"]
    one |= {"threshold": None, "scores": [None] * 36, "superactivator": [False] * 36}
    page = render_report(fake | {"pictures": [one]})
    text = parse(page).text
    assert "no finite threshold (0 of 36 patches; highest score –)" in text
    assert "raw threshold" not in parse(section(page, "pictures")).text
    assert not re.search(r"\b(nan|None|inf)\b", text)


def test_a_run_on_images_says_nothing_of_passages(page: str) -> None:
    shown = re.findall(r'<section id="(\w+)"', page)
    assert "pictures" in shown
    assert "passages" not in shown
    assert "explained" not in shown
    links = {attrs["href"] for tag, attrs in parse(page).elements if tag == "a"}
    assert links == {f"#{name}" for name in shown}


def test_a_run_on_texts_says_nothing_of_images() -> None:
    for one in (small(), {}):
        page = render_report(one)
        assert page.count("<section") == SECTIONS
        assert 'id="pictures"' not in page
        assert ">Images<" not in page


def test_no_image_to_show_is_told() -> None:
    assert "Images: not computed in this run." in render_report({"pictures": []})


def test_both_may_be_there(fake: dict[str, Any]) -> None:
    shown = re.findall(r'<section id="(\w+)"', render_report(small() | fake))
    assert {"passages", "pictures", "explained"} <= set(shown)


def test_equal_results_give_equal_bytes(fake: dict[str, Any], page: str, tmp_path: Any) -> None:
    assert render_report(copy.deepcopy(fake)) == page
    assert render_report(read_results(write_results(fake, tmp_path / "results.json"))) == page
