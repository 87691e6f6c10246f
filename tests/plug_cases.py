"""Pairs of inputs with objectives for the hosts' own tools, and patching by plain torch hooks."""

from contextlib import contextmanager
from functools import cache

import attribution_cases as cases
import tiny
import torch
from bare_host import BLOCKS

from sa_plugin.attribution import objective
from sa_plugin.data import Sample
from sa_transformer_lens.prefix import prefix_view

TEXTS = ("gpt2", "llama", "gemma2", "bert")
EVERY = (*TEXTS, "vit")
SHORT = "the cat sat"
# Module, its side, and which third of a joint projection.
MODULES = {
    "gpt2": {
        "q": ("attn.c_attn", "out", 0),
        "k": ("attn.c_attn", "out", 1),
        "v": ("attn.c_attn", "out", 2),
        "z": ("attn.c_proj", "in"),
        "attn_out": ("attn.c_proj", "out"),
        "mlp_out": ("mlp", "out"),
    },
    "llama": {
        "q": ("self_attn.q_proj", "out"),
        "k": ("self_attn.k_proj", "out"),
        "v": ("self_attn.v_proj", "out"),
        "z": ("self_attn.o_proj", "in"),
        "attn_out": ("self_attn.o_proj", "out"),
        "mlp_out": ("mlp", "out"),
    },
    "bert": {
        "q": ("attention.self.query", "out"),
        "k": ("attention.self.key", "out"),
        "v": ("attention.self.value", "out"),
        "z": ("attention.output.dense", "in"),
        "attn_out": ("attention.output.LayerNorm", "out"),
        "mlp_out": ("output.dense", "out"),
        "resid_mid": ("output.LayerNorm", "in"),
    },
    "vit": {
        "q": ("attention.q_proj", "out"),
        "k": ("attention.k_proj", "out"),
        "v": ("attention.v_proj", "out"),
        "z": ("attention.o_proj", "in"),
        "attn_out": ("attention.o_proj", "out"),
        "mlp_out": ("mlp", "out"),
    },
}
MODULES["gemma2"] = MODULES["llama"] | {
    "attn_out": ("post_attention_layernorm", "out"),
    "mlp_out": ("post_feedforward_layernorm", "out"),
}


def sample_of(name):
    """A short text; for a vision tower an image with a SuperActivator."""
    if name not in tiny.VISION:
        return Sample("short", SHORT, "d")
    _, data, detector = cases.case(name)
    return next(s for s in data.test.samples if s.positive and detector.find(s))


@cache
def pair(name, kind="superactivator"):
    """A host, an objective at block 1 of 3, clean and corrupted inputs, and what rides along."""
    host, data, detector = cases.case(name)
    image, sample = name in tiny.VISION, sample_of(name)
    made = objective(kind, detector=detector, concept=data.concepts[0], sample=sample, fallback="top_token")
    inputs = dict(host.forward_inputs(sample))
    clean = inputs.pop("pixel_values" if image else "input_ids")
    corrupt = clean.flip(-1) if image else clean.clone()
    if not image:
        middle = slice(1, clean.shape[1] - 1) if name == "bert" else slice(1, None)
        corrupt[:, middle] = clean[:, middle].roll(1, -1)
    return host, made, clean, corrupt, inputs


def view_of(name, kind="superactivator"):
    """The pair, its prefix view and the clean run's cache."""
    host, made, clean, corrupt, inputs = pair(name, kind)
    view = prefix_view(host, made, **inputs)
    return view, made, clean, corrupt, view.run_with_cache(clean)[1]


class Bare:
    """The unwrapped model; edits and readings by plain torch hooks, no gradients."""

    def __init__(self, name, inputs):
        self.name, self.inputs = name, inputs
        self.model = tiny.vision_model(name) if name in tiny.VISION else tiny.hf_model(name)
        self.first = "pixel_values" if name in tiny.VISION else "input_ids"
        config = self.model.config
        self.n_heads = config.num_attention_heads
        self.n_kv = getattr(config, "num_key_value_heads", None) or self.n_heads

    def block(self, layer):
        return self.model.get_submodule(f"{BLOCKS[self.name]}.{layer}")

    def run(self, x, layer, edits=()):
        """The residual behind a block, with edits `(layer, kind, function)`."""
        found = []
        with self._hooked(edits), self._after(self.block(layer), found), torch.no_grad():
            out = self.model(**{self.first: x}, **self.inputs, output_attentions=True)
        return found[0], out.attentions

    def read(self, x, layer, kind):
        """One activation of a block, heads apart."""
        found = []

        def keep(value):
            found.append(value.clone())
            return value

        _, patterns = self.run(x, layer, [(layer, kind, keep)] if kind != "pattern" else [])
        return patterns[layer] if kind == "pattern" else found[0]

    @contextmanager
    def _hooked(self, edits):
        handles = []
        for layer, kind, function in edits:
            if kind in ("resid_pre", "resid_post"):
                module, side, third = self.block(layer), "in" if "pre" in kind else "out", None
            else:
                path, side, *rest = MODULES[self.name][kind]
                module, third = self.block(layer).get_submodule(path), rest[0] if rest else None
            handles.append(self._register(module, side, third, kind, function))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _register(self, module, side, third, kind, function):
        heads = {"q": self.n_heads, "z": self.n_heads, "k": self.n_kv, "v": self.n_kv}.get(kind)

        def edit(value):
            value = value.clone()
            part = value if third is None else value.chunk(3, -1)[third]
            split = part if heads is None else part.unflatten(-1, (heads, -1))
            part.copy_(function(split).reshape(part.shape))
            return value

        if side == "in":

            def before(module, args):
                return (edit(args[0]), *args[1:])

            return module.register_forward_pre_hook(before)

        def after(module, args, out):
            return (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

        return module.register_forward_hook(after)

    @contextmanager
    def _after(self, module, found):
        def keep(module, args, out):
            found.append((out[0] if isinstance(out, tuple) else out).clone())

        handle = module.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()
