"""A detector: a calibration with a host to score samples with, and the doors to every question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sa_plugin._face import face
from sa_plugin.data.concept_data import Split, require_filled
from sa_plugin.data.loose import as_split, gathered, is_labelled
from sa_plugin.detection.calibration import Calibration, sample_max
from sa_plugin.detection.guard import check_unseen
from sa_plugin.host.protocol import Host
from sa_plugin.host.tokens import naming_of
from sa_plugin.passes.layout import unknown_words
from sa_plugin.scores.score import check_origin, score_samples
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import FORMAT, Sheet, Shown, clean, exact, number
from sa_plugin.statistics.conformal import Promise
from sa_plugin.statistics.drawn import Resampling

if TYPE_CHECKING:
    # Each door loads its own module, so that a detector stands before any of them is loaded.
    from sa_plugin.detection.evaluate import Evaluation
    from sa_plugin.detection.find import Detection, SuperActivators
    from sa_plugin.detection.items import ScoredSamples
    from sa_plugin.detection.localise import Localisation, LocalisationMetrics
    from sa_plugin.detection.promised import Guard
    from sa_plugin.detection.sweep import SparsityCurve


@face
@dataclass(frozen=True, eq=False, repr=False)
class Detector(Shown, Calibration):
    """A calibration with a host. Made by `calibrate`.

    Attributes:
        host: For scoring samples; questions given `scores=` do without.
    """

    host: Host | None = field(default=None)

    about: ClassVar[str] = (
        "Calibration F1 is optimistic: thresholds and choices rest on the same samples. "
        "Detector.evaluate reads held-out ones."
    )

    def headline(self) -> str:
        """What was chosen, over concepts."""
        layers, deltas = sorted(set(self.layer.values())), sorted(set(self.delta.values()))
        return (
            f"{self.bank.kind!r}, {len(self.concepts)} concepts, layers {layers}, deltas {deltas}, "
            f"mean cal F1 {self.tail.chosen_f1.mean():.3f}, each the best of {self.tail.candidates}"
            f"{'' if self.promise is None else f'; promise: {self.promise.words}'}"
        )

    @property
    def drift(self) -> str:
        """Of its bank."""
        return self.bank.drift

    def sheets(self) -> tuple[Sheet, ...]:
        """The choices, one row a concept."""
        header = ["concept", "layer", "unit", "delta", "threshold", "cal F1", "cal tokens"]
        lines = []
        for concept in self.concepts:
            one = self.choice(concept)
            cells = [concept, str(one.layer), one.unit, f"{one.delta:g}", number(one.threshold, 4)]
            lines.append([*cells, number(one.cal_f1), str(one.n_cal_tokens)])
        note = f"Chosen on calibration by F1, each the best of {self.tail.candidates} (layer, delta, unit)."
        notes = [note]
        if self.unknown:
            notes.append(unknown_words(self.unknown))
        if self.guard is not None:
            notes.append(self._promise_words(self.guard))
        return (Sheet(header, lines, "", notes),)

    def _promise_words(self, guard: Guard) -> str:
        low, high = guard.lengths
        counts = guard.n_documents
        others = [c for c in self.concepts if guard.promise.concepts and c not in guard.promise.concepts]
        but = f" but for {', '.join(others)}" if others else ""
        return (
            f"Promise: {guard.promise.words}. Thresholds keep it{but}, for texts of {low} to {high} tokens "
            f"like the {len(guard.maxima)} guard documents, {counts.min()} or more of which are without each "
            "concept. It holds for each concept by itself, and conservatively where labels overlook "
            "positives. Delta and F1 are of what chose layer and unit."
        )

    def rows(self) -> list[dict[str, Any]]:
        """The choices; labels are concept, layer and unit."""
        found = []
        for concept in self.concepts:
            one = asdict(self.choice(concept))
            labels = {name: one.pop(name) for name in ("concept", "layer", "unit")}
            found += [exact(name, value, **labels) for name, value in one.items()]
        return found

    def to_dict(self) -> dict[str, Any]:
        """The choices and what they rest on; vectors and tables are in `save_pretrained`."""
        found = {
            "bank": {name: getattr(self.bank, name) for name in ("kind", "layers", "hook_point", "concepts")},
            "choices": [self.choice(concept) for concept in self.concepts],
            "missing": self.missing,
            "data_hash": self.data_hash,
            "seed": self.seed,
        }
        if self.guard is not None:
            documents = dict(zip(self.concepts, self.guard.n_documents, strict=True))
            found["promise"] = {"made": self.promise, "lengths": self.guard.lengths, "documents": documents}
        return {"format": FORMAT, "kind": "Detector", **clean(found)}

    def plot(self) -> Any:
        """Calibration F1 by concept and layer at each layer's best delta, and the chosen deltas."""
        from sa_plugin.show import plots

        best = self.tail.f1.max(1).T
        names, layers = self.concepts, self.bank.layers
        width = 2.4 + min(0.3 * len(layers), 5.0)
        figure, (left, right) = plots.new_figure(width + 3.0, 1.6 + 0.3 * len(names), columns=2)
        plots.heat(left, best, names, layers, limit=1.0, scale="F1")
        left.plot(self.tail.layer, range(len(names)), "o", mfc="none", mec=plots.TEXT_COLOUR, ms=6)
        plots.words(left, title="calibration F1 (ring: chosen)", x="layer")
        right.plot(self.tail.chosen_delta, range(len(names)), "o", color=plots.TAIL_COLOUR, ms=5)
        right.set_xscale("log")
        shown = [d for d in self.tail.deltas if d in plots.SHOWN_DELTAS] or list(self.tail.deltas)
        right.set_xticks(shown, [f"{d:g}" for d in shown])
        right.minorticks_off()
        plots.rows(right, [""] * len(names))
        plots.words(right, title="chosen delta", x="delta")
        plots.note(
            figure,
            f"Each the best of {self.tail.candidates} on calibration: optimistic, and a delta at the "
            "edge of the grid says that the optimum may lie beyond it.",
        )
        return figure

    def scores_of(self, split: Split, scores: ScoreTable | None = None) -> ScoreTable:
        """The scores of a split's samples: picked from `scores`, or from one pass over the host.

        Raises:
            ValueError: The scores are of another bank, lack a sample or hold NaN, or there is no
                host.
        """
        require_filled(split)
        if scores is None:
            if self.host is None:
                raise ValueError(
                    "this detector has no host to score samples with: give scores=, or load it "
                    "with one (Detector.from_pretrained(path, host=host))."
                )
            scores = score_samples(self.host, split.samples, self.bank)
        return self.pick(scores, split)

    def _split(self, loose: Split | list[Any]) -> Split:
        return as_split(loose, self.concepts, naming_of(self.host))

    def _scored(self, loose: Split | list[Any], scores: ScoreTable | None) -> ScoredSamples:
        from sa_plugin.detection.items import ScoredSamples

        table = self.scores_of(self._split(loose), scores)
        return ScoredSamples(self, table.tokens, self.token_scores(table), is_labelled(loose))

    def find(
        self, samples: Any, *, concepts: Sequence[str] | None = None, scores: ScoreTable | None = None
    ) -> SuperActivators:
        """The SuperActivators of some samples, with their text and offsets.

        Args:
            samples: A text, a chat (a list of messages, read by the model's template; `Chat` says whose
                turns are rows), token ids, an image (a path, a picture of Pillow, or RGB pixels), a
                `Sample`, any iterable of these, or a split.
            concepts: Only these.
            scores: Scores that hold the samples; else one forward pass a sample.

        Returns:
            A sequence of records in order of sample, concept and token, which shows itself: raw
            activations and SuperActivators side by side.

        Raises:
            TypeError: What was given is no sample.
            ValueError: Unknown concept, scores of another bank, no host, or texts of lengths that a
                promise is not made for.

        Example:
            >>> detector.find("The whale rose beside the boat.")[0].text  # doctest: +SKIP
            ' whale'
        """
        from sa_plugin.detection.find import find

        scored = self._scored(gathered(samples), scores)
        self._require_lengths(scored)
        return find(scored, concepts)

    def _require_lengths(self, scored: ScoredSamples) -> None:
        from sa_plugin.detection.promised import refuse_lengths

        if self.guard is not None:
            refuse_lengths(self.guard, scored.tokens.samples, np.diff(scored.tokens.bounds))

    def with_promise(self, promise: Promise, guard: Any) -> Detector:
        """The same detector with thresholds that keep a promise, made from documents of the user's own.

        What `calibrate(..., promise=, guard=)` does, for a detector that is there already: layers, units
        and deltas stay as they are, and a promise that it carried goes. Costs a forward pass a guard sample.

        Args:
            promise: A rate of false alarms.
            guard: Documents that chose nothing: samples in any form that `find` takes; texts without labels
                have none of the concepts. Texts that the detector was made from are refused; that no other
                passage of their documents is among them, only you can know.

        Raises:
            TypeError: What was given is no sample.
            ValueError: The promise cannot be made: too few documents, samples that chose something, no host.

        Example:
            >>> careful = detector.with_promise(Promise("document", 0.05), calm_texts)  # doctest: +SKIP
        """
        from sa_plugin.detection.promised import check_guard, promised

        split = as_split(guard, self.concepts, naming_of(self.host), "guard samples")
        check_guard(split, self.bank, promise, self.seen, {})
        made, thresholds = promised(self.host, self.bank, self.tail, promise, split)
        tail = replace(self.tail, promised=thresholds)
        return replace(self, tail=tail, seen=self.seen.guarded_by(split), guard=made)

    def detect(self, samples: Any, *, scores: ScoreTable | None = None) -> Detection:
        """Which samples have which concepts.

        Of a split, or of many samples, only the highest scores leave the model; a few samples keep
        the scores of their tokens, to be shown.

        Args:
            samples: As in `find`.
            scores: Scores that hold the samples; else one forward pass a sample.

        Raises:
            TypeError: What was given is no sample.
            ValueError: Scores of another bank, no host, or texts of lengths that a promise is not made for.
        """
        from sa_plugin.detection.find import SHOWN_SAMPLES, detect, highest_scores

        loose = gathered(samples)
        split = self._split(loose)
        many = isinstance(loose, Split) or len(split) > SHOWN_SAMPLES
        if scores is None and self.host is not None and many:
            return detect(self, split, highest_scores(self, split, self.host))
        scored = self._scored(loose, scores)
        self._require_lengths(scored)
        return detect(self, split, sample_max(scored.scores, scored.tokens.bounds), scored)

    def localise(self, samples: Any, *, scores: ScoreTable | None = None) -> Localisation:
        """Which tokens carry which concept, in two stages: detected samples, then their tokens.

        Args:
            samples: As in `find`.
            scores: Scores that hold the samples; else one forward pass a sample.

        Raises:
            TypeError: What was given is no sample.
            ValueError: Scores of another bank, or no host.
        """
        from sa_plugin.detection.localise import localise

        return localise(self._scored(gathered(samples), scores))

    def evaluate(
        self, split: Split, *, scores: ScoreTable | None = None, resampling: Resampling = Resampling()
    ) -> Evaluation:
        """Detection metrics of every method on held-out samples, with intervals.

        Args:
            split: `data.test`; train rows are refused.
            scores: Scores that hold the split; else one forward pass a sample.
            resampling: Of source documents.

        Raises:
            ValueError: The split holds samples the vectors were fitted on, the scores are of
                another bank, or there is no host.
        """
        from sa_plugin.detection.evaluate import evaluate

        check_unseen(split, self.seen)
        return evaluate(self, split, self.scores_of(split, scores), resampling)

    def evaluate_tokens(
        self, samples: Any, *, scores: ScoreTable | None = None, resampling: Resampling = Resampling()
    ) -> LocalisationMetrics:
        """Agreement of `localise` with the token labels, raw scores beside it, with intervals.

        Args:
            samples: `data.test`, or samples with token labels; train rows are refused.
            scores: Scores that hold the samples; else one forward pass a sample.
            resampling: Of source documents.

        Raises:
            ValueError: The samples are plain texts without labels, or vectors were fitted on one.
        """
        from sa_plugin.detection.localise import localisation_metrics

        loose = gathered(samples)
        if not is_labelled(loose):
            raise ValueError(
                "plain texts have no token labels to compare with: give data.test, or Samples with spans."
            )
        split = self._split(loose)
        check_unseen(split, self.seen)
        return localisation_metrics(self.localise(loose, scores=scores), split, resampling)

    def sweep(
        self,
        split: Split,
        *,
        scores: ScoreTable | None = None,
        layer: int | None = None,
        resampling: Resampling = Resampling(),
    ) -> SparsityCurve:
        """Weighted F1 against delta at one layer and one delta for all concepts.

        Args:
            split: `data.test`; train rows are refused.
            scores: Scores that hold the split; else one forward pass a sample.
            layer: Block index; by default that of the best mean calibration F1.
            resampling: Of source documents.

        Raises:
            ValueError: As `evaluate`; or the bank has no such layer.
        """
        from sa_plugin.detection.sweep import sweep

        check_unseen(split, self.seen)
        return sweep(self, split, self.scores_of(split, scores), layer, resampling)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write vectors, thresholds, choices, baselines and provenance: safetensors and JSON.

        With a host, scores of a few inputs of ours (`sa_plugin.concepts.canary`) go with them, at the
        cost of a forward pass each.

        Args:
            folder: A new folder, or one that holds an artefact to replace.

        Raises:
            FileExistsError: The folder holds something else.
            OSError: It cannot be written, or is being written; the text names it.
        """
        from sa_plugin.concepts.artefact import artefact_folder, write
        from sa_plugin.concepts.canary_scores import canary_or_none
        from sa_plugin.detection.saved import calibration_parts

        with artefact_folder(Path(folder)):
            tensors, record = calibration_parts(self, canary_or_none(self.bank, self.host))
            return write(Path(folder), tensors, {"what": "Detector", **record})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        evaluation: Shown | None = None,
        private: bool = True,
        branch: str | None = None,
        message: str = "",
    ) -> str:
        """Save into a repository of the Hugging Face hub, with a card written from the artefact.

        No text of the data goes along. The token is huggingface_hub's own affair (`hf auth login`).

        Args:
            repo_id: "user/name"; made if it is not there.
            evaluation: What `evaluate` returned: its table, with intervals, stands on the card. Without
                it the card has the choices on calibration, and says that these are optimistic.
            private: Of a new repository.
            branch: By default the main one.
            message: Of the commit.

        Returns:
            The commit, for `Detector.from_pretrained("user/name", revision=commit)`.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: `repo_id` is not "user/name", or the evaluation is of other concepts.
        """
        from sa_plugin.concepts.hub import card_of, push

        parts: dict[str, Shown] = {"Choices": self}
        if evaluation is not None:
            measured = getattr(evaluation, "concepts", ())
            if measured != self.concepts:
                raise ValueError(
                    f"evaluation is of {', '.join(measured) or 'no concepts'}, the detector of "
                    f"{', '.join(self.concepts)}: give what its own evaluate returned."
                )
            parts["Evaluation"] = evaluation
        load = (
            "import sa_plugin\n\nhost = sa_plugin.attach(model)\n"
            f"detector = sa_plugin.Detector.from_pretrained({repo_id!r}, host=host, revision=...)\n"
            "print(detector.find(texts))"
        )
        card = card_of(
            repo_id, f"A detector: {self.headline()}", parts, self.concepts, self.bank.origin, load
        )
        return push(self.save_pretrained, card, repo_id, private=private, branch=branch, message=message)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        host: Host | None = None,
        hook_point: str | None = None,
        sae: object = None,
        allow_drift: bool = False,
        revision: str | None = None,
    ) -> Detector:
        """Read a detector that `save_pretrained` or `push_to_hub` wrote.

        Args:
            folder: Where it lies; or "user/name" on the Hugging Face hub, if no folder here begins so.
            host: The model it will score with; None to use given scores only.
            hook_point: Where the caller expects the vectors to live, if it matters.
            sae: The SAE, or `{layer: sae}`, whose latents it uses; its weights are not saved.
            allow_drift: Take a model that gives the canaries, a few inputs of ours, other scores than
                were saved; every result then says so.
            revision: Commit, tag or branch on the hub; a commit alone does not move.

        Raises:
            TypeError: `host` is a model that is not attached.
            FileNotFoundError: There is no artefact.
            DamagedFileError: It is damaged, or its parts are of different artefacts.
            DriftError: The model gives the canaries other scores; the text names the likely cause.
            ValueError: It belongs to another model, processing mode or hook point, or to another
                SAE than the one given.
        """
        from sa_plugin.concepts.artefact import naming, read
        from sa_plugin.concepts.hub import artefact_at
        from sa_plugin.concepts.saved import proven, require_hook_point
        from sa_plugin.detection.saved import calibration_of

        place = artefact_at(folder, revision)
        tensors, record = read(place, "Detector")
        with naming(place):
            found = calibration_of(tensors, record, sae)
        require_hook_point(found.bank, hook_point)
        if host is not None:
            check_origin(found.bank, host)
        parts = {one.name: getattr(found, one.name) for one in fields(found)}
        return cls(**parts | {"bank": proven(found.bank, host, allow_drift=allow_drift)}, host=host)
