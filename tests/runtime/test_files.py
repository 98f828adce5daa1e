"""Files that are whole or not there, whatever happens to the process in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from runtime import OutputFileError, files
from tests.conftest import ROOT, run_python


def test_a_file_has_its_name_when_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"

    def first(finished: Path) -> None:
        assert finished.read_bytes() == b"content"
        assert finished.match(".*.part.nii")
        assert [*tmp_path.iterdir()] == [finished]

    files.write_atomically(path, lambda file: file.write(b"content"), overwrite=False, first=first)
    assert path.read_bytes() == b"content"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("which", ["write", "first"])
def test_a_file_or_folder_that_fails_is_gone(tmp_path: Path, which: str) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        if which == "write":
            raise ZeroDivisionError

    def first(finished: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.write_atomically(tmp_path / "a", write, overwrite=False, first=first)
    with pytest.raises(ZeroDivisionError):
        files.write_folder(tmp_path / "a", [("1", write)], overwrite=False, first=first)
    assert list(tmp_path.iterdir()) == []


def test_nobodys_file_is_replaced_unasked_even_if_it_came_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(OutputFileError, match="exists already"):
        files.write_atomically(path, lambda file: path.write_bytes(b"first"), overwrite=False)
    assert path.read_bytes() == b"first"
    files.write_atomically(path, lambda file: file.write(b"forced"), overwrite=True)
    assert path.read_bytes() == b"forced"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_kill_in_the_middle_of_a_write_leaves_a_hidden_part_that_the_next_run_clears(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from runtime import files
def write(stream):
    stream.write(b"half" * 100_000)
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(Path(sys.argv[1], "a.nii"), write, False)
"""
    run_python(code, tmp_path, status=-signal.SIGKILL)
    (left,) = tmp_path.iterdir()
    assert left.match(".*.part.nii")
    with files.sole_writer(tmp_path):
        assert list(tmp_path.iterdir()) == []
        run_python(code, tmp_path, status=-signal.SIGKILL)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_held_by_one_run_until_that_is_dead(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from runtime import files
with files.sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputFileError, match="another run is writing into"), files.sole_writer(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with files.sole_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []  # the lock is no file


def test_what_killed_runs_left_is_cleared_and_what_living_ones_hold_is_not(tmp_path: Path) -> None:
    (tmp_path / ".0123456789abcdef.part").write_bytes(b"half")
    (tmp_path / ".fedcba9876543210.part").mkdir()
    (tmp_path / "keep.part").touch()

    def is_kept(finished: Path) -> None:
        with files.sole_writer(tmp_path):
            assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "keep.part", finished])

    files.write_atomically(tmp_path / "a", lambda file: None, overwrite=False, first=is_kept)
    (tmp_path / "a").unlink()
    files.write_folder(tmp_path / "a", [("1", lambda file: None)], overwrite=False, first=is_kept)
    assert (tmp_path / "a" / "1").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputFileError, match="is a file"), files.sole_writer(tmp_path / "file"):
        pass
    with pytest.raises(OutputFileError, match="No such file or directory"), files.sole_writer(tmp_path / "a" / "b"):
        pass
    for _ in range(2):
        with files.sole_writer(tmp_path / "a"):
            assert (tmp_path / "a").is_dir()
