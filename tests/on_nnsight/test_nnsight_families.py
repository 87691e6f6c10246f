"""Families that attach without `paths=`, against plain hooks on transformers' own modules.

The second copy of each model knows nothing of this package: hooks are put on the modules that
`families` names by hand, from the source of transformers, and the pattern is what the model itself
returns when it is asked for attentions.
"""

import ast
import warnings
from pathlib import Path

import families
import pytest
import tiny
import torch
from families import FAMILIES
from nnsight import NNsight
from torch.testing import assert_close

import sa_nnsight
from sa_nnsight import accept, beside
from sa_nnsight.places import locate
from sa_nnsight.remote import fingerprint_of
from sa_plugin.concepts import ConceptBank
from sa_plugin.data import Sample
from sa_plugin.heads import Reference, make_edits
from sa_plugin.host import Site, check, fingerprint
from sa_plugin.scores import score

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
START, END = "<!-- families, checked by tests/on_nnsight/test_nnsight_families.py -->\n\n", "\n<!-- end -->"
ROWS: dict[str, str] = {}
SHORT = ("The cat sat on the mat.", "short")
# What the maps of queries, keys and values are refused for: none of it keeps a host from reading.
REASONS = {
    "its attention is none of the known ones": "no: another kind",
    "all its heads together": "no: norm over all heads",
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    return request.param, families.nnsight_host(request.param)


def hooked(name, host, inputs):
    """What plain hooks see in every block, and the patterns that the model returns."""
    model, family = families.model(name), FAMILIES[name]
    blocks, _, projection, *terms = family.where
    attn_out, mlp_out = terms or (projection, "mlp")
    seen = {}

    def first(value):
        return value[0] if isinstance(value, tuple) else value

    rows = len(next(iter(inputs.values())))
    for k, block in enumerate(model.get_submodule(blocks)):

        def before(_, args, kwargs, at):
            value = (*args, *kwargs.values())[0]
            seen[at] = value.clone()

        def after(_, __, out, at):
            value = first(out)
            seen[at] = value.unflatten(0, (rows, -1)).clone() if value.ndim == 2 else value.clone()

        def on(path, point, hook, k=k, block=block, **kind):
            module = block.get_submodule(path) if path else block
            add = module.register_forward_hook if hook is after else module.register_forward_pre_hook
            at = (k, point)
            add(
                (lambda m, a, o: hook(m, a, o, at))
                if hook is after
                else (lambda m, a, kw: hook(m, a, kw, at)),
                **kind,
            )

        on("", "resid_pre", before, with_kwargs=True)
        on("", "resid_post", after)
        on(projection, "z", before, with_kwargs=True)
        on(attn_out, "attn_out", after)
        on(mlp_out, "mlp_out", after)
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    return seen | {(k, "pattern"): one for k, one in enumerate(out.attentions)}


def test_every_part_is_what_plain_hooks_see(case):
    name, host = case
    (batch,) = host.batches(families.samples(name))
    sites = [Site(k, point) for k in range(host.info.n_layers) for point in host.places.parts[:6]]
    assert {site.point for site in sites} == {
        "resid_pre",
        "resid_post",
        "attn_out",
        "mlp_out",
        "z",
        "pattern",
    }
    read = host.read(batch, sites, lambda found: {site: found[site] for site in sites})
    seen = hooked(name, host, host.passes.inputs(batch.inputs))
    assert len(seen) == len(sites)
    for site in sites:
        value = read[site].flatten(2) if site.point == "z" else read[site]
        assert_close(
            value, seen[tuple(site)], rtol=0, atol=0, msg=lambda text, at=site: f"{name} {at}: {text}"
        )
    # Padding and special tokens are no evidence, so that scores are compared where `valid` is.
    vector = torch.randn(families.WIDTH, generator=torch.Generator().manual_seed(0))
    bank = ConceptBank.from_vectors({("c", 1): vector}, sinks="keep")
    scores = torch.as_tensor(score(host, families.samples(name), bank).scores).flatten()
    expected = (seen[1, "resid_post"] @ vector)[batch.valid]
    assert_close(scores.sort().values, expected.sort().values, rtol=1e-4, atol=1e-4)


def test_what_is_found_is_what_the_page_says(case):
    name, host = case
    ROWS[name] = row(name, host)
    assert ROWS[name] in PAGE.read_text(), "\n".join(ROWS.values())


def test_the_page_has_no_other_families():
    text = PAGE.read_text()
    rows = text[text.index(START) + len(START) : text.index(END)].strip().splitlines()
    assert len(rows) == 2 + len(FAMILIES)


def row(name, host):
    """A line of the table: how blocks add up, which roles were found, and which laws hold."""
    roles, report = host.places.roles, check(host, None if FAMILIES[name].tokenizer is None else SHORT)
    assert report.passed, str(report)
    held = sum(law.difference is not None for law in report.laws)
    maps = f"fused, {roles['qkv_order']}" if "qkv" in roles else "apart"
    try:
        host.attention_weights(host.info.n_layers - 1)
        maps += ": yes"
    except ValueError as error:
        maps += ": " + next(said for reason, said in REASONS.items() if reason in str(error))
    found = [
        roles[role] for role in ("blocks", "attention", "o_proj", "attn_out", "attn_scale") if role in roles
    ]
    found += [roles["mlp"], *(roles[role] for role in ("norm1", "norm2") if role in roles)]
    cells = (
        *(name, host.info.architecture, host.info.block, ", ".join(f"`{path}`" for path in found)),
        *(maps, f"{held} of {len(report.laws)}"),
    )
    return f"| {' | '.join(cells)} |"


# An MLP without batch axis, one with a tuple for an output, fused maps in groups, probabilities on demand.
UNLIKE = ("OPT", "GPT-OSS", "Falcon 40B", "Bloom", "MPNet")


@pytest.mark.parametrize("name", UNLIKE)
def test_edits_and_gradients_reach_blocks_of_unlike_shapes(name):
    host, (blocks, *_, mlp_out) = families.nnsight_host(name), (*FAMILIES[name].where, "mlp")
    mlp_out = FAMILIES[name].where[4] if len(FAMILIES[name].where) > 4 else mlp_out
    (batch,) = host.batches(families.samples(name))
    last, mlp = Site(families.DEPTH - 1, "resid_post"), Site(0, "mlp_out")

    def read():
        return host.read(batch, [last], lambda found: {"x": found[last]})["x"]

    model, seen = families.model(name), []
    block = model.get_submodule(blocks)[0]
    own = block.get_submodule(mlp_out)
    own.register_forward_hook(
        lambda _, __, out: (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else out * 0
    )
    model.get_submodule(blocks)[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    before = read()
    with torch.no_grad():
        model(**host.passes.inputs(batch.inputs))
    with host.edited({mlp: torch.zeros_like}):
        edited = read()
    assert_close(edited, seen[0][0] if isinstance(seen[0], tuple) else seen[0], rtol=0, atol=0)
    with host.edited(make_edits("pattern", [(1, 0)], Reference())):
        uniform = read()
    assert not torch.allclose(uniform, before)
    assert torch.equal(read(), before)
    found = host.forward_sites(host.input_values(batch).requires_grad_(), batch, [mlp, last])
    assert_close(found[last].detach(), before)
    (gradient,) = torch.autograd.grad(found[last].square().sum(), found[mlp])
    assert gradient.shape == before.shape
    assert gradient.abs().sum() > 0
    assert not host.hook_changes_output(host.hook_name(Site(0, "pattern")))


@pytest.mark.parametrize("name", ["XLM-R", "T5, encoder", "Falcon 40B", "OPT", "Mixtral"])
def test_a_model_without_values_is_described_in_the_same_way(name):
    # Mixed experts have kernels for bfloat16 alone where there are no values.
    dtype = torch.bfloat16 if name == "Mixtral" else torch.float32
    model, empty = (families.model(name).to(dtype) for _ in range(2))
    here, there = locate(model, None), locate(empty.to("meta"), None)
    assert here.roles == there.roles
    asked = fingerprint_of(there, lambda where: beside.parameter_values(model, where))
    assert asked == fingerprint(here.kind, here.parameters())
    assert any("embed" in key or key == "shared.weight" for key in here.parameters())


@pytest.mark.parametrize("name", ["Phi-3", "GLM", "Bloom", "Falcon-RW", "OPT", "GPT-OSS"])
def test_a_bridge_of_the_same_weights_has_the_same_fingerprint(name):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    from sa_transformer_lens import accept as accept_bridge

    family, model = FAMILIES[name], families.model(name)
    tokenizer = tiny.tokenizer(family.tokenizer)
    bridge = build_bridge_from_module(
        model, family.model, hf_config=model.config, model_name="tiny", tokenizer=tokenizer
    )
    one, two = accept_bridge(bridge).info, families.nnsight_host(name).info
    assert (one.fingerprint, one.block, one.tokenizer) == (two.fingerprint, two.block, two.tokenizer)


def compiled():
    """What torch.compile gives, without the seconds that it takes to import."""
    model = torch.nn.Module()
    model._orig_mod = tiny.hf_model("gpt2")
    return model.eval()


def packed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(tiny.hf_model("gpt2"), {torch.nn.Linear})


def elsewhere():
    model = tiny.hf_model("gpt2")
    model.transformer.h[1].to("meta")
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (compiled, r"compiled \(torch\.compile\).*Attach the module that was compiled, model\._orig_mod"),
        (
            packed,
            r"'lm_head' is a torch\.ao.*packed integers.*before torch\.ao\.quantization\.quantize_dynamic",
        ),
        (
            elsewhere,
            r"weights of 'transformer\.h\.1\..*on the meta device: they are offloaded \(accelerate's cpu",
        ),
    ],
)
def test_what_a_library_put_in_the_place_of_modules_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        accept(NNsight(make()), tokenizer=tiny.tokenizer("gpt2"))


def test_offloaded_weights_are_named_on_a_bridge_too():
    from sa_transformer_lens import accept as accept_bridge

    bridge = tiny.bridge("gpt2")
    bridge.original_model.transformer.h[1].to("meta")
    with pytest.raises(ValueError, match="on the meta device: they are offloaded"):
        accept_bridge(bridge)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "Mamba",
            r"^MambaForCausalLM has no attention, and everything here reads attention.*MambaMixer inside",
        ),
        (
            "ALBERT",
            r"^AlbertModel cannot be attached: its layers share their weights \(one AlbertLayerGroup runs 2",
        ),
        ("BEiT", r"^BeitModel cannot be attached: block 'layers\.0' \(BeitLayer\) multiplies what attention"),
        ("Granite", r"^GraniteForCausalLM cannot be attached: .*\(GraniteDecoderLayer\) multiplies what"),
    ],
)
def test_a_model_that_cannot_be_attached_says_so_first(name, says):
    with pytest.raises(ValueError, match=says):
        families.nnsight_host(name)


def test_a_norm_behind_attention_is_named_in_the_advice():
    says = r"add up in no known way.*a norm behind attention is 'attn_out', one behind the MLP is 'mlp'"
    with pytest.raises(ValueError, match=says):
        families.nnsight_host("OLMo-2", paths={"attn_out": "self_attn.o_proj"})


@pytest.mark.parametrize("name", ["RoBERTa", "MPNet", "OPT", "GPT-Neo", "ModernBERT"])
def test_a_text_one_token_too_long_is_named_with_the_limit(name):
    host = families.nnsight_host(name)

    def tokens(words):
        return len(host.reader.encode([Sample("long", "cat " * words, "d")])[0].ids)

    words = next(k for k in range(200) if tokens(k) > tiny.CONTEXT)
    (batch,) = host.batches([Sample("fits", "cat " * (words - 1), "d")])
    assert batch.valid.shape[1] == tiny.CONTEXT
    host.read(batch, [Site(0, "z")], lambda found: {"z": found[Site(0, "z")]})
    with pytest.raises(ValueError, match=r"'long' has 65 tokens; .* takes 64\. Nothing is cut off"):
        host.batches([Sample("long", "cat " * words, "d")])


def test_no_trace_is_given_a_text(monkeypatch):
    """A client may put a BOS before a text, or have another tokenizer than the host."""
    given, model = [], tiny.nnsight_model("gpt2")
    trace = type(model).trace
    monkeypatch.setattr(
        type(model), "trace", lambda self, *a, **kw: given.append((a, kw)) or trace(self, *a, **kw)
    )
    for file in Path(sa_nnsight.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (
                "trace",
                "invoke",
                "generate",
            ):
                assert not node.args, (file, node.lineno)
                assert [word.arg for word in node.keywords] == [None], (file, node.lineno)
    host = accept(model)
    (batch,) = host.batches(tiny.samples())
    host.forward_from(host.input_values(batch), batch, Site(0, "resid_post"))
    host.check_writable(host.hook_name(Site(0, "z")))
    assert len(given) > 5
    for args, named in given:
        assert not args
        assert all(isinstance(value, torch.Tensor) for value in named.values())
