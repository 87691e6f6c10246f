"""Edits of `attn.hook_z`, the one place where heads can be ablated in every architecture.

`z` is what the output projection multiplies, so an edit there reaches the model in decoders,
encoders and vision towers alike; an edit of `hook_pattern` is lost in BERT and ViT
(`writable.py`). Nothing is taken on trust: in every pass each edit must fire exactly once, change
`z`, and the projection's output must not be that of the unedited `z`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sa_plugin.checks import LIMITS
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data import ConceptData
from sa_plugin.editing import Edit
from sa_plugin.host import Site
from sa_transformer_lens.bridge_host import BridgeHost
from sa_transformer_lens.capture import canonical_names
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
        out = f"blocks.{watch.site.layer}.{RAW}"
        wanted += [(watch.name, watch.edit_z), (out, watch.see_output)]
    canonical = canonical_names(host.bridge, [name for name, _ in wanted])
    with host.bridge.hooks(fwd_hooks=[(canonical[name], fn) for name, fn in wanted]):
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
        new = self.edit(z.clone())
        if new.shape != z.shape or new.dtype != z.dtype:
            raise RuntimeError(
                f"the edit of {self.name!r} returned {new.dtype} {tuple(new.shape)}, expected "
                f"{z.dtype} {tuple(z.shape)}."
            )
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
    seed: int = 0,
) -> list[tuple[str, Hook]]:
    """Hooks that ablate heads in runs of your own: `bridge.run_with_hooks(x, fwd_hooks=...)`.

    The hooks do what `sa_plugin.heads.ablation.ablate_heads` does in the same mode. They check
    nothing while they run; `host.edited` does.

    Args:
        host: An attached bridge.
        heads: `(layer, head)`, each once.
        mode: "mean", "zero", "resample" or "directional", see `sa_plugin.heads.modes`.
        bank: Its train means of z (all modes but "zero"), and the vector of "directional".
        data: Its train split is run for "resample", and for means that the bank does not have.
        concept: Whose direction is taken out ("directional").
        layer: Where its vector is taken; by default the bank's only layer.
        seed: Of the donors ("resample").

    Returns:
        One plain TransformerLens forward hook a layer: name and function.

    Raises:
        ValueError: No head, an unknown one or mode, or the mode needs a bank, data or concept.

    Example:
        >>> hooks = ablation_hooks(host, [(8, 3)], "mean", bank=bank)  # doctest: +SKIP
        >>> logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks)  # doctest: +SKIP
    """
    from sa_plugin.heads.modes import check_heads, make_edits, one_direction, reference

    chosen = check_heads(host.info, heads)
    direction = one_direction(host, bank, concept, layer, chosen) if mode == "directional" else None
    known = reference(host, data, bank, mode, {at for at, _ in chosen}, seed=seed)
    edits = make_edits(mode, chosen, known, direction)
    names = {site: host.hook_name(site) for site in edits}
    # In compatibility mode a hook added by an alias is called once for each of its names.
    canonical = canonical_names(host.bridge, names.values())
    return [(canonical[names[site]], _hook(edit)) for site, edit in edits.items()]


def _hook(edit: Edit) -> Hook:
    return lambda z, hook: edit(z)
