"""doccano / JavaScript tools export spans in UTF-16 units, others in UTF-8 bytes (spaCy warns W030 'could not be aligned').
Right: a span that cuts through words (because of an emoji/accents before it) is refused or warned about, not silently shifted."""

import json, tempfile, warnings
from pathlib import Path
from _tiny import *
from sa_plugin.loaders.own import read_jsonl

p = Path(tempfile.mkdtemp()) / "x.jsonl"
lines = []
for k in range(12):
    text = f"😀😀😀 café{k} is where the cat sat"
    at = text.index("cat")
    at16 = len(text[:at].encode("utf-16-le")) // 2
    lines.append(json.dumps({"text": text, "labels": [[at16, at16 + 3, "animal"]]}))
p.write_text("\n".join(lines), encoding="utf-8")
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    try:
        data = read_jsonl(p)
    except ValueError as e:
        verdict(True, "refused:", e)
s = data.samples[0]
got = s.text[s.spans[0].start : s.spans[0].end]
verdict(
    bool(seen), "labelled characters:", repr(got), "wanted 'cat'; warnings:", [str(w.message) for w in seen]
)
