"""Where things are in a model, found from one pass over it and not from its names.

Behind every tensor torch keeps which operation made it of which others. One short pass is recorded:
for each run of a module, what came in and what went out. In a block with stream x that says what is
added to what, through views and changes of format:

    pre_norm    out = x + A + M         A is what attention adds, M the MLP
    post_norm   the same, A or M made by a norm or a LayerScale
    post_ln     out = LN2(y + M),       y = LN1(x + A)

Attention is the innermost module that hands out what a softmax over `[batch, head, token, token]`
made. Its output projection is the linear map behind A whose input attention made; queries, keys and
values are the linear maps of attention's own input. Names decide one thing: which of three maps is
which. No numbers are compared, so that a model without values (on a server, on the meta device) is
described in the same way. That a description is right is measured afterwards, by the laws of attach.

Blocks are cut apart, so that memory holds the graph of one block of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Operations behind which a value is still the same one, whatever its shape and format.
SAME = (
    *("View", "UnsafeView", "ReshapeAlias", "Clone", "ToCopy", "Alias"),
    *("Squeeze", "Unsqueeze", "Transpose", "Permute", "NativeDropout"),
)
# Between a softmax and the probabilities that are handed out: attention sinks are cut off (GPT-OSS).
CUT = (*SAME, "Slice")
LISTS = (nn.ModuleList, nn.Sequential)
Node = Any
"""An operation in torch's graph, or a tensor that nothing made."""


class NotFound(ValueError):
    """Something that could not be found in a model."""


class NoAttention(NotFound):
    """Blocks that hand no probabilities out."""


class NoModule(NotFound):
    """Something that no module gives, or none for itself: no path can name it."""


class Pattern(NamedTuple):
    """Attention probabilities among a module's outputs."""

    item: int
    heads: int


@dataclass(frozen=True, eq=False)
class Call:
    """One run of a module.

    Attributes:
        path: Of the module.
        module: That ran.
        given: What each tensor that came in was made by.
        made: What made each tensor that went out.
        end: When it ended.
        pattern: If it handed probabilities out.
    """

    path: str
    module: nn.Module
    given: tuple[Node, ...]
    made: tuple[Node, ...]
    end: int
    pattern: Pattern | None = None

    @property
    def out(self) -> Node:
        """What made the first tensor that went out."""
        return self.made[0] if self.made else None

    @property
    def idle(self) -> bool:
        """Whether it hands on what it was given, as dropout does."""
        return self.out is None or self.out in self.given

    @property
    def linear(self) -> bool:
        """Whether it is a Linear or transformers' Conv1D."""
        weight = getattr(self.module, "weight", None)
        matrix = isinstance(weight, Tensor) and weight.ndim == 2
        return matrix and _is_leaf(self.module) and not isinstance(self.module, nn.Embedding)

    @property
    def norm(self) -> bool:
        """Whether it may be a norm or a LayerScale: it acts on one tensor, and no matrix does it."""
        alone = len(self.given) == 1 and _is_leaf(self.module)
        return alone and not self.idle and not self.linear


@dataclass
class Record:
    """What one pass showed.

    Attributes:
        calls: Runs of modules: all that are in no block, and those of one block of each kind.
        members: Runs of the members of each outermost list, in order.
        alike: The block of its kind that `calls` has, by path of the block.
        began: When each module first began.
        time: Now.
    """

    calls: list[Call] = field(default_factory=list)
    members: dict[str, list[Call]] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)
    began: dict[str, int] = field(default_factory=dict)
    time: int = 0

    def tick(self) -> int:
        """The next moment."""
        self.time += 1
        return self.time

    def inside(self, path: str) -> list[Call]:
        """Runs of modules in a block, innermost first."""
        return [call for call in self.calls if call.path.startswith(f"{path}.")]


def find_roles(root: nn.Module, run: Callable[[], Any], blocks: str | None = None) -> dict[str, Any]:
    """Roles of a model's modules, as `sa_nnsight.paths.ROLES` has them, and "prefix".

    Args:
        root: The model.
        run: One pass over a short input, with attention that hands probabilities out.
        blocks: Path of the list of blocks, where it is known.

    Raises:
        NotFound: No list of blocks, none with attention, or a block that adds up in another way.
    """
    with torch.enable_grad(), _recording(root) as record:
        run()
    path = _list_of_blocks(root, record, blocks)
    roles: dict[str, list[Any]] = {}
    for block in dict.fromkeys(record.alike[call.path] for call in record.members[path]):
        for role, found in _roles_of(record, block).items():
            roles.setdefault(role, []).append(found)
    # Blocks of several kinds may have a role at several places.
    several = {role: tuple(dict.fromkeys(found)) for role, found in roles.items()}
    named = {role: found[0] if len(found) == 1 else found for role, found in several.items()}
    return named | _around(root, record, path)


def _list_of_blocks(root: nn.Module, record: Record, given: str | None) -> str:
    if given is not None:
        if given not in record.members:
            raise NotFound(f"no list of blocks runs at {given!r}")
        return given
    chains = [path for path, calls in record.members.items() if _is_chain(root, path, calls)]
    attending = [path for path in chains if _attention(record, record.members[path][0].path)]
    if attending:
        return max(attending, key=lambda path: len(record.members[path]))
    if chains:
        longest = max(chains, key=lambda path: len(record.members[path]))
        block = record.members[longest][0]
        mixers = [type(child).__name__ for _, child in block.module.named_children() if not _is_leaf(child)]
        raise NoAttention(
            f"{len(record.members[longest])} x {type(block.module).__name__} ({' and '.join(mixers)} inside) "
            "hand no attention probabilities out"
        )
    twice = next((calls for calls in record.members.values() if _repeats(calls)), None)
    if twice is not None:
        kind, times = type(twice[0].module).__name__, len(twice)
        raise NoModule(
            f"its layers share their weights (one {kind} runs {times} times in a pass), so that a layer has "
            "no module of its own to read"
        )
    raise NotFound("no list of modules hands one stream from each to the next")


def _is_chain(root: nn.Module, path: str, calls: Sequence[Call]) -> bool:
    links = all(one.out in two.given for one, two in pairwise(calls))
    return links and len(calls) == len(root.get_submodule(path)._modules) and not _repeats(calls)


def _repeats(calls: Sequence[Call]) -> bool:
    return len({call.path for call in calls}) < len(calls)


def _attention(record: Record, block: str) -> Call | None:
    """The innermost module that hands probabilities out: the first that ends."""
    return next((call for call in record.inside(record.alike[block]) if call.pattern is not None), None)


def _roles_of(record: Record, block: str) -> dict[str, Any]:
    """Roles in one block, paths inside it."""
    calls, whole = record.inside(block), next(call for call in record.calls if call.path == block)
    attention = _attention(record, block)
    if attention is None or attention.pattern is None:
        raise NotFound(f"block {block!r} ({type(whole.module).__name__}) hands no probabilities out")
    writes, norms = _writes(calls, whole)
    trails = [_trail(calls, node) for node in writes]
    own = [trail for trail in trails if trail and _is_projection(trail[-1], attention)]
    if any(_is_scaled(calls, node, attention) for node in writes):
        raise NoModule(
            f"block {block!r} ({type(whole.module).__name__}) multiplies what attention adds by a number or "
            "a parameter outside every module, so that no module gives what is added"
        )
    if len(writes) != 2 or len(own) != 1:
        raise NotFound(
            f"block {block!r} ({type(whole.module).__name__}) adds {len(writes)} values to its stream, of "
            f"which {len(own)} come from attention's output projection: one of attention and one of an MLP "
            "are expected"
        )
    mlp = next(node for node, trail in zip(writes, trails, strict=True) if trail is not own[0])
    makers = [call for call in calls if call.out is mlp and not call.idle]
    if not makers:
        raise NotFound(
            f"no module of block {block!r} ({type(whole.module).__name__}) gives what the MLP adds"
        )
    first, projection = own[0][0], own[0][-1]
    roles = {
        "attention": attention,
        "o_proj": projection,
        "mlp": min(makers, key=lambda call: call.path.count(".")),
        **_maps(calls, attention, norms.get("norm1")),
        **norms,
    }
    if first is not projection:
        roles["attn_scale" if hasattr(first.module, "lambda1") else "attn_out"] = first
    found: dict[str, Any] = {role: call.path.removeprefix(f"{block}.") for role, call in roles.items()}
    return found | {"pattern": attention.pattern.item, "n_heads": attention.pattern.heads}


def _writes(calls: Sequence[Call], block: Call) -> tuple[list[Node], dict[str, Call]]:
    """What is added to a block's stream, and its norms."""
    stream = block.given[0]
    norms = [call for call in calls if call.norm]
    written = addends(block.out, stream)
    if written is not None:
        reading = [call for call in norms if addends(call.given[0], stream) is not None]
        attention = next(call for call in calls if call.pattern is not None)
        fed = {id(node) for node in attention.given}
        fed |= {id(call.given[0]) for call in calls if call.linear and call.end < attention.end}
        before = [call for call in reading if id(call.out) in fed and call.end < attention.end]
        rest = [call for call in reading if call not in before]
        pairs = (("norm1", before), ("norm2", rest))
        split = [one for node in written for one in _split(calls, node)]
        return split, {role: found[0] for role, found in pairs if found}
    last = next((call for call in norms if call.out is block.out), None)
    for first in norms if last is not None else ():
        one, two = addends(first.given[0], stream), addends(last.given[0], first.out) if last else None
        if one is not None and two is not None and last is not None:
            return [*one, *two], {"norm1": first, "norm2": last}
    raise NotFound(
        f"what block {block.path!r} ({type(block.module).__name__}) gives is no sum with its input"
    )


def _split(calls: Sequence[Call], node: Node) -> list[Node]:
    """The parts of a sum that no module gives: parallel blocks add attention and MLP first."""
    if node is None or _kind(node) != "Add" or any(call.out is node for call in calls):
        return [node]
    return [one for child, _ in node.next_functions for one in _split(calls, _behind(child))]


def _trail(calls: Sequence[Call], node: Node) -> list[Call]:
    """From a value that is added, through norms and LayerScale, to the linear map behind them."""
    one = next((call for call in calls if call.out is node and (call.linear or call.norm)), None)
    if one is None or one.linear:
        return [] if one is None else [one]
    behind = _trail(calls, one.given[0])
    return [one, *behind] if behind else []


def _is_projection(call: Call, attention: Call) -> bool:
    # Attention holds its projection, hands out what that made, or what it is given (BERT).
    own = call.path.startswith(f"{attention.path}.") or call.out is attention.out
    return call.linear and (own or attention.out in call.given)


def _is_scaled(calls: Sequence[Call], node: Node, attention: Call) -> bool:
    """Whether a value is attention's projection times something, and no module's (Granite, BEiT)."""
    if node is None or _kind(node) != "Mul" or any(call.out is node and not call.idle for call in calls):
        return False
    behind = [_behind(child) for child, _ in node.next_functions]
    return any(call.out in behind for call in calls if call.out and _is_projection(call, attention))


def _maps(calls: Sequence[Call], attention: Call, norm: Call | None) -> dict[str, Call]:
    """Projections of queries, keys and values, and norms of the first two."""
    fed = [*attention.given, *([] if norm is None else [norm.out])]
    linear = [call for call in calls if call.linear and call.end < attention.end]
    maps = [call for call in linear if call.given and call.given[0] in fed]
    inner = [call for call in maps if call.path.startswith(f"{attention.path}.")] or maps
    if len(inner) == 1:
        return {"qkv": inner[0]}
    if len(inner) != 3:
        return {}
    letters = [call.path.rpartition(".")[2][0].lower() for call in inner]
    # Queries, keys and values where names do not say so: in this order everybody computes them.
    named = dict(zip(letters if sorted(letters) == ["k", "q", "v"] else "qkv", inner, strict=True))
    found = dict(named)
    for role in "qk":
        norms = [call for call in calls if call.norm and call.given[0] is named[role].out]
        found |= {f"{role}_norm": one for one in norms if _gains(one.module)}
    return found


def _gains(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1


def _around(root: nn.Module, record: Record, path: str) -> dict[str, Any]:
    """What is outside the blocks: embedding, norm and modules behind, and the base model's prefix."""
    last = record.members[path][-1]
    end = last.end
    found = {"blocks": path}
    embed = _embedding(root, record)
    if embed is not None:
        found["embed"] = embed
    behind = [call for call in record.calls if call.end > end and call.norm and call.given[0] is last.out]
    if behind:
        found["final_norm"] = behind[0].path
    base = f"{getattr(root, 'base_model_prefix', '')}."
    prefix = next((one for one in (base, "model.") if all(p.startswith(one) for p in found.values())), "")
    inside = prefix.removesuffix(".")
    tops = (root, root.get_submodule(inside))
    late = tuple(name.removeprefix(prefix) for name in _late(root, "", record.began, end, tops))
    return {role: name.removeprefix(prefix) for role, name in found.items()} | {
        "after": late,
        "prefix": prefix,
    }


def _embedding(root: nn.Module, record: Record) -> str | None:
    ask = getattr(root, "get_input_embeddings", None)
    try:
        module = None if ask is None else ask()
    except (NotImplementedError, AttributeError):
        module = None
    ours = [call for call in record.calls if call.module is module]
    tables = [call for call in (*ours, *record.calls) if isinstance(call.module, nn.Embedding)]
    return next((call.path for call in tables), None)


def _late(
    module: nn.Module, path: str, began: Mapping[str, int], end: int, tops: Sequence[nn.Module]
) -> list[str]:
    """Modules with parameters of their own that begin behind the last block, or never: heads.

    One that never begins inside another that does is an expert that no token was sent to.
    """
    found = []
    for name, child in module.named_children():
        own = f"{path}.{name}".removeprefix(".")
        times = [time for one, time in began.items() if one == own or one.startswith(f"{own}.")]
        if next(child.parameters(), None) is None or (not times and module not in tops):
            continue
        if all(time > end for time in times):
            found.append(own)
        else:
            found += _late(child, own, began, end, tops)
    return found


def addends(node: Node, stream: Node) -> list[Node] | None:
    """What was added to a stream to make a value; None if it is no such sum."""
    node = _behind(node)
    if node is stream:
        return []
    if node is None or _kind(node) != "Add":
        return None
    found = [(child, addends(child, stream)) for child, _ in node.next_functions]
    if all(more is None for _, more in found):
        return None
    return [one for child, more in found for one in ([_behind(child)] if more is None else more)]


def _behind(node: Node, through: Sequence[str] = SAME) -> Node:
    while node is not None and _kind(node) in through:
        node = node.next_functions[0][0]
    return node


def _kind(node: Node) -> str:
    return str(node.name()).rpartition("Backward")[0]


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


@contextmanager
def _recording(root: nn.Module) -> Iterator[Record]:
    """Record the passes inside, by torch's own hooks."""
    record = Record()
    modules = {path: module for path, module in root.named_modules() if path}
    lists = [path for path, module in modules.items() if isinstance(module, LISTS)]
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    members = {f"{path}.{name}": path for path in outer for name in modules[path]._modules}
    handles: list[Any] = []
    try:
        for path, module in modules.items():
            handles += _hooks(record, path, module, members.get(path))
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _hooks(record: Record, path: str, module: nn.Module, owner: str | None) -> list[Any]:
    def starts(*_: Any) -> None:
        record.began.setdefault(path, record.tick())

    def ends(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Any:
        values = list(out) if isinstance(out, tuple) else [out]
        if not isinstance(out, tuple) and _has_no_graph(out):
            values = [_fresh(out)]
        given = (_origin(value) for value in (*args, *kwargs.values()))
        call = Call(
            path,
            module,
            tuple(node for node in given if node is not None),
            tuple(map(_origin, values)),
            record.tick(),
            _pattern(values),
        )
        record.calls.append(call)
        if owner is not None and isinstance(values[0], Tensor):
            # What is behind this block has no graph of it.
            values[0] = _fresh(values[0])
            record.members.setdefault(owner, []).append(replace(call, made=(_origin(values[0]),)))
            _keep_one_of_each_kind(record, path, module)
        return tuple(values) if isinstance(out, tuple) else values[0]

    return [module.register_forward_pre_hook(starts), module.register_forward_hook(ends, with_kwargs=True)]


def _keep_one_of_each_kind(record: Record, path: str, module: nn.Module) -> None:
    def kind(one: nn.Module) -> Any:
        return [(name, type(part)) for name, part in one.named_modules()]

    known = [call for call in record.calls if call.path in record.alike and call.path != path]
    like = next((call.path for call in known if kind(call.module) == kind(module)), None)
    record.alike[path] = like or path
    if like is not None:
        record.calls[:] = [c for c in record.calls if c.path != path and not c.path.startswith(f"{path}.")]


def _pattern(values: Sequence[Any]) -> Pattern | None:
    """Where probabilities are among outputs: what a softmax made, before what only has their shape."""
    square = [
        (k, value)
        for k, value in enumerate(values)
        if k and isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] == value.shape[-2]
    ]
    soft = [(k, v) for k, v in square if (node := _origin(v, CUT)) is not None and _kind(node) == "Softmax"]
    found = soft or square[-1:]
    return Pattern(found[0][0], int(found[0][1].shape[1])) if found else None


def _origin(value: Any, through: Sequence[str] = SAME) -> Node:
    """What made a tensor, behind operations that change nothing of interest; None without a graph."""
    return _behind(value.grad_fn, through) if isinstance(value, Tensor) else None


def _has_no_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad


def _fresh(value: Tensor) -> Tensor:
    """The same values, made by nothing. A copy: a model may write into it, which it may not into a leaf."""
    return value.detach().requires_grad_().clone()
