"""Rows of a Hugging Face dataset in numpy or torch format (ds.with_format("numpy"), what most training notebooks leave behind; the
tokens-and-tags layout is datasets#850/#797). Right: the same data as with Python lists, or an error that names the format."""

from _tiny import *
from datasets import Dataset, Features, Value, ClassLabel, Sequence
from sa_plugin.loaders.own import from_dataset

feats = Features(
    {"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "B-PER", "I-PER"]))}
)
ds = Dataset.from_dict(
    {"tokens": [["Ann", f"met{k}", "Bob"] for k in range(12)], "ner_tags": [[1, 0, 1]] * 12}, features=feats
)
cols = {"tokens": "tokens", "tags": "ner_tags"}
want = from_dataset(ds, cols)
print(want)
out = {}
for fmt in ("numpy", "torch"):
    try:
        out[fmt] = from_dataset(ds.with_format(fmt), cols).hash == want.hash
    except Exception as e:
        out[fmt] = f"{type(e).__name__}: {e}"
print(out)
verdict(all(v is True or "format" in str(v) for v in out.values()), out)
