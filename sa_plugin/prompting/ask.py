"""Asking an instruct model: every question about a text from one reading of it.

All questions about a text begin alike, so the text is read once, its keys and values are repeated
for every concept, and what differs is run as one batch, padded on the left. That is exact up to
rounding: masked keys weigh nothing, and positions count real tokens. Prompts longer than a model's
sliding window are refused, since padding would shift the window. `reuse=False` runs whole prompts,
for models whose cache cannot be repeated.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin.data import Sample, Split
from sa_plugin.prompting.answers import LEAST_MASS, AnswerMassWarning, PromptAnswers
from sa_plugin.prompting.question import (
    NO,
    TEMPLATE,
    YES,
    answer_tokens,
    check_template,
    questions,
    require_chat,
    shared_length,
)

REPLY_TOKENS = 8


def prompt(
    model: Any,
    tokenizer: Any,
    samples: Split | Sequence[Sample],
    concepts: Sequence[str],
    *,
    template: str = TEMPLATE,
    chat: bool = True,
    yes: Sequence[str] = YES,
    no: Sequence[str] = NO,
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
        template: The question, with {text}, {concept} and {concepts}; what stands before {concept}
            is read once a text.
        chat: Whether the tokenizer's chat template goes around it.
        yes: Words for yes; those of one token count.
        no: Words for no.
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
    check_template(template)
    if chat:
        require_chat(tokenizer)
    speaker = _Speaker(model, tokenizer, reply_tokens, reuse)
    words = answer_tokens(tokenizer, yes, no)
    p_yes, mass = np.zeros((2, len(rows), len(names)))
    replies: list[tuple[str, ...]] = []
    bar = tqdm(rows, desc="prompt", unit="sample", disable=not progress, leave=False)
    with torch.no_grad():
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
            stacklevel=2,
        )
    name = str(getattr(getattr(speaker.model, "config", None), "_name_or_path", "") or "model")
    return PromptAnswers(
        tuple(rows), names, p_yes, mass, tuple(replies), template, name, speaker.tokens
    )


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
        out = self.model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device),
            position_ids=place.to(self.device), past_key_values=past, use_cache=True,
        )  # fmt: skip
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
