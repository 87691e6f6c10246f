"""From one train pass to concept vectors at every layer, with their controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import require_known
from sa_plugin._face import held_options, passing
from sa_plugin.concepts.bank import HOOK_POINTS, ConceptBank, Origin, VectorSet
from sa_plugin.concepts.collect import collect
from sa_plugin.concepts.kinds import Kind, kind_of
from sa_plugin.concepts.train_statistics import LayerStatistics, TrainStatistics, check_collected
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.host.protocol import Host, layers_of

# The paper's number of clusters for pooled samples; fewer where there are few samples.
POOLED_CLUSTERS = 50


@passing(collect)
def fit(
    host: Host,
    data: ConceptData,
    kind: str = "separator",
    *,
    layers: int | Sequence[int] | None = None,
    hook_point: str = "resid_post",
    statistics: TrainStatistics | None = None,
    controls: bool = True,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    **pass_options: Any,
) -> ConceptBank:
    """Fit concept vectors on the train split.

    Costs one forward pass a train sample, or none when `statistics` are given.

    Args:
        host: An attached model.
        data: Labelled samples.
        kind: "prototype", "separator", "lda", "separator_adam", "kmeans" or "kmeans_separator".
        layers: Block indices, negative ones from the end; all by default.
        hook_point: Where activations are read.
        statistics: Of an earlier `collect`, to fit several kinds from one pass.
        controls: Also fit on permuted labels, on mean-pooled samples and on class tokens, for the
            baselines.
        seed: Of the fit, and of the pass when it is run here.
        options: For the kind's own function, e.g. `{"k": 100}` or `{"lam": 1e-3}`.
        **pass_options: For `collect`.

    Returns:
        A vector for every concept (or unit) at every layer.

    Raises:
        ValueError: Unknown kind, layer or hook point; a concept without train tokens; statistics
            of other data, another model, or without what the kind needs.
    """
    chosen = kind_of(kind)
    options = held_options(f"fit: options of {kind!r}", options or {}, [chosen.fit], own=("seed",))
    require_known("hook_point", hook_point, HOOK_POINTS)
    blocks = layers_of(host.info, layers if layers is not None or not statistics else statistics.layers)
    if statistics is None:
        statistics = collect(
            host,
            data,
            layers=blocks,
            hook_point=hook_point,
            need=("means", chosen.need),
            seed=seed,
            **pass_options,
        )
    _check_statistics(statistics, host, data, kind, chosen, blocks)
    record: dict[str, Any] = {**statistics.settings, **options}
    sets: dict[str, VectorSet] = {}
    parts = {"token": statistics.token}
    if controls:
        parts |= {"pooled": statistics.pooled}
        parts |= {"cls": statistics.cls} if statistics.cls else {}
        parts |= {"permuted": statistics.permuted} if chosen.supervised else {}
    for name, by_layer in parts.items():
        chosen_layers = [by_layer[statistics.layers.index(b)] for b in blocks]
        extra = dict(options)
        if name in ("pooled", "cls") and not chosen.supervised:
            extra["k"] = max(2, min(POOLED_CLUSTERS, statistics.pooled[0].n // 4))
        sets[name], record[f"{name}_fit"] = _fit_layers(
            chosen, chosen_layers, blocks, data.concepts, f"{kind} {name}", seed, extra, not host.progress
        )
    units = data.concepts
    if not chosen.supervised:
        units = tuple(f"cluster {k}" for k in range(sets["token"].vectors.shape[1]))
    origin = Origin.on(
        host.info,
        statistics.tokens,
        data_hash=data.hash,
        sinks=statistics.settings["sinks"],
        sink_layers=statistics.layers,
        seed=seed,
        options=record,
    )
    return ConceptBank(
        data.concepts,
        units,
        blocks,
        statistics.hook_point,
        kind,
        sets["token"],
        sets.get("permuted"),
        sets.get("pooled"),
        statistics.component_means,
        origin,
        sets.get("cls"),
    )


def _fit_layers(
    kind: Kind,
    statistics: Sequence[LayerStatistics],
    blocks: Sequence[int],
    concepts: Sequence[str],
    description: str,
    seed: int,
    options: Mapping[str, Any],
    quiet: bool,
) -> tuple[VectorSet, list[Mapping[str, Any]]]:
    vectors: list[Float[Tensor, "unit d_model"]] = []
    records = []
    bar = tqdm(statistics, desc=f"fit {description}", disable=quiet, leave=False)
    for block, one in zip(blocks, bar, strict=True):
        _check_concepts(one, concepts, block, description, kind.supervised)
        fitted, record = kind.fit(one, seed=seed, **options)
        if not torch.isfinite(fitted).all():
            raise ValueError(f"{description} at block {block} gave NaN or Inf vectors.")
        vectors.append(fitted.float().cpu())
        records.append(record)
    mean = torch.stack([one.mean.float() for one in statistics])
    scale = torch.tensor([one.scale for one in statistics], dtype=torch.float32)
    stacked = torch.stack(vectors)
    return VectorSet(stacked, mean, scale, kind.scoring), records


def _check_concepts(
    one: LayerStatistics, concepts: Sequence[str], block: int, description: str, supervised: bool
) -> None:
    unknown = torch.zeros_like(one.positive_count) if one.unknown_count is None else one.unknown_count
    counts = zip(one.positive_count.tolist(), one.negative_count.tolist(), unknown.tolist(), strict=True)
    for concept, (inside, outside, doubtful) in zip(concepts, counts, strict=True):
        if (inside and outside) or (doubtful and not supervised):
            continue
        what = "no positive" if not inside else "nothing but positive"
        fix = "Label more samples or leave the concept out."
        if doubtful:
            what = "no positive" if not inside else "no negative"
            fix = (
                f"The labels of {doubtful:,} train tokens are unknown, since their samples have the concept "
                "and no labelled token: label words (from_words, from_spans), or say token_labels='text' "
                "(from_texts, load, run --token-labels text), which calls every token of a positive text "
                "positive. Kind 'kmeans' and vectors of your own (ConceptBank.from_vectors) need no labelled "
                "token, but SuperActivators then have no threshold: only the baselines are calibrated."
            )
        raise ValueError(
            f"concept {concept!r} has {what} train rows for {description} at block {block}: both classes "
            f"are needed. {fix}"
        )


def _check_statistics(
    statistics: TrainStatistics, host: Host, data: ConceptData, name: str, kind: Kind, blocks: Sequence[int]
) -> None:
    check_collected(statistics, host, data)
    missing = sorted(set(blocks) - set(statistics.layers))
    if missing:
        raise ValueError(f"the statistics lack layers {missing}: they hold {statistics.layers}.")
    need: Any = statistics.settings["need"]
    if kind.need != "means" and kind.need not in need:
        raise ValueError(
            f"kind {name!r} needs {kind.need!r}, the statistics hold {need}: collect(..., "
            f"need=('means', {kind.need!r}))."
        )
