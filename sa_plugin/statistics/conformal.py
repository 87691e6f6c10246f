"""What rate of false alarms can be promised, from documents that chose nothing.

n documents without the concept (the guard) are exchangeable with a new one, document by document; a
document has samples, a sample has tokens, which are not exchangeable at all. M_j is the highest score
of document j, an alarm is a score strictly above tau.

    document    tau = M_(k), the k-th smallest, k = n + 1 - floor(alpha (n + 1)):
                P(M_new > tau) <= alpha, over the guard's documents and the new one
                (Vovk, Gammerman and Shafer 2005)
    document, with confidence
                the smallest k with P(Beta(n - k + 1, k) <= alpha) >= confidence: with that
                probability over the guard's documents P(M_new > tau | tau) <= alpha (Wilks 1941)
    sample      the smallest tau with (sum_j share_j(tau) + 1) / (n + 1) <= alpha, share_j of document
                j's samples that alarm: a random sample of a new document does with probability at most
                alpha. Each document weighs 1 / (n + 1), and so does +infinity (hierarchical conformal
                prediction: Dunn, Wasserman and Ramdas 2023; Lee, Barber and Willett 2023)
    tokens      the smallest tau with (sum_j L_j(tau) + B) / (n + 1) <= alpha, L_j alarms by tokens of
                document j, B the most that L can be: E L_new <= alpha (conformal risk control:
                Angelopoulos, Bates, Fisch, Lei and Schuster 2024)

All but the second are one formula: a loss of a document that falls as tau rises, in [0, B]. Of tokens
B = 1. Counted as episodes (runs of neighbouring alarms, at most c of a document), with documents of m
tokens or more, B = c / m. Episodes are not monotone, since a run breaks up as tau rises: what is bounded is
the most of them at any threshold from tau upwards, which is no less.

The highest score so far of a document that is still being written never exceeds its M: `document` holds at
every step of a generation.

p of a document whose highest score is s, and of a random token of a new document that scores s:

    p_document(s) = (1 + #{j : M_j >= s}) / (n + 1)
    p_token(s) = (1 + sum_j 1/m_j #{i : s_ji >= s}) / (n + 1)

neither below 1 / (n + 1). A document alarms under `document` iff its p is at most alpha. The p of a token
is not that of the highest of many.

False discoveries: p of documents under one guard are positively dependent (PRDS), so Benjamini and
Hochberg's step-up holds over documents of one concept (Bates, Candes, Lei, Romano and Sesia 2023); over
concepts of one document nothing is known of dependence, and Benjamini and Yekutieli's holds. Over tokens of
a document there is none. Because p has a floor, the step-up at q can call nothing unless a share
1 / ((n + 1) q) of all tests lies on it.

What none of this shows: anything of documents of another source, length or language than the guard's, of
documents that were chosen because they alarm, or of how many positives are found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy.special import betainc

from sa_plugin._face import face

PromiseKind = Literal["document", "sample", "tokens"]
# Sums of 1 / m_j round; a threshold is where they stand, not a digit further.
_ROUNDING = 1e-9


@face
@dataclass(frozen=True)
class Promise:
    """A rate of false alarms that `calibrate` is to promise, by one of four procedures.

    Args:
        kind: "document": the share of documents without the concept that ever alarm. "sample": the chance
            that a random sample of such a document does. "tokens": its alarms by token.
        alpha: The rate: a share, or alarms by token (.001 is one in 1,000 tokens).
        confidence: Of "document": how surely the rate of this very threshold is at most alpha. Without it
            the mean over all calibrations is, and about half of the thresholds lie above.
        lengths: Shortest and longest text, in kept tokens (of a document; of a sample for "sample"), for
            which it is promised; further numbers in between part bands, in each of which it holds by
            itself. By default up to the longest guard document.
        episodes: Of "tokens": count runs of neighbouring alarms, at most so many of a document, and not
            tokens. Needs `lengths`.
        concepts: For which it is made; the thresholds of others stay as the search chose them. By default
            all. It holds for each by itself: any of ten alarms up to ten times as often.

    Raises:
        ValueError: A value is out of its range, does not belong to the kind, or promises nothing.

    Example:
        >>> Promise("document", 0.05, confidence=0.95).least_documents
        59
        >>> Promise("tokens", 0.001).least_documents
        999
    """

    kind: PromiseKind
    alpha: float
    confidence: float | None = None
    lengths: tuple[int, ...] | None = None
    episodes: int | None = None
    concepts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        unit = "share of tokens" if self.kind == "tokens" else f"share of {self.kind}s"
        if not 0 < self.alpha < 1:
            raise ValueError(
                f"alpha is {self.alpha:g}: expected a number between 0 and 1, both left out, the {unit} "
                "that may alarm; give 0.05 for one in twenty."
            )
        if self.confidence is not None and self.kind != "document":
            raise ValueError(
                f"confidence is {self.confidence:g} with kind {self.kind!r}, which holds on average over "
                "calibrations: leave it out, or promise 'document'."
            )
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise ValueError(
                f"confidence is {self.confidence:g}: expected a number between 0 and 1, both left out; give "
                "0.95, or leave it out."
            )
        self._check_lengths()
        if self.concepts is not None and not self.concepts:
            raise ValueError("concepts is empty: name at least one, or leave it out for all.")
        if self.episodes is not None:
            self._check_episodes(self.episodes)
        if self.alpha >= self.most:
            raise ValueError(
                f"alpha is {self.alpha:g}, but {self.episodes} episode(s) in {self.shortest} tokens or more "
                f"are at most {self.most:g} by token: always alarming would keep it. Give less."
            )

    def _check_lengths(self) -> None:
        edges = self.lengths
        if edges is None:
            return
        if len(edges) < 2 or edges[0] < 1 or list(edges) != sorted(set(edges)):
            raise ValueError(
                f"lengths is {edges}: expected the shortest and the longest number of tokens, 1 or more, "
                "ascending, such as (1, 512)."
            )
        if self.kind == "sample" and len(edges) > 2:
            raise ValueError(
                f"lengths is {edges} with kind 'sample', which has one range: give its two ends, or make a "
                "detector for each band."
            )

    def _check_episodes(self, most: int) -> None:
        if self.kind != "tokens":
            raise ValueError(f"episodes is {most} with kind {self.kind!r}: only 'tokens' counts alarms.")
        if most < 1:
            raise ValueError(f"episodes is {most}: expected 1 or more, the most that a document can have.")
        if self.lengths is None:
            raise ValueError(
                f"episodes is {most} without lengths: the rate of {most} in a document depends on the "
                "shortest one; give lengths=(shortest, longest)."
            )

    @property
    def shortest(self) -> int:
        """Tokens of the shortest text."""
        return 1 if self.lengths is None else self.lengths[0]

    @property
    def most(self) -> float:
        """The most that the loss of a document can be: B of the formulas."""
        return 1.0 if self.episodes is None else min(1.0, self.episodes / self.shortest)

    @property
    def least_documents(self) -> int:
        """How many guard documents it takes, in each band of lengths."""
        if self.confidence is not None:
            return math.ceil(math.log(1 - self.confidence) / math.log(1 - self.alpha) - _ROUNDING)
        return math.ceil(self.most / self.alpha - 1 - _ROUNDING)

    @property
    def words(self) -> str:
        """The promise as a sentence."""
        rate = f"at most {self.alpha:g}"
        if self.confidence is not None:
            said = (
                f"a new document without the concept alarms at all with probability {rate}: so of this "
                f"threshold, with confidence {self.confidence:g}"
            )
        elif self.kind == "document":
            said = (
                f"a new document without the concept alarms at all with probability {rate}, on average over "
                "calibrations"
            )
        elif self.kind == "sample":
            said = (
                f"a random sample of a new document without the concept alarms with probability {rate}, on "
                "average over calibrations"
            )
        else:
            what = "alarms" if self.episodes is None else f"episodes (at most {self.episodes} counted)"
            said = (
                f"a new document without the concept has {rate} {what} by token, on average over documents "
                "and calibrations"
            )
        return said

    def bands(self, longest: int) -> list[tuple[int, int]]:
        """Shortest and longest text of every band.

        Args:
            longest: Where nothing is said, what the guard's documents reach.
        """
        edges = self.lengths or (1, longest)
        return [(a if k == 0 else a + 1, b) for k, (a, b) in enumerate(pairwise(edges))]


class Losses(NamedTuple):
    """Losses of documents as a function of the threshold: below each value the loss is higher by so much.

    Attributes:
        value: Where the loss falls to: it counts for thresholds below.
        loss: By how much.
    """

    value: Float64[np.ndarray, " step"]
    loss: Float64[np.ndarray, " step"]


def _require_share(**named: float) -> None:
    for name, value in named.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value:g}: expected a number between 0 and 1, both left out.")


def confident_rank(n: int, alpha: float, confidence: float) -> int | None:
    """Which of n document maxima, counted from the smallest, is the threshold; None where n is too small.

    Example:
        >>> confident_rank(59, 0.05, 0.95), confident_rank(58, 0.05, 0.95)
        (59, None)
    """
    _require_share(alpha=alpha, confidence=confidence)
    k = np.arange(1, n + 1)
    enough = np.flatnonzero(betainc(n - k + 1, k, alpha) >= confidence - 1e-12)
    return int(k[enough[0]]) if len(enough) else None


def share_losses(value: Float[np.ndarray, " unit"], document: Int[np.ndarray, " unit"]) -> Losses:
    """The share of each document's units above a threshold.

    Args:
        value: Of each unit: the maximum of a document or sample, the score of a token.
        document: Which one it is of.
    """
    _, home, size = np.unique(document, return_inverse=True, return_counts=True)
    return Losses(np.asarray(value, np.float64), 1.0 / size[home])


def episode_losses(
    score: Float[np.ndarray, " token"],
    sample: Int[np.ndarray, " token"],
    document: Int[np.ndarray, " token"],
    most: int,
) -> Losses:
    """Runs of neighbouring tokens above a threshold, at most so many of a document, by its tokens.

    Of thresholds from tau upwards the most counts, since the number of runs is not monotone. Of n tokens
    above tau, of which so many have their right neighbour above too, n minus these are runs:

        runs(tau) = #{i : s_i > tau} - #{i : min(s_i, s_i+1) > tau}

    Args:
        score: Of tokens in their order.
        sample: Of each; runs do not cross.
        document: Of each.
        most: Of a document.
    """
    if most < 1:
        raise ValueError(f"most is {most}: expected 1 or more, the most that a document can have.")
    score = np.asarray(score, np.float64)
    found: list[tuple[float, float]] = []
    # What a token and its right neighbour both reach; tokens at the end of a sample have none.
    both = np.append(np.minimum(score[1:], score[:-1]), 0.0)
    joint = np.append(sample[1:] == sample[:-1], False)
    order = np.argsort(document, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(document[order])) + 1):
        levels = np.unique(score[rows])[::-1]
        runs = _at_least(score[rows], levels) - _at_least(both[rows[joint[rows]]], levels)
        counted = np.minimum(np.maximum.accumulate(runs), most)
        steps = np.diff(counted, prepend=0)
        found += [(v, d / len(rows)) for v, d in zip(levels[steps > 0], steps[steps > 0], strict=True)]
    value, loss = zip(*found, strict=True)
    return Losses(np.array(value), np.array(loss))


def _at_least(values: Float64[np.ndarray, " n"], levels: Float64[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    return len(values) - np.searchsorted(np.sort(values), levels, side="left")


def risk_threshold(losses: Losses, n: int, alpha: float, most: float = 1.0) -> float:
    """The smallest score above which alarms cost at most alpha, in mean over a new document.

    Args:
        losses: Of the n documents.
        n: Documents.
        alpha: Of the loss.
        most: The most that the loss of a document can be.

    Returns:
        The value that alarms lie strictly above; +inf where n is too small, -inf where anything would do.

    Example:
        >>> risk_threshold(share_losses(np.arange(19.0), np.arange(19)), 19, 0.05)
        18.0
    """
    _require_share(alpha=alpha)
    if not 0 < most <= 1:
        raise ValueError(f"most is {most:g}: expected a number above 0 and at most 1, the largest loss.")
    order = np.argsort(-losses.value, kind="stable")
    value, below = losses.value[order], np.cumsum(losses.loss[order])
    # The loss of a threshold at a value counts what lies strictly above it.
    first = np.flatnonzero(np.diff(value, prepend=np.inf) != 0)
    above = np.concatenate([[0.0], below])[first]
    left = alpha * (n + 1) - most + _ROUNDING
    if left < 0:
        return math.inf
    if len(below) and below[-1] <= left:
        return -math.inf
    return float(value[first[np.flatnonzero(above <= left)[-1]]])


def document_threshold(
    maxima: Float[np.ndarray, " document"], alpha: float, confidence: float | None = None
) -> float:
    """The order statistic of document maxima that keeps the promise `document`.

    Returns:
        The value that alarms lie strictly above; +inf where there are too few documents.

    Example:
        >>> document_threshold(np.arange(59.0), 0.05, confidence=0.95)
        58.0
    """
    _require_share(alpha=alpha)
    n = len(maxima)
    rank: int | None = n + 1 - math.floor(alpha * (n + 1) + _ROUNDING)
    if confidence is not None:
        rank = confident_rank(n, alpha, confidence)
    if rank is None or rank > n:
        return math.inf
    return float(np.sort(np.asarray(maxima, np.float64))[rank - 1])


def p_of_documents(
    scores: Float[np.ndarray, "*shape"], maxima: Float[np.ndarray, " document"]
) -> Float64[np.ndarray, "*shape"]:
    """Of documents with these highest scores: chance that one like the guard's reaches as high.

    Example:
        >>> p_of_documents(np.array([0.5, 9.0]), np.arange(4.0)).tolist()
        [0.8, 0.2]
    """
    values = np.asarray(scores, np.float64)
    reached = len(maxima) - np.searchsorted(np.sort(np.asarray(maxima, np.float64)), values, side="left")
    return np.asarray((1.0 + reached) / (len(maxima) + 1.0))


def p_of_tokens(scores: Float[np.ndarray, "*shape"], losses: Losses, n: int) -> Float64[np.ndarray, "*shape"]:
    """Of random tokens of a new document with these scores.

    Args:
        scores: Of tokens.
        losses: `share_losses` of the guard's tokens, or a `thinned` form of them.
        n: Guard documents.
    """
    order = np.argsort(losses.value, kind="stable")
    value = losses.value[order]
    reached = np.append(np.cumsum(losses.loss[order][::-1])[::-1], 0.0)
    at = np.searchsorted(value, np.asarray(scores, np.float64), side="left")
    return np.asarray(np.minimum((1.0 + reached[at]) / (n + 1.0), 1.0))


def thinned(losses: Losses, points: int = 512) -> Losses:
    """Fewer steps, that make no p smaller: the highest half as they are, the rest in groups.

    The loss of a group stands at its highest value, so that it counts for every score below.

    Args:
        losses: To be thinned.
        points: At most so many are left.
    """
    order = np.argsort(-losses.value, kind="stable")
    value, loss = losses.value[order], losses.loss[order]
    if len(value) <= points:
        return Losses(value, loss)
    exact = points // 2
    # Beyond the highest half, groups whose ends grow by one ratio: p is off by that ratio at most.
    ends = np.geomspace(exact, len(value), points - exact + 1)[:-1]
    starts = np.unique(np.concatenate([np.arange(exact), ends.astype(int)]))
    return Losses(value[starts], np.add.reduceat(loss, starts))


def discoveries(
    p: Float[np.ndarray, " test"], q: float, *, floor: float, independent: bool = True
) -> Bool[np.ndarray, " test"]:
    """Which tests are called so that at most a share q of the calls is false, in expectation.

    Args:
        p: Conformal p-values.
        q: The share.
        floor: The smallest that a p can be, 1 / (n + 1) of n guard documents.
        independent: Independent or positively dependent (documents of one concept): Benjamini and
            Hochberg. Otherwise (concepts of a document) Benjamini and Yekutieli.

    Raises:
        ValueError: Nothing is called because p cannot be small enough; the text has the number of
            documents that would do.

    Example:
        >>> discoveries(np.array([0.01, 0.5, 0.9]), 0.1, floor=0.01).tolist()
        [True, False, False]
    """
    _require_share(q=q)
    if not 0 < floor <= 1:
        raise ValueError(f"floor is {floor:g}: expected 1 / (n + 1) of n guard documents.")
    tests = len(p)
    level = q if independent else q / float((1.0 / np.arange(1, tests + 1)).sum())
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[order] <= level * np.arange(1, tests + 1) / tests + 1e-12)
    called = np.zeros(tests, dtype=bool)
    if len(passed):
        called[order[: passed[-1] + 1]] = True
        return called
    lowest = int((p <= floor + 1e-12).sum())
    share = floor / level
    if share > 1 or lowest:
        could = tests if share > 1 and not lowest else lowest
        raise ValueError(
            f"at q {q:g} with {round(1 / floor) - 1} guard documents a share of {share:.3g} of the {tests} "
            f"tests must lie at the smallest p, {floor:.3g}, for any to be called, and {lowest} do: no p can "
            f"be small enough. Calibrate with {math.ceil(tests / (could * level) - 1 - _ROUNDING)} guard "
            "documents, or raise q."
        )
    return called
