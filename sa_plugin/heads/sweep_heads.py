"""Runs the ablations of a curve; what a curve is and what it does not show stands in `curve.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm.auto import tqdm

from sa_plugin._names import require_known
from sa_plugin.collect import BATCH_TOKENS
from sa_plugin.data import ConceptData
from sa_plugin.detection.detector import Detector
from sa_plugin.editing import Output
from sa_plugin.heads.ablation import Ablation, ablate
from sa_plugin.heads.controls import CONTROLS, FAMILIES, control_set, head_changes
from sa_plugin.heads.curve import AblationCurve, CurveRun
from sa_plugin.heads.modes import Head, check_heads
from sa_plugin.heads.ranking import Ranking
from sa_plugin.heads.reference import MODES, Reference
from sa_plugin.heads.runs import Baseline, baseline, candidates, known_of
from sa_plugin.host import Host
from sa_plugin.scores import ScoreTable

TRIES = 20


def ablation_curve(
    host: Host,
    data: ConceptData,
    detector: Detector,
    ranking: Ranking | Sequence[Head],
    *,
    ks: Sequence[int] = (1, 4, 12),
    controls: Sequence[str] = CONTROLS,
    repeats: int = 3,
    mode: str = "mean",
    keep: bool = False,
    split: str = "test",
    scores: ScoreTable | None = None,
    output: Output | str | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> AblationCurve:
    """Ablate the top k of a ranking and its controls, or all heads but those.

    Costs `len(ks) * (2 + 3 * repeats)` ablations with the default controls, each one pass over the
    calibration and the measured split ("directional": one for every concept); with `keep` one
    ablation more, of all heads.

    Args:
        host: An attached model that can edit.
        data: Labelled samples.
        detector: From `calibrate`.
        ranking: `rank_heads(...)`, or heads of your own order, best first, chosen without the
            split that is measured.
        ks: Numbers of heads.
        controls: Of "random", "layer_matched", "norm_matched", "bottom" (one set) and "permuted"
            (a set a permutation of the ranking), see `controls.py`.
        repeats: Sets of each family, all different; fewer where there are no more (few heads left
            in the blocks of a layer-matched set, few permutations).
        mode: As in `ablate_heads`, like the arguments that follow.
        keep: Keep only each set and ablate all others: does the set suffice?
        split: What is measured.
        scores: Unablated scores of the calibration and the measured split.
        output: Measures the change of the model's own output.
        draws: Resamples of source documents.
        seed: Of resamples, donors and sets.
        batch_tokens: Tokens in a batch.
        progress: Whether to show a bar.

    Returns:
        One ablation for each k, control and repetition, with the ranking they were taken from.

    Raises:
        ValueError: As `ablate_heads`; unknown controls; a k for which too few other heads are left;
            "bottom" with a list that does not name every candidate; "permuted" with a ranking that
            has no permuted-label order.
    """
    require_known("mode", mode, MODES)
    every = candidates(host, detector)
    order = _order(host, ranking, every, controls)
    _check_ks(ks, order, every, controls, repeats)
    base = baseline(
        host, data, detector, split=split, scores=scores, draws=draws, seed=seed,
        batch_tokens=batch_tokens, output=output,
    )  # fmt: skip
    known = known_of(base, mode, {at for at, _ in every}, seed)
    sizes = head_changes(base, mode, known) if "norm_matched" in controls else {}
    ranked = (*order, *(head for head in every if head not in set(order)))
    permuted = ranking.permuted if isinstance(ranking, Ranking) else ()
    sets: list[tuple[int, str, tuple[Head, ...]]] = []
    for k in ks:
        sets.append((k, "top", order[:k]))
        for family in controls:
            sets += [
                (k, family, heads)
                for heads in (
                    _of_draws(permuted, k, repeats)
                    if family == "permuted"
                    else _distinct(family, order[:k], ranked, sizes, repeats, seed)
                )
            ]
    if keep:
        sets.append((0, "none", ()))
    runs = []
    for k, family, heads in tqdm(sets, desc="ablations", disable=not progress, leave=False):
        gone = tuple(head for head in every if head not in set(heads)) if keep else heads
        runs.append(CurveRun(k, family, heads, _ablate(base, gone, mode, seed, known)))
    by = "the order given" if not isinstance(ranking, Ranking) else (
        f"{ranking.by} ({ranking.effect}) on {ranking.split}"
    )  # fmt: skip
    return AblationCurve(tuple(runs), tuple(ranked), by, mode, sizes, keep)


def _ablate(
    base: Baseline,
    heads: tuple[Head, ...],
    mode: str,
    seed: int,
    known: Reference,
) -> Ablation:
    everywhere = dict.fromkeys(range(len(base.detector.concepts)), heads)
    return ablate(base, everywhere, mode, seed, known)


def _distinct(
    family: str,
    top: Sequence[Head],
    ranked: Sequence[Head],
    sizes: Mapping[Head, float],
    repeats: int,
    seed: int,
) -> list[tuple[Head, ...]]:
    """Sets of a family, none twice; fewer than asked where `TRIES` draws a set find no other."""
    found: dict[frozenset[Head], tuple[Head, ...]] = {}
    wanted = 1 if family == "bottom" else repeats
    for n in range(TRIES * wanted):
        if len(found) == wanted:
            break
        rng = np.random.default_rng([seed, len(top), CONTROLS.index(family), n])
        heads = control_set(family, top, ranked, sizes, rng)
        found.setdefault(frozenset(heads), heads)
    return list(found.values())


def _of_draws(orders: Sequence[Sequence[Head]], k: int, repeats: int) -> list[tuple[Head, ...]]:
    """The first k of each permutation's order, none twice."""
    sets: dict[frozenset[Head], tuple[Head, ...]] = {}
    for order in orders:
        sets.setdefault(frozenset(order[:k]), tuple(order[:k]))
    return list(sets.values())[:repeats]


def _order(
    host: Host, ranking: Ranking | Sequence[Head], every: Sequence[Head], controls: Sequence[str]
) -> tuple[Head, ...]:
    for family in controls:
        require_known("control", family, FAMILIES)
    if "permuted" in controls and not (isinstance(ranking, Ranking) and ranking.permuted):
        raise ValueError(
            "the ranking has no order by permuted-label vectors: rank_heads(by='ledger') with a "
            "bank fitted with controls has one; or leave 'permuted' out of controls."
        )
    heads = ranking.heads if isinstance(ranking, Ranking) else ranking
    order = check_heads(host.info, heads)
    late = [head for head in order if head not in set(every)]
    if late:
        raise ValueError(
            f"head {late[0]} writes after every concept's layer, so its ablation cannot show: "
            "leave it out."
        )
    missing = len(every) - len(order)
    if "bottom" in controls and missing:
        raise ValueError(
            f"the ranking lacks {missing} of {len(every)} candidates, so its bottom is unknown: "
            "rank them all, or leave 'bottom' out of controls."
        )
    return order


def _check_ks(
    ks: Sequence[int],
    order: Sequence[Head],
    every: Sequence[Head],
    controls: Sequence[str],
    repeats: int,
) -> None:
    if not ks or repeats < 1:
        raise ValueError(f"ks is {list(ks)} and repeats {repeats}: ask for at least one of each.")
    for k in ks:
        most = min(len(order), len(every) // 2 if controls else len(every))
        if not 1 <= k <= most:
            raise ValueError(
                f"k = {k} lies outside 1 to {most}: {len(order)} heads are ranked, and controls "
                f"are as many others among {len(every)} candidates."
            )
