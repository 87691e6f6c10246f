"""What a ledger needs from the train split: means of scaled terms, vectors of permuted labels.

One pass over the train split collects both, and is run only where something is missing: a
pre-norm bank fitted here has its means (`bank.component_means`), and a bank of any kind holds one
permuted vector a concept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Bool
from torch import Tensor

from sa_plugin.collect import BATCH_TOKENS, Layout, kept, lay_out, sink_sites, walk
from sa_plugin.concepts.bank import ConceptBank, VectorSet
from sa_plugin.data import ConceptData
from sa_plugin.heads.components import Column
from sa_plugin.heads.frozen import FrozenNorms, check_joints
from sa_plugin.heads.means import MeanPass, ScaledMeans
from sa_plugin.heads.permuted import PermutedPass, refit_kind
from sa_plugin.heads.target import check_supported, depth_of
from sa_plugin.host import Batch, Host, Site
from sa_plugin.scoring import check_origin

PERMUTATIONS = 20


@runtime_checkable
class TrainPart(Protocol):
    """Something that is added up over the train split."""

    @property
    def sites(self) -> set[Site]:
        """What a batch has to read."""

    def reduce(
        self, read: Mapping[Site, Tensor], keep: Bool[Tensor, "batch token"], batch: Batch
    ) -> dict[str, Tensor]:
        """Sums over a batch's kept tokens."""

    def add(self, batch: Batch, got: Mapping[str, Tensor]) -> None:
        """Take in what `reduce` returned."""


def permuted_vectors(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    *,
    draws: int = PERMUTATIONS,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> tuple[VectorSet, ...]:
    """Refit a bank on labels permuted across train samples, many times, in one train pass.

    Args:
        host: An attached model.
        data: What the bank was fitted on.
        bank: Supervised, and fitted here.
        draws: Number of permutations.
        layers: Where; all of the bank's by default. Other layers of the result are zero.
        seed: Of the permutations.
        batch_tokens: Tokens in a batch, padding included.
        progress: Whether to show a bar.

    Returns:
        One set a draw, shaped like `bank.token`; for `head_ledger(..., permutations=...)`.

    Raises:
        ValueError: The bank is unsupervised or given, fitted on other data or another model.
    """
    check_origin(bank, host)
    _check_refit(bank, data, draws)
    layout = lay_out(host, data.train.samples, bank.concepts, batch_tokens=batch_tokens)
    part = PermutedPass(bank, layout, layers or bank.layers, draws, seed)
    _walk_train(host, bank, layout, [part], progress)
    return part.result()


def term_means(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> ScaledMeans:
    """Train means of every part's contribution at every layer of a bank, in one train pass.

    Args:
        host: An attached model.
        data: What the bank was fitted on: its train split is run.
        bank: For its layers, hook point and sink rule.
        batch_tokens: Tokens in a batch, padding included.
        progress: Whether to show a bar.

    Returns:
        For `head_ledger(..., means=...)` and `explain_tokens(..., means=...)`.
    """
    check_origin(bank, host)
    check_supported(bank.hook_point)
    check_joints(host, bank)
    layout = lay_out(host, data.train.samples, bank.concepts, batch_tokens=batch_tokens)
    depths = tuple(depth_of(layer, bank.hook_point) for layer in bank.layers)
    part = MeanPass(host.info, FrozenNorms.of(host, max(depths)), depths)
    _walk_train(host, bank, layout, [part], progress)
    return part.result()


def prepare(
    host: Host,
    data: ConceptData,
    bank: ConceptBank,
    columns: Sequence[Column],
    means: ScaledMeans | None,
    permutations: int | Sequence[VectorSet],
    *,
    seed: int,
    batch_tokens: int,
    progress: bool,
) -> tuple[ScaledMeans | None, tuple[VectorSet, ...]]:
    """Means and permuted-label vectors of some columns, from one train pass or none."""
    if means is None and bank.component_means is not None:
        means = ScaledMeans.of_components(bank.component_means)
    refit = isinstance(permutations, int)
    own = bank.origin.data_hash == data.hash
    average = means is None and own and host.info.block != "pre_norm"
    averaged: MeanPass | None = None
    refitted: PermutedPass | None = None
    if average:
        depths = tuple(depth_of(c.layer, bank.hook_point) for c in columns)
        averaged = MeanPass(host.info, FrozenNorms.of(host, max(depths)), depths)
    if average or refit:
        layout = lay_out(host, data.train.samples, bank.concepts, batch_tokens=batch_tokens)
        if isinstance(permutations, int):
            _check_refit(bank, data, permutations)
            layers = sorted({column.layer for column in columns})
            refitted = PermutedPass(bank, layout, layers, permutations, seed)
        parts = [part for part in (averaged, refitted) if part is not None]
        _walk_train(host, bank, layout, parts, progress)
    draws = permutations if refitted is None else refitted.result()
    assert not isinstance(draws, int)
    return (means if averaged is None else averaged.result()), tuple(draws)


def control_source(
    bank: ConceptBank, data: ConceptData, permutations: int | Sequence[VectorSet] | None
) -> int | tuple[VectorSet, ...]:
    """How many draws to refit, or the sets to use.

    By default `PERMUTATIONS` refits for prototypes and discriminants, whose refits cost no more
    than the train pass; else the one set the bank holds, or none.
    """
    if isinstance(permutations, int):
        return permutations or ()
    if permutations is not None:
        return tuple(permutations)
    if bank.permuted is None:
        return ()
    kind = refit_kind(bank)
    cheap = kind is not None and kind.need in ("means", "gram")
    return PERMUTATIONS if cheap and bank.origin.data_hash == data.hash else (bank.permuted,)


def _check_refit(bank: ConceptBank, data: ConceptData, draws: int) -> None:
    if draws < 1:
        raise ValueError(f"permutations is {draws}: ask for at least one, such as {PERMUTATIONS}.")
    if refit_kind(bank) is None:
        raise ValueError(
            f"a bank of kind {bank.kind!r} is not fitted to labels here, so it has no "
            "permuted-label refits: give permutations=0, or the vector sets of your own null."
        )
    if bank.origin.data_hash != data.hash:
        raise ValueError(
            f"the bank was fitted on data {bank.origin.data_hash[:8]}, not on {data.hash[:8]}: its "
            "labels cannot be permuted here. Give the data it was fitted on, or permutations=None."
        )


def _walk_train(
    host: Host, bank: ConceptBank, layout: Layout, parts: Sequence[TrainPart], progress: bool
) -> None:
    sites = {site for part in parts for site in part.sites} | {*sink_sites(bank.sink_layers)}

    def reducer(batch: Batch) -> Callable[[Mapping[Site, Tensor]], dict[str, Tensor]]:
        def reduce(read: Mapping[Site, Tensor]) -> dict[str, Tensor]:
            keep = kept(read, batch.valid, host.info, bank.sink_layers, bank.origin.sinks)
            out: dict[str, Tensor] = {}
            for k, part in enumerate(parts):
                found = part.reduce(read, keep, batch)
                out |= {f"{k}|{name}": value for name, value in found.items()}
            return out

        return reduce

    walked = walk(
        host, layout, sorted(sites), reducer, description="train terms", progress=progress
    )
    for batch, got in walked:
        for k, part in enumerate(parts):
            own = {n.partition("|")[2]: v for n, v in got.items() if n.startswith(f"{k}|")}
            part.add(batch, own)
