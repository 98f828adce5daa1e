from __future__ import annotations

import contextlib
import json
import math
import types
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from runtime import ImageError, InputFileError, __main__, qa
from runtime.acquired import Acquired, Band
from runtime.job import Computer
from runtime.qa import criteria, judge, phantom, scans
from runtime.scan import Scan
from tests.conftest import ROOT, SCAN

DICOM = ROOT.parent / "shared" / "data" / "samples" / "dicom-t1"
TWO = Fraction(2)
PAIR = TWO, TWO
HEAD = lru_cache(phantom.head)


class Fake:
    """An Upscaler that interpolates, and then does something to the image."""

    runs_on = "paper"
    bundle: Any = types.SimpleNamespace(envelope=None)

    def __init__(self, then: Any = lambda image: image) -> None:
        self.then = then

    def __call__(self, image: np.ndarray, scale: Any, **told: Any) -> np.ndarray:
        scales = scale if isinstance(scale, tuple) else (scale, scale)
        return np.asarray(self.then(criteria.bicubic(np.asarray(image, np.float32), scales)), np.float32)


def sharpened(image: np.ndarray) -> np.ndarray:
    return image + 1.5 * (image - criteria.smooth(image, 1, PAIR))


def head(noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """A slice (H, W) with flat tissue, edges and noise, as the phantom has them, and a few times as large as its regions."""
    return phantom.scanned(HEAD(), noise=noise, seed=seed)[24:232, 40:216]


@pytest.fixture(scope="module")
def volume() -> Scan:
    return Scan(np.stack([head(seed=k) for k in range(3)], -1) * 1000, (0.9, 0.9, 5.0), np.diag([0.9, 0.9, 5, 1]))


def examined(volume: Scan, then: Any = lambda image: image) -> scans.Figures:
    return scans.examine(volume, Fake(then), PAIR)[0]  # type: ignore[arg-type]


def by_name(figures: scans.Figures) -> dict[str, judge.Criterion]:
    return {each.name: each for each in judge.of_scans([figures])}


# What is measured of a slice


def test_interpolation_gains_nothing(volume: Scan) -> None:
    its = examined(volume)
    assert (its.over_bicubic, its.edges, its.ripple, its.width) == pytest.approx((1, 1, 1, its.bicubic_width), rel=1e-4)
    assert (its.slices, its.spacing, its.outside) == (3, (0.9, 0.9), None)
    found = by_name(its)
    assert not found["Sharpness of boundaries"].passed
    assert not found["Thickness of boundaries"].passed
    assert found["Ripple in flat tissue"].passed
    assert found["Envelope of the training"].verdict == "not applicable"


def test_blur_gains_snr_and_no_sharpness(volume: Scan) -> None:
    its = examined(volume, lambda image: criteria.smooth(image, 1, PAIR))
    found = by_name(its)
    assert its.over_bicubic > 1.5
    assert found["SNR of tissue"].passed
    assert not found["Sharpness of boundaries"].passed
    assert not found["Thickness of boundaries"].passed
    assert not found["Consistency with k-space"].passed


def test_sharpening_is_seen_as_ripple(volume: Scan) -> None:
    its = examined(volume, sharpened)
    found = by_name(its)
    assert (its.edges > 1, its.width < its.bicubic_width, its.over_bicubic < 1) == (True, True, True)
    assert found["Sharpness of boundaries"].passed
    assert not found["Ripple in flat tissue"].passed
    assert not found["SNR of tissue"].passed


def test_snr_is_that_of_the_input_at_the_same_places(volume: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    place = slice(200, 214), slice(100, 114)  # 7×7 input pixels at the output's pixel 200, 100
    monkeypatch.setattr(criteria, "regions", lambda image, scales: [place])
    unit = np.stack([volume.pixels[..., k] for k in range(3)])
    stored = [image[100:107, 50:57] for image in unit]
    larger = [criteria.bicubic(image, PAIR)[place] for image in unit]
    ratios = [(b.mean() / b.std()) / (a.mean() / a.std()) for a, b in zip(stored, larger)]
    assert examined(volume).snr == pytest.approx(np.median(ratios), rel=1e-3)


def test_regions_are_apart_and_in_flat_tissue() -> None:
    image = criteria.bicubic(head(), PAIR)
    found = criteria.regions(image, PAIR)
    assert len(found) == criteria.REGIONS
    seen = np.zeros(image.shape, int)
    for region in found:
        assert image[region].shape == (15, 15)
        seen[region] += 1
        assert 0.5 < image[region].mean() < 0.75  # grey or white matter
        assert image[region].std() < 0.03  # no edge, which would be 0.1 or more
    assert seen.max() == 1
    assert criteria.regions(np.zeros((60, 60), np.float32), PAIR) == []
    assert criteria.regions(np.ones((18, 18), np.float32), PAIR) == []  # tissue, but no room


@pytest.mark.parametrize("angle", [0, 30, 90, 200])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_edge_width_is_that_of_a_gaussian_edge(sigma: float, angle: float) -> None:
    y, x = (np.mgrid[:120, :120] - 59.5) / 2  # at ×2
    along = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    image = (0.2 + 0.6 * np.vectorize(lambda d: 0.5 * (1 + math.erf(d / sigma / 2**0.5)))(along)).astype(np.float32)
    true = 2 * 1.2815515655446004 * sigma  # from the 10th to the 90th percentile
    assert criteria.edge_width(image, image, PAIR) == pytest.approx(
        true, rel=0.1
    )  # straight lines between pixels of half the size
    assert math.isnan(criteria.edge_width(np.zeros((40, 40), np.float32), image[:40, :40] * 0, PAIR))


def test_consistency_is_what_the_band_lacks() -> None:
    acquired = Acquired((Band(0.75), Band()), 0.0)
    unit = head()[:64, :80]
    unit = acquired.given_back(acquired.lacking(unit, unit * 0, (Fraction(1),) * 2), unit.shape, (Fraction(1),) * 2)
    sr = acquired.given_back(acquired.lacking(unit, np.zeros((128, 160), np.float32), PAIR), unit.shape, PAIR)
    assert criteria.consistency(acquired, unit, sr, PAIR) == pytest.approx((0, 0), abs=1e-5)
    assert criteria.consistency(acquired, unit, sr + 0.1, PAIR) == pytest.approx((0.1, 0.1), abs=1e-4)
    beyond = 0.1 * np.cos(np.pi * (np.arange(160) + 0.5) / 160 * 120).astype(np.float32)  # finer than the input shows
    assert criteria.consistency(acquired, unit, sr + beyond, PAIR) == pytest.approx((0, 0), abs=1e-4)


def test_the_noise_that_was_found_may_be_missing() -> None:
    known = dict.fromkeys(("snr", "over_bicubic", "edges", "width", "bicubic_width", "ripple", "worst"), 1.0)
    for noise, passed in ((0.0, False), (0.02, True)):
        its = scans.Figures(1, (), "", noise, ("a CT",), rmse=0.021, **known)
        assert by_name(its)["Consistency with k-space"].passed is passed
        assert by_name(its)["Envelope of the training"].passed is False


def test_the_envelope_that_a_bundle_records_is_asked(volume: Scan) -> None:
    class Narrow:
        def outside(self, scan: Scan, intensity: Any, acquired: Acquired) -> tuple[str, ...]:
            return () if scan.spacing[0] < 1 and len(acquired.bands) == 3 and intensity.white > 100 else ("too large",)

    up = Fake()
    up.bundle = types.SimpleNamespace(envelope=Narrow())
    large = replace(volume, spacing=(4.0, 4.0, 5.0))
    inside, outside = (scans.examine(scan, up, PAIR)[0] for scan in (volume, large))  # type: ignore[arg-type]
    assert (inside.outside, outside.outside) == ((), ("too large",))
    (found,) = (each for each in judge.of_scans([inside, outside]) if each.name.startswith("Envelope"))
    assert (found.found, found.passed) == ("1 of 2 series", False)


def test_only_the_first_volume_and_the_mean_of_colours_are_tested(volume: Scan) -> None:
    four = Scan(np.stack([volume.pixels, volume.pixels * 0], -1), (0.9, 0.9, 5.0), volume.affine, alike=True)
    assert examined(four).ripple == pytest.approx(1)
    grey = volume.pixels[..., 0]
    mean = examined(Scan(np.stack([grey, grey * 2, grey * 0]), stack=0, colour=True))  # as pictures are read
    assert mean.snr == pytest.approx(examined(Scan(grey)).snr)


def test_what_cannot_be_tested_says_why(volume: Scan) -> None:
    labels = Scan(np.ones((9, 9, 3), np.uint8), (1.0,) * 3, np.eye(4), labels=True)
    with pytest.raises(ImageError, match="it holds labels"):
        examined(labels)
    with pytest.raises(ImageError, match="no slice of it shows flat tissue"):
        examined(Scan(np.zeros((60, 60, 3), np.int16), (1.0,) * 3, np.eye(4)))
    blocks = np.kron(np.indices((6, 6)).sum(0) % 2, np.ones((40, 40)))  # nothing differs within: painted
    with pytest.raises(ImageError, match="no slice of it shows flat tissue"):
        examined(Scan(blocks))


# The phantom


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, and the head computed once: it takes most of the time."""
    monkeypatch.setattr(phantom, "head", HEAD)
    monkeypatch.setattr(phantom, "NOISES", (0.0,))
    monkeypatch.setattr("runtime.qa.report.NOISES", (0.0,))


def outcome(then: Any = lambda image: image) -> phantom.Outcome:
    return phantom.examine(lambda image: Fake(then)(image, TWO), TWO)


@pytest.fixture
def passed(quick: None) -> Any:
    """What of the phantom a network passes, by the end of the criteria's names."""
    return lambda then: {each.name.split(": ")[1]: each.passed for each in judge.of_phantom(outcome(then))}


def test_the_truth_has_the_contrast_and_size_of_its_inserts() -> None:
    without = HEAD()
    alone = phantom.scanned(phantom.add(without, phantom.INSERTS), TWO) - phantom.scanned(without, TWO)
    for insert in phantom.INSERTS:
        contrast, *area = phantom.contrast_and_area(alone, insert, TWO)
        assert abs(contrast) == pytest.approx(abs(insert.contrast), rel=0.04)  # soft edges
        assert not insert.diameter or np.sign(contrast) == np.sign(insert.contrast)
        assert area == pytest.approx([np.pi / 4 * insert.diameter**2] if insert.diameter else [], rel=0.02)


def test_inserts_lie_in_white_matter_apart_from_each_other() -> None:
    without = HEAD()
    reached = np.zeros(without.shape, int)
    for insert in phantom.INSERTS:
        size = insert.diameter / 2 if insert.diameter else phantom._FIELD
        axis = phantom._axis()
        rows, cols = np.abs(axis - insert.row) < size + 4, np.abs(axis - insert.col) < size + 4
        around = np.ix_(rows, cols)
        if insert.diameter:  # what is measured is a circle
            far = np.hypot(*np.meshgrid(axis[rows] - insert.row, axis[cols] - insert.col, indexing="ij"))
            assert np.ptp(without[around][far < size + 4]) < 0.01, insert
        inner = np.ix_(np.abs(axis - insert.row) < size + 1, np.abs(axis - insert.col) < size + 1)
        assert np.ptp(without[inner]) < 0.01, insert
        reached[inner] += 1
    assert reached.max() == 1


def test_noise_is_that_of_a_scanner_and_the_same_again() -> None:
    without = HEAD()
    clean, noisy = phantom.scanned(without), phantom.scanned(without, noise=0.02)
    np.testing.assert_array_equal(noisy, phantom.scanned(without, noise=0.02))
    tissue = clean > 0.5
    assert (noisy - clean)[tissue].std() == pytest.approx(0.02, rel=0.05)
    assert noisy[:20, :20].std() == pytest.approx(0.02 * (2 - np.pi / 2) ** 0.5, rel=0.1)  # Rayleigh's, of air


def test_interpolation_keeps_what_it_keeps(quick: None) -> None:
    for kept in outcome().kept:
        assert kept.ours == kept.bicubic
        if kept.insert.diameter != 4:  # which is just at the limit: smaller ones lose size, line pairs contrast
            assert kept.passed == (kept.insert.diameter > 4)


def test_a_network_that_halves_contrast_fails(passed: Any) -> None:
    found = passed(lambda image: 0.68 + 0.5 * (image - 0.68))
    assert not any(found[kind] for kind in ("lesions", "low-contrast discs", "line pairs"))


def test_a_network_that_enlarges_fails(passed: Any) -> None:
    found = passed(lambda image: np.maximum.reduce([np.roll(image, k, axis) for k in (-1, 0, 1) for axis in (0, 1)]))
    assert not found["lesions"]


def test_a_lesion_that_was_removed_is_missed(passed: Any) -> None:
    at = next(insert for insert in phantom.INSERTS if insert.kind == "lesions")
    row, col = (int((phantom.SIZE / 2 + place) * 2) for place in (at.row, at.col))

    def ghost(image: np.ndarray) -> np.ndarray:
        image = image.copy()
        image[row - 3 : row + 3, col - 3 : col + 3] += 0.1
        return image

    assert passed(lambda image: image)["lesions removed"]
    assert not passed(ghost)["lesions removed"]


def test_a_network_that_invents_a_lesion_fails(passed: Any) -> None:
    def invents(image: np.ndarray) -> np.ndarray:
        image = image.copy()
        image[180:188, 250:258] += 0.05  # white matter, where there never was one
        return image

    assert passed(lambda image: image)["nothing invented"]
    found = passed(invents)
    assert not found["nothing invented"]
    assert found["lesions removed"]


# The command


@pytest.fixture
def bicubic(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command without a network."""

    @contextlib.contextmanager
    def load(self: Computer) -> Iterator[Fake]:
        yield Fake()

    monkeypatch.setattr(Computer, "load", load)


def save(path: Path, pixels: np.ndarray, labels: bool = False) -> Path:
    path.parent.mkdir(exist_ok=True)
    image = nib.Nifti1Image(pixels, np.diag([0.9, 0.9, 5, 1]))
    if labels:
        image.header.set_intent("label")
    nib.save(image, path)
    return path


@pytest.fixture
def folder(tmp_path: Path, volume: Scan) -> Path:
    """A site's folder: a head, the same in a folder, labels, a damaged file, and what is none of ours."""
    site = tmp_path / "site"
    save(site / "head & <b>neck.nii.gz", volume.pixels.astype(np.int16))
    save(site / "later" / "head & <b>neck.nii.gz", volume.pixels.astype(np.int16))
    save(site / "labels.nii.gz", np.ones((9, 9, 3), np.uint8), labels=True)
    (site / "broken.nii.gz").write_bytes(b"no NIfTI")
    (site / "LICENSE").write_text("yours")
    return site


class Page(HTMLParser):
    """The texts of a page's table cells, and all that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_page_has_every_series_and_criterion_and_loads_nothing(
    bicubic: None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert __main__.main(["qa", str(folder), "-o", str(out), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "criteria not passed" in error
    text = out.read_text("utf-8")
    page = Page(text)
    numbers = json.loads((tmp_path / "report.html.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert not page.tags & {"script", "link", "iframe", "object", "b0"}
    assert len(page.loads) == 4  # two series and two parts of the phantom
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "url(" not in text
    assert "@import" not in text
    for each in numbers["criteria"]:
        assert any(cell.startswith(each["name"]) for cell in page.cells)
        assert each["found"] in page.cells
        assert each["limit"] in page.cells
    sources = [each["source"] for each in numbers["criteria"]]
    assert sources[:4] == ["FDA K191688, K203182", "FDA K203182", "FDA K203182", "own"]
    assert set(sources) <= {cell.strip() for cell in page.cells}
    assert len(numbers["criteria"]) == 6 + 5
    rows = {each["name"]: each for each in numbers["series"]}
    assert set(rows) == {"head & <b>neck.nii.gz", "later/head & <b>neck.nii.gz", "labels.nii.gz", "broken.nii.gz"}
    assert "labels" in rows["labels.nii.gz"]["problem"]
    assert "broken.nii.gz cannot be read" in rows["broken.nii.gz"]["problem"]
    assert rows["head & <b>neck.nii.gz"]["edges"] == pytest.approx(1, rel=1e-3)
    assert not any(str(tmp_path) in cell for cell in page.cells)
    for name, row in rows.items():
        assert any(cell.startswith(name) and row.get("problem", "") in cell for cell in page.cells)
    assert len(numbers["phantom"]) == len(phantom.INSERTS)
    assert all(any(cell.startswith(insert.name) for cell in page.cells) for insert in phantom.INSERTS)


def test_exit_status_is_0_where_all_passed(
    bicubic: None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "of_scans", lambda tested: [judge.Criterion("a", "", "", True)])
    monkeypatch.setattr(judge, "of_phantom", lambda tested: [judge.Criterion("b", "", "", None)])
    assert __main__.main(["qa", str(folder), "-o", str(tmp_path / "x.html")]) == 0
    assert capsys.readouterr().out == f"all 1 criteria passed, as {tmp_path / 'x.html'} shows\n"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", "holds no file of a known format"),
        ("missing", "does not exist"),
        ("labels", r"holds no series that can be tested. a.nii.gz: it holds labels"),
        ("scale", "scale 5 is not tested: give more than 1, and at most 4"),
        ("taken", "exists already"),
        ("nowhere", "is not there for you"),
    ],
)
def test_bad_input_is_one_line_and_no_file(
    bicubic: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, said: str
) -> None:
    site, out = tmp_path / "site", tmp_path / ("no" if what == "nowhere" else "") / "page.html"
    site.mkdir()
    (site / "README.txt").write_text("a folder")
    if what != "nothing":
        save(site / "a.nii.gz", np.ones((9, 9, 3), np.uint8), labels=True)
    if what == "taken":
        out.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    arguments = ["qa", str(tmp_path / "gone" if what == "missing" else site), "-o", str(out)]
    assert __main__.main([*arguments, "--scale", "5" if what == "scale" else "2"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not DICOM.is_dir(), reason="needs the sample series")
def test_dicom_is_found_in_folders_or_loose(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    save(tmp_path / "a.nii.gz", np.ones((9, 9, 3), np.uint8))
    (tmp_path / "series" / "deep").mkdir(parents=True)
    files = sorted(DICOM.glob("*.dcm"))
    for number, file in enumerate(files):
        (tmp_path / "series" / "deep" / f"{number}").write_bytes(file.read_bytes())  # known by their content
    sources = [task.source for task in qa.find(tmp_path)]
    assert sources == [tmp_path / "a.nii.gz", tmp_path / "series"]
    (tmp_path / "loose.dcm").write_bytes(files[0].read_bytes())
    assert [task.source for task in qa.find(tmp_path)] == [tmp_path, tmp_path / "a.nii.gz"]
    with pytest.raises(InputFileError, match="does not exist"):
        qa.find(tmp_path / "gone")


def test_the_shipped_network_on_a_real_scan(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "SLICES", 2)
    out = tmp_path / "page.html"
    assert __main__.main(["qa", str(SCAN), "-o", str(out), "--device", "cpu", "--quiet"]) in (0, 1)
    numbers = json.loads(tmp_path.joinpath("page.html.json").read_text("utf-8"))
    (series,) = numbers["series"]
    found = {each["name"].split(": ")[-1]: each["passed"] for each in numbers["criteria"]}
    assert series["slices"] == 2
    assert found["Sharpness of boundaries"]
    assert found["Thickness of boundaries"]
    assert found["Ripple in flat tissue"]
    assert found["lesions"]  # without noise
    assert found["lesions removed"]
    assert found["nothing invented"]
    assert numbers["network"][0] == "brain"
