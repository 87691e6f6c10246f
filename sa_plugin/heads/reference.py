"""What ablated heads write instead: train means of z, or donors drawn from the train split."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin._names import require_known
from sa_plugin.collect import BATCH_TOKENS, kept, lay_out, sink_sites, walk
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData, Sample
from sa_plugin.host import Batch, Host, Reduce, Site

MODES = ("mean", "zero", "resample", "directional", "pattern")
DONORS, DONOR_SAMPLES = 4096, 64


class Reference(NamedTuple):
    """What ablated heads write instead.

    Attributes:
        means: By layer; of every head.
        donors: By layer; z of the same tokens at every layer.
        seed: Of the donors and of which position gets which.
    """

    means: Mapping[int, Float[Tensor, "head d_head"]] = {}
    donors: Mapping[int, Float[Tensor, "donor head d_head"]] = {}
    seed: int = 0


def reference(
    host: Host,
    data: ConceptData | None,
    bank: ConceptBank | None,
    mode: str,
    layers: Collection[int],
    *,
    seed: int = 0,
) -> Reference:
    """Train means or donors of z, as far as a mode needs them.

    Costs nothing where the bank has component means, else a pass over the train split (means) or
    over `DONOR_SAMPLES` of its samples (donors).

    Raises:
        ValueError: The mode is unknown, or needs a bank or data that is not given.
    """
    require_known("mode", mode, MODES)
    if mode in ("zero", "pattern"):
        return Reference(seed=seed)
    if mode != "resample" and bank is not None and bank.component_means is not None:
        z = bank.component_means.z
        if max(layers) < len(z):
            return Reference({at: z[at].float() for at in layers}, seed=seed)
    if data is None or bank is None:
        raise ValueError(
            f"mode {mode!r} needs z of the train split: give bank= and data= (or, for means, a "
            "bank fitted on resid_post of a pre-norm model, which holds them)."
        )
    samples = data.train.samples
    if mode != "resample":
        return Reference(_train_z(host, samples, bank, layers, mean=True), seed=seed)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(samples))[:DONOR_SAMPLES]
    rows = _train_z(host, [samples[n] for n in drawn], bank, layers, mean=False)
    some = torch.from_numpy(rng.permutation(len(next(iter(rows.values()))))[:DONORS])
    return Reference(donors={at: z[some] for at, z in rows.items()}, seed=seed)


def _train_z(
    host: Host,
    samples: Sequence[Sample],
    bank: ConceptBank,
    layers: Collection[int],
    *,
    mean: bool,
) -> dict[int, Tensor]:
    """The mean of z over kept tokens, or z itself, by layer."""
    layout = lay_out(host, samples, (), batch_tokens=BATCH_TOKENS)
    sites = sorted({*sink_sites(bank.sink_layers), *(Site(at, "z") for at in layers)})

    def reducer(batch: Batch) -> Reduce:
        def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
            keep = kept(read, batch.valid, host.info, bank.sink_layers, bank.origin.sinks)
            rows = {str(at): read[Site(at, "z")].float()[keep] for at in layers}
            out = {at: z.double().sum(0) if mean else z for at, z in rows.items()}
            return {**out, "n": keep.sum()}

        return reduce

    got = [out for _, out in walk(host, layout, sites, reducer, description="z", progress=False)]
    if mean:
        n = sum(int(out["n"]) for out in got)
        sums = {at: torch.stack([out[str(at)] for out in got]).sum(0) for at in layers}
        return {at: (total / n).float() for at, total in sums.items()}
    return {at: torch.cat([out[str(at)] for out in got]) for at in layers}
