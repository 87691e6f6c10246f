"""What jaxtyping's import hook puts on every function of the packages under test, made to cost little.

jaxtyping's own decorator compiles two functions for each that it decorates, those inside of others anew
at every call of the outer one, and binds the arguments of every call: three fifths of the suite's time.
This one does the same checks (beartype on arguments, then on what is returned, names of axes meaning one
length in one call) but makes a check when the function is first called, keeps it for all functions of the
same code, and opens a context for names of axes only where hints have axes.
"""

import dataclasses
import functools
import inspect
import typing

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation

# Whoever looks for a user's line on the stack passes over the frames of jaxtyping.
__name__ = "jaxtyping.shape_checks"

context = jaxtyping.jaxtyped
kept = {}


def jaxtyped(typechecker):
    """In the place of `jaxtyping.jaxtyped`."""
    return checked


def checked(made):
    """A function that checks what it takes and returns; a dataclass whose constructor does."""
    if inspect.isclass(made):
        init = made.__init__
        if (
            dataclasses.is_dataclass(made)
            and not hasattr(init, "__checked__")
            and not hasattr(init, "__faced__")
        ):
            made.__init__ = checked(init)
        return made
    # Functions in others are made anew at every call of these; constructors of dataclasses have equal code.
    about = made.__module__, made.__qualname__, made.__code__

    @functools.wraps(made)
    def checking(*args, **named):
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return made(*args, **named)
        checks = kept.get(about)
        if checks is None:
            checks = kept[about] = checks_of(made)
        takes, gives, axes = checks
        if axes:
            with context("context"):
                return between(takes, gives, made, args, named)
        return between(takes, gives, made, args, named)

    checking.__checked__ = True
    return checking


def between(takes, gives, made, args, named):
    """A call between the checks of what it takes and of what it gives."""
    __tracebackhide__ = True
    try:
        takes(*args, **named)
    except BeartypeCallHintViolation as error:
        raise refused(made, error) from None
    found = made(*args, **named)
    try:
        return gives(found)
    except BeartypeCallHintViolation as error:
        raise refused(made, error) from None


def refused(made, error):
    """The error of jaxtyping for what does not fit."""
    return jaxtyping.TypeCheckError(f"{made.__module__}.{made.__qualname__}: {error}")


def checks_of(made):
    """A function that takes what `made` does, one that returns what it is given; whether there are axes."""
    signature = inspect.signature(made)
    hints = {name: hint_of(one.annotation, made) for name, one in signature.parameters.items()}
    returned = hint_of(signature.return_annotation, made)
    plain = [
        one.replace(annotation=one.empty, default=one.default if one.default is one.empty else None)
        for one in signature.parameters.values()
    ]
    found = {}
    exec(f"def takes{inspect.Signature(plain)}: pass\ndef gives(found): return found", found)
    takes, gives = found["takes"], found["gives"]
    takes.__defaults__, takes.__kwdefaults__ = made.__defaults__, made.__kwdefaults__
    takes.__qualname__ = made.__qualname__
    takes.__annotations__, gives.__annotations__ = hints, {"return": returned}
    return beartype(takes), beartype(gives), any(map(has_axes, [*hints.values(), returned]))


def hint_of(annotation, made):
    """What an annotation means where it was written; anything, where that cannot be told."""
    if annotation is inspect.Signature.empty:
        return typing.Any
    try:
        return typing.get_type_hints(
            type("One", (), {"__annotations__": {"one": annotation}}), made.__globals__, include_extras=True
        )["one"]
    except Exception:
        return typing.Any


def has_axes(hint):
    """Whether a hint, or one in it, is an array of jaxtyping."""
    return (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or any(
        map(has_axes, typing.get_args(hint))
    )
