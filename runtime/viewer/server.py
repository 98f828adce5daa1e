"""The server of the page: 127.0.0.1 only, one token, fixed files and one scan. Everything else is refused alike."""

from __future__ import annotations

import hmac
import json
import math
import os
import secrets
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl

from ..errors import ImageError, MetasrganError
from .opened import Key, Opened

ASSETS = {
    "index.html": "text/html",
    "viewer.css": "text/css",
    "main.js": "text/javascript",
    "loader.js": "text/javascript",
    "geometry.js": "text/javascript",
    "stage.js": "text/javascript",
    "windows.js": "text/javascript",
    "overlay.js": "text/javascript",
}
_HOST = "127.0.0.1"
_AT_A_TIME = 32  # connections: a browser has six
_PATIENCE = 20  # seconds for a request to arrive, and between two of one connection
_BYTES = "application/octet-stream"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(ThreadingHTTPServer):
    """Serves one scan to this machine. `address` has the token that every request must begin with."""

    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = os.name == "posix"  # elsewhere it would let another program take the port

    def __init__(self, opened: Opened, port: int = 0) -> None:
        """Raises MetasrganError for a port that cannot be had."""
        self.opened = opened
        folder = resources.files(__package__).joinpath("static")
        self.assets = {name: folder.joinpath(name).read_bytes() for name in ASSETS}
        self.token = secrets.token_urlsafe(24)
        self._invitation, self._ended = "", False
        self._free, self.working = threading.BoundedSemaphore(_AT_A_TIME), threading.Semaphore(_AT_A_TIME)
        try:
            super().__init__((_HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise MetasrganError(f"port {port} of {_HOST} cannot be had ({error}): leave --port out, for a free one") from None
        self.hosts = {f"{name}:{self.server_port}" for name in (_HOST, "localhost")}

    @property
    def address(self) -> str:
        return f"http://{_HOST}:{self.server_port}/{self.token}/"

    def invitation(self) -> str:
        """An address that leads to `address` once: other users of the machine may see what a browser is started with."""
        self._invitation = secrets.token_urlsafe(24)
        return f"http://{_HOST}:{self.server_port}/{self._invitation}"

    def is_invited(self, token: str) -> bool:
        """Whether this is the invitation, which then is used up."""
        invited = bool(self._invitation) and _same(token, self._invitation)
        if invited:
            self._invitation = ""
        return invited

    def server_bind(self) -> None:  # HTTPServer's asks the name server for this machine's name
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = _HOST, self.server_address[1]

    def server_close(self) -> None:
        """Returns when nothing is computed any more: ONNX Runtime aborts a process that ends meanwhile."""
        super().server_close()
        for _ in range(0 if self._ended else _AT_A_TIME):
            self.working.acquire()
        self._ended = True

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread is to be had
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; what else goes wrong is told in a line."""
        error = sys.exception()
        if not isinstance(error, (OSError, TimeoutError)):
            print(f"error: {type(error).__name__} in the viewer's server: {error}", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        headers = self.headers
        _, token, rest = [*self.path.split("/", 2), "", ""][:3]
        may = headers.get_all("Host", []) in ([host] for host in self.server.hosts)  # or another site's name could lead here
        if not may or "Content-Length" in headers or "Transfer-Encoding" in headers or self.request_version == "HTTP/0.9":
            self._refuse()
        elif _same(token, self.server.token):
            with self.server.working:
                self._serve(rest)
        elif self.server.is_invited(token):
            self._answer(b"", "text/plain", HTTPStatus.FOUND, Location=f"/{self.server.token}/")
        else:
            self._refuse()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Whatever is wrong with a request is refused without a word."""
        self._refuse()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _refuse(self) -> None:
        self.close_connection = True
        self.send_response_only(HTTPStatus.FORBIDDEN)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def _serve(self, rest: str) -> None:
        """Answer a request that has the token."""
        name, _, query = rest.partition("?")
        opened = self.server.opened
        name = name or "index.html"
        if name in ASSETS:
            self._answer(self.server.assets[name], f"{ASSETS[name]}; charset=utf-8")
            return
        try:
            asked = dict(parse_qsl(query, max_num_fields=16))
            began = time.perf_counter()
            if name == "scan.json":
                self._answer(json.dumps(opened.description(), allow_nan=False).encode(), "application/json")
            elif name == "predictor":
                self._answer(opened.predictor(), _BYTES)
            elif name == "slice":
                self._answer(opened.stored(_key(opened, asked)).astype("<f4").tobytes(), _BYTES)
            elif name == "responses":
                off, body = opened.payload(_key(opened, asked))
                told = {"off": off, "ms": round(1000 * (time.perf_counter() - began))}
                self._answer(body, _BYTES, Told=json.dumps(told))
            elif name == "window":
                factors, rows, cols = (
                    (_real(asked, first), _real(asked, second))
                    for first, second in (("ry", "rx"), ("top", "bottom"), ("left", "right"))
                )
                doubt = asked.get("uncertainty") == "true"
                told, pixels = opened.window(_key(opened, asked), factors, _real(asked, "grain"), rows, cols, doubt)
                told["ms"] = round(1000 * (time.perf_counter() - began))
                self._answer(pixels.tobytes(), _BYTES, Told=json.dumps(told))
            else:
                self._say(HTTPStatus.NOT_FOUND, "there is no such thing here")
        except (ImageError, ValueError) as error:
            self._say(HTTPStatus.BAD_REQUEST, str(error))
        except (MetasrganError, MemoryError) as error:
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, str(error) or "there is not enough memory for this")

    def _say(self, status: HTTPStatus, text: str) -> None:
        self._answer(text.encode(), "text/plain; charset=utf-8", status)

    def _answer(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, **more: str) -> None:
        self.send_response_only(status)
        for name, value in {**_HEADERS, **more, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _key(opened: Opened, asked: dict[str, str]) -> Key:
    axis, index, volume = (int(asked.get(name, "")) for name in ("axis", "index", "volume"))
    return opened.key(axis, index, volume, _real(asked, "noise"))


def _real(asked: dict[str, str], name: str) -> float:
    """A finite number of a query. Raises ValueError."""
    value = float(asked.get(name, ""))
    if not math.isfinite(value):
        raise ValueError(f"{name} is no finite number")
    return value


def _same(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())
