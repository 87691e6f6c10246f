"""One door to data: a name, a file, a folder or a dataset in memory. Nothing here downloads anything.

| source | read as |
|---|---|
| a name | embedded, rendered, or `root`: the published layout, or with metadata.csv the authors' |
| `.jsonl`, `.csv` | labelled texts of the user's own; with `columns`, as a dataset |
| `.conll`, `.iob`, `.bio`, `.conllu` | words with tags, one a line |
| a folder with metadata.csv | the layout of the authors' code, all its concepts |
| rows with `column_names`, or a mapping of split to such | a dataset, by `columns` |

A new data set is a function of a `Reading` and one line of `LOADERS`; a new file format a function
of a path and one line of `READERS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa_plugin._check import did_you_mean, require_known
from sa_plugin._face import face
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.loose import PICTURES
from sa_plugin.loaders.annotated import tool_of_path
from sa_plugin.loaders.authors import load_authors_pictures, load_authors_texts
from sa_plugin.loaders.broden import load_broden
from sa_plugin.loaders.brown import brown_folder, load_brown
from sa_plugin.loaders.clevr import load_clevr
from sa_plugin.loaders.coco import load_coco
from sa_plugin.loaders.comments import load_goemotions, load_isarcasm
from sa_plugin.loaders.conll import read_conll, read_conllu
from sa_plugin.loaders.emoji import emoji_folder, emoji_scenes
from sa_plugin.loaders.files import read_table
from sa_plugin.loaders.own import from_dataset, read_csv, read_jsonl, rows_of_file
from sa_plugin.loaders.reading import Reading
from sa_plugin.loaders.rows import kind_of_columns
from sa_plugin.loaders.shape_scenes import shapes
from sa_plugin.loaders.supersense import load_supersense
from sa_plugin.loaders.tail_scenes import load_tail_scenes
from sa_plugin.loaders.tail_spans import load_tail_spans

_Read = Callable[..., ConceptData]
_PUBLISHED = ("plain", "published")
_SAVED_DATASET = ("dataset_dict.json", "dataset_info.json", "state.json")
_OR_A_PATH = "a path: a .jsonl, .csv, .conll or .conllu file, or a folder with metadata.csv"


@dataclass(frozen=True)
class Loader:
    """How a named data set is read.

    Attributes:
        read: A function of a `Reading` of the published layout, or of `seed` (and of `root`, if it
            takes one) where the data are embedded or rendered; None where only the authors' layout
            exists.
        authors: The same for a folder with a metadata.csv.
        default_root: Where to look when no root is given.
        splits: Names that `split` may have.
        finds_root: Whether it looks for its folder itself where none is given.
    """

    read: _Read | None
    authors: _Read | None = None
    default_root: Callable[[], Path] | None = None
    splits: tuple[str, ...] = _PUBLISHED
    finds_root: bool = False

    @property
    def has_root(self) -> bool:
        """Whether the data lie in a folder of the user's."""
        return self.read is None or bool({"reading", "root"} & set(inspect.signature(self.read).parameters))


LOADERS: dict[str, Loader] = {
    "supersense": Loader(load_supersense, splits=("plain", "held_out_lemma")),
    "emoji": Loader(emoji_scenes, default_root=emoji_folder, splits=("plain",)),
    "shapes": Loader(shapes, splits=("plain",)),
    "brown": Loader(load_brown, default_root=brown_folder, splits=("plain",)),
    "tail_spans": Loader(load_tail_spans, splits=("plain",), finds_root=True),
    "tail_scenes": Loader(load_tail_scenes, splits=("plain",), finds_root=True),
    "clevr": Loader(load_clevr, load_authors_pictures),
    "coco": Loader(load_coco, load_authors_pictures),
    "opensurfaces": Loader(load_broden, load_authors_pictures),
    "pascal": Loader(load_broden, load_authors_pictures),
    "sarcasm": Loader(None, load_authors_texts),
    "isarcasm": Loader(load_isarcasm, load_authors_texts),
    "goemotions": Loader(load_goemotions, load_authors_texts),
}
READERS: dict[str, _Read] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".conll": read_conll,
    ".iob": read_conll,
    ".bio": read_conll,
    ".conllu": read_conllu,
}


@face
def load(
    source: Any, root: str | Path | None = None, *, split: str | None = None, seed: int = 0, **options: Any
) -> ConceptData:
    """A data set by name, from a file or folder of yours, or from a dataset. Downloads nothing.

    Args:
        source: "supersense", "emoji", "shapes", "brown", "clevr", "coco", "opensurfaces",
            "pascal", "sarcasm", "isarcasm", "goemotions", "tail_spans" or "tail_scenes" (docs/datasets.md
            says what each needs); or
            the path of a .jsonl or .csv file or of a folder with a metadata.csv; or a Hugging Face
            dataset, or a mapping of split to dataset, with `columns=`.
        root: For a name, the folder of your copy, in the published layout or the one of the
            authors' code (with a metadata.csv).
        split: "plain" divides documents at random; "published" takes the files' own parts;
            "held_out_lemma" (supersense) has no labelled lemma of test in train or cal. By default
            "plain" for names and folders; your own files and datasets are divided as they say.
        seed: Seed of the division and of what is drawn or rendered.
        **options: Of a name or folder, such as `concepts=` or `limit=` (docs/datasets.md). Of a dataset,
            and of a .csv or .jsonl file that names its columns otherwise: `columns`, role to column, one of
            "text", "tokens" or "image", its labels ("spans", "tags", "mask") and perhaps "label",
            "document" and "id"; `names`, role to names of class numbers where the dataset has none
            (`columns` may be left out where they are called "text" and "label"); `concepts` and `name`.
            Of texts that are labelled as a whole, in a file or dataset: `token_labels`, as in
            `ConceptData.from_texts`.

    Returns:
        The data; `skipped` says what was left out and why.

    Raises:
        FileNotFoundError: A file is not there.
        TypeError: The source is no name, no path and no dataset.
        ValueError: No such name, suffix, split or option, or a file that is not as expected: the
            text names file and line or key.

    Example:
        >>> data = load("supersense", split="held_out_lemma")
    """
    if isinstance(source, str) and source in LOADERS:
        return _load_named(source, root, "plain" if split is None else split, seed, options)
    if root is not None:
        raise ValueError(f"root is for data sets by name ({', '.join(LOADERS)}): leave it out.")
    if isinstance(source, str | Path):
        return _load_path(source, split, seed, options)
    if not isinstance(source, Mapping) and not hasattr(source, "column_names"):
        if hasattr(source, "columns") and hasattr(source, "to_numpy"):
            raise TypeError(
                f"source is a table ({type(source).__name__}): give its columns, such as "
                "ConceptData.from_texts(table['text'], table['label'])."
            )
        raise TypeError(
            f"source is a {type(source).__name__}, not a name, a path or rows with column_names: give "
            f"one of {', '.join(LOADERS)}, {_OR_A_PATH}, or a Hugging Face dataset."
        )
    if "columns" not in options:
        options["columns"] = _text_and_label(source)
    _require_options("a dataset", options, options_of(from_dataset))
    return from_dataset(source, split=split, seed=seed, **options)


def _text_and_label(source: Any) -> dict[str, str]:
    """The columns of a dataset that calls them text and label, the commonest kind.

    Raises:
        ValueError: It has other columns, so their roles must be said.
    """
    one = next(iter(source.values()), None) if isinstance(source, Mapping) else source
    there = list(getattr(one, "column_names", None) or ())
    if not {"text", "label"} <= set(there):
        found = f" Found: {', '.join(map(repr, there))}." if there else ""
        raise ValueError(
            "source is a dataset, and a dataset needs columns=, role to column, such as "
            f"{{'text': 'sentence', 'spans': 'marks'}}.{found}"
        )
    return {role: role for role in ("text", "label", "document", "id") if role in there}


def options_of(read: _Read) -> list[str]:
    """What `load` takes beside name, root, split and seed for data that this function reads."""
    names = set(inspect.signature(read).parameters)
    of_reading = {"concepts", "limit"} if "reading" in names else set()
    return sorted(names - {"reading", "path", "dataset", "root", "split", "seed"} | of_reading)


def _load_named(
    name: str, root: str | Path | None, split: str, seed: int, options: dict[str, Any]
) -> ConceptData:
    loader = LOADERS[name]
    require_known("split", split, loader.splits)
    read = loader.read
    if not loader.has_root and root is not None:
        raise ValueError(f"data set {name!r} is embedded or rendered: leave root out.")
    if read is not None and "reading" not in inspect.signature(read).parameters:
        _require_options(name, options, options_of(read))
        chosen: dict[str, Any] = {"split": split} if len(loader.splits) > 1 else {}
        if loader.has_root and not (loader.finds_root and root is None):
            chosen["root"] = _folder(name, loader, root)
        return read(seed=seed, **chosen, **options)
    folder = _folder(name, loader, root)
    if loader.authors and (folder / "metadata.csv").exists():
        read = loader.authors
    if read is None:
        raise FileNotFoundError(
            f"{folder}/metadata.csv does not exist: {name!r} exists only in the format of the authors' code."
        )
    return _read(read, name, folder, split, seed, options)


def _load_path(source: str | Path, split: str | None, seed: int, options: dict[str, Any]) -> ConceptData:
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path, split or "plain", seed, options)
    if path.suffix.lower() in READERS:
        read = READERS[path.suffix.lower()]
        of_roles = read in (read_csv, read_jsonl)
        if of_roles and options.get("columns") is not None:
            return _load_rows(path, split, seed, options)
        _require_options(path.name, options, [*["columns"] * of_roles, *options_of(read)])
        options.pop("columns", None)
        return read(path, split=split, seed=seed, **options)
    if isinstance(source, str) and len(path.parts) == 1 and not path.suffix:
        raise ValueError(
            f"data set {source!r} is unknown{did_you_mean(source, LOADERS)} Known: "
            f"{', '.join(LOADERS)}; or {_OR_A_PATH}."
        )
    if not path.suffix:
        raise FileNotFoundError(f"{path} does not exist: give one of {', '.join(LOADERS)}, or {_OR_A_PATH}.")
    tool = tool_of_path(path)
    if tool is not None:
        raise ValueError(f"{path} is not read as it is; {tool}")
    raise ValueError(
        f"{path}: suffix {path.suffix!r} is unknown{did_you_mean(path.suffix, READERS)} Known: "
        f"{', '.join(READERS)}; a Hugging Face dataset is given as an object, with columns=, anything else "
        "by what is in it: ConceptData.from_texts, from_words, from_spans or from_masks."
    )


def _load_rows(path: Path, split: str | None, seed: int, options: dict[str, Any]) -> ConceptData:
    """A file by the roles of its columns, read as a dataset is."""
    _require_options(path.name, options, options_of(from_dataset))
    kind_of_columns(options["columns"])
    rows = rows_of_file(path, options["columns"], options.get("names"))
    return from_dataset(rows, split=split, seed=seed, **{"name": path.name} | options)


def _load_folder(folder: Path, split: str, seed: int, options: dict[str, Any]) -> ConceptData:
    if any((folder / name).exists() for name in _SAVED_DATASET):
        raise ValueError(
            f"{folder} is a saved Hugging Face dataset: give load the object, "
            "load(datasets.load_from_disk(folder), columns={role: column})."
        )
    if not (folder / "metadata.csv").exists():
        tool = tool_of_path(folder)
        if tool is not None:
            raise ValueError(f"{folder} is not read as it is; {tool}")
        if any(one.suffix.lower() in PICTURES for one in folder.rglob("*")):
            raise FileNotFoundError(
                f"{folder}/metadata.csv does not exist: name its pictures and their masks in a table, "
                "load('mine.csv', columns={'image': ..., 'mask': ...}), or in lists, "
                "ConceptData.from_masks(paths, [{concept: mask}, ...])."
            )
        raise FileNotFoundError(
            f"{folder}/metadata.csv does not exist: a folder is read by its metadata.csv, or by a name, "
            f"load(name, folder), one of {', '.join(n for n, one in LOADERS.items() if one.has_root)}."
        )
    columns = read_table(folder / "metadata.csv", ["split"])[0].values
    read = load_authors_pictures if "image_path" in columns else load_authors_texts
    require_known("split", split, _PUBLISHED)
    return _read(read, folder.resolve().name, folder, split, seed, options)


def _read(
    read: _Read, name: str, folder: Path, split: str, seed: int, options: dict[str, Any]
) -> ConceptData:
    _require_options(name, options, options_of(read))
    own = dict(options)
    asked = {key: own.pop(key) for key in ("concepts", "limit") if key in own}
    return read(Reading(name, folder, split, seed, **asked), **own)


def _require_options(what: str, options: Collection[str], known: Collection[str]) -> None:
    for option in options:
        if not known:
            raise ValueError(f"option of {what} {option!r} is unknown: it takes none but split and seed.")
        require_known(f"option of {what}", option, known)


def _folder(name: str, loader: Loader, root: str | Path | None) -> Path:
    if root is None and loader.default_root is not None:
        return loader.default_root()
    if root is None:
        raise ValueError(
            f"data set {name!r} needs root=, the folder of your copy (nothing is downloaded): "
            "docs/datasets.md says what to fetch and how it is laid out."
        )
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give the folder of your copy of {name!r}.")
    return folder
