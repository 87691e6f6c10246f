"""Artefacts on the Hugging Face hub: the same folder of safetensors and JSON, with a card written from it.

A name "user/name" is looked up on the hub where nothing of that name lies here: a folder of that name, or
one that begins like it, comes first. A branch moves; `revision` takes a commit, which does not, and
`push` returns it. huggingface_hub is imported by these two functions alone, and finds its token itself.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sa_plugin._check import require
from sa_plugin._files import write_text
from sa_plugin.concepts.artefact import RECORD
from sa_plugin.concepts.bank import Origin
from sa_plugin.show.result import Sheet, Shown

CARD = "README.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OURS = [RECORD, "tensors*.safetensors"]
_VERSIONS = ("sa_plugin", "torch", "transformers", "transformer-lens", "nnsight", "interp-engine")


def artefact_at(where: str | Path, revision: str | None = None) -> Path:
    """The folder of an artefact, fetched from the hub where it is a name there.

    Args:
        where: A folder, or "user/name".
        revision: Commit, tag or branch on the hub.

    Raises:
        FileNotFoundError: The hub has no such artefact, or cannot be asked.
        ImportError: huggingface_hub is not installed.
        ValueError: A revision of a folder.
    """
    path, name = Path(where), str(where)
    here = path.exists() or (len(path.parts) > 1 and Path(path.parts[0]).exists())
    if here or isinstance(where, Path) or not _REPOSITORY.fullmatch(name):
        if revision is not None:
            raise ValueError(f"{name} is a folder and has no revision {revision!r}: leave it out.")
        return path
    hub = require("huggingface_hub", "hub", f"reading {name!r} from the hub (no folder of that name is here)")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=_OURS))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name!r} is no folder here, and the hub gave no artefact of that name"
            f"{f' at {revision!r}' if revision else ''} ({type(error).__name__}: {error}): give a folder, or "
            "log in if it is private."
        ) from error


def push(
    save: Callable[[Path], Path],
    card: str,
    repo_id: str,
    *,
    private: bool = True,
    branch: str | None = None,
    message: str = "",
) -> str:
    """Save an artefact into a repository of the hub, in the place of one that may be there.

    Args:
        save: Writes it into a folder.
        card: The repository's README.
        repo_id: "user/name"; made if it is not there.
        private: Of a new repository.
        branch: Made if it is not there; by default the main one.
        message: Of the commit.

    Returns:
        The commit, for `revision=`.

    Raises:
        ImportError: huggingface_hub is not installed.
        ValueError: Not "user/name".
    """
    if not _REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"repo_id is {repo_id!r}: give 'user/name'.")
    hub = require("huggingface_hub", "hub", "pushing an artefact to the hub")
    api = hub.HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        folder = save(Path(scratch) / "artefact")
        write_text(folder / CARD, card)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            revision=branch,
            commit_message=message or "Artefact of sa_plugin",
            allow_patterns=[CARD, *_OURS],
            # Tensors of the artefact that was there: nothing names them any more.
            delete_patterns=["tensors*.safetensors"],
        )
    return str(done.oid)


def card_of(
    repo_id: str, what: str, parts: Mapping[str, Shown], concepts: Sequence[str], origin: Origin, load: str
) -> str:
    """A model card: what it is, its tables, what they do not show, how to load it, what it rests on.

    Args:
        repo_id: "user/name".
        what: One line.
        parts: Results by heading, shown as tables with their intervals.
        concepts: Names.
        origin: Of the vectors.
        load: Code that loads it.
    """
    base = [f"base_model: {origin.model}"] if _REPOSITORY.fullmatch(origin.model) else []
    front = ["---", "library_name: sa_plugin", *base, "tags:", "- interpretability", "- concepts", "---"]
    lines = [*front, f"# {repo_id}", "", _plain(what), "", "## Concepts", ""]
    lines += [", ".join(map(_plain, concepts)), ""]
    cautions: list[str] = []
    for heading, part in parts.items():
        lines += [f"## {heading}", "", *(line for sheet in part.sheets() for line in _markdown(sheet))]
        cautions += [one for one in part.cautions() if one]
    fixed = "Thresholds and vectors are of these weights and this tokenizer: another model is refused."
    lines += ["## What this does not show", ""]
    lines += [f"- {_plain(one)}" for one in dict.fromkeys([*cautions, fixed])]
    lines += ["", "## Load", "", "```python", load.rstrip(), "```", "", "## From", ""]
    about = {
        "model": f"{origin.model or 'not known'}, {origin.architecture}, {origin.dtype}".rstrip(", "),
        "weights": origin.fingerprint,
        "weight processing": origin.processing,
        "tokenizer": origin.tokenizer,
        "data": origin.data_hash,
        "attention sinks": origin.sinks,
        "seed": str(origin.seed),
        "train tokens": ", ".join(f"{n:,} {name}" for name, n in origin.counts.items()),
        "drift": origin.drift,
        "versions": ", ".join(f"{name} {one}" for name in _VERSIONS if (one := _version(name))),
    }
    lines += [f"- {name}: {_plain(value)}" for name, value in about.items() if value]
    return "\n".join(lines) + "\n"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _markdown(sheet: Sheet) -> list[str]:
    lines = [_plain(sheet.title), ""] if sheet.title else []
    if sheet.header:
        rule = ["---", *["---:"] * (len(sheet.header) - 1)]
        cells = [list(map(_plain, row)) for row in (sheet.header, *sheet.rows)]
        lines += [f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:])]
        lines.append("")
    for note in sheet.notes:
        lines += [_plain(note), ""]
    return lines


def _plain(text: Any) -> str:
    """Text that Markdown shows as it is: names of concepts are the user's."""
    one_line = " ".join(str(text).split())
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", one_line)
