"""Part-of-speech tags of the passages, from a tagger in a process and environment of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from sa_plugin._files import write_text
from supersense.passages import Passage

Token = tuple[int, int, str]


def tag(passages: list[Passage], python: Path, work: Path) -> list[list[Token]]:
    """Return [start, end, Penn tag] of each token of each passage; kept in the work folder."""
    lines = "".join(json.dumps(passage.text) + "\n" for passage in passages)
    kept = work / f"tags-{hashlib.sha256(lines.encode()).hexdigest()[:12]}.jsonl"
    if not kept.exists():
        script = Path(__file__).with_name("tag_words.py")
        done = subprocess.run(
            [str(python), str(script)],
            input=lines,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        write_text(kept, done.stdout)
    tagged = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    if len(tagged) != len(passages):
        counts = f"{len(tagged)} lines for {len(passages)} passages"
        raise RuntimeError(f"{kept} has {counts}: delete it and build again")
    return [[(start, end, name) for start, end, name in line] for line in tagged]
