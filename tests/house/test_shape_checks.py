"""The checks of hints that the suite puts on every function check what jaxtyping's own do."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from shape_checks import checked

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


def test_they_stand_on_the_product():
    for function in (score, resampled_confusion):
        while not hasattr(function, "__checked__"):
            function = function.__wrapped__
