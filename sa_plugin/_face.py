"""A public function refuses what it cannot use, in one way: the decorator `face` reads its type hints.

The hints are read once, at the first call. From then on every argument is held against its own:

| hint | takes | becomes |
|---|---|---|
| `int`, `float`, `bool`, `str` | numbers of numpy too; no bool for a number, nothing infinite | plain |
| `Sequence[X]`, `tuple[X, ...]` | lists, tuples, columns of numpy and pandas; never a text | list, tuple |
| `frozenset[X]`, `Collection[X]` | sets; lists and sets; never a text | frozen where it says so |
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
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from sa_plugin._check import did_you_mean
from sa_plugin._takers import NO, Range, Taker, taker_of

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


class ByArguments(NamedTuple):
    """Functions that depend on the arguments that were given, by their names."""

    of: Callable[[Mapping[str, Any]], Sequence[Callable[..., Any]]]


Receiver = Callable[..., Any] | ByArguments


RANGES: Mapping[str, Range] = {
    # Every library that draws takes seeds up to here.
    "seed": Range(0, 2**32 - 1),
    "draws": Range(1, 1_000_000),
    "refine": Range(1, 1000),
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
    "block_size": Range(1, 2**31 - 1),
    "memory_budget": Range(0, 2**50),
    "per_class": Range(1, 2**50),
    "memory": Range(0, 2**50),
    "limit": Range(0, 2**31 - 1),
    "n_layers": Range(1, 10_000),
    "size": Range(1, 65_536),
    "patch": Range(1, 65_536),
    "resample": Range(0, 5),
    "at_once": Range(1, 1000),
    "tries": Range(1, 1000),
    "back_off": Range(0, 86_400),
    "timeout": Range(0, 31_536_000),
    "delta": Range(0, 1),
    "min_coverage": Range(0, 1),
    "deltas": Range(0, 1),
    "q": Range(0, 1),
    "n": Range(1, 2**31 - 1),
    "least": Range(1, 2**31 - 1),
    "longest": Range(1, 2**50),
}
"""From where to where an argument of this name goes, in whatever function."""


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


def face_room(names: dict[str, Any]) -> None:
    """`face` on every function that a package hands out, where it hands it out.

    Rooms import one another's files, so that what they ask of each other costs nothing more.

    Args:
        names: `globals()` of the package; its `__all__` says which.
    """
    for name in names["__all__"]:
        if name in names:
            names[name] = handed_out(names[name])


def handed_out(made: Any) -> Any:
    """A function as a package hands it out; all else as it is."""
    return face(made) if inspect.isfunction(made) and not hasattr(made, "__faced__") else made


def _faced(made: Any, to: Sequence[Receiver], name: str | None = None, record: type | None = None) -> Any:
    if isinstance(made, type) and issubclass(made, tuple):
        made.__new__ = _faced(made.__new__, to, made.__qualname__, made)  # type: ignore[method-assign]
        return face_methods(made)
    if isinstance(made, type):
        # The constructor that dataclass wrote; the class stays the same object.
        made.__init__ = _faced(made.__init__, to, made.__qualname__, made)  # type: ignore[misc]
        return face_methods(made)
    # A record's hints stand in its class and bases, each to be read where it was written.
    read = _Asked(made, name or made.__qualname__, made if record is None else record)

    @functools.wraps(made)
    def checked(*args: Any, **given: Any) -> Any:
        # A notebook's traceback shows the user's line and the words, not how they were found.
        __tracebackhide__ = True
        asked = read()
        args = asked.in_order(args)
        known = given.keys() <= asked.takers.keys()
        given = asked.by_name(len(args), given, () if known else _receivers(asked, to, args, given))
        found = made(*args, **given)
        if record is None:
            _hand_on(found, (*args, *given.values()))
        return found

    checked.__faced__ = read  # type: ignore[attr-defined]
    return checked


class _Asked:
    """What a function asks of its arguments, read when it is first called.

    To another process, such as a worker's, it is sent unread: by value, with a function that a package
    hands out and that the function's own file does not know.
    """

    def __init__(self, *of: Any) -> None:
        self._of = of
        self._read: Arguments | None = None

    def __call__(self) -> Arguments:
        if self._read is None:
            self._read = _read(*self._of)
        return self._read

    def __reduce__(self) -> tuple[Any, ...]:
        return _Asked, self._of


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
        in_order_only: Names that are given in order alone: by name they are among `others`.
    """

    function: str
    order: tuple[str, ...]
    own: int
    takers: Mapping[str, Taker]
    required: tuple[str, ...]
    rest: Taker | None
    others: Taker | None
    in_order_only: frozenset[str] = frozenset()

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
            taker = None if name in self.in_order_only else self.takers.get(name)
            if taker is None:
                passed_on = [one.optional() for one in passed]
                taker = next((one[name] for one in passed_on if name in one), None if passed else self.others)
            if taker is None:
                known = list(dict.fromkeys([*self.takers, *(key for one in passed_on for key in one)]))
                raise TypeError(
                    f"{self.function} has no argument {name!r}{did_you_mean(name, known)} "
                    f"It takes {', '.join(known)}."
                )
            if name in in_order and name not in self.in_order_only:
                raise TypeError(f"{self.function}: {name} is given twice: {self.call()}.")
            new = taker.take(value)
            found[name] = self.taken(name, value, taker) if new is NO else new
        for name in self.required:
            if name not in found and name not in in_order:
                fix = self.call() if name in self.order else f"give {name}=..."
                raise TypeError(f"{self.function}: {name} is missing: {fix}.")
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
        if found is not NO:
            return found
        where, wrong, of = taker.blame(value)
        raise of.kind(wrong)(
            f"{self.function}: {of.refusal(name + where, wrong)}{self._order_hint(of)}.".replace("?.", "?")
        )

    def _order_hint(self, of: Taker) -> str:
        """Where objects are asked for and several are given in order, they may have changed places."""
        swapped = len(self.order) - self.own > 1 and of.made_by()
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
    own = int(bool(parameters) and parameters[0].name in ("self", "cls", "_cls"))
    takers: dict[str, Taker] = {}
    order, required = [], []
    rest = others = None
    for k, one in enumerate(parameters):
        if k < own:
            order.append(one.name)
            continue
        taker = taker_of(one.name, hints.get(one.name, Any), RANGES.get(one.name))
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
    in_order_only = frozenset(one.name for one in parameters[own:] if one.kind is one.POSITIONAL_ONLY)
    shown = name.rpartition("<locals>.")[2]
    return Arguments(shown, tuple(order), own, takers, tuple(required), rest, others, in_order_only)


def _hints(hinted: Any) -> dict[str, Any]:
    """Hints of what goes in. What comes out may be of a module that is loaded when it is needed."""
    if isinstance(hinted, type):
        return typing.get_type_hints(hinted, include_extras=True)
    inner = inspect.unwrap(hinted)
    given = {name: hint for name, hint in inner.__annotations__.items() if name != "return"}
    holder = types.SimpleNamespace(__annotations__=given)
    return typing.get_type_hints(holder, globalns=inner.__globals__, include_extras=True)
