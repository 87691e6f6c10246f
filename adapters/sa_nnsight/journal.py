"""Finished requests on disk, so that a run that was cut off goes on where it stopped.

A request's key is a hash of all that decides its result: model, sites, inputs and the reducer with
its tensors. The same call finds its own results; any other finds none. Files are safetensors, one a
request, written whole or not at all. The journal holds what reducers keep (scores, sums, maxima)
and ids of submitted jobs; no text, no activation that a reducer does not return, no API key.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Result = list[dict[str, Tensor]]
# Modules that run on the server, shipped by their source.
SHIPPED = ("sa_plugin.reducers", "sa_nnsight.beside")


class Journal:
    """A folder of results by key.

    Args:
        folder: Made if missing; None keeps nothing.

    Raises:
        NotADirectoryError: The path is a file.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise NotADirectoryError(f"journal={str(folder)!r} is a file: name a folder.")
            self.folder.mkdir(parents=True, exist_ok=True)

    def result(self, key: str) -> Result | None:
        """What a finished request left, or None."""
        path = self._path(key, "safetensors")
        if path is None or not path.exists():
            return None
        return _unflatten(load_file(path))

    def store(self, key: str, result: Result) -> None:
        """Keep a finished request."""
        path = self._path(key, "safetensors")
        if path is None:
            return
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file(_flatten(result), part)
        part.replace(path)
        self.forget(key)

    def job(self, key: str) -> str | None:
        """The id of a submitted job that had not finished, or None."""
        path = self._path(key, "json")
        if path is None or not path.exists():
            return None
        return str(json.loads(path.read_text())["job_id"])

    def note(self, key: str, job_id: str) -> None:
        """Remember a submitted job."""
        path = self._path(key, "json")
        if path is not None:
            path.write_text(json.dumps({"job_id": job_id}))

    def forget(self, key: str) -> None:
        """A job is done with."""
        path = self._path(key, "json")
        if path is not None:
            path.unlink(missing_ok=True)

    def _path(self, key: str, suffix: str) -> Path | None:
        return self.folder / f"{key[:32]}.{suffix}" if self.folder and key else None


def digest(*parts: Any) -> str:
    """SHA-256 of tensors, numbers, strings, functions by name, and nestings of them.

    Raises:
        TypeError: Something else is in it.
    """
    state = hashlib.sha256()
    for part in parts:
        _feed(state, part)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        whole = value.detach().cpu().contiguous()
        state.update(f"tensor {whole.dtype} {tuple(whole.shape)}".encode())
        state.update(whole.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, functools.partial):
        _feed(state, [value.func, value.args, dict(value.keywords)])
    elif isinstance(value, Mapping):
        state.update(f"map {len(value)}".encode())
        for key in sorted(value, key=repr):
            _feed(state, key)
            _feed(state, value[key])
    elif isinstance(value, str | bytes | int | float | None):
        state.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, Sequence):
        state.update(f"list {len(value)}".encode())
        for one in value:
            _feed(state, one)
    elif getattr(value, "__module__", None) in SHIPPED and "<" not in value.__qualname__:
        state.update(f"function {value.__module__}.{value.__qualname__}".encode())
    else:
        name = getattr(value, "__qualname__", type(value).__name__)
        raise TypeError(
            f"{name} cannot be sent to a server, which takes the functions of "
            f"{' and '.join(SHIPPED)} with tensors, tuples, strings and numbers. What you called "
            "needs the model on this machine: attach it without remote=True."
        )


def _flatten(result: Result) -> dict[str, Tensor]:
    flat = {"number": torch.tensor(len(result))}
    for k, one in enumerate(result):
        for name, value in one.items():
            if value.is_sparse:
                value = value.coalesce()
                flat[f"{k}/{name}/sparse/indices"] = value.indices()
                flat[f"{k}/{name}/sparse/values"] = value.values()
                flat[f"{k}/{name}/sparse/size"] = torch.tensor(value.shape)
            else:
                flat[f"{k}/{name}"] = value.contiguous()
    return flat


def _unflatten(flat: dict[str, Tensor]) -> Result:
    result: Result = [{} for _ in range(int(flat.pop("number")))]
    for path, value in flat.items():
        place, _, name = path.partition("/")
        name, sparse, part = name.partition("/sparse/")
        if not sparse:
            result[int(place)][name] = value
        elif part == "indices":
            size = tuple(flat[f"{place}/{name}/sparse/size"].tolist())
            values = flat[f"{place}/{name}/sparse/values"]
            result[int(place)][name] = torch.sparse_coo_tensor(
                value, values, size, check_invariants=True
            ).coalesce()
    return result
