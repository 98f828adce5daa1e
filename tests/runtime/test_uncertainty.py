"""Half the width of the interval around each pixel: the same by any path, in the output's place and units."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import BundleError, Upscaler, bundle, grid, job, sidecar
from runtime.__main__ import main
from runtime.acquired import STORED, Acquired, Band
from runtime.bundle import HEAD, Bundle
from runtime.job import Request, Task
from runtime.scan import Scan
from runtime.sizes import Size
from tests.conftest import SCAN, with_head

SCANNED = Acquired((Band(0.8, 0.5), Band()), 0.03)


@pytest.fixture(scope="module")
def up(told: Bundle) -> Iterator[Upscaler]:
    with Upscaler.load(with_head(told), device="cpu") as upscaler:
        yield upscaler


@pytest.fixture(scope="module")
def plain(told: Bundle) -> Iterator[Upscaler]:
    """One that does not tell the uncertainty."""
    with Upscaler.load(told, device="cpu") as upscaler:
        yield upscaler


def slow(up: Upscaler, image: np.ndarray, scales: grid.Scales, acquired: Acquired = STORED) -> np.ndarray:
    """Pixel by pixel, as docs/bundle-format.md has it; black 0 and white 1."""
    canonical, spacing = acquired.along(0, 1).canonical(image)
    scales = scales[0] * spacing[0], scales[1] * spacing[1]
    slices = up.slices
    (tile,) = slices.encode(image, acquired.along(0, 1)).tiles
    responses = slices.engine.responses(tile.features).reshape(*canonical.shape, -1)
    told = [math.log10(max(acquired.sigma, 1e-3)) + 3, *(3 * band.soft for band in acquired.bands[:2])]
    at_pixels = np.zeros(canonical.shape)
    for place in np.ndindex(canonical.shape):
        x = np.array([*responses[place], *told], np.float64)
        for k, (w, b) in enumerate(slices.head.layers):
            x = (np.maximum(x, 0) if k else x) @ w.T.astype(np.float64) + b
        at_pixels[place] = min(1, math.exp(x[0] + x[1] / float(scales[0]) + x[2] / float(scales[1])))
    size = [n * r.numerator // r.denominator for n, r in zip(canonical.shape, scales)]
    out = np.zeros(size)
    for i, j in np.ndindex(*size):
        y, x = ((k + 0.5) / float(r) - 0.5 for k, r in zip((i, j), scales))
        for a, b in np.ndindex(2, 2):
            row, col = math.floor(y) + a, math.floor(x) + b
            weight = (1 - abs(y - row)) * (1 - abs(x - col))
            out[i, j] += weight * at_pixels[min(max(row, 0), len(at_pixels) - 1), min(max(col, 0), at_pixels.shape[1] - 1)]
    return out


@pytest.mark.parametrize("acquired", [STORED, SCANNED])
@pytest.mark.parametrize("scales", [(2, 2), (Fraction(13, 5), Fraction(3, 2)), (1, Fraction("1.7320508"))])
def test_it_is_the_slow_one(up: Upscaler, head: np.ndarray, scales: tuple[Fraction, Fraction], acquired: Acquired) -> None:
    _, found = up(head, scales, acquired=acquired, uncertainty=True)
    levels = up.encode(head)._intensity
    wanted = slow(up, levels.normalise(head), (Fraction(scales[0]), Fraction(scales[1])), acquired)
    np.testing.assert_allclose(found, wanted[: found.shape[0], : found.shape[1]] * (levels.white - levels.black), rtol=2e-4)
    assert np.ptp(found) > 0.05 * found.mean()  # the random head sees something


def test_the_output_is_the_same_with_and_without_it(up: Upscaler, head: np.ndarray) -> None:
    output, half_width = up(head, 2.5, uncertainty=True)
    np.testing.assert_array_equal(output, up(head, 2.5))
    assert output.shape == half_width.shape
    assert half_width.dtype == np.float32
    assert (half_width > 0).all()


def test_tiles_windows_and_stacks_do_not_change_it(up: Upscaler, head: np.ndarray) -> None:
    _, whole = up(head, 2.1, uncertainty=True)
    view = up.encode(head)
    np.testing.assert_allclose(view.uncertainty(2.1), whole, rtol=1e-5)
    np.testing.assert_allclose(view.uncertainty(2.1, window=(7, 11, 20, 31)), whole[7:27, 11:42], rtol=1e-5)
    with Upscaler.load(up.bundle, device="cpu", tile=17) as tiled:
        np.testing.assert_allclose(tiled(head, 2.1, uncertainty=True)[1], whole, rtol=1e-4)
    _, stack = up(np.stack([head, head]), 2.1, uncertainty=True)
    np.testing.assert_allclose(stack, [whole, whole], rtol=1e-3)  # whose estimate is of two slices


def test_it_is_in_the_units_of_the_input(up: Upscaler, head: np.ndarray) -> None:
    _, once = up(head, 2, uncertainty=True)
    _, moved = up(3 * head + 1000, 2, uncertainty=True)
    np.testing.assert_allclose(moved, 3 * once, rtol=1e-4)
    stored = np.asarray(head[:, :, None], np.int16)
    inverted = Scan(stored, (1, 1, 5), np.diag([1.0, 1, 5, 1]), slope=-2.0, inter=7.0)
    out, told = up.volume(inverted, 2, uncertainty=True)
    assert (told.slope, told.inter, told.pixels.dtype) == (1, 0, np.float32)
    assert out.slope == -2  # as the input has it
    _, real = up(-2.0 * stored[..., 0] + 7, 2, uncertainty=True)
    np.testing.assert_allclose(told.pixels[..., 0], real, rtol=1e-3)


def test_grain_widens_it_by_what_is_added(up: Upscaler, head: np.ndarray) -> None:
    """The truth of an image with its grain may be the one without."""
    without, narrow = up(head, 2, uncertainty=True)
    half, wide = up(head, 2, grain=0.5, uncertainty=True)
    free = (np.minimum(half, without) > head.min()) & (np.maximum(half, without) < head.max())  # of the clip
    np.testing.assert_allclose((wide - narrow)[free], np.abs(half - without)[free], atol=1e-3 * np.ptp(head))
    assert (wide >= narrow).all()


def test_thin_slices_have_that_of_both_steps(up: Upscaler) -> None:
    stored = np.random.default_rng(0).integers(0, 1000, (20, 24, 4)).astype(np.int16)
    scan = Scan(stored, (1, 1, 4), np.diag([1.0, 1, 4, 1]))
    (_, thin), (_, both) = (up.volume(scan, scales, uncertainty=True) for scales in ((1, 1, 4), (2, 2, 4)))
    assert thin.shape == (20, 24, 16)
    assert both.shape == (40, 48, 16)
    assert (thin.pixels > 0).all()
    assert (both.pixels > thin.pixels.repeat(2, 0).repeat(2, 1)).all()


def test_labels_have_none(up: Upscaler) -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:12, 7:15] = True
    assert not up(mask, 2, uncertainty=True)[1].any()


def test_a_bundle_without_a_head_says_so_before_any_work(plain: Upscaler, head: np.ndarray) -> None:
    done: list[int] = []
    with pytest.raises(BundleError, match="does not tell the uncertainty: export it again with --uncertainty"):
        plain(head, 2, uncertainty=True, progress=lambda *_: done.append(1))
    with pytest.raises(BundleError, match="does not tell"):
        plain.encode(head).uncertainty(2)
    assert not done


@pytest.mark.parametrize("member", HEAD)
def test_a_damaged_head_is_refused(up: Upscaler, member: str) -> None:
    files = up.bundle.files
    for damaged in (b"no array", bundle.array_bytes(np.zeros((5, 4), np.float32)), bundle.array_bytes(np.full((8, 8), np.nan))):
        with pytest.raises(BundleError, match="a head that"):
            Bundle.parse(bundle.serialise(up.bundle.model, {**files, member: damaged}, {}), "x")
    fewer = {name: data for name, data in files.items() if name != member}
    if member != HEAD[0]:
        with pytest.raises(BundleError, match="a head that"):
            Bundle.parse(bundle.serialise(up.bundle.model, fewer, {}), "x")


def test_a_file_lies_beside_the_output_in_its_place(up: Upscaler, tmp_path: Path) -> None:
    task, request = Task(SCAN, tmp_path / "sr.nii.gz"), Request(Size(scale="2"), uncertainty=True)
    result = job.run(up, task, request)
    path = tmp_path / "sr_uncertainty.nii.gz"
    output, told = nib.load(task.output), nib.load(path)
    assert output.shape == told.shape
    np.testing.assert_allclose(output.affine, told.affine)
    assert told.get_data_dtype() == np.float32
    assert f"uncertainty: {path}, the truth lies within ± it at 90 % of the pixels" in str(result)
    assert sidecar.read(task.output)["request"]["uncertainty"] is True
    again = Request(Size(scale="2"), uncertainty=True, resume=True, overwrite=True)
    assert job.run(up, task, again).status == "skipped"
    path.unlink()
    assert job.run(up, task, again).status == "done"
    assert path.exists()


def test_nothing_is_written_where_the_place_is_taken(up: Upscaler, tmp_path: Path) -> None:
    (tmp_path / "sr_uncertainty.nii.gz").write_bytes(b"mine")
    with pytest.raises(OSError, match="exists already"):
        job.run(up, Task(SCAN, tmp_path / "sr.nii.gz"), Request(Size(scale="2"), uncertainty=True))
    assert [path.name for path in tmp_path.iterdir()] == ["sr_uncertainty.nii.gz"]
    assert (tmp_path / "sr_uncertainty.nii.gz").read_bytes() == b"mine"


def test_pictures_have_an_array(up: Upscaler, head: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray((head / 4).astype(np.uint8)).save(tmp_path / "x.png")
    job.run(up, Task(tmp_path / "x.png", tmp_path / "sr.png"), Request(Size(scale="2"), uncertainty=True))
    assert np.load(tmp_path / "sr_uncertainty.npy").shape == np.array(Image.open(tmp_path / "sr.png")).shape


def test_command_line_writes_it(up: Upscaler, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bundle.serialise(up.bundle.model, up.bundle.files, {})
    (tmp_path / "x.bundle").write_bytes(content)
    asked = [str(SCAN), "--scale", "1.5", "--bundle", str(tmp_path / "x.bundle"), "--device", "cpu", "--uncertainty"]
    assert main([*asked, "-o", str(tmp_path / "out.nii")]) == 0
    assert str(tmp_path / "out_uncertainty.nii") in capsys.readouterr().out
