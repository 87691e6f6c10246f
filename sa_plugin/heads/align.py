"""Which of many tests to call: Benjamini and Hochberg, or Benjamini and Yekutieli.

BH (J. R. Stat. Soc. B 57, 1995) rejects the k smallest p-values, k the largest with
`p_(k) <= q k / m`; the expected share of false calls among all calls is then at most q if the tests
are independent or positively dependent. BY (Ann. Stat. 29, 2001) divides q by
`1 + 1/2 + ... + 1/m` and needs no assumption. If nothing is true, both make any call with
probability at most q.

What neither bounds: the share of false calls in a selection from the calls.

Alignment as rows and as text.

What `head_alignment` returns: the rule, the calls, tables and maps.

`head_alignment`: both sides for every head of every block and every concept.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from sa_plugin._check import require_known, require_type
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.collect import TrainStatistics, collect
from sa_plugin.concepts.kinds import kind_of
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.align_data import DataPlan, DataSide, data_side, data_sums
from sa_plugin.heads.align_null import NULLS, Refit, check_kind, check_tail
from sa_plugin.heads.align_weights import (
    Block,
    Observed,
    Tested,
    concept_vectors,
    describe_blocks,
    observe,
    offsets_seen,
    weigh,
)
from sa_plugin.host.protocol import FINAL_NORM, DescribedHost, Host, require_described
from sa_plugin.passes.layout import lay_out
from sa_plugin.scores.score import check_origin
from sa_plugin.show.result import aligned, as_html, frame, number, signed
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.drawn import Resampling

CORRECTIONS = ("BH", "BY")


def adjusted(p: Float[np.ndarray, "*cell"], correction: str = "BH") -> Float64[np.ndarray, "*cell"]:
    """Adjusted p-values: the smallest q at which each would be called.

    Args:
        p: All p-values of the family; NaN counts as no test.
        correction: "BH" or "BY".

    Raises:
        ValueError: Unknown correction.
    """
    require_known("correction", correction, CORRECTIONS)
    flat = np.asarray(p, dtype=np.float64).ravel()
    tested = np.flatnonzero(np.isfinite(flat))
    order = tested[np.argsort(flat[tested], kind="stable")]
    m = len(order)
    factor = np.sum(1 / np.arange(1, m + 1)) if correction == "BY" else 1.0
    raised = flat[order] * m * factor / np.arange(1, m + 1)
    out = np.full_like(flat, np.nan)
    out[order] = np.minimum(1.0, np.minimum.accumulate(raised[::-1])[::-1])
    return out.reshape(np.shape(p))


def call(p: Float[np.ndarray, "*cell"], q: float, correction: str = "BH") -> Bool[np.ndarray, "*cell"]:
    """Which tests are called at level q.

    Args:
        p: All p-values of the family.
        q: Bound on the expected share of false calls.
        correction: "BH" or "BY".

    Raises:
        ValueError: Unknown correction, or q outside (0, 1).
    """
    if not 0 < q < 1:
        raise ValueError(f"q is {q}: a share of false calls between 0 and 1 is meant, such as 0.05.")
    return np.asarray(adjusted(p, correction) <= q)


def rows(found: HeadAlignment) -> list[dict[str, Any]]:
    """One row a head and concept, smallest p first."""
    arrays = columns(found)
    order = np.argsort(found.tested.p, axis=None, kind="stable")
    out = []
    for at in order:
        k, h, c = np.unravel_index(at, found.tested.p.shape)
        row: dict[str, Any] = {"concept": found.concepts[c], "block": found.blocks[k], "head": int(h)}
        for name, array in arrays.items():
            row[name] = array[k, h, c].item()
        out.append(row)
    return out


def columns(found: HeadAlignment) -> dict[str, np.ndarray]:
    """Every array of the result by the name of its column."""
    data, weights = found.data, found.weights
    out = {
        "aligned": found.aligned,
        "called": found.called,
        "on_data": found.on_data,
        "p": found.tested.p,
        "p_adjusted": found.p_adjusted,
    }
    for name, null in found.nulls.items():
        out |= {f"p_ov_{name}": null.p_ov, f"p_qk_{name}": null.p_qk}
    out |= {
        "gamma": found.gamma,
        "ov_cosine": weights.ov_cosine,
        "beta": found.beta,
        "qk_cosine": weights.qk_cosine,
        "slope": data.slope.value,
        "slope_low": data.slope.low,
        "slope_high": data.slope.high,
        "partial_r2": data.correlation**2,
        "correlation": data.correlation,
        "p_control": data.p_control,
    }
    for name, by_sign in (("lift", data.lift), ("lift_whole", data.lift_whole)):
        for sign, estimate in by_sign.items():
            parts = zip(("", "_low", "_high"), estimate, strict=True)
            out |= {f"{name}_{sign}{end}": values for end, values in parts}
    share = data.write_share
    return out | {"write_share": share.value, "write_share_low": share.low, "write_share_high": share.high}


def summary(found: HeadAlignment, n: int) -> str:
    """Counts, how the null held, and the strongest aligned heads."""
    chosen = [row for row in found.rows() if row["aligned"]]
    parts = [repr(found), _counts(found), _wrapped(_null_words(found))]
    if chosen:
        parts.append(_heads(chosen[:n]))
    shared = found.shared_heads()
    if shared:
        named = "; ".join(f"{head} ({len(serves)})" for head, serves in shared[:n])
        parts.append(_wrapped(f"Heads aligned with several concepts: {named}."))
    parts += [_wrapped(limit) for limit in found.limits]
    return "\n\n".join(parts)


def _counts(found: HeadAlignment) -> str:
    header = ["concept", *(f"called {name}" for name in found.nulls), "on data", "aligned", "blocks with one"]
    by_null = [found.called_by(name) for name in found.nulls]
    text = [
        [
            concept,
            *(str(int(calls[..., c].sum())) for calls in by_null),
            str(int(found.on_data[..., c].sum())),
            str(int(found.aligned[..., c].sum())),
            f"{found.layers_by_concept[concept]} of {len(found.blocks)}",
        ]
        for c, concept in enumerate(found.concepts)
    ]
    return aligned(header, text)


def _null_words(found: HeadAlignment) -> str:
    words = [
        f"{name}: " + ", ".join(f"{share:.2g} at {level}" for level, share in null.calibration.items())
        for name, null in found.nulls.items()
        if null.calibration
    ]
    return (
        f"{found.tested.p.size:,} tests, {found.settings['draws']} refits of each null. Share of "
        f"held-out refits below each level ({'; '.join(words)}): at most the level is right."
    )


def _heads(chosen: list[dict[str, Any]]) -> str:
    header = ["aligned", "p", "gamma", "OV cos", "beta", "slope", "partial R2", "lift", "share"]
    text = [
        [
            f"L{row['block']}H{row['head']} {row['concept']}",
            f"{row['p']:.1e}",
            signed(row["gamma"]),
            signed(row["ov_cosine"], 2),
            f"{row['beta']:+.1e}",
            signed(row["slope"]),
            number(row["partial_r2"]),
            signed(row["lift_positive"]),
            signed(row["write_share"]),
        ]
        for row in chosen
    ]
    return aligned(header, text)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 110, break_on_hyphens=False)


RULE = (
    "A head is concept-aligned if all three hold. (1) Weights: p = max(p of OV, p of QK) against "
    "labels permuted across samples is called at level q over all heads x concepts. (2) Logits: "
    "the slope on the product of two tokens' activations has an interval above zero, and its "
    "partial correlation exceeds that of every permuted-label direction. (3) Attention of "
    "positive queries on the top tokens, sinks left out, has an interval above chance. The bound "
    "q on false calls is that of (1); (2) and (3) only take calls away."
)


@dataclass(frozen=True, eq=False)
class HeadAlignment:
    """Which heads read and write along concepts, by their weights and on data.

    What it does not show: alignment is no effect (ablate), and its null is labels without meaning:
    a head that serves every real concept is called for every concept. See `weights.py`, `null.py`.

    Attributes:
        concepts: Columns.
        blocks: Block indices, rows of every array `[block, head, concept]`.
        weights: Forms and cosines at the concepts' directions, without the norms' scales.
        nulls: By name, "across" first: what the calls rest on.
        data: The data side.
        offsets: How often each offset, query minus key, was seen among kept train tokens.
        settings: Level, correction, draws, seed, splits, counts, and what was chosen beforehand.
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

    def __repr__(self) -> str:
        aligned, s = self.aligned, self.settings
        return (
            f"HeadAlignment({len(self.concepts)} concepts x {aligned[..., 0].size} heads: "
            f"{int(self.called.sum())} called by weights ({s['correction']}, q = {s['q']:g}), "
            f"{int(aligned.sum())} concept-aligned; at least one in {self.layers_with_one} of "
            f"{len(self.blocks)} blocks)"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

    @property
    def gamma(self) -> Float64[np.ndarray, "block head concept"]:
        """OV gain, with the norms' mean scales: see `weights.py`."""
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
        return np.asarray(logits & (data.lift["positive"].low > 0))

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

    def rows(self) -> list[dict[str, Any]]:
        """One row a head and concept, smallest p first."""
        return rows(self)

    def table(self) -> Any:
        """The rows: a pandas DataFrame where pandas is installed."""
        return frame(self.rows())

    def summary(self, n: int = 10) -> str:
        """Counts, how the null held, and the `n` strongest aligned heads, as text."""
        return summary(self, n)

    def plot(self, concept: str | None = None, ax: Any = None) -> Any:
        """Map of the heads; see `plot.plot_alignment`."""
        from sa_plugin.heads.plots import plot_alignment

        return plot_alignment(self, concept, ax)


DELTA, N_CONTROL, SEPARATOR_DRAWS, DRAWS = 0.05, 19, 100, 400


def head_alignment(
    host: Host,
    data: ConceptData,
    source: Detector | ConceptBank,
    *,
    statistics: TrainStatistics | None = None,
    concepts: Sequence[str] | None = None,
    split: str = "cal",
    q: float = 0.05,
    correction: str = "BH",
    nulls: Sequence[str] = ("across", "within"),
    draws: int | None = None,
    tail: str = "exponential",
    delta: float | Mapping[str, float] | None = None,
    resamples: int = 200,
    seed: int = 0,
    batch_tokens: int = 512,
    progress: bool = True,
) -> HeadAlignment:
    """Which heads read and write along concepts, by their weights and on data.

    Costs one forward pass a sample of the split, one a train sample if no statistics are given,
    and `draws` refits of the estimator for each null, concept and layer: one product with the train
    rows for prototype and lda, an iterative fit for separators.

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
        q: Level: bound on the expected share of false calls.
        correction: "BH" or "BY", over all heads x concepts.
        nulls: What to hold the weights against, see `null.py`; calls rest on the first.
        draws: Refits of each null; by default 400, and 100 for separators.
        tail: "exponential" or "empirical", see `tails.py`.
        delta: Share of a sample's tokens that is its top, or one for each concept; by default the
            detector's, else 0.05.
        resamples: Draws of documents for intervals.
        seed: Of null and intervals.
        batch_tokens: Tokens in a batch of the data side; it reads every pattern.
        progress: Whether to show bars.

    Returns:
        Forms, gains, p-values, the data side, and calls by the rule in `result.RULE`.

    Raises:
        TypeError: The host does not hand out its weights, or an argument is of another type.
        ValueError: A bank of another model, at another hook point, of a kind that cannot be
            refitted, or not the one the statistics give; statistics without every row; no two
            neighbouring layers; too few draws; unknown names.

    Source: the assumption of aligned heads of arXiv 2512.05038; estimators and null are ours.

    Example:
        >>> found = head_alignment(host, data, bank)  # doctest: +SKIP
        >>> found.layers_with_one, found.shared_heads()  # doctest: +SKIP
    """
    described = _checked_host(host, data, source)
    bank = source if isinstance(source, ConceptBank) else source.bank
    _check_bank(bank, host)
    check_kind(bank)
    names = _names(bank, concepts)
    n_draws = draws or (SEPARATOR_DRAWS if kind_of(bank.kind).need == "rows" else DRAWS)
    _check_options(bank, nulls, n_draws, tail, correction, q, split)
    statistics = statistics or _collect(host, data, bank, progress)
    _check_statistics(statistics, host, data)
    refit = Refit(bank, [bank.unit(name) for name in names], statistics)
    offsets = offsets_seen(statistics.tokens, causal=host.info.causal)
    blocks = describe_blocks(described, bank.layers, offsets)
    heads = len(blocks) * host.info.n_heads
    check_tail(tail, n_draws, heads * len(names), q)
    ends = sorted({end for b in blocks for end in (b.source, b.index)})
    vectors = concept_vectors(refit, ends)
    observed = observe(blocks, vectors, offsets)
    tested: dict[str, Tested] = {}
    control: dict[int, Tensor] = {}
    for k, null in enumerate(nulls):
        tested[null], kept = weigh(
            blocks,
            refit,
            observed,
            null,
            draws=n_draws,
            seed=seed + k,
            tail=tail,
            keep=0 if k else N_CONTROL,
            progress=progress,
        )
        control = control or kept
    deltas = _deltas(source, names, delta)
    plan = _plan(described, bank, blocks, vectors, control, deltas)
    samples = data.split(split).samples
    layout = lay_out(host, samples, data.concepts, batch_tokens=batch_tokens)
    sums = data_sums(plan, layout, progress=progress)
    documents = resample_documents(
        np.array([sample.document for sample in samples]), Resampling(resamples, seed)
    )
    measured = data_side(sums, documents, N_CONTROL)
    settings = {
        "q": q,
        "correction": correction,
        "draws": n_draws,
        "tail": tail,
        "signs": (1, 1),
        "seed": seed,
        "split": split,
        "n_samples": len(samples),
        "n_tokens": measured.n_tokens,
        "delta": dict(zip(names, deltas.tolist(), strict=True)),
        "n_control": N_CONTROL,
        "resamples": resamples,
        "kind": bank.kind,
        "model": host.info.model,
        "data_hash": data.hash,
    }
    return HeadAlignment(
        names,
        tuple(b.index for b in blocks),
        observed,
        tested,
        measured,
        offsets,
        settings,
        limits(described, blocks, measured.underflow),
    )


def limits(host: DescribedHost, blocks: Sequence[Block], underflow: float) -> tuple[str, ...]:
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
    if any(bias is not None for one in attention for bias in (one.query_bias, one.key_bias)):
        found.append("Query and key biases add terms linear in one token's activation: left out.")
    if host.info.block != "pre_norm":
        found.append(
            f"{host.info.block} block: gains use the mean scale of the norms behind attention; "
            "shares of the update need not add up."
        )
    if underflow > 0:
        found.append(f"{underflow:.1e} of the attention probabilities underflowed.")
    return tuple(found)


def _checked_host(host: Any, data: Any, source: Any) -> DescribedHost:
    order = "the order is head_alignment(host, data, bank)"
    require_type("host", host, Host, f"attach(bridge) first; {order}")
    require_type("data", data, ConceptData, order)
    require_type("source", source, (Detector, ConceptBank), order)
    return require_described(host)


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


def _check_options(
    bank: ConceptBank, nulls: Sequence[str], draws: int, tail: str, correction: str, q: float, split: str
) -> None:
    require_known("correction", correction, CORRECTIONS)
    require_known("split", split, ("cal", "test"))
    call(np.zeros(0), q)
    if not nulls:
        raise ValueError("nulls is empty: name 'across' at least.")
    for null in nulls:
        require_known("null", null, NULLS)
    if "covariance" in nulls and bank.kind != "prototype":
        raise ValueError(
            f"null 'covariance' draws random directions, which is no null for kind {bank.kind!r}: "
            "permuted-label vectors pass it too often. Use 'across'."
        )
    check_tail(tail, draws, 0, q)


def _check_statistics(statistics: TrainStatistics, host: Host, data: ConceptData) -> None:
    if statistics.fingerprint != host.info.fingerprint:
        raise ValueError("the statistics were collected on another model: collect them again.")
    if statistics.data_hash != data.hash:
        raise ValueError(
            f"the statistics were collected on data {statistics.data_hash[:8]}, not on "
            f"{data.hash[:8]}: collect them again."
        )


def _names(bank: ConceptBank, concepts: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(bank.concepts if concepts is None else concepts)
    if not names:
        raise ValueError("concepts is empty: name at least one, or None for all.")
    for name in names:
        bank.unit(name)
    return names


def _collect(host: Host, data: ConceptData, bank: ConceptBank, progress: bool) -> TrainStatistics:
    options: Mapping[str, Any] = bank.origin.options
    return collect(
        host,
        data,
        layers=bank.layers,
        need=("means", "gram", "rows"),
        seed=bank.origin.seed,
        sinks=bank.origin.sinks,
        normaliser=options.get("normaliser", "rms"),
        max_rows_per_class=10**9,
        progress=progress,
    )


def _deltas(
    source: Detector | ConceptBank, names: Sequence[str], delta: float | Mapping[str, float] | None
) -> Float[Tensor, " concept"]:
    if delta is None:
        delta = DELTA if isinstance(source, ConceptBank) else source.delta
    by_name = delta if isinstance(delta, Mapping) else dict.fromkeys(names, delta)
    for name in names:
        if not 0 < by_name.get(name, 0.0) < 1:
            raise ValueError(
                f"delta of {name!r} is {by_name.get(name)}: give a share of tokens between 0 and 1."
            )
    return torch.tensor([float(by_name[name]) for name in names], dtype=torch.float64)


def _plan(
    host: DescribedHost,
    bank: ConceptBank,
    blocks: Sequence[Block],
    vectors: Mapping[int, Float[Tensor, "concept d_model"]],
    control: Mapping[int, Float[Tensor, "draw concept d_model"]],
    deltas: Float[Tensor, " concept"],
) -> DataPlan:
    means = []
    for block in blocks:
        mean = bank.token.mean[bank.index(block.source)]
        if block.index == 0 and bank.component_means is not None:
            mean = bank.component_means.embedding
        means.append(mean.float())
    return DataPlan(
        host,
        bank,
        blocks,
        [host.norms(b.index) for b in blocks],
        [torch.cat([vectors[b.source], control[b.source].flatten(0, 1)]) for b in blocks],
        [vectors[b.index] for b in blocks],
        means,
        deltas,
    )
