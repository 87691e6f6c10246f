"""Mllama on both hosts: block indices, gates, the joint between stacks, images beside texts."""

from dataclasses import replace

import numpy as np
import paper_models
import pytest
import tiny
import tiny_multimodal
import torch
from nnsight import NNsight
from paper_models import data_of, picture
from torch.testing import assert_close

import sa_transformer_lens
from sa_nnsight import accept
from sa_plugin.concepts import fit
from sa_plugin.detection import calibrate
from sa_plugin.heads import BankScores, LedgerError, head_ledger, tail_waterfall
from sa_plugin.host import Site
from sa_plugin.statistics import Resampling
from sa_transformer_lens.towers import tower_bridge

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HOSTS = {"nnsight": paper_models.nnsight_host, "bridge": paper_models.transformer_lens_host}
TEXT = ("The cat sat on the mat.",)


@pytest.fixture(scope="module", params=HOSTS)
def hosts(request):
    return HOSTS[request.param]


def read(host, batch, *sites):
    kept = host.read(batch, sites, lambda found: {str(site): found[site] for site in sites})
    return [kept[str(site)] for site in sites]


class TestText:
    def test_without_an_image_indices_count_the_blocks_that_run(self, hosts):
        host = hosts("mllama_text")
        assert host.info.n_layers == tiny_multimodal.N_TEXT - len(tiny_multimodal.CROSS)
        whole = hosts("mllama_text_image")
        assert whole.info.n_layers == tiny_multimodal.N_TEXT

    def test_nnsight_names_the_module_that_is_read(self):
        names = [
            paper_models.nnsight_host(name).hook_name(Site(1, "resid_post"))
            for name in ("mllama_text", "mllama_text_image")
        ]
        assert names == ["layers.2.output", "layers.1.output"]

    def test_the_image_changes_what_lies_behind_its_first_block(self, hosts):
        alone, seen = hosts("mllama_text"), hosts("mllama_text_image")
        batch = alone.batches(tiny.samples(TEXT))[0]
        first = Site(0, "resid_post")
        assert_close(read(alone, batch, first), read(seen, batch, first))
        one, two = (read(host, batch, Site(1, "resid_post"))[0] for host in (alone, seen))
        assert not torch.allclose(one, two, atol=0.1)
        assert alone.info.fingerprint != seen.info.fingerprint

    def test_both_hosts_know_the_model_by_one_hash(self):
        for name in ("mllama_text", "mllama_text_image", "mllama_vision"):
            one, two = (host(name).info for host in HOSTS.values())
            assert replace(one, host="") == replace(two, host="", model=one.model)

    def test_heads_that_attend_to_an_image_have_no_map_of_tokens(self, hosts):
        host = hosts("mllama_text_image")
        with pytest.raises(ValueError, match=r"block 1 .*attends to an image's states.*fit\(layers="):
            host.attention_weights(1)
        with pytest.raises(ValueError, match=r"block 1 attends to an image's states.*no tokens"):
            host.hook_name(Site(1, "pattern"))
        assert host.attention_weights(2).query.weight.shape == (tiny.N_HEADS, tiny.D_MODEL, tiny.D_HEAD)

    def test_the_gate_is_in_the_projection(self, hosts):
        host, model = hosts("mllama_text_image"), tiny_multimodal.mllama()
        block = model.model.language_model.layers[3]
        weight = block.cross_attn.o_proj.weight * block.cross_attn_attn_gate.tanh()
        ours = host.output_projection(3).weight
        assert_close(ours.flatten(0, 1).T, weight.detach())
        assert "tanh" in paper_models.nnsight_host("mllama_text_image").hook_name(Site(3, "attn_out"))

    def test_states_instead_of_pixels(self):
        host = paper_models.nnsight_host("mllama_text_image")
        model = tiny_multimodal.mllama().model.language_model
        tokenizer = tiny.tokenizer("llama")
        other = accept(NNsight(model), tokenizer=tokenizer, image=host.places.context)
        assert replace(other.info, model="") == replace(host.info, model="")

    @pytest.mark.parametrize(
        ("image", "says"),
        [
            (torch.zeros(17, 8), r"image is \[17, 8\]: give uint8.*\[state, 32\]"),
            ("a.png", r"image is str: give uint8"),
            (np.zeros((4, 4)), r"sample 'image': its image is float64"),
        ],
    )
    def test_wrong_images(self, image, says):
        model = NNsight(tiny_multimodal.mllama())
        with pytest.raises(ValueError, match=says):
            accept(model, tower="text", tokenizer=tiny.tokenizer("llama"), image=image)

    def test_an_image_for_others(self):
        with pytest.raises(ValueError, match="LlamaForCausalLM attends to no image"):
            accept(tiny.nnsight_model("llama"), image=picture())
        model = NNsight(tiny_multimodal.mllama())
        with pytest.raises(ValueError, match="reads images: leave the image out"):
            accept(model, tower="vision", image=picture())
        text = NNsight(tiny_multimodal.mllama().model.language_model)
        with pytest.raises(ValueError, match=r"has no vision tower and projector.*tower='text'"):
            accept(text, tokenizer=tiny.tokenizer("llama"), image=picture())


class TestVision:
    def test_rows_are_the_patches_of_tile_one_that_show_the_image(self, hosts):
        host = hosts("mllama_vision")
        (batch,) = host.batches(tiny.images(((28, 28), (28, 14))), batch_tokens=10_000)
        assert batch.valid.shape[1] == 24 * tiny_multimodal.TILES
        assert batch.valid.sum(1).tolist() == [16, 8]
        assert not batch.valid[:, 0].any()
        assert batch.class_index.tolist() == [0, 0]

    def test_local_blocks_come_before_global_ones(self):
        host = paper_models.nnsight_host("mllama_vision")
        names = [host.hook_name(Site(k, "resid_post")) for k in (1, 2)]
        assert names == ["transformer.layers.1.output", "global_transformer.layers.0.output"]
        assert host.info.block == "staged"

    def test_the_norm_between_them_is_handed_out(self, hosts):
        host = hosts("mllama_vision")
        entries = [host.norms(k).entry is not None for k in range(4)]
        assert entries == [False, False, True, False]

    def test_a_norm_that_is_not_the_joints_is_refused(self):
        places = {"entry": "layernorm_pre"}
        host = accept(
            NNsight(tiny_multimodal.mllama()),
            tower="vision",
            paths=places,
            processor=tiny_multimodal.processor(),
        )
        with pytest.raises(ValueError, match=r"between blocks 1 and 2 by something that is no norm"):
            host.norms(2)

    def test_without_the_joint_the_ledger_does_not_close(self, hosts, monkeypatch):
        host = hosts("mllama_vision")
        data = data_of("mllama_vision")
        bank = fit(host, data, "lda")
        own = type(host).norms
        monkeypatch.setattr(type(host), "norms", lambda self, layer: own(self, layer)._replace(entry=None))
        options = {"permutations": 0, "resampling": Resampling(10)}
        assert head_ledger(host, data, BankScores(bank, 1), **options).residue < 1e-6
        with pytest.raises(LedgerError, match=r"add up to|does not close"):
            head_ledger(host, data, BankScores(bank, 3), **options)

    def test_a_bank_between_the_joint_and_its_block_is_refused(self, hosts):
        host, data = hosts("mllama_vision"), data_of("mllama_vision")
        bank = fit(host, data, "lda", hook_point="resid_pre", layers=[2])
        with pytest.raises(NotImplementedError, match=r"resid_pre of block 2 .* joins its two"):
            head_ledger(host, data, bank)

    def test_the_waterfall_has_a_step_for_the_joint(self, hosts):
        host, data = hosts("mllama_vision"), data_of("mllama_vision")
        detector = calibrate(host, data, fit(host, data, "lda", layers=[3]))
        found = tail_waterfall(host, data, detector, resampling=Resampling(10))
        assert found.residue < 1e-6
        names = [step.name for step in found.steps]
        assert names.count("L2 norms") == 1
        assert sum("norms" in name for name in names) == 1

    def test_the_models_own_mask_lets_patches_see_padding(self, hosts):
        """As published: padding is hidden from padding alone."""
        host = hosts("mllama_vision")
        (batch,) = host.batches(tiny.images(((28, 28),)))
        (pattern,) = read(host, batch, Site(0, "pattern"))
        assert bool((pattern[:, :, 1:17, 17:] > 0).all())


@pytest.mark.parametrize("kind", HOSTS)
def test_fused_attention_stays_fused_but_where_a_pattern_is_read(kind):
    model = tiny_multimodal.mllama(attention="sdpa")
    options = {"processor": tiny_multimodal.processor()}
    host = (
        accept(NNsight(model), tower="vision", **options)
        if kind == "nnsight"
        else sa_transformer_lens.accept(tower_bridge(model, "vision", **options))
    )
    assert not host.info.causal
    (batch,) = host.batches(tiny.images(((28, 28),)))
    eager = HOSTS[kind]("mllama_vision")
    for point in ("pattern", "resid_post"):
        ours, theirs = (read(one, batch, Site(3, point))[0] for one in (host, eager))
        keep = slice(None) if point == "pattern" else batch.valid
        assert_close(ours[keep], theirs[keep], rtol=1e-3, atol=1e-4)
    assert model.model.vision_model.config._attn_implementation == "sdpa"
