"""How the tail grows from layer to layer: the steps from the embedding to a concept's score.

The same tokens at all layers: the SuperActivators of the chosen layer, and the tokens they are
compared with (`sums.py`). A step's height is the mean over the tail of what it adds to the score,
minus that over the other tokens of the same samples (or another group); heights add up to the
lift of the score at the chosen layer, exactly. Scores of kind cosine are replaced by projections on
the unit vector. With v_l = w_l / rho_l and h_l the stream behind block l, along the direction v of
the chosen layer ("fixed")

    v . h_L = v . h_-1 + sum_l v . (h_l - h_{l-1}),

and along the direction fitted at each layer ("refitted")

    v_{l+1} . h_{l+1} - v_l . h_l = v_{l+1} . (h_{l+1} - h_l) + (v_{l+1} - v_l) . h_l:

what block l+1 wrote, seen along its own direction, and what the change of direction (its 1 / rho
included) makes of what was there: the step "L{l} refit". Blocks between two layers of the bank, and
those before its first, are seen along the next direction fitted.

The change of a block is split into attention (all heads and b_O), MLP, and, in a post_ln block
h' = n2(n1(h + a) + M) whose norms are frozen (`norms.py`), the rest: what the norms make of the
stream they rescale, and their biases ("norms").

What it does not show. Tokens are chosen by the sum at the end, so every step that varies is lifted
by selection; `head_ledger` has the control. A fixed direction need not mean the concept in early
layers, and a refitted one need not mean the same thing in all: a large "refit" step says that
directions differ, not that the model did something. Steps are direct contributions, no causal
effects: `compare_direct_total(parts="blocks")` ablates the same blocks one by one and puts both side by
side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sa_plugin._check import require_known, require_place
from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.guard import held_out
from sa_plugin.heads.columns import (
    STEP_KINDS,
    Asked,
    BankScores,
    Column,
    Component,
    LedgerSource,
    columns_of,
    depth_of,
    has_tail,
    source_bank,
)
from sa_plugin.heads.decompose import Target, Terms
from sa_plugin.heads.ledger import check_decomposable, warn_no_tail
from sa_plugin.heads.norms import FrozenNorms, Scales, through_block
from sa_plugin.heads.sums import Effect, GroupSums, TermLabels, effects_of, sum_groups
from sa_plugin.host.protocol import Host, Point, Site
from sa_plugin.passes.layout import if_any, unknown_notes
from sa_plugin.show import plots
from sa_plugin.show.result import Result, Sheet, exact, number, signed
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.drawn import Drawn, Resampling

_DIRECTIONS = ("fixed", "refitted")
_WORDS = {
    "embedding": "embedding %",
    "heads": "attention %",
    "mlps": "MLPs %",
    "norms": "norms %",
    "refit": "refit %",
}
_COLOURS = {
    "embedding": ("embedding", "#55606b"),
    "heads": ("attention", plots.TAIL_COLOUR),
    "mlps": ("MLP", plots.IN_COLOUR),
    "norms": ("norms, the stream rescaled", "#9a6a00"),
    "refit": ("change of direction", "#a34a83"),
}


@dataclass(frozen=True, eq=False, repr=False)
class Waterfall(Result):
    """The tail's growth, step by step.

    Attributes:
        steps: Rows of every array: "embedding", then of each block "L3 attention" (heads and b_O),
            "L3 MLP", post_ln "L3 norms", refitted "L3 refit"; last the constant "reference".
        columns: Columns of every array: a concept at its layer.
        directions: "fixed" or "refitted", of each column.
        effects: "lift" (against the other tokens of the same samples), "in_concept_lift",
            "strongest_lift", and "contrast" (in-concept against tokens of negative samples).
        means: Mean step by token group, as in `HeadLedger`.
        settings: Split, counts, resampling, layers of the bank, unit.
        residue: Largest |score - sum of steps| over kept tokens, relative to the summed sizes.
    """

    steps: tuple[Component, ...]
    columns: tuple[Column, ...]
    directions: tuple[str, ...]
    effects: Mapping[str, Effect]
    means: Mapping[str, Float[np.ndarray, "step column"]]
    settings: Mapping[str, Any]
    residue: float

    about: ClassVar[str] = (
        "Mean step over SuperActivators minus that over the other tokens of their samples. "
        "They were chosen by the sum at the end: head_ledger has the control. Steps are direct "
        "contributions (compare_direct_total, parts='blocks', has total effects beside them); a refit step "
        "says that directions differ, not that the model did something."
    )

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks before each column's score; later steps are 0."""
        return tuple(depth_of(column.layer, self.settings["hook_point"]) for column in self.columns)

    def column(self, concept: str, direction: str = "fixed", layer: int | None = None) -> int:
        """Place of a concept (at a layer, where it was followed to several).

        Raises:
            ValueError: Unknown, or ambiguous.
        """
        found = [
            k
            for k, (c, way) in enumerate(zip(self.columns, self.directions, strict=True))
            if c.concept == concept and way == direction and layer in (None, c.layer)
        ]
        if len(found) == 1:
            return found[0]
        have = ", ".join(dict.fromkeys(f"{c.concept!r} at {c.layer}" for c in self.columns))
        problem = "stands at several layers: name one" if found else "was not followed"
        raise ValueError(
            f"{concept!r} at layer {layer}, direction {direction!r}, {problem}; the waterfall has "
            f"{have}, {' and '.join(dict.fromkeys(self.directions))}."
        )

    def shown(self, column: int) -> list[Component]:
        """Steps that a column can have.

        Raises:
            ValueError: There is no such column.
        """
        require_place("column", column, len(self.columns), "columns")
        last, follows = self.depths[column], self.directions[column] == "refitted"
        return [
            step
            for step in self.steps
            if step.kind != "constants"
            and (step.block is None or step.block + (step.kind == "refit") < last)
            and (step.kind != "refit" or (follows and last > 0))
        ]

    def heights(
        self, concept: str, direction: str = "fixed", *, layer: int | None = None, effect: str = "lift"
    ) -> Drawn:
        """Heights of one column over its steps; the level after each is their cumulative sum.

        Args:
            concept: Name.
            direction: "fixed" or "refitted".
            layer: Where a concept was followed to several.
            effect: A name of `effects`.
        """
        require_known("effect", effect, tuple(self.effects))
        return self._heights(self.column(concept, direction, layer), effect)

    def _heights(self, k: int, effect: str = "lift") -> Drawn:
        terms = self.effects[effect].terms
        own = terms.sel(score=terms.axes["score"][k], component=[step.name for step in self.shown(k)])
        return replace(own, axes={"step": own.axes["component"]})

    def rows(self) -> list[dict[str, Any]]:
        """Heights of every step and column by effect, the level after it, and mean steps by group."""
        rows = []
        for k, (column, way) in enumerate(zip(self.columns, self.directions, strict=True)):
            steps = self.shown(k)
            labels = [
                {
                    "concept": column.concept,
                    "at_layer": column.layer,
                    "direction": way,
                    "step": step.name,
                    "kind": step.kind,
                    "block": step.block,
                }
                for step in steps
            ]
            for effect in self.effects:
                heights = self._heights(k, effect)
                rows += [{**of, **row} for of, row in zip(labels, heights.rows(effect), strict=True)]
                levels = np.cumsum(heights.estimate)
                rows += [exact(f"{effect} level", x, **of) for of, x in zip(labels, levels, strict=True)]
            for name, values in self.means.items():
                of_step = {step.name: values[i, k] for i, step in enumerate(self.steps)}
                rows += [
                    exact(f"mean over {name}", of_step[step.name], **of)
                    for of, step in zip(labels, steps, strict=True)
                ]
        return rows

    def headline(self) -> str:
        """Counts, directions, and how well it closes."""
        s = self.settings
        ways = " and ".join(dict.fromkeys(self.directions))
        return (
            f"{len(set(self.columns))} scores, {ways} direction, {s['split']} split, "
            f"{s['n_samples']} samples, {s['n_tokens']} tokens; closes to {self.residue:.0e}"
        )

    def summary(self) -> str:
        """Totals, shares of each kind of step, and the largest steps, as text."""
        return f"{self!r}\n\n{super().summary()}"

    def sheets(self) -> tuple[Sheet, ...]:
        """Totals, shares of each kind of step, and the largest steps."""
        header = ["concept", "layer", "direction", "lift", *_WORDS.values(), "largest steps"]
        lift = self.effects["lift"]
        shares = [lift.shares.sel(kind=kind).estimate for kind in _WORDS]
        rows = []
        for k, (column, way) in enumerate(zip(self.columns, self.directions, strict=True)):
            heights = self._heights(k)
            order = np.argsort(-np.abs(np.nan_to_num(heights.estimate)), kind="stable")[:3]
            largest = (f"{heights.axes['step'][j]} {signed(float(heights.estimate[j]))}" for j in order)
            rows.append(
                [
                    column.concept,
                    str(column.layer),
                    way,
                    signed(float(lift.total.estimate[k])),
                    *(number(100 * float(share[k]), 0) for share in shares),
                    ", ".join(largest),
                ]
            )
        return (Sheet(header, rows, notes=unknown_notes(self.settings)),)

    def plot(
        self,
        concept: str | None = None,
        direction: str = "fixed",
        *,
        layer: int | None = None,
        effect: str = "lift",
    ) -> Any:
        """Steps from the embedding to the score, each from the level before it, with its interval.

        Args:
            concept: Which; by default the first.
            direction: "fixed" or "refitted".
            layer: Where a concept was followed to several.
            effect: "lift", "in_concept_lift", "strongest_lift" or "contrast".

        Raises:
            ValueError: The waterfall has no such concept, direction or effect.
        """
        require_known("effect", effect, tuple(self.effects))
        k = 0 if concept is None else self.column(concept, direction, layer)
        steps, heights, column = self.shown(k), self._heights(k, effect), self.columns[k]
        level = np.cumsum(heights.estimate)
        start = level - heights.estimate
        figure, ax = plots.new_figure(max(6.0, 0.16 * len(steps) + 2.5), 3.6)
        for kind, (label, colour) in _COLOURS.items():
            at = [x for x, step in enumerate(steps) if step.kind == kind]
            if at:
                ax.bar(at, heights.estimate[at], 0.9, bottom=start[at], color=colour, label=label)
        ends, dashes = (start + heights.low, start + heights.high), plots.dashes_of(heights)
        ax.vlines(range(len(steps)), *ends, color=plots.TEXT_COLOUR, lw=0.8, ls=dashes)
        ax.plot(range(len(level)), level, color=plots.TEXT_COLOUR, lw=0.8, drawstyle="steps-mid")
        plots.zero(ax, upright=False)
        blocks = [step.block for step in steps]
        ticks = [x for x, block in enumerate(blocks) if block is not None and block not in blocks[:x]]
        ax.set_xticks(ticks, [str(blocks[x]) for x in ticks], fontsize=7)
        title = f"{column.concept}, layer {column.layer}, {self.directions[k]} direction"
        unit = f"{effect.replace('_', ' ')} ({self.settings['unit']})"
        plots.words(ax, title=title, x="block", y=unit)
        plots.legend(ax)
        plots.note(
            figure,
            f"Whiskers: {100 * heights.level:g} % over documents. Tokens were chosen by the sum at the end, "
            "so steps are lifted by selection.\nDirect contributions, no causal effects.",
            heights,
        )
        return figure


@face
def tail_waterfall(
    host: Host,
    data: ConceptData,
    source: LedgerSource,
    *,
    split: str | Sequence[Sample] = "test",
    concepts: Sequence[str] | None = None,
    directions: Sequence[str] = _DIRECTIONS,
    equal_lengths: bool = False,
    resampling: Resampling = Resampling(),
) -> Waterfall:
    """Follow the tail's lift from the embedding to the score, block by block.

    Costs one forward pass a sample, for all concepts and both directions.

    Args:
        host: An attached model; a post_ln one has to hand out its norms.
        data: Labelled samples.
        source: A detector: each concept at its own layer, its SuperActivators as tail. Or
            `BankScores`, a bank at some of its layers with a tail of yours.
        split: Which split, or samples of yours.
        concepts: Only these; all by default.
        directions: "fixed", "refitted" or both. Refitted ones are the bank's at all its layers up
            to the concept's; a bank whose units are clusters has none.
        equal_lengths: Give the vectors of earlier layers the length of the last, so that "refit"
            steps are changes of direction alone; those of a cosine have no length in any case.
        resampling: Of source documents.

    Returns:
        Heights with document-level intervals.

    Raises:
        TypeError: An argument is of another type.
        NotImplementedError: The bank is not of the residual stream.
        LedgerError: The steps of a token do not add up to its score.
        ValueError: As `head_ledger`; a bank without a tail; clusters refitted.

    Example:
        >>> waterfall = tail_waterfall(host, data, detector)  # doctest: +SKIP
        >>> waterfall.table()  # doctest: +SKIP
    """
    bank, tail = source_bank(source), source.tail if isinstance(source, BankScores) else None
    _check_followed(bank, source, directions)
    check_decomposable(host, bank)
    samples = held_out(data, bank, split)
    columns = columns_of(host, source, concepts, data)
    ways = tuple(dict.fromkeys(directions))
    # Every column once a direction, all in one pass.
    every, of_column = columns * len(ways), tuple(way for way in ways for _ in columns)
    refitted = [way == "refitted" for way in of_column]
    chain = _build_chain(host, bank, every, refitted, equal_lengths=equal_lengths)
    repeated = None if tail is None else [np.tile(mask, (1, len(ways))) for mask in tail]
    asked = Asked.of(host, data, bank, every, samples, repeated)
    sums, _ = sum_groups(host, asked, chain, description="waterfall")
    warn_no_tail(sums, every)
    settings = {
        "split": split if isinstance(split, str) else "samples",
        "n_samples": len(samples),
        "n_tokens": sums.n_tokens,
        "resampling": resampling,
        "data_hash": data.hash,
        "kind": bank.kind,
        "equal_lengths": equal_lengths or chain.target.cosine,
        "layers": bank.layers,
        "model": host.info.model,
        "hook_point": bank.hook_point,
        "unit": "projection" if chain.target.cosine else "dot",
        **if_any(unknown=asked.unknown(every)),
    }
    return _result(chain, sums, of_column, samples, settings)


def _check_followed(bank: ConceptBank, source: LedgerSource, directions: Sequence[str]) -> None:
    for way in directions:
        require_known("directions", way, _DIRECTIONS)
    if not directions:
        raise ValueError("directions is empty: give 'fixed', 'refitted' or both.")
    if not has_tail(source):
        raise ValueError(
            "a bank alone has no SuperActivators: give a detector, or BankScores(bank, tail=...)."
        )
    if "refitted" in directions and not bank.supervised:
        raise ValueError(
            f"a cluster of {bank.kind!r} has no counterpart at other layers, so its direction "
            "cannot be followed: give directions=('fixed',)."
        )


def _result(
    chain: _Chain,
    sums: GroupSums,
    directions: tuple[str, ...],
    samples: Sequence[Sample],
    settings: Mapping[str, Any],
) -> Waterfall:
    target, resampling = chain.target, settings["resampling"]
    documents = np.array([sample.document for sample in samples])
    resamples = resample_documents(documents, resampling)
    names = tuple(
        f"{column.concept} at {column.layer}, {way}"
        for column, way in zip(target.columns, directions, strict=True)
    )
    labels = TermLabels(chain.components, STEP_KINDS, names)
    lengths = target.lengths.double().numpy() if target.cosine else None
    effects, means = effects_of(sums, None, labels, resamples, lengths=lengths, tail=True)
    return Waterfall(chain.components, target.columns, directions, effects, means, settings, sums.residue)


@dataclass(frozen=True, eq=False)
class _Chain:
    """Steps of some columns; a `Decomposition`.

    Attributes:
        target: Columns, each once a direction.
        components: The steps, in order.
        frozen: Norms behind attention and MLP.
        embedding: Direction of the first step.
        blocks: Direction behind each block; zero for columns read before it.
        turns: By depth, the change of direction there.
    """

    target: Target
    components: tuple[Component, ...]
    frozen: FrozenNorms
    embedding: Float[Tensor, "d_model column"]
    blocks: tuple[Float[Tensor, "d_model column"], ...]
    turns: Mapping[int, Float[Tensor, "d_model column"]]

    @property
    def sites(self) -> list[Site]:
        """Everything a batch has to read."""
        points: tuple[Point, ...] = ("attn_out", "mlp_out")
        own = {Site(b, point) for b in range(len(self.blocks)) for point in points}
        stream = {_behind(depth) for depth in (0, *self.turns)}
        norms = self.frozen.sites | {Site(b, "resid_pre") for b in self.joints}
        return sorted(own | stream | norms | self.target.sites)

    @property
    def joints(self) -> list[int]:
        """Blocks with a norm of the whole stream before them."""
        return [b for b, norms in enumerate(self.frozen.norms) if norms.entry is not None]

    def terms(self, read: Mapping[Site, Tensor]) -> Iterator[Terms]:
        """Steps as dot products, in order; no means are taken off."""
        # Every step is a change of the stream, so no part is seen twice and they add up by telescoping.
        first = read[_behind(0)].float()
        scales = self.frozen.scales(read) if self.frozen.block == "post_ln" else None
        yield _piece([first @ self.embedding.to(first.device)])
        if 0 in self.turns:
            yield _piece([first @ self.turns[0].to(first.device)])
        for block in range(len(self.blocks)):
            yield _piece(self._block(read, block, scales))
            if block + 1 in self.turns:
                h = read[_behind(block + 1)].float()
                yield _piece([h @ self.turns[block + 1].to(h.device)])
        reference = self.target.reference.to(first.device)
        yield _piece([reference.expand(*first.shape[:2], -1)])

    def _block(
        self, read: Mapping[Site, Tensor], block: int, scales: Scales | None
    ) -> list[Float[Tensor, "batch token column"]]:
        attention = read[Site(block, "attn_out")].float()
        mlp = read[Site(block, "mlp_out")].float()
        out = self.blocks[block]
        if scales is None:
            out = out.to(attention.device)
            return [*self._joint(read, block, out), attention @ out, mlp @ out]
        # h' = n2(n1(h + a) + M): the direction goes back through n2 to M, through n1 to a and h alike,
        # and each is divided by the scales it passes.
        norms = self.frozen.norms[block]
        carried, stream = through_block("post_ln", norms, out)
        one, two = scales.attention[block], scales.mlp[block]
        assert one is not None
        assert two is not None
        late, early = two[..., None], (one * two)[..., None]
        h = read[Site(block, "resid_pre")].float()
        device = h.device
        # What the norms make of the stream that was there, less that stream: a step of its own.
        rest = (h @ stream.to(device)) * early - h @ out.to(device)
        if norms.attn_out is not None and norms.attn_out.bias is not None:
            rest = rest + late * (norms.attn_out.bias @ carried.mlp).to(device)
        if norms.mlp_out is not None and norms.mlp_out.bias is not None:
            rest = rest + (norms.mlp_out.bias @ out).to(device)
        return [
            (attention @ carried.attention.to(device)) * early,
            (mlp @ carried.mlp.to(device)) * late,
            rest,
        ]

    def _joint(
        self, read: Mapping[Site, Tensor], block: int, out: Float[Tensor, "d_model column"]
    ) -> list[Float[Tensor, "batch token column"]]:
        """What a norm before the block, and what is added there, make of the stream."""
        if block not in self.joints:
            return []
        before = read[Site(block - 1, "resid_post")].float()
        return [(read[Site(block, "resid_pre")].float() - before) @ out]


def _piece(steps: Sequence[Float[Tensor, "batch token column"]]) -> Terms:
    stacked = torch.stack(list(steps), dim=2)
    return stacked, torch.zeros(stacked.shape[2:], device=stacked.device)


def _behind(depth: int) -> Site:
    """Where the stream behind the first `depth` blocks is read."""
    return Site(depth - 1, "resid_post") if depth else Site(0, "resid_pre")


def _build_chain(
    host: Host, bank: ConceptBank, columns: Sequence[Column], refitted: Sequence[bool], *, equal_lengths: bool
) -> _Chain:
    """Directions of every step.

    Args:
        host: An attached model.
        bank: The vectors of all layers.
        columns: Whose scores.
        refitted: Whether each column follows the directions of earlier layers.
        equal_lengths: Give earlier directions the length of the last; a cosine's always have it.

    Raises:
        NotImplementedError: Scores are not read from the residual stream, or a post_ln model's
            norms are unknown.
    """
    target = Target.of(host.info, bank, columns, bank.token)
    depth = max(target.depths)
    equal = equal_lengths or target.cosine
    at = {
        depth_of(layer, bank.hook_point): _along(bank, layer, columns, target, equal)
        for layer in bank.layers
        if layer <= max(column.layer for column in columns)
    }
    # A column read before a depth has direction 0 there: nothing is added to it any more.
    followed = torch.tensor(list(refitted))
    before = torch.tensor(target.depths)

    def direction(here: int) -> Tensor:
        """Of the change up to a depth: the next one fitted there or behind."""
        chosen = torch.where(followed, at[min(d for d in at if d >= here)], target.directions)
        return torch.where(before >= here, chosen, torch.zeros_like(chosen))

    # A direction turns where one was fitted; where the two are the same there is no step.
    turns = {d: direction(d + 1) - direction(d) * (before > d) for d in at if d < depth}
    turns = {d: turn for d, turn in turns.items() if bool(turn.any())}
    # attn_out and mlp_out of pre_norm and post_norm blocks are what they add: no norm to pass.
    none = FrozenNorms("pre_norm", (), ())
    known = host.info.block in ("post_ln", "staged")
    frozen = FrozenNorms.of(host, depth) if known else none
    return _Chain(
        target,
        _steps(depth, turns, frozen),
        frozen,
        direction(0),
        tuple(direction(block + 1) for block in range(depth)),
        turns,
    )


def _along(
    bank: ConceptBank, layer: int, columns: Sequence[Column], target: Target, equal: bool
) -> Float[Tensor, "d_model column"]:
    place = bank.index(layer)
    # v_l = w_l / rho_l of each column's unit at this layer.
    vectors = bank.token.vectors[place][[column.unit for column in columns]].float().cpu()
    if equal:
        vectors = vectors * (target.lengths / vectors.norm(dim=-1))[:, None]
    return (vectors / bank.token.scale[place].cpu()).T


def _steps(depth: int, turns: Mapping[int, Tensor], frozen: FrozenNorms) -> tuple[Component, ...]:
    steps = [Component("embedding", "embedding")]
    if 0 in turns:
        steps.append(Component("embedding refit", "refit"))
    for block in range(depth):
        if frozen.norms and frozen.norms[block].entry is not None:
            steps.append(Component(f"L{block} norms", "norms", block))
        steps.append(Component(f"L{block} attention", "heads", block))
        steps.append(Component(f"L{block} MLP", "mlps", block))
        if frozen.block == "post_ln":
            steps.append(Component(f"L{block} norms", "norms", block))
        if block + 1 in turns:
            steps.append(Component(f"L{block} refit", "refit", block))
    return (*steps, Component("reference", "constants"))
