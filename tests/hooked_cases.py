"""Models of TransformerLens 3's own classes beside bridges of the same weights."""

from functools import cache
from importlib.metadata import version

import pytest
import tiny
import transformer_lens

REASON = "TransformerLens 4 has no HookedTransformer; `python tests/hosts/run.py tl-3.9-saelens` runs this"
# hasattr would raise: TransformerLens 4 answers for the classes it removed by an ImportError.
try:
    HAS = transformer_lens.HookedTransformer is not None
except (ImportError, AttributeError):
    HAS = False
needs_hooked = pytest.mark.skipif(not HAS, reason=REASON)
OLD = version("transformer-lens").startswith("3.8")
# TransformerLens 3.8 looks for NeoX's head by the name it had before transformers 5.
DECODERS = ("gpt2", *(() if OLD else ("neox",)), "llama", "gemma2", "qwen3")
SHARED = (*(name for name in DECODERS if name != "gemma2"), "bert")
PROCESSED = ("gpt2", "gemma2", "llama")
CASES = [*((name, False) for name in (*DECODERS, "bert")), *((name, True) for name in PROCESSED)]
IDS = [f"{name}-{'processed' if process else 'plain'}" for name, process in CASES]


@cache
def folder(name):
    """A tiny model as `save_pretrained` writes it, with its tokenizer."""
    where = tiny.scratch_folder() / f"whole_{name}"
    tiny.hf_model(name).save_pretrained(where)
    tiny.tokenizer(name).save_pretrained(where)
    return where


def hooked_model(name, process=False, cls=None):
    from sa_transformer_lens import load_hooked

    return load_hooked(folder(name), process=process, cls=cls)


def bridge_model(name, process=False):
    bridge = tiny.bridge(name)
    if process:
        bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge


@cache
def hosts(name, process=False):
    """A HookedTransformer and a bridge of the same mode; leave them as you found them."""
    from sa_transformer_lens import accept

    return tuple(accept(make(name, process)) for make in (hooked_model, bridge_model))


@cache
def real(name):
    """The same of real weights, unprocessed."""
    from sa_plugin.host import attach
    from sa_transformer_lens import load_hooked
    from sa_transformer_lens.host import load_bridge

    return attach(load_hooked(name), progress=False), attach(load_bridge(name), progress=False)
