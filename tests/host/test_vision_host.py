"""Laws of vision hosts, against a Hugging Face twin read by bare torch hooks."""

import importlib
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import transformers as hf
from PIL import Image as Pillow
from torch.testing import assert_close
from transformer_lens import patching

from sa_plugin.attribution import objective
from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData, Image, Sample
from sa_plugin.detection import calibrate
from sa_plugin.host import Host, Processor, Site, as_vit, check, check_folder, find_folder, layer_of_percent
from sa_transformer_lens import accept
from sa_transformer_lens.host import load_bridge
from sa_transformer_lens.prefix import prefix_view

POINTS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "pattern")
ALL = [Site(layer, point) for layer in range(tiny.N_LAYERS) for point in POINTS]
BLOCKS = {
    "vit": "layers",
    "vit_classifier": "vit.layers",
    "deit": "layers",
    "dinov2": "encoder.layer",
    "clip_vision": "encoder.layers",
}
# Inside a block: module whose output is attn_out, whose output is mlp_out, whose input is z.
MODULES = {
    "dinov2": ("layer_scale1", "layer_scale2", "attention.o_proj"),
    "clip_vision": ("self_attn", "mlp", "self_attn.out_proj"),
}


@pytest.fixture(scope="module", params=tiny.VISION)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def host(name):
    return tiny.vision_host(name)


@pytest.fixture(scope="module")
def vit():
    return tiny.vision_host("vit")


def read(host, batch, sites=ALL):
    kept = host.read(batch, sites, lambda found: {str(site): found[site] for site in sites})
    return {site: kept[str(site)] for site in sites}


def bare_hooks(name, pixels):
    """Every site of the unbridged, unfolded model, by torch hooks on its own modules."""
    model, found = tiny.vision_model(name), {}

    def keep_out(site):
        def hook(module, args, out):
            found[site] = (out[0] if isinstance(out, tuple) else out).clone()

        return hook

    def keep_in(site):
        def hook(module, args, kwargs):
            found[site] = (args[0] if args else kwargs["hidden_states"]).clone()

        return hook

    for layer in range(tiny.N_LAYERS):
        block = model.get_submodule(f"{BLOCKS[name]}.{layer}")
        parts = MODULES.get(name, ("attention", "mlp", "attention.o_proj"))
        attention, mlp, heads = map(block.get_submodule, parts)
        block.register_forward_pre_hook(keep_in(Site(layer, "resid_pre")), with_kwargs=True)
        block.register_forward_hook(keep_out(Site(layer, "resid_post")))
        attention.register_forward_hook(keep_out(Site(layer, "attn_out")))
        mlp.register_forward_hook(keep_out(Site(layer, "mlp_out")))
        heads.register_forward_pre_hook(keep_in(Site(layer, "z")), with_kwargs=True)
    with torch.no_grad():
        out = model(pixels, output_attentions=True)
    for layer in range(tiny.N_LAYERS):
        found[Site(layer, "pattern")] = out.attentions[layer]
        z = found[Site(layer, "z")]
        found[Site(layer, "z")] = z.unflatten(-1, (tiny.N_HEADS, tiny.D_HEAD))
    return found


def test_info(name, host):
    info = host.info
    assert isinstance(host, Host)
    assert info.model == f"tiny-{name}"
    expected = "ViTModel" if name == "dinov2" else type(tiny.vision_model(name)).__name__
    assert info.architecture == expected
    assert (info.n_layers, info.d_model, info.n_heads, info.d_head) == (3, 32, 4, 8)
    assert (info.block, info.causal, info.bos) == ("pre_norm", False, True)
    assert (info.processing, info.dtype) == ("none", "float32")
    assert host.reader.n_special == tiny.N_SPECIAL[name]
    assert repr(host).startswith(f"TransformerLensHost(tiny-{name}, ")
    assert "\n" not in repr(host)


def test_bridge_is_bare_hooks_on_hugging_face(name, host):
    (batch,) = host.batches(tiny.images())
    ours = read(host, batch)
    theirs = bare_hooks(name, batch.inputs["pixel_values"])
    for site in ALL:
        assert_close(ours[site], theirs[site], rtol=1e-4, atol=1e-5, msg=lambda text, s=site: f"{s}: {text}")


def test_every_law_of_check_holds(host):
    report = check(host)
    assert report.passed, str(report)
    assert len(report.laws) == 10
    assert "patch k is token" in str(report)
    assert "every pixel shown is in one patch's box" in str(report)


def test_parts_add_up(host):
    found = read(host, host.batches(tiny.images())[0])
    total = found[Site(0, "resid_pre")].clone()
    for layer in range(tiny.N_LAYERS):
        total += found[Site(layer, "attn_out")] + found[Site(layer, "mlp_out")]
        weight, bias = host.output_projection(layer)
        written = torch.einsum("bthe,hed->btd", found[Site(layer, "z")], weight) + bias
        assert_close(written, found[Site(layer, "attn_out")], rtol=1e-4, atol=1e-5)
    assert_close(total, found[Site(tiny.N_LAYERS - 1, "resid_post")], rtol=1e-4, atol=1e-5)


class TestBatches:
    def test_batch_is_loop(self, host):
        samples = tiny.images()
        (together,) = host.batches(samples)
        found = read(host, together)
        for k, sample in enumerate(samples):
            (alone,) = host.batches([sample])
            assert torch.equal(alone.offsets[0], together.offsets[k])
            assert torch.equal(alone.valid[0], together.valid[k])
            for site, tensor in read(host, alone).items():
                assert_close(tensor[0], found[site][k], rtol=1e-4, atol=1e-5)

    def test_every_image_once_and_in_order(self, name, host):
        samples = tiny.images(tuple((20 + k, 30) for k in range(7)))
        n_tokens = tiny.N_SPECIAL[name] + np.prod(tiny.vision_size(name)) // tiny.PATCH**2
        for size, expected in ((1, 1), (2 * n_tokens, 2), (3 * n_tokens - 1, 2), (10_000, 7)):
            batches = host.batches(samples, batch_tokens=int(size))
            assert torch.cat([b.rows for b in batches]).tolist() == list(range(7))
            assert max(len(b.rows) for b in batches) == expected
        assert host.batches([]) == []
        with pytest.raises(ValueError, match="batch_tokens is 0"):
            host.batches(samples, batch_tokens=0)

    def test_the_class_token_is_no_row(self, name, host):
        (batch,) = host.batches(tiny.images())
        n = tiny.N_SPECIAL[name]
        assert batch.class_index.tolist() == [0, 0, 0]
        assert not batch.valid[:, :n].any()
        assert batch.valid[:, n:].all()
        assert (batch.offsets[:, :n] == 0).all()

    def test_boxes_are_of_the_image_as_given(self, vit):
        (batch,) = vit.batches(tiny.images())
        for k, (height, width) in enumerate(((40, 61), (28, 28), (90, 33))):
            boxes = batch.offsets[k, 1:].reshape(4, 6, 4)
            assert boxes[0, 0].tolist() == [0, 0, height / 4, pytest.approx(width / 6)]
            assert boxes[-1, -1, 2:].tolist() == pytest.approx([height, width])
            assert boxes[1, 2].tolist() == pytest.approx([height / 4, width / 3, height / 2, width / 2])

    def test_patches_of_padding_are_no_rows(self):
        host = tiny.vision_host("vit", processor=Processor((28, 42), 7, "letter_box"))
        (batch,) = host.batches(tiny.images(((28, 20), (10, 42))))
        assert batch.valid[0, 1:].reshape(4, 6).tolist() == [[True] * 3 + [False] * 3] * 4
        assert batch.valid[1, 1:].reshape(4, 6).tolist() == [[True] * 6] * 2 + [[False] * 6] * 2
        assert (batch.offsets[~batch.valid] == 0).all()
        assert check(host).passed

    def test_pixel_values_are_the_processors(self, vit):
        samples = tiny.images()
        theirs = hf.ViTImageProcessorPil(
            size={"height": 28, "width": 42},
            resample=3,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
        (batch,) = vit.batches(samples)
        for k, sample in enumerate(samples):
            expected = theirs(images=sample.image.pixels, return_tensors="pt")["pixel_values"][0]
            assert torch.equal(batch.inputs["pixel_values"][k], expected)
            assert torch.equal(vit.forward_inputs(sample)["pixel_values"][0], expected)
        assert list(batch.inputs) == ["pixel_values"]
        assert batch.inputs.get("attention_mask") is None

    def test_labels_of_a_batch(self, vit):
        """The image's left third in the upper half is the first two columns of two rows."""
        (batch,) = vit.batches(tiny.images(((84, 84),)))
        boxes = batch.offsets[0, batch.valid[0]].numpy()
        labels = tiny.images(((84, 84),))[0].token_labels(boxes, ["corner"])
        assert labels.reshape(4, 6).tolist() == [[True] * 2 + [False] * 4] * 2 + [[False] * 6] * 2


class TestFolding:
    def test_dinov2_is_its_vit(self):
        model = tiny.vision_model("dinov2")
        pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        vit = as_vit(model, 28)
        with torch.no_grad():
            theirs = model(pixels).last_hidden_state
            assert_close(vit(pixels).last_hidden_state, theirs, rtol=1e-5, atol=1e-5)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert not vit.training

    def test_the_size_defaults_to_the_configs(self):
        model = tiny.vision_model("dinov2")
        pixels = torch.randn(1, 3, 42, 42, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            ours, theirs = as_vit(model)(pixels), model(pixels)
        assert_close(ours.last_hidden_state, theirs.last_hidden_state, rtol=1e-5, atol=1e-5)

    def test_without_folding_the_numbers_are_others(self):
        """The law can fail: lambda is far from 1."""
        model = tiny.vision_model("dinov2")
        pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = as_vit(model, 28)(pixels).last_hidden_state
            model.encoder.layer[1].layer_scale2.lambda1.fill_(1.0)
            other = as_vit(model, 28)(pixels).last_hidden_state
        assert float((expected - other).abs().max()) > 0.1

    def test_half_precision_stays(self):
        assert as_vit(tiny.vision_model("dinov2", dtype=torch.bfloat16), 28).dtype == torch.bfloat16

    def test_refusals(self):
        model = tiny.vision_model("dinov2")
        with pytest.raises(ValueError, match="image size 30 is no multiple of the patch size 7"):
            as_vit(model, 30)
        model.config.use_swiglu_ffn = True
        with pytest.raises(ValueError, match=r"SwiGLU MLP.*use small, base or large"):
            as_vit(model, 28)

    def test_a_folder_takes_the_size_of_its_processor(self, tmp_path):
        model = tiny.vision_model("dinov2")
        model.save_pretrained(tmp_path)
        crop = {"height": 28, "width": 28}
        hf.BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(tmp_path)
        host = accept(load_bridge(tmp_path))
        assert (host.reader.processor.mode, host.reader.processor.resized) == ("centre_crop", 32)
        (batch,) = host.batches(tiny.images())
        found = read(host, batch, [Site(2, "resid_post")])[Site(2, "resid_post")]
        expected = bare_hooks("dinov2", batch.inputs["pixel_values"])[Site(2, "resid_post")]
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert check_folder(tmp_path).passed


@pytest.mark.parametrize("name", ["vit", "vit_classifier", "deit"])
def test_a_folder_loads_with_its_processor(name, tmp_path):
    tiny.vision_model(name).save_pretrained(tmp_path)
    size = dict(zip(("height", "width"), tiny.IMAGE_SIZE, strict=True))
    hf.ViTImageProcessorPil(size=size).save_pretrained(tmp_path)
    host = accept(load_bridge(tmp_path))
    (batch,) = host.batches(tiny.images())
    last = Site(2, "resid_post")
    expected = bare_hooks(name, batch.inputs["pixel_values"])[last]
    assert_close(read(host, batch, [last])[last], expected, rtol=1e-4, atol=1e-5)
    assert host.info.fingerprint == accept(load_bridge(tmp_path)).info.fingerprint


class TestWritable:
    @pytest.mark.parametrize("point", ["hook_pattern", "hook_attn_scores"])
    def test_attention_of_vision_towers_is_read_only(self, host, point):
        hook = f"blocks.1.attn.{point}"
        assert not host.hook_changes_output(hook)
        with pytest.raises(ValueError, match=rf"{point}' of \w+ fires and changes nothing.*hook_z"):
            host.check_writable(hook)

    @pytest.mark.parametrize(
        "point", ["hook_resid_pre", "hook_resid_post", "attn.hook_z", "attn.hook_v", "hook_mlp_out"]
    )
    def test_the_rest_is_not(self, host, point):
        for layer in range(tiny.N_LAYERS):
            host.check_writable(f"blocks.{layer}.{point}")

    def test_bert_and_gpt2(self, tiny_bert, tiny_gpt2):
        hook = "blocks.0.attn.hook_pattern"
        with pytest.raises(ValueError, match="BertForMaskedLM fires and changes nothing"):
            tiny_bert.check_writable(hook)
        tiny_gpt2.check_writable(hook)
        assert tiny_gpt2.hook_changes_output(hook)

    def test_a_hook_that_never_fires(self, tiny_gpt2):
        neox = tiny.host("neox")
        assert not neox.hook_changes_output("blocks.0.attn.hook_rot_q")
        with pytest.raises(ValueError, match=r"hook_rot_q' of GPTNeoX\w+ never fires, so an edit"):
            neox.check_writable("blocks.0.attn.hook_rot_q")
        with pytest.raises(ValueError, match="use_attn_result is False"):
            tiny_gpt2.check_writable("blocks.0.attn.hook_result")

    def test_no_such_hook_and_token_ids(self, tiny_gpt2):
        with pytest.raises(ValueError, match=r"has no hook 'blocks\.0\.hook_nothing'"):
            tiny_gpt2.check_writable("blocks.0.hook_nothing")
        with pytest.raises(ValueError, match=r"carries torch\.int64, which cannot be nudged"):
            tiny_gpt2.check_writable("embed.hook_in")

    def test_nothing_is_left_behind(self, vit):
        pixels = vit.forward_inputs(vit.check_samples()[0])["pixel_values"]
        with torch.no_grad():
            before = vit.bridge(pixels)
            vit.hook_changes_output("blocks.1.hook_resid_pre")
            assert torch.equal(vit.bridge(pixels), before)
        assert not any(p.fwd_hooks for p in vit.bridge.hook_dict.values())


class TestRefusals:
    def test_a_text(self, vit):
        with pytest.raises(ValueError, match=r"'s0' is a text; tiny-vit reads images.*from_masks"):
            vit.batches(tiny.samples())
        with pytest.raises(ValueError, match=r"'s0' is a text"):
            vit.forward_inputs(tiny.samples()[0])
        lost = Sample("s0", "pictures/nope.PNG", "s0")
        with pytest.raises(ValueError, match=r"is a text; .*No file 'pictures/nope\.PNG' is there\. Give"):
            vit.forward_inputs(lost)

    def test_an_image_for_a_text_model(self, tiny_gpt2):
        with pytest.raises(ValueError, match=r"'i0' is an image; tiny-gpt2 reads texts"):
            tiny_gpt2.batches(tiny.images())

    def test_no_processor(self):
        with pytest.raises(ValueError, match=r"ViTModel has no image processor.*AutoImageProc"):
            accept(tiny.vision_bridge("vit"))

    def test_a_processor_of_another_size_or_patch(self):
        with pytest.raises(ValueError, match=r"inputs of \(56, 56\), tiny-vit takes \(28, 42\)"):
            accept(tiny.vision_bridge("vit"), processor=Processor((56, 56), 7))
        with pytest.raises(ValueError, match="patch is 14, the model's 7"):
            accept(tiny.vision_bridge("vit"), processor=Processor((28, 42), 14))

    def test_options_of_the_other_kind(self):
        with pytest.raises(ValueError, match="ViTModel reads images: leave the tokenizer out"):
            accept(tiny.vision_bridge("vit"), tokenizer=tiny.tokenizer("gpt2"))
        with pytest.raises(ValueError, match="GPT2LMHeadModel reads texts: leave the processor"):
            accept(tiny.bridge("gpt2"), processor=Processor((28, 42), 7))

    def test_fused_attention(self):
        bridge = tiny.vision_bridge("vit")
        bridge.original_model.set_attn_implementation("sdpa")
        with pytest.raises(ValueError, match=r"hook_pattern' fired 0 times.*'eager'"):
            accept(bridge, processor=Processor((28, 42), 7))

    def test_patches_in_another_order(self):
        """What the patch law is for: a model that reads its image transposed."""
        bridge = tiny.vision_bridge("clip_vision")
        projection = bridge.original_model.get_submodule("embeddings").patch_embedding
        projection.register_forward_hook(lambda m, args, out: out.transpose(-1, -2))
        with pytest.raises(ValueError, match="breaks a law: FAIL  patch k is token 1"):
            accept(bridge, processor=Processor((28, 28), 7))

    def test_training_mode_and_an_edited_residual(self):
        bridge = tiny.vision_bridge("vit")
        bridge.add_hook("blocks.1.hook_resid_post", lambda tensor, hook: tensor + 1)
        with pytest.raises(ValueError, match="the residual is the model's own hidden state"):
            accept(bridge, processor=Processor((28, 42), 7))
        bridge.reset_hooks()
        bridge.train()
        with pytest.raises(ValueError, match="in training mode"):
            accept(bridge, processor=Processor((28, 42), 7))

    @pytest.mark.parametrize(
        "pixels",
        [
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((0, 4, 3), np.uint8),
            np.zeros((4, 4, 3), np.float32),
        ],
    )
    def test_no_rgb_image(self, vit, pixels):
        image = object.__new__(Image)
        object.__setattr__(image, "pixels", pixels)
        sample = Sample("odd", "", "d", image=image)
        with pytest.raises(ValueError, match=r"'odd' has pixels of .* give uint8 \[height"):
            vit.batches([sample])


def test_exceptions_leave_the_model_as_it_was(host):
    (batch,) = host.batches(tiny.images())
    before = read(host, batch)

    def fail(found):
        raise KeyError("reduce")

    with pytest.raises(KeyError):
        host.read(batch, ALL, fail)
    with (
        host.bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda t, hook: fail(t))]),
        pytest.raises(KeyError),
    ):
        read(host, batch)
    wrong = replace(batch, inputs={"pixel_values": torch.zeros(1, 3, 8, 8)})
    with pytest.raises(ValueError, match="match"):
        read(host, wrong)
    assert not any(p.fwd_hooks for p in host.bridge.hook_dict.values())
    assert all(torch.equal(tensor, before[site]) for site, tensor in read(host, batch).items())


def test_half_precision():
    for name in ("vit", "clip_vision"):
        host = tiny.vision_host(name, dtype=torch.bfloat16)
        assert host.info.dtype == "bfloat16"
        (batch,) = host.batches(tiny.images())
        assert read(host, batch)[Site(1, "resid_post")].dtype == torch.bfloat16


@pytest.fixture(scope="module")
def explained(vit):
    """An objective of one image, at block 1 of 3."""
    rng = np.random.default_rng(0)
    samples = []
    for n in range(40):
        pixels = rng.integers(0, 80, (28, 42, 3), dtype=np.uint8)
        mask = np.zeros((28, 42), dtype=bool)
        if n % 2:
            row, column = rng.integers(0, 4), rng.integers(0, 6)
            mask[7 * row : 7 * row + 7, 7 * column : 7 * column + 7] = True
            pixels[mask] += 150
        positive = frozenset({"bright"} if n % 2 else ())
        image = Image(pixels, {"bright": mask})
        samples.append(Sample(f"i{n}", "", f"d{n}", positive=positive, image=image))
    splits = tuple(np.repeat(["train", "cal", "test"], [20, 12, 8]).tolist())
    data = ConceptData(("bright",), tuple(samples), splits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = fit(vit, data, "prototype", layers=[1])
        detector = calibrate(vit, data, bank, deltas=(0.9,))
    sample = data.test.samples[1]
    goal = objective(
        "superactivator", detector=detector, concept="bright", sample=sample, fallback="top_token"
    )
    return goal, vit.forward_inputs(sample)["pixel_values"], detector, sample


def test_an_image_of_the_users_is_searched_and_shown(explained, tmp_path):
    *_, detector, sample = explained
    path = tmp_path / "own.png"
    Pillow.fromarray(sample.image.pixels).save(path)
    mine = detector.find(sample)
    for own in (path, sample.image.pixels, Pillow.open(path)):
        found = detector.find(own)
        assert [(one.edges, one.score) for one in found] == [(one.edges, one.score) for one in mine]
        assert detector.detect(own).margin.tolist() == detector.detect(sample).margin.tolist()
    page = found._repr_html_()
    assert page.count("<svg") == 2
    assert page.count("<image") == 1
    assert "Label:" not in page
    assert found.plot().axes
    assert "patches: " in str(found)
    assert str(detector.localise(path))


class TestPrefixView:
    def test_returns_the_residual_of_its_layer(self, vit, explained):
        goal, pixels, *_ = explained
        for layer in range(3):
            found = []
            hook = (f"blocks.{layer}.hook_resid_post", lambda t, hook, f=found: f.append(t.clone()))
            with vit.bridge.hooks(fwd_hooks=[hook]):
                vit.bridge(pixels)
            assert_close(prefix_view(vit, layer)(pixels), found[0])
        assert goal.mask.shape == (1, 25)

    def test_the_objectives_gradient_reaches_the_pixels(self, vit, explained):
        goal, pixels, *_ = explained
        view = prefix_view(vit, goal)
        x = pixels.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(goal.metric(view(x)), x)
        shift = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        step = 1e-2
        with torch.no_grad():
            up, down = (float(goal.metric(view(pixels + s * step * shift))) for s in (1, -1))
        slope = (up - down) / 2 / step
        assert float((gradient * shift).sum()) == pytest.approx(slope, rel=5e-2, abs=1e-4)
        assert float(gradient.abs().max()) > 0

    def test_a_patching_sweep_by_positions(self, vit, explained):
        pandas = importlib.import_module("pandas")
        goal, pixels, *_ = explained
        view = prefix_view(vit, goal)
        broken = pixels.flip(-1)
        _, cache = view.run_with_cache(pixels)
        index = pandas.DataFrame([(k, p) for k in range(2) for p in (0, 3, 20)], columns=["layer", "pos"])
        swept = patching.generic_activation_patch(
            view, broken, cache, goal.metric, patching.layer_pos_patch_setter, "resid_pre", index_df=index
        )
        for value, (layer, position) in zip(swept, index.to_numpy(), strict=True):

            def patch(t, hook, layer=layer, position=position):
                out = t.clone()
                out[:, position] = cache[f"blocks.{layer}.hook_resid_pre"][:, position]
                return out

            with torch.no_grad():
                name = f"blocks.{layer}.hook_resid_pre"
                expected = goal.metric(view.run_with_hooks(broken, fwd_hooks=[(name, patch)]))
            assert_close(value, expected)

    def test_pixels_are_the_first_argument(self, vit):
        with pytest.raises(ValueError, match="pixel_values is the input itself"):
            prefix_view(vit, 1, pixel_values=torch.zeros(1, 3, 28, 42))


@pytest.mark.parametrize("n_layers", [1, 2, 12, 24, 26, 40])
def test_percent_through_the_model(n_layers):
    for percent in (0.5, 1, 3, 19, 34, 50, 66, 81, 97, 100):
        # Counted: the last block of which the whole lies before the percentage, the first at least.
        whole = [b for b in range(n_layers) if (b + 1) * 100 <= percent * n_layers]
        assert layer_of_percent(n_layers, percent) == (whole[-1] if whole else 0)
    for wrong in (0, -3, 101):
        with pytest.raises(ValueError, match=f"percent is {wrong}: give a number above 0"):
            layer_of_percent(n_layers, wrong)


def test_the_papers_grid_of_clip():
    assert [layer_of_percent(24, p) for p in (4, 25, 46, 67, 88, 100)] == [0, 5, 10, 15, 20, 23]


@pytest.mark.real
class TestReal:
    @pytest.fixture(scope="class")
    @classmethod
    def host(cls):
        return accept(load_bridge("vit"))

    def test_every_law_holds(self, host):
        report = check(host)
        assert report.passed, str(report)

    def test_reads_the_models_own_hidden_states(self, host):
        model = hf.ViTModel.from_pretrained(find_folder("vit"), add_pooling_layer=False)
        (batch,) = host.batches(tiny.images(((224, 224), (180, 300))))
        sites = [Site(layer, "resid_pre") for layer in (0, 5, 11)]
        found = read(host, batch, sites)
        with torch.no_grad():
            states = model(batch.inputs["pixel_values"], output_hidden_states=True).hidden_states
        for site in sites:
            assert_close(found[site], states[site.layer], rtol=1e-3, atol=1e-3)
        assert batch.valid.sum(1).tolist() == [256, 256]

    def test_pattern_is_read_only(self, host):
        with pytest.raises(ValueError, match="fires and changes nothing"):
            host.check_writable("blocks.6.attn.hook_pattern")
        host.check_writable("blocks.6.attn.hook_z")
