"""The checks of hints that the suite puts on every function check what jaxtyping's own do."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from jaxtyping import Float, Float32, Int, Shaped, TypeCheckError
from shape_checks import checked, context

from sa_plugin.scores import score
from sa_plugin.statistics import resampled_confusion


@checked
def product(a: Float[torch.Tensor, "n k"], b: Float[torch.Tensor, "k m"]) -> Float[torch.Tensor, "n m"]:
    return a @ b if len(a) > 1 else a


@checked
def length(text: str, *more: int, most: "int | None" = None) -> int:
    return len(text) if most is None else str(most)


@checked
def numbers(n: int) -> Iterator[int]:
    yield from range(n)


@checked
@dataclass
class Record:
    n: int
    shape: Float[torch.Tensor, "k"] | None = None


@checked
def maker(n: int):
    @checked
    def inside(m: int) -> int:
        return n + m

    return inside


def test_what_fits_passes():
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert length("abc", 1, 2) == 3
    assert list(numbers(2)) == [0, 1]
    assert Record(1, torch.ones(2)).n == 1
    # Functions of the same code share a check, not what they know.
    assert [maker(n)(1) for n in (1, 5)] == [2, 6]


@pytest.mark.parametrize(
    "call",
    [
        lambda: product(torch.ones(2, 3), torch.ones(2, 3)),
        lambda: product(torch.ones(2, 3), torch.ones(3)),
        lambda: product(torch.ones(1, 3), torch.ones(3, 4)),
        lambda: length(1),
        lambda: length("a", "b"),
        lambda: length("a", most=2),
        lambda: numbers("2"),
        lambda: Record("1"),
        lambda: Record(1, torch.ones(2, 2)),
        lambda: maker(1)("x"),
    ],
)
def test_what_does_not_fit_is_an_error(call):
    with pytest.raises(TypeCheckError):
        call()


def test_a_call_that_does_not_fit_the_signature_is_an_error_that_names_the_function():
    with pytest.raises(TypeError, match=r"length\(\) got an unexpected keyword argument 'least'"):
        length("a", least=1)


def test_functions_of_the_same_code_keep_their_own_defaults():
    def made(n):
        @checked
        def of(m: int = n) -> int:
            return m

        return of

    assert [made(n)() for n in (1, 5)] == [1, 5]


AXES = ("n", "n n", "n k", "n 3", "3 n", "_ n", "...", "*n", "n+1", "#n k", "", "n *_")
SHAPES = ((), (1,), (3,), (4,), (2, 3), (3, 3), (3, 4), (4, 3), (1, 4), (2, 3, 4))


@pytest.mark.parametrize("axes", AXES)
def test_arrays_are_told_apart_as_jaxtyping_does(axes):
    """Also where an array before has given names their lengths."""
    values = [np.ones(shape) for shape in SHAPES] + [torch.ones(shape) for shape in SHAPES]
    values += [torch.ones(3, dtype=torch.int64), np.ones((3, 4), "int32"), np.ones(3, "float32"), 3.0, None]
    before = Shaped[torch.Tensor, "n k"]
    for kind, library in itertools.product((Float, Int, Float32, Shaped), (np.ndarray, torch.Tensor)):
        hint = kind[library, axes]
        for first, value in itertools.product((torch.ones(3, 4), torch.ones(1, 3)), values):
            said = []
            for fits in (isinstance, lambda value, hint: hint.__instancecheck_str__(value) == ""):
                with context("context"):
                    said.append(
                        [fits(one, of) for one, of in ((first, before), (value, hint), (first, hint))]
                    )
            assert said[0] == said[1], (first, value, hint)


def test_they_stand_on_the_product():
    for function in (score, resampled_confusion):
        while not hasattr(function, "__checked__"):
            function = function.__wrapped__
