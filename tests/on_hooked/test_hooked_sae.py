"""SAELens on a HookedSAETransformer: its SAEs as banks, and what is read where one is spliced in."""

import hooked_cases
import pytest
import tiny
import torch
from both_hosts import batch_on, read_one
from hooked_cases import needs_hooked

from sa_plugin.concepts import sae_bank
from sa_plugin.host import Site, check
from sa_plugin.scores import score
from sa_transformer_lens import accept

pytestmark = [needs_hooked, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]
saelens = pytest.importorskip("sae_lens", reason="SAELens is not installed here")
HOOK = "blocks.1.hook_resid_post"
KINDS = ("Standard", "TopK", "JumpReLU")


def made(kind, hook=HOOK, d_in=tiny.D_MODEL):
    from sae_lens.saes.sae import SAEMetadata

    more = {"k": 8} if kind == "TopK" else {}
    cfg = getattr(saelens, f"{kind}SAEConfig")(
        d_in=d_in, d_sae=48, metadata=SAEMetadata(hook_name=hook), **more
    )
    torch.manual_seed(0)
    sae = getattr(saelens, f"{kind}SAE")(cfg)
    with torch.no_grad():
        for name, one in sae.named_parameters():
            one.copy_(torch.randn_like(one) * (0.01 if name == "threshold" else 0.3))
    return sae


def model():
    return hooked_cases.hooked_model("llama", cls=saelens.HookedSAETransformer)


def test_it_is_a_host_as_it_is():
    host, plain = accept(model()), hooked_cases.hosts("llama")[0]
    assert host.info.fingerprint == plain.info.fingerprint
    assert check(host, list(tiny.TEXTS[:2])).passed


@pytest.mark.parametrize("kind", KINDS)
def test_saved_saes_are_banks_and_their_scores_the_latents(kind, tmp_path):
    from animal_data import animal_texts

    sae = made(kind)
    sae.save_model(tmp_path)
    sae = saelens.SAE.load_from_disk(str(tmp_path))
    net = model()
    host, data = accept(net, progress=False), animal_texts()
    bank = sae_bank(host, data, {1: sae}, pruning="none")
    table = score(host, data, bank)
    one = table.tokens.samples[0]
    ids = host.forward_inputs(one)["input_ids"]
    with torch.no_grad():
        _, cache = net.run_with_cache_with_saes(ids, saes=[sae])
    latents = cache[f"{HOOK}.hook_sae_acts_post"][0]
    rows = table.tokens.sample_of == 0
    kept = [int(str(name).rpartition(" ")[2]) for name in bank.units]
    own = latents[table.tokens.position[rows]][:, kept]
    assert torch.allclose(torch.as_tensor(table.scores[rows, 0]), own, atol=2e-3 * float(own.abs().max()))


def test_behind_a_spliced_sae_flows_its_reconstruction_which_is_read():
    net, sae, at_1 = model(), made("TopK"), Site(1, "resid_post")
    plain = accept(net)
    batch = batch_on(plain, "llama")
    before = {site: read_one(plain, batch, site) for site in (Site(0, "resid_post"), at_1)}
    net.add_sae(sae, use_error_term=False)
    with pytest.raises(ValueError, match=r"had no SAE in the way .* an SAE at blocks\.1.*Attach it again"):
        plain.read(batch, [at_1], lambda found: {})
    host = accept(net.eval())
    assert host.info.processing == f"SAE at {HOOK}"
    assert host.hook_name(at_1) == f"{HOOK}.hook_sae_output"
    ids, mask = (batch.inputs[name] for name in ("input_ids", "attention_mask"))
    with torch.no_grad():
        _, cache = net.run_with_cache(ids, attention_mask=mask)
    seen = read_one(host, batch, at_1)
    assert torch.equal(seen, cache[f"{HOOK}.hook_sae_output"])
    assert torch.equal(seen, read_one(host, batch, Site(2, "resid_pre")))
    assert (seen - before[at_1]).abs().max() > 0.1
    assert torch.equal(read_one(host, batch, Site(0, "resid_post")), before[Site(0, "resid_post")])
    host.norms(0)
    with pytest.raises(ValueError, match=r"an SAE stands at .*is no sum of components: .*reset_saes"):
        host.norms(1)


def test_an_sae_with_its_error_term_changes_nothing():
    net = model()
    plain = accept(net)
    batch = batch_on(plain, "llama")
    before = read_one(plain, batch, Site(2, "resid_post"))
    net.add_sae(made("Standard"), use_error_term=True)
    host = accept(net.eval())
    assert host.info == plain.info
    assert torch.allclose(read_one(host, batch, Site(2, "resid_post")), before, atol=1e-4)
