"""One input → one output and its sidecar."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import InputFileError, MetasrganError, OutputFileError, Upscaler, __version__, io, job, sidecar
from runtime.job import Request, Task
from runtime.sizes import Size

TWICE = Request(Size(scale="2"))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).integers(0, 1000, (12, 10, 3)).astype(np.int16)
    image = nib.Nifti1Image(data, np.diag([0.8, 0.8, 6.5, 1]))
    image.header["descrip"], image.header["db_name"] = b"Jane Doe 1970", b"Doe^Jane"
    image.header["aux_file"], image.header["intent_name"] = b"doe.txt", b"Jane"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, tmp_path / "doe_jane.nii.gz")
    return tmp_path / "doe_jane.nii.gz"


def read(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(sidecar.beside(output).read_text())
    return content


def test_a_sidecar_says_what_was_made_of_what_by_what(shipped: Upscaler, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    result = job.run(shipped, Task(scan, out), Request(Size(spacing=("0.5", "0.4", "3"))))
    content = read(out)
    assert content["software"].startswith("metasrgan-edge ")
    assert content["bundle"] == {"sha256": shipped.bundle.sha256}
    assert content["device"].startswith("cpu")
    assert content["scale"] == ["8/5", "2", "13/6"]
    assert content["grid"]["projection"] == shipped.bundle.model.projection
    assert content["input"] == {"name": "doe_jane.nii.gz", "sha256": sidecar.fingerprint(scan)}
    assert content["from"] == {"shape": [12, 10, 3], "spacing_mm": [0.8, 0.8, 6.5]}
    assert content["output"] == {
        "shape": [19, 20, 6],
        "spacing_mm": [0.5, 0.4, 3.0],
        "dtype": "int16",
        "sha256": sidecar.fingerprint(out),
    }
    assert content["time"].endswith("+00:00")
    assert content["seconds"] > 0
    assert "×8/5 ×2 ×13/6" in str(result)
    assert "Jane" not in sidecar.beside(out).read_text()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_deterministic_gives_the_same_bytes_again(
    shipped: Upscaler, scan: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(TWICE, deterministic=True)
    made = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        out = tmp_path / folder / f"out{suffix}"
        monkeypatch.setattr("time.time", partial(float, 1_000_000_000 + len(made)))  # what gzip and others would put down
        job.run(shipped, Task(scan, out), request)
        made.append((out.read_bytes(), sidecar.beside(out).read_bytes()))
    assert made[0] == made[1]
    assert not {"time", "seconds"} & read(out).keys()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    job.run(shipped, Task(scan, tmp_path / f"told{suffix}"), request)
    assert read(tmp_path / f"told{suffix}")["time"] == "1970-01-02T00:00:00+00:00"


@pytest.mark.parametrize(("name", "dtype"), [("a.png", "uint8"), ("a.tif", "uint16"), ("a.jpg", "uint8"), ("a.npy", "float32")])
def test_pictures_have_sidecars_too_and_the_same_bytes_again(shipped: Upscaler, tmp_path: Path, name: str, dtype: str) -> None:
    source = tmp_path / "in.npy"
    np.save(source, np.random.default_rng(0).integers(0, 255, (9, 8)).astype(dtype))
    outs = [tmp_path / f"{k}{name}" for k in range(2)]
    for out in outs:
        job.run(shipped, Task(source, out), replace(TWICE, deterministic=True))
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert read(outs[0])["scale"] == ["2", "2"]
    assert read(outs[0])["output"]["dtype"] == dtype


def test_anonymous_tells_nothing_of_whom(shipped: Upscaler, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii"
    job.run(shipped, Task(scan, out), replace(TWICE, anonymous=True))
    whole = out.read_bytes() + sidecar.beside(out).read_bytes()
    for word in (b"Jane", b"Doe", b"doe"):
        assert word not in whole
    kept = tmp_path / "kept.nii"
    job.run(shipped, Task(scan, kept), TWICE)
    assert b"Jane Doe 1970" in kept.read_bytes()
    np.testing.assert_array_equal(nib.load(out).get_fdata(), nib.load(kept).get_fdata())


def test_resume_leaves_alone_what_is_done_just_so(shipped: Upscaler, scan: Path, tmp_path: Path) -> None:
    task, again = Task(scan, tmp_path / "out.nii.gz"), replace(TWICE, resume=True)
    assert job.run(shipped, task, again).status == "done"
    before = task.output.stat().st_mtime_ns
    assert job.run(shipped, task, again).status == "skipped"
    assert job.run(shipped, task, replace(again, size=Size(scale="4/2"))).status == "skipped"
    assert task.output.stat().st_mtime_ns == before


def test_resume_does_not_take_another_thing_for_done(
    shipped: Upscaler, random_upscaler: Upscaler, scan: Path, tmp_path: Path
) -> None:
    """Other scales, options, bundles, inputs, a changed output: each is refused, as it may be wanted, and redone by force."""
    task, again = Task(scan, tmp_path / "out.nii.gz"), replace(TWICE, resume=True)
    job.run(shipped, task, TWICE)

    def is_refused_then_redone(up: Upscaler, request: Request) -> None:
        with pytest.raises(OutputFileError, match="by its sidecar it is not what this would make"):
            job.run(up, task, request)
        assert job.run(up, task, replace(request, overwrite=True)).status == "done"
        assert job.run(up, task, replace(request, overwrite=True)).status == "skipped"

    is_refused_then_redone(shipped, replace(again, axis=0))
    is_refused_then_redone(shipped, replace(again, size=Size(scale="3")))
    is_refused_then_redone(shipped, replace(again, dtype="float32"))
    is_refused_then_redone(shipped, replace(again, anonymous=True))
    with Upscaler.load(shipped.bundle, device="cpu", ensemble=True) as mean:
        is_refused_then_redone(mean, again)
    assert read(task.output)["request"]["ensemble"] is True
    assert read(task.output)["device"].endswith(", mean of 8)")
    is_refused_then_redone(random_upscaler, again)
    nib.save(nib.Nifti1Image(np.ones((12, 10, 3), np.int16), np.eye(4)), scan)
    is_refused_then_redone(random_upscaler, again)
    task.output.write_bytes(task.output.read_bytes() + b"\0")
    is_refused_then_redone(random_upscaler, again)
    sidecar.beside(task.output).unlink()
    is_refused_then_redone(random_upscaler, again)


def test_a_crash_between_sidecar_and_output_is_redone(
    shipped: Upscaler, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends after the sidecar has its name, before the output has."""
    task = Task(scan, tmp_path / "out.nii")
    done = job.run(shipped, task, TWICE)
    whole = task.output.read_bytes()
    task.output.unlink()
    assert not sidecar.is_done(task.output, {})
    again = job.run(shipped, task, replace(TWICE, resume=True))
    assert (done.status, again.status) == ("done", "done")
    assert task.output.read_bytes() == whole
    assert sidecar.is_done(task.output, {})


def test_both_or_neither(shipped: Upscaler, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output's name is taken by somebody else while its sidecar has got its own: the sidecar goes again."""
    out = tmp_path / "out.nii"
    publish = sidecar.write_json

    def late(path: Path, *arguments: Any) -> None:
        publish(path, *arguments)
        assert path.exists()
        out.write_bytes(b"somebody else's")

    monkeypatch.setattr(sidecar, "write_json", late)
    with pytest.raises(OutputFileError, match="exists already"):
        job.run(shipped, Task(scan, out), TWICE)
    assert out.read_bytes() == b"somebody else's"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["doe_jane.nii.gz", "out.nii"]


def test_somebody_elses_json_is_not_replaced(shipped: Upscaler, scan: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "out.nii.json"
    theirs.write_text('{"RepetitionTime": 2}')
    with pytest.raises(OutputFileError, match=r"out.nii.json exists already"):
        job.run(shipped, Task(scan, tmp_path / "out.nii"), TWICE)
    assert theirs.read_text() == '{"RepetitionTime": 2}'
    assert not (tmp_path / "out.nii").exists()


def test_a_folder_in_a_files_place_is_not_replaced(shipped: Upscaler, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "out.nii").mkdir()
    with pytest.raises(OutputFileError, match=r"out.nii is a folder: name a file"):
        job.run(shipped, Task(scan, tmp_path / "out.nii"), replace(TWICE, overwrite=True))


def test_vanished_input_is_one_line(shipped: Upscaler, scan: Path, tmp_path: Path) -> None:
    task = Task(scan, tmp_path / "out.nii")
    scan.unlink()
    with pytest.raises(InputFileError, match="does not exist"):
        job.run(shipped, task, TWICE)
    assert list(tmp_path.iterdir()) == []


def test_a_dicom_series_becomes_a_series_and_a_sidecar_in_its_fields(
    shipped: Upscaler, dicom: types.SimpleNamespace, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "IM1").write_bytes(b"pixels")
    task = Task(source, tmp_path / "out", 2)
    result = job.run(shipped, task, replace(TWICE, anonymous=True))
    told = dicom.saved[0]
    assert told["record"]["software"] == f"metasrgan-edge {__version__}"  # what SoftwareVersions will say
    assert (result.shape_in, result.shape_out) == ((9, 10, 4), (18, 20, 4))
    assert result.notes[0] == told["acquired"]
    assert result.notes[1].startswith("consistency with what was measured: RMSE ")
    assert result.notes[2:] == ("a note",)
    assert told["acquired"].startswith("acquired 9×10×4 of 9×10×4 (stored)")
    assert told["series"] is dicom.found[2]
    assert told["image"].shape == (18, 20, 4)
    assert (told["anonymous"], told["overwrite"], told["description"]) == (True, False, "SR x2 x2 x1")
    assert told["record"]["bundle"] == shipped.bundle.sha256
    assert told["record"]["scale"] == "2 2 1"
    assert all(isinstance(value, str) for value in told["record"].values())
    assert read(tmp_path / "out")["output"]["sha256"] == sidecar.fingerprint(tmp_path / "out")
    assert job.run(shipped, task, replace(TWICE, anonymous=True, resume=True)).status == "skipped"

    shutil.rmtree(tmp_path / "out")  # as after a crash: the sidecar is there, the folder is not
    assert job.run(shipped, task, replace(TWICE, anonymous=True)).status == "done"
    assert dicom.saved[-1]["overwrite"] is False


def test_series_are_chosen(shipped: Upscaler, dicom: types.SimpleNamespace, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "IM1").write_bytes(b"pixels")
    for series, said in (
        (None, r"several series \(1 of 8×9×3, 3 of 10×9×4\)"),
        (1, "it is a localizer"),
        (3, "holds 3 series, none"),
    ):
        with pytest.raises(InputFileError, match=said):
            job.run(shipped, Task(source, tmp_path / "out.nii.gz", series), TWICE)
    del dicom.found[2]
    job.run(shipped, Task(source, tmp_path / "out.nii.gz"), TWICE)  # the only one that can be
    assert nib.load(tmp_path / "out.nii.gz").shape == (18, 16, 3)


def test_a_doubtful_series_is_taken_only_by_its_number(shipped: Upscaler, dicom: types.SimpleNamespace, tmp_path: Path) -> None:
    dicom.found[0].doubt = "is a localizer, slices to plan others by"
    source = tmp_path / "in"
    source.mkdir()
    job.run(shipped, Task(source, tmp_path / "a.nii.gz"), TWICE)  # the last, as the first is doubtful
    assert nib.load(tmp_path / "a.nii.gz").shape == (18, 20, 4)
    result = job.run(shipped, Task(source, tmp_path / "b.nii.gz", 0), TWICE)
    assert (result.shape_in, result.notes[2]) == ((9, 8, 3), "it is a localizer, slices to plan others by")
    del dicom.found[1:]
    with pytest.raises(InputFileError, match=r"it is a localizer.*take it all the same by --series 1"):
        job.run(shipped, Task(source, tmp_path / "c.nii.gz"), TWICE)


def test_an_anonymous_output_tells_no_hash_of_its_input(
    shipped: Upscaler, scan: Path, dicom: types.SimpleNamespace, tmp_path: Path
) -> None:
    hashed = sidecar.fingerprint(scan)
    keyed = [replace(TWICE, anonymous=True, key=key) for key in (b"k" * 16, b"k" * 16, b"m" * 16, None)]
    inputs = []
    for number, request in enumerate(keyed):
        job.run(shipped, Task(scan, tmp_path / f"{number}.nii"), request)
        assert hashed not in (tmp_path / f"{number}.nii.json").read_text()
        inputs.append(read(tmp_path / f"{number}.nii")["input"])
    assert inputs[0] == inputs[1] != inputs[2] != inputs[3] == {}
    (tmp_path / "in").mkdir()
    for number, request in enumerate((keyed[0], keyed[3], keyed[3], Request(Size(scale="2"), anonymous=True))):
        job.run(shipped, Task(tmp_path / "in", tmp_path / f"out{number}", 0), request)
    given, once, again, other = (told["key"] for told in dicom.saved)
    assert given == b"k" * 16
    assert once == again != other  # one run has one secret


def test_an_output_within_its_input_is_refused(shipped: Upscaler, dicom: types.SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(OutputFileError, match="within its own input"):
        job.run(shipped, Task(tmp_path, tmp_path / "out"), TWICE)


def test_what_is_not_installed_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "runtime.dicom", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MetasrganError, match=r"DICOM needs pydicom: pip install pydicom$"):
        io.dicom()
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(MetasrganError, match=r"NRRD or MetaImage needs SimpleITK: pip install SimpleITK$"):
        io.check_suffix(tmp_path / "a.nrrd")


def test_colours_and_stacks(shipped: Upscaler, tmp_path: Path) -> None:
    Image.new("RGB", (9, 8), (10, 20, 30)).save(tmp_path / "c.tif")
    page = Image.new("L", (9, 8))
    page.save(tmp_path / "s.tif", save_all=True, append_images=[page, page])
    assert job.run(shipped, Task(tmp_path / "c.tif", tmp_path / "c.png"), TWICE).shape_out == (16, 18, 3)
    assert job.run(shipped, Task(tmp_path / "s.tif", tmp_path / "s.npy"), TWICE).shape_out == (3, 16, 18)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_outputs_are_no_more_open_than_their_input(shipped: Upscaler, scan: Path, tmp_path: Path, mode: int) -> None:
    scan.chmod(mode)
    before = os.umask(0o022)
    try:
        job.run(shipped, Task(scan, tmp_path / "out.nii"), replace(TWICE, preview=True))
    finally:
        os.umask(before)
    for name in ("out.nii", "out.nii.json", "out_preview.png"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode
