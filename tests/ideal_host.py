"""The idealised model of `ideal_model.dynamics` as a Host with weights.

Every word is a token; its activation along the concept direction e_0 is drawn from its hash, the
other dimensions are wide noise that no head reads or writes. `noise` adds an MLP that writes at
random.
"""

import zlib

import numpy as np
import torch
from ideal_model.dynamics import IdealModel, attention

from sa_plugin.concepts import ConceptBank, VectorSet
from sa_plugin.data import ConceptData, Sample
from sa_plugin.host import AttentionWeights, Batch, BlockNorms, HostInfo, InputMap, OutputProjection, Site

WIDTH = 24


class IdealHost:
    """A stack of `IdealModel` blocks."""

    batch_tokens, progress = 2048, False

    def __init__(self, model: IdealModel, n_layers: int, *, noise: float = 0.0) -> None:
        self.model, self.noise, self.passes = model, noise, 0
        heads = len(model.beta)
        self.info = HostInfo(
            "ideal",
            "ideal",
            "Ideal",
            n_layers,
            WIDTH,
            heads,
            1,
            "pre_norm",
            model.causal,
            True,
            "none",
            "float64",
            f"ideal-{model}-{n_layers}",
        )

    def batches(self, samples, *, batch_tokens=None):
        return [self._batch(samples, [n]) for n in range(len(samples))]

    def _batch(self, samples, rows):
        words = samples[rows[0]].text.split()
        ends = np.cumsum([len(word) + 1 for word in words])
        offsets = torch.tensor([[e - 1 - len(w), e - 1] for e, w in zip(ends, words, strict=True)])
        ids = torch.tensor([[zlib.crc32(word.encode()) for word in words]])
        valid = torch.ones_like(ids, dtype=torch.bool)
        return Batch(torch.tensor(rows), {"ids": ids}, valid, offsets[None])

    def embed(self, ids):
        rows = []
        for token in ids.tolist():
            rng = np.random.default_rng(token)
            x = 15 * rng.normal(size=WIDTH)
            x[0] = (rng.gamma(9) - 9) / 6
            rows.append(x)
        return np.stack(rows)

    def read(self, batch, sites, reduce):
        self.passes += 1
        x = self.embed(batch.inputs["ids"][0])
        rng = np.random.default_rng(int(batch.inputs["ids"].sum()))
        got = {}
        for layer in range(max(site.layer for site in sites) + 1):
            pattern = attention(x[:, 0], self.model)
            added = np.zeros_like(x)
            added[:, 0] = np.asarray(self.model.gamma) @ (pattern @ x[:, 0])
            mlp = self.noise * rng.normal(size=x.shape)
            named = {"resid_pre": x, "pattern": pattern, "attn_out": added, "mlp_out": mlp}
            x = x + added + mlp
            named["resid_post"] = x
            got |= {Site(layer, p): torch.from_numpy(v.copy())[None] for p, v in named.items()}
        return reduce({site: got[site] for site in sites})

    def hook_name(self, site):
        return f"{site.layer}.{site.point}"

    def output_projection(self, layer):
        weight = torch.zeros(len(self.model.gamma), 1, WIDTH, dtype=torch.float64)
        weight[:, 0, 0] = torch.tensor(self.model.gamma, dtype=torch.float64)
        return OutputProjection(weight, None)

    def norms(self, layer):
        return BlockNorms(None, None, None, None)

    def attention_weights(self, layer):
        one = torch.zeros(len(self.model.beta), WIDTH, 1, dtype=torch.float64)
        one[:, 0] = 1.0
        query = one * torch.tensor(self.model.beta, dtype=torch.float64)[:, None, None]
        heads = self.info.n_heads
        return AttentionWeights(*map(InputMap, (query, one, one)), 1.0, None, False, None, None, heads)


def ideal_data(n_samples=12, n_words=80):
    """Samples of distinct words, all of which have the concept, each a document."""
    texts = [" ".join(f"w{n}x{k}" for k in range(n_words)) for n in range(n_samples)]
    made = [Sample(f"s{n}", text, f"d{n}", positive=frozenset({"c"})) for n, text in enumerate(texts)]
    return ConceptData(("c",), tuple(made), ("test",) * n_samples, "ideal")


def ideal_bank(n_layers, *, direction=None):
    """e_0 at every layer, from raw activations, with a permuted control that no head touches."""
    v, other = torch.zeros(WIDTH), torch.zeros(WIDTH)
    v[0], other[2] = 1.0, 1.0
    v = v if direction is None else direction
    bank = ConceptBank.from_vectors({("c", layer): v for layer in range(n_layers)}, sinks="keep")
    permuted = VectorSet(
        other.expand(n_layers, 1, WIDTH), bank.token.mean, bank.token.scale, bank.token.scoring
    )
    return ConceptBank(
        bank.concepts,
        bank.units,
        bank.layers,
        bank.hook_point,
        bank.kind,
        bank.token,
        permuted=permuted,
        origin=bank.origin,
    )
