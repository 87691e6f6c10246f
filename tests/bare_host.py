"""A host with no library but torch and transformers: the oracle of both adapters.

Modules are named here once more, only texts of one length share a batch, so that none is padded,
and every site is read by a plain forward hook on the unwrapped model.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import tiny
import torch

from sa_plugin.host import Batch, OutputProjection, Site

BLOCKS = {
    "gpt2": "transformer.h",
    "neox": "gpt_neox.layers",
    "bert": "bert.encoder.layer",
    "vit": "layers",
    "llama": "model.layers",
    "qwen3": "model.layers",
    "gemma2": "model.layers",
}
# Inside a block: modules whose outputs are attn_out and mlp_out, and whose input is z.
PARTS = {
    "gpt2": ("attn.c_proj", "mlp", "attn.c_proj"),
    "neox": ("attention.dense", "mlp", "attention.dense"),
    "llama": ("self_attn.o_proj", "mlp", "self_attn.o_proj"),
    "qwen3": ("self_attn.o_proj", "mlp", "self_attn.o_proj"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj"),
    "bert": ("attention.output.dense", "output.dense", "attention.output.dense"),
    "vit": ("attention", "mlp", "attention.o_proj"),
}


class BareHost:
    """A host of `tiny.hf_model(name)` or `tiny.vision_model(name)`.

    `like` is another host of the same weights: its `info` is taken over, and of a vision model the
    processor and the number of special tokens.
    """

    batch_tokens, progress = 2048, False

    def __init__(self, name: str, like, model=None, tokenizer=None, kind: str | None = None):
        self.kind = kind or name
        self.like, self.info = like, replace(like.info, host="bare")
        self.vision = name in tiny.VISION
        self.model = model or (tiny.vision_model(name) if self.vision else tiny.hf_model(name))
        self.tokenizer = None if self.vision else tokenizer or tiny.tokenizer(name)

    def batches(self, samples: Sequence, *, batch_tokens: int | None = None) -> list[Batch]:
        if self.vision:
            return self.like.batches(samples)
        rows = [self._text(sample.text) for sample in samples]
        groups: dict[int, list[int]] = {}
        for k, (ids, *_) in enumerate(rows):
            groups.setdefault(len(ids), []).append(k)
        return [self._batch(group, rows) for group in groups.values()]

    def _batch(self, group: list[int], rows: list) -> Batch:
        ids, valid, offsets = (torch.stack([torch.tensor(rows[k][part]) for k in group]) for part in range(3))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return Batch(torch.tensor(group), inputs, valid, offsets)

    def _text(self, text: str) -> tuple[list[int], list[bool], list[tuple[int, int]]]:
        out = self.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        offsets = []
        for special, (start, end) in zip(out["special_tokens_mask"], out["offset_mapping"], strict=True):
            piece = text[start:end]
            if piece.strip():
                start += len(piece) - len(piece.lstrip())
                end -= len(piece) - len(piece.rstrip())
            offsets.append((0, 0) if special else (start, end))
        return out["input_ids"], [not one for one in out["special_tokens_mask"]], offsets

    def read(self, batch: Batch, sites: Sequence[Site], reduce) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            found = self.run(batch.inputs, sites)
            return reduce({site: found[site].clone() for site in sites})

    def run(self, inputs: Mapping, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """Every site, with its graph where gradients are on."""
        found: dict[Site, torch.Tensor] = {}
        with self._hooks(sites, found):
            out = self.model(**dict(inputs), output_attentions=True)
        for site in sites:
            if site.point == "pattern":
                found[site] = out.attentions[site.layer]
            if site.point == "z":
                found[site] = found[site].unflatten(-1, (self.info.n_heads, -1))
        return found

    @contextmanager
    def _hooks(self, sites, found):
        def after(site):
            def hook(module, args, out):
                found[site] = out[0] if isinstance(out, tuple) else out

            return hook

        def before(site):
            def hook(module, args, kwargs):
                found[site] = args[0] if args else kwargs["hidden_states"]

            return hook

        handles = []
        for site in sites:
            block = self.block(site.layer)
            attention, mlp, heads = map(block.get_submodule, PARTS[self.kind])
            outputs = {"resid_post": block, "attn_out": attention, "mlp_out": mlp}
            inputs = {"resid_pre": block, "z": heads}
            if site.point in outputs:
                handles.append(outputs[site.point].register_forward_hook(after(site)))
            elif site.point in inputs:
                module = inputs[site.point]
                handles.append(module.register_forward_pre_hook(before(site), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def block(self, layer: int):
        return self.model.get_submodule(f"{BLOCKS[self.kind]}.{layer}")

    def hook_name(self, site: Site) -> str:
        return f"{site.point} of block {site.layer}"

    def output_projection(self, layer: int) -> OutputProjection:
        module = self.block(layer).get_submodule(PARTS[self.kind][2])
        weight = module.weight if self.kind == "gpt2" else module.weight.T
        bias = None if module.bias is None else module.bias.detach().clone()
        return OutputProjection(weight.detach().clone().unflatten(0, (self.info.n_heads, -1)), bias)
