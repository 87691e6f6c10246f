"""What takes the values of one kind of hint, and words the refusal of all others; see `sa_plugin._face`.

`taker_of` reads a hint. A taker answers with the value as it is meant, or with `NO`; asked then, it says
where in the value the fault is, what was expected and the fix.
"""

from __future__ import annotations

import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, cast

from sa_plugin._check import did_you_mean, with_article


class Range(NamedTuple):
    """Where a number lies.

    Attributes:
        low, high: Both belong to it, unless it is open.
        open: Whether neither does.
    """

    low: float | int
    high: float | int
    open: bool = False

    def holds(self, value: float | int) -> bool:
        """Whether a number lies inside."""
        return self.low < value < self.high if self.open else self.low <= value <= self.high

    def __str__(self) -> str:
        between = " between {} and {}" if self.open else " from {} to {}"
        return between.format(*(_plain(end) for end in (self.low, self.high)))


_ANY_NUMBER = Range(-(2**53), 2**53)
"""Of every other whole number: what a float and every array format hold."""

_MADE_BY = {
    "Batch": "give one of host.batches(samples)",
    "ConceptBank": "give fit(host, data)",
    "ConceptData": "give load(...) or ConceptData.from_spans(...)",
    "Detector": "give calibrate(host, data, bank)",
    "Host": "attach(model) first",
    "Intervention": "give Intervention('mean')",
    "Objective": "give objective(name, detector=..., concept=..., sample=...)",
    "Plan": "give Plan(kinds=('separator',))",
    "Resampling": "give Resampling(draws=1000)",
    "Sample": "give a Sample, such as data.test[0]",
    "ScoreTable": "give score(host, data, bank)",
    "Split": "give data.test",
    "TokenTable": "give table.tokens",
    "TrainStatistics": "give collect(host, data)",
}
"""Where an object of a class comes from."""

NO: Any = object()
"""What a taker answers where a value is none of its kind."""
_ROWS = (list, tuple)
_TEXTS = (str, os.PathLike)
_Blame = tuple[str, Any, "Taker"]


class Taker:
    """Takes values of one kind; this one takes everything."""

    says = "anything"

    def take(self, value: Any) -> Any:
        """The value as it is meant, or `NO`."""
        return value

    def blame(self, value: Any) -> _Blame:
        """Of a value that was not taken: where in it the fault is, what is wrong, who did not take it."""
        return "", value, self

    def kind(self, value: Any) -> type[Exception]:
        """Of the refusal."""
        return TypeError

    def fix(self, value: Any) -> str:
        """What to do instead, or ""."""
        return self.made_by()

    def made_by(self) -> str:
        """Where such values come from, or ""."""
        return ""

    def refusal(self, name: str, value: Any) -> str:
        """What is wrong, what was expected and the fix."""
        fix = self.fix(value)
        return f"{name} is {_shown(value)}, not {self.says}" + (f": {fix}" if fix else "")


class _Instance(Taker):
    """Of a class. Protocols look at every member, so a class that passed is remembered."""

    def __init__(self, cls: type) -> None:
        self.cls, self.name = cls, cls.__name__.lstrip("_")
        self.says = "None" if cls is type(None) else with_article(self.name)
        self.passed: set[type] = set()

    def take(self, value: Any) -> Any:
        if type(value) in self.passed:
            return value
        if isinstance(value, self.cls):
            self.passed.add(type(value))
            return value
        return NO

    def made_by(self) -> str:
        return _MADE_BY.get(self.name, "")


class _Whole(Taker):
    def __init__(self, within: Range | None) -> None:
        self.low, self.high, _ = within or _ANY_NUMBER
        self.says = "a whole number" + (str(within) if within else "")

    def take(self, value: Any) -> Any:
        if type(value) is not int:
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                return NO
            value = int(value)
        return value if self.low <= value <= self.high else NO

    def kind(self, value: Any) -> type[Exception]:
        right = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return ValueError if right else TypeError


class _Real(Taker):
    def __init__(self, within: Range | None) -> None:
        self.within = within
        self.says = f"a number{within}" if within else "a finite number"

    def take(self, value: Any) -> Any:
        if type(value) is not float:
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                return NO
            try:
                value = float(value)
            except OverflowError:
                return NO
        if not math.isfinite(value) or (self.within is not None and not self.within.holds(value)):
            return NO
        return value

    def kind(self, value: Any) -> type[Exception]:
        right = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return ValueError if right else TypeError


class _Truth(Taker):
    says = "True or False"

    def take(self, value: Any) -> Any:
        if value is True or value is False:
            return value
        return bool(value) if type(value).__module__ == "numpy" and _dtype(value) == "bool" else NO


class _Text(Taker):
    says = "a text"

    def take(self, value: Any) -> Any:
        return value if isinstance(value, str) and _is_text(value) else NO

    def kind(self, value: Any) -> type[Exception]:
        return ValueError if isinstance(value, str) else TypeError

    def fix(self, value: Any) -> str:
        if not isinstance(value, str):
            return ""
        what = "a null character" if "\0" in value else "half a character (a lone surrogate)"
        return f"it holds {what}, read the file in its own encoding"


class _Name(_Text):
    """What something is to be called: it can be seen and written."""

    says = "a name"

    def take(self, value: Any) -> Any:
        return value if isinstance(value, str) and value.isprintable() and value.strip() else NO

    def fix(self, value: Any) -> str:
        return ""


class _Label(_Text):
    """What tells a sample or a document from others: any text that is not blank."""

    def take(self, value: Any) -> Any:
        return value if isinstance(value, str) and _is_text(value) and value.strip() else NO

    def fix(self, value: Any) -> str:
        return "fill it in" if isinstance(value, str) and not value.strip() else super().fix(value)


class _Path(Taker):
    """A path, as text or as an object; one that no file system takes is refused here."""

    says = "a path"

    def take(self, value: Any) -> Any:
        return value if isinstance(value, _TEXTS) and self._usable(value) else NO

    def kind(self, value: Any) -> type[Exception]:
        return ValueError if isinstance(value, str | os.PathLike) else TypeError

    @staticmethod
    def _usable(value: Any) -> bool:
        try:
            text = os.fspath(value).encode()
        except (UnicodeError, TypeError, AttributeError):
            return False
        return bool(text.strip()) and b"\0" not in text


class _Choice(Taker):
    def __init__(self, known: Sequence[Any]) -> None:
        self.known = known
        self.says = " or ".join(map(repr, known))

    def take(self, value: Any) -> Any:
        try:
            return value if value in self.known else NO
        except Exception:
            # Arrays compare to arrays.
            return NO

    def kind(self, value: Any) -> type[Exception]:
        return ValueError if isinstance(value, str) else TypeError

    def fix(self, value: Any) -> str:
        texts = [one for one in self.known if isinstance(one, str)]
        return did_you_mean(value, texts).strip(" :.") if isinstance(value, str) and texts else ""


class _Callable(Taker):
    says = "a function"

    def take(self, value: Any) -> Any:
        return value if callable(value) else NO


class _Array(Taker):
    """An array of jaxtyping: its library, number format, axes and the lengths that are numbers.

    What jaxtyping itself does for `isinstance`, in a twentieth of its time.
    """

    def __init__(self, hint: Any) -> None:
        self.cls, self.formats = hint.array_type, hint.dtypes
        self.axes = len(hint.dims) if hint.index_variadic is None else None
        sizes = [getattr(dim, "size", None) for dim in hint.dims]
        self.fixed = [(k, n) for k, n in enumerate(sizes) if n is not None] if self.axes else []
        what = "a tensor" if hint.array_type.__name__ == "Tensor" else "an array"
        formats = f" of {hint.__name__.partition('[')[0].lower()}" if isinstance(hint.dtypes, tuple) else ""
        self.says = f"{what}{formats} [{', '.join(hint.dim_str.split())}]"

    def take(self, value: Any) -> Any:
        if not isinstance(value, self.cls) or (self.axes is not None and value.ndim != self.axes):
            return NO
        if self.fixed and any(value.shape[k] != n for k, n in self.fixed):
            return NO
        return value if not isinstance(self.formats, tuple) or _dtype(value) in self.formats else NO

    def kind(self, value: Any) -> type[Exception]:
        return ValueError if isinstance(value, self.cls) else TypeError


class _Several(Taker):
    """A sequence; an iterable where `lazy`, of which only lists and tuples are looked into."""

    def __init__(self, element: Taker, *, lazy: bool = False, into: type = list) -> None:
        self.element, self.lazy, self.into = element, lazy, into
        self.plain = str if type(element) is _Text else None
        self.any = type(element) is Taker
        self.says = "a list" if self.any else f"a list of {_plural(element.says)}"

    def take(self, value: Any) -> Any:
        kind = type(value)
        # Asking for a Sequence or a Mapping takes longer than all the rest, for a list.
        if kind is not list and kind is not tuple:
            if isinstance(value, str | bytes | Mapping):
                return NO
            if not isinstance(value, Sequence):
                if self.lazy and not (hasattr(value, "tolist") and not self.any):
                    return value if isinstance(value, Iterable) else NO
                if not _is_column(value):
                    return NO
                value = value.tolist()
            elif not self.lazy and self.into is list and len(value) > 1000:
                # A sequence of somebody's own, which may read what it hands out from a disk.
                return value
        if self.any or (self.plain is not None and _all_texts(value)):
            found = value
        else:
            found, take, same = [], self.element.take, True
            for one in value:
                new = take(one)
                if new is NO:
                    return NO
                same = same and new is one
                found.append(new)
            found = value if same else found
        return tuple(found) if self.into is tuple and not isinstance(found, tuple) else found

    def blame(self, value: Any) -> _Blame:
        if not isinstance(value, str | bytes | Mapping) and (
            isinstance(value, Sequence) or _is_column(value)
        ):
            for k, one in enumerate(value if isinstance(value, Sequence) else value.tolist()):
                if self.element.take(one) is NO:
                    where, wrong, of = self.element.blame(one)
                    return f"[{k}]{where}", wrong, of
        return "", value, self

    def fix(self, value: Any) -> str:
        if isinstance(value, str):
            return f"give [{_shorten(value)}]" if self.any or self.element.take(value) is not NO else ""
        if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes):
            return "give list(...) of it"
        if self.element.take(value) is not NO and not self.any:
            return f"give [{_shorten(value)}]"
        return self.element.made_by()

    def refusal(self, name: str, value: Any) -> str:
        says = "a list of names" if isinstance(value, str) and self.plain else self.says
        fix = self.fix(value)
        return f"{name} is {_shown(value)}, not {says}" + (f": {fix}" if fix else "")


class _Set(Taker):
    """A set, or whatever holds several where the hint says no more; a set becomes a frozen one."""

    def __init__(self, origin: type, element: Taker) -> None:
        self.origin, self.element = origin, element
        sets = issubclass(origin, AbstractSet)
        self.says = f"a {'set' if sets else 'list or set'} of {_plural(element.says)}"

    def take(self, value: Any) -> Any:
        frozen: Any = frozenset(value) if isinstance(value, set) and self.origin is frozenset else value
        if not isinstance(frozen, self.origin) or isinstance(frozen, str | bytes | Mapping):
            return NO
        return NO if any(self.element.take(one) is NO for one in cast(Iterable[Any], frozen)) else frozen

    def blame(self, value: Any) -> _Blame:
        if isinstance(value, AbstractSet | list | tuple):
            for one in value:
                if self.element.take(one) is NO:
                    return " (of which one)", one, self.element
        return "", value, self

    def fix(self, value: Any) -> str:
        return f"give {{{_shorten(value)}}}" if isinstance(value, str) else self.element.made_by()


class _Row(Taker):
    """A tuple of fixed length; a list will do."""

    def __init__(self, elements: Sequence[Taker]) -> None:
        self.elements = elements
        self.says = f"({', '.join(one.says for one in elements)})"

    def take(self, value: Any) -> Any:
        if not isinstance(value, _ROWS) or len(value) != len(self.elements):
            return NO
        found, same = [], type(value) is tuple
        for taker, one in zip(self.elements, value, strict=True):
            new = taker.take(one)
            if new is NO:
                return NO
            same = same and new is one
            found.append(new)
        return value if same else tuple(found)

    def blame(self, value: Any) -> _Blame:
        if isinstance(value, _ROWS) and len(value) == len(self.elements):
            for k, (taker, one) in enumerate(zip(self.elements, value, strict=True)):
                if taker.take(one) is NO:
                    where, wrong, of = taker.blame(one)
                    return f"[{k}]{where}", wrong, of
        return "", value, self


class _Map(Taker):
    def __init__(self, key: Taker, element: Taker) -> None:
        self.key, self.element = key, element
        self.says = "a mapping" if type(element) is Taker else f"a mapping to {_plural(element.says)}"

    def take(self, value: Any) -> Any:
        if type(value) is not dict and not isinstance(value, Mapping):
            return NO
        if type(self.element) is Taker and type(self.key) is Taker:
            return value
        changed, found = False, {}
        for key, one in value.items():
            new_key, new = self.key.take(key), self.element.take(one)
            if new_key is NO or new is NO:
                return NO
            changed = changed or new is not one or new_key is not key
            found[new_key] = new
        return found if changed else value

    def blame(self, value: Any) -> _Blame:
        for key, one in value.items() if isinstance(value, Mapping) else ():
            if self.key.take(key) is NO:
                return " (a key)", key, self.key
            if self.element.take(one) is NO:
                where, wrong, of = self.element.blame(one)
                return f"[{key!r}]{where}", wrong, of
        return "", value, self


class _Either(Taker):
    """Of several kinds, the first that takes it."""

    def __init__(self, arms: Sequence[Taker]) -> None:
        self.arms = sorted(arms, key=lambda arm: isinstance(arm, _Several | _Array))
        self.shown = [arm for arm in self.arms if arm.says != "None"]
        self.says = " or ".join(dict.fromkeys(arm.says for arm in self.shown))

    def take(self, value: Any) -> Any:
        for arm in self.arms:
            found = arm.take(value)
            if found is not NO:
                return found
        return NO

    def blame(self, value: Any) -> _Blame:
        if len(self.shown) == 1:
            return self.shown[0].blame(value)
        for arm in self.shown:
            # An arm that takes part of it was meant, or one that the value is only too large for.
            where, wrong, of = arm.blame(value)
            if where or of.kind(wrong) is ValueError:
                return where, wrong, of
        return "", value, self

    def fix(self, value: Any) -> str:
        if isinstance(value, str):
            return next((arm.fix(value) for arm in self.shown if isinstance(arm, _Several)), self.made_by())
        return self.made_by()

    def made_by(self) -> str:
        return next((arm.made_by() for arm in self.shown if arm.made_by()), "")


_NAMED: Mapping[str, type[_Text]] = {"name": _Name, "concept": _Label, "id": _Label, "document": _Label}
"""What a text is by the name of its argument."""


def taker_of(name: str, hint: Any, within: Range | None) -> Taker:
    """The taker of an argument.

    Args:
        name: Of the argument: a text is a name, a label or any.
        hint: Its type.
        within: Where a number of this name lies.
    """
    taker = _taker(hint, within)
    return _NAMED.get(name, _Text)() if type(taker) is _Text else taker


def _taker(hint: Any, within: Range | None) -> Taker:
    """The taker of one hint; what is not known here takes everything."""
    if hint in _PLAIN:
        return _PLAIN[hint](within)
    if hint is None:
        return _Instance(type(None))
    if hasattr(hint, "array_type") and hasattr(hint, "dim_str"):
        return _Array(hint) if isinstance(hint.array_type, type) else Taker()
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        own = next((one for one in parts[1:] if isinstance(one, Range)), within)
        return _taker(parts[0], own)
    if origin is typing.Literal:
        return _Choice(parts)
    if origin in (typing.Union, types.UnionType):
        return _either(parts, within)
    if origin is tuple and not (len(parts) == 2 and parts[1] is ...):
        return _Row([_taker(part, within) for part in parts])
    if origin is not None and isinstance(origin, type):
        return _container(origin, parts, within)
    if isinstance(hint, type) and hint not in (object, Any):
        if getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False):
            return Taker()
        return _Path() if issubclass(hint, os.PathLike) else _Instance(hint)
    return Taker()


def _either(parts: Sequence[Any], within: Range | None) -> Taker:
    if any(isinstance(part, type) and issubclass(part, os.PathLike) for part in parts):
        parts = [part for part in parts if part is not str]
    arms = [_taker(part, within) for part in parts]
    if any(type(arm) is Taker for arm in arms):
        return Taker()
    return arms[0] if len(arms) == 1 else _Either(arms)


def _container(origin: type, parts: Sequence[Any], within: Range | None) -> Taker:
    if origin is tuple:
        return _Several(_taker(parts[0], within), into=tuple)
    if issubclass(origin, Callable):  # type: ignore[arg-type]
        return _Callable()
    if issubclass(origin, Mapping) and len(parts) == 2:
        return _Map(_taker(parts[0], None), _taker(parts[1], within))
    if issubclass(origin, Sequence):
        return _Several(_taker(parts[0], within))
    if origin is Collection or issubclass(origin, AbstractSet):
        return _Set(origin, _taker(parts[0], within))
    if origin is Iterable:
        return _Several(_taker(parts[0], within), lazy=True)
    return _Instance(origin)


_PLAIN: Mapping[Any, Callable[[Range | None], Taker]] = {
    int: _Whole,
    float: _Real,
    bool: lambda _: _Truth(),
    str: lambda _: _Text(),
}


def _shown(value: object) -> str:
    """A value in a refusal: itself where it is short, else its type."""
    if value is None or isinstance(value, bool | numbers.Number):
        return f"{value}"
    if isinstance(value, str):
        return f"the text {_shorten(value)}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        what = "an array" if type(value).__name__ == "ndarray" else with_article(type(value).__name__)
        return f"{what} of {_dtype(value)} {list(shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, list | tuple | set | dict) and not value:
        return f"an empty {type(value).__name__}"
    return with_article(type(value).__name__)


def _shorten(value: object) -> str:
    """Its `repr`, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dtype(value: Any) -> str:
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def _all_texts(value: Sequence[Any]) -> bool:
    """Whether these are plain texts with nothing in them that needs a look of its own."""
    return set(map(type, value)) <= {str} and all(map(_is_text, value))


def _is_text(value: str) -> bool:
    """Whether this can be written down: without a null and half a character."""
    if "\0" in value:
        return False
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return True


def _is_column(value: Any) -> bool:
    """An array, a tensor or a column of pandas of one axis, which is as good as a list."""
    return hasattr(value, "tolist") and getattr(value, "ndim", None) == 1


def _plural(says: str) -> str:
    plain = says.removeprefix("an ").removeprefix("a ")
    for noun in ("text", "whole number", "finite number", "number", "path", "function", "list", "mapping"):
        if plain == noun or plain.startswith(f"{noun} "):
            return plain.replace(noun, f"{noun}s", 1)
    return says


def _plain(number: float | int) -> str:
    return f"{int(number)}" if float(number).is_integer() else f"{number}"
