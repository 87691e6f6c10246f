"""Objectives side by side where they can speak: the runs behind docs/findings/attribution.md.

python docs/experiments/attribution_runs.py run minilm_words --out runs --chunks 1
python docs/experiments/attribution_runs.py size runs --into docs/findings/attribution.md
python docs/experiments/attribution_runs.py run minilm_words --out runs --minutes 20
python docs/experiments/attribution_runs.py tables runs --into docs/findings/attribution.md
python docs/experiments/attribution_pictures.py runs docs/pictures

A run is a model on one kind of label: words, names of several words, sentences of a paragraph, patches.
It is a file for each chunk of twenty source documents, one case a document; what is there is not run
again, so a command is repeated until it prints "nothing left". `size` reads the first chunk of each run
and says how many documents a difference of .05 F1 asks for. Weights come from `make weights`, Brown from
docs/experiments/brown.py; nothing is downloaded here. Everything is seeded.
"""

import argparse
import json
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import sa_plugin as sa
from sa_plugin._files import write_text
from sa_plugin.attribution import Attribution, Comparison, Design, players_of, superpatches
from sa_plugin.data import Sample
from sa_plugin.loaders import emoji_scenes
from sa_plugin.stages import Graph, Plan
from sa_transformer_lens.host import load_bridge

# By F1 under "global", mean over the three runs of 22 November with sinks kept, of the twelve methods
# that ran in all: ranks 1 and 2, 6 and 7, 11 and 12.
METHODS = ("direct_alignment", "grad_cam", "occlusion", "kernel_shap", "input_x_gradient", "saliency")
OBJECTIVES = ("global", "superactivator", "superactivator_tokens", "superactivator_margin")
KIND = "separator"
CHUNK = 20
"""Documents: the first chunk says how many more are needed."""
WORDS = 20
SENTENCE = re.compile(r"(?<=[.!?;])[\"')]* +(?=[\"'(]?[A-Za-z])")
Span = tuple[int, int, str]


class Setting(NamedTuple):
    """How much is run on one model with one kind of label."""

    model: str
    concepts: tuple[str, ...]
    layers: tuple[int, ...]
    n_cal: int
    coalitions: int
    curve: int


SETTINGS = {
    "minilm_words": Setting("minilm", ("person", "time"), (2, 3, 4, 5), 6, 100, 5),
    "minilm_names": Setting("minilm", ("name",), (2, 3, 4, 5), 10, 120, 5),
    "minilm_paragraphs": Setting("minilm", ("person", "time"), (2, 3, 4, 5), 5, 80, 4),
    "smollm2_words": Setting("smollm2", ("person", "time"), (5,), 5, 100, 4),
    "vit_patches": Setting("vit", ("land mammal", "prepared food"), (3,), 3, 64, 3),
}


def divided(documents: Sequence[str], seed: int = 0) -> list[str]:
    """A split for each text: two documents of ten to train on, one to calibrate, the rest to test."""
    names = np.random.default_rng(seed).permutation(sorted(set(documents)))
    edges = (np.array([0.2, 0.3]) * len(names)).astype(int)
    of = {str(name): ("train", "cal", "test")[int((k >= edges).sum())] for k, name in enumerate(names)}
    return [of[name] for name in documents]


def words(concepts: tuple[str, ...], n: int = 2400) -> sa.ConceptData:
    """The first words of passages, labelled word by word."""
    rows = []
    for sample in sa.load("supersense").samples:
        text = " ".join(sample.text.split()[:WORDS])
        if sample.text.startswith(text):
            spans = [(s.start, s.end, s.concept) for s in sample.spans if s.end <= len(text)]
            rows.append((text, spans, sample.document, sample.id))
    return _drawn(rows, concepts, n, f"supersense, first {WORDS} words")


def names(concepts: tuple[str, ...]) -> sa.ConceptData:
    """The first words of Brown passages; proper nouns that follow one another are one name."""
    rows = []
    for sample in sa.load("brown").samples:
        text = " ".join(sample.text.split()[: WORDS + 5])
        found: list[list[int]] = []
        for s in sorted((s for s in sample.spans if s.concept == "proper noun"), key=lambda s: s.start):
            if s.end <= len(text) and found and text[found[-1][1] : s.start] == " ":
                found[-1][1] = s.end
            elif s.end <= len(text):
                found.append([s.start, s.end])
        several = any(" " in text[a:b] for a, b in found)
        # Half of the passages have a name of several words, half none at all; one a document and half.
        if sample.text.startswith(text) and (several or not found):
            rows.append((several, (text, [(a, b, "name") for a, b in found], sample.document, sample.id)))
    rng = np.random.default_rng(0)
    order = [rows[k] for k in rng.permutation(len(rows))]
    taken: Counter[tuple[str, bool]] = Counter()
    kept = []
    for several, row in order:
        taken[row[2], several] += 1
        if taken[row[2], several] == 1:
            kept.append(row)
    return _drawn(kept, concepts, 900, f"Brown, first {WORDS + 5} words")


def paragraphs(concepts: tuple[str, ...]) -> sa.ConceptData:
    """Passages of one document joined to eighty words; a labelled word labels its whole sentence."""
    joined: dict[str, list[tuple[str, list[Span], str, str]]] = {}
    for sample in sa.load("supersense").samples:
        rows = joined.setdefault(sample.document, [])
        own = [(s.start, s.end, s.concept) for s in sample.spans]
        if rows and len(rows[-1][0].split()) < 80:
            text, spans, document, name = rows[-1]
            shift = len(text) + 1
            moved = [(a + shift, b + shift, c) for a, b, c in own]
            rows[-1] = f"{text} {sample.text}", spans + moved, document, name
        else:
            rows.append((sample.text, own, sample.document, sample.id))
    every = [
        (text, list(_sentences(text, spans)), document, name)
        for rows in joined.values()
        for text, spans, document, name in rows
        if len(text.split()) <= 140
    ]
    return _drawn(every, concepts, 700, "supersense, paragraphs labelled by the sentence")


def _sentences(text: str, spans: Sequence[Span]) -> Iterator[Span]:
    edges = [0, *(m.end() for m in SENTENCE.finditer(text)), len(text)]
    for start, stop in pairwise(edges):
        for concept in sorted({c for a, b, c in spans if start <= a and b <= stop}):
            yield start, start + len(text[start:stop].rstrip()), concept


def _drawn(
    rows: Sequence[tuple[str, list[Span], str, str]], concepts: tuple[str, ...], n: int, name: str
) -> sa.ConceptData:
    keep = sorted(np.random.default_rng(0).permutation(len(rows))[:n].tolist())
    texts, spans, documents, ids = zip(*(rows[k] for k in keep), strict=True)
    return sa.ConceptData.from_spans(
        texts,
        [[s for s in one if s[2] in concepts] for one in spans],
        concepts=concepts,
        documents=documents,
        ids=ids,
        splits=divided(documents),
        name=name,
    )


def patches(concepts: tuple[str, ...]) -> sa.ConceptData:
    """Scenes of emoji."""
    return emoji_scenes(260, seed=0, fractions=(0.4, 0.2, 0.4))


LABELS: dict[str, Callable[[tuple[str, ...]], sa.ConceptData]] = {
    "words": words,
    "names": names,
    "paragraphs": paragraphs,
    "patches": patches,
}


def data_of(run: str) -> sa.ConceptData:
    """The data of a run; SmolLM2 costs more than MiniLM and has fewer passages."""
    labels, concepts = run.split("_")[1], SETTINGS[run].concepts
    return words(concepts, 700) if run == "smollm2_words" else LABELS[labels](concepts)


def word_players(host: Any, sample: Sample, *, size: int = 1, first: int = 0) -> np.ndarray:
    """Players of one word or of some that follow one another; the first tokens are never masked."""
    (batch,) = host.batches([sample])
    player = players_of(sample, batch, "word")
    player = np.where((player >= 0) & (np.arange(len(player)) >= first), player // size, -1)
    # A first word of one token leaves no player, so they are numbered again.
    player[player >= 0] = np.unique(player[player >= 0], return_inverse=True)[1]
    return player


def _players(run: str) -> Callable[..., np.ndarray]:
    model, labels = run.split("_")
    if labels == "patches":
        return partial(superpatches, block=4)
    # A paragraph has too many words to mask each; the first token of SmolLM2 is its attention sink.
    return partial(word_players, size=8 if labels == "paragraphs" else 1, first=int(model == "smollm2"))


class Case(NamedTuple):
    """A concept in a sample, and how many SuperActivators it has there."""

    concept: str
    sample: Sample
    n_tail: int


def cases(graph: Graph, concepts: Sequence[str]) -> tuple[list[Case], Counter[str]]:
    """One case a test document, in a seeded order of documents; and how many there are of each stratum.

    A document gives the case of the stratum that has fewest so far, so that long tails are there too.
    """
    detector, table = graph.detector(KIND), graph.table(KIND).split("test")
    tail, tokens = detector.superactivators(table), table.tokens
    by_document: dict[str, list[Case]] = {}
    for n, sample in enumerate(tokens.samples):
        rows = slice(tokens.bounds[n], tokens.bounds[n + 1])
        for concept in concepts:
            labels = tokens.labels[rows, tokens.concepts.index(concept)]
            n_tail = int(tail[rows, detector.concepts.index(concept)].sum())
            if labels.any() and not labels.all() and n_tail:
                by_document.setdefault(sample.document, []).append(Case(concept, sample, n_tail))
    there = Counter(stratum_of(one.n_tail) for every in by_document.values() for one in every)
    so_far: Counter[str] = Counter()
    chosen = []
    for k in np.random.default_rng(0).permutation(len(by_document)).tolist():
        found = by_document[sorted(by_document)[k]]
        # Of those as rare, the first concept of the first sample.
        best = min(found, key=lambda one: so_far[stratum_of(one.n_tail)])
        so_far[stratum_of(best.n_tail)] += 1
        chosen.append(best)
    # After the first chunk, of which the sample size is made, strata take turns while they last.
    first, rest = chosen[:CHUNK], chosen[CHUNK:]
    turn: Counter[str] = Counter()
    order = []
    for one in rest:
        order.append((turn[stratum_of(one.n_tail)], one))
        turn[stratum_of(one.n_tail)] += 1
    return [*first, *(one for _, one in sorted(order, key=lambda pair: pair[0]))], there


def stratum_of(n_tail: int) -> str:
    """By number of SuperActivators."""
    return "1" if n_tail == 1 else "2" if n_tail == 2 else "3 to 9" if n_tail < 10 else "10 and more"


def run(given: argparse.Namespace) -> None:
    """Whatever chunks of one run are missing, until the time is over."""
    began, setting = time.time(), SETTINGS[given.run]
    given.out.mkdir(parents=True, exist_ok=True)
    host, data = sa.attach(load_bridge(setting.model)), data_of(given.run)
    graph = Graph(host, data, Plan({KIND: setting.layers}))
    chosen, there = cases(graph, setting.concepts)
    n = -(-len(chosen) // CHUNK)
    left = [k for k in range(n) if not _path(given.out, given.run, k).exists()]
    print(
        given.run,
        len(chosen),
        "documents with a case;",
        dict(there),
        f"{time.time() - began:.0f} s",
        flush=True,
    )
    for k in left[: given.chunks]:
        if time.time() - began > 60 * given.minutes:
            break
        start = time.time()
        found = _compared(host, data, graph.detector(KIND), given.run, chosen[k * CHUNK : (k + 1) * CHUNK])
        about = {
            "run": given.run,
            "chunk": k,
            "chunks": n,
            "documents": len(chosen),
            "cases": dict(there),
            "data": data.name,
            "hash": data.hash[:12],
            "seconds": round(time.time() - start),
            "n_layers": host.info.n_layers,
            **setting._asdict(),
            "objectives": OBJECTIVES,
            **found.settings,
        }
        write_text(_path(given.out, given.run, k), json.dumps(packed(found) | {"about": about}) + "\n")
        print(k, about["seconds"], "s", found.coverage, flush=True)
    if all(_path(given.out, given.run, k).exists() for k in range(n)):
        print("nothing left")


def _path(out: Path, run: str, chunk: int) -> Path:
    return out / f"{run}_{chunk:02d}.json"


def _compared(host: Any, data: sa.ConceptData, detector: Any, run: str, chosen: Sequence[Case]) -> Comparison:
    setting = SETTINGS[run]
    # A sample is there for one concept: the labels of the others are taken away.
    own = {one.sample.id: one.sample.only([one.concept]) for one in chosen}
    every = zip(data.samples, data.split_of, strict=True)
    samples, split_of = zip(
        *((own.get(s.id, s), at) for s, at in every if at != "test" or s.id in own), strict=True
    )
    concepts = [c for c in setting.concepts if any(one.concept == c for one in chosen)]
    return sa.compare(
        host,
        replace(data, samples=samples, split_of=split_of),
        detector,
        methods=METHODS,
        objectives=OBJECTIVES,
        concepts=concepts,
        design=Design(
            len(chosen),
            setting.n_cal,
            options={"kernel_shap": {"n_coalitions": setting.coalitions}},
            n_steps=setting.curve,
            players=_players(run),
        ),
    )


def packed(found: Comparison) -> dict[str, Any]:
    """What tables and pictures need, JSON-ready."""
    measured = [
        asdict(one)
        | {
            "scores": list(one.scores),
            "ranks": one.ranks.tolist(),
            "labels": one.labels.tolist(),
            "areas": dict(one.areas),
        }
        for one in found.trials
    ]
    curves = [[*key, np.asarray(line.estimate).tolist()] for key, line in found.curves.items()]
    return {
        "coverage": [asdict(one) for one in found.coverage],
        "measured": measured,
        "curves": curves,
        "grid": list(found.shares),
        "examples": [_example(one) for one in found.examples],
    }


def _example(one: Attribution) -> dict[str, Any]:
    kept = ~np.isnan(one.of_token)
    offsets = one.offsets[kept]
    return {
        "method": one.method,
        "objective": one.objective,
        "concept": one.concept,
        "sample": one.sample.id,
        "importance": one.of_token[kept].tolist(),
        "offsets": offsets.tolist(),
        "text": one.sample.text if one.sample.image is None else None,
        "labels": one.sample.token_labels(offsets, [one.concept])[:, 0].tolist(),
    }


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("run", choices=list(SETTINGS))
    running.add_argument("--chunks", type=int, help="at most so many of those that are missing")
    running.add_argument("--minutes", type=float, default=1e9, help="start no chunk after these")
    running.add_argument("--out", type=Path, required=True)
    for name in ("size", "tables"):
        shown = commands.add_parser(name)
        shown.add_argument("out", type=Path)
        shown.add_argument("--into", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.command == "run":
        run(given)
    else:
        import attribution_tables

        {"size": attribution_tables.show_size, "tables": attribution_tables.show}[given.command](
            given.out, given.into
        )


if __name__ == "__main__":
    main()
