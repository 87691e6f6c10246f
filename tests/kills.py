"""A process that dies at a chosen file operation, as far as the disk can tell.

From that moment on every operation of `sa_plugin._files` raises, the cleaning up included: a dead
process cleans up nothing. A write that is hit leaves the half of it.
"""

import os
from contextlib import contextmanager

from sa_plugin import _files

OPERATIONS = ("open", "write", "fsync", "replace", "unlink", "rmdir")


class Killed(BaseException):
    """The process is gone."""


class DyingSystem:
    """`os`, whose operation number `moment` is the last thing that is begun."""

    def __init__(self, moment):
        self.moment, self.done = moment, 0

    def __getattr__(self, name):
        real = getattr(os, name)
        return self._counted(name, real) if name in OPERATIONS else real

    def _counted(self, name, real):
        def operation(*given, **options):
            self.done += 1
            if self.done == self.moment and name == "write":
                handle, content = given
                real(handle, bytes(content)[: len(content) // 2])
            if self.done >= self.moment:
                raise Killed
            return real(*given, **options)

        return operation


@contextmanager
def dying_at(moment):
    """Die at an operation; the system that counts, so that a test knows how many there are."""
    system, before = DyingSystem(moment), _files.os
    _files.os = system
    try:
        yield system
    except Killed:
        pass
    finally:
        _files.os = before


def moments(work):
    """The number of file operations of some work."""
    with dying_at(10**9) as system:
        work()
    return system.done
