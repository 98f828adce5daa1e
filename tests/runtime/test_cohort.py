"""Many inputs into one folder, on days when things go wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from runtime import OutputFileError, cohort, files, sidecar
from runtime.__main__ import main
from runtime.job import Request, Result, Task
from runtime.sizes import Size
from tests.conftest import ROOT
from tests.deadly import Deadly

COMMAND = [sys.executable, "-m", "runtime"]
TWICE = Request(Size(scale="2"))


def write_scan(path: Path, side: int = 16, slices: int = 2) -> Path:
    data = np.random.default_rng(len(path.name)).integers(0, 1000, (side, side, slices)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    return [write_scan(tmp_path / f"{name}.nii.gz") for name in "abc"]


@pytest.fixture
def slow(tmp_path: Path) -> list[Path]:
    """Six volumes, each a few tenths of a second's work."""
    return [write_scan(tmp_path / f"{name}.nii.gz", side=64, slices=6) for name in "abcdef"]


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / cohort.SUMMARY).read_text())
    return content


def outputs(folder: Path) -> list[Path]:
    """The outputs in a folder; each has its sidecar, which is true of it, and there is nothing else but the summary."""
    found = [path for path in sorted(folder.iterdir()) if path.name.endswith(".nii.gz")]
    assert all(sidecar.is_done(path, {}) for path in found)
    assert {p.name for p in folder.iterdir()} - {cohort.SUMMARY} == {p.name for f in found for p in (f, sidecar.beside(f))}
    return found


def wait_for(seen: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def children(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have."""
    direct = {int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()}
    return direct | {further for child in direct for further in children(child)}


def test_a_failed_input_does_not_stop_the_rest(scans: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans[1].write_bytes(b"no scan")
    missing = tmp_path / "missing.nii"
    arguments = [*map(str, [*scans, missing]), "--scale", "2", "-o", f"{tmp_path}/out/"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.err.count("failed: ") == 2
    assert f"{scans[1]} cannot be read as a NIfTI file" in said.err
    assert f"{missing} does not exist" in said.err
    assert f"error: 2 of 4 failed, each for its reason above; {tmp_path}/out/cohort.json lists them\n" in said.err
    assert "[4/4]" in said.out + said.err
    assert "2 done, 0 skipped, 2 failed" in said.out
    assert [p.name for p in outputs(tmp_path / "out")] == ["a_sr.nii.gz", "c_sr.nii.gz"]
    summary = read(tmp_path / "out")
    assert (summary["done"], summary["skipped"], summary["failed"], summary["unfinished"]) == (2, 0, 2, 0)
    assert [entry["status"] for entry in summary["inputs"]] == ["done", "failed", "done", "failed"]
    assert summary["inputs"][0]["scale"] == ["2", "2", "1"]
    assert summary["inputs"][0]["notes"][0].startswith("acquired ")

    write_scan(scans[1])
    write_scan(missing)
    assert main([*arguments, "--resume", "--quiet"]) == 0
    summary = read(tmp_path / "out")
    assert [entry["status"] for entry in summary["inputs"]] == ["skipped", "done", "skipped", "done"]
    assert capsys.readouterr().out == ""


def test_options_may_come_first_and_numbers_are_told_from_files(scans: list[Path], tmp_path: Path) -> None:
    assert main(["-o", f"{tmp_path}/out/", "--quiet", "--scale", "2", "1", "3/2", *map(str, scans)]) == 0
    assert {nib.load(path).shape for path in (tmp_path / "out").glob("*.nii.gz")} == {(32, 16, 3)}


def test_outputs_in_another_format_and_into_a_folder_that_is_there(scans: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert main([*map(str, scans), "--scale", "2", "-o", f"{tmp_path}/out", "--format", ".mha", "--quiet"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.mha")) == ["a_sr.mha", "b_sr.mha", "c_sr.mha"]
    assert main([str(scans[0]), "--scale", "2", "-o", f"{tmp_path}/out", "--quiet"]) == 0
    assert (tmp_path / "out" / "a_sr.nii.gz").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "3 inputs need a folder"),
        (["-o", "{tmp}/a.nii.gz"], "a.nii.gz is a file: name a folder"),
        (["-o", "{tmp}/out/", "--format", "jpeg2"], "'jpeg2' is no format"),
        (["-o", "{tmp}/out/", "--format", ".nhdr"], "'.nhdr' is no format"),
        (["-o", "{tmp}/out/", "--workers", "0"], "workers is 0"),
        (["-o", "{tmp}/out/", "--bundle", "none.bundle"], "none.bundle cannot be read"),
        (["-o", "{tmp}/out/", "--workers", "2", "--bundle", "none.bundle"], "none.bundle cannot be read"),
        (["-o", "{tmp}/out/", "--dask", "tcp://127.0.0.1:1"], "no Dask scheduler answers at tcp://127.0.0.1:1"),
    ],
)
def test_what_is_wrong_for_all_is_one_line(
    scans: list[Path],
    tmp_path: Path,
    more: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cohort, "_PATIENCE", 1)
    assert main([*map(str, scans), "--scale", "2", *(text.format(tmp=tmp_path) for text in more)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_two_inputs_of_one_name_are_refused(scans: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = write_scan(tmp_path / "other" / "a.nii.gz")
    with pytest.raises(OutputFileError, match="would both become"):
        cohort.plan([*scans, twin], tmp_path, TWICE)


def test_one_input_twice_is_one_and_a_link_gives_its_own_name(scans: list[Path], tmp_path: Path) -> None:
    link = tmp_path / "sub-01.nii.gz"
    link.symlink_to(scans[0])
    outputs = [task.output.name for task in cohort.plan([scans[0], link, scans[0]], tmp_path / "out", TWICE)]
    assert outputs == ["a_sr.nii.gz", "sub-01_sr.nii.gz"]


def test_two_runs_into_one_folder(scans: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    arguments = [*map(str, scans), "--scale", "2", "-o", f"{tmp_path}/out/"]
    with files.sole_writer(tmp_path / "out"):
        assert main(arguments) == 1
    assert "another run is writing into" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    assert main(arguments) == 0
    assert main(arguments) == 1  # neither is what is there replaced afterwards
    assert "a_sr.nii.gz exists already" in capsys.readouterr().err


def test_a_library_that_one_output_needs_is_missed_before_any_is_made(
    scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scans[2].rename(tmp_path / "c.nrrd")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    assert main([*map(str, scans[:2]), f"{tmp_path}/c.nrrd", "--scale", "2", "-o", f"{tmp_path}/out/"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"[1/3] failed: {tmp_path}/c.nrrd: NRRD or MetaImage needs SimpleITK: pip install SimpleITK\n")
    assert len(outputs(tmp_path / "out")) == 2


def test_an_input_that_vanishes_meanwhile(scans: list[Path], tmp_path: Path) -> None:
    request, folder = TWICE, tmp_path / "out"
    folder.mkdir()

    def work(tasks: Sequence[Task]) -> Iterator[Result]:
        scans[1].unlink()
        yield from cohort.in_processes(cohort.Computer(), request, 1)(tasks)

    results = cohort.run(cohort.plan(scans, folder, request), request, folder, work)
    assert [result.status for result in results] == ["done", "failed", "done"]
    assert "b.nii.gz does not exist" in results[1].problem


def test_a_disk_that_is_full_for_the_large_ones(scans: list[Path], tmp_path: Path) -> None:
    """A limit on file size, which stops a write in its middle as a full disk does."""
    large = write_scan(tmp_path / "large.nii.gz", side=64, slices=8)
    done = subprocess.run(
        [*COMMAND, str(scans[0]), str(large), str(scans[1]), "--scale", "2", "-o", f"{tmp_path}/out/"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )
    assert done.returncode == 1
    assert "large_sr.nii.gz could not be written (File too large)" in done.stderr
    assert [p.name for p in outputs(tmp_path / "out")] == ["a_sr.nii.gz", "b_sr.nii.gz"]


def test_a_read_only_folder(scans: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write into read-only folders")
    assert main([*map(str, scans), "--scale", "2", "-o", f"{folder}/"]) == 1
    assert "is read-only" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who is whose child on Linux alone")
@pytest.mark.parametrize(("stop", "workers"), [(signal.SIGKILL, "1"), (signal.SIGKILL, "2"), (signal.SIGINT, "2")])
def test_stop_in_the_middle(slow: list[Path], tmp_path: Path, stop: signal.Signals, workers: str) -> None:
    """What was complete stays, what was not leaves no trace, nobody works on, and --resume finishes the rest."""
    out = tmp_path / "out"
    arguments = [*map(str, slow), "--scale", "2.5", "-o", f"{out}/", "--resume", "--workers", workers]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it
    process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, preexec_fn=heard)
    wait_for(lambda: len(list(out.glob("*_sr.nii.gz"))) >= 2)
    workers_of_it = children(process.pid)
    process.send_signal(stop)
    assert process.wait() == (130 if stop == signal.SIGINT else -stop)
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers_of_it))
    (tmp_path / "unfinished").mkdir()
    for path in out.iterdir():  # a kill between a sidecar's name and its output's leaves the sidecar
        if path.suffix == ".json" and not path.with_suffix("").exists():
            path.rename(tmp_path / "unfinished" / path.name)
    before = {path.name: path.stat().st_mtime_ns for path in outputs(out)}
    assert 2 <= len(before) < len(slow)
    for path in (tmp_path / "unfinished").iterdir():
        path.rename(out / path.name)

    assert main([*arguments, "--quiet"]) == 0
    summary = read(out)
    assert (summary["done"], summary["skipped"]) == (len(slow) - len(before), len(before))
    after = {path.name: path.stat().st_mtime_ns for path in outputs(out)}
    assert len(after) == len(slow)
    assert before.items() <= after.items()


def test_workers_give_the_same_bytes(scans: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, more in (("one", []), ("two", ["--workers", "2"])):
        assert main([*map(str, scans), "--scale", "2", "-o", f"{tmp_path}/{folder}/", "--deterministic", *more]) == 0
    assert "3 done, 0 skipped, 0 failed" in capsys.readouterr().out
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_worker_that_dies_costs_nobody_but_the_input_that_it_dies_of(scans: list[Path], tmp_path: Path) -> None:
    request, folder = Deadly(Size(scale="2")), tmp_path / "out"
    folder.mkdir()
    scans.append(write_scan(tmp_path / "d.nii.gz"))
    work = cohort.in_processes(cohort.Computer(), request, 2)
    results = cohort.run(cohort.plan(scans, folder, request), request, folder, work)
    assert [result.status for result in results] == ["done", "failed", "done", "done"]
    assert "its worker process died, twice" in results[1].problem
    (folder / "died").unlink()
    assert [p.name for p in outputs(folder)] == ["a_sr.nii.gz", "c_sr.nii.gz", "d_sr.nii.gz"]


def test_a_dask_worker_that_is_killed_loses_nothing_and_nothing_is_done_twice(slow: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    code = """
import os, signal, sys, threading, time
from pathlib import Path
import distributed
from runtime.__main__ import main
out, sources = Path(sys.argv[1]), sys.argv[2:]
with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
    pids = [nanny.pid for nanny in cluster.workers.values()]
    def kill():
        while not list(out.glob("*_sr.nii.gz")):
            time.sleep(0.01)
        os.kill(pids[0], signal.SIGKILL)
    threading.Thread(target=kill, daemon=True).start()
    status = main([*sources, "--scale", "2.5", "-o", f"{out}/", "--dask", cluster.scheduler_address])
    again = main([*sources, "--scale", "2.5", "-o", f"{out}/", "--dask", cluster.scheduler_address, "--resume"])
print("status", status, again)
"""
    out = tmp_path / "out"
    run = subprocess.run([sys.executable, "-c", code, out, *slow], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "status 0 0" in run.stdout, run.stderr
    assert f"{len(slow)} done, 0 skipped, 0 failed" in run.stdout
    assert f"0 done, {len(slow)} skipped, 0 failed" in run.stdout
    first = run.stdout.partition(f"{len(slow)} done")[0]
    assert all(first.count(f"] {path} ") + first.count(f"] {path}: ") == 1 for path in slow)
    assert len(outputs(out)) == len(slow)


@pytest.fixture
def exam(dicom: types.SimpleNamespace, tmp_path: Path) -> Path:
    """A folder that stands for DICOM's three series."""
    folder = tmp_path / "exam"
    folder.mkdir()
    (folder / "IM1").write_bytes(b"pixels")
    return folder


def test_every_series_of_a_dicom_input_is_a_task(exam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(exam), "--scale", "2", "-o", f"{tmp_path}/out/"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"{exam} (series 2): it is a localizer" in said
    assert "2 done, 1 skipped, 0 failed" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["exam_1_sr", "exam_3_sr"]
    assert main([*arguments, "--resume"]) == 0
    assert "0 done, 3 skipped, 0 failed" in capsys.readouterr().out
    assert main([*arguments, "--series", "3", "--format", ".nii"]) == 0
    assert nib.load(tmp_path / "out" / "exam_3_sr.nii").shape == (18, 20, 4)


def test_one_series_becomes_the_folder_that_is_named(exam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(exam), "--series", "1", "--scale", "2", "-o", f"{tmp_path}/sr"]
    assert main(arguments) == 0
    assert [p.name for p in (tmp_path / "sr").iterdir()] == ["0001.dcm"]
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert "is there and whole" in capsys.readouterr().out
    assert main([str(exam), "--series", "1", "--scale", "2"]) == 0
    assert [p.name for p in (tmp_path / "exam_sr").iterdir()] == ["0001.dcm"]
