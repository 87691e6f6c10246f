"""Stage results on disk, named by a hash of what they depend on.

`STAGE-HASH.json` (or a folder, or an `.npz`) holds what a stage computed; `HASH` is SHA-256 over
the JSON of its settings and of the hashes of the stages before it. A second run finds the name and
reads; a changed setting gives another name, so nothing stale is ever read. `stages.json` holds of
every file the whole hash of its settings, the SHA-256 of its content, its seconds and its warnings,
and the last settings of every stage, so that a run can say what changed. A file that it does not
hold, or whose content is another, is computed again, and the run says so.

The hash also holds the code of this package and the versions of what else computes (numpy, torch,
transformers, ...): an upgrade or an edit computes everything anew.

A score table on disk: arrays in one `.npz`, never a pickle; samples are found again by id.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from sa_plugin._check import OURS, users_line
from sa_plugin._face import face_methods
from sa_plugin._files import (
    PARTIAL,
    DamagedFileError,
    digest_of,
    file_digest,
    publish_folder,
    read_object,
    remove,
    require_sealed,
    sealed,
    write_text,
    written,
)
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.passes.layout import TokenTable
from sa_plugin.scores.table import SampleStatistic, ScoreTable
from sa_plugin.tracing.along import Others

FORMAT = 2
_REPAIR = "every stage is computed again"
_PACKAGES = (
    "sa_plugin",
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "interp-engine",
    "numpy",
    "scikit-learn",
    "captum",
)
_T = TypeVar("_T")


class NotKeptWarning(UserWarning):
    """A stage was computed and could not be written: the next run computes it again."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run, before it is known whether its result is there.

    Attributes:
        name: Such as "fit separator".
        depends: JSON-ready: settings, and hashes of earlier stages.
        ending: ".json", ".npz", or "" for a folder.
        quotes: Whether its result holds texts or pictures of the data.
    """

    name: str
    depends: Mapping[str, Any]
    ending: str = ".json"
    quotes: bool = False

    @property
    def known(self) -> dict[str, Any]:
        """Everything it depends on, the code included, JSON-ready."""
        return {**environment(), **json.loads(json.dumps(self.depends))}

    @property
    def settings(self) -> str:
        """SHA-256 over what it depends on."""
        return digest_of({"format": FORMAT, "stage": self.name, **self.known})

    @property
    def hash(self) -> str:
        """Twelve hex digits of it, for names."""
        return self.settings[:12]

    @property
    def file(self) -> str:
        """Name of what holds its result."""
        return f"{self.name.replace(' ', '-')}-{self.hash}{self.ending}"


@face_methods
@dataclass(frozen=True)
class Store:
    """A folder of stage results.

    Attributes:
        folder: Made when something is written; None keeps nothing.
        say: Called with one line a stage.
        made: File to seconds and warnings of what was made now.
        texts: Whether the folder may hold texts and pictures of the data. Without them a stage that quotes
            is computed by every run, and of warnings, which may quote, their names are kept.
    """

    folder: Path | None
    say: Callable[[str], None]
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: bool = True

    def has(self, stage: Stage) -> bool:
        """Whether the result is there, of these settings."""
        held = self._manifest()["files"].get(stage.file, {})
        there = self.folder is not None and (self.folder / stage.file).exists()
        return there and held.get("settings") == stage.settings

    def keep(
        self,
        stage: Stage,
        make: Callable[[], _T],
        write: Callable[[_T, Path], object],
        read: Callable[[Path], _T],
    ) -> _T:
        """The stage's result: read if it is there and whole, else made and written.

        A result is written under another name and renamed when complete, and counts once
        `stages.json` holds its digest: a run that was killed leaves nothing that would be read.
        """
        if self.folder is not None and self.has(stage):
            place = self.folder / stage.file
            if file_digest(place) == self._manifest()["files"][stage.file]["sha256"]:
                self.say(f"{stage.name}: kept {stage.file}")
                return read(place)
            self.say(f"{stage.name}: {place} is damaged (its content is not what was written), made again")
        why = self.changed(stage)
        begun = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = make()
        seconds = round(time.perf_counter() - begun, 1)
        self.made[stage.file] = {"seconds": seconds, "warnings": _ours(caught)}
        kept = ""
        if stage.quotes and not self.texts:
            kept = ", not kept: it holds texts"
        elif self.folder is not None:
            try:
                self._write(self.folder, stage, lambda path: write(made, path))
            except OSError as error:
                # What was computed goes on in memory: a full disk must not end a run of hours.
                kept = f", not kept: {error}"
                warnings.warn(f"{stage.name} is not kept: {error}", NotKeptWarning, stacklevel=users_line())
        self.say(f"{stage.name}: computed in {seconds:.0f} s{why}{kept}")
        return made

    def _write(self, folder: Path, stage: Stage, write: Callable[[Path], object]) -> None:
        place = folder / stage.file
        if stage.ending:
            with written(place) as partial:
                write(partial)
        else:
            built = folder / f"{PARTIAL}{stage.file}"
            remove(built)
            write(built)
            publish_folder(built, place)
        self._remember(folder, stage)

    def record(self) -> dict[str, Any]:
        """File to the seconds and warnings of its making, of every stage made or ever stored here."""
        return {**self._manifest()["files"], **self.made}

    def changed(self, stage: Stage) -> str:
        """What differs from the last run of this stage, or "" if there was none."""
        before = self._manifest()["last"].get(stage.name)
        if before is None:
            return ""
        now = stage.known
        keys = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        said = [f"{k} was {_short(before.get(k))}, is {_short(now.get(k))}" for k in keys]
        return f" ({'; '.join(said) if said else 'its file was gone'})"

    def _manifest(self) -> dict[str, Any]:
        """What `stages.json` says; nothing where it is missing, damaged or of another format."""
        path = None if self.folder is None else self.folder / "stages.json"
        nothing: dict[str, Any] = {"last": {}, "files": {}}
        if path is None or not path.exists():
            return nothing
        try:
            found = read_object(path, _REPAIR)
            if found.get("format") != FORMAT:
                return nothing
            require_sealed(found, path, _REPAIR)
        except DamagedFileError as damage:
            self.say(str(damage))
            return nothing
        return found

    def _remember(self, folder: Path, stage: Stage) -> None:
        known = self._manifest()
        held = {"settings": stage.settings, "sha256": file_digest(folder / stage.file)}
        last = {**known["last"], stage.name: stage.known}
        files = {**known["files"], stage.file: {**held, **self.made[stage.file]}}
        self._list(folder, last, files)

    def _list(self, folder: Path, last: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> None:
        if not self.texts:
            files = {name: {**one, "warnings": warning_names(one["warnings"])} for name, one in files.items()}
        write_json(sealed({"format": FORMAT, "last": last, "files": files}), folder / "stages.json")

    def strip(self, stages: Sequence[Stage]) -> None:
        """Take out what earlier runs left that quotes: files of some stages, texts of warnings."""
        if self.folder is None or not self.folder.exists():
            return
        names = {stage.name.replace(" ", "-") for stage in stages if stage.quotes}
        for path in self.folder.iterdir():
            if path.name.removeprefix(PARTIAL).rpartition("-")[0] in names:
                remove(path)
        known = self._manifest()
        if known["files"]:
            self._list(self.folder, known["last"], known["files"])


@cache
def environment() -> dict[str, str]:
    """Versions of what computes, and "code": SHA-256 over the sources of this package."""
    digest = hashlib.sha256()
    for package in OURS:
        found = find_spec(package)
        for folder in (found.submodule_search_locations if found else None) or ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(f"{package}/{path.relative_to(folder).as_posix()}".encode())
                digest.update(path.read_bytes())
    return {"code": digest.hexdigest()[:12], **versions()}


def versions() -> dict[str, str]:
    """Versions of Python and of what computes, where installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Processor kind, cores and threads."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"


def _ours(caught: list[warnings.WarningMessage]) -> list[str]:
    """Texts of this package's warnings; others are given on."""
    ours = [w for w in caught if w.category.__module__.startswith("sa_")]
    for other in (w for w in caught if w not in ours):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return sorted({f"{w.category.__name__}: {w.message}" for w in ours})


def warning_names(warned: Sequence[str]) -> list[str]:
    """Kinds of warnings without their text, which may quote what it warns about.

    Example:
        >>> warning_names(["RepeatedTextWarning: 'a cat' stands twice."])
        ['RepeatedTextWarning']
    """
    return sorted({one.partition(":")[0] for one in warned})


def write_json(value: Any, path: Path) -> None:
    """JSON without NaN, in UTF-8."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


ROWS = ("sample_of", "position", "offsets", "labels")
BY_SAMPLE = ("permuted_max", "pooled", "cls")


def write_scores(table: ScoreTable, path: Path) -> None:
    """Write a table's arrays and the names of its samples.

    Args:
        table: Scores.
        path: Ends in `.npz`.
    """
    tokens = table.tokens
    names = {
        "ids": [sample.id for sample in tokens.samples],
        "split_of": list(tokens.split_of),
        "concepts": list(tokens.concepts),
        "dropped": dict(tokens.dropped),
    }
    arrays: dict[str, Any] = {name: np.asarray(getattr(tokens, name)) for name in ROWS}
    arrays |= {k: v for k in BY_SAMPLE if (v := getattr(table, k)) is not None}
    if tokens.known is not None:
        arrays["known"] = tokens.known
    with written(path) as partial:
        np.savez(partial, scores=np.asarray(table.scores), names=np.array(json.dumps(names)), **arrays)


def write_given(given: Mapping[str, SampleStatistic], path: Path) -> None:
    """Write statistics of samples, and how they were made.

    Args:
        given: By the name of their method.
        path: Ends in `.npz`.
    """
    about = {name: {"candidates": one.candidates, "record": dict(one.record)} for name, one in given.items()}
    arrays: dict[str, Any] = {f"of {name}": one.values for name, one in given.items()}
    with written(path) as partial:
        np.savez(partial, about=np.array(json.dumps(about)), **arrays)


def read_given(path: Path) -> dict[str, SampleStatistic]:
    """What `write_given` wrote."""
    with np.load(path, allow_pickle=False) as held:
        about = json.loads(str(held["about"]))
        return {
            name: SampleStatistic(held[f"of {name}"], None, one["candidates"], one["record"])
            for name, one in about.items()
        }


def read_scores(path: Path, bank: ConceptBank, data: ConceptData) -> ScoreTable:
    """The table that `write_scores` wrote.

    Args:
        path: The file.
        bank: The vectors it is of.
        data: Holds its samples.

    Raises:
        ValueError: A sample is not in the data, or the scores have another number of vectors.
    """
    with np.load(path, allow_pickle=False) as held:
        found = {name: held[name] for name in held.files}
    names = json.loads(str(found.pop("names")))
    by_id = {sample.id: sample for sample in data.samples}
    missing = [one for one in names["ids"] if one not in by_id]
    if missing:
        raise ValueError(f"{path.name} has scores of sample {missing[0]!r}, the data have none.")
    expected = bank.token.shape[:2]
    if found["scores"].shape[1:] != expected:
        raise ValueError(
            f"{path.name} has scores of {found['scores'].shape[1:]} layers and vectors, the bank "
            f"holds {expected}: delete the file."
        )
    tokens = TokenTable(
        samples=tuple(by_id[one] for one in names["ids"]),
        split_of=tuple(names["split_of"]),
        concepts=tuple(names["concepts"]),
        dropped=names["dropped"],
        known=found.get("known"),
        **{name: found[name] for name in ROWS},
    )
    by_sample = {name: found.get(name) for name in BY_SAMPLE}
    return ScoreTable(
        tokens, bank, found["scores"], by_sample["permuted_max"], by_sample["pooled"], by_sample["cls"]
    )


def write_others(others: Others, path: Path) -> None:
    """Write scores along other vectors.

    Args:
        others: Scores.
        path: Ends in `.npz`.
    """
    names = json.dumps({"names": list(others.names), "without": list(others.without)})
    arrays = {name: getattr(others, name) for name in ("scores", "defined", "carried")}
    with written(path) as partial:
        np.savez(partial, said=np.array(names), **arrays)


def read_kept_others(path: Path) -> Others:
    """What `write_others` wrote."""
    with np.load(path, allow_pickle=False) as held:
        said = json.loads(str(held["said"]))
        arrays = {name: held[name] for name in ("scores", "defined", "carried")}
    return Others(tuple(said["names"]), **arrays, without=tuple(said["without"]))
