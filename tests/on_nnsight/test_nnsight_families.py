"""Families that attach without `paths=`, against plain hooks on transformers' own modules.

The second copy of each model knows nothing of this package: hooks are put on the modules that
`families` names by hand, from the source of transformers, and the pattern is what the model itself
returns when it is asked for attentions.
"""

from pathlib import Path

import families
import pytest
import torch
from families import FAMILIES
from torch.testing import assert_close

from sa_plugin.concepts import ConceptBank
from sa_plugin.host import Site, check
from sa_plugin.scores import score

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
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


def test_the_page_has_no_other_families(case):
    text = PAGE.read_text()
    assert case[0] in FAMILIES
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
