"""spark-nlp#831 'Support BIOES tagging style', DeepPavlov#1132 'convert BILOU NER output', allennlp#1041: corpora come as BIOES /
BILOU too. Right: S-PER, E-PER, U-PER, L-PER are the concept PER (or are refused), not concepts of their own."""

from _tiny import *
from sa_plugin.loaders.own import from_dataset


class Rows(list):
    column_names = ["w", "t"]


rows = []
for k in range(12):
    rows += [
        {
            "w": ["Ann", "Lee", f"met{k}", "Bob", "in", "New", "York", "City"],
            "t": ["B-PER", "E-PER", "O", "S-PER", "O", "B-LOC", "I-LOC", "E-LOC"],
        },
        {
            "w": ["Ann", "Lee", f"saw{k}", "Bob", "in", "Old", "York", "Town"],
            "t": ["B-PER", "L-PER", "O", "U-PER", "O", "B-LOC", "I-LOC", "L-LOC"],
        },
    ]
try:
    data = from_dataset(Rows(rows), {"tokens": "w", "tags": "t"})
except ValueError as e:
    verdict(True, "refused:", e)
verdict(set(data.concepts) == {"PER", "LOC"}, "concepts:", data.concepts)
