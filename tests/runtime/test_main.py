"""The command line, as a person meets it: in processes of its own where exit status and files matter."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import Upscaler, bundle
from runtime.__main__ import main
from runtime.io import pictures
from runtime.upscaler import MODELS
from tests.conftest import ROOT, SCAN, run_python


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small NIfTI file of two slices."""
    data = np.asanyarray(nib.load(SCAN).dataobj)[100:130, 100:124, :2]
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(data, np.diag([0.8, 0.8, 6.5, 1])), path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "slice.png"
    Image.fromarray((np.arange(600).reshape(20, 30) % 251).astype(np.uint8)).save(path)
    return path


def test_volume_in_volume_out(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(scan), "--scale", "2.5", "-o", str(tmp_path / "sr.nii.gz")]) == 0
    result = nib.load(tmp_path / "sr.nii.gz")
    assert result.shape == (75, 60, 2)
    assert result.get_data_dtype() == np.int16
    line = capsys.readouterr().out
    assert "30×24×2" in line
    assert "75×60×2, on cpu (onnxruntime" in line


def test_an_ensemble_computes_in_worker_processes_too(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(scan), "--scale", "2", "--ensemble", "-o", f"{tmp_path}/out/"]) == 0
    assert "float32, mean of 8)" in capsys.readouterr().out


def test_output_has_a_name_without_o(scan: Path, picture: Path) -> None:
    assert main([str(scan), "--shape", "60", "48", "--quiet"]) == 0
    assert nib.load(scan.with_name("scan_sr.nii.gz")).shape == (60, 48, 2)
    assert main([str(picture), "--scale", "2", "3"]) == 0
    assert pictures.load(picture.with_name("slice_sr.png")).shape == (40, 90)


@pytest.mark.parametrize(
    ("name", "becomes"),
    [("SCAN.NII.GZ", "SCAN_sr.NII.GZ"), ("p.nii.v2.nii.gz", "p.nii.v2_sr.nii.gz"), ("ä b.nii", "ä b_sr.nii")],
)
def test_suffix_of_any_spelling(scan: Path, name: str, becomes: str) -> None:
    content = scan.read_bytes()
    scan.with_name(name).write_bytes(content if name.lower().endswith(".gz") else gzip.decompress(content))
    assert main([str(scan.with_name(name)), "--scale", "2"]) == 0
    assert scan.with_name(becomes).exists()


def test_options_may_come_first(scan: Path) -> None:
    assert main(["--scale", "2", "3", str(scan)]) == 0
    assert nib.load(scan.with_name("scan_sr.nii.gz")).shape == (60, 72, 2)


def test_output_may_be_the_input_when_forced(scan: Path) -> None:
    assert main([str(scan), "--scale", "2", "-o", str(scan), "--force"]) == 0
    assert nib.load(scan).shape == (60, 48, 2)


def test_links_are_written_through_only_when_forced(scan: Path, tmp_path: Path) -> None:
    link, target = tmp_path / "link.nii", tmp_path / "target.nii"
    link.symlink_to(target)
    assert main([str(scan), "--scale", "2", "-o", str(link)]) == 1  # dangling, but somebody's
    assert main([str(scan), "--scale", "2", "-o", str(link), "--force"]) == 0
    assert link.is_symlink()
    assert nib.load(target).shape == (60, 48, 2)


def test_a_terminal_without_the_sign_for_times(scan: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime", str(scan), "--scale", "2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "on cpu" in done.stdout


def test_moving_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Image.fromarray(np.zeros((9, 9), np.uint8))
    page.save(tmp_path / "p.png", save_all=True, append_images=[Image.fromarray(np.ones((9, 9), np.uint8))])
    assert main([str(tmp_path / "p.png"), "--scale", "2"]) == 1
    assert "has 2 pictures" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB", "CMYK", "I;16", "I;16B"])
def test_pictures_of_every_mode(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "I;16B") else "png"
    grey = Image.linear_gradient("L").resize((30, 20))
    deep = Image.fromarray(np.asarray(grey).astype(">u2" if mode == "I;16B" else "<u2") * 100)
    (deep if mode.startswith("I;16") else grey.convert(mode)).save(tmp_path / f"a.{suffix}")
    assert main([str(tmp_path / f"a.{suffix}"), "--scale", "2"]) == 0
    assert pictures.load(tmp_path / f"a_sr.{suffix}").shape[:2] == (40, 60)


def test_stopping_a_write_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM, as a service manager sends it, in the middle of writing."""
    code = f"""
import os, signal, sys
from pathlib import Path
from runtime import command, files
def write(stream):
    stream.write(b"half")
    os.kill(os.getpid(), signal.SIGTERM)
sys.exit(command.run(lambda: files.write_atomically(Path({str(tmp_path / "x.nii")!r}), write, False)))
"""
    done = run_python(code, status=130)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_axis_and_dtype(scan: Path, tmp_path: Path) -> None:
    assert main([str(scan), "--scale", "2", "--axis", "0", "--dtype", "float32", "-o", str(tmp_path / "x.nii")]) == 0
    result = nib.load(tmp_path / "x.nii")
    assert result.shape == (30, 48, 4)
    assert result.get_data_dtype() == np.float32


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "npy"])
def test_pictures_and_arrays(shipped: Upscaler, picture: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"sr.{suffix}"
    assert main([str(picture), "--scale", "2", "-o", str(out)]) == 0
    pixels = pictures.load(out)
    assert pixels.dtype == np.uint8
    expected = shipped(pictures.load(picture), 2)
    assert np.abs(pixels - expected).mean() < (3 if suffix == "jpg" else 0.5)  # rounding; JPEG loses more


def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path) -> None:
    deep = (np.arange(600).reshape(20, 30) * 100).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert main([str(tmp_path / "deep.png"), "--scale", "2"]) == 0
    pixels = pictures.load(tmp_path / "deep_sr.png")
    assert pixels.max() > 50_000
    assert pixels.shape == (40, 60)


def test_colours_keep_their_hue(tmp_path: Path) -> None:
    grey = np.asarray(Image.linear_gradient("L").resize((30, 20)))
    colour = np.stack([grey, grey // 2, np.zeros_like(grey)], -1)
    Image.fromarray(colour).save(tmp_path / "c.png")
    assert main([str(tmp_path / "c.png"), "--scale", "2"]) == 0
    sr = pictures.load(tmp_path / "c_sr.png").astype(int)
    assert sr.shape == (40, 60, 3)
    assert np.abs(sr[..., 1] - sr[..., 0] / 2).max() < 5
    assert sr[..., 2].max() < 5


def test_array_of_slices(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(3, 9, 10)).astype(np.float32))
    assert main([str(tmp_path / "a.npy"), "--scale", "1.5"]) == 0
    assert np.load(tmp_path / "a_sr.npy").shape == (3, 13, 15)


BAD_FILES = {
    "missing.nii.gz": None,
    "missing.png": None,
    "text.nii.gz": b"not a scan",
    "text.nii": b"not a scan",
    "text.png": b"not a picture",
    "text.npy": b"not an array",
    "empty.nii": b"",
    "empty.jpg": b"",
    "notes.txt": b"hello",
    "bad.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), (".ljust(128) + b"\n",
    "cut.nii.gz": SCAN.read_bytes()[:60_000],
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_input_file_is_one_clear_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    assert main([str(tmp_path / name), "--scale", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert name in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scale", "0"], "scale 0 is outside"),
        (["--scale", "-2"], "scale -2 is outside"),
        (["--scale", "0.5"], "scale 0.5 is outside"),
        (["--scale", "1e9"], "scale 1e9 is outside"),
        (["--scale", "big"], "scale 'big' is not a number"),
        (["--scale", "nan"], "scale 'nan' is not a number"),
        (["--scale", "1", "2", "3", "4"], "4 entries"),
        (["--shape", "10", "10"], "shape (10, 10) cannot be made of an image of 30×24"),
        (["--scale", "2", "--device", "toaster"], "device 'toaster' is unknown: use one of auto, cpu"),
        (["--scale", "2", "--device", "cuda"], "no NVIDIA driver is installed here: install one, or use device 'gpu' or 'cpu'"),
        (["--scale", "2", "--threads", "0"], "threads is 0"),
        (["--scale", "2", "--bundle", "none.bundle"], "none.bundle cannot be read"),
        (["--scale", "2", "--model", "slow"], f"model 'slow' is unknown: use one of {', '.join(MODELS)}, or the path"),
        (["--scale", "2", "-o", "out.png"], "cannot become out.png"),
        (["--scale", "2", "-o", "no/such/folder/x.nii"], "no/such/folder is not there"),
        (["--scale", "2", "-o", "no/such/folder/"], "no/such/folder cannot be made (No such file or directory)"),
        (["--scale", "2", "-o", "a" * 300 + ".nii"], "could not be written (File name too long)"),
        (["--scale", "1e99999999"], "scale '1e99999999' is not a number"),
        (["--scale", "2", "--anonymous", "--resume"], "with --deterministic or --resume, give a --key FILE"),
        (["--scale", "2", "--anonymous", "--key", "none"], "(No such file or directory): give --key a file of 16 random"),
        (["--scale", "2", "--anonymous", "--key", "/dev/null"], "--key /dev/null has 0 bytes: give 16 random ones"),
        (["--scale", "2", "--key", f"{ROOT}/LICENSE"], "random ones or more, with --anonymous"),
    ],
)
def test_bad_argument_is_one_clear_line(
    scan: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.engines.driver_is_installed", lambda: False)
    assert main([str(scan), *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in scan.parent.iterdir()) == ["scan.nii.gz"]


def test_models_by_name(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is another network; what the perceptual one is not for is said once, however many inputs there are."""
    np.save(tmp_path / "b.npy", pictures.load(picture))
    said, made = {}, set()
    for name in (None, *MODELS):
        model = ["--model", name] if name else []
        out = ["-o", f"{tmp_path}/{name}/", "--quiet"]
        assert main([str(picture), str(tmp_path / "b.npy"), "--scale", "2", *model, *out]) == 0
        said[name] = capsys.readouterr().err
        made.add((tmp_path / f"{name}" / "slice_sr.png").read_bytes())
    assert len(made) == len(MODELS)
    assert said.pop("perceptual") == (
        "note: the perceptual model invents part of what it shows: not for measurement or diagnosis\n"
    )
    assert {*said.values()} == {""}


def test_a_model_or_a_bundle(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(picture), "--scale", "2", "--model", "fast", "--bundle", "x.bundle"])
    assert "--bundle: not allowed with argument --model" in capsys.readouterr().err


@pytest.mark.parametrize("many", [False, True])
def test_a_library_that_is_missing_is_told_before_any_work(
    scan: Path, tmp_path: Path, many: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    monkeypatch.setattr(Upscaler, "load", lambda *_, **__: pytest.fail("the network was loaded"))
    where = ["-o", f"{tmp_path}/out/", "--format", ".nrrd"] if many else ["-o", str(tmp_path / "sr.nrrd")]
    assert main([str(scan), "--isotropic", *where]) == 1
    assert capsys.readouterr().err == "error: NRRD or MetaImage needs SimpleITK: pip install SimpleITK\n"
    assert list(tmp_path.iterdir()) == [scan]


def test_existing_output_is_kept_unless_forced(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sr.nii"
    out.write_bytes(b"precious")
    assert main([str(scan), "--scale", "2", "-o", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"
    assert main([str(scan), "--scale", "2", "-o", str(out), "--force"]) == 0
    assert nib.load(out).shape == (60, 48, 2)


def test_tiny_and_empty_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shape, said in (((1, 1), "1×1"), ((0, 7), "empty")):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        assert main([str(tmp_path / "a.npy"), "--scale", "2"]) == 1
        assert said in capsys.readouterr().err
    assert not (tmp_path / "a_sr.npy").exists()


def test_nan_is_located(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.zeros((5, 6))
    pixels[2, 3] = np.nan
    np.save(tmp_path / "a.npy", pixels)
    assert main([str(tmp_path / "a.npy"), "--scale", "2"]) == 1
    assert "(2, 3) is nan" in capsys.readouterr().err


def test_picture_that_cannot_hold_the_pixels_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((5, 6)))
    assert main([str(tmp_path / "a.npy"), "--scale", "2", "-o", str(tmp_path / "a.png")]) == 1
    assert "write .npy, or " in capsys.readouterr().err
    assert main([str(tmp_path / "a.npy"), "--scale", "2", "-o", str(tmp_path / "a.png"), "--dtype", "uint8"]) == 0


def test_damaged_bundle_is_refused(scan: Path, shipped: Upscaler, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = bytearray(bundle.serialise(shipped.bundle.model, shipped.bundle.files, {}))
    whole[5000] ^= 1
    (tmp_path / "bad.bundle").write_bytes(whole)
    assert main([str(scan), "--scale", "2", "--bundle", str(tmp_path / "bad.bundle")]) == 1
    assert "bad.bundle is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sr.nii", "sr.nii.gz"])
def test_full_disk_leaves_nothing_behind(scan: Path, tmp_path: Path, name: str) -> None:
    """A limit on file size, which stops a write in its middle as a full disk does."""
    out = tmp_path / name
    done = subprocess.run(
        [sys.executable, "-m", "runtime", str(scan), "--scale", "8", "-o", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert f"error: {out} could not be written (File too large)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scan.nii.gz"]


def test_exit_status_and_streams_of_the_process(scan: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "runtime", *arguments], cwd=ROOT, capture_output=True, text=True)

    assert run(str(scan), "--scale", "2").returncode == 0
    assert run(str(scan), "--scale", "2").returncode == 1  # exists already
    assert run(str(scan)).returncode == 2  # neither scale nor shape
    assert run("--version").stdout.startswith("metasrgan-edge ")
