"""Edits of z, parameters of blocks and differentiable passes of the nnsight host."""

import nnsight
import numpy as np
import pytest
import tiny
import torch
from torch.testing import assert_close

from sa_nnsight import accept
from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Splits
from sa_plugin.detection import calibrate
from sa_plugin.heads import Intervention, ablate_heads
from sa_plugin.host import (
    DescribedHost,
    DifferentiableHost,
    EditableHost,
    Site,
    apply_norm,
    norm_of,
    require_described,
    require_differentiable,
    require_editable,
)
from sa_plugin.statistics import Resampling

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EVERY = (*tiny.ARCHITECTURES, "vit", "dinov2", "clip_vision", "clip_text")
LAST = Site(2, "resid_post")


def make(name):
    if name in (*tiny.VISION, "clip_text"):
        return tiny.nnsight_vision_host(name)
    return tiny.nnsight_host(name)


@pytest.fixture(scope="module", params=EVERY)
def host(request):
    return make(request.param)


@pytest.fixture(scope="module")
def gpt2():
    return make("gpt2")


def batch_of(host):
    samples = tiny.images() if hasattr(host.reader, "processor") else tiny.samples(tiny.TEXTS[:3])
    return host.batches(samples)[0]


def read(host, batch, site=LAST):
    return host.read(batch, [site], lambda found: {"x": found[site]})["x"]


def without_head(z):
    z[:, :, 1] = 0
    return z


class TestEdited:
    def test_is_a_hook_on_the_projection(self, host):
        batch, module = batch_of(host), host.places.module("o_proj", 1)
        width = host.info.d_head

        def by_hand(_, args):
            flat = args[0].clone()
            flat[..., width : 2 * width] = 0
            return (flat,)

        handle = module.register_forward_pre_hook(by_hand)
        expected = read(host, batch)
        handle.remove()
        clean = read(host, batch)
        assert isinstance(host, EditableHost)
        with require_editable(host).edited({Site(1, "z"): without_head}):
            found = read(host, batch)
            z = read(host, batch, Site(1, "z"))
        assert torch.equal(found, expected)
        assert not torch.allclose(found, clean)
        assert (z[:, :, 1] == 0).all()
        assert torch.equal(read(host, batch), clean)

    def test_contexts_nest(self, gpt2):
        batch, site = batch_of(gpt2), Site(0, "z")
        with gpt2.edited({site: lambda z: z + 1}), gpt2.edited({site: lambda z: z * 2}):
            nested = read(gpt2, batch)
        with gpt2.edited({site: lambda z: (z + 1) * 2}):
            assert_close(read(gpt2, batch), nested)

    def test_a_trace_of_the_users_own_sees_it(self, gpt2):
        batch = batch_of(gpt2)
        with gpt2.edited({Site(1, "z"): without_head}):
            expected = read(gpt2, batch)
            with torch.no_grad(), gpt2.model.trace(**batch.inputs) as tracer:
                found = nnsight.save(gpt2.model.transformer.h[2].output)
                tracer.stop()
        assert torch.equal(found, expected)

    @pytest.mark.parametrize(
        ("edit", "says"),
        [
            (lambda z: z, r"edit of 'transformer\.h\.1\.attn\.c_proj\.input' changed nothing"),
            (lambda z: z[:, :1], r"returned torch\.float32 .* expected torch\.float32"),
            (lambda z: z.double(), r"returned torch\.float64"),
        ],
    )
    def test_what_would_be_a_wrong_number_is_an_error(self, gpt2, edit, says):
        batch = batch_of(gpt2)
        before = read(gpt2, batch)
        with pytest.raises(RuntimeError, match=says), gpt2.edited({Site(1, "z"): edit}):
            read(gpt2, batch)
        assert torch.equal(read(gpt2, batch), before)

    def test_an_edit_behind_what_is_read(self, gpt2):
        batch = batch_of(gpt2)
        with (
            pytest.raises(RuntimeError, match="fired 0 times in one forward pass"),
            gpt2.edited({Site(2, "z"): without_head}),
        ):
            read(gpt2, batch, Site(0, "resid_post"))
        with (
            pytest.raises(RuntimeError, match="no forward pass ran while"),
            gpt2.edited({Site(2, "z"): without_head}),
        ):
            pass

    def test_an_edit_that_is_lost(self):
        host = make("gpt2")
        module = host.places.module("o_proj", 1)
        clean = []
        catch = module.register_forward_pre_hook(lambda m, args: clean.append(args[0]))

        def put_back(m, args):
            return (clean[-1],)

        def lose():
            with host.edited({Site(1, "z"): without_head}):
                handles.append(module.register_forward_pre_hook(put_back))
                read(host, batch_of(host))

        handles = [catch]
        with pytest.raises(RuntimeError, match="was lost: the output projection gave what the"):
            lose()
        for handle in handles:
            handle.remove()

    def test_refusals(self, gpt2):
        with pytest.raises(ValueError, match="edits is empty"), gpt2.edited({}):
            pass
        with (
            pytest.raises(ValueError, match="only 'z' is causal everywhere"),
            gpt2.edited({Site(0, "pattern"): without_head}),
        ):
            pass
        with (
            pytest.raises(ValueError, match="layer 9 does not exist"),
            gpt2.edited({Site(9, "z"): without_head}),
        ):
            pass


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert"])
def test_ablations_equal_those_of_transformer_lens(name):
    rng = np.random.default_rng(0)
    words = ("cat", "dog", "sat", "mat", "people", "walk", "home", "night")
    texts = [list(rng.choice(words, 8)) for _ in range(40)]
    labels = [["animal" if w in ("cat", "dog") else None for w in row] for row in texts]
    data = ConceptData.from_words(texts, labels, splits=Splits(seed=1))
    lens, ours = tiny.host(name), make(name)
    bank = fit(lens, data, "prototype", layers=[2])
    detector = calibrate(lens, data, bank, deltas=(0.3,))
    modes = ("mean", "zero", "pattern", "directional")
    for mode in modes if ours.info.block == "pre_norm" else modes[:-1]:
        found = [
            ablate_heads(host, data, detector, [(1, 2)], how=Intervention(mode), resampling=Resampling(10))
            for host in (ours, lens)
        ]
        assert_frames_close(*(one.table() for one in found))


def assert_frames_close(ours, theirs):
    import pandas

    pandas.testing.assert_frame_equal(ours, theirs, rtol=1e-2, atol=1e-3)


class TestDescribed:
    def test_norms_are_the_modules(self, host):
        assert isinstance(host, DescribedHost)
        found = require_described(host).norms(1)
        batch = batch_of(host)
        kind = host.info.block
        assert (found.attn_in is None) == (kind == "post_ln")
        assert (found.attn_out is None) == (kind == "pre_norm")
        roles = {
            "pre_norm": {"attn_in": "norm1", "mlp_in": "norm2"},
            "post_norm": {"attn_in": "norm1", "mlp_in": "norm2", "attn_out": "attn_out", "mlp_out": "mlp"},
            "post_ln": {"attn_out": "norm1", "mlp_out": "norm2"},
        }[kind]
        x = read(host, batch, Site(1, "resid_pre")).float()
        for name, role in roles.items():
            module = host.places.module(role, 1)
            with torch.no_grad():
                assert_close(apply_norm(getattr(found, name), x), module(x), rtol=1e-4, atol=1e-5)

    def test_attention_is_reproduced(self, host):
        """`attention_weights` proves itself on an input; here, that the proof can fail."""
        weights = host.attention_weights(1)
        info = host.info
        assert weights.query.shape == (info.n_heads, info.d_model, info.d_head)
        assert weights.key.dtype == torch.float32
        module = host.places.module("attention", 1)
        name = "scaling" if hasattr(module, "scaling") else "scale"
        if isinstance(getattr(module, name, None), float):
            before = getattr(module, name)
            setattr(module, name, before * 1.5)
            wrong = host.attention_weights(1)
            setattr(module, name, before)
            assert wrong.scale == pytest.approx(1.5 * before)

    def test_a_norm_that_is_none(self):
        with pytest.raises(ValueError, match=r"ln is a Linear, and neither a LayerNorm nor an RMS"):
            norm_of("ln", torch.nn.Linear(4, 4))

    def test_grouped_keys_are_repeated(self):
        host = make("llama")
        weights = host.attention_weights(0)
        assert weights.n_key_value_heads == 2
        assert torch.equal(weights.key[0], weights.key[1])
        assert not torch.equal(weights.key[1], weights.key[2])

    def test_gains_of_query_and_key_norms_are_folded(self):
        host = make("qwen3")
        weights, attention = host.attention_weights(0), host.places.module("attention", 0)
        assert weights.query_key_norm
        raw = attention.q_proj.weight.detach().unflatten(0, (4, 8)).transpose(1, 2)
        assert_close(weights.query, raw * attention.q_norm.weight.detach())


class TestDifferentiable:
    def test_equals_read(self, host):
        assert isinstance(host, DifferentiableHost)
        batch = batch_of(host)
        values = require_differentiable(host).input_values(batch)
        assert not values.requires_grad
        mask = batch.inputs.get("attention_mask")
        keep = torch.ones_like(batch.valid) if mask is None else mask.bool()
        for site in (Site(0, "resid_pre"), Site(1, "attn_out"), LAST):
            with torch.no_grad():
                found = host.forward_from(values, batch, site)
            assert_close(found[keep], read(host, batch, site)[keep], rtol=1e-4, atol=1e-5)

    def test_gradients_with_frozen_parameters(self, host):
        batch = batch_of(host)
        values = host.input_values(batch).requires_grad_(True)

        def gradient():
            out = host.forward_from(values, batch, Site(1, "resid_post"))
            return torch.autograd.grad((out[batch.valid] ** 2).sum(), values)[0]

        free = gradient()
        parameters = list(host.places.root.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        frozen = gradient()
        for parameter in parameters:
            parameter.requires_grad_(True)
        assert float(free.abs().max()) > 0
        assert_close(free, frozen)
        assert all(parameter.grad is None for parameter in parameters)

    def test_rows_repeat_in_turn(self, host):
        batch = batch_of(host)
        values = host.input_values(batch)
        with torch.no_grad():
            both = host.forward_from(torch.cat([values, values * 0.9]), batch, LAST)
            second = host.forward_from(values * 0.9, batch, LAST)
        keep = batch.valid
        assert_close(both[len(values) :][keep], second[keep], rtol=1e-4, atol=1e-5)

    def test_refusals(self, gpt2):
        batch = batch_of(gpt2)
        values = gpt2.input_values(batch)
        with pytest.raises(ValueError, match="values have 2 rows, the batch 3 samples"):
            gpt2.forward_from(values[:2], batch, LAST)
        with pytest.raises(ValueError, match=r"values have shape \[3, .*the batch's embeddings"):
            gpt2.forward_from(values[:, :-1], batch, LAST)
        with pytest.raises(ValueError, match="point 'z' is not"):
            gpt2.forward_from(values, batch, Site(0, "z"))
        with pytest.raises(ValueError, match="sites is empty"):
            gpt2.forward_sites(values, batch, [])
        other = accept(gpt2.model, paths={"embed": "transformer.nothing"})
        with pytest.raises(AttributeError):
            other.input_values(batch)
