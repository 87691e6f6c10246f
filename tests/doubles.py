"""The mark of what a stand-in has beside what it stands for; `tests/house/test_doubles.py` asks for it."""

from collections.abc import Callable
from typing import TypeVar

Method = TypeVar("Method", bound=Callable[..., object])


def added(method: Method) -> Method:
    """A method that no base of the class has: what it does, it does when somebody calls it by this name."""
    return method
