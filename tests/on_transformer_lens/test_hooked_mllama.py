"""Mllama under TransformerLens's hooks: parity to the bit, edits through gates, nothing left."""

import paper_models
import pytest
import tiny
import tiny_multimodal
import torch
from torch.testing import assert_close

from sa_plugin.host import Site
from sa_transformer_lens import accept
from sa_transformer_lens.mllama import HookedMllama
from sa_transformer_lens.towers import bare_bridge, tower_bridge

IDS = torch.tensor([[0, 7, 30, 41, 12]])


@pytest.fixture(scope="module")
def text():
    return HookedMllama(
        tiny_multimodal.mllama(),
        "text",
        image=paper_models.picture(),
        processor=tiny_multimodal.processor(),
        tokenizer=tiny.tokenizer("llama"),
    )


@pytest.fixture(scope="module")
def vision():
    return HookedMllama(tiny_multimodal.mllama(), "vision", processor=tiny_multimodal.processor())


def twin():
    """The whole model, its image given in pixels."""
    with torch.no_grad():
        return paper_models._mllama_image(tiny_multimodal.mllama(), {"input_ids": IDS}).logits


def test_logits_are_the_whole_models(text):
    with torch.no_grad():
        out, cache = text.run_with_cache(IDS)
    assert_close(out, twin(), rtol=1e-4, atol=1e-4)
    assert cache["blocks.1.attn.hook_v"].shape == (1, 17, 2, tiny.D_HEAD)
    assert cache["blocks.1.attn.hook_pattern"].shape == (1, tiny.N_HEADS, 5, 17)
    assert cache["blocks.0.attn.hook_z"].shape == (1, 5, tiny.N_HEADS, tiny.D_HEAD)


def test_hooks_change_no_bit(text):
    with torch.no_grad():
        plain = text(IDS)
        seen = text.run_with_hooks(IDS, fwd_hooks=[(lambda name: True, lambda x, hook: None)])
        states = text.context[None]
        own = text.original_model(IDS, cross_attention_states=states).last_hidden_state
    assert torch.equal(plain, seen)
    assert torch.equal(plain, text.head(own))


def test_nothing_is_left_on_the_model(text):
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        text.run_with_hooks(IDS, fwd_hooks=[("blocks.2.hook_mlp_out", lambda x, hook: 1 / 0)])
    for module in text.original_model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("place", ["hook_attn_out", "attn.o.hook_out", "hook_mlp_out"])
@pytest.mark.parametrize("block", [0, 1])
def test_an_edit_of_what_is_added_reaches_the_stream(text, place, block):
    """Block 1 has gates, block 0 has none."""
    post = f"blocks.{block}.hook_resid_post"
    with torch.no_grad():
        _, before = text.run_with_cache(IDS)
        with text.hooks(fwd_hooks=[(f"blocks.{block}.{place}", lambda x, hook: x * 0)]):
            _, after = text.run_with_cache(IDS)
    pre = before[f"blocks.{block}.hook_resid_pre"]
    assert_close(after[f"blocks.{block}.hook_resid_pre"], pre)
    other = "hook_attn_out" if "mlp" in place else "hook_mlp_out"
    left = after[f"blocks.{block}.{other}"]
    assert_close(after[post], pre + left, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after[post], before[post], atol=1e-2)


def test_an_edit_in_place_is_seen_too(text):
    def double(x, hook):
        x *= 2

    with torch.no_grad():
        plain = text(IDS)
        hooked = text.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_attn_out", double)])
    assert not torch.allclose(plain, hooked, atol=1e-3)


@pytest.mark.parametrize("place", ["hook_attn_out", "attn.o.hook_out", "hook_mlp_out"])
@pytest.mark.parametrize("block", [0, 1])
def test_gradients_are_slopes(place, block):
    """Block 1 has gates, block 0 has none; the gradient at a hook is what an edit there changes."""
    model = HookedMllama(
        tiny_multimodal.mllama().double(), "text", image=torch.ones(3, tiny.D_MODEL).double()
    )
    name, found = f"blocks.{block}.{place}", []
    step = torch.randn(1, 5, tiny.D_MODEL, generator=torch.Generator().manual_seed(0)).double()

    def objective(size):
        hooks = [(name, lambda x, hook: x + size * step)]
        with torch.no_grad():
            return float(model.run_with_hooks(IDS, fwd_hooks=hooks).square().sum())

    with model.hooks(bwd_hooks=[(name, lambda grad, hook: found.append(grad))]):
        model(IDS).square().sum().backward()
    # Norms are computed in float32 whatever the weights are.
    slope = (objective(3e-3) - objective(-3e-3)) / 6e-3
    assert_close(float((found[0] * step).sum()), slope, rtol=2e-3, atol=1e-2)


def test_hooks_change_no_gradient_of_the_model():
    """Those of the gates included."""
    model = tiny_multimodal.mllama().double()
    states = torch.ones(3, tiny.D_MODEL).double()
    text = HookedMllama(model, "text", image=states)

    def gradients(out):
        weights = list(text.original_model.parameters())
        return torch.autograd.grad(out.square().sum(), weights, allow_unused=True)

    hooked = gradients(text.run_with_hooks(IDS, fwd_hooks=[(lambda name: True, lambda x, hook: None)]))
    plain = gradients(text.head(text.original_model(IDS, cross_attention_states=states[None])[0]))
    for one, other in zip(hooked, plain, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_an_edit_behind_a_closed_gate_is_an_error():
    model = tiny_multimodal.mllama()
    with torch.no_grad():
        model.model.language_model.layers[1].cross_attn_attn_gate.zero_()
    closed = HookedMllama(model, "text", image=paper_models.picture(), processor=tiny_multimodal.processor())
    with pytest.raises(RuntimeError, match=r"blocks\.1\.hook_attn_out was edited where its tanh"):
        closed.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_attn_out", lambda x, hook: x + 1)])


def test_tokens_that_see_no_image_get_nothing_from_its_mlp(text):
    """A row mask of the user's own is in what `hook_mlp_out` shows."""
    model = text.original_model
    states = text.context[None]
    mask = torch.zeros(1, 1, 5, 17)
    rows = torch.tensor([0.0, 0, 1, 1, 1])[None, None, :, None]
    options = {
        "cross_attention_states": states,
        "cross_attention_mask": mask,
        "full_text_row_masked_out_mask": rows,
    }
    with torch.no_grad():
        _, cache = text.run_with_cache(IDS, **options)
        own = model(IDS, **options).last_hidden_state
    assert not cache["blocks.1.hook_mlp_out"][0, :2].any()
    total = sum(cache[f"blocks.1.hook_{part}"] for part in ("resid_pre", "attn_out", "mlp_out"))
    assert_close(cache["blocks.1.hook_resid_post"], total)
    assert_close(cache["ln_final.hook_out"], own)


def test_patterns_are_read_only_and_said_to_be(vision):
    host = accept(vision)
    with pytest.raises(ValueError, match=r"hook_pattern.*fires and changes nothing"):
        host.check_writable(host.hook_name(Site(3, "pattern")))
    for point in ("resid_pre", "z", "attn_out", "mlp_out"):
        host.check_writable(host.hook_name(Site(3, point)))


def test_pixels_of_one_tile(vision):
    host = accept(vision)
    pixels = host.forward_inputs(tiny.images()[0])["pixel_values"]
    with torch.no_grad():
        expected = tiny_multimodal.mllama().model.vision_model(**paper_models._tile(pixels))
        assert_close(vision(pixels), expected.last_hidden_state)


class TestRefusals:
    def test_no_such_half(self):
        with pytest.raises(ValueError, match="LlamaForCausalLM has no vision half of an Mllama"):
            HookedMllama(tiny.hf_model("llama"), "vision")
        with pytest.raises(ValueError, match="tower 'ears' is unknown"):
            HookedMllama(tiny_multimodal.mllama(), "ears")

    def test_a_bridge_has_one_tower(self):
        with pytest.raises(ValueError, match=r"comes too late.*tower_bridge\(model, 'vision'\)"):
            accept(tiny.bridge("llama"), tower="vision")

    def test_towers(self):
        with pytest.raises(ValueError, match="LlamaForCausalLM has no vision tower"):
            tower_bridge(tiny.hf_model("llama"), "vision")
        with pytest.raises(ValueError, match="CLIPVisionModel attends to no image"):
            tower_bridge(tiny_multimodal.llava(), "vision", image=paper_models.picture())
        with pytest.raises(ValueError, match="no causal language model of a CLIPVisionModel"):
            bare_bridge(tiny.vision_model("clip_vision"), tiny.tokenizer("llama"))
