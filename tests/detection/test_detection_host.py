"""A detector with a host: fresh texts, and the same numbers with and without a score table."""

import numpy as np
import pytest
from fake_host import FakeHost

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Sample
from sa_plugin.detection import calibrate
from sa_plugin.scores import score

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ANIMALS = ("cat", "dog", "cow")
WORDS = (*ANIMALS, "sat", "ran", "tall", "house", "river", "blue", "over", "under")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    words = [list(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(150)]
    return ConceptData.from_words(words, [["animal" if w in ANIMALS else None for w in row] for row in words])


@pytest.fixture(scope="module")
def detector(data):
    host = FakeHost()
    return calibrate(host, data, fit(host, data, "separator"))


def test_scores_given_or_made_give_the_same_numbers(data, detector):
    table = score(FakeHost(), data, detector.bank)
    again = calibrate(None, data, detector.bank, scores=table)
    assert (again.layer, again.delta) == (detector.layer, detector.delta)
    assert again.threshold["animal"] == pytest.approx(detector.threshold["animal"], rel=1e-5)
    one = detector.evaluate(data.test)
    two = again.evaluate(data.test, scores=table)
    assert one.methods == two.methods
    assert one.weighted["f1"].estimate == pytest.approx(two.weighted["f1"].estimate)


def test_fresh_texts_are_searched(data, detector):
    known = detector.detect(data.test)
    samples = {s.id: s.text for s in data.test.samples}
    hit = next(i for i, here in zip(known.samples, known.present[:, 0], strict=True) if here)
    texts = [samples[hit], "blue house over river"]
    found = detector.find(texts)
    first = [s for s in found if s.sample == "text 0"]
    detected = detector.detect(texts)
    assert detected.samples == ("text 0", "text 1")
    assert detected.of("text 0") == ("animal",)
    assert first
    assert all(texts[0][s.start : s.end] == s.text for s in first)
    # One text alone gives what it gives in a batch and in its split.
    assert [s.row for s in detector.find(texts[0])] == [s.row for s in first]
    in_split = [s.position for s in detector.find(data.test) if s.sample == hit]
    assert [s.position for s in first] == in_split
    assert detector.find(Sample("text 0", texts[0], "d"))[0].text == first[0].text
    localised = detector.localise(texts)
    assert localised.mask.shape == (len(localised.tokens), 1)
    with pytest.raises(ValueError, match="plain texts have no token labels"):
        detector.evaluate_tokens(texts)
