"""What attaching a bridge accepts, refuses and reports; tokens and offsets; `check`."""

import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import hooked_cases
import numpy as np
import pytest
import tiny
import torch
from fake_host import FakeHost

from sa_plugin.data import Sample, Span
from sa_plugin.host import TEXTS, Host, Law, Site, attach, check, check_folder, relative_difference
from sa_plugin.host import protocol as hosting
from sa_plugin.host import texts as tokenise
from sa_plugin.host import tokens as encoding
from sa_plugin.host import weights as described
from sa_transformer_lens import accept, load_hooked
from sa_transformer_lens.host import TransformerLensHost, load_bridge, own_tokenizer
from sa_transformer_lens.places import BridgePlaces


@pytest.fixture
def registered(monkeypatch):
    """The entry point, as an installed wheel brings it."""
    point = EntryPoint("transformer_lens", "sa_transformer_lens:accept", hosting.ADAPTERS)
    monkeypatch.setattr(hosting, "entry_points", lambda group: [point])


def test_info(architecture, tiny_host):
    info = tiny_host.info
    assert isinstance(tiny_host, Host)
    assert (info.host, info.model) == ("transformer_lens", f"tiny-{architecture}")
    assert info.architecture == type(tiny.hf_model(architecture)).__name__
    assert (info.n_layers, info.d_model, info.n_heads, info.d_head) == (3, 32, 4, 8)
    assert info.block == tiny.BLOCK[architecture]
    assert info.causal == (architecture != "bert")
    assert info.bos == (architecture in tiny.ADDS_SPECIAL_FIRST)
    assert (info.processing, info.dtype) == ("none", "float32")
    assert info.model in repr(tiny_host)
    assert "\n" not in repr(tiny_host)


def test_attach_finds_the_adapter(registered, tiny_bridge):
    host = attach(tiny_bridge, batch_tokens=64)
    assert isinstance(host, TransformerLensHost)
    assert host.batch_tokens == 64
    assert attach(host) is host


def test_hook_names(architecture, tiny_host):
    assert tiny_host.hook_name(Site(2, "resid_post")) == "blocks.2.hook_resid_post"
    assert tiny_host.hook_name(Site(0, "z")) == "blocks.0.attn.hook_z"
    attention = "attn.o.hook_out" if architecture == "bert" else "hook_attn_out"
    assert tiny_host.hook_name(Site(1, "attn_out")) == f"blocks.1.{attention}"
    with pytest.raises(ValueError, match=r"layer 7 does not exist.*blocks 0 to 2; the nearest is 2"):
        tiny_host.hook_name(Site(7, "z"))
    with pytest.raises(ValueError, match="point is the text 'resid_mid', not 'resid_pre' or"):
        Site(0, "resid_mid")


def test_read_refuses_no_site(tiny_gpt2, tiny_samples):
    with pytest.raises(ValueError, match="sites is empty"):
        tiny_gpt2.read(tiny_gpt2.batches(tiny_samples)[0], [], lambda found: {})


def fingerprint(bridge):
    places = BridgePlaces(bridge)
    return described.fingerprint(places.kind, places.parameters())


class TestFingerprint:
    def test_same_weights_same_fingerprint(self, architecture, tiny_host):
        assert fingerprint(tiny.bridge(architecture)) == tiny_host.info.fingerprint

    def test_other_weights_other_fingerprint(self, architecture, tiny_host):
        assert fingerprint(tiny.bridge(architecture, seed=1)) != tiny_host.info.fingerprint

    def test_one_changed_weight(self, tiny_gpt2):
        bridge = tiny.bridge("gpt2")
        with torch.no_grad():
            bridge.blocks[1].mlp.out.weight.view(-1)[0] += 1e-3
        assert fingerprint(bridge) != tiny_gpt2.info.fingerprint

    def test_an_untrained_head_does_not_count(self, tiny_bert):
        bridge = tiny.bridge("bert")
        with torch.no_grad():
            bridge.original_model.cls.predictions.transform.dense.weight += 1
        assert fingerprint(bridge) == tiny_bert.info.fingerprint

    def test_a_norm_that_attention_holds_too_keeps_its_name(self):
        bridge = tiny.bridge("llama")
        before = fingerprint(bridge)
        for block in bridge.original_model.model.layers:
            # As TransformerLens 3.6 has it: attention's modules come before the block's norm.
            block.self_attn._ln1_module = block.input_layernorm
        assert fingerprint(bridge) == before

    def test_the_embedding_counts_although_it_is_tied(self, tiny_gpt2):
        bridge = tiny.bridge("gpt2")
        with torch.no_grad():
            bridge.embed.weight += 1
        assert fingerprint(bridge) != tiny_gpt2.info.fingerprint


def test_compatibility_mode_is_recorded(architecture, tiny_host):
    bridge = tiny.bridge(architecture)
    bridge.enable_compatibility_mode(disable_warnings=True)
    info = accept(bridge).info
    assert info.processing == "compatibility"
    assert info.fingerprint != tiny_host.info.fingerprint
    same = tiny.bridge(architecture)
    same.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert accept(same).info == tiny_host.info


class TestRefusals:
    def test_others_are_declined(self):
        for other in ("a string", torch.nn.Linear(2, 2), None):
            assert accept(other) is None
            assert accept(other, an_option_of_another_adapter=1) is None

    @pytest.mark.parametrize("name", ["HookedEncoderDecoder", "HookedAudioEncoder"])
    def test_a_class_of_two_stacks_or_of_sound(self, name):
        old = type(name, (torch.nn.Module,), {"__module__": "transformer_lens"})
        for model in (old(), type("Mine", (old,), {})()):
            with pytest.raises(TypeError, match=rf"a {name} is no single stack .*boot_transformers"):
                accept(model)

    @pytest.mark.skipif(hooked_cases.HAS, reason="this release has it")
    def test_a_folder_as_a_class_that_this_release_has_not(self):
        with pytest.raises(TypeError, match=r"TransformerLens 4 has no HookedTransformer.*load_bridge"):
            load_hooked("anywhere")

    def test_a_remote_bridge(self):
        from transformer_lens.model_bridge.remote_bridge import RemoteBridge

        with pytest.raises(TypeError, match=r"RemoteBridge has no local weights.*boot_transformers"):
            accept(object.__new__(RemoteBridge))

    def test_an_old_release(self, monkeypatch):
        monkeypatch.setattr("importlib.metadata.version", lambda name: "3.5.1")
        with pytest.raises(TypeError, match=r"transformer-lens 3\.5\.1 is too old.*training mode.*>=3\.6"):
            accept(tiny.bridge("gpt2"))

    def test_training_mode(self):
        bridge = tiny.bridge("gpt2")
        bridge.blocks[1].train()
        with pytest.raises(ValueError, match=r"in training mode: call model\.eval\(\)"):
            accept(bridge)

    def test_training_mode_after_attaching(self):
        host = tiny.host("gpt2")
        (batch,) = host.batches(tiny.samples())
        host.bridge.train()
        with pytest.raises(ValueError, match="in training mode"):
            host.read(batch, [Site(0, "resid_post")], dict)

    def test_an_unknown_option(self):
        with pytest.raises(TypeError, match="paddin_side"):
            accept(tiny.bridge("gpt2"), paddin_side="left")
        with pytest.raises(ValueError, match="padding_side 'top' is unknown"):
            accept(tiny.bridge("gpt2"), padding_side="top")

    def test_no_tokenizer(self):
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        model = tiny.hf_model("gpt2")
        bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config)
        with pytest.raises(ValueError, match=r"has no tokenizer.*attach\(bridge, tokenizer="):
            accept(bridge)
        assert not accept(bridge, tokenizer=tiny.tokenizer("gpt2")).info.bos

    def test_a_tokenizer_without_offsets(self):
        slow = SimpleNamespace(is_fast=False)
        with pytest.raises(ValueError, match=r"no character offsets.*use a fast tokenizer"):
            accept(tiny.bridge("gpt2"), tokenizer=slow)

    def test_fused_attention_has_no_pattern(self):
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        model = tiny.hf_model("bert")
        model.set_attn_implementation("sdpa")
        bridge = build_bridge_from_module(
            model, "BertForMaskedLM", hf_config=model.config, tokenizer=tiny.tokenizer("bert")
        )
        with pytest.raises(ValueError, match=r"hook_pattern' fired 0 times.*implementation\('eager'"):
            accept(bridge)
        bridge.original_model.set_attn_implementation("eager")
        assert accept(bridge).info.block == "post_ln"

    def test_a_hook_that_fires_twice(self):
        host = tiny.host("gpt2")
        block = host.bridge.blocks[1]
        again = block.mlp.register_forward_hook(lambda m, a, out: block.mlp.hook_out(out))
        (batch,) = host.batches(tiny.samples())
        with pytest.raises(RuntimeError, match=r"'blocks\.1\.hook_mlp_out' fired 2 times.*expected"):
            host.read(batch, [Site(1, "mlp_out")], dict)
        with pytest.raises(ValueError, match="GPT2LMHeadModel cannot be attached: hook"):
            accept(host.bridge)
        again.remove()
        assert accept(host.bridge).info == host.info

    def test_an_edited_residual(self):
        bridge = tiny.bridge("gpt2")
        bridge.add_hook("blocks.1.hook_resid_post", lambda tensor, hook: tensor + 1)
        with pytest.raises(
            ValueError, match="breaks a law: FAIL  the residual is the model's own hidden state"
        ):
            accept(bridge)

    def test_blocks_that_add_up_in_no_known_way(self):
        bridge = tiny.bridge("gpt2")
        bridge.blocks[2].original_component.register_forward_hook(lambda m, a, out: out * 2)
        with pytest.raises(ValueError, match=r"add up in no known way.*pre_norm by 5.*post_ln by"):
            accept(bridge)

    def test_no_attention(self):
        import transformers as hf
        from transformer_lens.model_bridge import TransformerBridge

        config = hf.MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=1, state_size=2)
        config.architectures = ["MambaForCausalLM"]
        bridge = TransformerBridge.boot_transformers(
            "mamba",
            hf_model=hf.MambaForCausalLM(config).eval(),
            tokenizer=tiny.tokenizer("gpt2"),
            device="cpu",
        )
        with pytest.raises(ValueError, match=r"has no hook 'blocks\.0\.hook_attn_out'; hooks there"):
            accept(bridge)

    def test_a_text_longer_than_the_context(self, tiny_host):
        short, long = Sample("a", "the cat", "a"), Sample("long one", "the cat sat " * 40, "b")
        with pytest.raises(ValueError, match=r"'long one' has \d+ tokens; tiny-\w+ takes 64.*split"):
            tiny_host.batches([short, long])

    @pytest.mark.parametrize("text", ["", "  "])
    def test_a_text_without_a_token(self, tiny_bert, text):
        with pytest.raises(ValueError, match=r"sample 'blank' has no token.*leave it out"):
            tiny_bert.batches([Sample("blank", text, "d")])

    def test_a_batch_of_no_tokens(self, tiny_gpt2, tiny_samples):
        with pytest.raises(ValueError, match="batch_tokens is -1"):
            tiny_gpt2.batches(tiny_samples, batch_tokens=-1)


class TestTokens:
    def test_the_tokenizers_own_rule_decides_on_bos(self, architecture, tiny_host):
        own = tiny.tokenizer(architecture)
        for sample in tiny.samples():
            inputs = tiny_host.forward_inputs(sample)
            assert inputs["input_ids"][0].tolist() == own(sample.text).input_ids
            assert inputs["attention_mask"].all()

    def test_transformer_lens_bos_on_request(self):
        bridge = tiny.bridge("gpt2")
        host = accept(bridge, tokenizer=bridge.tokenizer)
        assert host.info.bos
        (batch,) = host.batches(tiny.samples()[:1])
        assert not batch.valid[0, 0]
        assert batch.valid[0, 1:].all()
        (asked,) = accept(bridge, bos=True).batches(tiny.samples()[:1])
        assert torch.equal(asked.inputs["input_ids"], batch.inputs["input_ids"])

    def test_a_lost_tokenizer_folder(self, tmp_path):
        tokenizer = tiny.bridge("gpt2").tokenizer
        tokenizer.name_or_path = str(tmp_path / "gone")
        with pytest.raises(ValueError, match=r"cannot be read again.*attach\(bridge, bos=True\)"):
            own_tokenizer(tokenizer)
        # Where a BOS is asked for, or none, no rule has to be known.
        assert own_tokenizer(tokenizer, bos=True) is tokenizer

    def test_another_tokenizer_in_the_folder(self):
        tokenizer = tiny.bridge("gpt2").tokenizer
        tokenizer.name_or_path = str(tiny.tokenizer_folder("bert"))
        with pytest.raises(ValueError, match="differ beyond the BOS token"):
            own_tokenizer(tokenizer)

    def test_batches_hold_every_sample_once_and_keep_their_size(self, tiny_host):
        texts = tuple("the cat " * n for n in (1, 9, 2, 8, 3, 7, 4, 6, 5, 20))
        many = tiny.samples(texts)
        for size in (1, 12, 40, 10_000):
            batches = tiny_host.batches(many, batch_tokens=size)
            rows = torch.cat([batch.rows for batch in batches]).tolist()
            assert sorted(rows) == list(range(len(many)))
            for batch in batches:
                assert batch.valid.numel() <= size or len(batch.rows) == 1
        assert tiny_host.batches([]) == []

    def test_offsets_show_the_words(self, tiny_host, tiny_samples):
        (batch,) = tiny_host.batches(tiny_samples)
        for k, row in enumerate(batch.rows.tolist()):
            text = tiny_samples[row].text
            pieces = [text[a:b] for a, b in batch.offsets[k, batch.valid[k]].tolist()]
            for piece in pieces:
                assert piece
                assert piece == piece.strip() or not piece.strip()
            covered = {i for a, b in batch.offsets[k, batch.valid[k]].tolist() for i in range(a, b)}
            assert all(i in covered or c.isspace() for i, c in enumerate(text))

    def test_trim_is_strip(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            text = "".join(rng.choice(list("ab \n"), size=rng.integers(1, 12)))
            ends = np.sort(rng.integers(0, len(text) + 1, size=(5, 2)), axis=1)
            for (a, b), (start, end) in zip(ends, encoding.trim(text, ends), strict=True):
                whole = text[a:b]
                if whole.strip():
                    assert text[start:end] == whole.strip()
                    assert a <= start
                    assert end <= b
                else:
                    assert (start, end) == (a, b)
        assert encoding.trim("", np.zeros((1, 2), dtype=np.int64)).tolist() == [[0, 0]]

    def test_white_space_before_a_word_carries_no_label(self, tiny_gpt2):
        text = "Two  spaces sat"
        sample = Sample("s", text, "d", (Span(0, 3, "before"), Span(5, 11, "word"), Span(3, 5, "gap")))
        (batch,) = tiny_gpt2.batches([sample])
        offsets = batch.offsets[0, batch.valid[0]].numpy()
        labels = sample.token_labels(offsets, ["before", "word", "gap"])
        assert (labels.sum(1) <= 1).all()
        for (start, end), row in zip(offsets.tolist(), labels, strict=True):
            assert row.tolist() == [end <= 3, 5 <= start < 11, text[start:end].isspace()]


class TestCheck:
    def test_passes_on_every_architecture(self, tiny_host):
        report = check(tiny_host, tiny.TEXTS)
        assert report.passed, str(report)
        assert len(report.laws) == 10
        assert str(report).count("\n") == 10
        assert "all passed" in repr(report)
        assert "batch = loop" in report._repr_html_()
        assert report.table().query("measure == 'difference'")["value"].max() < 1e-4
        measured = [law for law in report.laws if law.difference is not None]
        assert len(report.plot().axes[0].get_yticklabels()) == len(measured)

    def test_knows_a_host_by_its_protocol_alone(self):
        report = check(FakeHost())
        assert report.passed, str(report)
        assert len(report.laws) == 5

    def test_fails_where_a_point_is_another(self, tiny_gpt2):
        class Swapped(type(tiny_gpt2)):
            def read(self, batch, sites, reduce):
                own = {s: Site(s.layer, "mlp_out") if s.point == "attn_out" else s for s in sites}
                found = list(dict.fromkeys(own.values()))
                return super().read(batch, found, lambda r: reduce({s: r[own[s]] for s in sites}))

        host = tiny_gpt2
        report = check(Swapped(host.passes, host.info, host.reader), tiny.TEXTS)
        failed = {law.name for law in report.laws if not law.passed}
        assert failed == {
            "embedding + attention + MLPs = last residual",
            "sum of heads' z @ W_O + b_O = attention output",
        }
        assert "FAILED: embedding" in repr(report)

    def test_fails_where_the_mask_is_lost(self, tiny_bert, monkeypatch):
        make = tokenise.make_batches

        def without_mask(*args, **kwargs):
            batches = make(*args, **kwargs)
            for batch in batches:
                batch.inputs["attention_mask"].fill_(1)
            return batches

        monkeypatch.setattr(tokenise, "make_batches", without_mask)
        failed = [law.name for law in check(tiny_bert, tiny.TEXTS).laws if not law.passed]
        assert len(failed) == 2
        assert "padding changes nothing" in failed[0]
        assert "padding on the left and the right" in failed[1]

    def test_fails_where_offsets_miss_characters(self):
        host = FakeHost()
        host.batches = lambda samples, **options: [
            replace(batch, offsets=batch.offsets - (batch.offsets > 1).long())
            for batch in FakeHost.batches(host, samples, **options)
        ]
        (law, *_) = check(host).laws
        assert not law.passed

    def test_reports_a_model_that_cannot_be_attached(self, registered):
        bridge = tiny.bridge("gpt2")
        bridge.train()
        report = check(bridge)
        assert not report.passed
        assert "training mode" in str(report)

    def test_needs_two_texts(self, tiny_gpt2):
        with pytest.raises(ValueError, match="1 text given"):
            check(tiny_gpt2, ["one"])

    @pytest.mark.parametrize("architecture", ["llama", "bert"])
    def test_folder(self, registered, tmp_path, architecture):
        tiny.hf_model(architecture).save_pretrained(tmp_path)
        tiny.tokenizer(architecture).save_pretrained(tmp_path)
        report = check_folder(tmp_path, tiny.TEXTS)
        assert report.passed, str(report)
        assert accept(load_bridge(tmp_path)).info.model == tmp_path.name

    def test_folder_of_a_bare_encoder(self, tmp_path):
        tiny.hf_model("bert").bert.save_pretrained(tmp_path)
        tiny.tokenizer("bert").save_pretrained(tmp_path)
        first, second = (accept(load_bridge(tmp_path)).info for _ in range(2))
        assert first == second

    def test_folder_in_half_precision(self, tmp_path):
        tiny.hf_model("llama").save_pretrained(tmp_path)
        tiny.tokenizer("llama").save_pretrained(tmp_path)
        assert accept(load_bridge(tmp_path, dtype=torch.bfloat16)).info.dtype == "bfloat16"

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
            check_folder(tmp_path)

    @pytest.mark.real
    @pytest.mark.parametrize(
        ("name", "block", "causal", "bos"),
        [("smollm2", "pre_norm", True, False), ("minilm", "post_ln", False, True)],
    )
    def test_real_model(self, registered, name, block, causal, bos):
        bridge = load_bridge(name)
        info = attach(bridge).info
        assert (info.model, info.block, info.causal, info.bos) == (name, block, causal, bos)
        report = check(bridge, TEXTS[:2])
        assert report.passed, str(report)

    def test_difference_is_of_each_token(self):
        big, small = torch.full((1, 4), 1e6), torch.ones(1, 4)
        assert relative_difference(torch.cat([big, small * 2]), torch.cat([big, small])) == 0.5
        assert relative_difference(small, torch.full((1, 4), torch.nan)) == float("inf")
        assert not Law("x", float("nan"), 1.0).passed


def test_checking_imports_no_adapter():
    assert not any("transformer_lens" in name for name in vars(sys.modules[check.__module__]))


@pytest.mark.parametrize(
    ("site", "blocks_run"),
    [(Site(0, "z"), [0]), (Site(1, "resid_pre"), [0]), (Site(2, "resid_post"), [0, 1, 2])],
)
def test_a_read_stops_after_the_deepest_block(tiny_host, tiny_samples, site, blocks_run):
    ran = []
    hooks = [
        (f"blocks.{layer}.mlp.out.hook_out", lambda tensor, hook, k=layer: ran.append(k))
        for layer in range(tiny.N_LAYERS)
    ]
    hooks.append(("unembed.hook_out", lambda tensor, hook: ran.append("logits")))
    with tiny_host.bridge.hooks(fwd_hooks=hooks):
        tiny_host.read(tiny_host.batches(tiny_samples)[0], [site], lambda found: {})
    assert ran == blocks_run
