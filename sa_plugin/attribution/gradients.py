"""Explainers that read one residual, or follow gradients to the input.

Each is a function of a game that explains all its objectives and sums importance by player.
Gradients of several objectives come from one forward pass a chunk of rows, and one backward pass
for each objective. Parameters may be frozen or not; their `.grad` is never written.

**Direct alignment**: no explainer at all, the objective of each token alone.

    importance_t = f(h, mask = {t}):  cos(x_t, u) for "superactivator",  s_t for "global"

The ninth explainer of arXiv 2512.05038 is named in none of its sources (eight are in the code); the
likeliest is this one, which the code does evaluate with both targets. Tokens that the objective
does not count (attention sinks) get 0. It reads the objective's own layer, where a token's residual
holds what attention brought there: a high number says where the evidence is found, not which input
tokens caused it.

**Integrated gradients** on a straight path from a baseline (Sundararajan et al. 2017),

    importance_t = sum_d (x - x0)_td integral_0^1 df/dx_td (x0 + a (x - x0)) da
    sum_t importance_t = f(x) - f(x0)                                          (completeness)

by the trapezoid rule on `n_steps` intervals, 64 in the authors' code for arXiv 2512.05038. captum's
`riemann_trapezoid` is not used: its weights add up to (n - 1) / n. The baseline is the mean of the
sample's own embeddings or patches; zero embeddings are a bad one for models with RMSNorm, whose
x / rms is singular at zero. Special tokens stay as they are. Notes: `completeness_error` =
|sum - (f(x) - f(x0))|, and the difference itself. A large error says that the path is too coarse, a
small one says nothing about faithfulness.

**Grad-CAM** for tokens: channels weighted by their mean gradient over tokens,

    alpha_d = mean over players' tokens of df/dA_td,   importance_t = sum_d alpha_d A_td

(Selvaraju et al. 2017, tokens in place of pixels). captum's `LayerGradCam` takes tokens for
channels on `[batch, token, d]` and returns a map over dimensions. Signs are kept: no ReLU, no
scaling. The class token has no map and no part in alpha. `A` is by default the residual that enters
the objective's own block, so that gradients have passed one block's attention. At the objective's
own site the map is that of a linear readout. The residual has a large mean that is no evidence:
with `centre` (the default) the sample's mean over tokens is taken off A, which changes every
token's number by the same amount.

**FullGrad**: input times gradient, and every bias where it is added (Srinivas and Fleuret 2019),

    importance_t = sum_d x_td df/dx_td  +  sum_m sum_d b_md df/do^m_td

over the modules m with a bias vector b that are called on the way to the objective, o^m their
output at token t. A bias acts at every token, so its share is attributed token by token; the
authors' code for arXiv 2512.05038 adds one constant to all patches, which leaves the ranking to
input times gradient. Signs are kept (the paper takes absolute values of image maps). For networks
of linear maps and ReLUs the shares add up to f(x). Transformers are not such: softmax, norms and
GELU have implicit biases, and positions, class and segment embeddings are constants that no module
adds as a bias. `residual` = f(x) - sum of importance says how much is unexplained, and `biases`
what the biases' part is over all players. A model without biases (Llama) gets input times gradient.
Modules are watched by PyTorch's hook for all modules, which is taken off again; fused operations
that bypass a module's own bias are not seen.

**MFABA**, the sharp variant: gradients along an adversarial path (Zhu et al., AAAI 2024),

    p = softmax(f, rivals)_0,   x_{k+1} = x_k - step sign(dp/dx (x_k))
    importance_t = sum_k sum_d (x_k - x_{k+1})_td dp/dx_td (x_k)  >=  0

until f is no longer the highest of the K scores, or `n_steps` are done. It needs rivals, the same
kind of score for other concepts: the softmax of one score is 1 and has no gradient. As in the
authors' code for arXiv 2512.05038 one row of K concept scores is f and the path ends when the
highest changes, 50 steps of .001. Here `step` is a share of the range of the sample's input; pixels
are clamped to that range, embeddings are not. Special tokens do not move. Signs: p falls along the
path, so every share is positive, also of tokens that speak against f: steps along the sign make it
a sum of absolute gradients, as blind to tokens on which a cosine is flat as saliency (tested).
Refused, because the result would be noise: no rival; a start at which another score is the highest
(the path has no length); and a cosine among dot products (one softmax over two scales).

**Saliency, input times gradient, SmoothGrad and occlusion**, as captum computes them:

    saliency_t = sum_d |df/dx_td|                          input_x_gradient_t = sum_d x_td df/dx_td
    smooth_grad_t = sum_d |mean_k df/dx_td (x + e_k)|      occlusion_t = f(x) - f(x with t masked)

with e_k normal, its deviation `noise` times the range of the sample's input (Smilkov et al. 2017).
Saliency and SmoothGrad have no sign. In captum, SmoothGrad is `NoiseTunnel` round `Saliency` with
signed gradients; the absolute value is taken of their mean, as in the paper.

Gradients at the input itself are a poor guide to a cosine: it is flat along its own token, so the
better a token is aligned, the smaller its gradient, and on a planted concept these methods (and
FullGrad) rank the planted tokens last. Use a path or a perturbation with "superactivator".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from sa_plugin._check import require
from sa_plugin.attribution.explained import Importances, PlayerValues
from sa_plugin.attribution.game import CoalitionGame, ForwardFunc, ManySites, Readout, residuals
from sa_plugin.attribution.objective import Objective, Pooled
from sa_plugin.host.protocol import Site
from sa_plugin.host.turns import gradient_mode

_TOKENS_A_PASS = 64
"""Masks of one token that direct alignment evaluates together."""


def direct_alignment(game: CoalitionGame) -> Importances:
    """Direct alignment of every objective of a game.

    Cost: one forward pass for all objectives.

    Raises:
        TypeError: An objective is none of `sa_plugin.objective`.
        ValueError: An objective cannot be evaluated on single tokens.
    """
    with gradient_mode(False):
        found = residuals(game, game.values, game.sites)
        maps = [
            _alone(objective, found[site])
            for objective, site in zip(game.objectives, game.sites, strict=True)
        ]
    return Importances(_by_player(game, torch.stack(maps)), {})


def _alone(objective: Readout, resid: Tensor) -> Tensor:
    if not isinstance(objective, Objective):
        raise TypeError(
            f"{objective!r} is a {type(objective).__name__}: direct alignment evaluates an "
            "Objective with a mask of one token. Make it with sa_plugin.objective."
        )
    own, pooled = objective.mask[0], objective.measure
    # A token that the objective does not average over has no part in it.
    own = own & pooled.tokens if isinstance(pooled, Pooled) and pooled.tokens is not None else own
    tokens = own.to(resid.device).nonzero()[:, 0]
    out = torch.zeros(resid.shape[1], device=resid.device)
    for start in range(0, len(tokens), _TOKENS_A_PASS):
        part = tokens[start : start + _TOKENS_A_PASS]
        # A mask a row, of one token each.
        one = torch.zeros(len(part), resid.shape[1], dtype=torch.bool, device=resid.device)
        one[torch.arange(len(part)), part] = True
        try:
            out[part] = objective(resid.expand(len(part), -1, -1), one)
        except ValueError as error:
            raise ValueError(
                f"objective {objective.name!r} has no value on one token alone ({error}): direct "
                "alignment is for means over tokens, such as 'superactivator' and 'global'."
            ) from error
    return out


def integrated_gradients(
    game: CoalitionGame, *, n_steps: int = 64, baseline: str | Tensor | None = "mean"
) -> Importances:
    """Integrated gradients of every objective of a game.

    Cost: `n_steps + 1` rows forward, and backward for each objective.

    Args:
        game: Of one sample.
        n_steps: Intervals.
        baseline: See `players`.

    Raises:
        ValueError: Fewer than one interval, or an unknown baseline.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}: give 1 interval at least, such as 64.")
    x = game.values.float()
    start = game.emptied(baseline).float()
    at = torch.linspace(0, 1, n_steps + 1, device=x.device)
    # The trapezoid rule: the ends count half, and the weights add up to 1.
    weights = torch.full_like(at, 1 / n_steps)
    weights[0] = weights[-1] = 0.5 / n_steps
    total = torch.zeros((), device=x.device)
    ends: list[Tensor] = []
    for first in range(0, n_steps + 1, game.rows_a_pass):
        part = slice(first, first + game.rows_a_pass)
        # A row a point of the path: x0 + a (x - x0).
        rows = start + at[part].reshape(-1, *[1] * (x.ndim - 1)) * (x - start)
        values, slopes = _gradients(game, rows)
        # The integral of the gradient; only sums over rows are kept.
        total = total + torch.einsum("r,or...->o...", weights[part], slopes)
        ends.append(values)
    values = torch.cat(ends, dim=1)
    importance = _by_player(game, _by_token(game, total * (x - start)))
    difference = (values[:, -1] - values[:, 0]).double().cpu().numpy()
    return Importances(
        importance, {"difference": difference, "completeness_error": abs(importance.sum(0) - difference)}
    )


def grad_cam(game: CoalitionGame, *, site: Site | None = None, centre: bool = True) -> Importances:
    """Grad-CAM of every objective of a game.

    Cost: one forward pass for each distinct pair of sites, one backward pass an objective.

    Args:
        game: Of one sample.
        site: Whose activations are weighted; by default `resid_pre` of each objective's block.
        centre: Whether to take the mean over tokens off the activations.

    Raises:
        TypeError: The host cannot read several sites in one pass.
        ValueError: The objective does not depend on the site: it lies above.
    """
    host = game.host
    if not isinstance(host, ManySites):
        raise TypeError(
            f"{type(host).__name__} has no `forward_sites`, which grad_cam needs to reach "
            "activations inside the pass. Attach a TransformerLens bridge, or use another method."
        )
    playing = torch.from_numpy(game.player_of >= 0).to(game.values.device)
    maps: list[Tensor] = []
    for objective, at in zip(game.objectives, game.sites, strict=True):
        of = Site(at.layer, "resid_pre") if site is None else site
        leaf = game.values.detach().clone().requires_grad_(True)
        with gradient_mode(True):
            found = host.forward_sites(leaf, game.batch, sorted({of, at}))
            value = objective(found[at]).sum()
        (slope,) = torch.autograd.grad(value, found[of], allow_unused=True)
        if slope is None:
            raise ValueError(
                f"{objective!r} does not depend on {of}: choose a site at or below "
                f"{at}, such as Site({at.layer}, 'resid_pre')."
            )
        # Only tokens that play have a part in the weights and in the mean that is taken off.
        a = found[of].detach().float()[0]
        a = a - a[playing].mean(0) if centre else a
        maps.append(a @ slope.float()[0, playing].mean(0))
    return Importances(_by_player(game, torch.stack(maps)), {})


def full_grad(game: CoalitionGame) -> Importances:
    """FullGrad of every objective of a game.

    Cost: one forward pass and one backward pass an objective.
    """
    leaf = game.values.detach().clone().requires_grad_(True)
    with gradient_mode(True), _biased_outputs() as seen:
        values = _values_at(game, leaf, game.objectives, game.sites)
    inputs, biases = [], []
    for k, value in enumerate(values):
        # Input and every biased output at once; what the objective does not depend on has no slope.
        slopes = torch.autograd.grad(
            value.sum(),
            [leaf, *(out for out, _ in seen)],
            allow_unused=True,
            retain_graph=k < len(values) - 1,
        )
        inputs.append(slopes[0].float()[0] * game.values.float()[0])
        # A bias is added at every token alike, so its share there is its dot with the local slope.
        shares = (
            _tokens(game, slope.float() * _aligned(bias, slope))
            for slope, (_, bias) in zip(slopes[1:], seen, strict=True)
            if slope is not None
        )
        biases.append(sum(shares, torch.zeros(len(game.player_of), device=leaf.device)))
    of_inputs = _by_player(game, _by_token(game, torch.stack(inputs)))
    of_biases = _by_player(game, torch.stack(biases))
    importance = of_inputs + of_biases
    value = values.detach()[:, 0].double().cpu().numpy()
    notes = {"residual": value - importance.sum(0), "biases": of_biases.sum(0)}
    return Importances(importance, notes)


@contextmanager
def _biased_outputs() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The output and the bias of every module with one that this thread calls inside the context."""
    seen: list[tuple[Tensor, Tensor]] = []
    inner: set[int] = set()
    thread = get_ident()
    # Held by the `with` alone: a hook on all modules that an interrupt left takes itself off.
    alive = Lock()

    def watch(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not alive.locked():
            handle.remove()
            return
        if get_ident() != thread:
            return
        bias = getattr(module, "bias", None)
        if not isinstance(bias, torch.nn.Parameter) or not isinstance(output, Tensor):
            return
        # A wrapper shows its component's bias as its own, and either calls the component, which
        # was then seen just before, or does its work (TransformerLens's norms).
        if module._parameters.get("bias") is bias:
            inner.add(id(bias))
        elif id(bias) in inner:
            inner.discard(id(bias))
            return
        if output.requires_grad:
            seen.append((output, bias.detach().float()))

    with alive:
        handle = register_module_forward_hook(watch)
        try:
            yield seen
        finally:
            handle.remove()


def _aligned(bias: Tensor, output: Tensor) -> Tensor:
    """A bias in the shape that broadcasts over its module's output."""
    # A convolution's channels stand before its plane.
    if output.ndim == 4 and output.shape[1] == len(bias):
        return bias[:, None, None]
    if output.shape[-1] != len(bias):
        raise ValueError(
            f"a module with a bias of {len(bias)} has outputs {list(output.shape)}: where it acts "
            "is not known, so FullGrad cannot place it."
        )
    return bias


def _tokens(game: CoalitionGame, shares: Tensor) -> Tensor:
    """Shares `[1, token, d]`, flat `[token, d]` or of a patch convolution, summed by token."""
    n_tokens = len(game.player_of)
    grid = game.grid
    if shares.ndim == 4:
        # The patch embedding's own bias: its outputs are channels over the plane of patches.
        if grid is not None and shares.shape[2:] == (grid.rows, grid.columns):
            return torch.nn.functional.pad(shares.sum((0, 1)).flatten(), (grid.n_special, 0))
    elif shares.shape[-2] == n_tokens and shares.numel() == n_tokens * shares.shape[-1]:
        return shares.reshape(n_tokens, -1).sum(-1)
    raise ValueError(
        f"a module with a bias has outputs {list(shares.shape)} for {n_tokens} tokens: where it "
        "acts is not known, so FullGrad cannot place it."
    )


class Degenerate(ValueError):
    """MFABA has no path for this objective on this sample."""


def mfaba(
    game: CoalitionGame, *, rivals: CoalitionGame | None = None, n_steps: int = 50, step: float = 0.001
) -> Importances:
    """MFABA of every objective of a game.

    Cost: a forward and a backward pass a step, for each objective.

    Args:
        game: Of one sample.
        rivals: A game of the same sample whose objectives are the other concepts' scores.
        n_steps: At most.
        step: Share of the input's range that a value moves in one step.

    Raises:
        Degenerate: No path, with the reason.
        ValueError: Steps that are not positive.
    """
    if rivals is None or not rivals.objectives:
        raise Degenerate(
            "mfaba needs rivals: with one score the softmax is 1 and its gradient 0. Give rivals=, "
            "objectives of other concepts on the same sample."
        )
    if n_steps < 1 or not step > 0:
        raise ValueError(f"n_steps is {n_steps}, step {step}: both must be positive.")
    maps, drops, lengths = [], [], []
    for objective, site in zip(game.objectives, game.sites, strict=True):
        _one_scale(objective, rivals.objectives)
        readouts = (objective, *rivals.objectives)
        total, drop, length = _path(game, readouts, (site, *rivals.sites), n_steps, step)
        maps.append(_by_token(game, total[None])[0])
        drops.append(drop)
        lengths.append(length)
    notes = {"probability_drop": np.array(drops), "steps": np.array(lengths, dtype=np.float64)}
    return Importances(_by_player(game, torch.stack(maps)), notes)


def _path(
    game: CoalitionGame, readouts: Sequence[Readout], sites: Sequence[Site], n_steps: int, step: float
) -> tuple[Tensor, float, int]:
    """The summed shares of one objective, the fall of its probability and the steps taken."""
    x = game.values.float()
    low, high = x.amin(), x.amax()
    size = step * float(high - low)
    # 1 where an input value belongs to a player, 0 where it must not move.
    playing = torch.from_numpy((game.player_of >= 0).astype(np.int64))
    moves = game.spread(playing).to(x.device).float()
    total, first = torch.zeros_like(x[0]), None
    for k in range(n_steps):
        p, slope, best = _probability(game, x, readouts, sites)
        if first is None:
            first = p
        if best != 0:
            if k == 0:
                raise Degenerate(
                    f"another concept's score is higher than that of {readouts[0]!r}: its "
                    "adversarial path has no length. Leave the sample out, or give other rivals."
                )
            return total, first - p, k
        # Every value moves equally far downhill; embeddings have no range to be clamped to.
        after = x - size * moves * slope.sign()
        after = after.clamp(low, high) if x.ndim == 4 else after
        # First order: what p loses in this step, split among the input values.
        total = total + ((x - after) * slope)[0]
        x = after
    with gradient_mode(False):
        last = _values_at(game, x, readouts, sites)[:, 0].softmax(0)[0]
    return total, (first or 0.0) - float(last), n_steps


def _probability(
    game: CoalitionGame, x: Tensor, readouts: Sequence[Readout], sites: Sequence[Site]
) -> tuple[float, Tensor, int]:
    leaf = x.detach().clone().requires_grad_(True)
    with gradient_mode(True):
        scores = _values_at(game, leaf, readouts, sites)[:, 0]
        p = scores.softmax(0)[0]
    (slope,) = torch.autograd.grad(p, leaf)
    return float(p.detach()), slope.float(), int(scores.argmax())


def _one_scale(objective: Readout, rivals: Sequence[Readout]) -> None:
    scales = {_scale(one) for one in (objective, *rivals)} - {None}
    if len(scales) > 1:
        raise Degenerate(
            f"{objective!r} and its rivals mix cosines with dot products, of which one softmax "
            "means nothing: give rivals of the same kind, such as the same objective of other "
            "concepts with fallback='top_token'."
        )


def _scale(objective: Readout) -> str | None:
    if not isinstance(objective, Objective) or not isinstance(objective.measure, Pooled):
        return None
    return "cosine" if objective.measure.cosine else "dot"


def saliency(game: CoalitionGame) -> Importances:
    """Absolute gradients. Cost: one forward and backward pass an objective."""
    attr = _captum()
    return _each(game, lambda f: attr.Saliency(f).attribute(_leaf(f), abs=True))


def input_x_gradient(game: CoalitionGame) -> Importances:
    """Input times gradient. Cost: one forward and backward pass an objective."""
    attr = _captum()
    return _each(game, lambda f: attr.InputXGradient(f).attribute(_leaf(f)))


def smooth_grad(
    game: CoalitionGame, *, n_samples: int = 50, noise: float = 0.15, seed: int = 0
) -> Importances:
    """Absolute mean gradient over noisy copies.

    Cost: `n_samples` rows forward and backward, for each objective.

    Args:
        game: Of one sample.
        n_samples: Noisy copies.
        noise: Deviation as a share of the input's range.
        seed: Of the noise; torch's global generator is left as it was.

    Raises:
        ValueError: No copies, or noise that is not positive.
    """
    if n_samples < 1 or not noise > 0:
        raise ValueError(f"n_samples is {n_samples}, noise {noise}: both must be positive.")
    attr = _captum()
    deviation = noise * float(game.values.float().amax() - game.values.float().amin())

    def one(f: ForwardFunc) -> Tensor:
        # captum draws from the global generator.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tunnel = attr.NoiseTunnel(attr.Saliency(f))
            found: Tensor = tunnel.attribute(
                _leaf(f),
                nt_type="smoothgrad",
                nt_samples=n_samples,
                stdevs=deviation,
                nt_samples_batch_size=min(game.rows_a_pass, n_samples),
                abs=False,
            )
        return found.abs()

    return _each(game, one)


def occlusion(game: CoalitionGame, *, baseline: str | Tensor | None = None) -> Importances:
    """The fall of the objective when one player is replaced by the baseline.

    captum's `Occlusion` where players are single tokens or patches, its `FeatureAblation` where
    they are groups; a group's fall is divided among its input values and summed again.

    Cost: one row forward a token, patch or group, for each objective.

    Args:
        game: Of one sample.
        baseline: See `players`; by default the game's own.
    """
    attr = _captum()
    alone = game.n_players == int((game.player_of >= 0).sum())

    def one(f: ForwardFunc) -> Tensor:
        chosen = f.baseline(game.baseline if baseline is None else baseline).float()
        if not alone:
            mask = f.feature_mask
            fallen: Tensor = attr.FeatureAblation(f).attribute(
                f.inputs.float(), baselines=chosen, feature_mask=mask, perturbations_per_eval=game.rows_a_pass
            )
            # captum gives every value of a feature, or a window, the effect of the whole.
            return fallen / mask.flatten().bincount()[mask]
        grid, shape = game.grid, game.values.shape
        window = (1, shape[2]) if grid is None else (shape[1], grid.side, grid.side)
        found: Tensor = attr.Occlusion(f).attribute(
            f.inputs.float(),
            sliding_window_shapes=window,
            strides=window,
            baselines=chosen,
            perturbations_per_eval=game.rows_a_pass,
        )
        return found / torch.tensor(window).prod()

    return _each(game, one)


def _leaf(f: ForwardFunc) -> Tensor:
    return f.inputs.detach().float().clone().requires_grad_(True)


def _captum() -> Any:
    return require("captum.attr", "attribution")


def _each(game: CoalitionGame, one: Callable[[ForwardFunc], Tensor]) -> Importances:
    maps = [one(ForwardFunc(game, k)).detach()[0] for k in range(len(game.objectives))]
    return Importances(_by_player(game, _by_token(game, torch.stack(maps))), {})


def _gradients(
    game: CoalitionGame, rows: Float[Tensor, "row token_or_channel *rest"]
) -> tuple[Float[Tensor, "objective row"], Float[Tensor, "objective row token_or_channel *rest"]]:
    """Every objective's value and gradient at each row; the caller chooses how many rows.

    Raises:
        ValueError: A gradient is not finite.
    """
    leaf = rows.detach().clone().requires_grad_(True)
    with gradient_mode(True):
        values = _values_at(game, leaf, game.objectives, game.sites)
    # Rows do not touch, so the gradient of their sum holds each row's own. The graph is shared by
    # the objectives and freed with the last.
    last = len(values) - 1
    found = torch.stack(
        [
            torch.autograd.grad(value.sum(), leaf, retain_graph=k < last)[0].float()
            for k, value in enumerate(values)
        ]
    )
    if not torch.isfinite(found).all():
        raise ValueError(
            f"a gradient of {game!r} is not finite: load the model in float32, or choose another baseline."
        )
    return values.detach(), found


def _values_at(
    game: CoalitionGame, rows: Tensor, readouts: Sequence[Readout], sites: Sequence[Site]
) -> Float[Tensor, "objective row"]:
    """Readouts of each row, with their graph."""
    found = residuals(game, rows, sites)
    return torch.stack([f(found[site]) for f, site in zip(readouts, sites, strict=True)])


def _by_token(
    game: CoalitionGame, maps: Float[Tensor, "objective token_or_channel *rest"]
) -> Float[Tensor, "objective token"]:
    """Sums of an input-shaped map over each token's dimensions, or each patch's pixels."""
    grid = game.grid
    if grid is None:
        return maps.sum(-1)
    # Channels first; then each patch's pixels, and nothing for the special tokens in front.
    cut = maps.sum(1).reshape(-1, grid.rows, grid.side, grid.columns, grid.side)
    patches = cut.sum((2, 4)).flatten(1)
    return torch.nn.functional.pad(patches, (grid.n_special, 0))


def _by_player(game: CoalitionGame, maps: Float[Tensor, "objective token"]) -> PlayerValues:
    """Sums of a token map over each player's tokens; tokens of no player are left out."""
    # `add.at` adds repeated players up, which plain indexing would not.
    out = np.zeros((game.n_players, len(maps)))
    playing = game.player_of >= 0
    np.add.at(out, game.player_of[playing], maps.double().cpu().numpy().T[playing])
    return out
