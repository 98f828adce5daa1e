"""The viewer without a browser: what is served, to whom, and what of the scan."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import numpy as np
import pytest

from runtime import ImageError, MetasrganError, Upscaler, preview, viewer
from runtime.acquired import STORED
from runtime.grid import has_table
from runtime.scan import Scan
from runtime.upscaler import open_bundle
from runtime.viewer import opened, server
from runtime.viewer.opened import Key, Opened
from runtime.viewer.server import ASSETS, Server
from tests.conftest import ROOT, with_head, without_head
from tests.runtime.conftest import serving

SLICE = "axis=2&index=1&volume=0&noise=0.01"


def scan_of(head: np.ndarray, count: int = 4) -> Scan:
    """`count` slices of a head, 0.9 mm × 0.9 mm and 4 mm thick, in int16; the first axis leads to the left."""
    pixels = np.stack([head * (1 - 0.1 * k) for k in range(count)], -1).astype(np.int16)
    return Scan(pixels, (0.9, 0.9, 4.0), np.diag([-0.9, 0.9, 4.0, 1.0]))


@pytest.fixture
def scan(head: np.ndarray) -> Opened:
    with Upscaler.load(without_head(open_bundle("fast"))) as up:
        yield Opened(scan_of(head), up, "head.nii.gz", acquired=(36, 53, 4))


@pytest.fixture
def served(scan: Opened) -> Iterator[Server]:
    with serving(scan) as running:
        yield running


def ask(served: Server, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", served.server_port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_page_and_its_files_are_served_with_a_strict_policy(served: Server) -> None:
    for name in ("", *ASSETS):
        answer, body = ask(served, f"/{served.token}/{name}")
        assert (answer.status, answer.headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert body == (Path(server.__file__).parent / "static" / (name or "index.html")).read_bytes()
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert not any(word in policy for word in ("http", "unsafe", "*"))


def test_page_names_no_outside_resource() -> None:
    for name in ASSETS:
        text = (Path(server.__file__).parent / "static" / name).read_text()
        assert "//" not in text.replace("// ", "").replace("//\n", ""), name  # but for comments


def test_every_file_of_the_page_is_in_the_wheel() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = Path(server.__file__).parent
    assert {file for pattern in data["runtime.viewer"] for file in folder.glob(pattern)} == {
        folder / "static" / name for name in ASSETS
    }
    assert {file.name for file in (folder / "static").iterdir()} == {*ASSETS}


def test_package_grows_by_less_than_a_quarter_megabyte() -> None:
    folder = Path(server.__file__).parent  # what was asked for; it takes a third of it
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.suffix != ".pyc") < 250_000


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        ("/", "GET", {}),
        ("/index.html", "GET", {}),
        ("/wrong/", "GET", {}),
        ("/wrong/scan.json", "GET", {}),
        ("/{token}x/", "GET", {}),
        ("/../{token}/", "GET", {}),
        ("http://127.0.0.1/{token}/", "GET", {}),
        ("/{token}/", "POST", {}),
        ("/{token}/", "OPTIONS", {}),
        ("/{token}/", "NONSENSE", {}),
        ("/{token}/", "GET", {"Host": "attacker.example"}),
        ("/{token}/", "GET", {"Host": "127.0.0.1:1"}),
        ("/{token}/", "GET", {"Host": ""}),
        ("/{token}/", "GET", {"Content-Length": "5"}),
        ("/{token}/", "GET", {"Transfer-Encoding": "chunked"}),
    ],
)
def test_request_without_token_or_from_elsewhere_learns_nothing(
    served: Server, path: str, method: str, headers: dict[str, str]
) -> None:
    answer, body = ask(served, path.replace("{token}", served.token), method, **headers)
    told = {name: value for name, value in answer.getheaders() if name not in ("Content-Length", "Connection")}
    assert (answer.status, body, told) == (403, b"", {})


def test_only_the_loopback_is_listened_to(served: Server) -> None:
    assert served.socket.getsockname()[0] == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; tells this machine's own address
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this machine has no address but the loopback")
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect((own, served.server_port))


def test_invitation_serves_once(served: Server) -> None:
    path = "/" + served.invitation().rpartition("/")[2]
    answer, _ = ask(served, path)
    assert (answer.status, answer.headers["Location"]) == (302, f"/{served.token}/")
    assert ask(served, path)[0].status == 403


def test_no_path_of_a_request_is_read(served: Server) -> None:
    for path in (
        "../opened.py",
        "static/main.js",
        "%2e%2e/opened.py",
        "/etc/passwd",
        "..%2f..%2fbrain.bundle",
        "main.js/",
        "MAIN.JS",
    ):
        answer, body = ask(served, f"/{served.token}/{path}")
        assert (answer.status, body) == (404, b"there is no such thing here")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "axis=2",
        "axis=3&index=0&volume=0&noise=0",
        "axis=2&index=4&volume=0&noise=0",
        "axis=2&index=-1&volume=0&noise=0",
        "axis=2&index=0&volume=1&noise=0",
        "axis=2&index=0&volume=0&noise=nan",
        "axis=2&index=0&volume=0&noise=2",
        "axis=2&index=0&volume=0&noise=1e999",
        f"axis={'9' * 5000}&index=0&volume=0&noise=0",
        "&a" * 99,
    ],
)
def test_request_for_what_the_scan_does_not_have_is_told_so(served: Server, query: str) -> None:
    for name in ("slice", "responses", "window"):
        answer, body = ask(served, f"/{served.token}/{name}?{query}")
        assert answer.status == 400
        assert body
        assert b"Traceback" not in body


def test_server_survives_a_storm_of_damaged_requests(served: Server, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(5)
    sound = f"GET /{served.token}/slice?{SLICE} HTTP/1.1\r\nHost: 127.0.0.1:{served.server_port}\r\n\r\n".encode()
    seen: Counter[bytes] = Counter()
    for _ in range(10_000):
        request = bytearray(sound)
        for _ in range(rng.choice([1, 1, 3, 30])):
            k = rng.randrange(len(request))
            request[k : k + rng.choice([0, 1, 1, 9])] = rng.randbytes(rng.choice([0, 1, 1, 5]))
        with socket.create_connection(("127.0.0.1", served.server_port), timeout=10) as connection:
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                seen[connection.recv(12)[-3:]] += 1
            except ConnectionError:  # it was refused before all of it was sent
                seen[b""] += 1
    assert seen.keys() <= {b"", b"200", b"400", b"403", b"404"}
    assert min(seen[b"200"], seen[b"400"], seen[b"403"]) > 100  # the storm reached all that there is to reach
    assert ask(served, f"/{served.token}/scan.json")[0].status == 200
    assert capfd.readouterr() == ("", "")
    for _ in range(server._AT_A_TIME):  # no connection is left taken
        assert served._free.acquire(timeout=5)


def test_idle_connections_of_strangers_do_not_grow_without_bound(served: Server) -> None:
    idle = [socket.create_connection(("127.0.0.1", served.server_port)) for _ in range(server._AT_A_TIME + 8)]
    try:
        idle[-1].settimeout(5)
        assert idle[-1].recv(1) == b""  # it is closed at once
        assert threading.active_count() <= server._AT_A_TIME + 8
    finally:
        for connection in idle:
            connection.close()


def test_end_waits_for_what_is_computed(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    began, done = threading.Event(), threading.Event()

    def slow(key: Key) -> tuple[tuple[float, float], bytes]:
        began.set()
        time.sleep(0.3)
        done.set()
        return (0.0, 0.0), b""

    monkeypatch.setattr(served.opened, "payload", slow)
    asking = threading.Thread(target=ask, args=(served, f"/{served.token}/responses?{SLICE}"))
    asking.start()
    assert began.wait(5)
    served.shutdown()
    served.server_close()
    assert done.is_set()
    asking.join()


def test_port_in_use_is_one_error(served: Server) -> None:
    with pytest.raises(MetasrganError, match=rf"port {served.server_port} of 127.0.0.1 cannot be had"):
        Server(served.opened, served.server_port)
    with pytest.raises(MetasrganError, match="port 99999"):
        Server(served.opened, 99999)


def test_payload_has_what_the_stage_is_made_of(scan: Opened, served: Server) -> None:
    key = Key(2, 1, 0, 0.01)
    encoded, plane = scan.shown(key).encoded, scan.plane(2)
    body = ask(served, f"/{served.token}/responses?{SLICE}")[1]
    rows, cols = plane.canonical
    assert plane.canonical == encoded.shape == (36, 53)
    image = np.frombuffer(body, "<f4", rows * cols).reshape(rows, cols)
    np.testing.assert_array_equal(image, encoded.acquired.canonical(encoded.unit)[0])
    halves = np.frombuffer(body, "<f2", 32 * rows * cols, image.nbytes).reshape(8, rows, cols, 4)
    responses = scan.shown(key).slices.engine.responses(encoded.tiles[0].features).reshape(rows, cols, -1)
    np.testing.assert_allclose(halves.transpose(1, 2, 0, 3).reshape(rows, cols, 32), responses[..., :32], rtol=1e-3, atol=1e-4)
    fine = json.loads(ask(served, f"/{served.token}/scan.json")[1])["planes"][0]["fine"]
    assert len(body) == image.nbytes + halves.nbytes + 2 * fine[0] * fine[1]
    off, _ = scan.payload(key)
    lacking = np.frombuffer(body, "<f2", offset=image.nbytes + halves.nbytes).astype(float)
    assert off == pytest.approx((np.sqrt(np.mean(lacking**2)), np.abs(lacking).max()), rel=1e-3)


def test_tiles_are_put_together(head: np.ndarray) -> None:
    whole, parts = (Upscaler.load("fast", tile=tile) for tile in (512, 24))
    with whole, parts:
        bodies = [Opened(scan_of(head), up, "", "stored").payload(Key(2, 0, 0, 0.01))[1] for up in (whole, parts)]
    one, other = (np.frombuffer(body, "<f2", 32 * head.size, 4 * head.size).astype(float) for body in bodies)
    np.testing.assert_allclose(one, other, atol=0.02)  # of some 10: rounding to half, and an 8-bit trunk


def test_window_equals_the_view(scan: Opened) -> None:
    key = Key(2, 1, 0, 0.01)
    told, (original, _, ours) = scan.window(key, (2.5, 2.5), 0.0, (4, 20), (10.2, 30))
    top, left, height, width = told["window"]
    view = scan.shown(key).view
    scales = view.nearest_scale(2.5)
    assert told["scale"] == [float(r) for r in scales]
    expected = view.render(scales, window=(top, left, height, width))
    low, high = (scan.description()["ranges"][0][name] for name in ("black", "white"))
    np.testing.assert_allclose(ours * (high - low) + low, expected, atol=1e-3 * (high - low))
    y, x = (np.floor((k + np.arange(n) + 0.5) / float(r)).astype(int) for k, n, r in zip((top, left), ours.shape, scales))
    np.testing.assert_array_equal(original, scan.stored(key)[np.ix_(y, x)])


@pytest.fixture
def doubting(head: np.ndarray) -> Iterator[Opened]:
    with Upscaler.load(with_head(open_bundle("fast"))) as up:
        yield Opened(scan_of(head), up, "head.nii.gz", acquired=(36, 53, 4))


def test_head_is_told_and_its_numbers_are_the_last_layer(scan: Opened, doubting: Opened) -> None:
    key = Key(2, 1, 0, 0.01)
    assert [opened.description()["network"]["uncertainty"] for opened in (scan, doubting)] == [False, True]
    (_, without), (_, body) = scan.payload(key), doubting.payload(key)
    rows, cols = doubting.plane(2).canonical
    end = (4 + 64) * rows * cols
    assert body[:end] + body[end + 8 * rows * cols :] == without
    told = np.frombuffer(body, "<f2", 4 * rows * cols, end).reshape(rows * cols, 4)
    shown = doubting.shown(key)
    expected = shown.slices.head(shown.slices.engine.responses(shown.encoded.tiles[0].features), shown.encoded.acquired.told)
    np.testing.assert_allclose(told[:, :3], expected, rtol=1e-3, atol=1e-4)
    assert expected.std(0).min() > 0.01


@pytest.mark.parametrize("grain", [0.0, 1.0])
def test_window_has_the_uncertainty_of_the_view_where_it_is_asked_for(doubting: Opened, grain: float) -> None:
    key, where = Key(2, 1, 0, 0.01), ((4, 20), (10.2, 30))
    with serving(doubting) as served:
        query = f"window?{SLICE}&ry=2.5&rx=2.5&top=4&bottom=20&left=10.2&right=30&grain={grain}&uncertainty=true"
        answer, body = ask(served, f"/{served.token}/{query}")
    told = json.loads(answer.headers["Told"])
    *_, height, width = told["window"]
    *images, uncertainty = np.frombuffer(body, "<f4").reshape(4, height, width)
    np.testing.assert_array_equal(images, doubting.window(key, (2.5, 2.5), grain, *where)[1])
    view = doubting.shown(key).view
    expected = view.uncertainty(view.nearest_scale(2.5), window=tuple(told["window"]), grain=grain)
    low, high = (doubting.description()["ranges"][0][name] for name in ("black", "white"))
    np.testing.assert_allclose(uncertainty * (high - low), expected, rtol=1e-5)
    assert uncertainty.std() > 1e-3


def test_grain_widens_the_uncertainty_by_what_it_adds(doubting: Opened) -> None:
    view = doubting.shown(Key(2, 1, 0, 0.01)).view
    without, whole = (view.uncertainty(2, grain=grain) for grain in (0, 1))
    image = doubting._scan.pixels[:, :, 1]
    with Upscaler.load(with_head(open_bundle("fast"))) as up:
        acquired = replace(view.acquired, sigma=0.01)
        _, expected = up(image, 2, acquired=acquired, grain=1, uncertainty=True, levels=doubting._ranges[0])
    np.testing.assert_allclose(whole, expected, rtol=1e-3, atol=0.1)  # of 1000
    assert np.abs(whole - without).max() > 10


def test_nearest_scale_is_near_and_has_a_small_table(scan: Opened) -> None:
    view, spacing = scan.shown(Key(2, 1, 0, 0.01)).view, scan.plane(2).spacing
    for factor in (1, 1.3, 1.7321, 2.37, 3.141593, 5.77):
        scales = view.nearest_scale(factor)
        assert all(abs(float(r) / factor - 1) <= 0.005 for r in scales)
        assert has_table((scales[0] * spacing[0], scales[1] * spacing[1]))
    for factor in np.linspace(1, 16, 200).round(4):  # near whole numbers it cannot be as near
        assert all(abs(float(r) / factor - 1) <= 0.016 for r in view.nearest_scale(factor))
    assert view.nearest_scale((2, 3)) == (2, 3)


def test_slices_kept_are_bounded(scan: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    size = scan.shown(Key(2, 0, 0, 0.0)).nbytes
    scan._kept._max_bytes = 3 * size
    for noise in np.linspace(0, 0.05, 9):
        scan.payload(Key(2, 1, 0, float(noise)))
    assert scan._kept.bytes <= 3 * size


def test_planes_are_upright_as_the_preview_is(head: np.ndarray) -> None:
    letters = {}
    with Upscaler.load("fast") as up:
        for signs in ((1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)):
            scan = replace(scan_of(head), affine=np.diag([*(0.9 * s for s in signs), 1.0]))
            for plane in Opened(scan, up, "", STORED).description()["planes"]:
                rows, cols = np.mgrid[: plane["shape"][0], : plane["shape"][1]]
                image = rows * 100 + cols
                axes = Opened(scan, up, "", STORED).plane(plane["axis"]).axes
                turned = image.T if plane["turned"] else image
                down, across = (-1 if flip else 1 for flip in plane["flipped"])
                np.testing.assert_array_equal(turned[::down, ::across], preview.upright(image, axes))
                letters.setdefault(plane["name"], set()).add("".join(plane["letters"]))
    assert letters == {"Axial": {"APRL"}, "Coronal": {"SIRL"}, "Sagittal": {"SIAP"}}


def test_position_of_a_slice_is_its_middle_in_millimetres(scan: Opened) -> None:
    planes = {plane["axis"]: plane["position"] for plane in scan.description()["planes"]}
    assert planes[2] == {"first": 0.0, "step": 4.0, "letters": "IS"}
    assert planes[0] == {"first": 0.0, "step": -0.9, "letters": "LR"}


def test_what_cannot_be_shown_is_refused(head: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    with Upscaler.load("fast") as up:
        with pytest.raises(ImageError, match="labels"):
            Opened(replace(scan_of(head), labels=True), up, "")
        with pytest.raises(ImageError, match="no place in space"):
            Opened(replace(scan_of(head), affine=np.full((4, 4), np.nan)), up, "")
        monkeypatch.setattr(opened, "LARGEST", 100)
        with pytest.raises(ImageError, match="give slices"):
            Opened(scan_of(head), up, "")


def test_pictures_colours_and_time_series_are_shown(head: np.ndarray) -> None:
    with Upscaler.load("fast") as up:
        grey = Opened(Scan(head), up, "a.png")
        colour = Opened(Scan(np.stack([head] * 3), colour=True), up, "a.png")
        assert grey.description()["planes"][0]["letters"] == []
        np.testing.assert_allclose(grey.stored(Key(2, 0, 0, 0)), colour.stored(Key(2, 0, 0, 0)), atol=1e-6)
        scan = scan_of(head)
        series = Opened(replace(scan, pixels=np.stack([scan.pixels, scan.pixels // 2], -1), alike=True), up, "")
        assert series.description()["volumes"] == 2
        ratio = np.median(series.stored(Key(2, 0, 1, 0))[10:30, 20:30] / series.stored(Key(2, 0, 0, 0))[10:30, 20:30])
        assert ratio == pytest.approx(0.5, abs=0.01)


def test_command_prints_an_address_and_ends_with_the_interrupt(
    head: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "head.npy", head)
    opened_at: list[str] = []
    monkeypatch.setattr(Server, "serve_forever", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(viewer.webbrowser, "open", opened_at.append)
    monkeypatch.setattr(viewer, "_has_browser", lambda: True)
    viewer.view([str(tmp_path / "head.npy"), "--model", "fast", "--no-browser"], "view")
    assert "http://127.0.0.1:" in capsys.readouterr().out
    assert not opened_at
    viewer.view([str(tmp_path / "head.npy"), "--model", "fast"], "view")
    assert opened_at[0] not in capsys.readouterr().out  # what others may see is not the token
