"""Snippets of the docs that want TransformerLens 3 run here, on a random model of SmolLM2's depth."""

import contextlib
import io

import docs_setup
import pytest
import tiny
from hooked_cases import hooked_model, needs_hooked

from sa_transformer_lens import load_hooked

pytestmark = [needs_hooked, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]
PAGES = [("sae.md", "sae_lens"), ("howto_transformer_lens.md", "transformer_lens")]
SMALLER = {'supersense")': 'supersense").subset(90)', "1_200_000": "4_096", "steps=600": "steps=2"}
SMALLER |= {"d_sae=2048": "d_sae=64", "k=48": "k=8"}


def snippets(name):
    found = docs_setup.blocks(docs_setup.ROOT / "docs" / name)
    return [code for code, reason in found if docs_setup.OF_TRANSFORMERLENS_3 in (reason or "")]


@pytest.mark.parametrize(("name", "needs"), PAGES)
def test_they_run(name, needs, tmp_path, monkeypatch):
    import transformer_lens

    pytest.importorskip(needs, reason="SAELens is not installed here")
    folder = tiny.scratch_folder() / "deep"
    for part in docs_setup.deep_model():
        part.save_pretrained(folder)

    def deep(name, **options):
        return load_hooked(folder, **options)

    def from_pretrained(name):
        return hooked_model("gpt2")

    monkeypatch.setattr("sa_transformer_lens.load_hooked", deep)
    monkeypatch.setattr(transformer_lens.HookedTransformer, "from_pretrained_no_processing", from_pretrained)
    monkeypatch.chdir(tmp_path)
    codes = snippets(name)
    assert codes
    names = docs_setup.names_for(codes) | {"__name__": "docs"}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for code in codes:
            for whole, part in SMALLER.items():
                code = code.replace(whole, part)
            exec(code, names)
    if name == "sae.md":
        assert "SAE at blocks.14.hook_resid_post" in said.getvalue()
        assert said.getvalue().count("SuperActivators") >= 3
