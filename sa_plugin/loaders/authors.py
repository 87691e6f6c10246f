"""Data in the layout of the authors' code: metadata.csv, one row a picture or a paragraph.

Pictures: `image_path`, `split` (train, cal, test) and one 0/1 column a concept. What the row says is
the sample label; masks of concepts that it denies are not used (and counted), as in the authors'
code. Masks come from:

| data | from |
|---|---|
| CLEVR | the picture: pixels of which two channels differ by more than 20; one object a scene |
| COCO | `instances_*.json` in the folder, in its annotations/, or in ../Coco-Cal/annotations/ |
| Broden | `segmentations.pt`: for each row {concept: mask}, read without running pickled code |

The authors stretch masks to 224 x 224 while CLIP's processor crops; here patches read the masks of
the original picture through the processor's own geometry.

Texts:

| file | columns |
|---|---|
| metadata.csv | `text_path` (a file with the text), `split`; one row a paragraph |
| paragraph_level_*.csv | `paragraph_id` (from 1), one 0/1 column a concept; perhaps `text` |
| word_level_*.csv | `paragraph_id`, `word`, one 0/1 column a concept; one row a word, in order |

The sample label is the paragraph's; a paragraph may be positive with no positive word. The word
labels belong to the words of the text (runs of characters that are not white space) by their order
alone. The authors' code takes that on trust; here every word is compared with the text, punctuation
around it aside, and the first that differs is an error: one lost word would shift all that follow.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from sa_plugin.data.build import mask_sample, span_samples
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import SPLITS
from sa_plugin.loaders.clevr import foreground
from sa_plugin.loaders.coco import CocoPicture, masks_of_picture, read_instances, require_size
from sa_plugin.loaders.files import TableRow, fit_mask, read_picture, read_table, read_text, require_path
from sa_plugin.loaders.paper import PAPER_CONCEPTS
from sa_plugin.loaders.reading import Reading, one_document_a_text

_Pixels = UInt8[np.ndarray, "height width 3"]
_Masks = Mapping[str, Bool[np.ndarray, "height width"]]
# Place of the row, the row, its picture and the wanted concepts, to masks.
_MaskReader = Callable[[int, TableRow, _Pixels, Sequence[str]], _Masks]
_NOT_OF_IMAGES = ("image_path", "text_path", "split", "class", "")
_NOT_OF_TEXTS = ("paragraph_id", "word", "text", "text_path", "split", "sentiment_label", "")
_IMAGE_LAYOUT = "give the folder that holds metadata.csv and the pictures it names"
_TEXT_LAYOUT = "give the folder that holds metadata.csv, paragraph_level_*.csv and word_level_*.csv"
_AROUND_WORDS = string.punctuation + "“”‘’«»…–—"


def load_authors_pictures(reading: Reading, *, min_coverage: float = 0.0) -> ConceptData:
    """Pictures of one of the paper's data sets, or of a folder of the same layout.

    Args:
        reading: The root holds `metadata.csv`. "published" takes its column `split`, "plain"
            divides anew. Concepts are columns, of the paper's data sets by default the paper's;
            `color::blue` and `blue` are one concept.
        min_coverage: As in `PixelLabels`.

    Raises:
        FileNotFoundError: A file is not there.
        ImportError: COCO's masks need pycocotools, which is not installed.
        ValueError: A row is not as expected; the text names file and line.
    """
    root = reading.root
    rows = read_table(root / "metadata.csv", ["image_path", "split"], fix=_IMAGE_LAYOUT)
    masks_of_row = _mask_reader(reading)
    columns = {_concept(c): c for c in rows[0].values if c not in _NOT_OF_IMAGES}
    wanted = reading.wanted(sorted(columns), PAPER_CONCEPTS.get(reading.name))
    samples, parts = [], []
    for k in reading.drawn(len(rows), "rows"):
        row = rows[k]
        pixels = read_picture(root / row["image_path"], _IMAGE_LAYOUT)
        positive = [c for c in wanted if row.flag(columns[c])]
        masks = masks_of_row(k, row, pixels, wanted)
        if reading.name != "clevr":
            # CLEVR's one mask stands for every wanted concept, so that it denies nothing.
            denied = masks.keys() - set(positive)
            reading.skipped["masks of concepts that metadata.csv denies"] += len(denied)
        samples.append(
            mask_sample(
                row["image_path"],
                pixels,
                {c: masks[c] for c in positive if c in masks},
                labels=positive,
                document=row["image_path"],
                min_coverage=min_coverage,
            )
        )
        parts.append(row.choice("split", SPLITS))
    return reading.data(samples, wanted, parts)


def load_authors_texts(reading: Reading) -> ConceptData:
    """Paragraphs with word labels of one of the paper's data sets, or of a folder of this layout.

    Args:
        reading: The root holds the three files and the texts. "published" takes the column
            `split`, "plain" divides anew, repeated texts sharing a document. Concepts are columns
            of the paragraph file, by default the paper's, or those that the word file has too.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row is not as expected or a word is not the text's; the text names file and
            line.
    """
    root, skipped = reading.root, reading.skipped
    rows = read_table(root / "metadata.csv", ["split"], fix=_TEXT_LAYOUT)
    paragraphs = _paragraphs(root, rows)
    columns = [c for c in paragraphs[0].values if c not in _NOT_OF_TEXTS]
    default = PAPER_CONCEPTS.get(reading.name)
    if default is None:
        labelled = read_table(_only(root, "word_level_*.csv"))[0].values
        default = tuple(c for c in columns if c in labelled)
    wanted = reading.wanted(columns, default)
    words = _words(root, len(rows), wanted)
    kept = reading.drawn(len(rows), "paragraphs")
    texts = [_text(root, rows[k], paragraphs[k]) for k in kept]
    labels = [[c for c in wanted if paragraphs[k].flag(c)] for k in kept]
    spans = []
    for k, text, positive in zip(kept, texts, labels, strict=True):
        if not words[k + 1]:
            skipped["paragraphs without word labels (kept)"] += 1
        found = _word_label_spans(text, words[k + 1], wanted)
        own = [span for span in found if span[2] in positive]
        skipped["labelled words of concepts that their paragraph lacks"] += len(found) - len(own)
        spans.append(own)
    ids = [paragraphs[k]["paragraph_id"] for k in kept]
    documents = one_document_a_text(texts, ids) if reading.split == "plain" else ids
    samples = span_samples(texts, spans, sample_labels=labels, ids=ids, documents=documents)
    return reading.data(samples, wanted, [rows[k].choice("split", SPLITS) for k in kept])


def _mask_reader(reading: Reading) -> _MaskReader:
    """Where the masks of a folder come from: by the data set's name, else by what lies there."""
    root, name = reading.root, reading.name
    if name == "clevr":
        return _by_colour
    instances = _instance_files(root)
    if name == "coco" or (name not in PAPER_CONCEPTS and instances):
        return _by_instance(root, instances, reading.skipped)
    if name not in PAPER_CONCEPTS and not (root / "segmentations.pt").exists():
        raise FileNotFoundError(
            f"{root} has pictures and neither segmentations.pt nor instances_*.json, so there are no "
            "masks: put them there, or, where masks are told by colour, use load('clevr', folder)."
        )
    return _by_row(root)


def _by_colour(_: int, row: TableRow, pixels: _Pixels, wanted: Sequence[str]) -> _Masks:
    _require_one_object(row)
    return dict.fromkeys(wanted, foreground(pixels))


def _instance_files(root: Path) -> list[Path]:
    folders = [root, root / "annotations", root.parent / "Coco-Cal" / "annotations"]
    return [file for folder in folders for file in sorted(folder.glob("instances_*.json"))]


def _by_instance(root: Path, files: Sequence[Path], skipped: Counter[str]) -> _MaskReader:
    if not files:
        require_path(root / "instances_val2017.json", "put COCO's annotation file there")
    of_name = {p.file_name: p for file in files for p in read_instances(file)}

    def read(_: int, row: TableRow, pixels: _Pixels, wanted: Sequence[str]) -> _Masks:
        name = Path(row["image_path"]).name
        if name not in of_name:
            raise row.refusal(f"{name} is in none of {', '.join(map(str, files))}.")
        picture: CocoPicture = of_name[name]
        require_size(root / row["image_path"], pixels.shape[:2], picture)
        return masks_of_picture(picture, wanted, skipped)[0]

    return read


def _by_row(root: Path) -> _MaskReader:
    # torch takes seconds to import, and only these masks need it.
    import torch

    path = require_path(root / "segmentations.pt", _IMAGE_LAYOUT)
    rows = len(read_table(root / "metadata.csv", fix=_IMAGE_LAYOUT))
    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{path} holds more than lists, dicts and tensors, and pickled code is not run: save "
            "each mask as a tensor (torch.as_tensor), or give the published Broden folder."
        ) from error

    if not isinstance(entries, list | tuple) or len(entries) != rows:
        held = f"{len(entries)} entries" if isinstance(entries, list | tuple) else "no list"
        raise ValueError(
            f"{path} holds {held}, metadata.csv has {rows} rows: give one dict a row, in its "
            "order, since masks belong to rows by their order alone."
        )

    def read(k: int, row: TableRow, pixels: _Pixels, wanted: Sequence[str]) -> _Masks:
        if not isinstance(entries[k], Mapping):
            raise row.refusal(f"{path} has no masks at position {k}: expected one dict a row.")
        size = pixels.shape[:2]
        return {
            c: _fitted(row, c, torch.as_tensor(mask), size) for c, mask in entries[k].items() if c in wanted
        }

    return read


def _fitted(
    row: TableRow, concept: str, mask: Any, size: tuple[int, int]
) -> Bool[np.ndarray, "height width"]:
    plane = np.asarray(mask > 0)
    turned = size[0] != size[1] and plane.shape == size[::-1]
    if plane.ndim != 2 or not plane.size or turned:
        raise row.refusal(
            f"the mask of {concept!r} has shape {list(plane.shape)}, the picture {list(size)}: "
            "give [height, width], of the picture or of a resized copy of it."
        )
    return fit_mask(plane, size)


def _require_one_object(row: TableRow) -> None:
    """Refuse a scene of several objects: one mask by colour would stand for all of them."""
    columns = [column for column in row.values if column not in _NOT_OF_IMAGES]
    for kind in (PAPER_CONCEPTS["clevr"][:3], PAPER_CONCEPTS["clevr"][3:]):
        said = [c for c in columns if _concept(c) in kind and row.flag(c)]
        if len(said) > 1:
            raise row.refusal(
                f"{' and '.join(map(repr, said))} are 1, and a picture here shows one object: "
                "leave such rows out, or give the published folder with scenes/."
            )


def _concept(column: str) -> str:
    """CLEVR's columns are `blue` or `color::blue`; Broden's keep their category."""
    return column.removeprefix("color::").removeprefix("shape::")


def _word_label_spans(
    text: str, rows: Sequence[TableRow], concepts: Sequence[str]
) -> list[tuple[int, int, str]]:
    """Spans of a text's labelled words; rows and words are matched by order and compared.

    Raises:
        ValueError: A word differs, or there are more or fewer rows than words; names file, line
            and word.
    """
    places = list(re.finditer(r"\S+", text))
    spans = []
    for row, place in zip(rows, places, strict=False):
        if not same_word(row["word"], place.group()):
            raise row.refusal(
                f"word {row['word']!r} stands where the text of paragraph {row['paragraph_id']} "
                f"has {place.group()!r} (character {place.start()}): labels and text are "
                "misaligned."
            )
        spans += [(place.start(), place.end(), c) for c in concepts if row.flag(c)]
    if rows and len(rows) != len(places):
        raise rows[-1].refusal(
            f"paragraph {rows[-1]['paragraph_id']} has {len(rows)} labelled words, its text "
            f"{len(places)}: labels and text are misaligned from the end of the shorter one."
        )
    return spans


def same_word(one: str, other: str) -> bool:
    """Equal, or equal but for punctuation around them."""
    bare = one.strip().strip(_AROUND_WORDS)
    return one.strip() == other or (bool(bare) and bare == other.strip(_AROUND_WORDS))


def _paragraphs(root: Path, rows: Sequence[TableRow]) -> list[TableRow]:
    """The paragraph rows, in the order of metadata.csv.

    Raises:
        ValueError: Their number differs from metadata.csv's, or `paragraph_id` does not count
            from 1.
    """
    found = read_table(_only(root, "paragraph_level_*.csv"), ["paragraph_id"])
    if len(found) != len(rows):
        raise ValueError(f"{found[0].path} has {len(found)} rows, metadata.csv {len(rows)}: one row each.")
    for k, row in enumerate(found, start=1):
        if row.whole("paragraph_id") != k:
            raise row.refusal(
                f"paragraph_id {row['paragraph_id']!r}, expected {k}: they count "
                "from 1 in the order of metadata.csv."
            )
    return found


def _words(root: Path, paragraphs: int, concepts: Sequence[str]) -> Mapping[int, list[TableRow]]:
    of: dict[int, list[TableRow]] = defaultdict(list)
    path = _only(root, "word_level_*.csv")
    for row in read_table(path, ["paragraph_id", "word", *concepts]):
        number = row.whole("paragraph_id")
        if not 1 <= number <= paragraphs:
            raise row.refusal(f"paragraph_id {number}, expected 1 to {paragraphs}.")
        of[number].append(row)
    return of


def _text(root: Path, row: TableRow, paragraph: TableRow) -> str:
    if "text_path" in row.values:
        return read_text(root / row["text_path"], f"{row.path} line {row.line} names it")
    if "text" in paragraph.values:
        return paragraph["text"]
    raise row.refusal("no 'text_path' here and no 'text' in the paragraph file: give either.")


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{root / pattern} does not exist: {_TEXT_LAYOUT}.")
    if len(found) > 1:
        raise ValueError(f"{root} holds {', '.join(f.name for f in found)}: keep one {pattern}.")
    return found[0]
