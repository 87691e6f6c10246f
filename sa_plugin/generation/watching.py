"""What a monitor does while a model generates: scores of the new tokens, sinks without looking ahead, hits.

At every step each new token is scored at the layer that its concept's calibration chose, by the same
function that scores a text afterwards. What leaves the device at a step is one tensor, `[row, new column,
number]`, whatever the number of concepts: the scores, the norms that the rule for attention sinks needs,
and the token's id and whether it is text.

With n_1 ... n_t the norms of the tokens of text so far at one of the layers that decide, token t is a sink
while it is spoken if n_t > 10 median(n_1 ... n_t), the lower of two middle ones, or if it is the first and
the decoder puts no BOS in front. The rule of a finished text has the median of all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from sa_plugin._check import position_of, users_line
from sa_plugin.concepts.bank import VectorSet
from sa_plugin.data.loose import loose_sample
from sa_plugin.detection.detector import Detector
from sa_plugin.generation.running import Generation, Looking
from sa_plugin.host import reducers
from sa_plugin.host.protocol import Host, HostInfo, Site
from sa_plugin.host.tokens import TextEncoder
from sa_plugin.passes.run import sink_sites
from sa_plugin.show.result import noun_count
from sa_plugin.statistics.confusion import reaches


class OtherTokensWarning(UserWarning):
    """A library made other tokens of a text than the detector's tokenizer does."""


@dataclass(frozen=True)
class Hit:
    """One token of a generation whose score reaches a concept's threshold.

    Attributes:
        sequence: Number of the sequence, over all that the monitor saw.
        step: 0 in the prompt, k for the k-th generated token.
        position: WatchedSite in the sequence, without padding.
        token: Token id.
        text: Its characters.
        concept: Whose threshold it reaches.
        layer: Block index of the score.
        score: Activation.
        threshold: Of the concept.
        p_value: Chance that a document like the guard's, without the concept, ever scores as high; None
            where the detector carries no promise, or the text is longer than it is made for.
    """

    sequence: int
    step: int
    position: int
    token: int
    text: str
    concept: str
    layer: int
    score: float
    threshold: float
    p_value: float | None = None


@dataclass(frozen=True, eq=False)
class WatchedSite:
    """What is kept of one site: scores of the concepts that live there, and the norm for the sink rule."""

    site: Site
    concepts: tuple[int, ...]
    vectors: VectorSet | None
    norm: bool
    moved: dict[torch.device, reducers.Vectors] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Numbers a token."""
        return len(self.concepts) + self.norm

    def reduce(self, h: Real[Tensor, "row column d_model"]) -> Float[Tensor, "row column number"]:
        """Scores, and the norm behind them."""
        with torch.no_grad():
            parts = []
            if self.vectors is not None:
                parts.append(reducers.score_rows(self._on(h.device), 0, h))
            if self.norm:
                parts.append(torch.linalg.vector_norm(h.float(), dim=-1, keepdim=True))
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _on(self, device: torch.device) -> reducers.Vectors:
        """The vectors where the activations are: moved once, not at every step."""
        if device not in self.moved:
            assert self.vectors is not None
            plain = self.vectors.plain
            # Latents are where their SAE is.
            if not callable(plain):
                v, mean, scale, cosine = plain
                plain = v.to(device), mean.to(device), scale.to(device), cosine
            self.moved[device] = plain
        return self.moved[device]


@dataclass(eq=False)
class Run:
    """What was kept of one generation.

    Attributes:
        first: Number of its first sequence.
        prompt: Columns of the prompt.
        kept: `[row, column, number]`: the places' numbers, then id, real and valid; with room behind.
        columns: Columns that were run.
        final: Token ids of each row without padding, once it is over.
    """

    first: int
    prompt: int
    kept: Float[np.ndarray, "row room number"]
    columns: int = 0
    final: list[list[int]] | None = None

    def add(self, new: Float[np.ndarray, "row new number"]) -> None:
        """Keep the new columns of a pass."""
        stop = self.columns + new.shape[1]
        if stop > self.kept.shape[1]:
            # Twice the room, so that a long text is not copied at every step.
            more = np.zeros((self.kept.shape[0], stop, self.kept.shape[2]), dtype=self.kept.dtype)
            self.kept = np.concatenate([self.kept, more], axis=1)
        self.kept[:, self.columns : stop] = new
        self.columns = stop

    def whole(self) -> Float[np.ndarray, "row column number"]:
        """All columns that were run."""
        return self.kept[:, : self.columns]


class Watching:
    """A follower of generations that keeps scores and finds hits.

    Args:
        host: For the tokenizer.
        detector: Vectors, layers, thresholds, the rule for sinks.
        concepts: Which are watched.
        on_hit: Called with each hit.
        stop: Concepts whose hit ends a row.
        prompt: Whether tokens of a prompt can be hits.
    """

    def __init__(
        self,
        host: Host,
        detector: Detector,
        concepts: Sequence[str],
        on_hit: Callable[[Hit], Any] | None,
        stop: Sequence[str],
        prompt: bool,
    ) -> None:
        self.encode, self.detector, self.concepts = encoder_of(host), detector, tuple(concepts)
        self.on_hit, self.ending, self.prompt = on_hit, frozenset(stop), prompt
        self.hits: list[Hit] = []
        self.runs: list[Run] = []
        self.n_tokens = 0
        self.at = [position_of(name, detector.concepts) for name in self.concepts]
        self.threshold = detector.tail.chosen_threshold[self.at]
        _, self.sinks, self.drops_first = detector.bank.sinks_on(host.info)
        self.places = places_of(detector, host.info, self.concepts)
        self.columns, self.norms, self.width = _columns(self.places, len(self.concepts))
        self.layers = [detector.bank.layers[int(detector.tail.layer[c])] for c in self.at]
        self.words: dict[int, str] = {}
        self.found: dict[Site, Tensor] = {}
        self.stopped: np.ndarray = np.zeros(0, dtype=bool)
        self.texts: list[str] | None = None
        self.line: Any = None

    @property
    def n_sequences(self) -> int:
        """Sequences that were seen."""
        return sum(len(run.kept) for run in self.runs)

    def looks(self) -> dict[Site, Looking]:
        """What sees each site."""
        return {place.site: self._looking(place) for place in self.places}

    def _looking(self, place: WatchedSite) -> Looking:
        def look(h: Tensor, generation: Generation) -> None:
            self.found[place.site] = place.reduce(h[:, generation.new_here :])

        return look

    def begins(self, arguments: Mapping[str, Any]) -> None:
        """A generation is asked for."""
        given = next(
            (arguments[name] for name in ("input", "inputs", "input_ids") if name in arguments), None
        )
        texts = [given] if isinstance(given, str) else given if isinstance(given, list) else None
        self.texts = texts if texts and all(isinstance(one, str) for one in texts) else None

    def passed(self, generation: Generation) -> None:
        """A pass has shown every site: its new tokens are scored, and hits told of."""
        begins = generation.done == 0
        if begins:
            room = np.zeros((generation.rows, 0, self.width + 3), dtype=np.float32)
            self.runs.append(Run(self.n_sequences, generation.prompt, room))
            self.stopped = np.zeros(generation.rows, dtype=bool)
        run = self.runs[-1]
        new = slice(generation.done, generation.valid.shape[1])
        device = generation.ids.device
        # Token ids are exact in float32 below 2**24; all that a step needs leaves the device at once.
        about = [one[:, new, None] for one in (generation.ids, generation.real, generation.valid)]
        parts = [self.found.pop(place.site).to(device) for place in self.places]
        kept = torch.cat([*parts, *about], dim=-1).cpu().numpy()
        run.add(kept)
        if begins:
            self._require_text(kept, generation)
        self._tell(run, kept, generation)

    def _tell(self, run: Run, kept: Float[np.ndarray, "row new number"], generation: Generation) -> None:
        """Hits among the new tokens, in the order in which they were run."""
        valid = kept[..., -1] > 0
        n, bad = int(valid.sum()), valid & ~np.isfinite(kept[..., : self.width]).all(-1)
        if bad.any():
            raise ValueError(
                f"scores or norms are NaN or Inf in {int(bad.sum())} of {n} tokens of a step: load the model "
                "in float32 or bfloat16, or mend its weights."
            )
        self.n_tokens += n
        scores = kept[..., self.columns]
        first = generation.done
        fires = reaches(scores, self.threshold) & valid[..., None]
        if not self.prompt and first == 0:
            fires[:, : run.prompt] = False
        # Token by token as they were run; most have no hit, and nothing is asked of them.
        for column, row in np.argwhere(fires.any(-1).T):
            so_far = run.kept[row, : first + column + 1]
            words = so_far[:, -1] > 0
            if self._is_sink(so_far[:, self.norms][words]):
                continue
            token, tokens = int(so_far[-1, -3]), int(words.sum())
            position, text = int(so_far[:, -2].sum()) - 1, self._decode(token)
            step, sequence = max(first + int(column) - run.prompt + 1, 0), run.first + int(row)
            for k in np.flatnonzero(fires[row, column]).tolist():
                one, value = self.concepts[k], float(scores[row, column, k])
                bar, p = float(self.threshold[k]), self._p_value(one, value, tokens)
                self.stopped[row] |= one in self.ending
                self._hit(Hit(sequence, step, position, token, text, one, self.layers[k], value, bar, p))
        self._say()

    def _p_value(self, concept: str, score: float, tokens: int) -> float | None:
        """Of a document of which this is the highest score so far, where it is not too long for a promise."""
        guard = self.detector.guard
        if guard is None or tokens > guard.lengths[1]:
            return None
        if not guard.n_documents[self.detector.concepts.index(concept)]:
            return None
        return float(self.detector.p_values(concept, score))

    def _hit(self, hit: Hit) -> None:
        self.hits.append(hit)
        if self.on_hit is not None:
            self.on_hit(hit)

    def _is_sink(self, norms: Float[np.ndarray, "token norm"]) -> bool:
        """Whether the last token of a text so far is an attention sink, by what is known of it."""
        if self.sinks == "keep":
            return False
        if self.drops_first and len(norms) == 1:
            return True
        # The lower of two middle ones, as torch has it.
        middle = (len(norms) - 1) // 2
        median = np.partition(norms, middle, axis=0)[middle]
        return bool((norms[-1] > np.float32(reducers.SINK_FACTOR) * median).any())

    def stops(self, generation: Generation) -> Sequence[bool]:
        """Rows that had a hit of a concept that ends them."""
        return [bool(one) for one in self.stopped]

    def ends(self, generation: Generation) -> None:
        """A generation is over, with all of its ids."""
        ids, real = generation.ids.cpu(), generation.real.cpu()
        self.runs[-1].final = [row[shown].tolist() for row, shown in zip(ids, real, strict=True)]

    def _require_text(self, kept: Float[np.ndarray, "row new number"], generation: Generation) -> None:
        """Refuse padding that the model takes for text, and say where a text became other tokens."""
        encode, names = self.encode, ("pad_token_id", "eos_token_id", "bos_token_id")
        fillers = {getattr(encode.tokenizer, name) for name in names}
        for row in range(len(kept)):
            shown = kept[row, kept[row, :, -2] > 0]
            ids = shown[:, -3].astype(np.int64)
            for side, where in ((ids, "begins"), (ids[::-1], "ends")):
                # One of them may be a BOS or the end of a text.
                if len(side) > 1 and side[0] == side[1] and int(side[0]) in fillers:
                    raise ValueError(
                        f"row {row} of the prompt {where} with {encode.name(int(side[0]))!r} more than once, "
                        "and the model was not told that these are padding, so that it attends to them and "
                        "counts them: give attention_mask= beside a padded tensor, or a list of texts."
                    )
            if self.texts is not None and len(self.texts) == len(kept) and self.texts[row].strip():
                own = encode([loose_sample(self.texts[row], f"text {row}")])[0].ids.tolist()
                if own != ids.tolist():
                    self._warn_of_tokens(encode, ids.tolist(), own)
                    return

    def _warn_of_tokens(self, encode: TextEncoder, ids: list[int], own: list[int]) -> None:
        made, usual = ([encode.name(one) for one in some[:4]] for some in (ids, own))
        warnings.warn(
            f"generate made the tokens {made}... of the text, the detector's tokenizer makes {usual}...: "
            "scores are of texts that begin otherwise than those it was calibrated on (TransformerLens puts "
            "a BOS first unless prepend_bos=False). Give token ids, or prepend_bos=False.",
            OtherTokensWarning,
            stacklevel=users_line(),
        )

    def _decode(self, token: int) -> str:
        if token not in self.words:
            said = self.encode.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            self.words[token] = str(said)
        return self.words[token]

    def _say(self) -> None:
        """The live line."""
        if self.line is None:
            return
        last = self.hits[-1] if self.hits else None
        said = "" if last is None else f": {last.concept} {last.score:.3g} at {last.text!r}"
        self.line.set_description_str(
            f"watched {self.n_tokens} tokens, {noun_count(len(self.hits), 'hit')}{said}", refresh=False
        )
        self.line.update()


def places_of(detector: Detector, info: HostInfo, concepts: Sequence[str]) -> tuple[WatchedSite, ...]:
    """Every site that is read for some concepts, in the order of the layers.

    Raises:
        ValueError: There are none, or the detector has no such concept.
    """
    if not concepts:
        raise ValueError("concepts is empty: name at least one, or None for all.")
    bank, tail = detector.bank, detector.tail
    at = [position_of(name, detector.concepts) for name in concepts]
    layers, sinks, _ = bank.sinks_on(info)
    norms = sink_sites(layers) if sinks == "drop" else []
    by_site: dict[Site, list[int]] = {site: [] for site in norms}
    for k, c in enumerate(at):
        site = Site(bank.layers[int(tail.layer[c])], bank.hook_point)
        by_site.setdefault(site, []).append(k)
    found = []
    for site, here in sorted(by_site.items()):
        vectors = None
        if here:
            units = [int(tail.chosen_unit[at[k]]) for k in here]
            vectors = bank.token.only([bank.layers.index(site.layer)], units)
        found.append(WatchedSite(site, tuple(here), vectors, site in norms))
    return tuple(found)


def _columns(places: Sequence[WatchedSite], concepts: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Among the numbers of a token: where each concept's score stands, where the norms do, and how many."""
    columns, norms, start = np.zeros(concepts, dtype=np.int64), [], 0
    for place in places:
        for k, concept in enumerate(place.concepts):
            columns[concept] = start + k
        start += place.width
        if place.norm:
            norms.append(start - 1)
    return columns, np.array(norms, dtype=np.int64), start


def fed(
    place: WatchedSite, activations: Mapping[Any, Tensor], point: str, shape: tuple[int, int], scored: bool
) -> Tensor:
    """The numbers of one site, from what a loop of the user's handed over."""
    site = place.site
    h = activations.get(site, activations.get(site.layer) if site.point in (point, "resid_post") else None)
    if h is None:
        given = ", ".join(str(one) for one in activations) or "none"
        raise ValueError(
            f"activations lack {site.point} of block {site.layer}, where a concept or the rule for sinks is "
            f"read; given: {given}. Read every site of monitor.sites, in passes that run that far."
        )
    if h.ndim != 3 or h.shape[:2] != shape:
        raise ValueError(
            f"activations of block {site.layer} have shape {list(h.shape)}, ids {list(shape)}: give those "
            "of the new tokens alone, [row, new, d_model]."
        )
    if not scored:
        return place.reduce(h)
    if h.shape[-1] != place.width:
        raise ValueError(
            f"activations of block {site.layer} have {h.shape[-1]} numbers a token, a scored step "
            f"{place.width}: give what sa_nnsight.trace_ops.seen returns for this detector's concepts, or "
            "leave scored out."
        )
    return h.float()


def encoder_of(host: Host) -> TextEncoder:
    """What cuts a host's texts into tokens.

    Raises:
        ValueError: It reads no texts.
    """
    encode = getattr(getattr(host, "reader", None), "encode", None)
    if not isinstance(encode, TextEncoder):
        raise ValueError(f"watch: {host.info.model} reads no texts, so it generates none.")
    return encode
