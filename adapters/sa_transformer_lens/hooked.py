"""HookedTransformer, HookedEncoder and SAELens's HookedSAETransformer as hosts, on TransformerLens 3.

TransformerLens 4 removed these classes; SAELens and much published code still run them. Their hook
names are the bridge's, with these differences. What leaves the output projection has no hook where a
norm follows it (Gemma-2), nor has a norm's output: both are read from the module. BERT's residual is
`hook_normalized_resid_post`; the `hook_resid_post` of a HookedEncoder is the sum before the norm.

`HookedTransformer.from_pretrained` rewrites the weights by default. Under RMSNorm the residual stays
what it was. Under LayerNorm it becomes the model's own minus its mean over d_model: every component
is read as it stands in this model, nothing is centred for the user, and `info.processing` and the
fingerprint tell it from the unprocessed model, so that banks of one are refused on the other.

An SAE that SAELens has spliced in without its error term replaces what it reads: behind it flows its
reconstruction, which is what is read at that place. `info.processing` names it, and no sum of
components is made across it.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sa_plugin._check import require, require_version
from sa_plugin._face import face
from sa_plugin.host import weights
from sa_plugin.host.adapter import FINAL, AttentionParts, NormRole, Part
from sa_plugin.host.edits import AttendedReader
from sa_plugin.host.laws import NORMS, RAW
from sa_plugin.host.protocol import InputMap, Rotary
from sa_transformer_lens.hooked_names import FAMILIES, Family, shared_names
from sa_transformer_lens.passes import OUTPUT, BridgePasses
from sa_transformer_lens.places import HOOKS, NORM_MODULES, BridgePlaces

ENCODER = {
    "resid_post": "hook_normalized_resid_post",
    RAW: "hook_attn_out",
    **dict(
        zip(
            NORMS,
            ("hook_resid_mid", f"ln1{OUTPUT}", "hook_resid_post", "hook_normalized_resid_post"),
            strict=True,
        )
    ),
}
SPLICED = ".hook_sae_output"
FOLDED = ("LNPre", "RMSPre")
# A token embedding whose rows have means this small, beside their size, was centred.
CENTRED = 1e-5


def is_hooked(model: Any) -> bool:
    """Whether a model is of one of these classes, which are not imported for it."""
    return any(
        cls.__name__ in ("HookedTransformer", "HookedEncoder")
        and cls.__module__.partition(".")[0] == "transformer_lens"
        for cls in type(model).__mro__
    )


class _Normed(nn.Module):
    """A norm of TransformerLens under the names that torch's have."""

    def __init__(self, norm: Any, like: Tensor) -> None:
        super().__init__()
        # In a tuple, so that its parameters are not listed twice.
        self._norm = (norm,)
        self.eps = float(norm.eps)
        # One that was folded has no gain left.
        self.weight = getattr(norm, "w", torch.ones_like(like))
        self.bias = getattr(norm, "b", None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._norm[0](x)
        return out


@dataclass(frozen=True, eq=False)
class HookedPlaces(BridgePlaces):
    """Modules and hooks of a HookedTransformer or HookedEncoder.

    Attributes:
        model: The model.
        saes: Hooks that an SAE without error term stands at, when this was made.
    """

    saes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "saes", spliced_in(self.model))

    @property
    def encoder(self) -> bool:
        """Whether it is a HookedEncoder."""
        return any(cls.__name__ == "HookedEncoder" for cls in type(self.model).__mro__)

    @property
    def root(self) -> nn.Module:
        """The model itself."""
        root: nn.Module = self.model
        return root

    @property
    def architecture(self) -> str:
        """Class name of the model of transformers that the weights come from."""
        return str(self.model.cfg.original_architecture or type(self.model).__name__)

    @property
    def family(self) -> Family | None:
        """Whose names the weights have; None where they were rewritten or are of no listed family."""
        return None if self.rewritten else FAMILIES.get(self.architecture)

    @property
    def kind(self) -> str:
        """Its `model_type`, or TransformerLens's word for it."""
        return self.family.kind if self.family else f"transformer_lens {self.architecture}"

    @property
    def rewritten(self) -> tuple[str, ...]:
        """What TransformerLens's processing did to the residual stream and its readers."""
        cfg = self.model.cfg
        done = ["norms folded"] * (cfg.normalization_type in FOLDED)
        if str(cfg.normalization_type).startswith("LN") and not self.encoder:
            rows = self.model.embed.W_E.detach().float()
            done += ["centred"] * bool(rows.mean(-1).abs().max() < CENTRED * rows.abs().max())
        return tuple(done)

    @property
    def processing(self) -> str:
        """What was rewritten, and where an SAE stands in the way."""
        return ", ".join([*self.rewritten, *(f"SAE at {name}" for name in self.saes)])

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of a block's parts."""
        return (*HOOKS, *(NORMS if self.encoder else ()))

    @property
    def embedding(self) -> str:
        """Where token embeddings are seen."""
        return "embed.hook_embed" if self.encoder else "hook_embed"

    @property
    def padding_sides(self) -> tuple[str, ...]:
        """A HookedEncoder counts positions from the first column, padding or not."""
        return ("right",) if self.encoder else ("left", "right")

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.model.blocks)

    def spliced(self, layer: int) -> str:
        """The hook of a block where an SAE stands."""
        return next((name for name in self.saes if name.startswith(f"blocks.{layer}.")), "")

    def hook_name(self, part: Part) -> str:
        """TransformerLens's name; behind an SAE `...hook_resid_post.hook_sae_output`."""
        layer, name = part
        if name == FINAL:
            return f"ln_final{OUTPUT}"
        if self.encoder:
            return f"blocks.{layer}.{(HOOKS | ENCODER)[name]}"
        hook = f"blocks.{layer}.{f'attn{OUTPUT}' if name == RAW else HOOKS[name]}"
        return f"{hook}{SPLICED}" if f"{hook}{SPLICED}" in self.model.hook_dict else hook

    def norm(self, role: NormRole, layer: int) -> tuple[str, nn.Module] | None:
        """A norm of one block.

        Raises:
            ValueError: An SAE stands in this block, whose parts make no sum.
        """
        block = self.model.blocks[layer]
        if self.spliced(layer):
            raise ValueError(
                f"an SAE stands at {self.spliced(layer)!r} and replaces what it reads, so block {layer} is "
                "no sum of components: take it off (model.reset_saes()) and attach again, splice it in "
                "with use_error_term=True, or ask for blocks before it."
            )
        name = NORM_MODULES[role]
        if self._norms_behind():
            # OLMo-2: the only norms of a block are behind attention and MLP.
            name = {"norm1_post": "ln1", "norm2_post": "ln2"}.get(role, "")
        module = getattr(block, name, None)
        if not hasattr(module, "eps"):
            return None
        return f"{name} of {type(block).__name__}", _Normed(module, block.attn.W_O[0, 0])

    def _norms_behind(self) -> bool:
        found = require("transformer_lens.utilities.architectures", "transformer-lens")
        return self.architecture in getattr(found, "POST_NORM_ARCHITECTURES", ())

    def attention(self, layer: int) -> AttentionParts:
        """Maps of one block, keys and values one a group."""
        attention, cfg = self.model.blocks[layer].attn, self.model.cfg
        query, key, value = (_map_of(attention, name) for name in "QKV")
        norms: tuple[nn.Module, nn.Module] | None = None
        # Norms over all heads at once (OLMo-2) are no norms of a head: the pattern is not reproduced.
        if len(getattr(attention.q_norm, "w", ())) == cfg.d_head:
            like = attention.W_O[0, 0]
            norms = _Normed(attention.q_norm, like), _Normed(attention.k_norm, like)
        softcap = cfg.attn_scores_soft_cap
        module = SimpleNamespace(
            scaling=1.0 / float(attention.attn_scale),
            attn_logit_softcapping=float(softcap) if softcap > 0 else None,
        )
        return AttentionParts(query, key, value, module, norms, _rotary(attention))

    def parameters(self) -> Mapping[str, Tensor]:
        """Weights before and in the blocks, by the names of transformers where they are as they were."""
        return shared_names(self.model, self.family)

    def final_norm(self) -> nn.Module:
        """The model's `ln_final`.

        Raises:
            ValueError: There is none.
        """
        norm = getattr(self.model, "ln_final", None)
        if not hasattr(norm, "eps"):
            raise ValueError(f"{self.architecture} has no ln_final: leave final_norm out.")
        return _Normed(norm, self.model.blocks[0].attn.W_O[0, 0])


def spliced_in(model: Any) -> tuple[str, ...]:
    """Hooks of a HookedSAETransformer where an SAE without its error term stands."""
    names = (name.removesuffix(SPLICED) for name in model.hook_dict if name.endswith(SPLICED))
    return tuple(name for name in names if not model.get_submodule(name).use_error_term)


def _map_of(attention: Any, name: str) -> InputMap:
    weight, bias = (getattr(attention, f"_{x}_{name}", getattr(attention, f"{x}_{name}")) for x in "Wb")
    return InputMap(weights.as_float32(weight), weights.as_float32(bias))


def _rotary(attention: Any) -> Rotary | None:
    """The rotary embedding of one block, off its own tables: what position 1 is turned by."""
    if not hasattr(attention, "rotary_sin"):
        return None
    sin, cos = (weights.as_float32(one[1]) for one in (attention.rotary_sin, attention.rotary_cos))
    half = len(sin) // 2
    angle, length = torch.atan2(sin, cos)[:half], torch.hypot(sin, cos)[:half]
    return Rotary(angle, 2 * half, float(length.mean()))


@dataclass(frozen=True, eq=False)
class HookedPasses(BridgePasses):
    """Runs a HookedTransformer or HookedEncoder.

    Attributes:
        places: Of the model.
    """

    places: HookedPlaces

    def refuse_unready(self) -> None:
        """Refuse training mode, and SAEs that were put on or taken off since.

        Raises:
            ValueError: The model is not as it was attached.
        """
        now = spliced_in(self.bridge)
        if now != self.places.saes:
            raise ValueError(
                f"the model had {_at(self.places.saes)} when it was attached and has {_at(now)} now: its "
                "activations are others. Attach it again, sa_plugin.attach(model)."
            )
        super().refuse_unready()

    def inputs(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch's inputs on the model's device, by its own names."""
        moved = super().inputs(given)
        if self.places.encoder and "attention_mask" in moved:
            moved["one_zero_attention_mask"] = moved.pop("attention_mask")
        return moved

    def _see_mask(self, layer: int, reader: AttendedReader) -> Any:
        def before(_: Any, args: Any, kwargs: Any) -> None:
            padding, mask = kwargs.get("attention_mask"), kwargs.get("additive_attention_mask")
            # Of a decoder `[batch, key]`, a key that is none of padding.
            shown = mask if padding is None else padding.bool()[:, None, None]
            reader.see_mask((), {"attention_mask": shown})

        return self.bridge.blocks[layer].attn.register_forward_pre_hook(before, with_kwargs=True)


def _at(names: Sequence[str]) -> str:
    return f"an SAE at {', '.join(names)}" if names else "no SAE in the way"


@face
def load_hooked(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    process: bool = False,
    cls: type[nn.Module] | None = None,
) -> Any:
    """A text model as a HookedTransformer in eval mode, BERT as a HookedEncoder; nothing is downloaded.

    TransformerLens's own `from_pretrained` takes the names of its list alone, which SmolLM2 is not on.

    Args:
        folder: What `save_pretrained` wrote, with the tokenizer; or a name that
            `sa_plugin.host.find_folder` knows.
        dtype: Number format of the weights.
        process: Rewrite the weights as `from_pretrained` does: fold norms and value biases, centre.
            Not of BERT.
        cls: Of the model, such as `sae_lens.HookedSAETransformer`.

    Raises:
        FileNotFoundError: As `find_folder`.
        ImportError: TransformerLens is not installed.
        TypeError: It is 4 or later, which has no such class, or older than 3.8.
        ValueError: A folder of images, an architecture that TransformerLens does not convert (3.8 not
            GPT-NeoX either, beside transformers 5), or a BERT that is to be processed.

    Example:
        >>> model = load_hooked("smollm2")  # doctest: +SKIP
    """
    loading = _loading()
    from sa_plugin.host.folders import find_folder, load_folder

    loaded = load_folder(folder, dtype=dtype)
    net, tokenizer = loaded.model, loaded.tokenizer
    if tokenizer is None:
        raise ValueError(
            f"{folder} holds a model of images: a HookedTransformer reads texts; use load_bridge."
        )
    encoder = net.config.model_type == "bert"
    if encoder:
        if process or cls is not None:
            raise ValueError("a HookedEncoder is of its own class and is not processed: leave both out.")
        net = _with_every_head(find_folder(folder), net)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        if net.config.model_type == "gemma2":
            cfg = _gemma2(net.config, dtype, process)
        else:
            cfg = _configured(loading, Path(scratch), net, dtype, {} if encoder else {"fold_ln": process})
        try:
            state = loading.get_pretrained_state_dict(scratch, cfg, net, dtype=dtype)
        except AttributeError as error:
            raise ValueError(
                f"this TransformerLens cannot convert a {type(net).__name__} of the transformers that is "
                f"installed ({error}): install 'transformer-lens>=3.9,<4', or load a bridge, "
                "sa_transformer_lens.host.load_bridge(folder)."
            ) from error
        cfg.model_name = loaded.name
        made: Any = cls or getattr(require("transformer_lens", "transformer-lens"), _class_of(encoder))
        model = made(cfg, tokenizer, move_to_device=False)
    if encoder:
        model.load_state_dict(state, strict=False)
        model.to(dtype)
    else:
        names = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
        model.load_and_process_state_dict(state, **dict.fromkeys(names, process))
    return model.eval()


def _configured(loading: Any, scratch: Path, net: Any, dtype: torch.dtype, fold: Mapping[str, bool]) -> Any:
    """TransformerLens's configuration of a model, by its class; its words for the folder are not asked."""
    encoder = net.config.model_type == "bert"
    config = net.config.to_dict()
    # TransformerLens goes by words in the folder's name, and reads what transformers 5 no longer writes.
    config["architectures"] = ["BertForMaskedLM"] if encoder else [type(net).__name__]
    config.setdefault("n_ctx", config.get("n_positions"))
    (scratch / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    try:
        return loading.get_pretrained_model_config(
            str(scratch), hf_cfg=config, device="cpu", dtype=dtype, **fold
        )
    except NotImplementedError as error:
        raise ValueError(
            f"TransformerLens makes no HookedTransformer of a folder of {type(net).__name__} ({error}): "
            "load a bridge, sa_transformer_lens.host.load_bridge(folder), or attach one of your own."
        ) from error


def _gemma2(config: Any, dtype: torch.dtype, fold: bool) -> Any:
    """Of a Gemma-2: TransformerLens has it for the names and sizes of the hub alone."""
    lens = require("transformer_lens", "transformer-lens")
    return lens.HookedTransformerConfig(
        original_architecture="Gemma2ForCausalLM",
        model_name="gemma2",
        device="cpu",
        dtype=dtype,
        init_weights=False,
        d_model=config.hidden_size,
        d_head=config.head_dim,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_mlp=config.intermediate_size,
        gated_mlp=True,
        act_fn=config.hidden_activation,
        n_layers=config.num_hidden_layers,
        n_ctx=config.max_position_embeddings,
        d_vocab=config.vocab_size,
        eps=config.rms_norm_eps,
        normalization_type="RMSPre" if fold else "RMS",
        final_rms=True,
        use_normalization_before_and_after=True,
        positional_embedding_type="rotary",
        rotary_dim=config.head_dim,
        rotary_base=config.rope_parameters["rope_theta"],
        attn_scale=config.query_pre_attn_scalar**0.5,
        use_local_attn=True,
        window_size=config.sliding_window,
        attn_types=["local" if one == "sliding_attention" else "global" for one in config.layer_types],
        attn_scores_soft_cap=config.attn_logit_softcapping or -1.0,
        output_logits_soft_cap=config.final_logit_softcapping or -1.0,
    )


def _class_of(encoder: bool) -> str:
    return "HookedEncoder" if encoder else "HookedTransformer"


def _loading() -> Any:
    require("transformer_lens", "transformer-lens", "loading a HookedTransformer")
    try:
        import transformer_lens.loading_from_pretrained as loading
    except ImportError as error:
        raise TypeError(
            "load_hooked: TransformerLens 4 has no HookedTransformer, nor a cls like it: pip install "
            "'transformer-lens>=3.8,<4', or load a bridge, sa_transformer_lens.host.load_bridge(folder)."
        ) from error
    require_version("transformer-lens", "3.8", "its HookedTransformer was not run here")
    return loading


def _with_every_head(folder: Path, net: Any) -> Any:
    """A BERT with the pooler and the heads that TransformerLens converts; untrained where it had none."""
    transformers = require("transformers", "transformer-lens", "loading a model folder")
    from sa_plugin.host.folders import quiet

    with quiet(transformers):
        whole = transformers.BertForPreTraining.from_pretrained(
            folder, dtype=net.dtype, attn_implementation="eager", local_files_only=True
        )
    return whole.eval()
