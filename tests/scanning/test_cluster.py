"""A real Ray of two nodes on loopback: whatever is lost on the way, the same bytes as one process."""

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import pytest
import torch
from fake_host import FakeHost
from word_data import word_data

# Read when Ray is imported: without it a node asks for the machine's own address, not for loopback's.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# What other tests of this machine hold in memory is no reason to kill a worker.
os.environ |= {"RAY_memory_monitor_refresh_ms": "0"}

from sa_plugin.concepts import RowLimits, collect, collect_blocks, fit
from sa_plugin.detection import calibrate
from sa_plugin.loaders import labelled_corpus, load, open_corpus
from sa_plugin.passes import LostWorkersError, RayPool, on_ray
from sa_plugin.scanning import scan
from sa_plugin.scores import score_blocks

LONG = os.environ.get("SA_PLUGIN_SCALE") == "1"
"""Whether real weights are scanned too: `make test-scale`."""
in_full = pytest.mark.skipif(not LONG, reason="starts many actors: make test-scale")
MERGED = ("hits.parquet", "samples.parquet", "documents.npz", "tail.npz", "tail.keys", "manifest.json")

NODE = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
PATH = os.pathsep.join(one for one in sys.path if one)
NODE |= {"object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def cluster():
    import ray
    from ray.cluster_utils import Cluster

    # Workers import what this process imports.
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", PATH)
    try:
        nodes = Cluster(initialize_head=True, head_node_args=NODE)
        nodes.add_node(**NODE)
        ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
    except Exception as error:
        patch.undo()
        if LONG:
            raise
        pytest.skip(f"Ray does not start on this machine ({type(error).__name__}: {error})")
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    patch.undo()


def telling(delay):
    """Work that says who did a block."""

    def make():
        def work(block):
            time.sleep(delay)
            return block, os.getpid()

        return work

    return make


@in_full
def test_a_lost_process_and_a_lost_node_lose_no_block(cluster):
    node = cluster.add_node(**NODE)
    done = []
    for block, (told, pid) in on_ray(RayPool(workers=3), telling(0.2), iter(range(24))):
        assert told == block
        done.append(block)
        if len(done) == 4:
            os.kill(pid, signal.SIGKILL)
        if len(done) == 8:
            cluster.remove_node(node)
    assert sorted(done) == list(range(24))


@in_full
def test_a_stream_of_blocks_ends_when_it_is_told(cluster):
    ended = []

    def blocks():
        for block in itertools.count():
            if ended:
                return
            yield block

    for block, _ in on_ray(RayPool(), telling(0.0), blocks()):
        if block >= 5:
            ended.append(block)
    assert ended


@in_full
def test_a_block_that_kills_its_workers_is_named(cluster):
    def make():
        def work(block):
            if block == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return block

        return work

    with pytest.raises(LostWorkersError, match=r"^3 actors died at block 2; the last: .*fewer workers="):
        list(on_ray(RayPool(), make, iter(range(6))))


def test_what_the_work_refuses_is_refused_here(cluster):
    def make():
        def work(block):
            raise ValueError(f"block {block} is bad: mend it.")

        return work

    with pytest.raises(ValueError, match=r"^block 0 is bad: mend it\.$"):
        list(on_ray(RayPool(workers=1), make, iter(range(3))))


def test_what_cannot_be_sent_is_refused_by_name(cluster):
    lines = (line for line in "ab")
    with pytest.raises(TypeError, match=r"cannot be sent to them .*host=lambda"):
        list(on_ray(RayPool(), lambda: lines, iter(range(3))))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_gpus": 1.0}, r"^num_gpus is 1 for each worker, and no node of .* has more than 0: ask"),
        ({"num_cpus": 2.5}, r"^num_cpus is 2\.5 for each worker, and no node of .* has more than 1"),
    ],
)
def test_what_no_node_has_is_refused(cluster, asked, said):
    with pytest.raises(ValueError, match=said):
        list(on_ray(RayPool(**asked), telling(0.0), iter(range(3))))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 0}, r"^workers is 0: give 1 or more"),
        ({"num_gpus": -1.0}, r"^num_gpus is -1\.0: give 0 or more"),
    ],
)
def test_a_pool_of_nothing_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        RayPool(**given)


def test_functions_as_packages_hand_them_out_can_be_sent_to_a_worker():
    # In a process of its own: shape checks of the tests are round these functions here, and cannot be sent.
    script = """
        import inspect
        from ray import cloudpickle
        from sa_plugin import host, loaders
        every = {name: getattr(room, name) for room in (host, loaders) for name in room.__all__}
        sent = {name: cloudpickle.dumps(made) for name, made in every.items() if inspect.isfunction(made)}
        print(len(sent))
        try:
            cloudpickle.loads(sent["open_folder"])(5, "transformer_lens")
        except TypeError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(
        command, text=True, capture_output=True, check=True, env=os.environ | {"PYTHONPATH": PATH}
    )
    n, said = run.stdout.splitlines()
    assert int(n) > 20
    assert said == "open_folder: folder is 5, not a path."


def test_a_cluster_that_does_not_answer_is_named(tmp_path):
    script = """
        from sa_plugin.passes import RayPool, on_ray
        try:
            list(on_ray(RayPool(address="127.0.0.1:9"), lambda: None, iter(range(3))))
        except ConnectionError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(command, text=True, capture_output=True, check=False)
    assert "no cluster of Ray answers at '127.0.0.1:9'" in run.stdout


# Scans ---------------------------------------------------------------------------------------------


class Slow(FakeHost):
    """A model that leaves time to lose it."""

    def read(self, *given, **named):
        time.sleep(0.15)
        return super().read(*given, **named)


def opened(folder):
    """A model of a folder: the function is taken where it is called, since the tests' own is wrapped."""
    from sa_plugin.host import open_folder

    return open_folder(folder, "transformer_lens")


def noted(attach, pids):
    """Attach a model and leave word of the process that holds it."""
    (pids / str(os.getpid())).touch()
    return attach()


@pytest.fixture(scope="module", params=["planted", pytest.param("smollm2", marks=pytest.mark.real)])
def made(request, found, rows, tmp_path_factory):
    """How a host is made, a detector, a corpus in a file, and the folder of what one process finds."""
    if request.param == "planted":
        attach, detector = Slow, found[2]
    elif not LONG:
        pytest.skip("SmolLM2 on Ray: make test-scale")
    else:
        from weights import folder

        attach = functools.partial(opened, folder("smollm2"))
        data = load("supersense").subset(160)
        host = attach()
        detector = calibrate(host, data, fit(host, data, "prototype", layers=[6, 12]))
        rows = [{"id": one.id, "text": one.text, "document": one.document} for one in data.samples[:48]]
    scratch = tmp_path_factory.mktemp(request.param)
    path = scratch / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = open_corpus(path, block_size=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scan(attach, detector, corpus, scratch / "one")
    torch.set_num_threads(threads)
    return attach, detector, corpus, scratch / "one"


def content(out):
    return {name: (out / name).read_bytes() for name in MERGED}


def n_blocks(out):
    return len(list((out / "blocks").glob("[0-9]*")))


def test_a_scan_that_loses_a_worker_and_a_node_is_one_process_to_the_bit(cluster, made, tmp_path):
    attach, detector, corpus, whole = made
    out, pids = tmp_path / "out", tmp_path / "pids"
    pids.mkdir()
    node, lost = cluster.add_node(**NODE), []

    def lose():
        while n_blocks(out) < 2:
            time.sleep(0.01)
        os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)
        cluster.remove_node(node)
        lost.append(n_blocks(out))

    losing = threading.Thread(target=lose, daemon=True)
    losing.start()
    scan(functools.partial(noted, attach, pids), detector, corpus, out, engine=RayPool(workers=3))
    losing.join(30)
    assert lost[0] < corpus.n_blocks
    assert len(list(pids.iterdir())) > 1
    assert content(out) == content(whole)


@in_full
def test_a_driver_that_is_killed_goes_on_to_the_same_bits(cluster, made, tmp_path):
    from ray import cloudpickle

    attach, detector, corpus, whole = made
    given = (attach, replace(detector, host=None), corpus, tmp_path)
    (tmp_path / "given").write_bytes(cloudpickle.dumps(given))
    script = """
        import pickle, sys
        from sa_plugin.passes import RayPool
        from sa_plugin.scanning import scan
        with open(sys.argv[1], "rb") as file:
            given = pickle.load(file)
        scan(*given, engine=RayPool(address=sys.argv[2]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "given"), cluster.address]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": PATH}, stderr=subprocess.DEVNULL
    ) as driver:
        while n_blocks(tmp_path) < 2 and driver.poll() is None:
            time.sleep(0.01)
        driver.kill()
    assert 2 <= n_blocks(tmp_path) < corpus.n_blocks
    scan(attach, detector, corpus, tmp_path, engine="ray")
    assert content(tmp_path) == content(whole)


@in_full
def test_fit_and_score_on_ray_are_one_process_to_the_bit(cluster, tmp_path):
    samples, path = word_data(150, documents=60).samples, tmp_path / "words.jsonl"
    rows = [
        {"id": s.id, "text": s.text, "document": s.document, "spans": [list(span) for span in s.spans]}
        for s in samples
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {name: name for name in ("text", "spans", "id", "document")}
    data = labelled_corpus(path, columns=columns, block_size=16)
    here, there = (tmp_path / name for name in ("here", "there"))
    few = RowLimits(per_class=40)
    collect_blocks(FakeHost(), data, here / "train", limits=few)
    collect_blocks(FakeHost, data, there / "train", limits=few, engine="ray")

    def separators(folder):
        kept = collect(FakeHost(), data, limits=few._replace(folder=folder / "train"))
        return fit(FakeHost(), data, "separator", statistics=kept)

    bank, other = separators(here), separators(there)
    assert torch.equal(bank.token.vectors, other.token.vectors)
    score_blocks(FakeHost(), data, bank, here / "scores")
    score_blocks(FakeHost, data, bank, there / "scores", engine="ray")
    names = [one.name for one in (here / "scores").iterdir()]
    assert len(names) > 8
    assert all((here / "scores" / one).read_bytes() == (there / "scores" / one).read_bytes() for one in names)


def test_without_ray_the_extra_is_named_before_a_model(found, corpus_of_two, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    told = r"ray is needed for work on a cluster of Ray.* pip install 'sa_plugin\[ray\]'"
    with pytest.raises(ImportError, match=told):
        scan(lambda: pytest.fail("attached"), found[2], corpus_of_two, tmp_path, engine="ray")


def test_a_model_of_this_process_is_not_sent(found, corpus_of_two, tmp_path):
    host, _, detector = found
    with pytest.raises(TypeError, match=r"^host is a model that is attached in this process, .* host=lambda"):
        scan(host, detector, corpus_of_two, tmp_path, engine="ray")
    with pytest.raises(ValueError, match=r"engine is .*'rya'.* did you mean 'ray'\?"):
        scan(FakeHost, detector, corpus_of_two, tmp_path, engine="rya")


def test_a_function_makes_the_host_here_too(found, corpus_of_two, tmp_path):
    host, _, detector = found
    scan(host, detector, corpus_of_two, tmp_path / "one")
    scan(FakeHost, detector, corpus_of_two, tmp_path / "other")
    assert content(tmp_path / "one") == content(tmp_path / "other")


@pytest.fixture
def corpus_of_two():
    return open_corpus(["a cat sat", "the dog ran home"])
