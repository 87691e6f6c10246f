"""The ledger of models with norms behind attention and MLP, and of every other architecture."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from ledger_cases import kept_rows, ledger, make_data, with_methods

from sa_plugin.concepts import ConceptBank, fit
from sa_plugin.detection import calibrate
from sa_plugin.heads import LedgerError, explain_tokens, term_means
from sa_plugin.host import OutputProjection
from sa_plugin.stages import heads_block

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LATE_NORMS = ("gemma2", "bert")


@pytest.fixture(scope="module")
def data():
    return make_data(60, 30)


@pytest.fixture(scope="module", params=LATE_NORMS)
def host(request):
    return tiny.host(request.param)


@pytest.fixture(scope="module")
def banks(host, data):
    return {kind: fit(host, data, kind) for kind in ("prototype", "lda")}


@pytest.mark.parametrize("kind", ["prototype", "lda"])
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "raw"])
def test_closes_for_every_token(host, banks, data, kind, centred):
    bank = banks[kind]
    source = bank if centred else replace(bank, origin=replace(bank.origin, data_hash=""))
    found = ledger(host, data, source, draws=10)
    assert found.residue < 1e-6
    assert found.settings["centred"] == centred
    names = [c.name for c in found.components if c.kind == "constants"]
    scaled = ["L0 bias x scale", "L1 bias x scale", "L2 bias x scale"]
    biases = scaled if host.info.block == "post_ln" else [] if centred else ["bias"]
    assert names == (biases if centred else [*biases, "reference"])


def own_terms(host, sample, bank, layer, kept):
    """Oracle: every write as a vector, sent through the norms one at a time, with the scales that
    TransformerLens measured; rows `[token, component, d_model]` before the dot product."""
    (batch, keep), bridge, info = kept, host.bridge, host.info
    inputs = dict(batch.inputs)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
    post_ln = info.block == "post_ln"
    first, second = ("ln1", "ln2") if post_ln else ("ln1_post", "ln2_post")

    def through(x, block, name, *, bias):
        norm = getattr(bridge.blocks[block], name)
        gain = norm.weight.detach()
        scale = cache[f"blocks.{block}.{name}.hook_scale"][0, keep]
        if not post_ln:
            return x / scale * (1 + gain)
        return (x - x.mean(-1, keepdim=True)) / scale * gain + (norm.bias.detach() if bias else 0)

    named = {"embedding": cache["blocks.0.hook_resid_pre"][0, keep]}
    for block in range(layer + 1):
        z = cache[f"blocks.{block}.attn.hook_z"][0, keep]
        z = z.reshape(len(z), info.n_heads, info.d_head)
        weight, bias = host.output_projection(block)
        writes = {f"L{block}H{h}": z[:, h] @ weight[h] for h in range(info.n_heads)}
        mlp = cache[f"blocks.{block}.hook_mlp_out"][0, keep]
        if post_ln:
            zero = torch.zeros_like(mlp)
            old = {n: through(v, block, first, bias=False) for n, v in (named | writes).items()}
            shift = through(bias.expand_as(mlp), block, first, bias=True)
            every = old | {f"L{block} MLP": mlp, f"L{block} bias x scale": shift}
            named = {n: through(v, block, second, bias=False) for n, v in every.items()}
            named[f"L{block} bias x scale"] += through(zero, block, second, bias=True) - through(
                zero, block, second, bias=False
            )
        else:
            named |= {n: through(v, block, first, bias=False) for n, v in writes.items()}
            named[f"L{block} MLP"] = mlp
    return named


@pytest.mark.parametrize("layer", [0, 2])
def test_terms_are_those_of_vectors_sent_through_the_norms(host, banks, data, layer):
    bank = banks["lda"]
    sample = data.test.samples[0]
    (kept,) = kept_rows(host, [sample], bank.layers)
    named = own_terms(host, sample, bank, layer, kept)
    found = explain_tokens(host, bank, sample, "animal", layer=layer)
    w = bank.vector("animal", layer) / bank.token.scale[bank.index(layer)]
    size = np.abs(found.terms).max()
    for i, component in enumerate(found.components):
        if component.name in named:
            expected = named[component.name] @ w
            np.testing.assert_allclose(found.terms[:, i] / size, expected / size, atol=3e-6)
    constants = {"bias", "reference"}
    assert {c.name for c in found.components} - constants == named.keys()


@pytest.mark.parametrize("kind", ["prototype", "lda"])
def test_means_are_those_of_the_train_tokens_terms(host, banks, data, kind):
    bank = banks[kind]
    means = term_means(host, data, bank)
    dot = replace(bank, token=replace(bank.token, scoring="dot"))
    raw = [explain_tokens(host, dot, s, "food", layer=1) for s in data.train.samples]
    names = [c.name for c in raw[0].components]
    mean = dict(zip(names, np.concatenate([r.terms for r in raw]).mean(0), strict=True))
    sample = data.test.samples[1]
    centred = explain_tokens(host, dot, sample, "food", layer=1, means=means)
    plain = explain_tokens(host, dot, sample, "food", layer=1)
    size = np.abs(plain.terms).max()
    for i, component in enumerate(centred.components):
        expected = plain.terms[:, names.index(component.name)] - mean[component.name]
        np.testing.assert_allclose(centred.terms[:, i] / size, expected / size, atol=1e-5)
    np.testing.assert_allclose(centred.terms.sum(1), centred.score, atol=1e-4 * size)


def test_means_of_a_pre_norm_model_are_the_banks(data):
    host = tiny.host("gpt2")
    bank = fit(host, data, "lda")
    bare = replace(bank, component_means=None)
    means = term_means(host, data, bare)
    one, two = ledger(host, data, bank, draws=5), ledger(host, data, bare, draws=5, means=means)
    for end in ("estimate", "low", "high"):
        a, b = (getattr(found.contrast.terms, end) for found in (one, two))
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert one.components == two.components


def test_the_control_and_shares_of_a_post_norm_model(host, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(host, data, "prototype")
        detector = calibrate(host, data, bank, deltas=(0.1, 0.3, 0.5))
        found = ledger(host, data, detector, permutations=3)
    for effect in found.effects.values():
        np.testing.assert_allclose(effect.shares.estimate.sum(0), 1, atol=1e-6)
        np.testing.assert_allclose(effect.terms.estimate.sum(0), effect.total.estimate, atol=1e-9)
    biases = heads_block(found)["concepts"]["animal"]["shares"].get("bias_share")
    assert (biases is not None) == (host.info.block == "post_ln")


def test_a_wrong_projection_or_norm_raises(host, banks, data):
    raw = replace(banks["lda"], origin=replace(banks["lda"].origin, data_hash=""))

    def one_head(layer):
        """A norm that follows would not see a factor on all heads alike."""
        weight, bias = host.output_projection(layer)
        weight[0] *= 1.05 if layer == 1 else 1.0
        return OutputProjection(weight, bias)

    with pytest.raises(LedgerError, match="block 1: its heads' z W_O"):
        ledger(with_methods(host, output_projection=one_head), data, raw)

    def other_norms(layer):
        norms = host.norms(layer)
        gain = norms.attn_out.gain * (1.1 if layer == 1 else 1.0)
        return norms._replace(attn_out=norms.attn_out._replace(gain=gain))

    other = with_methods(host, norms=other_norms)
    with pytest.raises(LedgerError, match=r"does not close.*Probably block 1"):
        ledger(other, data, raw)
    with pytest.raises(LedgerError, match="misses the normaliser's mean"):
        ledger(other, data, banks["lda"])


def test_a_host_without_norms_is_told_so(data):
    bare = tiny.host("bert")
    bank = ConceptBank.from_vectors({(c, 1): torch.ones(tiny.D_MODEL) for c in data.concepts})

    class Bare:
        info, batch_tokens, progress = bare.info, bare.batch_tokens, bare.progress
        batches, read, hook_name = bare.batches, bare.read, bare.hook_name
        output_projection = bare.output_projection

    with pytest.raises(NotImplementedError, match=r"is post_ln: .* it lacks `norms`"):
        ledger(Bare(), data, bank)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", LATE_NORMS)
def test_half_precision_closes_to_its_rounding(architecture, dtype, data):
    half = tiny.host(architecture, dtype=dtype)
    found = ledger(half, data, fit(half, data, "prototype"), draws=5)
    assert 1e-6 < found.residue < 20 * torch.finfo(dtype).eps
