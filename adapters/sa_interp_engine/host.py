"""A model of interp-engine as a host.

Every number of a pass is asked for as a direction (`sa_interp_engine.projecting`), so that scores come
back and activations stay where the model is; `host.shipped` counts both. Reads of a site by name, such
as the laws of `sa-plugin check` make, hand out the site.

Points are named as interp-engine names them. What attention and MLP add to the residual is its
`attn_out_post` and `mlp_out_post`, behind a norm where there is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sa_interp_engine.projecting import EnginePass, Place, Projected, is_pass
from sa_plugin._check import require, users_line
from sa_plugin._face import face, face_methods, passing
from sa_plugin.data.sample import Sample
from sa_plugin.host.laws import RAW, Law, demand, relative_difference, structure, tolerance
from sa_plugin.host.local import Options, refuse_training
from sa_plugin.host.protocol import Batch, HostInfo, OutputProjection, Reduce, Site, require_layer
from sa_plugin.host.reducers import score_rows
from sa_plugin.host.texts import PaddingSide, TextReader, positions_of, vocabulary_of
from sa_plugin.host.tokens import TextEncoder, check_tokenizer
from sa_plugin.host.weights import fingerprint

POINTS: Mapping[str, str] = {
    "resid_pre": "resid_pre",
    "resid_post": "resid_post",
    "attn_out": "attn_out_post",
    "mlp_out": "mlp_out_post",
    "z": "z",
    "pattern": "attn_probs",
    RAW: "attn_out",
}


class ResidualsCrossWarning(UserWarning):
    """Scores that no direction gives were asked for: activations left the engine."""


@dataclass
class Shipped:
    """Numbers that the engine handed out.

    Attributes:
        scores: Projections, sketches of norms included.
        activations: Entries of residuals and other sites.
    """

    scores: int = 0
    activations: int = 0


@face_methods
@dataclass(frozen=True, eq=False)
class EngineHost:
    """A checked model of interp-engine; make one with `sa_plugin.attach(model)`.

    Attributes:
        model: The user's own object.
        info: What is fixed about it.
        reader: Cuts texts into tokens; the engine is given ids.
        batch_tokens: At most this many tokens a batch; its texts are run one by one.
        progress: Whether walks over the model show a bar.
        shipped: What the engine handed out so far.
    """

    model: Any
    info: HostInfo
    reader: TextReader
    batch_tokens: int
    progress: bool
    shipped: Shipped = field(default_factory=Shipped)

    def __repr__(self) -> str:
        return (
            f"EngineHost({self.info.shape}, {self.reader.encode.words}; shipped: "
            f"{self.shipped.scores:,} scores, {self.shipped.activations:,} numbers of activations)"
        )

    def batches(self, samples: Sequence[Sample], *, batch_tokens: int | None = None) -> list[Batch]:
        """Tokenise and group samples of one length; see `sa_plugin.host.local.LocalHost.batches`."""
        return self.reader.batches(samples, self.batch_tokens if batch_tokens is None else batch_tokens)

    def hook_name(self, site: Site) -> str:
        """interp-engine's address of a site, such as `resid_post.12`.

        Raises:
            ValueError: No such layer or point.
        """
        return str(self._address(site))

    def _address(self, place: Place) -> Any:
        from interp_engine import Address

        layer, point = place
        if point not in POINTS:
            raise ValueError(f"point {point!r} is unknown: use one of {tuple(POINTS)[:-1]}.")
        require_layer(layer, self.info.n_layers, self.info.model)
        return Address(POINTS[point], layer)

    def read(self, batch: Batch, sites: Sequence[Site], reduce: Reduce) -> dict[Any, Tensor]:
        """Run the texts of a batch, one a call, and keep what `reduce` keeps.

        Of a walk over samples scores alone are read; for anything else the sites are.

        Raises:
            ValueError: No site or an unknown one, training mode, or a walk that needs activations.

        Warns:
            ResidualsCrossWarning: The bank scores by cosine or by latents.
        """
        refuse_training(self.model.hf_model)
        if not sites:
            raise ValueError("sites is empty: name at least one Site(layer, point).")
        with torch.no_grad():
            if not is_pass(reduce):
                found = self._captured(batch, sites)
                return dict(reduce({site: found[site] for site in sites}))
            return self._scored(EnginePass.of(cast(Any, reduce), batch, self.info.d_model))

    def _captured(self, batch: Batch, sites: Sequence[Site]) -> dict[Place, Tensor]:
        plan = EnginePass(self.info.d_model, batch, batch.valid, None, None)
        rows = [self._capture(ids, sites) for ids in plan.rows()]
        found: dict[Place, Tensor] = {}
        for site in sites:
            if site.point == "pattern":
                # [head, query, key] of texts of one length.
                found[site] = torch.stack([row[site] for row in rows])
                continue
            flat = plan.laid_out([row[site] for row in rows])
            heads = (*flat.shape[:-1], self.info.n_heads, -1)
            found[site] = flat.reshape(heads) if site.point == "z" else flat
        return found

    def _scored(self, plan: EnginePass) -> dict[Any, Tensor]:
        if plan.whole:
            warnings.warn(
                f"scores by cosine or by latents of an SAE need the activations: those of "
                f"{len(plan.whole)} hook points leave the engine ({self.info.d_model} numbers a token each). "
                "A bank that scores by dot product ships one number a token and concept.",
                ResidualsCrossWarning,
                stacklevel=users_line(),
            )
        rows, asked = plan.rows(), plan.projected()
        found: dict[Place, list[Tensor]] = {place: [] for place in (*asked, *plan.whole)}
        for ids in rows:
            whole = self._capture(ids, sorted(plan.whole)) if plan.whole else {}
            # What the residual is here for is computed from it.
            far = {place: one for place, one in asked.items() if place not in whole}
            near = {
                place: h @ asked[place].vectors.T + asked[place].bias
                for place, h in whole.items()
                if place in asked
            }
            for place, scores in (near | (self._project(ids, far) if far else {})).items():
                found[place].append(torch.cat([scores, whole[place]], -1) if place in whole else scores)
            for place in whole.keys() - asked.keys():
                found[place].append(whole[place])
        read = {place: plan.laid_out(parts) for place, parts in found.items()}
        norms = None
        if plan.frozen is None and plan.sinks is not None and plan.sinks[1] == "drop":
            norms = plan.norms(read)
            for k in plan.doubtful(norms):
                sites = [Site(layer, "resid_post") for layer in plan.sinks[0]]
                exact = self._capture(rows[k], sites)
                mask = plan.batch.inputs["attention_mask"][k].bool()
                for at, site in enumerate(sites):
                    norms[at, k, mask] = exact[site].norm(dim=-1)
        return plan.kept(read, norms)

    def _project(self, ids: Sequence[int], asked: Mapping[Place, Projected]) -> dict[Place, Tensor]:
        """Scores `[token, direction]` of one text."""
        from interp_engine.api import DirectionSet
        from interp_engine.sync import sync_model

        sets = [DirectionSet(self._address(place), one.vectors, one.bias) for place, one in asked.items()]
        found = sync_model(self.model).project(list(ids), sets)
        self.shipped.scores += sum(one.numel() for one in found)
        return dict(zip(asked, found, strict=True))

    def _capture(self, ids: Sequence[int], places: Sequence[Place]) -> dict[Place, Tensor]:
        """Activations of one text, `[token, width]`."""
        from interp_engine.sync import sync_model

        where = {place: self._address(place) for place in places}
        got = sync_model(self.model).capture(list(ids), list(dict.fromkeys(where.values())))
        self.shipped.activations += sum(one.numel() for one in got.values())
        return {place: got[address].float() for place, address in where.items()}

    def output_projection(self, layer: int) -> OutputProjection:
        """The attention output projection of one block, one slice a query head, in float32.

        Raises:
            ValueError: No such layer.
        """
        require_layer(layer, self.info.n_layers, self.info.model)
        linear = self.model.arch.attn_out_proj(layer)
        weight = linear.weight.detach().float().cpu()
        # A Conv1D of GPT-2 keeps [in, out].
        weight = weight.T if isinstance(linear, torch.nn.Linear) else weight
        bias = getattr(linear, "bias", None)
        heads = weight.reshape(self.info.n_heads, -1, weight.shape[-1]).contiguous()
        return OutputProjection(heads, None if bias is None else bias.detach().float().cpu())

    def check_samples(self) -> list[Sample]:
        """Texts of unlike length for `sa_plugin.host.checks.check`."""
        return self.reader.check_samples()

    def laws(self, samples: Sequence[Sample]) -> list[Law]:
        """That what is projected is what is captured, at every block."""
        if not samples:
            raise ValueError("samples is empty: give at least one, such as data.test.samples[:2].")
        (batch,) = self.batches(samples[:1])
        return [self._projection_law(batch)]

    def _projection_law(self, batch: Batch) -> Law:
        ids = EnginePass(self.info.d_model, batch, batch.valid, None, None).rows()[0]
        places: list[Place] = [(layer, "resid_post") for layer in range(self.info.n_layers)]
        vectors = torch.randn(8, self.info.d_model, generator=torch.Generator().manual_seed(1))
        vectors /= vectors.norm(dim=-1, keepdim=True)
        got = self._project(ids, dict.fromkeys(places, Projected(vectors, torch.zeros(8))))
        held = self._capture(ids, places)
        zero, one = torch.zeros(1, self.info.d_model), torch.ones(1)
        worst = max(
            relative_difference(got[at], score_rows((vectors[None], zero, one, False), 0, held[at]))
            if got[at].shape[:1] == held[at].shape[:1]
            else torch.inf
            for at in places
        )
        return Law("a projection is the product with what is captured", worst, tolerance(self.info.dtype))


@passing(Options, name="attach")
def attach_engine(model: Any, **options: Any) -> EngineHost:
    """Check a model of interp-engine by a few passes over a short text, and wrap it.

    Args:
        model: An `interp_engine.EagerModel`.
        **options: Of texts, see `sa_plugin.host.local.Options`; `padding_side` has no use, since texts
            are run one by one.

    Raises:
        ValueError: An option of images or of the final norm, training mode, blocks that add up in no
            known way, or tokens that see later ones.
    """
    chosen = Options(**options)
    if chosen.processor is not None:
        raise ValueError("interp-engine reads texts: leave the processor out.")
    if chosen.final_norm:
        raise ValueError("interp-engine's host reads residuals before the final norm: leave final_norm out.")
    refuse_training(model.hf_model)
    tokenizer = model.tokenizer if chosen.tokenizer is None else chosen.tokenizer
    check_tokenizer(tokenizer)
    encode = TextEncoder(tokenizer, chosen.add_special_tokens, chosen.bos)
    positions = positions_of(model.hf_model, None)
    side, vocabulary = cast(PaddingSide, chosen.padding_side), vocabulary_of(model.hf_model)
    # One text is run at a time, so a batch of texts of one length needs no padding.
    reader = TextReader(encode, model.hf_model_id, positions, side, False, vocabulary)
    host = EngineHost(model, _info(model, reader), reader, chosen.batch_tokens, chosen.progress)
    host = replace(host, info=_measured(host))
    demand(host.info.architecture, host._projection_law(host.batches(reader.check_samples()[:1])[0]))
    return replace(host, shipped=Shipped())


def _info(model: Any, reader: TextReader) -> HostInfo:
    """What is known before a pass."""
    blocks = [model.arch.block(layer) for layer in range(model.n_layers)]
    formats = {str(p.dtype) for block in blocks for p in block.parameters() if p.is_floating_point()}
    return HostInfo(
        host="interp_engine",
        model=model.hf_model_id,
        architecture=type(model.hf_model).__name__,
        n_layers=model.n_layers,
        d_model=model.d_model,
        n_heads=model.n_heads,
        d_head=model.head_dim,
        block="pre_norm",
        causal=True,
        bos=reader.bos,
        processing="none",
        dtype="+".join(sorted(name.removeprefix("torch.") for name in formats)),
        fingerprint=fingerprint(model.config.model_type, _parameters(model)),
        tokenizer=reader.encode.digest,
    )


def _measured(host: EngineHost) -> HostInfo:
    """With how blocks add up, on the first, the middle and the last."""
    info = host.info
    ids = host.reader.probe_inputs()["input_ids"][0].tolist()
    layers = sorted({0, info.n_layers // 2, info.n_layers - 1})
    names = ("resid_pre", "resid_post", "attn_out", "mlp_out", RAW)
    whole = host._capture(ids, [(layer, name) for layer in layers for name in names])
    blocks = [{name: whole[layer, name] for name in names} for layer in layers]
    block, _ = structure(info.architecture, blocks, tolerance(info.dtype))
    # The first tokens alone: in a decoder those behind them change nothing.
    half, last = len(ids) // 2, (info.n_layers - 1, "resid_post")
    gap = relative_difference(whole[last][:half], host._capture(ids[:half], [last])[last])
    if not gap < 1e-2:
        raise ValueError(
            f"{info.architecture}: a token sees later ones (relative difference {gap:.1e} without them): "
            "interp-engine runs decoders. Attach encoders by TransformerLens or nnsight."
        )
    return replace(info, block=block)


def _parameters(model: Any) -> dict[str, Tensor]:
    """Weights before and in the blocks, by the names of `sa_plugin.host.weights`."""
    base, arch = model.hf_model.base_model, model.arch
    final = {id(one) for one in arch.final_norm.parameters()}
    found = {name: one for name, one in base.named_parameters() if id(one) not in final}
    if not arch.quirks.fused_qkv:
        return found
    paths = {id(module): name for name, module in base.named_modules()}
    for layer in range(model.n_layers):
        attention = paths[id(arch.attn_module(layer))]
        fused, out = arch.fused_qkv_module(layer), arch.attn_out_proj(layer)
        for end, one in fused.named_parameters():
            del found[f"{paths[id(fused)]}.{end}"]
            found.update(_apart(model, f"{attention}.{{}}.{end}", one, isinstance(fused, torch.nn.Linear)))
        for end, _ in out.named_parameters():
            found[f"{attention}.o.{end}"] = found.pop(f"{paths[id(out)]}.{end}")
    return found


def _apart(model: Any, name: str, fused: Tensor, is_linear: bool) -> dict[str, Tensor]:
    """Queries, keys and values of one parameter, as `[out, in]` or `[out]`."""
    from interp_engine.capture import split_fused_qkv

    # The engine splits what leaves the projection, along the last axis.
    outputs_last = fused.T if fused.ndim == 2 and is_linear else fused
    parts = split_fused_qkv(model, outputs_last.detach())
    return {name.format(part): value.T if value.ndim == 2 else value for part, value in parts.items()}


@face
def load_model(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, tower: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """A model folder as an `EagerModel` on the CPU, without network, and what `attach` needs beside it.

    Args:
        folder: What `save_pretrained` wrote, or a name that `sa_plugin.host.find_folder` knows.
        dtype: Number format of the weights.
        tower: None: interp-engine reads decoders.

    Returns:
        The model, and no options.

    Raises:
        FileNotFoundError: No model there.
        ImportError: interp-engine is not installed.
        ValueError: A tower is asked for, or interp-engine refuses the model, which it does with encoders.

    Example:
        >>> model, options = load_model("smollm2")  # doctest: +SKIP
    """
    engine = require("interp_engine.model", "interp-engine", "loading a model folder into interp-engine")
    from sa_plugin.host.folders import find_folder

    if tower is not None:
        raise ValueError(f"tower is {tower!r}: interp-engine reads decoders; leave it out.")
    path = find_folder(folder)
    eager = {"attn_implementation": "eager", "default_prepend_bos": False}
    model = engine.EagerModel(str(path), device="cpu", dtype=str(dtype).removeprefix("torch."), **eager)
    return model, {}
