"""A small deterministic model in plain torch that is a Host: for laws that need no library.

Words are tokens; the embedding of a word is drawn from its hash. Each block adds a causal mean
through two heads and a nonlinear map, so parts add up to the residual exactly as in a pre-norm
transformer.
"""

import copy
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from doubles import added

from sa_plugin.host import Batch, HostInfo, OutputProjection, Site, reducers

WIDTH, HEADS, HEAD = 12, 2, 3


class FakeHost:
    """Three blocks, d_model 12; `poison` makes the residual after a block NaN."""

    batch_tokens, progress = 2048, False

    def __init__(self, *, n_layers: int = 3, causal: bool = False, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

        self.w_v = draw(n_layers, HEADS, WIDTH, HEAD)
        self.w_o = draw(n_layers, HEADS, HEAD, WIDTH)
        self.b_o = draw(n_layers, WIDTH)
        self.mlp = draw(n_layers, WIDTH, WIDTH)
        self.poison: int | None = None
        self.passes = 0
        self.info = HostInfo(
            "fake",
            "fake",
            "Fake",
            n_layers,
            WIDTH,
            HEADS,
            HEAD,
            "pre_norm",
            causal,
            False,
            "none",
            "float32",
            f"fake-{n_layers}-{seed}",
        )

    def with_info(self, **changes: object) -> "FakeHost":
        self.info = replace(self.info, **changes)
        return self

    def batches(self, samples: Sequence, *, batch_tokens: int | None = None) -> list[Batch]:
        rows = sorted(range(len(samples)), key=lambda n: len(samples[n].text.split()))
        most = self.batch_tokens if batch_tokens is None else batch_tokens
        out, group = [], []
        for n in rows:
            width = len(samples[n].text.split())
            if group and width * (len(group) + 1) > most:
                out.append(self._batch(samples, group))
                group = []
            group.append(n)
        return [*out, self._batch(samples, group)]

    def _batch(self, samples: Sequence, rows: list[int]) -> Batch:
        words = [samples[n].text.split() for n in rows]
        width = max(len(w) for w in words)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        offsets = torch.zeros(len(rows), width, 2, dtype=torch.long)
        for b, row in enumerate(words):
            start = 0
            for t, word in enumerate(row):
                start = samples[rows[b]].text.index(word, start)
                ids[b, t] = zlib.crc32(word.encode())
                offsets[b, t] = torch.tensor([start, start + len(word)])
                start += len(word)
        lengths = torch.tensor([len(w) for w in words])
        valid = torch.arange(width) < lengths[:, None]
        inputs = {"ids": ids, "attention_mask": valid.long()}
        return Batch(torch.tensor(rows), inputs, valid, offsets)

    def read(self, batch, sites, reduce):
        self.passes += len(batch.rows)
        ids = batch.inputs["ids"]
        x = torch.zeros(*ids.shape, WIDTH)
        for b, t in torch.nonzero(batch.valid).tolist():
            generator = torch.Generator().manual_seed(int(ids[b, t]))
            x[b, t] = torch.randn(WIDTH, generator=generator)
        got: dict[Site, torch.Tensor] = {}
        for layer in range(max(site.layer for site in sites) + 1):
            got[Site(layer, "resid_pre")] = x
            count = torch.arange(1, x.shape[1] + 1)[:, None]
            context = x.cumsum(1) / count
            z = torch.einsum("btd,hde->bthe", context, self.w_v[layer]).tanh()
            attn = torch.einsum("bthe,hed->btd", z, self.w_o[layer]) + self.b_o[layer]
            mlp = ((x + attn) @ self.mlp[layer]).tanh()
            got |= {Site(layer, "z"): z, Site(layer, "attn_out"): attn, Site(layer, "mlp_out"): mlp}
            x = x + attn + mlp
            if self.poison == layer:
                x = x.clone()
                x[0, 0, 0] = torch.nan
            got[Site(layer, "resid_post")] = x
        return reduce({site: got[site].clone() for site in sites})

    def hook_name(self, site: Site) -> str:
        return f"blocks.{site.layer}.hook_{site.point}"

    def output_projection(self, layer: int) -> OutputProjection:
        return OutputProjection(self.w_o[layer], self.b_o[layer])


def in_batches(host, batch_tokens):
    """The same host with batches of another size."""
    other = copy.copy(host)
    object.__setattr__(other, "batch_tokens", batch_tokens)
    return other


class Elsewhere(FakeHost):
    """A host that is given all batches at once and hands sums over with the last of three."""

    @added
    def read_many(self, batches, sites, reducer):
        for start in range(0, len(batches), 3):
            part = batches[start : start + 3]
            results = [super(Elsewhere, self).read(b, sites, reducer(b)) for b in part]
            yield from zip(part, reducers.gather(results), strict=True)

    def read(self, batch, sites, reduce):
        raise AssertionError("a bulk host is asked for many batches at once")
