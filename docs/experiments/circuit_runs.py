"""The runs of docs/findings/circuits.md: which edges carry one concept's SuperActivators on SmolLM2.

python docs/experiments/circuit_runs.py run --out runs/person.json
python docs/experiments/circuit_runs.py run --concept artifact --out runs/artifact.json
python docs/experiments/circuit_runs.py show runs/person.json runs/artifact.json \
    --into docs/findings/circuits.md --pictures docs/pictures

Edges are those of `circuit_net`, ranked on calibration passages. Faithfulness is measured on test
passages, all edges but the first k corrupted:

    sum over passages of (m_circuit - m_corrupted) / sum over passages of (m_clean - m_corrupted)

Weights come from `make weights`; nothing is downloaded here. Everything is seeded.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from between_markers import show
from circuit_net import Net
from jaxtyping import Bool, Float, Int
from torch import Tensor
from trials import signed, three, unsigned

import sa_plugin as sa
from sa_plugin._files import write_text
from sa_plugin.attribution import Objective, together
from sa_plugin.concepts import StoredRefits, collect, null_vectors
from sa_plugin.data import Sample
from sa_plugin.show import plots
from sa_plugin.statistics import Drawn, resample_documents, resampled_sums
from sa_transformer_lens.host import load_bridge
from sa_transformer_lens.prefix import prefix_view

BLOCK, WORDS, BATCH, STEPS = 10, 20, 8, 5
MOST = {"cal": 24, "test": 40}
KS, DRAWS, NULLS = (10, 30, 100, 300), 20, 39
LEVEL = 0.05
BANDS = ("random", "random, alike", "permuted labels", "other concepts")
BEGIN = "<!-- tables: written by docs/experiments/circuit_runs.py show -->"
END = "<!-- end of tables -->"
OBJECTIVES = ("superactivator_tokens", "superactivator_margin")
PASSAGES = {"train": 400, "cal": 480, "test": 486}


@dataclass(frozen=True)
class Pair:
    """A passage, and the same with the concept's words swapped for words of other classes.

    Attributes:
        sample: The passage.
        ids: Its tokens.
        corrupted: As many tokens.
        goal: The mean score at the passage's SuperActivators.
        margin: The smooth maximum of its scores over the threshold.
        swapped: The words and what stands for them.
    """

    sample: Sample
    ids: Int[Tensor, " token"]
    corrupted: Int[Tensor, " token"]
    goal: Objective
    margin: Objective
    swapped: str


def passages() -> sa.ConceptData:
    """The first words of the passages of the embedded data."""
    full, rng = sa.load("supersense"), np.random.default_rng(0)
    texts, spans, of, documents, ids = [], [], [], [], []
    for split, n in PASSAGES.items():
        samples = full.split(split).samples
        for sample in (samples[k] for k in sorted(rng.permutation(len(samples))[:n])):
            text = " ".join(sample.text.split()[:WORDS])
            if sample.text.startswith(text):
                texts.append(text)
                spans.append([span for span in sample.spans if span.end <= len(text)])
                of.append(split)
                documents.append(sample.document)
                ids.append(sample.id)
    return sa.ConceptData.from_spans(
        texts,
        spans,
        concepts=full.concepts,
        documents=documents,
        ids=ids,
        splits=of,
        name=f"supersense, first {WORDS} words",
    )


def tokens_of(host: Any, text: Sample | str) -> Int[Tensor, " token"]:
    """Token ids as the host gives them to the model."""
    ids: Tensor = host.forward_inputs(Sample.of(text))["input_ids"][0]
    return ids


def swapped(
    sample: Sample, concept: str, pool: Sequence[str], host: Any, rng: np.random.Generator
) -> tuple[str, str] | None:
    """A passage with the concept's words swapped one for one, and the swaps; None where no word fits."""
    text, swaps, n = sample.text, [], len(tokens_of(host, sample))
    for span in sorted((s for s in sample.spans if s.concept == concept), reverse=True):
        word = sample.text[span.start : span.end]
        for k in rng.permutation(len(pool))[:40]:
            new = text[: span.start] + pool[k] + text[span.end :]
            if pool[k][0].isupper() == word[0].isupper() and len(tokens_of(host, new)) == n:
                text = new
                swaps.append(f"{word} -> {pool[k]}")
                break
        else:
            return None
    return text, "; ".join(reversed(swaps))


def pairs(host: Any, data: sa.ConceptData, detector: Any, concept: str, split: str, most: int) -> list[Pair]:
    """Of each document of a split the first passage with a SuperActivator on one of the concept's words."""
    rng, samples = np.random.default_rng(0), data.split(split).samples
    found: dict[str, Pair] = {}
    own = {s.text[a:b].lower() for s in data.samples for a, b, c in s.spans if c == concept}
    others = {s.text[a:b] for s in samples for a, b, c in s.spans if c != concept}
    pool = sorted(word for word in others if word.lower() not in own and word.isalpha())
    for sample in samples:
        places = [s for s in sample.spans if s.concept == concept]
        if not places or sample.document in found or len(found) == most:
            continue
        hits = [hit for hit in detector.find(sample) if hit.concept == concept]
        if not any(hit.start < s.end and hit.end > s.start for hit in hits for s in places):
            continue
        new = swapped(sample, concept, pool, host, rng)
        if new is not None:
            ids, other = (tokens_of(host, text) for text in (sample, new[0]))
            goal, margin = (
                sa.objective(name, detector=detector, concept=concept, sample=sample) for name in OBJECTIVES
            )
            found[sample.document] = Pair(sample, ids, other, goal, margin, new[1])
    return list(found.values())


@dataclass(frozen=True)
class Rows:
    """Some pairs as one padded batch.

    Attributes:
        pairs: A row each.
        net: Of a view with the batch's mask.
        mask: Tokens that are no padding.
        clean: Token ids.
        corrupted: Token ids.
    """

    pairs: Sequence[Pair]
    net: Net
    mask: Bool[Tensor, "batch token"]
    clean: Int[Tensor, "batch token"]
    corrupted: Int[Tensor, "batch token"]

    def metric(self, changed: Callable[[Pair], Objective] = lambda pair: pair.goal) -> Any:
        """The pairs' objectives, or others on the same tokens, as one of the batch."""
        return together([changed(pair) for pair in self.pairs], self.mask)


def batched(host: Any, found: Sequence[Pair]) -> Iterator[Rows]:
    """Pairs of like lengths together."""
    order = sorted(found, key=lambda pair: len(pair.ids))
    for k in range(0, len(order), BATCH):
        some = order[k : k + BATCH]
        clean, corrupted, mask = (
            torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
            for rows in zip(*((p.ids, p.corrupted, torch.ones_like(p.ids)) for p in some), strict=True)
        )
        net = Net(prefix_view(host, together([p.goal for p in some], mask), attention_mask=mask))
        yield Rows(some, net, mask.bool(), clean, corrupted)


def aimed(pair: Pair, target: Float[Tensor, " d_model"]) -> Objective:
    """The mean score at the same tokens with another vector."""
    measure: Any = pair.goal.measure
    return replace(pair.goal, measure=replace(measure, target=target))


def rankings(
    host: Any, found: Sequence[Pair], targets: dict[str, list[Tensor]]
) -> tuple[Net, dict[str, list[Tensor]]]:
    """Scores `[reader, writer]` of each family, a list of draws; "own halves" are of every other batch."""
    totals: dict[str, list[Tensor]] = {}
    for number, rows in enumerate(batched(host, found)):
        own, margin = rows.metric(), rows.metric(lambda pair: pair.margin)
        others = [rows.metric(partial(aimed, target=u)) for us in targets.values() for u in us]
        metrics = [own, margin, *others]
        scored = list(rows.net.scores(rows.clean, rows.corrupted, metrics, STEPS))
        one_step = rows.net.scores(rows.clean, rows.corrupted, metrics[:1], 1)
        here = {"own": scored[:1], "own by the margin": scored[1:2], "own by EAP": list(one_step)}
        rest = iter(scored[2:])
        here |= {name: [next(rest) for _ in us] for name, us in targets.items()}
        here["own halves"] = [(number % 2 == half) * scored[0] for half in (0, 1)]
        for name, scores in here.items():
            before = totals.get(name, [torch.zeros(())] * len(scores))
            totals[name] = [a + b for a, b in zip(before, scores, strict=True)]
        print("ranked", number, round(time.process_time()), "s", flush=True)
    return rows.net, totals


def first(scores: Float[Tensor, "reader writer"], k: int) -> Bool[Tensor, "reader writer"]:
    """The k edges of the largest |score|."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[scores.abs().flatten().argsort(descending=True, stable=True)[:k]] = True
    return kept.view_as(scores)


def any_edges(net: Net, k: int, generator: torch.Generator) -> Bool[Tensor, "reader writer"]:
    """k edges, each as likely as the next."""
    return first(net.edges * (1 + torch.rand(net.edges.shape, generator=generator)), k)


def like_edges(
    net: Net, kept: Bool[Tensor, "reader writer"], generator: torch.Generator
) -> Bool[Tensor, "reader writer"]:
    """As many edges into each reader, and as many of them from heads and from MLPs, other writers drawn."""
    found, kind = torch.zeros_like(kept), torch.tensor([" MLP" in w for w in net.writers])
    kinds = (kind, ~kind & (torch.arange(len(kind)) > 0), torch.arange(len(kind)) == 0)
    for r, row in enumerate(kept):
        for of in kinds:
            places = (of & net.edges[r]).nonzero()[:, 0]
            drawn = places[torch.randperm(len(places), generator=generator)[: int((row & of).sum())]]
            found[r, drawn] = True
    return found


def circuits(net: Net, totals: dict[str, list[Tensor]], k: int) -> dict[str, list[Tensor]]:
    """Edges to keep, by family."""
    generator = torch.Generator().manual_seed(k)
    found = {
        name: [first(one, k) for one in scores] for name, scores in totals.items() if "halves" not in name
    }
    found["random"] = [any_edges(net, k, generator) for _ in range(DRAWS)]
    found["random, alike"] = [like_edges(net, found["own"][0], generator) for _ in range(DRAWS)]
    return found


def measured(host: Any, found: Sequence[Pair], sets: dict[int, dict[str, list[Tensor]]]) -> dict[str, Any]:
    """Both objectives of every pair, clean, corrupted and in every circuit."""
    values: dict[str, list[Any]] = {}
    for rows in batched(host, found):
        goals = (rows.metric(), rows.metric(lambda pair: pair.margin))
        inputs, writes = rows.net.recorded(rows.corrupted)
        clean, _ = rows.net.recorded(rows.clean)

        def note(name: str, resid: Tensor, goals: Any = goals) -> None:
            values.setdefault(name, []).append(torch.stack([goal(resid) for goal in goals]))

        note("clean", clean[-1])
        note("corrupted", inputs[-1])
        for k, families in sets.items():
            for family, some in families.items():
                for n, kept in enumerate(some):
                    note(f"{k}|{family}|{n}", rows.net.circuit(rows.clean, inputs, writes, kept))
            print("measured", k, round(time.process_time()), "s", flush=True)
    return {name: torch.cat(parts, 1).tolist() for name, parts in values.items()}


def run(given: argparse.Namespace) -> None:
    """Everything, written to one file."""
    bridge, data = load_bridge("smollm2"), passages()
    host = sa.attach(bridge, progress=False)
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    statistics = collect(host, data, layers=[BLOCK])
    bank = sa.fit(host, data, "prototype", layers=[BLOCK], statistics=statistics)
    detector = sa.calibrate(host, data, bank)
    counts = {name: detector.choice(name).n_cal_tokens for name in data.concepts}
    concept = given.concept or max(counts, key=lambda name: counts[name])
    print(detector, concept, round(time.process_time()), "s", flush=True)
    found = {split: pairs(host, data, detector, concept, split, most) for split, most in MOST.items()}
    print({split: len(some) for split, some in found.items()}, round(time.process_time()), "s", flush=True)
    column = bank.unit(concept)
    drawn = next(null_vectors(StoredRefits(bank, [column], statistics), "across", [BLOCK], NULLS, 0))
    vectors = bank.token.vectors[bank.index(BLOCK)]
    others = [vectors[bank.unit(name)] for name in data.concepts if name != concept]
    targets = {"permuted labels": list(drawn[:, 0]), "other concepts": others}
    net, totals = rankings(host, found["cal"], targets)
    sets = {k: circuits(net, totals, k) for k in KS}
    values = measured(host, found["test"], sets)
    order = sorted(found["test"], key=lambda pair: len(pair.ids))
    record = {
        "command": "python docs/experiments/circuit_runs.py run"
        + f" --concept {given.concept}" * bool(given.concept),
        "model": "SmolLM2",
        "ks": KS,
        "data": data.name,
        "hash": data.hash[:12],
        "concept": concept,
        "counts": counts,
        "block": BLOCK,
        "threshold": detector.choice(concept).threshold,
        "others": [name for name in data.concepts if name != concept],
        "cal": [[p.sample.id, p.swapped] for p in found["cal"]],
        "test": [[p.sample.id, p.swapped, int(p.goal.tail.sum())] for p in order],
        "documents": [p.sample.document for p in order],
        "gap": gap(host, found["cal"]),
        "readers": net.readers,
        "writers": net.writers,
        "edges": int(net.edges.sum()),
        "scores": {name: [one.tolist() for one in totals[name]] for name in ("own", "own halves")},
        "shared": shared(sets),
        "with both": {k: with_both(totals["own"][0], sets[k]["permuted labels"]) for k in KS},
        "values": values,
        "seconds": round(time.process_time()),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(given.out, json.dumps(record) + "\n")


def gap(host: Any, found: Sequence[Pair]) -> float:
    """What the swap takes from the mean score of the SuperActivators, summed over pairs."""
    total = 0.0
    for rows in batched(host, found):
        goal = rows.metric()
        there, here = (goal(rows.net.recorded(ids)[0][-1]) for ids in (rows.clean, rows.corrupted))
        total += float((there - here).sum())
    return total


def with_both(
    own: Float[Tensor, "reader writer"], some: Sequence[Bool[Tensor, "reader writer"]]
) -> list[bool]:
    """Which circuits have the first two of the own edges."""
    return [bool(kept[first(own, 2)].all()) for kept in some]


def shared(sets: dict[int, dict[str, list[Tensor]]]) -> dict[str, dict[int, float]]:
    """Of the own circuit's edges the share that each family's circuits have too, mean over draws."""
    return {
        family: {
            k: float(np.mean([float((one & sets[k]["own"][0]).sum()) / k for one in sets[k][family]]))
            for k in sets
        }
        for family in next(iter(sets.values()))
    }


@dataclass(frozen=True)
class Found:
    """A record's numbers as shares of the gap between clean and corrupted runs.

    Attributes:
        record: As it was written.
        objective: Index into `OBJECTIVES`.
    """

    record: dict[str, Any]
    objective: int = 0

    @cached_property
    def families(self) -> dict[str, int]:
        """Draws of each family of circuits."""
        names = [name.split("|") for name in self.record["values"] if "|" in name]
        return {family: 1 + max(int(n) for _, one, n in names if one == family) for _, family, _ in names}

    def of(self, name: str) -> Float[np.ndarray, " pair"]:
        """The objective of every pair in one run."""
        return np.asarray(self.record["values"][name][self.objective])

    def draws(self, k: int, family: str) -> Float[np.ndarray, " draw"]:
        """Faithfulness of every draw."""
        clean, corrupted = self.of("clean").sum(), self.of("corrupted").sum()
        runs = [self.of(f"{k}|{family}|{n}").sum() for n in range(self.families[family])]
        return np.asarray((np.array(runs) - corrupted) / (clean - corrupted))

    def faithfulness(self, k: int, family: str) -> Drawn:
        """Mean over draws, and without each document."""
        resamples = resample_documents(np.array(self.record["documents"]))
        runs = np.stack([self.of(f"{k}|{family}|{n}") for n in range(self.families[family])])
        clean, corrupted = self.of("clean"), self.of("corrupted")
        parts = resampled_sums(np.stack([runs.mean(0) - corrupted, clean - corrupted]), resamples)
        return resamples.drawn(parts[0] / parts[1], "mean")


def ranges(values: Float[np.ndarray, " draw"], own: float) -> str:
    """Mean and range of draws, and how many reach the own circuit."""
    reach = int((values >= own).sum())
    return f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f}), {reach} as high"


def against(own: float, values: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """The p of the own circuit among these, and what it would have had to exceed at .05."""
    allowed = int(LEVEL * (len(values) + 1))
    p = (1 + int((values >= own).sum())) / (len(values) + 1)
    return p, float(np.sort(values)[-allowed]) if allowed else np.inf


def tables(record: dict[str, Any]) -> str:
    """A record as Markdown."""
    found, margin = Found(record), Found(record, 1)
    ks, families = record["ks"], list(found.families)
    total = np.array(record["scores"]["own"][0])
    lines = [
        f"`{record['command']}`: {record['data']} ({record['hash']}), {record['concept']}, block "
        f"{record['block']}, prototypes; {len(record['cal'])} calibration pairs rank, "
        f"{len(record['documents'])} test pairs measure, one a document; {record['edges']} edges; "
        f"{record['seconds']} s of one core.",
        "",
        "Faithfulness, 0 the corrupted run, 1 the clean one; 95 % over documents; of several circuits the",
        "mean, the range, and how many keep as much as own:",
        "",
        f"| circuits | {' | '.join(f'{k} edges' for k in ks)} |",
        "|---" * (len(ks) + 1) + "|",
    ]
    for family in families:
        cells = [ranges(found.draws(k, family), found.draws(k, "own")[0]) for k in ks]
        if found.families[family] == 1:
            cells = [unsigned(three(found.faithfulness(k, family)), 2) for k in ks]
        name = family if found.families[family] == 1 else f"{found.families[family]} {family}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = [unsigned(three(margin.faithfulness(k, "own")), 2) for k in ks]
    lines.append(f"| own, measured by the margin | {' | '.join(cells)} |")
    tests = [against(found.draws(k, "own")[0], found.draws(k, BANDS[2])) for k in ks]
    cells = [f"{p:.2f}; needs {least:.2f}" for p, least in tests]
    lines.append(f"| p of own among {BANDS[2]}; what p = {LEVEL} needs | {' | '.join(cells)} |")
    cells = []
    for k in ks:
        values, has = found.draws(k, BANDS[2]), np.array(record["with both"][str(k)])
        ends = [(values[has], np.min, "from"), (values[~has], np.max, "to")]
        cells.append(
            "; ".join(f"{len(some)} {word} {end(some):.2f}" for some, end, word in ends if len(some))
        )
    lines.append(f"| {BANDS[2]}, with the first two own edges; without | {' | '.join(cells)} |")
    lines += [
        "",
        "Own less the mean of each family, and the difference that could have been seen (power .8):",
        "",
    ]
    lines += [f"| less | {' | '.join(f'{k} edges' for k in ks)} |", "|---" * (len(ks) + 1) + "|"]
    for family in families[1:]:
        cells = []
        for k in ks:
            by = found.faithfulness(k, "own") - found.faithfulness(k, family)
            bold = "**" * bool(by.excludes_zero)
            cells.append(f"{bold}{signed(three(by), 2)}{bold}; {float(by.detectable()):.2f}")
        lines.append(f"| {family} | {' | '.join(cells)} |")
    lines += ["", "Share of the own circuit's edges that the others have:", ""]
    lines += [f"| circuits | {' | '.join(f'{k} edges' for k in ks)} |", "|---" * (len(ks) + 1) + "|"]
    shares = record["shared"] | {"one half of the pairs against the other": halves(record)}
    for family, by in shares.items():
        if family != "own":
            lines.append(f"| {family} | {' | '.join(f'{float(by[str(k)]):.2f}' for k in ks)} |")
    lines += ["", "The first edges, score over what the swap takes from the objective:", ""]
    lines += ["| edge | share | edge | share |", "|---|---|---|---|"]
    rank = np.argsort(-np.abs(total).ravel(), kind="stable")[:20]
    shown = [
        f"{record['writers'][w]} to {record['readers'][r]} | {total[r, w] / record['gap']:+.2f}"
        for r, w in (divmod(int(at), total.shape[1]) for at in rank)
    ]
    lines += [f"| {a} | {b} |" for a, b in zip(shown[:10], shown[10:], strict=True)]
    return "\n".join(lines)


def halves(record: dict[str, Any]) -> dict[str, float]:
    """Of one half's first edges the share among the other's."""
    one, other = (torch.tensor(scores) for scores in record["scores"]["own halves"])
    return {str(k): float((first(one, k) & first(other, k)).sum()) / k for k in record["ks"]}


def draw(record: dict[str, Any], path: Path) -> None:
    """Faithfulness over the number of edges, with its controls."""
    found, ks = Found(record), record["ks"]
    figure, ax = plots.new_figure(7.2, 3.9)
    shown = {"own": "#c9511f", **dict(zip(BANDS, ("#55606b", "#3566a8", "#0b7d5e", "#a34a83"), strict=True))}
    for shift, (family, colour) in enumerate(shown.items()):
        x = np.array(ks) * 1.07 ** (shift - 2)
        if family == "own":
            by = [found.faithfulness(k, family) for k in ks]
            low, high = (np.array([float(getattr(one, end)) for one in by]) for end in ("low", "high"))
            ax.plot(
                x, [float(one.estimate) for one in by], color=colour, lw=1.8, marker="o", ms=4, label=family
            )
            ax.vlines(x, low, high, color=colour, lw=1.4)
            continue
        values = np.stack([found.draws(k, family) for k in ks])
        ax.plot(x, values.mean(1), color=colour, lw=1, label=f"{values.shape[1]} {family}")
        ax.plot(x, values, ls="", marker="o", ms=3, mew=0, alpha=0.45, color=colour)
    for level in (0, 1):
        ax.axhline(level, color="#77756e", lw=0.8, ls=":")
    ax.set_xscale("log")
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    plots.words(
        ax,
        title=f"Circuits of {record['concept']!r}, {record['model']}, block {record['block']}",
        x=f"edges kept, of {record['edges']}",
        y="faithfulness on test passages",
    )
    plots.legend(ax)
    plots.note(
        figure,
        "0: the corrupted run, its word swapped; 1: the clean run. Bars: own, 95 % over documents;\n"
        "dots: one circuit each, lines their means. One model, one concept, one kind of swap.",
    )
    figure.savefig(path, dpi=130)


def summary(records: Sequence[dict[str, Any]]) -> str:
    """A row a concept: faithfulness of its own circuits, and their p among those of permuted labels."""
    ks = records[0]["ks"]
    lines = [
        "Faithfulness of the own circuits, and p among those of permuted labels:",
        "",
        f"| concept | test passages | {' | '.join(f'{k} edges' for k in ks)} |",
        "|---" * (len(ks) + 2) + "|",
    ]
    for record in records:
        found, cells = Found(record), []
        for k in ks:
            p, _ = against(found.draws(k, "own")[0], found.draws(k, BANDS[2]))
            cells.append(f"{unsigned(three(found.faithfulness(k, 'own')), 2)}; p = {p:.2f}")
        lines.append(f"| {record['concept']} | {len(record['documents'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def show_records(given: argparse.Namespace) -> None:
    """Tables into the page, and a picture a record."""
    records = [json.loads(path.read_text()) for path in given.records]
    parts = [f"### The circuit of `{record['concept']}`\n\n{tables(record)}" for record in records]
    show("\n\n".join([summary(records), *parts]), given.into, BEGIN, END)
    for record in records:
        if given.pictures:
            draw(record, given.pictures / f"circuits_smollm2_{record['concept']}.png")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--concept", help="by default the one with the most labelled calibration tokens")
    one.add_argument("--out", type=Path, required=True)
    shown = commands.add_parser("show")
    shown.add_argument("records", type=Path, nargs="+")
    shown.add_argument("--into", type=Path)
    shown.add_argument("--pictures", type=Path, help="a folder")
    return parser.parse_args()


def main() -> None:
    """Run one command."""
    given = parse()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    {"run": run, "show": show_records}[given.command](given)


if __name__ == "__main__":
    main()
