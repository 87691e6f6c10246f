"""Ablations, steering and logits for runs of your own: plain TransformerLens hooks, what a bridge returns.

Hooks of "pattern" collect values (`attn.hook_v`) and visible keys on the way, see
`sa_plugin.host.edits`. Plain hooks see no mask. Decoders show it in `attn.hook_attn_scores`, which
TransformerLens fires behind the mask and before z; encoders do not, and there it has to be given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from sa_plugin._face import face
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.generation.running import require_local
from sa_plugin.generation.steer_edit import How, Steerer, Where, plan_of
from sa_plugin.heads.edits import NamedHead, check_heads, make_edits, one_direction, reference
from sa_plugin.host.edits import AttendedReader
from sa_plugin.host.protocol import Batch, Edit, Host, Site, ZEdit, apply_edit, require_layer
from sa_plugin.host.turns import gradient_mode, take
from sa_transformer_lens.host import TransformerLensHost
from sa_transformer_lens.passes import attended_hooks, named, split_inputs

Hook = Callable[[Tensor, Any], Tensor]
EMBEDDED_IDS = "embed.hook_in"
"""Where a bridge shows token ids."""


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
def steering_hooks(
    host: TransformerLensHost,
    detector: Detector,
    concept: str,
    strength: float = 1.0,
    *,
    where: Where = "superactivators",
    how: How = "add",
    layers: int | Sequence[int] | None = None,
    gate: Literal["lowest"] | int = "lowest",
    valid: Bool[Tensor, "batch token"] | None = None,
) -> list[tuple[str, Hook]]:
    """Hooks that steer runs of your own: `bridge.run_with_hooks(x, fwd_hooks=...)`, `bridge.hooks(...)`.

    They do what `sa_plugin.steer` does in a `generate`, with a cache or without. A pass over one token goes
    on with the text of the passes before it; any other begins a new one. They check nothing while they
    run, and are yours: nothing here takes them off.

    Args:
        host: An attached bridge, or HookedTransformer.
        detector: Calibrated on this model.
        concept: One of its concepts.
        strength: As for `steer`.
        where: As for `steer`.
        how: As for `steer`.
        layers: As for `steer`.
        gate: "lowest", or a block at or below the lowest edited one.
        valid: Which tokens of the first pass are text: neither special nor padding; those behind it are. By
            default all but special tokens, which a bridge shows to hooks and a HookedTransformer does not.

    Returns:
        Plain TransformerLens forward hooks, names and functions.

    Raises:
        ValueError: As `steer`; or the model shows no token ids and `valid` is not given.

    Example:
        >>> hooks = steering_hooks(host, detector, "joy", 4.0)  # doctest: +SKIP
        >>> logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks)  # doctest: +SKIP
    """
    local = require_local(host, "steering_hooks")
    plan = plan_of(local, detector, concept, strength, where=where, how=how, layers=layers, gate=gate)
    steerer = Steerer(plan)
    # What is text, of all passes of the text under way, and where the newest pass begins.
    text: dict[str, Any] = {"valid": valid, "start": 0}
    special = torch.tensor(sorted(host.reader.encode.special))  # type: ignore[union-attr]

    def begin(new: Tensor) -> None:
        going_on = new.shape[1] == 1 and steerer.valid is not None
        before = text["valid"][:, : text["width"]] if going_on else new[:, :0]
        text["start"] = before.shape[1]
        text["valid"] = torch.cat([before.to(new.device), new], dim=1)
        text["width"] = text["valid"].shape[1]

    def see_ids(ids: Tensor, hook: Any) -> None:
        begin(~torch.isin(ids, special.to(ids.device)))

    def look(site: Site, tensor: Tensor, hook: Any) -> Tensor | None:
        if valid is not None and site == plan.sites[0]:
            rows, width = tensor.shape[:2]
            own = torch.ones(rows, width, dtype=torch.bool, device=tensor.device)
            if width > 1 or steerer.valid is None:
                own[:, : valid.shape[1]] = valid.to(tensor.device)[:, :width]
            begin(own)
        start = text["start"]
        return steerer.look(site, tensor, text["valid"][:, start:], start, 0, keep=False)

    hooks: list[tuple[str, Any]] = []
    if valid is None:
        if EMBEDDED_IDS not in host.bridge.hook_dict:
            raise ValueError(
                f"steering_hooks: {type(host.bridge).__name__} shows no token ids to hooks, so special "
                "tokens are not known: give valid= [batch, token], such as batch.valid."
            )
        hooks.append((EMBEDDED_IDS, see_ids))
    hooks += [(host.hook_name(site), partial(look, site)) for site in plan.sites]
    return named(host.bridge, [(name, _handed_out(hook)) for name, hook in hooks])


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
