"""What transformer_lens.patching makes of an objective: intervals, p-values, metrics of hooks."""

import attribution_cases as cases
import numpy as np
import plug_cases
import pytest
import tiny
import torch
from plug_cases import Bare, pair, view_of
from scipy import stats
from transformer_lens import patching

from sa_plugin.attribution import objective, together
from sa_transformer_lens.prefix import prefix_view


def test_intervals_and_p_values_over_samples():
    """`reduce="none"` over several samples, each with its own target and length."""
    host, data, detector = cases.case("gpt2")
    samples = [s for s in data.samples if len(detector.find(s)) > 0][:7]
    made = [objective("superactivator", detector=detector, concept="animal", sample=s) for s in samples]
    rows = [host.forward_inputs(s)["input_ids"][0] for s in samples]
    clean = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = (torch.arange(clean.shape[1])[None] < torch.tensor([len(r) for r in rows])[:, None]).long()
    corrupt = torch.where(mask.bool(), clean.roll(1, -1), clean)
    joint = together(made, mask)
    view = prefix_view(host, joint, attention_mask=mask)
    _, cache = view.run_with_cache(clean)
    swept = patching.get_act_patch_attn_head_out_all_pos(
        view, corrupt, cache, joint, reduce="none", baseline=True
    )
    assert swept.values.shape == (2, 4, 7)
    for k, (one, row) in enumerate(zip(made, rows, strict=True)):
        single = prefix_view(host, one)
        _, own = single.run_with_cache(row[None])
        alone = patching.get_act_patch_attn_head_out_all_pos(
            single, corrupt[k : k + 1, : len(row)], own, one.metric
        )
        torch.testing.assert_close(swept.values[..., k], alone, atol=2e-5, rtol=1e-4)
    effect = swept.effect().numpy().astype(float)
    p = swept.permutation_pvalue().numpy()
    for cell in np.ndindex(2, 4):
        exact = stats.permutation_test(
            (effect[cell],), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert p[cell] == pytest.approx(exact.pvalue, abs=1e-6)
    low, high = (x.numpy() for x in swept.bootstrap_ci(n_resamples=4000, of_effect=True))
    theirs = stats.bootstrap(
        (effect,), np.mean, axis=-1, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    spread = effect.std(-1)
    assert (np.abs(low - theirs.low) < 0.1 * spread).all()
    assert (np.abs(high - theirs.high) < 0.1 * spread).all()
    with torch.no_grad():
        at_clean = joint(view(clean))
    normalised = swept.normalized(at_clean)
    assert normalised.shape == swept.values.shape
    frame = swept.to_dataframe()
    assert len(frame) == 2 * 4 * 7
    metrics = {"tail": joint, "twice": lambda resid: 2 * joint(resid)}
    both = patching.get_act_patch_attn_out(view, corrupt, cache, metrics, reduce="mean")
    torch.testing.assert_close(both["twice"].values, 2 * both["tail"].values)


def test_together_finds_tokens_behind_padding_on_either_side():
    _, data, detector = cases.case("gpt2")
    samples = [s for s in data.test.samples if detector.find(s)][:3]
    made = [objective("global", detector=detector, concept="animal", sample=s) for s in samples]
    resids = [torch.randn(len(f.tail), tiny.D_MODEL) for f in made]
    expected = torch.cat([f(r[None]) for f, r in zip(made, resids, strict=True)])
    width = max(map(len, resids)) + 2
    for left in (False, True):
        mask = torch.zeros(3, width, dtype=torch.long)
        batch = torch.full((3, width, tiny.D_MODEL), torch.nan)
        for k, r in enumerate(resids):
            own = slice(width - len(r), width) if left else slice(0, len(r))
            mask[k, own], batch[k, own] = 1, r
        joint = together(made, mask)
        torch.testing.assert_close(joint(batch), expected)
        assert joint.metric(batch).ndim == 0
        assert torch.equal(joint.mask.sum(1), torch.stack([f.mask.sum() for f in made]))
    assert repr(together(made)).startswith("JointObjective(3 samples, 'global', blocks.1.")
    with pytest.raises(ValueError, match="give the mask of these samples"):
        together(made, mask.flip(0))
    with pytest.raises(ValueError, match="give one row for each sample, padded alike"):
        joint(batch[:, 1:])
    with pytest.raises(ValueError, match="objectives read nothing: give at least one"):
        together([])


@pytest.mark.parametrize("name", plug_cases.TEXTS)
def test_run_with_hooks_metrics_equal_plain_hooks(name):
    """The objective of what TransformerLens's own `run_with_hooks` returns."""
    view, made, _, corrupt, _ = view_of(name)
    bare = Bare(name, pair(name)[4])
    edit = lambda z: z * 0.5  # noqa: E731
    hooks = [(f"blocks.{layer}.attn.hook_z", lambda z, hook: edit(z)) for layer in (0, 1)]
    with torch.no_grad():
        found = made.metric(view.run_with_hooks(corrupt, fwd_hooks=hooks))
    expected = made.metric(bare.run(corrupt, 1, [(0, "z", edit), (1, "z", edit)])[0])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_cells_of_a_sweep_have_the_models_tokens():
    view = view_of("vit")[0]
    assert len(view.index("layer", "pos", "head")) == 2 * view.n_tokens * 4
    with pytest.raises(ValueError, match="axis 'pos' has no size here: use"):
        prefix_view(view.bridge, 1).index("layer", "pos")
