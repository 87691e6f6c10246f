"""Answers to prompts, and their way into the detection table.

    p(yes) = P(Y) / (P(Y) + P(N)),   Y, N the words for yes and no, as first token of the reply

Two methods come of it. "Prompt" is the paper's: yes iff the reply written greedily contains "Yes"
(arXiv 2512.05038, prompting baseline), nothing is calibrated. "Prompt p(yes)" thresholds p(yes);
its threshold is searched on the calibration split as that of every other statistic, over the same
grid. `mass = P(Y) + P(N)` says how far the model answers at all.

What they do not show: what the model knows. Another wording gives other answers, and p(yes) of a
model that always says yes may still rank samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sa_plugin.data import Sample
from sa_plugin.detection.guard import place
from sa_plugin.detection.printing import frame
from sa_plugin.scores import ScoreTable

PROMPT, PROMPT_P = "Prompt", "Prompt p(yes)"
WORD = "Yes"
LEAST_MASS = 0.5


class AnswerMassWarning(UserWarning):
    """The model's reply begins with neither yes nor no more often than not."""


@dataclass(frozen=True, eq=False)
class PromptAnswers:
    """What an instruct model said of every sample and concept.

    Attributes:
        samples: Asked about.
        concepts: Asked about.
        p_yes: Probability of yes, given that the reply begins with yes or no.
        mass: Probability that it begins with either.
        replies: Greedy replies, a row a sample; empty where none was written.
        template: The question.
        model: Name.
        tokens: Tokens run through the model, padding included.
    """

    samples: tuple[Sample, ...]
    concepts: tuple[str, ...]
    p_yes: Float[np.ndarray, "sample concept"]
    mass: Float[np.ndarray, "sample concept"]
    replies: tuple[tuple[str, ...], ...]
    template: str
    model: str
    tokens: int

    def __repr__(self) -> str:
        said = f", {int(self.said_yes.sum())} times yes" if self.replies else ", no text"
        return (
            f"PromptAnswers({self.model}, {len(self.samples)} samples x {len(self.concepts)} "
            f"concepts, mean p(yes) {self.p_yes.mean():.3f}, mean mass {self.mass.mean():.3f}"
            f"{said})"
        )

    @property
    def said_yes(self) -> Bool[np.ndarray, "sample concept"]:
        """Whether the reply contains "Yes".

        Raises:
            ValueError: No reply was written.
        """
        if not self.replies:
            raise ValueError("no reply was written: ask with reply_tokens=8, say.")
        return np.array([[WORD in reply for reply in row] for row in self.replies])

    def table(self) -> Any:
        """One row a question: a pandas DataFrame where pandas is installed."""
        rows = []
        for n, sample in enumerate(self.samples):
            for c, concept in enumerate(self.concepts):
                row: dict[str, Any] = {"sample": sample.id, "concept": concept}
                row |= {"p_yes": float(self.p_yes[n, c]), "mass": float(self.mass[n, c])}
                row["reply"] = self.replies[n][c] if self.replies else ""
                rows.append(row)
        return frame(rows)


def with_answers(scores: ScoreTable, *answers: PromptAnswers) -> ScoreTable:
    """A score table that carries answers as methods "Prompt p(yes)" and "Prompt".

    Args:
        scores: Of the samples that were asked about.
        *answers: Of the calibration split and of the test split, say; replies are needed for
            "Prompt" alone, and for the samples that are evaluated alone.

    Returns:
        The table for `calibrate(..., scores=...)` and `Detector.evaluate(..., scores=...)`.

    Raises:
        ValueError: A sample was not scored or has another text, a concept is not known or was not
            asked about, or the answers are of several models or questions.
    """
    if not answers:
        raise ValueError("no answers: give the PromptAnswers of one split or several.")
    if len({(one.model, one.template) for one in answers}) > 1:
        raise ValueError("the answers are of several models or templates: give those of one.")
    shape = (scores.tokens.n_samples, len(scores.tokens.concepts))
    p_yes, said = np.full((2, *shape), np.nan)
    for one in answers:
        rows = _rows(scores, one.samples)
        at = [place(c, one.concepts, "the concepts asked about") for c in scores.tokens.concepts]
        p_yes[rows] = one.p_yes[:, at]
        if one.replies:
            said[rows] = one.said_yes[:, at]
    table = scores.with_statistic(PROMPT_P, p_yes)
    if np.isfinite(said).any():
        table = table.with_statistic(PROMPT, said, threshold=0.5)
    return table


def _rows(scores: ScoreTable, samples: Sequence[Sample]) -> list[int]:
    known = {sample.id: n for n, sample in enumerate(scores.tokens.samples)}
    rows = []
    for sample in samples:
        n = known.get(sample.id)
        if n is None or scores.tokens.samples[n].content != sample.content:
            what = "was not scored" if n is None else "has another text in the scores"
            raise ValueError(
                f"sample {sample.id!r} was asked about and {what}: score the same data."
            )
        rows.append(n)
    return rows
