"""The record of a saved detector. pydantic checks it, which is why annotations are no strings here."""

from typing import Any, Literal, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from sa_plugin.concepts.saved_schema import CLOSED


@with_config(CLOSED)
class TableRecord(TypedDict):
    """One method's calibration table, without its tensors."""

    method: str
    deltas: list[float]
    candidates: int


@with_config(CLOSED)
class SeenRecord(TypedDict):
    """Which samples vectors and thresholds have seen."""

    data_hash: str
    train: list[str]
    cal: list[str]
    train_texts: list[str]
    cal_texts: list[str]
    guard_texts: NotRequired[list[str]]


@with_config(CLOSED)
class PromiseRecord(TypedDict):
    """A promise, and the lengths that it is made for."""

    kind: Literal["document", "sample", "tokens"]
    alpha: float
    covers: list[int]
    confidence: NotRequired[float]
    lengths: NotRequired[list[int]]
    episodes: NotRequired[int]
    concepts: NotRequired[list[str]]


@with_config(CLOSED)
class DetectorRecord(TypedDict):
    """A calibration, without its tensors; its bank is checked on its own."""

    bank: dict[str, Any]
    concepts: list[str]
    tables: dict[str, list[TableRecord]]
    missing: dict[str, str]
    seen: SeenRecord
    seed: int
    unknown: NotRequired[dict[str, int]]
    promise: NotRequired[PromiseRecord]
