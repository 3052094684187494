"""Files are replaced as a whole, where the path leads, and nothing else is left beside them."""

import os
import stat
import threading

import pytest

from lowrank_core._files import check_plain, replacing


def write(path, content):
    with replacing(path) as aside:
        aside.write_text(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    left = tmp_path / ".state.part"
    left.mkdir()
    (left / ".tmp123").write_text("half")
    (left / "deeper").mkdir()
    write(tmp_path / "state", "whole")
    assert names(tmp_path) == ["state"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "state"
    write(path, "old")

    def fail(aside):
        aside.write_text("half")
        raise KeyError

    with pytest.raises(KeyError), replacing(path) as aside:
        fail(aside)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["state"]


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(tmp_path, there):
    (tmp_path / "far").mkdir()
    path, target = tmp_path / "state", tmp_path / "far" / "real"
    if there:
        target.write_text("old")
    path.symlink_to(target)
    write(path, "new")
    assert path.is_symlink()
    assert target.read_text() == "new"
    assert (names(tmp_path), names(tmp_path / "far")) == (["far", "state"], ["real"])


def test_modes_are_kept_and_new_files_follow_the_mask(tmp_path):
    path = tmp_path / "state"
    mask = os.umask(0o027)
    try:
        write(path, "new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write(path, "newer")
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(mask)


def test_only_plain_files_are_written_and_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, "/dev/null"):
        with pytest.raises(ValueError, match=f"plain file, got {path}"):
            write(path, "new")
        with pytest.raises(ValueError, match=f"plain file, got {path}"):
            check_plain(path)
    assert names(tmp_path) == ["pipe"]


def test_errors_name_the_path_that_was_given(tmp_path):
    path = str(tmp_path / "nowhere" / "state")
    for use in (lambda: write(path, "new"), lambda: check_plain(path)):
        with pytest.raises(FileNotFoundError) as caught:
            use()
        assert caught.value.filename == path


def test_writers_of_one_file_take_turns(tmp_path):
    path = tmp_path / "state"
    failed = []

    def work(name):
        try:
            for _ in range(20):
                write(path, name * 1000)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert path.read_text() in {name * 1000 for name in "abcd"}
    assert names(tmp_path) == ["state"]
