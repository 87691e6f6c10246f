"""Models with planted concept-aligned heads, and data whose tokens carry the concepts.

Attention only, no norms: a token's embedding is noise plus `strength` times the direction of each
concept it has; heads are random but for the planted ones, whose OV and QK maps have rank one along
their concept's direction on top of the same noise. The truth is known: every other pair of head
and concept is null.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from doubles import added
from fake_host import FakeHost

from sa_plugin.concepts import collect, fit
from sa_plugin.data import ConceptData
from sa_plugin.heads import WeightTest, describe_blocks, head_alignment, head_sizes, planted_sizes
from sa_plugin.host import AttentionWeights, BlockNorms, HostInfo, InputMap, OutputProjection, Site
from sa_plugin.statistics import Resampling

BLOCKS, HEADS, WIDTH, D_HEAD = 3, 4, 96, 8
CONCEPTS = ("red", "round", "loud", "warm")


class PlantedHost(FakeHost):
    """A host that hands out its weights; `table` gives each word's embedding."""

    def __init__(self, maps: dict[str, torch.Tensor], table: dict[int, torch.Tensor], seed: int):
        self.maps, self.table, self.passes = maps, table, 0
        self.info = HostInfo(
            "planted",
            "planted",
            "Planted",
            BLOCKS,
            WIDTH,
            HEADS,
            D_HEAD,
            "pre_norm",
            True,
            True,
            "none",
            "float32",
            f"planted-{seed}",
        )

    def read(self, batch, sites, reduce):
        self.passes += len(batch.rows)
        ids = batch.inputs["ids"]
        zero = torch.zeros(WIDTH)
        x = torch.stack([torch.stack([self.table.get(i, zero) for i in r]) for r in ids.tolist()])
        n = x.shape[1]
        seen = torch.ones(n, n).tril().bool() & batch.valid[:, None, None]
        got = {}
        for b in range(BLOCKS):
            q, k, v = (torch.einsum("btd,hde->bhte", x, self.maps[m][b]) for m in "qkv")
            logits = (q @ k.mT).masked_fill(~seen, -torch.inf)
            pattern = logits.softmax(-1)
            z = (pattern @ v).transpose(1, 2)
            attn = torch.einsum("bthe,hed->btd", z, self.maps["o"][b])
            got |= {Site(b, "resid_pre"): x, Site(b, "pattern"): pattern, Site(b, "z"): z}
            x = x + attn
            got |= {Site(b, "attn_out"): attn, Site(b, "mlp_out"): torch.zeros_like(attn)}
            got[Site(b, "resid_post")] = x
        return reduce({site: got[site].clone() for site in sites})

    def output_projection(self, layer: int) -> OutputProjection:
        return OutputProjection(self.maps["o"][layer], None)

    @added
    def norms(self, layer: int) -> BlockNorms:
        return BlockNorms(None, None, None, None)

    @added
    def attention_weights(self, layer: int) -> AttentionWeights:
        q, k, v = (self.maps[m][layer] for m in "qkv")
        return AttentionWeights(*map(InputMap, (q, k, v)), 1.0, None, False, None, None, HEADS)


@dataclass(frozen=True)
class World:
    host: PlantedHost
    data: ConceptData
    truth: np.ndarray
    directions: torch.Tensor


def world(
    seed: int,
    *,
    n_planted: int = 4,
    strength: float = 4.0,
    gains: tuple[float, float] = (0.5, 0.3),
    n_samples: int = 100,
    length: int = 24,
) -> World:
    """A model, its data, and `truth[block, head, concept]`.

    Args:
        seed: Of everything.
        n_planted: Heads with a concept each; at most one concept a head.
        strength: Of a concept in an embedding; 0 makes labels meaningless.
        gains: Of the planted OV and QK maps, `v^T W v`.
        n_samples, length: Of the data.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    directions = torch.linalg.qr(torch.randn(WIDTH, len(CONCEPTS), generator=generator))[0].T
    maps, truth = _maps(directions, n_planted, gains, generator, rng)
    words, labels, table = [], [], {}
    for s in range(n_samples):
        has = rng.random(len(CONCEPTS)) < 0.5
        tokens = (rng.random((length, len(CONCEPTS))) < 0.25) & has
        words.append([f"s{s}t{t}" for t in range(length)])
        labels.append([[c for c, y in zip(CONCEPTS, row, strict=True) if y] for row in tokens])
        noise = torch.randn(length, WIDTH, generator=generator)
        x = noise + strength * torch.from_numpy(tokens).float() @ directions
        table |= {zlib.crc32(w.encode()): x[t] for t, w in enumerate(words[-1])}
    data = ConceptData.from_words(words, labels, concepts=CONCEPTS, name=f"planted {seed}")
    return World(PlantedHost(maps, table, seed), data, truth, directions)


def _maps(directions, n_planted, gains, generator, rng):
    shape = (BLOCKS, HEADS, WIDTH, D_HEAD)
    maps = {m: 0.08 * torch.randn(shape, generator=generator) for m in "qk"}
    maps["v"] = 0.1 * torch.randn(shape, generator=generator)
    maps["o"] = 0.1 * torch.randn(BLOCKS, HEADS, D_HEAD, WIDTH, generator=generator)
    truth = np.zeros((BLOCKS, HEADS, len(CONCEPTS)), dtype=bool)
    for k, head in enumerate(rng.permutation(BLOCKS * HEADS)[:n_planted]):
        # Several heads of one concept make its direction carry most of the variance, and then
        # directions of permuted labels lie along it too.
        b, h, c = head // HEADS, head % HEADS, k % len(CONCEPTS)
        truth[b, h, c] = True
        for m, gain in zip("vqk", (gains[0], gains[1], gains[1]), strict=True):
            maps[m][b, h, :, 0] += gain**0.5 * directions[c]
        maps["o"][b, h, 0] += gains[0] ** 0.5 * directions[c]
    return maps, truth


def align(one: World, kind: str = "prototype", concepts=None, **test):
    """Fit and align, on one null unless told otherwise; `test` is for `WeightTest`."""
    need = ("means", "gram", "rows")
    statistics = collect(one.host, one.data, need=need)
    bank = fit(one.host, one.data, kind, statistics=statistics, controls=False)
    return head_alignment(
        one.host,
        one.data,
        bank,
        statistics=statistics,
        concepts=concepts,
        test=WeightTest(**{"nulls": ("across",), "draws": 400, "refine": 1} | test),
        resampling=Resampling(draws=60),
    )


def outcome(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, bool]:
    """Share of the planted found, share of false calls among calls, and whether any was made."""
    calls = int(found.sum())
    false = int((found & ~truth).sum())
    power = float(found[truth].mean()) if truth.any() else float("nan")
    return power, false / max(1, calls), calls > 0


def planted_at(host: PlantedHost, cells, v_in, v_out, sizes) -> PlantedHost:
    """The host with one more dimension to every head, empty but in the cells given.

    Args:
        host: As it is.
        cells: Block and head of each.
        v_in, v_out: Unit direction of each.
        sizes: t and s of each, see `sa_plugin.heads.planted_sizes`.
    """
    maps = {m: torch.nn.functional.pad(host.maps[m], (0, 1)) for m in "qkv"}
    maps["o"] = torch.nn.functional.pad(host.maps["o"], (0, 0, 0, 1))
    for (b, h), read, write, (t, s) in zip(cells, v_in, v_out, sizes, strict=True):
        for m, size in zip("qkv", (s, 1.0, t), strict=True):
            maps[m][b, h, :, -1] = size * read
        maps["o"][b, h, -1] = write
    again = PlantedHost(maps, host.table, 0)
    again.info = replace(host.info, d_head=D_HEAD + 1)
    return again


def found_of_the_stated_size(seed: int, power: float, n: int = 4) -> tuple[float, float]:
    """The cosine that a result states for a power, and the share of heads of that size that are then called.

    Planted along the concepts' true directions, before the model is run.
    """
    one = world(seed, n_planted=0)
    cosine = align(one).cosine_at(power)
    if np.isnan(cosine):
        return cosine, cosine
    heads = np.random.default_rng(seed).permutation(BLOCKS * HEADS)[:n]
    cells = [(int(head) // HEADS, int(head) % HEADS) for head in heads]
    blocks, v = describe_blocks(one.host, range(BLOCKS), {0: 1}), one.directions[:n]
    sizes = []
    for k, (b, h) in enumerate(cells):
        t, s = planted_sizes(head_sizes(blocks[b], v[k : k + 1], v[k : k + 1]), cosine)
        sizes.append((float(t[h, 0]), float(s[h, 0])))
    after = align(replace(one, host=planted_at(one.host, cells, v, v, sizes)))
    return cosine, float(np.mean([after.called[b, h, k] for k, (b, h) in enumerate(cells)]))


SCENARIOS = {
    "planted heads": {},
    "labels without meaning": {"n_planted": 0, "strength": 0.0},
    "concepts, no such head": {"n_planted": 0},
}


def realised(scenario: str, kind: str, seeds: range, level: float = 0.05, **options) -> dict:
    """Power, false discovery proportion and calls over many worlds.

    Args:
        scenario: One of `SCENARIOS`.
        kind: Of the concept vectors.
        seeds: One world each.
        level: Family-wise.
        **options: For `WeightTest`.

    Returns:
        Means over the worlds: `power`, `on_data` (of the planted), `false_share`; `any_called` and
        `any_false`, worlds with a call and with a false one; `any_call`, what the results themselves say.
    """
    rows, said = [], []
    for seed in seeds:
        one = world(seed, **SCENARIOS[scenario])
        found = align(one, kind, level=level, **options)
        rows.append([*outcome(found.called, one.truth), outcome(found.called & found.on_data, one.truth)[0]])
        said.append(list(found.tested.any_call.values()))
    table = np.array(rows, dtype=float)
    return {
        "scenario": scenario,
        "kind": kind,
        "worlds": len(table),
        "power": table[:, 0].mean(),
        "on_data": table[:, 3].mean(),
        "false_share": table[:, 1].mean(),
        "any_called": int(table[:, 2].sum()),
        "any_false": int((table[:, 1] > 0).sum()),
        "any_call": np.mean(said, axis=0),
    }
