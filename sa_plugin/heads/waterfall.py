"""What `tail_waterfall` returns: steps, levels and words.

How the tail grows from layer to layer: the steps from the embedding to a concept's score.

The same tokens at all layers: the SuperActivators of the chosen layer, and the tokens they are
compared with (`sums.py`). A step's height is the mean over the tail of what it adds to the score,
minus that over the other tokens of the same samples (or another group); heights add up to the
lift of the score at the chosen layer, exactly. The formulas are in `chain.py`, for the direction of
the chosen layer seen through all layers ("fixed") and for the direction fitted at each layer
("refitted"). Scores of kind cosine are replaced by projections on the unit vector.

What it does not show. Tokens are chosen by the sum at the end, so every step that varies is lifted
by selection; `head_ledger` has the control. A fixed direction need not mean the concept in early
layers, and a refitted one need not mean the same thing in all: a large "refit" step says that
directions differ, not that the model did something. Steps are direct contributions, no causal
effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sa_plugin._check import require_known, require_type
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.decompose import Chain, build_chain, check_supported
from sa_plugin.heads.ledger import asked_of, columns_of, held_out, warn_no_tail
from sa_plugin.heads.norms import STEP_KINDS, Column, Component, check_joints
from sa_plugin.heads.sums import Effect, Estimate, GroupSums, Tail, effects_of, sum_groups
from sa_plugin.host.protocol import Host
from sa_plugin.scores.score import check_origin
from sa_plugin.show.result import aligned, as_html, frame, number, signed
from sa_plugin.statistics.bootstrap import resample_documents
from sa_plugin.statistics.drawn import Resampling

LIFTS = ("lift", "in_concept_lift", "strongest_lift")
_WORDS = {
    "embedding": "embedding %",
    "heads": "attention %",
    "mlps": "MLPs %",
    "norms": "norms %",
    "refit": "refit %",
}


@dataclass(frozen=True, eq=False)
class Waterfall:
    """The tail's growth, step by step.

    Attributes:
        steps: Rows of every array: "embedding", then of each block "L3 attention" (heads and b_O),
            "L3 MLP", post_ln "L3 norms", refitted "L3 refit"; last the constant "reference".
        columns: Columns of every array: a concept at its layer.
        directions: "fixed" or "refitted", of each column.
        depths: Number of blocks before each column's score; later steps are 0.
        effects: "lift" (against the other tokens of the same samples), "in_concept_lift",
            "strongest_lift", and "contrast" (in-concept against tokens of negative samples).
        means: Mean step by token group, as in `HeadLedger`.
        settings: Split, counts, seed, layers of the bank, unit.
        residue: Largest |score - sum of steps| over kept tokens, relative to the summed sizes.
    """

    steps: tuple[Component, ...]
    columns: tuple[Column, ...]
    directions: tuple[str, ...]
    depths: tuple[int, ...]
    effects: Mapping[str, Effect]
    means: Mapping[str, Float[np.ndarray, "step column"]]
    settings: Mapping[str, Any]
    residue: float

    def __repr__(self) -> str:
        s = self.settings
        ways = " and ".join(dict.fromkeys(self.directions))
        return (
            f"Waterfall({len(set(self.columns))} scores, {ways} direction, {s['split']} split, "
            f"{s['n_samples']} samples, {s['n_tokens']} tokens; closes to {self.residue:.0e})"
        )

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return as_html(str(self))

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

    def shown(self, column: int) -> list[int]:
        """Steps that a column can have."""
        last = self.depths[column]
        follows = self.directions[column] == "refitted"
        return [
            i
            for i, step in enumerate(self.steps)
            if step.kind != "constants"
            and (step.block is None or step.block + (step.kind == "refit") < last)
            and (step.kind != "refit" or (follows and last > 0))
        ]

    def heights(
        self, concept: str, direction: str = "fixed", *, layer: int | None = None, effect: str = "lift"
    ) -> tuple[list[str], Estimate, Float[np.ndarray, " step"]]:
        """Steps of one column: their names, heights with intervals, and the level after each.

        Args:
            concept: Name.
            direction: "fixed" or "refitted".
            layer: Where a concept was followed to several.
            effect: A name of `effects`.
        """
        require_known("effect", effect, tuple(self.effects))
        k = self.column(concept, direction, layer)
        rows, terms = self.shown(k), self.effects[effect].terms
        heights = Estimate(*(one[rows, k] for one in terms))
        return [self.steps[i].name for i in rows], heights, np.cumsum(heights.value)

    def table(self, effect: str = "lift") -> Any:
        """One row a step and column: a pandas DataFrame where pandas is installed.

        Args:
            effect: A name of `effects`.

        Returns:
            Height with its interval, level after the step, and the mean step over the tail.
        """
        rows = []
        for k, (column, way) in enumerate(zip(self.columns, self.directions, strict=True)):
            _, heights, level = self.heights(column.concept, way, layer=column.layer, effect=effect)
            for j, i in enumerate(self.shown(k)):
                step = self.steps[i]
                rows.append(
                    {
                        "concept": column.concept,
                        "at_layer": column.layer,
                        "direction": way,
                        "step": step.name,
                        "kind": step.kind,
                        "block": step.block,
                        "height": float(heights.value[j]),
                        "low": float(heights.low[j]),
                        "high": float(heights.high[j]),
                        "level": float(level[j]),
                        "tail": float(self.means["tail"][i, k]),
                    }
                )
        return frame(rows)

    def summary(self) -> str:
        """Totals, shares of each kind of step, and the largest steps, as text."""
        header = ["concept", "layer", "direction", "lift", *_WORDS.values(), "largest steps"]
        lift = self.effects["lift"]
        rows = []
        for k, (column, way) in enumerate(zip(self.columns, self.directions, strict=True)):
            names, heights, _ = self.heights(column.concept, way, layer=column.layer)
            order = np.argsort(-np.abs(np.nan_to_num(heights.value)), kind="stable")[:3]
            shares = lift.shares.value[:, k]
            rows.append(
                [
                    column.concept,
                    str(column.layer),
                    way,
                    signed(float(lift.total.value[k])),
                    *(number(100 * float(shares[STEP_KINDS.index(kind)]), 0) for kind in _WORDS),
                    ", ".join(f"{names[j]} {signed(float(heights.value[j]))}" for j in order),
                ]
            )
        note = (
            "Mean step over SuperActivators minus that over the other tokens of their samples. "
            "They were chosen by the sum at the end: head_ledger has the control."
        )
        return "\n\n".join([repr(self), aligned(header, rows), note])


DIRECTIONS = ("fixed", "refitted")


def tail_waterfall(
    host: Host,
    data: ConceptData,
    source: Detector | ConceptBank,
    *,
    directions: Sequence[str] = DIRECTIONS,
    equal_lengths: bool = False,
    split: str = "test",
    concepts: Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    samples: Sequence[Sample] | None = None,
    tail: Tail | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Waterfall:
    """Follow the tail's lift from the embedding to the score, block by block.

    Costs one forward pass a sample, for all concepts and both directions.

    Args:
        host: An attached model; a post_ln one has to hand out its norms.
        data: Labelled samples.
        source: A detector: each concept at its own layer, its SuperActivators as tail. Or a bank
            with `tail`.
        directions: "fixed", "refitted" or both. Refitted ones are the bank's at all its layers up
            to the concept's; a bank whose units are clusters has none.
        equal_lengths: Give the vectors of earlier layers the length of the last, so that "refit"
            steps are changes of direction alone; those of a cosine have no length in any case.
        split: Which split.
        concepts: Only these; all by default.
        layers: With a bank, block indices of the scores; all of the bank's by default.
        samples: Instead of a split.
        tail: With a bank, as in `head_ledger`.
        draws: Resamples of source documents.
        seed: Of the resamples.

    Returns:
        Heights with document-level intervals.

    Raises:
        TypeError: An argument is of another type.
        NotImplementedError: The bank is not of the residual stream.
        LedgerError: The steps of a token do not add up to its score.
        ValueError: As `head_ledger`; a bank without `tail`; clusters refitted.

    Example:
        >>> waterfall = tail_waterfall(host, data, detector)  # doctest: +SKIP
        >>> waterfall.table()  # doctest: +SKIP
    """
    _check(host, data, source, directions, tail)
    bank = source if isinstance(source, ConceptBank) else source.bank
    check_origin(bank, host)
    check_supported(bank.hook_point)
    check_joints(host, bank)
    chosen = held_out(data, bank, split, samples)
    columns = columns_of(host, source, concepts, layers, tail, data)
    ways = tuple(dict.fromkeys(directions))
    refitted = [way == "refitted" for way in ways for _ in columns]
    chain = build_chain(host, bank, columns * len(ways), refitted, equal_lengths=equal_lengths)
    repeated = None if tail is None else [np.tile(mask, (1, len(ways))) for mask in tail]
    asked = asked_of(host, data, bank, columns * len(ways), chosen, repeated)
    sums, _ = sum_groups(host, asked, chain, description="waterfall")
    warn_no_tail(sums, chain.target.columns)
    settings = {
        "split": split if samples is None else "samples",
        "n_samples": len(chosen),
        "n_tokens": sums.n_tokens,
        "draws": draws,
        "seed": seed,
        "data_hash": data.hash,
        "kind": bank.kind,
        "equal_lengths": equal_lengths or chain.target.cosine,
        "layers": bank.layers,
        "model": host.info.model,
        "hook_point": bank.hook_point,
        "unit": "projection" if chain.target.cosine else "dot",
    }
    return _result(chain, sums, [way for way in ways for _ in columns], chosen, settings)


def _check(host: object, data: object, source: object, directions: Sequence[str], tail: Tail | None) -> None:
    order = "the order is tail_waterfall(host, data, detector)"
    require_type("host", host, Host, f"attach(bridge) first; {order}")
    require_type("data", data, ConceptData, order)
    require_type("source", source, (Detector, ConceptBank), order)
    for way in directions:
        require_known("directions", way, DIRECTIONS)
    if not directions:
        raise ValueError("directions is empty: give 'fixed', 'refitted' or both.")
    bank = source.bank if isinstance(source, Detector) else source
    assert isinstance(bank, ConceptBank)
    if isinstance(source, ConceptBank) and tail is None:
        raise ValueError("a bank alone has no SuperActivators: give a detector, or tail=.")
    if "refitted" in directions and not bank.supervised:
        raise ValueError(
            f"a cluster of {bank.kind!r} has no counterpart at other layers, so its direction "
            "cannot be followed: give directions=('fixed',)."
        )


def _result(
    chain: Chain,
    sums: GroupSums,
    directions: Sequence[str],
    samples: Sequence[Sample],
    settings: Mapping[str, Any],
) -> Waterfall:
    documents = np.array([sample.document for sample in samples])
    resamples = resample_documents(documents, Resampling(settings["draws"], settings["seed"]))
    target = chain.target
    effects, means = effects_of(
        sums,
        None,
        target.lengths.double().numpy(),
        chain.components,
        resamples,
        scale=int(target.cosine),
        tail=True,
        kinds=STEP_KINDS,
    )
    return Waterfall(
        chain.components,
        target.columns,
        tuple(directions),
        target.depths,
        effects,
        means,
        settings,
        sums.residue,
    )
