"""What the snippets of the docs use without saying where it comes from: tiny models and data.

A page's snippets run in order in one namespace. A name of `SETUP` that a page uses before it binds
it is put there first; what it needs itself comes along. A block that cannot run is fenced
"python no-run REASON"; `NOT_RUN` counts these, so that one more is a decision. Where a page loads a
real model by name, a random one of its depth stands in, and the page's data are cut (`CUT`).
"""

from __future__ import annotations

import ast
import importlib
import re
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tiny
from word_data import word_data

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```python(?: no-run(?P<reason>[^\n]*))?\n(?P<code>.*?)^```", re.S | re.M)
# Pages whose own tests run their snippets and check what comes out.
ELSEWHERE = {
    "README.md": "test_readme.py",
    "nnsight.md": "test_nnsight_docs.py",
    "models.md": "test_models_docs.py",
    "howto_circuits.md": "test_circuits_docs.py",
}
# What wants TransformerLens 3 is run in its environment, by tests/on_hooked.
OF_TRANSFORMERLENS_3 = "TransformerLens 3"
NOT_RUN: Mapping[str, int] = {
    "howto_hand_on.md": 1,
    "howto_transformer_lens.md": 1,
    "scan.md": 1,
    "sae.md": 4,
}
CUT = {"subset(240)": "subset(60)", "shapes(600)": "shapes(60)", "emoji_scenes(600)": "emoji_scenes(60)"}

Names = dict[str, Any]


def pages() -> list[Path]:
    """README and every page of the docs."""
    docs = ROOT / "docs"
    return [ROOT / "README.md", *sorted(docs.glob("*.md")), *sorted(docs.glob("findings/*.md"))]


def blocks(page: Path) -> list[tuple[str, str | None]]:
    """The python blocks of a page, and why each is not run, if it is not."""
    return [(m["code"], m["reason"]) for m in FENCE.finditer(page.read_text())]


def to_run(page: Path) -> list[str]:
    """The blocks of a page that run, with less data."""
    found = []
    for code, reason in blocks(page):
        for whole, part in CUT.items():
            code = code.replace(whole, part)
        found += [code] if reason is None else []
    return found


def unbound(codes: list[str]) -> set[str]:
    """Names that are used before, or on the line where, they are bound."""
    bound: set[str] = set()
    found: set[str] = set()
    for code in codes:
        uses, binds = first_lines(code)
        found |= {n for n, k in uses.items() if n not in bound and k <= binds.get(n, k)}
        bound |= set(binds)
    return found


def first_lines(code: str) -> tuple[dict[str, int], dict[str, int]]:
    """The first line on which each name is used, and on which it is bound."""
    uses: dict[str, int] = {}
    binds: dict[str, int] = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            lines = uses if isinstance(node.ctx, ast.Load) else binds
            lines[node.id] = min(node.lineno, lines.get(node.id, node.lineno))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            binds |= {(a.asname or a.name).partition(".")[0]: node.lineno for a in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            binds[node.name] = node.lineno
    return uses, binds


def names_for(codes: list[str]) -> Names:
    """The namespace that a page's snippets start from."""
    return {name: made(name) for name in unbound(codes) & SETUP.keys()}


@cache
def made(name: str) -> Any:
    """One thing of the table, made once a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SETUP[name]()


def make_host() -> Any:
    from sa_transformer_lens import accept

    return accept(made("bridge"))


def make_bank() -> Any:
    from sa_plugin.concepts import fit

    return fit(made("host"), made("data"), "prototype", layers=[0, 1])


def make_scores() -> Any:
    from sa_plugin.scores import score

    return score(made("host"), made("data"), made("bank"))


def make_detector() -> Any:
    from sa_plugin.detection import calibrate

    return calibrate(made("host"), made("data"), made("bank"), deltas=(0.3, 0.6))


def make_sample() -> Any:
    """A test sample in which every concept is found."""
    detector, data = made("detector"), made("data")
    concepts = set(data.concepts)
    for sample in data.test.samples:
        if concepts <= {hit.concept for hit in detector.find(sample)}:
            return sample
    raise LookupError("no test sample holds a SuperActivator of every concept: change the seed")


def make_folder() -> Path:
    folder = tiny.scratch_folder() / "model"
    tiny.hf_model("gpt2").save_pretrained(folder)
    tiny.tokenizer("gpt2").save_pretrained(folder)
    return folder


def make_tokenizer() -> Any:
    """With a chat template, and words for yes and no of one token."""
    tokenizer = tiny.tokenizer("llama")
    tokenizer.add_tokens(["Yes", "No"])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    return tokenizer


def make_chats() -> list[Any]:
    """Sixty short chats in which no concept of `word_data` is named."""
    words = ("sat", "ran", "tall", "house", "river", "blue", "over", "under")
    said = [" ".join(words[(k + j) % 8] for j in range(2 + k % 5)) for k in range(60)]
    return [
        [{"role": "user", "content": f"say {one}"}, {"role": "assistant", "content": one}] for one in said
    ]


def make_speaker() -> Any:
    """A bridge of a model with a chat template."""
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer, folder = tiny.tokenizer("gpt2"), tiny.scratch_folder() / "speaker"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    tokenizer = type(tokenizer).from_pretrained(folder)
    return TransformerBridge.boot_transformers(
        "tiny-speaker", hf_model=tiny.hf_model("gpt2"), tokenizer=tokenizer, device="cpu"
    )


def make_instruct() -> Any:
    model = tiny.hf_model("llama")
    model.resize_token_embeddings(len(made("tokenizer")), mean_resizing=False)
    return model


def deep_model() -> tuple[Any, Any]:
    """A random Llama as deep as SmolLM2, and its tokenizer."""
    import transformers as hf

    tokenizer = tiny.tokenizer("gpt2")
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=30,
        num_attention_heads=2,
        max_position_embeddings=2048,
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    return tiny.fill(hf.LlamaForCausalLM(config)).eval(), tokenizer


@cache
def deep_bridge(name: str) -> Any:
    """A bridge of `deep_model`, for pages that load SmolLM2 by `load_bridge(name)`."""
    from transformer_lens.model_bridge import TransformerBridge

    model, tokenizer = deep_model()
    return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer, device="cpu")


SETUP: Mapping[str, Callable[[], Any]] = {
    "sa": lambda: importlib.import_module("sa_plugin"),
    "bridge": lambda: tiny.bridge("gpt2"),
    "host": make_host,
    "data": lambda: word_data(60, 5),
    "bank": make_bank,
    "scores": make_scores,
    "detector": make_detector,
    "sample": make_sample,
    "folder": make_folder,
    "tokenizer": make_tokenizer,
    "model": make_instruct,
    "chats": make_chats,
    "speaker": make_speaker,
}
