"""The main job on a real vision transformer and rendered scenes: at most 60 images."""

import json

import numpy as np
import pytest
import torch

from sa_plugin.data import ConceptData
from sa_plugin.host import Site, attach, find_folder, processor_of
from sa_plugin.loaders import shapes
from sa_plugin.report import checked, write_report
from sa_plugin.stages import Plan, study
from sa_plugin.statistics import Resampling
from sa_transformer_lens.host import load_bridge

pytestmark = pytest.mark.real
CONCEPTS = ("red", "blue", "sphere", "cube")


@pytest.fixture(scope="module")
def host():
    return attach(load_bridge("vit"))


@pytest.fixture(scope="module")
def data():
    scenes = shapes(60, seed=3)
    return ConceptData.from_samples([s.only(CONCEPTS) for s in scenes.samples], CONCEPTS, scenes.split_of)


@pytest.fixture(scope="module")
def found(host, data):
    return study(host, data, Plan({"separator": (3, 9)}, resampling=Resampling(100)))


def test_activations_equal_plain_transformers(host, data):
    """An independent copy of the model with transformers' own processor."""
    from transformers import AutoImageProcessor, ViTModel

    path = find_folder("vit")
    model = ViTModel.from_pretrained(path, dtype=torch.float32, add_pooling_layer=False).eval()
    processor = AutoImageProcessor.from_pretrained(path)
    sample, site = data.samples[0], Site(5, "resid_post")
    (batch,) = host.batches([sample])
    got = host.read(batch, [site], lambda read: {"h": read[site]})["h"]
    pixels = processor(images=sample.image.pixels, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(got, states[6], atol=2e-3, rtol=1e-3)


def test_the_class_token_is_no_patch_and_has_its_baseline(found):
    table = found.scores()
    assert (np.diff(table.tokens.bounds) == 256).all()
    assert table.tokens.position.min() == 1
    assert table.tokens.dropped["special"] == table.tokens.n_samples
    methods = [m["method"] for m in found.record["kinds"]["separator"]["detection"]["methods"]]
    assert "CLS" in methods


def test_labels_are_where_the_masks_are(found, data):
    tokens = found.scores().tokens
    for n in range(3):
        rows = slice(tokens.bounds[n], tokens.bounds[n + 1])
        mask = tokens.samples[n].image.masks.get("red")
        if mask is None:
            assert not tokens.labels[rows, 0].any()
            continue
        grid = tokens.labels[rows, 0].reshape(16, 16)
        expected = mask.reshape(16, 14, 16, 14).any((1, 3))
        np.testing.assert_array_equal(grid, expected)


def test_colours_are_found_and_the_ledger_closes(found):
    block = found.record["kinds"]["separator"]
    methods = {m["method"]: m for m in block["detection"]["methods"]}
    assert methods["SuperActivators"]["auroc"] > methods["MaxTok permuted"]["auroc"]
    localised = {row["method"]: row for row in block["localisation"]}
    assert localised["raw"]["auroc"] > 0.7
    assert block["heads"]["closes_to"] < 1e-2


def test_the_host_says_that_it_reads_images(host):
    assert processor_of(host) is not None
    assert "size=(224, 224)" in repr(processor_of(host))


def test_results_become_a_report_with_pictures(found, tmp_path):
    text = json.dumps(found.record, allow_nan=False)
    checked(json.loads(text))
    page = write_report(json.loads(text), tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_superactivators_of_an_image_are_patches(found, data):
    detector = found.detector()
    hits = detector.find(data.test)
    assert hits
    assert all(len(hit.edges) == 4 and hit.end - hit.start == 14 for hit in hits)
    assert "patch" not in repr(hits[0])
    assert repr(hits[0]).startswith("SuperActivator('[")
