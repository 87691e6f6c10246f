"""Laws of the emoji scenes: exact masks, and glyphs that stay in one deck of one split."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sa_plugin.loaders import (
    EMOJI_CONCEPTS,
    EMOJI_GROUPS,
    EMOJI_LEFT_OUT,
    EMOJI_PER_DECK,
    deal_decks,
    emoji_folder,
    emoji_scenes,
    plan_emoji,
    read_glyphs,
    render_emoji,
)

# Every test but those of refusals needs the pictures that `make weights` fetches.
SCENES = 300


@pytest.fixture(scope="module")
def glyphs():
    return read_glyphs()


@pytest.fixture(scope="module")
def scenes(glyphs):
    return plan_emoji(glyphs, SCENES)


@pytest.fixture(scope="module")
def data():
    return emoji_scenes(SCENES, size=64)


def test_every_glyph_has_one_concept_and_is_another_picture(glyphs):
    names = [g.name for g in glyphs]
    assert len(set(names)) == len(names) > 300
    assert len({g.rgba.tobytes() for g in glyphs}) == len(glyphs)
    assert min(Counter(g.concept for g in glyphs)[c] for c in EMOJI_CONCEPTS) >= 10
    for glyph in glyphs:
        alpha = glyph.rgba[..., 3] > 0
        assert alpha[[0, -1]].any(1).all()
        assert alpha[:, [0, -1]].any(0).all()


def test_concepts_are_unicodes_groups_less_what_is_listed(glyphs):
    of_group = {}
    for entry in json.loads((emoji_folder() / "emoji.json").read_text(encoding="utf-8")):
        of_group.setdefault(entry["subcategory"], set()).add(entry["name"].lower())
    for concept, groups in EMOJI_GROUPS.items():
        listed = set().union(*(of_group[g] for g in groups))
        assert {g.name for g in glyphs if g.concept == concept} <= listed
        assert set(EMOJI_LEFT_OUT.get(concept, ())) <= listed, "a listed exception does not exist"


@pytest.mark.parametrize("seed", range(3))
def test_every_glyph_is_in_exactly_one_deck(glyphs, seed):
    decks = deal_decks(glyphs, seed=seed)
    dealt = [g.name for split in decks.values() for deck in split for g in deck]
    assert sorted(dealt) == sorted(g.name for g in glyphs)
    for split in decks.values():
        sizes = [len(deck) for deck in split]
        assert max(sizes) - min(sizes) <= 1
        assert abs(np.mean(sizes) - EMOJI_PER_DECK) < 0.5
        assert all(len({g.concept for g in deck}) == len(deck) for deck in split)
        assert {g.concept for deck in split for g in deck} == set(EMOJI_CONCEPTS)


def test_decks_mix_concepts_by_chance(glyphs):
    """Over seeds no two concepts seek or shun each other, but for what distinct cards imply."""
    met = np.zeros((len(EMOJI_CONCEPTS), len(EMOJI_CONCEPTS)))
    for seed in range(60):
        for deck in deal_decks(glyphs, seed=seed)["train"]:
            rows = [EMOJI_CONCEPTS.index(g.concept) for g in deck]
            met[np.ix_(rows, rows)] += 1
    own = np.diag(met).copy()
    expected = np.outer(own, own) / (60 * len(deal_decks(glyphs)["train"]))
    apart = ~np.eye(len(EMOJI_CONCEPTS), dtype=bool)
    assert (met / expected)[apart].min() > 0.4
    assert (met / expected)[apart].max() < 1.4


def test_no_glyph_crosses_a_document_or_a_split(data):
    home = {}
    for sample, split in zip(data.samples, data.split_of, strict=True):
        names = sample.id.split(" ", 1)[1].split(", ")
        assert len(set(names)) == len(names)
        for name in names:
            assert home.setdefault(name, (split, sample.document)) == (split, sample.document)
    assert len(home) > 300


def test_every_concept_in_every_split(data):
    assert data.concepts == EMOJI_CONCEPTS
    for split in (data.train, data.cal, data.test):
        assert split.sample_labels.any(0).all()
        assert not split.sample_labels.all(0).any()


def test_glyphs_of_a_deck_take_turns(scenes):
    shown = {}
    for scene in scenes:
        counts = shown.setdefault(scene.deck, Counter())
        counts.update(placed.glyph.name for placed in scene.placed)
    for counts in shown.values():
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_glyph_is_painted_as_if_it_were_alone(scenes):
    for scene in scenes[::10]:
        pixels, owner = render_emoji(scene, 96)
        for number, placed in enumerate(scene.placed, start=1):
            alone, only = render_emoji(replace(scene, placed=(placed,)), 96)
            assert np.array_equal(owner == number, only == 1), "the mask depends on the others"
            assert np.array_equal(pixels[only == 1], alone[only == 1])


def test_without_a_glyph_only_its_own_square_changes(scenes):
    for scene in scenes[::10]:
        pixels, owner = render_emoji(scene, 96)
        for number, placed in enumerate(scene.placed, start=1):
            rest = scene.placed[: number - 1] + scene.placed[number:]
            without, _ = render_emoji(replace(scene, placed=rest), 96)
            changed = (pixels != without).any(-1)
            at = (np.argwhere(changed) + 0.5) / 96
            assert np.abs(at - placed.centre).max() <= placed.side / 2
            own = owner == number
            assert not (changed & (owner > 0) & ~own).any(), "another glyph changed"
            assert (changed & own).sum() > 0.85 * own.sum()


def test_the_mask_is_where_the_glyph_covers_half_of_the_background(scenes):
    """Seen in the picture: black glyphs on the same background give back alpha."""
    for scene in scenes[::15]:
        light = replace(scene.light, exposure=1.0, slope=0.0, tint=(1.0, 1.0, 1.0))
        placed = scene.placed[0]
        rgba = placed.glyph.rgba * np.array([0, 0, 0, 1], np.uint8)
        black = replace(placed, glyph=replace(placed.glyph, rgba=rgba))
        empty, _ = render_emoji(replace(scene, light=light, placed=()), 128)
        pixels, owner = render_emoji(replace(scene, light=light, placed=(black,)), 128)
        bright = empty.min(-1) > 50
        left = pixels.sum(-1) / np.maximum(empty.sum(-1), 1)
        assert (left[bright & (owner == 1)] < 0.62).all()
        assert (left[bright & (owner == 0)] > 0.38).all()


def test_masks_and_labels_say_what_was_drawn(scenes, data):
    for scene, sample in zip(scenes, data.samples, strict=True):
        pixels, owner = render_emoji(scene, 64)
        assert np.array_equal(sample.image.pixels, pixels)
        assert sample.positive == {placed.glyph.concept for placed in scene.placed}
        assert {c for c, mask in sample.image.masks.items() if mask.any()} == sample.positive
        total = sum(mask.astype(int) for mask in sample.image.masks.values())
        assert np.array_equal(total, owner > 0), "masks of different concepts overlap"


@pytest.mark.parametrize("size", [32, 64, 97])
def test_glyphs_stay_in_their_squares(glyphs, size):
    for scene in plan_emoji(glyphs, 60, seed=4):
        _, owner = render_emoji(scene, size)
        for number, placed in enumerate(scene.placed, start=1):
            at = (np.argwhere(owner == number) + 0.5) / size
            assert len(at)
            assert np.abs(at - placed.centre).max() <= placed.side / 2


def test_places_and_sizes_tell_nothing(glyphs):
    placed = [p for scene in plan_emoji(glyphs, 2500) for p in scene.placed]
    at = np.array([(*p.centre, p.side, p.mirrored) for p in placed])
    for concept in EMOJI_CONCEPTS:
        has = np.array([p.glyph.concept == concept for p in placed])
        for column in range(4):
            bound = 4 * np.sqrt((1 / has.sum() + 1 / (~has).sum()) / 12)
            assert abs(roc_auc_score(has, at[:, column]) - 0.5) < bound, (concept, column)
    for axis in range(2):
        assert abs(at[:, axis].mean() - 0.5) < 0.02
        assert at[:, axis].std() > 0.18


def test_seeds(data):
    assert data.hash == emoji_scenes(SCENES, size=64).hash
    other = emoji_scenes(SCENES, size=64, seed=1)
    assert data.hash != other.hash
    held = [{s.id.split(" ", 1)[1] for s in d.test.samples} for d in (data, other)]
    assert held[0] != held[1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n": 0}, "n is 0, not a whole number from 1"),
        ({"n": 9, "objects": (1, 4)}, r"objects \(1, 4\) must be .* between 1 and 3"),
        ({"n": 9, "fractions": (0.5, 0.5, 0.0)}, "must be three positive numbers"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError, match=text):
        emoji_scenes(**arguments)


def test_too_few_glyphs_are_refused(glyphs):
    few = [g for g in glyphs if g.concept != "bird"] + [g for g in glyphs if g.concept == "bird"][:2]
    with pytest.raises(ValueError, match="concept 'bird' has 2 glyphs; each split needs one: are"):
        deal_decks(few)


def test_missing_pictures_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SA_PLUGIN_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no complete pictures of emoji in .*: run make weights in"):
        emoji_scenes(9)
    with pytest.raises(FileNotFoundError, match=r"emoji\.json does not exist: give the folder of the npm"):
        emoji_scenes(9, root=tmp_path)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("{}", r"emoji\.json: expected a list of objects: give the folder of the npm package emoji-data"),
        ('[{"unified": "1F600"}]', r"emoji\.json \[0\]: key 'name' is missing: give the folder"),
        ("[", r"emoji\.json line 1: no JSON"),
    ],
)
def test_another_table_is_refused(table, text, tmp_path):
    (tmp_path / "emoji.json").write_text(table)
    with pytest.raises(ValueError, match=text):
        read_glyphs(tmp_path)


def test_a_folder_of_ones_own(glyphs, tmp_path):
    """The unpacked package serves as it is; a picture that is missing or damaged is named."""
    own = shutil.copytree(emoji_folder(), tmp_path / "own")
    assert [g.name for g in read_glyphs(str(own))] == [g.name for g in glyphs]
    picture = own / "img" / "google" / "64" / "1f600.png"
    picture.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1f600\.png: no picture that Pillow can read"):
        read_glyphs(own)
    picture.unlink()
    with pytest.raises(FileNotFoundError, match=r"1f600\.png does not exist"):
        read_glyphs(own)
