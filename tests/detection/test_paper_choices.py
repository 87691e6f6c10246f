"""The paper's choices as options: no special tokens, the final norm at 100 %, towers."""

from dataclasses import replace

import numpy as np
import paper_models
import pytest
import tiny
import tiny_multimodal
import torch
from nnsight import NNsight
from paper_models import data_of
from torch.testing import assert_close

import sa_nnsight
import sa_transformer_lens
from sa_plugin.concepts import fit
from sa_plugin.heads import BankScores, head_alignment, head_ledger
from sa_plugin.host import FINAL_NORM, PAPER_GRIDS, Site, check, layers_at
from sa_plugin.scores import score
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HOSTS = {
    "nnsight": (tiny.nnsight_model, sa_nnsight.accept),
    "bridge": (tiny.bridge, sa_transformer_lens.accept),
}


@pytest.fixture(scope="module", params=HOSTS)
def attach(request):
    build, accept = HOSTS[request.param]
    return lambda name, **options: accept(build(name), **options)


def read(host, batch, site):
    return host.read(batch, [site], lambda found: {"x": found[site]})["x"]


class TestSpecialTokens:
    @pytest.mark.parametrize("name", tiny.ADDS_SPECIAL_FIRST)
    def test_none_are_put_in(self, attach, name):
        host = attach(name, add_special_tokens=False)
        batch = host.batches(tiny.samples()[:1])[0]
        ids = tiny.tokenizer(name)(tiny.TEXTS[0], add_special_tokens=False).input_ids
        assert batch.inputs["input_ids"].tolist() == [ids]
        assert bool(batch.valid.all())
        assert not host.info.bos

    def test_it_is_another_tokenizer_to_a_bank(self, attach):
        plain, bare = attach("llama"), attach("llama", add_special_tokens=False)
        assert plain.info.tokenizer != bare.info.tokenizer
        assert plain.info.fingerprint == bare.info.fingerprint
        bank = fit(bare, data_of("gemma2"), "lda")
        with pytest.raises(ValueError, match="token"):
            score(plain, data_of("gemma2"), bank)

    def test_its_weights_are_in_the_fingerprint(self):
        def both(factor, **options):
            model = tiny.hf_model("llama")
            with torch.no_grad():
                model.model.norm.weight.mul_(factor)
            host = sa_nnsight.accept(NNsight(model), tokenizer=tiny.tokenizer("llama"), **options)
            return host.info.fingerprint

        assert both(1) == both(3)
        assert both(1, final_norm=True) != both(3, final_norm=True)
        bridged = tiny.host("llama", final_norm=True)
        assert bridged.info.fingerprint == both(1, final_norm=True)

    def test_every_law_holds(self, attach):
        report = check(attach("llama", add_special_tokens=False), tiny.TEXTS[:2])
        assert report.passed, str(report)


class TestFinalNorm:
    @pytest.mark.parametrize("name", ["gpt2", "gemma2", "qwen3", "neox"])
    def test_the_last_block_is_what_transformers_returns(self, attach, name):
        host = attach(name, final_norm=True)
        assert host.info.processing == FINAL_NORM
        batch = host.batches(tiny.samples()[:2], batch_tokens=10_000)[0]
        with torch.no_grad():
            out = tiny.hf_model(name)(**batch.inputs, output_hidden_states=True)
        for layer in range(tiny.N_LAYERS):
            ours = read(host, batch, Site(layer, "resid_post"))[batch.valid]
            theirs = out.hidden_states[layer + 1][batch.valid]
            assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", ["nnsight", "bridge"])
    def test_of_a_vision_transformer(self, kind):
        build = {"nnsight": tiny.nnsight_vision_host, "bridge": tiny.vision_host}[kind]
        host = build("vit", final_norm=True)
        (batch,) = host.batches(tiny.images(((28, 42),)))
        with torch.no_grad():
            out = tiny.vision_model("vit")(**dict(batch.inputs))
        assert_close(read(host, batch, Site(2, "resid_post")), out.last_hidden_state)

    def test_gradients_go_through_it(self, attach):
        host = attach("llama", final_norm=True)
        batch = host.batches(tiny.samples()[:1])[0]
        site = Site(2, "resid_post")
        values = host.input_values(batch).requires_grad_(True)
        out = host.forward_from(values, batch, site)
        assert_close(out.detach(), read(host, batch, site))
        (gradient,) = torch.autograd.grad(out.square().sum(), values)
        assert gradient.abs().sum() > 0

    def test_no_ledger_of_it(self, attach):
        host, data = attach("llama", final_norm=True), data_of("gemma2")
        bank = fit(host, data, "lda")
        options = {"permutations": 0, "resampling": Resampling(10)}
        assert head_ledger(host, data, BankScores(bank, 1), **options).residue < 1e-6
        with pytest.raises(NotImplementedError, match=r"final_norm=True.*no sum of what the model"):
            head_ledger(host, data, BankScores(bank, 2), **options)
        with pytest.raises(NotImplementedError, match=r"vectors of block 2 live behind the final"):
            head_alignment(host, data, bank)

    def test_a_bank_of_the_one_is_none_of_the_other(self, attach):
        bank = fit(attach("llama", final_norm=True), data_of("gemma2"), "lda")
        with pytest.raises(ValueError, match="final norm"):
            score(attach("llama"), data_of("gemma2"), bank)

    def test_every_law_holds(self, attach):
        report = check(attach("llama", final_norm=True), tiny.TEXTS[:2])
        assert report.passed, str(report)

    def test_towers_without_one(self):
        processor = paper_models.options_of("clip_vision")
        model = NNsight(tiny.vision_model("clip_vision"))
        with pytest.raises(ValueError, match=r"no final norm among its paths: leave final_norm out"):
            sa_nnsight.accept(model, final_norm=True, **processor)
        with pytest.raises(ValueError, match=r"no hook 'ln_final.hook_out': leave final_norm out"):
            tiny.vision_host("clip_vision", final_norm=True)


class TestLlava:
    @pytest.fixture(scope="class", params=["nnsight", "bridge"])
    def host(self, request):
        hosts = {"nnsight": paper_models.nnsight_host, "bridge": paper_models.transformer_lens_host}
        return hosts[request.param]("llava_vision")

    def test_the_feature_layer_is_block_minus_two(self, host):
        (batch,) = host.batches(tiny.images(((28, 28),)))
        model = tiny_multimodal.llava().model
        with torch.no_grad():
            out = model.vision_tower(**dict(batch.inputs), output_hidden_states=True)
        chosen = out.hidden_states[model.config.vision_feature_layer][:, 1:]
        (layer,) = (k for k in range(host.info.n_layers) if k - host.info.n_layers == -2)
        ours = read(host, batch, Site(layer, "resid_post"))[batch.valid]
        assert_close(ours, chosen[0])

    def test_its_text_is_a_llama(self):
        options = {"tower": "text", "tokenizer": tiny.tokenizer("llama")}
        one = sa_nnsight.accept(NNsight(tiny_multimodal.llava()), **options)
        from sa_transformer_lens.towers import tower_bridge

        two = sa_transformer_lens.accept(
            tower_bridge(tiny_multimodal.llava(), "text", tokenizer=tiny.tokenizer("llama"))
        )
        assert one.info.fingerprint == two.info.fingerprint
        batch = one.batches(tiny.samples()[:1])[0]
        site = Site(2, "resid_post")
        assert_close(read(one, batch, site), read(two, batch, site), rtol=1e-4, atol=1e-5)

    def test_a_tower_must_be_named(self):
        with pytest.raises(ValueError, match=r"has two towers.*tower='vision'"):
            sa_nnsight.accept(NNsight(tiny_multimodal.llava()))


def test_a_siglip_tower_on_nnsight():
    import transformers as hf

    shared = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = hf.SiglipVisionConfig(**shared, num_attention_heads=4, image_size=28, patch_size=7)
    model = tiny.fill(hf.SiglipVisionModel(config)).eval()
    host = sa_nnsight.accept(NNsight(model), **paper_models.options_of("clip_vision"))
    assert host.reader.n_special == 0
    assert check(host).passed


def test_a_bare_embedding_model_is_one_model_on_both_hosts():
    one = paper_models.nnsight_host("qwen3_embedding")
    two = paper_models.transformer_lens_host("qwen3_embedding")
    known = {"architecture": "", "model": "", "host": ""}
    assert replace(one.info, **known) == replace(two.info, **known)
    assert one.reader.padding_side == two.reader.padding_side == "left"
    batch = one.batches(tiny.samples(), batch_tokens=10_000)[0]
    site = Site(2, "resid_post")
    ours, theirs = (read(host, batch, site)[batch.valid] for host in (one, two))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_layers_at_is_the_papers_grid():
    assert layers_at(PAPER_GRIDS["clip"], 24) == (0, 5, 10, 15, 20, 23)
    for name, n_layers in (("llama_vision", 40), ("llama_text", 32), ("gemma", 42)):
        grid = PAPER_GRIDS[name]
        expected = {max(int(np.floor(p * n_layers / 100)) - 1, 0) for p in grid}
        assert layers_at(grid, n_layers) == tuple(sorted(expected))
    assert layers_at(100, 3) == (2,)
    assert layers_at((1, 2, 3), 3) == (0,)
    with pytest.raises(ValueError, match="percent is empty"):
        layers_at([], 3)
