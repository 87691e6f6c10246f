"""What a saved bank must look like: types, names, shapes, ranges; asked before a bank is made of it.

A digest says that a file is what was written, not that it was written well, and a file of format 1
has none: everything that a bank relies on is asked here, so that what does not hold is refused by name
and never met as an error from deep inside.

pydantic checks the types of the record, which is why annotations are no strings here.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NotRequired

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor
from typing_extensions import TypedDict

from sa_plugin._files import DamagedFileError

SETS = ("token", "permuted", "pooled", "cls")
MEANS = ("embedding", "z", "mlp")
CLOSED = ConfigDict(extra="forbid", strict=True)


@with_config(CLOSED)
class OriginRecord(TypedDict):
    """`Origin`, as JSON."""

    model: str
    architecture: str
    fingerprint: str
    processing: str
    dtype: str
    tokenizer: str
    data_hash: str
    sinks: Literal["drop", "keep"]
    sink_layers: list[int]
    seed: int
    options: dict[str, Any]
    counts: dict[str, int]
    drift: NotRequired[str]


@with_config(CLOSED)
class CanaryRecord(TypedDict):
    """`Canary`, as JSON, without its tensors."""

    version: int
    model: str
    dtype: str
    tokenizer: str
    bos: bool
    processing: str
    fingerprint: str
    quantised: bool


@with_config(CLOSED)
class BankRecord(TypedDict):
    """`ConceptBank`, as JSON, without its tensors."""

    concepts: list[str]
    units: list[str]
    layers: list[int]
    hook_point: Literal["resid_pre", "resid_post", "attn_out", "mlp_out"]
    kind: str
    scoring: Literal["cosine", "dot", "latent"]
    origin: OriginRecord
    saes: NotRequired[list[dict[str, int | str]]]
    canary: NotRequired[CanaryRecord]


def require_record(record: object, kind: Any, where: str) -> None:
    """Refuse a record of other types or names.

    Args:
        record: JSON-ready.
        kind: The TypedDict it should be.
        where: Its name.

    Raises:
        DamagedFileError: The first that does not hold.
    """
    try:
        _adapter(kind).validate_python(record)
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        place = ".".join([where, *map(str, one["loc"])])
        raise DamagedFileError(f"{place} is {one['input']!r:.60}: {one['msg']}") from None
    _require_small(record, where)


def _require_small(value: object, where: str) -> None:
    """Refuse a whole number that no array format holds, wherever in a record."""
    if isinstance(value, int) and abs(value) > 2**53:
        raise DamagedFileError(f"{where} is {value}, not a number from {-(2**53)} to {2**53}")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        _require_small(one, f"{where}.{key}")


@lru_cache
def _adapter(kind: Any) -> Any:
    return TypeAdapter(kind)


def refuse(problems: Iterator[str]) -> None:
    """Refuse what has a problem.

    Raises:
        DamagedFileError: The first.
    """
    for one in problems:
        raise DamagedFileError(one)


def check_bank(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Refuse tensors and a record that make no bank.

    Raises:
        DamagedFileError: The first that does not hold.
    """
    require_record(record, BankRecord, "bank")
    refuse(_names(record))
    refuse(_latents(tensors, record) if record["scoring"] == "latent" else _vectors(tensors, record))
    refuse(_component_means(tensors))
    if "canary" in record:
        refuse(_canary(tensors, record))


def _names(record: Mapping[str, Any]) -> Iterator[str]:
    yield from names_problems("bank.concepts", record["concepts"])
    yield from names_problems("bank.units", record["units"])
    for name, layers in (
        ("layers", record["layers"]),
        ("origin.sink_layers", record["origin"]["sink_layers"]),
    ):
        if (not layers and name == "layers") or layers != sorted(set(layers)) or min(layers, default=0) < 0:
            yield f"bank.{name} is {layers!r:.60}: expected block indices, ascending"
    if not 0 <= record["origin"]["seed"] < 1 << 32:
        yield f"bank.origin.seed is {record['origin']['seed']}: expected 0 to {(1 << 32) - 1}"
    for reason, n in record["origin"]["counts"].items():
        if n < 0:
            yield f"bank.origin.counts[{reason!r}] is {n}: expected 0 or more"
    if ("saes" in record) != (record["scoring"] == "latent"):
        yield f"bank.scoring is {record['scoring']!r}: latents alone have saes"


def names_problems(where: str, names: Sequence[str]) -> Iterator[str]:
    """What is wrong with names: none, a blank one, one twice."""
    if not names or len(set(names)) != len(names) or not all(name.strip() for name in names):
        yield f"{where} is {names!r:.60}: expected names, none blank or twice"


def _vectors(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Iterator[str]:
    layers, units = len(record["layers"]), len(record["units"])
    if "token.vectors" not in tensors:
        yield "it holds no token vectors"
    width = _last(tensors["token.vectors"])
    for name in SETS:
        parts = [f"{name}.{part}" for part in ("vectors", "mean", "scale")]
        if not any(part in tensors for part in parts):
            continue
        own = units if name == "token" else None
        yield from tensor_problems(tensors, parts[0], (layers, own, width))
        yield from tensor_problems(tensors, parts[1], (layers, width))
        yield from tensor_problems(tensors, parts[2], (layers,))
        if not (tensors[parts[2]] > 0).all():
            yield f"{parts[2]} holds a scale that is not above 0"


def _latents(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Iterator[str]:
    layers, units = len(record["layers"]), len(record["units"])
    for one in record["saes"]:
        kinds = {name: type(value) for name, value in one.items()}
        if kinds != {"width": int, "digest": str, "class": str}:
            yield f"bank.saes holds {one!r:.60}: expected width, digest and class"
    widths = [one["width"] for one in record["saes"]]
    if len(widths) != layers or min(widths) < 1:
        yield f"bank.saes has {len(widths)} entries of widths {widths!r:.60}: expected one a layer"
    yield from tensor_problems(tensors, "sae.latents", (units,), torch.int64)
    if not ((tensors["sae.latents"] >= 0) & (tensors["sae.latents"] < max(widths))).all():
        yield f"sae.latents holds an index outside 0 to {max(widths) - 1}"
    yield from tensor_problems(tensors, "sae.kept", (layers, units), torch.bool)
    yield from tensor_problems(tensors, "sae.probes", (layers, None, None))
    yield from tensor_problems(tensors, "sae.expected", (layers, tensors["sae.probes"].shape[1], 3))


def _component_means(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    names = [f"component_means.{name}" for name in MEANS]
    if not any(name in tensors for name in names):
        return
    yield from tensor_problems(tensors, names[0], (None,))
    yield from tensor_problems(tensors, names[1], (None, None, None))
    blocks, width = tensors[names[1]].shape[0], tensors[names[0]].shape[0]
    yield from tensor_problems(tensors, names[2], (blocks, width))


def _canary(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Iterator[str]:
    yield from tensor_problems(tensors, "canary.scores", (None, len(record["layers"]), len(record["units"])))
    rows = len(tensors["canary.scores"])
    yield from tensor_problems(tensors, "canary.sample", (rows,), torch.int64)
    yield from tensor_problems(tensors, "canary.offsets", (rows, None), torch.float64)
    if not rows:
        yield "canary.scores holds no token"


def tensor_problems(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: Sequence[int | None],
    dtype: torch.dtype | None = None,
    *,
    finite: bool = True,
) -> Iterator[str]:
    """What is wrong with a tensor: missing, of another shape or format, not finite.

    Args:
        tensors: By name.
        name: Of the tensor.
        shape: Expected; None is any length.
        dtype: Expected; None is any float.
        finite: Whether +inf is refused too; NaN and -inf always are.
    """
    found = tensors.get(name)
    if found is None:
        yield f"{name} is missing"
        return
    fits = found.ndim == len(shape) and all(w in (None, n) for w, n in zip(shape, found.shape, strict=True))
    if not fits:
        expected = [n if n is not None else "any" for n in shape]
        yield f"{name} has shape {list(found.shape)}: expected {expected}"
    if not (found.is_floating_point() if dtype is None else found.dtype == dtype):
        yield f"{name} is {str(found.dtype)[6:]}: expected {'floats' if dtype is None else str(dtype)[6:]}"
    if found.is_floating_point() and not (found.isfinite().all() if finite else (found > -torch.inf).all()):
        yield f"{name} holds NaN or Inf"


def _last(tensor: Tensor) -> int | None:
    return tensor.shape[-1] if tensor.ndim else None
