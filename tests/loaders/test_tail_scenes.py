"""Laws of scenes by plan: the planned glyphs of one concept, and no glyph in two splits."""

from collections import defaultdict

import numpy as np
import pytest

import sa_plugin as sa
from sa_plugin.loaders import ScenePlan

# Needs the pictures that `make weights` fetches.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CONTEXTS = {"train": 16, "guard": 8, "cal": 8, "test": 12}


@pytest.fixture(scope="module")
def covered():
    """Share of the picture that a concept covers, by plan, and the data of the first plan."""
    plans = [ScenePlan(0.15), ScenePlan(0.15, 3), ScenePlan(0.8, sisters=0)]
    found = [sa.load("tail_scenes", plan=plan, contexts=CONTEXTS, size=96) for plan in plans]
    return [np.array([s.image.masks[c].mean() for s in data for c in s.positive]) for data in found], found[0]


def test_a_scene_has_one_concept_at_most_and_a_split_per_deck(covered):
    _, data = covered
    home = defaultdict(set)
    for sample, split in zip(data.samples, data.split_of, strict=True):
        assert len(sample.positive) <= 1
        home[sample.document].add(split)
    assert all(len(splits) == 1 for splits in home.values())
    assert {*data.split_of} == {*CONTEXTS}


def test_the_plan_sets_how_much_is_covered(covered):
    (one, three, large), _ = covered
    # The first scenes of all plans are of the same decks and cards.
    assert 2 < three.mean() / one.mean() < 4
    assert one.max() < 0.15**2 * 1.2
    assert 0.2 < large.mean() <= large.max() <= 0.8**2 * 1.1


@pytest.mark.parametrize(
    "plan", [{"side": 0.95}, {"side": 0.5, "count": 4}, {"count": 0}, {"side": 0.01}, {"sisters": -1}]
)
def test_a_plan_that_does_not_fit_is_refused(plan):
    with pytest.raises(ValueError, match="of a picture: give a side"):
        ScenePlan(**plan)
