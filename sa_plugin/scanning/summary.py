"""What a scan found: rates by concept, the strongest passages, and whether the tail is calibration's.

    share      samples that hold a SuperActivator of the concept, of all that were scanned
    per 1,000  SuperActivators among 1,000 tokens that count
    tail       SuperActivators that also reach the threshold of the next smaller delta of the grid

Of the in-concept tokens of the calibration split that reach the threshold of delta, a share delta' / delta
reaches that of delta' < delta, by construction; k of n such tokens say it with the interval of an order
statistic, Beta(k, n - k + 1), too narrow where tokens of one document are alike. Where the interval of
`tail` lies wholly above or below that one the scores have *drifted*: to a heavier tail (the concept is
stronger here, or other tokens score high) or a lighter one (many hits only just reach the threshold, as
false alarms do). `summary(folder, against=other)` compares with another scan instead, such as one of the
calibration or test split, false alarms and all. No drift is no proof of precision: that takes labels.

Intervals are over source documents, each (or each of 4,096 groups of them) left out in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy.stats import beta

from sa_plugin._check import require
from sa_plugin._face import face
from sa_plugin._files import write_text
from sa_plugin.scanning.block import AROUND, PARQUET, near_threshold, read_block, tables_of
from sa_plugin.scanning.documents import DOCUMENTS, DocumentSums
from sa_plugin.scanning.folder import read_manifest
from sa_plugin.show.html import Markup, el, visible
from sa_plugin.show.result import Result, Sheet, ends_text, noun_count, number, short
from sa_plugin.statistics.bootstrap import left_out, resampled_sums
from sa_plugin.statistics.confusion import ratio
from sa_plugin.statistics.drawn import Drawn, Resampling

TOP = 5
"""Strongest passages that are kept of each concept."""
_SHOWN = 30
_PER = 1000.0


@dataclass(frozen=True, eq=False, repr=False)
class Scan(Result):
    """What a scan found in a corpus, or in the blocks of it that are done.

    Attributes:
        folder: Where the tables lie.
        share: Of the samples, by concept.
        per_thousand: SuperActivators among 1,000 tokens, by concept.
        tail: Share of SuperActivators that reach the next stricter threshold, by concept; NaN where the
            chosen delta is the smallest of its grid, or there is none.
        expected: The same share where it is compared with, and the ends of its interval.
        against: What that is: "calibration", or the folder of another scan.
        strongest: Rows of the hits table with the largest margins, by concept.
        choices: Of each concept layer, unit, delta, threshold and cut.
        totals: Documents, blocks, what was left out and why.
    """

    folder: str
    share: Drawn
    per_thousand: Drawn
    tail: Drawn
    expected: Float[np.ndarray, "concept 3"]
    against: str
    strongest: Mapping[str, tuple[dict[str, Any], ...]]
    choices: tuple[dict[str, Any], ...]
    totals: Mapping[str, Any]

    text_keys: ClassVar[tuple[str, ...]] = ("text", "before", "after")
    about: ClassVar[str] = (
        "A rate counts what the detector marks, right or wrong: how precise its marks are, Detector.evaluate "
        "says of labelled data. Intervals are over documents, for this detector and these thresholds."
    )

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names."""
        return tuple(self.share.axes["concept"])

    @property
    def drift(self) -> str:
        """Of its detector, as the folder says it."""
        return str(self.totals.get("drift", ""))

    @property
    def drifted(self) -> tuple[str, ...]:
        """Concepts whose tail is not the one that calibration expects."""
        return tuple(c for c, of in zip(self.concepts, self._drift(), strict=True) if of)

    def _drift(self) -> list[str]:
        found = []
        ends = zip(np.atleast_1d(self.tail.low), np.atleast_1d(self.tail.high), self.expected, strict=True)
        for low, high, (_, least, most) in ends:
            # Comparisons with what is not defined are false.
            found.append("heavier" if low > most else "lighter" if high < least else "")
        return found

    def headline(self) -> str:
        """How much was scanned, and which concepts are the most frequent."""
        n, blocks = self.totals["scanned"], self.totals["blocks"]
        best = sorted(zip(np.atleast_1d(self.share.estimate), self.concepts, strict=True), reverse=True)[:3]
        said = ", ".join(f"{name} in {100 * value:.1f} %" for value, name in best)
        done = "" if self.totals["complete"] else f", {noun_count(blocks, 'block')} done so far"
        return f"{n:,} documents{done}, {noun_count(len(self.concepts), 'concept')}: {said}"

    def sheets(self) -> tuple[Sheet, ...]:
        """Rates and drift by concept, most frequent first; the strongest passages; what was left out."""
        order = np.argsort(-np.nan_to_num(np.atleast_1d(self.share.estimate)), kind="stable")
        drift, lines, passages = self._drift(), [], []
        for k in order[:_SHOWN].tolist():
            name, one = self.concepts[k], self.choices[k]
            cells = [name, str(one["layer"]), f"{one['delta']:g}", short(self.share.sel(concept=name))]
            cells += [short(self.per_thousand.sel(concept=name), 2), short(self.tail.sel(concept=name), 2)]
            middle, low, high = map(float, self.expected[k])
            expected = f"{number(middle, 2)} {ends_text(low, high, '', 2)}"
            lines.append([*cells, expected if np.isfinite(middle) else "-", drift[k] or "-"])
            for hit in self.strongest.get(name, ())[:2]:
                passages.append([name, hit["sample"], f"+{hit['margin']:.3f}", _passage(hit)])
        left = len(self.concepts) - len(lines)
        notes = [f"{left} more concepts: .table() has all."] if left else []
        totals = self.totals
        notes += [
            f"{totals['scanned']:,} of {totals['documents']:,} documents scanned, "
            f"{totals['bad_documents']} failed, {totals['cut_into_windows']} cut into windows. Tokens: "
            + ", ".join(f"{name} {n:,}" for name, n in totals["tokens"].items())
            + f". Tail: hits above the next stricter threshold; expected: of {self.against}.",
            f"Decisions within rounding of their threshold, which other hardware may turn: "
            f"{totals['near_threshold']:,}.",
        ]
        header = ["concept", "layer", "delta", "share", "per 1,000 tokens", "tail", "expected", "drift"]
        found = [Sheet(header, lines, "", notes)]
        if passages:
            found.append(Sheet(["concept", "sample", "margin", "passage"], passages, "Strongest passages."))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Every number, choice and strongest passage; the tables themselves lie in the folder."""
        return {**super().to_dict(), "tail_drift": dict(zip(self.concepts, self._drift(), strict=True))}

    def plot(self) -> Any:
        """Shares with intervals, and the tails beside what calibration expects."""
        from sa_plugin.show import plots

        order = np.argsort(-np.nan_to_num(np.atleast_1d(self.share.estimate)), kind="stable")[:_SHOWN]
        names = [self.concepts[k] for k in order]
        figure, (left, right) = plots.new_figure(8.6, 1.5 + 0.26 * len(names), columns=2)
        plots.whiskers(left, self.share.sel(concept=names), colours=plots.TAIL_COLOUR)
        plots.words(left, title="samples that hold the concept", x="share")
        plots.whiskers(right, self.tail.sel(concept=names), without="no stricter threshold, or no hit")
        middle, low, high = self.expected[order].T
        right.hlines(range(len(names)), low, high, color=plots.IN_COLOUR, lw=6, alpha=0.3)
        right.plot(middle, range(len(names)), "|", color=plots.IN_COLOUR, ms=9, mew=2)
        plots.rows(right, [""] * len(names))
        plots.words(right, title="hits above the next stricter threshold", x=f"share (blue: {self.against})")
        left_over = len(self.concepts) - len(names)
        rest = f" {left_over} more concepts are not drawn." if left_over else ""
        plots.note(
            figure,
            f"Intervals over documents. How often the detector fires is not how often it is right.{rest}",
            self.share,
        )
        return figure

    def write_page(self, path: str | Path, *, texts: bool = True) -> Path:
        """Write one HTML page: tables, picture, strongest passages.

        Args:
            path: Where to.
            texts: Whether with words of the corpus.

        Raises:
            OSError: It cannot be written; the text names the path.
        """
        from sa_plugin.show import plots

        sheets = self.sheets() if texts else self.sheets()[:1]
        passages = [self._passages(name) for name in self.concepts] if texts else []
        title = f"Scan of {self.totals['scanned']:,} documents"
        look = "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        # On a narrow screen the picture is scrolled like the tables, not made too small to be read.
        look += ".wide{overflow-x:auto}svg{max-width:100%;min-width:40rem;height:auto}"
        look += f"mark{{background:#ce541055}}li{{margin:.3em 0}}{plots.figure_style()}"
        page = el(
            "html",
            el("head", el("meta", charset="utf-8"), el("title", title), el("style", Markup(look))),
            el(
                "body",
                el("h1", title),
                *(sheet.html() for sheet in sheets[:1]),
                el(
                    "div",
                    plots.svg(self.plot(), title, "Rates and tails by concept, with intervals.", "scan-"),
                    class_="wide",
                ),
                el("h2", "Strongest passages") if any(passages) else None,
                *passages,
                *(el("p", one) for one in self.cautions() if one),
            ),
            lang="en",
        )
        return write_text(path, f"<!doctype html>\n{page}\n")

    def _passages(self, concept: str) -> Markup | None:
        hits = [hit for hit in self.strongest.get(concept, ()) if hit.get("text") is not None]
        if not hits:
            return None
        rows = [
            el(
                "li",
                "…" * (hit["start"] > len(hit["before"])) + hit["before"],
                el("mark", hit["text"]),
                hit["after"] + "…" * (len(hit["after"]) == AROUND),
                f" ({hit['sample']}, +{hit['margin']:.3f})",
            )
            for hit in hits
        ]
        return el("section", el("h3", concept), el("ol", rows))


def _passage(hit: Mapping[str, Any]) -> str:
    if "top" in hit:
        return "[{:.0f}:{:.0f}, {:.0f}:{:.0f}]".format(*(hit[k] for k in ("top", "bottom", "left", "right")))
    if hit.get("text") is None:
        return f"[{hit['start']}:{hit['end']}]"
    words = f"{hit['before'][-25:]}[{hit['text']}]{hit['after'][:25]}"
    return visible(" ".join(words.split()))


@face
def summary(
    folder: str | Path, *, against: str | Path | None = None, resampling: Resampling = Resampling()
) -> Scan:
    """Read what a scan has found so far: all of it when it is merged, else the blocks that are done.

    Args:
        folder: Of the run.
        against: Folder of another scan with the same detector, to compare tails with; by default they are
            compared with calibration.
        resampling: Of source documents.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: No block is done, they are of another format, or `against` is of another detector.
        DamagedFileError: A file is not as it was written.
    """
    out = Path(folder)
    manifest = read_manifest(out)
    choices = tuple(manifest["settings"]["detector"]["concepts"])
    names = [one["concept"] for one in choices]
    if "totals" in manifest:
        with np.load(out / DOCUMENTS, allow_pickle=False) as held:
            counts = {name: held[name] for name in held.files}
        totals = {**manifest["totals"], "complete": True}
        tables = _merged_hits(out)
    else:
        counts, totals = _of_blocks(out, manifest)
        tables = (tables_of(path)["hits"] for path in _done(out))
    strongest = _strongest(tables, names)
    resamples = left_out(np.arange(len(counts["samples"])), resampling)
    part = {
        name: np.asarray(counts[name]).T for name in ("samples", "tokens", "present", "hits", "strict_hits")
    }

    def drawn(name: str, of: str, kind: Any, times: float = 1.0) -> Drawn:
        above, below = resampled_sums(part[name], resamples), resampled_sums(part[of], resamples)
        values = times * ratio(above, np.broadcast_to(below, above.shape), np.nan)
        return resamples.drawn(values, kind, resamples.rows(part[of]), concept=names)

    documents = {"source_documents": len(counts["samples"]), "grouped": bool(counts["grouped"])}
    tail = drawn("strict_hits", "hits", "share")
    has = np.array([one["tail"] is not None for one in choices])
    tail = tail.like(np.where(has[:, None], tail.values, np.nan))
    expected = _of_calibration(choices, resampling.level)
    if against is not None:
        other = summary(against, resampling=resampling)
        if other.choices != choices:
            raise ValueError(
                f"{against} is a scan with another detector than {out}: compare scans of one detector."
            )
        expected = np.stack([other.tail.estimate, other.tail.low, other.tail.high], axis=1)
    return Scan(
        str(out),
        drawn("present", "samples", "share"),
        drawn("hits", "tokens", "mean", _PER),
        tail,
        expected,
        "calibration" if against is None else str(against),
        strongest,
        choices,
        totals | _drift_of(manifest) | documents,
    )


def _drift_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    found = manifest["settings"]["detector"]
    return {"drift": found["drift"]} if "drift" in found else {}


def _of_calibration(choices: Sequence[Mapping[str, Any]], level: float) -> Float[np.ndarray, "concept 3"]:
    """What share of the tail's calibration tokens reaches the stricter threshold, with its interval."""
    found = np.full((len(choices), 3), np.nan)
    for k, one in enumerate(choices):
        if one["tail"] is not None and one["calibration_tokens"]:
            n = one["calibration_tokens"]
            reach = max(1e-9, n * one["tail"])
            ends = beta.ppf([(1 - level) / 2, (1 + level) / 2], reach, max(0.0, n - reach) + 1)
            found[k] = one["tail"], *ends
    return found


def _done(out: Path) -> list[Path]:
    return sorted(path for path in out.glob("blocks/[0-9]*") if path.is_dir())


def _of_blocks(out: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sums and counts of the blocks that are there."""
    done = _done(out)
    if not done:
        raise ValueError(f"no block of {out} is done: scan first.")
    sums = DocumentSums(len(manifest["settings"]["detector"]["concepts"]))
    totals: dict[str, Any] = {"documents": 0, "blocks": len(done), "scanned": 0, "cut_into_windows": 0}
    totals |= {"bad_documents": 0, "bad": [], "tokens": {}, "near_threshold": 0, "complete": False}
    for path in done:
        record = read_block(out, int(path.name), manifest["settings_digest"])
        assert record is not None
        for name in ("documents", "scanned", "cut_into_windows"):
            totals[name] += record[name]
        totals["bad"] += record["bad"]
        totals["bad_documents"] += len(record["bad"])
        for name, n in record["tokens"].items():
            totals["tokens"][name] = totals["tokens"].get(name, 0) + n
        samples = tables_of(path)["samples"]
        sums.add(samples)
        totals["near_threshold"] += near_threshold(samples, manifest["settings"])
    return sums.arrays(), totals


def _merged_hits(out: Path) -> Any:
    parquet = require("pyarrow.parquet", "corpora", PARQUET)
    file = parquet.ParquetFile(out / "hits.parquet")
    try:
        for k in range(file.num_row_groups):
            yield file.read_row_group(k)
    finally:
        file.close()


def _strongest(tables: Any, names: list[str]) -> dict[str, tuple[dict[str, Any], ...]]:
    """Of each concept the hits with the largest margins, the first of equals, from tables in their order."""
    best: dict[str, list[tuple[float, int, dict[str, Any]]]] = {name: [] for name in names}
    place = {name: k for k, name in enumerate(names)}
    n = 0
    for table in tables:
        if not len(table):
            continue
        margin = table["margin"].to_numpy()
        coded = table["concept"].combine_chunks().dictionary_encode()
        code = np.array([place[name] for name in coded.dictionary.to_pylist()])[coded.indices.to_numpy()]
        # By concept, then margin, largest first; the sort is stable, so the first of equals comes first.
        order = np.lexsort((-margin, code))
        rank = np.arange(len(order)) - np.searchsorted(code[order], code[order])
        rows = order[rank < TOP]
        for row, hit in zip(rows.tolist(), table.take(rows).to_pylist(), strict=True):
            best[hit["concept"]].append((-hit["margin"], n + row, hit))
        best = {name: sorted(held, key=lambda one: one[:2])[:TOP] for name, held in best.items()}
        n += len(table)
    return {name: tuple(hit for *_, hit in held) for name, held in best.items() if held}
