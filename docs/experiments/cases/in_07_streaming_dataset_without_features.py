"""datasets#3888 'IterableDataset columns and feature types', #5284: a streamed data set after map/from_generator has
column_names None and features None. Right: read it (rows are dicts), or an error that says that this is the reason and the way out."""

from _tiny import *
from datasets import IterableDataset
from sa_plugin.loaders.own import from_dataset


def gen():
    for k in range(12):
        yield {"tokens": ["Ann", f"met{k}", "Bob"], "tags": ["B-PER", "O", "B-PER"]}


ds = IterableDataset.from_generator(gen)
print("column_names:", ds.column_names)
try:
    data = from_dataset(ds, {"tokens": "tokens", "tags": "tags"})
    verdict(data.concepts == ("PER",), data)
except (TypeError, ValueError) as e:
    print(type(e).__name__, e)
    verdict(
        "column_names" in str(e) and "stream" in str(e).lower() or "features" in str(e),
        "error names the reason (streaming, features unknown)?",
    )
