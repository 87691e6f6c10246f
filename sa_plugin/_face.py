"""A public function refuses what it cannot use, in one way: the decorator `face` reads its type hints.

The hints are read once, at the first call. From then on every argument is held against its own:

| hint | takes | becomes |
|---|---|---|
| `int`, `float`, `bool`, `str` | numbers of numpy too; no bool for a number, nothing infinite | plain |
| `Sequence[X]`, `tuple[X, ...]` | lists, tuples, columns of numpy and pandas; never a text | list, tuple |
| `Mapping[K, V]`, `tuple[X, Y]` | what it says | |
| a class, a protocol | its instances | |
| `Float[Tensor, "token d_model"]` | tensors of that kind with as many axes | |
| `Literal["drop", "keep"]` | one of these | |
| `Any`, type variables, what is not known here | everything | |

What a number means is known by the name of its argument, one name for one thing in every function:
`RANGES` says from where to where. Beyond it a call is refused before anything is computed; this is also
what keeps `draws=2**40` from running for a year.

What a function makes of something that `Carries` a word about itself says the same.

A keyword that the function does not have is answered with the nearest that it has.

The values themselves (is there such a concept, such a layer?) are the function's own business.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from sa_plugin._check import did_you_mean, with_article

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


class ByArguments(NamedTuple):
    """Functions that depend on the arguments that were given, by their names."""

    of: Callable[[Mapping[str, Any]], Sequence[Callable[..., Any]]]


Receiver = Callable[..., Any] | ByArguments


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


RANGES: Mapping[str, Range] = {
    # Every library that draws takes seeds up to here.
    "seed": Range(0, 2**32 - 1),
    "draws": Range(1, 1_000_000),
    "level": Range(0, 1, open=True),
    "permutations": Range(0, 10_000),
    "refits": Range(1, 100_000),
    "repeats": Range(1, 10_000),
    "budget": Range(0, 100_000_000),
    "n_random": Range(0, 10_000),
    "fixed_at": Range(0, 10_000),
    "quantile_draws": Range(1, 1_000_000),
    "n_steps": Range(1, 1_000_000),
    "n_test": Range(1, 1_000_000_000),
    "n_cal": Range(1, 1_000_000_000),
    "batch_tokens": Range(1, 2**31 - 1),
    "memory_budget": Range(0, 2**50),
    "per_class": Range(1, 2**50),
    "memory": Range(1, 2**50),
    "delta": Range(0, 1),
    "deltas": Range(0, 1),
    "q": Range(0, 1),
    "n": Range(1, 2**31 - 1),
    "least": Range(1, 2**31 - 1),
}
"""From where to where an argument of this name goes, in whatever function."""
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


def face(made: F) -> F:
    """Check the arguments of a public function or record whenever it is called.

    Args:
        made: A function, a method (below `classmethod`) or a class, constructor and all.

    Returns:
        The same with the same signature; refusals name the function, the argument, what was given,
        what is expected and the fix. They are a TypeError, or a ValueError where only the value is
        wrong. Less than 50 microseconds a call, and as long as it takes to look at every text of a list.

    Example:
        >>> @face
        ... def twice(n: int) -> int:
        ...     return 2 * n
        >>> twice("x")
        Traceback (most recent call last):
        TypeError: twice: n is the text 'x', not a whole number from 1 to 2147483647.
    """
    return cast(F, _faced(made, ()))


def passing(*to: Receiver, name: str | None = None) -> Callable[[F], F]:
    """`face` for a function that passes keywords on.

    Args:
        to: Functions that take them: as they are, or of the arguments that were given, where these
            decide. They answer for types and ranges, the called function for names.
        name: Under which people know this one: an adapter's own function answers for `attach`.
    """

    def faced(made: F) -> F:
        return cast(F, _faced(made, to, name))

    return faced


def face_methods(cls: C) -> C:
    """`face` on every public method of a class that takes an argument."""
    for name, one in list(vars(cls).items()):
        made = one.__func__ if isinstance(one, classmethod) else one
        if not inspect.isfunction(made) or (name.startswith("_") and name != "__getitem__"):
            continue
        if hasattr(made, "__faced__") or len(inspect.signature(made).parameters) < 2:
            continue
        checked = face(made)
        setattr(cls, name, classmethod(checked) if isinstance(one, classmethod) else checked)
    return cls


def _faced(made: Any, to: Sequence[Receiver], name: str | None = None, record: type | None = None) -> Any:
    if isinstance(made, type):
        # The constructor that dataclass wrote; the class stays the same object.
        made.__init__ = _faced(made.__init__, to, made.__qualname__, made)  # type: ignore[misc]
        return face_methods(made)
    # A record's hints stand in its class and bases, each to be read where it was written.
    read = functools.cache(lambda: _read(made, name or made.__qualname__, made if record is None else record))

    @functools.wraps(made)
    def checked(*args: Any, **given: Any) -> Any:
        # A notebook's traceback shows the user's line and the words, not how they were found.
        __tracebackhide__ = True
        asked = read()
        args = asked.in_order(args)
        known = given.keys() <= asked.takers.keys()
        given = asked.by_name(len(args), given, () if known else _receivers(asked, to, args, given))
        found = made(*args, **given)
        _hand_on(found, (*args, *given.values()))
        return found

    checked.__faced__ = read  # type: ignore[attr-defined]
    return checked


class Carries:
    """What says something of itself that all must say that a public function makes of it.

    Attributes:
        drift: What moved in the scores of the canaries of an artefact, where that was allowed.
    """

    @property
    def drift(self) -> str:
        """Of the artefact that this was made from."""
        return str(vars(self).get("_drift", ""))


def _hand_on(found: Any, given: Sequence[Any]) -> None:
    said = next((one.drift for value in given for one in _carriers(value) if one.drift), "")
    if said:
        for one in _carriers(found):
            if not one.drift:
                # Beside the fields of a frozen dataclass.
                vars(one)["_drift"] = said


def _carriers(value: Any) -> Sequence[Carries]:
    if isinstance(value, Carries):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    # Lists of texts are long; what carries stands among its like.
    alike = isinstance(value, list | tuple) and value and isinstance(value[0], Carries)
    return [one for one in value if isinstance(one, Carries)] if alike else []


def _receivers(
    asked: Arguments, to: Sequence[Receiver], args: Sequence[Any], given: Mapping[str, Any]
) -> list[Arguments]:
    found: list[Callable[..., Any]] = []
    for one in to:
        found += (
            one.of({**dict(zip(asked.order, args, strict=False)), **given})
            if isinstance(one, ByArguments)
            else [one]
        )
    return [arguments_of(one) for one in found]


class Arguments(NamedTuple):
    """What a function takes, as its hints say.

    Attributes:
        function: Its name, for refusals.
        order: Names of what may be given in order.
        own: How many of these are the object or class itself.
        takers: By name.
        required: Names without a default.
        rest, others: Of `*args` and `**kwargs`, where it has them.
    """

    function: str
    order: tuple[str, ...]
    own: int
    takers: Mapping[str, Taker]
    required: tuple[str, ...]
    rest: Taker | None
    others: Taker | None

    def in_order(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The positional arguments, as they are meant.

        Raises:
            TypeError, ValueError: One is none of its kind.
        """
        __tracebackhide__ = True
        if len(args) > len(self.order) and self.rest is None:
            by_name = [name for name in self.takers if name not in self.order]
            others = f"; give {', '.join(by_name)} by name" if by_name else ""
            raise TypeError(
                f"{self.function} was given {len(args) - self.own} arguments in order, not at most "
                f"{len(self.order) - self.own}: {self.call()}{others}."
            )
        found = list(args[: self.own])
        for name, value in zip(self.order[self.own :], args[self.own :], strict=False):
            found.append(self.taken(name, value, self.takers[name]))
        if self.rest is not None:
            found += [self.taken("*args", value, self.rest) for value in args[len(self.order) :]]
        return tuple(found)

    def by_name(self, n: int, given: Mapping[str, Any], passed: Sequence[Arguments]) -> dict[str, Any]:
        """The keyword arguments, as they are meant.

        Args:
            n: How many were given in order.
            given: The keywords.
            passed: Of the functions that take what this one passes on.

        Raises:
            TypeError, ValueError: One is unknown, given twice, missing, or none of its kind.
        """
        __tracebackhide__ = True
        found, in_order = {}, self.order[:n]
        for name, value in given.items():
            taker = self.takers.get(name)
            if taker is None:
                passed_on = [one.optional() for one in passed]
                taker = next((one[name] for one in passed_on if name in one), None if passed else self.others)
            if taker is None:
                known = list(dict.fromkeys([*self.takers, *(key for one in passed_on for key in one)]))
                raise TypeError(
                    f"{self.function} has no argument {name!r}{did_you_mean(name, known)} "
                    f"It takes {', '.join(known)}."
                )
            if name in in_order:
                raise TypeError(f"{self.function}: {name} is given twice: {self.call()}.")
            new = taker.take(value)
            found[name] = self.taken(name, value, taker) if new is _NO else new
        for name in self.required:
            if name not in found and name not in in_order:
                raise TypeError(f"{self.function}: {name} is missing: {self.call()}.")
        return found

    def optional(self) -> dict[str, Taker]:
        """What another function can pass on to this one: what the other does not give it itself."""
        return {name: taker for name, taker in self.takers.items() if name not in self.required}

    def taken(self, name: str, value: Any, taker: Taker) -> Any:
        """One argument, as it is meant.

        Raises:
            TypeError, ValueError: It is none of its kind.
        """
        __tracebackhide__ = True
        found = taker.take(value)
        if found is not _NO:
            return found
        where, wrong, of = taker.blame(value)
        raise of.kind(wrong)(
            f"{self.function}: {of.refusal(name + where, wrong)}{self._order_hint(of)}.".replace("?.", "?")
        )

    def _order_hint(self, of: Taker) -> str:
        """Where objects are asked for and several are given in order, they may have changed places."""
        swapped = isinstance(of, _Instance | _Either) and len(self.order) - self.own > 1 and of.made_by()
        return f"; {self.call()}" if swapped else ""

    def call(self) -> str:
        """The order, as a phrase."""
        names = self.order[self.own :] or tuple(self.required)
        return f"the order is {self.function}({', '.join(names)})"


def held_options(
    function: str, options: Mapping[str, Any], to: Sequence[Callable[..., Any]], *, own: Sequence[str] = ()
) -> dict[str, Any]:
    """Options that are handed over as a mapping, held against the functions that will take them.

    Args:
        function: That was called, and the argument, as refusals name them.
        options: By name.
        to: Functions that take them.
        own: Names that these functions are given otherwise.

    Returns:
        The options as they are meant.

    Raises:
        TypeError, ValueError: One is unknown, or none of its kind.
    """
    asked = [arguments_of(one) for one in to]
    known = {name: taker for one in asked for name, taker in one.optional().items() if name not in own}
    found = {}
    for name, value in options.items():
        taker = known.get(name)
        if taker is None:
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            raise TypeError(f"{function}: {name!r} is no option{did_you_mean(name, list(known))} {takes}")
        found[name] = asked[0]._replace(function=function).taken(name, value, taker)
    return found


def arguments_of(made: Callable[..., Any]) -> Arguments:
    """What any function takes, faced or not."""
    read: Callable[[], Arguments] | None = getattr(made, "__faced__", None)
    return _read(made, made.__qualname__, made) if read is None else read()


def _read(made: Callable[..., Any], name: str, hinted: Any) -> Arguments:
    parameters = list(inspect.signature(made).parameters.values())
    hints = _hints(hinted)
    own = int(bool(parameters) and parameters[0].name in ("self", "cls"))
    takers: dict[str, Taker] = {}
    order, required = [], []
    rest = others = None
    for k, one in enumerate(parameters):
        if k < own:
            order.append(one.name)
            continue
        taker = _taker(hints.get(one.name, Any), RANGES.get(one.name))
        if type(taker) is _Text:
            taker = _NAMED.get(one.name, _Text)()
        if one.kind is one.VAR_POSITIONAL:
            rest = taker
        elif one.kind is one.VAR_KEYWORD:
            others = taker
        else:
            takers[one.name] = taker
            if one.kind is not one.KEYWORD_ONLY:
                order.append(one.name)
            if one.default is one.empty:
                required.append(one.name)
    return Arguments(
        name.rpartition("<locals>.")[2], tuple(order), own, takers, tuple(required), rest, others
    )


def _hints(hinted: Any) -> dict[str, Any]:
    """Hints of what goes in. What comes out may be of a module that is loaded when it is needed."""
    if isinstance(hinted, type):
        return typing.get_type_hints(hinted, include_extras=True)
    inner = inspect.unwrap(hinted)
    given = {name: hint for name, hint in inner.__annotations__.items() if name != "return"}
    holder = types.SimpleNamespace(__annotations__=given)
    return typing.get_type_hints(holder, globalns=inner.__globals__, include_extras=True)


_NO: Any = object()
"""What a taker answers where a value is none of its kind."""
_ROWS = (list, tuple)
_TEXTS = (str, os.PathLike)
_Blame = tuple[str, Any, "Taker"]


class Taker:
    """Takes values of one kind; this one takes everything."""

    says = "anything"

    def take(self, value: Any) -> Any:
        """The value as it is meant, or `_NO`."""
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
        self.cls, self.says = cls, "None" if cls is type(None) else with_article(cls.__name__)
        self.passed: set[type] = set()

    def take(self, value: Any) -> Any:
        if type(value) in self.passed:
            return value
        if isinstance(value, self.cls):
            self.passed.add(type(value))
            return value
        return _NO

    def made_by(self) -> str:
        return _MADE_BY.get(self.cls.__name__, "")


class _Whole(Taker):
    def __init__(self, within: Range | None) -> None:
        self.low, self.high, _ = within or _ANY_NUMBER
        self.says = "a whole number" + (str(within) if within else "")

    def take(self, value: Any) -> Any:
        if type(value) is not int:
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                return _NO
            value = int(value)
        return value if self.low <= value <= self.high else _NO

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
                return _NO
            try:
                value = float(value)
            except OverflowError:
                return _NO
        if not math.isfinite(value) or (self.within is not None and not self.within.holds(value)):
            return _NO
        return value

    def kind(self, value: Any) -> type[Exception]:
        right = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return ValueError if right else TypeError


class _Truth(Taker):
    says = "True or False"

    def take(self, value: Any) -> Any:
        if value is True or value is False:
            return value
        return bool(value) if type(value).__module__ == "numpy" and _dtype(value) == "bool" else _NO


class _Text(Taker):
    says = "a text"

    def take(self, value: Any) -> Any:
        return value if isinstance(value, str) and _is_text(value) else _NO

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
        return value if isinstance(value, str) and value.isprintable() and value.strip() else _NO

    def fix(self, value: Any) -> str:
        return ""


class _Label(_Text):
    """What tells a sample or a document from others: any text that is not blank."""

    def take(self, value: Any) -> Any:
        return value if isinstance(value, str) and _is_text(value) and value.strip() else _NO

    def fix(self, value: Any) -> str:
        return "fill it in" if isinstance(value, str) and not value.strip() else super().fix(value)


class _Path(Taker):
    """A path, as text or as an object; one that no file system takes is refused here."""

    says = "a path"

    def take(self, value: Any) -> Any:
        return value if isinstance(value, _TEXTS) and self._usable(value) else _NO

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
            return value if value in self.known else _NO
        except Exception:
            # Arrays compare to arrays.
            return _NO

    def kind(self, value: Any) -> type[Exception]:
        return ValueError if isinstance(value, str) else TypeError

    def fix(self, value: Any) -> str:
        texts = [one for one in self.known if isinstance(one, str)]
        return did_you_mean(value, texts).strip(" :.") if isinstance(value, str) and texts else ""


class _Callable(Taker):
    says = "a function"

    def take(self, value: Any) -> Any:
        return value if callable(value) else _NO


class _Array(Taker):
    """An array of jaxtyping: its library, number format and number of axes; lengths are not compared.

    What jaxtyping itself does for `isinstance`, in a twentieth of its time.
    """

    def __init__(self, hint: Any) -> None:
        self.cls, self.formats = hint.array_type, hint.dtypes
        self.axes = len(hint.dims) if hint.index_variadic is None else None
        what = "a tensor" if hint.array_type.__name__ == "Tensor" else "an array"
        formats = f" of {hint.__name__.partition('[')[0].lower()}" if isinstance(hint.dtypes, tuple) else ""
        self.says = f"{what}{formats} [{', '.join(hint.dim_str.split())}]"

    def take(self, value: Any) -> Any:
        if not isinstance(value, self.cls) or (self.axes is not None and value.ndim != self.axes):
            return _NO
        return value if not isinstance(self.formats, tuple) or _dtype(value) in self.formats else _NO

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
                return _NO
            if not isinstance(value, Sequence):
                if self.lazy:
                    return value if isinstance(value, Iterable) else _NO
                if not _is_column(value):
                    return _NO
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
                if new is _NO:
                    return _NO
                same = same and new is one
                found.append(new)
            found = value if same else found
        return tuple(found) if self.into is tuple and not isinstance(found, tuple) else found

    def blame(self, value: Any) -> _Blame:
        if not isinstance(value, str | bytes | Mapping) and (
            isinstance(value, Sequence) or _is_column(value)
        ):
            for k, one in enumerate(value if isinstance(value, Sequence) else value.tolist()):
                if self.element.take(one) is _NO:
                    where, wrong, of = self.element.blame(one)
                    return f"[{k}]{where}", wrong, of
        return "", value, self

    def fix(self, value: Any) -> str:
        if isinstance(value, str):
            return f"give [{_shorten(value)}]"
        if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes):
            return "give list(...) of it"
        if self.element.take(value) is not _NO and not self.any:
            return f"give [{_shorten(value)}]"
        return self.element.made_by()

    def refusal(self, name: str, value: Any) -> str:
        says = "a list of names" if isinstance(value, str) and self.plain else self.says
        fix = self.fix(value)
        return f"{name} is {_shown(value)}, not {says}" + (f": {fix}" if fix else "")


class _Row(Taker):
    """A tuple of fixed length; a list will do."""

    def __init__(self, elements: Sequence[Taker]) -> None:
        self.elements = elements
        self.says = f"({', '.join(one.says for one in elements)})"

    def take(self, value: Any) -> Any:
        if not isinstance(value, _ROWS) or len(value) != len(self.elements):
            return _NO
        found, same = [], type(value) is tuple
        for taker, one in zip(self.elements, value, strict=True):
            new = taker.take(one)
            if new is _NO:
                return _NO
            same = same and new is one
            found.append(new)
        return value if same else tuple(found)

    def blame(self, value: Any) -> _Blame:
        if isinstance(value, _ROWS) and len(value) == len(self.elements):
            for k, (taker, one) in enumerate(zip(self.elements, value, strict=True)):
                if taker.take(one) is _NO:
                    where, wrong, of = taker.blame(one)
                    return f"[{k}]{where}", wrong, of
        return "", value, self


class _Map(Taker):
    def __init__(self, key: Taker, element: Taker) -> None:
        self.key, self.element = key, element
        self.says = "a mapping" if type(element) is Taker else f"a mapping to {_plural(element.says)}"

    def take(self, value: Any) -> Any:
        if type(value) is not dict and not isinstance(value, Mapping):
            return _NO
        if type(self.element) is Taker and type(self.key) is Taker:
            return value
        changed, found = False, {}
        for key, one in value.items():
            new_key, new = self.key.take(key), self.element.take(one)
            if new_key is _NO or new is _NO:
                return _NO
            changed = changed or new is not one or new_key is not key
            found[new_key] = new
        return found if changed else value

    def blame(self, value: Any) -> _Blame:
        for key, one in value.items() if isinstance(value, Mapping) else ():
            if self.key.take(key) is _NO:
                return " (a key)", key, self.key
            if self.element.take(one) is _NO:
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
            if found is not _NO:
                return found
        return _NO

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


_NAMED: Mapping[str, type[_Text]] = {"name": _Name, "id": _Label, "document": _Label}
"""What a text is by the name of its argument."""


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
    if issubclass(origin, Mapping):
        return _Map(_taker(parts[0], None), _taker(parts[1], within))
    if issubclass(origin, Sequence):
        return _Several(_taker(parts[0], within))
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
