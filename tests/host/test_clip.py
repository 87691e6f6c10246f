"""CLIP's towers in TransformerLens: registration, parity, and the text tower as a text host."""

import re
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import tiny
import torch
import transformers as hf
from torch.testing import assert_close
from transformer_lens.factories import architecture_adapter_factory as factory
from transformer_lens.model_bridge.sources import build_bridge_from_module

from sa_plugin.host import Site, check, check_folder
from sa_transformer_lens import accept
from sa_transformer_lens import towers as clip
from sa_transformer_lens.host import load_bridge

ROOT = Path(__file__).resolve().parents[2]
GROUP = "transformer_lens.architectures"


@pytest.fixture(scope="module")
def text_host():
    return accept(tiny.vision_bridge("clip_text"))


@pytest.fixture
def unregistered(monkeypatch):
    """TransformerLens as it was before anything registered CLIP."""
    known = factory.ArchitectureAdapterFactory
    others = {k: v for k, v in known._adapters.items() if k not in clip.ADAPTERS}
    monkeypatch.setattr(known, "_adapters", others)
    monkeypatch.setattr(known, "_entry_points_discovered", True)
    return known


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [EntryPoint(*item, GROUP) for item in project["project"]["entry-points"][GROUP].items()]


def test_importing_registers_nothing():
    code = (
        "import sa_plugin, sa_transformer_lens, sys\n"
        "assert not any(m.startswith('transformer_lens') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unregistered_it_is_unknown_and_register_is_enough(unregistered):
    model = tiny.vision_model("clip_vision")
    with pytest.raises(ValueError, match="Unsupported architecture: CLIPVisionModel"):
        build_bridge_from_module(model, "CLIPVisionModel", hf_config=model.config)
    clip.register()
    assert set(clip.ADAPTERS) <= set(unregistered._adapters)
    build_bridge_from_module(model, "CLIPVisionModel", hf_config=model.config)


def test_register_leaves_what_another_package_registered(unregistered):
    unregistered.register_adapter("CLIPTextModel", dict)
    clip.register()
    assert unregistered._adapters["CLIPTextModel"] is dict


def test_the_entry_points_are_enough(unregistered, monkeypatch):
    points = declared()
    assert {p.name: p.load() for p in points} == clip.ADAPTERS
    monkeypatch.setattr(unregistered, "_entry_points_discovered", False)
    monkeypatch.setattr(factory, "entry_points", lambda group: points if group == GROUP else [])
    model = tiny.vision_model("clip_vision")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_bridge_from_module(model, "CLIPVisionModel", hf_config=model.config)


def test_no_architecture_of_transformer_lens_is_replaced():
    assert not set(clip.ADAPTERS) & set(factory.SUPPORTED_ARCHITECTURES)


def test_the_lower_bound_of_transformer_lens_has_entry_points():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = extras["optional-dependencies"]["transformer-lens"]
    assert re.search(r">=3\.6", bound)


@pytest.mark.parametrize("tower", ["clip_vision", "clip_text"])
def test_the_bridge_is_the_tower(tower):
    bridge, model = tiny.vision_bridge(tower), tiny.vision_model(tower)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 300, (2, 9), generator=generator)
    x = ids if tower == "clip_text" else torch.randn(2, 3, 28, 28, generator=generator)
    with torch.no_grad():
        theirs = model(x, output_hidden_states=True)
        ours, cache = bridge.run_with_cache(x)
    assert_close(ours, theirs.last_hidden_state)
    for layer in range(tiny.N_LAYERS):
        assert_close(cache[f"blocks.{layer}.hook_resid_pre"], theirs.hidden_states[layer])


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_tower_with_a_projection_is_the_same_tower(kind):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "attn_implementation": "eager"}
    if kind == "vision":
        config = hf.CLIPVisionConfig(**small, image_size=28, patch_size=7)
        model, x = hf.CLIPVisionModelWithProjection(config), torch.randn(1, 3, 28, 28)
    else:
        config = hf.CLIPTextConfig(**small, vocab_size=320, max_position_embeddings=16)
        model, x = hf.CLIPTextModelWithProjection(config), torch.randint(0, 320, (1, 6))
    model = tiny.fill(model).eval()
    with torch.no_grad():
        expected = model(x, output_hidden_states=True).hidden_states[1]
    clip.register()
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(x)
    assert_close(cache["blocks.1.hook_resid_pre"], expected)


def test_the_text_tower_is_a_causal_text_host(text_host):
    info = text_host.info
    assert (info.architecture, info.block, info.causal, info.bos) == ("CLIPTextModel", "pre_norm", True, True)
    (batch,) = text_host.batches(tiny.samples()[:1])
    assert batch.valid[0].tolist() == [False] + [True] * (batch.valid.shape[1] - 2) + [False]
    report = check(text_host, tiny.TEXTS)
    assert report.passed, str(report)


def test_the_text_tower_reads_hidden_states(text_host):
    model, samples = tiny.vision_model("clip_text"), tiny.samples()
    sites = [Site(layer, "resid_pre") for layer in range(tiny.N_LAYERS)]
    for sample in samples:
        (batch,) = text_host.batches([sample])
        kept = text_host.read(batch, sites, lambda r: {str(s.layer): r[s] for s in sites})
        with torch.no_grad():
            states = model(batch.inputs["input_ids"], output_hidden_states=True).hidden_states
        for layer in range(tiny.N_LAYERS):
            assert_close(kept[str(layer)], states[layer])


def test_padding_on_the_left_gets_its_own_positions():
    left = accept(tiny.vision_bridge("clip_text"), padding_side="left")
    assert check(left, tiny.TEXTS).passed


def test_a_text_tower_refuses_images_and_a_vision_tower_texts(text_host):
    with pytest.raises(ValueError, match=r"sample 'i0' is an image; tiny-clip_text reads texts"):
        text_host.batches(tiny.images())
    host = tiny.vision_host("clip_vision")
    with pytest.raises(ValueError, match=r"sample 's0' is a text; tiny-clip_vision reads images"):
        host.batches(tiny.samples())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    text, vision = (tiny.vision_model(f"clip_{half}").config for half in ("text", "vision"))
    config = hf.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    tiny.fill(hf.CLIPModel(config)).save_pretrained(path)
    tiny.clip_tokenizer().save_pretrained(path)
    crop = {"height": 28, "width": 28}
    hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop).save_pretrained(path)
    return path


class TestFolder:
    """One folder with both towers, as CLIP is published."""

    def test_either_tower_is_the_models_own(self, folder):
        model = hf.CLIPModel.from_pretrained(folder).eval()
        host = accept(load_bridge(folder, tower="vision"))
        assert host.reader.processor.mode == "centre_crop"
        pixels = host.forward_inputs(tiny.images()[0])["pixel_values"]
        tokens = accept(load_bridge(folder, tower="text")).forward_inputs(tiny.samples()[0])
        with torch.no_grad():
            seen = model.vision_model(pixels).last_hidden_state
            read = model.text_model(tokens["input_ids"]).last_hidden_state
            assert_close(host.bridge(pixels), seen, rtol=1e-4, atol=1e-5)
            text = load_bridge(folder, tower="text")
            assert_close(text(tokens["input_ids"]), read, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("tower", [None, "visual"])
    def test_the_tower_must_be_named(self, folder, tower):
        with pytest.raises(ValueError, match=r"both towers of a CLIP.*tower='vision' or"):
            load_bridge(folder, tower=tower)

    @pytest.mark.parametrize("tower", ["vision", "text"])
    def test_every_law_holds(self, folder, tower):
        report = check_folder(folder, tower=tower)
        assert report.passed, str(report)

    def test_other_models_have_no_tower(self, tmp_path):
        tiny.vision_model("vit").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="holds a vit model, of which there is no 'text'"):
            load_bridge(tmp_path, tower="text")

    def test_one_towers_folder_needs_no_name(self, tmp_path):
        tiny.vision_model("clip_vision").save_pretrained(tmp_path)
        bridge = load_bridge(tmp_path)
        assert bridge.cfg.architecture == "CLIPVisionModel"
        assert bridge.processor is None
        assert bridge.cfg.n_layers == tiny.N_LAYERS
