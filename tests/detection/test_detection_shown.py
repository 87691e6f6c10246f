"""Any text or image can be searched, and what is found shows itself in it."""

import html
import json
import re

import numpy as np
import pytest
from fake_host import FakeHost
from PIL import Image as Pillow

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Image, Sample, as_split
from sa_plugin.detection import calibrate

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WORDS, ANIMALS = ["cat", "dog", "sat", "ran", "blue", "over", "river", "house"], {"cat", "dog"}
TEXT = "the cat sat over the river & <b>blue</b>"


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(150)]
    return ConceptData.from_words(words, [["animal" if w in ANIMALS else None for w in row] for row in words])


@pytest.fixture(scope="module")
def detector(data):
    host = FakeHost()
    return calibrate(host, data, fit(host, data, "separator"))


@pytest.fixture(scope="module")
def shown(data, detector):
    return {
        "text": detector.find(TEXT),
        "split": detector.find(data.test),
        "none": detector.find("blue house"),
        "detect": detector.detect([TEXT, "blue house"]),
        "many": detector.detect(data.test),
        "localise": detector.localise(data.test),
    }


def test_what_is_found_is_a_sequence_of_records(shown):
    found = shown["text"]
    assert [TEXT[one.start : one.end] for one in found] == [one.text for one in found]
    assert found[:1] == [found[0]] == list(found)[:1]
    assert len(found) > 0
    assert found == list(found)
    assert found != shown["none"]
    assert not shown["none"]
    assert (found.table()["measure"] == "score").sum() == len(found)


@pytest.mark.parametrize("name", ["text", "split", "none", "detect", "many", "localise"])
def test_everything_shows_itself(shown, name):
    result = shown[name]
    assert "\n" not in repr(result)
    assert str(result) == result.summary()
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert result.plot().axes
    assert {"measure", "value", "low", "high", "note"} <= set(result.table().columns)
    page = result._repr_html_()
    assert "<script" not in page
    assert not re.search(r"https?://", page)
    assert html.escape(result.about) in page


def test_raw_activations_stand_beside_the_tail_in_a_text_of_the_users(shown):
    page, text = shown["text"]._repr_html_(), str(shown["text"])
    assert page.count("<h5>Raw activations</h5>") == page.count("<h5>SuperActivators</h5>") == 1
    assert page.count("<mark") == len(shown["text"])
    assert "&lt;b&gt;blue&lt;/b&gt;" in page
    # Nothing is known of its labels, so no rule is called right or wrong.
    assert "Label:" not in page
    assert "right" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    for one in shown["text"]:
        assert f"«{one.text.strip()} {one.score:.2f}»" in text
    assert "Highest raw activations: " in text


def test_a_style_reaches_nothing_outside_its_element(shown):
    page = shown["split"]._repr_html_()
    (style,) = re.findall(r"<style>(.*?)</style>", page, flags=re.S)
    selectors = [one.strip() for rule in re.findall(r"([^{}]+)\{", style) for one in rule.split(",")]
    assert selectors
    assert all(one.startswith(".sa-shown") for one in selectors)


def test_labels_of_a_split_are_told(shown):
    assert "Label: <b>positive</b>" in shown["split"]._repr_html_()
    assert "more pairs of sample and concept are not drawn" in str(shown["split"])


def test_localised_tokens_are_those_of_the_mask(shown):
    found = shown["localise"]
    page = found._repr_html_()
    assert "<h5>Localised tokens</h5>" in page
    drawn = [n for n in range(found.tokens.n_samples) if found.detected[n, 0]][:6]
    assert page.count("<mark") == sum(found.mask[found.tokens.sample_of == n, 0].sum() for n in drawn)


def test_few_samples_keep_their_token_scores_and_a_split_does_not(shown):
    assert shown["detect"].scored is not None
    assert shown["many"].scored is None
    assert "Raw activations" in shown["detect"]._repr_html_()
    assert "Raw activations" not in shown["many"]._repr_html_()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def test_an_image_is_a_path_a_picture_or_pixels(pixels, tmp_path):
    path = tmp_path / "one.png"
    Pillow.fromarray(pixels).save(path)
    given = [path, str(path), pixels, Pillow.fromarray(pixels), Sample("mine", "", "d", image=Image(pixels))]
    split = as_split(given, ("a",))
    assert [s.id for s in split.samples] == ["image 0", "image 1", "image 2", "image 3", "mine"]
    assert all(np.array_equal(s.image.pixels, pixels) for s in split.samples)
    grey = Pillow.fromarray(pixels).convert("L")
    assert as_split(grey, ("a",)).samples[0].image.pixels.shape == (40, 30, 3)
    # A text that only ends as a file name does stays a text.
    assert as_split("look at one.png", ("a",)).samples[0].text == "look at one.png"


def test_what_is_no_image_is_refused(pixels):
    with pytest.raises(ValueError, match="expected uint8"):
        as_split(pixels / 255, ("a",))
    with pytest.raises(TypeError, match="samples are of type dict: give a list of texts"):
        as_split({"a": 1}, ("a",))
