"""The coalition engine against captum and shapiq, one explainer and one objective at a time.

Ten groups of tokens are players, so shapiq's KernelSHAP and SHAPIQ and ours read all coalitions and
must agree; captum's Lime reads our draws, RISE is a loop. The opponents' passes are batched like
ours and end at the same layer: the gain is what is shared. Without shapiq there is nothing to run.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from attribution_toy import Readout, draw
from bench_coalitions import BLOCKS, LAYER, WIDTH_OF_MODEL, _captum, _loop, _random_gpt2

from sa_plugin.attribution import (
    COALITION_METHODS,
    CoalitionGame,
    coalition_game,
    explain_coalitions,
    plan_for,
)
from sa_plugin.data import Sample

TEXT = "the cat sat on the mat and nobody"
BUDGET = 1024
ROUNDS = 2


def run() -> list[dict[str, object]]:
    if find_spec("shapiq") is None:
        return []
    host, sample = _random_gpt2(), Sample("s", TEXT, "d")
    fs = [Readout(draw(k, WIDTH_OF_MODEL), LAYER, "resid_post") for k in range(2)]
    best, apart, passes = {"ours": np.inf, "opponent": np.inf}, 0.0, 0
    for _ in range(ROUNDS):
        game = coalition_game(host, sample, fs, players="word")
        start = time.perf_counter()
        ours = {m: explain_coalitions(game, m, seed=0, n_coalitions=BUDGET) for m in COALITION_METHODS}
        best["ours"] = min(best["ours"], time.perf_counter() - start)
        passes = len(game.known)
        start = time.perf_counter()
        theirs = {m: np.stack([_alone(game, k, m) for k in range(2)], 1) for m in COALITION_METHODS}
        best["opponent"] = min(best["opponent"], time.perf_counter() - start)
        for m in COALITION_METHODS:
            apart = max(apart, float(np.abs(ours[m] - theirs[m]).max() / np.abs(ours[m]).max()))
    return [
        {
            "name": "4 explainers x 2 objectives, captum and shapiq",
            "ours_s": best["ours"],
            "opponent_s": best["opponent"],
            "ratio": best["opponent"] / best["ours"],
            "aim": ">= 4",
            "equal": apart < 2e-3,
            "note": f"{game.n_players} players, {BUDGET} coalitions a method, {passes} masked "
            f"inputs for {8 * BUDGET}; largest relative difference {apart:.1e}; GPT-2 {BLOCKS} x "
            f"{WIDTH_OF_MODEL} to block {LAYER}, {torch.get_num_threads()} threads",
        }
    ]


def _alone(game: CoalitionGame, k: int, method: str) -> Any:
    import shapiq

    rows = game.rows_a_pass

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return game.objectives[k](game.host.forward_from(x, game.batch, game.sites[k]))

    plan = plan_for(method, game.n_players, seed=0, n_coalitions=BUDGET)
    if method == "lime":
        return _captum(game, forward, method, plan, rows)
    if method == "rise":
        z = plan.coalitions.astype(float)
        return (z * _loop(game, forward, plan.coalitions, rows)[:, None]).sum(0) / z.sum(0)
    n = game.n_players
    theirs = {
        "kernel_shap": lambda: shapiq.KernelSHAP(n, random_state=0),
        "shap_iq": lambda: shapiq.SHAPIQ(n, 1, index="SII", random_state=0),
    }[method]()
    found = theirs.approximate(BUDGET, lambda z: _loop(game, forward, z.astype(bool), rows))
    return found.get_n_order_values(1)
