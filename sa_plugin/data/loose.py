"""Samples as they come to hand, without labels: texts, chats, token ids and images, one or many.

Anything that can be walked is a list of samples, a generator too, but for what is one sample already:
a list of messages is one chat, a list of whole numbers one text of token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sa_plugin.data.columns import text_of
from sa_plugin.data.concept_data import Split
from sa_plugin.data.given import TokenIds, source_of
from sa_plugin.data.images import Image, opened, require_rgb, rgb
from sa_plugin.data.sample import Sample

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
Named = Callable[[Sequence[int]], TokenIds]
"""Token ids with the characters that they stand for."""


def gathered(samples: Any, what: str = "samples") -> Split | list[Any]:
    """One or many loose samples as a list; a split as it is.

    Args:
        samples: One, or any iterable of them.
        what: What they are called in refusals.

    Raises:
        TypeError: A set, a table or a mapping, in which it is open what the samples are; or no sample.
    """
    if isinstance(samples, Split):
        return samples
    table = hasattr(samples, "columns") or hasattr(samples, "column_names")
    if table or isinstance(samples, Mapping | set | frozenset | bytes):
        raise TypeError(
            f"{what} are of type {type(samples).__name__}: give a list of texts, such as one column of a "
            "table; a chat is a list of messages, and token ids are tokenizer(text)['input_ids']."
        )
    if isinstance(samples, np.ndarray):
        # Texts, several images or rows of token ids; one image and token ids are one sample.
        if samples.ndim == 1 and samples.dtype.kind == "f":
            raise TypeError(f"{what} are numbers of {samples.dtype}: token ids are whole numbers.")
        ids = samples.ndim == 2 and samples.dtype.kind in "iu" and samples.dtype != np.uint8
        many = samples.dtype.kind in "UO" or samples.ndim == 4 or ids
        return list(samples.tolist() if samples.dtype.kind in "UO" else samples) if many else [samples]
    one = isinstance(samples, str | Sample | Path) or source_of(samples) is not None or _is_picture(samples)
    if one:
        return [samples]
    if not isinstance(samples, Iterable):
        raise _no_sample(samples, what)
    return list(samples)


def as_split(
    samples: Any, concepts: tuple[str, ...], named: Named | None = None, what: str = "samples"
) -> Split:
    """Texts, chats, token ids, images, samples or a split as a split; loose ones have no data hash.

    An image is a path, a picture of Pillow, or RGB pixels `[height, width, 3]` of uint8.

    Args:
        samples: One, or any iterable of them.
        concepts: Of the split.
        named: Finds the characters of token ids; without it their text is the numbers.
        what: What they are called in refusals.

    Raises:
        TypeError: Something else was given.
        ValueError: There are no samples, an id stands twice, or pixels are no RGB image.
    """
    loose = gathered(samples, what)
    if isinstance(loose, Split):
        return loose
    made = tuple(_numbered(one, k, named, what) for k, one in enumerate(loose))
    if not made:
        raise ValueError(f"there are no {what}: give at least one text.")
    if len({s.id for s in made}) < len(made):
        raise ValueError(f"two {what} have the same id: ids must be unique.")
    return Split("samples", made, concepts, "")


def is_labelled(samples: Split | Sequence[Any]) -> bool:
    """Whether labels are known, which they are of samples and splits alone."""
    return isinstance(samples, Split) or all(isinstance(one, Sample) for one in samples)


def _numbered(one: Any, k: int, named: Named | None, what: str) -> Sample:
    made = loose_sample(one, f"text {k}", named, where=f"{what}[{k}]")
    if made is one or made.image is None:
        return made
    return Sample(f"image {k}", "", f"image {k}", image=made.image)


def loose_sample(
    one: Any, name: str, named: Named | None = None, document: str | None = None, *, where: str = "the text"
) -> Sample:
    """One text, chat, list of token ids or image as a sample; a `Sample` as it is.

    Args:
        one: What is given.
        name: Of the sample.
        named: Finds the characters of token ids; without it their text is the numbers.
        document: Source document; by default the sample is its own.
        where: What an error calls the text.

    Raises:
        TypeError: It is none of these.
        ValueError: It holds a null or half a character, or pixels are no RGB image.
    """
    if isinstance(one, Sample):
        return one
    home = name if document is None else document
    source = source_of(one)
    if isinstance(source, TokenIds) and not isinstance(one, TokenIds) and named is not None:
        source = named(source.ids)
    if source is not None:
        return Sample(name, source.text, home, source=source)
    pixels = _pixels(one)
    if pixels is not None:
        require_rgb(name, pixels)
        return Sample(name, "", home, image=Image(pixels))
    if isinstance(one, str):
        return Sample(name, text_of(where, one), home)
    raise _no_sample(one)


def _no_sample(one: Any, what: str = "samples") -> TypeError:
    return TypeError(
        f"{what} are of type {type(one).__name__}: give a text, a chat (a list of messages), token ids, an "
        "image (a path, a picture of Pillow, or uint8 pixels [height, width, 3]), a Sample, an iterable of "
        "these, or a split such as data.test."
    )


def _is_picture(one: Any) -> bool:
    return hasattr(one, "convert") and hasattr(one, "getbands")


def _pixels(one: Any) -> np.ndarray | None:
    """The pixels of what is an image: a path to one, an array, or a picture of Pillow."""
    if isinstance(one, np.ndarray):
        return one
    path = isinstance(one, Path) or (isinstance(one, str) and one.lower().endswith(PICTURES))
    # A text may end as a file name does: only a file that is there is one.
    if path and (isinstance(one, Path) or Path(one).is_file()):
        return rgb(opened(one))
    return rgb(one) if _is_picture(one) else None
