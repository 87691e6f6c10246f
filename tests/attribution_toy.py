"""A small host of texts that starts from embeddings, readouts to plant a game with, and oracles."""

from dataclasses import dataclass
from itertools import combinations
from math import comb, factorial

import numpy as np
import torch
from doubles import added
from fake_host import WIDTH, FakeHost

from sa_plugin.data import Sample
from sa_plugin.host import Site

SAMPLE = Sample("s", "the cat sat on the red mat today", "d")


class ToyHost(FakeHost):
    """FakeHost's blocks, from embeddings; `rows` counts the rows of forward passes."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.rows, self.largest, self.deepest = 0, 0, -1

    @added
    def input_values(self, batch):
        ids = batch.inputs["ids"]
        x = torch.zeros(*ids.shape, WIDTH)
        for b, t in torch.nonzero(batch.valid).tolist():
            generator = torch.Generator().manual_seed(int(ids[b, t]))
            x[b, t] = torch.randn(WIDTH, generator=generator)
        return x

    @added
    def forward_from(self, values, batch, site):
        return self._run(values, [site])[site]

    @added
    def _run(self, x, sites):
        self.rows, self.largest = self.rows + len(x), max(self.largest, x.shape[0] * x.shape[1])
        got = {}
        for layer in range(max(site.layer for site in sites) + 1):
            self.deepest = max(self.deepest, layer)
            got[Site(layer, "resid_pre")] = x
            z = torch.einsum("btd,hde->bthe", x.mean(1, keepdim=True) + x, self.w_v[layer]).tanh()
            attn = torch.einsum("bthe,hed->btd", z, self.w_o[layer]) + self.b_o[layer]
            x = x + attn + ((x + attn) @ self.mlp[layer]).tanh()
            got[Site(layer, "resid_post")] = x
        return {site: got[site] for site in sites}


class ManySitesHost(ToyHost):
    @added
    def forward_sites(self, values, batch, sites):
        return self._run(values, sites)


@dataclass(frozen=True, eq=False)
class Readout:
    """The mean over some tokens of a projection of the residual."""

    direction: torch.Tensor
    layer: int = 0
    point: str = "resid_pre"
    tokens: tuple[int, ...] | None = None
    sample: str = "s"

    @property
    def hook_name(self) -> str:
        return f"blocks.{self.layer}.hook_{self.point}"

    def __call__(self, resid):
        chosen = resid if self.tokens is None else resid[:, list(self.tokens)]
        return (chosen.float() @ self.direction).mean(1)


def draw(seed: int, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def linear_game(n: int, seed: int = 0, n_objectives: int = 2):
    """v(T) = offset + slopes . z: the slopes and the game."""
    rng = np.random.default_rng(seed)
    slopes, offset = rng.normal(size=(n, n_objectives)), rng.normal(size=n_objectives)
    return slopes, lambda z: offset + z.astype(float) @ slopes


def random_game(n: int, seed: int = 0, n_objectives: int = 2):
    """A value for each coalition, drawn independently."""
    table = np.random.default_rng(seed).normal(size=(2**n, n_objectives))
    return lambda z: table[z.astype(np.int64) @ (1 << np.arange(n))]


def smooth_game(n: int, seed: int = 0):
    """A saturating sum with some pairs: what models are like; its values for one objective."""
    rng = np.random.default_rng(seed)
    slopes, pairs = rng.normal(size=n), np.triu(rng.normal(size=(n, n)), 1) / n**0.5
    return lambda z: np.tanh((z @ slopes + ((z @ pairs) * z).sum(1)) / n**0.5)[:, None]


def shapley_values(game, n: int) -> np.ndarray:
    """By the definition: the mean marginal contribution over all coalitions of the others."""
    phi = []
    for i in range(n):
        total = 0.0
        for z, t in _subsets(n, [i]):
            weight = factorial(t) * factorial(n - t - 1) / factorial(n)
            total = total + weight * (_at(game, z, [i]) - _at(game, z, []))
        phi.append(total)
    return np.array(phi)


def interactions(game, n: int) -> np.ndarray:
    """Grabisch and Roubens' index of every pair, by the definition."""
    out = np.zeros((n, n, _at(game, np.zeros(n, bool), []).shape[0]))
    for i, j in combinations(range(n), 2):
        for z, t in _subsets(n, [i, j]):
            delta = _at(game, z, [i, j]) - _at(game, z, [i]) - _at(game, z, [j]) + _at(game, z, [])
            out[i, j] += delta / ((n - 1) * comb(n - 2, t))
        out[j, i] = out[i, j]
    return out


def _subsets(n, without):
    others = [k for k in range(n) if k not in without]
    for t in range(len(others) + 1):
        for members in combinations(others, t):
            z = np.zeros(n, bool)
            z[list(members)] = True
            yield z, t


def _at(game, z, added):
    z = z.copy()
    z[added] = True
    return game(z[None])[0]
