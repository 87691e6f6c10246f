"""A corpus in, evidence out: blocks one after another, by as many workers as there are.

Shard i of n does the blocks i, i + n, i + 2n, ... in any order on any machine; what is done already is
not done again, so that a run that was killed goes on where it stopped. A folder of a run with other
settings is refused, and so is a block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from sa_plugin._check import require
from sa_plugin._face import face
from sa_plugin._files import writable_folder, write_text
from sa_plugin.detection.detector import Detector
from sa_plugin.host.protocol import Host
from sa_plugin.loaders.corpus import Corpus
from sa_plugin.passes.cluster import Engine, Work, attaching, work_through
from sa_plugin.scanning.block import ScanJob, read_block, scan_block
from sa_plugin.scanning.folder import END, MANIFEST, begin, opened_for, require_same
from sa_plugin.scanning.merge import merge
from sa_plugin.scanning.summary import Scan, summary
from sa_plugin.scanning.wanted import Wanted
from sa_plugin.scanning.windows import Windows
from sa_plugin.scores.score import check_origin


class TooManyBadError(ValueError):
    """More documents could not be read than was allowed."""


@face
def scan(
    host: Host | Callable[[], Host],
    detector: Detector,
    corpus: Any,
    out: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    engine: Engine = "here",
    windows: Windows = Windows(),
    texts: bool = True,
    max_bad: int = 100,
) -> Scan | None:
    """Find a detector's concepts in a corpus of any size, and write where they are.

    Costs one forward pass for each document, up to the deepest layer that a concept is read at; of one
    longer than the model, one for each window. Memory does not grow with the corpus. Killed and called
    again it goes on; a block that is done is not done again.

    Args:
        host: An attached model; or a function without arguments that attaches one, which each worker of
            an engine calls where it runs.
        detector: From `calibrate`, or loaded.
        corpus: From `open_corpus`, or what it takes.
        out: Folder for everything, the same for all shards (`sa_plugin.scanning.folder` says what is in it);
            with workers on several machines one that all of them see.
        shard: Which share of the blocks to scan, of how many; call `merge(out)` when all are done. The
            only one is merged at once.
        engine: "here" is this process; "ray" two actors of Ray, `RayPool` as many as it says.
        windows: How documents longer than the model are cut.
        texts: Whether words of the corpus are written; without them hits are their places.
        max_bad: So many documents of this share may fail; each is named in the manifest.

    Returns:
        What was found: of the whole corpus, or of the blocks that are there, None where there is none.

    Raises:
        ConnectionError: The cluster of Ray cannot be reached.
        FileNotFoundError: The corpus is not there; or, on a worker's machine, the folder.
        ImportError: pyarrow is not installed, or Ray where it is asked for.
        LostWorkersError: Workers died again and again.
        TooManyBadError: More documents failed than `max_bad`; the text names the first.
        TypeError: An engine is given a model that is attached here, or what cannot be sent.
        ValueError: The detector is of another model, the folder of a run with other settings, or there is
            no such shard or engine.
        OSError: The folder cannot be written; the text names the file.

    Example:
        >>> sa.scan(host, detector, "texts/*.jsonl", "found")  # doctest: +SKIP
    """
    require("pyarrow", "corpora", "writing what a scan finds")
    attach = attaching(host, engine)
    folder = writable_folder(out).absolute()
    opened = opened_for(corpus, folder)
    opened.blocks(shard)
    if (folder / MANIFEST).exists():
        known = {"detector": Wanted.of(detector).record, "corpus": opened.record, "texts": texts}
        require_same(folder, known)
    make = partial(_scanner, attach, replace(detector, host=None), opened, folder, windows, texts)
    end: list[int] = []
    blocks = takewhile(lambda _: not end, opened.blocks(shard))
    shown = not isinstance(host, Host) or host.progress
    with closing(work_through(engine, make, blocks)) as done:
        _scan_blocks((found for _, found in done), opened, shard, end, max_bad, shown)
    if end or opened.n_documents is not None:
        write_text(folder / END, json.dumps({"documents": end[0] if end else opened.n_documents}))
    if shard == (0, 1):
        return merge(folder)
    return summary(folder) if any(folder.glob("blocks/[0-9]*")) else None


class _Done(NamedTuple):
    """What comes back of a block."""

    record: dict[str, Any]
    was_there: bool
    # Documents of a corpus, of a stream when its end has been met.
    end: int | None


def _scanner(
    attach: Callable[[], Host],
    detector: Detector,
    corpus: Corpus,
    folder: Path,
    windows: Windows,
    texts: bool,
) -> Work:
    """What does one block, in whatever process it is called.

    Raises:
        FileNotFoundError: The folder is not there: it is that of another machine.
        ValueError: The detector is of another model, or the folder of a run with other settings.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not on this machine: give a folder that all workers see, of a network disk."
        )
    host = attach()
    check_origin(detector.bank, host)
    job = ScanJob(host, Wanted.of(detector), corpus, windows, texts)
    begin(job, folder)

    def work(block: int) -> _Done:
        there = read_block(folder, block, job.digest)
        record = scan_block(job, block, folder) if there is None else there
        return _Done(record, there is not None, corpus.n_documents)

    return work


def _scan_blocks(
    done: Iterable[_Done], corpus: Corpus, shard: tuple[int, int], end: list[int], max_bad: int, shown: bool
) -> None:
    """Have the blocks of one shard done, with a bar; stop where too much is bad, and say where a stream ends.

    Raises:
        TooManyBadError: More documents failed than `max_bad`.
    """
    total, size = corpus.n_documents, corpus.block_size
    mine = None if total is None else sum(min(size, total - k * size) for k in corpus.blocks(shard))
    bad: list[dict[str, Any]] = []
    with tqdm(total=mine, desc="scan", unit="document", unit_scale=True, disable=not shown) as bar:
        for record, was_there, met in done:
            if was_there and not bar.disable:
                # What was done before is no work of this run: the rate counts what follows.
                bar.initial += record["documents"]
            bar.update(record["documents"])
            bad += record["bad"]
            if len(bad) > max_bad:
                named = "; ".join(f"{one['document']} ({one['fault']})" for one in bad[:3])
                raise TooManyBadError(
                    f"{len(bad)} documents failed, more than max_bad={max_bad}; the first: {named}. Mend the "
                    "corpus, or allow more."
                )
            if total is None and met is not None and not end:
                end.append(met)
