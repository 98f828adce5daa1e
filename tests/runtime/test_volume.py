from __future__ import annotations

import gzip
import itertools
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from runtime import ImageError, InputFileError, OutputFileError, Upscaler, io, volume
from runtime.io import nifti
from runtime.sizes import Size
from runtime.slices import Slices
from tests.conftest import SCAN

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([-0.9, 1.1, 3.0]),  # flipped, too
    [-70.0, 12.5, 33.0],
)


def scan_of(data: np.ndarray, affine: np.ndarray = OBLIQUE) -> nib.Nifti1Image:
    return nib.Nifti1Image(data, affine, dtype=data.dtype)


def head_volume(dtype: type = np.int16, shape: tuple[int, ...] = (18, 15, 4)) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.rint(rng.random(shape) * 1000).astype(dtype)


def moved_by(up: Upscaler, order: tuple[int, ...], flips: tuple[int, ...], scale: str, threshold: float) -> float:
    """How many input voxels (1 mm) a one-voxel phantom moves in millimetres, through an oblique affine.

    `order` and `flips` permute and turn the array's axes; slices are 4 mm thick.
    """
    rotation = nib.eulerangles.euler2mat(0.2, 0.1, -0.3)
    affine = nib.affines.from_matvec((rotation @ np.diag([1.0, 1.0, 4.0]) * flips)[:, order], [-31.0, 17.0, 5.0])
    shape, voxel = (tuple(v[k] for k in order) for v in ((24, 21, 3), (9, 12, 1)))
    data = np.zeros(shape, np.int16)
    data[voxel] = 1000
    result = up.volume(nib.Nifti1Image(data, affine), scale)

    axis = order.index(2)
    assert result.shape[axis] == 3
    np.testing.assert_allclose(result.get_qform(), result.affine, atol=1e-4)
    np.testing.assert_allclose(result.get_sform(), result.affine, atol=1e-4)
    bright = result.get_fdata()
    assert bright.take([0, 2], axis).max() <= 5  # black stays black, to 0.5 % of white, in the other slices
    bright = np.where(bright > threshold * bright.max(), bright, 0)
    centre = [(bright * i).sum() / bright.sum() for i in np.indices(bright.shape)]
    return float(np.linalg.norm(affine @ [*voxel, 1] - result.affine @ [*centre, 1]))


# Every order and direction of the axes; scales take turns.
ORIENTATIONS = [(p, f) for p in itertools.permutations(range(3)) for f in itertools.product((1, -1), repeat=3)]
SCALES = ("2", "3", "1.1", "2.5", "2.1", "3.9", "1.5707963267948966", "4")


@pytest.mark.parametrize(
    ("order", "flips", "scale"), [(*o, SCALES[(k + k // 8) % len(SCALES)]) for k, o in enumerate(ORIENTATIONS)], ids=str
)
def test_one_voxel_phantom_keeps_its_place_in_millimetres(
    linear: Upscaler, order: tuple[int, ...], flips: tuple[int, ...], scale: str
) -> None:
    # Samples of a triangle have their centre of mass 0.06 off at worst (at ×1.1); half a voxel wrong in the affine,
    # or in the grid, is 0.25 at ×2 and 0.45 at ×1.1.
    assert moved_by(linear, order, flips, scale, threshold=0) < 0.08


@pytest.mark.parametrize("scale", ["2", "2.5", "3", "4"])
def test_shipped_model_leaves_a_spot_where_it_is(shipped: Upscaler, scale: str) -> None:
    # The network sharpens the spot a little unevenly; 0.15 is half of what a half-voxel mistake would give (0.27 at ×2).
    assert moved_by(shipped, (0, 1, 2), (-1, 1, 1), scale, threshold=0.2) < 0.15


def test_field_of_view_keeps_its_outer_corner(shipped: Upscaler) -> None:
    scan = scan_of(head_volume())
    result = shipped.volume(scan, (2.5, 4))
    corner = [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(result.affine @ corner, scan.affine @ corner, atol=1e-9)
    np.testing.assert_allclose(result.header.get_zooms(), (0.9 / 2.5, 1.1 / 4, 3.0), rtol=1e-6)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (4, 1), (0, 0)])
def test_forms_agree_and_codes_are_kept(shipped: Upscaler, tmp_path: Path, sform: int, qform: int) -> None:
    scan = scan_of(head_volume())
    scan.header.set_sform(OBLIQUE, sform)
    scan.header.set_qform(OBLIQUE, qform)
    scan = type(scan).from_bytes(type(scan)(scan.dataobj, None, scan.header).to_bytes())
    result = shipped.volume(scan, 2)
    io.write(tmp_path / "sr.nii", nifti.of_image(result))
    again = nib.load(tmp_path / "sr.nii")
    np.testing.assert_allclose(again.get_qform(), again.get_sform(), atol=1e-5)
    corner = [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(again.affine @ corner, scan.affine @ corner, atol=1e-4)
    if sform or qform:
        assert (int(again.header["sform_code"]), int(again.header["qform_code"])) == (sform, qform)


def test_forms_of_two_spaces_move_each_by_itself(shipped: Upscaler) -> None:
    scan = scan_of(head_volume())
    other = nib.affines.from_matvec(np.diag([1.0, 1.0, 3.1]), [5, 6, 7])
    scan.header.set_sform(other, 4)
    scan.header.set_qform(OBLIQUE, 1)
    scan = type(scan)(scan.dataobj, other, scan.header)
    result = shipped.volume(scan, 2)
    corner = [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(result.get_sform() @ corner, other @ corner, atol=1e-5)
    np.testing.assert_allclose(result.get_qform() @ corner, OBLIQUE @ corner, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_dtype_is_kept(shipped: Upscaler, tmp_path: Path, dtype: type) -> None:
    data = head_volume(dtype) if dtype != np.uint8 else (head_volume() // 4).astype(np.uint8)
    io.write(tmp_path / "sr.nii.gz", shipped.volume(nifti.of_image(scan_of(data)), 2))
    result = nib.load(tmp_path / "sr.nii.gz")
    assert result.get_data_dtype() == dtype
    expected = shipped(np.moveaxis(data, 2, 0), 2)
    tolerance = 0.5001 if np.dtype(dtype).kind in "iu" else 1e-3  # rounding of grey values up to 1000
    np.testing.assert_allclose(np.moveaxis(result.get_fdata(), 2, 0), expected, atol=tolerance)


def test_other_dtype_on_request_is_rounded_and_clipped(shipped: Upscaler) -> None:
    result = shipped.volume(scan_of(head_volume()), 2, dtype=np.uint8)
    pixels = np.asanyarray(result.dataobj)
    assert pixels.dtype == np.uint8
    as_float = np.asanyarray(shipped.volume(scan_of(head_volume()), 2, dtype=np.float32).dataobj)
    np.testing.assert_array_equal(pixels, np.clip(np.rint(as_float), 0, 255))


@pytest.fixture
def sloped(tmp_path: Path) -> nib.Nifti1Image:
    """Stored integers whose real values are 0.25·stored - 40."""
    scan = scan_of(head_volume())
    scan.header.set_slope_inter(0.25, -40)
    nib.save(scan, tmp_path / "sloped.nii")
    return nib.load(tmp_path / "sloped.nii")


def test_slope_is_kept_and_applies_once(shipped: Upscaler, sloped: nib.Nifti1Image, tmp_path: Path) -> None:
    expected = 0.25 * shipped.volume(scan_of(head_volume()), 2).get_fdata() - 40
    np.testing.assert_allclose(shipped.volume(sloped, 2).get_fdata(), expected)
    io.write(tmp_path / "sr.nii", shipped.volume(nifti.of_image(sloped), 2))
    again = nib.load(tmp_path / "sr.nii")
    assert (again.dataobj.slope, again.dataobj.inter) == (0.25, -40)
    assert again.get_data_dtype() == np.int16
    np.testing.assert_array_equal(again.get_fdata(), expected)


def test_negative_slope_gives_the_picture_of_its_real_values(shipped: Upscaler, tmp_path: Path) -> None:
    """A photographic negative is another picture to a network; the same real values must give the same result."""
    real = head_volume()
    scan = scan_of((1000 - real).astype(np.int16))
    scan.header.set_slope_inter(-1, 1000)
    nib.save(scan, tmp_path / "negative.nii")
    negative = nib.load(tmp_path / "negative.nii")
    np.testing.assert_array_equal(negative.get_fdata(), real)
    expected = shipped.volume(scan_of(real), 2).get_fdata()
    result = shipped.volume(negative, 2)
    # Both are rounded to whole stored numbers; ties go to even from either end.
    np.testing.assert_allclose(result.get_fdata(), expected, atol=1)
    assert result.dataobj.slope == -1


def test_dtype_asked_for_holds_real_values_without_slope(shipped: Upscaler, sloped: nib.Nifti1Image) -> None:
    result = shipped.volume(sloped, 2, dtype=np.float32)
    expected = 0.25 * shipped.volume(scan_of(head_volume()), 2).get_fdata() - 40
    np.testing.assert_allclose(np.asanyarray(result.dataobj), expected, atol=0.13)  # half a grey value of the rounded one


def test_four_dimensions_share_one_range(shipped: Upscaler) -> None:
    data = head_volume(shape=(10, 12, 3, 2))
    data[..., 1] //= 7
    scan = scan_of(data)
    scan.header.set_zooms((0.9, 1.1, 3.0, 2.5))
    scan.header.set_xyzt_units("mm", "sec")
    result = shipped.volume(scan, 2)
    assert result.shape == (20, 24, 3, 2)
    assert result.header.get_zooms()[3] == 2.5
    flat = np.moveaxis(data, (0, 1), (-2, -1)).reshape(-1, 10, 12)
    expected = np.rint(shipped(flat, 2)).reshape(3, 2, 20, 24)
    np.testing.assert_array_equal(np.moveaxis(np.asanyarray(result.dataobj), (0, 1), (-2, -1)), expected)


def test_contrasts_in_one_file_have_each_their_own_range(shipped: Upscaler) -> None:
    data = head_volume(np.float32, shape=(20, 24, 3, 2))
    data[..., 1] *= 200
    both = shipped.volume(scan_of(data), 2).get_fdata()
    for k in range(2):
        np.testing.assert_allclose(both[..., k], shipped.volume(scan_of(data[..., k]), 2).get_fdata())


def test_labels_are_not_mixed_and_vectors_are_refused(shipped: Upscaler) -> None:
    names = np.random.default_rng(0).choice([0, 2, 41], (9, 8, 3)).astype(np.int16)
    scan = scan_of(names)
    scan.header.set_intent("label")
    result = np.asanyarray(shipped.volume(scan, 3).dataobj)
    np.testing.assert_array_equal(result, names.repeat(3, 0).repeat(3, 1))
    scan.header.set_intent("vector")
    with pytest.raises(ImageError, match=r"'vector'.*resample"):
        shipped.volume(scan, 3)


def test_few_whole_numbers_may_be_labels(shipped: Upscaler) -> None:
    """Said in a line, as nothing else tells a segmentation from a phantom of blocks."""
    names = np.zeros((24, 24, 8), np.int16)
    names[4:20, 4:12], names[4:20, 12:20] = 2, 41
    for pixels, said in ((names, True), (names.astype(np.float32), False), (head_volume(shape=(24, 24, 8)), False)):
        scan = nifti.of_image(scan_of(pixels))
        notes = volume.upscale(shipped.slices, scan, volume.prepared(scan, Size(2))).notes
        assert any("3 different whole numbers: if they are labels" in note for note in notes) == said


@pytest.mark.parametrize("fill", [-32768, 1e20, -np.finfo(np.float32).max, np.nan])
@pytest.mark.parametrize("size", [2, (1, 1, 2), (2, 2, 2)])
def test_fill_values_stay_and_change_nothing_else(shipped: Upscaler, fill: float, size: object) -> None:
    clean = head_volume(np.float32, shape=(24, 20, 6))
    clean[:, :5] = clean.min()
    filled = clean.copy()
    filled[:, :5] = fill
    expected = shipped.volume(scan_of(clean), size, axis=2, acquired="stored", noise=0.01).get_fdata()
    result = shipped.volume(scan_of(filled), size, axis=2, acquired="stored", noise=0.01).get_fdata()
    rest = result.shape[1] // 20 * 5
    np.testing.assert_array_equal(result[:, :rest], np.float64(np.float32(fill)))
    np.testing.assert_allclose(result[:, rest:], expected[:, rest:], rtol=1e-3, atol=2)  # black is another percentile's


def test_voxel_sizes_are_those_of_the_affine(shipped: Upscaler) -> None:
    scan = nib.Nifti1Image(head_volume(shape=(10, 12, 8)), None)
    scan.set_sform(np.diag([2.0, 2.0, 2.0, 1]), 1)
    scan.set_qform(None, 0)
    scan.header["pixdim"][1:4] = 1.75, 1.75, 5.47
    scan = type(scan).from_bytes(scan.to_bytes())
    assert nifti.of_image(scan).spacing == (2, 2, 2)
    fine = shipped.volume(scan, spacing=1)
    np.testing.assert_allclose(np.linalg.norm(fine.affine[:3, :3], axis=0), [1, 1, 2])
    np.testing.assert_allclose(fine.header.get_zooms(), [1, 1, 2])
    assert shipped.volume(scan, isotropic=True).shape == (10, 12, 8)


def test_two_dimensions_are_a_slice(shipped: Upscaler) -> None:
    scan = scan_of(head_volume(shape=(10, 12)))
    assert shipped.volume(scan, 2).shape == (20, 24)


def test_header_is_kept(shipped: Upscaler) -> None:
    scan = scan_of(head_volume())
    scan.header["descrip"] = b"T1ce of nobody"
    scan.header["cal_max"] = 900
    scan.header.set_xyzt_units("mm", "sec")
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    before = scan.header.copy()
    result = shipped.volume(scan, 2)
    for field in set(before.keys()) - {"dim", "pixdim", *(k for k in before if k.startswith(("srow", "quat", "qoff", "scl")))}:
        assert result.header[field] == before[field], field
    assert result.header.extensions == before.extensions
    assert scan.header == before  # the input is left alone


def test_nifti2_stays_nifti2(shipped: Upscaler) -> None:
    scan = nib.Nifti2Image(head_volume(), OBLIQUE)
    assert type(shipped.volume(scan, 2)) is nib.Nifti2Image


@pytest.mark.parametrize(
    ("zooms", "axis"), [((1, 1, 5), 2), ((5, 1, 1), 0), ((1, 6, 5), 1), ((1, 1, 1), 2), ((1, 1.005, 1), 2)]
)
def test_slices_lie_across_the_thickest_spacing(zooms: tuple[float, ...], axis: int) -> None:
    scan = scan_of(head_volume(), np.diag([*zooms, 1.0]))
    assert nifti.of_image(scan).axis == axis


def test_axis_may_be_chosen(shipped: Upscaler) -> None:
    scan = scan_of(head_volume())
    assert shipped.volume(scan, 2, axis=0).shape == (18, 30, 8)
    with pytest.raises(ImageError, match="axis is 3"):
        shipped.volume(scan, 2, axis=3)


def test_no_slice_begins_after_a_stop() -> None:
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.01)

    for _ in volume.in_flight(work, ((k,) for k in range(1000)), 2):
        break
    assert 1 <= len(begun) < 100


def test_progress_counts_slices(shipped: Upscaler) -> None:
    seen: list[tuple[int, int]] = []
    shipped.volume(scan_of(head_volume()), 1.5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_volume_refuses_what_is_no_volume(shipped: Upscaler) -> None:
    with pytest.raises(ImageError, match="ndarray"):
        shipped.volume(np.zeros((3, 3)), 2)
    with pytest.raises(ImageError, match="across axis 2"):
        shipped.volume(scan_of(head_volume(shape=(9, 1, 1))), 2)
    endless = head_volume(np.float32)
    endless[3, 4, 2] = np.inf
    with pytest.raises(ImageError, match=r"\(3, 4, 2\) is inf"):
        shipped.volume(scan_of(endless), 2)
    endless[3, 4, 2] = np.nan
    with pytest.raises(ImageError, match="holds NaN, which int16 does not"):
        shipped.volume(scan_of(endless), 2, dtype=np.int16)
    colours = np.zeros((4, 4, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ImageError, match=r"R, G, B \(colour"):
        shipped.volume(nib.Nifti1Image(colours, np.eye(4)), 2)


@pytest.mark.parametrize("dtype", ["float16", bool, object, "S3", "complex64", "banana"])
def test_dtype_that_nifti_cannot_hold_is_refused(shipped: Upscaler, dtype: object) -> None:
    with pytest.raises(ImageError, match="dtype"):
        shipped.volume(scan_of(head_volume()), 2, dtype=dtype)


def _broken_headers() -> dict[str, nib.Nifti1Image]:
    scans = {name: scan_of(head_volume()) for name in ("singular sform", "NaN sform", "bad quaternion")}
    scans["singular sform"].header["srow_x"] = 0
    scans["NaN sform"].header["srow_y"] = np.nan
    scans["bad quaternion"].header["qform_code"] = 1
    scans["bad quaternion"].header["quatern_b"] = scans["bad quaternion"].header["quatern_c"] = 0.9
    return scans


@pytest.mark.parametrize("name", _broken_headers())
def test_header_that_names_no_place_is_refused_before_any_work(
    shipped: Upscaler, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Slices, "fill", lambda *_: pytest.fail("slices were computed in vain"))
    with pytest.raises(ImageError, match="repair"):
        shipped.volume(_broken_headers()[name], 2)


def test_result_too_large_for_the_format_is_refused(shipped: Upscaler) -> None:
    with pytest.raises(ImageError, match="give a smaller scale"):
        shipped.volume(scan_of(np.zeros((2200, 2), np.int16)), 16)  # 35,200 is more than NIfTI-1's 16 bits


@pytest.mark.parametrize("name", ["lie.nii", "lie.nii.gz"])
def test_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path, name: str) -> None:
    raw = bytearray(scan_of(head_volume()).to_bytes())
    raw[40:48] = np.array([3, 32767, 32767, 8], "<i2").tobytes()  # dim
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    with pytest.raises(InputFileError, match="its header promises 17,178,"):
        nifti.load(tmp_path / name)


def test_flipped_bit_in_a_compressed_file_is_noticed(tmp_path: Path) -> None:
    """Its checksum is the last thing in a gzip file, where nibabel does not look."""
    content = bytearray(SCAN.read_bytes())
    content[-6] ^= 1
    (tmp_path / "flipped.nii.gz").write_bytes(content)
    with pytest.raises(InputFileError, match="incorrect data check"):
        nifti.load(tmp_path / "flipped.nii.gz")


def test_one_slice_is_a_slice_whatever_its_thickness(shipped: Upscaler) -> None:
    scan = scan_of(head_volume(shape=(10, 12, 1)), np.diag([1.5, 1.5, 1.0, 1.0]))
    assert shipped.volume(scan, 2).shape == (20, 24, 1)


def test_slice_timing_goes_where_its_axis_is_upscaled(shipped: Upscaler) -> None:
    scan = scan_of(head_volume())
    scan.header.set_dim_info(slice=2)
    scan.header["slice_end"] = 3
    assert shipped.volume(scan, 2).header["slice_end"] == 3
    assert shipped.volume(scan, 2, axis=0).header["slice_end"] == 0


def test_time_step_of_any_kind_is_kept(shipped: Upscaler) -> None:
    scan = scan_of(head_volume(shape=(8, 9, 2, 2)))
    scan.header["pixdim"][4] = -1
    assert shipped.volume(scan, 2).header["pixdim"][4] == -1


def test_truncated_file_is_refused(shipped: Upscaler, tmp_path: Path) -> None:
    whole = SCAN.read_bytes()
    for keep in (0, 10, 200, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "cut.nii.gz"
        path.write_bytes(whole[:keep])
        with pytest.raises(InputFileError, match=r"/cut\.nii\.gz (is truncated|cannot be read as a NIfTI file)"):
            shipped.volume(nifti.load(path), 2)


def test_saving_never_replaces_unasked_nor_leaves_parts(tmp_path: Path) -> None:
    scan = scan_of(head_volume())
    path = tmp_path / "out.nii.gz"
    io.write(path, nifti.of_image(scan))
    before = path.read_bytes()
    with pytest.raises(OutputFileError, match="exists already"):
        io.write(path, nifti.of_image(scan))
    io.write(path, nifti.of_image(scan), overwrite=True)
    assert path.read_bytes() == before  # and the same bytes again: no time stamp in the gzip
    with pytest.raises(OutputFileError, match=r"\.nii"):
        io.write(tmp_path / "out.mgz", nifti.of_image(scan))
    assert [p.name for p in tmp_path.iterdir()] == ["out.nii.gz"]


def test_real_scan(shipped: Upscaler) -> None:
    scan = nifti.load(SCAN)
    result = shipped.volume(scan, 2.5)
    assert result.shape == (640, 640, 7)
    assert result.get_data_dtype() == np.int16
    np.testing.assert_allclose(result.header.get_zooms(), (0.3125, 0.3125, 6.5))
