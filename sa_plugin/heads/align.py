"""Which heads read and write along concepts: called by their weights, checked on data.

For every head and concept two sides are measured: the forms of the head's weights along the
concept's directions, held against the same estimator refitted on labels that mean nothing
(`align_weights`, p-values by `align_null`), and what the head does with real tokens (`align_data`).
`RULE` says how the two become one word, "concept-aligned"; its error control is that of the weights
alone, by BH or BY (`align_null`).

What this does not show: no correction bounds the share of false calls in a selection from the calls.
Alignment is no effect (ablate), and its null is labels without meaning: a head that serves every
real concept is called for every concept.
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
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.concepts.nulls import NULLS, StoredRefits, check_kind
from sa_plugin.concepts.train_statistics import RowLimits, TrainStatistics, check_collected
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.align_data import DataPlan, DataSide, data_side, data_sums
from sa_plugin.heads.align_null import CORRECTIONS, TAILS, adjusted, call, check_draws
from sa_plugin.heads.align_weights import (
    HeadBlock,
    Observed,
    Tested,
    concept_vectors,
    describe_blocks,
    observe,
    offsets_seen,
    weigh,
)
from sa_plugin.host.protocol import FINAL_NORM, DescribedHost, Host, require_described
from sa_plugin.passes.layout import PATTERN_BATCH_TOKENS, if_any, lay_out, unknown_notes
from sa_plugin.scores.score import check_origin
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, clean, number, signed
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.drawn import Drawn, Resampling

RULE = (
    "A head is concept-aligned if all three hold. (1) Weights: p = max(p of OV, p of QK) against "
    "labels permuted across samples is called at level q over all heads x concepts. (2) Logits: "
    "the slope on the product of two tokens' activations has an interval above zero, and its "
    "partial correlation exceeds that of every permuted-label direction. (3) Attention of "
    "positive queries on the top tokens, sinks left out, has an interval above chance. The bound "
    "q on false calls is that of (1); (2) and (3) only take calls away."
)


# Where no detector brings its deltas; permuted-label directions of the data side; refits of a null,
# fewer where each is an iterative fit.
_DELTA, _N_CONTROL, _REFITS, _SEPARATOR_REFITS = 0.05, 19, 400, 100
_SHOWN_HEADS = 10
_NULL_WORDS = {
    "across": "labels permuted across samples",
    "within": "labels shuffled within samples",
    "covariance": "random directions with the tokens' covariance",
}


@face
@dataclass(frozen=True)
class WeightTest:
    """How heads are called by their weights.

    Attributes:
        nulls: What the weights are held against, see `sa_plugin.concepts.nulls`; calls rest on the first.
        refits: Of each null; by default 400, and 100 for separators.
        tail: "exponential" or "empirical", see `align_null`.
        q: Level: bound on the expected share of false calls.
        correction: "BH" or "BY", over all heads x concepts.

    Raises:
        ValueError: A name is unknown, or q no share.
    """

    nulls: Sequence[str] = ("across", "within")
    refits: int | None = None
    tail: str = "exponential"
    q: float = 0.05
    correction: str = "BH"

    def __post_init__(self) -> None:
        require_known("correction", self.correction, CORRECTIONS)
        require_known("tail", self.tail, TAILS)
        call(np.zeros(0), self.q)
        if not self.nulls:
            raise ValueError("nulls is empty: name 'across' at least.")
        for null in self.nulls:
            require_known("null", null, NULLS)


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
        settings: Level, correction, refits, draws, seed, splits, counts, and what was chosen
            beforehand.
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
        "Alignment is no effect: ablate to see one. The null is labels without meaning: a head that serves "
        "every real concept is called for every concept. No bound on false calls holds in a selection from "
        "the calls."
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
    def p_adjusted(self) -> Float64[np.ndarray, "block head concept"]:
        """Smallest level at which the weights of each head would be called."""
        return adjusted(self.tested.p, self.settings["correction"])

    @property
    def called(self) -> Bool[np.ndarray, "block head concept"]:
        """Part (1) of the rule."""
        return self.called_by(next(iter(self.nulls)))

    def called_by(self, null: str) -> Bool[np.ndarray, "block head concept"]:
        """Calls of one null.

        Raises:
            ValueError: It was not drawn.
        """
        if null not in self.nulls:
            raise ValueError(f"null {null!r} was not drawn: there are {', '.join(self.nulls)}.")
        return call(self.nulls[null].p, self.settings["q"], self.settings["correction"])

    @property
    def on_data(self) -> Bool[np.ndarray, "block head concept"]:
        """Parts (2) and (3) of the rule."""
        data, least = self.data, 1 / (1 + self.settings["n_control"])
        logits = (data.slope.low > 0) & (data.p_control <= least + 1e-12)
        return np.asarray(logits & (data.lift.sel(keys="kept", sign="positive").low > 0))

    @property
    def aligned(self) -> Bool[np.ndarray, "block head concept"]:
        """Concept-aligned by `RULE`."""
        return np.asarray(self.called & self.on_data)

    @property
    def layers_with_one(self) -> int:
        """Blocks with at least one aligned head, of any concept: the paper's assumption."""
        return int(self.aligned.any((1, 2)).sum())

    @property
    def layers_by_concept(self) -> dict[str, int]:
        """The same for each concept."""
        found = self.aligned.any(1).sum(0)
        return dict(zip(self.concepts, found.tolist(), strict=True))

    def shared_heads(self, least: int = 2) -> list[tuple[str, tuple[str, ...]]]:
        """Heads aligned with several concepts, the most first.

        Args:
            least: Concepts at least.
        """
        heads = [
            (f"L{self.blocks[k]}H{h}", tuple(np.array(self.concepts)[serves].tolist()))
            for k, of_block in enumerate(self.aligned)
            for h, serves in enumerate(of_block)
            if serves.sum() >= least
        ]
        return sorted(heads, key=lambda one: -len(one[1]))

    def numbers(self) -> dict[str, Drawn]:
        """Every measure over blocks, heads and concepts; those without draws have no interval."""
        data, weights = self.data, self.weights
        exact = {
            "aligned": self.aligned,
            "called": self.called,
            "on_data": self.on_data,
            "p": self.tested.p,
            "p_adjusted": self.p_adjusted,
            **{f"p_ov_{name}": null.p_ov for name, null in self.nulls.items()},
            **{f"p_qk_{name}": null.p_qk for name, null in self.nulls.items()},
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
        made = ("gamma", "beta", "p_adjusted", "called", "on_data", "aligned")
        return super().to_dict() | {name: clean(getattr(self, name)) for name in made}

    def headline(self) -> str:
        """How many heads are called and how many aligned."""
        s, aligned = self.settings, self.aligned
        return (
            f"{len(self.concepts)} concepts x {aligned[..., 0].size} heads: "
            f"{int(self.called.sum())} called by weights ({s['correction']}, q = {s['q']:g}), "
            f"{int(aligned.sum())} concept-aligned; at least one in {self.layers_with_one} of "
            f"{len(self.blocks)} blocks"
        )

    def sheets(self, n: int = _SHOWN_HEADS) -> tuple[Sheet, ...]:
        """Counts, how the null held, and the strongest aligned heads.

        Args:
            n: Heads shown.
        """
        header = ["concept", *(f"called {name}" for name in self.nulls), "on data", "aligned"]
        by_null = [self.called_by(name) for name in self.nulls]
        lines = [
            [
                concept,
                *(str(int(calls[..., c].sum())) for calls in (*by_null, self.on_data, self.aligned)),
                f"{self.layers_by_concept[concept]} of {len(self.blocks)}",
            ]
            for c, concept in enumerate(self.concepts)
        ]
        shared = [f"{head} ({len(serves)})" for head, serves in self.shared_heads()[:n]]
        notes = [self._null_words(), *self.limits, *unknown_notes(self.settings)]
        if shared:
            notes.insert(1, f"Heads aligned with several concepts: {'; '.join(shared)}.")
        counts = Sheet([*header, "blocks with one"], lines, f"{self.headline()}.", notes)
        return (counts, self._strongest(n)) if self.aligned.any() else (counts,)

    def _null_words(self) -> str:
        words = [
            f"{name}: " + ", ".join(f"{share:.2g} at {level}" for level, share in null.calibration.items())
            for name, null in self.nulls.items()
            if null.calibration
        ]
        return (
            f"{self.tested.p.size:,} tests, {self.settings['refits']} refits of each null. Share of "
            f"held-out refits below each level ({'; '.join(words)}): at most the level is right."
        )

    def _strongest(self, n: int) -> Sheet:
        data, p = self.data, self.tested.p
        cells = [tuple(map(int, at)) for at in np.argwhere(self.aligned)]
        header = ["aligned", "p", "gamma", "OV cos", "beta", "slope", "partial R2", "lift", "share"]
        lift = data.lift.sel(keys="kept", sign="positive").estimate
        lines = [
            [
                f"{self._head(at)} {self.concepts[at[2]]}",
                f"{p[at]:.1e}",
                signed(self.gamma[at]),
                signed(self.weights.ov_cosine[at], 2),
                f"{self.beta[at]:+.1e}",
                signed(data.slope.estimate[at]),
                number(data.correlation[at] ** 2),
                signed(lift[at]),
                signed(data.write_share.estimate[at]),
            ]
            for at in sorted(cells, key=lambda cell: float(p[cell]))[:n]
        ]
        return Sheet(header, lines, "Concept-aligned heads, smallest p first.")

    def _head(self, at: tuple[int, ...]) -> str:
        return f"L{self.blocks[at[0]]}H{at[1]}"

    def plot(self, concept: str | None = None) -> Any:
        """The map of the heads, and their writing (OV) against their reading (QK).

        Filled dots are concept-aligned heads, rings those called by their weights alone.

        Args:
            concept: Only this one; by default all, counted on the map.

        Raises:
            ValueError: Unknown concept.
        """
        if concept is not None:
            require_known("concept", concept, self.concepts)
        columns = [c for c, name in enumerate(self.concepts) if concept in (None, name)]
        called, aligned = self.called[..., columns], self.aligned[..., columns]
        p_ov, p_qk = self.tested.p_ov[..., columns], self.tested.p_qk[..., columns]
        n_heads = aligned.shape[1]
        figure, (left, right) = plots.new_figure(10.5, max(3.4, 0.14 * n_heads + 1.2), columns=2)
        shade = aligned.sum(-1) if concept is None else -np.log10(np.maximum(p_ov, p_qk)[..., 0])
        plots.heat(left, shade.T.astype(np.float64), range(n_heads), self.blocks)
        what = "concepts aligned" if concept is None else "-log10 p of the weights"
        plots.words(left, title=f"shade: {what}", x="block", y="head")
        if not shade.any():
            centre = {"x": 0.5, "y": 0.5, "ha": "center", "transform": left.transAxes, "fontsize": 9}
            left.text(s="no head is concept-aligned", **centre)
        cells = np.stack([-np.log10(p_ov), -np.log10(p_qk)])
        rest = ~called
        right.scatter(*cells[:, rest], s=5, color=plots.OUT_COLOUR, lw=0, label="not called")
        for where, fill, label in (
            (called & ~aligned, "none", "called by weights alone"),
            (aligned, plots.TAIL_COLOUR, "concept-aligned"),
        ):
            dots = {"s": 16, "facecolors": fill, "edgecolors": plots.TEXT_COLOUR, "linewidths": 0.8}
            right.scatter(*cells[:, where], label=label, **dots)
            filled = {"facecolors": plots.TEXT_COLOUR} if fill != "none" else {}
            left.scatter(*np.nonzero(where.any(-1)), **dots | filled)
        largest = self.tested.p[self.called].max() if self.called.any() else None
        if largest is not None:
            # A head passes where both p-values lie below the largest that was called.
            for upright in (True, False):
                plots.zero(right, upright=upright, at=float(-np.log10(largest)))
        title = concept or f"{len(self.concepts)} concepts"
        plots.words(right, title=title, x="-log10 p, writes along it (OV)", y="-log10 p, reads it (QK)")
        plots.legend(right)
        s = self.settings
        plots.note(
            figure,
            f"Null: {_NULL_WORDS[next(iter(self.nulls))]}; calls: {s['correction']} at q = {s['q']:g} over "
            "all heads and concepts. Alignment is no effect: ablate to see one.",
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
    and `test.refits` refits of the estimator for each null, concept and layer: one product with the
    train rows for prototype and lda, an iterative fit for separators.

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
        Forms, gains, p-values, the data side, and calls by `RULE`.

    Raises:
        TypeError: The host does not hand out its weights, or an argument is of another type.
        ValueError: A bank of another model, at another hook point, of a kind that cannot be
            refitted, or not the one the statistics give; statistics without every row; no two
            neighbouring layers; too few refits; unknown names.

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
    refits = test.refits or (_SEPARATOR_REFITS if kind_of(bank.kind).need == "rows" else _REFITS)
    _check_options(bank, test, refits, split)
    statistics = statistics or _collect(host, data, bank)
    check_collected(statistics, host, data)
    refit = StoredRefits(bank, [bank.unit(name) for name in names], statistics)
    offsets = offsets_seen(statistics.tokens, causal=host.info.causal)
    blocks = describe_blocks(described, bank.layers, offsets)
    check_draws(test.tail, refits, len(blocks) * host.info.n_heads * len(names), test.q)
    vectors = concept_vectors(refit, sorted({end for b in blocks for end in (b.source, b.index)}))
    observed = observe(blocks, vectors, offsets)
    nulls: dict[str, Tested] = {}
    control: dict[int, Tensor] = {}
    for k, null in enumerate(test.nulls):
        nulls[null], kept = weigh(
            blocks,
            refit,
            observed,
            null,
            draws=refits,
            # Each null has draws of its own; the data side's control is the first one's.
            seed=resampling.seed + k,
            tail=test.tail,
            keep=0 if k else _N_CONTROL,
            quiet=not host.progress,
        )
        control = control or kept
    deltas = _deltas(source, names, delta)
    plan = DataPlan.of(described, bank, blocks, vectors, control, deltas)
    samples = data.split(split).samples
    measured = _measured(plan, samples, names, resampling)
    settings = {
        "q": test.q,
        "correction": test.correction,
        "refits": refits,
        "tail": test.tail,
        "signs": (1, 1),
        "seed": resampling.seed,
        "split": split,
        "n_samples": len(samples),
        "n_tokens": measured.n_tokens,
        "delta": dict(zip(names, deltas.tolist(), strict=True)),
        "n_control": _N_CONTROL,
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
    return data_side(*data_sums(plan, layout), resamples, _N_CONTROL, blocks, concepts)


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


def _check_options(bank: ConceptBank, test: WeightTest, refits: int, split: str) -> None:
    require_known("split", split, ("cal", "test"))
    if "covariance" in test.nulls and bank.kind != "prototype":
        raise ValueError(
            f"null 'covariance' draws random directions, which is no null for kind {bank.kind!r}: "
            "permuted-label vectors pass it too often. Use 'across'."
        )
    # Before any pass: what is too few for a single test is too few for all.
    check_draws(test.tail, refits, 0, test.q)


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
