"""What attaching an nnsight model accepts, refuses and reports, and nnsight's own traps."""

import warnings
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import tiny
import torch
import transformers as hf
from nnsight import LanguageModel, NNsight, TransformersModel, VisionLanguageModel
from torch.testing import assert_close

from sa_nnsight import accept
from sa_nnsight.host import NNsightHost
from sa_plugin.host import Host, Processor, Site, attach, check
from sa_plugin.host import protocol as hosting

SHORT = ("The cat sat on the mat.", "Nobody walked the dog.", "short")


@pytest.fixture(scope="module")
def gpt2():
    return tiny.nnsight_host("gpt2")


@pytest.fixture(scope="module", params=[*tiny.ARCHITECTURES, "clip_text"])
def host(request):
    if request.param == "clip_text":
        return tiny.nnsight_vision_host("clip_text")
    return tiny.nnsight_host(request.param)


@pytest.fixture(scope="module", params=tiny.VISION)
def tower(request):
    return tiny.nnsight_vision_host(request.param)


def read(host, batch, sites):
    kept = host.read(batch, sites, lambda found: {str(site): found[site] for site in sites})
    return {site: kept[str(site)] for site in sites}


def test_every_law_of_check_holds(host):
    report = check(host, SHORT)
    assert report.passed, str(report)
    assert len(report.laws) == 11
    assert "transformers calls its hidden state" in str(report)


def test_every_law_of_check_holds_on_towers(tower):
    report = check(tower)
    assert report.passed, str(report)
    assert "patch k is token" in str(report)
    assert repr(tower).startswith("NNsightHost(")


class TestAccepts:
    def test_by_the_entry_point(self, monkeypatch):
        point = EntryPoint("nnsight", "sa_nnsight:accept", hosting.ADAPTERS)
        monkeypatch.setattr(hosting, "entry_points", lambda group: [point])
        host = attach(tiny.nnsight_model("gpt2"), batch_tokens=64)
        assert isinstance(host, NNsightHost)
        assert isinstance(host, Host)
        assert host.batch_tokens == 64
        assert repr(host) == (
            "NNsightHost(GPT2LMHeadModel, GPT2LMHeadModel, 3 blocks x 32, 4 heads, pre_norm, float32, no BOS)"
        )

    @pytest.mark.parametrize("kind", [LanguageModel, VisionLanguageModel, NNsight])
    def test_the_other_wrappers(self, gpt2, kind):
        model, tokenizer = tiny.hf_model("gpt2"), tiny.tokenizer("gpt2")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            if kind is NNsight:
                host = accept(kind(model), tokenizer=tokenizer)
            else:
                task = {"task": "text-generation"}
                host = accept(kind(model, tokenizer=tokenizer, **task))
        assert host.info == gpt2.info

    def test_a_folder_that_is_not_loaded_yet(self, gpt2, tmp_path):
        tiny.hf_model("gpt2").save_pretrained(tmp_path / "mine")
        tiny.tokenizer("gpt2").save_pretrained(tmp_path / "mine")
        model = TransformersModel(str(tmp_path / "mine"), task="text-generation")
        assert not model.dispatched
        host = accept(model)
        assert host.info.model == "mine"
        assert replace(host.info, model=gpt2.info.model) == gpt2.info

    def test_a_bare_encoder_is_the_encoder_of_the_masked_model(self):
        full = tiny.hf_model("bert")
        bare = accept(NNsight(full.bert), tokenizer=tiny.tokenizer("bert"))
        whole = tiny.nnsight_host("bert")
        assert bare.info.architecture == "BertModel"
        assert bare.info.fingerprint == whole.info.fingerprint

    @pytest.mark.parametrize("name", ["vision", "text"])
    def test_one_tower_of_clip(self, name):
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
        text = {
            **sizes,
            "vocab_size": len(tiny.clip_tokenizer()),
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        vision = {**sizes, "image_size": 28, "patch_size": 7}
        config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        model = NNsight(tiny.fill(hf.CLIPModel(config)).eval())
        options = {
            "vision": {"processor": Processor((28, 28), 7)},
            "text": {"tokenizer": tiny.clip_tokenizer()},
        }
        host = accept(model, tower=name, **options[name])
        assert host.info.architecture == f"CLIP{name.title()}Model"
        assert host.hook_name(Site(1, "resid_post")) == "encoder.layers.1.output"
        samples = tiny.images() if name == "vision" else tiny.samples(SHORT)
        batch = host.batches(samples)[0]
        inputs = dict(batch.inputs)
        with torch.no_grad():
            alone = getattr(model._module, f"{name}_model")(**inputs, output_hidden_states=True)
        found = read(host, batch, [Site(2, "resid_pre")])[Site(2, "resid_pre")]
        assert_close(found, alone.hidden_states[2])

    def test_the_text_of_mllama(self):
        tokenizer = tiny.tokenizer("llama")
        text = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": 1,
            "vocab_size": len(tokenizer),
            "cross_attention_layers": [1],
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        }
        mllama = hf.models.mllama
        module = tiny.fill(mllama.MllamaTextModel(mllama.MllamaTextConfig(**text))).eval()
        host = accept(NNsight(module), tokenizer=tokenizer)
        assert host.info.n_layers == 3
        assert host.hook_name(Site(1, "resid_post")) == "layers.2.output"
        assert check(host, SHORT).passed

    def test_the_tiles_of_mllama(self):
        vision = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
            "max_num_tiles": 2,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2]],
        }
        mllama = hf.models.mllama
        module = tiny.fill(mllama.MllamaVisionModel(mllama.MllamaVisionConfig(**vision))).eval()
        host = accept(NNsight(module), processor=Processor((28, 28), 7))
        assert (host.reader.n_special, host.reader.n_after) == (1, 2 * 24 - 17)
        assert check(host).passed
        (batch,) = host.batches(tiny.images())
        assert batch.valid.sum(1).tolist() == [16, 16, 16]
        values = host.input_values(batch)
        assert values.shape == (3, 3, 28, 28)
        site = Site(2, "resid_post")
        with torch.no_grad():
            assert_close(host.forward_from(values, batch, site), read(host, batch, [site])[site])

    @pytest.mark.parametrize("name", ["mistral", "qwen2"])
    def test_relatives_of_llama(self, name):
        kinds = {
            "mistral": (hf.MistralConfig, hf.MistralForCausalLM),
            "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
        }
        config, kind = kinds[name]
        tokenizer = tiny.tokenizer("llama")
        model = kind(
            config(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                vocab_size=len(tokenizer),
                max_position_embeddings=64,
            )
        )
        host = accept(NNsight(tiny.fill(model).eval()), tokenizer=tokenizer)
        assert check(host, SHORT).passed
        assert host.attention_weights(1).query.weight.shape == (4, 32, 8)


class TestRefusals:
    def test_others_are_declined(self):
        for other in ("a string", torch.nn.Linear(2, 2), None, tiny.bridge("gpt2")):
            assert accept(other) is None
            assert accept(other, an_option_of_another_adapter=1) is None

    def test_a_wrapper_that_nnsight_would_run_here(self):
        """NNsight takes remote=True and runs locally."""
        model = NNsight(tiny.hf_model("gpt2"))
        with pytest.raises(TypeError, match=r"NNsight has no remote side.*TransformersModel\(repo"):
            accept(model, remote=True)

    def test_an_old_release(self, monkeypatch):
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.7.0")
        with pytest.raises(TypeError, match=r"nnsight 0\.7\.0 is too old.*nnsight>=0\.8\.1"):
            accept(NNsight(torch.nn.Linear(2, 2)))

    def test_training_mode(self):
        model = tiny.nnsight_model("gpt2")
        model._module.train()
        with pytest.raises(ValueError, match=r"in training mode: call model\.eval\(\) first"):
            accept(model)

    def test_edits_kept_in_the_model(self):
        model = tiny.nnsight_model("gpt2")
        with model.edit(inplace=True):
            model.transformer.h[0].output[:] = 0
        with pytest.raises(ValueError, match=r"1 default edit\(s\).*model\.clear_edits"):
            accept(model)
        model.clear_edits()
        accept(model)

    def test_no_tokenizer_and_no_processor(self):
        with pytest.raises(ValueError, match=r"the model has no tokenizer.*attach\(model, token"):
            accept(NNsight(tiny.hf_model("gpt2")))
        with pytest.raises(ValueError, match=r"ViTModel has no image processor"):
            accept(NNsight(tiny.vision_model("vit")))

    def test_options_of_the_other_kind(self):
        with pytest.raises(ValueError, match="ViTModel reads images: leave the tokenizer out"):
            accept(NNsight(tiny.vision_model("vit")), tokenizer=tiny.tokenizer("gpt2"))
        with pytest.raises(ValueError, match="GPT2LMHeadModel reads texts: leave the processor"):
            accept(tiny.nnsight_model("gpt2"), processor=Processor((28, 42), 7))
        with pytest.raises(ValueError, match="padding_side 'middle' is unknown"):
            accept(tiny.nnsight_model("gpt2"), padding_side="middle")
        with pytest.raises(ValueError, match="has no vision_model: leave tower out"):
            accept(tiny.nnsight_model("gpt2"), tower="vision")

    def test_no_such_site(self, gpt2):
        with pytest.raises(ValueError, match=r"layer 7 does not exist.*0 to 2; the nearest is 2"):
            gpt2.hook_name(Site(7, "z"))
        with pytest.raises(ValueError, match="point is the text 'resid_mid', not 'resid_pre' or"):
            Site(0, "resid_mid")
        with pytest.raises(ValueError, match="sites is empty"):
            gpt2.read(gpt2.batches(tiny.samples(SHORT))[0], [], lambda found: {})


class TestReading:
    def test_fused_attention_is_unfused_for_a_pattern_and_put_back(self):
        model = tiny.nnsight_model("llama")
        model._module.set_attn_implementation("sdpa")
        host = accept(model)
        assert model._module.config._attn_implementation == "sdpa"
        batch = host.batches(tiny.samples())[0]
        site = Site(1, "pattern")
        found = read(host, batch, [site])[site]
        assert_close(found, read(tiny.nnsight_host("llama"), batch, [site])[site])
        assert model._module.config._attn_implementation == "sdpa"

    def test_a_pattern_that_is_none_is_an_error(self, monkeypatch):
        model = tiny.nnsight_model("llama")
        model._module.set_attn_implementation("sdpa")
        monkeypatch.setattr(type(model._module), "set_attn_implementation", lambda *_: None)
        with pytest.raises(ValueError, match=r"fused attention \(sdpa\) computes no pattern.*attn_imp"):
            accept(model)
