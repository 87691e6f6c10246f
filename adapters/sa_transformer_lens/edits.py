"""Values and visible keys of a bridge's pass, for `sa_plugin.host.attended`.

Values are `attn.hook_v`, the pattern `attn.hook_pattern`, the mask what the attention module is
called with.

Plain hooks see no mask. Decoders show it in `attn.hook_attn_scores`, which TransformerLens fires
behind the mask and before z; encoders do not, and there it has to be given.

Edits of `attn.hook_z`, the one place where heads can be ablated in every architecture.

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

from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.host.attended import AttendedReader
from sa_plugin.host.laws import EditWatch
from sa_plugin.host.protocol import Batch, Edit, Host, Site, ZEdit, apply_edit
from sa_transformer_lens.host import BridgeHost
from sa_transformer_lens.places import canonical_names, split_inputs
from sa_transformer_lens.proofs import RAW


class BridgeReader(AttendedReader):
    """Collects one block's values and mask in each pass of a bridge.

    Args:
        bridge: A TransformerBridge.
        layer: Block.
        causal: Whether queries see no later key.
        n_heads: Query heads.
        mask: For plain hooks: `[batch, key]`, False or 0 at padding.
    """

    def __init__(
        self, bridge: Any, layer: int, causal: bool, n_heads: int, mask: Tensor | None = None
    ) -> None:
        super().__init__(layer, causal, n_heads)
        self.module = bridge.blocks[layer].attn
        self.given = None if mask is None else mask.bool()[:, None, None]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the masks of all passes inside the context."""

        def before(_: Any, args: Any, kwargs: Any) -> None:
            self.see_mask(args, kwargs)

        handle = self.module.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def hooks(self, block: str) -> list[tuple[str, Any]]:
        """Hooks for runs that are watched."""
        return [
            (f"{block}.attn.hook_v", lambda value, hook: self.see_value(value)),
            (f"{block}.attn.hook_pattern", lambda pattern, hook: self.see_pattern(pattern)),
        ]

    def plain_hooks(self, block: str) -> list[tuple[str, Any]]:
        """Hooks for runs that are not watched, to be added before the edit of z."""

        def see_value(value: Tensor, hook: Any) -> None:
            self.value, self.mask, self.visible = value, self.given, None

        def see_scores(scores: Tensor, hook: Any) -> None:
            # Encoders fire this behind z, with probabilities; by then the keys are settled.
            if self.visible is None:
                self.mask = scores

        (_, pattern) = self.hooks(block)
        names = (f"{block}.attn.hook_v", f"{block}.attn.hook_attn_scores")
        return [*zip(names, (see_value, see_scores), strict=True), pattern]


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
    readers = {site: _reader(host, site, edit) for site, edit in edits.items()}
    watches = {
        site: EditWatch(
            host.hook_name(site), edit, host.output_projection(site.layer), host.info.dtype, readers[site]
        )
        for site, edit in edits.items()
    }

    def start(tensor: Tensor, hook: Any) -> None:
        for watch in watches.values():
            watch.start()

    wanted: list[tuple[str, Any]] = [(START, start)]
    for site, watch in watches.items():
        wanted += _hooks(f"blocks.{site.layer}", watch, readers[site])
    canonical = canonical_names(host.bridge, [name for name, _ in wanted])
    with ExitStack() as stack:
        for reader in readers.values():
            if reader is not None:
                stack.enter_context(reader.watching())
        hooks = [(canonical[name], fn) for name, fn in wanted]
        stack.enter_context(host.bridge.hooks(fwd_hooks=hooks))
        yield
    for watch in watches.values():
        watch.finish()


def _reader(host: BridgeHost, site: Site, edit: Edit) -> BridgeReader | None:
    return reader_of(host, site.layer) if isinstance(edit, ZEdit) and edit.attends else None


def _hooks(block: str, watch: EditWatch, reader: BridgeReader | None) -> list[tuple[str, Any]]:
    hooks: list[tuple[str, Any]] = []
    if reader is not None:
        hooks += reader.hooks(block)
    hooks += [(watch.name, lambda z, hook: watch.edit_z(z))]
    return [*hooks, (f"{block}.{RAW}", lambda out, hook: watch.see_output(out))]


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

    The hooks do what `sa_plugin.heads.ablate.ablate_heads` does in the same mode. They check
    nothing while they run; `host.edited` does.

    Args:
        host: An attached bridge.
        heads: `(layer, head)`, each once.
        mode: "mean", "zero", "resample", "directional" or "pattern", see `sa_plugin.heads.edits`.
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
    from sa_plugin.heads.edits import check_heads, make_edits, one_direction, reference

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


def _hook(edit: Edit, reader: BridgeReader | None) -> Hook:
    return lambda z, hook: apply_edit(edit, z, None if reader is None else reader.attended(z))


def reader_of(host: BridgeHost, layer: int, mask: Tensor | None = None) -> BridgeReader:
    """What collects the values and the mask of one block."""
    return BridgeReader(host.bridge, layer, host.info.causal, host.info.n_heads, mask)


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
