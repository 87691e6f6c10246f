"""Data sets by name: names, roots, options, splits, and what was skipped."""

import numpy as np
import pytest

from sa_plugin.data import ConceptData, Sample
from sa_plugin.loaders import (
    EMOJI_FONT,
    EMOJI_TABLE,
    LOADERS,
    PAPER_CONCEPTS,
    emoji_scenes,
    load,
    published_split,
    shapes,
)


def test_the_papers_concepts_are_as_many_as_it_says():
    found = {name: len(concepts) for name, concepts in PAPER_CONCEPTS.items()}
    assert found == {
        "clevr": 6,
        "coco": 29,
        "opensurfaces": 26,
        "pascal": 83,
        "sarcasm": 1,
        "isarcasm": 1,
        "goemotions": 14,
    }
    assert sum(found.values()) == 160


def test_a_root_is_asked_for_or_refused(tmp_path):
    for name, loader in LOADERS.items():
        if loader.has_root and loader.default_root is None:
            with pytest.raises(ValueError, match=rf"data set '{name}' needs root=.*docs/data.md"):
                load(name)
            with pytest.raises(FileNotFoundError, match="is no folder: give the folder of your"):
                load(name, tmp_path / "nowhere")
        if not loader.has_root:
            with pytest.raises(ValueError, match=f"'{name}' is embedded or rendered: leave root"):
                load(name, tmp_path)


def test_unknown_options_and_splits(tmp_path):
    with pytest.raises(ValueError, match="option of shapes 'sizes' is unknown: did you mean 'size'"):
        load("shapes", sizes=64)
    (tmp_path / "metadata.csv").write_text("split\ntrain\n")
    with pytest.raises(ValueError, match="option of sarcasm 'default' is unknown"):
        load("sarcasm", tmp_path, default=("x",))
    with pytest.raises(ValueError, match="split 'published' is unknown"):
        load("shapes", split="published")


def test_rendered_scenes_by_name():
    assert load("shapes", n=24, size=48, seed=3).hash == shapes(24, size=48, seed=3).hash


@pytest.mark.skipif(
    not (EMOJI_FONT.exists() and EMOJI_TABLE.exists()), reason="needs the two Debian packages"
)
def test_emoji_by_name():
    data = load("emoji", n=200, size=48, seed=2)
    assert data.hash == emoji_scenes(200, size=48, seed=2).hash


def test_skipped_is_shown_and_not_hashed():
    samples = [Sample(str(k), f"text {k}", str(k), (), frozenset("x")) for k in range(12)]
    plain = ConceptData.from_samples(samples)
    noted = ConceptData.from_samples(samples, skipped={"empty rows": 3, "long rows": 1})
    assert noted == plain
    assert noted.hash == plain.hash
    assert repr(noted) == repr(plain)[:-1] + "; skipped: 3 empty rows, 1 long rows)"
    assert noted.subset(6).skipped == {"empty rows": 3, "long rows": 1}


def test_calibration_is_a_quarter_of_the_train_documents():
    samples = [Sample(str(k), f"t{k}", f"d{k // 2}", (), frozenset("x")) for k in range(60)]
    parts = ["train"] * 40 + ["test"] * 20
    split = np.array(published_split(samples, parts, 5, "x"))
    assert (split[40:] == "test").all()
    assert (split[:40] == "cal").sum() == 10
    of = {}
    for sample, name in zip(samples, split, strict=True):
        assert of.setdefault(sample.document, name) == name
    assert published_split(samples, parts, 6, "x") != split.tolist()
    given = ["train"] * 30 + ["cal"] * 10 + ["test"] * 20
    assert published_split(samples, given, 5, "x") == given


def test_nothing_positive_is_refused_with_what_was_skipped(tmp_path):
    (tmp_path / "emotions.txt").write_text("joy\nneutral\n")
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}.tsv").write_text(f"a {part}\t1\t{part}\n")
    with pytest.raises(ValueError, match=r"nothing to learn from in 1 samples .*skipped: .*wan"):
        load("goemotions", tmp_path, parts=["train"])
