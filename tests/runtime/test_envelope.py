"""What a network learned from, and the one line about a scan that lies outside of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from runtime import Upscaler, io, job, measure, sidecar, volume
from runtime.envelope import Envelope, statistics
from runtime.job import Request, Task
from runtime.scan import Scan
from runtime.sizes import Size
from runtime.upscaler import MODELS, open_bundle
from runtime.viewer.opened import Opened
from tests.conftest import SCAN

GREY = "grey values are not distributed as in the axial, coronal and sagittal T1-weighted brain images that it knows"
# Air, scalp, skull, fluid, grey and white matter: as parts of white, and in a CT in HU.
CONTRASTS = {
    "T1": (0, 0.85, 0.1, 0.18, 0.4, 0.5),
    "T2": (0, 0.6, 0.05, 0.95, 0.48, 0.36),
    "FLAIR": (0, 0.2, 0.05, 0.05, 0.65, 0.5),
    "CT": (-1000, 40, 1300, 8, 38, 28),
}


def head(contrast: str, shape: tuple[int, int] = (160, 144), slices: int = 5) -> np.ndarray:
    """A drawing of axial slices, whose cortex is folded; with 1 % of noise, or 5 HU."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*(np.linspace(-1.15, 1.15, n) for n in shape), indexing="ij")
    radius, angle = np.hypot(y, x / 0.82), np.arctan2(x, y)
    drawn = []
    for k in range(slices):
        folds = 0.04 * np.cos(22 * angle + k) + 0.03 * np.cos(9 * angle + 2 * k)
        tissue = np.select(
            [
                np.hypot(y / 0.9, (np.abs(x) - 0.12) / 0.5) < 0.16 + 0.01 * k,  # ventricles
                radius < 0.5 + 2 * folds,
                radius < 0.72 + folds,
                radius < 0.77,
                radius < 0.86,
                radius < 1,
            ],
            [3, 5, 4, 3, 2, 1],
            0,
        )
        drawn.append(gaussian_filter(np.array(CONTRASTS[contrast], float)[tissue], 0.7))
    image = np.stack(drawn, -1)
    noise = 0.01 * rng.standard_normal(image.shape)
    if contrast == "CT":
        return (image + 500 * noise).astype(np.float32)
    texture = gaussian_filter(rng.standard_normal(image.shape), (4, 4, 0))  # tissue is not all one grey, nor are coils even
    return (image * (1 + 0.12 * texture / texture.std()) + noise).astype(np.float32)


def scan_of(data: np.ndarray, mm: float = 1.0) -> Scan:
    return Scan(data, (mm, mm, 5.0), np.diag([mm, mm, 5.0, 1.0]), stack=2)


def said(scan: Scan, envelope: Envelope, **known: Any) -> tuple[str, ...]:
    intensity = volume.intensities(scan)[0]
    return envelope.outside(scan, intensity, measure.of(scan.pixels, scan.in_plane, intensity, **known))


@pytest.fixture(scope="module", params=MODELS)
def envelope(request: pytest.FixtureRequest) -> Iterator[Envelope]:
    found = open_bundle(request.param).envelope
    assert found is not None
    return found


@pytest.fixture(scope="module")
def demo() -> Scan:
    return io.read(SCAN, None)


def test_a_t1_is_inside_and_so_are_its_parts(envelope: Envelope, demo: Scan) -> None:
    data = demo.pixels.astype(np.float32)
    assert data.ndim == 3
    small = data[: data.shape[0] // 2 * 2, : data.shape[1] // 2 * 2].reshape(data.shape[0] // 2, 2, -1, 2, data.shape[2])
    noise = 0.05 * np.percentile(data, 99.9) * np.random.default_rng(0).standard_normal((2, *data.shape))
    inner = tuple(slice(n // 5, n - n // 5) for n in data.shape[:2])
    parts = {
        "whole": demo,
        "crop": replace(demo, pixels=data[inner]),
        "shrunk": scan_of(small.mean((1, 3)), 1.56),
        "noisy": replace(demo, pixels=np.hypot(data + noise[0], noise[1]).astype(np.float32)),
        "drawn": scan_of(head("T1")),
    }
    parts |= {f"slice {k}": Scan(data[..., k]) for k in range(data.shape[2] // 4, 3 * data.shape[2] // 4, 3)}
    assert {name: said(scan, envelope) for name, scan in parts.items()} == dict.fromkeys(parts, ())


@pytest.mark.parametrize("contrast", ["T2", "FLAIR", "CT"])
def test_another_contrast_is_one_line(envelope: Envelope, contrast: str) -> None:
    line = f"outside of what the network learned from: {GREY}: do not trust fine detail"
    assert said(scan_of(head(contrast)), envelope) == (line,)
    if contrast == "CT":  # as windowed for bleedings
        assert said(scan_of(np.clip(head("CT"), 0, 80)), envelope) == (line,)


def test_a_photograph_is_one_line(envelope: Envelope) -> None:
    rng = np.random.default_rng(0)
    channels = np.stack([gaussian_filter(rng.random((1100, 1204)), 1) for _ in range(3)])
    photo = ((channels - channels.min()) / np.ptp(channels) * 255).astype(np.uint8)
    (line,) = said(Scan(photo, stack=0, colour=True), envelope)
    assert "a colour picture" in line
    (line,) = said(Scan(photo[0]), envelope)
    assert "pixels of 0.36×0.33 mm at most (it knows 0.4 to 2.5)" in line
    grey = np.repeat(np.rint(head("T1")[..., 2] * 200).clip(0).astype(np.uint8)[None], 3, axis=0)
    assert said(Scan(grey, stack=0, colour=True), envelope) == ()  # a slice that was saved in colour


@pytest.mark.parametrize(
    ("mm", "known", "reason"),
    [
        (4.0, {}, "pixels of 4×4 mm (it knows 0.4 to 2.5)"),
        (0.2, {}, "pixels of 0.2×0.2 mm (it knows 0.4 to 2.5)"),
        (0.2, {"matrix": (80, 72, 5)}, ""),  # pixels of 0.4 mm were measured
        (1.0, {"noise": 0.09}, "noise of 9 % of white (it knows 0 to 8 %)"),
        (0.3, {"matrix": (64, 144, 5)}, "40 % and 100 % of the stored matrix was measured (it knows 50 to 100 %)"),
    ],
)
def test_size_noise_and_matrix_are_told(envelope: Envelope, mm: float, known: dict[str, Any], reason: str) -> None:
    lines = said(scan_of(head("T1"), mm), envelope, **known)
    assert len(lines) == bool(reason)
    assert reason in "".join(lines)


def test_reasons_share_one_line(envelope: Envelope) -> None:
    (line,) = said(scan_of(head("CT"), 4), envelope)
    assert line.count("it knows") == 2
    assert line.count("do not trust") == 1


def test_measured_noise_beyond_the_limit_is_told(envelope: Envelope, demo: Scan) -> None:
    data = demo.pixels.astype(np.float32)
    noise = 0.12 * np.percentile(data, 99.9) * np.random.default_rng(0).standard_normal((2, *data.shape))
    (line,) = said(replace(demo, pixels=np.hypot(data + noise[0], noise[1]).astype(np.float32)), envelope)
    assert "% of white (it knows 0 to 8 %)" in line


def test_statistics_are_those_of_the_drawing() -> None:
    """Its parts are large and flat: their grey values tell all of it."""
    slices = [*np.moveaxis(head("T1", (320, 288)), -1, 0)]
    found = statistics(slices)
    assert found["rim"] < 0  # skull and fluid are most of what lies near the outline
    assert found["contrast"] == pytest.approx(math.log((0.56 - 0.35) / 0.42), abs=0.2)  # white and grey, ± texture
    assert found["saturated"] < 0.02
    bright = statistics([np.minimum(image, 0.45) / 0.45 for image in slices])
    assert bright["saturated"] > 0.2
    # Noise that the threshold knows of changes little: averaging takes it off.
    rng = np.random.default_rng(0)
    noisy = [np.hypot(i + 0.06 * rng.standard_normal(i.shape), 0.06 * rng.standard_normal(i.shape)) for i in slices]
    for name, value in statistics([image.astype(np.float32) for image in noisy], 0.06).items():
        assert value == pytest.approx(found[name], abs=0.35), name
    assert statistics([np.zeros((80, 80), np.float32)]) == {}
    assert statistics([]) == {}


def test_a_bundle_without_an_envelope_says_nothing() -> None:
    assert said(scan_of(head("CT"), 40), Envelope()) == ()


def test_an_envelope_is_read_with_distrust() -> None:
    plain = {"images": "knees", "noise": [0, 0.1], "grey": {"new": [1, 2]}, "unknown": {"x": 1}}
    found = Envelope.parse(plain)
    assert (found.images, found.noise, found.pixel_mm) == ("knees", (0, 0.1), None)
    assert said(scan_of(head("CT")), found) == ()  # statistics that this version does not know
    for damaged in (
        {"noise": [0.1]},
        {"noise": [1, 0]},
        {"noise": ["a", 1]},
        {"noise": [0, math.inf]},
        {"pixel_mm": 3},
        {"grey": [1]},
        {"grey": {"skew": None}},
        {"images": "two\nlines"},
        {"images": "x" * 81},
        {"images": 1},
    ):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            Envelope.parse(damaged)


def test_a_run_and_the_viewer_say_it(shipped: Upscaler, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(head("CT").astype(np.int16), np.diag([4.0, 4, 5, 1])), tmp_path / "ct.nii")
    result = job.run(shipped, Task(tmp_path / "ct.nii", tmp_path / "out.nii"), Request(Size((1.1, 1.1))))
    (line,) = (note for note in result.notes if "outside" in note)
    assert "pixels of 4×4 mm" in line
    assert GREY in line
    assert line in sidecar.read(tmp_path / "out.nii")["notes"]
    shown = Opened(io.read(tmp_path / "ct.nii", None), shipped, "ct.nii").description()["notes"]
    assert [note for note in shown if "outside" in note] == [line]
