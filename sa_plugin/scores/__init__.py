"""Concept scores of every kept token: the one pass that the questions share."""

from typing import TYPE_CHECKING

from sa_plugin._face import face_room
from sa_plugin._lazy import lazily
from sa_plugin.scores.score import OtherPrecisionWarning, score, score_blocks, score_samples
from sa_plugin.scores.table import ScoreTable

if TYPE_CHECKING:
    from sa_plugin.scores.prompting import (
        PROMPT,
        PROMPT_P,
        TEMPLATE,
        AnswerMassWarning,
        PromptAnswers,
        Wording,
        answer_tokens,
        probabilities,
        prompt,
        questions,
        shared_length,
        with_answers,
    )
    from sa_plugin.scores.pushdown import sample_maxima, scores_above, tail_histogram
    from sa_plugin.scores.trained import PROBES, train_poolings
else:
    __getattr__ = lazily(
        __name__,
        {
            "pushdown": ("sample_maxima", "scores_above", "tail_histogram"),
            "trained": ("PROBES", "train_poolings"),
            "prompting": (
                "PROMPT",
                "PROMPT_P",
                "TEMPLATE",
                "AnswerMassWarning",
                "PromptAnswers",
                "Wording",
                "answer_tokens",
                "probabilities",
                "prompt",
                "questions",
                "shared_length",
                "with_answers",
            ),
        },
    )


__all__ = [
    "PROBES",
    "PROMPT",
    "PROMPT_P",
    "TEMPLATE",
    "AnswerMassWarning",
    "OtherPrecisionWarning",
    "PromptAnswers",
    "ScoreTable",
    "Wording",
    "answer_tokens",
    "probabilities",
    "prompt",
    "questions",
    "sample_maxima",
    "score",
    "score_blocks",
    "score_samples",
    "scores_above",
    "shared_length",
    "tail_histogram",
    "train_poolings",
    "with_answers",
]

face_room(globals())
