"""The prompting baseline: an instruct model is asked whether a text has a concept."""

from sa_plugin.prompting.answers import (
    PROMPT,
    PROMPT_P,
    AnswerMassWarning,
    PromptAnswers,
    with_answers,
)
from sa_plugin.prompting.ask import prompt
from sa_plugin.prompting.question import TEMPLATE

__all__ = [
    "PROMPT",
    "PROMPT_P",
    "TEMPLATE",
    "AnswerMassWarning",
    "PromptAnswers",
    "prompt",
    "with_answers",
]
