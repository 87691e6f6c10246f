"""A theory check on tiny models of every architecture: paths from weights against brute force."""

import numpy as np
import pytest
import tiny
import torch
from word_data import word_data

from sa_plugin.concepts import ConceptBank, VectorSet, fit
from sa_plugin.data import ConceptData, Sample
from sa_plugin.host import (
    AttentionWeights,
    InputMap,
    Norm,
    OutputProjection,
    Rotary,
    Site,
    apply_norm,
    norm_scale,
)
from sa_plugin.statistics import Resampling
from sa_plugin.theory import check_theory, path_of

WORDS = """the cat sat on the mat while a much longer sentence
about dogs went past them""".split()  # noqa: SIM905


def long_data(n=6):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(WORDS)) for _ in range(n)]
    positive = frozenset({"c"})
    made = tuple(Sample(f"s{k}", x, f"d{k}", positive=positive) for k, x in enumerate(texts))
    return ConceptData(("c",), made, ("test",) * n)


def random_bank(seed=0):
    generator = torch.Generator().manual_seed(seed)
    own, other = torch.randn(2, tiny.N_LAYERS, 1, tiny.D_MODEL, generator=generator)
    vectors = {("c", layer): own[layer, 0] for layer in range(tiny.N_LAYERS)}
    bank = ConceptBank.from_vectors(vectors, sinks="keep")
    permuted = VectorSet(other, bank.token.mean, bank.token.scale, "dot")
    return ConceptBank(
        bank.concepts,
        bank.units,
        bank.layers,
        bank.hook_point,
        bank.kind,
        bank.token,
        permuted=permuted,
        origin=bank.origin,
    )


@pytest.fixture(scope="module")
def report(tiny_host):
    return check_theory(tiny_host, long_data(), random_bank(), resampling=Resampling(20))


def test_every_architecture_is_measured_and_its_weights_close(report, architecture):
    assert np.isfinite(report.quantity("gap_slope", "c").measured.estimate).all()
    assert np.isfinite(report.quantity("effective_keys", "c").measured.estimate).all()
    named = {a.name for a in report.assumptions}
    assert ("residual update" in named) == (architecture in ("gemma2", "bert"))
    assert ("same keys for all queries" in named) == (architecture != "bert")
    if architecture == "gemma2":
        assert "post-norm" in report.absent["predicted"]
    elif architecture == "qwen3":
        assert "norm of their own" in report.absent["predicted"]
        for name in ("path_gap_slope", "prefix_gap_slope", "prefix_gaps_grown"):
            q = report.quantity(name, "c")
            assert np.isfinite(q.measured.estimate).all()
            assert q.predicted is None or np.isnan(q.predicted).all()
        assert "no query-key norm" in named
    else:
        assert report.settings["closes_to"] < 1e-4
        assert np.isfinite(report.quantity("gap_slope", "c").predicted).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["prototype", "lda", "separator"])
def test_every_supervised_kind_is_checked_both_ways(tiny_gpt2, kind):
    """With the permuted-label vectors of its own kind as control."""
    data = word_data(50, 6)
    bank = fit(tiny_gpt2, data, kind)
    report = check_theory(tiny_gpt2, data, bank, resampling=Resampling(20))
    assert set(report.quantities) == {
        (concept, direction) for concept in ("animal", "food") for direction in ("fixed", "refitted")
    }
    for concept in ("animal", "food"):
        found = report.quantity("attention_by_sign", concept)
        assert np.isfinite(found.measured.estimate).all()
        assert {"permuted", "random"} <= set(found.controls)
        vectors = bank.permuted.vectors[1, bank.unit(concept)]
        assert not torch.allclose(vectors, bank.token.vectors[1, bank.unit(concept)])


def test_the_layer_is_the_residuals_and_the_heads_the_attention(report, tiny_host):
    """G of the block and of the heads by loops over samples, straight from the host."""
    bank, data = random_bank(), long_data()
    v = bank.token.vectors[1, 0].double()
    v = (v / v.norm()).numpy()
    sites = [Site(1, p) for p in ("resid_pre", "resid_post", "attn_out")]
    sums = np.zeros((2, 3))
    for sample in data.samples:
        (batch,) = tiny_host.batches([sample])
        got = tiny_host.read(batch, sites, lambda read: {s.point: read[s] for s in sites})
        valid = batch.valid[0]
        before, after, added = (got[s.point][0, valid].double().numpy() @ v for s in sites)
        x = before - before.mean()
        for k, y in enumerate((after, before + added)):
            y = y - y.mean()
            sums[k] += x @ x, x @ y, y @ y
    for name, (xx, xy, yy) in zip(("gap_deviation_ratio", "heads_gap_deviation_ratio"), sums, strict=True):
        value = report.quantity(name, "c").measured.estimate[1]
        assert value == pytest.approx(np.sqrt(yy / xx), rel=1e-4)
        assert xy != 0


def rotated(x, position, rotary):
    half = rotary.width // 2
    angle = position * rotary.inverse_frequency.double()
    c, s = angle.cos() * rotary.scaling, angle.sin() * rotary.scaling
    first, second, rest = x[:half], x[half : rotary.width], x[rotary.width :]
    return torch.cat([first * c - second * s, second * c + first * s, rest])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm", [None, "rms", "layer"])
def test_beta_and_gamma_by_loops(causal, norm):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    rotary = Rotary(torch.tensor([1.0, 0.1]), 4, 1.2)
    gain = draw(8) if norm else None
    n = None if norm is None else Norm(gain, None, norm == "layer", 1e-6)
    weights = AttentionWeights(*(InputMap(draw(2, 8, 6)) for _ in range(3)), 0.3, None, False, rotary, n, 2)
    out = OutputProjection(draw(2, 6, 8), None)
    read, write = draw(8, 1).double(), draw(8, 1).double()
    lengths = [5, 3]
    found = path_of(weights, out, read, write, lengths, causal)
    v = read[:, 0]
    if n is not None:
        v = gain.double() * (v - v.mean() if n.centred else v)
    for h in range(2):
        q, k = (v @ w[h].double() for w in (weights.query.weight, weights.key.weight))
        logits = [
            float(rotated(q, i, rotary) @ rotated(k, j, rotary)) * 0.3
            for length in lengths
            for i in range(length)
            for j in range(i + 1 if causal else length)
        ]
        assert found.beta[h, 0] == pytest.approx(np.mean(logits), rel=1e-9)
        gamma = v @ weights.value.weight[h].double() @ out.weight[h].double() @ write[:, 0]
        assert found.gamma[h, 0] == pytest.approx(float(gamma), rel=1e-9)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_norms_are_torchs(norm):
    generator = torch.Generator().manual_seed(0)
    x, gain, bias = torch.randn(3, 5, 8, generator=generator).double()[:, :, :]
    gain, bias = gain[0], bias[0]
    if norm == "layer":
        expected = torch.nn.functional.layer_norm(x, (8,), gain, bias, 1e-5)
        made = Norm(gain, bias, True, 1e-5)
    else:
        expected = torch.nn.functional.rms_norm(x, (8,), gain, 1e-5)
        made = Norm(gain, None, False, 1e-5)
    torch.testing.assert_close(apply_norm(made, x), expected)
    assert norm_scale(None, x).tolist() == [1.0] * 5


def test_a_direction_through_the_norm_moves_logits_by_beta():
    """The bilinear form is what the host's own pattern answers to, by finite differences."""
    host = tiny.host("gpt2")
    weights = host.attention_weights(0)
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(tiny.D_MODEL, 1, generator=generator, dtype=torch.float64)
    v = v / v.norm()
    path = path_of(weights, host.output_projection(0), v, v, [4], True)
    base = torch.randn(2, tiny.D_MODEL, generator=generator, dtype=torch.float64)
    base = base - base.mean(-1, keepdim=True)

    def logit(a, b, scale):
        x = base + torch.stack([a * v[:, 0], b * v[:, 0]])
        # The norm frozen at the tokens' own scale, as the formula has it.
        n = weights.norm
        x = (x - x.mean(-1, keepdim=True)) / scale[:, None] * n.gain.double() + n.bias.double()
        q = x[0] @ weights.query.weight.double() + weights.query.bias.double()
        k = x[1] @ weights.key.weight.double() + weights.key.bias.double()
        return (q * k).sum(-1) * weights.scale

    scale = norm_scale(weights.norm, base)
    mixed = logit(1, 1, scale) - logit(1, 0, scale) - logit(0, 1, scale) + logit(0, 0, scale)
    torch.testing.assert_close(mixed, path.beta[:, 0] / scale.prod(), rtol=1e-6, atol=1e-9)
