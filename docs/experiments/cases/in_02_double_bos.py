"""OpenRLHF#393 / vllm#27515: a rendered chat template starts with BOS and the tokenizer's rule puts a second one in.
Right: no second BOS, or a refusal/warning; and the BOS written in the text must not be a row."""

import warnings
from _tiny import *
from sa_plugin.passes import lay_out
from sa_plugin.data import Sample

tok = bytelevel(bos=True, extra=("<|user|>",))
host = attach(llama(tok), tok)
text = "<bos><|user|>the cat sat"
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    try:
        lay = lay_out(host, [Sample("a", text, "a")], ["x"])
    except ValueError as e:
        verdict(True, "refused:", e)
ids = lay.batches[0].inputs["input_ids"][0].tolist()
rows = [text[s:e] for s, e in lay.offsets]
print("ids", ids[:4], "rows", rows)
warned = [str(w.message) for w in seen]
verdict((ids[:2] != [0, 0] and "<bos>" not in rows) or bool(warned), "warnings:", warned)
