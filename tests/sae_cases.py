"""SAEs small enough to be read, for laws of latents."""

import torch
from torch import nn


class ReluSAE(nn.Module):
    """`relu(W h + b)`, or the k highest of it."""

    def __init__(self, d_model=12, latents=40, *, bias=-1.0, k=None, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(latents, d_model, generator=generator))
        self.bias = nn.Parameter(torch.full((latents,), bias))
        self.k, self.rows = k, []

    def encode(self, h):
        self.rows.append(len(h))
        z = (h @ self.weight.T + self.bias).relu()
        if self.k is None:
            return z
        best = z.topk(self.k, dim=-1)
        return torch.zeros_like(z).scatter(-1, best.indices, best.values)


class PlainSAE:
    """No module: attributes and a method."""

    def __init__(self, weight, change=lambda z: z):
        self.weight, self.change = weight, change

    def encode(self, h):
        return self.change((h @ self.weight.T).relu())
