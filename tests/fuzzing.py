"""What the fuzzers share: how many tries, mutations of bytes, of JSON and of arrays, and the tally.

A fuzzer takes something that is right, changes it at random (fixed seeds) and looks at what happens:

| class | aim |
|---|---|
| refused | by name: an error of ours whose text names the file or the argument |
| same | taken, and gives what the unchanged gives |
| other | taken without a word, and gives something else: 0 |
| unnamed | an error from deep inside: 0 |

The suite runs a short form; `make fuzz` runs the long one (`SA_PLUGIN_FUZZ=long`).
"""

import copy
import math
import os
from collections import Counter

import torch

LONG = os.environ.get("SA_PLUGIN_FUZZ") == "long"
ODD = (None, True, False, 0, 1, -1, 2**63, 1e308, -0.5, 3.7, "", " ", "x", "\ud800", [], {}, [None], {"": 0})


def tries(short, long):
    """How many mutations this run makes."""
    return long if LONG else short


class Tally(Counter):
    """How often each class was met, and the first cases of what should not be."""

    def __init__(self, counts=()):
        super().__init__(counts)
        self.first = {}

    def add(self, kind, about):
        self[kind] += 1
        self.first.setdefault(kind, about)

    def require(self, *allowed):
        """Every class beside the allowed is empty; the text shows what was met first."""
        print(dict(self))
        wrong = {kind: (n, self.first[kind]) for kind, n in self.items() if kind not in allowed}
        assert not wrong, f"{wrong} of {sum(self.values())}"


def mutated_bytes(rng, content):
    """Bytes with a flipped bit, a run of others, a cut, a doubled or a moved part."""
    found, n = bytearray(content), max(len(content), 1)
    at, size = int(rng.integers(n)), int(rng.integers(1, 64))
    match int(rng.integers(6)):
        case 0 if content:
            found[at] ^= 1 << int(rng.integers(8))
        case 1:
            found[at : at + size] = bytes(rng.integers(0, 256, size, dtype="uint8"))
        case 2:
            del found[at:]
        case 3:
            del found[at : at + size]
        case 4:
            found[at:at] = found[at : at + size]
        case _:
            found += bytes(size)
    return bytes(found)


def places(value, path=()):
    """Paths of everything in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield (*path, key)
        yield from places(one, (*path, key))


def mutated_json(rng, value, keep=()):
    """A JSON value with one place changed: gone, doubled, renamed, swapped, or an odd value in it.

    Args:
        rng: Of numpy.
        value: Is not changed.
        keep: Top-level names that stay.
    """
    found = copy.deepcopy(value)
    paths = [path for path in places(found) if path[0] not in keep]
    path = paths[int(rng.integers(len(paths)))]
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    key, old = path[-1], holder[path[-1]]
    match int(rng.integers(6)):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        case 2 if isinstance(holder, list):
            holder.insert(key, old)
        case 3 if isinstance(old, list):
            holder[key] = old[::-1]
        case 4 if isinstance(old, int | float) and not isinstance(old, bool):
            holder[key] = (
                old + float(rng.normal()) if isinstance(old, float) else old + int(rng.integers(-3, 4))
            )
        case _:
            holder[key] = copy.deepcopy(ODD[int(rng.integers(len(ODD)))])
    return found


def mutated_tensors(rng, tensors):
    """Tensors with one of them changed: gone, renamed, of another shape or format, a value in it."""
    found = dict(tensors)
    names = sorted(found)
    name = names[int(rng.integers(len(names)))]
    old = found[name].clone()
    match int(rng.integers(8)):
        case 0:
            del found[name]
        case 1:
            found[f"{name}x"] = found.pop(name)
        case 2:
            found[name] = old.flatten()
        case 3:
            found[name] = torch.cat([old, old]) if old.ndim else old[None]
        case 4:
            kinds = [torch.float16, torch.float64, torch.int8, torch.int64, torch.bool, torch.uint8]
            found[name] = old.to(kinds[int(rng.integers(len(kinds)))])
        case 5:
            found[name] = old.flip(0) if old.ndim else old
        case 6:
            found[name] = old[:0] if old.ndim else old
        case _:
            odd = [0.0, -1.0, 1e9, math.nan, math.inf, -math.inf, 0.3]
            value = odd[int(rng.integers(len(odd)))]
            if not old.is_floating_point():
                value = int(value) if math.isfinite(value) else -7
            old.view(-1)[int(rng.integers(max(old.numel(), 1)))] = value
            found[name] = old
    return found
