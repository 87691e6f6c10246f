"""Scores of every concept at every token: one forward pass a sample, activations never stored.

Whatever the number of banks, samples pass once. What is kept is a float32 for each kept token and
vector, and the controls' scores of each sample; scores above a budget lie in a temporary file.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from tqdm.auto import tqdm

from sa_plugin._check import users_line
from sa_plugin._face import face
from sa_plugin._files import digest_of
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData, Split, require_filled
from sa_plugin.data.loose import as_split
from sa_plugin.data.sample import Sample
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Batch, BulkHost, Host, Site
from sa_plugin.host.tokens import naming_of
from sa_plugin.passes.blocks import (
    Block,
    BlockArrays,
    BlockStore,
    HeldBlock,
    chosen_blocks,
    in_blocks,
    joined,
    joined_table,
    run_blocks,
    table_arrays,
)
from sa_plugin.passes.cluster import Engine, attaching
from sa_plugin.passes.layout import (
    LostLabelWarning,
    TokenTable,
    lay_out,
    rows_kept_in,
    token_table,
    warn_lost_labels,
)
from sa_plugin.passes.run import MEMORY_BUDGET, Job, Reducer, run_jobs
from sa_plugin.scores.table import ScoreTable


@overload
def score(
    host: Host,
    data: Any,
    bank: ConceptBank,
    *,
    splits: Sequence[str] = ...,
    memory_budget: int = ...,
    keep_of: TokenTable | None = ...,
    folder: str | Path | None = ...,
) -> ScoreTable: ...
@overload
def score(
    host: Host,
    data: Any,
    bank: Sequence[ConceptBank],
    *,
    splits: Sequence[str] = ...,
    memory_budget: int = ...,
    keep_of: TokenTable | None = ...,
    folder: str | Path | None = ...,
) -> list[ScoreTable]: ...
@face
def score(
    host: Host,
    data: Any,
    bank: ConceptBank | Sequence[ConceptBank],
    *,
    splits: Sequence[str] = ("cal", "test"),
    memory_budget: int = MEMORY_BUDGET,
    keep_of: TokenTable | None = None,
    folder: str | Path | None = None,
) -> ScoreTable | list[ScoreTable]:
    """Score every kept token of some splits under every vector of a bank.

    Costs one forward pass a sample, up to the deepest layer, whatever the number of banks. Of a corpus
    (`labelled_corpus`) one block is in memory at a time.

    Args:
        host: An attached model.
        data: Labelled samples, one of their splits, or loose ones as `Detector.find` takes them.
        bank: Concept vectors, or several banks that share the pass and the sink rule.
        splits: Which splits of labelled samples to score.
        memory_budget: Bytes of scores, for each bank, above which they lie in a temporary file.
        keep_of: The table of another run over the same samples, whose rows are kept whatever this
            run's norms: an intervention must not change which tokens are sinks.
        folder: Where the scores of each block are kept, to go on after a kill and to share the work
            (`score_blocks`); by default a temporary one. The table reads them from a copy of its own.

    Returns:
        A table, or one for each bank.

    Raises:
        ValueError: The bank was fitted on another model, processing mode or architecture; the
            banks disagree on the sink rule; activations are NaN or Inf; a sample has no token;
            `keep_of` lacks a sample or holds a token this run has not; the folder holds scores of
            another run.
    """
    banks = [bank] if isinstance(bank, ConceptBank) else list(bank)
    parts = _parts(host, data, splits, banks[0].concepts if banks else ())
    samples = [s for part in parts for s in part.samples]
    split_of = [part.name for part in parts for _ in part.samples]
    require_filled(*parts)
    tables = _score(
        host, samples, split_of, banks, memory_budget, keep_of, None if folder is None else Path(folder)
    )
    return tables[0] if isinstance(bank, ConceptBank) else tables


@face
def score_blocks(
    host: Host | Callable[[], Host],
    data: ConceptData,
    bank: ConceptBank | Sequence[ConceptBank],
    folder: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    blocks: Sequence[int] | None = None,
    splits: Sequence[str] = ("cal", "test"),
    engine: Engine = "here",
) -> list[Path]:
    """Score a part of some splits, block by block, for a `score(..., folder=folder)` that comes after.

    Any number of processes or machines may share a folder. A block that is there is not run again.

    Args:
        host: An attached model; or a function that attaches one, which each worker of an engine calls.
        data: Labelled samples of a corpus, opened alike by all.
        bank: Concept vectors, or several banks.
        folder: For the scores of blocks; all workers see it.
        shard: Which of how many: blocks i, i + n, i + 2n, ...
        blocks: Numbers of blocks instead.
        splits: Which splits.
        engine: "here" is this process; "ray" two actors of Ray, `RayPool` as many as it says.

    Returns:
        The files of the blocks.

    Raises:
        ValueError: There is no such shard, the folder holds scores of another run, and as `score`.
        ConnectionError, ImportError, LostWorkersError, TypeError: As `sa_plugin.passes.on_ray`.
    """
    attach, home = attaching(host, engine), Path(folder).absolute()
    banks = [bank] if isinstance(bank, ConceptBank) else list(bank)
    parts = [data.split(name) for name in splits]
    found = [block for part in parts for block in in_blocks(part.samples, [part.name] * len(part))]
    mine = chosen_blocks(found, shard, blocks)
    make = partial(_scoring, attach, banks, home, mine)
    if engine == "here":
        make()(*(block.name for block in mine))
    else:
        run_blocks(engine, make, mine)
    return [home / block.file for block in mine]


def _scoring(
    attach: Callable[[], Host], banks: Sequence[ConceptBank], home: Path, blocks: Sequence[Block]
) -> Callable[..., None]:
    host = attach()
    _require_banks(host, banks)
    store, of = BlockStore(home, _settings(host, banks)), {block.name: block for block in blocks}
    return lambda *names: _score_all(host, [of[name] for name in names], banks, MEMORY_BUDGET, store)


def _parts(host: Host, data: Any, splits: Sequence[str], concepts: tuple[str, ...]) -> list[Split]:
    """Splits of labelled data; loose samples are of no split."""
    if isinstance(data, ConceptBank | Host):
        kind = type(data).__name__
        raise TypeError(f"data is a {kind}, not a ConceptData: the order is score(host, data, bank).")
    if isinstance(data, ConceptData):
        return [data.split(name) for name in splits]
    if isinstance(data, Split):
        return [data]
    return [replace(as_split(data, concepts, naming_of(host)), name="")]


def score_samples(
    host: Host, samples: Sequence[Sample], bank: ConceptBank, *, memory_budget: int = MEMORY_BUDGET
) -> ScoreTable:
    """Score samples that belong to no split, labels unknown or not.

    Raises:
        ValueError: As `score`.
    """
    none = [""] * len(samples)
    return _score(host, samples, none, [bank], memory_budget)[0]


def score_again(host: Host, tokens: TokenTable, banks: Sequence[ConceptBank]) -> list[ScoreTable]:
    """Score the rows of a table under other vectors, in one pass.

    Raises:
        ValueError: As `score`.
    """
    return _score(host, tokens.samples, tokens.split_of, banks, MEMORY_BUDGET, tokens)


class OtherPrecisionWarning(UserWarning):
    """Vectors were fitted on the same weights in another number format."""


def check_origin(bank: ConceptBank, host: Host) -> None:
    """Refuse a bank on a model it was not fitted on.

    Raises:
        ValueError: Model, processing mode, tokenizer or width differ, or the units are latents of
            an SAE and the model is on a server; the text says which.

    Warns:
        OtherPrecisionWarning: Same weights in another number format.
    """
    info, origin = host.info, bank.origin
    if bank.token.scoring == "latent" and isinstance(host, BulkHost):
        raise ValueError(
            "the bank's units are latents of an SAE, and the attached model is on a server: an SAE "
            "runs where the activations are. Attach a local copy of the model."
        )
    width = bank.token.shape[-1]
    if width != info.d_model:
        raise ValueError(
            f"the bank's vectors have {width} dimensions, {info.model} has d_model = "
            f"{info.d_model}: the bank is of another model."
        )
    if max(bank.layers) >= info.n_layers:
        raise ValueError(
            f"the bank has vectors at block {max(bank.layers)}, {info.model} has blocks 0 to "
            f"{info.n_layers - 1}: the bank is of another model."
        )
    if origin.processing and origin.processing != info.processing:
        raise ValueError(
            f"the bank was fitted with weight processing {origin.processing!r}, the attached model "
            f"has {info.processing!r}: activations differ. Attach the model as it was fitted "
            "(enable_compatibility_mode rewrites the residual stream), or fit again."
        )
    if origin.fingerprint and origin.fingerprint != info.fingerprint:
        rounded = ""
        if origin.dtype and origin.dtype != info.dtype and origin.model == info.model:
            rounded = (
                f" Or is it the same model, in {info.dtype}? Its weights are rounded then: load it in "
                f"{origin.dtype}, as it was."
            )
        raise ValueError(
            f"the bank was fitted on {origin.model} (weights {origin.fingerprint[:12]}), the "
            f"attached model is {info.model} (weights {info.fingerprint[:12]}): concept vectors "
            f"do not carry over to other weights. Fit again on this model.{rounded}"
        )
    if origin.tokenizer and origin.tokenizer != info.tokenizer:
        raise ValueError(
            f"the bank was fitted with tokenizer {origin.tokenizer[:12]}, the attached model has "
            f"{info.tokenizer[:12]}: other tokens (a BOS, say) give other activations. Attach with "
            "the tokenizer it was fitted with, or fit again."
        )
    if origin.dtype and origin.dtype != info.dtype:
        warnings.warn(
            f"the bank was fitted in {origin.dtype}, the attached model runs in {info.dtype}: "
            "scores differ by its rounding, thresholds do not know it.",
            OtherPrecisionWarning,
            stacklevel=users_line(),
        )


def _require_banks(host: Host, banks: Sequence[ConceptBank]) -> None:
    if not banks:
        raise ValueError("no bank to score: give a ConceptBank or several.")
    for bank in banks:
        check_origin(bank, host)
    rules = {(bank.origin.sinks, bank.sink_layers) for bank in banks}
    if len(rules) > 1:
        raise ValueError(
            "the banks decide attention sinks differently, so their rows would differ: fit them "
            "from the same `collect(...)` statistics, or score them one by one."
        )


def _score(
    host: Host,
    samples: Sequence[Sample],
    split_of: Sequence[str],
    banks: Sequence[ConceptBank],
    budget: int,
    keep_of: TokenTable | None = None,
    folder: Path | None = None,
) -> list[ScoreTable]:
    _require_banks(host, banks)
    blocks = in_blocks(samples, split_of)
    if len(blocks) == 1 and folder is None:
        return _tables(
            banks,
            [_score_block(host, blocks[0], split_of, banks, budget, keep_of)],
            samples,
            split_of,
            budget,
        )
    with _folder(folder) as path:
        store = BlockStore(path, _settings(host, banks))
        _score_all(host, blocks, banks, budget, store, keep_of)
        return _tables(banks, [store.read(block) for block in blocks], samples, split_of, budget)


@contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sa_plugin-scores-") as made:
        yield Path(made)


def _settings(host: Host, banks: Sequence[ConceptBank]) -> dict[str, Any]:
    """All that scores of a block depend on, but its samples."""
    info = host.info
    return {
        "what": "score pass",
        "model": info.fingerprint,
        "dtype": info.dtype,
        "tokenizer": info.tokenizer,
        "batch_tokens": host.batch_tokens,
        "concepts": list(banks[0].concepts),
        "banks": [_digest(bank) for bank in banks],
    }


def _digest(bank: ConceptBank) -> str:
    """SHA-256 of all that is saved of a bank."""
    from sa_plugin.concepts.saved import bank_parts

    tensors, record = bank_parts(bank)
    found = hashlib.sha256(digest_of(record).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _score_all(
    host: Host,
    blocks: Sequence[Block],
    banks: Sequence[ConceptBank],
    budget: int,
    store: BlockStore,
    keep_of: TokenTable | None = None,
) -> None:
    """Score the blocks that are not in the store."""
    bar = tqdm(blocks, desc="scores", unit="block", disable=not host.progress, leave=False)
    for block in bar:
        # What a block is of is in its file: other documents of the same number are scored anew.
        if block in store and store.read(block).record["samples"] == block.digest:
            continue
        with warnings.catch_warnings():
            # Each block would warn of its own lost labels.
            warnings.simplefilter("ignore", LostLabelWarning)
            found = _score_block(host, block, [block.split] * len(block.samples), banks, budget, keep_of)
        store.write(block, found)


def _score_block(
    host: Host,
    block: Block,
    split_of: Sequence[str],
    banks: Sequence[ConceptBank],
    budget: int,
    keep_of: TokenTable | None,
) -> HeldBlock:
    concepts, samples = banks[0].concepts, block.loaded()
    layout = lay_out(host, samples, concepts)
    plain = tuple((bank.layers, bank.hook_point, bank.plain_sets) for bank in banks)

    def reducer(batch: Batch) -> Reducer:
        return partial(reducers.token_scores, valid=batch.valid, banks=plain, class_index=batch.class_index)

    job = Job({Site(at, bank.hook_point) for bank in banks for at in bank.layers}, reducer, budget=budget)
    sinks = banks[0].sinks_on(host.info) if keep_of is None else rows_kept_in(keep_of, layout, samples)
    (kept,) = run_jobs(host, layout, [job], sinks, description="scores")
    tokens = token_table(layout, kept.keep, samples, split_of, concepts)
    arrays = {**table_arrays(tokens), **{("row", name): rows for name, rows in kept.rows.items()}}
    arrays |= {("sample", name): values for name, values in kept.samples.items()}
    return HeldBlock(arrays, {"dropped": dict(tokens.dropped), "samples": block.digest})


def _tables(
    banks: Sequence[ConceptBank],
    blocks: Sequence[BlockArrays],
    samples: Sequence[Sample],
    split_of: Sequence[str],
    budget: int,
) -> list[ScoreTable]:
    """The tables of all blocks, in their order."""
    dropped = [block.record["dropped"] for block in blocks]
    tokens = joined_table(blocks, dropped, samples, split_of, banks[0].concepts)
    if len(blocks) > 1:
        lost = tokens.dropped["labelled sink"]
        warn_lost_labels(lost, lost + int(tokens.labels.any(-1).sum()))

    def of_samples(what: str, k: int) -> np.ndarray | None:
        name = ("sample", (what, k))
        if name not in blocks[0]:
            return None
        return joined((block[name] for block in blocks), len(samples), budget)

    return [
        ScoreTable(
            tokens,
            bank,
            joined((block["row", k] for block in blocks), len(tokens), budget),
            of_samples("permuted", k),
            of_samples("pooled", k),
            of_samples("cls", k),
        )
        for k, bank in enumerate(banks)
    ]
