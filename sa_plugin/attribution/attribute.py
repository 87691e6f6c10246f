"""Explainers by name, one signature.

| method | cost in rows (forward, backward) | sign | source |
|---|---|---|---|
| direct_alignment | 1, 0 | yes | ours |
| integrated_gradients | 65, 65 | yes | ours |
| saliency, input_x_gradient | 1, 1 | no, yes | captum |
| smooth_grad | 50, 50 | no | captum |
| occlusion | tokens, 0 | yes | captum |
| grad_cam, full_grad | 1, 1 | yes | ours |
| mfaba | 50, 50 | no | ours |
| lime, kernel_shap, rise, shap_iq | see `estimators` | yes; rise: see there | ours |

The formulas stand in `gradients` and `estimators`. `preset="paper"` has the numbers of the authors'
code for arXiv 2512.05038 where it gives them, and else of each method's paper; `preset="fast"`
takes 16 intervals for integrated gradients, 10 copies for SmoothGrad, 10 steps for MFABA and fewer
coalitions, and is otherwise the same.

No explainer is right by construction: judge them by `compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from sa_plugin._check import require_known
from sa_plugin._face import ByArguments, passing
from sa_plugin.attribution import gradients
from sa_plugin.attribution.estimators import COALITION_METHODS, ESTIMATORS, explain_coalitions
from sa_plugin.attribution.explained import Attribution, Importances
from sa_plugin.attribution.game import CoalitionGame, Readout, coalition_game
from sa_plugin.attribution.objective import Objective
from sa_plugin.data.sample import Sample
from sa_plugin.host.protocol import Host

Explainer = Callable[..., Importances]
EXPLAINERS: dict[str, Explainer] = {
    "direct_alignment": gradients.direct_alignment,
    "integrated_gradients": gradients.integrated_gradients,
    "saliency": gradients.saliency,
    "input_x_gradient": gradients.input_x_gradient,
    "smooth_grad": gradients.smooth_grad,
    "occlusion": gradients.occlusion,
    "grad_cam": gradients.grad_cam,
    "full_grad": gradients.full_grad,
    "mfaba": gradients.mfaba,
}
METHODS = (*EXPLAINERS, *COALITION_METHODS)
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "integrated_gradients": {"n_steps": 64},
        "smooth_grad": {"n_samples": 50},
        "mfaba": {"n_steps": 50},
    },
    "fast": {
        "integrated_gradients": {"n_steps": 16},
        "smooth_grad": {"n_samples": 10},
        "mfaba": {"n_steps": 10},
    },
}
"""Options of each method by preset; of coalitions their number, see `estimators.BUDGETS`."""


def _takes_options(given: Mapping[str, Any]) -> Sequence[Callable[..., Any]]:
    """The functions that take the options of a method."""
    return takers_of(given.get("method", "integrated_gradients"))


def takers_of(method: str) -> list[Callable[..., Any]]:
    """The functions that take the options of a method, by its name.

    Raises:
        ValueError: There is no such method.
    """
    require_known("method", method, METHODS)
    if method in EXPLAINERS:
        return [EXPLAINERS[method]]
    return [explain_coalitions, ESTIMATORS[method]]


@passing(ByArguments(_takes_options))
def attribute(
    host: Host,
    objective: Objective,
    sample: Sample | str,
    method: str = "integrated_gradients",
    *,
    preset: str = "paper",
    baseline: str | Tensor | None = None,
    players: str | Int[np.ndarray, " token"] | None = None,
    rivals: Sequence[Objective] = (),
    **options: Any,
) -> Attribution:
    """Importance of each token or patch of a sample for one objective.

    Args:
        host: A host with `input_values` and `forward_from`.
        objective: Made for this sample.
        sample: The sample, or its text.
        method: One of the table above.
        preset: "paper" or "fast".
        baseline: What a masked token or patch becomes, see `players`. By default "mean" for texts;
            for images "zero", and "mean" for integrated gradients.
        players: What is masked and shown together. By default each token that the objective counts
            ("kept": attention sinks, where the host drops them, are never masked); "token" masks
            these too, "word" takes words; or a number for each token.
        rivals: For mfaba: objectives of other concepts on the same sample.
        **options: Of the method's own function, such as `n_steps`, `n_samples` or `seed`.

    Returns:
        Importance, larger is more evidence, with what the method says of itself.

    Raises:
        TypeError: The host gives no gradients, or the method has no such option.
        ValueError: Unknown method or preset, an objective of another sample, or a degenerate case;
            the text says which.

    Example:
        >>> found = attribute(host, objective, sample, "rise", preset="fast")  # doctest: +SKIP
        >>> found.top(1)  # doctest: +SKIP
        [('whale', 0.31)]
    """
    require_known("method", method, METHODS)
    text = Sample.of(sample)
    game = coalition_game(host, text, [objective], baseline=baseline, players=players)
    if method == "mfaba" and rivals:
        options["rivals"] = coalition_game(host, text, list(rivals), players=players)
    # The path's own default is the mean for images too, so the game's baseline is passed on only where
    # it was asked for.
    if method == "integrated_gradients" and baseline is not None:
        options["baseline"] = baseline
    found = explain_game(game, method, preset=preset, **options)
    return as_results(game, text, method, found, preset=preset, **options)[0]


def explain_game(game: CoalitionGame, method: str, *, preset: str = "paper", **options: Any) -> Importances:
    """One explainer on all objectives of a game.

    Args:
        game: Of `coalition_game`; coalitions it knows are not computed again.
        method: One of `METHODS`.
        preset: "paper" or "fast".
        **options: Of the method's own function.

    Raises:
        ValueError: Unknown method or preset, and what the method raises.
    """
    require_known("method", method, METHODS)
    require_known("preset", preset, PRESETS)
    if method in COALITION_METHODS:
        return Importances(explain_coalitions(game, method, preset=preset, **options), {})
    return EXPLAINERS[method](game, **PRESETS[preset].get(method, {}) | options)


def as_results(
    game: CoalitionGame, sample: Sample, method: str, found: Importances, **settings: Any
) -> list[Attribution]:
    """What an explainer found, one result an objective of the game."""
    shown = {name: value for name, value in settings.items() if name != "rivals"}
    return [
        Attribution(
            method,
            getattr(f, "name", type(f).__name__),
            getattr(f, "concept", ""),
            f.layer,
            sample,
            found.importance[:, k],
            game.player_of,
            game.batch.offsets[0].cpu().numpy(),
            {name: float(values[k]) for name, values in found.notes.items()},
            shown,
            _dropped(game, f),
            getattr(f, "caution", ""),
        )
        for k, f in enumerate(game.objectives)
    ]


def _dropped(game: CoalitionGame, readout: Readout) -> Bool[np.ndarray, " token"]:
    """Valid tokens that an objective does not count: the host's sinks."""
    valid = game.batch.valid[0].cpu().numpy()
    mask = getattr(readout, "mask", None)
    return np.zeros_like(valid) if mask is None else valid & ~mask[0].cpu().numpy()
