from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import BundleError, ClosedError, DeviceError, ImageError, ScaleError, Upscaler, grid
from runtime.acquired import STORED
from runtime.intensity import Intensity
from runtime.phases import WeightPredictor
from runtime.upscaler import MODELS
from tests.conftest import random_generator


def test_shapes_and_dtype(shipped: Upscaler, head: np.ndarray) -> None:
    assert shipped(head, scale=2.5).shape == (100, 132)  # 53·5 // 2
    assert shipped(head, shape=(41, 200)).shape == (41, 200)
    assert shipped(head, scale=(2, "3")).shape == (80, 159)
    stack = np.stack([head, head[::-1]]).astype(np.int16)
    assert shipped(stack, scale=2).shape == (2, 80, 106)
    assert shipped(stack, scale=2).dtype == np.float32


def test_shape_equals_the_scale_that_gives_it(shipped: Upscaler, head: np.ndarray) -> None:
    np.testing.assert_array_equal(shipped(head, shape=(80, 106)), shipped(head, scale=2))


def test_a_stack_is_one_volume_with_one_range(shipped: Upscaler, head: np.ndarray) -> None:
    """Otherwise slices flicker: a dark slice would be seen as if it were a bright one."""
    stack = np.stack([head, 0.1 * head])
    sr = shipped(stack, scale=2, acquired=STORED)
    both = (Fraction(2), Fraction(2))
    for slice_, actual in zip(stack, sr):
        np.testing.assert_array_equal(actual, shipped.slices.upscale(slice_, Intensity.of(stack), both, np.float32))
    assert (
        np.abs(sr[1] - shipped(stack[1], scale=2, acquired=STORED)).max() > 0.1
    )  # of a range of 100: a range of its own is another picture


def test_slices_that_come_one_by_one_share_the_volumes_range(shipped: Upscaler, head: np.ndarray) -> None:
    stack = np.stack([head, 0.1 * head])
    known: dict[str, Any] = {"acquired": shipped.measure(stack), "levels": Intensity.of(stack)}
    np.testing.assert_array_equal([shipped(slice_, 2, **known) for slice_ in stack], shipped(stack, 2))


@pytest.mark.parametrize("scale", ["2", "2.1", "3.9", "1.7320508"])
def test_tiles_do_not_show(random_upscaler: Upscaler, scale: str) -> None:
    image = np.random.default_rng(0).random((83, 101), np.float32)
    whole = random_upscaler(image, scale)
    tiled = Upscaler.load(random_upscaler.bundle, tile=37)(image, scale)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5 * np.ptp(whole))


def test_a_halo_of_one_pixel_less_shows(random_upscaler: Upscaler) -> None:
    """The radius in the manifest is not merely enough, it is the receptive radius: the test above can fail."""
    image = np.random.default_rng(0).random((83, 101), np.float32)
    bundle = random_upscaler.bundle
    shy = dataclasses.replace(bundle, model=dataclasses.replace(bundle.model, radius=bundle.model.radius - 1))
    difference = np.abs(Upscaler.load(shy, tile=37)(image, 2) - random_upscaler(image, 2)).max()
    assert difference > 0


@pytest.mark.parametrize("scale", ["2", "2.1", "3.9", "1.7320508"])
def test_window_is_that_part_of_the_whole(random_upscaler: Upscaler, scale: str) -> None:
    image = np.random.default_rng(0).random((45, 64), np.float32)
    whole = random_upscaler(image, scale)
    height, width = whole.shape
    for tile in (512, 30):
        view = Upscaler.load(random_upscaler.bundle, tile=tile).encode(image)
        np.testing.assert_allclose(view.render(scale), whole, rtol=0, atol=1e-5 * np.ptp(whole))
        for window in [(0, 0, 1, 1), (5, 7, 40, 31), (3, 60, 61, 3), (height - 1, 0, 1, width)]:
            row, col, rows, cols = window
            part = view.render(scale, window=window)
            expected = whole[row : row + rows, col : col + cols]
            np.testing.assert_allclose(part, expected, rtol=0, atol=1e-5 * np.ptp(whole))


@pytest.mark.parametrize(
    "window",
    [(0, 0, 81, 10), (-1, 0, 5, 5), (0, 0, 0, 5), (0, 102, 5, 5), (1, 2, 3), "all", (0, 0, 1.5, 1), (0, 0, math.inf, 1)],
)
def test_window_outside_the_output_is_refused(shipped: Upscaler, head: np.ndarray, window: object) -> None:
    with pytest.raises(ScaleError, match="window"):
        shipped.encode(head).render(2, window=window)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2"])
@pytest.mark.parametrize("value", [0, 7, 113])
def test_a_constant_stays_that_constant(shipped: Upscaler, dtype: object, value: int) -> None:
    for scale in (2, 2.1, math.pi / 2):
        assert np.all(shipped(np.full((9, 12), value, dtype), scale) == value)


def test_output_keeps_within_the_inputs_range(shipped: Upscaler) -> None:
    edges = np.kron(np.eye(6, dtype=np.float32) * 900 - 100, np.ones((5, 7), np.float32))
    sr = shipped(edges, 2.5)
    assert sr.min() >= -100
    assert sr.max() <= 800


def test_intensity_is_affine(shipped: Upscaler, head: np.ndarray) -> None:
    """Other units give the same picture."""
    sr = shipped(head, 2)
    np.testing.assert_allclose(shipped(3 * head - 500, 2), 3 * sr - 500, atol=0.05)  # of a range of 3000


def test_integer_pixels_equal_the_same_floats(shipped: Upscaler, head: np.ndarray) -> None:
    whole = np.rint(head)
    np.testing.assert_array_equal(shipped(whole.astype(np.int16), 2), shipped(whole, 2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_place(shipped: Upscaler, bad: float) -> None:
    stack = np.zeros((3, 8, 9), np.float32)
    stack[1, 4, 5] = bad
    with pytest.raises(ImageError, match=r"\(1, 4, 5\) is -?(nan|inf)"):
        shipped(stack, 2)


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (np.zeros((0, 5)), "empty"),
        (np.zeros((1, 1)), "1×1"),
        (np.zeros((9, 1)), "9×1"),
        (np.zeros(5), r"\(5,\)"),
        (np.zeros((2, 2, 2, 2)), r"\(2, 2, 2, 2\)"),
        (np.zeros((4, 4), complex), "complex"),
        (np.array([["a", "b"]]), "U1"),
        ([[1, 2], [3]], "rows of equal length"),
        (np.array([[0, 1], [2, 1e300]]), "digits are lost"),
        (np.full((3, 3), 2**53 + 1), "digits are lost"),
    ],
)
def test_what_is_no_image_is_refused(shipped: Upscaler, image: np.ndarray, what: str) -> None:
    with pytest.raises(ImageError, match=what):
        shipped(image, 2)


def test_output_larger_than_the_machine_is_refused(shipped: Upscaler) -> None:
    with pytest.raises(ScaleError, match=r"GB, more than half of this machine's memory, and .* has no room for it .*TMPDIR"):
        shipped(np.broadcast_to(np.uint8(0), (1 << 32, 2, 2)), 16)


def test_output_larger_than_half_the_memory_lies_in_a_file(
    shipped: Upscaler, head: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = np.stack([head] * 3)
    expected = shipped(stack, 2)
    monkeypatch.setattr("runtime.memory.machine_memory", lambda: 2 * expected.nbytes - 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    streamed = shipped(stack, 2)
    assert type(streamed) is np.ndarray
    assert not streamed.flags.owndata
    np.testing.assert_array_equal(streamed, expected)
    assert not list(tmp_path.iterdir())  # it has no name that could be left behind
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ScaleError, match="gone has no room for it"):
        shipped(stack, 2)


def test_a_scale_close_to_one_takes_no_memory_q_fold() -> None:
    """A period of 2000 input pixels would make classes of pixels that no image fills: the table-free path serves it."""
    assert not grid.has_table((Fraction("1.0005"), Fraction(1)))
    assert all(grid.has_table((r, r)) for r in (*grid.PAPER_SCALES, Fraction(32, 15)))


def test_scale_or_shape_not_both_not_neither(shipped: Upscaler, head: np.ndarray) -> None:
    for arguments in ({}, {"scale": 2, "shape": (80, 106)}):
        with pytest.raises(ScaleError, match="exactly one"):
            shipped(head, **arguments)


def test_an_error_leaves_the_upscaler_usable(shipped: Upscaler, head: np.ndarray) -> None:
    before = shipped(head, 2)
    with pytest.raises(ScaleError):
        shipped(head, 0)
    np.testing.assert_array_equal(shipped(head, 2), before)


def test_without_a_driver_the_device_is_what_was_asked_for_or_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runtime.engines.driver_is_installed", lambda: False)
    for device in ("auto", "cpu"):
        with Upscaler.load(device=device) as up:
            assert up.device == "cpu"
            assert up.runs_on.startswith("onnxruntime")
    assert not caplog.records  # to have no GPU is no fault
    for device, said in (
        ("cuda", "no NVIDIA driver"),
        ("tensorrt", "no NVIDIA driver"),
        ("tpu", "'tpu' is unknown"),
        ("", "''"),
    ):
        with pytest.raises(DeviceError, match=said):
            Upscaler.load(device=device)


def test_closing_is_final_and_may_be_repeated(head: np.ndarray) -> None:
    up = Upscaler.load()
    view = up.encode(head)
    up.close()
    up.close()
    for use in (lambda: up(head, 2), lambda: view.render(2), lambda: up.device, lambda: up.encode(head)):
        with pytest.raises(ClosedError, match="closed"):
            use()


@pytest.mark.parametrize("tile", [512, 100])
@pytest.mark.parametrize(
    "place",
    [(slice(60, 100), slice(45, 90)), (slice(0, 9), slice(150, 160)), (slice(70, 71), slice(70, 71)), (slice(0, 0),) * 2],
)
def test_background_is_skipped_exactly(
    random_upscaler: Upscaler, place: tuple[slice, slice], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content in the middle, at two borders, of one pixel, nowhere: as if the trunk had seen all of the slice."""
    image = np.zeros((150, 160), np.float32)
    rng = np.random.default_rng(0)
    image[place] = rng.random(image[place].shape) + 0.5
    up = Upscaler.load(random_upscaler.bundle, tile=tile)
    encoded, run_trunk = [], up.slices.engine._run_trunk

    def spy(half: bool, part: np.ndarray, told: tuple[float, ...]) -> Any:
        encoded.append(part.size)
        return run_trunk(half, part, told)

    monkeypatch.setattr(up.slices.engine, "_run_trunk", spy)
    skipped = up(image, "2.5")
    assert sum(encoded) < 0.9 * image.size
    monkeypatch.setattr("runtime.engines.portable._WORTH_SKIPPING", -1.0)
    whole = up(image, "2.5")
    np.testing.assert_allclose(skipped, whole, rtol=0, atol=1e-6 * max(1, np.ptp(whole)))


def test_eight_threads_share_one_upscaler(head: np.ndarray) -> None:
    scales = [Fraction(n, 10) for n in range(11, 35)]
    with Upscaler.load(threads=1) as up:
        expected = [up(head, r) for r in scales]
    with Upscaler.load(threads=1) as up, ThreadPoolExecutor(8) as pool:
        for actual, wanted in zip(pool.map(lambda r: up(head, r), scales), expected):
            np.testing.assert_array_equal(actual, wanted)


def test_tables_in_memory_stay_within_their_bound(shipped: Upscaler) -> None:
    from runtime.memory import BoundedCache
    from runtime.phases import slot_table

    predictor, cache = shipped.bundle.predictor(), BoundedCache[np.ndarray](max_bytes=1 << 19)
    for n in range(11, 41):
        scales = (Fraction(n, 10), Fraction(n, 10))
        cache.get(scales, lambda scales=scales: slot_table(predictor.table(scales), scales, "centred", skip=True))
        assert 0 < cache.bytes <= 1 << 19
    assert cache.bytes > 1 << 18  # the largest scale has 262 kB: it is not emptied to make room


def test_a_mask_is_not_mixed(random_upscaler: Upscaler) -> None:
    mask = np.random.default_rng(0).random((2, 9, 8)) > 0.5
    np.testing.assert_array_equal(random_upscaler(mask, 3), mask.repeat(3, 1).repeat(3, 2))


@pytest.mark.parametrize("acquired", ["stored", (12, 12)])
def test_what_is_set_aside_is_the_same_in_a_window(shipped: Upscaler, acquired: object) -> None:
    image = np.random.default_rng(0).random((16, 14)).astype(np.float32)
    image[3:6, :] = -32768
    whole = shipped(image, 2.5, acquired=acquired, noise=0.01)
    view = shipped.encode(image, acquired=acquired, noise=0.01)
    np.testing.assert_array_equal(view.render(2.5), whole)
    np.testing.assert_array_equal(view.render(2.5, window=(5, 4, 9, 20)), whole[5:14, 4:24])
    assert (whole == -32768).any(1).sum() == pytest.approx(7.5, abs=1)


def test_progress_counts_slices_and_may_stop_the_work(random_upscaler: Upscaler) -> None:
    stack, seen = np.random.default_rng(0).random((3, 9, 8)), []
    whole = random_upscaler(stack, 2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        random_upscaler(stack, 2, progress=stop)
    assert seen[3:] == [(1, 3)]
    np.testing.assert_array_equal(random_upscaler(stack, 2), whole)


def test_shipped_models_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: np.ndarray) -> None:
    monkeypatch.chdir(tmp_path)
    hashes = []
    for name in MODELS:
        (tmp_path / name).write_text("a user's, whose name is ./" + name)
        with Upscaler.load(name) as up:
            assert up(head, 2).shape == (80, 106)
            hashes.append(up.bundle.sha256)
    with Upscaler.load() as up:
        assert hashes.index(up.bundle.sha256) == 0
    assert len({*hashes}) == len(MODELS)
    for path in (Path("fast"), "./fast"):
        with pytest.raises(BundleError, match="is no bundle"):
            Upscaler.load(path)
    with pytest.raises(BundleError, match=f"model 'quick' is unknown: use one of {', '.join(MODELS)}, or the path"):
        Upscaler.load("quick")


def test_one_scale_has_many_spellings(random_upscaler: Upscaler) -> None:
    image = np.random.default_rng(5).random((12, 9), np.float32)
    np.testing.assert_array_equal(random_upscaler(image, "2.000"), random_upscaler(image, Fraction(4, 2)))


def test_shipped_model_is_small_enough_for_the_package() -> None:
    from importlib import resources

    assert len(resources.files("runtime").joinpath("brain.bundle").read_bytes()) <= 1_500_000


def test_a_bundle_with_phase_tables_of_its_own_loads() -> None:
    """As `export` wrote them once. They are predicted again, which takes a tenth of a millisecond."""
    from export.build import build
    from runtime import bundle

    model, files = build(random_generator("shallow"), half=False)
    table = bundle.array_bytes(np.zeros((2, 2, model.basis), np.float32))
    with_table = bundle.Bundle.parse(bundle.serialise(model, {**files, "tables/2-1.npy": table}, {}), "test")
    image = np.random.default_rng(0).random((20, 23), np.float32)
    without = bundle.Bundle.parse(bundle.serialise(model, files, {}), "test")
    np.testing.assert_array_equal(Upscaler.load(with_table)(image, 2), Upscaler.load(without)(image, 2))


def test_a_network_that_gives_nan_is_an_error(shipped: Upscaler, head: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """As half precision may where it overflows: cast to an integer, NaN would be any number."""
    table = WeightPredictor.table
    monkeypatch.setattr(WeightPredictor, "table", lambda self, scales: table(self, scales) * np.float32(np.nan))
    with Upscaler.load(shipped.bundle, device="cpu") as up:
        with pytest.raises(DeviceError, match=r"onnxruntime.* is not finite: use device 'cpu'"):
            up(head, 2)
        assert np.isfinite(up(head, "1.7320508")).all()  # by the predictor: it is usable
