"""How the tail grows from layer to layer: the steps from the embedding to a concept's score.

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
from typing import Any

import numpy as np

from sa_plugin._names import require_known, require_type
from sa_plugin.collect import BATCH_TOKENS
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData, Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.heads.chain import Chain, build_chain
from sa_plugin.heads.components import STEP_KINDS
from sa_plugin.heads.effects import effects_of
from sa_plugin.heads.frozen import check_joints
from sa_plugin.heads.ledger import asked_of, columns_of, held_out, warn_no_tail
from sa_plugin.heads.sums import GroupSums, Tail, sum_groups
from sa_plugin.heads.target import check_supported
from sa_plugin.heads.waterfall_result import Waterfall
from sa_plugin.host import Host
from sa_plugin.scoring import check_origin
from sa_plugin.statistics.bootstrap import resample_documents

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
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
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
        batch_tokens: Tokens in a batch, padding included.
        progress: Whether to show a bar.

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
    asked = asked_of(host, data, bank, columns * len(ways), chosen, repeated, batch_tokens)
    sums = sum_groups(host, asked, chain, description="waterfall", progress=progress)
    warn_no_tail(sums, chain.target.columns)
    settings = {
        "split": split if samples is None else "samples", "n_samples": len(chosen),
        "n_tokens": sums.n_tokens, "draws": draws, "seed": seed, "data_hash": data.hash,
        "kind": bank.kind, "equal_lengths": equal_lengths or chain.target.cosine,
        "layers": bank.layers, "model": host.info.model, "hook_point": bank.hook_point,
        "unit": "projection" if chain.target.cosine else "dot",
    }  # fmt: skip
    return _result(chain, sums, [way for way in ways for _ in columns], chosen, settings)


def _check(
    host: object, data: object, source: object, directions: Sequence[str], tail: Tail | None
) -> None:
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
    resamples = resample_documents(documents, draws=settings["draws"], seed=settings["seed"])
    target = chain.target
    effects, means = effects_of(
        sums, None, target.lengths.double().numpy(), chain.components, resamples,
        scale=int(target.cosine), tail=True, kinds=STEP_KINDS,
    )  # fmt: skip
    return Waterfall(
        chain.components, target.columns, tuple(directions), target.depths, effects, means,
        settings, sums.residue,
    )  # fmt: skip
