"""ONNX Runtime: a bundle's graphs on every device that it serves. A device is a row in a table, `DEVICES`.

The trunk ends in the features convolved with the B filters that all filters of all scales are sums of. They stay on the device
between `encode` and `render`, and so does all that a scale and a geometry need again: up goes an image, down come its pixels.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import grid
from ..acquired import NOTHING, Told
from ..bundle import GRAPHS, Bundle
from ..errors import BundleError, ClosedError, DeviceError, DeviceMemoryError, reason
from ..grid import Span, by_distance_to_the_ends, content
from ..intensity import Intensity
from ..memory import BoundedCache
from ..phases import slot_table
from . import graphs, openvino, stage

log = logging.getLogger(__name__)

Float = NDArray[np.float32]

PACKAGES = ("onnxruntime", "onnxruntime-gpu")  # with one import name: the last one installed wins, to remove one breaks both
INSTALL = "pip install onnxruntime, or onnxruntime-gpu for an NVIDIA GPU"
REINSTALL = f"pip uninstall onnxruntime onnxruntime-gpu, then {INSTALL}"
_KEPT = 8 << 20  # bytes on the device: backgrounds of 1.4 MB, slot tables (the paper's scales have 2.4 MB), geometries
_OVERHEAD = 1 << 10  # bytes that an array on the device takes beside its own
_WORTH_SKIPPING = 0.9  # of an image's pixels: to fill in the background's features takes a twentieth of the trunk's time
_LARGEST = float(np.finfo(np.float32).max)
_OUT_OF_MEMORY = ("failed to allocate", "out of memory", "out of device memory", "bad_alloc", "alloc_failed")


@dataclass(frozen=True)
class Device:
    """What ONNX Runtime must know of a device."""

    provider: str
    memory: str  # what it calls the device's memory
    repair: str = ""
    in_flight: int = 2  # slices at once: one is prepared while the other is computed
    half: bool = False  # whether half precision is exact enough, and faster
    options: Mapping[str, str] = field(default_factory=dict)


DEVICES = {
    "cpu": Device("CPUExecutionProvider", "cpu", in_flight=1),
    "openvino": Device("CPUExecutionProvider", "cpu", in_flight=1),  # but for the trunk
    "gpu": Device("WebGpuExecutionProvider", "webgpu", "pip install onnxruntime-ep-webgpu, or use device 'cpu'"),
    "cuda": Device(
        "CUDAExecutionProvider",
        "cuda",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'",  # CUDA's and cuDNN's libraries, where the system has none that fit
        half=True,
        # TF32 would keep ten bits of a product; a search for the fastest convolution would be repeated for each new shape.
        options={"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": "1"}
        | {"arena_extend_strategy": "kSameAsRequested"},
    ),
}
_registering, _importing = threading.Lock(), threading.Lock()
_SILENT = "ORT_DISABLE_TELEMETRY"
Sessions = namedtuple("Sessions", "trunk by_table table_free blend")  # a bundle's graphs, and the one that joins features


@dataclass
class Features:
    """The features (H·W, B') of an image, on the device, and what they were made of."""

    value: Any
    image: Float  # standardised; empty unless they are in half precision
    told: Told
    half: bool


class _Kept(NamedTuple):
    values: Any  # what is needed again: feeds on the device, or pieces of an output with theirs
    nbytes: int


class OrtEngine:
    """A bundle on one device. Threads may share it; they take turns on any device but the CPU.

    Where half precision overflows, the image is computed once more in float32, and a warning says so.
    """

    def __init__(self, bundle: Bundle, name: str = "cpu", threads: int | None = None) -> None:
        """On the CPU by default with one thread for each processor that this process may use.

        Raises DeviceError where the device cannot run all of the trunk, DeviceMemoryError, and BundleError on the CPU.
        """
        device, opener = DEVICES[name], Opener(name, threads)
        self.device, self.in_flight, self._memory = name, device.in_flight, device.memory
        self._model, self._predictor = bundle.model, bundle.predictor()
        self._half = device.half and bundle.has_half
        self._open_trunk: Callable[[bool], Any] = lambda half: opener.open(bundle.trunk(half) + graphs.TRUNK_END)
        if name == "openvino":
            trunk: Any = openvino.Trunk(bundle.trunk(False), opener.threads)
            precision = f"{trunk.library}, bfloat16"
        else:
            trunk = self._open_trunk(self._half)
            precision = "8-bit integers" if bundle.integers else "float16" if self._half else "float32"
        by_table = opener.open(bundle.files["stage.onnx"] + graphs.STAGE_END, wholly=False)  # it computes shapes on the CPU
        table_free = opener.open(bundle.files["table_free.onnx"] + graphs.STAGE_END)
        self._open: Sessions | None = Sessions(trunk, by_table, table_free, opener.open(graphs.BLEND, threads=1))
        self._exact = None if self._half else trunk
        self.runs_on = ", ".join(part for part in (opener.library, precision, opener.processor) if part)
        self._background = np.float32((0 - np.float32(self._model.mean)) / np.float32(self._model.std))
        self._kept: BoundedCache[_Kept] = BoundedCache(_KEPT)
        self._turn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext() if name == "cpu" else threading.RLock()

    def encode(self, image: NDArray[Any], levels: Intensity, told: Told = NOTHING) -> Features:
        """An image (H, W) in grey values → its features. The trunk runs only where they are not the background's."""
        told = told if self._model.told else NOTHING
        standard = (levels.normalise(image) - np.float32(self._model.mean)) / np.float32(self._model.std)
        with self._turn:
            kept = standard if self._half else standard[:0]
            return Features(self._encode(standard, told, self._sessions.trunk), kept, told, self._half)

    def render(
        self, features: Features, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, out: NDArray[np.float32]
    ) -> None:
        """Write the pixels rows × cols at a scale, in grey values within the range of `levels`, to `out`."""
        with self._turn:
            while not self._render(features, rows, cols, scales, levels, out):
                if not features.half:
                    raise DeviceError(
                        f"{self.runs_on}: the result is not finite", "use device 'cpu', or export the bundle again"
                    )
                log.warning("half precision overflowed: this image is computed again in float32")
                self._exact = self._exact or self._open_trunk(False)
                features.value, features.half = self._encode(features.image, features.told, self._exact), False

    def responses(self, features: Features) -> Float:
        """Features as (H·W, B') on the host."""
        with self._turn:
            held = features.value
            if self._memory != "cpu":
                feeds = {"blank": held, "part": held, "index": np.arange(held.shape()[0], dtype=np.int32)}
                held = self._run(self._sessions.blend, feeds, {"features": "cpu"})[0]
            values: Float = held.numpy()
            return values

    def close(self) -> None:
        """Let go of the sessions and their memory. Harmless when repeated."""
        with self._turn:
            self._open = self._exact = None
            self._kept = BoundedCache(0)

    @property
    def _sessions(self) -> Sessions:
        if self._open is None:
            raise ClosedError("this Upscaler is closed: load it again")
        return self._open

    def _encode(self, image: Float, told: Told, trunk: Any) -> Any:
        """A standardised image (H, W) → features (H·W, B')."""
        radius = self._model.radius
        axes = [content((image != self._background).any(axis), radius) for axis in (1, 0)]
        (inner_y, outer_y), (inner_x, outer_x) = axes
        part = image[outer_y, outer_x]
        if min(image.shape) <= 2 * radius or part.size > _WORTH_SKIPPING * image.size:
            return self._run_trunk(trunk, image, told)
        blank = self._blank(trunk, told)
        rows, cols = (by_distance_to_the_ends(n, radius) for n in image.shape)
        index = (rows[:, None] * (2 * radius + 1) + cols).astype(np.int32)
        if part.size:
            first = (2 * radius + 1) ** 2
            places = np.arange(first, first + part.size, dtype=np.int32).reshape(part.shape)
            inside = (slice(i.start - o.start, i.stop - o.start) for i, o in axes)
            index[inner_y, inner_x] = places[tuple(inside)]
        part = self._run_trunk(trunk, part, told) if part.size else blank
        feeds = {"blank": blank, "part": part, "index": index.ravel()}
        return self._run(self._sessions.blend, feeds, {"features": self._memory})[0]

    def _run_trunk(self, trunk: Any, image: Float, told: Told) -> Any:
        feeds = {"image": image[None, None]} | ({"told": np.array(told, np.float32)} if self._model.told else {})
        return self._run(trunk, feeds, {"features": self._memory})[0]

    def _blank(self, trunk: Any, told: Told) -> Any:
        """The background's features: by distance to each end of an axis up to the receptive radius, equal beyond it."""

        def make() -> _Kept:
            value = self._run_trunk(trunk, np.full((2 * self._model.radius + 1,) * 2, self._background, np.float32), told)
            return _Kept(value, 4 * math.prod(value.shape()))

        return self._kept.get(("blank", told, trunk is self._exact), make).values

    def _render(
        self, features: Features, rows: Span, cols: Span, scales: grid.Scales, levels: Intensity, out: NDArray[np.float32]
    ) -> bool:
        """Write the pixels; whether all of them are finite."""
        model, predictor, by_table = self._model, self._predictor, grid.has_table(scales)
        session = self._sessions.by_table if by_table else self._sessions.table_free
        width, low, high = levels.white - levels.black, max(levels.low, -_LARGEST), min(levels.high, _LARGEST)
        affine = {"gain": model.std * width, "offset": model.mean * width + levels.black, "low": low, "high": high}
        feeds = {"responses": features.value} | self._keep(
            tuple(affine.values()), lambda: {name: np.float32(number) for name, number in affine.items()}
        )
        if by_table:
            table = predictor.table
            feeds |= self._keep(scales, lambda: {"slots": slot_table(table(scales), scales, model.projection, model.skip)})
        target, finite = out if out.flags.c_contiguous else np.empty(out.shape, np.float32), True

        def pieces() -> _Kept:
            of = stage.by_table(rows, cols) if by_table else stage.table_free(rows, cols, scales, predictor, model.skip)
            kept = [(piece.place, self._on_device(piece.feeds)) for piece in of]
            return _Kept([(place, feeds.values) for place, feeds in kept], sum(feeds.nbytes for _, feeds in kept))

        for place, more in self._kept.get((by_table, rows.key, cols.key), pieces).values:
            whole_rows = isinstance(place, slice)
            onto = target[place] if whole_rows else "cpu"
            finished, means = self._run(session, feeds | more, {"finished": onto, "means": "cpu"})
            finite = finite and bool(np.isfinite(means.numpy()).all())
            if not whole_rows:
                target[place] = finished.numpy()
        if target is not out:
            out[...] = target
        return finite

    def _keep(self, key: Hashable, make: Callable[[], Mapping[str, Any]]) -> Any:
        """Feeds on the device, made where they are not kept."""
        return self._kept.get(key, lambda: self._on_device(make())).values

    def _on_device(self, arrays: Mapping[str, Any]) -> _Kept:
        make = load_onnxruntime().OrtValue.ortvalue_from_numpy
        values = {name: make(np.ascontiguousarray(array), self._memory, 0) for name, array in arrays.items()}
        return _Kept(values, sum(array.nbytes + _OVERHEAD for array in arrays.values()))

    def _run(self, session: Any, feeds: Mapping[str, Any], outputs: Mapping[str, str | Float]) -> Any:
        """Run a graph. Inputs are on the device or in host arrays; outputs go to a memory, or into a contiguous host array."""
        place = load_onnxruntime().OrtValue.ortvalue_from_numpy
        try:
            if isinstance(session, openvino.Trunk):
                return [place(session.run(feeds))]
            binding = session.io_binding()
            for name, value in feeds.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, np.ascontiguousarray(value))
                else:
                    binding.bind_ortvalue_input(name, value)
            for name, onto in outputs.items():
                if isinstance(onto, str):
                    binding.bind_output(name, onto, 0)
                else:
                    binding.bind_ortvalue_output(name, place(onto))
            session.run_with_iobinding(binding)
            return binding.get_outputs()
        except Exception as error:  # ONNX Runtime has no base class for its own
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> DeviceError:
        return too_little_memory(error, self.device) or DeviceError(f"{self.runs_on}: {reason(error)}")


class Opener:
    """Opens graphs on a device. Raises DeviceError where the device is not there, with what is missing."""

    def __init__(self, name: str, threads: int | None) -> None:
        self._ort, self._name, self._device = load_onnxruntime(), name, DEVICES[name]
        self.library, self.processor, self.threads = f"onnxruntime {self._ort.__version__}", "", 1
        self._adapter: Any = None
        if self._device.memory == "cpu":
            self.threads = threads or available_processors()
            _check_threads(self.threads * len(GRAPHS) if self.threads > 1 else 0)
            np.linalg.inv(np.eye(2))  # OpenBLAS takes its memory now: where it gets none later, it ends the process
        if name == "gpu":
            self._adapter = adapter()
            self.library += f" WebGPU {version_of('onnxruntime-ep-webgpu')}"
            self.processor = processor(self._adapter)
        if name == "cuda":
            if self._device.provider not in self._ort.get_available_providers():
                here = " and ".join(installed()) or "a package that pip does not know"
                raise Absent(f"{self.library}, by {here}, has no {self._device.provider}", REINSTALL)
            self.library += " CUDA"
            _preload(self._ort)

    def open(self, graph: bytes, wholly: bool = True, threads: int | None = None) -> Any:
        """A session, `wholly` on the device."""
        options, provider = self._ort.SessionOptions(), self._device.provider
        options.intra_op_num_threads, options.inter_op_num_threads = threads or self.threads, 1
        # A plan for the memory of each shape would be kept for ever, and takes half as much again: 62 MB of 180 at 240×240.
        options.enable_mem_pattern = False
        options.log_severity_level = 4  # what goes wrong is raised
        # The sessions take turns: threads of one that spin after their work would slow the next one down twofold.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if wholly and self._device.memory != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers: list[Any] | None = [(provider, dict(self._device.options))]
        if self._adapter is not None:
            options.add_provider_for_devices([self._adapter], dict(self._device.options))
            providers = None
        try:  # without its own second try on the CPU, of which it would say so on stdout alone
            session = self._ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
            if session.get_providers()[0] != provider:
                raise RuntimeError(f"{provider} was not used")
            return session
        except Exception as error:
            if too_little := too_little_memory(error, self._name):
                raise too_little from error
            if self._name == "cpu":
                raise BundleError(f"{self.library} cannot run this bundle ({reason(error)}): update it") from error
            raise DeviceError(f"{self.library} does not work here: {self._cause(error)}", self._device.repair) from error

    def _cause(self, error: Exception) -> str:
        """Why a provider did not load: ONNX Runtime says so in its log alone, so that another process is asked for it."""
        code = "import sys, onnxruntime as o; o.InferenceSession(bytes.fromhex(sys.argv[1]), providers=[sys.argv[2]])"
        command = [sys.executable, "-c", code, graphs.PROBE.hex(), self._device.provider]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                command, env=os.environ | {_SILENT: "1"}, capture_output=True, text=True, errors="replace", timeout=60
            ).stderr
            if found := re.search(r"with error: ([^\n\x1b]+)", said):
                return found[1]
        return reason(error)


class Absent(DeviceError):
    """A device that this machine has not, or whose package is not installed: no fault, unless it was asked for by name."""


def adapter() -> Any:
    """The adapter that WebGPU would compute on: hardware before software. Raises DeviceError where there is none."""
    ort, repair = load_onnxruntime(), DEVICES["gpu"].repair
    try:
        plugin = import_module("onnxruntime_ep_webgpu")
    except ImportError:
        raise Absent("onnxruntime-ep-webgpu is not installed", repair) from None
    if not hasattr(ort, "register_execution_provider_library"):
        raise DeviceError(f"onnxruntime {ort.__version__} takes no plug-ins", "pip install 'onnxruntime>=1.31'")

    def adapters() -> list[Any]:
        return [one for one in ort.get_ep_devices() if one.ep_name == plugin.get_ep_name()]

    try:
        with _registering:
            if not adapters():
                _register(plugin.get_ep_name(), plugin.get_library_path())
        found = adapters()
    except Exception as error:
        what = f"onnxruntime-ep-webgpu {version_of('onnxruntime-ep-webgpu')} does not load"
        raise DeviceError(f"{what} into onnxruntime {ort.__version__}: {reason(error)}", "update both") from error
    if not found:
        raise Absent(
            "there is no GPU with a driver for Vulkan, Direct3D 12 or Metal", "install its driver, or use device 'cpu'"
        )
    return min(found, key=lambda one: not is_hardware(one))


@lru_cache
def _register(name: str, library: str) -> None:
    """Load a plug-in, once: to load it twice crashes the process."""
    load_onnxruntime().register_execution_provider_library(name, library)


def is_hardware(adapter: Any) -> bool:
    """Whether an adapter is a GPU, and no program that does as if."""
    return str(adapter.device.type).endswith("GPU")


def processor(adapter: Any) -> str:
    """An adapter's name, for a person."""
    device = adapter.device
    name = dict(device.metadata).get("Description") or f"GPU {device.device_id:#06x} of {device.vendor or 'an unknown vendor'}"
    return name if is_hardware(adapter) else "a software adapter"


def load_onnxruntime() -> Any:
    """The module, which reports nothing to its maker unless others imported it before.

    Raises DeviceError where there is none, and where two packages have damaged each other.
    """
    try:
        with _unreported():
            import onnxruntime

        onnxruntime.InferenceSession  # noqa: B018  a broken mix leaves an empty module
        return onnxruntime
    except (ImportError, AttributeError) as error:
        here = installed()
        if isinstance(error, ImportError) and not here:
            raise DeviceError("onnxruntime is not installed", INSTALL) from None
    removed = "" if len(here) > 1 else ", and one of them was removed"
    raise DeviceError(f"onnxruntime is damaged: {' and '.join(PACKAGES)} share its files{removed}", REINSTALL)


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
    """From 1.29 on, the package sends what it is used for over the network, unless this is set when it is imported first."""
    with _importing:
        before = os.environ.get(_SILENT)
        os.environ[_SILENT] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_SILENT]
            else:
                os.environ[_SILENT] = before


def installed() -> list[str]:
    """Those of ONNX Runtime's packages that pip knows of."""
    return [name for name in PACKAGES if version_of(name)]


def version_of(package: str) -> str:
    """The version that pip knows of a package, or nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _preload(ort: Any) -> None:
    """Load CUDA and cuDNN where they came by pip. What ONNX Runtime prints of it goes to the log."""
    if load := getattr(ort, "preload_dlls", None):
        quiet = vars(ort) | {"print": lambda *said: log.debug("onnxruntime: %s", " ".join(map(str, said)))}
        FunctionType(load.__code__, quiet, argdefs=load.__defaults__)()


def too_little_memory(error: Exception, name: str) -> DeviceMemoryError | None:
    """What ONNX Runtime, which has no type for it, says of memory that it could not get on a device."""
    if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return None
    if DEVICES[name].memory == "cpu":
        return DeviceMemoryError("there is too little memory for the network", "free some, or give fewer threads or workers")
    return DeviceMemoryError("the GPU has too little memory for the network", "free some, or give smaller tiles")


def _check_threads(count: int) -> None:
    """Raise DeviceMemoryError where so many threads cannot be started: ONNX Runtime would wait for ever for those it has."""
    ready = threading.Event()
    with ThreadPoolExecutor(count or 1) as pool:
        try:
            for _ in range(count):
                pool.submit(ready.wait)
        except (RuntimeError, MemoryError):
            raise DeviceMemoryError(f"this process may not start {count} threads", "give fewer, or raise its limits") from None
        finally:
            ready.set()


def available_processors(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors that this process may use: those of its affinity mask, and no more than a container's share of time allows."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no container, or one without a limit: "max 100000"
        return count
