"""Which heads read and write along concepts: called by their weights, checked on data.

For every head and concept two sides are measured: the forms of the head's weights along the
concept's directions, held against the same estimator refitted on labels that mean nothing
(`align_weights`, calls by `align_null`), and what the head does with real tokens (`align_data`).
`RULE` says what "concept-aligned" means: the weights alone, family-wise over all heads and concepts.
Beside every call stands whether the head serves this concept or any, and whether it shows on data;
beside every no how strong a head would have been called (`align_plant`).

What this does not show: alignment is no effect (ablate), and the null is labels without meaning on
both sides. A head that only writes, or only reads, along a concept may pass by chance on the other:
`false_share` counts those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.collect import collect
from sa_plugin.concepts.nulls import StoredRefits, check_kind, exchangeable
from sa_plugin.concepts.train_statistics import RowLimits, TrainStatistics, check_collected
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.align_data import DataPlan, DataSide, data_side, data_sums
from sa_plugin.heads.align_draws import Tested, Weighing, WeightTest, concept_vectors, rounds_of, weighed
from sa_plugin.heads.align_null import is_near
from sa_plugin.heads.align_plant import COSINES
from sa_plugin.heads.align_weights import (
    N_CONTROL,
    HeadBlock,
    Observed,
    describe_blocks,
    observe,
    offsets_seen,
)
from sa_plugin.host.protocol import FINAL_NORM, DescribedHost, Host, require_described
from sa_plugin.passes.layout import PATTERN_BATCH_TOKENS, if_any, lay_out, unknown_notes
from sa_plugin.scores.score import check_origin
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, clean, number, signed
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.drawn import Drawn, Resampling

# Where no detector brings its deltas.
_DELTA = 0.05
_SHOWN_HEADS = 10
_POWER = 0.8
# Share of draws with exchanged concepts that are called: from here on labelled tokens of any concept are.
_ANY_LABEL = 0.5
_NULL_WORDS = {
    "across": "labels permuted across samples",
    "within": "labels shuffled within samples",
    "covariance": "random directions with the tokens' covariance",
    "exchanged": "concepts exchanged among labelled tokens",
}


@dataclass(frozen=True, eq=False, repr=False)
class HeadAlignment(Result):
    """Which heads read and write along concepts, by their weights and on data.

    Attributes:
        concepts: Columns.
        blocks: Block indices, rows of every array `[block, head, concept]`.
        weights: Forms and cosines at the concepts' directions, without the norms' scales.
        nulls: By name: what the calls rest on first.
        data: The data side.
        offsets: How often each offset, query minus key, was seen among kept train tokens.
        settings: Level, draws, seed, splits, counts, and what was chosen beforehand.
        limits: What this architecture's numbers leave out.
    """

    concepts: tuple[str, ...]
    blocks: tuple[int, ...]
    weights: Observed
    nulls: Mapping[str, Tested]
    data: DataSide
    offsets: Mapping[int, int]
    settings: Mapping[str, Any]
    limits: tuple[str, ...]

    about: ClassVar[str] = (
        "Alignment is no effect: ablate to see one. The null of a call is labels without meaning on either "
        "side; a head that is aligned on one side alone is called more often, see the false share. Power is "
        "that for the fitted directions: a concept's own may lie off them."
    )

    @property
    def gamma(self) -> Float64[np.ndarray, "block head concept"]:
        """OV gain, with the norms' mean scales: see `align_weights`."""
        read, write = self.data.scales.T
        return np.asarray(self.weights.ov / (read * write)[:, None, None])

    @property
    def beta(self) -> Float64[np.ndarray, "block head concept"]:
        """QK gain, averaged over offsets, with the norm's mean scale."""
        return np.asarray(self.weights.qk / self.data.scales[:, 0, None, None] ** 2)

    @property
    def beta_profile(self) -> dict[int, Float64[np.ndarray, "block head concept"]]:
        """QK gain at single offsets; empty without rotary embeddings."""
        scale = self.data.scales[:, 0, None, None] ** 2
        return {offset: form / scale for offset, form in self.weights.profile.items()}

    @property
    def tested(self) -> Tested:
        """The null that the calls rest on."""
        return next(iter(self.nulls.values()))

    @property
    def called(self) -> Bool[np.ndarray, "block head concept"]:
        """Concept-aligned by `RULE`."""
        return self.called_by(next(iter(self.nulls)))

    def called_by(self, null: str) -> Bool[np.ndarray, "block head concept"]:
        """Calls of one null.

        Raises:
            ValueError: It was not drawn.
        """
        if null not in self.nulls:
            raise ValueError(f"null {null!r} was not drawn: there are {', '.join(self.nulls)}.")
        return np.asarray(self.nulls[null].p <= self.settings["level"])

    @property
    def near_level(self) -> Bool[np.ndarray, "block head concept"]:
        """Whether other draws might say otherwise: p within two of its standard errors of the level."""
        return is_near(self.tested.p, self.tested.draws, self.settings["level"])

    @property
    def on_data(self) -> Bool[np.ndarray, "block head concept"]:
        """Whether heads show it on real tokens: no part of the call."""
        data, least = self.data, 1 / (1 + N_CONTROL)
        logits = (data.slope.low > 0) & (data.p_control <= least + 1e-12)
        return np.asarray(logits & (data.lift.sel(keys="kept", sign="positive").low > 0))

    def serves(self, head: str, concept: str) -> str:
        """Whether a head serves this concept or any: "this concept", "any label" or "cannot tell".

        Args:
            head: Such as "L8H7".
            concept: Its name.

        Raises:
            ValueError: An unknown head or concept.
        """
        cells = {self._head(at): at for at in np.ndindex(self.called.shape[:2])}
        require_known("head", head, tuple(cells))
        require_known("concept", concept, self.concepts)
        return self._serves((*cells[head], self.concepts.index(concept)))

    def _serves(self, at: tuple[int, ...]) -> str:
        one = self.nulls.get("exchanged")
        # NaN, a concept that cannot be exchanged, is neither.
        if one is not None and one.p[at] <= self.settings["level"]:
            return "this concept"
        return "any label" if one is not None and one.share_called[at] >= _ANY_LABEL else "cannot tell"

    @property
    def layers_with_one(self) -> int:
        """Blocks that have an aligned head, of any concept, family-wise over blocks."""
        return int((self.tested.block_p_adjusted <= self.settings["level"]).sum())

    @property
    def one_in_each_layer(self) -> bool:
        """The paper's assumption: every block alone shows one, which needs no correction.

        Not where draws ended early, with no cell near a call: only all that were planned keep the level.
        """
        all_made = self.tested.draws == self.settings["draws"] * self.settings["refine"]
        return bool(all_made and (self.tested.block_p <= self.settings["level"]).all())

    @property
    def layers_by_concept(self) -> dict[str, int]:
        """Blocks with a called head, for each concept."""
        found = self.called.any(1).sum(0)
        return dict(zip(self.concepts, found.tolist(), strict=True))

    def cosine_at(self, power: float = _POWER, concept: str | None = None) -> float:
        """Smallest cosine by which this share of planted heads is called; NaN if none tried is.

        Args:
            power: Share of heads.
            concept: Only planted for this one; by default for all in turn.

        Raises:
            ValueError: A power that is no share, or an unknown concept.
        """
        if not 0 < power <= 1:
            raise ValueError(
                f"power is {power}: a share of planted heads between 0 and 1 is meant, such as 0.8."
            )
        if concept is not None:
            require_known("concept", concept, self.concepts)
        columns = [c for c, name in enumerate(self.concepts) if concept in (None, name)]
        # Where no cosine tried is called there is none to sort: those come last.
        smallest = np.sort(self.tested.planted[..., columns], axis=None)
        return float(smallest[int(np.ceil(power * smallest.size)) - 1])

    def shared_heads(self, least: int = 2) -> list[tuple[str, tuple[str, ...]]]:
        """Heads aligned with several concepts, the most first.

        Args:
            least: Concepts at least.
        """
        heads = [
            (f"L{self.blocks[k]}H{h}", tuple(np.array(self.concepts)[serves].tolist()))
            for k, of_block in enumerate(self.called)
            for h, serves in enumerate(of_block)
            if serves.sum() >= least
        ]
        return sorted(heads, key=lambda one: -len(one[1]))

    def numbers(self) -> dict[str, Drawn]:
        """Every measure over blocks, heads and concepts; those of the weights have no interval."""
        data, weights = self.data, self.weights
        exact = {
            "called": self.called,
            "on_data": self.on_data,
            "false_share": self.tested.false_share,
            "planted_cosine": self.tested.planted,
            **{f"p_{name}": null.p for name, null in self.nulls.items()},
            **{f"z_ov_{name}": null.z_ov for name, null in self.nulls.items()},
            **{f"z_qk_{name}": null.z_qk for name, null in self.nulls.items()},
            "gamma": self.gamma,
            "ov_cosine": weights.ov_cosine,
            "beta": self.beta,
            "qk_cosine": weights.qk_cosine,
            "correlation": data.correlation,
            "partial_r2": data.correlation**2,
            "p_control": data.p_control,
        }
        axes = data.slope.axes
        found = {
            name: Drawn(array[..., None].astype(np.float64), axes, "none", np.zeros(0))
            for name, array in exact.items()
        }
        return found | {"slope": data.slope, "lift": data.lift, "write_share": data.write_share}

    def to_dict(self) -> dict[str, Any]:
        """Both sides, and what the rule makes of them."""
        made = ("gamma", "beta", "called", "on_data", "one_in_each_layer")
        return super().to_dict() | {name: clean(getattr(self, name)) for name in made}

    def headline(self) -> str:
        """How many cells are called, and in how many blocks."""
        return (
            f"{len(self.concepts)} concepts x {self.called[..., 0].size} heads: {int(self.called.sum())} "
            f"called concept-aligned (family-wise {self.settings['level']:g}); at least one in "
            f"{self.layers_with_one} of {len(self.blocks)} blocks"
        )

    def sheets(self, n: int = _SHOWN_HEADS) -> tuple[Sheet, ...]:
        """Calls and power by concept, and the head of the list, called or not.

        Args:
            n: Heads shown.
        """
        return self._by_concept(n), self._ranked(n)

    def _by_concept(self, n: int) -> Sheet:
        tested = self.tested
        others = [f"by {name}" for name in list(self.nulls)[1:]]
        header = ["concept", "called", *others, "on data", "blocks", "largest T", "p"]
        by_null = [self.called_by(name) for name in self.nulls]
        lines = [
            [
                concept,
                *(str(int(calls[..., c].sum())) for calls in (*by_null, self.on_data)),
                f"{self.layers_by_concept[concept]} of {len(self.blocks)}",
                number(tested.z[..., c].max()),
                number(tested.p[..., c].min()),
                self._cosine_words(concept),
            ]
            for c, concept in enumerate(self.concepts)
        ]
        shared = [f"{head} ({len(serves)})" for head, serves in self.shared_heads()[:n]]
        notes = [*self._null_words(), *self.limits, *unknown_notes(self.settings)]
        if shared:
            notes.insert(1, f"Heads called for several concepts: {'; '.join(shared)}.")
        return Sheet([*header, f"cosine at {_POWER:g}"], lines, f"{self.headline()}.", notes)

    def _cosine_words(self, concept: str | None, power: float = _POWER) -> str:
        cosine = self.cosine_at(power, concept)
        return f"over {COSINES[-1]:g}" if np.isnan(cosine) else f"{cosine:.2f}"

    def _null_words(self) -> list[str]:
        s, one = self.settings, self.tested
        found = one.any_call
        exchanged = sorted(set(self.concepts) - set(s["exchanged"]))
        notes = [
            f"{one.p.size:,} cells, {one.draws:,} draws; T, the smaller z of both sides, has "
            f"to exceed {one.critical:.2f}. Any call in {number(found['held out'])} of held-out refits; in "
            f"{number(found['write as found'])} if every write stayed as found and reads were drawn, "
            f"{number(found['read as found'])} the other way about.",
            f"Power: a head planted with both cosines at c is called in {_POWER:.0%} of heads x concepts "
            f"from c = {self._cosine_words(None)} on, in half from {self._cosine_words(None, 0.5)} on.",
            f"A head in each block, one test a block: the largest p is {one.block_p.max():.2g}, which "
            f"{'shows it' if self.one_in_each_layer else 'does not show it'}.",
        ]
        if self.near_level.any():
            cells = [tuple(map(int, at)) for at in np.argwhere(self.near_level)]
            named = [f"{self._head(at)} {self.concepts[at[2]]} ({number(one.p[at])})" for at in cells]
            notes.append(
                f"So near the level that other draws might say otherwise (two standard errors of "
                f"{one.draws:,} draws): {'; '.join(named)}. More settle them: WeightTest(draws, refine)."
            )
        if "exchanged" in self.nulls and exchanged:
            notes.append(f"Labels that cannot be exchanged with those of others: {', '.join(exchanged)}.")
        return notes

    def _ranked(self, n: int) -> Sheet:
        one, data = self.tested, self.data
        header = ["head", "called", "T write", "T read", "p", "false share", "serves", "on data"]
        called, on_data = self.called, self.on_data
        cells = list(zip(*np.unravel_index(np.argsort(-one.z, axis=None)[:n], one.z.shape), strict=True))
        lines = [
            [
                f"{self._head(at)} {self.concepts[at[2]]}",
                "yes" if called[at] else "no",
                signed(one.z_ov[at], 2),
                signed(one.z_qk[at], 2),
                number(one.p[at]),
                number(one.false_share[at]),
                self._serves(at) if called[at] else "-",
                "yes" if on_data[at] else "no",
                signed(self.gamma[at]),
                signed(self.weights.ov_cosine[at], 2),
                signed(self.weights.qk_cosine[at], 2),
                number(data.correlation[at] ** 2),
            ]
            for at in (tuple(map(int, cell)) for cell in cells)
        ]
        title = "Largest T first; the false share is of all cells down to there."
        return Sheet([*header, "gamma", "OV cos", "QK cos", "partial R2"], lines, title)

    def _head(self, at: tuple[int, ...]) -> str:
        return f"L{self.blocks[at[0]]}H{at[1]}"

    def plot(self, concept: str | None = None) -> Any:
        """The map of the heads, and their writing (OV) against their reading (QK).

        Filled dots are called and show on data, rings are called by their weights alone.

        Args:
            concept: Only this one; by default all, the largest T of each head on the map.

        Raises:
            ValueError: Unknown concept.
        """
        if concept is not None:
            require_known("concept", concept, self.concepts)
        columns = [c for c, name in enumerate(self.concepts) if concept in (None, name)]
        one, called, on_data = self.tested, self.called[..., columns], self.on_data[..., columns]
        n_heads = called.shape[1]
        figure, (left, right) = plots.new_figure(10.5, max(3.4, 0.14 * n_heads + 1.2), columns=2)
        shade = one.z[..., columns].max(-1)
        plots.heat(left, shade.T, range(n_heads), self.blocks, scale="T")
        plots.words(left, title="T, the smaller z of writing and reading", x="block", y="head")
        cells = np.stack([one.z_ov[..., columns], one.z_qk[..., columns]])
        right.scatter(*cells[:, ~called], s=5, color=plots.OUT_COLOUR, lw=0, label="not called")
        for where, fill, label in (
            (called & ~on_data, "none", "called"),
            (called & on_data, plots.TAIL_COLOUR, "called, and shows on data"),
        ):
            dots = {"s": 16, "facecolors": fill, "edgecolors": plots.TEXT_COLOUR, "linewidths": 0.8}
            right.scatter(*cells[:, where], label=label, **dots)
            filled = {"facecolors": plots.TEXT_COLOUR} if fill != "none" else {}
            left.scatter(*np.nonzero(where.any(-1)), **dots | filled)
        for upright in (True, False):
            plots.zero(right, upright=upright, at=one.critical)
        title = concept or f"{len(self.concepts)} concepts"
        plots.words(right, title=title, x="z, writes along it (OV)", y="z, reads it (QK)")
        plots.legend(right)
        plots.note(
            figure,
            f"Null: {_NULL_WORDS[next(iter(self.nulls))]}; called where both z exceed the lines (family-wise "
            f"{self.settings['level']:g}). A planted head is found at cosine {self._cosine_words(concept)} "
            f"with power {_POWER:g}. Alignment is no effect: ablate to see one.",
        )
        return figure


@face
def head_alignment(
    host: Host,
    data: ConceptData,
    source: Detector | ConceptBank,
    *,
    statistics: TrainStatistics | None = None,
    concepts: Sequence[str] | None = None,
    split: str = "cal",
    delta: float | Mapping[str, float] | None = None,
    test: WeightTest = WeightTest(),
    resampling: Resampling = Resampling(),
) -> HeadAlignment:
    """Which heads read and write along concepts, by their weights and on data.

    Costs one forward pass a sample of the split, one a train sample if no statistics are given,
    and `test.draws` refits of the estimator for each null, concept and layer, `test.refine` times as many
    for the first null where a call is near: one product with the train rows for prototype and lda, an
    iterative fit for separators, some 7 ms for 27,000 rows of width 576. Memory: 16 bytes
    a draw, head and concept.

    Args:
        host: An attached model that hands out its weights
            (`sa_plugin.host.protocol.DescribedHost`).
        data: Labelled samples.
        source: A bank of a supervised kind at `resid_post`, or the detector on it. Heads of a block
            need vectors at its output and at the output of the block before.
        statistics: The train pass the bank was fitted from, with `need=("means", "gram", "rows")`.
        concepts: Only these; all by default.
        split: Where the data side is measured. By default calibration, so that heads chosen here
            can be ablated on test.
        delta: Share of a sample's tokens that is its top, or one for each concept; by default the
            detector's, else 0.05.
        test: Nulls and level of the calls.
        resampling: Of documents, for the data side's intervals; its seed is that of the nulls too.

    Returns:
        Forms, gains, calls by `RULE` with what would have been called, and the data side.

    Raises:
        TypeError: The host does not hand out its weights, or an argument is of another type.
        ValueError: A bank of another model, at another hook point, of a kind that cannot be
            refitted, or not the one the statistics give; statistics without every row; no two
            neighbouring layers; too few draws for the level; labels that no permutation changes;
            unknown names.

    Source: the assumption of aligned heads of arXiv 2512.05038; estimators and null are ours.

    Example:
        >>> found = head_alignment(host, data, bank)  # doctest: +SKIP
        >>> found.layers_with_one, found.shared_heads()  # doctest: +SKIP
    """
    described = require_described(host)
    bank = source if isinstance(source, ConceptBank) else source.bank
    _check_bank(bank, host)
    check_kind(bank)
    names = _names(bank, concepts)
    _check_options(bank, test, split)
    statistics = statistics or _collect(host, data, bank)
    check_collected(statistics, host, data)
    refit = StoredRefits(bank, [bank.unit(name) for name in names], statistics)
    offsets = offsets_seen(statistics.tokens, causal=host.info.causal)
    blocks = describe_blocks(described, bank.layers, offsets)
    vectors = concept_vectors(refit, sorted({end for b in blocks for end in (b.source, b.index)}))
    observed = observe(blocks, vectors, offsets)
    weighing = Weighing(blocks, refit, vectors, observed, test.level, not host.progress)
    control: dict[int, Tensor] = {}
    drawable = exchangeable(refit, resampling.seed)
    nulls = weighed(weighing, test, resampling.seed, drawable, control)
    deltas = _deltas(source, names, delta)
    plan = DataPlan.of(described, bank, blocks, vectors, control, deltas)
    samples = data.split(split).samples
    measured = _measured(plan, samples, names, resampling)
    settings = {
        "level": test.level,
        "draws": test.draws,
        "refine": rounds_of(test, bank.kind),
        "exchanged": tuple(name for name, can in zip(names, drawable, strict=True) if can),
        "signs": (1, 1),
        "seed": resampling.seed,
        "split": split,
        "n_samples": len(samples),
        "n_tokens": measured.n_tokens,
        "delta": dict(zip(names, deltas.tolist(), strict=True)),
        "n_control": N_CONTROL,
        "kind": bank.kind,
        "model": host.info.model,
        "data_hash": data.hash,
        **if_any(unknown=statistics.tokens.unknown),
    }
    limits = _limits(described, blocks, measured.underflow)
    indices = tuple(b.index for b in blocks)
    return HeadAlignment(names, indices, observed, nulls, measured, offsets, settings, limits)


def _measured(
    plan: DataPlan, samples: Sequence[Sample], concepts: tuple[str, ...], resampling: Resampling
) -> DataSide:
    layout = lay_out(plan.host, samples, (), at_most=PATTERN_BATCH_TOKENS)
    documents = np.array([sample.document for sample in samples])
    resamples = resample_documents(documents, resampling)
    blocks = tuple(block.index for block in plan.blocks)
    return data_side(*data_sums(plan, layout), resamples, N_CONTROL, blocks, concepts)


def _limits(host: DescribedHost, blocks: Sequence[HeadBlock], underflow: float) -> tuple[str, ...]:
    """What this architecture's numbers leave out, in words."""
    attention = [b.attention for b in blocks]
    found = []
    if any(b.source == b.index for b in blocks):
        found.append("Block 0 has no block before it: its input direction is that of its own output.")
    if any(one.rotary for one in attention):
        found.append(
            "Rotary embeddings: beta is averaged over the offsets seen between kept tokens, each "
            "pair counting once; a head that looks at one distance only has a small average."
        )
    if any(one.query_key_norm for one in attention):
        found.append(
            "Queries and keys pass norms of their own: beta is right up to a positive scale for "
            "each token, so read its sign and its p, not its size."
        )
    if any(one.softcap for one in attention):
        found.append("Logits are soft-capped: beta is their slope at zero.")
    if any(bias is not None for one in attention for bias in (one.query.bias, one.key.bias)):
        found.append("Query and key biases add terms linear in one token's activation: left out.")
    if host.info.block != "pre_norm":
        found.append(
            f"{host.info.block} block: gains use the mean scale of the norms behind attention; "
            "shares of the update need not add up."
        )
    if underflow > 0:
        found.append(f"{underflow:.1e} of the attention probabilities underflowed.")
    return tuple(found)


def _check_bank(bank: ConceptBank, host: Host) -> None:
    check_origin(bank, host)
    if bank.hook_point != "resid_post":
        raise ValueError(
            f"the bank lives at {bank.hook_point!r}: heads read and write the residual stream, "
            "fit with hook_point='resid_post'."
        )
    last = host.info.n_layers - 1
    if FINAL_NORM in host.info.processing and last in bank.layers:
        raise NotImplementedError(
            f"{host.info.model} is attached with final_norm=True: vectors of block {last} live "
            "behind the final norm, its heads write before it. Fit without final_norm, or leave "
            "that block out."
        )


def _check_options(bank: ConceptBank, test: WeightTest, split: str) -> None:
    require_known("split", split, ("cal", "test"))
    if "covariance" in test.nulls and bank.kind != "prototype":
        raise ValueError(
            f"null 'covariance' draws random directions, which is no null for kind {bank.kind!r}: "
            "permuted-label vectors pass it too often. Use 'across'."
        )


def _names(bank: ConceptBank, concepts: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(bank.concepts if concepts is None else concepts)
    if not names:
        raise ValueError("concepts is empty: name at least one, or None for all.")
    for name in names:
        bank.unit(name)
    return names


def _collect(host: Host, data: ConceptData, bank: ConceptBank) -> TrainStatistics:
    options: Mapping[str, Any] = bank.origin.options
    return collect(
        host,
        data,
        layers=bank.layers,
        need=("means", "gram", "rows"),
        seed=bank.origin.seed,
        sinks=bank.origin.sinks,
        normaliser=options.get("normaliser", "rms"),
        limits=RowLimits(per_class=10**9),
    )


def _deltas(
    source: Detector | ConceptBank, names: Sequence[str], delta: float | Mapping[str, float] | None
) -> Float[Tensor, " concept"]:
    if delta is None:
        delta = _DELTA if isinstance(source, ConceptBank) else source.delta
    by_name = delta if isinstance(delta, Mapping) else dict.fromkeys(names, delta)
    for name in names:
        if not 0 < by_name.get(name, 0.0) < 1:
            raise ValueError(
                f"delta of {name!r} is {by_name.get(name)}: give a share of tokens between 0 and 1."
            )
    return torch.tensor([float(by_name[name]) for name in names], dtype=torch.float64)
