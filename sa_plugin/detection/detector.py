"""A calibrated detector: for each concept a layer, a unit, a delta and a threshold.

`Y[n, c] = 1 iff max_t s[t, c] >= tau_c`: a sample has a concept iff it holds at least one
SuperActivator, a token whose score reaches the threshold (arXiv 2512.05038, sections 3 and 4).

A SuperActivator need not lie inside the concept: it is a token that the in-concept tail of the
calibration split is made of. Precision of the rule is measured by `evaluate`, never assumed.

A detector on disk and back: `artefact.py`'s two files, checked against the host that loads it.

Thresholds and calibration tables are stored as float64, so a loaded detector decides to the bit as
the saved one did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa_plugin._check import position_of, require_type
from sa_plugin.concepts.bank import ConceptBank
from sa_plugin.concepts.saved import bank_of, bank_parts, read, require_hook_point, write
from sa_plugin.data.concept_data import Split
from sa_plugin.data.sample import Sample
from sa_plugin.detection.evaluate import Evaluation, evaluate
from sa_plugin.detection.find import Detection, SuperActivator, detect, find
from sa_plugin.detection.guard import Seen, check_finite, check_scores, rows_of_samples
from sa_plugin.detection.localise import Localisation, TokenCuts, localise
from sa_plugin.detection.methods import column_scores
from sa_plugin.detection.search import Calibrated
from sa_plugin.detection.sweep import SparsityCurve, sweep
from sa_plugin.host.protocol import Host
from sa_plugin.scores.score import check_origin
from sa_plugin.scores.table import ScoreTable
from sa_plugin.show.result import aligned, as_html, frame, number

Samples = str | Sample | Split | Sequence[str | Sample]


@dataclass(frozen=True)
class Choice:
    """What calibration chose for one concept.

    Attributes:
        concept: Name.
        layer: Block index.
        unit: Name of the vector: the concept's own, or the matched unit's.
        delta: Share of in-concept calibration tokens at or above the threshold.
        threshold: Score from which a token is a SuperActivator; +inf never fires.
        cal_f1: Detection F1 on calibration, optimistic.
        candidates: Number of (layer, delta, unit) it was chosen from.
        n_cal_tokens: In-concept calibration tokens behind the threshold.
    """

    concept: str
    layer: int
    unit: str
    delta: float
    threshold: float
    cal_f1: float
    candidates: int
    n_cal_tokens: int


@dataclass(frozen=True, eq=False)
class Detector:
    """Thresholds, deltas and layers of every concept, with every baseline calibrated beside them.

    Made by `calibrate`.

    Attributes:
        concepts: What it detects.
        bank: The vectors.
        tail: SuperActivators: the whole calibration table and the choices.
        baselines: The same for every baseline; one entry a draw for RandTok.
        missing: Baselines that could not be calibrated, with the reason.
        cuts: Token thresholds for localisation and the raw comparison.
        seen: What vectors and thresholds have seen.
        seed: Of RandTok's draws and of the permuted matching.
        host: For scoring samples; methods given `scores=` do without.
    """

    concepts: tuple[str, ...]
    bank: ConceptBank
    tail: Calibrated
    baselines: Mapping[str, tuple[Calibrated, ...]]
    missing: Mapping[str, str]
    cuts: TokenCuts
    seen: Seen
    seed: int = 0
    host: Host | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        layers = sorted(set(self.layer.values()))
        deltas = sorted(set(self.delta.values()))
        return (
            f"Detector({self.bank.kind!r}, {len(self.concepts)} concepts, layers {layers}, deltas "
            f"{deltas}, mean cal F1 {self.tail.chosen_f1.mean():.3f}, each the best of "
            f"{self.tail.candidates})"
        )

    def __str__(self) -> str:
        header = ["concept", "layer", "unit", "delta", "threshold", "cal F1", "cal tokens"]
        lines = []
        for concept in self.concepts:
            one = self.choice(concept)
            cells = [concept, str(one.layer), one.unit, f"{one.delta:g}", number(one.threshold, 4)]
            lines.append([*cells, number(one.cal_f1), str(one.n_cal_tokens)])
        return "\n".join(
            [
                aligned(header, lines),
                f"Chosen on calibration by F1, each the best of {self.tail.candidates} (layer, "
                "delta, unit); calibration F1 is optimistic.",
            ]
        )

    def _repr_html_(self) -> str:
        return as_html(str(self))

    @property
    def layer(self) -> dict[str, int]:
        """Block index of each concept."""
        return {c: self.bank.layers[at] for c, at in self._with(self.tail.layer)}

    @property
    def unit(self) -> dict[str, str]:
        """Name of each concept's vector."""
        return {c: self.bank.units[at] for c, at in self._with(self.tail.chosen_unit)}

    @property
    def delta(self) -> dict[str, float]:
        """Delta of each concept."""
        return {c: float(d) for c, d in self._with(self.tail.chosen_delta)}

    @property
    def threshold(self) -> dict[str, float]:
        """Threshold of each concept."""
        return {c: float(t) for c, t in self._with(self.tail.chosen_threshold)}

    @property
    def cal_f1(self) -> dict[str, float]:
        """Calibration F1 of each concept, optimistic."""
        return {c: float(f) for c, f in self._with(self.tail.chosen_f1)}

    @property
    def data_hash(self) -> str:
        """Hash of the data calibrated on."""
        return self.seen.data_hash

    def choice(self, concept: str) -> Choice:
        """What was chosen for one concept.

        Raises:
            ValueError: Unknown concept; the text names the nearest.
        """
        k = position_of(concept, self.concepts)
        return Choice(
            concept,
            self.layer[concept],
            self.unit[concept],
            self.delta[concept],
            self.threshold[concept],
            self.cal_f1[concept],
            self.tail.candidates,
            int(self.cuts.n_tokens[k]),
        )

    def table(self) -> Any:
        """The choices, one row a concept: a pandas DataFrame where pandas is installed."""
        return frame([vars(self.choice(concept)) for concept in self.concepts])

    def scores_of(self, split: Split, scores: ScoreTable | None = None) -> ScoreTable:
        """The scores of a split's samples: picked from `scores`, or from one pass over the host.

        Raises:
            ValueError: The scores are of another bank, lack a sample or hold NaN, or there is no
                host.
        """
        if scores is None:
            if self.host is None:
                raise ValueError(
                    "this detector has no host to score samples with: give scores=, or load it "
                    "with one (Detector.from_pretrained(path, host=host))."
                )
            from sa_plugin.scores.score import score_samples

            scores = score_samples(self.host, split.samples, self.bank)
        check_scores(scores, self.bank, self.concepts)
        rows = rows_of_samples(scores, split.samples)
        everything = np.array_equal(rows, np.arange(scores.tokens.n_samples))
        table = scores if everything else scores.select(rows)
        check_finite(table)
        return table

    def token_scores(self, table: ScoreTable) -> Float[np.ndarray, "token concept"]:
        """Each token's score at each concept's own layer and unit, as float64."""
        return column_scores(table, self.tail.layer, self.tail.chosen_unit).astype(np.float64)

    def superactivators(self, table: ScoreTable) -> Bool[np.ndarray, "token concept"]:
        """Which tokens are SuperActivators of which concept."""
        return self.token_scores(table) >= self.tail.chosen_threshold

    def find(
        self, samples: Samples, *, concepts: Sequence[str] | None = None, scores: ScoreTable | None = None
    ) -> list[SuperActivator]:
        """The SuperActivators of some samples, with their text and offsets.

        Args:
            samples: Texts, samples or a split.
            concepts: Only these.
            scores: Scores that hold the samples; else one forward pass a sample.

        Returns:
            Records in order of sample, concept and token.

        Raises:
            ValueError: Unknown concept, scores of another bank, or no host.

        Example:
            >>> detector.find("The whale rose beside the boat.")[0].text  # doctest: +SKIP
            ' whale'
        """
        return find(self, samples, concepts, scores)

    def detect(self, samples: Samples, *, scores: ScoreTable | None = None) -> Detection:
        """Which samples have which concepts.

        Args:
            samples: Texts, samples or a split.
            scores: Scores that hold the samples; else one forward pass a sample.

        Raises:
            ValueError: Scores of another bank, or no host.
        """
        return detect(self, samples, scores)

    def localise(self, samples: Samples, *, scores: ScoreTable | None = None) -> Localisation:
        """Which tokens carry which concept, in two stages: detected samples, then their tokens.

        Args:
            samples: Texts, samples or a split.
            scores: Scores that hold the samples; else one forward pass a sample.

        Raises:
            ValueError: Scores of another bank, or no host.
        """
        return localise(self, samples, scores)

    def evaluate(
        self,
        split: Split,
        *,
        scores: ScoreTable | None = None,
        draws: int = 1000,
        seed: int = 0,
        level: float = 0.95,
        progress: bool = False,
    ) -> Evaluation:
        """Detection metrics of every method on held-out samples, with intervals.

        Args:
            split: `data.test`; train rows are refused.
            scores: Scores that hold the split; else one forward pass a sample.
            draws: Bootstrap resamples of source documents.
            seed: Of the resamples.
            level: Of the intervals.
            progress: Whether to show a bar over methods.

        Raises:
            ValueError: The split holds samples the vectors were fitted on, the scores are of
                another bank, or there is no host.
        """
        return evaluate(self, split, scores=scores, draws=draws, seed=seed, level=level, progress=progress)

    def sweep(
        self,
        split: Split,
        *,
        scores: ScoreTable | None = None,
        layer: int | None = None,
        draws: int = 1000,
        seed: int = 0,
        level: float = 0.95,
    ) -> SparsityCurve:
        """Weighted F1 against delta at one layer and one delta for all concepts.

        Args:
            split: `data.test`; train rows are refused.
            scores: Scores that hold the split; else one forward pass a sample.
            layer: Block index; by default that of the best mean calibration F1.
            draws: Bootstrap resamples of source documents.
            seed: Of the resamples.
            level: Of the intervals.

        Raises:
            ValueError: As `evaluate`; or the bank has no such layer.
        """
        return sweep(self, split, scores=scores, layer=layer, draws=draws, seed=seed, level=level)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write vectors, thresholds, choices, baselines and provenance: safetensors and JSON.

        Args:
            folder: A new folder, or one that holds an artefact to replace.

        Raises:
            FileExistsError: The folder holds something else.
        """
        return save_detector(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        host: Host | None = None,
        hook_point: str | None = None,
        sae: object = None,
    ) -> Detector:
        """Read a detector that `save_pretrained` wrote.

        Args:
            folder: Where it lies.
            host: The model it will score with; None to use given scores only.
            hook_point: Where the caller expects the vectors to live, if it matters.
            sae: The SAE, or `{layer: sae}`, whose latents it uses; its weights are not saved.

        Raises:
            TypeError: `host` is a model that is not attached.
            FileNotFoundError: There is no artefact.
            ValueError: It belongs to another model, processing mode or hook point, or to another
                SAE than the one given.
        """
        require_type("host", host, Host, "attach(bridge) first", optional=True)
        return load_detector(cls, folder, host, hook_point, sae)

    def _with(self, array: np.ndarray) -> list[tuple[str, Any]]:
        return list(zip(self.concepts, array.tolist(), strict=True))


ARRAYS = ("thresholds", "f1", "unit", "layer", "delta")
CUTS = tuple(field.name for field in fields(TokenCuts))


def save_detector(detector: Detector, folder: str | Path) -> Path:
    """Write a detector: vectors, thresholds, choices, baselines and provenance.

    Args:
        detector: What to save; its host is not saved.
        folder: A new folder, or one that holds an artefact to replace.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder holds something else.
    """
    tensors, bank = bank_parts(detector.bank)
    tables: dict[str, Any] = {}
    for name, found in [("tail", (detector.tail,)), *detector.baselines.items()]:
        tables[name] = [_table(f"{name} {k}", one, tensors) for k, one in enumerate(found)]
    for name in CUTS:
        tensors[f"cuts.{name}"] = torch.from_numpy(getattr(detector.cuts, name))
    record = {
        "what": "Detector",
        "bank": bank,
        "concepts": detector.concepts,
        "tables": tables,
        "missing": dict(detector.missing),
        "seen": {field.name: getattr(detector.seen, field.name) for field in fields(Seen)},
        "seed": detector.seed,
    }
    return write(Path(folder), tensors, record)


def load_detector(
    kind: type[Detector],
    folder: str | Path,
    host: Host | None = None,
    hook_point: str | None = None,
    sae: object = None,
) -> Detector:
    """Read a detector and check that it belongs to the host.

    Args:
        kind: The class.
        folder: Written by `save_detector`.
        host: The model it will score with; None to use stored scores only.
        hook_point: Where the caller expects the vectors to live, if it matters to them.
        sae: The SAE, or one a layer, of a bank of latents.

    Raises:
        FileNotFoundError: No artefact there.
        ValueError: Another model, processing mode or hook point; a damaged or foreign artefact.
    """
    tensors, record = read(Path(folder), "Detector")
    bank = bank_of(tensors, record["bank"], sae)
    require_hook_point(bank, hook_point)
    if host is not None:
        check_origin(bank, host)
    tables = {
        name: tuple(_calibrated(f"{name} {k}", one, tensors) for k, one in enumerate(found))
        for name, found in record["tables"].items()
    }
    seen = record["seen"]
    return kind(
        concepts=tuple(record["concepts"]),
        bank=bank,
        tail=tables.pop("tail")[0],
        baselines=tables,
        missing=record["missing"],
        cuts=TokenCuts(*(tensors[f"cuts.{name}"].numpy() for name in CUTS)),
        seen=Seen(
            seen["data_hash"], *(frozenset(seen[k]) for k in ("train", "cal", "train_texts", "cal_texts"))
        ),
        seed=record["seed"],
        host=host,
    )


def _table(name: str, one: Calibrated, tensors: dict[str, Tensor]) -> dict[str, Any]:
    for part in ARRAYS:
        # A copy: choices of supervised banks are broadcast views, which have no tensor form.
        tensors[f"{name}.{part}"] = torch.from_numpy(getattr(one, part).copy())
    return {"method": one.method, "deltas": one.deltas, "candidates": one.candidates}


def _calibrated(name: str, one: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibrated:
    arrays = {part: tensors[f"{name}.{part}"].numpy() for part in ARRAYS}
    return Calibrated(
        method=one["method"], deltas=tuple(one["deltas"]), candidates=one["candidates"], **arrays
    )
