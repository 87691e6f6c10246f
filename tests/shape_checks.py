"""What jaxtyping's import hook puts on every function of the packages under test, made to cost little.

jaxtyping's own decorator compiles two functions for each that it decorates, those inside of others anew
at every call of the outer one, and binds the arguments of every call: three fifths of the suite's time.
This one does the same checks (arguments, then what is returned; names of axes meaning one length in one
call) in a function of the same signature that is written when the decorated one is first called, once for
all functions of the same code. A class is asked by `isinstance`, an array by `fits`; whatever these do not
take, and every other hint, is left to beartype, whose word is final. A context for names of axes is opened
only where hints have axes.
"""

import dataclasses
import functools
import inspect
import types
import typing

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import _array_types as arrays
from jaxtyping import _storage

# Whoever looks for a user's line on the stack passes over the frames of jaxtyping.
__name__ = "jaxtyping.shape_checks"

config = jaxtyping.config
context = jaxtyping.jaxtyped
kept, of_kind = {}, {}
of_arrays = arrays._MetaAbstractArray


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
    call = None

    @functools.wraps(made)
    def checking(*args, **named):
        nonlocal call
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return made(*args, **named)
        if call is None:
            # Functions in others are made anew at every call of these; constructors of dataclasses have
            # equal code.
            about = made.__module__, made.__qualname__, made.__code__
            if about not in kept:
                kept[about] = written(made)
            call = kept[about](made)
        return call(*args, **named)

    checking.__checked__ = True
    return checking


def written(made):
    """A function that gives, for any function of this code, one of its signature that checks."""
    signature, plain, passed, takes = inspect.signature(made), [], [], []
    names = {"__name__": __name__, "_shape_Violation": BeartypeCallHintViolation, "_shape_refused": refused}
    names |= {"_shape_push": _storage.push_shape_memo, "_shape_pop": _storage.pop_shape_memo}
    hints = {name: hint_of(one.annotation, made) for name, one in signature.parameters.items()}
    returned = hint_of(signature.return_annotation, made)
    for k, (name, one) in enumerate(signature.parameters.items()):
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        passed.append(f"{name}={name}" if one.kind is one.KEYWORD_ONLY else stars + name)
        names[f"_shape_default{k}"] = one.default
        default = one.empty if one.default is one.empty else Name(f"_shape_default{k}")
        plain.append(one.replace(annotation=one.empty, default=default))
        test = test_of(hints[name], name, "_shape_each" if stars else name, k, names)
        if test and one.default is not one.empty:
            test = f"{name} is _shape_default{k} or {test}"
        elif test and stars:
            test = f"for _shape_each in {name}{'.values()' if stars == '**' else ''}: {test}"
        takes += [test] * bool(test)
    gives = test_of(returned, "return", "_shape_found", "found", names)
    body = [*tried(takes), f"_shape_found = _shape_made({', '.join(passed)})"]
    body += [*tried([gives] if gives else []), "return _shape_found"]
    if any(map(has_axes, [*hints.values(), returned])):
        body = ["_shape_push({})", "try:", *(f" {line}" for line in body), "finally:", " _shape_pop()"]
    # No argument is called as what stands here is.
    lines = ["def _shape_of(_shape_made):", f" def _shape_checks{inspect.Signature(plain)}:"]
    lines.append("  __tracebackhide__ = True")
    lines += [*(f"  {line}" for line in body), " _shape_checks.__qualname__ = _shape_made.__qualname__"]
    for given in ("__defaults__", "__kwdefaults__"):
        lines.append(f" _shape_checks.{given} = _shape_made.{given}")
    exec("\n".join([*lines, " return _shape_checks"]), names)
    return names["_shape_of"]


class Name(str):
    """A text that a signature shows without quotation marks."""

    __repr__ = str.__str__


def tried(tests):
    """Lines that make tests, and a refusal of jaxtyping of what does not fit."""
    if not tests:
        return []
    return [
        "try:",
        *(f" {one}" for one in tests),
        "except _shape_Violation as _shape_e:",
        " raise _shape_refused(_shape_made, _shape_e) from None",
    ]


def refused(made, error):
    """The error of jaxtyping for what does not fit."""
    return jaxtyping.TypeCheckError(f"{made.__module__}.{made.__qualname__}: {error}")


def test_of(hint, name, value, at, names):
    """An expression that raises where a value does not fit a hint; empty, where everything does."""
    if hint is typing.Any or hint is object:
        return ""
    classes = classes_of(hint)
    if not classes:
        names[f"_shape_judge{at}"] = judge(hint, name)
        return f"_shape_judge{at}({value})"
    names[f"_shape_class{at}"] = classes[0] if len(classes) == 1 else classes
    names[f"_shape_judge{at}"] = lambda given: judge(hint, name)(given)
    return f"isinstance({value}, _shape_class{at}) or _shape_judge{at}({value})"


def classes_of(hint):
    """Classes whose instances fit a hint without more ado: itself, those of a union."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(one for each in typing.get_args(hint) for one in classes_of(each))
    # Protocols and classes of typing say by other means what belongs to them.
    other = typing.get_origin(hint) or getattr(hint, "_is_protocol", False) or typing.is_typeddict(hint)
    other = other or hint is typing.Any or hasattr(hint, "__orig_bases__")
    return (hint,) if inspect.isclass(hint) and not other else ()


@functools.cache
def judge(hint, name):
    """A function that raises what beartype does of an argument of this name, or of what is returned."""
    found = {"__name__": __name__}
    exec("def given(given): return given" if name == "return" else f"def given({name}): pass", found)
    found["given"].__annotations__ = {name: hint}
    return beartype(found["given"])


def fits(cls, value):
    """What jaxtyping says of an array by `isinstance`, where axes have a name, a length or neither."""
    plan = plan_of(cls)
    if plan is None:
        return of_arrays.__instancecheck_str__(cls, value) == ""
    about = cls, type(value), getattr(value, "dtype", None)
    if about not in of_kind:
        of_kind[about] = of_arrays.__instancecheck_str__(cls.dtype[cls.array_type, "..."], value) == ""
    if not of_kind[about] or len(value.shape) != len(plan):
        return False
    lengths, more = _storage.get_shape_memo()[0], {}
    for axis, length in zip(plan, value.shape, strict=True):
        if type(axis) is int:
            known = axis
        elif axis in lengths:
            known = lengths[axis]
        else:
            known = length if axis is None else more.setdefault(axis, length)
        if length != known:
            return False
    lengths.update(more)
    return True


@functools.cache
def plan_of(cls):
    """Name, length or None of each axis; None where axes are told by other means."""
    if cls._skip_instancecheck or getattr(cls, "dims", None) is None or cls.index_variadic is not None:
        return None
    plan = []
    for one in cls.dims:
        named = type(one) is arrays._NamedDim and not one.treepath
        if one is not arrays._anonymous_dim and (
            not (named or type(one) is arrays._FixedDim) or one.broadcastable
        ):
            return None
        plan.append(None if one is arrays._anonymous_dim else one.name if named else one.size)
    return plan


of_arrays.__instancecheck__ = fits


def hint_of(annotation, made):
    """What an annotation means where it was written; anything, where that cannot be told."""
    if annotation is inspect.Signature.empty:
        return typing.Any
    try:
        hint = typing.get_type_hints(
            type("One", (), {"__annotations__": {"one": annotation}}), made.__globals__, include_extras=True
        )["one"]
    except Exception:
        return typing.Any
    # Of another function's arguments.
    passed_on = isinstance(hint, typing.ParamSpecArgs | typing.ParamSpecKwargs)
    return typing.Any if passed_on or typing.get_origin(hint) is typing.Unpack else hint


def has_axes(hint):
    """Whether a hint, or one in it, is an array of jaxtyping."""
    return (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)) or any(
        map(has_axes, typing.get_args(hint))
    )
