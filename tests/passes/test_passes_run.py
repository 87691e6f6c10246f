"""Laws of a pass: however samples are batched, ordered, padded or merged, a job keeps the same."""

import numpy as np
import pytest
import tiny
import torch
from fake_host import Elsewhere, FakeHost, in_batches
from word_data import word_data

from sa_plugin.host import Site, attach, reducers
from sa_plugin.passes import Job, NonFiniteRowError, lay_out, run_jobs, sink_rule

LAYERS = (0, 2)
SITE = Site(1, "resid_post")


class Shuffled(FakeHost):
    """Batches in an order of their own."""

    def batches(self, samples, *, batch_tokens=None):
        found = super().batches(samples, batch_tokens=batch_tokens)
        return [found[k] for k in np.random.default_rng(3).permutation(len(found))]


@pytest.fixture(scope="module")
def data():
    return word_data(50)


def everything(batch):
    """Keeps something in every group; names are strings, numbers and tuples."""

    def keep_some(read, keep):
        h = read[SITE]
        valid = batch.valid
        return reducers.keeping(
            sums={"tokens": keep.sum(), ("gram", 1): torch.einsum("btd,bte,bt->de", h, h, keep.float())},
            rows={"h": h[valid], ("first", 0): h[valid][:, 0].double()},
            samples={3: reducers.mean_over(h, keep), "longest": keep.sum(-1)},
        )

    return keep_some


def rule(host, sinks="drop"):
    return sink_rule(host.info, LAYERS, sinks)


def kept(host, data, sinks="drop", **options):
    layout = lay_out(host, data.samples, data.concepts)
    job = Job({SITE}, everything, **options)
    return run_jobs(host, layout, [job], rule(host, sinks), description="law")[0]


def loop(host, data):
    """Oracle: one sample a pass, tokens judged and added one by one."""
    sums = {"tokens": 0, ("gram", 1): 0.0}
    h_rows, means, counts, flags = [], [], [], []
    for sample in data.samples:
        (batch,) = host.batches([sample])
        sites = [SITE, *(Site(at, "resid_post") for at in LAYERS)]
        got = host.read(batch, sites, lambda read: {str(at): h[0] for at, h in read.items()})
        norms = np.stack([got[str(Site(at, "resid_post"))].norm(dim=-1).numpy() for at in LAYERS])
        # A sink is ten times as long as the sample's (lower) median token, at any layer.
        median = np.sort(norms, axis=1)[:, (norms.shape[1] - 1) // 2]
        keep = ~(norms > 10 * median[:, None]).any(0)
        rows = got[str(SITE)].double().numpy()[keep]
        sums["tokens"] += len(rows)
        sums["gram", 1] = sums["gram", 1] + rows.T @ rows
        h_rows.append(rows)
        means.append(rows.mean(0))
        counts.append(len(rows))
        flags.append(keep)
    return sums, np.concatenate(h_rows), np.stack(means), np.array(counts), np.concatenate(flags)


@pytest.mark.parametrize("kind", [FakeHost, Shuffled, Elsewhere])
@pytest.mark.parametrize("batch_tokens", [1, 37, 4096])
def test_batches_their_order_and_merged_sums_are_a_plain_loop(data, kind, batch_tokens):
    sums, rows, means, counts, flags = loop(FakeHost(), data)
    found = kept(in_batches(kind(), batch_tokens), data)
    np.testing.assert_array_equal(found.keep, flags)
    assert int(found.sums["tokens"]) == sums["tokens"]
    assert found.sums["gram", 1].dtype == torch.float64
    np.testing.assert_allclose(found.sums["gram", 1].numpy(), sums["gram", 1], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.rows["h"], rows, atol=1e-6)
    np.testing.assert_allclose(found.rows["first", 0], rows[:, 0], atol=1e-6)
    np.testing.assert_allclose(found.samples[3], means, atol=1e-6)
    np.testing.assert_array_equal(found.samples["longest"], counts)


def test_a_host_elsewhere_gives_the_same_rows_to_the_bit(data):
    here, there = (kept(in_batches(kind(), 40), data) for kind in (FakeHost, Elsewhere))
    for name in here.rows:
        np.testing.assert_array_equal(there.rows[name], here.rows[name])
    for name in here.samples:
        np.testing.assert_array_equal(there.samples[name], here.samples[name])
    for name in here.sums:
        torch.testing.assert_close(there.sums[name], here.sums[name], rtol=1e-14, atol=0.0)


def test_the_side_of_the_padding_changes_nothing(data):
    bridge = tiny.bridge("gpt2")
    options = {"batch_tokens": 200, "progress": False}
    right, left = (kept(attach(bridge, padding_side=side, **options), data) for side in ("right", "left"))
    np.testing.assert_array_equal(left.keep, right.keep)
    np.testing.assert_allclose(left.rows["h"], right.rows["h"], atol=1e-4)
    np.testing.assert_allclose(left.samples[3], right.samples[3], atol=1e-4)
    torch.testing.assert_close(left.sums["gram", 1], right.sums["gram", 1], rtol=1e-4, atol=1e-2)


def test_a_file_holds_what_memory_does(data):
    memory, disk = (kept(FakeHost(), data, budget=budget) for budget in (1 << 30, 0))
    for one, other in ((memory.rows, disk.rows), (memory.samples, disk.samples)):
        for name, array in one.items():
            assert isinstance(other[name], np.memmap)
            assert not isinstance(array, np.memmap)
            np.testing.assert_array_equal(other[name], array)


def test_chosen_rows_are_those_rows(data):
    host = in_batches(FakeHost(), 60)
    layout = lay_out(host, data.samples, data.concepts)
    chosen = np.arange(0, layout.n_rows, 3)

    def reducer(batch):
        stored = torch.from_numpy(np.isin(layout.rows(batch), chosen))
        return lambda read, keep: reducers.keeping(rows={"h": read[SITE][batch.valid][stored]})

    jobs = [Job({SITE}, reducer, chosen), Job({SITE}, everything)]
    some, every = run_jobs(host, layout, jobs, rule(host), description="law")
    wanted = np.isin(np.flatnonzero(every.keep), chosen)
    np.testing.assert_array_equal(some.rows["h"], every.rows["h"][wanted])


def test_jobs_share_the_passes_and_know_nothing_of_each_other(data):
    host = FakeHost()
    layout = lay_out(host, data.samples, data.concepts)
    before = host.passes
    both = run_jobs(host, layout, [Job({SITE}, everything)] * 2, rule(host), description="law")
    assert host.passes - before == len(data.samples)
    alone = kept(host, data)
    for found in both:
        np.testing.assert_array_equal(found.rows["h"], alone.rows["h"])
        torch.testing.assert_close(found.sums["gram", 1], alone.sums["gram", 1], rtol=0, atol=0)


def test_rows_of_another_run_are_kept_whatever_this_runs_norms(data):
    host = FakeHost()
    layout = lay_out(host, data.samples, data.concepts)
    frozen = np.random.default_rng(0).random(layout.n_rows) < 0.7
    (found,) = run_jobs(host, layout, [Job({SITE}, everything)], frozen, description="law")
    np.testing.assert_array_equal(found.keep, frozen)
    assert len(found.rows["h"]) == int(found.sums["tokens"]) == frozen.sum()


def test_rows_in_the_order_of_the_batches(data):
    host = in_batches(Shuffled(), 40)
    layout = lay_out(host, data.samples, data.concepts)
    seen = []

    def reducer(batch):
        def look(read, keep):
            seen.append(read[SITE][keep])
            return everything(batch)(read, keep)

        return look

    (found,) = run_jobs(host, layout, [Job({SITE}, reducer)], rule(host), description="law")
    ordered = found.rows["h"][layout.run_order(found.keep)]
    np.testing.assert_array_equal(ordered, torch.cat(seen).numpy())


def test_what_a_batch_keeps_of_its_samples_is_seen_at_once(data):
    host = in_batches(FakeHost(), 40)
    layout = lay_out(host, data.samples, data.concepts)
    seen = []

    def each(batch, samples):
        seen.append((batch.rows.tolist(), samples["longest"].tolist()))
        if len(seen) == 2:
            raise ArithmeticError("enough")

    with pytest.raises(ArithmeticError, match="enough"):
        run_jobs(host, layout, [Job({SITE}, everything, each=each)], rule(host), description="law")
    assert [rows for rows, _ in seen] == [batch.rows.tolist() for batch in layout.batches[:2]]


def test_a_sample_that_kept_nothing_is_zero(data):
    host = in_batches(FakeHost(), 40)
    layout = lay_out(host, data.samples, data.concepts)
    last = layout.batches[-1].rows.tolist()

    def reducer(batch):
        some = batch.rows.tolist() != last
        return lambda read, keep: reducers.keeping(samples={"n": keep.sum(-1)} if some else {})

    (found,) = run_jobs(host, layout, [Job({SITE}, reducer)], rule(host), description="law")
    assert (found.samples["n"][last] == 0).all()
    assert (np.delete(found.samples["n"], last) > 0).all()


def test_a_longer_batch_may_need_wider_numbers(data):
    host = in_batches(FakeHost(), 40)
    layout = lay_out(host, data.samples, data.concepts)

    def reducer(batch):
        wide = batch is layout.batches[-1]
        value = torch.full((len(batch.rows),), 70_000 if wide else 7)
        return lambda read, keep: reducers.keeping(
            samples={"n": value.to(torch.int32 if wide else torch.int16)}
        )

    (found,) = run_jobs(host, layout, [Job({SITE}, reducer)], rule(host), description="law")
    assert set(found.samples["n"]) == {7, 70_000}


def test_nan_and_overflow_are_refused(data):
    host = FakeHost()
    host.poison = 0
    with pytest.raises(ValueError, match=r"block 0 \(resid_post\) hold NaN or Inf in 1 of"):
        kept(host, data)
    half = Job(
        {SITE}, lambda batch: lambda read, keep: reducers.keeping(rows={"h": 1e6 * read[SITE][batch.valid]})
    )
    layout = lay_out(FakeHost(), data.samples, ())
    assert run_jobs(FakeHost(), layout, [half], rule(FakeHost()), description="law")
    over = Job(
        {SITE},
        lambda batch: lambda read, keep: reducers.keeping(rows={"h": (1e6 * read[SITE][batch.valid]).half()}),
    )
    with pytest.raises(NonFiniteRowError, match="a row of 'h' holds NaN or Inf") as caught:
        run_jobs(FakeHost(), layout, [over], rule(FakeHost()), description="law")
    assert caught.value.name == "h"
    with pytest.raises(ValueError, match="there are no samples to run"):
        lay_out(FakeHost(), [], ())


def test_gathered_sums_are_in_float64_and_the_rest_is_left():
    name = ("sums", 0, ("s", 1))
    parts = [{("rows", 0, "a"): torch.tensor([k]), name: torch.tensor([0.1])} for k in range(3)]
    out = reducers.gather(parts)
    assert [int(one["rows", 0, "a"]) for one in out] == [0, 1, 2]
    assert [name in one for one in out] == [False, False, True]
    assert out[-1][name].dtype == torch.float64
    assert float(out[-1][name]) == pytest.approx(3 * float(torch.tensor(0.1).double()), rel=1e-15)
