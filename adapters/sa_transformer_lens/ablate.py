"""Edits of `attn.hook_z`, the one place where heads can be ablated in every architecture.

`z` is what the output projection multiplies, so an edit there reaches the model in decoders,
encoders and vision towers alike; an edit of `hook_pattern` is lost in BERT and ViT
(`writable.py`). Nothing is taken on trust: in every pass each edit must fire exactly once, change
`z` (unless it may not), and the projection's output must not be that of the unedited `z`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from sa_plugin.checks import LIMITS
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData
from sa_plugin.editing import Edit, ZEdit, apply_edit
from sa_plugin.host import Batch, Host, Site
from sa_transformer_lens.attended import AttendedReader
from sa_transformer_lens.bridge_host import BridgeHost
from sa_transformer_lens.capture import canonical_names, split_inputs
from sa_transformer_lens.probe import RAW

START = "blocks.0.hook_resid_pre"
Hook = Callable[[Tensor, Any], Tensor]


@contextmanager
def edited(host: BridgeHost, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Replace `z` in every pass of the bridge inside the context; see `EditableHost.edited`."""
    if not edits:
        raise ValueError("edits is empty: give at least one {Site(layer, 'z'): function}.")
    for site in edits:
        if site.point != "z":
            raise ValueError(f"{site} cannot be edited: only 'z' is causal everywhere.")
    watches = [_Watch(host, site, edit) for site, edit in edits.items()]

    def start(tensor: Tensor, hook: Any) -> None:
        for watch in watches:
            watch.start()

    wanted: list[tuple[str, Any]] = [(START, start)]
    for watch in watches:
        block = f"blocks.{watch.site.layer}"
        if watch.reader is not None:
            wanted += [(f"{block}.attn.hook_v", watch.reader.see_value)]
            wanted += [(f"{block}.attn.hook_pattern", watch.reader.see_pattern)]
        wanted += [(watch.name, watch.edit_z), (f"{block}.{RAW}", watch.see_output)]
    canonical = canonical_names(host.bridge, [name for name, _ in wanted])
    with ExitStack() as stack:
        for watch in watches:
            if watch.reader is not None:
                stack.enter_context(watch.reader.watching())
        hooks = [(canonical[name], fn) for name, fn in wanted]
        stack.enter_context(host.bridge.hooks(fwd_hooks=hooks))
        yield
    for watch in watches:
        watch.finish()


class _Watch:
    """One edit, and what is demanded of it in each pass."""

    def __init__(self, host: BridgeHost, site: Site, edit: Edit) -> None:
        self.name, self.site, self.edit = host.hook_name(site), site, edit
        self.weight, self.bias = host.output_projection(site.layer)
        self.limit = LIMITS.get(host.info.dtype, LIMITS["float32"])
        self.passes = self.fired = 0
        self.outputs: tuple[Tensor, Tensor] | None = None
        self.place = (0, 0)
        self.may_keep = isinstance(edit, ZEdit) and edit.may_keep
        attends = isinstance(edit, ZEdit) and edit.attends
        self.reader = reader_of(host, site.layer) if attends else None

    def start(self) -> None:
        """A pass begins, so the one before is over."""
        if self.passes:
            self._demand_once()
        self.passes, self.fired = self.passes + 1, 0

    def finish(self) -> None:
        """The context is left."""
        if not self.passes:
            raise RuntimeError(f"no forward pass ran while {self.name!r} was edited.")
        self._demand_once()

    def _demand_once(self) -> None:
        if self.fired != 1:
            raise RuntimeError(
                f"the edit of {self.name!r} fired {self.fired} times in one forward pass, expected "
                "once: leave out edits of blocks behind the deepest one that is read."
            )

    def edit_z(self, z: Tensor, hook: Any) -> Tensor:
        """The hook at z; the edit gets a copy, so that one in place is seen too."""
        self.fired += 1
        attended = None if self.reader is None else self.reader.attended(z)
        new = apply_edit(self.edit, z.clone(), attended)
        if new.shape != z.shape or new.dtype != z.dtype:
            raise RuntimeError(
                f"the edit of {self.name!r} returned {new.dtype} {tuple(new.shape)}, expected "
                f"{z.dtype} {tuple(z.shape)}."
            )
        if self.may_keep:
            return new
        change = (new.detach().float() - z.detach().float()).abs().amax((-2, -1))
        if not change.any():
            raise RuntimeError(
                f"the edit of {self.name!r} changed nothing: it would report an effect of zero."
            )
        row, token = divmod(int(change.argmax()), change.shape[1])
        self.place = (row, token)
        self.outputs = (self._project(z[row, token]), self._project(new[row, token]))
        return new

    def _project(self, z: Tensor) -> Tensor:
        out = torch.einsum("he,hed->d", z.detach().float().cpu(), self.weight)
        return out if self.bias is None else out + self.bias

    def see_output(self, out: Tensor, hook: Any) -> None:
        """The hook behind the projection: what came out must not be the unedited output."""
        if self.outputs is None:
            return
        old, new = self.outputs
        here = out[self.place].detach().float().cpu()
        limit = self.limit * float(old.norm())
        if (here - old).norm() <= limit < (new - old).norm():
            raise RuntimeError(
                f"the edit of {self.name!r} was lost: the output projection gave what the unedited "
                "z gives. This architecture needs an adapter of its own."
            )
        self.outputs = None


def ablation_hooks(
    host: BridgeHost,
    heads: Sequence[tuple[int, int]],
    mode: str = "mean",
    *,
    bank: ConceptBank | None = None,
    data: ConceptData | None = None,
    concept: str | None = None,
    layer: int | None = None,
    attention_mask: Tensor | None = None,
    seed: int = 0,
) -> list[tuple[str, Hook]]:
    """Hooks that ablate heads in runs of your own: `bridge.run_with_hooks(x, fwd_hooks=...)`.

    The hooks do what `sa_plugin.heads.ablation.ablate_heads` does in the same mode. They check
    nothing while they run; `host.edited` does.

    Args:
        host: An attached bridge.
        heads: `(layer, head)`, each once.
        mode: "mean", "zero", "resample", "directional" or "pattern", see `sa_plugin.heads.modes`.
        bank: Its train means of z ("mean", "directional"), the sink rule of its train tokens
            ("resample"), and the vector of "directional".
        data: Its train split is run for "resample", and for means that the bank does not have.
        concept: Whose direction is taken out ("directional").
        layer: Where its vector is taken; by default the bank's only layer.
        attention_mask: `[batch, key]` of the run ("pattern"), where an encoder's texts are padded;
            decoders show their mask to hooks.
        seed: Of the donors ("resample").

    Returns:
        Plain TransformerLens forward hooks, names and functions: one a layer, with "pattern" four
        (at v, scores, pattern and z).

    Raises:
        ValueError: No head, an unknown one or mode, or the mode needs a bank, data or concept.

    Example:
        >>> hooks = ablation_hooks(host, [(8, 3)], "mean", bank=bank)  # doctest: +SKIP
        >>> logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks)  # doctest: +SKIP
    """
    from sa_plugin.heads.modes import check_heads, make_edits, one_direction
    from sa_plugin.heads.reference import reference

    chosen = check_heads(host.info, heads)
    direction = one_direction(host, bank, concept, layer, chosen) if mode == "directional" else None
    known = reference(host, data, bank, mode, {at for at, _ in chosen}, seed=seed)
    edits = make_edits(mode, chosen, known, direction)
    hooks: list[tuple[str, Hook]] = []
    for site, edit in edits.items():
        reader = None
        if isinstance(edit, ZEdit) and edit.attends:
            reader = reader_of(host, site.layer, attention_mask)
            hooks += reader.plain_hooks(f"blocks.{site.layer}")
        hooks.append((host.hook_name(site), _hook(edit, reader)))
    # In compatibility mode a hook added by an alias is called once for each of its names.
    canonical = canonical_names(host.bridge, [name for name, _ in hooks])
    return [(canonical[name], fn) for name, fn in hooks]


def _hook(edit: Edit, reader: AttendedReader | None) -> Hook:
    return lambda z, hook: apply_edit(edit, z, None if reader is None else reader.attended(z))


def reader_of(host: BridgeHost, layer: int, mask: Tensor | None = None) -> AttendedReader:
    """What collects the values and the mask of one block."""
    return AttendedReader(host.bridge, layer, host.info.causal, host.info.n_heads, mask)


def logits(host: Host, batch: Batch) -> Tensor:
    """The logits of a bridge, `[batch, token, vocabulary]`, for `output=` of `ablate_heads`.

    Of a masked language model these are its masked-token logits; a folder that holds only an
    encoder is loaded with an untrained head, whose logits mean nothing.

    Args:
        host: An attached bridge of a language model.
        batch: From `host.batches`.

    Raises:
        TypeError: The host is no bridge.
        ValueError: The model returns no logits for each token.
    """
    if not isinstance(host, BridgeHost):
        raise TypeError(f"{type(host).__name__} is no TransformerLens host: it has no bridge.")
    first, others = split_inputs(host.bridge, batch.inputs)
    with torch.no_grad():
        out = host.bridge(first, **others)
    expected = (*batch.valid.shape, host.bridge.cfg.d_vocab)
    if not isinstance(out, Tensor) or tuple(out.shape) != expected:
        raise ValueError(
            f"{host.info.architecture} returns no logits over a vocabulary for each token: give "
            "output='hidden', which compares the last residual stream."
        )
    return out
