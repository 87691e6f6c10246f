"""One passage explained with an objective, by TransformerLens's own tools.

Tokens: gradient times (embedding - mean train embedding), at the residual that enters block 0.
Heads: `transformer_lens.tools.analysis.attribution_patch` on a view of the model that ends at the
objective's layer, from a corrupted passage whose SuperActivator tokens are replaced by other tokens
of the same passage; a head's number is the sum over positions of its first-order effect.

What the numbers do not show: both are first-order. A large number is a lead for a patching
experiment, not its result.

The commands `sa-plugin demo` and `sa-plugin run`: the pipeline on a model folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa_plugin._check import require
from sa_plugin.attribution.objective import objective
from sa_plugin.concepts.kinds import KINDS, kind_of
from sa_plugin.data.concept_data import ConceptData
from sa_plugin.data.sample import Sample
from sa_plugin.detection.detector import Detector
from sa_plugin.host.protocol import Host, attach
from sa_plugin.loaders.emoji import emoji_scenes
from sa_plugin.loaders.registry import load
from sa_plugin.loaders.shape_scenes import shapes
from sa_plugin.report.page import write_report
from sa_plugin.report.schema import Explained, Explanation, read_results, write_results
from sa_plugin.scores.table import ScoreTable
from sa_plugin.stages.pipeline import Analysis, Settings, analyse
from sa_transformer_lens.host import TransformerLensVisionHost, load_bridge
from sa_transformer_lens.prefix import prefix_view

Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Attribution:
    """What an objective owes to tokens and heads of one passage.

    Attributes:
        value: The objective on the passage.
        corrupted: The objective on the corrupted passage.
        tokens: Of every token of the model's input.
        heads: Of every head up to the objective's layer.
    """

    value: float
    corrupted: float
    tokens: Float[np.ndarray, " token"]
    heads: Float[np.ndarray, "block head"]


def explain(
    host: Any,
    objective: Any,
    sample: Sample,
    replaced: Bool[np.ndarray, " token"],
    mean_embedding: Float[Tensor, " d_model"] | None,
    *,
    seed: int = 0,
) -> Attribution:
    """Attribute one objective to the tokens and heads of one sample.

    Costs three forward and two backward passes up to the objective's layer, and the two passes of
    the values.

    Args:
        host: A TransformerLens host.
        objective: An `Objective` made for this sample.
        sample: The passage.
        replaced: Positions of the model's input that the corrupted passage replaces.
        mean_embedding: Mean train residual that enters block 0; None for the mean of the passage.
        seed: Of the draw of replacements.

    Returns:
        Attributions by token and head.

    Raises:
        ValueError: Nothing is replaced, or everything.
    """
    if not replaced.any() or replaced.all():
        raise ValueError(
            f"{int(replaced.sum())} of {len(replaced)} tokens are to be replaced: the corrupted "
            "passage needs tokens to replace and tokens to replace them by."
        )
    inputs = dict(host.forward_inputs(sample))
    ids = _input_ids(inputs)
    view = prefix_view(host, objective, **inputs)
    corrupt = corrupted(ids, replaced, seed, objective.mask[0].cpu().numpy())
    patch = require("transformer_lens.tools.analysis", "transformer-lens").attribution_patch
    found = patch(view, ids, corrupt, objective.metric)
    heads = _by_head(found.node_scores, host, objective.layer)
    with torch.no_grad():
        value, broken = (float(objective.metric(view(x))) for x in (ids, corrupt))
    tokens = token_gradients(view, objective.metric, ids, mean_embedding)
    return Attribution(value, broken, tokens, heads)


def corrupted(
    ids: Tensor,
    replaced: Bool[np.ndarray, " token"],
    seed: int,
    words: Bool[np.ndarray, " token"] | None = None,
) -> Tensor:
    """The same passage with some tokens replaced by others of its own.

    Args:
        ids: One row.
        replaced: What to replace.
        seed: Of the draw.
        words: What may stand in, such as an objective's mask, which leaves special tokens out; by
            default every token.

    Raises:
        ValueError: Nothing is left to stand in.
    """
    rng = np.random.default_rng(seed)
    pool = np.flatnonzero(~replaced if words is None else words & ~replaced)
    if not len(pool):
        raise ValueError("every word of the passage is to be replaced: none is left to stand in.")
    out = ids.clone()
    for position in np.flatnonzero(replaced):
        out[0, int(position)] = ids[0, int(rng.choice(pool))]
    return out


def token_gradients(
    view: Any, metric: Metric, ids: Tensor, mean: Float[Tensor, " d_model"] | None
) -> Float[np.ndarray, " token"]:
    """Gradient times (embedding - mean), summed over dimensions."""
    box: dict[str, Tensor] = {}

    def leaf(value: Tensor, hook: Any) -> Tensor:
        box["x"] = value.detach().requires_grad_(True)
        return box["x"]

    with torch.enable_grad():
        resid = view.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_resid_pre", leaf)])
        (gradient,) = torch.autograd.grad(metric(resid), box["x"])
    x = box["x"].detach()
    delta = x - (x.mean(1, keepdim=True) if mean is None else mean.to(gradient))
    return np.asarray((delta * gradient)[0].sum(-1).float().cpu())


def _input_ids(inputs: dict[str, Tensor]) -> Tensor:
    for name in ("input_ids", "input", "tokens"):
        if name in inputs:
            return inputs.pop(name)
    raise ValueError(f"the host's inputs hold no token ids: {sorted(inputs)}.")


def _by_head(scores: Mapping[Any, float], host: Any, layer: int) -> Float[np.ndarray, "block head"]:
    out = np.zeros((layer + 1, host.info.n_heads))
    for node, value in scores.items():
        if node.kind == "attn_head_out":
            out[node.layer, node.head] += value
    return out


OBJECTIVES = ("superactivator", "superactivator_tokens", "global")
TOKENS = "gradient x (embedding - mean)"
PASSAGES = {"small": 240, "default": 600}
SCENES = {"small": 200, "default": 400, "full": 1500}
# Clusters of the image demo: the default number, tokens // 50, takes minutes on patches.
IMAGE_CLUSTERS = 200
# Extrapolated from the default setting on two idle cores; the command says so before it starts.
FULL_MINUTES = {"smollm2": 90, "minilm": 25, "vit": 90}


def demo(model: str | Path, size: str, split: str, out: Path, *, seed: int = 0) -> Analysis:
    """Run the main job on a model: text on the embedded data, images on rendered scenes.

    Args:
        model: A folder or a name that `sa_plugin.host.find_folder` knows.
        size: "small", "default" or "full".
        split: "plain" or "held_out_lemma".
        out: Folder for `results.json` and `report.html`.
        seed: Of every random choice.

    Raises:
        FileNotFoundError: As `find_folder`.
    """
    name = Path(model).name
    if size == "full" and name in FULL_MINUTES:
        print(
            f"The full setting takes about {FULL_MINUTES[name]} minutes on two idle cores "
            "(extrapolated from the default one)."
        )
    host = attach(load_bridge(model))
    images = isinstance(host, TransformerLensVisionHost)
    data = scenes(size, seed) if images else passages(size, split, seed)
    settings = demo_settings(host.info.n_layers, size, seed, images=images)
    return _run(host, data, settings, out, name)


def passages(size: str, split: str, seed: int) -> ConceptData:
    """The embedded data, or a part of it."""
    data = load("supersense", split=split, seed=seed)
    return data.subset(PASSAGES[size], seed=seed) if size in PASSAGES else data


def scenes(size: str, seed: int) -> ConceptData:
    """Emoji scenes where the font is present, else shapes; the name of the data says which."""
    try:
        return emoji_scenes(SCENES[size], seed=seed)
    except (FileNotFoundError, ImportError) as missing:
        print(f"{missing}\nUsing rendered shapes instead.")
        return shapes(SCENES[size], seed=seed)


def demo_settings(n_layers: int, size: str, seed: int, *, images: bool = False) -> Settings:
    """Layers and kinds of a demo size.

    Small models are read at every block. Of deep ones every third block is read, not the last: to
    stop before it spares the unembedding.
    """
    clusters = {"k": IMAGE_CLUSTERS} if images else {}
    options = {"kmeans": clusters, "kmeans_separator": clusters}
    every = tuple(range(n_layers)) if n_layers <= 12 else tuple(range(1, n_layers - 1, 3))
    if size == "full":
        # Clusters cost minutes a block, so they keep to every third of a deep model.
        whole = tuple(range(n_layers))
        kinds = {kind: whole if kind_of(kind).supervised else every for kind in KINDS}
        return Settings(kinds, seed=seed, options=options)
    if size == "small":
        every = every[1::2]
    middle = (every[2 * len(every) // 3],)
    kinds = {"prototype": every, "separator": every, "kmeans": middle, "kmeans_separator": middle}
    draws = 200 if size == "small" else 1000
    return Settings(kinds, draws=draws, seed=seed, options=options)


def run(
    model: str | Path, data: Path, out: Path, *, layers: Sequence[int] | None = None, seed: int = 0
) -> Analysis:
    """Run the main job on a model folder and a JSONL file of the user's.

    Args:
        model: A folder or a name that `sa_plugin.host.find_folder` knows.
        data: One object a line: `text`, `labels` as `[[start, end, concept], ...]`, and
            optionally `id`, `document`, `split`.
        layers: Block indices; all by default.
        out: Folder for `results.json` and `report.html`.
        seed: Of every random choice.

    Raises:
        FileNotFoundError: A path is wrong.
        ValueError: A line lacks a key; the text names the line.
    """
    texts = load(data, seed=seed)
    host = attach(load_bridge(model))
    blocks = tuple(layers) if layers else tuple(range(host.info.n_layers))
    settings = Settings({"prototype": blocks, "separator": blocks}, seed=seed)
    return _run(host, texts, settings, out, Path(model).name)


def _run(host: Host, data: ConceptData, settings: Settings, out: Path, name: str) -> Analysis:
    print(f"{host!r}\n{data!r}", flush=True)
    begun = time.perf_counter()
    found = analyse(
        host,
        data,
        settings,
        explain=None if data.samples[0].image else explain_passage,
        say=lambda stage: print(f"[{time.perf_counter() - begun:5.0f} s] {stage}", flush=True),
    )
    found.results["provenance"]["command"] = f"sa-plugin, model {name}, data {data.name}"
    out.mkdir(parents=True, exist_ok=True)
    path = write_results(found.results, out / "results.json")
    report = write_report(read_results(path), out / "report.html")
    for part in found.text:
        print(f"\n{part}")
    for note in found.results["warnings"]:
        print(f"\nwarning: {note}")
    print(f"\n{marked(found)}")
    print(f"\n{time.perf_counter() - begun:.0f} s. {path}, {report}")
    return found


def marked(found: Analysis) -> str:
    """The first passage shown, its SuperActivators in brackets."""
    for passage in found.results.get("passages", []):
        text, shift = passage["text"], 0
        for (start, end), on in zip(passage["offsets"], passage["superactivator"], strict=True):
            if on:
                a, b = start + shift, end + shift
                text, shift = f"{text[:a]}[[{text[a:b]}]]{text[b:]}", shift + 4
        return (
            f"Passage {passage['id']}, SuperActivators of {passage['concept']!r} at layer "
            f"{passage['layer']} in [[ ]] ({passage['role'].replace('_', ' ')}):\n{text}"
        )
    for picture in found.results.get("pictures", []):
        marks = [box for box, on in zip(picture["boxes"], picture["superactivator"], strict=True) if on]
        places = ", ".join(f"({top:.0f}, {left:.0f})" for top, left, *_ in marks) or "none"
        return (
            f"Image {picture['id']}, SuperActivator patches of {picture['concept']!r} at layer "
            f"{picture['layer']} ({picture['role'].replace('_', ' ')}), top left corners, pixels: "
            f"{places}. The report shows {len(found.results['pictures'])} images."
        )
    return "No passage to show."


def explain_passage(
    host: Host, data: ConceptData, detector: Detector, table: ScoreTable, seed: int
) -> Explained | None:
    """One test passage explained with three objectives, by the same explainer.

    The passage is not picked by hand: of the true positives of the concept with most test
    positives, the one at the median margin.
    """
    picked = _pick(detector, table)
    means = detector.bank.component_means
    if picked is None:
        return None
    n, c = picked
    tokens, concept = table.tokens, detector.concepts[c]
    sample: Sample = tokens.samples[n]
    rows = slice(int(tokens.bounds[n]), int(tokens.bounds[n + 1]))
    tail = detector.superactivators(table)[rows, c]
    position = tokens.position[rows]
    n_inputs = int(host.batches([sample])[0].inputs["attention_mask"].sum())
    replaced = np.zeros(n_inputs, dtype=bool)
    replaced[position[tail]] = True
    explanations: list[Explanation] = []
    coverage = None
    for name in OBJECTIVES:
        goal = objective(name, detector=detector, concept=concept, sample=sample, host=host)
        coverage = goal.coverage if name == "superactivator" else coverage
        got = explain(host, goal, sample, replaced, None if means is None else means.embedding, seed=seed)
        one: Explanation = {
            "objective": name,
            "method": f"{TOKENS}; heads: attribution_patch",
            "value": got.value,
            "tokens": got.tokens[position].tolist(),
            "dropped": _share_elsewhere(got.tokens, position),
            "heads": got.heads.tolist(),
        }
        explanations.append(one)
    return {
        "id": sample.id,
        "concept": concept,
        "kind": detector.bank.kind,
        "layer": detector.layer[concept],
        "text": sample.text,
        "offsets": tokens.offsets[rows].tolist(),
        "superactivator": tail.tolist(),
        "in_concept": tokens.labels[rows, tokens.concepts.index(concept)].tolist(),
        "explanations": explanations,
        "coverage": coverage,
        "comment": (
            "First-order attributions: leads, not proofs. Heads: from a corrupted passage whose "
            "SuperActivator tokens are replaced by other tokens of the passage."
        ),
    }


def _share_elsewhere(tokens: Float[np.ndarray, " token"], shown: Int[np.ndarray, " kept"]) -> float:
    """Share of the summed sizes that lies on tokens that are not rows: sinks and special tokens."""
    sizes = np.abs(tokens)
    return float(1 - sizes[shown].sum() / sizes.sum()) if sizes.any() else 0.0


def _pick(detector: Detector, table: ScoreTable) -> tuple[int, int] | None:
    """The true positive at the median margin, of the largest concept that has one."""
    scores = detector.token_scores(table)
    margin = np.maximum.reduceat(scores, table.tokens.bounds[:-1]) - detector.tail.chosen_threshold
    positive = table.tokens.sample_labels
    for c in np.argsort(-positive.sum(0), kind="stable"):
        rows = np.flatnonzero(positive[:, c] & (margin[:, c] >= 0))
        if len(rows):
            order = rows[np.argsort(margin[rows, c], kind="stable")]
            return int(order[len(order) // 2]), int(c)
    return None
