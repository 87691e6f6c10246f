"""HookedTransformer and HookedEncoder against bridges of the same weights: what is read, and refused."""

import families
import hooked_cases
import pytest
import tiny
import torch
from both_hosts import ALL, LAST, attended, batch_on, read, read_one
from hooked_cases import CASES, IDS, SHARED, hooked_model, hosts, needs_hooked

from sa_plugin.host import Site, check
from sa_transformer_lens import accept, load_hooked

pytestmark = [needs_hooked, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
both = pytest.mark.parametrize(("name", "process"), CASES, ids=IDS)


def close(one, other, limit=2e-5):
    size = other.abs().max()
    assert (one - other).abs().max() <= limit * size, float((one - other).abs().max() / size)


@both
def test_every_law_holds(name, process):
    host, _ = hosts(name, process)
    report = check(host, list(tiny.TEXTS[:3]))
    assert report.passed, str(report)


@both
def test_every_site_is_the_bridges(name, process):
    pair = hosts(name, process)
    batch = batch_on(pair[0], name)
    keep = attended(batch)
    ours, theirs = (read(host, batch_on(host, name)) for host in pair)
    for site in ALL:
        one, other = ours[site], theirs[site]
        if site.point == "pattern":
            one, other = (x * keep[:, None, :, None] for x in (one, other))
        else:
            one, other = one[keep], other[keep]
        close(one, other)


@both
def test_structure_and_tokens_are_the_bridges(name, process):
    ours, theirs = (host.info for host in hosts(name, process))
    for field in ("block", "causal", "bos", "tokenizer", "dtype", "n_layers", "d_model", "n_heads", "d_head"):
        assert getattr(ours, field) == getattr(theirs, field)


@pytest.mark.parametrize("name", SHARED)
def test_unprocessed_weights_have_the_bridges_fingerprint(name):
    ours, theirs = hosts(name)
    assert ours.info.fingerprint == theirs.info.fingerprint
    assert ours.info.processing == "none"
    changed = hooked_model(name)
    with torch.no_grad():
        changed.blocks[1].mlp.W_out.view(-1)[0] += 1e-3
    assert accept(changed).info.fingerprint != ours.info.fingerprint


@pytest.mark.parametrize("name", ["gpt2"])
def test_a_processed_layer_norm_model_is_centred_and_says_so(name):
    plain, processed = hosts(name)[0], hosts(name, True)[0]
    assert processed.info.processing == "norms folded, centred"
    assert processed.info.fingerprint != plain.info.fingerprint
    batch = batch_on(plain, name)
    keep = attended(batch)
    own, centred = (read_one(host, batch, LAST)[keep] for host in (plain, processed))
    close(centred, own - own.mean(-1, keepdim=True))
    assert (own - centred).abs().max() > 1e-2


def test_a_processed_rms_model_has_the_same_residual():
    plain, processed = hosts("llama")[0], hosts("llama", True)[0]
    assert processed.info.processing == "norms folded"
    batch = batch_on(plain, "llama")
    close(*(read_one(host, batch, LAST)[attended(batch)] for host in (plain, processed)))


@both
def test_weights_norms_and_projections_are_the_bridges(name, process):
    ours, theirs = hosts(name, process)
    for layer in range(tiny.N_LAYERS):
        # Folded gains stand in the maps, wherever they stood before.
        one, other = (_reads(host, layer) for host in (ours, theirs))
        for part in one:
            close(one[part], other[part])


def _reads(host, layer):
    """What a block reads and writes, folded gains or not, and what it adds of its own."""
    norms, found = host.norms(layer), host.attention_weights(layer)
    gain = torch.ones(host.info.d_model) if norms.attn_in is None else norms.attn_in.gain
    out = host.output_projection(layer)
    value = found.value.weight * gain[:, None]
    query, key = (one.weight * gain[:, None] for one in (found.query, found.key))
    if norms.attn_in is not None and norms.attn_in.centred:
        value, query, key = (one - one.mean(1, keepdim=True) for one in (value, query, key))
    return {
        "ov": torch.einsum("hde,hef->hdf", value, out.weight),
        "qk": torch.einsum("hde,hfe->hdf", query, key) * found.scale,
    }


@both
def test_passes_from_embeddings_and_their_gradients(name, process):
    grads = []
    for host in hosts(name, process):
        batch = batch_on(host, name, 1)
        values = host.input_values(batch).clone().requires_grad_(True)
        out = host.forward_from(values, batch, Site(1, "resid_post"))
        assert torch.allclose(out, read_one(host, batch, Site(1, "resid_post")), atol=1e-4)
        (grad,) = torch.autograd.grad(out.square().sum(), values)
        # The bridge's embedding stands before Gemma's scale, the HookedTransformer's behind it.
        grads.append(grad if name != "gemma2" else grad / grad.norm())
    close(*grads, limit=1e-4)


class TestRefusals:
    def test_a_bert_padded_on_the_left(self):
        with pytest.raises(ValueError, match="counts positions from the first column"):
            accept(hooked_model("bert"), padding_side="left")

    def test_training_mode(self):
        with pytest.raises(ValueError, match=r"training mode: call model\.eval"):
            accept(hooked_model("llama").train())

    def test_an_old_release(self, monkeypatch):
        model = hooked_model("llama")
        monkeypatch.setattr("importlib.metadata.version", lambda name: "2.18.0")
        with pytest.raises(TypeError, match=r"2\.18\.0 is too old, .*HookedTransformer.*>=3\.8"):
            accept(model)

    @pytest.mark.skipif(not hooked_cases.OLD, reason="TransformerLens 3.9 converts it")
    def test_a_neox_on_an_old_release(self):
        says = r"cannot convert a GPTNeoX.*'embed_out'.*transformer-lens>=3\.9,<4.*load_bridge"
        with pytest.raises(ValueError, match=says):
            load_hooked(hooked_cases.folder("neox"))

    def test_folders_that_no_such_model_is_made_of(self):
        with pytest.raises(ValueError, match="not processed"):
            load_hooked(hooked_cases.folder("bert"), process=True)
        families.model("Falcon 7B").save_pretrained(where := tiny.scratch_folder() / "whole_falcon")
        tiny.tokenizer("llama").save_pretrained(where)
        with pytest.raises(ValueError, match=r"no HookedTransformer of a folder of FalconFor.*load_bridge"):
            load_hooked(where)
        where = tiny.scratch_folder() / "whole_vit"
        tiny.vision_model("vit").save_pretrained(where)
        with pytest.raises(ValueError, match="holds a model of images"):
            load_hooked(where)


def test_the_tokenizer_is_the_folders_although_the_model_puts_bos_first():
    host, _ = hosts("gpt2")
    sample = tiny.samples()[0]
    own = tiny.tokenizer("gpt2")(sample.text).input_ids
    assert host.forward_inputs(sample)["input_ids"][0].tolist() == own
    assert host.model.to_tokens(sample.text)[0].tolist() == [0, *own]


def test_a_folder_whose_name_is_a_trap_is_read_by_its_configuration(tmp_path):
    import shutil

    where = tmp_path / "not-a-llama-but-gemma"
    shutil.copytree(hooked_cases.folder("gpt2"), where)
    model = load_hooked(where)
    assert model.cfg.original_architecture == "GPT2LMHeadModel"
    assert model.cfg.model_name == "not-a-llama-but-gemma"


def test_the_numbers_of_a_gemma2_are_its_folders(tmp_path):
    """TransformerLens has them for the hub's names alone."""
    model = tiny.hf_model("gemma2")
    config = model.config
    config.query_pre_attn_scalar, config.rope_parameters["rope_theta"] = 23, 50.0
    config.sliding_window, config.attn_logit_softcapping = 3, 0.02
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    model = type(model)(config).eval()
    model.save_pretrained(tmp_path)
    tiny.tokenizer("gemma2").save_pretrained(tmp_path)
    host = accept(load_hooked(tmp_path))
    batch = batch_on(host, "gemma2", 1)
    with torch.no_grad():
        found = model(**batch.inputs, output_hidden_states=True).hidden_states
    for layer in range(tiny.N_LAYERS):
        close(read_one(host, batch, Site(layer, "resid_pre")), found[layer])
