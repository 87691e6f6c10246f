"""Asking an instruct model whether a text has a concept, and its answers in the detection table.

    p(yes) = P(Y) / (P(Y) + P(N)),   Y, N the words for yes and no, as first token of the reply

Two methods come of it. "Prompt" is the paper's: yes iff the reply written greedily contains "Yes"
(arXiv 2512.05038, prompting baseline), nothing is calibrated. "Prompt p(yes)" thresholds p(yes);
its threshold is searched on the calibration split as that of every other statistic, over the same
grid. `mass = P(Y) + P(N)` says how far the model answers at all.

Each concept is asked about on its own, with all concept names in sight, as in the paper (its exact
words are not published, these are ours). The text comes first and the concept last, so that all
questions about a text begin alike: the text is read once, its keys and values are repeated for
every concept, and what differs is run as one batch, padded on the left. That is exact up to
rounding: masked keys weigh nothing, and positions count real tokens. Prompts longer than a model's
sliding window are refused, since padding would shift the window. `reuse=False` runs whole prompts,
for models whose cache cannot be repeated.

What the answers do not show: what the model knows. Another wording gives other answers, and p(yes)
of a model that always says yes may still rank samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import position_of, users_line
from sa_plugin._face import face
from sa_plugin.data.concept_data import Split
from sa_plugin.data.sample import Sample
from sa_plugin.host.turns import borrow
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import FORMAT, Sheet, Shown, clean, exact, number

PROMPT, PROMPT_P = "Prompt", "Prompt p(yes)"
WORD = "Yes"
LEAST_MASS = 0.5


class AnswerMassWarning(UserWarning):
    """The model's reply begins with neither yes nor no more often than not."""


@dataclass(frozen=True, eq=False, repr=False)
class PromptAnswers(Shown):
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

    text_keys: ClassVar[tuple[str, ...]] = ("replies",)
    about: ClassVar[str] = (
        "p(yes) is conditional on a reply that begins with yes or no; another wording gives other answers."
    )

    def headline(self) -> str:
        """The model, the counts, and the mean answers."""
        said = f", {int(self.said_yes.sum())} times yes" if self.replies else ", no text"
        return (
            f"{self.model}, {len(self.samples)} samples x {len(self.concepts)} concepts, mean p(yes) "
            f"{self.p_yes.mean():.3f}, mean mass {self.mass.mean():.3f}{said}"
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

    @property
    def _positive(self) -> Bool[np.ndarray, "sample concept"]:
        return np.array([[c in sample.positive for c in self.concepts] for sample in self.samples])

    def sheets(self) -> tuple[Sheet, ...]:
        """Answers by concept, for samples that have it and for the others."""
        positive, lines = self._positive, []
        for c, concept in enumerate(self.concepts):
            mine = positive[:, c]
            cells = [concept, str(int(mine.sum()))]
            for part in (mine, ~mine):
                cells.append(number(float(self.p_yes[part, c].mean()) if part.any() else np.nan))
            cells.append(number(float(self.mass[:, c].mean())))
            cells.append(number(float(self.said_yes[:, c].mean())) if self.replies else "-")
            lines.append(cells)
        header = ["concept", "positive", "p(yes) positive", "p(yes) others", "mass", "said yes"]
        note = f"{self.model}, {self.tokens:,} tokens read. Question: {self.template!r}"
        return (Sheet(header, lines, "", [note]),)

    def rows(self) -> list[dict[str, Any]]:
        """p(yes) and mass of every question, and whether the reply says yes where one was written."""
        said = self.said_yes if self.replies else None
        tables = {"p_yes": self.p_yes, "mass": self.mass} | ({} if said is None else {"said_yes": said})
        return [
            exact(measure, float(table[n, c]), sample=sample.id, concept=concept)
            for measure, table in tables.items()
            for n, sample in enumerate(self.samples)
            for c, concept in enumerate(self.concepts)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Every answer."""
        names = ("concepts", "p_yes", "mass", "replies", "template", "model", "tokens")
        content = {name: getattr(self, name) for name in names}
        ids = [sample.id for sample in self.samples]
        return {"format": FORMAT, "kind": "PromptAnswers", "samples": ids, **clean(content)}

    def plot(self) -> Any:
        """p(yes) by concept: mean and middle 80 % of samples that have it, and of the others."""
        from sa_plugin.show import plots

        figure, ax = plots.new_figure(6.5, 1.4 + 0.34 * len(self.concepts))
        positive = self._positive
        for label, mark, colour, shift in (
            ("positive", positive, plots.IN_COLOUR, -0.14),
            ("others", ~positive, plots.OUT_COLOUR, 0.14),
        ):
            for c in range(len(self.concepts)):
                p = self.p_yes[mark[:, c], c]
                if len(p):
                    ax.plot(np.quantile(p, [0.1, 0.9]), [c + shift] * 2, color=colour, lw=1.5)
                    ax.plot(
                        [p.mean()], [c + shift], "o", color=colour, ms=4.5, label=label if c == 0 else None
                    )
        plots.rows(ax, self.concepts)
        ax.set_xlim(-0.02, 1.02)
        plots.words(ax, title=self.model, x="p(yes)")
        plots.legend(ax)
        plots.note(figure, "Bars: 10 to 90 % of samples, no interval. p(yes) is conditional on yes or no.")
        return figure


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
        at = [position_of(c, one.concepts, "the concepts asked about") for c in scores.tokens.concepts]
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
            raise ValueError(f"sample {sample.id!r} was asked about and {what}: score the same data.")
        rows.append(n)
    return rows


TEMPLATE = (
    "Passage: {text}\n\nConcepts: {concepts}.\n\n"
    "Question: Does the passage mention the concept {concept}? Answer Yes or No.\nAnswer:"
)
YES = ("Yes", "yes", " Yes", " yes", "YES")
NO = ("No", "no", " No", " no", "NO")


@face
class Wording(NamedTuple):
    """How a concept is asked about.

    Attributes:
        template: The question, with {text}, {concept} and {concepts}; what stands before {concept}
            is read once a text.
        chat: Whether the tokenizer's chat template goes around it.
        yes: Words for yes; those of one token count.
        no: Words for no.
    """

    template: str = TEMPLATE
    chat: bool = True
    yes: Sequence[str] = YES
    no: Sequence[str] = NO


WORDING = Wording()


def _check_template(template: str) -> None:
    """Refuse a template that does not ask.

    Raises:
        ValueError: It lacks a field, has an unknown one, or is malformed.
    """
    try:
        template.format(text="", concept="", concepts="")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the template has a field that is not known ({error}): use {{text}}, {{concept}} and "
            "{concepts}, and double the braces that are meant as such."
        ) from error
    for name in ("{text}", "{concept}"):
        if name not in template:
            raise ValueError(f"the template lacks {name}: it must name the text and the concept asked about.")


def questions(
    tokenizer: Any, sample: Sample, concepts: Sequence[str], template: str, chat: bool
) -> list[list[int]]:
    """Token ids of every question about one sample.

    Args:
        tokenizer: Of the model.
        sample: A text.
        concepts: One question each.
        template: With {text}, {concept} and {concepts}.
        chat: Whether the tokenizer's chat template goes around it.

    Raises:
        ValueError: The sample is an image.
    """
    if sample.image is not None:
        raise ValueError(f"sample {sample.id!r} is an image, and questions are about texts: leave it out.")
    names = ", ".join(concepts)
    found = []
    for concept in concepts:
        asked = template.format(text=sample.text, concept=concept, concepts=names)
        if chat:
            turn = [{"role": "user", "content": asked}]
            asked = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        # A chat template writes its special tokens itself.
        found.append(list(tokenizer(asked, add_special_tokens=not chat)["input_ids"]))
    return found


def _require_chat(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        ValueError: It has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, so the model is no instruct model: give one, or "
            "chat=False to ask in plain text."
        )


def answer_tokens(tokenizer: Any, yes: Sequence[str], no: Sequence[str]) -> tuple[list[int], list[int]]:
    """Ids of the words for yes and no that are one token each.

    Raises:
        ValueError: None of the words for yes, or for no, is one token, or a token is both.
    """
    found = []
    for what, words in (("yes", yes), ("no", no)):
        pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        ids = sorted({one[0] for one in pieces if len(one) == 1})
        if not ids:
            raise ValueError(
                f"none of the words for {what}, {list(words)}, is one token of this tokenizer: "
                f"give {what}=[...] with words that are."
            )
        found.append(ids)
    both = sorted(set(found[0]) & set(found[1]))
    if both:
        raise ValueError(f"tokens {both} stand for yes and for no: give words that differ.")
    return found[0], found[1]


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Number of tokens with which all rows begin; at least one is left of each."""
    most = min(len(row) for row in rows) - 1
    first = rows[0]
    for k in range(most):
        if any(row[k] != first[k] for row in rows):
            return k
    return most


REPLY_TOKENS = 8


def prompt(
    model: Any,
    tokenizer: Any,
    samples: Split | Sequence[Sample],
    concepts: Sequence[str],
    *,
    wording: Wording = WORDING,
    reply_tokens: int = REPLY_TOKENS,
    reuse: bool = True,
    progress: bool = True,
) -> PromptAnswers:
    """Ask a model whether each sample has each concept.

    Costs, for each sample, one forward pass of what its questions share, one of what they do not
    (a batch of one row a concept), and one of a token a row for each further token of a reply.

    Args:
        model: A causal language model of transformers, or a TransformerBridge of one; nnsight's
            `model._model` is one too.
        tokenizer: Its tokenizer.
        samples: Texts.
        concepts: Asked about one by one.
        wording: How it is asked, and which words are answers.
        reply_tokens: Tokens of the greedy reply; 0 writes none, which p(yes) does not need.
        reuse: Whether keys and values of the shared beginning are reused.
        progress: Whether to show a bar.

    Returns:
        Answers, for `with_answers`.

    Raises:
        TypeError: The model gives no logits.
        ValueError: A malformed template, no chat template, an image, no samples or concepts, no
            single token for yes or no, or a prompt longer than the model's sliding window.

    Warns:
        AnswerMassWarning: Replies begin with neither yes nor no more often than not.

    Example:
        >>> answers = prompt(model, tokenizer, data.test, data.concepts)  # doctest: +SKIP
    """
    rows = list(samples.samples if isinstance(samples, Split) else samples)
    names = tuple(concepts)
    if not rows or not names or reply_tokens < 0:
        raise ValueError(
            f"{len(rows)} samples, {len(names)} concepts and reply_tokens={reply_tokens}: give at "
            "least one sample and one concept, and 0 or more tokens."
        )
    template, chat, yes, no = wording
    _check_template(template)
    if chat:
        _require_chat(tokenizer)
    speaker = _Speaker(model, tokenizer, reply_tokens, reuse)
    words = answer_tokens(tokenizer, yes, no)
    p_yes, mass = np.zeros((2, len(rows), len(names)))
    replies: list[tuple[str, ...]] = []
    bar = tqdm(rows, desc="prompt", unit="sample", disable=not progress, leave=False)
    for n, sample in enumerate(bar):
        first, said = speaker.answer(questions(tokenizer, sample, names, template, chat))
        p_yes[n], mass[n] = probabilities(first, *words)
        if reply_tokens:
            replies.append(tuple(tokenizer.batch_decode(said, skip_special_tokens=True)))
    if mass.mean() < LEAST_MASS:
        warnings.warn(
            f"yes and no have {mass.mean():.2f} of the probability of a reply's first token on "
            "average: p(yes) is conditional on a rare event. Reword the template, or give the "
            "words this model answers with.",
            AnswerMassWarning,
            stacklevel=users_line(),
        )
    name = str(getattr(getattr(speaker.model, "config", None), "_name_or_path", "") or "model")
    return PromptAnswers(tuple(rows), names, p_yes, mass, tuple(replies), template, name, speaker.tokens)


def probabilities(
    logits: Float[Tensor, "row vocabulary"], yes: Sequence[int], no: Sequence[int]
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """p(yes) among yes and no, and the probability of both, in float64."""
    log_p = logits.double().log_softmax(-1)
    for_yes, for_no = log_p[:, list(yes)].logsumexp(-1), log_p[:, list(no)].logsumexp(-1)
    both = torch.logaddexp(for_yes, for_no)
    return (for_yes - both).exp().cpu().numpy(), both.exp().cpu().numpy()


class _Speaker:
    """A model that answers a batch of questions and counts what it reads."""

    def __init__(self, model: Any, tokenizer: Any, reply_tokens: int, reuse: bool) -> None:
        # A TransformerBridge holds the model it wraps; its hooks do not change what is computed.
        self.model = getattr(model, "original_model", model)
        self.reply_tokens, self.reuse, self.tokens = reply_tokens, reuse, 0
        self.device = next(self.model.parameters()).device
        end = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        self.ends = {tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])} - {None}
        self.pad = tokenizer.pad_token_id or 0

    def answer(self, rows: list[list[int]]) -> tuple[Float[Tensor, "row vocabulary"], list[Any]]:
        """Logits of the first token of each reply, and the tokens of the replies."""
        shared = shared_length(rows) if self.reuse else 0
        past, seen = None, torch.ones(len(rows), shared, dtype=torch.long)
        if shared:
            ids = torch.tensor([rows[0][:shared]])
            past = self._run(ids, torch.ones_like(ids), None).past_key_values
            past.batch_repeat_interleave(len(rows))
        ids, mask = self._padded([row[shared:] for row in rows])
        mask = torch.cat([seen, mask], dim=1)
        _check_window(self.model, mask.shape[1] + self.reply_tokens)
        out = self._run(ids, mask, past)
        first = out.logits[:, -1].float()
        steps = list(self._continue(first, mask, out))
        return first, torch.stack(steps, dim=1).tolist() if steps else []

    def _continue(
        self, logits: Float[Tensor, "row vocabulary"], mask: Int[Tensor, "row seen"], out: Any
    ) -> Iterator[Int[Tensor, " row"]]:
        """Greedy tokens; a row that has ended repeats its end."""
        done: Bool[Tensor, " row"] = torch.zeros(len(logits), dtype=torch.bool)
        end = next(iter(self.ends), self.pad)
        for step in range(self.reply_tokens):
            token = torch.where(done, end, logits.argmax(-1).cpu())
            yield token
            done |= torch.tensor([int(t) in self.ends for t in token])
            if done.all() or step == self.reply_tokens - 1:
                return
            mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], dim=1)
            out = self._run(token[:, None], mask, out.past_key_values)
            logits = out.logits[:, -1].float()

    def _run(self, ids: Int[Tensor, "row new"], mask: Int[Tensor, "row seen"], past: Any) -> Any:
        place = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        self.tokens += ids.numel()
        run = partial(
            self.model,
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            position_ids=place.to(self.device),
            past_key_values=past,
            use_cache=True,
        )
        # The model may have hosts, which another thread uses meanwhile.
        out = borrow(self.model, "prompt", run)
        if not hasattr(out, "logits"):
            raise TypeError(
                f"{type(self.model).__name__} gave a {type(out).__name__} without logits: give a "
                "causal language model, such as AutoModelForCausalLM.from_pretrained(...)."
            )
        return out

    def _padded(
        self, rows: Sequence[Sequence[int]]
    ) -> tuple[Int[Tensor, "row width"], Int[Tensor, "row width"]]:
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for n, row in enumerate(rows):
            ids[n, width - len(row) :] = torch.tensor(row)
            mask[n, width - len(row) :] = 1
        return ids, mask


def _check_window(model: Any, tokens: int) -> None:
    config = getattr(model, "config", None)
    window = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if sliding and window and tokens > window:
        raise ValueError(
            f"a prompt and its reply take {tokens} tokens, and this model's sliding window is "
            f"{window}: padding would shift the window. Shorten the texts or the template."
        )
