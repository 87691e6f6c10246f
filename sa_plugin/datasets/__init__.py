"""Data sets: embedded, rendered, and read from a user's own copy; see docs/data.md.

`ConceptData.load(name, root)` reads them by name. Nothing is downloaded except by `fetch_brown`.
"""

from sa_plugin.datasets.csv_files import read_csv
from sa_plugin.datasets.fetching import brown_folder, fetch_brown
from sa_plugin.datasets.huggingface import from_dataset
from sa_plugin.datasets.jsonl import read_jsonl
from sa_plugin.datasets.supersense import CONCEPTS, SupersensePassage, read_supersense

__all__ = [
    "CONCEPTS",
    "SupersensePassage",
    "brown_folder",
    "fetch_brown",
    "from_dataset",
    "read_csv",
    "read_jsonl",
    "read_supersense",
]
