"""Thresholds of 12 deltas and 16 concepts on 4 million tokens, against torch.quantile in pieces.

Scores are float32, stored row by row; concepts label 10 to 25 % of the tokens. `torch.quantile`
refuses more than 2**24 values, so the table has to go to it in pieces. All opponents work in
float64, so that all results are the same bits, and get every delta of a piece from one call:

- "in pieces": four concepts at a time, the tokens outside a concept set to NaN for
  `torch.nanquantile`: the same without any loop over concepts that fits, as in the paper's code.
- "by concept": the tokens of one concept at a time, picked first. The strongest opponent.
- "by concept and delta": the same with a call for each delta.
- "no labels": all tokens count for each column, one column at a time: its sort against numpy's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from sa_plugin.statistics import DELTAS, quantiles, tail_thresholds

TOKENS, CONCEPTS, ROUNDS, LIMIT = 4_000_000, 16, 5, 1 << 24
LEVELS = 1 - np.array(DELTAS)


def table(tokens: int = TOKENS, concepts: int = CONCEPTS) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((tokens, concepts), dtype=np.float32)
    share = np.linspace(0.10, 0.25, concepts, dtype=np.float32)
    return scores, rng.random((tokens, concepts), dtype=np.float32) < share


def in_pieces(scores: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """As many whole columns at a time as `torch.nanquantile` takes."""
    columns, q = max(1, LIMIT // len(scores)), torch.from_numpy(LEVELS)
    found = []
    for k in range(0, scores.shape[1], columns):
        piece = scores[:, k : k + columns].double()
        piece[~labels[:, k : k + columns]] = torch.nan
        found.append(torch.nanquantile(piece, q, dim=0))
    return torch.cat(found, dim=1).numpy()


def one_call(scores: torch.Tensor, labels: torch.Tensor | None) -> np.ndarray:
    """Every delta of a concept from one call."""
    q = torch.from_numpy(LEVELS)
    return np.stack([torch.quantile(x, q).numpy() for x in _columns(scores, labels)], axis=1)


def call_a_delta(scores: torch.Tensor, labels: torch.Tensor | None) -> np.ndarray:
    """One call for each delta."""
    columns = _columns(scores, labels)
    return np.array([[float(torch.quantile(x, q)) for q in LEVELS] for x in columns]).T


def _columns(scores: torch.Tensor, labels: torch.Tensor | None):  # type: ignore[no-untyped-def]
    for k in range(scores.shape[1]):
        column = scores[:, k]
        yield (column if labels is None else column[labels[:, k]]).double()


def _all_tokens(scores: np.ndarray) -> np.ndarray:
    return np.stack([quantiles(column, LEVELS) for column in scores.T], axis=1)


def run() -> list[dict[str, object]]:
    """The opponents on one table, interleaved with ours."""
    scores, labels = table()
    s, y = torch.from_numpy(scores), torch.from_numpy(labels)
    ours = lambda: tail_thresholds(scores, labels)  # noqa: E731
    everything = lambda: _all_tokens(scores)  # noqa: E731
    return [
        _row("thresholds, 4M tokens, in pieces", ours, lambda: in_pieces(s, y), 3, ">= 20"),
        _row("thresholds, 4M tokens, by concept", ours, lambda: one_call(s, y), ROUNDS),
        _row("thresholds, 4M tokens, by concept and delta", ours, lambda: call_a_delta(s, y), 1),
        _row("quantiles, 4M tokens, no labels", everything, lambda: one_call(s, None), 2),
    ]


def _row(
    name: str, ours: Callable[[], np.ndarray], opponent: Callable[[], np.ndarray], rounds: int, aim: str = "-"
) -> dict[str, object]:
    equal = np.array_equal(ours(), opponent())
    ours_s, opponent_s = [], []
    for _ in range(rounds):
        for times, side in ((ours_s, ours), (opponent_s, opponent)):
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
    return {
        "name": name,
        "ours_s": min(ours_s),
        "opponent_s": min(opponent_s),
        "ratio": min(opponent_s) / min(ours_s),
        "aim": aim,
        "equal": equal,
        "note": f"12 deltas, 16 concepts, equal to the bit; {torch.get_num_threads()} threads",
    }
