"""Score tables of real models on file, and every number that is computed from them, by name.

`golden/scores_*.npz` hold scores of SmolLM2 and of the ViT (rounded to 11 bits, so that ties occur), and
`golden/numbers_*.json.gz` what the code of 2026-11-22 said of them. No model is needed. An issue that
changes a number on purpose writes the file anew (`write_golden`) in a commit of its own that lists
each number and why.
"""

import gzip
import json
import math
import warnings
from pathlib import Path

import numpy as np
import torch

from sa_plugin.concepts import ConceptBank, VectorSet
from sa_plugin.data import ConceptData, Sample
from sa_plugin.detection import calibrate
from sa_plugin.passes import TokenTable
from sa_plugin.scores import ScoreTable
from sa_plugin.statistics import Resampling
from sa_plugin.tracing import TraceOptions, trace

DRAWS, TRACE_DRAWS, QUANTILE_DRAWS = Resampling(200), Resampling(100), 50
BY_SAMPLE = ("permuted_max", "pooled", "cls")
CHOICE = ("layer", "unit", "delta", "threshold", "cal_f1", "candidates", "n_cal_tokens")


def read_case(path, suffix=""):
    """Data, bank and table of a stored file; `suffix` chooses a second bank over the same tokens.

    Vectors of the bank are zeros: nothing is scored with them.
    """
    with np.load(path, allow_pickle=False) as held:
        found = {name: held[name] for name in held.files}
    names = json.loads(str(found["names"]))
    of = names["banks"][suffix]
    concepts = tuple(names["concepts"])
    samples = tuple(
        Sample(name, f"sample {name}", document, positive=frozenset(positive))
        for name, document, positive in zip(names["ids"], names["documents"], names["positive"], strict=True)
    )
    data = ConceptData(concepts, samples, tuple(names["split_of"]), names["name"])
    scored = names["scored"]
    n_layers = len(of["layers"])

    def vectors(name):
        zeros = torch.zeros(n_layers, found[name + suffix].shape[-1], 1)
        return VectorSet(zeros, torch.zeros(n_layers, 1), torch.ones(n_layers), of["scoring"])

    kept = {name.removesuffix("_max"): vectors(name) for name in BY_SAMPLE if name + suffix in found}
    units, layers = tuple(of["units"]), tuple(of["layers"])
    bank = ConceptBank(concepts, units, layers, "resid_post", of["kind"], vectors("scores"), **kept)
    tokens = TokenTable(
        tuple(samples[k] for k in scored),
        tuple(names["split_of"][k] for k in scored),
        concepts,
        np.repeat(np.arange(len(scored)), found["lengths"]),
        found["position"].astype(np.int64),
        found["offsets"],
        found["labels"],
        names["dropped"],
    )
    by_sample = (found.get(f"{name}{suffix}") for name in BY_SAMPLE)
    return data, bank, ScoreTable(tokens, bank, found[f"scores{suffix}"], *by_sample)


def numbers(data, bank, table):
    """Everything that calibration, detection, localisation, sparsity and tracing say of a table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = calibrate(None, data, bank, scores=table)
        given = {"scores": table, "resampling": DRAWS}
        parts = {
            **choices(detector),
            **evaluated(detector.evaluate(data.test, **given)),
            **localised(detector, data, table, detector.evaluate_tokens(data.test, **given)),
            **swept(detector.sweep(data.test, **given)),
            **traced(
                trace(
                    scores=table,
                    columns=detector.tail.unit,
                    resampling=TRACE_DRAWS,
                    options=TraceOptions(quantile_draws=QUANTILE_DRAWS),
                )
            ),
        }
    return plain(parts)


def choices(detector):
    """What calibration chose, of every method, and the whole table of the SuperActivators."""
    found = {}
    for concept in detector.concepts:
        one = detector.choice(concept)
        found |= {f"choice/{concept}/{name}": getattr(one, name) for name in CHOICE}
    for name in ("deltas", "thresholds", "f1", "unit"):
        found[f"tail/{name}"] = getattr(detector.tail, name)
    for method, each in detector.baselines.items():
        for draw, one in enumerate(each):
            where = f"baseline/{method}/{draw}"
            found |= {
                f"{where}/unit": one.chosen_unit,
                f"{where}/layer": one.layer,
                f"{where}/delta": one.chosen_delta,
                f"{where}/threshold": one.chosen_threshold,
                f"{where}/f1": one.chosen_f1,
                f"{where}/candidates": one.candidates,
            }
    return found | {f"cuts/{name}": value for name, value in vars(detector.cuts).items()}


def evaluated(found):
    """Detection: means over concepts, differences, every concept, rates and fractions."""
    out = {f"n_positive/{concept}": n for concept, n in found.n_positive.items()}
    for average in ("weighted", "macro"):
        for metric, drawn in getattr(found, average).items():
            out |= each(drawn, f"evaluate/{average}/{metric}")
    for metric, drawn in found.difference.items():
        out |= each(drawn, f"evaluate/difference/{metric}")
    for metric, drawn in found.concept.items():
        out |= each(drawn, f"evaluate/concept/{metric}")
    for name, drawn in found.rates.items():
        out |= each(drawn, f"rates/{name}")
    for name in ("all", "inside", "above_one", "n", "skipped"):
        out[f"fractions/{name}"] = getattr(found.fractions, name)
    return out


def localised(detector, data, table, metrics):
    """Localisation, what is detected and what is found."""
    located = detector.localise(data.test, scores=table)
    detection = detector.detect(data.test, scores=table)
    hits = detector.find(data.test, scores=table)
    out = each(metrics.f1, "localise/f1") | each(metrics.difference, "localise/difference")
    for name, values in metrics.weighted.items():
        out |= {f"localise/{name}/{method}": value for method, value in values.items()}
    out |= {
        f"localise/{name}": getattr(located, name).sum(0)
        for name in ("mask", "superactivators", "raw", "detected")
    }
    out |= {"detect/present": detection.present.sum(0), "detect/margin": detection.margin}
    rows = {concept: [hit.row for hit in hits if hit.concept == concept] for concept in detector.concepts}
    return out | {f"find/{concept}": found for concept, found in rows.items()}


def swept(curve):
    """The delta curve."""
    out = each(curve.f1, "sweep") | {"sweep/layer": curve.layer}
    out["sweep/always-positive"] = ends(curve.always_positive)
    return out | {f"sweep/chosen/{method}": n for method, n in curve.chosen.items()}


def traced(found):
    """Every measure of the trace, its mean over concepts, and how that changes."""
    out = {}
    first, last = found.layers[0], found.layers[-1]
    for name, drawn in found.measures.items():
        out |= each(drawn, f"trace/{name}")
        mean = found.means[name]
        out |= each(mean, f"trace/mean/{name}")
        out[f"trace/change/{name}"] = ends(mean.sel(layer=last) - mean.sel(layer=first))
    return out | {f"trace/counts/{name}": n for name, n in found.counts.items()}


def each(drawn, name):
    """Estimate and bounds of every cell, by the labels of its axes."""
    labels = [list(drawn.axes[axis]) for axis in drawn.axes]
    low, high = drawn.bounds
    return {
        "/".join([name, *(str(labels[k][i]) for k, i in enumerate(at))]): [
            drawn.estimate[at],
            low[at],
            high[at],
        ]
        for at in np.ndindex(drawn.estimate.shape)
    }


def ends(drawn):
    """Estimate and bounds of one number."""
    return [drawn.estimate, drawn.low, drawn.high]


def plain(x):
    """JSON-ready: what is not finite is named."""
    if isinstance(x, dict):
        return {str(k): plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [plain(v) for v in x]
    if isinstance(x, np.ndarray | np.generic):
        return plain(x.tolist())
    if isinstance(x, float) and not math.isfinite(x):
        return "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"
    return x


def write_golden(found, path):
    """Numbers as JSON, compressed, the same bytes each time."""
    raw = json.dumps({"format": 1, "numbers": found}, separators=(",", ":")).encode()
    Path(path).write_bytes(gzip.compress(raw, 9, mtime=0))


def read_golden(path):
    """What `write_golden` wrote."""
    return json.loads(gzip.decompress(Path(path).read_bytes()))["numbers"]
