"""Files are written whole or not at all, and what was damaged is refused by name."""

import errno
import io
import json
import os
import stat
import tempfile
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from kills import dying_at, moments

from sa_plugin import _files
from sa_plugin._files import (
    LOCK,
    PARTIAL,
    DamagedFileError,
    as_path,
    laid_out,
    output_folder,
    packed_arrays,
    publish_folder,
    read_object,
    require_sealed,
    sealed,
    write_bytes,
    write_text,
    written,
)


def names(folder):
    return sorted(one.name for one in folder.iterdir())


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path / "file.json"
    write_text(path, "old")
    found = set()
    for moment in range(1, moments(lambda: write_text(path, "old")) + 1):
        write_text(path, "old")
        with dying_at(moment):
            write_text(path, "new" * 1000)
        assert path.read_text() in ("old", "new" * 1000)
        found.add(path.read_text() == "old")
    assert found == {True, False}


def test_a_kill_of_what_others_write_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path / "file.bin"
    for moment in range(1, moments(lambda: write_text(path, "old")) + 1):
        write_bytes(path, b"old")
        with dying_at(moment), written(path) as partial:
            partial.write_bytes(b"new")
        assert path.read_bytes() in (b"old", b"new")


def test_a_kill_while_a_folder_is_published_leaves_a_whole_folder_or_none(tmp_path):
    def build(word):
        built = tmp_path / "built"
        _files.remove(built)
        write_text(built / "file", word)
        return built

    target = tmp_path / "target"
    for moment in range(1, 12):
        _files.remove(target)
        publish_folder(build("old"), target)
        built = build("new")
        with dying_at(moment):
            publish_folder(built, target)
        assert not target.exists() or (target / "file").read_text() in ("old", "new")


def test_an_interrupt_leaves_no_unfinished_file(tmp_path):
    def interrupted():
        with written(tmp_path / "a.npz") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_what_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = write_text(tmp_path / "a", "x")
        write_text(path, "y")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "a.json"
    link.symlink_to(tmp_path / "there" / "b.json")
    write_text(link, "x")
    assert link.is_symlink()
    assert (tmp_path / "there" / "b.json").read_text() == "x"


def test_a_device_is_written_to_and_not_replaced():
    write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


class FullDisk:
    """`os` on a disk on which nothing more fits."""

    def __getattr__(self, name):
        return self.full if name == "write" else getattr(os, name)

    def full(self, handle, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_the_path_and_loses_nothing(tmp_path, monkeypatch):
    path = write_text(tmp_path / "results.json", "old")
    monkeypatch.setattr(_files, "os", FullDisk())
    with pytest.raises(
        OSError, match=r"results.json was not written \(No space left.*free some space"
    ) as told:
        write_text(path, "new")
    assert told.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert names(tmp_path) == ["results.json"]


def test_a_folder_that_is_held_is_refused_to_another_thread_and_given_again_to_the_same(tmp_path):
    said = []

    def other():
        try:
            with output_folder(tmp_path):
                said.append("in")
        except BlockingIOError as error:
            said.append(str(error))

    with output_folder(tmp_path), output_folder(tmp_path / "." / ""):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert names(tmp_path) == [LOCK]
    assert "is being written by another run" in said[0]
    assert names(tmp_path) == []
    other()
    assert said[1] == "in"


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path):
    write_text(tmp_path / "file", "mine")
    with (
        pytest.raises(NotADirectoryError, match=r"file is a file, and .* is to be a folder"),
        output_folder(tmp_path / "file" / "below"),
    ):
        pass
    (tmp_path / "out" / "results.json").mkdir(parents=True)
    with (
        pytest.raises(IsADirectoryError, match=r"results.json is a folder, expected a file"),
        output_folder(tmp_path / "out", "results.json"),
    ):
        pass
    assert names(tmp_path / "out") == ["results.json"]
    with pytest.raises(IsADirectoryError, match="out is a folder, expected a file"):
        write_text(tmp_path / "out", "x")


@contextmanager
def as_anybody():
    """Root may write anywhere: what is refused to others is tried as nobody."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="rights of posix")
def test_a_folder_without_rights_is_refused():
    # Not below tmp_path, which nobody may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        with (
            as_anybody(),
            pytest.raises(PermissionError, match="name a folder that you may write to"),
            output_folder(folder),
        ):
            pass


def test_what_killed_runs_left_is_swept_once_it_is_old(tmp_path):
    old, young = tmp_path / f"{PARTIAL}1.json", tmp_path / f"{PARTIAL}2.json"
    for one in (old, young):
        one.write_text("half")
    os.utime(old, (time.time() - 2 * _files.FORGOTTEN,) * 2)
    with output_folder(tmp_path):
        assert names(tmp_path) == [LOCK, young.name]


def test_a_seal_breaks_with_every_change(tmp_path):
    record = sealed({"a": [1, 2.5, None, "x"], "b": {"c": True}})
    require_sealed(json.loads(json.dumps(record, indent=3)), tmp_path, "fix")
    for other in (
        {**record, "a": [1, 2.5, None, "y"]},
        {**record, "a": [True, 2.5, None, "x"]},
        {**record, "more": 0},
        {key: value for key, value in record.items() if key != "b"},
        {key: value for key, value in record.items() if key != "digest"},
    ):
        with pytest.raises(DamagedFileError, match=r"is damaged .*: fix"):
            require_sealed(other, tmp_path, "fix")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"[]", "holds a list, not an object"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": 1, "a": 2}', "'a' stands in it twice"),
        (b"\xff\xfe", "codec can't decode"),
        (b'{"a": ["\\ud800"]}', "surrogates not allowed"),
        (b"[" * 100_000, "recursion|Expecting value"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"(?s)a.json is damaged \(.*({message}).*\): copy it again"):
        read_object(tmp_path / "a.json", "copy it again")


@pytest.mark.parametrize("path", [None, 3, b"a", "", "  ", "a\0b"])
def test_what_is_no_path_is_refused_by_name(path):
    with pytest.raises(
        (TypeError, ValueError), match=r"^path is .*: give (a text or a Path|the path of one)\."
    ):
        as_path("path", path)


def test_a_path_of_a_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write_text("~/a.txt", "x") == tmp_path / "a.txt"
    assert (tmp_path / "a.txt").read_text() == "x"


def test_what_is_laid_out_for_people_reads_back_with_a_line_for_each_row():
    table = [{"concept": f"c{k}", "threshold": k / 3, "cut": None} for k in range(4)]
    value = {"a": table, "b": {"ä": [], "c": {}, "d": (1, [2])}, "e": "\n", "f": [1, 2], "g": True}
    text = laid_out(value)
    assert json.loads(text) == json.loads(json.dumps(value))
    assert [json.loads(line.strip(" ,")) for line in text.splitlines()[2:6]] == table
    assert json.loads(laid_out([])) == []


def test_packed_arrays_are_read_back_and_pack_to_the_same_bytes():
    rng = np.random.default_rng(0)
    arrays = {"whole": rng.integers(0, 3, (40, 50)), "none": np.zeros((0, 2)), "one": np.array(True)}
    content = packed_arrays(arrays)
    with np.load(io.BytesIO(content), allow_pickle=False) as held:
        assert held.files == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(held[name], array, strict=True)
    assert packed_arrays(arrays) == content
    assert len(content) < arrays["whole"].nbytes / 5
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        packed_arrays({"objects": np.array([{}])})
