"""A monitor: the hits of a detector, token by token, while a model generates.

At every step each new token is scored at the layer that its concept's calibration chose, by the same
function that scores a text afterwards. A hit is a score at or above the concept's threshold. What leaves
the device at a step is one tensor, whatever the number of concepts.

A detector leaves attention sinks out: tokens whose norm is above ten times the *median of their text*,
which is not known before the text is finished. While it is spoken the median is that of the tokens so
far, the token itself included, and the first token of a decoder without BOS is left out, as ever. So
`hits` never look ahead, and may differ from what the finished text has; `superactivators()` judges the
text so far by the exact rule, from the norms that were kept, without another pass. In texts of more
than a few tokens the two rarely differ, and the sheet counts where they do.

What a score is of: the residual of the token that was run. The token chosen last is never run, so it has
no score; and what ends a generation (`stop=`) is asked when the next token has been chosen already, so
that one token more comes out than was scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from sa_plugin._check import position_of
from sa_plugin._face import face
from sa_plugin.data.loose import loose_sample
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.detection.find import SuperActivators, find
from sa_plugin.detection.items import ScoredSamples
from sa_plugin.generation.running import Generation, following, grow, is_special, require_local
from sa_plugin.generation.watching import Hit, Watching, fed
from sa_plugin.host import reducers
from sa_plugin.host.protocol import BulkHost, Host, Site
from sa_plugin.passes.layout import TokenTable
from sa_plugin.scores.score import check_origin
from sa_plugin.show.result import FORMAT, Sheet, Shown, clean, exact, noun_count, number

SHOWN_HITS = 40
"""Rows of the sheet; the table has all."""


class Monitor(Shown):
    """The hits of a detector in what a model generates; made by `watch`.

    Attributes:
        detector: Whose concepts are watched.
        concepts: Which of them.
    """

    text_keys: ClassVar[tuple[str, ...]] = ("text",)
    about: ClassVar[str] = (
        "A hit says that a score reached a threshold, not that the text is about the concept: how often that "
        "is so, Detector.evaluate says, on texts of the detector's own data, and not of this model's."
    )

    def __init__(self, watching: Watching) -> None:
        self.detector, self.concepts, self._watching = watching.detector, watching.concepts, watching
        self._fed: Generation | None = None

    @property
    def drift(self) -> str:
        """Of the detector's bank."""
        return self.detector.bank.drift

    @property
    def hits(self) -> tuple[Hit, ...]:
        """In the order in which they happened: of the text so far, which never looks ahead."""
        return tuple(self._watching.hits)

    @property
    def n_tokens(self) -> int:
        """Tokens of text that were scored."""
        return self._watching.n_tokens

    @property
    def n_sequences(self) -> int:
        """Sequences that were seen."""
        return self._watching.n_sequences

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is read of every pass, and what `feed` takes."""
        return tuple(place.site for place in self._watching.places)

    def feed(
        self,
        activations: Mapping[Any, Tensor],
        ids: Int[Tensor, "row new"],
        *,
        past: int = 0,
        mask: Shaped[Tensor, "row new"] | None = None,
        scored: bool = False,
    ) -> list[Hit]:
        """Score the new tokens of a loop of your own.

        Args:
            activations: Of the new tokens alone, `[row, new, d_model]`, by block index (at the detector's
                hook point) or by `Site`; `sites` says which are needed.
            ids: Their token ids.
            past: Tokens of these sequences that were fed before, padding included; 0 begins new ones.
            mask: 0 where a new token is padding; by default none is.
            scored: Whether `activations` are what `sa_nnsight.trace_ops.seen` made of them beside the model,
                `[row, new, number]`.

        Returns:
            The hits among them.

        Raises:
            ValueError: A layer is lacking, shapes do not fit, or `past` is not what was fed.
        """
        rows, new = ids.shape
        generation = self._fed if past else None
        before = 0 if self._fed is None else self._fed.done
        if past not in (0, before):
            raise ValueError(
                f"past is {past}, and {before} tokens of these sequences were fed before: feed every token "
                "once, in order; past=0 begins new sequences."
            )
        if generation is not None and rows != generation.rows:
            raise ValueError(
                f"ids have {rows} rows, the sequences that were fed before {generation.rows}: keep their "
                "order."
            )
        watching, point = self._watching, self.detector.bank.hook_point
        watching.found = {
            one.site: fed(one, activations, point, (rows, new), scored) for one in watching.places
        }
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
        valid = real & ~is_special(watching.encode, ids)
        if generation is None:
            generation = self._fed = Generation(len(watching.runs), new, ids, real, valid)
        else:
            grow(generation, torch.cat([generation.ids, ids.to(generation.ids.device)], dim=1), real, valid)
            generation.start = generation.done
        told = len(watching.hits)
        watching.passed(generation)
        generation.done = generation.valid.shape[1]
        return watching.hits[told:]

    def superactivators(self) -> SuperActivators:
        """The hits of the texts as they are now, by the exact rule for attention sinks; no pass is run.

        They are those that `detector.find` gives for the finished token ids, but for the last token, which
        is never run.

        Raises:
            ValueError: Nothing was seen.
        """
        if not self._watching.runs:
            raise ValueError("nothing was generated or fed yet: there is no text to find anything in.")
        named = self._watching.encode.named
        samples: list[Sample] = []
        sample_of, position, offsets, scores = [], [], [], []
        for run in self._watching.runs:
            whole = run.whole()
            keep = self._evidence(whole)
            for row, tokens in enumerate(whole):
                real = tokens[:, -2] > 0
                ids = tokens[real, -3].astype(np.int64).tolist() if run.final is None else run.final[row]
                kept = keep[row][real]
                if not kept.any():
                    continue
                sample = loose_sample(ids, f"sequence {run.first + row}", named)
                spans = np.array(sample.source.spans, dtype=np.int64)  # type: ignore[union-attr]
                at = np.flatnonzero(kept)
                sample_of += [len(samples)] * len(at)
                position.append(at)
                offsets.append(spans[at])
                scores.append(tokens[real][at][:, self._watching.columns])
                samples.append(sample)
        known = self.detector.concepts
        table = np.full((len(sample_of), len(known)), -np.inf)
        table[:, self._watching.at] = np.concatenate(scores) if scores else 0
        tokens = TokenTable(
            tuple(samples),
            ("",) * len(samples),
            known,
            np.array(sample_of, dtype=np.int64),
            np.concatenate(position) if position else np.zeros(0, dtype=np.int64),
            np.concatenate(offsets) if offsets else np.zeros((0, 2), dtype=np.int64),
            np.zeros(table.shape, dtype=bool),
            {},
        )
        return find(ScoredSamples(self.detector, tokens, table, labelled=False), self.concepts)

    def _evidence(self, whole: Float[np.ndarray, "row column number"]) -> Bool[np.ndarray, "row column"]:
        """Which tokens are evidence, by the rule of a finished text."""
        valid, norms = (
            torch.from_numpy(whole[..., -1] > 0),
            torch.from_numpy(whole[..., self._watching.norms]),
        )
        found = reducers.keep_tokens(
            valid, norms.permute(2, 0, 1), self._watching.sinks, self._watching.drops_first
        )
        return np.asarray(found.numpy())

    def headline(self) -> str:
        """How much was seen, and how many hits of which concepts."""
        counts = Counter(hit.concept for hit in self.hits)
        said = ", ".join(f"{name} {n}" for name, n in counts.most_common(4)) or "none"
        more = ", ..." if len(counts) > 4 else ""
        seen = f"{noun_count(self.n_sequences, 'sequence')}, {noun_count(self.n_tokens, 'token')}"
        return f"{seen}, {noun_count(len(self.hits), 'hit')}: {said}{more}"

    def sheets(self) -> tuple[Sheet, ...]:
        """The hits, one a row."""
        lines = [
            [
                str(hit.sequence),
                "prompt" if hit.step == 0 else str(hit.step),
                repr(hit.text),
                hit.concept,
                str(hit.layer),
                number(hit.score),
                number(hit.threshold),
                "-" if hit.p_value is None else number(hit.p_value),
            ]
            for hit in self.hits[:SHOWN_HITS]
        ]
        notes = [*self._notes()]
        if len(self.hits) > SHOWN_HITS:
            notes.append(f"{len(self.hits) - SHOWN_HITS} more hits: .table() has all.")
        header = ["sequence", "step", "token", "concept", "layer", "score", "threshold", "p"]
        return (Sheet(header, lines, self.headline(), notes),)

    def _notes(self) -> Iterator[str]:
        guard = self.detector.guard
        if guard is not None:
            low, high = guard.lengths
            yield (
                f"p: the chance that a document like the guard's, without the concept and of {low} to {high} "
                "tokens, ever scores as high; a longer one has none. It holds at whatever step it is looked "
                "at."
            )
        if self._watching.sinks == "keep" or not self._watching.runs:
            return
        exact_rule = {
            (int(one.sample.split()[-1]), one.position, one.concept) for one in self.superactivators()
        }
        if not self._watching.prompt:
            starts = self._prompts()
            exact_rule = {one for one in exact_rule if one[1] >= starts[one[0]]}
        told = {(hit.sequence, hit.position, hit.concept) for hit in self.hits}
        yield (
            f"Attention sinks were judged by the tokens before them; by the exact rule on the texts as they "
            f"are {len(told - exact_rule)} of these hits are sinks, and {len(exact_rule - told)} were missed."
        )

    def _prompts(self) -> dict[int, int]:
        """Tokens of each sequence's prompt."""
        return {
            run.first + row: int(tokens[: run.prompt, -2].sum())
            for run in self._watching.runs
            for row, tokens in enumerate(run.whole())
        }

    def rows(self) -> list[dict[str, Any]]:
        """Score, margin and p-value of every hit."""
        found = []
        for hit in self.hits:
            labels = {"sequence": hit.sequence, "step": hit.step, "position": hit.position, "token": hit.text}
            labels |= {"concept": hit.concept, "layer": hit.layer}
            found += [
                exact("score", hit.score, **labels),
                exact("margin", hit.score - hit.threshold, **labels),
            ]
            if hit.p_value is not None:
                found.append(exact("p", hit.p_value, **labels))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The hits."""
        seen = {"concepts": self.concepts, "sequences": self.n_sequences, "tokens": self.n_tokens}
        hits = clean([asdict(hit) for hit in self.hits])
        return {"format": FORMAT, "kind": "Monitor", **clean(seen), "hits": hits}

    def plot(self) -> Any:
        """Scores along each text, with the thresholds."""
        return self.superactivators().plot()

    def _repr_html_(self) -> str:
        if not self._watching.runs:
            return super()._repr_html_()
        return f"{super()._repr_html_()}{self.superactivators()._repr_html_()}"


@face
@contextmanager
def watch(
    host: Host,
    detector: Detector,
    *,
    concepts: Sequence[str] | None = None,
    on_hit: Callable[[Hit], Any] | None = None,
    stop: bool | str | Sequence[str] = False,
    prompt: bool = True,
) -> Iterator[Monitor]:
    """Watch every generation of a model inside the context for a detector's concepts.

    Call `generate` as always: of a TransformerBridge (also `hf_generate` and `generate_stream`) or a
    HookedTransformer, of an nnsight model, traced or not, or of the module of transformers inside; with or
    without a cache, in batches. Nothing of the generation changes. In a loop of your own, or where the
    model is on a server, give each step's activations to `monitor.feed`.

    Costs no pass; one small tensor leaves the device at each step.

    Args:
        host: An attached model.
        detector: Calibrated on it.
        concepts: Which to watch; by default all.
        on_hit: Called with each `Hit` as it happens; what it raises ends the generation.
        stop: End a sequence at its first hit: True, or of which concepts. The library's own stopping
            criteria are asked when the next token is chosen already: one token more comes out.
        prompt: Whether tokens of the prompt are watched too.

    Returns:
        A context that hands out the monitor, which shows itself.

    Raises:
        TypeError: `stop` is none of these.
        ValueError: The detector is of another model, has no such concept, a concept has no finite threshold,
            the model is watched already, or a generation cannot be followed (beams, drafts, guidance).
        RuntimeError: Nothing was generated or fed inside; or a pass was not run as generations are.

    Example:
        >>> with sa.watch(host, detector, stop=["refusal"]) as monitor:  # doctest: +SKIP
        ...     model.generate(ids, max_new_tokens=50)
        >>> print(monitor)  # doctest: +SKIP
    """
    check_origin(detector.bank, host)
    names = tuple(detector.concepts if concepts is None else concepts)
    _require_thresholds(detector, names)
    ends = _ends(stop, names)
    watching = Watching(host, detector, names, on_hit, ends, prompt)
    monitor = Monitor(watching)
    with _live(watching, host.progress):
        if isinstance(host, BulkHost):
            # The model is elsewhere: all there is to do is to be fed.
            yield monitor
            if not watching.runs:
                raise RuntimeError(
                    "watch: nothing was fed inside: the model is on a server, where no hook is. Give each "
                    "step's activations or scores to monitor.feed."
                )
            return
        local, looks = require_local(host, "watch"), watching.looks()
        with following(local, "watch", looks, watching, stops=bool(ends), idle=lambda: bool(watching.runs)):
            yield monitor


def _ends(stop: bool | str | Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Concepts whose hit ends a sequence."""
    if isinstance(stop, bool):
        return tuple(names) if stop else ()
    ends = (stop,) if isinstance(stop, str) else tuple(stop)
    for name in ends:
        position_of(name, names, "the concepts that are watched")
    return ends


def _require_thresholds(detector: Detector, names: Sequence[str]) -> None:
    for name in names:
        bar = detector.tail.chosen_threshold[position_of(name, detector.concepts)]
        if not np.isfinite(bar):
            finite = [one for one, tau in detector.threshold.items() if np.isfinite(tau)]
            raise ValueError(
                f"the threshold of {name!r} is {bar:g}, which no score reaches, since no positive token of "
                f"the calibration split was there to set it: leave it out, concepts={finite}, or calibrate "
                "on data that has the concept."
            )


@contextmanager
def _live(watching: Watching, shown: bool) -> Iterator[None]:
    """The live line, of which the last is left."""
    if not shown:
        yield
        return
    with tqdm(bar_format="{desc}") as line:
        watching.line = line
        try:
            yield
        finally:
            watching.line = None
