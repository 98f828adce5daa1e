"""Files that are whole or not there, whatever happens to the process in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from runtime import OutputFileError, files
from tests.conftest import ROOT


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=ROOT, capture_output=True, text=True)


def test_a_draft_has_its_name_when_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with files.draft(path, overwrite=False) as new:
        new.file.write(b"content")
        new.finish()
        assert new.path.read_bytes() == b"content"
        assert not path.exists()
        assert [p.name for p in tmp_path.iterdir()] == [new.path.name]
        new.publish()
    assert path.read_bytes() == b"content"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_draft_that_is_not_published_is_gone(tmp_path: Path) -> None:
    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.write_atomically(tmp_path / "a", fail, overwrite=False)
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
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.match(".*.part.nii")
    with files.sole_writer(tmp_path):
        assert list(tmp_path.iterdir()) == []
        assert run_python(code, tmp_path).returncode == -signal.SIGKILL
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


def test_what_killed_runs_left_is_cleared_and_what_living_ones_hold_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / ".0123456789abcdef.part").write_bytes(b"half")
    old, new = (tmp_path / f".{name}.part" for name in ("old", "new"))  # folders have no lock, but an age
    old.mkdir()
    new.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    (tmp_path / "keep.part").touch()
    with files.draft(tmp_path / "a", overwrite=False) as draft, files.sole_writer(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["keep.part", ".new.part", draft.path.name])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputFileError, match="is a file"):
        files.make_folder(tmp_path / "file")
    with pytest.raises(OutputFileError, match="No such file or directory"):
        files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a")
    files.make_folder(tmp_path / "a")
