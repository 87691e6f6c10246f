"""A corpus in, evidence out: blocks one after another, by as many workers as there are.

Shard i of n does the blocks i, i + n, i + 2n, ... in any order on any machine; what is done already is
not done again, so that a run that was killed goes on where it stopped. A folder of a run with other
settings is refused, and so is a block.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sa_plugin._check import require
from sa_plugin._face import face
from sa_plugin._files import writable_folder, write_text
from sa_plugin.detection.detector import Detector
from sa_plugin.host.protocol import Host
from sa_plugin.scanning.block import Job, Wanted, read_block, scan_block
from sa_plugin.scanning.folder import END, begin, opened_for
from sa_plugin.scanning.merge import merge
from sa_plugin.scanning.summary import Scan, summary
from sa_plugin.scanning.windows import Windows
from sa_plugin.scores.score import check_origin


class TooManyBadError(ValueError):
    """More documents could not be read than was allowed."""


@face
def scan(
    host: Host,
    detector: Detector,
    corpus: Any,
    out: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    windows: Windows = Windows(),
    texts: bool = True,
    max_bad: int = 100,
) -> Scan | None:
    """Find a detector's concepts in a corpus of any size, and write where they are.

    Costs one forward pass for each document, up to the deepest layer that a concept is read at; of one
    longer than the model, one for each window. Memory does not grow with the corpus. Killed and called
    again it goes on; a block that is done is not done again.

    Args:
        host: An attached model.
        detector: From `calibrate`, or loaded.
        corpus: From `open_corpus`, or what it takes.
        out: Folder for everything, the same for all shards (`sa_plugin.scanning.folder` says what is in it).
        shard: Which share of the blocks to scan, of how many; call `merge(out)` when all are done. The
            only one is merged at once.
        windows: How documents longer than the model are cut.
        texts: Whether words of the corpus are written; without them hits are their places.
        max_bad: So many documents of this share may fail; each is named in the manifest.

    Returns:
        What was found: of the whole corpus, or of the blocks that are there, None where there is none.

    Raises:
        FileNotFoundError: The corpus is not there.
        ImportError: pyarrow is not installed.
        TooManyBadError: More documents failed than `max_bad`; the text names the first.
        ValueError: The detector is of another model, the folder of a run with other settings, or there is
            no such shard.
        OSError: The folder cannot be written; the text names the file.

    Example:
        >>> sa.scan(host, detector, "texts/*.jsonl", "found")  # doctest: +SKIP
    """
    require("pyarrow", "corpora", "writing what a scan finds")
    check_origin(detector.bank, host)
    folder = writable_folder(out)
    opened = opened_for(corpus, folder)
    opened.blocks(shard)
    job = Job(host, Wanted.of(detector), opened, windows, texts)
    begin(job, folder)
    scan_shard(job, folder, shard, max_bad)
    if shard == (0, 1):
        return merge(folder)
    return summary(folder) if any(folder.glob("blocks/[0-9]*")) else None


def scan_shard(job: Job, folder: Path, shard: tuple[int, int] = (0, 1), max_bad: int = 100) -> None:
    """Scan the blocks of one shard that are not done.

    Raises:
        TooManyBadError: More documents failed than `max_bad`.
        ValueError: A block was done with other settings, or there is no such shard.
    """
    total = job.corpus.n_documents
    size = job.corpus.block_size
    blocks = job.corpus.blocks(shard)
    mine = None if total is None else sum(min(size, total - k * size) for k in job.corpus.blocks(shard))
    bad: list[dict[str, Any]] = []
    look = {"desc": "scan", "unit": "document", "unit_scale": True, "disable": not job.host.progress}
    with tqdm(total=mine, **look) as bar:
        for block in blocks:
            record = read_block(folder, block, job.digest)
            if record is None:
                record = scan_block(job, block, folder)
                bar.update(record["documents"])
            else:
                if not bar.disable:
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
    if job.corpus.n_documents is not None:
        write_text(folder / END, json.dumps({"documents": job.corpus.n_documents}))
