"""Laws of a scan: it is the plain loop, whatever the shards, their order, the kills and the batches."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from fake_host import Elsewhere, FakeHost, in_batches

from sa_plugin import _files
from sa_plugin.data import Sample
from sa_plugin.detection import calibrate
from sa_plugin.loaders import open_corpus
from sa_plugin.scanning import (
    DocumentSums,
    ScanJob,
    TooManyBadError,
    Wanted,
    Windows,
    merge,
    scan,
    scan_block,
    summary,
)
from sa_plugin.statistics import ExactTail, Promise

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MERGED = (
    "hits.parquet",
    "samples.parquet",
    "documents.npz",
    "tail.json",
    "tail.npz",
    "tail.keys",
    "manifest.json",
)


@pytest.fixture(scope="module")
def corpus(rows):
    return open_corpus(rows, block_size=8)


@pytest.fixture(scope="module")
def whole(found, corpus, tmp_path_factory):
    """One pass."""
    host, _, detector = found
    out = tmp_path_factory.mktemp("whole")
    return out, scan(host, detector, corpus, out)


def tables(out):
    return [pandas.read_parquet(Path(out) / f"{name}.parquet") for name in ("hits", "samples")]


def content(out):
    return {name: (Path(out) / name).read_bytes() for name in MERGED}


def test_it_is_the_plain_loop_over_documents(found, rows, whole):
    detector = found[2]
    hits, samples = tables(whole[0])
    loop_hits, loop_samples = [], []
    for number, row in enumerate(rows):
        if number in (7, 22):
            continue
        for one in detector.find(row["text"]):
            place = (one.position, int(one.edges[0]), int(one.edges[1]), one.text)
            loop_hits.append((number, row["id"], row["document"], one.concept, *place, one.score, one.margin))
        seen = detector.detect(row["text"])
        for k, concept in enumerate(detector.concepts):
            loop_samples.append((number, concept, bool(seen.present[0, k]), seen.margin[0, k]))
    names = ["number", "sample", "document", "concept", "token", "start", "end", "text"]
    assert list(hits[names].itertuples(index=False, name=None)) == [one[:8] for one in loop_hits]
    np.testing.assert_allclose(hits[["score", "margin"]], [one[8:] for one in loop_hits], atol=1e-5)
    assert list(samples[["number", "concept", "present"]].itertuples(index=False, name=None)) == [
        one[:3] for one in loop_samples
    ]
    np.testing.assert_allclose(samples["margin"], [one[3] for one in loop_samples], atol=1e-5)
    for (number, concept), part in hits.groupby(["number", "concept"]):
        own = samples[(samples.number == number) & (samples.concept == concept)].iloc[0]
        assert own.hits == len(part)
        top = part.loc[part.score.idxmax()]
        assert (own["max"], own.start, own.token) == (top.score, top.start, top.token)
    assert (hits.before + hits.text + hits.after == [rows[k]["text"] for k in hits.number]).all()


@pytest.mark.parametrize("n", [2, 7])
def test_shards_in_any_order_are_one_pass_to_the_bit(found, corpus, whole, tmp_path, n):
    host, _, detector = found
    for k, i in enumerate(np.random.default_rng(n).permutation(n).tolist()):
        scan(host, detector, corpus, tmp_path / ("a" if k % 2 else "b"), shard=(i, n))
    merge(tmp_path / "b", tmp_path / "a")
    assert content(tmp_path / "b") == content(whole[0])


def test_batches_and_models_elsewhere_find_the_same(found, corpus, whole, tmp_path):
    _, _, detector = found
    for name, host in {"small": in_batches(FakeHost(), 30), "elsewhere": Elsewhere()}.items():
        scan(host, detector, corpus, tmp_path / name)
        for ours, theirs in zip(tables(tmp_path / name), tables(whole[0]), strict=True):
            pandas.testing.assert_frame_equal(ours, theirs, atol=1e-5)


class Slow(FakeHost):
    """A model that leaves time for a kill."""

    def read(self, *given, **named):
        time.sleep(0.1)
        return super().read(*given, **named)


def test_a_run_that_is_killed_goes_on_to_the_same_bits(found, corpus, whole, tmp_path):
    host, detector = Slow(), found[2]
    rng, killed = random.Random(0), 0
    for _ in range(6):
        child = os.fork()
        if not child:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                scan(host, detector, corpus, tmp_path)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert killed
    scan(host, detector, corpus, tmp_path)
    assert content(tmp_path) == content(whole[0])


class SmallDisk:
    """`os` on a disk that holds so many bytes of a folder, and says so when what was written is flushed."""

    step = 6 << 10

    def __init__(self, folder):
        self.folder, self.size = folder, 0

    def __getattr__(self, name):
        return self.flushed if name == "fsync" else getattr(os, name)

    def grow(self, size):
        self.size = size

    def flushed(self, handle):
        if sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) > self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)


class RealDisk:
    """A disk in memory of so many bytes, which only root may have."""

    step = 40 << 10

    def __init__(self, folder):
        self.folder = folder
        self._mount("size=4k")

    def grow(self, size):
        self._mount(f"remount,size={size}")

    def _mount(self, options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(params=[SmallDisk, RealDisk])
def disk(request, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    try:
        made = request.param(out)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounts no disk in memory: that takes Linux and root")
    if request.param is SmallDisk:
        monkeypatch.setattr(_files, "os", made)
    yield made
    if request.param is RealDisk:
        subprocess.run(["umount", "--lazy", str(out)], check=True)


def test_a_scan_whose_disk_is_full_says_so_and_goes_on_once_there_is_space(found, corpus, whole, disk):
    host, _, detector = found
    told = []
    for size in range(disk.step, 2 << 20, disk.step):
        disk.grow(size)
        try:
            scan(host, detector, corpus, disk.folder)
        except OSError as error:
            told.append(error)
        else:
            break
    assert {error.errno for error in told} == {errno.ENOSPC}
    said = r"(\S+) was not written \(No space left on device\), .*: free some space, or name a folder on .*"
    paths = [Path(re.fullmatch(said, error.strerror)[1]) for error in told]
    # It came at a block's tables and tail, and at those of the whole; none was left half.
    assert {"hits", "tail"} <= {path.stem for path in paths}
    assert disk.folder in {path.parent for path in paths}
    assert content(disk.folder) == content(whole[0])
    assert not [*disk.folder.rglob(f"{_files.PARTIAL}*")]


def test_two_workers_may_do_one_block(found, corpus, tmp_path):
    host, _, detector = found
    job = ScanJob(host, Wanted.of(detector), corpus)
    first = scan_block(job, 1, tmp_path)
    assert scan_block(job, 1, tmp_path) == first
    assert [one.name for one in (tmp_path / "blocks").iterdir()] == ["0000001"]


def test_the_tail_is_exact_above_its_cut(found, corpus, whole):
    detector = found[2]
    wanted = Wanted.of(detector)
    tail = ExactTail.open(whole[0])
    texts = [one.sample.text for one in corpus if one.sample]
    scores = detector.find(texts).scored.scores
    assert (tail.totals == len(scores)).all()
    levels = [0.9, 0.99, 1.0]
    enclosed = tail.quantiles(levels)
    expected = np.quantile(scores, levels, axis=0)
    assert enclosed.exact.any()
    np.testing.assert_allclose(enclosed.low[enclosed.exact], expected[enclosed.exact], atol=1e-5)
    assert (enclosed.low <= expected + 1e-5).all()
    assert (enclosed.high >= expected - 1e-5).all()
    hits, _ = tables(whole[0])
    counts = [int((hits.concept == concept).sum()) for concept in detector.concepts]
    assert tail.reaching(wanted.thresholds).tolist() == counts


def test_bad_documents_are_counted_and_named_up_to_a_limit(found, corpus, whole, tmp_path):
    host, _, detector = found
    totals = json.loads((whole[0] / "manifest.json").read_text())["totals"]
    assert (totals["documents"], totals["scanned"], totals["bad_documents"]) == (30, 28, 2)
    assert [one["document"] for one in totals["bad"]] == ["n7", "n22"]
    assert "nothing is seen" in totals["bad"][0]["fault"]
    with pytest.raises(TooManyBadError, match=r"2 documents failed, more than max_bad=1; the first: n7 \("):
        scan(host, detector, corpus, tmp_path, max_bad=1)


def test_decisions_near_their_threshold_are_counted(found, corpus, whole, tmp_path):
    host, _, detector = found
    _, samples = tables(whole[0])
    k = detector.concepts.index("animal")
    top = samples[samples.concept == "animal"]["max"].astype(float).sort_values(ascending=False).unique()
    # A threshold at documents' own maximum, and one that lies between documents.
    for bar in (top[1], (top[0] + top[1]) / 2):
        thresholds = detector.tail.thresholds.copy()
        thresholds[detector.tail.layer[k], detector.tail.delta[k], k] = bar
        moved = replace(detector, tail=replace(detector.tail, thresholds=thresholds))
        result = scan(host, moved, corpus, tmp_path / str(bar))
        assert moved.tail.chosen_threshold[k] == bar
        _, decided = tables(tmp_path / str(bar))
        near = decided[decided.margin.abs() <= 1e-4 * (decided["max"] - decided.margin).abs()]
        assert ("animal" in set(near.concept)) == (bar == top[1])
        assert result.totals["near_threshold"] == len(near)
        assert f"which other hardware may turn: {len(near)}." in " ".join(str(result).split())


def test_a_bar_tells_rate_and_time_left_of_what_this_call_does(found, corpus, tmp_path, capsys, monkeypatch):
    host, _, detector = found
    monkeypatch.setattr(host, "progress", True)
    scan(host, detector, corpus, tmp_path, shard=(0, 2))
    scan(host, detector, corpus, tmp_path)
    first, second = (one for one in capsys.readouterr().err.split("scan:   0%") if "document" in one)
    assert re.search(r"100%.* 16.0/16.0 \[\d\d:\d\d<00:00, .*document", first)
    assert re.search(r"100%.* 30.0/30.0 \[\d\d:\d\d<00:00, .*document", second)


class Choosy(FakeHost):
    """A model that some texts break."""

    def batches(self, samples, *, batch_tokens=None):
        bad = next((one for one in samples if "house" in one.text), None)
        if bad is not None:
            raise ValueError(f"sample {bad.id!r} has a house")
        return super().batches(samples, batch_tokens=batch_tokens)


def test_of_documents_that_fail_together_the_ones_to_blame_are_left_out(found, rows, whole, tmp_path):
    _, _, detector = found
    good = [row for row in rows if row["text"] and "house" not in str(row["text"])]
    result = scan(Choosy(), detector, open_corpus(rows, block_size=8), tmp_path, max_bad=30)
    assert result.totals["scanned"] == len(good) - 1
    hits, _ = tables(tmp_path)
    theirs, _ = tables(whole[0])
    kept = theirs[theirs["sample"].isin(set(hits["sample"]))]
    pandas.testing.assert_frame_equal(hits, kept.reset_index(drop=True), atol=1e-5)


def test_hits_and_documents_carry_p_where_the_promise_is_for_their_length(found, rows, tmp_path):
    host, data, plain = found
    rng = np.random.default_rng(5)
    words = [" ".join(rng.choice(["house", "blue", "under", "the"], 8)) for _ in range(12)]
    guard = [Sample(f"g{k}", text, f"guard {k}") for k, text in enumerate(words)]
    promise = Promise("document", 0.2, lengths=(1, 8))
    detector = calibrate(host, data, plain.bank, promise=promise, guard=guard)
    scan(host, detector, open_corpus(rows, block_size=8), tmp_path / "promised")
    hits, samples = tables(tmp_path / "promised")
    low, high = detector.guard.lengths
    inside = (samples.tokens >= low) & (samples.tokens <= high)
    assert 0 < inside.sum() < len(samples)
    assert samples.p.isna().equals(~inside)
    for one in samples[inside].itertuples():
        assert one.p == detector.p_values(one.concept, one.max)
    tokens = samples.groupby("number").tokens.first()
    for one in hits.itertuples():
        held = detector.p_values(one.concept, one.score)
        assert one.p == held if low <= tokens[one.number] <= high else np.isnan(one.p)
    assert len(hits)


def test_without_texts_no_word_of_the_corpus_is_written(found, corpus, rows, tmp_path):
    host, _, detector = found
    result = scan(host, detector, corpus, tmp_path, texts=False)
    assert not {"text", "before", "after"} & set(pandas.read_parquet(tmp_path / "hits.parquet").columns)
    words = {word.encode() for row in rows for word in str(row["text"]).split() if len(word) > 4}
    for path in tmp_path.rglob("*.*"):
        held = path.read_bytes() if path.is_file() else b""
        assert not [word for word in words if word in held], path
    assert "[" in str(result)
    result.write_page(tmp_path / "page.html", texts=False)
    assert "house" not in (tmp_path / "page.html").read_text()


def test_what_is_there_can_be_read_before_the_end(found, corpus, whole, tmp_path):
    host, _, detector = found
    part = scan(host, detector, corpus, tmp_path, shard=(0, 2))
    assert part.totals["blocks"] == 2
    assert "2 blocks done so far" in part.headline()
    with pytest.raises(ValueError, match=r"2 of 4 blocks of .* are not done \(1, 3\): scan their shards"):
        merge(tmp_path)
    scan(host, detector, corpus, tmp_path, shard=(1, 2))
    before = summary(tmp_path)
    after = merge(tmp_path)
    for name in ("share", "per_thousand", "tail"):
        np.testing.assert_array_equal(getattr(before, name).values, getattr(after, name).values)
    assert before.strongest == after.strongest


def test_what_was_found_is_shown(whole, tmp_path):
    result = whole[1]
    assert result.headline().startswith("28 documents, 2 concepts: animal in ")
    text = str(result)
    for words in ("per 1,000 tokens", "Strongest passages.", "28 of 30 documents scanned, 2 failed"):
        assert words in text
    assert "<table" in result._repr_html_()
    table = result.table()
    assert set(table.measure) == {"share", "per_thousand", "tail"}
    assert (table.low.dropna() <= table.value[table.low.notna()]).all()
    assert len(result.plot().axes) == 2
    page = result.write_page(tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert page.count("<mark>") == sum(map(len, result.strongest.values()))
    # A colour that the page does not know is not drawn: intervals would be gone.
    assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= set(re.findall(r"(--[\w-]+):", page)) != set()
    assert "before" in result.save(tmp_path / "a.json").read_text()
    assert "before" not in result.save(tmp_path / "b.json", texts=False).read_text()


def test_a_detector_that_drifted_is_named_by_whoever_reads_the_folder(found, corpus, tmp_path):
    host, _, detector = found
    origin = replace(detector.bank.origin, drift="moved by 9")
    drifted = replace(detector, bank=replace(detector.bank, origin=origin))
    scan(host, drifted, corpus, tmp_path)
    result = summary(tmp_path)
    for words in (str(result), result._repr_html_()):
        assert words.count("Loaded with allow_drift: moved by 9.") == 1
    assert result.to_dict()["drift"] == "moved by 9"


def test_a_stream_ends_where_it_ends_and_goes_on_where_it_stopped(found, rows, whole, tmp_path):
    host, _, detector = found
    stream = open_corpus((row for row in rows), block_size=8)
    scan(host, detector, stream, tmp_path)
    hits, samples = tables(tmp_path)
    pandas.testing.assert_frame_equal(hits, tables(whole[0])[0])
    shutil.rmtree(tmp_path / "blocks" / "0000002")
    scan(host, detector, open_corpus((row for row in rows), block_size=8), tmp_path)
    pandas.testing.assert_frame_equal(samples, tables(tmp_path)[1])


def test_refusals_name_what_is_wrong(found, corpus, rows, whole, tmp_path):
    host, _, detector = found
    with pytest.raises(ValueError, match="the bank was fitted on fake"):
        scan(FakeHost(seed=1), detector, corpus, tmp_path)
    with pytest.raises(FileNotFoundError, match="the corpus 'nowhere' does not exist"):
        scan(host, detector, "nowhere", tmp_path)
    with pytest.raises(ValueError, match="shard 3 of 2 does not exist"):
        scan(host, detector, corpus, tmp_path, shard=(3, 2))
    shutil.copytree(whole[0], tmp_path / "run")
    for changed, words in {
        "texts: True there, False here": {"texts": False},
        "corpus.block_size: 8 there, 4 here": {"corpus": open_corpus(rows, block_size=4)},
        r"corpus.parts\[0\].rows: 30 there, 29 here": {"corpus": open_corpus(rows[:29], block_size=8)},
        "model.batch_tokens: 2048 there, 9 here": {"host": in_batches(host, 9)},
    }.items():
        given = {"host": host, "corpus": corpus} | words
        with pytest.raises(ValueError, match=f"a run with other settings .{changed}.: name another folder"):
            scan(given.pop("host"), detector, given.pop("corpus"), tmp_path / "run", **given)
    block = tmp_path / "run" / "blocks" / "0000001"
    (block / "hits.parquet").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"hits.parquet is damaged or missing .* delete its folder"):
        scan(host, detector, corpus, tmp_path / "run")
    shutil.rmtree(block)
    scan(host, detector, corpus, tmp_path / "run")
    assert content(tmp_path / "run") == content(whole[0])
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has lost its manifest.json"):
        scan(host, detector, corpus, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="give a folder that `scan` wrote"):
        summary(tmp_path)
    for wrong in ({"tokens": 4}, {"overlap": 0}, {"tokens": 20, "overlap": 11}):
        with pytest.raises(ValueError, match=r"tokens is 4: give windows|overlap is (0|11): give 1 or more"):
            Windows(**wrong)


def test_without_pyarrow_the_extra_is_named(found, corpus, tmp_path, monkeypatch):
    host, _, detector = found
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow is needed for .* pip install 'sa_plugin\[corpora\]'"):
        scan(host, detector, corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_others_read(whole):
    hits, _ = tables(whole[0])
    path = str(whole[0] / "hits.parquet")
    datasets = pytest.importorskip("datasets")
    assert datasets.Dataset.from_parquet(path, cache_dir=str(whole[0] / "cache")).num_rows == len(hits)


def test_polars_and_duckdb_read_the_tables(whole):
    hits, samples = tables(whole[0])
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    assert polars.read_parquet(whole[0] / "hits.parquet")["text"].to_list() == hits.text.tolist()
    counted = f"select count(*) from '{whole[0]}/samples.parquet' where present"
    assert duckdb.sql(counted).fetchall()[0][0] == int(samples.present.sum())


def test_documents_beyond_a_number_are_grouped_whatever_their_order(monkeypatch, whole):
    _, samples = tables(whole[0])
    width = samples.concept.nunique()
    import pyarrow

    parts = [samples.iloc[k : k + 4 * width] for k in range(0, len(samples), 4 * width)]
    exact = DocumentSums(width)
    for part in parts:
        exact.add(pyarrow.Table.from_pandas(part))
    own = samples.groupby(["document", "concept"], sort=True)[["present", "hits"]].sum()
    assert exact.arrays()["present"].ravel().tolist() == own.present.tolist()
    assert exact.arrays()["hits"].ravel().tolist() == own.hits.tolist()
    monkeypatch.setattr("sa_plugin.scanning.documents.UNITS", 6)
    grouped = []
    for seed in range(3):
        sums = DocumentSums(width)
        for k in np.random.default_rng(seed).permutation(len(parts)):
            sums.add(pyarrow.Table.from_pandas(parts[k]))
        grouped.append(sums.arrays())
    for one in grouped:
        assert one["grouped"]
        assert len(one["samples"]) <= 6
        for name, values in one.items():
            np.testing.assert_array_equal(values, grouped[0][name])
    assert grouped[0]["hits"].sum() == own.hits.sum()


def test_a_scan_says_when_tails_differ(found, data_of_both, tmp_path):
    host, _, detector = found
    calm, loud = data_of_both
    scan(host, detector, open_corpus(calm, block_size=50), tmp_path / "calm")
    scan(host, detector, open_corpus(loud, block_size=50), tmp_path / "loud")
    against = summary(tmp_path / "loud", against=tmp_path / "calm")
    assert against.against == str(tmp_path / "calm")
    np.testing.assert_array_equal(against.expected[:, 0], summary(tmp_path / "calm").tail.estimate)
    assert summary(tmp_path / "calm", against=tmp_path / "calm").drifted == ()
    assert "animal" in against.drifted


@pytest.fixture(scope="module")
def data_of_both(found):
    """Texts as they are, and texts of one word, whose scores have one value each."""
    _, data, _ = found
    return [one.text for one in data.samples], [f"sat {'cat ' * (3 + k % 5)}" for k in range(100)]
