"""Pictures in the format of the authors' code: metadata.csv with 0/1 columns, and masks.

One row a picture: `image_path`, `split` (train, cal, test) and one 0/1 column a concept. What the
row says is the sample label; masks of concepts that it denies are not used (and counted), as in the
authors' code. Masks come from:

| data | from |
|---|---|
| CLEVR | the picture: pixels of which two channels differ by more than 20; one object a scene |
| COCO | `instances_*.json` in the folder, in its annotations/, or in ../Coco-Cal/annotations/ |
| Broden | `segmentations.pt`: for each row {concept: mask}, read without running pickled code |

The authors stretch masks to 224 x 224 while CLIP's processor crops; here patches read the masks of
the original picture through the processor's own geometry.

Texts in the format of the authors' code: metadata.csv, paragraph labels and word labels.

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
import torch
from jaxtyping import Bool, UInt8

from sa_plugin.data.build import mask_sample, span_samples
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import SPLITS
from sa_plugin.loaders.clevr import foreground
from sa_plugin.loaders.coco import Picture, masks_of, read_instances, require_size
from sa_plugin.loaders.huggingface import CLEVR, COCO, OPENSURFACES, PASCAL
from sa_plugin.loaders.tables import (
    Row,
    assemble,
    drawn,
    fit_mask,
    one_document_a_text,
    read_picture,
    read_table,
    read_text,
    require_path,
    wanted_concepts,
)

Pixels = UInt8[np.ndarray, "height width 3"]
Masks = Mapping[str, Bool[np.ndarray, "height width"]]
MaskReader = Callable[[int, Row, Pixels, Sequence[str]], Masks]
NO_IMAGE_CONCEPT = ("image_path", "text_path", "split", "class", "")
IMAGE_LAYOUT = "give the folder that holds metadata.csv and the pictures it names"


def load_clevr_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """CLEVR scenes of one object each, masks by colour.

    Args:
        root: Holds `metadata.csv`.
        split: "published" takes the column `split`; "plain" divides anew.
        seed: Of the division and the draw.
        concepts: Columns; by default the paper's. `color::blue` and `blue` are one concept.
        limit: At most this many rows, drawn by `seed`.
        min_coverage: As in `ConceptData.from_masks`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row is not as expected; the text names file and line.
    """

    def by_colour(_: int, row: Row, pixels: Pixels, wanted: Sequence[str]) -> Masks:
        _require_one_object(row)
        return dict.fromkeys(wanted, foreground(pixels))

    return _load(root, split, seed, "clevr", CLEVR, by_colour, concepts, limit, min_coverage)


def load_coco_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """COCO pictures with the masks of `instances_*.json`; arguments of `load_clevr_metadata`.

    Raises:
        ImportError: pycocotools is not installed.
    """
    places = [root, root / "annotations", root.parent / "Coco-Cal" / "annotations"]
    files = [file for place in places for file in sorted(place.glob("instances_*.json"))]
    if not files:
        require_path(root / "instances_val2017.json", "put COCO's annotation file there")
    of_name = {p.file_name: p for file in files for p in read_instances(file)}

    def by_instance(_: int, row: Row, pixels: Pixels, wanted: Sequence[str]) -> Masks:
        name = Path(row["image_path"]).name
        if name not in of_name:
            raise row.refusal(f"{name} is in none of {', '.join(map(str, files))}.")
        picture: Picture = of_name[name]
        require_size(root / row["image_path"], pixels.shape[:2], picture)
        return masks_of(picture, wanted)

    return _load(root, split, seed, "coco", COCO, by_instance, concepts, limit, min_coverage)


def load_opensurfaces_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """Broden's OpenSurfaces with the masks of segmentations.pt; as `load_clevr_metadata`."""
    return _load(
        root, split, seed, "opensurfaces", OPENSURFACES, _segmentations(root), concepts, limit, min_coverage
    )


def load_pascal_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    concepts: Sequence[str] | str | None = None,
    limit: int | None = None,
    min_coverage: float = 0.0,
) -> ConceptData:
    """Broden's Pascal with the masks of segmentations.pt; as `load_clevr_metadata`."""
    return _load(root, split, seed, "pascal", PASCAL, _segmentations(root), concepts, limit, min_coverage)


def metadata_split(row: Row) -> str:
    """The row's split.

    Raises:
        ValueError: It is none of train, cal and test.
    """
    if row["split"] not in SPLITS:
        raise row.refusal(f"split {row['split']!r} is not one of {SPLITS}.")
    return row["split"]


def _load(
    root: Path,
    split: str,
    seed: int,
    name: str,
    default: Sequence[str],
    masks: MaskReader,
    concepts: Sequence[str] | str | None,
    limit: int | None,
    min_coverage: float,
) -> ConceptData:
    skipped: Counter[str] = Counter()
    rows = read_table(root / "metadata.csv", ["image_path", "split"], fix=IMAGE_LAYOUT)
    columns = {_concept(c): c for c in rows[0].values if c not in NO_IMAGE_CONCEPT}
    wanted = wanted_concepts(concepts, default, sorted(columns), skipped)
    samples, homes = [], []
    for k in drawn(len(rows), limit, seed, skipped, "rows"):
        row = rows[k]
        pixels = read_picture(root / row["image_path"], IMAGE_LAYOUT)
        said = [c for c in wanted if row.flag(columns[c])]
        found = masks(k, row, pixels, wanted)
        if name != "clevr":
            skipped["masks of concepts that metadata.csv denies"] += len(found.keys() - set(said))
        samples.append(
            mask_sample(
                row["image_path"],
                pixels,
                {c: found[c] for c in said if c in found},
                labels=said,
                document=row["image_path"],
                min_coverage=min_coverage,
            )
        )
        homes.append(metadata_split(row))
    return assemble(
        samples, wanted, asked=concepts, parts=homes, split=split, seed=seed, name=name, skipped=+skipped
    )


def _require_one_object(row: Row) -> None:
    """Refuse a scene of several objects: one mask by colour would stand for all of them."""
    columns = [column for column in row.values if column not in NO_IMAGE_CONCEPT]
    for kind in (CLEVR[:3], CLEVR[3:]):
        said = [c for c in columns if _concept(c) in kind and row.flag(c)]
        if len(said) > 1:
            raise row.refusal(
                f"{' and '.join(map(repr, said))} are 1, and a picture here shows one object: "
                "leave such rows out, or give the published folder with scenes/."
            )


def _concept(column: str) -> str:
    """CLEVR's columns are `blue` or `color::blue`; Broden's keep their category."""
    return column.removeprefix("color::").removeprefix("shape::")


def _segmentations(root: Path) -> MaskReader:
    path = require_path(root / "segmentations.pt", IMAGE_LAYOUT)
    rows = len(read_table(root / "metadata.csv", fix=IMAGE_LAYOUT))
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

    def by_row(k: int, row: Row, pixels: Pixels, wanted: Sequence[str]) -> Masks:
        if not isinstance(entries[k], Mapping):
            raise row.refusal(f"{path} has no masks at position {k}: expected one dict a row.")
        size = pixels.shape[:2]
        return {c: _fitted(row, c, mask, size) for c, mask in entries[k].items() if c in wanted}

    return by_row


def _fitted(row: Row, concept: str, mask: Any, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    plane = np.asarray(torch.as_tensor(mask) > 0)
    turned = size[0] != size[1] and plane.shape == size[::-1]
    if plane.ndim != 2 or not plane.size or turned:
        raise row.refusal(
            f"the mask of {concept!r} has shape {list(plane.shape)}, the picture {list(size)}: "
            "give [height, width], of the picture or of a resized copy of it."
        )
    return fit_mask(plane, size)


NO_TEXT_CONCEPT = ("paragraph_id", "word", "text", "text_path", "split", "sentiment_label", "")
AROUND = string.punctuation + "“”‘’«»…–—"
TEXT_LAYOUT = "give the folder that holds metadata.csv, paragraph_level_*.csv and word_level_*.csv"


def load_text_metadata(
    root: Path,
    split: str,
    seed: int,
    *,
    name: str,
    default: Sequence[str],
    concepts: Sequence[str] | str | None = None,
) -> ConceptData:
    """Paragraphs with word labels.

    Args:
        root: Holds the three files and the texts.
        split: "published" takes the column `split`; "plain" divides anew. Repeated texts share a
            document.
        seed: Of the division.
        name: Of the data set.
        default: The paper's concepts.
        concepts: Columns of the paragraph file; by default `default`.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A row is not as expected or a word is not the text's; the text names file and
            line.
    """
    skipped: Counter[str] = Counter()
    rows = read_table(root / "metadata.csv", ["split"], fix=TEXT_LAYOUT)
    paragraphs = _paragraphs(root, rows)
    columns = [c for c in paragraphs[0].values if c not in NO_TEXT_CONCEPT]
    wanted = wanted_concepts(concepts, default, columns, skipped)
    texts = [_text(root, *pair) for pair in zip(rows, paragraphs, strict=True)]
    words = _words(root, len(rows), wanted)
    labels = [[c for c in wanted if row.flag(c)] for row in paragraphs]
    spans = []
    for k, text in enumerate(texts):
        if not words[k + 1]:
            skipped["paragraphs without word labels (kept)"] += 1
        found = word_label_spans(text, words[k + 1], wanted)
        kept = [span for span in found if span[2] in labels[k]]
        skipped["labelled words of concepts that their paragraph lacks"] += len(found) - len(kept)
        spans.append(kept)
    ids = [row["paragraph_id"] for row in paragraphs]
    documents = one_document_a_text(texts, ids) if split == "plain" else ids
    samples = span_samples(texts, spans, sample_labels=labels, ids=ids, documents=documents)
    return assemble(
        samples,
        wanted,
        asked=concepts,
        parts=[metadata_split(r) for r in rows],
        split=split,
        seed=seed,
        name=name,
        skipped=+skipped,
    )


def word_label_spans(text: str, rows: Sequence[Row], concepts: Sequence[str]) -> list[tuple[int, int, str]]:
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
    bare = one.strip().strip(AROUND)
    return one.strip() == other or (bool(bare) and bare == other.strip(AROUND))


def _paragraphs(root: Path, rows: Sequence[Row]) -> list[Row]:
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


def _words(root: Path, paragraphs: int, concepts: Sequence[str]) -> Mapping[int, list[Row]]:
    of: dict[int, list[Row]] = defaultdict(list)
    path = _only(root, "word_level_*.csv")
    for row in read_table(path, ["paragraph_id", "word", *concepts]):
        number = row.whole("paragraph_id")
        if not 1 <= number <= paragraphs:
            raise row.refusal(f"paragraph_id {number}, expected 1 to {paragraphs}.")
        of[number].append(row)
    return of


def _text(root: Path, row: Row, paragraph: Row) -> str:
    if "text_path" in row.values:
        return read_text(root / row["text_path"], f"{row.path} line {row.line} names it")
    if "text" in paragraph.values:
        return paragraph["text"]
    raise row.refusal("no 'text_path' here and no 'text' in the paragraph file: give either.")


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{root / pattern} does not exist: {TEXT_LAYOUT}.")
    if len(found) > 1:
        raise ValueError(f"{root} holds {', '.join(f.name for f in found)}: keep one {pattern}.")
    return found[0]
