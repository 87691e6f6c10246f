"""Ablations and logits for runs of your own: plain TransformerLens hooks, and what a bridge returns.

Hooks of "pattern" collect values (`attn.hook_v`) and visible keys on the way, see
`sa_plugin.host.edits`. Plain hooks see no mask. Decoders show it in `attn.hook_attn_scores`, which
TransformerLens fires behind the mask and before z; encoders do not, and there it has to be given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.heads.edits import NamedHead, check_heads, make_edits, one_direction, reference
from sa_plugin.host.edits import AttendedReader
from sa_plugin.host.protocol import Batch, Edit, Host, ZEdit, apply_edit, require_layer
from sa_plugin.host.turns import gradient_mode, take
from sa_transformer_lens.host import TransformerLensHost
from sa_transformer_lens.passes import attended_hooks, named, split_inputs

Hook = Callable[[Tensor, Any], Tensor]


@face
def ablation_hooks(
    host: TransformerLensHost,
    heads: Sequence[NamedHead],
    mode: str = "mean",
    *,
    bank: ConceptBank | None = None,
    data: ConceptData | None = None,
    concept: str | None = None,
    layer: int | None = None,
    attention_mask: Shaped[Tensor, "batch key"] | None = None,
    seed: int = 0,
) -> list[tuple[str, Hook]]:
    """Hooks that ablate heads in runs of your own: `bridge.run_with_hooks(x, fwd_hooks=...)`.

    The hooks do what `sa_plugin.heads.ablate.ablate_heads` does in the same mode. They check
    nothing while they run; `host.edited` does. They are yours: nothing here takes them off, and
    other threads do not wait while they are on.

    Args:
        host: An attached bridge.
        heads: `(layer, head)` or "L8H3", each once.
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
    chosen = check_heads(host.info, heads)
    if layer is not None:
        require_layer(layer, host.info.n_layers, host.info.model)
    if concept is not None and bank is not None:
        bank.unit(concept)
    direction = one_direction(host, bank, concept, layer, chosen) if mode == "directional" else None
    known = reference(host, data, bank, mode, {at for at, _ in chosen}, seed=seed)
    edits = make_edits(mode, chosen, known, direction)
    hooks: list[tuple[str, Hook]] = []
    for site, edit in edits.items():
        reader = None
        if isinstance(edit, ZEdit) and edit.attends:
            reader = AttendedReader(site.layer, host.info.causal, host.info.n_heads)
            hooks += _attended(site.layer, reader, attention_mask)
        hooks.append((host.hook_name(site), _edit(edit, reader)))
    return named(host.bridge, [(name, _handed_out(hook)) for name, hook in hooks])


def _handed_out(function: Hook) -> Hook:
    """A hook that is the user's from now on: nothing of ours takes it off."""

    def own(tensor: Tensor, hook: Any) -> Any:
        return function(tensor, hook)

    own.handed_out = True  # type: ignore[attr-defined]
    return own


def _edit(edit: Edit, reader: AttendedReader | None) -> Hook:
    return lambda z, hook: apply_edit(edit, z, None if reader is None else reader.attended(z))


def _attended(layer: int, reader: AttendedReader, mask: Tensor | None) -> list[tuple[str, Any]]:
    """Hooks that show a reader values, mask and pattern, to be added before the edit of z."""
    given = None if mask is None else mask.bool()[:, None, None]

    def see_value(value: Tensor, hook: Any) -> None:
        reader.value, reader.mask, reader.visible = value, given, None

    def see_scores(scores: Tensor, hook: Any) -> None:
        # Encoders fire this behind z, with probabilities; by then the keys are settled.
        if reader.visible is None:
            reader.mask = scores

    (value_name, _), pattern = attended_hooks(layer, reader)
    return [(value_name, see_value), (f"blocks.{layer}.attn.hook_attn_scores", see_scores), pattern]


@face
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
    if not isinstance(host, TransformerLensHost):
        raise TypeError(f"{type(host).__name__} is no TransformerLens host: it has no bridge.")
    first, others = split_inputs(host.bridge, host.passes.inputs(batch.inputs))
    with gradient_mode(False):
        out = take(host.turns, "logits", host.left_over, partial(host.bridge, first, **others))
    expected = (*batch.valid.shape, host.bridge.cfg.d_vocab)
    if not isinstance(out, Tensor) or tuple(out.shape) != expected:
        raise ValueError(
            f"{host.info.architecture} returns no logits over a vocabulary for each token: give "
            "output='hidden', which compares the last residual stream."
        )
    return out
