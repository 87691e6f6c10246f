"""How often an interval over documents holds the truth, and how often a difference that is zero is starred.

A population of documents with effects of their own on how often a concept is there and how it scores;
replicates draw D of its documents, measure them by the product's own functions and ask whether the 95 %
interval holds the population's value. Before: the percentile bootstrap (400 draws), as the product had
it; after: what `sa_plugin.statistics.interval` does. Coverage counts the replicates that have an
interval; how many have none is told beside it.

    samples     lognormal number a document (mean 6, sigma .8), 14 concepts of prevalence .04 to .35 with
                document effects on prevalence and score; two methods with correlated noise and mirrored
                populations, so that their true difference is exactly 0; a third that is truly worse
    tokens      12 a sample, 1 to 3 of them in concept where the sample is positive, scores with effects of
                document, sample and token, tails of a t distribution with 5 degrees of freedom

    python docs/experiments/interval_coverage.py [replicates] [documents ...] > coverage.txt
    python docs/experiments/interval_coverage.py --page docs/findings/coverage.md coverage.txt
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from between_markers import put

from sa_plugin.detection import Outcome, f1_of, method_metrics
from sa_plugin.statistics import (
    Drawn,
    Resamples,
    Resampling,
    bootstrap_mean,
    left_out,
    resample_documents,
    resampled_average_precision,
    resampled_confusion,
    resampled_quantiles,
    resampled_sums,
    scarcer,
    stack,
)
from sa_plugin.tracing import TAIL_LEVEL, ConceptScores, Cut, ScoreGroup, measures_of

PREVALENCE = np.geomspace(0.35, 0.04, 14)
CONCEPTS = tuple(f"c{k}" for k in range(len(PREVALENCE)))
BEFORE_UP_TO = 50
CUT, DELTA, TOKENS = 1.0, 0.05, 12
QUANTILES = (0.5, 0.95, 0.995)
SAMPLE_STATISTICS = {"F1, prevalence .18": 4, "F1, prevalence .06": 11}
MONITOR = {"tpr_at_5_percent": "TPR at 5 %", "partial_auroc": "partial AUROC", "false_alarms": "false alarms"}
TOKEN_MEASURES = {
    "auroc": "AUROC over tokens",
    "coverage": "coverage of positives",
    "in_mass_at_fpr": "in-mass",
    "overlap": "overlap",
    "tail_gap": "tail gap",
    "l_skewness_in": "L-skewness",
    "mean_in": "mean of tokens",
}


@dataclass(frozen=True)
class Documents:
    """Samples of some documents: labels, scores of two methods and a worse one, one concept's tokens."""

    home: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    tokens: np.ndarray
    inside: np.ndarray

    def take(self, documents: np.ndarray) -> Documents:
        """Those documents, a document taken twice as two."""
        starts = np.searchsorted(self.home, np.arange(self.home.max() + 2))
        rows = np.concatenate([np.arange(starts[d], starts[d + 1]) for d in documents])
        home = np.repeat(np.arange(len(documents)), np.diff(starts)[documents])
        return Documents(home, self.labels[rows], self.scores[:, rows], self.tokens[rows], self.inside[rows])

    def mirrored(self) -> Documents:
        """With each document again, the first two methods exchanged."""
        return Documents(
            np.concatenate([self.home, self.home + self.home.max() + 1]),
            np.tile(self.labels, (2, 1)),
            np.concatenate([self.scores, self.scores[[1, 0, 2]]], axis=1),
            np.tile(self.tokens, (2, 1)),
            np.tile(self.inside, (2, 1)),
        )


def population(documents: int, seed: int, sigma: float = 0.8, mean: float = 6.0) -> Documents:
    """Documents as the module's first lines say."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(1, np.round(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, documents))).astype(int)
    home = np.repeat(np.arange(documents), sizes)
    n, k = len(home), len(PREVALENCE)
    odds = np.log(PREVALENCE / (1 - PREVALENCE))
    effect = 0.8 * rng.standard_normal((documents, k)) + 0.4 * rng.standard_normal((documents, 1))
    labels = rng.random((n, k)) < 1 / (1 + np.exp(-(odds + effect[home])))
    common = 0.4 * rng.standard_normal((documents, k))
    shared = rng.standard_normal((n, k))
    scores = []
    for loss in (0.0, 0.0, 0.7):
        own = common + 0.3 * rng.standard_normal((documents, k))
        noise = np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.standard_normal((n, k))
        scores.append((2.0 - loss) * labels + own[home] + noise)
    inside = np.arange(TOKENS) < np.where(labels[:, :1], rng.integers(1, 4, (n, 1)), 0)
    drift = 0.4 * rng.standard_normal(documents)
    tokens = (
        drift[home][:, None]
        + 0.3 * rng.standard_normal((n, 1))
        + rng.standard_t(5, (n, TOKENS))
        + 1.5 * inside
    )
    return Documents(home, labels, np.stack(scores), tokens, inside)


def statistics(world: Documents, cut: Cut, resamples: Resamples) -> dict[str, Drawn]:
    """Every statistic of the simulation with its columns, by the product's functions."""
    decided = {name: score >= CUT for name, score in zip("ABC", world.scores, strict=True)}
    decided["always"] = np.ones_like(world.labels)
    carried = resamples.rows(world.labels.T)
    each = {
        name: f1_of(resampled_confusion(one.T, world.labels.T, resamples)) for name, one in decided.items()
    }
    f1 = stack({k: resamples.drawn(v, "share", carried, concept=CONCEPTS) for k, v in each.items()}, "method")
    # AUROC costs more than all the rest: of one concept and two methods.
    one = {
        name: method_metrics(
            [Outcome(decided[name][:, 4:5], world.scores[k][:, 4:5])], world.labels[:, 4:5], ["c4"], resamples
        )
        for k, name in enumerate("AB")
    }
    auroc = stack({name: measured["auroc"].sel(concept="c4") for name, measured in one.items()}, "method")
    positives = resampled_sums(world.labels.T, resamples)
    weighted, macro = f1.mean("concept", positives), f1.mean("concept")
    found = {name: f1.sel(method="A", concept=CONCEPTS[k]) for name, k in SAMPLE_STATISTICS.items()}
    found["precision, prevalence .18"] = one["A"]["precision"].sel(concept="c4")
    found["AUROC over samples"] = auroc.sel(method="A")
    for metric, said in MONITOR.items():
        found[said] = one["A"][metric].sel(concept="c4")
        found[f"difference of {said}, truly 0"] = one["B"][metric].sel(concept="c4") - found[said]
    found["weighted F1"] = weighted.sel(method="A")
    found["macro F1"] = macro.sel(method="A")
    found["weighted F1, always-positive"] = weighted.sel(method="always")
    a = weighted.sel(method="A")
    found["difference of weighted F1, truly 0"] = weighted.sel(method="B") - a
    found["difference of F1, truly 0"] = (f1.sel(method="B") - f1.sel(method="A")).sel(concept=CONCEPTS[4])
    found["difference of AUROC, truly 0"] = auroc.sel(method="B") - auroc.sel(method="A")
    found["difference of weighted F1, truly worse"] = weighted.sel(method="C") - a
    found["difference to always-positive"] = weighted.sel(method="always") - a
    truth = world.labels[:, 4]
    precision = resampled_average_precision(world.scores[0, :, 4], truth, resamples)
    found["average precision"] = resamples.drawn(
        precision, "share", scarcer(resamples.rows(truth), resamples.rows(~truth))
    )
    values = world.scores[1, :, 0] - world.scores[0, :, 0]
    found["paired mean, truly 0"] = bootstrap_mean(values, resamples)
    return found | _tokens(world, cut, resamples)


def _tokens(world: Documents, cut: Cut, resamples: Resamples) -> dict[str, Drawn]:
    flat, of_sample = world.tokens.ravel(), np.repeat(np.arange(len(world.home)), TOKENS)
    inside, positive = world.inside.ravel(), world.labels[:, 0]
    over, negative = resamples.of(of_sample), ~positive[of_sample]
    top = world.tokens.max(1)

    def group(values: np.ndarray, chosen: np.ndarray, weights: Resamples) -> ScoreGroup:
        return ScoreGroup(values[chosen], weights.of(np.flatnonzero(chosen)))

    cell = ConceptScores(
        group(flat, inside, over),
        group(flat, negative, over),
        group(flat, negative, over),
        ScoreGroup(flat, over),
        inside,
        group(top, positive, resamples),
        group(top, ~positive, resamples),
        cut,
    )
    made = measures_of(cell, DELTA)
    found = {said: made[name] for name, said in TOKEN_MEASURES.items()}
    draws = over.bootstrapped
    for q in QUANTILES:
        values = resampled_quantiles(flat, [q], draws)[0]
        found[f"quantile {q:g} of tokens"] = over.drawn(values, "quantile")
    return found


@dataclass
class Tally:
    """Replicates of one statistic: intervals that were there, held the truth, excluded zero; their width."""

    n: int = 0
    there: int = 0
    held: int = 0
    starred: int = 0
    width: float = 0.0

    def add(self, low: float, high: float, truth: float) -> None:
        """One replicate."""
        self.n += 1
        if np.isfinite(low) and np.isfinite(high):
            self.there += 1
            self.held += low <= truth <= high
            self.starred += low > 0 or high < 0
            self.width += high - low


def percentile(drawn: Drawn, level: float = 0.95) -> tuple[float, float]:
    """The interval as it was: percentiles of bootstrap draws that are defined."""
    kept = drawn.values[1:][np.isfinite(drawn.values[1:])]
    if not len(kept):
        return np.nan, np.nan
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=1)
def known(population_size: int) -> tuple[Documents, Cut, dict[str, float]]:
    """The population, its cuts, and what is true of it."""
    whole = population(population_size, seed=1).mirrored()
    negatives = whole.tokens[~whole.labels[:, 0]]
    cut = Cut(
        float(np.quantile(whole.tokens[whole.inside], 1 - DELTA)),
        float(np.quantile(negatives, TAIL_LEVEL)),
        float(np.quantile(negatives.max(1), TAIL_LEVEL)),
    )
    data = left_out(whole.home, Resampling(draws=1))
    # Of the population only the data's column is wanted.
    data = replace(data, weights=data.weights[:1])
    return whole, cut, {name: float(one.estimate) for name, one in statistics(whole, cut, data).items()}


def simulate(
    documents: int, replicates: int, *, before: bool = True, draws: int = 400, population_size: int = 800
) -> dict[str, dict[str, Tally]]:
    """Tallies by statistic, "after" and, if asked, "before"."""
    whole, cut, truth = known(population_size)
    found = {name: {"before": Tally(), "after": Tally()} for name in truth}
    for r in range(replicates):
        rng = np.random.default_rng([documents, r])
        world = whole.take(rng.integers(whole.home.max() + 1, size=documents))
        resamples = resample_documents(world.home, Resampling(draws, r))
        for name, one in statistics(world, cut, resamples).items():
            found[name]["after"].add(float(one.low), float(one.high), truth[name])
        if before:
            for name, one in statistics(world, cut, resamples.bootstrapped).items():
                found[name]["before"].add(*percentile(one), truth[name])
    return found


def families(documents: int, replicates: int, methods: int = 12) -> tuple[float, float, float]:
    """False stars where all methods are alike: of a cell, of any cell, of any cell of the family."""
    alone = anywhere = jointly = 0
    for r in range(replicates):
        world = population(documents, seed=1000 * documents + r)
        rng = np.random.default_rng([documents, r])
        resamples = resample_documents(world.home)
        positives = resampled_sums(world.labels.T, resamples)
        shared = world.scores[0]
        f1 = {}
        for k in range(methods + 1):
            score = shared + 0.7 * rng.standard_normal(shared.shape)
            values = f1_of(resampled_confusion((score >= CUT).T, world.labels.T, resamples))
            f1[k] = resamples.drawn(values, "share", resamples.rows(world.labels.T), concept=CONCEPTS)
        mean = stack(f1, "method").mean("concept", positives)
        by = stack({k: mean.sel(method=k) - mean.sel(method=0) for k in range(1, methods + 1)}, "method")
        alone += int(by.excludes_zero.sum())
        anywhere += bool(by.excludes_zero.any())
        jointly += bool(by.excludes_zero_in_family.any())
    return alone / (replicates * methods), anywhere / replicates, jointly / replicates


def _share(counted: int, of: Tally) -> str:
    return f"{counted / of.there:.2f}" if of.there else "-"


def put_monitor(page: Path, printed: Path) -> None:
    """Put the measures that a monitor is chosen by, as they were printed, on a page."""
    lines = printed.read_text().splitlines()
    sizes = lines[1].split()
    rows = [f"| statistic | {' | '.join(sizes)} |", "|---" * (len(sizes) + 1) + "|"]
    names = [one for said in MONITOR.values() for one in (said, f"difference of {said}, truly 0")]
    stars = lines.index("False stars, before / after")
    for title, part in (("", lines[:stars]), (", false stars", lines[stars:])):
        for name in names:
            rows += [
                f"| {name}{title} | {' | '.join(cell.strip() for cell in cells)} |"
                for line in part
                if line[:40].strip() == name
                for cells in [[line[start : start + 19] for start in range(40, len(line), 19)]]
            ]
    put(page, "<!-- monitor -->", "<!-- /monitor -->", "\n".join(rows))


def main() -> None:
    """Print the tables of the page on coverage."""
    if sys.argv[1:2] == ["--page"]:
        put_monitor(*map(Path, sys.argv[2:4]))
        return
    replicates = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    sizes = [int(one) for one in sys.argv[2:]] or [3, 5, 10, 20, 50]
    # The percentile bootstrap is known to hold where documents are many.
    found = {
        documents: simulate(documents, replicates, before=documents <= BEFORE_UP_TO) for documents in sizes
    }
    print(f"Coverage of 95 % intervals, before / after ({replicates} replicates; in brackets those without)")
    print(f"{'':40}" + "".join(f"{documents:>19}" for documents in sizes))
    for name in found[sizes[0]]:
        cells = []
        for documents in sizes:
            old, new = (found[documents][name][when] for when in ("before", "after"))
            cells.append(f"{_share(old.held, old)} / {_share(new.held, new)}")
            cells[-1] += f" ({new.n - new.there})" if new.n > new.there else ""
        print(f"{name:40}" + "".join(f"{cell:>19}" for cell in cells))
    print("False stars, before / after")
    for name in [name for name in found[sizes[0]] if "truly 0" in name]:
        pairs = [[found[documents][name][when] for when in ("before", "after")] for documents in sizes]
        cells = [f"{_share(old.starred, old)} / {_share(new.starred, new)}" for old, new in pairs]
        print(f"{name:40}" + "".join(f"{cell:>19}" for cell in cells))
    print(
        "A table of 12 methods that are all alike: false stars a cell, in any cell, in any cell of the family"
    )
    for documents in sizes:
        print(documents, *(f"{share:.3f}" for share in families(documents, replicates)))


if __name__ == "__main__":
    main()
