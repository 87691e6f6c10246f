"""A synthetic but realistic results dictionary, for tests of the report and the plots.

Scores are drawn from a model in which the in-concept distribution grows a heavy upper tail with
depth, so that every figure has the shape that a real run gives it. Nothing here is a finding.
"""

from typing import Any

import numpy as np

CONCEPTS = ["animal", "artifact", "body", "communication", "food", "person", "plant", "time"]
LAYERS = [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 29]
DELTAS = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
METHODS = {
    "SuperActivators": 0.731,
    "MaxTok": 0.724,
    "Top10%": 0.702,
    "MeanTok": 0.622,
    "pooled": 0.561,
    "always-positive": 0.549,
    "length-only": 0.552,
    "LastTok": 0.541,
    "RandTok": 0.538,
    "MaxTok permuted": 0.551,
}
N_HEADS = 9

WHALE = (
    "The whale, which had been harpooned at dawn, rolled slowly in the swell while the "
    "captain watched from the deck and the men ate their bread in silence."
)
SHIP = (
    "Our treaty with the neighbouring nation secures the passage of vessels through the strait, "
    "and no bull of any foreign court shall disturb it."
)
EVIL = 'He wrote "<script>alert(1)</script>" & swore that a <b>horse</b> had dictated it.'


def results(seed: int = 0) -> dict[str, Any]:
    """Of the size of the demo's."""
    rng = np.random.default_rng(seed)
    return {
        "schema": 1,
        "meta": _meta(),
        "kinds": {"prototype": _kind(rng, 0.0), "separator": _kind(rng, -0.012, full=False)},
        "passages": _passages(rng),
        "explained": _explained(rng),
        "provenance": _provenance(),
        "warnings": ["TooFewTokensWarning: plant has 41 calibration tokens: delta 0.02 needs 50."],
    }


def small(seed: int = 0) -> dict[str, Any]:
    """With three concepts in the figures and few heads: quick to render."""
    one = results(seed)
    block = one["kinds"]["prototype"]
    drawn, heads = block["trace"]["distributions"], block["heads"]
    drawn["concepts"] = {c: drawn["concepts"][c] for c in CONCEPTS[:2]}
    heads["concepts"] = {c: heads["concepts"][c] for c in CONCEPTS[:2]}
    for head_map in heads["concepts"].values():
        for name in ("lift", "control", "contrast"):
            head_map[name] = [row[:4] for row in head_map[name][:9]]
    for each in one["explained"]["explanations"]:
        each["heads"] = [row[:4] for row in each["heads"][:9]]
    del one["kinds"]["separator"]["sparsity"]
    return one


def _meta() -> dict[str, Any]:
    return {
        "model": "SmolLM2-135M-Instruct",
        "architecture": "LlamaForCausalLM",
        "data": "supersense (embedded, silver labels)",
        "data_hash": "3f9a1c77b2d04e55",
        "data_note": "Labels are silver: nouns by WordNet supersense, precision 0.93 on 200 words.",
        "concepts": CONCEPTS,
        "layers": LAYERS,
        "n_blocks": 30,
        "hook_point": "resid_post",
        "processing": "none",
        "primary_kind": "prototype",
        "seed": 0,
        "samples": {"train": 360, "cal": 120, "test": 120},
        "documents": {"train": 171, "cal": 57, "test": 58},
        "tokens_kept": 41_873,
        "tokens_dropped": {"sink": 600, "special": 0, "padding": 9_214},
        "intervals": {"unit": "document", "draws": 1000, "level": 0.95},
    }


def _drawn(value: float, half: float = 0.05) -> dict[str, Any]:
    """As `Drawn.to_dict` writes a number without axes."""
    low, high = _interval(value, half)
    made = {"level": 0.95, "documents": 58}
    return {"axes": {}, "estimate": value, "low": low, "high": high, **made}


def _peaks() -> dict[str, Any]:
    shares = {"small_share": _drawn(0.625), "large_share": _drawn(0.25)}
    counts = [3, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 0]
    places = {"layer": 20, "deltas": DELTAS, "on_test": counts, "on_cal": counts, "small": 0.1, "large": 0.5}
    return {"format": 1, "kind": "DeltaPeaks", **places, **shares, "gain": _drawn(0.061, 0.02)}


def _density() -> dict[str, Any]:
    inside = {"0.1": _drawn(0.41), "0.2": _drawn(0.62), "0.5": _drawn(0.87)}
    return {"all": dict(inside), "inside": inside}


def _separation() -> dict[str, Any]:
    parts = ("in_mass_at_fpr", "realised_fpr", "coverage", "negative_coverage", "auroc")
    return {"layer": 20, **{name: _drawn(0.3) for name in parts}, "coverage_difference": _drawn(0.44)}


def attribution() -> dict[str, Any]:
    """As `Comparison.to_dict` writes it, with what a study adds."""
    rows = []
    for metric, better in (("f1", "higher"), ("deletion/mean_alignment", "lower"), ("auroc_micro", "higher")):
        for k, method in enumerate(("direct_alignment", "integrated_gradients")):
            row: dict[str, Any] = {
                "concept": "all",
                "stratum": "all",
                "method": method,
                "metric": metric,
                "better": better,
            }
            row["n_samples"] = 24
            gap = 0.11 - 0.2 * k
            for name, value in (
                ("global", 0.31),
                ("superactivator", 0.31 + gap),
                ("superactivator_difference", gap),
            ):
                low, high = _interval(value, 0.04)
                row |= {name: round(value, 4), f"{name}_low": low, f"{name}_high": high}
            said = ("better", "worse") if better == "higher" else ("worse", "better")
            rows.append({**row, "superactivator_is": said[k], "superactivator_detectable": 0.056})
    cover = {
        "layer": 20,
        "positive": 14,
        "covered": 12,
        "compared": 8,
        "cal": 4,
        "refused": {},
        "probe": None,
    }
    return {
        "format": 1,
        "kind": "Comparison",
        "settings": {"level": 0.95},
        "rows": rows,
        "coverage": [{"concept": name, **cover} for name in CONCEPTS[:3]],
        "grid": [0.0, 1.0],
        "curves": [],
        "concepts": CONCEPTS[:3],
        "text": "",
    }


def _interval(value: float, half: float) -> list[float]:
    return [round(value - half, 4), round(value + 0.9 * half, 4)]


def _kind(rng: np.random.Generator, shift: float, full: bool = True) -> dict[str, Any]:
    block = {
        "scoring": "cosine" if full else "dot",
        "layers": LAYERS,
        "detection": _detection(rng, shift),
        "choices": _choices(rng),
        "sparsity": _sparsity(rng, shift),
        "localisation": _localisation(shift),
    }
    if full:
        block |= {"trace": _trace(rng), "heads": _heads(rng), "rates": _rates(rng), "fractions": _fractions()}
        block |= {"peaks": _peaks(), "density": _density(), "separation": _separation()}
    return block


def _detection(rng: np.random.Generator, shift: float) -> dict[str, Any]:
    rows, best = [], METHODS["SuperActivators"]
    for method, base in METHODS.items():
        f1 = round(base + (shift if method == "SuperActivators" else 0), 4)
        gap = round(f1 - best - shift, 4)
        own = method == "SuperActivators"
        trivial = method in ("always-positive", "length-only")
        rows.append(
            {
                "method": method,
                "weighted_f1": f1,
                "interval": _interval(f1, 0.032),
                "precision": round(f1 - 0.051, 4),
                "recall": round(f1 + 0.093, 4) if method != "always-positive" else 1.0,
                "auroc": None if method == "always-positive" else round(f1 + 0.071, 4),
                "macro_f1": round(f1 - 0.043, 4),
                "macro_interval": _interval(f1 - 0.043, 0.036),
                "difference": None if own else gap,
                "difference_interval": None if own else _interval(gap, 0.021),
                "candidates": 1 if trivial else len(LAYERS) * len(DELTAS),
            }
        )
    per_concept = [_concept_f1(rng, name) for name in CONCEPTS]
    return {
        "n_samples": 120,
        "n_documents": 58,
        "methods": rows,
        "monitor": _monitor(rows),
        "per_concept": per_concept,
    }


def _monitor(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = []
    for row in rows:
        own, tpr, area = row["difference"] is None, row["recall"] / 2, 0.5 + row["weighted_f1"] / 3
        gap = None if own else round(row["difference"] / 3, 4)
        found.append(
            {
                "method": row["method"],
                "tpr": [tpr, None, None],
                "tpr_interval": [_interval(tpr, 0.06), None, None],
                "partial_auroc": area,
                "partial_auroc_interval": _interval(area, 0.03),
                "partial_auroc_difference": gap,
                "partial_auroc_difference_interval": None if own else _interval(gap, 0.02),
                "false_alarms": 10 * row["recall"],
                "false_alarms_interval": _interval(10 * row["recall"], 1.0),
            }
        )
    return {
        "false_positive_rates": [0.05, 0.01, 0.001],
        "rests_on": "TPR rests on few negatives, of 60 to 106 a concept: at 5 % 3 to 5 lie above.",
        "methods": found,
    }


def _concept_f1(rng: np.random.Generator, concept: str) -> dict[str, Any]:
    level = rng.normal(0, 0.08)
    f1 = {m: round(float(b + level + rng.normal(0, 0.02)), 4) for m, b in METHODS.items()}
    return {
        "concept": concept,
        "n_positive": int(rng.integers(14, 60)),
        "f1": f1,
        "interval": {m: _interval(v, 0.07) for m, v in f1.items()},
    }


def _choices(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {
            "concept": concept,
            "layer": int(rng.choice(LAYERS[4:])),
            "delta": float(rng.choice(DELTAS[:5])),
            "threshold": round(float(rng.uniform(0.1, 0.3)), 4),
            "cal_f1": round(float(rng.uniform(0.65, 0.85)), 4),
            "candidates": len(LAYERS) * len(DELTAS),
            "n_cal_tokens": int(rng.integers(41, 400)),
        }
        for concept in CONCEPTS
    ]


def _sparsity(rng: np.random.Generator, shift: float) -> dict[str, Any]:
    deltas = np.array(DELTAS)
    peaks = {"SuperActivators": 0.1, "MaxTok": 0.6, "Top10%": 0.5, "MeanTok": 0.8}
    peaks |= {"pooled": 0.7, "LastTok": 0.9, "RandTok": 0.9}
    curves = []
    for method, peak in peaks.items():
        height = METHODS[method] + shift - 0.55
        width = np.where(deltas < peak, 0.9, 0.8)
        f1 = 0.55 + height * np.exp(-((np.log(deltas / peak) / width) ** 2))
        f1 -= np.where(deltas < peak, 0.07 * np.log(peak / deltas), 0)
        f1 = np.round(f1 + rng.normal(0, 0.002, len(f1)), 4)
        intervals = [_interval(float(v), 0.033) for v in f1]
        curves.append({"method": method, "weighted_f1": f1.tolist(), "interval": intervals})
    return {"layer": None, "deltas": DELTAS, "curves": curves, "always_positive": 0.549}


def _series(depth: np.ndarray, level: float) -> dict[str, Any]:
    values = {
        "auroc": 0.6 + 0.25 * depth + level / 3,
        "in_mass_at_fpr": 0.03 + 0.3 * depth**2 + level / 4,
        "coverage": 0.45 + 0.35 * depth + level / 4,
        "negative_coverage": 0.34 - 0.1 * depth + level / 8,
        "tail_gap": -0.8 + 2.2 * depth + 2 * level,
        "overlap": 0.8 - 0.4 * depth,
        "skewness": 0.1 + 1.1 * depth,
        "l_skewness": 0.02 + 0.18 * depth,
    }
    half = {"tail_gap": 0.3, "skewness": 0.2}
    out: dict[str, Any] = {}
    for name, v in values.items():
        v = np.round(v, 4).tolist()
        out[name] = v
        out[f"{name}_interval"] = [_interval(x, half.get(name, 0.04)) for x in v]
    return out


def _trace(rng: np.random.Generator) -> dict[str, Any]:
    depth = np.linspace(0, 1, len(LAYERS)) ** 0.7
    levels = rng.normal(0, 0.15, len(CONCEPTS))
    concepts = {c: _series(depth, float(v)) for c, v in zip(CONCEPTS, levels, strict=True)}
    return {
        "layers": LAYERS,
        "concepts": concepts,
        "mean": _series(depth, 0.0),
        "fpr": 0.005,
        "along": {
            which: {
                "concepts": {
                    c: _tails(depth * turn, float(v)) for c, v in zip(CONCEPTS, levels, strict=True)
                },
                "mean": _tails(depth * turn, 0.0),
            }
            for which, turn in (("along_chosen", 0.9), ("along_prototype", 0.7))
        },
        "growth": [
            {"whose": who, "answer": "signal", "detectable": None, "said": f"Of {who} the signal grows."}
            for who in (f"mean of {len(CONCEPTS)} concepts", *CONCEPTS)
        ],
        "refit_groups": 5,
        "distributions": _distributions(rng, depth),
    }


def _tails(depth: np.ndarray, level: float) -> dict[str, Any]:
    names = ("tail_gap", "coverage", "negative_coverage", "overlap")
    return {k: v for k, v in _series(depth, level).items() if k.removesuffix("_interval") in names}


def _distributions(rng: np.random.Generator, depth: np.ndarray) -> dict[str, Any]:
    edges = np.linspace(-4, 8, 61)
    concepts = {}
    for concept in CONCEPTS:
        push = rng.uniform(0.7, 1.3)
        ins, outs, thresholds = [], [], []
        for d in depth:
            out = rng.normal(0, 1, 4000)
            heavy = rng.random(900) < 0.1 + 0.35 * d
            inside = rng.normal(0.2 + d * push * 0.6, 1, 900)
            inside += heavy * rng.gamma(2, 0.3 + d * push, 900)
            ins.append(np.round(np.histogram(inside, edges)[0] / 900 / 0.2, 4).tolist())
            outs.append(np.round(np.histogram(out, edges)[0] / 4000 / 0.2, 4).tolist())
            thresholds.append(round(float(np.quantile(inside, 0.9)), 4))
        concepts[concept] = {"in_concept": ins, "out_of_concept": outs, "threshold": thresholds}
    return {
        "edges": np.round(edges, 3).tolist(),
        "layers": LAYERS,
        "concepts": concepts,
        "out": "tokens of negative samples",
    }


def _heads(rng: np.random.Generator) -> dict[str, Any]:
    concepts, rows = {}, []
    for n, concept in enumerate(CONCEPTS):
        lift = rng.normal(0, 0.002, (30, N_HEADS))
        lift[21:] = 0.0
        for layer, head in ((8, 3), (14, n % N_HEADS), (19, 5)):
            lift[layer, head] += rng.uniform(0.008, 0.02)
        control = np.abs(rng.normal(0.001, 0.0005, lift.shape))
        share = round(float(rng.uniform(0.1, 0.25)), 4)
        concepts[concept] = {
            "layer": 20,
            "lift": np.round(lift, 5).tolist(),
            "control": np.round(control, 5).tolist(),
            "contrast": np.round(0.5 * lift, 5).tolist(),
            "shares": {
                "head_share": share,
                "mlp_share": round(0.97 - share, 4),
                "embedding_share": 0.03,
                "head_share_interval": _interval(share, 0.03),
                "mlp_share_interval": _interval(0.97 - share, 0.03),
                "embedding_share_interval": _interval(0.03, 0.01),
            },
        }
        rows += [
            _head_row(concept, layer, head, lift, control) for layer, head in ((8, 3), (14, n % N_HEADS))
        ]
    rows.sort(key=lambda row: -row["excess"])
    unit = "normalised projection"
    return {"concepts": concepts, "strongest": rows[:10], "closes_to": 3.7e-8, "unit": unit}


def _head_row(concept: str, layer: int, head: int, lift: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    value, null = float(lift[layer, head]), float(control[layer, head])
    return {
        "concept": concept,
        "layer": layer,
        "head": head,
        "lift": round(value, 5),
        "interval": [round(value * 0.8, 5), round(value * 1.2, 5)],
        "control": round(null, 5),
        "excess": round(value - null, 5),
        "excess_interval": [round(value * 0.7 - null, 5), round(value * 1.2 - null, 5)],
        "contrast": round(value / 2, 5),
        "contrast_interval": [round(value * 0.3, 5), round(value * 0.7, 5)],
    }


def _localisation(shift: float) -> list[dict[str, Any]]:
    rows = []
    for method, f1, ap, auroc in (("raw", 0.31, 0.42, 0.86), ("SuperActivators", 0.36, 0.4, 0.71)):
        rows.append(
            {
                "method": method,
                "f1": f1 + shift,
                "f1_interval": _interval(f1 + shift, 0.03),
                "average_precision": ap,
                "average_precision_interval": _interval(ap, 0.04),
                "auroc": auroc,
                "auroc_interval": _interval(auroc, 0.02),
            }
        )
    return rows


def _rates(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for concept in CONCEPTS:
        raw, tail, miss = (float(rng.uniform(a, b)) for a, b in ((0.5, 0.9), (0.1, 0.4), (0.1, 0.4)))
        rows.append(
            {
                "concept": concept,
                "raw_false_fire": round(raw, 4),
                "raw_false_fire_interval": _interval(raw, 0.06),
                "raw_miss": 0.02,
                "raw_miss_interval": [0.0, 0.05],
                "tail_false_fire": round(tail, 4),
                "tail_false_fire_interval": _interval(tail, 0.06),
                "tail_miss": round(miss, 4),
                "tail_miss_interval": _interval(miss, 0.08),
            }
        )
    return rows


def _fractions() -> dict[str, Any]:
    grid = np.round(np.linspace(0, 1, 21), 3)
    concepts = {c: np.round(grid ** (0.3 + 0.08 * n), 4) for n, c in enumerate(CONCEPTS)}
    inside = {c: v.tolist() for c, v in concepts.items()}
    every = {c: np.round(0.9 * v, 4).tolist() for c, v in concepts.items()}
    mean = np.mean(list(concepts.values()), axis=0)
    return {
        "grid": grid.tolist(),
        "all": {"mean": np.round(0.9 * mean, 4).tolist(), "concepts": every},
        "inside": {"mean": np.round(mean, 4).tolist(), "concepts": inside},
    }


def _offsets(text: str) -> list[list[int]]:
    offsets, start = [], 0
    for word in text.split(" "):
        offsets.append([max(start - 1, 0), start + len(word)])
        start += len(word) + 1
    return offsets[1:]


def _passage(
    rng: np.random.Generator, text: str, role: str, words: dict[str, float], **more: Any
) -> dict[str, Any]:
    offsets = _offsets(text)
    scores = np.round(rng.normal(-0.02, 0.06, len(offsets)), 4)
    inside = np.zeros(len(offsets), dtype=bool)
    for n, (start, end) in enumerate(offsets):
        word = text[start:end].strip(" ,.")
        if word in words:
            scores[n] = words[word]
            inside[n] = word in more.get("labelled", ())
    more.pop("labelled", None)
    return {
        "id": f"fake-{role}",
        "document": "Moby-Dick, chapter 61",
        "concept": "animal",
        "kind": "prototype",
        "layer": 20,
        "delta": 0.1,
        "threshold": 0.231,
        "raw_threshold": 0.094,
        "role": role,
        "text": text,
        "offsets": offsets,
        "scores": scores.tolist(),
        "superactivator": (scores >= 0.231).tolist(),
        "in_concept": inside.tolist(),
        **more,
    }


def _passages(rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        _passage(
            rng,
            WHALE,
            "true_positive",
            {"whale": 0.42, "men": 0.12, "harpooned": 0.24},
            positive=True,
            labelled=("whale",),
        ),
        _passage(
            rng,
            SHIP,
            "raw_false_fire",
            {"bull": 0.19, "vessels": 0.11},
            positive=False,
            comment="The bull is a papal one.",
        ),
        _passage(rng, EVIL, "miss", {"<b>horse</b>": 0.17}, positive=True, labelled=("<b>horse</b>",)),
    ]


def _explained(rng: np.random.Generator) -> dict[str, Any]:
    offsets = _offsets(WHALE)
    words = [WHALE[a:b].strip(" ,.") for a, b in offsets]
    tail = [word == "whale" for word in words]
    sharp = np.where(tail, 0.4, rng.normal(0, 0.03, len(words)))
    flat = rng.normal(0.02, 0.05, len(words))
    heads = rng.normal(0, 0.002, (21, N_HEADS))
    sharper = heads.copy()
    sharper[8, 3] = 0.03
    return {
        "id": "fake-true_positive",
        "concept": "animal",
        "kind": "prototype",
        "layer": 20,
        "text": WHALE,
        "offsets": offsets,
        "superactivator": tail,
        "in_concept": tail,
        "coverage": 1.0,
        "explanations": [
            _explanation("superactivator", 0.31, sharp, sharper),
            _explanation("global", 0.02, flat, heads),
        ],
    }


def _explanation(objective: str, value: float, tokens: np.ndarray, heads: np.ndarray) -> dict[str, Any]:
    return {
        "objective": objective,
        "method": "gradient x input",
        "value": value,
        "tokens": np.round(tokens, 4).tolist(),
        "heads": np.round(heads, 5).tolist(),
    }


def _provenance() -> dict[str, Any]:
    return {
        "command": "sa-plugin demo --model smollm2 --out demo_out",
        "versions": {"sa_plugin": "0.1.0", "torch": "2.13.0", "transformer_lens": "4.3.0"},
        "hashes": {"data": "3f9a1c77b2d04e55", "weights": "b71e00d2"},
        "settings": {"passages": 600, "every": 3, "deltas": DELTAS, "sinks": "drop"},
        "timings": {"collect": 141.2, "fit": 8.9, "score": 0.71, "bootstrap": 3.04},
        "counts": {"tokens": {"train": 25_120, "cal": 8_377, "test": 8_376}, "dropped_sink": 600},
        "machine": "2 cores, CPU",
    }
