"""The unit of work: a block of samples, laid out, batched and run by itself, and kept in a file.

Data that are read from a corpus come in its blocks, other data in one. Batches are formed inside a block,
so what a block gives depends on the block alone: which worker runs it, when, and after which others
changes nothing. Sums are added in the order of the blocks. So shards in any order, a run that was
killed and started again, and one pass give the same bits on the same hardware and number of threads.

A store is a folder with `blocks.json`, which says what was asked (a store of anything else is refused),
and a file for each block, written whole or not at all: NumPy's npz, uncompressed, whose parts carry
check sums.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from tqdm.auto import tqdm

from sa_plugin._check import require_shard
from sa_plugin._files import (
    DamagedFileError,
    read_object,
    require_sealed,
    sealed,
    writable_folder,
    write_text,
    written,
)
from sa_plugin.data.sample import Sample
from sa_plugin.passes.cluster import Engine, Work, work_through
from sa_plugin.passes.layout import TokenTable, known_or_all
from sa_plugin.passes.run import MEMORY_BUDGET, allocate

FORMAT = 1
_RECORD = "record"


class Block(NamedTuple):
    """Samples of one split that are run together.

    Attributes:
        number: Of the block in its corpus; samples in memory are block 0.
        split: Name of their split.
        samples: In the order of the corpus.
    """

    number: int
    split: str
    samples: tuple[Sample, ...]

    @property
    def name(self) -> str:
        """Of what is kept of it."""
        return f"{self.split or 'samples'}-{self.number:08d}"

    @property
    def file(self) -> str:
        """Name of what is kept of it, in a folder."""
        return f"{self.name}.npz"

    @property
    def digest(self) -> str:
        """Of the samples: of their names and contents, which need not be read for it."""
        return hashlib.sha256(repr([(s.id, s.document, s.digest) for s in self.samples]).encode()).hexdigest()

    def loaded(self) -> tuple[Sample, ...]:
        """The samples with their contents."""
        return tuple(sample.loaded for sample in self.samples)

    def in_shard(self, shard: tuple[int, int]) -> bool:
        """Whether it is of the shard i of n, as `Corpus.blocks` deals them."""
        return self.number % shard[1] == shard[0]


def in_blocks(samples: Sequence[Sample], split_of: Sequence[str]) -> list[Block]:
    """Samples by block, in their order; those in memory are one block, whatever their splits.

    Raises:
        ValueError: Samples of a block do not follow one another, or some are in memory and some not.
    """
    if all(sample.block is None for sample in samples):
        return [Block(0, "", tuple(samples))]
    keyed = ((of, sample.block, sample) for sample, of in zip(samples, split_of, strict=True))
    found = [
        Block(-1 if number is None else number, of, tuple(sample for *_, sample in group))
        for (of, number), group in groupby(keyed, key=lambda one: one[:2])
    ]
    if len({block[:2] for block in found}) < len(found) or any(block.number < 0 for block in found):
        raise ValueError(
            "samples of one block of a corpus do not follow one another: give them in the order of the "
            "corpus, such as data.test, and not together with others."
        )
    return found


def run_blocks(engine: Engine, make: Callable[[], Work], blocks: Sequence[Block]) -> None:
    """Have blocks run and kept by the workers of an engine.

    Args:
        engine: Whose.
        make: Called by each worker; what it returns runs and keeps the block of a name.
        blocks: To be run.
    """
    names = (block.name for block in blocks)
    for _ in tqdm(work_through(engine, make, names), total=len(blocks), desc="blocks", leave=False):
        pass


def chosen_blocks(
    blocks: Iterable[Block], shard: tuple[int, int], numbers: Sequence[int] | None
) -> list[Block]:
    """The blocks of a shard, or those of some numbers.

    Raises:
        ValueError: There is no such shard.
    """
    require_shard(shard)
    return [one for one in blocks if (one.in_shard(shard) if numbers is None else one.number in numbers)]


class BlockStore:
    """What blocks gave, in a folder.

    Args:
        folder: Made if missing.
        settings: What was asked of the model, and of which data; JSON-ready.

    Raises:
        ValueError: The folder holds blocks of other settings; the text names the first that differs.
        DamagedFileError: Its `blocks.json` is damaged.
        OSError: It cannot be written.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = writable_folder(folder)
        path, fix = self.folder / "blocks.json", f"delete the folder {self.folder}, and run again"
        wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
        if not path.exists():
            write_text(path, json.dumps(sealed(wanted), indent=1))
        found = read_object(path, fix)
        require_sealed(found, path, fix)
        for name in dict.fromkeys((*wanted, *found)):
            if name != "digest" and wanted.get(name) != found.get(name):
                raise ValueError(
                    f"{self.folder} holds blocks of another run: {name} was {found.get(name)!r:.80}, now "
                    f"{wanted.get(name)!r:.80}. Name another folder, or ask the same."
                )

    def path(self, block: Block) -> Path:
        """File of a block."""
        return self.folder / block.file

    def __contains__(self, block: Block) -> bool:
        return self.path(block).is_file()

    def write(self, block: Block, found: HeldBlock) -> None:
        """Keep what a block gave; what an earlier run kept of it is replaced."""
        said = np.frombuffer(json.dumps(found.record).encode(), dtype=np.uint8)
        with written(self.path(block)) as partial, partial.open("wb") as file:
            # Names are literals of Python: numbers and texts, or tuples of them.
            arrays: dict[str, Any] = {repr(name): array for name, array in found.items()}
            arrays[repr(_RECORD)] = said
            np.savez(file, **arrays)

    def read(self, block: Block) -> StoredBlock:
        """What a block gave, array by array.

        Raises:
            FileNotFoundError: It was not run.
            DamagedFileError: It is not as it was written.
        """
        return StoredBlock(self.path(block))


class HeldBlock(dict[Any, np.ndarray]):
    """Arrays of one block by name, in memory.

    Attributes:
        record: What is said beside them; JSON-ready.
    """

    def __init__(self, arrays: Mapping[Any, np.ndarray], record: Mapping[str, Any]) -> None:
        super().__init__(arrays)
        self.record = dict(record)

    def group(self, name: str) -> dict[tuple[Any, ...], np.ndarray]:
        """The arrays whose name is a tuple that begins so."""
        return {key: array for key, array in self.items() if isinstance(key, tuple) and key[0] == name}


class StoredBlock:
    """Arrays of one block by name, each read from its file when it is asked for.

    Attributes:
        record: What is said beside them.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: its block was not run, run all shards before merging."
            )
        self.path = path
        with self._opened() as stored:
            self._names = {literal_eval(name) for name in stored.files}
            self.record: dict[str, Any] = json.loads(stored[repr(_RECORD)].tobytes())

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: Any) -> np.ndarray:
        with self._opened() as stored:
            return np.asarray(stored[repr(name)])

    def group(self, name: str) -> dict[tuple[Any, ...], np.ndarray]:
        """The arrays whose name is a tuple that begins so."""
        wanted = [key for key in self._names if isinstance(key, tuple) and key[0] == name]
        with self._opened() as stored:
            return {key: np.asarray(stored[repr(key)]) for key in sorted(wanted, key=repr)}

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                yield stored
        except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
            fix = "delete it, and run its block again"
            raise DamagedFileError(f"{self.path} is damaged ({error}): {fix}.") from error


BlockArrays: TypeAlias = HeldBlock | StoredBlock


def joined(parts: Iterable[np.ndarray], n: int, budget: int = MEMORY_BUDGET) -> np.ndarray:
    """Arrays below one another, in memory or, above a budget of bytes, in a temporary file.

    Args:
        parts: The arrays, one after another; `n` rows together.
        n: Number of rows.
        budget: Bytes.
    """
    found, start = None, 0
    for part in parts:
        if len(part) == n:
            return part
        if found is None:
            found = allocate((n, *part.shape[1:]), part.dtype, budget)
        found[start : start + len(part)] = part
        start += len(part)
    assert found is not None
    return found


def table_arrays(tokens: TokenTable) -> dict[Any, np.ndarray]:
    """The rows of one block as arrays."""
    arrays: dict[Any, np.ndarray] = {
        "lengths": np.diff(tokens.bounds),
        "position": tokens.position,
        "offsets": tokens.offsets,
        "labels": tokens.labels,
    }
    if tokens.known is not None:
        arrays["known"] = tokens.known
    return arrays


def joined_table(
    blocks: Sequence[BlockArrays],
    dropped: Sequence[Mapping[str, int]],
    samples: Sequence[Sample],
    split_of: Sequence[str],
    concepts: Sequence[str],
) -> TokenTable:
    """The table of all blocks, from the arrays of each in their order."""
    lengths = np.concatenate([block["lengths"] for block in blocks])
    n = int(lengths.sum())
    known = None
    if any("known" in block for block in blocks):
        all_of = (block["known"] if "known" in block else np.ones_like(block["labels"]) for block in blocks)
        known = known_or_all(joined(all_of, n), slice(None))
    position, offsets, labels = (
        joined((block[name] for block in blocks), n) for name in ("position", "offsets", "labels")
    )
    return TokenTable(
        tuple(samples),
        tuple(split_of),
        tuple(concepts),
        np.repeat(np.arange(len(samples)), lengths.astype(np.int64)),
        position,
        offsets,
        labels,
        {why: sum(one[why] for one in dropped) for why in dropped[0]},
        known,
    )
