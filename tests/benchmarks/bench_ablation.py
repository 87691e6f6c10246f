"""Every head of SmolLM2 below a block: the ledger's one pass, and one patching run a head.

The opponent mean-ablates one head after another and scores the same passages again; it is timed on
`TIMED` heads spread over the blocks and multiplied. What is equal is the quantity that both divide
up, the total lift of every concept; the parts differ by design (direct against total). A second row
is what the checks of an edit cost: a pass with a mean ablation watched, and one with plain hooks. The
rest are the ranking, which estimates first and patches a budget of heads, 12 or the default, alone and
with five permutations of the labels, against patching all heads for each set of vectors; verified heads
have to have the values that patching gives them.
Only where the weights are (`make weights`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import torch

from sa_plugin.concepts import fit
from sa_plugin.data import ConceptData
from sa_plugin.detection import calibrate
from sa_plugin.heads import (
    BUDGET,
    baseline,
    candidates,
    head_ledger,
    known_of,
    make_edits,
    rank_heads,
    scores_of,
    tail_objective,
    total_effects,
)
from sa_plugin.host import Batch, Host, Site, attach
from sa_plugin.loaders import load
from sa_plugin.statistics import Resampling
from sa_transformer_lens.host import load_bridge

LAYER, TIMED, ROUNDS, BUDGETS = 14, 5, 3, (12, BUDGET)
CONCEPTS = ("person", "time", "artifact")


def passages() -> ConceptData:
    """A few passages, rich in three concepts."""
    full = load("supersense")
    rows = [
        (sample, name)
        for name, n in (("train", 60), ("cal", 8), ("test", 16))
        for sample in sorted(full.split(name).samples, key=lambda s: -len(s.positive))[:n]
    ]
    return ConceptData.from_samples([s.only(CONCEPTS) for s, _ in rows], CONCEPTS, [name for _, name in rows])


def run() -> list[dict[str, object]]:
    """Both rows, or none where the weights are missing."""
    try:
        host = attach(load_bridge("smollm2"))
    except FileNotFoundError:
        return []
    data = passages()
    bank = fit(host, data, "lda", layers=[LAYER])
    detector = calibrate(host, data, bank, deltas=(0.3,))
    return [
        ledger_row(host, data, detector),
        watch_row(host, data, detector),
        *ranking_rows(host, data, detector),
    ]


def ledger_row(host: Host, data: ConceptData, detector: object) -> dict[str, object]:
    """One pass for all heads against one pass a head."""
    base = baseline(host, data, detector, split="test", scores=None, resampling=Resampling(1))
    objective = tail_objective(detector, scores_of(base.tokens, data.test.samples))
    every = candidates(host, detector)
    known = known_of(base, "mean", {at for at, _ in every})
    some = [every[i] for i in np.linspace(0, len(every) - 1, TIMED).astype(int)]
    ours, theirs = [], []
    for _ in range(ROUNDS):
        took, ledger = timed(
            lambda: head_ledger(host, data, detector, split="test", resampling=Resampling(1))
        )
        ours.append(took)
        took, _ = timed(lambda: total_effects(base, objective, some, "mean", known))
        theirs.append(took * len(every) / TIMED)
    lift = objective.value(objective.clean)
    return {
        "name": "heads: ledger against patching",
        "ours_s": min(ours),
        "opponent_s": min(theirs),
        "ratio": min(theirs) / min(ours),
        "aim": 50,
        "equal": bool(np.allclose(ledger.lift.total.estimate, lift, rtol=1e-3)),
        "note": f"{len(every)} heads below block {LAYER + 1}, {len(data.test)} passages; the "
        f"opponent timed on {TIMED} heads and multiplied",
    }


def ranking_rows(host: Host, data: ConceptData, detector: object) -> list[dict[str, object]]:
    """The ranking, without and with its control, against one run a head and set of vectors."""
    base = baseline(host, data, detector, split="cal", scores=None, resampling=Resampling(1))
    objective = tail_objective(detector, scores_of(base.tokens, data.cal.samples))
    every = candidates(host, detector)
    known = known_of(base, "mean", {at for at, _ in every})
    some = [every[i] for i in np.linspace(0, len(every) - 1, TIMED).astype(int)]
    lift = np.abs(objective.value(objective.clean))
    rows = []
    for budget, permutations in itertools.product(BUDGETS, (0, 5)):
        took, ranked = timed(
            lambda most=budget, n=permutations: rank_heads(
                host, data, detector, budget=most, scores=base.tokens, permutations=n
            )
        )
        verified = np.flatnonzero(ranked.exact)[:TIMED]
        heads = [ranked.heads[i] for i in verified]
        sums = total_effects(base, objective, heads, "mean", known)
        shares = objective.value(sums) / lift
        a_head = min(
            timed(lambda: total_effects(base, objective, some, "mean", known))[0] / TIMED for _ in range(2)
        )
        opponent = a_head * len(every) * (1 + permutations)
        rows.append(
            {
                "name": f"heads: ranking by {budget}, {permutations} permutations",
                "ours_s": took,
                "opponent_s": opponent,
                "ratio": opponent / took,
                "aim": "none",
                "equal": bool(np.allclose(ranked.shares[verified], shares, rtol=1e-4, atol=1e-6)),
                "note": f"{int(ranked.exact.sum())} of {len(every)} heads verified, {len(data.cal)} "
                f"passages, {len(CONCEPTS)} concepts; one run a head and set of vectors, timed on "
                f"{TIMED} heads",
            }
        )
    return rows


def watch_row(host: Host, data: ConceptData, detector: object) -> dict[str, object]:
    """A watched edit against plain hooks."""
    heads = [(at, 1) for at in (0, 5, 10)]
    base = baseline(host, data, detector, split="test", scores=None, resampling=Resampling(1))
    edits = make_edits("mean", heads, known_of(base, "mean", {0, 5, 10}))
    site = Site(LAYER, "resid_post")
    batches = host.batches(data.test.samples)

    def passes() -> torch.Tensor:
        return torch.cat([read(host, batch, site) for batch in batches])

    def watched() -> torch.Tensor:
        with host.edited(edits):
            return passes()

    def plain() -> torch.Tensor:
        hooks = [(host.hook_name(at), lambda z, hook, e=edit: e(z)) for at, edit in edits.items()]
        with host.bridge.hooks(fwd_hooks=hooks):
            return passes()

    times: dict[str, list[float]] = {"watched": [], "plain": []}
    for _ in range(ROUNDS):
        took, one = timed(watched)
        times["watched"].append(took)
        took, two = timed(plain)
        times["plain"].append(took)
    ours, least = min(times["watched"]), min(times["plain"])
    return {
        "name": "heads: watched edits against plain hooks",
        "ours_s": ours,
        "opponent_s": least,
        "ratio": least / ours,
        "aim": "none",
        "equal": bool(torch.equal(one, two)),
        "note": "mean ablation of 3 heads, checked in every pass",
    }


def read(host: Host, batch: Batch, site: Site) -> torch.Tensor:
    """Residuals of the batch's tokens."""
    return host.read(batch, [site], lambda got: {"h": got[site]})["h"][batch.valid]


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what the work gave."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found
