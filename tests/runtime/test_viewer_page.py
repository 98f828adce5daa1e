"""The viewer's page in a real Chromium without a screen, its WebGL 2 in software."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import Upscaler
from runtime.io import nifti
from runtime.scan import Scan
from runtime.upscaler import open_bundle
from runtime.viewer import opened as viewer_opened
from runtime.viewer.opened import Key, Opened
from runtime.viewer.server import Server
from tests.conftest import SCAN, with_head, without_head
from tests.runtime.conftest import serving

api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: apt-get install chromium")

SIZE = {"width": 800, "height": 420}
# Draw images of the stage as numbers: whole slices at scales (rows, columns), the first pixel in the corner.
STAGE = """async (asked) => {
  const { Stage } = await import('./stage.js');
  const { seen } = await import('./geometry.js');
  const scan = await (await fetch('scan.json')).json();
  const predictor = new Float32Array(await (await fetch('predictor')).arrayBuffer());
  const stage = new Stage(new OffscreenCanvas(8, 8), { ...scan.network, largest: scan.largest_scale }, predictor);
  const drawn = [];
  for (const [key, shown, scales, size, grain] of asked) {
    const axis = Number(new URLSearchParams(key).get('axis'));
    const plane = { ...scan.planes.find((plane) => plane.axis === axis), turned: false, flipped: [false, false], mm: scales };
    const [rows, cols] = plane.canonical;
    const [pixels, channels] = [rows * cols, 4 * (Math.ceil(scan.network.basis / 4) + scan.network.uncertainty)];
    stage.slice(new Float32Array(await (await fetch(`slice?${key}`)).arrayBuffer()), plane.shape);
    const body = await (await fetch(`responses?${key}`)).arrayBuffer();
    const responses = new Uint16Array(body, 4 * pixels, channels * pixels);
    const lacking = new Uint16Array(body, (4 + 2 * channels) * pixels);
    stage.features({ canonical: new Float32Array(body, 0, pixels), responses, lacking }, plane);
    const view = seen(plane, 1, size.map((n, k) => n / 2 / scales[k]), size[1], size[0]);
    const { low, high } = scan.ranges[0];
    drawn.push(Array.from(stage.values(shown, view, { limits: [low, high], grain })));
  }
  return drawn;
}"""
SCALES = [("1", "1"), ("1.5", "1.5"), ("2", "2"), ("2.7321", "2.7321"), (str(math.pi), str(math.pi)), ("2.1", "5.83")]


def key_of(index: int, axis: int = 2, noise: float = 0.01) -> str:
    return f"axis={axis}&index={index}&volume=0&noise={noise}"


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Part of a real scan: 80×96 pixels of 0.9 mm, 7 slices of 6.5 mm."""
    image = nifti.load(SCAN)
    return nifti.of_image(image.slicer[90:170, 70:166])


@pytest.fixture(scope="module")
def opened(scan: Scan) -> Iterator[Opened]:
    with Upscaler.load(with_head(open_bundle(None)), threads=1) as up:
        yield Opened(scan, up, "scan.nii.gz", acquired=(70, 96, scan.shape[2]), noise=0.01)


@pytest.fixture(scope="module")
def served(opened: Opened) -> Iterator[Server]:
    with serving(opened) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    options += ["--enable-precise-memory-info", "--js-flags=--expose-gc"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose every error fails the test."""
    page = browser.new_page(viewport=SIZE)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    assert not problems


def shown(page: Any, key: str) -> None:
    page.wait_for_selector(f'html[data-shown="{key}"]', state="attached", timeout=30_000)


def settle(page: Any) -> None:
    """Wait until what was done is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def look_at(page: Any, server: Server, query: str = "?shader") -> None:
    page.goto(server.address + query)
    shown(page, key_of(3))


def pixels(page: Any) -> np.ndarray:
    """What is on the screen between the bars, (H, W) grey."""
    return np.asarray(Image.open(io.BytesIO(page.locator("#screen").screenshot())).convert("L"), float)


def stage(page: Any, shown: str, sizes: dict[tuple[str, tuple[str, str], float], tuple[int, ...]]) -> list[np.ndarray]:
    """What the stage shows of (key, scales, grain), each of this size."""
    asked = [[key, shown, [float(r) for r in scales], list(size), grain] for (key, scales, grain), size in sizes.items()]
    return [np.reshape(values, size) for values, size in zip(page.evaluate(STAGE, asked), sizes.values())]


def unit(opened: Opened, pixels: np.ndarray) -> np.ndarray:
    range_ = opened.description()["ranges"][0]
    return (pixels - range_["black"]) / (range_["white"] - range_["black"])


def drawing(opened: Opened, shown: str) -> Callable[..., np.ndarray]:
    """What the view has of a slice across `axis`, black 0 and white 1."""

    def draw(axis: int, index: int, scales: tuple[str, str], grain: float = 0) -> np.ndarray:
        view, of = opened.shown(opened.key(axis, index, 0, 0.01)).view, {"scale": scales, "grain": grain}
        if shown == "ours":
            return unit(opened, view.render(**of))
        return unit(opened, view.uncertainty(**of)) - unit(opened, np.zeros(1))

    return draw


BOTH = pytest.mark.parametrize("shown", ["ours", "uncertainty"])


@BOTH
def test_shader_equals_the_view(page: Any, served: Server, opened: Opened, shown: str) -> None:
    look_at(page, served)
    draw, expected = drawing(opened, shown), {}
    for axis, index, some in ((2, 3, SCALES), (0, 40, SCALES[-2:])):  # of fine pixels, and of some that are 6.5 mm long
        expected |= {(key_of(index, axis), scales, 0): draw(axis, index, scales) for scales in some}
    found = stage(page, shown, {asked: image.shape for asked, image in expected.items()})
    errors = [np.abs(one - other).max() for one, other in zip(found, expected.values())]
    print(f"largest errors of {shown}:", *(f"{error:.1e}" for error in errors))
    assert max(errors) < 1e-3  # of the range: what was asked for
    assert min(np.ptp(image) for image in found) > 0.01


@BOTH
def test_shader_keeps_grain_nearly_as_the_view_does(page: Any, served: Server, opened: Opened, shown: str) -> None:
    look_at(page, served)
    draw, scales = drawing(opened, shown), [("1.5", "1.5"), ("2", "2"), ("3.3", "3.3")]
    whole, without = ([draw(2, 3, r, grain) for r in scales] for grain in (1, 0))
    found = stage(page, shown, {(key_of(3), r, 1): image.shape for r, image in zip(scales, whole)})
    errors = [np.std(one - other) / np.std(other - none) for one, other, none in zip(found, whole, without)]
    print("errors of what is given back:", *(f"{error:.3f}" for error in errors))
    assert max(errors) < 0.25  # it is that of ×2 at every scale


def test_original_and_bicubic_are_what_they_are_called(page: Any, served: Server, opened: Opened) -> None:
    look_at(page, served)
    stored = opened.stored(Key(2, 3, 0, 0.01))
    size = 3 * stored.shape[0], 3 * stored.shape[1]
    (original,), (bicubic,) = (stage(page, name, {(key_of(3), ("3", "3"), 0): size}) for name in ("original", "bicubic"))
    np.testing.assert_array_equal(original, np.kron(stored, np.ones((3, 3), np.float32)))
    range_ = opened.description()["ranges"][0]
    expected = np.asarray(Image.fromarray(stored).resize(size[::-1], Image.Resampling.BICUBIC)).clip(
        range_["low"], range_["high"]
    )
    inside = np.s_[6:-6, 6:-6]  # Pillow leaves out what lies beyond the edge, where the shader repeats it
    np.testing.assert_allclose(bicubic[inside], expected[inside], atol=1e-5)


def test_difference_has_its_sign(page: Any, served: Server) -> None:
    look_at(page, served)
    (ours,), (bicubic,), (found,) = (
        stage(page, name, {(key_of(3), ("2", "2"), 0): (160, 192)}) for name in ("ours", "bicubic", "difference")
    )
    np.testing.assert_allclose(found, ours - bicubic, atol=1e-5)
    assert found.min() < -0.01 < 0.01 < found.max()


def test_slices_and_planes_are_scrolled(page: Any, served: Server) -> None:
    look_at(page, served)
    before = pixels(page)
    page.mouse.move(200, 200)
    page.mouse.wheel(0, 100)
    shown(page, key_of(4))
    assert page.inner_text("#where").startswith("5 / 7 · ")
    assert np.abs(pixels(page) - before).max() > 50
    page.keyboard.press("Home")
    shown(page, key_of(0))
    page.keyboard.press("ArrowUp")  # there is none before the first
    page.locator("#index").fill("6")
    shown(page, key_of(6))
    page.get_by_role("button", name="Sagittal").click()
    shown(page, key_of(40, axis=0))
    assert page.get_by_role("button", name="Sagittal").get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.querySelector('#status').textContent").count("×") == 2  # thick slices: a scale for each axis


def test_zoom_is_continuous_and_keeps_the_point_under_the_cursor(page: Any, served: Server) -> None:
    look_at(page, served)
    page.keyboard.press("1")
    page.keyboard.press("2")
    seen = []
    page.mouse.move(330, 200)
    for _ in range(4):
        before = status_scale(page)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -37)
        page.keyboard.up("Control")
        page.wait_for_timeout(50)  # the wheel comes by itself
        settle(page)
        seen.append(status_scale(page) / before)
    np.testing.assert_allclose(seen, math.exp(37 / 400), rtol=0.01)
    page.keyboard.press("f")
    settle(page)
    assert status_scale(page) < before


def status_scale(page: Any) -> float:
    return float(page.inner_text("#status").split()[0].removeprefix("×"))


def test_drags_change_window_and_place(page: Any, served: Server) -> None:
    look_at(page, served)
    before = pixels(page)
    drag(page, (100, 200), (260, 200))
    wider, head = pixels(page)[100:200, 80:190], before[100:200, 80:190]
    inside = (head > 20) & (head < 235)
    np.testing.assert_allclose(wider[inside], ((head - 127.5) / math.exp(160 / 250) + 127.5)[inside], atol=3)
    page.keyboard.press("r")
    settle(page)
    np.testing.assert_allclose(pixels(page)[60:-80], before[60:-80], atol=40)
    page.keyboard.down("Shift")
    drag(page, (100, 200), (130, 200))
    page.keyboard.up("Shift")
    moved = pixels(page)
    middle = np.s_[100:200]
    np.testing.assert_allclose(moved[middle, 80:200], before[middle, 50:170], atol=25)


def drag(page: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=3)
    page.mouse.up()
    page.mouse.move(5, 45)
    settle(page)


def test_wipe_shows_two_images_under_one_line(page: Any, served: Server) -> None:
    look_at(page, served)
    for key in ("1", "4", "w"):  # bicubic, ours and their difference; the first and the last of them under the line
        page.keyboard.press(key)
    settle(page)
    at_half = pixels(page)
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    settle(page)
    moved = pixels(page)
    between, left, right = np.s_[100:300, 410:540], np.s_[100:300, :390], np.s_[100:300, 570:]
    assert np.abs(moved[between] - at_half[between]).mean() > 10  # bicubic in place of the difference
    np.testing.assert_array_equal(moved[left], at_half[left])
    np.testing.assert_array_equal(moved[right], at_half[right])
    drag(page, (560, 200), (120, 200))
    assert np.abs(pixels(page)[100:300, 150:390] - at_half[100:300, 150:390]).mean() > 10


def test_values_under_the_cursor_are_the_pixels_own(page: Any, served: Server, opened: Opened, scan: Scan) -> None:
    look_at(page, served)
    write_down(page)
    page.mouse.move(133, 210)
    settle(page)
    numbers = [text for text in page.evaluate("window.seen") if text.lstrip("-").isdigit()]
    assert len(numbers) >= 3  # one in each panel
    assert int(numbers[-3]) in scan.pixels[:, :, 3]


def write_down(page: Any) -> None:
    """Keep every text that is written over the images in `window.seen`."""
    texts = """() => { const seen = []; const write = CanvasRenderingContext2D.prototype.fillText;
      CanvasRenderingContext2D.prototype.fillText = function (text, ...at) { seen.push(text); write.call(this, text, ...at); };
      window.seen = seen; }"""
    page.evaluate(texts)


def test_uncertainty_is_a_panel_whose_colours_are_its_values(page: Any, served: Server, opened: Opened) -> None:
    look_at(page, served)
    write_down(page)
    for key in "5123":
        page.keyboard.press(key)
    settle(page)
    range_ = opened.description()["ranges"][0]
    strong = 0.2 * (range_["white"] - range_["black"])
    for x, y in ((400, 110), (330, 150), (450, 260)):
        page.mouse.move(x, y)
        settle(page)
        texts = page.evaluate("window.seen")
        value = [float(text.removeprefix("± ")) for text in texts if text.startswith("± ")][-1]
        red, green, blue = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))[y, x] / 255
        assert min(value / strong, 1) == pytest.approx(1 - math.sqrt(1 - red), abs=0.03)
        assert red > green > blue
    assert f"Uncertainty (90 %), to ±{strong:.0f}" in texts


def test_uncertainty_by_the_server_is_that_of_the_shader(page: Any, served: Server) -> None:
    seen = []
    for query in ("?shader", "?windows"):
        look_at(page, served, query)
        for key in "5123":
            page.keyboard.press(key)
        page.wait_for_timeout(500)  # the window with it comes
        seen.append(pixels(page)[60:-60])
    assert seen[0].std() > 5
    assert np.abs(seen[0] - seen[1]).mean() < 4  # of 255: another scale, within 0.5 %, and resampled


def test_map_that_is_awaited_is_called_so(page: Any, served: Server) -> None:
    look_at(page, served, "?windows")
    write_down(page)
    page.route("**/window?*uncertainty=true", lambda route: None)  # it is not answered
    page.keyboard.press("5")
    settle(page)
    texts = page.evaluate("window.seen")
    assert "The network computes …" in texts
    assert not any(text.startswith("Uncertainty") for text in texts)


def test_bundle_without_a_head_has_no_map(page: Any, scan: Scan) -> None:
    plain = without_head(open_bundle("fast"))
    with Upscaler.load(plain, threads=1) as up, serving(Opened(scan, up, "scan.nii.gz", "stored", 0.01)) as server:
        look_at(page, server)
        assert page.locator("#images button").count() == 4
        before = pixels(page)
        page.keyboard.press("5")
        settle(page)
        np.testing.assert_array_equal(pixels(page), before)


def test_notes_of_the_scan_are_shown(page: Any, scan: Scan) -> None:
    noted = replace(scan, notes=("one note", "another"))
    with Upscaler.load("fast", threads=1) as up, serving(Opened(noted, up, "scan.nii.gz", "stored", 0.01)) as server:
        look_at(page, server)
        assert page.inner_text("#notes").endswith("one note · another")


def test_noise_and_grain_change_what_the_network_shows(page: Any, served: Server) -> None:
    look_at(page, served)
    page.keyboard.press("1")
    page.keyboard.press("2")
    settle(page)
    before = pixels(page)
    page.locator("#grain").fill("1")
    settle(page)
    grainy = pixels(page)
    assert np.abs(grainy - before)[80:-80].max() > 3
    page.locator("#noise").fill("0.05")
    page.locator("#noise").dispatch_event("change")
    shown(page, key_of(3, noise=0.05))
    assert np.abs(pixels(page) - grainy)[80:-80].max() > 3


def test_picture_of_the_screen_is_saved(page: Any, served: Server, tmp_path: Path) -> None:
    look_at(page, served)
    with page.expect_download() as download:
        page.keyboard.press("p")
    assert download.value.suggested_filename == "scan_axial_4.png"
    download.value.save_as(tmp_path / "a.png")
    saved = np.asarray(Image.open(tmp_path / "a.png").convert("L"), float)
    assert saved.shape == pixels(page).shape
    np.testing.assert_allclose(saved, pixels(page), atol=2)


def test_wrong_token_is_refused(browser: Any, served: Server) -> None:
    page = browser.new_page()
    with pytest.raises(api.Error, match="ERR_HTTP_RESPONSE_CODE_FAILURE"):  # which has not even a page to it
        page.goto(served.address.replace(served.token, "A" * len(served.token)))
    page.close()


def test_nothing_is_asked_of_other_hosts(page: Any, served: Server) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    look_at(page, served)
    assert len(asked) > 8
    assert all(url.startswith((served.address, "data:", "blob:")) for url in asked)


def test_page_without_a_gpu_is_rendered_by_the_server(page: Any, served: Server) -> None:
    look_at(page, served)
    by_shader = pixels(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    look_at(page, served, "")
    by_server = pixels(page)
    assert "rendered in" in page.inner_text("#status")
    page.mouse.move(300, 200)
    page.wait_for_timeout(300)
    assert len([url for url in asked if "/window?" in url]) <= 2  # what is there is not asked for again
    assert np.abs(by_server - by_shader)[60:-60].mean() < 4  # of 255: another scale, within 0.5 %, and resampled
    page.keyboard.press("ArrowDown")
    shown(page, key_of(4))


# Press a key, and resolve with the ms until the slice that it leads to is drawn to the last pixel.
PRESS = """(key) => new Promise((done) => {
  const began = performance.now();
  const { dataset } = document.documentElement;
  const before = dataset.shown;
  new MutationObserver((_, observer) => {
    if (!dataset.shown || dataset.shown === before) return;
    observer.disconnect();
    document.querySelector('#pictures').getContext('webgl2').readPixels(0, 0, 1, 1, 6408, 5121, new Uint8Array(4));
    done(performance.now() - began);
  }).observe(document.documentElement, { attributes: true });
  document.dispatchEvent(new KeyboardEvent('keydown', { key }));
})"""


def test_prepared_slice_is_on_the_screen_within_a_tenth_of_a_second(page: Any, served: Server) -> None:
    page.set_viewport_size({"width": 400, "height": 300})  # in software, a screen of the usual size takes longer to draw
    look_at(page, served)
    for key in "12":
        page.keyboard.press(key)
    took = []
    for _ in range(3):
        page.wait_for_timeout(1000)  # the next two are encoded now
        took.append(page.evaluate(f"async () => await ({PRESS})('ArrowDown')"))
    print("prepared slices after", *(f"{ms:.0f} ms" for ms in took))
    assert min(took) < 100  # as was asked for; some of them may meet a busy machine


def test_two_hundred_slices_take_no_more_memory(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser's heap and what is kept here, whose bounds are lowered to that of a dozen slices."""
    monkeypatch.setattr(viewer_opened, "IN_BROWSER", 2 << 20)
    rng = np.random.default_rng(2)
    volume = Scan((1000 * rng.random((40, 40, 200))).astype(np.int16), (1.0, 1.0, 1.5), np.diag([1, 1, 1.5, 1]))
    page.set_viewport_size({"width": 240, "height": 240})
    with Upscaler.load("fast", threads=1) as up:
        opened = Opened(volume, up, "scan.nii.gz", "stored", 0.01)
        opened._kept._max_bytes = 4 << 20
        with serving(opened) as server:
            page.goto(server.address + "?shader")
            shown(page, key_of(100))
            page.keyboard.press("Home")
            shown(page, key_of(0))
            heap = page.evaluate(
                f"""async () => {{
                  const press = {PRESS};
                  const heap = [];
                  for (let k = 1; k < 200; k++) {{
                    await press('ArrowDown');
                    if (k % 66 == 1) {{
                      gc();
                      heap.push(performance.memory.usedJSHeapSize);
                    }}
                  }}
                  return heap;
                }}"""
            )
            shown(page, key_of(199))
    assert opened._kept.bytes <= 4 << 20
    print("heap", *(f"{size / 2**20:.1f} MB" for size in heap))
    assert heap[-1] < heap[1] + (4 << 20)  # it would be 16 MB more if all were kept
